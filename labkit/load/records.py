"""What happened to one request? A `RequestRecord`: times, chunks, counts, and the cause of a failure.

Times are seconds since the start of the run, on one monotonic clock. `RecordBuilder` makes a record from what was read
from the socket; nothing here has a clock. In the course's words: t0 is `sent_s`, s is `scheduled_s`, c1 to ck are the
arrivals of `chunks`, n is `num_output_tokens`. A chunk is an event with content: text, reasoning or a tool call. A
delta with only a role, an empty delta, a usage without choices, and a comment are not chunks.

`RequestJournal` writes records to a file while the run goes on, so that they survive a crash.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from labkit.errors import LabkitError
from labkit.journal import append_lines, format_line, load_lines
from labkit.load.sse import SseParser
from labkit.load.transport import ResponseReader

__all__ = [
    "COUNT_SOURCES",
    "AnswerReader",
    "Chunk",
    "RecordBuilder",
    "RequestJournal",
    "RequestRecord",
    "load_requests",
]

COUNT_SOURCES = ("chunk usage", "usage", "retokenized", "chunks")  # from the best to the poorest
_MAX_PROMPT_ERROR, _MAX_OUTPUT_ERROR = 0.01, 0.05
_DECODE = json.JSONDecoder().raw_decode


class Chunk(NamedTuple):
    """A chunk with content.

    Attributes:
        at_s: its arrival.
        num_tokens: its tokens; None if unknown.
        kind: "text", "reasoning", "tool", or "silent" (tokens without text, if the reader counts them).
    """

    at_s: float
    num_tokens: int | None
    kind: str = "text"


class AnswerReader:
    """Collects one answer of an OpenAI-compatible API, completions or chat, from its body.

    Attributes:
        chunks: chunks so far.
        texts: the text of each chunk.
        usage: the last usage seen.
        is_done: "[DONE]" was seen.
        is_finished: a finish reason was seen.
        failure: (cause, detail) of an error in the stream, or None.
        has_running_usage: every chunk so far came with a usage.
        num_coalesced: chunks that came in one read with an earlier one, so that their own arrival is unknown.
    """

    __slots__ = (
        "_counts_silent", "_last_at_s", "_parser", "_running", "chunks", "failure", "has_running_usage", "is_done",
        "is_finished", "num_coalesced", "texts", "usage",
    )  # fmt: skip

    def __init__(self, *, counts_silent: bool = False) -> None:
        """`counts_silent`: an event without text is a chunk if the running usage grew (an end of text, half a
        character), so that engines can be compared by their tokens.
        """
        self.chunks: list[Chunk] = []
        self.texts: list[str] = []
        self.usage: dict = {}
        self.failure: tuple[str, str] | None = None
        self.is_done = self.is_finished = False
        self.has_running_usage = True
        self.num_coalesced = 0
        self._counts_silent = counts_silent
        self._parser, self._running, self._last_at_s = SseParser(), 0, None

    def feed(self, at_s: float, piece: bytes) -> None:
        """Take a piece of an event stream that was read at `at_s`."""
        for data in self._parser.feed(piece):
            self._take(at_s, data)

    def take_whole(self, at_s: float, body: bytes) -> None:
        """Take an answer that was not streamed: one JSON object."""
        self._take(at_s, body.decode("utf-8", "replace"))
        self.is_done = self.failure is None

    def count_tokens(self, count: Callable[[str], int] | None) -> tuple[int, str, tuple[Chunk, ...], tuple[str, ...]]:
        """Return (output tokens, source, chunks with their tokens, notes).

        The source is the first that is available: "chunk usage" (a running usage on every chunk), "usage" (one at the
        end), "retokenized" (`count` of the text, summed over the chunks) or "chunks" (one token each). A usage of 0
        tokens beside chunks with content is not believed; fewer tokens than chunks is noted.
        """
        total, notes = self.usage.get("completion_tokens"), []
        if not isinstance(total, int) or isinstance(total, bool):
            total = None
        if total is not None and total < len(self.chunks):
            notes.append(f"usage says {total} output tokens, {len(self.chunks)} chunks carried content")
            total = total or None
        if total is not None and self.has_running_usage and self.chunks and self._running:
            last, seen = self.chunks[-1], sum(chunk.num_tokens for chunk in self.chunks)
            if total < seen:
                notes.append(f"usage fell from {seen} to {total} output tokens")
                total = seen
            # Tokens without text (an end-of-sequence token) count for the last chunk.
            last = last._replace(num_tokens=last.num_tokens + total - seen)
            return total, "chunk usage", (*self.chunks[:-1], last), tuple(notes)
        if total is not None:
            each = 1 if total == len(self.chunks) else None
            return total, "usage", tuple(chunk._replace(num_tokens=each) for chunk in self.chunks), tuple(notes)
        if count and self.chunks:
            counted, text, chunks = 0, "", []
            for chunk, new in zip(self.chunks, self.texts, strict=True):
                text += new
                now = max(counted, count(text))  # a later character may join two tokens
                chunks.append(chunk._replace(num_tokens=now - counted))
                counted = now
            return counted, "retokenized", tuple(chunks), tuple(notes)
        return len(self.chunks), "chunks", tuple(chunk._replace(num_tokens=1) for chunk in self.chunks), tuple(notes)

    def _take(self, at_s: float, data: str) -> None:
        if self.is_done or self.failure:
            return
        data = data.lstrip()
        if data.startswith("[DONE]"):
            self.is_done = True
            return
        try:
            event, end = _DECODE(data)  # without the two regular expressions that json.loads spends on white space
            if end != len(data) and data[end:].strip() or not isinstance(event, dict):
                raise ValueError
        except (ValueError, RecursionError):
            self.failure = ("bad event", f"an event is not a JSON object: {data[:120]!r}")
            return
        if (error := event.get("error")) or event.get("object") == "error":
            self.failure = ("error event", str(error or event.get("message"))[:200])
            return
        usage, total = event.get("usage"), None
        if isinstance(usage, dict):
            self.usage = usage
            total = usage.get("completion_tokens")
        kind, text = self._read_choices(event.get("choices"))
        if not kind and self._counts_silent and isinstance(total, int) and total > self._running:
            kind = "silent"
        if not kind:
            return
        num_tokens = None
        if isinstance(total, int):
            num_tokens, self._running = max(0, total - self._running), max(total, self._running)
        else:
            self.has_running_usage = False
        self.num_coalesced += at_s == self._last_at_s
        self._last_at_s = at_s
        self.chunks.append(Chunk(at_s, num_tokens, kind))
        self.texts.append(text)

    def _read_choices(self, choices: object) -> tuple[str, str]:
        """Return (kind, text) of the first content among the choices, ("", "") if there is none."""
        found = ("", "")
        for choice in choices if isinstance(choices, list) else ():
            if not isinstance(choice, dict):
                continue
            if choice.get("finish_reason"):
                self.is_finished = True
            if found[0]:
                continue
            delta = choice.get("delta") or choice.get("message") or choice
            if text := delta.get("reasoning_content") or delta.get("reasoning"):
                found = ("reasoning", text if isinstance(text, str) else str(text))
            elif text := delta.get("content") or delta.get("text") or delta.get("refusal"):
                found = ("text", text if isinstance(text, str) else str(text))
            elif calls := delta.get("tool_calls") or delta.get("function_call"):
                found = ("tool", _read_tool_text(calls))
        return found


def _read_tool_text(calls: object) -> str:
    """Return the name and arguments in a delta with tool calls: what the model wrote."""
    parts = []
    for call in calls if isinstance(calls, list) else [{"function": calls}]:
        function = call.get("function") if isinstance(call, dict) else None
        parts += [str(function.get(key) or "") for key in ("name", "arguments")] if isinstance(function, dict) else []
    return "".join(parts)


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request as its client saw it.

    Attributes:
        number: its place in the run, from 0.
        scheduled_s: when it should have been sent.
        sent_s: when the client began to send (opening a connection comes after it); None if it was never sent.
        end_s: when its answer ended, or failed.
        status: HTTP status; None without an answer.
        cause: "" if it succeeded; else "refused", "reset", "cut", "http 503", "error event", "empty", "request
            deadline", "run deadline", "interrupted", ...
        detail: the failure in more words.
        chunks: the chunks with content, in order.
        num_output_tokens: output tokens.
        num_prompt_tokens: prompt tokens as the server counted; None if it did not say.
        num_cached_tokens: prompt tokens that the server found in its prefix cache; None if it did not say.
        source: where the token counts come from, one of COUNT_SOURCES.
        asked_prompt_tokens: prompt tokens that were sent; None with chat.
        asked_output_tokens: output tokens that were asked for; None if the length was not fixed.
        num_coalesced: chunks that came in one read with an earlier one.
        num_retries: attempts that were refused before this one; their causes are in `notes`.
        connect_s: seconds to open a connection; None if one was kept.
        session: number of its chain.
        turn: its place in its chain.
        notes: what else was noticed.
    """

    number: int
    scheduled_s: float
    sent_s: float | None = None
    end_s: float | None = None
    status: int | None = None
    cause: str = ""
    detail: str = ""
    chunks: tuple[Chunk, ...] = ()
    num_output_tokens: int = 0
    num_prompt_tokens: int | None = None
    num_cached_tokens: int | None = None
    source: str = "chunks"
    asked_prompt_tokens: int | None = None
    asked_output_tokens: int | None = None
    num_coalesced: int = 0
    num_retries: int = 0
    connect_s: float | None = None
    session: int = 0
    turn: int = 0
    notes: tuple[str, ...] = ()

    @property
    def is_good(self) -> bool:
        """Whether the whole answer came."""
        return not self.cause

    @property
    def lag_s(self) -> float | None:
        """How late the client itself was: t0 - s."""
        return None if self.sent_s is None else self.sent_s - self.scheduled_s

    @property
    def ttft_s(self) -> float | None:
        """Time to first token: first chunk with content (text, reasoning or tool call) minus t0."""
        return self.chunks[0].at_s - self.sent_s if self.is_good else None

    @property
    def ttft_from_schedule_s(self) -> float | None:
        """First chunk with content minus s: only this one keeps coordinated omission out."""
        return self.chunks[0].at_s - self.scheduled_s if self.is_good else None

    @property
    def first_answer_s(self) -> float | None:
        """First chunk that is not reasoning minus t0; None if there was none."""
        answers = (chunk.at_s for chunk in self.chunks if chunk.kind != "reasoning")
        at_s = next(answers, None) if self.is_good else None
        return None if at_s is None else at_s - self.sent_s

    @property
    def e2e_s(self) -> float | None:
        """Last chunk with content minus t0."""
        return self.chunks[-1].at_s - self.sent_s if self.is_good else None

    @property
    def e2e_from_schedule_s(self) -> float | None:
        """Last chunk with content minus s."""
        return self.chunks[-1].at_s - self.scheduled_s if self.is_good else None

    @property
    def tpot_s(self) -> float | None:
        """Time per output token: (ck - c1) / (n - 1); None when n = 1."""
        if not self.is_good or self.num_output_tokens < 2:
            return None
        return (self.chunks[-1].at_s - self.chunks[0].at_s) / (self.num_output_tokens - 1)

    @property
    def icl_s(self) -> tuple[float, ...]:
        """Inter-chunk latencies: the gaps between the chunks with content."""
        if not self.is_good:
            return ()
        return tuple(b.at_s - a.at_s for a, b in zip(self.chunks, self.chunks[1:], strict=False))

    @property
    def itl_s(self) -> tuple[float, ...] | None:
        """Inter-token latencies: a chunk of m tokens gives its gap / m, m times; more tokens in the first chunk give 0.

        None if the tokens of the single chunks are unknown. A chunk without a token of its own adds its gap to the next
        one's.
        """
        if not self.is_good or any(chunk.num_tokens is None for chunk in self.chunks):
            return None if self.is_good else ()
        first, *others = self.chunks
        gaps, last_s = [0.0] * (first.num_tokens - 1), first.at_s
        for chunk in others:
            if chunk.num_tokens:
                gaps += [(chunk.at_s - last_s) / chunk.num_tokens] * chunk.num_tokens
                last_s = chunk.at_s
        return tuple(gaps)

    def to_dict(self) -> dict:
        """Return the record as JSON values; chunks as [arrival, tokens, kind]."""
        content = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return content | {"chunks": [list(chunk) for chunk in self.chunks], "notes": list(self.notes)}

    @classmethod
    def from_dict(cls, content: dict) -> RequestRecord:
        """Return the record that `to_dict` wrote; LabkitError for anything else."""
        try:
            chunks = tuple(Chunk(*chunk) for chunk in content["chunks"])
            return cls(**{**content, "chunks": chunks, "notes": tuple(content["notes"])})
        except (KeyError, TypeError) as error:
            raise LabkitError(
                f"This is not a record of a request ({error}).", next_step="Name a requests.jsonl."
            ) from None


class RecordBuilder:
    """Makes a record from the body of one answer, fed in portions.

    Times are on the clock of the client; `start_s`, the start of the run, is subtracted from all of them.
    """

    __slots__ = ("_answer", "_http", "_last_s", "_start_s", "_whole")

    def __init__(self, http: ResponseReader, *, start_s: float = 0.0, counts_silent: bool = False) -> None:
        self._http, self._start_s, self._last_s = http, start_s, start_s
        self._answer, self._whole = AnswerReader(counts_silent=counts_silent), []

    def feed(self, bodies: Iterable[tuple[float, bytes]]) -> None:
        """Take (time, bytes of the body) pairs, in order; the head of the answer is known by then."""
        is_stream = self._http.status == 200 and "json" not in self._http.headers.get("content-type", "")
        for at_s, body in bodies:
            self._last_s = at_s
            if is_stream:
                self._answer.feed(at_s - self._start_s, body)
            else:
                self._whole.append(body)

    def finish(
        self,
        *,
        number: int = 0,
        scheduled_s: float = 0.0,
        sent_s: float | None = 0.0,
        end_s: float | None = None,
        failure: tuple[str, str] | None = None,
        count_tokens: Callable[[str], int] | None = None,
        notes: Iterable[str] = (),
        **fields: object,
    ) -> RequestRecord:
        """Return the record; `scheduled_s` is already relative to the start, `sent_s` and `end_s` are not.

        `failure`: (cause, detail) of the connection, if any. `count_tokens` counts the tokens of a text if the server
        sends no usage. `fields`: more fields of the record (asked_prompt_tokens, session, turn, ...).
        """
        http, answer, start_s = self._http, self._answer, self._start_s
        text = b"".join(self._whole)
        if http.status == 200 and text and http.is_complete:
            answer.take_whole(self._last_s - start_s, text)
        num_tokens, source, chunks, more = answer.count_tokens(count_tokens)
        cause, detail = _judge(http, answer, failure, text=text, num_tokens=num_tokens)
        notes = [*notes, *more]
        if not cause and not answer.is_done:
            notes.append("no [DONE]")
        if not cause and text:
            notes.append("not streamed: one chunk")
        num_prompt = answer.usage.get("prompt_tokens")
        num_prompt = num_prompt if isinstance(num_prompt, int) else None
        if not cause:
            notes += _compare(fields, num_prompt, num_tokens)
        return RequestRecord(
            number, scheduled_s, None if sent_s is None else sent_s - start_s,
            None if end_s is None else end_s - start_s, http.status, cause, detail, chunks, num_tokens, num_prompt,
            (answer.usage.get("prompt_tokens_details") or {}).get("cached_tokens"), source,
            num_coalesced=answer.num_coalesced, notes=tuple(notes), **fields,
        )  # fmt: skip


def _judge(http, answer, failure, *, text: bytes, num_tokens: int) -> tuple[str, str]:
    """Return (cause, detail): two empty strings for a whole answer."""
    if http.status not in (None, 200):
        return f"http {http.status}", text.decode(errors="replace")[:200]
    if answer.failure:
        return answer.failure
    if answer.is_done and num_tokens and failure and failure[0] in ("cut", "reset"):
        return "", ""  # all of it came, then the connection was closed the hard way
    if failure:
        return failure
    if not http.is_complete:
        return "cut", f"the connection ended after {len(answer.chunks)} chunks"
    if not (answer.is_done or answer.is_finished):
        return "no end mark", "the stream ended without [DONE] and without a finish reason"
    if not num_tokens:
        return "empty", "the answer has no output token"
    if not answer.chunks:
        return "empty", f"{num_tokens} output tokens by usage, but no chunk carried content"
    return "", ""


def _compare(fields: dict, num_prompt: int | None, num_output: int) -> list[str]:
    """Return sentences on counts that differ from what was asked for."""
    said = []
    for name, asked, seen, limit in (
        ("prompt", fields.get("asked_prompt_tokens"), num_prompt, _MAX_PROMPT_ERROR),
        ("output", fields.get("asked_output_tokens"), num_output, _MAX_OUTPUT_ERROR),
    ):
        if asked and seen is not None and abs(seen - asked) > limit * asked:
            said.append(f"asked for {asked} {name} tokens, counted {seen}")
    return said


class RequestJournal:
    """Appends records to a file about once a second, as `labkit.journal` does; a half-written line damages only itself.

    Writing happens in a thread, so that a slow disk delays no time stamp. A full disk ends the journal, not the run.

    Attributes:
        path: the file.
        problem: why some records are missing from it; "" if none are.
        num_written: records in it.
    """

    def __init__(self, path: str | Path, *, interval_s: float = 1.0) -> None:
        self.path, self.problem, self.num_written = Path(path), "", 0
        self._waiting: list[RequestRecord] = []
        self._is_over, self._interval_s = threading.Event(), interval_s
        self._thread = threading.Thread(target=self._work, name="request journal", daemon=True)
        self._thread.start()

    def add(self, record: RequestRecord) -> None:
        """Take a record; it is written within a second."""
        self._waiting.append(record)

    def close(self) -> None:
        """Write what is left and stop."""
        self._is_over.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._is_over.wait(self._interval_s):
            self._write()
        self._write()

    def _write(self) -> None:
        records, self._waiting = self._waiting, []
        if not records:
            return
        try:
            append_lines(self.path, [format_line(record.to_dict()) for record in records])
            self.num_written += len(records)
        except OSError as error:
            self._waiting = records + self._waiting  # the disk may have room again later
            self.problem = f"{self.path.name} could not be written ({error.strerror})"
        else:
            self.problem = ""


def load_requests(path: str | Path) -> tuple[tuple[RequestRecord, ...], int]:
    """Load the records of a requests.jsonl, in order of their numbers; returns (records, number of damaged lines)."""
    path, records, num_damaged = Path(path), [], 0
    try:
        lines = load_lines(path)
    except OSError as error:
        raise LabkitError(f"{path.name} cannot be read ({error.strerror}).", next_step="Check the path.") from None
    num_damaged = len(lines.damaged)
    for _, content in lines.entries:
        with contextlib.suppress(LabkitError):
            records.append(RequestRecord.from_dict(content))
            continue
        num_damaged += 1
    return tuple(sorted(records, key=lambda record: record.number)), num_damaged
