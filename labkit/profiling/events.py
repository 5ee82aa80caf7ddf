"""What do events say? Self against total time, time in which nothing ran, and the depth of nested calls.

An event is a name with a start and an end. Events of one thread nest: a call lies inside the call that made it.

    total time    from start to end, with everything that was called inside
    self time     total time minus the time of the direct children: what the event did itself

Self times add up to the time that was covered; total times add up to more, because a second inside a child is counted
for the child and for every parent.
"""

import collections
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from labkit.errors import LabkitError

__all__ = ["Event", "Idle", "TableRow", "measure_depths", "measure_idle", "measure_self_times", "measure_table"]


@dataclass(frozen=True, slots=True)
class Event:
    """One interval on one thread (or one stream of a GPU), in seconds on any one clock.

    `kind`: "operator", "module", "step", "kernel" (on the GPU) or "runtime" (a call that starts one). `step` counts
    from 0; None outside every step.
    """

    name: str
    start_s: float
    end_s: float
    kind: str = "operator"
    thread: int | str = 0
    step: int | None = None

    @property
    def duration_s(self) -> float:
        """From start to end."""
        return self.end_s - self.start_s


@dataclass(frozen=True, slots=True)
class TableRow:
    """All calls of one name.

    As in torch's table: a call whose only child has the same name is a wrapper, and both count as one call; any other
    call inside a call of the same name counts again in `total_s` (in `self_s` nothing counts twice).
    """

    name: str
    num_calls: int
    total_s: float
    self_s: float


@dataclass(frozen=True, slots=True)
class Idle:
    """The time of a window in which no interval ran; `gaps` are those intervals (start, end), in order."""

    idle_s: float
    window_s: float
    gaps: tuple[tuple[float, float], ...]

    @property
    def fraction(self) -> float:
        """Idle time over the window."""
        return self.idle_s / self.window_s

    @property
    def longest_s(self) -> float:
        """The longest gap, 0 where there is none."""
        return max((end - start for start, end in self.gaps), default=0.0)


def measure_self_times(events: Sequence[Event]) -> list[float]:
    """Return the self time of each event, in seconds and in the order given.

    A child that ends after its parent (by a rounding of the clock) counts in the parent up to the parent's end.
    """
    own = [event.duration_s for event in events]
    for child, parent in enumerate(_find_parents(events)):
        if parent is not None:
            own[parent] -= min(events[child].end_s, events[parent].end_s) - events[child].start_s
    return own


def measure_depths(events: Sequence[Event]) -> list[int]:
    """Return for each event inside how many others of its thread it lies: 0 for an outermost one."""
    parents = _find_parents(events)
    depths: list[int | None] = [None] * len(events)
    for index in range(len(events)):
        chain, at = [], index
        while depths[at] is None and parents[at] is not None:
            chain.append(at)
            at = parents[at]
        depth = depths[at] = depths[at] or 0
        for number, below in enumerate(reversed(chain), start=1):
            depths[below] = depth + number
    return depths


def measure_table(events: Sequence[Event]) -> tuple[TableRow, ...]:
    """Return one row per name, the largest self time first."""
    rows: dict[str, list] = {}
    parents = _find_parents(events)
    num_children = collections.Counter(parents)
    for event, parent, self_s in zip(events, parents, measure_self_times(events), strict=True):
        row = rows.setdefault(event.name, [0, 0.0, 0.0])
        row[2] += self_s
        if parent is None or events[parent].name != event.name or num_children[parent] > 1:
            row[0] += 1
            row[1] += event.duration_s
    return tuple(sorted((TableRow(name, *row) for name, row in rows.items()), key=lambda row: (-row.self_s, row.name)))


def measure_idle(intervals: Iterable[tuple[float, float]], *, start_s: float, end_s: float) -> Idle:
    """Return the gaps of the window [start_s, end_s] in which none of the intervals (start, end) ran.

    Intervals may overlap, nest, stand in any order and reach out of the window. On a processor the intervals are those
    of the operators, and the rest is Python and dispatch; on a GPU they are the kernels of all streams.
    """
    if not end_s > start_s:
        raise LabkitError(f"the window runs from {start_s} to {end_s} s.", next_step="give an end after the start.")
    gaps, reached = [], start_s
    for start, end in sorted(one for one in intervals if one[1] > one[0]):
        if start >= end_s:
            break
        if start > reached:
            gaps.append((reached, start))
        reached = max(reached, end)
    if reached < end_s:
        gaps.append((reached, end_s))
    return Idle(sum(end - start for start, end in gaps), end_s - start_s, tuple(gaps))


def _find_parents(events: Sequence[Event]) -> list[int | None]:
    """Return for each event the index of the innermost event of its thread that it begins inside, or None."""
    parents: list[int | None] = [None] * len(events)
    # Of two that begin together the longer one is the parent; of two equal ones the first given.
    order = sorted(range(len(events)), key=lambda k: (str(events[k].thread), events[k].start_s, -events[k].end_s, k))
    stack: list[int] = []
    thread: str | None = None
    for index in order:
        event = events[index]
        if str(event.thread) != thread:
            stack, thread = [], str(event.thread)
        while stack and events[stack[-1]].end_s <= event.start_s:
            stack.pop()
        # An event of no length at the very end of a finished one belongs to nobody: it was popped above.
        parents[index] = stack[-1] if stack else None
        stack.append(index)
    return parents
