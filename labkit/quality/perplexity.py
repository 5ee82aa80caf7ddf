"""Perplexity by a sliding window, with an interval over documents, and paired comparisons of two models."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from labkit.errors import LabkitError
from labkit.quality.heldout import Document
from labkit.stats import Interval

__all__ = ["Perplexity", "compare_perplexity", "estimate_perplexity", "measure_perplexity"]


@dataclass(frozen=True, slots=True)
class Perplexity:
    """Perplexity and the sums that it was computed from.

    Attributes:
        perplexity: exp of the mean negative log-likelihood per unit.
        interval: 95 % interval over documents; None with fewer than 6.
        unit: "token", "word" or "byte".
        window: tokens that the model sees at once.
        stride: new tokens that each window after the first scores.
        has_bos: whether the beginning-of-sequence token comes first.
        names: the documents' names, shape (documents,).
        nll_nats: summed negative log-likelihood of each document in nats, shape (documents,).
        num_units: scored tokens, words or bytes of each document, shape (documents,).
    """

    perplexity: float
    interval: Interval | None
    unit: str
    window: int
    stride: int
    has_bos: bool
    names: tuple[str, ...]
    nll_nats: tuple[float, ...]
    num_units: tuple[int, ...]


def measure_perplexity(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str | Document | Sequence[int]],
    *,
    window: int = 1024,
    stride: int = 512,
    has_bos: bool = True,
    unit: str = "token",
) -> Perplexity:
    """Score every document with windows of `window` tokens; each token is scored once, in one float32 softmax.

    A document's first window scores all its tokens, each later one the `stride` new tokens, with the window - stride
    tokens before them as context. Documents never share a window. With `has_bos` the first token is predicted from the
    tokenizer's BOS, else it is not scored. `texts`: strings, documents, or lists of token ids (unit "token" only).
    `unit`: "token", "word" (split at white space) or "byte": the same sum of nats over another count, which allows a
    comparison between tokenizers.
    """
    import torch

    limit = getattr(model.config, "max_position_embeddings", None) or window
    if not 0 < stride <= window <= limit or window < 2:
        raise LabkitError(f"window {window} and stride {stride}: expected 0 < stride <= window <= {limit} positions.")
    if has_bos and tokenizer.bos_token_id is None:
        raise LabkitError("this tokenizer has no BOS token.", next_step="pass has_bos=False; the result says so.")
    names, sums, counts = [], [], []
    for index, item in enumerate(texts):
        text = item.text if isinstance(item, Document) else item
        ids = text
        if isinstance(text, str):  # verbose=False: texts may be longer than the model's positions, windows cut them
            ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        scored = ids if has_bos else ids[1:]
        if len(scored) == 0:
            raise LabkitError(f"document {index} has no token to score.", next_step="leave it out.")
        names.append(item.name if isinstance(item, Document) else str(index))
        counts.append(_count_units(text, unit, len(scored)))
        sequence = torch.tensor([tokenizer.bos_token_id, *ids] if has_bos else ids, device=model.device)  # (S,)
        with torch.inference_mode():
            sums.append(_score(model, sequence, window, stride))
    return estimate_perplexity(sums, counts, names=names, unit=unit, window=window, stride=stride, has_bos=has_bos)


def estimate_perplexity(
    nll_nats: Sequence[float],
    num_units: Sequence[int],
    *,
    names: Sequence[str],
    unit: str,
    window: int,
    stride: int,
    has_bos: bool,
) -> Perplexity:
    """Return the perplexity of summed nats and counts per document, with a 95 % interval over documents.

    The interval is a bootstrap over whole documents (2,000 draws, seed 0), because tokens of one file are alike:
    it says what other files of this kind would give. None with fewer than 6 documents.
    """
    nats, units = np.asarray(nll_nats, float), np.asarray(num_units, float)
    if len(nats) == 0 or len(nats) != len(units) or units.min() <= 0:
        raise LabkitError(f"{len(nats)} sums and {len(units)} counts: expected one positive count per document.")
    interval = None
    if len(nats) >= 6:
        draws = _draw(len(nats))
        ratios = np.exp(nats[draws].sum(1) / units[draws].sum(1))
        interval = Interval(*(float(x) for x in np.percentile(ratios, [2.5, 97.5])), 0.95)
    value = math.exp(nats.sum() / units.sum())
    return Perplexity(value, interval, unit, window, stride, has_bos, tuple(names), tuple(map(float, nats)),
                      tuple(map(int, num_units)))  # fmt: skip


def compare_perplexity(a: Perplexity, b: Perplexity) -> tuple[float, Interval, str]:
    """Return (nats per unit by which A is worse than B, 95 % interval, verdict) from the same documents in pairs.

    The verdict on A is "worse", "better" or "cannot tell" (the interval holds 0). Pairs see differences far smaller
    than the intervals of A and B, which come from the documents. Raises LabkitError unless all but the model is alike.
    """
    for field in ("names", "num_units", "unit", "window", "stride", "has_bos"):
        if getattr(a, field) != getattr(b, field):
            raise LabkitError(f"A and B differ in {field}.", next_step="measure both on the same text in the same way.")
    if len(a.names) < 6:
        raise LabkitError(f"{len(a.names)} documents are too few to compare; 6 are needed.")
    difference, units = np.subtract(a.nll_nats, b.nll_nats), np.asarray(a.num_units, float)
    draws = _draw(len(units))
    low, high = np.percentile(difference[draws].sum(1) / units[draws].sum(1), [2.5, 97.5])
    verdict = "worse" if low > 0 else "better" if high < 0 else "cannot tell"
    return float(difference.sum() / units.sum()), Interval(float(low), float(high), 0.95), verdict


def _draw(num_documents: int) -> np.ndarray:
    """Return 2,000 bootstrap samples of document numbers, always the same ones."""
    return np.random.default_rng(0).integers(num_documents, size=(2000, num_documents))


def _count_units(text: Any, unit: str, num_tokens: int) -> int:
    if unit == "token":
        return num_tokens
    if unit not in ("word", "byte") or not isinstance(text, str):
        raise LabkitError(f"unit {unit!r} of a {type(text).__name__}.", next_step='"word" and "byte" need texts.')
    return len(text.split()) if unit == "word" else len(text.encode())


def _score(model: Any, sequence: Any, window: int, stride: int) -> float:
    """Return the summed negative log-likelihood of sequence[1:], each scored once; sequence has shape (S + 1,)."""
    import torch

    inputs, targets = sequence[:-1], sequence[1:]  # (S,) each
    total, start, done = 0.0, 0, 0  # `done` targets have been scored
    while done < len(targets):
        end = min(start + window, len(targets))
        logits = model(inputs[None, start:end], use_cache=False).logits[0, done - start :].float()  # (new targets, V)
        total += torch.nn.functional.cross_entropy(logits, targets[done:end], reduction="sum").item()
        start, done = start + stride, end
    return total
