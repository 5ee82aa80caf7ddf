"""What do the records of a run say? Distributions, throughput and goodput, each word defined once.

Pure functions of the records. `DEFINITIONS` holds the sentence that is printed with each number. The whole run goes
from the first request sent to the last end; the steady window leaves out the ramps at both ends (`STEADY_RULE`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from labkit.errors import LabkitError
from labkit.load.records import RequestRecord
from labkit.stats import Summary, summarize

__all__ = [
    "DEFINITIONS",
    "STEADY_RULE",
    "Metrics",
    "WindowMetrics",
    "check_slo",
    "estimate_metrics",
    "measure_latency",
]

DEFINITIONS = {
    "ttft": "first chunk that carries content (text, reasoning or tool call) minus the time of sending",
    "ttft_from_schedule": "first chunk that carries content minus the scheduled time: keeps coordinated omission out",
    "first_answer": "first chunk that carries content and no reasoning minus the time of sending",
    "icl": "gaps between chunks with content, pooled over requests: shows a decode stall",
    "itl": "gaps between tokens; a chunk of m tokens gives its gap / m, m times; more tokens in the first chunk give 0",
    "tpot": "(last chunk - first chunk) / (n - 1) of each request with n > 1 output tokens",
    "e2e": "last chunk with content minus the time of sending",
    "e2e_from_schedule": "last chunk with content minus the scheduled time",
    "lag": "time of sending minus the scheduled time: how late the client itself was",
    "tok_per_s": "output tokens of successful requests over the window",
    "total_tok_per_s": "prompt and output tokens of successful requests over the window",
    "good_per_s": "requests that meet every SLO per second; equality meets it",
    "good_fraction": "good / (succeeded + failed); a request that no SLO applies to (TPOT of one token) is left out",
    "concurrency": "requests in flight, the mean over the window",
}
STEADY_RULE = (
    "from the first scheduled time plus the 90th percentile of e2e_from_schedule to the last scheduled time; "
    "none if that is under half of the sending time"
)
_PER_REQUEST = ("ttft", "ttft_from_schedule", "first_answer", "tpot", "e2e", "e2e_from_schedule")
_POOLED = ("icl", "itl")


@dataclass(frozen=True, slots=True)
class WindowMetrics:
    """What happened in one window of a run.

    Requests belong to the window in which they were scheduled, tokens to the window in which they arrived.

    Attributes:
        begin_s: its begin, in seconds since the start of the run.
        end_s: its end.
        num_requests: requests scheduled in it.
        num_succeeded: of these, with a whole answer.
        num_failed: of these, without.
        num_good: of these, those that met every SLO; None without SLOs.
        num_undecided: requests to which no SLO applies.
        request_per_s: successful requests per second.
        tok_per_s: output tokens per second.
        total_tok_per_s: prompt and output tokens per second; None if the prompts are unknown.
        good_per_s: good requests per second; None without SLOs.
        good_fraction: good / (succeeded + failed); None without SLOs or if no request could be judged.
        concurrency: mean number of requests in flight.
        latencies: a `Summary` in seconds for each latency; None without samples.
    """

    begin_s: float
    end_s: float
    num_requests: int
    num_succeeded: int
    num_failed: int
    num_good: int | None
    num_undecided: int
    request_per_s: float
    tok_per_s: float
    total_tok_per_s: float | None
    good_per_s: float | None
    good_fraction: float | None
    concurrency: float
    latencies: Mapping[str, Summary | None]

    @property
    def seconds(self) -> float:
        """Length of the window in seconds."""
        return self.end_s - self.begin_s


@dataclass(frozen=True, slots=True)
class Metrics:
    """All metrics of a run.

    Attributes:
        whole: the whole run, from the first request sent to the last end.
        steady: the steady window (`STEADY_RULE`); None if the run is too short for one.
        causes: number of failures by cause.
        sources: number of successful requests by the source of their token counts.
        notes: number of requests by note (digits replaced by N).
        num_retries: attempts that were refused and repeated.
    """

    whole: WindowMetrics
    steady: WindowMetrics | None
    causes: Mapping[str, int]
    sources: Mapping[str, int]
    notes: Mapping[str, int] = field(default_factory=dict)
    num_retries: int = 0


def estimate_metrics(records: Sequence[RequestRecord], *, slo: Mapping[str, float] | None = None) -> Metrics:
    """Return the metrics of a run's records; `slo`: seconds by name ("ttft_from_schedule": 0.5, "tpot": 0.03).

    Failed requests are not in the latencies but in the error counts. Raises LabkitError without any record.
    """
    if not records:
        raise LabkitError("There is no record of a request.", next_step="Find out why the run sent nothing.")
    for name in slo or {}:
        if name not in _PER_REQUEST:
            raise LabkitError(f"{name!r} is not a valid SLO.", next_step=f"use {', '.join(_PER_REQUEST)}.")
    sent = [record for record in records if record.sent_s is not None]
    begin_s = min((record.sent_s for record in sent), default=0.0)
    end_s = max((_end_of(record) for record in sent), default=begin_s)
    whole = _measure_part(records, slo, begin_s, end_s, is_whole=True)
    window = _find_steady(records)
    causes, sources, notes = {}, {}, {}
    for record in records:
        if record.cause:
            causes[record.cause] = causes.get(record.cause, 0) + 1
        else:
            sources[record.source] = sources.get(record.source, 0) + 1
        for note in record.notes:
            kind = "".join("N" if char.isdigit() else char for char in note)
            while "NN" in kind:
                kind = kind.replace("NN", "N")
            notes[kind] = notes.get(kind, 0) + 1
    steady = _measure_part(records, slo, *window, is_whole=False) if window else None
    return Metrics(whole, steady, causes, sources, notes, sum(record.num_retries for record in records))


def measure_latency(records: Sequence[RequestRecord], name: str) -> list[float]:
    """Return every sample of one latency in seconds: one per request, or pooled for "icl" and "itl"."""
    if name in _POOLED:
        return [gap for record in records for gap in getattr(record, f"{name}_s") or ()]
    if name not in (*_PER_REQUEST, "lag"):
        raise LabkitError(
            f"{name!r} is not a latency.", next_step=f"use {', '.join((*_PER_REQUEST, *_POOLED, 'lag'))}."
        )
    values = (getattr(record, f"{name}_s") for record in records)
    return [value for value in values if value is not None]


def check_slo(record: RequestRecord, slo: Mapping[str, float]) -> bool | None:
    """Say whether a request meets every SLO (equality meets it); None if none of them applies to it.

    A failed request meets none. A TPOT of one token neither meets nor misses.
    """
    if not record.is_good:
        return False
    values = [(getattr(record, f"{name}_s"), limit_s) for name, limit_s in slo.items()]
    met = [value <= limit_s for value, limit_s in values if value is not None]
    return all(met) if met else None


def _end_of(record: RequestRecord) -> float:
    if record.is_good:
        return record.chunks[-1].at_s
    return record.end_s if record.end_s is not None else record.sent_s


def _find_steady(records: Sequence[RequestRecord]) -> tuple[float, float] | None:
    """Return the steady window by STEADY_RULE, or None."""
    ends = [record.e2e_from_schedule_s for record in records if record.is_good]
    if not ends:
        return None
    first_s, last_s = (pick(record.scheduled_s for record in records) for pick in (min, max))
    begin_s = first_s + float(np.percentile(ends, 90))
    return (begin_s, last_s) if last_s - begin_s >= 0.5 * (last_s - first_s) > 0 else None


def _measure_part(records, slo, begin_s: float, end_s: float, *, is_whole: bool) -> WindowMetrics:
    own = [r for r in records if is_whole or begin_s <= r.scheduled_s <= end_s]
    good = [record for record in own if record.is_good]
    judged = [check_slo(record, slo) for record in own] if slo else []
    num_good, num_undecided = sum(mark is True for mark in judged), sum(mark is None for mark in judged)
    num_judged = len(own) - num_undecided
    seconds = end_s - begin_s
    tokens, prompt_tokens = 0.0, 0
    for record in records:
        if not record.is_good:
            continue
        inside = [chunk for chunk in record.chunks if is_whole or begin_s <= chunk.at_s <= end_s]
        # If the tokens of single chunks are unknown, they are spread evenly over the chunks.
        each = record.num_output_tokens / len(record.chunks)
        tokens += math.fsum(each if chunk.num_tokens is None else chunk.num_tokens for chunk in inside)
        if is_whole or begin_s <= record.chunks[0].at_s <= end_s:
            known = record.num_prompt_tokens if record.num_prompt_tokens is not None else record.asked_prompt_tokens
            prompt_tokens = None if prompt_tokens is None or known is None else prompt_tokens + known
    busy_s = math.fsum(
        max(0.0, min(end_s, _end_of(r)) - max(begin_s, r.sent_s)) for r in records if r.sent_s is not None
    )
    rate = (lambda count: count / seconds) if seconds > 0 else (lambda count: 0.0)
    samples = {name: measure_latency(own, name) for name in (*_PER_REQUEST, *_POOLED, "lag")}
    return WindowMetrics(
        begin_s, end_s, len(own), len(good), len(own) - len(good), num_good if slo else None, num_undecided,
        rate(len(good)), rate(tokens), None if prompt_tokens is None else rate(tokens + prompt_tokens),
        rate(num_good) if slo else None, num_good / num_judged if slo and num_judged else None, rate(busy_s),
        {name: summarize(values) if values else None for name, values in samples.items()},
    )  # fmt: skip
