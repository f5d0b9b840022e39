"""Steps that are told alike are traced alike: every setting that is in a program is in its fingerprint."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import jaxseg
from jaxseg import losses, model, optim, programs
from jaxseg.config import Augmentation, Config, Model, Optimization, Run
from jaxseg.data import augment
from jaxseg.fingerprint import NotUnderstood, fingerprint
from jaxseg.plan import make_plan
from jaxseg.step import compile_eval_step, compile_predict_step, compile_probability_step, compile_train_step, unit
from jaxseg.step import normalize as normalized

SMALL = Config(model=Model(widths=(2, 4)), optimization=Optimization(epochs=8))


def network(config: Config) -> model.UNet:
    return model.build(config.model, in_channels=3, classes=2, seed=config.run.seed)


def step_of(config: Config, weights=None, mean=None, std=None):
    """As `training.fit` makes it."""
    o, net = config.optimization, network(config)
    plan = make_plan(o, 6)
    return compile_train_step(
        net,
        nnx.Optimizer(net, optim.build(o, plan.schedule), wrt=nnx.Param),
        schedule=plan.schedule,
        seed=config.run.seed,
        loss=losses.build(o, weights),
        normalize=partial(normalized, mean=mean, std=std),
        augment=augment.build(config.augmentation, unit),
        accumulate=o.accumulate,
    )


def tell() -> None:
    """Prints fingerprints of steps: plainly, of CHANGES, of WITH_DATA, and not for training."""
    with tempfile.TemporaryDirectory() as folder:
        programs.keep(Path(folder))
    steps = [step_of(SMALL)]
    steps += [step_of(with_settings(**change)) for change in CHANGES]
    steps += [step_of(SMALL, **data) for data in WITH_DATA]
    net, loss = network(SMALL), losses.build(SMALL.optimization, None)
    others = [compile_eval_step(net, loss=loss), compile_predict_step(net), compile_probability_step(net)]
    print(json.dumps([step._name for step in steps + others]))


def told(seed: int) -> list[str]:
    """What `tell` says in a process of its own, without the checks of types that all tests run with: they are more
    functions, of which each holds what beartype found. `seed`: of the hashes of strings."""
    code = "import sys; sys.path[:0] = sys.argv[1:]; import test_fingerprint; test_fingerprint.tell()"
    folders = [str(Path(__file__).parent), str(Path(jaxseg.__file__).parents[1])]
    environment = os.environ | {"PYTHONHASHSEED": str(seed)}
    done = subprocess.run(
        [sys.executable, "-c", code, *folders], capture_output=True, encoding="utf-8", env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def with_settings(**settings) -> Config:
    """`SMALL` with some settings of its groups replaced, each by its name."""
    groups = {"model": Model, "augmentation": Augmentation, "optimization": Optimization, "run": Run}
    replaced = {}
    for group, kind in groups.items():
        names = {field.name for field in dataclasses.fields(kind)} & settings.keys()
        replaced[group] = dataclasses.replace(getattr(SMALL, group), **{name: settings[name] for name in names})
    return dataclasses.replace(SMALL, **replaced)


CHANGES = [
    *({"widths": widths} for widths in ((2, 6), (2, 4, 8))),
    {"remat": True},
    *({name: False} for name in ("conv_bias", "augment")),
    {"flips": False, "noise": 0.1},
    *({name: 0.3} for name in ("dropout", "zoom", "brightness", "contrast", "noise", "blur")),
    {"upsample": "bilinear"},
    {"precision": "bf16"},
    {"seed": 1},
    {"epochs": 9},
    {"steps": 20},
    {"accumulate": 2},
    *({"loss": loss} for loss in ("dice", "dice_ce", "focal", "hinge", "jaccard", "lovasz", "mse")),
    {"label_smoothing": 0.1},
    {"ohem": 0.5},
    *({"loss": "tversky", name: 0.3} for name in ("tversky_alpha", "tversky_beta")),
    {"loss": "focal", "focal_gamma": 1.0},
    *({"optimizer": name} for name in ("adamw", "rmsprop", "sgd")),
    *({"optimizer": "sgd", "momentum": 0.5, "nesterov": nesterov} for nesterov in (False, True)),
    *({name: 0.01} for name in ("learning_rate", "weight_decay", "begin_lr", "final_lr", "clip_norm")),
    {"ema": 0.9},
    {"warmup_epochs": 2.0},
    {"schedule_per": "epoch"},
    *(
        {"schedule": name}
        for name in ("article", "constant", "exponential", "linear", "cosine", "one_cycle", "plateau")
    ),
    *({"schedule": "cosine_restarts", "cycle_factor": factor} for factor in (1.0, 2.0)),
    *({"schedule": "polynomial", "power": power} for power in (0.9, 2.0)),
    *({"schedule": "factor", "period": period} for period in (None, 3.0)),
    {"schedule": "cyclic"},
    *({"schedule": "multi_factor", "milestones": (2.0, 4.0), "gamma": gamma} for gamma in (0.1, 0.5)),
    *({"schedule": "piecewise_constant", "milestones": (at,), "rates": (1e-2, 1e-3)} for at in (2.0, 3.0)),
    {"schedule": "piecewise_constant", "milestones": (2.0,), "rates": (1e-2, 2e-3)},
]
WITH_DATA = [
    *({"weights": (1.0, weight)} for weight in (2.0, 2.5)),
    *({"mean": (0.1, 0.2, mean), "std": (0.5, 0.5, std)} for mean, std in ((0.3, 0.5), (0.4, 0.5), (0.3, 0.6))),
]
NOT_OF_THE_STEP = {
    *("init", "batch_size", "early_stopping", "patience"),
    *("preset", "out", "overwrite", "resume", "load", "dry_run", "overfit", "log_every", "debug"),
    "class_weights",  # which are numbers by then: WITH_DATA
}


def test_no_setting_is_forgotten():
    kinds = (Model, Augmentation, Optimization, Run)
    settings = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    assert settings - {name for change in CHANGES for name in change} == NOT_OF_THE_STEP


def test_steps_that_are_traced_otherwise_are_told_apart_and_told_alike_in_another_process():
    found = told(1)
    assert len(found) == 1 + len(CHANGES) + len(WITH_DATA) + 3
    assert len(set(found)) == len(found)
    assert found == told(2)


def test_everything_in_a_network_is_told_but_the_values_of_its_variables():
    net = network(with_settings(dropout=0.1))
    plain, left = fingerprint(net), []
    for module in (module for _, module in nnx.iter_modules(net)):
        for name, value in list(vars(module).items()):
            if isinstance(value, nnx.Pytree | nnx.Variable) or name.startswith("_pytree__"):
                continue
            object.__setattr__(module, name, "another")
            if fingerprint(net) == plain:
                left.append((type(module), name))
            object.__setattr__(module, name, value)
    assert left == []
    assert fingerprint(net) == plain
    assert len({fingerprint(nnx.List([net, *more])) for more in ([], [net], [network(SMALL)])}) == 3


def test_a_variables_value_is_not_told_but_its_shape_and_type_are():
    def of(array):
        return fingerprint(nnx.Param(array))

    assert of(jnp.zeros(3)) == of(jnp.ones(3))
    assert len({of(jnp.zeros(3)), of(jnp.zeros(4)), of(jnp.zeros(3, jnp.bfloat16)), of(np.zeros(3, np.float32))}) == 4
    assert of(jnp.zeros(3)) != fingerprint(nnx.BatchStat(jnp.zeros(3)))


def defined(source: str):
    """`f` of some Python, as if a file of jaxseg had it."""
    names = {"__name__": "jaxseg.made_up"}
    exec(source, names)
    return names["f"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("f = lambda x: x + 1", "f = lambda x: x + 2"),
        ("f = lambda x: x + 1", "f = lambda x: x + 1.0"),
        ("f = lambda x: x.sin()", "f = lambda x: x.cos()"),
        ("f = lambda x, y=1: x", "f = lambda x, y=2: x"),
        ("f = lambda x, *, y=1: x", "f = lambda x, *, y=2: x"),
        ("f = lambda x: (lambda: x + 1)()", "f = lambda x: (lambda: x + 2)()"),
        ("f = (lambda y: lambda x: x + y)(1)", "f = (lambda y: lambda x: x + y)(2)"),
        ("f = lambda x: x in {1, 2}", "f = lambda x: x in {1, 3}"),
        ("f = lambda x: x", "\nf = lambda x: x"),
        ("import functools\nf = functools.partial(max, 1)", "import functools\nf = functools.partial(max, 2)"),
        ("import jax\nf = jax.jit(lambda x: x + 1)", "import jax\nf = jax.jit(lambda x: x + 2)"),
    ],
)
def test_functions_that_do_another_thing_are_told_apart(one, other):
    assert fingerprint(defined(one)) == fingerprint(defined(one))
    assert fingerprint(defined(one)) != fingerprint(defined(other))


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=8)
TREES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text(), inner))


@given(TREES, TREES)
def test_containers_are_told_alike_if_they_are_written_alike(one, other):
    assert (fingerprint(one) == fingerprint(other)) == (repr(one) == repr(other))


@given(TREES)
def test_what_is_held_twice_is_told_as_what_is_held_once_is_not(tree):
    assert fingerprint([tree, tree]) == fingerprint([tree, tree])
    assert fingerprint([tree, tree]) != fingerprint([tree])


def test_arrays_are_told_by_all_their_values(rng):
    x = rng.normal(size=(3, 4)).astype(np.float32)
    changed = x.copy()
    changed[2, 3] = np.nextafter(changed[2, 3], 1)
    different = [x, changed, x.T, x.ravel(), x.astype(np.float64), jnp.asarray(x)]
    assert fingerprint(x) == fingerprint(x.copy())
    assert len(set(map(fingerprint, different))) == len(different)


class Ours(nnx.Module):
    """Not of jaxseg."""


def of_a_local_class():
    local = defined(
        """
from flax import nnx

def f(y):
    class Local(nnx.Module):
        def __call__(self, x):
            return x + y

    return Local
"""
    )
    return local(1)()


@pytest.mark.parametrize(
    "thing",
    [
        lambda x: x,
        functools.wraps(losses.dice)(lambda x, y: x),
        test_no_setting_is_forgotten,
        jax.custom_vjp(defined("f = lambda x: x")),
        Ours(),
        of_a_local_class(),
        object(),
        iter([1]),
        np.array([object()]),
        jax.random.key(0),
    ],
    ids=["function", "wrapper", "top", "gradient", "module", "local", "object", "iterator", "objects", "key"],
)
def test_what_is_not_understood_is_refused_however_deep_it_is(thing):
    for held in (thing, [1, {"a": thing}], partial(max, thing), defined("f = lambda y: lambda x: y")(thing)):
        with pytest.raises(NotUnderstood):
            fingerprint(held)
