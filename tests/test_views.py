"""What the learner sees: one line for an answer, one table for the progress, the same in every viewer."""

import json
import os
import re
import sys
import types
from pathlib import Path

import pytest

from labkit.errors import CheckError
from labkit.progress import append_event
from labkit.views import CheckFailed, Outcome, format_code, format_plain, view_html, view_outcome, view_progress


def make_exercise(name, **changes):
    return {"id": name, "title": f"Task {name}", "minutes": 5, "difficulty": 1, "version": 1} | changes


@pytest.fixture(autouse=True)
def course(tmp_path, monkeypatch):
    """Two labs in two phases; 98.4 is a stretch exercise, and a title holds what would be markup."""
    root = tmp_path / "course"
    (root / "labkit").mkdir(parents=True)
    (root / "labs").mkdir()
    exercises = [make_exercise(f"98.{k}", is_stretch=k == 4) for k in (1, 2, 3, 4)]
    lab = {"title": "Doubling <fast>", "question": "How much is twice?", "phase": 0, "minutes": 30}
    first = lab | {"number": "98", "name": "98_double", "exercises": exercises, "predictions": ["98.p1"]}
    first["quiz"] = ["98.q1", "98.q2"]
    second = lab | {"number": "99", "name": "99_next", "title": "Next", "exercises": [], "phase": 1}
    phases = [{"number": 0, "title": "bring-up"}, {"number": 1, "title": "more"}, {"number": 2, "title": "empty"}]
    content = {"phases": phases, "labs": [first, second]}
    (root / "labs/course.json").write_text(json.dumps(content), encoding="utf-8")
    monkeypatch.setenv("LABKIT_COURSE", str(root))


@pytest.fixture
def shown(monkeypatch):
    """A fake IPython kernel that keeps what is displayed."""
    shown = []
    ipython, display = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    ipython.get_ipython = lambda: types.SimpleNamespace(kernel=object())
    display.display = lambda data, raw: shown.append(data) if raw else None
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return shown


def work():
    """A learner who passed 98.1, failed 98.2, viewed 98.3, answered a question, and predicted 100 where 80 came."""
    append_event("attempt", exercise="98.1", version=1, outcome="passed", sentence="well")
    append_event("attempt", exercise="98.2", version=1, outcome="failed", sentence="not yet")
    append_event("viewed", exercise="98.3", version=1)
    append_event("quiz", exercise="98.q1", outcome="passed")
    append_event("prediction", exercise="98.p1", value=100, unit="tok/s")
    append_event("measured", exercise="98.p1", value=80.0, unit="tok/s")


@pytest.mark.parametrize(("status", "line"), [
    ("passed", "✓ 98.1 passed: because"),
    ("failed", "✗ 98.1 failed: because"),
    ("blocked", "▢ 98.1 blocked: because"),
    ("not attempted", "○ 98.1 not attempted"),
])  # fmt: skip
def test_an_outcome_is_one_line_with_its_mark(capsys, status, line):
    outcome = view_outcome("98.1", Outcome(status, "because"), is_accepted=False)
    assert outcome == Outcome(status, "because")
    assert capsys.readouterr().out == f"{line}\n"


def test_a_sentence_of_several_lines_becomes_one(capsys):
    view_outcome("98.1", Outcome("failed", "first\n\n  second"), is_accepted=True)
    assert capsys.readouterr().out == "✗ 98.1 failed: first second\n"


def test_another_word_may_stand_for_the_status(capsys):
    view_outcome("98.q5", Outcome("passed", "compare"), is_accepted=True, word="answered")
    assert capsys.readouterr().out == "✓ 98.q5 answered: compare\n"


@pytest.mark.parametrize(("value", "is_strict"), [("1", True), ("yes", True), ("0", False), ("", False)])
def test_strict_mode_raises_the_line_and_shows_nothing(monkeypatch, capsys, value, is_strict):
    monkeypatch.setenv("LABKIT_STRICT", value)
    view_outcome("98.1", Outcome("passed", "well"), is_accepted=True)
    capsys.readouterr()
    if is_strict:
        with pytest.raises(CheckFailed) as caught:
            view_outcome("98.1", Outcome("failed", "no"), is_accepted=False)
        assert caught.value._render_traceback_() == ["✗ 98.1 failed: no"]
        assert capsys.readouterr().out == ""
    else:
        assert view_outcome("98.1", Outcome("failed", "no"), is_accepted=False).status == "failed"


def test_a_notebook_gets_html_and_the_same_line_as_text(shown, capsys):
    view_outcome("98.1", Outcome("failed", "use `bits`, not <b>"), is_accepted=True)
    assert shown == [
        {
            "text/html": '<p role="status"><strong>✗ 98.1 failed</strong>: use <code>bits</code>, not &lt;b&gt;</p>',
            "text/plain": "✗ 98.1 failed: use `bits`, not <b>",
        }
    ]
    assert capsys.readouterr().out == ""


def test_an_ipython_that_runs_in_a_terminal_gets_text(monkeypatch, capsys):
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    view_html("<p>one</p>", "one")
    assert capsys.readouterr().out == "one\n"


def test_an_outcome_shows_nothing_of_its_own(capsys):
    assert Outcome("passed", "well")._ipython_display_() is None
    assert capsys.readouterr().out == ""


def test_code_is_escaped_and_plain_text_has_a_line_for_each_item():
    assert format_code("`a < b` & c") == "<code>a &lt; b</code> &amp; c"
    html = "<p>one <strong>two</strong></p><ul><li>a &lt; b</li><li>c</li></ul>"
    assert format_plain(html) == "one two\na < b\nc"


def test_the_course_view_shows_all_that_was_done_and_what_to_do_next(shown):
    work()
    view_progress()
    (data,) = shown
    html = data["text/html"]
    for part in (
        "Phase 0: bring-up", "Phase 1: more", "Doubling &lt;fast&gt;", "✓&nbsp;98.1", "✗&nbsp;98.2", "◐&nbsp;98.3",
        "○&nbsp;98.4*", "◐&nbsp;in progress", "○&nbsp;not started", "1&nbsp;of&nbsp;2", "0 of 30",
        "98.p1: 100 tok/s predicted, 80.0 measured (1.25x too high)",
        "Next: exercise 98.2 (Task 98.2) in labs/98_double.ipynb.",
    ):  # fmt: skip
        assert part in html, part
    assert "Phase 2" not in html
    assert html.count("<tr>") == 5
    assert "98" in data["text/plain"]
    assert not re.search(r"</|&nbsp;", data["text/plain"])


def test_a_finished_lab_is_marked_complete_and_the_next_one_follows(shown):
    work()
    append_event("attempt", exercise="98.2", version=1, outcome="passed", sentence="")
    view_progress()
    assert "✓&nbsp;complete" in shown[0]["text/html"]
    assert "Next: labs/99_next.ipynb." in shown[0]["text/html"]


@pytest.mark.parametrize(("events", "text"), [
    ([], "98.p1: open"),
    ([("prediction", 100)], "98.p1: 100 tok/s predicted"),
    ([("prediction", None), ("measured", 80.0)], "98.p1: skipped"),
    ([("measured", 80.0), ("prediction", 81)], "98.p1: 81 tok/s predicted (late), 80.0 measured (1.01x too high)"),
    ([("prediction", 0), ("measured", 80.0)], "98.p1: 0 tok/s predicted, 80.0 measured"),
])  # fmt: skip
def test_a_prediction_is_shown_as_far_as_it_goes(capsys, events, text):
    for kind, value in events:
        append_event(kind, exercise="98.p1", value=value, unit="tok/s")
    view_progress("98")
    assert f"  {text}" in capsys.readouterr().out.split("\n")


def test_the_views_are_markup_that_every_viewer_keeps_in_both_themes(shown):
    work()
    view_progress()
    view_progress("98")
    view_outcome("98.1", Outcome("passed", "well"), is_accepted=True)
    assert len(shown) == 3
    for data in shown:
        assert set(data) == {"text/html", "text/plain"}
        html = data["text/html"].replace(' style="text-align:left"', "")
        assert not re.search(r"<(style|script|svg|img|iframe)|style=|class=|color|onclick", html)
        for tag in ("table", "tr", "td", "th", "p", "strong"):
            assert len(re.findall(f"<{tag}[ >]", html)) == html.count(f"</{tag}>")


def test_the_view_of_one_lab_lists_its_exercises(capsys):
    work()
    view_progress("98")
    lines = capsys.readouterr().out.split("\n")
    assert lines[0] == "Lab 98, Doubling <fast>: in progress (0 of 30 minutes, quiz 1 of 2)"
    assert lines[1:5] == [
        "✓ passed   98.1 Task 98.1",
        "✗ failed   98.2 Task 98.2",
        "◐ viewed   98.3 Task 98.3",
        "○ open     98.4 Task 98.4 (stretch)",
    ]


def test_a_damaged_line_of_the_progress_is_named(shown):
    work()
    (path,) = Path(os.environ["LABKIT_HOME"]).rglob("progress.jsonl")
    path.write_text("{damaged\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    view_progress()
    assert "damaged line 1 was skipped" in shown[0]["text/html"]
    assert "✓&nbsp;98.1" in shown[0]["text/html"]


def test_an_unknown_lab_is_an_error():
    with pytest.raises(CheckError, match=r"no lab '97'.*98, 99"):
        view_progress("97")
