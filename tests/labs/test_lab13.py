"""Lab 13: the oracles against scipy, the learner's own sweep and records, and the milestone's claims."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from labkit.checks import milestone
from labkit.checks.judge import judge
from labkit.checks.reference import load_reference, make_names
from labkit.environment import load_lab_module
from labkit.results import load_records, provenance, save_record
from labkit.results.record import estimate_id
from labkit.stats import estimate_mean_interval

checks = load_lab_module("13", "checks")
phase = load_lab_module("13", "milestone")
FUNCTIONS = [f"13.{k}" for k in range(1, 6)]


def expect_failure(outcome, phrase):
    assert outcome.status == "failed", outcome
    assert phrase in outcome.sentence, outcome.sentence


def solve(exercise, *changes):
    """The reference solution's function, with some of its text replaced; each change must be there."""
    reference = load_reference(exercise)
    code = reference.code
    for old, new in changes:
        assert code.count(old) == 1, old
        code = code.replace(old, new)
    return make_names(reference, code)[reference.answer]


@pytest.fixture(autouse=True)
def no_git(monkeypatch):
    monkeypatch.setattr(provenance, "_probe_commit", lambda: {"hash": "0" * 40, "is_dirty": False})  # git takes 0.1 s


@pytest.fixture(scope="module")
def saved_text(tmp_path_factory):
    """The file with the learner's own three records of phase 1, made once."""
    folder = tmp_path_factory.mktemp("phase_1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABKIT_RUNS", str(folder))
        patch.setattr(provenance, "_probe_commit", lambda: {"hash": "0" * 40, "is_dirty": False})
        save_phase_1()
    return (folder / "results.jsonl").read_text(encoding="utf-8")


@pytest.fixture
def phase_1(saved_text):
    """The learner's own three records of phase 1; returns them by claim."""
    path = Path(os.environ["LABKIT_RUNS"], "results.jsonl")
    path.parent.mkdir(parents=True)
    path.write_text(saved_text, encoding="utf-8")
    return {record.name: record for record in load_records()}


def save_phase_1():
    made = phase.make_samples(7, slowest="mul", prefill="mm", memory="weights", latency="waiting", alone="prefill")
    labs = {"profile": "11", "engines": "12", "sweep": "13"}
    for claim, (samples, settings) in made.items():
        extra = make_sweep()[0] if claim == "sweep" else {}
        more = make_sweep()[1] if claim == "sweep" else {}
        save_record(labs[claim], claim, samples=samples | extra, settings=settings | more)


def make_sweep():
    samples = {
        f"batch{b}_step_s": [t, 1.02 * t, 0.99 * t] for b, t in ((1, 0.006), (8, 0.011), (16, 0.015), (64, 0.04))
    }
    for n, rate, latency_s in ((1, 2.5, 0.4), (4, 8.0, 0.5), (16, 14.0, 1.1)):
        samples |= {f"clients{n}_req_per_s": [rate, 1.1 * rate], f"clients{n}_e2e_s": [latency_s, 0.9 * latency_s]}
    return samples, {"batches": [1, 8, 16, 64], "limit_s": 0.02, "clients": [1, 4, 16]}


@pytest.mark.parametrize("exercise", FUNCTIONS)
def test_the_reference_solution_passes_with_records_of_their_own(exercise, phase_1):
    assert judge(exercise, solve(exercise)).status == "passed"


@pytest.mark.parametrize("exercise", FUNCTIONS)
def test_a_result_instead_of_the_function_is_told_so(exercise):
    expect_failure(judge(exercise, 3.0), "the check wants the function itself")


@pytest.mark.parametrize(("exercise", "keys"), [
    ("13.4", ("record", "in_flight", "saturation")), ("13.5", ("profile", "tok_per_s", "main_latency")),
])  # fmt: skip
def test_an_answer_of_nothing_but_none_is_not_attempted(exercise, keys):
    assert judge(exercise, lambda *_: dict.fromkeys(keys)).status == "not attempted"


def test_the_oracle_of_the_fits_agrees_with_scipys_least_squares():
    batches, step_s = checks._FITS[-1].args
    oracle = scipy.optimize.least_squares(
        lambda p: (p[0] + p[1] * np.array(batches)) / step_s - 1, [0.01, 0.001], xtol=1e-14
    )
    fixed, per_row, knee = checks._fit_by_minors(batches, step_s)
    assert (fixed, per_row) == pytest.approx(oracle.x, rel=1e-5)
    assert knee == pytest.approx(oracle.x[0] / oracle.x[1], rel=1e-5)


def test_the_table_of_the_sweet_spots_agrees_with_scipys_t():
    step_s = {b: [t, 1.1 * t, 0.95 * t] for b, t in ((1, 0.3), (2, 0.5), (4, 0.9))}
    for limit_s in (0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 2.0):
        ends = {b: scipy.stats.ttest_1samp(v, 0).confidence_interval(0.95).high for b, v in step_s.items()}
        good = [b for b in step_s if ends[b] <= limit_s]
        assert checks._choose(step_s, limit_s) == max(good, key=lambda b: b / np.mean(step_s[b]), default=None)


def test_the_own_sweet_spot_is_recomputed_and_quoted(phase_1):
    outcome = judge("13.3", solve("13.3"))
    assert phase_1["sweep"].id in outcome.sentence and "batch 16 gives" in outcome.sentence
    assert outcome.measurement["batch"] == 16
    step_s = phase_1["sweep"].samples["batch16_step_s"]
    assert outcome.measurement["tok_per_s"] == pytest.approx(16 / np.mean(step_s))
    assert estimate_mean_interval(step_s).high <= 0.02


def test_an_answer_made_for_three_runs_fails_on_a_record_with_more():
    samples, settings = make_sweep()
    # The interval of the first three runs keeps the limit, that of all seven does not.
    samples["batch16_step_s"] = [0.0150, 0.0151, 0.0152, 0.024, 0.025, 0.026, 0.024]
    record = save_record("13", "sweep", samples=samples, settings=settings)
    first = solve("13.3", ("estimate_mean_interval(values)", "estimate_mean_interval(values[:3])"))
    expect_failure(judge("13.3", first), f"your record {record.id}")


def test_an_own_sweep_without_a_sweet_spot_passes_with_none():
    samples, settings = make_sweep()
    save_record("13", "sweep", samples=samples, settings=settings | {"limit_s": 0.001})
    outcome = judge("13.3", solve("13.3"))
    assert outcome.status == "passed" and "no batch keeps 1 ms" in outcome.sentence


def test_the_own_saturation_is_recomputed_and_quoted(phase_1):
    outcome = judge("13.4", solve("13.4"))
    assert phase_1["sweep"].id in outcome.sentence
    kept = phase_1["sweep"].samples
    law = np.mean(np.array(kept["clients16_req_per_s"]) * np.array(kept["clients16_e2e_s"]))
    assert outcome.measurement["in_flight"] == pytest.approx(law)
    best = np.mean(kept["clients16_req_per_s"])
    assert outcome.measurement["saturation"] == pytest.approx(best * np.mean(kept["clients1_e2e_s"]))


def test_right_claims_are_quoted(phase_1):
    outcome = judge("13.5", solve("13.5"))
    assert outcome.status == "passed", outcome.sentence
    logs = np.log(phase_1["engines"].samples["mixed_vllm_tok_per_s"])
    assert outcome.measurement["tok_per_s"] == pytest.approx(np.exp(logs.mean()))
    for word in ("`mul`", "memory is weights", "waiting is the largest", "you can profile a model"):
        assert word in outcome.sentence


def test_claims_that_are_written_down_for_the_made_up_records_fail_on_the_own_ones(phase_1):
    right = {one["profile"].id: phase.PHASE_1.estimate(one) for one in phase.MADE}
    known = {
        one["profile"].id: {claim: record.id for claim, record in one.items()} | right[one["profile"].id]
        for one in phase.MADE
    }
    first = next(iter(known.values()))
    learned = judge("13.5", lambda profile, engines, sweep: known.get(profile.id, first))
    expect_failure(learned, "your records: `profile` is")


@pytest.mark.parametrize("missing", ["profile", "engines", "sweep"])
def test_a_missing_record_is_not_attempted_and_names_the_lab_to_run(missing, phase_1, monkeypatch, tmp_path, capsys):
    claim = solve("13.5")
    monkeypatch.setenv("LABKIT_RUNS", str(tmp_path / "others"))
    for record in phase_1.values():
        if record.name != missing:
            save_record(record.lab, record.name, samples=record.samples, settings=record.settings)
    outcome = judge("13.5", claim)
    number = {"profile": "11", "engines": "12", "sweep": "13"}[missing]
    assert (outcome.status, outcome.sentence.endswith(f"run lab {number}.")) == ("not attempted", True)
    assert milestone.has_records(phase.PHASE_1) is False
    said = capsys.readouterr().out
    assert said.count("not attempted") == 1 and f'record "{missing}" of labs/{number}_' in said


def test_with_all_records_the_milestone_is_ready_and_says_nothing(phase_1, capsys):
    assert milestone.has_records(phase.PHASE_1) is True
    assert capsys.readouterr().out == ""


def test_a_changed_record_is_damaged_and_says_what_does_not_agree(phase_1):
    path = Path(os.environ["LABKIT_RUNS"], "results.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    engines = next(line for line in lines if line["name"] == "engines")
    engines["samples"]["mixed_vllm_tok_per_s"] = [10 * x for x in engines["samples"]["mixed_vllm_tok_per_s"]]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    expect_failure(judge("13.5", solve("13.5")), f"record {engines['id']} is damaged")


def test_a_record_of_another_machine_is_foreign(phase_1):
    """Someone else's file, put beside the own one: its record is whole, and newer."""
    content = phase_1["engines"].to_dict() | {"time": "2999-01-01T00:00:00.000000+00:00"}
    content["host"] = content["host"] | {"cpu": {"name": "Another processor"}}
    content["id"] = estimate_id(content)
    Path(os.environ["LABKIT_RUNS"], "theirs.jsonl").write_text(json.dumps(content) + "\n")
    outcome = judge("13.5", solve("13.5"))
    expect_failure(outcome, "the records come from different machines")
    assert f"record {content['id']} on Another processor" in outcome.sentence


def test_a_record_that_lacks_what_the_milestone_reads_is_told_so(phase_1):
    save_record("11", "profile", samples={"decode_mm_self_fraction": [0.5]})
    expect_failure(judge("13.5", solve("13.5")), "raised KeyError")
    found = milestone.find_newest(phase.PHASE_1, load_records())
    claims = {claim: record.id for claim, record in found.items()}
    with pytest.raises(Exception, match="lack what the milestone reads") as caught:
        milestone.expect_claims(phase.PHASE_1, claims, load_records(), name="claim_milestone")
    assert "run their labs again" in caught.value.outcome.sentence


def test_the_newest_record_of_each_kind_is_taken(phase_1):
    newer = save_record("12", "engines", samples={"mixed_vllm_tok_per_s": [50.0, 51.0, 52.0]})
    save_record("12", "engines_140m", samples={"mixed_vllm_tok_per_s": [5.0, 5.0]})
    assert milestone.find_newest(phase.PHASE_1, load_records())["engines"].id == newer.id
    assert judge("13.5", solve("13.5")).status == "passed"


def test_each_made_up_set_has_other_answers_and_decoys():
    answers = [phase.PHASE_1.estimate(one) for one in phase.MADE]
    for key in ("slowest_part", "largest_memory", "main_latency"):
        assert len({one[key] for one in answers}) >= 3
    for one, right in zip(phase.MADE, answers, strict=True):
        assert phase.find_largest_part(one["sweep"], clients=1) != right["main_latency"]
        held = [one["profile"].samples[f"{name}_bytes"][0] for name in ("weights", "kv_cache", "activations")]
        assert one["profile"].samples["used_bytes"][0] > max(held)
