"""Lab 12: the hand-worked cases against scipy, and the learner's own record."""

import numpy as np
import pytest
import scipy.stats

from labkit.checks.judge import judge
from labkit.checks.reference import load_reference, make_names
from labkit.environment import load_lab_module
from labkit.results import save_record

checks = load_lab_module("12", "checks")


def estimate_tok_per_s(requests):
    return sum(n for *_, n in requests) / (max(end for _, end, _ in requests) - min(start for start, *_ in requests))


@pytest.mark.parametrize("case", [case for case in checks._ROUNDS if case.args[0] is not case.args[1]])
def test_the_hand_worked_ratios_are_those_of_scipys_paired_test(case):
    logs = [np.log([estimate_tok_per_s(requests) for requests in rounds]) for rounds in case.args]
    oracle = scipy.stats.ttest_rel(*logs).confidence_interval(0.95)
    expected = np.exp([np.mean(logs[0] - logs[1]), oracle.low, oracle.high])
    assert case.expected == pytest.approx(expected, rel=1e-9)


def test_the_rounds_by_hand_have_the_speeds_that_their_comments_say():
    five = checks._ROUNDS[4].args
    speeds = [[estimate_tok_per_s(one) for one in rounds] for rounds in (checks._A, *five)]
    assert speeds == [[20.0, 30.0, 20.0], [30.0, 50.0, 40.0, 20.0, 60.0], [20.0, 25.0, 10.0, 16.0, 40.0]]


def test_each_name_is_the_only_difference_of_a_pair_and_one_pair_has_none():
    expected = [found for *_, found, _ in checks._PAIRS]
    assert [] in expected
    assert all([name] in expected for name in checks._NAMES)


def test_a_verdict_of_nothing_but_none_is_not_attempted():
    fields = ("record", "ratio", "low", "high", "verdict")
    assert judge("12.4", lambda record: dict.fromkeys(fields)).status == "not attempted"


def answer(**changes):
    reference = load_reference("12.4")
    code = reference.code
    for old, new in changes.items():
        assert code.count(old) == 1
        code = code.replace(old, new)
    return make_names(reference, code)["read_verdict"]


def save_engines(vllm, naive=(100.0, 99.0, 103.0, 101.0, 97.0)):
    return save_record("12", "engines", samples={"mixed_vllm_tok_per_s": vllm, "mixed_naive_tok_per_s": list(naive)})


def test_the_learners_own_record_is_recomputed_and_quoted():
    save_engines([90.0, 91.0, 92.0, 93.0, 94.0])
    record = save_engines([200.0, 210.0, 205.0, 195.0, 220.0])
    outcome = judge("12.4", answer())
    assert outcome.status == "passed", outcome.sentence
    assert record.id in outcome.sentence and "faster" in outcome.sentence
    logs = np.log(record.samples["mixed_vllm_tok_per_s"]) - np.log(record.samples["mixed_naive_tok_per_s"])
    interval = scipy.stats.ttest_1samp(logs, 0).confidence_interval(0.95)
    assert outcome.measurement["ratio"] == pytest.approx(np.exp(logs.mean()))
    assert outcome.measurement["low"] == pytest.approx(np.exp(interval.low), rel=1e-6)
    assert outcome.measurement["high"] == pytest.approx(np.exp(interval.high), rel=1e-6)


def test_an_answer_made_for_the_made_up_records_fails_on_the_learners_own():
    record = save_engines([200.0, 210.0, 205.0, 195.0, 220.0, 190.0], naive=[100.0, 99.0, 103.0, 101.0, 97.0, 102.0])
    outcome = judge("12.4", answer(**{"compare(vllm, naive": "compare(vllm[:5], naive[:5]"}))
    assert outcome.status == "failed"
    assert f"your record {record.id}" in outcome.sentence


def test_without_a_record_of_their_own_the_pass_says_so():
    assert "made-up" in judge("12.4", answer()).sentence
