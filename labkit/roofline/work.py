"""How many FLOPs and bytes does a prefill, a decode step or a matrix product need, and how fast can it be at best?

FLOPs: two per multiply-add of every matrix product (projections, MLP, Q·Kᵀ, P·V and the head), as
`torch.utils.flop_counter` counts them. In a prefill both count the full square of scores, although a kernel may skip
the masked half. Norms, activations and softmax are left out (under 1 % for the course's models).

Bytes: the minimum traffic, each value once: the weights that the step uses, the keys and values in the cache, and the
inputs and outputs of each product with a weight. Scores are assumed to stay on the chip.

Time: Williams, Waterman and Patterson, "Roofline", CACM 52 (4), 2009: attainable = min(peak, intensity · bandwidth).
Small models need a third limit, dispatch: the time of the same step with almost no arithmetic.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from labkit import stats
from labkit.errors import LabkitError, ModelError
from labkit.roofline.parameters import (
    ModelShape,
    count_values,
    estimate_kv_bytes_per_token,
    estimate_num_parameters,
    read_shape,
    read_window,
)

__all__ = [
    "TimeBound",
    "Utilization",
    "Work",
    "estimate_decode_step",
    "estimate_gemm",
    "estimate_prefill",
    "estimate_time_bound",
    "estimate_utilization",
]

# Families that use their sliding_window whenever the config has one (Gemma: in some of the layers).
_WINDOWED = ("mistral", "mixtral", "phi3", "gemma2", "gemma3_text")


@dataclass(frozen=True, slots=True)
class Work:
    """The FLOPs of a computation and the bytes that it moves to and from memory.

    Attributes:
        flops: floating-point operations.
        weight_bytes: bytes of weights read.
        kv_bytes: bytes of keys and values read or written.
        activation_bytes: bytes of the inputs and outputs of products with a weight.
    """

    flops: float
    weight_bytes: float
    kv_bytes: float
    activation_bytes: float

    @property
    def bytes(self) -> float:
        """The sum of the three kinds of bytes."""
        return self.weight_bytes + self.kv_bytes + self.activation_bytes

    @property
    def intensity(self) -> float:
        """Arithmetic intensity in FLOP per byte."""
        return self.flops / self.bytes


@dataclass(frozen=True, slots=True)
class TimeBound:
    """The shortest time that some work can take, and the limit that binds.

    Attributes:
        limit: "compute", "bandwidth" or "dispatch", whichever takes longest.
        seconds: the longest of the three times. They can overlap, so this is a lower bound, not a forecast.
        compute_s: FLOPs over peak FLOP/s.
        bandwidth_s: bytes over bytes per second.
        dispatch_s: seconds of a step with almost no arithmetic.
    """

    limit: str
    seconds: float
    compute_s: float
    bandwidth_s: float
    dispatch_s: float

    @property
    def serial_s(self) -> float:
        """Dispatch plus the longer of the other two: the bound if they cannot overlap.

        With a GPU, the CPU dispatches ahead while the GPU computes. On a CPU, one thread does both in turns.
        """
        return self.dispatch_s + max(self.compute_s, self.bandwidth_s)


@dataclass(frozen=True, slots=True)
class Utilization:
    """How close a measurement came to a limit.

    Attributes:
        value: ideal time over the median time; 1 is the limit.
        interval: the 95 % interval of `value`, None if n is too small.
        n: number of samples.
    """

    value: float
    interval: stats.Interval | None
    n: int


def estimate_prefill(
    config: Mapping[str, Any],
    *,
    prompt_tokens: int,
    batch: int = 1,
    bytes_per_value: float = 2,
    cache_bytes_per_value: float | None = None,
    num_logits: int = 1,
) -> Work:
    """Return the `Work` of reading B prompts of S = `prompt_tokens` into an empty cache.

    `num_logits`: positions per sequence whose logits are computed: 1 in `generate` and in servers, S if
    `model(ids).logits` is used. `bytes_per_value` is for weights, `cache_bytes_per_value` for the cache and for
    activations. The latter defaults to the former, but at least 2, because 8-bit and 4-bit weights leave both in
    16 bits. Keys and values are written once.
    """
    _check(prompt_tokens=prompt_tokens, batch=batch, num_logits=num_logits)
    if num_logits > prompt_tokens:
        raise LabkitError(f"{num_logits} logits for {prompt_tokens} tokens.", next_step="give 1, or prompt_tokens.")
    return _estimate(
        config,
        new_tokens=prompt_tokens,
        seen_tokens=prompt_tokens,
        batch=batch,
        num_logits=num_logits,
        bytes_per_value=bytes_per_value,
        cache_bytes_per_value=cache_bytes_per_value,
    )


def estimate_decode_step(
    config: Mapping[str, Any],
    *,
    context_tokens: int,
    batch: int = 1,
    bytes_per_value: float = 2,
    cache_bytes_per_value: float | None = None,
) -> Work:
    """Return the `Work` of one decode step of B sequences, each with `context_tokens` tokens in the cache.

    The new token attends to context_tokens + 1 positions, including itself. Their keys and values are counted once (the
    old ones are read, the new one is written). The weights are read once for the whole batch. In a mixture of experts,
    B tokens that choose at random touch E · (1 - (1 - k/E)^B) of E experts. Real routing is less even.
    """
    _check(batch=batch, context_tokens=context_tokens + 1)
    return _estimate(
        config,
        new_tokens=1,
        seen_tokens=context_tokens + 1,
        batch=batch,
        num_logits=1,
        bytes_per_value=bytes_per_value,
        cache_bytes_per_value=cache_bytes_per_value,
    )


def estimate_gemm(m: int, n: int, k: int, *, bytes_per_value: float) -> Work:
    """Return the `Work` of (m, k) @ (k, n): 2·m·n·k FLOPs, both inputs read and the output written once.

    The (k, n) matrix is the weight. m = 1 is a GEMV, with an intensity near 2 / bytes_per_value at any size.
    """
    _check(m=m, n=n, k=k)
    return Work(
        flops=2.0 * m * n * k,
        weight_bytes=k * n * bytes_per_value,
        kv_bytes=0.0,
        activation_bytes=(m * k + m * n) * bytes_per_value,
    )


def estimate_time_bound(work: Work, *, flop_per_s: float, byte_per_s: float, dispatch_s: float = 0.0) -> TimeBound:
    """Return the `TimeBound` of some work on a machine with these limits.

    `byte_per_s` is the bandwidth at the size of the working set: 20 MB of weights may fit in a cache. `dispatch_s` is
    the time of the same step with almost no arithmetic.
    """
    _check_positive(flop_per_s=flop_per_s, byte_per_s=byte_per_s)
    if dispatch_s < 0:
        raise LabkitError(f"dispatch_s is {dispatch_s}.", next_step="give seconds; 0 means no such limit.")
    times = {
        "compute": work.flops / flop_per_s,
        "bandwidth": work.bytes / byte_per_s,
        "dispatch": float(dispatch_s),
    }
    limit = max(times, key=times.__getitem__)
    return TimeBound(limit, times[limit], times["compute"], times["bandwidth"], times["dispatch"])


def estimate_utilization(samples_s: Sequence[float], *, ideal_s: float) -> Utilization:
    """Return ideal_s / median(samples_s), with the interval that follows from that of the median.

    With `ideal_s` = bytes / peak bandwidth this is MBU (model bandwidth utilization), with FLOPs / peak FLOP/s it is
    MFU, with `TimeBound.seconds` the distance from that bound. Over 1 means that a byte count or a peak is wrong.
    """
    _check_positive(ideal_s=ideal_s)
    if min(samples_s, default=1.0) <= 0:
        raise LabkitError("a sample is 0 s or less.", next_step="check how it was measured.")
    summary = stats.summarize(samples_s)
    slow = summary.p50_interval
    interval = slow and stats.Interval(ideal_s / slow.high, ideal_s / slow.low, slow.confidence)
    return Utilization(ideal_s / summary.p50, interval, summary.n)


def _estimate(
    config: Mapping[str, Any],
    *,
    new_tokens: int,
    seen_tokens: int,
    batch: int,
    num_logits: int,
    bytes_per_value: float,
    cache_bytes_per_value: float | None,
) -> Work:
    """Count `new_tokens` per sequence, each attending to `seen_tokens` positions."""
    _check_window(config, seen_tokens)
    shape = read_shape(config)
    cache_bytes = max(2.0, bytes_per_value) if cache_bytes_per_value is None else cache_bytes_per_value
    num_tokens = batch * new_tokens
    # Every product as (inputs, outputs, rows); rows: tokens that pass it, summed over layers and experts.
    products = [(*product, times * num_tokens) for product, times in shape.shared_products()]
    products += [(*product, shape.num_sparse_layers * shape.experts_per_token * num_tokens) for product in shape.expert]
    products += [(*shape.head, batch * num_logits)]
    flops = sum(2.0 * inputs * outputs * rows for inputs, outputs, rows in products)
    scores = shape.num_layers * shape.num_heads * num_tokens * seen_tokens
    flops += 2 * (2.0 * scores * shape.head_dim)  # Q·Kᵀ (S_new, D) @ (D, S_seen), then P·V
    return Work(
        flops=flops,
        weight_bytes=_count_weights_read(config, shape, num_tokens) * bytes_per_value,
        kv_bytes=float(batch * seen_tokens * estimate_kv_bytes_per_token(config, bytes_per_value=cache_bytes)),
        activation_bytes=sum((inputs + outputs) * rows for inputs, outputs, rows in products) * cache_bytes,
    )


def _count_weights_read(config: Mapping[str, Any], shape: ModelShape, num_tokens: int) -> float:
    """Return the weight values that `num_tokens` tokens touch: only their rows of a table, only the chosen experts."""
    values = (
        estimate_num_parameters(config) - shape.lookup_values + min(shape.lookup_values, num_tokens * shape.row_values)
    )
    if shape.num_experts:
        share_idle = (1 - shape.experts_per_token / shape.num_experts) ** num_tokens
        values -= share_idle * shape.num_sparse_layers * shape.num_experts * count_values(shape.expert)
    return float(values)


def _check_window(config: Mapping[str, Any], seen_tokens: int) -> None:
    """Refuse contexts longer than a sliding window, because layers then read only part of the cache."""
    window = read_window(config)
    is_used = config.get("use_sliding_window", config.get("model_type") in _WINDOWED)
    if window and is_used and seen_tokens > window:
        raise ModelError(
            f"{seen_tokens} tokens exceed the sliding window of {window}, and such contexts are not counted here.",
            next_step="use a shorter context.",
        )


def _check(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise LabkitError(f"{name} is {count}.", next_step="give a whole number of at least 1.")


def _check_positive(**numbers: float) -> None:
    for name, number in numbers.items():
        if not number > 0:
            raise LabkitError(f"{name} is {number}.", next_step="give a number above 0.")
