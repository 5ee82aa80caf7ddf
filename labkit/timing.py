"""How long? A stopwatch that waits for the device, and repeated timing with a rule for when to stop.

A GPU call returns when the work is queued, not when it is done. So the device is always synchronized before the first
and before the last clock reading: there is no option to leave that out. Nothing is subtracted and no sample is dropped.

`SimulatedDevice` and `VirtualClock` show what such a device does to a stopwatch, in virtual time: the seconds pass only
when somebody says so, so that every number is exact on any machine. Whatever shows one says that it is simulated.
"""

import collections
import dataclasses
import inspect
import math
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

from labkit import stats
from labkit.errors import HardwareError, LabkitError
from labkit.units import format_number, format_seconds

__all__ = [
    "Device",
    "SimulatedDevice",
    "Stopwatch",
    "Timing",
    "VirtualClock",
    "measure_calls",
    "synchronize",
]

NUM_OVERHEAD_CALLS = 101
NOISE_WINDOW = 20  # the noise is steady when it moved by under 5 % over this many samples
NOISE_DRIFT = 0.05


class Device(Protocol):
    """What timing needs from a device: a name, a way to wait for it, and its own clock if it has one."""

    name: str

    def synchronize(self) -> None:
        """Return once all work given to the device is done."""

    def record_event(self) -> Any | None:
        """Queue a time stamp behind the work given so far; None if the device has no clock, and the host's is used.

        As with CUDA events, `start.elapsed_time(stop)` gives milliseconds once both have been reached.
        """


@dataclasses.dataclass(frozen=True, slots=True)
class Timing:
    """Every sample of repeated calls, and how the measuring ended.

    Attributes:
        samples_s: seconds of each measured call
        warmup_samples_s: seconds of each warm-up call
        overhead_s: median of an empty function, in every sample and not subtracted
        is_stable: False if time ran out before the stop rule was met
        warning: what to know about the samples; "" if there is nothing
        device: its name
        clock: "host" or "device events"
    """

    samples_s: tuple[float, ...]
    warmup_samples_s: tuple[float, ...]
    overhead_s: float
    is_stable: bool
    warning: str
    device: str
    clock: str

    @property
    def summary(self) -> stats.Summary:
        """The summary of the measured samples, in seconds, without the warm-up."""
        return stats.summarize(self.samples_s)


class Stopwatch:
    """Time a block on the host's monotonic clock, synchronizing the device on both sides.

    `with Stopwatch() as watch: ...` then `watch.elapsed_s`. Inside the block, `watch.read_s()` synchronizes and gives
    the seconds so far.
    """

    def __init__(self, *, device: "str | Device" = "cpu", clock: Callable[[], float] = time.perf_counter) -> None:
        self._device = _open_device(device)
        self._clock = clock
        self._start: float | None = None
        self._elapsed_s: float | None = None

    def __enter__(self) -> "Stopwatch":
        self._elapsed_s = None
        self._device.synchronize()
        self._start = self._clock()
        return self

    def __exit__(self, *_: object) -> None:
        self._elapsed_s = self.read_s()

    def read_s(self) -> float:
        """Return the seconds since the block began, once all work of the device is done."""
        if self._start is None:
            raise LabkitError("the stopwatch was never started.", next_step="use `with Stopwatch() as watch:`.")
        self._device.synchronize()
        return self._clock() - self._start

    @property
    def elapsed_s(self) -> float:
        """The seconds that the finished block took."""
        if self._elapsed_s is None:
            raise LabkitError("the block is not finished.", next_step="read elapsed_s after the with block.")
        return self._elapsed_s


class VirtualClock:
    """A clock that moves only in `sleep`; calling it reads the seconds, as `time.perf_counter()` does."""

    def __init__(self, *, start_s: float = 0.0) -> None:
        self._now_s = start_s

    def __call__(self) -> float:
        """Return the seconds on the clock."""
        return self._now_s

    def sleep(self, seconds: float) -> None:
        """Let time pass; LabkitError for negative seconds, since the clock is monotonic."""
        if not seconds >= 0:
            raise LabkitError(f"a clock cannot sleep for {seconds} s.", next_step="give 0 or more seconds.")
        self._now_s += seconds


class SimulatedDevice:
    """A `Device` with a queue, as a GPU has: `launch` returns at once, `synchronize` waits until the queue is empty.

    launch_s: seconds that a launch costs the caller. synchronize_s: seconds of a synchronization itself, even when the
    device is idle.
    """

    name = "simulated"

    def __init__(self, clock: VirtualClock, *, launch_s: float = 20e-6, synchronize_s: float = 0.0) -> None:
        self._clock, self._launch_s, self._synchronize_s = clock, launch_s, synchronize_s
        self._busy_until_s = clock()

    def launch(self, work_s: float) -> None:
        """Queue work that takes the device `work_s` seconds after all earlier work."""
        self._clock.sleep(self._launch_s)
        self._busy_until_s = max(self._clock(), self._busy_until_s) + work_s

    def synchronize(self) -> None:
        """Wait until all work that was launched is done."""
        self._clock.sleep(max(0.0, self._busy_until_s - self._clock()))
        self._clock.sleep(self._synchronize_s)

    def record_event(self) -> None:
        """Return None: this device has no clock of its own."""


def synchronize(device: "str | Device" = "cpu") -> None:
    """Wait until the device ("cpu", "cuda", "cuda:1" or a `Device`) has done all work given to it."""
    _open_device(device).synchronize()


def measure_calls(
    function: Callable[[], object],
    *,
    device: "str | Device" = "cpu",
    num_warmup: int = 3,
    min_samples: int = 10,
    min_time_s: float = 0.5,
    max_time_s: float = 10.0,
    max_relative_std: float = 0.005,
    clock: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Call `function()` again and again and return the seconds of each call.

    Stops after `min_samples` and `min_time_s` as soon as std / mean is under `max_relative_std`, or has itself stopped
    moving (the rule of NVIDIA's nvbench); at `max_time_s` it gives up, with `is_stable` False and a warning. Warm-up
    calls come first and are kept apart. A call under about 10 µs is lost in `overhead_s`: time a loop of them instead.
    On CUDA the events are on the current stream: only the host's clock sees work that `function` gives to other
    streams, and a warning says when the two disagree. Raises LabkitError if `function` is not callable, or if its call
    only creates a coroutine or a generator, so that the work would not be timed.
    """
    if min_samples < 2 or num_warmup < 0 or not 0 <= min_time_s <= max_time_s:
        raise LabkitError(
            f"cannot stop with min_samples {min_samples}, num_warmup {num_warmup}, "
            f"min_time_s {min_time_s}, max_time_s {max_time_s}.",
            next_step="use at least 2 samples, and a max_time_s of at least min_time_s.",
        )
    _check_function(function)
    opened = _open_device(device)
    overhead_s = statistics.median(_time_call(_do_nothing, opened, clock)[0] for _ in range(NUM_OVERHEAD_CALLS))
    warmup = tuple(
        _time_call(_refuse_unstarted(function) if k == 0 else function, opened, clock)[0] for k in range(num_warmup)
    )

    samples: list[float] = []
    hidden: list[float] = []  # per call: what the host's clock saw beyond the device's events
    noise = _Noise()
    begin = clock()
    while True:
        sample_s, host_s = _time_call(function, opened, clock)
        samples.append(sample_s)
        hidden.append(host_s - sample_s)
        noise.add(sample_s)
        spent_s = clock() - begin
        is_enough = len(samples) >= min_samples and spent_s >= min_time_s
        is_stable = is_enough and (noise.relative_std < max_relative_std or noise.is_steady)
        if is_stable or spent_s >= max_time_s:
            break

    warnings = []
    if not is_stable:
        warnings.append(
            f"not stable after {format_seconds(spent_s)} and {len(samples)} samples: the relative standard deviation "
            f"is {format_number(100 * noise.relative_std)} %."
        )
    if statistics.median(hidden) > max(1e-3, 0.1 * statistics.median(samples)):
        warnings.append(
            f"the host waited {format_seconds(statistics.median(hidden))} longer than the events show: is there work "
            "on another stream?"
        )
    return Timing(
        samples_s=tuple(samples),
        warmup_samples_s=warmup,
        overhead_s=overhead_s,
        is_stable=is_stable,
        warning=" ".join(warnings),
        device=opened.name,
        clock="host" if opened.record_event() is None else "device events",
    )


def _time_call(function: Callable[[], object], device: Device, clock: Callable[[], float]) -> tuple[float, float]:
    """Return the seconds of one call: by the device's events if it has them, and by the host's clock."""
    device.synchronize()  # earlier work must not count
    begin = clock()
    start = device.record_event()
    function()
    stop = device.record_event()
    device.synchronize()  # this call's work must count
    host_s = clock() - begin
    return (host_s if start is None else start.elapsed_time(stop) / 1e3), host_s


def _check_function(function: object) -> None:
    """Raise LabkitError for what is not callable, and for functions whose call only creates something to run later."""
    if not callable(function):
        raise LabkitError(
            f"measure_calls needs a function, and got {function!r:.60}.",
            next_step="pass the function and not its result: measure_calls(step), or measure_calls(lambda: step(x)).",
        )
    for is_kind in (inspect.iscoroutinefunction, inspect.isasyncgenfunction, inspect.isgeneratorfunction):
        if is_kind(function):
            raise _refuse_result(getattr(function, "__name__", "it"))


def _refuse_unstarted(function: Callable[[], object]) -> Callable[[], None]:
    """Wrap the function to check its result: a call that only created a coroutine did no work."""

    def call() -> None:
        result = function()
        if inspect.isawaitable(result) or inspect.isgenerator(result) or inspect.isasyncgen(result):
            if inspect.iscoroutine(result):
                result.close()  # else Python warns that nobody awaited it
            raise _refuse_result(getattr(function, "__name__", "it"))

    return call


def _refuse_result(name: str) -> LabkitError:
    return LabkitError(
        f"a call of {name} gives back a coroutine or generator that has not run: its time would be that of making it.",
        next_step="let the function do the work: lambda: asyncio.run(step()), or lambda: list(step()).",
    )


def _do_nothing() -> None:
    """Do nothing: the time of this call is the timer's overhead."""


class _Noise:
    """The relative standard deviation of the samples so far (Welford's running sums), and whether it still moves."""

    def __init__(self) -> None:
        self._n, self._mean, self._squares = 0, 0.0, 0.0
        self._recent: collections.deque[float] = collections.deque(maxlen=NOISE_WINDOW)

    def add(self, sample: float) -> None:
        self._n += 1
        step = sample - self._mean
        self._mean += step / self._n
        self._squares += step * (sample - self._mean)
        self._recent.append(self.relative_std)

    @property
    def relative_std(self) -> float:
        if self._n < 2 or self._mean <= 0:
            return math.inf
        return math.sqrt(self._squares / (self._n - 1)) / self._mean

    @property
    def is_steady(self) -> bool:
        is_full = len(self._recent) == NOISE_WINDOW
        return is_full and max(self._recent) - min(self._recent) < NOISE_DRIFT * self._recent[-1]


class _CpuDevice:
    """The host. It also waits for a GPU that this process already uses, so a forgotten device="cuda" does no harm."""

    name = "cpu"

    def synchronize(self) -> None:
        torch = sys.modules.get("torch")  # never import it: without torch there is no work on a GPU
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.synchronize()

    def record_event(self) -> None:
        return None


class _CudaDevice:
    """One CUDA GPU, timed by events on its current stream."""

    def __init__(self, name: str) -> None:
        try:
            import torch
        except ImportError:
            raise HardwareError("torch is not installed.", next_step="run `make setup`.") from None
        if not torch.cuda.is_available():
            raise HardwareError(f'no CUDA device for "{name}".', next_step='use device="cpu".')
        index = torch.device(name).index
        self._torch = torch
        self._index = torch.cuda.current_device() if index is None else index
        if self._index >= torch.cuda.device_count():
            raise HardwareError(f'"{name}" was requested, but there are {torch.cuda.device_count()} CUDA device(s).')
        self.name = f"cuda:{self._index}"

    def synchronize(self) -> None:
        self._torch.cuda.synchronize(self._index)

    def record_event(self) -> Any:
        event = self._torch.cuda.Event(enable_timing=True)
        event.record(self._torch.cuda.current_stream(self._index))
        return event


def _open_device(device: "str | Device") -> Device:
    if device == "cpu":
        return _CpuDevice()
    if isinstance(device, str) and (device == "cuda" or device.removeprefix("cuda:").isdecimal()):
        return _CudaDevice(device)
    if all(callable(getattr(device, name, None)) for name in ("synchronize", "record_event")):
        return device
    raise LabkitError(
        f"{device!r} is not a device.",
        next_step='use "cpu", "cuda", "cuda:N", or an object with name, synchronize() and record_event().',
    )
