"""Which files belong to the course: those in git's index, never whatever else lies in the folder.

A learner's notes, checkpoints, logs and notebooks lie beside the course's files and must not fail its tests.
"""

import functools
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@functools.cache
def list_tracked(root: Path = ROOT) -> list[str] | None:
    """Paths in git's index, relative to `root`; None if `root` is not a git checkout of its own."""
    try:
        done = subprocess.run(["git", "ls-files", "-z", "--cached"], cwd=root, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    names = [name for name in done.stdout.split("\0") if name and (root / name).exists()]
    return names if done.returncode == 0 and names else None


def glob_tracked(pattern: str, root: Path = ROOT) -> list[Path]:
    """The tracked files that match, sorted; without git all that match."""
    names = list_tracked(root)
    paths = sorted(root.glob(pattern))
    return paths if names is None else [path for path in paths if path.relative_to(root).as_posix() in set(names)]
