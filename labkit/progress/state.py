"""Where does the learner stand? A pure function of the course and the events, and its table; nothing is stored."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from labkit.progress.course import Course, Exercise, Lab
from labkit.progress.events import Events

__all__ = ["CourseState", "ExerciseState", "LabState", "Prediction", "estimate_state", "format_progress"]

# A longer pause than this between two events of a lab is not counted as work on it.
_LONGEST_PAUSE_S = 15 * 60.0


@dataclass(frozen=True, slots=True)
class ExerciseState:
    """Where one exercise stands.

    Attributes:
        id: "00.1"
        title: of the exercise
        state: open, failed, passed, viewed or blocked
        num_attempts: checks that passed or failed
        sentence: what the last check said
        is_stretch: not required
        version: of the exercise; only events of this version count
    """

    id: str
    title: str
    state: str
    num_attempts: int
    sentence: str
    is_stretch: bool
    version: int


@dataclass(frozen=True, slots=True)
class Prediction:
    """A prediction and its measurement.

    Attributes:
        id: "00.p1"
        predicted: in `unit`; None: not given
        measured: in `unit`; None: not measured
        unit: of both
        is_late: given only after the measurement
    """

    id: str
    predicted: object
    measured: object
    unit: str = ""
    is_late: bool = False

    @property
    def ratio(self) -> float:
        """Predicted over measured, for two numbers above 0: above 1 the prediction was too high."""
        return self.predicted / self.measured


@dataclass(frozen=True, slots=True)
class LabState:
    """Where one lab stands.

    Attributes:
        number: "00"
        name: of its notebook, without .ipynb
        title: of the lab
        phase: number of its phase
        state: not started, in progress or complete
        minutes: spent at work so far
        num_required: exercises that are not stretch; the next three count among these
        num_passed: passed
        num_viewed: solution viewed
        num_blocked: this hardware cannot show it
        num_quiz_passed: quiz questions answered right
        num_quiz: quiz questions
        exercises: in the lab's order
        predictions: in the lab's order
    """

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
    """Where the learner stands in the whole course.

    Attributes:
        labs: in the course's order
        damaged: (line number, reason) of each progress line that was skipped
    """

    labs: tuple[LabState, ...]
    damaged: tuple[tuple[int, str], ...] = ()


def estimate_state(course: Course, events: Events | Iterable[dict]) -> CourseState:
    """Derive the state of every lab and exercise from the events.

    An exercise's state comes from the events of its current version, in the order of their times: passed if an attempt
    passed, unless its solution was viewed before that (then it stays viewed); else viewed; else the last of failed and
    blocked; else open. A lab is complete when each required exercise is passed, viewed or blocked. `minutes` is the sum
    of the gaps under 15 minutes between a lab's consecutive events: time at work, not time since the first cell.
    """
    by_lab: dict[str, list[tuple[datetime, dict]]] = {lab.number: [] for lab in course.labs}
    for event in events:
        number = event.get("lab") or event.get("exercise", "").partition(".")[0]
        if number in by_lab:
            by_lab[number].append((datetime.fromisoformat(event["time"]), event))
    for of_lab in by_lab.values():
        of_lab.sort(key=lambda pair: pair[0])  # stable; an import appends older events after newer ones
    labs = tuple(_estimate_lab(lab, by_lab[lab.number]) for lab in course.labs)
    return CourseState(labs, tuple(getattr(events, "damaged", ())))


def format_progress(state: CourseState) -> str:
    """Write a table with a row for each lab, the failed exercises, and what to do next."""
    if not state.labs:
        return "The course has no labs yet."
    width = max(len(lab.title) for lab in state.labs)
    lines = [f"lab  {'title':<{width}}  {'state':<11}  exercises  quiz  minutes  notes"]
    for lab in state.labs:
        lines.append(
            f"{lab.number:<3}  {lab.title:<{width}}  {lab.state:<11}  {_format_share(lab):>9}  "
            f"{f'{lab.num_quiz_passed}/{lab.num_quiz}':>4}  {lab.minutes:>7.0f}  {_format_notes(lab)}".rstrip()
        )
    lines += ["", _format_next(state)]
    if state.damaged:
        numbers = ", ".join(str(number) for number, _ in state.damaged)
        lines.append(f"Skipped in the progress file: damaged line {numbers}. Everything else was read.")
    return "\n".join(lines)


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
    """Take the last value given before the first measurement, or else the first that came after it.

    Until the measurement a learner may change their mind. Later values are kept as events and change nothing here.
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
    return Prediction(identity, late if is_late else early, measured, unit, is_late)


def _is_passed(events: Iterable[dict]) -> bool:
    return any(event["kind"] == "quiz" and event.get("outcome") == "passed" for event in events)


def _format_share(lab: LabState) -> str:
    return f"{lab.num_passed + lab.num_viewed + lab.num_blocked}/{lab.num_required}"


def _format_notes(lab: LabState) -> str:
    counts = ((lab.num_viewed, "viewed"), (lab.num_blocked, "blocked on this hardware"))
    notes = [f"{count} {word}" for count, word in counts if count]
    notes += [f"{exercise.id} failed" for exercise in lab.exercises if exercise.state == "failed"]
    return ", ".join(notes)


def _format_next(state: CourseState) -> str:
    # A lab under way comes before one that is not started.
    for wanted in ("in progress", "not started"):
        for lab in state.labs:
            if lab.state != wanted:
                continue
            for exercise in lab.exercises:
                if exercise.state in ("open", "failed") and not exercise.is_stretch:
                    return f"Next: exercise {exercise.id} ({exercise.title}) in labs/{lab.name}.ipynb."
            return f"Next: labs/{lab.name}.ipynb."
    return "All labs are complete."
