"""Exercise 11.3: sizes of a model and its cache whose four parts are known, and the classic mistakes."""

from labkit.checks.cases import Case

__all__ = ["KEYS", "MEMORY", "MEMORY_MISTAKES", "make_memory_case"]

# 11.3: config, sizes -> the four categories. Llama-3.1-8B in 16 bits: 131,072 bytes per token.
_LLAMA = {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096}
_QWEN = {
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "hidden_size": 1024,
    "head_dim": 128,
}
KEYS = ("weights", "kv_cache", "activations", "slack")


def make_memory_case(config, num_parameters, width, batch, context, activations, slack, *, kv_per_token, why):
    parts = (num_parameters * width, batch * context * kv_per_token, activations, slack)
    sizes = {"num_parameters": num_parameters, "bytes_per_value": width, "batch": batch, "context_tokens": context,
             "allocated_bytes": sum(parts[:3]), "reserved_bytes": sum(parts)}  # fmt: skip
    return Case(parts, (config,), sizes, why=why)


MEMORY = [
    make_memory_case(_LLAMA, 8_030_261_248, 2, 1, 4096, 300_000_000, 200_000_000, kv_per_token=131_072,
                 why="Llama-3.1-8B in 16 bits keeps 131,072 bytes per token."),
    make_memory_case(_LLAMA, 8_030_261_248, 2, 16, 1000, 900_000_000, 0, kv_per_token=131_072,
                 why="16 sequences keep 16 caches."),
    make_memory_case(_QWEN, 596_049_920, 2, 3, 500, 70_000_000, 12_345_678, kv_per_token=114_688,
                 why="Qwen3-0.6B says head_dim 128, which is not 1024 / 16: 114,688 bytes per token."),
    make_memory_case(_QWEN, 596_049_920, 4, 1, 0, 5_000_000, 1_000_000, kv_per_token=229_376,
                 why="an empty cache holds 0 bytes."),
    make_memory_case({"num_hidden_layers": 6, "num_attention_heads": 6, "num_key_value_heads": 2, "hidden_size": 384},
                 11_014_272, 4, 2, 256, 162_824, 4096, kv_per_token=6144, why="2 · 6 layers · 2 KV heads · 64 · 4."),
]  # fmt: skip


def _memory(config, *, num_parameters, bytes_per_value, batch, context_tokens, allocated_bytes, reserved_bytes,
            heads="num_key_value_heads", both=2, dim=None, many=True, **wrong):  # fmt: skip
    """Answer 11.3 as a tuple; wrongly when a part is given."""
    size = config["hidden_size"] // config["num_attention_heads"]
    dim = size if dim else config.get("head_dim") or size
    values = both * config["num_hidden_layers"] * config[heads] * dim * wrong.get("width", bytes_per_value)
    kv = values * (batch if many else 1) * wrong.get("tokens", context_tokens)
    weights = num_parameters * wrong.get("width", bytes_per_value)
    activations = wrong.get("whole", allocated_bytes) - weights - kv
    return weights, kv, activations, wrong.get("slack", reserved_bytes - allocated_bytes)


MEMORY_MISTAKES = (
    ("exactly half of the cache: keys AND values are kept.", lambda c, **k: _memory(c, **k, both=1)),
    ("the cache has one entry per *query* head: with grouped queries only the KV heads are kept.",
     lambda c, **k: _memory(c, **k, heads="num_attention_heads")),
    ("head_dim stands in some configs, and need not be hidden / heads: look there first.",
     lambda c, **k: _memory(c, **k, dim=True)),
    ("each sequence of the batch has a cache of its own.", lambda c, **k: _memory(c, **k, many=False)),
    ("those are numbers of values: each takes bytes_per_value bytes.", lambda c, **k: _memory(c, **k, width=1)),
    ("that is the cache of one token: it holds all tokens of the context.", lambda c, **k: _memory(c, **k, tokens=1)),
    ("the slack is counted as activations: they are a part of what is *allocated*.",
     lambda c, **k: _memory(c, **k, whole=k["reserved_bytes"])),
    ("the slack is what is reserved and not allocated.",
     lambda c, **k: _memory(c, **k, slack=k["reserved_bytes"])),
    ("the slack is reserved minus allocated, and this is its negative: nothing can be less than 0 bytes.",
     lambda c, **k: _memory(c, **k, slack=k["allocated_bytes"] - k["reserved_bytes"])),
    ("the activations still hold weights and cache: take both off what is allocated.",
     lambda c, **k: (*_memory(c, **k)[:2], k["allocated_bytes"], _memory(c, **k)[3])),
    ("the activations still hold the cache: take it off, too.",
     lambda c, **k: (*_memory(c, **k)[:2], k["allocated_bytes"] - _memory(c, **k)[0], _memory(c, **k)[3])),
    ("those are MiB: return bytes.", lambda c, **k: tuple(part / 2**20 for part in _memory(c, **k))),
)  # fmt: skip
