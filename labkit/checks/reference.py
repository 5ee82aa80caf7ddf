"""The course's own solution of an exercise: its text, the names that its cell finds in the notebook, and its answer.

`use_reference("00.1")` shows it to a learner who is stuck; the checks and the tests change it in known ways.
"""

import ast
import functools
import linecache
import re
import sys
from dataclasses import dataclass
from html import escape

from labkit.environment import find_lab_folder, load_lab_module
from labkit.errors import CheckError, InstallError
from labkit.progress import append_event, load_course
from labkit.progress.course import Exercise
from labkit.views import view_html

__all__ = ["Reference", "find_exercise", "load_reference", "make_names", "run_reference", "use_reference"]

_CELL = re.compile(r"^# %%(?P<head>.*)\n(?P<body>(?:(?!# %%).*\n?)*)", re.MULTILINE)
_MARKER = re.compile(r"^\s*### (?P<end>BEGIN|END) SOLUTION")


@dataclass(frozen=True, slots=True)
class Reference:
    """The solution of one exercise.

    Attributes:
        exercise: the exercise's id, such as "00.1".
        code: its solution cell as the solution notebook shows it.
        lines: numbers of the lines of `code` that the learner writes; the first line is 1.
        answer: what check() is given, as text: "weight_bytes" or "(rms_norm, rotate)".
        imports: every import of the lab.
        earlier: solutions of the lab's earlier exercises whose functions this one calls.
    """

    exercise: str
    code: str
    lines: frozenset[int]
    answer: str
    imports: str
    earlier: str

    @property
    def answer_names(self) -> tuple[str, ...]:
        """The names in `answer`, in order: one for most exercises."""
        return tuple(node.id for node in ast.walk(ast.parse(self.answer)) if isinstance(node, ast.Name))


def use_reference(exercise: str) -> None:
    """Load the solution of an exercise into the notebook, so that a stuck learner can go on.

    The exercise counts as viewed from now on, never as passed (unless it was passed before). Raises CheckError when
    there is no solution, or when it stops: then nothing is shown, and the exercise stays as it was.
    """
    card = find_exercise(exercise)
    code = load_reference(exercise).code
    # The caller is the notebook's cell: its globals are the notebook's names.
    run_reference(exercise, code, sys._getframe(1).f_globals)
    append_event("viewed", exercise=exercise, version=card.version)
    text = f"reference solution of {exercise}, now loaded in your notebook (the exercise counts as viewed):"
    view_html(f"<p>{escape(text)}</p><pre><code>{escape(code)}</code></pre>", f"{text}\n\n{code}")


def find_exercise(exercise: str) -> Exercise:
    """Return the exercise's entry in the course. Raises CheckError when there is none."""
    cards = [card for lab in load_course().labs for card in lab.exercises]
    for card in cards:
        if card.id == exercise:
            return card
    same_lab = [card.id for card in cards if card.id.split(".")[0] == str(exercise).split(".")[0]]
    raise CheckError(
        f"the course has no exercise {exercise!r}.",
        next_step=f"use one of {', '.join(same_lab or [card.id for card in cards]) or 'none: run `make labs`'}.",
    )


def load_reference(exercise: str) -> Reference:
    """Read the solution of an exercise from its lab's source. Raises CheckError when there is none."""
    try:
        path = find_lab_folder(exercise.partition(".")[0]) / "lab.py"
        found = _read_references(path.read_text(encoding="utf-8")).get(exercise)
    except (InstallError, OSError):
        found = None
    if found is None:
        raise CheckError(
            f"there is no reference solution of {exercise} in solutions/src.", next_step="get the whole course again."
        )
    return found


@functools.lru_cache(maxsize=32)
def _read_references(text: str) -> dict[str, Reference]:
    """Return every solution of a lab's source, in order."""
    solutions: dict[str, list[tuple[str, bool]]] = {}
    answers: dict[str, str] = {}
    imports: list[str] = []
    for cell in _CELL.finditer(text):
        if "[markdown]" in cell["head"]:
            continue
        lines = _split_region(cell["body"].strip("\n"))
        if solved := re.search(r'solution="([^"]+)"', cell["head"]):
            solutions.setdefault(solved[1], []).extend([("", False), *lines] if solved[1] in solutions else lines)
        for node in ast.walk(ast.parse("\n".join(line for line, _ in lines))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                imports.append(ast.unparse(node))
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "check":
                answers[ast.literal_eval(node.args[0])] = ast.unparse(node.args[1])
    found: dict[str, Reference] = {}
    functions: dict[str, str] = {}
    for exercise, lines in solutions.items():
        code = "\n".join(line for line, _ in lines)
        tree = ast.parse(code)
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        found[exercise] = Reference(
            exercise=exercise,
            code=code,
            lines=frozenset(number for number, (_, is_answer) in enumerate(lines, start=1) if is_answer),
            answer=answers.get(exercise, "None"),
            imports="\n".join(imports),
            earlier="\n\n".join(dict.fromkeys(text for name, text in functions.items() if name in used)),
        )
        functions |= {node.name: code for node in tree.body if isinstance(node, ast.FunctionDef)}
    return found


def _split_region(body: str) -> list[tuple[str, bool]]:
    """Return (line, is it the learner's) of a cell's lines, without the markers."""
    lines, is_answer = [], False
    for line in body.splitlines():
        if marker := _MARKER.match(line):
            is_answer = marker["end"] == "BEGIN"
        else:
            lines.append((line, is_answer))
    return lines


def make_names(reference: Reference, code: str | None = None) -> dict:
    """Run a version of a solution (itself by default) where its cell stands; return every name that there is then.

    The cell finds the lab's imports, the earlier answers that it calls, and what the lab's checks.py returns from
    `scene_k()`: made-up stand-ins for what the notebook measured before.
    """
    names: dict = {"__name__": f"reference_{reference.exercise}"}
    for text in (reference.imports, reference.earlier):
        exec(text, names)
    number, _, k = reference.exercise.partition(".")
    scene = getattr(load_lab_module(number, "checks"), f"scene_{k}", None)
    names |= scene() if scene else {}
    exec(compile(reference.code if code is None else code, f"<answer to {reference.exercise}>", "exec"), names)
    return names


def run_reference(exercise: str, code: str, names: dict) -> None:
    """Run code as a file of its own, so that a message can name its lines."""
    filename = f"<reference {exercise}>"
    linecache.cache[filename] = (len(code), None, code.splitlines(keepends=True), filename)
    try:
        exec(compile(code, filename, "exec"), names)
    except Exception as error:
        raise CheckError(
            f"the reference solution of {exercise} stopped with {type(error).__name__}: {error}.",
            next_step="run the cells above it first, then call use_reference again.",
        ) from error
