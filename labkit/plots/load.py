"""What does a load run look like? Waits over time, latencies as shares, requests in flight, and one page with all."""

import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from labkit.load.metrics import DEFINITIONS, measure_latency
from labkit.load.records import RequestRecord
from labkit.load.report import LoadResult, format_report
from labkit.plots.look import ESTIMATE, MEASURED, MORE, NEUTRAL, add_alternative, format_alternative, make_figure
from labkit.units import format_seconds

__all__ = ["format_load_page", "plot_in_flight", "plot_latency_shares", "plot_waits", "save_load_page"]

_COLOURS = (MEASURED, ESTIMATE, *MORE)
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
_MAX_POINTS = 2000  # of a line: more cannot be seen
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem}"
    "body{color:#222;background:#fff}"
    "pre{overflow-x:auto;background:#eee;padding:.8rem;font-size:.78rem}figure{margin:1.5rem 0}"
    "figcaption{color:#555;font-size:.9rem}dt{font-weight:600;margin-top:.5rem}"
    "@media(prefers-color-scheme:dark){body{color:#ddd;background:#111}pre{background:#222}figcaption{color:#aaa}}"
)


def plot_waits(records: Sequence[RequestRecord], *, slo_s: float | None = None, title: str | None = None):
    """Return the time to first token, from the schedule, of every request over its scheduled time.

    Failures are crosses, and `slo_s` is a line. A growing queue shows as a rising line, a stall as a falling sawtooth.
    """
    good = [record for record in records if record.is_good]
    bad = [record for record in records if not record.is_good]
    waits = [record.ttft_from_schedule_s for record in good]
    middle = format_seconds(float(np.median(waits))) if waits else "nothing"
    title = title or f"Half of the requests wait {middle} or less for the first token"
    figure = make_figure(title, x="scheduled time (s since the start)", y="time to first token, from schedule (s)")
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
    """Return, for each latency, the share of samples of at most x seconds: a cumulative curve over a log axis.

    `names` as in `labkit.load.metrics.measure_latency`.
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
    # Chunks that arrived together have a gap of 0, which a log axis cannot show: they are drawn at its left end.
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
    order = np.lexsort((steps, times))  # at the same time, ends come first
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


def format_load_page(result: LoadResult) -> str:
    """Return a load run as one HTML page: figures, report and definitions, with Plotly inside for use offline."""
    import plotly.offline

    slo_s = result.slo.get("ttft_from_schedule", result.slo.get("ttft"))
    figures = (
        plot_waits(result.records, slo_s=slo_s),
        plot_latency_shares(result.records, ("ttft_from_schedule", "tpot", "icl", "e2e_from_schedule")),
        plot_in_flight(result.records),
    )
    drawn = []
    for figure in figures:
        text = escape(format_alternative(figure))
        inside = figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False})
        drawn.append(f'<figure role="group" aria-label="{text}">{inside}<figcaption>{text}</figcaption></figure>')
    defined = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}.</dd>" for name, text in DEFINITIONS.items())
    report = json.dumps(result.to_dict(), allow_nan=False).replace("</", "<\\/")
    head = f"Load run: client {result.verdict}"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(head)}</title><style>{_STYLE}</style><script>{plotly.offline.get_plotlyjs()}</script></head>"
        f"<body><h1>{escape(head)}</h1>{''.join(drawn)}<h2>Report</h2><pre>{escape(format_report(result))}</pre>"
        f'<h2>Definitions</h2><dl>{defined}</dl><script type="application/json" id="report">{report}</script>'
        "</body></html>\n"
    )


def save_load_page(result: LoadResult, path: str | Path) -> Path:
    """Write the page and return its path."""
    path = Path(path)
    path.write_text(format_load_page(result), encoding="utf-8")
    return path


def _end_of(record: RequestRecord) -> float:
    if record.end_s is not None and math.isfinite(record.end_s):
        return record.end_s
    return record.chunks[-1].at_s if record.chunks else record.sent_s


def _thin(num: int) -> list[int]:
    """Return indices of at most `_MAX_POINTS` of `num` points, including both ends."""
    if num <= _MAX_POINTS:
        return list(range(num))
    return np.unique(np.linspace(0, num - 1, _MAX_POINTS).round().astype(int)).tolist()
