"""What does the learner see? One line for an answer, one table for the progress: HTML in a notebook, else plain text.

The HTML is plain tables, text marks and no colours, so that it reads the same in Jupyter (light or dark) and in the
stored notebook on GitHub, which strips styles and scripts. `outcome.py` is the line, `table.py` the progress, `html.py`
what both are shown with.
"""

from labkit.views.html import format_code, format_plain, view_html
from labkit.views.outcome import CheckFailed, Outcome, view_outcome
from labkit.views.table import view_progress

__all__ = ["CheckFailed", "Outcome", "format_code", "format_plain", "view_html", "view_outcome", "view_progress"]
