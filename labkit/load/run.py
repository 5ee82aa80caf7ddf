"""How is a load run started? `run_load`: check, run, judge, and return one `LoadResult`.

    result = run_load(server.base_url, plan, model=server.model, slo={"ttft": 0.5})
    print(format_report(result))

`run_workload` sends a workload to a server of this course, and raises unless the server did exactly what was asked:

    run = run_workload(server, workload.measured)
    run.tok_per_s, [record.ttft_s for record in run.records]
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import numpy as np

from labkit.errors import LabkitError
from labkit.load.client import ClientRun, Limits, Target, encode_bodies, run_client
from labkit.load.loop import run_precise
from labkit.load.metrics import estimate_metrics
from labkit.load.records import RequestJournal, RequestRecord
from labkit.load.report import ClientCeiling, LoadResult
from labkit.load.sampling import Sampling, read_page, sample_server
from labkit.load.transport import HttpTransport, check_descriptors
from labkit.load.verdict import check_client
from labkit.workload import Chain, LoadPlan, Request, Workload, draw_open_plan

__all__ = ["estimate_connections", "find_ceiling", "read_slo", "run_load", "run_workload"]

_LEAD_S = 0.1  # from the end of the preparations to the start of the plan


def run_load(
    url: str,
    plan: LoadPlan,
    *,
    model: str,
    api: str = "completions",
    slo: str | Mapping[str, float] | None = None,
    limits: Limits | None = None,
    headers: Mapping[str, str] | None = None,
    extra: Mapping[str, object] | None = None,
    is_fixed_length: bool = True,
    num_workers: int = 1,
    warmup: LoadPlan | None = None,
    folder: str | Path | None = None,
    price_usd_per_hour: float | None = None,
    on_progress: Callable[[Mapping[str, float]], None] | None = None,
) -> LoadResult:
    """Run a plan against a server and return what was measured; Ctrl-C ends it early and keeps what was done.

    `slo`: seconds by name; "ttft" and "e2e" count from the schedule in an open loop. `warmup`: a plan that is run first
    and not measured (draw it with another seed: a measured prompt must not be in a warm cache). `folder`:
    requests.jsonl is written there while the run goes on. `headers` (an API key) are sent and never kept.
    `on_progress` is called about once a second with seconds, done and failed. Raises LabkitError before the start for
    what cannot work (too few file descriptors, an unknown host, an invalid SLO); after the start every failure is in
    the result.
    """
    limits, slo = limits or Limits(), read_slo(slo or {}, loop=plan.loop)
    if api not in ("completions", "chat"):
        raise LabkitError(f"{api!r} is not an API.", next_step='use "completions" or "chat".')
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
        on_record = journal.add if journal else None
        if num_workers > 1:
            from labkit.load.workers import run_workers

            runs, sampling, problems = run_workers(
                url, plan, target, limits, headers=headers, num_workers=num_workers, on_record=on_record,
                on_progress=on_progress,
            )  # fmt: skip
        else:
            run, sampling = run_precise(
                _run_here(url, plan, target, limits, headers, on_record=on_record, on_progress=on_progress)
            )
            runs = [run]
    finally:
        if journal:
            journal.close()
    if journal and journal.problem:
        problems += (f"{journal.problem}; {journal.num_written} requests are in it",)
    records = tuple(sorted((r for run in runs for r in run.records), key=lambda record: record.number))
    if not records:
        raise LabkitError("The run was ended before its first request.", next_step="Let it run longer.")
    verdict = check_client(runs)
    if problems:  # a run with a problem of its own is not valid, whatever its numbers
        verdict = dataclasses.replace(verdict, is_valid=False, reasons=(*verdict.reasons, *problems))
    from labkit.results.provenance import probe_provenance

    return LoadResult(
        _describe(url, target, limits) | {"num_warmup": warmup.num_requests if warmup else 0}, plan.to_dict(), records,
        estimate_metrics(records, slo=slo), verdict, slo,
        next((run.end for run in runs if run.end != "complete"), "complete"), sampling, find_ceiling(),
        price_usd_per_hour, num_workers, problems, probe_provenance(),
    )  # fmt: skip


def run_workload(
    server,
    requests: Sequence[Request],
    *,
    num_clients: int | None = None,
    timeout_s: float = 300.0,
    memory_interval_s: float = 0.5,
) -> LoadResult:
    """Send each request at its arrival time and return what was measured; raise LabkitError unless all of it is right.

    `server`: anything with `base_url` and `model`; a `labkit.servers.Server` is also asked for its memory, every
    `memory_interval_s`. Greedy, with exactly `num_output_tokens` tokens each. A request that fails, is cut, or whose
    usage differs from what was asked makes the whole run an error. Tokens per chunk come from the server's running
    usage, never from counting chunks; tokens without text count too, because engines are compared by their tokens.

    `num_clients`: a closed loop. Client c sends requests c, c + num_clients, ..., each when the answer to the one
    before has ended; the requests' own arrival times are not used.
    """
    if not requests:
        raise LabkitError("There is no request to send.", next_step="Draw a workload with labkit.workload.")
    if num_clients is not None and num_clients < 1:
        raise LabkitError(f"{num_clients} clients send nothing.", next_step="Give 1 or more.")
    plan = draw_open_plan(Workload("workload", tuple(requests), ()))
    if num_clients is not None:
        numbered = [chain.requests[0] for chain in plan.chains]
        chains = [Chain(client, 0.0, numbered[client::num_clients]) for client in range(num_clients)]
        plan = LoadPlan(tuple(filter(lambda chain: chain.requests, chains)), "closed", f"{num_clients} clients")
    target, limits = Target(server.model, counts_silent=True), Limits(timeout_s)
    run, sampling = run_precise(_run_here(
        server.base_url, plan, target, limits, None, measure_memory=getattr(server, "measure_memory", None),
        interval_s=memory_interval_s,
    ))  # fmt: skip
    if run.end != "complete":
        raise LabkitError(f"The run was cut short ({run.end}).", next_step="Start it again.")
    for record in run.records:
        if problem := _find_difference(record):
            raise LabkitError(
                f"Request {record.number} of {len(requests)} failed: {problem}.",
                next_step="Read the server's log. A run with a failed request is not a run.",
            )
    return LoadResult(
        _describe(server.base_url, target, limits), plan.to_dict(), run.records, estimate_metrics(run.records),
        check_client(run), {}, run.end, sampling,
    )  # fmt: skip


def _find_difference(record: RequestRecord) -> str:
    """Say how a request is not what was asked for; "" if it is."""
    seen = (record.num_prompt_tokens, record.num_output_tokens)
    asked = (record.asked_prompt_tokens, record.asked_output_tokens)
    if not record.is_good:
        return f"{record.cause} ({record.detail})" if record.detail else record.cause
    if "no [DONE]" in record.notes:
        return "the stream ended before [DONE]"
    if record.source != "chunk usage":
        return "the server sends no running usage, so the tokens of a chunk are unknown"
    if wrong := next((note for note in record.notes if note.startswith("usage ")), ""):
        return wrong
    if seen != asked:
        return (
            f"{asked[0]} prompt and {asked[1]} output tokens were asked for, the server counts {seen[0]} and {seen[1]}"
        )
    return ""


def read_slo(slo: str | Mapping[str, float], *, loop: str) -> dict[str, float]:
    """Read SLOs from "ttft=0.5,tpot=0.03" or a mapping; in an open loop "ttft" and "e2e" count from the schedule."""
    if isinstance(slo, str):
        pairs = [part.partition("=") for part in slo.split(",") if part.strip()]
        try:
            slo = {name.strip(): float(value) for name, _, value in pairs}
        except ValueError:
            raise LabkitError(
                f"{slo!r} is not a valid SLO.", next_step='write seconds: "ttft=0.5,tpot=0.03".'
            ) from None
    known = ("ttft", "ttft_from_schedule", "first_answer", "tpot", "e2e", "e2e_from_schedule")
    for name, limit_s in slo.items():
        if name not in known or not limit_s > 0:
            raise LabkitError(f"{name}={limit_s} is not a valid SLO.", next_step=f"use seconds for {', '.join(known)}.")
    moved = {"ttft": "ttft_from_schedule", "e2e": "e2e_from_schedule"} if loop == "open" else {}
    return {moved.get(name, name): float(limit_s) for name, limit_s in slo.items()}


def estimate_connections(plan: LoadPlan, limits: Limits) -> int:
    """Return how many connections a plan may need at once, if every answer takes as long as it may."""
    starts = np.sort([chain.start_s for chain in plan.chains])
    ends = np.searchsorted(starts, starts + limits.request_s, side="right")
    most = int((ends - np.arange(len(starts))).max(initial=0))
    if any(len(chain.requests) > 1 for chain in plan.chains):
        most = len(plan.chains)  # a chain lives on
    return min(most, plan.max_concurrency or most)


def find_ceiling() -> ClientCeiling | None:
    """Return what `labkit bench-client` measured last on this machine; None if it never did."""
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
            return ClientCeiling(last.samples["req_per_s"][0], last.samples["num_chunks_per_s"][0], last.time)
    return None


async def _run_here(
    url, plan, target, limits, headers, *, on_record=None, on_progress=None, **sampling_options
) -> tuple[ClientRun, Sampling]:
    """Run in this process."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    counts = {"done": 0, "failed": 0}

    def take(record: RequestRecord) -> None:
        counts["done"] += 1
        counts["failed"] += bool(record.cause)
        if on_record:
            on_record(record)

    async def report_progress() -> None:
        while True:
            await asyncio.sleep(1.0)
            on_progress({"seconds": loop.time() - start_s, **counts})

    bodies = encode_bodies(plan, target)
    pages = HttpTransport(url, headers=headers)
    await pages.start()
    before = await read_page(pages)  # nothing of the run may be in it
    start_s = loop.time() + _LEAD_S
    async with sample_server(pages, start_s=start_s, before=before, **sampling_options) as sampling:
        ticker = asyncio.create_task(report_progress()) if on_progress else None
        has_handler = threading.current_thread() is threading.main_thread()
        if has_handler:
            loop.add_signal_handler(signal.SIGINT, stop.set)
        try:
            run = await run_client(
                plan, target, HttpTransport(url, headers=headers), limits=limits, start_s=start_s, bodies=bodies,
                stop=stop, on_record=take,
            )  # fmt: skip
        finally:
            if has_handler:
                loop.remove_signal_handler(signal.SIGINT)
            if ticker:
                ticker.cancel()
    return run, sampling.result()


def _describe(url: str, target: Target, limits: Limits) -> dict:
    """Return what was asked, without a password in the URL or anything that looks like a secret."""
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
