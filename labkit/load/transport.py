"""How do bytes travel? A small HTTP/1.1 client over asyncio: kept connections, and a stamp for every read.

A read is stamped in the callback in which the event loop hands it over, before any other code runs. Nothing is
pipelined: one exchange a connection. A kept connection that the server has closed meanwhile is replaced once, if
nothing was read from it, and the exchange counts that.
"""

import asyncio
import contextlib
import errno
import socket
import ssl
from collections.abc import Mapping
from urllib.parse import urlsplit

from labkit.errors import LabkitError
from labkit.load.exchange import Exchange

__all__ = ["HttpTransport", "check_descriptors"]

_SPARE_DESCRIPTORS = 64  # files, the loop's own, whatever else the process has open
_CAUSES = {
    errno.ECONNREFUSED: "refused", errno.ECONNRESET: "reset", errno.EPIPE: "reset", errno.EMFILE: "too many open files",
    errno.ENFILE: "too many open files", errno.EHOSTUNREACH: "unreachable", errno.ENETUNREACH: "unreachable",
    errno.ETIMEDOUT: "connect timeout", errno.EADDRNOTAVAIL: "no free port",
}  # fmt: skip


class HttpTransport:
    """Sends requests to one server, over as many connections as are in use at once."""

    def __init__(self, base_url: str, *, headers: Mapping[str, str] | None = None) -> None:
        """`base_url`: http or https, host, port, and what stands before "/v1"; proxies are not used."""
        address = urlsplit(base_url if "://" in base_url else f"http://{base_url}")
        if address.scheme not in ("http", "https") or not address.hostname:
            raise LabkitError(f"{base_url!r} is no address of a server.", next_step="write http://HOST:PORT.")
        self._ssl = ssl.create_default_context() if address.scheme == "https" else None
        self._host, self._port = address.hostname, address.port or (443 if self._ssl else 80)
        self._prefix = address.path.rstrip("/").removesuffix("/v1")
        lines = {"Host": address.netloc.rpartition("@")[2], "Content-Type": "application/json",
                 "Accept": "text/event-stream", **(headers or {})}  # fmt: skip
        if any("\r" in text or "\n" in text for pair in lines.items() for text in pair):
            raise LabkitError("a header has a line end in it.")
        self._head = "".join(f"{name}: {value}\r\n" for name, value in lines.items()).encode("latin-1")
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()
        self._address: tuple | None = None

    async def start(self) -> None:
        """Look up the server's address, once, so that no request waits for it."""
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise LabkitError(f"the host {self._host!r} is not known ({error}).", next_step="Check the URL.") from None
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

        `exchange.sent_s` is set before anything else happens: opening a connection counts in.
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
        """GET a page (the server's counters): (status, text), or None when it does not answer."""
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
            and not exchange.has_read
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
                    lambda: _Connection(self._open), *(self._address or (self._host, self._port)), ssl=self._ssl,
                    server_hostname=self._host if self._ssl else None,
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
            self.is_usable = False  # nobody asked for this

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
        if exchange is None or exchange.failure or not exchange.http.is_complete or exchange.http.rest:
            self.is_usable = False
        return self.is_usable and exchange.http.keeps_alive

    def abort(self) -> None:
        """Close without waiting for anything."""
        self.is_usable = False
        if self._transport is not None:
            self._transport.abort()


def check_descriptors(num_connections: int) -> None:
    """Make sure that so many connections can be open at once, or raise a LabkitError with the number that is needed.

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
