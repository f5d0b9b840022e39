"""Measures a difference and decides whether it passes: the only place where that is decided.

Every comparison ends in a `Row`, and every row passes exactly when its figure is finite and at most its gate. What
cannot be compared (nothing given, a name on one side only, unequal shapes, a NaN or an infinity anywhere) has the
figure NaN, and so fails. Arrays come alone or as a dict from name to array; anything `numpy.asarray` takes will do.

For random draws the figure is a surprise, -log10 of the chance of a draw this far out if the law were the one
claimed, and the gate is the same for the allowed rate of false alarms: 12 against 8 means a chance of 1e-12 where
1e-8 is allowed.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
from scipy import optimize, special, stats

Arrays = np.ndarray | Mapping[str, np.ndarray]
Measure = Callable[[Arrays, Arrays], float]

TRUNCATION = 2 / 0.87962566103423978
"""Where JAX's truncated normals end, in units of their standard deviation: cut at 2, then rescaled (2.2737)."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the report: `figure` was found, at most `gate` is allowed."""

    question: str
    name: str
    figure: float
    gate: float
    passed: bool
    note: str = ""
    worst: str = ""
    """Path, index and both values of the worst element, or why there was nothing to compare."""


def at_most(question: str, name: str, figure: float, gate: float, note: str = "", worst: str = "") -> Row:
    """The row for a figure measured elsewhere."""
    figure, gate = float(figure), float(gate)
    passed = math.isfinite(figure) and math.isfinite(gate) and figure <= gate
    return Row(question, name, figure, gate, passed, note, worst)


def worst_of(question: str, name: str, rows: Iterable[Row], note: str = "") -> Row:
    """One row for many: the one that fails, or comes closest to failing, under a common name. No rows at all fail."""
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

    0 where both are 0, infinite where only `expected` is.
    """
    if _mismatch(found, expected):
        return math.nan
    pairs = list(_pairs(found, expected))
    difference = norm({name: a - b for name, a, b in pairs})
    if difference == 0:
        return 0.0
    scale = max(norm({name: b for name, _, b in pairs}), floor)
    return difference / scale if scale else math.inf


def max_abs(found: Arrays, expected: Arrays) -> float:
    """The largest |found - expected| over all elements, in float64."""
    if _mismatch(found, expected):
        return math.nan
    return max(float(np.abs(a - b).max()) for _, a, b in _pairs(found, expected))


def ulps(found: Arrays, expected: Arrays, floor: float = 0.0) -> float:
    """The largest distance in units in the last place, among elements of which either side reaches `floor`.

    Near zero a harmless difference is many ULPs, hence the floor; NaN when no element reaches it.
    """
    if _mismatch(found, expected):
        return math.nan
    found, expected = _named(found), _named(expected)
    reached = [ulp_distances(found[name], expected[name], floor) for name in found]
    return max((float(d.max()) for d in reached if d.size), default=math.nan)


def ulp_distances(found: np.ndarray, expected: np.ndarray, floor: float = 0.0) -> np.ndarray:
    """Per element, how many floats lie between; uint64 [n], only elements of which either side reaches `floor`.

    Raises TypeError unless both are float32 or both float64.
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
    return math.sqrt(sum(float(np.vdot(a, a)) for a in map(_float64, _named(arrays).values())))


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
    """`measure(found, expected)` is at most `gate`: over all arrays together, or in the worst array if `each`."""
    if problem := _mismatch(found, expected):
        return at_most(question, name, math.nan, gate, note, problem)
    found, expected = _named(found), _named(expected)
    errors = {key: measure({key: found[key]}, {key: expected[key]}) for key in found}
    worst = max(errors, key=lambda key: math.inf if math.isnan(errors[key]) else errors[key])
    figure = errors[worst] if each else measure(found, expected)
    return at_most(question, name, figure, gate, note, _element(worst, found[worst], expected[worst]))


def equal_bytes(question: str, name: str, found: Arrays, expected: Arrays, note: str = "") -> Row:
    """No element differs in any bit; the types must be equal too. The figure is the number that differ."""
    problem = _mismatch(found, expected)
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
    """Arrays that are zero in exact arithmetic, such as the gradient of a bias that a BatchNorm follows, are nearly so.

    Both sides return noise there, so there is nothing relative to compare: the figure is the largest l2 norm of one
    of them divided by that of `whole`, all the gradients together.
    """
    if problem := _mismatch(found, found) or _mismatch(whole, whole):
        return at_most(question, name, math.nan, gate, note, problem)
    found, scale = _named(found), norm(whole)
    worst = max(found, key=lambda key: norm(found[key]))
    figure = norm(found[worst]) / scale if scale else math.nan
    return at_most(question, name, figure, gate, note, _element(worst, found[worst], np.zeros_like(found[worst])))


def envelope(
    question: str, name: str, figure: float, baselines: Mapping[str, float], factor: float = 3.0, note: str = ""
) -> Row:
    """`figure` is at most `factor` times the largest of `baselines`, which must be finite and not all 0.

    For float32 training, where rounding grows until no fixed tolerance means anything: the baselines are how far the
    reference strays from itself under changes that ought to change nothing.
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
    """(name, found, expected) with flat float64 arrays."""
    found, expected = _named(found), _named(expected)
    return ((name, _float64(found[name]), _float64(expected[name])) for name in found)


def _mismatch(found: Arrays, expected: Arrays) -> str:
    """Everything that makes a comparison meaningless, or the empty string."""
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
    """The element that differs most, as `name[index]: found against expected`."""
    difference = np.abs(_float64(found) - _float64(expected)).reshape(found.shape)
    index = np.unravel_index(difference.argmax(), difference.shape)
    place = f"[{', '.join(map(str, index))}]" if index else ""
    return f"{name}{place}: {float(found[index])!r} against {float(expected[index])!r}".lstrip(": ")


# Random draws ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Normal:
    """N(0, sigma^2), not truncated."""

    sigma: float

    def cdf(self, x: np.ndarray) -> np.ndarray:
        """Chance of a draw of at most `x`."""
        return special.ndtr(x / self.sigma)

    def chance_of_spread(self, ratio: float, n: int) -> float:
        """Chance of a mean square this far from sigma^2, as `ratio` to it, either way: exact, chi-squared."""
        law = stats.chi2(n)
        return min(1.0, 2 * min(law.cdf(n * ratio), law.sf(n * ratio)))


@dataclasses.dataclass(frozen=True)
class Uniform:
    """U(-bound, bound)."""

    bound: float

    @property
    def sigma(self) -> float:
        """Standard deviation."""
        return self.bound / math.sqrt(3)

    def cdf(self, x: np.ndarray) -> np.ndarray:
        """Chance of a draw of at most `x`."""
        return np.clip((x / self.bound + 1) / 2, 0, 1)

    def chance_of_spread(self, ratio: float, n: int) -> float:
        """An upper bound on the chance of a mean square this far from sigma^2 (Chernoff's), good for every n."""
        mean = ratio / 3  # of u^2, for u uniform in (-1, 1)
        if not 0 < mean < 1:
            return 0.0
        exponent = optimize.minimize_scalar(lambda t: _log_moment(t) - t * mean, bracket=(-1.0, 1.0)).fun
        return min(1.0, 2 * math.exp(n * min(exponent, 0.0)))


Law = Normal | Uniform


def _log_moment(t: float) -> float:
    """log E exp(t u^2) for u uniform in (-1, 1)."""
    root = math.sqrt(abs(t))
    if root < 1e-4:
        return t / 3
    if t > 0:
        return t + math.log(special.dawsn(root) / root)
    return math.log(math.sqrt(math.pi) * special.erf(root) / (2 * root))


def chance(question: str, name: str, p: float, alpha: float, note: str = "", worst: str = "") -> Row:
    """A row from a p-value: the surprise -log10 p is at most -log10 alpha."""
    surprise = -math.log10(p) + 0.0 if p > 0 else math.inf if p == 0 else math.nan
    return at_most(question, name, surprise, -math.log10(alpha), note, worst)


def spread(question: str, name: str, draws: np.ndarray, law: Law, alpha: float, note: str = "") -> Row:
    """The standard deviation about 0 is the law's. Sees a wrong gain or fan; is blind to the shape."""
    draws = _float64(draws)
    ratio = float(np.square(draws / law.sigma).mean()) if draws.size else math.nan
    worst = f"standard deviation {math.sqrt(ratio) if ratio >= 0 else ratio:.4f} of {law.sigma:.5f}, {draws.size} draws"
    p = law.chance_of_spread(ratio, draws.size) if math.isfinite(ratio) else math.nan
    return chance(question, name, p, alpha, note, worst)


def truncation_false_alarm(n: int) -> float:
    """Chance that none of `n` draws from a plain normal lies beyond `TRUNCATION` standard deviations: 0.977 ** n."""
    return float((2 * special.ndtr(TRUNCATION) - 1) ** n)


def truncation(question: str, name: str, draws: np.ndarray, sigma: float, alpha: float, note: str = "") -> Row:
    """Some draw lies beyond the place where JAX's truncated normals end; the figure is that place over the largest.

    Where a Kolmogorov-Smirnov test of 2304 draws sees truncation one time in eight, this always does. It fails too
    when there are so few draws (under 800 for 1e-8) that a plain normal would look truncated more often than `alpha`.
    """
    draws = _float64(draws)
    largest = float(np.abs(draws).max(initial=0.0)) / sigma
    false_alarm = truncation_false_alarm(draws.size)
    worst = f"largest {largest:.3f} standard deviations in {draws.size} draws; false alarm {false_alarm:.1e}"
    if false_alarm > alpha:
        return at_most(question, name, math.nan, 1, note, f"too few draws to tell: {worst}")
    end = TRUNCATION * (1 + 1e-6)  # float32 may round the last of a truncated normal past its end
    return at_most(question, name, end / largest if largest else math.nan, 1, note, worst)


def support(question: str, name: str, draws: np.ndarray, bound: float, alpha: float, note: str = "") -> Row:
    """The largest |draw| is at most `bound`, and as near to it as that of uniform draws: P(largest <= m) = (m/bound)^n.

    The bound may be passed by the rounding of a float32, which is all that a draw at the very end can do.
    """
    draws = _float64(draws)
    reach = float(np.abs(draws).max(initial=0.0)) / bound
    p = min(reach, 1.0) ** draws.size if draws.size and reach <= 1 + 2**-22 else math.nan
    return chance(question, name, p, alpha, note, f"largest {reach:.6f} of {bound:.5f} in {draws.size} draws")


def kolmogorov_smirnov(
    question: str, name: str, draws: np.ndarray, other: Law | np.ndarray, alpha: float, note: str = ""
) -> Row:
    """The draws follow the law `other`, or the same law as the draws `other`. Sees shape; weak for truncation."""
    samples = [_float64(draws)] if isinstance(other, Law) else [_float64(draws), _float64(other)]
    if problem := "; ".join(_mismatch(sample, sample) for sample in samples).strip("; "):
        return chance(question, name, math.nan, alpha, note, problem)
    draws = samples[0]
    test = stats.ks_1samp(draws, other.cdf) if isinstance(other, Law) else stats.ks_2samp(*samples, method="asymp")
    return chance(question, name, float(test.pvalue), alpha, note, f"D {test.statistic:.5f}, {draws.size} draws")


def fan_rule(
    question: str,
    name: str,
    found: Mapping[str, float],
    readings: Mapping[str, Mapping[str, float]],
    note: str = "",
) -> Row:
    """Each kernel's standard deviation is nearer, by ratio, to the claimed reading of its fans than to any other.

    `readings[kernel]` is the standard deviation under each reading, the claimed one first. One within 5 % of the
    claimed says nothing (as many channels in as out); when no kernel has another, the row fails. The figure is the
    number of kernels that are nearer to another, 0 allowed.
    """
    if problem := _mismatch(found, {key: next(iter(r.values()), math.nan) for key, r in readings.items()}):
        return at_most(question, name, math.nan, 0, note, problem)
    wrong, telling = [], 0
    for kernel, (claimed, *others) in ((k, r.items()) for k, r in readings.items()):
        others = [other for other in others if _apart(other[1], claimed[1]) > math.log(1.05)]
        telling += bool(others)
        nearest = min([claimed, *others], key=lambda reading: _apart(found[kernel], reading[1]))
        if nearest is not claimed or found[kernel] <= 0:
            (by, sigma), (claim, expected) = nearest, claimed
            wrong.append(f"{kernel}: {found[kernel]:.4f} is {by} ({sigma:.4f}), not {claim} ({expected:.4f})")
    worst = "; ".join(wrong) or f"{telling} of {len(readings)} kernels can tell"
    return at_most(question, name, len(wrong) if telling else math.nan, 0, note, worst)


def _apart(a: float, b: float) -> float:
    return abs(math.log(a / b)) if a > 0 and b > 0 else math.inf
