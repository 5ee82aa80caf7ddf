"""check("00.1", answer): find the check, run it behind the guard, write the event, show one line."""

import dis
import functools
import traceback
import types

from labkit.checks.cases import CheckEnded
from labkit.checks.learner import (
    LearnerFunction,
    LearnerRaised,
    NotAttempted,
    find_learner_lines,
    format_exception,
    is_raised_by_learner,
)
from labkit.checks.reference import find_exercise, load_reference
from labkit.environment import load_lab_module
from labkit.errors import CheckError, InstallError
from labkit.hardware import estimate_tier, probe_machine
from labkit.progress import append_event
from labkit.progress.course import Exercise
from labkit.views import Outcome, view_outcome

__all__ = ["check", "find_check", "is_accepted", "judge", "run_check"]

_STUB_STEPS = {"RESUME", "NOP", "COPY_FREE_VARS", "LOAD_CONST", "POP_TOP", "RETURN_CONST", "RETURN_VALUE"}


def check(exercise: str, answer) -> Outcome:
    """Judge an answer, keep the attempt in the progress, and show one line.

    `answer` is what the exercise asks for (a function: without brackets). The outcome is passed, failed, not attempted
    or blocked. In strict mode (LABKIT_STRICT=1) anything but passed, or blocked where the course says so, raises.
    """
    card = find_exercise(exercise)
    outcome = judge(exercise, answer)
    append_event(
        "attempt", exercise=exercise, version=card.version, outcome=outcome.status, sentence=outcome.sentence,
        **({"measurement": outcome.measurement} if outcome.measurement else {}),
    )  # fmt: skip
    return view_outcome(exercise, outcome, is_accepted=is_accepted(card, outcome.status))


def find_check(exercise: str):
    """Return the function check_k of the lab's checks.py for exercise NN.k. Raises CheckError if it is not there."""
    number, _, k = exercise.partition(".")
    try:
        return getattr(load_lab_module(number, "checks"), f"check_{k}")
    except (InstallError, ModuleNotFoundError, AttributeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name != f"lab{number}.checks":
            raise
        raise CheckError(f"exercise {exercise} has no check.", next_step="please report it.") from None


def is_accepted(card: Exercise, status: str) -> bool:
    """Tell whether the test run accepts a status: passed, or blocked on a tier where the course expects it."""
    return status == "passed" or (status == "blocked" and estimate_tier(probe_machine()) in card.blocked_on)


def judge(exercise: str, answer) -> Outcome:
    """Judge an answer to an exercise; nothing is shown and nothing is kept."""
    return run_check(find_check(exercise), answer, exercise=exercise)


def run_check(function, answer, *, exercise: str = "") -> Outcome:
    """Run one check function on an answer; whatever happens becomes an outcome, and only a real pass is a pass.

    `exercise` says which solution and which known mistakes belong to it, if any.
    """
    if _is_stub(answer):
        return Outcome("not attempted")
    try:
        outcome = function(_guard(exercise, answer))
    except CheckEnded as ended:
        return ended.outcome
    except NotAttempted:
        return Outcome("not attempted")
    except LearnerRaised as raised:
        return Outcome("failed", str(raised))
    except Exception as error:
        return _judge_crash(error)
    if not isinstance(outcome, Outcome):
        return Outcome("failed", f"the check itself gave no answer ({outcome!r}): report this bug of the course.")
    return outcome


def _guard(exercise: str, answer):
    """Put the functions of an answer, also those of a tuple or list, behind the guard; all else stays as it is."""
    is_row = isinstance(answer, tuple | list)
    parts = answer if is_row else (answer,)
    names = load_reference(exercise).answer_names if exercise and any(map(_is_function, parts)) else ()
    names = names if len(names) == len(parts) else ("",) * len(parts)
    guarded = [
        LearnerFunction(part, exercise=exercise, reference_name=name) if _is_function(part) else part
        for part, name in zip(parts, names, strict=True)
    ]
    return (guarded if isinstance(answer, list) else tuple(guarded)) if is_row else guarded[0]


def _judge_crash(error: Exception) -> Outcome:
    if find_learner_lines(error):
        if isinstance(error, NotImplementedError) and is_raised_by_learner(error):
            return Outcome("not attempted")
        return Outcome("failed", f"your code raised {format_exception(error)}")
    step = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{step.filename.rsplit('/', 1)[-1]}, line {step.lineno}"
    return Outcome(
        "failed",
        f"the check itself stopped with {format_exception(error)} ({place}): your answer has an unusual type, or the "
        "course has a bug. Compare with the stub, then report it.",
    )


def _is_function(answer) -> bool:
    # Classes, and objects that can be called (a torch module), go to the check as they are.
    is_named = hasattr(answer, "__name__") or isinstance(answer, functools.partial)
    return callable(answer) and is_named and not isinstance(answer, type)


def _is_stub(answer) -> bool:
    """Tell whether an answer is still the stub: None, `...`, a container of those, or a function that does nothing."""
    if answer is None or answer is Ellipsis:
        return True
    if isinstance(answer, dict):
        return bool(answer) and all(_is_stub(value) for value in answer.values())
    if isinstance(answer, tuple | list):
        return bool(answer) and all(_is_stub(value) for value in answer)
    return isinstance(answer, types.FunctionType) and _is_empty_function(answer)


def _is_empty_function(function: types.FunctionType) -> bool:
    """Tell whether a function's body is only a docstring, `pass` or `...`, so that it returns None."""
    steps = list(dis.get_instructions(function))
    if any(step.opname not in _STUB_STEPS for step in steps):
        return False
    returned = [step.argval for step in steps if step.opname in ("LOAD_CONST", "RETURN_CONST")]
    return all(value is None or value is Ellipsis for value in returned)
