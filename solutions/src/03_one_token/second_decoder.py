"""A second decoder, the checks' independent oracle; it rotates with complex numbers, for example.

tests/labs/test_lab03.py compares it with Transformers.
"""

from labkit.models.decoder import Layer, Weights

__all__ = ["attend", "count_by_torch", "make_config", "make_weights", "normalize", "run_decoder", "turn"]


def normalize(x, weight, *, eps):
    """Return x over its root mean square along the last axis, times weight."""
    return weight * x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()


def turn(x, positions, *, theta):
    """Return x (B, n, S, D) rotated as complex numbers: pair i turns by position · theta^(-2i/D)."""
    import torch

    half = x.shape[-1] // 2
    speeds = theta ** (-2 * torch.arange(half, dtype=torch.float64) / x.shape[-1])
    angles = positions.to(torch.float64)[:, None] * speeds  # (S, D/2)
    turns = torch.polar(torch.ones_like(angles), angles).to(x.device)
    wide = x.to(torch.float64)
    turned = torch.complex(wide[..., :half], wide[..., half:]) * turns
    return torch.cat([turned.real, turned.imag], -1).to(x.dtype)


def attend(q, k, v):
    """Return the attention of q (B, H, S, D), the last S of T tokens, over k and v (B, G, T, D)."""
    import torch

    num_new, num_all, group = q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
    owner = torch.arange(q.shape[1], device=q.device) // group
    scores = q @ k[:, owner].mT * q.shape[-1] ** -0.5
    new, old = torch.arange(num_all - num_new, num_all, device=q.device), torch.arange(num_all, device=q.device)
    shares = torch.softmax(scores.masked_fill(old > new[:, None], -torch.inf), -1)
    return shares @ v[:, owner]


def run_decoder(weights: Weights, ids, cache=None):
    """Return (logits (B, S, V), the grown cache) of the new tokens ids (B, S)."""
    import torch

    def split(y):
        return y.unflatten(-1, (-1, weights.head_dim)).transpose(1, 2)

    start = 0 if cache is None else cache[0][0].shape[2]
    positions = torch.arange(start, start + ids.shape[1])
    x, grown = weights.embedding[ids], []
    for number, layer in enumerate(weights.layers):
        y = normalize(x, layer.norm_1, eps=weights.eps)
        q, k = (turn(split(y @ w.T), positions, theta=weights.theta) for w in (layer.wq, layer.wk))
        v = split(y @ layer.wv.T)
        if cache is not None:
            k, v = (torch.cat(pair, 2) for pair in zip(cache[number], (k, v), strict=True))
        grown.append((k, v))
        x = x + attend(q, k, v).transpose(1, 2).flatten(2) @ layer.wo.T
        y = normalize(x, layer.norm_2, eps=weights.eps)
        gate = y @ layer.gate.T
        x = x + (gate * torch.sigmoid(gate) * (y @ layer.up.T)) @ layer.down.T
    return normalize(x, weights.norm, eps=weights.eps) @ weights.head.T, grown


def make_config(d, width, vocabulary, num_layers, heads, groups, head_dim) -> dict[str, int]:
    """Return the sizes of a decoder with the keys of a config.json."""
    return {
        "hidden_size": d, "intermediate_size": width, "vocab_size": vocabulary, "num_hidden_layers": num_layers,
        "num_attention_heads": heads, "num_key_value_heads": groups, "head_dim": head_dim,
    }  # fmt: skip


def make_weights(config: dict[str, int], *, seed=0, is_tied=False, eps=1e-5, theta=1e4, device="cpu") -> Weights:
    """Return random weights; no norm is 1, so that a forgotten one shows.

    On the device "meta" they have shapes and no values, which is enough to count FLOPs.
    """
    import torch

    d, width, vocabulary, num_layers, heads, groups, head_dim = config.values()
    options = {"device": device, "generator": None if device == "meta" else torch.Generator().manual_seed(seed)}

    def matrix(rows, columns):
        return torch.randn(rows, columns, **options) * columns**-0.5

    def scale():
        return 0.5 + torch.rand(d, **options)

    embedding = torch.randn(vocabulary, d, **options)
    layers = tuple(
        Layer(
            norm_1=scale(),
            wq=matrix(heads * head_dim, d),
            wk=matrix(groups * head_dim, d),
            wv=matrix(groups * head_dim, d),
            wo=matrix(d, heads * head_dim),
            norm_2=scale(),
            gate=matrix(width, d),
            up=matrix(width, d),
            down=matrix(d, width),
        )
        for _ in range(num_layers)
    )
    head = embedding if is_tied else matrix(vocabulary, d)
    return Weights(embedding, layers, scale(), head, eps, theta, head_dim)


def count_by_torch(config: dict[str, int], *, new_tokens: int, cached_tokens: int, batch: int = 1,
                   bytes_per_value: int = 4) -> tuple[int, int, int]:  # fmt: skip
    """Return what torch's flop counter sees in a real step, and the bytes of the tensors of this step."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    weights = make_weights(config, device="meta")
    ids = torch.zeros(batch, cached_tokens + new_tokens, dtype=torch.int64, device="meta")
    _, cache = run_decoder(weights, ids[:, :cached_tokens]) if cached_tokens else (None, None)
    with FlopCounterMode(display=False) as counter:
        _, grown = run_decoder(weights, ids[:, cached_tokens:], cache)
    names = ("wq", "wk", "wv", "wo", "gate", "up", "down")
    matrices = [getattr(layer, name) for layer in weights.layers for name in names]
    num_weights = sum(x.numel() for x in (*matrices, weights.head))
    num_kept = sum(x.numel() for pair in grown for x in pair)
    return counter.get_total_flops(), num_weights * bytes_per_value, num_kept * bytes_per_value
