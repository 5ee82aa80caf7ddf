"""What does a paired comparison say, by a printed table of Student's t, and what would each wrong one have said?"""

import math
import statistics

import numpy as np

from labkit.checks._student import T_95, estimate_ends
from labkit.checks.cases import fail, is_number
from labkit.checks.learner import shorten

__all__ = ["COMPARE_MISTAKES", "compare_pairs_by_table", "expect_row", "list_pairs", "make_pairs"]

# Student's t for 95 % on one side: degrees of freedom -> t.
_T_90 = {1: 6.31375151467504, 2: 2.91998558035372, 4: 2.13184678632665, 7: 1.89457860509001, 9: 1.83311293265624}


def _by_table(logs, *, sign=1.0, **changes):
    """Return (ratio, low, high, verdict) for log ratios of speed, by the table."""
    return _decide(*estimate_ends([sign * x for x in logs], **changes))


def expect_row(got, call: str) -> None:
    """Fail unless a row of four is three numbers and one of the three words; other things are judged elsewhere."""
    if not isinstance(got, tuple | list) or len(got) != 4:
        return
    if got[1] != got[1] or got[2] != got[2]:
        fail(f"{call}: an end of the interval is NaN. Without any spread the interval is the ratio itself: no width.")
    if wrong := [one for one in got[:3] if not is_number(one)]:
        fail(f"{call}: ratio and both ends are numbers, and {shorten(repr(wrong[0]), 40)} is none.")
    if not isinstance(got[3], str) or got[3] not in _OPPOSITE:
        fail(f"{call}: the verdict is {shorten(repr(got[3]), 40)}: write one of {', '.join(map(repr, _OPPOSITE))}.")


def _decide(mean, low, high, *, write=math.exp):
    # 1e-12: the rounding of a log of two equal times must not become a verdict.
    verdict = "faster" if low > 1e-12 else "slower" if high < -1e-12 else "cannot tell"
    return write(mean), write(low), write(high), verdict


def _logs(a_s, b_s):
    return [math.log(b) - math.log(a) for a, b in zip(a_s, b_s, strict=True)]


def _unpaired(a_s, b_s):
    logs = _logs(a_s, b_s)
    spread = math.sqrt(sum(statistics.variance([math.log(x) for x in side]) for side in (a_s, b_s)) / len(a_s))
    half, mean = T_95[len(a_s) - 1] * spread, statistics.fmean(logs)
    return _decide(mean, mean - half, mean + half)


def _plain_ratios(a_s, b_s):
    ratios = [b / a for a, b in zip(a_s, b_s, strict=True)]
    mean, low, high = estimate_ends(ratios)
    return mean, low, high, "faster" if low > 1 else "slower" if high < 1 else "cannot tell"


def _differences(a_s, b_s):
    diffs = [b - a for a, b in zip(a_s, b_s, strict=True)]
    return _decide(*estimate_ends(diffs), write=float)


def _leave_logs(edge):
    def answer(a_s, b_s):
        mean, low, high = (math.log(x) for x in compare_pairs_by_table(a_s, b_s)[:3])
        return mean, low, high, "faster" if low > edge else "slower" if high < edge else "cannot tell"

    return answer


def _change_verdict(change):
    def answer(a_s, b_s):
        *numbers, verdict = _by_table(_logs(a_s, b_s))
        return (*numbers, change(numbers, verdict))

    return answer


_OPPOSITE = {"faster": "slower", "slower": "faster", "cannot tell": "cannot tell"}
COMPARE_MISTAKES = (
    ("the verdict is turned round: the ratio is the speed of A over that of B, so above 1 A is faster.",
     _change_verdict(lambda numbers, verdict: _OPPOSITE[verdict])),
    ("the verdict looks at the ratio alone: only an interval that lies wholly on one side of 1 decides.",
     _change_verdict(lambda numbers, verdict: "faster" if numbers[0] > 1 else "slower" if numbers[0] < 1 else verdict)),
    ("the ratio is turned round: A's speed over B's is B's time over A's.",
     lambda a_s, b_s: _by_table(_logs(a_s, b_s), sign=-1.0)),
    *(("those are logarithms: take exp of the mean and of both ends.", _leave_logs(edge)) for edge in (0.0, 1.0)),
    ("that compares the two groups as a whole. Take the ratio in each pair first: the drift is in both and cancels.",
     _unpaired),
    ("that is the plain mean of the ratios: 2 and 1/2 would make 1.25. Use logarithms, then exp.", _plain_ratios),
    ("those are differences in seconds: use the ratio in each pair, which has no unit.", _differences),
    ("the samples are sorted before they are paired: that makes pairs that never ran side by side.",
     lambda a_s, b_s: _by_table(_logs(sorted(a_s), sorted(b_s)))),
    ("that is the spread of single pairs: the mean of n pairs is surer, by the square root of n.",
     lambda a_s, b_s: _by_table(_logs(a_s, b_s), scale=1)),
    ("the ends of the interval are swapped: `low` is the smaller one.",
     lambda a_s, b_s: tuple(_by_table(_logs(a_s, b_s))[k] for k in (0, 2, 1, 3))),
    ("the standard deviation is that of a whole population: of a sample it has the divisor n - 1 (`ddof=1`).",
     lambda a_s, b_s: _by_table(_logs(a_s, b_s), spread=statistics.pstdev)),
    ("Student's t has n degrees of freedom here: with n pairs they are n - 1.",
     lambda a_s, b_s: _by_table(_logs(a_s, b_s), t=T_95[len(a_s)])),
    ("that t leaves 5 % on each side: two-sided 95 % leave 2.5 % there, the quantile is 0.975.",
     lambda a_s, b_s: _by_table(_logs(a_s, b_s), t=_T_90[len(a_s) - 1])),
    ("1.96 is for very many pairs: with n pairs it is Student's t with n - 1 degrees of freedom.",
     lambda a_s, b_s: _by_table(_logs(a_s, b_s), t=1.959963984540054)),
)  # fmt: skip


def make_pairs(draw, *, n, shift=1.0, cv=0.01, drift=0.0):
    """Draw n interleaved pairs of times: A needs 0.1 s, B `shift` times as long, both `drift` slower at the end."""
    slow = 1 + drift * np.arange(n) / max(1, n - 1)
    a_s, b_s = (base * slow * np.exp(draw.normal(0, cv, n)) for base in (0.1, 0.1 * shift))
    return a_s.tolist(), b_s.tolist()


def list_pairs():
    """Return triples (times of A, times of B, why): worked by hand first, then seeded ones under drift."""
    draw = np.random.default_rng(3)
    drifting = [0.5, 0.7, 0.6, 0.9, 0.8]
    hand = [0.3, 0.1, 0.5, 0.2, 0.4]  # logs: mean 0.3, standard error 0.0707, so 0.3 +- 0.1963
    moved = [a * math.exp(g) for a, g in zip(drifting, hand, strict=True)]
    pairs = [
        ([2.0, 2.0, 2.0], [4.0, 4.0, 4.0], "A takes half the time in each pair: twice as fast."),
        ([4.0, 4.0], [2.0, 2.0], "A takes twice the time in each pair: half as fast."),
        ([0.5, 0.7, 0.6], [0.5, 0.7, 0.6], "no difference at all: an interval that ends at 1 still holds 1."),
        (drifting, moved, "a gain in each pair, under drift."),
        (moved, drifting, "a loss in each pair, under drift."),
        ([1.0, 1.0], [math.exp(0.1), math.exp(0.3)], "two pairs: t is 12.7, and the interval holds 1."),
    ]
    pairs += [(*make_pairs(draw, n=n, shift=s, drift=0.6), "") for n in (8, 10) for s in (1.0, 1.01, 1.05, 0.9)]
    return pairs


def compare_pairs_by_table(a_s, b_s):
    """Return (ratio, low, high, verdict) for pairs of times; only for the numbers of pairs in the table."""
    return _by_table(_logs(a_s, b_s))
