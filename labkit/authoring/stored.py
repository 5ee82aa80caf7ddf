"""What is in a stored notebook? It is read, or refused with its name; a learner's edits and runs are told apart."""

from pathlib import Path

from labkit.authoring.source import estimate_cells_hash
from labkit.errors import LabkitError

__all__ = ["has_run", "is_edited", "is_only_run", "load_notebook"]


def load_notebook(path: Path):
    """Read labs/X.ipynb or solutions/X.ipynb as an nbformat node; LabkitError for a file that is no notebook."""
    from nbformat import NO_CONVERT, read

    try:
        notebook = read(path, as_version=NO_CONVERT)
        if notebook.get("nbformat") != 4:
            raise ValueError(f"format 4 was expected, it has {notebook.get('nbformat', 'none')}")
        is_edited(notebook)  # a file of another shape lacks the cells or the metadata that this looks at
    except Exception as error:  # by what is wrong, nbformat raises one of many kinds that have no common base
        raise _refuse(path, error) from error
    return notebook


def is_edited(notebook) -> bool:
    """True when the cells differ from what the builder wrote; a notebook without our stamp is somebody's work too."""
    return notebook.metadata.get("labkit", {}).get("generated") != estimate_cells_hash(notebook)


def has_run(notebook) -> bool:
    """True when a cell has an output or a count: something that a new build would lose."""
    return any(cell.get("outputs") or cell.get("execution_count") is not None for cell in notebook.cells)


def is_only_run(notebook, *, made) -> bool:
    """True when a lab is what would be built (`made`) and was run: a new build would bring nothing but lose outputs."""
    return has_run(notebook) and not is_edited(notebook) and notebook.metadata["labkit"] == made.metadata["labkit"]


def _refuse(path: Path, error: Exception) -> LabkitError:
    name = f"{path.parent.name}/{path.name}"
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    again = "build again" if path.parent.name == "labs" else f"make execute LAB={path.name[:2]}"
    return LabkitError(
        f"{name} cannot be read as a notebook ({reason}).",
        next_step=f"`git checkout {name}`, or delete it and {again}.",
    )
