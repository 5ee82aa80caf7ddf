"""Bytes and parameters from a config.json (case 23), against published totals and against transformers itself."""

import pytest

from labkit.errors import ModelError
from labkit.roofline import estimate_kv_bytes_per_token, estimate_num_parameters, estimate_weight_bytes

LLAMA_31_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
}
LLAMA_31_70B = LLAMA_31_8B | {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
}
LLAMA_2_7B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
QWEN3_06B = {
    "model_type": "qwen3",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "attention_bias": False,
    "tie_word_embeddings": True,
}
OPT_13B = {  # like the published file, it says nothing about tied embeddings or key/value heads
    "model_type": "opt",
    "hidden_size": 5120,
    "ffn_dim": 20480,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "vocab_size": 50272,
    "max_position_embeddings": 2048,
    "word_embed_proj_dim": 5120,
    "do_layer_norm_before": True,
}
OPT_125M = OPT_13B | {
    "hidden_size": 768,
    "ffn_dim": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "word_embed_proj_dim": 768,
}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LLAMA_31_8B, 131_072),
        (LLAMA_2_7B, 524_288),
        (OPT_13B, 819_200),
        (LLAMA_31_70B, 327_680),
        (QWEN3_06B, 114_688),  # hidden / heads would give 57,344
    ],
)
def test_case_23_kv_bytes_per_token_in_fp16(config, expected):
    assert estimate_kv_bytes_per_token(config) == expected
    assert type(estimate_kv_bytes_per_token(config)) is int
    assert estimate_kv_bytes_per_token(config, bytes_per_value=1) == expected // 2


@pytest.mark.parametrize(
    "multi_query", [{"num_key_value_heads": 1}, {"multi_query": True, "num_key_value_heads": None}]
)
def test_multi_query_attention_caches_one_head(multi_query):
    assert estimate_kv_bytes_per_token(LLAMA_2_7B | multi_query) == 524_288 // 32


@pytest.mark.parametrize(
    ("config", "total"),
    [
        (LLAMA_31_8B, 8_030_261_248),
        (LLAMA_31_70B, 70_553_706_496),
        (LLAMA_2_7B, 6_738_415_616),
        (QWEN3_06B, 596_049_920),
        (OPT_125M, 125_239_296),
    ],
)
def test_parameter_counts_equal_the_published_totals(config, total):
    assert estimate_num_parameters(config) == total


def test_weight_bytes_follow_the_bits():
    assert estimate_weight_bytes(LLAMA_31_8B) == 2 * 8_030_261_248
    assert estimate_weight_bytes(LLAMA_31_8B, bytes_per_value=4) == 4 * 8_030_261_248
    assert estimate_weight_bytes(LLAMA_31_8B, bytes_per_value=0.5) == 8_030_261_248 // 2


def test_untying_the_embeddings_adds_one_more_table():
    untied = estimate_num_parameters(QWEN3_06B | {"tie_word_embeddings": False})
    assert untied - estimate_num_parameters(QWEN3_06B) == 151_936 * 1024


TINY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 32,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        TINY | {"model_type": "llama"},
        TINY | {"model_type": "llama", "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
        TINY | {"model_type": "llama", "head_dim": 24, "num_key_value_heads": 1},
        TINY | {"model_type": "mistral", "head_dim": 24},
        TINY | {"model_type": "qwen2"},
        TINY | {"model_type": "qwen3", "head_dim": 24},
        TINY | {"model_type": "qwen3", "head_dim": 24, "attention_bias": True},
        TINY | {"model_type": "opt", "ffn_dim": 96},
        TINY | {"model_type": "opt", "ffn_dim": 96, "word_embed_proj_dim": 48, "do_layer_norm_before": False},
        TINY | {"model_type": "opt", "ffn_dim": 96, "enable_bias": False, "layer_norm_elementwise_affine": False},
        TINY | {"model_type": "opt", "ffn_dim": 96, "_remove_final_layer_norm": True},
    ],
)
def test_parameter_counts_equal_those_of_transformers(config):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    fields = {key: value for key, value in config.items() if key != "model_type"}
    with torch.device("meta"):  # shapes without memory
        model = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(config["model_type"], **fields)
        )
    assert estimate_num_parameters(config) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: estimate_num_parameters(LLAMA_31_8B | {"model_type": "gemma"}), "model_type 'gemma'"),
        (lambda: estimate_num_parameters(LLAMA_31_8B | {"num_local_experts": 8}), "mixture of experts"),
        (lambda: estimate_num_parameters({"model_type": "llama", "hidden_size": 64}), "intermediate_size"),
        (lambda: estimate_kv_bytes_per_token(LLAMA_31_8B | {"kv_lora_rank": 512}), "MLA"),
        (lambda: estimate_kv_bytes_per_token({"text_config": LLAMA_31_8B}), "text_config"),
        (lambda: estimate_kv_bytes_per_token(LLAMA_31_8B, bytes_per_value=16), "0.5 for 4 bits"),
        (lambda: estimate_weight_bytes(LLAMA_31_8B, bytes_per_value=0), "0.5 for 4 bits"),
    ],
)
def test_what_cannot_be_counted_is_refused_with_a_reason(call, message):
    with pytest.raises(ModelError, match=message):
        call()
