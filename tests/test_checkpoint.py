"""What is saved comes back to the bit, and a run that is killed while it saves still has a checkpoint."""

import dataclasses
import errno
import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxseg.base import config, digests
from jaxseg.base.config import Config, Model, Optimization
from jaxseg.base.errors import DamagedCheckpoint, UserError
from jaxseg.learn import optimizers
from jaxseg.learn.step import loss_fn
from jaxseg.nn import unet
from jaxseg.nn.torch_weights import to_torch
from jaxseg.runs.checkpoint import Checkpoints, Progress, load_model, newest_step
from jaxseg.runs.orbax_folder import OrbaxFolder
from jaxseg.runs.weights import load_weights

SETTINGS = Config(model=Model(widths=(2, 4), upsample="bilinear", conv_bias=False))
READING = {"labels": {"values": [0, 1, 2]}, "normalize": "unit"}
DESCRIPTION = {"classes": ["soil", "wheat", "maize"], "in_channels": 5, "reading": READING, "tile": [4, 4]}
ADAM = optimizers.adam(1e-2)
PROGRESS = Progress(
    3, 7, {"loss": 0.1 + 0.2, "confusion": [[1, 2], [3, 4]]}, {"epoch": 2, "validation": {"miou": 1 / 3}}
)


FIRST, SECOND = Progress(1, best={"epoch": 0}), Progress(2, best={"epoch": 0})


@functools.cache
def network(seed):
    return unet.unet_from(SETTINGS.model, in_channels=5, classes=3, seed=seed)


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
    return Checkpoints(tmp_path, SETTINGS, DESCRIPTION)


def reopen(run) -> Checkpoints:
    return Checkpoints(run, SETTINGS, DESCRIPTION)


@pytest.fixture(scope="module")
def saved(steps, tmp_path_factory):
    """A run with two checkpoints: the best of 2 steps, the last of 3."""
    run = tmp_path_factory.mktemp("saved")
    checkpoints = reopen(run)
    checkpoints.save("best", 2, *steps[2][:2], FIRST)
    checkpoints.save("last", 3, *steps[3][:2], SECOND)
    return run


@pytest.fixture
def copied(saved, tmp_path):
    """Copies the best checkpoint of that run, of 2 steps, to a run that has no other."""

    def copy(which: str) -> Checkpoints:
        shutil.copytree(saved / "checkpoints/best", tmp_path / "checkpoints" / which)
        return reopen(tmp_path)

    return copy


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


@pytest.mark.parametrize("tx", [optimizers.sgd(0.1, 0.9, nesterov=True), optimizers.adamw(1e-3)], ids=["sgd", "adamw"])
def test_every_optimizers_state_comes_back(batches, checkpoints, tx):
    net, optimizer = build(tx=tx)
    grads = jax.tree.map(lambda x: x + 0.5, nnx.state(net, nnx.Param))
    nnx.jit(lambda net, optimizer, grads: optimizer.update(net, grads))(net, optimizer, grads)
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
    assert description == DESCRIPTION | {"checkpoint": "best"}
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


def test_a_checkpoint_knows_the_settings_it_was_made_with(copied, tmp_path):
    copied("last")
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


# Orbax renames the two parts in `3.tmp`; their digests are written, it becomes `3`, and only then `2` is deleted
MOMENTS = {f"before rename {i + 1}": (os, "rename", i, 2) for i in range(3)} | {
    "before the digests": (digests, "of_file", 3, 2),
    "before the old one is deleted": (shutil, "rmtree", 1, 3),
    "while the old one is deleted": (os, "rmdir", 1, 3),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_killed_while_it_saves_has_a_whole_checkpoint(steps, copied, tmp_path, monkeypatch, moment):
    module, name, after, survivor = MOMENTS[moment]
    checkpoints = copied("last")
    with monkeypatch.context() as patch:
        leave_off(patch, module, name, after)
        with pytest.raises(Killed):
            checkpoints.save("last", 3, *steps[3][:2], Progress(3))
    folder = tmp_path / "checkpoints/last"
    assert len(list(folder.iterdir())) == 2  # the old one, and one half written or not yet deleted

    again, (net, optimizer) = reopen(tmp_path), build(seed=1)
    assert again.restore("last", net, optimizer) == {2: FIRST, 3: Progress(3)}[survivor]
    assert arrays(net, optimizer) == steps[survivor][2]
    assert arrays(load_model(tmp_path, "last")[0]) == arrays(net)

    again.save("last", 3, *steps[3][:2], Progress(3))
    again.save("last", 4, *steps[2][:2], Progress(4))
    assert [path.name for path in folder.iterdir()] == ["4"]
    assert again.restore("last", net, optimizer) == Progress(4)
    assert arrays(net, optimizer) == steps[2][2]


# averages and plateaus


AVERAGED = dataclasses.replace(SETTINGS, optimization=Optimization(ema=0.5, schedule="plateau", optimizer="sgd"))


@pytest.fixture
def averaged(batches):
    """A network and its optimizer after 3 steps of a run with an average, and a rate scaled to a half."""
    tx = optimizers.optimizer_from(AVERAGED.optimization, lambda step: 0.5)
    net, optimizer = build(tx=tx)
    for batch in batches:
        take_step(net, optimizer, batch)
    optimizers.set_rate_scale(optimizer, 0.5)
    return net, optimizer, tx


def test_a_run_with_an_average_is_loaded_with_it(averaged, tmp_path):
    net, optimizer, tx = averaged
    checkpoints = Checkpoints(tmp_path, AVERAGED, DESCRIPTION)
    checkpoints.save("best", 3, net, optimizer, Progress())
    loaded, _ = load_model(tmp_path)
    assert arrays(loaded) == arrays(optimizers.averaged(net, optimizer))
    assert arrays(loaded) != arrays(net)
    assert loaded.parameters == net.parameters > 0
    statistics = [array for array in arrays(loaded) if "'mean'" in array[0] or "'var'" in array[0]]
    assert statistics == [array for array in arrays(net) if "'mean'" in array[0] or "'var'" in array[0]]

    again = build(seed=1, tx=tx)
    checkpoints.restore("best", *again)
    assert arrays(*again) == arrays(net, optimizer)
    assert float(optimizers.rate_scale(again[1])) == 0.5


# what does not fit


def test_a_run_goes_on_only_with_what_it_was_made_with(copied, tmp_path):
    """All that differs at once, in two columns, and nothing is changed."""
    copied("last")
    other = Checkpoints(
        tmp_path,
        dataclasses.replace(SETTINGS, model=Model((4, 8)), optimization=Optimization(ema=0.9)),
        {
            **DESCRIPTION,
            "classes": ["soil", "rice"],
            "reading": {"labels": {"values": [0, 7]}, "normalize": "imagenet"},
        },
    )
    net, optimizer = build()
    before = arrays(net, optimizer)
    with pytest.raises(UserError) as caught:
        other.restore("last", net, optimizer)
    lines = str(caught.value).splitlines()
    assert str(tmp_path / "checkpoints/last") in lines[0]
    assert [line.split() for line in lines[1:]] == [
        ["run", "has", "now"],
        ["class", "names", "soil", "wheat", "maize", "soil", "rice"],
        ["labels:", "values", "0", "1", "2", "0", "7"],
        ["images:", "normalize", "unit", "imagenet"],
        ["--widths", "2", "4", "4", "8"],
        ["--upsample", "bilinear", "transpose"],
        ["--conv-bias", "False", "True"],
        ["--ema", "-", "0.9"],
    ]
    assert len({line.index(now) for line, now in zip(lines[1:4], ("now", "soil rice", "0 7"))}) == 1
    assert arrays(net, optimizer) == before


def test_a_learning_rate_and_a_length_may_change(copied, tmp_path):
    copied("last")
    longer = dataclasses.replace(SETTINGS, optimization=Optimization(epochs=400, learning_rate=0.5))
    again = Checkpoints(tmp_path, longer, DESCRIPTION | {"classes": ("soil", "wheat", "maize")})  # of another type
    assert again.restore("last", *build()) == FIRST


def rewrite_meta(run, change) -> None:
    (path,) = run.glob("checkpoints/best/*/meta/metadata")
    meta = json.loads(path.read_text())
    change(meta)
    path.write_text(json.dumps(meta))
    forget_digests(path.parents[1])


def forget_digests(step: Path) -> None:
    """Leaves a checkpoint as earlier versions wrote it."""
    (step / "digests.json").unlink()
    path = step / "meta/metadata"
    path.write_text(json.dumps({name: x for name, x in json.loads(path.read_text()).items() if name != "digests"}))


def test_a_checkpoint_of_another_version_says_which(copied, tmp_path):
    copied("best")
    rewrite_meta(tmp_path, lambda meta: (meta.update(jaxseg="9.8.7"), meta["config"]["model"].update(attention=True)))
    with pytest.raises(UserError, match=r"written by jaxseg 9\.8\.7, and this one.*model\.attention") as caught:
        load_model(tmp_path)
    assert str(tmp_path / "checkpoints/best") in str(caught.value)


# damage

FILES = ("meta/metadata", "model/_METADATA", "model/manifest.ocdbt", "model/d/*", "optimizer/manifest.ocdbt")


@pytest.mark.parametrize("how", ["missing", "empty", "cut in half", "changed"])
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_checkpoint_is_refused_and_named(copied, tmp_path, capfd, file, how):
    """Not one of them is read as something else, and none prints a traceback."""
    checkpoints = copied("best")
    for path in tmp_path.glob(f"checkpoints/best/2/{file}"):
        data = path.read_bytes()
        if how == "missing":
            path.unlink()
        else:
            middle = len(data) // 2
            path.write_bytes(
                {"empty": b"", "cut in half": data[:middle]}.get(how, data[:middle] + b"\xff" + data[middle + 1 :])
            )
    net, optimizer = build()
    before = arrays(net, optimizer)
    attempts = [lambda: checkpoints.restore("best", net, optimizer)]
    if "optimizer" not in file:
        attempts.append(lambda: load_model(tmp_path))
    for attempt in attempts:
        with pytest.raises(UserError, match="damaged or incomplete") as caught:
            attempt()
        assert str(tmp_path / "checkpoints/best") in str(caught.value)
    assert arrays(net, optimizer) == before
    assert "Traceback" not in capfd.readouterr().err


def damage(run, which: str, file: str = "model/manifest.ocdbt") -> None:
    """Flips a bit in a file of a checkpoint."""
    (path,) = run.glob(f"checkpoints/{which}/*/{file}")
    flip(path, 8 * path.stat().st_size // 2)


def flip(path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def test_flipped_bit_in_any_file_is_found(copied, tmp_path, rng):
    checkpoints = copied("last")
    folder = OrbaxFolder(tmp_path / "checkpoints/last")
    files = [path for path in folder.path.rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        original = path.read_bytes()
        for bit in rng.integers(0, 8 * len(original), 5) if original else ():
            flip(path, int(bit))
            with pytest.raises(DamagedCheckpoint, match="checkpoints/last"):
                folder.check()
            path.write_bytes(original)
        path.unlink()
        if path.name != "digests.json":
            with pytest.raises(DamagedCheckpoint):
                folder.check()
        else:
            with pytest.raises(DamagedCheckpoint):
                checkpoints.resume(*build())
        path.write_bytes(original)
    folder.check()


def test_checkpoint_without_digests_is_read_if_an_earlier_version_wrote_it(steps, copied, tmp_path):
    checkpoints = copied("best")
    forget_digests(tmp_path / "checkpoints/best/2")
    assert arrays(load_model(tmp_path)[0]) == arrays(steps[2][0])
    net, optimizer = build(seed=1)
    assert checkpoints.resume(net, optimizer) == FIRST
    assert arrays(net, optimizer) == steps[2][2]


@pytest.fixture
def both(saved, tmp_path):
    """The checkpoints of a copy of that run."""
    return reopen(shutil.copytree(saved, tmp_path, dirs_exist_ok=True))


def test_newest_checkpoint_is_resumed(steps, both, capsys):
    net, optimizer = build(seed=1)
    assert both.resume(net, optimizer) == SECOND
    assert arrays(net, optimizer) == steps[3][2]
    both.save("best", 4, *steps[2][:2], PROGRESS)  # killed before the last one was saved too
    assert both.resume(net, optimizer) == PROGRESS
    assert both.restore("last", net, optimizer) == PROGRESS
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("file", ["optimizer/manifest.ocdbt", "digests.json"])  # any file: see the refusals above
def test_damaged_last_checkpoint_falls_back_to_the_best(steps, both, tmp_path, capsys, file):
    damage(tmp_path, "last", file)
    net, optimizer = build(seed=1)
    again = reopen(tmp_path)
    assert again.resume(net, optimizer) == FIRST
    assert arrays(net, optimizer) == steps[2][2]
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "checkpoints/last: cannot be read, it is damaged" in err
    assert "checkpoints/best is taken instead" in err
    assert [path.name for path in (tmp_path / "checkpoints/last").iterdir()] == ["2"]  # not the damaged one
    assert again.restore("last", *build()) == FIRST
    again.save("last", 3, *steps[3][:2], SECOND)
    assert reopen(tmp_path).resume(net, optimizer) == SECOND


def test_checkpoint_that_may_not_be_read_is_not_taken_for_a_damaged_one(both, tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(digests, "of_file", refuse)
    for attempt in (lambda: both.resume(*build()), lambda: load_model(tmp_path)):
        with pytest.raises(UserError, match=r"checkpoints/.*: cannot be read \(.*: Permission denied\)"):
            attempt()
    assert sorted(path.name for path in tmp_path.glob("checkpoints/*/*")) == ["2", "3"]


def test_damaged_best_checkpoint_is_told_and_forgotten(steps, both, tmp_path, capsys):
    damage(tmp_path, "best")
    net, optimizer = build(seed=1)
    assert reopen(tmp_path).resume(net, optimizer) == dataclasses.replace(SECOND, best=None)
    assert arrays(net, optimizer) == steps[3][2]
    assert "checkpoints/best" in (err := capsys.readouterr().err)
    assert "the best weights so far are lost" in err


def test_prediction_falls_back_with_a_line(steps, both, tmp_path, capsys):
    for which, other, number in (("best", "last", 3), ("last", "best", 2)):
        damage(tmp_path, which)
        net, description = load_model(tmp_path, which)
        assert arrays(net) == arrays(steps[number][0])
        assert description["checkpoint"] == other
        assert f"checkpoints/{other} is taken instead" in capsys.readouterr().err
        damage(tmp_path, which)  # again, which undoes it
    damage(tmp_path, "best", "optimizer/manifest.ocdbt")  # which it does not need
    assert load_model(tmp_path)[1]["checkpoint"] == "best"
    assert capsys.readouterr().err == ""


def test_two_damaged_checkpoints_are_both_named(both, tmp_path):
    damage(tmp_path, "best"), damage(tmp_path, "last")
    net, optimizer = build(seed=1)
    before = arrays(net, optimizer)
    for attempt in (lambda: load_model(tmp_path), lambda: reopen(tmp_path).resume(net, optimizer)):
        with pytest.raises(UserError, match=r"checkpoints/(best|last): (.|\n)*checkpoints/(best|last): (.|\n)*copy"):
            attempt()
    assert arrays(net, optimizer) == before


def test_checkpoint_that_training_replaces_while_it_is_read_is_read_again(steps, both, tmp_path, monkeypatch):
    real, calls = OrbaxFolder.meta, []

    def meta(folder):
        calls.append(folder)
        if len(calls) == 1:
            both.save("best", 4, *steps[3][:2], SECOND)
            raise DamagedCheckpoint("gone")
        return real(folder)

    monkeypatch.setattr(OrbaxFolder, "meta", meta)
    net, description = load_model(tmp_path)
    assert description["checkpoint"] == "best"
    assert arrays(net) == arrays(steps[3][0])


def test_run_without_any_checkpoint_begins_anew(checkpoints, tmp_path):
    (tmp_path / "checkpoints/last/3.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "checkpoints/best/3.tmp").mkdir()
    assert checkpoints.resume(*build()) is None
    assert newest_step(tmp_path) is None


def test_settings_that_a_bit_changed_are_named(both, tmp_path):
    run = dataclasses.replace(SETTINGS.run, seed=4)
    other = Checkpoints(tmp_path, dataclasses.replace(SETTINGS, run=run), DESCRIPTION)
    with pytest.raises(UserError, match=r"config\.json: has other settings(.|\n)*--seed +0 +4"):
        other.resume(*build())


def test_a_folder_inside_a_run_names_the_run(copied, tmp_path):
    copied("best")
    for inside in (tmp_path / "checkpoints", tmp_path / "checkpoints" / "best"):
        with pytest.raises(
            UserError, match="not the folder of a run, it has no checkpoints/best; did you mean"
        ) as caught:
            load_model(inside)
        assert str(caught.value).endswith(f"{tmp_path}?")


# other devices

WRITE = """
import sys, jax
from pathlib import Path
from flax import nnx
from jaxseg.base.config import Config, Model
from jaxseg.learn import optimizers
from jaxseg.nn import unet
from jaxseg.runs.checkpoint import Checkpoints, Progress

settings = Config(model=Model((2, 4), upsample="bilinear", conv_bias=False))
with jax.default_device(jax.devices()[2]):
    net = unet.unet_from(settings.model, in_channels=5, classes=3, seed=7)
    optimizer = nnx.Optimizer(net, optimizers.adam(1e-2), wrt=nnx.Param)
assert {x.device for x in jax.tree.leaves(nnx.state(net))} == {jax.devices()[2]}
Checkpoints(Path(sys.argv[1]), settings, {"classes": ["a", "b", "c"], "in_channels": 5}).save(
    "best", 1, net, optimizer, Progress()
)
"""


def test_a_checkpoint_is_read_where_the_device_that_wrote_it_is_not(tmp_path):
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=3", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", WRITE, str(tmp_path)], env=environment, check=True)
    assert len(jax.devices()) == 2
    loaded, _ = load_model(tmp_path)
    assert arrays(loaded) == arrays(unet.unet_from(SETTINGS.model, in_channels=5, classes=3, seed=7))


# weights to start from


def test_weights_of_a_run_are_a_start(steps, copied, tmp_path):
    copied("best")
    net = nnx.clone(network(1))
    load_weights(net, tmp_path)
    assert arrays(net) == arrays(steps[2][0])
    assert not net.down[0].norm1.use_running_average  # and it can be trained


def test_weights_of_another_network_are_refused_side_by_side(copied, tmp_path):
    copied("best")
    net = unet.unet_from(Model((2, 8)), in_channels=5, classes=2, seed=0)
    before = arrays(net)
    with pytest.raises(UserError) as caught:
        load_weights(net, tmp_path)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(str(tmp_path))
    assert [line.split() for line in lines[1:]] == [
        ["there", "here"],
        ["--widths", "2", "4", "2", "8"],
        ["--upsample", "bilinear", "transpose"],
        ["--conv-bias", "False", "True"],
        ["classes", "3", "2"],
    ]
    assert arrays(net) == before


def test_weights_of_a_pytorch_file_are_a_start_and_foreign_names_are_listed(tmp_path):
    torch = pytest.importorskip("torch")
    state = {f"module.{name}": torch.from_numpy(x) for name, x in to_torch(network(1)).items()}
    torch.save(state | {"mask_values": [0, 1]}, tmp_path / "unet.pth")
    net = nnx.clone(network(0))
    load_weights(net, tmp_path / "unet.pth")
    assert arrays(net) == arrays(network(1))

    torch.save({"encoder.weight": torch.zeros(3)}, tmp_path / "foreign.pth")
    with pytest.raises(UserError) as caught:
        load_weights(net, tmp_path / "foreign.pth")
    assert str(tmp_path / "foreign.pth") in str(caught.value)
    assert "missing inc.double_conv.0.weight" in str(caught.value)
    assert "encoder.weight belongs nowhere in this network" in str(caught.value)
    assert arrays(net) == arrays(network(1))


@pytest.mark.parametrize(
    ("inputs", "channels", "reads", "turned"),
    [(3, "rgb", "bgr", True), (3, "bgr", "bgr", False), (3, "rgb", "bands", False), (5, "rgb", "bgr", False)],
)
def test_weights_of_a_pytorch_file_are_turned_from_rgb_to_bgr(tmp_path, capsys, inputs, channels, reads, turned):
    torch = pytest.importorskip("torch")
    net, source = (unet.unet_from(Model(widths=(2, 4)), in_channels=inputs, classes=2, seed=seed) for seed in (0, 1))
    torch.save({name: torch.from_numpy(x) for name, x in to_torch(source).items()}, tmp_path / "unet.pth")
    load_weights(net, tmp_path / "unet.pth", channels, reads)
    found, given = net.down[0].conv1.kernel[...], source.down[0].conv1.kernel[...]
    np.testing.assert_array_equal(found, given[:, :, ::-1] if turned else given)
    assert ("turned here to blue, green, red" in capsys.readouterr().out) == turned
