"""What does it look like? One look for the whole course (`look.py`), one function per kind of figure.

Each function returns the figure. Every figure carries units on its axes, its finding as the title, n and spread, and a
text alternative (`format_alternative`) for who does not see it.
"""

from labkit.plots.look import ESTIMATE, MEASURED, format_alternative
from labkit.plots.samples import plot_prediction, plot_samples, plot_token_stream

__all__ = ["ESTIMATE", "MEASURED", "format_alternative", "plot_prediction", "plot_samples", "plot_token_stream"]
