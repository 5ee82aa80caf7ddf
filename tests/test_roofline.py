"""Parameters, bytes and FLOPs from a config.json (cases 22 and 23): against published totals, against numbers worked by
hand from those totals, against transformers' own models and torch's own FLOP counter."""

import json
import math
from pathlib import Path

import pytest

from labkit.errors import LabkitError, ModelError
from labkit.roofline import (
    Work,
    estimate_decode_step,
    estimate_gemm,
    estimate_kv_bytes_per_token,
    estimate_num_parameters,
    estimate_prefill,
    estimate_time_bound,
    estimate_utilization,
)
from labkit.roofline.parameters import FAMILIES, read_window

ROOT = Path(__file__).resolve().parents[1]

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
QWEN25_15B = {
    "model_type": "qwen2",
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 131072,
    "sliding_window": 131072,
    "use_sliding_window": False,
    "tie_word_embeddings": True,
}
MIXTRAL_8X7B = {
    "model_type": "mixtral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 32000,
    "sliding_window": None,
    "tie_word_embeddings": False,
}
QWEN3_30B_A3B = {
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "vocab_size": 151936,
    "attention_bias": False,
    "tie_word_embeddings": False,
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
        (QWEN25_15B, 1_543_714_304),
        (MIXTRAL_8X7B, 46_702_792_704),
        (QWEN3_30B_A3B, 30_532_122_624),
    ],
)
def test_parameter_counts_equal_the_published_totals(config, total):
    assert estimate_num_parameters(config) == total


def test_untied_embeddings_add_one_table():
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
TINY_MOE = TINY | {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


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
        TINY | {"model_type": "granite"},
        TINY | {"model_type": "smollm3", "pad_token_id": 0},
        TINY | {"model_type": "phi3", "pad_token_id": 0},
        TINY | {"model_type": "gemma", "head_dim": 24},
        TINY | {"model_type": "gemma2", "head_dim": 24},
        TINY | {"model_type": "gemma3_text", "head_dim": 24},
        TINY | {"model_type": "olmo2"},
        TINY | {"model_type": "opt", "ffn_dim": 96},
        TINY | {"model_type": "opt", "ffn_dim": 96, "word_embed_proj_dim": 48, "do_layer_norm_before": False},
        TINY | {"model_type": "opt", "ffn_dim": 96, "enable_bias": False, "layer_norm_elementwise_affine": False},
        TINY | {"model_type": "opt", "ffn_dim": 96, "_remove_final_layer_norm": True},
        TINY | {"model_type": "mixtral", "num_local_experts": 5, "num_experts_per_tok": 2},
        TINY_MOE | {"model_type": "qwen3_moe", "head_dim": 24},
        TINY_MOE | {"model_type": "qwen3_moe", "head_dim": 24, "mlp_only_layers": [1]},
        TINY_MOE | {"model_type": "qwen2_moe", "shared_expert_intermediate_size": 40, "decoder_sparse_step": 2},
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


# A file that says as little as it may: 32 heads, so that every family's own number of key/value heads divides them.
SILENT = {"hidden_size": 1024, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 32,
          "vocab_size": 100, "max_position_embeddings": 32, "pad_token_id": 0}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("how", ["as written", "as saved"])
@pytest.mark.parametrize("more", [{}, {"attention_bias": True}, {"mlp_bias": True}, {"tie_word_embeddings": True}])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_value_missing_from_a_config_is_the_default_of_transformers(family, more, how):
    """Mistral's 8 key/value heads, Qwen3's head_dim of 128; and a setting that a class ignores adds nothing."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    own = transformers.AutoConfig.for_model(family, **SILENT, **more)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(own)
    written = {"model_type": family} | SILENT | more | ({"ffn_dim": own.ffn_dim} if family == "opt" else {})
    if family == "opt":  # its class has its own default for this one, which fits only its own hidden_size
        written["word_embed_proj_dim"] = own.word_embed_proj_dim
    config = written if how == "as written" else json.loads(own.to_json_string(use_diff=True)) | written
    assert estimate_num_parameters(config) == sum(p.numel() for p in model.parameters())
    attention = (model.model.decoder if family == "opt" else model.model).layers[0].self_attn
    heads = getattr(own, "num_key_value_heads", None) or own.num_attention_heads
    assert estimate_kv_bytes_per_token(config) == 2 * 2 * heads * attention.head_dim * 2


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_window_missing_from_a_config_is_the_default_of_transformers(family):
    transformers = pytest.importorskip("transformers")
    own = getattr(transformers.AutoConfig.for_model(family), "sliding_window", None)
    assert read_window({"model_type": family}) == (own or None)
    assert read_window({"model_type": family, "sliding_window": None}) is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: estimate_num_parameters(LLAMA_31_8B | {"model_type": "falcon"}), "model_type 'falcon'"),
        (lambda: estimate_num_parameters(LLAMA_31_8B | {"num_local_experts": 8}), "mixture of experts"),
        (lambda: estimate_num_parameters({"model_type": "llama", "hidden_size": 64}), "num_hidden_layers"),
        (lambda: estimate_num_parameters(LLAMA_31_8B | {"intermediate_size": None}), "intermediate_size"),
        (lambda: estimate_num_parameters(LLAMA_31_8B | {"model_type": []}), r"model_type \[\]"),
        (lambda: estimate_num_parameters(LLAMA_31_8B | {"hidden_size": -4096}), "'hidden_size'.*-4096"),
        (lambda: estimate_num_parameters(LLAMA_31_8B | {"vocab_size": True}), "'vocab_size'.*True"),
        (lambda: estimate_num_parameters(LLAMA_31_8B | {"num_key_value_heads": "8"}), "'num_key_value_heads'.*'8'"),
        (lambda: estimate_num_parameters(LLAMA_31_8B | {"tie_word_embeddings": "no"}), "tie_word_embeddings = 'no'"),
        (lambda: estimate_num_parameters(QWEN3_30B_A3B | {"mlp_only_layers": 5}), "mlp_only_layers = 5"),
        (lambda: estimate_kv_bytes_per_token(LLAMA_31_8B | {"head_dim": "128"}), "'head_dim'.*'128'"),
        (lambda: estimate_kv_bytes_per_token(LLAMA_31_8B | {"num_key_value_heads": 8.0}), "'num_key_value_heads'.*8.0"),
        (lambda: estimate_kv_bytes_per_token(LLAMA_31_8B | {"kv_lora_rank": 512}), "MLA"),
        (lambda: estimate_kv_bytes_per_token({"text_config": LLAMA_31_8B}), "text_config"),
        (lambda: estimate_kv_bytes_per_token(LLAMA_31_8B, bytes_per_value=16), "0.5 for 4 bits"),
        (lambda: estimate_kv_bytes_per_token(LLAMA_31_8B, bytes_per_value=0), "0.5 for 4 bits"),
    ],
)
def test_what_cannot_be_counted_is_refused_with_a_reason(call, message):
    with pytest.raises(ModelError, match=message):
        call()


# Mixtures of experts


def test_a_batch_touches_more_experts_until_all_are_read():
    expert = 3 * 4096 * 14336
    one, two, many = (
        estimate_decode_step(MIXTRAL_8X7B, context_tokens=100, batch=batch).weight_bytes for batch in (1, 2, 500)
    )
    # Two tokens choose 2 of 8 each; by chance they touch 8 · (1 - (6/8)²) = 3.5.
    assert two - one == pytest.approx(2 * (32 * 1.5 * expert + 4096))
    table = 32000 * 4096  # the input embedding: looked up, not read
    assert many == pytest.approx(2 * (46_702_792_704 - table + 500 * 4096), rel=1e-9)


# FLOPs and bytes of a prefill and of a decode step


# By hand, from the published number of parameters instead of from the shapes: every parameter in a product costs one
# multiply-add per token, so FLOPs = 2 · (parameters - looked-up embedding - norms - biases) + 4 · L · H · D · 1024.
HAND_DECODE_FLOPS = [
    # 2 · (8,030,261,248 - 525,336,576 - 65 · 4096) + 4 · 32 · 4096 · 1024
    (LLAMA_31_8B, 15_546_187_776),
    # 2 · (6,738,415,616 - 131,072,000 - 65 · 4096) + 4 · 32 · 4096 · 1024
    (LLAMA_2_7B, 13_751_025_664),
    # 2 · (70,553,706,496 - 1,050,673,152 - 161 · 8192) + 4 · 80 · 8192 · 1024
    (LLAMA_31_70B, 141_687_783_424),
    # tied: nothing is only looked up. 2 · (596,049,920 - 57 · 1024 - 28 · 256) + 4 · 28 · 16 · 128 · 1024
    (QWEN3_06B, 1_426_849_792),
    # tied, biases on Q, K, V: 2 · (1,543,714,304 - 57 · 1536 - 28 · 2048) + 4 · 28 · 1536 · 1024
    (QWEN25_15B, 3_263_299_584),
    # active parameters ("12.9B active" on its card):
    # 2 · (12,879,925,248 - 131,072,000 - 65 · 4096) + 4 · 32 · 4096 · 1024
    (MIXTRAL_8X7B, 26_034_044_928),
    # active parameters ("3.3B activated" on its card):
    # 2 · (3,353,032,704 - 311,164,928 - 49 · 2048 - 48 · (2048 + 2 · 128)) + 4 · 48 · 32 · 128 · 1024
    (QWEN3_30B_A3B, 6_888_620_032),
]


@pytest.mark.parametrize(("config", "flops"), HAND_DECODE_FLOPS)
def test_flops_of_a_decode_step_equal_those_worked_by_hand_from_published_totals(config, flops):
    assert estimate_decode_step(config, context_tokens=1023).flops == flops
    assert estimate_decode_step(config, context_tokens=1023, batch=7).flops == 7 * flops


def test_bytes_of_a_decode_step_by_hand():
    work = estimate_decode_step(LLAMA_31_8B, context_tokens=1023)
    assert work.weight_bytes == 15_009_857_536  # 2 · (8,030,261,248 - 525,336,576 + one row of 4096)
    assert work.kv_bytes == 1024 * 131_072
    # inputs + outputs of Q, K, V, O, gate, up, down in 32 layers, and of the head
    layer = (4096 + 4096) + 2 * (4096 + 1024) + (4096 + 4096) + 3 * (4096 + 14336)
    assert work.activation_bytes == 2 * (32 * layer + 4096 + 128256)
    assert work.bytes == work.weight_bytes + work.kv_bytes + work.activation_bytes
    assert work.intensity == pytest.approx(1.026, abs=0.001)  # about one: far left on any roofline


def test_the_batch_shares_the_weights_but_not_the_cache():
    one, four = (estimate_decode_step(QWEN3_06B, context_tokens=511, batch=batch) for batch in (1, 4))
    assert four.weight_bytes == one.weight_bytes  # tied: the table is the head, and is read whole either way
    assert four.kv_bytes == 4 * one.kv_bytes == 4 * 512 * 114_688
    assert four.activation_bytes == 4 * one.activation_bytes


def test_flops_of_a_prefill_by_hand():
    # 1024 tokens pass 6,979,321,856 values of the layers; one passes the head; 32 squares of scores, twice.
    expected = 2 * 1024 * 6_979_321_856 + 2 * 525_336_576 + 4 * 32 * 4096 * 1024 * 1024
    assert estimate_prefill(LLAMA_31_8B, prompt_tokens=1024).flops == expected
    all_logits = estimate_prefill(LLAMA_31_8B, prompt_tokens=1024, num_logits=1024)
    assert all_logits.flops - expected == 2 * 525_336_576 * 1023


def test_a_prefill_of_one_token_is_a_decode_step_with_an_empty_cache():
    assert estimate_prefill(QWEN25_15B, prompt_tokens=1, batch=3) == estimate_decode_step(
        QWEN25_15B, context_tokens=0, batch=3
    )


def test_weights_of_four_bits_leave_the_cache_in_sixteen():
    full, packed = (estimate_decode_step(LLAMA_2_7B, context_tokens=99, bytes_per_value=b) for b in (2, 0.5))
    assert (packed.weight_bytes, packed.kv_bytes) == (full.weight_bytes / 4, full.kv_bytes)
    small = estimate_decode_step(LLAMA_2_7B, context_tokens=99, cache_bytes_per_value=1)
    assert (small.weight_bytes, small.kv_bytes) == (full.weight_bytes, full.kv_bytes / 2)


def test_case_22_a_square_matmul_and_a_gemv():
    work = estimate_gemm(4096, 4096, 4096, bytes_per_value=2)
    assert round(work.flops / 1e9, 1) == 137.4
    assert round(work.bytes / 1e6, 1) == 100.7
    assert round(work.intensity, 1) == 1365.3
    assert estimate_gemm(1, 4096, 4096, bytes_per_value=2).intensity == pytest.approx(1, abs=0.001)
    assert estimate_gemm(1, 4096, 4096, bytes_per_value=4).intensity == pytest.approx(0.5, abs=0.001)


def count_with_torch(model, *, prompt_tokens, batch, num_logits):
    """FLOPs of a prefill and of the decode step after it, by torch.utils.flop_counter, which has its own formulas."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    ids = torch.zeros((batch, prompt_tokens), dtype=torch.long)
    with torch.no_grad(), FlopCounterMode(display=False) as prefill:
        out = model(ids, use_cache=True, logits_to_keep=num_logits)
    with torch.no_grad(), FlopCounterMode(display=False) as step:
        model(ids[:, :1], past_key_values=out.past_key_values, use_cache=True)
    return prefill.get_total_flops(), step.get_total_flops()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "batch"), [("python-11m", 1), ("python-11m", 3), ("python-2m", 1)])
@pytest.mark.parametrize("num_logits", [1, 200])
def test_flops_are_within_one_percent_of_torchs_counter_on_the_shipped_models(name, batch, num_logits):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = ROOT / "data" / "models" / name
    config = json.loads((folder / "config.json").read_text())
    # "eager": the counter does not know the CPU's own attention kernel and would count 0 for it.
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    prefill, step = count_with_torch(model, prompt_tokens=200, batch=batch, num_logits=num_logits)
    expected = estimate_prefill(config, prompt_tokens=200, batch=batch, num_logits=num_logits).flops
    assert expected == pytest.approx(prefill, rel=0.01)
    assert estimate_decode_step(config, context_tokens=200, batch=batch).flops == pytest.approx(step, rel=0.01)


# Time bounds


def test_the_slowest_of_three_limits_binds_and_is_named():
    work = Work(flops=2e9, weight_bytes=1e9, kv_bytes=5e8, activation_bytes=5e8)
    assert (work.bytes, work.intensity) == (2e9, 1.0)
    bound = estimate_time_bound(work, flop_per_s=1e12, byte_per_s=1e11, dispatch_s=0.001)
    assert (bound.limit, bound.seconds) == ("bandwidth", 0.02)
    assert (bound.compute_s, bound.bandwidth_s, bound.dispatch_s) == (0.002, 0.02, 0.001)
    assert bound.serial_s == 0.021  # if one thread dispatches and computes, the two add up
    assert estimate_time_bound(work, flop_per_s=1e10, byte_per_s=1e11).limit == "compute"
    assert estimate_time_bound(work, flop_per_s=1e12, byte_per_s=1e11, dispatch_s=0.021).limit == "dispatch"


def test_utilization_carries_the_interval_of_the_median():
    samples = [0.010, 0.011, 0.012, 0.013, 0.014, 0.020]
    found = estimate_utilization(samples, ideal_s=0.005)
    assert found.value == pytest.approx(0.4)
    assert (found.interval.low, found.interval.high) == (pytest.approx(0.25), pytest.approx(0.5))
    assert found.n == 6
    assert estimate_utilization(samples[:3], ideal_s=0.005).interval is None


def test_gpt_fasts_published_decode_is_most_of_its_bandwidth():
    # 104.9 tok/s at "1,397 GB/s" (its README): 13.3 GB a token. The config alone gives the same within 2 %.
    work = estimate_decode_step(LLAMA_2_7B, context_tokens=100)
    assert work.bytes * 104.9 == pytest.approx(1397e9, rel=0.02)


@pytest.mark.parametrize(
    "call",
    [
        lambda: estimate_prefill(LLAMA_2_7B, prompt_tokens=0),
        lambda: estimate_prefill(LLAMA_2_7B, prompt_tokens=4, num_logits=5),
        lambda: estimate_decode_step(LLAMA_2_7B, context_tokens=-1),
        lambda: estimate_decode_step(LLAMA_2_7B, context_tokens=5, batch=0),
        lambda: estimate_decode_step(LLAMA_2_7B | {"sliding_window": 64, "model_type": "mistral"}, context_tokens=64),
        lambda: estimate_gemm(1, 0, 4, bytes_per_value=2),
        lambda: estimate_time_bound(Work(2.0, 2.0, 0.0, 4.0), flop_per_s=0, byte_per_s=1),
        lambda: estimate_time_bound(
            estimate_gemm(1, 1, 1, bytes_per_value=2), flop_per_s=1, byte_per_s=1, dispatch_s=-1
        ),
        lambda: estimate_time_bound(Work(2.0, 2.0, 0.0, 4.0), flop_per_s=math.nan, byte_per_s=1),
        lambda: estimate_utilization([0.0, 1.0], ideal_s=1),
        lambda: estimate_utilization([], ideal_s=1),
    ],
)
def test_invalid_arguments_are_refused(call):
    with pytest.raises(LabkitError):
        call()


def test_a_context_inside_the_window_is_counted():
    config = LLAMA_2_7B | {"sliding_window": 64, "model_type": "mistral"}
    assert estimate_decode_step(config, context_tokens=63) == estimate_decode_step(LLAMA_2_7B, context_tokens=63)
