"""Whose line raised? The learner's part of a traceback, in one sentence."""

import linecache
import os
import sysconfig
import traceback
from pathlib import Path

__all__ = ["find_learner_lines", "format_exception", "is_raised_by_learner", "shorten"]

_LABKIT = str(Path(__file__).resolve().parents[1])
_PYTHON = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
_NOT_LEARNER = (*(str(Path(folder)) + os.sep for folder in (_LABKIT, *_PYTHON)), "<frozen")


def is_raised_by_learner(error: BaseException) -> bool:
    """Tell whether the innermost line of the traceback is the learner's own."""
    steps = traceback.extract_tb(error.__traceback__)
    return bool(steps) and _is_learner_file(steps[-1].filename)


def find_learner_lines(error: BaseException) -> list[traceback.FrameSummary]:
    """Return the lines of the learner's own code in the traceback, outermost first."""
    return [step for step in traceback.extract_tb(error.__traceback__) if _is_learner_file(step.filename)]


def _is_learner_file(filename: str) -> bool:
    """Tell whether a file is the learner's (a cell, a script), not labkit's, a package's or Python's."""
    return not filename.startswith(_NOT_LEARNER)


def format_exception(error: BaseException) -> str:
    """Return "ZeroDivisionError: division by zero (your line 3: `return 1 / 0`)" in one line."""
    try:
        message = " ".join(str(error).split())
    except Exception:
        message = ""
    text = type(error).__name__ + (f": {shorten(message, 160)}" if message else "")
    lines = find_learner_lines(error)
    if not lines:
        return text
    source = shorten((linecache.getline(lines[-1].filename, lines[-1].lineno or 0) or lines[-1].line or "").strip(), 60)
    return f"{text} (your line {lines[-1].lineno}{f': `{source}`' if source else ''})"


def shorten(text: str, limit: int) -> str:
    """Cut a text to at most `limit` characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
