"""Where does the learner stand? The course, or one lab, as an HTML table with a plain text beside it."""

from html import escape

from labkit.errors import CheckError
from labkit.progress import estimate_state, format_progress, load_course, load_events
from labkit.progress.course import Course, Lab
from labkit.progress.state import CourseState, ExerciseState, LabState, Prediction
from labkit.units import format_number
from labkit.views.html import view_html

__all__ = ["LAB_MARKS", "MARKS", "format_course", "format_minutes", "format_next", "format_prediction", "view_progress"]

MARKS = {"passed": "✓", "viewed": "◐", "failed": "✗", "blocked": "▢", "open": "○"}
LAB_MARKS = {"complete": "✓", "in progress": "◐", "not started": "○"}
# JupyterLab sets tables to the right unless a style says otherwise; GitHub drops the style and has them left anyway.
_LEFT = 'style="text-align:left"'
_LEGEND = "✓ passed, ◐ solution viewed, ✗ failed, ▢ blocked on this hardware, ○ open, * not required"


def view_progress(lab: str | None = None) -> None:
    """Show the progress of the whole course, or with a number ("00") of one lab in detail."""
    course, events = load_course(), load_events()
    state = estimate_state(course, events)
    if lab is None:
        view_html(format_course(course, state), format_progress(state))
        return
    found = [(one, of_lab) for one, of_lab in zip(course.labs, state.labs, strict=True) if one.number == lab]
    if not found:
        raise CheckError(
            f"there is no lab {lab!r}.", next_step=f"choose one of {', '.join(one.number for one in course.labs)}."
        )
    html = _format_lab(*found[0]) + f"<p>{escape(format_next(state))}</p>"
    view_html(html, _format_lab_text(*found[0]) + f"\n{format_next(state)}")


def format_next(state: CourseState) -> str:
    """Name the next thing to do, as the console table does in its last lines."""
    return next((line for line in format_progress(state).split("\n") if line.startswith(("Next:", "All labs"))), "")


def format_prediction(prediction: Prediction) -> str:
    """Write "100 tok/s predicted, 80.0 measured (1.25x too high)" as far as both are known."""
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
        return ""  # no factor leads from or to zero
    side = "high" if values[0] > values[1] else "low"
    factor = format_number(max(values) / min(values))
    return " (the same)" if factor == "1.00" else f" ({factor}x too {side})"


def _format_value(value: object) -> str:
    return format_number(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def format_course(course: Course, state: CourseState) -> str:
    """Write the whole course as one HTML table, with what to do next under it."""
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
        + f"{''.join(rows)}</table><p>{escape(format_next(state))}</p><p><small>{_LEGEND}</small></p>{damaged}"
    )


def _format_course_row(lab: Lab, state: LabState) -> str:
    exercises = " ".join(
        f"{MARKS[item.state]}&nbsp;{item.id}{'*' if item.is_stretch else ''}" for item in state.exercises
    )
    predictions = "<br>".join(f"{escape(item.id)}: {escape(format_prediction(item))}" for item in state.predictions)
    cells = (
        f"<strong>{escape(state.number)}</strong> {escape(state.title)}",
        f"{LAB_MARKS[state.state]}&nbsp;{state.state}",
        exercises,
        f"{state.num_quiz_passed}&nbsp;of&nbsp;{state.num_quiz}",
        format_minutes(lab, state),
        predictions,
    )
    return _format_row(cells)


def format_minutes(lab: Lab, state: LabState) -> str:
    """Write "12 of 45": minutes at work, and those of the lab's card."""
    return f"{state.minutes:.0f} of {lab.minutes}"


def _format_row(cells: tuple[str, ...], *, tag: str = "td") -> str:
    return "<tr>" + "".join(f"<{tag} {_LEFT}>{cell}</{tag}>" for cell in cells) + "</tr>"


def _format_lab(lab: Lab, state: LabState) -> str:
    rows = [
        _format_row((f"{MARKS[item.state]}&nbsp;{item.state}", escape(_format_title(item)), str(item.num_attempts)))
        for item in state.exercises
    ]
    rows += [
        _format_row(("prediction", escape(f"{item.id}: {format_prediction(item)}"), "")) for item in state.predictions
    ]
    return (
        f"<p><strong>Lab {escape(state.number)}, {escape(state.title)}: {state.state}</strong> "
        f"({format_minutes(lab, state)} minutes, quiz {state.num_quiz_passed} of {state.num_quiz})</p>"
        f'<table aria-label="progress in lab {escape(state.number)}">'
        + _format_row(("state", "exercise", "attempts"), tag="th")
        + f"{''.join(rows)}</table>"
    )


def _format_title(item: ExerciseState) -> str:
    return f"{item.id} {item.title}" + (" (stretch)" if item.is_stretch else "")


def _format_lab_text(lab: Lab, state: LabState) -> str:
    lines = [
        f"Lab {state.number}, {state.title}: {state.state} "
        f"({format_minutes(lab, state)} minutes, quiz {state.num_quiz_passed} of {state.num_quiz})"
    ]
    lines += [f"{MARKS[item.state]} {item.state:<8} {_format_title(item)}" for item in state.exercises]
    return "\n".join(lines + [f"  {item.id}: {format_prediction(item)}" for item in state.predictions])
