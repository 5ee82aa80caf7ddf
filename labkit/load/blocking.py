"""How does a plan run without asyncio? A client of plain blocking sockets, one thread per request in flight.

For Locust: it replaces sockets, sleeping and threads by green ones (gevent), so that the same code runs as thousands of
greenlets in each of its workers. Plan, parser, records and verdict are those of `labkit.load.client`; one machine is
measured better by that one, whose stamps wait for no other thread. Refused requests are not sent again here.
"""

from __future__ import annotations

import errno
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

from labkit.errors import LabkitError
from labkit.load.client import TICK_S, ClientHealth, ClientRun, Limits, Target
from labkit.load.exchange import Exchange
from labkit.load.records import RecordBuilder, RequestRecord
from labkit.load.schedules import Chain, Plan, Planned

__all__ = ["run_blocking"]

_CAUSES = {
    errno.ECONNREFUSED: "refused", errno.ECONNRESET: "reset", errno.EPIPE: "reset",
    errno.EMFILE: "too many open files", errno.ETIMEDOUT: "connect timeout", errno.EHOSTUNREACH: "unreachable",
}  # fmt: skip
_PAUSE_S = 0.1  # of a client whose request failed


def run_blocking(
    url: str,
    plan: Plan,
    target: Target,
    *,
    limits: Limits | None = None,
    headers: Mapping[str, str] | None = None,
    start_s: float | None = None,
    on_record: Callable[[RequestRecord], None] | None = None,
) -> ClientRun:
    """Follow a plan and return what happened, as `run_client` does; every failure is in the records.

    `start_s`: the instant of `time.monotonic` at which the plan begins (default: now). `on_record` is called for every
    record when its request has ended, from the thread that sent it.
    """
    run = _Run(_Address(url, headers or {}), plan, target, limits or Limits(), on_record)
    return run.run(time.monotonic() if start_s is None else start_s)


class _Address:
    """Where requests go, and what stands above each of them."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        address = urlsplit(url if "://" in url else f"http://{url}")
        if address.scheme not in ("http", "https") or not address.hostname:
            raise LabkitError(f"{url!r} is no address of a server.", next_step="write http://HOST:PORT.")
        self.host, self.port = address.hostname, address.port or (443 if address.scheme == "https" else 80)
        self.prefix = address.path.rstrip("/").removesuffix("/v1")
        self.context = ssl.create_default_context() if address.scheme == "https" else None
        lines = {"Host": address.netloc.rpartition("@")[2], "Content-Type": "application/json",
                 "Accept": "text/event-stream", **headers}  # fmt: skip
        self.head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())

    def write(self, path: str, body: bytes) -> bytes:
        head = f"POST {self.prefix}{path} HTTP/1.1\r\n{self.head}Content-Length: {len(body)}\r\n\r\n"
        return head.encode("latin-1") + body

    def connect(self, timeout_s: float) -> socket.socket:
        connection = socket.create_connection((self.host, self.port), timeout=timeout_s)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.context.wrap_socket(connection, server_hostname=self.host) if self.context else connection


class _Run:
    def __init__(self, address, plan, target, limits, on_record) -> None:
        self.address, self.plan, self.target, self.limits, self.on_record = address, plan, target, limits, on_record
        self.idle: list[socket.socket] = []
        self.records: list[RequestRecord] = []
        self.lock, self.is_over, self.num_running = threading.Lock(), threading.Event(), 0
        self.gate = threading.Semaphore(plan.max_concurrency) if plan.max_concurrency else None

    def run(self, start_s: float) -> ClientRun:
        self.start_s = start_s
        self.deadline_s = start_s + (self.limits.run_s if self.limits.run_s is not None else 10.0**9)
        watch = _Watch(self)
        watcher = threading.Thread(target=watch.run, daemon=True)
        watcher.start()
        threads = []
        for chain in sorted(self.plan.chains, key=lambda chain: chain.start_s):
            first = chain.requests[0]
            body = self.target.encode(first)
            self.sleep_until(start_s + chain.start_s)
            thread = threading.Thread(target=self.follow, args=(chain, first, body), daemon=True)
            thread.start()
            threads.append(thread)
        for thread in threads:
            thread.join()
        self.is_over.set()
        watcher.join()
        for connection in self.idle:
            connection.close()
        is_cut = any(record.cause == "run deadline" for record in self.records)
        records = sorted(self.records, key=lambda record: record.number)
        return ClientRun(tuple(records), watch.finish(), "run deadline" if is_cut else "complete", start_s)

    def follow(self, chain: Chain, planned: Planned, body: bytes) -> None:
        """Send the requests of one chain, each after the end of the one before."""
        scheduled_s = chain.start_s
        for k in range(1, len(chain.requests) + 1):
            if self.gate:
                with self.gate:
                    is_good = self.send(chain, planned, scheduled_s, body)
            else:
                is_good = self.send(chain, planned, scheduled_s, body)
            if k == len(chain.requests):
                return
            planned = chain.requests[k]
            scheduled_s = time.monotonic() - self.start_s + max(planned.think_s, 0.0 if is_good else _PAUSE_S)
            if self.plan.duration_s is not None and scheduled_s >= self.plan.duration_s:
                return
            body = self.target.encode(planned)
            self.sleep_until(self.start_s + scheduled_s)

    def send(self, chain: Chain, planned: Planned, scheduled_s: float, body: bytes) -> bool:
        exchange = Exchange(time.monotonic)
        exchange.sent_s = time.monotonic()
        give_up_s = min(exchange.sent_s + self.limits.request_s, self.deadline_s)
        self.num_running += 1
        try:
            data = self.address.write(self.target.path, body)
            self.exchange(exchange, data, give_up_s)
            is_stale = exchange.failure and exchange.failure[0] in ("reset", "cut") and exchange.connected_s is None
            if is_stale and not exchange.has_read:  # the server had closed a kept connection
                exchange.restart()
                self.exchange(exchange, data, give_up_s, is_fresh=True)
        finally:
            self.num_running -= 1
        connected_s, is_exact = exchange.connected_s, self.target.api == "completions"
        builder = RecordBuilder(exchange.http, start_s=self.start_s)
        builder.feed(exchange.bodies)
        record = builder.finish(
            number=planned.number, scheduled_s=scheduled_s, sent_s=exchange.sent_s, end_s=exchange.end_s,
            failure=exchange.failure, asked_prompt_tokens=planned.prompt.num_tokens if is_exact else None,
            asked_output_tokens=planned.num_output_tokens if self.target.is_fixed_length else None,
            connect_s=None if connected_s is None else connected_s - exchange.sent_s, session=chain.number,
            turn=planned.turn,
        )  # fmt: skip
        with self.lock:
            self.records.append(record)
        if self.on_record:
            self.on_record(record)
        return record.is_good

    def exchange(self, exchange: Exchange, data: bytes, give_up_s: float, *, is_fresh: bool = False) -> None:
        connection = None
        try:
            connection = None if is_fresh or not self.idle else self.idle.pop()
            if connection is None:
                connection = self.address.connect(max(0.001, give_up_s - time.monotonic()))
                exchange.connected_s = time.monotonic()
            connection.settimeout(max(0.001, give_up_s - time.monotonic()))
            connection.sendall(data)
            while not exchange.is_over:
                connection.settimeout(max(0.001, give_up_s - time.monotonic()))
                if piece := connection.recv(262144):
                    exchange.take(piece)
                else:
                    exchange.close()
        except TimeoutError:
            cause = "run deadline" if give_up_s == self.deadline_s else "request deadline"
            exchange.fail(cause, "no end of the answer in time")
        except OSError as error:
            exchange.fail(_CAUSES.get(error.errno, "connection"), str(error))
        finally:
            is_clean = exchange.failure is None and exchange.http.is_complete and not exchange.http.rest
            if connection is not None:
                if is_clean and exchange.http.keeps_alive:
                    self.idle.append(connection)
                else:
                    connection.close()

    @staticmethod
    def sleep_until(at_s: float) -> None:
        while (left_s := at_s - time.monotonic()) > 0:
            time.sleep(left_s)


class _Watch:
    """Counts how late a timer is and what is in flight, every 10 ms; ticks that a stall swallowed are counted too."""

    def __init__(self, run: _Run) -> None:
        self.owner, self.delays_s, self.total = run, [], 0
        self.begin_s, self.cpu_s = time.monotonic(), time.process_time()

    def run(self) -> None:
        due_s = self.begin_s + TICK_S
        while not self.owner.is_over.is_set():
            _Run.sleep_until(due_s)
            now_s = time.monotonic()
            while due_s <= now_s:
                self.delays_s.append(now_s - due_s)
                self.total += self.owner.num_running
                due_s += TICK_S

    def finish(self) -> ClientHealth:
        window_s = time.monotonic() - self.begin_s
        share = (time.process_time() - self.cpu_s) / window_s if window_s > 0 else 0.0
        return ClientHealth(tuple(self.delays_s), self.total / max(1, len(self.delays_s)), share, window_s)
