"""Why do three tools report three TTFTs of one server? Their formulas, restated, on one log of the socket.

Each tool's source was read at the version in `TOOLS`, and its arithmetic is written here in the course's words, as pure
functions of logs. A `RequestRecord` keeps only the chunks with content, which is what the course's metrics need. Other
tools count other events, so a `StreamLog` keeps them all. A record can hold such logs
(data/recorded/33/chunks.jsonl, written by tests/agreement.py). Seconds throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from labkit.errors import LabkitError

__all__ = ["KINDS", "TIMES", "TOOLS", "StreamEvent", "StreamLog", "Tool", "estimate_as", "load_logs"]

KINDS = {"content": "c", "empty": "e", "usage": "u", "done": "d"}
TIMES = ("scheduled", "sent", "written", "end")


class StreamEvent(NamedTuple):
    """One event of a stream, with content or without.

    Attributes:
        at_s: its arrival.
        kind: "content" (text, reasoning or a tool call), "empty" (choices without content: a role, half a character),
            "usage" (no choices) or "done" ("[DONE]").
        num_tokens: output tokens up to it; None if the server did not say.
    """

    at_s: float
    kind: str
    num_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class StreamLog:
    """Every event of one answer, also those without content; times in seconds since the start of the run.

    Attributes:
        scheduled_s: when the request was due.
        sent_s: when the client began to send.
        written_s: when the connection was open and the head of the request was written.
        end_s: end of the stream.
        events: in order.
        num_output_tokens: output tokens as the server counted.
    """

    scheduled_s: float
    sent_s: float
    written_s: float
    end_s: float
    events: tuple[StreamEvent, ...]
    num_output_tokens: int

    def list_arrivals(self, *kinds: str) -> list[float]:
        """Return the arrivals of the events of these kinds."""
        return [event.at_s for event in self.events if event.kind in kinds]


def load_logs(samples: Mapping[str, Sequence[float]], settings: Mapping, name: str) -> tuple[StreamLog, ...]:
    """Return the logs that a record (its `samples` and `settings`) holds under `name`."""
    if f"{name}_arrival_s" not in samples or name not in settings:
        names = sorted(key.removesuffix("_arrival_s") for key in samples if key.endswith("_arrival_s"))
        next_step = f"use {', '.join(names)}." if names else "take a record named chunks."
        raise LabkitError(f"This record holds no log {name!r}.", next_step=next_step)
    packed, words = settings[name], {letter: kind for kind, letter in KINDS.items()}
    rows = zip(samples[f"{name}_arrival_s"], packed["kinds"], packed["running_counts"], strict=True)
    events = [StreamEvent(at_s, words[letter], count) for at_s, letter, count in rows]
    times_of = zip(*(samples[f"{name}_{what}_s"] for what in TIMES), strict=True)
    made, first = [], 0
    for times, num, num_output in zip(times_of, packed["num_events"], packed["num_output"], strict=True):
        made.append(StreamLog(*times, tuple(events[first : first + num]), num_output))
        first += num
    return tuple(made)


@dataclass(frozen=True, slots=True)
class Tool:
    """A public tool.

    Attributes:
        version: the version whose source was read.
        url: where its formulas are.
        words: (the tool's own name, its definition) by the course's words "ttft", "tpot", "itl", "e2e", "tok_per_s"; a
            word that the tool does not report is absent.
    """

    version: str
    url: str
    words: Mapping[str, tuple[str, str]]


TOOLS: Mapping[str, Tool] = {
    "vllm bench serve": Tool(
        "0.32.0",
        "https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/benchmarks/serve.py",
        {
            "ttft": ("TTFT", "first event with choices, content or not, minus the call that sends"),
            "tpot": ("TPOT", "(last event with choices - first) / (n - 1) of each request"),
            "itl": ("ITL", "gaps between events with choices, pooled: a chunk counts as a token"),
            "e2e": ("E2EL", "last event with choices minus the call that sends"),
            "tok_per_s": ("output throughput", "output tokens / (end of the last stream - start of the schedule, "
                                               "one gap before the first request)"),
        },
    ),
    "guidellm": Tool(
        "0.8.1",
        "https://github.com/vllm-project/guidellm/blob/v0.8.1/src/guidellm/schemas/base/request_stats.py",
        {
            "ttft": ("TTFT", "first event with text minus the writing of the request's head: no connecting in it"),
            "tpot": ("TPOT", "(last event with text - writing of the head) / n: the TTFT is in it"),
            "itl": ("ITL", "(last event with text - first) / (n - 1): one mean per request, a stall is averaged away"),
            "e2e": ("request latency", "end of the stream, after [DONE], minus the writing of the head"),
            "tok_per_s": ("output tokens per second", "output tokens / (end of the last stream - first request)"),
        },
    ),
    "aiperf": Tool(
        "0.13.0",
        "https://github.com/ai-dynamo/aiperf/tree/v0.13.0/src/aiperf/metrics/types",
        {
            "ttft": ("TTFT", "first event with content minus the call that sends"),
            "itl": ("ITL", "(last event with content - first) / (n - 1): one mean per request, called TPOT elsewhere"),
            "e2e": ("request latency", "last event with content minus the call that sends"),
            "tok_per_s": ("output token throughput", "output tokens / (end of the last stream - start of the "
                                                     "schedule, one gap before the first request)"),
        },
    ),
}  # fmt: skip


def estimate_as(tool: str, logs: Sequence[StreamLog]) -> dict[str, list[float]]:
    """Return what `tool` (a name in TOOLS) would report for these requests: samples by the course's words.

    One sample per request for "ttft", "tpot", "e2e" and a per-request "itl"; every gap for a pooled one; one number for
    "tok_per_s". The start of the schedule is 0. Requests without an event that the tool counts are left out.
    """
    if tool not in TOOLS:
        raise LabkitError(f"{tool!r} is not restated here.", next_step=f"use one of {', '.join(TOOLS)}.")
    return _FORMULAS[tool](logs)


def _estimate_vllm(logs: Sequence[StreamLog]) -> dict[str, list[float]]:
    own = [(log, arrivals) for log in logs if (arrivals := log.list_arrivals("content", "empty"))]
    return {
        "ttft": [arrivals[0] - log.sent_s for log, arrivals in own],
        "tpot": [(arrivals[-1] - arrivals[0]) / (log.num_output_tokens - 1)
                 for log, arrivals in own if log.num_output_tokens > 1],
        "itl": [after - before for _, arrivals in own for before, after in zip(arrivals, arrivals[1:], strict=False)],
        "e2e": [arrivals[-1] - log.sent_s for log, arrivals in own],
        "tok_per_s": _rate(own, 0.0, [log.end_s for log, _ in own]),
    }  # fmt: skip


def _estimate_guidellm(logs: Sequence[StreamLog]) -> dict[str, list[float]]:
    own = [(log, arrivals) for log in logs if (arrivals := log.list_arrivals("content"))]
    begin_s = min((log.written_s for log, _ in own), default=0.0)
    return {
        "ttft": [arrivals[0] - log.written_s for log, arrivals in own],
        "tpot": [(arrivals[-1] - log.written_s) / log.num_output_tokens for log, arrivals in own],
        "itl": [(arrivals[-1] - arrivals[0]) / (log.num_output_tokens - 1)
                for log, arrivals in own if log.num_output_tokens > 1],
        "e2e": [log.end_s - log.written_s for log, _ in own],
        "tok_per_s": _rate(own, begin_s, [log.end_s for log, _ in own]),
    }  # fmt: skip


def _estimate_aiperf(logs: Sequence[StreamLog]) -> dict[str, list[float]]:
    own = [(log, arrivals) for log in logs if (arrivals := log.list_arrivals("content"))]
    return {
        "ttft": [arrivals[0] - log.sent_s for log, arrivals in own],
        "itl": [(arrivals[-1] - arrivals[0]) / (log.num_output_tokens - 1)
                for log, arrivals in own if log.num_output_tokens > 1],
        "e2e": [arrivals[-1] - log.sent_s for log, arrivals in own],
        "tok_per_s": _rate(own, 0.0, [log.end_s for log, _ in own]),
    }  # fmt: skip


def _rate(own: Sequence[tuple[StreamLog, list[float]]], begin_s: float, ends_s: Sequence[float]) -> list[float]:
    tokens, seconds = sum(log.num_output_tokens for log, _ in own), max(ends_s, default=begin_s) - begin_s
    return [tokens / seconds] if seconds > 0 else []


_FORMULAS: Mapping[str, Callable[[Sequence[StreamLog]], dict[str, list[float]]]] = {
    "vllm bench serve": _estimate_vllm, "guidellm": _estimate_guidellm, "aiperf": _estimate_aiperf,
}  # fmt: skip
