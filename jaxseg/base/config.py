"""Settings of a run: frozen dataclasses that define the command line and are saved with the run.

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
from typing import Annotated, Literal, get_args, get_origin

import platformdirs
import tyro

from jaxseg.base.errors import UserError
from jaxseg.base.files import replace

IGNORE_INDEX = 255
"""Label of ignored pixels: no loss, no gradient, no metric."""

LARGEST = 1024
"""Side in pixels up to which images are trained, validated and scored whole."""


def cache_folder() -> Path:
    """Returns the folder of caches: JAXSEG_CACHE_DIR, or else the user's cache folder."""
    root = os.environ.get("JAXSEG_CACHE_DIR")
    return Path(root) if root else platformdirs.user_cache_path("jaxseg")


def flag(name: str) -> str:
    """Returns the flag of a setting: `batch_size` is `--batch-size`."""
    return "--" + name.replace("_", "-")


def two_columns(rows: Sequence[tuple[str, object, object]], left: str, right: str) -> str:
    """Formats rows of (name, left value, right value) as aligned lines.

    - `rows`: at least one row
    - `left`, `right`: headings of the two columns of values
    """
    first = max(len(name) for name, *_ in rows) + 2
    second = max(len(str(value)) for value in (left, *(was for _, was, _ in rows))) + 2
    return "\n".join(f"  {name:<{first}}{was!s:<{second}}{now}" for name, was, now in [("", left, right), *rows])


@dataclasses.dataclass(frozen=True)
class Data:
    """Images and masks."""

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
    """End of the image stems that mask stems lack, such as _sat; detected if not given."""
    mask_suffix: str | None = None
    """End of the mask stems that image stems lack, such as _mask or _label; detected if not given."""
    unpaired: Literal["error", "skip"] = "error"
    """`error` stops at images without a mask and masks without an image; `skip` leaves them out and names them."""
    train_list: Path | None = None
    """Text file with one stem of a training image per line. Without --val-list, validation is drawn from it."""
    val_list: Path | None = None
    """Text file with one stem of a validation image per line; needs --train-list."""
    validation: Annotated[float, tyro.conf.arg(aliases=("-v",))] = 20.0
    """Percent of the pairs, 1 to 90, drawn for validation (by --seed) when there is no validation set."""
    group_by: str | None = None
    """Regular expression. Files with the same first group stay on one side of the split, such as 'scene(\\d+)_'.
    `auto`: images with coordinates are split by blocks on the ground, with a gap of left out images between."""
    channels: tuple[int, ...] | None = None
    """Bands of the images to use, counted from 1; all if not given."""
    nodata: float | None = None
    """Value that means no data; the file's own or GDAL's mask if not given. Pixels are ignored where all bands have no
    data or are NaN."""
    normalize: Literal["unit", "dataset", "imagenet", "encoder"] | None = None
    """`unit` scales the type's range to 0 to 1. The others then standardize: by the data's statistics, ImageNet's, or
    those that --encoder-weights were trained with. If not given `encoder` with such weights, else `unit`."""
    encoder_mean: tuple[float, ...] = ()
    """Mean of red, green and blue, scaled to 0 to 1, for --normalize encoder; noted from the weights' folder, else
    ImageNet's."""
    encoder_std: tuple[float, ...] = ()
    """Standard deviation of red, green and blue, likewise."""
    classes: Annotated[int | None, tyro.conf.arg(aliases=("-c",))] = None
    """Number of classes, 2 to 255, when mask values are 0, 1, ... and not all of them occur."""
    labels: tuple[str, ...] | None = None
    """Mask values of class 0, 1, ...: integers, or colors as '#rrggbb'; detected if not given."""
    class_names: tuple[str, ...] | None = None
    """Names of the classes."""
    ignore_index: tuple[int, ...] | None = None
    """Mask values to ignore; if not given 255, where it is rare or outlines two others or more."""
    binarize: int | None = None
    """Threshold, 1 or more: mask values from it on are class 1, lower ones class 0. The article's is 255."""
    snap_colors: bool = False
    """Replace mask values that are not among --labels by the nearest of them."""
    crop: int | None = None
    """Side in pixels of random training crops; if not given whole images, or crops where sizes differ or are large."""
    crops: int = 1
    """Crops per image and epoch; needs --crop."""
    on_bad_file: Literal["error", "skip"] = "error"
    """`error` stops at pairs that cannot be read; `skip` leaves them out and names them."""
    workers: int = min(os.cpu_count() or 1, 8)
    """Reader threads; 0 reads in the main thread."""
    cache: Literal["auto", "none", "memory", "disk", "device"] = "auto"
    """Where decoded images are kept after the first epoch. `none` reads files each epoch. `disk`: a file in the user's
    cache folder, for later runs too. `device` also makes batches there. `auto`: `memory` if they fit, else `none`."""
    cache_mb: int = 1024
    """Memory for decoded images, in MiB."""


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Random changes of every sample in every step, on the device. Image and mask get the same geometry."""

    augment: bool = True
    """Augment at all."""
    flips: bool = True
    """One of the eight flips and quarter turns, equally likely."""
    zoom: float = 0.0
    """Largest zoom, 0 or more: scale from 1 / (1 + zoom) to 1 + zoom."""
    brightness: float = 0.0
    """Largest amount added to or subtracted from all values, 0 or more; their range is 0 to 1."""
    contrast: float = 0.0
    """Largest change of contrast, 0 to 1: distances from the mean times 1 - contrast to 1 + contrast."""
    noise: float = 0.0
    """Largest standard deviation of Gaussian noise, 0 or more; the values' range is 0 to 1."""
    blur: float = 0.0
    """Largest standard deviation of a Gaussian blur, in pixels, 0 or more."""


@dataclasses.dataclass(frozen=True)
class Model:
    """U-Net."""

    widths: tuple[int, ...] = (16, 32, 64, 128, 256)
    """Channels at each level, from full resolution down; milesial's network is 64 128 256 512 1024."""
    upsample: Literal["transpose", "bilinear"] = "transpose"
    """`transpose`: 2x2 transposed convolution. `bilinear`: interpolation with aligned corners, and halved widths."""
    conv_bias: bool = True
    """Biases in the 3x3 convolutions, as in the article. They have no effect, because a BatchNorm follows each."""
    init: Literal[
        "article", "torch_default", "kaiming_normal", "kaiming_uniform", "xavier_normal", "xavier_uniform"
    ] = "article"
    """Initial weights. `article` is Kaiming normal with fan_out and ReLU's gain for every convolution."""
    dropout: float = 0.0
    """Share of the deepest features dropped in training, 0 or more and less than 1."""
    precision: Literal["f32", "bf16"] = "f32"
    """Floating-point type of the network's computation. Parameters, statistics and loss stay float32."""
    remat: bool = False
    """Recompute activations in the backward pass: less memory, a third more time."""
    encoder: Literal["resnet18", "resnet34", "resnet50"] | None = None
    """ResNet as encoder, as segmentation_models.pytorch's Unet has it, instead of --widths, --upsample, --conv-bias."""

    @property
    def least_side(self) -> int:
        """Smallest height and width of an image, in pixels."""
        return 32 if self.encoder else 2 ** (len(self.widths) - 1)

    def deepest(self, side: int) -> int:
        """Height or width of the deepest features of an image with this height or width."""
        return -(-side // self.least_side) if self.encoder else side // self.least_side

    @property
    def flags(self) -> str:
        """Flags that say how large the network is."""
        return f"--encoder {self.encoder}" if self.encoder else f"--widths {' '.join(map(str, self.widths))}"

    @property
    def title(self) -> str:
        """Name of the network for a person."""
        return f"U-Net with {self.encoder}" if self.encoder else f"U-Net {'-'.join(map(str, self.widths))}"


@dataclasses.dataclass(frozen=True)
class Optimization:
    """Loss, optimizer and learning rate."""

    epochs: Annotated[int, tyro.conf.arg(aliases=("-e",))] = 40
    """Passes over the training set."""
    steps: int | None = None
    """Optimizer steps, instead of --epochs. Validation still follows every epoch."""
    batch_size: Annotated[int, tyro.conf.arg(aliases=("-b",))] = 4
    """Samples per optimizer step. A short last batch is used, not dropped."""
    accumulate: int = 1
    """Micro-batches per batch, for less memory; a divisor of --batch-size. Gradients are averaged over them."""
    loss: Literal["cross_entropy", "dice", "dice_ce", "focal", "hinge", "jaccard", "lovasz", "mse", "tversky"] = (
        "cross_entropy"
    )
    """Loss; `dice`, `jaccard`, `tversky`, `focal`, `lovasz` as in segmentation_models.pytorch. `dice_ce` is the sum of
    Dice and cross-entropy."""
    class_weights: tuple[str, ...] | None = None
    """One weight per class, or a rule based on pixel counts: inverse, sqrt, median, effective; auto is sqrt."""
    label_smoothing: float = 0.0
    """Share of a label spread evenly over all classes, 0 to 1; for cross_entropy and dice_ce."""
    ohem: float | None = None
    """Online hard example mining: share of pixels, those with the largest loss, above 0 up to 1; for cross_entropy."""
    tversky_alpha: float = 0.5
    """Weight of false positives, 0 or more; for tversky."""
    tversky_beta: float = 0.5
    """Weight of false negatives, 0 or more; for tversky."""
    focal_gamma: float = 2.0
    """How much less easy pixels count, 0 or more; for focal."""
    freeze_encoder: int = 0
    """Epochs at the start in which the encoder's weights are held. Its BatchNorm then uses its running statistics, and
    leaves them as they are."""
    encoder_lr_factor: float = 1.0
    """Learning rate of the encoder relative to that of the decoder, 0 or more, such as 0.1."""
    optimizer: Literal["adam", "adamw", "rmsprop", "sgd"] = "adam"
    """Optimizer, with PyTorch's formulas."""
    learning_rate: Annotated[float, tyro.conf.arg(aliases=("-l", "--lr"))] = 2e-3
    """Peak learning rate, 0 or more."""
    weight_decay: float | None = None
    """Weight decay, 0 or more: decoupled for adamw (default 0.01), else added to the gradient (default 0)."""
    momentum: float = 0.9
    """Momentum, 0 or more and less than 1; for sgd and rmsprop."""
    nesterov: bool = False
    """Nesterov momentum; for sgd."""
    clip_norm: float | None = None
    """Largest L2 norm of all gradients together; a larger one is scaled down to it. No clipping if not given."""
    ema: float | None = None
    """Decay of a moving average of the weights, between 0 and 1, such as 0.999. The average is evaluated."""
    early_stopping: int | None = None
    """Stop after this many epochs without a better validation mIoU."""
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
    """Learning rate over time. `article` is the article's code: a running product of cosines."""
    schedule_per: Literal["step", "epoch"] | None = None
    """How often the learning rate changes; if not given per epoch for article, else per step."""
    warmup_epochs: float | None = None
    """Epochs of linear warm-up; if not given an eighth of the run for warmup_cosine and article, else 0."""
    begin_lr: float = 1e-9
    """Learning rate at the start of the warm-up."""
    final_lr: float = 1e-9
    """Learning rate at the end of the run."""
    milestones: tuple[float, ...] = ()
    """Epochs at which piecewise_constant and multi_factor change the rate."""
    rates: tuple[float, ...] = ()
    """Learning rates of piecewise_constant, one more than --milestones."""
    gamma: float = 0.1
    """Factor of the learning rate at each milestone, after each --period, or at a plateau; between 0 and 1."""
    period: float | None = None
    """Epochs per step of factor (10), per decay by --gamma of exponential (the run), or per cycle (a quarter of it)."""
    cycle_factor: float = 1.0
    """Length of a cycle of cosine_restarts relative to the one before, 1 or more."""
    power: float = 0.9
    """Exponent of polynomial, above 0."""
    patience: int = 5
    """Epochs without a better mIoU before plateau lowers the rate."""

    @property
    def per(self) -> str:
        """Unit of the schedule: "step" or "epoch"."""
        return self.schedule_per or ("epoch" if self.schedule == "article" else "step")

    @property
    def decay(self) -> float:
        """Weight decay, with the optimizer's default filled in."""
        return (0.01 if self.optimizer == "adamw" else 0.0) if self.weight_decay is None else self.weight_decay

    @property
    def warmup(self) -> float:
        """Epochs of warm-up, with the default filled in; a whole number when the schedule counts epochs."""
        if self.warmup_epochs is not None:
            return self.warmup_epochs
        if self.schedule not in ("warmup_cosine", "article"):
            return 0.0
        return float(round(self.epochs / 8)) if self.per == "epoch" else self.epochs / 8


@dataclasses.dataclass(frozen=True)
class Run:
    """The run itself."""

    preset: Literal["default", "article"] = "default"
    """Defaults of the other flags; `article` is the article's recipe."""
    seed: int = 0
    """Seed of weights, order, split and augmentation, from 0 to 2**32 - 1."""
    out: Path | None = None
    """Run folder; runs/<date>-<time> if not given."""
    overwrite: bool = False
    """Delete the run in --out first. What jaxseg did not write there is left alone."""
    resume: Path | None = None
    """Continue the run in this folder, with bit-identical results."""
    encoder_weights: str | None = None
    """Start the encoder from the weights of torchvision, timm or segmentation_models.pytorch: a .pth or .safetensors
    file, `hf:OWNER/NAME` on the Hugging Face Hub, or `imagenet`, which is `hf:smp-hub/ENCODER.imagenet`."""
    encoder_sha256: str | None = None
    """SHA-256 that the file of --encoder-weights must have; noted when it is read."""
    load: Annotated[Path | None, tyro.conf.arg(aliases=("-f",))] = None
    """Start from the weights of this run, or of a .pth or .safetensors file, or a folder of `save_pretrained`, with the
    names of milesial's U-Net or of segmentation_models.pytorch's Unet."""
    load_channels: Literal["rgb", "bgr"] = "rgb"
    """Order of the colors for which a file of weights was trained: `rgb` for PIL's and torchvision's, `bgr` for
    OpenCV's."""
    dry_run: bool = False
    """Check data and settings, print the plan, and stop."""
    overfit: int = 0
    """Train and validate on this many images without augmentation, to test the setup; 0 is off."""
    log_every: int = 10
    """Steps between readings of the loss; each waits for the device."""
    log: tuple[Literal["wandb", "mlflow", "aim"], ...] = ()
    """Trackers that log the run beside TensorBoard; each needs the extra of its name."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """Devices and processes. They change results by rounding alone."""

    devices: int | None = None
    """Devices of this process to share the work: all accelerators, or one CPU, if not given. On a CPU as many are
    made. Where a launcher starts several processes on a machine, each has one accelerator."""
    coordinator: str | None = None
    """HOST:PORT of the first of several processes; not needed under Slurm, Open MPI and Kubernetes."""
    processes: int | None = None
    """Number of processes; goes with --coordinator."""
    process: int | None = None
    """Number of this process, from 0; goes with --coordinator."""


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run, in six groups."""

    data: tyro.conf.OmitArgPrefixes[Data] = Data()
    augmentation: tyro.conf.OmitArgPrefixes[Augmentation] = Augmentation()
    model: tyro.conf.OmitArgPrefixes[Model] = Model()
    optimization: tyro.conf.OmitArgPrefixes[Optimization] = Optimization()
    run: tyro.conf.OmitArgPrefixes[Run] = Run()
    machine: tyro.conf.OmitArgPrefixes[Machine] = Machine()


def dumps(config: Config) -> str:
    """Returns `config` as JSON text."""
    return json.dumps(dataclasses.asdict(config), indent=2, default=_as_json)


def save(config: Config, path: Path) -> None:
    """Writes `config` to `path` as JSON, atomically."""
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
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from None
    return from_dict(values, where=str(path))


def from_dict(values: object, where: str = "config") -> Config:
    """The inverse of `dataclasses.asdict`, after JSON, for the settings of this version and of every earlier one.

    A setting that is missing takes the value with which this version does what the earlier one did, and a line on
    stderr names it. Raises `UserError` naming every unknown setting and every value of another type.
    """
    if not values or not isinstance(values, dict) or not all(isinstance(group, dict) for group in values.values()):
        raise UserError(f'{where}: holds no settings; expected groups of them, such as {{"run": {{"seed": 0}}}}')
    groups, unknown, lacking, wrong = {}, [f"unknown group {name}" for name in values], [], []
    for group in dataclasses.fields(Config):
        kind, given = type(group.default), dict(values.get(group.name) or {})
        fields = {field.name: field for field in dataclasses.fields(kind)}
        before = {name: EARLIER.get(f"{group.name}.{name}", field.default) for name, field in fields.items()}
        unknown = [line for line in unknown if line != f"unknown group {group.name}"]
        unknown += [f"unknown setting {group.name}.{name}" for name in given if name not in fields]
        wrong += [f"{flag(k)} is {v!r}" for k, v in given.items() if k in fields and not _fits(fields[k].type, v)]
        lacking += [f"{flag(name)} {value}" for name, value in before.items() if name not in given]
        groups[group.name] = (kind, before | {k: _restore(fields[k], v) for k, v in given.items() if k in fields})
    if unknown:
        raise UserError(f"{where}: " + "; ".join(unknown) + ". Was it written by a newer version of jaxseg?")
    if wrong:
        raise UserError(f"{where}: values that these settings cannot have: {'; '.join(wrong)}")
    if lacking:
        _note(f"note: {where}: written by an earlier version; settings that it lacks: {', '.join(lacking)}")
    return Config(**{name: kind(**given) for name, (kind, given) in groups.items()})


EARLIER: dict[str, object] = {"run.load_channels": "bgr"}
"""Settings whose default is not what earlier versions did: {"group.name": what they did}."""


@functools.cache
def _note(line: str) -> None:
    """Prints a line on stderr, once in a process."""
    print(line, file=sys.stderr)


def _fits(kind: object, value: object) -> bool:
    """True if a value from JSON can be one of the annotated type `kind`."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _fits(args[0], value)
    if origin is Literal:
        return value in args
    if origin is tuple:
        return isinstance(value, list | tuple) and all(_fits(args[0], item) for item in value)
    if args:  # a union
        return any(_fits(arg, value) for arg in args)
    allowed = {float: (float, int), Path: (str, Path)}.get(kind, (kind,))
    return isinstance(value, allowed) and (kind is bool or not isinstance(value, bool))


def _restore(field: dataclasses.Field, value: object) -> object:
    kind = get_args(field.type)[0] if hasattr(field.type, "__metadata__") else field.type
    if kind == Path | None and value is not None:
        return Path(value)
    return tuple(value) if isinstance(value, list) else value
