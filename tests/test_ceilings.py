"""Ceilings: their arithmetic on simulated devices, published peaks, and the measured ones beside independent tools."""

import json
import math
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from labkit import ceilings, stats
from labkit.ceilings import bandwidth
from labkit.ceilings.arithmetic import measure_gemm_rate
from labkit.ceilings.bandwidth import Cache, choose_sizes, probe_caches
from labkit.ceilings.peaks import find_peak, load_peaks
from labkit.ceilings.rate import Job, Rate, measure_rounds
from labkit.ceilings.steps import (
    load_narrow_model,
    load_random_model,
    measure_op_dispatch,
    measure_prefills,
    measure_steps,
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


def launch_job(device, *, seconds, amount):
    def run(repeats):
        for _ in range(repeats):
            device.launch(seconds)

    return Job(run, amount)


def test_rates_on_an_asynchronous_device_wait_for_it():
    clock = VirtualClock()
    device = SimulatedDevice(clock, launch_s=0.0)
    jobs = {"a": launch_job(device, seconds=0.002, amount=8e6), "b": launch_job(device, seconds=0.010, amount=1e6)}
    found = measure_rounds(jobs, device=device, num_rounds=6, clock=clock)
    assert found["a"] == pytest.approx([4e9] * 6)  # a clock that does not wait would see the launches only
    assert found["b"] == pytest.approx([1e8] * 6)


def test_jobs_take_turns_and_each_round_begins_with_another():
    clock, seen = VirtualClock(), []
    device = SimulatedDevice(clock, launch_s=0.0)

    def job(name):
        def run(repeats):
            seen.append((name, repeats))
            device.launch(0.005 * repeats)

        return Job(run, 1.0)

    measure_rounds({name: job(name) for name in "abc"}, device=device, num_rounds=3, clock=clock)
    assert "".join(name for name, _ in seen[-9:]) == "abcbcacab"


def test_short_work_is_repeated_until_a_clock_can_see_it():
    clock, seen = VirtualClock(), []
    device = SimulatedDevice(clock, launch_s=0.0)

    def run(repeats):
        seen.append(repeats)
        device.launch(1e-6 * repeats)

    found = measure_rounds({"a": Job(run, 5.0)}, device=device, num_rounds=2, min_sample_s=0.001, clock=clock)
    assert 1000 <= seen[-1] <= 2000
    assert found["a"] == pytest.approx([5e6, 5e6])


def test_a_rate_carries_its_samples_their_median_and_its_interval():
    rate = Rate("copy", "B/s", (1.0, 5.0, 2.0, 3.0, 4.0, 9.0), 64)
    assert rate.median == 3.5
    assert (rate.interval.low, rate.interval.high) == (1.0, 9.0)
    assert not rate.is_steady, "1 to 9 is no ceiling"
    assert Rate("copy", "B/s", (4.0, 4.1, 4.2, 4.3, 4.4, 5.0), 64).is_steady
    assert not Rate("copy", "B/s", (4.0, 4.1, 4.2, 4.3, 4.4, 5.1), 64).is_steady
    assert Rate("copy", "B/s", (1.0, 2.0), 64).interval is None
    assert not Rate("copy", "B/s", (1.0, 1.0), 64).is_steady


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
    monkeypatch.setattr(bandwidth, "_CPU_CACHES", tmp_path)
    assert probe_caches() == (Cache(1, 2**15), Cache(2, 2**19), Cache(3, 2**25))
    monkeypatch.setattr(bandwidth, "_CPU_CACHES", tmp_path / "missing")
    assert probe_caches() == ()


def test_the_sweep_reaches_well_past_the_largest_cache_but_not_past_the_memory():
    caches = (Cache(2, 2**19), Cache(3, 2**25))
    assert choose_sizes(caches)[0] == 2**16
    assert choose_sizes(caches)[-1] == 2**27
    assert choose_sizes(())[-1] == 2**26  # no cache is known: 64 MiB
    assert choose_sizes((Cache(3, 2**30),))[-1] == 2**30
    assert choose_sizes(caches, free_bytes=2**27)[-1] == 2**24
    assert choose_sizes(caches, free_bytes=1) == (2**16,)


def test_a_copy_moves_every_byte_between_two_arrays_that_do_not_collide():
    for size in (2**16, 2**20, 12_345_672):
        job = bandwidth._make_cpu_copy(size, "cpu")
        assert job.amount == size // 8 * 8  # half read, half written
        source, target = (cell.cell_contents for cell in job.run.__closure__ if hasattr(cell.cell_contents, "ctypes"))
        assert (target.ctypes.data - source.ctypes.data) % 4096 == 2048
        assert target.ctypes.data >= source.ctypes.data + source.nbytes
        job.run(3)
        assert (target == -1.0).all()
        assert (source == 1.0).all()


def test_a_working_set_under_a_page_is_refused():
    with pytest.raises(LabkitError, match="4096"):
        ceilings.measure_copy_bandwidth([100])


# Published peaks


def peak(name):
    (found,) = (one for one in load_peaks() if one.name == name)
    return found


def test_the_devices_that_the_course_promises_are_there_with_a_source_each():
    names = {one.name for one in load_peaks()}
    assert names >= {
        *("T4", "L4", "A10", "RTX 4090", "A100 SXM 40GB", "A100 SXM 80GB", "L40S"),
        *("H100 SXM", "H100 PCIe", "H200 SXM", "B200"),
    }
    assert sum(one.kind == "cpu" for one in load_peaks()) >= 2
    for one in load_peaks():
        assert one.source.startswith("https://"), one.name
        assert " " not in one.source, f"{one.name}: one source"
        assert one.checked, f"{one.name}: say what was compared with a second source, and what was not"


def test_peaks_are_dense_and_in_base_units():
    h100 = peak("H100 SXM")
    assert h100.byte_per_s == 3.35e12
    assert h100.memory_bytes == 80e9
    # 1,979 is what the sheet gives with sparsity: nobody's weights have it.
    assert h100.flop_per_s["bf16"] == pytest.approx(989.4e12)
    # 132 SMs x 4 matrix units x 1,024 multiply-adds (16-bit) a cycle at 1.83 GHz: dense, worked from the whitepaper.
    assert h100.flop_per_s["fp16"] == pytest.approx(132 * 4 * 512 * 2 * 1.83e9, rel=0.01)
    # A100: 108 SMs x 1,024 multiply-adds a cycle at 1.41 GHz.
    assert peak("A100 SXM 80GB").flop_per_s["fp16"] == pytest.approx(108 * 1024 * 2 * 1.41e9, rel=0.01)
    # T4: 40 SMs x 512 multiply-adds a cycle at 1.59 GHz.
    assert peak("T4").flop_per_s["fp16"] == pytest.approx(40 * 512 * 2 * 1.59e9, rel=0.01)


@pytest.mark.parametrize("one", load_peaks(), ids=lambda one: one.name)
def test_a_row_is_plausible(one):
    rates = one.flop_per_s
    assert 1e11 < rates["fp32"] < 1e15
    if one.kind == "cpu":
        assert "x" in one.note, "says how the peak is computed"
        return
    assert 1e11 < one.byte_per_s < 1e13
    assert 10e9 < one.memory_bytes < 300e9
    assert rates["fp32"] <= rates.get("tf32", rates["fp16"]) <= rates["fp16"] <= rates.get("fp8", rates["int8"])
    assert rates["int8"] == pytest.approx(2 * rates["fp16"], rel=0.02) or one.name == "RTX 4090"
    assert rates.get("bf16", rates["fp16"]) == rates["fp16"]
    assert ("bf16" in rates) == (one.capability >= (8, 0)), "Turing has no bf16"
    assert ("fp8" in rates) == (one.capability >= (8, 9)), "fp8 came with Ada and Hopper"
    assert one.registers_per_unit == 65536
    assert one.shared_bytes_per_unit == {7: {5: 64}, 8: {0: 164, 6: 100, 9: 100}, 9: {0: 228}, 10: {0: 228}}[
        one.capability[0]][one.capability[1]] * 1024  # fmt: skip
    assert one.warps_per_unit == {(7, 5): 32, (8, 0): 64, (8, 6): 48, (8, 9): 48}.get(one.capability, 64)
    assert 2**22 <= one.l2_bytes <= 2**28
    assert 50 <= one.power_w <= 1200


def test_newer_boards_of_a_line_are_not_slower():
    line = [peak(name) for name in ("T4", "A10", "A100 SXM 40GB", "A100 SXM 80GB", "H100 SXM", "H200 SXM", "B200")]
    for key in ("byte_per_s", "memory_bytes"):
        values = [getattr(one, key) for one in line]
        assert values == sorted(values), key
    assert [one.flop_per_s["fp16"] for one in line] == sorted(one.flop_per_s["fp16"] for one in line)
    assert peak("H100 PCIe").byte_per_s < peak("H100 SXM").byte_per_s


@pytest.mark.parametrize(
    ("driver_name", "row"),
    [
        ("Tesla T4", "T4"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA A10G", None),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA A100-SXM4-40GB", "A100 SXM 40GB"),
        ("NVIDIA A100-SXM4-80GB", "A100 SXM 80GB"),
        ("NVIDIA A100 80GB PCIe", None),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA H200", "H200 SXM"),
        ("NVIDIA B200", "B200"),
        ("AMD EPYC 7763 64-Core Processor", "AMD EPYC 7763 one core"),
        ("AMD EPYC", None),
        ("NVIDIA GeForce RTX 3090", None),
    ],
)
def test_a_device_is_found_as_its_driver_names_it_and_never_by_half(driver_name, row):
    found = find_peak(driver_name)
    assert (found and found.name) == row


def test_a_damaged_table_says_which_row(tmp_path, monkeypatch):
    text = (ROOT / "data" / "reference" / "devices.csv").read_text().replace("T4,gpu,7.5,16,320", "T4,gpu,7.5,16,fast")
    (tmp_path / "data" / "reference").mkdir(parents=True)
    (tmp_path / "data" / "reference" / "devices.csv").write_text(text)
    monkeypatch.setattr("labkit.ceilings.peaks.find_course_root", lambda: tmp_path)
    with pytest.raises(HardwareError, match="'T4'"):
        load_peaks()


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
def test_every_step_sees_the_same_context_and_the_threads_are_given_back(monkeypatch):
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
def test_sixteen_layers_take_clearly_longer_to_dispatch_than_four():
    pytest.importorskip("transformers")
    models = {str(n): load_narrow_model(CONFIG | {"num_hidden_layers": n}) for n in (4, 16)}
    found = measure_steps(models, context_tokens=8, num_rounds=40)  # in turns: a busy moment meets both
    assert statistics.median(found["16"]) > 1.5 * statistics.median(found["4"])
    assert ceilings.measure_dispatch(CONFIG, num_rounds=3).size == 6


@pytest.mark.slow
def test_a_mixture_of_experts_can_be_narrowed_too():
    pytest.importorskip("transformers")
    config = {"model_type": "qwen3_moe", "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32,
              "num_key_value_heads": 4, "head_dim": 128, "num_experts": 8, "num_experts_per_tok": 2,
              "moe_intermediate_size": 768, "intermediate_size": 6144, "vocab_size": 151936}  # fmt: skip
    rate = ceilings.measure_dispatch(config, num_rounds=2)
    assert rate.size == 48
    assert rate.median > 0


def test_a_config_that_cannot_be_narrowed_is_refused():
    with pytest.raises(ModelError, match="narrowed"):
        ceilings.measure_dispatch({"model_type": "opt", "num_hidden_layers": 2})


@pytest.mark.slow
def test_one_operation_costs_something():
    pytest.importorskip("torch")
    rate = measure_op_dispatch(num_rounds=6, num_ops=200)
    assert 1e-8 < rate.median < 1e-3
    assert len(rate.samples) == 6


# GEMM and GEMV


@pytest.mark.slow
def test_a_slow_format_gets_a_small_product_and_float32_a_larger_one():
    pytest.importorskip("torch")
    quick = measure_gemm_rate("float32", max_time_s=1.0, num_rounds=6)
    slow = measure_gemm_rate("float32", max_time_s=1e-9, num_rounds=6)
    assert slow.size == 128 < quick.size
    assert (quick.unit, len(quick.samples)) == ("FLOP/s", 6)
    assert measure_gemm_rate("bfloat16", size=64, num_rounds=2).size == 64


@pytest.mark.slow
def test_formats_that_a_device_has_not_are_refused():
    pytest.importorskip("torch")
    with pytest.raises(HardwareError, match="TF32"):
        measure_gemm_rate("tf32")
    with pytest.raises(LabkitError, match="float32"):
        measure_gemm_rate("int3")


@pytest.mark.slow
def test_the_precision_of_float32_is_held_and_given_back(monkeypatch):
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
def test_reading_a_matrix_is_counted_by_its_own_bytes():
    pytest.importorskip("torch")
    clock_free = ceilings.measure_gemv_bandwidth([2**20, 2**22], num_rounds=3, min_sample_s=0.002)
    assert [rate.size for rate in clock_free] == [2**20, 2**22]
    assert all(1e8 < rate.median < 1e13 for rate in clock_free)


class FakeGpu(CountingDevice):
    """Stands for a GPU: tensors go to torch's "meta" device, which has shapes and kernels but no numbers."""

    name, place = "cuda:0", "meta"


@pytest.mark.slow
def test_the_path_of_a_gpu_copies_multiplies_and_waits(monkeypatch):
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
    assert probe_caches("cuda:1") == (Cache(2, 50 * 2**20),)
    assert choose_sizes(probe_caches("cuda:1"))[-1] == 2**27


@pytest.mark.slow
def test_the_copy_of_a_gpu_moves_what_it_counts():
    torch = pytest.importorskip("torch")
    job = bandwidth._make_torch_copy(2**16, "cpu")
    assert job.amount == 2**16
    source, target = sorted(
        (cell.cell_contents for cell in job.run.__closure__ if isinstance(cell.cell_contents, torch.Tensor)),
        key=lambda tensor: float(tensor[0]),
    )
    job.run(2)
    assert torch.equal(source, target)
    assert source.nbytes + target.nbytes == 2**16


@pytest.mark.slow
def test_a_format_that_does_not_run_is_told_apart_from_a_mistake(monkeypatch):
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


# Beside independent tools, in the same run, in turns


STREAM_C = r"""
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + 1e-9 * t.tv_nsec; }
int main(int argc, char **argv) {
    size_t n = strtoull(argv[1], 0, 10) / 16;
    double *buffer = aligned_alloc(1 << 21, (16 * n + 8192 + (1 << 21)) >> 21 << 21);
    double *a = buffer, *b = buffer + n + 256;
    madvise(buffer, 16 * n + 8192, MADV_HUGEPAGE); /* numpy asks for large pages too: small ones cost a fifth here */
    double scalar = -atof(argv[2]); /* STREAM's kernel "scale", with -1: what numpy's negative does */
    long repeats = (long)(1e8 / (16.0 * n)) + 1;
    for (size_t i = 0; i < n; i++) { a[i] = 1; b[i] = 2; }
    for (int round = -1; round < 3; round++) {
        double start = now();
        for (long k = 0; k < repeats; k++) {
            for (size_t i = 0; i < n; i++) b[i] = scalar * a[i];
            __asm__ volatile("" : : "r"(a), "r"(b) : "memory");
        }
        if (round >= 0) printf("%.9e\n", 16.0 * n * repeats / (now() - start));
    }
    return argc - 3;
}
"""


def expect_steady(*both):
    """Skip where a tool does not even agree with itself: on a busy host "invalid" is a legal outcome."""
    for samples in both:
        low, high = np.percentile(samples, [20, 80])
        if high > 1.15 * low:
            pytest.skip(f"this host is too busy to tell: the same work gave {low:.3g} to {high:.3g} per second")


def overlap(mine, theirs, *, allowance):
    """Whether the two stated intervals meet when each end may be off by the allowance."""
    a, b = (stats.summarize(samples).p50_interval for samples in (mine, theirs))
    return a.low <= b.high * (1 + allowance) and b.low <= a.high * (1 + allowance)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2**18, 2**27])
def test_copies_agree_with_a_stream_program_in_c(size, tmp_path):
    if not shutil.which("cc") or sys.platform != "linux":
        pytest.skip("needs Linux and a C compiler")
    (tmp_path / "stream.c").write_text(STREAM_C)
    options = ["-O3", "-march=native"]
    subprocess.run(["cc", *options, "stream.c", "-o", "stream"], cwd=tmp_path, check=True)
    for _ in range(4):  # a noisy host: best of four
        mine, theirs = [], []
        for _ in range(8):
            (rate,) = ceilings.measure_copy_bandwidth([size], num_rounds=3, min_sample_s=0.003)
            done = subprocess.run([tmp_path / "stream", str(size), "1"], capture_output=True, text=True, check=True)
            mine += rate.samples
            theirs += [float(line) for line in done.stdout.split()]
        if overlap(mine, theirs, allowance=0.15) and 0.7 < statistics.median(mine) / statistics.median(theirs) < 1.4:
            return
    expect_steady(mine, theirs)
    pytest.fail(f"copies {statistics.median(mine):.3g} B/s, STREAM {statistics.median(theirs):.3g} B/s")


@pytest.mark.slow
def test_products_agree_with_torchs_own_benchmark():
    torch = pytest.importorskip("torch")
    from torch.utils.benchmark import Timer

    n = 512
    a, b = torch.randn(n, n), torch.randn(n, n)
    timer = Timer("torch.mm(a, b, out=out)", globals={"torch": torch, "a": a, "b": b, "out": torch.empty(n, n)})
    for _ in range(3):
        mine, theirs = [], []
        for _ in range(8):
            mine += measure_gemm_rate("float32", size=n, num_rounds=1).samples
            theirs.append(2 * n**3 / timer.timeit(4).mean)
        if overlap(mine, theirs, allowance=0.05) and 0.75 < statistics.median(mine) / statistics.median(theirs) < 1.33:
            return
    expect_steady(mine, theirs)
    pytest.fail(f"products {statistics.median(mine):.3g} FLOP/s, torch {statistics.median(theirs):.3g} FLOP/s")


@pytest.mark.slow
def test_the_sweep_on_this_machine_shows_its_caches():
    caches = [cache for cache in probe_caches() if cache.level >= 2]
    if not caches:
        pytest.skip("this system does not tell its caches")
    small, large = 2**17, choose_sizes(caches)[-1]
    for _ in range(3):
        inside, outside = ceilings.measure_copy_bandwidth([small, large], num_rounds=8)
        if inside.median > 1.2 * outside.median:
            return
    expect_steady(inside.samples, outside.samples)
    pytest.fail(f"{inside.median:.3g} B/s inside the caches, {outside.median:.3g} B/s outside")


def test_no_ceiling_is_infinite_or_negative():
    for one in load_peaks():
        assert all(math.isfinite(rate) and rate > 0 for rate in one.flop_per_s.values())
