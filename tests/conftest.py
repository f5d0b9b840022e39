"""Strict for all tests: warnings are errors, mixing ranks raises, shapes are checked (jaxtyping and beartype)."""

import dataclasses
import gc
import inspect
import os
import re
from collections.abc import Callable
from pathlib import Path

from parity.twins.quickly import as_flags

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if os.environ["JAX_PLATFORMS"] == "cpu":  # tests compile more than they run: 2.5 times less CPU time
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {as_flags()}".strip()

import jax
import jaxtyping
import numpy as np
import pytest
from hypothesis import settings
from jax.experimental.compilation_cache import compilation_cache

jax.config.update("jax_num_cpu_devices", 2)  # for the tests of devices; more would change how XLA divides sums
jax.config.update("jax_numpy_rank_promotion", "raise")
settings.register_profile("jaxseg", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("jaxseg")

collect_ignore = ["services"]  # stand-ins for other libraries, under their names

try:
    import torch
except ImportError:
    torch_only = ("parity*", "reference", "race", "report", "mutations", "false_alarms")
    collect_ignore_glob = [f"test_{name}.py" for name in torch_only]
else:
    torch.set_num_threads(1)


def has_shapes(function: Callable) -> bool:
    """True if a hint of the function has shapes, or may have: in quotes are names that are looked up later."""

    def has(hint) -> bool:
        shown = (
            repr(hint)
            if inspect.isclass(hint)
            else re.sub(r"Literal\[.*?\]", "", f"{hint!r}").replace("'", "jaxtyping")
        )
        return "jaxtyping" in shown

    return any(map(has, function.__annotations__.values()))


def where_shapes_are(jaxtyped: Callable) -> Callable:
    """Returns `jaxtyping.jaxtyped`, but functions and dataclasses without shapes get the type checker alone.

    jaxtyping makes two functions of each one that it decorates, and binds the arguments of each call by `inspect`. That
    was half of the time of all that JAX does not compile.
    """

    def decorator(*, typechecker: Callable) -> Callable:
        def decorate(thing):
            if inspect.isclass(thing):
                if not dataclasses.is_dataclass(thing) or has_shapes(thing.__init__):
                    return jaxtyped(thing, typechecker=typechecker)
                thing.__init__ = typechecker(thing.__init__)
                return thing
            if has_shapes(thing) or inspect.isgeneratorfunction(thing):  # beartype alone wants Iterable[...] of these
                return jaxtyped(thing, typechecker=typechecker)
            return typechecker(thing)

        return decorate

    return decorator


jaxtyping.jaxtyped = where_shapes_are(jaxtyping.jaxtyped)  # before jaxseg is imported, see --jaxtyping-packages


def pytest_configure(config):
    # JAX does not write its cache atomically: what another worker has half written is compiled again
    config.addinivalue_line("filterwarnings", "ignore:Error reading persistent compilation cache entry:UserWarning")


def pytest_collection_finish(session):
    gc.collect()
    gc.freeze()  # imported modules are most objects: a tenth of the CPU time went into looking at them again and again
    gc.set_threshold(50_000, 20, 100)


@pytest.fixture(scope="session", autouse=True)
def caches(tmp_path_factory, worker_id):
    """Caches of jaxseg and XLA for this session. All workers, and the processes they start, share compiled programs.

    The folder JAXSEG_TEST_COMPILED keeps them for other sessions.
    """
    base = tmp_path_factory.getbasetemp()
    own = (base if worker_id == "master" else base.parent) / "compiled"
    compiled, least = os.environ.get("JAXSEG_TEST_COMPILED", str(own)), 0.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXSEG_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("jaxseg.base.files.SETTLED", 0.0)  # tests read files at once that they wrote
        patch.setenv("JAX_COMPILATION_CACHE_DIR", compiled)
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", str(least))
        jax.config.update("jax_compilation_cache_dir", compiled)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", least)
        yield


@pytest.fixture
def untold(monkeypatch, tmp_path):
    """JAX as it is where nobody set up its cache, and the folder that jaxseg would take."""
    defaults = {"jax_compilation_cache_dir": None, "jax_persistent_cache_min_compile_time_secs": 1.0}
    before = {name: getattr(jax.config, name) for name in defaults}
    for name, default in defaults.items():
        monkeypatch.delenv(name.upper(), raising=False)
        jax.config.update(name, default)
    monkeypatch.setenv("JAXSEG_CACHE_DIR", str(tmp_path / "kept"))
    compilation_cache.reset_cache()
    yield tmp_path / "kept/compiled"
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture
def undrawn(monkeypatch):
    """For small runs whose pictures are not looked at: drawing them is a third of the time."""
    from jaxseg.runs import tracker
    from jaxseg.training import report

    monkeypatch.setattr(tracker, "draw_curves", lambda *_: np.zeros((1, 1, 3), np.uint8))
    monkeypatch.setattr(report, "save_predictions", lambda tracker, run, *_: run / "samples/predictions.png")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def tiles_root(tmp_path_factory) -> Path:
    """A small data set of made-up fields: 10 training and 4 validation tiles of 32x32, in the article's layout."""
    from jaxseg.data.made.fields import make_fields

    return make_fields(tmp_path_factory.mktemp("data") / "fields", train=10, val=4, size=32)
