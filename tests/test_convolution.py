import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxseg.nn import convolution
from jaxseg.nn.convolution import (
    CACHED,
    LOOPED,
    MOST_PIECES,
    PIECES,
    _together,
    conv3x3,
    forward_on_gpu,
    kernel_gradient,
    kernel_gradient_by_pieces,
    kernel_gradient_by_product,
    kernel_gradient_on_gpu,
    packed,
    packed_kernel_gradient,
    pieces,
    plain,
)

sides = st.integers(1, 9)
channels = st.integers(1, 5)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def draw(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng((seed, *shape)).normal(size=shape))


def assert_same(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13 * max(1.0, float(jnp.abs(expected).max())))


@settings(max_examples=12, deadline=None)
@given(h=sides, half=st.integers(1, 4), i=channels, o=channels, pixels=st.sampled_from([1, 2, 4]))
def test_packed_pixels_give_what_the_plain_form_gives(h, half, i, o, pixels):
    x, kernel = draw(2, h, half * pixels, i), draw(3, 3, i, o)
    assert_same(packed(x, kernel, pixels=pixels), plain(x, kernel))
    g = draw(*x.shape[:3], o)
    assert_same(packed_kernel_gradient(x, g, pixels=pixels), kernel_gradient(x, g))


@settings(max_examples=12, deadline=None)
@given(b=st.integers(1, 9), h=sides, w=sides, i=channels, o=channels)
def test_the_gradient_of_the_kernel_is_the_same_by_pieces_and_by_a_product(b, h, w, i, o):
    x, g = draw(b, h, w, i), draw(b, h, w, o)
    expected = kernel_gradient(x, g)
    assert_same(kernel_gradient_by_pieces(x, g), expected)
    assert_same(kernel_gradient_by_product(x, g), expected)


@settings(max_examples=12, deadline=None)
@given(
    b=st.integers(1, 9), h=st.integers(1, 50), w=st.integers(1, 8), i=channels, o=channels, cached=st.integers(1, 999)
)
@example(b=6, h=32, w=4, i=2, o=3, cached=400)
def test_the_gradient_of_the_kernel_is_the_same_whatever_fits_into_the_cache(b, h, w, i, o, cached):
    x, g = draw(b, h, w, i), draw(b, h, w, o)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution, "WHOLE", 0)
        patch.setattr(convolution, "CACHED", cached)
        patch.setattr(convolution, "PIECES", 9)
        found = kernel_gradient_by_pieces(x, g)
    assert_same(found, kernel_gradient(x, g))


@given(b=st.integers(1, 64), bands=st.integers(1, 100))
@example(b=2, bands=3)
@example(b=5, bands=8)
@example(b=11, bands=1)
def test_images_that_are_looped_over_give_enough_pieces_and_no_more_than_there_are(b, bands):
    together, cut = _together(b, bands)
    assert b % together == 0
    assert bands <= cut <= 2 * bands
    assert together * cut <= b * bands
    assert together * cut >= LOOPED or together == b
    if b * bands <= PIECES:
        assert (together, cut) == (b, bands)


@pytest.mark.parametrize(
    ("h", "w", "i", "o"),
    [
        (128, 124, 17, 20),
        (97, 100, 3, 16),
        (96, 8, 24, 16),
        (6, 8, 16, 16),
        (6, 7, 16, 16),
        (5, 8, 12, 8),
        (1, 1, 3, 4),
        (4, 5, 256, 257),
        (4, 5, 257, 256),
    ],
)
def test_value_and_gradients_are_those_of_the_plain_form(h, w, i, o):
    x, kernel, g = draw(3, h, w, i), draw(3, 3, i, o), draw(3, h, w, o)
    (y, gradients), (expected, wanted) = (
        (lambda y, gradient: (y, gradient(g)))(*jax.vjp(f, x, kernel)) for f in (conv3x3, plain)
    )
    assert_same(y, expected)
    for found, right in zip(gradients, wanted, strict=True):
        assert_same(found, right)


@settings(max_examples=20, deadline=None)
@given(b=st.integers(1, 24), h=st.integers(1, 90), groups=st.integers(1, 12), least=st.integers(1, 40))
def test_pieces_put_together_are_the_convolution_of_the_whole(b, h, groups, least):
    x, kernel = draw(b, h, 2, 1), draw(3, 3, 1, 1)
    cut = pieces(x.shape, groups, least)
    assert sum(map(len, cut)) >= min(least, min(b, groups) * max(1, h // 8))
    parts = [[plain(x[part.images, part.read], kernel, part.padding) for part in bands] for bands in cut]
    assert_same(jnp.concatenate([jnp.concatenate(image, axis=1) for image in parts]), plain(x, kernel))


def expanded(program: str) -> str:
    """StableHLO with every function in the place of its calls, whether JAX lets equal ones share it or not."""
    bodies = dict(re.findall(r"func\.func \w+ @(\w+)\((.*?)(?=func\.func|\Z)", program, re.DOTALL))

    def body(name: str) -> str:
        return re.sub(r"\bcall @(\w+)", lambda call: body(call[1]), bodies[name])

    return body("main")


def operations(platform: str, i: int, o: int, side: int, dtype=np.float32, batch: int = 2) -> tuple[int, int, int]:
    """In the program for `platform`: convolutions, those of packed pixels, and products of matrices."""

    def both(x, kernel, g):
        y, gradient = jax.vjp(conv3x3, x, kernel)
        return y, gradient(g)

    shapes = ((batch, side, side, i), (3, 3, i, o), (batch, side, side, o))
    arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    text = expanded(jax.jit(both).trace(*arguments).lower(lowering_platforms=(platform,)).as_text())
    lines = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    packed = [line for line in lines if re.search(r"(stride|rhs_dilate) = \[1, [24]\]", line)]
    return len(lines), len(packed), text.count("stablehlo.dot_general")


def test_a_program_for_a_gpu_has_the_plain_form_only():
    assert operations("cuda", 16, 16, 128) == (3, 0, 0)
    assert operations("cuda", 32, 32, 128) == (3, 0, 0)


@given(i=st.integers(1, 10), o=channels)
def test_channels_of_zeros_change_nothing(i, o):
    """The forms of a GPU, computed on the CPU."""
    x, kernel, g = draw(2, 5, 4, i), draw(3, 3, i, o), draw(2, 5, 4, o)
    assert_same(forward_on_gpu(x, kernel), plain(x, kernel))
    found = kernel_gradient_on_gpu(x, g)
    assert found.shape == kernel.shape
    assert_same(found, kernel_gradient(x, g))


@pytest.mark.parametrize(("inputs", "put_to_cudnn"), [(3, 8), (7, 8), (8, 8), (16, 16)])
def test_on_a_gpu_few_channels_are_filled_up_and_gradients_of_kernels_keep_their_order(inputs, put_to_cudnn):
    x, kernel, g = (jax.ShapeDtypeStruct(s, "float32") for s in ((2, 9, 9, inputs), (3, 3, inputs, 4), (2, 9, 9, 4)))

    def both(x, kernel, g):
        y, gradient = jax.vjp(lambda kernel: conv3x3(x, kernel), kernel)
        return y, gradient(g)

    text = jax.jit(both).trace(x, kernel, g).lower(lowering_platforms=("cuda",)).as_text()
    lines = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert len(lines) == 2
    assert all(f"tensor<2x9x9x{put_to_cudnn}xf32>" in line for line in lines)
    (constraint,) = [line for line in text.splitlines() if "custom_call @LayoutConstraint" in line]
    assert f"tensor<3x3x{inputs}x4xf32>" in constraint
    assert "dense<[3, 2, 1, 0]>" in constraint


def test_on_a_cpu_few_channels_are_packed():
    assert operations("cpu", 16, 16, 8) == (3, 3, 0)
    assert operations("cpu", 3, 32, 8) == (3, 2, 0)  # from 32 channels to 3 as it is


def test_on_a_cpu_narrow_convolutions_come_in_pieces_and_wide_ones_whole():
    assert operations("cpu", 32, 32, 88) == (2 * PIECES + 2, 0, 0)  # the kernel's gradient image by image
    assert operations("cpu", 128, 128, 40) == (2 + 2, 0, 0)


def test_on_a_cpu_pieces_of_the_gradient_of_a_kernel_fit_into_the_cache_but_are_not_too_many():
    assert operations("cpu", 128, 128, 128) == (2 + 8, 0, 0)  # 2**22 values an image and gradient, one in the loop
    assert operations("cpu", 128, 128, 1024) == (2 + MOST_PIECES, 0, 0)


def test_on_a_cpu_a_program_is_as_long_for_many_images_as_for_some():
    assert operations("cpu", 16, 16, 256, batch=16) == operations("cpu", 16, 16, 256, batch=64)


def sizes_of_operands(jaxpr) -> list[int]:
    """Values that each convolution reads, those in loops too."""
    sizes = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            sizes.append(sum(operand.aval.size for operand in equation.invars))
        for inner in equation.params.values():
            sizes += sizes_of_operands(inner.jaxpr) if hasattr(inner, "jaxpr") else []
    return sizes


@pytest.mark.parametrize("batch", [2, 5, 16, 64])
def test_pieces_of_the_gradient_of_a_kernel_fit_into_the_cache_in_a_loop_too(batch):
    image = jax.ShapeDtypeStruct((batch, 256, 256, 32), np.float32)
    sizes = sizes_of_operands(jax.make_jaxpr(kernel_gradient_by_pieces)(image, image).jaxpr)
    rows_beside = 2 * 256 * 32
    assert len(sizes) == 8  # of 2**22 values an image and gradient
    assert max(sizes) <= CACHED + rows_beside


def test_on_a_cpu_the_gradient_of_a_wide_kernel_is_a_product_for_each_image():
    assert operations("cpu", 256, 256, 16) == (2, 0, 2)


def test_on_a_cpu_bfloat16_takes_the_forms_of_float32():
    assert operations("cpu", 16, 16, 128, jnp.bfloat16) == operations("cpu", 16, 16, 128)
    assert operations("cuda", 16, 16, 128, jnp.bfloat16) == (3, 0, 0)


@pytest.mark.parametrize(("side", "i", "o"), [(8, 3, 5), (88, 16, 32), (88, 32, 16), (8, 256, 256)])
def test_bfloat16_is_rounded_once(side, i, o):
    x, kernel, g = (a.astype(jnp.bfloat16) for a in (draw(2, side, side, i), draw(3, 3, i, o), draw(2, side, side, o)))
    wide = [a.astype(jnp.float32) for a in (x, kernel, g)]

    def all_of(x, kernel, g):
        y, gradient = jax.vjp(conv3x3, x, kernel)
        return y, *gradient(g)

    for found, right in zip(jax.jit(all_of)(x, kernel, g), jax.jit(all_of)(*wide), strict=True):
        assert found.dtype == jnp.bfloat16
        np.testing.assert_array_equal(found, right.astype(jnp.bfloat16))


def test_operands_of_the_product_are_not_all_in_memory_together():
    jaxpr = jax.make_jaxpr(kernel_gradient_by_product)(draw(32, 4, 4, 2), draw(32, 4, 4, 3))
    assert sum(equation.primitive.name == "dot_general" for equation in jaxpr.eqns) == PIECES
