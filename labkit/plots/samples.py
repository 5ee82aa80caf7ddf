"""What do samples look like? With their interval, in order of time, as a stream of tokens, beside a prediction."""

import itertools
import statistics
from collections.abc import Mapping, Sequence

from labkit.plots.look import (
    ESTIMATE,
    MEASURED,
    MORE,
    NEUTRAL,
    add_alternative,
    check_drawable,
    format_alternative,
    make_error_bars,
    make_figure,
)
from labkit.stats import summarize
from labkit.units import format_interval, format_number

__all__ = ["plot_prediction", "plot_ratios", "plot_samples", "plot_time_order", "plot_token_stream"]


def plot_token_stream(token_times_s: Sequence[Sequence[float]], *, title: str):
    """Return the number of tokens received over the seconds since the request, one line per run.

    `token_times_s`: for each run, the arrival of every token in seconds since the start of the run.
    """
    for k, times in enumerate(token_times_s):
        check_drawable(f"the token times of run {k + 1}", times)
    figure = make_figure(title, x="seconds since the request", y="tokens received (count)")
    figure.update_xaxes(rangemode="tozero")
    for k, times in enumerate(token_times_s):
        figure.add_scattergl(
            x=list(times), y=list(range(1, len(times) + 1)), mode="lines", line={"color": MEASURED, "width": 1.5},
            opacity=0.8, name=f"{len(token_times_s)} measured runs", legendgroup="runs", showlegend=k == 0,
            hovertemplate="token %{y} at %{x:.4f} s<extra>run " + str(k + 1) + "</extra>",
        )  # fmt: skip
    first = [times[0] for times in token_times_s if len(times)]
    if first:
        middle = statistics.median(first)
        figure.add_vline(x=middle, line={"color": NEUTRAL, "dash": "dot"}, annotation_text="TTFT",
                         annotation_position="top right")  # fmt: skip
        spread = f"the median TTFT is {format_number(middle)} s"
    else:
        spread = "no token was received"
    ends = [times[-1] for times in token_times_s if len(times)]
    return add_alternative(
        figure,
        f"{title}. {len(token_times_s)} runs; {spread}"
        + (f"; the last tokens arrive between {min(ends):.3g} s and {max(ends):.3g} s." if ends else "."),
    )


def plot_samples(samples: Mapping[str, Sequence[float]], *, unit: str, title: str):
    """Return every sample of each group as a dot, with the median and its 95 % interval below.

    `samples`: group name to values in `unit`. With fewer than six samples there is no 95 % interval, and the figure
    says so.
    """
    figure = make_figure(title, x=unit, y="")
    said = []
    for row, (name, values) in enumerate(samples.items()):
        label = f"{name} (n = {len(values)})"
        # Fixed offsets instead of random jitter, so that the same data gives the same figure.
        offsets = list(itertools.islice(itertools.cycle((0.0, 0.06, -0.06, 0.12, -0.12)), len(values)))
        figure.add_scattergl(
            x=list(values), y=[row + o + 0.12 for o in offsets], mode="markers", showlegend=row == 0,
            name="sample", legendgroup="sample", marker={"color": MEASURED, "size": 6, "opacity": 0.75},
            hovertemplate="%{x:.4g} " + unit + "<extra>" + label + "</extra>",
        )  # fmt: skip
        if not len(values):
            said.append(f"{label}: no samples")
            continue
        summary = summarize(values)
        interval = summary.p50_interval
        ends = (interval.low, interval.high) if interval else (None, None)
        bars = make_error_bars(MEASURED, [summary.p50], ends[:1], ends[1:], width=8)
        spread = format_interval(interval, write=format_number)
        figure.add_scatter(
            x=[summary.p50], y=[row - 0.2], mode="markers", error_x=bars, showlegend=row == 0,
            hovertemplate=f"median {format_number(summary.p50)} {unit} ({spread})<extra>{label}</extra>",
            name="median and 95 % interval", legendgroup="median",
            marker={"color": MEASURED, "size": 11, "symbol": "diamond"},
        )  # fmt: skip
        said.append(f"{label}: median {format_number(summary.p50)} {unit}, 95 % interval: {spread}")
    names = [f"{name}<br>n = {len(values)}" for name, values in samples.items()]
    rows = list(range(len(names)))  # the first group is on top
    figure.update_yaxes(tickvals=rows, ticktext=names, range=[max(len(names), 1) - 0.4, -0.6], zeroline=False)
    return add_alternative(figure, f"{title}. " + ("; ".join(said) or "No groups") + ".")


def plot_prediction(samples: Sequence[float], *, predicted: float | None, unit: str, title: str):
    """Return the measured samples and the prediction on the same axis.

    `samples` and `predicted` are in `unit`; `predicted` is None if the prediction was skipped.
    """
    check_drawable("the prediction", [] if predicted is None else [predicted])
    figure = plot_samples({"measured": samples}, unit=unit, title=title)
    said = "No prediction was made."
    if predicted is not None:
        figure.add_scatter(
            x=[predicted], y=[-0.2], mode="markers", name="predicted",
            hovertemplate=f"predicted {format_number(predicted)} {unit}<extra></extra>",
            marker={"color": ESTIMATE, "size": 13, "symbol": "x"},
        )  # fmt: skip
        said = f"The prediction was {format_number(predicted)} {unit}."
    figure.update_layout(height=260)
    return add_alternative(figure, f"{format_alternative(figure)} {said}")


def plot_time_order(runs: Mapping[str, Sequence[tuple[str, float]]], *, unit: str, title: str):
    """Return every sample in order of time, one panel per run, one colour and symbol per name.

    `runs`: name of the run (its plan) to (name, value) pairs in order of time, values in `unit`.
    """
    num_panels = max(1, len(runs))
    figure = make_figure(title, x="call number, in order of time", y=unit)
    said = []
    names = list(dict.fromkeys(name for run in runs.values() for name, _ in run))
    for row, (plan, run) in enumerate(runs.items()):
        for which, name in enumerate(names):
            points = [(position, value) for position, (who, value) in enumerate(run, start=1) if who == name]
            figure.add_scattergl(
                x=[x for x, _ in points], y=[y for _, y in points], mode="markers", name=name, legendgroup=name,
                showlegend=row == 0, yaxis=f"y{row + 1}" if row else "y",
                marker={"color": (MEASURED, MORE[0], NEUTRAL)[which % 3], "size": 7, "opacity": 0.8,
                        "symbol": ("circle", "diamond-open", "x")[which % 3]},
                hovertemplate="call %{x}: %{y:.4g} " + unit + f"<extra>{name}, {plan}</extra>",
            )  # fmt: skip
            if points:
                middle = summarize([y for _, y in points]).p50
                said.append(f"{plan}, {name}: n = {len(points)}, median {format_number(middle)} {unit}")
    for row, plan in enumerate(runs):
        # Panels of equal height, the first on top, with a small gap for the name of the plan.
        top, axis = 1 - row / num_panels, f"yaxis{row + 1}" if row else "yaxis"
        figure.layout[axis] = figure.layout.yaxis.to_plotly_json() | {"domain": [top - 0.84 / num_panels, top - 0.08]}
        if row:
            figure.layout[axis].matches = "y"
        figure.add_annotation(
            text=plan, x=0, xref="paper", xanchor="left", y=top - 0.075, yref="paper", yanchor="bottom",
            showarrow=False,
        )  # fmt: skip
    figure.update_layout(height=220 + 170 * num_panels)
    figure.update_xaxes(anchor=f"y{num_panels}" if num_panels > 1 else "y")
    return add_alternative(figure, f"{title}. " + ("; ".join(said) or "No samples") + ".")


def plot_ratios(ratios: Sequence[tuple[float, float, float]], *, title: str):
    """Return the ratio of speeds of each comparison with its interval, and the line of no difference at 1.

    `ratios`: (ratio, low, high) of each comparison; intervals that exclude 1 are highlighted.
    """
    for ratio, low, high in ratios:
        check_drawable("ratios and their intervals", [ratio, low, high])
    figure = make_figure(title, x="speed of A over speed of B (ratio, with its interval)", y="comparison")
    excludes = [not low <= 1 <= high for _, low, high in ratios]
    for is_clear, name, colour in ((False, "includes 1: cannot tell", NEUTRAL), (True, "excludes 1", MEASURED)):
        rows = [(k, *ratios[k]) for k in range(len(ratios)) if excludes[k] == is_clear]
        figure.add_scatter(
            x=[row[1] for row in rows], y=[row[0] + 1 for row in rows], mode="markers", name=name, showlegend=True,
            marker={"color": colour, "size": 8, "symbol": "diamond" if is_clear else "circle"},
            error_x=make_error_bars(colour, *([row[k] for row in rows] for k in (1, 2, 3))),
            hovertemplate="comparison %{y}: %{x:.4f}<extra></extra>",
        )  # fmt: skip
    figure.add_vline(x=1, line={"color": NEUTRAL, "dash": "dot"})
    figure.update_yaxes(range=[len(ratios) + 0.8, 0.2], zeroline=False)
    if not ratios:
        return add_alternative(figure, f"{title}. No comparisons.")
    low, high = min(row[1] for row in ratios), max(row[2] for row in ratios)
    return add_alternative(
        figure,
        f"{title}. {len(ratios)} comparisons, with {sum(excludes)} intervals that exclude 1; all intervals are between "
        f"{low:.3f} and {high:.3f}.",
    )
