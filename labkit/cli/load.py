"""`labkit load` and `labkit bench-client`: what do users of a server feel, and how fast is the client itself?"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

from labkit.cli.parser import Parser, print_json, read_path
from labkit.errors import LabkitError

__all__ = ["add_bench_command", "add_command"]

_MAX_REQUESTS = 1_000_000  # of one run: all are drawn before the start and kept until the report
_RATE, _SECONDS, _COUNT = (1e-6, 1e6), (0.001, 1e7), (1, _MAX_REQUESTS)
_BOUNDS = {
    "rate": _RATE, "end_rate": _RATE, "cv": (0.01, 100.0), "speed": _RATE, "scale": _RATE, "clients": (1, 100_000),
    "think": (0.0, 1e6), "turns": (1, 10_000), "shared": (0, 1_000_000), "duration": _SECONDS, "requests": _COUNT,
    "max_concurrency": _COUNT, "timeout": _SECONDS, "deadline": _SECONDS, "retries": (0, 1000), "workers": (1, 256),
    "warmup": (0, 100_000), "seed": (0, 2**63 - 1), "price": (0.0, 1e9),
}  # fmt: skip
_BENCH_BOUNDS = {"seconds": (0.1, 600.0), "streams": (0, 100_000)}


def add_command(top: Parser) -> None:
    """Declare `labkit load`."""
    load = top.add_command("load", "send planned load to an OpenAI-compatible server and report what users feel", _run)
    load.add_argument("url", metavar="URL", help="the server, such as http://127.0.0.1:8000")
    load.add_argument("--model", metavar="M", help="the model's name (default: the only one of the server)")
    load.add_argument("--api", choices=("completions", "chat"), default="completions")
    load.add_argument("--rate", type=float, metavar="R", help="open loop: requests per second")
    load.add_argument(
        "--arrival", default="poisson", choices=("constant", "poisson", "conditioned-poisson", "gamma", "ramp"),
        help="how requests arrive (default: poisson)",
    )  # fmt: skip
    load.add_argument("--cv", type=float, default=1.0, help="gamma: coefficient of variation of the gaps")
    load.add_argument("--end-rate", type=float, metavar="R", help="ramp: the rate at the end")
    load.add_argument("--trace", metavar="FILE", help="open loop: replay arrivals and lengths of a CSV or JSONL file")
    load.add_argument("--speed", type=float, default=1.0, help="replay a trace this many times as fast")
    load.add_argument("--clients", type=int, metavar="N", help="closed loop: N clients, each waits for its answer")
    load.add_argument("--think", type=float, default=0.0, metavar="S", help="mean pause of a client or in a session")
    load.add_argument("--turns", type=int, default=1, metavar="N", help="sessions of N turns that share a prefix")
    load.add_argument("--shared", type=int, default=64, metavar="N", help="tokens that all sessions begin with")
    load.add_argument("--duration", type=float, metavar="S", help="seconds of sending (default: 30, or --requests)")
    load.add_argument("--requests", type=int, metavar="N", help="number of requests (closed: of each client)")
    load.add_argument("--prompt", default="128", metavar="L", help="tokens: 128, uniform:64:256, lognormal:64:0.7:512")
    load.add_argument("--output", default="64", metavar="L", help="tokens, in the same form")
    load.add_argument(
        "--lengths", metavar="NAME", help="prompt and output lengths of a published workload: sharegpt4 ..."
    )
    load.add_argument("--scale", type=float, default=1.0, help="shorten published lengths, for a small model")
    load.add_argument("--slo", default="", metavar="GOALS", help="seconds: ttft=0.5,tpot=0.03")
    load.add_argument(
        "--search", action="store_true", help="search for the highest rate that keeps the SLO for 99 %% of requests"
    )
    load.add_argument(
        "--max-concurrency", type=int, metavar="N", help="cap on requests in flight: makes an open loop a closed one"
    )
    load.add_argument("--timeout", type=float, default=300.0, metavar="S", help="give up on a request after this")
    load.add_argument("--deadline", type=float, metavar="S", help="end the whole run after this")
    load.add_argument(
        "--retries", type=int, default=0, help="send a refused request (429, 503) again; all are reported"
    )
    load.add_argument("--workers", type=int, default=1, metavar="N", help="processes that share the schedule")
    load.add_argument(
        "--warmup", type=int, default=4, metavar="N", help="requests before the run, not measured (default: 4)"
    )
    load.add_argument("--seed", type=int, default=0)
    load.add_argument("--plain", action="store_true", help="no fixed output length: for servers that refuse ignore_eos")
    load.add_argument("--extra", default="{}", metavar="JSON", help="more fields of every request")
    load.add_argument("--header", action="append", default=[], metavar="NAME: VALUE", help="sent, never stored")
    load.add_argument("--price", type=float, metavar="USD", help="price of the machine per hour")
    load.add_argument("--out", metavar="FOLDER", help="where requests.jsonl, report.json and report.html go")
    load.add_argument("--json", action="store_true", help="print the report as JSON")
    load.set_defaults(get_default=load.get_default)


def add_bench_command(top: Parser) -> None:
    """Declare `labkit bench-client`."""
    bench = top.add_command("bench-client", "find this machine's own ceiling as a load client", _run_bench)
    bench.add_argument("--against", choices=("aiohttp",), help="also measure a plain client of this library, in turns")
    bench.add_argument("--seconds", type=float, default=1.5, metavar="S", help="length of one try")
    bench.add_argument("--streams", type=int, default=500, metavar="N", help="streams at once (0: leave this part out)")


def _run(arguments: argparse.Namespace) -> int:
    from labkit.load.report import format_report, save_report
    from labkit.load.run import read_slo

    _check_options(arguments)
    headers = dict(_read_header(text) for text in arguments.header)
    plan = _make_plan(arguments, arguments.rate, 0)
    model = arguments.model or _find_model(arguments.url, headers)
    slo = read_slo(arguments.slo, loop=plan.loop)
    if arguments.search:
        return _search(arguments, model, headers, slo)
    folder = read_path(arguments.out or f"load-{time.strftime('%Y%m%d-%H%M%S')}")
    result = _load(arguments, plan, model, headers, folder)
    page = _save_page(result, save_report(result, folder))
    if arguments.json:
        print_json(result.to_dict())
    else:
        print(format_report(result))
        print(f"\nrequests, report and page: {page}")
    return 0 if result.verdict.is_valid else 1


def _load(arguments, plan, model: str, headers, folder):
    from labkit.load.client import Limits
    from labkit.load.run import run_load
    from labkit.workload import draw_closed_plan

    warmup = None
    if arguments.warmup > 0:
        # Another seed, so other prompts: no cache holds the measured ones.
        warmup = draw_closed_plan(num_clients=1, requests_per_client=arguments.warmup, prompt=32, output=16,
                                  seed=arguments.seed + 999_983)  # fmt: skip
    try:
        extra = json.loads(arguments.extra)
        if not isinstance(extra, dict):
            raise ValueError
    except ValueError:
        raise LabkitError("--extra is not a JSON object.", next_step="""write --extra '{"top_p": 0.9}'.""") from None
    if folder is not None and (folder / "requests.jsonl").exists():
        raise LabkitError(f"{folder} holds a run already.", next_step="Name another folder with --out.")
    try:
        return run_load(
            arguments.url, plan, model=model, api=arguments.api, slo=arguments.slo,
            limits=Limits(arguments.timeout, arguments.deadline, arguments.retries), headers=headers, extra=extra,
            is_fixed_length=not arguments.plain, num_workers=arguments.workers, warmup=warmup,
            folder=folder,
            price_usd_per_hour=arguments.price, on_progress=_show_progress,
        )  # fmt: skip
    finally:
        if _has_terminal():
            print(file=sys.stderr)


def _search(arguments, model: str, headers, slo) -> int:
    from labkit.load.search import run_search

    def run_at(rate_per_s: float, repeat: int):
        return _load(arguments, _make_plan(arguments, rate_per_s, repeat), model, headers, None)

    found = run_search(
        run_at, slo, start_per_s=arguments.rate, lowest_per_s=min(arguments.rate, 10 / (arguments.duration or 30.0)),
        on_trial=lambda trial: print(f"{trial.rate_per_s:.3g} req/s: {trial.outcome}", file=sys.stderr),
    )  # fmt: skip
    if arguments.json:
        content = dataclasses.asdict(found) | {"kind": "labkit load search"}
        print_json({key: None if value == math.inf else value for key, value in content.items()})  # all kept it
    else:
        print(found)
    return 0 if found.rate_per_s else 1


def _make_plan(arguments, rate_per_s: float | None, repeat: int):
    from labkit.environment import find_course_root
    from labkit.workload import (
        draw_closed_plan,
        draw_open_plan,
        draw_session_plan,
        load_published_lengths,
        read_workload_trace,
    )

    lengths = {"prompt": arguments.prompt, "output": arguments.output}
    if arguments.lengths:
        path = find_course_root() / "data" / "reference" / "workloads" / "lengths.csv"
        found = load_published_lengths(arguments.lengths, path=path, scale=arguments.scale)
        lengths = {"prompt": found.prompt, "output": found.output}
    seed = arguments.seed + 1000 * repeat
    duration_s = arguments.duration if arguments.duration or arguments.requests else 30.0
    _check_size(arguments, rate_per_s, duration_s)
    if arguments.clients is not None:
        plan = draw_closed_plan(num_clients=arguments.clients, requests_per_client=arguments.requests,
                                duration_s=duration_s, think_s=arguments.think, seed=seed, **lengths)  # fmt: skip
    elif arguments.trace is not None:
        rows = read_workload_trace(read_path(arguments.trace), speed=arguments.speed, duration_s=arguments.duration)
        plan = draw_open_plan(rows[: arguments.requests], seed=seed)
    else:
        process = {"rate_per_s": rate_per_s, "duration_s": duration_s, "num_requests": arguments.requests,
                   "cv": arguments.cv, "end_rate_per_s": arguments.end_rate}  # fmt: skip
        if arguments.turns > 1:
            plan = draw_session_plan(arguments.arrival, turns=arguments.turns, shared=arguments.shared,
                                     think_s=arguments.think, seed=seed, **lengths, **process)  # fmt: skip
        else:
            plan = draw_open_plan(arguments.arrival, seed=seed, **lengths, **process)
    return plan if arguments.max_concurrency is None else plan.cap(arguments.max_concurrency)


def _find_model(url: str, headers) -> str:
    """Ask the server which model it serves; this also shows whether it answers at all."""
    from labkit.load.loop import run_precise
    from labkit.load.transport import HttpTransport

    async def ask():
        transport = HttpTransport(url, headers=headers)
        await transport.start()
        try:
            return await transport.get("/v1/models")
        finally:
            await transport.close()

    page = run_precise(ask())
    if page is None:
        raise LabkitError(
            f"Nobody answers at {url.rpartition('@')[2]}.", next_step="Start the server, or check the URL."
        )
    try:
        names = [item["id"] for item in json.loads(page[1])["data"]]
    except (ValueError, KeyError, TypeError):
        names = []
    if len(names) != 1:
        said = ", ".join(names) or f"status {page[0]}"
        raise LabkitError(f"The server does not name exactly one model ({said}).", next_step="give one with --model.")
    return names[0]


def _read_header(text: str) -> tuple[str, str]:
    name, sign, value = text.partition(":")
    if not sign or not name.strip():
        raise LabkitError("A --header has no colon.", next_step='write --header "Authorization: Bearer ...".')
    try:
        text.encode("latin-1")
    except UnicodeEncodeError:
        raise LabkitError("A --header has a character that HTTP cannot carry.", next_step="Use Latin-1.") from None
    return name.strip(), value.strip()


def _has_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _show_progress(counts) -> None:
    if _has_terminal():
        line = f"\r{counts['seconds']:6.0f} s  {counts['done']} done  {counts['failed']} failed "
        print(line, end="", file=sys.stderr, flush=True)


def _save_page(result, folder: Path) -> Path:
    from labkit.plots import save_load_page

    try:
        save_load_page(result, folder / "report.html")
    except ImportError:  # the other files need no plotly
        print("report.html was not written: plotly is missing.", file=sys.stderr)
    return folder


def _run_bench(arguments: argparse.Namespace) -> int:
    from labkit.load.bench import measure_ceilings, measure_streams
    from labkit.results import save_record

    _check_bench_options(arguments)
    kinds = ("labkit", *([arguments.against] if arguments.against else []))

    def show(kind: str, probe) -> None:
        print(f"{kind:<8} {probe.rate_per_s:7.0f} req/s: lag p99 {probe.lag_p99_s * 1e3:7.2f} ms, "
              f"{probe.cpu_per_request_s * 1e6:5.0f} us of processor per request, "
              f"{'held' if probe.is_on_time else 'not held'}", flush=True)  # fmt: skip

    probes = measure_ceilings(kinds=kinds, seconds=arguments.seconds, on_probe=show)
    streams = measure_streams(num_streams=arguments.streams) if arguments.streams else None
    for kind in kinds:
        held = [probe for probe in probes[kind] if probe.is_on_time]
        if not held:
            print(f"{kind} held no rate: the machine is too busy to tell.")
            continue
        best = max(held, key=lambda probe: probe.rate_per_s)
        chunk_per_s = best.num_chunks / best.num_sent * best.rate_per_s
        print(f"{kind}: {best.rate_per_s:.0f} req/s, {chunk_per_s:.0f} chunks/s")
        if kind == "labkit":
            samples = {"req_per_s": [best.rate_per_s], "num_chunks_per_s": [chunk_per_s],
                       "cpu_s": [best.cpu_per_request_s]}  # fmt: skip
            if streams:
                samples["chunk_error_p99_s"] = [streams.error_p99_s]
            record = save_record("shell", "bench-client", samples=samples, settings={"seconds": arguments.seconds})
            print(f"saved as {record.id}; reports of `labkit load` on this machine show how close to it they were")
    if streams:
        print(f"{streams.num_streams} streams at once: chunk times off by {streams.error_p50_s * 1e3:.2f} ms (p50), "
              f"{streams.error_p99_s * 1e3:.2f} ms (p99)")  # fmt: skip
    return 0 if any(probe.is_on_time for probe in probes["labkit"]) else 1


# Do the options make sense? One without effect is an error.


def _check_options(arguments: argparse.Namespace) -> None:
    """Raise a LabkitError for a number out of bounds, an invalid URL, and an option without effect."""
    _check_bounds(arguments, _BOUNDS)
    _check_address(arguments.url)
    chosen = [name for name in ("rate", "trace", "clients") if getattr(arguments, name) is not None]
    if len(chosen) != 1:
        raise LabkitError("Say how requests arrive.", next_step="give one of --rate, --clients and --trace.")
    if arguments.search and arguments.rate is None:
        raise LabkitError("--search varies the rate of an open loop.", next_step="give the first rate with --rate.")
    for name, (is_used, place) in _list_uses(arguments).items():
        if not is_used and getattr(arguments, name) != arguments.get_default(name):
            raise LabkitError(f"{_write(name)} would have no effect: it is for {place}.", next_step="leave it out.")


def _check_bench_options(arguments: argparse.Namespace) -> None:
    """Raise a LabkitError for a number of `labkit bench-client` that is out of bounds."""
    _check_bounds(arguments, _BENCH_BOUNDS)


def _check_size(arguments: argparse.Namespace, rate_per_s: float | None, duration_s: float | None) -> None:
    """Raise a LabkitError if the plan of one run would not fit into memory; a trace sets its own length."""
    if arguments.clients is not None:
        num = arguments.clients * (arguments.requests or 1)
    elif rate_per_s is not None:
        is_ramp = arguments.arrival == "ramp" and arguments.end_rate is not None
        mean_per_s = (rate_per_s + arguments.end_rate) / 2 if is_ramp else rate_per_s
        counts = [mean_per_s * duration_s] if duration_s else []
        counts += [arguments.requests] if arguments.requests and not is_ramp else []  # a ramp is drawn whole
        num = arguments.turns * min(counts, default=0)
    else:
        return
    if num > _MAX_REQUESTS:
        raise LabkitError(
            f"This asks for about {num:.3g} requests; at most {_MAX_REQUESTS} fit into one run.",
            next_step="lower the rate, the duration or --requests, or make several runs.",
        )


def _check_bounds(arguments: argparse.Namespace, bounds: dict[str, tuple[float, float]]) -> None:
    for name, (low, high) in bounds.items():
        value = getattr(arguments, name)
        if value is not None and not low <= value <= high:  # also NaN
            raise LabkitError(
                f"{_write(name)} is {value}; expected a number from {low:g} to {high:g}.", next_step="correct it."
            )


def _check_address(url: str) -> None:
    try:
        address = urlsplit(url if "://" in url else f"http://{url}")
        (address.hostname or "").encode("idna")
        address.path.encode("latin-1")
        is_address = address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
    except ValueError:  # an invalid port, a missing bracket, an invalid name
        is_address = False
    if not is_address:
        raise LabkitError("This is not the URL of a server.", next_step="write http://HOST:PORT.")


def _list_uses(arguments: argparse.Namespace) -> dict[str, tuple[bool, str]]:
    """Return, for each option that only some runs use, whether this run uses it, and which runs do."""
    is_open, is_replay = arguments.rate is not None, arguments.trace is not None
    is_session = is_open and arguments.turns > 1
    has_lengths = bool(arguments.lengths)
    return {
        "arrival": (is_open, "--rate"),
        "cv": (is_open and arguments.arrival == "gamma", "--arrival gamma"),
        "end_rate": (is_open and arguments.arrival == "ramp", "--arrival ramp"),
        "speed": (is_replay, "--trace"),
        "turns": (is_open, "--rate"),
        "shared": (is_session, "--turns of 2 or more"),
        "think": (is_session or arguments.clients is not None, "--clients, or --turns of 2 or more"),
        "prompt": (not is_replay and not has_lengths, "runs without --trace and --lengths, which bring their own"),
        "output": (not is_replay and not has_lengths, "runs without --trace and --lengths, which bring their own"),
        "lengths": (not is_replay, "runs without --trace, which brings its own"),
        "scale": (has_lengths, "--lengths"),
        "out": (not arguments.search, "runs without --search, which keeps no requests"),
        "price": (not arguments.search, "runs without --search"),
    }


def _write(name: str) -> str:
    return "--" + name.replace("_", "-")
