"""What answers without doing anything? A server that streams canned chunks at a fixed beat, to measure clients with.

Each chunk carries the time at which the server wrote it (monotonic clock, which all processes of a machine share), so a
client's error on every single chunk is known. One timer serves all streams: at each beat, every open stream gets
its next chunk. It runs in a child process.
"""

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from labkit.errors import LabkitError

__all__ = ["main", "read_write_times", "run_noop"]

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_END = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


@contextlib.contextmanager
def run_noop(*, num_chunks: int = 16, gap_s: float = 0.005) -> Iterator[str]:
    """Run the server in a child process; gives its base URL. Every answer has `num_chunks` chunks, one each `gap_s`."""
    program = "from labkit.load.noop import main; main()"
    spec = json.dumps({"num_chunks": num_chunks, "gap_s": gap_s})
    process = subprocess.Popen(
        [sys.executable, "-c", program, spec], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        cwd=Path(__file__).resolve().parents[2], start_new_session=True,
    )  # fmt: skip
    try:
        port = process.stdout.readline().strip()
        if not port.isdigit():
            raise LabkitError("The no-op server did not start.", next_step="Look at its message above.")
        yield f"http://127.0.0.1:{int(port)}"
    finally:
        process.stdin.close()  # its sign to end
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def read_write_times(body: bytes) -> list[float]:
    """Return the times that the server wrote into the chunks of a body."""
    return [float(part.partition(b'"')[0]) for part in body.split(b'"text":"')[1:]]


class _Stream(asyncio.Protocol):
    """One connection: reads requests, and is on the list of streams while it answers one."""

    __slots__ = ("buffer", "left", "server", "transport")

    def __init__(self, server: "_Server") -> None:
        self.server, self.buffer, self.left, self.transport = server, b"", 0, None

    def connection_made(self, transport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, end, rest = self.buffer.partition(b"\r\n\r\n")
        if not end:
            return
        place = head.lower().find(b"content-length:")
        length = int(head[place + 15 :].split(b"\r\n", 1)[0]) if place >= 0 else 0
        if len(rest) < length:
            return
        self.buffer = rest[length:]
        if head.startswith(b"GET"):
            self.transport.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return
        self.left = self.server.num_chunks
        self.server.begin(self)

    def connection_lost(self, error) -> None:
        self.server.streams.discard(self)


class _Server:
    def __init__(self, num_chunks: int, gap_s: float) -> None:
        self.num_chunks, self.gap_s = num_chunks, gap_s
        self.streams: set[_Stream] = set()

    def begin(self, stream: _Stream) -> None:
        stream.transport.write(_HEAD)
        self.streams.add(stream)

    async def beat(self) -> None:
        due_s = time.monotonic()
        while True:
            due_s = max(due_s + self.gap_s, time.monotonic() - self.gap_s)
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            for stream in list(self.streams):
                # The stamp is as close to the write as possible: a long list of streams is the server's delay.
                event = b'data: {"object":"text_completion","choices":[{"text":"%.7f"}]}\n\n' % time.monotonic()
                data = b"%x\r\n%b\r\n" % (len(event), event)
                stream.left -= 1
                if not stream.left:
                    self.streams.discard(stream)
                    data += _END
                stream.transport.write(data)


def main() -> None:
    """Serve until stdin is closed."""
    from labkit.load.loop import run_precise

    run_precise(_serve(**json.loads(sys.argv[1])))


async def _serve(num_chunks: int, gap_s: float) -> None:
    loop, server = asyncio.get_running_loop(), _Server(num_chunks, gap_s)
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listening:
        listener = await loop.create_server(lambda: _Stream(server), sock=listening, backlog=4096)
        print(listening.getsockname()[1], flush=True)
        beat = asyncio.create_task(server.beat())
        ended = asyncio.Event()
        loop.add_reader(sys.stdin.fileno(), ended.set)
        await ended.wait()
        beat.cancel()
        listener.close()
