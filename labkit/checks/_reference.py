"""use_reference("00.1"): show the course's solution, run it in the notebook, and mark the exercise as viewed."""

import linecache
import re
import sys
from html import escape

from labkit.checks._run import find_exercise
from labkit.environment import find_course_root
from labkit.errors import CheckError
from labkit.progress import append_event
from labkit.views import view_html

__all__ = ["find_reference", "run_reference", "use_reference"]

_CELL = re.compile(r"^# %%(?P<head>.*)\n(?P<body>(?:(?!# %%).*\n?)*)", re.MULTILINE)
_MARKER = re.compile(r"^\s*### (BEGIN|END) SOLUTION.*\n?", re.MULTILINE)


def use_reference(exercise: str) -> None:
    """Load the solution of an exercise into the notebook, so that a stuck learner can go on.

    The exercise counts as viewed from now on, never as passed (unless it was passed before). Raises CheckError when
    there is no solution, or when it stops: then nothing is shown, and the exercise stays as it was.
    """
    card = find_exercise(exercise)
    code = find_reference(exercise)
    # The caller is the notebook's cell: its globals are the notebook's names.
    run_reference(exercise, code, sys._getframe(1).f_globals)
    append_event("viewed", exercise=exercise, version=card.version)
    text = f"reference solution of {exercise}, now loaded in your notebook (the exercise counts as viewed):"
    view_html(f"<p>{escape(text)}</p><pre><code>{escape(code)}</code></pre>", f"{text}\n\n{code}")


def find_reference(exercise: str) -> str:
    """Return the code of the solution cells of an exercise, without the markers."""
    number = exercise.partition(".")[0]
    for path in sorted((find_course_root() / "solutions" / "src").glob(f"{number}_*.py")):
        parts = [
            _MARKER.sub("", cell["body"]).strip("\n")
            for cell in _CELL.finditer(path.read_text(encoding="utf-8"))
            if f'solution="{exercise}"' in cell["head"]
        ]
        if parts:
            return "\n\n".join(parts)
    raise CheckError(
        f"there is no reference solution of {exercise} in solutions/src.", next_step="get the whole course again."
    )


def run_reference(exercise: str, code: str, names: dict) -> None:
    """Run code as a file of its own, so that a message can name its lines."""
    filename = f"<reference {exercise}>"
    linecache.cache[filename] = (len(code), None, code.splitlines(keepends=True), filename)
    try:
        exec(compile(code, filename, "exec"), names)
    except Exception as error:
        raise CheckError(
            f"the reference solution of {exercise} stopped with {type(error).__name__}: {error}.",
            next_step="run the cells above it first, then call use_reference again.",
        ) from error
