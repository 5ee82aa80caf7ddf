"""How fast is this machine at best? Measured ceilings: bytes per second, FLOPs per second, and seconds of dispatch.

    bandwidth    a copy at each size of working set, and a matrix that is read once (GEMV)
    arithmetic   a square matrix product (GEMM), for each number format
    steps        a decode step and a prefill of a model, and a step with almost no arithmetic (dispatch)

Every ceiling is a `MeasuredCeiling`: all its samples, with their median and its interval. On a CPU one intra-op thread
computes, as for the small models of the course. Several ceilings are measured in rounds, each once per round, so that
drift of the machine affects all of them equally and does not look like a difference.

Bytes are counted as STREAM does (McCalpin, https://www.cs.virginia.edu/stream/): bytes read plus bytes written. A CPU
that reads a cache line before overwriting it moves more, which is part of what a copy costs there.

Two traps are avoided. Pages are written before they are read, because untouched pages all map to one page of zeros that
stays in a cache. And the two arrays of a copy start at different offsets within a 4 KiB page, because stores would
otherwise collide with loads (4K aliasing), which made a copy ten times slower on an AMD Zen 3.
"""

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from labkit import stats
from labkit.errors import HardwareError, LabkitError, ModelError
from labkit.hardware import probe_machine
from labkit.timing import Device, Stopwatch

__all__ = [
    "CacheLevel",
    "MeasuredCeiling",
    "Microbenchmark",
    "choose_sizes",
    "load_narrow_model",
    "load_random_model",
    "measure_copy_bandwidth",
    "measure_gemm_rate",
    "measure_gemv_bandwidth",
    "measure_op_dispatch",
    "measure_prefills",
    "measure_rounds",
    "measure_steps",
    "probe_caches",
    "run_prefill",
]

_DTYPES = ("float32", "tf32", "bfloat16", "float16")
_STEADY = 1.25  # largest ratio of the ends of a steady median's interval
_MOST_REPEATS = 1_000_000
_CPU_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")  # tests point it at a made-up folder
_SMALLEST_BYTES = 2**16  # smaller sets fit in the L1 cache, where a call from Python costs more than the copy
_LARGEST_BYTES = 2**30
_PAGE = 4096
_GEMM_SIZES = (128, 256, 512, 1024, 2048, 4096, 8192)
_NARROW = {"hidden_size": 64, "num_attention_heads": 2, "head_dim": 32, "intermediate_size": 64, "vocab_size": 64}


@dataclass(frozen=True, slots=True)
class MeasuredCeiling:
    """One measured limit of this machine, with every sample.

    Attributes:
        name: what was measured ("copy", "GEMM bfloat16").
        unit: "B/s", "FLOP/s" or "s".
        samples: all samples, in `unit`.
        size: what it holds for: working set in bytes (bandwidth), n of (n, n) @ (n, n), or number of layers (dispatch).
    """

    name: str
    unit: str
    samples: tuple[float, ...]
    size: int

    @property
    def median(self) -> float:
        """The median of the samples, in `unit`."""
        return statistics.median(self.samples)

    @property
    def interval(self) -> stats.Interval | None:
        """The 95 % interval of the median; None for fewer than six samples."""
        return stats.estimate_percentile_interval(self.samples, 50)

    @property
    def is_steady(self) -> bool:
        """Whether the median is known to within 25 %. If not, the machine was busy with something else, or n < 6."""
        ends = self.interval
        return ends is not None and ends.high <= _STEADY * ends.low


@dataclass(frozen=True, slots=True)
class Microbenchmark:
    """Work to be timed.

    Attributes:
        run: called with a number of repeats, does the work that many times.
        amount: bytes or FLOPs of one repeat.
    """

    run: Callable[[int], object]
    amount: float


def measure_rounds(
    benchmarks: Mapping[str, Microbenchmark],
    *,
    device: "str | Device" = "cpu",
    num_rounds: int = 10,
    min_sample_s: float = 0.005,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, tuple[float, ...]]:
    """Return amount per second of every benchmark, `num_rounds` samples each, taken in turns.

    A warm-up determines how many repeats make a sample of `min_sample_s`, so that the cost of the clock and of the two
    synchronizations around a sample (about 10 µs on a GPU) is negligible. Each round starts with another benchmark.
    """
    if num_rounds < 1 or not min_sample_s > 0:
        raise LabkitError(f"num_rounds {num_rounds}, min_sample_s {min_sample_s}.", next_step="give positive numbers.")
    repeats = {name: _choose_repeats(benchmark, device, min_sample_s, clock) for name, benchmark in benchmarks.items()}
    names, rates = list(benchmarks), {name: [] for name in benchmarks}
    for number in range(num_rounds):
        start = number % max(1, len(names))
        for name in names[start:] + names[:start]:
            seconds = _time(benchmarks[name], repeats[name], device, clock)
            rates[name].append(benchmarks[name].amount * repeats[name] / seconds)
    return {name: tuple(samples) for name, samples in rates.items()}


@dataclass(frozen=True, slots=True)
class CacheLevel:
    """One data cache.

    Attributes:
        level: 1 for L1, and so on.
        capacity_bytes: how much it holds.
    """

    level: int
    capacity_bytes: int


def probe_caches(device: "str | Device" = "cpu") -> tuple[CacheLevel, ...]:
    """Return the data caches of the first CPU, smallest first, or the L2 of a GPU; () if the system reports none."""
    place = _get_place(device)
    if place != "cpu":
        import torch

        return (CacheLevel(2, int(torch.cuda.get_device_properties(place).L2_cache_size)),)
    found = []
    for folder in sorted(_CPU_CACHES.glob("index*")):
        try:
            level, kind, size = ((folder / name).read_text().strip() for name in ("level", "type", "size"))
            scale = {"K": 2**10, "M": 2**20, "G": 2**30}.get(size[-1:], 1)
            if kind != "Instruction":
                found.append(CacheLevel(int(level), int(size.rstrip("KMG")) * scale))
        except (OSError, ValueError):
            continue
    return tuple(sorted(found, key=lambda cache: cache.capacity_bytes))


def choose_sizes(caches: Sequence[CacheLevel], *, free_bytes: int | None = None) -> tuple[int, ...]:
    """Return working sets in bytes, powers of two from 64 KiB to four times the largest cache (64 MiB to 1 GiB).

    None is larger than an eighth of the free memory.
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
) -> tuple[MeasuredCeiling, ...]:
    """Return one `MeasuredCeiling` in B/s per working set: half of it is read, the other half written, in float32.

    `sizes_bytes`: working sets (source and destination together), by default those of `choose_sizes`. On a CPU numpy
    copies with the sign flipped (the same bytes, and many copies in one call); on a GPU torch copies.
    """
    place = _get_place(device)
    if sizes_bytes is None:
        free = probe_machine().memory_free_bytes if place == "cpu" else None
        sizes_bytes = choose_sizes(probe_caches(device), free_bytes=free)
    if min(sizes_bytes, default=0) < _PAGE:
        raise LabkitError(
            f"working sets of {list(sizes_bytes)} bytes.", next_step=f"give sizes of at least {_PAGE} bytes."
        )
    make = _make_cpu_copy if place == "cpu" else _make_torch_copy
    benchmarks = {str(size): make(size, place) for size in sizes_bytes}
    found = measure_rounds(benchmarks, device=device, num_rounds=num_rounds, min_sample_s=min_sample_s)
    return tuple(MeasuredCeiling("copy", "B/s", samples, int(size)) for size, samples in found.items())


def measure_gemv_bandwidth(
    sizes_bytes: Sequence[int],
    *,
    dtype: str = "float32",
    device: "str | Device" = "cpu",
    num_rounds: int = 10,
    min_sample_s: float = 0.005,
) -> tuple[MeasuredCeiling, ...]:
    """Return one `MeasuredCeiling` in B/s per matrix of that many bytes, read once by a matrix-vector product.

    A decode step reads each weight in this way. The matrix has 1,024 columns; only its own bytes are counted.
    """
    import torch

    place, kind = _get_place(device), getattr(torch, dtype)
    benchmarks = {}
    with _hold_one_thread(device):
        for size in sizes_bytes:
            rows = max(1, size // (1024 * kind.itemsize))
            matrix = torch.full((rows, 1024), 0.5, dtype=kind, device=place)  # (rows, 1024)
            vector = torch.full((1024,), 0.5, dtype=kind, device=place)

            def run(repeats: int, matrix=matrix, vector=vector) -> None:
                for _ in range(repeats):
                    torch.mv(matrix, vector)

            benchmarks[str(size)] = Microbenchmark(run, rows * 1024 * kind.itemsize)
        found = measure_rounds(benchmarks, device=device, num_rounds=num_rounds, min_sample_s=min_sample_s)
    return tuple(MeasuredCeiling(f"GEMV {dtype}", "B/s", samples, int(size)) for size, samples in found.items())


def measure_gemm_rate(
    dtype: str = "float32",
    *,
    device: "str | Device" = "cpu",
    num_rounds: int = 10,
    max_time_s: float = 2.0,
    min_sample_s: float = 0.005,
    size: int | None = None,
) -> MeasuredCeiling:
    """Return the FLOP/s of (n, n) @ (n, n), 2·n³ FLOPs each, with the largest n of 128 ... 8192 that the time allows.

    `max_time_s` is a rough bound on the whole measurement. A format that a CPU only emulates can be a hundred times
    slower and is then measured with a small n, which `size` of the result tells; a given `size` is used as it is.
    "tf32" is float32 in the GPU's TF32 mode; "float32" turns that mode off. Raises HardwareError if the product does
    not run.
    """
    import torch

    if dtype not in _DTYPES:
        raise LabkitError(f"cannot measure a GEMM in {dtype!r}.", next_step=f"use one of {', '.join(_DTYPES)}.")
    if dtype == "tf32" and _get_place(device) == "cpu":
        raise HardwareError("TF32 is a mode of NVIDIA GPUs.", next_step='use "float32" on a CPU.')
    with _hold_one_thread(device), _hold_precision(torch, is_tf32=dtype == "tf32"):
        try:
            n = size or _choose_gemm_size(dtype, device, max_time_s / (num_rounds + 3))
            benchmark = _make_gemm(n, dtype, device)
            found = measure_rounds({dtype: benchmark}, device=device, num_rounds=num_rounds, min_sample_s=min_sample_s)
        except RuntimeError as error:
            if isinstance(error, LabkitError):
                raise
            first = str(error).split("\n")[0]
            raise HardwareError(f"a {dtype} product does not run on {device}: {first}") from error
    return MeasuredCeiling(f"GEMM {dtype}", "FLOP/s", found[dtype], n)


def load_random_model(config: Mapping[str, Any], *, dtype: str = "float32", device: str = "cpu", **changes: Any) -> Any:
    """Return a model with this config, `changes` applied, and random weights (seed 0), to measure speed only."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {key: value for key, value in config.items() if key not in ("architectures", "quantization_config")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**fields | changes), dtype=getattr(torch, dtype), trust_remote_code=False
        )
    return made.to(device).eval()


def run_prefill(model: Any, *, prompt_tokens: int, batch: int = 1) -> Any:
    """Read B prompts of random tokens, with logits of the last position only, and return the cache."""
    import torch

    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (batch, prompt_tokens), generator=draw)  # (B, S)
    with torch.inference_mode():
        return model(ids.to(model.device), use_cache=True, logits_to_keep=1).past_key_values


def measure_steps(
    models: Mapping[str, Any],
    *,
    context_tokens: int,
    batch: int = 1,
    num_rounds: int = 20,
    num_warmup: int = 3,
    device: "str | Device | None" = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, tuple[float, ...]]:
    """Return the seconds of one decode step of each model, in turns, for B sequences of `context_tokens` in the cache.

    The new token is removed from the cache again outside of the timing, so that all samples do the same work. `device`
    is what the stopwatch synchronizes with, by default the device of the models.
    """
    import torch

    if not models:
        raise LabkitError("there is no model to time.", next_step="pass at least one.")
    first = next(iter(models.values()))
    device = device or str(first.device)
    steps = {}
    for name, model in models.items():
        cache = run_prefill(model, prompt_tokens=context_tokens, batch=batch)
        one = torch.zeros((batch, 1), dtype=torch.long, device=model.device)  # (B, 1)
        steps[name] = (model, cache, one)
    samples: dict[str, list[float]] = {name: [] for name in models}
    names, draw = list(models), np.random.default_rng(0)
    with _hold_one_thread(str(first.device)), torch.inference_mode():
        for number in range(-num_warmup, num_rounds):
            for name in draw.permutation(names).tolist():  # random order: no model always runs after the same one
                model, cache, one = steps[name]
                with Stopwatch(device=device, clock=clock) as watch:
                    model(one, past_key_values=cache, use_cache=True, logits_to_keep=1)
                cache.crop(-1)
                if number >= 0:
                    samples[name].append(watch.elapsed_s)
    return {name: tuple(values) for name, values in samples.items()}


def measure_prefills(
    model: Any, *, prompt_tokens: int, batch: int = 1, num_rounds: int = 8, device: "str | Device | None" = None
) -> tuple[float, ...]:
    """Return the seconds of reading B prompts into an empty cache, after one warm-up."""
    device = device or str(model.device)
    samples = []
    with _hold_one_thread(str(model.device)):
        for number in range(-1, num_rounds):
            with Stopwatch(device=device) as watch:
                run_prefill(model, prompt_tokens=prompt_tokens, batch=batch)
            if number >= 0:
                samples.append(watch.elapsed_s)
    return tuple(samples)


def load_narrow_model(config: Mapping[str, Any], *, dtype: str = "float32", device: str = "cpu") -> Any:
    """Return a random model with the layers and experts of a config but almost no width: its step is all dispatch.

    It runs the same operations in the same order on tiny tensors. To compare it with the real model, time both in
    turns: `measure_steps({"model": ..., "narrow": ...})`. Only the gated families of the course (Llama, Mistral, Qwen
    and their mixtures of experts) can be narrowed.
    """
    if not isinstance(config.get("num_hidden_layers"), int) or config.get("model_type") == "opt":
        raise ModelError("this config cannot be narrowed.", next_step="use one of the Llama, Mistral or Qwen families.")
    heads, kv_heads = config.get("num_attention_heads", 1), config.get("num_key_value_heads")
    changes = _NARROW | {"num_key_value_heads": 2 if kv_heads in (None, heads) else 1}  # grouped if the model's are
    changes |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    changes |= {key: 64 for key in ("moe_intermediate_size", "shared_expert_intermediate_size") if config.get(key)}
    return load_random_model(config, dtype=dtype, device=device, **changes)


def measure_op_dispatch(
    *, device: "str | Device" = "cpu", num_rounds: int = 20, num_ops: int = 2000
) -> MeasuredCeiling:
    """Return the seconds of one operation on a single number: the cost of the framework before it computes anything.

    One sample is `num_ops` operations in a row. On a GPU the launches queue up, so this is the time per launch.
    """
    import torch

    x = torch.ones(1, device=_get_place(device))
    samples = []
    with _hold_one_thread(device), torch.inference_mode():
        for number in range(-1, num_rounds):
            with Stopwatch(device=device) as watch:
                for _ in range(num_ops):
                    x.neg_()
            if number >= 0:
                samples.append(watch.elapsed_s / num_ops)
    return MeasuredCeiling("one operation", "s", tuple(samples), 1)


def _get_place(device: "str | Device") -> str:
    """Return the torch device for tensors: the device's own name, or the CPU for a simulated device."""
    return device if isinstance(device, str) else getattr(device, "place", "cpu")


@contextlib.contextmanager
def _hold_one_thread(device: "str | Device") -> Iterator[None]:
    """On a CPU, use one intra-op thread of torch inside the block, and restore the old number afterwards."""
    import torch

    before = torch.get_num_threads()
    if _get_place(device) == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _choose_repeats(
    benchmark: Microbenchmark, device: "str | Device", min_sample_s: float, clock: Callable[[], float]
) -> int:
    benchmark.run(1)  # the first call allocates and selects kernels
    repeats = 1
    while repeats < _MOST_REPEATS:
        seconds = _time(benchmark, repeats, device, clock)
        if seconds >= min_sample_s:
            return repeats
        # Aim a little higher, but at most tenfold, because a short time is mostly the cost of the clock.
        repeats = min(10 * repeats, max(repeats + 1, math.ceil(1.2 * repeats * min_sample_s / max(seconds, 1e-9))))
    return repeats


def _time(benchmark: Microbenchmark, repeats: int, device: "str | Device", clock: Callable[[], float]) -> float:
    with Stopwatch(device=device, clock=clock) as watch:
        benchmark.run(repeats)
    return watch.elapsed_s


def _make_cpu_copy(size: int, place: str) -> Microbenchmark:
    """Copy size / 2 bytes to another size / 2 bytes; repeats run inside one call, as rows with a stride of 0 bytes."""
    num = size // 8
    gap = (_PAGE // 2 - (num * 4) % _PAGE) % _PAGE // 4  # the destination starts half a page later
    buffer = np.full(2 * num + gap, 1.0, dtype=np.float32)  # written, so that every page is mapped separately
    source, target = buffer[:num], buffer[num + gap :]

    def run(repeats: int) -> None:
        rows = [np.lib.stride_tricks.as_strided(one, (repeats, num), (0, 4)) for one in (source, target)]
        np.negative(rows[0], out=rows[1])

    return Microbenchmark(run, 2 * num * 4)


def _make_torch_copy(size: int, place: str) -> Microbenchmark:
    import torch

    num = size // 8
    source = torch.full((num,), 1.0, device=place)
    target = torch.full((num,), 2.0, device=place)

    def run(repeats: int) -> None:
        for _ in range(repeats):
            target.copy_(source)

    return Microbenchmark(run, 2 * num * 4)


def _choose_gemm_size(dtype: str, device: "str | Device", sample_s: float) -> int:
    """Return the largest n whose product takes at most `sample_s`; sizes are tried from the smallest on, once each."""
    chosen = _GEMM_SIZES[0]
    for n, following in zip(_GEMM_SIZES, (*_GEMM_SIZES[1:], None), strict=True):
        benchmark = _make_gemm(n, dtype, device)
        benchmark.run(1)
        with Stopwatch(device=device) as watch:
            benchmark.run(1)
        chosen = n
        if following is None or 8 * watch.elapsed_s > sample_s:
            break
    return chosen


def _make_gemm(n: int, dtype: str, device: "str | Device") -> Microbenchmark:
    import torch

    kind = torch.float32 if dtype == "tf32" else getattr(torch, dtype)
    # Random and small: products of constants can draw less power and therefore run faster than real ones.
    a, b = (torch.randn(n, n, device=_get_place(device)).mul_(0.1).to(kind) for _ in range(2))  # (n, n)
    out = torch.empty_like(a)

    def run(repeats: int) -> None:
        for _ in range(repeats):
            torch.mm(a, b, out=out)

    return Microbenchmark(run, 2.0 * n**3)


@contextlib.contextmanager
def _hold_precision(torch, *, is_tf32: bool) -> Iterator[None]:
    """Set torch's float32 precision inside the block ("high" allows TF32)."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if is_tf32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
