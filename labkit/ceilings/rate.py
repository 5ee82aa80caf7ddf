"""What is one measured ceiling, and how are several of them measured fairly? Samples, rounds, one thread."""

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from labkit import stats
from labkit.errors import LabkitError
from labkit.timing import Device, Stopwatch

__all__ = ["Job", "Rate", "get_place", "hold_one_thread", "measure_rounds"]

STEADY = 1.25  # the ends of a median's interval may differ by this factor
_MOST_REPEATS = 1_000_000


@dataclass(frozen=True, slots=True)
class Rate:
    """One ceiling: its name, its unit ("B/s", "FLOP/s" or "s"), every sample in that unit, and the size it holds for.

    `size` is the working set in bytes of a bandwidth, n of an n x n product, the number of layers of a dispatch time.
    """

    name: str
    unit: str
    samples: tuple[float, ...]
    size: int

    @property
    def median(self) -> float:
        """The median of the samples, in `unit`."""
        return statistics.median(self.samples)

    @property
    def interval(self) -> stats.Interval | None:
        """The 95 % interval of the median; None from fewer than six samples."""
        return stats.estimate_percentile_interval(self.samples, 50)

    @property
    def is_steady(self) -> bool:
        """Whether the median is known to a quarter: if not, the machine did something else meanwhile (or n < 6)."""
        ends = self.interval
        return ends is not None and ends.high <= STEADY * ends.low


@dataclass(frozen=True, slots=True)
class Job:
    """Work to be timed: `run(repeats)` does it that often; one repeat is `amount` bytes or FLOPs."""

    run: Callable[[int], object]
    amount: float


def measure_rounds(
    jobs: Mapping[str, Job],
    *,
    device: "str | Device" = "cpu",
    num_rounds: int = 10,
    min_sample_s: float = 0.005,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, tuple[float, ...]]:
    """Return amount per second of every job, `num_rounds` samples each, taken in turns.

    A warm-up call of each job tells how many repeats make a sample of `min_sample_s`, so that the clock's own cost and
    the two synchronizations around a sample (about 10 µs on a GPU) do not count. Each round begins with another job.
    """
    if num_rounds < 1 or not min_sample_s > 0:
        raise LabkitError(f"num_rounds {num_rounds}, min_sample_s {min_sample_s}.", next_step="give positive numbers.")
    repeats = {name: _choose_repeats(job, device, min_sample_s, clock) for name, job in jobs.items()}
    names, rates = list(jobs), {name: [] for name in jobs}
    for number in range(num_rounds):
        start = number % max(1, len(names))
        for name in names[start:] + names[:start]:
            seconds = _time(jobs[name], repeats[name], device, clock)
            rates[name].append(jobs[name].amount * repeats[name] / seconds)
    return {name: tuple(samples) for name, samples in rates.items()}


def get_place(device: "str | Device") -> str:
    """Return where tensors go: the device's own name, and the CPU for a simulated device."""
    return device if isinstance(device, str) else getattr(device, "place", "cpu")


@contextlib.contextmanager
def hold_one_thread(device: "str | Device") -> Iterator[None]:
    """Let one intra-op thread of torch compute inside the block on a CPU, and give the old number back after it."""
    import torch

    before = torch.get_num_threads()
    if get_place(device) == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _choose_repeats(job: Job, device: "str | Device", min_sample_s: float, clock: Callable[[], float]) -> int:
    job.run(1)  # the first call allocates and chooses kernels
    repeats = 1
    while repeats < _MOST_REPEATS:
        seconds = _time(job, repeats, device, clock)
        if seconds >= min_sample_s:
            return repeats
        # Aim a little higher; at most tenfold, because a short time is mostly the clock's own.
        repeats = min(10 * repeats, max(repeats + 1, math.ceil(1.2 * repeats * min_sample_s / max(seconds, 1e-9))))
    return repeats


def _time(job: Job, repeats: int, device: "str | Device", clock: Callable[[], float]) -> float:
    with Stopwatch(device=device, clock=clock) as watch:
        job.run(repeats)
    return watch.elapsed_s
