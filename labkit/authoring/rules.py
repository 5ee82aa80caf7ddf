"""The anatomy of a notebook, as far as a program can see it. Each broken rule is one sentence with file and cell."""

import ast
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator

from labkit.authoring.source import Cell, Source, find_calls
from labkit.errors import LabkitError

__all__ = ["PHASES", "check_folder", "check_source", "find_blocked_cells"]

PHASES = (
    "bring-up",
    "foundations and first benchmarks",
    "quantization, kernels, compilers",
    "serving under load",
    "production",
)

_MAX_LAB_LINES = 15
_MAX_SOLUTION_LINES = 30
_MAX_IMPORT_LINES = 24  # all imports stand in one cell, so their number is the lab's and no second idea
_MIN_HINTS = 2
_DIFFICULTIES = range(1, 6)
_NUM_QUIZ = 5
_MIN_MISTAKES = 3  # known wrong answers of an exercise
# The parts that every lab has, by the heading that opens them. (`measure` has no heading that all labs share.)
_PARTS = {
    "# {number} · its title": r"^# {number} · \S",
    "### Predict before you measure": r"^### Predict before you measure",
    "## N · Break it": r"^## \d+ · Break it",
    "## N · Summary": r"^## \d+ · Summary",
    "### Five questions": r"^### Five questions",
    "## N · Done": r"^## \d+ · Done",
}
_CARD_KEYS = ("exercise", "title", "minutes", "difficulty", "version")
_ID = {"exercise": r"{number}\.[1-9]\d*", "prediction": r"{number}\.p[1-9]\d*", "quiz": r"{number}\.q[1-9]\d*"}
# Text that no code cell holds. The second table is allowed where a section is marked as blocked on a machine.
_FORBIDDEN = {
    r"^\s*!": "a shell line (`!cmd`) does not work on every machine",
    r"^\s*%": "a magic (`%pip`, `%%bash`, ...) hides what happens",
    r"\bos\.chdir\b": "os.chdir moves every later path",
    r"\bsys\.path\b": "sys.path belongs to the one bootstrap call",
}
_HARDWARE = {
    r"\btorch\.cuda\b": "hardware is asked for in one place (labkit.hardware), not by torch.cuda",
    r"\bis_available\b": "hardware is asked for in one place (labkit.hardware), not by is_available",
}


def check_source(source: Source) -> list[str]:
    """Return one sentence for each rule that the source breaks; an empty list when it is well built."""
    problems: list[str] = []
    for rule in (_header, _parts, _regions, _cells, _imports, _cards, _uses, _duplicates):
        try:
            problems += rule(source)
        except LabkitError as error:  # a cell that cannot be read is a finding, not the end of the list
            problems.append(str(error))
    return list(dict.fromkeys(problems))


def check_folder(source: Source) -> list[str]:
    """Return one sentence for each thing that the lab's folder still lacks: a check, mistakes, a question, text."""
    problems = []
    exercises = [str(card.metadata["exercise"]) for card in source.exercise_cards()]
    place = source.label.removesuffix(source.path.name)
    texts = {}
    for name in ("lab.py", "checks.py", "mistakes.txt", "quiz.json"):
        path = source.folder / name
        texts[name] = path.read_text(encoding="utf-8") if path.is_file() else ""
        if not texts[name].strip():
            problems.append(
                f"{place}{name}: is missing or empty. Next: write it, as CONTRIBUTING.md says."
            )
        elif left := texts[name].count("TODO"):
            line = texts[name][: texts[name].index("TODO")].count("\n") + 1
            problems.append(f"{place}{name}: {left} times TODO, first in line {line}. Next: write what belongs there.")
    problems += _check_checks(texts["checks.py"], exercises, f"{place}checks.py")
    problems += _check_mistakes(texts["mistakes.txt"], exercises, f"{place}mistakes.txt")
    problems += _check_questions(texts["quiz.json"], source, f"{place}quiz.json")
    return problems


def _check_checks(text: str, exercises: list[str], label: str) -> Iterator[str]:
    try:
        functions = {node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}
    except SyntaxError as error:
        yield f"{label}: not valid Python: {error.msg}, line {error.lineno}. Next: mend it."
        return
    for exercise in exercises:
        name = f"check_{exercise.partition('.')[2]}"
        if name not in functions:
            yield f"{label}: exercise {exercise} has no check. Next: write {name}()."


def _check_mistakes(text: str, exercises: list[str], label: str) -> Iterator[str]:
    """The first level of indentation is a wrong answer; `&` and deeper lines belong to the one above, `=` is right."""
    counts, current, is_right = Counter(), "", False
    for line in text.splitlines():
        if header := re.fullmatch(r"\[(.+)\]", line):
            current = header[1]
            counts[current] += 0
        elif line[:1].strip() and not line.startswith("#"):
            is_right = line.startswith("=")
        elif re.match(r" {4}(?![ &])", line) and not is_right:
            counts[current] += 1
    for name in counts.keys() - set(exercises):
        yield f"{label}: [{name}] is not an exercise of this lab. Next: {_known(set(exercises))}"
    for exercise in exercises:
        if counts[exercise] < _MIN_MISTAKES:
            yield (
                f"{label}: {counts[exercise]} wrong answers of exercise {exercise}, expected {_MIN_MISTAKES} or more. "
                "Next: write down what a learner would get wrong, each with its sentence."
            )


def _check_questions(text: str, source: Source, label: str) -> Iterator[str]:
    try:
        found = {str(question["id"]) for question in json.loads(text or "{}").get("questions", [])}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        yield f"{label}: cannot be read ({type(error).__name__}: {error}). Next: mend it."
        return
    asked = {name for cell in _code(source) for name in find_calls(cell, "quiz")}
    for name in sorted(asked - found):
        yield f"{label}: question {name} is asked by the lab and is not here. Next: write it."
    for name in sorted(found - asked):
        yield f"{label}: question {name} is never asked. Next: add quiz({name!r}) to the lab, or take it out."


def find_blocked_cells(source: Source) -> set[str]:
    """Places of the cells in a blocked section: from a card with blocked_on to the next card or `## ` heading."""
    blocked, is_blocked = set(), False
    for cell in source.cells:
        is_heading = cell.kind == "markdown" and re.search(r"^#{1,2} ", cell.text, flags=re.MULTILINE)
        if "exercise" in cell.metadata or is_heading:
            is_blocked = bool(cell.metadata.get("blocked_on"))
        if is_blocked or cell.metadata.get("blocked_on"):
            blocked.add(cell.place)
    return blocked


def _code(source: Source) -> list[Cell]:
    return [cell for cell in source.cells if cell.kind == "code"]


def _header(source: Source) -> Iterator[str]:
    phase = source.header["phase"]
    if phase not in range(len(PHASES)):
        yield (
            f"{source.label}: the header says phase {phase!r}, expected 0 to {len(PHASES) - 1}. "
            "Next: write the number of its phase."
        )


def _parts(source: Source) -> Iterator[str]:
    label = source.label
    prose = "\n".join(cell.text for cell in source.cells if cell.kind == "markdown")
    for heading, pattern in _PARTS.items():
        if not re.search(pattern.format(number=source.number), prose, flags=re.MULTILINE):
            shown = heading.format(number=source.number)
            yield f"{label}: no heading {shown!r}. Next: write that part; CONTRIBUTING.md lists all in their order."
    predictions, questions = (
        {name for cell in _code(source) for name in find_calls(cell, function)} for function in ("predict", "quiz")
    )
    if not predictions:
        yield f'{label}: nothing is predicted. Next: write predict("{source.number}.p1", ...) before the measurement.'
    if len(questions) != _NUM_QUIZ:
        found = ", ".join(sorted(questions)) or "none"
        yield (
            f"{label}: {len(questions)} quiz questions ({found}), expected {_NUM_QUIZ}. "
            f"Next: ask {source.number}.q1 to {source.number}.q{_NUM_QUIZ} after the summary."
        )


def _regions(source: Source) -> Iterator[str]:
    for cell in source.cells:
        if cell.kind == "markdown" and "### BEGIN SOLUTION" in cell.text:
            yield f"{cell.place}: a solution region in a Markdown cell. Next: move it to a code cell."
        if cell.kind == "code":
            try:
                ast.parse(cell.lab_text())
            except LabkitError as error:
                yield str(error)
            except SyntaxError as error:
                yield f"{cell.place}: the learner's version is not valid Python: {error.msg}. Next: mend the stub."
        if "solution" in cell.metadata and not cell.has_region:
            yield (
                f'{cell.place}: says solution="{cell.metadata["solution"]}" but has no region. '
                "Next: write ### BEGIN SOLUTION and ### END SOLUTION around the answer."
            )


def _cells(source: Source) -> Iterator[str]:
    blocked = find_blocked_cells(source)
    for cell in _code(source):
        in_lab = len(cell.lab_text().strip("\n").splitlines())
        in_solution = len(cell.solution_text().strip("\n").splitlines())
        in_lab_limit = _MAX_IMPORT_LINES if _only_imports(cell) else _MAX_LAB_LINES
        limit = _MAX_SOLUTION_LINES if cell.has_region else in_lab_limit
        if in_lab > in_lab_limit or in_solution > limit:
            yield (
                f"{cell.place}: {in_lab} lines in the lab, {in_solution} in the solution; at most {in_lab_limit} and "
                f"{limit} are allowed. Next: split the cell, one idea each."
            )
        table = _FORBIDDEN if cell.place in blocked else _FORBIDDEN | _HARDWARE
        for pattern, reason in table.items():
            if re.search(pattern, cell.text, flags=re.MULTILINE):
                yield f"{cell.place}: {reason}. Next: take it out of the notebook."


def _imports(source: Source) -> Iterator[str]:
    importing = [cell for cell in _code(source) if _has_import(cell)]
    for cell in importing[1:]:
        yield (
            f"{cell.place}: imports, but the setup cell is the only one that imports ({importing[0].place}). "
            "Next: move the import there."
        )


def _only_imports(cell: Cell) -> bool:
    find_calls(cell, "")  # raises the sentence about invalid Python
    body = ast.parse(cell.solution_text()).body
    return bool(body) and all(isinstance(node, ast.Import | ast.ImportFrom) for node in body)


def _has_import(cell: Cell) -> bool:
    find_calls(cell, "")  # raises the sentence about invalid Python
    return any(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.walk(ast.parse(cell.solution_text())))


def _cards(source: Source) -> Iterator[str]:
    ids = {card.metadata["exercise"] for card in source.exercise_cards()}
    checked = {name for cell in _code(source) for name in find_calls(cell, "check")}
    solved = {cell.metadata.get("solution") for cell in _code(source)}
    for card in source.exercise_cards():
        name = card.metadata["exercise"]
        missing = [key for key in _CARD_KEYS if key not in card.metadata]
        if missing:
            yield f"{card.place}: exercise {name} lacks {', '.join(missing)}. Next: add them to the cell's first line."
        difficulty = card.metadata.get("difficulty", 1)
        if difficulty not in _DIFFICULTIES:
            yield f"{card.place}: exercise {name} has difficulty {difficulty!r}, expected 1 to 5. Next: choose one."
        if card.kind != "markdown":
            yield f"{card.place}: the card of exercise {name} is no Markdown cell. Next: write '# %% [markdown]'."
        if not _fits("exercise", str(name), source):
            yield f"{card.place}: {name!r} is no exercise of lab {source.number}. Next: call it {source.number}.k."
        if name not in checked:
            yield f'{card.place}: exercise {name} has no check cell. Next: add check("{name}", ...) after the stub.'
        if name not in solved:
            yield f'{card.place}: exercise {name} has no stub cell. Next: mark one with solution="{name}".'
        if _count_hints(source, card) < _MIN_HINTS:
            yield f"{card.place}: exercise {name} has fewer than {_MIN_HINTS} hints. Next: add <details>."
    for cell in _code(source):
        name = str(cell.metadata.get("solution", ""))
        if _fits("prediction", name, source) or _fits("quiz", name, source):
            if f'"{name}"' not in cell.lab_text() or f'"{name}"' not in cell.solution_text():
                yield f'{cell.place}: says solution="{name}", but not both stub and answer name it. Next: use one id.'
        elif name and name not in ids:
            yield f"{cell.place}: solution of an unknown exercise {name!r}. Next: {_known(ids)}"


def _count_hints(source: Source, card: Cell) -> int:
    """Folded hints between a card and the exercise's check cell."""
    name, hints, is_inside = card.metadata["exercise"], 0, False
    for cell in source.cells:
        is_inside = is_inside or cell is card
        if is_inside and cell.kind == "markdown":
            hints += cell.text.count("<details>")
        if is_inside and name in find_calls(cell, "check"):
            break
    return hints


def _uses(source: Source) -> Iterator[str]:
    ids = {card.metadata["exercise"] for card in source.exercise_cards()}
    for cell in _code(source):
        for function in ("check", "ready", "use_reference"):
            for name in find_calls(cell, function):
                # ready("01.2") may ask for an earlier lab's answer; whether that exists is the course's question.
                if name not in ids and (name.startswith(source.number) or function != "ready"):
                    yield f'{cell.place}: {function}("{name}") names an unknown exercise. Next: {_known(ids)}'
        for function, kind in (("predict", "prediction"), ("quiz", "quiz")):
            for name in find_calls(cell, function):
                if not _fits(kind, name, source):
                    step = f"Next: use {source.number}.{function[0]}1."
                    yield f'{cell.place}: {function}("{name}") does not fit lab {source.number}. {step}'
    completions = [name for cell in _code(source) for name in find_calls(cell, "complete")]
    if completions != [source.number]:
        yield (
            f"{source.label}: complete() is called for {completions or 'no lab'}. "
            f'Next: end the notebook with exactly one complete("{source.number}").'
        )


def _duplicates(source: Source) -> Iterator[str]:
    kinds: dict[str, Callable[[Cell], list[str]]] = {
        "the card of exercise": lambda cell: [str(cell.metadata["exercise"])] if "exercise" in cell.metadata else [],
        "the stub of exercise": lambda cell: [str(cell.metadata["solution"])] if "solution" in cell.metadata else [],
        "prediction": lambda cell: find_calls(cell, "predict"),
        "quiz question": lambda cell: find_calls(cell, "quiz"),
        "the check of exercise": lambda cell: find_calls(cell, "check"),
    }
    for kind, names_in in kinds.items():
        places = [(name, cell.place) for cell in source.cells for name in sorted(set(names_in(cell)))]
        counts = Counter(name for name, _ in places)
        for name, place in places:
            if counts[name] > 1 and place == [other for found, other in places if found == name][-1]:
                yield f"{place}: {kind} {name} is there {counts[name]} times. Next: give each its own id."


def _fits(kind: str, name: str, source: Source) -> bool:
    return re.fullmatch(_ID[kind].format(number=source.number), name) is not None


def _known(ids: set[str]) -> str:
    return f"use one of {', '.join(sorted(ids)) or 'the cards (there is none)'}, or write its card."
