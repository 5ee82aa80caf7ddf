"""Lab 10: the oracles against labkit and scipy, the learner's own record, and the finding in each of its branches."""

import random
import re
import statistics
import sys

import pytest
import scipy.stats

from labkit import roofline, units
from labkit.checks.judge import judge
from labkit.checks.reference import load_reference, make_names
from labkit.environment import find_lab_folder, load_lab_module
from labkit.results import save_record

checks = load_lab_module("10", "checks")


def solve(exercise):
    reference = load_reference(exercise)
    return make_names(reference)[reference.answer]


def save_own(made, *, without=()):
    samples = {key: values for key, values in made.samples.items() if key not in without}
    return save_record("10", "roofline", samples=samples, settings=made.settings)


@pytest.mark.parametrize("exercise", ["10.1", "10.2", "10.3"])
def test_leaving_python_is_a_failure_and_the_profiler_stays_as_it_was(exercise):
    def answer(*args, **kwargs):
        raise SystemExit("stop")

    before = sys.getprofile()
    outcome = judge(exercise, answer)
    assert outcome.status == "failed"
    assert "SystemExit: stop" in outcome.sentence
    assert sys.getprofile() is before


def test_an_answer_that_changes_its_config_does_not_spoil_the_check_for_the_next_one():
    def spoil(config, **given):
        config["num_key_value_heads"] = 4
        return 0, config.pop("hidden_size")

    assert judge("10.2", spoil).status == "failed"
    assert judge("10.2", solve("10.2")).status == "passed"


def test_the_oracle_counts_as_labkits_own_roofline_does():
    draw = random.Random(0)
    for _ in range(50):
        config = checks.draw_config(draw)
        given = {"context_tokens": draw.randrange(99), "batch": draw.randrange(1, 5), "bytes_per_value": 2}
        work = roofline.estimate_decode_step(config | {"model_type": "llama"}, **given)
        flops, num_bytes = checks.count_step(config, **given)
        assert flops == work.flops
        norms = (2 * config["num_hidden_layers"] + 1) * config["hidden_size"]
        rows = 0 if config["tie_word_embeddings"] else min(given["batch"], config["vocab_size"]) * config["hidden_size"]
        assert num_bytes == work.weight_bytes - 2 * (norms + rows) + work.kv_bytes


def test_the_made_up_records_bind_at_each_of_the_three():
    assert {checks.judge_record(record)["ceiling"] for record in checks.MADE} == {"compute", "bandwidth", "dispatch"}
    for record in checks.MADE:
        found = checks.judge_record(record)
        assert 0 < found["low"] < found["share"] < found["high"] < 1
        # The interval of a median by another route: the binomial distribution of scipy.
        ordered = sorted(record.samples["decode_s"])
        n = len(ordered)
        ends = [statistics.median(ordered) * found["share"] / found[key] for key in ("high", "low")]
        ranks = [min(range(n), key=lambda k: abs(ordered[k] - end)) for end in ends]
        assert [ordered[k] for k in ranks] == pytest.approx(ends)
        low, high = ranks  # from 0: the ranks of the formula are one more, and the sum runs to rank high - 1
        assert scipy.stats.binom.cdf(high, n, 0.5) - scipy.stats.binom.cdf(low, n, 0.5) >= 0.95


def test_the_made_up_budgets_have_each_largest_part_and_one_overlaps():
    budgets = [checks.judge_budget(record) for record in checks.MADE]
    assert {budget["largest"] for budget in budgets} == {"dispatch", "weights", "rest"}
    assert [budget["rest_s"] for budget in budgets].count(0.0) == 1
    ceilings = [checks.judge_record(record)["ceiling"] for record in checks.MADE]
    assert ("dispatch", "weights") in zip(ceilings, [budget["largest"] for budget in budgets], strict=True)
    # The first one by hand: 6.35 ms, of which 2.4 ms dispatch and 39 MB at 13 GB/s.
    assert budgets[0]["weights_s"] == pytest.approx(0.003)
    assert budgets[0]["rest_s"] == pytest.approx(0.00635 - 0.0024 - 0.003)
    assert budgets[0]["unexplained"] == pytest.approx(0.95 / 6.35)


@pytest.mark.parametrize("exercise", ["10.4", "10.5"])
def test_a_reading_of_nothing_but_none_is_not_attempted(exercise):
    fields = (checks.judge_record if exercise == "10.4" else checks.judge_budget)(checks.MADE[0])
    assert judge(exercise, lambda record: dict.fromkeys(fields)).status == "not attempted"


@pytest.mark.parametrize(("exercise", "oracle"), [("10.4", checks.judge_record), ("10.5", checks.judge_budget)])
def test_the_learners_own_record_is_recomputed_from_its_samples(exercise, oracle):
    made = checks.MADE[0]
    record = save_own(made)
    outcome = judge(exercise, solve(exercise))
    assert outcome.status == "passed"
    assert record.id in outcome.sentence
    assert outcome.measurement == pytest.approx({key: oracle(made)[key] for key in outcome.measurement})
    wired = {one.id: oracle(one) for one in checks.MADE}
    failed = judge(exercise, lambda one: wired.get(one.id, wired[checks.MADE[1].id] | {"record": one.id}))
    assert failed.status == "failed"
    assert f"your record {record.id}" in failed.sentence


def test_a_record_without_samples_of_the_second_batch_is_read_too():
    save_own(checks.MADE[0], without=["decode_batch4_s"])
    assert judge("10.4", solve("10.4")).status == "passed"


def test_a_record_of_the_first_version_of_the_lab_is_not_asked_for_a_budget():
    save_own(checks.MADE[0], without=["gemv_byte_per_s"])
    assert "measure, and check again for your own" in judge("10.5", solve("10.5")).sentence


# The finding


@pytest.fixture(scope="module")
def say_budget():
    text = (find_lab_folder("10") / "lab.py").read_text(encoding="utf-8")
    names = {"units": units}
    exec(re.search(r"^PARTS = .*?(?=^if ARE_READY)", text, re.DOTALL | re.MULTILINE).group(), names)
    return names["say_budget"]


@pytest.mark.parametrize(
    ("number", "phrase"),
    [
        (0, "The largest part is weights at the speed of a GEMV: fewer bytes"),
        (1, "The largest part is weights at the speed of a GEMV: fewer bytes"),
        (2, "The largest part is explained by neither: a profile comes before any advice"),
        (3, "The largest part is dispatch: fewer operations"),
    ],
)
def test_the_finding_follows_the_budget(say_budget, number, phrase):
    record = checks.MADE[number]
    step_s = statistics.median(record.samples["decode_s"])
    said = say_budget(checks.judge_budget(record), step_s)
    assert phrase in said
    assert ("add up to more than the step" in said) == (number == 1)


def test_the_finding_of_the_issues_machine(say_budget):
    """Decode 3.90 ms, dispatch 1.20 ms, GEMV 12.9 GB/s, 21.5 MiB: the weights are the largest part."""
    weights_s = 21.5 * 2**20 / 12.9e9
    rest_s = 3.90e-3 - 1.20e-3 - weights_s
    said = say_budget(
        {"dispatch_s": 1.20e-3, "weights_s": weights_s, "rest_s": rest_s, "largest": "weights",
         "unexplained": rest_s / 3.90e-3, "mbu": 0.06, "mfu": 0.02},
        3.90e-3,
    )  # fmt: skip
    assert "step of 3.90 ms: 1.20 ms dispatch, 1.75 ms weights at the speed of a GEMV, " in said
    assert "explained by neither (24 %)." in said
