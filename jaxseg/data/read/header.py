"""What a picture says of itself before its pixels are read, and the error that it cannot be read."""

from typing import NamedTuple


class Unreadable(ValueError):
    """Why a file's pixels cannot be had: the reason alone, without the file's name."""


class Header(NamedTuple):
    """What a picture says of itself."""

    width: int
    height: int
    bits: int = 8
    """Of a sample, where they are fewer than 8."""
    alpha: bool = False
    palette: bool = False
