"""How much work may this run do?

`LABKIT_BUDGET=learner` (the default) gives the repeats of a committed solution; `ci` reduces repeats, request counts
and settings, but never engines, checks or models. Every record names its budget.
"""

import os
from typing import TypeVar

from labkit.errors import LabkitError

__all__ = ["choose_by_budget", "read_budget"]

T = TypeVar("T")


def read_budget() -> str:
    """Return `learner` or `ci`, from the environment variable LABKIT_BUDGET; any other value is a LabkitError."""
    budget = os.environ.get("LABKIT_BUDGET") or "learner"
    if budget not in ("learner", "ci"):
        raise LabkitError(
            f"LABKIT_BUDGET is {budget!r}; expected 'learner' or 'ci'.",
            next_step="Unset LABKIT_BUDGET, or set it to one of the two.",
        )
    return budget


def choose_by_budget(*, learner: T, ci: T) -> T:
    """Return the value for the current budget."""
    return {"learner": learner, "ci": ci}[read_budget()]
