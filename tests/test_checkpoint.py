"""What is saved comes back to the bit, and a run that is killed while it saves still has a checkpoint."""

import functools
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxseg import config, model, optim
from jaxseg.checkpoint import Checkpoints, Progress, load_model
from jaxseg.config import Config, Model, UserError
from jaxseg.step import loss_fn

SETTINGS = Config(model=Model(widths=(2, 4), upsample="bilinear", conv_bias=False))
DESCRIPTION = {"classes": ["soil", "wheat", "maize"], "in_channels": 5}
ADAM = optim.adam(1e-2)
PROGRESS = Progress(
    3, 7, {"loss": 0.1 + 0.2, "confusion": [[1, 2], [3, 4]]}, {"epoch": 2, "validation": {"miou": 1 / 3}}
)


@functools.cache
def network(seed):
    return model.build(SETTINGS.model, in_channels=5, classes=3, seed=seed)


def build(seed=0, tx=ADAM):
    """A network and its optimizer before the first step."""
    net = nnx.clone(network(seed))
    return net, nnx.Optimizer(net, tx, wrt=nnx.Param)


@nnx.jit
def take_step(net, optimizer, batch):
    grads = nnx.grad(loss_fn, has_aux=True)(net, batch)[0]
    optimizer.update(net, grads)


@nnx.jit
def predict(net, image):
    return net(image)


def arrays(*things) -> list[tuple]:
    """(path, type, shape, bytes) of every array, parameters, statistics and moments alike."""
    leaves = [leaf for thing in things for leaf in jax.tree.leaves_with_path(nnx.to_pure_dict(nnx.state(thing)))]
    return [(jax.tree_util.keystr(path), x.dtype.name, x.shape, np.asarray(x).tobytes()) for path, x in leaves]


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(0)
    return [
        {
            "image": rng.integers(0, 256, (2, 4, 4, 5), np.uint8),
            "mask": rng.integers(0, 3, (2, 4, 4), np.uint8),
            "valid": np.array([True, True]),
        }
        for _ in range(3)
    ]


@pytest.fixture(scope="module")
def steps(batches):
    """Networks and optimizers after 2 and after 3 real steps, and their arrays."""
    states = {}
    for count in (2, 3):
        net, optimizer = build()
        for batch in batches[:count]:
            take_step(net, optimizer, batch)
        states[count] = (net, optimizer, arrays(net, optimizer))
    return states


@pytest.fixture
def checkpoints(tmp_path):
    made = Checkpoints(tmp_path, SETTINGS, DESCRIPTION)
    yield made
    made.close()


def reopen(run) -> Checkpoints:
    return Checkpoints(run, SETTINGS, DESCRIPTION)


def test_steps_leave_nothing_at_its_first_value(steps):
    names = {name for name, *_ in steps[2][2]}
    first = {name: data for name, *_, data in arrays(*build())}
    moved = {name for name, *_, data in steps[2][2] if data != first[name]}
    assert moved == names  # parameters, means, variances, both moments and the counts: else the tests below say little
    assert any("mu" in name for name in names)
    assert any("'var'" in name for name in names)


@pytest.mark.parametrize("which", ["last", "best"])
def test_what_is_saved_comes_back_to_the_bit(steps, checkpoints, tmp_path, which):
    net, optimizer, expected = steps[2]
    checkpoints.save(which, 2, net, optimizer, PROGRESS)
    other, other_optimizer = build(seed=1)
    assert arrays(other, other_optimizer) != expected
    assert reopen(tmp_path).restore(which, other, other_optimizer) == PROGRESS
    assert arrays(other, other_optimizer) == expected


def test_training_goes_on_from_a_checkpoint_to_the_same_bits(steps, checkpoints, batches):
    checkpoints.save("last", 2, *steps[2][:2], PROGRESS)
    net, optimizer = build(seed=1)
    checkpoints.restore("last", net, optimizer)
    take_step(net, optimizer, batches[2])
    assert arrays(net, optimizer) == steps[3][2]


@pytest.mark.parametrize("tx", [optim.sgd(0.1, 0.9, nesterov=True), optim.adamw(1e-3)], ids=["sgd", "adamw"])
def test_every_optimizers_state_comes_back(batches, checkpoints, tx):
    net, optimizer = build(tx=tx)
    grads = jax.tree.map(lambda x: x + 0.5, nnx.state(net, nnx.Param))
    optimizer.update(net, grads)
    checkpoints.save("last", 1, net, optimizer, Progress())
    other = build(seed=1, tx=tx)
    checkpoints.restore("last", *other)
    assert arrays(*other) == arrays(net, optimizer)


def test_only_the_newest_of_each_is_kept(steps, checkpoints, tmp_path):
    checkpoints.save("best", 1, *steps[2][:2], Progress(1))
    for step in (1, 2, 3):
        checkpoints.save("last", step, *steps[3][:2], Progress(step))
    assert [path.name for path in (tmp_path / "checkpoints/last").iterdir()] == ["3"]
    assert [path.name for path in (tmp_path / "checkpoints/best").iterdir()] == ["1"]
    assert checkpoints.restore("last", *build()) == Progress(3)
    assert checkpoints.restore("best", *build()) == Progress(1)


def test_a_model_is_loaded_from_its_folder_alone(steps, checkpoints, tmp_path, batches):
    net, optimizer, _ = steps[3]
    checkpoints.save("best", 3, net, optimizer, PROGRESS)
    loaded, description = load_model(tmp_path)
    assert description == DESCRIPTION
    assert arrays(loaded) == arrays(net)
    image = jnp.asarray(batches[0]["image"][:, :3, :3] / 255, jnp.float32)
    expected = predict(nnx.view(net, use_running_average=True), image)
    assert np.array_equal(predict(loaded, image), expected)
    assert not np.array_equal(predict(nnx.clone(net), image), expected)  # with the batch's own statistics
    assert arrays(loaded) == arrays(load_model(tmp_path)[0])  # and predicting changes nothing


def test_the_last_checkpoint_is_loaded_when_it_is_asked_for(steps, checkpoints, tmp_path):
    checkpoints.save("best", 2, *steps[2][:2], Progress())
    checkpoints.save("last", 3, *steps[3][:2], Progress())
    assert arrays(load_model(tmp_path)[0]) == arrays(steps[2][0])
    assert arrays(load_model(tmp_path, "last")[0]) == arrays(steps[3][0])


def test_a_checkpoint_knows_the_settings_it_was_made_with(steps, checkpoints, tmp_path):
    checkpoints.save("last", 2, *steps[2][:2], Progress())
    loaded, _ = load_model(tmp_path, "last")
    config.save(Config(), tmp_path / "config.json")  # of another network
    assert arrays(load_model(tmp_path, "last")[0]) == arrays(loaded)


# what is not there


@pytest.mark.parametrize("which", ["last", "best"])
def test_a_run_without_a_checkpoint_says_so(checkpoints, tmp_path, which):
    for attempt in (lambda: checkpoints.restore(which, *build()), lambda: load_model(tmp_path, which)):
        with pytest.raises(UserError) as caught:
            attempt()
        assert str(tmp_path / "checkpoints" / which) in str(caught.value)
        assert "no checkpoint" in str(caught.value)


def test_loading_from_a_folder_that_is_no_run_is_refused_and_makes_nothing(tmp_path):
    for run in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError) as caught:
            load_model(run)
        assert str(run) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["it's a run", "día 田", "lr{1}"])
def test_a_folder_of_any_name_keeps_its_checkpoints(steps, tmp_path, name):
    checkpoints = reopen(tmp_path / name)
    checkpoints.save("last", 2, *steps[2][:2], PROGRESS)
    assert arrays(load_model(tmp_path / name, "last")[0]) == arrays(steps[2][0])
    checkpoints.close()


@pytest.mark.parametrize("name", ["lr[1]", "[a]/run"])
def test_a_folder_whose_checkpoints_could_not_be_read_is_refused(tmp_path, name):
    """Orbax takes brackets for a pattern: it would save without a word what nothing can restore."""
    with pytest.raises(UserError) as caught:
        reopen(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


# killed while saving


class Killed(BaseException):
    """Nothing catches it, as nothing catches kill -9."""


def leave_off(monkeypatch, module, name, after):
    """Makes `module.name` raise `Killed` at its call number `after`, counted from 0, and at every later one."""
    real, calls = getattr(module, name), []

    def killed(*args, **kwargs):
        calls.append(args)
        if len(calls) > after:
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, killed)


# Orbax writes `3.orbax-checkpoint-tmp`, renames its three parts and then itself to `3`, and only then deletes `2`
MOMENTS = {f"before rename {i + 1}": (os, "rename", i, 2) for i in range(4)} | {
    "before the old one is deleted": (shutil, "rmtree", 0, 3),
    "while the old one is deleted": (os, "rmdir", 1, 3),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_killed_while_it_saves_has_a_whole_checkpoint(steps, tmp_path, monkeypatch, moment):
    module, name, after, survivor = MOMENTS[moment]
    checkpoints = reopen(tmp_path)
    checkpoints.save("last", 2, *steps[2][:2], Progress(2))
    with monkeypatch.context() as patch:
        leave_off(patch, module, name, after)
        with pytest.raises(Killed):
            checkpoints.save("last", 3, *steps[3][:2], Progress(3))
    folder = tmp_path / "checkpoints/last"
    assert len(list(folder.iterdir())) == 2  # the old one, and one half written or not yet deleted

    again, (net, optimizer) = reopen(tmp_path), build(seed=1)
    assert again.restore("last", net, optimizer) == Progress(survivor)
    assert arrays(net, optimizer) == steps[survivor][2]
    assert arrays(load_model(tmp_path, "last")[0]) == arrays(net)

    again.save("last", 3, *steps[3][:2], Progress(3))
    again.save("last", 4, *steps[2][:2], Progress(4))
    assert [path.name for path in folder.iterdir()] == ["4"]
    assert again.restore("last", net, optimizer) == Progress(4)
    assert arrays(net, optimizer) == steps[2][2]
    again.close()
