"""Builds the labs and course.json and compares them with their sources. An edited lab is never overwritten.

A lab that was run but not edited keeps its outputs until its source changes; after that, the outputs would belong to
other cells. The check is about what is committed: if the lab in git matches its source, local changes are only a note.
"""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

from labkit.authoring.execute import Report, check_solution
from labkit.authoring.rules import PHASES, check_folder, check_source
from labkit.authoring.source import Source, dump_notebook, find_calls, load_source, make_notebook
from labkit.authoring.stored import has_run, is_edited, is_only_run, load_notebook
from labkit.errors import LabkitError

__all__ = ["build_labs", "check_labs", "load_sources", "make_course"]


def load_sources(root: Path) -> list[Source]:
    """Read all sources, ordered by number. Raises LabkitError with every broken rule."""
    sources, problems = [], []
    for path in sorted((root / "solutions" / "src").glob("*/lab.py")):
        name = path.parent.name
        if not re.match(r"\d\d_\w", name):  # it would be skipped silently
            problems.append(f"solutions/src/{name}: a lab's folder must be named NN_topic. Next: rename it.")
            continue
        try:
            sources.append(load_source(path))
        except LabkitError as error:
            problems.append(str(error))
    problems += [problem for source in sources for problem in check_source(source)]
    numbers = [source.number for source in sources]
    doubled = sorted({number for number in numbers if numbers.count(number) > 1})
    problems += [f"solutions/src: two labs have the number {number}." for number in doubled]
    if problems:
        raise LabkitError("\n".join(problems), next_step="Fix the sources, then build again.")
    return sources


def make_course(sources: list[Source]) -> dict[str, Any]:
    """Return the course's table of contents for progress and quiz: phases, labs, exercises, predictions, questions."""
    return {
        "phases": [{"number": number, "title": title} for number, title in enumerate(PHASES)],
        "labs": [
            {
                "number": source.number,
                "name": source.name,
                **{key: source.header[key] for key in ("title", "question", "phase", "minutes")},
                "exercises": [_exercise(card.metadata) for card in source.exercise_cards()],
                "predictions": [name for cell in source.cells for name in find_calls(cell, "predict")],
                "quiz": [name for cell in source.cells for name in find_calls(cell, "quiz")],
            }
            for source in sources
        ],
    }


def build_labs(root: Path) -> Report:
    """Write labs/ and course.json. An edited lab is kept, and its new version is written beside it.

    A lab file that cannot be read is reported and left alone; the other labs are still built.
    """
    problems, notes = [], []
    sources = load_sources(root)
    (root / "labs").mkdir(exist_ok=True)
    for source in sources:
        try:
            note = _build_lab(root / "labs" / f"{source.name}.ipynb", made=make_notebook(source, kind="lab"))
        except LabkitError as error:
            problems.append(str(error))
        else:
            notes += [note] if note else []
    (root / "labs" / "course.json").write_text(_dump_course(sources), encoding="utf-8")
    return Report(problems=tuple(problems), notes=tuple(notes))


def check_labs(root: Path) -> Report:
    """Compare labs/, solutions/ and course.json with the sources without writing or executing anything."""
    problems, notes = [], []
    try:
        sources = load_sources(root)
    except LabkitError as error:
        return Report(problems=(str(error),), notes=())
    for source in sources:
        problems += check_folder(source)
        for found in (_check_lab(root, source), check_solution(root, source)):
            problems += found.problems
            notes += found.notes
    names = {source.name for source in sources}
    for folder in ("labs", "solutions"):
        strangers = {path.stem for path in (root / folder).glob("[0-9][0-9]_*.ipynb") if not path.stem.endswith(".new")}
        for name in sorted(strangers - names):  # an untracked one is a learner's own copy
            if _is_tracked(root, f"{folder}/{name}.ipynb"):
                problems.append(f"{folder}/{name}.ipynb: has no source. Next: remove it.")
    course = root / "labs" / "course.json"
    if not course.exists() or _read_text(course) != _dump_course(sources):
        problems.append("labs/course.json: does not match the sources. Next: python -m labkit.authoring")
    return Report(problems=tuple(problems), notes=tuple(notes))


def _build_lab(path: Path, *, made) -> str | None:
    """Write one lab unless that would lose a learner's work; return a note, or None if nothing changed."""
    text, name = dump_notebook(made), f"labs/{path.name}"
    if not path.exists():
        path.write_text(text, encoding="utf-8")
        return f"{name}: written."
    if _read_text(path) == text:
        return None
    present = load_notebook(path)
    if is_edited(present):
        return _write_beside(path, present=present, made=made)
    if is_only_run(present, made=made):
        return f"{name}: has the outputs of your run and is up to date; it was left as it is."
    path.write_text(text, encoding="utf-8")
    if has_run(present):
        return f"{name}: updated. The outputs of your run belonged to the old version and were removed: run it again."
    return f"{name}: updated."


def _check_lab(root: Path, source: Source) -> Report:
    path = root / "labs" / f"{source.name}.ipynb"
    if not path.exists():
        return Report(problems=(f"labs/{path.name}: is missing. Next: python -m labkit.authoring",))
    made = make_notebook(source, kind="lab")
    expected = dump_notebook(made)
    if _read_text(path) == expected:
        return Report()
    try:
        present = load_notebook(path)
    except LabkitError as error:
        return Report(problems=(str(error),))
    if _committed_text(root, f"labs/{path.name}") == expected:
        note = f"labs/{path.name}: was run or edited here; the committed version matches its source."
        return Report(notes=(note,))
    return Report(problems=(f"labs/{path.name}: {_name_difference(present, made=made, source=source)}",))


def _name_difference(present, *, made, source: Source) -> str:
    """Say how a lab differs from its source, and the next step, which differs: a build keeps edits and outputs."""
    if is_edited(present):
        return f"was edited, but labs are generated. Next: make the change in {source.label}."
    if is_only_run(present, made=made):
        return "has outputs, but labs are stored without them. Next: delete it, then python -m labkit.authoring"
    return "does not match its source. Next: python -m labkit.authoring"


def _write_beside(path: Path, *, present, made) -> str:
    """Keep an edited lab; write the new version as NN_topic.new.ipynb unless the lab was built from this source."""
    if present.metadata.get("labkit", {}).get("generated") == made.metadata["labkit"]["generated"]:
        return f"labs/{path.name}: has your work and is up to date; it was left as it is."
    beside = path.with_suffix(".new.ipynb")
    other = load_notebook(beside) if beside.exists() else None
    if other and is_edited(other):
        step = "Next: merge them, then build again."
        return f"labs/{path.name}: you edited both it and {beside.name}; neither was changed. {step}"
    if other is None or not is_only_run(other, made=made):
        beside.write_text(dump_notebook(made), encoding="utf-8")
    return f"labs/{path.name}: you edited it, so it was left as it is; the new version is labs/{beside.name}."


def _read_text(path: Path) -> str:
    """Return a file's text for comparison; a byte that is not UTF-8 counts as a difference and raises no error."""
    return path.read_text(encoding="utf-8", errors="replace")


def _committed_text(root: Path, name: str) -> str | None:
    """Return a file's staged or committed text, None outside git: a learner's own edits must not fail the check."""
    try:
        done = subprocess.run(["git", "show", f":./{name}"], cwd=root, capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", errors="replace") if done.returncode == 0 else None


def _is_tracked(root: Path, name: str) -> bool:
    """Tell whether a file belongs to the course: git tracks it, or there is no git checkout."""
    is_checkout = (root / ".git").exists()
    return not is_checkout or _committed_text(root, name) is not None


def _exercise(metadata: dict[str, Any]) -> dict[str, Any]:
    tiers = metadata.get("blocked_on", [])
    return {
        "id": metadata["exercise"],
        "title": metadata["title"],
        "minutes": metadata["minutes"],
        "difficulty": metadata["difficulty"],
        "version": metadata["version"],
        "is_stretch": bool(metadata.get("stretch", False)),
        "blocked_on": [tier.strip() for tier in tiers.split(",")] if isinstance(tiers, str) else list(tiers),
    }


def _dump_course(sources: list[Source]) -> str:
    return json.dumps(make_course(sources), indent=1, ensure_ascii=False) + "\n"
