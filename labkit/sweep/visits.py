"""What is finished? The journal of a sweep: one line per visit, one process at a time; damage hurts only its line."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from labkit.errors import LabkitError
from labkit.journal import append_lines, format_line, load_lines

__all__ = ["Visit", "append_visit_line", "format_key", "hold_sweep", "load_visits", "read_points", "read_samples"]

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


@dataclass(frozen=True, slots=True)
class Visit:
    """One point in one round (from 0): its samples by key, the seconds it took, the session that measured it."""

    round: int
    point: dict
    samples: dict[str, list[float]]
    seconds: float
    session: str


def load_visits(path: Path, digest: str) -> tuple[int, dict[tuple[int, str], Visit], int]:
    """Return the take, its finished visits by (round, point), and how many lines could not be used."""
    try:
        lines = load_lines(path)
    except FileNotFoundError:
        return 1, {}, 0
    except OSError as error:
        raise LabkitError(
            f"{path.name} cannot be read ({error.strerror}).", next_step="Look at its permissions, or remove it."
        ) from error
    own = [line for _, line in lines.entries if line.get("sweep") == digest]
    take, known, num_damaged = 1 + sum("closed" in line for line in own), {}, len(lines.damaged)
    for line in own:
        if "closed" in line or "identity" in line or line.get("take") != take:
            continue
        try:
            (point,) = read_points([line["point"]])
            visit = Visit(int(line["round"]), point, read_samples(line["samples"], point), float(line["seconds"]),
                          str(line["session"]))  # fmt: skip
        except (LabkitError, KeyError, TypeError, ValueError):
            num_damaged += 1
            continue
        known.setdefault((visit.round, format_key(point)), visit)  # a second line of one visit adds nothing
    return take, known, num_damaged


def append_visit_line(path: Path, line: dict, *, num_safe: int) -> None:
    """Put one line on the disk; `num_safe` visits are there already, for the error's sentence."""
    try:
        append_lines(path, [format_line(line)])
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = "the disk is full" if is_full else f"{path.name} cannot be written ({error.strerror})"
        raise LabkitError(
            f"the last visit was not stored: {why}. {num_safe} finished visits are safe.",
            next_step="Make room, then run the cell again: it goes on where it stopped.",
        ) from error


@contextlib.contextmanager
def hold_sweep(path: Path) -> Iterator[None]:
    """Hold the sweep for this process; the system lets go of it when the process ends, however it ends."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise LabkitError(
            f"the sweep cannot be kept: {path.parent} cannot be written ({error.strerror}).",
            next_step="Set LABKIT_RUNS to a folder of yours.",
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LabkitError(
                f"another process is running the sweep {path.stem} now.",
                next_step="Wait for it or stop it (another notebook?); two at once would disturb each other's times.",
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield
    finally:
        os.close(descriptor)


def read_points(points: Sequence[Mapping[str, object]]) -> tuple[dict, ...]:
    """Return the points as they will be read back from the journal (lists for tuples), or raise LabkitError."""
    plain = [dict(point) if isinstance(point, Mapping) else {} for point in points]
    grid = tuple(json.loads(format_key(point)) for point in plain)
    keys = [format_key(point) for point in grid]
    if not grid or not all(grid) or len(set(keys)) < len(keys):
        raise LabkitError(
            "the points of a sweep are dicts, each with its own values, and at least one.",
            next_step='Write them like [{"batch": 1}, {"batch": 2}].',
        )
    return grid


def read_samples(given: object, point: dict) -> dict[str, list[float]]:
    """Return what a measurement gave as lists of floats by key; LabkitError for anything else."""
    try:
        samples = {str(key): [float(value) for value in values] for key, values in given.items()}
    except (AttributeError, TypeError, ValueError):
        samples = {}
    if not samples or not all(values and all(map(math.isfinite, values)) for values in samples.values()):
        raise LabkitError(
            f"measure({format_key(point)}) returned {type(given).__name__}; expected lists of finite numbers by key.",
            next_step='Return samples such as {"step_s": [0.011, 0.012]}.',
        )
    return samples


def format_key(point: dict) -> str:
    """Return the text by which a point is known: its JSON with sorted keys."""
    try:
        return format_line(point)
    except (TypeError, ValueError) as error:
        raise LabkitError(f"a point holds what JSON cannot: {error}.", next_step="Use numbers and texts.") from None
