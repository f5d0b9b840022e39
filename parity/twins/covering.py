"""A covering array: few recipes in which every pair of values of the settings occurs, as far as the rules allow it.

A pair is possible if some choice of the other settings keeps `jaxseg.base.rules` and the rules of the files below.
Greedy, as AETG (Cohen et al. 1997, doi 10.1109/32.605761): each recipe is the best of some candidates, which begin with
a pair still missing and take for each setting the value that adds most pairs.

The schedule is not paired with the loss, its options or the initial weights: 14 schedules and 9 losses alone would take
126 recipes. A schedule meets a loss only in the optimizer, with which both are paired.
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Mapping, Sequence

import numpy as np
import tyro
from jaxtyping import Bool

from jaxseg.base.config import Config
from jaxseg.base.errors import UserError
from jaxseg.base.rules import check

Recipe = Mapping[str, str]
"""Value of each setting: the flags that set it, or a name for files; "" is the default."""

SETTINGS: dict[str, tuple[str, ...]] = {
    # what others depend on
    "loss": tuple(
        f"--loss {name}"
        for name in ("cross_entropy", "dice", "dice_ce", "focal", "hinge", "jaccard", "lovasz", "mse", "tversky")
    ),
    "optimizer": ("--optimizer adam", "--optimizer adamw", "--optimizer rmsprop", "--optimizer sgd"),
    "length": ("--epochs 6", "--steps 5"),
    "schedule": (
        "",
        "--schedule article",
        "--schedule constant",
        "--schedule piecewise_constant --milestones 2 --rates 0.003 0.0007",
        "--schedule factor --period 1 --gamma 0.5",
        "--schedule multi_factor --milestones 1 2 --gamma 0.3",
        "--schedule exponential --period 2 --gamma 0.5",
        "--schedule linear",
        "--schedule polynomial --power 2",
        "--schedule cosine",
        "--schedule cosine_restarts --period 1 --cycle-factor 2",
        "--schedule cyclic --period 2",
        "--schedule one_cycle",
        "--schedule plateau --patience 0 --gamma 0.2",
    ),
    "per": ("", "--schedule-per epoch", "--schedule-per step"),
    "warmup": ("", "--warmup-epochs 0", "--warmup-epochs 1"),
    "crop": ("", "--crop 12"),
    "images": ("uint8 color", "uint16 bands", "int16 bands", "float32 bands"),
    "masks": ("binarized", "numbers", "chosen numbers", "absent class", "colors"),
    # and the others
    "sizes": ("square", "oblong", "mixed"),
    "channels": ("", "--channels 2 1"),
    "nodata": ("", "--nodata 0"),
    "normalize": ("", "--normalize dataset", "--normalize imagenet"),
    "crops": ("", "--crops 2"),
    "augment": ("", "--no-augment"),
    "flips": ("", "--no-flips"),
    "zoom": ("", "--zoom 0.5"),
    "brightness": ("", "--brightness 0.2"),
    "contrast": ("", "--contrast 0.3"),
    "noise": ("", "--noise 0.1"),
    "blur": ("", "--blur 0.8"),
    "widths": ("--widths 6 12", "--widths 4 6 8"),
    "upsample": ("", "--upsample bilinear"),
    "conv_bias": ("", "--no-conv-bias"),
    "init": (
        "",
        "--init torch_default",
        "--init kaiming_normal",
        "--init kaiming_uniform",
        "--init xavier_normal",
        "--init xavier_uniform",
    ),
    "dropout": ("", "--dropout 0.4"),
    "remat": ("", "--remat"),
    "batch_size": ("--batch-size 4", "--batch-size 6"),
    "accumulate": ("", "--accumulate 2"),
    "class_weights": (
        "",
        "--class-weights auto",
        "--class-weights inverse",
        "--class-weights sqrt",
        "--class-weights median",
        "--class-weights effective",
        "--class-weights NUMBERS",
    ),
    "label_smoothing": ("", "--label-smoothing 0.1"),
    "ohem": ("", "--ohem 0.3"),
    "tversky_alpha": ("", "--tversky-alpha 0.3"),
    "tversky_beta": ("", "--tversky-beta 0.8"),
    "focal_gamma": ("", "--focal-gamma 1.3"),
    "learning_rate": ("", "--learning-rate 0.004"),
    "weight_decay": ("", "--weight-decay 0", "--weight-decay 0.05"),
    "momentum": ("", "--momentum 0.5", "--momentum 0"),
    "nesterov": ("", "--nesterov"),
    "clip_norm": ("", "--clip-norm 0.3"),
    "ema": ("", "--ema 0.9"),
    "begin_lr": ("", "--begin-lr 0.0003"),
    "final_lr": ("", "--final-lr 0.0004"),
    "seed": ("", "--seed 5"),
    "overfit": ("", "--overfit 3"),
}
"""Values of every setting that changes a number; the first is taken where nothing else is asked for."""

OF_THE_LOSS = ("loss", "class_weights", "label_smoothing", "ohem", "tversky_alpha", "tversky_beta", "focal_gamma")
NOT_PAIRED = {frozenset(("schedule", other)) for other in (*OF_THE_LOSS, "init")}
NUMBERS = ("0.5", "2", "1.25", "0.8")
"""Class weights where numbers are asked for; the first as many as there are classes."""
CLASSES = {"binarized": 2, "numbers": 3, "chosen numbers": 3, "absent class": 4, "colors": 2}
MASKS = {
    "binarized": "--binarize 255",
    "numbers": "",
    "chosen numbers": "--labels 7 3 9 --ignore-index 5",
    "absent class": "--classes 4",
    "colors": "--labels #000000 #ffa000",
}
"""Number of classes and flags of each kind of masks."""


FILES = (
    {"normalize": "--normalize imagenet", "images": "uint16 bands"},
    {"normalize": "--normalize imagenet", "images": "float32 bands"},
    {"normalize": "--normalize imagenet", "channels": "--channels 2 1"},
    {"schedule": "--schedule one_cycle", "length": "--steps 5", "per": "--schedule-per epoch"},
    {"schedule": "--schedule one_cycle", "length": "--steps 5", "warmup": "--warmup-epochs 1"},
)
"""Values that do not go together because of the files: ImageNet's statistics are of three channels, and one_cycle needs
four ticks after the warm-up."""


def command(recipe: Recipe) -> list[str]:
    """Command line of a recipe, without its folder."""
    masks = recipe["masks"]
    words = [value for name, value in recipe.items() if name not in ("images", "masks", "sizes")]
    line = " ".join([*words, MASKS[masks]])
    return line.replace("NUMBERS", " ".join(NUMBERS[: CLASSES[masks]])).split()


def fields_of(value: str) -> set[str]:
    """Names of the fields that the flags of a value set."""
    return {word.removeprefix("--").removeprefix("no-").replace("-", "_") for word in value.split() if word[:2] == "--"}


@functools.cache
def parsed() -> dict[str, dict[str, object]]:
    """By value of a setting, the fields it sets; several values go through one command line."""
    found = {}
    for values in itertools.zip_longest(*SETTINGS.values(), fillvalue=""):
        words = [word for value in values if value[:2] == "--" for word in value.split()]
        config = tyro.cli(Config, args=words, default=Config(), config=(tyro.conf.DisallowNone,))
        fields = {name: value for group in vars(config).values() for name, value in vars(group).items()}
        found |= {value: {name: fields[name] for name in fields_of(value)} for value in values}
    return found


def config_of(recipe: Recipe) -> Config:
    """Unchecked settings of a recipe; what it lacks has its first value."""
    chosen = {name: recipe.get(name, values[0]) for name, values in SETTINGS.items()}
    fields = {name: value for setting in chosen.values() for name, value in parsed()[setting].items()}
    groups = {
        group.name: group_of(type(group.default), frozenset((n, fields[n]) for n in vars(group.default) if n in fields))
        for group in dataclasses.fields(Config)
    }
    return Config(**groups)


@functools.cache
def group_of(kind: type, fields: frozenset[tuple[str, object]]) -> object:
    """A group of settings with these fields; recipes share most groups."""
    return kind(**dict(fields))


def faults(recipe: Recipe) -> list[set[str]]:
    """For each rule that a recipe breaks, the settings that it names."""
    whole = {name: recipe.get(name, values[0]) for name, values in SETTINGS.items()}
    found = [set(rule) for rule in FILES if all(whole[name] == value for name, value in rule.items())]
    try:
        check(config_of(whole))
    except UserError as error:
        named = [set(re.findall(r"--([a-z-]+)", line)) for line in str(error).splitlines()]
        found += [{setting_of(flag.replace("-", "_")) for flag in flags} for flags in named]
    return found


@functools.cache
def setting_of(field: str) -> str:
    """Name of the setting with a value that sets `field`."""
    return next(name for name, values in SETTINGS.items() if any(field in fields_of(value) for value in values))


def completed(part: Recipe, tries: int = 4) -> Recipe | None:
    """A recipe with the values of `part` that breaks no rule, changing few others; None if there is none."""
    broken = faults(part)
    if not broken:
        return {name: part.get(name, values[0]) for name, values in SETTINGS.items()}
    if not tries:
        return None
    for name in sorted(set().union(*broken) - set(part)):
        for value in SETTINGS[name]:
            if (found := completed({**part, name: value}, tries - 1)) is not None:
                return found
    return None


def recipe_with(values: Sequence[str]) -> Recipe:
    """The simplest recipe with these values. Raises ValueError if there is none."""
    owner = {value: name for name, value in VALUES if value}
    found = completed({owner[value]: value for value in values})
    if found is None:
        raise ValueError(f"no recipe has {', '.join(values)}")
    return found


@functools.cache
def possible() -> Bool[np.ndarray, "n n"]:
    """For each two values (see `VALUES`) whether some recipe has both, and they are to be paired."""
    found = np.zeros((len(VALUES), len(VALUES)), bool)
    for (i, (a, x)), (j, (b, y)) in itertools.combinations(enumerate(VALUES), 2):
        if a != b:
            found[i, j] = found[j, i] = completed({a: x, b: y}) is not None
    return found


VALUES = [(name, value) for name, values in SETTINGS.items() for value in values]
_STARTS = itertools.accumulate(map(len, SETTINGS.values()), initial=0)
PLACES = {name: slice(at, at + len(values)) for (name, values), at in zip(SETTINGS.items(), _STARTS)}
"""Each value by its number, and the numbers of each setting's values."""
COSTLY = ("widths", "remat", "accumulate", "sizes", "noise", "zoom", "blur")
"""Settings whose first value compiles faster, and is preferred among equals."""
FIRST = np.isin(np.arange(len(VALUES)), [PLACES[name].start for name in COSTLY]) / 2


def wanted() -> Bool[np.ndarray, "n n"]:
    """Pairs of `VALUES` that the array has to cover: the possible ones, without those of `NOT_PAIRED`."""
    apart = np.array([[frozenset((a, b)) in NOT_PAIRED for b, _ in VALUES] for a, _ in VALUES])
    return possible() & ~apart


@functools.cache
def recipes(seed: int = 0, candidates: int = 40) -> tuple[Recipe, ...]:
    """The covering array. Each recipe breaks no rule; every pair of `wanted` is in at least one."""
    rng, missing, made = np.random.default_rng(seed), np.triu(wanted()), []
    missing = missing | missing.T
    while missing.any():
        drawn = (candidate(rng, missing) for _ in range(candidates))
        rows = [row for row in drawn if row is not None]
        row = max(rows, key=lambda row: missing[np.ix_(row, row)].sum())
        missing[np.ix_(row, row)] = False
        made.append({VALUES[i][0]: VALUES[i][1] for i in sorted(row)})
    return tuple(made)


def candidate(rng: np.random.Generator, missing: Bool[np.ndarray, "n n"]) -> list[int] | None:
    """Numbers of the values of a recipe that covers a missing pair and many others; None if it breaks a rule."""
    pairs, row = np.argwhere(missing), []
    allowed, gain = np.ones(len(VALUES), bool), rng.random(len(VALUES)) / 2 + FIRST

    def take(number: int) -> None:
        nonlocal allowed, gain
        row.append(number)
        allowed, gain = allowed & possible()[number], gain + missing[number]

    for number in pairs[rng.integers(len(pairs))].tolist():
        take(number)
    taken = {VALUES[number][0] for number in row}
    for name in rng.permutation([name for name in PLACES if name not in taken]):
        own = np.where(allowed[PLACES[name]], gain[PLACES[name]], -1)
        if own.max() < 0:
            return None
        take(PLACES[name].start + int(own.argmax()))
    return None if faults({VALUES[i][0]: VALUES[i][1] for i in row}) else row
