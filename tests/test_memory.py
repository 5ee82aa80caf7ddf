"""Memory: four numbers that are absent where there is nothing to read, and a peak seen from a second thread."""

import itertools
import sys
import threading
import types

import pytest

from labkit.errors import LabkitError
from labkit.memory import measure_peak_rss, probe_memory

MIB = 2**20


class NVMLError(Exception):
    pass


def fake_nvml(*, has_driver=True, used_bytes=(7 * MIB, 9 * MIB)):
    """Return a stand-in for pynvml that counts open sessions."""
    nvml = types.SimpleNamespace(NVMLError=NVMLError, num_open=0)

    def init():
        if not has_driver:
            raise NVMLError("driver not loaded")
        nvml.num_open += 1

    def handle(index):
        if index >= len(used_bytes):
            raise NVMLError("invalid argument")
        return index

    nvml.nvmlInit = init
    nvml.nvmlShutdown = lambda: setattr(nvml, "num_open", nvml.num_open - 1)
    nvml.nvmlDeviceGetHandleByIndex = handle
    nvml.nvmlDeviceGetMemoryInfo = lambda index: types.SimpleNamespace(used=used_bytes[index])
    return nvml


def fake_torch(*, is_initialized=True):
    cuda = types.SimpleNamespace(
        is_initialized=lambda: is_initialized,
        device_count=lambda: 1,
        memory_allocated=lambda index: 3 * MIB,
        memory_reserved=lambda index: 5 * MIB,
    )
    return types.SimpleNamespace(cuda=cuda)


def test_on_a_machine_without_gpu_only_rss_is_a_number(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(has_driver=False))
    memory = probe_memory()
    assert memory.pop("rss_bytes") > MIB
    assert memory == {"torch_allocated_bytes": None, "torch_reserved_bytes": None, "nvml_used_bytes": None}
    assert "torch" not in sys.modules


def test_rss_is_what_the_kernel_says():
    psutil = pytest.importorskip("psutil")
    assert probe_memory()["rss_bytes"] == pytest.approx(psutil.Process().memory_info().rss, rel=0.05)


def test_packages_that_are_not_installed_are_absent_numbers(monkeypatch):
    for name in ("torch", "pynvml", "psutil"):
        monkeypatch.setitem(sys.modules, name, None)  # makes `import name` fail
    assert set(probe_memory().values()) == {None}


def test_a_gpu_gives_three_different_numbers_side_by_side(monkeypatch):
    nvml = fake_nvml()
    monkeypatch.setitem(sys.modules, "torch", fake_torch())
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    memory = probe_memory()
    assert memory["torch_allocated_bytes"] == 3 * MIB
    assert memory["torch_reserved_bytes"] == 5 * MIB
    assert memory["nvml_used_bytes"] == 7 * MIB
    assert probe_memory(gpu_index=1)["nvml_used_bytes"] == 9 * MIB
    assert probe_memory(gpu_index=1)["torch_allocated_bytes"] is None  # torch sees one GPU
    assert probe_memory(gpu_index=2)["nvml_used_bytes"] is None
    assert nvml.num_open == 0  # every session was closed


def test_a_torch_that_does_not_use_cuda_is_left_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", fake_torch(is_initialized=False))
    assert probe_memory()["torch_allocated_bytes"] is None


def test_the_peak_is_seen_while_the_function_runs_and_not_only_around_it():
    is_high, was_seen = threading.Event(), threading.Event()

    def read_rss():
        if is_high.is_set():
            was_seen.set()
            return 90 * MIB
        return 10 * MIB

    def function():
        is_high.set()
        assert was_seen.wait(timeout=30)
        is_high.clear()

    peak = measure_peak_rss(function, interval_s=0.001, read_rss=read_rss)
    assert (peak.before_bytes, peak.peak_bytes, peak.after_bytes) == (10 * MIB, 90 * MIB, 10 * MIB)
    assert peak.growth_bytes == 80 * MIB
    assert peak.num_readings >= 3


def test_a_function_too_short_for_the_watcher_still_has_a_reading_on_both_sides():
    readings = itertools.chain([10, 30], itertools.repeat(5))
    peak = measure_peak_rss(lambda: None, interval_s=60, read_rss=lambda: next(readings))
    assert (peak.before_bytes, peak.peak_bytes, peak.after_bytes, peak.num_readings) == (10, 30, 30, 2)


def test_memory_that_is_kept_shows_in_the_real_reading():
    pytest.importorskip("psutil")
    kept = []
    peak = measure_peak_rss(lambda: kept.append(bytearray(b"x") * (64 * MIB)))
    assert peak.growth_bytes > 48 * MIB


def test_the_watcher_ends_when_the_function_fails():
    num_threads = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        measure_peak_rss(lambda: 1 / 0, read_rss=lambda: 1)
    assert threading.active_count() == num_threads


def test_an_interval_of_zero_is_refused():
    with pytest.raises(LabkitError, match="interval_s"):
        measure_peak_rss(lambda: None, interval_s=0)
