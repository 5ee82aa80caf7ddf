"""Large blocks: inside, a mapping of its own that goes back when it is freed; after it, the heap again."""

import ctypes
import platform
import subprocess
import sys

import pytest

from labkit import allocator

PROGRAM = """
import ctypes
from labkit.allocator import map_large_blocks

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def is_in_heap(*, is_kept=True):
    block = libc.malloc(2**20)
    ranges = [line.split()[0].split("-") for line in open("/proc/self/maps") if line.rstrip().endswith("[heap]")]
    found = any(int(low, 16) <= block < int(high, 16) for low, high in ranges)
    if not is_kept:  # kept ones leave no hole that the next would fill
        libc.free(block)
    return found

before = is_in_heap(is_kept=False)  # freed: from now on glibc would take such blocks from the heap
moved = is_in_heap()
with map_large_blocks():
    inside = is_in_heap()
try:
    with map_large_blocks():
        raise KeyError
except KeyError:
    pass
print(before, moved, inside, is_in_heap())
"""
needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these options")


@needs_glibc
def test_inside_a_large_block_is_mapped_and_afterwards_it_comes_from_the_heap_again():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["False", "True", "False", "True"], done.stderr


@pytest.mark.parametrize("change", ["another system", "another C library"])
def test_elsewhere_nothing_is_set_and_nothing_fails(monkeypatch, change):
    if change == "another system":
        monkeypatch.setattr(sys, "platform", "darwin")
        monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("asked a library"))
    else:
        monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    with allocator.map_large_blocks():
        allocator.trim_heap()
    allocator.set_trim_threshold(0)
