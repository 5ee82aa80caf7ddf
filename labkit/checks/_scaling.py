"""What a batch, a fit and a sweep say, by hand and by other formulas, and what each wrong one would have said."""

import itertools
import math
import random
import statistics

import numpy as np

from labkit.checks._student import T_95, estimate_ends
from labkit.checks.cases import Case

__all__ = [
    "BATCHES", "BATCH_MISTAKES", "FITS", "FIT_MISTAKES", "SPOTS", "SPOT_MISTAKES", "choose", "draw_batches",
    "draw_fits", "draw_spots", "fit_by_minors",
]  # fmt: skip

# 13.1: tokens that each row wants, step times in ms -> throughput in tok/s, time of the middle step in s.
BATCHES = [
    Case((160.0, 0.0125), ([3, 3], [12.5, 12.5, 12.5]), why="6 tokens in 37.5 ms; a step takes 12.5 ms."),
    Case((100.0, 0.015), ([4, 1], [10.0, 20.0, 20.0, 0.0]),
         why="5 tokens in 50 ms: the second row is finished after one step and only fills its place."),
    Case((50.0, 0.05), ([2, 1, 1, 1], [30.0, 70.0]), why="5 tokens in 100 ms, not 8: three rows want one token."),
    Case((250.0, 0.004), ([1], [4.0]), why="one token in 4 ms."),
    Case((62.5, 0.008), ([2, 2, 2, 0], [8.0, 8.0, 80.0]),
         why="6 tokens in 96 ms; the time of the middle step is 8 ms, whatever the slowest one took."),
]  # fmt: skip


def _batch(tokens=sum, seconds=lambda t: sum(t) / 1e3, middle=lambda t: statistics.median(t) / 1e3):
    """Make an answer to 13.1 from its three parts; the right ones unless given."""
    return lambda wanted, step_ms: (tokens(wanted) / seconds(step_ms), middle(step_ms))


def _padded(wanted, step_ms):
    return len(wanted) * len(step_ms) / (sum(step_ms) / 1e3), statistics.median(step_ms) / 1e3


BATCH_MISTAKES = (
    ("all rows of all steps are counted: a row that is finished fills its place, and nobody wanted those tokens.",
     _padded),
    ("all rows of all steps are counted: a row that is finished fills its place, and nobody wanted those tokens.",
     lambda w, t: (len(w) * max(w) / (sum(t) / 1e3), statistics.median(t) / 1e3)),
    ("that is rows over one step: with rows that finish early it promises too much. Count the tokens that were wanted.",
     lambda w, t: (len(w) / (statistics.median(t) / 1e3), statistics.median(t) / 1e3)),
    ("rows are counted: each of them wants several tokens, add up `wanted`.", _batch(tokens=len)),
    ("only the longest row is counted: throughput is the tokens of all rows together.", _batch(tokens=max)),
    ("that is the speed of one row: throughput is the tokens of all rows together.",
     lambda w, t: (sum(w) / len(w) / (sum(t) / 1e3), statistics.median(t) / 1e3)),
    ("the steps come in milliseconds: divide by 1,000, for both numbers.",
     _batch(seconds=sum, middle=statistics.median)),
    ("the throughput is per millisecond: the steps come in ms, and tok/s was asked for.", _batch(seconds=sum)),
    ("the second number is still in milliseconds, and seconds were asked for.", _batch(middle=statistics.median)),
    ("the second number is the mean step: one slow step moves it. The median was asked for.",
     _batch(middle=lambda t: statistics.fmean(t) / 1e3)),
    ("the second number is the longest step, and the middle one was asked for.", _batch(middle=lambda t: max(t) / 1e3)),
    ("the time of a step is divided by the rows: no request gets its token earlier because others get one, too.",
     lambda w, t: (sum(w) / (sum(t) / 1e3), statistics.median(t) / 1e3 / len(w))),
    ("the throughput comes from the median step: all steps together are the time that passed.",
     lambda w, t: (sum(w) / (len(t) * statistics.median(t) / 1e3), statistics.median(t) / 1e3)),
    ("the two numbers are swapped: throughput first, then the time of a step.", lambda w, t: _batch()(w, t)[::-1]),
)  # fmt: skip


def draw_batches():
    """Yield random cases of 13.1, by adding up token by token."""
    draw = random.Random(131)
    for _ in range(30):
        wanted = [draw.randrange(1, 12) for _ in range(draw.randrange(1, 9))]
        step_ms = [draw.randrange(16, 400) / 16 for _ in range(max(wanted))]
        tokens = sum(1 for step, row in itertools.product(range(len(step_ms)), wanted) if step < row)
        ordered, n = sorted(step_ms), len(step_ms)
        middle_s = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2000
        yield Case((tokens * 1e3 / math.fsum(step_ms), middle_s), (wanted, step_ms))


# 13.2: batches, step times -> fixed part, part per row, knee. The first three are exact lines.
def fit_by_minors(batches, step_s, *, weight=lambda t: 1 / t):
    """Fit t = fixed + per_row b by the normal equations and Cramer's rule; the knee where it lies in the sweep."""
    w = [weight(t) ** 2 for t in step_s]
    s, sb, sbb = sum(w), sum(x * b for x, b in zip(w, batches, strict=True)), 0.0
    sbb = sum(x * b * b for x, b in zip(w, batches, strict=True))
    st = sum(x * t for x, t in zip(w, step_s, strict=True))
    sbt = sum(x * b * t for x, b, t in zip(w, batches, step_s, strict=True))
    determinant = s * sbb - sb * sb
    fixed, per_row = (st * sbb - sbt * sb) / determinant, (s * sbt - sb * st) / determinant
    knee = fixed / per_row if per_row > 0 else None
    return fixed, per_row, knee if knee is not None and min(batches) <= knee <= max(batches) else None


_DOUBLING = [1, 2, 4, 8, 16, 32, 64]
_REAL_S = [0.0062, 0.0084, 0.0101, 0.0113, 0.0142, 0.0224, 0.0322]


def _line(fixed, per_row, batches):
    return [fixed + per_row * b for b in batches]


_EXACT = [
    ([1, 2, 4, 8, 16], (0.5, 0.125, 4.0), "t = 0.5 + 0.125 b: at 4 rows both parts are 0.5."),
    ([16, 1, 4, 32], (2.0, 0.25, 8.0), "the batches may come in any order."),
    ([1, 2, 4, 8], (2.0, 0.125, None), "the parts would be equal at 16, and 8 was the largest batch: no knee."),
    ([4, 8, 16, 32], (0.25, 0.25, None), "the parts would be equal at 1, and 4 was the smallest batch: no knee."),
    ([1, 2, 4, 8], (2.25, -0.25, None), "the time falls with the rows: a slope below 0 has no knee."),
    ([2, 4, 8], (-0.25, 0.25, None), "the fixed part is below 0: no knee within the sweep."),
]
FITS = [Case(expected, (b, _line(*expected[:2], b)), why=why) for b, expected, why in _EXACT]
FITS += [Case(fit_by_minors(_DOUBLING, _REAL_S), (_DOUBLING, _REAL_S),
              why="least squares of the relative errors: divide each row of the equations by its time.")]  # fmt: skip


def _rooted(batches, step_s):
    per_row = sum(b * t for b, t in zip(batches, step_s, strict=True)) / sum(b * b for b in batches)
    return 0.0, per_row, None


def _is_inside(a, d, b):
    return d > 0 and min(b) <= a / d <= max(b)


def _with_knee(change):
    def answer(batches, step_s):
        fixed, per_row, _ = fit_by_minors(batches, step_s)
        return fixed, per_row, change(fixed, per_row, batches)

    return answer


def _swapped(weight):
    """Both parts in the wrong places, and the knee computed from them."""

    def answer(batches, step_s):
        per_row, fixed, _ = fit_by_minors(batches, step_s, weight=weight)
        return fixed, per_row, fixed / per_row if _is_inside(fixed, per_row, batches) else None

    return answer


def _logs(batches, step_s):
    slope, height = np.polyfit(np.log(batches), np.log(step_s), 1)
    return float(np.exp(height)), float(slope), None


FIT_MISTAKES = (
    ("the plain errors are squared: the largest batch then decides alone. Take relative errors: divide each row by its "
     "time.", lambda b, t: fit_by_minors(b, t, weight=lambda x: 1.0)),
    ("the weights are squared once too often or too little: divide each equation by its time, then square.",
     lambda b, t: fit_by_minors(b, t, weight=lambda x: x**-0.5)),
    ("the weights are squared once too often or too little: divide each equation by its time, then square.",
     lambda b, t: fit_by_minors(b, t, weight=lambda x: x**-2.0)),
    ("the weights are the times: divide by the time, so that each error is a share of its own step.",
     lambda b, t: fit_by_minors(b, t, weight=lambda x: x)),
    ("the knee is turned round: it is the batch at which per_row times batch equals the fixed part.",
     _with_knee(lambda a, d, b: d / a if a and min(b) <= d / a <= max(b) else None)),
    ("a knee outside of the sweep was not measured: return None for it.",
     _with_knee(lambda a, d, b: a / d if d else None)),
    ("a knee outside of the sweep was not measured: return None for it.",
     _with_knee(lambda a, d, b: a / d if d > 0 else None)),
    ("the sweep is taken to begin with the first batch in the list: they may come in any order, use min and max.",
     _with_knee(lambda a, d, b: a / d if d > 0 and b[0] <= a / d <= b[-1] else None)),
    ("a knee that is not in the sweep is None, not 0: a zero looks like a batch size.",
     _with_knee(lambda a, d, b: a / d if _is_inside(a, d, b) else 0)),
    ("the knee is moved to a measured batch: it lies where the two parts are equal, measured or not.",
     _with_knee(lambda a, d, b: min(b, key=lambda x: abs(x - a / d)) if _is_inside(a, d, b) else None)),
    ("slope and fixed part are swapped: polyfit gives the highest power first.",
     lambda b, t: (lambda f: (f[1], f[0], f[2]))(fit_by_minors(b, t))),
    ("slope and fixed part are swapped: polyfit gives the highest power first.",
     lambda b, t: (lambda f: (f[1], f[0], f[2]))(fit_by_minors(b, t, weight=lambda x: 1.0))),
    ("slope and fixed part are swapped: polyfit gives the highest power first.", _swapped(lambda x: 1.0)),
    ("slope and fixed part are swapped: polyfit gives the highest power first.", _swapped(lambda x: 1 / x)),
    ("the line is forced through 0: then there is no fixed part.", _rooted),
    ("that is a power law, a line in the logarithms: the parts of a step add up.", _logs),
)  # fmt: skip


def draw_fits():
    """Yield noisy sweeps of 13.2 whose answer comes from the normal equations."""
    draw = random.Random(132)
    for _ in range(30):
        batches = sorted(draw.sample([1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64], draw.randrange(4, 9)))
        fixed, per_row = draw.uniform(0.002, 0.02), draw.uniform(1e-4, 1e-2)
        step_s = [(fixed + per_row * b) * draw.uniform(0.85, 1.15) for b in batches]
        draw.shuffle(batches)
        yield Case(fit_by_minors(batches, step_s), (batches, step_s))


# 13.3: {batch: step times of each run}, limit -> batch.
def choose(step_s, limit_s, *, meets=lambda mean, low, high, limit: high <= limit, value=None, first=None, none=None):
    """Choose by the table of t; a wrong choice when a part is given."""
    good = [b for b in sorted(step_s) if meets(*estimate_ends(step_s[b]), limit_s)]
    value = value or (lambda b: b / statistics.fmean(step_s[b]))
    return (first or (lambda good: max(good, key=value)))(good) if good else none


def _spread(mean, half):
    """Three samples whose interval is mean - half to mean + half."""
    step = half * math.sqrt(3) / T_95[2]
    return [mean - step, mean, mean + step]


_SPOTS = [
    ({1: _spread(0.5, 0.1), 2: _spread(0.6, 0.1), 4: _spread(0.8, 0.1), 8: _spread(1.5, 0.1)}, 1.0, 4,
     "batch 8 misses the limit; of the others, batch 4 has the highest throughput."),
    ({1: _spread(0.5, 0.1), 2: _spread(0.6, 0.1), 4: _spread(0.9, 0.2), 8: _spread(1.5, 0.1)}, 1.0, 2,
     "the mean of batch 4 keeps the limit, its interval ends at 1.1: one cannot promise it."),
    ({1: _spread(1.5, 0.1), 2: _spread(1.6, 0.1)}, 1.0, None, "no batch keeps the limit: None."),
    ({1: _spread(0.9, 0.3)}, 1.0, None, "its interval ends above the limit: None."),
    ({1: _spread(0.2, 0.1), 4: _spread(0.9, 0.01), 8: _spread(0.95, 0.01), 16: _spread(2.4, 0.01)}, 3.0, 8,
     "batch 16 keeps the limit, and batch 8 has the higher throughput: 8.4 against 6.7."),
    ({4: [1.0, 1.0, 1.0], 2: [0.75, 0.75, 0.75]}, 1.0, 4, "equality meets a limit."),
    ({4: [1.0, 1.0, 1.0], 2: [0.5, 0.5, 0.5], 1: [0.5, 0.5, 0.5]}, 2.0, 2,
     "batches 2 and 4 have the same throughput: take the smaller one, its users wait less."),
    ({1: _spread(0.5, 0.01), 2: _spread(1.2, 0.01), 4: _spread(0.8, 0.01), 8: _spread(0.9, 0.01)}, 1.0, 8,
     "batch 2 misses the limit (an accident of this run), and 4 and 8 keep it: look at every batch."),
    ({1: _spread(0.6, 0.05), 2: _spread(1.05, 0.1)}, 1.0, 1, "the interval of batch 2 begins below the limit only."),
    ({1: _spread(0.9, 0.01), 2: _spread(0.5, 0.01)}, 1.0, 2, "both keep the limit, batch 2 has the higher throughput."),
    ({1: _spread(0.5, 0.01), 2: [0.8, 0.9, 1.0]}, 1.005, 1, "the interval of batch 2 ends at 1.15."),
    ({1: _spread(0.6, 0.01), 2: [0.9, 0.9, 1.05]}, 1.049, 1, "the interval of batch 2 ends at 1.17."),
    ({2: [0.43, 0.43, 0.43], 4: [0.8, 0.8, 1.1]}, 5.0, 2,
     "batch 4 had one slow run of three: by the means batch 2 has the higher throughput, 4.65 against 4.44."),
    ({8: _spread(0.9, 0.01), 1: _spread(0.5, 0.01), 4: _spread(1.1, 0.01)}, 1.0, 8, "the batches come in any order."),
]  # fmt: skip
SPOTS = [Case(expected, (step_s, limit_s), why=why) for step_s, limit_s, expected, why in _SPOTS]


def _until_broken(step_s, limit_s):
    kept = list(itertools.takewhile(lambda b: estimate_ends(step_s[b])[2] <= limit_s, sorted(step_s)))
    return max(kept, key=lambda b: b / statistics.fmean(step_s[b])) if kept else None


def _all_batches(step_s, limit_s):
    return max(sorted(step_s), key=lambda b: b / statistics.fmean(step_s[b]))


def _last_tie(step_s, limit_s):
    return choose(step_s, limit_s, value=lambda b: (round(b / statistics.fmean(step_s[b]), 9), b))


SPOT_MISTAKES = (
    ("the mean keeps the limit, its interval does not: the whole interval must, or one promises too much.",
     lambda s, limit: choose(s, limit, meets=lambda mean, low, high, x: mean <= x)),
    ("the lower end of the interval is compared: the upper one must keep the limit.",
     lambda s, limit: choose(s, limit, meets=lambda mean, low, high, x: low <= x)),
    ("1.96 is for many runs: with so few the interval is Student's, `stats` has it.",
     lambda s, limit: choose(s, limit, meets=lambda mean, low, high, x: mean + 1.96 / T_95[2] * (high - mean) <= x)),
    ("the throughput is taken from the median: one slow run is time that passed, take the mean.",
     lambda s, limit: choose(s, limit, value=lambda b: b / statistics.median(s[b]))),
    ("the longest single run is compared: that is another rule, ask for the interval of the mean.",
     lambda s, limit: (lambda good: max(good, key=lambda b: b / statistics.fmean(s[b])) if good else None)(
         [b for b in sorted(s) if max(s[b]) <= limit])),
    ("the largest batch is taken: of those that keep the limit, the one with the highest throughput was asked for.",
     lambda s, limit: choose(s, limit, first=max)),
    ("the shortest step is taken: of those that keep the limit, the one with the highest throughput was asked for.",
     lambda s, limit: choose(s, limit, value=lambda b: -statistics.fmean(s[b]))),
    ("the longest step is taken: of those that keep the limit, the one with the highest throughput was asked for.",
     lambda s, limit: choose(s, limit, value=lambda b: statistics.fmean(s[b]))),
    ("the search ends at the first batch that misses the limit: later ones may keep it, look at all.", _until_broken),
    ("the limit is not looked at: this is the highest throughput whatever its users wait.", _all_batches),
    ("where two have the same throughput, take the smaller batch: its users wait less.", _last_tie),
    ("equality meets a limit: compare with <=.",
     lambda s, limit: choose(s, limit, meets=lambda mean, low, high, x: high < x)),
    ("when no batch keeps the limit there is no sweet spot: return None.", lambda s, limit: choose(s, limit, none=0)),
    ("when no batch keeps the limit there is no sweet spot: return None, not the smallest batch.",
     lambda s, limit: choose(s, limit) if choose(s, limit) is not None else min(s)),
    ("that is a throughput, and the batch that reaches it was asked for.",
     lambda s, limit: (lambda b: b if b is None else b / statistics.fmean(s[b]))(choose(s, limit))),
)  # fmt: skip


def draw_spots():
    """Yield random sweeps of 13.3, chosen by the table of t."""
    draw = random.Random(133)
    for _ in range(40):
        batches = draw.sample([1, 2, 4, 8, 16, 32], draw.randrange(2, 6))
        step_s = {b: [(0.4 + 0.05 * b) * draw.uniform(0.8, 1.2) for _ in range(3)] for b in batches}
        limit_s = draw.uniform(0.4, 3.0)
        yield Case(choose(step_s, limit_s), (step_s, limit_s))
