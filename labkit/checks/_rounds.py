"""How many times as much does A deliver as B, over paired rounds? Right by a printed table, and wrong in known ways."""

import math
import random
import statistics

from labkit.checks._student import T_95, estimate_ends
from labkit.checks._words import Case
from labkit.stats import compare

__all__ = ["ROUNDS", "ROUND_MISTAKES", "draw_rounds", "estimate_ratio", "estimate_tok_per_s"]

# Rounds of A and of B, each a list of (start, end, tokens). Round 1 of A: 60 tokens in 3 s.
A = [[(0.0, 1.0, 10), (0.5, 3.0, 50)], [(10.0, 12.0, 40), (10.0, 11.0, 20)], [(20.0, 24.0, 64), (21.0, 23.0, 16)]]
B = [[(3.0, 9.0, 20), (3.0, 8.0, 70)], [(13.0, 15.0, 40), (12.5, 18.5, 8), (14.0, 17.0, 60)], [(25.0, 37.0, 64)]]
_DRIFT_A = [[(0.0, 2.0, 100)], [(9.0, 13.0, 100)], [(20.0, 28.0, 100)]]  # 50, 25 and 12.5 tok/s: the machine slows down
_DRIFT_B = [[(2.0, 5.0, 100)], [(13.0, 20.0, 100)], [(28.0, 41.0, 100)]]
# Five rounds, 30, 50, 40, 20 and 60 tok/s beside 20, 25, 10, 16 and 40: sorted by speed they would make other pairs.
_FIVE_A = [[(50.0 * k, 50.0 * k + 2, tokens)] for k, tokens in enumerate((60, 100, 80, 40, 120))]
_FIVE_B = [[(50.0 * k + 9, 50.0 * k + 13, tokens)] for k, tokens in enumerate((80, 100, 40, 64, 160))]


def estimate_tok_per_s(requests):
    """Return the tokens of a round over its window, from the first start to the last end."""
    return sum(n for *_, n in requests) / (max(e for _, e, _ in requests) - min(s for s, *_ in requests))


def estimate_ratio(a, b, *, rate=estimate_tok_per_s, sign=1, order=list, **changes):
    """Return the ratio of A over B and its interval, by the table of t; a wrong answer when a part is given."""
    rates = [order([rate(one) for one in side]) for side in (a, b)]
    logs = [sign * math.log(x / y) for x, y in zip(*rates, strict=True)]
    return tuple(map(math.exp, estimate_ends(logs, **changes)))


def _unpaired(a, b):
    said = compare([*map(estimate_tok_per_s, a)], [*map(estimate_tok_per_s, b)], is_paired=False, better="higher")
    return said.ratio, said.interval.low, said.interval.high


def _plain_mean(a, b):
    return estimate_ends([estimate_tok_per_s(x) / estimate_tok_per_s(y) for x, y in zip(a, b, strict=True)])


def _of_means(a, b):
    means = [statistics.fmean(map(estimate_tok_per_s, side)) for side in (a, b)]
    return means[0] / means[1], *estimate_ratio(a, b)[1:]


ROUNDS = [
    Case(estimate_ratio(a, b), (a, b), why=why)
    for a, b, why in (
        (A, B, "tokens of all requests over the time from the first start to the last end."),
        (B, A, "the ratio is the throughput of A over that of B: here it is below 1."),
        (_DRIFT_A, _DRIFT_B, "the machine slows down; within a round both see it."),
        (A, A, "A against itself: ratio 1."),
        (_FIVE_A, _FIVE_B, "here are five rounds, and all of them count."),
    )
]
ROUND_MISTAKES = (
    ("the durations are added up: requests overlap. The window runs from the first start to the last end.",
     lambda a, b: estimate_ratio(a, b, rate=lambda r: sum(n for *_, n in r) / sum(e - s for s, e, _ in r))),
    ("the mean of each request's own speed is what one user sees: throughput is all tokens over one window.",
     lambda a, b: estimate_ratio(a, b, rate=lambda r: statistics.fmean(n / (e - s) for s, e, n in r))),
    ("the speeds of the requests are added up, as if all ran all the time: all tokens over one window.",
     lambda a, b: estimate_ratio(a, b, rate=lambda r: sum(n / (e - s) for s, e, n in r))),
    ("requests are counted: the throughput here is in output tokens.",
     lambda a, b: estimate_ratio(a, b, rate=lambda r: estimate_tok_per_s([(s, e, 1) for s, e, _ in r]))),
    ("the window begins at 0: it begins when the first request of this round is sent.",
     lambda a, b: estimate_ratio(a, b, rate=lambda r: sum(n for *_, n in r) / max(e for _, e, _ in r))),
    ("the window ends at the end of the last request in the list: take the latest end, whoever has it.",
     lambda a, b: estimate_ratio(a, b, rate=lambda r: sum(n for *_, n in r) / (r[-1][1] - r[0][0]))),
    ("the window is the longest single request: it runs from the first start to the last end.",
     lambda a, b: estimate_ratio(a, b, rate=lambda r: sum(n for *_, n in r) / max(e - s for s, e, _ in r))),
    ("the ratio is turned round. Throughput is better when it is higher: say so to compare().",
     lambda a, b: estimate_ratio(a, b, sign=-1)),
    ("the rounds are not paired: within a round both met the same machine, and the drift cancels.", _unpaired),
    ("that is the spread of single rounds: the mean of n rounds is surer, by the square root of n.",
     lambda a, b: estimate_ratio(a, b, scale=1)),
    ("the ends of the interval are swapped: `low` is the smaller one.",
     lambda a, b: tuple(estimate_ratio(a, b)[k] for k in (0, 2, 1))),
    ("that is the plain mean of the ratios: 2 and 1/2 would make 1.25. Use logarithms, as compare() does.",
     _plain_mean),
    ("that divides two means: take the ratio within each round, so that the drift cancels.", _of_means),
    ("the rounds are sorted by speed before they are paired: that makes pairs that never ran side by side.",
     lambda a, b: estimate_ratio(a, b, order=sorted)),
    ("only the first three rounds are read: a comparison may have more.",
     lambda a, b: estimate_ratio(a[:3], b[:3])),
    ("4.30 is Student's t for three rounds: n rounds have n - 1 degrees of freedom.",
     lambda a, b: estimate_ratio(a, b, t=T_95[2])),
    ("the standard deviation is that of a whole population: of a sample it has the divisor n - 1 (`ddof=1`).",
     lambda a, b: estimate_ratio(a, b, spread=statistics.pstdev)),
    ("1.96 is for very many rounds: n rounds have Student's t with n - 1 degrees of freedom.",
     lambda a, b: estimate_ratio(a, b, t=1.959963984540054)),
)  # fmt: skip


def draw_rounds(num: int) -> list[Case]:
    """Draw pairs of three or five rounds of overlapping requests."""
    draw, cases = random.Random(123), []
    for k in range(num):
        sides = []
        for speed in (40, 10):
            starts = [[r * 50.0 + draw.randrange(64) / 16 for _ in range(5)] for r in range(5 if k % 2 else 3)]
            sides.append([[(s, s + draw.randrange(16, 99) / speed, draw.randrange(4, 99)) for s in r] for r in starts])
        why = "all tokens of a round over one window, in pairs."
        cases.append(Case(estimate_ratio(*sides), tuple(sides), why=why))
    return cases
