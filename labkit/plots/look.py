"""The look of every figure: colours, size, theme, text alternative.

Blue (`ESTIMATE`) is what was computed or predicted, vermilion (`MEASURED`) what was observed; both are of the
colour-blind safe set of Okabe and Ito (https://jfly.uni-koeln.de/color/). Where a figure needs more, it takes them from
`MORE`, with another symbol or dash for each. Backgrounds are transparent and text is the grey that stands out equally
from JupyterLab's light and dark page (4.3 to 1), so the figures fit both themes.
"""

import textwrap

from labkit.errors import LabkitError

__all__ = ["ESTIMATE", "MEASURED", "MORE", "NEUTRAL", "add_alternative", "format_alternative", "make_figure"]

ESTIMATE = "#0072B2"
MEASURED = "#D55E00"
NEUTRAL = "#797979"
MORE = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # the last two are pale on white: for large marks with an outline
_WIDTH, _HEIGHT = 760, 380  # the width of a notebook's output area in JupyterLab with the file browser open
_TITLE_CHARACTERS = 80  # a line of the title in that width


def make_figure(title: str, *, x: str, y: str):
    """Return an empty figure in the course's look; a long title goes on in a second line."""
    import plotly.graph_objects as go

    figure = go.Figure()
    grid = {"gridcolor": "rgba(127,127,127,0.25)", "zerolinecolor": "rgba(127,127,127,0.4)", "linecolor": NEUTRAL}
    wrap = textwrap.TextWrapper(_TITLE_CHARACTERS, break_long_words=False).wrap
    lines = [line for part in title.split("<br>") for line in wrap(part) or [""]]
    figure.update_layout(
        title={"text": "<br>".join(lines), "font": {"size": 16, "weight": 600}, "x": 0.02, "y": 0.97, "yanchor": "top"},
        width=_WIDTH, height=_HEIGHT,
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", font={"color": NEUTRAL, "size": 13},
        # The buttons stand upright in the right margin: above the figure they would cover the title.
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
    """Return the figure's text alternative: what it shows, in sentences, with n and spread."""
    meta = figure.layout.meta or {}
    if "alternative" not in meta:
        raise LabkitError("This figure has no text alternative.", next_step="Build it with a function of labkit.plots.")
    return meta["alternative"]
