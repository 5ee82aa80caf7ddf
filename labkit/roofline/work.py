"""FLOPs and bytes of a prefill, of one decode step, and of one matrix product.

Two FLOPs per multiply-add of every matrix product: projections, MLP, Q·Kᵀ, P·V and the head, as
`torch.utils.flop_counter` counts them. It counts the whole square of scores in a prefill, so this does too: a kernel
that skips the masked half does less. Norms, activations and softmax are left out (under 1 % for the models here).

Bytes are the least that has to move, each value once: the weights that the step uses, keys and values of the cache, and
the inputs and outputs of each product with a weight. Scores are counted as never leaving the chip.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from labkit.errors import LabkitError, ModelError
from labkit.roofline._shape import Shape, count_values, read_shape, read_window
from labkit.roofline.parameters import estimate_kv_bytes_per_token, estimate_num_parameters

__all__ = ["Work", "estimate_decode_step", "estimate_gemm", "estimate_prefill"]

# Families that use their sliding_window wherever the config has one (Gemma: in a part of the layers).
_WINDOWED = ("mistral", "mixtral", "phi3", "gemma2", "gemma3_text")


@dataclass(frozen=True, slots=True)
class Work:
    """FLOPs of a piece of work, and the bytes that it moves to and from memory, by kind."""

    flops: float
    weight_bytes: float
    kv_bytes: float
    activation_bytes: float

    @property
    def bytes(self) -> float:
        """All bytes together."""
        return self.weight_bytes + self.kv_bytes + self.activation_bytes

    @property
    def intensity(self) -> float:
        """Arithmetic intensity in FLOP per byte."""
        return self.flops / self.bytes


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

    `num_logits`: positions per sequence whose logits are computed: 1 in `generate` and in servers, S where
    `model(ids).logits` is asked for. `bytes_per_value` is that of the weights, `cache_bytes_per_value` that of the
    cache and of activations: the same by default, but at least 2 (weights of 8 or 4 bits leave these in 16). Keys and
    values are written once.
    """
    _check(prompt_tokens=prompt_tokens, batch=batch, num_logits=num_logits)
    if num_logits > prompt_tokens:
        raise LabkitError(f"{num_logits} logits of {prompt_tokens} tokens.", next_step="give 1, or prompt_tokens.")
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
    """Return the `Work` of one decode step of B sequences, each with `context_tokens` in the cache; it adds one.

    The new token looks at context_tokens + 1 positions, itself included; their keys and values are counted once (the
    old ones are read, the new one is written). The weights are read once for the whole batch. In a mixture, B tokens
    that choose at random touch E · (1 - (1 - k/E)^B) of E experts: that is what is counted; real routing is less even.
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
    """Return the `Work` of (m, k) @ (k, n): 2·m·n·k FLOPs; both inputs read and the output written once.

    The (k, n) matrix is the weight. m = 1 is a GEMV: an intensity near 2 / bytes_per_value, whatever its size.
    """
    _check(m=m, n=n, k=k)
    return Work(
        flops=2.0 * m * n * k,
        weight_bytes=k * n * bytes_per_value,
        kv_bytes=0.0,
        activation_bytes=(m * k + m * n) * bytes_per_value,
    )


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
    """Count `new_tokens` per sequence that each look at `seen_tokens` positions."""
    _check_window(config, seen_tokens)
    shape = read_shape(config)
    cache_bytes = max(2.0, bytes_per_value) if cache_bytes_per_value is None else cache_bytes_per_value
    num_tokens = batch * new_tokens
    # Every product as (inputs, outputs, rows): rows are the tokens that pass it, summed over layers and experts.
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


def _count_weights_read(config: Mapping[str, Any], shape: Shape, num_tokens: int) -> float:
    """Return the weight values that `num_tokens` tokens touch: of a table only rows, of the experts only the chosen."""
    values = (
        estimate_num_parameters(config) - shape.lookup_values + min(shape.lookup_values, num_tokens * shape.row_values)
    )
    if shape.num_experts:
        share_idle = (1 - shape.experts_per_token / shape.num_experts) ** num_tokens
        values -= share_idle * shape.num_sparse_layers * shape.num_experts * count_values(shape.expert)
    return float(values)


def _check_window(config: Mapping[str, Any], seen_tokens: int) -> None:
    """Refuse contexts that are longer than a sliding window: there, layers read less than the whole cache."""
    window = read_window(config)
    is_used = config.get("use_sliding_window", config.get("model_type") in _WINDOWED)
    if window and is_used and seen_tokens > window:
        raise ModelError(
            f"{seen_tokens} tokens are more than the sliding window of {window}, which is not counted here.",
            next_step="ask for a shorter context.",
        )


def _check(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise LabkitError(f"{name} is {count}.", next_step="give a whole number of at least 1.")
