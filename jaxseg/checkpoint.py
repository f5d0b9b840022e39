"""Checkpoints of a run: `checkpoints/last` and `checkpoints/best`, each all that is needed to go on, or to predict
without flags.

A checkpoint is an Orbax folder named after its step. A new one is written beside the old, committed by a rename, and
only then is the old one removed, so a run that is killed at any moment leaves a whole one.
"""

import dataclasses
import json
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from flax import nnx

from jaxseg import __version__, config, model
from jaxseg.config import Config, UserError


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a run stands: which batch of which epoch comes next, what that epoch has summed up so far, and the best
    epoch.
    """

    epoch: int = 0
    batch: int = 0
    totals: dict | None = None
    best: dict | None = None


class Checkpoints:
    """The checkpoints of the run in folder `run`. `description` (classes, channels) is kept in each beside the
    settings.
    """

    def __init__(self, run: Path, settings: Config, description: dict):
        self._meta = {"jaxseg": __version__, "config": json.loads(config.dumps(settings)), "description": description}
        self._managers = {which: _manager(run, which) for which in ("last", "best")}

    def save(self, which: str, step: int, net: nnx.Module, optimizer: nnx.Optimizer, progress: Progress) -> None:
        """Writes checkpoint `which`, "last" or "best"; the same step, which is the same bits, is not written twice."""
        manager = self._managers[which]
        if manager.latest_step() == step:
            return
        meta = self._meta | {"progress": dataclasses.asdict(progress)}
        parts = {"model": ocp.args.StandardSave(_arrays(net)), "optimizer": ocp.args.StandardSave(_arrays(optimizer))}
        manager.save(step, args=ocp.args.Composite(**parts, meta=ocp.args.JsonSave(meta)), force=True)

    def restore(self, which: str, net: nnx.Module, optimizer: nnx.Optimizer) -> Progress:
        """Puts checkpoint `which` into `net` and `optimizer`, bit for bit. Raises UserError when there is none."""
        meta = _restore(self._managers[which], model=net, optimizer=optimizer)
        return Progress(**meta["progress"])

    def close(self) -> None:
        """Lets go of Orbax's threads."""
        for manager in self._managers.values():
            manager.close()


def load_model(run: Path, which: str = "best") -> tuple[model.UNet, dict]:
    """The network of a run, ready to predict (`use_running_average`), and its description; nothing but the folder is
    needed.

    The description has "classes" (names, in order) and "in_channels". Raises UserError when there is no such
    checkpoint.
    """
    with _manager(run, which, create=False) as manager:
        meta = _restore(manager)
        settings, description = config.from_dict(meta["config"]), meta["description"]
        net = model.build(
            settings.model, in_channels=description["in_channels"], classes=len(description["classes"]), seed=0
        )
        _restore(manager, model=net)
    return nnx.view(net, use_running_average=True), description


def _manager(run: Path, which: str, create: bool = True) -> ocp.CheckpointManager:
    """Raises UserError when the folder is missing and may not be made, or Orbax could not find what it saved there."""
    folder = (run / "checkpoints" / which).absolute()  # Orbax refuses relative paths
    if set("[]*?") & set(str(folder)):  # it takes these for a pattern, when it looks for its checkpoints
        raise UserError(
            f"{run}: checkpoints cannot be kept in a folder with one of []*? in its path; give another --out"
        )
    if not create and not folder.is_dir():
        raise UserError(f"{folder}: no such folder; is {run} the folder of a run?")
    options = ocp.CheckpointManagerOptions(max_to_keep=1, create=create, enable_async_checkpointing=False)
    return ocp.CheckpointManager(folder, options=options)


def _restore(manager: ocp.CheckpointManager, **objects) -> dict:
    """Fills `objects` (NNX modules or optimizers, by the name they were saved under) from the newest step; returns
    its meta.
    """
    if (step := manager.latest_step()) is None:
        raise UserError(f"{manager.directory}: no checkpoint in it; the run stopped before its first one")
    wanted = {name: jax.tree.map(ocp.utils.to_shape_dtype_struct, _arrays(thing)) for name, thing in objects.items()}
    parts = {name: ocp.args.StandardRestore(shapes) for name, shapes in wanted.items()}
    restored = manager.restore(step, args=ocp.args.Composite(**parts, meta=ocp.args.JsonRestore()))
    for name, thing in objects.items():
        nnx.update(thing, restored[name])
    return restored.meta


def _arrays(thing: nnx.Module | nnx.Optimizer) -> dict:
    return nnx.to_pure_dict(nnx.state(thing))
