"""Lab 12's checks: the solution passes, the stub is "not attempted", and each named mistake has its own sentence."""

import statistics

import numpy as np
import pytest
import scipy.stats
from check_bench import UNTOUCHED, Bench, expect_failure, expect_pass

from labkit import stats
from labkit.checks import _rounds, lab12
from labkit.checks._same_work import NAMES, PAIRS
from labkit.checks._student import T_95
from labkit.results import save_record

FUNCTIONS = {"12.1": "stream_metrics", "12.2": "what_differs", "12.3": "compare_throughput", "12.4": "read_verdict"}
BENCH = Bench(lab12, FUNCTIONS, {"stats": stats, "statistics": statistics, "np": np, "T_95": T_95})
judge, judge_source, solve = BENCH.judge, BENCH.judge_source, BENCH.solve


@pytest.mark.parametrize("exercise", FUNCTIONS)
def test_the_reference_solution_passes(exercise):
    expect_pass(judge(exercise, solve(exercise)))


@pytest.mark.parametrize("body", UNTOUCHED)
@pytest.mark.parametrize("exercise", FUNCTIONS)
def test_an_untouched_stub_is_not_attempted(exercise, body):
    assert BENCH.judge_stub(exercise, body).status == "not attempted"


def test_a_verdict_of_nothing_but_none_is_not_attempted():
    source = "def f(record): return dict.fromkeys(('record', 'ratio', 'low', 'high', 'verdict'))"
    assert judge_source("12.4", source).status == "not attempted"


# 12.1

STREAM = """
def f(sent_s, chunks):
    chunks = {keep}
    if not chunks:
        return None, None, None
    n = {n}
    first, last = chunks[0][0], chunks[-1][0]
    return {ttft}, {tpot}, {e2e}
"""
RIGHT_STREAM = {
    "keep": "[c for c in chunks if c[1] > 0]",
    "n": "sum(c[1] for c in chunks)",
    "ttft": "first - sent_s",
    "tpot": "(last - first) / (n - 1) if n > 1 else None",
    "e2e": "last - sent_s",
}
WRONG_STREAMS = [
    ({"n": "len(chunks)"}, "chunks are counted as tokens"),
    ({"tpot": "(last - first) / n if n > 1 else None"}, "n - 1 gaps"),
    ({"tpot": "(last - first) / n"}, "n - 1 gaps"),
    ({"tpot": "(last - sent_s) / (n - 1) if n > 1 else None"}, "counts from the sending"),
    ({"tpot": "(last - sent_s) / n"}, "end to end over all tokens"),
    ({"tpot": "(n - 1) / (last - first) if last > first else 0.0 if n > 1 else None"}, "tokens per second"),
    ({"tpot": "(last - first) / max(1, n - 1)"}, "a single token gives TPOT 0"),
    ({"keep": "chunks"}, "a chunk without a token is taken for content"),
    ({"e2e": "last - first"}, "not from the first one"),
    ({"ttft": "first", "e2e": "last"}, "subtract `sent_s`"),
    ({"ttft": "1e3 * (first - sent_s)", "tpot": "1e3 * (last - first) / (n - 1) if n > 1 else None",
      "e2e": "1e3 * (last - sent_s)"}, "milliseconds"),
    ({"tpot": "(last - first) / (n - 1) if len(chunks) > 1 else None"}, "3 gaps of 0 s"),
]  # fmt: skip


@pytest.mark.parametrize(("parts", "phrase"), WRONG_STREAMS)
def test_wrong_stream_metrics_have_their_own_sentence(parts, phrase):
    expect_failure(judge_source("12.1", STREAM.format(**RIGHT_STREAM | parts)), phrase)


def test_a_stream_without_tokens_has_no_zeros():
    source = STREAM.format(**RIGHT_STREAM).replace("None, None, None", "0, 0, 0").replace("else None", "else 0")
    expect_failure(judge_source("12.1", source), "what cannot be known is None")


@pytest.mark.parametrize("parts", [
    {"keep": "list(filter(lambda c: c[1], chunks))"},
    {"n": "int(np.sum([c[1] for c in chunks]))", "tpot": "np.float64((last - first) / (n - 1)) if n != 1 else None"},
])  # fmt: skip
def test_other_right_stream_metrics_pass(parts):
    outcome = judge_source("12.1", STREAM.format(**RIGHT_STREAM | parts))
    assert outcome.status == "passed", outcome.sentence


# 12.2

WORK = """
def f(a, b):
    p, q = a["requests"], b["requests"]
    both = {both}
    found = []
    if {shared}: found.append("requests")
    if {prompts}: found.append("prompt lengths")
    if {outputs}: found.append("output lengths")
    if {dtype}: found.append("dtype")
    if {sampling}: found.append("sampling")
    return {out}
"""
RIGHT_WORK = {
    "both": "[k for k in p if k in q]",
    "shared": "set(p) != set(q)",
    "prompts": "any(p[k][0] != q[k][0] for k in both)",
    "outputs": "any(p[k][1] != q[k][1] for k in both)",
    "dtype": "a['dtype'] != b['dtype']",
    "sampling": "a['sampling'] != b['sampling']",
    "out": "found",
}
TOTALS = {f"{name}s": f"sum(v[{k}] for v in p.values()) != sum(v[{k}] for v in q.values())"
          for k, name in enumerate(("prompt", "output"))}  # fmt: skip
SORTED = {f"{name}s": f"sorted(v[{k}] for v in p.values()) != sorted(v[{k}] for v in q.values())"
          for k, name in enumerate(("prompt", "output"))}  # fmt: skip
LISTED = {f"{name}s": f"[v[{k}] for v in p.values()] != [v[{k}] for v in q.values()]"
          for k, name in enumerate(("prompt", "output"))}  # fmt: skip
ZIPPED = {f"{name}s": f"any(x[{k}] != y[{k}] for x, y in zip(p.values(), q.values()))"
          for k, name in enumerate(("prompt", "output"))}  # fmt: skip
WRONG_WORKS = [
    (TOTALS, "the totals are compared"),
    (SORTED, "sorted lengths are compared"),
    (LISTED, "in the order in which they ended"),
    (ZIPPED, "in the order in which they ended"),
    *(({name: wrong[name]}, phrase) for name in ("prompts", "outputs") for wrong, phrase in (
        (TOTALS, "the totals are compared"), (SORTED, "sorted lengths are compared"),
        (LISTED, "in the order in which they ended"), (ZIPPED, "in the order in which they ended"))),
    ({"shared": "len(p) != len(q)"}, "the numbers of requests are compared"),
    ({"sampling": "str(a['sampling']) != str(b['sampling'])"}, "the same settings, written in another order"),
    ({"out": "found + found[:1]"}, "is named more than once"),
    ({"out": "np.array(found)"}, "a list of names is asked for, and this is a ndarray"),
    ({"out": "[[n] for n in found]"}, "is none of the names"),
    ({"shared": "False"}, "a missing request is not seen"),
    ({"shared": "set(p) - set(q)"}, "only in one of the two runs"),
    ({"sampling": "a['sampling'].get('temperature') != b['sampling'].get('temperature')"}, "only the temperature"),
    ({"dtype": "False"}, "`dtype` is never named"),
    ({"sampling": "False"}, "`sampling` is never named"),
    ({"outputs": "False"}, "`output lengths` is never named"),
    ({"out": "found[:1]"}, "only the first difference"),
    ({"out": f"[n for n in {NAMES} if n not in found]"}, "what agrees"),
    ({"out": "['the dtype' if n == 'dtype' else n for n in found]"}, "'the dtype' is none of the names"),
    ({"out": "not found"}, "True or False"),
    ({"out": "', '.join(found) or 'same work'"}, "that is a text"),
]  # fmt: skip


@pytest.mark.parametrize(("parts", "phrase"), WRONG_WORKS)
def test_wrong_answers_about_the_same_work_have_their_own_sentence(parts, phrase):
    expect_failure(judge_source("12.2", WORK.format(**RIGHT_WORK | parts)), phrase)


@pytest.mark.parametrize("out", ["found", "tuple(found)", "found[::-1]", "set(found)"])
def test_the_names_may_come_in_any_order(out):
    outcome = judge_source("12.2", WORK.format(**RIGHT_WORK | {"out": out}))
    assert outcome.status == "passed", outcome.sentence


@pytest.mark.parametrize(("exercise", "source"), [
    ("12.1", STREAM.format(**RIGHT_STREAM).replace("return None,", "yield from (None,").replace("None\n", "None)\n")
     .replace("    n = ", "        return\n    n = ").replace("return first", "yield from (first") + ")"),
    ("12.2", WORK.format(**RIGHT_WORK).replace("return found", "yield from found")),
])  # fmt: skip
def test_a_generator_is_told_to_return_a_row(exercise, source):
    expect_failure(judge_source(exercise, source), "gives its answer by a generator")


def test_a_function_that_raises_on_a_missing_request_is_told_so():
    source = WORK.format(**RIGHT_WORK | {"both": "p"})
    expect_failure(judge_source("12.2", source), "raised KeyError")


def test_every_name_is_the_only_difference_of_a_pair_and_one_pair_has_none():
    expected = [found for *_, found, _ in PAIRS]
    assert [] in expected
    assert all([name] in expected for name in NAMES)


# 12.3

ROUNDS = """
def f(a_rounds, b_rounds):
    def rate(r):
        return {rate}
    a, b = [rate(r) for r in a_rounds], [rate(r) for r in b_rounds]
    said = {compare}
    return {out}
"""
RIGHT_ROUNDS = {
    "out": "said.ratio, said.interval.low, said.interval.high",
    "rate": "sum(n for s, e, n in r) / (max(e for s, e, n in r) - min(s for s, e, n in r))",
    "compare": "stats.compare(a, b, better='higher')",
}
WRONG_ROUNDS = [
    ({"rate": "sum(n for s, e, n in r) / sum(e - s for s, e, n in r)"}, "the durations are added up"),
    ({"rate": "statistics.fmean(n / (e - s) for s, e, n in r)"}, "what one user sees"),
    ({"rate": "sum(n / (e - s) for s, e, n in r)"}, "speeds of the requests are added up"),
    ({"rate": "len(r) / (max(e for s, e, n in r) - min(s for s, e, n in r))"}, "requests are counted"),
    ({"rate": "sum(n for s, e, n in r) / max(e for s, e, n in r)"}, "the window begins at 0"),
    ({"rate": "sum(n for s, e, n in r) / (r[-1][1] - r[0][0])"}, "take the latest end"),
    ({"rate": "sum(n for s, e, n in r) / max(e - s for s, e, n in r)"}, "the longest single request"),
    ({"compare": "stats.compare(a, b)"}, "turned round"),
    ({"compare": "stats.compare(b, a, better='higher')"}, "turned round"),
    ({"compare": "stats.compare(a, b, better='higher', is_paired=False)"}, "not paired"),
    ({"compare": "stats.compare(a, b, better='higher', confidence=0.9)"}, "expected"),
    ({"compare": "stats.compare(sorted(a), sorted(b), better='higher')"}, "the rounds are sorted by speed"),
    ({"compare": "stats.compare(a[:3], b[:3], better='higher')"}, "only the first three rounds are read"),
    ({"out": "said.ratio, said.interval.high, said.interval.low"}, "the ends of the interval are swapped"),
    ({"out": "statistics.fmean(a) / statistics.fmean(b), said.interval.low, said.interval.high"}, "divides two means"),
]


@pytest.mark.parametrize(("parts", "phrase"), WRONG_ROUNDS)
def test_wrong_throughputs_have_their_own_sentence(parts, phrase):
    expect_failure(judge_source("12.3", ROUNDS.format(**RIGHT_ROUNDS | parts)), phrase)


BY_HAND = """
def f(a_rounds, b_rounds):
    def rate(r):
        return sum(n for s, e, n in r) / (max(e for s, e, n in r) - min(s for s, e, n in r))
    logs = [np.log(rate(a) / rate(b)) for a, b in zip(a_rounds, b_rounds)]
    half = {t} * np.std(logs, ddof={ddof}) {root}
    return np.exp(np.mean(logs)), np.exp(np.mean(logs) - half), np.exp(np.mean(logs) + half)
"""
PLAIN = """
def f(a_rounds, b_rounds):
    def rate(r):
        return sum(n for s, e, n in r) / (max(e for s, e, n in r) - min(s for s, e, n in r))
    ratios = [rate(a) / rate(b) for a, b in zip(a_rounds, b_rounds)]
    interval = stats.estimate_mean_interval(ratios)
    return np.mean(ratios), interval.low, interval.high
"""


def test_a_ratio_by_hand_passes_and_its_usual_mistakes_do_not():
    good = {"t": "T_95[len(logs) - 1]", "root": "/ len(logs) ** 0.5", "ddof": 1}
    assert judge_source("12.3", BY_HAND.format(**good)).status == "passed"
    expect_failure(judge_source("12.3", BY_HAND.format(**good | {"root": ""})), "spread of single rounds")
    expect_failure(judge_source("12.3", BY_HAND.format(**good | {"t": "1.959963984540054"})), "1.96")
    expect_failure(judge_source("12.3", BY_HAND.format(**good | {"t": "4.3026527297"})), "Student's t for three rounds")
    expect_failure(judge_source("12.3", BY_HAND.format(**good | {"ddof": 0})), "the divisor n - 1")
    expect_failure(judge_source("12.3", PLAIN), "the plain mean of the ratios")


@pytest.mark.parametrize("case", _rounds.ROUNDS[:3] + _rounds.ROUNDS[4:] + _rounds.draw_rounds(4))
def test_the_table_of_the_check_agrees_with_scipys_paired_test(case):
    logs = [np.log([_rounds.estimate_tok_per_s(r) for r in rounds]) for rounds in case.args]
    oracle = scipy.stats.ttest_rel(*logs).confidence_interval(0.95)
    _, low, high = case.expected
    assert (low, high) == pytest.approx((np.exp(oracle.low), np.exp(oracle.high)), rel=1e-9)


def test_the_rounds_by_hand_have_the_speeds_that_their_comments_say():
    speeds = [[_rounds.estimate_tok_per_s(r) for r in rounds] for rounds in (_rounds.A, *_rounds.ROUNDS[4].args)]
    assert speeds == [[20.0, 30.0, 20.0], [30.0, 50.0, 40.0, 20.0, 60.0], [20.0, 25.0, 10.0, 16.0, 40.0]]


@pytest.mark.parametrize("num_degrees", T_95)
def test_the_printed_table_of_t_is_scipys(num_degrees):
    assert T_95[num_degrees] == pytest.approx(scipy.stats.t.ppf(0.975, num_degrees), rel=1e-12)


# 12.4

VERDICT = """
def f(record):
    a, b = record.samples[{a}], record.samples[{b}]
    gain = {compare}
    return {{"record": {record}, "ratio": {ratio}, "low": {low}, "high": {high}, "verdict": {verdict}}}
"""
RIGHT_VERDICT = {
    "a": "'mixed_vllm_tok_per_s'",
    "b": "'mixed_naive_tok_per_s'",
    "compare": "stats.compare(a, b, better='higher')",
    "record": "record.id",
    "ratio": "gain.ratio",
    "low": "gain.interval.low",
    "high": "gain.interval.high",
    "verdict": "gain.verdict",
}
WRONG_VERDICTS = [
    ({"compare": "stats.compare(a, b)"}, "turned round"),
    ({"a": RIGHT_VERDICT["b"], "b": RIGHT_VERDICT["a"]}, "turned round"),
    ({"low": "gain.interval.high", "high": "gain.interval.low"}, "ends are swapped"),
    ({"a": "'equal_vllm_tok_per_s'", "b": "'equal_naive_tok_per_s'"}, "numbers of equal lengths"),
    ({"a": "'shared_vllm_tok_per_s'", "b": "'shared_naive_tok_per_s'"}, "numbers of the shared prefix"),
    ({"a": "'mixed_batched_tok_per_s'"}, "batched Transformers over naive"),
    ({"b": "'mixed_batched_tok_per_s'"}, "vLLM over batched"),
    ({"ratio": "statistics.fmean(a) / statistics.fmean(b)"}, "divides two averages"),
    ({"compare": "stats.compare(a, b, better='higher', is_paired=False)"}, "its interval is not"),
    ({"compare": "stats.compare(sorted(a), sorted(b), better='higher')"}, "sorted before they are paired"),
    ({"compare": "stats.compare(a[:3], b[:3], better='higher')"}, "only the first three rounds are read"),
    ({"low": "gain.ratio * np.exp(-4.30265272974946 / T_95[len(a) - 1] * np.log(gain.interval.high / gain.ratio))",
      "high": "gain.ratio * np.exp(4.30265272974946 / T_95[len(a) - 1] * np.log(gain.interval.high / gain.ratio))"},
     "4.30 is Student's t for three rounds"),
    ({"verdict": "np.array(['faster', 'slower'])"}, "write faster, slower or cannot tell"),
    ({"verdict": "[gain.verdict]"}, "write faster, slower or cannot tell"),
    ({"ratio": "10**400"}, "a number was asked for"),
    ({"ratio": "gain.ratio - 1"}, "is not the ratio of mixed_vllm_tok_per_s over"),
    ({"record": "record"}, "its id was asked for"),
    ({"ratio": "str(gain.ratio)"}, "a number was asked for"),
    ({"verdict": "'vLLM'"}, "write faster, slower or cannot tell"),
    ({"verdict": "'faster' if gain.ratio > 1 else 'slower'"}, "is more than the samples say"),
    ({"verdict": "'cannot tell'"}, "does not hold 1"),
    ({"verdict": "{'faster': 'slower', 'slower': 'faster'}.get(gain.verdict, gain.verdict)"}, "about vLLM"),
]  # fmt: skip


@pytest.mark.parametrize(("parts", "phrase"), WRONG_VERDICTS)
def test_wrong_verdicts_have_their_own_sentence(parts, phrase):
    expect_failure(judge_source("12.4", VERDICT.format(**RIGHT_VERDICT | parts)), phrase)


def test_a_verdict_that_is_no_dict_with_these_keys_is_told_so():
    expect_failure(judge_source("12.4", "def f(record): return record.id, 3.0"), "a dict with the keys")


def save_engines(vllm):
    samples = {"mixed_vllm_tok_per_s": vllm, "mixed_naive_tok_per_s": [100.0, 99.0, 103.0, 101.0, 97.0]}
    return save_record("12", "engines", samples=samples)


def test_the_learners_own_record_is_recomputed_and_quoted():
    save_engines([90.0, 91.0, 92.0, 93.0, 94.0])
    record = save_engines([200.0, 210.0, 205.0, 195.0, 220.0])
    outcome = judge("12.4", solve("12.4"))
    assert outcome.status == "passed", outcome.sentence
    assert record.id in outcome.sentence and "faster" in outcome.sentence
    logs = np.log(record.samples["mixed_vllm_tok_per_s"]) - np.log(record.samples["mixed_naive_tok_per_s"])
    interval = scipy.stats.ttest_1samp(logs, 0).confidence_interval(0.95)
    assert outcome.measurement["ratio"] == pytest.approx(np.exp(logs.mean()))
    assert outcome.measurement["low"] == pytest.approx(np.exp(interval.low), rel=1e-6)
    assert outcome.measurement["high"] == pytest.approx(np.exp(interval.high), rel=1e-6)


def test_an_answer_made_for_the_made_up_records_fails_on_the_own_one():
    record = save_record("12", "engines", samples={
        "mixed_vllm_tok_per_s": [200.0, 210.0, 205.0, 195.0, 220.0, 190.0],
        "mixed_naive_tok_per_s": [100.0, 99.0, 103.0, 101.0, 97.0, 102.0],
    })  # fmt: skip
    source = VERDICT.format(**RIGHT_VERDICT | {"compare": "stats.compare(a[:5], b[:5], better='higher')"})
    expect_failure(judge_source("12.4", source), f"your record {record.id}")


def test_without_a_record_of_the_own_the_pass_says_so():
    assert "made-up" in judge("12.4", solve("12.4")).sentence
