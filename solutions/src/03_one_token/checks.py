"""The checks of lab 03: norm and rotation, grouped attention, the decoder with its cache, its cost, a sampler."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from lab03.draws import (
    LOGITS,
    MIN_P,
    NUM_DRAWS,
    count_draws,
    estimate_fit,
    estimate_p_value,
    estimate_probabilities,
    expect_ids,
)
from lab03.second_decoder import attend, count_by_torch, make_config, make_weights, normalize, run_decoder, turn

from labkit.checks.cases import Case, expect_answer, expect_cases, expect_function, expect_no_generator, fail, passed
from labkit.checks.learner import LearnerFunction, LearnerRaised, NotAttempted, shorten, tidy
from labkit.checks.mistakes import find_mistake
from labkit.checks.tensors import (
    NAMING_TOLERANCE,
    TOLERANCE,
    describe_difference,
    expect_by_hand,
    expect_device,
    expect_tensors,
    is_close,
)
from labkit.models.decoder import Weights, load_weights
from labkit.models.description import find_models_folder
from labkit.views import Outcome


def _draw(seed: int, *shape: int):
    import torch

    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# 03.1


def check_1(answer) -> Outcome:
    """RMSNorm and the rotation, on shapes where no two axes are equal."""
    import torch

    is_pair = isinstance(answer, tuple | list) and len(answer) == 2
    if not is_pair or not all(isinstance(one, LearnerFunction) for one in answer):
        fail('both functions are asked for, without brackets: check("03.1", (rms_norm, rotate)).')
    rms_norm, rotate = answer
    rows = [
        ((_draw(1, 2, 3, 8), _draw(2, 8)), {"eps": 1e-5}),
        ((0.01 * _draw(3, 3, 5, 7) + 0.02, _draw(4, 7)), {"eps": 1e-3}),
        ((5 * _draw(5, 4, 6) - 3, _draw(6, 6)), {"eps": 0.5}),
        ((torch.zeros(1, 2, 4), _draw(7, 4)), {"eps": 1e-6}),
    ]
    _expect_piece(rms_norm, "rms_norm", normalize, rows)
    tokens = [
        ((_draw(8, 2, 3, 5, 8), torch.arange(5)), {"theta": 10000.0}),
        ((_draw(9, 1, 2, 4, 6), torch.arange(7, 11)), {"theta": 500.0}),
        ((_draw(10, 3, 1, 1, 10), torch.tensor([37])), {"theta": 100.0}),
        ((_draw(11, 1, 1, 3, 2), torch.tensor([2, 9, 4])), {"theta": 10000.0}),
    ]
    try:
        _expect_piece(rotate, "rotate", turn, tokens)
    except NotAttempted:
        fail("`rms_norm` is right. `rotate` is still to do.")
    return passed(
        "a norm that keeps the mean, and a rotation that lets attention see only the distance between two tokens."
    )


def _expect_piece(function: LearnerFunction, name: str, right: Callable, calls: Sequence[tuple[tuple, dict]]) -> None:
    """Fail unless a function of tensors is right, written by hand, and fit for a GPU."""
    expect_function(function, name)
    args, kwargs = calls[0]
    expect_by_hand(function, *args, **kwargs)
    expect_tensors(function, [Case(right(*args, **kwargs), args, kwargs) for args, kwargs in calls])
    expect_device(function, *args, **kwargs)


# 03.2: B, H, G, S, T, D of each case: no two axes are equal, then one new token, one group, as many groups as heads,
# and a single token without a cache.
_ATTENTIONS = ((3, 6, 2, 5, 8, 4), (2, 6, 3, 5, 5, 8), (1, 4, 1, 1, 7, 6), (2, 4, 4, 6, 6, 2), (1, 2, 1, 1, 1, 3))


def check_2(attention) -> Outcome:
    """Grouped causal attention; sizes are chosen so that an axis or head in the wrong place shows."""
    expect_function(attention, "attention")
    calls = []
    for seed, (batch, heads, groups, num_new, num_all, head_dim) in enumerate(_ATTENTIONS, start=20):
        keys, values = (_draw(seed + 10 * k, batch, groups, num_all, head_dim) for k in (1, 2))
        calls.append(((_draw(seed, batch, heads, num_new, head_dim), keys, values), {}))
    _expect_piece(attention, "attention", attend, calls)
    return passed("causal, grouped, and right for a whole prompt as well as for one new token after a cache.")


# 03.3


@dataclass(frozen=True, slots=True)
class Text:
    """Token ids for a decoder.

    Attributes:
        weights: the decoder.
        ids: token ids, (B, S).
        cuts: lengths of the chunks in which they are read; their sum is S.
    """

    weights: Weights
    ids: Any
    cuts: tuple[int, ...]


_SAMPLE = (
    "def read_lines(path):\n    with open(path) as file:\n        return [line.strip() for line in file if line]\n"
)
_MAX_FLOPS = 1.25  # of what a cached step needs; computing the past again costs several times as much


def make_texts() -> list[Text]:
    """Return texts for three small decoders: H·D is not d, G is not H, lengths are odd, batches not always 1."""
    import torch

    texts = []
    for seed, (config, batch, cuts, options) in enumerate((
        (make_config(24, 40, 50, 2, 6, 2, 10), 2, (7,), {}),
        (make_config(20, 33, 31, 3, 4, 1, 8), 3, (4, 1, 1, 3), {"is_tied": True}),
        (make_config(16, 24, 29, 2, 4, 4, 6), 1, (1, 1, 1, 1, 1), {"eps": 1e-2, "theta": 500.0}),
    )):  # fmt: skip
        draw = torch.Generator().manual_seed(40 + seed)
        ids = torch.randint(config["vocab_size"], (batch, sum(cuts)), generator=draw)
        texts.append(Text(make_weights(config, seed=30 + seed, **options), ids, cuts))
    return texts


def check_3(forward) -> Outcome:
    """The decoder: random weights first, in chunks with a cache, then the shipped model against Transformers."""
    expect_function(forward, "forward")
    texts = make_texts()
    for text in texts:
        expect_by_hand(forward, text.weights, text.ids[:, : text.cuts[0]])
    _expect_logits(forward, texts)
    _expect_saving(forward, texts[1])
    _expect_no_memory(forward, texts)
    expect_device(forward, text.weights, text.ids)
    distance = _expect_transformers(forward)
    return passed(
        f"on the shipped model your logits differ from Transformers' by at most {distance:.1e} of the largest one, "
        "with and without the cache.",
        {"logit_distance": distance},
    )


def _run_chunks(forward: Callable, text: Text) -> list:
    """Return the logits of each chunk, each read with the cache that `forward` itself has made."""
    cache, logits, num_read = None, [], 0
    for cut in text.cuts:
        chunk = text.ids[:, num_read : num_read + cut]
        got, cache = _expect_pair(forward(text.weights, chunk, *([] if cache is None else [cache])))
        num_read += cut
        _expect_cache(cache, text, num_read=num_read, num_new=cut)
        logits.append(got)
    return logits


def _expect_pair(result) -> tuple:
    import torch

    if result is None:
        fail("nothing came back: is a `return` missing?")
    if not isinstance(result, tuple | list) or len(result) != 2 or not isinstance(result[0], torch.Tensor):
        fail(f"the answer is the pair (logits, cache), and this is {shorten(repr(result), 60)}.")
    return result[0], result[1]


def _expect_cache(cache, text: Text, *, num_read: int, num_new: int) -> None:
    import torch

    layers, head_dim = text.weights.layers, text.weights.head_dim
    heads, groups = (len(w) // head_dim for w in (layers[0].wq, layers[0].wk))
    if not isinstance(cache, tuple | list) or len(cache) != len(layers):
        fail(f"the cache is a list with one pair (k, v) for each of the {len(layers)} layers.")
    for pair in cache:
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(isinstance(x, torch.Tensor) for x in pair):
            fail("each layer's entry in the cache is a pair (k, v) of tensors.")
        for name, one in zip("kv", pair, strict=True):
            batch, shape = len(text.ids), tuple(one.shape)
            if shape == (batch, groups, num_read, head_dim):
                continue
            if shape == (batch, heads, num_read, head_dim):
                fail(f"{name} is cached for all {heads} heads: keep the {groups} KV heads, that is the saving.")
            if shape == (batch, groups, num_new, head_dim):
                fail(f"the cache holds only the new {name}: what was in it before has to stay in front.")
            right = (batch, groups, num_read, head_dim)
            fail(f"{name} in the cache has the shape {shape}, expected (B, G, T, D) = {right}.")


def _expect_logits(forward: LearnerFunction, texts: Sequence[Text]) -> None:
    """Fail unless the logits of every chunk, read with the learner's own cache, are those of the second decoder."""
    answers = [_run_chunks(forward, text) for text in texts]
    expected = [_run_chunks(run_decoder, text) for text in texts]
    if is_close(answers, expected):
        return

    def explains(wrong: Callable) -> bool:
        made = (_run_chunks(wrong, text) for text in texts)
        return all(is_close(a, b, tolerance=NAMING_TOLERANCE) for a, b in zip(answers, made, strict=True))

    if sentence := find_mistake(forward.exercise, forward.reference_name, explains):
        fail(sentence)
    for text, logits, right in zip(texts, answers, expected, strict=True):
        for number, (got, want) in enumerate(zip(logits, right, strict=True)):
            where = f"{text.weights}, batch of {len(text.ids)}, chunk {number + 1} of {list(text.cuts)} tokens"
            if got.shape != want.shape:
                fail(
                    f"{where}: the logits have the shape {tuple(got.shape)}, expected (B, S, V) = {tuple(want.shape)}."
                )
            if not is_close(got, want):
                what = "right without a cache, wrong with it" if number else "wrong already without a cache"
                difference = describe_difference(got, want)
                fail(
                    f"{where}: of the logits, {difference} They are {what}. Go through the steps of the card one by one."
                )


def _expect_saving(forward: Callable, text: Text) -> None:
    """Fail when one token with a cache costs as much as the whole text: then the cache saves nothing."""
    from torch.utils.flop_counter import FlopCounterMode

    _, cache = _expect_pair(forward(text.weights, text.ids))
    counted = []
    for run in (forward, run_decoder):
        with FlopCounterMode(display=False) as counter:
            run(text.weights, text.ids[:, -1:], cache)
        counted.append(counter.get_total_flops())
    if counted[0] > _MAX_FLOPS * counted[1]:
        times = counted[0] / counted[1]
        fail(f"one token with a cache costs {times:.1f} times the FLOPs that it needs: compute the new token only.")


def _expect_no_memory(forward: LearnerFunction, texts: Sequence[Text]) -> None:
    """Fail when a call leaves traces: a changed argument, or something of its own that the next call sees."""
    for text in texts:
        _, cache = _expect_pair(forward(text.weights, text.ids[:, :-2]))
        first, _ = _expect_pair(forward(text.weights, text.ids[:, -2:], cache))
        forward(text.weights, text.ids.flip(0, 1))  # another text in between
        again, _ = _expect_pair(forward(text.weights, text.ids[:, -2:], cache))
        if not is_close(again, first):
            fail(
                "the same tokens with the same cache give other logits once another text was read in between: all "
                "that `forward` knows about a text has to come from `cache`, not from something that it keeps itself."
            )
    if forward.changed:
        fail(
            "`forward` changes the cache (or the ids, or the weights) that it is given: the caller still needs it, two "
            "texts may begin alike. Make new tensors with `torch.cat`, and put them into a new list."
        )


def _expect_transformers(forward: Callable) -> float:
    """Return the largest distance to Transformers' logits, shipped model, over the largest logit; fail over 1e-5."""
    import torch
    from tokenizers import Tokenizer
    from transformers import LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = find_models_folder() / "python-11m"
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval()
    ids = torch.tensor([Tokenizer.from_file(str(folder / "tokenizer.json")).encode(_SAMPLE).ids])
    with torch.inference_mode():
        right = model(ids).logits
    weights, num = load_weights(model), ids.shape[1]
    distances = []
    for cuts in ((num,), (num - 6, 1, 1, 4)):
        got = torch.cat(_run_chunks(forward, Text(weights, ids, cuts)), dim=1)
        distances.append(float((got - right).abs().max() / right.abs().max()))
    if max(distances) > TOLERANCE:
        fail(
            f"on the shipped model the logits differ from Transformers' by {max(distances):.1e} of the largest one "
            f"({'with' if distances[0] <= TOLERANCE else 'without'} a cache): rounding makes less than {TOLERANCE:g}."
        )
    return max(distances)


# 03.4
_NUMBERS = ("flops", "weight_bytes", "kv_bytes")
_NAPKIN = make_config(4, 8, 10, 1, 2, 1, 6)
_SHIPPED = make_config(384, 1024, 4096, 6, 6, 2, 64)  # data/models/python-11m
_ODD = make_config(40, 96, 100, 3, 6, 2, 10)  # H·D is not d
# By hand. Weights of the napkin's layer: q 48, k 24, v 24, o 48, MLP 96: 240; the head has 40.
_BY_HAND = (
    # Attention of one token over 5: 2 products · 2 · 2 heads · 6 · 5 = 240.
    (_NAPKIN, {"new_tokens": 1, "cached_tokens": 4}, (2 * 280 + 240, 280 * 4, 2 * 6 * 5 * 4)),
    # Three rows of 2 tokens over 3 each: 6 · 2 · 2 · 2 · 6 · 3 = 864 in each of two layers.
    (_NAPKIN | {"num_hidden_layers": 2}, {"new_tokens": 2, "cached_tokens": 1, "batch": 3, "bytes_per_value": 2},
     (2 * 6 * 520 + 2 * 864, 520 * 2, 3 * 2 * 2 * 6 * 3 * 2)),
)  # fmt: skip
_STEPS = (
    (_SHIPPED, {"new_tokens": 1, "cached_tokens": 0}),
    (_SHIPPED, {"new_tokens": 1, "cached_tokens": 511}),
    (_SHIPPED, {"new_tokens": 512, "cached_tokens": 0, "bytes_per_value": 2}),
    (_ODD, {"new_tokens": 3, "cached_tokens": 8, "batch": 5}),
    (_ODD, {"new_tokens": 2, "cached_tokens": 5, "batch": 3, "bytes_per_value": 1}),
    (make_config(24, 30, 70, 2, 4, 4, 6), {"new_tokens": 4, "cached_tokens": 0, "batch": 2, "bytes_per_value": 2}),
    (make_config(34, 26, 22, 2, 6, 3, 12), {"new_tokens": 5, "cached_tokens": 0, "batch": 2}),
    (make_config(10, 28, 38, 3, 4, 1, 16), {"new_tokens": 1, "cached_tokens": 9}),
    (make_config(18, 14, 20, 4, 6, 2, 8), {"new_tokens": 2, "cached_tokens": 4, "batch": 3}),
)


@functools.cache
def make_steps() -> tuple[tuple[dict, dict, tuple[int, int, int]], ...]:
    """Return the steps to be counted: (config, options, the three numbers)."""
    return *_BY_HAND, *((config, options, count_by_torch(config, **options)) for config, options in _STEPS)


def check_4(count_step) -> Outcome:
    """FLOPs and bytes of one step: by hand, and by torch's flop counter; number by number."""
    expect_function(count_step, "count_step")
    expect_by_hand(count_step, _BY_HAND[0][0], **_BY_HAND[0][1])
    for place, name in enumerate(_NUMBERS):

        class Part(LearnerFunction):
            """One of the three numbers, so that a mistake in another one does not hide what is wrong here."""

            def __call__(self, *args, place=place, name=name, **kwargs):
                got = LearnerFunction.__call__(self, *args, **kwargs)
                expect_answer(got, self.call)
                if not isinstance(got, tuple | list) or len(got) != 3:
                    fail(f"the answer is three numbers, ({', '.join(_NUMBERS)}), and this is {shorten(repr(got), 60)}.")
                expect_no_generator(self)
                if got[place] is None:
                    fail(f"{self.call}: `{name}` is None, expected three numbers.")
                self.call = f"{name} of {self.call}"
                return tidy(got[place])

        cases = [Case(numbers[place], (config,), options) for config, options, numbers in make_steps()]
        expect_cases(Part(count_step.function, count_step.exercise, count_step.reference_name), cases)
    return passed(
        "exactly what torch's counter finds, for one token with a cache as well as for a whole batch of prompts."
    )


# 03.5
def check_5(sample) -> Outcome:
    """The sampler: 4,000 draws per setting against the exact probabilities, by chi-square; then edges and seeds."""
    import torch

    expect_function(sample, "sample")
    generator = torch.Generator().manual_seed(1)
    expect_by_hand(sample, torch.tensor([LOGITS]), temperature=0.7, top_k=3, top_p=0.9, generator=generator)
    counts = list(count_draws(sample))
    lowest = min(estimate_fit(counts))
    if lowest <= MIN_P:
        _explain_draws(sample, counts)
    _expect_greedy(sample)
    _expect_seeds(sample)
    _expect_every_row(sample)
    if sample.changed:
        fail(f"{sample.changed} changes its arguments: the caller still needs the logits, make a new tensor.")
    return passed(
        f"{len(counts)} distributions of {NUM_DRAWS // 2:,} draws fit the exact probabilities: the smallest of "
        f"{len(counts)} p-values is {lowest:.2g}.",
        {"smallest_p_value": lowest},
    )


def _explain_draws(sample: LearnerFunction, counts) -> None:
    def explains(wrong: Callable) -> bool:
        pairs = ((np.array(a), np.array(b)) for (a, *_), (b, *_) in zip(counts, count_draws(wrong), strict=True))
        return all(estimate_p_value(a - b, a + b) > MIN_P for a, b in pairs)

    if sentence := find_mistake(sample.exercise, sample.reference_name, explains):
        fail(sentence)
    worst = min(zip(estimate_fit(counts), counts, strict=True), key=lambda one: one[0])
    seen, logits, options = worst[1]
    right = estimate_probabilities(logits, **options)
    said = ", ".join(f"{key} {value}" for key, value in options.items()) or "nothing cut off"
    for token, (num, probability) in enumerate(zip(seen, right, strict=True)):
        if num and not probability:
            fail(f"with {said}, token {token} came {num} times and should never: too much is kept.")
        if not num and probability > 0.01:
            fail(
                f"with {said}, token {token} never came and has a probability of {probability:.1%}: too little is kept."
            )
    token = max(range(len(right)), key=lambda one: abs(seen[one] / sum(seen) - right[one]))
    share = seen[token] / sum(seen)
    fail(f"with {said}, token {token} came in {share:.1%} of the draws and has a probability of {right[token]:.1%}.")


def _make_rows():
    import torch

    return torch.tensor(LOGITS) + 0.1 * _draw(55, 64, len(LOGITS))  # (64, V)


def _expect_greedy(sample: Callable) -> None:
    import torch

    rows = _make_rows()
    try:
        greedy = sample(rows, temperature=0)
    except LearnerRaised as raised:
        fail(f"temperature 0 means greedy: take the likeliest token before anything is divided by 0. {raised}")
    if not torch.equal(expect_ids(greedy, 64), rows.argmax(-1)):
        fail("temperature 0 means greedy: the likeliest token of each row, without a draw.")
    if not torch.equal(expect_ids(sample(rows, temperature=0.0, top_k=5, top_p=0.9), 64), rows.argmax(-1)):
        fail("temperature 0 means greedy, whatever top_k and top_p say.")
    ids = expect_ids(sample(1000 * rows, temperature=0.5, generator=torch.Generator().manual_seed(3)), 64)
    if not torch.equal(ids, rows.argmax(-1)):
        fail("logits in the thousands overflow the exponential: torch.softmax takes the largest off first.")


def _expect_seeds(sample: Callable) -> None:
    import torch

    rows = _make_rows()
    first, again, other = (sample(rows, generator=torch.Generator().manual_seed(seed)) for seed in (5, 5, 17))
    if not torch.equal(first, again):
        fail("the same seed gives other tokens: draw with the given generator.")
    if torch.equal(first, other):
        fail("two different seeds give the same tokens: draw with the given generator, and do not seed it.")
    expect_ids(sample(rows), 64)  # without a generator torch's own is used


def _expect_every_row(sample: Callable) -> None:
    import torch

    rows = _make_rows()
    for seed in range(40):  # few rows, flat probabilities: a first or last row that is not cut shows
        few, generator = rows[seed : seed + 1 + seed % 2], torch.Generator().manual_seed(seed)
        ids = expect_ids(sample(few, temperature=8.0, top_k=2, generator=generator), len(few))
        if not (ids[:, None] == few.topk(2).indices).any(-1).all():
            fail("with 1 or 2 rows, top-k lets others through: every row is cut, the first and the last too.")
        ids = expect_ids(sample(few, temperature=8.0, top_p=0.01, generator=generator), len(few))
        if not torch.equal(ids, few.argmax(-1)):
            fail("with 1 or 2 rows, top-p 0.01 lets others through: every row is cut, the first and the last too.")
    came = sample(torch.zeros(400, 4), top_p=0.5, generator=torch.Generator().manual_seed(4)).unique()
    if len(came) != 2:
        fail(f"four equal probabilities and top-p 0.5: two tokens reach it, and {len(came)} came. Equal is enough.")
