"""What is compiled is found again by the next process, to the same bits, and how a command begins is quick."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from jaxseg import train
from jaxseg.base import compilation
from jaxseg.base.config import Model
from jaxseg.learn import optimizers
from jaxseg.learn.compiled import compile_train_step
from jaxseg.nn import unet

# where it is kept


def test_a_command_keeps_what_it_compiles_and_an_import_does_not(untold, tiles_root):
    assert jax.config.jax_compilation_cache_dir is None  # with all that this file imports
    assert train.main(["--data", str(tiles_root), "--widths", "2", "4", "--dry-run"]) == 0
    assert jax.config.jax_compilation_cache_dir == str(untold)
    assert list(untold.iterdir())


@pytest.mark.parametrize("name", ["jax_compilation_cache_dir", "jax_enable_compilation_cache"])
def test_what_was_said_otherwise_is_let_be(untold, tmp_path, name):
    before = jax.config.jax_enable_compilation_cache
    jax.config.update(name, {"jax_compilation_cache_dir": str(tmp_path / "mine")}.get(name, False))
    told = jax.config.jax_compilation_cache_dir
    compilation.keep()
    jax.config.update("jax_enable_compilation_cache", before)
    assert jax.config.jax_compilation_cache_dir == told
    assert not untold.exists()


def test_a_threshold_that_was_set_is_kept(untold, monkeypatch):
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "5")
    compilation.keep()
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 1.0  # JAX has read the variable, or will


def test_a_folder_that_cannot_be_written_is_a_line_of_warning(untold, capsys):
    untold.parent.write_text("a file where the folder would be")
    compilation.keep()
    (line,) = capsys.readouterr().out.splitlines()
    assert str(untold) in line
    assert "JAXSEG_CACHE_DIR" in line
    assert jax.config.jax_compilation_cache_dir is None


@given(sizes=st.lists(st.integers(0, 30), max_size=8), limit=st.integers(0, 100))
def test_the_files_written_last_are_kept_as_far_as_they_fit(tmp_path_factory, sizes, limit):
    folder = tmp_path_factory.mktemp("compiled")
    for age, size in enumerate(sizes):
        path = folder / ("autotuned" if age % 2 else ".") / str(age)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * size)
        os.utime(path, (1e9 - age, 1e9 - age))
    compilation.trim(folder, limit)
    kept = sorted(int(path.name) for path in folder.rglob("*") if path.is_file())
    assert sum(sizes[age] for age in kept) <= limit
    assert all(sum(sizes[: age + 1]) <= limit for age in kept)
    assert kept == [age for age in range(len(sizes)) if sum(sizes[: age + 1]) <= limit]


# what is found


def two_steps(accumulate: int) -> dict[str, bytes]:
    """All that two steps of training leave, by name."""
    net = unet.unet_from(Model(widths=(2, 4)), in_channels=3, classes=2, seed=0)
    optimizer = nnx.Optimizer(net, optimizers.adam(1e-2), wrt=nnx.Param)
    step = compile_train_step(net, optimizer, schedule=lambda step: 1e-2, accumulate=accumulate)
    rng = np.random.default_rng(0)
    image, mask = rng.integers(0, 256, (4, 8, 8, 3), np.uint8), rng.integers(0, 2, (4, 8, 8), np.uint8)
    batch = jax.tree.map(partial(jax.device_put), {"image": image, "mask": mask, "valid": np.ones(4, bool)})
    seen = [step(batch) for _ in range(2)]
    leaves = jax.tree.leaves_with_path((seen, nnx.to_pure_dict(nnx.state((net, optimizer)))))
    return {jax.tree_util.keystr(path): np.asarray(x).tobytes() for path, x in leaves}


@pytest.mark.parametrize("accumulate", [1, 2])  # 2: compiled by hand, with KEEP_BARRIERS
def test_a_step_that_is_found_does_what_a_compiled_one_does_to_the_bit(untold, accumulate, capfd):
    compilation.keep()
    jax.clear_caches()
    compiled = two_steps(accumulate)
    jax.clear_caches()
    found = set()

    def note(event: str, **_) -> None:
        found.add(event)

    jax.monitoring.register_event_listener(note)
    loaded = two_steps(accumulate)
    jax.monitoring.unregister_event_listener(note)
    assert "/jax/compilation_cache/cache_hits" in found
    assert "/jax/compilation_cache/cache_misses" not in found
    assert loaded.keys() == compiled.keys()
    assert [name for name in compiled if compiled[name] != loaded[name]] == []
    assert capfd.readouterr() == ("", "")  # XLA has no doubts about the machine


def test_a_damaged_file_is_compiled_anew(untold):
    compilation.keep()

    def double(x):
        return 2 * x

    jax.jit(double)(np.float32(3))
    (entry,) = untold.glob("jit_double-*-cache")
    entry.write_bytes(entry.read_bytes()[:40])
    jax.clear_caches()
    with pytest.warns(UserWarning, match="persistent compilation cache"):
        assert jax.jit(double)(np.float32(3)) == 6


# how a command begins

HEAVY = ("jax", "flax", "optax", "orbax", "cv2", "matplotlib", "tensorboardX", "tifffile")


@pytest.mark.parametrize("command", ["train", "predict", "evaluate"])
def test_help_comes_before_what_takes_long_to_import(command):
    code = f"""
import sys
from jaxseg import {command}
try:
    {command}.main(["-h"])
except SystemExit as done:
    print(done.code, [name for name in {HEAVY} if name in sys.modules])
"""
    environment = os.environ | {"PYTHONPATH": str(Path(train.__file__).parents[1])}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", env=environment)
    assert f"usage: python -m jaxseg.{command}" in result.stdout
    assert result.stdout.splitlines()[-1] == "0 []"


def test_training_is_imported_without_what_is_for_later():
    """Pictures and events are for after the first step."""
    later = ("matplotlib", "tensorboardX", "scipy", "torch")
    code = f"import sys, jaxseg.training.loop; print([name for name in {later} if name in sys.modules])"
    environment = os.environ | {"PYTHONPATH": str(Path(train.__file__).parents[1])}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", env=environment)
    assert result.stdout.strip() == "[]", result.stderr
