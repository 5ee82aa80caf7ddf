"""What does measuring look like? Samples in the order of time, and verdicts beside the line of no difference.

The look, the colours and the text alternative are those of `labkit.plots`.
"""

from collections.abc import Mapping, Sequence

from labkit.plots._drawable import check_drawable
from labkit.plots.look import MEASURED, NEUTRAL, add_alternative, make_figure
from labkit.stats import summarize
from labkit.units import format_number

__all__ = ["plot_ratios", "plot_time_order"]

_SECOND = "#009E73"  # the bluish green of the same colour-blind safe set; the symbols differ as well


def plot_time_order(runs: Mapping[str, Sequence[tuple[str, float]]], *, unit: str, title: str):
    """Return every sample in the order of time, one panel per run, one colour and symbol per name.

    `runs`: name of the run (its plan) to (name, value) pairs in the order of time, values in `unit`.
    """
    num_panels = max(1, len(runs))
    figure = make_figure(title, x="number of the call, in the order of time", y=unit)
    said = []
    names = list(dict.fromkeys(name for run in runs.values() for name, _ in run))
    for row, (plan, run) in enumerate(runs.items()):
        for which, name in enumerate(names):
            points = [(position, value) for position, (who, value) in enumerate(run, start=1) if who == name]
            figure.add_scattergl(
                x=[x for x, _ in points], y=[y for _, y in points], mode="markers", name=name, legendgroup=name,
                showlegend=row == 0, yaxis=f"y{row + 1}" if row else "y",
                marker={"color": (MEASURED, _SECOND, NEUTRAL)[which % 3], "size": 7, "opacity": 0.8,
                        "symbol": ("circle", "diamond-open", "x")[which % 3]},
                hovertemplate="call %{x}: %{y:.4g} " + unit + f"<extra>{name}, {plan}</extra>",
            )  # fmt: skip
            if points:
                middle = summarize([y for _, y in points]).p50
                said.append(f"{plan}, {name}: n = {len(points)}, median {format_number(middle)} {unit}")
    for row, plan in enumerate(runs):
        # Equal panels, one above the other, the first on top; a small gap for the name of the plan.
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
    """Return each comparison as its ratio of speeds with its interval, beside the line of no difference at 1.

    `ratios`: (ratio, low, high) for each comparison; an interval that misses 1 stands out.
    """
    for ratio, low, high in ratios:
        check_drawable("ratios and their intervals", [ratio, low, high])
    figure = make_figure(title, x="speed of A over speed of B (ratio, with its interval)", y="comparison")
    missing = [not low <= 1 <= high for _, low, high in ratios]
    for is_missing, name, colour in ((False, "holds 1: cannot tell", NEUTRAL), (True, "misses 1", MEASURED)):
        rows = [(k, *ratios[k]) for k in range(len(ratios)) if missing[k] == is_missing]
        figure.add_scatter(
            x=[row[1] for row in rows], y=[row[0] + 1 for row in rows], mode="markers", name=name, showlegend=True,
            marker={"color": colour, "size": 8, "symbol": "diamond" if is_missing else "circle"},
            error_x={"type": "data", "symmetric": False, "color": colour, "thickness": 2, "width": 4,
                     "array": [high - ratio for _, ratio, _, high in rows],
                     "arrayminus": [ratio - low for _, ratio, low, _ in rows]},
            hovertemplate="comparison %{y}: %{x:.4f}<extra></extra>",
        )  # fmt: skip
    figure.add_vline(x=1, line={"color": NEUTRAL, "dash": "dot"})
    figure.update_yaxes(range=[len(ratios) + 0.8, 0.2], zeroline=False)
    if not ratios:
        return add_alternative(figure, f"{title}. No comparisons.")
    low, high = min(row[1] for row in ratios), max(row[2] for row in ratios)
    return add_alternative(
        figure,
        f"{title}. {len(ratios)} comparisons; the interval of {sum(missing)} misses 1; all intervals lie between "
        f"{low:.3f} and {high:.3f}.",
    )
