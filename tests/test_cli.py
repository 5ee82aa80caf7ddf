"""The command line: exit codes, one-line errors, JSON, and help that equals the README's."""

import errno
import fcntl
import io
import json
import os
import re
import select
import shutil
import subprocess
import sys
import termios
from pathlib import Path
from types import SimpleNamespace

import pytest

from labkit import cli
from labkit.cli import update_readme
from labkit.errors import LabkitError
from labkit.progress import append_event, load_course, load_events
from labkit.quiz import load_questions
from labkit.results import save_record

ROOT = Path(__file__).resolve().parents[1]
COURSE = {
    "phases": [{"number": 0, "title": "bring-up"}],
    "labs": [
        {
            "number": "00",
            "name": "00_start_here",
            "title": "Start here",
            "question": "Ready?",
            "phase": 0,
            "minutes": 45,
            "exercises": [{"id": "00.1", "title": "Bytes", "minutes": 5, "difficulty": 1, "version": 1}],
            "predictions": ["00.p1"],
            "quiz": ["00.q1"],
        }
    ],
}


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LABKIT_RUNS", str(tmp_path / "runs"))


@pytest.fixture
def course(tmp_path, monkeypatch):
    for folder in ("labs", "labkit"):
        (tmp_path / "course" / folder).mkdir(parents=True)
    (tmp_path / "course/labs/course.json").write_text(json.dumps(COURSE))
    monkeypatch.setenv("LABKIT_COURSE", str(tmp_path / "course"))
    return tmp_path / "course"


def python(*arguments, **settings):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **settings}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=120)


def save(**changes):
    arguments = {"samples": {"decode_tok_per_s": [100.0, 101.0, 102.0, 103.0, 104.0, 105.0, 106.0]}}
    return save_record("00", "decode", **{**arguments, **changes})


# Import and help.


def test_importing_labkit_loads_nothing_else():
    code = "import sys\nbefore = set(sys.modules)\nimport labkit\nprint(*sorted(set(sys.modules) - before))"
    run = python("-c", code)
    assert (run.returncode, run.stdout.split()) == (0, ["labkit"]), run.stderr


def loaded(modules):
    heavy = {"torch", "numpy", "transformers", "plotly", "IPython", "psutil", "pynvml", "vllm", "scipy"}
    return heavy & {name.partition(".")[0] for name in modules.split()}


def test_the_help_loads_nothing_heavy():
    code = "import sys\nfrom labkit.cli import format_help\nformat_help()\nprint(*sorted(sys.modules))"
    run = python("-c", code)
    assert run.returncode == 0, run.stderr
    assert not loaded(run.stdout)
    assert "labkit.results" not in run.stdout.split()


def test_the_readme_shows_the_current_help():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search("<!-- labkit-help -->\n```text\n(.*?)```\n<!-- /labkit-help -->", text, flags=re.DOTALL)
    assert block, "README.md has no help block: run python -m labkit.cli --update-readme"
    assert block[1] == cli.format_help(), "run python -m labkit.cli --update-readme"


def test_the_help_of_every_command_is_shown_and_does_not_depend_on_the_terminal(monkeypatch):
    wide = cli.format_help()
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert cli.format_help() == wide
    assert max(map(len, wide.splitlines())) <= 100
    for command in ("doctor", "models", "results list", "results show", "results verify", "progress", "quiz"):
        assert f"usage: labkit {command} [-h]" in wide
    for option in ("--json", "--fits", "--export FILE", "--import FILE"):
        assert option in wide


def test_update_readme_writes_only_between_the_markers(course):
    readme = course / "README.md"
    readme.write_text("before\n<!-- labkit-help -->\nold\n<!-- /labkit-help -->\nafter\n")
    assert python("-m", "labkit.cli", "--update-readme").returncode == 0
    for _ in range(2):
        expected = f"before\n<!-- labkit-help -->\n```text\n{cli.format_help()}```\n<!-- /labkit-help -->\nafter\n"
        assert readme.read_text() == expected
        update_readme()
    readme.write_text("no markers\n")
    with pytest.raises(LabkitError, match="<!-- labkit-help -->"):
        update_readme()
    assert readme.read_text() == "no markers\n"


def test_update_schema_writes_the_schema_in_use(course):
    (course / "data/reference").mkdir(parents=True)
    assert python("-m", "labkit.cli", "--update-schema").returncode == 0
    written = (course / "data/reference/record.schema.json").read_text()
    assert written == (ROOT / "data/reference/record.schema.json").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("module", ["labkit", "labkit.cli"])
def test_python_m_runs_the_command(module):
    run = python("-m", module, "results", "list")
    assert run.returncode == 0, run.stderr
    assert "No record yet" in run.stdout
    assert python("-m", module, "results", "show", "r-0").returncode == 2


def test_without_a_command_the_help_is_shown(capsys):
    assert cli.main([]) == 0
    assert "COMMAND" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [["dance"], ["doctor", "--loud"], ["results"], ["progress", "--js"]])
def test_an_unknown_command_or_option_is_an_error(argv, capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(argv)
    assert error.value.code == 2
    assert "usage: labkit" in capsys.readouterr().err


def test_a_labkit_error_is_one_line_on_stderr_and_exit_code_two(capsys):
    assert cli.main(["results", "show", "r-0123456789"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1
    assert shown.err.startswith("labkit: no record has the id 'r-0123456789'")
    assert "Next: " in shown.err


def test_an_error_of_several_lines_is_still_one_line(monkeypatch, capsys):
    def fail(arguments):
        raise LabkitError("two\nlines.", next_step="read\nthem.")

    monkeypatch.setattr("labkit.cli.commands._run_results_list", fail)
    assert cli.main(["results", "list"]) == 2
    assert capsys.readouterr().err == "labkit: two lines. Next: read them.\n"


def test_an_interrupt_is_quiet(monkeypatch):
    def interrupt(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("labkit.cli.commands._run_results_list", interrupt)
    assert cli.main(["results", "list"]) == 130


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("head"), reason="needs head")
def test_a_closed_pipe_is_no_error():
    record = save(samples={"x_s": [0.1] * 20_000})
    command = f"{sys.executable} -m labkit results show {record.id} --json | head -n 1"
    run = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (run.returncode, run.stderr, run.stdout) == (0, "", "{\n")


class Full(io.RawIOBase):
    """A full disk, without using /dev/full."""

    is_full = True

    def writable(self):
        return True

    def write(self, data):
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(data)


@pytest.mark.parametrize("argv", [["results", "list"], ["progress"], ["--help"], ["load", "--help"], []])
def test_a_full_output_is_one_line_and_exit_code_two(monkeypatch, capsys, argv):
    disk = Full()
    stream = io.TextIOWrapper(io.BufferedWriter(disk), encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        assert cli.main(argv) == 2
    disk.is_full = False
    stream.close()
    shown = capsys.readouterr().err
    assert shown.startswith("labkit: the output could not be written: No space left")
    assert len(shown.splitlines()) == 1


def test_a_closed_output_is_one_line_and_exit_code_two(monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        assert cli.main(["results", "list"]) == 2
    assert capsys.readouterr().err.startswith("labkit: the standard output is closed. Next: ")


def test_an_error_of_the_system_is_one_line_with_its_file(monkeypatch, capsys):
    def fail(arguments):
        raise OSError(errno.ENAMETOOLONG, "File name too long", "aaa")

    monkeypatch.setattr("labkit.cli.commands._run_results_list", fail)
    assert cli.main(["results", "list"]) == 2
    assert capsys.readouterr().err.startswith("labkit: aaa: File name too long. Next: ")


# doctor and models.


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("warning", 0), ("not needed", 0), ("missing", 1)])
def test_doctor_exits_with_one_if_something_is_missing(monkeypatch, capsys, status, code):
    from labkit import environment

    findings = (environment.Finding("torch", status, "seen this", "run `make setup`."),)
    monkeypatch.setattr(environment, "probe_environment", lambda **options: findings)
    monkeypatch.setenv("LABKIT_TIER", "ampere")
    assert cli.main(["doctor"]) == code
    text = capsys.readouterr().out
    assert "seen this" in text
    assert "make setup" in text
    assert "'ampere'" in text
    assert cli.main(["doctor", "--json"]) == code
    content = json.loads(capsys.readouterr().out)
    assert content["tier"] == "ampere"
    assert content["findings"][0]["status"] == status
    assert content["machine"]["cpu"]["name"]


def models(monkeypatch):
    """Two models, one of which fits; the text of the table is tested with the package that writes it."""
    import labkit.models

    def fit(name, has_room):
        model = SimpleNamespace(
            name=name, source="hub", dtype="float16", num_parameters=7, weight_bytes=14, kv_bytes_per_token=2,
            config={"secret": "path"}, path_or_id="/home/me/x",
        )  # fmt: skip

        class Fit(SimpleNamespace):
            def __str__(self):
                return f"row of {name}"

        return Fit(
            model=model, role="target", tier="t4", device="the CPU", needed_bytes=20, free_bytes=10, has_room=has_room,
            is_of_tier=True, reason=f"{name} needs 20 B.",
        )  # fmt: skip

    monkeypatch.setattr(labkit.models, "list_models", lambda machine: (fit("small", True), fit("large", False)))


def test_models_shows_what_fits_and_why_the_others_do_not(monkeypatch, capsys):
    models(monkeypatch)
    assert cli.main(["models"]) == 0
    text = capsys.readouterr().out
    assert "row of small\nrow of large\n" in text
    assert "Does not fit: large needs 20 B.\n" in text
    assert "small needs" not in text
    assert cli.main(["models", "--fits"]) == 0
    text = capsys.readouterr().out
    assert "row of small" in text
    assert "large" not in text


def test_models_as_json_has_the_bytes_and_no_path(monkeypatch, capsys):
    models(monkeypatch)
    assert cli.main(["models", "--json", "--fits"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["models"]
    assert (row["name"], row["weight_bytes"], row["needed_bytes"], row["has_room"]) == ("small", 14, 20, True)
    assert "/home" not in json.dumps(row)


def test_models_runs_on_this_machine_before_anything_is_downloaded(monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert cli.main(["models", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["models"]
    assert {"hub"} <= {row["source"] for row in rows}
    assert all(row["weight_bytes"] > 0 and row["needed_bytes"] > row["weight_bytes"] for row in rows)
    assert cli.main(["models"]) == 0
    assert "No weights were downloaded" in capsys.readouterr().out


# results.


def test_results_list_of_a_lab_without_records_names_the_labs_that_have_some(capsys):
    assert cli.main(["results", "list", "--lab", "99"]) == 0
    assert capsys.readouterr().out.startswith("No record yet")
    save()
    save_record("12", "serve", samples={"e2e_s": [1.0]})
    assert cli.main(["results", "list", "--lab", "99"]) == 0
    assert capsys.readouterr().out == "No record of lab 99; there are records of lab 00, 12.\n"


def rewrite(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content) + "\n")


def test_results_show_escapes_a_character_that_the_terminal_lacks(tmp_path, monkeypatch):
    record = save()
    rewrite(tmp_path / "runs/results.jsonl", lambda content: content["command"].append("\ud800\u2192"))
    for encoding in ("utf-8:strict", "ascii:strict"):
        run = python("-m", "labkit", "results", "show", record.id, PYTHONIOENCODING=encoding)
        assert run.returncode == 0, run.stderr
        assert "\\ud800" in run.stdout


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda content: content["summary"]["decode_tok_per_s"].update(p50="fast"), "p50 should be number or null"),
        (lambda content: content["summary"]["decode_tok_per_s"].update(p50_interval={"high": 1}), "lacks low"),
        (lambda content: content["host"].update(gpus=[{"name": 3}]), "gpus[0].name should be string"),
    ],
)
def test_results_of_a_record_changed_by_hand_say_what_is_wrong_with_it(tmp_path, capsys, change, reason):
    record = save()
    rewrite(tmp_path / "runs/results.jsonl", change)
    for command, code in ((["list"], 0), (["show", record.id], 2), (["verify"], 1), (["compare", record.id, "x"], 2)):
        assert cli.main(["results", *command]) == code
        shown = capsys.readouterr()
        assert "line 1: " in shown.out + shown.err and reason in shown.out + shown.err


def test_results_show_without_a_median_says_so(tmp_path, capsys):
    record = save()
    rewrite(tmp_path / "runs/results.jsonl", lambda content: content["summary"]["decode_tok_per_s"].update(p50=None))
    assert cli.main(["results", "show", record.id]) == 0
    assert "decode_tok_per_s: n 7, median unknown" in capsys.readouterr().out


def test_results_list_names_each_record_and_its_samples(capsys):
    first, second = save(), save_record("12", "serve", samples={"e2e_s": [1.0]})
    assert cli.main(["results", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{first.id}  {first.time[:16]}  00  decode")
    assert lines[0].endswith("no model: decode_tok_per_s (7)")
    assert lines[1].startswith(second.id)
    assert cli.main(["results", "list", "--lab", "12"]) == 0
    assert capsys.readouterr().out.splitlines() == lines[1:]


def test_results_show_gives_provenance_and_no_more_digits_than_the_spread_supports(capsys):
    record = save(model={"name": "python-11m", "source": "shipped", "dtype": "float32"}, settings={"num_tokens": 64})
    assert cli.main(["results", "show", record.id]) == 0
    text = capsys.readouterr().out
    for part in (
        record.id,
        "python-11m (shipped, float32)",
        "num_tokens 64",
        record.host["cpu"]["name"],
        "budget learner",
    ):
        assert part in text
    assert "decode_tok_per_s: n 7, median 103, 95 % interval 100 to 106" in text
    few = save(samples={"ttft_s": [0.5]})
    assert cli.main(["results", "show", few.id]) == 0
    assert "ttft_s: n 1, median 0.500 (n too small for an interval)" in capsys.readouterr().out


def test_results_show_as_json_is_the_record(capsys):
    record = save()
    assert cli.main(["results", "show", record.id, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == record.to_dict()


def test_results_verify_exits_with_zero_if_all_agree(tmp_path, capsys):
    save()
    save()
    assert cli.main(["results", "verify"]) == 0
    assert "2 of 2 records verify; 0 damaged lines." in capsys.readouterr().out
    assert cli.main(["results", "verify", str(tmp_path / "runs/results.jsonl")]) == 0
    assert cli.main(["results", "verify", str(tmp_path / "runs")]) == 0


def test_results_verify_exits_with_one_and_names_the_record_that_was_changed(tmp_path, capsys):
    good, bad = save(), save()
    path = tmp_path / "runs/results.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[1].replace("106.0", "206.0"))
    assert cli.main(["results", "verify"]) == 1
    text = capsys.readouterr().out
    assert f"{bad.id}: the id is {bad.id}" in text
    assert f"{bad.id}: summary of decode_tok_per_s: mean" in text
    assert good.id not in text
    assert "1 of 2 records verify" in text


def test_results_verify_exits_with_one_and_names_a_damaged_line(tmp_path, capsys):
    save()
    path = tmp_path / "runs/results.jsonl"
    with open(path, "a") as file:
        file.write("{oops\n")
    for command, code in ((["results", "verify", str(path)], 1), (["results", "list"], 0)):
        assert cli.main(command) == code
        assert f"skipped: {path}, line 2: not JSON" in capsys.readouterr().out


def test_results_verify_of_a_file_that_does_not_exist_is_an_error(tmp_path, capsys):
    for name in ("absent.jsonl", "absent"):
        assert cli.main(["results", "verify", str(tmp_path / name)]) == 2
        assert "does not exist" in capsys.readouterr().err


def test_results_verify_exits_with_one_if_there_is_no_record(tmp_path, capsys):
    assert cli.main(["results", "verify"]) == 0, "one's own runs may be empty"
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.jsonl").write_text("")
    for name in ("empty", "empty.jsonl"):
        assert cli.main(["results", "verify", str(tmp_path / name)]) == 1
        assert f"{name} holds no record, so nothing in it was verified." in capsys.readouterr().out


@pytest.mark.parametrize("name", ["a" * 300, "~nosuchuser/x"])
@pytest.mark.parametrize("command", [["results", "verify"], ["progress", "--import"], ["progress", "--export"]])
def test_an_impossible_file_name_is_one_line_and_exit_code_two(capsys, command, name):
    assert cli.main([*command, name]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("labkit: ") and len(shown.splitlines()) == 1
    assert ("home folder" if name.startswith("~") else "name too long") in shown


# progress.


def test_progress_shows_the_table(course, capsys):
    append_event("attempt", exercise="00.1", version=1, outcome="failed", sentence="got 420 bytes")
    assert cli.main(["progress"]) == 0
    text = capsys.readouterr().out
    assert "00   Start here  in progress" in text
    assert "Next: exercise 00.1 (Bytes) in labs/00_start_here.ipynb." in text


def test_progress_says_in_one_line_how_well_the_learner_predicts(course, capsys):
    append_event("prediction", exercise="00.p1", value=100, unit="tok/s")
    append_event("measured", exercise="00.p1", value=50.0, unit="tok/s")
    assert cli.main(["progress"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Predictions:")]
    assert line.startswith("Predictions: n = 1, median predicted over measured 2.00 (too high;")


def test_progress_as_json_has_every_state(course, capsys):
    append_event("attempt", exercise="00.1", version=1, outcome="passed")
    assert cli.main(["progress", "--json"]) == 0
    (lab,) = json.loads(capsys.readouterr().out)["labs"]
    assert lab["state"] == "complete"
    assert lab["exercises"][0]["state"] == "passed"
    assert lab["predictions"][0] == {"id": "00.p1", "predicted": None, "measured": None, "is_late": False, "unit": ""}


def test_progress_is_exported_and_imported_as_one_file(course, tmp_path, monkeypatch, capsys):
    event = append_event("attempt", exercise="00.1", version=1, outcome="passed")
    assert cli.main(["progress", "--export", str(tmp_path / "mine.jsonl")]) == 0
    assert "Exported 1 events" in capsys.readouterr().out
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path / "other"))
    with open(tmp_path / "mine.jsonl", "a") as file:
        file.write("{oops\n")
    for num_new in (1, 0):
        assert cli.main(["progress", "--import", str(tmp_path / "mine.jsonl"), "--json"]) == 0
        shown = capsys.readouterr()
        assert f"Imported {num_new} new events" in shown.err
        assert "line 2" in shown.err
        assert json.loads(shown.out)["labs"][0]["state"] == "complete"
    assert load_events().events == (event,)
    assert cli.main(["progress", "--import", str(tmp_path / "absent.jsonl")]) == 2


def test_the_list_of_labs_of_the_course_is_readable(monkeypatch, capsys):
    monkeypatch.delenv("LABKIT_COURSE", raising=False)
    assert cli.main(["progress", "--json"]) == 0
    labs = json.loads(capsys.readouterr().out)["labs"]
    assert [lab["number"] for lab in labs][:1] == ["00"]
    assert {lab["state"] for lab in labs} == {"not started"}


def test_serve_hands_its_options_to_the_engine(capsys):
    assert cli.main(["serve", "fake", "--dry-run"]) == 0
    assert "labkit.servers.fake" in " ".join(json.loads(capsys.readouterr().out)["argv"])


def test_an_unknown_engine_is_refused_and_the_known_ones_are_named(capsys):
    assert cli.main(["serve", "tgi"]) == 2
    assert "transformers-naive" in capsys.readouterr().err


# quiz.


def finish_lab_00():
    for lab in load_course().labs:
        for exercise in lab.exercises if lab.number == "00" else ():
            append_event("attempt", exercise=exercise.id, version=exercise.version, outcome="passed")


def answer_with(monkeypatch, *lines):
    """A terminal on which these lines are typed; None is Ctrl-C, and Ctrl-D follows the last."""
    typed = iter(lines)

    def read(prompt):
        line = next(typed, EOFError)
        if line is None:
            raise KeyboardInterrupt
        if line is EOFError:
            raise EOFError
        return line

    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", read)


def quiz_events():
    return [(event["exercise"], event["outcome"]) for event in load_events() if event["kind"] == "quiz"]


def all_answers(lab):
    """Everything that would give an answer away."""
    return [
        text
        for question in load_questions(lab)
        for text in (
            question.right,
            question.hint,
            question.model_answer,
            *(sentence for _, sentence in question.wrong),
        )
        if text
    ]


def test_quiz_asks_about_finished_labs_only(monkeypatch, capsys):
    answer_with(monkeypatch)
    assert cli.main(["quiz"]) == 0
    assert "No lab is finished yet" in capsys.readouterr().out
    assert cli.main(["quiz", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_quiz_grades_explains_and_keeps_each_answer(monkeypatch, capsys):
    finish_lab_00()
    answer_with(monkeypatch, "a", "16 GB", "", "about forty", "40")
    assert cli.main(["quiz", "--num", "4"]) == 0
    text = capsys.readouterr().out
    assert quiz_events() == [("00.q1", "failed"), ("00.q2", "passed"), ("00.q4", "passed")]
    assert "✗ wrong: " in text and "a token is not a word" in text
    assert text.count("✓ right: ") == 2
    assert "3 of 4  00.q3" in text and "skipped" in text
    assert "A number in tok/s, please." in text
    assert "2 of 3 answered right, 1 not answered." in text
    assert "Look again at: " in text and "(lab 00)" in text


def test_quiz_begins_with_what_failed_last_time(monkeypatch, capsys):
    finish_lab_00()
    append_event("quiz", exercise="00.q3", outcome="failed")
    answer_with(monkeypatch)
    assert cli.main(["quiz"]) == 0
    assert "1 of 5  00.q3" in capsys.readouterr().out


def test_quiz_shows_no_answer_before_it_is_given(monkeypatch, capsys):
    answer_with(monkeypatch, "z", "")
    assert cli.main(["quiz", "--lab", "00"]) == 0
    text = capsys.readouterr().out
    assert "One letter of a, b, c, d, please." in text
    assert not [answer for answer in all_answers("00") if answer in text]
    assert quiz_events() == []


@pytest.mark.parametrize("end", [(None,), ()], ids=["ctrl-c", "ctrl-d"])
def test_quiz_ends_cleanly_and_keeps_what_was_answered(monkeypatch, capsys, end):
    answer_with(monkeypatch, "b", *end)
    assert cli.main(["quiz", "--lab", "00"]) == 0
    text = capsys.readouterr().out
    assert "ended; what you answered is kept." in text
    assert "1 of 1 answered right, 4 not answered." in text
    assert quiz_events() == [("00.q1", "passed")]


def test_quiz_takes_an_open_answer_of_several_lines(monkeypatch, capsys):
    words = [f"word{'x' * k} is here" for k in range(12)]
    answer_with(monkeypatch, "", "", "", "", *words, "")
    assert cli.main(["quiz", "--lab", "00"]) == 0
    assert quiz_events() == [("00.q5", "passed")]
    assert "✓ answered: compare yours with the model answer" in capsys.readouterr().out


def test_quiz_without_a_terminal_lists_and_asks_nothing(capsys):
    run = python("-m", "labkit", "quiz", "--lab", "00")
    assert run.returncode == 0, run.stderr
    assert [f"00.q{k} (" in run.stdout for k in range(1, 6)] == [True] * 5
    assert not [answer for answer in all_answers("00") if answer in run.stdout]
    assert cli.main(["quiz", "--lab", "00", "--num", "2", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["id"], second["unit"]) == ("00.q1", "GB")
    assert set(first) == {"id", "level", "kind", "topic", "question", "options", "unit"}


def test_quiz_and_load_work_without_stdin_and_stderr(monkeypatch, capsys):
    from labkit.cli.load import _show_progress

    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", None)
        patch.setattr(sys, "stderr", None)
        assert cli.main(["quiz", "--lab", "00"]) == 0
        assert cli.main(["results", "show", "r-0"]) == 2
        _show_progress({"seconds": 1.0, "done": 1, "failed": 0})
    assert "00.q1" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--num", "0"], ["--num", "-1"], ["--num", "x"]])
def test_quiz_refuses_an_invalid_number_of_questions(arguments):
    with pytest.raises(SystemExit):
        cli.main(["quiz", *arguments])


def test_quiz_of_an_unknown_lab_is_an_error(capsys):
    assert cli.main(["quiz", "--lab", "77"]) == 2
    assert "lab 77 has no quiz" in capsys.readouterr().err


@pytest.mark.slow
def test_quiz_on_a_real_terminal_ends_with_ctrl_c(tmp_path):
    import pty

    leader, follower = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "labkit", "quiz", "--lab", "00"], env=environment, stdin=follower, stdout=follower,
        stderr=follower, start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(follower)
    seen = b""

    def read_until(text, *, press=b""):
        """Read what the terminal shows; `press` is typed again for as long as nothing comes."""
        nonlocal seen
        while text not in seen:
            if press and not select.select([leader], [], [], 5.0)[0]:
                os.write(leader, press)
                continue
            try:
                seen += os.read(leader, 4096)
            except OSError:  # the other side is closed
                break
        assert text in seen, seen.decode()

    read_until(b"a, b, c, d>")
    os.write(leader, b"b\n")
    read_until(b"GB>")
    os.write(leader, b"\x03")
    # Python looks at a signal before it waits for a line: one that comes in between is noticed at the next key.
    read_until(b"1 of 1 answered right", press=b"\x03")
    assert process.wait(timeout=60) == 0
    assert b"Traceback" not in seen
    os.close(leader)
    assert quiz_events() == [("00.q1", "passed")]
