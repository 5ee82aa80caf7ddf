"""Lab 01: the oracles against scipy, the scripts of 01.4, and findings that are not changes of the solution."""

import copy
import math

import numpy as np
import pytest
import scipy.stats

from labkit.checks.judge import judge
from labkit.checks.reference import load_reference, make_names
from labkit.environment import load_lab_module

checks = load_lab_module("01", "checks")
listings = load_lab_module("01", "listings")
estimate_coverage = load_lab_module("01", "intervals").estimate_coverage
SCRIPTS, LIES = listings.SCRIPTS, listings.LIES


def expect_failure(outcome, phrase):
    assert outcome.status == "failed", outcome
    assert phrase in outcome.sentence, outcome.sentence


@pytest.mark.parametrize("stub", [None, {name: {"line": None, "lie": None, "fixed": None} for name in SCRIPTS}])
def test_an_untouched_answer_is_not_attempted(stub):
    assert judge("01.4", stub).status == "not attempted"


def test_the_librarys_interval_is_refused_also_when_labkit_has_kept_its_result():
    reference = load_reference("01.2")
    code = "def percentile_interval(samples, q, *, confidence=0.95):\n    return stats.summarize(samples)\n"
    for _ in range(2):
        expect_failure(judge("01.2", make_names(reference, code)["percentile_interval"]), "is the answer itself")


@pytest.mark.parametrize(("n", "p"), [(6, 0.5), (59, 0.95), (299, 0.99), (40, 0.25)])
def test_the_coverage_equals_scipys_binomial_distribution(n, p):
    assert estimate_coverage(n, p) == pytest.approx(scipy.stats.binom.cdf(range(n + 1), n, p), abs=1e-12)


def test_each_first_size_that_has_an_interval_is_checked_from_both_sides():
    for size in ((5, 50, 0.95), (6, 50, 0.95), (58, 95, 0.95), (59, 95, 0.95), (298, 99, 0.95), (299, 99, 0.95)):
        assert size in checks._SIZES
        n, q, confidence = size
        has_interval = 1 - (q / 100) ** n - (1 - q / 100) ** n >= confidence
        assert has_interval == (n in (6, 59, 299))


def test_the_table_is_students_t_and_its_comparison_agrees_with_scipys_paired_test():
    for df, t in checks._T_95.items():
        assert t == pytest.approx(scipy.stats.t.ppf(0.975, df), rel=1e-10)
    for a_s, b_s, _ in checks._list_pairs()[3:]:
        ratio, low, high, verdict = checks._compare_by_table(a_s, b_s)
        oracle = scipy.stats.ttest_rel(np.log(b_s), np.log(a_s))
        interval = oracle.confidence_interval(0.95)
        assert (low, high) == pytest.approx((math.exp(interval.low), math.exp(interval.high)), rel=1e-9)
        assert (verdict == "cannot tell") == (oracle.pvalue > 0.05)
        assert ratio == pytest.approx(np.exp(np.mean(np.log(b_s) - np.log(a_s))))


def test_the_passing_sentence_of_the_comparison_carries_its_counts():
    outcome = judge("01.3", make_names(load_reference("01.3"))["compare_pairs"])
    assert set(outcome.measurement) == {"num_false_alarms", "num_found", "num_found_drifting"}
    assert outcome.measurement["num_false_alarms"] <= 24
    assert f"{outcome.measurement['num_false_alarms']} false alarms" in outcome.sentence


def test_what_each_script_printed_follows_from_its_log_and_the_truth_does_not():
    a, b, c = (SCRIPTS[name].log for name in "abc")
    assert float(SCRIPTS["a"].printed) == pytest.approx((a["returned_s"][-1] - a["start_s"]) / 5)
    assert float(SCRIPTS["b"].printed) == pytest.approx(64 / np.mean(b["times_s"]), abs=5e-3)
    assert float(SCRIPTS["c"].printed) == pytest.approx(128 * len(c["num_tokens"]) / c["seconds"])
    assert [round(checks._TRUTH[name][2], 4) for name in "abc"] == [0.0122, 106.0041, 160.0]


def test_every_script_has_a_lie_of_the_list_in_one_of_its_lines():
    for name, script in SCRIPTS.items():
        line, lie, _ = checks._TRUTH[name]
        assert lie in LIES
        assert f"{line:>3}  {script.code.splitlines()[line - 1]}" in listings.format_listing(name)
    assert len(LIES) > len(SCRIPTS)


RIGHT = {
    "a": {"line": 7, "lie": "no synchronization", "fixed": 0.0122},
    "b": {"line": 8, "lie": "warm-up counted", "fixed": 106.0},
    "c": {"line": 8, "lie": "requested tokens counted", "fixed": 160},
}
WRONG_LIES = [
    ("a", "line", 8, "line 8 waits, but too late"),
    ("a", "line", 9, "one of the two times that it uses is already false"),
    ("a", "line", 4, "the device is idle when the clock starts"),
    ("a", "line", 1, "the lie is not in line 1"),
    ("a", "line", "7", "line is '7': give the number of one line"),
    ("a", "line", [7], "line is [7]: give the number of one line"),
    ("a", "line", np.array([7, 8]), "give the number of one line"),
    ("a", "lie", ["no synchronization"], "is not in the list of lies"),
    ("a", "lie", np.array(["warm-up counted"] * 2), "is not in the list of lies"),
    ("a", "fixed", 10**400, "give a number in s per call"),
    ("a", "fixed", 0.012, "the right number with too few digits: give at least three"),
    ("a", "lie", "warm-up counted", "not 'warm-up counted'"),
    ("a", "lie", "no sync", "is not in the list of lies"),
    ("a", "fixed", 0.0004, "is what the script printed"),
    ("a", "fixed", 0.061, "divide by 5"),
    ("a", "fixed", 81.97, "calls per second"),
    ("a", "fixed", 0.03548, "the calls wait in the queue"),
    ("a", "fixed", 0.03668, "averages the ends"),
    ("a", "fixed", 0.01215, "leaves out the first call"),
    ("a", "fixed", None, "script a: you have not answered fixed yet"),
    ("b", "line", 7, "each of these samples is correct"),
    ("b", "line", 2, "are not a lie"),
    ("b", "fixed", 70.72, "is what the script printed"),
    ("b", "fixed", 96.81, "you left out only one call"),
    ("b", "fixed", 107.56, "uses the median"),
    ("b", "fixed", 114.29, "the best run"),
    ("b", "fixed", 0.60375, "seconds per call"),
    ("b", "fixed", 132.5, "but the tokens of 10"),
    ("c", "line", 5, "asks for at most 128"),
    ("c", "line", 2, "asking for 128 tokens is not a lie"),
    ("c", "fixed", 256, "is what the script printed"),
    ("c", "fixed", 640, "divide by the seconds"),
    ("c", "fixed", 80, "tokens of one answer"),
    ("c", "fixed", 0.00625, "seconds per token"),
    ("c", "fixed", 161, "fix only the lie"),
    ("c", "fixed", "160 tok/s", "give a number in tok/s"),
    ("c", "fixed", True, "give a number in tok/s"),
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
