"""A real HTTP server whose every delay is known: the instrument that clients and metrics are tested with.

It speaks the streaming completions and chat APIs that vLLM speaks, and does what real servers do on a bad day: refuse,
stall, cut the connection, split a character. It runs in this process (`run_fake_inside`, for tests) or as a child
process like any engine (`run_fake`). Nothing is computed: a word is written when its time has come. A `FakePlan` says
what the server does and when: by a model of service times, or by one script (`FakeReply`, `FakeStep`) per request.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import math
import random
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from labkit.servers.server import HOST, LaunchSpec, Server, choose_deadline_s, run_launch_spec

__all__ = [
    "FakePlan",
    "FakeReply",
    "FakeServer",
    "FakeStep",
    "ReplyPlayer",
    "build_fake_spec",
    "load_stats",
    "main",
    "run_fake",
    "run_fake_inside",
]

_KINDS = ("text", "reasoning", "role", "usage", "comment", "error", "half", "raw", "stall", "reset", "done")


@dataclass(frozen=True, slots=True)
class FakeStep:
    """Wait, then write one thing.

    The kinds: `text`, an event with content; `reasoning`, the same in its own field (chat only); `role`, a delta with a
    role and no content; `usage`, an event without choices; `comment`, ": ping"; `error`, an error event inside a stream
    that began with 200; `half`, a text event that stops in the middle of its first multi-byte character (the next step
    sends the rest first); `raw`, `text` unchanged; `stall`, nothing more until the client leaves; `reset`, the
    connection is cut with RST; `done`, "[DONE]" and the end. A script need not end with one of the last three.

    Attributes:
        kind: what to write.
        delay_s: seconds after the previous step, for the first step after the arrival of the request.
        text: content, error message or raw bytes.
        num_tokens: tokens that the content counts for.
    """

    kind: str = "text"
    delay_s: float = 0.0
    text: str = ""
    num_tokens: int = 1

    def __post_init__(self):
        if self.kind not in _KINDS:
            raise ValueError(f"A step of kind {self.kind!r} is unknown; the kinds are {', '.join(_KINDS)}.")

    @property
    def has_content(self) -> bool:
        """Whether its tokens count as output."""
        return self.kind in ("text", "half", "reasoning")


@dataclass(frozen=True, slots=True)
class FakeReply:
    """What the server does with one request.

    Attributes:
        steps: the script of a stream; () for the plan's service times.
        status: HTTP status; any other than 200 (429, 503) is a refusal.
        retry_after_s: the refusal's Retry-After in seconds, None for no such header.
        newline: line end of the event stream.
    """

    steps: tuple[FakeStep, ...] = ()
    status: int = 200
    retry_after_s: float | None = None
    newline: str = "\n"


@dataclass(frozen=True, slots=True)
class FakePlan:
    """What a fake server does, and when.

    Without `replies`, a request gets its `max_tokens` tokens: the first `ttft_s` + `prompt_token_s` per prompt token
    after its admission, then one every `itl_s`. Delays are drawn from `seed` and the number of the request, so the
    order of arrival does not matter.

    Attributes:
        replies: request number k gets `replies[k % len(replies)]`; () for the service times below.
        ttft_s: mean seconds to the first token.
        itl_s: mean seconds between tokens.
        prompt_token_s: seconds that each prompt token adds to the first token.
        tokens_per_chunk: tokens in one event.
        cv: coefficient of variation of each delay, lognormal with the stated mean; 0 for fixed delays.
        seed: of the delays.
        slowdown: factor on all these times.
        max_concurrency: requests served at once, the others wait in order; None for no limit.
        start_delay_s: seconds after the start during which /health answers 503.
        model: name of the model.
    """

    replies: tuple[FakeReply, ...] = ()
    ttft_s: float = 0.1
    itl_s: float = 0.02
    prompt_token_s: float = 0.0
    tokens_per_chunk: int = 1
    cv: float = 0.0
    seed: int = 0
    slowdown: float = 1.0
    max_concurrency: int | None = None
    start_delay_s: float = 0.0
    model: str = "fake"

    def draw_steps(self, number: int, *, num_prompt_tokens: int, num_tokens: int) -> Iterator[FakeStep]:
        """Yield the steps of request `number` by the service times."""
        draw = random.Random(f"{self.seed}:{number}")
        sigma = math.sqrt(math.log1p(self.cv**2))

        def vary(mean_s: float) -> float:
            if mean_s <= 0:
                return 0.0
            return self.slowdown * (
                mean_s if not sigma else draw.lognormvariate(math.log(mean_s) - sigma**2 / 2, sigma)
            )

        delay_s = vary(self.ttft_s) + vary(self.prompt_token_s) * num_prompt_tokens
        for first in range(0, num_tokens, self.tokens_per_chunk):
            count = min(self.tokens_per_chunk, num_tokens - first)
            text = "".join(f" w{first + k}" for k in range(count))
            yield FakeStep("text", delay_s, text, count)
            delay_s = sum(vary(self.itl_s) for _ in range(count if first + count < num_tokens else 0))
        yield FakeStep("done")

    @classmethod
    def from_json(cls, text: str) -> "FakePlan":
        """Return the plan that `json.dumps(asdict(plan))` wrote; TypeError for an unknown field."""
        fields = json.loads(text)
        replies = tuple(
            FakeReply(**{**reply, "steps": tuple(FakeStep(**step) for step in reply.get("steps", ()))})
            for reply in fields.pop("replies", ())
        )
        return cls(replies=replies, **fields)


@dataclass(slots=True)
class _Stats:
    """What the server has seen; see `FakeServer.stats`.

    Attributes:
        num_requests: completion requests that arrived.
        num_running: requests in service now.
        num_open: requests in service or waiting now.
        max_running: largest `num_running` so far.
        max_open: largest `num_open` so far.
        num_completed: answers that were sent whole.
        num_refused: answers with another status than 200.
        num_disconnected: requests whose connection ended before their answer.
        num_prompt_tokens: prompt tokens of all requests in service so far.
        num_output_tokens: output tokens of all whole answers.
        prompts: prompt or messages of each request, in order.
        arrivals_s: arrival of each request, in seconds of the server's monotonic clock.
        lateness_s: by how many seconds the server itself was late with each event that has content.
    """

    num_requests: int = 0
    num_running: int = 0
    num_open: int = 0
    max_running: int = 0
    max_open: int = 0
    num_completed: int = 0
    num_refused: int = 0
    num_disconnected: int = 0
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    prompts: list = field(default_factory=list)
    arrivals_s: list = field(default_factory=list)
    lateness_s: list = field(default_factory=list)


class FakeServer:
    """The server itself, on the event loop that `serve` runs on.

    Attributes:
        plan: what it does.
        model: name of the model.
        base_url: "http://127.0.0.1:PORT" once it listens.
    """

    def __init__(self, plan: FakePlan):
        self.plan, self.model, self.base_url = plan, plan.model, ""
        self._stats, self._numbers, self._start_s = _Stats(), itertools.count(), time.monotonic()

    def stats(self) -> dict:
        """Return the counts so far, the prompts, their arrivals and the server's own lateness, from any thread."""
        return asdict(self._stats)

    async def serve(self, *, port: int = 0, is_started=None, stop: asyncio.Event | None = None) -> None:
        """Listen on the loopback address until `stop` is set; `is_started` is called with the port."""
        self._gate = asyncio.Semaphore(self.plan.max_concurrency or 10**9)
        self._start_s = time.monotonic()
        self._tasks: set[asyncio.Task] = set()
        server = await asyncio.start_server(self._talk, HOST, port, backlog=4096)
        port = server.sockets[0].getsockname()[1]
        self.base_url = f"http://{HOST}:{port}"
        if is_started:
            is_started(port)
        try:
            await (stop or asyncio.Event()).wait()
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection, request after request."""
        self._tasks.add(task := asyncio.current_task())
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            while await self._answer(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError, asyncio.CancelledError):
            pass  # the client left, did not speak HTTP, or the server stops
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _answer(self, reader, writer) -> bool:
        """Read one request and answer it; False when the connection ends here."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ", 2)
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        if headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        is_kept_open = headers.get("connection", "").lower() != "close"
        if method == "GET":
            status, content = self._page(path.partition("?")[0])
            _write_whole(writer, status, content)
            await writer.drain()
            return is_kept_open
        is_chat = path == "/v1/chat/completions"
        if not is_chat and path != "/v1/completions":
            _write_whole(writer, 404, _error(404, f"no such path: {path}"))
            return is_kept_open
        arrival_s = time.monotonic()
        try:
            request = json.loads(body)
        except ValueError as error:
            _write_whole(writer, 400, _error(400, f"not JSON: {error}"))
            return is_kept_open
        stats, number = self._stats, next(self._numbers)
        stats.num_requests, stats.num_open = stats.num_requests + 1, stats.num_open + 1
        stats.max_open = max(stats.max_open, stats.num_open)
        stats.prompts.append(request.get("messages" if is_chat else "prompt"))
        stats.arrivals_s.append(arrival_s)
        try:
            async with self._gate:
                # Times count from the arrival, or from the admission where concurrency is limited.
                begin_s = arrival_s if not self.plan.max_concurrency else time.monotonic()
                stats.num_running += 1
                stats.max_running = max(stats.max_running, stats.num_running)
                try:
                    player = ReplyPlayer(self.plan, stats, request, is_chat, number, reader, writer)
                    is_whole = await player.run(begin_s)
                finally:
                    stats.num_running -= 1
        except (OSError, asyncio.CancelledError):
            stats.num_disconnected += 1
            raise
        finally:
            stats.num_open -= 1
        return is_whole and is_kept_open

    def _page(self, path: str) -> tuple[int, object]:
        if path == "/health":
            is_ready = time.monotonic() - self._start_s >= self.plan.start_delay_s
            return (200, {}) if is_ready else (503, _error(503, "starting"))
        if path == "/v1/models":
            return 200, {"object": "list", "data": [{"id": self.plan.model, "object": "model"}]}
        if path == "/stats":
            return 200, self.stats()
        if path == "/metrics":
            names = ("num_requests", "num_running", "num_completed", "num_prompt_tokens", "num_output_tokens")
            return 200, "".join(f"fake:{name} {getattr(self._stats, name)}\n" for name in names)
        return 404, _error(404, f"no such path: {path}")


class ReplyPlayer:
    """Plays the script of one request to its connection, each step at its time."""

    def __init__(self, plan: FakePlan, stats: _Stats, request: dict, is_chat: bool, number: int, reader, writer):
        self.plan, self.stats, self.request, self.is_chat = plan, stats, request, is_chat
        self.number, self.reader, self.writer = number, reader, writer
        self.reply = plan.replies[number % len(plan.replies)] if plan.replies else FakeReply()
        prompt = request.get("prompt") if not is_chat else " ".join(str(m.get("content")) for m in request["messages"])
        self.num_prompt_tokens = len(prompt) if isinstance(prompt, list) else len(str(prompt).split())
        self.num_tokens, self.rest, self.text = 0, b"", ""
        options = request.get("stream_options") or {}
        self.has_final_usage, self.has_usage = options.get("include_usage"), options.get("continuous_usage_stats")

    async def run(self, begin_s: float) -> bool:
        """Play the script from `begin_s` on; True when the answer is whole and the connection can be used again."""
        reply, stats = self.reply, self.stats
        stats.num_prompt_tokens += self.num_prompt_tokens
        if reply.status != 200:
            await self._sleep_until(begin_s + (reply.steps[0].delay_s if reply.steps else 0.0))
            extra = {} if reply.retry_after_s is None else {"Retry-After": f"{reply.retry_after_s:g}"}
            _write_whole(self.writer, reply.status, _error(reply.status, "refused"), extra)
            await self.writer.drain()
            stats.num_refused += 1
            return True
        num_tokens = int(self.request.get("max_tokens") or self.request.get("max_completion_tokens") or 16)
        steps = reply.steps or self.plan.draw_steps(
            self.number, num_prompt_tokens=self.num_prompt_tokens, num_tokens=num_tokens
        )
        is_stream = bool(self.request.get("stream"))
        if is_stream:
            self.writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
                b"Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            await self.writer.drain()
        due_s = begin_s
        for step in steps:
            due_s += step.delay_s  # added up from the arrival: a late wake-up does not delay the later steps
            await self._sleep_until(math.inf if step.kind == "stall" else due_s)
            if step.kind == "reset":
                self._reset()
                return False
            if step.has_content:
                stats.lateness_s.append(time.monotonic() - due_s)
                self.num_tokens += step.num_tokens
                self.text += step.text if step.kind != "reasoning" else ""
            if is_stream:
                rest, self.rest = self.rest, b""
                await self._write(rest, self._encode(step))
        stats.num_output_tokens += self.num_tokens
        stats.num_completed += 1
        if is_stream:
            await self._write(self.rest, b"")
            self.writer.write(b"0\r\n\r\n")
        else:
            choice = {"message": {"role": "assistant", "content": self.text}} if self.is_chat else {"text": self.text}
            frame = self._frame([{"index": 0, **choice, "finish_reason": "length"}])
            _write_whole(self.writer, 200, {**frame, "usage": self._usage()})
        await self.writer.drain()
        return True

    def _encode(self, step: FakeStep) -> bytes:
        end = self.reply.newline * 2
        if step.kind == "raw":
            return step.text.encode()
        if step.kind == "comment":
            return f": ping{end}".encode()
        if step.kind == "error":
            return f"data: {json.dumps(_error(500, step.text or 'broken'))}{end}".encode()
        if step.kind == "usage":
            return self._event([], has_usage=True)
        if step.kind == "done":
            final = self._event([], has_usage=True) if self.has_final_usage else b""
            return final + f"data: [DONE]{end}".encode()
        if not self.is_chat:
            delta = {"text": "" if step.kind == "role" else step.text}
        elif step.kind == "role":
            delta = {"delta": {"role": "assistant", "content": ""}}
        else:
            delta = {"delta": {"reasoning_content" if step.kind == "reasoning" else "content": step.text}}
        data = self._event([{"index": 0, **delta, "finish_reason": None}], has_usage=bool(self.has_usage))
        if step.kind == "half":  # cut after the first byte of the first multi-byte character
            cut = next((k + 1 for k, byte in enumerate(data) if byte >= 0xC0), len(data))
            data, self.rest = data[:cut], data[cut:]
        return data

    def _event(self, choices: list, *, has_usage: bool) -> bytes:
        frame = self._frame(choices) | ({"usage": self._usage()} if has_usage else {})
        return f"data: {json.dumps(frame, ensure_ascii=False)}{self.reply.newline * 2}".encode()

    def _frame(self, choices: list) -> dict:
        kind = "chat.completion.chunk" if self.is_chat else "text_completion"
        return {"id": f"fake-{self.number}", "object": kind, "model": self.plan.model, "choices": choices}

    def _usage(self) -> dict:
        return {"prompt_tokens": self.num_prompt_tokens, "completion_tokens": self.num_tokens,
                "total_tokens": self.num_prompt_tokens + self.num_tokens}  # fmt: skip

    async def _write(self, *parts: bytes) -> None:
        """Send each part as an HTTP chunk of its own: what the previous step kept back, and what is new."""
        for part in filter(None, parts):
            self.writer.write(b"%x\r\n%b\r\n" % (len(part), part))
        await self.writer.drain()

    async def _sleep_until(self, due_s: float) -> None:
        """Sleep; ConnectionResetError when the client leaves."""
        while True:
            if self.reader.at_eof() or self.writer.is_closing():
                raise ConnectionResetError("the client left")
            left_s = due_s - time.monotonic()
            if left_s <= 0:
                return
            await asyncio.sleep(min(left_s, 0.1))

    def _reset(self) -> None:
        """Close with RST, as a crashed server or a middlebox does."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


def _error(code: int, message: str) -> dict:
    return {"error": {"message": message, "code": code}}


def _write_whole(writer, status: int, content, extra: dict | None = None) -> None:
    """Write an answer of known length: a string as plain text, anything else as JSON."""
    data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
    kind = "text/plain; version=0.0.4" if isinstance(content, str) else "application/json"
    lines = {"Content-Type": kind, "Content-Length": str(len(data)), **(extra or {})}
    head = f"HTTP/1.1 {status} {'OK' if status == 200 else 'Error'}\r\n"
    writer.write((head + "".join(f"{k}: {v}\r\n" for k, v in lines.items()) + "\r\n").encode() + data)


@contextlib.contextmanager
def run_fake_inside(plan: FakePlan | None = None, *, port: int = 0) -> Iterator[FakeServer]:
    """Run the fake server in a thread of this process and yield the `FakeServer`; `port` 0 takes any free one."""
    server, is_up, loops = FakeServer(plan or FakePlan()), threading.Event(), {}

    async def main() -> None:
        loops["loop"], loops["stop"] = asyncio.get_running_loop(), asyncio.Event()
        await server.serve(port=port, is_started=lambda port: is_up.set(), stop=loops["stop"])

    thread = threading.Thread(target=asyncio.run, args=(main(),), name="fake server", daemon=True)
    thread.start()
    try:
        if not is_up.wait(60):
            raise RuntimeError("The fake server did not start within 60 s.")
        yield server
    finally:
        with contextlib.suppress(RuntimeError, KeyError):
            loops["loop"].call_soon_threadsafe(loops["stop"].set)
        thread.join(60)


def build_fake_spec(
    plan: FakePlan | None = None, *, name: str = "fake", ready_deadline_s: float | None = None
) -> LaunchSpec:
    """Return how the fake server is started as a child process; `name` is the engine's name in records."""
    plan = plan or FakePlan()
    settings = {key: value for key, value in asdict(plan).items() if key not in ("replies", "model")}
    program = "from labkit.servers.fake import main; main()"
    argv = (sys.executable, "-P", "-c", program, "--port", "{port}", "--plan", json.dumps(asdict(plan)))
    return LaunchSpec(
        name, plan.model, argv, env={"PYTHONPATH": str(Path(__file__).resolve().parents[2])}, settings=settings,
        ready_deadline_s=choose_deadline_s(300.0, ready_deadline_s), grace_s=2.0,
    )  # fmt: skip


def run_fake(plan: FakePlan | None = None, *, port: int | None = None, **options) -> Server:
    """Run the fake server as a child process, like any engine; options as in `build_fake_spec`."""
    return run_launch_spec(build_fake_spec(plan, **options), port=port)


def load_stats(server: Server) -> dict:
    """Return what the fake server behind `run_fake` has counted (see `FakeServer.stats`)."""
    return json.loads(server.load_page("/stats")[1])


def main() -> None:
    """Serve a plan, given as JSON, until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--plan", default="{}")
    arguments = parser.parse_args()
    server = FakeServer(FakePlan.from_json(arguments.plan))
    asyncio.run(server.serve(port=arguments.port, is_started=lambda port: print(f"listening on {port}", flush=True)))


if __name__ == "__main__":
    main()
