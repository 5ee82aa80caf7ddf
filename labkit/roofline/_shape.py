"""The matrix products of a model, read from its config.json: what `parameters` and `work` both count."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from labkit.errors import ModelError

# `tied`, `biases` and the counts: what the family's own class assumes where config.json says nothing (files are saved
# without what equals the class's defaults). `biases` are the settings that the class reads; it ignores any other.
_FAMILIES: dict[str, dict[str, Any]] = {
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
    "olmo2": {"wide_qk_norm": True, "biases": ("attention_bias",)},  # it normalizes all heads together
    "opt": {"tied": True},
}  # fmt: skip
_REFUSED = {  # key of a config -> why the plain formula would be wrong
    "kv_lora_rank": "it caches a compressed latent (MLA), not keys and values",
    "num_experts": "it is a mixture of experts of another family",
    "num_local_experts": "it is a mixture of experts of another family",
    "n_routed_experts": "it is a mixture of experts of another family",
}

Product = tuple[int, int]  # the shape (inputs, outputs) of a weight matrix


@dataclass(frozen=True, slots=True)
class Shape:
    """The weight matrices of one model, each as (inputs, outputs).

    `attention` is in every layer, `dense` in `num_dense_layers` of them. The other `num_sparse_layers` have `always`
    (router, shared expert) and `num_experts` times `expert`, of which a token uses `experts_per_token`. `head` is the
    output matrix, `outer` what stands outside the layers (OPT-350m's projections). A `lookup_values` table is only
    looked up, a row of `row_values` per token: the embedding where it is not also the head, and learned positions.
    `vector_values`: norms and biases, which are read but multiply no matrix.
    """

    num_layers: int
    num_heads: int
    head_dim: int
    attention: tuple[Product, ...]
    dense: tuple[Product, ...]
    num_dense_layers: int
    always: tuple[Product, ...]
    expert: tuple[Product, ...]
    num_experts: int
    experts_per_token: int
    head: Product
    outer: tuple[Product, ...]
    lookup_values: int
    row_values: int
    vector_values: int

    @property
    def num_sparse_layers(self) -> int:
        """Layers with experts."""
        return self.num_layers - self.num_dense_layers

    def shared_products(self) -> list[tuple[Product, int]]:
        """Every matrix that each token of a sequence passes, without the head, as ((inputs, outputs), how often)."""
        return [
            *((product, self.num_layers) for product in self.attention),
            *((product, self.num_dense_layers) for product in self.dense),
            *((product, self.num_sparse_layers) for product in self.always),
            *((product, 1) for product in self.outer),
        ]


def read_shape(config: Mapping[str, Any]) -> Shape:
    """Return the `Shape` of a config; raises ModelError for a family that is not known, rather than nearly right."""
    family, rules = config.get("model_type"), _find_rules(config)
    if not isinstance(family, str) or family not in _FAMILIES:
        raise ModelError(
            f"cannot count the parameters of model_type {family!r}; known: {', '.join(_FAMILIES)}.",
            next_step="count them from the weights themselves.",
        )
    refuse(config, *(("kv_lora_rank",) if rules.get("is_moe") else _REFUSED))
    return _read_opt(config) if family == "opt" else _read_llama(config, rules)


def read_num_kv_heads(config: Mapping[str, Any]) -> int:
    """Return G: 1 for multi-query attention, H where the config says null or the family has no number of its own."""
    key = "num_key_value_heads"
    if config.get("multi_query"):  # the older spelling of multi-query attention
        return 1
    if config.get(key) is None and (key in config or key not in _find_rules(config)):
        return read_int(config, "num_attention_heads")
    return read_int(config, key)


def read_head_dim(config: Mapping[str, Any]) -> int:
    """Return D: `head_dim` when the config or its family has one, and d / H otherwise."""
    if config.get("head_dim") is not None or "head_dim" in _find_rules(config):
        return read_int(config, "head_dim")
    return read_int(config, "hidden_size") // read_int(config, "num_attention_heads")


def read_int(config: Mapping[str, Any], *keys: str) -> int:
    """Return the first of the keys that the config or its family has, a count above 0; else raises ModelError."""
    rules = _find_rules(config)
    values = [(key, config[key] if config.get(key) is not None else rules.get(key)) for key in keys]
    key, value = next(((key, value) for key, value in values if value is not None), values[0])
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelError(
            f"the config has no whole number above 0 for {key!r} (found {value!r}).",
            next_step="pass the dict of the model's config.json; for a multimodal model its text_config.",
        )
    return value


def read_window(config: Mapping[str, Any]) -> int | None:
    """Return the tokens of the sliding window, the family's own where the config is silent; None: there is none."""
    window = config.get("sliding_window", _find_rules(config).get("sliding_window"))
    return read_int({"sliding_window": window}, "sliding_window") if window else None


def _read_flag(config: Mapping[str, Any], key: str, default: bool = False) -> bool:
    """Return a setting that is true or false; raises ModelError for anything else ("no" would count as true)."""
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise ModelError(f"the config has {key} = {value!r}; expected true or false.", next_step="correct config.json.")
    return default if value is None else value


def _find_rules(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what is known of the config's family: nothing for one that is not in the table."""
    family = config.get("model_type")
    return _FAMILIES.get(family, {}) if isinstance(family, str) else {}


def refuse(config: Mapping[str, Any], *keys: str) -> None:
    """Raise ModelError when the config has one of the keys that the formulas do not cover."""
    for key in keys:
        if config.get(key):
            raise ModelError(
                f"the config has {key} = {config[key]}: {_REFUSED[key]}, which is not counted here.",
                next_step="read the bytes from the loaded model instead.",
            )


def count_values(products: Any) -> int:
    """Return the values of a sequence of matrices (inputs, outputs)."""
    return sum(inputs * outputs for inputs, outputs in products)


def _read_llama(config: Mapping[str, Any], rules: Mapping[str, Any]) -> Shape:
    """Llama and its relatives: RMSNorm, gated MLP of three matrices (gate, up, down), optional experts."""
    d, num_layers = read_int(config, "hidden_size"), read_int(config, "num_hidden_layers")
    head_dim = read_head_dim(config)
    q_width = read_int(config, "num_attention_heads") * head_dim  # H · D, which need not be d
    kv_width = read_num_kv_heads(config) * head_dim
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
        f = read_int(config, "intermediate_size")
    mlp_biases = num_dense * (2 * f + d) if "mlp_bias" in known and _read_flag(config, "mlp_bias") else 0
    v, is_tied = read_int(config, "vocab_size"), _read_flag(config, "tie_word_embeddings", rules.get("tied", False))
    return Shape(
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
) -> tuple[int, tuple[Product, ...], tuple[Product, ...], int, int]:
    """Return (dense layers, router and shared expert, one expert, experts, experts per token) of an MoE."""
    num_experts = read_int(config, "num_local_experts", "num_experts")
    f = read_int(config, "moe_intermediate_size", "intermediate_size")  # Mixtral calls it intermediate_size
    step = read_int(config, "decoder_sparse_step") if config.get("decoder_sparse_step") is not None else 1
    dense_only = config.get("mlp_only_layers") or []
    if not isinstance(dense_only, list):
        raise ModelError(f"the config has mlp_only_layers = {dense_only!r}; expected a list.", next_step="correct it.")
    num_dense = sum(1 for layer in range(num_layers) if layer in dense_only or (layer + 1) % step)
    always: tuple[Product, ...] = ((d, num_experts),)
    if config.get("shared_expert_intermediate_size", _find_rules(config).get("shared_expert_intermediate_size")):
        shared = read_int(config, "shared_expert_intermediate_size")
        always += ((d, shared), (d, shared), (shared, d), (d, 1))  # and the gate that weighs it
    return num_dense, always, ((d, f), (d, f), (f, d)), num_experts, read_int(config, "num_experts_per_tok")


def _read_opt(config: Mapping[str, Any]) -> Shape:
    """OPT: learned positions, biases everywhere, LayerNorms with scale and shift, an MLP of two matrices."""
    d, f, v = (read_int(config, key) for key in ("hidden_size", "ffn_dim", "vocab_size"))
    num_layers, num_heads = read_int(config, "num_hidden_layers"), read_int(config, "num_attention_heads")
    has_width = config.get("word_embed_proj_dim") is not None
    width = read_int(config, "word_embed_proj_dim") if has_width else d  # OPT-350m embeds in 512, then projects to 1024
    is_tied = _read_flag(config, "tie_word_embeddings", _FAMILIES["opt"]["tied"])
    positions = (read_int(config, "max_position_embeddings") + 2) * d
    norm = 2 * d if _read_flag(config, "layer_norm_elementwise_affine", True) else 0
    biases = 5 * d + f if _read_flag(config, "enable_bias", True) else 0
    has_last_norm = _read_flag(config, "do_layer_norm_before", True) and not _read_flag(
        config, "_remove_final_layer_norm"
    )
    return Shape(
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
