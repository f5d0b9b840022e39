"""Class maps of images, band by band, and what is said of them: what `predict` does."""

import itertools
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from jaxseg.base import terminal
from jaxseg.base.config import IGNORE_INDEX
from jaxseg.base.errors import DataError, UserError
from jaxseg.base.options import Prediction
from jaxseg.base.terminal import console
from jaxseg.data.read.mapped import open_tile
from jaxseg.data.read.samples import Reading
from jaxseg.doctor.classes import ClassMap
from jaxseg.inference import maps
from jaxseg.inference.jobs import Job, plan
from jaxseg.inference.predictor import Predictor, Raster, load
from jaxseg.inference.progress import ImageBar


def predict(options: Prediction) -> list[Path]:
    """Writes a class map for every image and returns their paths.

    Raises UserError listing all that cannot be, before any is written; but images that turn out to be unreadable after
    the others are done.
    """
    if not options.input:
        raise UserError("no INPUT given; expected an image, a folder or a quoted pattern after the run")
    jobs, bad = plan(
        options.input,
        options.out,
        overlay=options.overlay,
        probabilities=options.probabilities,
        overwrite=options.overwrite,
        skip_existing=options.skip_existing,
        skip_bad=options.on_bad_file == "skip",
    )
    predictor = load(
        options.run,
        checkpoint=options.checkpoint,
        tile=options.tile,
        overlap=options.overlap,
        batch_size=options.batch_size,
        tta=options.tta,
    )
    reading = predictor.reading
    writer = Writer(reading.labels, options.values)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"-o {options.out}: cannot be made ({error.strerror or error})") from None
    terminal.greet()
    console.print(f"{len(jobs)} image{'s' * (len(jobs) != 1)}, classes {', '.join(reading.labels.names)}")
    images, done = len(jobs) + len(bad), []
    with ImageBar(len(jobs)) as bar:
        for job, opened in read_ahead(jobs, reading):
            try:
                writer.write(job, opened.result(), predictor, bar)
            except DataError as error:
                bad += error.problems
            else:
                done.append(job.class_map)
            bar.next()
    report(options.out, writer, len(done), bar)
    if bad:
        headline = f"{images - len(done)} of {images} images cannot be read; the other {len(done)} are done:"
        error = DataError(headline, bad, "Mend them or take them out; --skip-existing leaves out those that are done.")
        if options.on_bad_file == "error":
            raise error
        print(f"warning: {error}", file=sys.stderr)
    return done


def read_ahead(jobs: Sequence[Job], reading: Reading) -> Iterator[tuple[Job, Future]]:
    """Each job and its image, read while the one before is predicted."""
    with ThreadPoolExecutor(1) as pool:
        opened = (pool.submit(open_tile, job.image, reading) for job in jobs)
        for job, (now, _) in zip(jobs, itertools.pairwise(itertools.chain(opened, [None]))):
            yield job, now


class Writer:
    """Predicts images, writes what a job asks for, and counts the classes."""

    def __init__(self, labels: ClassMap, values: bool):
        self.names, self._palette = labels.names, labels.palette()
        self._table = maps.value_table(labels) if values else None
        self.counts = np.zeros(256, np.int64)

    def write(self, job: Job, opened: tuple[Raster, Raster], predictor: Predictor, bar: ImageBar) -> None:
        """The files of a job. Of the image only a band of probabilities is in memory at a time."""
        image, has_data = opened
        height, width = image.shape[:2]
        classes, counts = np.empty((height, width), np.uint8), np.zeros(256, np.int64)
        bar.start(job.image, height * width)
        with ExitStack() as stack:
            append = None
            if job.probabilities:
                shape = (height, width, len(self.names))
                append = stack.enter_context(maps.probability_file(job.probabilities, shape))
            for top, p in predictor.bands(image):
                rows = slice(top, top + len(p))
                empty = ~has_data[rows, :]
                classes[rows] = p.argmax(-1)
                classes[rows][empty] = IGNORE_INDEX
                counts += np.bincount(classes[rows].ravel(), minlength=256)
                if append is not None:
                    p[empty] = np.nan
                    append(p)
                bar.advance(p.shape[0] * p.shape[1])
        if job.overlay:
            maps.write_overlay(job.overlay, image, classes, self._palette, self.names)
        if self._table is None:
            maps.write_indexed(job.class_map, classes, self._palette)
        else:
            maps.write_values(job.class_map, classes, self._table)
        self.counts += counts


def report(out: Path, writer: Writer, done: int, bar: ImageBar) -> None:
    """How many, how fast, and the shares of the classes."""
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
            f"every pixel is {name}. Are the images like those of training (bands, brightness, size of a pixel)? "
            "If validation was like this too, train with --class-weights auto or --loss dice_ce.",
            style="yellow",
        )
