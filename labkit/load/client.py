"""Who sends the requests? An asyncio client that follows a plan and stamps every read.

Absolute times only: a request that is due at 3.2 s is sent at 3.2 s, or as soon after it as the client can, and its
lateness is measured; nothing is shifted after a stall. The clock is the event loop's (monotonic), the transport is
given: in a `VirtualLoop` with a `SimulatedServer` a run is exact and takes no time.

Meanwhile the client watches itself: how late its own timer is, how many requests are in flight, how much processor
time its thread uses. `labkit.load.verdict` judges that.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import gc
import itertools
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from labkit.load.records import RecordBuilder, RequestRecord
from labkit.load.transport import Exchange
from labkit.workload import Chain, LoadPlan, Request

__all__ = ["ClientHealth", "ClientRun", "Limits", "Target", "encode_bodies", "run_client"]

_TICK_S = 0.01
_BUSY_S = 0.001  # if a timer is later than this, finished answers wait to be read; sending does not wait
_MAX_UNREAD_BYTES = _MAX_PREPARED_BYTES = 64 * 2**20
_RETRIED = ("http 429", "http 503", "refused")
_PAUSE_S = 0.1  # of a client whose request failed: a server that refuses at once must not be flooded


@dataclass(frozen=True, slots=True)
class Target:
    """What to ask the server for.

    Attributes:
        model: name of the model.
        api: "completions" or "chat"; with chat a prompt is words instead of token ids, so its length is not exact.
        is_fixed_length: the server must make exactly the planned number of tokens (`ignore_eos`, `min_tokens`).
        extra: more fields of every request.
        secrets: texts that a server's error message must not carry into a record.
        counts_silent: a token without text is a chunk too (see `AnswerReader`).
    """

    model: str
    api: str = "completions"
    is_fixed_length: bool = True
    extra: Mapping[str, object] = field(default_factory=dict)
    secrets: tuple[str, ...] = field(default=(), repr=False)
    counts_silent: bool = False

    @property
    def path(self) -> str:
        """The path of the API."""
        return "/v1/chat/completions" if self.api == "chat" else "/v1/completions"

    def encode(self, request: Request) -> bytes:
        """Return the body of a request, as JSON."""
        ids = list(request.prompt_ids)
        num = request.num_output_tokens
        body = {"model": self.model, "temperature": 0, "max_tokens": num, "stream": True}
        if self.api == "chat":
            body["messages"] = [{"role": "user", "content": " ".join(f"w{token}" for token in ids)}]
        else:
            body["prompt"] = ids
        if self.is_fixed_length:
            body |= {"min_tokens": num, "ignore_eos": True}
        body["stream_options"] = {"include_usage": True}
        if self.is_fixed_length:  # servers that know one know the other
            body["stream_options"]["continuous_usage_stats"] = True
        return json.dumps(body | dict(self.extra), separators=(",", ":"), default=int).encode()


@dataclass(frozen=True, slots=True)
class Limits:
    """When to give up.

    Attributes:
        request_s: seconds for one request.
        run_s: seconds for the whole run; None for no limit.
        max_retries: how often a refused request is sent again.
    """

    request_s: float = 300.0
    run_s: float | None = None
    max_retries: int = 0


@dataclass(frozen=True, slots=True)
class ClientHealth:
    """What the client saw of itself.

    Attributes:
        delays_s: how late its timer was, every 10 ms.
        concurrency: mean number of requests in flight, counted at those ticks.
        cpu_fraction: processor time of its thread over wall time.
        window_s: seconds from the first tick to the last.
    """

    delays_s: tuple[float, ...] = ()
    concurrency: float = 0.0
    cpu_fraction: float = 0.0
    window_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ClientRun:
    """What one client did.

    Attributes:
        records: in order of their numbers.
        health: what it saw of itself.
        end: "complete", "interrupted" or "run deadline".
        start_s: start of the run on the loop's clock.
    """

    records: tuple[RequestRecord, ...]
    health: ClientHealth
    end: str
    start_s: float


def encode_bodies(plan: LoadPlan, target: Target) -> dict[int, bytes]:
    """Encode the first request of each chain before the run, by the chain's number, up to 64 MiB."""
    bodies, num_bytes = {}, 0
    for chain in sorted(plan.chains, key=lambda chain: chain.start_s):
        if num_bytes > _MAX_PREPARED_BYTES:
            break
        bodies[chain.number] = target.encode(chain.requests[0])
        num_bytes += len(bodies[chain.number])
    return bodies


async def run_client(
    plan: LoadPlan,
    target: Target,
    transport,
    *,
    limits: Limits | None = None,
    start_s: float | None = None,
    bodies: Mapping[int, bytes] | None = None,
    stop: asyncio.Event | None = None,
    on_record: Callable[[RequestRecord], None] | None = None,
    count_tokens: Callable[[str], int] | None = None,
) -> ClientRun:
    """Follow a plan and return what happened; only a wrong call raises.

    `transport`: an `HttpTransport`, or a `SimulatedServer`. `start_s`: when the plan begins, on the
    loop's clock (default: now; workers share one). `stop`: set it to end the run early; what was done is kept.
    `on_record` is called with every record soon after its request has ended. `bodies`: from `encode_bodies`.
    """
    bodies = encode_bodies(plan, target) if bodies is None and start_s is None else bodies or {}
    run = _Run(plan, target, transport, limits or Limits(), on_record, count_tokens, bodies)
    await transport.start()
    # A full collection over a notebook's objects would stop the loop for a tenth of a second (not in virtual time).
    frozen = gc.isenabled() and not getattr(transport, "is_simulated", False)
    if frozen:
        gc.collect()
        gc.freeze()
        gc.disable()
    try:
        return await run.run(start_s, stop or asyncio.Event())
    finally:
        if frozen:
            gc.enable()
            gc.unfreeze()
        await transport.close()


class _Run:
    def __init__(self, plan, target, transport, limits, on_record, count_tokens, bodies) -> None:
        self.plan, self.target, self.transport, self.limits = plan, target, transport, limits
        self.on_record, self.count_tokens, self.bodies = on_record, count_tokens, bodies
        self.records: list[RequestRecord] = []
        self.finished: collections.deque = collections.deque()
        self.has_finished = asyncio.Event()
        self.num_running, self.end = 0, "complete"
        self.late_s, self.num_unread = 0.0, 0  # of the client's own timer; bytes of finished answers, not yet read
        self.tasks: set[asyncio.Task] = set()
        self.started: set[int] = set()  # chains
        self.gate = asyncio.Semaphore(plan.max_concurrency) if plan.max_concurrency else None
        self.loop = asyncio.get_running_loop()

    async def run(self, start_s: float | None, stop: asyncio.Event) -> ClientRun:
        self.start_s = self.loop.time() if start_s is None else start_s
        self.deadline_s = math.inf if self.limits.run_s is None else self.start_s + self.limits.run_s
        watch = _Watch(self)
        helpers = [asyncio.create_task(watch.tick()), asyncio.create_task(self.settle())]
        main, stopped = asyncio.create_task(self.dispatch()), asyncio.create_task(stop.wait())
        left_s = None if math.isinf(self.deadline_s) else self.deadline_s - self.loop.time()
        await asyncio.wait({main, stopped}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        if not main.done():
            self.end = "interrupted" if stop.is_set() else "run deadline"
            for task in (main, *self.tasks):
                task.cancel()
        await asyncio.gather(main, *self.tasks, return_exceptions=True)
        if main.done() and not main.cancelled() and main.exception():
            raise main.exception()
        health = watch.stop()
        self.late_s = 0.0  # from here on there is nothing to be late for
        self.add_unsent()
        stopped.cancel()
        helpers[0].cancel()
        self.finished.append(None)
        self.has_finished.set()
        await helpers[1]
        await asyncio.gather(stopped, *helpers, return_exceptions=True)
        records = sorted(self.records, key=lambda record: record.number)
        return ClientRun(tuple(records), health, self.end, self.start_s)

    async def dispatch(self) -> None:
        """Start every chain at its time; its first request is encoded before that."""
        for chain in sorted(self.plan.chains, key=lambda chain: chain.start_s):
            first = chain.requests[0]
            body = self.bodies.get(chain.number) or self.target.encode(first)
            await self.sleep_until(self.start_s + chain.start_s)
            task = asyncio.create_task(self.follow(chain, first, body))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        while self.tasks:
            await asyncio.wait(set(self.tasks))

    async def follow(self, chain: Chain, request: Request, body: bytes) -> None:
        """Send the requests of one chain, each after the end of the one before."""
        scheduled_s = chain.start_s
        for k in itertools.count(1):
            if self.gate:
                async with self.gate:
                    is_good = await self.send(chain, request, scheduled_s, body)
            else:
                is_good = await self.send(chain, request, scheduled_s, body)
            if k >= len(chain.requests):
                return
            request = chain.requests[k]
            scheduled_s = self.loop.time() - self.start_s + max(request.think_s, 0.0 if is_good else _PAUSE_S)
            if self.plan.duration_s is not None and scheduled_s >= self.plan.duration_s:
                return
            body = self.target.encode(request)
            await self.sleep_until(self.start_s + scheduled_s)

    async def send(self, chain: Chain, request: Request, scheduled_s: float, body: bytes) -> bool:
        """Send one request, with the retries that were asked for, and hand the exchange over; False if it failed."""
        if self.loop.time() >= self.deadline_s:  # too late to send anything: `run` is about to end this task
            await self.loop.create_future()
        self.started.add(chain.number)
        sent_s, notes = self.loop.time(), []
        give_up_s = sent_s + self.limits.request_s
        self.num_running += 1
        exchange = Exchange(self.loop.time)
        try:
            for num_retries in itertools.count():
                exchange = Exchange(self.loop.time)
                exchange.sent_s = sent_s
                try:
                    async with asyncio.timeout_at(min(give_up_s, self.deadline_s)):
                        await self.transport.send(exchange, self.target.path, body)
                except TimeoutError:
                    is_own = give_up_s <= self.deadline_s
                    limit = f"no end after {self.limits.request_s:g} s" if is_own else "the time for the run was over"
                    exchange.fail("request deadline" if is_own else "run deadline", limit)
                cause = exchange.failure[0] if exchange.failure else f"http {exchange.http.status}"
                if cause not in _RETRIED or num_retries >= self.limits.max_retries:
                    break
                wait_s = _read_retry_after(exchange.http.headers, 0.5 * 2**num_retries)
                if self.loop.time() + wait_s >= min(give_up_s, self.deadline_s):
                    break
                notes.append(f"retry {num_retries + 1} after {cause} and {wait_s:g} s")
                await self.sleep_until(self.loop.time() + wait_s)
        except asyncio.CancelledError:
            exchange.fail("interrupted" if self.end == "complete" else self.end)
            raise
        finally:
            self.num_running -= 1
            self.finished.append((chain, request, scheduled_s, sent_s, exchange, notes))
            self.num_unread += exchange.num_bytes
            self.has_finished.set()
        return exchange.failure is None and exchange.http.status == 200

    async def settle(self) -> None:
        """Turn finished exchanges into records, in slices, while other requests run."""
        while True:
            if not self.finished:
                self.has_finished.clear()
                await self.has_finished.wait()
            if (ended := self.finished.popleft()) is None:  # the run is over
                return
            while self.late_s > _BUSY_S and self.num_unread < _MAX_UNREAD_BYTES:
                await asyncio.sleep(_TICK_S)
            self.num_unread -= ended[4].num_bytes
            await self.settle_one(*ended)

    async def settle_one(self, chain, request, scheduled_s, sent_s, exchange, notes) -> None:
        builder = RecordBuilder(exchange.http, start_s=self.start_s, counts_silent=self.target.counts_silent)
        for bodies in exchange.read_slices():
            builder.feed(bodies)
            await asyncio.sleep(0)
        retries = len(notes)
        if exchange.num_reconnects:
            notes.append("reconnected: the server had closed the connection")
        is_exact = self.target.api == "completions"
        connected_s = exchange.connected_s
        self.add(builder.finish(
            number=request.number, scheduled_s=scheduled_s, sent_s=sent_s, end_s=exchange.end_s,
            failure=exchange.failure, count_tokens=self.count_tokens, notes=notes, num_retries=retries,
            asked_prompt_tokens=len(request.prompt_ids) if is_exact else None,
            asked_output_tokens=request.num_output_tokens if self.target.is_fixed_length else None,
            connect_s=None if connected_s is None or retries else connected_s - sent_s,
            session=chain.number, turn=request.turn,
        ))  # fmt: skip

    def add_unsent(self) -> None:
        """Record what should have been sent before the end and was not."""
        now_s = self.loop.time() - self.start_s
        for chain in self.plan.chains:
            if chain.number not in self.started and chain.start_s <= now_s:
                self.add(RequestRecord(chain.requests[0].number, chain.start_s, cause=self.end, detail="never sent",
                                       session=chain.number))  # fmt: skip

    def add(self, record: RequestRecord) -> None:
        for secret in self.target.secrets if record.detail else ():
            record = dataclasses.replace(record, detail=record.detail.replace(secret, "[redacted]"))
        self.records.append(record)
        if self.on_record:
            self.on_record(record)

    async def sleep_until(self, at_s: float) -> None:
        if at_s > self.loop.time():
            future = self.loop.create_future()
            timer = self.loop.call_at(at_s, lambda: future.done() or future.set_result(None))
            try:
                await future
            finally:
                timer.cancel()


class _Watch:
    """Counts how late a timer is and what is in flight; ticks that a stall swallowed are counted too."""

    def __init__(self, run: _Run) -> None:
        self.run, self.delays_s, self.total = run, [], 0
        self.begin_s, self.cpu_s, self.wall_s = run.loop.time(), time.thread_time(), time.perf_counter()

    async def tick(self) -> None:
        """Tick until it is cancelled."""
        due_s = self.begin_s + _TICK_S
        while True:
            await self.run.sleep_until(due_s)
            now_s = self.run.loop.time()
            self.run.late_s = now_s - due_s
            while due_s <= now_s:
                self.delays_s.append(now_s - due_s)
                self.total += self.run.num_running
                due_s += _TICK_S

    def stop(self) -> ClientHealth:
        """Return what was seen so far."""
        wall_s = time.perf_counter() - self.wall_s
        num, cpu = max(1, len(self.delays_s)), time.thread_time() - self.cpu_s
        window_s = self.run.loop.time() - self.begin_s
        # In virtual time the processor's share of the wall time means nothing.
        share = cpu / wall_s if wall_s > 0 and window_s <= 2 * wall_s else 0.0
        return ClientHealth(tuple(self.delays_s), self.total / num, share, window_s)


def _read_retry_after(headers: Mapping[str, str], default_s: float) -> float:
    text = headers.get("retry-after", "")
    try:
        return max(0.0, float(text))
    except ValueError:
        return default_s
