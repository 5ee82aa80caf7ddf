"""How many parameters does a model have, how many bytes are they, and how large is its KV cache? From its config.json.

Known families: Llama, Mistral, Mixtral, Qwen2, Qwen3 (both also as mixtures of experts), Gemma 1 to 3, Phi-3, Granite,
OLMo 2, SmolLM3 and OPT.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from labkit.errors import ModelError

__all__ = [
    "FAMILIES",
    "ModelShape",
    "count_values",
    "estimate_kv_bytes_per_token",
    "estimate_num_parameters",
    "estimate_packed_bytes",
    "read_shape",
    "read_window",
]

# `tied`, `biases` and the counts: the defaults of the family's own class in transformers, because config.json omits
# every value that equals its class's default. `biases` lists the settings that the class reads; it ignores the others.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"biases": ("attention_bias", "mlp_bias")},
    "mistral": {"num_key_value_heads": 8, "sliding_window": 4096},
    "mixtral": {"is_moe": True, "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2},
    "qwen2": {"qkv_bias": True, "num_key_value_heads": 32},
    "qwen2_moe": {"qkv_bias": True, "is_moe": True, "biases": ("qkv_bias",), "num_key_value_heads": 16,
                  "num_experts": 60, "num_experts_per_tok": 4, "moe_intermediate_size": 1408,
                  "shared_expert_intermediate_size": 5632},
    "qwen3": {"qk_norm": True, "biases": ("attention_bias",), "num_key_value_heads": 32, "head_dim": 128},
    "qwen3_moe": {"qk_norm": True, "is_moe": True, "biases": ("attention_bias",), "num_key_value_heads": 4,
                  "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768},
    "granite": {"biases": ("attention_bias", "mlp_bias")},
    "smollm3": {"tied": True, "biases": ("attention_bias", "mlp_bias"), "num_key_value_heads": 4},
    "phi3": {},  # Q, K, V in one matrix, gate and up in another: the same values
    "gemma": {"tied": True, "biases": ("attention_bias",), "num_key_value_heads": 16, "head_dim": 256},
    "gemma2": {"tied": True, "num_norms": 4, "biases": ("attention_bias",), "num_key_value_heads": 4,
               "head_dim": 256, "sliding_window": 4096},
    "gemma3_text": {"tied": True, "num_norms": 4, "qk_norm": True, "biases": ("attention_bias",),
                    "num_key_value_heads": 4, "head_dim": 256, "sliding_window": 4096},
    "olmo2": {"wide_qk_norm": True, "biases": ("attention_bias",)},  # one norm over all heads together
    "opt": {"tied": True},
}  # fmt: skip
_REFUSED = {  # key of a config -> why the plain formula would be wrong
    "kv_lora_rank": "it caches a compressed latent (MLA), not keys and values",
    "num_experts": "it is a mixture of experts of another family",
    "num_local_experts": "it is a mixture of experts of another family",
    "n_routed_experts": "it is a mixture of experts of another family",
}

Matrix = tuple[int, int]  # the shape (inputs, outputs) of a weight matrix


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The weight matrices of one model, each as (inputs, outputs).

    Attributes:
        num_layers: decoder layers, dense and sparse ones together.
        num_heads: query heads, H.
        head_dim: dimension of one head, D.
        attention: matrices that every layer has (Q, K, V, O).
        dense: matrices of the MLP of a dense layer.
        num_dense_layers: layers without experts.
        always: matrices of a sparse layer that every token passes (router, shared expert).
        expert: matrices of one expert.
        num_experts: experts of a sparse layer, 0 in a dense model.
        experts_per_token: experts that one token uses.
        head: the output matrix, (d, V).
        outer: matrices outside of the layers (the projections of OPT-350m).
        lookup_values: values that are only looked up: the embedding if it is not also the head, and learned positions.
        row_values: values that one token looks up in those tables.
        vector_values: values of norms and biases, which are read but belong to no matrix product.
    """

    num_layers: int
    num_heads: int
    head_dim: int
    attention: tuple[Matrix, ...]
    dense: tuple[Matrix, ...]
    num_dense_layers: int
    always: tuple[Matrix, ...]
    expert: tuple[Matrix, ...]
    num_experts: int
    experts_per_token: int
    head: Matrix
    outer: tuple[Matrix, ...]
    lookup_values: int
    row_values: int
    vector_values: int

    @property
    def num_sparse_layers(self) -> int:
        """The number of layers with experts."""
        return self.num_layers - self.num_dense_layers

    def shared_products(self) -> list[tuple[Matrix, int]]:
        """Return ((inputs, outputs), count) of every matrix that each token passes, except the head."""
        return [
            *((product, self.num_layers) for product in self.attention),
            *((product, self.num_dense_layers) for product in self.dense),
            *((product, self.num_sparse_layers) for product in self.always),
            *((product, 1) for product in self.outer),
        ]


def estimate_kv_bytes_per_token(config: Mapping[str, Any], *, bytes_per_value: float = 2) -> int:
    """Return the bytes of keys and values that one token keeps in the cache: 2 · L · G · D · bytes_per_value.

    G is the number of key/value heads: H without grouping, 1 for multi-query attention. D is `head_dim` if the config
    has it, otherwise d / H. For Qwen3-0.6B the two differ by a factor of two.
    """
    _refuse(config, "kv_lora_rank")
    num_values = 2 * _read_int(config, "num_hidden_layers") * _read_num_kv_heads(config) * _read_head_dim(config)
    return math.ceil(num_values * _check_bytes(bytes_per_value))


def estimate_num_parameters(config: Mapping[str, Any]) -> int:
    """Return the exact number of parameters, with tied embeddings counted once.

    Raises ModelError for a family that is not listed above, because an approximate count would look exact.
    """
    shape = read_shape(config)
    products = sum(inputs * outputs * times for (inputs, outputs), times in shape.shared_products())
    experts = shape.num_sparse_layers * shape.num_experts * count_values(shape.expert)
    return products + experts + count_values([shape.head]) + shape.lookup_values + shape.vector_values


def estimate_packed_bytes(
    config: Mapping[str, Any], *, bits: int, group_size: int, scale_bits: float, is_head_packed: bool = False
) -> int:
    """Return the bytes of a checkpoint with its matrices packed in `bits`; embeddings, norms and biases take 16 bits.

    Each `group_size` values of a row share `scale_bits` (a scale and its zero point); 0 or less means one scale per
    output channel. The head takes 16 bits too, unless `is_head_packed` is set and the head is not also the embedding.
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
    """Return the value; raise ModelError if no dtype has this size."""
    if not 0 < bytes_per_value <= 8:
        raise ModelError(f"bytes_per_value is {bytes_per_value}.", next_step="give 4, 2, 1, or 0.5 for 4 bits.")
    return bytes_per_value


def read_shape(config: Mapping[str, Any]) -> ModelShape:
    """Return the `ModelShape` of a config; raises ModelError for an unknown family."""
    family, rules = config.get("model_type"), _find_rules(config)
    if not isinstance(family, str) or family not in FAMILIES:
        raise ModelError(
            f"cannot count the parameters of model_type {family!r}; known: {', '.join(FAMILIES)}.",
            next_step="count them from the weights themselves.",
        )
    _refuse(config, *(("kv_lora_rank",) if rules.get("is_moe") else _REFUSED))
    return _read_opt(config) if family == "opt" else _read_llama(config, rules)


def _read_num_kv_heads(config: Mapping[str, Any]) -> int:
    """Return G: 1 for multi-query attention, H if the config says null or the family has no default of its own."""
    key = "num_key_value_heads"
    if config.get("multi_query"):  # an older key for multi-query attention
        return 1
    if config.get(key) is None and (key in config or key not in _find_rules(config)):
        return _read_int(config, "num_attention_heads")
    return _read_int(config, key)


def _read_head_dim(config: Mapping[str, Any]) -> int:
    """Return D: `head_dim` if the config or its family has one, otherwise d / H."""
    if config.get("head_dim") is not None or "head_dim" in _find_rules(config):
        return _read_int(config, "head_dim")
    return _read_int(config, "hidden_size") // _read_int(config, "num_attention_heads")


def _read_int(config: Mapping[str, Any], *keys: str) -> int:
    """Return the first of the keys that the config or its family defines; raises ModelError unless it is an int > 0."""
    rules = _find_rules(config)
    values = [(key, config[key] if config.get(key) is not None else rules.get(key)) for key in keys]
    key, value = next(((key, value) for key, value in values if value is not None), values[0])
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelError(
            f"the config has no whole number above 0 for {key!r} (found {value!r}).",
            next_step="pass the dict of the model's config.json; for a multimodal model, pass its text_config.",
        )
    return value


def read_window(config: Mapping[str, Any]) -> int | None:
    """Return the sliding window in tokens (the family's default if the config has no entry), or None."""
    window = config.get("sliding_window", _find_rules(config).get("sliding_window"))
    return _read_int({"sliding_window": window}, "sliding_window") if window else None


def _read_flag(config: Mapping[str, Any], key: str, default: bool = False) -> bool:
    """Return a boolean setting; raises ModelError for any other type, because "no" would count as true."""
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise ModelError(f"the config has {key} = {value!r}; expected true or false.", next_step="correct config.json.")
    return default if value is None else value


def _find_rules(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the defaults of the config's family, empty for an unknown family."""
    family = config.get("model_type")
    return FAMILIES.get(family, {}) if isinstance(family, str) else {}


def _refuse(config: Mapping[str, Any], *keys: str) -> None:
    """Raise ModelError if the config has one of these keys, which the formulas do not cover."""
    for key in keys:
        if config.get(key):
            raise ModelError(
                f"the config has {key} = {config[key]}: {_REFUSED[key]}, which is not counted here.",
                next_step="read the bytes from the loaded model instead.",
            )


def count_values(products: Any) -> int:
    """Return the number of values in a sequence of matrices (inputs, outputs)."""
    return sum(inputs * outputs for inputs, outputs in products)


def _read_llama(config: Mapping[str, Any], rules: Mapping[str, Any]) -> ModelShape:
    """Read Llama and its relatives: RMSNorm, a gated MLP of three matrices (gate, up, down), optional experts."""
    d, num_layers = _read_int(config, "hidden_size"), _read_int(config, "num_hidden_layers")
    head_dim = _read_head_dim(config)
    q_width = _read_int(config, "num_attention_heads") * head_dim  # H · D, which need not be d
    kv_width = _read_num_kv_heads(config) * head_dim
    biases = 0
    known = rules.get("biases", ())
    if "attention_bias" in known and _read_flag(config, "attention_bias"):
        biases = q_width + 2 * kv_width + d
    elif _read_flag(config, "qkv_bias", True) if "qkv_bias" in known else rules.get("qkv_bias"):
        biases = q_width + 2 * kv_width  # Qwen2: biases on Q, K and V, none on O
    norms = rules.get("num_norms", 2) * d + (2 * head_dim if rules.get("qk_norm") else 0)
    norms += q_width + kv_width if rules.get("wide_qk_norm") else 0
    num_dense, always, expert, num_experts, per_token, f = num_layers, (), (), 0, 0, 0
    if rules.get("is_moe"):
        num_dense, always, expert, num_experts, per_token = _read_experts(config, d=d, num_layers=num_layers)
    if num_dense:
        f = _read_int(config, "intermediate_size")
    mlp_biases = num_dense * (2 * f + d) if "mlp_bias" in known and _read_flag(config, "mlp_bias") else 0
    v, is_tied = _read_int(config, "vocab_size"), _read_flag(config, "tie_word_embeddings", rules.get("tied", False))
    return ModelShape(
        num_layers=num_layers,
        num_heads=q_width // head_dim,
        head_dim=head_dim,
        attention=((d, q_width), (d, kv_width), (d, kv_width), (q_width, d)),  # Q, K, V, O
        dense=((d, f), (d, f), (f, d)) if f else (),
        num_dense_layers=num_dense,
        always=always,
        expert=expert,
        num_experts=num_experts,
        experts_per_token=per_token,
        head=(d, v),
        outer=(),
        lookup_values=0 if is_tied else v * d,
        row_values=0 if is_tied else d,
        vector_values=num_layers * (biases + norms) + mlp_biases + d,
    )


def _read_experts(
    config: Mapping[str, Any], *, d: int, num_layers: int
) -> tuple[int, tuple[Matrix, ...], tuple[Matrix, ...], int, int]:
    """Return (num_dense_layers, always, expert, num_experts, experts_per_token) of a mixture of experts."""
    num_experts = _read_int(config, "num_local_experts", "num_experts")
    f = _read_int(config, "moe_intermediate_size", "intermediate_size")  # Mixtral's key is intermediate_size
    step = _read_int(config, "decoder_sparse_step") if config.get("decoder_sparse_step") is not None else 1
    dense_only = config.get("mlp_only_layers") or []
    if not isinstance(dense_only, list):
        raise ModelError(f"the config has mlp_only_layers = {dense_only!r}; expected a list.", next_step="correct it.")
    num_dense = sum(1 for layer in range(num_layers) if layer in dense_only or (layer + 1) % step)
    always: tuple[Matrix, ...] = ((d, num_experts),)
    if config.get("shared_expert_intermediate_size", _find_rules(config).get("shared_expert_intermediate_size")):
        shared = _read_int(config, "shared_expert_intermediate_size")
        always += ((d, shared), (d, shared), (shared, d), (d, 1))  # and its gate
    return num_dense, always, ((d, f), (d, f), (f, d)), num_experts, _read_int(config, "num_experts_per_tok")


def _read_opt(config: Mapping[str, Any]) -> ModelShape:
    """Read OPT: learned positions, biases everywhere, LayerNorms with scale and shift, an MLP of two matrices."""
    d, f, v = (_read_int(config, key) for key in ("hidden_size", "ffn_dim", "vocab_size"))
    num_layers, num_heads = _read_int(config, "num_hidden_layers"), _read_int(config, "num_attention_heads")
    has_width = config.get("word_embed_proj_dim") is not None
    width = _read_int(config, "word_embed_proj_dim") if has_width else d  # OPT-350m: 512, projected to 1024
    is_tied = _read_flag(config, "tie_word_embeddings", FAMILIES["opt"]["tied"])
    positions = (_read_int(config, "max_position_embeddings") + 2) * d
    norm = 2 * d if _read_flag(config, "layer_norm_elementwise_affine", True) else 0
    biases = 5 * d + f if _read_flag(config, "enable_bias", True) else 0
    has_last_norm = _read_flag(config, "do_layer_norm_before", True) and not _read_flag(
        config, "_remove_final_layer_norm"
    )
    return ModelShape(
        num_layers=num_layers,
        num_heads=num_heads,
        head_dim=d // num_heads,
        attention=((d, d),) * 4,
        dense=((d, f), (f, d)),
        num_dense_layers=num_layers,
        always=(),
        expert=(),
        num_experts=0,
        experts_per_token=0,
        head=(width, v),
        outer=((width, d), (d, width)) if width != d else (),
        lookup_values=positions + (0 if is_tied else v * width),
        row_values=d + (0 if is_tied else width),
        vector_values=num_layers * (biases + 2 * norm) + (norm if has_last_norm else 0),
    )
