"""Class maps of new images by a trained run: `python -m jaxseg.predict RUN INPUT -o OUT`

INPUT is an image, a folder or a quoted pattern such as 'scenes/**/*.tif', or several of them; images may have any size.
OUT gets, for each, an indexed PNG of the same size, stem and sub-folder, whose values are the classes (255: no data)
and whose palette makes them visible. Network, bands, scaling and classes are the run's: nothing needs to be said about
them. Exit status: 0 done, 2 a mistake that a person can mend, 130 stopped by Ctrl-C; files are whole or not there.
"""

import dataclasses
import itertools
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Annotated, Literal

import jax
import numpy as np
import tyro
from rich.progress import BarColumn, Progress, TextColumn

from jaxseg import maps, terminal, troubles
from jaxseg.checkpoint import load_model
from jaxseg.config import IGNORE_INDEX, UserError
from jaxseg.data.images import DataError
from jaxseg.data.labels import ClassMap
from jaxseg.data.mapped import open_tile
from jaxseg.data.tiles import ARTICLE_READING, Reading
from jaxseg.inference import Predictor, Raster
from jaxseg.jobs import Job, plan
from jaxseg.terminal import clock, console


@dataclasses.dataclass(frozen=True)
class Options:
    """Class maps of new images by a trained run."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    input: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="INPUT ...")]
    """Images, folders (with their sub-folders) or quoted patterns such as 'scenes/**/*.tif'; at least one."""
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    """Folder for the class maps."""
    checkpoint: Literal["best", "last"] = "best"
    """Which checkpoint."""
    values: bool = False
    """Write the values or colors that the masks of training had, instead of class numbers with a palette."""
    overlay: bool = False
    """Also draw the classes over the image, in OUT/overlays; thinned out above 4096 pixels a side."""
    probabilities: bool = False
    """Also write OUT/probabilities/NAME.npy: float16 [h w classes], NaN where there is no data."""
    tile: int = 512
    """Side of the tiles in which larger images are predicted."""
    overlap: float = 0.5
    """Part of a tile that the next one covers again."""
    tta: bool = False
    """Mean over eight flips and turns: better, and eight times the work."""
    batch_size: Annotated[int, tyro.conf.arg(aliases=("-b",))] = 4
    """Tiles at a time."""
    overwrite: bool = False
    """Replace files that are there."""
    skip_existing: bool = False
    """Leave out images whose files are all there: goes on where a run was stopped."""
    on_bad_file: Literal["error", "skip"] = "error"
    """Whether an image that cannot be read makes the exit status 2 or is only named; the others are done."""
    debug: bool = False
    """Show the traceback of an error."""


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = tyro.cli(Options, args=argv, prog="python -m jaxseg.predict")
    return run(predict, options, "--skip-existing goes on")


def run(do: Callable, options, stopped: str) -> int:
    """Does what a command of predictions is told and returns its exit status; `stopped`: what to know after Ctrl-C."""
    try:
        do(options)
    except UserError as error:
        if options.debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if options.debug or not troubles.is_about_memory(error):
            raise
        what = f"out of memory with {options.batch_size} tiles of {options.tile}x{options.tile} at a time"
        print(f"error: {what}; try --batch-size 1, then a smaller --tile", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"stopped; {stopped}", file=sys.stderr)
        return 130
    return 0


def predict(options: Options) -> list[Path]:
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
    net, description = load_model(options.run, options.checkpoint)
    reading = Reading.from_dict(description["reading"]) if "reading" in description else ARTICLE_READING  # of old runs
    writer = Writer(reading.labels, options.values)
    predictor = Predictor(
        net,
        reading,
        tile=options.tile,
        overlap=options.overlap,
        batch_size=options.batch_size,
        tta=options.tta,
        sides=description.get("tile") or (),
    )
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"-o {options.out}: cannot be made ({error.strerror or error})") from None
    terminal.greet()
    console.print(f"{len(jobs)} image{'s' * (len(jobs) != 1)}, classes {', '.join(reading.labels.names)}")
    images, done = len(jobs) + len(bad), []
    with Bar(len(jobs)) as bar:
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

    def write(self, job: Job, opened: tuple[Raster, Raster], predictor: Predictor, bar: "Bar") -> None:
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


def report(out: Path, writer: Writer, done: int, bar: "Bar") -> None:
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


class Bar(AbstractContextManager):
    """Progress over images and the pixels of each: a bar on a terminal, elsewhere a line every 10 seconds."""

    def __init__(self, total: int):
        columns = (TextColumn("{task.fields[image]}"), BarColumn(24), TextColumn("{task.fields[numbers]}"))
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task("", total=total, image="", numbers="compiling")
        self._total, self._images, self._pixels, self._part = total, 0, 0, 0.0
        self._began = self._told = time.monotonic()

    def __enter__(self):
        self._progress.start()
        return self

    def __exit__(self, *_):
        self._progress.stop()

    def start(self, image: Path, pixels: int) -> None:
        """The next image."""
        self._size, self._part = pixels, 0.0
        self._progress.update(self._task, image=image.name)

    def advance(self, pixels: int) -> None:
        """Some of its pixels are done."""
        self._pixels += pixels
        self._part += pixels / self._size
        self._show()

    def next(self) -> None:
        """The image is done, or not to be had."""
        self._images, self._part = self._images + 1, 0.0
        self._show()

    def _show(self) -> None:
        now, done = time.monotonic(), self._images + self._part
        left = (self._total - done) * (now - self._began) / done
        numbers = f"{done:.1f}/{self._total} images, {self._rate(now)}, {clock(left)} left"
        self._progress.update(self._task, completed=done, numbers=numbers)
        if self._progress.disable and now - self._told > 10:
            self._told = now
            console.print(numbers)

    def _rate(self, now: float) -> str:
        return f"{self._pixels / 1e6 / (now - self._began):.3g} megapixels/s"

    def speed(self, done: int) -> str:
        """Of so many images, and of their pixels."""
        now = time.monotonic()
        rate = f"{done / (now - self._began):.3g} images/s, {self._rate(now)}"
        return f"{clock(now - self._began)}, {rate} with compilation, reading and writing"


if __name__ == "__main__":
    sys.exit(main())
