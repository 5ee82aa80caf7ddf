"""Energy from a fake counter on a virtual clock (case 20): a status instead of a wrong number."""

import sys
import types

import pytest

from labkit.energy import Energy, NvmlCounter, measure_energy
from labkit.errors import HardwareError, LabkitError


class Gpu:
    """A virtual clock and the counter of a GPU that draws `watts`, counted in steps of `step_s`."""

    def __init__(self, *, watts=100.0, step_s=0.1, start_j=5000.0):
        self.now, self.joules, self.watts, self.step_s, self.start_j = 7.0, 0.0, watts, step_s, start_j

    def run(self, seconds, watts=None):
        self.now += seconds
        self.joules += seconds * (self.watts if watts is None else watts)

    def read_j(self):
        step_j = self.watts * self.step_s
        return self.start_j + (self.joules + 1e-9) // step_j * step_j

    def measure(self, function, **options):
        return measure_energy(function, counter=self, clock=lambda: self.now, synchronize=lambda: None, **options)


def test_case_20_100_watts_for_10_seconds_are_1000_joules():
    gpu = Gpu()
    result = gpu.measure(lambda: gpu.run(10))
    assert result.status == "ok"
    assert result.energy_j == pytest.approx(1000)
    assert (result.window_s, result.mean_w) == (pytest.approx(10), pytest.approx(100))
    assert result.label == "gross"


@pytest.mark.parametrize("seconds", [0.05, 0.15, 1.9])
def test_case_20_a_short_window_is_too_short_and_not_zero(seconds):
    gpu = Gpu()
    result = gpu.measure(lambda: gpu.run(seconds))
    assert (result.status, result.energy_j, result.mean_w) == ("too short", None, None)
    assert result.window_s == pytest.approx(seconds)


def test_a_slow_counter_needs_a_longer_window():
    gpu = Gpu(step_s=1.0)
    assert gpu.measure(lambda: gpu.run(10)).status == "too short"
    assert gpu.measure(lambda: gpu.run(20)).status == "ok"


def test_a_fast_counter_needs_two_seconds_all_the_same_unless_told_otherwise():
    gpu = Gpu(step_s=0.02)
    assert gpu.measure(lambda: gpu.run(1)).status == "too short"
    assert gpu.measure(lambda: gpu.run(1), min_window_s=0.5).energy_j == pytest.approx(100)


def test_the_step_of_the_counter_costs_at_most_five_percent():
    for offset in (0.0, 0.03, 0.09):
        gpu = Gpu()
        gpu.run(offset)
        assert gpu.measure(lambda gpu=gpu: gpu.run(2.05)).energy_j == pytest.approx(205, rel=0.05)


@pytest.mark.parametrize("seconds", [0.05, 10])
def test_case_20_a_counter_that_went_down_is_a_reset(seconds):
    gpu = Gpu()

    def run_over_a_reset():
        gpu.run(seconds)
        gpu.start_j = -2000.0

    result = gpu.measure(run_over_a_reset)
    assert (result.status, result.energy_j) == ("counter reset", None)


def test_a_counter_that_stands_still_is_stuck_and_not_zero_joules():
    gpu = Gpu()
    result = gpu.measure(lambda: gpu.run(10, watts=0))
    assert (result.status, result.energy_j) == ("counter stuck", None)


def test_idle_power_is_subtracted_only_when_asked_and_then_labelled():
    gpu = Gpu(watts=60.0)
    idle = gpu.measure(lambda: gpu.run(5))
    gross = gpu.measure(lambda: gpu.run(10, watts=300))
    net = gross.subtract_idle(idle)
    assert gross.energy_j == pytest.approx(3000)
    assert net.energy_j == pytest.approx(3000 - 600)
    assert (gross.label, net.label) == ("gross", "net of 60.0 W idle")


def test_idle_power_is_not_subtracted_twice_nor_taken_from_a_bad_window():
    good, bad = Energy("ok", 100.0, 10.0), Energy("too short", None, 0.1)
    with pytest.raises(LabkitError, match="once"):
        good.subtract_idle(good).subtract_idle(good)
    with pytest.raises(LabkitError, match="too short"):
        good.subtract_idle(bad)
    assert bad.subtract_idle(good) == bad
    assert good.subtract_idle(Energy("ok", 300.0, 10.0)).energy_j == -200.0  # kept, not clipped at 0


def test_the_device_is_synchronized_before_both_readings():
    gpu, order = Gpu(), []
    gpu.read_j = lambda: order.append("read") or 0.0
    measure_energy(
        lambda: order.append("work"), counter=gpu, clock=lambda: 0.0, synchronize=lambda: order.append("sync")
    )
    assert order == ["sync", "read", "work", "sync", "read"]


class NVMLError(Exception):
    pass


def fake_nvml(*, millijoules=123_456, fails_at=None):
    nvml = types.SimpleNamespace()

    def answer(name, value):
        def call(*_):
            if name == fails_at:
                raise NVMLError("Not Supported")
            return value

        return call

    for name, value in (
        ("nvmlInit", None),
        ("nvmlDeviceGetHandleByIndex", 0),
        ("nvmlDeviceGetTotalEnergyConsumption", millijoules),
    ):
        setattr(nvml, name, answer(name, value))
    return nvml


def test_nvml_counts_millijoules(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml())
    assert NvmlCounter().read_j() == pytest.approx(123.456)


@pytest.mark.parametrize("fails_at", ["nvmlInit", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetTotalEnergyConsumption"])
def test_without_a_counter_the_function_still_runs_and_the_status_says_so(monkeypatch, fails_at):
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(fails_at=fails_at))
    with pytest.raises(HardwareError, match="Not Supported"):
        NvmlCounter()
    calls = []
    result = measure_energy(lambda: calls.append(1))
    assert (result.status, result.energy_j, calls) == ("no counter", None, [1])


def test_without_pynvml_there_is_no_counter(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(HardwareError, match="pynvml"):
        NvmlCounter()
    assert measure_energy(lambda: None).status == "no counter"
