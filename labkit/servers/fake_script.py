"""What will the fake server do, and when? Scripts and service times, as values."""

import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["FakePlan", "Reply", "Step"]

KINDS = ("text", "reasoning", "role", "usage", "comment", "error", "half", "raw", "stall", "reset", "done")


@dataclass(frozen=True, slots=True)
class Step:
    """Wait `delay_s` after the step before (the first: after the request arrived), then write one thing.

    `text`, `reasoning`: an event with content worth `num_tokens` tokens (reasoning: chat only). `role`: a delta with
    a role and no content. `usage`: an event without choices. `comment`: ": ping". `error`: an error event inside a
    stream that began with 200. `half`: a text event that stops in the middle of its first multi-byte character; the
    next step sends the rest first. `raw`: `text` as it stands. `stall`: nothing more, until the client leaves.
    `reset`: the connection is cut with RST. `done`: "[DONE]" and the end. A script without a final `reset`, `stall`
    or `done` just ends.
    """

    kind: str = "text"
    delay_s: float = 0.0
    text: str = ""
    num_tokens: int = 1

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"A step of kind {self.kind!r} is unknown; the kinds are {', '.join(KINDS)}.")


@dataclass(frozen=True, slots=True)
class Reply:
    """What the server does with one request: a status (429 or 503 with `retry_after_s`, or none) or a script of
    steps.
    """

    steps: tuple[Step, ...] = ()
    status: int = 200
    retry_after_s: float | None = None
    newline: str = "\n"


@dataclass(frozen=True, slots=True)
class FakePlan:
    """The times of a fake server, in seconds.

    With `replies`, request number k gets `replies[k % len(replies)]`. Without, it gets its `max_tokens` tokens: the
    first `ttft_s` + `prompt_token_s` per prompt token after it was let in, then one every `itl_s`, `tokens_per_chunk`
    in one event. `cv` is the coefficient of variation of each delay (lognormal with that mean; 0: fixed), drawn from
    `seed` and the number of the request, so that the order of arrival does not matter. `slowdown` multiplies all of
    these times. `max_concurrency`: requests served at once, the others wait in order. Until `start_delay_s` after the
    start, /health says 503.
    """

    replies: tuple[Reply, ...] = ()
    ttft_s: float = 0.1
    itl_s: float = 0.02
    prompt_token_s: float = 0.0
    tokens_per_chunk: int = 1
    cv: float = 0.0
    seed: int = 0
    slowdown: float = 1.0
    max_concurrency: int | None = None
    start_delay_s: float = 0.0
    model: str = "fake"

    def script(self, number: int, *, num_prompt_tokens: int, num_tokens: int) -> Iterator[Step]:
        """The steps of request `number` by the service-time model."""
        draw = random.Random(f"{self.seed}:{number}")
        sigma = math.sqrt(math.log1p(self.cv**2))

        def vary(mean_s: float) -> float:  # lognormal with this mean and coefficient of variation
            if mean_s <= 0:
                return 0.0
            return self.slowdown * (
                mean_s if not sigma else draw.lognormvariate(math.log(mean_s) - sigma**2 / 2, sigma)
            )

        delay_s = vary(self.ttft_s) + vary(self.prompt_token_s) * num_prompt_tokens
        for first in range(0, num_tokens, self.tokens_per_chunk):
            count = min(self.tokens_per_chunk, num_tokens - first)
            text = "".join(f" w{first + k}" for k in range(count))
            yield Step("text", delay_s, text, count)
            delay_s = sum(vary(self.itl_s) for _ in range(count if first + count < num_tokens else 0))
        yield Step("done")

    @classmethod
    def from_json(cls, text: str) -> "FakePlan":
        """The plan that `json.dumps(asdict(plan))` wrote; an unknown field is an error."""
        fields = json.loads(text)
        replies = tuple(
            Reply(**{**reply, "steps": tuple(Step(**step) for step in reply.get("steps", ()))})
            for reply in fields.pop("replies", ())
        )
        return cls(replies=replies, **fields)
