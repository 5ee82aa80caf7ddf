"""Where do I stand, while I work? The progress as a live view (anywidget) that follows what other notebooks record.

A thread of the kernel looks at the progress file's time and size once a second and sends the new state when they
change; `live.js` draws it. Nothing is fetched from a network.

What a cell shows is the plain table of `table.py`. The page's side of the widget finds that table and takes its place.
So the widget is never displayed itself: where widgets are missing, or a stored notebook is only looked at, the table
stays.
"""

from __future__ import annotations

import functools
import os
import threading
import uuid
import weakref
from collections.abc import Callable
from pathlib import Path

from labkit.errors import LabkitError
from labkit.progress import estimate_state, format_progress, load_course, load_events
from labkit.progress.calibration import estimate_calibration, format_calibration
from labkit.progress.course import Course, Lab
from labkit.progress.events import find_progress_file
from labkit.progress.state import CourseState, ExerciseState, LabState
from labkit.views.html import find_kernel, view_html
from labkit.views.table import LAB_MARKS, MARKS, format_course, format_next, format_prediction, view_progress

__all__ = ["make_content", "view_live_progress", "watch_file"]


def view_live_progress() -> None:
    """Show the progress of the whole course; in a notebook it follows the work, and a lab opens at a click."""
    if find_kernel() is None:
        view_progress()
        return
    path = find_progress_file()
    seen = _look(path)  # before the content is read: what happens meanwhile is then a change
    course = load_course()
    state = estimate_state(course, load_events())
    key = uuid.uuid4().hex
    try:
        widget = _make_widget_class()(content=make_content(course, state), key=key)
    except ImportError:  # anywidget is not installed
        view_progress()
        return
    _follow(widget, path, seen)
    view_html(f'<div data-labkit-live="{key}">{format_course(course, state)}</div>', format_progress(state))


def make_content(course: Course, state: CourseState) -> dict:
    """Make what the live view draws: phases with their labs, what to do next, and how good the predictions are.

    Plain text and numbers only; the view writes them as text, so nothing in a title can become markup.
    """
    pairs = list(zip(course.labs, state.labs, strict=True))
    phases = [
        {"title": f"Phase {phase.number}: {phase.title}",
         "labs": [_make_lab(lab, of_lab) for lab, of_lab in pairs if lab.phase == phase.number]}
        for phase in course.phases
    ]  # fmt: skip
    return {
        "phases": [phase for phase in phases if phase["labs"]],
        "next": format_next(state),
        "predictions": format_calibration(estimate_calibration(state)),
        "damaged": [f"Progress file: damaged line {number} was skipped." for number, _ in state.damaged],
    }


def watch_file(
    path: Path, tell: Callable[[], None], *, is_wanted: Callable[[], bool], seen: object, interval_s: float = 1.0
) -> None:
    """Call `tell()` each time the file's size or time of change is not what was `seen`, until `is_wanted()` is false.

    A file that is missing or cannot be looked at is seen as None: when it appears, that is a change.
    """
    pause = threading.Event()
    while not pause.wait(interval_s) and is_wanted():
        found = _look(path)
        if found != seen:
            seen = found
            tell()


def _look(path: Path) -> tuple[int, int] | None:
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size


def _follow(widget, path: Path, seen: object) -> None:
    """Start the thread that keeps the widget up to date for as long as it is open."""
    reference = weakref.ref(widget)

    def is_wanted() -> bool:
        found = reference()
        return found is not None and found.comm is not None  # a closed widget has no channel to the page

    def tell() -> None:
        found = reference()
        if found is not None:
            try:
                course = load_course()
                found.content = make_content(course, estimate_state(course, load_events()))
            except LabkitError as error:  # a file that is being repaired: say so, go on
                found.content = {**found.content, "damaged": [str(error)]}

    threading.Thread(
        target=watch_file, args=(path, tell), kwargs={"is_wanted": is_wanted, "seen": seen},
        name="labkit-progress", daemon=True,
    ).start()  # fmt: skip


@functools.cache
def _make_widget_class():
    """Make the widget's class, once; raises ImportError where anywidget or its front end is not installed."""
    import anywidget
    import traitlets

    here = Path(__file__).parent

    class ProgressWidget(anywidget.AnyWidget):
        _esm = (here / "live.js").read_text(encoding="utf-8")
        _css = (here / "live.css").read_text(encoding="utf-8")
        content = traitlets.Dict().tag(sync=True)
        key = traitlets.Unicode().tag(sync=True)

    return ProgressWidget


def _make_lab(lab: Lab, state: LabState) -> dict:
    num_done = state.num_passed + state.num_viewed + state.num_blocked
    return {
        "number": state.number,
        "title": state.title,
        "question": lab.question,
        "path": f"labs/{lab.name}.ipynb",
        "mark": LAB_MARKS[state.state],
        "state": state.state,
        "done": num_done,
        "required": state.num_required,
        "quizDone": state.num_quiz_passed,
        "quiz": state.num_quiz,
        "minutes": round(state.minutes),
        "cardMinutes": lab.minutes,
        "exercises": [_make_exercise(item) for item in state.exercises],
        "predictions": [f"{item.id}: {format_prediction(item)}" for item in state.predictions],
    }


def _make_exercise(item: ExerciseState) -> dict:
    tries = f"{item.num_attempts} attempt{'' if item.num_attempts == 1 else 's'}" if item.num_attempts else ""
    notes = [*(["stretch"] if item.is_stretch else []), *([tries] if tries else [])]
    return {
        "mark": MARKS[item.state],
        "state": item.state,
        "title": f"{item.id} {item.title}",
        "notes": ", ".join(notes),
        "sentence": item.sentence,
    }
