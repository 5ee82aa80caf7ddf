"""A decoder as plain tensors: heads split and merged, and which model is taken apart."""

import json

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow  # computes with torch

from labkit.hardware import probe_machine  # noqa: E402
from labkit.models.decoder import find_decoder, merge_heads, split_heads  # noqa: E402

CONFIG = {
    "vocab_size": 37, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 10, "rms_norm_eps": 1e-3, "max_position_embeddings": 64,
}  # fmt: skip


def test_heads_are_split_and_merged_back():
    x = torch.arange(2.0 * 5 * 6).reshape(2, 5, 6)
    heads = split_heads(x, 3)
    assert heads.shape == (2, 2, 5, 3)
    assert heads[1, 1, 4].tolist() == x[1, 4, 3:].tolist()
    assert torch.equal(merge_heads(heads), x)


def test_the_shipped_target_is_taken_apart_in_float32():
    choice, why = find_decoder(probe_machine())
    assert (choice.name, choice.dtype, choice.source) == ("python-11m", "float32", "shipped")
    assert choice.weight_bytes == 4 * choice.num_parameters
    assert why == "the one that this tier runs"


@pytest.mark.parametrize(
    ("content", "phrase"),
    [
        ({"model_type": "qwen3"}, "this is a qwen3"),
        ({"model_type": "llama", "attention_bias": True}, "attention_bias"),
        ({"model_type": "llama", "rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "stretched (llama3)"),
        ({"model_type": "llama", "num_hidden_layers": 30_000_000}, "too large"),
    ],
)
def test_a_tier_with_another_shape_of_model_uses_the_shipped_one_and_says_why(monkeypatch, tmp_path, content, phrase):
    (tmp_path / "other.json").write_text(json.dumps(CONFIG | content))
    monkeypatch.setenv("LABKIT_MODEL", f"random:{tmp_path / 'other.json'}")
    choice, why = find_decoder(probe_machine())
    assert choice.name == "python-11m"
    assert phrase in why and "instead of random:other" in why


def test_random_weights_of_a_plain_llama_are_used_and_named(monkeypatch, tmp_path):
    content = {key: value for key, value in CONFIG.items() if key != "head_dim"} | {"model_type": "llama"}
    (tmp_path / "tiny.json").write_text(json.dumps(content))
    monkeypatch.setenv("LABKIT_MODEL", f"random:{tmp_path / 'tiny.json'}")
    choice, why = find_decoder(probe_machine())
    assert choice.source == "random" and "random" in why
    assert choice.config["head_dim"] == 4, "what the configuration leaves out is written out"
