"""Turns polygons of COCO, labelme or YOLO into masks: `python -m jaxseg.convert_labels FOLDER`

Writes an 8-bit PNG for each annotated image, whose values are 0 for background and 1, 2, ... for the classes, and their
names in classes.txt. A pixel belongs to an object if its center does. Files that are there are never replaced.

Exit status: 0 done, 2 a mistake that the user can fix; then nothing was written. 130 stopped by Ctrl-C.
"""

import sys

import tyro

from jaxseg.base import doors
from jaxseg.base.options import Conversion
from jaxseg.data.convert.labels import convert


def main(argv: list[str] | None = None) -> int:
    """Runs the command with `argv`, or else `sys.argv`, and returns its exit status."""
    options = tyro.cli(Conversion, args=argv, prog="python -m jaxseg.convert_labels")

    def run() -> None:
        convert(options)

    return doors.enter(run, debug=options.debug, interrupted="stopped; masks that are there are complete")


if __name__ == "__main__":
    sys.exit(main())
