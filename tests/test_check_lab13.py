"""Lab 13's checks: the solution passes, the stub is "not attempted", and each named mistake has its own sentence."""

import json
import os
import statistics
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from check_bench import UNTOUCHED, Bench, expect_failure, expect_pass

from labkit import stats
from labkit.checks import lab13, milestones
from labkit.checks._phase_1 import MADE, make_samples
from labkit.checks._scaling import FITS, choose, fit_by_minors
from labkit.errors import CheckError
from labkit.results import load_records, provenance, save_record
from labkit.results.record import estimate_id
from labkit.stats import estimate_mean_interval

FUNCTIONS = {
    "13.1": "batch_numbers",
    "13.2": "fit_step_time",
    "13.3": "find_sweet_spot",
    "13.4": "read_saturation",
    "13.5": "claim_milestone",
}
BENCH = Bench(lab13, FUNCTIONS, {"stats": stats, "statistics": statistics, "np": np})
judge, judge_source, solve = BENCH.judge, BENCH.judge_source, BENCH.solve


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
    made = make_samples(7, slowest="mul", prefill="mm", memory="weights", latency="waiting", alone="prefill")
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
def test_the_reference_solution_passes(exercise, phase_1):
    expect_pass(judge(exercise, solve(exercise)))


@pytest.mark.parametrize("exercise", list(FUNCTIONS)[:4])
def test_the_reference_solution_passes_before_anything_was_measured(exercise):
    assert judge(exercise, solve(exercise)).status == "passed"


@pytest.mark.parametrize("body", UNTOUCHED)
@pytest.mark.parametrize("exercise", FUNCTIONS)
def test_an_untouched_stub_is_not_attempted(exercise, body):
    assert BENCH.judge_stub(exercise, body).status == "not attempted"


@pytest.mark.parametrize("exercise", FUNCTIONS)
def test_a_result_instead_of_the_function_is_told_so(exercise):
    expect_failure(judge(exercise, 3.0), "the check wants the function itself")


@pytest.mark.parametrize(("exercise", "keys"), [
    ("13.4", ("record", "in_flight", "saturation")), ("13.5", ("profile", "tok_per_s", "main_latency")),
])  # fmt: skip
def test_an_answer_of_nothing_but_none_is_not_attempted(exercise, keys):
    assert judge_source(exercise, f"def f(*_): return dict.fromkeys({keys})").status == "not attempted"


# 13.1

BATCH = "def f(wanted, step_ms):\n    return {rate}, {step}\n"
RIGHT_BATCH = {"rate": "sum(wanted) / sum(step_ms) * 1000", "step": "np.median(step_ms) / 1000"}
WRONG_BATCHES = [
    ({"rate": "len(wanted) * len(step_ms) / sum(step_ms) * 1000"}, "all rows of all steps are counted"),
    ({"rate": "max(wanted) * len(wanted) / sum(step_ms) * 1000"}, "all rows of all steps are counted"),
    ({"rate": "len(wanted) / np.median(step_ms) * 1000"}, "rows over one step"),
    ({"rate": "len(wanted) / sum(step_ms) * 1000"}, "rows are counted"),
    ({"rate": "max(wanted) / sum(step_ms) * 1000"}, "only the longest row is counted"),
    ({"rate": "np.mean(wanted) / sum(step_ms) * 1000"}, "the speed of one row"),
    ({"rate": "sum(wanted) / sum(step_ms)", "step": "np.median(step_ms)"}, "divide by 1,000, for both"),
    ({"rate": "sum(wanted) / sum(step_ms)"}, "the throughput is per millisecond"),
    ({"step": "np.median(step_ms)"}, "still in milliseconds"),
    ({"step": "np.mean(step_ms) / 1000"}, "the mean step"),
    ({"step": "max(step_ms) / 1000"}, "the longest step"),
    ({"step": "np.median(step_ms) / 1000 / len(wanted)"}, "is divided by the rows"),
    ({"rate": "sum(wanted) / (len(step_ms) * np.median(step_ms)) * 1000"}, "comes from the median step"),
    ({"rate": "np.median(step_ms) / 1000", "step": "sum(wanted) / sum(step_ms) * 1000"}, "the two numbers are swapped"),
    ({"step": "sorted(step_ms)[len(step_ms) // 2] / 1000"}, "expected"),
]


@pytest.mark.parametrize(("parts", "phrase"), WRONG_BATCHES)
def test_wrong_numbers_of_a_batch_have_their_own_sentence(parts, phrase):
    expect_failure(judge_source("13.1", BATCH.format(**RIGHT_BATCH | parts)), phrase)


@pytest.mark.parametrize("parts", [
    {"step": "statistics.median(step_ms) / 1e3"},
    {"rate": "float(np.sum(wanted)) / (np.sum(step_ms) / 1e3)", "step": "float(np.percentile(step_ms, 50)) * 1e-3"},
])  # fmt: skip
def test_other_right_numbers_of_a_batch_pass(parts):
    outcome = judge_source("13.1", BATCH.format(**RIGHT_BATCH | parts))
    assert outcome.status == "passed", outcome.sentence


def test_an_answer_that_knows_the_shown_example_only_fails():
    expect_failure(judge_source("13.1", "def f(wanted, step_ms): return 125.0, 0.01"), "expected")


# 13.2

FIT = """
def f(batches, step_s):
    b, t = np.array(batches, dtype=float), np.array(step_s, dtype=float)
    {weights}
    a, d = {solve}
    knee = {knee}
    return {out}
"""
RIGHT_FIT = {
    "weights": "w = 1 / t",
    "solve": "np.linalg.lstsq(np.stack([w, b * w], 1), t * w, rcond=None)[0]",
    "knee": "a / d if d > 0 and min(batches) <= a / d <= max(batches) else None",
    "out": "a, d, knee",
}
WRONG_FITS = [
    ({"weights": "w = np.ones(len(t))"}, "the plain errors are squared"),
    ({"solve": "np.polyfit(b, t, 1)[::-1]"}, "the plain errors are squared"),
    ({"solve": "np.polyfit(b, t, 1)"}, "slope and fixed part are swapped"),
    ({"weights": "w = t ** -0.5"}, "squared once too often or too little"),
    ({"weights": "w = t ** -2"}, "squared once too often or too little"),
    ({"weights": "w = t"}, "the weights are the times"),
    ({"knee": "d / a if a and min(batches) <= d / a <= max(batches) else None"}, "the knee is turned round"),
    ({"knee": "a / d"}, "a knee outside of the sweep was not measured"),
    ({"knee": "a / d if d > 0 else None"}, "a knee outside of the sweep was not measured"),
    ({"knee": "a / d if d > 0 and batches[0] <= a / d <= batches[-1] else None"}, "use min and max"),
    ({"knee": "a / d if d > 0 and min(batches) <= a / d <= max(batches) else 0"}, "None, not 0"),
    ({"knee": "min(batches, key=lambda x: abs(x - a / d)) if min(batches) <= a / d <= max(batches) else None"},
     "the knee is moved to a measured batch"),
    ({"out": "d, a, knee"}, "slope and fixed part are swapped"),
    ({"solve": "0.0, sum(b * t) / sum(b * b)"}, "the line is forced through 0"),
    ({"solve": "np.polyfit(np.log(b), np.log(t), 1)", "out": "np.exp(d), a, None"}, "that is a power law"),
    ({"out": "1000 * a, 1000 * d, knee"}, "expected"),
    ({"out": "(knee,)"}, "a row of 1"),
]  # fmt: skip


@pytest.mark.parametrize(("parts", "phrase"), WRONG_FITS)
def test_wrong_fits_have_their_own_sentence(parts, phrase):
    expect_failure(judge_source("13.2", FIT.format(**RIGHT_FIT | parts)), phrase)


@pytest.mark.parametrize("parts", [
    {"solve": "np.polyfit(b, t, 1, w=w)[::-1]"},
    {"weights": "w = 1 / t; m = np.stack([w, b * w])", "solve": "np.linalg.solve(m @ m.T, m @ (t * w))"},
])  # fmt: skip
def test_other_right_fits_pass(parts):
    outcome = judge_source("13.2", FIT.format(**RIGHT_FIT | parts))
    assert outcome.status == "passed", outcome.sentence


def test_the_oracle_of_the_fits_agrees_with_scipys_least_squares():
    batches, step_s = FITS[-1].args
    oracle = scipy.optimize.least_squares(
        lambda p: (p[0] + p[1] * np.array(batches)) / step_s - 1, [0.01, 0.001], xtol=1e-14
    )
    fixed, per_row, knee = fit_by_minors(batches, step_s)
    assert (fixed, per_row) == pytest.approx(oracle.x, rel=1e-5)
    assert knee == pytest.approx(oracle.x[0] / oracle.x[1], rel=1e-5)


# 13.3

SPOT = """
def f(step_s, limit_s):
    good = [b for b in {order} if {keeps}]
    return {out}
"""
RIGHT_SPOT = {
    "order": "sorted(step_s)",
    "keeps": "stats.estimate_mean_interval(step_s[b]).high <= limit_s",
    "out": "max(good, key=lambda b: b / np.mean(step_s[b])) if good else None",
}
WRONG_SPOTS = [
    ({"keeps": "np.mean(step_s[b]) <= limit_s"}, "the mean keeps the limit, its interval does not"),
    ({"keeps": "np.median(step_s[b]) <= limit_s"}, "expected"),
    ({"keeps": "stats.estimate_mean_interval(step_s[b]).low <= limit_s"}, "the lower end of the interval"),
    ({"keeps": "max(step_s[b]) <= limit_s"}, "the longest single run is compared"),
    ({"keeps": "stats.estimate_mean_interval(step_s[b]).high < limit_s"}, "equality meets a limit"),
    ({"keeps": "True"}, "the limit is not looked at"),
    ({"out": "max(good) if good else None"}, "the largest batch is taken"),
    ({"out": "min(good, key=lambda b: np.mean(step_s[b])) if good else None"}, "the shortest step is taken"),
    ({"out": "max(good, key=lambda b: np.mean(step_s[b])) if good else None"}, "the longest step is taken"),
    ({"out": "max(good, key=lambda b: (round(b / np.mean(step_s[b]), 9), b)) if good else None"}, "same throughput"),
    ({"order": "step_s"}, "same throughput"),
    ({"out": "max(good, key=lambda b: b / np.mean(step_s[b])) if good else 0"}, "return None"),
    ({"out": "max(good, key=lambda b: b / np.mean(step_s[b])) if good else min(step_s)"}, "not the smallest batch"),
    ({"out": "max(b / np.mean(step_s[b]) for b in good) if good else None"}, "that is a throughput"),
    ({"out": "max(good, key=lambda b: b / np.mean(step_s[b]))"}, "raised ValueError"),
    ({"keeps": "stats.estimate_mean_interval(step_s[b], confidence=0.8).high <= limit_s"}, "expected"),
    ({"keeps": "np.mean(step_s[b]) + 1.96 * np.std(step_s[b], ddof=1) / 3**0.5 <= limit_s"}, "1.96 is for many runs"),
    ({"out": "max(good, key=lambda b: b / np.median(step_s[b])) if good else None"}, "taken from the median"),
]


@pytest.mark.parametrize(("parts", "phrase"), WRONG_SPOTS)
def test_wrong_sweet_spots_have_their_own_sentence(parts, phrase):
    expect_failure(judge_source("13.3", SPOT.format(**RIGHT_SPOT | parts)), phrase)


def test_a_search_that_ends_at_the_first_miss_is_told_so():
    source = """
def f(step_s, limit_s):
    best = None
    for b in sorted(step_s):
        if stats.estimate_mean_interval(step_s[b]).high > limit_s:
            break
        if best is None or b / np.mean(step_s[b]) > best / np.mean(step_s[best]):
            best = b
    return best
"""
    expect_failure(judge_source("13.3", source), "ends at the first batch that misses")
    assert judge_source("13.3", source.replace("break", "continue")).status == "passed"


def test_the_table_of_the_sweet_spots_agrees_with_scipys_t():
    step_s = {b: [t, 1.1 * t, 0.95 * t] for b, t in ((1, 0.3), (2, 0.5), (4, 0.9))}
    for limit_s in (0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 2.0):
        ends = {b: scipy.stats.ttest_1samp(v, 0).confidence_interval(0.95).high for b, v in step_s.items()}
        good = [b for b in step_s if ends[b] <= limit_s]
        assert choose(step_s, limit_s) == max(good, key=lambda b: b / np.mean(step_s[b]), default=None)


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
    source = SPOT.format(**RIGHT_SPOT | {"keeps": "stats.estimate_mean_interval(step_s[b][:3]).high <= limit_s"})
    expect_failure(judge_source("13.3", source), f"your record {record.id}")


def test_an_own_sweep_without_a_sweet_spot_passes_with_none():
    samples, settings = make_sweep()
    save_record("13", "sweep", samples=samples, settings=settings | {"limit_s": 0.001})
    outcome = judge("13.3", solve("13.3"))
    assert outcome.status == "passed" and "no batch keeps 1 ms" in outcome.sentence


# 13.4

LAW = """
def f(record):
    c = record.settings["clients"]
    x = {{n: np.array(record.samples[f"clients{{n}}_{rate}"]) for n in c}}
    r = {{n: np.array(record.samples[f"clients{{n}}_{latency}"]) for n in c}}
    return {{"record": {record}, "in_flight": {law}, "saturation": {meet}}}
"""
RIGHT_LAW = {
    "rate": "req_per_s",
    "latency": "e2e_s",
    "record": "record.id",
    "law": "{n: np.mean(x[n] * r[n]) for n in c}",
    "meet": "max(np.mean(x[n]) for n in c) * np.mean(r[min(c)])",
}
WRONG_LAWS = [
    ({"rate": "tok_per_s"}, "tokens are counted"),
    ({"latency": "ttft_s"}, "the time to the first token is only a part"),
    ({"latency": "tpot_s"}, "the time per token is no request's time"),
    ({"law": "{n: np.mean(x[n]) * np.mean(r[n]) for n in c}"}, "multiply run by run"),
    ({"law": "{n: float(n) for n in c}"}, "repeats the number of clients"),
    ({"law": "{n: np.mean(x[n] / r[n]) for n in c}"}, "expected"),
    ({"law": "np.mean([np.mean(x[n] * r[n]) for n in c])"}, "a dict with a number for each of"),
    ({"meet": "max(np.mean(x[n]) * np.mean(r[n]) for n in c)"}, "that is Little's law again"),
    ({"meet": "(lambda n: np.mean(x[n]) * np.mean(r[n]))(max(c, key=lambda n: np.mean(x[n])))"}, "Little's law again"),
    ({"meet": "np.mean(x[min(c)]) * np.mean(r[min(c)])"}, "the throughput of the fewest clients"),
    ({"meet": "max(np.mean(x[n]) for n in c) * np.mean(r[max(c)])"}, "which already waited"),
    ({"meet": "max(np.mean(x[n]) for n in c) * np.mean(r[c[0]])"}, "they may stand in any order"),
    ({"meet": "max(np.mean(x[n]) for n in c) / np.mean(r[min(c)])"}, "multiply, requests per second times"),
    ({"meet": "max(max(x[n]) for n in c) * np.mean(r[min(c)])"}, "single runs are mixed"),
    ({"meet": "max(np.mean(x[n]) for n in c) * min(np.mean(r[n]) for n in c)"}, "the shortest latency of all"),
    ({"meet": "max(np.median(x[n]) for n in c) * np.median(r[min(c)])"}, "medians are taken"),
    ({"record": "np.array([1, 2])"}, "its id was asked for"),
    ({"meet": "float(max(c))"}, "not where the server saturates"),
    ({"meet": "'8'"}, "expected"),
    ({"record": "record"}, "its id was asked for"),
]


@pytest.mark.parametrize(("parts", "phrase"), WRONG_LAWS)
def test_wrong_readings_of_saturation_have_their_own_sentence(parts, phrase):
    expect_failure(judge_source("13.4", LAW.format(**RIGHT_LAW | parts)), phrase)


def test_a_reading_that_is_no_dict_is_told_so():
    expect_failure(judge_source("13.4", "def f(record): return record.id, {}, 3.0"), "a dict with the keys")


def test_the_own_saturation_is_recomputed_and_quoted(phase_1):
    outcome = judge("13.4", solve("13.4"))
    assert phase_1["sweep"].id in outcome.sentence
    kept = phase_1["sweep"].samples
    law = np.mean(np.array(kept["clients16_req_per_s"]) * np.array(kept["clients16_e2e_s"]))
    assert outcome.measurement["in_flight"] == pytest.approx(law)
    best = np.mean(kept["clients16_req_per_s"])
    assert outcome.measurement["saturation"] == pytest.approx(best * np.mean(kept["clients1_e2e_s"]))


# 13.5, the milestone

CLAIMS = """
def f(profile, engines, sweep):
    shares = {{k[len("{phase}_"):-len("_self_fraction")]: np.mean(v) for k, v in profile.samples.items()
              if k.startswith("{phase}_") and k.endswith("_self_fraction")}}
    held = {{n: np.mean(profile.samples[n + "_bytes"]) for n in {parts}}}
    values = engines.samples["{rates}"]
    logs = np.log(values)
    around = stats.estimate_mean_interval(logs)
    most = {most}(sweep.settings["clients"])
    late = {{n: np.mean(sweep.samples[f"clients{{most}}_{{n}}_s"]) for n in ("waiting", "prefill", "decode")}}
    claims = {{"profile": profile.id, "engines": engines.id, "sweep": sweep.id,
              "slowest_part": {slowest}(shares, key=shares.get), "largest_memory": {largest}(held, key=held.get),
              "tok_per_s": np.exp(np.mean(logs)), "low": np.exp(around.low), "high": np.exp(around.high),
              "main_latency": {main}(late, key=late.get)}}
    {change}
    return claims
"""
RIGHT_CLAIMS = {
    "phase": "decode",
    "parts": ("weights", "kv_cache", "activations"),
    "rates": "mixed_vllm_tok_per_s",
    "most": "max",
    "slowest": "max",
    "largest": "max",
    "main": "max",
    "change": "pass",
}
PLAIN = (
    "m = stats.estimate_mean_interval(values); claims |= {'tok_per_s': np.mean(values), 'low': m.low, 'high': m.high}"
)
WRONG_CLAIMS = [
    ({"phase": "prefill"}, "the operator of the prefill"),
    ({"slowest": "min"}, "`slowest_part`: that is the smallest share"),
    ({"parts": ("weights", "kv_cache", "activations", "rest", "used")}, "`largest_memory`: that is everything else"),
    ({"parts": ("weights", "kv_cache", "activations", "rest")}, "`largest_memory` is rest, and the samples"),
    ({"largest": "min"}, "`largest_memory`: that is the smallest category"),
    ({"rates": "mixed_naive_tok_per_s"}, "naive Transformers"),
    ({"rates": "equal_vllm_tok_per_s"}, "equal lengths"),
    ({"rates": "shared_vllm_tok_per_s"}, "the samples of the cited record give"),
    ({"change": PLAIN}, "the plain mean of the rates"),
    ({"change": "claims['low'], claims['high'] = claims['high'], claims['low']"}, "the ends of the interval are"),
    ({"most": "min"}, "what dominates with the fewest clients"),
    ({"main": "min"}, "the smallest part of the latency"),
    ({"change": "claims['main_latency'] = 'ttft'"}, "`main_latency` is ttft"),
    ({"change": "claims['slowest_part'] = 'decode_' + claims['slowest_part']"}, "the samples of the cited record give"),
    ({"change": "claims['slowest_part'] = 3"}, "a name was asked for"),
    ({"change": "claims['tok_per_s'] = '300'"}, "a number was asked for"),
    ({"change": "del claims['low']"}, "a dict with the keys"),
    ({"change": "claims = list(claims)"}, "the claims are a dict"),
    ({"change": "claims['profile'] = 'r-aaaaaaaaaa'"}, "use the arguments of your function"),
    ({"change": "claims['profile'] = profile"}, "cite a record by its id"),
    ({"change": "claims['slowest_part'] = max(shares, key=lambda k: profile.samples[f'decode_{k}_self_fraction'][0])"},
     "the samples of the cited record give"),
    ({"change": "claims['slowest_part'] = max(shares, key=lambda k: "
                "max(profile.samples[f'decode_{k}_self_fraction']))"}, "the samples of the cited record give"),
    ({"change": "claims['slowest_part'] = max(shares, key=lambda k: "
                "np.median(profile.samples[f'decode_{k}_self_fraction']))"}, "the samples of the cited record give"),
    ({"change": "claims['profile'] = engines.id"}, 'cites record "engines" of lab 12'),
    ({"change": "claims['sweep'] = profile.id"}, 'and "sweep" of lab 13 is needed'),
]  # fmt: skip


@pytest.mark.parametrize(("parts", "phrase"), WRONG_CLAIMS)
def test_wrong_claims_have_their_own_sentence(parts, phrase, phase_1):
    expect_failure(judge_source("13.5", CLAIMS.format(**RIGHT_CLAIMS | parts)), phrase)


def test_other_right_claims_pass_and_are_quoted(phase_1):
    outcome = judge_source("13.5", CLAIMS.format(**RIGHT_CLAIMS))
    assert outcome.status == "passed", outcome.sentence
    logs = np.log(phase_1["engines"].samples["mixed_vllm_tok_per_s"])
    assert outcome.measurement["tok_per_s"] == pytest.approx(np.exp(logs.mean()))
    for word in ("`mul`", "memory is weights", "waiting is the largest", "you can profile a model"):
        assert word in outcome.sentence


def test_claims_that_are_written_down_for_the_made_up_records_fail_on_the_own_ones(phase_1):
    right = {one["profile"].id: milestones.PHASES["1"].estimate(one) for one in MADE}
    known = {
        one["profile"].id: {claim: record.id for claim, record in one.items()} | right[one["profile"].id]
        for one in MADE
    }
    source = f"def f(profile, engines, sweep): return {known!r}.get(profile.id, {next(iter(known.values()))!r})"
    expect_failure(judge_source("13.5", source), "your records: `profile` is")


@pytest.mark.parametrize("missing", ["profile", "engines", "sweep"])
def test_a_missing_record_is_not_attempted_and_names_the_lab_to_run(missing, phase_1, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("LABKIT_RUNS", str(tmp_path / "others"))
    for record in phase_1.values():
        if record.name != missing:
            save_record(record.lab, record.name, samples=record.samples, settings=record.settings)
    outcome = judge("13.5", solve("13.5"))
    number = {"profile": "11", "engines": "12", "sweep": "13"}[missing]
    assert (outcome.status, outcome.sentence.endswith(f"run lab {number}.")) == ("not attempted", True)
    assert milestones.has_records("1") is False
    said = capsys.readouterr().out
    assert said.count("not attempted") == 1 and f'record "{missing}" of labs/{number}_' in said


def test_with_all_records_the_milestone_is_ready_and_says_nothing(phase_1, capsys):
    assert milestones.has_records("1") is True
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
    source = "def f(profile, engines, sweep): return {'profile': profile.id, 'engines': engines.id, 'sweep': sweep.id}"
    with pytest.raises(Exception, match="lack what the milestone reads") as caught:
        milestones.expect_claims("1", eval(source.partition("return ")[2], dict(**find(phase_1))), load_records())
    assert "run their labs again" in caught.value.outcome.sentence


def find(phase_1):
    return milestones.find_newest("1", load_records())


def test_the_newest_record_of_each_kind_is_taken(phase_1):
    newer = save_record("12", "engines", samples={"mixed_vllm_tok_per_s": [50.0, 51.0, 52.0]})
    save_record("12", "engines_140m", samples={"mixed_vllm_tok_per_s": [5.0, 5.0]})
    assert milestones.find_newest("1", load_records())["engines"].id == newer.id
    assert judge("13.5", solve("13.5")).status == "passed"


def test_an_unknown_phase_is_an_error():
    with pytest.raises(CheckError, match="phase '2' has no milestone yet"):
        milestones.has_records("2")


def test_each_made_up_set_has_other_answers_and_decoys():
    answers = [milestones.PHASES["1"].estimate(one) for one in MADE]
    for key in ("slowest_part", "largest_memory", "main_latency"):
        assert len({one[key] for one in answers}) >= 3
    for one, right in zip(MADE, answers, strict=True):
        assert milestones._largest(milestones._latencies(one["sweep"], choose=min)) != right["main_latency"]
        held = [one["profile"].samples[f"{name}_bytes"][0] for name in ("weights", "kv_cache", "activations")]
        assert one["profile"].samples["used_bytes"][0] > max(held)
