"""How many bytes per second? Copies at each size of working set, and a matrix that is read once (GEMV).

Bytes are counted as STREAM does (McCalpin, https://www.cs.virginia.edu/stream/): what is read plus what is written. A
processor that reads a line before it overwrites it moves more; that is part of what a copy costs here.

Two traps are avoided. Pages are written before they are read: untouched ones all show the same page of zeros, which
sits in a cache. And the two arrays do not begin at the same place of a 4 KiB page: stores would then collide with loads
(4K aliasing), which made a copy ten times slower on an AMD Zen 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from labkit.ceilings.rate import Job, Rate, get_place, hold_one_thread, measure_rounds
from labkit.errors import LabkitError
from labkit.hardware import probe_machine
from labkit.timing import Device

__all__ = ["Cache", "choose_sizes", "measure_copy_bandwidth", "measure_gemv_bandwidth", "probe_caches"]

_CPU_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")  # tests point it at a made-up folder
_SMALLEST_BYTES = 2**16  # smaller sets fit the first cache, and there a call from Python costs more than the copy
_LARGEST_BYTES = 2**30
_PAGE = 4096


@dataclass(frozen=True, slots=True)
class Cache:
    """One cache that holds data: its level and its capacity in bytes."""

    level: int
    capacity_bytes: int


def probe_caches(device: "str | Device" = "cpu") -> tuple[Cache, ...]:
    """Return the data caches from the smallest on: of the first CPU, or the L2 of a GPU; () where nothing tells."""
    place = get_place(device)
    if place != "cpu":
        import torch

        return (Cache(2, int(torch.cuda.get_device_properties(place).L2_cache_size)),)
    found = []
    for folder in sorted(_CPU_CACHES.glob("index*")):
        try:
            level, kind, size = ((folder / name).read_text().strip() for name in ("level", "type", "size"))
            scale = {"K": 2**10, "M": 2**20, "G": 2**30}.get(size[-1:], 1)
            if kind != "Instruction":
                found.append(Cache(int(level), int(size.rstrip("KMG")) * scale))
        except (OSError, ValueError):
            continue
    return tuple(sorted(found, key=lambda cache: cache.capacity_bytes))


def choose_sizes(caches: Sequence[Cache], *, free_bytes: int | None = None) -> tuple[int, ...]:
    """Return working sets in bytes, powers of two from 64 KiB to four times the largest cache (64 MiB to 1 GiB).

    Never more than an eighth of the free memory.
    """
    largest = max([4 * cache.capacity_bytes for cache in caches], default=0)
    limit = min(max(largest, 2**26), _LARGEST_BYTES, (free_bytes or _LARGEST_BYTES * 8) // 8)
    return tuple(2**k for k in range(16, 31) if 2**k <= max(limit, _SMALLEST_BYTES))


def measure_copy_bandwidth(
    sizes_bytes: Sequence[int] | None = None,
    *,
    device: "str | Device" = "cpu",
    num_rounds: int = 10,
    min_sample_s: float = 0.005,
) -> tuple[Rate, ...]:
    """Return one `Rate` in B/s per working set: half of it is read, the other half written, in float32.

    `sizes_bytes`: working sets (source and destination together), by default those of `choose_sizes`. On the CPU numpy
    copies with the sign flipped (the same bytes, and many copies in one call); on a GPU torch copies.
    """
    place = get_place(device)
    if sizes_bytes is None:
        free = probe_machine().memory_free_bytes if place == "cpu" else None
        sizes_bytes = choose_sizes(probe_caches(device), free_bytes=free)
    if min(sizes_bytes, default=0) < _PAGE:
        raise LabkitError(f"working sets of {list(sizes_bytes)} bytes.", next_step=f"give sizes of {_PAGE} and more.")
    make = _make_cpu_copy if place == "cpu" else _make_torch_copy
    jobs = {str(size): make(size, place) for size in sizes_bytes}
    found = measure_rounds(jobs, device=device, num_rounds=num_rounds, min_sample_s=min_sample_s)
    return tuple(Rate("copy", "B/s", samples, int(size)) for size, samples in found.items())


def measure_gemv_bandwidth(
    sizes_bytes: Sequence[int],
    *,
    dtype: str = "float32",
    device: "str | Device" = "cpu",
    num_rounds: int = 10,
    min_sample_s: float = 0.005,
) -> tuple[Rate, ...]:
    """Return one `Rate` in B/s per matrix of that many bytes, read once by a matrix-vector product.

    This is what a decode step does to each weight. The matrix has 1,024 columns; only its own bytes are counted.
    """
    import torch

    place, kind = get_place(device), getattr(torch, dtype)
    jobs = {}
    with hold_one_thread(device):
        for size in sizes_bytes:
            rows = max(1, size // (1024 * kind.itemsize))
            matrix = torch.full((rows, 1024), 0.5, dtype=kind, device=place)  # (rows, 1024)
            vector = torch.full((1024,), 0.5, dtype=kind, device=place)

            def run(repeats: int, matrix=matrix, vector=vector) -> None:
                for _ in range(repeats):
                    torch.mv(matrix, vector)

            jobs[str(size)] = Job(run, rows * 1024 * kind.itemsize)
        found = measure_rounds(jobs, device=device, num_rounds=num_rounds, min_sample_s=min_sample_s)
    return tuple(Rate(f"GEMV {dtype}", "B/s", samples, int(size)) for size, samples in found.items())


def _make_cpu_copy(size: int, place: str) -> Job:
    """Copy size / 2 bytes to another size / 2 bytes, the repeats inside one call: rows with a stride of 0 bytes."""
    num = size // 8
    gap = (_PAGE // 2 - (num * 4) % _PAGE) % _PAGE // 4  # the destination begins half a page off
    buffer = np.full(2 * num + gap, 1.0, dtype=np.float32)  # written: every page is a page of its own
    source, target = buffer[:num], buffer[num + gap :]

    def run(repeats: int) -> None:
        rows = [np.lib.stride_tricks.as_strided(one, (repeats, num), (0, 4)) for one in (source, target)]
        np.negative(rows[0], out=rows[1])

    return Job(run, 2 * num * 4)


def _make_torch_copy(size: int, place: str) -> Job:
    import torch

    num = size // 8
    source = torch.full((num,), 1.0, device=place)
    target = torch.full((num,), 2.0, device=place)

    def run(repeats: int) -> None:
        for _ in range(repeats):
            target.copy_(source)

    return Job(run, 2 * num * 4)
