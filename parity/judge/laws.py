"""Tests of random draws against the law they should follow; `parity/judge/compare.py` compares arrays.

The figure of a row is a surprise: -log10 of the p-value under the claimed law. The gate is -log10 of the allowed rate
of false alarms. A figure of 12 against a gate of 8 means a chance of 1e-12 where 1e-8 is allowed. No draws, a NaN or
an infinity give the figure NaN, which fails.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping

import numpy as np
from scipy import optimize, special, stats

from parity.judge.compare import Row, at_most, mismatch

TRUNCATION = 2 / 0.87962566103423978
"""End of JAX's truncated normals in units of their standard deviation: cut at 2, then rescaled (2.2737)."""


@dataclasses.dataclass(frozen=True)
class Normal:
    """N(0, sigma^2), not truncated."""

    sigma: float

    def cdf(self, x: np.ndarray) -> np.ndarray:
        """Chance of a draw of at most `x`."""
        return special.ndtr(x / self.sigma)

    def chance_of_spread(self, ratio: float, n: int) -> float:
        """Exact two-sided chance (chi-squared) that the mean square of `n` draws is this far from sigma^2.

        ratio: the mean square over sigma^2.
        """
        return min(1.0, 2 * float(min(special.chdtr(n, n * ratio), special.chdtrc(n, n * ratio))))


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
        """Upper bound (Chernoff's), valid for every n, on the chance of a mean square this far from sigma^2.

        ratio: the mean square over sigma^2.
        """
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
    """Row for a p-value: the surprise -log10 p is at most -log10 alpha."""
    surprise = -math.log10(p) + 0.0 if p > 0 else math.inf if p == 0 else math.nan
    return at_most(question, name, surprise, -math.log10(alpha), note, worst)


def spread(question: str, name: str, draws: np.ndarray, law: Law, alpha: float, note: str = "") -> Row:
    """Row for the standard deviation about 0. Sees a wrong gain or fan, but not a wrong shape."""
    draws = _flat(draws)
    ratio = float(np.square(draws / law.sigma).mean()) if draws.size else math.nan
    worst = f"standard deviation {math.sqrt(ratio) if ratio >= 0 else ratio:.4f} of {law.sigma:.5f}, {draws.size} draws"
    p = law.chance_of_spread(ratio, draws.size) if math.isfinite(ratio) else math.nan
    return chance(question, name, p, alpha, note, worst)


def truncation_false_alarm(n: int) -> float:
    """Chance that none of `n` draws from a plain normal lies beyond `TRUNCATION` standard deviations: 0.977 ** n."""
    return _chance_within(TRUNCATION * (1 + 1e-6), n)  # float32 may round a truncated normal's last draw past its end


def truncation(question: str, name: str, draws: np.ndarray, sigma: float, alpha: float, note: str = "") -> Row:
    """Row for the largest |draw|: as large as a plain normal makes it, by P(largest <= m) = P(|x| <= m)^n.

    Always sees a normal truncated at `TRUNCATION`; a Kolmogorov-Smirnov test of 2304 draws sees it one time in eight.
    Fails if there are too few draws to see it (under 800 for 1e-8).
    """
    draws = _flat(draws)
    largest = float(np.abs(draws).max(initial=0.0)) / sigma
    worst = f"largest {largest:.3f} standard deviations in {draws.size} draws"
    if truncation_false_alarm(draws.size) > alpha:
        return chance(question, name, math.nan, alpha, note, f"too few draws to tell: {worst}")
    return chance(question, name, _chance_within(largest, draws.size), alpha, note, worst)


def _chance_within(reach: float, n: int) -> float:
    """Chance that `n` draws from a plain normal all lie within `reach` standard deviations."""
    return float(np.exp(n * np.log1p(-2 * special.ndtr(-reach)))) if reach > 0 else reach


def support(question: str, name: str, draws: np.ndarray, bound: float, alpha: float, note: str = "") -> Row:
    """Row for the largest |draw|: at most `bound`, and as near to it as uniform draws come.

    P(largest <= m) = (m / bound)^n. A draw may pass the bound by the rounding of a float32.
    """
    draws = _flat(draws)
    reach = float(np.abs(draws).max(initial=0.0)) / bound
    p = min(reach, 1.0) ** draws.size if draws.size and reach <= 1 + 2**-22 else math.nan
    return chance(question, name, p, alpha, note, f"largest {reach:.6f} of {bound:.5f} in {draws.size} draws")


def kolmogorov_smirnov(
    question: str, name: str, draws: np.ndarray, other: Law | np.ndarray, alpha: float, note: str = ""
) -> Row:
    """Row for the shape: `draws` follow the law `other`, or the law of the draws `other`. Weak for truncation."""
    samples = [_flat(draws)] if isinstance(other, Law) else [_flat(draws), _flat(other)]
    if problem := "; ".join(mismatch(sample, sample) for sample in samples).strip("; "):
        return chance(question, name, math.nan, alpha, note, problem)
    draws = samples[0]
    test = stats.ks_1samp(draws, other.cdf) if isinstance(other, Law) else stats.ks_2samp(*samples, method="asymp")
    return chance(question, name, float(test.pvalue), alpha, note, f"D {test.statistic:.5f}, {draws.size} draws")


def independent(question: str, name: str, draws: Mapping[str, np.ndarray], alpha: float, note: str = "") -> Row:
    """Row that passes if no tensor repeats the random numbers of another, and no build those of the next.

    draws: arrays [builds, ...] by name, in the order drawn, with laws symmetric about 0.

    Draws of such laws have independent signs. The number of places where two tensors agree in sign is binomial with
    1/2, whatever their scales, so the test is exact. A key used twice shows from 50 numbers on, if both laws are
    normal or both uniform; a normal and a uniform take their signs from different bits.
    """
    if problem := mismatch(draws, draws):
        return chance(question, name, math.nan, alpha, note, problem)
    signs = {key: np.signbit(array).reshape(len(array), -1) for key, array in draws.items()}
    agreements = {}
    for (a, x), (b, y) in itertools.combinations(signs.items(), 2):
        builds, size = min(len(x), len(y)), min(x.shape[1], y.shape[1])
        agreements[f"{a} and {b}"] = x[:builds, :size] == y[:builds, :size]
    agreements |= {f"{key}, in two builds": x[1:] == x[:-1] for key, x in signs.items() if len(x) > 1}
    if not agreements:
        return chance(question, name, math.nan, alpha, note, "one tensor of one build: nothing to compare it with")
    equal, n = (np.array([count(a) for a in agreements.values()]) for count in (np.count_nonzero, np.size))
    chances = np.minimum(1, 2 * special.bdtr(np.minimum(equal, n - equal), n, 0.5))
    least = int(chances.argmin())
    worst = f"{list(agreements)[least]}: {equal[least]} of {n[least]} signs agree; the least likely of {len(n)} pairs"
    return chance(question, name, min(1.0, len(n) * float(chances[least])), alpha, note, worst)


def fan_rule(
    question: str,
    name: str,
    found: Mapping[str, float],
    readings: Mapping[str, Mapping[str, float]],
    note: str = "",
) -> Row:
    """Row for the reading of the fans: the number of kernels nearer to another reading than to the claimed one.

    readings: for each kernel the standard deviation under each reading, the claimed one first.

    Distances are ratios. A reading within 5 % of the claimed one cannot be told apart (as many channels in as out).
    The row fails if no kernel has a reading that can.
    """
    if problem := mismatch(found, {key: next(iter(r.values()), math.nan) for key, r in readings.items()}):
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


def _flat(draws: np.ndarray) -> np.ndarray:
    return np.asarray(draws, np.float64).ravel()
