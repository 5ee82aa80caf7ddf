"""What is the ceiling? Bytes and parameters of a model, computed from its config.json before anything is loaded.

Letters: L layers, d hidden size, H heads, G key/value heads, D head dimension, F feed-forward size, V vocabulary.
A `config` is the dict of a config.json; Llama, Mistral, Qwen2, Qwen3 and OPT are known families.
"""

import math
from collections.abc import Mapping
from typing import Any

from labkit.errors import ModelError

__all__ = ["estimate_kv_bytes_per_token", "estimate_num_parameters", "estimate_weight_bytes"]

# What the family's configuration class assumes where config.json says nothing.
_FAMILIES = {
    "llama": {"tied": False, "qkv_bias": False, "qk_norm": False},
    "mistral": {"tied": False, "qkv_bias": False, "qk_norm": False},
    "qwen2": {"tied": False, "qkv_bias": True, "qk_norm": False},
    "qwen3": {"tied": False, "qkv_bias": False, "qk_norm": True},
    "opt": {"tied": True},
}
_NOT_COUNTED = {  # key of a config -> why the plain formula would be wrong
    "kv_lora_rank": "it caches a compressed latent (MLA), not keys and values",
    "num_experts": "it is a mixture of experts",
    "num_local_experts": "it is a mixture of experts",
    "n_routed_experts": "it is a mixture of experts",
}


def estimate_kv_bytes_per_token(config: Mapping[str, Any], *, bytes_per_value: float = 2) -> int:
    """Return the bytes of keys and values that one token keeps in the cache: 2 · L · G · D · bytes_per_value.

    G is the number of key/value heads: H without grouping, 1 for multi-query attention. D comes from `head_dim` when
    the config has it, and is d / H otherwise: for Qwen3-0.6B these differ by a factor of two.
    """
    _refuse(config, "kv_lora_rank")
    num_values = 2 * _get(config, "num_hidden_layers") * _num_kv_heads(config) * _head_dim(config)
    return math.ceil(num_values * _check_bytes(bytes_per_value))


def estimate_num_parameters(config: Mapping[str, Any]) -> int:
    """Return the number of parameters, tied embeddings counted once; exact for the families named above.

    Raises ModelError for another family, or for a mixture of experts, rather than giving a number that is nearly right.
    """
    family = config.get("model_type")
    if family not in _FAMILIES:
        raise ModelError(
            f"cannot count the parameters of model_type {family!r}; known: {', '.join(_FAMILIES)}.",
            next_step="count them from the weights themselves.",
        )
    _refuse(config, *_NOT_COUNTED)
    return _count_opt(config) if family == "opt" else _count_llama(config, **_FAMILIES[family])


def estimate_weight_bytes(config: Mapping[str, Any], *, bytes_per_value: float = 2) -> int:
    """Return the bytes of all weights in one dtype: parameters · bytes_per_value (4-bit: 0.5), rounded up.

    A real 4-bit file is larger: it also holds scales, and usually keeps the embeddings in 16 bits.
    """
    return math.ceil(estimate_num_parameters(config) * _check_bytes(bytes_per_value))


def _count_llama(config: Mapping[str, Any], *, tied: bool, qkv_bias: bool, qk_norm: bool) -> int:
    """Count embedding, L · (attention, gated MLP, two norms), last norm and output head."""
    d, f, v = (_get(config, key) for key in ("hidden_size", "intermediate_size", "vocab_size"))
    q_width = _get(config, "num_attention_heads") * _head_dim(config)  # H · D, which need not be d
    kv_width = _num_kv_heads(config) * _head_dim(config)
    attention = 2 * d * q_width + 2 * d * kv_width  # Q and O; K and V
    if config.get("attention_bias"):
        attention += q_width + 2 * kv_width + d
    elif qkv_bias:
        attention += q_width + 2 * kv_width  # Qwen2: biases on Q, K and V, none on O
    if qk_norm:
        attention += 2 * _head_dim(config)
    mlp = 3 * d * f + (2 * f + d if config.get("mlp_bias") else 0)  # gate, up, down
    layer = attention + mlp + 2 * d
    embeddings = v * d * (1 if config.get("tie_word_embeddings", tied) else 2)
    return embeddings + _get(config, "num_hidden_layers") * layer + d


def _count_opt(config: Mapping[str, Any]) -> int:
    """Count OPT: learned positions, biases everywhere, LayerNorms with scale and shift, an MLP of two matrices."""
    d, f, v = (_get(config, key) for key in ("hidden_size", "ffn_dim", "vocab_size"))
    width = config.get("word_embed_proj_dim") or d  # OPT-350m embeds in 512 and projects to 1024 and back
    embeddings = v * width * (1 if config.get("tie_word_embeddings", _FAMILIES["opt"]["tied"]) else 2)
    embeddings += (_get(config, "max_position_embeddings") + 2) * d + (2 * d * width if width != d else 0)
    has_bias = int(config.get("enable_bias", True))
    norm = 2 * d if config.get("layer_norm_elementwise_affine", True) else 0
    layer = 4 * d * d + 2 * d * f + has_bias * (5 * d + f) + 2 * norm
    has_last_norm = config.get("do_layer_norm_before", True) and not config.get("_remove_final_layer_norm", False)
    return embeddings + _get(config, "num_hidden_layers") * layer + (norm if has_last_norm else 0)


def _num_kv_heads(config: Mapping[str, Any]) -> int:
    if config.get("multi_query"):  # the older spelling of multi-query attention
        return 1
    return config.get("num_key_value_heads") or _get(config, "num_attention_heads")


def _head_dim(config: Mapping[str, Any]) -> int:
    return config.get("head_dim") or _get(config, "hidden_size") // _get(config, "num_attention_heads")


def _get(config: Mapping[str, Any], key: str) -> int:
    if not isinstance(config.get(key), int):
        raise ModelError(
            f"the config has no whole number {key!r} (found {config.get(key)!r}).",
            next_step="pass the dict of the model's config.json; for a multimodal model its text_config.",
        )
    return config[key]


def _refuse(config: Mapping[str, Any], *keys: str) -> None:
    for key in keys:
        if config.get(key):
            raise ModelError(
                f"the config has {key} = {config[key]}: {_NOT_COUNTED[key]}, which is not counted here.",
                next_step="read the bytes from the loaded model instead.",
            )


def _check_bytes(bytes_per_value: float) -> float:
    if not 0 < bytes_per_value <= 8:
        raise ModelError(f"bytes_per_value is {bytes_per_value}.", next_step="give 4, 2, 1, or 0.5 for 4 bits.")
    return bytes_per_value
