"""What do the events of a profile say? Self time and total time, idle time, and the depth of nested calls.

An event is a name with a start and an end. Events of one thread nest: a call lies inside its caller.

    total time    from start to end, including everything that was called inside
    self time     total time minus the total time of the direct children

Self times add up to the time that was covered. Total times add up to more, because a second inside a child counts for
the child and for every parent.
"""

import collections
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from labkit.errors import LabkitError

__all__ = [
    "ProfilerEvent",
    "IdleTime",
    "ProfileRow",
    "measure_depths",
    "measure_idle",
    "measure_self_times",
    "measure_table",
]


@dataclass(frozen=True, slots=True)
class ProfilerEvent:
    """One interval on one thread, or on one stream of a GPU.

    Attributes:
        name: the operator, module, kernel or function.
        start_s: when it started, in seconds on any one clock.
        end_s: when it ended, on the same clock.
        kind: "operator", "module", "step", "kernel" (on the GPU) or "runtime" (a call that launches one).
        thread: id of the thread, or "stream N".
        step: number of the profiled step from 0; None outside of every step.
    """

    name: str
    start_s: float
    end_s: float
    kind: str = "operator"
    thread: int | str = 0
    step: int | None = None

    @property
    def duration_s(self) -> float:
        """The seconds from start to end."""
        return self.end_s - self.start_s


@dataclass(frozen=True, slots=True)
class ProfileRow:
    """All calls of one name, counted as in torch's table.

    A call whose only child has the same name is a wrapper, and the two count as one call. Any other call inside a call
    of the same name counts again in `total_s`; in `self_s` nothing counts twice.

    Attributes:
        name: the name of the events.
        num_calls: number of calls.
        total_s: seconds from start to end, summed over the calls.
        self_s: seconds outside of the children, summed over the calls.
    """

    name: str
    num_calls: int
    total_s: float
    self_s: float


@dataclass(frozen=True, slots=True)
class IdleTime:
    """The time of a window in which nothing ran.

    Attributes:
        idle_s: seconds in which nothing ran.
        window_s: seconds of the window.
        gaps: the intervals (start, end) in which nothing ran, in order, in seconds on the clock of the events.
    """

    idle_s: float
    window_s: float
    gaps: tuple[tuple[float, float], ...]

    @property
    def fraction(self) -> float:
        """The share of the window in which nothing ran."""
        return self.idle_s / self.window_s


def measure_self_times(events: Sequence[ProfilerEvent]) -> list[float]:
    """Return the self time of each event in seconds, in the given order.

    A child that ends after its parent, because of the clock's rounding, counts up to the end of the parent.
    """
    own = [event.duration_s for event in events]
    for child, parent in _find_parents(events).items():
        if parent is not None:
            own[parent] -= min(events[child].end_s, events[parent].end_s) - events[child].start_s
    return own


def measure_depths(events: Sequence[ProfilerEvent]) -> list[int]:
    """Return for each event the number of events of its thread that enclose it, 0 for an outermost one."""
    depths: dict[int, int] = {}
    for index, parent in _find_parents(events).items():
        depths[index] = 0 if parent is None else depths[parent] + 1
    return [depths[index] for index in range(len(events))]


def measure_table(events: Sequence[ProfilerEvent]) -> tuple[ProfileRow, ...]:
    """Return one row per name, largest self time first."""
    rows: dict[str, list] = {}
    parents, own = _find_parents(events), measure_self_times(events)
    num_children = collections.Counter(parents.values())
    for index, event in enumerate(events):
        row, parent = rows.setdefault(event.name, [0, 0.0, 0.0]), parents[index]
        row[2] += own[index]
        if parent is None or events[parent].name != event.name or num_children[parent] > 1:
            row[0] += 1
            row[1] += event.duration_s
    found = (ProfileRow(name, *row) for name, row in rows.items())
    return tuple(sorted(found, key=lambda row: (-row.self_s, row.name)))


def measure_idle(intervals: Iterable[tuple[float, float]], *, start_s: float, end_s: float) -> IdleTime:
    """Return the time of the window [start_s, end_s] in which none of the intervals (start, end) ran.

    Intervals may overlap, nest, be in any order and extend beyond the window. On a CPU the intervals are the operators,
    and the rest is Python and dispatch; on a GPU they are the kernels of all streams.
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
    return IdleTime(sum(end - start for start, end in gaps), end_s - start_s, tuple(gaps))


def _find_parents(events: Sequence[ProfilerEvent]) -> dict[int, int | None]:
    """Return {index: index of the innermost event of its thread in which it starts, or None}, parents first."""
    parents: dict[int, int | None] = {}
    # Of two events that start together the longer one is the parent; of two equal ones, the first given.
    order = sorted(range(len(events)), key=lambda k: (str(events[k].thread), events[k].start_s, -events[k].end_s, k))
    stack: list[int] = []
    thread: str | None = None
    for index in order:
        event = events[index]
        if str(event.thread) != thread:
            stack, thread = [], str(event.thread)
        while stack and events[stack[-1]].end_s <= event.start_s:
            stack.pop()
        # An event of zero length at the end of another one has no parent: that one was popped above.
        parents[index] = stack[-1] if stack else None
        stack.append(index)
    return parents
