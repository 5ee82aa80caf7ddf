"""What does a load run say, in one place? A report: verdict first, then every number with its definition.

`LoadResult` holds a run; `format_report` writes the table for a console, `LoadResult.to_dict` the JSON (no prompts,
answers, headers or passwords), `save_report` the folder: requests.jsonl and report.json.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from labkit.cost import estimate_usd_per_million_tokens
from labkit.errors import LabkitError
from labkit.journal import append_lines, format_line
from labkit.load.metrics import DEFINITIONS, STEADY_RULE, Metrics, WindowMetrics
from labkit.load.records import RequestRecord
from labkit.load.sampling import Sampling
from labkit.load.verdict import BOUNDS, ClientVerdict
from labkit.units import format_bytes, format_interval, format_number, format_seconds

__all__ = ["ClientCeiling", "LoadResult", "format_report", "save_report"]

_ROWS = ("ttft_from_schedule", "ttft", "first_answer", "tpot", "itl", "icl", "e2e_from_schedule", "e2e", "lag")


@dataclass(frozen=True, slots=True)
class ClientCeiling:
    """What this client reached on this machine against a server that does nothing (`labkit bench-client`).

    Attributes:
        request_per_s: requests per second.
        chunk_per_s: chunks per second.
        time: when it was measured, ISO 8601.
    """

    request_per_s: float
    chunk_per_s: float
    time: str

    def measure_share(self, window: WindowMetrics, num_chunks: int) -> float:
        """Return the larger of the run's shares of the two ceilings."""
        seconds = window.seconds or 1.0
        return max(window.num_requests / seconds / self.request_per_s, num_chunks / seconds / self.chunk_per_s)


@dataclass(frozen=True, slots=True)
class LoadResult:
    """A load run.

    Attributes:
        target: what was asked of which server.
        plan: `LoadPlan.to_dict()`.
        records: one per request, in order of their numbers.
        metrics: of these records.
        verdict: on the client.
        slo: SLOs in seconds, by latency.
        end: "complete", "interrupted" or "run deadline".
        sampling: what the server and the GPU did meanwhile.
        ceiling: of this client on this machine; None if it was never measured.
        price_usd_per_hour: price of the machine.
        num_workers: client processes.
        problems: what went wrong besides the requests, as sentences.
        provenance: where and with what it was measured.
    """

    target: Mapping[str, object]
    plan: Mapping[str, object]
    records: tuple[RequestRecord, ...]
    metrics: Metrics
    verdict: ClientVerdict
    slo: Mapping[str, float]
    end: str
    sampling: Sampling | None = None
    ceiling: ClientCeiling | None = None
    price_usd_per_hour: float | None = None
    num_workers: int = 1
    problems: tuple[str, ...] = ()
    provenance: Mapping[str, object] = field(default_factory=dict)

    @property
    def tok_per_s(self) -> float:
        """Output tokens over the whole run, from the first request sent to the last token."""
        return self.metrics.whole.tok_per_s

    @property
    def middle_tok_per_s(self) -> float:
        """Output tokens that arrived in the middle half of the whole run, over that half: no ramp up or down."""
        whole = self.metrics.whole
        low_s, half_s = whole.begin_s + 0.25 * whole.seconds, 0.5 * whole.seconds
        chunks = (chunk for record in self.records if record.is_good for chunk in record.chunks)
        return sum(chunk.num_tokens or 0 for chunk in chunks if low_s <= chunk.at_s < low_s + half_s) / half_s

    @property
    def usd_per_million_tokens(self) -> float | None:
        """Cost of a million output tokens at the steady rate (of the whole run, if there is no steady window)."""
        part = self.metrics.steady or self.metrics.whole
        if self.price_usd_per_hour is None or not part.tok_per_s > 0:
            return None
        return estimate_usd_per_million_tokens(self.price_usd_per_hour, tok_per_s=part.tok_per_s)

    @property
    def ceiling_share(self) -> float | None:
        """How close the run was to what this client can do here; None if that was never measured."""
        num_chunks = sum(len(record.chunks) for record in self.records)
        return self.ceiling.measure_share(self.metrics.whole, num_chunks) if self.ceiling else None

    def to_dict(self) -> dict:
        """Return the report as JSON values, without the single requests."""
        sampling = self.sampling
        server = None if sampling is None or not sampling.before else {
            "before": dict(sampling.before), "after": dict(sampling.after), "hit_fraction": sampling.hit_fraction,
            **{name: sampling.count(name) for name in ("prefix_queries", "prefix_hits", "preemptions")},
        }  # fmt: skip
        names = ("running", "waiting", "kv_usage", "gpu_utilization", "gpu_memory_bytes", "gpu_power_w")
        sampled = {name: found for name in names if sampling and (found := sampling.summarize(name))}
        return {
            "kind": "labkit load report", "verdict": str(self.verdict), **dataclasses.asdict(self.verdict),
            "bounds": {name: bound for name, (bound, _) in BOUNDS.items()},
            "target": dict(self.target), "plan": dict(self.plan), "end": self.end, "num_workers": self.num_workers,
            "slo": dict(self.slo), "metrics": dataclasses.asdict(self.metrics), "steady_rule": STEADY_RULE,
            "definitions": dict(DEFINITIONS), "server": server,
            "sampled": {name: {"mean": mean, "max": top} for name, (mean, top) in sampled.items()},
            "gpu": "sampled" if "gpu_memory_bytes" in sampled else "none",
            "usd_per_million_output_tokens": self.usd_per_million_tokens,
            "price_usd_per_hour": self.price_usd_per_hour,
            "ceiling": None if self.ceiling is None else dataclasses.asdict(self.ceiling),
            "ceiling_share": self.ceiling_share, "problems": list(self.problems), "provenance": dict(self.provenance),
        }  # fmt: skip


def save_report(result: LoadResult, folder: str | Path) -> Path:
    """Write report.json, and requests.jsonl unless the run has written it (its journal); returns the folder.

    LabkitError when the disk is full or the folder cannot be written.
    """
    folder = Path(folder).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        requests = folder / "requests.jsonl"
        if not requests.exists() or not requests.stat().st_size:
            append_lines(requests, [format_line(record.to_dict()) for record in result.records])
        text = json.dumps(result.to_dict(), indent=1, allow_nan=False)
        (folder / "report.json").write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise LabkitError(
            f"The report could not be written to {folder} ({error.strerror}).",
            next_step="Free some space, or use --out.",
        ) from None
    return folder


def format_report(result: LoadResult, *, width: int = 100) -> str:
    """Format the report for a console: the verdict, the counts, one line per metric, what the server showed."""
    whole, steady, plan = result.metrics.whole, result.metrics.steady, result.plan
    lines = [
        f"client: {result.verdict}",
        *(f"        remark: {remark}" for remark in result.verdict.remarks),
        f"load:   {plan['loop']} loop, {plan['name']}; {whole.num_requests} requests in {format_seconds(whole.seconds)}"
        + ("" if result.end == "complete" else f"; {result.end}"),
        f"        {_format_ceiling(result)}",
    ]
    lines += [f"        problem: {problem}" for problem in result.problems]
    causes = ", ".join(f"{count} {cause}" for cause, count in sorted(result.metrics.causes.items())) or "none"
    lines += [f"failed: {whole.num_failed} of {whole.num_requests} ({causes})"]
    lines += [f"counts: tokens by {', '.join(f'{k} ({n})' for k, n in result.metrics.sources.items()) or 'nothing'}"]
    lines += [f"        {count} x {note}" for note, count in list(result.metrics.notes.items())[:5]]
    lines += ["", f"{'':<20}{'whole run':>18}{'steady window':>18}"]
    for name, unit, words in _RATES:
        values = [getattr(part, name) if part else None for part in (whole, steady)]
        if values[0] is not None:
            cells = ["no steady window" if part is None else _format_rate(v, unit)
                     for part, v in zip((whole, steady), values, strict=True)]  # fmt: skip
            lines.append(f"{words:<20}{cells[0]:>18}{cells[1]:>18}")
    head = "whole run, from the schedule where the name says so"
    lines += ["", f"{head:<20}", f"{'':<20}" + "".join(f"{q:>18}" for q in ("p50", "p90", "p95", "p99")) + "       n"]
    for name in _ROWS:
        if (summary := whole.latencies[name]) is not None:
            cells = (_format_cell(getattr(summary, q), getattr(summary, f"{q}_interval")) for q in _PERCENTILES)
            lines.append(f"{name:<20}" + "".join(f"{cell:>18}" for cell in cells) + f"{summary.n:>8}")
            intervals = [getattr(summary, f"{q}_interval") for q in _PERCENTILES]
            said = (format_interval(one, write=_format_s) if one else "" for one in intervals)
            lines.append(f"{'  95 % interval':<20}" + "".join(f"{text:>18}" for text in said))
    lines += ["", *_format_goals(result), *_format_server(result), ""]
    lines += [f"steady window: {STEADY_RULE}."]
    lines += [f"{name}: {text}." for name, text in DEFINITIONS.items()]
    return "\n".join(line[:width].rstrip() if line.startswith("        ") else line.rstrip() for line in lines)


_PERCENTILES = ("p50", "p90", "p95", "p99")
_RATES = (
    ("request_per_s", "req/s", "succeeded"), ("tok_per_s", "tok/s", "output tokens"),
    ("total_tok_per_s", "tok/s", "prompt and output"), ("good_per_s", "req/s", "goodput"),
    ("good_fraction", "", "good fraction"), ("concurrency", "", "in flight, mean"),
)  # fmt: skip


def _format_rate(value: float | None, unit: str) -> str:
    return "unknown" if value is None else f"{format_number(float(value))} {unit}".strip()


def _format_s(value: float) -> str:
    return format_seconds(value).replace(" ", "")


def _format_cell(value: float | None, interval) -> str:
    return "n too small" if value is None else _format_s(value)


def _format_ceiling(result: LoadResult) -> str:
    if result.ceiling is None:
        return "the ceiling of this client on this machine is unknown: run `labkit bench-client` once"
    share = f"{result.ceiling_share:.1%}"
    return (
        f"{share} of this client's ceiling here, {format_number(result.ceiling.request_per_s)} req/s and "
        f"{format_number(result.ceiling.chunk_per_s)} chunks/s ({result.ceiling.time[:10]})"
    )


def _format_goals(result: LoadResult) -> list[str]:
    whole, lines = result.metrics.whole, []
    if result.slo:
        goals = ", ".join(f"{name} <= {format_seconds(limit_s)}" for name, limit_s in result.slo.items())
        lines.append(f"SLO: {goals}: {whole.num_good} good of {whole.num_requests}, {whole.num_undecided} undecided")
    if (cost := result.usd_per_million_tokens) is not None:
        under = "at this SLO" if result.slo else "without an SLO"
        lines.append(f"cost: ${cost:.4f} per million output tokens at ${result.price_usd_per_hour:g} per hour, {under}")
    return lines


def _format_server(result: LoadResult) -> list[str]:
    sampling = result.sampling
    if sampling is None or not (sampling.before or sampling.samples):
        return ["server: no counters (/metrics does not answer)", "GPU: none"]
    hit = sampling.hit_fraction
    said = [f"prefix-cache hits {hit:.1%} of prompt tokens" if hit is not None else "prefix-cache hits unknown"]
    if (preempted := sampling.count("preemptions")) is not None:
        said.append(f"{preempted:.0f} preemptions")
    for name, words, scale in (("waiting", "waiting", "{:.1f}"), ("kv_usage", "KV cache used", "{:.1%}")):
        if found := sampling.summarize(name):
            said.append(f"{words} {scale.format(found[0])} mean, {scale.format(found[1])} most")
    gpu = []
    for name, words, write in (
        ("gpu_utilization", "busy", "{:.0%}".format),
        ("gpu_memory_bytes", "memory", format_bytes),
        ("gpu_power_w", "power", "{:.0f} W".format),
    ):
        if found := sampling.summarize(name):
            gpu.append(f"{words} {write(found[0])} mean, {write(found[1])} most")
    return [f"server: {'; '.join(said)}", f"GPU: {'; '.join(gpu) or 'none'}"]
