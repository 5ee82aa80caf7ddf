"""The matrix products of a model, read from its config.json: what `parameters` and `work` both count."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from labkit.errors import ModelError

# What the family's configuration class assumes where config.json says nothing.
_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "mixtral": {"is_moe": True},
    "qwen2": {"qkv_bias": True},
    "qwen2_moe": {"qkv_bias": True, "is_moe": True},
    "qwen3": {"qk_norm": True},
    "qwen3_moe": {"qk_norm": True, "is_moe": True},
    "granite": {},
    "smollm3": {"tied": True},
    "phi3": {},  # Q, K, V in one matrix, gate and up in another: the same values
    "gemma": {"tied": True},
    "gemma2": {"tied": True, "num_norms": 4},
    "gemma3_text": {"tied": True, "num_norms": 4, "qk_norm": True},
    "olmo2": {"wide_qk_norm": True},  # it normalizes all heads together
    "opt": {"tied": True},
}
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
    family = config.get("model_type")
    if family not in _FAMILIES:
        raise ModelError(
            f"cannot count the parameters of model_type {family!r}; known: {', '.join(_FAMILIES)}.",
            next_step="count them from the weights themselves.",
        )
    rules = _FAMILIES[family]
    refuse(config, *(("kv_lora_rank",) if rules.get("is_moe") else _REFUSED))
    return _read_opt(config) if family == "opt" else _read_llama(config, rules)


def read_num_kv_heads(config: Mapping[str, Any]) -> int:
    """Return G: H without grouping, 1 for multi-query attention."""
    if config.get("multi_query"):  # the older spelling of multi-query attention
        return 1
    return config.get("num_key_value_heads") or read_int(config, "num_attention_heads")


def read_head_dim(config: Mapping[str, Any]) -> int:
    """Return D: `head_dim` when the config has it, and d / H otherwise."""
    return config.get("head_dim") or read_int(config, "hidden_size") // read_int(config, "num_attention_heads")


def read_int(config: Mapping[str, Any], *keys: str) -> int:
    """Return the first of the keys that holds a whole number; raises ModelError when none does."""
    for key in keys:
        if isinstance(config.get(key), int):
            return config[key]
    raise ModelError(
        f"the config has no whole number {keys[0]!r} (found {config.get(keys[0])!r}).",
        next_step="pass the dict of the model's config.json; for a multimodal model its text_config.",
    )


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
    if config.get("attention_bias"):
        biases = q_width + 2 * kv_width + d
    elif config.get("qkv_bias", rules.get("qkv_bias")):
        biases = q_width + 2 * kv_width  # Qwen2: biases on Q, K and V, none on O
    norms = rules.get("num_norms", 2) * d + (2 * head_dim if rules.get("qk_norm") else 0)
    norms += q_width + kv_width if rules.get("wide_qk_norm") else 0
    num_dense, always, expert, num_experts, per_token, f = num_layers, (), (), 0, 0, 0
    if rules.get("is_moe"):
        num_dense, always, expert, num_experts, per_token = _read_experts(config, d=d, num_layers=num_layers)
    if num_dense:
        f = read_int(config, "intermediate_size")
    mlp_biases = num_dense * (2 * f + d) if config.get("mlp_bias") else 0
    v, is_tied = read_int(config, "vocab_size"), config.get("tie_word_embeddings", rules.get("tied", False))
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
    step, dense_only = config.get("decoder_sparse_step") or 1, set(config.get("mlp_only_layers") or ())
    num_dense = sum(1 for layer in range(num_layers) if layer in dense_only or (layer + 1) % step)
    always: tuple[Product, ...] = ((d, num_experts),)
    if shared := config.get("shared_expert_intermediate_size"):
        always += ((d, shared), (d, shared), (shared, d), (d, 1))  # and the gate that weighs it
    return num_dense, always, ((d, f), (d, f), (f, d)), num_experts, read_int(config, "num_experts_per_tok")


def _read_opt(config: Mapping[str, Any]) -> Shape:
    """OPT: learned positions, biases everywhere, LayerNorms with scale and shift, an MLP of two matrices."""
    d, f, v = (read_int(config, key) for key in ("hidden_size", "ffn_dim", "vocab_size"))
    num_layers, num_heads = read_int(config, "num_hidden_layers"), read_int(config, "num_attention_heads")
    width = config.get("word_embed_proj_dim") or d  # OPT-350m embeds in 512 and projects to 1024 and back
    is_tied = config.get("tie_word_embeddings", _FAMILIES["opt"]["tied"])
    positions = (read_int(config, "max_position_embeddings") + 2) * d
    norm = 2 * d if config.get("layer_norm_elementwise_affine", True) else 0
    biases = int(config.get("enable_bias", True)) * (5 * d + f)
    has_last_norm = config.get("do_layer_norm_before", True) and not config.get("_remove_final_layer_norm", False)
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
