"""The checks of lab 10: arithmetic intensity, the work of a decode step, the ceiling that binds, a record's distance
from its ceiling, and the budget of a step.
"""

import random
import statistics
from types import SimpleNamespace

from labkit.checks.cases import Case, expect_cases, expect_fields, expect_function, fail, is_number, is_same, passed
from labkit.checks.learner import shorten
from labkit.checks.mistakes import find_mistake
from labkit.checks.tensors import probe_frames
from labkit.results import load_records
from labkit.stats import estimate_percentile_interval
from labkit.views import Outcome

# 10.1: (m, k) @ (k, n).
_PRODUCTS = [
    Case(4096 / 3, (4096, 4096, 4096), {"bytes_per_value": 2}, why="2 · 4096³ FLOPs over 3 · 4096² values of 2 bytes."),
    Case(1.0, (2, 2, 4), {"bytes_per_value": 1.6}, why="32 FLOPs; 8 + 8 + 4 values of 1.6 bytes are 32 bytes."),
    Case(48 / 104, (2, 3, 4), {"bytes_per_value": 4}, why="48 FLOPs; 8 + 12 + 6 values of 4 bytes."),
    Case(
        8192 / 16896, (1, 64, 64), {"bytes_per_value": 4}, why="one row, a GEMV: 8,192 FLOPs, 4,224 values of 4 bytes."
    ),
]


def check_1(gemm_intensity) -> Outcome:
    """Arithmetic intensity of a matrix product; the oracle is 2mnk / (b · (mk + kn + mn)), divided through by mnk."""
    expect_function(gemm_intensity, "gemm_intensity")
    _refuse_library(gemm_intensity, 2, 3, 4, bytes_per_value=4)
    expect_cases(gemm_intensity, _PRODUCTS)
    draw, cases = random.Random(101), []
    for _ in range(25):
        m, n, k, b = draw.randrange(1, 99), draw.randrange(1, 99), draw.randrange(1, 99), draw.choice((0.5, 1, 2, 4))
        intensity = 2 / (b * (1 / n + 1 / m + 1 / k))
        cases.append(Case(intensity, (m, n, k), {"bytes_per_value": b}, why="FLOPs over bytes."))
    expect_cases(gemm_intensity, cases)
    return passed("a GEMV stays near 2 / bytes_per_value whatever its size; a square product grows with it.")


# 10.2: the oracle, and configurations that were worked out by hand or come from a published total.
_KEYS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
         "head_dim", "vocab_size", "tie_word_embeddings")  # fmt: skip


def _config(*values):
    return dict(zip(_KEYS, values, strict=True))


_TOY = _config(8, 16, 2, 4, 2, 2, 32, True)  # Q and O 64 values each, K and V 32 each, MLP 384: 576 a layer
_WIDE = _config(8, 16, 1, 2, 1, 8, 32, False)  # H · D = 16 is not the hidden size
_LLAMA_31_8B = _config(4096, 14336, 32, 32, 8, 128, 128256, False)
_QWEN3_06B = _config(1024, 3072, 28, 16, 8, 128, 151936, True)

# Products of the toy: 2 · 576 + 8 · 32 = 1,408 values. With 3 tokens in the cache the new one looks at 4.
STEPS = [
    Case((2 * 1408 + 4 * 2 * 4 * 2 * 4, 2 * 1408 + 2 * 2 * 2 * 2 * 4 * 2), (_TOY,),
         {"context_tokens": 3, "batch": 1, "bytes_per_value": 2},
         why="1,408 values in products, 4 positions: 2,816 + 256 FLOPs, 2,816 + 128 bytes."),
    Case((5 * (2 * 1408 + 256), 2 * 1408 + 5 * 128), (_TOY,), {"context_tokens": 3, "batch": 5, "bytes_per_value": 2},
         why="five sequences: five times the FLOPs and the cache, the weights once."),
    # Q 128, O 128, K 64, V 64, MLP 384, head 256: 1,024 values; an empty cache, so the new token sees only itself.
    Case((2 * 1024 + 4 * 2 * 8, 4 * 1024 + 2 * 8 * 4), (_WIDE,),
         {"context_tokens": 0, "batch": 1, "bytes_per_value": 4},
         why="1,024 values in products; H · D is 16 here, not the hidden size of 8."),
    # From the published total: 8,030,261,248 - 525,336,576 (input table) - 266,240 (norms) = 7,504,658,432 values.
    Case((15_546_187_776, 15_009_316_864 + 1024 * 131_072), (_LLAMA_31_8B,),
         {"context_tokens": 1023, "batch": 1, "bytes_per_value": 2}, why="Llama-3.1-8B, from its published total."),
    # Tied: 596,049,920 - 65,536 (norms) values, all in products.
    Case((1_426_849_792, 1_191_968_768 + 1024 * 114_688), (_QWEN3_06B,),
         {"context_tokens": 1023, "batch": 1, "bytes_per_value": 2}, why="Qwen3-0.6B: head_dim is in the config."),
]  # fmt: skip


def count_step(config, *, context_tokens, batch, bytes_per_value):
    """Return (FLOPs, bytes) of one decode step, matrix by matrix and head by head."""
    d, f, num_layers, heads, kv_heads, head_dim, vocabulary, _ = (config[key] for key in _KEYS)
    query, key = (d, heads * head_dim), (d, kv_heads * head_dim)
    layer = (query, query[::-1], key, key, (d, f), (d, f), (f, d))
    values = sum(rows * columns for rows, columns in (*layer * num_layers, (d, vocabulary)))
    seen = context_tokens + 1
    scores = sum(2 * seen * head_dim + 2 * head_dim * seen for _ in range(num_layers * heads))
    cached = sum(2 * seen * head_dim for _ in range(num_layers * kv_heads))
    return batch * (2 * values + scores), bytes_per_value * (values + batch * cached)


def draw_config(draw):
    """Return a random small configuration: grouped heads, any head dimension, tied or not."""
    kv_heads = draw.choice((1, 2, 3))
    return _config(
        8 * draw.randrange(2, 9), draw.randrange(10, 99), draw.randrange(1, 6), kv_heads * draw.choice((1, 2, 4)),
        kv_heads, 2 * draw.randrange(2, 9), draw.randrange(20, 400), draw.random() < 0.5,
    )  # fmt: skip


def check_2(decode_work) -> Outcome:
    """FLOPs and bytes of one decode step; hand-worked and public configurations, then shapes drawn at random."""
    expect_function(decode_work, "decode_work")
    _refuse_library(decode_work, *STEPS[0].args, **STEPS[0].kwargs)
    expect_cases(decode_work, STEPS)
    draw, cases = random.Random(102), []
    for _ in range(25):
        config = draw_config(draw)
        given = {"context_tokens": draw.randrange(0, 999), "batch": draw.randrange(1, 9),
                 "bytes_per_value": draw.choice((1, 2, 4))}  # fmt: skip
        cases.append(Case(count_step(config, **given), (config,), given, why="the formulas above, with this config."))
    expect_cases(decode_work, cases)
    return passed("the batch shares the weights, and each sequence brings a cache of its own.")


# 10.3: flops, num_bytes, flop_per_s, byte_per_s, dispatch_s -> (name, seconds).
_LIMITS = [
    Case(("bandwidth", 0.02), (2e9, 2e9, 1e12, 1e11, 0.001), why="2 ms, 20 ms and 1 ms: the longest binds."),
    Case(("compute", 0.2), (2e9, 2e9, 1e10, 1e11, 0.001), why="200 ms, 20 ms and 1 ms: the longest binds."),
    Case(("dispatch", 0.03), (2e9, 2e9, 1e12, 1e11, 0.03), why="2 ms, 20 ms and 30 ms: the longest binds."),
    Case(("dispatch", 0.004), (1e6, 1e6, 1e11, 1e10, 0.004), why="a tiny model: its arithmetic is nearly free."),
    Case(("compute", 1.5), (3e12, 1e9, 2e12, 1e12, 0.0), why="a long prefill: many FLOPs per byte."),
]


def check_3(binding_ceiling) -> Outcome:
    """Which of three limits binds, and its time; the oracle sorts the three."""
    expect_function(binding_ceiling, "binding_ceiling")
    _refuse_library(binding_ceiling, *_LIMITS[0].args)
    expect_cases(binding_ceiling, _LIMITS)
    draw, cases = random.Random(103), []
    for _ in range(40):
        flops, num_bytes = 10 ** draw.uniform(6, 12), 10 ** draw.uniform(6, 11)
        flop_per_s, byte_per_s, dispatch_s = (10 ** draw.uniform(*ends) for ends in ((9, 15), (9, 13), (-5, 0)))
        seconds, name = sorted(
            ((flops / flop_per_s, "compute"), (num_bytes / byte_per_s, "bandwidth"), (dispatch_s, "dispatch"))
        )[-1]
        given = (flops, num_bytes, flop_per_s, byte_per_s, dispatch_s)
        cases.append(Case((name, seconds), given, why="the longest of the three times binds."))
    expect_cases(binding_ceiling, cases)
    return passed("a ceiling has a name: making anything else faster does not help.")


# 10.4 and 10.5: made-up records in the shape of the lab's own, then the learner's.
_FLOAT32 = "gemm_float32_flop_per_s"


def _make_record(number, *, decode_s, gemm, bandwidth, gemv, dispatch_s, flops, num_bytes, weights, gemm_key=_FLOAT32):
    """Return a made-up record; with another `gemm_key`, the rate of float32 stands beside it as a decoy."""
    samples = {"decode_s": decode_s, _FLOAT32: [0.06 * rate for rate in gemm], gemm_key: gemm,
               "bandwidth_byte_per_s": bandwidth, "gemv_byte_per_s": gemv, "dispatch_s": dispatch_s,
               "decode_batch4_s": [2 * s for s in decode_s]}  # fmt: skip
    settings = {"decode": {"flops": flops, "bytes": num_bytes, "weight_bytes": weights}, "gemm": gemm_key}
    return SimpleNamespace(id=f"r-00000000b{number}", lab="10", name="roofline", samples=samples, settings=settings)


_MANY_S = [0.006, 0.0065, 0.0062, 0.0061, 0.007, 0.0090, 0.0059, 0.0063, 0.0066, 0.0058, 0.0071, 0.0064]
MADE = (
    # Dispatch is the ceiling, and the weights at the speed of a GEMV take longer than it.
    _make_record(0, decode_s=_MANY_S, gemm=[8e10, 9e10, 9.5e10, 7e10], bandwidth=[2.0e10, 2.2e10, 1.7e10],
                 gemv=[1.2e10, 1.3e10, 1.9e10], dispatch_s=[0.0024, 0.0022, 0.0031], flops=2.2e7, num_bytes=4.4e7,
                 weights=3.9e7),
    # A GPU: the weights and the dispatch add up to more than the step.
    _make_record(1, decode_s=[0.031, 0.030, 0.034, 0.029, 0.040, 0.0305], gemm=[9e14, 8e14, 8.8e14],
                 bandwidth=[1.9e12, 2.0e12, 1.2e12], gemv=[1.6e12, 1.7e12, 1.71e12], dispatch_s=[0.004, 0.009, 0.0041],
                 flops=1.5e10, num_bytes=4.8e10, weights=4.7e10, gemm_key="gemm_bfloat16_flop_per_s"),
    # The products take longest, and neither part of the budget explains them.
    _make_record(2, decode_s=[1.0, 1.2, 1.1, 1.9, 1.15, 1.05, 1.3, 1.25, 0.95, 1.12], gemm=[1e9, 1.1e9, 3e9],
                 bandwidth=[1e10, 2e10, 1.5e10], gemv=[8e9, 9e9, 6e9], dispatch_s=[0.002, 0.003], flops=9e8,
                 num_bytes=1e8, weights=9e7),
    _make_record(3, decode_s=[0.0043, 0.0041, 0.0042, 0.0049, 0.0040, 0.00425, 0.0052], gemm=[6e10, 5e10, 5.5e10],
                 bandwidth=[9e10, 9.8e10, 7e10], gemv=[2.2e10, 2.0e10, 2.3e10], dispatch_s=[0.0026, 0.0029, 0.0025],
                 flops=1.1e7, num_bytes=2.3e7, weights=2.0e7),
)  # fmt: skip


def judge_record(record) -> dict:
    """Return the right answer to 10.4."""
    middle = {key: statistics.median(values) for key, values in record.samples.items()}
    work, step_s = record.settings["decode"], middle["decode_s"]
    times = {"compute": work["flops"] / middle[record.settings["gemm"]],
             "bandwidth": work["bytes"] / middle["bandwidth_byte_per_s"], "dispatch": middle["dispatch_s"]}  # fmt: skip
    name = max(times, key=times.get)
    ends = estimate_percentile_interval(record.samples["decode_s"], 50)
    return {"record": record.id, "ceiling": name, "share": times[name] / step_s, "low": times[name] / ends.high,
            "high": times[name] / ends.low, "mbu": times["bandwidth"] / step_s,
            "mfu": times["compute"] / step_s}  # fmt: skip


def judge_budget(record) -> dict:
    """Return the right answer to 10.5."""
    middle = {key: statistics.median(values) for key, values in record.samples.items()}
    parts = {"dispatch": middle["dispatch_s"],
             "weights": record.settings["decode"]["weight_bytes"] / middle["gemv_byte_per_s"]}  # fmt: skip
    parts["rest"] = max(middle["decode_s"] - parts["dispatch"] - parts["weights"], 0.0)
    reading = judge_record(record)
    return {"record": record.id, **{f"{name}_s": value for name, value in parts.items()},
            "largest": max(parts, key=parts.get), "unexplained": parts["rest"] / middle["decode_s"],
            "mbu": reading["mbu"], "mfu": reading["mfu"]}  # fmt: skip


def check_4(read_record) -> Outcome:
    """The distance of a record from its ceiling: made-up ones, then the learner's own, recomputed from its samples."""
    expect_function(read_record, "read_record")
    _expect_readings(read_record, judge_record, MADE, where="made-up record")
    own = list(load_records(lab="10", name="roofline"))
    if not own:
        return passed("the made-up records are read right; measure, and check again for your own.")
    _expect_readings(read_record, judge_record, own[-1:], where="your record")
    right = judge_record(own[-1])
    return passed(
        f"your record {own[-1].id}: {100 * right['share']:.0f} % of its {right['ceiling']} ceiling "
        f"({100 * right['low']:.0f} to {100 * right['high']:.0f} %).",
        {key: right[key] for key in ("share", "low", "high")},
    )


def check_5(decode_budget) -> Outcome:
    """The budget of a step: made-up records with another largest part each, then the learner's own, recomputed."""
    expect_function(decode_budget, "decode_budget")
    _expect_readings(decode_budget, judge_budget, MADE, where="made-up record")
    # A record of the lab's first version has no GEMV of its own.
    own = [record for record in load_records(lab="10", name="roofline") if "gemv_byte_per_s" in record.samples]
    if not own:
        return passed("the made-up records are read right; measure, and check again for your own.")
    _expect_readings(decode_budget, judge_budget, own[-1:], where="your record")
    right = judge_budget(own[-1])
    return passed(
        f"your record {own[-1].id}: the largest part of a step is {_MEANINGS[right['largest']]}; "
        f"{100 * right['unexplained']:.0f} % of it is explained by neither dispatch nor weights.",
        {key: right[key] for key in ("unexplained", "mbu", "mfu")},
    )


_MEANINGS = {"dispatch": "dispatch", "weights": "the weights", "rest": "the unexplained rest"}
_WORDS = {
    "ceiling": (("compute", "bandwidth", "dispatch"), "the longest of the three times binds"),
    "largest": (tuple(_MEANINGS), "`largest` names the part that takes longest"),
}


def _expect_readings(function, judge, records, *, where) -> None:
    """Fail unless the answer about every record is the right one; a known mistake explains all of them."""
    answers = [_read_answer(function, record, judge(record), f"{where} {record.id}") for record in records]
    rights = [judge(record) for record in records]
    wrong = [[key for key in right if not is_same(got[key], right[key], relative=1e-6)]
             for got, right in zip(answers, rights, strict=True)]  # fmt: skip
    if not any(wrong):
        return
    differs, ends = set().union(*wrong), {"low", "high"}
    looked_at = rights[0].keys() if differs <= ends else rights[0].keys() - ends  # the ends follow from the rest

    def explains(make):
        pairs = [(got, make(record)) for got, record in zip(answers, records, strict=True)]
        return all(is_same(got[key], made[key], relative=1e-6) for got, made in pairs for key in looked_at)

    k = next(k for k, keys in enumerate(wrong) if keys)
    got, right, where = answers[k], rights[k], f"{where} {records[k].id}"
    if sentence := find_mistake(function.exercise, function.reference_name, explains):
        fail(f"{where}: {sentence}")
    for key, (_, rule) in _WORDS.items():
        if key in wrong[k]:
            fail(f"{where}: {rule}, and that is {right[key]}, not {got[key]}.")
    if differs <= ends:
        fail(f"{where}: the shares are right, `low` and `high` are not: the ideal time over the ends of p50_interval.")
    name = wrong[k][0]
    fail(f"{where}: `{name}` is {got[name]:.4g}, and {right[name]:.4g} follows from its samples.")


def _read_answer(function, record, right, where) -> dict:
    """Return the answer about one record; fail unless its fields are of the right kind."""
    got = function(record)
    expect_fields(got, tuple(right), record, call=function.call, where=where)
    for key, value in got.items():
        names, _ = _WORDS.get(key, ((), ""))
        if names and (not isinstance(value, str) or value not in names):
            fail(f"{where}: `{key}` is {shorten(repr(value), 40)}: write one of {', '.join(names)}.")
        if not names and key != "record" and not is_number(value):
            fail(f"{where}: `{key}` is {shorten(repr(value), 40)}, and a number was asked for.")
    return got


def _refuse_library(learner, *args, **kwargs) -> None:
    """Fail when labkit's own roofline, or the check itself, does the exercise, under whatever name it was called."""
    frames = probe_frames(learner.function, *args, **kwargs)
    if any(frame.startswith(("labkit.roofline.", "labkit.checks.", f"{__name__}.")) for frame in frames):
        fail("the course's own code is the answer itself: write the formula by hand once, then trust the library.")
