"""How fast is the client itself? Its ceiling on this machine, against a server that does nothing.

The ceiling is the highest request rate at which the 99th percentile of the send lag stays under 10 ms and the client's
thread, all its reading included, needs no more than one processor. Also measured: processor time per request (which
other work on the machine hardly changes), and the error of chunk times with many streams at once. With
`kinds=("labkit", "aiohttp")` a plain aiohttp streaming client is measured in the same run, in turns.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from labkit.errors import InstallError, LabkitError
from labkit.load.client import Limits, Target, run_client
from labkit.load.loop import run_precise
from labkit.load.noop import read_write_times, run_noop
from labkit.load.search import Bisection
from labkit.load.transport import HttpTransport
from labkit.workload import LoadPlan, draw_closed_plan, draw_open_plan

__all__ = ["ClientProbe", "StreamProbe", "measure_ceilings", "measure_client", "measure_streams"]

MAX_LAG_S = 0.010
_PROMPT_TOKENS = 32


@dataclass(frozen=True, slots=True)
class ClientProbe:
    """One try of a client at one rate.

    Attributes:
        rate_per_s: requests per second that were due.
        num_sent: requests sent.
        num_good: whole answers.
        num_chunks: chunks in them.
        lag_p50_s: median of the send lag.
        lag_p99_s: 99th percentile of the send lag.
        cpu_per_request_s: processor time of the client's thread per request.
        seconds: wall time of the try.
    """

    rate_per_s: float
    num_sent: int
    num_good: int
    num_chunks: int
    lag_p50_s: float
    lag_p99_s: float
    cpu_per_request_s: float
    seconds: float

    @property
    def is_on_time(self) -> bool:
        """Whether the client held the rate: p99 lag under 10 ms, every answer whole, and it could go on like this.

        The last because labkit's client may read answers after the run, so a short try could hide that reading them
        takes more processor time than there is.
        """
        can_go_on = self.cpu_per_request_s * self.rate_per_s < 1
        return self.lag_p99_s < MAX_LAG_S and self.num_good == self.num_sent > 0 and can_go_on


@dataclass(frozen=True, slots=True)
class StreamProbe:
    """Many streams at once: how much later a chunk was stamped than written.

    Attributes:
        num_streams: streams at once.
        num_chunks: chunks in all.
        error_p50_s: median of stamped minus written.
        error_p99_s: its 99th percentile.
    """

    num_streams: int
    num_chunks: int
    error_p50_s: float
    error_p99_s: float


def measure_client(url: str, rate_per_s: float, *, seconds: float = 1.5, kind: str = "labkit") -> ClientProbe:
    """Send `rate_per_s` (Poisson) for a while and return what the client did; `kind`: "labkit" or "aiohttp"."""
    plan = draw_open_plan(rate_per_s=rate_per_s, duration_s=seconds, prompt=_PROMPT_TOKENS, output=16)
    run = _run_labkit if kind == "labkit" else _run_aiohttp
    begin_s, cpu_s = time.perf_counter(), time.thread_time()
    lags, num_good, num_chunks = run(url, plan)
    cpu_s, wall_s = time.thread_time() - cpu_s, time.perf_counter() - begin_s
    p50, p99 = (float(np.percentile(lags, q)) for q in (50, 99)) if lags else (0.0, 0.0)
    return ClientProbe(rate_per_s, len(lags), num_good, num_chunks, p50, p99, cpu_s / max(1, len(lags)), wall_s)


def measure_ceilings(
    *,
    kinds: tuple[str, ...] = ("labkit",),
    num_chunks: int = 16,
    gap_s: float = 0.005,
    seconds: float = 1.5,
    start_per_s: float = 100.0,
    highest_per_s: float = 20_000.0,
    on_probe: Callable[[str, ClientProbe], None] | None = None,
) -> dict[str, list[ClientProbe]]:
    """Search for each client's ceiling, in turns, against one no-op server; returns every probe of each client.

    The ceiling is the fastest probe that was on time (`is_on_time`).
    """
    searches = {kind: Bisection(start_per_s, lowest=1.0, highest=highest_per_s) for kind in kinds}
    probes: dict[str, list[ClientProbe]] = {kind: [] for kind in kinds}
    with run_noop(num_chunks=num_chunks, gap_s=gap_s) as url:
        for kind in kinds:
            measure_client(url, 50.0, seconds=0.5, kind=kind)  # the first connections and imports
        while any(search.value is not None for search in searches.values()):
            for kind, search in searches.items():
                if search.value is not None:
                    probe = measure_client(url, search.value, seconds=seconds, kind=kind)
                    if not probe.is_on_time:  # once more: another process may have had the processor
                        again = measure_client(url, search.value, seconds=seconds, kind=kind)
                        probe = again if again.is_on_time else probe
                    search.tell(probe.is_on_time)
                    probes[kind].append(probe)
                    if on_probe:
                        on_probe(kind, probe)
    return probes


def measure_streams(*, num_streams: int = 500, num_chunks: int = 100, gap_s: float = 0.02) -> StreamProbe:
    """Hold many streams at once and return the error of the chunk times: stamped by the client minus written."""
    plan = draw_closed_plan(num_clients=num_streams, requests_per_client=1, prompt=_PROMPT_TOKENS, output=num_chunks)
    # Not all at once: a second for the connections, and then all are streaming.
    chains = tuple(dataclasses.replace(chain, start_s=chain.number / num_streams) for chain in plan.chains)
    plan = dataclasses.replace(plan, chains=chains)
    with run_noop(num_chunks=num_chunks, gap_s=gap_s) as url:
        transport = _Keeping(url)
        run_precise(run_client(plan, Target("noop"), transport, limits=Limits(60.0)))
    errors = [
        at_s - written_s for bodies in transport.kept for at_s, body in bodies for written_s in read_write_times(body)
    ]
    if not errors:
        raise LabkitError("No stream was answered.", next_step="Try again when the machine is less busy.")
    p50, p99 = (float(np.percentile(errors, q)) for q in (50, 99))
    return StreamProbe(num_streams, len(errors), p50, p99)


class _Keeping(HttpTransport):
    """Keeps the bodies of the answers: the no-op server's stamps are in them."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.kept: list = []

    async def send(self, exchange, path: str, body: bytes) -> None:
        await super().send(exchange, path, body)
        self.kept.append(list(exchange.bodies))


def _run_labkit(url: str, plan: LoadPlan) -> tuple[list[float], int, int]:
    run = run_precise(run_client(plan, Target("noop"), HttpTransport(url), limits=Limits(20.0)))
    good = [record for record in run.records if record.is_good]
    return [r.lag_s for r in run.records if r.sent_s is not None], len(good), sum(len(r.chunks) for r in good)


def _run_aiohttp(url: str, plan: LoadPlan) -> tuple[list[float], int, int]:
    """A plain client like those of most tools: one session, one task per request, each line parsed when it comes."""
    try:
        import aiohttp
    except ImportError:
        raise InstallError("aiohttp is not installed.", next_step="run `pip install aiohttp`.") from None
    target = Target("noop")

    async def main() -> tuple[list[float], int, int]:
        loop, lags, chunks, good = asyncio.get_running_loop(), [], [], []

        async def ask(session, request, body, due_s) -> None:
            await asyncio.sleep(max(0.0, due_s - loop.time()))
            sent_s = loop.time()
            lags.append(sent_s - due_s)
            stamps = []
            async with session.post(
                url + target.path, data=body, headers={"Content-Type": "application/json"}
            ) as reply:
                async for line in reply.content:
                    line = line.strip()
                    if not line.startswith(b"data: "):
                        continue
                    if line == b"data: [DONE]":
                        good.append(request.number)
                        continue
                    at_s = loop.time()
                    if json.loads(line[6:])["choices"][0]["text"]:
                        stamps.append(at_s)
            chunks.append(len(stamps))

        timeout = aiohttp.ClientTimeout(total=20)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
            start_s, tasks = loop.time(), []
            for chain in plan.chains:
                request = chain.requests[0]
                body = target.encode(request)
                due_s = start_s + chain.start_s
                await asyncio.sleep(max(0.0, due_s - loop.time()))
                tasks.append(asyncio.create_task(ask(session, request, body, due_s)))
            await asyncio.gather(*tasks, return_exceptions=True)
        return lags, len(good), sum(chunks)

    return asyncio.run(main())
