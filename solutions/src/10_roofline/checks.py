"""The checks of lab 10: intensity, work of a decode step, the binding ceiling, the distance from it, a sentence."""

import random
import re

from labkit.checks._decode_work import STEP_MISTAKES, STEPS, count_step, draw_config
from labkit.checks._distance import MADE, NAMES, expect_distance, judge_record
from labkit.checks.cases import Case, expect_answer, expect_cases, expect_function, fail, passed
from labkit.checks.learner import shorten
from labkit.checks.tensors import probe_frames
from labkit.results import load_records
from labkit.views import Outcome

__all__ = ["check_1", "check_2", "check_3", "check_4", "check_5"]

# 10.1: (m, k) @ (k, n); case 22 of the course's measuring rules is the first.
_PRODUCTS = [
    Case(4096 / 3, (4096, 4096, 4096), {"bytes_per_value": 2}, why="2 · 4096³ FLOPs over 3 · 4096² values of 2 bytes."),
    Case(1.0, (2, 2, 4), {"bytes_per_value": 1.6}, why="32 FLOPs; 8 + 8 + 4 values of 1.6 bytes are 32 bytes."),
    Case(48 / 104, (2, 3, 4), {"bytes_per_value": 4}, why="48 FLOPs; 8 + 12 + 6 values of 4 bytes."),
    Case(8192 / 16896, (1, 64, 64), {"bytes_per_value": 4}, why="one row, a GEMV: 8,192 FLOPs, 4,224 values of 4."),
]


def _product(flops=lambda m, n, k: 2 * m * n * k, values=lambda m, n, k: m * k + k * n + m * n, scale=lambda b: b):
    return lambda m, n, k, *, bytes_per_value: flops(m, n, k) / (values(m, n, k) * scale(bytes_per_value))


_PRODUCT_MISTAKES = (
    ("a multiply-add is two FLOPs: one multiplication and one addition.", _product(flops=lambda m, n, k: m * n * k)),
    ("the output is written too: it has m · n values.", _product(values=lambda m, n, k: m * k + k * n)),
    ("only the weight is counted: the input is read and the output written.", _product(values=lambda m, n, k: k * n)),
    ("the inputs are read too: they have m · k and k · n values.", _product(values=lambda m, n, k: m * n)),
    ("the second matrix is forgotten: it has k · n values.", _product(values=lambda m, n, k: m * k + m * n)),
    ("the first matrix is forgotten: it has m · k values.", _product(values=lambda m, n, k: k * n + m * n)),
    ("that is FLOP per value: multiply the values by the bytes of each.", _product(scale=lambda b: 1)),
    ("that is FLOP per bit: bytes_per_value is in bytes already.", _product(scale=lambda b: 8 * b)),
    ("that is bytes per FLOP: turn the fraction round.",
     lambda m, n, k, *, bytes_per_value: (m * k + k * n + m * n) * bytes_per_value / (2 * m * n * k)),
    ("the output is counted as read and written: each value once.",
     _product(values=lambda m, n, k: m * k + k * n + 2 * m * n)),
    ("that is the FLOPs alone: divide them by the bytes.",
     lambda m, n, k, *, bytes_per_value: 2 * m * n * k),
)  # fmt: skip


def check_1(gemm_intensity) -> Outcome:
    """Arithmetic intensity of a matrix product, by hand, then at random against one over the sum of parts."""
    expect_function(gemm_intensity, "gemm_intensity")
    _refuse_library(gemm_intensity, 2, 3, 4, bytes_per_value=4)
    expect_cases(gemm_intensity, _PRODUCTS, _PRODUCT_MISTAKES)
    draw, cases = random.Random(101), []
    for _ in range(25):
        m, n, k, b = draw.randrange(1, 99), draw.randrange(1, 99), draw.randrange(1, 99), draw.choice((0.5, 1, 2, 4))
        # Another route: 2mnk / (b · (mk + kn + mn)) = 2 / (b · (1/n + 1/m + 1/k)).
        cases.append(
            Case(2 / (b * (1 / n + 1 / m + 1 / k)), (m, n, k), {"bytes_per_value": b}, why="FLOPs over bytes.")
        )
    expect_cases(gemm_intensity, cases, _PRODUCT_MISTAKES)
    return passed("a GEMV stays near 2 / bytes_per_value whatever its size; a square product grows with it.")


def check_2(decode_work) -> Outcome:
    """FLOPs and bytes of one decode step; hand-worked public configurations, then shapes drawn at random."""
    expect_function(decode_work, "decode_work")
    _refuse_library(decode_work, *STEPS[0].args, **STEPS[0].kwargs)
    expect_cases(decode_work, STEPS, STEP_MISTAKES)
    draw, cases = random.Random(102), []
    for _ in range(25):
        config = draw_config(draw)
        given = {"context_tokens": draw.randrange(0, 999), "batch": draw.randrange(1, 9),
                 "bytes_per_value": draw.choice((1, 2, 4))}  # fmt: skip
        cases.append(Case(count_step(config, **given), (config,), given, why="the formulas above, with this config."))
    expect_cases(decode_work, cases, STEP_MISTAKES)
    return passed("the batch shares the weights, and each sequence brings a cache of its own.")


# 10.3: flops, num_bytes, flop_per_s, byte_per_s, dispatch_s -> (name, seconds).
_LIMITS = [
    Case(("bandwidth", 0.02), (2e9, 2e9, 1e12, 1e11, 0.001), why="2 ms, 20 ms and 1 ms: the longest binds."),
    Case(("compute", 0.2), (2e9, 2e9, 1e10, 1e11, 0.001), why="200 ms, 20 ms and 1 ms: the longest binds."),
    Case(("dispatch", 0.03), (2e9, 2e9, 1e12, 1e11, 0.03), why="2 ms, 20 ms and 30 ms: the longest binds."),
    Case(("dispatch", 0.004), (1e6, 1e6, 1e11, 1e10, 0.004), why="a tiny model: its arithmetic is nearly free."),
    Case(("compute", 1.5), (3e12, 1e9, 2e12, 1e12, 0.0), why="a long prefill: many FLOPs per byte."),
]


def _limit(pick=max, *, seconds=None, compute=lambda f, b, x, y: f / x, bandwidth=lambda f, b, x, y: b / y, scale=1):
    def answer(flops, num_bytes, flop_per_s, byte_per_s, dispatch_s):
        given = (flops, num_bytes, flop_per_s, byte_per_s)
        times = dict(zip(NAMES, (compute(*given), bandwidth(*given), dispatch_s), strict=True))
        name = pick(times, key=times.get)
        return name, scale * (seconds(times) if seconds else times[name])

    return answer


def _rename(name, seconds):
    return {"compute": "bandwidth", "bandwidth": "compute"}.get(name, name), seconds


_LIMIT_MISTAKES = (
    ("the shortest time is named: the step cannot end before its slowest part, so the longest binds.", _limit(min)),
    ("the name is right, and the times are added up: a ceiling is the longest of them, they may overlap.",
     _limit(seconds=lambda times: sum(times.values()))),
    ("the name is right, and the seconds are of the shortest.", _limit(seconds=lambda times: min(times.values()))),
    ("time is work over rate, FLOP / (FLOP/s): the fraction is turned round.",
     _limit(compute=lambda f, b, x, y: x / f, bandwidth=lambda f, b, x, y: y / b)),
    ("bytes go over byte_per_s and FLOPs over flop_per_s: here they are crossed.",
     _limit(compute=lambda f, b, x, y: f / y, bandwidth=lambda f, b, x, y: b / x)),
    ("dispatch is left out: for a small model it is the largest of the three.",
     lambda *given: _limit()(*given[:4], 0.0)),
    ("the names of the compute and of the bandwidth ceiling are exchanged.", lambda *given: _rename(*_limit()(*given))),
    ("those are milliseconds: everything here is in seconds.", _limit(scale=1e3)),
    ("the name comes first, then the seconds.", lambda *given: _limit()(*given)[::-1]),
)  # fmt: skip


def check_3(binding_ceiling) -> Outcome:
    """Which of three limits binds, and its time; a property: a machine that is faster at the rest changes nothing."""
    expect_function(binding_ceiling, "binding_ceiling")
    _refuse_library(binding_ceiling, *_LIMITS[0].args)
    expect_cases(binding_ceiling, _LIMITS, _LIMIT_MISTAKES)
    draw, cases = random.Random(103), []
    for _ in range(40):
        flops, num_bytes = 10 ** draw.uniform(6, 12), 10 ** draw.uniform(6, 11)
        given = (flops, num_bytes, 10 ** draw.uniform(9, 15), 10 ** draw.uniform(9, 13), 10 ** draw.uniform(-5, 0))
        cases.append(Case(_limit()(*given), given, why="the longest of the three times binds."))
    expect_cases(binding_ceiling, cases, _LIMIT_MISTAKES)
    return passed("a ceiling has a name: making anything else faster does not help.")


# 10.4 and 10.5: made-up records (_distance.py), then the learner's own.


def check_4(read_record) -> Outcome:
    """The distance of a record from its ceiling: made-up ones, then the learner's own, recomputed from its samples."""
    expect_function(read_record, "read_record")
    for record in MADE:
        expect_distance(read_record, record, where=f"made-up record {record.id}")
    own = list(load_records(lab="10", name="roofline"))
    if not own:
        return passed("the three made-up records are read right; measure, and check again for your own.")
    found = expect_distance(read_record, own[-1], where=f"your record {own[-1].id}")
    return passed(
        f"your record {own[-1].id}: {100 * found['share']:.0f} % of its {found['ceiling']} ceiling "
        f"({100 * found['low']:.0f} to {100 * found['high']:.0f} %).",
        {"share": found["share"], "low": found["low"], "high": found["high"]},
    )


_SENTENCE = re.compile(
    r"\bruns at (?P<share>\d+(?:\.\d+)?) ?% of its binding ceiling \((?P<name>\w+)\), because (?P<why>.+)"
)
_REASONS = {
    "dispatch": ("dispatch", "layer", "operation", "launch", "python", "overhead", "kernel", "start"),
    "bandwidth": ("byte", "memory", "weights", "read", "cache", "parameter", "load", "dram", "fetch"),
    "compute": ("arithmetic", "product", "multipl", "matri", "comput"),
}
_PERCENT = r"(\d+(?:\.\d+)?) ?%"
# "41 % of the memory bandwidth", "2 % of the FLOP/s": the two shares, which every reason gives and which are none.
_OF = r"(?: of)?(?: the| its)?(?: peak| memory| possible| measured)* "
_SHARES = {"mbu": re.compile(_PERCENT + _OF + "bandwidth"), "mfu": re.compile(_PERCENT + _OF + r"(?:flops?|compute)\b")}


def check_5(decode_sentence) -> Outcome:
    """The sentence, made from the numbers of 10.4: for made-up ones of every kind, then for the learner's."""
    expect_function(decode_sentence, "decode_sentence")
    for record in MADE:
        found = judge_record(record)
        _expect_sentence(decode_sentence, found, where=f"for made-up numbers that bind at {found['ceiling']}")
    own = list(load_records(lab="10", name="roofline"))
    if not own:
        return passed("the sentence follows the numbers; measure, and check again for your own.")
    said = _expect_sentence(decode_sentence, judge_record(own[-1]), where=f"for your record {own[-1].id}")
    return passed(f"from record {own[-1].id}: {said}")


def _expect_sentence(decode_sentence, found, *, where) -> str:
    said = decode_sentence(dict(found))
    expect_answer(said, decode_sentence.call)
    if not isinstance(said, str):
        fail(f"{where}: the answer is {shorten(repr(said), 40)}, and a text was asked for.")
    match = _SENTENCE.search(" ".join(said.split()))
    if not match:
        fail(f'{where}: it must read "my decode runs at 42 % of its binding ceiling (name), because ...": '
             f"{shorten(said, 80)}")  # fmt: skip
    if match["name"] != found["ceiling"]:
        fail(f"{where}: the ceiling in brackets is {match['name']!r}, and {found['ceiling']!r} binds.")
    if not _is_percent(match["share"], found["share"]):
        fail(f"{where}: it says {match['share']} %, and the record says {100 * found['share']:.3g} %.")
    why = match["why"]
    if len(why.split()) < 8:
        fail(f"{where}: the reason has {len(why.split())} words: say what takes the time, and what is left idle.")
    reason = why.lower()
    for pattern in _SHARES.values():
        reason = pattern.sub("", reason)
    if not any(word in reason for word in _REASONS[found["ceiling"]]):
        fail(f"{where}: the reason does not say what a {found['ceiling']} ceiling is made of.")
    quoted = re.findall(_PERCENT + r"(?! (?:confidence|interval))", why)
    known = [found[key] for key in ("share", "low", "high", "mbu", "mfu")]
    for one in quoted:  # "95 % are idle" says that 5 % are used
        if not any(_is_percent(one, share) for share in (*known, *(1 - share for share in known), 1.0)):
            fail(f"{where}: {one} % stands in the reason, and is no number of this record.")
    for key, other in (("mbu", "mfu"), ("mfu", "mbu")):
        for one in _SHARES[key].findall(why.lower()):
            if _is_percent(one, found[other]) and not _is_percent(one, found[key]):
                fail(f"{where}: mbu and mfu are exchanged: {one} % is the {other}.")
    for key, meaning in (("mbu", "of the bandwidth"), ("mfu", "of the FLOP/s")):
        if not any(_is_percent(one, found[key]) for one in quoted):
            fail(f"{where}: the reason does not give the share {meaning} ({key}: {100 * found[key]:.2g} %).")
    return said


def _is_percent(written: str, share: float) -> bool:
    """Tell whether a written percentage is the share, rounded to the digits that were written."""
    decimals = len(written.partition(".")[2])
    return abs(float(written) - 100 * share) <= 0.5 * 10**-decimals + 1e-9


def _refuse_library(learner, *args, **kwargs) -> None:
    """Fail when labkit's own roofline, or the check itself, does the exercise, by whatever name it was called."""
    frames = probe_frames(learner.function, *args, **kwargs)
    if any(frame.startswith(("labkit.roofline.", "labkit.checks.")) for frame in frames):
        fail("labkit's own code is the answer itself: write the formula by hand once, then trust the library.")
