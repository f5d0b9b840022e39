"""A step that an earlier process compiled is found without being traced, and does the same to the bit."""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

import jaxseg
from jaxseg import compilation, model, optim, programs, schedules
from jaxseg.config import Model
from jaxseg.step import compile_predict_step, compile_train_step

BATCH = {
    "image": np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8),
    "mask": np.random.default_rng(1).integers(0, 2, (4, 8, 8), np.uint8),
    "valid": np.ones(4, bool),
}


@pytest.fixture
def kept(untold):
    """The folder in which steps are kept."""
    jax.clear_caches()
    compilation.keep()
    return untold / "steps"


@pytest.fixture
def understood(monkeypatch):
    """Any step is taken for the same, and files as unchanged: with the checks of types that tests run with, steps of
    training are not understood."""
    monkeypatch.setattr(programs, "fingerprint", lambda *_: "step")
    monkeypatch.setattr(programs, "sources", list)


def two_steps() -> tuple[dict[str, bytes], list[bool]]:
    """All that two steps of training leave, by name; and which of the first parameters are still in memory."""
    net = model.build(Model(widths=(2, 4)), in_channels=3, classes=2, seed=0)
    optimizer = nnx.Optimizer(net, optim.adam(1e-2), wrt=nnx.Param)
    first = jax.tree.leaves(nnx.state(net, nnx.Param))
    step = compile_train_step(net, optimizer, schedule=schedules.constant(1e-2))
    seen = [step(BATCH) for _ in range(2)]
    leaves = jax.tree.leaves_with_path((seen, nnx.to_pure_dict(nnx.state((net, optimizer)))))
    left = {jax.tree_util.keystr(path): np.asarray(x).tobytes() for path, x in leaves}
    return left, [not x.is_deleted() for x in first]


def classes(**how) -> bytes:
    """What a network predicts."""
    net = model.build(Model(widths=(2, 4)), in_channels=3, classes=2, seed=0)
    return np.asarray(compile_predict_step(net, **how)(BATCH["image"])).tobytes()


def forbid_tracing(monkeypatch) -> None:
    def traced(*_):
        raise AssertionError("traced")

    monkeypatch.setattr("flax.nnx.transforms.compilation.SimpleJitPartialWrapped.lower", traced)


def test_a_step_is_found_without_tracing_does_the_same_to_the_bit_and_reuses_memory(kept, understood, monkeypatch):
    compiled, in_memory = two_steps()
    assert [path.name for path in kept.iterdir()] == ["step"]
    forbid_tracing(monkeypatch)
    found, in_memory_too = two_steps()
    assert found.keys() == compiled.keys()
    assert [name for name in compiled if found[name] != compiled[name]] == []
    assert not any(in_memory + in_memory_too)


def test_nothing_is_found_before_it_was_asked_for_or_under_another_name(kept, understood, monkeypatch):
    classes()
    forbid_tracing(monkeypatch)
    programs.keep(None)
    with pytest.raises(AssertionError, match="traced"):
        classes()
    programs.keep(kept)
    monkeypatch.setattr(programs, "fingerprint", lambda *_: "other")
    with pytest.raises(AssertionError, match="traced"):
        classes()


@pytest.mark.parametrize("damage", [lambda data: data[:-40], lambda data: b"", lambda data: data[::-1]])
def test_a_damaged_file_is_as_good_as_none(kept, understood, damage):
    compiled = classes()
    (path,) = kept.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert classes() == compiled
    assert not path.exists()


def test_what_jax_found_in_its_own_cache_is_not_kept(kept, understood):
    """XLA would write but a part of it."""
    compiled = classes()
    shutil.rmtree(kept)
    kept.mkdir()
    jax.clear_caches()
    assert classes() == compiled
    assert list(kept.iterdir()) == []


def test_what_jax_may_have_found_is_not_kept(kept, understood, monkeypatch):
    """Where a program of another thread was compiled at the same time."""
    monkeypatch.setattr(programs, "_events", lambda: contextlib.nullcontext({programs.FOUND, programs.MISSED}))
    assert classes()
    assert list(kept.iterdir()) == []


def test_a_step_that_is_not_understood_is_not_kept(kept):
    assert classes(normalize=lambda image: image / 255)
    assert list(kept.iterdir()) == []


def test_a_folder_that_is_gone_is_no_hindrance(kept, understood):
    shutil.rmtree(kept)
    assert classes()


def test_shapes_and_types_of_a_batch_and_the_compilers_options_are_in_the_name(kept, monkeypatch):
    monkeypatch.setattr(programs, "surroundings", list)
    monkeypatch.setattr(programs, "sources", list)

    def name(options=None, **changed):
        return programs._path("step", BATCH | changed, options or {}).name

    names = [
        name(),
        programs._path("step", list(BATCH.values()), {}).name,
        name(mask=BATCH["mask"][:3]),
        name(image=BATCH["image"].astype(np.float32)),
        name(more=BATCH["valid"]),
        name({"xla_disable_hlo_passes": "a"}),
        name({"xla_disable_hlo_passes": "b"}),
    ]
    assert len(set(names)) == len(names)
    assert name(image=BATCH["image"] + 1) == name()


def test_flags_settings_and_files_are_in_the_name(kept, monkeypatch):
    def name():
        return programs._path("step", BATCH, {}).name

    monkeypatch.setattr(programs, "sources", list)
    names = [name(), name()]
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    names.append(name())
    with monkeypatch.context() as patch:
        patch.setattr(programs, "sources", lambda: ["one more"])
        names.append(name())
    before = jax.config.jax_default_matmul_precision
    jax.config.update("jax_default_matmul_precision", "highest")
    names.append(name())
    jax.config.update("jax_default_matmul_precision", before)
    names.append(name())
    assert names[0] == names[1]
    assert names[2] == names[5]
    assert len(set(names)) == 4


def test_flags_in_a_file_are_not_understood(kept, monkeypatch):
    monkeypatch.setattr(programs, "sources", list)
    for flags, understood in ((" --xla_a=b", True), ("", True), ("flags.txt", False)):
        monkeypatch.setenv("XLA_FLAGS", flags)
        assert (programs._path("step", BATCH, {}) is not None) == understood


def test_files_that_may_have_been_read_before_they_were_written_are_not_told(kept, understood, monkeypatch):
    monkeypatch.setattr(programs, "sources", lambda: None)
    assert classes()
    assert list(kept.iterdir()) == []


def sources(monkeypatch, began: float = time.time() + 1e6) -> list[str] | None:
    """As `programs.sources`, in a process that began then."""
    monkeypatch.setattr("psutil.Process.create_time", lambda _: began)
    programs.sources.cache_clear()
    found = programs.sources()
    programs.sources.cache_clear()
    return found


def test_all_files_of_the_packages_count_if_none_was_changed_since_the_process_began(monkeypatch):
    found = sources(monkeypatch)
    for package in ("jax", "flax", "optax", "numpy", "opt_einsum"):
        assert any(file.startswith(f"{sys.modules[package].__file__} ") for file in found)
    augment = Path(jaxseg.__file__).parent / "data" / "augment.py"
    (line,) = (file for file in found if file.startswith(f"{augment} "))
    assert line.endswith(hashlib.sha256(augment.read_bytes()).hexdigest())
    assert sources(monkeypatch, 1.0) is None


def test_packages_that_cannot_be_read_are_not_told(monkeypatch, tmp_path):
    monkeypatch.setattr(jaxseg, "__path__", [str(tmp_path / "gone.zip")])
    assert sources(monkeypatch) is None


@pytest.mark.parametrize("whole", [False, True])
def test_a_file_counts_by_size_and_by_time_or_content(tmp_path, whole):
    (tmp_path / "inner").mkdir()
    path = tmp_path / "inner" / "a.py"

    def state(text: str, nanoseconds: int) -> str:
        path.write_text(text)
        os.utime(path, ns=(0, nanoseconds))
        (line,) = programs._files(str(tmp_path), 1.0, whole=whole)
        return line

    first = state("x = 1", 0)
    assert state("x = 1", 0) == first
    assert state("x = 12", 0) != first
    assert (state("x = 2", 0) != first) == whole
    assert (state("x = 1", 1000) != first) != whole
    with pytest.raises(programs._Changed):
        state("x = 1", 2 * 10**9)


def test_a_run_that_finds_its_steps_is_the_same_and_traces_none_of_them(tiles_root, tmp_path):
    """Where JAX has two devices, of which the run takes the first."""
    folder, cache = tmp_path / "runs", tmp_path / "cache"
    flags = ["--data", str(tiles_root), "--widths", "2", "4", "--epochs", "2", "--batch-size", "4"]
    begin = f"import sys; sys.path.insert(0, {str(Path(jaxseg.__file__).parents[1])!r}); from jaxseg import train\n"
    forbid = "from flax.nnx.transforms import compilation as c; c.SimpleJitPartialWrapped.lower = None\n"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    environment |= {"JAX_PLATFORMS": "cpu", "JAXSEG_CACHE_DIR": str(cache)}
    environment |= {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}

    def run(name: str, code: str) -> list[dict]:
        code = begin + code + f"sys.exit(train.main({[*flags, '--out', str(folder / name)]}))"
        command = [sys.executable, "-W", "error", "-c", code]
        done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=False)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in (folder / name / "log.jsonl").read_text().splitlines()]

    kept = cache / "compiled" / "steps"
    first = run("first", "")
    files = sorted(path.name for path in kept.iterdir())
    assert len(files) == 3  # of training, of evaluation and of the pictures at the end
    second = run("second", forbid)
    assert sorted(path.name for path in kept.iterdir()) == files
    for one, other in zip(first, second, strict=True):
        assert one["train"] == other["train"]
        assert one["validation"] == other["validation"]
