"""What does a sweep look like? Curves with intervals: over any variable, over the batch size, or over the position.

In `plot_curves` and `plot_scaling` every mean is geometric, with its 95 % t-interval on the log scale over the samples
(the runs) of a point. In `plot_step_costs` every point is a median with its 95 % interval.
"""

import math
from collections.abc import Mapping, Sequence

from labkit.errors import LabkitError
from labkit.plots.look import (
    ESTIMATE,
    MEASURED,
    MORE,
    NEUTRAL,
    add_alternative,
    check_drawable,
    format_n,
    make_error_bars,
    make_figure,
)
from labkit.regimes import Regimes
from labkit.stats import estimate_t_quantile, summarize
from labkit.units import format_interval, format_number

__all__ = ["plot_curves", "plot_scaling", "plot_step_costs"]

_LOOKS = ((MEASURED, "circle"), (MORE[0], "diamond"), (MORE[1], "square"), (NEUTRAL, "x"))  # colours and symbols
_NUM_FINE = 200  # points of a fitted line
_MAX_TICKS = 12  # as many values fit below the axis
_STEP_MARKS = ("circle", "diamond-open", "x")
_DASHES = ("solid", "dash", "dot")


def plot_curves(
    curves: Mapping[str, Mapping[float, Sequence[float]]],
    *,
    x: str,
    y: str,
    title: str,
    is_log_x: bool = True,
    is_log_y: bool = False,
    estimates: Mapping[str, Mapping[float, float]] | None = None,
    limit: tuple[str, float] | None = None,
):
    """Return curves of samples over x, one colour and symbol per name, each point with its interval.

    `curves`: name to x to samples, in the unit of the axis label `y`. `estimates`: computed curves, drawn in the
    estimate colour without points. `limit`: name and value of a horizontal line. Raises LabkitError for a value that
    cannot be drawn: one that is not finite, or not above 0 on a log axis.
    """
    for name, points in curves.items():
        check_drawable(f"the values of {name}", [one for values in points.values() for one in values])
        means = [_average(values)[0] for values in points.values() if len(values)]
        check_drawable(f"the means of {name}", means, is_log=is_log_y)
        check_drawable(f"the positions of {name}", points)
    for name, points in (estimates or {}).items():
        check_drawable(f"the values of {name}", points.values(), is_log=is_log_y)
    if limit:
        check_drawable(f"the limit {limit[0]!r}", [limit[1]], is_log=is_log_y)
    figure = make_figure(title, x=x, y=y)
    said = []
    for which, (name, points) in enumerate(curves.items()):
        colour, symbol = _LOOKS[which % len(_LOOKS)]
        _add_curve(figure, points, name=name, colour=colour, symbol=symbol)
        said.append(f"{name}: {_describe(points)}")
    for which, (name, points) in enumerate((estimates or {}).items()):
        figure.add_scattergl(
            x=sorted(points), y=[points[key] for key in sorted(points)], mode="lines", name=name,
            line={"color": ESTIMATE, "width": 2, "dash": ("dash", "dot", "longdash")[which % 3]},
        )  # fmt: skip
        said.append(f"{name} (computed): " + _list_ends({key: (points[key], None, None) for key in points}))
    _set_x(figure, [key for points in curves.values() for key in points], is_log=is_log_x)
    if is_log_y:
        heights = [value for one in figure.data for value in one.y]
        _set_log_y(figure, [*heights, *([limit[1]] if limit else [])])
    else:
        figure.update_yaxes(rangemode="tozero")
    if limit:
        figure.add_hline(y=limit[1], line={"color": NEUTRAL, "dash": "dot"})
        _add_label(figure, limit[0], y=math.log10(limit[1]) if is_log_y else limit[1])
        said.append(f"{limit[0]}: {format_number(limit[1])}")
    return add_alternative(figure, f"{title}. " + ("; ".join(said) or "No curves") + ".")


def plot_scaling(
    step_s: Mapping[int, Sequence[float]],
    *,
    title: str,
    fit: Regimes | None = None,
    limit_s: float | None = None,
    sweet_spot: int | None = None,
):
    """Return throughput (above) and step time (below) over the batch size, with the knee, limit and sweet spot.

    `step_s`: batch size to the seconds of a step in each run. Each row yields one token per step, so the step time is
    what each request waits for a token, and batch / time is the throughput. `fit`: the fitted curve, and the knee with
    its interval as a band, in the estimate colour. `limit_s`: the latency limit, as a line. `sweet_spot`: the batch
    size to mark, one of `step_s` with samples. Raises LabkitError for a value that cannot be drawn.
    """
    check_drawable("batch sizes", step_s, is_log=True)
    check_drawable("the seconds of a step", [one for values in step_s.values() for one in values], is_log=True)
    check_drawable("limit_s", [] if limit_s is None else [limit_s], is_log=True)
    if sweet_spot is not None and not len(step_s.get(sweet_spot, ())):
        known = ", ".join(str(batch) for batch, values in sorted(step_s.items()) if len(values)) or "none"
        raise LabkitError(
            f"sweet_spot is {sweet_spot}, which was not measured; measured: {known}.",
            next_step="mark a batch size of step_s, or leave sweet_spot out.",
        )
    figure = make_figure(title, x="batch size (rows in one step)", y="step time, ms")
    grid = figure.layout.yaxis.to_plotly_json()
    figure.update_layout(
        height=560, yaxis={**grid, "domain": [0, 0.46]},
        yaxis2={**grid, "title": "throughput, tok/s", "domain": [0.54, 1], "anchor": "x"},
    )  # fmt: skip
    rates = {batch: [batch / value for value in values] for batch, values in step_s.items()}
    times = {batch: [1e3 * value for value in values] for batch, values in step_s.items()}
    _add_curve(figure, rates, name="measured, mean and 95 % interval", axis="y2")
    _add_curve(figure, times, name="measured", is_listed=False)
    said = [f"throughput, tok/s: {_describe(rates)}", f"step time, ms: {_describe(times)}"]
    if fit and step_s:
        said.append(_add_fit(figure, fit, sorted(step_s)))
    if limit_s:
        figure.add_hline(y=1e3 * limit_s, line={"color": NEUTRAL, "dash": "dot"}, yref="y")
        _add_label(figure, f"limit {format_number(1e3 * limit_s)} ms", y=math.log10(1e3 * limit_s))
        said.append(f"the limit is {format_number(1e3 * limit_s)} ms")
    if sweet_spot is not None:
        mark = {"symbol": "star", "size": 17, "color": MORE[2], "line": {"color": NEUTRAL, "width": 1}}
        for axis, points in (("y2", rates), ("y", times)):
            figure.add_scatter(x=[sweet_spot], y=[_average(points[sweet_spot])[0]], mode="markers", marker=mark,
                               yaxis=axis, name=f"sweet spot: batch {sweet_spot}", showlegend=axis == "y2")  # fmt: skip
        said.append(f"the sweet spot is batch {sweet_spot}")
    elif limit_s:
        said.append("no batch size meets the limit")
    _set_x(figure, list(step_s), is_log=True)
    for axis in ("y", "y2"):
        heights = [value for one in figure.data if one.yaxis == axis for value in one.y]
        _set_log_y(figure, [*heights, *([1e3 * limit_s] if limit_s and axis == "y" else [])], axis=axis)
    return add_alternative(figure, f"{title}. " + "; ".join(said) + ".")


def plot_step_costs(
    measured: Mapping[str, Mapping[int, Sequence[float]]], estimated: Mapping[str, Mapping[int, float]], *, title: str
):
    """Return milliseconds per token over the position, on log axes: every sample, the median, and the estimate.

    `measured`: method to {position: seconds of each step}; `estimated`: the same methods to {position: seconds}.
    The axis of positions is linear if one of them is 0. Raises LabkitError for seconds that are not above 0.
    """
    for name, steps in measured.items():
        check_drawable(f"the seconds of {name}", [s for values in steps.values() for s in values], is_log=True)
    for name, steps in estimated.items():
        check_drawable(f"the estimate of {name}", steps.values(), is_log=True)
    figure = make_figure(title, x="tokens before the new one (count)", y="time per token (ms)")
    said = []
    for which, (name, steps) in enumerate(measured.items()):
        points = [(position, 1e3 * value) for position, values in steps.items() for value in values]
        label = f"{name}, measured ({format_n(len(values) for values in steps.values())})"
        figure.add_scattergl(
            x=[x for x, _ in points], y=[y for _, y in points], mode="markers", legendgroup=name, showlegend=False,
            marker={"color": MEASURED, "size": 6, "opacity": 0.4, "symbol": _STEP_MARKS[which % 3]}, name=label,
            hovertemplate="%{y:.3g} ms at %{x}<extra>" + name + "</extra>",
        )  # fmt: skip
        summaries = {place: summarize([1e3 * s for s in values]) for place, values in steps.items() if len(values)}
        ends = [one.p50_interval for one in summaries.values()]
        middles = [one.p50 for one in summaries.values()]
        figure.add_scatter(
            x=list(summaries), y=middles, mode="lines+markers", name=label, legendgroup=name,
            line={"color": MEASURED, "dash": _DASHES[which % 3]}, marker={"size": 9, "symbol": _STEP_MARKS[which % 3]},
            error_y=make_error_bars(MEASURED, middles, (end and end.low for end in ends),
                                    (end and end.high for end in ends), width=6),
            hovertemplate="median %{y:.3g} ms at %{x}<extra>" + name + "</extra>",
        )  # fmt: skip
        for position, one in summaries.items():
            spread = format_interval(one.p50_interval, write=format_number)
            said.append(f"{name} after {position} tokens: median {format_number(one.p50)} ms ({spread}), n = {one.n}")
    for which, (name, steps) in enumerate(estimated.items()):
        figure.add_scatter(
            x=list(steps), y=[1e3 * s for s in steps.values()], mode="lines", name=f"{name}, estimate by FLOPs",
            line={"color": ESTIMATE, "dash": _DASHES[which % 3]}, hovertemplate="%{y:.3g} ms at %{x}<extra></extra>",
        )  # fmt: skip
        said += [f"{name} after {place} tokens: estimate {format_number(1e3 * s)} ms" for place, s in steps.items()]
    places = sorted({place for steps in (*measured.values(), *estimated.values()) for place in steps})
    if len(places) <= _MAX_TICKS:
        figure.update_xaxes(tickvals=places, ticktext=[f"{place:,}" for place in places])
    check_drawable("positions", places)
    if not places or places[0] > 0:
        figure.update_xaxes(type="log")
    figure.update_yaxes(type="log", dtick=1, minor={"dtick": "D1", "showgrid": True})
    figure.update_layout(height=460, margin={"t": 110})
    return add_alternative(figure, f"{title}. " + ("; ".join(said) or "No steps") + ".")


def _add_fit(figure, fit: Regimes, batches: Sequence[int]) -> str:
    low, high = batches[0], batches[-1]
    fine = [low * (high / low) ** (k / _NUM_FINE) for k in range(_NUM_FINE + 1)]
    fitted = [float(value) for value in fit.estimate(fine)]
    line = {"color": ESTIMATE, "width": 2, "dash": "dash"}
    for axis, values in (("y2", [b / t for b, t in zip(fine, fitted, strict=True)]), ("y", [1e3 * t for t in fitted])):
        figure.add_scatter(x=fine, y=values, mode="lines", line=line, yaxis=axis, name=f'fitted, shape "{fit.shape}"',
                           showlegend=axis == "y2", hoverinfo="skip")  # fmt: skip
    if fit.verdict != "knee":
        words = {"flat": "flat to the end", "linear": "linear from the start", "cannot tell": "cannot tell"}
        return f"no knee within the sweep: {words[fit.verdict]}"
    across = {"xref": "x", "yref": "paper", "y0": 0, "y1": 1}  # both panels
    figure.add_shape(type="rect", x0=fit.low, x1=fit.high, fillcolor=ESTIMATE, opacity=0.13, line_width=0, **across)
    figure.add_shape(type="line", x0=fit.knee, x1=fit.knee, line={"color": ESTIMATE, "width": 1}, **across)
    figure.add_annotation(
        text=f"knee {fit.knee:.3g} ({fit.low:.3g} to {fit.high:.3g})", x=math.log10(math.sqrt(fit.low * fit.high)),
        xref="x", y=0.5, yref="paper", showarrow=False, font={"color": ESTIMATE},
    )  # fmt: skip
    knee = f"the knee is at batch {fit.knee:.3g}, {fit.low:.3g} to {fit.high:.3g}"
    return f"{knee}; the fitted curve is off by at most {100 * fit.misfit:.0f} %"


def _add_curve(figure, points, *, name, colour=MEASURED, symbol="circle", axis="y", is_listed=True) -> None:
    means = {key: _average(points[key]) for key in sorted(points) if len(points[key])}
    middles, lows, highs = ([one[k] for one in means.values()] for k in range(3))
    bars = make_error_bars(colour, middles, lows, highs, thickness=1.5)
    figure.add_scattergl(
        x=list(means), y=middles, mode="lines+markers", name=name, yaxis=axis,
        marker={"color": colour, "symbol": symbol, "size": 8}, line={"color": colour, "width": 1.5}, error_y=bars,
        showlegend=is_listed, customdata=[len(points[key]) for key in means],
        hovertemplate="%{x}: %{y:.4g} (n = %{customdata})<extra>" + name + "</extra>",
    )  # fmt: skip


def _average(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Return the geometric mean and its 95 % interval, without ends for one sample; the mean if one is not above 0."""
    if min(values) <= 0:
        return sum(values) / len(values), None, None
    logs = [math.log(value) for value in values]
    n, mean = len(logs), sum(logs) / len(logs)
    if n < 2:
        return math.exp(mean), None, None
    half = estimate_t_quantile(0.975, n - 1) * math.sqrt(sum((one - mean) ** 2 for one in logs) / (n - 1) / n)
    return math.exp(mean), math.exp(mean - half), math.exp(min(mean + half, 700.0))


def _describe(points: Mapping[float, Sequence[float]]) -> str:
    points = {key: values for key, values in points.items() if len(values)}
    if not points:
        return "no points"
    n = format_n(len(values) for values in points.values())
    return f"{_list_ends({key: _average(values) for key, values in points.items()})} ({n} per point)"


def _list_ends(means) -> str:
    """Write every point of a short curve, or the first, highest and last point of a long one."""
    keys = sorted(means)
    if len(keys) > _MAX_TICKS:
        keys = sorted({keys[0], max(keys, key=lambda key: means[key][0]), keys[-1]})
    return ", ".join(f"{_write(means[key])} at {round(key, 2):g}" for key in keys)


def _write(mean) -> str:
    if mean[1] is None:
        return format_number(float(mean[0]))
    return f"{format_number(mean[0])} ({format_number(mean[1])} to {format_number(mean[2])})"


def _set_x(figure, keys: Sequence[float], *, is_log: bool) -> None:
    ticks = sorted(set(keys))
    if is_log and (not ticks or ticks[0] > 0):
        figure.update_xaxes(type="log")
    if len(ticks) <= _MAX_TICKS:  # the measured values are the ticks
        figure.update_xaxes(tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])


def _set_log_y(figure, heights: Sequence[float], *, axis: str = "y") -> None:
    """Set a log axis with ticks at 1, 2 and 5 of each decade, or only at the decades if those would be too many."""
    heights = [float(value) for value in heights if value > 0] or [1.0]
    low, high = math.log10(min(heights)) - 0.12, math.log10(max(heights)) + 0.12
    decades = range(math.floor(low), math.ceil(high) + 1)
    for steps in ((1, 2, 5), (1,)):
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        ticks = [tick for tick in ticks if low <= math.log10(tick) <= high]
        if len(ticks) <= 9:
            break
    name = "yaxis" + axis[1:]
    figure.update_layout({name: {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:,g}" for tick in ticks]}})


def _add_label(figure, text: str, *, y: float) -> None:
    """Write below the right end of a horizontal line; on a log axis `y` is the logarithm, as Plotly expects."""
    figure.add_annotation(
        text=text, x=0.99, xref="paper", xanchor="right", y=y, yref="y", yanchor="top", showarrow=False
    )
