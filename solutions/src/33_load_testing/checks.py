"""The checks of lab 33: a request's latencies, a Poisson schedule, what omission hid, the knee, the tuning's verdict.

The lab saves records: "load" (capacity, clients, rates), "omission", "tools", and "tuning", whose
`settings["tuning_rounds"]` the last check judges again.
"""

import math
import random
import statistics

import numpy as np
from lab33.arrivals import expect_poisson

from labkit.checks.cases import Case, expect_answer, expect_cases, expect_function, fail, passed
from labkit.checks.learner import LearnerFunction, shorten, tidy
from labkit.checks.mistakes import find_mistake
from labkit.results import load_records
from labkit.stats import estimate_mean_interval
from labkit.views import Outcome


class _Rows(LearnerFunction):
    """Turns an answer of `size` parts into a tuple, so that a list passes too; fails if the number of parts differs."""

    __slots__ = ("size",)

    def __init__(self, answer: LearnerFunction, *, size: int) -> None:
        LearnerFunction.__init__(self, answer.function, answer.exercise, answer.reference_name)
        self.size = size

    def __call__(self, *args, **kwargs):
        got = LearnerFunction.__call__(self, *args, **kwargs)
        if got is None:
            return None
        if not isinstance(got, tuple | list) or len(got) != self.size:
            fail(f"{self.call}: the answer has {self.size} parts, in the order of the exercise; got "
                 f"{shorten(repr(got), 60)}.")  # fmt: skip
        return tuple(got)


_CONTENT = ("content", "reasoning_content", "tool_calls")
_TOOL = {"tool_calls": [{"index": 0, "function": {"name": "look", "arguments": ""}}]}
_ROLE = {"role": "assistant"}

# scheduled, sent, events (arrival, delta), output tokens -> TTFT, TTFT from the schedule, TPOT, gaps.
_READ_CASES = [
    Case((0.5, 0.75, 0.25, [0.25, 0.25]),
         (9.75, 10.0, [(10.5, {"content": "a"}), (10.75, {"content": "b"}), (11.0, {"content": "c"})], 3),
         why="three tokens have two gaps, and the request was due 0.25 s before it was sent."),
    Case((1.0, 1.0, 0.5, [0.5]),
         (2.0, 2.0, [(2.125, _ROLE), (3.0, {"content": "a"}), (3.5, {"content": "b"})], 2),
         why="a delta with only a role shows that the server is there, but no token has come yet."),
    Case((1.0, 1.5, 0.25, [0.5]),
         (3.5, 4.0, [(4.25, {"role": "assistant", "content": ""}), (5.0, {"role": "assistant", "content": "a"}),
                     (5.5, {"content": "bc"}), (5.75, {"content": ""}), (6.0, {})], 3),
         why="the empty deltas around the answer carry nothing; one chunk carried two tokens."),
    Case((0.5, 0.5, 0.25, [0.25, 0.5]),
         (0.0, 0.0, [(0.5, {"reasoning_content": "hm"}), (0.75, {"content": "a"}), (1.25, {"content": "b"})], 4),
         why="reasoning is content: the user sees it, and the server generated it."),
    Case((0.5, 1.5, 0.5, [1.0]),
         (7.0, 8.0, [(8.25, _ROLE), (8.5, _TOOL), (9.5, {"tool_calls": [{"index": 0}]})], 3),
         why="a tool call is content: it is all this answer has."),
    Case((0.25, 0.25, 0.25, [0.25]),
         (1.0, 1.0, [(1.25, {"content": "\n"}), (1.5, {"content": " "})], 2),
         why="a space or a newline is content too: a token produced it."),
    Case((1.25, 2.25, None, []), (3.0, 4.0, [(4.5, _ROLE), (5.25, {"content": "a"}), (5.5, {"content": None})], 1),
         why="a single token has no gaps: its TPOT is None and the list of gaps is empty."),
    Case((0.75, 0.75, 0.0, []), (6.0, 6.0, [(6.75, {"content": "abc"})], 4),
         why="four tokens in one chunk: their TPOT is 0, which is a known value, not None."),
    Case((None, None, None, []), (1.0, 1.5, [(2.0, _ROLE), (2.5, {"content": ""}), (3.0, {})], 0),
         why="no content arrived: return None three times, and no gaps."),
    Case((None, None, None, []), (1.0, 1.5, [], 0), why="no event arrived: return None three times, and no gaps."),
]  # fmt: skip


def _draw_read_cases(num: int) -> list[Case]:
    """Draw logs whose answer is known because they are built from their gaps."""
    draw, cases = random.Random(331), []
    for _ in range(num):
        scheduled_s = draw.randrange(1000) / 8
        sent_s = scheduled_s + draw.randrange(16) / 32
        wait_s = draw.randrange(8, 64) / 32
        gaps = [draw.randrange(1, 32) / 32 for _ in range(draw.randrange(6))]
        kinds = [draw.choice(_CONTENT) for _ in range(len(gaps) + 1)]
        at_s, events = sent_s + wait_s, [(sent_s + wait_s / 2, draw.choice((_ROLE, {}, {"content": ""})))]
        for kind, gap_s in zip(kinds, [0.0, *gaps], strict=True):
            at_s += gap_s
            events.append((at_s, {kind: [{"index": 0}] if kind == "tool_calls" else "w"}))
            if draw.random() < 0.3:
                events.append((at_s, {"content": ""}))
        events += [(at_s + 0.5, {})]
        num_tokens = len(kinds) + draw.randrange(3)
        tpot_s = sum(gaps) / (num_tokens - 1) if num_tokens > 1 else None
        expected = (wait_s, wait_s + sent_s - scheduled_s, tpot_s, gaps)
        cases.append(Case(expected, (scheduled_s, sent_s, events, num_tokens),
                          why="only events with text, reasoning or a tool call count."))  # fmt: skip
    return cases


def check_1(read_request) -> Outcome:
    """One request from its log of events; random logs are built from their gaps."""
    expect_function(read_request, "read_request")
    expect_cases(_Rows(read_request, size=4), [*_READ_CASES, *_draw_read_cases(30)])
    return passed("a role is not a token, reasoning is, and the user's wait begins when the request is due.")


def check_2(draw_schedule) -> Outcome:
    """A Poisson schedule, by its statistics over many seeds, however it was drawn."""
    expect_function(draw_schedule, "draw_schedule")
    seen = expect_poisson(draw_schedule)
    return passed("absolute times from a seed, not rescaled, not a fixed number: users who do not wait for you.", seen)


# 33.3: made-up runs of (due, sent, first chunk); a client with a larger lag is INVALID.
_BOUND_S = 0.010


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
    (_make_run(500, stalls=[(4.0, 5.0)]), "the client stalled for a second, and 50 of 500 requests were sent late."),
    (_make_run(320, spread_s=0.5, seed=1), "nothing was late: both percentiles are the same, and the run is valid."),
    (_make_run(320, late=[(77, 2.0)], spread_s=0.1, seed=2),
     "one late request in 320 does not reach the 99th percentile."),
    (_make_run(298, spread_s=0.3, seed=3), "298 samples have no 95 % interval for p99: n is too small, return None."),
    (_make_run(299, spread_s=0.3, seed=4), "299 are enough."),
    (_make_run(302, spread_s=0.3, failed=range(4), seed=5), "4 of 302 failed: 298 latencies are too few."),
    (_make_run(345, spread_s=0.4, failed=range(100, 140), stalls=[(2.0, 2.8)], seed=6),
     "a failed request has no latency, but its lag counts like any other's."),
    (_make_run(320, spread_s=0.4, unsent=range(310, 320), seed=7), "ten requests were due and never sent: INVALID."),
    (_make_run(310, late=[(k, _BOUND_S / 2) for k in range(310)], spread_s=0.1, seed=8),
     "every request has a lag of half the bound: valid."),
    ([(0.0, 0.01, 0.05 + k / 1000) for k in range(300)],
     "all were due at once and sent 10 ms later: a lag of exactly 10 ms is valid."),
    (_make_run(320, late=[(k, 0.02) for k in range(0, 320, 20)], spread_s=0.1, seed=9),
     "one request in twenty was sent 20 ms late: the mean and median lag do not show it, the p99 does."),
    (_make_run(310, late=[(k, 0.02) for k in range(310)], spread_s=0.1, seed=11), "all of them were sent 20 ms late."),
    (_make_run(40, stalls=[(0.3, 0.5)], seed=10), "40 requests are too few for a p99 latency, but all their lags are known."),
    (_make_run(20, failed=range(20)), "all failed: there are no latencies, but the client sent everything on time."),
    (_make_run(3, unsent=range(3)), "nothing was sent: no numbers, INVALID."),
]  # fmt: skip


def _judge_run(rows):
    """Return (p99 from the send time, p99 from the schedule, p99 of the lag, verdict), None if n is too small."""

    def p99(values, at_least):
        return float(np.percentile(values, 99)) if len(values) >= at_least else None

    send = p99([first_s - sent_s for _, sent_s, first_s in rows if first_s is not None], 299)
    schedule = p99([first_s - due_s for due_s, _, first_s in rows if first_s is not None], 299)
    lag = p99([sent_s - due_s for due_s, sent_s, _ in rows if sent_s is not None], 1)
    is_bad = lag is None or lag > _BOUND_S or any(sent_s is None for _, sent_s, _ in rows)
    return send, schedule, lag, "INVALID" if is_bad else "valid"


_RUN_CASES = [Case(_judge_run(rows), (rows,), why=why) for rows, why in _RUNS]


def check_3(judge_run) -> Outcome:
    """What the run hid, and whether its client can be trusted."""
    expect_function(judge_run, "judge_run")
    function = _Rows(judge_run, size=4)
    for case in _RUN_CASES:
        got = function(*case.args)
        if isinstance(got, tuple) and not (isinstance(got[3], str) and got[3] in ("valid", "INVALID")):
            fail(f"the verdict is {shorten(repr(got[3]), 40)}: write valid or INVALID.")
    expect_cases(function, _RUN_CASES)
    return passed("the numbers show the stall again, and a run with a late client says so itself.")


def _run(rate_per_s, *kinds, window_s=16.0):
    """A run from (how many, TTFT, TPOT), or (how many, None) for failures."""
    requests = [
        None if kind[1] is None else {"ttft_s": kind[1], "tpot_s": kind[2]} for kind in kinds for _ in range(kind[0])
    ]
    random.Random(7).shuffle(requests)
    return {"rate_per_s": rate_per_s, "window_s": window_s, "requests": requests}


_SLO = {"ttft_s": 0.5, "tpot_s": 0.125}
_ONLY_TPOT = {"tpot_s": 0.125}
_KNEES = [
    ([_run(4.0, (64, 0.25, 0.0625))], _SLO, {}, "64 requests in 16 s, all good: 4 per second."),
    ([_run(4.0, (96, 0.5, 0.125), (4, 0.25, 0.03125))], _SLO, {}, "a value equal to the limit meets an SLO."),
    ([_run(8.0, (95, 0.25, 0.0625), (5, 0.75, 0.0625))], _SLO, {}, "five in a hundred wait too long: the p99 promise is broken."),
    ([_run(8.0, (60, 0.25, 0.0625), (40, 0.25, 0.25))], _SLO, {},
     "a fast first token does not make up for a slow stream."),
    ([_run(8.0, (80, 0.25, 0.0625), (20, None))], _SLO, {}, "a failed request is not good, but it counts."),
    ([_run(8.0, (50, 0.25, None), (50, 0.25, 0.0625))], _SLO, {}, "a request of one token has no TPOT: its TTFT alone decides."),
    ([_run(8.0, (30, 0.25, None), (30, 0.25, 0.0625), (30, 0.25, 0.25))], _ONLY_TPOT, {},
     "if only TPOT is promised, a request of one token neither meets nor misses it: leave it out."),
    ([_run(8.0, (12, 0.25, None))], _ONLY_TPOT, {},
     "no request can be judged: the fraction is None, and the promise is not kept."),
    ([_run(2.0, (99, 0.25, 0.0625), (1, 0.75, 0.0625))], _SLO, {}, "99 of 100 is 99 %: the promise is kept."),
    ([_run(2.0, (19, 0.25, 0.0625), (1, 0.75, 0.0625))], _SLO, {"share": 0.95},
     "with a promise for 95 %, 19 good requests of 20 are enough."),
    ([_run(8.0, (128, 0.25, 0.0625)), _run(2.0, (32, 0.25, 0.0625)), _run(4.0, (64, 0.25, 0.0625)),
      _run(16.0, (200, 0.25, 0.0625), (56, 0.75, 0.0625)), _run(32.0, (300, 0.25, 0.0625), (212, None))], _SLO, {},
     "the highest rate that keeps the promise is 8, in whatever order the runs are listed."),
    ([_run(2.0, (32, 0.25, 0.0625)), _run(4.0, (48, 0.25, 0.0625), (16, 0.75, 0.0625)), _run(8.0, (128, 0.25, 0.0625))],
     _SLO, {}, "8 holds and 4 does not: a rate counts only if all lower rates hold too. Check that machine."),
    ([_run(2.0, (10, 0.25, 0.0625), (22, 0.75, 0.0625)), _run(4.0, (20, 0.75, 0.25))], _SLO, {},
     "not even the lowest rate keeps the promise: the knee is None."),
    ([_run(4.0, (64, 0.25, 0.0625)), _run(8.0, (256, 0.25, 0.0625), window_s=64.0)], _SLO, {},
     "each run has its own window."),
    ([_run(4.0, (40, 0.75, 0.03125), (24, 0.25, 0.0625))], {"ttft_s": 1.0, "tpot_s": 0.03125}, {},
     "a different promise: the first token may take a second, but the stream must be faster."),
]  # fmt: skip


def _find_knee(runs, slo, share=0.99):
    """Return the answer to 33.4 by counting misses; the solution collects marks instead."""
    goods, kept = [], []
    for run in runs:
        judged = [r for r in run["requests"] if r is None or any(r[name] is not None for name in slo)]
        misses = sum(r is None or any((r[name] or 0.0) > limit for name, limit in slo.items()) for r in judged)
        fraction = (len(judged) - misses) / len(judged) if judged else None
        goods.append(((len(judged) - misses) / run["window_s"], fraction))
        kept.append((run["rate_per_s"], fraction is not None and fraction >= share))
    knee = None
    for rate_per_s, is_kept in sorted(kept):
        if not is_kept:
            break
        knee = rate_per_s
    return goods, knee


_KNEE_CASES = [Case(_find_knee(runs, slo, **more), (runs, slo), more, why=why) for runs, slo, more, why in _KNEES]


def _draw_knee_cases(num: int) -> list[Case]:
    """Draw runs with mixed requests; the answer comes from counting misses."""
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
        cases.append(
            Case(_find_knee(runs, slo), (runs, slo), why="good means every SLO is met; failed ones are not good.")
        )
    return cases


class _Goods(LearnerFunction):
    """Turns an answer into (list of pairs, knee), whether it uses lists or tuples."""

    def __call__(self, *args, **kwargs):
        got = LearnerFunction.__call__(self, *args, **kwargs)
        if got is None:
            return None
        is_two = isinstance(got, tuple | list) and len(got) == 2 and isinstance(got[0], tuple | list)
        if not is_two or not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in got[0]):
            fail(f"{self.call}: the answer is ([(goodput, good fraction) of each run], knee); got "
                 f"{shorten(repr(got), 60)}.")  # fmt: skip
        return [tuple(pair) for pair in got[0]], got[1]


def check_4(find_knee) -> Outcome:
    """Goodput, good fraction and the knee."""
    expect_function(find_knee, "find_knee")
    function = _Goods(find_knee.function, find_knee.exercise, find_knee.reference_name)
    expect_cases(function, [*_KNEE_CASES, *_draw_knee_cases(10)])
    return passed("a promise is kept per request, failed ones included: that is what you can sell.")


# 33.5: rounds of {setting: (p95 in seconds, verdict of the client)}.
_WORDS = ("faster", "slower", "cannot tell")


def _make_rounds(default, bad=(), **others):
    """Rounds of (p95 in seconds, verdict); `bad` lists (round, name) of the runs whose client was INVALID."""
    columns = {"default": default, **others}
    return [
        {name: (values[k], "INVALID" if (k, name) in bad else "valid") for name, values in columns.items()}
        for k in range(len(default))
    ]


_STEADY, _DRIFT = [0.40, 0.42, 0.41, 0.39], [0.20, 0.30, 0.45, 0.70]
_NOISE = [0.41, 0.41, 0.40, 0.40]
_MADE_ROUNDS = (
    (_make_rounds(_STEADY, cache=[0.20, 0.22, 0.21, 0.20], seqs=[0.80, 0.83, 0.81, 0.80], control=_NOISE),
     "`cache` halves the p95, `seqs` doubles it."),
    (_make_rounds(_DRIFT, chunk=[0.18, 0.27, 0.41, 0.62], control=[0.21, 0.29, 0.46, 0.69]),
     "the machine slows down from round to round, but within each round the setting gains a tenth."),
    (_make_rounds(_STEADY, chunk=[0.30, 0.55, 0.36, 0.34], control=_NOISE),
     "three rounds look better on average, but one says the opposite: you cannot tell."),
    (_make_rounds(_STEADY, cache=[0.30, 0.31, 0.30, 0.29], both=[0.20, 0.21, 0.20, 0.19], control=_NOISE),
     "two settings help, one of them more: choose the larger gain."),
    (_make_rounds(_STEADY, cache=[0.20, 0.22, 0.21, 0.20], control=[0.35, 0.36, 0.36, 0.34]),
     "the control, which changes nothing, came out faster too: something else made the difference."),
    (_make_rounds(_STEADY, cache=[0.20, 0.22, 0.21, 0.20], control=[0.45, 0.47, 0.46, 0.44]),
     "the control came out slower: the runs differ in more than their setting."),
    (_make_rounds(_STEADY, bad=[(2, "cache")], cache=[0.20, 0.22, 3.00, 0.20], control=_NOISE),
     "one round of the setting was INVALID: leave that pair out, and the rest is clear."),
    (_make_rounds([0.2, 0.9, 0.3, 0.41, 0.6], bad=[(1, "default")], cache=[0.15, 0.24, 0.22, 0.32, 0.46],
                  control=[0.21, 0.5, 0.29, 0.42, 0.59]),
     "the INVALID run was the default's: drop this round's pair for every setting, and keep the "
     "other pairs."),
    (_make_rounds(_STEADY, bad=[(0, "cache"), (1, "cache"), (3,
     "cache")], cache=[0.20, 0.22, 0.21, 0.20], control=_NOISE),
     "one valid pair is left: a single pair has no interval, so you cannot tell."),
    (_make_rounds(_STEADY, bad=[(2, "cache")], cache=[0.10, 0.11, 3.00, 0.10], both=[0.30, 0.31, 0.30, 0.29],
                  control=_NOISE),
     "both settings help, `cache` far more: its INVALID run says nothing about its gain."),
    (_make_rounds(_STEADY[:3], bad=[(0, "seqs")], seqs=[0.3, 0.30, 0.29], control=[0.41, 0.41, 0.41],
                  cache=[0.21, 0.22, 0.21]),
     "an INVALID run of one setting does not affect the others."),
)  # fmt: skip


def _draw_rounds(num: int):
    """Draw rounds with drift, gains of all sizes and some INVALID runs."""
    draw, made = random.Random(335), []
    for _ in range(num):
        drift = [0.3 * 1.3**k * draw.uniform(0.9, 1.1) for k in range(draw.choice((3, 4, 5, 6)))]
        gains = {"control": 1.0, "a": draw.choice((0.6, 0.9, 1.0)), "b": draw.choice((0.7, 1.0, 1.5))}
        columns = {name: [s * gain * draw.uniform(0.97, 1.03) for s in drift] for name, gain in gains.items()}
        bad = [(draw.randrange(len(drift)), draw.choice(("default", "a", "b"))) for _ in range(draw.randrange(2))]
        made.append(
            (_make_rounds(drift, bad=bad, **columns), "use pairs of valid runs, an interval each.", "drawn rounds")
        )
    return made


def _judge_rounds(rounds):
    """Return (verdicts, best) by the rules of the exercise, from the interval of the logarithms of the paired ratios."""
    verdicts, gains = {}, {}
    for name in rounds[0]:
        if name == "default":
            continue
        pairs = [(r[name][0], r["default"][0]) for r in rounds if r[name][1] == r["default"][1] == "valid"]
        verdicts[name], gains[name] = _judge_pairs(pairs)
    faster = [name for name, word in verdicts.items() if word == "faster"]
    best = max(faster, key=gains.get, default="default")
    return verdicts, best if verdicts["control"] == "cannot tell" else None


def _judge_pairs(pairs):
    """Return (verdict, how many times as fast) of pairs (mine, default) of seconds."""
    if len(pairs) < 2:
        return "cannot tell", 0.0
    logs = [math.log(default_s / mine_s) for mine_s, default_s in pairs]
    interval = estimate_mean_interval(logs)
    verdict = "faster" if interval.low > 1e-9 else "slower" if interval.high < -1e-9 else "cannot tell"
    return verdict, math.exp(statistics.fmean(logs))


def check_5(judge_tuning) -> Outcome:
    """Which setting helped, if the control allows a verdict; made-up rounds, then the learner's own."""
    expect_function(judge_tuning, "judge_tuning")
    made = [(rounds, why, f"made-up rounds {k}") for k, (rounds, why) in enumerate(_MADE_ROUNDS, start=1)]
    made += _draw_rounds(20)
    own = list(load_records(lab="33", name="tuning"))
    if own:
        rounds = [{name: tuple(run) for name, run in one.items()} for one in own[-1].settings["tuning_rounds"]]
        made.append((rounds, "the rules are the same for your own rounds.", f"your record {own[-1].id}"))
    judged = _expect_tuning(judge_tuning, made)
    if not own:
        return passed("right on the made-up rounds; now measure, and check again on your own rounds.")
    verdicts, best = judged[-1]
    said = ", ".join(f"{name} {word}" for name, word in verdicts.items())
    best = "none can be named, because the control differs" if best is None else best
    return passed(f"your record {own[-1].id}: {said}. Best: {best}.")


def _expect_tuning(judge_tuning: LearnerFunction, made) -> list:
    """Fail unless every set of rounds is judged right; `made`: (rounds, why, where it comes from)."""
    answers = []
    for rounds, why, where in made:
        right = _judge_rounds(rounds)
        got = _read(judge_tuning, rounds, where)
        answers.append((rounds, got))
        if got != right:
            said = _name_mistake(judge_tuning, [*answers, *_ask_rest(judge_tuning, made, len(answers))])
            fail(f"{where}: got {shorten(repr(got), 110)}, expected {right!r}: {said or why}")
    if judge_tuning.changed:
        fail(f"{judge_tuning.changed} changes its arguments: work on a copy, the caller still needs them.")
    return [_judge_rounds(rounds) for rounds, _, _ in made]


def _ask_rest(judge_tuning, made, num):
    found = []
    for rounds, _, where in made[num:]:
        try:
            found.append((rounds, _read(judge_tuning, rounds, where)))
        except Exception:
            continue  # the other rounds still tell the mistake
    return found


def _name_mistake(judge_tuning, answers) -> str:
    """Explain the verdicts first; explain the best setting only if all verdicts are right."""
    rights = [_judge_rounds(rounds) for rounds, _ in answers]
    is_verdict = any(right[0] != got[0] for right, (_, got) in zip(rights, answers, strict=True))

    def explains(wrong) -> bool:
        made = [wrong(rounds) for rounds, _ in answers]
        if not is_verdict:
            return all(mine == got for mine, (_, got) in zip(made, answers, strict=True))
        is_same = all(mine[0] == got[0] for mine, (_, got) in zip(made, answers, strict=True))
        return is_same and any(mine[0] != right[0] for mine, right in zip(made, rights, strict=True))

    return find_mistake(judge_tuning.exercise, judge_tuning.reference_name, explains)


def _read(judge_tuning, rounds, where):
    """Call the function and return (verdicts, best), or fail about their form."""
    got = judge_tuning(rounds)
    expect_answer(got, judge_tuning.call)
    if not isinstance(got, tuple | list) or len(got) != 2 or not isinstance(got[0], dict):
        fail(f"{where}: the answer is (verdicts, best), verdicts a dict; got {shorten(repr(got), 60)}.")
    verdicts, best = {name: tidy(word) for name, word in got[0].items()}, got[1]
    if "default" in verdicts:
        fail(f"{where}: `default` is what the others are compared with; it has no verdict of its own.")
    names = set(rounds[0]) - {"default"}
    if set(verdicts) != names:
        fail(f"{where}: expected verdicts for {', '.join(sorted(names))}, got {', '.join(map(str, verdicts))}.")
    unknown = [word for word in verdicts.values() if not (isinstance(word, str) and word in _WORDS)]
    if unknown:
        fail(f"{where}: {shorten(repr(unknown[0]), 40)} is not a verdict: write {', '.join(_WORDS)}.")
    best = tidy(best)
    if isinstance(best, str) and best == "control":
        fail(f"{where}: the control is not a candidate: it exposes a benchmark that sees differences everywhere.")
    if best is not None and not (isinstance(best, str) and best in rounds[0]):
        fail(f'{where}: the best setting is {shorten(repr(best), 40)}: give its name, "default", or None.')
    return verdicts, best
