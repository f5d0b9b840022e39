import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseg.nn.initializers import RULES
from jaxseg.nn.layers import (
    NEAR,
    BatchNorm,
    Conv,
    UpConv,
    _moments,
    max_pool,
    norm_relu,
    plain_norm_relu,
    upsample_bilinear,
)
from jaxseg.nn.unet import ConvBlock

RULE = RULES["article"]


def nchw(x) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(x).transpose(0, 3, 1, 2))


# BatchNorm


@jax.jit
def train_batch_norm(x, weights, scale, bias, mean, var, valid=None):
    """One step of BatchNorm from the given statistics: output, gradients of (x, scale, bias), new statistics."""

    def loss(x, scale, bias):
        norm = BatchNorm(x.shape[-1], param_dtype=mean.dtype, dtype=x.dtype)
        norm.scale[...], norm.bias[...], norm.mean[...], norm.var[...] = scale, bias, mean, var
        y = norm(x, valid)
        return (weights * y).sum(), (y, norm.mean[...], norm.var[...])

    (_, aux), grads = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(x, scale, bias)
    return {"y": aux[0], "grads": grads, "mean": aux[1], "var": aux[2]}


def batch_norm_arguments(rng, shape, dtype=np.float64):
    """x, the weights of the loss, then scale, bias, mean and var."""
    c = shape[-1]
    made = [rng.normal(2, 3, shape), rng.normal(0, 1, shape), *rng.normal(1, 1, (3, c)), rng.uniform(0.5, 2, c)]
    return [jnp.asarray(a, dtype) for a in made]


def test_batch_norm_matches_torch_in_training_and_evaluation(rng):
    """Biased variance in the output, unbiased in the running one: 12 values a channel, so 9 % apart."""
    torch = pytest.importorskip("torch")
    norm = torch.nn.BatchNorm2d(3).double()
    with jax.enable_x64(True):
        x, weights, scale, bias, mean, var = batch_norm_arguments(rng, (2, 2, 3, 3))
        theirs = (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var)
        for tensor, value in zip(theirs, (scale, bias, mean, var)):
            tensor.copy_(torch.tensor(np.asarray(value)))
        for step in range(3):
            found = train_batch_norm(x + step, weights, scale, bias, mean, var)
            mean, var = found["mean"], found["var"]
            theirs = torch.tensor(nchw(x + step), requires_grad=True)
            norm.zero_grad()
            y = norm(theirs)
            (y * torch.tensor(nchw(weights))).sum().backward()
            np.testing.assert_allclose(nchw(found["y"]), y.detach(), atol=1e-13)
            for ours, expected in zip(found["grads"][1:], (norm.weight.grad, norm.bias.grad)):
                np.testing.assert_allclose(ours, expected, atol=1e-13)
            np.testing.assert_allclose(nchw(found["grads"][0]), theirs.grad, atol=1e-13)
        np.testing.assert_allclose(mean, norm.running_mean, rtol=1e-13)
        np.testing.assert_allclose(var, norm.running_var, rtol=1e-13)

        ours = BatchNorm(3, dtype=jnp.float64, param_dtype=jnp.float64)
        ours.scale[...], ours.bias[...], ours.mean[...], ours.var[...] = scale, bias, mean, var
        evaluated = nnx.view(ours, use_running_average=True)(x[:1, :1, :1])  # one value a channel is fine here
        np.testing.assert_array_equal(ours.mean[...], mean)
    expected = norm.eval()(torch.tensor(nchw(x[:1, :1, :1]))).detach()
    np.testing.assert_allclose(nchw(evaluated), expected, atol=1e-13)


def test_batch_norm_running_variance_is_unbiased_and_output_biased():
    x = jnp.asarray([1.0, 2.0, 3.0, 6.0]).reshape(2, 2, 1, 1)  # mean 3, variance 3.5, unbiased 14 / 3
    norm = BatchNorm(1)
    np.testing.assert_allclose(norm(x).ravel(), (x.ravel() - 3) / math.sqrt(3.5 + 1e-5), rtol=1e-6)
    np.testing.assert_allclose(norm.mean[...], [0.3], rtol=1e-6)
    np.testing.assert_allclose(norm.var[...], [0.9 + 0.1 * 14 / 3], rtol=1e-6)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("shape", [(4, 12, 13, 2), (2, 8, 8, 8), (4, 16, 16, 3)])
def test_batch_norm_is_accurate_far_from_zero(shape, padded, rng):
    """Mean 1000 times the deviation: no farther off than the mean's own rounding, 3e-5, and a little.

    A mean in one pass over float32 would be 3e-4 to 1e-3 off, a variance in one pass 0.1.
    """
    x = rng.normal(1000, 1, shape).astype(np.float32)
    valid = np.arange(len(x) + padded) < len(x) if padded else None
    given = np.concatenate([x, np.full_like(x[:1], 7)]) if padded else x
    y = np.asarray(jax.jit(lambda x: BatchNorm(shape[-1])(x, valid))(given))[: len(x)]
    x = x.astype(np.float64)
    np.testing.assert_allclose(y, (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5), atol=7e-5)


@pytest.mark.parametrize("value", [0.1, 137.7, 3e10])
def test_batch_norm_of_a_constant_channel_is_the_bias(value):
    norm = BatchNorm(2)
    norm.bias[...] = jnp.asarray([0.5, -2.0])

    @jax.jit
    def pulled(x):
        y, pull = jax.vjp(lambda x: nnx.clone(norm)(x), x)
        return y, pull(jnp.ones_like(y))[0]

    y, grad = map(np.asarray, pulled(np.full((4, 16, 16, 2), value, np.float32)))
    atol = 2 * np.spacing(np.float32(value)) / math.sqrt(1e-5)  # roundings of the mean, as BatchNorm enlarges them
    np.testing.assert_allclose(y, np.broadcast_to([0.5, -2.0], y.shape), atol=atol)
    assert np.isfinite(grad).all()


def test_batch_variance_is_never_negative():
    """Where rounding alone decides; below 0 the square root would be NaN."""
    variance = jax.jit(lambda x: BatchNorm(2, eps=0.0)._statistics(x, None)[1])
    for seed in range(20):
        x = np.random.default_rng(seed).uniform(1e9, 1e10) * np.ones((3, 5, 7, 2))
        assert variance(x.astype(np.float32)).min() >= 0


def test_batch_norm_gradient_matches_the_formula(rng):
    """Its statistics are taken about a constant, which must not cost the gradient a term, nor the second one."""
    with jax.enable_x64(True):
        x, v = (jnp.asarray(rng.normal(3, 1, (2, 3, 2, 2))) for _ in range(2))
        weights = jnp.asarray(rng.normal(0, 1, x.shape))

        def ours(x):
            return (weights * BatchNorm(2, dtype=jnp.float64, param_dtype=jnp.float64)(x)).sum()

        def formula(x):
            mean, var = (f((0, 1, 2), keepdims=True) for f in (x.mean, x.var))
            return (weights * (x - mean) / jnp.sqrt(var + 1e-5)).sum()

        @jax.jit
        def both(x, v):
            return [jax.jvp(jax.grad(f), (x,), (v,)) for f in (ours, formula)]

        for found, expected in zip(*both(x, v), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-12)


def test_batch_norm_statistics_have_the_parameter_dtype(rng):
    x = rng.normal(0, 1, (2, 3, 3, 2))
    with jax.enable_x64(True):
        norm = BatchNorm(2, dtype=jnp.float64, param_dtype=jnp.float64)
        norm(jnp.asarray(x))
        assert (norm.mean.dtype, norm.var.dtype) == (jnp.float64, jnp.float64)
        np.testing.assert_allclose(norm.mean[...], 0.1 * x.mean((0, 1, 2)), rtol=1e-12)

    norm, x16 = BatchNorm(2, dtype=jnp.bfloat16), jnp.asarray(x, jnp.bfloat16)
    assert norm(x16).dtype == jnp.bfloat16
    assert (norm.mean.dtype, norm.var.dtype) == (jnp.float32, jnp.float32)
    values = np.asarray(x16, np.float64)
    np.testing.assert_allclose(norm.mean[...], 0.1 * values.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * values.var((0, 1, 2), ddof=1), rtol=1e-6)
    assert nnx.view(norm, use_running_average=True)(x16).dtype == jnp.bfloat16


def test_batch_norm_refuses_to_train_on_one_value_per_channel():
    with pytest.raises(ValueError, match=r"one value per channel \(shape \(1, 1, 1, 4\)\)"):
        BatchNorm(4)(jnp.ones((1, 1, 1, 4)))


@settings(max_examples=15)
@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.booleans(), min_size=4, max_size=4).filter(any),
    st.sampled_from([(1, 2), (3, 2)]),
)
def test_padded_batch_gives_the_result_of_the_short_batch(seed, valid, size):
    rng, valid = np.random.default_rng(seed), np.array(valid)
    with jax.enable_x64(True):
        x, weights, *rest = batch_norm_arguments(rng, (len(valid), *size, 2))
        weights = weights * valid[:, None, None, None]  # the loss sees no padding, as in training
        padded = train_batch_norm(x, weights, *rest, jnp.asarray(valid))
        short = train_batch_norm(x[valid], weights[valid], *rest)
    np.testing.assert_allclose(padded["y"][valid], short["y"], atol=1e-12)
    np.testing.assert_allclose(padded["grads"][0][valid], short["grads"][0], atol=1e-12)
    np.testing.assert_array_equal(padded["grads"][0][~valid], 0)
    for ours, expected in zip(padded["grads"][1:], short["grads"][1:]):
        np.testing.assert_allclose(ours, expected, atol=1e-12)
    for name in ("mean", "var"):
        np.testing.assert_allclose(padded[name], short[name], rtol=1e-12)


def test_batch_without_valid_samples_leaves_statistics_unchanged(rng):
    """A part of a short batch may be empty; what comes out is of no use, but is a number."""
    x, weights, *rest = batch_norm_arguments(rng, (2, 3, 3, 2), np.float32)
    found = train_batch_norm(x, 0 * weights, *rest, jnp.zeros(2, bool))
    np.testing.assert_array_equal(found["mean"], rest[2])
    np.testing.assert_array_equal(found["var"], rest[3])
    for array in (found["y"], *found["grads"]):
        assert np.isfinite(array).all()


@pytest.mark.parametrize("far", [1e3, -1e6])
@pytest.mark.parametrize("outside", [False, True])
def test_moments_are_exact_if_the_sampled_pixels_are_outliers(far, outside, rng):
    """No farther from float64's than 16 times what two passes lose to rounding. The second moment of the others about
    that of the chosen ones is all of the variance, or a sixteenth of it.
    """
    x = rng.normal(0, 1, (3, 16, 16, 2)).astype(np.float32)
    chosen = np.zeros((16, 16), bool)
    chosen[::NEAR, ::NEAR] = True
    x[:, chosen ^ outside] += np.float32(far)
    # as users compile it: without XLA's optimization, as tests do, sums are added up one after the other
    moments = jax.jit(_moments, compiler_options={"xla_backend_optimization_level": 3})
    mean, var, unbiased = (np.asarray(m, np.float64) for m in moments(jnp.asarray(x), jnp.ones(3, bool), jnp.zeros(2)))
    x, n = x.astype(np.float64), x[..., 0].size
    np.testing.assert_allclose(mean, x.mean((0, 1, 2)), atol=3e-7 * abs(far))
    np.testing.assert_allclose(var, x.var((0, 1, 2)), rtol=16 * 4e-7)
    np.testing.assert_allclose(unbiased, var * n / (n - 1), rtol=1e-6)


@pytest.mark.parametrize("evaluate", [False, True])
def test_norm_relu_equals_batch_norm_then_relu(evaluate, rng):
    """In float64, with their gradients; one channel is 0 before ReLU everywhere, one sample is padding."""
    valid = np.array([True, False, True])
    with jax.enable_x64(True):
        x, weights, scale, bias, mean, var = batch_norm_arguments(rng, (3, 5, 6, 4))
        scale, bias = scale.at[1].set(0), bias.at[1].set(0)

        def with_gradients(function):
            def loss(x, scale, bias):
                norm = BatchNorm(4, dtype=jnp.float64, param_dtype=jnp.float64)
                norm.scale[...], norm.bias[...], norm.mean[...], norm.var[...] = scale, bias, mean, var
                y = function(nnx.view(norm, use_running_average=evaluate), x, valid)
                return (weights * y).sum(), (y, norm.mean[...], norm.var[...])

            return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(x, scale, bias)

        found, expected = (jax.tree.leaves(with_gradients(f)) for f in (norm_relu, plain_norm_relu))
        assert float(abs(expected[1]).sum()) > 0
        for ours, plain in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, plain, rtol=1e-12, atol=1e-13)


# Pooling, activation, resizing


@jax.jit
def pool_and_pull(x, weights):
    y, pull = jax.vjp(max_pool, x)
    return y, pull(weights)[0]


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (2, 3), (1, 4)])
def test_max_pool_matches_torch_in_ties_and_odd_sizes(size, rng):
    torch = pytest.importorskip("torch")
    h, w = size
    x = rng.integers(0, 3, (8, h, w, 5)).astype(np.float32)  # two thirds of the windows have a tie for the maximum
    weights = rng.standard_normal((8, h // 2, w // 2, 5)).astype(np.float32)
    y, grad = pool_and_pull(jnp.asarray(x), jnp.asarray(weights))
    if h < 2:  # PyTorch refuses to make nothing
        assert y.shape == (8, 0, 2, 5)
        return
    theirs = torch.tensor(nchw(x), requires_grad=True)
    expected = torch.nn.functional.max_pool2d(theirs, 2)
    expected.backward(torch.tensor(nchw(weights)))
    np.testing.assert_array_equal(nchw(y), expected.detach())
    np.testing.assert_array_equal(nchw(grad), theirs.grad)


@pytest.mark.parametrize(
    ("window", "first"),
    [([7, 7, 7, 7], 0), ([1, 7, 7, 7], 1), ([1, 2, 7, 7], 2), ([1, 2, 3, 7], 3), ([-5, -3, -3, -9], 1)],
)
def test_max_pool_gradient_goes_to_the_first_maximum_in_row_major_order(window, first):
    x = jnp.asarray(window, jnp.float32).reshape(1, 2, 2, 1)
    y, grad = pool_and_pull(x, jnp.full((1, 1, 1, 1), 3.0))
    assert y.item() == max(window)
    np.testing.assert_array_equal(grad.ravel(), 3.0 * (np.arange(4) == first))


def test_max_pool_window_with_nan_has_no_gradient():
    x = jnp.asarray([1, jnp.nan, 2, 3, 4, 5, 6, 7]).reshape(1, 2, 2, 2).swapaxes(1, 3)
    y, grad = pool_and_pull(x, jnp.ones((1, 1, 1, 2)))
    assert jnp.isnan(y).sum() == 1
    assert grad.sum() == 1


@given(st.integers(0, 2**32 - 1))
def test_max_pool_gradient_is_neither_lost_nor_doubled(seed):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 2, (3, 5, 6, 2)).astype(np.float32)
    weights = rng.integers(-9, 10, (3, 2, 3, 2)).astype(np.float32)
    y, grad = pool_and_pull(jnp.asarray(x), jnp.asarray(weights))
    windows = np.asarray(grad)[:, :4].reshape(3, 2, 2, 3, 2, 2)
    np.testing.assert_array_equal(windows.sum((2, 4)), weights)
    np.testing.assert_array_equal(y, x[:, :4].reshape(3, 2, 2, 3, 2, 2).max((2, 4)))
    np.testing.assert_array_equal(grad[:, 4:], 0)


@pytest.mark.parametrize("inputs", [4, 64])
def test_bfloat16_kernel_gradient_is_summed_in_float32(inputs, rng):
    """Of a 1x1 convolution, whose XLA sums in bfloat16 on a CPU if it is put in another way: then it is 0.03 off."""
    x, g = (jnp.asarray(rng.normal(0.5, 1, (4, 64, 64, c)), jnp.bfloat16) for c in (inputs, 2))

    def loss(kernel):
        conv = Conv(inputs, 2, 1, rule=RULE, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
        conv.kernel[...] = kernel
        return (conv(x).astype(jnp.float32) * g).sum()

    found = np.asarray(jax.jit(jax.grad(loss))(jnp.zeros((1, 1, inputs, 2))), np.float64)[0, 0]
    expected = np.asarray(x, np.float64).reshape(-1, inputs).T @ np.asarray(g, np.float64).reshape(-1, 2)
    assert np.linalg.norm(found - expected) < 0.004 * np.linalg.norm(expected)


def test_relu_gradient_at_zero_is_zero():
    """The activation of ConvBlock; with BatchNorm's scale and bias at 0 every one of its inputs is exactly 0."""
    block = ConvBlock(1, 1, rule=RULE, rngs=nnx.Rngs(0))
    block.norm2.scale[...] = jnp.zeros(1)
    grads = nnx.jit(nnx.grad(lambda block, x: block(x).sum()))(
        block, np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    )
    assert float(grads["norm2"]["bias"][...][0]) == 0


def test_up_conv_and_its_gradient_match_torch_conv_transpose(rng):
    torch = pytest.importorskip("torch")
    theirs = torch.nn.ConvTranspose2d(3, 4, 2, stride=2).double()
    x, weights = rng.standard_normal((2, 3, 5, 3)), rng.standard_normal((2, 6, 10, 4))
    kernel = theirs.weight.detach().numpy().transpose(2, 3, 0, 1)

    @jax.jit
    def pulled(x, kernel, bias):
        def forward(x, kernel, bias):
            up = UpConv(3, 4, rule=RULE, dtype=jnp.float64, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
            up.kernel[...], up.bias[...] = kernel, bias
            return up(x)

        y, pull = jax.vjp(forward, x, kernel, bias)
        return y, pull(jnp.asarray(weights))

    with jax.enable_x64(True):
        y, (dx, dkernel, dbias) = pulled(x, kernel, theirs.bias.detach().numpy())
    inputs = torch.tensor(nchw(x), requires_grad=True)
    expected = theirs(inputs)
    expected.backward(torch.tensor(nchw(weights)))
    np.testing.assert_allclose(nchw(y), expected.detach(), atol=1e-13)
    np.testing.assert_allclose(nchw(dx), inputs.grad, atol=1e-13)
    np.testing.assert_allclose(np.asarray(dkernel).transpose(2, 3, 0, 1), theirs.weight.grad, atol=1e-12)
    np.testing.assert_allclose(dbias, theirs.bias.grad, atol=1e-12)


def test_up_conv_kernel_corners_make_the_output_corners():
    up = UpConv(1, 1, rule=RULE, rngs=nnx.Rngs(0))
    up.kernel[...] = jnp.asarray([[1.0, 2.0], [3.0, 4.0]]).reshape(2, 2, 1, 1)
    up.bias[...] = jnp.zeros(1)
    y = up(jnp.asarray([10.0, 100.0]).reshape(1, 1, 2, 1))
    np.testing.assert_array_equal(y[0, :, :, 0], [[10, 20, 100, 200], [30, 40, 300, 400]])


def test_conv_refuses_unsupported_kernel_sizes():
    for size, strides in ((5, 1), (7, 1), (3, 3)):
        with pytest.raises(ValueError, match=f"`kernel_size` is {size} and `strides` {strides}; expected 1 or 3"):
            Conv(2, 2, size, strides, rule=RULE, rngs=nnx.Rngs(0))


def test_initial_biases_are_within_torchs_bound():
    rngs = nnx.Rngs(0)
    up = UpConv(2, 256, rule=RULE, rngs=rngs).bias[...]  # 2x2 of the *outputs*: PyTorch's fan_in of a transposed kernel
    conv = Conv(2, 256, 3, rule=RULE, rngs=rngs).bias[...]
    for bias, fan_in in ((up, 4 * 256), (conv, 9 * 2)):
        assert 0.95 / math.sqrt(fan_in) < float(jnp.abs(bias).max()) <= 1 / math.sqrt(fan_in)


@pytest.mark.parametrize("layer", ["Conv", "UpConv"])
def test_bias_gradient_is_not_lost_in_bfloat16(layer):
    kinds = {"rule": RULE, "dtype": jnp.bfloat16, "rngs": nnx.Rngs(0)}
    net = Conv(2, 3, 3, **kinds) if layer == "Conv" else UpConv(2, 3, **kinds)
    x = jnp.ones((4, 64, 64, 2), jnp.bfloat16)
    grads = nnx.jit(nnx.grad(lambda net, x: net(x).astype(jnp.float32).sum()))(net, x)
    pixels = 4 * 64 * 64 * (1 if layer == "Conv" else 4)
    np.testing.assert_array_equal(grads["bias"][...], pixels)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 1), (2, 3), (7, 4)])
def test_upsample_bilinear_matches_torch_with_aligned_corners(size, rng):
    torch = pytest.importorskip("torch")
    x = rng.standard_normal((2, *size, 3))
    weights = rng.standard_normal((2, 2 * size[0], 2 * size[1], 3))

    @jax.jit
    def pulled(x, weights):
        y, pull = jax.vjp(upsample_bilinear, x)
        return y, pull(weights)[0]

    with jax.enable_x64(True):
        y, grad = pulled(x, weights)
    theirs = torch.tensor(nchw(x), requires_grad=True)
    expected = torch.nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)(theirs)
    expected.backward(torch.tensor(nchw(weights)))
    np.testing.assert_allclose(nchw(y), expected.detach(), atol=1e-13)
    np.testing.assert_allclose(nchw(grad), theirs.grad, atol=1e-13)


def test_upsample_bilinear_keeps_corners_and_interpolates_between_them():
    x = jnp.asarray([[0.0, 3.0], [6.0, 9.0]]).reshape(1, 2, 2, 1)
    y = np.asarray(upsample_bilinear(x))[0, :, :, 0]
    np.testing.assert_allclose(y, np.add.outer([0, 2, 4, 6], [0, 1, 2, 3]), atol=1e-6)
