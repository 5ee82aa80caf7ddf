"""When does a request come? Arrival processes, drawn beforehand from one seeded stream.

    constant              one every 1 / rate seconds
    poisson               independent exponential gaps, never rescaled: users who do not know of each other
    conditioned-poisson   the same gaps, rescaled so that the last of N comes at N / rate (what several public tools
                          call "Poisson"): the rate of a run is exact, its spread too small
    gamma                 gamma gaps of a given coefficient of variation cv (shape 1 / cv^2): above 1 is burstier
    ramp                  Poisson whose rate goes linearly from `rate_per_s` to `end_rate_per_s` over the duration
    at-once               all at 0

The times are seconds after the start of the run, in order. The first request comes after the first gap.
"""

import math

import numpy as np

from labkit.errors import LabkitError
from labkit.workload import draw_poisson_arrivals

__all__ = ["ARRIVALS", "draw_arrivals"]

ARRIVALS = ("constant", "poisson", "conditioned-poisson", "gamma", "ramp", "at-once")


def draw_arrivals(
    kind: str,
    *,
    rate_per_s: float = 0.0,
    num_requests: int | None = None,
    duration_s: float | None = None,
    cv: float = 1.0,
    end_rate_per_s: float | None = None,
    seed: int | np.random.Generator = 0,
) -> np.ndarray:
    """Return the arrival instants of a process: `num_requests` of them, or all up to `duration_s`.

    Give one of the two; with both, the shorter decides ("ramp" needs the duration, "at-once" the number).
    """
    if kind not in ARRIVALS:
        raise LabkitError(f"{kind!r} is no arrival process.", next_step=f"use {', '.join(ARRIVALS)}.")
    if num_requests is None and duration_s is None:
        raise LabkitError("Neither a number of requests nor a duration is given.", next_step="give one of them.")
    if kind == "at-once":
        if num_requests is None:
            raise LabkitError("at-once needs the number of requests.", next_step="give num_requests.")
        return np.zeros(num_requests)
    if not rate_per_s > 0:
        raise LabkitError(f"rate_per_s is {rate_per_s}; expected more than 0.", next_step="Give requests per second.")
    if not cv > 0:
        raise LabkitError(f"cv is {cv}; expected more than 0.", next_step="1 gives a Poisson process.")
    generator = seed if isinstance(seed, np.random.Generator) else np.random.default_rng(seed)
    if kind == "ramp":
        times = _draw_ramp(rate_per_s, end_rate_per_s, duration_s, generator)
        return times if num_requests is None else times[:num_requests]
    num = num_requests
    if num is None and kind in ("constant", "conditioned-poisson"):
        num = math.floor(rate_per_s * duration_s + 1e-9)
    if num is None:
        # More than will be needed, almost surely; the loop is for the rest. The stream is the same in any portion.
        mean = rate_per_s * duration_s
        portion = int(mean + 6 * max(cv, 1) * math.sqrt(mean) + 16)
        times = _draw_times(kind, portion, rate_per_s, cv, generator)
        while times[-1] <= duration_s:
            times = np.concatenate([times, times[-1] + _draw_times(kind, portion, rate_per_s, cv, generator)])
    else:
        times = _draw_times(kind, num, rate_per_s, cv, generator)
    return times if duration_s is None else times[times <= duration_s * (1 + 1e-12)]


def _draw_times(kind: str, num: int, rate_per_s: float, cv: float, generator) -> np.ndarray:
    if kind == "constant":
        return np.arange(1, num + 1) / rate_per_s
    if kind == "gamma":
        return np.cumsum(generator.gamma(1 / cv**2, cv**2 / rate_per_s, size=num))
    times = draw_poisson_arrivals(num, rate_per_s=rate_per_s, seed=generator)
    return times if kind == "poisson" or not num else times * (num / rate_per_s / times[-1])


def _draw_ramp(first: float, last: float | None, duration_s: float | None, generator) -> np.ndarray:
    """A Poisson process of changing rate, by stretching the time of one of rate 1 (inverse of the expected count)."""
    if last is None or not last > 0 or duration_s is None or not duration_s > 0:
        raise LabkitError("a ramp needs end_rate_per_s and duration_s above 0.", next_step="give both.")
    expected = (first + last) / 2 * duration_s
    counts = draw_arrivals("poisson", rate_per_s=1.0, duration_s=expected, seed=generator)
    slope = (last - first) / duration_s
    if slope == 0:
        return counts / first
    return (np.sqrt(first**2 + 2 * slope * counts) - first) / slope
