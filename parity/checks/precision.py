"""The precision question: does jaxseg round as well as PyTorch, in one pass in float32 and in bfloat16?

float64 is the truth, so there are three errors: jaxseg to float64, PyTorch to float64, and jaxseg to PyTorch. The
figure is the first over the second, each the largest of several seeds, and the gate is 3. With equal arithmetic the
ratio is near 1 in every layer (0.9 to 1.2 in float32, over dozens of seeds). A loss of precision (a fast variance,
products or sums in bfloat16) makes it 10 and more.

Branches: in about one image in a hundred a ReLU takes different branches in float32 and float64. Gradients are then
off by a thousandth, where rounding makes a millionth, on either side and by chance. So each side is measured by a
float64 pass that takes that side's branches. The notes count the branches that float64 would have chosen otherwise.

Loss: a single number can be exact by luck, so half an ulp of its dtype is also a baseline. On a CPU, XLA sums up to a
few thousand numbers one by one, with errors of 1e-6, and larger arrays in a tree; PyTorch always sums in a tree.
Images here are large enough for the tree, as in any training.

"large means" raises the biases that BatchNorm cancels by 30, which is 10 to 100 standard deviations. The exact result
stays the same and rounding grows, so this tests the algorithm of the variance. Running statistics are also compared
with those that float64 computes from the very activations that BatchNorm saw, on either side.

bfloat16: jaxseg's network is UNet(dtype=bfloat16), and the reference runs under `torch.autocast`. Both round the
outputs of all layers to bfloat16, and keep parameters, their gradients, BatchNorm's statistics and the loss in
float32. Only the logits differ: jaxseg casts them to float32 before the loss, autocast gives the loss bfloat16. By
default XLA omits a rounding to bfloat16 before a cast to float32, for instance before BatchNorm. Here an option makes
it round as PyTorch does; otherwise statistics would not belong to the recorded activations. (The trainer keeps the
default, which is nearer to float64.)

Not seen: rounding that grows in training (see divergence), and other devices (see gpu).
"""

import itertools
import math
from collections.abc import Iterable, Mapping

import jax
import numpy as np

from parity.judge import compare
from parity.judge.answer import Answer, Settings
from parity.judge.compare import Row
from parity.twins import passes
from parity.twins.passes import Pass
from parity.twins.trials import Case, Get, Network, Trial, trial

QUESTION = "precision"
GATE = 3.0
HALF_ULP = {"float32": 2.0**-24, "bfloat16": 2.0**-9}
"""Largest relative error of one rounding."""
FLOOR = 0.01
"""ULPs are counted where either side reaches this share of the root mean square; nearer to zero they mean nothing."""
BINS = (0, 1, 4, 16, 64, 256)

QUANTITIES: dict[str, Get] = {
    "logits": lambda p: p.logits,
    "loss": lambda p: p.loss,
    "activations": lambda p: p.outputs,
    "gradients of activations": lambda p: p.output_gradients,
    "gradients": lambda p: p.gradients,
    "running statistics": lambda p: p.statistics,
}
FORWARDS: Get = QUANTITIES["activations"]
BACKWARDS: Get = QUANTITIES["gradients of activations"]


def cases(widths: tuple[int, ...]) -> tuple[Case, ...]:
    """Cases of a network: in float32, with large means, and in bfloat16."""
    float32 = Network("float32", widths)
    return (
        Case("float32", float32),
        Case("float32, large means", float32, raised=30.0),
        Case("bfloat16", Network("bfloat16", widths)),
    )


QUICK = cases((4, 8))
FULL = (
    *cases((8, 16, 32, 64)),
    *(Case(f"{t}, bilinear", Network(t, (16, 32, 64), "bilinear", conv_bias=False)) for t in ("float32", "bfloat16")),
)


def run(settings: Settings) -> Answer:
    """Answers the precision question on the CPU; see `measure` for the evidence."""
    return Answer(QUESTION, *measure(QUESTION, settings, "cpu"))


def measure(
    question: str,
    settings: Settings,
    device: str,
    label: str = "",
    dtypes: tuple[str, ...] = ("float32", "bfloat16"),
    allowed: Mapping[str, float] | None = None,
) -> tuple[tuple[Row, ...], dict]:
    """Rows and evidence with both frameworks on one device.

    question: that the rows belong to.
    device: "cpu" or "gpu".
    label: beginning of the rows' names.
    dtypes: only networks that compute in one of these.
    allowed: errors by name that are as acceptable as PyTorch's own.

    Evidence:

    - "three_way": [{"case", "quantity", "jaxseg", "torch", "between"}]: lists by seed of relative l2 distances, from
      jaxseg to float64, PyTorch to float64, and jaxseg to PyTorch
    - "types": [{"case", "what", "jaxseg", "torch"}]: dtypes
    - "layers": [{"name", "kind", "forward": {...}, "backward": {...}}] of the first case, in the order of computation.
      Each way has "jaxseg", "torch" and "between" as above, the largest of the seeds; "float64": distance of both
      sides in float64; "equal" and "ulps": share of equal elements and median distance, of the first seed
    - "ulps": {"logits" and "gradients": {side: {"0", "1", "4", "16", "64", "256", "median", "p99", "max",
      "counted"}}} of all seeds of the first case. Sides are "jaxseg", "channels_last" and "permuted batch". Numbers
      are the shares of counted elements within so many ULPs of PyTorch; "counted" is the share that is counted
    """
    seeds = range(settings.seed, settings.seed + settings.seeds)
    allowed, compiled, rows, evidence = allowed or {}, {}, [], {"three_way": [], "types": []}
    for case in (case for case in (QUICK if settings.quick else FULL) if case.network.dtype in dtypes):
        if case.network not in compiled:
            optimized = not (settings.quick and case.network.dtype == "bfloat16")  # it would compile for long
            compiled[case.network] = passes.ours(case.start(settings.seed)[0], device=device, optimized=optimized)
        trials = [trial(case, seed, compiled[case.network], device) for seed in seeds]
        name = label + case.name
        evidence["three_way"] += (errors := three_way(name, trials))
        evidence["types"] += types(name, trials[0])
        rows += [error_row(question, case, found, trials, allowed) for found in errors]
        for way, get in (("forwards", FORWARDS), ("backwards", BACKWARDS)):
            rows.append(growth_row(question, f"{name}: growth {way}", trials, get, allowed))
        rows.append(types_row(question, name, trials[0]))
        rows.append(statistics_row(question, name, trials))
        if "layers" not in evidence:
            first = f"{name}: first layer to differ"
            rows.append(first_row(question, f"{first}, forwards", trials[0], FORWARDS, allowed))
            rows.append(first_row(question, f"{first}, backwards", trials[0], BACKWARDS, allowed, back=True))
            evidence["layers"] = layers(case, settings.seed, trials)
            evidence["ulps"] = ulps(case, seeds, trials, device)
    return tuple(rows), evidence


# Errors of the whole --------------------------------------------------------------------------------------------------


def three_way(name: str, trials: list[Trial]) -> list[dict]:
    """Evidence "three_way" of a case (see `measure`)."""
    found = []
    for quantity, get in QUANTITIES.items():
        ours, theirs, between = zip(*(t.errors(get) for t in trials))
        sides = {"jaxseg": list(ours), "torch": list(theirs), "between": list(between)}
        found.append({"case": name, "quantity": quantity} | sides)
    return found


def error_row(question: str, case: Case, found: dict, trials: list[Trial], allowed: Mapping[str, float]) -> Row:
    """Row for jaxseg's error to float64 over PyTorch's."""
    ours, theirs, between = (float(np.max(found[side])) for side in ("jaxseg", "torch", "between"))
    baselines = {"PyTorch": theirs} | allowed
    if found["quantity"] == "loss":
        baselines["half an ulp"] = HALF_ULP[case.network.dtype]
    note = f"error to float64 over PyTorch's own; {between:.2g} apart; largest of {len(trials)} seeds"
    if "gradients" in found["quantity"]:
        flips = [sum(flips) for flips in zip(*(t.flips for t in trials))]
        note += f"; branches unlike float64's: jaxseg {flips[0]}, PyTorch {flips[1]}"
    return compare.envelope(question, f"{found['case']}: {found['quantity']}", ours, baselines, GATE, note)


def types(name: str, found: Trial) -> list[dict]:
    """Evidence "types" of a case: of everything that is not a layer's output, and of layers where the sides differ."""
    ours, theirs = found.ours.types, found.theirs.types
    told = [what for what in ours if what not in found.layers or ours[what] != theirs.get(what)]
    return [{"case": name, "what": w, "jaxseg": ours[w], "torch": theirs.get(w, "")} for w in told]


def types_row(question: str, name: str, found: Trial) -> Row:
    """Row that passes if logits, loss, gradients and running statistics are float32."""
    kinds = {what: kind for what, kind in found.ours.types.items() if what not in found.layers}
    wrong = [f"{what} {kind}" for what, kind in kinds.items() if kind != "float32"]
    theirs = [f"{what} {found.theirs.types[what]}" for what in kinds if found.theirs.types[what] != "float32"]
    note = f"PyTorch: {', '.join(theirs)}" if theirs else ""
    return compare.at_most(question, f"{name}: {', '.join(kinds)} not float32", len(wrong), 0, note, "; ".join(wrong))


def statistics_row(question: str, name: str, trials: list[Trial]) -> Row:
    """Row for the error of running statistics against the activations that BatchNorm saw, on each side."""

    def error(p: Pass, layers: dict[str, tuple[str, str]]) -> float:
        expected = {}
        for (before, _), (_, (path, kind)) in itertools.pairwise(layers.items()):
            if kind == "BatchNorm2d" and before in p.outputs:
                x = p.outputs[before].astype(np.float64)
                expected[f"{path}.running_mean"] = 0.1 * x.mean((0, 2, 3))
                expected[f"{path}.running_var"] = 0.9 + 0.1 * x.var((0, 2, 3), ddof=1)
        return compare.relative_l2({key: p.statistics[key] for key in expected}, expected)

    ours = float(np.max([error(t.ours, t.layers) for t in trials]))
    theirs = float(np.max([error(t.theirs, t.layers) for t in trials]))
    note = "error to those that float64 computes from the activations, over PyTorch's own"
    name = f"{name}: running statistics of what was seen"
    return compare.envelope(question, name, ours, {"PyTorch": theirs}, GATE, note)


# Layer by layer -------------------------------------------------------------------------------------------------------


def growth_row(question: str, name: str, trials: list[Trial], get: Get, allowed: Mapping[str, float]) -> Row:
    """Row for the layer where jaxseg's error is largest relative to PyTorch's."""
    rows = []
    for layer in trials[0].layers:
        ours, theirs, _ = np.max([t.errors(get, layer) for t in trials], 0)
        label = trials[0].label(layer)
        rows.append(compare.envelope(question, label, float(ours), {"PyTorch": float(theirs)} | allowed, GATE))
    note = f"layer by layer, error to float64 over PyTorch's own; the worst of {len(rows)} layers"
    return compare.worst_of(question, name, rows, note)


def first_row(
    question: str, name: str, found: Trial, get: Get, allowed: Mapping[str, float], back: bool = False
) -> Row:
    """Row for the first layer where the two sides differ in any bit: jaxseg's error there over PyTorch's."""
    for layer in reversed(found.layers) if back else found.layers:
        ours, theirs = (get(side).get(layer) for side in (found.ours, found.theirs))
        if ours is None or ours.shape != theirs.shape or not np.array_equal(ours, theirs):
            break
    else:
        return compare.at_most(question, name, 0, GATE, "no layer differs in any bit")
    errors = found.errors(get, layer)
    note = f"{found.layers[layer][1]} {found.label(layer)}"
    if not math.isnan(errors[2]):
        told = histogram([(ours, theirs)])
        note += (
            f": {told['0']:.0%} of the elements equal, {told['1']:.0%} within an ulp, at most {told['max']:.0f} ulps"
        )
    return compare.envelope(question, name, errors[0], {"PyTorch": errors[1]} | allowed, GATE, note)


def layers(case: Case, seed: int, trials: list[Trial]) -> list[dict]:
    """Evidence "layers" (see `measure`)."""
    with jax.enable_x64(True):
        net, reference, batch = case.start(seed, "float64")
        exact = passes.ours(net, optimized=False)(net, batch), passes.theirs(reference, batch, "float64")
    first = trials[0]
    found = []
    for layer, (_, kind) in first.layers.items():
        entry = {"name": first.label(layer), "kind": kind}
        for way, get in (("forward", FORWARDS), ("backward", BACKWARDS)):
            errors = np.max([t.errors(get, layer) for t in trials], 0)
            entry[way] = dict(zip(("jaxseg", "torch", "between"), map(float, errors)))
            if all(layer in get(side) for side in (first.ours, exact[0])):
                entry[way]["float64"] = compare.relative_l2(*(get(side)[layer] for side in exact))
                told = histogram([(get(first.ours)[layer], get(first.theirs)[layer])])
                entry[way] |= {"equal": told["0"], "ulps": told["median"]}
        found.append(entry)
    return found


# ULPs -----------------------------------------------------------------------------------------------------------------


def ulps(case: Case, seeds: Iterable[int], trials: list[Trial], device: str) -> dict:
    """Evidence "ulps" (see `measure`)."""
    found = {"logits": {}, "gradients": {}}
    sides = {"jaxseg": [t.ours for t in trials]}
    for variation in ("channels_last", "permuted batch"):
        starts = [case.start(seed)[1:] for seed in seeds]
        sides[variation] = [
            passes.theirs(reference, batch, "float32", device=device, variation=variation)
            for reference, batch in starts
        ]
    for name, side in sides.items():
        both = list(zip(side, (t.theirs for t in trials)))
        found["logits"][name] = histogram([(p.logits, q.logits) for p, q in both])
        found["gradients"][name] = histogram([(p.gradients[k], x) for p, q in both for k, x in q.gradients.items()])
    return found


def histogram(both: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Distances of pairs of arrays in float32 ULPs: shares, median, 99th percentile, largest (see `measure`)."""
    floors = [FLOOR * compare.norm(b) / math.sqrt(b.size) for _, b in both]
    distances = np.concatenate([compare.ulp_distances(a, b, floor) for (a, b), floor in zip(both, floors)])
    if not distances.size:
        return {str(n): 1.0 for n in BINS} | {"median": 0.0, "p99": 0.0, "max": 0.0, "counted": 0.0}
    return {str(n): float((distances <= n).mean()) for n in BINS} | {
        "median": float(np.median(distances)),
        "p99": float(np.percentile(distances, 99)),
        "max": float(distances.max()),
        "counted": distances.size / sum(b.size for _, b in both),
    }
