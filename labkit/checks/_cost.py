"""What a step of a decoder costs: the right count, torch's own counter, and the usual wrong ones."""

from collections.abc import Callable, Iterator
from typing import Any

from labkit.checks._llama import make_weights, run_decoder

__all__ = ["BYTE_CASES", "COST_MISTAKES", "NAMES", "count_by_flops", "count_right"]

NAMES = ("flops", "weight_bytes", "kv_bytes")


def _config(d, f, vocabulary, layers, heads, groups, head_dim) -> dict[str, int]:
    return {
        "hidden_size": d, "intermediate_size": f, "vocab_size": vocabulary, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": groups, "head_dim": head_dim,
    }  # fmt: skip


_SHIPPED = _config(384, 1024, 4096, 6, 6, 2, 64)  # data/models/python-11m
_ODD = _config(40, 96, 100, 3, 6, 2, 10)  # H·D is not d
BYTE_CASES: tuple[tuple[dict, dict], ...] = (
    (_SHIPPED, {"new_tokens": 1, "cached_tokens": 0}),
    (_SHIPPED, {"new_tokens": 1, "cached_tokens": 511}),
    (_SHIPPED, {"new_tokens": 512, "cached_tokens": 0, "bytes_per_value": 2}),
    (_ODD, {"new_tokens": 3, "cached_tokens": 8, "batch": 5}),
    (_ODD, {"new_tokens": 2, "cached_tokens": 5, "batch": 3, "bytes_per_value": 1}),
    (_config(24, 30, 70, 2, 4, 4, 6), {"new_tokens": 4, "cached_tokens": 0, "batch": 2, "bytes_per_value": 2}),
)


def count_right(
    config: dict[str, int],
    *,
    new_tokens: int,
    cached_tokens: int,
    batch: int = 1,
    bytes_per_value: float = 4,
    products: tuple[str, ...] = ("q", "k", "v", "o", "gate", "up", "down"),
    parts: tuple[str, ...] = ("matrices", "scores", "mix", "head"),
    **changes: Any,
) -> tuple[float, float, float]:
    """Return (FLOPs, bytes of weights, bytes of keys and values); `changes` replace one letter by a wrong one."""
    d, f, v, num_layers, h, g, width = config.values()
    num_all = changes.get("num_all", new_tokens + cached_tokens)
    kv_heads, width = changes.get("kv_heads", g), changes.get("width", width)
    sizes = {"q": d * h * width, "o": d * h * width, "k": d * kv_heads * width, "v": d * kv_heads * width}
    sizes |= dict.fromkeys(("gate", "up", "down"), d * f)
    matrices = num_layers * sum(sizes[name] for name in products)
    head = d * v
    new_rows = batch * new_tokens
    product = new_rows * num_layers * changes.get("query_heads", h) * width * num_all
    flops = {
        "matrices": new_rows * matrices, "scores": product, "mix": product,
        "head": changes.get("head_rows", new_rows) * head,
    }  # fmt: skip
    weight_bytes = (matrices + head * changes.get("heads_read", 1)) * bytes_per_value
    kept = changes.get("kept", 2) * changes.get("kv_layers", num_layers)
    kv_bytes = batch * num_all * kept * kv_heads * width * bytes_per_value
    return changes.get("factor", 2) * sum(flops[name] for name in parts), weight_bytes, kv_bytes


def _wrong(**changes) -> Callable:
    """A wrong count; a change may be a function of (config, options)."""

    def count(config, **options):
        made = {k: x(config, options) if callable(x) else x for k, x in changes.items()}
        return count_right(config, **(options | made))

    return count


def _scaled(place: int, factor: Callable) -> Callable:
    """The right count with one number multiplied by factor(config, options)."""

    def count(config, **options):
        numbers = list(count_right(config, **options))
        numbers[place] *= factor(config, {"batch": 1, "bytes_per_value": 4} | options)
        return tuple(numbers)

    return count


def _heads(config, options):
    return config["num_attention_heads"]


def _divided(config, options):
    return config["hidden_size"] // config["num_attention_heads"]


_NO_HEAD = ("matrices", "scores", "mix")
_TWO = ("q", "k", "v", "o", "up", "down")
_ALL_HEADS = "k and v have G heads, not H: grouping makes them smaller."
_WIDTH = "the head dim is taken for d / H: the configuration has its own head_dim."
_THREE = "the MLP has three matrices: gate, up and down."
_NO_LM_HEAD = "the head is missing: d · V, the largest matrix of a small model."

# (sentence, which of the three numbers it is about, wrong count)
COST_MISTAKES: tuple[tuple[str, int, Callable], ...] = (
    ("a multiply-add is two operations, and one is counted.", 0, _wrong(factor=1)),
    (_ALL_HEADS, 0, _wrong(kv_heads=_heads)),
    (_WIDTH, 0, _wrong(width=_divided)),
    (_THREE, 0, _wrong(products=_TWO)),
    (_NO_LM_HEAD, 0, _wrong(parts=_NO_HEAD)),
    ("the attention itself is missing: q with the keys, and the shares with the values.", 0,
     _wrong(parts=("matrices", "head"))),
    ("the attention has two products: q with the keys, and the shares with the values.", 0,
     _wrong(parts=("matrices", "scores", "head"))),
    ("attention over the new tokens only: they look at the cached ones too.", 0,
     _wrong(num_all=lambda c, o: o["new_tokens"])),
    ("attention over the cached tokens only: a token sees itself and the other new ones too.", 0,
     _wrong(num_all=lambda c, o: o["cached_tokens"])),
    ("grouping saves bytes, not attention FLOPs: all H query heads compute.", 0,
     _wrong(query_heads=lambda c, o: c["num_key_value_heads"])),
    ("the head is counted for one token: your forward gives logits for every new one.", 0,
     _wrong(head_rows=lambda c, o: o.get("batch", 1))),
    ("the batch is forgotten: every row has its own tokens.", 0, _scaled(0, lambda c, o: 1 / o["batch"])),
    ("the batch is forgotten: every row has its own tokens.", 0, _wrong(batch=1)),
    ("that is one new token: multiply by new_tokens.", 0, _scaled(0, lambda c, o: 1 / o["new_tokens"])),
    ("every token so far is computed: with a cache only the new ones are.", 0,
     _wrong(new_tokens=lambda c, o: o["new_tokens"] + o["cached_tokens"], cached_tokens=0)),
    ("a causal mask does not save FLOPs here: your attention computes all S · T scores, then hides half.", 0,
     lambda config, **o: _halved(config, **o)),
    ("the head is counted once per layer: it comes once, at the end.", 0,
     lambda config, **o: _repeated(config, 0, **o)),
    ("the head is counted once per layer: it comes once, at the end.", 1,
     lambda config, **o: _repeated(config, 1, **o)),
    ("the batch multiplies it: weights are read once for all rows. That is why batches pay.", 1,
     _scaled(1, lambda c, o: o["batch"])),
    ("the tokens multiply it: weights are read once for all new tokens. That is why a prefill is efficient.", 1,
     _scaled(1, lambda c, o: o["new_tokens"])),
    ("tokens and rows multiply it: the weights are read once for all of them.", 1,
     _scaled(1, lambda c, o: o["new_tokens"] * o["batch"])),
    ("that is the number of weights: multiply by bytes_per_value.", 1,
     _scaled(1, lambda c, o: 1 / o["bytes_per_value"])),
    ("bytes_per_value is not used.", 1, _scaled(1, lambda c, o: 4 / o["bytes_per_value"])),
    ("bytes_per_value is not used.", 1, _scaled(1, lambda c, o: 2 / o["bytes_per_value"])),
    (_ALL_HEADS, 1, _wrong(kv_heads=_heads)),
    (_WIDTH, 1, _wrong(width=_divided)),
    (_THREE, 1, _wrong(products=_TWO)),
    (_NO_LM_HEAD, 1, _wrong(heads_read=0)),
    ("the embedding table is not read whole: a step looks up a few rows. The head is, once.", 1, _wrong(heads_read=2)),
    ("keys AND values are cached.", 2, _wrong(kept=1)),
    ("k and v are cached for G heads, not H: that is what grouping saves.", 2, _wrong(kv_heads=_heads)),
    (_WIDTH, 2, _wrong(width=_divided)),
    ("the batch is forgotten: every row has a cache of its own.", 2, _wrong(batch=1)),
    ("only the new tokens: the attention reads the cached ones as well.", 2,
     _wrong(num_all=lambda c, o: o["new_tokens"])),
    ("only the cached tokens: the attention reads the new ones as well.", 2,
     _wrong(num_all=lambda c, o: o["cached_tokens"])),
    ("one layer only: every layer has a cache of its own.", 2, _wrong(kv_layers=1)),
    ("that is the number of values: multiply by bytes_per_value.", 2,
     _scaled(2, lambda c, o: 1 / o["bytes_per_value"])),
    ("bytes_per_value is not used.", 2, _scaled(2, lambda c, o: 4 / o["bytes_per_value"])),
    ("bytes_per_value is not used.", 2, _scaled(2, lambda c, o: 2 / o["bytes_per_value"])),
    ("new_tokens multiply it: a step reads the cache once for all its new tokens.", 2,
     _scaled(2, lambda c, o: o["new_tokens"])),
)  # fmt: skip


def _halved(config, **options):
    whole = count_right(config, **options)
    attention = count_right(config, parts=("scores", "mix"), **options)[0]
    return whole[0] - attention / 2, *whole[1:]


def _repeated(config, place, **options):
    """The head inside of the loop over the layers."""
    numbers = list(count_right(config, **options))
    again = config["num_hidden_layers"] - 1
    if place:
        numbers[1] += again * config["hidden_size"] * config["vocab_size"] * options.get("bytes_per_value", 4)
    else:
        numbers[0] += again * count_right(config, parts=("head",), **options)[0]
    return tuple(numbers)


def count_by_flops() -> Iterator[tuple[dict, dict, tuple[float, float, float]]]:
    """Yield random configurations with what torch's flop counter sees in a real step, and with the bytes by size."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    for seed, (heads, groups, batch, cached, new) in enumerate(((6, 3, 2, 0, 5), (4, 1, 1, 9, 1), (6, 2, 3, 4, 2)), 60):
        draw = torch.Generator().manual_seed(seed)
        d, f, vocabulary, head_dim = (2 * int(torch.randint(4, 20, (1,), generator=draw)) for _ in range(4))
        config = _config(d, f, vocabulary, seed - 58, heads, groups, head_dim)
        weights = make_weights(
            seed=seed, num_layers=seed - 58, d=d, heads=heads, groups=groups, head_dim=head_dim, width=f,
            vocabulary=vocabulary, is_tied=False,
        )  # fmt: skip
        ids = torch.randint(vocabulary, (batch, cached + new), generator=draw)
        _, cache = run_decoder(weights, ids[:, :cached]) if cached else (None, None)
        with FlopCounterMode(display=False) as counter:
            _, grown = run_decoder(weights, ids[:, cached:], cache)
        names = ("wq", "wk", "wv", "wo", "gate", "up", "down")
        matrices = [getattr(layer, name) for layer in weights.layers for name in names]
        weight_bytes = sum(x.nbytes for x in (*matrices, weights.head))
        kv_bytes = sum(x.nbytes for pair in grown for x in pair)
        options = {"new_tokens": new, "cached_tokens": cached, "batch": batch}
        yield config, options, (counter.get_total_flops(), weight_bytes, kv_bytes)
