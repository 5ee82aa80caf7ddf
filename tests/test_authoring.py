"""The notebook builder: one source, two notebooks, and no learner's work is lost."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from labkit.authoring import build_labs, check_folder, check_labs, check_source, execute_solution, load_source
from labkit.authoring.__main__ import main
from labkit.authoring.build import load_sources, make_course
from labkit.authoring.dependencies import estimate_module_hashes, hash_text
from labkit.authoring.execute import clean_outputs
from labkit.authoring.hosted import BOOTSTRAP_TAG, format_bootstrap
from labkit.authoring.skeleton import make_skeleton
from labkit.authoring.source import dump_notebook, estimate_cells_hash, make_notebook
from labkit.errors import LabkitError
from labkit.results import load_records

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("jupytext")

ROOT = Path(__file__).resolve().parents[1]
HEADER = """# ---
# jupyter:
#   labkit:
#     number: "00"
#     title: Sample
#     question: Does it build?
#     phase: 0
#     minutes: 10
# ---
"""
QUIZ = [
    f"""
# %% solution="00.q{k}"
### BEGIN SOLUTION stub: quiz("00.q{k}")
quiz("00.q{k}", "b")
### END SOLUTION
"""
    for k in range(1, 6)
]
PREDICTION = """
# %% solution="00.p1"
### BEGIN SOLUTION stub: predict("00.p1", None, unit="s")
predict("00.p1", 7, unit="s")
### END SOLUTION
"""
BODY = f'''
# %% [markdown]
# # 00 · Sample

# %%
import math

check = complete = predict = quiz = lambda *given, **named: None

# %% tags=["nbval-check-output"]
print(math.comb(4, 2))

# %% [markdown] exercise="00.1" title="Double it" minutes=5 difficulty=2 version=3
# ### Exercise
# <details><summary>Hint 1</summary>Add.</details>
# <details><summary>Hint 2</summary>Add it to itself.</details>

# %% solution="00.1"
def double(x):
    """Return twice x."""
    ### BEGIN SOLUTION
    secret_sum = x + x
    return secret_sum
    ### END SOLUTION

# %%
check("00.1", double)

# %% [markdown]
# ### Predict before you measure
{PREDICTION}
# %% [markdown]
# ## 1 · Break it: a wrong number

# %% [markdown]
# ## 2 · Summary
#
# ### Five questions
{"".join(QUIZ)}
# %% [markdown]
# ## 3 · Done

# %%
complete("00")
'''


CHECKS = "def check_1(double):\n    pass\n"
MISTAKES = "[00.1]\nThree wrong answers.\n    x + x  =>  x\n    x + x  =>  x * x\n    x + x  =>  3 * x\n"
QUESTIONS = {"questions": [{"id": f"00.q{k}"} for k in range(1, 6)]}


def source_path(root, name="00_sample"):
    return root / "solutions" / "src" / name / "lab.py"


def write_source(root, text, name="00_sample"):
    """Write a lab's folder: its source, and as much of the rest as the rules require."""
    path = source_path(root, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    rest = {"checks.py": CHECKS, "mistakes.txt": MISTAKES, "quiz.json": json.dumps(QUESTIONS)}
    for file, content in rest.items():
        (path.parent / file).write_text(content.replace("00", name[:2]), encoding="utf-8")
    return path


def make_root(folder, *, body=BODY, name="00_sample"):
    write_source(folder, HEADER + body, name)
    return folder


def load_sample(folder, *, body=BODY):
    return load_source(source_path(make_root(folder, body=body)))


def add_second_source(root):
    write_source(root, (HEADER + BODY).replace("00", "01"), "01_sample")


def edit_source(root, old, new):
    path = source_path(root)
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def texts(notebook):
    return [cell.source for cell in notebook.cells]


def read_lab(root, name="00_sample.ipynb"):
    return nbformat.read(root / "labs" / name, as_version=nbformat.NO_CONVERT)


def save_lab(root, notebook, name="00_sample.ipynb"):
    # As JupyterLab saves: other key order, outputs, counts, a fuller language_info.
    (root / "labs" / name).write_text(json.dumps(notebook, indent=2), encoding="utf-8")


def run_lab(root, name="00_sample.ipynb"):
    """What JupyterLab stores when a learner runs cells and edits none."""
    lab = read_lab(root, name)
    lab.cells[1].outputs = [nbformat.v4.new_output("stream", text="6\n")]
    lab.cells[1].execution_count = 3
    lab.metadata.language_info = {"name": "python", "version": "3.11.2"}
    lab.cells[1].metadata["trusted"] = True
    save_lab(root, lab, name)


def put_into_git(root):
    for command in (["init", "-q"], ["add", "."]):
        subprocess.run(["git", *command], cwd=root, check=True, capture_output=True)


# Building


def test_a_region_inside_a_function_becomes_a_raise_at_its_own_indentation(tmp_path):
    lab = make_notebook(load_sample(tmp_path), kind="lab")
    stub = 'def double(x):\n    """Return twice x."""\n    raise NotImplementedError("exercise 00.1: your code here")'
    assert stub in texts(lab)


def test_a_top_level_region_becomes_its_stub_text(tmp_path):
    lab = make_notebook(load_sample(tmp_path), kind="lab")
    assert 'quiz("00.q1")' in texts(lab)
    assert 'predict("00.p1", None, unit="s")' in texts(lab)


def test_the_solution_keeps_answers_and_neither_notebook_shows_markers(tmp_path):
    source = load_sample(tmp_path)
    solution, lab = make_notebook(source, kind="solution"), make_notebook(source, kind="lab")
    assert 'quiz("00.q1", "b")' in texts(solution)
    assert any("secret_sum = x + x" in text for text in texts(solution))
    assert "secret_sum" not in dump_notebook(lab)
    assert '\\"b\\"' not in dump_notebook(lab)
    assert "SOLUTION" not in dump_notebook(lab) + dump_notebook(solution)


def test_two_builds_give_the_same_bytes_and_a_valid_notebook(tmp_path):
    source = load_sample(tmp_path)
    first, second = make_notebook(source, kind="lab"), make_notebook(source, kind="lab")
    assert dump_notebook(first) == dump_notebook(second)
    nbformat.validate(first)


def test_ids_follow_the_content_and_equal_cells_get_a_suffix(tmp_path):
    twice = BODY.replace("# %%\ncheck(", "# %%\nprint(1)\n\n# %%\nprint(1)\n\n# %%\ncheck(")
    before = make_notebook(load_sample(tmp_path / "a"), kind="lab")
    after = make_notebook(load_sample(tmp_path / "b", body=twice), kind="lab")
    new_ids = [cell.id for cell in after.cells if cell.source == "print(1)"]
    assert new_ids[1] == f"{new_ids[0]}-2"
    assert [cell.id for cell in after.cells if cell.source != "print(1)"] == [cell.id for cell in before.cells]


def test_the_import_cell_may_be_longer_than_other_cells(tmp_path):
    body = BODY.replace("import math\n", "import math\n" * 24 + "\n# %%\n")
    assert check_source(load_sample(tmp_path, body=body)) == []


URL = "https://github.com/some/course"


def set_repository(root, url=URL):
    (root / "pyproject.toml").write_text(f'[project]\nname = "x"\n[project.urls]\nRepository = "{url}"\n')


def test_without_a_repository_a_lab_has_neither_link_nor_bootstrap_cell(tmp_path):
    source = load_sample(tmp_path)
    plain = texts(make_notebook(source, kind="lab"))
    assert not [text for text in plain if "colab" in text]
    set_repository(tmp_path, "https://example.org/else")  # Colab opens only GitHub repositories
    assert texts(make_notebook(source, kind="lab")) == plain


def test_the_link_and_the_bootstrap_cell_come_from_the_one_setting(tmp_path):
    source = load_sample(tmp_path)
    plain, solution = make_notebook(source, kind="lab"), texts(make_notebook(source, kind="solution"))
    set_repository(tmp_path, f"{URL}/")
    lab = make_notebook(source, kind="lab")
    nbformat.validate(lab)
    path = f"some/course/blob/main/labs/{source.name}.ipynb"
    assert lab.cells[0].source.endswith(f"[Open in Colab](https://colab.research.google.com/github/{path})")
    assert f'"git", "clone", "--depth", "1", "{URL}"' in lab.cells[1].source
    assert lab.cells[1].metadata["jupyter"]["source_hidden"] and BOOTSTRAP_TAG in lab.cells[1].metadata["tags"]
    assert texts(lab)[2:] == texts(plain)[1:]
    assert dump_notebook(lab) == dump_notebook(make_notebook(source, kind="lab"))
    assert lab.metadata["labkit"]["generated"] == estimate_cells_hash(lab)
    assert texts(make_notebook(source, kind="solution")) == solution, "a solution opens nowhere else"


def run_bootstrap_cell(monkeypatch, *, has_labkit, modules=()):
    """Run the cell in a made-up environment; return the commands that it ran."""
    import importlib.util
    import subprocess

    ran, calls = [], []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if has_labkit else None)
    monkeypatch.setattr(subprocess, "run", lambda command, check: ran.append(command))
    monkeypatch.setattr("labkit.colab.run_bootstrap", lambda: calls.append("bootstrap"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in modules:
        monkeypatch.setitem(sys.modules, name, object())
    exec(format_bootstrap(URL), {})
    return ran + calls


def test_the_bootstrap_cell_does_nothing_where_labkit_is_installed(monkeypatch, capsys):
    assert run_bootstrap_cell(monkeypatch, has_labkit=True, modules=["google.colab"]) == []
    assert capsys.readouterr().out == ""


def test_the_bootstrap_cell_installs_nothing_on_a_learners_own_machine(monkeypatch, capsys):
    assert run_bootstrap_cell(monkeypatch, has_labkit=False) == []
    assert "`make lab`" in capsys.readouterr().out


def test_the_bootstrap_cell_gets_the_course_on_colab_once(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    folder = str(tmp_path / "course")
    clone = ["git", "clone", "--depth", "1", URL, folder]
    assert run_bootstrap_cell(monkeypatch, has_labkit=False, modules=["google.colab"]) == [clone, "bootstrap"]
    (tmp_path / "course").mkdir()
    assert run_bootstrap_cell(monkeypatch, has_labkit=False, modules=["google.colab"]) == ["bootstrap"]


def test_a_lab_has_no_outputs_and_carries_its_own_stamp(tmp_path):
    lab = make_notebook(load_sample(tmp_path), kind="lab")
    assert all(not cell.outputs and cell.execution_count is None for cell in lab.cells if cell.cell_type == "code")
    assert lab.metadata.labkit.number == "00"
    assert len(lab.metadata.labkit.generated) == 64


def test_the_course_table_lists_exercises_predictions_and_quiz_questions(tmp_path):
    (lab,) = make_course([load_sample(tmp_path)])["labs"]
    assert lab["exercises"] == [
        {
            "id": "00.1",
            "title": "Double it",
            "minutes": 5,
            "difficulty": 2,
            "version": 3,
            "is_stretch": False,
            "blocked_on": [],
        }
    ]
    assert (lab["predictions"], lab["quiz"], lab["name"]) == (["00.p1"], [f"00.q{k}" for k in range(1, 6)], "00_sample")


def test_stretch_and_blocked_tiers_reach_the_course_table(tmp_path):
    body = BODY.replace("version=3", 'version=3 stretch=true blocked_on="cpu, t4"')
    (lab,) = make_course([load_sample(tmp_path, body=body)])["labs"]
    assert lab["exercises"][0]["is_stretch"] is True
    assert lab["exercises"][0]["blocked_on"] == ["cpu", "t4"]


# Rules


def test_the_sample_breaks_no_rule(tmp_path):
    assert check_source(load_sample(tmp_path)) == []


ONE_LINE_TOO_MANY = "# %%\n" + "\n".join(f"print({k})" for k in range(16)) + "\n"
BROKEN = {
    "missing end": ("    ### END SOLUTION\n\n# %%\ncheck", "\n# %%\ncheck", r"cell 5.*no '### END SOLUTION'"),
    "end without begin": ("    ### BEGIN SOLUTION\n    secret", "    secret", r"cell 5.*'### END SOLUTION'.*pairs"),
    "marker with a typo": ("    ### BEGIN SOLUTION\n    s", "    #### BEGIN SOLUTION\n    s", r"cell 5.*#### BEGIN"),
    "region without stub": (' stub: quiz("00.q1")', "", r"cell 11.*no stub text.*top level"),
    "stub of another id": ('stub: quiz("00.q1")', 'stub: quiz("00.q2")', r'cell 11.*"00.q1".*do not both'),
    "unknown exercise": ('check("00.1", double)', 'check("00.1", double)\ncheck("00.7", 1)', r'cell 6.*"00.7".*00\.1'),
    "unknown solution": ('solution="00.1"', 'solution="00.9"', r"cell 5.*unknown exercise '00.9'"),
    "exercise without check": ('check("00.1", double)', "pass", r"cell 4.*00\.1 has no check cell"),
    "exercise without stub": (' solution="00.1"', "", r"cell 4.*00\.1 has no stub cell"),
    "exercise of another lab": ('exercise="00.1"', 'exercise="01.1"', r"cell 4.*'01.1' is not an exercise of lab 00"),
    "card without minutes": (" minutes=5", "", r"cell 4.*lacks minutes"),
    "one hint only": ("# <details><summary>Hint 2</summary>Add it to itself.</details>\n", "", r"cell 4.*fewer than 2"),
    "a second importing cell": ("# %%\ncheck(", "# %%\nimport os\n\n# %%\ncheck(", r"cell 6 \(import os\).*setup cell"),
    "an import in a function": (
        "    secret_sum = x",
        "    import os\n    secret_sum = x",
        r"cell 5.*only the setup cell may import",
    ),
    "sixteen lines": ("# %%\ncheck(", ONE_LINE_TOO_MANY + "\n# %%\ncheck(", r"cell 6.*16 lines in the lab"),
    "twenty-five imports": (
        "import math\n",
        "import math\n" * 25 + "\n# %%\n",
        r"cell 2.*25 lines in the lab.*limits are 24",
    ),
    "a pip magic": ("print(math", "# %pip install x\nprint(math", r"cell 3.*magic"),
    "a shell line": ("print(math", "# !ls\nprint(math", r"cell 3.*shell line"),
    "os.chdir": ("print(math.comb(4, 2))", 'math.os.chdir("..")', r"cell 3.*os\.chdir"),
    "sys.path": ("print(math.comb(4, 2))", "print(math.sys.path)", r"cell 3.*sys\.path"),
    "torch.cuda": ("print(math.comb(4, 2))", "print(torch.cuda)", r"cell 3.*labkit\.hardware"),
    "is_available": ("print(math.comb(4, 2))", "print(x.is_available())", r"cell 3.*is_available"),
    "not Python": ("print(math.comb(4, 2))", "print(math.comb(4, 2)", r"cell 3.*not valid Python"),
    "a stub that is not Python": ('stub: quiz("00.q1")', 'stub: quiz("00.q1"', r"cell 11.*learner's version"),
    "no completion": ('# %%\ncomplete("00")', '# %%\nprint("00")', r"complete\(\) is called for no lab"),
    "quiz id of another lab": ('"00.q1"', '"01.q1"', r'cell 11.*quiz\("01\.q1"\) does not belong to lab 00'),
    "quiz twice": ('# %%\ncomplete("00")', '# %%\nquiz("00.q1")\ncomplete("00")', r"cell 17.*00\.q1 occurs 2 times"),
    "card twice": ("# %%\ncheck(", '# %% [markdown] exercise="00.1"\n# x\n\n# %%\ncheck(', r"cell 6.*occurs 2 times"),
    "no title": ("# # 00 · Sample", "# # Sample", r"no heading '# 00 · its title'"),
    "no place to predict": (
        "# ### Predict before you measure",
        "# Guess",
        r"no heading '### Predict before you measure'",
    ),
    "nothing broken": ("# ## 1 · Break it: a wrong number", "# ## 1 · More", r"no heading '## N · Break it'"),
    "no summary": ("# ## 2 · Summary", "# What was seen", r"no heading '## N · Summary'"),
    "no heading of questions": ("# ### Five questions", "# Questions", r"no heading '### Five questions'"),
    "no end": ("# ## 3 · Done", "# That was it", r"no heading '## N · Done'"),
    "no prediction": (PREDICTION, "", r"no prediction.*00\.p1"),
    "four questions": (QUIZ[4], "", r"4 quiz questions \(00\.q1, 00\.q2, 00\.q3, 00\.q4\), expected 5"),
    "difficulty of another scale": ("difficulty=2", "difficulty=77", r"cell 4.*difficulty 77, expected 1 to 5"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_is_a_sentence_with_file_and_cell(tmp_path, name):
    old, new, expected = BROKEN[name]
    assert BODY.count(old) >= 1
    problems = "\n".join(check_source(load_sample(tmp_path, body=BODY.replace(old, new))))
    assert "solutions/src/00_sample/lab.py" in problems
    assert re.search(expected, problems), problems


@pytest.mark.parametrize("phase", ["9", "-1", "abc", '"0"'])
def test_an_unknown_phase_is_refused(tmp_path, phase):
    root = make_root(tmp_path)
    edit_source(root, "phase: 0", f"phase: {phase}")
    (problem,) = check_source(load_source(source_path(root)))
    assert re.search(r"^solutions/src/00_sample/lab\.py: the header says phase .*, expected 0 to 4\. Next: ", problem)


@pytest.mark.parametrize("name", ["99-topic", "7_x"])
def test_a_lab_in_a_misnamed_folder_is_reported_and_not_skipped(tmp_path, name):
    root = make_root(tmp_path)
    (root / "solutions" / "src" / name).mkdir()
    (root / "solutions" / "src" / "notes.py").write_text("")  # a learner's own file is ignored
    assert [source.name for source in load_sources(root)] == ["00_sample"]
    (root / "solutions" / "src" / name / "lab.py").write_text("")
    with pytest.raises(LabkitError, match=rf"^solutions/src/{name}: a lab's folder must be named NN_topic. Next:"):
        load_sources(root)


def test_a_build_of_a_broken_source_writes_nothing(tmp_path):
    root = make_root(tmp_path, body=BODY.replace('check("00.1", double)', "pass"))
    with pytest.raises(LabkitError, match=r"00\.1 has no check cell.*Next: "):
        build_labs(root)
    assert not (root / "labs").exists()


def test_thirty_lines_are_allowed_where_the_learner_writes(tmp_path):
    long_answer = "    secret_sum = x + x\n" * 24
    body = BODY.replace("    secret_sum = x + x\n", long_answer)
    assert check_source(load_sample(tmp_path / "a", body=body)) == []
    longer = check_source(load_sample(tmp_path / "b", body=body.replace(long_answer, long_answer * 2)))
    assert "15 and 30. Next" in longer[0]


def test_hardware_may_be_queried_in_a_blocked_section_and_only_there(tmp_path):
    blocked = BODY.replace("version=3", 'version=3 blocked_on="cpu"')
    inside = blocked.replace("secret_sum = x + x", "secret_sum = torch.cuda.device_count()")
    assert check_source(load_sample(tmp_path / "a", body=inside)) == []
    after = '# %% [markdown]\n# ## Next section\n\n# %%\nprint(torch.cuda)\n\n# %%\ncomplete("00")'
    outside = inside.replace('# %%\ncomplete("00")', after)
    assert "torch.cuda" in "".join(check_source(load_sample(tmp_path / "b", body=outside)))


def test_a_header_that_does_not_fit_its_file_is_refused(tmp_path):
    root = make_root(tmp_path, name="01_sample")
    with pytest.raises(LabkitError, match=r"01_sample.*lab '00'.*'01'"):
        load_source(source_path(root, "01_sample"))


def test_a_header_without_a_question_is_refused(tmp_path):
    root = make_root(tmp_path)
    edit_source(root, "#     question: Does it build?\n", "")
    with pytest.raises(LabkitError, match="lacks question"):
        load_source(source_path(root))


DAMAGED = {
    "an unclosed quote": (
        b"title: Sample",
        b'title: "unclosed',
        r"cannot be read as a jupytext.*unexpected end of stream",
    ),
    "a byte of another encoding": (
        b"title: Sample",
        b"title: Caf\xe9",
        r"line 5 has a byte that is not UTF-8 \(0xe9\)",
    ),
    "text for the block": (b'labkit:\n#     number: "00"', b"labkit: all\n#   other:", r"labkit block is 'all'"),
    "an empty block": (b"labkit:\n", b"labkit:\n#   other:\n", r"labkit block lacks number, title, question"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_an_unreadable_source_is_named_with_the_reason(tmp_path, name):
    old, new, expected = DAMAGED[name]
    root = make_root(tmp_path)
    path = source_path(root)
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new))
    with pytest.raises(LabkitError, match=rf"^solutions/src/00_sample/lab\.py: .*{expected}.*Next: "):
        load_sources(root)


def test_all_unreadable_sources_are_named_together(tmp_path):
    root = make_root(tmp_path)
    add_second_source(root)
    for path in (root / "solutions" / "src").glob("*/lab.py"):
        path.write_text(path.read_text(encoding="utf-8").replace("title: Sample", 'title: "unclosed'), encoding="utf-8")
    with pytest.raises(LabkitError, match=r"(?s)00_sample/lab\.py: cannot be read.*01_sample/lab\.py: cannot be read"):
        load_sources(root)


# Updates and a learner's work


@pytest.fixture
def built(tmp_path):
    root = make_root(tmp_path)
    build_labs(root)
    return root


def test_an_untouched_lab_is_updated_even_when_jupyterlab_saved_it_with_outputs(built):
    run_lab(built)
    edit_source(built, "# # 00 · Sample", "# # 00 · Sample, second edition")
    report = build_labs(built)
    assert read_lab(built).cells[0].source == "# 00 · Sample, second edition"
    assert not list((built / "labs").glob("*.new.ipynb"))
    assert any("updated" in note and "outputs of your run" in note and "run it again" in note for note in report.notes)


def test_an_update_of_a_lab_that_was_never_run_does_not_mention_outputs(built):
    edit_source(built, "# # 00 · Sample", "# # 00 · Sample, second edition")
    assert build_labs(built).notes == ("labs/00_sample.ipynb: updated.",)


def test_the_outputs_of_a_run_stay_while_the_source_is_unchanged(built):
    run_lab(built)
    before = (built / "labs" / "00_sample.ipynb").read_bytes()
    report = build_labs(built)
    assert (built / "labs" / "00_sample.ipynb").read_bytes() == before
    assert report.problems == ()
    assert report.notes == (
        "labs/00_sample.ipynb: has the outputs of your run and is up to date; it was left as it is.",
    )


def test_a_lab_that_was_saved_but_never_run_is_rebuilt(built):
    before = (built / "labs" / "00_sample.ipynb").read_bytes()
    save_lab(built, read_lab(built))
    build_labs(built)
    assert (built / "labs" / "00_sample.ipynb").read_bytes() == before


def test_a_change_of_the_header_alone_reaches_a_lab_that_was_run(built):
    run_lab(built)
    edit_source(built, "minutes: 10", "minutes: 20")
    build_labs(built)
    assert read_lab(built).metadata.labkit.minutes == 20


def test_an_edited_lab_is_kept_and_the_new_one_is_written_beside_it(built):
    lab = read_lab(built)
    lab.cells[4].source = "def double(x):\n    return 2 * x"
    save_lab(built, lab)
    before = (built / "labs" / "00_sample.ipynb").read_bytes()
    edit_source(built, "# # 00 · Sample", "# # 00 · Sample, second edition")
    report = build_labs(built)
    assert (built / "labs" / "00_sample.ipynb").read_bytes() == before
    assert read_lab(built, "00_sample.new.ipynb").cells[0].source == "# 00 · Sample, second edition"
    assert any("you edited it" in note and "00_sample.new.ipynb" in note for note in report.notes)


def test_an_edited_lab_with_an_unchanged_source_gets_no_second_file(built):
    lab = read_lab(built)
    lab.cells[4].source = "def double(x):\n    return 2 * x"
    save_lab(built, lab)
    report = build_labs(built)
    assert not list((built / "labs").glob("*.new.ipynb"))
    assert any("has your work" in note for note in report.notes)


def test_a_new_version_that_was_edited_too_is_not_overwritten(built):
    lab = read_lab(built)
    lab.cells[4].source = "mine"
    save_lab(built, lab)
    save_lab(built, lab, "00_sample.new.ipynb")
    edit_source(built, "# # 00 · Sample", "# # 00 · Sample, second edition")
    report = build_labs(built)
    assert read_lab(built, "00_sample.new.ipynb").cells[4].source == "mine"
    assert any("merge" in note for note in report.notes)


def test_the_outputs_of_a_new_version_stay_too(built):
    lab = read_lab(built)
    lab.cells[4].source = "mine"
    save_lab(built, lab)
    edit_source(built, "# # 00 · Sample", "# # 00 · Sample, second edition")
    build_labs(built)
    run_lab(built, "00_sample.new.ipynb")
    before = (built / "labs" / "00_sample.new.ipynb").read_bytes()
    build_labs(built)
    assert (built / "labs" / "00_sample.new.ipynb").read_bytes() == before


def test_a_notebook_without_the_builders_stamp_counts_as_edited(built):
    lab = read_lab(built)
    del lab.metadata["labkit"]
    save_lab(built, lab)
    build_labs(built)
    assert "labkit" not in read_lab(built).metadata


UNREADABLE = {
    "an empty file": (b"", "does not appear to be JSON"),
    "a merge conflict": (b'{\n<<<<<<< HEAD\n "cells": []\n}\n', "does not appear to be JSON"),
    "an old format": (b'{"nbformat": 3, "nbformat_minor": 0, "metadata": {}, "worksheets": []}', "format 4, got 3"),
    "no format": (b"{}", "expected notebook format 4, got none"),
    "no notebook at all": (b"[1]", "list"),
    "no cells": (b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {}}', "cells"),
    "a stamp of another shape": (
        b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {"labkit": null}, "cells": []}',
        "NoneType",
    ),
    "another encoding": (b"\xff\xfe{}", "utf-8"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", UNREADABLE)
def test_an_unreadable_lab_is_named_and_left_alone_while_the_others_are_built_and_checked(built, name):
    content, reason = UNREADABLE[name]
    store_solution(built)
    (built / "labs" / "00_sample.ipynb").write_bytes(content)
    add_second_source(built)
    report = build_labs(built)
    assert (built / "labs" / "00_sample.ipynb").read_bytes() == content
    assert report.notes == ("labs/01_sample.ipynb: written.",)
    (built_problem,), (checked, *rest) = report.problems, check_labs(built).problems
    assert built_problem == checked
    assert re.search(rf"^labs/00_sample\.ipynb cannot be read as a notebook \(.*{reason}.*\)\. Next: ", checked), (
        checked
    )
    assert checked.endswith("Next: `git checkout labs/00_sample.ipynb`, or delete it and build again.")
    assert rest == ["solutions/01_sample.ipynb: is missing. Next: make execute LAB=01"], "only that was not stored here"


def test_an_unreadable_lab_is_a_problem_even_if_the_committed_one_is_right(built):
    store_solution(built)
    put_into_git(built)
    (built / "labs" / "00_sample.ipynb").write_text("")
    assert ["cannot be read" in problem for problem in check_labs(built).problems] == [True]


def test_an_unreadable_new_version_is_named(built):
    lab = read_lab(built)
    lab.cells[4].source = "mine"
    save_lab(built, lab)
    edit_source(built, "# # 00 · Sample", "# # 00 · Sample, second edition")
    (built / "labs" / "00_sample.new.ipynb").write_text("")
    (problem,) = build_labs(built).problems
    assert problem.startswith("labs/00_sample.new.ipynb cannot be read as a notebook")


@pytest.mark.parametrize("content", [content for content, _ in UNREADABLE.values()], ids=UNREADABLE)
def test_an_unreadable_solution_is_named(built, content):
    (built / "solutions" / "00_sample.ipynb").write_bytes(content)
    (problem,) = check_labs(built).problems
    assert problem.startswith("solutions/00_sample.ipynb cannot be read as a notebook (")
    assert problem.endswith("Next: `git checkout solutions/00_sample.ipynb`, or delete it and make execute LAB=00.")


def test_an_unreadable_course_table_counts_as_out_of_date(built):
    store_solution(built)
    (built / "labs" / "course.json").write_bytes(b"\xff")
    (problem,) = check_labs(built).problems
    assert problem.startswith("labs/course.json: does not match the sources")
    build_labs(built)
    assert check_labs(built).problems == ()


# Checking


def store_solution(root):
    """Store a solution as execute_solution does, without running a kernel."""
    from labkit.authoring import execute

    source = load_source(source_path(root))
    notebook = make_notebook(source, kind="solution")
    notebook.metadata["labkit"]["executed"] = execute._stamp(root, source)
    (root / "solutions" / "00_sample.ipynb").write_text(dump_notebook(notebook), encoding="utf-8")


def test_a_fresh_build_has_no_problems(built):
    store_solution(built)
    report = check_labs(built)
    assert (report.problems, report.notes) == ((), ())


def test_a_lab_that_differs_from_its_source_is_named(built):
    store_solution(built)
    lab = read_lab(built)
    lab.cells[0].source = "# Something else"
    save_lab(built, lab)
    assert any(p.startswith("labs/00_sample.ipynb: was edited") for p in check_labs(built).problems)


def test_a_changed_source_makes_lab_and_solution_stale(built):
    store_solution(built)
    edit_source(built, "# # 00 · Sample", "# # 00 · Sample, second edition")
    problems = check_labs(built).problems
    assert any("labs/00_sample.ipynb: does not match its source" in problem for problem in problems)
    assert any("solutions/00_sample.ipynb: its source has changed since it was executed" in p for p in problems)


def test_a_solution_that_was_edited_by_hand_is_named(built):
    store_solution(built)
    path = built / "solutions" / "00_sample.ipynb"
    path.write_text(path.read_text(encoding="utf-8").replace("x + x", "x * 2"), encoding="utf-8")
    assert any("its cells differ from its source" in problem for problem in check_labs(built).problems)


def test_missing_and_extra_notebooks_and_an_old_course_table_are_named(built):
    save_lab(built, read_lab(built), "07_stranger.ipynb")
    (built / "labs" / "course.json").write_text("{}\n", encoding="utf-8")
    (built / "labs" / "00_sample.ipynb").unlink()
    problems = "\n".join(check_labs(built).problems)
    assert "labs/00_sample.ipynb: is missing" in problems
    assert "solutions/00_sample.ipynb: is missing" in problems
    assert "labs/07_stranger.ipynb: has no source" in problems
    assert "labs/course.json: does not match the sources" in problems


def edit_lab(root):
    lab = read_lab(root)
    lab.cells[4].source = "mine"
    save_lab(root, lab)


@pytest.mark.parametrize("work", [edit_lab, run_lab])
def test_work_in_a_checkout_is_a_note_if_the_committed_lab_is_right(built, work):
    store_solution(built)
    put_into_git(built)
    work(built)
    report = check_labs(built)
    assert report.problems == ()
    assert "was run or edited here" in report.notes[0]


def test_a_committed_lab_with_outputs_is_refused_and_its_next_step_helps(built):
    store_solution(built)
    run_lab(built)
    put_into_git(built)
    (problem,) = check_labs(built).problems
    assert re.search(r"^labs/00_sample\.ipynb: has outputs.*Next: delete it, then python -m labkit", problem)
    (built / "labs" / "00_sample.ipynb").unlink()
    build_labs(built)
    put_into_git(built)
    assert check_labs(built).problems == ()


def test_another_list_of_labs_and_a_stamp_without_one_are_notes_not_problems(built):
    store_solution(built)
    assert check_labs(built).notes == ()
    path = built / "solutions" / "00_sample.ipynb"
    stamped = path.read_text(encoding="utf-8")
    add_second_source(built)
    build_labs(built)
    expected = "solutions/00_sample.ipynb: executed with another list of labs; its progress table may be stale."
    report = check_labs(built)
    assert report.notes == (expected,)
    assert report.problems == ("solutions/01_sample.ipynb: is missing. Next: make execute LAB=01",)
    shutil.rmtree(source_path(built, "01_sample").parent)
    assert check_labs(built).notes == ()
    path.write_text(re.sub(r'\n *"labs": "[0-9a-f]+",', "", stamped), encoding="utf-8")
    assert path.read_text(encoding="utf-8") != stamped
    assert check_labs(built).notes == (expected,)


def test_a_renamed_lab_changes_the_list_of_labs(built):
    add_second_source(built)
    store_solution(built)
    build_labs(built)
    assert check_labs(built).notes == ()
    source_path(built, "01_sample").parent.rename(built / "solutions" / "src" / "01_renamed")
    assert "list of labs" in "".join(check_labs(built).notes)


def test_changed_modules_and_a_changed_lock_are_notes_not_problems(tmp_path):
    root = make_root(tmp_path, body=BODY.replace("import math\n", "import math\nfrom labkit import units\n"))
    (root / "labkit").mkdir()
    (root / "labkit" / "__init__.py").write_text("")
    (root / "labkit" / "units.py").write_text("A = 1\n")
    (root / "requirements").mkdir()
    for name in ("cpu.lock", "gpu.lock"):
        (root / "requirements" / name).write_text("numpy==2.2.6\n")
    build_labs(root)
    store_solution(root)
    assert check_labs(root).notes == ()
    (root / "labkit" / "units.py").write_text("A = 2\n")
    for name in ("cpu.lock", "gpu.lock"):
        (root / "requirements" / name).write_text("numpy==2.3.0\n")
    report = check_labs(root)
    assert report.problems == ()
    assert "executed with older modules: labkit/units.py" in report.notes[0]
    assert "executed with an older requirements/" in report.notes[1]


def test_modules_are_followed_all_the_way_down_and_the_labs_folder_is_added(tmp_path):
    modules = {
        "__init__.py": "",
        "units.py": "",
        "stats.py": "def f():\n    from labkit.units import x\n",
        "results.py": "import labkit.stats\n",
        "alone.py": "",
        "roofline.py": "",
    }
    for name, text in modules.items():
        (tmp_path / "labkit" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "labkit" / name).write_text(text)
    folder = tmp_path / "solutions" / "src" / "00_sample"
    folder.mkdir(parents=True)
    (folder / "checks.py").write_text("from labkit import roofline\n")
    (folder / "lab.py").write_text("from labkit import alone\n")
    found = estimate_module_hashes(tmp_path, text="from labkit import results\n", folder=folder)
    reached = [f"labkit/{name}.py" for name in ("__init__", "results", "roofline", "stats", "units")]
    assert list(found) == [*reached, "solutions/src/00_sample/checks.py"]
    assert found["labkit/stats.py"] == hash_text(modules["stats.py"])


# What a lab's folder lacks, and the skeleton of a new one


def lacking(root):
    return "\n".join(check_folder(load_source(source_path(root))))


def test_a_complete_folder_lacks_nothing(tmp_path):
    assert lacking(make_root(tmp_path)) == ""


@pytest.mark.parametrize(("file", "text", "sentence"), [
    ("checks.py", "def check_2(x):\n    pass\n", "checks.py: exercise 00.1 has no check. Next: write check_1()."),
    ("checks.py", "def check_1(:", "checks.py: not valid Python"),
    ("mistakes.txt", MISTAKES.rpartition("    ")[0], "mistakes.txt: 2 wrong answers for exercise 00.1, expected 3"),
    ("mistakes.txt", MISTAKES.replace("    x + x  =>  3", "    & x + x  =>  3"), "2 wrong answers for exercise 00.1"),
    ("mistakes.txt", MISTAKES.replace("Three", "= three"), "mistakes.txt: 0 wrong answers for exercise 00.1"),
    ("mistakes.txt", MISTAKES + "[00.7]\n", "[00.7] is not an exercise of this lab"),
    ("quiz.json", '{"questions": []}', "the lab asks question 00.q1, which is missing here"),
    ("quiz.json", json.dumps({"questions": QUESTIONS["questions"] + [{"id": "00.q6"}]}), "00.q6 is never asked"),
    ("quiz.json", "{", "quiz.json: cannot be read"),
    ("mistakes.txt", "", "mistakes.txt: is missing or empty"),
    ("checks.py", CHECKS + "\n\n# TODO\n", "checks.py: TODO in line 5 (1 in all)"),
])  # fmt: skip
def test_a_missing_part_of_a_folder_is_named(tmp_path, file, text, sentence):
    root = make_root(tmp_path)
    (source_path(root).parent / file).write_text(text)
    assert sentence in lacking(root)


def test_a_new_lab_builds_and_its_guards_say_what_is_missing(tmp_path, monkeypatch, capsys):
    root = make_root(tmp_path)
    (root / "labkit").mkdir()
    (root / "labs").mkdir()
    monkeypatch.setenv("LABKIT_COURSE", str(root))
    assert main(["new", "99", "new_topic"]) == 0
    assert "solutions/src/99_new_topic" in capsys.readouterr().out
    folder = root / "solutions" / "src" / "99_new_topic"
    assert sorted(path.name for path in folder.iterdir()) == ["checks.py", "lab.py", "mistakes.txt", "quiz.json"]
    assert [source.name for source in load_sources(root)] == ["00_sample", "99_new_topic"]
    problems = "\n".join(check_labs(root).problems)
    assert "99_new_topic/mistakes.txt: 0 wrong answers for exercise 99.1, expected 3 or more" in problems
    assert "99_new_topic/lab.py: " in problems and ": TODO in line" in problems
    assert "solutions/99_new_topic.ipynb: is missing. Next: make execute LAB=99" in problems
    assert main(["new", "99", "other"]) == 1
    assert "lab 99 exists: solutions/src/99_new_topic" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "topic"), [("9", "x"), ("99", "Flash Attention"), ("99", "a__b"), ("99", "../x")])
def test_an_invalid_lab_name_makes_no_folder(tmp_path, number, topic):
    root = make_root(tmp_path)
    with pytest.raises(LabkitError, match="do not make a valid lab name"):
        make_skeleton(root, number, topic)
    assert [path.name for path in (root / "solutions" / "src").iterdir()] == ["00_sample"]


@pytest.mark.slow
def test_the_lab_of_a_skeleton_runs_untouched_and_its_reference_passes(tmp_path, run_notebook, monkeypatch):
    from labkit.checks.judge import judge
    from labkit.checks.reference import load_reference, make_names

    (tmp_path / "labkit").mkdir()
    (tmp_path / "labs").mkdir()
    source = load_source(make_skeleton(tmp_path, "99", "new_topic") / "lab.py")
    build_labs(tmp_path)
    ran = run_notebook(make_notebook(source, kind="lab"), LABKIT_COURSE=str(tmp_path))
    shown = "\n".join(str(cell.get("outputs", "")) for cell in ran.cells)
    assert shown.count("not attempted") >= 1 and "waits for exercise 99.1" in shown
    monkeypatch.setenv("LABKIT_COURSE", str(tmp_path))
    reference = load_reference("99.1")
    assert judge("99.1", make_names(reference)["double"]).status == "passed"
    assert judge("99.1", lambda x: x).status == "failed"


# Outputs


def notebook_with(*outputs):
    cell = nbformat.v4.new_code_cell("x", outputs=list(outputs), metadata={"execution": {"iopub.status.idle": "now"}})
    info = {"name": "python", "version": "3.11.2"}
    return nbformat.v4.new_notebook(cells=[cell], metadata={"widgets": {}, "language_info": info})


def clean(*outputs, hidden=None):
    notebook = notebook_with(*outputs)
    clean_outputs(notebook, hidden=hidden or {})
    return notebook


def test_local_paths_become_words_in_text_html_and_figures():
    text = nbformat.v4.new_output("stream", text="saved /home/me/course/data/runs/a.json\nin /home/me/course\n")
    html = nbformat.v4.new_output("display_data", {"text/html": "<b>/home/me/x</b>"})
    figure = nbformat.v4.new_output(
        "display_data", {"application/vnd.plotly.v1+json": {"data": [{"text": ["/home/me/course/y"]}]}}
    )
    hidden = {"/home/me/course": ".", "/home/me": "~"}
    first, second, third = clean(text, html, figure, hidden=hidden).cells[0].outputs
    assert first.text == "saved data/runs/a.json\nin .\n"
    assert second.data["text/html"] == "<b>~/x</b>"
    assert third.data["application/vnd.plotly.v1+json"]["data"][0]["text"] == ["y"]


def test_a_path_with_the_same_prefix_is_left_alone():
    output = nbformat.v4.new_output("stream", text="/home/mexico and a/home/me\n")
    assert clean(output, hidden={"/home/me": "~"}).cells[0].outputs[0].text == "/home/mexico and a/home/me\n"


def test_timing_metadata_python_version_and_widget_state_are_dropped():
    notebook = clean(nbformat.v4.new_output("stream", text="a\n"))
    assert notebook.metadata == {"language_info": {"name": "python"}}
    assert "execution" not in notebook.cells[0].metadata


def test_a_line_that_was_overwritten_keeps_its_last_state():
    output = nbformat.v4.new_output("stream", text="10 %\r50 %\r100 %\ndone\r\n")
    assert clean(output).cells[0].outputs[0].text == "100 %\ndone\n"


def test_pieces_of_one_stream_are_joined_and_the_order_of_kinds_is_kept():
    pieces = [("stdout", "a"), ("stdout", "b\n"), ("stderr", "w\n"), ("stdout", "c\n")]
    outputs = clean(*(nbformat.v4.new_output("stream", name=n, text=t) for n, t in pieces)).cells[0].outputs
    assert [(one.name, one.text) for one in outputs] == [("stdout", "ab\n"), ("stderr", "w\n"), ("stdout", "c\n")]


def test_a_picture_stays_beside_its_figure_and_scripts_and_widgets_go():
    figure = {"application/vnd.plotly.v1+json": {"data": []}, "image/png": "iVBORw0KGgo="}
    live = {"application/vnd.jupyter.widget-view+json": {"model_id": "a"}, "text/html": "<script>x</script>"}
    outputs = (
        clean(nbformat.v4.new_output("display_data", figure), nbformat.v4.new_output("display_data", live))
        .cells[0]
        .outputs
    )
    assert [dict(output.data) for output in outputs] == [figure]


def test_the_id_of_a_live_view_is_removed_and_its_table_kept():
    html = '<div data-labkit-live="0123456789abcdef"><table></table></div>'
    (output,) = clean(nbformat.v4.new_output("display_data", {"text/html": html})).cells[0].outputs
    assert output.data["text/html"] == "<div><table></table></div>"


# Executing (a real kernel)


def have_kernel(monkeypatch):
    pytest.importorskip("ipykernel")
    pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.mark.slow
def test_an_executed_solution_is_stored_with_outputs_and_stamp_and_is_not_stale(built, monkeypatch):
    have_kernel(monkeypatch)
    body = 'print(math.comb(4, 2))\nprint(__import__("os").getcwd())'
    edit_source(built, "print(math.comb(4, 2))", body)
    build_labs(built)
    path = execute_solution(built, "00")
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    assert notebook.cells[2].outputs[0].text == "6\nsolutions\n"
    assert notebook.metadata.labkit.executed.budget == "learner"
    assert str(built) not in path.read_text(encoding="utf-8")
    assert check_labs(built).problems == ()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("raise ValueError('seven')", "ValueError: seven"),
        ("os._exit(3)", "[Kk]ernel died"),
        ("print('x' * 600_000)", 'KB, the limit is 500 KB.*begins with "print'),
    ],
)
def test_a_run_that_cannot_be_shown_is_not_stored(built, monkeypatch, line, sentence):
    have_kernel(monkeypatch)
    edit_source(built, "import math\n", "import math\nimport os\n")
    edit_source(built, "print(math.comb(4, 2))", line)
    with pytest.raises(LabkitError, match=sentence):
        execute_solution(built, "00")
    assert not (built / "solutions" / "00_sample.ipynb").exists()


def test_executing_an_unknown_lab_names_the_known_ones(built):
    with pytest.raises(LabkitError, match=r"no source of lab '42'.*00"):
        execute_solution(built, "42")


# The command line


def test_the_command_exits_with_1_and_names_what_is_stale(built, monkeypatch, capsys):
    (built / "labkit").mkdir()
    monkeypatch.setenv("LABKIT_COURSE", str(built))
    store_solution(built)
    assert main(["--check"]) == 0
    edit_source(built, "# # 00 · Sample", "# # 00 · Sample, second edition")
    assert main(["--check"]) == 1
    assert "solutions/00_sample.ipynb: its source has changed" in capsys.readouterr().err
    assert main([]) == 0
    (built / "labs" / "00_sample.ipynb").write_text("")
    assert main([]) == 1
    assert "labs/00_sample.ipynb cannot be read as a notebook" in capsys.readouterr().err
    assert main(["execute", "42"]) == 1
    assert "There is no source of lab '42'" in capsys.readouterr().err


# nbval, as `make test` calls it, on notebooks with planted faults


PLANTED = {
    "10_raises": (["x = 1", "raise ValueError('planted')", "x"], {}, "planted"),
    "11_kernel_dies": (["import os", "os._exit(0)", "print(1)"], {}, "kernel died while this cell ran"),
    "12_kernel_dies_last": (["import os", "os._exit(0)"], {}, "kernel died while this cell ran"),
    "13_kernel_is_killed": (
        ["import os, threading, time", "threading.Timer(0.3, os._exit, [0]).start()", "time.sleep(2)"],
        {},
        "kernel died",
    ),
    "14_check_without_stored_output": (["# NBVAL_CHECK_OUTPUT\nprint(1)"], {}, "without stored output"),
    "15_output_differs": (["# NBVAL_CHECK_OUTPUT\nprint(1)"], {0: "2\n"}, "outputs differ"),
    "16_over_its_time": (["import time", "time.sleep(60)", "print(1)"], {}, "Timeout"),
}
GOOD = [
    "import os",
    "# NBVAL_CHECK_OUTPUT\nprint(1 + 1)",
    "assert os.environ['LABKIT_STRICT'] == '1' and os.environ['LABKIT_BUDGET'] == 'ci'",
    "from labkit.results import save_record\nsave_record('98', 'kept', samples={'step_s': [1.0]})",
]


def write_planted(path, cells, stored):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in cells])
    for index, text in stored.items():
        notebook.cells[index].outputs = [nbformat.v4.new_output("stream", text=text)]
        notebook.cells[index].execution_count = 1
    nbformat.write(notebook, path)


@pytest.fixture(scope="module")
def nbval_run(tmp_path_factory):
    """One run of nbval over all planted notebooks: (exit status, text, {notebook: [(outcome, message), ...]})."""
    pytest.importorskip("nbval")
    folder = tmp_path_factory.mktemp("planted")
    write_planted(folder / "19_good.ipynb", GOOD, {1: "2\n"})
    for name, (cells, stored, _) in PLANTED.items():
        write_planted(folder / f"{name}.ipynb", cells, stored)
    shutil.copy(ROOT / "solutions" / "conftest.py", folder / "conftest.py")
    options = ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout", "8", "-p", "no:cacheprovider"]
    options += ["--rootdir", str(folder), "-c", "/dev/null", "--junitxml", str(folder / "report.xml")]
    command = [sys.executable, "-m", "pytest", *options, "--keep-runs", "kept", str(folder)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=500, check=False)
    outcomes = {}
    for case in ElementTree.parse(folder / "report.xml").iter("testcase"):
        found = [(child.tag, child.get("message", "") + (child.text or "")) for child in case]
        outcomes.setdefault(case.get("classname"), []).extend(found or [("passed", "")])
    return done.returncode, done.stdout, outcomes, load_records(folder / "kept")


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANTED)
def test_nbval_fails_for(nbval_run, name):
    status, _, outcomes, _ = nbval_run
    (found,) = [cells for notebook, cells in outcomes.items() if name in notebook]
    assert status == 1
    assert any(outcome == "failure" and PLANTED[name][2] in message for outcome, message in found), found
    assert all(outcome in ("failure", "passed") for outcome, _ in found), "no cell is skipped or expected to fail"


@pytest.mark.slow
def test_nbval_passes_a_good_notebook_strictly_under_budget_ci(nbval_run):
    (found,) = [cells for notebook, cells in nbval_run[2].items() if "19_good" in notebook]
    assert found == [("passed", "")] * len(GOOD)


@pytest.mark.slow
def test_nbval_prints_the_seconds_per_lab(nbval_run):
    assert "seconds per lab" in nbval_run[1]
    assert re.search(r"\d\.\d s  19_good\.ipynb\n", nbval_run[1])


@pytest.mark.slow
def test_the_records_of_the_solutions_go_where_they_are_told_to(nbval_run):
    assert [record.name for record in nbval_run[3]] == ["kept"]
