"""ready and complete: what waits for an earlier answer, and what a lab still lacks."""

from html import escape

from labkit.checks.judge import is_accepted
from labkit.checks.reference import find_exercise
from labkit.errors import CheckError
from labkit.progress import append_event, estimate_state, load_course, load_events
from labkit.progress.state import ExerciseState, LabState
from labkit.views import CheckFailed, is_strict, view_html, view_progress

__all__ = ["complete", "ready"]

_DONE = ("passed", "viewed")


def ready(exercise: str) -> bool:
    """Tell whether an exercise is passed or viewed in its current version.

    If not, show one line, which strict mode raises. Passed or viewed counts across sessions: it is in the progress.
    """
    card = find_exercise(exercise)
    state = _find_lab(exercise.partition(".")[0])
    found = next(item for item in state.exercises if item.id == exercise)
    if found.state in _DONE:
        return True
    line = f"this cell waits for exercise {exercise}"
    line += " (blocked on this hardware)" if found.state == "blocked" else ""
    if is_strict() and not is_accepted(card, found.state):
        raise CheckFailed(line)
    view_html(f'<p role="status">{escape(line)}</p>', line)
    return False


def complete(lab: str) -> None:
    """End a lab: say what is still open, or that it is complete and where to go on; then show the progress.

    Derived from the checks of the required exercises: each must be passed, viewed, or blocked by the hardware. Strict
    mode raises CheckFailed when one is open.
    """
    state = _find_lab(lab)
    missing = [item for item in state.exercises if not item.is_stretch and item.state not in (*_DONE, "blocked")]
    if missing:
        lines = [f"lab {lab} is not complete yet:", *(_format_missing(item) for item in missing)]
        if is_strict():
            raise CheckFailed(" ".join(lines))
    else:
        append_event("complete", lab=lab)
        lines = [f"✓ lab {lab} is complete.", *_format_extras(state), _format_next(lab)]
    view_html("".join(f'<p role="status">{escape(line)}</p>' for line in lines), "\n".join(lines))
    view_progress()


def _find_lab(lab: str) -> LabState:
    labs = estimate_state(load_course(), load_events()).labs
    for state in labs:
        if state.number == lab:
            return state
    numbers = ", ".join(one.number for one in labs)
    raise CheckError(f"the course has no lab {lab!r}.", next_step=f"use one of {numbers}.")


def _format_missing(item: ExerciseState) -> str:
    return f"○ {item.id} {item.title}: {'the last check failed' if item.state == 'failed' else 'open'}"


def _format_extras(state: LabState) -> list[str]:
    left = state.num_quiz - state.num_quiz_passed
    return [f"Not required: {left} of {state.num_quiz} quiz questions are open."] if left else []


def _format_next(lab: str) -> str:
    labs = load_course().labs
    position = [one.number for one in labs].index(lab)
    if position + 1 == len(labs):
        return "That was the last lab of the course so far."
    following = labs[position + 1]
    return f"Next: labs/{following.name}.ipynb, {following.title}: {following.question}"
