import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxseg.learn import optimizers
from jaxseg.learn.compiled import compile_predict_step, compile_probability_step
from jaxseg.nn import winograd as wide
from jaxseg.nn.encoder_unet import EncoderUNet
from jaxseg.nn.folded import Folded, FoldedConv, folded
from jaxseg.nn.layers import BatchNorm
from jaxseg.nn.unet import UNet, evaluation
from jaxseg.nn.winograd import winograd


def trained(seed=0, **how):
    """A network with statistics and parameters as after training."""
    kind = partial(EncoderUNet, base=4) if "encoder" in how else partial(UNet, (4, 8, 16))
    net, rng = kind(in_channels=3, classes=3, rngs=nnx.Rngs(seed), **how), np.random.default_rng(seed)
    for _, layer in nnx.iter_graph(net):
        if isinstance(layer, BatchNorm):
            for name, low, high in (("mean", -1, 1), ("var", 0.01, 2), ("scale", 0.5, 2), ("bias", -1, 1)):
                variable = getattr(layer, name)
                variable[...] = jnp.asarray(rng.uniform(low, high, variable.shape), variable.dtype)
    return net


IMAGES = np.random.default_rng(1).random((2, 33, 38, 3), np.float32)


def run(net, x=IMAGES):
    """Logits of the network."""
    return np.asarray(nnx.jit(lambda net, x: net(x))(net, x))


def apart(found, expected):
    """Largest difference, relative to the largest value."""
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("how", [{}, {"upsample": "bilinear", "conv_bias": False}, {"encoder": "resnet50"}])
def test_folded_networks_compute_the_networks_logits(how):
    net = trained(**how)
    assert apart(run(folded(net)), run(evaluation(net))) < 1e-5


def test_folding_is_exact_in_float64():
    with jax.enable_x64(True):
        net = trained(dtype=jnp.float64, param_dtype=jnp.float64)
        x = jnp.asarray(IMAGES, jnp.float64)
        assert apart(run(folded(net), x), run(evaluation(net), x)) < 1e-13


def test_folding_leaves_no_batch_norm_and_the_network_as_it_was():
    net = trained()
    before = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(net)))
    layers = [layer for _, layer in nnx.iter_graph(folded(net))]
    assert not any(isinstance(layer, BatchNorm) for layer in layers)
    assert sum(isinstance(layer, Folded) for layer in layers) == 10
    jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(nnx.state(net)), before)
    assert net.down[0].norm1.use_running_average is False


def test_folded_networks_have_views_like_others():
    net = trained()
    image = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8)
    found = compile_probability_step(folded(net))(image)
    np.testing.assert_allclose(found, compile_probability_step(net)(image), atol=1e-4)
    np.testing.assert_array_equal(compile_predict_step(folded(net))(image), compile_predict_step(net)(image))


def test_averaged_weights_are_folded_with_the_networks_statistics():
    net = trained()
    how = optax.chain(optax.sgd(0.1), optimizers.average_parameters(0.9))
    optimizer = nnx.Optimizer(net, how, wrt=nnx.Param)
    update = nnx.jit(
        lambda net, optimizer: optimizer.update(net, jax.tree.map(jnp.ones_like, nnx.state(net, nnx.Param)))
    )
    for _ in range(2):  # the average is that of the first step until there is a second
        update(net, optimizer)
    averaged = optimizers.averaged(net, optimizer)
    found = run(folded(averaged))
    assert apart(found, run(evaluation(averaged))) < 1e-5
    assert apart(found, run(folded(net))) > 1e-5


def test_networks_in_bfloat16_stay_as_they_are():
    net = trained(dtype=jnp.bfloat16)
    np.testing.assert_array_equal(run(folded(net)), run(evaluation(net)))


def test_a_batch_norm_without_its_convolution_is_named():
    net = trained()
    net.down[0].norm3 = BatchNorm(4)
    with pytest.raises(ValueError, match=re.escape("ConvBlock has norm3, but no Conv conv3")):
        folded(net)


def test_wide_convolutions_take_winograd_on_a_cpu(monkeypatch):
    monkeypatch.setattr(wide, "WIDE", 8)
    called = []
    monkeypatch.setattr(wide, "winograd", lambda x, kernel: called.append(kernel.shape) or winograd(x, kernel))
    net = trained()
    assert apart(run(folded(net)), run(evaluation(net))) < 1e-5
    assert {shape[1:] for shape in called} == {(8, 8), (8, 16), (16, 16), (16, 8)}


def test_folded_convolutions_keep_dtype_and_strides():
    net = trained()
    conv = folded(net).down[0].conv1
    assert isinstance(conv, FoldedConv)
    assert (conv.dtype, conv.strides, conv.kernel.dtype) == (jnp.float32, 1, jnp.float32)
