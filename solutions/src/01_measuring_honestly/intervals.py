"""Is the interval of a percentile right? Its coverage is recomputed; any of the closest pairs of ranks is right.

A wrong answer gets the sentence for the mistake that explains it.
"""

import math
import statistics
from typing import NoReturn

import numpy as np

from labkit.checks.cases import fail
from labkit.checks.learner import shorten
from labkit.stats import estimate_mean_interval
from labkit.units import is_number

__all__ = ["estimate_coverage", "expect_interval", "find_closest"]


def estimate_coverage(n: int, p: float) -> np.ndarray:
    """Return F with F[k] = P(at most k of n samples lie below the p-quantile), by adding one sample at a time."""
    probabilities = np.ones(1)
    for _ in range(n):
        probabilities = np.convolve(probabilities, [1 - p, p])
    return np.cumsum(probabilities)


def find_closest(cdf: np.ndarray, confidence: float) -> tuple[int, int] | None:
    """Return ranks (low, high) that contain the quantile with `confidence` and are as close as possible, or None."""
    n = len(cdf) - 1
    for width in range(1, n):
        held = cdf[width:n] - cdf[: n - width]  # of the ranks (1, 1 + width), (2, 2 + width), ...
        if held.max() >= confidence + 1e-12:
            low = int(held.argmax()) + 1
            return low, low + width
    return None


def expect_interval(got, samples, q, confidence, *, where, is_always_none=False) -> None:
    """Fail unless the answer is right for these samples; `is_always_none`: it was None for 100 samples too."""
    n, ordered, cdf = len(samples), sorted(samples), estimate_coverage(len(samples), q / 100)

    def cover(low, high):
        return cdf[high - 1] - cdf[low - 1] if 1 <= low < high <= n else 0.0

    has_interval = cover(1, n) >= confidence - 1e-12
    if not has_interval and got is None:
        return
    if not has_interval:
        most = f"even the smallest and the largest contain it with only {100 * cover(1, n):.1f} %"
        most = most if n > 1 else "one sample does not make an interval"
        fail(f"{where}: n is too small, {most}. Return None, not {shorten(repr(got), 40)}.")
    if got is None:
        why = "Add up the probabilities of both sides; do not require half from each side."
        if is_always_none:
            why = "It is None for 100 samples too: is a `return` missing, or can the condition never be true?"
        fail(f"{where}: got None, but ranks 1 and {n} contain it with {100 * cover(1, n):.2f} %: enough. {why}")
    if hasattr(got, "tolist"):
        fail(f"{where}: that is a {type(got).__name__}, which `if found` cannot test: return a tuple of three.")
    if not isinstance(got, tuple | list) or len(got) != 3 or not all(map(is_number, got)):
        fail(f"{where}: expected three numbers (point, low, high), got {shorten(repr(got), 60)}.")
    point, low, high = got
    _judge_point(point, samples, q, where)
    if low not in ordered or high not in ordered:
        _explain_ends(low, high, samples, where)
    unsorted = [list(samples).index(end) + 1 for end in (low, high)]
    low, high = ordered.index(low) + 1, ordered.index(high) + 1
    closest, of_95 = find_closest(cdf, confidence), find_closest(cdf, 0.95)
    width = closest[1] - closest[0]
    if unsorted[1] - unsorted[0] == width and cover(*unsorted) >= confidence > cover(low, high):
        fail(f"{where}: those are samples {unsorted[0]} and {unsorted[1]} in order of time: sort a copy first.")
    if low >= high:
        fail(f"{where}: low has rank {low} and high has rank {high}: the lower end must be the smaller sample.")
    if (held := cover(low, high)) < confidence - 1e-12:
        _explain_ranks(low, high, held, cdf, confidence, where)
    if of_95 and high - low == of_95[1] - of_95[0] > width and confidence < 0.95:
        fail(f"{where}: ranks {low} and {high} are the ranks for 95 %: use the argument `confidence`.")
    for narrower in ((low + 1, high), (low, high - 1)):
        if cover(*narrower) >= confidence + 1e-12:
            fail(
                f"{where}: ranks {low} and {high} contain it with {100 * held:.1f} %, more than required: {narrower[0]} "
                f"and {narrower[1]} still reach {100 * cover(*narrower):.1f} %. Take the closest ranks that reach it."
            )
    if high - low > width:
        fail(
            f"{where}: ranks {low} and {high} cannot be narrowed, but other ranks are closer together: {closest[0]} and "
            f"{closest[1]} reach {100 * cover(*closest):.1f} %. Look at all pairs, then take the closest."
        )


def _judge_point(point, samples, q, where) -> None:
    right = float(np.percentile(samples, q))
    if math.isclose(point, right, rel_tol=1e-9):
        return
    if math.isclose(point, statistics.fmean(samples), rel_tol=1e-9):
        fail(f"{where}: {point:.6g} is the mean: a percentile is found by counting, so an outlier cannot move it far.")
    if math.isclose(point, statistics.median(samples), rel_tol=1e-9):
        fail(f"{where}: {point:.6g} is the median: use the argument q.")
    if point in samples:
        fail(f"{where}: {point:.6g} is one of the samples: interpolate between two samples, as numpy.percentile does.")
    if q < 100 and math.isclose(point, float(np.percentile(samples, q / 100)), rel_tol=1e-9):
        fail(f"{where}: numpy.percentile takes q in percent, so 50 is the median and 0.5 is half a percent.")
    fail(f"{where}: the point is {right:.6g} (numpy.percentile of the samples), got {point:.6g}.")


def _explain_ends(low, high, samples, where) -> NoReturn:
    mean = estimate_mean_interval(samples)
    if math.isclose(low, mean.low, rel_tol=1e-9):
        fail(f"{where}: that is the t-interval of the mean. Here the ends must be two of your samples.")
    if any(math.isclose(low, float(np.percentile(samples, x)), rel_tol=1e-9) for x in (2.5, 5, 10, 25)):
        fail(f"{where}: those are percentiles of the samples: how far single requests spread, not your uncertainty.")
    if 1 <= low <= len(samples) and low == int(low):
        fail(f"{where}: {low} and {high} are ranks: return the samples with these ranks.")
    fail(f"{where}: the ends must be two of the sorted samples, and {low:.6g} or {high:.6g} is not a sample.")


def _explain_ranks(low, high, held, cdf, confidence, where) -> NoReturn:
    short = f"{where}: ranks {low} and {high} contain it with only {100 * held:.1f} %"
    below = np.concatenate([[0.0, 0.0], cdf])  # below[k + 2] = cdf[k], so that a rank of 0 has a place
    one_off = ((low, high + 1), (low - 1, high), (low - 1, high - 1), (low + 1, high + 1))
    if any(below[b + 1] - below[a + 1] >= confidence for a, b in one_off):
        fail(f"{short}: they are off by one. The sum runs from k = low to k = high - 1, and rank 1 is values[0].")
    fail(f"{short}; {100 * confidence:.0f} % is required. Is the probability that a sample lies below it q / 100?")
