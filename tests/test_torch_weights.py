import argparse
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxseg.base.errors import UserError
from jaxseg.nn.pth import read_pth
from jaxseg.nn.torch_weights import architecture, from_torch, to_torch
from jaxseg.nn.unet import UNet

KINDS = [("transpose", True), ("transpose", False), ("bilinear", True), ("bilinear", False)]


def unet(seed: int = 0, **options) -> UNet:
    """A small U-Net in which no array is constant, so that every one shows whether it was moved."""
    net = nnx.eval_shape(lambda: UNet((2, 4, 6), 3, 2, **options, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(seed)
    nnx.update(net, jax.tree.map(lambda x: jnp.asarray(rng.random(x.shape), x.dtype), nnx.state(net)))
    return net


def leaves(net: nnx.Module) -> list[np.ndarray]:
    return [np.array(x) for x in jax.tree.leaves(nnx.state(net))]


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return len(a) == len(b) and all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in zip(a, b))


@pytest.mark.parametrize(("upsample", "conv_bias"), KINDS)
def test_round_trip_keeps_every_bit(upsample, conv_bias):
    options = {"upsample": upsample, "conv_bias": conv_bias}
    source, target = unet(0, **options), unet(1, **options)
    assert not same(leaves(source), leaves(target))
    from_torch(target, to_torch(source))
    assert same(leaves(target), leaves(source))


@pytest.mark.parametrize(("upsample", "conv_bias"), KINDS)
def test_names_and_shapes_match_the_pytorch_network(upsample, conv_bias):
    pytest.importorskip("torch")
    from parity.reference.unet import UNet as ReferenceUNet

    reference = ReferenceUNet(3, 2, (2, 4, 6), upsample, conv_bias).state_dict()
    expected = {k: tuple(v.shape) for k, v in reference.items() if not k.endswith("num_batches_tracked")}
    assert {k: v.shape for k, v in to_torch(unet(upsample=upsample, conv_bias=conv_bias)).items()} == expected


def test_to_torch_uses_milesials_names_and_pytorch_layouts():
    net = unet()
    found = to_torch(net)
    assert len(found) == 5 * 2 * 6 + 2 * 2 + 2  # blocks of 2 convolutions and BatchNorms, up-convolutions, the head
    conv, up = net.down[1].conv1.kernel[...], net.up[0].up.kernel[...]
    pairs = {
        "down1.maxpool_conv.1.double_conv.0.weight": np.einsum("hwio->oihw", conv),
        "up1.up.weight": np.einsum("hwio->iohw", up),
        "up1.up.bias": net.up[0].up.bias[...],
        "inc.double_conv.1.running_mean": net.down[0].norm1.mean[...],
        "inc.double_conv.4.running_var": net.down[0].norm2.var[...],
        "up2.conv.double_conv.3.bias": net.up[1].block.conv2.bias[...],
        "up2.conv.double_conv.4.weight": net.up[1].block.norm2.scale[...],
        "outc.conv.weight": np.einsum("hwio->oihw", net.head.kernel[...]),
    }
    for name, array in pairs.items():
        np.testing.assert_array_equal(found[name], array)


def test_gradients_have_the_names_of_their_parameters():
    net = unet()
    grads = jax.tree.map(jnp.zeros_like, nnx.state(net, nnx.Param))
    assert to_torch(grads).keys() == {k for k in to_torch(net) if "running" not in k}


def test_from_torch_lists_all_problems_and_changes_nothing():
    net = unet(0)
    before, state = leaves(net), to_torch(unet(1))
    del state["inc.double_conv.0.weight"], state["up2.up.bias"]
    state["outc.conv.weight"] = np.zeros((5, 2, 1, 1))
    state["down2.maxpool_conv.1.double_conv.1.weight"] = np.zeros(3)
    state["up9.conv.double_conv.0.weight"] = state["head"] = np.zeros(1)
    with pytest.raises(UserError) as error:
        from_torch(net, state)
    assert sorted(str(error.value).splitlines()[1:]) == [
        "  down2.maxpool_conv.1.double_conv.1.weight has shape (3,), this network needs (6,)",
        "  head belongs nowhere in this network",
        "  missing inc.double_conv.0.weight",
        "  missing up2.up.bias",
        "  outc.conv.weight has shape (5, 2, 1, 1), this network needs (2, 2, 1, 1)",
        "  up9.conv.double_conv.0.weight belongs nowhere in this network",
    ]
    assert same(leaves(net), before)


def test_transposed_kernel_is_not_taken_for_a_plain_one():
    """(in, out) of an up-convolution is the other way round than (out, in) of a convolution, and the shapes tell."""
    state = to_torch(unet())
    state["up1.up.weight"] = state["up1.up.weight"].swapaxes(0, 1)
    with pytest.raises(UserError, match=r"up1.up.weight has shape \(4, 6, 2, 2\), this network needs \(6, 4, 2, 2\)"):
        from_torch(unet(), state)


def test_from_torch_shares_no_memory_with_the_source():
    net = unet(0)
    state = {name: np.array(array) for name, array in to_torch(unet(1)).items()}
    from_torch(net, state)
    before = leaves(net)
    for array in state.values():
        array += 1
    assert same(leaves(net), before)


def test_to_torch_returns_writable_copies():
    net = unet()
    before = leaves(net)
    for array in to_torch(net).values():
        array += 1
    assert same(leaves(net), before)


def test_counters_and_mask_values_are_ignored():
    net, state = unet(0), to_torch(unet(1))
    state |= {"inc.double_conv.1.num_batches_tracked": np.int64(7), "mask_values": [0, 1]}
    from_torch(net, state)
    assert same(leaves(net), leaves(unet(1)))


def test_from_torch_casts_to_the_dtypes_of_the_network():
    net, given = unet(0, param_dtype=jnp.bfloat16), to_torch(unet(1))
    from_torch(net, given)
    for name, array in to_torch(net).items():
        assert array.dtype == jnp.bfloat16
        np.testing.assert_array_equal(array, given[name].astype(jnp.bfloat16))


def test_from_torch_takes_tensors_and_pytorch_loads_the_arrays():
    torch = pytest.importorskip("torch")
    from parity.reference.unet import UNet as ReferenceUNet

    torch.manual_seed(0)
    reference, copy, net = ReferenceUNet(3, 2, (2, 4, 6)), ReferenceUNet(3, 2, (2, 4, 6)), unet()
    from_torch(net, reference.state_dict())
    before = leaves(net)
    copy.load_state_dict({name: torch.from_numpy(array) for name, array in to_torch(net).items()}, strict=False)
    for (name, ours), theirs in zip(copy.state_dict().items(), reference.state_dict().values()):
        assert torch.equal(ours, theirs), name
    with torch.no_grad():  # training goes on in PyTorch
        for tensor in [*reference.parameters(), *copy.parameters(), *reference.buffers(), *copy.buffers()]:
            tensor.add_(1)
    assert same(leaves(net), before)


# Order of the colors


@pytest.mark.parametrize(("inputs", "order"), [(3, [2, 1, 0]), (4, [2, 1, 0, 3])])
def test_colors_are_turned_in_the_first_convolution_alone_and_back(inputs, order):
    net, copy = (UNet((2, 4), inputs, 2, rngs=nnx.Rngs(seed)) for seed in (0, 1))
    plain, rgb = to_torch(net), to_torch(net, "rgb")
    first = "inc.double_conv.0.weight"
    np.testing.assert_array_equal(rgb[first], plain[first][:, order])
    assert all(np.array_equal(rgb[name], plain[name]) for name in plain if name != first)
    from_torch(copy, rgb, "rgb")
    assert same(leaves(copy), leaves(net))


@pytest.mark.parametrize("inputs", [1, 2, 5])
def test_bands_that_are_no_colors_are_not_turned(inputs):
    net = UNet((2, 4), inputs, 2, rngs=nnx.Rngs(0))
    for name, array in to_torch(net).items():
        np.testing.assert_array_equal(to_torch(net, "rgb")[name], array)


# Files of PyTorch


def write(path, state):
    torch = pytest.importorskip("torch")
    torch.save({name: torch.from_numpy(x) if isinstance(x, np.ndarray) else x for name, x in state.items()}, path)
    return path


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "net.", "module._orig_mod."])
def test_read_pth_reads_a_file_of_milesials_trainer(tmp_path, prefix):
    net, state = unet(0), to_torch(unet(1))
    state |= {"inc.double_conv.1.num_batches_tracked": np.array(7)}
    named = {prefix + name: array for name, array in state.items()} | {"mask_values": [0, 1]}
    from_torch(net, read_pth(write(tmp_path / "checkpoint_epoch5.pth", named)))
    assert same(leaves(net), leaves(unet(1)))


def test_read_pth_returns_half_precision_as_float32(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.tensor([0.5, -2.0], dtype=torch.bfloat16)}, tmp_path / "x.pth")
    found = read_pth(tmp_path / "x.pth")["w"]
    assert found.dtype == np.float32
    assert found.tolist() == [0.5, -2]


def test_read_pth_names_a_file_without_state_dict(tmp_path):
    torch = pytest.importorskip("torch")
    missing, text, whole, other = (tmp_path / name for name in ("none.pth", "text.pth", "whole.pth", "other.pth"))
    text.write_text("hello")
    torch.save(torch.nn.Linear(2, 2), whole)
    torch.save({"epoch": 3}, other)
    for path, reason in (
        (missing, "no such file"),
        (text, r"not a file of torch.save\(model.state_dict\(\), ...\)"),
        (whole, r"not a file of torch.save\(model.state_dict\(\), ...\)"),
        (other, r"holds no state_dict; save one with torch.save\(model.state_dict\(\), 'other.pth'\)"),
    ):
        with pytest.raises(UserError, match=reason) as caught:
            read_pth(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "net", "ema"])
def test_read_pth_unwraps_what_trainers_save_beside_the_weights(tmp_path, key):
    torch = pytest.importorskip("torch")
    state = {name: torch.nn.Parameter(torch.from_numpy(array)) for name, array in to_torch(unet(1)).items()}
    beside = {"epoch": 3, "loss": torch.tensor(0.1), "class_weights": torch.ones(2), "args": argparse.Namespace(lr=1)}
    beside["optimizer"] = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
    torch.save(beside | {key: state}, tmp_path / "x.pth")
    net = unet(0)
    from_torch(net, read_pth(tmp_path / "x.pth"))
    assert same(leaves(net), leaves(unet(1)))


def test_read_pth_refuses_what_it_would_have_to_guess_and_names_the_keys(tmp_path):
    torch = pytest.importorskip("torch")
    weights, path = {"w": torch.ones(2)}, tmp_path / "x.pth"
    for held, reason in (
        ({"model": weights, "ema": weights}, r"several state_dicts: model, ema. .*torch.load\('x.pth'\)\['model'\]"),
        ({"generator": weights, "epoch": 3}, "Found: generator, epoch"),
        ([1, 2], "but a list"),
        ({"w": torch.nn.Linear(1, 1)}, r"objects of torch\.nn\.modules\.linear\.Linear, and reading them runs code"),
    ):
        torch.save(held, path)
        with pytest.raises(UserError, match=reason):
            read_pth(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_read_pth_refuses_weights_that_are_not_finite(tmp_path, value):
    state = to_torch(unet(1))
    state["outc.conv.bias"][0] = value
    with pytest.raises(UserError, match=r"1 of \d+ arrays hold NaN or infinity, such as outc\.conv\.bias"):
        read_pth(write(tmp_path / "x.pth", state))


def test_read_pth_without_pytorch_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match="pip install torch"):
        read_pth(tmp_path / "x.pth")


@pytest.mark.parametrize("upsample", ["transpose", "bilinear"])
@pytest.mark.parametrize("conv_bias", [True, False])
def test_architecture_is_read_off_names_and_shapes(upsample, conv_bias):
    net = UNet((2, 4, 6), 5, 3, upsample=upsample, conv_bias=conv_bias, rngs=nnx.Rngs(0))
    assert architecture(to_torch(net)) == {
        "--encoder": None,
        "--widths": [2, 4, 6],
        "--upsample": upsample,
        "--conv-bias": conv_bias,
        "channels": 5,
        "classes": 3,
    }


def test_architecture_of_other_names_is_empty():
    assert architecture({"encoder.conv1.weight": np.zeros((2, 3, 3, 3))}) == {}
