"""How can a load run be tested exactly? In virtual time: an event loop whose clock jumps to the next thing to do.

`run_virtual(main())` runs a coroutine on such a loop. Sleeping costs nothing, every time is exact, and the same program
gives the same result. `SimulatedServer` answers in that time; `loop.stall(1.0)` is a client that was busy with
something else for a second. Every number from here must be labelled as simulated.
"""

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from labkit.errors import LabkitError
from labkit.load.transport import Exchange
from labkit.timing import VirtualClock

__all__ = ["SimulatedServer", "VirtualLoop", "format_answer", "run_virtual"]

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that never waits: when nothing is ready, its clock jumps to the next timer."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        super().__init__(_Jump(self))

    def time(self) -> float:
        """Return the virtual seconds since the loop was made."""
        return self.clock()

    def stall(self, seconds: float) -> None:
        """Let time pass without running anything: what a busy client does."""
        self.clock.sleep(seconds)


class _Jump(selectors.DefaultSelector):
    """A selector that moves the clock instead of waiting."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list:
        """Return no event; move the clock to the first timer if the loop is about to wait."""
        if timeout is None:
            raise LabkitError("Nothing will ever happen in this virtual time.", next_step="give the wait a deadline.")
        if timeout > 0:
            # The timer's own time, not now + timeout: a sum would be off by a rounding error.
            self._loop.clock.sleep(max(0.0, self._loop._scheduled[0]._when - self._loop.clock()))
            self._loop.clock._now_s = max(self._loop.clock(), self._loop._scheduled[0]._when)
        return []


def run_virtual(main: Coroutine) -> Any:
    """Run a coroutine in virtual time and return its result."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


class SimulatedServer:
    """A transport for `run_client` without a socket: it answers by a script, in the loop's time.

    `script(number, now_s, body)` returns (absolute time, bytes) pairs: what reaches the client, and when; a pair whose
    bytes are None cuts the connection.

    Attributes:
        arrivals_s: when each request arrived.
        num_running: requests in flight.
        max_running: the most there were.
    """

    is_simulated = True

    def __init__(self, script: Callable[[int, float, bytes], Iterable[tuple[float, bytes | None]]]) -> None:
        self._script, self.arrivals_s = script, []
        self.num_running = self.max_running = 0

    async def start(self) -> None:
        """Nothing to open."""

    async def close(self) -> None:
        """Nothing to close."""

    async def send(self, exchange: Exchange, path: str, body: bytes) -> None:
        """Send a request and return at the end of its answer."""
        loop = asyncio.get_running_loop()
        now_s, number = loop.time(), len(self.arrivals_s)
        self.arrivals_s.append(now_s)
        self.num_running += 1
        self.max_running = max(self.max_running, self.num_running)
        timers = [
            loop.call_at(at_s, exchange.close) if piece is None else loop.call_at(at_s, exchange.take, piece)
            for at_s, piece in self._script(number, now_s, body)
        ]
        try:
            await exchange.wait()
        finally:
            self.num_running -= 1
            for timer in timers:
                timer.cancel()


def format_answer(times_s: Iterable[float], *, begin_s: float = 0.0) -> list[tuple[float, bytes]]:
    """Return the (time, bytes) pairs of an answer: one-token chunks at `begin_s` + each of `times_s`, then "[DONE]"."""
    pieces, num = [], 0
    for num, at_s in enumerate(times_s, start=1):
        event = b'data: {"choices":[{"text":"w"}],"usage":{"completion_tokens":%d}}\n\n' % num
        pieces.append((begin_s + at_s, (HEAD if num == 1 else b"") + b"%x\r\n%b\r\n" % (len(event), event)))
    end = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
    last_s, piece = pieces.pop() if pieces else (begin_s, HEAD)
    return [*pieces, (last_s, piece + end)]
