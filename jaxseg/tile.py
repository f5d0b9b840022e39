"""Cuts scenes with coordinates and their labels into a data set: `python -m jaxseg.tile SCENE... --labels FILE -o OUT`.

Writes GeoTIFF tiles that keep their coordinates to OUT/images and OUT/masks, class names to classes.txt, footprints to
tiles.gpkg, and how they were made to tiles.json. Mask value 0 is background, 255 is ignored. Needs the extra `geo`.

Exit status: 0 done, 2 something that the user can fix; then nothing was written. 130 stopped by Ctrl-C.
"""

import sys

import tyro

from jaxseg.base import doors, extra
from jaxseg.base.options import Tiling


def main(argv: list[str] | None = None) -> int:
    """Runs the command with `argv`, or else `sys.argv`, and returns its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    options = tyro.cli(Tiling, args=argv, prog="python -m jaxseg.tile", config=(tyro.conf.DisallowNone,))

    def run() -> None:
        extra.require("geo", "python -m jaxseg.tile")
        from jaxseg.geo.tile import tile

        tile(options, argv)

    return doors.enter(run, debug=options.debug, interrupted="stopped; nothing was written")


if __name__ == "__main__":
    sys.exit(main())
