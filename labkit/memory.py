"""How many bytes? Four numbers side by side, because each counts something else.

rss_bytes               what this process holds in the machine's memory (psutil)
torch_allocated_bytes   what torch's tensors hold on the GPU
torch_reserved_bytes    what torch has taken from the driver to serve them: never less than allocated
nvml_used_bytes         what everybody holds on that GPU, the driver's contexts included (NVML)
"""

import dataclasses
import sys
import threading
from collections.abc import Callable

from labkit.errors import InstallError, LabkitError

__all__ = ["PeakMemory", "measure_peak_rss", "probe_memory"]


@dataclasses.dataclass(frozen=True, slots=True)
class PeakMemory:
    """Resident bytes of this process around one call: before, the highest reading, after, and how many readings."""

    before_bytes: int
    peak_bytes: int
    after_bytes: int
    num_readings: int

    @property
    def growth_bytes(self) -> int:
        """How far the peak lies above the start."""
        return self.peak_bytes - self.before_bytes


def probe_memory(*, gpu_index: int = 0) -> dict[str, int | None]:
    """Return the four numbers of this module's docstring in bytes; None for what this machine or process has not.

    Never loads torch and never wakes a GPU: the torch numbers exist once this process uses CUDA. `gpu_index` counts
    as NVML does, which differs from torch's count when CUDA_VISIBLE_DEVICES is set.
    """
    allocated, reserved = _read_torch(gpu_index)
    try:
        rss = _read_rss()
    except InstallError:
        rss = None
    return {
        "rss_bytes": rss,
        "torch_allocated_bytes": allocated,
        "torch_reserved_bytes": reserved,
        "nvml_used_bytes": _read_nvml(gpu_index),
    }


def measure_peak_rss(
    function: Callable[[], object],
    *,
    interval_s: float = 0.005,
    read_rss: Callable[[], int] | None = None,
) -> PeakMemory:
    """Call `function()` and return the highest resident memory of this process that a second thread saw meanwhile.

    The true peak is at least this: what comes and goes between two readings, `interval_s` apart, is not seen.
    """
    if not interval_s > 0:
        raise LabkitError(f"interval_s is {interval_s}.", next_step="give a time above 0, e.g. 0.005.")
    read_rss = read_rss or _read_rss
    readings = [read_rss()]
    is_done = threading.Event()

    def watch() -> None:
        while not is_done.wait(interval_s):
            readings.append(read_rss())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        function()
    finally:
        is_done.set()
        watcher.join()
    after = read_rss()
    return PeakMemory(readings[0], max(*readings, after), after, len(readings) + 1)


def _read_rss() -> int:
    try:
        import psutil
    except ImportError:
        raise InstallError("psutil is not installed.", next_step="run `make setup`.") from None
    return psutil.Process().memory_info().rss


def _read_torch(gpu_index: int) -> tuple[int | None, int | None]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized() or gpu_index >= torch.cuda.device_count():
        return None, None
    return torch.cuda.memory_allocated(gpu_index), torch.cuda.memory_reserved(gpu_index)


def _read_nvml(gpu_index: int) -> int | None:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver here
        return None
    try:
        return pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(gpu_index)).used
    except pynvml.NVMLError:  # no such GPU, or one that does not tell
        return None
    finally:
        pynvml.nvmlShutdown()
