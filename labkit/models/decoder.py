"""A Llama-shaped model as plain tensors, and the two functions that only move axes.

Letters: B batch, S new tokens, T all tokens so far, d hidden size, H heads, G KV heads, D head dimension, F width of
the MLP, V vocabulary. A matrix has the shape (out, in), as in the file: `y @ w.T` applies it.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from labkit.hardware import Machine
from labkit.models import Model, find_model
from labkit.models.description import find_models_folder, load_description
from labkit.roofline import estimate_kv_bytes_per_token

__all__ = ["Layer", "Weights", "find_decoder", "load_weights", "merge_heads", "split_heads"]

MAX_BYTES = 4e9  # a larger model takes minutes a step on a CPU and shows nothing more
_PLAIN = {"attention_bias": False, "mlp_bias": False, "hidden_act": "silu", "rope_scaling": None}


@dataclass(frozen=True, slots=True)
class Layer:
    """The weights of one layer.

    Attributes:
        norm_1: weight of the norm before the attention, (d,).
        wq: query matrix, (H·D, d).
        wk: key matrix, (G·D, d).
        wv: value matrix, (G·D, d).
        wo: output matrix of the attention, (d, H·D).
        norm_2: weight of the norm before the MLP, (d,).
        gate: the MLP's matrix that silu is applied to, (F, d).
        up: the MLP's other matrix, (F, d).
        down: the MLP's output matrix, (d, F).
    """

    norm_1: Any
    wq: Any
    wk: Any
    wv: Any
    wo: Any
    norm_2: Any
    gate: Any
    up: Any
    down: Any


@dataclass(frozen=True, slots=True, repr=False)
class Weights:
    """All weights of a decoder, and the three numbers that their shapes do not tell.

    Attributes:
        embedding: one row for each token id, (V, d).
        layers: the layers, in order.
        norm: weight of the norm after the last layer, (d,).
        head: the matrix that makes logits, (V, d); with tied embeddings the same tensor as `embedding`.
        eps: what the norms add to the mean square.
        theta: base of the rotation's speeds.
        head_dim: D, the width of one head.
    """

    embedding: Any
    layers: tuple[Layer, ...]
    norm: Any
    head: Any
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
    """Return a model with the shape of a plain Llama, always in float32, and the reason why it is this one.

    The tier's own target if it has that shape, the shipped target otherwise: Qwen2 has biases on q, k and v, Qwen3 has
    norms on q and k. float32, because logits can be compared to 1e-5 only there.
    """
    choice = find_model("target", machine=machine)
    other = _find_difference(choice)
    reason = "the one that this tier runs" if choice.source != "random" else "random weights, asked for by LABKIT_MODEL"
    if other:
        reason = f"instead of {choice.name}: {other}"
        choice = load_description(find_models_folder() / "python-11m", source="shipped", machine=machine)
    heads = choice.config["num_attention_heads"]
    # A configuration may leave these two out.
    config = {"num_key_value_heads": heads, "head_dim": choice.config["hidden_size"] // heads} | choice.config
    sizes = {"weight_bytes": 4 * choice.num_parameters}
    sizes["kv_bytes_per_token"] = estimate_kv_bytes_per_token(config, bytes_per_value=4)
    return dataclasses.replace(choice, config=config, dtype="float32", **sizes), reason


def _find_difference(choice: Model) -> str:
    """Return what makes a model another thing than a plain Llama of moderate size in float32, or ""."""
    config = choice.config
    rope = config.get("rope_parameters") or {}
    if config.get("model_type") != "llama":
        return f"a plain Llama is needed, and this is a {config.get('model_type')}"
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
