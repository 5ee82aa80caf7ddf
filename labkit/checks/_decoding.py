"""Is the decoder of lab 03 right? Chunk by chunk against a second decoder, its cache, its cost, then Transformers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from labkit.checks._llama import make_weights, run_decoder
from labkit.checks.cases import fail
from labkit.checks.decoder import Weights, load_weights
from labkit.checks.learner import shorten
from labkit.checks.tensors import TOLERANCE, is_close
from labkit.models.description import find_models_folder

__all__ = ["expect_decoder", "expect_no_memory", "expect_saving", "expect_transformers", "list_cases"]

_TEXT = "def read_lines(path):\n    with open(path) as file:\n        return [line.strip() for line in file if line]\n"
_SHARE = 1.25  # of the FLOPs that a cached step needs; recomputing the past costs several times as much

_MISTAKES = {
    "positions restart": "the positions start at 0 in every call: the new tokens stand behind those in the cache.",
    "cache ignored": "the cache is not used: put the kept keys and values in front of the new ones.",
    "cache behind": "the kept keys and values stand behind the new ones: they are older, so they come first.",
    "first cache": "every layer gets the cache of the first one: layer i has the pair cache[i].",
    "nothing rotated": "nothing is rotated: q and k of each layer go through `rotate`.",
    "only q rotated": "only q is rotated: q and k are, so that their product depends on the distance.",
    "v rotated": "v is rotated as well: only q and k are.",
    "no first residual": "the attention replaces x: add its output to x.",
    "no second residual": "the MLP replaces x: add its output to x.",
    "parallel": "the MLP reads x as it was before the attention: it reads the sum.",
    "norms swapped": "the two norms of a layer have changed places.",
    "no first norm": "the norm before the attention is missing.",
    "no second norm": "the norm before the MLP is missing.",
    "no last norm": "the last norm is missing: `weights.norm`, before the head.",
    "gate and up swapped": "silu is applied to `up`: it is applied to `gate`.",
    "no silu": "the silu is missing: silu(gate) · up.",
    "relu": "that is relu: silu(z) = z · sigmoid(z).",
    "gelu": "that is gelu: silu(z) = z · sigmoid(z).",
    "sigmoid": "that is the sigmoid alone: silu(z) = z · sigmoid(z).",
    "embedding as head": "the embedding serves as head: use `weights.head`; only tied models have the same.",
    "last only": "only the last token has logits: give them for every new token.",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """A decoder, token ids (B, S), and into which chunks they are cut."""

    weights: Weights
    ids: Any
    cuts: tuple[int, ...]


def list_cases() -> list[Plan]:
    """Return three small decoders of unlike shapes: H·D is not d, G is not H, lengths are odd, batches not 1."""
    import torch

    names = ("num_layers", "d", "heads", "groups", "head_dim", "width", "vocabulary")
    shapes = (
        ((2, 24, 6, 2, 10, 40, 50), 2, (7,)),
        ((3, 20, 4, 1, 8, 33, 31), 3, (4, 1, 1, 3)),
        ((2, 16, 4, 4, 6, 24, 29), 1, (1, 1, 1, 1, 1)),
    )
    plans = []
    for number, (sizes, batch, cuts) in enumerate(shapes):
        shape = dict(zip(names, sizes, strict=True))
        other = {"eps": 1e-2, "theta": 500.0} if number == 2 else {}
        weights = make_weights(seed=30 + number, is_tied=number == 1, **shape, **other)
        draw = torch.Generator().manual_seed(40 + number)
        plans.append(Plan(weights, torch.randint(shape["vocabulary"], (batch, sum(cuts)), generator=draw), cuts))
    return plans


def expect_decoder(forward: Callable) -> None:
    """Fail unless the logits of every chunk, behind the learner's own cache, are those of the whole sequence."""
    plans = list_cases()
    answers = [_run_chunks(forward, plan) for plan in plans]
    plans = list_cases()  # made anew: an answer that changes the weights must not change what is right
    if all(_agrees(got, plan) for got, plan in zip(answers, plans, strict=True)):
        return
    for change, sentence in _MISTAKES.items():
        if all(_agrees(got, plan, change=change) for got, plan in zip(answers, plans, strict=True)):
            fail(sentence)
    for got, plan in zip(answers, plans, strict=True):
        _explain(got, plan)


def _run_chunks(forward: Callable, plan: Plan) -> list:
    cache, logits, done = None, [], 0
    for cut in plan.cuts:
        chunk = plan.ids[:, done : done + cut]
        result = forward(plan.weights, chunk) if cache is None else forward(plan.weights, chunk, cache)
        one, cache = _expect_pair(result)
        done += cut
        logits.append(one)
        _expect_cache(cache, plan.weights, batch=len(plan.ids), num_all=done, num_new=cut)
    return logits


def _expect_pair(result) -> tuple:
    import torch

    if result is None:
        fail("nothing came back: is a `return` missing?")
    if not isinstance(result, tuple | list) or len(result) != 2 or not isinstance(result[0], torch.Tensor):
        fail(f"the pair (logits, cache) is asked for, and this is {shorten(repr(result), 60)}.")
    return result[0], result[1]


def _expect_cache(cache, weights: Weights, *, batch: int, num_all: int, num_new: int) -> None:
    import torch

    groups = weights.layers[0].wk.shape[0] // weights.head_dim
    heads = weights.layers[0].wq.shape[0] // weights.head_dim
    right = (batch, groups, num_all, weights.head_dim)
    if not isinstance(cache, tuple | list) or len(cache) != len(weights.layers):
        fail(f"the cache is a list with one pair (k, v) for each of the {len(weights.layers)} layers.")
    for pair in cache:
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(isinstance(x, torch.Tensor) for x in pair):
            fail("each layer's entry in the cache is a pair (k, v) of tensors.")
        for name, one in zip("kv", pair, strict=True):
            shape = tuple(one.shape)
            if shape == right:
                continue
            if shape == (batch, heads, num_all, weights.head_dim):
                fail(f"{name} is cached for all {heads} heads: keep the {groups} KV heads, that is the saving.")
            if shape == (batch, groups, num_new, weights.head_dim):
                fail(f"the cache holds only the new {name}: what was in it before has to stay, in front.")
            fail(f"{name} in the cache has the shape {shape}, and (B, G, T, D) = {right} is asked for.")


def _agrees(got: list, plan: Plan, *, change: str = "") -> bool:
    cache, done = None, 0
    for one, cut in zip(got, plan.cuts, strict=True):
        right, cache = run_decoder(plan.weights, plan.ids[:, done : done + cut], cache, change=change)
        done += cut
        if not is_close(one, right):
            return False
    return True


def _explain(got: list, plan: Plan) -> None:
    cache, done = None, 0
    for number, (one, cut) in enumerate(zip(got, plan.cuts, strict=True)):
        right, cache = run_decoder(plan.weights, plan.ids[:, done : done + cut], cache)
        where = f"{plan.weights}, {len(plan.ids)} rows, {cut} new tokens behind {done}"
        done += cut
        if one.shape != right.shape:
            fail(f"{where}: the logits have the shape {tuple(one.shape)}, and (B, S, V) is {tuple(right.shape)}.")
        if not is_close(one, right):
            what = "right without a cache, wrong with it" if number else "wrong already without a cache"
            fail(f"{where}: the logits differ by up to {float((one - right).abs().max()):.2g}; {what}. Go through the "
                 "steps of the card one by one.")  # fmt: skip


def expect_saving(forward: Callable) -> None:
    """Fail when one token behind a cache is paid for like the whole sequence: then the cache saves nothing."""
    from torch.utils.flop_counter import FlopCounterMode

    plan = list_cases()[1]
    _, cache = _expect_pair(forward(plan.weights, plan.ids))
    counted = []
    for run in (forward, run_decoder):
        with FlopCounterMode(display=False) as counter:
            run(plan.weights, plan.ids[:, -1:], cache)
        counted.append(counter.get_total_flops())
    if counted[0] > _SHARE * counted[1]:
        times = counted[0] / counted[1]
        fail(f"one token behind a cache costs {times:.1f} times the FLOPs that it needs: compute the new token only.")


def expect_no_memory(forward: Callable) -> None:
    """Fail when a call leaves traces: a changed cache, or something of its own that the next call sees."""
    for plan in list_cases():
        before, new = plan.ids[:, :-2], plan.ids[:, -2:]
        _, cache = _expect_pair(forward(plan.weights, before))
        kept = [[one.clone() for one in pair] for pair in cache]
        first, _ = _expect_pair(forward(plan.weights, new, cache))
        if not _is_same_cache(cache, kept):
            fail(
                "`forward` changes the cache that it is given: the caller still needs it, two texts may begin alike. "
                "Make new tensors with `torch.cat`, and put them into a new list."
            )
        forward(plan.weights, plan.ids.flip(0, 1))  # another text in between
        again, _ = _expect_pair(forward(plan.weights, new, cache))
        if not is_close(again, first):
            fail(
                "the same tokens behind the same cache give other logits once another text was read in between: all "
                "that `forward` knows of a text has to come from `cache`, not from something that it keeps itself."
            )


def _is_same_cache(cache, kept) -> bool:
    import torch

    pairs = [zip(pair, old, strict=True) for pair, old in zip(cache, kept, strict=True)]
    return all(torch.equal(one, old) for pair in pairs for one, old in pair)


def expect_transformers(forward: Callable) -> float:
    """Return the largest distance to Transformers' logits, shipped model, over the largest logit; fail over 1e-5."""
    import torch
    from tokenizers import Tokenizer
    from transformers import LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = find_models_folder() / "python-11m"
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval()
    ids = torch.tensor([Tokenizer.from_file(str(folder / "tokenizer.json")).encode(_TEXT).ids])
    with torch.inference_mode():
        right = model(ids).logits
    weights, num = load_weights(model), ids.shape[1]
    distances = []
    for cuts in ((num,), (num - 6, 1, 1, 4)):
        got = torch.cat(_run_chunks(forward, Plan(weights, ids, cuts)), dim=1)
        distances.append(float((got - right).abs().max() / right.abs().max()))
    if max(distances) > TOLERANCE:
        fail(
            f"on the shipped model the logits differ from Transformers' by {max(distances):.1e} of the largest one "
            f"({'with' if distances[0] <= TOLERANCE else 'without'} a cache): rounding makes less than {TOLERANCE:g}."
        )
    return max(distances)
