"""Known wrong answers, each written once, as a change of the course's own solution.

A lab's mistakes.txt lists them by exercise:

    [12.1]
    A chunk may carry several tokens: add up the second numbers, do not count chunks.
        sum(count for _, count in content)  =>  len(content)
        num_tokens - 1  =>  len(content) - 1
        & num_tokens > 1  =>  len(content) > 1

A line at the margin is the sentence that the learner reads. Below it, each indented line is one wrong answer: the text
on the left stands exactly once in the solution's cell and becomes the text on the right (nothing, if there is none).
A line that begins with `&` belongs to the wrong answer above it. Where the wrong answer is another algorithm, a whole
function stands there and replaces the one of its name:

    That is bubble sort.
        def order(values):
            ...

Two more kinds of entry have a mark before the sentence, and are used by the tests alone:

    ~ part of a sentence     a wrong answer that the check refuses in its own words, which contain this text
    = why                    a right answer in another form: it passes

A line that begins with `#` is a comment. `make test` judges every entry.
"""

import ast
import contextlib
import functools
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from labkit.checks.learner import OutOfTime, limit_call
from labkit.checks.reference import Reference, load_reference, make_names
from labkit.environment import find_lab_folder
from labkit.errors import CheckError

__all__ = ["FILE_NAME", "Mistake", "find_mistake", "load_mistakes"]

FILE_NAME = "mistakes.txt"
_MARKS = {"~": "refused", "=": "right"}
_ARROW = "  =>"


@dataclass(frozen=True, slots=True)
class Mistake:
    """One entry: an answer that is known to be wrong, or a right one in an unusual form.

    Attributes:
        exercise: the exercise's id, such as "12.1".
        kind: "named" (its sentence is shown), "refused" (by the check's own sentence) or "right".
        sentence: what the learner reads; for "refused" a part of it, for "right" why it is right.
        code: the solution's cell with the change.
        line: where the entry stands in mistakes.txt.
    """

    exercise: str
    kind: str
    sentence: str
    code: str
    line: int


def load_mistakes(exercise: str) -> tuple[Mistake, ...]:
    """Read the entries of an exercise, in order. Raises CheckError, naming the line, for one that does not apply."""
    reference = load_reference(exercise)
    path = find_lab_folder(exercise.partition(".")[0]) / FILE_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return ()
    return _read_mistakes(text, reference, f"{path.parent.name}/{FILE_NAME}")


def find_mistake(exercise: str, name: str, explains: Callable[[Callable], bool]) -> str:
    """Return the sentence of the first known wrong answer that `explains` accepts, or "".

    `name` is the function that is looked at. `explains` is called with the wrong function; a wrong function that raises
    there, or that does not end, explains nothing.
    """
    for mistake in load_mistakes(exercise):
        if mistake.kind == "named":
            with contextlib.suppress(Exception, OutOfTime), limit_call():
                if explains(make_names(load_reference(exercise), mistake.code)[name]):
                    return mistake.sentence
    return ""


@functools.lru_cache(maxsize=64)
def _read_mistakes(text: str, reference: Reference, file: str) -> tuple[Mistake, ...]:
    found: list[Mistake] = []
    for kind, sentence, changes, line in _split_entries(text, reference.exercise):
        code = reference.code
        for change in changes:
            code = _apply(code, change, f"{file}, line {line}")
        with contextlib.suppress(SyntaxError):
            if ast.unparse(ast.parse(code)) != ast.unparse(ast.parse(reference.code)):
                found.append(Mistake(reference.exercise, kind, sentence, code, line))
                continue
        raise CheckError(f"{file}, line {line}: the changed solution is the solution, or not valid Python.",
                         next_step="mend the entry.")  # fmt: skip
    return tuple(found)


def _split_entries(text: str, exercise: str) -> Iterator[tuple[str, str, list[str], int]]:
    """Yield (kind, sentence, changes, line number) of the entries of one exercise."""
    is_mine, kind, sentence, changes, start = False, "named", "", [], 0
    for number, line in enumerate([*text.splitlines(), "[end]"], start=1):
        is_margin = bool(line.strip()) and not line.startswith(" ")
        opens = re.match(r" {4}(?! )(?P<and>& )?", line)
        if changes and (is_margin or (opens and not opens["and"])):
            yield kind, sentence, changes, start
            changes = []
        if header := re.fullmatch(r"\[(.+)\]", line):
            is_mine = header[1] == exercise
        elif not is_mine or line.startswith("#"):
            continue
        elif is_margin:
            kind = _MARKS.get(line[0], "named")
            sentence = line.lstrip("~= ").strip()
        elif opens:
            start = start if changes else number
            changes.append(line[4:].removeprefix("& "))
        elif changes:  # a function goes on
            changes[-1] += f"\n{line[4:]}"


def _apply(code: str, change: str, where: str) -> str:
    if change.startswith("def "):
        return _replace_function(code, textwrap.dedent(change).rstrip(), where)
    old, arrow, new = change.partition(_ARROW)
    if not arrow:
        raise CheckError(f"{where}: {change!r} has no '=>' with two spaces before it.", next_step="write old  =>  new.")
    old, new = old.strip(), new.strip()
    if (num := code.count(old)) != 1:
        raise CheckError(f"{where}: {old!r} stands {num} times in the solution, expected once.",
                         next_step="write more, or less, of what stands around it.")  # fmt: skip
    return code.replace(old, new)


def _replace_function(code: str, function: str, where: str) -> str:
    try:
        name = ast.parse(function).body[0].name
    except SyntaxError as error:
        raise CheckError(f"{where}: the function is not valid Python: {error.msg}.", next_step="mend it.") from None
    lines = code.splitlines()
    for node in ast.parse(code).body:
        if getattr(node, "name", None) == name:
            return "\n".join([*lines[: node.lineno - 1], function, *lines[node.end_lineno :]])
    raise CheckError(f"{where}: the solution has no function {name!r}.", next_step="give it the solution's name.")
