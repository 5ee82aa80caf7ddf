"""Exercise 33.3: what a run hid, and whether its client can be believed; made-up runs and classic mistakes."""

import random

import numpy as np

from labkit.checks.cases import Case

__all__ = ["RUN_CASES", "RUN_MISTAKES", "make_judge"]

_BOUND_S = 0.010


def make_judge(
    send=lambda d, s, f: f - s,
    schedule=lambda d, s, f: f - d,
    lag=lambda lags: float(np.percentile(lags, 99)),
    judged=None,
    *,
    q=99,
    at_least=299,
    counts=lambda rows: sum(f is not None for _, _, f in rows),
    keep=lambda rows: rows,
    lagging=lambda rows: [s - d for d, s, _ in rows if s is not None],
    sees_unsent=True,
    is_over=lambda value: value > _BOUND_S,
    failed=lambda d, s, q: None,
):
    """Make an answer to 33.3 from its parts; the right ones unless given."""

    def answer(rows):
        rows = keep(rows)
        lags = lagging(rows)
        found = []
        for formula in (send, schedule):
            values = [formula(d, s, f) for d, s, f in rows if f is not None]
            values += [failed(d, s, f) for d, s, f in rows if f is None and failed(d, s, f) is not None]
            found.append(float(np.percentile(values, q)) if values and counts(rows) >= at_least else None)
        value = lag(lags) if lags else None
        # What decides may be another number than what is reported (a median, a mean).
        deciding = value if judged is None or not lags else judged(lags)
        is_bad = value is None or is_over(deciding) or (sees_unsent and any(s is None for _, s, _ in rows))
        return found[0], found[1], value, "INVALID" if is_bad else "valid"

    return answer


def _make_run(num, *, gap_s=0.02, service_s=0.02, stalls=(), unsent=(), failed=(), late=(), spread_s=0.0, seed=0):
    """A run with requests due every `gap_s`; `stalls`: (from, to) in which the client sent nothing."""
    draw, rows = random.Random(seed), []
    for k in range(num):
        due_s = (k + 1) * gap_s
        sent_s = max([due_s, *(end for begin, end in stalls if begin <= due_s < end)])
        sent_s += dict(late).get(k, 0.0)
        first_s = sent_s + service_s + spread_s * draw.random()
        rows.append((due_s, None if k in unsent else sent_s, None if k in unsent or k in failed else first_s))
    return rows


_RUNS = [
    (_make_run(500, stalls=[(4.0, 5.0)]), "the client slept for a second, and 50 of 500 requests left late."),
    (_make_run(320, spread_s=0.5, seed=1), "nothing was late: both percentiles are the same, and the run is valid."),
    (_make_run(320, late=[(77, 2.0)], spread_s=0.1, seed=2),
     "one late request of 320 does not reach the 99th percentile."),
    (_make_run(298, spread_s=0.3, seed=3), "298 samples have no 95 % interval for p99: n is too small, say None."),
    (_make_run(299, spread_s=0.3, seed=4), "299 are enough."),
    (_make_run(302, spread_s=0.3, failed=range(4), seed=5), "4 of 302 failed: 298 latencies are too few."),
    (_make_run(345, spread_s=0.4, failed=range(100, 140), stalls=[(2.0, 2.8)], seed=6),
     "a failed request has no latency, but its sending was late like any other's."),
    (_make_run(320, spread_s=0.4, unsent=range(310, 320), seed=7), "ten requests were due and never sent: INVALID."),
    (_make_run(310, late=[(k, _BOUND_S / 2) for k in range(310)], spread_s=0.1, seed=8),
     "a lag of half the bound, on all: valid."),
    ([(0.0, 0.01, 0.05 + k / 1000) for k in range(300)],
     "all were due at once and left 10 ms later: exactly the bound holds."),
    (_make_run(320, late=[(k, 0.02) for k in range(0, 320, 20)], spread_s=0.1, seed=9),
     "one request in twenty left 20 ms late: mean and median of the lag do not show it, its p99 does."),
    (_make_run(310, late=[(k, 0.02) for k in range(310)], spread_s=0.1, seed=11), "all of them left 20 ms late."),
    (_make_run(40, stalls=[(0.3, 0.5)], seed=10), "40 requests are too few for p99, yet their lags are all known."),
    (_make_run(20, failed=range(20)), "all failed: no latency at all, yet the client did its part on time."),
    (_make_run(3, unsent=range(3)), "nothing was sent: no numbers, INVALID."),
]  # fmt: skip
_RIGHT = make_judge()
RUN_CASES = [Case(_RIGHT(rows), (rows,), why=why) for rows, why in _RUNS]


def _hide_lag(rows, *, verdict=None):
    """The mistake of giving no lag where its own p99 would have no interval."""
    _, _, lag, right = _RIGHT(rows)
    few = sum(s is not None for _, s, _ in rows) < 299
    return (None, verdict or right) if few else (lag, right)


RUN_MISTAKES = (
    ("both percentiles count from the sending: that is coordinated omission itself. The second one counts from the "
     "instant at which the request was due.", make_judge(schedule=lambda d, s, f: f - s)),
    ("both percentiles count from the schedule: the first one is what the tool would have reported, from the sending.",
     make_judge(send=lambda d, s, f: f - d)),
    ("the two percentiles are exchanged: the first counts from the sending, the second from the schedule.",
     make_judge(send=lambda d, s, f: f - d, schedule=lambda d, s, f: f - s)),
    ("the lag is added twice: first chunk minus scheduled instant has it already.",
     make_judge(schedule=lambda d, s, f: f - d + s - d)),
    ("the mean lag decides, and a stall of a second disappears in it: take the 99th percentile.",
     make_judge(judged=lambda lags: float(np.mean(lags)))),
    ("the mean lag is reported, and a stall of a second disappears in it: take the 99th percentile.",
     make_judge(lag=lambda lags: float(np.mean(lags)))),
    ("the median lag decides: half of the requests may be on time and the run still wrong. Take the 99th percentile.",
     make_judge(judged=lambda lags: float(np.median(lags)))),
    ("the median lag is reported: take the 99th percentile.", make_judge(lag=lambda lags: float(np.median(lags)))),
    ("the largest lag decides: one late request in hundreds makes no run INVALID. Take the 99th percentile.",
     make_judge(judged=max)),
    ("the largest lag is reported: take the 99th percentile.", make_judge(lag=max)),
    ("the lag is known however few requests were sent: `np.percentile(lags, 99)`, where `stats.summarize` says None.",
     lambda rows: (*_RIGHT(rows)[:2], *_hide_lag(rows, verdict="INVALID"))),
    ("the lag is known however few requests were sent: `np.percentile(lags, 99)`, where `stats.summarize` says None.",
     lambda rows: (*_RIGHT(rows)[:2], *_hide_lag(rows))),
    ("failed requests do not make a run INVALID: they are the server's doing, and the verdict is about the client.",
     lambda rows: (*_RIGHT(rows)[:3], "INVALID" if any(f is None for *_, f in rows) else _RIGHT(rows)[3])),
    ("a request that was due and never sent is passed over: the client did not do its plan, the run is INVALID.",
     make_judge(sees_unsent=False)),
    ("a number stands where n is too small: under 299 samples p99 is little more than the maximum. Say None.",
     make_judge(at_least=1)),
    ("299 samples are enough for p99: `>=`, not `>`.", make_judge(at_least=300)),
    ("n counts all requests: the percentile is taken over those that succeeded, count these.",
     make_judge(counts=len)),
    ("failed requests are left out of the lag as well: the client sent them, on time or late.",
     make_judge(lagging=lambda rows: [s - d for d, s, f in rows if f is not None])),
    ("failed requests count as 0 s: a refusal would make the server look fast. They have no latency.",
     make_judge(failed=lambda d, s, f: 0.0)),
    ("that is another percentile: p99 was asked for, as `np.percentile(values, 99)` gives it.", make_judge(q=95)),
    ("that is another percentile: p99 was asked for, as `np.percentile(values, 99)` gives it.", make_judge(q=50)),
    ("that is the maximum: p99 was asked for.", make_judge(q=100)),
    ("every run is called valid: a p99 lag over 10 ms, or a request that was never sent, makes it INVALID.",
     make_judge(is_over=lambda value: False, sees_unsent=False)),
    ("the verdict forgets the lag: a p99 lag over 10 ms makes a run INVALID.", make_judge(is_over=lambda value: False)),
    ("a p99 lag of exactly 10 ms is within the bound: over 10 ms is INVALID.",
     make_judge(is_over=lambda value: value >= _BOUND_S)),
    ("the verdict is turned round.",
     lambda rows: (*_RIGHT(rows)[:3], "valid" if _RIGHT(rows)[3] == "INVALID" else "INVALID")),
    ("those are milliseconds: everything here is in seconds.",
     lambda rows: (*(None if x is None else 1e3 * x for x in _RIGHT(rows)[:3]), _RIGHT(rows)[3])),
)  # fmt: skip
