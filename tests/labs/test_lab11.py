"""Lab 11: the oracles against labkit's own profiling and formulas, and the learner's own profile."""

import random

import pytest

from labkit.checks.judge import judge
from labkit.checks.reference import load_reference, make_names
from labkit.environment import load_lab_module
from labkit.profiling import measure_table
from labkit.profiling.events import ProfilerEvent, measure_self_times
from labkit.profiling.puzzle import estimate_plant, format_calls, load_calls, load_learner
from labkit.results import load_records, save_record
from labkit.roofline import estimate_kv_bytes_per_token

checks = load_lab_module("11", "checks")


def solve(exercise):
    reference = load_reference(exercise)
    return make_names(reference)[reference.answer]


def save_own(settings):
    return save_record("11", "slow_layer", samples={"step_s": [0.5, 0.1]}, settings=settings)


def expect_failure(outcome, phrase):
    assert outcome.status == "failed", outcome
    assert phrase in outcome.sentence, outcome.sentence


def test_answers_of_nothing_but_none_are_not_attempted():
    parts = ("weights", "kv_cache", "activations", "slack")
    assert judge("11.3", lambda config, **sizes: dict.fromkeys(parts)).status == "not attempted"
    assert judge("11.4", lambda calls: (None, None)).status == "not attempted"


def test_the_oracle_of_self_times_agrees_with_labkits_profiling_and_with_the_cases_by_hand():
    for events, expected, _ in checks._TREES:
        assert checks.find_self_times(events) == expected
    draw = random.Random(0)
    for _ in range(50):
        events = checks.draw_tree(draw)
        own = {}
        for (name, *_), value in zip(events, measure_self_times([ProfilerEvent(*e) for e in events]), strict=True):
            own[name] = own.get(name, 0.0) + value
        assert own == pytest.approx(checks.find_self_times(events))
    assert any(len(checks.draw_tree(draw)) > 10 for _ in range(20)), "trees of some size"


def test_every_case_of_memory_adds_up_and_equals_the_course_formula():
    for case in checks.MEMORY:
        (config,), sizes = case.args, case.kwargs
        assert sum(case.expected.values()) == sizes["reserved_bytes"]
        per_token = estimate_kv_bytes_per_token(config, bytes_per_value=sizes["bytes_per_value"])
        assert case.expected["kv_cache"] == per_token * sizes["batch"] * sizes["context_tokens"]


# 11.4


def test_the_brute_force_of_the_check_agrees_with_labkits_profiling():
    for _, calls, _ in checks.PROFILES:
        rows = measure_table([call for call in calls if call.step > 0])
        name, share = checks.find_slow(calls)
        assert name == rows[0].name
        assert share == pytest.approx(rows[0].self_s / sum(row.self_s for row in rows))
        assert rows[0].self_s > 1.05 * rows[1].self_s, "no close call"


def test_without_a_profile_of_their_own_there_is_no_pass():
    expect_failure(judge("11.4", solve("11.4")), "now profile *your* model")


def test_another_learners_profile_is_refused():
    save_own(checks.make_own("0000-1111-2222"))
    expect_failure(judge("11.4", solve("11.4")), "shows another learner's model")


def test_another_learners_profile_under_the_own_name_is_refused_too():
    learner = load_learner("11")
    mine = estimate_plant(checks.make_own(learner)["modules"], learner=learner)[0]
    others = (checks.make_own(f"someone {k}") for k in range(50))
    other = next(one for one in others if checks.find_slow(load_calls(one))[0] != mine)
    save_own(other | {"learner": learner})
    expect_failure(judge("11.4", solve("11.4")), "does not show the slow module that your model has")


def make_cheat(own):
    """Right for every made-up profile, `own` for any other one."""
    right = {tuple((c.name, c.start_s) for c in calls): checks.find_slow(calls) for _, calls, _ in checks.PROFILES}
    return lambda calls: right.get(tuple((c.name, c.start_s) for c in calls), own)


def test_an_answer_made_for_the_made_up_profiles_fails_on_their_own():
    checks.save_records_4()
    expect_failure(judge("11.4", make_cheat(("model.layers.0", 0.5))), "is not the slowest")


def test_mistakes_are_named_on_their_own_profile_too():
    checks.save_records_4()
    (record,) = load_records(lab="11", name="slow_layer")
    calls = load_calls(record.settings)
    name, share = checks.find_slow(calls)
    expect_failure(judge("11.4", make_cheat(("Model", 1.0))), "that is the largest total time")
    expect_failure(judge("11.4", make_cheat((name, 100 * share))), "that is in percent")
    expect_failure(judge("11.4", make_cheat((name, 0.5 * share))), "both without step 0")


def test_a_record_without_calls_or_with_too_few_steps_is_refused():
    save_own({"learner": load_learner("11")})
    expect_failure(judge("11.4", solve("11.4")), "holds no calls of modules")
    calls = [call for call in load_calls(checks.make_own(load_learner("11"))) if call.step < 2]
    save_own(format_calls(calls, learner=load_learner("11")))
    expect_failure(judge("11.4", solve("11.4")), "too few steps")


def test_the_pass_quotes_the_number_of_their_own_profile():
    checks.save_records_4()
    (record,) = load_records(lab="11", name="slow_layer")
    outcome = judge("11.4", solve("11.4"))
    slow = estimate_plant(record.settings["modules"], learner=load_learner("11"))[0]
    assert f"the slowest part is {slow}, because" in outcome.sentence
    assert outcome.measurement["share"] == pytest.approx(checks.find_slow(load_calls(record.settings))[1])
