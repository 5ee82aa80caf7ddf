"""A second decoder, written for the checks of lab 03, that can also be wrong in every way that has a name.

It takes other roads than the exercise does on purpose (complex numbers for the rotation, einsum for the attention).
`tests/test_check_lab03.py` holds it to Transformers.
"""

from labkit.checks.decoder import Layer, Weights

__all__ = ["attend", "make_weights", "norm", "run_decoder", "turn"]


def norm(x, weight, *, eps):
    """Return x over its root mean square along the last axis, times weight."""
    return weight * x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()


def turn(x, positions, *, theta, exponent=2.0, sign=1.0, is_interleaved=False):
    """Return x (B, n, S, D) rotated as complex numbers: pair i turns by position · theta^(-2i/D)."""
    import torch

    half = x.shape[-1] // 2
    rates = theta ** (-exponent * torch.arange(half, dtype=torch.float64) / x.shape[-1])
    angles = sign * positions.cpu().to(torch.float64)[:, None] * rates  # (S, D/2)
    turns = torch.polar(torch.ones_like(angles), angles).to(x.device)
    wide = x.to(torch.float64)
    first, second = (wide[..., 0::2], wide[..., 1::2]) if is_interleaved else (wide[..., :half], wide[..., half:])
    turned = torch.complex(first, second) * turns
    parts = (turned.real, turned.imag)
    both = torch.stack(parts, -1).flatten(-2) if is_interleaved else torch.cat(parts, -1)
    return both.to(x.dtype)


def attend(q, k, v, *, scale=None, is_causal=True, offset=None, is_tiled=False, axis=-1, is_late_mask=False):
    """Return the attention of q (B, H, S, D), the last S of T tokens, over k and v (B, G, T, D)."""
    import torch

    num_new, num_all, group = q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
    order = torch.arange(q.shape[1], device=q.device)
    owner = order % k.shape[1] if is_tiled else order // group
    scores = torch.einsum("bhsd,bhtd->bhst", q, k[:, owner]) * (q.shape[-1] ** -0.5 if scale is None else scale)
    offset = num_all - num_new if offset is None else offset
    new, old = torch.arange(num_new, device=q.device)[:, None] + offset, torch.arange(num_all, device=q.device)
    is_hidden = (old > new) & torch.tensor(is_causal, device=q.device)
    shares = torch.softmax(scores if is_late_mask else scores.masked_fill(is_hidden, -torch.inf), axis)
    shares = shares.masked_fill(is_hidden, 0.0) if is_late_mask else shares
    return torch.einsum("bhst,bhtd->bhsd", shares, v[:, owner])


def run_decoder(weights: Weights, ids, cache=None, *, change: str = ""):
    """Return (logits (B, S, V), cache); `change` names one mistake to make."""
    import torch

    start = 0 if cache is None or change == "positions restart" else cache[0][0].shape[2]
    positions = torch.arange(start, start + ids.shape[1])
    x, grown = weights.embedding[ids], []
    for number, layer in enumerate(weights.layers):
        kept = None if cache is None else cache[0 if change == "first cache" else number]
        x, pair = _run_layer(x, layer, kept, positions, weights, change)
        grown.append(pair)
    x = x if change == "no last norm" else norm(x, weights.norm, eps=weights.eps)
    x = x[:, -1:] if change == "last only" else x
    return x @ (weights.embedding if change == "embedding as head" else weights.head).T, grown


def _run_layer(x, layer: Layer, kept, positions, weights: Weights, change: str):
    import torch

    def heads(y):
        return y.unflatten(-1, (-1, weights.head_dim)).transpose(1, 2)

    first, second = layer.norm_1, layer.norm_2
    if change == "norms swapped":
        first, second = second, first
    y = x if change == "no first norm" else norm(x, first, eps=weights.eps)
    q, k, v = heads(y @ layer.wq.T), heads(y @ layer.wk.T), heads(y @ layer.wv.T)
    if change == "v rotated":
        v = turn(v, positions, theta=weights.theta)
    if change != "nothing rotated":
        q = turn(q, positions, theta=weights.theta)
        k = k if change == "only q rotated" else turn(k, positions, theta=weights.theta)
    if kept is not None and change != "cache ignored":
        pairs = ((k, kept[0]), (v, kept[1])) if change == "cache behind" else ((kept[0], k), (kept[1], v))
        k, v = (torch.cat(pair, 2) for pair in pairs)
    mixed = attend(q, k, v).transpose(1, 2).flatten(2) @ layer.wo.T
    middle = mixed if change == "no first residual" else x + mixed
    source = x if change == "parallel" else middle
    y = source if change == "no second norm" else norm(source, second, eps=weights.eps)
    gate, up = y @ layer.gate.T, y @ layer.up.T
    if change == "gate and up swapped":
        gate, up = up, gate
    shape = {"relu": torch.relu, "gelu": torch.nn.functional.gelu, "sigmoid": torch.sigmoid, "no silu": lambda g: g}
    wide = shape.get(change, torch.nn.functional.silu)(gate) * up
    out = wide @ layer.down.T
    return (out if change == "no second residual" else middle + out), (k, v)


def make_weights(*, seed, num_layers, d, heads, groups, head_dim, width, vocabulary, is_tied, eps=1e-5, theta=1e4):
    """Return random weights of any shape: H·D need not be d, and norms are not 1, so that a forgotten one is seen."""
    import torch

    draw = torch.Generator().manual_seed(seed)

    def matrix(rows, columns):
        return torch.randn(rows, columns, generator=draw) * columns**-0.5

    def scale():
        return 0.5 + torch.rand(d, generator=draw)

    embedding = torch.randn(vocabulary, d, generator=draw)
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
