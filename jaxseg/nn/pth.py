"""Reads the weights in a file that PyTorch wrote."""

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxseg.base.errors import UserError

WRAPPERS = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params"),
    *("state_dict_ema", "ema_state_dict", "model_ema", "ema"),  # averaged weights
)
"""Keys under which trainers save the weights beside other things."""
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
"""Prefixes that DataParallel, torch.compile and trainers add to all names."""


def read_pth(path: Path) -> dict[str, np.ndarray]:
    """Reads the weights in a PyTorch file as NumPy arrays by name, floats as float32.

    Takes them out of `WRAPPERS` and drops `PREFIXES`, and whatever is no weight.

    Raises UserError, a ValueError, if PyTorch is not installed, if the file is missing or holds no weights or several
    sets of them, or if weights are NaN or infinite.

    >>> weights = read_pth(Path("unet.pth"))  # doctest: +SKIP
    """
    try:
        import torch
    except ImportError:
        raise UserError(f"{path}: reading it needs PyTorch: pip install torch") from None
    other = f"{path}: not a file of torch.save(model.state_dict(), ...)"
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # arguments, which many trainers save along
            held = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except pickle.UnpicklingError as error:  # classes other than tensors and containers
        if (name := re.search(r"GLOBAL (\S+)", str(error))) is None:
            raise UserError(f"{other} ({_first_line(error)})") from None
        what = f"it holds objects of {name[1]}, and reading them runs code"
        advice = f"If you trust it, torch.load({path.name!r}, weights_only=False) and torch.save the state_dict in it"
        raise UserError(f"{other}: {what}. {advice}.") from None
    except Exception as error:  # zipfile's and torch's own
        raise UserError(f"{other} ({_first_line(error)})") from None
    weights = {bare(name): x.detach() for name, x in _found(path, held).items() if _is_weight(x)}
    arrays = {name: (x.float() if x.is_floating_point() else x).numpy() for name, x in weights.items()}
    return check_finite(path, arrays)


def check_finite(path: Path, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the arrays of a file. Raises UserError if some are NaN or infinite."""
    if broken := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
        what = f"{len(broken)} of {len(arrays)} arrays hold NaN or infinity, such as {broken[0]}"
        raise UserError(f"{path}: {what}. Its training diverged; take an earlier file.")
    return arrays


def bare(name: str) -> str:
    """Drops all prefixes of a name.

    >>> bare("module._orig_mod.inc.double_conv.0.weight")
    'inc.double_conv.0.weight'
    """
    while prefix := next((p for p in PREFIXES if name.startswith(p)), None):
        name = name.removeprefix(prefix)
    return name


def _found(path: Path, held: object) -> Mapping:
    """Finds the state_dict in what a file holds: the whole, or the entry of a wrapper."""
    save = f"save one with torch.save(model.state_dict(), {path.name!r})"
    if not isinstance(held, Mapping):
        raise UserError(f"{path}: holds no state_dict but a {type(held).__name__}; {save}")
    found = [key for key in WRAPPERS if _is_state(held.get(key))]
    if len(found) > 1:
        one = f"torch.save(torch.load({path.name!r})[{found[0]!r}], 'weights.pth')"
        raise UserError(f"{path}: holds several state_dicts: {', '.join(found)}. Save one of them: {one}")
    if not found and not _is_state(held):
        keys = ", ".join(map(str, list(held)[:10])) or "nothing"
        raise UserError(f"{path}: holds no state_dict; {save}. Found: {keys}")
    return held[found[0]] if found else held


def _is_state(value: object) -> bool:
    return isinstance(value, Mapping) and any(map(_is_weight, value.values()))


def _is_weight(value: object) -> bool:
    import torch

    return torch.is_tensor(value) and value.ndim > 0


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
