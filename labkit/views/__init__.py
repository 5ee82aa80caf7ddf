"""What does the learner see? One line for an answer, one table for the progress: HTML in a notebook, else plain text.

    outcome.py    the outcome of a check, in one line
    progress.py   the course or one lab as a table, and the live view
    html.py       shows HTML in a notebook and plain text elsewhere

The HTML is plain tables and text marks without colours, so that it looks the same in Jupyter (light or dark) and in a
stored notebook on GitHub, which strips styles and scripts.
"""

from labkit.views.html import format_code, format_plain, view_html
from labkit.views.outcome import CheckFailed, Outcome, is_strict, view_outcome
from labkit.views.progress import view_live_progress, view_progress

__all__ = [
    "CheckFailed",
    "Outcome",
    "format_code",
    "format_plain",
    "is_strict",
    "view_html",
    "view_live_progress",
    "view_outcome",
    "view_progress",
]
