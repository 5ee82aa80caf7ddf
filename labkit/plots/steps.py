"""What does the next token cost, the further the text goes on? Measured steps and their estimate, by position."""

from collections.abc import Mapping, Sequence

from labkit.plots._drawable import check_drawable
from labkit.plots.look import ESTIMATE, MEASURED, add_alternative, make_figure
from labkit.stats import summarize
from labkit.units import format_interval, format_number

__all__ = ["plot_step_costs"]

_SYMBOLS = ("circle", "diamond-open", "x")
MAX_TICKS = 12  # as many positions can be written below the axis
_DASHES = ("solid", "dash", "dot")


def plot_step_costs(
    measured: Mapping[str, Mapping[int, Sequence[float]]], estimated: Mapping[str, Mapping[int, float]], *, title: str
):
    """Return milliseconds per token against the position, on two log axes: every sample, its median, the estimate.

    `measured`: name of a way to {position: seconds of each step}; `estimated`: the same names to {position: seconds}.
    Where a position is 0 the positions stand on a linear axis. LabkitError for seconds that are not above 0.
    """
    for name, steps in measured.items():
        check_drawable(f"the seconds of {name}", [s for values in steps.values() for s in values], is_log=True)
    for name, steps in estimated.items():
        check_drawable(f"the estimate of {name}", steps.values(), is_log=True)
    figure = make_figure(title, x="tokens before the new one (count)", y="time of one token (ms)")
    said = []
    for which, (name, steps) in enumerate(measured.items()):
        points = [(position, 1e3 * value) for position, values in steps.items() for value in values]
        label = f"{name}, measured (n = {_format_counts(steps)})"
        figure.add_scattergl(
            x=[x for x, _ in points], y=[y for _, y in points], mode="markers", legendgroup=name, showlegend=False,
            marker={"color": MEASURED, "size": 6, "opacity": 0.4, "symbol": _SYMBOLS[which % 3]}, name=label,
            hovertemplate="%{y:.3g} ms at %{x}<extra>" + name + "</extra>",
        )  # fmt: skip
        summaries = {place: summarize([1e3 * s for s in values]) for place, values in steps.items() if len(values)}
        ends = [one.p50_interval for one in summaries.values()]
        middles = [one.p50 for one in summaries.values()]
        figure.add_scatter(
            x=list(summaries), y=middles, mode="lines+markers", name=label, legendgroup=name,
            line={"color": MEASURED, "dash": _DASHES[which % 3]}, marker={"size": 9, "symbol": _SYMBOLS[which % 3]},
            error_y={"type": "data", "symmetric": False, "color": MEASURED, "thickness": 2, "width": 6,
                     "array": [end.high - x if end else 0 for end, x in zip(ends, middles, strict=True)],
                     "arrayminus": [x - end.low if end else 0 for end, x in zip(ends, middles, strict=True)]},
            hovertemplate="median %{y:.3g} ms at %{x}<extra>" + name + "</extra>",
        )  # fmt: skip
        for position, one in summaries.items():
            spread = format_interval(one.p50_interval, write=format_number)
            said.append(f"{name} behind {position} tokens: median {format_number(one.p50)} ms ({spread}), n = {one.n}")
    for which, (name, steps) in enumerate(estimated.items()):
        figure.add_scatter(
            x=list(steps), y=[1e3 * s for s in steps.values()], mode="lines", name=f"{name}, estimate by FLOPs",
            line={"color": ESTIMATE, "dash": _DASHES[which % 3]}, hovertemplate="%{y:.3g} ms at %{x}<extra></extra>",
        )  # fmt: skip
        said += [f"{name} behind {place} tokens: estimate {format_number(1e3 * s)} ms" for place, s in steps.items()]
    places = sorted({place for steps in (*measured.values(), *estimated.values()) for place in steps})
    if len(places) <= MAX_TICKS:
        figure.update_xaxes(tickvals=places, ticktext=[f"{place:,}" for place in places])
    check_drawable("positions", places)
    if not places or places[0] > 0:
        figure.update_xaxes(type="log")
    figure.update_yaxes(type="log", dtick=1, minor={"dtick": "D1", "showgrid": True})
    figure.update_layout(height=460, margin={"t": 110})
    return add_alternative(figure, f"{title}. " + ("; ".join(said) or "No steps") + ".")


def _format_counts(steps: Mapping[int, Sequence[float]]) -> str:
    counts = sorted({len(values) for values in steps.values()}) or [0]
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
