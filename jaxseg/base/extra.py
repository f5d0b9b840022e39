"""Optional packages: says whether an extra is installed, or which one to install."""

from collections.abc import Mapping
from importlib.util import find_spec

from jaxseg.base.errors import UserError

PACKAGES = {
    "aim": ("aim",),
    "export": ("onnx", "onnxruntime"),
    "geo": ("rasterio", "pyogrio", "shapely", "pyproj", "skimage"),
    "hub": ("huggingface_hub",),
    "k8s": ("kubernetes",),
    "mlflow": ("mlflow",),
    "wandb": ("wandb",),
}
"""Modules that each extra brings."""


def missing(extra: str) -> list[str]:
    """Returns the modules of an extra that are not installed, without importing those that are."""
    return [name for name in PACKAGES[extra] if not is_there(name)]


def is_there(name: str) -> bool:
    """True if a module is installed; a folder of its name, such as the one that wandb logs to, is no module."""
    spec = find_spec(name)
    return spec is not None and getattr(spec, "origin", name) is not None


def require(extra: str, what: str) -> None:
    """Raises UserError naming the extra to install, unless all its packages are there.

    - `extra`: name in `PACKAGES`
    - `what`: beginning of the message: who needs it, such as "--vector"

    >>> require("geo", "--vector")  # doctest: +SKIP
    """
    require_all({extra: what})


def require_all(extras: Mapping[str, str]) -> None:
    """Raises UserError naming all of the extras to install. `extras` maps them to what `require` is told."""
    lines = [
        f"{what} needs {', '.join(gone)}: pip install 'jaxseg[{extra}]'"
        for extra, what in extras.items()
        if (gone := missing(extra))
    ]
    if lines:
        raise UserError("\n".join(lines))
