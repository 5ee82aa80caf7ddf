"""Progress: nothing recorded is lost, and the state follows from the events."""

import errno
import functools
import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit import journal
from labkit.errors import ProgressError
from labkit.progress import (
    append_event,
    estimate_state,
    export_progress,
    format_progress,
    import_progress,
    load_course,
    load_events,
)
from labkit.progress.state import Prediction

ROOT = Path(__file__).resolve().parents[1]
START = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def course_file(folder, *, versions=(1, 1), stretch=(), num_labs=1):
    labs = [
        {
            "number": f"0{k}",
            "name": f"0{k}_lab",
            "title": f"Lab {k}",
            "question": "Why?",
            "phase": 0,
            "minutes": 45,
            "exercises": [
                {
                    "id": f"0{k}.{index}",
                    "title": f"Task {index}",
                    "minutes": 5,
                    "difficulty": 1,
                    "version": version,
                    "is_stretch": index in stretch,
                    "blocked_on": [],
                }
                for index, version in enumerate(versions, start=1)
            ],
            "predictions": [f"0{k}.p1"],
            "quiz": [f"0{k}.q1", f"0{k}.q2"],
        }
        for k in range(num_labs)
    ]
    path = folder / "course.json"
    path.write_text(json.dumps({"phases": [{"number": 0, "title": "bring-up"}], "labs": labs}))
    return path


@pytest.fixture
def course(tmp_path):
    return load_course(course_file(tmp_path))


def event(kind, exercise, minute=0.0, **fields):
    time = (START + timedelta(minutes=minute)).isoformat()
    return {"id": f"{kind}{exercise}{minute}", "time": time, "kind": kind, "exercise": exercise, **fields}


def attempts(exercise, *outcomes, version=1):
    return [
        event("viewed", exercise, minute, version=version)
        if outcome == "viewed"
        else event("attempt", exercise, minute, version=version, outcome=outcome, sentence=f"it {outcome}")
        for minute, outcome in enumerate(outcomes)
    ]


def run_writer(home, code, **options):
    environment = {**os.environ, "LABKIT_HOME": str(home), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True, **options)


# Events on disk.


def test_an_event_is_read_back_as_it_was_written(home):
    written = append_event("attempt", exercise="00.1", version=1, outcome="failed", sentence="got 420, é", value=4.5)
    assert load_events().events == (written,)
    assert datetime.fromisoformat(written["time"]).utcoffset() == timedelta(0)
    assert len(written["id"]) == 32


def test_without_a_progress_file_there_are_no_events(home):
    assert load_events().events == ()
    assert not home.exists(), "reading must not create anything"


def test_progress_lives_in_the_users_data_folder_unless_labkit_home_says_otherwise(tmp_path, monkeypatch):
    monkeypatch.delenv("LABKIT_HOME", raising=False)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    append_event("setup", lab="00")
    assert (tmp_path / ".local/share/labkit/progress.jsonl").exists()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    append_event("setup", lab="00")
    assert (tmp_path / "data/labkit/progress.jsonl").exists()
    monkeypatch.setenv("XDG_DATA_HOME", "data")  # relative: the XDG rule is to ignore it
    append_event("setup", lab="00")
    assert len(load_events()) == 2


@pytest.mark.slow
def test_two_processes_that_append_two_hundred_events_each_at_once_lose_none(home):
    code = (
        "import sys; from labkit.progress import append_event\n"
        "for k in range(200): append_event('note', exercise='00.1', value=[WHO, k], sentence='x' * (37 * k % 5000))\n"
    )
    writers = [run_writer(home, code.replace("WHO", str(who))) for who in (0, 1)]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0]
    loaded = load_events()
    assert loaded.damaged == ()
    assert sorted(tuple(item["value"]) for item in loaded) == [(who, k) for who in (0, 1) for k in range(200)]
    for who in (0, 1):
        assert [item["value"][1] for item in loaded if item["value"][0] == who] == list(range(200))


@pytest.mark.slow
def test_a_killed_writer_loses_nothing_that_was_recorded_before(home):
    code = (
        "from labkit.progress import append_event\n"
        "while True: print(append_event('note', exercise='00.1', sentence='y' * 3000)['id'], flush=True)\n"
    )
    for _ in range(3):
        writer = run_writer(home, code)
        confirmed = [writer.stdout.readline().strip() for _ in range(25)]
        writer.send_signal(signal.SIGKILL)
        confirmed += writer.stdout.read().split()
        assert writer.wait() == -signal.SIGKILL
        loaded = {item["id"] for item in load_events()}
        assert set(confirmed) <= loaded
    append_event("note", exercise="00.1")
    assert len(load_events()) >= 76


def test_a_writer_killed_in_the_middle_of_a_line_damages_only_that_line(home):
    first = append_event("setup", lab="00")
    code = (
        "import os, signal\n"
        "from labkit.progress import append_event\n"
        "write = os.write\n"
        "def half(descriptor, data):\n"
        "    write(descriptor, data[:len(data) // 2]); os.kill(os.getpid(), signal.SIGKILL)\n"
        "os.write = half\n"
        "append_event('note', exercise='00.1')\n"
    )
    assert run_writer(home, code).wait(timeout=60) == -signal.SIGKILL
    before = load_events()
    assert before.events == (first,)
    assert [line for line, _ in before.damaged] == [2]
    assert "half-written" in before.damaged[0][1]
    last = append_event("note", exercise="00.1")
    after = load_events()
    assert after.events == (first, last)
    assert [line for line, _ in after.damaged] == [2]


def test_a_last_line_without_its_newline_is_read_and_ended(home):
    first = append_event("setup", lab="00")
    path = home / "progress.jsonl"
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert load_events().events == (first,)
    second = append_event("setup", lab="00")
    assert load_events() == type(load_events())((first, second))


@pytest.mark.parametrize(
    "broken",
    [
        b'{"id": "a", "time": "2026-11-21T12:00:00+00:00", "ki',
        b"\x00\x00\x00\x00",
        b"\xff\xfe{}",
        b"[1, 2]",
        b"NaN",
        b'{"id": "a", "time": "2026-11-21T12:00:00+00:00", "kind": "note", "value": Infinity}',
        b'{"time": "2026-11-21T12:00:00+00:00", "kind": "note"}',
        b'{"id": "a", "time": "yesterday", "kind": "note"}',
        b'{"id": "a", "time": "2026-11-21T12:00:00", "kind": "note"}',
        b'{"id": "a", "time": "2026-11-21T12:00:00+00:00", "kind": "note", "exercise": ["00.1"]}',
        b'{"id": "a", "time": "2026-11-21T12:00:00+00:00", "kind": "note", "version": "one"}',
        b"[" * 100_000,
        b"9" * 10_000,
    ],
)
def test_a_damaged_line_in_the_middle_is_reported_with_its_number(home, course, broken):
    first = append_event("setup", lab="00")
    path = home / "progress.jsonl"
    with open(path, "ab") as file:
        file.write(broken + b"\n")
    last = append_event("setup", lab="00")
    loaded = load_events()
    assert loaded.events == (first, last)
    ((line, reason),) = loaded.damaged
    assert line == 2
    assert len(reason) > 3
    assert "line 2" in format_progress(estimate_state(course, loaded))


def fail_to_write(monkeypatch, *, num_bytes):
    """Let the disk accept only `num_bytes` of the next line (None: refuse at once)."""
    write = os.write

    def limited(descriptor, data):
        if num_bytes is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data[:num_bytes])

    monkeypatch.setattr(journal.os, "write", limited)


@pytest.mark.parametrize("num_bytes", [None, 0, 1, 40])
def test_a_full_disk_names_the_next_step_and_leaves_earlier_lines_readable(home, monkeypatch, num_bytes):
    first = append_event("setup", lab="00")
    content = (home / "progress.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        fail_to_write(patch, num_bytes=num_bytes)
        with pytest.raises(ProgressError, match="disk is full.*Next: Free some space"):
            append_event("attempt", exercise="00.1", outcome="passed")
    assert (home / "progress.jsonl").read_bytes() == content
    second = append_event("setup", lab="00")
    loaded = load_events()
    assert loaded.events == (first, second)
    assert loaded.damaged == ()


def test_a_short_write_that_cannot_be_undone_damages_only_itself(home, monkeypatch):
    first = append_event("setup", lab="00")
    with monkeypatch.context() as patch:
        fail_to_write(patch, num_bytes=40)

        def refuse(descriptor, size):
            raise OSError(errno.EIO, "no")

        patch.setattr(journal.os, "ftruncate", refuse)
        with pytest.raises(ProgressError):
            append_event("attempt", exercise="00.1", outcome="passed")
    second = append_event("setup", lab="00")
    assert load_events().events == (first, second)
    assert [line for line, _ in load_events().damaged] == [2]


def test_an_event_is_on_the_disk_before_append_event_returns(home, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(
        journal.os, "fsync", lambda descriptor: (synced.append(os.fstat(descriptor).st_size), fsync(descriptor))
    )
    append_event("setup", lab="00")
    assert (home / "progress.jsonl").stat().st_size in synced


def test_a_file_that_cannot_be_written_says_which_setting_helps(home):
    home.mkdir()
    (home / "progress.jsonl").mkdir()
    with pytest.raises(ProgressError, match="Set LABKIT_HOME"):
        append_event("setup", lab="00")
    with pytest.raises(ProgressError, match="LABKIT_HOME"):
        load_events()


def test_a_file_system_without_locks_still_records(home, monkeypatch):
    def refuse(descriptor, how):
        raise OSError(errno.ENOSYS, "no locks here")

    monkeypatch.setattr(journal.fcntl, "flock", refuse)
    first = append_event("setup", lab="00")
    assert load_events().events == (first,)


@pytest.mark.parametrize(
    ("kind", "fields", "named"),
    [
        ("guess", {}, "guess"),
        ("attempt", {"outcome": "won"}, "won"),
        ("note", {"id": "mine"}, "id"),
        ("note", {"exercise": 1}, "exercise"),
        ("prediction", {"value": float("nan")}, "JSON"),
        ("note", {"value": object()}, "object"),
        ("note", {"value": functools.reduce(lambda inner, _: [inner], range(100_000), [])}, "recursion"),
    ],
)
def test_an_invalid_event_is_refused_by_name_and_nothing_is_written(home, kind, fields, named):
    with pytest.raises(ProgressError, match=named):
        append_event(kind, **fields)
    assert len(load_events()) == 0


def test_numpy_numbers_are_written_as_numbers(home):
    np = pytest.importorskip("numpy")
    append_event("prediction", exercise="00.p1", value=np.int64(3))
    append_event("measured", exercise="00.p1", value=np.float32(0.5))
    assert [item["value"] for item in load_events()] == [3, 0.5]


# Export and import.


def test_export_and_import_form_a_union_and_repeating_them_changes_nothing(home, tmp_path, monkeypatch):
    here = [append_event("note", exercise="00.1", value=k) for k in range(3)]
    exported = tmp_path / "mine.jsonl"
    assert export_progress(exported) == 3
    once = exported.read_bytes()
    assert export_progress(exported) == 3
    assert exported.read_bytes() == once

    monkeypatch.setenv("LABKIT_HOME", str(tmp_path / "other"))
    there = append_event("note", exercise="00.2")
    assert import_progress(exported).events == tuple(here)
    assert load_events().events == (there, *here)
    content = (tmp_path / "other/progress.jsonl").read_bytes()
    assert import_progress(exported).events == ()
    assert (tmp_path / "other/progress.jsonl").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []


def test_the_state_after_an_import_does_not_depend_on_its_direction(home, tmp_path, monkeypatch, course):
    def write(folder, items):
        folder.mkdir()
        (folder / "progress.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))

    one = [event("viewed", "00.1", 0, version=1), event("attempt", "00.2", 3, outcome="failed", version=1)]
    two = [event("attempt", "00.1", 2, outcome="passed", version=1)]
    states = []
    for name, mine, other in (("a", one, two), ("b", two, one)):
        write(tmp_path / name, mine)
        write(tmp_path / f"{name}-other", other)
        monkeypatch.setenv("LABKIT_HOME", str(tmp_path / name))
        import_progress(tmp_path / f"{name}-other" / "progress.jsonl")
        states.append(estimate_state(course, load_events()))
    assert states[0] == states[1]
    assert [item.state for item in states[0].labs[0].exercises] == ["viewed", "failed"]


def test_an_event_that_is_in_the_file_twice_counts_once(home, course):
    home.mkdir()
    line = json.dumps(event("attempt", "00.1", outcome="failed")) + "\n"
    (home / "progress.jsonl").write_text(line + line)  # two simultaneous imports can leave this
    assert estimate_state(course, load_events()).labs[0].exercises[0].num_attempts == 1


def test_an_import_names_damaged_lines_and_takes_the_others(home, tmp_path):
    good = event("note", "00.1")
    (tmp_path / "file.jsonl").write_text(json.dumps(good) + "\n{oops\n")
    result = import_progress(tmp_path / "file.jsonl")
    assert result.events == (good,)
    assert [line for line, _ in result.damaged] == [2]


def test_importing_a_missing_or_foreign_file_is_an_error_and_adds_nothing(home, tmp_path):
    (tmp_path / "foreign.txt").write_text("dear diary\n")
    for name in ("absent.jsonl", "foreign.txt"):
        with pytest.raises(ProgressError, match="labkit progress --export"):
            import_progress(tmp_path / name)
    assert not home.exists()


def test_an_export_never_replaces_a_file_that_holds_something_else(home, tmp_path):
    append_event("setup", lab="00")
    other = tmp_path / "diary.txt"
    for content in ("dear diary\n", json.dumps(event("note", "00.1")) + "\n"):
        other.write_text(content)
        with pytest.raises(ProgressError, match="Choose another name"):
            export_progress(other)
        assert other.read_text() == content
    with pytest.raises(ProgressError, match="itself"):
        export_progress(home / "progress.jsonl")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "not a regular file"),
        ("/", "not a regular file"),
        ("pipe", "not a regular file"),
        ("file/x", "File exists|Not a directory"),
        ("a" * 300, "name too long"),
        ("loop", "loop|not a regular file"),
        ("~nosuchuser/x", "home folder"),
    ],
)
def test_an_export_that_cannot_be_written_says_why(home, tmp_path, name, reason):
    append_event("setup", lab="00")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ProgressError, match=f"(?i)({reason}).*Next: Choose"):
        export_progress(name if name.startswith("~") else tmp_path / name)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_export_into_a_folder_without_permission_says_why(home, tmp_path):
    (tmp_path / "theirs").mkdir(mode=0o555)
    with pytest.raises(ProgressError, match="Permission denied"):
        export_progress(tmp_path / "theirs" / "mine.jsonl")


def test_an_export_that_fails_midway_says_so_and_leaves_nothing(home, tmp_path, monkeypatch):
    append_event("setup", lab="00")

    def refuse(*arguments, **options):
        raise PermissionError(errno.EACCES, "not here")

    with monkeypatch.context() as patch:
        patch.setattr("labkit.progress.events.os.replace", refuse)
        with pytest.raises(ProgressError, match="not here"):
            export_progress(tmp_path / "mine.jsonl")
        assert [path.name for path in tmp_path.iterdir()] == ["home"]
        patch.setattr(Path, "unlink", lambda *arguments, **options: os.unlink("/nowhere"))
        with pytest.raises(ProgressError, match="not here"):  # cleaning up fails too: the first error counts
            export_progress(tmp_path / "mine.jsonl")


def test_an_export_through_a_link_writes_the_file_that_it_leads_to(home, tmp_path):
    append_event("setup", lab="00")
    for target in (tmp_path / "real.jsonl", tmp_path / "new.jsonl"):
        link = tmp_path / f"link-{target.name}"
        link.symlink_to(target)
    (tmp_path / "real.jsonl").write_text("")
    for name in ("real.jsonl", "new.jsonl"):
        assert export_progress(tmp_path / f"link-{name}") == 1
        assert (tmp_path / f"link-{name}").is_symlink()
        assert len((tmp_path / name).read_text().splitlines()) == 1


def test_an_export_may_have_the_longest_possible_name(home, tmp_path):
    append_event("setup", lab="00")
    assert export_progress(tmp_path / ("a" * 255)) == 1


def test_the_home_of_an_unknown_user_is_an_error_with_a_next_step(monkeypatch):
    monkeypatch.setenv("LABKIT_HOME", "~nosuchuser/x")
    for action in (load_events, lambda: append_event("setup", lab="00")):
        with pytest.raises(ProgressError, match="LABKIT_HOME, ~nosuchuser/x, cannot be used.*Next: "):
            action()


def test_an_infinite_number_in_an_imported_event_is_refused_with_its_place(home, tmp_path):
    good = event("note", "00.1")
    bad = json.dumps(event("measured", "00.p1", 1, value=1)).replace('"value": 1', '"value": 1e999')
    (tmp_path / "both.jsonl").write_text(f"{json.dumps(good)}\n{bad}\n")
    (tmp_path / "bad.jsonl").write_text(f"{bad}\n")
    result = import_progress(tmp_path / "both.jsonl")
    assert result.events == (good,)
    assert result.damaged == ((2, "1e999 is larger than any float"),)
    with pytest.raises(ProgressError, match="contains no event of this course .line 1: 1e999"):
        import_progress(tmp_path / "bad.jsonl")


def test_an_export_of_nothing_is_an_empty_file_that_can_be_imported(home, tmp_path):
    assert export_progress(tmp_path / "empty.jsonl") == 0
    assert import_progress(tmp_path / "empty.jsonl").events == ()


# The course.


@pytest.mark.parametrize("content", ["{", "[]", '{"phases": []}', '{"phases": [], "labs": [{"number": "00"}]}'])
def test_a_damaged_course_list_is_an_error_with_a_next_step(tmp_path, content):
    path = tmp_path / "course.json"
    path.write_text(content)
    with pytest.raises(ProgressError, match="Next: "):
        load_course(path)


def test_the_course_is_found_in_the_course_folder(tmp_path, monkeypatch):
    (tmp_path / "labs").mkdir()
    (tmp_path / "labkit").mkdir()
    course_file(tmp_path / "labs", versions=(1, 2, 3))
    monkeypatch.setenv("LABKIT_COURSE", str(tmp_path))
    course = load_course()
    assert [(item.id, item.version) for item in course.labs[0].exercises] == [("00.1", 1), ("00.2", 2), ("00.3", 3)]
    (tmp_path / "labs/course.json").unlink()
    with pytest.raises(ProgressError, match="LABKIT_COURSE"):
        load_course()


# The state.


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ((), "open"),
        (("not attempted",), "open"),
        (("failed",), "failed"),
        (("failed", "not attempted"), "failed"),
        (("failed", "passed"), "passed"),
        (("passed", "failed"), "passed"),
        (("passed", "viewed"), "passed"),
        (("viewed",), "viewed"),
        (("viewed", "passed"), "viewed"),
        (("viewed", "failed"), "viewed"),
        (("failed", "viewed", "passed"), "viewed"),
        (("passed", "viewed", "passed"), "passed"),
        (("blocked",), "blocked"),
        (("blocked", "failed"), "failed"),
        (("failed", "blocked"), "blocked"),
        (("blocked", "viewed"), "viewed"),
        (("blocked", "passed"), "passed"),
    ],
)
def test_the_state_of_an_exercise_follows_from_its_events(course, outcomes, expected):
    state = estimate_state(course, attempts("00.1", *outcomes))
    assert state.labs[0].exercises[0].state == expected
    assert state.labs[0].exercises[1].state == "open"


@given(st.lists(st.sampled_from(["passed", "failed", "not attempted", "blocked", "viewed"])))
def test_nobody_passes_after_viewing_and_nobody_loses_a_pass(outcomes):
    state = estimate_state(COURSE, attempts("00.1", *outcomes)).labs[0].exercises[0].state
    first_view = outcomes.index("viewed") if "viewed" in outcomes else len(outcomes)
    assert (state == "passed") == ("passed" in outcomes[:first_view])
    assert (state == "viewed") == ("viewed" in outcomes and "passed" not in outcomes[:first_view])


def test_attempts_count_passes_and_failures_and_the_last_sentence_is_kept(course):
    exercise = estimate_state(course, attempts("00.1", "not attempted", "failed", "blocked", "failed", "passed")).labs[
        0
    ]
    assert exercise.exercises[0].num_attempts == 3
    assert exercise.exercises[0].sentence == "it passed"


def test_a_new_version_of_an_exercise_reopens_it(tmp_path):
    events = attempts("00.1", "passed") + attempts("00.2", "viewed")
    assert estimate_state(load_course(course_file(tmp_path)), events).labs[0].state == "complete"
    newer = load_course(course_file(tmp_path, versions=(2, 1)))
    lab = estimate_state(newer, events).labs[0]
    assert [item.state for item in lab.exercises] == ["open", "viewed"]
    assert lab.state == "in progress"
    lab = estimate_state(newer, events + attempts("00.1", "passed", version=2)).labs[0]
    assert [item.state for item in lab.exercises] == ["passed", "viewed"]
    reviewed = load_course(course_file(tmp_path, versions=(1, 2)))
    assert estimate_state(reviewed, events + attempts("00.2", "passed", version=2)).labs[0].num_viewed == 0


def test_a_lab_is_complete_when_every_required_exercise_is_passed_viewed_or_blocked(tmp_path):
    course = load_course(course_file(tmp_path, versions=(1, 1, 1, 1), stretch=(4,)))
    events = attempts("00.1", "passed") + attempts("00.2", "viewed")
    lab = estimate_state(course, events).labs[0]
    assert lab.state == "in progress"
    assert (lab.num_required, lab.num_passed, lab.num_viewed, lab.num_blocked) == (3, 1, 1, 0)
    for last, expected in (("failed", "in progress"), ("blocked", "complete"), ("passed", "complete")):
        lab = estimate_state(course, events + attempts("00.3", last)).labs[0]
        assert lab.state == expected
    table = format_progress(estimate_state(course, events + attempts("00.3", "blocked")))
    assert "1 viewed, 1 blocked on this hardware" in table
    assert "3/3" in table
    assert "All labs are complete." in table


def test_a_lab_without_events_is_not_started_and_a_lab_without_exercises_needs_one(tmp_path):
    course = load_course(course_file(tmp_path, versions=()))
    assert estimate_state(course, []).labs[0].state == "not started"
    assert (
        estimate_state(course, [{"id": "1", "time": START.isoformat(), "kind": "complete", "lab": "00"}]).labs[0].state
        == "complete"
    )


def test_minutes_are_the_gaps_under_a_quarter_of_an_hour_between_events_of_the_same_lab(tmp_path):
    course = load_course(course_file(tmp_path, num_labs=2))
    minutes = (0, 5, 19, 34, 60, 74.5)  # gaps 5, 14, 15 (no longer counted), 26, 14.5
    events = [event("note", "00.1", minute) for minute in minutes]
    other = [event("note", "01.1", minute + 1) for minute in (0, 2)]
    state = estimate_state(course, other + events[::-1])
    assert state.labs[0].minutes == pytest.approx(5 + 14 + 14.5)
    assert state.labs[1].minutes == pytest.approx(2)


def test_events_of_unknown_labs_and_kinds_change_nothing(course):
    events = [event("note", "77.1"), event("telepathy", "00.1"), {"id": "x", "time": START.isoformat(), "kind": "note"}]
    lab = estimate_state(course, events).labs[0]
    assert [item.state for item in lab.exercises] == ["open", "open"]


def predict(minute, value):
    return event("prediction", "00.p1", minute, value=value, unit="tok/s")


def measured(minute, value):
    return event("measured", "00.p1", minute, value=value)


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([], Prediction("00.p1", None, None)),
        ([predict(0, None), measured(1, 200)], Prediction("00.p1", None, 200, "tok/s")),
        ([predict(0, 50)], Prediction("00.p1", 50, None, "tok/s")),
        ([predict(0, 50), predict(1, None), measured(2, 200)], Prediction("00.p1", 50, 200, "tok/s")),
        ([predict(0, 50), predict(1, 60), measured(2, 200)], Prediction("00.p1", 60, 200, "tok/s")),
        ([predict(0, 50), measured(1, 200), predict(2, 199)], Prediction("00.p1", 50, 200, "tok/s")),
        (
            [predict(0, 50), measured(1, 200), predict(2, 199), measured(3, 210)],
            Prediction("00.p1", 50, 210, "tok/s"),
        ),
        ([measured(1, 200), predict(2, 199), predict(3, 200)], Prediction("00.p1", 199, 200, "tok/s", is_late=True)),
        ([predict(0, None), measured(1, 200), predict(2, 199)], Prediction("00.p1", 199, 200, "tok/s", is_late=True)),
        ([predict(0, 0), measured(1, 200), predict(2, 199)], Prediction("00.p1", 0, 200, "tok/s")),
    ],
)
def test_a_prediction_given_after_the_measurement_never_replaces_an_earlier_one(course, events, expected):
    assert estimate_state(course, events).labs[0].predictions == (expected,)


def test_each_question_that_was_answered_right_counts_once(course):
    events = [
        event("quiz", "00.q1", 0, outcome="failed"),
        event("quiz", "00.q1", 1, outcome="passed"),
        event("quiz", "00.q1", 2, outcome="passed"),
        event("quiz", "00.q2", 3, outcome="failed"),
    ]
    lab = estimate_state(course, events).labs[0]
    assert (lab.num_quiz_passed, lab.num_quiz) == (1, 2)


def test_the_table_shows_each_lab_and_what_to_do_next(tmp_path):
    course = load_course(course_file(tmp_path, num_labs=2))
    table = format_progress(estimate_state(course, attempts("01.1", "passed") + attempts("01.2", "failed")))
    lines = table.splitlines()
    assert lines[1].split() == ["00", "Lab", "0", "not", "started", "0/2", "0/2", "0"]
    assert lines[2].split() == ["01", "Lab", "1", "in", "progress", "1/2", "0/2", "0", "01.2", "failed"]
    assert lines[-1] == "Next: exercise 01.2 (Task 2) in labs/01_lab.ipynb."


def _build_course():
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return load_course(course_file(Path(folder)))


COURSE = _build_course()
