"""The checks of lab 03: norm and rotation, grouped attention, the decoder with its cache, its cost, a sampler."""

from collections.abc import Callable

from labkit.checks import _decoding, _sampling
from labkit.checks._cost import BYTE_CASES, COST_MISTAKES, NAMES, count_by_flops, count_right
from labkit.checks._llama import attend, norm, turn
from labkit.checks.cases import Case, expect_answer, expect_cases, expect_function, expect_no_generator, fail, passed
from labkit.checks.learner import LearnerFunction, NotAttempted, shorten, tidy
from labkit.checks.tensors import expect_by_hand, expect_device, expect_tensors, make_guard
from labkit.views import Outcome

__all__ = ["check_1", "check_2", "check_3", "check_4", "check_5"]


def _draw(seed: int, *shape: int):
    import torch

    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _expect_dtype(guard: Callable, name: str, *args, **kwargs) -> None:
    """Fail when float32 goes in and something else comes out: the next product with the weights would stop."""
    got, asked = guard(*args, **kwargs).dtype, args[0].dtype
    if got != asked:
        fail(f"`{name}` returns {got} for {asked}: the weights have {asked}. Compute as you like, then `.to(x.dtype)`.")


# 03.1


def _over_spread(x, eps, is_whole, is_late=False):
    """1 over the standard deviation, with the divisor d (`is_whole`) or d - 1, eps in the root or behind it."""
    variance = x.var(-1, keepdim=True, unbiased=not is_whole)
    return 1 / (variance.sqrt() + eps) if is_late else 1 / (variance + eps).sqrt()


_NORM_MISTAKES = (
    ("eps stands outside of the root: it is added to the mean of the squares.",
     lambda x, w, eps: w * x / (x.square().mean(-1, keepdim=True).sqrt() + eps)),
    ("eps is forgotten: it keeps a row of zeros from a division by 0.",
     lambda x, w, eps: w * x / x.square().mean(-1, keepdim=True).sqrt()),
    ("the squares are added up: take their mean.",
     lambda x, w, eps: w * x / (x.square().sum(-1, keepdim=True) + eps).sqrt()),
    *(("the mean is subtracted first: that is LayerNorm. RMSNorm leaves it in.",
       lambda x, w, eps, is_whole=is_whole: w * (x - x.mean(-1, keepdim=True)) * _over_spread(x, eps, is_whole))
      for is_whole in (True, False)),
    *(("it divides by a standard deviation: that subtracts the mean.",
       lambda x, w, eps, is_whole=is_whole, is_late=is_late: w * x * _over_spread(x, eps, is_whole, is_late))
      for is_whole in (True, False) for is_late in (False, True)),
    ("the root is missing: divide by the root of the mean square.",
     lambda x, w, eps: w * x / (x.square().mean(-1, keepdim=True) + eps)),
    ("the weight is forgotten: each feature has a factor of its own.",
     lambda x, w, eps: x / (x.square().mean(-1, keepdim=True) + eps).sqrt()),
    ("the weight counts from 1: Gemma does that, Llama multiplies by the weight itself.",
     lambda x, w, eps: (1 + w) * norm(x, w / w, eps=eps)),
    ("the mean runs over the positions: each token is normed on its own, along the last axis.",
     lambda x, w, eps: w * x / (x.square().mean(-2, keepdim=True) + eps).sqrt()),
    ("one mean for the whole tensor: each token is normed on its own, along the last axis.",
     lambda x, w, eps: w * x / (x.square().mean() + eps).sqrt()),
    ("it multiplies by the root mean square: divide.",
     lambda x, w, eps: w * x * (x.square().mean(-1, keepdim=True) + eps).sqrt()),
    ("that is the mean of the sizes: square, take the mean, then the root.",
     lambda x, w, eps: w * x / (x.abs().mean(-1, keepdim=True) + eps)),
)  # fmt: skip


def _restart(x, positions, **options):
    import torch

    return turn(x, torch.arange(len(positions)), **options)


_TURN_MISTAKES = (
    ("the pairs are neighbours (0 with 1): in Llama's files the first half is paired with the second, 0 with D/2.",
     lambda x, p, **o: turn(x, p, is_interleaved=True, **o)),
    ("the rotation runs backwards: a·cos - b·sin for the first half, b·cos + a·sin for the second.",
     lambda x, p, **o: turn(x, p, sign=-1.0, **o)),
    ("the positions start at 0 in every call: use `positions`, a cached step stands far behind.", _restart),
    ("the positions are counted from the first one: use them as they are, a cached step stands far behind.",
     lambda x, p, **o: turn(x, p - p[0], **o)),
    ("the positions are not used: nothing turns.", lambda x, p, **o: x),
    ("the exponent is i/D: it is 2i/D, so that the slowest pair comes close to 1/theta.",
     lambda x, p, **o: turn(x, p, exponent=1.0, **o)),
    ("the exponent is positive: theta^(-2i/D), later pairs turn more slowly.",
     lambda x, p, **o: turn(x, p, exponent=-2.0, **o)),
    ("theta is not used: it is an argument, models differ in it.", lambda x, p, theta: turn(x, p, theta=10000.0)),
    ("positions count from 1: the first token has position 0 and does not turn.",
     lambda x, p, **o: turn(x, p + 1, **o)),
    ("all pairs turn equally fast: pair i has the speed theta^(-2i/D).", lambda x, p, theta: turn(x, p, theta=1.0)),
)  # fmt: skip


def check_1(answer) -> Outcome:
    """RMSNorm and the rotation, on shapes where no two axes are equal."""
    import torch

    if not isinstance(answer, tuple | list) or len(answer) != 2 or not all(callable(one) for one in answer):
        fail('both functions are asked for, without brackets: check("03.1", (rms_norm, rotate)).')
    norms, rotates = make_guard(answer[0], "rms_norm"), make_guard(answer[1], "rotate")
    cases = [
        ((_draw(1, 2, 3, 8), _draw(2, 8)), {"eps": 1e-5}),
        ((0.01 * _draw(3, 3, 5, 7) + 0.02, _draw(4, 7)), {"eps": 1e-3}),
        ((5 * _draw(5, 4, 6) - 3, _draw(6, 6)), {"eps": 0.5}),
        ((torch.zeros(1, 2, 4), _draw(7, 4)), {"eps": 1e-6}),
    ]
    expect_by_hand(answer[0], *cases[0][0], **cases[0][1])
    expect_tensors(norms, cases, norm, _NORM_MISTAKES, name="rms_norm")
    _expect_dtype(norms, "rms_norm", *cases[0][0], **cases[0][1])
    expect_device(answer[0], *cases[0][0], **cases[0][1])
    turns = [
        ((_draw(8, 2, 3, 5, 8), torch.arange(5)), {"theta": 10000.0}),
        ((_draw(9, 1, 2, 4, 6), torch.arange(7, 11)), {"theta": 500.0}),
        ((_draw(10, 3, 1, 1, 10), torch.tensor([37])), {"theta": 100.0}),
        ((_draw(11, 1, 1, 3, 2), torch.tensor([2, 9, 4])), {"theta": 10000.0}),
    ]
    try:
        expect_by_hand(answer[1], *turns[0][0], **turns[0][1])
        expect_tensors(rotates, turns, turn, _TURN_MISTAKES, name="rotate")
        _expect_dtype(rotates, "rotate", *turns[0][0], **turns[0][1])
        expect_device(answer[1], *turns[0][0], **turns[0][1])
    except NotAttempted:
        fail("`rms_norm` is right. `rotate` is still open.")
    return passed("a norm that keeps the mean, and a rotation that only the distance of two tokens will see.")


# 03.2

_ATTENTION_MISTAKES = (
    ("nothing is masked: a token must not see what comes after it.", lambda q, k, v: attend(q, k, v, is_causal=False)),
    ("the mask is made as if the new tokens were the first: they are the last S of T.",
     lambda q, k, v: attend(q, k, v, offset=0)),
    ("the mask hides the token from itself: it sees itself and all before.",
     lambda q, k, v: attend(q, k, v, offset=k.shape[2] - q.shape[2] - 1)),
    ("the mask lets each token see the next one: only itself and all before.",
     lambda q, k, v: attend(q, k, v, offset=k.shape[2] - q.shape[2] + 1)),
    ("the scores are not scaled: divide them by the root of D.", lambda q, k, v: attend(q, k, v, scale=1.0)),
    ("the scores are divided by D: by its root, so that their spread stays near 1.",
     lambda q, k, v: attend(q, k, v, scale=1 / q.shape[-1])),
    ("the scores are multiplied by the root of D: divide.", lambda q, k, v: attend(q, k, v, scale=q.shape[-1] ** 0.5)),
    ("the scale has the width of all heads: D is the width of one head.",
     lambda q, k, v: attend(q, k, v, scale=(q.shape[-1] * q.shape[1]) ** -0.5)),
    ("the scale has the number of tokens in it: it is the root of D, the last axis.",
     lambda q, k, v: attend(q, k, v, scale=k.shape[2] ** -0.5)),
    ("the KV heads are dealt out in turn (0, 1, 0, 1): neighbouring query heads share one (0, 0, 1, 1).",
     lambda q, k, v: attend(q, k, v, is_tiled=True)),
    ("all query heads use the first KV head: each group has its own.",
     lambda q, k, v: attend(q, k[:, :1], v[:, :1])),
    ("the softmax runs over the queries: for each query its shares of the T keys add up to 1.",
     lambda q, k, v: attend(q, k, v, axis=-2)),
    ("masked after the softmax: then the shares do not add up to 1. Put -inf into the scores before it.",
     lambda q, k, v: attend(q, k, v, is_late_mask=True)),
    ("keys and values have changed places.", lambda q, k, v: attend(q, v, k)),
    ("keys are summed up where the values should be.", lambda q, k, v: attend(q, k, k)),
    ("the heads are merged already: give back (B, H, S, D), merge_heads comes later.",
     lambda q, k, v: attend(q, k, v).transpose(1, 2).flatten(2)),
    ("the axes are (B, S, H, D): give back (B, H, S, D).", lambda q, k, v: attend(q, k, v).transpose(1, 2)),
)  # fmt: skip


def check_2(attention) -> Outcome:
    """Grouped causal attention; sizes are chosen so that an axis or head in the wrong place is seen."""
    expect_function(attention, "attention")
    sizes = ((2, 6, 2, 5, 5, 8), (1, 4, 1, 1, 7, 6), (3, 6, 3, 3, 8, 4), (2, 4, 4, 6, 6, 2))
    cases = []
    for seed, (batch, heads, groups, num_new, num_all, head_dim) in enumerate(sizes, start=20):
        keys = (_draw(seed + 10 * k, batch, groups, num_all, head_dim) for k in (1, 2))
        cases.append(((_draw(seed, batch, heads, num_new, head_dim), *keys), {}))
    guard = make_guard(attention, "attention")
    expect_by_hand(attention, *cases[2][0])
    expect_tensors(guard, cases, attend, _ATTENTION_MISTAKES, name="attention")
    _expect_dtype(guard, "attention", *cases[2][0])
    expect_device(attention, *cases[2][0])
    return passed("causal, grouped, and right for a whole prompt as for one new token behind a cache.")


# 03.3


def check_3(forward) -> Outcome:
    """The decoder: random shapes first, in chunks with a cache, then the shipped model against Transformers."""
    expect_function(forward, "forward")
    guard = make_guard(forward, "forward")
    for case in _decoding.list_cases():
        expect_by_hand(forward, case.weights, case.ids[:, : case.cuts[0]])
    _decoding.expect_decoder(guard)
    _decoding.expect_saving(guard)
    _decoding.expect_no_memory(guard)
    expect_device(forward, case.weights, case.ids)
    distance = _decoding.expect_transformers(guard)
    return passed(
        f"on the shipped model your logits differ from Transformers' by at most {distance:.1e} of the largest one, "
        "with and without the cache.",
        {"logit_distance": distance},
    )


# 03.4


def check_4(count_step) -> Outcome:
    """FLOPs and bytes of one step: by hand, by torch's flop counter on random shapes, part by part."""
    expect_function(count_step, "count_step")
    expect_by_hand(count_step, BYTE_CASES[0][0], **BYTE_CASES[0][1])
    right = [(config, options, count_right(config, **options)) for config, options in BYTE_CASES]
    right += list(count_by_flops())
    for place, name in enumerate(NAMES):

        class Part(LearnerFunction):
            """One of the three numbers, so that a mistake in another one does not hide what is wrong here."""

            def __call__(self, *args, place=place, **kwargs):
                got = LearnerFunction.__call__(self, *args, **kwargs)
                expect_answer(got, self.call)
                if not isinstance(got, tuple | list) or len(got) != 3:
                    fail(f"three numbers are asked for, ({', '.join(NAMES)}), and this is {shorten(repr(got), 60)}.")
                expect_no_generator(self)
                if got[place] is None:
                    fail(f"{self.call}: `{NAMES[place]}` is None, and three numbers are asked for.")
                return tidy(got[place])

        cases = [Case(want[place], (config,), options, why=f"{name} differs.") for config, options, want in right]
        mistakes = [
            (f"{name}: {sentence}", _take(wrong, place)) for sentence, which, wrong in COST_MISTAKES if which == place
        ]
        expect_cases(Part(count_step.function), cases, mistakes)
    return passed("exactly what torch's counter finds, for one token behind a cache as for a whole batch of prompts.")


def _take(wrong: Callable, place: int) -> Callable:
    return lambda config, **options: wrong(config, **options)[place]


# 03.5


def check_5(sample) -> Outcome:
    """The sampler: 4,000 draws per setting against the exact chances, by chi-square; then edges and seeds."""
    expect_function(sample, "sample")
    guard = make_guard(sample, "sample")
    row, options = _sampling.make_row()
    expect_by_hand(sample, row, **options)
    counts = _sampling.count_draws(guard)
    _sampling.expect_distribution(counts)
    _sampling.expect_edges(guard)
    lowest = min(_sampling.estimate_p_value(seen, _sampling.estimate_chances(x, **o)) for seen, x, o in counts)
    return passed(
        f"{len(counts)} distributions of {sum(counts[0][0]):,} draws fit the exact chances: the smallest of "
        f"{len(counts)} p-values is {lowest:.2g}.",
        {"smallest_p_value": lowest},
    )
