"""What came off the socket? Logs of requests with every event of the stream, also those that carry no content.

A `RequestRecord` keeps the chunks with content, which is what the course's metrics need. Other tools count other
events, so `labkit.load.formulas` works on these logs. A record of the course (data/recorded/33/chunks.jsonl) can hold
them: `pack_logs` and `load_logs` are inverses.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from labkit.errors import LabkitError
from labkit.load.answers import AnswerReader
from labkit.load.records import RequestRecord
from labkit.load.sse import EventParser

__all__ = ["LoggedEvent", "RequestLog", "load_logs", "pack_logs", "read_events"]

_KINDS = {"content": "c", "empty": "e", "usage": "u", "done": "d"}


class LoggedEvent(NamedTuple):
    """One event of a stream: its arrival, what it is, and the output tokens up to it (None: the server did not say).

    `kind`: "content" (text, reasoning or a tool call), "empty" (choices without content: a role, half a character),
    "usage" (no choices) or "done" ("[DONE]").
    """

    at_s: float
    kind: str
    num_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class RequestLog:
    """What one request's client saw, instants in seconds since the start of the run.

    `sent_s`: the client began to send; `written_s`: the connection was there and the request's head was written;
    `end_s`: the end of the stream; `num_output_tokens`: as the server counted.
    """

    scheduled_s: float
    sent_s: float
    written_s: float
    end_s: float
    events: tuple[LoggedEvent, ...]
    num_output_tokens: int

    def list_arrivals(self, *kinds: str) -> list[float]:
        """Return the arrivals of the events of these kinds."""
        return [event.at_s for event in self.events if event.kind in kinds]

    @classmethod
    def from_record(cls, record: RequestRecord, *, written_s: float | None = None) -> RequestLog:
        """Make a log of a record of the course's own client: chunks only, its events without content are not kept."""
        if not record.is_good:
            raise LabkitError(f"request {record.number} failed ({record.cause}).", next_step="Leave it out.")
        total, events = 0, []
        for chunk in record.chunks:
            total += chunk.num_tokens or 0
            events.append(LoggedEvent(chunk.at_s, "content", total or None))
        end_s = record.end_s if record.end_s is not None else events[-1].at_s
        written_s = record.sent_s if written_s is None else written_s
        return cls(record.scheduled_s, record.sent_s, written_s, end_s, tuple(events), record.num_output_tokens)


def read_events(pieces: Iterable[tuple[float, bytes]]) -> tuple[LoggedEvent, ...]:
    """Return the events of an event stream from its reads, (instant, bytes of the body) in their order."""
    parser, found = EventParser(), []
    for at_s, piece in pieces:
        for event in parser.feed(piece):
            if event.data.startswith("[DONE]"):
                found.append(LoggedEvent(at_s, "done"))
                continue
            try:
                content = json.loads(event.data)
                usage = content.get("usage") or {}
            except (ValueError, AttributeError):
                raise LabkitError(f"an event is no JSON object: {event.data[:80]!r}.") from None
            # What counts as content is said in one place: the reader of the course's own client.
            reader = AnswerReader()
            reader.feed(at_s, b"data: " + event.data.encode() + b"\n\n")
            kind = "content" if reader.chunks else "empty" if content.get("choices") else "usage"
            found.append(LoggedEvent(at_s, kind, usage.get("completion_tokens")))
    return tuple(found)


def pack_logs(name: str, logs: Sequence[RequestLog]) -> tuple[dict[str, list[float]], dict[str, object]]:
    """Return (samples, settings) of a record that holds these logs under `name`; instants to a tenth of a microsecond.

    All events stand in one flat list of arrivals; the settings say how many each request has, their kinds by a letter,
    and their running token counts.
    """
    events = [event for log in logs for event in log.events]
    samples = {f"{name}_{what}_s": [round(getattr(log, f"{what}_s"), 7) for log in logs] for what in _INSTANTS}
    samples[f"{name}_arrival_s"] = [round(event.at_s, 7) for event in events]
    settings = {
        "num_events": [len(log.events) for log in logs], "kinds": "".join(_KINDS[event.kind] for event in events),
        "running_counts": [event.num_tokens for event in events],
        "num_output": [log.num_output_tokens for log in logs],
    }  # fmt: skip
    return samples, {name: settings}


def load_logs(samples: Mapping[str, Sequence[float]], settings: Mapping, name: str) -> tuple[RequestLog, ...]:
    """Return the logs that a record (its `samples` and `settings`) holds under `name`."""
    if f"{name}_arrival_s" not in samples or name not in settings:
        names = sorted(key.removesuffix("_arrival_s") for key in samples if key.endswith("_arrival_s"))
        next_step = f"use {', '.join(names)}." if names else "take a record named chunks."
        raise LabkitError(f"this record holds no log {name!r}.", next_step=next_step)
    packed, words = settings[name], {letter: kind for kind, letter in _KINDS.items()}
    rows = zip(samples[f"{name}_arrival_s"], packed["kinds"], packed["running_counts"], strict=True)
    events = [LoggedEvent(at_s, words[letter], count) for at_s, letter, count in rows]
    instants = zip(*(samples[f"{name}_{what}_s"] for what in _INSTANTS), strict=True)
    made, first = [], 0
    for times, num, num_output in zip(instants, packed["num_events"], packed["num_output"], strict=True):
        made.append(RequestLog(*times, tuple(events[first : first + num]), num_output))
        first += num
    return tuple(made)


_INSTANTS = ("scheduled", "sent", "written", "end")
