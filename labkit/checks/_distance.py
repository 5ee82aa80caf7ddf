"""How far is a record's decode from its ceiling? Made-up records, the right answer, and what wrong ones would say."""

import math
import statistics
from types import SimpleNamespace
from typing import NoReturn

from labkit.checks.cases import expect_fields, fail
from labkit.checks.learner import shorten, tidy
from labkit.stats import estimate_percentile_interval

__all__ = ["FIELDS", "MADE", "NAMES", "expect_distance", "judge_record"]

NAMES = ("compute", "bandwidth", "dispatch")
FIELDS = ("record", "ceiling", "share", "low", "high", "mbu", "mfu")


_FLOAT32 = "gemm_float32_flop_per_s"


def _make_record(number, *, decode_s, gemm, bandwidth, dispatch_s, flops, num_bytes, gemm_key=_FLOAT32):
    """Return a made-up record in the shape of lab 10's own; with another `gemm_key` float32 stands there as a decoy."""
    samples = {"decode_s": decode_s, _FLOAT32: [0.06 * rate for rate in gemm], gemm_key: gemm,
               "bandwidth_byte_per_s": bandwidth, "dispatch_s": dispatch_s,
               "decode_batch4_s": [2 * s for s in decode_s]}  # fmt: skip
    settings = {"decode": {"flops": flops, "bytes": num_bytes}, "gemm": gemm_key}
    return SimpleNamespace(id=f"r-00000000b{number}", lab="10", name="roofline", samples=samples, settings=settings)


_MANY_S = [0.006, 0.0065, 0.0062, 0.0061, 0.007, 0.0090, 0.0059, 0.0063, 0.0066, 0.0058, 0.0071, 0.0064]
MADE = (
    _make_record(0, decode_s=_MANY_S, gemm=[8e10, 9e10, 9.5e10, 7e10],
                bandwidth=[2.0e10, 2.2e10, 1.7e10], dispatch_s=[0.0024, 0.0022, 0.0031], flops=2.2e7, num_bytes=4.4e7),
    _make_record(1, decode_s=[0.031, 0.030, 0.034, 0.029, 0.040, 0.0305], gemm=[9e14, 8e14, 8.8e14],
                bandwidth=[1.9e12, 2.0e12, 1.2e12], dispatch_s=[0.004, 0.009, 0.0041], flops=1.5e10, num_bytes=4.8e10,
                gemm_key="gemm_bfloat16_flop_per_s"),
    _make_record(2, decode_s=[1.0, 1.2, 1.1, 1.9, 1.15, 1.05, 1.3, 1.25, 0.95, 1.12], gemm=[1e9, 1.1e9, 3e9],
                bandwidth=[1e10, 2e10, 1.5e10], dispatch_s=[0.002, 0.003], flops=9e8, num_bytes=1e8),
)  # fmt: skip


def judge_record(record, *, middle=statistics.median, decode="decode_s", gemm=None) -> dict:
    """Return the right answer to 10.4, or a wrong one when a part is given."""
    samples, work = record.samples, record.settings["decode"]
    seconds = middle(samples[decode])
    times = {
        "compute": work["flops"] / middle(samples[gemm or record.settings["gemm"]]),
        "bandwidth": work["bytes"] / middle(samples["bandwidth_byte_per_s"]),
        "dispatch": middle(samples["dispatch_s"]),
    }
    name = max(times, key=times.get)
    ends = estimate_percentile_interval(samples[decode], 50)
    return {
        "record": record.id,
        "ceiling": name,
        "share": times[name] / seconds,
        "low": times[name] / ends.high,
        "high": times[name] / ends.low,
        "mbu": times["bandwidth"] / seconds,
        "mfu": times["compute"] / seconds,
    }


def expect_distance(read_record, record, *, where) -> dict:
    got = read_record(record)
    expect_fields(got, FIELDS, record, call=read_record.call, where=where)
    right = judge_record(record)
    if not isinstance(got["ceiling"], str) or got["ceiling"] not in NAMES:
        fail(f"{where}: `ceiling` is {shorten(repr(got['ceiling']), 40)}: write one of {', '.join(NAMES)}.")
    numbers = {key: tidy(got[key]) for key in FIELDS[2:]}
    for key, value in numbers.items():
        if not isinstance(value, int | float) or isinstance(value, bool):
            fail(f"{where}: `{key}` is {shorten(repr(value), 40)}, and a number was asked for.")
    if got["ceiling"] != right["ceiling"]:
        fail(f"{where}: the longest of the three times binds, and that is {right['ceiling']}, not {got['ceiling']}.")
    if not all(_near(numbers[key], right[key]) for key in numbers):
        _explain_distance(numbers, record, right, where)
    return right


def _near(got, right) -> bool:
    return math.isclose(got, right, rel_tol=1e-6)


def _explain_distance(numbers, record, right, where) -> NoReturn:
    """Fail with the sentence of the mistake that explains the numbers."""

    def is_all(make, keys=tuple(numbers)):
        return all(_near(numbers[key], make(key)) for key in keys)

    if is_all(lambda key: 100 * right[key]):
        fail(f"{where}: those are percent: give shares, 0.42 for 42 %.")
    if is_all(lambda key: 1 / right[key], ("share", "mbu", "mfu")):
        fail(f"{where}: the fractions are turned round: ideal time over measured time, below 1.")
    if is_all(lambda key: right[{"mbu": "mfu", "mfu": "mbu"}[key]], ("mbu", "mfu")):
        fail(f"{where}: mbu and mfu are exchanged: the B is for bandwidth, the F for FLOPs.")
    if is_all(lambda key: right[{"low": "high", "high": "low"}[key]], ("low", "high")):
        fail(f"{where}: the ends are swapped: the longest decode time gives the smallest share.")
    mean = judge_record(record, middle=statistics.fmean)
    if is_all(mean.get, ("share", "mbu", "mfu")):
        fail(f"{where}: those are means: one stall moves a mean. Take the medians.")
    other = judge_record(record, decode="decode_batch4_s") if "decode_batch4_s" in record.samples else None
    if other and is_all(other.get, ("share",)):
        fail(f"{where}: those are the samples of batch 4: `decode_s` is batch 1, and so are the FLOPs and bytes.")
    is_float32 = record.settings["gemm"] == _FLOAT32 or _FLOAT32 not in record.samples
    if not is_float32 and is_all(judge_record(record, gemm=_FLOAT32).get, ("mfu",)):
        fail(f"{where}: the rate of float32 products is taken, and the model computes in another type: "
             '`settings["gemm"]` names the samples.')  # fmt: skip
    if is_all(right.get, ("share", "mbu", "mfu")):
        low, high = min(record.samples["decode_s"]), max(record.samples["decode_s"])
        scale = right["share"] * statistics.median(record.samples["decode_s"])
        if _near(numbers["low"], scale / high) and _near(numbers["high"], scale / low):
            fail(f"{where}: that is the range of the samples: the interval of the median is asked for.")
        fail(f"{where}: the shares are right, `low` and `high` are not: the ideal time over the ends of p50_interval.")
    wrong = next(key for key in numbers if not _near(numbers[key], right[key]))
    fail(f"{where}: `{wrong}` is {numbers[wrong]:.4g}, and {right[wrong]:.4g} follows from its samples.")
