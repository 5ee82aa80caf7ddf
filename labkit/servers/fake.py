"""A real HTTP server whose every delay is known: the instrument that the course's clients and metrics are tested with.

It speaks the streaming completions and chat APIs that vLLM speaks, and does what real servers do on a bad day:
refuse, stall, cut the connection, split a character. It runs in this process (`run_fake_inside`, for tests) or as a
child process like any engine (`run_fake`). Nothing is computed: a word is written when its time has come.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from labkit.servers.base import Server, run_launch
from labkit.servers.fake_answer import Answer, write_whole
from labkit.servers.fake_script import FakePlan
from labkit.servers.launch import Launch, find_deadline

__all__ = ["FakePlan", "FakeServer", "estimate_fake_launch", "load_stats", "main", "run_fake", "run_fake_inside"]


@dataclass(slots=True)
class _Counts:
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
    """The server itself, on the event loop that `serve` runs on; `stats()` may be called from any thread."""

    def __init__(self, plan: FakePlan):
        self.plan, self.counts, self.model = plan, _Counts(), plan.model
        self._numbers, self._start_s, self.base_url = itertools.count(), time.monotonic(), ""

    def stats(self) -> dict:
        """Counts so far, the prompts received (in order), their arrival instants (monotonic clock of the server), and
        by how much the server itself was late with each event with content.
        """
        return asdict(self.counts)

    async def serve(self, *, port: int = 0, is_started=None, stop: asyncio.Event | None = None) -> None:
        """Listen on the loopback address until `stop` is set; `is_started` is called with the port."""
        self._gate = asyncio.Semaphore(self.plan.max_concurrency or 10**9)
        self._start_s = time.monotonic()
        self._tasks: set[asyncio.Task] = set()
        server = await asyncio.start_server(self._talk, "127.0.0.1", port, backlog=4096)
        port = server.sockets[0].getsockname()[1]
        self.base_url = f"http://127.0.0.1:{port}"
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
        """One connection, request after request."""
        self._tasks.add(task := asyncio.current_task())
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            while await self._answer(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError, asyncio.CancelledError):
            pass  # the client left, spoke no HTTP, or the server stops
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
        keeps = headers.get("connection", "").lower() != "close"
        if method == "GET":
            status, content = self._page(path.partition("?")[0])
            write_whole(writer, status, content)
            await writer.drain()
            return keeps
        is_chat = path == "/v1/chat/completions"
        if not is_chat and path != "/v1/completions":
            write_whole(writer, 404, {"error": {"message": f"no such path: {path}", "code": 404}})
            return keeps
        arrival_s = time.monotonic()
        try:
            request = json.loads(body)
        except ValueError as error:
            write_whole(writer, 400, {"error": {"message": f"not JSON: {error}", "code": 400}})
            return keeps
        counts, number = self.counts, next(self._numbers)
        counts.num_requests, counts.num_open = counts.num_requests + 1, counts.num_open + 1
        counts.max_open = max(counts.max_open, counts.num_open)
        counts.prompts.append(request.get("messages" if is_chat else "prompt"))
        counts.arrivals_s.append(arrival_s)
        try:
            async with self._gate:
                # Times count from the arrival, or from the moment at which a place became free.
                begin_s = arrival_s if not self.plan.max_concurrency else time.monotonic()
                counts.num_running += 1
                counts.max_running = max(counts.max_running, counts.num_running)
                try:
                    is_whole = await Answer(self, request, is_chat, number, reader, writer).run(begin_s)
                finally:
                    counts.num_running -= 1
        except (OSError, asyncio.CancelledError):
            counts.num_disconnected += 1
            raise
        finally:
            counts.num_open -= 1
        return is_whole and keeps

    def _page(self, path: str) -> tuple[int, object]:
        if path == "/health":
            is_ready = time.monotonic() - self._start_s >= self.plan.start_delay_s
            return (200, {}) if is_ready else (503, {"error": {"message": "starting", "code": 503}})
        if path == "/v1/models":
            return 200, {"object": "list", "data": [{"id": self.plan.model, "object": "model"}]}
        if path == "/stats":
            return 200, self.stats()
        if path == "/metrics":
            names = ("num_requests", "num_running", "num_completed", "num_prompt_tokens", "num_output_tokens")
            return 200, "".join(f"fake:{name} {getattr(self.counts, name)}\n" for name in names)
        return 404, {"error": {"message": f"no such path: {path}", "code": 404}}


@contextlib.contextmanager
def run_fake_inside(plan: FakePlan | None = None, *, port: int = 0) -> Iterator[FakeServer]:
    """Run the fake server in a thread of this process; gives the `FakeServer`, with `base_url`, `model` and
    `stats()`. `port` 0: any free one.
    """
    server, is_up, loops = FakeServer(plan or FakePlan()), threading.Event(), {}

    async def main() -> None:
        loops["loop"], loops["stop"] = asyncio.get_running_loop(), asyncio.Event()
        await server.serve(port=port, is_started=lambda port: is_up.set(), stop=loops["stop"])

    thread = threading.Thread(target=asyncio.run, args=(main(),), name="fake server", daemon=True)
    thread.start()
    try:
        if not is_up.wait(10):
            raise RuntimeError("the fake server did not start within 10 s")
        yield server
    finally:
        with contextlib.suppress(RuntimeError, KeyError):
            loops["loop"].call_soon_threadsafe(loops["stop"].set)
        thread.join(10)


def estimate_fake_launch(
    plan: FakePlan | None = None, *, name: str = "fake", ready_deadline_s: float | None = None
) -> Launch:
    """Return how the fake server is started as a child process; `name` is the engine's name in records."""
    plan = plan or FakePlan()
    settings = {key: value for key, value in asdict(plan).items() if key not in ("replies", "model")}
    program = "from labkit.servers.fake import main; main()"
    argv = (sys.executable, "-P", "-c", program, "--port", "{port}", "--plan", json.dumps(asdict(plan)))
    env, deadline_s = {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}, find_deadline(60.0, ready_deadline_s)
    return Launch(name, plan.model, argv, env=env, settings=settings, ready_deadline_s=deadline_s, grace_s=2.0)


def run_fake(plan: FakePlan | None = None, *, port: int | None = None, **options) -> Server:
    """Run the fake server as a child process, like any engine; options as in `estimate_fake_launch`."""
    return run_launch(estimate_fake_launch(plan, **options), port=port)


def load_stats(server) -> dict:
    """Return the counts of a fake server: requests, concurrency, prompts received (see `FakeServer.stats`)."""
    if isinstance(server, FakeServer):
        return server.stats()
    return json.loads(server._get("/stats")[1])


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
