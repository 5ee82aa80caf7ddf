"""The checks of lab 01: a stopwatch in virtual time, an interval by its exact coverage, a comparison, three lies."""

import math
import statistics
from typing import NoReturn

import numpy as np
from lab01.intervals import expect_interval
from lab01.listings import LIES, SCRIPTS
from lab01.stopwatch import LAUNCH_S, WAIT_S, find_mistake, run_world

from labkit import stats
from labkit.checks.cases import Case, expect_cases, expect_function, expect_no_generator, fail, passed
from labkit.checks.learner import LearnerFunction, shorten, tidy
from labkit.checks.tensors import probe_frames
from labkit.units import is_near, is_number
from labkit.views import Outcome

# 01.1: world, warm-up calls, samples.
_WORLDS = (
    ({"works_s": (5.0, 3.0, 1.0, 8.0, 4.0, 2.0), "counts": {"num_warmup": 2, "num_samples": 4}}, 2, 4),
    ({"works_s": (2.0, 1.0, 6.0), "left_over_s": 7.0, "counts": {"num_warmup": 0, "num_samples": 3}}, 0, 3),
    ({"works_s": (9.0, 4.0, 3.0, 2.0), "left_over_s": 1.0, "counts": {"num_warmup": 3, "num_samples": 1}}, 3, 1),
    ({"works_s": tuple(range(20, 7, -1)), "left_over_s": 2.0}, 3, 10),  # the defaults
)


def check_1(measure_seconds) -> Outcome:
    """The stopwatch, run on a simulated asynchronous device: each sample is launch + work + one synchronization."""
    expect_function(measure_seconds, "measure_seconds")
    answers = []
    for world, num_warmup, num_samples in _WORLDS:
        got, seen = run_world(measure_seconds, **world)
        got = got.tolist() if hasattr(got, "tolist") else got
        _expect_calls(seen, num_warmup, num_samples)
        if isinstance(got, int | float) and not isinstance(got, bool):
            fail(f"one number came back ({got}): return every sample. A mean or a minimum can be made from them later.")
        if not isinstance(got, tuple | list):
            fail(f"a list of {num_samples} samples is asked for, and this is {shorten(repr(got), 40)}.")
        for k, one in enumerate(got):
            if not is_number(one):
                fail(f"sample {k} is {shorten(repr(one), 40)}, and a number of seconds is asked for.")
        answers.append(list(got))
    expect_no_generator(measure_seconds)
    rights = [[LAUNCH_S + w + WAIT_S for w in world["works_s"][warm:]] for world, warm, _ in _WORLDS]
    if answers == rights:
        return passed("waits for the device on both sides, keeps the warm-up apart and every sample.")
    if sentence := find_mistake(answers, rights, [num_warmup for _, num_warmup, _ in _WORLDS]):
        fail(sentence)
    return _explain_samples(answers, rights)


def _expect_calls(seen, num_warmup, num_samples) -> None:
    asked = num_warmup + num_samples
    if seen["function"] != asked:
        what = "the warm-up is missing" if seen["function"] == num_samples else "count the rounds of your loops"
        were = f"there were {seen['function']}"
        fail(f"{num_warmup} warm-up calls and {num_samples} samples are {asked} calls; {were}: {what}.")
    if not seen["clock"]:
        fail("`clock` was never read: take the time from this argument, not from the time module.")
    if not seen["synchronize"]:
        fail("`synchronize` was never called: without it the device is still at work when the clock is read.")


def _explain_samples(answers, rights) -> NoReturn:
    for got, right, (_, num_warmup, num_samples) in zip(answers, rights, _WORLDS, strict=True):
        if len(got) != len(right):
            fail(f"{num_samples} samples are asked for (after {num_warmup} warm-up calls), and {len(got)} came back.")
        for k, (a, b) in enumerate(zip(got, right, strict=True)):
            if a != b:
                fail(
                    f"sample {k} is {a!r}, and {b} s is right: {LAUNCH_S} s for the launch, {b - LAUNCH_S - WAIT_S} s "
                    f"of work and {WAIT_S} s for one synchronize between the two readings of the clock."
                )
    raise AssertionError("some answer differs")


# 01.2. n, percentile, confidence. The first n that has a 95 % interval: 6 for p50, 59 for p95, 299 for p99.
# An easy size and another confidence come early, so that those who are wrong there are told what is wrong.
# 0.49, not 0.5: two samples hold the median with exactly 50 %, and rounding would decide.
_SIZES = (
    (6, 50, 0.95), (5, 50, 0.95), (100, 50, 0.95), (10, 50, 0.9), (59, 95, 0.95), (58, 95, 0.95), (50, 99, 0.95),
    (299, 99, 0.95), (298, 99, 0.95), (2, 50, 0.49), (1, 50, 0.49), (101, 50, 0.99), (80, 90, 0.8), (40, 25, 0.9),
)  # fmt: skip


def check_2(percentile_interval) -> Outcome:
    """A percentile and its interval; coverage is recomputed, and any of the closest pairs of ranks is right."""
    expect_function(percentile_interval, "percentile_interval")
    _refuse(percentile_interval, ("summarize", "estimate_percentile_interval", "_choose_ranks"), [3.0, 1.0, 2.0], 50)
    draw = np.random.default_rng(2)
    for n, q, confidence in _SIZES:
        samples = [round(float(x), 6) for x in draw.exponential(0.2, size=n) + np.arange(n) * 1e-5]
        options = {} if confidence == 0.95 else {"confidence": confidence}
        got = percentile_interval(samples, q, **options)
        is_always_none = got is None and percentile_interval([float(k) for k in range(100)], 50) is None
        where = f"n = {n}, p{q}, confidence {confidence}"
        expect_interval(got, samples, q, confidence, where=where, is_always_none=is_always_none)
    if percentile_interval.changed:
        fail("the samples were sorted in place: work on a copy, their order in time still matters.")
    return passed("needs no bell curve: 6 samples for p50, 59 for p95, 299 for p99, and below that it says nothing.")


_VERDICTS = ("faster", "slower", "cannot tell")
# Student's t for two-sided 95 %, as printed in tables: degrees of freedom -> t. The solution uses labkit's own.
_T_95 = {1: 12.7062047361747, 2: 4.30265272974946, 4: 2.77644510519779, 7: 2.36462425159278, 9: 2.2621571627982}


def _compare_by_table(a_s, b_s):
    """Return (ratio, low, high, verdict) for pairs of times; only for the numbers of pairs in the table."""
    logs = [math.log(b / a) for a, b in zip(a_s, b_s, strict=True)]
    mean, half = statistics.fmean(logs), _T_95[len(logs) - 1] * statistics.stdev(logs) / math.sqrt(len(logs))
    # 1e-12: the rounding of a log of two equal times must not become a verdict.
    verdict = "faster" if mean - half > 1e-12 else "slower" if mean + half < -1e-12 else "cannot tell"
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half), verdict


def _make_pairs(draw, *, n, shift=1.0, cv=0.01, drift=0.0):
    """Draw n interleaved pairs of times: A needs 0.1 s, B `shift` times as long, both `drift` slower at the end."""
    slow = 1 + drift * np.arange(n) / max(1, n - 1)
    a_s, b_s = (base * slow * np.exp(draw.normal(0, cv, n)) for base in (0.1, 0.1 * shift))
    return a_s.tolist(), b_s.tolist()


def _list_pairs():
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
    pairs += [(*_make_pairs(draw, n=n, shift=s, drift=0.6), "") for n in (8, 10) for s in (1.0, 1.01, 1.05, 0.9)]
    return pairs


def _expect_row(got, call: str) -> None:
    """Fail unless a row of four is three numbers and one of the three words; other things are judged elsewhere."""
    if not isinstance(got, tuple | list) or len(got) != 4:
        return
    if got[1] != got[1] or got[2] != got[2]:
        fail(f"{call}: an end of the interval is NaN. Without any spread the interval is the ratio itself: no width.")
    if wrong := [one for one in got[:3] if not is_number(one)]:
        fail(f"{call}: ratio and both ends are numbers, and {shorten(repr(wrong[0]), 40)} is none.")
    if not isinstance(got[3], str) or got[3] not in _VERDICTS:
        fail(f"{call}: the verdict is {shorten(repr(got[3]), 40)}: write one of {', '.join(map(repr, _VERDICTS))}.")


def check_3(compare_pairs) -> Outcome:
    """The paired comparison: cases by a table of t, then how often it cries wolf and what it finds, on seeded data."""
    expect_function(compare_pairs, "compare_pairs")
    _refuse(compare_pairs, ("compare",), [1.0, 2.0, 4.0], [2.0, 3.0, 5.0])
    cases = [Case(_compare_by_table(a, b), (a, b), why=why) for a, b, why in _list_pairs()]
    for case in cases:
        _expect_row(compare_pairs(*case.args), compare_pairs.call)
    expect_cases(compare_pairs, cases, relative=1e-4)
    draw, found = np.random.default_rng(31), {}
    for name, options in (("same", {"n": 10}), ("shifted", {"n": 5, "shift": 1.05}),
                          ("drifting", {"n": 10, "shift": 1.05, "drift": 1.0})):  # fmt: skip
        verdicts = [compare_pairs(*_make_pairs(draw, **options))[3] for _ in range(200)]
        found[name] = sum(v == "faster" for v in verdicts) + (name == "same") * verdicts.count("slower")
    if found["same"] > 24 or found["shifted"] < 190 or found["drifting"] < 190:
        fail(
            f"of 200 comparisons of a thing with itself {found['same']} found a difference (10 are expected), and a "
            f"gain of 5 % was found in {found['shifted']} of 200, under drift in {found['drifting']} of 200."
        )
    return passed(
        f"200 comparisons of a thing with itself: {found['same']} false alarms (10 expected). A gain of 5 % was found "
        f"in {found['shifted']} of 200, and under a drift of 100 % in {found['drifting']} of 200.",
        {"num_false_alarms": found["same"], "num_found": found["shifted"], "num_found_drifting": found["drifting"]},
    )


def _refuse(learner: LearnerFunction, names: tuple[str, ...], *args) -> None:
    """Fail when a call has the work done by one of these functions of labkit.stats, however it gets hold of it."""
    stats._choose_ranks.cache_clear()  # a kept result runs no line that could be seen
    frames = probe_frames(learner.function, *args)
    if used := [name for name in names if f"labkit.stats.{name}" in frames]:
        fail(f"`{used[0]}` of labkit is the answer itself: write it by hand once, then you may trust the library.")


# 01.4: script -> line, lie, and the value that the script should have printed.
_LOGS = {name: script.log for name, script in SCRIPTS.items()}
_TRUTH = {
    "a": (7, "no synchronization", (_LOGS["a"]["done_s"][-1] - _LOGS["a"]["start_s"]) / 5),
    "b": (8, "warm-up counted", 64 * 8 / math.fsum(_LOGS["b"]["times_s"][2:])),
    "c": (8, "requested tokens counted", sum(_LOGS["c"]["num_tokens"]) / _LOGS["c"]["seconds"]),
}
_LINES = {
    ("a", 3): "line 3 is right: the queue is empty when the clock starts.",
    ("a", 4): "line 4 is right: the device is idle when the clock starts.",
    ("a", 8): "line 8 is true but late: name the line where the false value is read.",
    ("a", 9): "line 9 divides correctly: one of the two times that it uses is false already.",
    ("b", 2): "ten calls, of which two warm up, are no lie: name the line where the false value is computed.",
    ("b", 7): "each of these samples is true, and keeping them is right: what is made of them?",
    ("b", 9): "line 9 divides correctly: mean_s is false already.",
    ("c", 2): "to ask for 128 tokens is no lie: where are they counted?",
    ("c", 5): "line 5 asks for at most 128 tokens; an answer may end earlier. Where are they counted?",
    ("c", 9): "line 9 divides correctly: num_tokens is false already.",
}
_VALUES = {
    "a": (
        (statistics.fmean(_LOGS["a"]["done_s"]) - statistics.fmean(_LOGS["a"]["returned_s"]),
         "the calls wait in the queue, so launch to end counts the same seconds again and again. Take the whole run."),
        (statistics.fmean(_LOGS["a"]["done_s"]) - _LOGS["a"]["start_s"],
         "that averages the ends of the calls: take the whole run, from start_s to the end of the last call."),
        (_LOGS["a"]["done_s"][-1] - _LOGS["a"]["start_s"], "those are the seconds of all five calls: divide by 5."),
        ((_LOGS["a"]["done_s"][-1] - _LOGS["a"]["done_s"][0]) / 4, "that leaves the first call out: start at start_s."),
        (5 / (_LOGS["a"]["done_s"][-1] - _LOGS["a"]["start_s"]), "those are calls per second: it prints s per call."),
    ),
    "b": (
        (64 / statistics.fmean(_LOGS["b"]["times_s"][1:]), "only one call was left out: 0 and 1 are the warm-up."),
        (64 / statistics.median(_LOGS["b"]["times_s"][2:]),
         "that uses the median: change only the lie, the mean stays."),
        (64 / min(_LOGS["b"]["times_s"]), "that is the best run: change the lie only, keep the mean."),
        (statistics.fmean(_LOGS["b"]["times_s"][2:]), "those are seconds per call: the script prints tok/s."),
        (640 / math.fsum(_LOGS["b"]["times_s"][2:]), "the time of 8 calls, but the tokens of 10: leave both out."),
    ),
    "c": (
        (sum(_LOGS["c"]["num_tokens"]), "those are tokens: divide by the seconds."),
        (statistics.fmean(_LOGS["c"]["num_tokens"]), "those are the tokens of one answer: take all over the seconds."),
        (_LOGS["c"]["seconds"] / sum(_LOGS["c"]["num_tokens"]), "that is seconds per token: the script prints tok/s."),
    ),
}  # fmt: skip


def scene_4() -> dict:
    """The scripts, which the lab loads before the exercise."""
    return {"SCRIPTS": SCRIPTS}


def check_4(answer) -> Outcome:
    """Three lies: where, which, and what the script should have printed, recomputed from its log."""
    keys = ("line", "lie", "fixed")
    shape = f'answer["a"], ["b"] and ["c"] are dicts with the keys {", ".join(keys)}'
    if not isinstance(answer, dict) or set(answer) != set(SCRIPTS):
        fail(f"{shape}, and this is {shorten(repr(answer), 60)}.")
    for name, (line, lie, fixed) in _TRUTH.items():
        mine = answer[name]
        if not isinstance(mine, dict) or set(mine) != set(keys):
            fail(f"{shape}, and the one of script {name} is {shorten(repr(mine), 60)}.")
        if missing := [key for key in keys if mine[key] is None]:
            fail(f"script {name}: {', '.join(missing)} is not answered yet.")
        if not isinstance(mine["lie"], str) or mine["lie"] not in LIES:
            said = shorten(repr(mine["lie"]), 60)
            fail(f"script {name}: {said} is no lie of the list. Choose one of: {'; '.join(LIES)}.")
        if mine["lie"] != lie:
            fail(f"script {name}: not {mine['lie']!r} ({LIES[mine['lie']]}). Compare what it printed with its log.")
        if not is_number(got := tidy(mine["line"])):
            fail(f"script {name}: line is {shorten(repr(mine['line']), 40)}, and the number of one line is asked for.")
        if got != line:
            fail(f"script {name}: {_LINES.get((name, got), f'the lie is not in line {got}: find where it happens.')}")
        _expect_value(name, tidy(mine["fixed"]), fixed)
    return passed("three believable numbers, 30 times too fast, 33 % too low and 60 % too high: only the lines told.")


def _expect_value(name: str, value, right: float) -> None:
    unit, printed = SCRIPTS[name].unit, float(SCRIPTS[name].printed)
    if not is_number(value):
        fail(f"script {name}: fixed is {shorten(repr(value), 40)}, and a number in {unit} is asked for.")
    if is_near(value, right, tolerance=2e-3):
        return
    if is_near(value, printed, tolerance=2e-3):
        fail(f"script {name}: {value} {unit} is what it printed: compute from the log what it should have printed.")
    if value in [float(f"{right:.{digits}g}") for digits in (1, 2)]:
        fail(f"script {name}: {value} {unit} is the right number with too few digits: give three.")
    known = next((sentence for wrong, sentence in _VALUES[name] if is_near(value, wrong, tolerance=2e-3)), "")
    known = known or "change only the lie, then compute the last line from the log."
    fail(f"script {name}: not {value} {unit}: {known}")
