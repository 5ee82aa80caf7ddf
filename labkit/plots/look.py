"""The look of every figure: colours, size, theme, text alternative.

Blue (`ESTIMATE`) is what was computed or predicted, vermilion (`MEASURED`) what was observed; both are of the
colour-blind safe set of Okabe and Ito (https://jfly.uni-koeln.de/color/). Backgrounds are transparent and text is a
grey that reads on white and on black, so the figures fit the light and the dark theme.
"""

from labkit.errors import LabkitError

__all__ = ["ESTIMATE", "MEASURED", "NEUTRAL", "add_alternative", "format_alternative", "make_figure"]

ESTIMATE = "#0072B2"
MEASURED = "#D55E00"
NEUTRAL = "#7F7F7F"
_WIDTH, _HEIGHT = 760, 380  # the width of a notebook's output area in JupyterLab with the file browser open


def make_figure(title: str, *, x: str, y: str):
    """Return an empty figure in the course's look."""
    import plotly.graph_objects as go

    figure = go.Figure()
    grid = {"gridcolor": "rgba(127,127,127,0.25)", "zerolinecolor": "rgba(127,127,127,0.4)", "linecolor": NEUTRAL}
    figure.update_layout(
        title={"text": title, "font": {"size": 16}, "x": 0.02, "y": 0.97, "yanchor": "top"},
        width=_WIDTH, height=_HEIGHT,
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", font={"color": NEUTRAL, "size": 13},
        margin={"l": 100, "r": 20, "t": 75, "b": 60},
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
        raise LabkitError(
            "This figure has no text alternative.", next_step="Build it with a function of labkit.plots."
        )
    return meta["alternative"]
