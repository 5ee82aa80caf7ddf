"""The look of every figure: colours, size, theme, error bars, text alternative; what cannot be drawn is refused.

Blue (`ESTIMATE`) is what was computed or predicted, vermilion (`MEASURED`) what was observed. Both belong to the
colour-blind safe palette of Okabe and Ito (https://jfly.uni-koeln.de/color/). A figure that needs more colours takes
them from `MORE`, with a different symbol or dash for each. Backgrounds are transparent, and text is the grey with equal
contrast on JupyterLab's light and dark pages (4.3 to 1), so that the figures fit both themes.
"""

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from labkit.errors import LabkitError

__all__ = [
    "ESTIMATE",
    "MEASURED",
    "MORE",
    "NEUTRAL",
    "add_alternative",
    "check_drawable",
    "format_alternative",
    "format_n",
    "make_error_bars",
    "make_figure",
]

ESTIMATE = "#0072B2"
MEASURED = "#D55E00"
NEUTRAL = "#797979"
MORE = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # the last two are pale on white: only for large, outlined marks
_WIDTH, _HEIGHT = 760, 380  # the width of a notebook's output area in JupyterLab with the file browser open
_TITLE_CHARACTERS = 80  # in one line of the title at that width


def make_figure(title: str, *, x: str, y: str):
    """Return an empty figure in the look of the course; a long title continues in a second line."""
    import plotly.graph_objects as go

    figure = go.Figure()
    grid = {"gridcolor": "rgba(127,127,127,0.25)", "zerolinecolor": "rgba(127,127,127,0.4)", "linecolor": NEUTRAL}
    wrap = textwrap.TextWrapper(_TITLE_CHARACTERS, break_long_words=False).wrap
    lines = [line for part in title.split("<br>") for line in wrap(part) or [""]]
    figure.update_layout(
        title={"text": "<br>".join(lines), "font": {"size": 16, "weight": 600}, "x": 0.02, "y": 0.97, "yanchor": "top"},
        width=_WIDTH, height=_HEIGHT,
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", font={"color": NEUTRAL, "size": 13},
        # The buttons are in the right margin, because above the figure they would cover the title.
        modebar={"orientation": "v", "bgcolor": "rgba(0,0,0,0)", "color": NEUTRAL, "activecolor": ESTIMATE},
        margin={"l": 100, "r": 45, "t": 75 + 20 * (len(lines) - 1), "b": 60},
        legend={"orientation": "h", "y": 1.01, "yanchor": "bottom", "x": 0},
        xaxis={"title": x, **grid}, yaxis={"title": y, **grid},
    )  # fmt: skip
    return figure


def add_alternative(figure, text: str):
    """Return the figure with its text alternative set."""
    figure.update_layout(meta={"alternative": text})
    return figure


def format_alternative(figure) -> str:
    """Return the text alternative of a figure: what it shows, in sentences, with n and spread."""
    meta = figure.layout.meta or {}
    if "alternative" not in meta:
        raise LabkitError("this figure has no text alternative.", next_step="build it with a function of labkit.plots.")
    return meta["alternative"]


def check_drawable(what: str, values: Iterable[Any], *, is_log: bool = False) -> None:
    """Raise LabkitError if a value is not a finite number, or not above 0 on a log axis; `what` names the values.

    Plotly would leave such a value out of the figure without a warning.
    """
    values = list(values)
    try:
        numbers = np.asarray(values, dtype=float)
        if any(isinstance(value, str) for value in values):  # numpy reads "5" as 5
            raise TypeError
    except (TypeError, ValueError):
        raise LabkitError(f"{what} must be numbers.", next_step="check what was collected.") from None
    wrong = ~np.isfinite(numbers) | ((numbers <= 0) if is_log else False)
    if wrong.any():
        seen = values[int(np.argmax(wrong))]
        expected = "finite and above 0, because the axis is logarithmic" if is_log else "finite"
        raise LabkitError(
            f"{what} must be {expected}, and one is {seen}: the figure would leave it out.",
            next_step="find out where it comes from; do not drop it.",
        )


def make_error_bars(
    colour: str,
    values: Sequence[float],
    lows: Iterable[float | None],
    highs: Iterable[float | None],
    *,
    thickness: float = 2,
    width: float = 4,
) -> dict:
    """Return Plotly's error bars from `lows` to `highs` around `values`; None draws no bar."""
    above = [0.0 if high is None else high - value for value, high in zip(values, highs, strict=True)]
    below = [0.0 if low is None else value - low for value, low in zip(values, lows, strict=True)]
    return {"type": "data", "symmetric": False, "color": colour, "thickness": thickness, "width": width,
            "array": above, "arrayminus": below}  # fmt: skip


def format_n(counts: Iterable[int]) -> str:
    """Write numbers of samples: "n = 12", or "n = 7 to 24" if they differ."""
    counts = sorted(set(counts)) or [0]
    return f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"
