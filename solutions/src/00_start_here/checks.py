"""The checks of lab 00: the size of the weights, what fits, a stream, and numbers quoted from a record."""

import random
from decimal import Decimal
from typing import NoReturn

import numpy as np

from labkit.checks.cases import Case, expect_cases, expect_function, expect_no_generator, fail, passed
from labkit.checks.learner import shorten, tidy
from labkit.checks.numbers import is_rounded
from labkit.results import load_records, save_record
from labkit.stats import estimate_mean_interval, summarize
from labkit.units import is_number
from labkit.views import Outcome

# 00.1: num_parameters, bits -> bytes. 3 bits x 8 parameters fill exactly 3 bytes, so there is nothing to round.
_BYTES = [
    Case(expected, args=(num_parameters,), kwargs={"bits": bits}, why=why)
    for num_parameters, bits, expected, why in (
        (1_000, 16, 2_000, "16 bits are 2 bytes for each parameter."),
        (1_000, 4, 500, "two 4-bit weights share a byte."),
        (1_000, 8, 1_000, "8 bits are 1 byte for each parameter."),
        (10, 32, 40, "32 bits are 4 bytes for each parameter."),
        (8, 3, 3, "8 weights with 3 bits each are 24 bits, or 3 bytes."),
        (16, 1, 2, "16 weights with 1 bit each fill 2 bytes."),
        (0, 16, 0, "no parameters take no bytes."),
        (7_615_616_512, 4, 3_807_808_256, "a number this large needs Python's own integers."),
        (2**24 + 1, 8, 2**24 + 1, "every byte counts."),  # float32 cannot represent this number
    )
]


def check_1(weight_bytes) -> Outcome:
    """The size of the weights; the oracle packs that many bits and counts the bytes."""
    expect_function(weight_bytes, "weight_bytes")
    expect_cases(weight_bytes, _BYTES)
    draw = random.Random(1)
    pairs = [(8 * draw.randrange(1, 5_000), bits) for bits in (1, 2, 3, 4, 5, 6, 8, 16, 32)]
    packed = [Case(np.packbits(np.zeros(n * bits, np.uint8)).nbytes, (n,), {"bits": bits}) for n, bits in pairs]
    expect_cases(weight_bytes, packed)
    return passed("the weights of a 7.6B model take 15.2 GB in 16 bits and 3.8 GB in 4 bits.")


# 00.2: with 8 bits a parameter is a byte; 1,000 bytes less the reserve of 20 % leave 800.
_SMALL_FIRST = {"small": 300, "middle": 700, "large": 2_000}
_LARGE_FIRST = {"zeta": 2_000, "alpha": 700, "omega": 500, "beta": 300}
_FITS = [
    Case(expected, args=(candidates,), kwargs={"memory_bytes": memory_bytes, "bits": bits, **reserve}, why=why)
    for candidates, memory_bytes, bits, reserve, expected, why in (
        (_SMALL_FIRST, 1_000, 8, {}, "middle", "700 bytes fit in 800, but 2,000 do not."),
        (_LARGE_FIRST, 1_000, 8, {}, "alpha", "the order of the dict must not matter."),
        ({"fits": 600, "almost": 900}, 1_000, 8, {}, "fits", "900 bytes are more than the 800 that the reserve leaves."),
        ({"fits": 600, "near": 820}, 1_000, 8, {}, "fits", "the reserve is a fraction of the memory: 0.8 x 1,000 = 800."),
        ({"exact": 800, "small": 600}, 1_000, 8, {}, "exact", "800 bytes in 800: an exact fit counts."),
        ({"over": 801, "small": 600}, 1_000, 8, {}, "small", "801 bytes do not fit in 800."),
        (_SMALL_FIRST, 1_000, 16, {}, "small", "at 16 bits, 700 parameters take 1,400 bytes."),
        (_SMALL_FIRST, 1_000, 4, {}, "middle", "at 4 bits, 2,000 parameters take 1,000 bytes, more than 800."),
        (_SMALL_FIRST, 1_250, 4, {}, "large", "at 4 bits, 2,000 parameters take 1,000 bytes, and 0.8 x 1,250 = 1,000."),
        (_SMALL_FIRST, 700, 8, {"reserve": 0}, "middle", "reserve=0 leaves all of the memory."),
        (_SMALL_FIRST, 1_200, 8, {"reserve": 0.5}, "small", "reserve=0.5 leaves 600 bytes."),
        ({"only": 500}, 1_000, 8, {"reserve": 0.5}, "only", "reserve=0.5 leaves 500 bytes: an exact fit counts."),
        ({"tiny": 0.8e9, "big": 8e9}, 16e9, 16, {}, "tiny", "8e9 parameters in 16 bits take 16 GB."),
        ({"even": 1_000, "more": 1_008}, 375, 3, {"reserve": 0}, "even", "1,008 x 3 / 8 = 378 bytes, more than 375."),
        (_SMALL_FIRST, 100, 8, {}, None, "nothing fits: the answer is None."),
        ({}, 1_000, 8, {}, None, "no candidates: the answer is None."),
    )
]  # fmt: skip


def check_2(largest_that_fits) -> Outcome:
    """The largest model that fits; the oracle compares integers, without any division."""
    expect_function(largest_that_fits, "largest_that_fits")
    expect_cases(largest_that_fits, _FITS)
    twins = largest_that_fits({"left": 500, "small": 10, "right": 500}, memory_bytes=1_000, bits=8)
    if twins not in ("left", "right"):
        fail(f"two models with 500 parameters tie and either is right, but the answer was {twins!r}.")
    draw = random.Random(2)
    for _ in range(50):
        candidates = {f"m{k}": 8 * draw.randrange(1, 1_250) for k in draw.sample(range(100), 6)}
        bits, quarters, memory_bytes = draw.choice((3, 4, 8, 16)), draw.choice((0, 1, 2)), draw.randrange(100, 20_000)
        got = largest_that_fits(candidates, memory_bytes=memory_bytes, bits=bits, reserve=quarters / 4)
        # Integers on both sides, so that rounding cannot decide.
        fitting = [n for n in candidates.values() if n // 8 * bits * 4 <= memory_bytes * (4 - quarters)]
        best = [name for name, n in candidates.items() if n == max(fitting)] if fitting else [None]
        if got not in best:
            fail(f"{largest_that_fits.call}: got {got!r}, expected {best[0]!r}.")
    return passed("you can tell what fits before you download anything.")


# 00.3: sent at 10.0 s; four tokens with deliberately uneven gaps. 3 gaps in 1.5 s are 2 tokens per second.
_STREAM = [
    Case((0.5, 2.0), (10.0, [10.5, 10.75, 11.0, 12.0]), why="3 gaps in 1.5 s are 2 tokens per second."),
    Case((2.0, 4.0), (0.0, [2.0, 2.25, 2.5]), why="2 gaps in 0.5 s are 4 tokens per second."),
    Case((0.25, 8.0), (100.0, [100.25, 100.375]), why="two tokens have one gap: 1 / 0.125 s."),
    Case((1.0, 1.0), (5.0, [6.0, 6.0, 6.0, 9.0]), why="tokens that arrive together count like any others."),
    Case((0.0, 0.5), (3.0, [3.0, 5.0]), why="a first token that arrives at once gives a TTFT of 0, which is not None."),
    Case((1.5, None), (1.0, [2.5]), why="one token has a TTFT but no gap: the decode speed is None."),
    Case((None, None), (7.0, []), why="no token arrived: both answers are None, 0 would look measured."),
]


def check_3(read_stream) -> Outcome:
    """TTFT and decode speed of a stream; the oracle averages the gaps, which is the definition of TPOT."""
    expect_function(read_stream, "read_stream")
    expect_cases(read_stream, _STREAM)
    draw = np.random.default_rng(3)
    for _ in range(20):
        start_s, gaps = float(draw.uniform(0, 1e4)), draw.uniform(0.01, 0.2, size=draw.integers(2, 40))
        times = [float(x) for x in start_s + np.cumsum(gaps)]
        expected = (float(gaps[0]), float(1 / np.diff(times).mean()))
        expect_cases(read_stream, [Case(expected, (start_s, times))], relative=1e-6)
    expect_no_generator(read_stream)
    return passed("TTFT is the wait for the first token; decode speed is about the tokens after it.")


def save_records_4() -> None:
    """Save a made-up record in place of the measured one; it is skewed, so that median, mean and both ends all differ."""
    speeds = [70.125, 71.5, 72.25, 72.75, 73.0, 73.625, 74.5, 75.25, 76.0, 76.875, 78.5, 95.0]
    save_record("00", "decode", samples={"decode_tok_per_s": speeds, "ttft_s": [0.02] * 12})


def scene_4() -> dict:
    """The record that the lab saves before the exercise."""
    return {"stored": list(load_records(lab="00", name="decode"))[-1]}


# 00.4: key of the answer -> its name in sentences.
_QUOTED = {"p50_tok_per_s": "the median", "low_tok_per_s": "the lower end", "high_tok_per_s": "the upper end"}


def check_4(answer) -> Outcome:
    """The median of a stored record and its 95 % interval, recomputed from the samples in the record."""
    if not isinstance(answer, dict) or set(answer) != {"record", *_QUOTED}:
        fail(f"the answer must be a dict with these four keys: record, {', '.join(_QUOTED)}.")
    name = answer["record"]
    if hasattr(name, "samples"):
        fail("`record` is the record itself; give its id: `stored.id`.")
    record = next((one for one in load_records() if isinstance(name, str) and one.id == name), None)
    if record is None:
        fail(f"there is no record {shorten(repr(name), 40)} here: run the measuring cell and use its id.")
    if (record.lab, record.name) != ("00", "decode"):
        fail(f"{record.id} is the record `{record.name}` of lab {record.lab}: use the record `decode` of lab 00.")
    samples = record.samples["decode_tok_per_s"]
    summary = summarize(samples)
    if summary.p50_interval is None:
        fail(f"{record.id} has {len(samples)} samples, but a 95 % interval of the median needs 6: measure more runs.")
    truth = (summary.p50, summary.p50_interval.low, summary.p50_interval.high)
    got = tuple(tidy(answer[key]) for key in _QUOTED)
    for value, (key, name) in zip(got, _QUOTED.items(), strict=True):
        if not is_number(value):
            fail(f"{name} `{key}` is {shorten(repr(value), 40)}: give a number in tok/s.")
        if len(Decimal(repr(value)).as_tuple().digits) < 2:
            fail(f"{name} `{key}` is {value}: give at least two digits.")
    if _is_quote(got, truth):
        return passed(
            f"{truth[0]:.4g} tok/s, 95 % interval {truth[1]:.4g} to {truth[2]:.4g}, {record.id}: others can check it."
        )
    return _explain_quote(got, truth, samples)


def _is_quote(got, truth) -> bool:
    return all(is_rounded(value, expected) for value, expected in zip(got, truth, strict=True))


def _explain_quote(got, truth, samples) -> NoReturn:
    """Fail with the sentence for the mistake that explains the three numbers, or name the first one that differs."""
    p50, low, high = got
    mean, of_mean = float(np.mean(samples)), estimate_mean_interval(samples)
    if _is_quote((p50, high, low), truth):
        fail("the ends of the interval are swapped: the lower end must be the smaller number.")
    if _is_quote(got, [1 / value for value in truth]) or _is_quote((p50, high, low), [1 / value for value in truth]):
        fail("those are seconds per token: the record is in tok/s, and so is the answer.")
    if is_rounded(p50, mean) and not is_rounded(p50, truth[0]):
        fail(f"{p50} is the mean: use the median (p50), the middle sample, which one slow run hardly moves.")
    for value, right, name in zip(got, truth, _QUOTED.values(), strict=True):
        if not is_rounded(value, right) and value in [float(f"{right:.{n}g}") for n in (2, 3, 4)]:
            shown = max(0, -Decimal(repr(value)).as_tuple().exponent)
            fail(
                f"{name} {value} was rounded further than it looks: {right:.7g} rounded to the digits that {value} shows is "
                f"{right:.{shown}f}. Copy the digits, or write {right:.0f}."
            )
    if not is_rounded(p50, truth[0]):
        fail(f"the median is not {p50}: sort the {len(samples)} samples of `decode_tok_per_s` and take the middle one.")
    ends = (low, high)
    if _is_quote(ends, (min(samples), max(samples))):
        fail("those are the smallest and the largest sample: use the interval of the median, `p50_interval`.")
    if _is_quote(ends, (of_mean.low, of_mean.high)):
        fail("that is the interval of the mean: use the interval of the median, `p50_interval`.")
    for share in (2.5, 5, 10, 25):
        if _is_quote(ends, np.percentile(samples, (share, 100 - share))):
            fail("those are percentiles of the samples: the spread of single runs, not the uncertainty of the median.")
    name, value = ("upper", high) if is_rounded(low, truth[1]) else ("lower", low)
    fail(f"the {name} end of the interval is not {value}: both ends are in `summarize(samples).p50_interval`.")
