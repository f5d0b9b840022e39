"""Optional packages: says whether an extra is installed, or which one to install."""

from importlib.util import find_spec

from jaxseg.base.errors import UserError

PACKAGES = {
    "export": ("onnx", "onnxruntime"),
    "geo": ("rasterio", "pyogrio", "shapely", "pyproj", "skimage"),
    "hub": ("huggingface_hub",),
}
"""Modules that each extra brings."""


def missing(extra: str) -> list[str]:
    """Returns the modules of an extra that are not installed, without importing those that are."""
    return [name for name in PACKAGES[extra] if find_spec(name) is None]


def require(extra: str, what: str) -> None:
    """Raises UserError naming the extra to install, unless all its packages are there.

    - `extra`: name in `PACKAGES`
    - `what`: beginning of the message: who needs it, such as "--vector"

    >>> require("geo", "--vector")  # doctest: +SKIP
    """
    if gone := missing(extra):
        raise UserError(f"{what} needs {', '.join(gone)}: pip install 'jaxseg[{extra}]'")
