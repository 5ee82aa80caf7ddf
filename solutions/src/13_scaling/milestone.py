"""The milestone of phase 1, and made-up records for its check: each set has different answers, with decoys beside each.

From lab 11 ("profile") it reads decode_OPERATOR_self_fraction and weights_bytes, kv_cache_bytes, activations_bytes; from
lab 12 ("engines") mixed_vllm_tok_per_s; from lab 13 ("sweep") the setting `clients` and clientsN_waiting_s,
clientsN_prefill_s, clientsN_decode_s.
"""

import math
import random
import statistics
from types import SimpleNamespace

from labkit.checks.milestone import Milestone
from labkit.stats import estimate_mean_interval

__all__ = ["MADE", "PHASE_1", "find_largest_part", "make_samples"]

_OPERATORS = ("mm", "add", "mul", "copy", "softmax")
_MEMORY = ("weights", "kv_cache", "activations")
_PARTS = ("waiting", "prefill", "decode")


def find_largest_part(sweep, *, clients: int) -> str:
    """Return which part of the latency is the largest with this number of clients."""
    return max(_PARTS, key=lambda part: statistics.fmean(sweep.samples[f"clients{clients}_{part}_s"]))


def _estimate_claims(found: dict) -> dict:
    profile, sweep = found["profile"].samples, found["sweep"]
    start, end = "decode_", "_self_fraction"
    shares = {key[len(start) : -len(end)]: statistics.fmean(values) for key, values in profile.items()
              if key.startswith(start) and key.endswith(end)}  # fmt: skip
    logs = [math.log(value) for value in found["engines"].samples["mixed_vllm_tok_per_s"]]
    around = estimate_mean_interval(logs)
    return {
        "slowest_part": max(shares, key=shares.get),
        "largest_memory": max(_MEMORY, key=lambda name: statistics.fmean(profile[f"{name}_bytes"])),
        "tok_per_s": math.exp(statistics.fmean(logs)),
        "low": math.exp(around.low),
        "high": math.exp(around.high),
        "main_latency": find_largest_part(sweep, clients=max(sweep.settings["clients"])),
    }


PHASE_1 = Milestone(
    "13.5",
    "you can profile a model, find its slowest part and explain its memory; measure a serving baseline and name "
    "the main latency component",
    {"profile": ("11", "profile"), "engines": ("12", "engines"), "sweep": ("13", "sweep")},
    _estimate_claims,
)


def make_samples(seed: int, *, slowest: str, prefill: str, memory: str, latency: str, alone: str) -> dict[str, tuple]:
    """Return {claim: (samples, settings)} of one made-up set of records with the given answers."""
    draw = random.Random(seed)

    def around(middle, n=4):
        return [middle * draw.uniform(0.9, 1.1) for _ in range(n)]

    profile = {}
    for phase, top in (("decode", slowest), ("prefill", prefill)):
        # The answer of the other phase comes second, so that it is not also the smallest.
        middle = {name: 0.4 if name == top else 0.25 if name in (slowest, prefill) else draw.uniform(0.05, 0.15)
                  for name in _OPERATORS}  # fmt: skip
        profile |= {f"{phase}_{name}_self_fraction": around(middle[name]) for name in _OPERATORS}
        other = next(name for name in _OPERATORS if name not in (slowest, prefill))
        if phase == "decode" and seed == 2:  # another operator leads in the first sample, with the highest single share
            profile[f"decode_{other}_self_fraction"] = [0.47, 0.2, 0.18, 0.21]
        if phase == "decode" and seed == 3:  # the slowest operator leads only by the mean, another one by the median
            profile[f"decode_{slowest}_self_fraction"] = [0.21, 0.8, 0.22, 0.2]
            profile[f"decode_{other}_self_fraction"] = [0.3, 0.29, 0.28, 0.3]
        profile |= {f"{phase}_step_s": around(0.01), f"{phase}_idle_fraction": around(0.9)}  # not an operator's share
    profile |= {f"{name}_bytes": [4e7 if name == memory else draw.uniform(1e6, 2e7)] for name in _MEMORY}
    profile |= {"rest_bytes": [3e8], "slack_bytes": [2e5], "used_bytes": [4e8]}
    engines = {f"{kind}_{engine}_tok_per_s": around(draw.uniform(50, 400), 5)
               for kind in ("equal", "mixed", "shared") for engine in ("naive", "batched", "vllm")}  # fmt: skip
    clients, sweep = [1, 4, 16], {}
    for n, top in zip(clients, (alone, latency if seed % 2 else alone, latency), strict=True):
        sweep |= {f"clients{n}_{part}_s": around(0.5 if part == top else draw.uniform(0.02, 0.2)) for part in _PARTS}
        sweep |= {f"clients{n}_e2e_s": around(1.0), f"clients{n}_ttft_s": around(0.6)}
    shuffled = clients.copy()
    draw.shuffle(shuffled)
    return {"profile": (profile, {}), "engines": (engines, {}), "sweep": (sweep, {"clients": shuffled})}


def _make(seed: int, **answers) -> dict[str, SimpleNamespace]:
    labs = {"profile": "11", "engines": "12", "sweep": "13"}
    return {
        claim: SimpleNamespace(id=f"r-0000{seed:02d}{labs[claim]}c0", lab=labs[claim], name=claim, samples=samples,
                               settings=settings)
        for claim, (samples, settings) in make_samples(seed, **answers).items()
    }  # fmt: skip


MADE = (
    _make(1, slowest="mm", prefill="softmax", memory="weights", latency="waiting", alone="decode"),
    _make(2, slowest="copy", prefill="mm", memory="kv_cache", latency="decode", alone="prefill"),
    _make(3, slowest="softmax", prefill="add", memory="activations", latency="prefill", alone="decode"),
    _make(4, slowest="add", prefill="mm", memory="weights", latency="waiting", alone="prefill"),
)
