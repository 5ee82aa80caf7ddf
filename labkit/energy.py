"""How many joules? The GPU's energy counter, read before and after, with a status instead of a wrong number.

The counter moves in steps (every 20-100 ms), so a short window would read 0 or one step too many: it is "too short",
not 0. Only the GPU is counted, not the rest of the machine. Idle power is subtracted only when you ask for it.

    status            energy_j
    "ok"              joules
    "no counter"      None: no NVIDIA GPU here, or one that has no such counter
    "too short"       None: use a longer window
    "counter reset"   None: the counter went down (it wrapped, or the driver was reloaded)
    "counter stuck"   None: the counter did not move in a window that was long enough
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Protocol

from labkit.errors import HardwareError, LabkitError
from labkit.nvml import Nvml

__all__ = ["Energy", "EnergyCounter", "NvmlCounter", "measure_energy"]

MIN_WINDOW_S = 2.0
MIN_STEPS = 20  # a window is off by at most one step of the counter: 5 % of 20


class EnergyCounter(Protocol):
    """A counter of joules that only grows, in steps of `step_s` seconds."""

    step_s: float

    def read_j(self) -> float:
        """Return the joules since some fixed time."""


@dataclasses.dataclass(frozen=True, slots=True)
class Energy:
    """The energy of one window.

    Attributes:
        status: "ok", or why there is no number (see above).
        energy_j: joules; None unless the status is "ok".
        window_s: length of the window in seconds.
        label: what it contains: "gross", or "net of ... W idle".
    """

    status: str
    energy_j: float | None
    window_s: float
    label: str = "gross"

    @property
    def mean_w(self) -> float | None:
        """Mean power over the window, in watts; None without an energy."""
        return None if self.energy_j is None else self.energy_j / self.window_s

    def subtract_idle(self, idle: "Energy") -> "Energy":
        """Return this energy less what an idle GPU would have used; `idle` is a measured window with nothing to do.

        A result below 0 is kept: the difference is then smaller than the counter's error.
        """
        if self.label != "gross" or idle.label != "gross":
            raise LabkitError(
                f'idle power is subtracted from gross energy, once; got "{self.label}" less "{idle.label}".',
                next_step="measure both with measure_energy.",
            )
        if self.energy_j is None:
            return self
        if idle.mean_w is None:
            raise LabkitError(f'the idle window is "{idle.status}".', next_step="measure a longer idle window.")
        net_j = self.energy_j - idle.mean_w * self.window_s
        return dataclasses.replace(self, energy_j=net_j, label=f"net of {idle.mean_w:.1f} W idle")


class NvmlCounter:
    """The energy counter of one NVIDIA GPU (Volta or later), read through NVML."""

    step_s = 0.1  # 20 to 100 ms, depending on the model: the slowest is assumed

    def __init__(self, gpu_index: int = 0) -> None:
        """Open the counter; HardwareError says why there is none."""
        self._gpu_index, self._nvml = gpu_index, Nvml()
        if isinstance(self._nvml.error, ImportError):
            raise HardwareError("pynvml is not installed.", next_step="run `make setup`.")
        self._handle = self._nvml.ask("nvmlDeviceGetHandleByIndex", gpu_index)
        self.read_j()

    def read_j(self) -> float:
        """Return the joules since the driver was loaded (NVML counts millijoules); HardwareError without an answer."""
        millijoules = self._nvml.ask("nvmlDeviceGetTotalEnergyConsumption", self._handle)
        if millijoules is None:
            raise HardwareError(f"GPU {self._gpu_index} has no energy counter here ({self._nvml.error}).")
        return millijoules / 1e3


def measure_energy(
    function: Callable[[], object],
    *,
    counter: EnergyCounter | None = None,
    synchronize: Callable[[], None] | None = None,
    min_window_s: float = MIN_WINDOW_S,
    clock: Callable[[], float] = time.perf_counter,
) -> Energy:
    """Call `function()` once and return the energy that the GPU used meanwhile.

    `counter` defaults to the first NVIDIA GPU. The device is synchronized before both readings (`synchronize`
    defaults to labkit.timing's). A window under `min_window_s`, or under 20 steps of the counter, is "too short".
    """
    if synchronize is None:
        from labkit.timing import synchronize
    if counter is None:
        counter = _find_counter()
    synchronize()
    begin_s, begin_j = clock(), counter.read_j() if counter else None
    function()
    synchronize()
    end_j, end_s = counter.read_j() if counter else None, clock()
    window_s = end_s - begin_s
    if counter is None:
        return Energy("no counter", None, window_s)
    if end_j < begin_j:  # before "too short": true of any window
        return Energy("counter reset", None, window_s)
    if window_s < max(min_window_s, MIN_STEPS * counter.step_s):
        return Energy("too short", None, window_s)
    if end_j == begin_j:
        return Energy("counter stuck", None, window_s)
    return Energy("ok", end_j - begin_j, window_s)


def _find_counter() -> EnergyCounter | None:
    try:
        return NvmlCounter()
    except HardwareError:
        return None
