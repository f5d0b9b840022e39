"""The data doctor: `python -m jaxseg.check FOLDER` says what a data set is, what is wrong with it, and what mends it.

Takes all flags about data that training takes, and ends with the command to train. What it reads is remembered, so
that a second look, and the trainer's, take no time. Exit status: 0 ready to train, 2 errors, 130 stopped by Ctrl-C.
"""

import io
import sys

from jaxseg.base.errors import UserError
from jaxseg.doctor.report import _as_finding, check, parse, tell


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is no reason to stop
    try:
        return check(parse(argv))
    except KeyboardInterrupt:
        return 130
    except (UserError, OSError) as error:
        if "--debug" in argv:
            raise
        tell(_as_finding(error))
        return 2


if __name__ == "__main__":
    sys.exit(main())
