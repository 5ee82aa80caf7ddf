"""The notebooks as shipped: labs match their source, contain no answers and run untouched; solutions have outputs."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("jupytext")
nbformat = pytest.importorskip("nbformat")

from labkit.authoring import check_labs  # noqa: E402
from labkit.authoring.build import load_sources  # noqa: E402
from labkit.authoring.hosted import BOOTSTRAP_TAG  # noqa: E402
from labkit.authoring.rules import find_blocked_cells  # noqa: E402
from labkit.authoring.source import Cell, find_calls, make_notebook  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
SOURCES = load_sources(ROOT)
NAMES = [source.name for source in SOURCES]
MAX_SOLUTION_BYTES = 500_000
# Shorter lines (`else:`, `return None`) are not answers. Only a longer line is also searched for within other lines:
# `synchronize()` is an answer on a line of its own, but ordinary code in `device.synchronize()`.
MIN_ANSWER_CHARACTERS = 12
MIN_PART_CHARACTERS = 20

every_source = pytest.mark.parametrize("source", SOURCES, ids=NAMES)


def read(folder, source):
    return nbformat.read(ROOT / folder / f"{source.name}.ipynb", as_version=nbformat.NO_CONVERT)


def code_cells(notebook):
    """Return the code cells that come from the source, without the generated bootstrap cell."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [cell for cell in cells if BOOTSTRAP_TAG not in cell.metadata.get("tags", [])]


def text_of(outputs):
    """Return what a reader of the plain text sees."""
    parts = [output.text if output.output_type == "stream" else output.get("data", {}) for output in outputs]
    return "\n".join(part if isinstance(part, str) else str(part.get("text/plain", "")) for part in parts)


def has_output_check(cell):
    tags = [tag.lower() for tag in cell.metadata.get("tags", [])]
    return "nbval-check-output" in tags or re.search(r"^\s*#\s*NBVAL_CHECK_OUTPUT\s*$", cell.source, re.MULTILINE)


# Sources and what is built from them


def test_there_is_at_least_one_lab():
    assert NAMES


def test_labs_solutions_and_course_table_are_up_to_date():
    assert check_labs(ROOT).problems == ()


def find_leaks(source):
    """Return answer lines that are readable in the lab: on a line of their own or, if long enough, in other text."""
    notebook = make_notebook(source, kind="lab")
    # A hint may quote part of the answer: that is its purpose, and it is folded.
    open_text = "\n".join(
        cell.source if cell.cell_type == "code" else re.sub(r"<details>.*?</details>", "", cell.source, flags=re.DOTALL)
        for cell in notebook.cells
    )
    lines, whole = {join_words(line) for line in open_text.splitlines()}, join_words(open_text)
    answers = {join_words(line) for cell in source.cells if cell.kind == "code" for line in cell.answer_lines()}
    as_line = {line for line in answers & lines if len(line) >= MIN_ANSWER_CHARACTERS}
    within = {line for line in answers if len(line) >= MIN_PART_CHARACTERS and line in whole}
    return sorted(as_line | within)


def join_words(text):
    """Return a text with single spaces, because a paragraph may break anywhere, and without `# fmt: skip`."""
    return " ".join(text.replace("# fmt: skip", "").split())


@every_source
def test_no_answer_line_is_in_a_lab(source):
    assert find_leaks(source) == []


LEAK = "return num_parameters * bits // 8"
LEAKING = {
    "a line of its own": ("markdown", LEAK),
    "within a sentence": ("markdown", f"Write `{LEAK}` and go on."),
    "over two lines": ("markdown", "Then return num_parameters\n* bits // 8 is all."),
    "a comment": ("code", f"x = 1  # {LEAK}"),
    "a short line of its own": ("code", "    return fitting"),
}


@pytest.mark.parametrize("name", LEAKING)
def test_the_guard_finds_an_answer_line_that_is(name):
    kind, text = LEAKING[name]
    answer = Cell(
        kind="code",
        text=f"def f():\n    ### BEGIN SOLUTION\n    {LEAK}\n    return fitting\n    ### END SOLUTION",
        metadata={"solution": "00.1"},
        place="here",
    )
    source = replace(SOURCES[0], cells=(answer,))
    folded = Cell(kind="markdown", text=f"<details>{text}</details>", metadata={}, place="here")
    assert find_leaks(replace(source, cells=(answer, folded))) == [], "a hint may quote it"
    leaking = Cell(kind=kind, text=text, metadata={}, place="here")
    assert find_leaks(replace(source, cells=(answer, leaking))) == ["return fitting" if "fitting" in text else LEAK]


def test_a_short_answer_line_may_be_part_of_a_longer_one():
    answer = Cell(
        kind="code", text="### BEGIN SOLUTION stub: x = 1\nsynchronize()\n### END SOLUTION", metadata={}, place=""
    )
    given = Cell(kind="code", text="device.synchronize()", metadata={}, place="")
    assert find_leaks(replace(SOURCES[0], cells=(answer, given))) == []


@every_source
def test_no_marker_is_left_in_either_notebook(source):
    for kind in ("lab", "solution"):
        assert not any("SOLUTION" in cell.source for cell in make_notebook(source, kind=kind).cells)


@every_source
def test_hardware_is_queried_in_one_place(source):
    blocked = find_blocked_cells(source)
    asking = [
        cell.place
        for cell in source.cells
        if cell.kind == "code" and re.search(r"torch\.cuda|is_available", cell.text) and cell.place not in blocked
    ]
    assert asking == []


# Stored solutions


@every_source
def test_a_solution_is_small_enough_to_commit(source):
    assert (ROOT / "solutions" / f"{source.name}.ipynb").stat().st_size <= MAX_SOLUTION_BYTES


@every_source
def test_two_deterministic_cells_of_a_solution_are_compared_with_their_stored_output(source):
    checked = [cell for cell in code_cells(read("solutions", source)) if has_output_check(cell)]
    assert len(checked) >= 2
    assert all(cell.outputs and cell.execution_count for cell in checked)


@every_source
def test_every_cell_of_a_solution_was_run_and_none_failed_or_is_left_out_of_the_test_run(source):
    cells = code_cells(read("solutions", source))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)
    assert not any("NBVAL_SKIP" in cell.source for cell in cells)
    assert not any(tag.lower() == "nbval-skip" for cell in cells for tag in cell.metadata.get("tags", []))


@every_source
def test_every_figure_of_a_solution_has_a_picture_beside_it(source):
    bundles = [
        output.data
        for cell in code_cells(read("solutions", source))
        for output in cell.outputs
        if "application/vnd.plotly.v1+json" in output.get("data", {})
    ]
    assert bundles, "a lab has at least one figure"
    assert all("image/png" in bundle for bundle in bundles)


@every_source
def test_every_exercise_of_a_solution_shows_a_pass(source):
    shown = {}
    for cell, stored in zip(make_cells(source), code_cells(read("solutions", source)), strict=True):
        for exercise in find_calls(cell, "check"):
            shown[exercise] = text_of(stored.outputs)
    assert shown
    assert all("passed" in text or "blocked" in text for text in shown.values()), shown


def make_cells(source):
    return [cell for cell in source.cells if cell.kind == "code"]


# The untouched lab, in a real kernel

PROBE = """
import json, sys, psutil
children = [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]
print(json.dumps({"loaded": [name for name in ("vllm", "transformers") if name in sys.modules], "children": children}))
"""


@pytest.mark.slow
@every_source
def test_an_untouched_lab_runs_starts_no_engine_and_says_not_attempted_once_per_exercise(source, run_notebook):
    import json

    lab = make_notebook(source, kind="lab")
    lab.cells.append(nbformat.v4.new_code_cell(PROBE))
    ran = run_notebook(lab, timeout_s=60)  # a cell that raises or a kernel that dies raises here
    probe = json.loads(text_of(ran.cells[-1].outputs))
    assert probe["loaded"] == [], "an untouched lab loads no model"
    assert probe["children"] == [], "an untouched lab starts no process"
    counts = {}
    for cell, stored in zip(make_cells(source), code_cells(ran), strict=False):
        for exercise in find_calls(cell, "check"):
            counts[exercise] = text_of(stored.outputs).count("not attempted")
    assert counts == {card.metadata["exercise"]: 1 for card in source.exercise_cards()}
