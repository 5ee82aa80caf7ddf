"""Exercise 33.2: is a drawn schedule a Poisson process? Statistics over many seeds, each with its own sentence.

All bounds are at least four standard deviations away from what a right answer gives, however it draws.
"""

import math

import numpy as np

from labkit.checks.cases import fail
from labkit.checks.learner import LearnerFunction, shorten

__all__ = ["expect_poisson"]

_NUM_SEEDS = 400


def expect_poisson(draw_schedule: LearnerFunction) -> dict:
    """Fail with the first thing that is wrong with the schedules; return what was observed."""
    long_s = [_draw(draw_schedule, 50.0, 250.0, seed) for seed in (3, 4)]
    _expect_times(long_s[0], 50.0, 250.0)
    if not np.array_equal(long_s[0], _draw(draw_schedule, 50.0, 250.0, 3)):
        fail("the same seed gave two different schedules: draw from a generator that depends only on `seed`.")
    if len(long_s[0]) < 60:
        fail("you used `rate_per_s` as the mean gap: it is requests per second, so the mean gap is 1 / rate_per_s.")
    if len(long_s[0]) > 1 and np.ptp(np.diff(long_s[0])) < 1e-9:
        fail("all gaps are the same: that is a constant rate. Users come in bursts, so draw exponential gaps.")
    if np.array_equal(long_s[0], long_s[1]):
        fail("seeds 3 and 4 gave the same schedule: `seed` is not used.")
    runs = [_draw(draw_schedule, 20.0, 10.0, seed) for seed in range(_NUM_SEEDS)]
    for times in runs:
        _expect_times(times, 20.0, 10.0)
    _expect_counts(runs, 20.0, 10.0)
    _expect_ends(runs, 20.0, 10.0)
    _expect_gaps(long_s)
    _expect_few(draw_schedule)
    return {"mean_gap_s": float(np.diff(long_s[0]).mean()), "num_requests": len(long_s[0])}


def _draw(function: LearnerFunction, rate_per_s: float, duration_s: float, seed: int) -> np.ndarray:
    got = function(rate_per_s, duration_s, seed)
    try:
        is_text = isinstance(got, str | bytes) or any(isinstance(one, str | bytes) for one in got)
        times = np.zeros((0, 0)) if is_text else np.asarray(got, dtype=float)
    except (TypeError, ValueError):
        times = np.zeros((0, 0))
    if times.ndim != 1:
        fail(f"{function.call}: expected a 1-D sequence of seconds, got {shorten(repr(got), 60)}.")
    return times


def _expect_times(times: np.ndarray, rate_per_s: float, duration_s: float) -> None:
    if not len(times):
        fail(f"no requests at all at {rate_per_s:g} per second for {duration_s:g} s.")
    if not np.isfinite(times).all() or times.min() < 0:
        fail("a time is negative or not a number: time begins at 0 and gaps are positive.")
    if (np.diff(times) < 0).any():
        if times.max() < 1.0 < duration_s:
            fail("those are the gaps between requests: add them up, each request needs its absolute time.")
        fail("the times are not in order: sort them, or add up gaps.")
    if times.max() > 100 * duration_s:
        fail(f"the last request is due at {times.max():.6g} s in a run of {duration_s:g} s: are those milliseconds?")
    if times.max() > duration_s:
        fail(f"a request is due at {times.max():.3f} s, after the end at {duration_s:g} s: leave it out.")


def _expect_counts(runs, rate_per_s: float, duration_s: float) -> None:
    """The number of requests in a run is Poisson-distributed: mean and variance are both rate x duration."""
    counts, expected = np.array([len(times) for times in runs]), rate_per_s * duration_s
    error = 4.5 * math.sqrt(expected / len(counts))
    if counts.max() == counts.min():
        fail(f"every run has exactly {counts[0]} requests: users do not agree on a number. Draw gaps until the time is up, "
             "however many that gives; a process with a fixed number is called \"conditioned\".")  # fmt: skip
    if abs(counts.mean() - expected / 2) < expected / 20:
        fail(f"about half of the requests are missing: {counts.mean():.1f} on average, {expected:g} expected.")
    if counts.max() <= math.ceil(expected) + 1:
        fail(f"no run has more than {counts.max()} requests, but half of them should: {expected:g} gaps are too few "
             "when they happen to be short. Draw until the time is up.")  # fmt: skip
    if abs(counts.mean() - expected) > error:
        fail(f"a run has {counts.mean():.1f} requests on average over {len(counts)} seeds, {expected:g} expected.")
    dispersion = counts.var(ddof=1) / counts.mean()
    if not 0.7 < dispersion < 1.35:
        more = "far too little" if dispersion < 1 else "far too much"
        fail(f"the number of requests varies {more} from run to run: variance over mean is {dispersion:.2f}, but "
             "independent users give 1. Draw exponential gaps and rescale nothing.")  # fmt: skip
    if counts.max() < expected + 1.6 * math.sqrt(expected):
        fail(f"no run of {len(counts)} has more than {counts.max()} requests: the drawing stops too early.")


def _expect_ends(runs, rate_per_s: float, duration_s: float) -> None:
    """The first request comes after an exponential gap, and the time left after the last one is distributed alike."""
    gap_s = 1 / rate_per_s
    firsts, lefts = np.array([t[0] for t in runs]), np.array([duration_s - t[-1] for t in runs])
    if firsts.max() == 0:
        fail("the first request always comes at 0: no user waits for your clock. Start with a gap.")
    if (lefts < 1e-6 * duration_s).mean() > 0.5:
        fail("the last request always falls on the end of the run: the times are rescaled. That is \"conditioned "
             "Poisson\", whose bursts are milder; leave the times as drawn.")  # fmt: skip
    for seen, where in ((firsts, "before the first request"), (lefts, "after the last request")):
        if not 0.75 * gap_s < seen.mean() < 1.25 * gap_s:
            fail(f"the time {where} is {seen.mean():.3f} s on average over {len(runs)} runs, expected one mean "
                 f"gap, {gap_s:g} s.")  # fmt: skip


def _expect_gaps(long_s) -> None:
    gaps = np.concatenate([np.diff(times, prepend=0.0) for times in long_s])
    share = 1 - np.exp(-np.sort(gaps) * 50.0)
    steps = np.arange(len(gaps) + 1) / len(gaps)
    distance = max((steps[1:] - share).max(), (share - steps[:-1]).max()) * math.sqrt(len(gaps))
    if distance > 2.3:  # the Kolmogorov-Smirnov distance; a right answer exceeds this once in 20,000 times
        cv = gaps.std() / gaps.mean()
        if abs(cv - 1) < 0.05 and len(np.unique(gaps.round(9))) < len(gaps) / 2:
            fail("the times are rounded: many gaps are equal, and no two users' are. Leave the times as drawn.")
        fail(f"the gaps are not exponential: their coefficient of variation is {cv:.2f}, but that of a Poisson process "
             "is 1. Draw each gap from the exponential distribution with mean 1 / rate_per_s.")  # fmt: skip
    correlation = np.corrcoef(gaps[1:], gaps[:-1])[0, 1]
    if abs(correlation) > 4.5 / math.sqrt(len(gaps)):
        fail(f"a gap depends on the one before (correlation {correlation:.2f}): draw each gap independently.")


def _expect_few(function: LearnerFunction) -> None:
    """With 0.5 requests expected most runs are empty; with 2, some have five or more."""
    short = [len(_draw(function, 1.0, 0.5, seed)) for seed in range(_NUM_SEEDS)]
    if min(short) > 0:
        fail("a run of 0.5 s at 1 request per second always has a request: six in ten such runs have none.")
    if max(short) < 2:
        fail("a run of 0.5 s at 1 request per second never has two requests, but one in eleven should. Draw until the "
             "time is up, however many that gives.")  # fmt: skip
    if not 0.3 < sum(short) / len(short) < 0.7:
        fail(f"runs with few requests are wrong: {sum(short) / len(short):.2f} on average, 0.5 expected.")
    few = [len(_draw(function, 0.5, 4.0, seed)) for seed in range(_NUM_SEEDS)]
    if max(few) < 5 or not 1.65 < sum(few) / len(few) < 2.35:
        fail(
            f"runs with few requests are wrong: {sum(few) / len(few):.2f} on average (2 expected), at most {max(few)}."
        )
