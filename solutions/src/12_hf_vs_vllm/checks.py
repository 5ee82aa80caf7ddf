"""The checks of lab 12: the metrics of a stream, the same work, throughput in paired rounds, the verdict from a record."""

import math
import random
import statistics
from types import SimpleNamespace
from typing import NoReturn

from labkit.checks.cases import Case, expect_cases, expect_fields, expect_function, expect_no_generator, fail, passed
from labkit.checks.learner import LearnerFunction, shorten, tidy
from labkit.checks.mistakes import find_mistake
from labkit.results import load_records
from labkit.stats import estimate_mean_interval
from labkit.units import is_near, is_number
from labkit.views import Outcome

# 12.1: sent, chunks (arrival, tokens) -> TTFT, TPOT, end to end.
_STREAMS = [
    Case((0.5, 0.25, 1.25), (10.0, [(10.5, 1), (10.75, 1), (11.0, 1), (11.25, 1)]), why="4 tokens have 3 gaps, in 0.75 s."),
    Case((1.0, 0.5, 4.0), (0.0, [(1.0, 2), (2.0, 4), (4.0, 1)]), why="7 tokens have 6 gaps, in 3 s."),
    Case((0.25, 0.125, 0.5), (2.0, [(2.25, 2), (2.5, 1)]), why="3 tokens have 2 gaps; two tokens arrived together."),
    Case((2.0, 1.0, 4.0), (1.0, [(1.25, 0), (3.0, 1), (4.0, 1), (5.0, 1), (9.0, 0)]),
         why="a chunk of 0 tokens (a role, an empty delta, the usage at the end) carries no content: skip it everywhere."),
    Case((1.5, None, 1.5), (4.0, [(5.5, 1)]), why="one token has no gap: its TPOT is None."),
    Case((1.5, 0.0, 1.5), (4.0, [(5.5, 4)]), why="4 tokens at once have 3 gaps of 0 s: the TPOT is 0, not None."),
    Case((None, None, None), (3.0, [(3.5, 0)]), why="no token arrived: all three are None."),
    Case((None, None, None), (3.0, []), why="no token arrived: all three are None."),
]  # fmt: skip


def check_1(stream_metrics) -> Outcome:
    """The metrics of one stream; the oracle gives every token its own gap and averages the gaps."""
    expect_function(stream_metrics, "stream_metrics")
    expect_cases(stream_metrics, _STREAMS)
    draw, cases = random.Random(121), []
    for _ in range(30):
        sent_s, at_s, chunks, gaps = draw.randrange(1000) / 8, 0.0, [], []
        for k in range(draw.randrange(2, 9)):
            gap_s, count = draw.randrange(1, 64) / 128, draw.choice((1, 1, 2, 3))
            at_s += gap_s
            chunks.append((sent_s + at_s, count))
            gaps += ([gap_s] if k else []) + [0.0] * (count - 1)
        cases.append(Case((chunks[0][0] - sent_s, statistics.fmean(gaps), at_s), (sent_s, chunks)))
    expect_cases(stream_metrics, cases)
    expect_no_generator(stream_metrics)
    return passed("a chunk is not a token: a tool that counted chunks reported 8.72 ms, and the truth was 3.20 ms.")


# 12.2: two runs, what differs between them, and why.
_RUN = {
    "dtype": "float32",
    "sampling": {"temperature": 0, "top_p": 1.0},
    "requests": {"a": (10, 100), "b": (30, 20), "c": (30, 60)},
}


def _change_run(**parts):
    return {**_RUN, **parts}


def _with_requests(**requests):
    return _change_run(requests={name: size for name, size in {**_RUN["requests"], **requests}.items() if size})


_LATE = _change_run(requests={name: _RUN["requests"][name] for name in "cab"})
_PAIRS = [
    (_RUN, _change_run(), [], "nothing differs: the list is empty."),
    (_RUN, _LATE, [], "only the order in which the requests finished differs: match them by name."),
    (_RUN, _change_run(dtype="bfloat16"), ["dtype"], "half the bytes is half the work."),
    (_RUN, _change_run(sampling={"temperature": 0.7, "top_p": 1.0}), ["sampling"], "the temperature differs."),
    (_RUN, _change_run(sampling={"temperature": 0}), ["sampling"], "one run does not set top_p."),
    (_RUN, _with_requests(b=(30, 19)), ["output lengths"], "request b stopped one token early."),
    (_RUN, _with_requests(a=(11, 100)), ["prompt lengths"], "request a was read as 11 tokens: another tokenizer?"),
    (_RUN, _with_requests(a=(10, 20), b=(30, 100)), ["output lengths"],
     "the totals agree but the requests do not: which request is long decides how a batch is filled."),
    (_RUN, _with_requests(a=(10, 90), b=(30, 30)), ["output lengths"],
     "the totals agree but the requests do not: a static batch runs until its longest answer is done."),
    (_RUN, _with_requests(a=(30, 100), b=(10, 20)), ["prompt lengths"],
     "the totals agree but the requests do not: compare each request with itself."),
    (_RUN, _with_requests(a=(20, 100), b=(20, 20)), ["prompt lengths"],
     "the totals agree but the requests do not: a longer prompt means a longer wait for the first token."),
    (_RUN, _with_requests(c=None), ["requests"], "request c is missing: it failed, so its work was not done."),
    (_with_requests(c=None), _RUN, ["requests"], "request c is missing from the first run."),
    (_RUN, _change_run(requests={"a": (10, 100), "b": (30, 20), "d": (30, 60)}), ["requests"],
     "each run has three requests, but not the same ones: c is missing from one, d from the other."),
    (_RUN, _change_run(sampling={"top_p": 1.0, "temperature": 0}), [], "the same settings in a different order."),
    (_RUN, _with_requests(c=None, a=(10, 99)), ["requests", "output lengths"],
     "c is missing, and of the requests in both runs, a differs."),
    (_change_run(dtype="float16"), _with_requests(a=(9, 98), b=(30, 20)), ["prompt lengths", "output lengths", "dtype"],
     "three things differ: name all of them."),
    (_RUN, _change_run(dtype="bfloat16", sampling={"temperature": 1, "top_p": 1.0}, requests={"a": (10, 100)}),
     ["requests", "dtype", "sampling"], "three things differ: name all of them."),
]  # fmt: skip
_NAMES = ("requests", "prompt lengths", "output lengths", "dtype", "sampling")


class _AnyOrder(LearnerFunction):
    """Puts the names in an answer into the order of the exercise, so that any order is accepted."""

    def __call__(self, *args, **kwargs):
        got = LearnerFunction.__call__(self, *args, **kwargs)
        if hasattr(got, "tolist"):
            fail(f"{self.call}: expected a list of names, got a {type(got).__name__}.")
        if not isinstance(got, set | frozenset | tuple | list):
            return got
        unknown = [name for name in got if not isinstance(name, str) or name not in _NAMES]
        if unknown:
            fail(f"{shorten(repr(unknown[0]), 40)} is not one of the names: {', '.join(_NAMES)}.")
        if twice := [name for name in _NAMES if list(got).count(name) > 1]:
            fail(f"{self.call}: {twice[0]!r} is there more than once: name it once, however many requests differ.")
        return [name for name in _NAMES if name in got]


def check_2(what_differs) -> Outcome:
    """The same work, request by request; the names may be in any order."""
    expect_function(what_differs, "what_differs")
    function = _AnyOrder(what_differs.function, what_differs.exercise, what_differs.reference_name)
    expect_cases(function, [Case(expected, (a, b), why=why) for a, b, expected, why in _PAIRS])
    draw, cases = random.Random(122), []
    for _ in range(40):
        sizes = {f"r{k}": (draw.randrange(4, 99), draw.randrange(4, 99)) for k in range(6)}
        name, delta = draw.choice(list(sizes)), (draw.choice((-1, 0, 1)), draw.choice((-1, 0, 1)))
        dtype = draw.choice(("float32", "float16"))
        other = sizes | {name: (sizes[name][0] + delta[0], sizes[name][1] + delta[1])}
        differs = (False, delta[0] != 0, delta[1] != 0, dtype != "float32", False)
        expected = [name for name, is_different in zip(_NAMES, differs, strict=True) if is_different]
        cases.append(Case(expected, (_change_run(requests=sizes), _change_run(requests=other, dtype=dtype))))
    expect_cases(function, cases)
    expect_no_generator(function)
    return passed("you can now spot an invalid comparison before anybody believes it.")


# 12.3: rounds of A and of B, each a list of (start, end, tokens). Round 1 of A: 60 tokens in 3 s.
_A = [[(0.0, 1.0, 10), (0.5, 3.0, 50)], [(10.0, 12.0, 40), (10.0, 11.0, 20)], [(20.0, 24.0, 64), (21.0, 23.0, 16)]]
_B = [[(3.0, 9.0, 20), (3.0, 8.0, 70)], [(13.0, 15.0, 40), (12.5, 18.5, 8), (14.0, 17.0, 60)], [(25.0, 37.0, 64)]]
_DRIFT_A = [[(0.0, 2.0, 100)], [(9.0, 13.0, 100)], [(20.0, 28.0, 100)]]  # 50, 25 and 12.5 tok/s: the machine slows down
_DRIFT_B = [[(2.0, 5.0, 100)], [(13.0, 20.0, 100)], [(28.0, 41.0, 100)]]
# Five rounds, 30, 50, 40, 20 and 60 tok/s against 20, 25, 10, 16 and 40: sorted by speed they would form other pairs.
_FIVE_A = [[(50.0 * k, 50.0 * k + 2, tokens)] for k, tokens in enumerate((60, 100, 80, 40, 120))]
_FIVE_B = [[(50.0 * k + 9, 50.0 * k + 13, tokens)] for k, tokens in enumerate((80, 100, 40, 64, 160))]
# Ratio, low and high were computed with a paired t test on the logarithms, outside this course's code.
_ROUNDS = [
    Case((2.027400665, 0.5246455311, 7.834534393), (_A, _B), why="divide the tokens of all requests by the time from the first start to the last end."),
    Case((0.4932424149, 0.1276400038, 1.906048829), (_B, _A), why="the ratio is the throughput of A over that of B, which is below 1 here."),
    Case((1.621788529, 1.339125138, 1.964116689), (_DRIFT_A, _DRIFT_B), why="the machine slows down, and within a round both engines see it."),
    Case((1.0, 1.0, 1.0), (_A, _A), why="A compared with itself: the ratio is 1."),
    Case((1.863959637, 1.054431393, 3.294994392), (_FIVE_A, _FIVE_B), why="there are five rounds here, and all of them count."),
]  # fmt: skip


def _estimate_ratio(a_rounds, b_rounds):
    """Return ratio, low and high of the throughput of A over B, in pairs: the mean of the logarithms and its t-interval."""

    def rate(requests):
        window_s = max(end for _, end, _ in requests) - min(start for start, _, _ in requests)
        return sum(num_tokens for *_, num_tokens in requests) / window_s

    return _estimate_ends([rate(a) for a in a_rounds], [rate(b) for b in b_rounds])


def _estimate_ends(a, b):
    logs = [math.log(x / y) for x, y in zip(a, b, strict=True)]
    interval = estimate_mean_interval(logs)
    return tuple(map(math.exp, (statistics.fmean(logs), interval.low, interval.high)))


def check_3(compare_throughput) -> Outcome:
    """The throughput over the window of each round, and the paired ratio; hand-worked rounds first, then random ones."""
    expect_function(compare_throughput, "compare_throughput")
    expect_cases(compare_throughput, _ROUNDS, relative=1e-6)
    draw, cases = random.Random(123), []
    for k in range(20):
        sides = []
        for speed in (40, 10):
            starts = [[r * 50.0 + draw.randrange(64) / 16 for _ in range(5)] for r in range(5 if k % 2 else 3)]
            sides.append([[(s, s + draw.randrange(16, 99) / speed, draw.randrange(4, 99)) for s in r] for r in starts])
        cases.append(
            Case(_estimate_ratio(*sides), tuple(sides), why="divide all tokens of a round by one window, in pairs.")
        )
    expect_cases(compare_throughput, cases, relative=1e-6)
    expect_no_generator(compare_throughput)
    return passed("all tokens over one window, in pairs: that is what the whole machine delivers, with its interval.")


# 12.4: made-up records, each with three or five rounds of two workloads, then the learner's own.
_KEYS = ("mixed_vllm_tok_per_s", "mixed_naive_tok_per_s")
# The rounds of the two engines are not in the same order of speed, so the pairs matter.
_MADE = (
    {"mixed_vllm_tok_per_s": [300.0, 280.0, 330.0], "mixed_naive_tok_per_s": [100.0, 104.0, 96.0]},
    {"mixed_vllm_tok_per_s": [100.0, 90.0, 120.0], "mixed_naive_tok_per_s": [101.0, 93.0, 112.0]},
    {"mixed_vllm_tok_per_s": [60.0, 40.0, 50.0], "mixed_naive_tok_per_s": [90.0, 64.0, 100.0]},
    {
        "mixed_vllm_tok_per_s": [140.0, 155.0, 150.0, 132.0, 160.0],
        "mixed_naive_tok_per_s": [100.0, 98.0, 104.0, 101.0, 97.0],
    },
)
_OTHERS = {
    "equal_vllm_tok_per_s": [500.0, 530.0, 560.0, 540.0, 510.0],
    "equal_naive_tok_per_s": [90.0, 80.0, 85.0, 88.0, 84.0],
    "mixed_batched_tok_per_s": [122.0, 140.0, 131.0, 135.0, 128.0],
    "shared_vllm_tok_per_s": [70.0, 77.0, 72.0, 75.0, 71.0],
    "shared_naive_tok_per_s": [33.0, 31.0, 36.0, 32.0, 34.0],
}
_FIELDS = ("record", "ratio", "low", "high", "verdict")


def check_4(read_verdict) -> Outcome:
    """The verdict from a record: made-up records first, then the learner's own, recomputed from its samples."""
    expect_function(read_verdict, "read_verdict")
    for number, made in enumerate(_MADE):
        others = {key: values[: len(made[_KEYS[0]])] for key, values in _OTHERS.items()}
        record = SimpleNamespace(id=f"r-00000000a{number}", lab="12", name="engines", samples=others | made)
        _expect_verdict(read_verdict, record, where=f"made-up record {record.id}")
    own = list(load_records(lab="12", name="engines"))
    if not own:
        return passed("it reads the made-up records correctly. Measure, then check again with your own.")
    ratio, low, high, verdict = _expect_verdict(read_verdict, own[-1], where=f"your record {own[-1].id}")
    return passed(
        f"your record {own[-1].id}: vLLM over naive Transformers {ratio:.3g}, {low:.3g} to {high:.3g}; verdict on vLLM: "
        f"{verdict}.",
        {"ratio": ratio, "low": low, "high": high},
    )


def _expect_verdict(read_verdict, record, *, where):
    got = read_verdict(record)
    expect_fields(got, _FIELDS, record, call=read_verdict.call, where=where)
    ends = _estimate_ends(*(record.samples[key] for key in _KEYS))
    right = (*ends, "faster" if ends[1] > 1 else "slower" if ends[2] < 1 else "cannot tell")
    numbers = tuple(tidy(got[name]) for name in _FIELDS[1:4])
    for name, value in zip(_FIELDS[1:4], numbers, strict=True):
        if not is_number(value):
            fail(f"{where}: `{name}` is {shorten(repr(value), 40)}: give a number.")
    if not all(map(is_near, numbers, ends)):
        _explain_numbers(read_verdict, numbers, record, where)
    word = tidy(got["verdict"])
    if not isinstance(word, str) or word != right[3]:
        _explain_word(word, right, where)
    return right


def _explain_numbers(read_verdict, numbers, record, where) -> NoReturn:
    def explains(wrong):
        made = wrong(record)
        return all(map(is_near, numbers, (tidy(made[name]) for name in _FIELDS[1:4])))

    if sentence := find_mistake(read_verdict.exercise, read_verdict.reference_name, explains):
        fail(f"{where}: {sentence}")
    averages = [[average(record.samples[key]) for key in _KEYS] for average in (statistics.fmean, statistics.median)]
    if any(is_near(numbers[0], x / y) for x, y in averages):
        fail(f"{where}: that divides two averages: take the ratio within each round, so that drift cancels.")
    if is_near(numbers[0], _estimate_ends(*(record.samples[key] for key in _KEYS))[0]):
        fail(f"{where}: the ratio is right, but its interval is not: the rounds are pairs, in order.")
    seen = f"{numbers[0]:.4g} ({numbers[1]:.4g} to {numbers[2]:.4g})"
    fail(f"{where}: {seen} is not the ratio of {' over '.join(_KEYS)}, in pairs of rounds.")


def _explain_word(word, right, where) -> NoReturn:
    ratio, low, high, verdict = right
    if not isinstance(word, str) or word not in ("faster", "slower", "cannot tell"):
        fail(f"{where}: the verdict is {shorten(repr(word), 40)}: write faster, slower or cannot tell.")
    if verdict == "cannot tell":
        fail(f"{where}: {low:.3g} to {high:.3g} contains 1, so {word!r} is more than the samples show.")
    if word == "cannot tell":
        fail(f"{where}: {low:.3g} to {high:.3g} does not contain 1, so the samples do show a difference.")
    fail(f"{where}: the verdict is about vLLM: a ratio of {ratio:.3g} means {verdict!r}.")
