"""Which versions does a lock name, which are installed, and what has changed since?"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Lock:
    """A lock file, read.

    Attributes:
        path: the file
        torch: the version of torch's CPU wheel, which is installed apart; None where torch is one of the pins
        pins: {name: version} of everything else
        sha256: of the file's bytes
    """

    path: Path
    torch: str | None
    pins: dict[str, str]
    sha256: str


def load_lock(path: Path) -> Lock:
    data = path.read_bytes()
    pins = find_pins(data.decode("utf-8"))
    torch = pins.pop("torch") if re.search(rb"^# torch==", data, flags=re.MULTILINE) else None
    return Lock(path=path, torch=torch, pins=pins, sha256=hashlib.sha256(data).hexdigest())


def load_pins(path: Path) -> dict[str, str]:
    """{name: version} of a lock; torch's line is a comment in the CPU lock and counts."""
    return find_pins(Path(path).read_text(encoding="utf-8"))


def find_pins(text: str) -> dict[str, str]:
    return dict(re.findall(r"^(?:# (?=torch==))?([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)", text, flags=re.MULTILINE))


def normalise(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def list_installed(site: Path) -> dict[str, str]:
    """{normalised name: version} from the metadata folders in a site-packages, without importing anything."""
    names = [folder.stem for folder in site.iterdir() if folder.suffix == ".dist-info"] if site.is_dir() else []
    return {normalise(name): version for name, _, version in (name.rpartition("-") for name in names)}


def is_version(seen: str | None, wanted: str) -> bool:
    """Compare as pip does: 1.0 is 1.0.0, and a wanted version that names no build is any build of it."""

    def split(text):
        parts = [int(part) if part.isdigit() else part for part in re.findall(r"\d+|[a-z]+", text)]
        while parts and parts[-1] == 0:
            parts.pop()
        return parts

    public, _, build = wanted.partition("+")
    seen_public, _, seen_build = (seen or "").partition("+")
    return split(seen_public) == split(public) and build in ("", seen_build)


def find_missing(pins: dict[str, str], installed: dict[str, str]) -> list[str]:
    """Names of the pins that are not installed at their version."""
    return sorted(name for name, version in pins.items() if not is_version(installed.get(normalise(name)), version))
