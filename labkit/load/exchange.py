"""What came back, and when? One exchange: the reads of one answer with their instants, until its last byte.

The hot path of a load run is `take`: a stamp and an append. Framing is looked at only when a read may be the last one,
content (events, JSON) only after the answer has ended, in slices, so that reading one answer does not delay the stamps
of another.
"""

import asyncio
from collections.abc import Callable, Iterator

from labkit.errors import LabkitError
from labkit.load.http1 import ResponseReader

__all__ = ["Exchange"]

MAX_BYTES = 256 * 2**20  # of one answer: a server that never ends must not fill the memory


class Exchange:
    """The answer to one request.

    `sent_s`, `connected_s`, `end_s`: instants on the loop's clock; `failure`: (cause, detail) of the connection, or
    None; `bodies`: (instant, bytes of the body); `http`: status and headers; `num_reconnects`: a kept connection that
    had been closed by the server was replaced before anything was read.
    """

    __slots__ = (
        "_clock", "_done", "_num_bytes", "_reads", "bodies", "connected_s", "end_s", "failure", "http",
        "num_reconnects", "sent_s",
    )  # fmt: skip

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._done, self._reads, self._num_bytes = clock, None, [], 0
        self.http, self.bodies = ResponseReader(), []
        self.sent_s: float | None = None
        self.connected_s: float | None = None
        self.end_s: float | None = None
        self.failure: tuple[str, str] | None = None
        self.num_reconnects = 0

    @property
    def num_bytes(self) -> int:
        """Bytes that have come."""
        return self._num_bytes

    @property
    def has_read(self) -> bool:
        """Whether any byte of the answer has come."""
        return self._num_bytes > 0

    @property
    def is_over(self) -> bool:
        """Whether nothing more is expected."""
        return self.end_s is not None

    def restart(self) -> None:
        """Forget a connection that was closed before anything was read; the instant of sending stays."""
        self.failure, self.end_s, self._done = None, None, None
        self.num_reconnects += 1

    def take(self, piece: bytes) -> None:
        """Take in what was read just now."""
        self._reads.append((self._clock(), piece))
        self._num_bytes += len(piece)
        # The last read of a chunked answer ends in an empty line; a very short one may be a part of that.
        if not self.http.is_chunked or piece[-4:] == b"\r\n\r\n" or len(piece) < 8 or self._num_bytes > MAX_BYTES:
            self._look()

    def fail(self, cause: str, detail: str = "") -> None:
        """End the exchange with a failure of the connection; the first one counts."""
        self._look()
        if self.end_s is None:
            self.failure = (cause, detail)
            self._finish()

    def close(self, error: BaseException | None = None) -> None:
        """Take in that the connection has ended; whether that is a failure depends on the framing."""
        self._look()
        if self.end_s is not None:
            return
        if not self.http.close():
            what = f"{type(error).__name__}: {error}" if error else "the server closed the connection"
            self.failure = ("reset" if isinstance(error, ConnectionError) else "cut", what)
        self._finish()

    async def wait(self) -> None:
        """Return when the exchange is over."""
        if self.end_s is None:
            self._done = asyncio.get_running_loop().create_future()
            await self._done

    def _look(self) -> None:
        """Read the framing of what has come."""
        if self.end_s is not None:
            self._reads.clear()
            return
        reads, self._reads = self._reads, []
        try:
            for at_s, piece in reads:
                if body := self.http.feed(piece):
                    self.bodies.append((at_s, body))
        except LabkitError as error:
            self.failure = ("bad http", str(error))
        if self._num_bytes > MAX_BYTES and not self.http.is_complete:
            self.failure = ("too large", f"over {MAX_BYTES} bytes")
        if self.http.is_complete or self.failure:
            self._finish(reads[-1][0] if reads else None)

    def _finish(self, at_s: float | None = None) -> None:
        self.end_s = self._clock() if at_s is None else at_s
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    def read_slices(self, size: int = 64) -> Iterator[list[tuple[float, bytes]]]:
        """Yield the bodies in slices of a few reads."""
        for first in range(0, len(self.bodies), size):
            yield self.bodies[first : first + size]
