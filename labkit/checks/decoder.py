"""A Llama-shaped model as plain tensors: the material of lab 03, and the two functions that only move axes.

Letters: B batch, S new tokens, T all tokens so far, d hidden size, H heads, G KV heads, D head dim, F width of the MLP,
V vocabulary. A matrix has the shape (out, in), as in the file: `y @ w.T` applies it.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from labkit.hardware import Machine
from labkit.models import Model, find_model
from labkit.models.description import find_models_folder, load_description
from labkit.roofline import estimate_kv_bytes_per_token

__all__ = ["Layer", "Weights", "find_decoder", "load_weights", "merge_heads", "split_heads"]

MAX_BYTES = 4e9  # a larger model would take minutes here and show nothing more
_PLAIN = {"attention_bias": False, "mlp_bias": False, "hidden_act": "silu", "rope_scaling": None}


@dataclass(frozen=True, slots=True)
class Layer:
    """The weights of one layer: two norms (d,), four matrices of the attention, three of the MLP."""

    norm_1: Any  # (d,), before the attention
    wq: Any  # (H·D, d)
    wk: Any  # (G·D, d)
    wv: Any  # (G·D, d)
    wo: Any  # (d, H·D)
    norm_2: Any  # (d,), before the MLP
    gate: Any  # (F, d)
    up: Any  # (F, d)
    down: Any  # (d, F)


@dataclass(frozen=True, slots=True, repr=False)
class Weights:
    """All weights of a decoder, and the three numbers that the shapes do not tell."""

    embedding: Any  # (V, d)
    layers: tuple[Layer, ...]
    norm: Any  # (d,), after the last layer
    head: Any  # (V, d); with tied embeddings the same tensor as `embedding`
    eps: float
    theta: float
    head_dim: int

    def __repr__(self) -> str:
        rows, width = self.embedding.shape
        return f"Weights({len(self.layers)} layers, d {width}, D {self.head_dim}, V {rows})"


def split_heads(x, head_dim: int):
    """Return (B, S, n·D) as n heads: (B, n, S, D)."""
    batch, length, width = x.shape
    return x.reshape(batch, length, width // head_dim, head_dim).transpose(1, 2)


def merge_heads(x):
    """Return n heads (B, n, S, D) side by side again: (B, S, n·D)."""
    batch, heads, length, head_dim = x.shape
    return x.transpose(1, 2).reshape(batch, length, heads * head_dim)


def find_decoder(machine: Machine) -> tuple[Model, str]:
    """Return the model that lab 03 takes apart, always in float32, and one sentence that says why this one.

    The tier's own target where it has the shape of a plain Llama, the shipped target otherwise: Qwen2 has biases on q,
    k and v, Qwen3 norms on q and k, and an equality of 1e-5 needs float32.
    """
    choice = find_model("target", machine=machine)
    other = _find_difference(choice)
    reason = "the one that this tier runs" if choice.source != "random" else "random weights, asked for by LABKIT_MODEL"
    if other:
        reason = f"instead of {choice.name}: {other}"
        choice = load_description(find_models_folder() / "python-11m", source="shipped", machine=machine)
    heads = choice.config["num_attention_heads"]  # what a configuration may leave out is written out
    config = {"num_key_value_heads": heads, "head_dim": choice.config["hidden_size"] // heads} | choice.config
    sizes = {"weight_bytes": 4 * choice.num_parameters}
    sizes["kv_bytes_per_token"] = estimate_kv_bytes_per_token(config, bytes_per_value=4)
    return dataclasses.replace(choice, config=config, dtype="float32", **sizes), reason


def _find_difference(choice: Model) -> str:
    """Say what keeps a model from being a plain Llama in float32 of a moderate size, or ""."""
    config = choice.config
    rope = config.get("rope_parameters") or {}
    if config.get("model_type") != "llama":
        return f"the decoder of this lab has the shape of Llama, and this is a {config.get('model_type')}"
    if config.get("quantization_config"):
        return "its weights are packed"
    if rope.get("rope_type", "default") != "default":
        return f"its positions are stretched ({rope['rope_type']})"
    if unusual := [key for key, plain in _PLAIN.items() if config.get(key, plain) != plain]:
        return f"it has {', '.join(unusual)}"
    return "it is too large in float32" if 4 * choice.num_parameters > MAX_BYTES else ""


def load_weights(model) -> Weights:
    """Return the weights of a loaded LlamaForCausalLM as plain tensors, which share its memory and need no gradient."""
    config, inner = model.config, model.model
    rope = getattr(config, "rope_parameters", None) or {}  # Transformers 5; before, the configuration itself has theta
    layers = tuple(
        Layer(
            norm_1=layer.input_layernorm.weight.detach(),
            wq=layer.self_attn.q_proj.weight.detach(),
            wk=layer.self_attn.k_proj.weight.detach(),
            wv=layer.self_attn.v_proj.weight.detach(),
            wo=layer.self_attn.o_proj.weight.detach(),
            norm_2=layer.post_attention_layernorm.weight.detach(),
            gate=layer.mlp.gate_proj.weight.detach(),
            up=layer.mlp.up_proj.weight.detach(),
            down=layer.mlp.down_proj.weight.detach(),
        )
        for layer in inner.layers
    )
    return Weights(
        embedding=inner.embed_tokens.weight.detach(),
        layers=layers,
        norm=inner.norm.weight.detach(),
        head=model.lm_head.weight.detach(),
        eps=config.rms_norm_eps,
        theta=float(rope.get("rope_theta") or getattr(config, "rope_theta", 10000.0)),
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
    )
