"""Measured ceilings: rounds on simulated devices, what each benchmark counts, and steps that all do the same work."""

import json
from pathlib import Path

import pytest

from labkit import ceilings
from labkit.ceilings import (
    CacheLevel,
    MeasuredCeiling,
    Microbenchmark,
    choose_sizes,
    load_narrow_model,
    load_random_model,
    measure_gemm_rate,
    measure_op_dispatch,
    measure_prefills,
    measure_rounds,
    measure_steps,
    probe_caches,
    run_prefill,
)
from labkit.errors import HardwareError, LabkitError, ModelError
from labkit.roofline import estimate_decode_step, estimate_num_parameters
from labkit.timing import SimulatedDevice, VirtualClock

ROOT = Path(__file__).resolve().parents[1]
CONFIG = json.loads((ROOT / "data" / "models" / "python-11m" / "config.json").read_text())
NARROW = CONFIG | {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
                   "intermediate_size": 32, "vocab_size": 64, "num_hidden_layers": 2}  # fmt: skip


# Rounds


def launch_benchmark(device, *, seconds, amount):
    def run(repeats):
        for _ in range(repeats):
            device.launch(seconds)

    return Microbenchmark(run, amount)


def test_rates_on_an_asynchronous_device_wait_for_it():
    clock = VirtualClock()
    device = SimulatedDevice(clock, launch_s=0.0)
    benchmarks = {
        "a": launch_benchmark(device, seconds=0.002, amount=8e6),
        "b": launch_benchmark(device, seconds=0.010, amount=1e6),
    }
    found = measure_rounds(benchmarks, device=device, num_rounds=6, clock=clock)
    assert found["a"] == pytest.approx([4e9] * 6)  # a clock that does not wait would see the launches only
    assert found["b"] == pytest.approx([1e8] * 6)


def test_benchmarks_take_turns_and_each_round_starts_with_another():
    clock, seen = VirtualClock(), []
    device = SimulatedDevice(clock, launch_s=0.0)

    def benchmark(name):
        def run(repeats):
            seen.append((name, repeats))
            device.launch(0.005 * repeats)

        return Microbenchmark(run, 1.0)

    measure_rounds({name: benchmark(name) for name in "abc"}, device=device, num_rounds=3, clock=clock)
    assert "".join(name for name, _ in seen[-9:]) == "abcbcacab"


def test_short_work_is_repeated_until_a_clock_can_measure_it():
    clock, seen = VirtualClock(), []
    device = SimulatedDevice(clock, launch_s=0.0)

    def run(repeats):
        seen.append(repeats)
        device.launch(1e-6 * repeats)

    found = measure_rounds(
        {"a": Microbenchmark(run, 5.0)}, device=device, num_rounds=2, min_sample_s=0.001, clock=clock
    )
    assert 1000 <= seen[-1] <= 2000
    assert found["a"] == pytest.approx([5e6, 5e6])


def test_a_ceiling_has_its_samples_their_median_and_its_interval():
    rate = MeasuredCeiling("copy", "B/s", (1.0, 5.0, 2.0, 3.0, 4.0, 9.0), 64)
    assert rate.median == 3.5
    assert (rate.interval.low, rate.interval.high) == (1.0, 9.0)
    assert not rate.is_steady, "1 to 9 is no ceiling"
    assert MeasuredCeiling("copy", "B/s", (4.0, 4.1, 4.2, 4.3, 4.4, 5.0), 64).is_steady
    assert not MeasuredCeiling("copy", "B/s", (4.0, 4.1, 4.2, 4.3, 4.4, 5.1), 64).is_steady
    assert MeasuredCeiling("copy", "B/s", (1.0, 2.0), 64).interval is None
    assert not MeasuredCeiling("copy", "B/s", (1.0, 1.0), 64).is_steady


@pytest.mark.parametrize("options", [{"num_rounds": 0}, {"min_sample_s": 0.0}])
def test_rounds_that_measure_nothing_are_refused(options):
    with pytest.raises(LabkitError, match="positive"):
        measure_rounds({}, **options)


# Caches and sizes


def test_caches_are_read_from_the_operating_system(tmp_path, monkeypatch):
    rows = [("1", "Data", "32K"), ("1", "Instruction", "32K"), ("2", "Unified", "512K"), ("3", "Unified", "32M")]
    for number, row in enumerate(rows):
        folder = tmp_path / f"index{number}"
        folder.mkdir()
        for name, text in zip(("level", "type", "size"), row, strict=True):
            (folder / name).write_text(text + "\n")
    (tmp_path / "index9").mkdir()  # a level that does not say what it is
    monkeypatch.setattr(ceilings, "_CPU_CACHES", tmp_path)
    assert probe_caches() == (CacheLevel(1, 2**15), CacheLevel(2, 2**19), CacheLevel(3, 2**25))
    monkeypatch.setattr(ceilings, "_CPU_CACHES", tmp_path / "missing")
    assert probe_caches() == ()


def test_the_sweep_reaches_well_past_the_largest_cache_but_not_past_the_memory():
    caches = (CacheLevel(2, 2**19), CacheLevel(3, 2**25))
    assert choose_sizes(caches)[0] == 2**16
    assert choose_sizes(caches)[-1] == 2**27
    assert choose_sizes(())[-1] == 2**26  # no cache is known: 64 MiB
    assert choose_sizes((CacheLevel(3, 2**30),))[-1] == 2**30
    assert choose_sizes(caches, free_bytes=2**27)[-1] == 2**24
    assert choose_sizes(caches, free_bytes=1) == (2**16,)


def test_a_copy_moves_every_byte_between_two_arrays_that_do_not_collide():
    for size in (2**16, 2**20, 12_345_672):
        benchmark = ceilings._make_cpu_copy(size, "cpu")
        assert benchmark.amount == size // 8 * 8  # half read, half written
        source, target = (
            cell.cell_contents for cell in benchmark.run.__closure__ if hasattr(cell.cell_contents, "ctypes")
        )
        assert (target.ctypes.data - source.ctypes.data) % 4096 == 2048
        assert target.ctypes.data >= source.ctypes.data + source.nbytes
        benchmark.run(3)
        assert (target == -1.0).all()
        assert (source == 1.0).all()


def test_a_working_set_under_a_page_is_refused():
    with pytest.raises(LabkitError, match="4096"):
        ceilings.measure_copy_bandwidth([100])


# Steps


class CountingDevice:
    """Stands for a GPU whose work is done at once: it counts how often it was waited for."""

    name, place = "counted", "cpu"

    def __init__(self):
        self.num_waits = 0

    def synchronize(self):
        self.num_waits += 1

    def record_event(self):
        return None


@pytest.mark.slow
def test_every_step_waits_for_the_device_on_both_sides():
    pytest.importorskip("transformers")
    device, model = CountingDevice(), load_random_model(NARROW)
    found = measure_steps({"a": model, "b": model}, context_tokens=4, num_rounds=5, num_warmup=1, device=device)
    assert [len(samples) for samples in found.values()] == [5, 5]
    assert device.num_waits == 2 * 2 * 6


@pytest.mark.slow
def test_every_step_sees_the_same_context_and_the_threads_are_restored(monkeypatch):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    model, lengths, threads = load_random_model(NARROW), [], []
    before = torch.get_num_threads()

    def hook(module, args, kwargs):
        lengths.append(kwargs["past_key_values"].get_seq_length() if kwargs.get("past_key_values") is not None else 0)
        threads.append(torch.get_num_threads())

    model.register_forward_pre_hook(hook, with_kwargs=True)
    torch.set_num_threads(2)
    try:
        measure_steps({"a": model}, context_tokens=7, batch=3, num_rounds=4, num_warmup=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert lengths == [0] + [7] * 6
    assert set(threads[1:]) == {1}


def count_operations(model):
    """How many operations one decode step gives to torch, and their FLOPs."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import FlopCounterMode

    class Count(TorchDispatchMode):
        num = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.num += 1
            return function(*args, **(kwargs or {}))

    cache = run_prefill(model, prompt_tokens=8)
    one = torch.zeros((1, 1), dtype=torch.long)
    with torch.no_grad(), FlopCounterMode(display=False) as flops, Count() as count:
        model(one, past_key_values=cache, use_cache=True)
    return count.num, flops.get_total_flops()


@pytest.mark.slow
def test_a_narrow_model_runs_the_operations_of_the_wide_one_on_almost_nothing():
    pytest.importorskip("transformers")
    wide, _ = count_operations(load_random_model(CONFIG))
    wide_flops = estimate_decode_step(CONFIG, context_tokens=8).flops
    narrow, narrow_flops = count_operations(load_narrow_model(CONFIG))
    assert narrow == wide
    assert narrow_flops < 0.03 * wide_flops
    # Operations follow layers, not width: each layer adds as many.
    counts = [count_operations(load_narrow_model(CONFIG | {"num_hidden_layers": n}))[0] for n in (4, 8, 16)]
    assert counts[2] - counts[1] == 2 * (counts[1] - counts[0])
    assert count_operations(load_narrow_model(CONFIG | {"intermediate_size": 8192}))[0] == narrow


@pytest.mark.slow
def test_steps_of_several_models_are_timed_in_turns():
    pytest.importorskip("transformers")
    models = {str(n): load_narrow_model(NARROW | {"num_hidden_layers": n}) for n in (1, 2)}
    found = measure_steps(models, context_tokens=8, num_rounds=3)
    assert {name: len(samples) for name, samples in found.items()} == {"1": 3, "2": 3}
    assert all(seconds > 0 for samples in found.values() for seconds in samples)


@pytest.mark.slow
def test_a_mixture_of_experts_can_be_narrowed_too():
    pytest.importorskip("transformers")
    config = {"model_type": "qwen3_moe", "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32,
              "num_key_value_heads": 4, "head_dim": 128, "num_experts": 8, "num_experts_per_tok": 2,
              "moe_intermediate_size": 768, "intermediate_size": 6144, "vocab_size": 151936}  # fmt: skip
    narrow = load_narrow_model(config)
    assert (len(narrow.model.layers), narrow.config.num_experts) == (48, 8)
    (seconds,) = measure_steps({"narrow": narrow}, context_tokens=8, num_rounds=1)["narrow"]
    assert seconds > 0


def test_a_config_that_cannot_be_narrowed_is_refused():
    with pytest.raises(ModelError, match="narrowed"):
        load_narrow_model({"model_type": "opt", "num_hidden_layers": 2})


class FixedStopwatch:
    """A stopwatch on which everything takes 10 ms."""

    elapsed_s = 0.01

    def __init__(self, **options):
        self.options = options

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


@pytest.mark.slow
def test_the_time_of_one_operation_is_that_of_a_sample_over_its_operations(monkeypatch):
    pytest.importorskip("torch")
    assert measure_op_dispatch(num_rounds=2, num_ops=20).median > 0
    monkeypatch.setattr(ceilings, "Stopwatch", FixedStopwatch)
    found = measure_op_dispatch(num_rounds=6, num_ops=200)
    assert found.samples == pytest.approx([0.01 / 200] * 6)


# GEMM and GEMV


@pytest.mark.slow
def test_a_slow_format_gets_a_small_product_and_a_quick_one_a_larger_one(monkeypatch):
    pytest.importorskip("torch")
    done = []  # the FLOPs of each call

    class SimulatedStopwatch(FixedStopwatch):
        @property
        def elapsed_s(self):
            return done[-1] / flop_per_s

    def make(n, dtype, device):
        return Microbenchmark(lambda repeats: done.append(2.0 * n**3 * repeats), 2.0 * n**3)

    monkeypatch.setattr(ceilings, "Stopwatch", SimulatedStopwatch)
    monkeypatch.setattr(ceilings, "_make_gemm", make)
    for flop_per_s, size in ((1e8, 128), (1e11, 1024), (1e18, 8192)):  # a sample takes at most 1 s / 13
        found = measure_gemm_rate("float32", max_time_s=1.0, num_rounds=10)
        assert (found.size, found.unit, len(found.samples)) == (size, "FLOP/s", 10)
        assert found.median == pytest.approx(flop_per_s)


@pytest.mark.slow
def test_a_product_runs_at_the_size_that_was_asked_for():
    pytest.importorskip("torch")
    found = measure_gemm_rate("bfloat16", size=64, num_rounds=2)
    assert (found.size, len(found.samples)) == (64, 2)
    assert measure_gemm_rate("float32", max_time_s=1e-9, num_rounds=1).size == 128


@pytest.mark.slow
def test_formats_that_a_device_does_not_have_are_refused():
    pytest.importorskip("torch")
    with pytest.raises(HardwareError, match="TF32"):
        measure_gemm_rate("tf32")
    with pytest.raises(LabkitError, match="float32"):
        measure_gemm_rate("int3")


@pytest.mark.slow
def test_the_precision_of_float32_is_set_and_restored(monkeypatch):
    torch = pytest.importorskip("torch")
    seen, product = [], torch.mm

    def watch(*args, **kwargs):
        seen.append(torch.get_float32_matmul_precision())
        return product(*args, **kwargs)

    monkeypatch.setattr(torch, "mm", watch)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        measure_gemm_rate("float32", size=32, num_rounds=2)
        assert set(seen) == {"highest"}, "TF32 would count as float32"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.slow
def test_reading_a_matrix_is_counted_by_its_own_bytes(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(ceilings, "Stopwatch", FixedStopwatch)
    found = ceilings.measure_gemv_bandwidth([2**20, 2**22], num_rounds=3, min_sample_s=0.002)
    assert [one.size for one in found] == [2**20, 2**22]
    assert [one.samples for one in found] == [pytest.approx([2**20 / 0.01] * 3), pytest.approx([2**22 / 0.01] * 3)]


class FakeGpu(CountingDevice):
    """Stands for a GPU: tensors go to torch's "meta" device, which has shapes and kernels but no numbers."""

    name, place = "cuda:0", "meta"


@pytest.mark.slow
def test_on_a_gpu_everything_runs_there_and_is_waited_for(monkeypatch):
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    device = FakeGpu()
    (copy,) = ceilings.measure_copy_bandwidth([2**16], device=device, num_rounds=4, min_sample_s=1e-4)
    assert device.num_waits >= 2 * 4 + 2, "both sides of every sample, and of the calibration"
    (gemv,) = ceilings.measure_gemv_bandwidth([2**16], dtype="float16", device=device, num_rounds=2, min_sample_s=1e-4)
    assert (len(copy.samples), len(gemv.samples)) == (4, 2)
    seen, product = [], torch.mm

    def watch(a, b, *, out):
        seen.append((a.device.type, a.dtype, torch.get_float32_matmul_precision()))
        return product(a, b, out=out)

    monkeypatch.setattr(torch, "mm", watch)
    for dtype in ("tf32", "float32", "bfloat16"):
        assert measure_gemm_rate(dtype, size=16, device=device, num_rounds=1, min_sample_s=1e-5).size == 16
    assert set(seen) == {("meta", torch.float32, "high"), ("meta", torch.float32, "highest"),
                         ("meta", torch.bfloat16, "highest")}  # fmt: skip
    assert torch.get_num_threads() == threads


@pytest.mark.slow
def test_the_cache_of_a_gpu_is_its_l2(monkeypatch):
    torch = pytest.importorskip("torch")

    class Properties:
        L2_cache_size = 50 * 2**20

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda place: {"cuda:1": Properties}[place])
    assert probe_caches("cuda:1") == (CacheLevel(2, 50 * 2**20),)
    assert choose_sizes(probe_caches("cuda:1"))[-1] == 2**27


@pytest.mark.slow
def test_the_copy_of_a_gpu_moves_what_it_counts():
    torch = pytest.importorskip("torch")
    benchmark = ceilings._make_torch_copy(2**16, "cpu")
    assert benchmark.amount == 2**16
    source, target = sorted(
        (cell.cell_contents for cell in benchmark.run.__closure__ if isinstance(cell.cell_contents, torch.Tensor)),
        key=lambda tensor: float(tensor[0]),
    )
    benchmark.run(2)
    assert torch.equal(source, target)
    assert source.nbytes + target.nbytes == 2**16


@pytest.mark.slow
def test_a_format_that_does_not_run_is_a_hardware_error(monkeypatch):
    torch = pytest.importorskip("torch")

    def refuse(*args, **kwargs):
        raise RuntimeError('"addmm_impl" not implemented for this')

    monkeypatch.setattr(torch, "mm", refuse)
    with pytest.raises(HardwareError, match="bfloat16 product does not run on cpu: .*not implemented"):
        measure_gemm_rate("bfloat16", size=16)


@pytest.mark.slow
def test_a_prefill_is_timed_from_an_empty_cache(monkeypatch):
    pytest.importorskip("transformers")
    model, seen = load_random_model(NARROW), []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((tuple(args[0].shape), kwargs.get("past_key_values"))),
        with_kwargs=True,
    )
    device = CountingDevice()
    assert len(measure_prefills(model, prompt_tokens=9, batch=2, num_rounds=3, device=device)) == 3
    assert seen == [((2, 9), None)] * 4
    assert device.num_waits == 8


@pytest.mark.slow
def test_random_models_of_one_seed_are_equal_and_leave_the_generator_alone():
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    state = torch.random.get_rng_state()
    a, b = (load_random_model(NARROW, tie_word_embeddings=False) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert sum(x.numel() for x in a.parameters()) == estimate_num_parameters(NARROW | {"tie_word_embeddings": False})
