# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
#   labkit:
#     number: "03"
#     title: One token
#     question: What does a transformer do to make one token, and what does the KV cache save?
#     phase: 0
#     minutes: 90
# ---

# %% [markdown]
# # 03 · One token
#
# **What does a transformer do to make one token, and what does the KV cache save?**
#
# In this lab you write a decoder yourself, shape by shape, on the real weights of a small model, until its logits match
# those of Transformers. Then you count what one token costs, with and without a KV cache, and measure it. At the end your
# decoder writes text, with a sampler whose probabilities are tested.

# %% [markdown]
# | | |
# | --- | --- |
# | **Time** | 90 minutes |
# | **Needs** | Any machine. No GPU, no network. Everything runs in float32. |
# | **Before** | Labs 00 and 01; matrix products; a few lines of PyTorch |
# | **You will be able to** | write RMSNorm, RoPE, grouped attention and a decoder layer from their formulas; keep a KV cache correct; count FLOPs and bytes of a prefill and of a decode step; say what the cache saves and what it does not; draw tokens with temperature, top-k and top-p in the right order |

# %%
import math
from time import perf_counter
from unittest.mock import patch

import torch

from labkit import models, plots, quality, roofline, stats, timing, units
from labkit.budget import choose_by_budget
from labkit.checks import check, complete, predict, ready, reveal
from labkit.hardware import estimate_tier, probe_machine
from labkit.memory import measure_release
from labkit.models.decoder import find_decoder, load_weights, merge_heads, split_heads
from labkit.plots import plot_step_costs
from labkit.quiz import quiz
from labkit.results import save_record

# %%
machine = probe_machine()
choice, why = find_decoder(machine)
print(f"CPU        {machine.cpu.name}, {machine.cpu.num_cores} cores")
print(f"GPU        {machine.gpus[0].name if machine.gpus else 'none found: the lab runs on the processor'}")
print(f"tier       {estimate_tier(machine)}")
print(f"model      {choice.name} ({choice.source}), {choice.dtype}: {why}")

# %% [markdown]
# ## 1 · A size and a place for every token
#
# Inside the model a token is a row of $d$ numbers, and a batch of texts is a tensor $x$ of shape (B, S, d): batch,
# sequence, hidden size. Two small tools come first.
#
# **RMSNorm** gives each row the same size, whatever it was before. It divides by the *root mean square* of the row
# (LayerNorm would also subtract the mean) and multiplies by a learned weight per feature:
#
# $$\text{RMSNorm}(x)_i = w_i \frac{x_i}{\sqrt{\frac{1}{d}\sum_j x_j^2 + \varepsilon}}$$
#
# **RoPE** encodes where a token stands. A head's vector has D numbers, taken as D/2 pairs: number $i$ of the first half
# with number $i$ of the second half. For a token at position $p$, pair $i$ is rotated by the angle
# $p \cdot \theta^{-2i/D}$ (radians), for $i = 0 \dots D/2 - 1$:
#
# $$a' = a \cos\varphi - b \sin\varphi \qquad b' = b \cos\varphi + a \sin\varphi \qquad \varphi = p\,\theta^{-2i/D}$$
#
# If a query is rotated by its position and a key by its own, their product depends only on the *distance* between the two.
#
# **Worked example**: the row (3, 4), and the pair (1, 0) at positions 0, 1 and 2 for the fastest pair, $i = 0$.

# %% tags=["nbval-check-output"]
size = math.sqrt((3**2 + 4**2) / 2)
print(f"root mean square {size:.3f}, so (3, 4) becomes ({3 / size:.3f}, {4 / size:.3f})")
for position in (0, 1, 2):
    print(f"position {position}: (1, 0) becomes ({math.cos(position):.3f}, {math.sin(position):.3f})")

# %% [markdown] exercise="03.1" title="Norm and rotation" minutes=12 difficulty=2 version=1
# ### Exercise 03.1 · Norm and rotation
#
# *12 minutes · difficulty 2 of 5 · why it matters: a wrong pairing or position gives a model that still writes text, only worse.*
#
# `rms_norm(x, weight, eps=...)`: x is (..., d), weight is (d,). `rotate(x, positions, theta=...)`: x is (B, n, S, D) with any
# number n of heads, `positions` (S,) are whole numbers and need not begin at 0. Both return a new tensor of the shape and dtype
# of x. `torch.nn.functional.rms_norm` is refused.
#
# <details><summary>Hint 1</summary>
#
# `x.pow(2).mean(dim=-1, keepdim=True)` keeps the last axis with length 1, so that x can be divided by it.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `speeds = theta ** (-2 * torch.arange(D // 2) / D)` has shape (D/2,), `positions[:, None] * speeds` has (S, D/2): it fits
# the two halves `x[..., : D // 2]` and `x[..., D // 2 :]`. Join the rotated halves with `torch.cat(..., dim=-1)`. On
# a GPU, create the new tensor there: `device=x.device`.
#
# </details>


# %% solution="03.1"
def rms_norm(x, weight, *, eps):
    """Return x (..., d) divided by the root mean square of each row, times weight (d,)."""
    ### BEGIN SOLUTION
    mean_square = x.pow(2).mean(dim=-1, keepdim=True)  # (..., 1)
    return weight * x * torch.rsqrt(mean_square + eps)
    ### END SOLUTION


def rotate(x, positions, *, theta):
    """Return x (B, n, S, D) with the pairs (i, i + D/2) of each token rotated by its position (S,)."""
    ### BEGIN SOLUTION
    half = x.shape[-1] // 2
    speeds = theta ** (-torch.arange(half, device=x.device) / half)  # (D/2,)
    angles = positions[:, None] * speeds  # (S, D/2)
    cos, sin = angles.cos(), angles.sin()
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    ### END SOLUTION


# %%
check("03.1", (rms_norm, rotate))

# %% [markdown]
# **What you should see** below: the product of a rotated query and a rotated key is the same for positions 3 and 1 as for
# 103 and 101. That is the whole point of the rotation.

# %%
if ready("03.1"):
    query, key = torch.ones(1, 1, 1, 8), torch.arange(8.0).reshape(1, 1, 1, 8)
    for there, here in ((3, 1), (103, 101), (3, 2)):
        pair = [rotate(x, torch.tensor([p]), theta=10000.0) for x, p in ((query, there), (key, here))]
        print(f"query at {there}, key at {here}: product {float((pair[0] * pair[1]).sum()):.3f}")

# %% [markdown]
# ## 2 · Attention
#
# Each head compares the *query* of a new token with the *keys* of all tokens so far, and mixes their *values* in these shares:
#
# $$\text{attention}(q, k, v) = \text{softmax}\left(\frac{q\,k^\top}{\sqrt{D}} + \text{mask}\right) v$$
#
# Three things decide whether it is right:
#
# - **causal**: a token sees itself and what came before; the scores of later tokens become $-\infty$ before the softmax;
# - **the new tokens are the last ones**: q has S tokens, k and v have T ≥ S, because some may come from a cache. New token
#   $i$ stands at place $T - S + i$;
# - **grouped** (GQA): there are H query heads, but only G key/value heads. Query head $h$ uses KV head
#   $\lfloor h / (H/G) \rfloor$: neighbours share one. This makes the cache H/G times smaller.
#
# **Worked example**: who sees whom, for S = 2 new tokens after 3 cached ones, and which KV head serves which query head for
# H = 6, G = 2.

# %% tags=["nbval-check-output"]
for i in range(2):
    print(f"new token {i} at place {3 + i} sees", "".join("x" if t <= 3 + i else "." for t in range(5)))
print("query heads 0 to 5 use KV heads", [h // (6 // 2) for h in range(6)])

# %% [markdown] exercise="03.2" title="Grouped attention" minutes=15 difficulty=3 version=1
# ### Exercise 03.2 · Grouped attention
#
# *15 minutes · difficulty 3 of 5 · why it matters: every serving engine is built around this one function.*
#
# `q` is (B, H, S, D), `k` and `v` are (B, G, T, D), the S new tokens are the last of the T. Return (B, H, S, D). Torch's
# fused `scaled_dot_product_attention` is refused: write the four steps.
#
# <details><summary>Hint 1</summary>
#
# `k.repeat_interleave(H // G, dim=1)` repeats each KV head H/G times in a row: (B, H, T, D). Then
# `q @ k.transpose(2, 3)` is (B, H, S, T).
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `torch.ones(S, T, dtype=torch.bool, device=q.device).tril(T - S)` is True where a token may look.
# `scores.masked_fill(~may_look, -torch.inf)` and `torch.softmax(..., dim=-1)` do the rest.
#
# </details>


# %% solution="03.2"
def attention(q, k, v):
    """Return the causal attention (B, H, S, D) of the last S tokens over all T; q (B, H, S, D), k and v (B, G, T, D)."""
    ### BEGIN SOLUTION
    num_new, num_all = q.shape[2], k.shape[2]
    group = q.shape[1] // k.shape[1]
    k = k.repeat_interleave(group, dim=1)  # (B, H, T, D)
    v = v.repeat_interleave(group, dim=1)
    scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5  # (B, H, S, T)
    may_look = torch.ones(num_new, num_all, dtype=torch.bool, device=q.device).tril(num_all - num_new)
    return torch.softmax(scores.masked_fill(~may_look, -torch.inf), dim=-1) @ v
    ### END SOLUTION


# %%
check("03.2", attention)

# %% [markdown]
# ## 3 · From ids to logits, with a cache
#
# A layer is two steps, and each *adds* to x, the *residual stream*: attention (tokens look at each other), then the MLP
# (each token on its own). Llama's MLP is **SwiGLU**, with three matrices and $\text{silu}(z) = z \cdot \text{sigmoid}(z)$:
#
# $$\text{mlp}(y) = W_\text{down}\left(\text{silu}(W_\text{gate}\, y) \odot W_\text{up}\, y\right)$$
#
# The keys and values of a token depend only on that token and those before it, so they never change. The **KV cache** keeps
# them: a new token then costs one row of work instead of a whole text. A cached step needs to know only what was kept, and
# *how much*: that is the new token's position.
#
# **Worked example**: silu, and the steps of a layer with their shapes.

# %% tags=["nbval-check-output"]
print("silu of -2, 0, 2:", ", ".join(f"{z / (1 + math.exp(-z)):.3f}" for z in (-2, 0, 2)))
print("matrices have the shape (out, in): y @ w.T, here", tuple((torch.ones(2, 5, 4) @ torch.ones(6, 4).T).shape))
print("split_heads (2, 5, 6) for D = 3:", tuple(split_heads(torch.ones(2, 5, 6), 3).shape), "(B, n, S, D)")

# %% [markdown] exercise="03.3" title="The decoder, with a cache" minutes=22 difficulty=4 version=1
# ### Exercise 03.3 · The decoder, with a cache
#
# *22 minutes · difficulty 4 of 5 · why it matters: after this, no engine is magic.*
#
# `forward(weights, ids, cache=None)` returns `(logits, cache)`. `ids` are the new tokens (B, S), logits are (B, S, V). The cache
# is `None` for a new text, else a list with one pair `(k, v)` per layer, each (B, G, T, D), **rotated** keys and plain values;
# return a new, longer list, and leave the given one unchanged. Use your three functions.
#
# | step | with |
# | --- | --- |
# | rows of the embedding, x (B, S, d) | `weights.embedding[ids]` |
# | positions of the new tokens, after the cached ones | the cache's T |
# | in each `layer` of `weights.layers`: norm | `layer.norm_1`, `weights.eps` |
# | q, k, v, split into heads; q and k rotated | `layer.wq`, `layer.wk`, `layer.wv`, `weights.head_dim`, `weights.theta` |
# | kept k and v in front; attention; heads merged; added to x | `torch.cat(..., dim=2)`, `merge_heads`, `layer.wo` |
# | norm; MLP; added to x | `layer.norm_2`, `layer.gate`, `layer.up`, `layer.down` |
# | at the end: norm, logits | `weights.norm`, `weights.head` |
#
# <details><summary>Hint 1</summary>
#
# First get it right for `cache=None`. The cached text has `cache[0][0].shape[2]` tokens.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `q = split_heads(y @ layer.wq.T, weights.head_dim)`. `torch.nn.functional.silu` is allowed. Collect `(k, v)` of each layer
# *after* putting the kept ones in front.
#
# </details>


# %% solution="03.3"
def forward(weights, ids, cache=None):
    """Return (logits (B, S, V), the grown cache) of the new tokens ids (B, S) after the cached ones."""
    ### BEGIN SOLUTION
    start = 0 if cache is None else cache[0][0].shape[2]
    positions = torch.arange(start, start + ids.shape[1], device=ids.device)
    x, grown = weights.embedding[ids], []  # (B, S, d)
    for number, layer in enumerate(weights.layers):
        y = rms_norm(x, layer.norm_1, eps=weights.eps)
        q, k, v = (split_heads(y @ w.T, weights.head_dim) for w in (layer.wq, layer.wk, layer.wv))
        q = rotate(q, positions, theta=weights.theta)  # (B, H, S, D)
        k = rotate(k, positions, theta=weights.theta)  # (B, G, S, D)
        if cache is not None:
            k = torch.cat([cache[number][0], k], dim=2)  # (B, G, T, D)
            v = torch.cat([cache[number][1], v], dim=2)
        grown.append((k, v))
        x = x + merge_heads(attention(q, k, v)) @ layer.wo.T
        y = rms_norm(x, layer.norm_2, eps=weights.eps)
        x = x + (torch.nn.functional.silu(y @ layer.gate.T) * (y @ layer.up.T)) @ layer.down.T
    return rms_norm(x, weights.norm, eps=weights.eps) @ weights.head.T, grown
    ### END SOLUTION


# %%
check("03.3", forward)

# %% [markdown]
# Now the model of this run. Your decoder reads a stretch of held-out code, whole and in pieces, next to Transformers.

# %%
IS_BUILT = all([ready("03.1"), ready("03.2"), ready("03.3")])
if IS_BUILT:
    model, tokenizer = models.load_model(choice)
    device, weights = model.device, load_weights(model)
    texts = quality.load_heldout(can_fetch=False, is_strict=False).documents
    text = "\n\n".join(one.text for one in texts)[:40_000]
    held = tokenizer(text, return_tensors="pt", truncation=True, max_length=2048).input_ids.to(device)
    with torch.inference_mode():
        theirs = model(held[:, :80]).logits
        whole, _ = forward(weights, held[:, :80])
        first, cache = forward(weights, held[:, :50])
        rest, _ = forward(weights, held[:, 50:80], cache)
    for name, mine in (("whole", whole), ("in two pieces", torch.cat([first, rest], dim=1))):
        distance, largest = (mine - theirs).abs().max(), theirs.abs().max()
        print(f"{name:<14} largest difference {distance:.1e}, largest logit {largest:.1f}")

# %% [markdown]
# **What you should see.** Differences in the last digits of float32, about a millionth of the largest logit: two programs
# that add in different orders cannot agree more closely.
#
# ### The loop
#
# A text grows token by token, each time by the likeliest one (*greedy*). The loop notes the time of each token: `.tolist()`
# waits until the token is really there, on a GPU too. Without a cache the whole text is read again for each token.


# %%
def generate(prompt, num_tokens, *, is_cached, choose=lambda logits: logits.argmax(dim=-1)):
    """Return (new ids, start, times) of num_tokens after the prompt (1, S); start and times are in seconds."""
    ids, cache, times_s = prompt, None, []
    start_s = perf_counter()
    for _ in range(num_tokens):
        logits, grown = forward(weights, ids if cache is None else ids[:, -1:], cache)
        cache = grown if is_cached else None
        token = choose(logits[:, -1])  # (1,)
        token.tolist()
        times_s.append(perf_counter())
        ids = torch.cat([ids, token[:, None]], dim=1)
    return ids[0, prompt.shape[1] :].tolist(), start_s, times_s


# %%
PROMPT = "def read_lines(path):"
if IS_BUILT:
    question = tokenizer(PROMPT, return_tensors="pt").input_ids.to(device)
    spoken = {is_cached: generate(question, 40, is_cached=is_cached)[0] for is_cached in (False, True)}
    print(PROMPT + tokenizer.decode(spoken[True]))
    same = sum(a == b for a, b in zip(spoken[False], spoken[True], strict=True))
    print(f"\nwith and without the cache: {same} of 40 tokens are the same")

# %% [markdown]
# **What you should see.** All 40. The cache does not change what is computed, only how often.

# %% [markdown]
# ## 4 · What one step costs
#
# Before measuring, count. A **prefill** reads a prompt: many new tokens, no cache. A **decode step** has one new token after
# many cached ones. A matrix of $m \times n$ weights applied to one token takes $m\,n$ multiply-adds of **two FLOPs**
# (floating-point operations) each, and its bytes are read once, however many tokens there are. So
#
# $$\text{FLOPs} = 2 \cdot \text{rows} \cdot (\text{weights in matrices}) + \text{attention} \qquad [\text{FLOP}]$$
#
# where *rows* is batch times new tokens. Attention has two products (the scores, and the mixing of values) for H heads in
# each layer: D multiply-adds for each new token with each of the T tokens so far.
#
# **Worked example**: one matrix of 4 by 3 weights in float32, applied to 1 token and to 100.

# %% tags=["nbval-check-output"]
for rows in (1, 100):
    flops, weight_bytes = 2 * rows * 4 * 3, 4 * 3 * 4
    print(f"{rows:>3} tokens: {flops} FLOP, {weight_bytes} bytes of weights, {flops / weight_bytes:.1f} FLOP per byte")

# %% [markdown] exercise="03.4" title="Count a step" minutes=15 difficulty=3 version=1
# ### Exercise 03.4 · Count a step
#
# *15 minutes · difficulty 3 of 5 · why it matters: with three numbers you can predict any model on any machine (lab 10).*
#
# For **your** `forward` return `(flops, weight_bytes, kv_bytes)` of one call with `new_tokens` per row after `cached_tokens`:
#
# - `flops`: every matrix product, 2 per multiply-add: q, k, v, o, gate, up, down, the two of attention (all S · T scores: the mask
#   comes after), and the head, which your forward applies to every new token;
# - `weight_bytes`: those seven matrices of each layer and the head, read once per call (norms and the few rows of the
#   embedding are under 0.2 %: leave them out);
# - `kv_bytes`: keys and values of all tokens so far, cached and new, in all layers.
#
# `config` has the keys `hidden_size`, `intermediate_size`, `vocab_size`, `num_hidden_layers`, `num_attention_heads`,
# `num_key_value_heads`, `head_dim`. H · D need not be `hidden_size`.
#
# <details><summary>Hint 1</summary>
#
# Weights of one layer: d·H·D for q, the same for o, d·G·D for k and for v, and three times d·F. The head has d·V.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Attention: 2 products · 2 FLOPs · rows · L · H · D · T, with T = cached + new. It is H here, and G in the bytes. Which of the
# three grow with the batch: FLOPs, weights, KV?
#
# </details>


# %% solution="03.4"
def count_step(config, *, new_tokens, cached_tokens, batch=1, bytes_per_value=4):
    """Return (flops, weight_bytes, kv_bytes) of one forward of batch rows with new_tokens after cached_tokens each."""
    ### BEGIN SOLUTION
    d, width, num_layers = config["hidden_size"], config["head_dim"], config["num_hidden_layers"]
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    layer = 2 * d * heads * width + 2 * d * groups * width + 3 * d * config["intermediate_size"]
    num_weights = num_layers * layer + d * config["vocab_size"]
    rows, num_all = batch * new_tokens, cached_tokens + new_tokens
    flops = 2 * rows * num_weights + 2 * 2 * rows * num_layers * heads * width * num_all
    kv_bytes = 2 * batch * num_layers * groups * width * num_all * bytes_per_value
    return flops, num_weights * bytes_per_value, kv_bytes
    ### END SOLUTION


# %%
check("03.4", count_step)

# %% [markdown]
# Your count for this model next to labkit's own (`labkit.roofline`, which adds norms and the rows of the embedding):

# %%
if ready("03.4"):
    kinds = {"prefill of 512": (512, 0), "decode after 511": (1, 511)}
    print(f"{'':<19}{'FLOPs':>12}{'weights':>12}{'KV':>12}{'FLOP/byte':>11}   labkit")
    for name, (new, kept) in kinds.items():
        flops, weight_bytes, kv_bytes = count_step(choice.config, new_tokens=new, cached_tokens=kept)
        sizes = f"{units.format_bytes(weight_bytes):>12}{units.format_bytes(kv_bytes):>12}"
        work = (roofline.estimate_prefill(choice.config, prompt_tokens=new, num_logits=new, bytes_per_value=4) if new > 1
                else roofline.estimate_decode_step(choice.config, context_tokens=kept, bytes_per_value=4))  # fmt: skip
        share = (weight_bytes + kv_bytes) / (work.weight_bytes + work.kv_bytes)
        shown = f"{units.format_rate(flops, 'FLOP'):>12}{sizes}{flops / (weight_bytes + kv_bytes):>11.3g}"
        print(f"{name:<19}{shown}   {units.format_rate(work.flops, 'FLOP')}, bytes {share:.4f} of its")

# %% [markdown]
# **What you should see.** The same weights are read for 512 tokens as for one. So a long prefill does hundreds of FLOPs per
# byte, and a decode step about half a FLOP per byte: two FLOPs for each weight, which has four bytes. A prefill is limited by
# arithmetic, a decode step by something else. Lab 10 finds out by what.

# %% [markdown]
# ### Predict before you measure
#
# At position 512: how many times as long does a token take **without** the cache as with it? The FLOPs alone say a factor of about
# 513. Replace `None` with your guess.

# %% solution="03.p1"
### BEGIN SOLUTION stub: predict("03.p1", None, unit="x")
predict("03.p1", 100, unit="x")
### END SOLUTION

# %% [markdown]
# And the *first* token after a prompt of 64: how many times as long does it take without the cache as with it?

# %% solution="03.p2"
### BEGIN SOLUTION stub: predict("03.p2", None, unit="x")
predict("03.p2", 1, unit="x")
### END SOLUTION

# %% [markdown]
# ### Measure: one token at a time
#
# One step after each number of tokens, with the cache (one new token) and without (everything again). The two take turns, in
# random order. The warm-up uses another part of the text and is not counted.

# %%
if IS_BUILT and ready("03.4"):
    POSITIONS = choose_by_budget(learner=(16, 64, 128, 256, 512, 1000), ci=(16, 128, 512))
    caches = {p: forward(weights, held[:, :p])[1] for p in POSITIONS}

    def time_step(position, name, *, shift=0):
        part = held[:, shift : shift + position + 1]
        with timing.Stopwatch(device=str(device)) as watch:
            forward(weights, part[:, -1:], caches[position]) if name == "with cache" else forward(weights, part)
        return watch.elapsed_s

    ways = {"without cache": {p: [] for p in POSITIONS}, "with cache": {p: [] for p in POSITIONS}}
    warmup_s = [time_step(p, name, shift=1000) for p in POSITIONS for name in ways]

# %%
if IS_BUILT and ready("03.4"):
    draw = torch.Generator().manual_seed(3)
    for _ in range(choose_by_budget(learner=20, ci=8)):
        for position in POSITIONS:
            for k in torch.randperm(2, generator=draw).tolist():
                name = [*ways][k]
                ways[name][position].append(time_step(position, name))
    gain = stats.compare(ways["with cache"][512], ways["without cache"][512])
    print(f"at position 512 the cache makes a token {gain.ratio:.3g} times as fast ", end="")
    print(f"({units.format_interval(gain.interval)}, {gain.n} pairs): {gain.verdict}")

# %% [markdown]
# **The estimate** is your count divided by the speed at which this machine multiplies, measured on one matrix of the model
# and 512 rows. If a step were nothing but arithmetic at this speed, it would lie on the blue line.

# %%
if IS_BUILT and ready("03.4"):
    up, inputs = weights.layers[0].up, weights.embedding[held[0, :512]]  # (F, d), (512, d)
    product = timing.measure_calls(lambda: inputs @ up.T, device=str(device), max_time_s=2.0)
    flop_per_s = 2 * inputs.shape[0] * up.numel() / product.summary.p50
    sizes = {"without cache": lambda p: (p + 1, 0), "with cache": lambda p: (1, p)}  # new and cached tokens
    estimates = {name: {} for name in ways}
    for name, p in [(name, p) for name in ways for p in POSITIONS]:
        new, kept = sizes[name](p)
        estimates[name][p] = count_step(choice.config, new_tokens=new, cached_tokens=kept)[0] / flop_per_s
    print(f"one product of 512 rows: {units.format_rate(flop_per_s, 'FLOP/s')} (n = {product.summary.n})")

# %%
if IS_BUILT and ready("03.4"):
    predicted = reveal("03.p1", gain.ratio, unit="x")
    title = f"At position 512 the cache makes a token {gain.ratio:.3g} times as fast ({units.format_interval(gain.interval)})"
    figure = plot_step_costs(ways, estimates, title=title)
    figure.show()
    print(plots.format_alternative(figure))

# %% [markdown]
# **What you should see.** Without the cache the time grows with the text, as the count does: it is mostly arithmetic. (It lies
# a few times above its line: masks, softmax and copies are not counted, and few rows multiply more slowly than 512.) With
# the cache the time hardly grows, and it lies far above its line: a step with one row is *not* bound by arithmetic. So the
# cache saves a factor of hundreds in FLOPs and much less in time. It is still the best bargain in serving: its price is
# memory, `kv_bytes`, which lab 30 is about.
#
# ### TTFT and TPOT of your own loop
#
# The same as a user sees it: a prompt of 64 tokens and an answer of 32, each time from another part of the text. With $t_0$
# the start of the loop and $c_1 \dots c_n$ the times of the $n$ tokens
#
# $$\text{TTFT} = c_1 - t_0 \qquad \text{TPOT} = \frac{c_n - c_1}{n - 1} \quad [\text{s}]$$

# %%
if IS_BUILT and ready("03.4"):
    NUM_TOKENS, loops = 32, {name: {"ttft_s": [], "tpot_s": []} for name in ways}
    for number in range(choose_by_budget(learner=16, ci=8) + 1):
        prompt = held[:, 70 * number : 70 * number + 64]
        for name in sorted(loops, reverse=number % 2):
            _, start_s, times_s = generate(prompt, NUM_TOKENS, is_cached=name == "with cache")
            if number:  # the first round is the warm-up, with a prompt of its own
                loops[name]["ttft_s"].append(times_s[0] - start_s)
                loops[name]["tpot_s"].append((times_s[-1] - times_s[0]) / (NUM_TOKENS - 1))
    for name, metrics in loops.items():
        for metric, values in metrics.items():
            said = units.format_interval(stats.summarize(values).p50_interval, write=units.format_seconds)
            print(f"{name:<14} {metric[:4].upper()} p50 {units.format_seconds(stats.summarize(values).p50)} ({said})")

# %%
if IS_BUILT and ready("03.4"):
    samples = {"product_s": list(product.samples_s)}
    for name in ways:
        key = name.replace(" ", "_")
        samples |= {f"{key}_{metric}": values for metric, values in loops[name].items()}
        samples |= {f"behind{p}_{key}_step_s": values for p, values in ways[name].items()}
    record = save_record(
        "03", "kv_cache", model=choice, samples=samples,
        settings={"device": str(device), "positions": list(POSITIONS), "prompt_tokens": 64, "output_tokens": NUM_TOKENS,
                  "estimated_s": {name: {str(p): s for p, s in some.items()} for name, some in estimates.items()}},
    )  # fmt: skip
    print(f"saved as {record.id}")

# %% [markdown]
# **The control.** The cache should *not* help the first token: it is empty then, and both variants read the whole prompt.

# %%
if IS_BUILT and ready("03.4"):
    for metric in ("ttft_s", "tpot_s"):
        found = stats.compare(loops["with cache"][metric], loops["without cache"][metric])
        print(f"{metric[:4].upper()}: with the cache {found.ratio:.3g} times as fast ", end="")
        print(f"({units.format_interval(found.interval)}, {found.n} pairs): {found.verdict}")
    control = stats.compare(loops["with cache"]["ttft_s"], loops["without cache"]["ttft_s"])
    reveal("03.p2", control.ratio, unit="x")

# %% [markdown]
# ## 5 · Which token?
#
# The logits are scores; `softmax` turns them into probabilities. Greedy takes the likeliest token. To **sample** is to draw
# one, after up to three changes, in this order (that of Transformers; another order gives other probabilities):
#
# 1. **temperature** $\tau$: divide the logits by it; below 1 sharpens, above 1 flattens, and 0 means greedy;
# 2. **top-k**: only the $k$ likeliest may be drawn (0: all);
# 3. **top-p**: of what is left, *with probabilities that add up to 1 again*, the smallest set of likeliest tokens that
#    reaches $p$ (the one that reaches it belongs to the set; 1: all).
#
# $$P(i) \propto e^{z_i / \tau} \quad \text{for the tokens that are kept, else } 0$$
#
# **Worked example**: probabilities 0.5, 0.3, 0.15, 0.05 and top-p 0.75.

# %% tags=["nbval-check-output"]
total = 0.0
for probability in (0.5, 0.3, 0.15, 0.05):
    print(f"{probability:.2f}: likelier tokens hold {total:.2f}, so", "kept" if total < 0.75 else "cut off")
    total += probability
print(f"kept 0.8 in all: drawn with probabilities {0.5 / 0.8:.3f} and {0.3 / 0.8:.3f}")

# %% [markdown] exercise="03.5" title="The sampler" minutes=15 difficulty=3 version=1
# ### Exercise 03.5 · The sampler
#
# *15 minutes · difficulty 3 of 5 · why it matters: two engines with different orders write different text from the same model.*
#
# `logits` are (B, V); return the drawn ids (B,), each row drawn on its own. Draw with `generator` (`None`: torch's own). The
# check draws 4,000 times per setting and compares the counts with the exact probabilities by a chi-square test.
#
# <details><summary>Hint 1</summary>
#
# `probabilities.sort(dim=1, descending=True)` returns the sorted probabilities and their ids. Work on the sorted ones: then
# top-k is a slice.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `ranked.cumsum(dim=1) - ranked` is what the likelier tokens hold. `torch.multinomial(ranked, 1, generator=generator)` draws *places*
# (B, 1) and needs no scaling; `order.gather(1, places)` turns them into ids.
#
# </details>


# %% solution="03.5"
def sample(logits, *, temperature=1.0, top_k=0, top_p=1.0, generator=None):
    """Return one drawn token id for each row of logits (B, V): temperature, then top-k, then top-p; shape (B,)."""
    ### BEGIN SOLUTION
    if temperature == 0:
        return logits.argmax(dim=1)
    ranked, order = torch.softmax(logits / temperature, dim=1).sort(dim=1, descending=True)
    if top_k:
        ranked[:, top_k:] = 0
    ranked = ranked / ranked.sum(dim=1, keepdim=True)
    ranked[ranked.cumsum(dim=1) - ranked >= top_p] = 0
    places = torch.multinomial(ranked, 1, generator=generator)  # (B, 1)
    return order.gather(1, places)[:, 0]
    ### END SOLUTION


# %%
check("03.5", sample)

# %%
if IS_BUILT and ready("03.5"):
    for settings in ({"temperature": 0}, {"temperature": 0.8, "top_k": 50, "top_p": 0.95}, {"temperature": 3.0}):
        generator = torch.Generator(device=device).manual_seed(3)

        def choose(logits, settings=settings, generator=generator):
            return sample(logits, generator=generator, **settings)

        said, *_ = generate(question, 24, is_cached=True, choose=choose)
        print(settings, repr(tokenizer.decode(said)), sep="\n", end="\n\n")

# %% [markdown]
# **What you should see.** Greedy soon repeats itself, a moderate setting varies, and a temperature of 3 gives nonsense.

# %% [markdown]
# ## 6 · Break it
#
# Here is a decoder with one believable mistake: its positions start at 0 *in every call*. The prompt is read correctly; after
# that, each cached step takes its token for the first one. For this one cell your `rotate` is replaced by one that forgets
# where it is.

# %%
if IS_BUILT:
    kept_rotate = rotate

    def rotate_from_zero(x, positions, *, theta):
        return kept_rotate(x, positions - 1 * positions[0], theta=theta)

    def rotate_right(x, positions, *, theta):  # the same operations, so that only the mistake differs
        return kept_rotate(x, positions - 0 * positions[0], theta=theta)

    runs = {"right": [], "wrong": []}
    for number in range(choose_by_budget(learner=12, ci=6)):
        for name in sorted(runs, reverse=number % 2):
            with patch("__main__.rotate", rotate_from_zero if name == "wrong" else rotate_right):
                runs[name].append(generate(question, 40, is_cached=True))
    seconds = {name: [(times_s[-1] - times_s[0]) / 39 for *_, times_s in some] for name, some in runs.items()}

# %%
if IS_BUILT:
    found = stats.compare(seconds["wrong"], seconds["right"])
    around = f"{found.interval.low:.3f} to {found.interval.high:.3f}"
    print(f"TPOT, speed of wrong over right: {found.ratio:.3f} ({around}), {found.verdict}")
    same = sum(a == b for a, b in zip(runs["wrong"][0][0], runs["right"][0][0], strict=True))
    print(f"tokens that are the same: {same} of 40")
    print("right:", repr(tokenizer.decode(runs["right"][0][0])[:70]))
    print("wrong:", repr(tokenizer.decode(runs["wrong"][0][0])[:70]))
    with torch.inference_mode(), patch("__main__.rotate", rotate_from_zero):
        behind, _ = forward(weights, held[:, 50:51], cache)
    print(f"logits of one cached step differ by up to {(behind - theirs[:, 50:51]).abs().max():.2g}")

# %% [markdown]
# **What you should see.** The speed is nearly the same, the text may still look like code, and a benchmark that counts
# tokens notices nothing. Only a comparison with logits that are known to be right does. That is why every engine in this
# course first has to produce the same tokens, and only then is timed. (With random weights all text is nonsense; the logits
# still tell.)

# %% [markdown]
# ## 7 · Summary
#
# You saw three things:
#
# 1. one token is a stack of matrix products, and a decoder fits on one page;
# 2. the cache changes no logit: it saves the work on old tokens, from the second token on, and costs memory;
# 3. a long prefill does hundreds of FLOPs per byte, a decode step less than one: they are two different workloads.
#
# One thing this does **not** show: why a cached step takes as long as it does, with almost no arithmetic to do. Labs 10 and
# 11 find out.

# %%
if IS_BUILT and ready("03.4"):
    tpot = stats.summarize(record.samples["with_cache_tpot_s"])
    said = units.format_interval(tpot.p50_interval, write=units.format_seconds)
    print(f"Your number: one token with the cache in {units.format_seconds(tpot.p50)} ({said}, n = {tpot.n});")
    print(f"at position 512 it is {gain.ratio:.3g} times as fast as without ({units.format_interval(gain.interval)}).")
    print(f"{choice.name} in {choice.dtype} on {machine.gpus[0].name if machine.gpus else machine.cpu.name}, ", end="")
    print(f"{record.time[:10]}, record {record.id}")

# %% [markdown]
# ### Five questions

# %% solution="03.q1"
### BEGIN SOLUTION stub: quiz("03.q1")
quiz("03.q1", "b")
### END SOLUTION

# %% solution="03.q2"
### BEGIN SOLUTION stub: quiz("03.q2")
quiz("03.q2", 6)
### END SOLUTION

# %% solution="03.q3"
### BEGIN SOLUTION stub: quiz("03.q3")
quiz("03.q3", 131072)
### END SOLUTION

# %% solution="03.q4"
### BEGIN SOLUTION stub: quiz("03.q4")
quiz("03.q4", "d")
### END SOLUTION

# %% solution="03.q5"
### BEGIN SOLUTION stub: quiz("03.q5")
quiz("03.q5", """I would compare logits, not text: one prompt through the reference and through our engine, first the prefill
alone, then in pieces with the cache. If only the cached steps differ, positions or the order of the cache are wrong; if only
some rows of a batch differ, they have another request's cache.""")  # fmt: skip
### END SOLUTION

# %% [markdown]
# ## 8 · Done
#
# The lab frees the memory that it held, and measures how much that was:

# %%
print(measure_release(globals(), "weights", "model", "tokenizer", "caches", "cache", "held", "texts", "theirs", "whole", "first",
                      "rest", "mine", "logits", "up", "inputs", "question", "prompt", "behind"))  # fmt: skip

# %%
complete("03")
