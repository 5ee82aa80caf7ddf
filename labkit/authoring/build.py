"""Labs and course.json are built here, compared with their sources, and a learner's work is never overwritten."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.authoring.execute import check_solution
from labkit.authoring.rules import check_source
from labkit.authoring.source import (
    Source,
    dump_notebook,
    estimate_cells_hash,
    find_calls,
    load_source,
    make_notebook,
)
from labkit.errors import LabkitError

__all__ = ["PHASES", "Report", "build_labs", "check_labs", "load_sources", "make_course"]

PHASES = (
    "bring-up",
    "foundations and first benchmarks",
    "quantization, kernels, compilers",
    "serving under load",
    "production",
)


@dataclass(frozen=True, slots=True)
class Report:
    """What a build or a check found: `problems` fail the command, `notes` are only told."""

    problems: tuple[str, ...]
    notes: tuple[str, ...]


def load_sources(root: Path) -> list[Source]:
    """Read every source in order of its number; LabkitError with all sentences when one breaks a rule."""
    sources = [load_source(path) for path in sorted((root / "solutions" / "src").glob("[0-9][0-9]_*.py"))]
    problems = [problem for source in sources for problem in check_source(source)]
    numbers = [source.number for source in sources]
    doubled = sorted({number for number in numbers if numbers.count(number) > 1})
    problems += [f"solutions/src: two sources have the number {number}." for number in doubled]
    if problems:
        raise LabkitError("\n".join(problems), next_step="Mend the sources, then build again.")
    return sources


def make_course(sources: list[Source]) -> dict[str, Any]:
    """The table of contents that progress and quiz read: phases, labs, exercises, predictions, quiz questions."""
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
    """Write labs/ and course.json; an edited lab stays as it is and a changed one is written beside it."""
    from nbformat import NO_CONVERT, read

    notes = []
    sources = load_sources(root)
    (root / "labs").mkdir(exist_ok=True)
    for source in sources:
        path = root / "labs" / f"{source.name}.ipynb"
        made = make_notebook(source, kind="lab")
        if not path.exists():
            notes.append(f"labs/{path.name}: written.")
        elif path.read_text(encoding="utf-8") == dump_notebook(made):
            continue
        else:
            present = read(path, as_version=NO_CONVERT)
            if _is_edited(present):
                notes.append(_write_beside(path, present=present, made=made))
                continue
            notes.append(f"labs/{path.name}: updated.")
        path.write_text(dump_notebook(made), encoding="utf-8")
    (root / "labs" / "course.json").write_text(_dump_course(sources), encoding="utf-8")
    return Report(problems=(), notes=tuple(notes))


def check_labs(root: Path) -> Report:
    """Compare labs/, solutions/ and course.json with the sources; nothing is written and nothing is executed."""
    problems, notes = [], []
    try:
        sources = load_sources(root)
    except LabkitError as error:
        return Report(problems=(str(error),), notes=())
    for source in sources:
        problem, note = _check_lab(root, source)
        problems += [problem] if problem else []
        notes += [note] if note else []
        found = check_solution(root, source)
        problems += found.problems
        notes += found.notes
    names = {source.name for source in sources}
    for folder in ("labs", "solutions"):
        strangers = {path.stem for path in (root / folder).glob("[0-9][0-9]_*.ipynb") if not path.stem.endswith(".new")}
        problems += [f"{folder}/{name}.ipynb: has no source. Next: remove it." for name in sorted(strangers - names)]
    course = root / "labs" / "course.json"
    if not course.exists() or course.read_text(encoding="utf-8") != _dump_course(sources):
        problems.append("labs/course.json: is not what the sources say. Next: python -m labkit.authoring")
    return Report(problems=tuple(problems), notes=tuple(notes))


def _check_lab(root: Path, source: Source) -> tuple[str | None, str | None]:
    from nbformat import NO_CONVERT, read

    path = root / "labs" / f"{source.name}.ipynb"
    if not path.exists():
        return f"labs/{path.name}: is missing. Next: python -m labkit.authoring", None
    expected = dump_notebook(make_notebook(source, kind="lab"))
    if path.read_text(encoding="utf-8") == expected:
        return None, None
    if _committed_text(root, f"labs/{path.name}") == expected:
        return None, f"labs/{path.name}: was run or edited here; the committed one is equal to its source."
    if _is_edited(read(path, as_version=NO_CONVERT)):
        step = f"Next: bring the change to solutions/src/{source.path.name}."
        return f"labs/{path.name}: was edited, but labs are built. {step}", None
    return f"labs/{path.name}: is not equal to its source. Next: python -m labkit.authoring", None


def _is_edited(notebook) -> bool:
    """True when the cells differ from what the builder wrote; a notebook without our stamp is somebody's work too."""
    return notebook.metadata.get("labkit", {}).get("generated") != estimate_cells_hash(notebook)


def _write_beside(path: Path, *, present, made) -> str:
    """Keep an edited lab; write the new one as NN_topic.new.ipynb unless the lab was made from this very source."""
    from nbformat import NO_CONVERT, read

    if present.metadata.get("labkit", {}).get("generated") == made.metadata["labkit"]["generated"]:
        return f"labs/{path.name}: holds your work and is up to date; it was left as it is."
    beside = path.with_suffix(".new.ipynb")
    if beside.exists() and _is_edited(read(beside, as_version=NO_CONVERT)):
        step = "Next: merge them, then build again."
        return f"labs/{path.name}: you edited it and also {beside.name}; neither was touched. {step}"
    beside.write_text(dump_notebook(made), encoding="utf-8")
    return f"labs/{path.name}: you edited it, so it was left as it is; the new version is labs/{beside.name}."


def _committed_text(root: Path, name: str) -> str | None:
    """The staged or committed text of a file, None outside git. A learner's own edits must not fail their checks."""
    try:
        done = subprocess.run(["git", "show", f":./{name}"], cwd=root, capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8") if done.returncode == 0 else None


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
