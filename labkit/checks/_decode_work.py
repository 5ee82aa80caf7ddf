"""FLOPs and bytes of one decode step: hand-worked configurations, an oracle, and what each wrong count would say."""

from labkit.checks.cases import Case

__all__ = ["STEPS", "STEP_MISTAKES", "count_step", "draw_config"]

_KEYS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
         "head_dim", "vocab_size", "tie_word_embeddings")  # fmt: skip


def _config(*values):
    return dict(zip(_KEYS, values, strict=True))


_TOY = _config(8, 16, 2, 4, 2, 2, 32, True)  # Q and O 64 values each, K and V 32 each, MLP 384: 576 a layer
_WIDE = _config(8, 16, 1, 2, 1, 8, 32, False)  # H · D = 16 is not the hidden size
_LLAMA_31_8B = _config(4096, 14336, 32, 32, 8, 128, 128256, False)
_QWEN3_06B = _config(1024, 3072, 28, 16, 8, 128, 151936, True)

# Products of the toy: 2 · 576 + 8 · 32 = 1,408 values. At 3 tokens in the cache the new one looks at 4.
STEPS = [
    Case((2 * 1408 + 4 * 2 * 4 * 2 * 4, 2 * 1408 + 2 * 2 * 2 * 2 * 4 * 2), (_TOY,),
         {"context_tokens": 3, "batch": 1, "bytes_per_value": 2},
         why="1,408 values in products, 4 positions: 2,816 + 256 FLOPs, 2,816 + 128 bytes."),
    Case((5 * (2 * 1408 + 256), 2 * 1408 + 5 * 128), (_TOY,), {"context_tokens": 3, "batch": 5, "bytes_per_value": 2},
         why="five sequences: five times the FLOPs and the cache, the weights once."),
    # Q 128, O 128, K 64, V 64, MLP 384, head 256: 1,024 values; an empty cache, so the new token sees itself.
    Case((2 * 1024 + 4 * 2 * 8, 4 * 1024 + 2 * 8 * 4), (_WIDE,),
         {"context_tokens": 0, "batch": 1, "bytes_per_value": 4},
         why="1,024 values in products; H · D is 16 here, not the hidden size of 8."),
    # From the published total: 8,030,261,248 - 525,336,576 (input table) - 266,240 (norms) = 7,504,658,432 values.
    Case((15_546_187_776, 15_009_316_864 + 1024 * 131_072), (_LLAMA_31_8B,),
         {"context_tokens": 1023, "batch": 1, "bytes_per_value": 2}, why="Llama-3.1-8B, from its published total."),
    # Tied: 596,049,920 - 65,536 (norms) values, all in products.
    Case((1_426_849_792, 1_191_968_768 + 1024 * 114_688), (_QWEN3_06B,),
         {"context_tokens": 1023, "batch": 1, "bytes_per_value": 2}, why="Qwen3-0.6B: head_dim is in the config."),
]  # fmt: skip


def count_step(config, *, context_tokens, batch, bytes_per_value, wrong=""):
    """Return (FLOPs, bytes) of one step; with the name of a mistake, what a learner who makes it would get."""
    d, f, num_layers, heads, kv_heads, head_dim, v, is_tied = (config[key] for key in _KEYS)
    if wrong == "head_dim":
        head_dim = d // heads
    kv_width = (heads if wrong in ("gqa", "gqa_weights") else kv_heads) * head_dim
    attention = 2 * d * heads * head_dim + 2 * d * kv_width
    mlp = (2 if wrong == "mlp" else 3) * d * f
    head = {"no head": 0, "tied head": 0 if is_tied else d * v}.get(wrong, d * v)
    weights = num_layers * (attention + mlp) + head
    read = weights + (v * d if wrong == "table" or (wrong == "untied table" and not is_tied) else 0)
    seen = context_tokens + (0 if wrong == "seen" else 1)
    scores = {"no scores": 0, "half scores": 2, "kv scores": 4 * kv_heads / heads}.get(wrong, 4)
    factor = 1 if wrong == "mac" else 2
    flops = factor * weights + scores * (factor / 2) * num_layers * heads * head_dim * seen
    cached = (1 if wrong == "one of two" else 2) * num_layers * seen * head_dim
    cached *= heads if wrong in ("gqa", "gqa_cache") else kv_heads
    cached = {"no cache": 0, "one layer": cached / num_layers}.get(wrong, cached)
    flops *= 1 if wrong == "flops batch" else batch
    if wrong == "weights batch":
        read *= batch
    if wrong != "cache batch":
        cached *= batch
    return flops, (read + cached) * (1 if wrong == "values" else bytes_per_value)


def _mistake(name):
    return lambda config, **given: count_step(config, **given, wrong=name)


STEP_MISTAKES = tuple(
    (sentence, _mistake(name))
    for name, sentence in {
        "mac": "a multiply-add is two FLOPs.",
        "gqa": "K and V have fewer heads than Q: num_key_value_heads, in the weights and in the cache.",
        "gqa_weights": "the matrices of K and V are narrower than that of Q: num_key_value_heads · head_dim.",
        "gqa_cache": "the cache keeps num_key_value_heads heads, not num_attention_heads.",
        "head_dim": "head_dim stands in the config and need not be hidden_size / heads: Qwen3-0.6B has twice that.",
        "mlp": "the MLP has three matrices: gate, up and down.",
        "no head": "the output head is missing: hidden_size x vocab_size, one product a step.",
        "tied head": "a tied head is multiplied like any other: it shares its memory, not its work.",
        "table": "the input embedding is looked up, one row a token: its table is not read.",
        "untied table": "the input embedding is looked up, one row a token: its table is not read.",
        "seen": "the new token looks at itself too: context_tokens + 1 positions.",
        "no scores": "attention itself is missing: Q·Kᵀ and P·V, over all positions.",
        "half scores": "attention has two products, Q·Kᵀ and P·V: 4 FLOPs per layer, head, position and dimension.",
        "kv scores": "every query head computes its own scores: H of them, though they share G keys.",
        "one of two": "keys AND values are in the cache: twice that.",
        "one layer": "every layer has a cache of its own.",
        "no cache": "the cache is read as well, every position of it.",
        "flops batch": "each sequence of the batch has its own FLOPs.",
        "weights batch": "the weights are read once for the whole batch: that is why batching pays.",
        "cache batch": "each sequence has a cache of its own: the batch does not share it.",
        "values": "those are values: multiply by bytes_per_value.",
    }.items()
) + (
    ("FLOPs come first, then bytes.", lambda config, **given: count_step(config, **given)[::-1]),
)  # fmt: skip


def draw_config(draw):
    """Return a random small configuration: grouped heads, any head dimension, tied or not."""
    kv_heads = draw.choice((1, 2, 3))
    return _config(
        8 * draw.randrange(2, 9), draw.randrange(10, 99), draw.randrange(1, 6), kv_heads * draw.choice((1, 2, 4)),
        kv_heads, 2 * draw.randrange(2, 9), draw.randrange(20, 400), draw.random() < 0.5,
    )  # fmt: skip
