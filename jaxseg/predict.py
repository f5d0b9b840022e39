"""Predicts class maps of new images with a trained run: `python -m jaxseg.predict RUN INPUT -o OUT`

INPUT is one or more images, folders or quoted patterns such as 'scenes/**/*.tif'. Images may have any size. OUT gets
a class map of the same size, stem and subfolder for each. Its values are the classes (255: no data), and its palette
makes them visible. Network, bands, scaling and classes are the run's.

The map is an indexed PNG, or a GeoTIFF where the image has coordinates (extra `geo`): any raster that GDAL reads, or a
picture with a world file. It is read and written by windows. --vector adds polygons, --instances separates objects.

Exit status: 0 done, 2 something that the user can fix, 130 stopped by Ctrl-C. Files are written atomically.
"""

import sys

import tyro

from jaxseg.base.cli import status
from jaxseg.base.options import Prediction


def main(argv: list[str] | None = None) -> int:
    """Runs the command with `argv`, or else `sys.argv`, and returns its exit status."""
    options = tyro.cli(Prediction, args=argv, prog="python -m jaxseg.predict")

    def run() -> None:
        from jaxseg.base import compilation, memory
        from jaxseg.devices import processes
        from jaxseg.inference import predict  # slow imports: not for -h

        processes.start_alone(options.devices)
        compilation.try_jax()
        memory.keep_freed()
        compilation.keep()
        predict.predict(options)

    return status(run, options, "--skip-existing goes on")


if __name__ == "__main__":
    sys.exit(main())
