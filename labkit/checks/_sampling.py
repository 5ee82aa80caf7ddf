"""The distribution that a sampler should draw from, computed token by token, and a chi-square test of what it drew."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from labkit.checks.cases import fail
from labkit.checks.learner import LearnerRaised

__all__ = [
    "count_draws",
    "estimate_chances",
    "estimate_p_value",
    "expect_distribution",
    "expect_edges",
    "make_row",
]

FULL = 1 - 1e-9  # adding chances up in floating point may end just under 1


def _softmax(logits: Sequence[float]) -> list[float]:
    top = max(logits)
    weights = [math.exp(x - top) for x in logits]
    return [w / math.fsum(weights) for w in weights]


def _keep_k(ranked: list[int], top_k: int) -> list[int]:
    return ranked[:top_k] if top_k else ranked


def _keep_p(ranked: list[int], chances: Sequence[float], top_p: float, *, is_short: bool = False) -> list[int]:
    """Keep tokens, likeliest first, until their chances reach top_p; `is_short` leaves out the one that reaches it."""
    kept, total = [], 0.0
    for token in ranked:
        if total >= min(top_p, FULL) or (is_short and top_p < 1 and kept and total + chances[token] > top_p):
            break
        kept.append(token)
        total += chances[token]
    return kept


def _renormalize(kept: Sequence[int], chances: Sequence[float]) -> list[float]:
    total = math.fsum(chances[token] for token in kept)
    return [chances[token] / total if token in kept else 0.0 for token in range(len(chances))]


def estimate_chances(
    logits: Sequence[float],
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    order: str = "tkp",
    is_joint: bool = False,
    is_short: bool = False,
) -> list[float]:
    """Return the chance of every token: temperature, then top-k, then top-p over what top-k left, as Transformers does.

    `order` permutes the three steps; `is_joint` measures top-p on the chances before top-k. Both are mistakes to name.
    """
    if temperature == 0:
        best = max(range(len(logits)), key=logits.__getitem__)
        return [float(token == best) for token in range(len(logits))]
    ranked = sorted(range(len(logits)), key=logits.__getitem__, reverse=True)
    kept, scores = list(ranked), list(logits)
    for step in order:
        if step == "t":
            scores = [x / temperature for x in scores]
        elif step == "k":
            kept = _keep_k(kept, top_k)
        else:
            chances = _softmax(scores)
            measured = chances if is_joint else _renormalize(kept, chances)
            kept = _keep_p(kept, measured, top_p, is_short=is_short)
    return _renormalize(kept, _softmax(scores))


def _wrong(**changes) -> Callable:
    return lambda logits, **options: estimate_chances(logits, **(options | changes))


def _multiplied(logits, *, temperature=1.0, **options):
    return estimate_chances(logits, temperature=1 / temperature if temperature else 0, **options)


def _reversed_p(logits, *, temperature=1.0, top_k=0, top_p=1.0):
    chances = estimate_chances(logits, temperature=temperature, top_k=top_k)
    ranked = sorted(range(len(logits)), key=chances.__getitem__)
    return _renormalize(_keep_p(ranked, chances, top_p), chances)


def _threshold_p(logits, *, temperature=1.0, top_k=0, top_p=1.0):
    chances = estimate_chances(logits, temperature=temperature, top_k=top_k)
    best = max(chances)
    limit = top_p * best if top_p < 1 else 0.0
    return _renormalize([token for token, chance in enumerate(chances) if chance >= limit], chances)


def _not_renormalized(logits, **options):
    """What is cut off falls to the last kept token, as when a running sum is searched without scaling it."""
    kept = estimate_chances(logits, **options)
    whole = estimate_chances(logits, temperature=options.get("temperature", 1.0))
    ranked = sorted((t for t in range(len(logits)) if kept[t]), key=whole.__getitem__, reverse=True)
    chances = [whole[t] if kept[t] else 0.0 for t in range(len(logits))]
    chances[ranked[-1]] += 1 - math.fsum(chances)
    return chances


# Sentence, and the wrong distribution that it explains. The first that explains every case names the mistake.
_MISTAKES: tuple[tuple[str, Callable], ...] = (
    ("the temperature is ignored: divide the logits by it.", _wrong(temperature=1.0)),
    ("the logits are multiplied by the temperature: divide, so that a low one sharpens.", _multiplied),
    ("top-k is ignored: only the k likeliest tokens may be drawn.", _wrong(top_k=0)),
    ("top-p is ignored: only the smallest set of likeliest tokens that reaches p may be drawn.", _wrong(top_p=1.0)),
    ("the token that reaches top-p is cut off: the set has to reach p, so it belongs to it.", _wrong(is_short=True)),
    ("top-p comes before top-k, or sees the chances from before it: after top-k they add up to 1 again.",
     _wrong(is_joint=True)),
    ("the temperature comes last: it changes the chances that top-p adds up, so it comes first.", _wrong(order="kpt")),
    ("the temperature comes last: it changes the chances that top-p adds up, so it comes first.", _wrong(order="pkt")),
    ("the temperature comes between: it comes first, before top-k and top-p.", _wrong(order="pkt", is_joint=True)),
    ("top-p adds up from the least likely token: sort the other way.", _reversed_p),
    ("that is min-p, a threshold: top-p adds up chances until they reach p.", _threshold_p),
    ("it always takes the likeliest token: draw, unless the temperature is 0.", _wrong(temperature=0)),
    ("what was cut off falls to one token: the chances of the kept ones have to add up to 1 again.", _not_renormalized),
    ("every kept token is equally likely: draw with their chances.",
     lambda logits, **options: _flatten(estimate_chances(logits, **options))),
)  # fmt: skip


def _flatten(chances):
    kept = sum(chance > 0 for chance in chances)
    return [float(chance > 0) / kept for chance in chances]


def estimate_p_value(counts: Sequence[int], chances: Sequence[float]) -> float:
    """Return the p-value of Pearson's chi-square test; 0 when a token was drawn that has no chance.

    Tokens that are expected fewer than 5 times are put together, the usual condition for the approximation.
    """
    import torch

    seen, expected = np.asarray(counts, float), np.asarray(chances, float) * sum(counts)
    if np.any(seen[expected == 0] > 0):
        return 0.0
    bins, rare = [], [0.0, 0.0]
    for k in np.argsort(expected):
        rare = [rare[0] + seen[k], rare[1] + expected[k]]
        if rare[1] >= 5:
            bins, rare = [*bins, rare], [0.0, 0.0]
    if len(bins) < 2:
        return 1.0
    statistic = sum((a - b) ** 2 / b for a, b in bins)
    half = torch.tensor([(len(bins) - 1) / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


_LOGITS = [2.1, -0.3, 1.7, 0.2, 3.0, -1.4, 0.9, 2.6, -2.2, 1.2, 0.5, -0.8]
_SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.6},
    {"temperature": 2.5},
    {"top_k": 3},
    {"top_p": 0.7},
    {"top_p": 0.05},
    {"temperature": 2.0, "top_p": 0.6},
    {"top_k": 4, "top_p": 0.8},
    {"temperature": 1.7, "top_k": 6, "top_p": 0.75},
    {"temperature": 0.5, "top_k": 50, "top_p": 0.99},
)
_NUM_DRAWS = 4_000  # half of them for each kind of row; a loop over rows takes seconds for all settings
_MIN_P = 1e-6  # 20 tests with fixed seeds: one right sampler in 50,000 is turned away


def make_row() -> tuple[Any, dict[str, Any]]:
    """Return one row of logits and options that use every step: what a sampler is watched with."""
    import torch

    options = {"temperature": 0.7, "top_k": 3, "top_p": 0.9}
    return torch.tensor([_LOGITS]), options | {"generator": torch.Generator().manual_seed(1)}


def count_draws(sample: Callable) -> list[tuple[list[int], list[float], dict]]:
    """Return for each setting and kind of row how often each token came: (counts, logits, options)."""
    import torch

    row, counts = torch.tensor(_LOGITS), []
    for number, options in enumerate(_SETTINGS):
        # Two kinds of rows in one batch: what is cut off in one must not depend on the other.
        rows = row.roll(number).repeat(_NUM_DRAWS, 1)
        rows[1::2] = 0.5 * row.flip(0)
        got = sample(rows, generator=torch.Generator().manual_seed(100 + number), **options)
        ids = _expect_ids(got, len(rows))
        counts += [(ids[k::2].bincount(minlength=len(row)).tolist(), rows[k].tolist(), options) for k in (0, 1)]
    return counts


def _expect_ids(got, num_rows: int):
    import torch

    if got is None:
        fail("nothing came back: is a `return` missing?")
    if num_rows == 1 and isinstance(got, int | float):  # a tensor of the shape () has become a number
        fail("for one row the shape is (), and (1,) is asked for: squeeze() takes away every axis of length 1.")
    if not isinstance(got, torch.Tensor):
        fail(f"that is no tensor ({type(got).__name__}): {num_rows} token ids are asked for, one for each row.")
    if tuple(got.shape) != (num_rows,):
        fail(f"the shape is {tuple(got.shape)}, and ({num_rows},) is asked for: one token id for each row.")
    if got.dtype not in (torch.int64, torch.int32):
        fail(f"token ids are whole numbers, and these are {got.dtype}: did the chances come back instead?")
    if int(got.min()) < 0 or int(got.max()) >= len(_LOGITS):
        fail("an id is outside of the vocabulary.")
    return got.long()


def expect_distribution(counts) -> None:
    def explains(chances: Callable) -> bool:
        return all(estimate_p_value(seen, chances(x, **o)) > _MIN_P for seen, x, o in counts)

    if explains(estimate_chances):
        return
    for sentence, wrong in _MISTAKES:
        if explains(wrong):
            fail(sentence)
    if explains(lambda x, **o: _rank(estimate_chances(x, **o))):
        fail("those are ranks, not token ids: translate the place in the sorted row back to the id.")
    for seen, logits, options in counts:
        right = estimate_chances(logits, **options)
        if estimate_p_value(seen, right) > _MIN_P:
            continue
        said = ", ".join(f"{key} {value}" for key, value in options.items()) or "nothing cut off"
        extra = [token for token, num in enumerate(seen) if num and not right[token]]
        missing = [token for token, num in enumerate(seen) if not num and right[token] > 0.01]
        if extra:
            fail(f"with {said}, token {extra[0]} came {seen[extra[0]]} times and should never: too much is kept.")
        if missing:
            chance = right[missing[0]]
            fail(f"with {said}, token {missing[0]} never came and has a chance of {chance:.1%}: too little is kept.")
        worst = max(range(len(right)), key=lambda token: abs(seen[token] / sum(seen) - right[token]))
        share = seen[worst] / sum(seen)
        fail(f"with {said}, token {worst} came in {share:.1%} of the draws and has a chance of {right[worst]:.1%}.")


def _rank(chances: list[float]) -> list[float]:
    return sorted(chances, reverse=True)


def expect_edges(guard) -> None:
    import torch

    rows = torch.tensor(_LOGITS).repeat(64, 1) + 0.1 * torch.randn(
        64, len(_LOGITS), generator=torch.Generator().manual_seed(55)
    )
    try:
        greedy = guard(rows, temperature=0)
    except LearnerRaised as raised:
        fail(f"temperature 0 means greedy: take the likeliest token before anything is divided by 0. {raised}")
    if not torch.equal(_expect_ids(greedy, 64), rows.argmax(-1)):
        fail("temperature 0 means greedy: the likeliest token of each row, without a draw.")
    if not torch.equal(_expect_ids(guard(rows, temperature=0.0, top_k=5, top_p=0.9), 64), rows.argmax(-1)):
        fail("temperature 0 means greedy, whatever top_k and top_p say.")
    ids = _expect_ids(guard(1000 * rows, temperature=0.5, generator=torch.Generator().manual_seed(3)), 64)
    if not torch.equal(ids, rows.argmax(-1)):
        fail("logits in the thousands overflow the exponential: torch.softmax takes the largest off first.")
    first, again, other = (guard(rows, generator=torch.Generator().manual_seed(seed)) for seed in (5, 5, 17))
    if not torch.equal(first, again):
        fail("the same seed gives other tokens: draw with the generator that is given.")
    if torch.equal(first, other):
        fail("two different seeds give the same tokens: draw with the given generator, and do not seed it.")
    _expect_ids(guard(rows), 64)  # without a generator torch's own is used
    for seed in range(40):  # few rows, flat chances: a first or last row that is not cut is seen
        few = rows[seed : seed + 1 + seed % 2]
        luck = torch.Generator().manual_seed(seed)
        ids = _expect_ids(guard(few, temperature=8.0, top_k=2, generator=luck), len(few))
        if not (ids[:, None] == few.topk(2).indices).any(-1).all():
            fail("with 1 or 2 rows, top-k lets others through: every row is cut, the first and the last too.")
        ids = _expect_ids(guard(few, temperature=8.0, top_p=0.01, generator=luck), len(few))
        if not torch.equal(ids, few.argmax(-1)):
            fail("with 1 or 2 rows, top-p 0.01 lets others through: every row is cut, the first and the last too.")
    came = guard(torch.zeros(400, 4), top_p=0.5, generator=torch.Generator().manual_seed(4)).unique()
    if len(came) != 2:
        fail(f"four equal chances and top-p 0.5: two tokens reach it, and {len(came)} came. Equal is enough.")
