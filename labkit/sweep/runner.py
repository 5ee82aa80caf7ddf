"""Visit every point in every round, in a seeded order, within a time budget."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from labkit.errors import LabkitError
from labkit.journal import format_line
from labkit.results import find_runs_folder
from labkit.sweep.line import ProgressLine, format_point
from labkit.sweep.visits import (
    Visit,
    append_visit_line,
    format_key,
    hold_sweep,
    load_visits,
    read_points,
    read_samples,
)

__all__ = ["Sweep", "close_sweep", "run_sweep"]


@dataclass(frozen=True, slots=True)
class Sweep:
    """What is measured so far. `left` are the (round, point) that are not; `num_new` visits were made by this call.

    `take` counts from 1 and goes up when a sweep was closed. `num_damaged` lines of the file could not be used.
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
                f"sweep {self.name} has no samples {key!r} at {format_point(point)}.",
                next_step="Look at its points and keys.",
            )
        return found

    def samples(self, key: str, **point: object) -> list[float]:
        """Return all samples of a point in one list, in the order of the rounds."""
        return [value for one in self.rounds(key, **point) for value in one]

    def to_dict(self) -> dict:
        """What a record keeps of the way it was measured."""
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

    `measure(point)` returns samples by key, lists of finite numbers; it warms up for itself. points: dicts of JSON
    values; settings: what else decides the numbers. The identity is settings, model (name, source, dtype), machine and
    versions; points, num_rounds and budget_s are not in it: a wider grid goes on from what is there. Nor is what
    `measure` does: when you change that, change a setting. budget_s: of this call; a visit that would not fit is not
    begun, judged by the longest visit so far (of that point, else of any). folder: data/runs/sweeps of the course
    (LABKIT_RUNS) unless given. What `measure` raises ends the run; so does a LabkitError for points, samples, a full
    disk, or another process that runs this sweep.
    """
    grid = read_points(points)
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
    with hold_sweep(path):
        take, known, num_damaged = load_visits(path, digest)
        if not path.exists():
            append_visit_line(path, {"sweep": digest, "identity": identity}, num_safe=0)
        plan = list(_plan(grid, num_rounds, seed))
        todo = [(number, point) for number, point in plan if (number, format_key(point)) not in known]
        with ProgressLine(name, num_all=len(plan), num_done=len(plan) - len(todo), is_quiet=is_quiet) as progress:
            while todo:
                number, point = todo[0]
                spent_s, next_s = clock() - begin_s, _estimate_visit(known.values(), point)
                if budget_s is not None and spent_s + next_s > budget_s:
                    break
                progress.show(point, number, left_s=sum(_estimate_visit(known.values(), one) for _, one in todo))
                start_s = clock()
                samples = read_samples(measure(dict(point)), point)
                visit = Visit(number, point, samples, clock() - start_s, session)
                line = {"sweep": digest, "take": take, "round": number, "point": point, "samples": samples}
                line |= {"seconds": visit.seconds, "session": session}
                line |= {"time": datetime.now(UTC).isoformat(timespec="seconds")}
                append_visit_line(path, line, num_safe=len(known))
                known[number, format_key(point)] = visit
                num_new += 1
                del todo[0]
                progress.num_done += 1
            progress.end(todo)
    wanted = {(number, format_key(point)) for number, point in plan}
    visits = tuple(known[key] for key in sorted(wanted & known.keys()))
    return Sweep(name, digest, take, path, grid, num_rounds, seed, visits, tuple(todo), num_new, num_damaged)


def close_sweep(sweep: Sweep, *, record: str) -> None:
    """Mark a sweep as done: its samples are in `record` (an id). The next `run_sweep` of this identity begins anew."""
    with hold_sweep(sweep.path):
        take, known, _ = load_visits(sweep.path, sweep.id)
        if take == sweep.take:
            append_visit_line(sweep.path, {"sweep": sweep.id, "take": take, "closed": record}, num_safe=len(known))


def _plan(grid: Sequence[dict], num_rounds: int, seed: int) -> Iterator[tuple[int, dict]]:
    for number in range(num_rounds):
        for place in np.random.default_rng([seed, number]).permutation(len(grid)):
            yield number, grid[place]


def _estimate_visit(visits, point: dict) -> float:
    """Seconds that a visit may take: the longest one of this point; of any point where this one is new."""
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
