"""Lab 03's checks: the solution passes, the stub is "not attempted", and each named mistake has its own sentence."""

import json
import math
import re
import time
from pathlib import Path

import pytest
from check_bench import STUB, UNTOUCHED, Bench, expect_failure, expect_pass

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow  # every test here computes with torch

from labkit.checks import _deadline, _sampling, decoder, lab03  # noqa: E402
from labkit.checks._cost import COST_MISTAKES, count_by_flops, count_right  # noqa: E402
from labkit.checks._decoding import _MISTAKES as DECODER_MISTAKES  # noqa: E402
from labkit.checks._decoding import _agrees, list_cases  # noqa: E402
from labkit.checks._llama import attend, run_decoder, turn  # noqa: E402
from labkit.checks.reference import find_reference  # noqa: E402
from labkit.hardware import probe_machine  # noqa: E402

ANSWERS = {
    "03.1": ("rms_norm", "rotate"),
    "03.2": ("attention",),
    "03.3": ("forward",),
    "03.4": ("count_step",),
    "03.5": ("sample",),
}
BEFORE = {"03.3": ("03.1", "03.2")}
judge = Bench(lab03, ANSWERS).judge
CONFIG = {
    "vocab_size": 37, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 10, "rms_norm_eps": 1e-3, "max_position_embeddings": 64,
}  # fmt: skip


def make_names(exercise):
    names = {"torch": torch, "math": math, "split_heads": decoder.split_heads, "merge_heads": decoder.merge_heads}
    for earlier in BEFORE.get(exercise, ()):
        exec(compile(find_reference(earlier), f"<{earlier}>", "exec"), names)
    return names


def judge_source(exercise, source):
    """Judge the functions that a cell defines, by their names, as the notebook's check does."""
    names = make_names(exercise)
    exec(compile(source, "<cell>", "exec"), names)
    found = tuple(names[name] for name in ANSWERS[exercise])
    return judge(exercise, found if len(found) > 1 else found[0])


def change(exercise, *changes):
    """The reference solution with some of its text replaced; each change must be there."""
    source = find_reference(exercise)
    for old, new in changes:
        assert old in source, old
        source = source.replace(old, new)
    return source


@pytest.mark.parametrize("exercise", ANSWERS)
def test_the_reference_solution_passes(exercise):
    expect_pass(judge_source(exercise, find_reference(exercise)))


@pytest.mark.parametrize("body", UNTOUCHED)
@pytest.mark.parametrize("exercise", ANSWERS)
def test_an_untouched_stub_is_not_attempted(exercise, body):
    source = "\n".join(f"def {name}(*args, **kwargs):\n    {body}\n" for name in ANSWERS[exercise])
    assert judge_source(exercise, source).status == "not attempted"


@pytest.mark.parametrize("exercise", ANSWERS)
def test_a_function_that_raises_is_told_its_own_line(exercise):
    source = "\n".join(f"def {name}(*args, **kwargs):\n    return 1 / len([])\n" for name in ANSWERS[exercise])
    outcome = judge_source(exercise, source)
    assert outcome.status == "failed"
    assert "ZeroDivisionError" in outcome.sentence and "your line" in outcome.sentence


# The second decoder of the checks, held to Transformers


def make_theirs(**changes):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**CONFIG | changes)
    model = transformers.LlamaForCausalLM(config).eval()
    for name, one in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(one, 0.5, 1.5)
        else:
            torch.nn.init.normal_(one, std=0.3)
    return model


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True, "num_key_value_heads": 6},
        {"num_key_value_heads": 1, "head_dim": 4},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    ],
)
def test_the_second_decoder_is_transformers_decoder_also_with_a_cache(changes):
    model = make_theirs(**changes)
    ids = torch.randint(37, (2, 11), generator=torch.Generator().manual_seed(1))
    weights = decoder.load_weights(model)
    with torch.inference_mode():
        right = model(ids).logits
        first, cache = run_decoder(weights, ids[:, :6])
        second, _ = run_decoder(weights, ids[:, 6:], cache)
    assert torch.allclose(torch.cat([first, second], 1), right, atol=2e-5, rtol=1e-5)


def test_the_second_attention_and_rotation_are_those_of_torch_and_transformers():
    pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    draw = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(2, n, 5, 8, generator=draw) for n in (6, 2, 2))
    right = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    assert torch.allclose(attend(q, k, v), right, atol=1e-6)
    positions = torch.arange(3, 8)
    angles = positions[:, None] * 100.0 ** (-torch.arange(0, 8, 2) / 8)
    cos, sin = (f(torch.cat([angles, angles], -1))[None] for f in (torch.cos, torch.sin))
    right, _ = apply_rotary_pos_emb(q, k, cos, sin)
    assert torch.allclose(turn(q, positions, theta=100.0), right, atol=1e-6)


def test_torchs_flop_counter_agrees_with_the_count_of_a_transformers_step():
    from torch.utils.flop_counter import FlopCounterMode

    model = make_theirs()
    model.set_attn_implementation("eager")
    ids = torch.randint(37, (2, 9))
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(ids)
    right = count_right(CONFIG_IN_ORDER, new_tokens=9, cached_tokens=0, batch=2)[0]
    angles = 2 * CONFIG["head_dim"] // 2 * 9  # Transformers 5.17 makes the angles of RoPE by a matrix product, 5.19 not
    assert counter.get_total_flops() - right in (0, angles)


CONFIG_IN_ORDER = {
    name: CONFIG[name]
    for name in ("hidden_size", "intermediate_size", "vocab_size", "num_hidden_layers", "num_attention_heads",
                 "num_key_value_heads", "head_dim")
}  # fmt: skip


# The material of the lab


def test_heads_are_split_and_merged_back():
    x = torch.arange(2.0 * 5 * 6).reshape(2, 5, 6)
    heads = decoder.split_heads(x, 3)
    assert heads.shape == (2, 2, 5, 3)
    assert heads[1, 1, 4].tolist() == x[1, 4, 3:].tolist()
    assert torch.equal(decoder.merge_heads(heads), x)


def test_the_shipped_target_is_taken_apart_in_float32():
    choice, why = decoder.find_decoder(probe_machine())
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
    choice, why = decoder.find_decoder(probe_machine())
    assert choice.name == "python-11m"
    assert phrase in why and "instead of random:other" in why


def test_random_weights_of_a_plain_llama_are_used_and_named(monkeypatch, tmp_path):
    content = {key: value for key, value in CONFIG.items() if key != "head_dim"} | {"model_type": "llama"}
    (tmp_path / "tiny.json").write_text(json.dumps(content))
    monkeypatch.setenv("LABKIT_MODEL", f"random:{tmp_path / 'tiny.json'}")
    choice, why = decoder.find_decoder(probe_machine())
    assert choice.source == "random" and "random" in why
    assert choice.config["head_dim"] == 4, "what the configuration leaves out is written out"


# 03.1

WRONG_PIECES = [
    ([("mean_square + eps)", "mean_square) / (1 + eps)")], "differs by up to"),
    ([("torch.rsqrt(mean_square + eps)", "1 / (mean_square.sqrt() + eps)")], "eps stands outside of the root"),
    ([("mean_square + eps", "mean_square")], "eps is forgotten"),
    ([("x.pow(2).mean", "x.pow(2).sum")], "the squares are added up"),
    ([("weight * x * torch.rsqrt(mean_square + eps)",
       "weight * (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + eps).sqrt()")],
     "that is LayerNorm"),
    ([("weight * x * torch.rsqrt(mean_square + eps)",
       "weight * (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + eps).sqrt()")], "that is LayerNorm"),
    ([("weight * x * torch.rsqrt(mean_square + eps)", "weight * x / (x.var(-1, keepdim=True) + eps).sqrt()")],
     "it divides by a standard deviation"),
    ([("weight * x * torch.rsqrt(mean_square + eps)", "weight * x / (x.std(-1, keepdim=True) + eps)")],
     "it divides by a standard deviation"),
    ([("    mean_square =", "    x = x.double()\n    mean_square =")], "`rms_norm` returns torch.float64 for"),
    ([("mean_square + eps", "mean_square + torch.full((1,), eps)")], "would stop on a GPU"),
    ([("first, second = x[", "x = x.double()\n    first, second = x[")], "`rotate` returns torch.float64 for"),
    ([("weight * x * torch.rsqrt", "weight * x / torch.square")], "the shape is right, the numbers are not"),
    ([("torch.rsqrt(mean_square + eps)", "1 / (mean_square + eps)")], "the root is missing"),
    ([("weight * x", "x")], "the weight is forgotten"),
    ([("weight * x", "(1 + weight) * x")], "counts from 1"),
    ([("x.pow(2).mean(dim=-1, keepdim=True)", "x.pow(2).mean(dim=-2, keepdim=True)")], "over the positions"),
    ([("x.pow(2).mean(dim=-1, keepdim=True)", "x.pow(2).mean()")], "one mean for the whole tensor"),
    ([("torch.rsqrt", "torch.sqrt")], "it multiplies by the root mean square"),
    ([("return weight * x * ", "x *= 2; x /= 2; x += 1; return weight * (x - 1) * ")], "changes its argument number 1"),
    ([("return weight * x * torch.rsqrt(mean_square + eps)",
       "return torch.nn.functional.rms_norm(x, x.shape[-1:], weight, eps)")], "rms_norm of torch"),
    ([("return weight * x * torch.rsqrt(mean_square + eps)",
       "m = torch.nn.RMSNorm(x.shape[-1], eps=eps); m.weight.data = weight; return m(x)")], "rms_norm of torch"),
    ([("return weight * x * torch.rsqrt(mean_square + eps)",
       "return getattr(torch, 'rms' + '_norm')(x, x.shape[-1:], weight, eps)")], "rms_norm of torch"),
    ([("x[..., :half], x[..., half:]", "x[..., 0::2], x[..., 1::2]"),
      ("torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)",
       "torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-1).flatten(-2)")], "neighbours"),
    ([("first * cos - second * sin", "first * cos + second * sin"),
      ("second * cos + first * sin", "second * cos - first * sin")], "runs backwards"),
    ([("angles = positions[:, None]", "angles = torch.arange(x.shape[2])[:, None]")], "start at 0 in every call"),
    ([("angles = positions[:, None] * speeds", "angles = 0 * positions[:, None] * speeds")], "nothing turns"),
    ([("/ half)  # (D/2,)", "/ (2 * half))")], "the exponent is i/D"),
    ([("theta ** (-torch", "theta ** (torch")], "the exponent is positive"),
    ([("speeds = theta", "speeds = 10000.0")], "theta is not used"),
    ([("angles = positions[:, None]", "angles = (positions[:, None] + 1)")], "count from 1"),
    ([("theta ** (-torch.arange(half, device=x.device) / half)", "torch.ones(half)")], "all pairs turn equally fast"),
    ([("positions[:, None] * speeds", "positions[None, :] * speeds[:, None]")], "rotate() raised RuntimeError"),
    ([("arange(half, device=x.device)", "arange(half)")], "would stop on a GPU"),
    ([("    half = x.shape[-1] // 2", f"    {STUB}")], "`rms_norm` is right. `rotate` is still open"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "phrase"), WRONG_PIECES, ids=[phrase for _, phrase in WRONG_PIECES])
def test_wrong_norms_and_rotations_have_their_own_sentence(changes, phrase):
    expect_failure(judge_source("03.1", change("03.1", *changes)), phrase)


def test_one_function_in_place_of_both_is_told_how_to_give_both():
    names = make_names("03.1")
    exec(find_reference("03.1"), names)
    expect_failure(judge("03.1", names["rms_norm"]), "both functions are asked for")
    expect_failure(judge("03.1", (names["rms_norm"], 3)), "both functions are asked for")


def test_a_rotation_by_complex_numbers_passes():
    source = (
        find_reference("03.1").partition("def rotate")[0]
        + """
def rotate(x, positions, *, theta):
    half = x.shape[-1] // 2
    angles = positions.float()[:, None] * theta ** (-torch.arange(half, device=x.device) / half)
    z = torch.view_as_complex(torch.stack([x[..., :half], x[..., half:]], -1).contiguous())
    z = torch.view_as_real(z * torch.polar(torch.ones_like(angles), angles))
    return torch.cat([z[..., 0], z[..., 1]], -1)
"""
    )
    outcome = judge_source("03.1", source)
    assert outcome.status == "passed", outcome.sentence


# 03.2

CALL = "return torch.softmax(scores.masked_fill(~may_look, -torch.inf), dim=-1) @ v"
WRAPPED = f"{CALL.replace('return ', 'return (')})"
WRONG_ATTENTIONS = [
    ([("scores.masked_fill(~may_look, -torch.inf)", "scores")], "nothing is masked"),
    ([(".tril(num_all - num_new)", ".tril()")], "as if the new tokens were the first"),
    ([(".tril(num_all - num_new)", ".tril(num_all - num_new + 1)")], "see the next one"),
    ([(" / q.shape[-1] ** 0.5", "")], "the scores are not scaled"),
    ([("q.shape[-1] ** 0.5", "q.shape[-1]")], "divided by D"),
    ([("/ q.shape[-1] ** 0.5", "* q.shape[-1] ** 0.5")], "multiplied by the root of D"),
    ([("q.shape[-1] ** 0.5", "(q.shape[1] * q.shape[-1]) ** 0.5")], "the width of all heads"),
    ([("q.shape[-1] ** 0.5", "k.shape[2] ** 0.5")], "the number of tokens in it"),
    ([("k.repeat_interleave(group, dim=1)", "k.repeat(1, group, 1, 1)"),
      ("v.repeat_interleave(group, dim=1)", "v.repeat(1, group, 1, 1)")], "dealt out in turn"),
    ([("k.repeat_interleave(group, dim=1)", "k[:, :1]"), ("v.repeat_interleave(group, dim=1)", "v[:, :1]")],
     "the first KV head"),
    ([("-torch.inf), dim=-1)", "-torch.inf), dim=-2)")], "the softmax runs over the queries"),
    ([(CALL, "return (torch.softmax(scores, dim=-1) * may_look) @ v")], "masked after the softmax"),
    ([(CALL, "return torch.softmax(scores.masked_fill(~may_look, -torch.inf), dim=-1) @ k")], "keys are summed up"),
    ([("num_new, num_all =", "k, v = v, k; num_new, num_all =")], "keys and values have changed places"),
    ([(CALL, WRAPPED + ".transpose(1, 2)")], "(B, S, H, D)"),
    ([(CALL, WRAPPED + ".transpose(1, 2).flatten(2)")],
     "the heads are merged already"),
    ([(".tril(num_all - num_new)", ".tril(num_all - num_new - 1)")], "hides the token from itself"),
    ([("device=q.device)", ")")], "would stop on a GPU"),
    ([(CALL, "return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=may_look)")],
     "fused attention"),
    ([(CALL, "return getattr(torch._C._nn, 'scaled_dot' + '_product_attention')(q, k, v, attn_mask=may_look)")],
     "fused attention"),
    ([(CALL, "return torch.ops.aten.scaled_dot_product_attention(q, k, v, may_look)")], "fused attention"),
    ([(CALL, "return torch.softmax(scores, dim=-1).tolist()")], "returned a list"),
    ([(CALL, WRAPPED + ".double()")], "`attention` returns torch.float64 for torch.float32"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "phrase"), WRONG_ATTENTIONS, ids=[phrase for _, phrase in WRONG_ATTENTIONS])
def test_wrong_attentions_have_their_own_sentence(changes, phrase):
    expect_failure(judge_source("03.2", change("03.2", *changes)), phrase)


def test_transformers_own_attention_is_refused():
    pytest.importorskip("transformers")
    source = """
def attention(q, k, v):
    from transformers.models.llama.modeling_llama import repeat_kv
    n = q.shape[1] // k.shape[1]
    k, v = repeat_kv(k, n), repeat_kv(v, n)
    mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
    s = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).masked_fill(~mask, -torch.inf)
    return torch.softmax(s, -1) @ v
"""
    expect_failure(judge_source("03.2", source), "Transformers is what your code is compared with")


def test_grouped_attention_without_copies_passes():
    outcome = judge_source("03.2", """
def attention(q, k, v):
    b, h, s, d = q.shape
    g, t = k.shape[1:3]
    q = q.reshape(b, g, h // g, s, d)
    scores = torch.einsum("bgnsd,bgtd->bgnst", q, k) * d ** -0.5
    ahead = torch.arange(t, device=q.device)[None] > torch.arange(t - s, t, device=q.device)[:, None]
    return torch.einsum("bgnst,bgtd->bgnsd", scores.masked_fill(ahead, -1e30).softmax(-1), v).reshape(b, h, s, d)
""")  # fmt: skip
    assert outcome.status == "passed", outcome.sentence


# 03.3

MLP = "torch.nn.functional.silu(y @ layer.gate.T) * (y @ layer.up.T)"
KEPT = "torch.cat([cache[number][{0}], {1}], dim=2)"
WRONG_DECODERS = [
    ([("start, start + ids.shape[1]", "0, ids.shape[1]")], "the positions start at 0 in every call"),
    ([(KEPT.format(0, "k") + "  # (B, G, T, D)", "torch.cat([k, cache[number][0]], dim=2)"),
      (KEPT.format(1, "v"), "torch.cat([v, cache[number][1]], dim=2)")], "stand behind the new ones"),
    ([("cache[number]", "cache[0]")], "every layer gets the cache of the first one"),
    ([("q = rotate(q, positions, theta=weights.theta)", "pass"),
      ("k = rotate(k, positions, theta=weights.theta)", "pass")],
     "nothing is rotated"),
    ([("k = rotate(k, positions, theta=weights.theta)", "pass")], "only q is rotated"),
    ([("        if cache is not None:",
       "        v = rotate(v, positions, theta=weights.theta)\n        if cache is not None:")],
     "v is rotated as well"),
    ([("x = x + merge_heads", "x = merge_heads")], "the attention replaces x"),
    ([("x = x + (torch", "x = (torch")], "the MLP replaces x"),
    ([("layer.norm_1", "layer.norm_9"), ("layer.norm_2", "layer.norm_1"), ("layer.norm_9", "layer.norm_2")],
     "have changed places"),
    ([("y = rms_norm(x, layer.norm_1, eps=weights.eps)", "y = x")], "the norm before the attention is missing"),
    ([("y = rms_norm(x, layer.norm_2, eps=weights.eps)", "y = x")], "the norm before the MLP is missing"),
    ([("rms_norm(x, weights.norm, eps=weights.eps) @", "x @")], "the last norm is missing"),
    ([("layer.gate", "layer.u"), ("layer.up", "layer.gate"), ("layer.u.", "layer.up.")], "silu is applied to `up`"),
    ([("torch.nn.functional.silu(y @ layer.gate.T)", "(y @ layer.gate.T)")], "the silu is missing"),
    ([("torch.nn.functional.silu", "torch.nn.functional.gelu")], "that is gelu"),
    ([("torch.nn.functional.silu", "torch.relu")], "that is relu"),
    ([("torch.nn.functional.silu", "torch.sigmoid")], "that is the sigmoid alone"),
    ([("weights.head.T", "weights.embedding.T")], "the embedding serves as head"),
    ([("rms_norm(x, weights.norm, eps=weights.eps) @", "rms_norm(x[:, -1:], weights.norm, eps=weights.eps) @")],
     "only the last token has logits"),
    ([("grown.append((k, v))", "grown.append((k[:, :, -ids.shape[1] :], v[:, :, -ids.shape[1] :]))")],
     "the cache holds only the new k"),
    ([("        if cache is not None:",
       "        k, v = (z.repeat_interleave(q.shape[1] // z.shape[1], 1) for z in (k, v))\n"
       "        if cache is not None:")], "keep the"),
    ([(", grown\n", "\n"), ("weights.head.T, grown", "weights.head.T")], "the pair (logits, cache)"),
    ([("grown.append((k, v))", "grown.append((k.transpose(1, 2), v.transpose(1, 2)))")], "(B, G, T, D)"),
    ([("return rms_norm", "grown = grown[:1]\n    return rms_norm")], "one pair (k, v) for each of the"),
    ([("grown.append((k, v))", "grown.append(k)")], "a pair (k, v) of tensors"),
    ([("x = x + merge_heads(attention(q, k, v)) @ layer.wo.T", "x = x + merge_heads(attention(q, k, v) @ layer.wo.T)")],
     "forward() raised RuntimeError"),
    ([("    start = 0", "    weights.norm.mul_(2.0)\n    start = 0")], "wrong already without a cache"),
    ([("eps=weights.eps", "eps=1e-6")], "wrong already without a cache"),
    ([("ids.shape[1], device=ids.device)", "ids.shape[1])")], "would stop on a GPU"),
    ([("        grown.append((k, v))", "        grown.append((k, v))\n        if cache is not None:\n"
       "            cache[number] = (k, v)")], "`forward` changes the cache that it is given"),
    ([("        grown.append((k, v))", "        grown.append((k, v))\n        if cache is not None:\n"
       "            cache[number][1].zero_()")], "`forward` changes the cache that it is given"),
    ([("    start = 0", "    cache = cache and kept['cache']\n    start = 0"),
      ("    return rms", "    kept['cache'] = grown\n    return rms"),
      ("def forward", "kept = {}\n\n\ndef forward")], "once another text was read in between"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "phrase"), WRONG_DECODERS, ids=[phrase for _, phrase in WRONG_DECODERS])
def test_wrong_decoders_have_their_own_sentence(changes, phrase):
    source = find_reference("03.3")
    for old, new in changes:
        source = source.replace(old, new)
    assert source != find_reference("03.3")
    expect_failure(judge_source("03.3", source), phrase)


def test_a_cache_that_is_ignored_is_named():
    cut = re.sub(r"        if cache is not None:\n(            .*\n)+", "        old = cache\n", find_reference("03.3"))
    source = cut.replace("grown.append((k, v))", """grown.append((k, v) if old is None else
            (torch.cat([old[number][0], k], dim=2), torch.cat([old[number][1], v], dim=2)))""")  # fmt: skip
    expect_failure(judge_source("03.3", source), "the cache is not used")


def test_every_named_mistake_of_the_decoder_is_no_right_answer():
    for name in DECODER_MISTAKES:
        agrees = []
        for plan in list_cases():
            answers, cache, done = [], None, 0
            for cut in plan.cuts:
                logits, cache = run_decoder(plan.weights, plan.ids[:, done : done + cut], cache)
                answers, done = [*answers, logits], done + cut
            assert _agrees(answers, plan)
            agrees.append(_agrees(answers, plan, change=name))
        assert not all(agrees), name


HOARDER = """
seen = {{}}


{solution}


def whole(weights, ids, cache=None):
    before = torch.zeros(len(ids), 0, dtype=torch.long) if cache is None else seen["ids"]
    seen["ids"] = torch.cat([before, ids], dim=1)
    logits, grown = forward_once(weights, seen["ids"])
    return logits[:, before.shape[1] :], grown


forward = whole
"""


def test_a_cache_for_show_while_everything_is_computed_again_is_found_by_its_flops():
    solution = find_reference("03.3").replace("def forward(", "def forward_once(")
    expect_failure(judge_source("03.3", HOARDER.format(solution=solution)), "times the FLOPs that it needs")


@pytest.mark.parametrize("exercise", ANSWERS)
def test_a_loop_without_end_is_waited_for_once(monkeypatch, exercise):
    monkeypatch.setattr(_deadline, "LIMIT_S", 0.5)
    names = ANSWERS[exercise]
    source = "\n".join(f"def {name}(*args, **kwargs):\n    while True: pass\n" for name in names)
    start_s = time.thread_time()
    expect_failure(judge_source(exercise, source), "has not returned after 0.5 s of computing")
    assert time.thread_time() - start_s < 1.5 * 0.5 + 0.4


def test_a_decoder_made_of_transformers_or_of_the_checks_own_code_is_refused():
    pytest.importorskip("transformers")
    source = """
def forward(weights, ids, cache=None):
    from labkit.checks import _llama
    return _llama.run_decoder(weights, ids, cache)
"""
    expect_failure(judge_source("03.3", source), "the check's own code")
    source = """
def forward(weights, ids, cache=None):
    from transformers import LlamaConfig, LlamaForCausalLM
    rows, d = weights.embedding.shape
    layer = weights.layers[0]
    D = weights.head_dim
    config = LlamaConfig(vocab_size=rows, hidden_size=d, intermediate_size=len(layer.gate), head_dim=D,
        num_hidden_layers=len(weights.layers), num_attention_heads=len(layer.wq) // D,
        num_key_value_heads=len(layer.wk) // D, rms_norm_eps=weights.eps)
    return LlamaForCausalLM(config)(ids).logits, []
"""
    expect_failure(judge_source("03.3", source), "Transformers is what your code is compared with")


def test_a_cache_of_plain_keys_that_are_rotated_when_they_are_read_is_right_as_well():
    changes = [
        ("        k = rotate(k, positions, theta=weights.theta)  # (B, G, S, D)\n", ""),
        ("attention(q, k, v)",
         "attention(q, rotate(k, torch.arange(k.shape[2], device=ids.device), theta=weights.theta), v)"),
    ]  # fmt: skip
    outcome = judge_source("03.3", change("03.3", *changes))
    assert outcome.status == "passed", outcome.sentence


def test_the_pass_quotes_the_distance_to_transformers():
    outcome = judge_source("03.3", find_reference("03.3"))
    assert outcome.measurement["logit_distance"] < 1e-5
    assert f"{outcome.measurement['logit_distance']:.1e}" in outcome.sentence


# 03.4

WRONG_COUNTS = [
    ([("flops = 2 * rows * num_weights + 2 * 2 *", "flops = rows * num_weights + 2 *")],
     "flops: a multiply-add is two"),
    ([("2 * d * groups * width", "2 * d * heads * width")], "flops: k and v have G heads"),
    ([("d, width, num_layers = config[\"hidden_size\"], config[\"head_dim\"]",
       "d, width, num_layers = config[\"hidden_size\"], config[\"hidden_size\"] // config[\"num_attention_heads\"]")],
     "flops: the head dim is taken for d / H"),
    ([("3 * d * config", "2 * d * config")], "flops: the MLP has three matrices"),
    ([("+ d * config[\"vocab_size\"]", "")], "flops: the head is missing"),
    ([(" + 2 * 2 * rows * num_layers * heads * width * num_all", "")], "flops: the attention itself is missing"),
    ([("+ 2 * 2 * rows", "+ 2 * rows")], "flops: the attention has two products"),
    ([("num_layers * heads * width * num_all", "num_layers * heads * width * new_tokens")], "over the new tokens only"),
    ([("num_layers * heads * width * num_all", "num_layers * heads * width * cached_tokens")],
     "over the cached tokens only"),
    ([("num_layers * heads * width * num_all", "num_layers * groups * width * num_all")], "grouping saves bytes"),
    ([("flops = 2 * rows * num_weights",
       "flops = 2 * rows * num_layers * layer + 2 * batch * d * config['vocab_size']")],
     "flops: the head is counted for one token"),
    ([("rows, num_all = batch * new_tokens", "rows, num_all = new_tokens")], "flops: the batch is forgotten"),
    ([("rows, num_all = batch * new_tokens", "rows, num_all = batch")], "flops: that is one new token"),
    ([("rows, num_all = batch * new_tokens", "rows, num_all = batch * (new_tokens + cached_tokens)")],
     "flops: every token so far is computed"),
    ([("+ 2 * 2 * rows", "+ 2 * rows")], "two products"),
    ([("num_weights = num_layers * layer + d * config[\"vocab_size\"]",
       "num_weights = num_layers * (layer + d * config[\"vocab_size\"])")], "the head is counted once per layer"),
    ([("return flops, num_weights *", "return flops, batch * num_weights *")], "weight_bytes: the batch multiplies it"),
    ([("return flops, num_weights *", "return flops, new_tokens * num_weights *")],
     "weight_bytes: the tokens multiply it"),
    ([("return flops, num_weights * bytes_per_value", "return flops, num_weights")], "that is the number of weights"),
    ([("return flops, num_weights * bytes_per_value", "return flops, num_weights * 4")], "bytes_per_value is not used"),
    ([("return flops, num_weights *", "return flops, (num_weights + d * config['vocab_size']) *")],
     "is not read whole"),
    ([("kv_bytes = 2 * batch", "kv_bytes = batch")], "kv_bytes: keys AND values"),
    ([("num_layers * groups * width * num_all", "num_layers * heads * width * num_all")],
     "kv_bytes: k and v are cached"),
    ([("kv_bytes = 2 * batch *", "kv_bytes = 2 *")], "kv_bytes: the batch is forgotten"),
    ([("groups * width * num_all", "groups * width * new_tokens")], "kv_bytes: only the new tokens"),
    ([("groups * width * num_all", "groups * width * cached_tokens")], "kv_bytes: only the cached tokens"),
    ([("batch * num_layers * groups", "batch * groups")], "kv_bytes: one layer only"),
    ([("groups * width * num_all * bytes_per_value", "groups * width * num_all")],
     "kv_bytes: that is the number of values"),
    ([("return flops, num_weights * bytes_per_value, kv_bytes", "return flops, kv_bytes")],
     "three numbers are asked for"),
    ([("num_weights * bytes_per_value, kv_bytes", "num_weights * bytes_per_value, None")], "`kv_bytes` is None, and"),
    ([("return flops,", "yield from (flops,"), ("num_weights * bytes_per_value, kv_bytes",
       "num_weights * bytes_per_value, kv_bytes)")], "gives its answer by a generator"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "phrase"), WRONG_COUNTS, ids=[phrase for _, phrase in WRONG_COUNTS])
def test_wrong_counts_have_their_own_sentence(changes, phrase):
    expect_failure(judge_source("03.4", change("03.4", *changes)), phrase)


def test_the_library_and_the_counter_are_refused_as_answers():
    source = """
from labkit import roofline


def count_step(config, *, new_tokens, cached_tokens, batch=1, bytes_per_value=4):
    work = roofline.estimate_prefill(config | {"model_type": "llama"}, prompt_tokens=new_tokens, batch=batch,
                                     num_logits=new_tokens, bytes_per_value=bytes_per_value)
    return work.flops, work.weight_bytes, work.kv_bytes
"""
    expect_failure(judge_source("03.4", source), "labkit.roofline is the answer itself")


def test_the_count_by_hand_for_a_model_that_fits_on_a_napkin():
    config = {
        "hidden_size": 4, "intermediate_size": 8, "vocab_size": 10, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 3,
    }  # fmt: skip
    # Weights: q 24, k 12, v 12, o 24, MLP 96, head 40: 208. Attention of 1 token over 5: 2 · 2 · 2 heads · 3 · 5.
    assert count_right(config, new_tokens=1, cached_tokens=4) == (2 * 208 + 120, 832, 2 * 3 * 5 * 4)


def test_the_flop_counter_and_the_count_agree_on_every_random_configuration():
    seen = list(count_by_flops())
    assert len(seen) == 3
    assert all(count_right(config, **options) == right for config, options, right in seen)


def test_every_wrong_count_differs_from_the_right_one_somewhere():
    cases = [(config, options) for config, options, _ in count_by_flops()]
    cases += list(lab03.BYTE_CASES)
    for sentence, place, wrong in COST_MISTAKES:
        assert any(wrong(c, **o)[place] != count_right(c, **o)[place] for c, o in cases), sentence


# 03.5

DRAW = "    places = torch.multinomial(ranked, 1, generator=generator)  # (B, 1)\n"
WRONG_SAMPLERS = [
    ([("logits / temperature", "logits")], "the temperature is ignored"),
    ([("logits / temperature", "logits * temperature")], "multiplied by the temperature"),
    ([("    if top_k:\n        ranked[:, top_k:] = 0\n", "")], "top-k is ignored"),
    ([("    ranked[ranked.cumsum(dim=1) - ranked >= top_p] = 0\n", "")], "top-p is ignored"),
    ([("ranked.cumsum(dim=1) - ranked >= top_p] = 0", "(ranked.cumsum(dim=1) > top_p) & "
       "(torch.arange(ranked.shape[1]) > 0) & (top_p < 1)] = 0")], "the token that reaches top-p is cut off"),
    ([("    ranked = ranked / ranked.sum(dim=1, keepdim=True)\n", "")], "before top-k"),
    ([("    if top_k:\n        ranked[:, top_k:] = 0\n    ranked = ranked / ranked.sum(dim=1, keepdim=True)\n", ""),
      (DRAW, "    if top_k:\n        ranked[:, top_k:] = 0\n" + DRAW)], "top-p comes before top-k, or"),
    ([("    if top_k:\n        ranked[:, top_k:] = 0\n", "    ranked[:, max(1, top_k):] = 0\n")],
     "never came|likeliest"),
    ([("        ranked[:, top_k:] = 0", "        ranked[1:, top_k:] = 0")], "the first and the last too"),
    ([("- ranked >= top_p", "- ranked > top_p")], "two tokens reach it, and 3 came"),
    ([("    return order.gather(1, places)[:, 0]", "    return places[:, 0]")], "those are ranks, not token ids"),
    ([("    return order.gather(1, places)[:, 0]", "    return order.gather(1, places)")], "one token id for each row"),
    ([("order.gather(1, places)[:, 0]", "order.gather(1, places).squeeze()"),
      ("logits.argmax(dim=1)", "logits.argmax(dim=1).squeeze()")], r"for one row the shape is \(\), and"),
    ([("    return order.gather(1, places)[:, 0]", "    return ranked[:, 0]")], "token ids are whole numbers"),
    ([("    if temperature == 0:\n        return logits.argmax(dim=1)\n", "")], "before anything is divided by 0"),
    ([("    if temperature == 0:", "    if temperature <= 1:")], "never came|likeliest"),
    ([("generator=generator", "generator=None")], "the same seed gives other tokens"),
    ([("    if temperature == 0:", "    generator = torch.Generator().manual_seed(0)\n    if temperature == 0:")],
     "two different seeds give the same tokens"),
    ([("torch.softmax(logits / temperature, dim=1)", "((z := (logits / temperature).exp()) / z.sum(1, keepdim=True))")],
     "overflow|raised"),
    ([("    if temperature == 0:", "    logits /= temperature or 1\n    temperature = min(temperature, 1.0) and 1.0\n"
       "    if temperature == 0:")], "changes its argument number 1"),
    ([("    if top_k:", "    ranked = torch.ones_like(ranked)\n    if top_k:")], "came|equally likely"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "phrase"), WRONG_SAMPLERS, ids=[phrase for _, phrase in WRONG_SAMPLERS])
def test_wrong_samplers_have_their_own_sentence(changes, phrase):
    outcome = judge_source("03.5", change("03.5", *changes))
    assert outcome.status == "failed", outcome
    assert re.search(phrase, outcome.sentence), outcome.sentence


ORDERS = """
def cut_k(z, k):
    if not k:
        return z
    return z.masked_fill(z < z.topk(min(k, z.shape[1])).values[:, -1:], -torch.inf)


def cut_p(z, p):
    chances, order = z.softmax(1).sort(dim=1, descending=True)
    cut = (chances.cumsum(1) - chances >= p).scatter(1, order, chances.cumsum(1) - chances >= p)
    return z.masked_fill(cut, -torch.inf)


def sample(logits, *, temperature=1.0, top_k=0, top_p=1.0, generator=None):
    if temperature == 0:
        return logits.argmax(1)
    z = logits
    {steps}
    return torch.multinomial(z.softmax(1), 1, generator=generator)[:, 0]
"""
STEPS = {"t": "z = z / temperature", "k": "z = cut_k(z, top_k)", "p": "z = cut_p(z, top_p)"}


def run_order(order):
    return judge_source("03.5", ORDERS.format(steps="; ".join(STEPS[step] for step in order)))


def test_the_order_of_transformers_passes_written_in_another_way():
    assert run_order("tkp").status == "passed"
    assert run_order("ktp").status == "passed", "top-k looks at ranks: the temperature does not change those"


@pytest.mark.parametrize(
    ("order", "phrase"),
    [
        ("tpk", "top-p comes before top-k, or"),
        ("kpt", "the temperature comes last"),
        ("pkt", "the temperature comes last"),
        ("ptk", "between|comes last"),
    ],
)
def test_every_other_order_is_named(order, phrase):
    outcome = run_order(order)
    assert outcome.status == "failed"
    assert re.search(phrase, outcome.sentence), outcome.sentence


def test_transformers_own_warpers_draw_from_the_exact_chances_and_are_refused_as_an_answer():
    transformers = pytest.importorskip("transformers")
    logits = torch.tensor([_sampling._LOGITS])
    for options in _sampling._SETTINGS:
        z = transformers.TemperatureLogitsWarper(options.get("temperature", 1.0))(None, logits)
        if options.get("top_k"):
            z = transformers.TopKLogitsWarper(options["top_k"])(None, z)
        if options.get("top_p"):
            z = transformers.TopPLogitsWarper(options["top_p"])(None, z)
        right = _sampling.estimate_chances(logits[0].tolist(), **options)
        assert z.softmax(1)[0].tolist() == pytest.approx(right, abs=1e-6), options
    source = """
def sample(logits, *, temperature=1.0, top_k=0, top_p=1.0, generator=None):
    from transformers import TopPLogitsWarper
    z = TopPLogitsWarper(top_p)(None, logits / temperature)
    return torch.multinomial(z.softmax(1), 1, generator=generator)[:, 0]
"""
    expect_failure(judge_source("03.5", source), "Transformers is what your code is compared with")


def test_the_p_value_is_scipys_and_an_impossible_token_gives_0():
    scipy_stats = pytest.importorskip("scipy.stats")
    counts, chances = [480, 310, 210], [0.5, 0.3, 0.2]
    right = scipy_stats.chisquare(counts, [1000 * x for x in chances]).pvalue
    assert _sampling.estimate_p_value(counts, chances) == pytest.approx(right, rel=1e-6)
    assert _sampling.estimate_p_value([480, 519, 1], [0.5, 0.5, 0.0]) == 0.0
    assert _sampling.estimate_p_value([1000, 0], [1.0, 0.0]) == 1.0


@pytest.mark.parametrize(("sentence", "wrong"), _sampling._MISTAKES)
def test_every_named_distribution_is_far_from_the_right_one_after_so_many_draws(sentence, wrong):
    """What a wrong sampler draws on average: the limit is one in a million, and luck moves it by less than the rest."""
    num, p_values = _sampling._NUM_DRAWS // 2, []
    for number, options in enumerate(_sampling._SETTINGS):
        logits = torch.tensor(_sampling._LOGITS).roll(number).tolist()
        seen = [round(num * chance) for chance in wrong(logits, **options)]
        p_values.append(_sampling.estimate_p_value(seen, _sampling.estimate_chances(logits, **options)))
    assert min(p_values) < 1e-60, sentence


ROW_BY_ROW = """
def draw_one(logits, temperature, top_k, top_p, generator):
    ranked, order = torch.softmax(logits / temperature, 0).sort(descending=True)
    if top_k:
        ranked, order = ranked[:top_k], order[:top_k]
    ranked = ranked / ranked.sum()
    is_kept = ranked.cumsum(0) - ranked < top_p
    return order[is_kept][torch.multinomial(ranked[is_kept], 1, generator=generator)]


def sample(logits, *, temperature=1.0, top_k=0, top_p=1.0, generator=None):
    if temperature == 0:
        return logits.argmax(1)
    return torch.cat([draw_one(row, temperature, top_k, top_p, generator) for row in logits])
"""


def test_a_sampler_that_loops_over_the_rows_passes_in_a_few_seconds():
    start_s = time.thread_time()
    expect_pass(judge_source("03.5", ROW_BY_ROW))
    assert time.thread_time() - start_s < 20  # 4 s here; ten times as many draws took 40 s


def test_a_right_sampler_is_rarely_turned_away():
    """The p-values of right draws are spread evenly: far from the limit of one in a million."""
    chances = _sampling.estimate_chances(_sampling._LOGITS, temperature=1.7, top_k=6, top_p=0.75)
    draw = torch.Generator().manual_seed(9)
    p_values = []
    for _ in range(200):
        ids = torch.multinomial(torch.tensor(chances), 2000, replacement=True, generator=draw)
        p_values.append(_sampling.estimate_p_value(ids.bincount(minlength=12).tolist(), chances))
    assert min(p_values) > 1e-4
    assert 0.4 < sum(p_values) / len(p_values) < 0.6


# The guard


def test_the_watch_leaves_the_profiler_of_others_alone():
    import sys

    from labkit.checks.tensors import probe_calls

    seen = []

    def other(*step):
        seen.append(step)

    sys.setprofile(other)
    try:
        calls, frames = probe_calls(lambda: torch.relu(torch.zeros(2)) and None)
        assert sys.getprofile() is other
    finally:
        sys.setprofile(None)
    assert "relu" in calls
    assert any(name.endswith(".<lambda>") for name in frames)


def test_every_quiz_question_of_the_lab_is_about_the_lab():
    content = json.loads((Path(__file__).resolve().parents[1] / "data" / "quiz" / "03.json").read_text())
    assert [one["level"] for one in content["questions"]] == ["beginner"] * 2 + ["intermediate"] * 2 + ["advanced"]
    assert content["questions"][2]["answer"] == 2 * 32 * 8 * 128 * 2
