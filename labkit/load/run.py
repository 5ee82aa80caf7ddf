"""How is a load run started? `run_load`: check, run, judge, and hand over one `LoadResult`.

result = run_load(server.base_url, plan, model=server.model, slo={"ttft": 0.5})
print(format_report(result))
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import numpy as np

from labkit.errors import LabkitError
from labkit.load.client import ClientRun, Limits, Target, run_client
from labkit.load.journal import RequestJournal
from labkit.load.loop import run_precise
from labkit.load.metrics import estimate_metrics
from labkit.load.records import RequestRecord
from labkit.load.report import Ceiling, LoadResult
from labkit.load.sampling import GpuReader, Sampling, run_sampling
from labkit.load.schedules import Plan
from labkit.load.target import encode_bodies
from labkit.load.transport import HttpTransport, check_descriptors
from labkit.load.verdict import check_client

__all__ = ["estimate_connections", "find_ceiling", "read_slo", "run_load"]

_LEAD_S = 0.1  # from the end of the preparations to the start of the plan
_LOCAL = {"localhost", "127.0.0.1", "::1"}


def run_load(
    url: str,
    plan: Plan,
    *,
    model: str,
    api: str = "completions",
    slo: str | Mapping[str, float] | None = None,
    limits: Limits | None = None,
    headers: Mapping[str, str] | None = None,
    extra: Mapping[str, object] | None = None,
    is_fixed_length: bool = True,
    num_workers: int = 1,
    warmup: Plan | None = None,
    folder: str | Path | None = None,
    price_usd_per_hour: float | None = None,
    on_progress: Callable[[Mapping[str, float]], None] | None = None,
) -> LoadResult:
    """Run a plan against a server and return what was measured; Ctrl-C ends it early and keeps what was done.

    `slo`: seconds by name; "ttft" and "e2e" count from the schedule in an open loop. `warmup`: a plan that is run first
    and not measured (draw it with another seed: a measured prompt must not be in a warm cache). `folder`:
    requests.jsonl is written there while the run goes on. `headers` (an API key) are sent and never kept.
    `on_progress` is called about once a second with seconds, done and failed. Raises LabkitError before the start for
    what cannot work (too few file descriptors, an unknown host, a wrong SLO); after the start every failure is in the
    result.
    """
    limits, slo = limits or Limits(), read_slo(slo or {}, loop=plan.loop)
    if api not in ("completions", "chat"):
        raise LabkitError(f"{api!r} is no API.", next_step='use "completions" or "chat".')
    if not plan.chains:
        raise LabkitError("The plan has no request.", next_step="Ask for a higher rate or a longer duration.")
    check_descriptors(math.ceil(estimate_connections(plan, limits) / num_workers))
    secrets = tuple(part for text in (headers or {}).values() for part in text.split() if len(part) >= 6)
    target = Target(model, api, is_fixed_length, dict(extra or {}), secrets)
    journal = RequestJournal(Path(folder) / "requests.jsonl") if folder else None
    problems: tuple[str, ...] = ()
    try:
        if warmup is not None:
            run_precise(run_client(warmup, target, HttpTransport(url, headers=headers), limits=limits))
        if num_workers > 1:
            from labkit.load.workers import run_workers

            runs, sampling, problems = run_workers(
                url, plan, target, limits, headers=headers, num_workers=num_workers, journal=journal,
                on_progress=on_progress,
            )  # fmt: skip
        else:
            run, sampling = run_precise(_run_here(url, plan, target, limits, headers, journal, on_progress))
            runs = [run]
    finally:
        if journal:
            journal.close()
    if journal and journal.problem:
        problems += (f"{journal.problem}; {journal.num_written} requests are in it",)
    records = tuple(sorted((r for run in runs for r in run.records), key=lambda record: record.number))
    if not records:
        raise LabkitError("The run was ended before its first request.", next_step="Let it run longer.")
    described = _describe(url, target, limits) | {"num_warmup": warmup.num_requests if warmup else 0}
    return LoadResult(
        described, plan.to_dict(), records, estimate_metrics(records, slo=slo),
        check_client(runs) if not problems else _spoil(check_client(runs), problems), slo,
        next((run.end for run in runs if run.end != "complete"), "complete"), sampling, find_ceiling(),
        price_usd_per_hour, num_workers, problems, _probe_provenance(),
    )  # fmt: skip


def read_slo(slo: str | Mapping[str, float], *, loop: str) -> dict[str, float]:
    """Read SLOs from "ttft=0.5,tpot=0.03" or a mapping; in an open loop "ttft" and "e2e" count from the schedule."""
    if isinstance(slo, str):
        pairs = [part.partition("=") for part in slo.split(",") if part.strip()]
        try:
            slo = {name.strip(): float(value) for name, _, value in pairs}
        except ValueError:
            raise LabkitError(f"{slo!r} is no SLO.", next_step='write seconds: "ttft=0.5,tpot=0.03".') from None
    known = ("ttft", "ttft_from_schedule", "first_answer", "tpot", "e2e", "e2e_from_schedule")
    for name, limit_s in slo.items():
        if name not in known or not limit_s > 0:
            raise LabkitError(f"{name}={limit_s} is no SLO.", next_step=f"use seconds for {', '.join(known)}.")
    moved = {"ttft": "ttft_from_schedule", "e2e": "e2e_from_schedule"} if loop == "open" else {}
    return {moved.get(name, name): float(limit_s) for name, limit_s in slo.items()}


def estimate_connections(plan: Plan, limits: Limits) -> int:
    """Return how many connections a plan may need at once, if every answer takes as long as it may."""
    starts = np.sort([chain.start_s for chain in plan.chains])
    ends = np.searchsorted(starts, starts + limits.request_s, side="right")
    most = int((ends - np.arange(len(starts))).max(initial=0))
    if any(len(chain.requests) > 1 for chain in plan.chains):
        most = len(plan.chains)  # a chain lives on
    return min(most, plan.max_concurrency or most)


def find_ceiling() -> Ceiling | None:
    """Return what `labkit bench-client` measured last on this machine; None where it never did."""
    from labkit.hardware import probe_machine
    from labkit.results import load_records

    with contextlib.suppress(LabkitError, OSError):
        machine = probe_machine().to_dict()
        same = [
            record
            for record in load_records(name="bench-client")
            if record.host["cpu"]["name"] == machine["cpu"]["name"]
            and record.host["cpu"]["num_cores"] == machine["cpu"]["num_cores"]
        ]
        if same:
            last = same[-1]
            return Ceiling(last.samples["req_per_s"][0], last.samples["num_chunks_per_s"][0], last.time)
    return None


async def _run_here(url, plan, target, limits, headers, journal, on_progress) -> tuple[ClientRun, Sampling]:
    """Run in this process."""
    loop, stop, is_over = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    counts = {"done": 0, "failed": 0}

    def take(record: RequestRecord) -> None:
        counts["done"] += 1
        counts["failed"] += bool(record.cause)
        if journal:
            journal.add(record)

    bodies = encode_bodies(plan, target)
    pages = HttpTransport(url, headers=headers)
    await pages.start()
    start_s = loop.time() + _LEAD_S
    is_local = (urlsplit(url if "://" in url else f"http://{url}").hostname or "") in _LOCAL
    sampling = asyncio.create_task(run_sampling(pages, is_over, start_s=start_s, gpu=GpuReader() if is_local else None))
    await asyncio.sleep(_LEAD_S / 2)
    ticker = asyncio.create_task(_report_progress(loop, start_s, counts, on_progress)) if on_progress else None
    has_handler = threading.current_thread() is threading.main_thread()
    if has_handler:
        loop.add_signal_handler(signal.SIGINT, stop.set)
    try:
        run = await run_client(
            plan, target, HttpTransport(url, headers=headers), limits=limits, start_s=start_s, bodies=bodies, stop=stop,
            on_record=take,
        )  # fmt: skip
    finally:
        if has_handler:
            loop.remove_signal_handler(signal.SIGINT)
        is_over.set()
        if ticker:
            ticker.cancel()
    found = await sampling
    await pages.close()
    return run, found


async def _report_progress(loop, start_s, counts, on_progress) -> None:
    while True:
        await asyncio.sleep(1.0)
        on_progress({"seconds": loop.time() - start_s, **counts})


def _describe(url: str, target: Target, limits: Limits) -> dict:
    """What was asked, without a password in the address or anything that looks like a secret."""
    from labkit.results.redaction import find_secrets

    address = urlsplit(url if "://" in url else f"http://{url}")
    place = address.netloc.rpartition("@")[2]
    extra = {key: "[redacted]" if list(find_secrets({key: value}, place="")) else value
             for key, value in target.extra.items()}  # fmt: skip
    return {
        "url": urlunsplit((address.scheme, place, address.path, "", "")), "model": target.model, "api": target.api,
        "is_fixed_length": target.is_fixed_length, "extra": extra, "request_limit_s": limits.request_s,
        "run_limit_s": limits.run_s, "max_retries": limits.max_retries,
    }  # fmt: skip


def _spoil(verdict, problems: tuple[str, ...]):
    """A run with a problem of its own is not valid, whatever its numbers."""
    import dataclasses

    return dataclasses.replace(verdict, is_valid=False, reasons=(*verdict.reasons, *problems))


def _probe_provenance() -> dict:
    from labkit.results.provenance import probe_provenance

    return probe_provenance()
