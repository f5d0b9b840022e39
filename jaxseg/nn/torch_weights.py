"""PyTorch state_dict <-> Flax, for U-Nets with milesial's names. A table of rules; a key that fits none is an error.

    from_torch(net, read_pth(Path("unet.pth")), "rgb")
    model.load_state_dict({k: torch.from_numpy(v) for k, v in to_torch(net, "rgb").items()})

Networks here read color pictures as blue, green, red, as the article does. Most of PyTorch's, such as milesial's, read
red, green, blue. "rgb" turns the weights of the first convolution between the two; "bgr" copies them as they are.
"""

import re
from collections.abc import Mapping
from typing import Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxseg.base.errors import UserError

Colors = Literal["bgr", "rgb"]
FIRST = "inc.double_conv.0.weight"  # (out, in, h, w); its inputs are the image's channels

# Flax path -> PyTorch name by the first match; then each leaf: PyTorch's name, and the Flax axes in PyTorch's order.
PATHS = [
    (r"down\.0\.", r"inc."),
    (r"down\.(\d+)\.", r"down\1.maxpool_conv.1."),
    (r"up\.(\d+)\.up\.", lambda m: f"up{int(m[1]) + 1}.up."),
    (r"up\.(\d+)\.block\.", lambda m: f"up{int(m[1]) + 1}.conv."),
    (r"head\.", r"outc.conv."),
]
LAYERS = [
    ("conv1.", "double_conv.0."),
    ("norm1.", "double_conv.1."),
    ("conv2.", "double_conv.3."),
    ("norm2.", "double_conv.4."),
]
LEAVES = [
    (r"up\d+\.up\.kernel", "weight", (2, 3, 0, 1)),  # (h w in out) -> (in out h w)
    (r".*kernel", "weight", (3, 2, 0, 1)),  # (h w in out) -> (out in h w)
    (r".*scale", "weight", (0,)),
    (r".*bias", "bias", (0,)),
    (r".*mean", "running_mean", (0,)),
    (r".*var", "running_var", (0,)),
]
# a counter that no result depends on, and milesial's list of labels
UNUSED = re.compile(r"(^|\.)num_batches_tracked$|^mask_values$")


def torch_name(path: tuple) -> tuple[str, tuple[int, ...]]:
    """PyTorch's name of the array at a Flax path, and the axes of the Flax array in PyTorch's order.

    Raises KeyError for a path that no rule knows.

    >>> torch_name(("down", 1, "conv2", "kernel"))
    ('down1.maxpool_conv.1.double_conv.3.weight', (3, 2, 0, 1))
    """
    name = ".".join(map(str, path))
    for pattern, replacement in PATHS:
        if re.match(pattern, name):
            name = re.sub(f"^{pattern}", replacement, name)
            break
    else:
        raise KeyError(f"no rule for {name!r}")
    for ours, theirs in LAYERS:
        name = name.replace(ours, theirs)
    for pattern, leaf, axes in LEAVES:
        if re.fullmatch(pattern, name):
            return f"{name.rpartition('.')[0]}.{leaf}", axes
    raise KeyError(f"no rule for {name!r}")


def to_torch(tree: nnx.Module | nnx.State, channels: Colors = "bgr") -> dict[str, np.ndarray]:
    """Copies the arrays of a U-Net into NumPy arrays under PyTorch's names, in PyTorch's layout.

    - `tree`: U-Net, or a State with its paths, such as its gradients
    - `channels`: order of the colors that PyTorch will feed; "bgr" is that of `tree` and copies every array as it is

    Raises KeyError for a path that no rule knows.

    >>> from jaxseg.nn.unet import UNet
    >>> state = to_torch(UNet((4, 8), in_channels=3, classes=2, rngs=nnx.Rngs(0)))
    >>> state["outc.conv.weight"].shape
    (2, 4, 1, 1)
    """
    out = {}
    state = tree if isinstance(tree, nnx.State) else nnx.state(tree)
    for path, variable in nnx.to_flat_state(state):
        name, axes = torch_name(path)
        out[name] = np.array(variable[...]).transpose(axes)
    return turned(out) if channels == "rgb" else out


def from_torch(net: nnx.Module, state_dict: Mapping[str, object], channels: Colors = "bgr") -> None:
    """Copies PyTorch weights into `net`, cast to the dtypes of `net`.

    - `net`: U-Net, which reads colors as blue, green, red
    - `state_dict`: tensors or arrays by name
    - `channels`: order of the colors that these weights were trained on; "bgr" copies every array as it is

    Raises UserError, a ValueError, listing every missing key, every unknown key and every shape that differs. `net` is
    then unchanged.

    >>> from jaxseg.nn.unet import UNet
    >>> net, other = (UNet((4, 8), rngs=nnx.Rngs(seed)) for seed in (0, 1))
    >>> from_torch(net, to_torch(other))
    >>> bool((net.head.kernel[...] == other.head.kernel[...]).all())
    True
    """
    given = {name: np.asarray(value) for name, value in state_dict.items() if not UNUSED.search(name)}
    given = turned(given) if channels == "rgb" else given
    problems, named, fitting = [], set(), []
    for path, variable in nnx.to_flat_state(nnx.state(net)):
        name, axes = torch_name(path)
        named.add(name)
        if name not in given:
            problems.append(f"missing {name}")
            continue
        array = given[name]
        expected = tuple(np.asarray(variable.shape)[list(axes)].tolist())
        if array.shape != expected:
            problems.append(f"{name} has shape {array.shape}, this network needs {expected}")
            continue
        fitting.append((variable, array.transpose(np.argsort(axes))))
    problems += [f"{name} belongs nowhere in this network" for name in given if name not in named]
    if problems:
        raise UserError("the PyTorch weights do not fit:\n" + "\n".join(f"  {problem}" for problem in problems))
    for variable, array in fitting:
        variable[...] = jnp.array(array, variable.dtype, copy=True)  # without a copy JAX would share PyTorch's memory


def turned(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the weights with the first three channels of the image in reverse order: RGB for BGR, and back.

    A fourth channel is alpha and stays. Networks of any other number of channels read no colors and stay as they are.
    """
    kernel = state.get(FIRST)
    if kernel is None or kernel.ndim != 4 or kernel.shape[1] not in (3, 4):
        return dict(state)
    return {**state, FIRST: np.ascontiguousarray(kernel[:, [2, 1, 0, 3][: kernel.shape[1]]])}


def architecture(state: Mapping[str, object]) -> dict[str, object]:
    """Architecture that a state_dict with milesial's names belongs to, by jaxseg's flags; empty for other names.

    >>> from jaxseg.nn.unet import UNet
    >>> found = architecture(to_torch(UNet((4, 8), in_channels=3, classes=2, rngs=nnx.Rngs(0))))
    >>> found["--widths"], found["--upsample"], found["channels"], found["classes"]
    ([4, 8], 'transpose', 3, 2)
    """
    names = [FIRST, *(f"down{i}.maxpool_conv.1.double_conv.0.weight" for i in range(1, 20))]
    kernels = [np.asarray(state[name]) for name in names if name in state]
    if not kernels or "outc.conv.weight" not in state:
        return {}
    transposed = "up1.up.weight" in state
    widths = [len(kernel) for kernel in kernels]
    if not transposed:
        widths[-1] *= 2
    return {
        "--widths": widths,
        "--upsample": "transpose" if transposed else "bilinear",
        "--conv-bias": "inc.double_conv.0.bias" in state,
        "channels": kernels[0].shape[1],
        "classes": len(np.asarray(state["outc.conv.weight"])),
    }
