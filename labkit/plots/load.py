"""A load run: waits over time, latencies as shares, requests in flight, and the rate that still keeps the promise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from labkit.load.metrics import measure_latency
from labkit.load.records import RequestRecord
from labkit.load.search import Trial
from labkit.plots.look import ESTIMATE, MEASURED, NEUTRAL, add_alternative, make_figure
from labkit.units import format_seconds

__all__ = ["plot_in_flight", "plot_latency_shares", "plot_rate_search", "plot_waits"]

_COLOURS = (MEASURED, ESTIMATE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # of Okabe and Ito
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
_MAX_POINTS = 2000  # of a line: more cannot be seen


def plot_waits(records: Sequence[RequestRecord], *, slo_s: float | None = None, title: str | None = None):
    """Return the time to first token, from the schedule, of every request at its scheduled instant.

    Failures are crosses; `slo_s` draws the promise. A growing queue is a rising line, a stall a falling tooth.
    """
    good = [record for record in records if record.is_good]
    bad = [record for record in records if not record.is_good]
    waits = [record.ttft_from_schedule_s for record in good]
    middle = format_seconds(float(np.median(waits))) if waits else "nothing"
    title = title or f"Half of the users wait {middle} or less for the first token"
    figure = make_figure(title, x="scheduled instant (s since the start)", y="time to first token, from schedule (s)")
    figure.add_scattergl(
        x=[record.scheduled_s for record in good], y=waits, mode="markers", name=f"answered (n = {len(good)})",
        marker={"color": MEASURED, "size": 5, "opacity": 0.6}, hovertemplate="%{x:.2f} s: %{y:.4g} s<extra></extra>",
    )  # fmt: skip
    figure.add_scattergl(
        x=[record.scheduled_s for record in bad], y=[0.0] * len(bad), mode="markers", name=f"failed (n = {len(bad)})",
        text=[record.cause for record in bad], marker={"color": NEUTRAL, "size": 8, "symbol": "x"},
        hovertemplate="%{x:.2f} s: %{text}<extra></extra>",
    )  # fmt: skip
    if slo_s is not None:
        figure.add_hline(y=slo_s, line={"color": ESTIMATE, "dash": "dot"}, annotation_text="SLO")
    figure.update_yaxes(rangemode="tozero")
    most = format_seconds(max(waits)) if waits else "nothing"
    said = (
        f"{title}. {len(good)} requests answered, {len(bad)} failed; the median wait is {middle}, the longest {most}."
    )
    return add_alternative(figure, said)


def plot_latency_shares(records: Sequence[RequestRecord], names: Sequence[str], *, title: str | None = None):
    """Return, for each latency, the share of samples that are no longer than x: a cumulative curve.

    `names` as in `labkit.load.metrics.measure_latency`; x is logarithmic.
    """
    samples = {name: np.sort(measure_latency(records, name)) for name in names}
    said = [
        f"{name}: n = {len(values)}, median {format_seconds(float(np.median(values)))}"
        for name, values in samples.items()
        if len(values)
    ]
    first = next((name for name, values in samples.items() if len(values)), None)
    found = f"{first}: half within {format_seconds(float(np.median(samples[first])))}" if first else "No sample"
    title = title or found
    # Chunks that came together have a gap of 0, which a logarithmic axis cannot show: they stand at its left end.
    medians = [float(np.median(values)) for values in samples.values() if len(values)]
    floor_s = max(1e-6, 0.1 * min((median for median in medians if median > 0), default=0.0))
    figure = make_figure(title, x="seconds (logarithmic)", y="share of samples (%)")
    for k, (name, values) in enumerate(samples.items()):
        picked = _thin(len(values))
        figure.add_scattergl(
            x=[max(float(values[i]), floor_s) for i in picked], y=[100 * (i + 1) / len(values) for i in picked],
            mode="lines" if len(values) > 1 else "markers", name=f"{name} (n = {len(values)})",
            line={"color": _COLOURS[k % 6], "dash": _DASHES[k % 6], "width": 2},
            hovertemplate="%{y:.1f} % within %{x:.4g} s<extra>" + name + "</extra>",
        )  # fmt: skip
    figure.update_xaxes(type="log")
    figure.update_yaxes(range=[0, 101])
    return add_alternative(figure, f"{title}. {'; '.join(said) or 'Nothing was measured'}.")


def plot_in_flight(records: Sequence[RequestRecord], *, title: str | None = None):
    """Return the number of requests in flight over time."""
    sent = [record for record in records if record.sent_s is not None]
    times = np.array([record.sent_s for record in sent] + [_end_of(record) for record in sent])
    steps = np.array([1] * len(sent) + [-1] * len(sent))
    order = np.lexsort((steps, times))  # at one instant, what ends comes first
    counts = np.cumsum(steps[order]) if len(sent) else np.array([])
    most = int(counts.max(initial=0))
    title = title or f"At most {most} requests are in flight at once"
    figure = make_figure(title, x="seconds since the start", y="requests in flight (count)")
    picked = _thin(len(counts))
    figure.add_scattergl(
        x=[float(times[order][i]) for i in picked], y=[int(counts[i]) for i in picked], mode="lines",
        line={"color": MEASURED, "shape": "hv", "width": 1.5}, name=f"{len(sent)} requests", showlegend=True,
        hovertemplate="%{x:.2f} s: %{y}<extra></extra>",
    )  # fmt: skip
    figure.update_yaxes(rangemode="tozero")
    return add_alternative(figure, f"{title}. n = {len(sent)} requests.")


def plot_rate_search(trials: Sequence[Trial], *, share: float = 0.99, title: str | None = None):
    """Return every rate that a search tried: the share of requests that met the SLO, with its 95 % interval."""
    from labkit.load.search import estimate_share_interval

    kept = [trial.rate_per_s for trial in trials if trial.outcome == "kept"]
    title = title or (f"The SLO is kept up to {max(kept):.3g} requests per second" if kept else "No rate keeps the SLO")
    figure = make_figure(title, x="requests per second (logarithmic)", y="requests that meet the SLO (%)")
    for name, colour, symbol, group in (
        ("kept", MEASURED, "circle", _kept_of(trials, True)), ("not kept", NEUTRAL, "x", _kept_of(trials, False))
    ):  # fmt: skip
        shares = [trial.num_good / trial.num_judged if trial.num_judged else 0.0 for trial in group]
        ends = [estimate_share_interval(trial.num_good, trial.num_judged) for trial in group]
        figure.add_scatter(
            x=[trial.rate_per_s for trial in group], y=[100 * s for s in shares], mode="markers", showlegend=True,
            name=f"{name} ({len(group)} rates)", marker={"color": colour, "size": 9, "symbol": symbol},
            text=[f"{trial.outcome}, {trial.num_runs} runs, n = {trial.num_judged}" for trial in group],
            error_y={"type": "data", "symmetric": False, "color": colour,
                     "array": [100 * (high - s) for s, (_, high) in zip(shares, ends, strict=True)],
                     "arrayminus": [100 * (s - low) for s, (low, _) in zip(shares, ends, strict=True)]},
            hovertemplate="%{x:.3g} req/s: %{y:.2f} %<br>%{text}<extra></extra>",
        )  # fmt: skip
    figure.add_hline(
        y=100 * share, line={"color": ESTIMATE, "dash": "dot"}, annotation_text=f"{share:.0%} must meet it"
    )
    figure.update_xaxes(type="log")
    said = "; ".join(f"{trial.rate_per_s:.3g} req/s {trial.outcome}" for trial in trials[:12])
    return add_alternative(figure, f"{title}. {len(trials)} rates tried{': ' + said if said else ''}.")


def _kept_of(trials: Sequence[Trial], is_kept: bool) -> list[Trial]:
    return [trial for trial in trials if (trial.outcome == "kept") == is_kept]


def _end_of(record: RequestRecord) -> float:
    if record.end_s is not None and math.isfinite(record.end_s):
        return record.end_s
    return record.chunks[-1].at_s if record.chunks else record.sent_s


def _thin(num: int) -> list[int]:
    """Indices of at most `_MAX_POINTS` of `num` points, both ends among them."""
    if num <= _MAX_POINTS:
        return list(range(num))
    return np.unique(np.linspace(0, num - 1, _MAX_POINTS).round().astype(int)).tolist()
