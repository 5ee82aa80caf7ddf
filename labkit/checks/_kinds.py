"""Is an answer of a kind that the notebook's next cell can use?"""

import math
from typing import Any

from labkit.checks._learner import LearnerFunction
from labkit.checks._words import fail

__all__ = ["expect_no_generator", "is_number"]


def expect_no_generator(function: LearnerFunction) -> None:
    """Fail when the learner's function gave its answer by `yield`: the next cell asks for its length or an item."""
    if function.was_generator:
        fail(
            f"`{function.__name__}` gives its answer by a generator (`yield`), which the next cell cannot index: "
            "return a tuple or a list."
        )


def is_number(value: Any) -> bool:
    """Tell whether a value is a finite number that a float can hold; True and False are none."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number of hundreds of digits
        return False
