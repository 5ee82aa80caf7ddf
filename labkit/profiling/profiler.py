"""Profile one function: where its time goes, and where its memory.

Time: steps run under torch.profiler after a warm-up, with a range around each step and, if asked for, around each
module. The result holds plain `ProfilerEvent`s and nothing of torch. The profiler itself takes time in every operator
and every range; `measure_overhead` runs the same steps with and without it, in turns.

Memory: categories in bytes that add up to all that is in use.

    weights       the parameters, tied ones once; on a CPU only the bytes that are resident
    kv_cache      keys and values of the tokens so far
    activations   what a step holds at its peak beyond those two, and then frees
    slack         reserved by torch's allocator but used by no tensor (GPU)
    rest          everything else: Python, libraries, the CUDA context; on a CPU also the slack of the allocator

The whole is what the system reports as used: NVML on a GPU (all processes), resident memory (RSS) on a CPU. RSS leaves
out what is mapped from a file and was never read, so only resident weights count there.
"""

import contextlib
import os
import re
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from labkit.errors import InstallError, LabkitError
from labkit.memory import measure_tensor_bytes, probe_memory
from labkit.profiling.events import IdleTime, ProfilerEvent, ProfileRow, measure_idle, measure_table
from labkit.timing import synchronize

__all__ = [
    "Profile",
    "ProfilerOverhead",
    "estimate_breakdown",
    "estimate_peak",
    "format_key",
    "measure_activation_peak",
    "measure_breakdown",
    "measure_overhead",
    "measure_weight_bytes",
    "run_profile",
]

_STEP, _MODULE = "step/", "module/"
_KINDS = {"cpu_op": "operator", "kernel": "kernel", "gpu_memcpy": "kernel", "gpu_memset": "kernel",
          "cuda_runtime": "runtime", "cuda_driver": "runtime"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Profile:
    """The events of some calls of a function, each call one step.

    Attributes:
        events: all events, in seconds on the profiler's clock since the first one.
        step_s: seconds of each step by the host's clock.
        num_warmup: calls before the profile.
        device: what was synchronized after each step, as in `labkit.timing`.
    """

    events: tuple[ProfilerEvent, ...]
    step_s: tuple[float, ...]
    num_warmup: int
    device: str

    def select(self, kind: str, *, step: int | None = None) -> list[ProfilerEvent]:
        """Return the events of one kind, of one step or of all steps."""
        return [event for event in self.events if event.kind == kind and step in (None, event.step)]

    def measure_table(self, kind: str = "operator") -> tuple[ProfileRow, ...]:
        """Return self and total time per name over all steps, for operators, modules or kernels."""
        return measure_table(self.select(kind))

    def measure_idle(self, kind: str = "operator", *, step: int = 0) -> IdleTime:
        """Return the time of one step in which nothing of this kind ran: operators on the host, kernels on a GPU."""
        (window,) = self.select("step", step=step)
        intervals = [(event.start_s, event.end_s) for event in self.select(kind, step=step)]
        return measure_idle(intervals, start_s=window.start_s, end_s=window.end_s)


@dataclass(frozen=True, slots=True)
class ProfilerOverhead:
    """The same step without and with the profiler, measured in turns.

    Attributes:
        plain_s: seconds of a step without the profiler, one per pair.
        profiled_s: seconds of a step with it, one per pair.
    """

    plain_s: tuple[float, ...]
    profiled_s: tuple[float, ...]


def run_profile(
    function: Callable[[], object], *, num_steps: int = 5, num_warmup: int = 2, model=None, device: str = "cpu"
) -> Profile:
    """Call `function()` under torch.profiler, `num_steps` times, and return the events.

    `num_warmup` calls come first and are not in the profile; one more call then warms up the profiler itself. With 0
    the very first call is the first step. `model`: a torch module; each of its submodules becomes a range of kind
    "module" (on a GPU each range then waits for the device). `device` as in `labkit.timing`.
    """
    if num_steps < 1 or num_warmup < 0:
        raise LabkitError(f"num_steps is {num_steps}, num_warmup {num_warmup}.", next_step="use at least 1 and 0.")
    profiler, record_function = _open_profiler(device)
    for _ in range(num_warmup):
        function()
    synchronize(device)
    step_s = []
    with _open_ranges(model, record_function, device), profiler:
        if num_warmup:
            function()
            synchronize(device)
        for number in range(num_steps):
            begin_s = time.perf_counter()
            with record_function(f"{_STEP}{number}"):
                function()
                synchronize(device)
            step_s.append(time.perf_counter() - begin_s)
    return Profile(_read_events(profiler), tuple(step_s), num_warmup, device)


def measure_overhead(
    function: Callable[[], object], *, num_pairs: int = 8, steps_per_pair: int = 3, model=None, device: str = "cpu"
) -> ProfilerOverhead:
    """Time steps without and with the profiler in turns: the median of `steps_per_pair` steps, `num_pairs` times."""
    plain_s, profiled_s = [], []
    for _ in range(2):
        function()
    for number in range(num_pairs):
        for is_profiled in (number % 2 == 0, number % 2 == 1):  # pairs start with either in turns
            if is_profiled:
                profile = run_profile(function, num_steps=steps_per_pair, num_warmup=1, model=model, device=device)
                profiled_s.append(statistics.median_high(profile.step_s))
            else:
                times = [_time_call(function, device) for _ in range(steps_per_pair + 2)]
                plain_s.append(statistics.median_high(times[2:]))
    return ProfilerOverhead(tuple(plain_s), tuple(profiled_s))


def format_key(name: str) -> str:
    """Return the name of an operator as part of a record's key: "aten::_to_copy" becomes "to_copy"."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower().removeprefix("aten::")).strip("_")


def estimate_breakdown(
    *, weight_bytes: int, kv_bytes: int, activation_bytes: int, used_bytes: int, reserved_bytes: int | None = None
) -> dict[str, int]:
    """Return the five categories, which add up to `used_bytes`; without `reserved_bytes`, rest includes slack."""
    held = weight_bytes + kv_bytes + activation_bytes
    slack = max(0, (held if reserved_bytes is None else reserved_bytes) - held)
    if min(weight_bytes, kv_bytes, activation_bytes) < 0 or used_bytes < held + slack:
        raise LabkitError(
            f"weights, cache and activations need {held + slack} bytes, but only {used_bytes} are in use.",
            next_step="read all numbers at the same time, from the same process and device.",
        )
    return {
        "weights": weight_bytes,
        "kv_cache": kv_bytes,
        "activations": activation_bytes,
        "slack": slack,
        "rest": used_bytes - held - slack,
    }


def measure_weight_bytes(model) -> int:
    """Return how many bytes of a torch module's parameters and buffers are resident, with shared tensors counted once.

    All bytes count on a GPU, and if the system does not report which pages are in memory (macOS).
    """
    nominal_bytes, resident_bytes = measure_tensor_bytes((*model.parameters(), *model.buffers()))
    return nominal_bytes if resident_bytes is None else resident_bytes


def measure_activation_peak(function: Callable[[], object], *, device: str = "cpu") -> int:
    """Return how many bytes one call of `function` allocates at its peak, beyond what was allocated before.

    On a CPU from the allocations that torch.profiler records, in the second of two calls (the blocks of the first call
    are then known, so that freeing them counts); on a GPU from torch's own counter.
    """
    if device != "cpu":
        import torch

        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    changes, begin_ns = _run_memory_profile(function)
    return estimate_peak(changes, begin_ns=begin_ns)


def estimate_peak(changes: list[tuple[int, int]], *, begin_ns: int = 0) -> int:
    """Return how far the running sum of the (ns, bytes) changes rises above its value at `begin_ns`."""
    held = sum(change for at_ns, change in changes if at_ns < begin_ns)
    start = peak = held
    for _, change in sorted((one for one in changes if one[0] >= begin_ns), key=lambda one: one[0]):
        held += change
        peak = max(peak, held)
    return peak - start


def measure_breakdown(function: Callable[[], object], *, model, kv_bytes: int, device: str = "cpu") -> dict[str, int]:
    """Return the five categories of one step; `function()` runs it, `kv_bytes` is the size of its cache before."""
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


def _run_memory_profile(function: Callable[[], object]) -> tuple[list[tuple[int, int]], int]:
    """Call `function()` twice on the CPU; return (ns, bytes) of each allocation, and when the second call began."""
    profiler, record_function = _open_profiler("cpu", profile_memory=True)
    with _hide_warnings(), profiler:
        function()
        with record_function(f"{_STEP}0"):
            function()
    raw = profiler.profiler.kineto_results.events()
    (begin_ns,) = [event.start_ns() for event in raw if _is_host(event, _STEP)]
    return [(event.start_ns(), event.nbytes()) for event in raw if event.name() == "[memory]"], begin_ns


def _time_call(function: Callable[[], object], device: str) -> float:
    begin_s = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - begin_s


def _open_profiler(device: str, **options):
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise each profile prints two lines
    try:
        from torch.profiler import ProfilerActivity, profile, record_function
    except ImportError:
        raise InstallError("torch is not installed.", next_step="run `make setup`.") from None
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.startswith("cuda") else [])
    return profile(activities=activities, **options), record_function


@contextlib.contextmanager
def _hide_warnings() -> Iterator[None]:
    """Hide what C++ writes to stderr: warnings about blocks from before the profile, which are expected."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextlib.contextmanager
def _open_ranges(model, record_function, device: str) -> Iterator[None]:
    """Put a range around every call of every submodule, and remove the hooks afterwards."""
    handles, is_open = [], []

    def enter(name: str):
        def hook(*_):
            is_open.append((name, record_function(f"{_MODULE}{name}")))
            is_open[-1][1].__enter__()

        return hook

    def leave(name: str):
        def hook(*_):
            if device != "cpu":
                synchronize(device)  # otherwise the range would cover only the launch of its kernels
            if is_open and is_open[-1][0] == name:  # not open if another hook raised before ours
                is_open.pop()[1].__exit__(None, None, None)

        return hook

    for name, module in model.named_modules() if model is not None else ():
        name = name or type(module).__name__
        handles.append(module.register_forward_pre_hook(enter(name)))
        handles.append(module.register_forward_hook(leave(name), always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _read_events(profiler) -> tuple[ProfilerEvent, ...]:
    """Convert torch's events; those outside of every step (the call that warms up the profiler) are left out."""
    raw = profiler.profiler.kineto_results.events()
    steps = sorted((e.start_ns(), e.end_ns(), int(e.name()[len(_STEP) :])) for e in raw if _is_host(e, _STEP))
    if not steps:
        raise LabkitError("the profiler returned no step.", next_step="stop any other profiler in this process.")
    origin_ns, events, number = steps[0][0], [], 0
    for event in sorted(raw, key=lambda e: e.start_ns()):
        start_ns, end_ns = event.start_ns(), event.end_ns()
        while number + 1 < len(steps) and start_ns >= steps[number + 1][0]:
            number += 1
        kind, name = _name_event(event)
        if kind and steps[number][0] <= start_ns <= steps[number][1]:
            thread = f"stream {event.device_resource_id()}" if kind == "kernel" else event.start_thread_id()
            times = (start_ns - origin_ns) / 1e9, (end_ns - origin_ns) / 1e9
            events.append(ProfilerEvent(name, *times, kind, thread, steps[number][2]))
    return tuple(events)


def _is_host(event, prefix: str) -> bool:
    return event.name().startswith(prefix) and _read_activity(event) == "user_annotation"


def _read_activity(event) -> str:
    """Return kineto's activity type of an event; older versions of torch do not report it, so it is inferred."""
    if hasattr(event, "activity_type"):
        return event.activity_type()
    is_ours = event.name().startswith((_STEP, _MODULE))
    if "CPU" not in str(event.device_type()):
        return "gpu_user_annotation" if is_ours else "kernel"
    return "user_annotation" if is_ours else "cuda_runtime" if event.name().startswith("cuda") else "cpu_op"


def _name_event(event) -> tuple[str, str]:
    """Return (kind, name); kind is "" for memory notes, the profiler's own work, and GPU copies of ranges."""
    for prefix, kind in ((_STEP, "step"), (_MODULE, "module")):
        if _is_host(event, prefix):
            return kind, event.name().removeprefix(prefix)
    kind = _KINDS.get(_read_activity(event), "")
    return (kind, event.name()) if event.name() != "[memory]" else ("", "")
