"""One source, solutions/src/NN_topic/lab.py, becomes two notebooks: solutions are cut out, ids come from content.

### BEGIN SOLUTION                            in labs/: raise NotImplementedError("exercise 00.1: your code here")
### BEGIN SOLUTION stub: answer = None        in labs/: answer = None
...
### END SOLUTION                              the markers appear in neither notebook
"""

import ast
import functools
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.authoring.hosted import BOOTSTRAP_TAG, format_badge, format_bootstrap, load_repository
from labkit.errors import LabkitError

__all__ = ["Cell", "Source", "dump_notebook", "estimate_cells_hash", "find_calls", "load_source", "make_notebook"]

_BEGIN = re.compile(r"^(?P<indent>\s*)### BEGIN SOLUTION(?:\s+stub:\s*(?P<stub>.*\S))?\s*$")
_END = re.compile(r"^\s*### END SOLUTION\s*$")
_MARKER = re.compile(r"^\s*#+\s*(BEGIN|END) SOLUTION")
_KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
_HEADER_KEYS = ("number", "title", "question", "phase", "minutes")


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a source: `kind` is "markdown" or "code", `place` names file and cell for messages."""

    kind: str
    text: str
    metadata: dict[str, Any]
    place: str

    @property
    def has_region(self) -> bool:
        """True when the cell contains a solution region."""
        return any(_BEGIN.match(line) for line in self.text.splitlines())

    def solution_text(self) -> str:
        """The cell as the solution notebook shows it: answers stay, markers go."""
        return "\n".join(text for text, role in self._lines() if role != "stub")

    def lab_text(self) -> str:
        """The cell as the learner sees it: each region is replaced by its stub."""
        kept = [(text, role) for text, role in self._lines() if role != "answer"]
        return "\n".join(self._make_stub(text) if role == "stub" else text for text, role in kept)

    def answer_lines(self) -> list[str]:
        """The lines inside the regions: what must never be readable in a lab."""
        return [text for text, role in self._lines() if role == "answer"]

    def _lines(self) -> Iterator[tuple[str, str]]:
        """Yield (line, role): "shared", "answer" or "stub" (the BEGIN line); LabkitError for unbalanced markers."""
        is_open = False
        for number, line in enumerate(self.text.splitlines(), start=1):
            begin = _BEGIN.match(line)
            if begin and not is_open:
                is_open = True
                yield line, "stub"
            elif _END.match(line) and is_open:
                is_open = False
            elif _MARKER.match(line):
                raise LabkitError(
                    f"{self.place}: line {number} of the cell has the marker {line.strip()!r} where none is expected.",
                    next_step="Write '### BEGIN SOLUTION' and '### END SOLUTION' in pairs, not nested.",
                )
            else:
                yield line, "answer" if is_open else "shared"
        if is_open:
            raise LabkitError(
                f"{self.place}: a '### BEGIN SOLUTION' has no '### END SOLUTION'.",
                next_step="Close the region in the same cell.",
            )

    def _make_stub(self, line: str) -> str:
        """Turn a BEGIN line into what the learner finds in its place."""
        begin = _BEGIN.match(line)
        indent, stub = begin["indent"], begin["stub"]
        if stub is not None:
            return indent + stub
        exercise = self.metadata.get("solution")
        if exercise is None or not indent:
            missing = "it stands at top level, where a raise would stop the lab"
            if exercise is None:
                missing = 'its cell has no solution="NN.k"'
            raise LabkitError(
                f"{self.place}: a solution region has no stub text, and {missing}.",
                next_step="Write '### BEGIN SOLUTION stub: answer = None', or move the region into the function.",
            )
        return f'{indent}raise NotImplementedError("exercise {exercise}: your code here")'


@dataclass(frozen=True, slots=True)
class Source:
    """The source of a lab, read.

    Attributes:
        path: its file, solutions/src/NN_topic/lab.py.
        name: NN_topic, the name of its folder.
        header: its labkit metadata.
        cells: its cells, in order.
        hash: of its text.
    """

    path: Path
    name: str
    header: dict[str, Any]
    cells: tuple[Cell, ...]
    hash: str

    @property
    def number(self) -> str:
        """Two digits, as in the folder's name."""
        return self.name[:2]

    @property
    def folder(self) -> Path:
        """Everything that belongs to the lab: lab.py, checks.py, mistakes.txt, quiz.json, pictures."""
        return self.path.parent

    @property
    def label(self) -> str:
        """The source's path from the course's root, for messages."""
        return f"solutions/src/{self.name}/{self.path.name}"

    def exercise_cards(self) -> list[Cell]:
        """The Markdown cells that open an exercise."""
        return [cell for cell in self.cells if "exercise" in cell.metadata]


@functools.lru_cache(maxsize=64)
def _parse(text: str):
    """The notebook of a percent file, read once and shared: nobody changes it."""
    import jupytext

    return jupytext.reads(text, fmt="py:percent")


def load_source(path: Path) -> Source:
    """Read solutions/src/NN_topic/lab.py; LabkitError when it cannot be read or its header does not fit its folder."""
    name = Path(path).parent.name
    label = f"solutions/src/{name}/{Path(path).name}"
    text, notebook = _read(Path(path), label=label)
    header = notebook.metadata.get("labkit") or {}
    if not isinstance(header, dict):
        raise LabkitError(
            f"{label}: the header's labkit block is {header!r}, expected one line for each key.",
            next_step=f"Write all of: {', '.join(_HEADER_KEYS)}.",
        )
    missing = [key for key in _HEADER_KEYS if key not in header]
    if missing:
        raise LabkitError(
            f"{label}: the header's labkit block lacks {', '.join(missing)}.",
            next_step=f"Write all of: {', '.join(_HEADER_KEYS)}.",
        )
    if str(header["number"]) != name[:2]:
        raise LabkitError(
            f"{label}: the header says lab {header['number']!r}, its folder says {name[:2]!r}.",
            next_step='Use one number everywhere (quoted in the header: "00").',
        )
    cells = tuple(
        Cell(
            kind=cell.cell_type,
            text=cell.source,
            metadata=dict(cell.metadata),
            place=f"{label}, cell {position} ({_first_words(cell.source)})",
        )
        for position, cell in enumerate(notebook.cells, start=1)
    )
    return Source(path=Path(path), name=name, header=dict(header), cells=cells, hash=_hash(text))


def _read(path: Path, *, label: str):
    """Return (text, notebook) of a source file; both kinds of damage name the file and the place."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise LabkitError(
            f"{label}: line {line} has a byte that is not UTF-8 ({error.object[error.start]:#04x}).",
            next_step="Save the file as UTF-8.",
        ) from error
    try:
        return text, _parse(text)
    except Exception as error:  # jupytext passes on what its YAML reader raises, and has errors of its own
        reason = " ".join(str(error).split())
        raise LabkitError(
            f"{label}: cannot be read as a jupytext percent file: {reason}",
            next_step="Mend its header (YAML between two lines '# ---').",
        ) from error


def make_notebook(source: Source, *, kind: str):
    """Build the notebook (an nbformat node) of a source; kind is "lab" or "solution". No outputs in either.

    Where a repository is configured, a lab's first cell links to Colab and its second gets the course there.
    """
    from nbformat import v4

    notebook = v4.new_notebook(metadata={"kernelspec": dict(_KERNEL), "language_info": {"name": "python"}})
    seen: dict[str, int] = {}
    for cell in source.cells:
        text = cell.text if cell.kind != "code" else cell.lab_text() if kind == "lab" else cell.solution_text()
        make = v4.new_markdown_cell if cell.kind == "markdown" else v4.new_code_cell
        notebook.cells.append(make(text.strip("\n"), metadata=_cell_metadata(cell)))
    url = load_repository(source.path.resolve().parents[3]) if kind == "lab" else None
    if url:
        _add_hosted(notebook, url, name=source.name)
    for made in notebook.cells:
        # Ids come from the content, so an unchanged cell keeps its id in every build and on every machine.
        digest = _hash(f"{made.cell_type}\n{made.source}")[:12]
        seen[digest] = seen.get(digest, 0) + 1
        made.id = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
    notebook.metadata["labkit"] = {key: source.header[key] for key in _HEADER_KEYS} | {
        "generated": estimate_cells_hash(notebook)
    }
    return notebook


def _add_hosted(notebook, url: str, *, name: str) -> None:
    """Link the title cell to Colab, and put the folded cell that gets the course there after it."""
    from nbformat import v4

    notebook.cells[0].source += f"\n\n{format_badge(url, name=name)}"
    metadata = {"cellView": "form", "jupyter": {"source_hidden": True}, "tags": [BOOTSTRAP_TAG]}
    notebook.cells.insert(1, v4.new_code_cell(format_bootstrap(url), metadata=metadata))


def dump_notebook(notebook) -> str:
    """The text that is stored: sorted keys, one space, sources split into lines, a newline at the end."""
    import nbformat

    return nbformat.writes(notebook, version=4, indent=1, sort_keys=True).rstrip("\n") + "\n"


def estimate_cells_hash(notebook) -> str:
    """Hash of what a person can edit: kind and source of each cell. Outputs, counts, ids and metadata do not matter."""
    return _hash(json.dumps([[cell.cell_type, cell.source.strip("\n")] for cell in notebook.cells]))


def find_calls(cell: Cell, name: str) -> list[str]:
    """First arguments (string constants) of the calls `name("...")` in a code cell, in order of the text."""
    if cell.kind != "code":
        return []
    try:
        calls = _list_calls(cell.solution_text())
    except SyntaxError as error:
        raise LabkitError(
            f"{cell.place}: not valid Python: {error.msg} (line {error.lineno} of the cell).",
            next_step="Mend the cell; magics and shell lines are not used in this course.",
        ) from error
    return [argument for function, argument in calls if function == name]


@functools.lru_cache(maxsize=4096)  # the rules ask each cell for a dozen names
def _list_calls(text: str) -> tuple[tuple[str, str], ...]:
    """(function, first argument) of every call with a constant first argument, in order of the text."""
    calls = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.args
        and isinstance(node.args[0], ast.Constant)
    ]
    in_order = sorted(calls, key=lambda node: (node.lineno, node.col_offset))
    return tuple((node.func.id, str(node.args[0].value)) for node in in_order)


def _cell_metadata(cell: Cell) -> dict[str, Any]:
    kept = {"tags": list(cell.metadata["tags"])} if cell.metadata.get("tags") else {}
    ours = {key: cell.metadata[key] for key in ("exercise", "solution") if key in cell.metadata}
    return kept | ({"labkit": ours} if ours else {})


def _first_words(text: str) -> str:
    line = next((line.strip() for line in text.splitlines() if line.strip()), "empty")
    return line if len(line) <= 50 else line[:47] + "..."


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
