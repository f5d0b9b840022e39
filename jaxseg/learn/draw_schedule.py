"""Draws a learning-rate schedule and prints some of its rates: `python -m jaxseg.schedules --schedule cyclic`

Takes the trainer's flags of optimization. Exit status: 0 done, 2 for a mistake that the user can fix.
"""

import dataclasses
import textwrap
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.table import Table

from jaxseg.base import doors
from jaxseg.base.config import Config, Optimization, flag
from jaxseg.base.errors import UserError
from jaxseg.base.rules import check
from jaxseg.base.terminal import console
from jaxseg.learn import schedules
from jaxseg.learn.plateau import Plateau

FORMATS = (".png", ".svg", ".pdf")
POINTS = 20_000  # most points of a curve
RATE, FLOOR = "#0072b2", "#d55e00"
SHOWN = {  # settings in the title of each schedule
    "warmup_cosine": ("learning_rate", "final_lr"),
    "article": ("learning_rate", "final_lr"),
    "constant": ("learning_rate",),
    "piecewise_constant": ("rates", "milestones"),
    "factor": ("learning_rate", "gamma", "period"),
    "multi_factor": ("learning_rate", "gamma", "milestones"),
    "exponential": ("learning_rate", "gamma", "period"),
    "linear": ("learning_rate", "final_lr"),
    "polynomial": ("learning_rate", "final_lr", "power"),
    "cosine": ("learning_rate", "final_lr"),
    "cosine_restarts": ("learning_rate", "final_lr", "period", "cycle_factor"),
    "cyclic": ("learning_rate", "final_lr", "period"),
    "one_cycle": ("learning_rate", "final_lr"),
    "plateau": ("learning_rate", "final_lr", "gamma", "patience"),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Draws a learning-rate schedule and prints some of its rates."""

    optimization: tyro.conf.OmitArgPrefixes[Optimization] = dataclasses.field(default_factory=Optimization)
    steps_per_epoch: int = 100
    """Steps per epoch: training tiles divided by the batch size, rounded up."""
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",))] = Path("schedule.png")
    """File for the picture: .png, .svg or .pdf."""
    overwrite: bool = False
    """Replace an existing picture."""


@dataclasses.dataclass(frozen=True)
class Curve:
    """Learning rates of a run.

    - `steps`: numbers of steps, int [n]
    - `rates`: rate at each, float [n]
    - `lowest`: with plateau, the lowest rates possible, float [n]; else None
    """

    steps: np.ndarray
    rates: np.ndarray
    lowest: np.ndarray | None = None


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    options = tyro.cli(Options, args=argv, prog="python -m jaxseg.schedules")
    return doors.enter(lambda: draw(options))


def draw(options: Options) -> None:
    """Writes the picture and prints the table. Raises UserError naming every wrong option, before either."""
    refuse(options)
    o, steps_per_epoch = options.optimization, options.steps_per_epoch
    schedule = schedules.schedule_from(o, steps_per_epoch)
    steps = o.epochs * steps_per_epoch if o.steps is None else o.steps
    console.print(table(curve(o, schedule, steps_per_epoch, some(steps, steps_per_epoch)), o, steps_per_epoch))
    drawn = figure(curve(o, schedule, steps_per_epoch, spread(steps, POINTS)), o, steps_per_epoch)
    try:
        drawn.savefig(options.out)
    except OSError as error:
        raise UserError(f"--out {options.out}: cannot be written ({error.strerror or error})") from None
    console.print(str(options.out))


def refuse(options: Options) -> None:
    """Raises UserError naming every option that is wrong."""
    out, problems = options.out, []
    try:
        check(Config(optimization=options.optimization))
    except UserError as error:
        problems.append(str(error))
    if options.steps_per_epoch < 1:
        problems.append(f"--steps-per-epoch is {options.steps_per_epoch}; expected 1 or more")
    if out.suffix.lower() not in FORMATS:
        problems.append(f"--out {out}: expected a file that ends in {', '.join(FORMATS)}")
    if out.exists() and not (options.overwrite and out.is_file()):
        problems.append(
            f"--out {out}: exists; " + ("give --overwrite to replace it" if out.is_file() else "not a file")
        )
    if not out.parent.is_dir():
        problems.append(f"--out {out}: there is no folder {out.parent}")
    if problems:
        raise UserError("\n".join(problems))


def spread(count: int, most: int) -> np.ndarray:
    """At most `most` integers from 0 to count - 1, evenly spaced, both ends included."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int32))


def some(steps: int, steps_per_epoch: int) -> np.ndarray:
    """First steps of up to nine epochs, and the last step."""
    starts = spread(-(-steps // steps_per_epoch), 9) * steps_per_epoch
    return np.unique(np.append(starts, steps - 1)).astype(np.int32)


def curve(o: Optimization, schedule: schedules.Schedule, steps_per_epoch: int, steps: np.ndarray) -> Curve:
    """Computes the rates at some steps.

    - `o`: settings
    - `schedule`: schedule built from them
    - `steps_per_epoch`: steps per epoch
    - `steps`: numbers of steps, int [n]
    """
    rates = np.asarray(jax.jit(jax.vmap(lambda step: jnp.asarray(schedule(step))))(steps))
    if o.schedule != "plateau":
        return Curve(steps, rates)
    plateau = Plateau(o.learning_rate, gamma=o.gamma, patience=o.patience, final_lr=o.final_lr)
    epochs = steps // steps_per_epoch
    scales = np.array([1.0] + [plateau.update(0.0) for _ in range(epochs.max())])
    return Curve(steps, rates, rates * scales[epochs])


def table(rates: Curve, o: Optimization, steps_per_epoch: int) -> Table:
    """Table with a line for each step of `rates`."""
    out = Table(title=title(o, steps_per_epoch), title_justify="left", title_style="")
    columns = ["epoch", "step", "learning rate"] + ["if no epoch is better"] * (rates.lowest is not None)
    for heading in columns:
        out.add_column(heading, justify="right")
    for i, step in enumerate(rates.steps):
        found = [values[i] for values in (rates.rates, rates.lowest) if values is not None]
        out.add_row(f"{step / steps_per_epoch:.4g}", str(step), *(f"{rate:.3e}" for rate in found))
    return out


def title(o: Optimization, steps_per_epoch: int) -> str:
    """Settings that shape the curve, as flags."""
    shown = [*SHOWN[o.schedule], *(("warmup_epochs", "begin_lr") if o.warmup else ()), "schedule_per"]
    values = {name: getattr(o, name) for name in shown} | {"schedule_per": o.per}
    if o.warmup:
        values["warmup_epochs"] = o.warmup
    words = [f"--schedule {o.schedule}"]
    for name, value in values.items():
        numbers = value if isinstance(value, tuple) else (value,)
        if value is not None and numbers:
            text = " ".join(n if isinstance(n, str) else f"{n:g}" for n in numbers)
            words.append(f"{flag(name)} {text}")
    length = f"--epochs {o.epochs}" if o.steps is None else f"--steps {o.steps}"
    return " ".join([*words, length, f"--steps-per-epoch {steps_per_epoch}"])


def figure(rates: Curve, o: Optimization, steps_per_epoch: int):
    """Draws the curve over the epochs, on a logarithmic axis if `is_logarithmic`."""
    from matplotlib.figure import Figure  # takes 0.6 s, which `-h` should not

    out = Figure(figsize=(9, 4.5), dpi=110, layout="constrained")
    axes = out.subplots()
    # a step's rate holds until the next step, the last one's for one step
    epochs = np.append(rates.steps, rates.steps[-1] + 1) / steps_per_epoch
    held = {"drawstyle": "steps-post", "lw": 1.8}
    log = is_logarithmic(rates)
    for values, how in ((rates.rates, {"color": RATE}), (rates.lowest, {"color": FLOOR, "ls": "--"})):
        if values is not None:
            shown = np.append(values, values[-1]).astype(float)
            axes.plot(epochs, np.where(shown > 0, shown, np.nan) if log else shown, **held, **how)
    if rates.lowest is not None:
        axes.lines[0].set_label("while the mIoU improves")
        axes.lines[1].set_label("fastest fall: no epoch is better than the first")
        axes.legend(frameon=False)
    if log:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(lambda rate, _: f"{rate:g}")
    axes.set_xlim(0, epochs[-1])
    axes.set(xlabel="epoch", ylabel="learning rate")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    flags = title(o, steps_per_epoch).removeprefix(f"--schedule {o.schedule} ")
    flags = textwrap.wrap(flags, 130, break_on_hyphens=False)
    axes.set_title(o.schedule, loc="left", fontsize=12, fontweight="bold", pad=12 + 12 * len(flags))
    small = {"fontsize": 8, "color": "0.35", "linespacing": 1.4}
    axes.annotate("\n".join(flags), (0, 1), (0, 8), "axes fraction", textcoords="offset points", **small)
    return out


def is_logarithmic(rates: Curve) -> bool:
    """True if at least a quarter of the rates are at most a hundredth of the largest."""
    lowest = rates.rates if rates.lowest is None else rates.lowest
    return bool(np.mean(lowest <= rates.rates.max() / 100 * 1.001) >= 0.25 and lowest.max() > 0)
