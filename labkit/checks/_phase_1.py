"""Made-up records of phase 1 for the milestone's check: each set has other winners, and decoys beside every answer."""

import random
from types import SimpleNamespace

__all__ = ["MADE", "make_samples"]

_OPERATORS = ("mm", "add", "mul", "copy", "softmax")
_MEMORY = ("weights", "kv_cache", "activations")
_PARTS = ("waiting", "prefill", "decode")


def make_samples(seed: int, *, slowest: str, prefill: str, memory: str, latency: str, alone: str) -> dict[str, tuple]:
    """Return {claim: (samples, settings)} of one made-up set of records whose answers are the given ones."""
    draw = random.Random(seed)

    def around(middle, n=4):
        return [middle * draw.uniform(0.9, 1.1) for _ in range(n)]

    profile = {}
    for phase, top in (("decode", slowest), ("prefill", prefill)):
        # The winner of the other phase comes second: it is never mistaken for the smallest.
        middle = {name: 0.4 if name == top else 0.25 if name in (slowest, prefill) else draw.uniform(0.05, 0.15)
                  for name in _OPERATORS}  # fmt: skip
        profile |= {f"{phase}_{name}_self_fraction": around(middle[name]) for name in _OPERATORS}
        other = next(name for name in _OPERATORS if name not in (slowest, prefill))
        if phase == "decode" and seed == 2:  # another part leads in the first profile, and has the highest single share
            profile[f"decode_{other}_self_fraction"] = [0.47, 0.2, 0.18, 0.21]
        if phase == "decode" and seed == 3:  # the slowest part leads in the mean only, another one in the median
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
