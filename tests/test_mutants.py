"""The committed table of mutants is complete, up to date and good enough, and the mutation engine works."""

import ast

import mutants  # noqa: E402
import pytest

EXERCISES = mutants.load_exercises()
TABLE = mutants.load_table()


def test_the_table_has_a_row_for_every_exercise_and_no_other():
    assert list(TABLE) == [exercise.exercise for exercise in EXERCISES]


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.exercise)
def test_a_row_is_up_to_date_with_its_solution_and_check(exercise):
    stamp = TABLE[exercise.exercise]["stamp"]
    assert stamp == mutants.estimate_stamp(exercise), "solution or check changed: run `make mutants`"


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.exercise)
def test_a_check_rejects_at_least_80_percent_of_the_mutants(exercise):
    row = TABLE[exercise.exercise]
    num, rejected = int(row["mutants"]), int(row["rejected"])
    assert num >= 3, "a solution without mutants proves nothing"
    assert row["score"] == f"{rejected / num:.3f}"
    assert rejected / num >= mutants.MIN_SCORE, row["survivors"]
    assert len([one for one in row["survivors"].split(" | ") if one]) == num - rejected


@pytest.mark.slow
def test_every_equivalent_mutant_exists_and_has_a_reason():
    changes = {(e.exercise, change) for e in EXERCISES for change, _ in mutants.make_mutants(e.code, e.lines)}
    assert set(mutants.EQUIVALENT) <= changes, "take it off the list"
    assert all(len(reason.split()) >= 5 for reason in mutants.EQUIVALENT.values())


# The engine

CODE = """def f(x, items, *, k=2):
    first = items[0]
    if x <= first and x > 0:
        x += 1
    found = [item for item in items[:k] if item != x]
    return max(found, default=None) if found else x * 2 + first
"""


def changes(code=CODE, lines=range(2, 7)):
    return dict(mutants.make_mutants(code, frozenset(lines)))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("line 3: x <= first  ->  x < first", "    if x < first and x > 0:"),
        ("line 3: x <= first and x > 0  ->  x <= first or x > 0", "    if x <= first or x > 0:"),
        ("line 3: x <= first and x > 0  ->  x > 0", "    if x > 0:"),
        ("line 3: 0  ->  1", "    if x <= first and x > 1:"),
        ("line 4: x += 1  ->  x -= 1", "        x -= 1"),
        ("line 4: x += 1  ->  pass", "        pass"),
        ("line 5: :k  ->  :k - 1", "    found = [item for item in items[:k - 1] if item != x]"),
        ("line 5: :k  ->  1:k", "    found = [item for item in items[1:k] if item != x]"),
        (
            "line 5: for item in items[:k] if item != x -> for item in items[:k]",
            "    found = [item for item in items[:k]]",
        ),
        ("line 6: max  ->  min", "    return min(found, default=None) if found else x * 2 + first"),
        ("line 6: max(found, default=None)  ->  max(found)", "    return max(found) if found else x * 2 + first"),
        ("line 6: x * 2 + first  ->  x * 2 - first", "    return max(found, default=None) if found else x * 2 - first"),
        ("line 6: x * 2 + first  ->  x * 2", "    return max(found, default=None) if found else x * 2"),
        ("line 6: x * 2  ->  x / 2", "    return max(found, default=None) if found else x / 2 + first"),
    ],
)
def test_the_engine_makes(change, line):
    found = {" ".join(key.split()): code for key, code in changes().items()}
    assert line in found[" ".join(change.split())].splitlines()


def test_every_mutant_is_valid_python_differs_from_the_solution_and_comes_once():
    codes = list(changes().values())
    assert len(codes) == len(set(codes)) > 20
    assert ast.unparse(ast.parse(CODE)) not in codes
    for code in codes:
        ast.parse(code)


def test_only_the_lines_of_the_region_are_changed():
    assert {key.split(":")[0] for key in changes(lines=[4])} == {"line 4"}
    assert all("k=2" in code for code in changes().values())


@pytest.mark.slow
def test_a_mutant_that_never_ends_is_stopped_and_rejected(monkeypatch):
    (exercise,) = [exercise for exercise in EXERCISES if exercise.exercise == "00.1"]
    monkeypatch.setattr(mutants, "TIME_LIMIT_S", 0.3)
    endless = "def weight_bytes(num_parameters, *, bits):\n    while True:\n        pass\n"
    assert mutants.judge_code(exercise, endless)[0] in ("failed", "raised")


def test_a_weak_check_gets_a_low_score(monkeypatch):
    from labkit.checks import judge
    from labkit.views import Outcome

    (exercise,) = [exercise for exercise in EXERCISES if exercise.exercise == "00.2"]
    monkeypatch.setattr(judge, "find_check", lambda exercise: lambda answer: Outcome("passed", "always"))
    row = mutants.score_exercise(exercise)
    assert float(row["score"]) < mutants.MIN_SCORE
    assert row["survivors"]
