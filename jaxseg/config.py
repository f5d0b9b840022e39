"""Everything a run can be told: frozen dataclasses, from which the command line is made and which a run saves.

`parse` reads a command line, `save` and `load` are a run's `config.json`.
"""

import dataclasses
import json
import math
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro


class UserError(ValueError):
    """A mistake that a person can mend. Commands print its message and exit with 2, without a traceback."""


@dataclasses.dataclass(frozen=True)
class Data:
    """Tiles and masks. Without --data or --images, crop fields are made up and used."""

    data: Path | None = None
    """Folder holding train/ Ltrain/ val/ Lval/, or train/ and val/ with images/ masks/ in each, or images/ masks/."""
    images: Path | None = None
    """Folder of training images, instead of --data; goes with --masks."""
    masks: Path | None = None
    """Folder of training masks: <image name up to its first dot>_mask.png, or the image's own stem."""
    val_images: Path | None = None
    """Folder of validation images; goes with --val-masks. Without it, --validation percent are set aside."""
    val_masks: Path | None = None
    """Folder of validation masks."""
    validation: float = 20.0
    """Percent of the pairs set aside when there is no validation folder (seeded; written to split.json)."""
    workers: int = min(os.cpu_count() or 1, 8)
    """Reader threads; 0 reads in the main thread."""
    cache_mb: int = 1024
    """Keep decoded tiles in memory when they fit in this many MiB; 0 always reads from disk."""


@dataclasses.dataclass(frozen=True)
class Model:
    """U-Net."""

    widths: tuple[int, ...] = (16, 32, 64, 128, 256)
    """Channels at each level, from full resolution down; milesial's network is 64 128 256 512 1024."""
    upsample: Literal["transpose", "bilinear"] = "transpose"
    """Transposed 2x2 convolution, or bilinear (align_corners) with halved widths."""
    conv_bias: bool = True
    """Biases in the 3x3 convolutions, as in the article; a BatchNorm follows each, so they change nothing."""
    init: Literal[
        "article", "torch_default", "kaiming_normal", "kaiming_uniform", "xavier_normal", "xavier_uniform"
    ] = "article"
    """Initial weights: the article's rule is Kaiming normal, fan_out, ReLU, on every convolution."""
    precision: Literal["f32", "bf16"] = "f32"
    """Type of the computation; parameters, statistics and the loss stay float32."""


@dataclasses.dataclass(frozen=True)
class Optimization:
    """Optimizer and learning rate."""

    epochs: Annotated[int, tyro.conf.arg(aliases=("-e",))] = 40
    """Passes over the training tiles."""
    batch_size: Annotated[int, tyro.conf.arg(aliases=("-b",))] = 4
    """Tiles a step. A short last batch is used, not dropped."""
    loss: Literal["cross_entropy", "dice", "dice_ce", "focal", "jaccard"] = "cross_entropy"
    """`dice`, `jaccard` and `focal` as in segmentation_models.pytorch; `dice_ce` is Dice plus cross-entropy."""
    label_smoothing: float = 0.0
    """Share of a pixel's label given to all classes alike, from 0 to 1; for cross_entropy and dice_ce."""
    optimizer: Literal["adam", "adamw", "rmsprop", "sgd"] = "adam"
    """Each with PyTorch's meaning of every option."""
    learning_rate: Annotated[float, tyro.conf.arg(aliases=("-l", "--lr"))] = 2e-3
    """Peak learning rate."""
    weight_decay: float | None = None
    """Decoupled for adamw, L2 inside the gradient for the others; if not given PyTorch's 0.01 and 0."""
    momentum: float = 0.9
    """For sgd and rmsprop."""
    nesterov: bool = False
    """For sgd."""
    clip_norm: float | None = None
    """Largest l2 norm of all gradients together; longer ones are scaled down to it. Not clipped if not given."""
    schedule: Literal["warmup_cosine", "article", "constant"] = "warmup_cosine"
    """`article` is what the article's code computes: a running product of cosines."""
    schedule_per: Literal["step", "epoch"] | None = None
    """How often the learning rate changes; if not given per epoch for `article`, else per step."""
    warmup_epochs: float | None = None
    """Linear warm-up; an eighth of --epochs if not given, the article's 5 of 40."""
    begin_lr: float = 1e-9
    """Learning rate at the start of the warm-up."""
    final_lr: float = 1e-9
    """Learning rate at the end."""
    augment: bool = True
    """Random flips and quarter turns of image and mask, on the device."""

    @property
    def per(self) -> str:
        """What the schedule counts: "step" or "epoch"."""
        return self.schedule_per or ("epoch" if self.schedule == "article" else "step")

    @property
    def decay(self) -> float:
        """Weight decay."""
        return (0.01 if self.optimizer == "adamw" else 0.0) if self.weight_decay is None else self.weight_decay

    @property
    def warmup(self) -> float:
        """Epochs of warm-up, whole when the schedule goes by epochs."""
        warmup = self.epochs / 8 if self.warmup_epochs is None else self.warmup_epochs
        return float(round(warmup)) if self.warmup_epochs is None and self.per == "epoch" else warmup


@dataclasses.dataclass(frozen=True)
class Run:
    """The run itself."""

    seed: int = 0
    """Weights, order, split and augmentation all follow from it."""
    out: Path | None = None
    """Run folder; runs/<date>-<time> if not given."""
    overwrite: bool = False
    """Delete what is in --out first."""
    resume: Path | None = None
    """Go on with the run in this folder, to the same bits as if it had never stopped."""
    log_every: int = 10
    """Steps between looks at the loss; nothing else waits for the device."""


@dataclasses.dataclass(frozen=True)
class Config:
    """All of it."""

    data: tyro.conf.OmitArgPrefixes[Data] = Data()
    model: tyro.conf.OmitArgPrefixes[Model] = Model()
    optimization: tyro.conf.OmitArgPrefixes[Optimization] = Optimization()
    run: tyro.conf.OmitArgPrefixes[Run] = Run()


def parse(argv: list[str] | None = None) -> Config:
    """Reads a command line; with `--resume RUN` the run's saved settings are the defaults, and may not be changed.

    Raises `UserError` listing every setting that cannot be, with the flag, the value found and what was expected.
    Exits with 2 on unknown flags (tyro prints them) and 0 after `-h`.
    """
    argv = sys.argv[1:] if argv is None else argv
    config = _cli(argv, Config())
    if (run := config.run.resume) is not None:
        saved = load(run)
        saved = dataclasses.replace(saved, run=dataclasses.replace(saved.run, resume=run, out=None))
        asked = _cli(argv, saved)
        if changed := _differences(saved, asked):
            raise UserError(
                f"--resume {run}: a resumed run keeps its settings, but these flags ask for others:\n"
                + "\n".join(f"  {flag:<18} run has {was}, command line has {now}" for flag, was, now in changed)
                + "\nLeave them out, or start a new run without --resume."
            )
        config = saved
    check(config)
    return config


def _cli(argv: list[str], default: Config) -> Config:
    return tyro.cli(
        Config,
        args=argv,
        default=default,
        prog="python -m jaxseg.train",
        description="Train a U-Net on a folder of tiles and masks.",
    )


def _differences(a: Config, b: Config) -> list[tuple[str, object, object]]:
    """(flag, value in `a`, value in `b`) wherever two configs differ."""
    rows = []
    for group in dataclasses.fields(Config):
        x, y = getattr(a, group.name), getattr(b, group.name)
        for field in dataclasses.fields(x):
            was, now = getattr(x, field.name), getattr(y, field.name)
            if was != now:
                rows.append((_flag(field.name), was, now))
    return rows


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def check(config: Config) -> None:
    """Raises `UserError` naming every setting that cannot be."""
    d, m, o, r = config.data, config.model, config.optimization, config.run
    rules = [
        (d.data is None or d.images is None, "--data and --images: give one of them, not both"),
        ((d.images is None) == (d.masks is None), "--images and --masks go together; only one was given"),
        (
            (d.val_images is None) == (d.val_masks is None),
            "--val-images and --val-masks go together; only one was given",
        ),
        (
            d.val_images is None or d.images is not None,
            "--val-images needs --images and --masks for the training tiles",
        ),
        (
            1 <= d.validation <= 90,
            f"--validation is {d.validation:g}; it is a percentage, from 1 to 90"
            + (f" (did you mean {100 * d.validation:g}?)" if 0 < d.validation < 1 else ""),
        ),
        (d.workers >= 0, f"--workers is {d.workers}; expected 0 or more"),
        (d.cache_mb >= 0, f"--cache-mb is {d.cache_mb}; expected 0 or more"),
        (len(m.widths) >= 2, f"--widths has {len(m.widths)} value; expected one a level, at least 2"),
        (all(w >= 1 for w in m.widths), f"--widths is {m.widths}; expected positive numbers of channels"),
        (
            m.upsample == "transpose" or all(w % 2 == 0 for w in m.widths),
            f"--widths is {m.widths}; --upsample bilinear halves them, so they must be even",
        ),
        (o.epochs >= 1, f"--epochs is {o.epochs}; expected 1 or more"),
        (o.batch_size >= 1, f"--batch-size is {o.batch_size}; expected 1 or more"),
        (
            0 <= o.warmup < o.epochs or o.schedule == "constant",
            f"--warmup-epochs is {o.warmup:g}; expected at least 0 and less than --epochs, which is {o.epochs}",
        ),
        (
            o.per == "step" or float(o.warmup).is_integer() or o.schedule == "constant",
            f"--warmup-epochs is {o.warmup:g}; with --schedule-per epoch it must be a whole number",
        ),
        (not (o.nesterov and o.momentum == 0), "--nesterov needs a --momentum above 0"),
        (
            o.label_smoothing == 0 or o.loss in ("cross_entropy", "dice_ce"),
            f"--label-smoothing is for --loss cross_entropy and dice_ce, not {o.loss}",
        ),
        (0 <= o.label_smoothing <= 1, f"--label-smoothing is {o.label_smoothing:g}; expected 0 to 1"),
        (not o.nesterov or o.optimizer == "sgd", f"--nesterov is for --optimizer sgd, not {o.optimizer}"),
        (
            o.clip_norm is None or 0 < o.clip_norm < math.inf,
            f"--clip-norm is {o.clip_norm}; expected a number above 0",
        ),
        (0 <= o.momentum < 1, f"--momentum is {o.momentum:g}; expected 0 or more and less than 1"),
        (r.log_every >= 1, f"--log-every is {r.log_every}; expected 1 or more"),
        (0 <= r.seed < 2**32, f"--seed is {r.seed}; expected 0 or more and less than 2**32"),
    ]
    rates = {name: getattr(o, name) for name in ("learning_rate", "begin_lr", "final_lr")} | {"weight_decay": o.decay}
    for name, value in rates.items():
        rules.append((math.isfinite(value) and value >= 0, f"{_flag(name)} is {value}; expected a number of 0 or more"))
    if wrong := [message for holds, message in rules if not holds]:
        raise UserError("\n".join(wrong))


def dumps(config: Config) -> str:
    """`config` as JSON."""
    return json.dumps(dataclasses.asdict(config), indent=2, default=_as_json)


def save(config: Config, path: Path) -> None:
    """Writes `config` as JSON."""
    path.write_text(dumps(config) + "\n", encoding="utf-8")


def _as_json(value: object) -> str:
    if isinstance(value, Path):
        return value.as_posix()
    raise TypeError(f"cannot write {type(value).__name__} to a config file")


def load(run: Path) -> Config:
    """Reads the settings of the run in folder `run`. Raises `UserError` when there are none or they cannot be read."""
    path = run / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{run}: not a run folder, it has no config.json (runs are kept in runs/ by default)") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from None
    return from_dict(values, where=str(path))


def from_dict(values: object, where: str = "config") -> Config:
    """The inverse of `dataclasses.asdict`, after JSON. Unknown and missing keys are errors, all named."""
    if not isinstance(values, dict) or not all(isinstance(group, dict) for group in values.values()):
        raise UserError(f'{where}: holds no settings; expected groups of them, such as {{"run": {{"seed": 0}}}}')
    groups, wrong = {}, []
    for group in dataclasses.fields(Config):
        kind = type(group.default)
        given = dict(values.get(group.name) or {})
        names = {f.name: f for f in dataclasses.fields(kind)}
        wrong += [f"unknown setting {group.name}.{k}" for k in given if k not in names]
        wrong += [f"missing setting {group.name}.{k}" for k in names if k not in given]
        groups[group.name] = (kind, {k: _restore(names[k], v) for k, v in given.items() if k in names})
    wrong += [f"unknown group {k}" for k in values if k not in groups]
    if wrong:
        raise UserError(f"{where}: " + "; ".join(wrong) + ". Was it written by another version of jaxseg?")
    return Config(**{name: kind(**given) for name, (kind, given) in groups.items()})


def _restore(field: dataclasses.Field, value: object) -> object:
    if field.type == Path | None and value is not None:
        return Path(value)
    return tuple(value) if isinstance(value, list) else value
