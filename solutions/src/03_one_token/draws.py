"""What a sampler should draw, and what it drew: exact probabilities, counts, and a chi-square test."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from labkit.checks.cases import fail

__all__ = ["LOGITS", "MIN_P", "NUM_DRAWS", "SETTINGS", "count_draws", "estimate_fit", "estimate_p_value",
           "estimate_probabilities", "expect_ids"]  # fmt: skip

LOGITS = [2.1, -0.3, 1.7, 0.2, 3.0, -1.4, 0.9, 2.6, -2.2, 1.2, 0.5, -0.8]
SETTINGS: tuple[dict[str, Any], ...] = (
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
NUM_DRAWS = 4_000  # half of them for each kind of row; a loop over rows takes seconds for all settings
MIN_P = 1e-6  # 20 tests with fixed seeds: one right sampler in 50,000 fails
_ALMOST_ONE = 1 - 1e-9  # adding up probabilities in floating point may end just below 1


def estimate_probabilities(logits: Sequence[float], *, temperature=1.0, top_k=0, top_p=1.0) -> list[float]:
    """Return the probability of every token: temperature, then top-k, then top-p over what top-k left."""
    ranked = sorted(range(len(logits)), key=logits.__getitem__, reverse=True)[: top_k or None]
    weights = {token: math.exp((logits[token] - max(logits)) / temperature) for token in ranked}
    total, kept = math.fsum(weights.values()), []
    for token in ranked:
        if math.fsum(weights[one] for one in kept) / total >= min(top_p, _ALMOST_ONE):
            break
        kept.append(token)
    total = math.fsum(weights[token] for token in kept)
    return [weights[token] / total if token in kept else 0.0 for token in range(len(logits))]


def estimate_p_value(differences: Sequence[float], variances: Sequence[float]) -> float:
    """Return the p-value of a chi-square test: the sum of differences² / variances, with one degree of freedom less.

    Counts against what is expected: (seen - expected, expected). Two rows of as many draws: (a - b, a + b). Where the
    variance is below 5, tokens are put together, the usual condition. 0.0 for a difference without any variance.
    """
    import torch

    differences, variances = np.asarray(differences, float), np.asarray(variances, float)
    if np.any(differences[variances == 0] != 0):
        return 0.0
    bins, rare = [], np.zeros(2)
    for k in np.argsort(variances):
        rare = rare + (differences[k], variances[k])
        if rare[1] >= 5:
            bins, rare = [*bins, rare], np.zeros(2)
    if len(bins) < 2:
        return 1.0
    half = torch.tensor([len(bins) - 1, sum(d**2 / v for d, v in bins)], dtype=torch.float64) / 2
    return float(torch.special.gammaincc(half[0], half[1]))


def count_draws(sample: Callable) -> Iterator[tuple[list[int], list[float], dict]]:
    """Yield for each setting and kind of row how often each token came: (counts, logits, options)."""
    import torch

    row = torch.tensor(LOGITS)
    for number, options in enumerate(SETTINGS):
        # Two kinds of rows in one batch: what is cut off in one must not depend on the other.
        rows = row.roll(number).repeat(NUM_DRAWS, 1)
        rows[1::2] = 0.5 * row.flip(0)
        got = sample(rows, generator=torch.Generator().manual_seed(100 + number), **options)
        ids = expect_ids(got, len(rows))
        for k in (0, 1):
            yield ids[k::2].bincount(minlength=len(row)).tolist(), rows[k].tolist(), options


def estimate_fit(counts) -> list[float]:
    """Return the p-value of each row of counts against the exact probabilities."""
    expected = [NUM_DRAWS // 2 * np.array(estimate_probabilities(x, **options)) for _, x, options in counts]
    return [estimate_p_value(seen - want, want) for (seen, _, _), want in zip(counts, expected, strict=True)]


def expect_ids(got, num_rows: int):
    """Return the drawn ids as a tensor (B,), or fail: one token id of the vocabulary for each row."""
    import torch

    if got is None:
        fail("nothing came back: is a `return` missing?")
    if num_rows == 1 and isinstance(got, int | float):  # a tensor of the shape () has become a number
        fail("for one row the shape is (), expected (1,): squeeze() takes away every axis of length 1.")
    if not isinstance(got, torch.Tensor):
        fail(f"the answer is a {type(got).__name__}, expected a tensor of {num_rows} token ids, one for each row.")
    if tuple(got.shape) != (num_rows,):
        fail(f"the shape is {tuple(got.shape)}, expected ({num_rows},): one token id for each row.")
    if got.dtype not in (torch.int64, torch.int32):
        fail(f"token ids are whole numbers, and these are {got.dtype}: did the probabilities come back instead?")
    if int(got.min()) < 0 or int(got.max()) >= len(LOGITS):
        fail("an id is outside the vocabulary.")
    return got.long()
