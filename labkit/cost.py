"""What does a token cost? The price of the machine over the tokens it generates."""

import math

from labkit.errors import LabkitError

__all__ = ["estimate_usd_per_million_tokens"]


def estimate_usd_per_million_tokens(price_usd_per_hour: float, *, tok_per_s: float) -> float:
    """Return USD per million tokens: price per hour / (tok_per_s · 3600) · 1e6.

    $2.00 per hour at 1,000 tok/s is $0.5556. State with the number which tokens were counted (output, or input and
    output) and under which latency goal: the same machine has many prices per token. Raises LabkitError for a negative
    price or no throughput.
    """
    if not (math.isfinite(price_usd_per_hour) and price_usd_per_hour >= 0):
        raise LabkitError(f"the price is {price_usd_per_hour} USD per hour.", next_step="give a price of 0 or more.")
    if not (math.isfinite(tok_per_s) and tok_per_s > 0):
        raise LabkitError(
            f"the throughput is {tok_per_s} tok/s, and a token that is never generated has no price.",
            next_step="find out why the run generated no tokens.",
        )
    return price_usd_per_hour / (tok_per_s * 3600) * 1e6
