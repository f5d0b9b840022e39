"""Initial weights as in `torch.nn.init`: its names, gains, modes and fans.

The distributions are PyTorch's, the numbers are not. JAX's `he_normal` and `glorot_normal` draw *truncated* normals and
its biases start at 0. PyTorch draws plain normals, and biases from U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
Each function here returns an initializer `(key, shape, dtype) -> array`.

Kernels are `(h, w, in, out)`. For a transposed convolution PyTorch reads the fans off its weight `(in, out, h, w)` as
if it were `(out, in, h, w)`, so "fan_in" is `out * h * w`. `transposed=True` does that.
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
    """Factor that keeps the scale of activations through `nonlinearity`: `torch.nn.init.calculate_gain`.

    `param` is the negative slope of "leaky_relu" (0.01 by default in PyTorch, whose `kaiming_*` pass 0).
    Raises ValueError for an unknown name.

    >>> round(calculate_gain("relu"), 4)
    1.4142
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
    """(fan_in, fan_out) of a kernel `(h, w, in, out)`, as `torch.nn.init` counts them.

    Raises ValueError for fewer than two dimensions.

    >>> fans((3, 3, 16, 32)), fans((2, 2, 16, 32), transposed=True)
    ((144, 288), (128, 64))
    """
    if len(shape) < 2:
        raise ValueError(f"fans need a kernel of 2 or more dimensions (..., in, out), found shape {shape}")
    *window, inputs, outputs = shape
    area = math.prod(window)
    fan_in, fan_out = inputs * area, outputs * area
    return (fan_out, fan_in) if transposed else (fan_in, fan_out)


def normal(std: float) -> Initializer:
    """N(0, std^2), not truncated: `torch.nn.init.normal_`.

    >>> normal(0.1)(jax.random.key(0), (3, 3, 1, 8)).shape
    (3, 3, 1, 8)
    """
    return _drawn(lambda rng, shape: rng.normal(0.0, std, shape))


def uniform(bound: float) -> Initializer:
    """U(-bound, bound): `torch.nn.init.uniform_`.

    >>> bool(abs(uniform(0.1)(jax.random.key(0), (100,))).max() <= 0.1)
    True
    """
    return _drawn(lambda rng, shape: rng.uniform(-bound, bound, shape))


def _drawn(draw: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]) -> Initializer:
    """Initializer that draws from NumPy's Philox generator, seeded with the JAX key.

    `jax.random` compiles a program for every shape, 25 for a U-Net: longer than everything else before the first step.
    These numbers are also the same with every version of JAX. Under `jit` and `eval_shape` it is a callback.
    """

    def init(key, shape, dtype=jnp.float32):
        dtype = jax.dtypes.canonicalize_dtype(dtype)

        def on_host(words):
            rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(np.asarray(words).tolist())))
            return draw(rng, shape).astype(dtype)

        words = key if jnp.issubdtype(key.dtype, jnp.unsignedinteger) else jax.random.key_data(key)
        if not isinstance(words, jax.core.Tracer):  # a callback is compiled anew each time, no cache keeps it
            return jax.device_put(on_host(words), may_alias=False)
        return jax.pure_callback(on_host, jax.ShapeDtypeStruct(shape, dtype), words, vmap_method="sequential")

    return init


def constant(value: float) -> Initializer:
    """Fills with `value`: `torch.nn.init.constant_`.

    >>> constant(0.5)(jax.random.key(0), (2,)).tolist()
    [0.5, 0.5]
    """
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
    """N(0, gain^2 / fan): `torch.nn.init.kaiming_normal_` (He et al. 2015, eq. 14).

    - `a`: negative slope of leaky_relu
    - `mode`: "fan_in" or "fan_out"
    - `nonlinearity`: a name that `calculate_gain` knows
    - `transposed`: True for the kernel of a transposed convolution

    Raises ValueError for another `mode` or `nonlinearity`.

    >>> init = kaiming_normal(mode="fan_out", nonlinearity="relu")
    >>> init(jax.random.key(0), (3, 3, 4, 8), jnp.float32).shape
    (3, 3, 4, 8)
    """
    return _kaiming(normal, 1.0, a, mode, nonlinearity, transposed)


def kaiming_uniform(
    a: float = 0.0, mode: Mode = "fan_in", nonlinearity: str = "leaky_relu", *, transposed: bool = False
) -> Initializer:
    """U(-b, b) with b = gain sqrt(3 / fan): `torch.nn.init.kaiming_uniform_` (He et al. 2015).

    Arguments and errors as in `kaiming_normal`.

    >>> bool(abs(kaiming_uniform()(jax.random.key(0), (3, 4))).max() <= (2 * 3 / 3) ** 0.5)
    True
    """
    return _kaiming(uniform, math.sqrt(3.0), a, mode, nonlinearity, transposed)


def _xavier(law, factor, gain, transposed) -> Initializer:
    def init(key, shape, dtype=jnp.float32):
        return law(factor * gain * math.sqrt(2.0 / sum(fans(shape, transposed))))(key, shape, dtype)

    return init


def xavier_normal(gain: float = 1.0, *, transposed: bool = False) -> Initializer:
    """N(0, 2 gain^2 / (fan_in + fan_out)): `torch.nn.init.xavier_normal_` (Glorot and Bengio 2010).

    >>> xavier_normal()(jax.random.key(0), (3, 3, 4, 8)).shape
    (3, 3, 4, 8)
    """
    return _xavier(normal, 1.0, gain, transposed)


def xavier_uniform(gain: float = 1.0, *, transposed: bool = False) -> Initializer:
    """U(-b, b) with b = gain sqrt(6 / (fan_in + fan_out)): `torch.nn.init.xavier_uniform_` (Glorot and Bengio 2010).

    >>> bool(abs(xavier_uniform()(jax.random.key(0), (2, 4))).max() <= 1)
    True
    """
    return _xavier(uniform, math.sqrt(3.0), gain, transposed)


def torch_default(*, transposed: bool = False) -> Initializer:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): the default weights of `torch.nn.Conv2d` and `ConvTranspose2d`.

    PyTorch writes it as kaiming_uniform with a = sqrt(5).

    >>> bool(abs(torch_default()(jax.random.key(0), (3, 3, 4, 8))).max() <= 1 / 6)
    True
    """
    return kaiming_uniform(a=math.sqrt(5.0), transposed=transposed)


def torch_default_bias(kernel_shape: tuple[int, ...], *, transposed: bool = False) -> Initializer:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): PyTorch's default bias, with the fan_in of its kernel `(h, w, in, out)`.

    >>> bool(abs(torch_default_bias((3, 3, 4, 8))(jax.random.key(0), (8,))).max() <= 1 / 6)
    True
    """
    return uniform(1.0 / math.sqrt(fans(kernel_shape, transposed)[0]))


@dataclasses.dataclass(frozen=True)
class Rule:
    """Initial weights of a whole network; biases stay at PyTorch's default.

    `conv` draws the kernels of convolutions, `up` those of transposed ones.

    >>> RULES["article"].conv(jax.random.key(0), (1, 1, 4, 8)).shape
    (1, 1, 4, 8)
    """

    conv: Initializer
    up: Initializer


RULES = {
    # The article tests `type(m) == nn.Conv2d`, so transposed convolutions keep PyTorch's default.
    "article": Rule(kaiming_normal(mode="fan_out", nonlinearity="relu"), torch_default(transposed=True)),
    "torch_default": Rule(torch_default(), torch_default(transposed=True)),
    "kaiming_normal": Rule(kaiming_normal(nonlinearity="relu"), kaiming_normal(nonlinearity="relu", transposed=True)),
    "kaiming_uniform": Rule(
        kaiming_uniform(nonlinearity="relu"), kaiming_uniform(nonlinearity="relu", transposed=True)
    ),
    "xavier_normal": Rule(xavier_normal(), xavier_normal(transposed=True)),
    "xavier_uniform": Rule(xavier_uniform(), xavier_uniform(transposed=True)),
}
