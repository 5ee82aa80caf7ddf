"""Where does the learner stand? The course or one lab as a table, and a live view that follows the work.

The live view is a widget (anywidget, drawn by `progress.js`): once a second a thread of the kernel checks the time and
size of the progress file, and sends the new state if they have changed. Nothing is fetched from a network. The cell
itself shows the plain table, which the widget replaces in the page. So if widgets are missing, or a stored notebook is
only viewed, the table remains.
"""

import functools
import os
import threading
import uuid
import weakref
from collections.abc import Callable
from html import escape
from pathlib import Path

from labkit.errors import CheckError, LabkitError
from labkit.progress import estimate_state, format_progress, load_course, load_events
from labkit.progress.calibration import estimate_calibration, format_calibration
from labkit.progress.course import Course, Lab
from labkit.progress.events import find_progress_file
from labkit.progress.state import CourseState, ExerciseState, LabState, Prediction
from labkit.units import format_number
from labkit.views.html import find_kernel, view_html

__all__ = ["make_content", "view_live_progress", "view_progress", "watch_file"]

_MARKS = {"passed": "✓", "viewed": "◐", "failed": "✗", "blocked": "▢", "open": "○"}
_LAB_MARKS = {"complete": "✓", "in progress": "◐", "not started": "○"}
# JupyterLab aligns tables to the right by default; GitHub drops the style and aligns them to the left anyway.
_LEFT = 'style="text-align:left"'
_LEGEND = "✓ passed, ◐ solution viewed, ✗ failed, ▢ blocked on this hardware, ○ open, * not required"


def view_progress(lab: str | None = None) -> None:
    """Show the progress of the whole course, or of the lab with this number in detail."""
    course, events = load_course(), load_events()
    state = estimate_state(course, events)
    if lab is None:
        view_html(_format_course(course, state), format_progress(state))
        return
    found = [(one, of_lab) for one, of_lab in zip(course.labs, state.labs, strict=True) if one.number == lab]
    if not found:
        raise CheckError(
            f"there is no lab {lab!r}.", next_step=f"choose one of {', '.join(one.number for one in course.labs)}."
        )
    html = _format_lab(*found[0]) + f"<p>{escape(_format_next(state))}</p>"
    view_html(html, _format_lab_text(*found[0]) + f"\n{_format_next(state)}")


def view_live_progress() -> None:
    """Show the progress of the whole course; in a notebook it follows the work, and a click opens a lab."""
    if find_kernel() is None:
        view_progress()
        return
    path = find_progress_file()
    seen = _look(path)  # before the content is read, so that what happens meanwhile counts as a change
    course = load_course()
    state = estimate_state(course, load_events())
    key = uuid.uuid4().hex
    try:
        widget = _make_widget_class()(content=make_content(course, state), key=key)
    except ImportError:  # anywidget is not installed
        view_progress()
        return
    _follow(widget, path, seen)
    view_html(f'<div data-labkit-live="{key}">{_format_course(course, state)}</div>', format_progress(state))


def make_content(course: Course, state: CourseState) -> dict:
    """Return what the live view draws: phases with their labs, what to do next, and how good the predictions are.

    It is plain text and numbers, which the view sets as text, so that nothing in a title can become markup.
    """
    pairs = list(zip(course.labs, state.labs, strict=True))
    phases = [
        {"title": f"Phase {phase.number}: {phase.title}",
         "labs": [_make_lab(lab, of_lab) for lab, of_lab in pairs if lab.phase == phase.number]}
        for phase in course.phases
    ]  # fmt: skip
    return {
        "phases": [phase for phase in phases if phase["labs"]],
        "next": _format_next(state),
        "predictions": format_calibration(estimate_calibration(state)),
        "damaged": [f"Progress file: damaged line {number} was skipped." for number, _ in state.damaged],
    }


def watch_file(
    path: Path, tell: Callable[[], None], *, is_wanted: Callable[[], bool], seen: object, interval_s: float = 1.0
) -> None:
    """Call `tell()` whenever the file's size or modification time differs from what was `seen`, while `is_wanted()`.

    A file that is missing or not accessible is seen as None; if it appears, that is a change.
    """
    pause = threading.Event()
    while not pause.wait(interval_s) and is_wanted():
        found = _look(path)
        if found != seen:
            seen = found
            tell()


def _format_next(state: CourseState) -> str:
    """Return the next thing to do, as in the last lines of the console table."""
    return next((line for line in format_progress(state).split("\n") if line.startswith(("Next:", "All labs"))), "")


def _format_prediction(prediction: Prediction) -> str:
    """Write "100 tok/s predicted, 80.0 measured (1.25x too high)", as far as both are known."""
    unit = f" {prediction.unit}" if prediction.unit else ""
    if prediction.predicted is None:
        return "skipped" if prediction.measured is not None else "open"
    late = " (late)" if prediction.is_late else ""
    text = f"{_format_value(prediction.predicted)}{unit} predicted{late}"
    if prediction.measured is None:
        return text
    return f"{text}, {_format_value(prediction.measured)} measured{_format_factor(prediction)}"


def _format_factor(prediction: Prediction) -> str:
    values = (prediction.predicted, prediction.measured)
    if not all(isinstance(value, int | float) and not isinstance(value, bool) and value > 0 for value in values):
        return ""  # there is no factor from or to zero
    side = "high" if values[0] > values[1] else "low"
    factor = format_number(max(values) / min(values))
    return " (the same)" if factor == "1.00" else f" ({factor}x too {side})"


def _format_value(value: object) -> str:
    return format_number(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _format_course(course: Course, state: CourseState) -> str:
    """Write the whole course as one HTML table, followed by what to do next."""
    rows = []
    for phase in course.phases:
        pairs = [
            (one, of_lab) for one, of_lab in zip(course.labs, state.labs, strict=True) if one.phase == phase.number
        ]
        if pairs:
            rows.append(f'<tr><th colspan="6" {_LEFT}>Phase {phase.number}: {escape(phase.title)}</th></tr>')
        rows += [_format_course_row(one, of_lab) for one, of_lab in pairs]
    damaged = "".join(f"<p>Progress file: damaged line {number} was skipped.</p>" for number, _ in state.damaged)
    return (
        '<table aria-label="progress through the course">'
        + _format_row(("lab", "state", "exercises", "quiz", "minutes", "predictions"), tag="th")
        + f"{''.join(rows)}</table><p>{escape(_format_next(state))}</p><p><small>{_LEGEND}</small></p>{damaged}"
    )


def _format_course_row(lab: Lab, state: LabState) -> str:
    exercises = " ".join(
        f"{_MARKS[item.state]}&nbsp;{item.id}{'*' if item.is_stretch else ''}" for item in state.exercises
    )
    predictions = "<br>".join(f"{escape(item.id)}: {escape(_format_prediction(item))}" for item in state.predictions)
    cells = (
        f"<strong>{escape(state.number)}</strong> {escape(state.title)}",
        f"{_LAB_MARKS[state.state]}&nbsp;{state.state}",
        exercises,
        f"{state.num_quiz_passed}&nbsp;of&nbsp;{state.num_quiz}",
        _format_minutes(lab, state),
        predictions,
    )
    return _format_row(cells)


def _format_minutes(lab: Lab, state: LabState) -> str:
    """Write "12 of 45": minutes spent, and the minutes on the lab's card."""
    return f"{state.minutes:.0f} of {lab.minutes}"


def _format_row(cells: tuple[str, ...], *, tag: str = "td") -> str:
    return "<tr>" + "".join(f"<{tag} {_LEFT}>{cell}</{tag}>" for cell in cells) + "</tr>"


def _format_lab(lab: Lab, state: LabState) -> str:
    rows = [
        _format_row((f"{_MARKS[item.state]}&nbsp;{item.state}", escape(_format_title(item)), str(item.num_attempts)))
        for item in state.exercises
    ]
    rows += [
        _format_row(("prediction", escape(f"{item.id}: {_format_prediction(item)}"), "")) for item in state.predictions
    ]
    return (
        f"<p><strong>Lab {escape(state.number)}, {escape(state.title)}: {state.state}</strong> "
        f"({_format_minutes(lab, state)} minutes, quiz {state.num_quiz_passed} of {state.num_quiz})</p>"
        f'<table aria-label="progress in lab {escape(state.number)}">'
        + _format_row(("state", "exercise", "attempts"), tag="th")
        + f"{''.join(rows)}</table>"
    )


def _format_title(item: ExerciseState) -> str:
    return f"{item.id} {item.title}" + (" (stretch)" if item.is_stretch else "")


def _format_lab_text(lab: Lab, state: LabState) -> str:
    lines = [
        f"Lab {state.number}, {state.title}: {state.state} "
        f"({_format_minutes(lab, state)} minutes, quiz {state.num_quiz_passed} of {state.num_quiz})"
    ]
    lines += [f"{_MARKS[item.state]} {item.state:<8} {_format_title(item)}" for item in state.exercises]
    return "\n".join(lines + [f"  {item.id}: {_format_prediction(item)}" for item in state.predictions])


def _look(path: Path) -> tuple[int, int] | None:
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size


def _follow(widget, path: Path, seen: object) -> None:
    """Start the thread that keeps the widget up to date while it is open."""
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
            except LabkitError as error:  # the file is being repaired: say so, and go on
                found.content = {**found.content, "damaged": [str(error)]}

    threading.Thread(
        target=watch_file, args=(path, tell), kwargs={"is_wanted": is_wanted, "seen": seen},
        name="labkit-progress", daemon=True,
    ).start()  # fmt: skip


@functools.cache
def _make_widget_class():
    """Return the class of the widget, made once; raises ImportError if anywidget is not installed."""
    import anywidget
    import traitlets

    here = Path(__file__).parent

    class ProgressWidget(anywidget.AnyWidget):
        _esm = (here / "progress.js").read_text(encoding="utf-8")
        _css = (here / "progress.css").read_text(encoding="utf-8")
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
        "mark": _LAB_MARKS[state.state],
        "state": state.state,
        "done": num_done,
        "required": state.num_required,
        "quizDone": state.num_quiz_passed,
        "quiz": state.num_quiz,
        "minutes": round(state.minutes),
        "cardMinutes": lab.minutes,
        "exercises": [_make_exercise(item) for item in state.exercises],
        "predictions": [f"{item.id}: {_format_prediction(item)}" for item in state.predictions],
    }


def _make_exercise(item: ExerciseState) -> dict:
    tries = f"{item.num_attempts} attempt{'' if item.num_attempts == 1 else 's'}" if item.num_attempts else ""
    notes = [*(["stretch"] if item.is_stretch else []), *([tries] if tries else [])]
    return {
        "mark": _MARKS[item.state],
        "state": item.state,
        "title": f"{item.id} {item.title}",
        "notes": ", ".join(notes),
        "sentence": item.sentence,
    }
