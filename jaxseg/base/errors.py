"""Errors that commands report to a person, and the exit status of each."""

from collections.abc import Sequence
from pathlib import Path

SIGNS = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory", "Failed to determine best cudnn convolution algorithm")
"""Messages with which JAX reports a lack of device memory; the last one hides the cause."""


class UserError(ValueError):
    """A mistake that the user can fix. Commands print its message and exit with 2, without a traceback."""


class DataError(UserError):
    """Faults in the files, all in one message.

    - `headline`: first line of the message
    - `problems`: one fault each, with its file; the message shows the first `most`
    - `advice`: last line of the message, or none
    """

    def __init__(self, headline: str, problems: Sequence[str], advice: str = "", most: int = 20):
        shown = [f"  {problem}" for problem in problems[:most]]
        if len(problems) > most:
            shown.append(f"  ... and {len(problems) - most} more")
        super().__init__("\n".join([headline, *shown, *([advice] if advice else [])]))
        self.headline, self.problems, self.advice = headline, tuple(problems), advice


class ArgumentError(UserError):
    """Invalid arguments of a function: pairs of name and fault. Commands print `flags`, which names flags instead."""

    def __init__(self, wrong: Sequence[tuple[str, str]]):
        super().__init__("\n".join(f"`{name}` {what}" for name, what in wrong))
        self.flags = "\n".join(f"--{name.replace('_', '-')} {what}" for name, what in wrong)


class DamagedCheckpoint(UserError):
    """A checkpoint that is damaged, incomplete or unreadable."""


class NonFiniteLoss(RuntimeError):
    """A loss or gradient became NaN or infinite. The message says where, and what to try."""


class OutOfMemory(RuntimeError):
    """Not enough device memory. The message says for what, and what to try."""


class Stopped(Exception):
    """A signal ended the run after everything was saved. `exit_code` is 128 plus the signal's number."""

    def __init__(self, signum: int):
        self.exit_code = 128 + signum


class EndedElsewhere(Stopped):
    """An error of the first of several processes, which says why, ended the run. `exit_code` is the first one's."""

    def __init__(self, exit_code: int):
        self.exit_code = exit_code


def problem(path: Path, what: str, advice: str = "") -> DataError:
    """Returns the error for a fault `what` of a single file."""
    return DataError("Cannot read the tiles.", [f"{path}: {what}"], advice)


def is_about_memory(error: BaseException) -> bool:
    """True if an error reports a lack of memory, on the host or the device."""
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in SIGNS)


def for_command(error: Exception) -> str:
    """Returns the message of an error as a command prints it: with flags in place of arguments."""
    return error.flags if isinstance(error, ArgumentError) else str(error)
