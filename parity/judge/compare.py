"""Comparisons of arrays and scores, each with a verdict; `parity/judge/laws.py` tests random draws.

Every comparison returns a `Row`. A row passes exactly when its figure is finite and at most its gate. The figure is
NaN, and the row fails, where a comparison means nothing: no arrays, a name on one side only, unequal shapes, a NaN or
an infinity. Arrays come alone or as a dict from name to array, as anything that `numpy.asarray` takes.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
from scipy import stats

Arrays = np.ndarray | Mapping[str, np.ndarray]
Measure = Callable[[Arrays, Arrays], float]


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the report: the measured `figure` and the `gate` it may reach."""

    question: str
    name: str
    figure: float
    gate: float
    passed: bool
    note: str = ""
    worst: str = ""
    """Name, index and both values of the worst element, or why nothing could be compared."""


def at_most(question: str, name: str, figure: float, gate: float, note: str = "", worst: str = "") -> Row:
    """Row for a figure measured elsewhere."""
    figure, gate = float(figure), float(gate)
    passed = math.isfinite(figure) and math.isfinite(gate) and figure <= gate
    return Row(question, name, figure, gate, passed, note, worst)


def worst_of(question: str, name: str, rows: Iterable[Row], note: str = "") -> Row:
    """One row for many, under a common name: the one that fails or comes closest to it. No rows at all fail."""
    rows = list(rows)
    if not rows:
        return at_most(question, name, math.nan, 0, note, "no rows")
    row = max(rows, key=_closeness)
    worst = "; ".join(part for part in (row.name, row.worst) if part)
    return Row(question, name, row.figure, row.gate, all(r.passed for r in rows), note or row.note, worst)


def _closeness(row: Row) -> tuple[bool, float]:
    ratio = row.figure / row.gate if row.gate else row.figure
    return not row.passed, math.inf if math.isnan(ratio) else ratio


# Arrays ---------------------------------------------------------------------------------------------------------------


def relative_l2(found: Arrays, expected: Arrays, floor: float = 0.0) -> float:
    """|found - expected| / max(|expected|, floor) in the l2 norm over all arrays together, in float64.

    0 if both are 0, infinite if only `expected` is 0.
    """
    if mismatch(found, expected):
        return math.nan
    pairs = list(_pairs(found, expected))
    difference = norm({name: a - b for name, a, b in pairs})
    if difference == 0:
        return 0.0
    scale = max(norm({name: b for name, _, b in pairs}), floor)
    return difference / scale if scale else math.inf


def max_abs(found: Arrays, expected: Arrays) -> float:
    """Largest |found - expected| over all elements, in float64."""
    if mismatch(found, expected):
        return math.nan
    return max(float(np.abs(a - b).max()) for _, a, b in _pairs(found, expected))


def ulps(found: Arrays, expected: Arrays, floor: float = 0.0) -> float:
    """Largest distance in units in the last place, among elements where either side reaches `floor`.

    Near zero a harmless difference is many ULPs, hence the floor. NaN if no element reaches it.
    """
    if mismatch(found, expected):
        return math.nan
    found, expected = _named(found), _named(expected)
    reached = [ulp_distances(found[name], expected[name], floor) for name in found]
    return max((float(d.max()) for d in reached if d.size), default=math.nan)


def ulp_distances(found: np.ndarray, expected: np.ndarray, floor: float = 0.0) -> np.ndarray:
    """Distance of each element in ULPs: uint64 [n], for the n elements where either side reaches `floor`.

    Raises TypeError unless both are float32 or both are float64.
    """
    found, expected = np.asarray(found), np.asarray(expected)
    if found.dtype != expected.dtype or found.dtype not in (np.float32, np.float64):
        raise TypeError(f"ULPs need float32 or float64 on both sides, found {found.dtype} and {expected.dtype}")
    counted = np.maximum(np.abs(found), np.abs(expected)) >= floor
    a, b = _ordinal(found[counted]), _ordinal(expected[counted])
    return np.maximum(a, b) - np.minimum(a, b)


def _ordinal(x: np.ndarray) -> np.ndarray:
    """Floats as integers in the same order, neighbors one apart, both zeros equal."""
    bits = x.view(np.uint32 if x.dtype == np.float32 else np.uint64).astype(np.uint64)
    half = np.uint64(1) << np.uint64(8 * x.dtype.itemsize - 1)
    return np.where(bits & half, half - (bits & ~half), half + bits)


def norm(arrays: Arrays) -> float:
    """l2 norm over all arrays together, in float64."""
    # np.vdot's BLAS threads are a hundred times slower when other programs keep the cores busy
    return math.sqrt(sum(float(np.square(a).sum()) for a in map(_float64, _named(arrays).values())))


def close(
    question: str,
    name: str,
    found: Arrays,
    expected: Arrays,
    gate: float,
    *,
    measure: Measure = relative_l2,
    each: bool = False,
    note: str = "",
) -> Row:
    """Row for `measure(found, expected)`: of all arrays together, or of the worst array if `each`."""
    if problem := mismatch(found, expected):
        return at_most(question, name, math.nan, gate, note, problem)
    found, expected = _named(found), _named(expected)
    errors = {key: measure({key: found[key]}, {key: expected[key]}) for key in found}
    worst = max(errors, key=lambda key: math.inf if math.isnan(errors[key]) else errors[key])
    figure = errors[worst] if each else measure(found, expected)
    return at_most(question, name, figure, gate, note, _element(worst, found[worst], expected[worst]))


def equal_bytes(question: str, name: str, found: Arrays, expected: Arrays, note: str = "") -> Row:
    """Row that passes if no bit and no dtype differs; the figure is the number of elements that differ."""
    problem = mismatch(found, expected)
    found, expected = _named(found), _named(expected)
    if not problem:
        kinds = [(key, found[key].dtype, expected[key].dtype) for key in found]
        problem = "; ".join(f"{key}: {a} against {b}" for key, a, b in kinds if a != b)
    if problem:
        return at_most(question, name, math.nan, 0, note, problem)
    differing = {key: _bits(found[key]) != _bits(expected[key]) for key in found}
    counts = {key: int(different.any(axis=-1).sum()) for key, different in differing.items()}
    worst = max(counts, key=counts.__getitem__)
    element = _element(worst, found[worst], expected[worst]) if counts[worst] else ""
    return at_most(question, name, sum(counts.values()), 0, note, element)


def _bits(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x).reshape(-1, 1).view(np.uint8)


def known_zero(question: str, name: str, found: Arrays, whole: Arrays, gate: float, note: str = "") -> Row:
    """Row for arrays that are zero in exact arithmetic, such as the gradient of a bias before a BatchNorm.

    Both sides return noise there, and noise has no relative error. The figure is the largest l2 norm of one array,
    divided by the norm of `whole`, which is all gradients together.
    """
    if problem := mismatch(found, found) or mismatch(whole, whole):
        return at_most(question, name, math.nan, gate, note, problem)
    found, scale = _named(found), norm(whole)
    worst = max(found, key=lambda key: norm(found[key]))
    figure = norm(found[worst]) / scale if scale else math.nan
    return at_most(question, name, figure, gate, note, _element(worst, found[worst], np.zeros_like(found[worst])))


def envelope(
    question: str, name: str, figure: float, baselines: Mapping[str, float], factor: float = 3.0, note: str = ""
) -> Row:
    """Row for `figure` over the largest of `baselines`; the gate is `factor`. Baselines must be finite, not all 0.

    Rounding grows in float32 training until no fixed tolerance has a meaning. The baselines are the distances of the
    reference from itself, under changes that should change nothing.
    """
    largest = max(baselines, key=baselines.__getitem__, default="")
    usable = bool(baselines) and all(map(math.isfinite, baselines.values())) and baselines[largest] > 0
    ratio = figure / baselines[largest] if usable else math.nan
    distances = ", ".join(f"{key} {value:.3g}" for key, value in baselines.items())
    worst = f"{figure:.3g} against {distances or 'no baselines'}"
    return at_most(question, name, ratio, factor, note, worst)


def _named(arrays: Arrays) -> dict[str, np.ndarray]:
    if isinstance(arrays, Mapping):
        return {str(name): np.asarray(array) for name, array in arrays.items()}
    return {"": np.asarray(arrays)}


def _float64(array: np.ndarray) -> np.ndarray:
    return np.asarray(array).astype(np.float64).ravel()


def _pairs(found: Arrays, expected: Arrays) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yields (name, found, expected) with flat float64 arrays."""
    found, expected = _named(found), _named(expected)
    return ((name, _float64(found[name]), _float64(expected[name])) for name in found)


def mismatch(found: Arrays, expected: Arrays) -> str:
    """Everything that makes a comparison meaningless, as text; empty if nothing does."""
    found, expected = _named(found), _named(expected)
    problems = [] if found or expected else ["no arrays"]
    problems += [f"missing {name!r}" for name in expected if name not in found]
    problems += [f"unexpected {name!r}" for name in found if name not in expected]
    for name in (name for name in found if name in expected):
        a, b = found[name], expected[name]
        if a.shape != b.shape:
            problems.append(f"{name or 'array'}: shape {a.shape} against {b.shape}")
        elif not a.size:
            problems.append(f"{name or 'array'}: no elements, shape {a.shape}")
        for side, array in (("found", a), ("expected", b)):
            if bad := int((~np.isfinite(_float64(array))).sum()):
                problems.append(f"{name or 'array'}: {bad} not finite in what was {side}")
    return "; ".join(problems)


def _element(name: str, found: np.ndarray, expected: np.ndarray) -> str:
    """Element that differs most, as `name[index]: found against expected`."""
    difference = np.abs(_float64(found) - _float64(expected)).reshape(found.shape)
    index = np.unravel_index(difference.argmax(), difference.shape)
    place = f"[{', '.join(map(str, index))}]" if index else ""
    return f"{name}{place}: {float(found[index])!r} against {float(expected[index])!r}".lstrip(": ")


# Scores ---------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Tost:
    """Result of two one-sided tests of paired differences; NaN if there are too few."""

    mean: float
    interval: tuple[float, float]
    """Confidence interval of level 1 - 2 alpha: inside the margins exactly when `p` is below alpha."""
    p: float
    """Larger of the two p-values, one for each margin as the true difference."""


def tost(differences: np.ndarray, margin: float, alpha: float = 0.05) -> Tost:
    """Two one-sided paired t-tests: is the true mean difference at most -`margin`, is it at least `margin`?

    Schuirmann 1987 (doi 10.1007/BF01068419). Assumes two or more differences that are about normal.
    """
    n = len(differences)
    if n < 2 or not np.isfinite(differences).all():
        return Tost(math.nan, (math.nan, math.nan), math.nan)
    mean, error = float(np.mean(differences)), float(np.std(differences, ddof=1)) / math.sqrt(n)
    if error == 0:
        return Tost(mean, (mean, mean), float(not -margin < mean < margin))
    law = stats.t(n - 1)
    reach = float(law.isf(alpha)) * error
    p = max(float(law.sf((mean + margin) / error)), float(law.cdf((mean - margin) / error)))
    return Tost(mean, (mean - reach, mean + reach), p)


def equivalent(
    question: str,
    name: str,
    found: np.ndarray,
    expected: np.ndarray,
    margin: float,
    alpha: float = 0.05,
    note: str = "",
) -> Row:
    """Row of a TOST: the mean difference of paired scores is less than `margin`.

    The figure is the p-value and the gate is `alpha`. If the true difference is `margin` or more, the chance of
    passing is at most `alpha`. Few pairs or widely spread differences fail; a single pair always fails.
    """
    if problem := mismatch(found, expected):
        return at_most(question, name, math.nan, alpha, note, problem)
    differences = _float64(found) - _float64(expected)
    test = tost(differences, margin, alpha)
    worst = f"mean difference {test.mean:.4g}, {1 - 2 * alpha:.0%} interval {test.interval[0]:.4g} to "
    worst += f"{test.interval[1]:.4g}, margin {margin:g}, {len(differences)} pairs"
    return at_most(question, name, test.p, alpha, note, worst)
