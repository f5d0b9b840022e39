"""Checkpoints of a run: `checkpoints/last` and `checkpoints/best`, each all that is needed to go on, or to predict
without flags.

A checkpoint is an Orbax folder named after its step. A new one is written beside the old, committed by a rename, and
only then is the old one removed, so a run that is killed at any moment leaves a whole one. It can be read on another
kind of device than it was written on.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import jax
import orbax.checkpoint as ocp
import tensorstore
from flax import nnx

from jaxseg import __version__, config, convert, model, optim, schedules
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
    plateau: dict | None = None


class Checkpoints:
    """The checkpoints of the run in folder `run`. `description` is kept in each beside the settings: {"classes": names
    in order, "in_channels": int, "reading": `Reading.to_dict()`, "tile": [h, w] of the training samples}.
    """

    def __init__(self, run: Path, settings: Config, description: dict):
        saved = {"config": json.loads(config.dumps(settings)), "description": json.loads(json.dumps(description))}
        self._meta = {"jaxseg": __version__, **saved}
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
        """Puts checkpoint `which` into `net` and `optimizer`, bit for bit.

        Raises UserError when there is none, when it cannot be read, and when it was made with another architecture,
        class map or optimizer; then nothing is changed.
        """
        manager = self._managers[which]
        meta = _read_meta(manager)
        if differences := _table("run has", _identity(meta), "now", _identity(self._meta)):
            raise UserError(f"{manager.directory}: was made with other settings, and cannot go on:\n{differences}")
        _restore(manager, model=net, optimizer=optimizer)
        return Progress(**meta["progress"])

    def close(self) -> None:
        """Lets go of Orbax's threads."""
        for manager in self._managers.values():
            manager.close()


def load_model(run: Path, which: str = "best") -> tuple[model.UNet, dict]:
    """The network of a run in evaluation, and its description (see `Checkpoints`); nothing but the folder is needed.

    Its weights are the averaged ones when the run averages them (--ema). Raises UserError when `run` is no run, has no
    such checkpoint, or one that is damaged or of another version.
    """
    with _manager(run, which, create=False) as manager:
        meta = _read_meta(manager)
        try:
            settings, description = config.from_dict(meta["config"]), meta["description"]
        except UserError as error:
            raise UserError(
                f"{manager.directory}: was written by jaxseg {meta['jaxseg']}, and this one, {__version__}, does not "
                f"know its settings ({error}). Read it with the version that wrote it."
            ) from None
        classes = len(description["classes"])
        net = model.build(settings.model, in_channels=description["in_channels"], classes=classes, seed=0)
        if settings.optimization.ema is None:
            _restore(manager, model=net)
        else:  # the average is in the optimizer's state
            tx = optim.build(settings.optimization, schedules.constant(0.0))
            optimizer = nnx.Optimizer(net, tx, wrt=nnx.Param)
            _restore(manager, model=net, optimizer=optimizer)
            nnx.update(net, nnx.to_pure_dict(nnx.state(optim.averaged(net, optimizer))))
    return model.evaluation(net), description


def load_weights(net: model.UNet, path: Path) -> None:
    """Starts `net` from the best weights of the run in folder `path`, or of a PyTorch file with milesial's names.

    Raises UserError when there are none, and when they are of another network, with the differences side by side; then
    nothing is changed.
    """
    state = convert.to_torch(load_model(path)[0]) if path.is_dir() else convert.read_pth(path)
    given, wanted = convert.architecture(state), convert.architecture(convert.to_torch(net))
    if given and (differences := _table("there", given, "here", wanted)):
        raise UserError(f"{path}: holds the weights of another network:\n{differences}")
    try:
        convert.from_torch(net, state)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


# Orbax ----------------------------------------------------------------------------------------------------------------


def _manager(run: Path, which: str, create: bool = True) -> ocp.CheckpointManager:
    """Raises UserError when the folder is missing and may not be made, or Orbax could not find what it saved there."""
    folder = (run / "checkpoints" / which).resolve()  # Orbax refuses relative paths, TensorStore those with ..
    if set("[]*?") & set(str(folder)):  # it takes these for a pattern, when it looks for its checkpoints
        raise UserError(
            f"{run}: checkpoints cannot be kept in a folder with one of []*? in its path; give another --out"
        )
    if not create and not folder.is_dir():
        around = [parent for parent in run.absolute().parents if (parent / "checkpoints").is_dir()]
        what = "no such folder" if not run.exists() else f"not the folder of a run, it has no checkpoints/{which}"
        raise UserError(
            f"{run}: {what}" + (f"; did you mean {around[0]}?" if around else " (runs are kept in runs/ by default)")
        )
    options = ocp.CheckpointManagerOptions(max_to_keep=1, create=create, enable_async_checkpointing=False)
    return ocp.CheckpointManager(folder, options=options)


def _read_meta(manager: ocp.CheckpointManager) -> dict:
    """What the newest step says of itself."""
    if (step := manager.latest_step()) is None:
        raise UserError(f"{manager.directory}: no checkpoint in it; the run stopped before its first one")
    try:
        meta = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
    except Exception as error:
        raise _damaged(manager, error) from error
    if missing := {"jaxseg", "config", "description", "progress"} - meta.keys():
        raise _damaged(manager, KeyError(*missing))
    return meta


def _restore(manager: ocp.CheckpointManager, **objects: nnx.Module | nnx.Optimizer) -> None:
    """Fills `objects`, by the name they were saved under, from the newest step, each array where it lies now."""
    wanted = {name: jax.tree.map(ocp.utils.to_shape_dtype_struct, _arrays(thing)) for name, thing in objects.items()}
    parts = {name: ocp.args.StandardRestore(shapes) for name, shapes in wanted.items()}
    step = manager.latest_step()
    try:
        for name in objects:
            _read_through(Path(manager.directory) / str(step) / name)
        restored = manager.restore(step, args=ocp.args.Composite(**parts))
    except Exception as error:
        raise _damaged(manager, error) from error
    for name, thing in objects.items():
        nnx.update(thing, restored[name])


def _read_through(folder: Path) -> None:
    """Reads all arrays once, one after the other: what cannot be read is one exception here, and in Orbax's threads as
    many tracebacks on the screen as there are arrays.
    """
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder}/"}}).result()
    if not (keys := store.list().result()):
        raise FileNotFoundError(f"no arrays in {folder.name}")
    for key in keys:
        store.read(key).result()


def _damaged(manager: ocp.CheckpointManager, error: Exception) -> UserError:
    folder, reason = Path(manager.directory), f"{type(error).__name__}: {error}".partition("\n")[0][:200]
    other = {"best": "last", "last": "best"}[folder.name]
    return UserError(f"{folder}: cannot be read, it is damaged or incomplete ({reason}). Try the {other} one.")


def _arrays(thing: nnx.Module | nnx.Optimizer) -> dict:
    return nnx.to_pure_dict(nnx.state(thing))


# Differences ----------------------------------------------------------------------------------------------------------


def _identity(meta: Mapping) -> dict[str, object]:
    """What a run cannot change on its way: what its files mean, its architecture, and what its optimizer keeps."""
    model, optimization, description = meta["config"]["model"], meta["config"]["optimization"], meta["description"]
    fixed = {name: model.get(name) for name in ("widths", "upsample", "conv_bias")}
    fixed |= {name: optimization.get(name) for name in ("optimizer", "momentum", "clip_norm", "ema")}
    flags = {f"--{name.replace('_', '-')}": value for name, value in fixed.items()}
    flags["--schedule plateau"] = optimization.get("schedule") == "plateau"
    names = {"classes": "class names", "in_channels": "channels"}
    reading = dict(description.get("reading", {}))
    labels = reading.pop("labels", {})
    return (
        {label: description[key] for key, label in names.items() if key in description}
        | {f"labels: {name}": value for name, value in labels.items()}
        | {f"images: {name}": value for name, value in reading.items()}
        | flags
    )


def _table(left: str, a: Mapping, right: str, b: Mapping) -> str:
    """Where `a` and `b` differ in what both have, in two columns; empty where they do not."""
    rows = [("", left, right)]
    rows += [(name, _text(a[name]), _text(b[name])) for name in a if name in b and a[name] != b[name]]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join(f"  {line}" for line in lines) if len(rows) > 1 else ""


def _text(value: object) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return "-" if value is None else str(value)
