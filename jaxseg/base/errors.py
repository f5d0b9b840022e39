"""Errors that commands report to a person, and the exit status of each."""

from collections.abc import Sequence
from pathlib import Path


class UserError(ValueError):
    """A mistake that a person can mend. Commands print its message and exit with 2, without a traceback."""


class DataError(UserError):
    """Something is wrong with the files; the message lists everything that is."""

    def __init__(self, headline: str, problems: Sequence[str], advice: str = "", most: int = 20):
        shown = [f"  {problem}" for problem in problems[:most]]
        if len(problems) > most:
            shown.append(f"  ... and {len(problems) - most} more")
        super().__init__("\n".join([headline, *shown, *([advice] if advice else [])]))
        self.headline, self.problems, self.advice = headline, tuple(problems), advice


class ArgumentError(UserError):
    """Arguments that a function cannot take: (name, what is wrong) each. Commands print `flags`, which names flags."""

    def __init__(self, wrong: Sequence[tuple[str, str]]):
        super().__init__("\n".join(f"`{name}` {what}" for name, what in wrong))
        self.flags = "\n".join(f"--{name.replace('_', '-')} {what}" for name, what in wrong)


def problem(path: Path, what: str, advice: str = "") -> DataError:
    """The error that one file is wrong."""
    return DataError("Cannot read the tiles.", [f"{path}: {what}"], advice)


SIGNS = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory", "Failed to determine best cudnn convolution algorithm")
"""What JAX says when a device's memory does not suffice; the last hides it."""


class NonFiniteLoss(RuntimeError):
    """Training left the numbers; the message says where and what to try."""


class OutOfMemory(RuntimeError):
    """The device's memory did not suffice; the message says for what, and what to try."""


class Stopped(Exception):
    """A signal asked the run to end; everything is saved."""

    def __init__(self, signum: int):
        self.exit_code = 128 + signum


def is_about_memory(error: BaseException) -> bool:
    """Whether an error says that memory does not suffice, in whatever words."""
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in SIGNS)
