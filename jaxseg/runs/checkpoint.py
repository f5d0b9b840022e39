"""Checkpoints of a run, `checkpoints/last` and `checkpoints/best`: enough to resume it, or to predict without flags.

A checkpoint is a folder named after its step, see `orbax_folder`. A new one is written beside the old one and committed
by a rename. Only then is the old one removed, so a killed run always leaves a complete one. Each file has its digest:
where one of the two checkpoints is damaged, the other is read instead, with a line on stderr. Another kind of device
can read it.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from flax import nnx

from jaxseg import __version__
from jaxseg.base import cli, config
from jaxseg.base.config import Config
from jaxseg.base.errors import DamagedCheckpoint, UserError
from jaxseg.learn import optimizers, schedules
from jaxseg.nn import unet
from jaxseg.nn.network import Network
from jaxseg.runs.differences import identity, table
from jaxseg.runs.disk_errors import writing

OTHER = {"last": "best", "best": "last"}
"""The two checkpoints of a run, each with the one that is read if it is damaged."""
ONE_START = {"out", "overwrite", "resume", "load", "preset", "encoder_weights", "encoder_sha256"}
"""Settings that say how a run was started, not how it is trained."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """Position of a run.

    - `epoch`, `batch`: numbers of the next batch, from 0
    - `totals`: state of `metrics.Totals` for a partial epoch
    - `best`: line of log.jsonl for the best epoch so far
    - `plateau`: state of `schedules.Plateau`
    - `devices`: what the run was on; "" in checkpoints of earlier versions
    """

    epoch: int = 0
    batch: int = 0
    totals: dict | None = None
    best: dict | None = None
    plateau: dict | None = None
    devices: str = ""


class Checkpoints:
    """Writes and reads the checkpoints of a run.

    - `run`: folder of the run
    - `settings`: settings of the run
    - `description`: data of the run: {"classes": names in order, "in_channels": int, "reading": `Reading.to_dict()`,
      "tile": [h, w] of the training samples}

    Raises UserError when the path has one of `[]*?`, which Orbax cannot use, or when its folders cannot be made.
    """

    def __init__(self, run: Path, settings: Config, description: dict):
        saved = {"config": json.loads(config.dumps(settings)), "description": json.loads(json.dumps(description))}
        self._meta = {"jaxseg": __version__, **saved}
        self._folders = {which: _place(run, which) for which in OTHER}
        for place in self._folders.values():
            try:
                place.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"{place}: cannot be made ({error.strerror})") from None
        self._whole: dict[str, int] = {}  # steps of the checkpoints that this process has written or read

    def save(self, which: str, step: int, net: nnx.Module, optimizer: nnx.Optimizer, progress: Progress) -> None:
        """Writes a checkpoint, unless it is there with this step already.

        - `which`: "last" or "best"
        - `step`: number of finished steps
        - `net`, `optimizer`: what to save
        - `progress`: position of the run

        Raises OSError when it cannot be written; the checkpoint before is then kept.
        """
        if self._whole.get(which) == step:
            return
        meta = self._meta | {"progress": dataclasses.asdict(progress)}
        trees = {"model": _arrays(net), "optimizer": _arrays(optimizer)}
        with writing(self._folders[which], trees):
            _open(self._folders[which]).save(step, meta, trees)
        self._whole[which] = step

    def restore(self, which: str, net: nnx.Module, optimizer: nnx.Optimizer) -> Progress:
        """Loads checkpoint `which`, "last" or "best", into `net` and `optimizer`, and returns the run's position.

        Raises UserError when there is none or when it was made with another architecture, class map or optimizer, and
        DamagedCheckpoint when it cannot be read. Then nothing is changed.
        """
        folder = _open(self._folders[which])
        meta = folder.meta()
        if differences := table("run has", identity(meta), "now", identity(self._meta)):
            raise UserError(f"{folder.path}: was made with other settings and cannot be resumed:\n{differences}")
        _restore(folder, model=net, optimizer=optimizer)
        self._whole[which] = folder.step
        return Progress(**meta["progress"])

    def resume(self, net: nnx.Module, optimizer: nnx.Optimizer) -> Progress | None:
        """Loads the newest checkpoint, or the other one with a line on stderr if it is damaged. It becomes the last.

        Returns the run's position, without `best` if checkpoint "best" is damaged; None when there is no checkpoint.
        Raises UserError as `restore` does, and when none is whole.
        """
        folders = {which: _open(folder) for which, folder in self._folders.items()}
        steps = {which: folder.step for which, folder in folders.items()}
        for which, folder in folders.items():
            folder.clean(steps[which])
        newest = sorted((which for which in steps if steps[which] is not None), key=lambda which: -steps[which])
        if not newest:
            return None

        def read(which: str) -> Progress:
            self._check_settings(which)
            return self.restore(which, net, optimizer)

        taken, progress = _first_whole(newest, read)
        if taken == "best":  # the last one is damaged, or older as a kill came between the two
            self.save("last", steps["best"], net, optimizer, progress)
            return progress
        if progress.best is None:
            return progress
        try:
            folders["best"].check()
        except UserError as error:
            print(f"warning: {error}; the best weights so far are lost", file=sys.stderr)
            return dataclasses.replace(progress, best=None)
        return progress

    def _check_settings(self, which: str) -> None:
        """Raises UserError when config.json has other settings than the checkpoint, unless they may change."""
        folder = self._folders[which]
        saved, now = (config.from_dict(x["config"]) for x in (_open(folder).meta(), self._meta))
        rows = [row for row in cli.differences(saved, now) if row[0] not in cli.MAY_CHANGE | ONE_START]
        if rows:
            raise UserError(
                f"{folder.parents[1] / 'config.json'}: has other settings than the run was trained with:\n"
                + config.two_columns([(config.flag(name), *values) for name, *values in rows], "trained", "config.json")
                + "\nRestore them, or start a new run (--load takes the weights along)."
            )


def newest_step(run: Path) -> int | None:
    """Returns the step of a run's newest checkpoint, whole or damaged; None if it has none."""
    steps = [_open(_place(run, which)).step for which in OTHER]
    return max((step for step in steps if step is not None), default=None)


def load_model(run: Path, which: str = "best") -> tuple[Network, dict]:
    """Returns the network of a run in evaluation mode, and the run's description (see `Checkpoints`).

    - `run`: folder of the run
    - `which`: "best" or "last"

    If it is damaged the other one is taken, and a line on stderr says so: `description["checkpoint"]` is the one taken.
    The weights are the averaged ones if the run averages them (--ema). Raises UserError when `run` is no run, or its
    checkpoints are missing, damaged or of a newer version.
    """
    folders = {name: _open(_place(run, name)) for name in (which, OTHER[which])}
    _place(run, which, there=True)
    if folders[which].step is None and folders[OTHER[which]].step is not None:
        raise UserError(f"{folders[which].path}: no checkpoint in it; give --checkpoint {OTHER[which]}")
    there = [name for name in folders if name == which or folders[name].step is not None]
    taken, (net, description) = _first_whole(there, lambda name: _steadily(folders[name]))
    return net, description | {"checkpoint": taken}


def _steadily(folder) -> tuple[Network, dict]:
    """Loads a network, once more when a run that is being trained replaced its checkpoint meanwhile."""
    while True:
        step = folder.step
        try:
            return _network(folder)
        except DamagedCheckpoint:
            if folder.step == step:
                raise


def _network(folder) -> tuple[Network, dict]:
    """The network of a checkpoint in evaluation mode, and the run's description."""
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


def _first_whole(names: Sequence[str], read: Callable) -> tuple[str, object]:
    """Returns the first of the checkpoints `names` that is not damaged, and what `read` makes of its name.

    Prints a line on stderr when it is not the first. Raises UserError naming all when none is whole.
    """
    errors: list[DamagedCheckpoint] = []
    for which in names:
        try:
            result = read(which)
        except DamagedCheckpoint as error:
            errors.append(error)
            continue
        if errors:
            print(f"warning: {errors[0]}; checkpoints/{which} is taken instead", file=sys.stderr)
        return which, result
    advice = "There is no other one: restore it from a copy, or start the run again."
    raise DamagedCheckpoint("\n".join([*map(str, errors), advice]))


def _open(folder: Path):
    from jaxseg.runs.orbax_folder import OrbaxFolder  # a quarter of a second to import: not before the first step

    return OrbaxFolder(folder)


def _arrays(thing: nnx.Module | nnx.Optimizer) -> dict:
    """Arrays of `thing`, each as one of its devices has it."""
    return jax.tree.map(lambda x: x.addressable_data(0), nnx.to_pure_dict(nnx.state(thing)))


def _restore(folder, **objects: nnx.Module | nnx.Optimizer) -> None:
    """Loads `objects` by the names they were saved under. Each array stays on its device."""
    restored = folder.restore({name: _arrays(thing) for name, thing in objects.items()})
    for name, thing in objects.items():
        nnx.update(thing, restored[name])
