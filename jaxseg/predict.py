"""Class maps of new images by a trained run: `python -m jaxseg.predict RUN INPUT -o OUT`

INPUT is an image, a folder or a quoted pattern such as 'scenes/**/*.tif', or several of them; images may have any size.
OUT gets, for each, an indexed PNG of the same size, stem and sub-folder, whose values are the classes (255: no data)
and whose palette makes them visible. Network, bands, scaling and classes are the run's: nothing needs to be said about
them. Exit status: 0 done, 2 a mistake that a person can mend, 130 stopped by Ctrl-C; files are whole or not there.
"""

import sys

import tyro

from jaxseg.base.cli import status
from jaxseg.base.options import Prediction


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = tyro.cli(Prediction, args=argv, prog="python -m jaxseg.predict")
    from jaxseg.base import compilation
    from jaxseg.inference import predict  # with JAX and all else: not for -h

    compilation.keep()
    return status(predict.predict, options, "--skip-existing goes on")


if __name__ == "__main__":
    sys.exit(main())
