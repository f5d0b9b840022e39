"""A folder with one Orbax checkpoint. The only module that imports Orbax."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import jax
import orbax.checkpoint as ocp
import tensorstore

from jaxseg.base.errors import UserError


class OrbaxFolder(AbstractContextManager):
    """Holds the newest checkpoint at the absolute `path`, made if it does not exist. Close it, or use `with`."""

    def __init__(self, path: Path):
        self.path = path
        options = ocp.CheckpointManagerOptions(max_to_keep=1, create=True, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(path, options=options)

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Ends Orbax's threads."""
        self._manager.close()

    @property
    def step(self) -> int | None:
        """Step of the checkpoint; None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, meta: Mapping, trees: Mapping[str, dict]) -> None:
        """Writes a checkpoint and then removes the one before.

        - `step`: number of the checkpoint
        - `meta`: data saved as JSON
        - `trees`: trees of arrays by name
        """
        parts = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        self._manager.save(step, args=ocp.args.Composite(**parts, meta=ocp.args.JsonSave(meta)), force=True)

    def meta(self) -> dict:
        """Returns the data saved as JSON. Raises UserError when there is no checkpoint or it cannot be read."""
        if self.step is None:
            raise UserError(f"{self.path}: no checkpoint in it; the run stopped before its first one")
        try:
            meta = self._manager.restore(self.step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
        except Exception as error:
            raise self._damaged(error) from error
        if missing := {"jaxseg", "config", "description", "progress"} - meta.keys():
            raise self._damaged(KeyError(*missing))
        return meta

    def restore(self, trees: Mapping[str, dict]) -> Mapping[str, dict]:
        """Returns saved arrays with the names, shapes and devices of `trees`. Raises UserError if unreadable."""
        shapes = {name: jax.tree.map(ocp.utils.to_shape_dtype_struct, tree) for name, tree in trees.items()}
        parts = {name: ocp.args.StandardRestore(tree) for name, tree in shapes.items()}
        try:
            for name in trees:
                _read_through(self.path / str(self.step) / name)
            return self._manager.restore(self.step, args=ocp.args.Composite(**parts))
        except Exception as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> UserError:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
        other = {"best": "last", "last": "best"}[self.path.name]
        return UserError(f"{self.path}: cannot be read, it is damaged or incomplete ({reason}). Try the {other} one.")


def _read_through(folder: Path) -> None:
    """Reads all arrays once. A damaged one raises one exception here, where Orbax's threads print many tracebacks."""
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder}/"}}).result()
    if not (keys := store.list().result()):
        raise FileNotFoundError(f"no arrays in {folder.name}")
    for key in keys:
        store.read(key).result()
