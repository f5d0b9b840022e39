"""What goes wrong in training without an error of ours: memory that does not suffice, predictions of one class."""

from collections.abc import Sequence

from jaxseg.config import Config

SIGNS = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory", "Failed to determine best cudnn convolution algorithm")
"""What JAX says when a device's memory does not suffice; the last hides it."""
EVALUATIONS = 3


def is_about_memory(error: BaseException) -> bool:
    """Whether an error says that memory does not suffice, in whatever words."""
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in SIGNS)


def out_of_memory(error: BaseException, config: Config, tile: tuple[int, int]) -> str | None:
    """What to say of `error` if it is about memory: how large the step was, and what to try, in order; else None."""
    if not is_about_memory(error):
        return None
    o, m = config.optimization, config.model
    part = o.batch_size // o.accumulate
    tries = [f"--accumulate {2 * o.accumulate} (the same batch in smaller parts), or a smaller --batch-size"] * (
        part > 1
    )
    tries += ["--precision bf16"] * (m.precision == "f32")
    tries += ["--remat"] * (not m.remat)
    tries += [f"--crop {max(2 ** (len(m.widths) - 1), max(tile) // 2)}", "fewer or smaller --widths"]
    return (
        f"memory does not suffice for {part} samples of {tile[1]}x{tile[0]} in {m.precision} through "
        f"--widths {' '.join(map(str, m.widths))}. Try, in this order:\n"
        + "\n".join(f"  {number}. {what}" for number, what in enumerate(tries, 1))
        + "\nOn a GPU, JAX takes three quarters of the memory at start; other programs on it take theirs away."
    )


def one_class_only(epochs: Sequence[dict], classes: Sequence[str], class_pixels: Sequence[int]) -> str | None:
    """A warning when the last three evaluations predicted one class for every pixel, said once.

    `epochs`: lines of log.jsonl, whose "validation" has "predicted", the share of pixels given to each class.
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
        f"{', '.join(others[:5])}. Try --class-weights auto or --loss dice_ce; look at samples/batch.png"
    )
