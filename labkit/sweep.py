"""How does it change from point to point? A grid is measured in rounds, and what is finished survives a crash.

    sweep = run_sweep("decode", measure, [{"batch": 1}, {"batch": 2}], settings={"steps": 12}, num_rounds=5)
    sweep.samples("step_s", batch=2)

A *visit* is one point in one round. Each round visits every point once, in its own seeded order, so that a machine that
slows down does not look like a curve. A finished visit is one line of a journal, on the disk before the next begins:
whatever ends the run, the next call resumes where it stopped and measures no visit twice. Samples belong to an identity
(settings, model, machine, versions): with a different one a sweep starts over, in another file. `close_sweep` marks a
sweep whose samples are in a record; the next call measures afresh.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from labkit.errors import LabkitError
from labkit.journal import append_lines, format_line, load_lines, lock_file
from labkit.results import find_runs_folder
from labkit.units import format_seconds

__all__ = ["Sweep", "Visit", "close_sweep", "run_sweep"]

_BAR = 24  # characters


@dataclass(frozen=True, slots=True)
class Visit:
    """One point in one round.

    Attributes:
        round: from 0
        point: JSON values by name
        samples: lists of numbers by key
        seconds: how long the visit took
        session: of the call of `run_sweep` that measured it
    """

    round: int
    point: dict
    samples: dict[str, list[float]]
    seconds: float
    session: str


@dataclass(frozen=True, slots=True)
class Sweep:
    """What has been measured so far.

    Attributes:
        name: of the sweep
        id: 16 hex digits of the hash of its identity
        take: counts from 1; one more after each `close_sweep`
        path: of the journal
        points: the grid
        num_rounds: how often each point is visited
        seed: of the order
        visits: the finished visits, by round
        left: (round, point) of each visit that is not done
        num_new: visits made by this call
        num_damaged: lines of the journal that could not be used
    """

    name: str
    id: str
    take: int
    path: Path
    points: tuple[dict, ...]
    num_rounds: int
    seed: int
    visits: tuple[Visit, ...]
    left: tuple[tuple[int, dict], ...]
    num_new: int
    num_damaged: int

    @property
    def is_complete(self) -> bool:
        """Every point was visited in every round."""
        return not self.left

    def rounds(self, key: str, **point: object) -> list[list[float]]:
        """Return the samples of a point, one list per visit, in the order of the rounds; LabkitError without any."""
        found = [one.samples[key] for one in self.visits if one.point == point and key in one.samples]
        if not found:
            raise LabkitError(
                f"sweep {self.name} has no samples {key!r} at {_format_point(point)}.",
                next_step="Look at its points and keys.",
            )
        return found

    def samples(self, key: str, **point: object) -> list[float]:
        """Return all samples of a point in one list, in the order of the rounds."""
        return [value for one in self.rounds(key, **point) for value in one]

    def to_dict(self) -> dict:
        """Return what a record keeps about how it was measured."""
        return {
            "sweep": self.id, "take": self.take, "num_rounds": self.num_rounds, "seed": self.seed,
            "num_points": len(self.points), "num_sessions": len({one.session for one in self.visits}),
            "left": [[number, point] for number, point in self.left],
            "order": "each round visits every point once, in a seeded random order",
        }  # fmt: skip


def run_sweep(
    name: str,
    measure: Callable[[dict], Mapping[str, Sequence[float]]],
    points: Sequence[Mapping[str, object]],
    *,
    settings: Mapping[str, object],
    model: object | None = None,
    num_rounds: int = 5,
    budget_s: float | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
    is_quiet: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> Sweep:
    """Visit every point in every round, skip what an earlier run has finished, and return all samples.

    `measure(point)` returns samples by key, lists of finite numbers; it does its own warm-up. points: dicts of JSON
    values; settings: what else determines the numbers. The identity is settings, model (name, source, dtype), machine
    and versions. Points, num_rounds and budget_s are not part of it: a wider grid resumes from what is there. Nor is
    the code of `measure`: when you change it, change a setting. budget_s: seconds of this call; a visit that would not
    fit is not started, judged by the longest visit so far (of that point, else of any). folder: by default
    data/runs/sweeps of the course, or LABKIT_RUNS. Whatever `measure` raises ends the run. Raises LabkitError for
    points, samples, a full disk, or another process that runs this sweep.
    """
    grid = _read_points(points)
    if num_rounds < 1 or (budget_s is not None and not budget_s >= 0):
        raise LabkitError(
            f"num_rounds {num_rounds} and budget_s {budget_s} are no plan.", next_step="Ask for at least one round."
        )
    identity = _estimate_identity(name, settings, model)
    try:
        digest = hashlib.sha256(format_line(identity).encode()).hexdigest()[:16]
    except (TypeError, ValueError) as error:
        raise LabkitError(f"settings that JSON cannot hold: {error}.", next_step="Use numbers and texts.") from None
    path = _find_folder(folder) / f"{name}-{digest}.jsonl"
    session, num_new, begin_s = uuid.uuid4().hex[:8], 0, clock()
    with _hold_sweep(path):
        take, known, num_damaged = _load_visits(path, digest)
        if not path.exists():
            _append_visit_line(path, {"sweep": digest, "identity": identity}, num_safe=0)
        plan = list(_plan(grid, num_rounds, seed))
        todo = [(number, point) for number, point in plan if (number, _format_key(point)) not in known]
        with _ProgressLine(name, num_all=len(plan), num_done=len(plan) - len(todo), is_quiet=is_quiet) as progress:
            while todo:
                number, point = todo[0]
                spent_s, next_s = clock() - begin_s, _estimate_visit(known.values(), point)
                if budget_s is not None and spent_s + next_s > budget_s:
                    break
                progress.show(point, number, left_s=sum(_estimate_visit(known.values(), one) for _, one in todo))
                start_s = clock()
                samples = _read_samples(measure(dict(point)), point)
                visit = Visit(number, point, samples, clock() - start_s, session)
                line = {"sweep": digest, "take": take, "round": number, "point": point, "samples": samples}
                line |= {"seconds": visit.seconds, "session": session}
                line |= {"time": datetime.now(UTC).isoformat(timespec="seconds")}
                _append_visit_line(path, line, num_safe=len(known))
                known[number, _format_key(point)] = visit
                num_new += 1
                del todo[0]
                progress.num_done += 1
            progress.end(todo)
    wanted = {(number, _format_key(point)) for number, point in plan}
    visits = tuple(known[key] for key in sorted(wanted & known.keys()))
    return Sweep(name, digest, take, path, grid, num_rounds, seed, visits, tuple(todo), num_new, num_damaged)


def close_sweep(sweep: Sweep, *, record: str) -> None:
    """Mark a sweep as done: its samples are in `record` (an id). The next `run_sweep` of this identity starts over."""
    with _hold_sweep(sweep.path):
        take, known, _ = _load_visits(sweep.path, sweep.id)
        if take == sweep.take:
            _append_visit_line(sweep.path, {"sweep": sweep.id, "take": take, "closed": record}, num_safe=len(known))


def _plan(grid: Sequence[dict], num_rounds: int, seed: int) -> Iterator[tuple[int, dict]]:
    for number in range(num_rounds):
        for place in np.random.default_rng([seed, number]).permutation(len(grid)):
            yield number, grid[place]


def _estimate_visit(visits, point: dict) -> float:
    """Return the seconds of the longest visit to this point; to any point if this one is new."""
    own = [visit.seconds for visit in visits if visit.point == point]
    return max(own or [visit.seconds for visit in visits], default=0.0)


def _estimate_identity(name: str, settings: Mapping[str, object], model: object | None) -> dict:
    from labkit.results.provenance import probe_provenance

    made = probe_provenance()
    cpu, gpus = made["host"]["cpu"], made["host"]["gpus"]
    given = model if isinstance(model, Mapping) else {key: getattr(model, key, None) for key in ("name", "source")}
    given = dict(given) | ({"dtype": str(model.dtype)} if hasattr(model, "dtype") else {})
    return {
        "name": name, "settings": dict(settings), "model": given if model is not None else None,
        "machine": {"cpu": cpu["name"], "num_cores": cpu["num_cores"], "memory_bytes": made["host"]["memory_bytes"],
                    "gpus": [gpu["name"] for gpu in gpus], "tier": made["tier"]},
        "versions": made["engines"], "python": made["host"]["python"],
    }  # fmt: skip


def _find_folder(folder: str | Path | None) -> Path:
    return find_runs_folder(folder) if folder is not None else find_runs_folder() / "sweeps"


def _load_visits(path: Path, digest: str) -> tuple[int, dict[tuple[int, str], Visit], int]:
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
            (point,) = _read_points([line["point"]])
            visit = Visit(int(line["round"]), point, _read_samples(line["samples"], point), float(line["seconds"]),
                          str(line["session"]))  # fmt: skip
        except (LabkitError, KeyError, TypeError, ValueError):
            num_damaged += 1
            continue
        known.setdefault((visit.round, _format_key(point)), visit)  # a second line of one visit adds nothing
    return take, known, num_damaged


def _append_visit_line(path: Path, line: dict, *, num_safe: int) -> None:
    """Put one line on the disk; `num_safe` visits are there already, for the error's sentence."""
    try:
        append_lines(path, [format_line(line)])
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = "the disk is full" if is_full else f"{path.name} cannot be written ({error.strerror})"
        raise LabkitError(
            f"the last visit was not stored: {why}. {num_safe} finished visits are safe.",
            next_step="Make room, then run the cell again: it resumes where it stopped.",
        ) from error


@contextlib.contextmanager
def _hold_sweep(path: Path) -> Iterator[None]:
    """Hold the sweep's lock; the system releases it when the process ends, however it ends."""
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
            lock_file(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LabkitError(
                f"another process is running the sweep {path.stem} now.",
                next_step="Wait for it or stop it (another notebook?); two at once would disturb each other's times.",
            ) from None
        yield
    finally:
        os.close(descriptor)


def _read_points(points: Sequence[Mapping[str, object]]) -> tuple[dict, ...]:
    """Return the points as the journal will give them back (lists for tuples), or raise LabkitError."""
    plain = [dict(point) if isinstance(point, Mapping) else {} for point in points]
    grid = tuple(json.loads(_format_key(point)) for point in plain)
    keys = [_format_key(point) for point in grid]
    if not grid or not all(grid) or len(set(keys)) < len(keys):
        raise LabkitError(
            "the points of a sweep are dicts, each with its own values, and at least one.",
            next_step='Write them like [{"batch": 1}, {"batch": 2}].',
        )
    return grid


def _read_samples(given: object, point: dict) -> dict[str, list[float]]:
    """Return what a measurement returned, as lists of floats by key; LabkitError for anything else."""
    try:
        samples = {str(key): [float(value) for value in values] for key, values in given.items()}
    except (AttributeError, TypeError, ValueError):
        samples = {}
    if not samples or not all(values and all(map(math.isfinite, values)) for values in samples.values()):
        raise LabkitError(
            f"measure({_format_key(point)}) returned {type(given).__name__}; expected lists of finite numbers by key.",
            next_step='Return samples such as {"step_s": [0.011, 0.012]}.',
        )
    return samples


def _format_key(point: dict) -> str:
    """Return a point's key: its JSON with sorted keys."""
    try:
        return format_line(point)
    except (TypeError, ValueError) as error:
        raise LabkitError(f"a point holds what JSON cannot: {error}.", next_step="Use numbers and texts.") from None


def _format_point(point: dict) -> str:
    """Write {"batch": 8} as "batch 8"."""
    return ", ".join(f"{key} {value}" for key, value in point.items())


class _ProgressLine:
    """One line of plain text that is overwritten: a bar, counts, the time left, and the current point.

    A terminal and a notebook show it live (a carriage return goes back to the start of the line); a file gets only the
    last line.
    """

    def __init__(self, name: str, *, num_all: int, num_done: int, is_quiet: bool) -> None:
        self.name, self.num_all, self.num_done, self.is_quiet = name, num_all, num_done, is_quiet
        self.is_live = sys.stdout.isatty() or "ipykernel" in sys.modules
        self.num_before, self.width = num_done, 0

    def __enter__(self) -> _ProgressLine:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is not None:
            self._write(f"stopped ({kind.__name__}); what is finished is kept: run it again to resume", is_last=True)

    def show(self, point: dict, number: int, *, left_s: float) -> None:
        """Show which visit starts, and how long the remaining ones may take."""
        left = f"about {format_seconds(left_s)} left" if left_s else "no estimate yet"
        self._write(f"{left}; round {number + 1}, {_format_point(point)}", is_last=False)

    def end(self, todo: list[tuple[int, dict]]) -> None:
        """Show how the run ended: all done, or which visits did not fit into the time budget."""
        kept = f" ({self.num_before} from an earlier run)" if self.num_before else ""
        left = "; ".join(f"{_format_point(point)} (round {number + 1})" for number, point in todo[:6])
        more = f" and {len(todo) - 6} more" if len(todo) > 6 else ""
        said = f"time budget used up, left: {left}{more}" if todo else "all visits done"
        self._write(said + kept, is_last=True)

    def _write(self, text: str, *, is_last: bool) -> None:
        if self.is_quiet or not (self.is_live or is_last):
            return
        done = round(_BAR * self.num_done / self.num_all)
        line = f"{self.name} [{'#' * done}{'.' * (_BAR - done)}] {self.num_done} of {self.num_all} visits; {text}"
        blank = " " * max(0, self.width - len(line))
        self.width = len(line)
        sys.stdout.write(("\r" if self.is_live else "") + line + blank + ("\n" if is_last else ""))
        sys.stdout.flush()
