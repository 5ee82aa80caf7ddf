"""The checks of lab 01: a stopwatch in virtual time, an interval judged by its exact coverage, a comparison, three lies."""

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
            fail(f"your function returned one number ({got}): return every sample, a mean can be computed later.")
        if not isinstance(got, tuple | list):
            fail(f"expected a list of {num_samples} samples, got {shorten(repr(got), 40)}.")
        for k, one in enumerate(got):
            if not is_number(one):
                fail(f"sample {k} is {shorten(repr(one), 40)}: expected a number of seconds.")
        answers.append(list(got))
    expect_no_generator(measure_seconds)
    rights = [[LAUNCH_S + w + WAIT_S for w in world["works_s"][warm:]] for world, warm, _ in _WORLDS]
    if answers == rights:
        return passed("it waits for the device on both sides, leaves out the warm-up and keeps every sample.")
    if sentence := find_mistake(answers, rights, [num_warmup for _, num_warmup, _ in _WORLDS]):
        fail(sentence)
    return _explain_samples(answers, rights)


def _expect_calls(seen, num_warmup, num_samples) -> None:
    asked = num_warmup + num_samples
    if seen["function"] != asked:
        what = "the warm-up is missing" if seen["function"] == num_samples else "count the iterations of your loops"
        were = f"your function made {seen['function']}"
        fail(f"{num_warmup} warm-up calls and {num_samples} samples make {asked} calls, but {were}: {what}.")
    if not seen["clock"]:
        fail("`clock` was never called: read the time from this argument, not from the time module.")
    if not seen["synchronize"]:
        fail("`synchronize` was never called: without it the device is still working when you read the clock.")


def _explain_samples(answers, rights) -> NoReturn:
    for got, right, (_, num_warmup, num_samples) in zip(answers, rights, _WORLDS, strict=True):
        if len(got) != len(right):
            fail(f"expected {num_samples} samples (after {num_warmup} warm-up calls), got {len(got)}.")
        for k, (a, b) in enumerate(zip(got, right, strict=True)):
            if a != b:
                fail(
                    f"sample {k} is {a!r}, expected {b} s: {LAUNCH_S} s for the launch, {b - LAUNCH_S - WAIT_S} s "
                    f"of work and {WAIT_S} s for one synchronize between the two readings of the clock."
                )
    raise AssertionError("some answer differs")


# 01.2. n, percentile, confidence. The smallest n that has a 95 % interval: 6 for p50, 59 for p95, 299 for p99.
# An easy size and another confidence come early, so that a mistake there gets its own sentence.
# 0.49, not 0.5: two samples contain the median with exactly 50 %, so rounding would decide.
_SIZES = (
    (6, 50, 0.95), (5, 50, 0.95), (100, 50, 0.95), (10, 50, 0.9), (59, 95, 0.95), (58, 95, 0.95), (50, 99, 0.95),
    (299, 99, 0.95), (298, 99, 0.95), (2, 50, 0.49), (1, 50, 0.49), (101, 50, 0.99), (80, 90, 0.8), (40, 25, 0.9),
)  # fmt: skip


def check_2(percentile_interval) -> Outcome:
    """A percentile and its interval; the coverage is recomputed, and any of the closest pairs of ranks is right."""
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
        fail("you sorted the samples in place: work on a copy, because their order in time still matters.")
    return passed("it needs no bell curve: 6 samples for p50, 59 for p95, 299 for p99; with fewer it returns None.")


_VERDICTS = ("faster", "slower", "cannot tell")
# Student's t for two-sided 95 %, as printed in tables: degrees of freedom -> t. The solution uses labkit's function.
_T_95 = {1: 12.7062047361747, 2: 4.30265272974946, 4: 2.77644510519779, 7: 2.36462425159278, 9: 2.2621571627982}


def _compare_by_table(a_s, b_s):
    """Return (ratio, low, high, verdict) for pairs of times; works only for the numbers of pairs in the table."""
    logs = [math.log(b / a) for a, b in zip(a_s, b_s, strict=True)]
    mean, half = statistics.fmean(logs), _T_95[len(logs) - 1] * statistics.stdev(logs) / math.sqrt(len(logs))
    # 1e-12: the rounding error in the log of two equal times must not decide the verdict.
    verdict = "faster" if mean - half > 1e-12 else "slower" if mean + half < -1e-12 else "cannot tell"
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half), verdict


def _make_pairs(draw, *, n, shift=1.0, cv=0.01, drift=0.0):
    """Draw n interleaved pairs of times: A takes 0.1 s, B `shift` times as long; both are slower by `drift` at the end."""
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
        ([2.0, 2.0, 2.0], [4.0, 4.0, 4.0], "A takes half the time in each pair, so it is twice as fast."),
        ([4.0, 4.0], [2.0, 2.0], "A takes twice the time in each pair, so it is half as fast."),
        ([0.5, 0.7, 0.6], [0.5, 0.7, 0.6], "no difference at all: an interval that ends at 1 still contains 1."),
        (drifting, moved, "a gain in each pair, under drift."),
        (moved, drifting, "a loss in each pair, under drift."),
        ([1.0, 1.0], [math.exp(0.1), math.exp(0.3)], "two pairs: t is 12.7, and the interval contains 1."),
    ]
    pairs += [(*_make_pairs(draw, n=n, shift=s, drift=0.6), "") for n in (8, 10) for s in (1.0, 1.01, 1.05, 0.9)]
    return pairs


def _expect_row(got, call: str) -> None:
    """Fail if a sequence of four is not three numbers and one of the three verdicts; anything else is judged elsewhere."""
    if not isinstance(got, tuple | list) or len(got) != 4:
        return
    if got[1] != got[1] or got[2] != got[2]:
        fail(f"{call}: an end of the interval is NaN. Without any spread, both ends of the interval equal the ratio.")
    if wrong := [one for one in got[:3] if not is_number(one)]:
        fail(f"{call}: the ratio and both ends must be numbers, got {shorten(repr(wrong[0]), 40)}.")
    if not isinstance(got[3], str) or got[3] not in _VERDICTS:
        fail(f"{call}: the verdict is {shorten(repr(got[3]), 40)}: write one of {', '.join(map(repr, _VERDICTS))}.")


def check_3(compare_pairs) -> Outcome:
    """The paired comparison: cases from a table of t, then false alarms and detected gains on seeded data."""
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
            f"of 200 comparisons of something with itself, {found['same']} found a difference (10 expected), and a "
            f"gain of 5 % was found in {found['shifted']} of 200, and under drift in {found['drifting']} of 200."
        )
    return passed(
        f"200 comparisons of something with itself: {found['same']} false alarms (10 expected). A gain of 5 % was found "
        f"in {found['shifted']} of 200, and under a drift of 100 % in {found['drifting']} of 200.",
        {"num_false_alarms": found["same"], "num_found": found["shifted"], "num_found_drifting": found["drifting"]},
    )


def _refuse(learner: LearnerFunction, names: tuple[str, ...], *args) -> None:
    """Fail if a call uses one of these functions of labkit.stats, however it gets hold of it."""
    stats._choose_ranks.cache_clear()  # a cached result would run no line that we can see
    frames = probe_frames(learner.function, *args)
    if used := [name for name in names if f"labkit.stats.{name}" in frames]:
        fail(f"labkit's `{used[0]}` is the answer itself: write it by hand once, then you can trust the library.")


# 01.4: script -> line, lie, and the value that the script should have printed.
_LOGS = {name: script.log for name, script in SCRIPTS.items()}
_TRUTH = {
    "a": (7, "no synchronization", (_LOGS["a"]["done_s"][-1] - _LOGS["a"]["start_s"]) / 5),
    "b": (8, "warm-up counted", 64 * 8 / math.fsum(_LOGS["b"]["times_s"][2:])),
    "c": (8, "requested tokens counted", sum(_LOGS["c"]["num_tokens"]) / _LOGS["c"]["seconds"]),
}
_LINES = {
    ("a", 3): "line 3 is correct: the queue is empty when the clock starts.",
    ("a", 4): "line 4 is correct: the device is idle when the clock starts.",
    ("a", 8): "line 8 waits, but too late: name the line where the false value is read.",
    ("a", 9): "line 9 divides correctly: one of the two times that it uses is already false.",
    ("b", 2): "ten calls, two of them warm-up, are not a lie: name the line where the false value is computed.",
    ("b", 7): "each of these samples is correct, and so is keeping them: where are they used?",
    ("b", 9): "line 9 divides correctly: mean_s is already false.",
    ("c", 2): "asking for 128 tokens is not a lie: where are they counted?",
    ("c", 5): "line 5 asks for at most 128 tokens, and an answer may end earlier. Where are the tokens counted?",
    ("c", 9): "line 9 divides correctly: num_tokens is already false.",
}
_VALUES = {
    "a": (
        (statistics.fmean(_LOGS["a"]["done_s"]) - statistics.fmean(_LOGS["a"]["returned_s"]),
         "the calls wait in the queue, so launch to end counts the same seconds many times. Use the whole run."),
        (statistics.fmean(_LOGS["a"]["done_s"]) - _LOGS["a"]["start_s"],
         "that averages the ends of the calls: use the whole run, from start_s to the end of the last call."),
        (_LOGS["a"]["done_s"][-1] - _LOGS["a"]["start_s"], "those are the seconds of all five calls: divide by 5."),
        ((_LOGS["a"]["done_s"][-1] - _LOGS["a"]["done_s"][0]) / 4, "that leaves out the first call: begin at start_s."),
        (5 / (_LOGS["a"]["done_s"][-1] - _LOGS["a"]["start_s"]), "those are calls per second: the script prints s per call."),
    ),
    "b": (
        (64 / statistics.fmean(_LOGS["b"]["times_s"][1:]), "you left out only one call: calls 0 and 1 are the warm-up."),
        (64 / statistics.median(_LOGS["b"]["times_s"][2:]),
         "that uses the median: fix only the lie and keep the mean."),
        (64 / min(_LOGS["b"]["times_s"]), "that is the best run: fix only the lie and keep the mean."),
        (statistics.fmean(_LOGS["b"]["times_s"][2:]), "those are seconds per call: the script prints tok/s."),
        (640 / math.fsum(_LOGS["b"]["times_s"][2:]), "that is the time of 8 calls but the tokens of 10: leave out the warm-up in both."),
    ),
    "c": (
        (sum(_LOGS["c"]["num_tokens"]), "that is the number of tokens: divide by the seconds."),
        (statistics.fmean(_LOGS["c"]["num_tokens"]), "that is the tokens of one answer: divide all tokens by the seconds."),
        (_LOGS["c"]["seconds"] / sum(_LOGS["c"]["num_tokens"]), "that is seconds per token: the script prints tok/s."),
    ),
}  # fmt: skip


def scene_4() -> dict:
    """The scripts that the lab loads before the exercise."""
    return {"SCRIPTS": SCRIPTS}


def check_4(answer) -> Outcome:
    """Three lies: which line, which lie, and what the script should have printed, recomputed from its log."""
    keys = ("line", "lie", "fixed")
    shape = f'answer["a"], ["b"] and ["c"] are dicts with the keys {", ".join(keys)}'
    if not isinstance(answer, dict) or set(answer) != set(SCRIPTS):
        fail(f"{shape}; got {shorten(repr(answer), 60)}.")
    for name, (line, lie, fixed) in _TRUTH.items():
        mine = answer[name]
        if not isinstance(mine, dict) or set(mine) != set(keys):
            fail(f"{shape}; for script {name} got {shorten(repr(mine), 60)}.")
        if missing := [key for key in keys if mine[key] is None]:
            fail(f"script {name}: you have not answered {', '.join(missing)} yet.")
        if not isinstance(mine["lie"], str) or mine["lie"] not in LIES:
            said = shorten(repr(mine["lie"]), 60)
            fail(f"script {name}: {said} is not in the list of lies. Choose one of: {'; '.join(LIES)}.")
        if mine["lie"] != lie:
            fail(f"script {name}: not {mine['lie']!r} ({LIES[mine['lie']]}). Compare the output with the log.")
        if not is_number(got := tidy(mine["line"])):
            fail(f"script {name}: line is {shorten(repr(mine['line']), 40)}: give the number of one line.")
        if got != line:
            fail(f"script {name}: {_LINES.get((name, got), f'the lie is not in line {got}: find where it happens.')}")
        _expect_value(name, tidy(mine["fixed"]), fixed)
    return passed(
        "three believable numbers, 30 times too fast, 33 % too low and 60 % too high: only the code shows it."
    )


def _expect_value(name: str, value, right: float) -> None:
    unit, printed = SCRIPTS[name].unit, float(SCRIPTS[name].printed)
    if not is_number(value):
        fail(f"script {name}: fixed is {shorten(repr(value), 40)}: give a number in {unit}.")
    if is_near(value, right, tolerance=2e-3):
        return
    if is_near(value, printed, tolerance=2e-3):
        fail(f"script {name}: {value} {unit} is what the script printed: compute the right value from the log.")
    if value in [float(f"{right:.{digits}g}") for digits in (1, 2)]:
        fail(f"script {name}: {value} {unit} is the right number with too few digits: give at least three.")
    known = next((sentence for wrong, sentence in _VALUES[name] if is_near(value, wrong, tolerance=2e-3)), "")
    known = known or "fix only the lie, then compute the last line from the log."
    fail(f"script {name}: not {value} {unit}: {known}")
