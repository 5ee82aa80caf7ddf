"""Lab 10's checks: the solution passes, the stub is "not attempted", and each named mistake has its own sentence."""

import statistics
import sys

import pytest
import scipy.stats
from check_bench import UNTOUCHED, Bench, expect_failure, expect_pass

from labkit import roofline, stats
from labkit.checks import lab10
from labkit.checks._decode_work import STEPS, count_step, draw_config
from labkit.checks._distance import MADE, judge_record
from labkit.results import save_record

FUNCTIONS = {
    "10.1": "gemm_intensity",
    "10.2": "decode_work",
    "10.3": "binding_ceiling",
    "10.4": "read_record",
    "10.5": "decode_sentence",
}
BENCH = Bench(lab10, FUNCTIONS, {"stats": stats, "statistics": statistics, "roofline": roofline})
judge, judge_source, solve = BENCH.judge, BENCH.judge_source, BENCH.solve


@pytest.mark.parametrize("exercise", FUNCTIONS)
def test_the_reference_solution_passes(exercise):
    expect_pass(judge(exercise, solve(exercise)))


@pytest.mark.parametrize("body", UNTOUCHED)
@pytest.mark.parametrize("exercise", FUNCTIONS)
def test_an_untouched_stub_is_not_attempted(exercise, body):
    assert BENCH.judge_stub(exercise, body).status == "not attempted"


# 10.1

WRONG_INTENSITIES = [
    ("m * n * k / ((m * k + k * n + m * n) * b)", "two FLOPs"),
    ("2 * m * n * k / ((m * k + k * n) * b)", "the output is written too"),
    ("2 * m * n * k / (k * n * b)", "only the weight is counted"),
    ("2 * m * n * k / (m * n * b)", "the inputs are read too"),
    ("2 * m * n * k / ((m * k + m * n) * b)", "the second matrix is forgotten"),
    ("2 * m * n * k / ((k * n + m * n) * b)", "the first matrix is forgotten"),
    ("2 * m * n * k / (m * k + k * n + m * n)", "FLOP per value"),
    ("2 * m * n * k / ((m * k + k * n + m * n) * b * 8)", "FLOP per bit"),
    ("(m * k + k * n + m * n) * b / (2 * m * n * k)", "turn the fraction round"),
    ("2 * m * n * k / ((m * k + k * n + 2 * m * n) * b)", "each value once"),
    ("2 * m * n * k", "FLOPs alone"),
    ("2 / b if m == 1 else 2 * m * n * k / ((m * k + k * n + m * n) * b)", "expected"),  # "near 2 / b" is not equal
    ("2 * n**3 / (3 * n * n * b)", "expected"),  # right for square products only
]


@pytest.mark.parametrize(("formula", "phrase"), WRONG_INTENSITIES)
def test_wrong_intensities_have_their_own_sentence(formula, phrase):
    expect_failure(
        judge_source("10.1", f"def f(m, n, k, *, bytes_per_value):\n    b = bytes_per_value\n    return {formula}"),
        phrase,
    )


def test_answers_learned_by_heart_do_not_pass():
    table = "{(4096, 4096, 4096): 4096 / 3, (2, 2, 4): 1.0, (2, 3, 4): 48 / 104, (1, 64, 64): 8192 / 16896}"
    source = f"def f(m, n, k, *, bytes_per_value):\n    return {table}.get((m, n, k), 1.0)"
    assert judge_source("10.1", source).status == "failed"


def test_another_right_way_to_the_intensity_passes():
    source = "def f(m, n, k, *, bytes_per_value):\n    return 2 / (bytes_per_value * (1 / m + 1 / n + 1 / k))"
    assert judge_source("10.1", source).status == "passed"


@pytest.mark.parametrize(
    ("exercise", "source"),
    [
        ("10.1", "def f(m, n, k, *, bytes_per_value):\n"
                 "    return roofline.estimate_gemm(m, n, k, bytes_per_value=bytes_per_value).intensity"),
        ("10.2", "def f(config, **given):\n"
                 "    from labkit.checks import _decode_work as hidden\n"
                 "    return getattr(hidden, 'count' + '_step')(config, **given)"),
        ("10.2", "def f(config, **given):\n"
                 "    work = roofline.estimate_decode_step(config | {'model_type': 'llama'}, **given)\n"
                 "    return work.flops, work.weight_bytes + work.kv_bytes"),
        ("10.3", "def f(flops, num_bytes, flop_per_s, byte_per_s, dispatch_s):\n"
                 "    from labkit.roofline import Work\n"
                 "    rates = {'flop_per_s': flop_per_s, 'byte_per_s': byte_per_s, 'dispatch_s': dispatch_s}\n"
                 "    found = roofline.estimate_time_bound(Work(flops, num_bytes, 0, 0), **rates)\n"
                 "    return found.limit, found.seconds"),
    ],
)  # fmt: skip
def test_the_library_does_not_do_the_exercise(exercise, source):
    expect_failure(judge_source(exercise, source), "write the formula by hand")


# 10.2

STEP = """
def f(config, *, context_tokens, batch, bytes_per_value):
    d, layers = config["hidden_size"], config["num_hidden_layers"]
    heads, groups, size = {heads}, {groups}, {size}
    layer = {attention} + {mlp}
    weights = layers * layer + {head}
    seen = {seen}
    flops = {flops}
    cached = {cached}
    return {result}
"""
RIGHT_STEP = {
    "heads": 'config["num_attention_heads"]',
    "groups": 'config["num_key_value_heads"]',
    "size": 'config["head_dim"]',
    "attention": "2 * d * heads * size + 2 * d * groups * size",
    "mlp": '3 * d * config["intermediate_size"]',
    "head": 'd * config["vocab_size"]',
    "seen": "context_tokens + 1",
    "flops": "batch * (2 * weights + 4 * layers * heads * size * seen)",
    "cached": "2 * layers * groups * size * seen",
    "result": "flops, bytes_per_value * (weights + batch * cached)",
}
WRONG_STEPS = [
    ({"flops": "batch * (weights + 2 * layers * heads * size * seen)"}, "a multiply-add is two FLOPs"),
    ({"groups": 'config["num_attention_heads"]'}, "K and V have fewer heads"),
    ({"attention": "4 * d * heads * size"}, "the matrices of K and V are narrower"),
    ({"cached": "2 * layers * heads * size * seen"}, "the cache keeps num_key_value_heads"),
    ({"size": 'd // config["num_attention_heads"]'}, "head_dim stands in the config"),
    ({"mlp": '2 * d * config["intermediate_size"]'}, "three matrices"),
    ({"head": "0"}, "the output head is missing"),
    ({"head": '(0 if config["tie_word_embeddings"] else d * config["vocab_size"])'}, "a tied head is multiplied"),
    ({"result": 'flops, bytes_per_value * (weights + d * config["vocab_size"] + batch * cached)'}, "looked up"),
    ({"result": 'flops, bytes_per_value * (weights + (not config["tie_word_embeddings"]) * d * config["vocab_size"]'
                " + batch * cached)"}, "looked up"),
    ({"seen": "context_tokens"}, "looks at itself"),
    ({"flops": "batch * 2 * weights"}, "attention itself is missing"),
    ({"flops": "batch * (2 * weights + 2 * layers * heads * size * seen)"}, "two products"),
    ({"flops": "batch * (2 * weights + 4 * layers * groups * size * seen)"}, "every query head"),
    ({"cached": "layers * groups * size * seen"}, "keys AND values"),
    ({"cached": "2 * groups * size * seen"}, "every layer has a cache"),
    ({"cached": "0"}, "the cache is read as well"),
    ({"flops": "2 * weights + 4 * layers * heads * size * seen"}, "its own FLOPs"),
    ({"result": "flops, bytes_per_value * batch * (weights + cached)"}, "once for the whole batch"),
    ({"result": "flops, bytes_per_value * (weights + cached)"}, "the batch does not share it"),
    ({"result": "flops, weights + batch * cached"}, "multiply by bytes_per_value"),
    ({"result": "bytes_per_value * (weights + batch * cached), flops"}, "FLOPs come first"),
    ({"result": "flops, 2 * (weights + batch * cached)"}, "expected"),  # 16 bits wired in
    ({"result": "flops, bytes_per_value * weights + 2 * batch * cached"}, "expected"),
]  # fmt: skip


@pytest.mark.parametrize(("parts", "phrase"), WRONG_STEPS)
def test_wrong_steps_have_their_own_sentence(parts, phrase):
    expect_failure(judge_source("10.2", STEP.format(**RIGHT_STEP | parts)), phrase)


def test_the_step_written_out_passes_and_a_changed_config_is_seen():
    assert judge_source("10.2", STEP.format(**RIGHT_STEP)).status == "passed"
    source = STEP.format(**RIGHT_STEP).replace(
        "    d, layers", "    config['vocab_size'] += 0; config['x'] = 1\n    d, layers"
    )
    expect_failure(judge_source("10.2", source), "changes its arguments")


@pytest.mark.parametrize("change", ["config.pop('hidden_size')", "config['num_key_value_heads'] = 4"])
def test_an_answer_that_changes_its_config_does_not_spoil_the_check_for_the_next_one(change):
    source = STEP.format(**RIGHT_STEP).replace("    d, layers", f"    {change}\n    d, layers")
    assert judge_source("10.2", source).status == "failed"
    expect_pass(judge("10.2", solve("10.2")))


@pytest.mark.parametrize("exercise", ["10.1", "10.2", "10.3"])
def test_leaving_python_is_a_failure_and_the_profiler_stays_as_it_was(exercise):
    before = sys.getprofile()
    expect_failure(judge_source(exercise, "def f(*args, **kwargs): raise SystemExit('stop')"), "SystemExit: stop")
    assert sys.getprofile() is before


def test_the_shown_cases_learned_by_heart_do_not_pass():
    table = [(case.kwargs, case.expected) for case in STEPS]

    def f(config, **given):
        return next((right for known, right in table if known == given and True), table[0][1])

    assert judge("10.2", f).status == "failed"


def test_the_oracle_counts_as_labkits_own_roofline_does():
    import random

    draw = random.Random(0)
    for _ in range(50):
        config = draw_config(draw)
        given = {"context_tokens": draw.randrange(99), "batch": draw.randrange(1, 5), "bytes_per_value": 2}
        work = roofline.estimate_decode_step(config | {"model_type": "llama"}, **given)
        flops, num_bytes = count_step(config, **given)
        assert flops == work.flops
        norms = (2 * config["num_hidden_layers"] + 1) * config["hidden_size"]
        rows = 0 if config["tie_word_embeddings"] else min(given["batch"], config["vocab_size"]) * config["hidden_size"]
        assert num_bytes == work.weight_bytes - 2 * (norms + rows) + work.kv_bytes


# 10.3

LIMIT = """
def f(flops, num_bytes, flop_per_s, byte_per_s, dispatch_s):
    times = {times}
    name = {name}
    return {result}
"""
RIGHT_LIMIT = {
    "times": '{"compute": flops / flop_per_s, "bandwidth": num_bytes / byte_per_s, "dispatch": dispatch_s}',
    "name": "max(times, key=times.get)",
    "result": "name, times[name]",
}
WRONG_LIMITS = [
    ({"name": "min(times, key=times.get)"}, "the longest binds"),
    ({"result": "name, sum(times.values())"}, "added up"),
    ({"result": "name, min(times.values())"}, "the seconds are of the shortest"),
    ({"times": '{"compute": flop_per_s / flops, "bandwidth": byte_per_s / num_bytes, "dispatch": dispatch_s}'},
     "time is work over rate"),
    ({"times": '{"compute": flops / byte_per_s, "bandwidth": num_bytes / flop_per_s, "dispatch": dispatch_s}'},
     "they are crossed"),
    ({"times": '{"compute": flops / flop_per_s, "bandwidth": num_bytes / byte_per_s}'}, "dispatch is left out"),
    ({"times": '{"bandwidth": flops / flop_per_s, "compute": num_bytes / byte_per_s, "dispatch": dispatch_s}'},
     "are exchanged"),
    ({"result": "name, 1e3 * times[name]"}, "milliseconds"),
    ({"result": "times[name], name"}, "the name comes first"),
    ({"name": '"bandwidth" if flops / num_bytes < flop_per_s / byte_per_s else "compute"'}, "dispatch is left out"),
    ({"name": '"dispatch" if dispatch_s > 0.002 else max(times, key=times.get)'}, "expected"),
]  # fmt: skip


@pytest.mark.parametrize(("parts", "phrase"), WRONG_LIMITS)
def test_wrong_ceilings_have_their_own_sentence(parts, phrase):
    expect_failure(judge_source("10.3", LIMIT.format(**RIGHT_LIMIT | parts)), phrase)


def test_a_list_and_another_way_pass():
    source = LIMIT.format(**RIGHT_LIMIT | {"result": "[name, max(times.values())]"})
    assert judge_source("10.3", source).status == "passed"


# 10.4

READ = """
def f(record):
    work, decode = record.settings["decode"], {decode}
    seconds = {middle}(decode)
    ends = {ends}
    times = {{
        "compute": work["flops"] / {middle}(record.samples[{gemm}]),
        "bandwidth": work["bytes"] / {middle}(record.samples["bandwidth_byte_per_s"]),
        "dispatch": {middle}(record.samples["dispatch_s"]),
    }}
    name = {name}
    return {{"record": {record}, "ceiling": name, "share": {share}, "low": {low}, "high": {high},
            "mbu": {mbu}, "mfu": {mfu}}}
"""
RIGHT_READ = {
    "decode": 'record.samples["decode_s"]',
    "middle": "statistics.median",
    "ends": "(lambda i: (i.low, i.high))(stats.summarize(decode).p50_interval)",
    "gemm": 'record.settings["gemm"]',
    "name": "max(times, key=times.get)",
    "record": "record.id",
    "share": "times[name] / seconds",
    "low": "times[name] / ends[1]",
    "high": "times[name] / ends[0]",
    "mbu": 'times["bandwidth"] / seconds',
    "mfu": 'times["compute"] / seconds',
}
WRONG_READS = [
    ({"middle": "statistics.fmean"}, "those are means"),
    ({"name": "min(times, key=times.get)"}, "the longest of the three times binds"),
    ({"record": "record"}, "record.id"),
    ({"name": '"memory"'}, "KeyError"),
    ({"low": "times[name] / ends[0]", "high": "times[name] / ends[1]"}, "the ends are swapped"),
    ({"mbu": 'times["compute"] / seconds', "mfu": 'times["bandwidth"] / seconds'}, "exchanged"),
    ({"share": "seconds / times[name]", "mbu": 'seconds / times["bandwidth"]', "mfu": 'seconds / times["compute"]'},
     "turned round"),
    ({key: f"100 * {RIGHT_READ[key]}" for key in ("share", "low", "high", "mbu", "mfu")}, "those are percent"),
    ({"ends": "(min(decode), max(decode))"}, "the range of the samples"),
    ({"ends": "(lambda i: (i.low, i.high))(stats.summarize(decode).mean_interval)"}, "`low` and `high` are not"),
    ({"decode": 'record.samples["decode_batch4_s"]'}, "batch 4"),
    ({"gemm": '"gemm_float32_flop_per_s"'}, "the rate of float32 products"),
    ({"mfu": '0.5 * times["compute"] / seconds'}, "`mfu` is"),
    ({"share": "str(times[name])"}, "a number was asked for"),
]  # fmt: skip


@pytest.mark.parametrize(("parts", "phrase"), WRONG_READS)
def test_wrong_distances_have_their_own_sentence(parts, phrase):
    expect_failure(judge_source("10.4", READ.format(**RIGHT_READ | parts)), phrase)


def test_the_reading_written_out_passes():
    assert judge_source("10.4", READ.format(**RIGHT_READ)).status == "passed"


def test_a_reading_of_nothing_but_none_is_not_attempted():
    keys = "('record', 'ceiling', 'share', 'low', 'high', 'mbu', 'mfu')"
    assert judge_source("10.4", f"def f(record): return dict.fromkeys({keys})").status == "not attempted"
    expect_failure(judge_source("10.4", "def f(record): return {'share': 1.0}"), "the keys record, ceiling")


def test_the_made_up_records_bind_at_each_of_the_three():
    assert {judge_record(record)["ceiling"] for record in MADE} == {"compute", "bandwidth", "dispatch"}
    for record in MADE:
        found = judge_record(record)
        assert 0 < found["low"] < found["share"] < found["high"] < 1
        # The interval of a median by another route: the binomial distribution of scipy.
        ordered = sorted(record.samples["decode_s"])
        n = len(ordered)
        ends = [statistics.median(ordered) * found["share"] / found[key] for key in ("high", "low")]
        ranks = [min(range(n), key=lambda k: abs(ordered[k] - end)) for end in ends]
        assert [ordered[k] for k in ranks] == pytest.approx(ends)
        low, high = ranks  # from 0: the ranks of the formula are one more, and the sum runs to rank high - 1
        assert scipy.stats.binom.cdf(high, n, 0.5) - scipy.stats.binom.cdf(low, n, 0.5) >= 0.95


def test_the_learners_own_record_is_recomputed_from_its_samples():
    made = MADE[0]
    record = save_record("10", "roofline", samples=made.samples, settings=made.settings)
    outcome = judge("10.4", solve("10.4"))
    assert outcome.status == "passed"
    assert record.id in outcome.sentence
    assert outcome.measurement["share"] == pytest.approx(judge_record(made)["share"])
    wired = {one.id: judge_record(one) for one in MADE}
    expect_failure(judge("10.4", lambda one: wired.get(one.id, wired[MADE[1].id])), f"your record {record.id}")


# 10.5

SENTENCE = """
def f(found):
    reasons = {reasons}
    share, mbu, mfu = ({style} for key in ("share", "mbu", "mfu"))
    return f"{text}"
"""
RIGHT_SENTENCE = {
    "reasons": '{"dispatch": "starting the operations of every layer takes most of the time",'
    ' "bandwidth": "all the weights have to be read again for each token",'
    ' "compute": "the products take longer than reading what they need"}',
    "style": 'f"{100 * found[key]:.1f} %"',
    "text": "my decode runs at {share} of its binding ceiling ({found['ceiling']}), because "
    "{reasons[found['ceiling']]}; MBU {mbu}, MFU {mfu}",
}
WRONG_SENTENCES = [
    ({"text": "my decode is slow"}, "it must read"),
    ({"text": RIGHT_SENTENCE["text"].replace("{found['ceiling']}", "dispatch")}, "in brackets"),
    ({"style": 'f"{100 * found[key] + 3:.1f} %"'}, "and the record says"),
    ({"style": 'f"{found[key]:.3f} %"'}, "and the record says"),
    ({"text": RIGHT_SENTENCE["text"].split("because")[0] + "because it is slow {mbu} {mfu}"}, "words"),
    ({"text": RIGHT_SENTENCE["text"].replace("MBU {mbu}, ", "so it goes, ")}, "mbu"),
    ({"text": RIGHT_SENTENCE["text"].replace(", MFU {mfu}", "")}, "mfu"),
    ({"text": RIGHT_SENTENCE["text"].replace("{reasons[found['ceiling']]}", "this is how things simply are in here")},
     "does not say what"),
    ({"text": RIGHT_SENTENCE["text"] + ", and 12.3 % of something else"}, "no number of this record"),
    ({"text": RIGHT_SENTENCE["text"].replace("MBU {mbu}, MFU {mfu}", "{mfu} of the bandwidth and {mbu} of the FLOP/s")},
     "mbu and mfu are exchanged"),
]  # fmt: skip


@pytest.mark.parametrize(("parts", "phrase"), WRONG_SENTENCES)
def test_wrong_sentences_have_their_own_sentence(parts, phrase):
    filled = RIGHT_SENTENCE | parts
    source = SENTENCE
    for key, value in filled.items():
        source = source.replace("{" + key + "}", value, 1)
    expect_failure(judge_source("10.5", source), phrase)


def test_a_sentence_of_ones_own_passes_with_other_digits_and_line_breaks():
    source = SENTENCE
    style = 'f"{100 * found[key]:.2f}%"'
    for key, value in (RIGHT_SENTENCE | {"style": style}).items():
        source = source.replace("{" + key + "}", value.replace("of its binding", "of its\\n binding"), 1)
    assert judge_source("10.5", source).status == "passed"


@pytest.mark.parametrize("why", ["all the weights have to be read again for each token", "it is slow, nobody knows"])
def test_one_reason_for_all_ceilings_is_not_enough(why):
    def f(found):
        share, mbu, mfu = (f"{100 * found[key]:.1f} %" for key in ("share", "mbu", "mfu"))
        return (f"my decode runs at {share} of its binding ceiling ({found['ceiling']}), because {why}; it uses {mbu} "
                f"of the memory bandwidth and {mfu} of the compute peak")  # fmt: skip

    expect_failure(judge("10.5", f), "does not say what a dispatch ceiling is made of")


def test_reasons_in_other_words_pass_and_so_do_the_rest_and_the_confidence():
    def f(found):
        why = {"dispatch": "we must start hundreds of tiny kernels for one token",
               "bandwidth": "all parameters have to come from DRAM, whatever we do",
               "compute": "the matrix units have more to do than the buses"}[found["ceiling"]]  # fmt: skip
        share, mbu, mfu, rest = (100 * x for x in (found["share"], found["mbu"], found["mfu"], 1 - found["mfu"]))
        return (f"My decode runs at {share:.1f} % of its binding ceiling ({found['ceiling']}), because {why}: "
                f"{mbu:.1f} % of peak bandwidth, {mfu:.1f} % of the FLOPs, {rest:.1f} % stay idle (95 % interval).")

    expect_pass(judge("10.5", f))


def test_the_sentence_is_held_to_the_learners_own_record():
    made = MADE[2]
    record = save_record("10", "roofline", samples=made.samples, settings=made.settings)
    outcome = judge("10.5", solve("10.5"))
    assert outcome.status == "passed"
    assert record.id in outcome.sentence
    assert f"{100 * judge_record(made)['share']:.1f} %" in outcome.sentence


def test_a_record_without_samples_of_the_second_batch_is_read_too():
    made = MADE[0]
    samples = {key: value for key, value in made.samples.items() if key != "decode_batch4_s"}
    save_record("10", "roofline", samples=samples, settings=made.settings)
    assert judge("10.4", solve("10.4")).status == "passed"
