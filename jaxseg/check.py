"""Examines a data set: `python -m jaxseg.check FOLDER` prints what it is, its faults, and the flags that fix them.

Takes training's flags about data, and ends with the command to train. Results are cached, so a second check and the
training start at once. Exit status: 0 ready to train, 2 errors, 130 stopped by Ctrl-C.
"""

import io
import sys

from jaxseg.base.errors import UserError
from jaxseg.doctor.report import as_finding, check, parse, tell


def main(argv: list[str] | None = None) -> int:
    """Runs the command with `argv`, or else `sys.argv`, and returns its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names that the terminal cannot show
    try:
        return check(parse(argv))
    except KeyboardInterrupt:
        return 130
    except (UserError, OSError) as error:
        if "--debug" in argv:
            raise
        tell(as_finding(error))
        return 2


if __name__ == "__main__":
    sys.exit(main())
