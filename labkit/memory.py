"""How many bytes? Four numbers side by side, because each counts something else.

rss_bytes               what this process holds in the machine's memory (psutil)
torch_allocated_bytes   what torch's tensors hold on the GPU
torch_reserved_bytes    what torch has taken from the driver to serve them: never less than allocated
nvml_used_bytes         what everybody holds on that GPU, the driver's contexts included (NVML)

A lab ends with `print(measure_release(globals(), "model", "tokenizer"))`: what its objects held is given back, and how
much that was is measured.
"""

import collections
import contextlib
import dataclasses
import gc
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterator, MutableMapping

from labkit.allocator import set_trim_threshold, trim_heap
from labkit.errors import InstallError, LabkitError
from labkit.units import format_bytes

__all__ = ["PeakMemory", "Release", "measure_peak_rss", "measure_release", "probe_memory"]

SEARCH_DEPTH = 6  # levels of containers and attributes that are searched for arrays: engine, cache, layers, layer, keys


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


@dataclasses.dataclass(frozen=True, slots=True)
class Release:
    """What a clean-up gave back: the memory before and after (as `probe_memory` reads it), the names that were dropped.

    `kept`: those names of which something lives on, because another object holds it; `aliases`: variables that do.
    Looked at are the values themselves, and arrays and tensors up to six containers or attributes deep in them.
    `tensor_bytes`: what the tensors and arrays of those names held, counted before.
    """

    before: dict[str, int | None]
    after: dict[str, int | None]
    names: tuple[str, ...]
    kept: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    tensor_bytes: int = 0

    @property
    def is_complete(self) -> bool:
        """True when nothing of what the names stood for is alive, as far as was looked."""
        return not self.kept

    @property
    def released_bytes(self) -> int:
        """Resident bytes that came back to the machine; below zero when something else grew meanwhile."""
        return (self.before["rss_bytes"] or 0) - (self.after["rss_bytes"] or 0)

    @property
    def gpu_released_bytes(self) -> int:
        """Bytes that torch gave back to the GPU's driver."""
        return (self.before["torch_reserved_bytes"] or 0) - (self.after["torch_reserved_bytes"] or 0)

    def __str__(self) -> str:
        if not self.names:
            return "Memory: nothing was loaded, nothing to give back."
        held = f" ({format_bytes(self.tensor_bytes)} were tensors)" if self.tensor_bytes else ""
        text = f"Memory: {format_bytes(max(0, self.released_bytes))} given back{held}"
        if self.before["torch_reserved_bytes"] is not None:
            text += f", {format_bytes(max(0, self.gpu_released_bytes))} on the GPU"
        if self.after["rss_bytes"]:
            text += f"; Python and its libraries hold {format_bytes(self.after['rss_bytes'])}"
        if self.is_complete:
            return f"{text}. Nothing of {', '.join(self.names)} is left."
        where = f" in {', '.join(self.aliases)}: delete that too" if self.aliases else " by another object"
        return f"{text}. Not all: {', '.join(self.kept)} is still held{where}."


def measure_release(namespace: MutableMapping[str, object], *names: str) -> Release:
    """Drop these variables (`globals()` of the notebook), empty the caches, and measure what came back.

    Names that do not exist are skipped: an untouched lab has nothing to drop. What IPython remembers of them (`_`,
    `Out`, the last error's frames) goes too. Then: garbage collection, torch's GPU cache, and free heap back to the
    system (glibc only). RSS counts pages, so it comes back in whole pages; what libraries keep for themselves stays.
    """
    before = probe_memory()
    dropped = tuple(name for name in dict.fromkeys(names) if name in namespace)
    watched = {name: list(_watch(namespace[name])) for name in dropped}
    found = {id(one()): _read_nbytes(one()) for references in watched.values() for one in references}
    tensor_bytes = sum(found.values())
    set_trim_threshold(0)
    aliases = _forget(namespace, dropped)
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    trim_heap()
    set_trim_threshold()
    kept = tuple(name for name, references in watched.items() if any(one() is not None for one in references))
    return Release(before, probe_memory(), dropped, kept, aliases if kept else (), tensor_bytes)


def _watch(value: object) -> Iterator[weakref.ref]:
    """Yield weak references to a value, to the items of a container, and to every array or tensor that it leads to."""
    items = _list_items(value)
    arrays = (inner for inner in _walk(value) if _read_nbytes(inner))
    for one in {id(one): one for one in (value, *items, *arrays)}.values():
        with contextlib.suppress(TypeError):  # lists, dictionaries and numbers know no weak references
            yield weakref.ref(one)


def _walk(value: object) -> Iterator[object]:
    """Yield what a value leads to by containers, attributes and a module's parameters, `SEARCH_DEPTH` levels deep.

    Deeper, and behind modules, classes and functions, nothing is looked for: everything leads to everything there.
    """
    seen, level = {id(value)}, [value]
    for _ in range(SEARCH_DEPTH):
        level = [inner for outer in level for inner in _list_inner(outer)]
        level = list({id(inner): inner for inner in level if id(inner) not in seen}.values())
        seen.update(map(id, level))
        yield from level


def _list_inner(value: object) -> list:
    """List what a value holds: its items, its attributes, and of a torch module all parameters and buffers."""
    if isinstance(value, type | types.ModuleType | types.FunctionType | types.MethodType | str | bytes | int | float):
        return []
    attributes = getattr(value, "__dict__", None)
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ()) if isinstance(name, str)]
    found = _list_items(value) + [getattr(value, name, None) for name in slots if not name.startswith("__")]
    return found + (list(attributes.values()) if isinstance(attributes, dict) else [])


def _list_items(value: object) -> list:
    """List the items of a container, and the parameters and buffers of a torch module."""
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, list | tuple | set | frozenset | collections.deque):
        return list(value)
    found = []
    for name in ("parameters", "buffers"):
        if callable(getattr(type(value), name, None)):
            with contextlib.suppress(Exception):  # something else of that name, which wants arguments or fails
                found += list(getattr(value, name)())
    return found


def _read_nbytes(value: object) -> int:
    """Return the bytes of an array or a tensor, 0 for anything else."""
    if not hasattr(type(value), "nbytes"):  # asked of the class: an object may answer to every name
        return 0
    try:
        size = value.nbytes
    except Exception:  # a property of some other kind
        return 0
    return size if isinstance(size, int) else 0


def _forget(namespace: MutableMapping[str, object], names: tuple[str, ...]) -> tuple[str, ...]:
    """Drop the names and IPython's own memories of them; return the learner's other variables that hold the same."""
    identities = {id(namespace[name]) for name in names}
    same = [name for name, value in namespace.items() if id(value) in identities and name not in names]
    for name in (*names, *(name for name in same if name.startswith("_"))):
        del namespace[name]
    for memory in _ipython_memories(namespace):
        for key in [key for key, value in memory.items() if id(value) in identities]:
            memory[key] = None
    for name in ("last_exc", "last_value", "last_traceback"):  # an error's frames hold what its functions were given
        if hasattr(sys, name):
            setattr(sys, name, None)
    return tuple(name for name in same if not name.startswith("_"))


def _ipython_memories(namespace: MutableMapping[str, object]) -> Iterator[dict]:
    """Yield the dictionaries in which IPython keeps what cells showed: Out, hidden names, its hook, last result."""
    yield from (memory for memory in (namespace.get("Out"),) if isinstance(memory, dict))
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if hasattr(ipython, "get_ipython") else None
    for memory in (
        getattr(shell, "user_ns_hidden", None),
        getattr(getattr(shell, "displayhook", None), "__dict__", None),
        getattr(getattr(shell, "last_execution_result", None), "__dict__", None),
    ):
        if isinstance(memory, dict):
            yield memory


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
