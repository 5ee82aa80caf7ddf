"""What did a stored output depend on? Hashes of every labkit module that a source reaches, of the lab's own folder, of
the lock, and of the list of labs.
"""

import ast
import functools
import hashlib
import re
from importlib import metadata
from pathlib import Path

__all__ = ["estimate_labs_hash", "estimate_module_hashes", "find_imports", "find_lock", "hash_text"]


def estimate_module_hashes(root: Path, *, text: str, folder: Path) -> dict[str, str]:
    """Return {"labkit/stats.py": hash, ...} for every module that `text`, or the lab's checks, reach.

    The checks of a lab are found at run time, which no import statement shows; so they are added, with the lab's known
    mistakes and questions. Whatever else lies in the folder does not count.
    """
    found = {
        path.relative_to(root).as_posix(): hash_text(path.read_text(encoding="utf-8"))
        for path in (folder / "mistakes.txt", folder / "quiz.json")
        if path.is_file()
    }
    waiting = {*find_imports(text), f"lab{folder.name[:2]}.checks"}
    while waiting:
        path = _find_file(root, waiting.pop(), folder=folder)
        name = path.relative_to(root).as_posix() if path else ""
        if path is None or name in found:
            continue
        source = path.read_text(encoding="utf-8")
        found[name] = hash_text(source)
        waiting |= find_imports(source)
    return dict(sorted(found.items()))


def estimate_labs_hash(root: Path) -> str:
    """Hash of the course's labs (NN_topic) in order: a solution shows a table of them and says which one is next."""
    names = sorted(path.parent.name for path in (root / "solutions" / "src").glob("[0-9][0-9]_*/lab.py"))
    return hash_text("\n".join(names))


@functools.lru_cache(maxsize=512)  # every lab asks for the same modules
def find_imports(text: str) -> frozenset[str]:
    """Dotted names of labkit and of a lab's own files that a text imports, in functions too.

    `from labkit import b` gives labkit and labkit.b.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(name for name in names if re.fullmatch(r"labkit|lab\d\d", name.split(".")[0]))


def find_lock(root: Path) -> Path | None:
    """The lock that belongs to the installed torch (its CPU builds say +cpu); None where there is no lock file."""
    try:
        is_cpu = "+cpu" in metadata.version("torch")
    except metadata.PackageNotFoundError:
        is_cpu = True
    path = root / "requirements" / ("cpu.lock" if is_cpu else "gpu.lock")
    return path if path.exists() else None


def hash_text(text: str) -> str:
    """First 16 hex digits of the text's sha256: enough to see a change, short enough to read."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def _find_file(root: Path, module: str, *, folder: Path) -> Path | None:
    package, _, rest = module.partition(".")
    base = (root / "labkit" if package == "labkit" else folder).joinpath(*filter(None, rest.split(".")))
    candidates = (base.with_suffix(".py"), base / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)
