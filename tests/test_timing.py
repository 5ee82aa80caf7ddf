"""Timing on virtual clocks, on a fake asynchronous device (case 19), and on the wall (case 18)."""

import inspect
import itertools
import sys
import time
import types

import numpy as np
import pytest

from labkit import timing
from labkit.errors import HardwareError, LabkitError
from labkit.timing import SimulatedDevice, Stopwatch, VirtualClock, measure_calls, synchronize


class AsynchronousDevice:
    """A fake GPU: work is queued at once and done later; only `synchronize` waits for it."""

    name = "fake"

    def __init__(self, clock):
        self.clock = clock
        self.busy_until = 0.0

    def launch(self, work_s, *, launch_s=0.0):
        self.clock.sleep(launch_s)
        self.busy_until = max(self.busy_until, self.clock()) + work_s

    def synchronize(self):
        self.clock.sleep(max(0.0, self.busy_until - self.clock()))

    def record_event(self):
        return None


class DeviceWithEvents(AsynchronousDevice):
    """The same with events like CUDA's, whose host also loses 20 µs whenever it waits."""

    def record_event(self):
        return Event(max(self.clock(), self.busy_until))

    def synchronize(self):
        super().synchronize()
        self.clock.sleep(20e-6)


class Event:
    def __init__(self, at_s):
        self.at_s = at_s

    def elapsed_time(self, stop):
        return (stop.at_s - self.at_s) * 1e3


def sleeper(clock, durations):
    """Return a function whose i-th call takes the i-th duration."""
    durations = iter(durations)
    return lambda: clock.sleep(next(durations))


def test_case_19_without_synchronization_the_answer_is_the_launch_and_not_the_work():
    clock = VirtualClock()
    device = AsynchronousDevice(clock)
    before = clock()
    device.launch(0.010, launch_s=10e-6)
    naive_s = clock() - before
    assert naive_s == pytest.approx(10e-6)
    result = measure_calls(lambda: device.launch(0.010, launch_s=10e-6), device=device, clock=clock)
    assert result.samples_s == pytest.approx([0.010 + 10e-6] * len(result.samples_s))
    assert (result.device, result.clock) == ("fake", "host")


def test_case_19_work_queued_before_does_not_count():
    clock = VirtualClock()
    device = AsynchronousDevice(clock)
    device.launch(5.0)
    with Stopwatch(device=device, clock=clock) as watch:
        clock.sleep(0.01)
    assert watch.elapsed_s == pytest.approx(0.01)


def test_case_19_every_call_is_synchronized_on_both_sides():
    clock = VirtualClock()
    order = []
    device = types.SimpleNamespace(name="fake", synchronize=lambda: order.append("s"), record_event=lambda: None)

    def work():
        order.append("w")
        clock.sleep(0.1)

    result = measure_calls(work, device=device, clock=clock, num_warmup=2)
    text = "".join(order)
    assert text.lstrip("s") == ("wss" * (2 + len(result.samples_s)))[:-1]
    assert text.index("w") == 2 * timing.NUM_OVERHEAD_CALLS + 1  # the empty function too


def test_case_19_no_option_leaves_the_synchronization_out():
    assert not [name for name in inspect.signature(measure_calls).parameters if "sync" in name]
    with pytest.raises(LabkitError, match="synchronize"):
        measure_calls(lambda: None, device=types.SimpleNamespace(name="no sync", record_event=lambda: None))


def test_the_default_device_waits_for_a_gpu_that_torch_already_uses(monkeypatch):
    clock = VirtualClock()
    gpu = AsynchronousDevice(clock)
    cuda = types.SimpleNamespace(is_initialized=lambda: True, synchronize=gpu.synchronize)
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))
    result = measure_calls(lambda: gpu.launch(0.010, launch_s=0.001), clock=clock)
    assert result.summary.p50 == pytest.approx(0.011)
    gpu.launch(1.0)
    synchronize()
    assert clock() >= gpu.busy_until


def test_the_default_device_leaves_an_unused_gpu_asleep(monkeypatch):
    cuda = types.SimpleNamespace(is_initialized=lambda: False)  # synchronize() would be an AttributeError
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))
    synchronize("cpu")


def test_events_of_the_device_are_used_if_it_has_them():
    clock = VirtualClock()
    device = DeviceWithEvents(clock)
    result = measure_calls(lambda: device.launch(0.010), device=device, clock=clock)
    assert result.samples_s == pytest.approx([0.010] * len(result.samples_s))  # the host's 20 µs are not in it
    assert (result.clock, result.warning) == ("device events", "")


def test_work_that_the_events_do_not_see_is_a_warning():
    clock = VirtualClock()
    device = DeviceWithEvents(clock)
    device.record_event = lambda: Event(clock())  # on a stream that does not wait for the work
    result = measure_calls(lambda: device.launch(0.010), device=device, clock=clock)
    assert "another stream" in result.warning


def test_steady_calls_stop_after_ten_samples_and_half_a_second():
    clock = VirtualClock()
    result = measure_calls(sleeper(clock, itertools.repeat(0.1)), clock=clock)
    assert len(result.samples_s) == 10  # 0.5 s had passed after 5
    clock = VirtualClock()
    result = measure_calls(sleeper(clock, itertools.repeat(0.01)), clock=clock)
    assert len(result.samples_s) in (50, 51)  # ten samples were taken after 0.1 s
    assert result.is_stable and result.warning == ""


def test_calls_that_never_settle_time_out_with_a_warning():
    clock = VirtualClock()
    durations = (0.1 * 1.2**i for i in itertools.count())  # slower and slower
    result = measure_calls(sleeper(clock, durations), clock=clock)
    assert not result.is_stable
    assert "not stable" in result.warning
    assert 10.0 <= sum(result.samples_s) + 1e-9 < 20.0


def test_noisy_calls_stop_when_the_noise_itself_is_stable():
    clock = VirtualClock()
    rng = np.random.default_rng(0)
    result = measure_calls(sleeper(clock, iter(lambda: rng.normal(0.01, 0.0005), None)), clock=clock)
    assert result.is_stable
    assert result.summary.std / result.summary.mean == pytest.approx(0.05, rel=0.3)  # far above 0.5 %
    assert sum(result.samples_s) < 10.0


def test_one_very_slow_call_ends_the_measurement_as_not_stable():
    clock = VirtualClock()
    result = measure_calls(sleeper(clock, itertools.repeat(30.0)), clock=clock, num_warmup=0)
    assert result.samples_s == (30.0,)
    assert not result.is_stable


def test_warm_up_is_kept_apart_and_every_sample_is_kept():
    clock = VirtualClock()
    durations = [5.0, 3.0, 2.0, *[0.1] * 9, 0.7, *[0.1] * 400]
    result = measure_calls(sleeper(clock, durations), clock=clock)
    assert result.warmup_samples_s == pytest.approx((5.0, 3.0, 2.0))
    assert result.samples_s == pytest.approx(durations[3 : 3 + len(result.samples_s)])
    assert max(result.samples_s) == pytest.approx(0.7)  # the outlier stays
    assert result.summary.n == len(result.samples_s)


def test_overhead_is_reported_and_not_subtracted():
    ticks = itertools.count(step=0.001)  # every reading of the clock takes 1 ms
    result = measure_calls(lambda: None, clock=lambda: next(ticks), max_time_s=1.0)
    assert result.overhead_s == pytest.approx(0.001)
    assert result.summary.p50 == pytest.approx(0.001)


def test_the_clock_never_runs_backwards_by_default():
    for function in (measure_calls, Stopwatch.__init__):
        clock = inspect.signature(function).parameters["clock"].default
        assert clock is time.perf_counter
    assert time.get_clock_info("perf_counter").monotonic


def test_a_stopwatch_waits_for_the_device_at_every_reading():
    clock = VirtualClock()
    device = AsynchronousDevice(clock)
    with Stopwatch(device=device, clock=clock) as watch:
        device.launch(0.2)
        first_s = watch.read_s()
        device.launch(0.3)
    assert first_s == pytest.approx(0.2)
    assert watch.elapsed_s == pytest.approx(0.5)


def test_a_stopwatch_that_did_not_run_says_so():
    with pytest.raises(LabkitError, match="never started"):
        Stopwatch().read_s()
    with Stopwatch() as watch, pytest.raises(LabkitError, match="not finished"):
        _ = watch.elapsed_s


def test_an_error_of_the_function_reaches_the_caller():
    with pytest.raises(ZeroDivisionError):
        measure_calls(lambda: 1 / 0)


@pytest.mark.parametrize("options", [{"min_samples": 1}, {"num_warmup": -1}, {"min_time_s": 2.0, "max_time_s": 1.0}])
def test_options_that_cannot_work_are_refused(options):
    with pytest.raises(LabkitError, match="cannot stop"):
        measure_calls(lambda: None, **options)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", 3, None])
def test_an_unknown_device_is_refused_by_name(device):
    with pytest.raises(LabkitError, match="is not a device"):
        synchronize(device)


def fake_cuda(clock, *, num_gpus=2):
    """Return a stand-in for torch whose GPUs are asynchronous, and the GPUs."""
    gpus = [DeviceWithEvents(clock) for _ in range(num_gpus)]

    class CudaEvent(Event):
        def __init__(self, *, enable_timing):
            assert enable_timing

        def record(self, stream):
            self.at_s = gpus[stream].record_event().at_s if num_gpus else None

    cuda = types.SimpleNamespace(
        is_available=lambda: num_gpus > 0,
        is_initialized=lambda: True,
        current_device=lambda: 0,
        device_count=lambda: num_gpus,
        synchronize=lambda index=0: DeviceWithEvents.synchronize(gpus[index]),
        current_stream=lambda index: index,
        Event=CudaEvent,
    )
    index = {"cuda": None, "cuda:0": 0, "cuda:1": 1, "cuda:7": 7}
    return types.SimpleNamespace(cuda=cuda, device=lambda name: types.SimpleNamespace(index=index[name])), gpus


@pytest.mark.parametrize(("name", "index"), [("cuda", 0), ("cuda:0", 0), ("cuda:1", 1)])
def test_a_cuda_device_is_timed_by_events_on_its_own_stream(monkeypatch, name, index):
    clock = VirtualClock()
    torch, gpus = fake_cuda(clock)
    monkeypatch.setitem(sys.modules, "torch", torch)
    result = measure_calls(lambda: gpus[index].launch(0.010), device=name, clock=clock)
    assert result.samples_s == pytest.approx([0.010] * len(result.samples_s))
    assert (result.device, result.clock, result.warning) == (f"cuda:{index}", "device events", "")


@pytest.mark.parametrize(("name", "num_gpus", "message"), [("cuda", 0, "no CUDA device"), ("cuda:7", 2, "2 CUDA")])
def test_a_missing_gpu_is_a_hardware_error(monkeypatch, name, num_gpus, message):
    torch, _ = fake_cuda(VirtualClock(), num_gpus=num_gpus)
    monkeypatch.setitem(sys.modules, "torch", torch)
    with pytest.raises(HardwareError, match=message):
        synchronize(name)


def test_case_18_a_sleep_of_5_ms_takes_5_ms_on_the_wall():
    """A sample reaches from the last reading of the clock before the call to the first one after it, on any host."""
    readings, naps = [], []

    def clock():
        readings.append(time.perf_counter())
        return readings[-1]

    def nap():
        start = time.perf_counter()
        time.sleep(0.005)
        naps.append((start, time.perf_counter()))

    result = measure_calls(nap, num_warmup=0, min_time_s=0.1, max_time_s=0.3, clock=clock)
    assert min(result.samples_s) >= 0.005
    assert result.samples_s == pytest.approx(
        [min(r for r in readings if r >= stop) - max(r for r in readings if r <= start) for start, stop in naps]
    )


def test_case_18_an_empty_function_takes_the_overhead_and_not_zero():
    result = measure_calls(lambda: None, min_time_s=0.01, max_time_s=0.1)
    assert result.overhead_s > 0 and result.summary.p50 > 0


def test_noise_is_the_relative_standard_deviation():
    noise = timing._Noise()
    samples = np.random.default_rng(1).exponential(size=50)
    for sample in samples:
        noise.add(sample)
    assert noise.relative_std == pytest.approx(samples.std(ddof=1) / samples.mean())


async def wait_a_moment():
    """A coroutine function: a call of it runs nothing."""


async def count_slowly():
    yield 1


def count():
    yield 1


@pytest.mark.parametrize("num_warmup", [0, 3])
@pytest.mark.parametrize("function", [wait_a_moment, count_slowly, count])
def test_a_function_whose_call_runs_nothing_is_refused(function, num_warmup):
    with pytest.raises(LabkitError, match=f"{function.__name__} gives back a coroutine or generator.*Next: let the"):
        measure_calls(function, num_warmup=num_warmup, min_time_s=0, max_time_s=0.01)


@pytest.mark.filterwarnings("error")  # a coroutine that is left behind makes Python warn
@pytest.mark.parametrize("function", [wait_a_moment, count_slowly, count])
def test_a_coroutine_that_another_function_returns_is_found_at_the_first_warm_up_call(function):
    calls = []

    def wrap():
        calls.append(1)
        return function()

    with pytest.raises(LabkitError, match="wrap gives back a coroutine or generator that has not run"):
        measure_calls(wrap, min_time_s=0, max_time_s=0.01)
    assert len(calls) == 1


@pytest.mark.parametrize("result", [5, None, "text"])
def test_a_result_in_place_of_the_function_is_refused(result):
    with pytest.raises(LabkitError, match="needs a function, and got .*Next: pass the function and not its result"):
        measure_calls(result)


# The simulated device


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


def test_the_stopwatch_of_labkit_is_not_fooled_by_a_simulated_device():
    clock = VirtualClock()
    device = SimulatedDevice(clock, launch_s=20e-6)
    with Stopwatch(device=device, clock=clock) as watch:
        device.launch(0.010)
    assert watch.elapsed_s == pytest.approx(0.01002)
    timing = measure_calls(lambda: device.launch(0.010), device=device, clock=clock)
    assert timing.device == "simulated"
    assert timing.samples_s == pytest.approx([0.01002] * len(timing.samples_s))
