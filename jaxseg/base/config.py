"""Settings of a run: frozen dataclasses, from which the command line is made and which a run saves.

`save` and `load` write and read a run's `config.json`; `cli.parse` reads a command line.

How to add a setting:

1. Add a field with a default and a docstring to its group below. The command line and `config.json` follow.
2. Say in `rules.py` which values it may have.
3. Earlier runs lack it. If the default is not what earlier versions did, put what they did into `EARLIER`.
4. If a resumed run may change it, add its name to `cli.MAY_CHANGE`.
"""

import dataclasses
import functools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, get_args

import platformdirs
import tyro

from jaxseg.base.errors import UserError
from jaxseg.base.files import replace

IGNORE_INDEX = 255
"""The label of pixels that count for nothing: no loss, no gradient, no metric."""


LARGEST = 1024
"""Pixels a side up to which images are trained, validated and scored whole."""


def cache_folder() -> Path:
    """Where is kept what need not be found out twice: the user's cache folder, or what JAXSEG_CACHE_DIR names."""
    root = os.environ.get("JAXSEG_CACHE_DIR")
    return Path(root) if root else platformdirs.user_cache_path("jaxseg")


def flag(name: str) -> str:
    """The flag of a setting."""
    return "--" + name.replace("_", "-")


def two_columns(rows: Sequence[tuple[str, object, object]], left: str, right: str) -> str:
    """Lines that set two values of each thing side by side, under the heads `left` and `right`."""
    first = max(len(name) for name, *_ in rows) + 2
    second = max(len(str(value)) for value in (left, *(was for _, was, _ in rows))) + 2
    return "\n".join(f"  {name:<{first}}{was!s:<{second}}{now}" for name, was, now in [("", left, right), *rows])


@dataclasses.dataclass(frozen=True)
class Data:
    """Images and masks. Without --data or --images, crop fields are made up and used."""

    data: Path | None = None
    """Folder in one of the known layouts (train/ Ltrain/ val/ Lval/, images/ masks/, VOC's, mmseg's and others)."""
    images: Path | None = None
    """Folder of training images, instead of --data; goes with --masks."""
    masks: Path | None = None
    """Folder of training masks."""
    val_images: Path | None = None
    """Folder of validation images; goes with --val-masks."""
    val_masks: Path | None = None
    """Folder of validation masks."""
    image_suffix: str | None = None
    """End of the images' stems that masks lack, such as _sat; found by itself if not given."""
    mask_suffix: str | None = None
    """End of the masks' stems that images lack, such as _mask or _label; found by itself if not given."""
    train_list: Path | None = None
    """File with the stem of a training image a line; goes with --val-list."""
    val_list: Path | None = None
    """File with the stem of a validation image a line."""
    validation: Annotated[float, tyro.conf.arg(aliases=("-v",))] = 20.0
    """Percent of the pairs set aside when there is no validation set (seeded; written to split.json)."""
    group_by: str | None = None
    """Pattern whose first group names what must not be split, such as 'scene(\\d+)_'."""
    channels: tuple[int, ...] | None = None
    """Bands of the images to use, from 1 in the file's order; all if not given."""
    nodata: float | None = None
    """Pixel value without meaning, ignored; a GeoTIFF's own if not given. NaN always is."""
    normalize: Literal["unit", "dataset", "imagenet"] = "unit"
    """`unit`: the type's range becomes 0 to 1; the others then take off a mean and divide by a deviation."""
    classes: Annotated[int | None, tyro.conf.arg(aliases=("-c",))] = None
    """Number of classes, when masks hold 0 to this less 1 but not all of them occur."""
    labels: tuple[str, ...] | None = None
    """Mask values of class 0, 1, ...: integers, or colors as '#rrggbb'; found in the masks if not given."""
    class_names: tuple[str, ...] | None = None
    """Names of the classes."""
    ignore_index: tuple[int, ...] | None = None
    """Mask values that count for nothing; if not given 255 where there are two others or more."""
    binarize: int | None = None
    """Mask values from this one on are class 1, lower ones class 0; 255 is the article's rule."""
    snap_colors: bool = False
    """Mask values that are not among --labels become the nearest of them."""
    crop: int | None = None
    """Side of random square crops for training; if not given whole images, or crops when their sizes differ."""
    crops: int = 1
    """Crops of each image an epoch."""
    on_bad_file: Literal["error", "skip"] = "error"
    """Whether a pair that cannot be read ends the run or is left out and named."""
    workers: int = min(os.cpu_count() or 1, 8)
    """Reader threads; 0 reads in the main thread."""
    cache: Literal["auto", "none", "memory", "disk", "device"] = "auto"
    """Where decoded images are kept after the first epoch: `memory`; `disk`, a file in the user's cache folder, for
    later runs too; `device`, where batches are then made; `auto`: memory if they fit, else read anew each epoch."""
    cache_mb: int = 1024
    """Most MiB of memory for decoded images."""


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What is drawn anew for every sample of every step, on the device; the same geometry for image and mask."""

    augment: bool = True
    """All of it, or nothing."""
    flips: bool = True
    """Mirror images and quarter turns, all eight alike probable."""
    zoom: float = 0.0
    """Scale from 1 / (1 + this) to 1 + this."""
    brightness: float = 0.0
    """Most that is added to all values, as part of their range (0 to 1)."""
    contrast: float = 0.0
    """Distance from the image's mean times 1 - this to 1 + this."""
    noise: float = 0.0
    """Largest standard deviation of normal noise, as part of the range."""
    blur: float = 0.0
    """Largest standard deviation of a Gaussian blur, in pixels."""


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
    dropout: float = 0.0
    """Share of the deepest features dropped in training."""
    precision: Literal["f32", "bf16"] = "f32"
    """Type of the computation; parameters, statistics and the loss stay float32."""
    remat: bool = False
    """Compute activations again on the way back instead of keeping them: less memory, a third more time."""


@dataclasses.dataclass(frozen=True)
class Optimization:
    """Loss, optimizer and learning rate."""

    epochs: Annotated[int, tyro.conf.arg(aliases=("-e",))] = 40
    """Passes over the training set."""
    steps: int | None = None
    """Updates, instead of --epochs; validation still comes after every pass."""
    batch_size: Annotated[int, tyro.conf.arg(aliases=("-b",))] = 4
    """Tiles an update. A short last batch is used, not dropped."""
    accumulate: int = 1
    """Parts into which a batch is cut, one after the other in memory; their gradients are averaged."""
    loss: Literal["cross_entropy", "dice", "dice_ce", "focal", "hinge", "jaccard", "lovasz", "mse", "tversky"] = (
        "cross_entropy"
    )
    """`dice`, `jaccard`, `tversky`, `focal`, `lovasz` as in segmentation_models.pytorch; `dice_ce` is Dice plus
    cross-entropy."""
    class_weights: tuple[str, ...] | None = None
    """A number a class, or how to weigh them by their pixels: inverse, sqrt, median, effective; auto is sqrt."""
    label_smoothing: float = 0.0
    """Share of a pixel's label given to all classes alike, from 0 to 1; for cross_entropy and dice_ce."""
    ohem: float | None = None
    """Online hard example mining: only this share of the pixels, those with the largest loss; for cross_entropy."""
    tversky_alpha: float = 0.5
    """Weight of false positives."""
    tversky_beta: float = 0.5
    """Weight of false negatives."""
    focal_gamma: float = 2.0
    """How much easy pixels are discounted."""
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
    ema: float | None = None
    """Decay of a moving average of the weights, such as 0.999; it is what is evaluated and kept as best."""
    early_stopping: int | None = None
    """Stop after this many epochs without a better mIoU."""
    schedule: Literal[
        "warmup_cosine",
        "article",
        "constant",
        "piecewise_constant",
        "factor",
        "multi_factor",
        "exponential",
        "linear",
        "polynomial",
        "cosine",
        "cosine_restarts",
        "cyclic",
        "one_cycle",
        "plateau",
    ] = "warmup_cosine"
    """`article` is what the article's code computes: a running product of cosines."""
    schedule_per: Literal["step", "epoch"] | None = None
    """How often the learning rate changes; if not given per epoch for `article`, else per step."""
    warmup_epochs: float | None = None
    """Linear warm-up before any schedule; if not given an eighth of the run for warmup_cosine and article, else 0."""
    begin_lr: float = 1e-9
    """Learning rate at the start of the warm-up."""
    final_lr: float = 1e-9
    """Learning rate at the end."""
    milestones: tuple[float, ...] = ()
    """Epochs at which piecewise_constant and multi_factor change the rate."""
    rates: tuple[float, ...] = ()
    """Learning rates of piecewise_constant, one more than --milestones."""
    gamma: float = 0.1
    """What the rate is multiplied with at each milestone, every --period epochs, or when a plateau is over."""
    period: float | None = None
    """Epochs: of a step of factor (10), a decay by --gamma of exponential (the run), a cycle (a quarter of the run)."""
    cycle_factor: float = 1.0
    """Each of cosine_restarts' cycles is this many times as long as the one before."""
    power: float = 0.9
    """Exponent of polynomial."""
    patience: int = 5
    """Epochs without a better mIoU that plateau waits for."""

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
        if self.warmup_epochs is not None:
            return self.warmup_epochs
        if self.schedule not in ("warmup_cosine", "article"):
            return 0.0
        return float(round(self.epochs / 8)) if self.per == "epoch" else self.epochs / 8


@dataclasses.dataclass(frozen=True)
class Run:
    """The run itself."""

    preset: Literal["default", "article"] = "default"
    """Where unset flags take their values from; `article` is the article's recipe."""
    seed: int = 0
    """Weights, order, split and augmentation all follow from it."""
    out: Path | None = None
    """Run folder; runs/<date>-<time> if not given."""
    overwrite: bool = False
    """Delete what is in --out first."""
    resume: Path | None = None
    """Go on with the run in this folder, to the same bits as if it had never stopped."""
    load: Annotated[Path | None, tyro.conf.arg(aliases=("-f",))] = None
    """Start from the weights of this run, or of a PyTorch .pth with milesial's names."""
    dry_run: bool = False
    """Check data and settings, say what would be done, and take no step."""
    overfit: int = 0
    """Train and validate on this many images only, without augmentation: a test of the wiring."""
    log_every: int = 10
    """Steps between looks at the loss; nothing else waits for the device."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclasses.dataclass(frozen=True)
class Config:
    """All of it."""

    data: tyro.conf.OmitArgPrefixes[Data] = Data()
    augmentation: tyro.conf.OmitArgPrefixes[Augmentation] = Augmentation()
    model: tyro.conf.OmitArgPrefixes[Model] = Model()
    optimization: tyro.conf.OmitArgPrefixes[Optimization] = Optimization()
    run: tyro.conf.OmitArgPrefixes[Run] = Run()


def dumps(config: Config) -> str:
    """`config` as JSON."""
    return json.dumps(dataclasses.asdict(config), indent=2, default=_as_json)


def save(config: Config, path: Path) -> None:
    """Writes `config` as JSON, whole or not at all."""
    replace(path, (dumps(config) + "\n").encode())


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
    """The inverse of `dataclasses.asdict`, after JSON, for the settings of this version and of every earlier one.

    A setting that is missing takes the value with which this version does what the earlier one did, and a line on
    stderr names it. Raises `UserError` naming every unknown setting.
    """
    if not values or not isinstance(values, dict) or not all(isinstance(group, dict) for group in values.values()):
        raise UserError(f'{where}: holds no settings; expected groups of them, such as {{"run": {{"seed": 0}}}}')
    groups, unknown, lacking = {}, [f"unknown group {name}" for name in values], []
    for group in dataclasses.fields(Config):
        kind, given = type(group.default), dict(values.get(group.name) or {})
        fields = {field.name: field for field in dataclasses.fields(kind)}
        before = {name: EARLIER.get(f"{group.name}.{name}", field.default) for name, field in fields.items()}
        unknown = [line for line in unknown if line != f"unknown group {group.name}"]
        unknown += [f"unknown setting {group.name}.{name}" for name in given if name not in fields]
        lacking += [f"{flag(name)} {value}" for name, value in before.items() if name not in given]
        groups[group.name] = (kind, before | {k: _restore(fields[k], v) for k, v in given.items() if k in fields})
    if unknown:
        raise UserError(f"{where}: " + "; ".join(unknown) + ". Was it written by a newer version of jaxseg?")
    if lacking:
        _note(f"note: {where}: written by an earlier version; settings that it lacks: {', '.join(lacking)}")
    return Config(**{name: kind(**given) for name, (kind, given) in groups.items()})


EARLIER: dict[str, object] = {}
"""Settings whose default is not what earlier versions did: {"group.name": what they did}."""


@functools.cache
def _note(line: str) -> None:
    """Prints a line on stderr, once in a process."""
    print(line, file=sys.stderr)


def _restore(field: dataclasses.Field, value: object) -> object:
    kind = get_args(field.type)[0] if hasattr(field.type, "__metadata__") else field.type
    if kind == Path | None and value is not None:
        return Path(value)
    return tuple(value) if isinstance(value, list) else value
