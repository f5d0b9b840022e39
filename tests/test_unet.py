import dataclasses
import functools
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseg.base.config import Model
from jaxseg.learn.compiled import KEEP_BARRIERS
from jaxseg.learn.losses import IGNORE_INDEX
from jaxseg.learn.step import loss_fn
from jaxseg.nn import unet as models
from jaxseg.nn.unet import UNet, evaluation

MILESIAL = (64, 128, 256, 512, 1024)


def nchw(x) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(x).transpose(0, 3, 1, 2))


@functools.cache
def abstract(**options) -> UNet:
    """A U-Net of shapes and dtypes only: nothing is drawn or computed."""
    return nnx.eval_shape(lambda: UNet((2, 4, 6), 3, 2, **options, rngs=nnx.Rngs(0)))


def logits_of(net: UNet, *shape: int) -> jax.ShapeDtypeStruct:
    """Shape and dtype of the logits of images of `shape`."""
    graphdef, state = nnx.split(net)
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(lambda state, x: nnx.merge(graphdef, state)(x), state, images)


@settings(max_examples=10)
@given(st.integers(4, 37), st.integers(4, 37), st.sampled_from(["transpose", "bilinear"]))
def test_logits_have_the_size_of_the_image_whatever_it_is(h, w, upsample):
    assert logits_of(abstract(upsample=upsample), 2, h, w, 3).shape == (2, h, w, 2)


@pytest.mark.parametrize("upsample", ["transpose", "bilinear"])
def test_logits_are_those_of_the_pytorch_network_on_odd_sizes(upsample, rng):
    torch = pytest.importorskip("torch")
    from parity.twins.pairs import networks

    with jax.enable_x64(True):
        net, reference = networks(0, "float64", (2, 4, 6), upsample=upsample)
        x = rng.random((2, 7, 10, 3))
        found = jax.jit(lambda state, x: nnx.merge(nnx.graphdef(net), state)(x))(nnx.state(net), x)
    expected = reference(torch.tensor(nchw(x))).detach()
    np.testing.assert_allclose(nchw(found), expected, atol=1e-11)


@pytest.mark.parametrize(("upsample", "expected"), [("transpose", 31_037_698), ("bilinear", 17_263_042)])
def test_milesials_network_has_its_known_number_of_parameters(upsample, expected):
    net = nnx.eval_shape(lambda: UNet(MILESIAL, 3, 2, upsample=upsample, conv_bias=False, rngs=nnx.Rngs(0)))
    assert net.parameters == expected


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 8, 3), "images of 4 pixels a side or more with 3 channels; found 3x8 with 3"),
        ((1, 8, 2, 3), "found 8x2 with 3"),
        ((1, 8, 8, 4), "with 3 channels; found 8x8 with 4"),
    ],
)
def test_images_too_small_or_of_other_channels_are_refused_with_the_numbers(shape, message):
    with pytest.raises(ValueError, match=message):
        logits_of(abstract(), *shape)


def test_one_level_is_no_u_net():
    with pytest.raises(ValueError, match=r"`widths` is \(8,\) .* two levels or more"):
        UNet((8,), rngs=nnx.Rngs(0))


def test_bfloat16_is_for_computing_only():
    assert logits_of(abstract(dtype=jnp.bfloat16), 1, 8, 8, 3).dtype == jnp.float32
    net = nnx.eval_shape(lambda: models.unet_from(Model(precision="bf16"), in_channels=3, classes=2, seed=0))
    assert {x.dtype for x in jax.tree.leaves(nnx.state(net))} == {jnp.dtype(jnp.float32)}
    graphdef, state = nnx.split(UNet((2, 4), dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    traced = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x)).trace(state, jnp.ones((1, 4, 4, 3)))
    text = traced.lower(lowering_platforms=("cuda",)).as_text()  # on a CPU in float32
    products = [x for x in text.splitlines() if "stablehlo.convolution" in x or "stablehlo.dot_general" in x]
    assert len(products) == 7  # six convolutions, two of one shape, the one up, and the last, which is a product
    assert all(line.rsplit("->")[-1].strip().endswith("xbf16>") for line in products)


def test_build_follows_the_settings_and_the_seed():
    chosen = Model((2, 4), upsample="bilinear", conv_bias=False, init="torch_default", dropout=0.25, remat=True)

    def kernels(seed):
        net = models.unet_from(chosen, in_channels=5, classes=3, seed=seed)
        assert (net.up[0].up, net.down[0].conv1.bias, net.head.kernel.shape[-1]) == (None, None, 3)
        assert (net.dropout.rate, net.remat) == (0.25, True)
        return np.asarray(net.down[0].conv1.kernel[...])

    first = kernels(0)
    assert first.shape == (3, 3, 5, 2)
    assert np.abs(first).max() <= 1 / math.sqrt(45)  # torch_default; the article's normal has a deviation twice that
    np.testing.assert_array_equal(first, kernels(0))
    assert (first != kernels(1)).all()


@pytest.mark.parametrize("upsample", ["transpose", "bilinear"])
def test_the_gradient_has_no_scatter_or_gather(upsample):
    """Both are slow on CPU and GPU, and come back with a max-pool or cross-entropy written the usual way."""
    graphdef, state = nnx.split(abstract(upsample=upsample))
    batch = {
        "image": jax.ShapeDtypeStruct((2, 5, 6, 3), jnp.uint8),
        "mask": jax.ShapeDtypeStruct((2, 5, 6), jnp.uint8),
        "valid": jax.ShapeDtypeStruct((2,), bool),
    }
    grad = jax.grad(lambda state, batch: loss_fn(nnx.merge(graphdef, state), batch)[0])
    text = jax.jit(grad).lower(state, batch).as_text()
    assert "convolution" in text
    assert "scatter" not in text
    assert "gather" not in text
    assert str(IGNORE_INDEX) in text


# Dropout and recomputation


@functools.cache
def dropping(rate: float):
    """logits(key) of a U-Net with dropout, in training, and the network."""
    net = UNet((2, 4), dropout=rate, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).random((2, 8, 8, 3), np.float32))
    call = jax.jit(lambda key: nnx.clone(net)(x, None, key))
    return call, net, x


def test_dropout_follows_from_the_key_alone():
    call, _, _ = dropping(0.5)
    first, again, other = call(jax.random.key(1)), call(jax.random.key(1)), call(jax.random.key(2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_no_dropout_is_the_network_as_it_was():
    call, net, x = dropping(0.0)
    np.testing.assert_array_equal(call(jax.random.key(1)), jax.jit(lambda: nnx.clone(net)(x))())


def test_dropout_is_of_the_deepest_features_only(monkeypatch):
    seen = []

    def note(dropout, x, rngs):
        seen.append(x.shape)
        return x

    monkeypatch.setattr(nnx.Dropout, "__call__", note)
    _, net, x = dropping(0.5)
    jax.eval_shape(lambda: nnx.clone(net)(x, None, jax.random.key(0)))
    assert seen == [(2, 4, 4, 4)]


def test_nothing_falls_in_evaluation_and_training_wants_a_key():
    _, net, x = dropping(0.5)
    _, plain, _ = dropping(0.0)
    run = nnx.jit(lambda net, x: evaluation(net)(x))
    np.testing.assert_array_equal(run(net, x), run(plain, x))
    with pytest.raises(ValueError, match="no `rngs` argument was provided to Dropout"):
        nnx.clone(net)(x)
    assert not net.dropout.deterministic  # the view is another


def compiled_gradient(remat: bool, widths: tuple[int, ...], side: int, upsample: str = "transpose"):
    """Compiled as for a CPU that takes notice of barriers, and what it is to be called with."""
    kinds = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    net = UNet(widths, upsample=upsample, conv_bias=False, remat=remat, rngs=nnx.Rngs(0), **kinds)
    graph, params, rest = nnx.split(net, nnx.Param, ...)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (2, side, side, 3), np.uint8),
        "mask": rng.integers(0, 2, (2, side, side), np.uint8),
        "valid": np.ones(2, bool),
    }

    def gradient(params, rest, batch):
        net = nnx.merge(graph, params, rest, copy=True)
        (loss, _), grads = nnx.value_and_grad(loss_fn, has_aux=True)(net, batch)
        return loss, grads, nnx.state(net, nnx.BatchStat)

    return jax.jit(gradient).lower(params, rest, batch).compile(KEEP_BARRIERS), (params, rest, batch)


@pytest.mark.parametrize("upsample", ["transpose", "bilinear"])
def test_recomputing_changes_no_gradient_and_moves_statistics_once(upsample):
    with jax.enable_x64(True):
        (plain, arguments), (again, _) = (compiled_gradient(remat, (2, 4), 10, upsample) for remat in (False, True))
        for found, expected in zip(*(jax.tree.leaves(f(*arguments)) for f in (again, plain)), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-15)


def test_recomputing_saves_memory():
    with jax.enable_x64(True):
        plain, again = (
            compiled_gradient(remat, (4, 8, 16), 64)[0].memory_analysis().temp_size_in_bytes for remat in (False, True)
        )
    assert again < 0.65 * plain


def test_defaults_of_the_network_are_those_of_the_settings():
    defaults = {name: p.default for name, p in inspect.signature(UNet.__init__).parameters.items()}
    settings = dataclasses.asdict(Model()) | {"in_channels": 3, "classes": 2, "dtype": jnp.float32}
    shared = set(defaults) & set(settings)
    assert shared == {"widths", "in_channels", "classes", "upsample", "conv_bias", "init", "dropout", "remat", "dtype"}
    assert {name: defaults[name] for name in shared - {"init"}} == {name: settings[name] for name in shared - {"init"}}
