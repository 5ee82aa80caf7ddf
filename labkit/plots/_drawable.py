"""Can this be drawn? A value that a figure would leave out without a word (NaN, or 0 on a log axis) is refused."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from labkit.errors import LabkitError


def check_drawable(what: str, values: Iterable[Any], *, is_log: bool = False) -> None:
    """Raise LabkitError where a value is no finite number, or on a log axis is not above 0; `what` names the values."""
    values = list(values)
    try:
        numbers = np.asarray(values, dtype=float)
        if any(isinstance(value, str) for value in values):  # numpy reads "5" as 5
            raise TypeError
    except (TypeError, ValueError):
        raise LabkitError(f"{what} must be numbers.", next_step="look at what was collected.") from None
    wrong = ~np.isfinite(numbers) | ((numbers <= 0) if is_log else False)
    if wrong.any():
        seen = values[int(np.argmax(wrong))]
        expected = "finite and above 0, because the axis is logarithmic" if is_log else "finite"
        raise LabkitError(
            f"{what} must be {expected}, and one is {seen}: the figure would leave it out.",
            next_step="find out where it comes from; do not drop it.",
        )
