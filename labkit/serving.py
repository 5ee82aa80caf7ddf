"""What does one served workload feel like? A small client that sends requests and stamps every chunk that comes back.

    run = run_workload(server, workload.measured)
    run.tok_per_s, [request.ttft_s for request in run.requests]

One thread per request, each sent at its own arrival time, whatever the others do; one monotonic clock for all. With
`num_clients` it is a closed loop: so many users, each of whom asks again when the last answer is there. Prompts
go as token ids, lengths are fixed, and what the server says it did (`usage`) must be what was asked for: otherwise
there is no run. Tokens per chunk come from the server's running usage, never from counting chunks.
"""

import http.client
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from labkit.errors import LabkitError
from labkit.load.answers import AnswerReader
from labkit.load.sampling import read_counters
from labkit.workload import Request

__all__ = ["ServedRequest", "ServedRun", "load_prefix_counters", "run_workload"]


@dataclass(frozen=True, slots=True)
class ServedRequest:
    """One request as its client saw it, instants in seconds on one monotonic clock.

    `scheduled_s`: when it should have been sent. `chunks`: (arrival, tokens) of every chunk that carried a token.
    """

    scheduled_s: float
    sent_s: float
    chunks: tuple[tuple[float, int], ...]
    num_prompt_tokens: int
    num_output_tokens: int

    @property
    def end_s(self) -> float:
        """Arrival of the last token."""
        return self.chunks[-1][0]

    @property
    def ttft_s(self) -> float:
        """First chunk that carries content, minus the instant of sending."""
        return self.chunks[0][0] - self.sent_s

    @property
    def tpot_s(self) -> float | None:
        """(last chunk - first chunk) / (tokens - 1); None for a single token."""
        num_gaps = self.num_output_tokens - 1
        return (self.end_s - self.chunks[0][0]) / num_gaps if num_gaps else None

    @property
    def e2e_s(self) -> float:
        """Last chunk that carries content, minus the instant of sending."""
        return self.end_s - self.sent_s

    @property
    def lag_s(self) -> float:
        """How late the client itself was."""
        return self.sent_s - self.scheduled_s


@dataclass(frozen=True, slots=True)
class ServedRun:
    """All requests of one run, and what the server showed meanwhile.

    `peak_memory_bytes`: the largest reading over all its processes. `num_prefix_queries`, `num_prefix_hits`: prompt
    tokens looked up in the prefix cache, and found there. None where the server does not say.
    """

    requests: tuple[ServedRequest, ...]
    peak_memory_bytes: int | None = None
    num_prefix_queries: int | None = None
    num_prefix_hits: int | None = None

    @property
    def window_s(self) -> float:
        """From the first request sent to the last token received: the whole run."""
        return max(r.end_s for r in self.requests) - min(r.sent_s for r in self.requests)

    @property
    def tok_per_s(self) -> float:
        """Output tokens over the whole run."""
        return sum(r.num_output_tokens for r in self.requests) / self.window_s

    @property
    def middle_tok_per_s(self) -> float:
        """Output tokens that arrived in the middle half of the whole run, over that half: no ramp up or down."""
        low_s = min(r.sent_s for r in self.requests) + 0.25 * self.window_s
        num = sum(n for r in self.requests for at_s, n in r.chunks if low_s <= at_s < low_s + 0.5 * self.window_s)
        return num / (0.5 * self.window_s)

    @property
    def hit_fraction(self) -> float | None:
        """Share of the looked-up prompt tokens that the prefix cache had; None without counters or look-ups."""
        return self.num_prefix_hits / self.num_prefix_queries if self.num_prefix_queries else None


def run_workload(
    server,
    requests: Sequence[Request],
    *,
    num_clients: int | None = None,
    timeout_s: float = 300.0,
    memory_interval_s: float = 0.5,
    clock: Callable[[], float] = time.monotonic,
) -> ServedRun:
    """Send each request at its arrival time and return what came back; raise LabkitError unless all of it is right.

    `server`: anything with `base_url` and `model`; a `labkit.servers.Server` is also asked for its memory, every
    `memory_interval_s`, and for its prefix-cache counters. Greedy, exactly `num_output_tokens` tokens each. A request
    that fails, is cut, or whose usage differs from what was asked makes the whole run an error.
    num_clients: a closed loop. So many requests are under way at any time, until none is left to send; the requests'
    own arrival times are not used, and each is due (`scheduled_s`) when its client has its last answer.
    """
    if not requests:
        raise LabkitError("There is no request to send.", next_step="Draw a workload with labkit.workload.")
    if num_clients is not None and num_clients < 1:
        raise LabkitError(f"{num_clients} clients send nothing.", next_step="Give 1 or more.")
    answers: list[ServedRequest | LabkitError | None] = [None] * len(requests)
    before = load_prefix_counters(server)
    is_begun, start_s = threading.Event(), [0.0]

    def ask(number: int, due_s: float) -> None:
        try:
            answers[number] = _send(server, requests[number], due_s, timeout_s, clock)
        except (LabkitError, OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
            said = str(error) if isinstance(error, LabkitError) else f"{type(error).__name__}: {error}"
            answers[number] = LabkitError(
                f"Request {number} of {len(requests)} failed: {said}",
                next_step="Read the server's log. A run with a failed request is no run.",
            )

    def ask_at_its_time(number: int) -> None:
        is_begun.wait()
        ask(number, start_s[0] + requests[number].arrival_s)

    def ask_again_and_again(_: int) -> None:
        is_begun.wait()
        due_s = start_s[0]
        while (number := next(waiting, None)) is not None:  # next() of a range is one step: no two clients get the same
            ask(number, due_s)
            due_s = clock()

    waiting = iter(range(len(requests)))
    num, client = (len(requests), ask_at_its_time) if num_clients is None else (num_clients, ask_again_and_again)
    threads = [threading.Thread(target=client, args=(number,), daemon=True) for number in range(num)]
    is_done, readings = threading.Event(), []
    watcher = threading.Thread(target=_watch, args=(server, memory_interval_s, is_done, readings), daemon=True)
    own = [watcher] if hasattr(server, "measure_memory") else []
    try:
        for thread in (*own, *threads):
            thread.start()
        start_s[0] = clock() + 0.02  # every thread is up before the first one sends
        is_begun.set()
        for thread in threads:
            thread.join()
    finally:
        is_done.set()
    for thread in own:
        thread.join()
    if failed := next((answer for answer in answers if not isinstance(answer, ServedRequest)), None):
        raise failed
    after = load_prefix_counters(server)
    new = (None, None) if not before or not after else (after[0] - before[0], after[1] - before[1])
    return ServedRun(tuple(answers), max(readings, default=0) or None, *new)


def load_prefix_counters(server) -> tuple[int, int] | None:
    """Return the prompt tokens that the server looked up in its prefix cache since its start, and those found there.

    Read from vLLM's /metrics; None for a server without these counters.
    """
    found = read_counters(getattr(server, "load_metrics", lambda: None)())
    if not {"prefix_queries", "prefix_hits"} <= set(found):
        return None
    return round(found["prefix_queries"]), round(found["prefix_hits"])


def _send(server, request: Request, scheduled_s: float, timeout_s: float, clock) -> ServedRequest:
    """Wait until the request is due, send it, and read its answer to the end."""
    asked = (len(request.prompt_ids), request.num_output_tokens)
    body = json.dumps({
        "model": server.model, "prompt": [int(token) for token in request.prompt_ids], "temperature": 0,
        "max_tokens": asked[1], "min_tokens": asked[1], "ignore_eos": True, "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    })  # fmt: skip
    address = urlsplit(server.base_url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=timeout_s)
    try:
        time.sleep(max(0.0, scheduled_s - clock()))
        sent_s = clock()
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        chunks, usage = _read_stream(connection.getresponse(), clock)
    finally:
        connection.close()
    if not chunks or (usage["prompt_tokens"], usage["completion_tokens"]) != asked:
        raise LabkitError(f"{asked[0]} prompt and {asked[1]} output tokens were asked for, the server counts {usage}.")
    return ServedRequest(scheduled_s, sent_s, tuple(chunks), *asked)


class _TokenReader(AnswerReader):
    """Also keeps (arrival, new tokens) of each event whose running usage grew, with a text or without.

    Two engines are compared by their tokens, and some tokens have no text: an end of text, half a character.
    """

    def __init__(self) -> None:
        super().__init__()
        self.arrivals: list[tuple[float, int]] = []
        self.num_tokens = 0

    def _take(self, at_s: float, data: str) -> None:
        super()._take(at_s, data)
        total = self.usage.get("completion_tokens", 0)
        if total > self.num_tokens:
            self.arrivals.append((at_s, total - self.num_tokens))
            self.num_tokens = total


def _read_stream(response, clock) -> tuple[list[tuple[float, int]], dict]:
    """Return (arrival, new tokens) of each chunk with tokens, and the last usage; one read has one arrival."""
    if response.status != 200:
        raise LabkitError(f"status {response.status}: {response.read().decode(errors='replace')[:200]}")
    answer = _TokenReader()
    while data := response.read1(65536):
        answer.feed(clock(), data)
        if answer.failure:
            raise LabkitError(f"the server says {answer.failure[1]}")
        if answer.is_done:
            response.read()  # to the very end: a client that hangs up early looks like one that gave up
            if answer.chunks and not answer.has_running_usage:
                raise LabkitError("the server sends no running usage, so nobody knows the tokens of a chunk.")
            return answer.arrivals, answer.usage
    raise LabkitError("the stream ended before [DONE]")


def _watch(server, interval_s: float, is_done: threading.Event, readings: list[int]) -> None:
    """Read the server's memory now and then, and once more at the end, when its caches are full."""
    is_last = False
    while not is_last:
        is_last = is_done.wait(interval_s)
        seen = server.measure_memory()
        readings.append(seen.get("pss_bytes") or seen.get("rss_bytes") or 0)
