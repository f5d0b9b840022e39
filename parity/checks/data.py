"""The data question: are the batches the reference's, byte for byte?

Both sides read the same folder. jaxseg uses its pipeline (decode, order, batch, transfer, normalize on the device), the
reference its DataLoader: once in the order of the files, once in jaxseg's shuffled order. A second, made-up folder has
rare cases: names with dots, masks with antialiased borders or in color, a JPEG. Every color (in the quick form each
channel at every fifth value, 140,608 colors) is written to a file and read as a mask.

The gate is equality: the only floating-point operation is a division by 255, which has one right answer.

Not seen: what both sides share, which is OpenCV's decoder and, except for the colors, its conversion to gray.
"""

import hashlib
import itertools
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import jax
import numpy as np

from jaxseg.base.config import Data
from jaxseg.base.errors import DataError, UserError
from jaxseg.data.feed import pipeline
from jaxseg.data.find import folders
from jaxseg.data.read import samples
from jaxseg.doctor import survey
from jaxseg.learn import step
from parity.judge import compare
from parity.judge.answer import Answer, Settings
from parity.judge.compare import Row
from parity.reference.dataset import OTHER_GRAYS, TileDataset, gray_of, loader, to_tensor
from parity.twins.awkward import NAMES, make_awkward

QUESTION = "data"
BATCH_SIZE = 5  # the article's
HASHED = 3  # batches with a sha256
SPLITS = ("train", "val")

Arrays = dict[str, np.ndarray]
Sides = tuple[Arrays, Arrays]
Pairs = tuple[samples.Pair, ...]


class Batch(NamedTuple):
    """A batch on both sides, jaxseg's first, without padding: {"image": [b h w c], "mask": uint8 [b h w]}."""

    name: str
    bytes: Sides
    """Images in uint8."""
    normalized: Sides
    """Images in float32, as they enter the network."""


def run(settings: Settings) -> Answer:
    """Answers the data question on the folder `settings.data` with train/ Ltrain/ val/ Lval/.

    Evidence:

    - "hashes": {"uint8" and "float32": [[jaxseg's sha256, the reference's] of each of the first batches]}
    - "lost": [{"file", "lost": mask pixels, "share": of all pixels of the file}], the worst 20
    - "colors": {formula: number of colors that differ from OpenCV's, "all": number of colors}

    Raises UserError if the folder has another layout.
    """
    root, seed = settings.data, settings.seed
    if not all((root / folder).is_dir() for folder in ("train", "Ltrain", "val", "Lval")):
        raise UserError(f"--data {root}: the data question needs the article's layout: train/ Ltrain/ val/ Lval/")
    training, validation = _pairs(root, seed)
    with jax.enable_x64(False), tempfile.TemporaryDirectory() as folder:
        hash_rows, hashes = hashed(pipeline.Pipeline(training, batch_size=BATCH_SIZE, shuffle=True, seed=seed), root)
        lost_row, lost = lost_pixels(root)
        color_rows, colors = every_color(Path(folder) / "colors", 5 if settings.quick else 1)
        rows = [
            bytes_row(),
            *hash_rows,
            batches_row("validation tiles, in order", _plain(validation), root, "val"),
            *shuffled_rows(training, root, seed),
            lost_row,
            *color_rows,
            *awkward_rows(Path(folder) / "awkward", seed),
        ]
    return Answer(QUESTION, tuple(rows), {"hashes": hashes, "lost": lost, "colors": colors})


def _pairs(root: Path, seed: int = 0) -> tuple[Pairs, Pairs]:
    """Training pairs and validation pairs, as jaxseg finds them."""
    split = folders.find_split(Data(data=root), seed)
    return split.training, split.validation


def _plain(pairs: Pairs) -> pipeline.Pipeline:
    return pipeline.Pipeline(pairs, batch_size=BATCH_SIZE)


# Batches --------------------------------------------------------------------------------------------------------------


def bytes_row() -> Row:
    """Row for all 256 values of a byte, normalized in a compiled function, against a division by 255."""
    values = np.arange(256, dtype=np.uint8)
    found = jax.jit(step.normalize)(values)
    expected = to_tensor(values.reshape(16, 16, 1)).numpy().ravel()
    differing = int((np.asarray(jax.jit(lambda x: x.astype(np.float32) / 255)(values)) != expected).sum())
    note = f"a plain x / 255 compiled by XLA differs for {differing} of 256"
    return compare.equal_bytes(QUESTION, "all 256 bytes / 255", found, expected, note)


def batches(ours: pipeline.Pipeline, root: Path, split: str, epoch: int) -> Iterator[Batch]:
    """Batches of jaxseg, which have been on the device, with the reference's in the same order."""
    dataset, order = TileDataset(root / split, root / f"L{split}"), ours.order(epoch).tolist()
    compiled = jax.jit(step.normalize)

    def found() -> Iterator[Sides]:
        for batch in pipeline.to_device(ours.epoch(epoch)):
            image, mask, valid = (np.asarray(batch[key]) for key in ("image", "mask", "valid"))
            normalized = np.asarray(compiled(batch["image"]))
            yield {"image": image[valid], "mask": mask[valid]}, {"image": normalized[valid], "mask": mask[valid]}

    def expected() -> Iterator[Sides]:
        for i, (images, masks) in enumerate(loader(dataset, BATCH_SIZE, order=order)):
            read = [dataset.read(index) for index in order[i * BATCH_SIZE : (i + 1) * BATCH_SIZE]]
            as_bytes = {"image": np.stack([image for image, _ in read]), "mask": np.stack([mask for _, mask in read])}
            yield as_bytes, {"image": images.permute(0, 2, 3, 1).numpy(), "mask": masks.numpy().astype(np.uint8)}

    nothing: Sides = ({}, {})  # equal to no batch
    for i, sides in enumerate(itertools.zip_longest(found(), expected(), fillvalue=nothing)):
        names = ", ".join(dataset.names[index] for index in order[i * BATCH_SIZE : (i + 1) * BATCH_SIZE])
        yield Batch(f"batch {i} ({names})", *zip(*sides))


def batches_row(name: str, ours: pipeline.Pipeline, root: Path, split: str, epoch: int = 0) -> Row:
    """Row for every batch of an epoch, as bytes and normalized."""
    rows = []
    for batch in batches(ours, root, split, epoch):
        rows.append(compare.equal_bytes(QUESTION, f"{batch.name}, uint8", *batch.bytes))
        rows.append(compare.equal_bytes(QUESTION, f"{batch.name}, float32", *batch.normalized))
    expected = len(loader(TileDataset(root / split, root / f"L{split}"), BATCH_SIZE))
    rows.append(compare.equal_bytes(QUESTION, "number of batches", np.array(len(ours)), np.array(expected)))
    last = len(ours.pairs) % BATCH_SIZE or BATCH_SIZE
    note = f"{len(ours.pairs)} tiles of {root.name}/{split} in {len(ours)} batches, the last of {last}"
    return compare.worst_of(QUESTION, name, rows, note)


def hashed(ours: pipeline.Pipeline, root: Path) -> tuple[list[Row], dict]:
    """Rows for the sha256 of the first batches, and the hashes for the evidence."""
    first = list(itertools.islice(batches(ours, root, "train", epoch=0), HASHED))
    rows, hashes = [], {}
    for kind, pairs in (
        ("uint8", [batch.bytes for batch in first]),
        ("float32", [batch.normalized for batch in first]),
    ):
        found, expected = ([sha256(pair[side]) for pair in pairs] for side in (0, 1))
        hashes[kind] = [list(pair) for pair in zip(found, expected)]
        digests = (np.frombuffer(bytes.fromhex("".join(side)), np.uint8) for side in (found, expected))
        note = ", ".join(f"{hash[:12]}..." for hash in expected)
        rows.append(compare.equal_bytes(QUESTION, f"sha256 of the first {len(first)} batches, {kind}", *digests, note))
    return rows, hashes


def sha256(batch: Arrays) -> str:
    """sha256 of the bytes of the images followed by those of the masks."""
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in batch.values())).hexdigest()


def shuffled_rows(training: Pairs, root: Path, seed: int) -> list[Row]:
    """Rows for a shuffled epoch replayed by the reference, and for the properties of a shuffled order."""
    ours = pipeline.Pipeline(training, batch_size=BATCH_SIZE, shuffle=True, seed=seed, workers=2)
    orders = {f"epoch {epoch}": ours.order(epoch) for epoch in range(41)}
    first, *others = orders.values()
    same = float(np.mean([(order == first).all() for order in others]))
    sides = ({name: np.sort(order) for name, order in orders.items()}, dict.fromkeys(orders, np.arange(len(training))))
    note = "share of 40 epochs in the order of the first"
    return [
        batches_row("training tiles, shuffled", ours, root, "train", epoch=1),
        compare.equal_bytes(QUESTION, "each epoch has each tile once", *sides),
        compare.at_most(QUESTION, "epochs differ in order", same, 0.9 if len(training) > 1 else 1, note),
    ]


# Masks ----------------------------------------------------------------------------------------------------------------


def lost_pixels(root: Path) -> tuple[Row, list[dict]]:
    """Row for the mask pixels that `// 255` loses, counted here and by jaxseg's survey; and the files."""
    pairs = _pairs(root)
    found = {split: np.array(sum(map(_surveyed, of))) for split, of in zip(SPLITS, pairs)}
    files, expected, pixels = [], {}, 0
    for split in SPLITS:
        dataset, total = TileDataset(root / split, root / f"L{split}"), 0
        for index, name in enumerate(dataset.names):
            gray = dataset.read_gray(index)
            lost = _lost(gray)
            total, pixels = total + lost, pixels + gray.size
            files += [{"file": f"{split}/{name}", "lost": lost, "share": lost / gray.size}] if lost else []
        expected[split] = np.array(total)
    files.sort(key=lambda file: -file["share"])
    total, count = int(sum(expected.values())), sum(len(of) for of in pairs)
    note = f"{total} of {pixels} mask pixels ({total / pixels:.2%}) in {len(files)} of {count} files"
    note += f", most in {files[0]['file']}: {files[0]['share']:.1%}" if files else ""
    return compare.equal_bytes(QUESTION, f"pixels lost to // 255, {root.name}", found, expected, note), files[:20]


def _lost(gray: np.ndarray) -> int:
    return int(((gray > 0) & (gray < 255)).sum())


def _surveyed(pair: samples.Pair) -> int:
    """Lost pixels of a mask, from the values that jaxseg's survey counts; its cache would hide mistakes."""
    facts = survey.look(pair, Data(), colors=True)
    if facts.mask is None:
        raise DataError("Cannot read the tiles.", [f"{pair.mask}: {facts.mask_error}"])
    values = np.array(facts.mask.values)
    grays = gray_of(np.stack([values, values >> 8, values >> 16], -1) & 255) if facts.mask.color else values
    return int(np.array(facts.mask.pixels)[(grays > 0) & (grays < 255)].sum())


def every_color(folder: Path, pace: int) -> tuple[list[Row], dict[str, int]]:
    """Rows for every color whose channels are multiples of `pace`, read from files as masks.

    Also returns for how many colors each other formula for gray differs from OpenCV's.
    """
    folder.mkdir()
    values = np.arange(0, 256, pace, dtype=np.uint8)
    rows: dict[str, list[Row]] = {}
    differing = {"all": 0} | dict.fromkeys(OTHER_GRAYS, 0)
    for blue in np.array_split(values, math.ceil(len(values) / 16)):
        colors = np.stack(np.meshgrid(blue, values, values, indexing="ij"), -1).reshape(-1, len(values), 3)
        file, expected = folder / f"{blue[0]}.bmp", gray_of(colors)
        file.write_bytes(cv2.imencode(".bmp", colors)[1].tobytes())
        found = {
            "gray": (samples.read_gray(file), expected),
            "mask": (samples.read_mask(file), (expected == 255).astype(np.uint8)),
            "OpenCV's own gray": (cv2.cvtColor(colors, cv2.COLOR_BGR2GRAY), expected),
        }
        for name, sides in found.items():
            rows.setdefault(name, []).append(compare.equal_bytes(QUESTION, f"blue from {blue[0]}", *sides))
        differing["all"] += expected.size
        for name, formula in OTHER_GRAYS.items():
            differing[name] += int((formula(colors) != expected).sum())
    others = ", ".join(f"{name} {count}" for name, count in differing.items() if name != "all")
    note = f"against (3735 B + 19235 G + 9798 R + 2^14) >> 15; colors where others differ: {others}"
    named = [compare.worst_of(QUESTION, f"{name} of {differing['all']} colors", of, note) for name, of in rows.items()]
    return [*named, gray_stays_gray(folder / "gray.bmp")], differing


def gray_stays_gray(file: Path) -> Row:
    """Row that passes if the gray of (v, v, v) is v."""
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    file.write_bytes(cv2.imencode(".bmp", cv2.merge([values] * 3))[1].tobytes())
    return compare.equal_bytes(QUESTION, "gray (v, v, v) is v", samples.read_gray(file), values)


# Files that are easy to read wrong ------------------------------------------------------------------------------------


def awkward_rows(root: Path, seed: int) -> list[Row]:
    """Rows for names with dots, antialiased masks, masks in color, and for missing and broken masks."""
    make_awkward(root, seed)
    _, validation = _pairs(root, seed)
    rows = [batches_row("awkward names and masks", _plain(validation), root, "val"), lost_pixels(root)[0]]
    image, mask = root / "val" / NAMES[0], root / "Lval" / "a_mask.png"
    mask.write_bytes(b"no picture")
    silent = {
        "jaxseg, no picture": not names(mask, DataError, lambda: list(_plain(validation).epoch())),
        "the reference, no picture": not names(mask, FileNotFoundError, lambda: read_all(root, "val")),
    }
    mask.unlink()
    silent |= {
        "jaxseg, missing since": not names(mask, DataError, lambda: list(_plain(validation).epoch())),
        "jaxseg, missing": not names(image, DataError, lambda: _pairs(root, seed)),
        "the reference, missing": not names(mask, FileNotFoundError, lambda: read_all(root, "val")),
    }
    wrong = [name for name, is_silent in silent.items() if is_silent]
    note = f"{len(silent)} cases, each an error that names the mask, or the image that lacks one"
    rows.append(compare.at_most(QUESTION, "missing and broken masks are named", len(wrong), 0, note, ", ".join(wrong)))
    return rows


def read_all(root: Path, split: str) -> None:
    """Reads every tile of a split by the reference."""
    dataset = TileDataset(root / split, root / f"L{split}")
    for index in range(len(dataset)):
        dataset.read(index)


def names(file: Path, error: type[Exception], do: Callable[[], object]) -> bool:
    """True if `do` raises this error with the file's name in its message."""
    try:
        do()
    except error as raised:
        return file.name in str(raised)
    return False
