"""Reads weights from a file or folder: PyTorch's .pth, or .safetensors."""

from pathlib import Path

import numpy as np

from jaxseg.base.errors import UserError
from jaxseg.nn.pth import bare, check_finite, read_pth

NAMES = ("model.safetensors", "pytorch_model.bin")
"""Files of weights in a folder of `save_pretrained`, and in a repository of the Hugging Face Hub."""


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """Reads weights as NumPy arrays by name, floats as float32.

    `path`: a .safetensors file, a file that `jaxseg.nn.pth.read_pth` reads, or a folder of `save_pretrained`.

    Raises UserError, a ValueError, if there are none, or none that can be read, or if they are NaN or infinite.

    >>> weights = read_weights(Path("resnet34.safetensors"))  # doctest: +SKIP
    """
    if path.is_dir():
        there = [path / name for name in NAMES if (path / name).is_file()]
        if not there:
            raise UserError(f"{path}: neither a run nor a folder with weights; expected {' or '.join(NAMES)} in it")
        path = there[0]
    return read_safetensors(path) if path.suffix == ".safetensors" else read_pth(path)


def is_pretrained(path: Path) -> bool:
    """True for a folder of `save_pretrained`, which no run is."""
    return not (path / "checkpoints").is_dir() and any((path / name).is_file() for name in NAMES)


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of a .safetensors file; errors as `read_weights`."""
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError:
        raise UserError(f"{path}: reading it needs safetensors: pip install safetensors") from None
    try:
        held = load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{path}: not a file of safetensors ({error})") from None
    kinds = {name: array.astype(np.float32) if array.dtype.kind not in "iub" else array for name, array in held.items()}
    return check_finite(path, {bare(name): array for name, array in kinds.items() if array.ndim})
