"""The live progress view: what it is sent, when it updates, and what is shown without it."""

import json
import os
import re
import sys
import types
from pathlib import Path

import pytest

from labkit.progress import append_event, estimate_state, load_course, load_events
from labkit.progress.events import find_progress_file
from labkit.views import progress, view_live_progress
from labkit.views.progress import make_content, watch_file

VIEWS = Path(progress.__file__).parent


@pytest.fixture(autouse=True)
def course(tmp_path, monkeypatch):
    """Two labs; a title holds what would be markup."""
    root = tmp_path / "course"
    (root / "labkit").mkdir(parents=True)
    (root / "labs").mkdir()
    exercises = [
        {"id": f"98.{k}", "title": "Twice <b>", "minutes": 5, "difficulty": 1, "version": 1, "is_stretch": k == 2}
        for k in (1, 2)
    ]
    lab = {"title": "Doubling", "question": "How much is twice?", "phase": 0, "minutes": 30}
    first = lab | {"number": "98", "name": "98_double", "exercises": exercises, "predictions": ["98.p1"]}
    first["quiz"] = ["98.q1", "98.q2"]
    second = lab | {"number": "99", "name": "99_next", "title": "Next", "exercises": []}
    content = {"phases": [{"number": 0, "title": "bring-up"}, {"number": 1, "title": "no labs yet"}]}
    (root / "labs/course.json").write_text(json.dumps(content | {"labs": [first, second]}), encoding="utf-8")
    monkeypatch.setenv("LABKIT_COURSE", str(root))


@pytest.fixture
def shown(monkeypatch):
    """A fake IPython kernel that keeps what is displayed."""
    shown = []
    ipython, display = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    ipython.get_ipython = lambda: types.SimpleNamespace(kernel=object())
    display.display = lambda data, raw, metadata=None: shown.append(data) if raw else None
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return shown


def content():
    course = load_course()
    return make_content(course, estimate_state(course, load_events()))


def test_the_view_is_sent_phases_labs_exercises_quiz_minutes_and_what_to_do_next():
    append_event("attempt", exercise="98.1", version=1, outcome="failed", sentence="got 3")
    append_event("quiz", exercise="98.q1", outcome="passed")
    append_event("prediction", exercise="98.p1", value=100, unit="tok/s")
    append_event("measured", exercise="98.p1", value=50.0, unit="tok/s")
    (phase,) = content()["phases"]
    assert phase["title"] == "Phase 0: bring-up"
    lab, untouched = phase["labs"]
    assert (lab["mark"], lab["state"], lab["done"], lab["required"]) == ("◐", "in progress", 0, 1)
    assert (lab["quizDone"], lab["quiz"], lab["minutes"], lab["cardMinutes"]) == (1, 2, 0, 30)
    assert lab["path"] == "labs/98_double.ipynb"
    assert lab["exercises"][0] == {
        "mark": "✗", "state": "failed", "title": "98.1 Twice <b>", "notes": "1 attempt", "sentence": "got 3",
    }  # fmt: skip
    assert lab["exercises"][1]["notes"] == "stretch"
    assert lab["predictions"] == ["98.p1: 100 tok/s predicted, 50.0 measured (2.00x too high)"]
    assert untouched["state"] == "not started"
    assert content()["next"] == "Next: exercise 98.1 (Twice <b>) in labs/98_double.ipynb."
    assert content()["predictions"].startswith("Predictions: n = 1, median predicted over measured 2.00")


def test_what_is_sent_is_json_and_names_damaged_lines():
    append_event("attempt", exercise="98.1", version=1, outcome="passed", sentence="")
    with open(find_progress_file(), "a") as file:
        file.write("{oops\n")
    sent = content()
    assert json.loads(json.dumps(sent)) == sent
    assert sent["damaged"] == ["Progress file: damaged line 2 was skipped."]
    assert sent["phases"][0]["labs"][0]["done"] == 1


def watch(path, *, seen, num_looks, change):
    """Run the watch for a number of looks; `change(k)` happens before look k. Returns at which looks it told."""
    told, looks = [], []

    def is_wanted():
        looks.append(1)
        if len(looks) > num_looks:
            return False
        change(len(looks))
        return True

    watch_file(path, lambda: told.append(len(looks)), is_wanted=is_wanted, seen=seen, interval_s=0)
    return told


def test_the_watch_reports_each_change_once_and_nothing_else(tmp_path):
    path = tmp_path / "progress.jsonl"

    def change(look):
        if look == 2:
            path.write_text("a")
        if look == 4:
            path.write_text("b")  # the same size
            os.utime(path, ns=(1, 1))
        if look == 5:
            path.unlink()

    assert watch(path, seen=None, num_looks=7, change=change) == [2, 4, 5]


def test_a_change_between_reading_and_watching_is_noticed(tmp_path):
    path = tmp_path / "progress.jsonl"
    path.write_text("a")
    assert watch(path, seen=None, num_looks=3, change=lambda look: None) == [1]


def test_outside_a_notebook_it_is_the_table_as_text(capsys):
    view_live_progress()
    assert "98   Doubling  not started" in capsys.readouterr().out


def test_without_anywidget_it_is_the_plain_table(shown, monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    progress._make_widget_class.cache_clear()
    view_live_progress()
    assert [set(data) for data in shown] == [{"text/html", "text/plain"}]
    assert "Doubling" in shown[0]["text/html"]


def test_the_page_code_sets_text_only_and_loads_nothing():
    code = (VIEWS / "progress.js").read_text(encoding="utf-8")
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "import ", "fetch(", "http", "eval("):
        assert word not in code, word
    style = (VIEWS / "progress.css").read_text(encoding="utf-8")
    assert "url(" not in style and "@import" not in style
    # Every class that the style names is one that the page makes, and none is missing.
    assert set(re.findall(r"\.(labkit-[a-z]+)", style)) <= set(re.findall(r"labkit-[a-z]+", code)) | {"labkit-minutes"}


def test_the_two_colours_are_those_of_the_figures():
    from labkit.plots import ESTIMATE, MEASURED

    style = (VIEWS / "progress.css").read_text(encoding="utf-8")
    assert f".labkit-minutes {{ border: 1px solid {ESTIMATE.lower()}" in style
    assert f".labkit-minutes .labkit-fill {{ background: {MEASURED.lower()}" in style


@pytest.mark.slow
def test_in_a_kernel_the_view_follows_the_file_and_ends_with_its_widget(run_notebook):
    pytest.importorskip("anywidget")
    from nbformat import v4

    cells = (
        "import threading, time\n"
        "import ipywidgets.widgets.widget as registry\n"
        "from labkit.progress import append_event\n"
        "from labkit.views import view_live_progress",
        "view_live_progress()",
        "(widget,) = [one for one in registry._instances.values() if hasattr(one, 'content')]\n"
        "def wait(is_true):\n"
        "    end = time.monotonic() + 30\n"
        "    while not is_true() and time.monotonic() < end:\n"
        "        time.sleep(0.05)\n"
        "    return is_true()",
        "append_event('attempt', exercise='98.1', version=1, outcome='passed', sentence='well')\n"
        "is_told = wait(lambda: widget.content['phases'][0]['labs'][0]['done'] == 1)\n"
        "widget.close()\n"
        "print(is_told, wait(lambda: 'labkit-progress' not in [one.name for one in threading.enumerate()]))",
    )
    done = run_notebook(
        v4.new_notebook(cells=[v4.new_code_cell(cell) for cell in cells]), LABKIT_COURSE=os.environ["LABKIT_COURSE"]
    )
    (output,) = done.cells[1].outputs
    assert set(output.data) == {"text/html", "text/plain"}, "a stored widget without its kernel is an error message"
    assert re.match(r'<div data-labkit-live="[0-9a-f]{32}"><table', output.data["text/html"])
    assert "98   Doubling" in output.data["text/plain"]
    assert done.cells[3].outputs[0]["text"] == "True True\n"
