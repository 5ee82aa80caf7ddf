"""Executes a solution in a real kernel, removes everything specific to one machine, and stamps the result.

The stamp holds hashes of the source, of the labkit modules that it imports, of the lock file and of the list of labs. A
changed source makes the solution stale. Other changes are only noted: each release executes everything again.
"""

import json
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.authoring.dependencies import estimate_labs_hash, estimate_module_hashes, find_lock, hash_text
from labkit.authoring.rules import check_source
from labkit.authoring.source import Source, dump_notebook, estimate_cells_hash, load_source, make_notebook
from labkit.authoring.stored import load_notebook
from labkit.errors import LabkitError

__all__ = ["Report", "check_solution", "clean_outputs", "execute_solution", "make_kernel_environment"]

_MAX_BYTES = 500_000
_CELL_TIMEOUT_S = 600
# What GitHub's viewer shows, plus Plotly's own type for Jupyter. Everything else in an output is dropped.
_KEPT_TYPES = (
    "text/plain",
    "text/markdown",
    "text/html",
    "text/latex",
    "image/png",
    "image/jpeg",
    "image/svg+xml",
    "application/vnd.plotly.v1+json",
)
_PICTURES = ("image/png", "image/jpeg")


@dataclass(frozen=True, slots=True)
class Report:
    """What a build or a check found.

    Attributes:
        problems: sentences that fail the command.
        notes: sentences that are only shown.
    """

    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def execute_solution(root: Path, number: str) -> Path:
    """Run the solution of lab `number` under budget `learner`, store it with its outputs, and return its path.

    It runs in strict mode: a check that does not pass stops it. Nothing is stored if a cell raises, the kernel dies, an
    output contains a local path, or the notebook is over 500 KB.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    source = _find_source(root, number)
    notebook = make_notebook(source, kind="solution")
    path = root / "solutions" / f"{source.name}.ipynb"
    with tempfile.TemporaryDirectory(prefix="labkit-execute-") as home:
        environment = make_kernel_environment(root, home=Path(home))
        client = NotebookClient(
            notebook,
            timeout=_CELL_TIMEOUT_S,
            kernel_name="python3",
            record_timing=False,
            resources={"metadata": {"path": str(path.parent)}},
        )
        try:
            client.execute(env=environment)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            raise LabkitError(
                f"{path.relative_to(root)}: was not stored: {_last_line(error)}",
                next_step=f"Fix {source.label}, then: make execute LAB={number}",
            ) from error
        clean_outputs(notebook, hidden={home: "LABKIT_HOME", str(root): ".", **_machine_paths()})
    notebook.metadata["labkit"]["executed"] = _stamp(root, source)
    nbformat.validate(notebook)
    text = dump_notebook(notebook)
    _refuse(path.relative_to(root), notebook, text=text, forbidden=[str(root), *_machine_paths()])
    path.write_text(text, encoding="utf-8")
    return path


def make_kernel_environment(root: Path, *, home: Path) -> dict[str, str]:
    """Return the environment for a kernel that executes a solution: strict mode, budget `learner`, its own home."""
    environment = {name: value for name, value in os.environ.items() if name not in ("LABKIT_TIER", "LABKIT_MODEL")}
    python_path = [str(root), *filter(None, [environment.get("PYTHONPATH")])]
    return environment | {
        "LABKIT_BUDGET": "learner",
        "LABKIT_STRICT": "1",
        "LABKIT_HOME": str(home),
        "LABKIT_RUNS": str(root / "data" / "runs"),
        "LABKIT_COURSE": str(root),
        # GitHub and nbconvert show the PNG in place of the interactive figure.
        "PLOTLY_RENDERER": "plotly_mimetype+png",
        # Spinning OpenMP threads slow down every small model as soon as the machine does anything else.
        "OMP_WAIT_POLICY": "passive",
        "PYTHONPATH": os.pathsep.join(python_path),
    }


def clean_outputs(notebook, *, hidden: dict[str, str]) -> None:
    """Clean a notebook in place: keep what readers can see and what is the same everywhere.

    `hidden` maps local paths to the words that replace them.
    """
    notebook.metadata["language_info"] = {"name": "python"}  # without the version, which differs between machines
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            outputs = _merge_streams(cell.outputs)
            cell.outputs = [made for output in outputs if (made := _clean_output(output, hidden=hidden))]


def check_solution(root: Path, source: Source) -> Report:
    """Compare a stored solution with its source (a difference is a problem) and its stamp (a difference is a note)."""
    path = root / "solutions" / f"{source.name}.ipynb"
    again = f"Next: make execute LAB={source.number}"
    if not path.exists():
        return Report(problems=(f"solutions/{path.name}: is missing. {again}",))
    try:
        notebook = load_notebook(path)
    except LabkitError as error:
        return Report(problems=(str(error),))
    stamp = notebook.metadata.get("labkit", {}).get("executed", {})
    if stamp.get("source") != source.hash:
        return Report(problems=(f"solutions/{path.name}: its source has changed since it was executed. {again}",))
    if estimate_cells_hash(notebook) != estimate_cells_hash(make_notebook(source, kind="solution")):
        return Report(problems=(f"solutions/{path.name}: its cells differ from its source. {again}",))
    before, now = stamp.get("modules", {}), _stamp(root, source)
    after = now["modules"]
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    notes = [f"solutions/{path.name}: executed with older modules: {', '.join(changed)}."] if changed else []
    lock = f"requirements/{stamp.get('lock_file')}"
    if (root / lock).exists() and hash_text((root / lock).read_text(encoding="utf-8")) != stamp.get("lock"):
        notes.append(f"solutions/{path.name}: executed with an older {lock}.")
    if stamp.get("labs") != now["labs"]:
        notes.append(f"solutions/{path.name}: executed with another list of labs; its progress table may be stale.")
    return Report(notes=tuple(notes))


def _find_source(root: Path, number: str) -> Source:
    paths = sorted((root / "solutions" / "src").glob("[0-9][0-9]_*/lab.py"))
    matching = [path for path in paths if path.parent.name[:2] == number]
    if not matching:
        known = ", ".join(path.parent.name[:2] for path in paths) or "none"
        raise LabkitError(f"There is no source of lab {number!r}.", next_step=f"Use one of: {known}.")
    source = load_source(matching[0])
    problems = check_source(source)
    if problems:
        raise LabkitError("\n".join(problems), next_step="Fix the source, then execute again.")
    return source


def _stamp(root: Path, source: Source) -> dict[str, Any]:
    text = "\n".join(cell.solution_text() for cell in source.cells if cell.kind == "code")
    lock = find_lock(root)
    return {
        "source": source.hash,
        "modules": estimate_module_hashes(root, text=text, folder=source.folder),
        "labs": estimate_labs_hash(root),
        "lock": hash_text(lock.read_text(encoding="utf-8")) if lock else None,
        "lock_file": lock.name if lock else None,
        "budget": "learner",
    }


def _merge_streams(outputs: list) -> list:
    """Join adjacent outputs of one stream; the kernel splits them at random. (nbclient's way hangs on long lines.)"""
    merged: list = []
    for output in outputs:
        is_more = output.output_type == "stream" and merged and merged[-1].output_type == "stream"
        if is_more and merged[-1].name == output.name:
            merged[-1].text += output.text
        else:
            merged.append(output)
    return merged


def _clean_output(output, *, hidden: dict[str, str]):
    """Return the output without its volatile parts, or None if nothing that can be shown is left."""
    if output.output_type == "stream":
        # An overwritten progress line is not visible to the reader: keep what follows the last carriage return.
        lines = [line.rstrip("\r").rsplit("\r", 1)[-1] for line in output.text.split("\n")]
        output.text = _hide("\n".join(lines), hidden=hidden)
        return output if output.text.strip() else None
    if output.output_type not in ("display_data", "execute_result"):
        return output
    data = {kind: value for kind, value in output.data.items() if kind in _KEPT_TYPES}
    if "data-labkit-live" in str(data.get("text/html", "")):  # the id of a live view, which differs in every run
        data["text/html"] = re.sub(r' data-labkit-live="[0-9a-f]*"', "", data["text/html"])
    if "<script" in str(data.get("text/html", "")):  # GitHub drops scripts and leaves an empty space
        data.pop("text/html")
    shown = {kind: value if kind in _PICTURES else _hide(value, hidden=hidden) for kind, value in data.items()}
    output.data = type(output.data)(shown)
    output.metadata = type(output.metadata)()
    return output if output.data else None


def _hide(value: Any, *, hidden: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _hide(inner, hidden=hidden) for key, inner in value.items()}
    if isinstance(value, list):
        return [_hide(inner, hidden=hidden) for inner in value]
    if not isinstance(value, str):
        return value
    if "/ipykernel_" in value:
        value = re.sub(r"(?:/[\w.-]+)*/ipykernel_\d+/\d+\.py", "cell", value)
    for path in sorted(hidden, key=len, reverse=True):  # longest first: the course may be inside a home folder
        word = hidden[path]
        whole = r"(?<![\w.-])" + re.escape(path.rstrip("/"))
        value = re.sub(whole + r"/(?=\S)", "" if word == "." else f"{word}/", value)
        value = re.sub(whole + r"(?![\w.-])", word, value)
    return value


def _machine_paths() -> dict[str, str]:
    paths = {str(Path.home()): "~", tempfile.gettempdir(): "TMP"}
    return {path: word for path, word in paths.items() if len(path.strip("/")) > 0}


def _refuse(name: Path, notebook, *, text: str, forbidden: list[str]) -> None:
    size = len(text.encode("utf-8"))
    if size > _MAX_BYTES:
        largest = max(notebook.cells, key=lambda cell: len(json.dumps(cell)))
        first = next(iter(largest.source.splitlines()), "empty")
        raise LabkitError(
            f"{name}: was not stored: it has {size / 1000:.0f} KB, the limit is {_MAX_BYTES // 1000} KB. "
            f"The largest cell begins with {first!r} ({len(json.dumps(largest)) / 1000:.0f} KB).",
            next_step="Show fewer points or a smaller figure there.",
        )
    outputs = json.dumps([cell.get("outputs", []) for cell in notebook.cells], ensure_ascii=False)
    left = [path for path in forbidden if re.search(r"(?<![\w.-])" + re.escape(path) + r"(?![\w.-])", outputs)]
    if left:
        raise LabkitError(
            f"{name}: was not stored: an output contains a local path ({left[0]}).",
            next_step="Print a path relative to the course.",
        )


def _last_line(error: Exception) -> str:
    lines = [line for line in re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
