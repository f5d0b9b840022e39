"""U-Nets with a ResNet as encoder: the network, its pretrained weights, and how it is fine-tuned."""

import dataclasses
import functools
import hashlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxseg.base import cli, config
from jaxseg.base.config import Config, Data, Model, Optimization, Run
from jaxseg.base.errors import UserError
from jaxseg.learn import optimizers
from jaxseg.nn import encoder_unet, unet
from jaxseg.nn.encoder_unet import EncoderUNet, with_frozen_encoder
from jaxseg.nn.torch_weights import encoder_from_torch, from_torch, to_torch, torch_name
from jaxseg.runs import pretrained
from jaxseg.runs.checkpoint import Checkpoints, Progress, load_model
from jaxseg.runs.weights import load_encoder, load_weights
from jaxseg.training import loop
from jaxseg.training.loop import fit


@functools.cache
def shapes(channels: int) -> tuple[nnx.GraphDef, nnx.State]:
    """A thin network of shapes and dtypes only."""
    return nnx.split(nnx.eval_shape(lambda: EncoderUNet("resnet18", channels, 2, base=4, rngs=nnx.Rngs(0))))


def network(channels: int = 3, seed: int = 0) -> EncoderUNet:
    """A thin network with drawn arrays, so that no two of them are equal."""
    graph, state = shapes(channels)
    rng = np.random.default_rng(seed)
    return nnx.merge(graph, jax.tree.map(lambda x: jnp.asarray(rng.uniform(0.5, 1, x.shape), x.dtype), state))


def torchvision(net: EncoderUNet) -> dict[str, np.ndarray]:
    """The encoder's arrays as torchvision saves them, with a classifier."""
    state = {k.removeprefix("encoder."): x for k, x in to_torch(net).items() if k.startswith("encoder.")}
    return state | {"fc.weight": np.ones((5, 32), np.float32), "fc.bias": np.ones(5, np.float32)}


# The network


@pytest.mark.parametrize(("name", "parameters", "keys"), [("resnet18", 14_328_354, 182), ("resnet34", 24_436_514, 278)])
def test_networks_have_the_size_and_names_of_segmentation_models_pytorch(name, parameters, keys):
    net = nnx.eval_shape(lambda: unet.unet_from(Model(encoder=name), in_channels=3, classes=2, seed=0))
    assert net.parameters == parameters
    names = [torch_name(path)[0] for path, _ in nnx.to_flat_state(nnx.state(net))]
    norms = sum(key.endswith("running_mean") for key in names)
    assert len(names) + norms == keys  # each BatchNorm has a counter in PyTorch
    assert {"encoder.conv1.weight", "encoder.bn1.running_var", "encoder.layer2.0.downsample.1.bias"} <= set(names)
    assert {"decoder.blocks.4.conv2.1.weight", "segmentation_head.0.bias"} <= set(names)
    assert "encoder.layer1.0.downsample.0.weight" not in names


@pytest.mark.parametrize("size", [(32, 32), (33, 64), (75, 50)])
def test_logits_have_the_size_of_the_image(size):
    shape = nnx.eval_shape(lambda net, x: net(x), network(), jnp.zeros((2, *size, 3))).shape
    assert shape == (2, *size, 2)


def test_images_that_are_too_small_or_of_other_channels_are_refused():
    for shape in ((1, 31, 64, 3), (1, 64, 64, 4)):
        with pytest.raises(ValueError, match="32 pixels a side or more with 3 channels"):
            network()(jnp.zeros(shape))


def test_a_frozen_encoder_shares_its_arrays_and_gets_no_gradient():
    net = network()
    view = with_frozen_encoder(net)
    assert view.encoder.conv1.kernel is net.encoder.conv1.kernel
    assert view.decoder[0].block.norm1.use_running_average is False
    graph, parameters, rest = nnx.split(view, nnx.Param, ...)
    x = jnp.asarray(np.random.default_rng(0).random((2, 32, 32, 3)), jnp.float32)

    def loss(parameters):
        merged = nnx.merge(graph, parameters, rest, copy=True)
        return merged(x).sum(), nnx.state(merged, nnx.BatchStat)

    grads, after = jax.jit(jax.grad(loss, has_aux=True))(parameters)
    assert not any(np.any(g) for g in jax.tree.leaves(grads["encoder"]))
    assert np.any(grads["decoder"][0]["block"]["conv1"]["kernel"][...])
    before = nnx.state(net, nnx.BatchStat)
    assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (after["encoder"], before["encoder"]))))
    assert all(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (after["decoder"], before["decoder"]))))


# Weights


def test_a_state_dict_goes_out_and_comes_back():
    net, other = network(seed=1), network(seed=2)
    from_torch(other, to_torch(net))
    assert all(np.array_equal(a, b) for a, b in zip(*(jax.tree.leaves(nnx.state(x)) for x in (net, other))))


@pytest.mark.parametrize("prefix", ["", "encoder.", "encoder.model.", "backbone."])
def test_an_encoders_weights_are_found_by_the_names_of_each_library(prefix):
    net, other = network(seed=1), network(seed=2)
    state = {f"{prefix}{name}": x for name, x in torchvision(net).items() if not name.startswith("fc.")}
    decoder = {f"decoder.blocks.{i}.conv1.0.weight": np.zeros(1) for i in range(2)}
    given, kept = to_torch(net), to_torch(other)
    assert encoder_from_torch(other, state | decoder, "rgb") == list(decoder)
    for name, x in to_torch(other).items():
        turned = name == "encoder.conv1.weight"
        expected = given[name] if name.startswith("encoder.") else kept[name]
        np.testing.assert_array_equal(x, expected[:, ::-1] if turned else expected)


def test_weights_of_another_encoder_are_refused_with_every_name_and_change_nothing():
    net, state = network(), torchvision(network(seed=1))
    before = to_torch(net)
    state["layer9.conv.weight"] = state.pop("layer1.0.conv1.weight")
    state["bn1.bias"] = np.zeros(7, np.float32)
    with pytest.raises(UserError) as error:
        encoder_from_torch(net, state)
    for part in ("missing encoder.layer1.0.conv1.weight", "encoder.layer9.conv.weight belongs nowhere", "(7,)"):
        assert part in str(error.value)
    assert all(np.array_equal(x, before[name]) for name, x in to_torch(net).items())


def test_weights_for_as_many_bands_are_taken_as_they_are():
    net = network(channels=13)
    state = torchvision(network(channels=13, seed=3))
    encoder_from_torch(net, state, "bgr")
    np.testing.assert_array_equal(to_torch(net)["encoder.conv1.weight"], state["conv1.weight"])


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder of `save_pretrained` with a whole network."""
    numpy = pytest.importorskip("safetensors.numpy")
    numpy.save_file(to_torch(network(seed=5)), tmp_path / "model.safetensors")
    held = {"encoder_name": "resnet18", "encoder_weights": "imagenet", "in_channels": 3, "classes": 2}
    (tmp_path / "config.json").write_text(json.dumps(held))
    return tmp_path


def test_load_takes_a_folder_of_save_pretrained(folder):
    net = network()
    load_weights(net, folder, "bgr")
    expected = to_torch(network(seed=5))
    assert all(np.array_equal(x, expected[name]) for name, x in to_torch(net).items())
    with pytest.raises(UserError, match=r"--encoder +resnet18 +-"):
        load_weights(unet.UNet((2, 4), rngs=nnx.Rngs(0)), folder)
    load_encoder(net, folder)  # the decoder's are left out


def test_a_broken_safetensors_file_is_named(tmp_path):
    pytest.importorskip("safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"x\.safetensors"):
        load_encoder(network(), tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="no such file"):
        load_encoder(network(), tmp_path / "y.safetensors")


# Normalization


def settled(folder: Path, **data) -> Config:
    run = Run(encoder_weights=str(folder))
    return pretrained.settled(Config(model=Model(encoder="resnet18"), run=run, data=Data(**data)))


def test_a_run_takes_the_normalization_of_its_weights_and_notes_their_digest(folder):
    found = settled(folder)
    assert (found.data.normalize, found.data.encoder_mean) == ("encoder", (0.485, 0.456, 0.406))
    assert found.run.encoder_sha256 == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert pretrained.settled(found) == found
    assert settled(folder, normalize="unit").data.normalize == "unit"
    with pytest.raises(UserError, match="expected 0123"):
        pretrained.settled(dataclasses.replace(found, run=dataclasses.replace(found.run, encoder_sha256="0123")))


@pytest.mark.parametrize(
    ("held", "mean"),
    [
        ({"mean": [0.5, 0.4, 0.3], "std": [1, 1, 1]}, (0.5, 0.4, 0.3)),
        ({"mean": [0.5, 0.4, 0.3], "std": [1, 1, 1], "input_space": "BGR"}, (0.3, 0.4, 0.5)),
        ({"pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}, (0.5, 0.5, 0.5)),
        ({"architecture": "resnet18"}, (0.485, 0.456, 0.406)),
        ({"encoder_name": "resnet18", "encoder_weights": None}, ()),
    ],
)
def test_mean_and_deviation_come_from_the_folder_of_the_weights(folder, held, mean):
    (folder / "config.json").write_text(json.dumps(held))
    assert settled(folder).data.encoder_mean == mean


def test_a_damaged_description_of_weights_is_named(folder):
    (folder / "config.json").write_text('{"mean": "gray"')
    with pytest.raises(UserError, match=r"config\.json"):
        settled(folder)


# The Hub


def test_weights_on_the_hub_need_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"jaxseg\[hub\]"):
        pretrained.find("imagenet", "resnet18")


def test_weights_on_the_hub_cannot_be_had_offline_and_a_line_says_so(monkeypatch, tmp_path):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="hf:nobody/nothing: cannot be downloaded") as error:
        pretrained.find("hf:nobody/nothing", "resnet18")
    assert "\n" not in str(error.value)


def test_weights_in_the_hubs_cache_are_found_offline(monkeypatch, tmp_path):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repo = "smp-hub/resnet18.imagenet"
    revision = pretrained.REVISIONS[repo]
    snapshot = tmp_path / "models--smp-hub--resnet18.imagenet/snapshots" / revision
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text('{"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]}')
    (snapshot / "model.safetensors").write_bytes(b"weights")
    found = pretrained.find("imagenet", "resnet18")
    assert found.path == snapshot / "model.safetensors"
    assert found.standard == ((0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
    assert found.sha256 == hashlib.sha256(b"weights").hexdigest()


# Settings


def test_settings_that_do_not_go_together_are_named_at_once():
    wrong = ["--widths", "4", "8", "--upsample", "bilinear", "--no-conv-bias", "--freeze-encoder", "1"]
    with pytest.raises(UserError) as error:
        cli.parse(["--encoder", "resnet18", *wrong, "--encoder-lr-factor", "-1"])
    lines = str(error.value).splitlines()
    assert len(lines) == 3
    assert "--widths, --upsample, --no-conv-bias" in lines[0]
    assert "--freeze-encoder needs" in lines[1]
    with pytest.raises(UserError, match="--encoder-weights, --freeze-encoder: for --encoder"):
        cli.parse(["--encoder-weights", "imagenet", "--freeze-encoder", "1"])


def test_settings_of_the_encoders_rate_change_the_optimizer():
    params = {"encoder": jnp.zeros(2), "head": jnp.zeros(2)}

    def program(**change) -> str:
        tx = optimizers.optimizer_from(Optimization(optimizer="sgd", **change), optax.constant_schedule(0.1), 3)
        return str(jax.make_jaxpr(tx.update)(params, tx.init(params), params))

    made = [program(), program(encoder_lr_factor=0.5), program(encoder_lr_factor=0.25), program(freeze_encoder=1)]
    made.append(program(freeze_encoder=2))
    assert len(set(made)) == len(made)


# A run


@pytest.fixture
def weights(tmp_path) -> Path:
    numpy = pytest.importorskip("safetensors.numpy")
    state = {name: 0.2 * x if x.ndim == 4 else x for name, x in torchvision(network(seed=7)).items()}
    numpy.save_file(state, tmp_path / "resnet18.safetensors")
    return tmp_path / "resnet18.safetensors"


def settings(tiles: Path, weights: Path, out: Path) -> Config:
    return Config(
        data=Data(data=tiles, workers=0),
        model=Model(encoder="resnet18"),
        optimization=Optimization(
            epochs=2, batch_size=5, freeze_encoder=1, encoder_lr_factor=0.1, ema=0.5, warmup_epochs=0.0
        ),
        run=Run(out=out, encoder_weights=str(weights)),
    )


def arrays(run: Path) -> dict[str, np.ndarray]:
    return to_torch(load_model(run, "last")[0])


@pytest.mark.full  # the next test is its part about checkpoints
def test_a_fine_tuned_run_resumes_without_its_weights_file_to_the_same_bits(
    tiles_root, weights, tmp_path, monkeypatch, undrawn
):
    monkeypatch.setattr(encoder_unet, "BASE", 4)
    whole = fit(settings(tiles_root, weights, tmp_path / "whole"))
    noted = config.load(whole)
    assert noted.data.normalize == "encoder"
    assert noted.run.encoder_sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
    short = settings(tiles_root, weights, tmp_path / "short")
    exhausted = loop.is_exhausted
    # stopped after an epoch, with the schedule of two
    monkeypatch.setattr(loop, "is_exhausted", lambda o, progress: progress.epoch == 1)
    fit(short)
    frozen = arrays(tmp_path / "short")
    file = {f"encoder.{name}": x for name, x in torchvision(network(seed=7)).items() if "running" in name}
    assert all(np.array_equal(frozen[name], x) for name, x in file.items())
    monkeypatch.setattr(loop, "is_exhausted", exhausted)
    weights.unlink()
    fit(cli.parse(["--resume", str(tmp_path / "short"), "--workers", "0"]))
    one, other = arrays(whole), arrays(tmp_path / "short")
    assert all(np.array_equal(x, other[name]) for name, x in one.items())
    assert not np.array_equal(one["encoder.bn1.running_mean"], frozen["encoder.bn1.running_mean"])


def test_checkpoints_keep_the_optimizer_of_a_frozen_encoder(tmp_path, monkeypatch):
    monkeypatch.setattr(encoder_unet, "BASE", 4)
    saved = Config(model=Model(encoder="resnet18"), optimization=Optimization(freeze_encoder=1, encoder_lr_factor=0.5))
    description = {"classes": ["a", "b"], "in_channels": 3}

    def built(seed: int, value: float):
        net = unet.unet_from(saved.model, in_channels=3, classes=2, seed=seed)
        tx = optimizers.optimizer_from(saved.optimization, lambda step: 1e-3, 2)
        optimizer = nnx.Optimizer(net, tx, wrt=nnx.Param)
        nnx.update(optimizer, jax.tree.map(lambda x: jnp.full_like(x, value), nnx.state(optimizer)))
        return net, optimizer

    Checkpoints(tmp_path, saved, description).save("last", 3, *built(0, 3), Progress())
    net, optimizer = built(1, 0)
    Checkpoints(tmp_path, saved, description).restore("last", net, optimizer)
    right = built(0, 3)
    for found, expected in zip((net, optimizer), right):
        for x, y in zip(jax.tree.leaves(nnx.state(found)), jax.tree.leaves(nnx.state(expected)), strict=True):
            np.testing.assert_array_equal(x, y)
