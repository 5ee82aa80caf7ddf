"""How well does this learner predict? Every prediction over its measurement, and what the ratios say together.

A ratio is a factor, so it is judged on a logarithmic scale: twice too high and twice too low are equally far from 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from labkit.progress.course import load_course
from labkit.progress.events import load_events
from labkit.progress.state import CourseState, Prediction, estimate_state
from labkit.stats import Interval, summarize
from labkit.units import format_number, is_number

__all__ = ["Calibration", "estimate_calibration", "format_calibration", "load_calibration"]


@dataclass(frozen=True, slots=True)
class Calibration:
    """All predictions that can be judged, and how many cannot; those not measured yet are not counted.

    Attributes:
        predictions: given in time, with two numbers above 0
        num_skipped: measured without a prediction
        num_late: predicted only after the measurement
        num_signless: one of the two is zero, negative or not a number, so that no factor describes them
    """

    predictions: tuple[Prediction, ...]
    num_skipped: int = 0
    num_late: int = 0
    num_signless: int = 0

    @property
    def n(self) -> int:
        """How many predictions were judged."""
        return len(self.predictions)

    @property
    def median_ratio(self) -> float | None:
        """The median ratio: above 1 most predictions are too high. None without a prediction."""
        return math.exp(summarize(self._logs()).p50) if self.predictions else None

    @property
    def typical_factor(self) -> float | None:
        """How far from 1 the median prediction is, in either direction: 2 is half or twice. None without one."""
        return math.exp(summarize([abs(x) for x in self._logs()]).p50) if self.predictions else None

    @property
    def interval(self) -> Interval | None:
        """The 95 % interval of the median ratio, from six predictions on."""
        found = summarize(self._logs()).p50_interval if self.predictions else None
        return found and Interval(math.exp(found.low), math.exp(found.high), found.confidence)

    def _logs(self) -> list[float]:
        return [math.log(one.predicted) - math.log(one.measured) for one in self.predictions]


def estimate_calibration(state: CourseState) -> Calibration:
    """Take every prediction of the course that was measured, in the course's order."""
    return _sort(prediction for lab in state.labs for prediction in lab.predictions)


def load_calibration() -> Calibration:
    """Judge this learner's own predictions, of all labs."""
    return estimate_calibration(estimate_state(load_course(), load_events()))


def format_calibration(calibration: Calibration) -> str:
    """Write one line: n, the median ratio with its direction and spread, and what was left out."""
    left = (
        (calibration.num_skipped, "skipped"),
        (calibration.num_late, "given too late"),
        (calibration.num_signless, "without a factor (zero or negative)"),
    )
    notes = "; ".join(f"{count} {word}, not counted" for count, word in left if count)
    if not calibration.n:
        return "Predictions: none measured yet" + (f" ({notes})." if notes else ".")
    ratio, factor = calibration.median_ratio, calibration.typical_factor
    side = "too high" if ratio > 1 else "too low" if ratio < 1 else "right"
    found = calibration.interval
    spread = f"95 % interval {format_number(found.low)} to {format_number(found.high)}" if found else "n too small"
    text = f"Predictions: n = {calibration.n}, median predicted over measured {format_number(ratio)} ({side}; {spread})"
    return f"{text}, typically a factor of {format_number(factor)} off{f'; {notes}' if notes else ''}."


def _sort(predictions: Iterable[Prediction]) -> Calibration:
    judged, skipped, late, signless = [], 0, 0, 0
    for item in predictions:
        if item.measured is None:
            continue
        if item.predicted is None:
            skipped += 1
        elif item.is_late:
            late += 1
        elif not (_is_positive(item.predicted) and _is_positive(item.measured)):
            signless += 1
        else:
            judged.append(item)
    return Calibration(tuple(judged), skipped, late, signless)


def _is_positive(value: object) -> bool:
    return is_number(value) and 1e-100 < value < 1e100  # within these bounds the ratio of any two is a float
