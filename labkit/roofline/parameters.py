"""How many parameters has a model, how many does one token use, and how many bytes are that?

Known families: Llama, Mistral, Mixtral, Qwen2, Qwen3 (both also as mixtures of experts), Gemma 1 to 3, Phi-3, Granite,
OLMo 2, SmolLM3 and OPT.
"""

import math
from collections.abc import Mapping
from typing import Any

from labkit.errors import ModelError
from labkit.roofline._shape import count_values, read_head_dim, read_int, read_num_kv_heads, read_shape, refuse

__all__ = [
    "estimate_kv_bytes_per_token",
    "estimate_num_active_parameters",
    "estimate_num_parameters",
    "estimate_packed_bytes",
    "estimate_weight_bytes",
]


def estimate_kv_bytes_per_token(config: Mapping[str, Any], *, bytes_per_value: float = 2) -> int:
    """Return the bytes of keys and values that one token keeps in the cache: 2 · L · G · D · bytes_per_value.

    G is the number of key/value heads: H without grouping, 1 for multi-query attention. D comes from `head_dim` when
    the config has it, and is d / H otherwise: for Qwen3-0.6B these differ by a factor of two.
    """
    refuse(config, "kv_lora_rank")
    num_values = 2 * read_int(config, "num_hidden_layers") * read_num_kv_heads(config) * read_head_dim(config)
    return math.ceil(num_values * _check_bytes(bytes_per_value))


def estimate_num_parameters(config: Mapping[str, Any]) -> int:
    """Return the number of parameters, tied embeddings counted once; exact for the families named above.

    Raises ModelError for another family rather than giving a number that is nearly right.
    """
    shape = read_shape(config)
    products = sum(inputs * outputs * times for (inputs, outputs), times in shape.shared_products())
    experts = shape.num_sparse_layers * shape.num_experts * count_values(shape.expert)
    return products + experts + count_values([shape.head]) + shape.lookup_values + shape.vector_values


def estimate_num_active_parameters(config: Mapping[str, Any]) -> int:
    """Return the parameters that one token uses: all of a dense model, of a mixture without the experts not chosen.

    Both embedding tables are counted, as the model cards do ("Mixtral 8x7B: 46.7B, 12.9B active").
    """
    shape = read_shape(config)
    num_idle = shape.num_sparse_layers * (shape.num_experts - shape.experts_per_token)
    return estimate_num_parameters(config) - num_idle * count_values(shape.expert)


def estimate_weight_bytes(config: Mapping[str, Any], *, bytes_per_value: float = 2) -> int:
    """Return the bytes of all weights in one dtype: parameters · bytes_per_value (4-bit: 0.5), rounded up.

    A real 4-bit file is larger: it also holds scales, and usually keeps the embeddings in 16 bits.
    """
    return math.ceil(estimate_num_parameters(config) * _check_bytes(bytes_per_value))


def estimate_packed_bytes(
    config: Mapping[str, Any], *, bits: int, group_size: int, scale_bits: float, is_head_packed: bool = False
) -> int:
    """Return the bytes of a checkpoint whose matrices are packed in `bits`; embeddings, norms and biases take 16.

    `group_size` values of a row share `scale_bits` (a scale and its zero); 0 or less: one scale for each output
    channel. The head takes 16 bits too, unless `is_head_packed` and it is no embedding at the same time.
    """
    if not 0 < bits <= 8 or scale_bits < 0:
        raise ModelError(f"bits is {bits}, scale_bits {scale_bits}.", next_step="give 1 to 8 bits per value.")
    shape = read_shape(config)
    packed = shape.shared_products()
    packed += [(product, shape.num_sparse_layers * shape.num_experts) for product in shape.expert]
    plain = shape.lookup_values + shape.vector_values
    if is_head_packed and shape.lookup_values >= count_values([shape.head]):
        packed.append((shape.head, 1))
    else:
        plain += count_values([shape.head])
    total_bits = 16 * plain
    for (inputs, outputs), times in packed:
        num_scales = outputs * (math.ceil(inputs / group_size) if group_size > 0 else 1)
        total_bits += times * (inputs * outputs * bits + num_scales * scale_bits)
    return math.ceil(total_bits / 8)


def _check_bytes(bytes_per_value: float) -> float:
    """Return the value, or raise ModelError where no dtype has it."""
    if not 0 < bytes_per_value <= 8:
        raise ModelError(f"bytes_per_value is {bytes_per_value}.", next_step="give 4, 2, 1, or 0.5 for 4 bits.")
    return bytes_per_value
