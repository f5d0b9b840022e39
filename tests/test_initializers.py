import inspect
import math
from typing import get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from jaxseg.base.config import Model
from jaxseg.nn import initializers

KERNEL = (3, 3, 64, 256)  # 147,456 draws: a standard deviation is 0.2 % off at one sigma, so 1 % is five
FAN_IN, FAN_OUT = 9 * 64, 9 * 256

# name: (initializer, its standard deviation, whether it is normal)
LAWS = {
    "normal": (initializers.normal(0.3), 0.3, True),
    "uniform": (initializers.uniform(0.3), 0.3 / math.sqrt(3), False),
    "kaiming_normal": (initializers.kaiming_normal(), math.sqrt(2 / FAN_IN), True),
    "kaiming_normal fan_out": (initializers.kaiming_normal(mode="fan_out"), math.sqrt(2 / FAN_OUT), True),
    "kaiming_normal transposed": (initializers.kaiming_normal(transposed=True), math.sqrt(2 / FAN_OUT), True),
    "kaiming_normal tanh": (initializers.kaiming_normal(nonlinearity="tanh"), 5 / 3 / math.sqrt(FAN_IN), True),
    "kaiming_normal a=2": (initializers.kaiming_normal(a=2.0), math.sqrt(2 / 5 / FAN_IN), True),
    "kaiming_uniform": (initializers.kaiming_uniform(), math.sqrt(2 / FAN_IN), False),
    "kaiming_uniform transposed": (
        initializers.kaiming_uniform(mode="fan_out", transposed=True),
        math.sqrt(2 / FAN_IN),
        False,
    ),
    "xavier_normal": (initializers.xavier_normal(), math.sqrt(2 / (FAN_IN + FAN_OUT)), True),
    "xavier_uniform gain=3": (initializers.xavier_uniform(3.0), 3 * math.sqrt(2 / (FAN_IN + FAN_OUT)), False),
    "torch_default": (initializers.torch_default(), 1 / math.sqrt(3 * FAN_IN), False),
    "torch_default transposed": (initializers.torch_default(transposed=True), 1 / math.sqrt(3 * FAN_OUT), False),
    "torch_default_bias": (initializers.torch_default_bias(KERNEL), 1 / math.sqrt(3 * FAN_IN), False),
    "torch_default_bias transposed": (
        initializers.torch_default_bias(KERNEL, transposed=True),
        1 / math.sqrt(3 * FAN_OUT),
        False,
    ),
}


@pytest.mark.parametrize("name", LAWS)
def test_large_draws_follow_their_distribution(name):
    init, sigma, is_normal = LAWS[name]
    w = np.asarray(init(jax.random.key(1), KERNEL))
    assert abs(w.mean()) < 5 * sigma / math.sqrt(w.size)
    assert w.std() == pytest.approx(sigma, rel=0.01)
    if is_normal:
        assert np.abs(w).max() > 3.5 * sigma  # not truncated
        assert (np.abs(w) < sigma).mean() == pytest.approx(0.6827, abs=0.007)
    else:
        assert math.sqrt(3) * sigma * 0.999 < np.abs(w).max() <= math.sqrt(3) * sigma * (1 + 1e-6)


@pytest.mark.parametrize("init", [initializers.normal(1.0), initializers.uniform(1.0)], ids=["normal", "uniform"])
def test_draws_are_determined_by_the_key(init):
    words = jnp.asarray([[0, 0], [0, 1], [1, 0]], jnp.uint32)
    keys = [*jax.random.wrap_key_data(words), *jax.random.split(jax.random.key(0))]
    draws = [np.asarray(init(key, (4, 4))) for key in keys]
    for i, (key, draw) in enumerate(zip(keys, draws)):
        np.testing.assert_array_equal(init(key, (4, 4)), draw)
        for other in draws[:i]:
            assert not np.isin(draw, other).any()
    np.testing.assert_array_equal(init(jax.random.PRNGKey(1), (4, 4)), draws[1])  # a key of the old style


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_requested_dtype_only_rounds_the_draws(dtype):
    key = jax.random.key(0)
    draw = initializers.kaiming_normal()(key, (3, 3, 4, 4), dtype)
    assert draw.dtype == dtype
    np.testing.assert_allclose(
        np.asarray(draw, np.float32), initializers.kaiming_normal()(key, (3, 3, 4, 4)), rtol=jnp.finfo(dtype).eps
    )


def test_float64_draws_need_x64():
    init, key = initializers.normal(1.0), jax.random.key(0)
    single = np.asarray(init(key, (50,), jnp.float32))
    assert init(key, (50,), np.dtype("float64")).dtype == jnp.float32
    with jax.enable_x64(True):
        double = np.asarray(init(key, (50,), jnp.float64))
    assert double.dtype == np.float64
    np.testing.assert_array_equal(double.astype(np.float32), single)
    assert (double != single).any()


def test_draws_are_equal_inside_jit_and_eval_shape_works():
    init, key = initializers.xavier_uniform(), jax.random.key(3)
    compiled = jax.jit(lambda key: init(key, (3, 3, 2, 5), jnp.float32))
    np.testing.assert_array_equal(compiled(key), init(key, (3, 3, 2, 5)))

    conv = nnx.eval_shape(lambda: nnx.Conv(2, 5, (3, 3), kernel_init=init, rngs=nnx.Rngs(0)))
    assert jax.ShapeDtypeStruct((3, 3, 2, 5), jnp.float32) in jax.tree.leaves(nnx.state(conv))


def test_constant_fills_with_its_value():
    filled = initializers.constant(0.25)(jax.random.key(0), (2, 3), jnp.bfloat16)
    assert filled.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(filled, np.float32), np.full((2, 3), 0.25))


def test_fans_of_plain_and_transposed_kernels():
    assert initializers.fans((3, 3, 64, 128)) == (576, 1152)
    assert initializers.fans((2, 2, 128, 64), transposed=True) == (256, 512)
    assert initializers.fans((7, 5)) == (7, 5)
    with pytest.raises(ValueError, match=r"2 or more dimensions .* found shape \(3,\)"):
        initializers.fans((3,))


@given(st.tuples(*[st.integers(1, 9)] * 4), st.booleans())
def test_fans_match_torch(shape, transposed):
    torch = pytest.importorskip("torch")
    h, w, i, o = shape
    weight = torch.empty((i, o, h, w) if transposed else (o, i, h, w), device="meta")
    assert initializers.fans(shape, transposed) == torch.nn.init._calculate_fan_in_and_fan_out(weight)


NONLINEARITIES = ["linear", "conv2d", "conv_transpose2d", "sigmoid", "tanh", "relu", "leaky_relu", "selu"]


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_gains_match_torch(nonlinearity):
    torch = pytest.importorskip("torch")
    for param in (0.0, 0.2, math.sqrt(5)):
        expected = torch.nn.init.calculate_gain(nonlinearity, param)
        assert initializers.calculate_gain(nonlinearity, param) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("make", [initializers.kaiming_normal, initializers.kaiming_uniform])
def test_unknown_mode_or_nonlinearity_is_refused_before_drawing(make):
    with pytest.raises(ValueError, match="`mode` is 'fan_avg'; expected 'fan_in' or 'fan_out'"):
        inspect.unwrap(make)(mode="fan_avg")  # past the type checker, which only tests have
    with pytest.raises(ValueError, match=r"`nonlinearity` is 'swish'; expected one of linear, .*selu"):
        make(nonlinearity="swish")


def test_article_rule_is_kaiming_fan_out_with_torch_default_for_transposed():
    rule, key = initializers.RULES["article"], jax.random.key(0)
    conv, up = np.asarray(rule.conv(key, KERNEL)), np.asarray(rule.up(key, (2, 2, 256, 128)))
    assert conv.std() == pytest.approx(math.sqrt(2 / FAN_OUT), rel=0.01)
    assert np.abs(conv).max() > 3.5 * math.sqrt(2 / FAN_OUT)
    bound = 1 / math.sqrt(4 * 128)
    assert 0.999 * bound < np.abs(up).max() <= bound * (1 + 1e-6)


@pytest.mark.parametrize("name", [name for name in initializers.RULES if name != "article"])
def test_other_rules_use_the_initializer_of_their_name_for_both_kernels(name):
    rule, key = initializers.RULES[name], jax.random.key(0)
    options = {"nonlinearity": "relu"} if name.startswith("kaiming") else {}
    make = getattr(initializers, name)
    np.testing.assert_array_equal(rule.conv(key, (3, 3, 2, 5)), make(**options)(key, (3, 3, 2, 5)))
    np.testing.assert_array_equal(rule.up(key, (2, 2, 6, 3)), make(**options, transposed=True)(key, (2, 2, 6, 3)))


def test_every_rule_is_a_command_line_choice():
    assert set(initializers.RULES) == set(get_args(get_type_hints(Model)["init"]))
