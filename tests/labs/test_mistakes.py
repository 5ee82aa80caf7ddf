"""All labs at once: the reference passes, the stub is "not attempted", and each entry of mistakes.txt holds:
a known mistake fails with its sentence, another right answer passes.
"""

import json
import re
from pathlib import Path

import pytest

from labkit.checks.judge import judge
from labkit.checks.learner import LIMIT_S
from labkit.checks.mistakes import load_mistakes
from labkit.checks.reference import load_reference, make_names
from labkit.environment import load_lab_module

ROOT = Path(__file__).resolve().parents[2]
COURSE = json.loads((ROOT / "labs" / "course.json").read_text(encoding="utf-8"))
EXERCISES = [exercise["id"] for lab in COURSE["labs"] for exercise in lab["exercises"]]
STUB = "raise NotImplementedError('exercise: your code here')"
# Function bodies of a learner who has not begun.
UNTOUCHED = (STUB, "pass", "...", "'a docstring'", "return None", f"print('thinking')\n    {STUB}")
MIN_MISTAKES = 3  # for each exercise


SLOW = ("10.5", "33.2", "33.3")  # their checks compute for half a second: make test-quick leaves them out


def mark(exercise):
    """Quick unless the lab computes with torch, or the check itself takes long."""
    reference = load_reference(exercise)
    has_torch = re.search(r"^import torch|transformers", reference.imports, re.MULTILINE)
    return [pytest.mark.slow] if has_torch or exercise in SLOW else []


def list_mistakes():
    for exercise in EXERCISES:
        for mistake in load_mistakes(exercise):
            yield pytest.param(mistake, id=f"{exercise}-line{mistake.line}", marks=mark(exercise))


every_exercise = pytest.mark.parametrize(
    "exercise", [pytest.param(exercise, id=exercise, marks=mark(exercise)) for exercise in EXERCISES]
)


def answer(exercise, code=None):
    number, _, k = exercise.partition(".")
    # Some checks also need a record that an earlier cell saves: save_records_k() makes one up.
    getattr(load_lab_module(number, "checks"), f"save_records_{k}", lambda: None)()
    reference = load_reference(exercise)
    return eval(reference.answer, make_names(reference, code))


@every_exercise
def test_the_reference_solution_passes_and_says_what_was_found(exercise):
    outcome = judge(exercise, answer(exercise))
    assert outcome.status == "passed", outcome.sentence
    assert outcome.sentence


@every_exercise
@pytest.mark.parametrize("body", UNTOUCHED)
def test_an_untouched_stub_is_not_attempted(exercise, body):
    reference = load_reference(exercise)
    if not callable(answer(exercise)) and not isinstance(answer(exercise), tuple):  # an answer that is a value
        assert judge(exercise, None).status == judge(exercise, ...).status == "not attempted"
        return
    names = {}
    for name in reference.answer_names:
        exec(f"def {name}(*args, **kwargs):\n    {body}\n", names)
    functions = tuple(names[name] for name in reference.answer_names)
    stub = functions if len(functions) > 1 else functions[0]
    assert judge(exercise, stub).status == "not attempted"


@pytest.mark.parametrize("mistake", list(list_mistakes()))
def test_an_entry_of_mistakes_does_what_it_says(mistake):
    outcome = judge(mistake.exercise, answer(mistake.exercise, mistake.code))
    if mistake.kind == "right":
        assert outcome.status == "passed", outcome.sentence
    else:
        assert outcome.status == "failed", outcome
        assert mistake.sentence in outcome.sentence, outcome.sentence


@every_exercise
def test_an_exercise_has_known_mistakes_and_no_sentence_twice(exercise):
    mistakes = load_mistakes(exercise)
    wrong = [one for one in mistakes if one.kind != "right"]
    assert len(wrong) >= MIN_MISTAKES, f"mistakes.txt has {len(wrong)} wrong answers of {exercise}"
    assert len({one.code for one in mistakes}) == len(mistakes), "the same change is listed twice"


def test_the_time_limit_is_longer_than_any_check_here_takes():
    assert LIMIT_S >= 5
