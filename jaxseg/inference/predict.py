"""Predicts images band by band and writes class maps: the body of `jaxseg.predict`."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

from jaxseg.base import extra, terminal
from jaxseg.base.config import IGNORE_INDEX
from jaxseg.base.errors import DataError, UserError
from jaxseg.base.options import Prediction, loading
from jaxseg.base.terminal import console
from jaxseg.data.read.mapped import open_tile
from jaxseg.data.read.samples import Reading
from jaxseg.devices.processes import devices_of
from jaxseg.doctor.classes import ClassMap
from jaxseg.inference import maps
from jaxseg.inference.ahead import predict_ahead
from jaxseg.inference.coordinates import has_coordinates
from jaxseg.inference.jobs import Job, plan, try_out
from jaxseg.inference.predictor import Bands, load
from jaxseg.inference.progress import ImageBar
from jaxseg.inference.shards import shard_of
from jaxseg.inference.tiles import Raster


def predict(options: Prediction) -> list[Path]:
    """Writes a class map for every image and returns their paths.

    Raises UserError listing all faults found before anything is written. Raises DataError after all other images are
    done if some could not be decoded, unless `options.on_bad_file` is "skip".
    """
    part, parts, source = check(options)
    jobs, bad = plan(
        options.input,
        options.out,
        overlay=options.overlay,
        probabilities=options.probabilities,
        vector=options.vector,
        instances=options.instances,
        cog=options.cog,
        shard=(part, parts),
        overwrite=options.overwrite,
        skip_existing=options.skip_existing,
        skip_bad=options.on_bad_file == "skip",
    )
    try_out(options.out)
    predictor = load(options.run, **loading(options), devices=devices_of(options.devices))
    reading = predictor.reading
    writer = Writer(reading.labels, options)
    options.out.mkdir(parents=True, exist_ok=True)
    terminal.greet()
    if parts > 1:
        console.print(f"part {part} of {parts} of the images, by {source}")
    console.print(f"{len(jobs)} image{'s' * (len(jobs) != 1)}, classes {', '.join(reading.labels.names)}")
    if extra.missing("geo") and (dropped := sum(has_coordinates(job.image) for job in jobs)):
        console.print(f"coordinates of {dropped} images are dropped: pip install 'jaxseg[geo]' to keep them")
    images, done = len(jobs) + len(bad), []
    with ImageBar(len(jobs)) as bar:
        for job, opened, bands in predict_ahead(jobs, partial(open_job, reading=reading), predictor):
            try:
                writer.write(job, opened.result(), bands, bar)
            except DataError as error:
                bad += error.problems
            else:
                done.append(job.class_map)
            bar.next()
    report(options.out, writer, len(done), bar)
    if bad:
        headline = f"{images - len(done)} of {images} images cannot be read; the other {len(done)} are done:"
        error = DataError(headline, bad, "Fix or remove them; --skip-existing leaves out the images that are done.")
        if options.on_bad_file == "error":
            raise error
        print(f"warning: {error}", file=sys.stderr)
    return done


def check(options: Prediction) -> tuple[int, int, str]:
    """Returns what `shard_of` returns. Raises UserError naming all invalid options."""
    polygons = options.vector is not None
    rules = [
        (options.input, "no INPUT given; expected an image, a folder or a quoted pattern after the run"),
        (options.simplify >= 0, f"--simplify is {options.simplify:g}; expected 0 or more pixels"),
        (options.min_area >= 0, f"--min-area is {options.min_area:g}; expected 0 or more square meters"),
        (polygons or not options.simplify, "--simplify is about polygons; add --vector gpkg"),
        (polygons or options.instances or not options.min_area, "--min-area is about polygons; add --vector gpkg"),
    ]
    wrong, shard = [message for holds, message in rules if not holds], (1, 1, "")
    try:
        shard = shard_of(options.shard)
    except UserError as error:
        wrong.append(str(error))
    if wrong:
        raise UserError("\n".join(wrong))
    return shard


def open_job(job: Job, reading: Reading) -> tuple[Raster, Raster, object]:
    """Opens an image [h w c], its data mask [h w], and the scene if it has coordinates, else None. Raises DataError."""
    if not job.placed:
        return *open_tile(job.image, reading), None
    from jaxseg.geo.raster import Scene, as_read

    scene = Scene(job.image)
    return *as_read(scene, reading), scene


class Writer:
    """Writes the files of predicted images and counts the pixels of each class in `counts` [256].

    - `labels`: class map of the run
    - `options`: which files to write, and how
    """

    def __init__(self, labels: ClassMap, options: Prediction):
        self.names, self._palette, self._labels, self._options = labels.names, labels.palette(), labels, options
        self._table = maps.value_table(labels) if options.values else None
        self.counts = np.zeros(256, np.int64)

    def write(self, job: Job, opened: tuple[Raster, Raster, object], predicted: Bands, bar: ImageBar) -> None:
        """Writes the files of a job, with one band of probabilities in memory at a time.

        - `job`: image and paths
        - `opened`: image [h w c], where it has data [h w], and the scene or None
        - `predicted`: the image's bands
        - `bar`: progress bar

        Raises UserError when a file cannot be written.
        """
        image, has_data, scene = opened
        counts = np.zeros(256, np.int64)
        bar.start(job.image, image.shape[0] * image.shape[1])

        def bands() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for rows, found, p in predicted:
                empty = ~has_data[rows, :]
                found[empty] = IGNORE_INDEX
                p[empty] = np.nan
                counts[:] += np.bincount(found.ravel(), minlength=256)
                yield found, p
                bar.advance(found.size)

        if scene is None:
            self._write_picture(job, image, bands())
        else:
            from jaxseg.inference.scenes import write_scene

            with scene:
                write_scene(job, scene, image, bands(), self._labels, self._table, self._options)
        self.counts += counts

    def _write_picture(self, job: Job, image: Raster, bands: Iterator[tuple[np.ndarray, np.ndarray]]) -> None:
        """Writes the files of an image without coordinates."""
        height, width = image.shape[:2]
        classes, top = np.empty((height, width), np.uint8), 0
        with ExitStack() as stack:
            append = None
            if job.probabilities:
                shape = (height, width, len(self.names))
                append = stack.enter_context(maps.probability_file(job.probabilities, shape))
            for found, p in bands:
                classes[top : top + len(found)] = found
                top += len(found)
                if append is not None:
                    append(p)
        if job.overlay:
            maps.write_overlay(job.overlay, image, classes, self._palette, self.names)
        if self._table is None:
            maps.write_indexed(job.class_map, classes, self._palette)
        else:
            maps.write_values(job.class_map, classes, self._table)


def report(out: Path, writer: Writer, done: int, bar: ImageBar) -> None:
    """Prints the number of class maps, the speed and the shares of the classes."""
    console.print(f"{done} class map{'s' * (done != 1)} in {out}")
    if not done:
        return
    console.print(bar.speed(done))
    counts = writer.counts[: len(writer.names)]
    shares = counts / max(1, counts.sum())
    console.print(
        "classes " + ", ".join(f"{i} {name} {s:.1%}" for i, (name, s) in enumerate(zip(writer.names, shares)))
    )
    if empty := int(writer.counts[IGNORE_INDEX]):
        console.print(f"{empty:,} pixels have no data: {IGNORE_INDEX} in the class maps")
    if (counts > 0).sum() == 1:
        name = writer.names[int(counts.argmax())]
        console.print(
            f"every pixel is {name}. Compare the images with the training images: bands, brightness, pixel size. "
            "If validation was like this too, train with --class-weights auto or --loss dice_ce.",
            style="yellow",
        )
