"""Initial weights as `torch.nn.init` draws them: its names, gains, modes and reading of fans, in law (not number by
number).

JAX's own `he_normal` and `glorot_normal` draw *truncated* normals, and its default for a bias is 0; PyTorch's are
plain normals and U(-1/sqrt(fan_in), 1/sqrt(fan_in)). Each function here returns an initializer `(key, shape, dtype)
-> array`.

Kernels are laid out `(h, w, in, out)`. PyTorch reads the fans of a transposed convolution off its weight `(in, out,
h, w)` as if it were `(out, in, h, w)`, so there "fan_in" is `out * h * w`: ask for that with `transposed=True`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

Initializer = Callable[..., jax.Array]
Mode = Literal["fan_in", "fan_out"]


def calculate_gain(nonlinearity: str, param: float = 0.0) -> float:
    """The factor that keeps the scale of activations through `nonlinearity`, as `torch.nn.init.calculate_gain`.

    `param` is the negative slope of "leaky_relu" (PyTorch's own default there is 0.01; its `kaiming_*` pass 0).
    Raises ValueError for any other name than those below.
    """
    gains = {
        "linear": 1.0,
        "conv2d": 1.0,
        "conv_transpose2d": 1.0,
        "sigmoid": 1.0,
        "tanh": 5.0 / 3,
        "relu": math.sqrt(2.0),
        "leaky_relu": math.sqrt(2.0 / (1 + param**2)),
        "selu": 3.0 / 4,
    }
    if nonlinearity not in gains:
        raise ValueError(f"`nonlinearity` is {nonlinearity!r}; expected one of {', '.join(gains)}")
    return gains[nonlinearity]


def fans(shape: tuple[int, ...], transposed: bool = False) -> tuple[int, int]:
    """(fan_in, fan_out) of a kernel `(h, w, in, out)`, as `torch.nn.init` counts them."""
    if len(shape) < 2:
        raise ValueError(f"fans need a kernel of 2 or more dimensions (..., in, out), found shape {shape}")
    *window, inputs, outputs = shape
    area = math.prod(window)
    fan_in, fan_out = inputs * area, outputs * area
    return (fan_out, fan_in) if transposed else (fan_in, fan_out)


def normal(std: float) -> Initializer:
    """N(0, std^2), not truncated."""
    return _drawn(lambda rng, shape: rng.normal(0.0, std, shape))


def uniform(bound: float) -> Initializer:
    """U(-bound, bound)."""
    return _drawn(lambda rng, shape: rng.uniform(-bound, bound, shape))


def _drawn(draw: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]) -> Initializer:
    """An initializer whose numbers come from NumPy's Philox generator, seeded with the JAX key.

    `jax.random` would compile a program for every shape, 25 of them for a U-Net, which takes longer than everything
    else before the first step; and these numbers are the same with every version of JAX. Works under `jit` and
    `eval_shape` as well, as a callback.
    """

    def init(key, shape, dtype=jnp.float32):
        dtype = jax.dtypes.canonicalize_dtype(dtype)

        def on_host(words):
            rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(np.asarray(words).tolist())))
            return draw(rng, shape).astype(dtype)

        words = key if jnp.issubdtype(key.dtype, jnp.unsignedinteger) else jax.random.key_data(key)
        if not isinstance(words, jax.core.Tracer):  # a callback is a program to compile, and no cache keeps it
            return jax.device_put(on_host(words), may_alias=False)
        return jax.pure_callback(on_host, jax.ShapeDtypeStruct(shape, dtype), words, vmap_method="sequential")

    return init


def constant(value: float) -> Initializer:
    """Every element `value`."""
    return lambda key, shape, dtype=jnp.float32: jnp.full(shape, value, dtype)


def _kaiming(law, factor, a, mode, nonlinearity, transposed) -> Initializer:
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"`mode` is {mode!r}; expected 'fan_in' or 'fan_out'")
    gain = calculate_gain(nonlinearity, a)

    def init(key, shape, dtype=jnp.float32):
        fan = fans(shape, transposed)[mode == "fan_out"]
        return law(factor * gain / math.sqrt(fan))(key, shape, dtype)

    return init


def kaiming_normal(
    a: float = 0.0, mode: Mode = "fan_in", nonlinearity: str = "leaky_relu", *, transposed: bool = False
) -> Initializer:
    """N(0, gain^2 / fan): `torch.nn.init.kaiming_normal_` (He et al. 2015, eq. 14). `a`: slope of leaky_relu."""
    return _kaiming(normal, 1.0, a, mode, nonlinearity, transposed)


def kaiming_uniform(
    a: float = 0.0, mode: Mode = "fan_in", nonlinearity: str = "leaky_relu", *, transposed: bool = False
) -> Initializer:
    """U(-b, b) with b = gain sqrt(3 / fan): `torch.nn.init.kaiming_uniform_`. `a`: slope of leaky_relu."""
    return _kaiming(uniform, math.sqrt(3.0), a, mode, nonlinearity, transposed)


def _xavier(law, factor, gain, transposed) -> Initializer:
    def init(key, shape, dtype=jnp.float32):
        return law(factor * gain * math.sqrt(2.0 / sum(fans(shape, transposed))))(key, shape, dtype)

    return init


def xavier_normal(gain: float = 1.0, *, transposed: bool = False) -> Initializer:
    """N(0, 2 gain^2 / (fan_in + fan_out)): `torch.nn.init.xavier_normal_` (Glorot and Bengio 2010)."""
    return _xavier(normal, 1.0, gain, transposed)


def xavier_uniform(gain: float = 1.0, *, transposed: bool = False) -> Initializer:
    """U(-b, b) with b = gain sqrt(6 / (fan_in + fan_out)): `torch.nn.init.xavier_uniform_`."""
    return _xavier(uniform, math.sqrt(3.0), gain, transposed)


def torch_default(*, transposed: bool = False) -> Initializer:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): what `torch.nn.Conv2d` and `ConvTranspose2d` give their weights.

    PyTorch writes it as kaiming_uniform with a = sqrt(5).
    """
    return kaiming_uniform(a=math.sqrt(5.0), transposed=transposed)


def torch_default_bias(kernel_shape: tuple[int, ...], *, transposed: bool = False) -> Initializer:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)) with the fan_in of the kernel `(h, w, in, out)` that the bias belongs to."""
    return uniform(1.0 / math.sqrt(fans(kernel_shape, transposed)[0]))


@dataclasses.dataclass(frozen=True)
class Rule:
    """Initial weights of a whole network: kernels of convolutions and of transposed ones. Biases stay at PyTorch's
    default.
    """

    conv: Initializer
    up: Initializer


RULES = {
    # The article asks `type(m) == nn.Conv2d`, so transposed convolutions stay as PyTorch made them.
    "article": Rule(kaiming_normal(mode="fan_out", nonlinearity="relu"), torch_default(transposed=True)),
    "torch_default": Rule(torch_default(), torch_default(transposed=True)),
    "kaiming_normal": Rule(kaiming_normal(nonlinearity="relu"), kaiming_normal(nonlinearity="relu", transposed=True)),
    "kaiming_uniform": Rule(
        kaiming_uniform(nonlinearity="relu"), kaiming_uniform(nonlinearity="relu", transposed=True)
    ),
    "xavier_normal": Rule(xavier_normal(), xavier_normal(transposed=True)),
    "xavier_uniform": Rule(xavier_uniform(), xavier_uniform(transposed=True)),
}
