"""What does a token cost? Price of the machine over the tokens it makes."""

import math

from labkit.errors import LabkitError

__all__ = ["estimate_usd_per_million_tokens"]


def estimate_usd_per_million_tokens(price_usd_per_hour: float, *, tok_per_s: float) -> float:
    """Return USD per million tokens: price per hour / (tok_per_s · 3600) · 1e6.

    $2.00 an hour at 1,000 tok/s is $0.5556. Say beside the number which tokens were counted (output, or input and
    output) and under which latency goal: the same machine has many prices per token.
    """
    if not (math.isfinite(price_usd_per_hour) and price_usd_per_hour >= 0):
        raise LabkitError(f"the price is {price_usd_per_hour} USD per hour.", next_step="give a price of 0 or more.")
    if not (math.isfinite(tok_per_s) and tok_per_s > 0):
        raise LabkitError(
            f"the throughput is {tok_per_s} tok/s, and a token that is never made has no price.",
            next_step="look why the run made no tokens.",
        )
    return price_usd_per_hour / (tok_per_s * 3600) * 1e6
