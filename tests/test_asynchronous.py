import pytest

from labkit.asynchronous import SimulatedDevice, VirtualClock
from labkit.errors import LabkitError
from labkit.timing import Stopwatch, measure_calls


def test_a_launch_returns_before_the_work_is_done_and_synchronize_waits_for_it():
    clock = VirtualClock(start_s=8.0)
    device = SimulatedDevice(clock, launch_s=0.25)
    device.launch(2.0)
    assert clock() == 8.25
    device.synchronize()
    assert clock() == 10.25


def test_work_queues_behind_earlier_work():
    clock = VirtualClock()
    device = SimulatedDevice(clock, launch_s=0.25)
    device.launch(2.0)
    device.launch(1.0)
    device.synchronize()
    assert clock() == 3.25


def test_an_idle_device_starts_at_once_and_only_the_synchronization_itself_costs():
    clock = VirtualClock()
    device = SimulatedDevice(clock, launch_s=0.0, synchronize_s=0.125)
    clock.sleep(5.0)
    device.synchronize()
    assert clock() == 5.125
    device.launch(1.0)
    device.synchronize()
    assert clock() == 6.25


def test_the_clock_never_goes_back():
    with pytest.raises(LabkitError, match="cannot sleep for -1"):
        VirtualClock().sleep(-1)


def test_labkits_own_stopwatch_is_not_fooled_by_it():
    clock = VirtualClock()
    device = SimulatedDevice(clock, launch_s=20e-6)
    with Stopwatch(device=device, clock=clock) as watch:
        device.launch(0.010)
    assert watch.elapsed_s == pytest.approx(0.01002)
    timing = measure_calls(lambda: device.launch(0.010), device=device, clock=clock)
    assert timing.device == "simulated"
    assert timing.samples_s == pytest.approx([0.01002] * len(timing.samples_s))
