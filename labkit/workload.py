"""Which requests, and when? Prompts, lengths, arrival times: everything is drawn from one seed before a run starts.

    workload = draw_mixed_lengths(ids, num_requests=32, rate_per_s=4)        # prompts cut from a text
    plan = draw_open_plan("poisson", rate_per_s=5, duration_s=60)            # random prompts, an arrival process

The same arguments give the same requests on every machine. Lengths, arrivals and prompts come from separate streams of
the seed, so changing the rate changes no prompt.

A `Workload` holds requests to measure and others to warm up with. They never begin alike, because a warm prefix cache
has inflated a throughput by 86 %. A `LoadPlan` is what the load engine follows: chains of requests. A chain
starts at an absolute time; each later request waits for the end of the one before and a think time. An open loop has
chains of one request (arrivals do not wait for answers), a closed loop has one chain per client, a session is a chain
whose prompts grow. Request number k is the same whatever the number of workers: a worker takes every n-th chain.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np

from labkit.errors import LabkitError

__all__ = [
    "ARRIVALS",
    "Chain",
    "DrawnPrompt",
    "Lengths",
    "LoadPlan",
    "PublishedLengths",
    "Request",
    "TraceRow",
    "Workload",
    "draw_arrivals",
    "draw_closed_plan",
    "draw_equal_lengths",
    "draw_mixed_lengths",
    "draw_open_plan",
    "draw_session_plan",
    "draw_shared_prefix",
    "load_published_lengths",
    "read_lengths",
    "read_workload_trace",
]

NUM_DISTINCT = 16  # tokens: vLLM's smallest cache block; prompts that differ within it share no block
ID_RANGE = (10, 1000)  # below every vocabulary size in use, above the special tokens that come first
ARRIVALS = ("constant", "poisson", "conditioned-poisson", "gamma", "ramp", "at-once")


@dataclass(frozen=True, slots=True)
class DrawnPrompt(Sequence):
    """Random token ids that are drawn when they are read, so a plan of a million requests stays small.

    Two prompts that begin with the same parts share a prefix; parts with different keys share nothing.

    Attributes:
        parts: (key, number of tokens) of each part; the same key gives the same tokens.
        seed: seed of the tokens.
        id_range: token ids are drawn from [low, high).
    """

    parts: tuple[tuple[tuple[int, ...], int], ...]
    seed: int = 0
    id_range: tuple[int, int] = ID_RANGE

    def __len__(self) -> int:
        return sum(num for _, num in self.parts)

    def __iter__(self) -> Iterator[int]:
        drawn: list[int] = []
        for key, num in self.parts:
            drawn += np.random.default_rng((self.seed, *key)).integers(*self.id_range, size=num).tolist()
        return iter(drawn)

    def __getitem__(self, index):
        return tuple(self)[index]


@dataclass(frozen=True, slots=True)
class Request:
    """One request that will be sent.

    Attributes:
        prompt_ids: token ids of the prompt.
        num_output_tokens: exact number of output tokens.
        arrival_s: seconds after the start of the run (in a closed loop and within a session: not used).
        number: its place in the run, from 0.
        turn: its place in its chain, from 0.
        think_s: seconds between the end of the request before it in its chain and this one.
    """

    prompt_ids: Sequence[int]
    num_output_tokens: int
    arrival_s: float = 0.0
    number: int = 0
    turn: int = 0
    think_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests to measure, and others to warm up with.

    Attributes:
        name: kind of workload.
        measured: the requests to measure.
        warmup: the requests to warm up with; their prompts are disjoint from the measured ones.
        parameters: what the workload was drawn from.
    """

    name: str
    measured: tuple[Request, ...]
    warmup: tuple[Request, ...]
    parameters: Mapping[str, object] = field(default_factory=dict)

    @property
    def num_prompt_tokens(self) -> int:
        """Prompt tokens of the measured requests."""
        return sum(len(request.prompt_ids) for request in self.measured)

    @property
    def num_output_tokens(self) -> int:
        """Output tokens of the measured requests."""
        return sum(request.num_output_tokens for request in self.measured)

    def to_dict(self) -> dict:
        """Return what a record keeps: name, parameters, counts, and a digest of every request (sha256)."""
        text = repr(
            [(r.prompt_ids, r.num_output_tokens, r.arrival_s) for r in (*self.warmup, None, *self.measured) if r]
        )
        return {
            "name": self.name, "parameters": dict(self.parameters), "num_requests": len(self.measured),
            "num_warmup": len(self.warmup), "num_prompt_tokens": self.num_prompt_tokens,
            "num_output_tokens": self.num_output_tokens, "sha256": hashlib.sha256(text.encode()).hexdigest(),
        }  # fmt: skip


def draw_equal_lengths(
    ids, *, num_requests: int, prompt_tokens: int = 64, output_tokens: int = 64, num_warmup: int = 4, seed: int = 0
) -> Workload:
    """Draw requests of one length that all arrive at the start: where a static batch is at its best.

    `ids`: an array of token ids to cut the prompts from.
    """
    _, _, prompts = _spawn_streams(seed)
    total = num_warmup + num_requests
    warm, measured = _cut_prompts(ids, [prompt_tokens] * total, num_warmup, prompts)
    parameters = {"prompt_tokens": prompt_tokens, "output_tokens": output_tokens, "seed": seed}
    return _build_workload("equal lengths", warm, measured, [output_tokens] * total, [0.0] * num_requests, parameters)


def draw_mixed_lengths(
    ids,
    *,
    num_requests: int,
    rate_per_s: float,
    prompt_median: int = 48,
    output_median: int = 48,
    sigma: float = 0.7,
    min_tokens: int = 4,
    max_tokens: int = 256,
    num_warmup: int = 4,
    seed: int = 0,
) -> Workload:
    """Draw requests of mixed lengths that arrive over time: what users send, and where a static batch wastes rows.

    Prompt and output lengths are independent lognormal draws, exp(N(ln median, sigma^2)), rounded and cut to
    [`min_tokens`, `max_tokens`]; arrivals are a Poisson process of `rate_per_s` (exponential gaps, no rescaling), the
    first request after the first gap.
    """
    lengths, arrivals, prompts = _spawn_streams(seed)
    total = num_warmup + num_requests
    drawn = np.exp(np.log([prompt_median, output_median]) + sigma * lengths.standard_normal((total, 2)))  # (total, 2)
    counts = np.clip(np.rint(drawn), min_tokens, max_tokens).astype(int)
    warm, measured = _cut_prompts(ids, counts[:, 0].tolist(), num_warmup, prompts)
    parameters = {
        "prompt_median": prompt_median, "output_median": output_median, "sigma": sigma, "min_tokens": min_tokens,
        "max_tokens": max_tokens, "rate_per_s": rate_per_s, "arrivals": "Poisson", "seed": seed,
    }  # fmt: skip
    times = draw_arrivals("poisson", rate_per_s=rate_per_s, num_requests=num_requests, seed=arrivals)
    return _build_workload("mixed lengths", warm, measured, counts[:, 1].tolist(), times.tolist(), parameters)


def draw_shared_prefix(
    ids,
    *,
    num_requests: int,
    prompt_tokens: int = 256,
    shared_fraction: float = 0.75,
    output_tokens: int = 32,
    num_warmup: int = 4,
    seed: int = 0,
) -> Workload:
    """Draw prompts that begin with the same tokens, like a system prompt: where a prefix cache is at its best.

    The first round(`shared_fraction` x `prompt_tokens`) tokens are common to all measured requests, the rest differ.
    The warm-up has its own common beginning, so the first measured request finds a cold cache.
    """
    if not 0 <= shared_fraction < 1:
        raise LabkitError(f"shared_fraction is {shared_fraction}; expected 0 or more and less than 1.",
                          next_step="Leave each request some tokens that differ.")  # fmt: skip
    _, _, prompts = _spawn_streams(seed)
    num_shared = round(shared_fraction * prompt_tokens)
    total = num_warmup + num_requests
    # Two more windows for the two common beginnings; the parts that differ are windows like any others.
    sizes = [max(num_shared, NUM_DISTINCT)] + [prompt_tokens - num_shared] * num_warmup
    sizes += [max(num_shared, NUM_DISTINCT)] + [prompt_tokens - num_shared] * num_requests
    warm, measured = _cut_prompts(ids, sizes, num_warmup + 1, prompts)
    warm = [warm[0][:num_shared] + tail for tail in warm[1:]]
    measured = [measured[0][:num_shared] + tail for tail in measured[1:]]
    parameters = {
        "prompt_tokens": prompt_tokens,
        "shared_tokens": num_shared,
        "output_tokens": output_tokens,
        "seed": seed,
    }
    return _build_workload("shared prefix", warm, measured, [output_tokens] * total, [0.0] * num_requests, parameters)


def _spawn_streams(seed: int) -> list[np.random.Generator]:
    """Return independent generators for lengths, arrivals and prompts."""
    return [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(3)]


def _build_workload(name: str, warm, measured, output_lengths, arrivals_s, parameters: dict) -> Workload:
    outputs_warm, outputs = output_lengths[: len(warm)], output_lengths[len(warm) :]
    return Workload(
        name,
        tuple(Request(p, n, t) for p, n, t in zip(measured, outputs, arrivals_s, strict=True)),
        tuple(Request(p, n) for p, n in zip(warm, outputs_warm, strict=True)),
        parameters,
    )


def _cut_prompts(ids, sizes: list[int], num_warmup: int, generator: np.random.Generator):
    """Cut one window of each size: the first `num_warmup` from the first part of `ids`, the others from the rest.

    No two windows begin with the same tokens (the first 16, or all of a shorter window): a window that does is drawn
    again. Returns two lists of tuples of ints.
    """
    ids = np.asarray(ids)
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise LabkitError(
            f"ids has shape {ids.shape} and type {ids.dtype}; expected a one-dimensional array of integers.",
            next_step="Give the token ids of a text, one after the other.",
        )
    if min(sizes, default=1) < 1:
        raise LabkitError("A prompt of 0 tokens was asked for.", next_step="Ask for at least 1 prompt token.")
    border = round(len(ids) * num_warmup / max(1, len(sizes)))
    windows, keys, beginnings = [], set(), set()
    for number, size in enumerate(sizes):
        low, high = (0, border) if number < num_warmup else (border, len(ids))
        for _ in range(200):
            start = int(generator.integers(low, high - size + 1)) if high - low >= size else -1
            window = tuple(ids[start : start + size].tolist()) if start >= 0 else ()
            starts = [window[:k] for k in range(1, min(size, NUM_DISTINCT) + 1)]
            # A short window may be the beginning of another, so look both ways.
            if window and starts[-1] not in beginnings and keys.isdisjoint(starts):
                break
        else:
            raise LabkitError(
                f"{len(ids)} token ids are too few for {len(sizes)} prompts that begin differently.",
                next_step="Give a longer text, or ask for fewer or shorter prompts.",
            )
        keys.add(starts[-1])
        beginnings.update(starts)
        windows.append(window)
    return windows[:num_warmup], windows[num_warmup:]


# Lengths

_LENGTH_KINDS = {"fixed": 1, "uniform": 2, "lognormal": 2}
_Z90 = statistics.NormalDist().inv_cdf(0.9)


@dataclass(frozen=True, slots=True)
class Lengths:
    """A distribution of prompt or output lengths, in tokens.

    As text: "128", "uniform:64:256", "lognormal:MEDIAN:SIGMA", each with ":MAX" after it to cut. A lognormal length is
    exp(N(ln median, sigma^2)), rounded, at least 1.

    Attributes:
        kind: "fixed", "uniform" or "lognormal".
        a: the length, the lower bound, or the median, in tokens.
        b: the upper bound in tokens, or sigma (no unit).
        maximum: longer draws are cut to this many tokens.
    """

    kind: str
    a: float
    b: float = 0.0
    maximum: int = 2**31

    def __post_init__(self) -> None:
        is_wrong = self.kind not in _LENGTH_KINDS or not self.a >= 1 or not self.maximum >= 1
        if is_wrong or (self.kind == "uniform" and self.b < self.a) or (self.kind == "lognormal" and not self.b >= 0):
            raise LabkitError(
                f"{self} is not a distribution of lengths.",
                next_step='write "128", "uniform:64:256" or "lognormal:64:0.7".',
            )

    def draw(self, num: int, generator: np.random.Generator) -> np.ndarray:
        """Return `num` lengths, whole numbers from 1 to the maximum."""
        if self.kind == "fixed":
            values = np.full(num, self.a)
        elif self.kind == "uniform":
            values = generator.integers(int(self.a), int(self.b), size=num, endpoint=True)
        else:
            values = np.exp(math.log(self.a) + self.b * generator.standard_normal(num))
        return np.clip(np.rint(values), 1, self.maximum).astype(int)

    def __str__(self) -> str:
        parts = [self.kind, f"{self.a:g}", *([f"{self.b:.4g}"] if _LENGTH_KINDS.get(self.kind) == 2 else [])]
        return ":".join([*parts, *([str(self.maximum)] if self.maximum < 2**31 else [])])


@dataclass(frozen=True, slots=True)
class PublishedLengths:
    """Prompt and output lengths of a published workload.

    Attributes:
        name: the workload.
        prompt: lengths of the prompts, in tokens.
        output: lengths of the answers, in tokens.
        source: where they were published.
    """

    name: str
    prompt: Lengths
    output: Lengths
    source: str


def read_lengths(text: str | int | Lengths) -> Lengths:
    """Read lengths from their text, "128" or "lognormal:64:0.7:512"; LabkitError says what is wrong."""
    if isinstance(text, Lengths):
        return text
    kind, *values = str(text).split(":")
    if not values:
        kind, values = "fixed", [kind]
    try:
        numbers = [float(value) for value in values]
        needed = _LENGTH_KINDS[kind]
        if len(numbers) not in (needed, needed + 1):
            raise ValueError
        bounds = {"maximum": int(numbers[needed])} if len(numbers) > needed else {}
        return Lengths(kind, *numbers[:needed], **bounds)
    except (KeyError, ValueError, OverflowError):
        raise LabkitError(
            f"{text!r} is not a distribution of lengths.",
            next_step='write "128", "uniform:64:256" or "lognormal:64:0.7".',
        ) from None


def load_published_lengths(name: str, *, path: Path, scale: float = 1.0, maximum: int = 2**31) -> PublishedLengths:
    """Load a published workload's lengths as lognormals; `scale` shortens both medians for a small model.

    `path`: the table of the course, data/reference/workloads/lengths.csv, which names each source. The source gives two
    percentiles; the lognormal between them is the course's choice, with sigma = ln(p90 / median) / 1.2816.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    if name not in rows:
        raise LabkitError(f"{name!r} is not a published workload.", next_step=f"use one of {', '.join(rows)}.")

    def make(what: str) -> Lengths:
        median, p90 = (float(rows[name][f"{what}_{key}"]) for key in ("median", "p90"))
        return Lengths("lognormal", max(1.0, median * scale), math.log(p90 / median) / _Z90, maximum)

    return PublishedLengths(name, make("prompt"), make("output"), rows[name]["source"])


# Arrival times


def draw_arrivals(
    kind: str,
    *,
    rate_per_s: float = 0.0,
    num_requests: int | None = None,
    duration_s: float | None = None,
    cv: float = 1.0,
    end_rate_per_s: float | None = None,
    seed: int | np.random.Generator = 0,
) -> np.ndarray:
    """Return the arrival times of a process, in seconds after the start and in order, shape (number of requests,).

    - constant: one every 1 / rate seconds
    - poisson: independent exponential gaps, never rescaled: users who do not know of each other
    - conditioned-poisson: the same gaps, rescaled so that the last of N comes at N / rate (what several public tools
      call "Poisson"): the rate of a run is exact, its spread too small
    - gamma: gamma gaps with coefficient of variation `cv` (shape 1 / cv^2): above 1 is burstier
    - ramp: Poisson with a rate that goes linearly from `rate_per_s` to `end_rate_per_s` over the duration
    - at-once: all at 0

    Except for "at-once", the first request comes after the first gap. Give `num_requests` or `duration_s`; with both,
    the one that ends first decides ("ramp" needs the duration, "at-once" the number).
    """
    if kind not in ARRIVALS:
        raise LabkitError(f"{kind!r} is not an arrival process.", next_step=f"use one of {', '.join(ARRIVALS)}.")
    if num_requests is None and duration_s is None:
        raise LabkitError("Neither a number of requests nor a duration is given.", next_step="give one of them.")
    if kind == "at-once":
        if num_requests is None:
            raise LabkitError("at-once needs the number of requests.", next_step="give num_requests.")
        return np.zeros(num_requests)
    if not rate_per_s > 0:
        raise LabkitError(f"rate_per_s is {rate_per_s}; expected more than 0.", next_step="Give requests per second.")
    if not cv > 0:
        raise LabkitError(f"cv is {cv}; expected more than 0.", next_step="1 gives a Poisson process.")
    generator = seed if isinstance(seed, np.random.Generator) else np.random.default_rng(seed)
    if kind == "ramp":
        times = _draw_ramp(rate_per_s, end_rate_per_s, duration_s, generator)
        return times if num_requests is None else times[:num_requests]
    num = num_requests
    if num is None and kind in ("constant", "conditioned-poisson"):
        num = math.floor(rate_per_s * duration_s + 1e-9)
    if num is None:
        # Almost surely enough; the loop covers the rest. The stream is the same however it is portioned.
        mean = rate_per_s * duration_s
        portion = int(mean + 6 * max(cv, 1) * math.sqrt(mean) + 16)
        times = _draw_times(kind, portion, rate_per_s, cv, generator)
        while times[-1] <= duration_s:
            times = np.concatenate([times, times[-1] + _draw_times(kind, portion, rate_per_s, cv, generator)])
    else:
        times = _draw_times(kind, num, rate_per_s, cv, generator)
    return times if duration_s is None else times[times <= duration_s * (1 + 1e-12)]


def _draw_times(kind: str, num: int, rate_per_s: float, cv: float, generator) -> np.ndarray:
    if kind == "constant":
        return np.arange(1, num + 1) / rate_per_s
    if kind == "gamma":
        return np.cumsum(generator.gamma(1 / cv**2, cv**2 / rate_per_s, size=num))
    times = np.cumsum(generator.exponential(1.0 / rate_per_s, size=num))
    return times if kind == "poisson" or not num else times * (num / rate_per_s / times[-1])


def _draw_ramp(first: float, last: float | None, duration_s: float | None, generator) -> np.ndarray:
    """Draw a Poisson process with a changing rate: stretch the time of one with rate 1."""
    if last is None or not last > 0 or duration_s is None or not duration_s > 0:
        raise LabkitError("a ramp needs end_rate_per_s and duration_s above 0.", next_step="give both.")
    expected = (first + last) / 2 * duration_s
    counts = draw_arrivals("poisson", rate_per_s=1.0, duration_s=expected, seed=generator)
    slope = (last - first) / duration_s
    if slope == 0:
        return counts / first
    return (np.sqrt(first**2 + 2 * slope * counts) - first) / slope


# Traces of real users

_ARRIVAL_COLUMNS = ("arrival_s", "arrival", "timestamp", "time")
_PROMPT_COLUMNS = ("prompt_tokens", "input_tokens", "input_length", "contexttokens", "request tokens")
_OUTPUT_COLUMNS = ("output_tokens", "output_length", "generatedtokens", "response tokens")


class TraceRow(NamedTuple):
    """One row of a trace.

    Attributes:
        arrival_s: seconds after the first request.
        num_prompt_tokens: length of the prompt.
        num_output_tokens: length of the answer.
    """

    arrival_s: float
    num_prompt_tokens: int
    num_output_tokens: int


def read_workload_trace(
    path: str | Path, *, speed: float = 1.0, duration_s: float | None = None
) -> tuple[TraceRow, ...]:
    """Read what real users sent, CSV or JSONL, in order of arrival; the first request is at 0 s.

    Columns (any case): `arrival_s`, `arrival`, `timestamp` or `time`, in seconds or as a date with time;
    `prompt_tokens`, `input_tokens`, `input_length` or `ContextTokens`; `output_tokens`, `output_length` or
    `GeneratedTokens` (the last of each: the Azure LLM inference traces, https://github.com/Azure/AzurePublicDataset).
    `speed` 2 replays it twice as fast; `duration_s` keeps what arrives up to then. A row that cannot be read is an
    error that names its line.
    """
    if not speed > 0:
        raise LabkitError(f"The speed of the replay is {speed}; expected more than 0.", next_step="1 is as recorded.")
    path = Path(path).expanduser()
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise LabkitError(
            f"The trace {path.name} cannot be read ({error.strerror}).", next_step="Check the path."
        ) from None
    rows = list(_read_jsonl(text) if text.lstrip().startswith("{") else _read_csv(text))
    if not rows:
        raise LabkitError(f"The trace {path.name} has no request.", next_step="Give a CSV with a header, or JSONL.")
    made = sorted(_read_row(number, row, path.name) for number, row in rows)
    first_s = made[0].arrival_s
    moved = (row._replace(arrival_s=(row.arrival_s - first_s) / speed) for row in made)
    return tuple(row for row in moved if duration_s is None or row.arrival_s <= duration_s)


def _read_csv(text: str) -> Iterable[tuple[int, dict]]:
    yield from enumerate(csv.DictReader(text.splitlines()), start=2)


def _read_jsonl(text: str) -> Iterable[tuple[int, dict]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                content = json.loads(line)
            except ValueError:
                content = None
            yield number, content if isinstance(content, dict) else {}


def _read_row(number: int, row: dict, name: str) -> TraceRow:
    fields = {str(key).strip().lower(): value for key, value in row.items()}

    def pick(names: tuple[str, ...]) -> object:
        found = next((fields[key] for key in names if fields.get(key) not in (None, "")), None)
        if found is None:
            raise LabkitError(
                f"{name}, line {number}: no {names[0]}.", next_step=f"Name the column one of {', '.join(names)}."
            )
        return found

    try:
        row = TraceRow(
            _read_time(pick(_ARRIVAL_COLUMNS)), int(float(pick(_PROMPT_COLUMNS))), int(float(pick(_OUTPUT_COLUMNS)))
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise LabkitError(
            f"{name}, line {number}: {error}.", next_step="Write numbers, or dates with a time."
        ) from None
    if row.num_prompt_tokens < 1 or row.num_output_tokens < 1 or not math.isfinite(row.arrival_s):
        raise LabkitError(
            f"{name}, line {number}: {tuple(row)} is not a request: both lengths must be at least one token."
        )
    return row


def _read_time(value: object) -> float:
    """Return seconds from a number, or from a date with time (whose fraction may have seven digits)."""
    try:
        return float(value)
    except (TypeError, ValueError):
        whole, dot, fraction = str(value).strip().partition(".")
        digits = "".join(char for char in fraction if char.isdigit())
        time = datetime.fromisoformat(whole)
        time = time if time.tzinfo else time.replace(tzinfo=UTC)
        return time.timestamp() + (float(f"0.{digits}") if dot and digits else 0.0)


# Plans

_LENGTHS, _ARRIVALS, _PROMPTS, _SHARED, _THINK = range(5)  # one stream of the seed each


@dataclass(frozen=True, slots=True)
class Chain:
    """Requests that wait for each other.

    Attributes:
        number: its place in the plan, from 0.
        start_s: when its first request is due, in seconds after the start.
        requests: in order; they may be made when they are asked for (a closed loop may have no last one).
    """

    number: int
    start_s: float
    requests: Sequence[Request]


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """All requests of a load run, drawn before it starts.

    Attributes:
        chains: the chains of requests.
        loop: "open" or "closed".
        name: the arrival process in words.
        parameters: what the plan was drawn from.
        duration_s: a closed loop sends no request after this many seconds.
        max_concurrency: cap on the requests in flight; it turns an open loop into a closed one, and the name says so.
    """

    chains: tuple[Chain, ...]
    loop: str
    name: str
    parameters: Mapping[str, object] = field(default_factory=dict)
    duration_s: float | None = None
    max_concurrency: int | None = None

    @property
    def num_requests(self) -> int | None:
        """Number of requests; None where only the duration ends the run."""
        counts = [len(chain.requests) for chain in self.chains]
        return None if _ENDLESS in counts else sum(counts)

    @property
    def last_start_s(self) -> float:
        """When the last chain starts; in a closed loop, when sending ends."""
        return self.duration_s or max((chain.start_s for chain in self.chains), default=0.0)

    def cap(self, max_concurrency: int) -> LoadPlan:
        """Return the plan with at most `max_concurrency` requests in flight: a closed loop, and labelled so."""
        if max_concurrency < 1:
            raise LabkitError(
                f"A cap of {max_concurrency} requests in flight lets none through.", next_step="Use 1 or more."
            )
        name = f"{self.name}, capped at {max_concurrency} in flight: closed"
        return dataclasses.replace(self, loop="closed", name=name, max_concurrency=max_concurrency)

    def split(self, worker: int, num_workers: int) -> LoadPlan:
        """Return the part of one of `num_workers` workers: every n-th chain, at its own time."""
        if self.max_concurrency and num_workers > 1:
            raise LabkitError("A cap on the concurrency cannot be shared by workers.", next_step="use one worker.")
        return dataclasses.replace(self, chains=self.chains[worker::num_workers])

    def to_dict(self) -> dict:
        """Return what a report keeps: name, loop, parameters, counts, and a digest of the schedule (sha256)."""
        rows = [
            (chain.number, chain.start_s, request.number, len(request.prompt_ids), request.num_output_tokens)
            for chain in self.chains
            for request in _first(chain.requests)
        ]
        return {
            "name": self.name, "loop": self.loop, "parameters": dict(self.parameters), "duration_s": self.duration_s,
            "num_requests": self.num_requests, "num_chains": len(self.chains), "max_concurrency": self.max_concurrency,
            "sha256": hashlib.sha256(repr(rows).encode()).hexdigest(),
        }  # fmt: skip


def draw_open_plan(
    arrivals: str | Workload | Sequence[TraceRow] = "poisson",
    *,
    prompt: str | int | Lengths = 128,
    output: str | int | Lengths = 64,
    seed: int = 0,
    ids: tuple[int, int] = ID_RANGE,
    **process: object,
) -> LoadPlan:
    """Draw an open loop: requests come at their own times, whatever the server does.

    `arrivals`: an arrival process of `draw_arrivals` with its options (`rate_per_s`, `num_requests`, `duration_s`,
    `cv`, `end_rate_per_s`), the rows of a trace (which bring their lengths), or a `Workload` (which brings everything).
    `ids`: range of the token ids, [low, high).
    """
    if isinstance(arrivals, Workload):
        made = [Chain(k, r.arrival_s, (dataclasses.replace(r, number=k),)) for k, r in enumerate(arrivals.measured)]
        return LoadPlan(tuple(made), "open", arrivals.name, dict(arrivals.parameters))
    if not isinstance(arrivals, str):
        rows = [(row.arrival_s, row.num_prompt_tokens, row.num_output_tokens) for row in arrivals]
        name, parameters = "replay of a trace", {"num_requests": len(rows), "seed": seed}
    else:
        prompt, output = read_lengths(prompt), read_lengths(output)
        times = draw_arrivals(arrivals, seed=_stream(seed, _ARRIVALS), **process)
        lengths = _stream(seed, _LENGTHS)
        rows = list(
            zip(times.tolist(), *(one.draw(len(times), lengths).tolist() for one in (prompt, output)), strict=True)
        )
        name = arrivals
        parameters = {**process, "prompt": str(prompt), "output": str(output), "seed": seed}
    made = [
        Chain(k, at_s, (Request(DrawnPrompt((((_PROMPTS, k), num_in),), seed, ids), num_out, at_s, k),))
        for k, (at_s, num_in, num_out) in enumerate(rows)
    ]
    return LoadPlan(tuple(made), "open", name, parameters)


def draw_closed_plan(
    *,
    num_clients: int,
    requests_per_client: int | None = None,
    duration_s: float | None = None,
    think_s: float = 0.0,
    prompt: str | int | Lengths = 128,
    output: str | int | Lengths = 64,
    seed: int = 0,
    ids: tuple[int, int] = ID_RANGE,
) -> LoadPlan:
    """Draw a closed loop: each client sends, waits for the end of the answer, thinks, sends again.

    Give the number of requests of each client, a duration, or both. `think_s`: mean of exponential think times (0:
    none).
    """
    if num_clients < 1 or (requests_per_client is None and duration_s is None):
        raise LabkitError(
            "A closed loop needs at least one client and an end.", next_step="give requests_per_client or duration_s."
        )
    prompt, output = read_lengths(prompt), read_lengths(output)
    num = _ENDLESS if requests_per_client is None else requests_per_client
    chains = tuple(
        Chain(client, 0.0, _ClientRequests(prompt, output, think_s, seed, ids, num_clients, client, num))
        for client in range(num_clients)
    )
    parameters = {
        "num_clients": num_clients, "requests_per_client": requests_per_client, "think_s": think_s,
        "prompt": str(prompt), "output": str(output), "seed": seed,
    }  # fmt: skip
    return LoadPlan(chains, "closed", f"{num_clients} clients", parameters, duration_s=duration_s)


def draw_session_plan(
    arrivals: str = "poisson",
    *,
    turns: int = 3,
    shared: int = 64,
    think_s: float = 1.0,
    prompt: str | int | Lengths = 32,
    output: str | int | Lengths = 32,
    seed: int = 0,
    ids: tuple[int, int] = ID_RANGE,
    **process: object,
) -> LoadPlan:
    """Draw sessions of several turns that all begin with the same `shared` tokens (a system prompt).

    The prompt of a turn is the prompt before it, an answer, and a new question of `prompt` tokens. The answers in the
    history are drawn beforehand, with the length that was asked for: what the server will say is not known yet, so its
    prefix cache can only hold what was once a prompt. Sessions start according to an arrival process.
    """
    prompt, output = read_lengths(prompt), read_lengths(output)
    starts = draw_arrivals(arrivals, seed=_stream(seed, _ARRIVALS), **process).tolist()
    lengths, think = _stream(seed, _LENGTHS), _stream(seed, _THINK)
    chains = []
    for session, start_s in enumerate(starts):
        questions, answers = (one.draw(turns, lengths).tolist() for one in (prompt, output))
        pauses = think.exponential(think_s, size=turns).tolist() if think_s else [0.0] * turns
        parts, made = [((_SHARED,), shared)] if shared else [], []
        for turn in range(turns):
            parts.append(((_PROMPTS, session, turn, 0), questions[turn]))
            pause_s = pauses[turn] if turn else 0.0
            prompt_ids, number = DrawnPrompt(tuple(parts), seed, ids), session * turns + turn
            made.append(Request(prompt_ids, answers[turn], number=number, turn=turn, think_s=pause_s))
            parts.append(((_PROMPTS, session, turn, 1), answers[turn]))
        chains.append(Chain(session, start_s, tuple(made)))
    parameters = {**process, "turns": turns, "shared": shared, "think_s": think_s, "prompt": str(prompt),
                  "output": str(output), "seed": seed}  # fmt: skip
    return LoadPlan(tuple(chains), "open", f"sessions of {turns} turns, {arrivals}", parameters)


_ENDLESS = 10**9


@dataclass(frozen=True, slots=True)
class _ClientRequests(Sequence):
    """The requests of one client of a closed loop, each drawn from its own stream when it is asked for."""

    prompt: Lengths
    output: Lengths
    think_s: float
    seed: int
    ids: tuple[int, int]
    num_clients: int
    client: int
    num: int

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, k: int) -> Request:
        if not 0 <= k < self.num:
            raise IndexError(k)
        stream = np.random.default_rng((self.seed, _LENGTHS, self.client, k))
        num_in, num_out = (int(one.draw(1, stream)[0]) for one in (self.prompt, self.output))
        think_s = float(stream.exponential(self.think_s)) if self.think_s and k else 0.0
        prompt_ids = DrawnPrompt((((_PROMPTS, self.client, k), num_in),), self.seed, self.ids)
        return Request(prompt_ids, num_out, number=self.client + k * self.num_clients, turn=k, think_s=think_s)


def _stream(seed: int, purpose: int) -> np.random.Generator:
    return np.random.default_rng((seed, purpose))


def _first(requests: Sequence[Request]) -> Iterator[Request]:
    """Return all requests of a chain, or the first four if they are drawn on demand."""
    return (
        (requests[k] for k in range(min(4, len(requests)))) if isinstance(requests, _ClientRequests) else iter(requests)
    )
