"""What is asked of the server? The body of a request, for either API, from a planned request."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from labkit.load.schedules import Plan, Planned

__all__ = ["Target", "encode_bodies"]

_MAX_PREPARED_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Target:
    """What to ask for: the model, the API ("completions" or "chat"), and how.

    `is_fixed_length`: the server must make exactly the planned number of tokens (`ignore_eos`, `min_tokens`). `extra`
    is added to every request. With "chat" a prompt is words in place of token ids, so its length is not exact.
    `secrets`: texts that a server's error message must not carry into a record.
    """

    model: str
    api: str = "completions"
    is_fixed_length: bool = True
    extra: Mapping[str, object] = field(default_factory=dict)
    secrets: tuple[str, ...] = field(default=(), repr=False)

    @property
    def path(self) -> str:
        """The path of the API."""
        return "/v1/chat/completions" if self.api == "chat" else "/v1/completions"

    def encode(self, planned: Planned) -> bytes:
        """Return the body of a request, as JSON."""
        ids = planned.prompt.draw_ids()
        num = planned.num_output_tokens
        body = {"model": self.model, "temperature": 0, "max_tokens": num, "stream": True}
        if self.api == "chat":
            body["messages"] = [{"role": "user", "content": " ".join(f"w{token}" for token in ids)}]
        else:
            body["prompt"] = ids
        if self.is_fixed_length:
            body |= {"min_tokens": num, "ignore_eos": True}
        body["stream_options"] = {"include_usage": True}
        if self.is_fixed_length:  # servers that know the one know the other
            body["stream_options"]["continuous_usage_stats"] = True
        return json.dumps(body | dict(self.extra), separators=(",", ":")).encode()


def encode_bodies(plan: Plan, target: Target) -> dict[int, bytes]:
    """Write out the first request of each chain before the run, by the chain's number, as far as 64 MiB go."""
    bodies, num_bytes = {}, 0
    for chain in sorted(plan.chains, key=lambda chain: chain.start_s):
        if num_bytes > _MAX_PREPARED_BYTES:
            break
        bodies[chain.number] = target.encode(chain.requests[0])
        num_bytes += len(bodies[chain.number])
    return bodies
