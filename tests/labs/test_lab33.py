"""Lab 33: gaps that remember, the learner's own record, and the checks' own oracles."""

import random

import numpy as np
import pytest
import scipy.stats

from labkit.checks.judge import judge
from labkit.checks.reference import load_reference, make_names
from labkit.environment import load_lab_module
from labkit.results import save_record

checks = load_lab_module("33", "checks")


def expect_failure(outcome, phrase):
    assert outcome.status == "failed", outcome
    assert phrase in outcome.sentence, outcome.sentence


@pytest.mark.parametrize("exercise", [f"33.{k}" for k in range(1, 6)])
def test_a_result_instead_of_the_function_is_told_so(exercise):
    expect_failure(judge(exercise, [1.0]), "without brackets")


def draw_with_memory(rate_per_s, duration_s, seed):
    """Exponential gaps, some of them used twice: the distribution is right, the process is not."""
    generator = np.random.default_rng(seed)
    num = int(2 * rate_per_s * duration_s + 60)
    gaps = generator.exponential(1 / rate_per_s, num)
    times = np.cumsum(np.where(generator.random(num) < 0.15, np.roll(gaps, 1), gaps))
    return times[times <= duration_s]


def test_gaps_that_remember_the_one_before_are_told_so():
    outcome = judge("33.2", draw_with_memory)
    assert outcome.status == "failed"
    assert "varies far too much" in outcome.sentence or "the one before" in outcome.sentence


def save_tuning(cache):
    default, control = [0.40, 0.42, 0.41, 0.39], [0.41, 0.41, 0.40, 0.40]
    rounds = [{"default": [d, "valid"], "cache": [c, "valid"], "control": [k, "valid"]}
              for d, c, k in zip(default, cache, control, strict=True)]  # fmt: skip
    return save_record("33", "tuning", samples={"default_p95_s": default}, settings={"tuning_rounds": rounds})


def test_the_learners_own_record_is_judged_and_quoted():
    record = save_tuning([0.2, 0.21, 0.2, 0.19])
    outcome = judge("33.5", make_names(load_reference("33.5"))["judge_tuning"])
    assert outcome.status == "passed", outcome.sentence
    assert record.id in outcome.sentence and "cache faster" in outcome.sentence and "Best: cache" in outcome.sentence


def test_an_answer_made_for_the_made_up_rounds_fails_on_the_own_ones():
    record = save_tuning([0.8, 0.81, 0.8, 0.79])
    table = [(rounds, checks._judge_rounds(rounds)) for rounds, _ in checks._MADE_ROUNDS]
    table += [(rounds, checks._judge_rounds(rounds)) for rounds, _, _ in checks._draw_rounds(20)]
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
        assert checks._judge_pairs(list(zip(a, b, strict=True)))[0] == expected


def test_the_stalled_run_hides_a_second():
    send, schedule, lag, verdict = checks._RUN_CASES[0].expected
    assert send == pytest.approx(0.02)
    assert 0.7 < schedule < 1.0 and 0.7 < lag < 1.0 and verdict == "INVALID"
