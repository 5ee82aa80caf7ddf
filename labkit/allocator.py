"""Where do large blocks live? In the C library's heaps, which give back memory only from their ends, or in mappings
of their own, which go back to the system the moment they are freed.

glibc moves the border by itself: the first large block that is freed raises it, up to 32 MiB. From then on a model's
weights go into heaps (of several threads, when several load), and a small block behind them keeps their pages after
they were freed: of 42 MiB of weights, only 13 MiB came back in the worst of 64 clean-ups. So a model is loaded with the
border low. Elsewhere (macOS, musl) nothing is set, and nothing fails. Options and defaults: mallopt(3).
"""

import contextlib
import ctypes
import sys
from collections.abc import Iterator

__all__ = ["map_large_blocks", "set_trim_threshold", "trim_heap"]

# The options' numbers in glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# Where glibc's own, moving border starts and ends (on 64 bits). Setting it once fixes it.
_LOW_BYTES, _HIGH_BYTES = 128 * 2**10, 32 * 2**20
# Where glibc's own, moving threshold ends up in a process that has used large blocks: twice the border.
_TRIM_BYTES = 2 * _HIGH_BYTES


@contextlib.contextmanager
def map_large_blocks() -> Iterator[None]:
    """Inside, every new block from 128 KiB up is a mapping of its own; after it, only those from 32 MiB up."""
    _set_option(_M_MMAP_THRESHOLD, _LOW_BYTES)
    try:
        yield
    finally:
        _set_option(_M_MMAP_THRESHOLD, _HIGH_BYTES)
        set_trim_threshold()


def set_trim_threshold(num_bytes: int = _TRIM_BYTES) -> None:
    """Say how much may stay free at the end of a heap. The heaps of other threads, such as those that load a model's
    files, cannot be trimmed later: they shrink only while something in them is freed.
    """
    _set_option(_M_TRIM_THRESHOLD, num_bytes)


def trim_heap() -> None:
    """Give the heaps' free pages back to the system."""
    with contextlib.suppress(OSError, AttributeError):
        _load_glibc().malloc_trim(0)


def _set_option(option: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        _load_glibc().mallopt(option, value)


def _load_glibc() -> ctypes.CDLL:
    if not sys.platform.startswith("linux"):
        raise OSError("glibc is Linux's")
    return ctypes.CDLL(None)
