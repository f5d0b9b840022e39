"""Rules for settings. `check` reports every violation with the flag, its value and what was expected."""

import math
import re
from collections.abc import Iterator
from pathlib import Path

from jaxseg.base.config import Config, Data, Machine, Model, Optimization, Run, flag
from jaxseg.base.errors import UserError
from jaxseg.base.files import is_utf8

Rules = Iterator[tuple[bool, str]]
"""Pairs: whether a rule holds, and the message when it does not."""
TAKERS = {
    "milestones": ("piecewise_constant", "multi_factor"),
    "rates": ("piecewise_constant",),
    "gamma": ("factor", "multi_factor", "exponential", "plateau"),
    "period": ("factor", "exponential", "cosine_restarts", "cyclic"),
    "cycle_factor": ("cosine_restarts",),
    "power": ("polynomial",),
    "patience": ("plateau",),
}
"""Schedules that take an option."""
FALLING = (
    "factor", "multi_factor", "exponential", "linear", "polynomial", "cosine", "cosine_restarts", "cyclic",
    "one_cycle", "plateau",
)  # fmt: skip
"""Schedules that end below where they begin."""


def check(config: Config) -> None:
    """Raises `UserError` naming every invalid setting, one a line."""
    rules = [
        *path_rules(config),
        *data_rules(config.data),
        *augmentation_rules(config),
        *model_rules(config.model),
        *encoder_rules(config),
        *optimization_rules(config.optimization),
        *schedule_rules(config.optimization),
        *run_rules(config.run),
        *machine_rules(config.machine),
    ]
    if wrong := [message for holds, message in rules if not holds]:
        raise UserError("\n".join(wrong))


def path_rules(config: Config) -> Rules:
    """Rules of all files and folders: the run's files name them."""
    for group in (config.data, config.run):
        for name, value in vars(group).items():
            if isinstance(value, Path):
                yield is_utf8(value), f"{flag(name)} is {value}; its name is not UTF-8, rename it"


def data_rules(d: Data) -> Rules:
    """Rules of the data settings."""
    yield d.data is None or d.images is None, "--data and --images: give one of them, not both"
    yield (d.images is None) == (d.masks is None), "--images and --masks go together; only one was given"
    together = "--val-images and --val-masks go together; only one was given"
    yield (d.val_images is None) == (d.val_masks is None), together
    alone = "--val-images needs --images and --masks for the training tiles"
    yield d.val_images is None or d.images is not None, alone
    listed = d.val_list is None or d.train_list is not None
    yield listed, "--val-list needs --train-list, which names the training images"
    meant = f" (did you mean {100 * d.validation:g}?)" if 0 < d.validation < 1 else ""
    percent = f"--validation is {d.validation:g}; it is a percentage, from 1 to 90{meant}"
    yield 1 <= d.validation <= 90, percent
    yield d.workers >= 0, f"--workers is {d.workers}; expected 0 or more"
    yield d.cache_mb >= 0, f"--cache-mb is {d.cache_mb}; expected 0 or more"
    yield d.crop is None or d.crop >= 1, f"--crop is {d.crop}; expected pixels a side, 1 or more"
    yield d.crops >= 1, f"--crops is {d.crops}; expected 1 or more"
    yield d.crops == 1 or d.crop is not None, f"--crops is {d.crops}; it needs --crop, the side of a crop"
    yield d.classes is None or 2 <= d.classes <= 255, f"--classes is {d.classes}; expected 2 to 255"
    numbers = d.channels or ()
    bands = f"--channels is {' '.join(map(str, numbers))}; expected bands of the file, counted from 1"
    yield d.channels is None or (len(numbers) > 0 and min(numbers) >= 1), bands
    rule = [name for name in ("classes", "labels", "binarize") if getattr(d, name) is not None]
    yield len(rule) <= 1, f"{' and '.join(map(flag, rule))}: give one of them"
    yield not d.snap_colors or d.labels is not None, "--snap-colors needs --labels, the values to snap to"
    count = len(d.labels) if d.labels else 2 if d.binarize is not None else d.classes
    names = f"--class-names has {len(d.class_names or ())} names for {count} classes"
    yield d.class_names is None or count is None or len(d.class_names) == count, names
    yield d.binarize is None or d.binarize >= 1, f"--binarize is {d.binarize}; expected 1 or more"


def augmentation_rules(config: Config) -> Rules:
    """Rules of the augmentation settings."""
    a = config.augmentation
    for name in ("zoom", "brightness", "noise", "blur", "contrast"):
        value, most = getattr(a, name), 1 if name == "contrast" else math.inf
        expected = "0 to 1" if name == "contrast" else "a number of 0 or more"
        yield 0 <= value <= most and math.isfinite(value), f"{flag(name)} is {value}; expected {expected}"


def model_rules(m: Model) -> Rules:
    """Rules of the model settings."""
    yield len(m.widths) >= 2, f"--widths has {len(m.widths)} value; expected one per level, at least 2"
    yield all(w >= 1 for w in m.widths), f"--widths is {m.widths}; expected positive numbers of channels"
    even = f"--widths is {m.widths}; --upsample bilinear halves them, so they must be even"
    yield m.upsample == "transpose" or all(w % 2 == 0 for w in m.widths), even
    yield 0 <= m.dropout < 1, f"--dropout is {m.dropout:g}; expected 0 or more and less than 1"


def encoder_rules(config: Config) -> Rules:
    """Rules of the settings that a network with an encoder has, or has not."""
    m, o, r, d = config.model, config.optimization, config.run, config.data
    given = [flag(name) for name in ("widths", "upsample", "conv_bias") if getattr(m, name) != getattr(Model, name)]
    shown = ", ".join(given).replace("--conv-bias", "--no-conv-bias")
    yield not m.encoder or not given, f"{shown}: for the U-Net without --encoder, leave out"
    owned = {"encoder_weights": r, "encoder_sha256": r, "freeze_encoder": o, "encoder_lr_factor": o}
    owned |= {"encoder_mean": d, "encoder_std": d}
    lone = [flag(name) for name, group in owned.items() if getattr(group, name) != getattr(type(group), name)]
    lone += ["--normalize encoder"] * (d.normalize == "encoder")
    yield m.encoder or not lone, f"{', '.join(lone)}: for --encoder, which was not given"
    counts = len(d.encoder_mean), len(d.encoder_std)
    pair = f"--encoder-mean has {counts[0]} numbers and --encoder-std {counts[1]}; expected 3 of each"
    yield counts in ((0, 0), (3, 3)), pair
    yield all(std > 0 for std in d.encoder_std), f"--encoder-std is {d.encoder_std}; expected numbers above 0"
    yield o.freeze_encoder >= 0, f"--freeze-encoder is {o.freeze_encoder}; expected a number of epochs, 0 for none"
    started = any(x is not None for x in (r.encoder_weights, r.load, r.resume))
    drawn = "--freeze-encoder needs --encoder-weights or --load; it would hold drawn weights"
    yield o.freeze_encoder <= 0 or started, drawn
    factor = f"--encoder-lr-factor is {o.encoder_lr_factor:g}; expected a number of 0 or more"
    yield 0 <= o.encoder_lr_factor < math.inf, factor
    both = "--encoder-weights and --load: give one of them; --load has the encoder's weights too"
    yield r.encoder_weights is None or r.load is None, both


def optimization_rules(o: Optimization) -> Rules:
    """Rules of the loss and the optimizer."""
    yield o.epochs >= 1, f"--epochs is {o.epochs}; expected 1 or more"
    yield o.steps is None or o.steps >= 1, f"--steps is {o.steps}; expected 1 or more"
    yield o.batch_size >= 1, f"--batch-size is {o.batch_size}; expected 1 or more"
    parts = f"--accumulate is {o.accumulate}; expected a divisor of --batch-size, which is {o.batch_size}"
    yield o.accumulate >= 1 and o.batch_size % o.accumulate == 0, parts
    smoothed = o.label_smoothing == 0 or o.loss in ("cross_entropy", "dice_ce")
    yield smoothed, f"--label-smoothing is for --loss cross_entropy and dice_ce, not {o.loss}"
    yield 0 <= o.label_smoothing <= 1, f"--label-smoothing is {o.label_smoothing:g}; expected 0 to 1"
    yield o.ohem is None or o.loss == "cross_entropy", f"--ohem is for --loss cross_entropy, not {o.loss}"
    yield o.tversky_alpha + o.tversky_beta > 0, "--tversky-alpha and --tversky-beta are both 0; expected one above 0"
    yield o.ohem is None or 0 < o.ohem <= 1, f"--ohem is {o.ohem}; expected a share above 0, up to 1"
    for name in ("tversky_alpha", "tversky_beta", "focal_gamma"):
        value, default, loss = getattr(o, name), getattr(Optimization, name), name.split("_")[0]
        yield value == default or o.loss == loss, f"{flag(name)} is for --loss {loss}, not {o.loss}"
        yield value >= 0 and math.isfinite(value), f"{flag(name)} is {value}; expected a number of 0 or more"
    yield not o.nesterov or o.optimizer == "sgd", f"--nesterov is for --optimizer sgd, not {o.optimizer}"
    yield not (o.nesterov and o.momentum == 0), "--nesterov needs a --momentum above 0"
    norm = f"--clip-norm is {o.clip_norm}; expected a number above 0"
    yield o.clip_norm is None or 0 < o.clip_norm < math.inf, norm
    yield 0 <= o.momentum < 1, f"--momentum is {o.momentum:g}; expected 0 or more and less than 1"
    yield o.ema is None or 0 < o.ema < 1, f"--ema is {o.ema}; expected a decay between 0 and 1, such as 0.999"
    patience = f"--early-stopping is {o.early_stopping}; expected a number of epochs, 1 or more"
    yield o.early_stopping is None or o.early_stopping >= 1, patience
    rates = {name: getattr(o, name) for name in ("learning_rate", "begin_lr", "final_lr")} | {"weight_decay": o.decay}
    for name, value in rates.items():
        yield math.isfinite(value) and value >= 0, f"{flag(name)} is {value}; expected a number of 0 or more"


def schedule_rules(o: Optimization) -> Rules:
    """Rules of the schedule's options."""
    by_epoch, end = o.per == "epoch", o.epochs if o.steps is None else math.inf
    warmup = f"--warmup-epochs is {o.warmup:g}; expected at least 0 and less than --epochs, which is {o.epochs}"
    yield o.warmup == 0 or 0 < o.warmup < max(end, 1), warmup
    whole = f"--warmup-epochs is {o.warmup:g}; with --schedule-per epoch it must be a whole number"
    yield not by_epoch or float(o.warmup).is_integer(), whole
    for name, names in TAKERS.items():
        given = getattr(o, name) != getattr(Optimization, name)
        yield not given or o.schedule in names, f"{flag(name)} is for --schedule {' and '.join(names)}"
    if o.schedule in TAKERS["milestones"]:
        shown = " ".join(f"{m:g}" for m in o.milestones) or "not given"
        edges = [o.warmup, *o.milestones, end]
        yield bool(o.milestones), f"--schedule {o.schedule} needs --milestones, epochs at which the rate changes"
        order = f"--milestones is {shown}; expected increasing, after the warm-up ({o.warmup:g}), before {end:g}"
        yield edges == sorted(set(edges)), order
        numbers = f"--milestones is {shown}; with --schedule-per epoch they must be whole numbers"
        yield not by_epoch or all(float(m).is_integer() for m in o.milestones), numbers
    if o.schedule == "piecewise_constant":
        count = f"--rates has {len(o.rates)}; expected one more than --milestones, which has {len(o.milestones)}"
        yield len(o.rates) == len(o.milestones) + 1, count
        yield all(0 <= rate < math.inf for rate in o.rates), f"--rates is {o.rates}; expected numbers of 0 or more"
    if o.period is not None:
        least = {"cyclic": 2.0}.get(o.schedule, 1.0) if by_epoch else 0.0
        period = f"--period is {o.period:g}; expected {least or 'more than 0'}"
        yield least <= o.period < math.inf and o.period > 0, period
        steps = f"--period is {o.period:g}; with --schedule-per epoch factor needs a whole number"
        yield not by_epoch or o.schedule != "factor" or float(o.period).is_integer(), steps
    yield 0 < o.gamma < 1, f"--gamma is {o.gamma:g}; expected a number between 0 and 1"
    yield 1 <= o.cycle_factor < math.inf, f"--cycle-factor is {o.cycle_factor:g}; expected 1 or more"
    yield 0 < o.power < math.inf, f"--power is {o.power:g}; expected a number above 0"
    yield o.patience >= 0, f"--patience is {o.patience}; expected 0 or more"
    last = f"--final-lr is {o.final_lr:g}; expected at most --learning-rate, which is {o.learning_rate:g}"
    yield o.schedule not in FALLING or o.final_lr <= o.learning_rate, last
    few = "--schedule one_cycle with --schedule-per epoch needs 4 epochs or more after the warm-up"
    yield o.schedule != "one_cycle" or not by_epoch or end - o.warmup >= 4, few


def run_rules(r: Run) -> Rules:
    """Rules of the run itself."""
    yield r.log_every >= 1, f"--log-every is {r.log_every}; expected 1 or more"
    yield r.overfit >= 0, f"--overfit is {r.overfit}; expected a number of images, 0 for off"
    yield 0 <= r.seed < 2**32, f"--seed is {r.seed}; expected 0 or more and less than 2**32"
    yield r.resume is None or r.load is None, "--resume and --load: give one of them"


def machine_rules(m: Machine) -> Rules:
    """Rules of devices and processes."""
    yield m.devices is None or m.devices >= 1, f"--devices is {m.devices}; expected 1 or more"
    together = {"coordinator": m.coordinator, "processes": m.processes, "process": m.process}
    given = [flag(name) for name, value in together.items() if value is not None]
    yield len(given) in (0, 3), f"{' and '.join(given)}: give all of --coordinator, --processes and --process"
    if len(given) == 3:
        port = f"--coordinator is {m.coordinator}; expected HOST:PORT"
        yield re.fullmatch(r".+:\d+", m.coordinator) is not None, port
        which = f"--process is {m.process} of --processes {m.processes}; expected a number from 0 below their number"
        yield 0 <= m.process < m.processes, which
