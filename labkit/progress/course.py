"""What is there to do? The course's phases, labs and exercises, read from labs/course.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from labkit.errors import ProgressError

__all__ = ["Course", "Exercise", "Lab", "Phase", "load_course"]


@dataclass(frozen=True, slots=True)
class Exercise:
    """One exercise.

    Attributes:
        id: "00.1"
        title: of the exercise
        minutes: that a newcomer needs
        difficulty: 1 (easy) to 5
        version: goes up when the task changes, which reopens the exercise
        is_stretch: not required
        blocked_on: tiers whose hardware cannot show it
    """

    id: str
    title: str
    minutes: float
    difficulty: int
    version: int
    is_stretch: bool
    blocked_on: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Lab:
    """One lab.

    Attributes:
        number: "00"
        name: of its notebook, without .ipynb
        title: of the lab
        question: that the lab answers
        phase: number of its phase
        minutes: that a newcomer needs
        exercises: in the lab's order
        predictions: ids, "00.p1"
        quiz: ids, "00.q1"
    """

    number: str
    name: str
    title: str
    question: str
    phase: int
    minutes: float
    exercises: tuple[Exercise, ...]
    predictions: tuple[str, ...]
    quiz: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Phase:
    """One part of the course.

    Attributes:
        number: from 0
        title: of the part
    """

    number: int
    title: str


@dataclass(frozen=True, slots=True)
class Course:
    """The whole course.

    Attributes:
        phases: in their order
        labs: in the order in which they are taken
    """

    phases: tuple[Phase, ...]
    labs: tuple[Lab, ...]


def load_course(path: str | Path | None = None) -> Course:
    """Read the course, by default from labs/course.json in the course's folder; ProgressError if that is impossible."""
    if path is None:
        from labkit.environment import find_course_root

        path = find_course_root() / "labs" / "course.json"
    step = "Build it with `make labs`, or set LABKIT_COURSE to the folder that has labs/ and labkit/."
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        return Course(
            phases=tuple(Phase(number=phase["number"], title=phase["title"]) for phase in content["phases"]),
            labs=tuple(_read_lab(lab) for lab in content["labs"]),
        )
    except OSError as error:
        raise ProgressError(f"the list of labs {path} cannot be read ({error.strerror}).", next_step=step) from error
    except KeyError as error:
        raise ProgressError(f"the list of labs in {path} lacks {error}.", next_step=step) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ProgressError(f"the list of labs in {path} is damaged ({error}).", next_step=step) from error


def _read_lab(lab: dict) -> Lab:
    return Lab(
        number=str(lab["number"]),
        name=lab["name"],
        title=lab["title"],
        question=lab["question"],
        phase=lab["phase"],
        minutes=lab["minutes"],
        exercises=tuple(_read_exercise(exercise) for exercise in lab["exercises"]),
        predictions=tuple(lab.get("predictions", ())),
        quiz=tuple(lab.get("quiz", ())),
    )


def _read_exercise(exercise: dict) -> Exercise:
    return Exercise(
        id=exercise["id"],
        title=exercise["title"],
        minutes=exercise["minutes"],
        difficulty=exercise["difficulty"],
        version=exercise["version"],
        is_stretch=exercise.get("is_stretch", False),
        blocked_on=tuple(exercise.get("blocked_on", ())),
    )
