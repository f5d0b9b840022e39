"""Is every loss the reference's, value and gradient, with every option, on the batches that tell them apart?

In float64 both sides differ by roundings of a sum over a few hundred pixels, 1e-16 to 1e-15 relative; the smallest
mistake of meaning that these batches can show (an ignored pixel counted, another denominator, eps 1e-5) is above 1e-6.
The gate is 1e-14, input by input: of the value, and of the gradient in the l2 norm. A batch in which no pixel counts
is 0 with gradient 0 here, by intention, where PyTorch has NaN for the losses that divide by the number of pixels.

In float32 no tolerance has a meaning of its own: the figure is the distance of jaxseg's gradients from the float64
reference over the distance of PyTorch's own in float32, all inputs together, and the gate is 3. Losses that sort have
gradients that jump where two pixels change places, which rounding may do on one side only (of 9,600 pixels about once:
a distance of 1e-5 for Lovasz, 2e-2 for the hard examples, instead of 1e-7), so they are asked in float32 only where
every two pixels are far apart or equal to the bit.

Not seen here: labels outside 0 to k - 1 (PyTorch raises, jaxseg checks data on reading), and which loss a run takes.
"""

from collections.abc import Mapping
from functools import partial
from inspect import isfunction

import jax
import jax.numpy as jnp
import numpy as np
import torch

from jaxseg.learn import losses
from parity.judge import compare
from parity.judge.answer import Answer, Settings
from parity.judge.compare import Row
from parity.reference import losses as reference

QUESTION = "losses"
GATE = 1e-14
IGNORED = 255
CLASSES = 4
WEIGHTS = [0.3, 2.1, 0.7, 1.9]
CASES = {  # loss: options by their name
    "cross_entropy": {
        "": {},
        "weights": {"class_weights": WEIGHTS},
        "smoothing": {"label_smoothing": 0.1},
        "smoothing and weights": {"label_smoothing": 0.3, "class_weights": WEIGHTS},
        "ohem": {"ohem": 0.3},
        "ohem, smoothing and weights": {"ohem": 0.3, "label_smoothing": 0.3, "class_weights": WEIGHTS},
    },
    "dice": {"": {}, "weights": {"class_weights": WEIGHTS}, "smooth": {"smooth": 1.0}},
    "jaccard": {"": {}, "weights and smooth": {"class_weights": WEIGHTS, "smooth": 1.0}},
    "tversky": {
        "": {},
        "all options": {"alpha": 0.3, "beta": 0.7, "gamma": 1.5, "smooth": 0.5, "class_weights": WEIGHTS},
    },
    "focal": {"": {}, "all options": {"alpha": 0.25, "gamma": 1.5, "class_weights": WEIGHTS}},
    "lovasz": {"": {}, "weights": {"class_weights": WEIGHTS}},
    "mse": {"": {}, "weights": {"class_weights": WEIGHTS}},
    "hinge": {"": {}, "weights": {"class_weights": WEIGHTS}},
    "dice_ce": {"": {}, "smoothing and weights": {"label_smoothing": 0.1, "class_weights": WEIGHTS}},
}
NAN_IN_PYTORCH = {"cross_entropy", "focal", "mse", "hinge", "dice_ce"}
"""When every pixel is ignored."""
NOTHING = "all ignored"
CERTAIN = ["logits of +-200", "ties"]
"""Batches in which rounding changes no order."""

Asked = tuple[str, dict]
"""Name of the loss, and options."""
Batches = dict[str, tuple[np.ndarray, np.ndarray]]
Results = dict[str, tuple[np.ndarray, np.ndarray]]
"""Value and gradient [b h w k] by the name of the batch."""


def run(settings: Settings) -> Answer:
    """The losses question.

    Evidence: {"three_way": {case: {"jaxseg", "pytorch", "apart"}}}, relative l2 distances of the float32 gradients of
    jaxseg and PyTorch from PyTorch's in float64, and from each other. A quick run leaves out the cases with options.
    """
    data = batches(settings.seed, (3, 16, 18) if settings.quick else (4, 48, 50))
    rows, rounding = [unmatched_row()], {}
    for loss in CASES:
        asked = cases(loss)
        with jax.enable_x64(True):
            found = ours(asked, data, np.float64)
        expected = {case: theirs(ask, data, np.float64) for case, ask in asked.items()}
        rows += [row for case in asked for row in exact_rows(case, found[case], expected[case])]
        rows.append(nothing_row(loss, [found[case][NOTHING] for case in asked], expected[loss][NOTHING]))
        apart = three_way({loss: asked[loss]} if settings.quick else asked, data, expected)
        rows.append(rounding_row(loss, apart))
        rounding |= apart
    return Answer(QUESTION, tuple(rows), {"three_way": rounding})


def cases(loss: str) -> dict[str, Asked]:
    """What is asked of a loss, by the name of the case: the loss's own name, and with options behind it."""
    return {f"{loss}, {name}" if name else loss: (loss, options) for name, options in CASES[loss].items()}


def unmatched_row() -> Row:
    """Every loss that jaxseg offers is one of the cases."""
    offered = {name for name, thing in vars(losses).items() if isfunction(thing) and not name.startswith("_")}
    offered -= {"loss_from", "one_hot"}
    left = sorted(offered - set(CASES))
    figure = len(left) if offered else float("nan")
    return compare.at_most(QUESTION, "losses without a counterpart", figure, 0, worst=", ".join(left))


def exact_rows(case: str, found: Results, expected: Results) -> list[Row]:
    """Value and gradient of one case in float64."""
    names = [name for name in found if name != NOTHING]
    rows = []
    for i, part in enumerate(("value", "gradient")):
        pair = ({name: side[name][i] for name in names} for side in (found, expected))
        rows.append(compare.close(QUESTION, f"{case}: {part}", *pair, GATE, each=True))
    return rows


def three_way(asked: Mapping[str, Asked], data: Batches, exact: Mapping[str, Results]) -> dict[str, dict[str, float]]:
    """Of each case, how far the gradients in float32 are from those in float64, and from each other."""
    with jax.enable_x64(False):
        found = ours(asked, data, np.float32)
    distances = {}
    for case, ask in asked.items():
        names = CERTAIN if sorts(ask) else [name for name in data if name != NOTHING]
        sides = found[case], theirs(ask, data, np.float32), exact[case]
        jaxseg, pytorch, float64 = ({name: side[name][1] for name in names} for side in sides)
        distances[case] = {
            "jaxseg": compare.relative_l2(jaxseg, float64),
            "pytorch": compare.relative_l2(pytorch, float64),
            "apart": compare.relative_l2(jaxseg, pytorch),
        }
    return distances


def sorts(ask: Asked) -> bool:
    """Whether the gradient depends on the order of the pixels' losses or errors."""
    loss, options = ask
    return loss == "lovasz" or "ohem" in options


def rounding_row(loss: str, distances: dict[str, dict[str, float]]) -> Row:
    """Of all cases of a loss."""
    note = "gradients; distance from float64 over PyTorch's own distance from it"
    rows = [compare.envelope(QUESTION, case, d["jaxseg"], {"PyTorch": d["pytorch"]}) for case, d in distances.items()]
    return compare.worst_of(QUESTION, f"{loss}: float32", rows, note)


def nothing_row(loss: str, found: list[tuple[np.ndarray, np.ndarray]], expected: tuple[np.ndarray, np.ndarray]) -> Row:
    """What counts for nothing is exactly 0 in all cases, and PyTorch does what the docstrings say that it does."""
    figure = max(np.abs(np.append(value, grad)).max() for value, grad in found)
    as_told = bool(np.isnan(expected[0])) == (loss in NAN_IN_PYTORCH)
    note, worst = f"value and gradient are 0; PyTorch's value is {float(expected[0]):g}", ""
    if not as_told:
        figure, worst = float("nan"), f"PyTorch's value is {float(expected[0])!r}, not as pinned"
    return compare.at_most(QUESTION, f"{loss}: {NOTHING}", figure, 0, note, worst)


def batches(seed: int, shape: tuple[int, int, int]) -> Batches:
    """Logits float64 [b h w k], all of them float32 numbers, and labels uint8 [b h w]."""
    rng = np.random.default_rng(seed)
    logits = (3 * rng.standard_normal((*shape, CLASSES))).astype(np.float32).astype(np.float64)
    labels = rng.choice(CLASSES, shape, p=[0.5, 0.3, 0.15, 0.05]).astype(np.uint8)
    labels.flat[:CLASSES] = range(CLASSES)
    some, padded = labels.copy(), labels.copy()
    some[rng.random(shape) < 0.3] = IGNORED
    some.flat[:CLASSES] = range(CLASSES)
    padded[-1] = IGNORED
    return {
        "plain": (logits, labels),
        "some ignored": (logits, some),
        "one sample ignored": (logits, padded),
        "one class absent": (logits, np.where(some == 2, 1, some).astype(np.uint8)),
        "one class only": (logits, np.where(some == IGNORED, some, 1).astype(np.uint8)),
        "logits of +-200": (200 * np.sign(logits), some),
        "ties": (tied(rng, shape), some),
        NOTHING: (logits, np.full_like(labels, IGNORED)),
    }


def tied(rng: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    """Logits with probabilities of 1, 1/2, 1/4 and e^-200, so that many errors and losses are equal to the bit, and
    with differences of 1 among the improbable classes, where the hinge has its kink.
    """
    places = rng.random((*shape, CLASSES)).argsort(-1)
    probable = places < rng.choice([1, 2, 4], shape)[..., None]
    return np.where(probable, 0.0, rng.choice([-200.0, -199.0], probable.shape))


def ours(asked: Mapping[str, Asked], data: Batches, dtype: type) -> dict[str, Results]:
    """jaxseg's of all cases, from one program, because compiling is what takes the time."""

    def answer(logits: jax.Array, labels: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
        bound = {case: partial(getattr(losses, loss), **options) for case, (loss, options) in asked.items()}
        return {case: jax.value_and_grad(loss)(logits, labels) for case, loss in bound.items()}

    logits, labels = (np.stack(parts) for parts in zip(*data.values(), strict=True))
    found = jax.device_get(jax.jit(jax.vmap(answer))(jnp.asarray(logits.astype(dtype)), jnp.asarray(labels)))
    return {case: dict(zip(data, zip(*both, strict=True), strict=True)) for case, both in found.items()}


def theirs(ask: Asked, data: Batches, dtype: type) -> Results:
    """The reference's of one case, batch after batch."""
    loss, options = ask
    out = {}
    for name, (logits, labels) in data.items():
        leaf = torch.from_numpy(logits.astype(dtype).transpose(0, 3, 1, 2).copy()).requires_grad_()
        value = getattr(reference, loss)(leaf, torch.from_numpy(labels.astype(np.int64)), **options)
        value.backward()
        out[name] = value.detach().numpy(), leaf.grad.numpy().transpose(0, 2, 3, 1)
    return out
