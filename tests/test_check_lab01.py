"""Lab 01's checks: the solution passes, the stub is "not attempted", and each named mistake has its own sentence."""

import copy
import math

import numpy as np
import pytest
import scipy.stats
from check_bench import UNTOUCHED, Bench, expect_failure, expect_pass

from labkit import stats
from labkit.checks import lab01
from labkit.checks._comparison import compare_pairs_by_table, list_pairs
from labkit.checks._intervals import estimate_coverage
from labkit.checks._student import T_95
from labkit.checks.listings import LIES, SCRIPTS, format_listing

FUNCTIONS = {"01.1": "measure_seconds", "01.2": "percentile_interval", "01.3": "compare_pairs"}
TOOLS = {"math": math, "np": np, "stats": stats, "scipy": scipy, "SCRIPTS": SCRIPTS}
BENCH = Bench(lab01, FUNCTIONS | {"01.4": "answer"}, TOOLS)
judge, judge_source, solve = BENCH.judge, BENCH.judge_source, BENCH.solve


@pytest.mark.parametrize("exercise", BENCH.functions)
def test_the_reference_solution_passes(exercise):
    expect_pass(judge(exercise, solve(exercise)))


@pytest.mark.parametrize("body", UNTOUCHED)
@pytest.mark.parametrize("exercise", FUNCTIONS)
def test_an_untouched_stub_is_not_attempted(exercise, body):
    assert BENCH.judge_stub(exercise, body).status == "not attempted"


@pytest.mark.parametrize("stub", [None, {name: {"line": None, "lie": None, "fixed": None} for name in SCRIPTS}])
def test_an_untouched_answer_is_not_attempted(stub):
    assert judge("01.4", stub).status == "not attempted"


RIGHT_STOPWATCH = """
def f(function, *, synchronize, clock, num_warmup=3, num_samples=10):
    for _ in range(num_warmup):
        function()
    samples = []
    for _ in range(num_samples):
        synchronize()
        start = clock()
        function()
        synchronize()
        samples.append(clock() - start)
    return samples
"""
BEFORE, AFTER = "        synchronize()\n        start = clock()\n", "        synchronize()\n        samples"
WRONG_STOPWATCHES = [
    ("        synchronize()\n", "", "`synchronize` was never called"),
    (BEFORE, "        start = clock()\n", "the first sample contains earlier work"),
    (AFTER, "        samples", "those are the launches"),
    (BEFORE, "        start = clock()\n        synchronize()\n", "the clock starts before the first synchronize"),
    ("    for _ in range(num_warmup):\n        function()\n", "", "the warm-up is missing"),
    ("    for _ in range(num_warmup):\n        function()\n    samples = []\n    for _ in range(num_samples)",
     "    samples = []\n    for _ in range(num_warmup + num_samples)", "the warm-up calls are in the result"),
    ("range(num_warmup)", "range(num_warmup + 1)", "count the rounds of your loops"),
    ("range(num_samples)", "range(num_samples - 1)", "count the rounds of your loops"),
    ("range(num_warmup)", "range(3)", "count the rounds of your loops"),
    ("num_samples=10", "num_samples=11", "there were 14"),
    ("    return samples", "    return sum(samples) / num_samples", "one number came back"),
    ("    return samples", "    return min(samples)", "return every sample"),
    ("    return samples", "    return sorted(samples)", "the samples are in another order"),
    ("    return samples", "    return [s for s in samples if s < max(samples)]", "keep every one, an outlier is news"),
    ("    return samples", "    return [1e3 * s for s in samples]", "in milliseconds"),
    ("    return samples", "    return samples[1:]", "4 samples are asked for (after 2 warm-up calls), and 3 came"),
    ("    return samples", "    yield from samples", "gives its answer by a generator"),
    ("    return samples", "    return [f'{s} s' for s in samples]", "sample 0 is '1.375 s', and a number of seconds"),
    ("    return samples", "    return [10**400 for _ in samples]", "and a number of seconds is asked"),
    (AFTER, "        synchronize()\n        synchronize()\n        samples", "more than one synchronize"),
    ("    return samples", "    return {'samples': samples}", "a list of 4 samples is asked for"),
    ("    return samples", "    print(samples)", "a list of 4 samples is asked for, and this is None"),
    ("samples.append(clock() - start)", "samples.append(start - clock())", "sample 0 is -1.375, and 1.375 s is right"),
    ("    samples = []\n", "    samples = []\n    first = clock()\n", "times since the beginning"),
    ("clock()", "__import__('time').perf_counter()", "`clock` was never read"),
    ("*, synchronize, clock", "*, sync, clock", "unexpected keyword argument 'synchronize'"),
    ("        function()\n        sync", "        function()\n        function()\n        sync", "there were 10"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "phrase"), WRONG_STOPWATCHES)
def test_wrong_stopwatches_have_their_own_sentence(old, new, phrase):
    assert old in RIGHT_STOPWATCH
    source = RIGHT_STOPWATCH.replace(old, new)
    if phrase.startswith("times since"):
        source = source.replace("clock() - start", "clock() - first")
    expect_failure(judge_source("01.1", source), phrase)


def test_a_stopwatch_that_synchronizes_somewhere_useless_is_told_what_it_times():
    source = RIGHT_STOPWATCH.replace("        synchronize()\n", "")
    source = source.replace("    return", "    synchronize()\n    return")
    expect_failure(judge_source("01.1", source), "those are the launches")


@pytest.mark.parametrize(("old", "new"), [
    ("    samples = []\n", "    samples = []\n    synchronize()\n"),
    ("        function()\n    samples", "        function()\n        synchronize()\n    samples"),
    ("    return samples", "    return tuple(samples)"),
    ("    return samples", "    return np.array(samples)"),
    ("    return samples", "    print(samples, clock())\n    return samples"),
])  # fmt: skip
def test_other_right_stopwatches_pass(old, new):
    outcome = judge_source("01.1", RIGHT_STOPWATCH.replace(old, new))
    assert outcome.status == "passed", outcome.sentence


RIGHT_INTERVAL = """
def f(samples, q, *, confidence=0.95):
    n, p, values = len(samples), q / 100, sorted(samples)
    below = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
    low, high = 1, n
    if sum(below[low:high]) < confidence:
        return None
    while high - low > 1:
        best = max([(low + 1, high), (low, high - 1)], key=lambda pair: sum(below[pair[0]:pair[1]]))
        if sum(below[best[0]:best[1]]) < confidence:
            break
        low, high = best
    return float(np.percentile(samples, q)), values[low - 1], values[high - 1]
"""
RETURN = "return float(np.percentile(samples, q)), values[low - 1], values[high - 1]"
WRONG_INTERVALS = [
    ("        return None\n", "        return float(np.median(samples)), values[0], values[-1]\n",
     "n = 5, p50, confidence 0.95: n is too small"),
    ("< confidence:\n        return", "< 2:\n        return", "got None, but ranks 1 and 6 hold it with 96.88 %"),
    (RETURN, "print(values[low - 1], values[high - 1])", "It is None for 100 samples too: is a `return` missing"),
    (RETURN, f"return np.array([{RETURN[7:]}])", "that is a ndarray, of which `if found` cannot be asked"),
    ("float(np.percentile(samples, q))", "10**400", "three numbers (point, low, high)"),
    ("    if sum(below[low:high]) <",
     "    if min(1 - below[0], 1 - below[-1]) < 1 - (1 - confidence) / 2 or sum(below[low:high]) <",
     "got None, but ranks 1 and 59"),
    ("while high - low > 1", "while False", "still reach"),
    ("values[low - 1], values[high - 1]", "values[low], values[high]", "raised IndexError"),
    ("values[low - 1], values[high - 1]", "values[low], values[min(high, n - 1)]", "one off"),
    ("values[low - 1], values[high - 1]", "values[low], values[high - 1]", "one off"),
    ("values[low - 1], values[high - 1]", "values[high - 1], values[low - 1]", "the lower end is the smaller sample"),
    ("values[low - 1], values[high - 1]", "low, high", "1 and 6 are ranks"),
    ("values[low - 1], values[high - 1]", "*np.percentile(samples, (2.5, 97.5))", "how far single requests spread"),
    ("values[low - 1], values[high - 1]", "np.mean(samples) - np.std(samples), np.mean(samples) + np.std(samples)",
     "two of the sorted samples"),
    ("values[low - 1], values[high - 1]", "*(lambda i: (i.low, i.high))(stats.estimate_mean_interval(samples))",
     "t-interval of the mean"),
    ("float(np.percentile(samples, q))", "float(np.mean(samples))", "is the mean"),
    ("float(np.percentile(samples, q))", "float(np.median(samples))", "is the median: use the argument q"),
    ("float(np.percentile(samples, q))", "values[int(n * p)]", "between two of them interpolate"),
    ("float(np.percentile(samples, q))", "float(np.percentile(samples, q / 100))", "takes q in percent"),
    ("float(np.percentile(samples, q))", "1.0", "the point is"),
    ("sorted(samples)", "list(samples)", "sort a copy first"),
    (RETURN, "return values[low - 1], values[high - 1]", "three numbers (point, low, high)"),
    (RETURN, "return {'low': low}", "three numbers (point, low, high)"),
    ("sum(below[best[0]:best[1]])", "sum(below[best[0]:best[1] + 1])", "one off. The sum runs"),
    ("p, values = len(samples), q / 100,", "p, values = len(samples), 0.5,", "Is the chance of a sample to lie"),
    ("(1 - p) ** (n - k)", "(1 - p) ** n", "got None"),
    ("*, confidence=0.95):", "*, confidence=0.95):\n    confidence = 0.95",
     "n = 10, p50, confidence 0.9: ranks 2 and 9 are those for 95 %: use the argument"),
    ("confidence=0.95", "confidence=0.9", "n = 5, p50, confidence 0.95: n is too small"),
    ("n, p, values = len(samples), q / 100, sorted(samples)",
     "samples.sort(); n, p, values = len(samples), q / 100, samples", "sorted in place"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "phrase"), WRONG_INTERVALS)
def test_wrong_intervals_have_their_own_sentence(old, new, phrase):
    assert old in RIGHT_INTERVAL
    expect_failure(judge_source("01.2", RIGHT_INTERVAL.replace(old, new)), phrase)


FAR = """
def f(samples, q, *, confidence=0.95):
    n, p, values = len(samples), q / 100, sorted(samples)
    held = np.cumsum([math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)])
    pairs = [(a, b) for a in range(1, n) for b in range(a + 1, n + 1) if held[b - 1] - held[a - 1] >= confidence]
    if not pairs:
        return None
    low, high = {choose}
    return float(np.percentile(samples, q)), values[low - 1], values[high - 1]
"""


def test_of_all_pairs_that_suffice_the_closest_is_asked_for():
    assert judge_source("01.2", FAR.format(choose="min(pairs, key=lambda p: p[1] - p[0])")).status == "passed"
    assert judge_source("01.2", FAR.format(choose="max(pairs, key=lambda p: p[0] - p[1])")).status == "passed"
    last = FAR.format(choose="min(pairs, key=lambda p: (-p[0], p[1]))")
    expect_failure(judge_source("01.2", last), "ranks 42 and 64 cannot be narrowed, but other ranks are closer: 40 and")


def test_the_normal_approximation_is_told_that_other_ranks_are_closer():
    source = FAR.replace(
        "    low, high = {choose}",
        """    spread = 1.96 * math.sqrt(n * p * (1 - p))
    low, high = max(1, round(n * p - spread)), min(n, round(n * p + spread) + 1)""",
    )
    expect_failure(judge_source("01.2", source), "ranks 40 and 61 hold it with 96.5 %, more than was asked")


LOG_GAMMA = (
    "math.exp(math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)"
    " + k * math.log(p) + (n - k) * math.log(1 - p))"
)


def test_chances_that_are_rounded_in_another_way_pass():
    assert "math.comb(n, k) * p**k * (1 - p) ** (n - k)" in RIGHT_INTERVAL
    source = RIGHT_INTERVAL.replace("math.comb(n, k) * p**k * (1 - p) ** (n - k)", LOG_GAMMA)
    expect_pass(judge_source("01.2", source))


CALLS = [
    ("", "return stats.estimate_percentile_interval(samples, q)"),
    ("", "return stats.summarize(samples)"),
    ("from labkit.stats import estimate_percentile_interval as mine", "return mine(samples, q)"),
    ("def helper(*args): return stats.estimate_percentile_interval(*args)", "return helper(samples, q)"),
    ("", "return (lambda: stats.estimate_percentile_interval(samples, q))()"),
    ("", "return getattr(stats, '_choose' + '_ranks')(len(samples), q / 100, confidence)"),
]


@pytest.mark.parametrize(("before", "call"), CALLS)
def test_the_librarys_interval_is_refused_however_it_is_reached(before, call):
    for _ in range(2):  # a result that labkit keeps from the first time must not hide the call
        outcome = judge_source("01.2", f"{before}\ndef f(samples, q, *, confidence=0.95): {call}")
        expect_failure(outcome, "is the answer itself")


@pytest.mark.parametrize("name", ["summarize", "compare", "_choose_ranks"])
def test_a_helper_of_the_learners_own_may_have_the_name_of_a_function_of_labkit(name):
    helper = f"def {name}(values): return sorted(values)\n"
    expect_pass(judge_source("01.2", helper + RIGHT_INTERVAL.replace("sorted(samples)", f"{name}(samples)")))
    helper = f"def {name}(a, b): return math.log(b / a)\n"
    expect_pass(judge_source("01.3", helper + RIGHT_COMPARISON.replace("math.log(b / a)", f"{name}(a, b)")))


@pytest.mark.parametrize(("n", "p"), [(6, 0.5), (59, 0.95), (299, 0.99), (40, 0.25)])
def test_the_coverage_equals_scipys_binomial_distribution(n, p):
    assert estimate_coverage(n, p) == pytest.approx(scipy.stats.binom.cdf(range(n + 1), n, p), abs=1e-12)


def test_each_first_size_that_has_an_interval_is_checked_from_both_sides():
    for size in ((5, 50, 0.95), (6, 50, 0.95), (58, 95, 0.95), (59, 95, 0.95), (298, 99, 0.95), (299, 99, 0.95)):
        assert size in lab01._SIZES
        n, q, confidence = size
        has_interval = 1 - (q / 100) ** n - (1 - q / 100) ** n >= confidence
        assert has_interval == (n in (6, 59, 299))


RIGHT_COMPARISON = """
def f(a_s, b_s):
    gains = [math.log(b / a) for a, b in zip(a_s, b_s)]
    interval = stats.estimate_mean_interval(gains)
    ratio, low, high = (math.exp(x) for x in (sum(gains) / len(gains), interval.low, interval.high))
    verdict = "faster" if low > 1 else "slower" if high < 1 else "cannot tell"
    return ratio, low, high, verdict
"""
VERDICT = '"faster" if low > 1 else "slower" if high < 1 else "cannot tell"'
WRONG_COMPARISONS = [
    (VERDICT, '"slower" if low > 1 else "faster" if high < 1 else "cannot tell"', "the verdict is turned round"),
    (VERDICT, '"faster" if ratio > 1 else "slower" if ratio < 1 else "cannot tell"', "looks at the ratio alone"),
    ("math.log(b / a)", "math.log(a / b)", "the ratio is turned round"),
    ("math.exp(x) for x", "x for x", "those are logarithms"),
    (VERDICT, '"faster" if low >= 1 else "slower" if high < 1 else "cannot tell"', "that ends at 1 still holds 1"),
    ("zip(a_s, b_s)", "zip(sorted(a_s), sorted(b_s))", "sorted before they are paired"),
    ("math.exp(x) for x in", "math.exp(x) * 100 for x in", "twice as fast"),
    ("return ratio, low, high, verdict", "return verdict", "a text, and a row of 4 was asked for"),
    ("return ratio, low, high, verdict", "return ratio, low, high", "got (2.0"),
    ("return ratio, low, high, verdict", "print(verdict)", "is a `return` missing?"),
    ("gains = [", "a_s.reverse(); b_s.reverse(); gains = [", "changes its arguments"),
    ("stats.estimate_mean_interval(gains)", "stats.compare(a_s, b_s).interval", "is the answer itself"),
    ('"cannot tell"', '"equal"', "the verdict is 'equal': write one of 'faster', 'slower', 'cannot tell'"),
    ('"faster"', '"Faster"', "the verdict is 'Faster': write one of"),
    (VERDICT, "np.array(['faster', 'slower'])", "write one of 'faster', 'slower', 'cannot tell'"),
    ("return ratio,", "return f'{ratio:.2f}x',", "ratio and both ends are numbers, and '2.00x' is none"),
    ("return ratio, low, high", "return ratio, high, low", "the ends of the interval are swapped"),
    ("return ratio, low, high", "return ratio, low if high > low else math.nan, high", "Without any spread"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "phrase"), WRONG_COMPARISONS)
def test_wrong_comparisons_have_their_own_sentence(old, new, phrase):
    assert old in RIGHT_COMPARISON
    expect_failure(judge_source("01.3", RIGHT_COMPARISON.replace(old, new)), phrase)


BY_HAND = """
def f(a_s, b_s):
    import statistics
    n = len(a_s)
    {gains}
    t = {t}
    half = t * {error}
    mean = sum(gains) / n
    low, high = mean - half, mean + half
    verdict = "faster" if low > {edge} else "slower" if high < {edge} else "cannot tell"
    return {out}
"""
LOGS = "gains = [math.log(b / a) for a, b in zip(a_s, b_s)]"
HAND = {
    "gains": LOGS,
    "t": "{1: 12.7062, 2: 4.30265, 4: 2.77645, 7: 2.36462, 9: 2.26216}[n - 1]",
    "error": "statistics.stdev(gains) / math.sqrt(n)",
    "edge": "0",
    "out": "math.exp(mean), math.exp(low), math.exp(high), verdict",
}
PLAIN = {"out": "mean, low, high, verdict"}
WELCH = "math.sqrt(sum(statistics.variance([math.log(x) for x in s]) for s in (a_s, b_s)) / n)"
WRONG_HANDS = [
    ({"error": WELCH}, "compares the two groups as a whole"),
    ({"gains": "gains = [b / a for a, b in zip(a_s, b_s)]", "edge": "1", **PLAIN}, "plain mean of the ratios"),
    ({"gains": "gains = [b - a for a, b in zip(a_s, b_s)]", **PLAIN}, "differences in seconds"),
    ({"error": "statistics.stdev(gains)"}, "the spread of single pairs"),
    ({"t": "1.959964"}, "1.96 is for very many pairs"),
    ({"error": "statistics.pstdev(gains) / math.sqrt(n)"}, "of a sample it has the divisor n - 1"),
    ({"t": "scipy.stats.t.ppf(0.975, n)"}, "Student's t has n degrees of freedom here"),
    ({"t": "scipy.stats.t.ppf(0.95, n - 1)"}, "that t leaves 5 % on each side"),
    ({"error": "statistics.stdev(gains) / n"}, "a gain in each pair"),
]


@pytest.mark.parametrize(("parts", "phrase"), WRONG_HANDS)
def test_wrong_comparisons_by_hand_have_their_own_sentence(parts, phrase):
    expect_failure(judge_source("01.3", BY_HAND.format(**HAND | parts)), phrase)


def test_a_comparison_with_a_printed_table_passes_in_spite_of_its_few_digits():
    # Two equal times may differ in the last bit of a logarithm here: judged at 0, as in the library.
    outcome = judge_source("01.3", BY_HAND.format(**HAND))
    assert outcome.status == "passed", outcome.sentence


def test_the_table_is_students_t_and_its_comparison_agrees_with_scipys_paired_test():
    for df, t in T_95.items():
        assert t == pytest.approx(scipy.stats.t.ppf(0.975, df), rel=1e-10)
    for a_s, b_s, _ in list_pairs()[3:]:
        ratio, low, high, verdict = compare_pairs_by_table(a_s, b_s)
        oracle = scipy.stats.ttest_rel(np.log(b_s), np.log(a_s))
        interval = oracle.confidence_interval(0.95)
        assert (low, high) == pytest.approx((math.exp(interval.low), math.exp(interval.high)), rel=1e-9)
        assert (verdict == "cannot tell") == (oracle.pvalue > 0.05)
        assert ratio == pytest.approx(np.exp(np.mean(np.log(b_s) - np.log(a_s))))


def test_the_passing_sentence_of_the_comparison_carries_its_counts():
    outcome = judge("01.3", solve("01.3"))
    assert set(outcome.measurement) == {"num_false_alarms", "num_found", "num_found_drifting"}
    assert outcome.measurement["num_false_alarms"] <= 24
    assert f"{outcome.measurement['num_false_alarms']} false alarms" in outcome.sentence


def test_what_each_script_printed_follows_from_its_log_and_the_truth_does_not():
    a, b, c = (SCRIPTS[name].log for name in "abc")
    assert float(SCRIPTS["a"].printed) == pytest.approx((a["returned_s"][-1] - a["start_s"]) / 5)
    assert float(SCRIPTS["b"].printed) == pytest.approx(64 / np.mean(b["times_s"]), abs=5e-3)
    assert float(SCRIPTS["c"].printed) == pytest.approx(128 * len(c["num_tokens"]) / c["seconds"])
    assert [round(lab01._TRUTH[name][2], 4) for name in "abc"] == [0.0122, 106.0041, 160.0]


def test_every_script_has_a_lie_of_the_list_in_one_of_its_lines():
    for name, script in SCRIPTS.items():
        line, lie, _ = lab01._TRUTH[name]
        assert lie in LIES
        assert f"{line:>3}  {script.code.splitlines()[line - 1]}" in format_listing(name)
    assert len(LIES) > len(SCRIPTS)


RIGHT = {
    "a": {"line": 7, "lie": "no synchronization", "fixed": 0.0122},
    "b": {"line": 8, "lie": "warm-up counted", "fixed": 106.0},
    "c": {"line": 8, "lie": "requested tokens counted", "fixed": 160},
}
WRONG_LIES = [
    ("a", "line", 8, "line 8 is true but late"),
    ("a", "line", 9, "one of the two times that it uses is false"),
    ("a", "line", 4, "the device is idle when the clock starts"),
    ("a", "line", 1, "the lie is not in line 1"),
    ("a", "line", "7", "line is '7', and the number of one line is asked for"),
    ("a", "line", [7], "line is [7], and the number of one line is asked for"),
    ("a", "line", np.array([7, 8]), "the number of one line is asked for"),
    ("a", "lie", ["no synchronization"], "is no lie of the list"),
    ("a", "lie", np.array(["warm-up counted"] * 2), "is no lie of the list"),
    ("a", "fixed", 10**400, "a number in s per call is asked for"),
    ("a", "fixed", 0.012, "the right number with too few digits: give three"),
    ("a", "lie", "warm-up counted", "not 'warm-up counted'"),
    ("a", "lie", "no sync", "is no lie of the list"),
    ("a", "fixed", 0.0004, "is what it printed"),
    ("a", "fixed", 0.061, "divide by 5"),
    ("a", "fixed", 81.97, "calls per second"),
    ("a", "fixed", 0.03548, "the calls wait in the queue"),
    ("a", "fixed", 0.03668, "averages the ends"),
    ("a", "fixed", 0.01215, "leaves the first call out"),
    ("a", "fixed", None, "script a: fixed is not answered yet"),
    ("b", "line", 7, "each of these samples is true"),
    ("b", "line", 2, "are no lie"),
    ("b", "fixed", 70.72, "is what it printed"),
    ("b", "fixed", 96.81, "only one call was left out"),
    ("b", "fixed", 107.56, "uses the median"),
    ("b", "fixed", 114.29, "the best run"),
    ("b", "fixed", 0.60375, "seconds per call"),
    ("b", "fixed", 132.5, "but the tokens of 10"),
    ("c", "line", 5, "asks for at most 128"),
    ("c", "line", 2, "to ask for 128 tokens is no lie"),
    ("c", "fixed", 256, "is what it printed"),
    ("c", "fixed", 640, "divide by the seconds"),
    ("c", "fixed", 80, "tokens of one answer"),
    ("c", "fixed", 0.00625, "seconds per token"),
    ("c", "fixed", 161, "change only the lie"),
    ("c", "fixed", "160 tok/s", "a number in tok/s is asked for"),
    ("c", "fixed", True, "a number in tok/s is asked for"),
]


@pytest.mark.parametrize(("name", "key", "value", "phrase"), WRONG_LIES)
def test_wrong_findings_have_their_own_sentence(name, key, value, phrase):
    answer = copy.deepcopy(RIGHT)
    answer[name][key] = value
    expect_failure(judge("01.4", answer), phrase)


@pytest.mark.parametrize("answer", [{}, [1, 2, 3], "a", RIGHT | {"d": 1}, RIGHT | {"a": 7}, RIGHT | {"a": {"line": 7}}])
def test_an_answer_of_another_shape_is_told_the_keys(answer):
    expect_failure(judge("01.4", answer), "are dicts with the keys line, lie, fixed")


def test_a_finding_may_be_rounded_to_three_digits():
    assert judge("01.4", RIGHT).status == "passed"
    rounded = copy.deepcopy(RIGHT)
    rounded["b"]["fixed"] = np.float64(106)
    assert judge("01.4", rounded).status == "passed"
