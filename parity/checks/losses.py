"""The losses question: do value and gradient of every loss equal the reference's, with every option?

In float64 the gate is 1e-14 for each batch: for the value, and for the gradient in the l2 norm. Correct code differs
by roundings of a sum over a few hundred pixels, 1e-16 to 1e-15 relative. The smallest mistake that these batches show
(an ignored pixel counted, another denominator, eps 1e-5) is above 1e-6. A batch with every pixel ignored has loss 0
and gradient 0 in jaxseg, on purpose; PyTorch has NaN for losses that divide by the number of pixels.

In float32 the gate is 3: the distance of jaxseg's gradients from the float64 reference, over that of PyTorch's float32
gradients, all batches together. Losses that sort have a gradient that jumps when rounding swaps two pixels on one side
only. That happens about once in 9,600 pixels, and makes a distance of 1e-5 (Lovasz) or 2e-2 (hard examples) instead of
1e-7. So these losses are asked in float32 only with pixels that are far apart or equal in every bit.

Not seen: labels outside 0 to k - 1 (PyTorch raises; jaxseg checks the data on reading), and which loss a run takes.
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
CASES = {  # loss: options by the name of the case
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
"""Losses that are NaN in PyTorch if every pixel is ignored."""
PIXELS = 26  # with 0.28, whose product with 25 exceeds 7 by rounding
SHARES = (0.05, 0.1, 0.25, 0.28, 0.3, 0.3334, 0.5, 0.56, 0.6, 0.7, 0.9, 0.99, 1.0)
NOTHING = "all ignored"
CERTAIN = ["logits of +-200", "ties"]
"""Batches where rounding swaps no pixels."""

Asked = tuple[str, dict]
"""Name of a loss, and options."""
Batches = dict[str, tuple[np.ndarray, np.ndarray]]
Results = dict[str, tuple[np.ndarray, np.ndarray]]
"""Value and gradient [b h w k], by name of the batch."""


def run(settings: Settings) -> Answer:
    """Answers the losses question.

    Evidence: {"three_way": {case: {"jaxseg", "pytorch", "apart"}}}: relative l2 distances of the float32 gradients of
    jaxseg and of PyTorch from PyTorch's in float64, and from each other. A quick run leaves out cases with options.
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
    rows.append(share_row(settings.seed))
    return Answer(QUESTION, tuple(rows), {"three_way": rounding})


def cases(loss: str) -> dict[str, Asked]:
    """Cases of a loss by name: "<loss>", or "<loss>, <options>"."""
    return {f"{loss}, {name}" if name else loss: (loss, options) for name, options in CASES[loss].items()}


def unmatched_row() -> Row:
    """Row that passes if every loss of jaxseg is one of the cases."""
    offered = {name for name, thing in vars(losses).items() if isfunction(thing) and not name.startswith("_")}
    offered -= {"loss_from", "one_hot"}
    left = sorted(offered - set(CASES))
    figure = len(left) if offered else float("nan")
    return compare.at_most(QUESTION, "losses without a counterpart", figure, 0, worst=", ".join(left))


def exact_rows(case: str, found: Results, expected: Results) -> list[Row]:
    """Rows for value and gradient of one case in float64."""
    names = [name for name in found if name != NOTHING]
    rows = []
    for i, part in enumerate(("value", "gradient")):
        pair = ({name: side[name][i] for name in names} for side in (found, expected))
        rows.append(compare.close(QUESTION, f"{case}: {part}", *pair, GATE, each=True))
    return rows


def three_way(asked: Mapping[str, Asked], data: Batches, exact: Mapping[str, Results]) -> dict[str, dict[str, float]]:
    """Distances of each case: of the float32 gradients from those in float64, and from each other."""
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
    """True if the gradient depends on the order of the pixels' losses or errors."""
    loss, options = ask
    return loss == "lovasz" or "ohem" in options


def rounding_row(loss: str, distances: dict[str, dict[str, float]]) -> Row:
    """Row for the float32 gradients of all cases of a loss."""
    note = "gradients; distance from float64 over PyTorch's own distance from it"
    rows = [compare.envelope(QUESTION, case, d["jaxseg"], {"PyTorch": d["pytorch"]}) for case, d in distances.items()]
    return compare.worst_of(QUESTION, f"{loss}: float32", rows, note)


def nothing_row(loss: str, found: list[tuple[np.ndarray, np.ndarray]], expected: tuple[np.ndarray, np.ndarray]) -> Row:
    """Row that passes if jaxseg is exactly 0 with every pixel ignored, and PyTorch is NaN where NAN_IN_PYTORCH says."""
    figure = max(np.abs(np.append(value, grad)).max() for value, grad in found)
    as_told = bool(np.isnan(expected[0])) == (loss in NAN_IN_PYTORCH)
    note, worst = f"value and gradient are 0; PyTorch's value is {float(expected[0]):g}", ""
    if not as_told:
        figure, worst = float("nan"), f"PyTorch's value is {float(expected[0])!r}, against NAN_IN_PYTORCH"
    return compare.at_most(QUESTION, f"{loss}: {NOTHING}", figure, 0, note, worst)


def share_row(seed: int) -> Row:
    """Row for the number of hard examples: shares of 1 to PIXELS pixels that are not ignored.

    A share that is rounded to the nearest, or down, or whose product exceeds an integer by rounding, changes a value.
    0.3334 is more than a third of three pixels, by less than a percent.
    """
    logits = np.random.default_rng(seed).standard_normal((1, 1, PIXELS, 2))
    labels = np.where(np.arange(PIXELS) < np.arange(1, PIXELS + 1)[:, None], 1, IGNORED)[:, None, None].astype(np.uint8)

    def value(labels: jax.Array) -> dict[float, jax.Array]:
        return {share: losses.cross_entropy(jnp.asarray(logits), labels, ohem=share) for share in SHARES}

    with jax.enable_x64(True):
        found = jax.device_get(jax.jit(jax.vmap(value))(jnp.asarray(labels)))
    leaf = torch.from_numpy(logits.transpose(0, 3, 1, 2).copy())
    expected = {
        share: np.array(
            [reference.cross_entropy(leaf, torch.from_numpy(one.astype(int)), ohem=share) for one in labels]
        )
        for share in SHARES
    }
    note = f"shares {', '.join(map(str, SHARES))} of 1 to {PIXELS} pixels"
    return compare.close(QUESTION, "hard examples: their number", found, expected, GATE, each=True, note=note)


def batches(seed: int, shape: tuple[int, int, int]) -> Batches:
    """Batches by name: logits float64 [b h w k], exact in float32, and labels uint8 [b h w]."""
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
    """Logits [b h w k] with probabilities 1, 1/2, 1/4 and e^-200, so many losses are equal in every bit.

    Improbable classes differ by 1 in places, where the hinge has its kink.
    """
    places = rng.random((*shape, CLASSES)).argsort(-1)
    probable = places < rng.choice([1, 2, 4], shape)[..., None]
    return np.where(probable, 0.0, rng.choice([-200.0, -199.0], probable.shape))


def ours(asked: Mapping[str, Asked], data: Batches, dtype: type) -> dict[str, Results]:
    """jaxseg's results for all cases, from one program, because compilation takes most of the time."""

    def answer(logits: jax.Array, labels: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
        bound = {case: partial(getattr(losses, loss), **options) for case, (loss, options) in asked.items()}
        return {case: jax.value_and_grad(loss)(logits, labels) for case, loss in bound.items()}

    logits, labels = (np.stack(parts) for parts in zip(*data.values(), strict=True))
    found = jax.device_get(jax.jit(jax.vmap(answer))(jnp.asarray(logits.astype(dtype)), jnp.asarray(labels)))
    return {case: dict(zip(data, zip(*both, strict=True), strict=True)) for case, both in found.items()}


def theirs(ask: Asked, data: Batches, dtype: type) -> Results:
    """The reference's results for one case, batch by batch."""
    loss, options = ask
    out = {}
    for name, (logits, labels) in data.items():
        leaf = torch.from_numpy(logits.astype(dtype).transpose(0, 3, 1, 2).copy()).requires_grad_()
        value = getattr(reference, loss)(leaf, torch.from_numpy(labels.astype(np.int64)), **options)
        value.backward()
        out[name] = value.detach().numpy(), leaf.grad.numpy().transpose(0, 2, 3, 1)
    return out
