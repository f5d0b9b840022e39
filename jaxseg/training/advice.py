"""Advice on common troubles of training: not enough memory or disk, one class everywhere, steps that wait for data."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from jaxseg.base.config import Config, Optimization
from jaxseg.base.doors import reason
from jaxseg.base.errors import UserError, is_about_memory
from jaxseg.base.terminal import command
from jaxseg.runs.checkpoint import newest_step

EVALUATIONS = 3  # with one class only, until a warning
LONG = 0.05  # share of the time that steps may wait for data


def out_of_memory(error: BaseException, config: Config, tile: tuple[int, int]) -> str | None:
    """Returns a message with the size of the step and what to try, in order; None if `error` is not about memory.

    - `error`: error of a step
    - `config`: settings of the run
    - `tile`: height and width of the training samples in pixels
    """
    if not is_about_memory(error):
        return None
    o, m = config.optimization, config.model
    part = o.batch_size // o.accumulate
    tries = [f"--accumulate {2 * o.accumulate} (smaller micro-batches), or a smaller --batch-size"] * (part > 1)
    tries += ["--precision bf16"] * (m.precision == "f32")
    tries += ["--remat"] * (not m.remat)
    tries += [f"--crop {max(m.least_side, max(tile) // 2)}"]
    tries += ["a smaller --encoder, or none" if m.encoder else "fewer or smaller --widths"]
    return (
        f"not enough memory for {part} samples of {tile[1]}x{tile[0]} in {m.precision} through "
        f"{m.flags}. Try, in this order:\n"
        + "\n".join(f"  {number}. {what}" for number, what in enumerate(tries, 1))
        + "\nOn a GPU, JAX reserves three quarters of the memory at start; other programs on it reduce what is left."
    )


def against_imbalance(optimization: Optimization) -> str:
    """Returns the flags against rare classes that were not given: "Try --class-weights auto or --loss dice_ce"."""
    tries = ["--class-weights auto"] * (optimization.class_weights is None)
    tries += ["--loss dice_ce"] * (optimization.loss in ("cross_entropy", "mse", "hinge"))
    return f"Try {' or '.join(tries)}" if tries else "Try --class-weights inverse, or a lower --learning-rate"


@contextmanager
def resumable(run: Path) -> Iterator[None]:
    """Turns an OSError, such as that of a full disk, into a UserError with what is kept of a run and how to go on."""
    try:
        yield
    except OSError as error:
        step = newest_step(run)
        kept = "There is no checkpoint yet" if step is None else f"The checkpoint after {step} steps is kept"
        go_on = command("jaxseg.train", "--resume", run)
        raise UserError(f"{reason(error)}\n{kept}. Once this is fixed, go on with\n  {go_on}") from error


def one_class_only(
    epochs: Sequence[dict], classes: Sequence[str], class_pixels: Sequence[int], optimization: Optimization
) -> str | None:
    """Returns a warning when the last three evaluations predicted one class for every pixel, once; else None.

    - `epochs`: lines of log.jsonl, whose "validation" has "predicted", the share of pixels predicted as each class
    - `classes`: names of the classes
    - `class_pixels`: number of training pixels of each class
    - `optimization`: settings of the run
    """

    def only(record: dict) -> int | None:
        shares = record["validation"].get("predicted") or [0]
        return shares.index(max(shares)) if max(shares) > 0.9999 else None

    last = [only(record) for record in epochs[-EVALUATIONS:]]
    before = only(epochs[-EVALUATIONS - 1]) if len(epochs) > EVALUATIONS else None
    if len(last) < EVALUATIONS or last[0] is None or len(set(last)) > 1 or before == last[0]:
        return None
    total = max(sum(class_pixels), 1)
    others = [f"{name} is {n / total:.1%}" for i, (name, n) in enumerate(zip(classes, class_pixels)) if i != last[0]]
    return (
        f"validation predictions are 100 % {classes[last[0]]} for {EVALUATIONS} evaluations; of the training pixels "
        f"{', '.join(others[:5])}. {against_imbalance(optimization)}; look at samples/batch.png"
    )


def waits_for_data(epochs: Sequence[dict], cache: str, workers: int) -> str | None:
    """Returns advice when steps wait for data, once; else None.

    - `epochs`: lines of log.jsonl with "waited", the share of the time
    - `cache`: where decoded images are kept: "none", "memory", "disk" or "device"
    - `workers`: number of reader threads

    Without a cache one long wait is enough. With a cache it takes two epochs, as the first one reads files.
    """

    def long(record: dict) -> bool:
        return (record.get("waited") or 0) > LONG

    number = 1 if cache == "none" else 2
    last, before = epochs[-number:], epochs[-number - 1 : -number]
    if len(last) < number or not all(map(long, last)) or any(map(long, before)):
        return None
    faster = {"none": "memory, disk or device", "disk": "memory or device", "memory": "device"}.get(cache)
    advice = f"more --workers (now {workers})" + (f", or --cache {faster}" if faster else "")
    return f"training waited for data {last[-1]['waited']:.0%} of the time. Try {advice}"
