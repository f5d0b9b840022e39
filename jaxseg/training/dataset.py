"""Prepares the data of a run: finds and examines the files, prints what it found, and chooses crops and cache."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import psutil

from jaxseg.base.config import LARGEST, Config, Data, Optimization, cache_folder
from jaxseg.base.errors import UserError
from jaxseg.base.terminal import console
from jaxseg.data.feed.pipeline import Cache, Pipeline
from jaxseg.data.feed.windows import Size
from jaxseg.data.find.folders import find_split
from jaxseg.data.made.fields import given_or_made_up
from jaxseg.data.read.samples import Reading
from jaxseg.devices.mesh import Devices
from jaxseg.doctor.examine import Examination, Part, examine
from jaxseg.doctor.values import describe_input

CROP = 512
"""Default side of training crops in pixels, where images are larger."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Data of a run.

    - `config`: settings of the run, with the data's folder filled in
    - `found`: files, and how they are read
    - `crop`: height and width of training crops in pixels; None for whole images
    - `cache`: where decoded images are kept
    """

    config: Config
    found: Examination
    crop: Size | None
    cache: Cache

    @property
    def reading(self) -> Reading:
        """How files become samples."""
        return self.found.reading

    @property
    def classes(self) -> list[str]:
        """Names of the classes."""
        return list(self.reading.labels.names)

    @property
    def class_pixels(self) -> tuple[int, ...]:
        """Number of pixels of each class in the training images."""
        return self.found.training.class_pixels

    @property
    def tile(self) -> Size:
        """Height and width of the training samples in pixels."""
        return self.crop or self.found.training.sizes[0]

    @property
    def samples(self) -> int:
        """Number of training samples in an epoch."""
        return self.found.training.pairs * self.config.data.crops

    @property
    def files(self) -> list[Path]:
        """Images and masks of the run."""
        split = self.found.split
        return [path for pair in (*split.training, *split.validation) for path in (pair.image, pair.mask)]

    @property
    def description(self) -> dict:
        """Description of the data for `Checkpoints`, with which files are read the same way later."""
        return {
            "classes": self.classes,
            "in_channels": self.reading.channels,
            "reading": self.reading.to_dict(),
            "tile": list(self.tile),
        }

    def pipelines(self, seed: int, workers: int, devices: Devices | None = None) -> tuple[Pipeline, Pipeline]:
        """Returns the pipelines of training and validation.

        - `seed`: of order and crops
        - `workers`: number of reader threads
        - `devices`: devices that share each batch; one if not given
        """
        split, data = self.found.split, self.config.data
        how = {"batch_size": self.config.optimization.batch_size, "reading": self.reading}
        how |= {"workers": workers, "cache": self.cache, "devices": devices}
        sizes = self.found.training.sizes, self.found.validation.sizes
        crops = {"crop": self.crop, "crops": data.crops, "parts": self.config.optimization.accumulate}
        return (
            Pipeline(split.training, sizes=sizes[0], shuffle=True, seed=seed, **crops, **how),
            Pipeline(split.validation, sizes=sizes[1], largest=LARGEST, **how),
        )


def open_data(config: Config, limit: int | None = None) -> Dataset:
    """Finds and examines the data of a run, and prints what it found. Each file is decoded once, or was earlier.

    - `config`: settings of the run
    - `limit`: number of training images to use, evenly spread over all; validation images in proportion

    Raises DataError listing all faults of the files, UserError when images do not fit the network or the cache.
    """
    data, run = given_or_made_up(config.data), config.run
    config = dataclasses.replace(config, data=data)
    split = find_split(data, run.seed, all_train=run.overfit > 0)
    if limit is not None and limit < len(split.training):
        share = limit / len(split.training)
        few = (spread(pairs, max(1, round(share * len(pairs)))) for pairs in (split.training, split.validation))
        split = dataclasses.replace(split, **dict(zip(("training", "validation"), few)))
    if run.overfit:
        few = split.training[: run.overfit]
        split = dataclasses.replace(split, training=few, validation=few, notes=())
    found = examine(split, data, data.workers)
    tell(found, config.optimization)
    found.raise_errors()
    crop = choose_crop(config, found.training.sizes)
    dataset = Dataset(config, found, crop, choose_cache(data, found))
    check_sizes(dataset)
    return dataset


def choose_cache(data: Data, found: Examination) -> Cache:
    """Chooses where decoded images are kept, and prints it. Raises UserError when they do not fit there."""
    parts = (found.training, found.validation)
    need = sum(part.decoded_bytes for part in parts)
    images = f"{sum(part.pairs for part in parts)} images, {need / 2**20:,.0f} MiB decoded"
    room, what = memory_for_images(data)
    cache = data.cache if data.cache != "auto" else "memory" if need <= room else "none"
    if cache == "device":
        check_sizes_for_device(found)
        room, what = memory_on_device() or (room, what)
    if cache in ("memory", "device") and need > room:
        raise UserError(
            f"--cache {cache}: {images}, do not fit in {what}. "
            "Give --cache disk, which needs no memory, or --cache none, which reads the files each epoch."
        )
    kept = {
        "none": "read from the files each epoch",
        "memory": "kept in memory",
        "disk": f"kept in {cache_folder()}, for later runs too",
        "device": "kept on the device",
    }[cache]
    if data.cache == "auto" and cache == "none":
        kept = f"more than {what}: {kept}; --cache disk would keep them in {cache_folder()}"
    console.print(f"data  {images}, {kept}")
    return cache


def memory_for_images(data: Data) -> tuple[int, str]:
    """Returns the bytes of memory available for decoded images, and the name of this limit."""
    free = psutil.virtual_memory().available
    if data.cache_mb * 2**20 <= 0.8 * free:
        return data.cache_mb * 2**20, f"--cache-mb {data.cache_mb}"
    return int(0.8 * free), f"four fifths of the {free / 2**20:,.0f} MiB of memory that are free"


def memory_on_device() -> tuple[int, str] | None:
    """Returns the bytes available for images on the accelerator, and the name of this limit; None on a CPU."""
    limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    return limit and (limit // 2, f"half of the device's {limit / 2**20:,.0f} MiB; the other half is for the network")


def check_sizes_for_device(found: Examination) -> None:
    """Raises UserError when images differ in size, as --cache device keeps them in one array."""
    for name, part in (("training", found.training), ("validation", found.validation)):
        if len(set(part.sizes)) > 1:
            raise UserError(
                f"--cache device needs images of one size; the {name} images are {sizes_text(part)}. "
                "Bring them to one size, or give --cache memory."
            )


def spread(items: Sequence, count: int) -> tuple:
    """Returns `count` of the items, evenly spread, in their order."""
    return tuple(items[i * len(items) // count] for i in range(count))


def tell(found: Examination, optimization: Optimization) -> None:
    """Prints the layout, sizes, classes with their shares, and warnings, without advice that was followed."""
    weighted = optimization.class_weights is not None or "dice" in optimization.loss
    console.print(f"data  {found.split.layout}")
    for name, part in (("training", found.training), ("validation", found.validation)):
        if part.pairs and found.reading is not None:
            total = max(sum(part.class_pixels), 1)
            shares = [f"{c} {n / total:.1%}" for c, n in zip(found.reading.labels.names, part.class_pixels)]
            shares += [f"ignored {part.ignored_pixels:,} pixels"] if part.ignored_pixels else []
            console.print(f"data  {part.pairs} {name} images of {sizes_text(part)}; {', '.join(shares)}")
    if found.reading is not None:
        for line in describe_input(found.reading, found.facts):
            console.print(f"data  {line}")
    for finding in found.findings:
        if finding.level == "warning":
            files = f" ({', '.join(finding.files[:3])}{', ...' * (len(finding.files) > 3)})" if finding.files else ""
            console.print(f"data  {finding.what}{files}", style="yellow")
            followed = weighted and finding.flags[:1] == ("--class-weights",)
            for line in finding.advice.splitlines() if not followed else ():
                console.print(f"      -> {line}", style="yellow")


def sizes_text(part: Part) -> str:
    """Formats the size of the images of a part, or the range of sizes, as width x height."""
    heights, widths = zip(*part.sizes)
    if len(set(part.sizes)) == 1:
        return f"{widths[0]}x{heights[0]}"
    return f"{min(widths)}x{min(heights)} to {max(widths)}x{max(heights)}"


def choose_crop(config: Config, sizes: tuple[Size, ...]) -> Size | None:
    """Chooses height and width of training crops in pixels, and prints them; None for whole images."""
    side, chosen = config.data.crop, "given"
    if side is None:
        if len(set(sizes)) == 1 and max(sizes[0]) <= LARGEST:
            return None
        chosen = "as their sizes differ" if len(set(sizes)) > 1 else f"as they are larger than {LARGEST}"
        least = config.model.least_side
        side = max(least, min(CROP, int(np.median([min(size) for size in sizes]))) // least * least)
    share = len(sizes) * config.data.crops * side**2 / sum(h * w for h, w in sizes)
    seen = f"; an epoch sees {share:.0%} of the pixels, more --crops see more" if share < 0.5 else ""
    console.print(f"data  random crops of {side}x{side} for training ({chosen}){seen}")
    return side, side


def check_sizes(dataset: Dataset) -> None:
    """Raises UserError when images are too small for the network, or for BatchNorm at the deepest level."""
    config, found, (h, w) = dataset.config, dataset.found, dataset.tile
    o, m, least = config.optimization, config.model, config.model.least_side
    what = f"--encoder {m.encoder}" if m.encoder else f"{len(m.widths)} --widths"
    sizes = {(h, w), *found.validation.sizes} if len(set(found.validation.sizes)) == 1 else {(h, w)}
    if small := [f"{width}x{height}" for height, width in sorted(sizes) if min(height, width) < least]:
        raise UserError(f"images of {', '.join(small)} are too small: {least} pixels a side are needed by {what}")
    samples, part = dataset.samples, o.batch_size // o.accumulate
    if m.deepest(h) * m.deepest(w) == 1 and 1 in (part, samples % part):  # the last micro-batch has the rest
        parts = f" in {o.accumulate} micro-batches" * (o.accumulate > 1)
        raise UserError(
            f"a micro-batch of 1 tile leaves BatchNorm one value per channel at the deepest level ({w}x{h} tiles, "
            f"{what}, {samples} tiles in batches of {o.batch_size}{parts}). "
            f"Use {'larger tiles' if m.encoder else 'fewer --widths'}, or another --batch-size or --accumulate."
        )
