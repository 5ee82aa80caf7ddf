"""Who generates the tokens in this process? Plain Transformers, one request, with the time of every token.

A stream of tokens is the raw material of every latency metric: TTFT is the first token's time minus the start, the gaps
are the inter-token latencies. Serving engines in processes of their own are in `labkit.servers`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from labkit.errors import LabkitError

__all__ = ["Generation", "run_generation"]


@dataclass(frozen=True, slots=True)
class Generation:
    """One greedy completion and its times, all on the same monotonic clock.

    Attributes:
        prompt: the text that was completed.
        text: the completion.
        token_ids: its tokens.
        start_s: when the generation started, in seconds.
        token_times_s: when each token arrived, in seconds, one per token.
    """

    prompt: str
    text: str
    token_ids: tuple[int, ...]
    start_s: float
    token_times_s: tuple[float, ...]


def run_generation(
    model,
    tokenizer,
    prompt: str,
    *,
    num_tokens: int,
    show: Callable[[str], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Generation:
    """Complete `prompt` greedily with exactly `num_tokens` tokens and record when each of them arrives.

    `model` and `tokenizer` come from `labkit.models.load_model`. The length is fixed (no stop at end-of-text), so that
    two runs do the same work. `show` receives the text so far, about ten times in all. It runs after the time is taken
    and so lengthens the next gap: leave it out when you measure. The times are right on a GPU too, because `generate`
    hands each token to the CPU, which waits for the device.
    """
    import torch

    if num_tokens < 1:
        raise LabkitError(f"num_tokens is {num_tokens}; expected at least 1.", next_step="Ask for one token or more.")
    ids = tokenizer(prompt, return_tensors="pt").input_ids.to(model.device)  # (1, S)
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit and ids.shape[1] + num_tokens > limit:
        raise LabkitError(
            f"{ids.shape[1]} prompt tokens and {num_tokens} output tokens need {ids.shape[1] + num_tokens} positions, "
            f"the model has {limit}.",
            next_step="Shorten the prompt or ask for fewer tokens.",
        )
    streamer = _Streamer(clock, tokenizer, show, every=max(1, num_tokens // 10))
    start_s = clock()
    with torch.inference_mode():
        model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_tokens, min_new_tokens=num_tokens,
            do_sample=False, streamer=streamer, pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
        )  # fmt: skip
    text = tokenizer.decode(streamer.token_ids)
    return Generation(prompt, text, tuple(streamer.token_ids), start_s, tuple(streamer.times_s))


class _Streamer:
    """What Transformers calls with the whole prompt first, then with each new token."""

    def __init__(self, clock, tokenizer, show, *, every: int):
        self.clock, self.tokenizer, self.show, self.every = clock, tokenizer, show, every
        self.token_ids: list[int] = []
        self.times_s: list[float] = []
        self.has_prompt = False

    def put(self, value) -> None:
        now = self.clock()
        if not self.has_prompt:  # the prompt is not output
            self.has_prompt = True
            return
        self.times_s.append(now)
        self.token_ids.extend(value.reshape(-1).tolist())
        if self.show and len(self.token_ids) % self.every == 0:
            self.show(f"{len(self.token_ids)} tokens | {self.tokenizer.decode(self.token_ids)}")

    def end(self) -> None:
        if self.show:
            self.show(f"{len(self.token_ids)} tokens | {self.tokenizer.decode(self.token_ids)}")
