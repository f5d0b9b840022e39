"""Single layers on both sides, with all arrays in PyTorch's layouts.

The functions are jaxseg's (or Flax's) side of a layer. They take the input `x` [b c h w] and the parameters as PyTorch
has them, and return the layer's output, so gradients have PyTorch's layouts too. jaxseg's layers are looked up at each
call, so an injected mistake takes effect.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from jaxseg.nn import encoder_unet, initializers, layers, resnet, unet
from parity.judge import compare
from parity.twins.pairs import array
from parity.twins.quickly import QUICKLY

Results = dict[str, np.ndarray]
Sides = tuple[Results, ...]  # jaxseg's, PyTorch's


class Case(NamedTuple):
    """A layer with its input and parameters, which both sides take in this order; their names label the results.

    Both sides return `y`, or `y` and a dict of further results.
    """

    ours: Callable
    theirs: Callable
    arguments: Mapping[str, np.ndarray]


def ours(cases: Mapping[str, Case], optimize: bool = False) -> Results:
    """jaxseg's results: for each case `y`, gradients `d <argument>` of a weighted sum of `y`, and the rest.

    One compilation for all cases: `QUICKLY`, or as usual if `optimize`, for questions of rounding.
    """

    def one(case: Case, arguments: list[jax.Array]) -> dict:
        y, pull, rest = jax.vjp(lambda *a: _with_rest(case.ours(*a)), *arguments, has_aux=True)
        return _named(case, y, pull(jnp.asarray(weights(y.shape), y.dtype)), rest)

    def all_of_them(arguments: dict[str, list[jax.Array]]) -> dict[str, dict]:
        return {name: one(case, arguments[name]) for name, case in cases.items()}

    compiled = jax.jit(all_of_them, compiler_options={} if optimize else QUICKLY)
    found = compiled({name: list(case.arguments.values()) for name, case in cases.items()})
    return {f"{name}: {what}": np.asarray(x) for name, result in found.items() for what, x in result.items()}


def theirs(cases: Mapping[str, Case], dtype: torch.dtype | None = None) -> Results:
    """PyTorch's results, as from `ours`; in `dtype`, or else the dtype of the arguments."""
    out = {}
    for name, case in cases.items():
        arguments = [torch.tensor(a, dtype=dtype, requires_grad=True) for a in case.arguments.values()]
        y, rest = _with_rest(case.theirs(*arguments))
        y.backward(torch.tensor(weights(y.shape), dtype=y.dtype))
        out |= {f"{name}: {what}": array(x) for what, x in _named(case, y, [a.grad for a in arguments], rest).items()}
    return out


def both(groups: Mapping[str, Mapping[str, Case]]) -> dict[str, Sides]:
    """Results of jaxseg and of PyTorch for each group of cases, from one compilation."""
    cases = {(group, name): case for group, members in groups.items() for name, case in members.items()}
    flat = {"/".join(key): case for key, case in cases.items()}
    found, expected = ours(flat), theirs(flat)
    return {group: tuple(_of(side, f"{group}/") for side in (found, expected)) for group in groups}


def float32(cases: Mapping[str, Case]) -> Sides:
    """Results of jaxseg in float32, PyTorch in float32, and PyTorch in float64 from the same numbers."""
    single = {
        name: case._replace(arguments={key: a.astype(np.float32) for key, a in case.arguments.items()})
        for name, case in cases.items()
    }
    return ours(single, optimize=True), theirs(single), theirs(single, torch.float64)


def distances(three: Sides) -> dict[str, tuple[float, float]]:
    """Relative l2 distances of jaxseg and of PyTorch from float64, for each result of `float32`."""
    found, expected, exact = three
    measure = compare.relative_l2
    return {name: (measure(found[name], x), measure(expected[name], x)) for name, x in exact.items()}


def only(sides: Sides, wanted: Callable[[str], bool]) -> Sides:
    """Results whose name, without the case, is `wanted`."""
    return tuple({name: x for name, x in side.items() if wanted(name.rpartition(": ")[2])} for side in sides)


def channels(sides: Sides, which: slice) -> Sides:
    """Channels `which` of results that share their channels: [... c h w] or [c]."""
    return tuple({k: x[..., which, :, :] if x.ndim > 1 else x[which] for k, x in side.items()} for side in sides)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Normal numbers of unit variance, in float64 but exact in float32."""
    return rng.standard_normal(shape).astype(np.float32).astype(np.float64)


def _of(results: Results, group: str) -> Results:
    return {name.removeprefix(group): x for name, x in results.items() if name.startswith(group)}


def weights(shape: tuple[int, ...]) -> np.ndarray:
    """Cotangent of `y`: float32 numbers that depend on the shape alone."""
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def _with_rest(result) -> tuple:
    return result if isinstance(result, tuple) else (result, {})


def _named(case: Case, y, grads: Sequence, rest: Mapping) -> dict:
    return {"y": y, **{f"d {key}": grad for key, grad in zip(case.arguments, grads)}, **rest}


# Layouts --------------------------------------------------------------------------------------------------------------


def nhwc(x):
    """Transposes [b c h w] to [b h w c]."""
    return x.transpose(0, 2, 3, 1)


def nchw(x):
    """Transposes [b h w c] to [b c h w]."""
    return x.transpose(0, 3, 1, 2)


def hwio(kernel):
    """Transposes [out in h w] to [h w in out]."""
    return kernel.transpose(2, 3, 1, 0)


def kinds(x) -> dict:
    """Layer options: compute in, and keep parameters in, the dtype of `x`."""
    return {"dtype": x.dtype, "param_dtype": x.dtype}


def fill(layer: nnx.Module, **parameters) -> None:
    """Sets parameters of a layer; skips one that the layer lacks, which then shows in the results."""
    for name, value in parameters.items():
        if value is not None and getattr(layer, name) is not None:
            getattr(layer, name)[...] = value


# jaxseg's layers ------------------------------------------------------------------------------------------------------


def conv(x, kernel, bias=None, *, strides: int = 1):
    """`unet.Conv`; the kernel is square."""
    outputs, inputs, size, _ = kernel.shape
    made = {"rule": initializers.RULES["article"], "use_bias": bias is not None, "rngs": nnx.Rngs(0)}
    layer = unet.Conv(inputs, outputs, size, strides, **made, **kinds(x))
    fill(layer, kernel=hwio(kernel), bias=bias)
    return nchw(layer(nhwc(x)))


def up_conv(x, kernel, bias):
    """`unet.UpConv`; PyTorch's kernel is [in out h w]."""
    layer = unet.UpConv(*kernel.shape[:2], rule=initializers.RULES["article"], rngs=nnx.Rngs(0), **kinds(x))
    fill(layer, kernel=kernel.transpose(2, 3, 0, 1), bias=bias)
    return nchw(layer(nhwc(x)))


def conv_block(x, kernel1, bias1, scale1, shift1, kernel2, bias2, scale2, shift2):
    """`unet.ConvBlock` in training."""
    outputs, middle = kernel2.shape[:2]
    rule = initializers.RULES["article"]
    block = unet.ConvBlock(x.shape[1], outputs, middle, rule=rule, rngs=nnx.Rngs(0), **kinds(x))
    fill(block.conv1, kernel=hwio(kernel1), bias=bias1)
    fill(block.norm1, scale=scale1, bias=shift1)
    fill(block.conv2, kernel=hwio(kernel2), bias=bias2)
    fill(block.norm2, scale=scale2, bias=shift2)
    return nchw(block(nhwc(x)))


def torch_conv_block(x, kernel1, bias1, scale1, shift1, kernel2, bias2, scale2, shift2):
    """PyTorch's counterpart of `conv_block`."""
    functional = torch.nn.functional
    for kernel, bias, scale, shift in ((kernel1, bias1, scale1, shift1), (kernel2, bias2, scale2, shift2)):
        x = functional.conv2d(x, kernel, bias, padding=1)
        x = functional.relu(functional.batch_norm(x, None, None, scale, shift, training=True))
    return x


def batch_norm(x, scale, bias, *, valid: np.ndarray | None = None, evaluate: bool = False, **options):
    """`layers.BatchNorm` over the batches `x` [steps b c h w] in turn, then its running statistics.

    valid: bool [b]; only these samples of each batch are returned.
    evaluate: returns instead the last batch in evaluation, with the statistics of all batches.
    options: of the layer, such as `momentum` and `eps`.
    """
    norm = layers.BatchNorm(x.shape[2], **kinds(x), **options)
    fill(norm, scale=scale, bias=bias)
    kept = slice(None) if valid is None else valid
    y = jnp.stack([nchw(norm(nhwc(batch), valid))[kept] for batch in x])
    if evaluate:
        y = nchw(nnx.view(norm, use_running_average=True)(nhwc(x[-1])))
    return y, {"running mean": norm.mean[...], "running variance": norm.var[...]}


def torch_batch_norm(x, scale, bias, *, valid: np.ndarray | None = None, evaluate: bool = False, **options):
    """PyTorch's counterpart of `batch_norm`, which gets only the valid samples."""
    norm = torch.nn.BatchNorm2d(x.shape[2], dtype=x.dtype, **options)
    parameters = {"weight": scale, "bias": bias}
    batches = x if valid is None else x[:, valid]
    y = torch.stack([torch.func.functional_call(norm, parameters, (batch,)) for batch in batches])
    if evaluate:
        y = torch.func.functional_call(norm.eval(), parameters, (x[-1],))
    return y, {"running mean": norm.running_mean, "running variance": norm.running_var}


def norm_relu(x, scale, bias, *, plain: bool, evaluate: bool = False, **options):
    """BatchNorm and ReLU of `x` [b c h w]: `layers.norm_relu`, or `layers.plain_norm_relu` if `plain`."""
    norm = layers.BatchNorm(x.shape[1], **kinds(x), **options)
    fill(norm, scale=scale, bias=bias)
    norm = nnx.view(norm, use_running_average=True) if evaluate else norm
    return nchw((layers.plain_norm_relu if plain else layers.norm_relu)(norm, nhwc(x)))


def torch_norm_relu(x, scale, bias, *, evaluate: bool = False, **options):
    """PyTorch's counterpart of `norm_relu`."""
    norm = torch.nn.BatchNorm2d(x.shape[1], dtype=x.dtype, **options).train(not evaluate)
    return torch.nn.functional.relu(torch.func.functional_call(norm, {"weight": scale, "bias": bias}, (x,)))


def max_pool(x):
    """`unet.max_pool`."""
    return nchw(unet.max_pool(nhwc(x)))


def max_pool_3x3(x):
    """`resnet.max_pool_3x3`."""
    return nchw(resnet.max_pool_3x3(nhwc(x)))


def upsample_nearest(x):
    """`encoder_unet.upsample_nearest`."""
    return nchw(encoder_unet.upsample_nearest(nhwc(x)))


def relu(x):
    """Activation of ConvBlock."""
    return jax.nn.relu(x)


def upsample_bilinear(x):
    """`unet.upsample_bilinear`."""
    return nchw(unet.upsample_bilinear(nhwc(x)))


# Flax's and JAX's -----------------------------------------------------------------------------------------------------


def flax_conv(x, kernel, bias, *, padding, **options):
    """`nnx.Conv`; `padding` and `options` are passed on."""
    outputs, inputs, *size = kernel.shape
    inputs *= options.get("feature_group_count", 1)
    layer = nnx.Conv(inputs, outputs, size, padding=padding, rngs=nnx.Rngs(0), **options, **kinds(x))
    fill(layer, kernel=hwio(kernel), bias=bias)
    return nchw(layer(nhwc(x)))


def flax_conv_transpose(x, kernel, bias, *, stride: int, padding: int, flip: bool):
    """`nnx.ConvTranspose` as PyTorch's with this `padding`, which is k - 1 - padding in Flax.

    kernel: [in out h w], which Flax needs flipped.
    flip: flipped here by hand; if False by `transpose_kernel=True`, which takes [h w out in].
    """
    inputs, outputs, *size = kernel.shape
    around = [(k - 1 - padding, k - 1 - padding) for k in size]
    made = {"strides": stride, "padding": around, "transpose_kernel": not flip, "rngs": nnx.Rngs(0)}
    layer = nnx.ConvTranspose(inputs, outputs, size, **made, **kinds(x))
    turned = kernel[:, :, ::-1, ::-1].transpose(2, 3, 0, 1) if flip else hwio(kernel)
    fill(layer, kernel=turned, bias=bias)
    return nchw(layer(nhwc(x)))


def flax_pool(pool: Callable, x, *, size: int, stride: int, padding: int):
    """`nnx.max_pool` or `nnx.avg_pool`."""
    return nchw(pool(nhwc(x), (size, size), (stride, stride), ((padding, padding), (padding, padding))))


def resize(x, *, size: tuple[int, int], method: str, antialias: bool = False):
    """`jax.image.resize` to the height and width `size`."""
    return jax.image.resize(x, (*x.shape[:2], *size), method, antialias=antialias)
