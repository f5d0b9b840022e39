"""A folder in which Orbax keeps the newest checkpoint of its kind; all that knows of Orbax."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import jax
import orbax.checkpoint as ocp
import tensorstore

from jaxseg.base.errors import UserError


class OrbaxFolder(AbstractContextManager):
    """The folder at the absolute `path`, which is made if it is not there. Close it, or use a `with` statement."""

    def __init__(self, path: Path):
        self.path = path
        options = ocp.CheckpointManagerOptions(max_to_keep=1, create=True, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(path, options=options)

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of Orbax's threads."""
        self._manager.close()

    @property
    def step(self) -> int | None:
        """That of the checkpoint, None when there is none."""
        return self._manager.latest_step()

    def save(self, step: int, meta: Mapping, trees: Mapping[str, dict]) -> None:
        """Writes trees of arrays, by name, and `meta` as JSON; then the checkpoint before it goes."""
        parts = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        self._manager.save(step, args=ocp.args.Composite(**parts, meta=ocp.args.JsonSave(meta)), force=True)

    def meta(self) -> dict:
        """What the checkpoint says of itself. Raises UserError when there is none or it cannot be read."""
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
        """Trees of arrays as they were saved, like those given, each array on the same device. Raises UserError."""
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
    """Reads all arrays once, one after the other: what cannot be read is one exception here, and in Orbax's threads as
    many tracebacks on the screen as there are arrays.
    """
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder}/"}}).result()
    if not (keys := store.list().result()):
        raise FileNotFoundError(f"no arrays in {folder.name}")
    for key in keys:
        store.read(key).result()
