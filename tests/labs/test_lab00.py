"""Lab 00: an untouched answer, and quotes of a record that are not changes of the solution."""

import statistics

import numpy as np
import pytest

from labkit.checks.judge import judge
from labkit.environment import load_lab_module
from labkit.results import save_record
from labkit.stats import summarize

SPEEDS = [70.125, 71.5, 72.25, 72.75, 73.0, 73.625, 74.5, 75.25, 76.0, 76.875, 78.5, 95.0]  # of the made-up record


@pytest.fixture
def record():
    checks = load_lab_module("00", "checks")
    checks.save_records_4()
    return checks.scene_4()["stored"]


@pytest.mark.parametrize("stub", [None, ..., {"record": None, "p50_tok_per_s": None}, {"record": ...}])
def test_an_untouched_answer_is_not_attempted(stub):
    assert judge("00.4", stub).status == "not attempted"


def test_a_number_in_place_of_the_function_is_told_so():
    assert "without brackets" in judge("00.1", 3.8e9).sentence


def make_answer(saved, /, **changes):
    summary = summarize(SPEEDS)
    interval = summary.p50_interval
    right = {
        "record": saved.id,
        "p50_tok_per_s": summary.p50,
        "low_tok_per_s": interval.low,
        "high_tok_per_s": interval.high,
    }
    return right | changes


def test_the_check_of_the_record_agrees_with_an_independent_median_and_interval(record):
    # Ranks 3 and 10 of 12 hold the median with probability 0.961 (binomial); 4 and 9 only with 0.854.
    ordered = sorted(SPEEDS)
    answer = make_answer(
        record, p50_tok_per_s=statistics.median(SPEEDS), low_tok_per_s=ordered[2], high_tok_per_s=ordered[9]
    )
    assert judge("00.4", answer).status == "passed"


SPREAD = [float(value) for value in np.percentile(SPEEDS, (5, 95))]
WRONG_QUOTES = [
    ({"p50_tok_per_s": 80.25}, "the median is not 80.25"),
    ({"low_tok_per_s": SPREAD[0], "high_tok_per_s": SPREAD[1]}, "spread of single runs"),
    ({"low_tok_per_s": 70.0}, "the lower end of the interval is not 70.0"),
    ({"high_tok_per_s": 77.9}, "the upper end of the interval is not 77.9"),
    ({"p50_tok_per_s": 1 / 74.0625, "low_tok_per_s": 1 / 76.875, "high_tok_per_s": 1 / 72.25}, "seconds per token"),
    ({"p50_tok_per_s": "74.06 tok/s"}, "give a number in tok/s"),
    ({"p50_tok_per_s": True}, "give a number in tok/s"),
    ({"high_tok_per_s": None}, "give a number in tok/s"),
    ({"p50_tok_per_s": 7}, "at least two digits"),
    ({"p50_tok_per_s": 0.7}, "at least two digits"),
    ({"p50_tok_per_s": 0.0}, "at least two digits"),
    ({"p50_tok_per_s": 74.0}, "74.0625 rounded to the digits that 74.0 shows is 74.1. Copy the digits"),
    ({"low_tok_per_s": 72.0}, "the lower end 72.0 was rounded further than it looks"),
    ({"p50_tok_per_s": 10**400}, "give a number in tok/s"),
    ({"p50_tok_per_s": float("nan")}, "give a number in tok/s"),
    ({"record": "r-0000000000"}, "no record 'r-0000000000'"),
    ({"record": None}, "no record None"),
    ({"note": "extra"}, "must be a dict with these four keys: record, p50_tok_per_s"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "phrase"), WRONG_QUOTES)
def test_wrong_quotes_have_their_own_sentence(record, changes, phrase):
    outcome = judge("00.4", make_answer(record, **changes))
    assert outcome.status == "failed"
    assert phrase in outcome.sentence, outcome.sentence


@pytest.mark.parametrize(("lab", "name"), [("00", "warm_up"), ("01", "decode")])
def test_the_record_of_something_else_is_named(record, lab, name):
    other = save_record(lab, name, samples={"decode_tok_per_s": SPEEDS})
    assert f"the record `{name}` of lab {lab}" in judge("00.4", make_answer(other)).sentence


def test_the_record_itself_in_place_of_its_id_gets_a_short_sentence(record):
    outcome = judge("00.4", make_answer(record) | {"record": record})
    assert outcome.sentence == "`record` is the record itself; give its id: `stored.id`."
    assert len(judge("00.4", make_answer(record) | {"record": ["x"] * 999}).sentence) < 200


def test_too_few_samples_for_an_interval_are_named():
    short = save_record("00", "decode", samples={"decode_tok_per_s": SPEEDS[:5]})
    assert "5 samples, but a 95 % interval of the median needs 6" in judge("00.4", make_answer(short)).sentence


def test_a_quote_may_be_rounded_but_not_wrongly(record):
    rounded = make_answer(record, p50_tok_per_s=74.06, low_tok_per_s=72.2, high_tok_per_s=77)
    assert judge("00.4", rounded).status == "passed"
    assert judge("00.4", make_answer(record, p50_tok_per_s=74.05)).status == "failed"
    assert judge("00.4", make_answer(record, p50_tok_per_s=np.float64(74.0625))).status == "passed"


@pytest.mark.parametrize("answer", [[1, 2, 3, 4], "r-0123456789", 74.06, {}])
def test_an_answer_of_another_shape_is_told_the_keys(answer):
    assert "must be a dict with these four keys" in judge("00.4", answer).sentence
