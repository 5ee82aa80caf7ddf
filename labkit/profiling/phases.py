"""The two phases of a decoder as functions without arguments, ready to be profiled: a prefill, and a decode step."""

from collections.abc import Sequence

from labkit.errors import LabkitError

__all__ = ["Phases"]

_MAX_STEPS = 64  # decode steps before the cache is cut back, so that the context stays about the same


class Phases:
    """`run_prefill()` reads a prompt of `context_tokens` tokens; `run_decode()` adds one token to a filled cache.

    `token_ids` are the prompt's tokens, repeated if there are too few; `model` comes from `labkit.models.load_model`.
    Batch size 1. The cache grows by one token per decode step, as in real decoding, and is cut back after 64 steps.
    """

    def __init__(self, model, token_ids: Sequence[int], *, context_tokens: int) -> None:
        import torch

        limit = getattr(model.config, "max_position_embeddings", None)
        if not len(token_ids) or context_tokens < 1:
            raise LabkitError("the prompt has no tokens.", next_step="give token ids, and a context of at least 1.")
        if limit and context_tokens + _MAX_STEPS > limit:
            raise LabkitError(
                f"{context_tokens} tokens and {_MAX_STEPS} steps do not fit: the model has {limit} positions.",
                next_step=f"use a context of at most {limit - _MAX_STEPS}.",
            )
        ids = (list(token_ids) * (context_tokens // len(token_ids) + 1))[:context_tokens]
        self.model, self.context_tokens = model, context_tokens
        self._torch = torch
        self._ids = torch.tensor([ids], device=model.device)  # (1, S)
        self._next = self._ids[:, -1:]  # (1, 1)
        self._cache = self.run_prefill().past_key_values

    def run_prefill(self):
        """Read the whole prompt into a new cache and compute the logits of its last position."""
        with self._torch.inference_mode():
            return self.model(self._ids, use_cache=True, logits_to_keep=1)

    def run_decode(self):
        """Compute one more token: one row through the model, with all tokens before it in the cache."""
        if self._cache.get_seq_length() >= self.context_tokens + _MAX_STEPS:
            self.reset()
        with self._torch.inference_mode():
            return self.model(self._next, past_key_values=self._cache, use_cache=True)

    def reset(self) -> None:
        """Cut the cache back to the prompt."""
        if surplus := self._cache.get_seq_length() - self.context_tokens:
            self._cache.crop(-surplus)

    def measure_kv_bytes(self) -> int:
        """Return the bytes of the keys and values that are in the cache now, summed over its tensors."""
        tensors = [tensor for layer in self._cache.layers for tensor in (layer.keys, layer.values)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)  # each (B, G, S, D)
