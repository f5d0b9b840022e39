"""A folder with one Orbax checkpoint. The only module that imports Orbax.

A checkpoint is a folder named after its step: `model` and `optimizer`, each an Orbax folder, `meta/metadata`, a JSON
file, and `digests.json` with the SHA-256 of every file. It is written as a draft beside the old one and committed by a
rename. Earlier versions wrote no digests.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from jaxseg.base import digests
from jaxseg.base.errors import DamagedCheckpoint, UserError

DIGESTS = "digests.json"


class OrbaxFolder:
    """Holds the newest checkpoint at the absolute `path`, which `save` makes if it does not exist."""

    def __init__(self, path: Path):
        self.path = path

    @property
    def step(self) -> int | None:
        """Step of the checkpoint; None if there is none."""
        names = [entry.name for entry in self.path.iterdir()] if self.path.is_dir() else []
        return max((int(name) for name in names if name.isdigit()), default=None)

    def save(self, step: int, meta: Mapping, trees: Mapping[str, dict]) -> None:
        """Writes a checkpoint and then removes the one before.

        - `step`: number of the checkpoint
        - `meta`: data saved as JSON
        - `trees`: trees of arrays by name

        Raises OSError, or Orbax's errors, when it cannot be written. Then the one before is kept.
        """
        draft = self.path / f"{step}.tmp"
        shutil.rmtree(draft, ignore_errors=True)
        (draft / "meta").mkdir(parents=True)
        for name, tree in trees.items():
            with _checkpointer() as writer:
                writer.save(draft / name, args=ocp.args.StandardSave(_own(tree)))
        _write(draft / "meta/metadata", meta | {"digests": DIGESTS})
        _write(draft / DIGESTS, {name: digests.of_file(draft / name) for name in _files(draft)})
        if (self.path / str(step)).exists():  # a damaged one
            shutil.rmtree(self.path / str(step))
        os.rename(draft, self.path / str(step))
        _sync(self.path)
        self.clean(step)

    def clean(self, step: int | None) -> None:
        """Deletes what a kill left: drafts, and checkpoints of other steps than `step`."""
        for other in self.path.iterdir():
            if other.name != str(step) and (other.name.isdigit() or other.name.endswith("tmp")):
                shutil.rmtree(other)

    def meta(self) -> dict:
        """Returns the data saved as JSON. Raises UserError if there is none, DamagedCheckpoint if unreadable."""
        step = self._existing()
        try:
            _check(step, ["meta"])
            meta = json.loads((step / "meta/metadata").read_text(encoding="utf-8"))
            if missing := {"jaxseg", "config", "description", "progress"} - meta.keys():
                raise KeyError(*missing)
            if "digests" in meta and not (step / DIGESTS).exists():
                raise FileNotFoundError(f"no {DIGESTS}")
        except Exception as error:
            raise self._damaged(error) from error
        return meta

    def restore(self, trees: Mapping[str, dict]) -> Mapping[str, dict]:
        """Returns saved arrays with the names, shapes and devices of `trees`. Raises DamagedCheckpoint."""
        step = self._existing()
        shapes = {name: jax.tree.map(ocp.utils.to_shape_dtype_struct, _own(tree)) for name, tree in trees.items()}
        try:
            _check(step, list(trees))
            restored = {}
            for name, tree in shapes.items():
                if not (step / DIGESTS).exists():
                    _read_through(step / name)
                with _checkpointer() as reader:
                    restored[name] = reader.restore(step / name, args=ocp.args.StandardRestore(tree))
            return restored
        except Exception as error:
            raise self._damaged(error) from error

    def check(self) -> None:
        """Raises DamagedCheckpoint if a file differs from its digest or is missing, UserError if there is none."""
        step = self._existing()
        try:
            _check(step, ("meta", "model", "optimizer"))
        except Exception as error:
            raise self._damaged(error) from error

    def _existing(self) -> Path:
        if self.step is None:
            raise UserError(f"{self.path}: no checkpoint in it; the run stopped before its first one")
        return self.path / str(self.step)

    def _damaged(self, error: Exception) -> UserError:
        if isinstance(error, PermissionError):  # it may be whole
            return UserError(f"{self.path}: cannot be read ({error.filename}: {error.strerror})")
        reason = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
        return DamagedCheckpoint(f"{self.path}: cannot be read, it is damaged or incomplete ({reason})")


def _checkpointer() -> ocp.Checkpointer:
    """Orbax's reader and writer for this process alone, as others do not take part."""
    alone = {}
    if jax.process_count() > 1:
        here = jax.process_index()
        options = ocp.options.MultiprocessingOptions(primary_host=here, active_processes={here})
        alone = {"multiprocessing_options": dataclasses.replace(options, barrier_sync_key_prefix=f"jaxseg{here}")}
    return ocp.Checkpointer(ocp.StandardCheckpointHandler(**alone), **alone)


def _own(tree: dict) -> dict:
    """Arrays as Orbax takes them from a single process: where there are several, only NumPy's."""
    return tree if jax.process_count() == 1 else jax.tree.map(np.asarray, tree)


def _check(step: Path, parts: Sequence[str]) -> None:
    """Raises ValueError or OSError unless the files of these parts have their digests. Earlier versions wrote none."""
    if not (step / DIGESTS).exists():
        return
    expected = json.loads((step / DIGESTS).read_text(encoding="utf-8"))
    wanted = {name: digest for name, digest in expected.items() if name.partition("/")[0] in parts}
    there = [name for name in _files(step) if name.partition("/")[0] in parts]
    if differs := sorted(wanted.keys() ^ set(there)):
        raise ValueError(f"{differs[0]} is missing or does not belong to it")
    for name, digest in wanted.items():
        if digests.of_file(step / name) != digest:
            raise ValueError(f"{name} is not what was written")


def _files(folder: Path) -> list[str]:
    """Names of all files in and below `folder`, relative to it, except that of the digests."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if name != DIGESTS)


def _write(path: Path, content: Mapping) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())  # as TensorStore does: a power cut leaves this checkpoint or the one before


def _sync(folder: Path) -> None:
    if os.name == "nt":  # there folders cannot be opened
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read_through(folder: Path) -> None:
    """Reads all arrays of a checkpoint without digests, where Orbax's threads would print tracebacks of a damaged one.

    Raises an exception of TensorStore's instead.
    """
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder}/"}}).result()
    if not (keys := store.list().result()):
        raise FileNotFoundError(f"no arrays in {folder.name}")
    for key in keys:
        store.read(key).result()
