"""How sure are we? Summaries, intervals and comparisons of measured samples.

Every sample is kept: nothing here drops an outlier. Percentile intervals come from order statistics, so they hold for
any distribution; means and ratios get a t-interval. The answer of a comparison may be "cannot tell".
"""

import dataclasses
import functools
import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from labkit.errors import LabkitError

__all__ = [
    "Comparison",
    "Interval",
    "Summary",
    "compare",
    "estimate_mean_interval",
    "estimate_percentile_interval",
    "estimate_t_quantile",
    "summarize",
]

ROUNDING = 1e-9  # a ratio this close to 1 is floating-point rounding, not a difference in speed


@dataclasses.dataclass(frozen=True, slots=True)
class Interval:
    """A confidence interval.

    Attributes:
        low: in the unit of the samples
        high: in the unit of the samples
        confidence: 0.95 for 95 %
    """

    low: float
    high: float
    confidence: float


@dataclasses.dataclass(frozen=True, slots=True)
class Summary:
    """What n samples say, in the unit of the samples; intervals are 95 %.

    A high percentile of few samples would be little more than their maximum, so it is None.

    Attributes:
        n: number of samples
        mean: arithmetic mean
        std: standard deviation with divisor n - 1; None if n < 2
        minimum: the smallest sample
        maximum: the largest sample
        p50: the median
        p90: None if n < 29
        p95: None if n < 59
        p99: None if n < 299
        mean_interval: t-interval; None if n < 2
        p50_interval: None if n < 6
        p90_interval: None if n < 29
        p95_interval: None if n < 59
        p99_interval: None if n < 299
    """

    n: int
    mean: float
    std: float | None
    minimum: float
    maximum: float
    p50: float
    p90: float | None
    p95: float | None
    p99: float | None
    mean_interval: Interval | None
    p50_interval: Interval | None
    p90_interval: Interval | None
    p95_interval: Interval | None
    p99_interval: Interval | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, None and dicts, ready for JSON."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, slots=True)
class Comparison:
    """Is A faster than B?

    Attributes:
        ratio: speed of A over speed of B; above 1, A is faster
        interval: of the ratio
        verdict: on A: "faster", "slower" or "cannot tell"
        n: number of pairs; for unpaired samples the smaller of the two counts
    """

    ratio: float
    interval: Interval
    verdict: str
    n: int


def summarize(samples: Sequence[float]) -> Summary:
    """Return the `Summary` of at least one sample; percentiles equal `numpy.percentile`, intervals are 95 %."""
    values = _read_samples(samples)
    n = len(values)
    intervals = {q: estimate_percentile_interval(values, q) for q in (50, 90, 95, 99)}
    points = {q: float(np.percentile(values, q)) for q in intervals}
    return Summary(
        n=n,
        mean=float(values.mean()),
        std=float(values.std(ddof=1)) if n > 1 else None,
        minimum=float(values.min()),
        maximum=float(values.max()),
        p50=points[50],
        p90=points[90] if intervals[90] else None,
        p95=points[95] if intervals[95] else None,
        p99=points[99] if intervals[99] else None,
        mean_interval=estimate_mean_interval(values) if n > 1 else None,
        p50_interval=intervals[50],
        p90_interval=intervals[90],
        p95_interval=intervals[95],
        p99_interval=intervals[99],
    )


def estimate_percentile_interval(samples: Sequence[float], q: float, *, confidence: float = 0.95) -> Interval | None:
    """Return an interval for the q-th percentile (q in percent: 50 is the median), or None where n is too small.

    Its ends are two of the sorted samples, so it holds for any distribution, if the samples are independent. A
    two-sided 95 % interval exists from n = 6 for q = 50, 29 for 90, 59 for 95, 299 for 99.
    """
    if not 1 <= q <= 99.999:
        raise LabkitError(f"q is a percentile between 1 and 99.999, got {q}.", next_step="write 50 for the median.")
    _check_confidence(confidence)
    values = np.sort(_read_samples(samples))
    ranks = _choose_ranks(len(values), q / 100, confidence)
    if ranks is None:
        return None
    low, high = ranks
    return Interval(float(values[low - 1]), float(values[high - 1]), confidence)


def estimate_mean_interval(samples: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """Return the t-interval of the mean, mean ± t(n - 1) · std / √n, of at least two independent samples.

    It assumes that the mean is nearly normal: fine for repeated runs, poor for few samples with a long tail.
    """
    values = _read_samples(samples, at_least=2)
    _check_confidence(confidence)
    half = estimate_t_quantile((1 + confidence) / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return Interval(float(values.mean() - half), float(values.mean() + half), confidence)


def compare(
    a: Sequence[float],
    b: Sequence[float],
    *,
    is_paired: bool = True,
    confidence: float = 0.95,
    better: str = "lower",
) -> Comparison:
    """Say whether A is "faster" or "slower" than B, or "cannot tell".

    `ratio` is always the speed of A over the speed of B, so 2 means that A is twice as fast: with better="lower"
    (times) it is the geometric mean of b / a, with better="higher" (tok/s) that of a / b. The verdict is "cannot tell"
    when the interval contains 1. Samples are positive, in one unit. Paired: measure A and B in turns (a[i] next to
    b[i]) against drift; unpaired: Welch's t-interval. Both on the log scale.

    Gains without any spread give an interval of zero width, and so a verdict. A clock whose step is as coarse as the
    noise produces such pairs by chance: at n = 2 up to one A/A trial in nine is then called a difference, at n = 5 no
    more than the promised one in twenty. With so few pairs, trust a verdict only if the gain is many clock steps.
    """
    if better not in ("lower", "higher"):
        raise LabkitError(f'better is "lower" (times) or "higher" (rates), got {better!r}.')
    _check_confidence(confidence)
    log_a, log_b = (np.log(_read_samples(x, at_least=2, positive=True)) for x in (a, b))
    if is_paired and len(log_a) != len(log_b):
        raise LabkitError(
            f"A has {len(log_a)} samples and B has {len(log_b)}, but pairs were asked for.",
            next_step="measure A and B in turns, or use is_paired=False.",
        )
    speed_a, speed_b = (-log_a, -log_b) if better == "lower" else (log_a, log_b)
    if is_paired:
        gain = speed_a - speed_b
        error, df = gain.std(ddof=1) / math.sqrt(len(gain)), len(gain) - 1
    else:
        error, df = _welch_error(speed_a, speed_b)
    centre = speed_a.mean() - speed_b.mean()
    half = estimate_t_quantile((1 + confidence) / 2, df) * error
    # A huge spread overflows to an infinite end, which is what such samples say.
    with np.errstate(over="ignore"):
        low, ratio, high = (float(np.exp(x)) for x in (centre - half, centre, centre + half))
    verdict = "faster" if low > 1 + ROUNDING else "slower" if high < 1 - ROUNDING else "cannot tell"
    return Comparison(ratio, Interval(low, high, confidence), verdict, min(len(log_a), len(log_b)))


def _welch_error(x: np.ndarray, y: np.ndarray) -> tuple[float, int]:
    """Return the standard error of mean(x) - mean(y) and Welch's degrees of freedom, rounded down."""
    parts = [v.var(ddof=1) / len(v) for v in (x, y)]
    total = sum(parts)
    if total == 0:
        return 0.0, 1
    df = total**2 / sum(part**2 / (len(v) - 1) for part, v in zip(parts, (x, y), strict=True))
    return math.sqrt(total), max(1, math.floor(df + ROUNDING))


@functools.lru_cache
def _choose_ranks(n: int, p: float, confidence: float) -> tuple[int, int] | None:
    """Return the ranks (from 1) of the two sorted samples that enclose the p-quantile, or None.

    The quantile lies between the samples of ranks l and u with probability F(u - 1) - F(l - 1), F being the binomial
    distribution of how many of n samples fall below it. Of all pairs that reach `confidence`, take the closest ranks,
    then the likeliest pair. The choice never depends on the samples, which would spoil the coverage.
    """
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    k = np.arange(n + 1)
    log_choose = log_factorial[n] - log_factorial - log_factorial[::-1]
    cdf = np.cumsum(np.exp(log_choose + k * math.log(p) + (n - k) * math.log1p(-p)))
    lows = np.arange(1, n + 1)
    highs = np.searchsorted(cdf, confidence + cdf[:-1]) + 1  # the first u with F(u - 1) >= confidence + F(l - 1)
    lows, highs = lows[highs <= n], highs[highs <= n]
    if len(lows) == 0:
        return None
    coverage = np.round(cdf[highs - 1] - cdf[lows - 1], 9)  # rounded: mirror pairs are a tie, the lower one wins
    best = np.lexsort((-coverage, highs - lows))[0]
    return int(lows[best]), int(highs[best])


@functools.lru_cache
def estimate_t_quantile(probability: float, df: int) -> float:
    """Return Student's t quantile for a probability of at least one half and `df` whole degrees of freedom.

    Up to df = 200: bisection on the finite series of Abramowitz and Stegun 26.7.3-4. Above: their expansion around the
    normal quantile, 26.7.5, whose error is then under 1e-7.
    """
    if df > 200:
        z = statistics.NormalDist().inv_cdf(probability)
        terms = ((z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
        return z + sum(term / df**power for power, term in enumerate(terms, start=1))
    low, high = 0.0, 1.0
    while _t_cdf(high, df) < probability:
        high *= 2
    while high - low > 1e-13 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _t_cdf(middle, df) < probability else (low, middle)
    return high


def _t_cdf(t: float, df: int) -> float:
    """Return P(T <= t) for t >= 0: one half plus half of the series A(t | df)."""
    angle = math.atan(t / math.sqrt(df))
    term = total = math.cos(angle) if df % 2 else 1.0
    for i in range(3 if df % 2 else 2, df - 1, 2):
        term *= (i - 1) / i * math.cos(angle) ** 2
        total += term
    if df % 2:
        return 0.5 + (angle + (math.sin(angle) * total if df > 1 else 0.0)) / math.pi
    return 0.5 + math.sin(angle) * total / 2


def _read_samples(samples: Sequence[float], *, at_least: int = 1, positive: bool = False) -> np.ndarray:
    """Return the samples as a flat float array, or say what is wrong with them."""
    try:
        _check_kinds(samples)
        values = np.asarray(samples, dtype=float)
    except (TypeError, ValueError):
        raise LabkitError("samples must be numbers in a flat list.", next_step="look at what was collected.") from None
    if values.ndim != 1:
        raise LabkitError(
            f"samples must be a flat list, got shape {values.shape}.", next_step="pass one level of list."
        )
    if len(values) < at_least:
        raise LabkitError(f"at least n = {at_least} is needed, got n = {len(values)}.", next_step="measure more often.")
    wrong = ~np.isfinite(values) | ((values <= 0) if positive else False)
    if wrong.any():
        i = int(np.argmax(wrong))
        kind = "finite and above 0" if positive else "finite"
        raise LabkitError(
            f"every sample must be {kind}, but sample {i} is {values[i]}.", next_step="find out why; do not drop it."
        )
    return values


def _check_kinds(samples: Sequence[float]) -> None:
    """Raise TypeError for text, booleans and complex numbers, which numpy would silently convert."""
    kinds = set(map(type, samples)) if isinstance(samples, list | tuple) else set()
    if (
        any(issubclass(kind, str | bytes | bool | np.bool_) for kind in kinds)
        or np.asarray(samples).dtype.kind in "bcSU"
    ):
        raise TypeError


def _check_confidence(confidence: float) -> None:
    if not 0.5 <= confidence < 1:
        raise LabkitError(f"confidence is between 0.5 and 1, got {confidence}.", next_step="write 0.95 for 95 %.")
