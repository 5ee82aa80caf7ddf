"""How many bytes does this process hold, and how does it give them back?

    rss_bytes               what of this process lies in the machine's memory: its resident pages (psutil)
    torch_allocated_bytes   what torch's tensors hold on the GPU
    torch_reserved_bytes    what torch has taken from the driver to serve them: never less than allocated
    nvml_used_bytes         what all processes hold on that GPU, the driver's contexts included (NVML)

A tensor's nominal bytes are values times bytes per value. Resident bytes are those in memory: all of a tensor that was
copied there, but of weights mapped from their file (loaded without a dtype conversion) only what has been read so far.

A lab ends with `print(measure_release(globals(), "model", "tokenizer"))`: what its objects held is given back, and the
sentence compares the bytes that came back with those that were resident.
"""

import array
import contextlib
import ctypes
import gc
import os
import sys
import types
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any

from labkit.nvml import Nvml
from labkit.units import format_bytes

__all__ = ["Release", "map_large_blocks", "measure_release", "measure_tensor_bytes", "probe_memory"]

# Everything leads to everything behind these: a function to its module's globals, a module to all it imports.
_WALLS = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.FrameType)
_CONTAINERS = (dict, list, tuple, set, frozenset, deque)
# Options of glibc's mallopt(3), and where its own, moving border starts and ends (64 bits).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LOW_BYTES, _HIGH_BYTES = 128 * 2**10, 32 * 2**20


@dataclass(frozen=True, slots=True)
class Release:
    """What a clean-up gave back; `str(release)` is its sentence.

    Attributes:
        before: what `probe_memory` returned before it, in bytes.
        after: the same after it.
        names: the variables that were dropped.
        kept: those of them whose value, or a tensor or array in it, is still alive: another object holds it.
        aliases: other variables that hold the same value.
        tensor_bytes: nominal bytes of their tensors and arrays.
        resident_bytes: how many of those were in memory just before; None if the system does not say (macOS).
    """

    before: dict[str, int | None]
    after: dict[str, int | None]
    names: tuple[str, ...]
    kept: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    tensor_bytes: int = 0
    resident_bytes: int | None = 0

    @property
    def is_complete(self) -> bool:
        """True if nothing that the names stood for is known to be alive."""
        return not self.kept

    @property
    def released_bytes(self) -> int:
        """Resident bytes that the process gave back; below zero if something else grew meanwhile."""
        return (self.before["rss_bytes"] or 0) - (self.after["rss_bytes"] or 0)

    @property
    def gpu_released_bytes(self) -> int:
        """Bytes that torch gave back to the GPU's driver."""
        return (self.before["torch_reserved_bytes"] or 0) - (self.after["torch_reserved_bytes"] or 0)

    def __str__(self) -> str:
        if not self.names:
            return "Memory: nothing was loaded, nothing to give back."
        text = f"Memory: {format_bytes(max(0, self.released_bytes))} given back"
        if self.tensor_bytes:
            nominal, resident = format_bytes(self.tensor_bytes), self.resident_bytes
            seen = "" if resident is None else f", {format_bytes(resident)} of it resident"
            text += f" (tensors: {nominal}{', all resident' if seen.startswith(f', {nominal} ') else seen})"
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
    `Out`, the last error's frames) goes too. Then: garbage collection, torch's GPU cache, and the free pages of glibc's
    heaps. What libraries keep for themselves stays.
    """
    before = probe_memory()
    dropped = tuple(name for name in dict.fromkeys(names) if name in namespace)
    watched, tensor_bytes, resident_bytes = _survey(namespace, dropped)
    aliases = _forget(namespace, dropped)
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    _call_glibc("malloc_trim", 0)
    kept = tuple(name for name, references in watched.items() if any(one() is not None for one in references))
    return Release(before, probe_memory(), dropped, kept, aliases if kept else (), tensor_bytes, resident_bytes)


def measure_tensor_bytes(tensors: Iterable[Any]) -> tuple[int, int | None]:
    """Return (nominal, resident) bytes of tensors and arrays; tensors that share a storage count it once.

    What is on a GPU is resident there. The second is None if the system does not say which pages are in memory.
    """
    blocks = {address: (size, is_paged) for address, size, is_paged in map(_find_block, tensors) if address}
    nominal_bytes = sum(size for size, _ in blocks.values())
    try:
        with open("/proc/self/pagemap", "rb") as pagemap:
            return nominal_bytes, sum(
                _count_resident(pagemap, address, size) if is_paged else size
                for address, (size, is_paged) in blocks.items()
            )
    except OSError:
        return nominal_bytes, None


def probe_memory(*, gpu_index: int = 0) -> dict[str, int | None]:
    """Return the four numbers of this module's docstring in bytes; None for those that this machine cannot tell.

    Never loads torch and never wakes a GPU: torch's numbers exist once this process uses CUDA. `gpu_index` counts as
    NVML does, which differs from torch's count if CUDA_VISIBLE_DEVICES is set.
    """
    try:
        import psutil

        rss_bytes = psutil.Process().memory_info().rss
    except ImportError:
        rss_bytes = None
    allocated_bytes = reserved_bytes = None
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized() and gpu_index < torch.cuda.device_count():
        allocated_bytes, reserved_bytes = torch.cuda.memory_allocated(gpu_index), torch.cuda.memory_reserved(gpu_index)
    with Nvml() as nvml:
        memory = nvml.ask("nvmlDeviceGetMemoryInfo", nvml.ask("nvmlDeviceGetHandleByIndex", gpu_index))
    return {
        "rss_bytes": rss_bytes,
        "torch_allocated_bytes": allocated_bytes,
        "torch_reserved_bytes": reserved_bytes,
        "nvml_used_bytes": None if memory is None else memory.used,
    }


@contextlib.contextmanager
def map_large_blocks() -> Iterator[None]:
    """Inside, give each new block of 128 KiB or more a mapping of its own, which goes back as soon as it is freed.

    glibc moves that border up to 32 MiB by itself when the first large block is freed. Converted weights then go into
    heaps, where one small block behind them keeps their pages: of 46 MiB, 11 MiB came back in the worst of 16
    clean-ups. Afterwards the border is 32 MiB. Elsewhere (macOS, musl) nothing is set.
    """
    _call_glibc("mallopt", _M_MMAP_THRESHOLD, _LOW_BYTES)
    try:
        yield
    finally:
        _call_glibc("mallopt", _M_MMAP_THRESHOLD, _HIGH_BYTES)
        _call_glibc("mallopt", _M_TRIM_THRESHOLD, 2 * _HIGH_BYTES)  # where glibc's own ends up


def _call_glibc(function: str, *arguments: int) -> None:
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):
            getattr(ctypes.CDLL(None), function)(*arguments)


def _find_block(tensor: Any) -> tuple[int, int, bool]:
    """Return (address, bytes, whether it is in this process's pages) of a tensor's storage or an array's values."""
    try:
        if hasattr(tensor, "untyped_storage"):
            storage = tensor.untyped_storage()
            return storage.data_ptr(), storage.nbytes(), tensor.device.type == "cpu"
        return tensor.ctypes.data, tensor.nbytes, True
    except Exception:  # an array of some other library
        return id(tensor), _read_nbytes(tensor), False


def _count_resident(pagemap, address: int, size: int) -> int:
    """Return how many of `size` bytes from `address` are in memory: bit 63 of a page's 64 (Linux's pagemap.rst)."""
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    first, end = address // page_bytes, -(-(address + size) // page_bytes)
    pagemap.seek(8 * first)
    is_present = [entry >> 63 for entry in array.array("Q", pagemap.read(8 * (end - first)))]
    if not is_present:
        return 0
    outside = is_present[0] * (address - first * page_bytes) + is_present[-1] * (end * page_bytes - address - size)
    return sum(is_present) * page_bytes - outside


def _survey(namespace: MutableMapping, names: tuple[str, ...]) -> tuple[dict[str, list[weakref.ref]], int, int | None]:
    """Return what to watch of each name (its value, a container's items, all tensors in it), and the tensors' bytes."""
    watched, tensors = {}, {}
    for name in names:
        value = namespace[name]
        found = [one for one in _walk(value, namespace) if _read_nbytes(one)]
        tensors |= {id(one): one for one in found}
        items = gc.get_referents(value) if isinstance(value, _CONTAINERS) else []
        watched[name] = []
        for one in (value, *items, *found):
            with contextlib.suppress(TypeError):  # lists, dictionaries and numbers know no weak references
                watched[name].append(weakref.ref(one))
    return watched, *measure_tensor_bytes(tensors.values())


def _walk(value: object, namespace: MutableMapping) -> Iterable[object]:
    """Return all objects that a value leads to, itself included, but nothing behind `_WALLS` or the namespace."""
    seen, found, todo = {id(namespace)}, [], [value]
    while todo:
        one = todo.pop()
        if id(one) not in seen and not issubclass(type(one), _WALLS):
            seen.add(id(one))
            found.append(one)
            todo += gc.get_referents(one)
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
    """Drop the names and what IPython remembers of them; return the learner's other variables that hold the same."""
    identities = {id(namespace[name]) for name in names}
    same = [name for name, value in namespace.items() if id(value) in identities and name not in names]
    for name in (*names, *(name for name in same if name.startswith("_"))):
        del namespace[name]
    for memory in _list_ipython_memories(namespace):
        for key in [key for key, value in memory.items() if id(value) in identities]:
            memory[key] = None
    for name in ("last_exc", "last_value", "last_traceback"):  # an error's frames hold what its functions were given
        if hasattr(sys, name):
            setattr(sys, name, None)
    return tuple(name for name in same if not name.startswith("_"))


def _list_ipython_memories(namespace: MutableMapping[str, object]) -> list[dict]:
    """Return the dictionaries in which IPython keeps what cells showed: Out, hidden names, its hook, last result."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if hasattr(ipython, "get_ipython") else None
    memories = (
        namespace.get("Out"),
        getattr(shell, "user_ns_hidden", None),
        getattr(getattr(shell, "displayhook", None), "__dict__", None),
        getattr(getattr(shell, "last_execution_result", None), "__dict__", None),
    )
    return [memory for memory in memories if isinstance(memory, dict)]
