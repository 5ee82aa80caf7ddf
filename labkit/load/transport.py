"""How do bytes travel? A small HTTP/1.1 client over asyncio: kept connections, and a stamp for every read.

A read is stamped in the callback in which the event loop hands it over, before any other code runs. That is the hot
path: a stamp and an append. Framing (httptools, the parser of Node.js) is looked at only if a read may be the last one,
and content (events, JSON) only after the answer has ended, in slices, so that reading one answer does not delay the
stamps of another.

Nothing is pipelined: a connection carries one exchange at a time. A kept connection that the server has closed
meanwhile is replaced once, if nothing was read from it, and the exchange counts that.
"""

import asyncio
import contextlib
import errno
import functools
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from urllib.parse import urlsplit

from labkit.errors import InstallError, LabkitError

__all__ = ["Exchange", "HttpTransport", "ResponseReader", "check_descriptors"]

_MAX_BYTES = 256 * 2**20  # of one answer: a server that never ends must not fill the memory
_MAX_HEAD_BYTES = 65536
_SPARE_DESCRIPTORS = 64  # files, the loop's own, whatever else the process has open
_CAUSES = {
    errno.ECONNREFUSED: "refused", errno.ECONNRESET: "reset", errno.EPIPE: "reset", errno.EMFILE: "too many open files",
    errno.ENFILE: "too many open files", errno.EHOSTUNREACH: "unreachable", errno.ENETUNREACH: "unreachable",
    errno.ETIMEDOUT: "connect timeout", errno.EADDRNOTAVAIL: "no free port",
}  # fmt: skip


@functools.cache
def _import_httptools():
    try:
        import httptools
    except ImportError:
        raise InstallError("httptools is not installed.", next_step="run `pip install httptools`.") from None
    return httptools


class ResponseReader:
    """Finds the body and the end of one HTTP/1.1 answer; a pure function of the bytes.

    Attributes:
        status: HTTP status; None until the head is complete. 1xx answers are skipped.
        headers: header fields by lower-case name.
        is_chunked: the body comes in HTTP chunks, so that its end has a mark.
        is_complete: the last byte has come.
        keeps_alive: the connection can carry another exchange.
        has_rest: bytes came after the end of the answer; without pipelining none are expected.
    """

    __slots__ = (
        "_num_head_bytes", "_parser", "_parts", "has_rest", "headers", "is_chunked", "is_complete", "keeps_alive",
        "status",
    )  # fmt: skip

    def __init__(self) -> None:
        self._parser, self._parts, self._num_head_bytes = _import_httptools().HttpResponseParser(self), [], 0
        self.status: int | None = None
        self.headers: dict[str, str] = {}
        self.is_chunked = self.is_complete = self.keeps_alive = self.has_rest = False

    def feed(self, piece: bytes) -> bytes:
        """Return the part of the body in this piece; LabkitError if this is not HTTP/1.1."""
        if self.is_complete:
            self.has_rest |= bool(piece)
            return b""
        errors = _import_httptools()
        try:
            self._parser.feed_data(piece)
        except (errors.HttpParserError, errors.HttpParserUpgrade) as error:
            if not self.is_complete:
                raise LabkitError(f"this is not an HTTP/1.1 answer ({error}).") from None
            self.has_rest = True
        if self.status is None:
            self._num_head_bytes += len(piece)
            if self._num_head_bytes > _MAX_HEAD_BYTES:
                raise LabkitError(f"the head of the answer is over {_MAX_HEAD_BYTES} bytes.")
        parts, self._parts = self._parts, []
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> bool:
        """Take in that the connection has ended; returns whether the answer is whole."""
        if self.status is not None and not self.is_chunked and "content-length" not in self.headers:
            self.is_complete = True  # it had no other end mark
        return self.is_complete

    def on_message_begin(self) -> None:
        """Called by the parser."""
        self.has_rest |= self.is_complete

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser."""
        if not self.is_complete:
            self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        if self.is_complete:
            return
        status = self._parser.get_status_code()
        if 100 <= status < 200:
            self.headers = {}
            return
        self.status, self.keeps_alive = status, self._parser.should_keep_alive()
        self.is_chunked = "chunked" in self.headers.get("transfer-encoding", "").lower()

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        if not self.is_complete:
            self._parts.append(body)

    def on_message_complete(self) -> None:
        """Called by the parser."""
        self.is_complete = self.status is not None


class Exchange:
    """The answer to one request.

    Attributes:
        sent_s: when sending began, on the loop's clock.
        connected_s: when a new connection was open; None if one was kept.
        end_s: when it was over; None before.
        failure: (cause, detail) of the connection, or None.
        bodies: (time, bytes of the body) of each read.
        http: status and headers.
        num_reconnects: kept connections that the server had closed, replaced before anything was read.
        num_bytes: bytes that have come.
    """

    __slots__ = (
        "_clock", "_done", "_reads", "bodies", "connected_s", "end_s", "failure", "http", "num_bytes",
        "num_reconnects", "sent_s",
    )  # fmt: skip

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._done, self._reads, self.num_bytes = clock, None, [], 0
        self.http, self.bodies = ResponseReader(), []
        self.sent_s: float | None = None
        self.connected_s: float | None = None
        self.end_s: float | None = None
        self.failure: tuple[str, str] | None = None
        self.num_reconnects = 0

    def restart(self) -> None:
        """Forget a connection that was closed before anything was read; the time of sending stays."""
        self.failure, self.end_s, self._done = None, None, None
        self.num_reconnects += 1

    def take(self, piece: bytes) -> None:
        """Take in what was read just now."""
        self._reads.append((self._clock(), piece))
        self.num_bytes += len(piece)
        # The last read of a chunked answer ends in an empty line; a very short one may be a part of that.
        if not self.http.is_chunked or piece[-4:] == b"\r\n\r\n" or len(piece) < 8 or self.num_bytes > _MAX_BYTES:
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
        if self.num_bytes > _MAX_BYTES and not self.http.is_complete:
            self.failure = ("too large", f"over {_MAX_BYTES} bytes")
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


class HttpTransport:
    """Sends requests to one server, over as many connections as are in use at once."""

    def __init__(self, base_url: str, *, headers: Mapping[str, str] | None = None) -> None:
        """`base_url`: http or https, host, port, and the path before "/v1"; proxies are not used."""
        address = urlsplit(base_url if "://" in base_url else f"http://{base_url}")
        if address.scheme not in ("http", "https") or not address.hostname:
            raise LabkitError(f"{base_url!r} is not the URL of a server.", next_step="write http://HOST:PORT.")
        self._ssl = ssl.create_default_context() if address.scheme == "https" else None
        self.host, self._port = address.hostname, address.port or (443 if self._ssl else 80)
        self._prefix = address.path.rstrip("/").removesuffix("/v1")
        lines = {"Host": address.netloc.rpartition("@")[2], "Content-Type": "application/json",
                 "Accept": "text/event-stream", **(headers or {})}  # fmt: skip
        if any("\r" in text or "\n" in text for pair in lines.items() for text in pair):
            raise LabkitError("A header has a line end in it.", next_step="Write it on one line.")
        self._head = "".join(f"{name}: {value}\r\n" for name, value in lines.items()).encode("latin-1")
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()
        self._address: tuple | None = None

    async def start(self) -> None:
        """Look up the server's address, once, so that no request waits for it."""
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(self.host, self._port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise LabkitError(f"The host {self.host!r} is not known ({error}).", next_step="Check the URL.") from None
        # A name may stand for two addresses, of which the server listens on one.
        self._address = found[0][4][:2]
        if len({item[4][:2] for item in found}) > 1:
            for item in found:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.wait_for(asyncio.open_connection(*item[4][:2]), 2.0)
                    writer.close()
                    self._address = item[4][:2]
                    break

    async def close(self) -> None:
        """Close every connection."""
        for connection in list(self._open):
            connection.abort()
        self._idle.clear()
        await asyncio.sleep(0)

    async def send(self, exchange: Exchange, path: str, body: bytes) -> None:
        """Send a request and return at the end of its answer; failures are in `exchange.failure`, never raised.

        `exchange.sent_s` is set before anything else happens: the time to open a connection is part of the latency.
        """
        loop = asyncio.get_running_loop()
        if exchange.sent_s is None:
            exchange.sent_s = loop.time()
        data = b"POST %b HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n%b" % (
            f"{self._prefix}{path}".encode("latin-1"), self._head, len(body), body
        )  # fmt: skip
        await self._exchange(exchange, data)
        if exchange.failure and self._was_idle(exchange):
            exchange.restart()
            await self._exchange(exchange, data, is_fresh=True)

    async def get(self, path: str, *, timeout_s: float = 5.0) -> tuple[int, str] | None:
        """GET a page (the server's counters): (status, text), or None if it does not answer."""
        exchange = Exchange(asyncio.get_running_loop().time)
        data = b"GET %b HTTP/1.1\r\n%b\r\n" % (f"{self._prefix}{path}".encode("latin-1"), self._head)
        try:
            async with asyncio.timeout(timeout_s):
                await self._exchange(exchange, data, is_fresh=True)
        except TimeoutError:
            return None
        if exchange.failure or exchange.http.status is None:
            return None
        return exchange.http.status, b"".join(body for _, body in exchange.bodies).decode("utf-8", "replace")

    @staticmethod
    def _was_idle(exchange: Exchange) -> bool:
        return (
            exchange.failure[0] in ("reset", "cut")
            and not exchange.num_bytes
            and not exchange.num_reconnects
            and exchange.connected_s is None
        )

    async def _exchange(self, exchange: Exchange, data: bytes, *, is_fresh: bool = False) -> None:
        connection = None
        try:
            connection = None if is_fresh else self._take_idle()
            if connection is None:
                loop = asyncio.get_running_loop()
                _, connection = await loop.create_connection(
                    lambda: _Connection(self._open), *(self._address or (self.host, self._port)), ssl=self._ssl,
                    server_hostname=self.host if self._ssl else None,
                )  # fmt: skip
                exchange.connected_s = loop.time()
            connection.begin(exchange, data)
            await exchange.wait()
        except OSError as error:
            # asyncio raises one OSError for several addresses: its text holds the numbers.
            number = error.errno or next((code for code in _CAUSES if f"[Errno {code}]" in str(error)), None)
            exchange.fail(_CAUSES.get(number, "tls" if isinstance(error, ssl.SSLError) else "connection"), str(error))
        finally:
            if connection is not None:
                if connection.end():
                    self._idle.append(connection)
                else:
                    connection.abort()

    def _take_idle(self) -> "_Connection | None":
        while self._idle:
            connection = self._idle.pop()  # the one used last: the others may be closed by now
            if connection.is_usable:
                return connection
        return None


class _Connection(asyncio.Protocol):
    """One connection; hands what it reads to the exchange that it is used for."""

    __slots__ = ("_exchange", "_open", "_transport", "is_usable")

    def __init__(self, is_open: set) -> None:
        self._exchange: Exchange | None = None
        self._open, self._transport, self.is_usable = is_open, None, False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport, self.is_usable = transport, True
        self._open.add(self)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop for each read."""
        if self._exchange is not None:
            self._exchange.take(data)
        else:
            self.is_usable = False  # it was not asked for

    def connection_lost(self, error: Exception | None) -> None:
        """Called by the event loop at the end."""
        self.is_usable = False
        self._open.discard(self)
        if self._exchange is not None:
            self._exchange.close(error)

    def begin(self, exchange: Exchange, data: bytes) -> None:
        """Use the connection for one exchange."""
        self._exchange = exchange
        if self.is_usable:
            self._transport.write(data)
        else:
            exchange.fail("cut", "the connection was closed before the request")

    def end(self) -> bool:
        """End the use; returns whether the connection can be used again."""
        exchange, self._exchange = self._exchange, None
        if exchange is None or exchange.failure or not exchange.http.is_complete or exchange.http.has_rest:
            self.is_usable = False
        return self.is_usable and exchange.http.keeps_alive

    def abort(self) -> None:
        """Close without waiting for anything."""
        self.is_usable = False
        if self._transport is not None:
            self._transport.abort()


def check_descriptors(num_connections: int) -> None:
    """Make sure that `num_connections` can be open at once, or raise a LabkitError with the limit that is needed.

    The soft limit of this process is raised as far as the hard limit allows.
    """
    try:
        import resource
    except ImportError:  # not on this system
        return
    needed = num_connections + _SPARE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard == resource.RLIM_INFINITY or hard >= needed:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
            return
    raise LabkitError(
        f"{num_connections} connections at once need {needed} open files, {hard} are allowed.",
        next_step=f"run `ulimit -n {needed}` first, use a lower rate, more workers, or cap the concurrency.",
    )
