"""Where is the sweep? One line of plain text that is written over."""

from __future__ import annotations

import sys

from labkit.units import format_seconds

__all__ = ["ProgressLine", "format_point"]

_BAR = 24  # characters


def format_point(point: dict) -> str:
    """Write {"batch": 8} as "batch 8"."""
    return ", ".join(f"{key} {value}" for key, value in point.items())


class ProgressLine:
    """One line of plain text that is written over: a bar, counts, time left, and where the sweep is.

    A terminal and a notebook show it live (a carriage return goes back to the line's beginning); a file gets the last
    line only.
    """

    def __init__(self, name: str, *, num_all: int, num_done: int, is_quiet: bool) -> None:
        self.name, self.num_all, self.num_done, self.is_quiet = name, num_all, num_done, is_quiet
        self.is_live = sys.stdout.isatty() or "ipykernel" in sys.modules
        self.num_before, self.width = num_done, 0

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is not None:
            self._write(f"stopped ({kind.__name__}); what is finished is kept: run it again to go on", is_last=True)

    def show(self, point: dict, number: int, *, left_s: float) -> None:
        """Say which visit begins, and how long all that is left may take."""
        left = f"about {format_seconds(left_s)} left" if left_s else "no estimate yet"
        self._write(f"{left}; round {number + 1}, {format_point(point)}", is_last=False)

    def end(self, todo: list[tuple[int, dict]]) -> None:
        """Say how the run ended: all done, or which visits the time budget left."""
        kept = f" ({self.num_before} from an earlier run)" if self.num_before else ""
        left = "; ".join(f"{format_point(point)} (round {number + 1})" for number, point in todo[:6])
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
