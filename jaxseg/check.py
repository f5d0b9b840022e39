"""Examines a data set: `python -m jaxseg.check FOLDER` prints what it is, its faults, and the flags that fix them.

Takes training's flags about data, and ends with the command to train. Results are cached, so a second check and the
training start at once. Exit status: 0 ready to train, 2 errors, 130 stopped by Ctrl-C.
"""

import sys

from jaxseg.base import doors
from jaxseg.base.errors import UserError


def main(argv: list[str] | None = None) -> int:
    """Runs the command with `argv`, or else `sys.argv`, and returns its exit status."""
    argv = sys.argv[1:] if argv is None else argv

    def examine() -> int:
        from jaxseg.doctor import report  # inside, as OpenCV may be missing

        try:
            return report.check(report.parse(argv))
        except UserError as error:
            if "--debug" in argv:
                raise
            report.tell(report.as_finding(error))
            return doors.MISTAKE

    return doors.enter(examine, debug="--debug" in argv)


if __name__ == "__main__":
    sys.exit(main())
