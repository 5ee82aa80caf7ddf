"""What happened to one request? A `RequestRecord`: instants, chunks, counts, and the cause where it failed.

All instants are seconds since the start of the run, on one monotonic clock. `build_record` makes it from what was read
off the socket; nothing here has a clock. The words are those of the course: t0 is `sent_s`, s is `scheduled_s`, c1 to
ck are the arrivals of `chunks`, n is `num_output_tokens`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from labkit.errors import LabkitError
from labkit.load.answers import AnswerReader, Chunk
from labkit.load.http1 import ResponseReader

__all__ = ["COUNT_SOURCES", "RecordBuilder", "RequestRecord", "build_record"]

COUNT_SOURCES = ("chunk usage", "usage", "retokenized", "chunks")  # from the best to the poorest
_MAX_PROMPT_ERROR, _MAX_OUTPUT_ERROR = 0.01, 0.05


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request as its client saw it.

    `cause`: "" when it succeeded; else "refused", "reset", "cut", "http 503", "error event", "empty", "request
    deadline", "run deadline", "interrupted", ... with `detail`. `sent_s`: the instant at which the client began to send
    (a connection that must first be opened counts in), None when it was never sent. `source`: where the token counts
    come from (COUNT_SOURCES). `num_retries`: attempts that were refused before this one, with their causes in
    `notes`. `num_coalesced`: chunks that came in one read with an earlier one.
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
        """Whether the answer is whole."""
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
        """First chunk with content minus s: it alone keeps coordinated omission out."""
        return self.chunks[0].at_s - self.scheduled_s if self.is_good else None

    @property
    def first_answer_s(self) -> float | None:
        """First chunk that is no reasoning minus t0; None when there was none."""
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

        None where the tokens of the single chunks are not known. A chunk that carried no token of its own adds its gap
        to the next one's.
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
        """The record as JSON values; chunks as [arrival, tokens, kind]."""
        content = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return content | {"chunks": [list(chunk) for chunk in self.chunks], "notes": list(self.notes)}

    @classmethod
    def from_dict(cls, content: dict) -> RequestRecord:
        """The record that `to_dict` wrote; LabkitError where it is none."""
        try:
            chunks = tuple(Chunk(*chunk) for chunk in content["chunks"])
            return cls(**{**content, "chunks": chunks, "notes": tuple(content["notes"])})
        except (KeyError, TypeError) as error:
            raise LabkitError(f"no record of a request ({error}).", next_step="Name a requests.jsonl.") from None


class RecordBuilder:
    """Makes a record from the bodies of one answer, fed in portions; instants are on the clock of the client.

    `start_s`, the start of the run, is subtracted from every instant.
    """

    __slots__ = ("_answer", "_http", "_last_s", "_start_s", "_whole")

    def __init__(self, http: ResponseReader, *, start_s: float = 0.0) -> None:
        self._http, self._start_s, self._last_s = http, start_s, start_s
        self._answer, self._whole = AnswerReader(), []

    def feed(self, bodies: Iterable[tuple[float, bytes]]) -> None:
        """Take (instant, bytes of the body) pairs, in their order; the head of the answer is known by then."""
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
        """Return the record; `scheduled_s` is relative to the start already, `sent_s` and `end_s` are not.

        `failure`: (cause, detail) of the connection, if any. `count_tokens` counts the tokens of a text where the
        server sends no usage. `fields`: more fields of the record (asked_prompt_tokens, session, turn, ...).
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


def build_record(reads: Sequence[tuple[float, bytes]], *, start_s: float = 0.0, **options: object) -> RequestRecord:
    """Return the record of one exchange from its reads: (instant, raw bytes of the HTTP answer) in their order.

    Options as in `RecordBuilder.finish`.
    """
    http = ResponseReader()
    builder = RecordBuilder(http, start_s=start_s)
    try:
        for at_s, piece in reads:
            if body := http.feed(piece):
                builder.feed([(at_s, body)])
        if not options.get("failure"):
            http.close()
    except LabkitError as error:
        options["failure"] = ("bad http", str(error))
    return builder.finish(**options)


def _judge(http, answer, failure, *, text: bytes, num_tokens: int) -> tuple[str, str]:
    """Return (cause, detail), two empty strings for a whole answer."""
    if http.status not in (None, 200):
        return f"http {http.status}", text.decode(errors="replace")[:200]
    if answer.failure:
        return answer.failure
    if answer.is_done and num_tokens and failure and failure[0] in ("cut", "reset"):
        return "", ""  # everything was there, only the connection was closed roughly
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
    """Sentences on counts that are not what was asked for."""
    said = []
    for name, asked, seen, limit in (
        ("prompt", fields.get("asked_prompt_tokens"), num_prompt, _MAX_PROMPT_ERROR),
        ("output", fields.get("asked_output_tokens"), num_output, _MAX_OUTPUT_ERROR),
    ):
        if asked and seen is not None and abs(seen - asked) > limit * asked:
            said.append(f"asked for {asked} {name} tokens, counted {seen}")
    return said
