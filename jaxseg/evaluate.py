"""Scores a trained run on images with masks: `python -m jaxseg.evaluate RUN [FOLDER | SCENE --labels FILE]`

Without a FOLDER these are the run's own validation images. Every image is predicted at its own size. Classes, channels
and scaling are the run's. A SCENE with coordinates (extra `geo`) is scored against polygons or a raster in any CRS,
its objects too. OUT gets metrics.json, per_image.csv, confusion.png and worst.png.

Exit status: 0 done, 2 something that the user can fix, 130 stopped by Ctrl-C. Nothing is written before all images are
scored.
"""

import sys

import tyro

from jaxseg.base.cli import status
from jaxseg.base.config import Config
from jaxseg.base.options import Evaluation
from jaxseg.base.rules import check


def main(argv: list[str] | None = None) -> int:
    """Runs the command with `argv`, or else `sys.argv`, and returns its exit status."""
    options = tyro.cli(Evaluation, args=argv, prog="python -m jaxseg.evaluate", compact_help=True)

    def run() -> None:
        check(Config(machine=options.machine))
        from jaxseg.base import compilation, memory
        from jaxseg.devices import processes
        from jaxseg.inference import evaluate  # slow imports: not for -h

        processes.start(options.machine)
        compilation.try_jax()
        memory.keep_freed()
        compilation.keep()
        evaluate.evaluate(options)

    code = status(run, options, "nothing was written")
    if "jaxseg.devices.processes" in sys.modules:
        sys.modules["jaxseg.devices.processes"].leave(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
