"""mistakes.txt: reading and applying entries, rejecting invalid ones, finding the sentence for a wrong answer."""

import pytest

from labkit.checks.cases import Case, expect_cases, passed
from labkit.checks.judge import run_check
from labkit.checks.mistakes import find_mistake, load_mistakes
from labkit.checks.reference import load_reference, make_names
from labkit.environment import load_lab_module
from labkit.errors import CheckError

LAB = '''# %%
import math

# %% solution="97.1"
def area(radius):
    """Return the area of a circle."""
    ### BEGIN SOLUTION
    square = radius * radius
    return math.pi * square
    ### END SOLUTION

# %%
check("97.1", area)

# %% solution="97.2"
def volume(radius, height):
    ### BEGIN SOLUTION
    return area(radius) * height * scale
    ### END SOLUTION

# %%
check("97.2", volume)
'''
MISTAKES = """# A comment, and an empty line.

[97.1]
The radius is squared, not doubled.
    radius * radius  =>  radius * 2
    radius * radius  =>  radius + radius
That is the square around it.
    def area(radius):
        side = 2 * radius

        return side * side
Both at once.
    radius * radius  =>  radius
    & math.pi * square  =>  square * 3
~ never said to anybody
    math.pi *  =>
= the other way round
    math.pi * square  =>  square * math.pi

[97.2]
The height is missing.
    * height  =>
"""


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A course of one lab; call it with the text of mistakes.txt."""
    folder = tmp_path / "solutions" / "src" / "97_circles"
    for name in ("labs", "labkit"):
        (tmp_path / name).mkdir()
    folder.mkdir(parents=True)
    (folder / "lab.py").write_text(LAB, encoding="utf-8")
    (folder / "checks.py").write_text("def scene_2():\n    return {'scale': 10}\n", encoding="utf-8")
    monkeypatch.setenv("LABKIT_COURSE", str(tmp_path))

    def write(text):
        (folder / "mistakes.txt").write_text(text, encoding="utf-8")

    write(MISTAKES)
    return write


def test_a_reference_runs_with_the_labs_imports_its_earlier_answers_and_its_scene(course):
    reference = load_reference("97.2")
    assert reference.answer_names == ("volume",)
    assert "SOLUTION" not in reference.code
    assert make_names(reference)["volume"](1, 2) == pytest.approx(62.83185307)


def test_entries_are_read_in_order_each_with_its_kind_sentence_and_line(course):
    found = [(one.kind, one.sentence, one.line) for one in load_mistakes("97.1")]
    assert found == [
        ("named", "The radius is squared, not doubled.", 5),
        ("named", "The radius is squared, not doubled.", 6),
        ("named", "That is the square around it.", 8),
        ("named", "Both at once.", 13),
        ("refused", "never said to anybody", 16),
        ("right", "the other way round", 18),
    ]
    assert [one.sentence for one in load_mistakes("97.2")] == ["The height is missing."]


AREAS = (18.849555922, 18.849555922, 36, 9, 9, 28.274333882)  # what each entry gives for a circle of radius 3


@pytest.mark.parametrize(("place", "value"), list(enumerate(AREAS)))
def test_an_entry_is_the_solution_with_its_change(course, place, value):
    mistake = load_mistakes("97.1")[place]
    assert make_names(load_reference("97.1"), mistake.code)["area"](3) == pytest.approx(value)


@pytest.mark.parametrize(("text", "sentence"), [
    ("radius * height  =>  2", r"97_circles/mistakes.txt, line 3: 'radius \* height' occurs 0 times in the solution"),
    ("radius  =>  2", "'radius' occurs 3 times in the solution, expected once"),
    ("radius * radius => 2", "has no '=>' with two spaces before it"),
    ("radius * radius  =>  (radius * radius)", "the change leaves the solution as it is, or is not valid Python"),
    ("radius * radius  =>  radius *", "the change leaves the solution as it is, or is not valid Python"),
    ("def areas(radius):\n        return 2", "the solution has no function 'areas'"),
    ("def area(radius:\n        return 2", "the function is not valid Python"),
])  # fmt: skip
def test_an_entry_that_does_not_apply_is_named_with_its_line(course, text, sentence):
    course(f"[97.1]\nWrong.\n    {text}\n")
    with pytest.raises(CheckError, match=sentence):
        load_mistakes("97.1")


def test_a_lab_without_the_file_has_no_known_mistakes(course, tmp_path):
    (tmp_path / "solutions" / "src" / "97_circles" / "mistakes.txt").unlink()
    assert load_mistakes("97.1") == ()


def test_the_first_mistake_that_explains_the_answer_is_found_and_the_other_kinds_are_not(course):
    assert find_mistake("97.1", "area", lambda wrong: wrong(3) == 9) == "Both at once."
    assert find_mistake("97.1", "area", lambda wrong: wrong(2) == 16) == "That is the square around it."
    assert find_mistake("97.1", "area", lambda wrong: wrong("x") == 4) == ""


def check_area(area):
    expect_cases(area, [Case(3.141592653589793, (1,)), Case(12.566370614359172, (2,), why="pi times 4.")])
    return passed("that is the area.")


def test_a_check_names_the_mistake_and_falls_back_to_the_case(course):
    names = {one.sentence: make_names(load_reference("97.1"), one.code)["area"] for one in load_mistakes("97.1")}
    for sentence in ("That is the square around it.", "Both at once."):
        assert sentence in run_check(check_area, names[sentence], exercise="97.1").sentence
    assert run_check(check_area, names["the other way round"], exercise="97.1").status == "passed"
    odd = run_check(check_area, lambda radius: 3.141592653589793 if radius == 1 else 7.0, exercise="97.1").sentence
    assert odd == "<lambda>(2): got 7.0, expected 12.566370614359172: pi times 4."


def test_a_known_mistake_that_never_ends_does_not_hang_the_check(course, monkeypatch):
    monkeypatch.setattr("labkit.checks.learner.LIMIT_S", 0.05)
    course("[97.1]\nEndless.\n    return math.pi * square  =>  while True: pass\n")
    assert "expected 3.14" in run_check(check_area, lambda radius: 5.0, exercise="97.1").sentence


def test_the_checks_of_another_course_are_loaded_again(course, tmp_path, monkeypatch):
    first = load_lab_module("97", "checks")
    other = tmp_path / "other"
    for name in ("labs", "labkit", "solutions/src/97_squares"):
        (other / name).mkdir(parents=True)
    (other / "solutions/src/97_squares/checks.py").write_text("A = 1\n", encoding="utf-8")
    monkeypatch.setenv("LABKIT_COURSE", str(other))
    assert load_lab_module("97", "checks").A == 1
    assert not hasattr(first, "A")
