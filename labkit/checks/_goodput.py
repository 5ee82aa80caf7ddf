"""Exercise 33.4: goodput, and the highest rate that keeps a promise; made-up runs and classic mistakes."""

import random

from labkit.checks.cases import Case

__all__ = ["KNEE_CASES", "KNEE_MISTAKES", "draw_knee_cases", "make_knee"]


def judge_request(request, slo, *, meets=lambda value, limit: value <= limit, all_of=all, missing=lambda: None):
    """True or False whether a request is good, None when no SLO applies to it."""
    if request is None:
        return False
    marks = [missing() if request[name] is None else meets(request[name], limit) for name, limit in slo.items()]
    marks = [mark for mark in marks if mark is not None]
    return all_of(marks) if marks else None


def make_knee(
    judge=judge_request,
    *,
    per_s=lambda good, run: good / run["window_s"],
    fraction=lambda marks: sum(marks) / len(marks) if marks else None,
    keeps=lambda good_fraction, share: good_fraction is not None and good_fraction >= share,
    pick=None,
    order=lambda rows: sorted(rows, key=lambda row: row[0]),
):
    """Make an answer to 33.4 from its parts; the right ones unless given."""

    def answer(runs, slo, share=0.99):
        goods, rows = [], []
        for run in runs:
            marks = [mark for mark in (judge(request, slo) for request in run["requests"]) if mark is not None]
            goods.append((per_s(sum(marks), run), fraction(marks)))
            rows.append((run["rate_per_s"], goods[-1], keeps(goods[-1][1], share)))
        return goods, (pick or _pick)(order(rows))

    return answer


def _pick(rows):
    knee = None
    for rate_per_s, _, is_kept in rows:
        if not is_kept:
            break
        knee = rate_per_s
    return knee


def _highest(rows):
    return max((rate_per_s for rate_per_s, _, is_kept in rows if is_kept), default=None)


def _first_broken(rows):
    return next((rate_per_s for rate_per_s, _, is_kept in rows if not is_kept), None)


def _no_fails(request, slo):
    return None if request is None else judge_request(request, slo)


def _run(rate_per_s, *kinds, window_s=16.0):
    """A run from (how many, TTFT, TPOT), or (how many, None) for failures."""
    requests = [
        None if kind[1] is None else {"ttft_s": kind[1], "tpot_s": kind[2]} for kind in kinds for _ in range(kind[0])
    ]
    random.Random(7).shuffle(requests)
    return {"rate_per_s": rate_per_s, "window_s": window_s, "requests": requests}


_SLO = {"ttft_s": 0.5, "tpot_s": 0.125}
_ONLY_TPOT = {"tpot_s": 0.125}
_CASES = [
    ([_run(4.0, (64, 0.25, 0.0625))], _SLO, {}, "64 requests in 16 s, all good: 4 a second."),
    ([_run(4.0, (96, 0.5, 0.125), (4, 0.25, 0.03125))], _SLO, {}, "exactly the limit is kept: equality meets an SLO."),
    ([_run(8.0, (95, 0.25, 0.0625), (5, 0.75, 0.0625))], _SLO, {}, "five of a hundred wait too long: p99 is not kept."),
    ([_run(8.0, (60, 0.25, 0.0625), (40, 0.25, 0.25))], _SLO, {},
     "a good first token does not make up for a slow stream."),
    ([_run(8.0, (80, 0.25, 0.0625), (20, None))], _SLO, {}, "a failed request is not good, and it counts."),
    ([_run(8.0, (50, 0.25, None), (50, 0.25, 0.0625))], _SLO, {}, "one token has no TPOT: its TTFT alone decides."),
    ([_run(8.0, (30, 0.25, None), (30, 0.25, 0.0625), (30, 0.25, 0.25))], _ONLY_TPOT, {},
     "where only TPOT is promised, a request of one token neither meets nor misses it: leave it out."),
    ([_run(8.0, (12, 0.25, None))], _ONLY_TPOT, {},
     "nothing could be judged: the fraction is None, and nothing is kept."),
    ([_run(2.0, (99, 0.25, 0.0625), (1, 0.75, 0.0625))], _SLO, {}, "99 of 100 is 99 %: kept."),
    ([_run(2.0, (19, 0.25, 0.0625), (1, 0.75, 0.0625))], _SLO, {"share": 0.95},
     "with a promise for 95 %, 19 of 20 keep it."),
    ([_run(8.0, (128, 0.25, 0.0625)), _run(2.0, (32, 0.25, 0.0625)), _run(4.0, (64, 0.25, 0.0625)),
      _run(16.0, (200, 0.25, 0.0625), (56, 0.75, 0.0625)), _run(32.0, (300, 0.25, 0.0625), (212, None))], _SLO, {},
     "the highest rate that keeps the promise is 8, in whatever order the runs are listed."),
    ([_run(2.0, (32, 0.25, 0.0625)), _run(4.0, (48, 0.25, 0.0625), (16, 0.75, 0.0625)), _run(8.0, (128, 0.25, 0.0625))],
     _SLO, {}, "8 was kept, 4 was not: a rate counts only if all lower ones hold as well. Look at that machine again."),
    ([_run(2.0, (10, 0.25, 0.0625), (22, 0.75, 0.0625)), _run(4.0, (20, 0.75, 0.25))], _SLO, {},
     "not even the lowest rate holds: the knee is None."),
    ([_run(4.0, (64, 0.25, 0.0625)), _run(8.0, (256, 0.25, 0.0625), window_s=64.0)], _SLO, {},
     "each run has a window of its own."),
    ([_run(4.0, (40, 0.75, 0.03125), (24, 0.25, 0.0625))], {"ttft_s": 1.0, "tpot_s": 0.03125}, {},
     "another promise: its first token may take a second, its stream must be faster."),
]  # fmt: skip
_RIGHT = make_knee()
KNEE_CASES = [Case(_RIGHT(runs, slo, **more), (runs, slo), more, why=why) for runs, slo, more, why in _CASES]

KNEE_MISTAKES = (
    ("equality meets an SLO: `<=`, not `<`.",
     make_knee(lambda r, slo: judge_request(r, slo, meets=lambda value, limit: value < limit))),
    ("a request that meets one SLO of two is called good: it must meet every one.",
     make_knee(lambda r, slo: judge_request(r, slo, all_of=any))),
    ("the limits are others in every call: take them from `slo`.",
     make_knee(lambda r, slo: judge_request(r, {name: _SLO[name] for name in slo}))),
    ("only the TTFT is looked at: every SLO in `slo` has to be met.",
     make_knee(lambda r, slo: judge_request(r, {k: v for k, v in slo.items() if k == "ttft_s"}))),
    ("only the TPOT is looked at: every SLO in `slo` has to be met.",
     make_knee(lambda r, slo: judge_request(r, {k: v for k, v in slo.items() if k == "tpot_s"}))),
    ("a TPOT of None is called a miss: one token has no gap, so it neither meets nor misses.",
     make_knee(lambda r, slo: judge_request(r, slo, missing=lambda: False))),
    ("a TPOT of None is called a hit: where nothing else is promised, the request says nothing either way.",
     make_knee(lambda r, slo: judge_request(r, slo, missing=lambda: True))),
    ("failed requests are left out: a server that refuses half of its users would keep any promise.",
     make_knee(_no_fails)),
    ("the good fraction divides by all requests: those that no SLO applies to are left out of both.",
     make_knee(lambda r, slo: bool(judge_request(r, slo)))),
    ("the goodput is per second: good requests over `window_s`.", make_knee(per_s=lambda good, run: good)),
    ("the goodput is the offered rate times the good fraction only if the run kept its rate: divide by `window_s`.",
     make_knee(per_s=lambda good, run: run["rate_per_s"] * good / len(run["requests"]))),
    ("all requests are counted as goodput: only those that meet every SLO.",
     make_knee(per_s=lambda good, run: len(run["requests"]) / run["window_s"])),
    ("a fraction of exactly `share` keeps the promise: `>=`, not `>`.",
     make_knee(keeps=lambda good, share: good is not None and good > share)),
    ("`share` is not used: 0.99 is only its default.",
     make_knee(keeps=lambda good, share: good is not None and good >= 0.99)),
    ("the highest rate that holds is taken, though a lower one did not hold: one of the two runs is not to be "
     "believed, "
     "so stop at the first that fails.", make_knee(pick=_highest)),
    ("that is the first rate that does not hold: the knee is the last one that does.", make_knee(pick=_first_broken)),
    ("the runs are taken in the order of the list: sort them by their rate.", make_knee(order=list)),
    ("that is the rate with the highest goodput: the server may break its promise to many there.",
     make_knee(pick=lambda rows: max(rows, key=lambda row: row[1][0])[0])),
    ("the knee is the goodput: give the rate at which it was reached.",
     make_knee(pick=lambda rows: ([None, *(row[1][0] for row in rows if row[2])])[-1])),
    ("nothing could be judged: the fraction is None, not 0.",
     make_knee(fraction=lambda marks: sum(marks) / len(marks) if marks else 0.0)),
    ("nothing could be judged: the fraction is None, not 1.",
     make_knee(fraction=lambda marks: sum(marks) / len(marks) if marks else 1.0)),
)  # fmt: skip


def draw_knee_cases(num: int) -> list[Case]:
    """Draw runs with mixed requests; the oracle counts by hand what `make_knee` counts by marks."""
    draw, cases = random.Random(334), []
    for _ in range(num):
        runs = []
        for rate_per_s in draw.sample((1.0, 2.0, 3.0, 5.0, 8.0, 13.0), 4):
            late = draw.choice((0.0, 0.0, 0.02, 0.3))
            requests = []
            for _ in range(draw.choice((50, 100, 101))):
                slow = draw.random() < late
                value = {"ttft_s": 0.75 if slow else draw.choice((0.25, 0.5)),
                         "tpot_s": draw.choice((None, 0.0625, 0.125))}  # fmt: skip
                requests.append(None if slow and draw.random() < 0.3 else value)
            runs.append({"rate_per_s": rate_per_s, "window_s": draw.choice((8.0, 16.0)), "requests": requests})
        slo = draw.choice((_SLO, {"ttft_s": 0.375, "tpot_s": 0.0625}))
        cases.append(Case(_count(runs, slo, 0.99), (runs, slo), why="good: every SLO met; failed ones are not good."))
    return cases


def _count(runs, slo, share):
    goods, knee = [], None
    for run in runs:
        bad = sum(
            r is None or r["ttft_s"] > slo["ttft_s"] or (r["tpot_s"] or 0.0) > slo["tpot_s"] for r in run["requests"]
        )
        num = len(run["requests"])
        goods.append(((num - bad) / run["window_s"], (num - bad) / num))
    for rate_per_s, (_, part) in sorted(zip((run["rate_per_s"] for run in runs), goods, strict=True)):
        if part < share:
            break
        knee = rate_per_s
    return goods, knee
