"""How well do I predict? Every prediction over its measurement, on a log axis around the line of equality."""

import itertools
import math

from labkit.plots.look import ESTIMATE, MEASURED, add_alternative, check_drawable, make_error_bars, make_figure
from labkit.progress.calibration import Calibration, format_calibration
from labkit.units import format_number

__all__ = ["plot_calibration"]

_MAX_NAMES = 40  # with more rows, names would overlap


def plot_calibration(calibration: Calibration):
    """Return one row per prediction at predicted over measured: left of 1 it was too low, right of 1 too high.

    The figure also has the median, its 95 % interval (from six predictions on), and the line of equality.
    """
    n = calibration.n
    check_drawable("predicted over measured", [one.ratio for one in calibration.predictions], is_log=True)
    figure = make_figure(_format_title(calibration), x="predicted over measured (ratio, log axis)", y="")
    rows = list(range(n))
    ratios = [one.ratio for one in calibration.predictions]
    figure.add_scatter(
        x=[1, 1], y=[-0.6, n + 0.6], mode="lines", name="measured", line={"color": MEASURED, "width": 2},
        hoverinfo="skip", showlegend=True,
    )  # fmt: skip
    figure.add_scattergl(
        x=ratios, y=rows, mode="markers", name="predicted", showlegend=True,
        marker={"color": ESTIMATE, "size": 11, "symbol": "x"}, text=[_describe(one) for one in calibration.predictions],
        hovertemplate="%{text}<extra></extra>",
    )  # fmt: skip
    if n:
        found = calibration.interval
        middle = calibration.median_ratio
        ends = (found.low, found.high) if found else (None, None)
        bars = make_error_bars(ESTIMATE, [middle], ends[:1], ends[1:], width=6)
        name = "median and 95 % interval" if found else "median (n too small for an interval)"
        figure.add_scatter(
            x=[middle], y=[n], mode="markers", error_x=bars, name=name, showlegend=True,
            marker={"color": ESTIMATE, "size": 12, "symbol": "diamond"},
            hovertemplate=f"median {format_number(middle)}<extra></extra>",
        )  # fmt: skip
    is_named = n <= _MAX_NAMES
    ticks = {"tickvals": [*rows, n], "ticktext": [*(one.id for one in calibration.predictions), "median"]}
    shown = ticks if is_named and n else {"showticklabels": False}
    figure.update_yaxes(range=[n + 0.6, -0.6], zeroline=False, **shown)
    figure.update_xaxes(type="log", **_choose_range([*ratios, 1.0]))
    figure.update_layout(height=min(900, 230 + 30 * max(n, 1)) if is_named else 600)
    return add_alternative(figure, f"{_format_title(calibration)}. {_format_alternative(calibration)}")


def _format_title(calibration: Calibration) -> str:
    if not calibration.n:
        return "No prediction has been measured yet"
    ratio = calibration.median_ratio
    side = "high" if ratio > 1 else "low"
    if 0.995 < ratio < 1.005:
        return f"The median prediction is right (n = {calibration.n})"
    factor = ratio if ratio > 1 else 1 / ratio
    return f"The median prediction is {format_number(factor)} times too {side} (n = {calibration.n})"


def _format_alternative(calibration: Calibration) -> str:
    text = format_calibration(calibration)
    if not calibration.n:
        return text
    worst = sorted(calibration.predictions, key=lambda one: max(one.ratio, 1 / one.ratio), reverse=True)
    told = "; ".join(_describe(one) for one in itertools.islice(worst, 3))
    return f"{text} Furthest from 1: {told}."


def _describe(guess) -> str:
    unit = f" {guess.unit}" if guess.unit else ""
    numbers = f"predicted {format_number(guess.predicted)}{unit}, measured {format_number(guess.measured)}{unit}"
    return f"{guess.id}: {numbers}, ratio {format_number(guess.ratio)}"


def _choose_range(ratios: list[float]) -> dict:
    """Return an axis that holds all ratios and is symmetric around 1, with its ticks."""
    reach = max(abs(math.log10(ratio)) for ratio in ratios) * 1.15
    reach = max(reach, math.log10(2.2))
    values = [0.1, 0.25, 0.5, 1, 2, 4, 10] if reach <= 1.2 else None
    ticks = {"tickvals": values, "ticktext": [f"{value:g}" for value in values]} if values else {"dtick": 1}
    return {"range": [-reach, reach], **ticks}
