"""One forward and backward pass through jaxseg's network and through the reference, recording every layer.

Layers have jaxseg's names on both sides, such as `down.1.conv1`. Layers that are functions are called
`down.1.relu1`, `down.1.max_pool` and `up.0.up`. Parameters have PyTorch's names.
"""

import contextlib
import copy
import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from flax import nnx

from jaxseg.learn import losses, step
from jaxseg.nn import blocks, resnet, unet
from jaxseg.nn import layers as nn_layers
from jaxseg.nn.torch_weights import to_torch
from jaxseg.nn.unet import UNet
from parity.twins import pairs
from parity.twins.pairs import Batch
from parity.twins.quickly import UNOPTIMIZED

Arrays = dict[str, np.ndarray]

LAYERS = (
    torch.nn.Conv2d,
    torch.nn.BatchNorm2d,
    torch.nn.ReLU,
    torch.nn.MaxPool2d,
    torch.nn.ConvTranspose2d,
    torch.nn.Upsample,
)
KINDS = ("conv", "norm", "relu")
NAMES = [  # PyTorch's name of a layer -> jaxseg's
    (r"^inc\.", "down.0."),
    (r"^down(\d+)\.maxpool_conv\.0$", r"down.\1.max_pool"),
    (r"^down(\d+)\.maxpool_conv\.1\.", r"down.\1."),
    (r"^up(\d+)\.up$", lambda m: f"up.{int(m[1]) - 1}.up"),
    (r"^up(\d+)\.conv\.", lambda m: f"up.{int(m[1]) - 1}.block."),
    (r"^outc\.conv$", "head"),
    (r"^segmentation_head\.0$", "segmentation_head"),
    (r"^decoder\.blocks\.(\d)\.conv(\d)\.(\d)$", lambda m: f"decoder.{m[1]}.block.{KINDS[int(m[3])]}{m[2]}"),
    (r"^encoder\.maxpool$", "encoder.max_pool"),
    (r"^encoder\.relu$", "encoder.relu1"),
    (r"^(encoder\..*)downsample\.(\d)$", lambda m: f"{m[1]}{KINDS[int(m[2])]}_down"),
    (r"^(encoder\..*)bn(\d)$", r"\1norm\2"),
    (r"double_conv\.(\d)$", lambda m: ("conv1", "norm1", "relu1", "conv2", "norm2", "relu2")[int(m[1])]),
]


@dataclasses.dataclass(frozen=True)
class Pass:
    """Results of one training pass for the valid samples, as [b c h w]; bfloat16 is stored as float32."""

    loss: np.ndarray
    logits: np.ndarray
    outputs: Arrays
    """Output of each layer; on the reference's side in the order of computation."""
    output_gradients: Arrays
    """Gradients of the loss with respect to `outputs`."""
    gradients: Arrays
    """Gradients of the parameters, without the known zeros."""
    known_zeros: Arrays
    """Gradients of biases before a BatchNorm, which are 0 in exact arithmetic."""
    statistics: Arrays
    """Running statistics after the pass."""
    types: dict[str, str]
    """Dtype of each layer's output, and of "loss", "logits", "gradients" and "statistics"."""


def ours(
    like: UNet, loss: Callable | None = None, *, device: str = "cpu", optimized: bool = True
) -> Callable[[UNet, Batch], Pass]:
    """jaxseg's pass: `step.loss_fn`, compiled once for networks like `like`. Changes neither network nor batch.

    like: a network with the same structure and shapes.
    loss: of (logits, labels); cross-entropy if None.
    device: "cpu" or "gpu", as for `theirs`.
    optimized: compiled as for the trainer; if False with `UNOPTIMIZED`, which rounds differently.

    Rounds wherever the program casts. By default XLA omits a rounding to bfloat16 before a cast to float32.
    """
    graph = nnx.graphdef(like)

    options = {"xla_allow_excess_precision": False} | ({} if optimized else UNOPTIMIZED)

    @partial(jax.jit, compiler_options=options)
    def compute(parameters, rest, batch):
        def forward(parameters, added):
            net = nnx.merge(graph, parameters, rest, copy=True)
            with recording(net, added) as outputs:
                value, logits = step.loss_fn(net, batch, loss or losses.cross_entropy)
            return value, (logits, outputs, nnx.state(net, nnx.BatchStat))

        outputs = jax.eval_shape(forward, parameters, {})[1][1]
        added = {name: jnp.zeros(x.shape, x.dtype) for name, x in outputs.items()}
        return jax.value_and_grad(forward, (0, 1), has_aux=True)(parameters, added)

    def run(net: UNet, batch: Batch) -> Pass:
        given = jax.device_put((*nnx.state(net, nnx.Param, ...), batch), jax.devices(device)[0])
        (value, (logits, outputs, statistics)), (gradients, output_gradients) = compute(*given)

        def samples(x):
            return _readable(pairs.nchw(x)[batch["valid"]])

        gradients, statistics = to_torch(gradients), to_torch(statistics)
        return Pass(
            np.asarray(value),
            samples(logits),
            {name: samples(x) for name, x in outputs.items()},
            {name: samples(x) for name, x in output_gradients.items()},
            *_split_zeros(gradients),
            statistics,
            _types(value, logits, gradients, statistics, outputs),
        )

    return run


def theirs(
    reference: torch.nn.Module,
    batch: Batch,
    dtype: str,
    loss: Callable = F.cross_entropy,
    *,
    device: str = "cpu",
    variation: str = "",
    along: Pass | None = None,
) -> Pass:
    """The reference's pass. Changes neither network nor batch.

    dtype: of the computation; "bfloat16" runs under autocast, as PyTorch's users write it.
    loss: of (logits, labels).
    device: "cpu" or "gpu".
    variation: "channels_last", or "permuted batch" for the samples in reverse; exact results do not change.
    along: a pass whose branches are taken instead of its own (see `branches`).
    """
    where = {"cpu": "cpu", "gpu": "cuda"}[device]
    reference = copy.deepcopy(reference).to(where)
    images, masks = (x.to(where) for x in pairs.for_torch(batch, "float32" if dtype == "bfloat16" else dtype))
    if variation == "channels_last":
        images, reference = (x.to(memory_format=torch.channels_last) for x in (images, reference))
    if variation == "permuted batch":
        images, masks = images.flip(0), masks.flip(0)
    autocast = torch.autocast(where, torch.bfloat16, enabled=dtype == "bfloat16")
    with autocast, watching(reference, branches(along.outputs) if along else {}) as outputs:
        logits = reference(images)
        value = loss(logits, masks)
    value.backward()

    def samples(x):
        return pairs.array(x.flip(0) if variation == "permuted batch" else x)

    gradients = {name: parameter.grad for name, parameter in reference.named_parameters()}
    statistics = dict(reference.named_buffers())
    return Pass(
        pairs.array(value),
        samples(logits),
        {name: samples(x) for name, x in outputs.items()},
        {name: samples(x.grad) for name, x in outputs.items()},
        *_split_zeros(pairs.arrays(gradients)),
        pairs.arrays(statistics),
        _types(value, logits, pairs.arrays(gradients), pairs.arrays(statistics), outputs),
    )


@contextlib.contextmanager
def recording(net: UNet, added: dict[str, jax.Array]) -> Iterator[dict[str, jax.Array]]:
    """Records the output of every layer of `net` that is called inside the context.

    added: zeros to add to the outputs, by name; the gradient with respect to them is that of the outputs.
    """
    paths = {id(module): ".".join(map(str, path)) for path, module in nnx.iter_graph(net)}
    outputs, last = {}, ""

    def noted(function, name):
        def call(*args, **kwargs):
            nonlocal last
            y, key = function(*args, **kwargs), name(*args)
            y = y + added[key] if key in added else y
            outputs[key] = y
            if isinstance(args[0], nnx.Module):
                last = key
            return y

        return call

    def path(module, *_):
        return paths[id(module)]

    levels, decoders = itertools.count(1), itertools.count()
    layers = [
        (unet.Conv, "__call__", path),
        (nn_layers.BatchNorm, "__call__", path),
        (unet.UpConv, "__call__", path),
        (unet, "upsample_bilinear", lambda x: f"up.{next(decoders)}.up"),
        (unet, "max_pool", lambda x: f"down.{next(levels)}.max_pool"),
        (resnet, "max_pool_3x3", lambda x: "encoder.max_pool"),
        (jax.nn, "relu", lambda x: last.replace("norm", "relu")),
    ]
    with contextlib.ExitStack() as stack:
        # the fused version hides the value between norm and ReLU
        for module in (blocks, resnet):
            stack.enter_context(mock.patch.object(module, "norm_relu", nn_layers.plain_norm_relu))
        for owner, attribute, name in layers:
            right = getattr(owner, attribute)
            stack.enter_context(mock.patch.object(owner, attribute, noted(right, name)))
        yield outputs


@contextlib.contextmanager
def watching(reference: torch.nn.Module, taken: Arrays | None = None) -> Iterator[dict[str, torch.Tensor]]:
    """Records the output of every layer of the reference, as tensors that retain their gradients.

    taken: branches to take instead of its own (see `branches`).
    """
    outputs = {}

    def note(key, module, args, out):
        if taken and key in taken:
            out = _along(args[0], torch.from_numpy(taken[key]))
        out.retain_grad()
        outputs[key] = out
        return out

    names = layer_names(reference)
    hooks = [reference.get_submodule(name).register_forward_hook(partial(note, key)) for key, name in names.items()]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def branches(outputs: Arrays) -> Arrays:
    """Branches that a pass took, by layer.

    A ReLU has bool: True for positive outputs. A pooling has the index of the pixel it took in `h w` flattened, the
    first of equals.
    """
    taken = {name: x > 0 for name, x in outputs.items() if "relu" in name}
    for name in outputs:
        before = re.sub(r"(\d+)\.max_pool", lambda m: f"{int(m[1]) - 1}.relu2", name)
        if before != name and before in outputs:
            taken[name] = F.max_pool2d(torch.from_numpy(outputs[before]), 2, return_indices=True)[1].numpy()
    return taken


def _along(x: torch.Tensor, taken: torch.Tensor) -> torch.Tensor:
    """ReLU or pooling of `x` with given branches."""
    if taken.dtype == torch.bool:
        return x * taken
    return x.flatten(2).gather(2, taken.flatten(2)).view(taken.shape)


def layer_names(reference: torch.nn.Module) -> dict[str, str]:
    """jaxseg's name of each layer -> PyTorch's, in the order of computation."""
    names = {}
    for name, module in reference.named_modules():
        if isinstance(module, LAYERS):
            key = name
            for pattern, replacement in NAMES:
                key = re.sub(pattern, replacement, key)
            names[key] = name
    return names


def canceled(parameter: str) -> bool:
    """True if PyTorch's name is that of a bias before a BatchNorm, which cancels it."""
    return bool(re.search(r"double_conv\.[03]\.bias$", parameter))


def _split_zeros(gradients: Arrays) -> tuple[Arrays, Arrays]:
    """Gradients, split into the others and those that are zero in exact arithmetic."""
    zeros = {name: g for name, g in gradients.items() if canceled(name)}
    return {name: g for name, g in gradients.items() if name not in zeros}, zeros


def _types(value, logits, gradients: Arrays, statistics: Arrays, outputs) -> dict[str, str]:
    def name(xs: Iterable) -> str:
        return ", ".join(sorted({str(x.dtype).removeprefix("torch.") for x in xs}))

    kinds = {"loss": [value], "logits": [logits], "gradients": gradients.values(), "statistics": statistics.values()}
    return {key: name([x]) for key, x in outputs.items()} | {key: name(xs) for key, xs in kinds.items()}


def _readable(x: np.ndarray) -> np.ndarray:
    """Converts bfloat16, which NumPy hardly supports, to float32."""
    return x.astype(np.float32) if x.dtype == jnp.bfloat16 else x
