"""Lab 00's checks: the solution passes, the stub is "not attempted", and each named mistake has its own sentence."""

import statistics

import numpy as np
import pytest
from check_bench import UNTOUCHED, Bench, expect_pass

from labkit.checks import lab00
from labkit.checks.reference import find_reference
from labkit.results import save_record
from labkit.stats import summarize

FUNCTIONS = {"00.1": "weight_bytes", "00.2": "largest_that_fits", "00.3": "read_stream"}
BENCH = Bench(lab00, FUNCTIONS)
judge, judge_source, solve = BENCH.judge, BENCH.judge_source, BENCH.solve
# Skewed, so that median, mean, percentiles and extremes are all different numbers.
SPEEDS = [70.125, 71.5, 72.25, 72.75, 73.0, 73.625, 74.5, 75.25, 76.0, 76.875, 78.5, 95.0]


@pytest.fixture
def record():
    return save_record("00", "decode", samples={"decode_tok_per_s": SPEEDS, "ttft_s": [0.02] * 12})


@pytest.mark.parametrize("exercise", FUNCTIONS)
def test_the_reference_solution_passes(exercise):
    expect_pass(judge(exercise, solve(exercise)))


def test_the_reference_solution_of_the_record_passes(record):
    outcome = judge("00.4", BENCH.run(find_reference("00.4"), stored=record, summarize=summarize)["answer"])
    assert outcome.status == "passed", outcome.sentence
    assert record.id in outcome.sentence


@pytest.mark.parametrize("body", UNTOUCHED)
@pytest.mark.parametrize("exercise", FUNCTIONS)
def test_an_untouched_stub_is_not_attempted(exercise, body):
    assert BENCH.judge_stub(exercise, body).status == "not attempted"


@pytest.mark.parametrize("stub", [None, ..., {"record": None, "p50_tok_per_s": None}, {"record": ...}])
def test_an_untouched_answer_is_not_attempted(stub):
    assert judge("00.4", stub).status == "not attempted"


WRONG_BYTES = {
    "def f(n, *, bits): return n * bits": "those are bits",
    "def f(n, *, bits): return n * 2": "do not assume 16 bits",
    "def f(n, *, bits): return n * 4": "do not assume 32 bits",
    "def f(n, *, bits): return n * (bits // 8)": "multiply first",
    "def f(n, *, bits): return n * max(1, bits // 8)": "small weights are packed",
    "def f(n, *, bits): return n * bits / 8 / 1e9": "gigabytes",
    "def f(n, *, bits): return n * bits / 8 / 2**30": "GiB",
    "def f(n, *, bits): return n * bits / 10": "8 bits, not 10",
    "def f(n, *, bits): return n * bits // 8 + 1": "16 bits are 2 bytes",
    "def f(n, *, bits): return n * bits // 8 if n else 1": "no parameters need no bytes",
    "def f(n, *, bits): return str(n * bits // 8)": "that is a text",
    "def f(n, *, bits): return n * bits // 8, 'bytes'": "that is a row of 2",
    "def f(n, *, bits): n * bits // 8 or print(n)": "is a `return` missing?",
    "def f(n, bits_per_weight): return n * bits_per_weight // 8": "unexpected keyword argument 'bits'",
    "def f(n, *, bits): return {16: 2 * n, 4: n // 2}[bits]": "raised KeyError: 8 (your line 1",
    "f = 3.8e9": "without brackets",
    "def f(n, *, bits):\n    import numpy as np\n    return np.int32(n % 2**31) * bits // 8": "Python's own integers",
    "def f(n, *, bits):\n    import numpy as np\n    return np.float32(n) * np.float32(bits) / 8": "digits of float32",
}


@pytest.mark.filterwarnings("ignore:overflow encountered")  # numpy says so itself, but few read it
@pytest.mark.parametrize(("source", "phrase"), WRONG_BYTES.items())
def test_wrong_bytes_have_their_own_sentence(source, phrase):
    outcome = judge_source("00.1", source)
    assert outcome.status == "failed"
    assert phrase in outcome.sentence, outcome.sentence


@pytest.mark.parametrize("source", [
    "def f(n, *, bits): return n * bits / 8",
    "def f(num_parameters, bits): return num_parameters * (bits / 8)",
    "def f(n, *, bits): return -(-n * bits // 8)",
    "def f(n, *, bits):\n    import numpy as np\n    return np.int64(n) * bits // 8",
    "def f(n, *, bits):\n    print('bits', bits)\n    return n * bits >> 3",
])  # fmt: skip
def test_other_right_ways_to_count_bytes_pass(source):
    outcome = judge_source("00.1", source)
    assert outcome.status == "passed", outcome.sentence


FITS = """
def f(candidates, *, memory_bytes, bits, reserve=0.2):
    sizes = {{name: {size} for name, n in candidates.items()}}
    fitting = {{name: size for name, size in sizes.items() if {rule}}}
    return {best}
"""
SIZE, RULE, BEST = "n * bits / 8", "size <= (1 - reserve) * memory_bytes", "max(fitting, key=fitting.get, default=None)"
WRONG_FITS = {
    ("rule", "size <= memory_bytes"): "the reserve is forgotten",
    ("rule", "size <= reserve * memory_bytes"): "uses the reserve itself",
    ("rule", "size * (1 + reserve) <= memory_bytes"): "not an extra on the weights",
    ("rule", "size <= 0.8 * memory_bytes"): "always 20 %",
    ("rule", "size < (1 - reserve) * memory_bytes"): "equality fits: compare with <=",
    ("rule", "size >= (1 - reserve) * memory_bytes"): "2,000 do not",
    ("best", "min(fitting, key=fitting.get, default=None)"): "the smallest that fits",
    ("best", "next(iter(fitting), None)"): "the first that fits",
    ("best", "[None, *fitting][-1]"): "the last that fits",
    ("best", "max(fitting, default=None)"): "the last in the alphabet",
    ("best", "max(fitting, key=fitting.get)"): "raised ValueError",
    ("best", "max(fitting, key=fitting.get, default='')"): "nothing fits: the answer is None",
    ("best", "max(fitting.values(), default=None)"): "a number, and a text was asked for",
    ("size", "n"): "parameters are compared with bytes",
    ("size", "n * bits"): "bits are compared with bytes",
    ("size", "n * 2"): "16 bits are assumed",
}


@pytest.mark.parametrize(("part", "phrase"), WRONG_FITS.items())
def test_wrong_choices_have_their_own_sentence(part, phrase):
    parts = {"size": SIZE, "rule": RULE, "best": BEST, part[0]: part[1]}
    outcome = judge_source("00.2", FITS.format(**parts))
    assert outcome.status == "failed"
    assert phrase in outcome.sentence, outcome.sentence


def test_a_choice_that_empties_the_given_dict_is_told_to_copy_it():
    source = FITS.format(size=SIZE, rule=RULE, best=f"(candidates.clear(), {BEST})[1]")
    assert "changes its arguments: work on a copy" in judge_source("00.2", source).sentence


def test_a_tie_answered_by_neither_of_both_fails():
    both = "(lambda best: best and (best[0] if len(best) == 1 else 'small'))"
    best = f"{both}([k for k in fitting if fitting[k] == max(fitting.values())] or None)"
    assert "tie and either is right" in judge_source("00.2", FITS.format(size=SIZE, rule=RULE, best=best)).sentence


@pytest.mark.parametrize("parts", [
    {"best": "(sorted(fitting, key=fitting.get) or [None])[-1]"},
    {"best": "max(reversed(fitting), key=fitting.get, default=None)"},
    {"rule": "size + reserve * memory_bytes <= memory_bytes"},
    {"rule": "size / (1 - reserve) <= memory_bytes"},
    {"rule": "size / memory_bytes <= 1 - reserve"},
    {"size": "int(n) * bits // 8"},
    {"size": "-(-int(n) * bits // 8)"},
])  # fmt: skip
def test_other_right_ways_to_choose_pass(parts):
    outcome = judge_source("00.2", FITS.format(**{"size": SIZE, "rule": RULE, "best": BEST} | parts))
    assert outcome.status == "passed", outcome.sentence


STREAM = """
def f(start_s, t):
    if not t:
        return None, None
    return {ttft}, {rate} if len(t) > 1 else None
"""
TTFT, RATE = "t[0] - start_s", "(len(t) - 1) / (t[-1] - t[0])"
WRONG_STREAMS = {
    ("rate", "len(t) / (t[-1] - t[0])"): "n tokens have n - 1 gaps",
    ("rate", "len(t) / (t[-1] - start_s)"): "the wait for the first token is the TTFT",
    ("rate", "(len(t) - 1) / (t[-1] - start_s)"): "divides by the time since the start",
    ("rate", "(t[-1] - t[0]) / (len(t) - 1)"): "seconds per token (TPOT)",
    ("rate", "(len(t) - 1) / (t[-1] - t[-2])"): "tokens a second",
    ("ttft", "t[0]"): "subtract `start_s`",
    ("ttft", "t[-1] - start_s"): "ends at the first token",
    ("ttft", "1e3 * (t[0] - start_s)"): "in milliseconds",
    ("ttft", "start_s - t[0]"): "negative",
    ("ttft", "t[0] - start_s or None"): "a TTFT of 0, which is not None",
}


@pytest.mark.parametrize(("part", "phrase"), WRONG_STREAMS.items())
def test_wrong_readings_have_their_own_sentence(part, phrase):
    outcome = judge_source("00.3", STREAM.format(**{"ttft": TTFT, "rate": RATE, part[0]: part[1]}))
    assert outcome.status == "failed"
    assert phrase in outcome.sentence, outcome.sentence


RIGHT_STREAM = STREAM.format(ttft=TTFT, rate=RATE)


@pytest.mark.parametrize(("old", "new", "phrase"), [
    (f"return {TTFT}, {RATE} if len(t) > 1 else None", f"return {RATE} if len(t) > 1 else None, {TTFT}", "are swapped"),
    ("None, None", "0, 0", "0 looks like a measurement"),
    ("None, None", "None", "both answers are None"),
    ("    if not t:\n        return None, None\n", "", "raised IndexError"),
    ("len(t) > 1", "len(t) > 2", "two tokens have one gap"),
    (" if len(t) > 1 else None", "", "raised ZeroDivisionError: float division by zero"),
    ("return t[0] - start_s, ", "return t.pop(0) - start_s, ", "got (0.5, 1.6)"),
])  # fmt: skip
def test_wrong_edges_of_a_stream_have_their_own_sentence(old, new, phrase):
    assert old in RIGHT_STREAM
    source = RIGHT_STREAM.replace(old, new)
    if new == "0, 0":
        source = source.replace("else None", "else 0")
    outcome = judge_source("00.3", source)
    assert outcome.status == "failed"
    assert phrase in outcome.sentence, outcome.sentence


def test_nan_for_a_missing_value_has_its_own_sentence():
    source = RIGHT_STREAM.replace("None", "float('nan')")
    assert "None, not NaN" in judge_source("00.3", source).sentence


def test_the_median_gap_has_its_own_sentence():
    rate = "(lambda g: 1 / g if g else None)(__import__('statistics').median(b - a for a, b in zip(t, t[1:])))"
    assert "median gap, which hides stalls" in judge_source("00.3", STREAM.format(ttft=TTFT, rate=rate)).sentence


def test_a_stream_whose_list_is_emptied_is_told_to_work_on_a_copy():
    source = RIGHT_STREAM.replace(
        "    return t[0]", "    t.append(t[-1]); t.pop(); t += [t[-1]]; t.pop(); t[:] = t\n    return t[0]"
    )
    assert judge_source("00.3", source).status == "passed", "a list that looks the same afterwards was not changed"
    spoiled = RIGHT_STREAM.replace("def f(start_s, t):", "def f(start_s, times):\n    t = list(times); times.clear()")
    assert "changes its arguments" in judge_source("00.3", spoiled).sentence


@pytest.mark.parametrize("source", [
    RIGHT_STREAM.replace("return t[0] - start_s, ", "return [t[0] - start_s, ").replace("else None", "else None]"),
    STREAM.format(ttft="__import__('numpy').float64(t[0] - start_s)", rate="__import__('numpy').array(" + RATE + ")"),
    STREAM.format(ttft=TTFT, rate="1 / (sum(b - a for a, b in zip(t, t[1:])) / (len(t) - 1))"),
])  # fmt: skip
def test_other_right_ways_to_read_a_stream_pass(source):
    outcome = judge_source("00.3", source)
    assert outcome.status == "passed", outcome.sentence


def test_a_generator_of_the_right_numbers_is_told_to_return_them():
    source = f"def f(start_s, t):\n    yield {TTFT} if t else None\n    yield {RATE} if len(t) > 1 else None"
    outcome = judge_source("00.3", source)
    assert outcome.status == "failed", "the next cell asks for item 1, which a generator does not have"
    assert "`f` gives its answer by a generator (`yield`)" in outcome.sentence


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


MEAN = float(np.mean(SPEEDS))
HALF = 2.2009851600916384 * statistics.stdev(SPEEDS) / 12**0.5  # t quantile of 0.975 with 11 degrees of freedom
SPREAD = [float(value) for value in np.percentile(SPEEDS, (5, 95))]
WRONG_QUOTES = [
    ({"p50_tok_per_s": MEAN}, "is the mean"),
    ({"p50_tok_per_s": 80.25}, "the median is not 80.25"),
    ({"low_tok_per_s": 76.875, "high_tok_per_s": 72.25}, "swapped"),
    ({"low_tok_per_s": min(SPEEDS), "high_tok_per_s": max(SPEEDS)}, "smallest and the largest"),
    ({"low_tok_per_s": MEAN - HALF, "high_tok_per_s": MEAN + HALF}, "interval of the mean"),
    ({"low_tok_per_s": SPREAD[0], "high_tok_per_s": SPREAD[1]}, "spread of single"),
    ({"low_tok_per_s": 70.0}, "the lower end of the interval is not 70.0"),
    ({"high_tok_per_s": 77.9}, "the upper end of the interval is not 77.9"),
    ({"p50_tok_per_s": 1 / 74.0625, "low_tok_per_s": 1 / 76.875, "high_tok_per_s": 1 / 72.25}, "seconds per token"),
    ({"p50_tok_per_s": "74.06 tok/s"}, "a number in tok/s"),
    ({"p50_tok_per_s": True}, "a number in tok/s"),
    ({"high_tok_per_s": None}, "a number in tok/s"),
    ({"p50_tok_per_s": 7}, "at least two digits"),
    ({"p50_tok_per_s": 0.7}, "at least two digits"),
    ({"p50_tok_per_s": 0.0}, "at least two digits"),
    ({"p50_tok_per_s": 74.0}, "74.0625 to the places that 74.0 shows is 74.1. Copy the digits"),
    ({"low_tok_per_s": 72.0}, "the lower end 72.0 was rounded further than it looks"),
    ({"p50_tok_per_s": 10**400}, "a number in tok/s"),
    ({"p50_tok_per_s": float("nan")}, "a number in tok/s"),
    ({"record": "r-0000000000"}, "no record 'r-0000000000'"),
    ({"record": None}, "no record None"),
    ({"note": "extra"}, "these four keys: record, p50_tok_per_s"),
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
    assert outcome.sentence == "`record` is the record itself, and its id was asked for: `stored.id`."
    assert len(judge("00.4", make_answer(record) | {"record": ["x"] * 999}).sentence) < 200


def test_too_few_samples_for_an_interval_are_named():
    short = save_record("00", "decode", samples={"decode_tok_per_s": SPEEDS[:5]})
    assert "5 samples, and a 95 % interval of the median needs 6" in judge("00.4", make_answer(short)).sentence


def test_a_quote_may_be_rounded_but_not_wrongly(record):
    rounded = make_answer(record, p50_tok_per_s=74.06, low_tok_per_s=72.2, high_tok_per_s=77)
    assert judge("00.4", rounded).status == "passed"
    assert judge("00.4", make_answer(record, p50_tok_per_s=74.05)).status == "failed"
    assert judge("00.4", make_answer(record, p50_tok_per_s=np.float64(74.0625))).status == "passed"


@pytest.mark.parametrize("answer", [[1, 2, 3, 4], "r-0123456789", 74.06, {}])
def test_an_answer_of_another_shape_is_told_the_keys(answer):
    assert "a dict with these four keys" in judge("00.4", answer).sentence
