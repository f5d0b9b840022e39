"""Runs what a command does, and maps what ends it to an exit status and a message on stderr instead of a traceback."""

import contextlib
import io
import os
import sys
import traceback
from collections.abc import Callable

from jaxseg.base.errors import NonFiniteLoss, OutOfMemory, Stopped, UserError, for_command

DONE, STOPPED, MISTAKE, INTERRUPTED = 0, 1, 2, 130
"""Exit status: all is done; the numbers or the memory ended it; something that a person can fix; Ctrl-C."""


def enter(do: Callable[[], int | None], *, debug: bool = False, interrupted: str | None = None) -> int:
    """Runs `do` and returns the exit status of the command.

    - `do`: what the command does; returns an exit status, or None for 0
    - `debug`: whether to show the traceback of an error
    - `interrupted`: what to say after Ctrl-C

    An error that `explain` knows becomes its message and status; others are raised.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names that its encoding lacks
    try:
        return do() or DONE
    except Stopped as stopped:
        return stopped.exit_code
    except KeyboardInterrupt:
        if interrupted is not None:
            _say(interrupted)
        return INTERRUPTED
    except Exception as error:
        if (known := explain(error)) is None:
            raise
        message, status = known
        if debug:
            _say("".join(traceback.format_exception(error)))
        _say(message)
        return status
    finally:
        _let_go()


def explain(error: Exception) -> tuple[str, int] | None:
    """Returns message and exit status for an error that a person can do something about; None for others."""
    if isinstance(error, UserError):
        return f"error: {for_command(error)}", MISTAKE
    if isinstance(error, NonFiniteLoss | OutOfMemory):
        return f"stopped: {error}", STOPPED
    if isinstance(error, OSError):
        return f"error: {reason(error)}", MISTAKE
    if isinstance(error, ImportError) and "cv2" in (error.name, str(error)):
        how = "pip uninstall -y opencv-python && pip install --force-reinstall opencv-python-headless"
        why = "On a server, install the OpenCV that needs no display:"
        return f"error: OpenCV cannot be imported ({error}). {why}\n  {how}", MISTAKE
    return None


def reason(error: OSError) -> str:
    """Formats an OSError as its file, if known, and what is wrong with it."""
    if error.filename is None or error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}"


def _say(message: str) -> None:
    with contextlib.suppress(OSError):  # where stderr is closed or full, the exit status must do
        print(message, file=sys.stderr, flush=True)


def _let_go() -> None:
    """Drops output that cannot be written. Python would try again at its end, and exit with 120."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())
