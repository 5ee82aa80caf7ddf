"""One function under torch.profiler: warm-up apart, each step in a range, each module in a range if asked for.

What torch gives is turned into `Event`s at once; nothing of torch is kept. The profiler takes time of its own, in every
operator and every range: `measure_overhead` runs the same steps with and without it, in turns.
"""

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from labkit.errors import InstallError, LabkitError
from labkit.profiling.events import Event, Idle, TableRow, measure_idle, measure_table
from labkit.timing import synchronize

__all__ = ["Overhead", "Profile", "format_key", "measure_overhead", "run_memory_profile", "run_profile"]

_STEP, _MODULE = "step/", "module/"
_KINDS = {"cpu_op": "operator", "kernel": "kernel", "gpu_memcpy": "kernel", "gpu_memset": "kernel",
          "cuda_runtime": "runtime", "cuda_driver": "runtime"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Profile:
    """The events of `num_steps` calls; seconds on the profiler's clock, from the first event on.

    `step_s` are the same steps by the host's clock. `num_warmup` calls came before, without the profiler.
    """

    events: tuple[Event, ...]
    step_s: tuple[float, ...]
    num_warmup: int
    device: str

    def select(self, kind: str, *, step: int | None = None) -> list[Event]:
        """Return the events of one kind, of one step or of all."""
        return [event for event in self.events if event.kind == kind and step in (None, event.step)]

    def measure_table(self, kind: str = "operator") -> tuple[TableRow, ...]:
        """Return self and total time per name over all steps: of operators, of modules, or of kernels."""
        return measure_table(self.select(kind))

    def measure_idle(self, kind: str = "operator", *, step: int = 0) -> Idle:
        """Return the gaps of one step in which nothing of this kind ran: operators on the host, kernels on a GPU."""
        (window,) = self.select("step", step=step)
        intervals = [(event.start_s, event.end_s) for event in self.select(kind, step=step)]
        return measure_idle(intervals, start_s=window.start_s, end_s=window.end_s)


@dataclass(frozen=True, slots=True)
class Overhead:
    """Seconds of one step, each pair measured in turns: without and with the profiler."""

    plain_s: tuple[float, ...]
    profiled_s: tuple[float, ...]


def run_profile(
    function: Callable[[], object], *, num_steps: int = 5, num_warmup: int = 2, model=None, device: str = "cpu"
) -> Profile:
    """Call `function()` under torch.profiler, `num_steps` times, and return the events.

    `num_warmup` calls come first and are not in the profile; after them one more settles the profiler itself. With 0
    the very first call is the first step. `model`: a torch module, each submodule of which becomes a range of kind
    "module" (on a GPU each range then waits for the device). `device` as in `labkit.timing`.
    """
    if num_steps < 1 or num_warmup < 0:
        raise LabkitError(f"{num_steps} steps after {num_warmup} warm-ups.", next_step="profile at least 1 step.")
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
) -> Overhead:
    """Time steps without and with the profiler in turns: the median of `steps_per_pair` steps, `num_pairs` times."""
    plain_s, profiled_s = [], []
    for _ in range(2):
        function()
    for number in range(num_pairs):
        for is_profiled in (number % 2 == 0, number % 2 == 1):  # who begins changes from pair to pair
            if is_profiled:
                profile = run_profile(function, num_steps=steps_per_pair, num_warmup=1, model=model, device=device)
                profiled_s.append(_median(profile.step_s))
            else:
                plain_s.append(_median([_time_call(function, device) for _ in range(steps_per_pair + 2)][2:]))
    return Overhead(tuple(plain_s), tuple(profiled_s))


def run_memory_profile(function: Callable[[], object]) -> tuple[list[tuple[int, int]], int]:
    """Call `function()` twice on the processor; return the (ns, bytes) of each allocation, and when call 2 began."""
    profiler, record_function = _open_profiler("cpu", profile_memory=True)
    with _hide_warnings(), profiler:
        function()
        with record_function(f"{_STEP}0"):
            function()
    raw = profiler.profiler.kineto_results.events()
    (begin_ns,) = [event.start_ns() for event in raw if _is_host(event, _STEP)]
    return [(event.start_ns(), event.nbytes()) for event in raw if event.name() == "[memory]"], begin_ns


def format_key(name: str) -> str:
    """Return an operator's name as a part of a record's key: "aten::_to_copy" is "to_copy"."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower().removeprefix("aten::")).strip("_")


def _time_call(function: Callable[[], object], device: str) -> float:
    begin_s = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - begin_s


def _median(values) -> float:
    return sorted(values)[len(values) // 2]


def _open_profiler(device: str, **options):
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it writes two lines into the notebook for every profile
    try:
        from torch.profiler import ProfilerActivity, profile, record_function
    except ImportError:
        raise InstallError("torch is not installed.", next_step="run `make setup`.") from None
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.startswith("cuda") else [])
    return profile(activities=activities, **options), record_function


@contextlib.contextmanager
def _hide_warnings() -> Iterator[None]:
    """Drop what C++ writes to the error stream: that blocks from before the profile are unknown, which is expected."""
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
    """Put a range around every call of every submodule; the hooks are gone afterwards."""
    handles, is_open = [], []

    def enter(name: str):
        def hook(*_):
            is_open.append((name, record_function(f"{_MODULE}{name}")))
            is_open[-1][1].__enter__()

        return hook

    def leave(name: str):
        def hook(*_):
            if device != "cpu":
                synchronize(device)  # else the range would hold the launch of its kernels, and not their time
            if is_open and is_open[-1][0] == name:  # not where another hook raised before ours was called
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


def _read_events(profiler) -> tuple[Event, ...]:
    """Turn torch's events into ours; what lies in no step (the settling call) is left out."""
    raw = profiler.profiler.kineto_results.events()
    steps = sorted((e.start_ns(), e.end_ns(), int(e.name()[len(_STEP) :])) for e in raw if _is_host(e, _STEP))
    if not steps:
        raise LabkitError("the profiler returned no step.", next_step="is another profiler active in this process?")
    origin_ns, events, number = steps[0][0], [], 0
    for event in sorted(raw, key=lambda e: e.start_ns()):
        start_ns, end_ns = event.start_ns(), event.end_ns()
        while number + 1 < len(steps) and start_ns >= steps[number + 1][0]:
            number += 1
        kind, name = _name_event(event)
        if kind and steps[number][0] <= start_ns <= steps[number][1]:
            thread = f"stream {event.device_resource_id()}" if kind == "kernel" else event.start_thread_id()
            times = (start_ns - origin_ns) / 1e9, (end_ns - origin_ns) / 1e9
            events.append(Event(name, *times, kind, thread, steps[number][2]))
    return tuple(events)


def _is_host(event, prefix: str) -> bool:
    return event.name().startswith(prefix) and _read_activity(event) == "user_annotation"


def _read_activity(event) -> str:
    """Return kineto's word for the kind of an event; an older torch does not tell it, and it is inferred."""
    if hasattr(event, "activity_type"):
        return event.activity_type()
    is_ours = event.name().startswith((_STEP, _MODULE))
    if "CPU" not in str(event.device_type()):
        return "gpu_user_annotation" if is_ours else "kernel"
    return "user_annotation" if is_ours else "cuda_runtime" if event.name().startswith("cuda") else "cpu_op"


def _name_event(event) -> tuple[str, str]:
    """Return (kind, name), kind "" for what is not ours: memory notes, the profiler's own work, copies of ranges."""
    for prefix, kind in ((_STEP, "step"), (_MODULE, "module")):
        if _is_host(event, prefix):
            return kind, event.name().removeprefix(prefix)
    kind = _KINDS.get(_read_activity(event), "")
    return (kind, event.name()) if event.name() != "[memory]" else ("", "")
