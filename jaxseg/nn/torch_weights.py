"""PyTorch state_dict <-> Flax. A table of rules; a key that fits none is an error.

`UNet` has milesial's names, `EncoderUNet` those of segmentation_models.pytorch.

    from_torch(net, read_pth(Path("unet.pth")), "rgb")
    model.load_state_dict({k: torch.from_numpy(v) for k, v in to_torch(net, "rgb").items()})

Networks here read color pictures as blue, green, red, as the article does. Most of PyTorch's, such as milesial's, read
red, green, blue. "rgb" turns the weights of the first convolution between the two; "bgr" copies them as they are.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxseg.base.errors import UserError
from jaxseg.nn.resnet import ARCHITECTURES, Bottleneck

Colors = Literal["bgr", "rgb"]
FIRST = ("inc.double_conv.0.weight", "encoder.conv1.weight")  # (out, in, h, w); inputs are the image's channels

# Flax path -> PyTorch name by the first match, then by its layers; then each leaf: PyTorch's name, and the Flax axes in
# PyTorch's order.
MILESIAL = [
    (r"conv1\.", "double_conv.0."),
    (r"norm1\.", "double_conv.1."),
    (r"conv2\.", "double_conv.3."),
    (r"norm2\.", "double_conv.4."),
]
RESNET = [(r"conv_down\.", "downsample.0."), (r"norm_down\.", "downsample.1."), (r"norm(\d)\.", r"bn\1.")]
DECODER = [(r"conv(\d)\.", r"conv\1.0."), (r"norm(\d)\.", r"conv\1.1.")]
PATHS = [
    (r"down\.0\.", r"inc.", MILESIAL),
    (r"down\.(\d+)\.", r"down\1.maxpool_conv.1.", MILESIAL),
    (r"up\.(\d+)\.up\.", lambda m: f"up{int(m[1]) + 1}.up.", []),
    (r"up\.(\d+)\.block\.", lambda m: f"up{int(m[1]) + 1}.conv.", MILESIAL),
    (r"head\.", r"outc.conv.", []),
    (r"encoder\.", r"encoder.", RESNET),
    (r"decoder\.(\d+)\.block\.", r"decoder.blocks.\1.", DECODER),
    (r"segmentation_head\.", r"segmentation_head.0.", []),
]
LEAVES = [
    (r"up\d+\.up\.kernel", "weight", (2, 3, 0, 1)),  # (h w in out) -> (in out h w)
    (r".*kernel", "weight", (3, 2, 0, 1)),  # (h w in out) -> (out in h w)
    (r".*scale", "weight", (0,)),
    (r".*bias", "bias", (0,)),
    (r".*mean", "running_mean", (0,)),
    (r".*var", "running_var", (0,)),
]
# a counter that no result depends on, milesial's list of labels, and a ResNet's classifier
UNUSED = re.compile(r"(^|\.)num_batches_tracked$|^mask_values$|^(encoder\.)?fc\.(weight|bias)$")
# Other names of the weights of an encoder: smp's `tu-` encoders, torchvision's and timm's files, backbones of others.
SPELLINGS = [
    (r"^encoder\.model\.", "encoder."),
    (r"^backbone\.", "encoder."),
    (r"^(?=(conv1|bn1|layer\d)\.)", "encoder."),
]


def torch_name(path: tuple) -> tuple[str, tuple[int, ...]]:
    """PyTorch's name of the array at a Flax path, and the axes of the Flax array in PyTorch's order.

    Raises KeyError for a path that no rule knows.

    >>> torch_name(("down", 1, "conv2", "kernel"))
    ('down1.maxpool_conv.1.double_conv.3.weight', (3, 2, 0, 1))
    """
    name = ".".join(map(str, path))
    rule = next((rule for rule in PATHS if re.match(rule[0], name)), None)
    if rule is None:
        raise KeyError(f"no rule for {name!r}")
    pattern, replacement, layers = rule
    name = re.sub(f"^{pattern}", replacement, name)
    for ours, theirs in layers:
        name = re.sub(rf"(?<![^.]){ours}", theirs, name, count=1)
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
        out[name] = np.array(np.asarray(variable[...]).transpose(axes), order="C")  # safetensors reads no strides
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
    given = spelled(state_dict)
    _copy(nnx.to_flat_state(nnx.state(net)), turned(given) if channels == "rgb" else given)


def encoder_from_torch(net: nnx.Module, state_dict: Mapping[str, object], channels: Colors = "rgb") -> list[str]:
    """Copies the weights of a pretrained encoder into that of `net`, and returns the names that were left out.

    - `net`: an `EncoderUNet`, which reads colors as blue, green, red
    - `state_dict`: tensors or arrays by name, with the names of torchvision, timm, or segmentation_models.pytorch
    - `channels`: order of the colors that `net` shall read as these weights read red, green, blue: "rgb" if it reads
      blue, green, red; "bgr" for no change

    Weights for three channels are taken for other numbers by the rule of segmentation_models.pytorch (`for_channels`).
    Raises UserError as `from_torch` does. `net` is then unchanged.

    >>> from jaxseg.nn.encoder_unet import EncoderUNet
    >>> net, other = (EncoderUNet("resnet18", base=4, rngs=nnx.Rngs(seed)) for seed in (0, 1))
    >>> unused = encoder_from_torch(net, to_torch(other) | {"fc.bias": np.zeros(5)})
    >>> len(unused), unused[0]  # those of the decoder and the head, too
    (53, 'fc.bias')
    """
    given = spelled(state_dict)
    encoder = {name: array for name, array in given.items() if name.startswith("encoder.")}
    kernel = encoder.get(FIRST[1])
    if kernel is not None and kernel.ndim == 4:
        encoder[FIRST[1]] = for_channels(kernel, net.in_channels)
    state = nnx.to_flat_state(nnx.state(net))
    state = [(path, variable) for path, variable in state if path[0] == "encoder"]
    _copy(state, turned(encoder) if channels == "rgb" else encoder)
    unused = [name for name in state_dict if re.search(r"(^|\.)fc\.", name)]
    return unused + [name for name in given if name not in encoder]


def spelled(state_dict: Mapping[str, object]) -> dict[str, np.ndarray]:
    """Returns the arrays under the names that `torch_name` gives, without those that no network here has."""
    given = {}
    for name, value in state_dict.items():
        for pattern, replacement in SPELLINGS:
            if re.search(pattern, name):
                name = re.sub(pattern, replacement, name)
                break
        if not UNUSED.search(name):
            given[name] = np.asarray(value)
    return given


def for_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Weights of the first convolution [o 3 h w] for another number of channels: segmentation_models.pytorch's rule.

    One channel gets the sum of the three. More get red, green, blue in turn, times 3 / channels: the sum over the
    channels stays about as large. Weights for other than three channels stay as they are.

    >>> for_channels(np.array([1.0, 2.0, 3.0]).reshape(1, 3, 1, 1), 4).ravel().tolist()
    [0.75, 1.5, 2.25, 0.75]
    """
    if kernel.shape[1] != 3 or channels == 3:
        return kernel
    if channels == 1:
        return kernel.sum(1, keepdims=True)
    return kernel[:, np.arange(channels) % 3] * np.asarray(3 / channels, kernel.dtype)


def _copy(state: Iterable[tuple], given: Mapping[str, np.ndarray]) -> None:
    """Copies arrays into the variables of a flat state. Raises UserError listing all that do not fit."""
    problems, named, fitting = [], set(), []
    for path, variable in state:
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
    first = next((name for name in FIRST if name in state), "")
    kernel = state.get(first)
    if kernel is None or kernel.ndim != 4 or kernel.shape[1] not in (3, 4):
        return dict(state)
    return {**state, first: np.ascontiguousarray(kernel[:, [2, 1, 0, 3][: kernel.shape[1]]])}


def architecture(state: Mapping[str, object]) -> dict[str, object]:
    """Architecture that a state_dict belongs to, by jaxseg's flags; empty for unknown names.

    >>> from jaxseg.nn.unet import UNet
    >>> found = architecture(to_torch(UNet((4, 8), in_channels=3, classes=2, rngs=nnx.Rngs(0))))
    >>> found["--widths"], found["--upsample"], found["channels"], found["classes"]
    ([4, 8], 'transpose', 3, 2)
    """
    if FIRST[1] in state and "segmentation_head.0.weight" in state:
        return {
            "--encoder": encoder_name(state),
            "channels": np.shape(state[FIRST[1]])[1],
            "classes": len(np.asarray(state["segmentation_head.0.weight"])),
        }
    names = [FIRST[0], *(f"down{i}.maxpool_conv.1.double_conv.0.weight" for i in range(1, 20))]
    kernels = [np.asarray(state[name]) for name in names if name in state]
    if not kernels or "outc.conv.weight" not in state:
        return {}
    transposed = "up1.up.weight" in state
    widths = [len(kernel) for kernel in kernels]
    if not transposed:
        widths[-1] *= 2
    return {
        "--encoder": None,
        "--widths": widths,
        "--upsample": "transpose" if transposed else "bilinear",
        "--conv-bias": "inc.double_conv.0.bias" in state,
        "channels": kernels[0].shape[1],
        "classes": len(np.asarray(state["outc.conv.weight"])),
    }


def encoder_name(state: Mapping[str, object]) -> str:
    """Name of the ResNet among a state_dict's names, or its numbers of blocks if it is another.

    >>> from jaxseg.nn.encoder_unet import EncoderUNet
    >>> encoder_name(to_torch(EncoderUNet("resnet18", base=4, rngs=nnx.Rngs(0))))
    'resnet18'
    """
    blocks = [re.match(r"encoder\.layer(\d)\.(\d+)\.", name) for name in state]
    depths = tuple(len({m[2] for m in blocks if m and m[1] == layer}) for layer in "1234")
    deep = any(name.startswith("encoder.layer1.0.conv3") for name in state)
    for name, known in ARCHITECTURES.items():
        if known.depths == depths and (known.block is Bottleneck) == deep:
            return name
    return f"another, with {' '.join(map(str, depths))} {'bottlenecks' if deep else 'basic blocks'}"
