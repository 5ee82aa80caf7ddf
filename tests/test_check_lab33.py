"""Lab 33's checks: the solution passes, the stub is "not attempted", and each named mistake has its own sentence."""

import random
import statistics

import numpy as np
import pytest
import scipy.stats
from check_bench import UNTOUCHED, Bench, expect_failure, expect_pass

from labkit import stats
from labkit.checks import _tuning, lab33
from labkit.checks._goodput import KNEE_CASES, KNEE_MISTAKES
from labkit.checks._omission import RUN_CASES, RUN_MISTAKES
from labkit.results import save_record

FUNCTIONS = {"33.1": "read_request", "33.2": "draw_schedule", "33.3": "judge_run", "33.4": "find_knee",
             "33.5": "judge_tuning"}  # fmt: skip
BENCH = Bench(lab33, FUNCTIONS, {"stats": stats, "statistics": statistics, "np": np, "random": random})
judge, judge_source, solve = BENCH.judge, BENCH.judge_source, BENCH.solve


@pytest.mark.parametrize("exercise", FUNCTIONS)
def test_the_reference_solution_passes(exercise):
    expect_pass(judge(exercise, solve(exercise)))


@pytest.mark.parametrize("body", UNTOUCHED)
@pytest.mark.parametrize("exercise", FUNCTIONS)
def test_an_untouched_stub_is_not_attempted(exercise, body):
    assert BENCH.judge_stub(exercise, body).status == "not attempted"


@pytest.mark.parametrize("exercise", FUNCTIONS)
def test_a_result_instead_of_the_function_is_told_so(exercise):
    expect_failure(judge(exercise, [1.0]), "without brackets")


# 33.1

READ = """
def f(scheduled_s, sent_s, events, num_tokens):
    def has(delta):
        return {has}
    t = [at for at, delta in events if has(delta)]
    n = num_tokens
    if not t:
        return {none}
    return {ttft}, {scheduled}, {tpot}, {gaps}
"""
RIGHT_READ = {
    "has": "delta.get('content') or delta.get('reasoning_content') or delta.get('tool_calls')",
    "none": "None, None, None, []",
    "ttft": "t[0] - sent_s",
    "scheduled": "t[0] - scheduled_s",
    "tpot": "(t[-1] - t[0]) / (n - 1) if n > 1 else None",
    "gaps": "[b - a for a, b in zip(t, t[1:])]",
}
WRONG_READS = [
    ({"has": "True"}, "a delta with only a role, or an empty one"),
    ({"has": "delta.get('role') or " + RIGHT_READ["has"]}, "a delta with only a role is taken"),
    ({"has": "'content' in delta or 'reasoning_content' in delta or 'tool_calls' in delta"}, "an empty text is taken"),
    ({"has": "delta.get('content')"}, "reasoning and tool calls are left out"),
    ({"has": "delta.get('content') or delta.get('tool_calls')"}, "reasoning is left out"),
    ({"has": "delta.get('content') or delta.get('reasoning_content')"}, "tool calls are left out"),
    ({"has": "(delta.get('content') or '').strip() or delta.get('reasoning_content') or delta.get('tool_calls')"},
     "a text of white space"),
    ({"scheduled": "t[0] - sent_s"}, "both count from the sending"),
    ({"ttft": "t[0] - scheduled_s"}, "both count from the schedule"),
    ({"ttft": "t[0] - scheduled_s", "scheduled": "t[0] - sent_s"}, "are exchanged"),
    ({"scheduled": "t[0] - sent_s - (sent_s - scheduled_s)"}, "so it is added"),
    ({"tpot": "(t[-1] - t[0]) / (len(t) - 1) if len(t) > 1 else None"}, "chunks are counted as tokens"),
    ({"tpot": "(t[-1] - t[0]) / n"}, "n - 1 gaps"),
    ({"tpot": "(t[-1] - sent_s) / n"}, "one public tool does this"),
    ({"tpot": "(t[-1] - sent_s) / (n - 1) if n > 1 else None"}, "stays out of it"),
    ({"tpot": "(t[-1] - t[0]) / (n - 1) if n > 1 else 0.0"}, "looks very fast"),
    ({"tpot": "(t[-1] - t[0]) / (n - 1) if n > 1 and len(t) > 1 else None"}, "three gaps of 0 s"),
    ({"gaps": "[(t[-1] - t[0]) / (n - 1)] * (n - 1) if n > 1 else []"}, "a mean hides the stall"),
    ({"gaps": "[b - a for a, b in zip([sent_s, *t], t)]"}, "that is the TTFT"),
    ({"none": "0, 0, 0, []"}, "expected (None, None, None, [])"),
    ({"gaps": "sum(b - a for a, b in zip(t, t[1:]))"}, "expected"),
]  # fmt: skip


@pytest.mark.parametrize(("parts", "phrase"), WRONG_READS)
def test_wrong_readings_of_a_request_have_their_own_sentence(parts, phrase):
    expect_failure(judge_source("33.1", READ.format(**RIGHT_READ | parts)), phrase)


@pytest.mark.parametrize("parts", [
    {"has": "any(v for k, v in delta.items() if k != 'role')"},
    {"gaps": "list(np.diff(t))"},
    {"gaps": "np.diff(t)", "none": "[None, None, None, []]"},
])  # fmt: skip
def test_other_right_readings_pass(parts):
    outcome = judge_source("33.1", READ.format(**RIGHT_READ | parts))
    assert outcome.status == "passed", outcome.sentence


def test_an_answer_of_three_parts_is_told_so():
    expect_failure(judge_source("33.1", "def f(a, b, c, d): return 1.0, 2.0, 3.0"), "has 4 parts")


# 33.2

LOOP = """
def f(rate_per_s, duration_s, seed):
    rng = np.random.default_rng(seed)
    times, now = [], {first}
    while now <= duration_s:
        times.append(now)
        now += {gap}
    return {out}
"""
RIGHT_LOOP = {"first": "rng.exponential(1 / rate_per_s)", "gap": "rng.exponential(1 / rate_per_s)", "out": "times"}
FIXED = """
def f(rate_per_s, duration_s, seed):
    rng = np.random.default_rng(seed)
    n = {num}
    times = {times}
    return {out}
"""
RIGHT_FIXED = {"num": "rng.poisson(rate_per_s * duration_s)", "times": "np.sort(rng.random(n)) * duration_s",
               "out": "times"}  # fmt: skip
GAPS = "np.cumsum(rng.exponential(1 / rate_per_s, n))"


@pytest.mark.slow
@pytest.mark.parametrize("source", [
    LOOP.format(**RIGHT_LOOP),
    LOOP.format(**RIGHT_LOOP | {"first": "-np.log(1 - rng.random()) / rate_per_s"}),
    FIXED.format(**RIGHT_FIXED),
    FIXED.format(num="int(2 * rate_per_s * duration_s + 60)", times=GAPS, out="times[times <= duration_s]"),
    "def f(rate_per_s, duration_s, seed):\n"
    "    rng, times = random.Random(seed), [0.0]\n"
    "    while times[-1] <= duration_s:\n"
    "        times.append(times[-1] + rng.expovariate(rate_per_s))\n"
    "    return times[1:-1]\n",
])  # fmt: skip
def test_a_poisson_process_passes_whatever_way_it_is_drawn(source):
    outcome = judge_source("33.2", source)
    assert outcome.status == "passed", outcome.sentence


WRONG_LOOPS = [
    ({"first": "0.0"}, "no user waits for your clock"),
    ({"first": "1 / rate_per_s", "gap": "1 / rate_per_s"}, "all gaps are the same"),
    ({"gap": "rng.uniform(0, 2 / rate_per_s)"}, "varies far too little"),
    ({"gap": "rng.gamma(0.25, 4 / rate_per_s)"}, "varies far too much"),
    ({"gap": "rng.exponential(rate_per_s)"}, "the mean gap is 1 / rate_per_s"),
    ({"gap": "rng.exponential(2 / rate_per_s)"}, "half of the requests are missing"),
    ({"gap": "rng.exponential(1 / rate_per_s) + 0.001"}, "in the mean of 400 seeds"),
    ({"gap": "rng.gamma(0.8, 1.25 / rate_per_s)"}, "not exponential"),
    ({"out": "times + [now]"}, "leave it out"),
    ({"out": "np.diff(times, prepend=0.0)"}, "those are the gaps"),
    ({"out": "times[1:]"}, "before the first request"),
    ({"out": "times[:-1]"}, "after the last request"),
    ({"out": "times[::-1]"}, "not in order"),
    ({"out": "len(times)"}, "one row of instants"),
    ({"out": "[1e3 * t for t in times]"}, "milliseconds"),
    ({"out": "[round(t, 2) for t in times]"}, "the instants are rounded"),
    ({"out": "[str(t) for t in times]"}, "one row of instants"),
    ({"out": "[t - 1 for t in times]"}, "negative"),
    ({"out": "[t * duration_s / times[-1] for t in times]"}, "the instants are rescaled"),
]
WRONG_FIXED = [
    ({"num": "int(rate_per_s * duration_s)"}, "\"conditioned\""),
    ({"num": "int(rate_per_s * duration_s)", "times": GAPS, "out": "times * duration_s / times[-1]"},
     "\"conditioned\""),
    ({"num": "int(rate_per_s * duration_s)", "times": GAPS, "out": "times[times <= duration_s]"}, "too few"),
    ({"num": "int(1.05 * rate_per_s * duration_s)", "times": GAPS, "out": "times[times <= duration_s]"},
     "the drawing stops too early"),
    ({"num": "int(rate_per_s * duration_s)", "times": GAPS}, "after the end"),
    ({"num": "int(3 * rate_per_s * duration_s)", "times": GAPS, "out": "times[times <= duration_s]"},
     "never has two requests"),
    ({"times": "np.sort(np.random.default_rng().random(n)) * duration_s"}, "the same seed gave two"),
    ({"num": "max(1, rng.poisson(rate_per_s * duration_s))"}, "six in ten such runs have none"),
    ({"times": "np.linspace(0, duration_s, n)"}, "all gaps are the same"),
    ({"times": "np.sort(rng.beta(2, 2, n)) * duration_s"}, "before the first request"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("parts", "phrase"), WRONG_LOOPS)
def test_wrong_gaps_have_their_own_sentence(parts, phrase):
    expect_failure(judge_source("33.2", LOOP.format(**RIGHT_LOOP | parts)), phrase)


@pytest.mark.slow
@pytest.mark.parametrize(("parts", "phrase"), WRONG_FIXED)
def test_wrong_numbers_of_requests_have_their_own_sentence(parts, phrase):
    expect_failure(judge_source("33.2", FIXED.format(**RIGHT_FIXED | parts)), phrase)


def test_a_schedule_that_ignores_its_seed_is_told_so():
    expect_failure(judge_source("33.2", LOOP.format(**RIGHT_LOOP).replace("default_rng(seed)", "default_rng(1)")),
                   "`seed` is not used")  # fmt: skip


def test_gaps_that_remember_the_one_before_are_told_so():
    # Exponential gaps, each used twice: the distribution is right, the process is not.
    source = """
def f(rate_per_s, duration_s, seed):
    rng = np.random.default_rng(seed)
    n = int(2 * rate_per_s * duration_s + 60)
    gaps = rng.exponential(1 / rate_per_s, n)
    mixed = np.where(rng.random(n) < 0.15, np.roll(gaps, 1), gaps)
    times = np.cumsum(mixed)
    return times[times <= duration_s]
"""
    outcome = judge_source("33.2", source)
    assert outcome.status == "failed"
    assert "varies far too much" in outcome.sentence or "the one before" in outcome.sentence


# 33.3

RUN = """
def f(requests):
    lags = {lags}
    def p99(values):
        return {p99}
    send = p99([f - s for d, s, f in requests if f is not None])
    schedule = p99([{schedule} for d, s, f in requests if f is not None])
    lag = {lag} if lags else None
    bad = {bad}
    return send, schedule, lag, "INVALID" if bad else "valid"
"""
RIGHT_RUN = {
    "lags": "[s - d for d, s, _ in requests if s is not None]",
    "p99": "float(np.percentile(values, 99)) if len(values) >= 299 else None",
    "schedule": "f - d",
    "lag": "float(np.percentile(lags, 99))",
    "bad": "lag is None or lag > 0.010 or any(s is None for _, s, _ in requests)",
}
WRONG_RUNS = [
    ({"schedule": "f - s"}, "coordinated omission itself"),
    ({"schedule": "f - d + s - d"}, "the lag is added twice"),
    ({"lag": "float(np.mean(lags))"}, "the mean lag is reported"),
    ({"lag": "float(np.median(lags))"}, "the median lag is reported"),
    ({"lag": "max(lags)"}, "the largest lag is reported"),
    ({"bad": "not lags or np.mean(lags) > 0.010 or any(s is None for _, s, _ in requests)"}, "the mean lag decides"),
    (
        {"bad": "not lags or np.median(lags) > 0.010 or any(s is None for _, s, _ in requests)"},
        "the median lag decides",
    ),
    ({"bad": "not lags or max(lags) > 0.010 or any(s is None for _, s, _ in requests)"}, "the largest lag decides"),
    ({"bad": "lag is None or lag > 0.010"}, "due and never sent"),
    ({"bad": "lag is None or lag >= 0.010 or any(s is None for _, s, _ in requests)"}, "exactly 10 ms is within"),
    ({"bad": "lag is None or any(s is None for _, s, _ in requests)"}, "the verdict forgets the lag"),
    ({"p99": "float(np.percentile(values, 99)) if values else None"}, "n is too small"),
    ({"p99": "float(np.percentile(values, 99)) if len(values) > 299 else None"}, "299 samples are enough"),
    ({"p99": "float(np.percentile(values, 99)) if len(requests) >= 299 else None"}, "n counts all requests"),
    ({"p99": "float(np.percentile(values, 95)) if len(values) >= 299 else None"}, "another percentile"),
    ({"p99": "max(values) if len(values) >= 299 else None"}, "that is the maximum"),
    ({"lags": "[s - d for d, s, f in requests if f is not None]"}, "left out of the lag"),
    ({"lag": "stats.summarize(lags).p99"}, "where `stats.summarize` says None"),
    ({"bad": "lag is None or lag > 0.010 or any(None in one for one in requests)"}, "do not make a run INVALID"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("parts", "phrase"), WRONG_RUNS)
def test_wrong_judgements_of_a_run_have_their_own_sentence(parts, phrase):
    expect_failure(judge_source("33.3", RUN.format(**RIGHT_RUN | parts)), phrase)


def test_the_summary_of_lab_01_is_a_right_way_to_the_percentile():
    parts = {"p99": "stats.summarize(values).p99 if values else None"}
    assert judge_source("33.3", RUN.format(**RIGHT_RUN | parts)).status == "passed"


def test_another_word_than_valid_or_invalid_is_told_so():
    source = RUN.format(**RIGHT_RUN).replace('"INVALID" if bad else "valid"', '"bad" if bad else "good"')
    expect_failure(judge_source("33.3", source), "write valid or INVALID")


# 33.4

KNEE = """
def f(runs, slo, share=0.99):
    goods, kept = [], {{}}
    for run in runs:
        marks = []
        for r in run["requests"]:
            known = {known}
            if r is None:
                {failed}
            elif known:
                marks.append({good})
        fraction = {fraction}
        goods.append(({per_s}, fraction))
        kept[run["rate_per_s"]] = {kept}
    knee = None
    for rate in {order}:
        if not kept[rate]:
            {stop}
        else:
            knee = rate
    return goods, knee
"""
RIGHT_KNEE = {
    "known": "[k for k in slo if r and r[k] is not None]",
    "failed": "marks.append(False)",
    "good": "all(r[k] <= slo[k] for k in known)",
    "fraction": "sum(marks) / len(marks) if marks else None",
    "per_s": "sum(marks) / run['window_s']",
    "kept": "fraction is not None and fraction >= share",
    "order": "sorted(kept)",
    "stop": "break",
}
WRONG_KNEES = [
    ({"good": "all(r[k] < slo[k] for k in known)"}, "equality meets an SLO"),
    ({"good": "any(r[k] <= slo[k] for k in known)"}, "one SLO of two"),
    ({"known": "[k for k in slo if r and r[k] is not None and k == 'ttft_s']"}, "only the TTFT"),
    ({"known": "[k for k in slo if r and r[k] is not None and k == 'tpot_s']"}, "only the TPOT"),
    ({"known": "list(slo)", "good": "all(r[k] is not None and r[k] <= slo[k] for k in known)"}, "called a miss"),
    ({"known": "list(slo)", "good": "all(r[k] is None or r[k] <= slo[k] for k in known)"}, "called a hit"),
    ({"failed": "pass"}, "failed requests are left out"),
    ({"fraction": "sum(marks) / len(run['requests'])"}, "divides by all requests"),
    ({"per_s": "sum(marks)"}, "per second: good requests over"),
    ({"per_s": "run['rate_per_s'] * sum(marks) / len(run['requests'])"}, "only if the run kept its rate"),
    ({"per_s": "len(run['requests']) / run['window_s']"}, "all requests are counted"),
    ({"kept": "fraction is not None and fraction > share"}, "exactly `share`"),
    ({"kept": "fraction is not None and fraction >= 0.99"}, "`share` is not used"),
    ({"good": "all(r[k] <= {'ttft_s': 0.5, 'tpot_s': 0.125}[k] for k in known)"}, "take them from `slo`"),
    ({"stop": "continue"}, "stop at the first that fails"),
    ({"order": "kept"}, "sort them by their rate"),
    ({"fraction": "sum(marks) / len(marks) if marks else 0.0"}, "None, not 0"),
    ({"fraction": "sum(marks) / len(marks) if marks else 1.0"}, "None, not 1"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("parts", "phrase"), WRONG_KNEES)
def test_wrong_knees_have_their_own_sentence(parts, phrase):
    expect_failure(judge_source("33.4", KNEE.format(**RIGHT_KNEE | parts)), phrase)


def test_another_right_knee_passes():
    assert judge_source("33.4", KNEE.format(**RIGHT_KNEE)).status == "passed"


def test_the_rate_with_the_highest_goodput_is_not_the_knee():
    source = KNEE.format(**RIGHT_KNEE).replace(
        "return goods, knee",
        """
    rates = [run["rate_per_s"] for run in runs]
    return goods, max(zip(goods, rates), key=lambda pair: pair[0][0])[1]""",
    )
    expect_failure(judge_source("33.4", source), "highest goodput")


def test_an_answer_of_another_form_is_told_so():
    expect_failure(judge_source("33.4", "def f(runs, slo, share=0.99): return 4.0"), "the answer is ([(goodput")


# 33.5

TUNING = """
def f(rounds):
    verdicts, gains = {{}}, {{}}
    for name in rounds[0]:
        if name == "default":
            continue
        pairs = {pairs}
        verdicts[name] = "cannot tell"
        if len(pairs) > 1:
            said = {said}
            verdicts[name], gains[name] = said.verdict, said.ratio
    best = {best}
    if {untold}:
        best = None
    return verdicts, best
"""
RIGHT_TUNING = {
    "pairs": "[(r[name][0], r['default'][0]) for r in rounds if r[name][1] == r['default'][1] == 'valid']",
    "said": "stats.compare(*zip(*pairs))",
    "best": "max((k for k in gains if verdicts[k] == 'faster'), key=gains.get, default='default')",
    "untold": "verdicts['control'] != 'cannot tell'",
}
WRONG_TUNINGS = [
    ({"said": "stats.compare(*zip(*pairs), better='higher')"}, "turned round"),
    ({"said": "stats.compare(*list(zip(*pairs))[::-1])"}, "turned round"),
    ({"said": "stats.compare(*zip(*pairs), is_paired=False)"}, "not paired"),
    ({"pairs": "[(r[name][0], r['default'][0]) for r in rounds]"}, "INVALID runs are used"),
    ({"pairs": "[(r[name][0], r['default'][0]) for r in rounds if r[name][1] == 'valid']"}, "the pair needs both"),
    ({"pairs": "list(zip([r[name][0] for r in rounds if r[name][1] == 'valid'],"
               " [r['default'][0] for r in rounds if r['default'][1] == 'valid']))"}, "Drop the pair"),
    ({"pairs": "[(r[name][0], r['default'][0]) for r in rounds if all(v == 'valid' for _, v in r.values())]"},
     "a whole round is dropped"),
    ({"untold": "False"}, "the control is not looked at"),
    ({"best": "max((k for k in gains if verdicts[k] == 'faster'), key=gains.get, default=None)"}, "'default'"),
    ({"best": "min((k for k in gains if verdicts[k] == 'faster'), key=gains.get, default='default')"},
     "the smallest gain"),
    ({"best": "next((k for k in gains if verdicts[k] == 'faster'), 'default')"}, "the first setting that helps"),
    ({"best": "max(gains, key=gains.get, default='default')"}, "without being \"faster\""),
    ({"best": "'control'"}, "no candidate"),
    ({"best": "['cache']"}, "give its name"),
    ({"best": "min((k for k in gains if verdicts[k] == 'faster'), default='default',"
              " key=lambda k: np.mean([r[k][0] for r in rounds]))"}, "over valid pairs"),
    ({"best": "'the cache'"}, "give its name"),
]  # fmt: skip


@pytest.mark.parametrize(("parts", "phrase"), WRONG_TUNINGS)
def test_wrong_verdicts_on_the_tuning_have_their_own_sentence(parts, phrase):
    expect_failure(judge_source("33.5", TUNING.format(**RIGHT_TUNING | parts)), phrase)


def test_two_means_without_an_interval_are_told_so():
    source = TUNING.format(**RIGHT_TUNING).replace("said.verdict", "('faster' if said.ratio > 1 else 'slower')")
    expect_failure(judge_source("33.5", source), 'say "cannot tell" where the interval holds 1')


def test_another_right_tuning_passes():
    assert judge_source("33.5", TUNING.format(**RIGHT_TUNING)).status == "passed"


@pytest.mark.parametrize(("change", "phrase"), [
    ("return verdicts, best", "the answer is (verdicts, best)"),
    ("return dict(verdicts, default='cannot tell'), best", "no verdict of its own"),
    ("return {'control': 'cannot tell'}, best", "were asked for"),
    ("return {k: 'better' for k in verdicts}, best", "no verdict: write"),
])  # fmt: skip
def test_a_wrong_form_of_the_tuning_is_told_so(change, phrase):
    source = TUNING.format(**RIGHT_TUNING)
    first = change == "return verdicts, best"
    changed = source.replace("return verdicts, best", "return list(verdicts), best" if first else change)
    expect_failure(judge_source("33.5", changed), phrase)


def save_tuning(cache):
    default, control = [0.40, 0.42, 0.41, 0.39], [0.41, 0.41, 0.40, 0.40]
    rounds = [{"default": [d, "valid"], "cache": [c, "valid"], "control": [k, "valid"]}
              for d, c, k in zip(default, cache, control, strict=True)]  # fmt: skip
    return save_record("33", "tuning", samples={"default_p95_s": default}, settings={"tuning_rounds": rounds})


def test_the_learners_own_record_is_judged_and_quoted():
    record = save_tuning([0.2, 0.21, 0.2, 0.19])
    outcome = judge("33.5", solve("33.5"))
    assert outcome.status == "passed", outcome.sentence
    assert record.id in outcome.sentence and "cache faster" in outcome.sentence and "Best: cache" in outcome.sentence


def test_an_answer_made_for_the_made_up_rounds_fails_on_the_own_ones():
    record = save_tuning([0.8, 0.81, 0.8, 0.79])
    table = [(rounds, _tuning.judge_rounds(rounds)) for rounds, _ in _tuning.MADE_ROUNDS]
    table += [(rounds, _tuning.judge_rounds(rounds)) for rounds, _, _ in _tuning.draw_rounds(20)]
    answers = {repr(rounds): answer for rounds, answer in table}

    def memory(rounds):
        return answers.get(repr(rounds), ({"cache": "faster", "control": "cannot tell"}, "cache"))

    expect_failure(judge("33.5", memory), f"your record {record.id}")


# The checks' own oracles


@pytest.mark.parametrize("num", [2, 3, 4, 5, 6, 7, 8])
def test_the_table_of_the_tuning_agrees_with_scipys_paired_test(num):
    draw = random.Random(num)
    for _ in range(40):
        b = [draw.uniform(0.3, 0.5) for _ in range(num)]
        a = [value * draw.uniform(0.8, 1.1) for value in b]
        interval = scipy.stats.ttest_1samp(np.log(b) - np.log(a), 0).confidence_interval(0.95)
        expected = "faster" if interval.low > 0 else "slower" if interval.high < 0 else "cannot tell"
        assert _tuning._judge(a, b)[0] == expected


@pytest.mark.parametrize(("cases", "mistakes"), [(RUN_CASES, RUN_MISTAKES), (KNEE_CASES, KNEE_MISTAKES)])
def test_every_named_mistake_differs_from_the_right_answers(cases, mistakes):
    for sentence, wrong in mistakes:
        assert any(wrong(*case.args, **case.kwargs) != case.expected for case in cases), sentence


def test_the_stalled_run_hides_a_second():
    send, schedule, lag, verdict = RUN_CASES[0].expected
    assert send == pytest.approx(0.02)
    assert 0.7 < schedule < 1.0 and 0.7 < lag < 1.0 and verdict == "INVALID"
