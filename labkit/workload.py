"""Which requests, and when? Seeded workloads of token ids with fixed output lengths.

A workload is a value: the same arguments give the same requests, on every machine. Prompts are windows cut from a
given array of token ids; those of the warm-up and those that are measured come from different parts of it and never
begin alike, because a warm prefix cache has inflated a throughput by 86 %. Lengths, arrivals and prompts are drawn
from separate streams of the seed, so that changing the rate changes no prompt.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from labkit.errors import LabkitError

__all__ = [
    "Request",
    "Workload",
    "draw_equal_lengths",
    "draw_mixed_lengths",
    "draw_poisson_arrivals",
    "draw_shared_prefix",
]

NUM_DISTINCT = 16  # tokens: vLLM's smallest cache block; prompts that differ within it share no block


@dataclass(frozen=True, slots=True)
class Request:
    """One request: its prompt as token ids, the exact number of output tokens, and its arrival after the start, in
    seconds.
    """

    prompt_ids: tuple[int, ...]
    num_output_tokens: int
    arrival_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests to measure, requests to warm up with (disjoint), and the parameters that made them."""

    name: str
    measured: tuple[Request, ...]
    warmup: tuple[Request, ...]
    parameters: Mapping[str, object] = field(default_factory=dict)

    @property
    def num_prompt_tokens(self) -> int:
        """Prompt tokens of the measured requests."""
        return sum(len(request.prompt_ids) for request in self.measured)

    @property
    def num_output_tokens(self) -> int:
        """Output tokens of the measured requests."""
        return sum(request.num_output_tokens for request in self.measured)

    def to_dict(self) -> dict:
        """What a record keeps: name, parameters, counts, and a digest of every request (sha256)."""
        text = repr(
            [(r.prompt_ids, r.num_output_tokens, r.arrival_s) for r in (*self.warmup, None, *self.measured) if r]
        )
        return {
            "name": self.name, "parameters": dict(self.parameters), "num_requests": len(self.measured),
            "num_warmup": len(self.warmup), "num_prompt_tokens": self.num_prompt_tokens,
            "num_output_tokens": self.num_output_tokens, "sha256": hashlib.sha256(text.encode()).hexdigest(),
        }  # fmt: skip


def draw_equal_lengths(
    ids, *, num_requests: int, prompt_tokens: int = 64, output_tokens: int = 64, num_warmup: int = 4, seed: int = 0
) -> Workload:
    """Draw requests of one length, all there at the start: where a static batch is at its best.

    `ids`: an array of token ids to cut the prompts from.
    """
    _, _, prompts = _streams(seed)
    total = num_warmup + num_requests
    warm, measured = _cut_prompts(ids, [prompt_tokens] * total, num_warmup, prompts)
    parameters = {"prompt_tokens": prompt_tokens, "output_tokens": output_tokens, "seed": seed}
    return _build("equal lengths", warm, measured, [output_tokens] * total, [0.0] * num_requests, parameters)


def draw_mixed_lengths(
    ids,
    *,
    num_requests: int,
    rate_per_s: float,
    prompt_median: int = 48,
    output_median: int = 48,
    sigma: float = 0.7,
    min_tokens: int = 4,
    max_tokens: int = 256,
    num_warmup: int = 4,
    seed: int = 0,
) -> Workload:
    """Draw requests of mixed lengths that arrive over time: what users send, and where a static batch wastes rows.

    Prompt and output lengths are independent lognormal draws, exp(N(ln median, sigma^2)), rounded and cut to
    [`min_tokens`, `max_tokens`]; arrivals are a Poisson process of `rate_per_s` (exponential gaps, no rescaling), the
    first request after the first gap.
    """
    lengths, arrivals, prompts = _streams(seed)
    total = num_warmup + num_requests
    drawn = np.exp(np.log([prompt_median, output_median]) + sigma * lengths.standard_normal((total, 2)))  # (total, 2)
    counts = np.clip(np.rint(drawn), min_tokens, max_tokens).astype(int)
    warm, measured = _cut_prompts(ids, counts[:, 0].tolist(), num_warmup, prompts)
    parameters = {
        "prompt_median": prompt_median, "output_median": output_median, "sigma": sigma, "min_tokens": min_tokens,
        "max_tokens": max_tokens, "rate_per_s": rate_per_s, "arrivals": "Poisson", "seed": seed,
    }  # fmt: skip
    times = draw_poisson_arrivals(num_requests, rate_per_s=rate_per_s, seed=arrivals)
    return _build("mixed lengths", warm, measured, counts[:, 1].tolist(), times.tolist(), parameters)


def draw_shared_prefix(
    ids,
    *,
    num_requests: int,
    prompt_tokens: int = 256,
    shared_fraction: float = 0.75,
    output_tokens: int = 32,
    num_warmup: int = 4,
    seed: int = 0,
) -> Workload:
    """Draw prompts that begin with the same tokens, like a system prompt: where a prefix cache is at its best.

    The first round(`shared_fraction` x `prompt_tokens`) tokens are common to all measured requests, the rest is each
    one's own. The warm-up has a common beginning of its own, so the first measured request finds a cold cache.
    """
    if not 0 <= shared_fraction < 1:
        raise LabkitError(f"shared_fraction is {shared_fraction}; expected 0 or more and less than 1.",
                          next_step="Leave each request some tokens of its own.")  # fmt: skip
    _, _, prompts = _streams(seed)
    num_shared = round(shared_fraction * prompt_tokens)
    total = num_warmup + num_requests
    # Two more prompts for the two beginnings; the own parts are windows like all others.
    sizes = [max(num_shared, NUM_DISTINCT)] + [prompt_tokens - num_shared] * num_warmup
    sizes += [max(num_shared, NUM_DISTINCT)] + [prompt_tokens - num_shared] * num_requests
    warm, measured = _cut_prompts(ids, sizes, num_warmup + 1, prompts)
    warm = [warm[0][:num_shared] + tail for tail in warm[1:]]
    measured = [measured[0][:num_shared] + tail for tail in measured[1:]]
    parameters = {
        "prompt_tokens": prompt_tokens,
        "shared_tokens": num_shared,
        "output_tokens": output_tokens,
        "seed": seed,
    }
    return _build("shared prefix", warm, measured, [output_tokens] * total, [0.0] * num_requests, parameters)


def draw_poisson_arrivals(num: int, *, rate_per_s: float, seed) -> np.ndarray:
    """Return `num` arrival instants in seconds of a Poisson process: exponential gaps of mean 1 / rate, never rescaled.

    `seed`: an integer, or a numpy Generator to draw from.
    """
    if not rate_per_s > 0:
        raise LabkitError(f"rate_per_s is {rate_per_s}; expected more than 0.", next_step="Give requests per second.")
    generator = seed if isinstance(seed, np.random.Generator) else np.random.default_rng(seed)
    return np.cumsum(generator.exponential(1.0 / rate_per_s, size=num))


def _streams(seed: int) -> list[np.random.Generator]:
    """Independent generators for lengths, arrivals and prompts."""
    return [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(3)]


def _build(name: str, warm, measured, output_lengths, arrivals_s, parameters: dict) -> Workload:
    outputs_warm, outputs = output_lengths[: len(warm)], output_lengths[len(warm) :]
    return Workload(
        name,
        tuple(Request(p, n, t) for p, n, t in zip(measured, outputs, arrivals_s, strict=True)),
        tuple(Request(p, n) for p, n in zip(warm, outputs_warm, strict=True)),
        parameters,
    )


def _cut_prompts(ids, sizes: list[int], num_warmup: int, generator: np.random.Generator):
    """Cut one window of each size: the first `num_warmup` from the first part of `ids`, the others from the rest.

    No two windows begin with the same tokens (the first 16, or all of a shorter window): a repeated passage of the
    text is drawn again. Returns two lists of tuples of ints.
    """
    ids = np.asarray(ids)
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise LabkitError(
            f"ids has shape {ids.shape} and type {ids.dtype}; expected a one-dimensional array of integers.",
            next_step="Give the token ids of a text, one after the other.",
        )
    if min(sizes, default=1) < 1:
        raise LabkitError("A prompt of no tokens was asked for.", next_step="Ask for at least 1 prompt token.")
    border = round(len(ids) * num_warmup / max(1, len(sizes)))
    windows, keys, beginnings = [], set(), set()
    for number, size in enumerate(sizes):
        low, high = (0, border) if number < num_warmup else (border, len(ids))
        for _ in range(200):
            start = int(generator.integers(low, high - size + 1)) if high - low >= size else -1
            window = tuple(ids[start : start + size].tolist()) if start >= 0 else ()
            starts = [window[:k] for k in range(1, min(size, NUM_DISTINCT) + 1)]
            # A short window may be the beginning of another, so both directions are looked up.
            if window and starts[-1] not in beginnings and keys.isdisjoint(starts):
                break
        else:
            raise LabkitError(
                f"{len(ids)} token ids are too few for {len(sizes)} prompts that begin differently.",
                next_step="Give a longer text, or ask for fewer or shorter prompts.",
            )
        keys.add(starts[-1])
        beginnings.update(starts)
        windows.append(window)
    return windows[:num_warmup], windows[num_warmup:]
