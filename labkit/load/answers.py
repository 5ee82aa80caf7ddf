"""What does an event of an OpenAI-compatible stream carry? Content, a usage, an error, the end.

`AnswerReader` takes (instant, bytes of the body) and collects what the metrics need; completions and chat alike. A
chunk is an event with content: text, reasoning or a tool call. A delta with only a role, an empty delta, a usage
without choices, and comments are none.
"""

import json
from collections.abc import Callable
from typing import NamedTuple

from labkit.load.sse import EventParser

__all__ = ["AnswerReader", "Chunk"]


_DECODE = json.JSONDecoder().raw_decode


class Chunk(NamedTuple):
    """A chunk with content: its arrival in seconds, its tokens (None: nobody said), and what it is.

    `kind`: "text", "reasoning" or "tool".
    """

    at_s: float
    num_tokens: int | None
    kind: str = "text"


class AnswerReader:
    """Collects one answer.

    `chunks` so far; `usage` (the last one seen); `is_done` ("[DONE]" was seen), `is_finished` (a finish reason was
    seen); `failure` (cause, detail) or None; `num_coalesced`: chunks that came in one read with an earlier one, so
    that their own arrival is not known; `num_events`.
    """

    __slots__ = (
        "_last_at_s", "_parser", "_running", "chunks", "failure", "has_running_usage", "is_done", "is_finished",
        "num_coalesced", "num_events", "texts", "usage",
    )  # fmt: skip

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self.texts: list[str] = []
        self.usage: dict = {}
        self.failure: tuple[str, str] | None = None
        self.is_done = self.is_finished = False
        self.has_running_usage = True
        self.num_coalesced = self.num_events = 0
        self._parser, self._running, self._last_at_s = EventParser(), 0, None

    def feed(self, at_s: float, piece: bytes) -> None:
        """Take a piece of an event stream that was read at `at_s`."""
        for event in self._parser.feed(piece):
            self._take(at_s, event.data)

    def take_whole(self, at_s: float, body: bytes) -> None:
        """Take an answer that was not streamed: one JSON object."""
        self._take(at_s, body.decode("utf-8", "replace"))
        self.is_done = self.failure is None

    def count_tokens(self, count: Callable[[str], int] | None) -> tuple[int, str, tuple[Chunk, ...], tuple[str, ...]]:
        """Return (output tokens, source, chunks with their tokens, notes).

        The source is, in this order, "chunk usage" (a running usage on every chunk), "usage" (one at the end),
        "retokenized" (`count` of the text, summed up over the chunks) or "chunks" (one token each). A usage of no
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
            # Tokens without a text of their own (an end-of-sequence token) count for the last chunk.
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
        self.num_events += 1
        data = data.lstrip()
        if data.startswith("[DONE]"):
            self.is_done = True
            return
        try:
            event, end = _DECODE(data)  # without the two regular expressions that json.loads spends on white space
            if end != len(data) and data[end:].strip() or not isinstance(event, dict):
                raise ValueError
        except (ValueError, RecursionError):
            self.failure = ("bad event", f"an event is no JSON object: {data[:120]!r}")
            return
        if (error := event.get("error")) or event.get("object") == "error":
            self.failure = ("error event", str(error or event.get("message"))[:200])
            return
        usage = event.get("usage")
        if isinstance(usage, dict):
            self.usage = usage
        kind, text = self._read_choices(event.get("choices"))
        if not kind:
            return
        num_tokens = None
        if isinstance(usage, dict) and isinstance(total := usage.get("completion_tokens"), int):
            num_tokens, self._running = max(0, total - self._running), max(total, self._running)
        else:
            self.has_running_usage = False
        self.num_coalesced += at_s == self._last_at_s
        self._last_at_s = at_s
        self.chunks.append(Chunk(at_s, num_tokens, kind))
        self.texts.append(text)

    def _read_choices(self, choices: object) -> tuple[str, str]:
        """Return (kind, text) of the first content among the choices, ("", "") where there is none."""
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
    """The name and arguments in a delta with tool calls: what the model wrote."""
    parts = []
    for call in calls if isinstance(calls, list) else [{"function": calls}]:
        function = call.get("function") if isinstance(call, dict) else None
        parts += [str(function.get(key) or "") for key in ("name", "arguments")] if isinstance(function, dict) else []
    return "".join(parts)
