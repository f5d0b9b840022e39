"""Every setting changes what is built from it, in each choice to which it belongs, and in no other.

A setting that a builder forgets changes nothing, and no comparison of the pieces would show it. The tables are
complete: a new setting has to be entered. Where it can, a test compares programs (jaxprs), which need not be compiled.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from image_files import write

from jaxseg.base import cli
from jaxseg.base.config import Augmentation, Data, Model, Optimization
from jaxseg.learn import augment, losses, optimizers, plan, step
from jaxseg.nn import unet
from jaxseg.training import dataset

EPOCH_STEPS = 5
BASE = Optimization(
    epochs=12, milestones=(3.0, 7.0), rates=(3e-3, 2e-3, 1e-3), warmup_epochs=1.0, gamma=0.5, period=3.0,
    final_lr=4e-4, begin_lr=1e-5, schedule_per="step", clip_norm=0.5, ema=0.9, weight_decay=0.1, ohem=0.5,
    label_smoothing=0.1,
)  # fmt: skip
OTHER = {  # another value of every setting of the optimization
    "epochs": 13, "steps": 41, "schedule_per": "epoch", "learning_rate": 1e-3, "warmup_epochs": 2.0, "begin_lr": 2e-5,
    "final_lr": 6e-4, "milestones": (3.0, 8.0), "rates": (3e-3, 2e-3, 5e-4), "gamma": 0.6, "period": 2.0,
    "cycle_factor": 1.5, "power": 2.0, "label_smoothing": 0.2, "ohem": 0.25, "tversky_alpha": 0.3, "tversky_beta": 0.7,
    "focal_gamma": 1.0, "weight_decay": 0.2, "momentum": 0.5, "nesterov": True, "clip_norm": 0.25, "ema": 0.5,
}  # fmt: skip
CHOICES = {"schedule", "loss", "optimizer"}
ELSEWHERE = {
    "batch_size": "number of samples that the pipeline puts into a batch",
    "accumulate": "argument of the step",
    "early_stopping": "epochs, counted by the loop",
    "patience": "epochs, counted by Plateau",
    "class_weights": "numbers or a rule, resolved with the data's pixels",
    "freeze_encoder": "of a network with an encoder, see `test_encoders.py`",
    "encoder_lr_factor": "likewise",
}


def changing(signature, names) -> set[str]:
    """Settings among `names` whose other value changes the signature."""
    right = signature({})
    return {name for name in names if not np.array_equal(signature({name: OTHER[name]}), right)}


def test_the_tables_have_every_setting_of_the_optimization():
    named = {field.name for field in dataclasses.fields(Optimization)}
    assert set(OTHER) | CHOICES | set(ELSEWHERE) == named


# Schedules

WARM = {"epochs", "steps", "schedule_per", "learning_rate", "warmup_epochs", "begin_lr"}
SCHEDULES = {
    "warmup_cosine": WARM | {"final_lr"},
    "article": WARM | {"final_lr"},
    "constant": WARM,
    "piecewise_constant": WARM - {"learning_rate"} | {"milestones", "rates"},
    "factor": WARM | {"gamma", "period", "final_lr"},
    "multi_factor": WARM | {"gamma", "milestones", "final_lr"},
    "exponential": WARM | {"gamma", "period", "final_lr"},
    "linear": WARM | {"final_lr"},
    "polynomial": WARM | {"final_lr", "power"},
    "cosine": WARM | {"final_lr"},
    "cosine_restarts": WARM | {"final_lr", "period", "cycle_factor"},
    "cyclic": WARM | {"final_lr", "period"},
    "one_cycle": WARM | {"final_lr"},
    "plateau": WARM,
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_takes_its_settings_and_no_others(name):
    def rates(change: dict) -> np.ndarray:
        made = plan.make_plan(dataclasses.replace(BASE, schedule=name, **change), EPOCH_STEPS)
        ticks = (0, 2, 8, 17, 33, 39, 44, 58, 63)
        return np.array([made.steps, made.epochs, *(float(made.schedule(tick)) for tick in ticks)])

    assert changing(rates, set(OTHER)) == SCHEDULES[name] | {"epochs", "steps"}


def test_every_schedule_is_in_the_table():
    (field,) = (f for f in dataclasses.fields(Optimization) if f.name == "schedule")
    assert set(SCHEDULES) == set(field.type.__args__)


# Losses

LOSSES = {
    "cross_entropy": {"label_smoothing", "ohem"},
    "dice": set(),
    "dice_ce": {"label_smoothing"},
    "focal": {"focal_gamma"},
    "hinge": set(),
    "jaccard": set(),
    "lovasz": set(),
    "mse": set(),
    "tversky": {"tversky_alpha", "tversky_beta"},
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_takes_its_settings_and_the_class_weights_and_no_others(name):
    logits, labels = jnp.zeros((1, 2, 2, 3)), jnp.zeros((1, 2, 2), int)

    def program(change: dict, weights=None) -> str:
        loss = losses.loss_from(dataclasses.replace(BASE, loss=name, **change), weights)
        made = jax.make_jaxpr(loss)(logits, labels)
        return str(made) + str(made.consts)

    assert changing(program, set(OTHER)) == LOSSES[name]
    assert program({}, (1.0, 2.0, 3.0)) != program({})
    assert program({}, (1.0, 2.0, 3.0)) != program({}, (3.0, 2.0, 1.0))


def test_losses_differ_from_each_other():
    built = {name: losses.loss_from(dataclasses.replace(BASE, loss=name)) for name in LOSSES}
    given = jnp.zeros((1, 2, 2, 3)), jnp.zeros((1, 2, 2), int)
    assert len({str(jax.make_jaxpr(loss)(*given)) for loss in built.values()}) == len(LOSSES) - 1
    assert losses.loss_from(Optimization(loss="dice")) is losses.dice  # with its program: Tversky's, of 0.5 and 0.5


# Optimizers

CLIPPED = {"clip_norm", "ema", "weight_decay"}
OPTIMIZERS = {
    "adam": CLIPPED,
    "adamw": CLIPPED,
    "rmsprop": CLIPPED | {"momentum"},
    "sgd": CLIPPED | {"momentum", "nesterov"},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_takes_its_settings_and_no_others(name):
    def program(change: dict) -> str:
        tx = optimizers.optimizer_from(dataclasses.replace(BASE, optimizer=name, **change), lambda count: 0.1)
        state = tx.init(jnp.zeros(2))
        return str(jax.make_jaxpr(tx.update)(jnp.zeros(2), state, jnp.zeros(2)))

    assert changing(program, set(OTHER)) == OPTIMIZERS[name]
    for without in ("clip_norm", "ema"):
        assert program({without: None}) != program({})


def test_only_plateau_lets_the_rate_be_scaled():
    for name in SCHEDULES:
        tx = optimizers.optimizer_from(dataclasses.replace(BASE, schedule=name), lambda count: 0.1)
        state = tx.init(jnp.zeros(2))
        assert (optax.tree.get(state, "rate_scale") is not None) == (name == "plateau")


# Augmentation

CHANGES = {"flips": True, "zoom": 0.5, "brightness": 0.2, "contrast": 0.3, "noise": 0.1, "blur": 1.0}


def test_every_augmentation_changes_the_batch_by_itself_and_is_turned_off():
    assert set(CHANGES) | {"augment"} == {field.name for field in dataclasses.fields(Augmentation)}
    batch = {"image": jnp.zeros((2, 4, 4, 3)), "mask": jnp.zeros((2, 4, 4), jnp.uint8)}

    def program(**settings) -> str:
        change = augment.augment_from(Augmentation(**{"flips": False} | settings), step.unit)
        return "" if change is None else str(jax.make_jaxpr(change)(jax.random.key(0), batch))

    assert program() == ""
    everything = program(**CHANGES)
    for name, value in CHANGES.items():
        assert program(**{name: value}) not in ("", everything)
        assert program(**{name: value}, augment=False) == ""
        assert program(**CHANGES | {name: False if name == "flips" else 1.5 * value}) != everything
        assert program(**CHANGES | {name: type(value)(0)}) != everything


# Model

NETWORK = Model(widths=(2, 4))
ANOTHER_KIND = {"encoder"}
OTHER_MODEL = {
    "widths": (2, 6), "upsample": "bilinear", "conv_bias": False, "init": "xavier_normal", "dropout": 0.5,
    "precision": "bf16", "remat": True,
}  # fmt: skip


def test_every_setting_of_the_model_changes_the_network():
    assert set(OTHER_MODEL) | ANOTHER_KIND == {field.name for field in dataclasses.fields(Model)}

    def network(change: dict):
        return unet.unet_from(dataclasses.replace(NETWORK, **change), in_channels=3, classes=2, seed=0)

    def signature(change: dict) -> tuple:
        net = network(change)
        parameters = jax.tree.map(lambda x: x.tolist(), nnx.to_pure_dict(nnx.state(net, nnx.Param)))
        x, key = jax.ShapeDtypeStruct((1, 4, 4, 3), "float32"), jax.eval_shape(lambda: jax.random.key(0))
        graph, state = nnx.split(net)
        program = jax.make_jaxpr(lambda state, x, key: nnx.merge(graph, state)(x, None, key))(state, x, key)
        return str(parameters), str(program)

    right = signature({})
    changed = {name: signature({name: value}) for name, value in OTHER_MODEL.items()}
    assert all(found != right for found in changed.values())
    assert len(set(changed.values())) == len(changed)
    for name in ("dropout", "precision", "remat"):  # these change the computation, not the weights
        assert changed[name][0] == right[0]
    assert "remat" in changed["remat"][1] or "checkpoint" in changed["remat"][1]
    inits = Model.__dataclass_fields__["init"].type.__args__
    kernels = {init: np.asarray(network({"init": init}).down[0].conv1.kernel[...]) for init in inits}
    assert len({kernel.tobytes() for kernel in kernels.values()}) == len(inits)
    other = unet.unet_from(NETWORK, in_channels=3, classes=2, seed=1)
    assert not np.array_equal(other.down[0].conv1.kernel[...], kernels["article"])


# Data

DATA = {  # flags that change how the same files are read
    "channels": ["--channels", "3", "1"],
    "nodata": ["--nodata", "7"],
    "normalize": ["--normalize", "dataset"],
    "classes": ["--classes", "5"],
    "labels": ["--labels", "1", "0", "2"],
    "class_names": ["--class-names", "a", "b", "c"],
    "ignore_index": ["--ignore-index", "2"],
    "binarize": ["--binarize", "2"],
    "snap_colors": ["--labels", "0", "1", "--snap-colors"],
    "crop": ["--crop", "8"],
    "crops": ["--crop", "8", "--crops", "2"],
    "validation": ["--validation", "50"],
    "group_by": ["--group-by", "(.)"],
    "train_list": ["--train-list", "training.txt"],
    "val_list": ["--train-list", "training.txt", "--val-list", "validation.txt"],
    "cache": ["--cache", "memory"],
}
SAME_BATCHES = {"workers", "cache_mb"}
OF_AN_ENCODER = {"encoder_mean", "encoder_std"}
"""See `test_encoders.py`."""
FILES = {"data", "images", "masks", "val_images", "val_masks", "image_suffix", "mask_suffix", "unpaired", "on_bad_file"}
"""Which files are read, and what is refused: see `test_folders.py`, `test_pairs.py`, `test_examine.py`."""


@pytest.fixture(scope="module")
def tiles(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("tiles")
    rng = np.random.default_rng(0)
    for i in range(8):
        image = rng.integers(0, 256, (16, 16, 3), np.uint8)
        image[:4, :4] = 7
        write(root / f"images/{'ab'[i % 2]}{i}.png", image)
        write(root / f"masks/{'ab'[i % 2]}{i}.png", rng.integers(0, 3, (16, 16)).astype(np.uint8))
    (root / "training.txt").write_text("a0\nb1\na2\n")
    (root / "validation.txt").write_text("b3\n")
    return root


def test_every_setting_of_the_data_changes_the_batches_or_is_known_not_to(tiles, tmp_path, monkeypatch):
    assert set(DATA) | SAME_BATCHES | FILES | OF_AN_ENCODER == {field.name for field in dataclasses.fields(Data)}
    monkeypatch.setenv("JAXSEG_CACHE_DIR", str(tmp_path))
    monkeypatch.chdir(tiles)

    def signature(argv: list[str]) -> str:
        data = dataset.open_data(cli.parse(["--data", ".", "--widths", "2", "4", *argv]))
        pipelines = data.pipelines(0, 0)
        sums = [[int(x.astype(int).sum()) for x in batch.values()] for part in pipelines for batch in part.epoch()]
        split = [
            [pair.image.name for pair in part] for part in (data.found.split.training, data.found.split.validation)
        ]
        return repr((data.reading, data.classes, data.crop, data.cache, split, sums))

    right = signature([])
    found = {name: signature(argv) for name, argv in DATA.items() if name != "snap_colors"}
    assert [name for name, other in found.items() if other == right and name != "cache"] == []
    assert found["crop"] != found["crops"]
    assert found["train_list"] != found["val_list"]
    assert signature(["--workers", "2"]) == signature(["--cache-mb", "2"]) == right
