"""Where does the learner stand? A pure function of the course and the events; nothing is stored."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from labkit.progress.course import Course, Exercise, Lab
from labkit.progress.events import Events

__all__ = ["CourseState", "ExerciseState", "LabState", "Prediction", "estimate_state"]

# A longer pause than this between two events of a lab is not counted as work on it.
_LONGEST_PAUSE_S = 15 * 60.0


@dataclass(frozen=True, slots=True)
class ExerciseState:
    """One exercise: `state` is open, failed, passed, viewed or blocked; `sentence` is what the last check said."""

    id: str
    title: str
    state: str
    num_attempts: int
    sentence: str
    is_stretch: bool
    version: int


@dataclass(frozen=True, slots=True)
class Prediction:
    """A prediction beside its measurement (None: not given, not measured); late: given only after the measurement."""

    id: str
    predicted: object
    measured: object
    is_late: bool
    unit: str = ""


@dataclass(frozen=True, slots=True)
class LabState:
    """One lab: `state` is not started, in progress or complete; the counts are of required exercises only."""

    number: str
    name: str
    title: str
    phase: int
    state: str
    minutes: float
    num_required: int
    num_passed: int
    num_viewed: int
    num_blocked: int
    num_quiz_passed: int
    num_quiz: int
    exercises: tuple[ExerciseState, ...]
    predictions: tuple[Prediction, ...]


@dataclass(frozen=True, slots=True)
class CourseState:
    """All labs in the course's order, and `damaged`: (line number, reason) of progress lines that were skipped."""

    labs: tuple[LabState, ...]
    damaged: tuple[tuple[int, str], ...] = ()


def estimate_state(course: Course, events: Events | Iterable[dict]) -> CourseState:
    """Derive the state of every lab and exercise from the events.

    An exercise's state comes from the events of its current version, in the order of their times: passed if an attempt
    passed, unless its solution was viewed before (then viewed for good); else viewed; else the last failed or blocked;
    else open. A lab is complete when each required exercise is passed, viewed or blocked. `minutes` is the sum of the
    gaps under 15 minutes between a lab's consecutive events: time at work, not time since the first cell.
    """
    by_lab: dict[str, list[tuple[datetime, dict]]] = {lab.number: [] for lab in course.labs}
    for event in events:
        number = event.get("lab") or event.get("exercise", "").partition(".")[0]
        if number in by_lab:
            by_lab[number].append((datetime.fromisoformat(event["time"]), event))
    for of_lab in by_lab.values():
        of_lab.sort(key=lambda pair: pair[0])  # stable: an import appends older events behind newer ones
    labs = tuple(_estimate_lab(lab, by_lab[lab.number]) for lab in course.labs)
    return CourseState(labs, tuple(getattr(events, "damaged", ())))


def _estimate_lab(lab: Lab, timed: list[tuple[datetime, dict]]) -> LabState:
    by_exercise: dict[str, list[dict]] = {}
    for _, event in timed:
        by_exercise.setdefault(event.get("exercise", ""), []).append(event)
    exercises = tuple(_estimate_exercise(item, by_exercise.get(item.id, ())) for item in lab.exercises)
    required = [item.state for item in exercises if not item.is_stretch]
    is_done = all(state in ("passed", "viewed", "blocked") for state in required)
    gaps = [(after - before).total_seconds() for (before, _), (after, _) in zip(timed, timed[1:], strict=False)]
    return LabState(
        number=lab.number,
        name=lab.name,
        title=lab.title,
        phase=lab.phase,
        state="not started" if not timed else "complete" if is_done else "in progress",
        minutes=sum(gap for gap in gaps if gap < _LONGEST_PAUSE_S) / 60,
        num_required=len(required),
        num_passed=required.count("passed"),
        num_viewed=required.count("viewed"),
        num_blocked=required.count("blocked"),
        num_quiz_passed=sum(_is_passed(by_exercise.get(question, ())) for question in lab.quiz),
        num_quiz=len(lab.quiz),
        exercises=exercises,
        predictions=tuple(_estimate_prediction(item, by_exercise.get(item, ())) for item in lab.predictions),
    )


def _estimate_exercise(exercise: Exercise, events: Iterable[dict]) -> ExerciseState:
    state, attempts, sentence, is_viewed = "open", 0, "", False
    for event in events:
        if event.get("version", 1) != exercise.version:
            continue
        if event["kind"] == "viewed":
            is_viewed = True
            state = state if state == "passed" else "viewed"
        elif event["kind"] == "attempt" and event.get("outcome") in ("passed", "failed", "blocked"):
            attempts += event["outcome"] != "blocked"
            sentence = event.get("sentence") or ""
            if state != "passed" and not is_viewed:
                state = event["outcome"]
    return ExerciseState(exercise.id, exercise.title, state, attempts, sentence, exercise.is_stretch, exercise.version)


def _estimate_prediction(identity: str, events: Iterable[dict]) -> Prediction:
    """Take the last value given before the first measurement; only without one the first that came late.

    Until the measurement a learner may think again. After it, values are kept as events and change nothing here.
    """
    early = late = measured = None
    unit, is_measured = "", False
    for event in events:
        value = event.get("value")
        unit = event.get("unit") or unit
        if event["kind"] == "measured":
            is_measured, measured = True, value
        elif event["kind"] == "prediction" and value is not None:  # None: the prediction was skipped
            if not is_measured:
                early = value
            elif late is None:
                late = value
    is_late = early is None and late is not None
    return Prediction(identity, late if is_late else early, measured, is_late, unit)


def _is_passed(events: Iterable[dict]) -> bool:
    return any(event["kind"] == "quiz" and event.get("outcome") == "passed" for event in events)
