"""What is in a stored notebook? Reads one, or names the unreadable file; tells a learner's edits from runs."""

from pathlib import Path

from labkit.authoring.source import estimate_cells_hash
from labkit.errors import LabkitError

__all__ = ["has_run", "is_edited", "is_only_run", "load_notebook"]


def load_notebook(path: Path):
    """Read labs/X.ipynb or solutions/X.ipynb as an nbformat node. Raises LabkitError if it is not a notebook."""
    from nbformat import NO_CONVERT, read

    try:
        notebook = read(path, as_version=NO_CONVERT)
        if notebook.get("nbformat") != 4:
            raise ValueError(f"expected notebook format 4, got {notebook.get('nbformat', 'none')}")
        is_edited(notebook)  # raises if the file lacks the cells or metadata of a notebook
    except Exception as error:  # nbformat raises many types that have no common base
        raise _refuse(path, error) from error
    return notebook


def is_edited(notebook) -> bool:
    """Tell whether cells differ from what the builder wrote; a notebook without its stamp counts as edited."""
    return notebook.metadata.get("labkit", {}).get("generated") != estimate_cells_hash(notebook)


def has_run(notebook) -> bool:
    """Tell whether a cell has an output or an execution count, which a new build would lose."""
    return any(cell.get("outputs") or cell.get("execution_count") is not None for cell in notebook.cells)


def is_only_run(notebook, *, made) -> bool:
    """Tell whether a lab equals the new build (`made`) and was run: writing it again would only lose the outputs."""
    return has_run(notebook) and not is_edited(notebook) and notebook.metadata["labkit"] == made.metadata["labkit"]


def _refuse(path: Path, error: Exception) -> LabkitError:
    name = f"{path.parent.name}/{path.name}"
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    again = "build again" if path.parent.name == "labs" else f"make execute LAB={path.name[:2]}"
    return LabkitError(
        f"{name} cannot be read as a notebook ({reason}).",
        next_step=f"`git checkout {name}`, or delete it and {again}.",
    )
