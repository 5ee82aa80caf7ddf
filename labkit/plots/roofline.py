"""What does a roofline look like? Ceilings as lines, work as points below them, on log axes; and bandwidth by size."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from labkit.plots.look import (
    ESTIMATE,
    MEASURED,
    NEUTRAL,
    add_alternative,
    check_drawable,
    format_n,
    make_error_bars,
    make_figure,
)
from labkit.units import format_bytes, format_interval, format_rate

__all__ = ["Roof", "RooflinePoint", "plot_bandwidth", "plot_roofline"]

_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross")


@dataclass(frozen=True, slots=True)
class Roof:
    """The two ceilings of one machine.

    Attributes:
        name: shown in the legend.
        flop_per_s: peak FLOP/s, the flat part.
        byte_per_s: bandwidth in bytes per second, the slope.
        is_measured: False for published peaks.
    """

    name: str
    flop_per_s: float
    byte_per_s: float
    is_measured: bool = True


@dataclass(frozen=True, slots=True)
class RooflinePoint:
    """One measured piece of work in a roofline.

    Attributes:
        kind: "decode", "prefill"; points of one kind have one symbol.
        name: what distinguishes it ("batch 4").
        intensity: arithmetic intensity in FLOP per byte.
        flop_per_s: the FLOP/s that were reached.
        low: lower end of their interval, if there is one.
        high: upper end of their interval, if there is one.
        limit_flop_per_s: what the binding ceiling allows, drawn above the point, if known.
        n: number of samples.
    """

    kind: str
    name: str
    intensity: float
    flop_per_s: float
    low: float | None = None
    high: float | None = None
    limit_flop_per_s: float | None = None
    n: int | None = None


def plot_roofline(roofs: Sequence[Roof], points: Sequence[RooflinePoint], *, title: str):
    """Return the roofline on log-log axes: measured roofs as lines, published ones dashed, and every point.

    Raises LabkitError for a value that is not above 0, which log axes cannot show.
    """
    for roof in roofs:
        check_drawable(f"the ceilings of {roof.name}", [roof.flop_per_s, roof.byte_per_s], is_log=True)
    for point in points:
        check_drawable(f"{point.kind}, {point.name}", [point.intensity, point.flop_per_s], is_log=True)
    figure = make_figure(title, x="arithmetic intensity (FLOP per byte)", y="FLOP/s")
    figure.update_layout(height=520, margin={"b": 60, "t": 110})
    seen = [point.intensity for point in points] + [roof.flop_per_s / roof.byte_per_s for roof in roofs]
    left, right = min(seen, default=1.0) / 4, max(seen, default=1.0) * 8
    for roof in roofs:
        ridge = roof.flop_per_s / roof.byte_per_s
        figure.add_scatter(
            x=[left, ridge, right], y=[left * roof.byte_per_s, roof.flop_per_s, roof.flop_per_s], mode="lines",
            name=roof.name, line={"color": MEASURED if roof.is_measured else ESTIMATE, "width": 2,
                                  "dash": "solid" if roof.is_measured else "dash"},
            hovertemplate="%{x:.3g} FLOP/byte: %{y:.3s}FLOP/s<extra>" + roof.name + "</extra>",
        )  # fmt: skip
    for which, kind in enumerate(dict.fromkeys(point.kind for point in points)):
        some = [point for point in points if point.kind == kind]
        figure.add_scattergl(
            x=[point.intensity for point in some], y=[point.flop_per_s for point in some], mode="markers",
            name=f"{kind}, measured{_format_n(point.n for point in some)}", text=[point.name for point in some],
            marker={"color": MEASURED, "size": 11, "symbol": _SYMBOLS[which % len(_SYMBOLS)],
                    "line": {"color": "white", "width": 1}},
            error_y=make_error_bars(MEASURED, [point.flop_per_s for point in some], [point.low for point in some],
                                    [point.high for point in some]),
            hovertemplate="%{text}: %{y:.3s}FLOP/s at %{x:.3g} FLOP/byte<extra>" + kind + "</extra>",
        )  # fmt: skip
    limited = [point for point in points if point.limit_flop_per_s]
    if limited:
        figure.add_scattergl(
            x=[point.intensity for point in limited], y=[point.limit_flop_per_s for point in limited], mode="markers",
            name="binding ceiling", text=[f"{point.kind}, {point.name}" for point in limited],
            marker={"color": ESTIMATE, "size": 18, "symbol": "line-ew", "line": {"color": ESTIMATE, "width": 3}},
            hovertemplate="%{text}: at most %{y:.3s}FLOP/s<extra>binding ceiling</extra>",
        )  # fmt: skip
    figure.update_xaxes(type="log", dtick=1)
    figure.update_yaxes(type="log", dtick=1, exponentformat="SI")
    said = [f"{roof.name}: {format_rate(roof.flop_per_s, 'FLOP/s')}, {format_rate(roof.byte_per_s, 'B/s')}, "
            f"ridge at {roof.flop_per_s / roof.byte_per_s:.3g} FLOP/byte" for roof in roofs]  # fmt: skip
    said += [f"{len(points)} points of work"] if len(points) > 20 else [_describe(point) for point in points]
    return add_alternative(figure, f"{title}. " + ("; ".join(said) or "Nothing to show") + ".")


def plot_bandwidth(rates: Sequence, *, caches: Sequence = (), working_set_bytes: float | None = None, title: str):
    """Return bytes per second over the working set, with intervals and a line at the capacity of each cache.

    `rates`: `MeasuredCeiling`s of bandwidth, and `caches`: `CacheLevel`s, both of `labkit.ceilings`.
    `working_set_bytes`: the bytes of a decode step, marked in the figure.
    """
    for rate in rates:
        check_drawable("working sets", [rate.size], is_log=True)
        check_drawable(f"the rate at {format_bytes(rate.size)}", [rate.median])
    figure = make_figure(title, x="working set (source and destination together)", y="bytes per second (B/s)")
    figure.update_layout(height=440)
    ordered = sorted(rates, key=lambda rate: rate.size)
    medians, ends = [rate.median for rate in ordered], [rate.interval for rate in ordered]
    figure.add_scattergl(
        x=[rate.size for rate in ordered], y=medians, mode="lines+markers", showlegend=True,
        name=f"copy, median and 95 % interval{_format_n(len(rate.samples) for rate in ordered)}",
        line={"color": MEASURED}, marker={"color": MEASURED, "size": 8},
        text=[format_bytes(rate.size) for rate in ordered],
        error_y=make_error_bars(MEASURED, medians, (e and e.low for e in ends), (e and e.high for e in ends)),
        hovertemplate="%{text}: %{y:.3s}B/s<extra>copy</extra>",
    )  # fmt: skip
    marks = [(cache.capacity_bytes, f"L{cache.level} ends", NEUTRAL) for cache in caches if ordered]
    marks = [mark for mark in marks if ordered[0].size <= mark[0] <= ordered[-1].size]
    if working_set_bytes and ordered:
        marks.append((working_set_bytes, "one decode step", ESTIMATE))
    for number, (size, text, colour) in enumerate(marks):
        figure.add_vline(x=size, line={"color": colour, "dash": "dot", "width": 2})
        figure.add_annotation(
            x=math.log10(size), y=1 - 0.08 * (number % 2), yref="paper",
            xanchor="left" if size == working_set_bytes else "right", text=text, showarrow=False,
            font={"color": colour},
        )  # fmt: skip
    # Powers of two are readable as sizes; at most eight of them fit.
    ticks = [rate.size for rate in ordered][:: max(1, len(ordered) // 8)]
    figure.update_xaxes(type="log", tickvals=ticks, ticktext=[format_bytes(size) for size in ticks])
    figure.update_yaxes(rangemode="tozero", exponentformat="SI")
    if len(ordered) > 20:
        said = [f"{len(ordered)} working sets"]
    else:
        said = [f"{format_bytes(rate.size)}: {format_rate(rate.median, 'B/s')} "
                f"({format_interval(rate.interval, write=lambda x: format_rate(x, 'B/s'))}, n = {len(rate.samples)})"
                for rate in ordered]  # fmt: skip
    said += [f"{text} at {format_bytes(size)}" for size, text, _ in marks]
    return add_alternative(figure, f"{title}. " + ("; ".join(said) or "No rates") + ".")


def _format_n(counts) -> str:
    """Write the numbers of samples for a legend, or nothing if they are unknown."""
    known = [count for count in counts if count]
    return f", {format_n(known)}" if known else ""


def _describe(point: RooflinePoint) -> str:
    ends = f" ({format_rate(point.low, 'FLOP/s')} to {format_rate(point.high, 'FLOP/s')})" if point.low else ""
    limit = f", at most {format_rate(point.limit_flop_per_s, 'FLOP/s')}" if point.limit_flop_per_s else ""
    text = f"{point.kind}, {point.name}: {format_rate(point.flop_per_s, 'FLOP/s')}{ends}{limit}"
    return f"{text} at {point.intensity:.3g} FLOP/byte"
