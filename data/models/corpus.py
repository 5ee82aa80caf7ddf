"""What are the small models trained on? Permissively licensed Python source that the locked environment contains.

The corpus is never downloaded: it is the standard library of the running Python plus the pure-Python files of the
pinned packages. The held-out packages (`data/eval/`) are left out as a whole, so no model sees any of their files.
Everything is ordered by SHA-256, so the same environment gives the same corpus.
"""

import hashlib
import importlib.metadata as metadata
import re
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

# Pinned, pure Python, permissive, small wheels: used for evaluation only (data/eval/manifest.csv lists the files).
HELD_OUT = (
    "fastapi", "httpx", "jupyter-server", "mistune", "nbconvert", "networkx", "rich", "starlette", "tornado", "uvicorn",
)  # fmt: skip
# These contain text of a held-out package: they are forks (httpx2) or generated from the same template.
FORKS = ("httpx2", "httpcore2", "sse-starlette", "fastapi-cli", "fastapi-cloud-cli", "rich-toolkit")
NOT_READ = {"labkit", "pip", "setuptools", "uv"}  # our own, or in a version that depends on the machine
PERMISSIVE = re.compile(r"\b(MIT|BSD|Apache|ISC|PSF|Python Software Foundation|0BSD|HPND|Unlicense)\b", re.I)
COPYLEFT = re.compile(r"GPL|MPL|Mozilla|EPL|CDDL|CC-BY-SA", re.I)
SKIPPED_FOLDERS = {"test", "tests", "testing", "idlelib", "lib2to3", "turtledemo", "site-packages", "validators"}
SKIPPED_FOLDERS |= {"_vendor", "_vendored", "vendor", "vendored_packages", "third_party", "__pycache__", "graph_objs"}
MAX_BYTES_PER_PACKAGE = 1_200_000  # keeps a large package from dominating


@dataclass(frozen=True, slots=True)
class Source:
    """One package in the corpus.

    Attributes:
        name: normalized name of the package, or "standard library".
        version: its installed version.
        licence: its licence in one line, as it declares it.
        files: paths of the Python files that it contributes.
    """

    name: str
    version: str
    licence: str
    files: tuple[Path, ...]


def iter_sources() -> Iterator[Source]:
    """Yield the standard library, then every installed package under a permissive licence, ordered by name."""
    import platform

    stdlib = Path(sysconfig.get_path("stdlib"))
    files = tuple(_readable(stdlib, stdlib.rglob("*.py")))
    yield Source("standard library", platform.python_version(), "PSF-2.0", files)
    left_out = {_normal(name) for name in HELD_OUT + FORKS} | NOT_READ
    for dist in sorted(metadata.distributions(), key=lambda d: _normal(d.metadata["Name"])):
        name, licence = _normal(dist.metadata["Name"]), _licence(dist)
        if name in left_out or not PERMISSIVE.search(licence) or COPYLEFT.search(licence):
            continue
        paths = (Path(dist.locate_file(f)) for f in dist.files or () if f.suffix == ".py")
        files = tuple(_readable(Path(dist.locate_file("")), paths))
        if files:
            yield Source(name, dist.version, licence, files)


def load_documents() -> tuple[list[str], list[dict]]:
    """Return the corpus's texts in a fixed shuffled order, and one row per source for the model card."""
    documents, rows, seen_lines = [], [], set()
    for source in iter_sources():
        kept, size = 0, 0
        cap = None if source.name == "standard library" else MAX_BYTES_PER_PACKAGE
        for text in sorted(filter(None, map(_text, source.files)), key=_digest):
            lines = [line for line in text.splitlines() if len(line.strip()) > 20]
            fresh = [line for line in lines if line not in seen_lines]
            # Near-copies (generated clients, forks of one model file) add nothing new.
            if len(fresh) < 0.5 * len(lines) or (cap and size + len(text) > cap):
                continue
            seen_lines.update(lines)
            documents.append(text)
            kept, size = kept + 1, size + len(text)
        if kept:
            rows.append({"package": source.name, "version": source.version, "licence": source.licence,
                         "num_files": kept, "num_characters": size})  # fmt: skip
    return sorted(documents, key=_digest), rows


def _readable(root: Path, paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        folders = path.relative_to(root).parts[:-1] if path.is_relative_to(root) else ("tests",)
        if SKIPPED_FOLDERS.isdisjoint(folders) and not re.search(r"(_pb2|_pb2_grpc|tables?)\.py$", path.name):
            yield path


def _text(path: Path) -> str | None:
    """Return the file's text, or None if it is too short, too long, not UTF-8, or data rather than code."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    lines = text.count("\n") + 1
    digits = sum(map(str.isdigit, text))
    if not 300 < len(text) < 120_000 or len(text) / lines > 70 or digits > 0.1 * len(text):
        return None
    return text


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _licence(dist: metadata.Distribution) -> str:
    """Return the licence in one line: the SPDX expression, else the classifiers, else the field's first line."""
    if expression := dist.metadata.get("License-Expression"):
        return expression
    classifiers = [c for c in dist.metadata.get_all("Classifier") or () if c.startswith("License ::")]
    if classifiers:
        return "; ".join(c.rsplit(" :: ", 1)[-1] for c in classifiers)
    return (dist.metadata.get("License") or "").strip().split("\n")[0][:80]
