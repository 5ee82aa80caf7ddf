"""Samples with their interval, and the stream of one request's tokens."""

import itertools
from collections.abc import Mapping, Sequence

from labkit.plots._drawable import check_drawable
from labkit.plots.look import ESTIMATE, MEASURED, NEUTRAL, add_alternative, format_alternative, make_figure
from labkit.stats import summarize
from labkit.units import format_interval, format_number

__all__ = ["plot_prediction", "plot_samples", "plot_token_stream"]


def plot_token_stream(token_times_s: Sequence[Sequence[float]], *, title: str):
    """Return the number of tokens received against seconds since the request, one line per run.

    `token_times_s`: for each run the arrival of every token in seconds after that run's start. Any number of runs.
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
        middle = sorted(first)[len(first) // 2]
        figure.add_vline(x=middle, line={"color": NEUTRAL, "dash": "dot"}, annotation_text="TTFT",
                         annotation_position="top right")  # fmt: skip
        spread = f"the first token comes after {format_number(middle)} s in the middle run"
    else:
        spread = "no token was received"
    ends = [times[-1] for times in token_times_s if len(times)]
    return add_alternative(
        figure,
        f"{title}. {len(token_times_s)} runs; {spread}"
        + (f"; the last tokens arrive between {min(ends):.3g} s and {max(ends):.3g} s." if ends else "."),
    )


def plot_samples(samples: Mapping[str, Sequence[float]], *, unit: str, title: str):
    """Return every sample of each group as a dot, with the median and its 95 % interval beside the dots.

    `samples`: group name to values in `unit`. Below six samples a group has no 95 % interval, and the figure says so.
    """
    figure = make_figure(title, x=unit, y="")
    said = []
    for row, (name, values) in enumerate(samples.items()):
        label = f"{name} (n = {len(values)})"
        # Fixed offsets instead of random jitter: the same data gives the same picture.
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
        bars = {"type": "data", "symmetric": False, "color": MEASURED, "thickness": 2, "width": 8,
                "array": [interval.high - summary.p50 if interval else 0],
                "arrayminus": [summary.p50 - interval.low if interval else 0]}  # fmt: skip
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
    """Return the measured samples and, where one was made, the prediction on the same axis.

    `samples` and `predicted` are in `unit`; `predicted` is None when the prediction was skipped.
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
