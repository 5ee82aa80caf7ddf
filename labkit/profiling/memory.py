"""Where did the memory go? Categories in bytes that add up to the whole.

    weights       the parameters, tied ones once; on a processor those of their bytes that are resident
    kv_cache      keys and values of the tokens so far
    activations   what a step holds at its peak beyond those two, and gives back
    slack         taken by the allocator from the driver, and used by no tensor (GPU)
    rest          everything else: Python, libraries, the CUDA context; on a processor also the allocator's slack

The whole is what the system reports as used: NVML on a GPU (all processes), resident memory (RSS) on a processor.
RSS does not contain what is mapped from a file and was never read, so there only resident weights count.
"""

from collections.abc import Callable

from labkit.errors import LabkitError
from labkit.memory import measure_tensor_bytes, probe_memory
from labkit.profiling.run import run_memory_profile

__all__ = [
    "estimate_breakdown",
    "estimate_peak",
    "measure_activation_peak",
    "measure_breakdown",
    "measure_weight_bytes",
]


def estimate_breakdown(
    *, weight_bytes: int, kv_bytes: int, activation_bytes: int, used_bytes: int, reserved_bytes: int | None = None
) -> dict[str, int]:
    """Return the five categories; they add up to `used_bytes`. Without `reserved_bytes` the slack is in the rest."""
    held = weight_bytes + kv_bytes + activation_bytes
    slack = max(0, (held if reserved_bytes is None else reserved_bytes) - held)
    if min(weight_bytes, kv_bytes, activation_bytes) < 0 or used_bytes < held + slack:
        raise LabkitError(
            f"weights, cache and activations need {held + slack} bytes, and {used_bytes} are used.",
            next_step="read all numbers at the same moment, from the same process and device.",
        )
    return {
        "weights": weight_bytes,
        "kv_cache": kv_bytes,
        "activations": activation_bytes,
        "slack": slack,
        "rest": used_bytes - held - slack,
    }


def measure_weight_bytes(model) -> int:
    """Return how many bytes of a torch module's parameters and buffers are resident, shared ones once.

    All of them on a GPU, and where the system does not say which pages are in memory (macOS).
    """
    nominal_bytes, resident_bytes = measure_tensor_bytes((*model.parameters(), *model.buffers()))
    return nominal_bytes if resident_bytes is None else resident_bytes


def measure_activation_peak(function: Callable[[], object], *, device: str = "cpu") -> int:
    """Return how many bytes one call of `function` holds at its peak beyond what was there before.

    On a processor from the allocations that torch.profiler notes, in the second of two calls (the first one's blocks
    are then known, so that giving them back counts); on a GPU from torch's own counter.
    """
    if device != "cpu":
        import torch

        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    changes, begin_ns = run_memory_profile(function)
    return estimate_peak(changes, begin_ns=begin_ns)


def estimate_peak(changes: list[tuple[int, int]], *, begin_ns: int = 0) -> int:
    """Return how far the running sum of (time, bytes) changes rises above its value at `begin_ns`, from then on."""
    held = sum(change for at_ns, change in changes if at_ns < begin_ns)
    start = peak = held
    for _, change in sorted((one for one in changes if one[0] >= begin_ns), key=lambda one: one[0]):
        held += change
        peak = max(peak, held)
    return peak - start


def measure_breakdown(function: Callable[[], object], *, model, kv_bytes: int, device: str = "cpu") -> dict[str, int]:
    """Measure the categories of one step: `function()` runs it, `kv_bytes` is what its cache holds before it."""
    activation_bytes = measure_activation_peak(function, device=device)
    found = probe_memory(gpu_index=int(device.partition(":")[2] or 0))
    is_gpu = device != "cpu"
    used = found["nvml_used_bytes"] if is_gpu else found["rss_bytes"]
    weights = measure_weight_bytes(model)
    reserved = found["torch_reserved_bytes"] if is_gpu else None
    if used is None:
        raise LabkitError("the memory in use cannot be read.", next_step="install psutil, or nvidia-ml-py on a GPU.")
    return estimate_breakdown(
        weight_bytes=weights, kv_bytes=kv_bytes, activation_bytes=activation_bytes,
        used_bytes=used, reserved_bytes=reserved,
    )  # fmt: skip
