"""The checks of lab 12: metrics of a stream, the same work, throughput in paired rounds, the verdict of a record."""

import math
import random
import statistics
from types import SimpleNamespace
from typing import NoReturn

from labkit.checks._kinds import expect_no_generator, is_number
from labkit.checks._learner import LearnerFunction, tidy
from labkit.checks._rounds import ROUND_MISTAKES, ROUNDS, draw_rounds
from labkit.checks._same_work import NAMES, PAIRS, WORK_MISTAKES, change_run, find_differences
from labkit.checks._student import T_95, estimate_ends
from labkit.checks._traces import shorten
from labkit.checks._words import Case, expect_cases, expect_fields, expect_function, fail, passed
from labkit.results import load_records
from labkit.views import Outcome

__all__ = ["check_1", "check_2", "check_3", "check_4"]

# 12.1: sent, chunks (arrival, tokens) -> TTFT, TPOT, end to end.
_STREAMS = [
    Case((0.5, 0.25, 1.25), (10.0, [(10.5, 1), (10.75, 1), (11.0, 1), (11.25, 1)]), why="3 gaps in 0.75 s."),
    Case((1.0, 0.5, 4.0), (0.0, [(1.0, 2), (2.0, 4), (4.0, 1)]), why="7 tokens have 6 gaps, in 3 s."),
    Case((0.25, 0.125, 0.5), (2.0, [(2.25, 2), (2.5, 1)]), why="3 tokens have 2 gaps; two of them came together."),
    Case((2.0, 1.0, 4.0), (1.0, [(1.25, 0), (3.0, 1), (4.0, 1), (5.0, 1), (9.0, 0)]),
         why="a chunk of 0 tokens (a role, an empty delta, the usage at the end) is no content: skip it everywhere."),
    Case((1.5, None, 1.5), (4.0, [(5.5, 1)]), why="one token has no gap: its TPOT is None."),
    Case((1.5, 0.0, 1.5), (4.0, [(5.5, 4)]), why="4 tokens at once: 3 gaps of 0 s, and that is 0, not None."),
    Case((None, None, None), (3.0, [(3.5, 0)]), why="no token came: three times None."),
    Case((None, None, None), (3.0, []), why="no token came: three times None."),
]  # fmt: skip


def _stream(ttft=None, tpot=None, e2e=None, *, keep=lambda chunks: [c for c in chunks if c[1] > 0]):
    """Make an answer to 12.1 from three formulas over (sent, times, tokens); the right ones unless given."""
    ttft = ttft or (lambda s, t, n: t[0] - s)
    tpot = tpot or (lambda s, t, n: (t[-1] - t[0]) / (n - 1) if n > 1 else None)
    e2e = e2e or (lambda s, t, n: t[-1] - s)

    def answer(sent_s, chunks):
        kept = keep(chunks)
        if not kept:
            return None, None, None
        times, n = [at_s for at_s, _ in kept], sum(count for _, count in kept)
        return ttft(sent_s, times, n), tpot(sent_s, times, n), e2e(sent_s, times, n)

    return answer


_STREAM_MISTAKES = (
    ("chunks are counted as tokens: a chunk may carry several, add up the second numbers.",
     _stream(tpot=lambda s, t, n: (t[-1] - t[0]) / (len(t) - 1) if len(t) > 1 else None)),
    ("chunks are counted as tokens: a chunk may carry several, add up the second numbers.",
     _stream(tpot=lambda s, t, n: (t[-1] - t[0]) / (len(t) - 1) if len(t) > 1 else None if n == 1 else 0.0)),
    ("n tokens have n - 1 gaps: the first token belongs to the TTFT.",
     _stream(tpot=lambda s, t, n: (t[-1] - t[0]) / n if n > 1 else None)),
    ("n tokens have n - 1 gaps: the first token belongs to the TTFT.",
     _stream(tpot=lambda s, t, n: (t[-1] - t[0]) / n)),
    ("the TPOT counts from the sending: the wait for the first token is the TTFT and stays out of it.",
     _stream(tpot=lambda s, t, n: (t[-1] - s) / (n - 1) if n > 1 else None)),
    ("end to end over all tokens is another number: the TPOT begins at the first chunk and has n - 1 gaps.",
     _stream(tpot=lambda s, t, n: (t[-1] - s) / n)),
    ("that is tokens per second: the TPOT is its inverse, seconds per token.",
     _stream(tpot=lambda s, t, n: (n - 1) / (t[-1] - t[0]) if n > 1 and t[-1] > t[0] else None if n == 1 else 0.0)),
    ("a chunk without a token is taken for content: skip it for all three.", _stream(keep=lambda chunks: list(chunks))),
    ("a single token gives TPOT 0, which looks very fast: what cannot be known is None.",
     _stream(tpot=lambda s, t, n: (t[-1] - t[0]) / (n - 1) if n > 1 else 0.0)),
    ("end to end runs from the sending to the last token, not from the first one.",
     _stream(e2e=lambda s, t, n: t[-1] - t[0])),
    ("the instants are readings of a clock: subtract `sent_s`.",
     _stream(ttft=lambda s, t, n: t[0], e2e=lambda s, t, n: t[-1])),
    ("those are milliseconds: everything here is in seconds.",
     lambda s, c: tuple(None if x is None else 1e3 * x for x in _stream()(s, c))),
    ("what cannot be known is None, not 0: a zero looks like a measurement.",
     lambda s, c: tuple(0 if x is None else x for x in _stream()(s, c))),
)  # fmt: skip


def check_1(stream_metrics) -> Outcome:
    """The metrics of one stream; the oracle spreads every token over its own gap and adds the gaps up."""
    expect_function(stream_metrics, "stream_metrics")
    expect_cases(stream_metrics, _STREAMS, _STREAM_MISTAKES)
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
    return passed("a chunk is not a token: a tool that thinks so reported 8.72 ms where 3.20 ms were true.")


def check_2(what_differs) -> Outcome:
    """The same work, request by request; names may come in any order."""
    expect_function(what_differs, "what_differs")

    class Sorted(LearnerFunction):
        """Puts the names of an answer into the order of the exercise, so that any order is right."""

        def __call__(self, *args, **kwargs):
            got = LearnerFunction.__call__(self, *args, **kwargs)
            if hasattr(got, "tolist"):
                fail(f"{self.call}: a list of names is asked for, and this is a {type(got).__name__}.")
            if isinstance(got, set | frozenset | tuple | list):
                unknown = [name for name in got if not isinstance(name, str) or name not in NAMES]
                if unknown:
                    fail(f"{shorten(repr(unknown[0]), 40)} is none of the names: {', '.join(NAMES)}.")
                if twice := [name for name in NAMES if list(got).count(name) > 1]:
                    fail(f"{self.call}: {twice[0]!r} is named more than once: one request that differs is enough.")
                return [name for name in NAMES if name in got]
            return got

    function = Sorted(what_differs.function)
    cases = [Case(expected, (a, b), why=why) for a, b, expected, why in PAIRS]
    expect_cases(function, cases, WORK_MISTAKES)
    draw, random_cases = random.Random(122), []
    for _ in range(40):
        sizes = {f"r{k}": (draw.randrange(4, 99), draw.randrange(4, 99)) for k in range(6)}
        other = dict(sizes)
        if draw.random() < 0.6:
            name = draw.choice(list(other))
            other[name] = (other[name][0] + draw.choice((-1, 0, 1)), other[name][1] + draw.choice((-1, 0, 1)))
        a, b = change_run(requests=sizes), change_run(requests=other, dtype=draw.choice(("float32", "float16")))
        random_cases.append(Case(find_differences(a, b), (a, b)))
    expect_cases(function, random_cases)
    expect_no_generator(function)
    return passed("now a comparison that is none can be seen before anybody believes it.")


# 12.3


def check_3(compare_throughput) -> Outcome:
    """Throughput over the window of each round, and the paired ratio, by a printed table of Student's t."""
    expect_function(compare_throughput, "compare_throughput")
    expect_cases(compare_throughput, ROUNDS, ROUND_MISTAKES, relative=1e-6)
    expect_cases(compare_throughput, draw_rounds(20), relative=1e-6)
    expect_no_generator(compare_throughput)
    return passed("all tokens over one window, in pairs: what a whole machine delivers, with its interval.")


# 12.4: made-up records, each with three or five rounds of two workloads, then the learner's own.
_KEYS = ("mixed_vllm_tok_per_s", "mixed_naive_tok_per_s")
# The rounds of one side are not in the order of speed of the other: the pairs are what counts.
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
    """The verdict of a record: made-up ones by the table of t, then the learner's own, recomputed from its samples."""
    expect_function(read_verdict, "read_verdict")
    for number, made in enumerate(_MADE):
        others = {key: values[: len(made[_KEYS[0]])] for key, values in _OTHERS.items()}
        record = SimpleNamespace(id=f"r-00000000a{number}", lab="12", name="engines", samples=others | made)
        _expect_verdict(read_verdict, record, where=f"made-up record {record.id}")
    own = list(load_records(lab="12", name="engines"))
    if not own:
        return passed("the made-up records are read right; measure, and check again for your own.")
    ratio, low, high, verdict = _expect_verdict(read_verdict, own[-1], where=f"your record {own[-1].id}")
    return passed(
        f"your record {own[-1].id}: vLLM over naive Transformers {ratio:.3g}, {low:.3g} to {high:.3g}: vLLM is "
        f"{verdict if verdict != 'cannot tell' else 'neither, you cannot tell'}.",
        {"ratio": ratio, "low": low, "high": high},
    )


def _judge_logs(samples, *, keys=_KEYS, order=list, num=None, **changes):
    """(ratio, low, high, verdict) from the stored samples, by the table of t; a wrong answer when a part is given."""
    a, b = (order(samples[key])[:num] for key in keys)
    logs = [math.log(x / y) for x, y in zip(a, b, strict=True)]
    mean, low, high = estimate_ends(logs, **changes)
    verdict = "faster" if low > 0 else "slower" if high < 0 else "cannot tell"
    return math.exp(mean), math.exp(low), math.exp(high), verdict


_WRONG_PAIRS = (
    ("the samples are sorted before they are paired: that makes pairs that never ran side by side.", {"order": sorted}),
    ("only the first three rounds are read: a record may have more.", {"num": 3}),
    ("4.30 is Student's t for three rounds: n rounds have n - 1 degrees of freedom.", {"t": T_95[2]}),
)


def _expect_verdict(read_verdict, record, *, where):
    got = read_verdict(record)
    expect_fields(got, _FIELDS, record, call=read_verdict.call, where=where)
    right = _judge_logs(record.samples)
    numbers = tuple(tidy(got[name]) for name in _FIELDS[1:4])
    for name, value in zip(_FIELDS[1:4], numbers, strict=True):
        if not is_number(value):
            fail(f"{where}: `{name}` is {shorten(repr(value), 40)}, and a number was asked for.")
    if not _near(numbers, right[:3]):
        _explain_verdict(numbers, record, right, where)
    word = tidy(got["verdict"])
    if not isinstance(word, str) or word != right[3]:
        _explain_word(word, right, where)
    return right


def _near(got, right) -> bool:
    return all(math.isclose(x, y, rel_tol=1e-6) for x, y in zip(got, right, strict=True))


def _explain_verdict(numbers, record, right, where) -> NoReturn:
    """Fail with the sentence of the mistake that explains the numbers."""
    ratio, low, high, _ = right
    samples = record.samples
    if _near(numbers, (1 / ratio, 1 / high, 1 / low)) or _near(numbers, (1 / ratio, 1 / low, 1 / high)):
        fail(f'{where}: the ratio is turned round. tok/s are better when higher: compare(..., better="higher").')
    if _near((numbers[0], numbers[2], numbers[1]), right[:3]):
        fail(f"{where}: the ends are swapped: `low` is the smaller one.")
    for other, name in ((("equal_vllm_tok_per_s", "equal_naive_tok_per_s"), "equal lengths"),
                        (("shared_vllm_tok_per_s", "shared_naive_tok_per_s"), "the shared prefix"),
                        (("mixed_batched_tok_per_s", "mixed_naive_tok_per_s"), "batched Transformers over naive"),
                        (("mixed_vllm_tok_per_s", "mixed_batched_tok_per_s"), "vLLM over batched")):  # fmt: skip
        if set(other) <= set(samples) and _near(numbers, _judge_logs(samples, keys=other)[:3]):
            fail(f"{where}: those are the numbers of {name}: vLLM over naive, on mixed lengths, was asked for.")
    for sentence, changes in _WRONG_PAIRS:
        if _near(numbers, _judge_logs(samples, **changes)[:3]):
            fail(f"{where}: {sentence}")
    means = [statistics.fmean(samples[key]) for key in _KEYS]
    medians = [statistics.median(samples[key]) for key in _KEYS]
    if any(math.isclose(numbers[0], x / y, rel_tol=1e-6) for x, y in (means, medians)):
        fail(f"{where}: that divides two averages: take the ratio within each round, so that the drift cancels.")
    if math.isclose(numbers[0], ratio, rel_tol=1e-6):
        fail(f"{where}: the ratio is right, its interval is not: the rounds are pairs, in their order.")
    seen = f"{numbers[0]:.4g} ({numbers[1]:.4g} to {numbers[2]:.4g})"
    fail(f"{where}: {seen} is not the ratio of {' over '.join(_KEYS)}, in pairs of rounds.")


def _explain_word(word, right, where) -> NoReturn:
    ratio, low, high, verdict = right
    if not isinstance(word, str) or word not in ("faster", "slower", "cannot tell"):
        fail(f"{where}: the verdict is {shorten(repr(word), 40)}: write faster, slower or cannot tell.")
    if verdict == "cannot tell":
        fail(f"{where}: {low:.3g} to {high:.3g} holds 1, so {word!r} is more than the samples say.")
    if word == "cannot tell":
        fail(f"{where}: {low:.3g} to {high:.3g} does not hold 1: the samples do say something.")
    fail(f"{where}: the verdict is about vLLM: a ratio of {ratio:.3g} says {verdict!r}.")
