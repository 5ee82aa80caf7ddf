"""What does an asynchronous device do to a stopwatch? A simulated one, in virtual time: mistakes are free.

A GPU answers a call before the work is done: the call only puts it into a queue. `SimulatedDevice` does the same with
seconds that pass only when somebody says so (`VirtualClock`), so every number made with it is exact, on any machine.
Nothing here touches hardware, and whatever shows such a number says that it is simulated.
"""

from labkit.errors import LabkitError

__all__ = ["SimulatedDevice", "VirtualClock"]


class VirtualClock:
    """A clock that stands still until `sleep`; calling it reads the seconds, as `time.perf_counter()` does."""

    def __init__(self, *, start_s: float = 0.0) -> None:
        self._now_s = start_s

    def __call__(self) -> float:
        """Return the seconds that the clock shows."""
        return self._now_s

    def sleep(self, seconds: float) -> None:
        """Let time pass; negative seconds are a LabkitError, since the clock is monotonic."""
        if not seconds >= 0:
            raise LabkitError(f"a clock cannot sleep for {seconds} s.", next_step="give 0 or more seconds.")
        self._now_s += seconds


class SimulatedDevice:
    """A queue that works on its own: `launch` returns at once, `synchronize` waits until the queue is empty.

    launch_s: what a launch costs the caller. synchronize_s: what a synchronization costs in itself, also when the
    device is idle. It fits `timing.measure_calls(device=...)`; it has no events of its own.
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
