"""Checkpoints of a run, `checkpoints/last` and `checkpoints/best`: enough to resume it, or to predict without flags.

A checkpoint is an Orbax folder named after its step. A new one is written beside the old one and committed by a
rename. Only then is the old one removed, so a killed run always leaves a complete one. Another kind of device can read
it.
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
from jaxseg.base.terminal import console
from jaxseg.learn import optimizers, schedules
from jaxseg.nn import torch_weights, unet
from jaxseg.nn.pth import read_pth
from jaxseg.nn.torch_weights import Colors
from jaxseg.runs.disk_errors import writing


@dataclasses.dataclass(frozen=True)
class Progress:
    """Position of a run.

    - `epoch`, `batch`: numbers of the next batch, from 0
    - `totals`: state of `metrics.Totals` for a partial epoch
    - `best`: line of log.jsonl for the best epoch so far
    - `plateau`: state of `schedules.Plateau`
    """

    epoch: int = 0
    batch: int = 0
    totals: dict | None = None
    best: dict | None = None
    plateau: dict | None = None


class Checkpoints:
    """Writes and reads the checkpoints of a run.

    - `run`: folder of the run
    - `settings`: settings of the run
    - `description`: data of the run: {"classes": names in order, "in_channels": int, "reading": `Reading.to_dict()`,
      "tile": [h, w] of the training samples}

    Raises UserError when the path has one of `[]*?`, which Orbax cannot use.
    """

    def __init__(self, run: Path, settings: Config, description: dict):
        saved = {"config": json.loads(config.dumps(settings)), "description": json.loads(json.dumps(description))}
        self._meta = {"jaxseg": __version__, **saved}
        self._places = {which: _place(run, which) for which in ("last", "best")}
        for place in self._places.values():
            place.mkdir(parents=True, exist_ok=True)
        self._folders = {}

    def save(self, which: str, step: int, net: nnx.Module, optimizer: nnx.Optimizer, progress: Progress) -> None:
        """Writes a checkpoint, unless it is there with this step already.

        - `which`: "last" or "best"
        - `step`: number of finished steps
        - `net`, `optimizer`: what to save
        - `progress`: position of the run

        Raises OSError when it cannot be written; the checkpoint before is then kept.
        """
        if self._folder(which).step == step:
            return
        meta = self._meta | {"progress": dataclasses.asdict(progress)}
        trees = {"model": _arrays(net), "optimizer": _arrays(optimizer)}
        with writing(self._places[which], trees):
            self._folder(which).save(step, meta, trees)

    def restore(self, which: str, net: nnx.Module, optimizer: nnx.Optimizer) -> Progress:
        """Loads checkpoint `which`, "last" or "best", into `net` and `optimizer`, and returns the run's position.

        Raises UserError when there is none, when it cannot be read, or when it was made with another architecture,
        class map or optimizer. Then nothing is changed.
        """
        folder = self._folder(which)
        meta = folder.meta()
        if differences := _table("run has", _identity(meta), "now", _identity(self._meta)):
            raise UserError(f"{folder.path}: was made with other settings and cannot be resumed:\n{differences}")
        _restore(folder, model=net, optimizer=optimizer)
        return Progress(**meta["progress"])

    def close(self) -> None:
        """Ends Orbax's threads."""
        for folder in self._folders.values():
            folder.close()

    def _folder(self, which: str):
        if which not in self._folders:
            self._folders[which] = _open(self._places[which])
        return self._folders[which]


def load_model(run: Path, which: str = "best") -> tuple[unet.UNet, dict]:
    """Returns the network of a run in evaluation mode, and the run's description (see `Checkpoints`).

    - `run`: folder of the run
    - `which`: "best" or "last"

    The weights are the averaged ones if the run averages them (--ema). Raises UserError when `run` is no run, or its
    checkpoint is missing, damaged or of a newer version.
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
        else:  # the averaged weights are in the optimizer's state
            tx = optimizers.optimizer_from(settings.optimization, schedules.constant(0.0))
            optimizer = nnx.Optimizer(net, tx, wrt=nnx.Param)
            _restore(folder, model=net, optimizer=optimizer)
            nnx.update(net, nnx.to_pure_dict(nnx.state(optimizers.averaged(net, optimizer))))
    return unet.evaluation(net), description


def load_weights(net: unet.UNet, path: Path, channels: Colors = "rgb", reads: str | None = "bgr") -> None:
    """Loads weights into `net`: the best ones of a run's folder, or those of a PyTorch file with milesial's names.

    - `net`: network to change
    - `path`: folder of a run, or file
    - `channels`: order of the colors that the file's network was trained on; a run's is known
    - `reads`: what `net` reads: "bgr" for color pictures; other channels are taken in the file's order

    The colors of the file's first convolution are reversed where their order differs from that of `net`, and a line
    says so. Raises UserError when there are no weights, or when they belong to another network, with the differences
    side by side. Then nothing is changed.
    """
    state = torch_weights.to_torch(load_model(path)[0]) if path.is_dir() else read_pth(path)
    given, wanted = torch_weights.architecture(state), torch_weights.architecture(torch_weights.to_torch(net))
    if given and (differences := _table("there", given, "here", wanted)):
        raise UserError(f"{path}: holds the weights of another network:\n{differences}")
    here: Colors = "bgr" if path.is_dir() or reads != "bgr" else channels
    try:
        torch_weights.from_torch(net, state, here)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if here == "rgb" and wanted["channels"] in (3, 4):
        what = "trained on red, green, blue, which is turned here to blue, green, red"
        console.print(f"load  {path}: taken as {what}; if not so, --load-channels bgr")


# Orbax ----------------------------------------------------------------------------------------------------------------


def _place(run: Path, which: str, there: bool = False) -> Path:
    """Absolute path of a checkpoint. Raises UserError if Orbax cannot use it, or if it must be `there` and is not."""
    folder = (run / "checkpoints" / which).resolve()  # Orbax refuses relative paths, TensorStore those with ..
    if set("[]*?") & set(str(folder)):  # Orbax reads the path as a pattern
        raise UserError(
            f"{run}: checkpoints cannot be saved in a folder with one of []*? in its path; give another --out"
        )
    if there and not folder.is_dir():
        around = [parent for parent in run.absolute().parents if (parent / "checkpoints").is_dir()]
        what = "no such folder" if not run.exists() else f"not the folder of a run, it has no checkpoints/{which}"
        raise UserError(
            f"{run}: {what}" + (f"; did you mean {around[0]}?" if around else " (runs are kept in runs/ by default)")
        )
    return folder


def _open(folder: Path):
    from jaxseg.runs.orbax_folder import OrbaxFolder  # a quarter of a second to import: not before the first step

    return OrbaxFolder(folder)


def _arrays(thing: nnx.Module | nnx.Optimizer) -> dict:
    return nnx.to_pure_dict(nnx.state(thing))


def _restore(folder, **objects: nnx.Module | nnx.Optimizer) -> None:
    """Loads `objects` by the names they were saved under. Each array stays on its device."""
    restored = folder.restore({name: _arrays(thing) for name, thing in objects.items()})
    for name, thing in objects.items():
        nnx.update(thing, restored[name])


# Differences ----------------------------------------------------------------------------------------------------------


def _identity(meta: Mapping) -> dict[str, object]:
    """Settings that a resumed run cannot change: how files are read, architecture, and the optimizer's state."""
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
    """Formats the differences in keys that both have, in two columns; empty if there are none."""
    rows = [("", left, right)]
    rows += [(name, _text(a[name]), _text(b[name])) for name in a if name in b and a[name] != b[name]]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join(f"  {line}" for line in lines) if len(rows) > 1 else ""


def _text(value: object) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return "-" if value is None else str(value)
