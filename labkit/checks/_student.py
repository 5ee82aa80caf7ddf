"""The interval of a mean by a printed table of Student's t: the checks' own route, beside that of labkit.stats."""

import math
import statistics
from collections.abc import Callable, Sequence

from labkit.stats import estimate_mean_interval

__all__ = ["T_95", "estimate_ends"]

# For 95 %, two-sided: degrees of freedom -> t.
T_95 = {
    1: 12.7062047361747, 2: 4.30265272974946, 3: 3.18244630528371, 4: 2.77644510519779, 5: 2.57058183563631,
    6: 2.44691185114498, 7: 2.36462425159278, 8: 2.30600413520417, 9: 2.2621571627982, 10: 2.22813885198627,
}  # fmt: skip


def estimate_ends(
    values: Sequence[float],
    *,
    t: float | None = None,
    spread: Callable[[Sequence[float]], float] = statistics.stdev,
    scale: float | None = None,
) -> tuple[float, float, float]:
    """Return (mean, low, high) of two or more values; a wrong interval when a part is given.

    `scale` is what stands under the root instead of n. Beyond the table the interval is that of labkit.stats.
    """
    mean, n = statistics.fmean(values), len(values)
    t = t or T_95.get(n - 1)
    half = t * spread(values) / math.sqrt(scale or n) if t else estimate_mean_interval(values).high - mean
    return mean, mean - half, mean + half
