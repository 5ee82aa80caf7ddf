"""How long are a decode step and a prefill, and how long is a step whose arithmetic is almost nothing?

The second is *dispatch*: Python, the framework and the launch of each operation, the same whatever the width of the
model. It is measured on models with the same layers and almost no width.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from labkit.ceilings.rate import Rate, get_place, hold_one_thread
from labkit.errors import LabkitError, ModelError
from labkit.timing import Device, Stopwatch

__all__ = [
    "load_narrow_model",
    "load_random_model",
    "measure_dispatch",
    "measure_op_dispatch",
    "measure_prefills",
    "measure_steps",
    "run_prefill",
]

_NARROW = {"hidden_size": 64, "num_attention_heads": 2, "head_dim": 32, "intermediate_size": 64, "vocab_size": 64}


def load_random_model(config: Mapping[str, Any], *, dtype: str = "float32", device: str = "cpu", **changes: Any) -> Any:
    """Return a model of this shape, `changes` applied to the config, with random weights (seed 0): for speed only."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {key: value for key, value in config.items() if key not in ("architectures", "quantization_config")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**fields | changes), dtype=getattr(torch, dtype), trust_remote_code=False
        )
    return made.to(device).eval()


def run_prefill(model: Any, *, prompt_tokens: int, batch: int = 1) -> Any:
    """Read B prompts of random tokens, logits of the last position only; return the cache."""
    import torch

    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (batch, prompt_tokens), generator=draw)  # (B, S)
    with torch.inference_mode():
        return model(ids.to(model.device), use_cache=True, logits_to_keep=1).past_key_values


def measure_steps(
    models: Mapping[str, Any],
    *,
    context_tokens: int,
    batch: int = 1,
    num_rounds: int = 20,
    num_warmup: int = 3,
    device: "str | Device | None" = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, tuple[float, ...]]:
    """Return the seconds of one decode step of each model, in turns, B sequences with `context_tokens` in the cache.

    The step's own token is taken out of the cache again outside of the timing, so that all samples do the same work.
    `device` is what the stopwatch waits for: the models' own by default.
    """
    import torch

    if not models:
        raise LabkitError("there is no model to time.", next_step="give at least one.")
    first = next(iter(models.values()))
    device = device or str(first.device)
    steps = {}
    for name, model in models.items():
        cache = run_prefill(model, prompt_tokens=context_tokens, batch=batch)
        one = torch.zeros((batch, 1), dtype=torch.long, device=model.device)  # (B, 1)
        steps[name] = (model, cache, one)
    samples: dict[str, list[float]] = {name: [] for name in models}
    names, draw = list(models), np.random.default_rng(0)
    with hold_one_thread(str(first.device)), torch.inference_mode():
        for number in range(-num_warmup, num_rounds):
            for name in draw.permutation(names).tolist():  # drawn: nobody always finds the caches that another left
                model, cache, one = steps[name]
                with Stopwatch(device=device, clock=clock) as watch:
                    model(one, past_key_values=cache, use_cache=True, logits_to_keep=1)
                cache.crop(-1)
                if number >= 0:
                    samples[name].append(watch.elapsed_s)
    return {name: tuple(values) for name, values in samples.items()}


def measure_prefills(
    model: Any, *, prompt_tokens: int, batch: int = 1, num_rounds: int = 8, device: "str | Device | None" = None
) -> tuple[float, ...]:
    """Return the seconds of reading B prompts into an empty cache, after one warm-up."""
    device = device or str(model.device)
    samples = []
    with hold_one_thread(str(model.device)):
        for number in range(-1, num_rounds):
            with Stopwatch(device=device) as watch:
                run_prefill(model, prompt_tokens=prompt_tokens, batch=batch)
            if number >= 0:
                samples.append(watch.elapsed_s)
    return tuple(samples)


def load_narrow_model(config: Mapping[str, Any], *, dtype: str = "float32", device: str = "cpu") -> Any:
    """Return a random model with the layers and experts of a config, and next to no width: its step is dispatch.

    It runs the same operations in the same order, on almost nothing. Only the course's gated families (Llama, Mistral,
    Qwen and their mixtures) can be narrowed.
    """
    if not isinstance(config.get("num_hidden_layers"), int) or config.get("model_type") == "opt":
        raise ModelError(
            "this config cannot be narrowed.", next_step="give one of the Llama, Mistral or Qwen families."
        )
    heads, kv_heads = config.get("num_attention_heads", 1), config.get("num_key_value_heads")
    changes = _NARROW | {"num_key_value_heads": 2 if kv_heads in (None, heads) else 1}  # repeated, if the model's are
    changes |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    changes |= {key: 64 for key in ("moe_intermediate_size", "shared_expert_intermediate_size") if config.get(key)}
    return load_random_model(config, dtype=dtype, device=device, **changes)


def measure_dispatch(
    config: Mapping[str, Any],
    *,
    dtype: str = "float32",
    device: str = "cpu",
    context_tokens: int = 8,
    num_rounds: int = 20,
) -> Rate:
    """Return the seconds of a decode step of `load_narrow_model`.

    To hold it against a real step, better time both in turns: `measure_steps({"model": ..., "narrow": ...})`.
    """
    narrow = load_narrow_model(config, dtype=dtype, device=device)
    found = measure_steps({"narrow": narrow}, context_tokens=context_tokens, num_rounds=num_rounds)
    return Rate("dispatch", "s", found["narrow"], config["num_hidden_layers"])


def measure_op_dispatch(*, device: "str | Device" = "cpu", num_rounds: int = 20, num_ops: int = 2000) -> Rate:
    """Return the seconds of one operation on a single number: what the framework costs before it computes anything.

    `num_ops` in a row are one sample; on a GPU the launches queue up, so it is the time per launch.
    """
    import torch

    x = torch.ones(1, device=get_place(device))
    samples = []
    with hold_one_thread(device), torch.inference_mode():
        for number in range(-1, num_rounds):
            with Stopwatch(device=device) as watch:
                for _ in range(num_ops):
                    x.neg_()
            if number >= 0:
                samples.append(watch.elapsed_s / num_ops)
    return Rate("one operation", "s", tuple(samples), 1)
