"""The public functions of labkit.checks on a small made-up course: outcomes, gates, predictions, progress."""

import functools
import json
import signal
import sys
import time
import types

import numpy as np
import pytest

import labkit.checks
from labkit.checks import check, complete, predict, ready, reveal, use_reference
from labkit.checks.cases import Case, block, expect_cases, expect_function, fail, passed
from labkit.checks.judge import run_check
from labkit.checks.learner import LearnerFunction
from labkit.checks.numbers import is_rounded
from labkit.environment import load_lab_module
from labkit.errors import CheckError
from labkit.progress import load_events
from labkit.views import CheckFailed, Outcome, view_progress

SOURCE = '''# %% [markdown] exercise="98.1" title="Double" minutes=5
# Write it.

# %% solution="98.1"
def double(x):
    """Return twice x."""
    ### BEGIN SOLUTION
    return 2 * x
    ### END SOLUTION

# %%
check("98.1", double)

# %% solution="98.4"
def double(x):
    return 2 * x

# %%
check("98.4", double)

# %% solution="98.2"
### BEGIN SOLUTION stub: answer = None
answer = double(start)
### END SOLUTION
'''


MISTAKES = """[98.1]
that is the square.
    2 * x  =>  x * x
that is half of it.
    2 * x  =>  x / 2
= added to itself
    2 * x  =>  x + x

[98.2]
not of this exercise.
    double(start)  =>  start
"""


def make_exercise(name, **changes):
    return {"id": name, "title": f"Task {name}", "minutes": 5, "difficulty": 1, "version": 1} | changes


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A course of two labs; 98.3 is blocked on the cpu tier, 98.4 is a stretch. Returns a function to change it."""
    root = tmp_path / "course"
    for folder in ("labs", "labkit", "solutions/src/98_double"):
        (root / folder).mkdir(parents=True)
    for name, text in {"lab.py": SOURCE, "mistakes.txt": MISTAKES, "checks.py": ""}.items():
        (root / "solutions/src/98_double" / name).write_text(text, encoding="utf-8")
    lab = {"title": "Doubling <fast>", "question": "How much is twice?", "phase": 0, "minutes": 30}

    def write(**changes):
        exercises = [
            make_exercise("98.1", **changes),
            make_exercise("98.2"),
            make_exercise("98.3", blocked_on=["cpu"]),
            make_exercise("98.4", is_stretch=True),
        ]
        first = lab | {"number": "98", "name": "98_double", "exercises": exercises, "predictions": ["98.p1"]}
        first["quiz"] = ["98.q1", "98.q2"]
        second = lab | {"number": "99", "name": "99_next", "title": "Next", "exercises": []}
        content = {"phases": [{"number": 0, "title": "bring-up"}], "labs": [first, second]}
        (root / "labs/course.json").write_text(json.dumps(content), encoding="utf-8")

    write()
    monkeypatch.setenv("LABKIT_COURSE", str(root))
    monkeypatch.setenv("LABKIT_TIER", "cpu")
    module = load_lab_module("98", "checks")
    module.check_1, module.check_2, module.check_3 = check_double, check_ten, check_gpu
    module.check_4 = check_double
    return write


def check_double(double):
    expect_function(double, "double")
    expect_cases(double, [Case(4, (2,)), Case(0, (0,)), Case(-6, (-3,))])
    return passed("twice is twice.", {"ratio": 1.0})


def check_ten(answer):
    if answer != 10:
        fail(f"got {answer}, expected 10.")
    return passed("ten.")


def check_gpu(answer):
    block(f"a GPU is needed to see {answer}.")


def double(x):
    return 2 * x


def stub(x):
    raise NotImplementedError("exercise 98.1: your code here")


def kinds():
    return [(event["kind"], event.get("exercise"), event.get("outcome")) for event in load_events()]


def test_the_package_exports_exactly_seven_names():
    seven = ["check", "complete", "note", "predict", "ready", "reveal", "use_reference"]
    assert labkit.checks.__all__ == seven
    assert all(callable(getattr(labkit.checks, name)) for name in seven)


# check: four outcomes, with one event and one line each


def test_a_right_answer_passes_with_one_line_and_one_event(course, capsys):
    outcome = check("98.1", double)
    assert outcome == Outcome("passed", "twice is twice.", {"ratio": 1.0})
    assert capsys.readouterr().out == "✓ 98.1 passed: twice is twice.\n"
    (event,) = load_events()
    assert (event["kind"], event["exercise"], event["version"], event["outcome"]) == ("attempt", "98.1", 1, "passed")
    assert (event["sentence"], event["measurement"]) == ("twice is twice.", {"ratio": 1.0})


def test_a_wrong_answer_fails_and_names_the_mistake_that_explains_all_cases(course, capsys):
    assert check("98.1", lambda x: x * x).status == "failed"
    line = capsys.readouterr().out
    assert line.startswith("✗ 98.1 failed: <lambda>(-3): got 9, expected -6: that is the square.")
    assert line.count("\n") == 1
    assert kinds() == [("attempt", "98.1", "failed")]


def test_a_stub_is_not_attempted(course, capsys):
    assert check("98.1", stub).status == "not attempted"
    assert capsys.readouterr().out == "○ 98.1 not attempted\n"
    assert kinds() == [("attempt", "98.1", "not attempted")]


def test_an_exercise_that_the_hardware_cannot_show_is_blocked(course, capsys):
    assert check("98.3", "speed").status == "blocked"
    assert capsys.readouterr().out == "▢ 98.3 blocked: a GPU is needed to see speed.\n"


def test_an_event_carries_the_current_version_of_the_exercise(course):
    course(version=3)
    check("98.1", double)
    assert [event["version"] for event in load_events()] == [3]


def test_an_unknown_exercise_names_the_known_ones(course):
    with pytest.raises(CheckError, match=r"no exercise '98.9'.*98.1, 98.2, 98.3, 98.4"):
        check("98.9", double)
    assert kinds() == []


def test_an_exercise_without_a_check_is_an_error_not_a_pass(course, monkeypatch):
    monkeypatch.delattr(sys.modules["lab98.checks"], "check_1")
    with pytest.raises(CheckError, match="has no check"):
        check("98.1", double)


# Strict mode, as in the test run


@pytest.mark.parametrize(("exercise", "answer", "line"), [
    ("98.1", stub, "○ 98.1 not attempted"),
    ("98.1", abs, "✗ 98.1 failed: abs(2): got 2, expected 4."),
    ("98.2", None, "○ 98.2 not attempted"),
])  # fmt: skip
def test_strict_mode_raises_one_line_for_anything_but_a_pass(course, monkeypatch, capsys, exercise, answer, line):
    monkeypatch.setenv("LABKIT_STRICT", "1")
    with pytest.raises(CheckFailed) as caught:
        check(exercise, answer)
    assert caught.value._render_traceback_() == [line]
    assert capsys.readouterr().out == ""
    assert len(load_events()) == 1


def test_strict_mode_lets_a_pass_through(course, monkeypatch):
    monkeypatch.setenv("LABKIT_STRICT", "1")
    assert check("98.1", double).status == "passed"


def test_strict_mode_accepts_blocked_only_on_the_tiers_of_the_course(course, monkeypatch):
    monkeypatch.setenv("LABKIT_STRICT", "1")
    assert check("98.3", "speed").status == "blocked"
    monkeypatch.setenv("LABKIT_TIER", "hopper")
    with pytest.raises(CheckFailed, match="98.3 blocked"):
        check("98.3", "speed")


# The learner's code: whatever it does becomes a sentence


def test_an_exception_is_named_with_its_message_and_line_and_shows_no_traceback(course, capsys):
    names = {}
    exec(compile("def half(x):\n    y = x\n    return y / 0\n", "<cell 7>", "exec"), names)
    assert check("98.1", names["half"]).status == "failed"
    line = capsys.readouterr().out
    assert "half(2) raised ZeroDivisionError: division by zero (your line 3" in line
    assert "Traceback" not in line
    assert line.count("\n") == 1


def test_a_message_of_several_lines_stays_one_line(course, capsys):
    def shout(x):
        raise ValueError("first\n\nsecond\tthird " + "x" * 500)

    check("98.1", shout)
    line = capsys.readouterr().out
    assert "ValueError: first second third xxx" in line
    assert line.count("\n") == 1
    assert len(line) < 400


def test_exiting_python_and_deep_recursion_fail_like_other_exceptions():
    def leave(x):
        sys.exit(3)

    def dive(x):
        return dive(x)

    assert "SystemExit: 3" in run_check(check_double, leave).sentence
    assert "RecursionError" in run_check(check_double, dive).sentence


@pytest.mark.parametrize("body", ["while True: pass", "while True:\n  try: rows.append(x)\n  except Exception: pass"])
def test_an_endless_loop_becomes_a_sentence_and_leaves_no_timer(monkeypatch, body):
    monkeypatch.setattr("labkit.checks.learner.LIMIT_S", 0.05)
    before = signal.getsignal(signal.SIGPROF)
    names = {}
    exec(f"def endless(x):\n rows = []\n {body}", names)
    outcome = run_check(check_double, names["endless"])
    assert outcome.status == "failed"
    assert outcome.sentence.startswith("endless(2): it has not returned after 0.05 s of computing. Check that its loop")
    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGPROF) == before


def test_time_spent_waiting_does_not_count(monkeypatch):
    monkeypatch.setattr("labkit.checks.learner.LIMIT_S", 0.1)

    def wait(x):
        time.sleep(0.15)
        return 2 * x

    assert run_check(check_double, wait).status == "passed"


def test_an_interrupt_stops_the_check_and_is_not_recorded(course):
    def wait(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check("98.1", wait)
    assert kinds() == []


def test_the_checks_own_code_is_rejected_as_an_answer():
    judge_record = load_lab_module("10", "checks").judge_record
    for answer in (judge_record, functools.partial(judge_record)):
        outcome = run_check(check_double, answer)
        assert (outcome.status, outcome.sentence[:28]) == ("failed", "this is the check's own code")


def test_a_callable_object_fails_with_a_request_for_a_function():
    class Double:
        def __call__(self, x):
            return 2 * x

    assert "write `def double(...)`, not an object" in run_check(check_double, Double()).sentence
    assert "write `double` without parentheses" in run_check(check_double, 4).sentence


def test_a_librarys_missing_kernel_is_a_failure_not_a_stub():
    def use_stdlib(x):
        import asyncio

        return asyncio.AbstractEventLoop().time()

    outcome = run_check(check_double, use_stdlib)
    assert outcome.status == "failed"
    assert "NotImplementedError" in outcome.sentence


def test_what_the_function_prints_is_not_shown(course, capsys):
    def talk(x):
        print("x is", x)
        print("x is", x, file=sys.stderr)
        return 2 * x

    assert check("98.1", talk).status == "passed"
    assert capsys.readouterr() == ("✓ 98.1 passed: twice is twice.\n", "")


def test_a_changed_argument_does_not_reach_the_check_and_is_named():
    cases = [Case(6, ([1, 2, 3],)), Case(6, ([1, 2, 3],))]

    def drain(row):
        return sum(row.pop() for _ in range(len(row)))

    def check_sum(function):
        expect_cases(function, cases)
        return passed("ok")

    assert "drain([1, 2, 3]) changes its arguments: work on a copy" in run_check(check_sum, drain).sentence
    assert cases[0].args == ([1, 2, 3],)
    assert run_check(check_sum, sum).status == "passed"


@pytest.mark.parametrize("argument", [{"a": [1]}, np.ones(2), [[0]], {"a": 1, "b": 2}])
def test_a_changed_dict_array_or_inner_list_is_detected(argument):
    def spoil(value):
        inner = value["a"] if isinstance(value, dict) else value
        if isinstance(inner, list):
            inner.append(5)
        elif isinstance(value, dict):
            value["a"] = 7
        else:
            value[0] = 9

    guarded = LearnerFunction(spoil)
    guarded(argument)
    assert guarded.changed.startswith("spoil(")


@pytest.mark.parametrize("argument", [
    [float("nan"), 1],
    [np.ones(2), np.ones(3)],
    {"draw": lambda: 1, "rows": [[0, float("nan")]]},  # a function inside: pickle refuses, deepcopy does not
    (object(), [1]),
    iter([]),
    sys,
])  # fmt: skip
def test_an_argument_that_is_only_read_counts_as_unchanged(argument):
    guarded = LearnerFunction(lambda value: repr(value))
    guarded(argument)
    assert guarded.changed == ""


def test_two_arguments_that_are_one_object_stay_one_object():
    guarded = LearnerFunction(lambda first, second: first is second)
    row, draw = [1], lambda: 1
    assert guarded(row, row) and guarded([row, draw], [row, draw]) is False


@pytest.mark.parametrize("answer", [
    lambda x: np.int64(2 * x),
    lambda x: np.array(2.0 * x),
    lambda x: 2.0 * x,
    types.MethodType(lambda self, x: 2 * x, object()),
])  # fmt: skip
def test_numpy_scalars_floats_and_methods_pass(answer):
    assert run_check(check_double, answer).status == "passed"


def test_a_generator_is_read_as_a_list_and_its_exception_is_the_learners():
    def yields(x):
        yield 2 * x

    assert "got [4], expected 4: that is a sequence of length 1" in run_check(check_double, yields).sentence

    def yields_late(x):
        yield 1
        raise OSError("gone")

    assert "raised OSError: gone" in run_check(check_double, yields_late).sentence

    def yields_nothing(x):
        raise NotImplementedError
        yield

    assert run_check(check_double, yields_nothing).status == "not attempted"

    def check_row(function):
        expect_cases(function, [Case((2, 4), (2,))])
        return passed("ok")

    def endless(x):
        while True:
            yield x

    assert run_check(check_row, lambda x: (k * x for k in (1, 2))).status == "passed"
    assert run_check(check_row, endless).status == "failed"


def empty(x):
    """Only a docstring."""


def dots(x): ...


def returns_none(x):
    return None


@pytest.mark.parametrize("answer", [None, ..., empty, dots, returns_none, stub, [None, None], {"a": None, "b": ...}])
def test_every_kind_of_stub_is_not_attempted(answer):
    assert run_check(check_ten, answer).status == "not attempted" or answer is stub
    assert run_check(check_double, answer).status == "not attempted"


@pytest.mark.parametrize("answer", [0, "", [], {}, False, [None, 1]])
def test_an_empty_answer_is_an_answer(answer):
    assert run_check(check_ten, answer).status == "failed"


@pytest.mark.parametrize("answer", [True, "4", np.array([4]), float("nan"), None, (4,)])
def test_a_lookalike_of_a_number_fails(answer):
    assert run_check(check_double, lambda x: answer).status == "failed"


def test_true_is_not_one():
    def check_one(function):
        expect_cases(function, [Case(1, (1,))])
        return passed("one")

    assert "that is a boolean, not a number" in run_check(check_one, lambda x: x == 1).sentence
    assert run_check(check_one, lambda x: x).status == "passed"


# The check itself


def test_a_check_that_crashes_is_never_a_pass(course, monkeypatch, capsys):
    def check_1(answer):
        return passed(str([][3]))

    # As if it were defined in labkit.checks, so that the crash is the course's fault and not the learner's.
    code = check_1.__code__.replace(co_filename=labkit.checks.__file__)
    monkeypatch.setattr(sys.modules["lab98.checks"], "check_1", types.FunctionType(code, globals()))
    assert check("98.1", double).status == "failed"
    assert "the check itself stopped with IndexError" in capsys.readouterr().out
    monkeypatch.setenv("LABKIT_STRICT", "1")
    with pytest.raises(CheckFailed, match="the check itself stopped"):
        check("98.1", double)


@pytest.mark.parametrize("verdict", [None, True, "passed", 1])
def test_a_check_that_returns_no_outcome_is_never_a_pass(verdict):
    outcome = run_check(lambda answer: verdict, double)
    assert outcome.status == "failed"
    assert "the check itself returned no outcome" in outcome.sentence


def test_a_learners_object_that_raises_inside_the_check_is_the_learners_failure():
    class Cache:
        def __eq__(self, other):
            raise ValueError("cannot compare")

        __hash__ = None

    outcome = run_check(check_ten, Cache())
    assert outcome.status == "failed"
    assert "your code raised ValueError: cannot compare (your line" in outcome.sentence


def test_an_unknown_status_is_an_error():
    with pytest.raises(CheckError, match="not a valid outcome"):
        Outcome("ok", "fine")


@pytest.mark.parametrize(("written", "truth", "is_right"), [
    (74.06, 74.0625, True), (74.1, 74.0625, True), (74, 74.0625, True), (74.07, 74.0625, False), (75, 74.0625, False),
    ("1,234", 1234.4, True), ("1.5", 1.55, True), ("1.5", 1.5501, False), ("1e3", 1400.0, True), ("0.30", 0.304, True),
    ("0.30", 0.306, False), (74.0625, 74.0625 * (1 + 1e-12), True), (0, 0.4, True), ("5", float("nan"), False),
    (float("nan"), 5.0, False), (float("inf"), 5.0, False),
])  # fmt: skip
def test_a_written_number_matches_every_value_that_rounds_to_it(written, truth, is_right):
    assert is_rounded(written, truth) is is_right


# ready, use_reference, complete


def test_a_cell_waits_until_its_exercise_is_passed(course, capsys):
    assert ready("98.1") is False
    assert capsys.readouterr().out == "this cell waits for exercise 98.1\n"
    check("98.1", abs)
    assert ready("98.1") is False
    check("98.1", double)
    capsys.readouterr()
    assert ready("98.1") is True
    assert capsys.readouterr().out == ""


def test_a_new_version_of_an_exercise_waits_again(course):
    check("98.1", double)
    course(version=2)
    assert ready("98.1") is False


def test_ready_raises_in_strict_mode_unless_the_tier_is_known_to_block_it(course, monkeypatch):
    check("98.3", "speed")
    monkeypatch.setenv("LABKIT_STRICT", "1")
    with pytest.raises(CheckFailed, match="this cell waits for exercise 98.1"):
        ready("98.1")
    assert ready("98.3") is False
    monkeypatch.setenv("LABKIT_TIER", "t4")
    with pytest.raises(CheckFailed, match="blocked on this hardware"):
        ready("98.3")


def test_the_reference_is_shown_loaded_and_counts_as_viewed_but_never_as_passed(course, capsys):
    names = {"__name__": "cell", "use_reference": use_reference}
    exec('use_reference("98.1")\nresult = double(21)', names)
    assert names["result"] == 42
    shown = capsys.readouterr().out
    assert "return 2 * x" in shown
    assert "SOLUTION" not in shown
    assert kinds() == [("viewed", "98.1", None)]
    assert ready("98.1") is True
    assert check("98.1", names["double"]).status == "passed"
    capsys.readouterr()
    view_progress("98")
    assert "◐ viewed   98.1 Task 98.1" in capsys.readouterr().out


def test_a_reference_that_needs_an_earlier_cell_says_so(course):
    names = {"use_reference": use_reference}
    with pytest.raises(CheckError, match=r"98.2 failed with NameError.*run the cells above it first"):
        exec('use_reference("98.2")', names)
    exec('start = 5\nuse_reference("98.1")\nuse_reference("98.2")', names)
    assert names["answer"] == 10


def test_an_exercise_without_reference_is_an_error_and_stays_open(course):
    with pytest.raises(CheckError, match="no reference solution of 98.3"):
        use_reference("98.3")
    assert kinds() == []


def test_an_open_lab_names_each_open_exercise_and_is_not_completed(course, capsys):
    check("98.1", double)
    check("98.2", 9)
    capsys.readouterr()
    complete("98")
    lines = capsys.readouterr().out.split("\n")
    assert lines[:3] == [
        "lab 98 is not complete yet:",
        "○ 98.2 Task 98.2: the last check failed",
        "○ 98.3 Task 98.3: open",
    ]
    assert not any("98.4" in line for line in lines[:4])
    assert "complete" not in [event["kind"] for event in load_events()]


def finish():
    check("98.1", double)
    use_in = {"start": 5, "double": double, "use_reference": use_reference}
    exec('use_reference("98.2")', use_in)
    check("98.3", "speed")


def test_a_lab_is_complete_with_passed_viewed_and_blocked_exercises_and_names_the_next(course, capsys, monkeypatch):
    monkeypatch.setenv("LABKIT_STRICT", "1")
    finish()
    capsys.readouterr()
    complete("98")
    shown = capsys.readouterr().out
    assert shown.startswith("✓ lab 98 is complete.\nNot required: 2 of 2 quiz questions are open.\n")
    assert "Next: labs/99_next.ipynb, Next: How much is twice?" in shown
    assert [(event["kind"], event.get("lab")) for event in load_events()][-1] == ("complete", "98")
    complete("99")
    assert "That was the last lab" in capsys.readouterr().out


def test_strict_mode_raises_for_an_open_lab_and_names_it(course, monkeypatch):
    monkeypatch.setenv("LABKIT_STRICT", "1")
    with pytest.raises(CheckFailed, match=r"not complete yet.*98.1 Task"):
        complete("98")


def test_an_unknown_lab_is_an_error(course):
    with pytest.raises(CheckError, match=r"no lab '97'.*98, 99"):
        complete("97")
    with pytest.raises(CheckError, match=r"no lab '97'.*98, 99"):
        view_progress("97")


# predict and reveal


def predictions():
    return [(event["kind"], event["value"], event.get("is_late")) for event in load_events()]


def test_a_prediction_is_stored_before_the_measurement_and_compared_after_it(course, capsys):
    predict("98.p1", 100, unit="tok/s")
    assert reveal("98.p1", 80.0, unit="tok/s") == 100
    shown = capsys.readouterr().out
    assert "98.p1: 100 tok/s, stored before the measurement" in shown
    assert "measured 80.0 tok/s; predicted 100 tok/s, a factor of 1.25x too high." in shown
    assert predictions() == [("prediction", 100, False), ("measured", 80.0, None)]


def test_a_prediction_that_was_too_low_says_so(course, capsys):
    predict("98.p1", 40)
    reveal("98.p1", np.float64(80.0))
    assert "a factor of 2.00x too low" in capsys.readouterr().out


def test_none_is_stored_as_skipped_and_is_never_graded(course, capsys, monkeypatch):
    monkeypatch.setenv("LABKIT_STRICT", "1")
    predict("98.p1", None, unit="tok/s")
    assert reveal("98.p1", 80.0, unit="tok/s") is None
    assert "98.p1: skipped." in capsys.readouterr().out
    assert predictions()[0] == ("prediction", None, False)


def test_until_the_measurement_a_prediction_may_change(course):
    predict("98.p1", 10)
    predict("98.p1", 20)
    predict("98.p1", 20)
    predict("98.p1", None)
    assert predictions() == [("prediction", 10, False), ("prediction", 20, False)]
    assert reveal("98.p1", 80.0) == 20


def test_after_the_measurement_both_are_kept_and_the_first_one_stays(course, capsys):
    predict("98.p1", 100, unit="tok/s")
    reveal("98.p1", 80.0, unit="tok/s")
    capsys.readouterr()
    predict("98.p1", 80, unit="tok/s")
    assert "100 tok/s is on record; 80 tok/s came after the measurement and is kept as late" in capsys.readouterr().out
    predict("98.p1", 100, unit="tok/s")  # the cell is run again unchanged
    assert predictions() == [("prediction", 100, False), ("measured", 80.0, None), ("prediction", 80, True)]
    assert reveal("98.p1", 81.0, unit="tok/s") == 100


def test_a_late_prediction_is_not_the_prediction(course, capsys):
    reveal("98.p1", 80.0)
    predict("98.p1", 80)
    assert reveal("98.p1", 80.0) is None
    assert "none was given in time; 80 came after the measurement" in capsys.readouterr().out


@pytest.mark.parametrize("value", ["100 tok/s", float("nan"), True, [1], float("inf")])
def test_a_prediction_that_is_not_a_number_is_not_stored(course, value):
    with pytest.raises(CheckError, match="not a number"):
        predict("98.p1", value, unit="tok/s")
    with pytest.raises(CheckError, match="not a number"):
        reveal("98.p1", value, unit="tok/s")
    assert predictions() == []


def test_an_unknown_prediction_is_an_error(course):
    with pytest.raises(CheckError, match=r"no prediction '98.p9'.*98.p1"):
        predict("98.p9", 1)


# In a real kernel


@pytest.mark.slow
def test_a_notebook_shows_one_line_for_a_check_and_one_line_for_a_strict_failure(run_notebook, tmp_path, root):
    import nbformat

    cells = [
        "from labkit.checks import check, ready, use_reference",
        "def weight_bytes(n, *, bits):\n    raise NotImplementedError",
        'check("00.1", weight_bytes)',
        "def weight_bytes(n, *, bits):\n\n    return n // 0",
        'check("00.1", weight_bytes)',
        'use_reference("00.1")',
        'check("00.1", weight_bytes)',
        'ready("00.2")',
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in cells])
    settings = {"LABKIT_HOME": str(tmp_path / "home"), "LABKIT_COURSE": str(root)}
    done = run_notebook(notebook, **settings)
    outputs = [cell.outputs for cell in done.cells]
    assert [out.data["text/plain"] for out in outputs[2]] == ["○ 00.1 not attempted"]
    assert "raised ZeroDivisionError" in outputs[4][0].data["text/plain"]
    assert "(your line 3: `return n // 0`)" in outputs[4][0].data["text/plain"]
    assert [len(out) for out in outputs] == [0, 0, 1, 0, 1, 1, 1, 2]  # ready's line, and the False of the last cell
    assert outputs[6][0].data["text/html"].startswith('<p role="status"><strong>✓ 00.1 passed</strong>: ')

    strict = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in cells[:3]])
    from nbclient.exceptions import CellExecutionError

    with pytest.raises(CellExecutionError):
        run_notebook(strict, LABKIT_STRICT="1", **settings)
    (error,) = strict.cells[2].outputs
    assert (error.ename, error.traceback) == ("CheckFailed", ["○ 00.1 not attempted"])
