"""How fast could this work be on this machine, and which limit says so? Then: how close did a measurement come?

Williams, Waterman and Patterson, "Roofline", CACM 52 (4), 2009: attainable = min(peak, intensity · bandwidth). Small
models need a third limit, dispatch: the time of a step whose arithmetic is almost nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from labkit import stats
from labkit.errors import LabkitError
from labkit.roofline.work import Work

__all__ = ["Ceiling", "Utilization", "estimate_attainable", "estimate_ceiling", "estimate_utilization"]


@dataclass(frozen=True, slots=True)
class Ceiling:
    """The least seconds that some work needs, and the limit that sets them.

    `name` is "compute", "bandwidth" or "dispatch": the one that takes longest binds. The three times are kept, so that
    the runner-up can be named. `seconds` is the largest of them: they can overlap, so it is a bound, not a forecast.
    """

    name: str
    seconds: float
    compute_s: float
    bandwidth_s: float
    dispatch_s: float

    @property
    def serial_s(self) -> float:
        """Dispatch plus the longer of the other two: what is left where they cannot overlap.

        On a GPU the processor dispatches ahead while the GPU computes. On a CPU one thread does both, in turns.
        """
        return self.dispatch_s + max(self.compute_s, self.bandwidth_s)


@dataclass(frozen=True, slots=True)
class Utilization:
    """A share of a peak: the value at the median time, its interval (None where n is too small), and n."""

    value: float
    interval: stats.Interval | None
    n: int


def estimate_attainable(intensity: float, *, flop_per_s: float, byte_per_s: float) -> float:
    """Return the FLOP/s that the roofline allows at an intensity in FLOP/byte: the peak, or intensity · byte_per_s."""
    _check_positive(intensity=intensity, flop_per_s=flop_per_s, byte_per_s=byte_per_s)
    return min(flop_per_s, intensity * byte_per_s)


def estimate_ceiling(work: Work, *, flop_per_s: float, byte_per_s: float, dispatch_s: float = 0.0) -> Ceiling:
    """Return the `Ceiling` of some work on a machine with these limits.

    `byte_per_s` is the bandwidth at the working set's size: 20 MB of weights may sit in a cache. `dispatch_s` is the
    time of the same step with next to no arithmetic.
    """
    _check_positive(flop_per_s=flop_per_s, byte_per_s=byte_per_s)
    if dispatch_s < 0:
        raise LabkitError(f"dispatch_s is {dispatch_s}.", next_step="give seconds, 0 for no such limit.")
    times = {
        "compute": work.flops / flop_per_s,
        "bandwidth": work.bytes / byte_per_s,
        "dispatch": float(dispatch_s),
    }
    name = max(times, key=times.__getitem__)
    return Ceiling(name, times[name], times["compute"], times["bandwidth"], times["dispatch"])


def estimate_utilization(samples_s: Sequence[float], *, ideal_s: float) -> Utilization:
    """Return ideal_s / median(samples_s) with the interval that the samples' median has.

    With `ideal_s` = bytes / peak bandwidth it is MBU (model bandwidth utilization), with FLOPs / peak FLOP/s MFU, with
    a ceiling's seconds the distance from that ceiling. Over 1 means that a byte count or a peak is wrong.
    """
    _check_positive(ideal_s=ideal_s)
    if min(samples_s, default=1.0) <= 0:
        raise LabkitError("a sample of 0 s or less is no time.", next_step="look at how it was measured.")
    summary = stats.summarize(samples_s)
    slow = summary.p50_interval
    interval = slow and stats.Interval(ideal_s / slow.high, ideal_s / slow.low, slow.confidence)
    return Utilization(ideal_s / summary.p50, interval, summary.n)


def _check_positive(**numbers: float) -> None:
    for name, number in numbers.items():
        if not number > 0:
            raise LabkitError(f"{name} is {number}.", next_step="give a number above 0.")
