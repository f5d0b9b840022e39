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

from flax import nnx

from jaxseg import __version__
from jaxseg.base import config
from jaxseg.base.config import Config
from jaxseg.base.errors import UserError
from jaxseg.learn import optimizers, schedules
from jaxseg.nn import torch_weights, unet


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
        self._places = {which: _place(run, which) for which in ("last", "best")}
        for place in self._places.values():
            place.mkdir(parents=True, exist_ok=True)
        self._folders = {}

    def save(self, which: str, step: int, net: nnx.Module, optimizer: nnx.Optimizer, progress: Progress) -> None:
        """Writes checkpoint `which`, "last" or "best"; the same step, which is the same bits, is not written twice."""
        if self._folder(which).step == step:
            return
        meta = self._meta | {"progress": dataclasses.asdict(progress)}
        self._folder(which).save(step, meta, {"model": _arrays(net), "optimizer": _arrays(optimizer)})

    def restore(self, which: str, net: nnx.Module, optimizer: nnx.Optimizer) -> Progress:
        """Puts checkpoint `which` into `net` and `optimizer`, bit for bit.

        Raises UserError when there is none, when it cannot be read, and when it was made with another architecture,
        class map or optimizer; then nothing is changed.
        """
        folder = self._folder(which)
        meta = folder.meta()
        if differences := _table("run has", _identity(meta), "now", _identity(self._meta)):
            raise UserError(f"{folder.path}: was made with other settings, and cannot go on:\n{differences}")
        _restore(folder, model=net, optimizer=optimizer)
        return Progress(**meta["progress"])

    def close(self) -> None:
        """Lets go of Orbax's threads."""
        for folder in self._folders.values():
            folder.close()

    def _folder(self, which: str):
        if which not in self._folders:
            self._folders[which] = _open(self._places[which])
        return self._folders[which]


def load_model(run: Path, which: str = "best") -> tuple[unet.UNet, dict]:
    """The network of a run in evaluation, and its description (see `Checkpoints`); nothing but the folder is needed.

    Its weights are the averaged ones when the run averages them (--ema). Raises UserError when `run` is no run, has no
    such checkpoint, or one that is damaged or of another version.
    """
    with _open(_place(run, which, there=True)) as folder:
        meta = folder.meta()
        try:
            settings, description = config.from_dict(meta["config"]), meta["description"]
        except UserError as error:
            raise UserError(
                f"{folder.path}: was written by jaxseg {meta['jaxseg']}, and this one, {__version__}, does not "
                f"know its settings ({error}). Read it with the version that wrote it."
            ) from None
        classes = len(description["classes"])
        net = unet.unet_from(settings.model, in_channels=description["in_channels"], classes=classes, seed=0)
        if settings.optimization.ema is None:
            _restore(folder, model=net)
        else:  # the average is in the optimizer's state
            tx = optimizers.optimizer_from(settings.optimization, schedules.constant(0.0))
            optimizer = nnx.Optimizer(net, tx, wrt=nnx.Param)
            _restore(folder, model=net, optimizer=optimizer)
            nnx.update(net, nnx.to_pure_dict(nnx.state(optimizers.averaged(net, optimizer))))
    return unet.evaluation(net), description


def load_weights(net: unet.UNet, path: Path) -> None:
    """Starts `net` from the best weights of the run in folder `path`, or of a PyTorch file with milesial's names.

    Raises UserError when there are none, and when they are of another network, with the differences side by side; then
    nothing is changed.
    """
    state = torch_weights.to_torch(load_model(path)[0]) if path.is_dir() else torch_weights.read_pth(path)
    given, wanted = torch_weights.architecture(state), torch_weights.architecture(torch_weights.to_torch(net))
    if given and (differences := _table("there", given, "here", wanted)):
        raise UserError(f"{path}: holds the weights of another network:\n{differences}")
    try:
        torch_weights.from_torch(net, state)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


# Orbax ----------------------------------------------------------------------------------------------------------------


def _place(run: Path, which: str, there: bool = False) -> Path:
    """The folder of checkpoint `which`, absolute. Raises UserError when Orbax cannot use it, or it is not `there`."""
    folder = (run / "checkpoints" / which).resolve()  # Orbax refuses relative paths, TensorStore those with ..
    if set("[]*?") & set(str(folder)):  # it takes these for a pattern, when it looks for its checkpoints
        raise UserError(
            f"{run}: checkpoints cannot be kept in a folder with one of []*? in its path; give another --out"
        )
    if there and not folder.is_dir():
        around = [parent for parent in run.absolute().parents if (parent / "checkpoints").is_dir()]
        what = "no such folder" if not run.exists() else f"not the folder of a run, it has no checkpoints/{which}"
        raise UserError(
            f"{run}: {what}" + (f"; did you mean {around[0]}?" if around else " (runs are kept in runs/ by default)")
        )
    return folder


def _open(folder: Path):
    """Its `OrbaxFolder`."""
    from jaxseg.runs.orbax_folder import OrbaxFolder  # takes a quarter of a second: not before the first step

    return OrbaxFolder(folder)


def _arrays(thing: nnx.Module | nnx.Optimizer) -> dict:
    return nnx.to_pure_dict(nnx.state(thing))


def _restore(folder, **objects: nnx.Module | nnx.Optimizer) -> None:
    """Fills `objects`, by the name they were saved under, each array where it lies now."""
    restored = folder.restore({name: _arrays(thing) for name, thing in objects.items()})
    for name, thing in objects.items():
        nnx.update(thing, restored[name])


# Differences ----------------------------------------------------------------------------------------------------------


def _identity(meta: Mapping) -> dict[str, object]:
    """What a run cannot change on its way: what its files mean, its architecture, and what its optimizer keeps."""
    settings, description = config.from_dict(meta["config"]), meta["description"]
    model, optimization = settings.model, settings.optimization
    fixed = {name: getattr(model, name) for name in ("widths", "upsample", "conv_bias")}
    fixed |= {name: getattr(optimization, name) for name in ("optimizer", "momentum", "clip_norm", "ema")}
    flags = {f"--{name.replace('_', '-')}": value for name, value in fixed.items()}
    flags["--schedule plateau"] = optimization.schedule == "plateau"
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
