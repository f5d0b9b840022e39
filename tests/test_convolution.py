import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxseg.nn import convolution, winograd
from jaxseg.nn.convolution import (
    conv3x3,
    forward_on_gpu,
    kernel_gradient,
    kernel_gradient_in_bands,
    kernel_gradient_on_gpu,
    packed,
    packed_kernel_gradient,
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
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13 * max(1.0, np.abs(expected).max()))


def assert_pairs(forms, *arguments):
    """Asserts that each pair of results of `forms`, compiled together, is the same."""
    for found, expected in jax.jit(forms)(*arguments):
        assert_same(found, expected)


@settings(max_examples=12, deadline=None)
@given(h=sides, half=st.integers(1, 4), i=channels, o=channels, pixels=st.sampled_from([1, 2, 4]))
def test_packed_pixels_give_what_the_plain_form_gives(h, half, i, o, pixels):
    def forms(x, kernel, g):
        return [
            (packed(x, kernel, pixels=pixels), plain(x, kernel)),
            (packed_kernel_gradient(x, g, pixels=pixels), kernel_gradient(x, g)),
        ]

    x, kernel = draw(2, h, half * pixels, i), draw(3, 3, i, o)
    assert_pairs(forms, x, kernel, draw(*x.shape[:3], o))


@settings(max_examples=6, deadline=None)
@given(b=st.integers(1, 3), h=sides, w=sides, i=channels, o=channels, cached=st.integers(1, 200))
@example(b=2, h=7, w=4, i=2, o=3, cached=40)  # the last band is filled up
@example(b=2, h=8, w=4, i=2, o=3, cached=999)  # a band an image
def test_gradient_in_bands_is_that_of_the_whole(b, h, w, i, o, cached):
    def forms(x, g):
        return [(kernel_gradient_in_bands(x, g), kernel_gradient(x, g))]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution, "WHOLE", 0)
        patch.setattr(convolution, "CACHED", cached)
        assert_pairs(forms, draw(b, h, w, i), draw(b, h, w, o))


@settings(max_examples=6, deadline=None)
@given(
    b=st.integers(1, 3),
    h=sides,
    w=sides,
    i=channels,
    o=channels,
    limits=st.sampled_from([(8, 1), (200, 4), (2**20, 128)]),
)
@example(b=3, h=7, w=5, i=2, o=3, limits=(8, 1))  # many bands, the last filled up
@example(b=3, h=2, w=2, i=2, o=3, limits=(8, 2))  # two images at a time, the last filled up
def test_winograd_gives_value_and_gradient_of_the_plain_form(b, h, w, i, o, limits):
    def forms(x, kernel, g):
        return [
            (winograd.winograd(x, winograd.kernel_values(kernel)), plain(x, kernel)),
            (winograd.gradient_of_kernel(x, g), kernel_gradient(x, g)),
        ]

    with pytest.MonkeyPatch.context() as patch:
        for name, limit in zip(("CACHED", "TILES"), limits):
            patch.setattr(winograd, name, limit)
        assert_pairs(forms, draw(b, h, w, i), draw(3, 3, i, o), draw(b, h, w, o))


def test_values_of_a_kernel_are_alike_on_host_and_device():
    kernel = draw(3, 3, 2, 3)
    np.testing.assert_array_equal(winograd.kernel_values(kernel), winograd.kernel_values(np.asarray(kernel)))


@pytest.mark.parametrize(
    ("h", "w", "i", "o"),
    [
        (64, 36, 17, 20),  # in bands
        (64, 36, 20, 17),
        (6, 8, 16, 16),  # packed
        (6, 7, 16, 16),
        (5, 8, 12, 8),
        (1, 1, 3, 4),
        (4, 5, 64, 65),  # winograd
    ],
)
def test_value_and_gradients_are_those_of_the_plain_form(h, w, i, o):
    def forms(x, kernel, g):
        (y, gradient), (expected, wanted) = (jax.vjp(f, x, kernel) for f in (conv3x3, plain))
        return [(y, expected), *zip(gradient(g), wanted(g), strict=True)]

    assert_pairs(forms, draw(3, h, w, i), draw(3, 3, i, o), draw(3, h, w, o))


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

    def forms(x, kernel, g):
        found = kernel_gradient_on_gpu(x, g)
        assert found.shape == kernel.shape
        return [(forward_on_gpu(x, kernel), plain(x, kernel)), (found, kernel_gradient(x, g))]

    assert_pairs(forms, draw(2, 5, 4, i), draw(3, 3, i, o), draw(2, 5, 4, o))


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


def test_on_a_cpu_a_program_has_one_operation_for_each_of_value_and_gradients():
    assert operations("cpu", 31, 32, 88) == (3, 0, 0)
    assert operations("cpu", 32, 63, 88) == (2, 0, 1)  # winograd for the gradient of the kernel
    assert operations("cpu", 64, 128, 16) == (0, 0, 3)  # winograd
    assert operations("cpu", 16, 16, 256, batch=64) == (3, 3, 0)


def operands(jaxpr) -> list[int]:
    """Values that each convolution reads, including those in loops."""
    sizes = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            sizes.append(sum(operand.aval.size for operand in equation.invars))
        for inner in equation.params.values():
            sizes += operands(inner.jaxpr) if hasattr(inner, "jaxpr") else []
    return sizes


@pytest.mark.parametrize(("batch", "side"), [(2, 256), (5, 256), (2, 1000)])
def test_bands_fit_into_the_cache(batch, side):
    image = jax.ShapeDtypeStruct((batch, side, side, 32), np.float32)
    (size,) = operands(jax.make_jaxpr(kernel_gradient_in_bands)(image, image).jaxpr)
    rows_beside = 2 * side * 32
    assert convolution.CACHED / 2 < size <= convolution.CACHED + rows_beside


def test_on_a_cpu_bfloat16_takes_the_forms_of_float32():
    assert operations("cpu", 16, 16, 128, jnp.bfloat16) == operations("cpu", 16, 16, 128)
    assert operations("cuda", 16, 16, 128, jnp.bfloat16) == (3, 0, 0)


@pytest.mark.parametrize(("side", "i", "o"), [(8, 3, 5), (48, 16, 32), (48, 32, 16), (8, 64, 64)])
def test_bfloat16_is_rounded_once(side, i, o):
    x, kernel, g = (a.astype(jnp.bfloat16) for a in (draw(2, side, side, i), draw(3, 3, i, o), draw(2, side, side, o)))
    wide = [a.astype(jnp.float32) for a in (x, kernel, g)]

    def all_of(x, kernel, g):
        y, gradient = jax.vjp(conv3x3, x, kernel)
        return y, *gradient(g)

    for found, right in zip(jax.jit(all_of)(x, kernel, g), jax.jit(all_of)(*wide), strict=True):
        assert found.dtype == jnp.bfloat16
        np.testing.assert_array_equal(found, right.astype(jnp.bfloat16))
