"""The words that a lab's checks are written in: passed, fail, block, expect_cases, and a few to look closer.

A check is a function of the learner's answer that returns passed("...") or stops at the first fail("...").
`labkit/checks/lab00.py` is the model.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from labkit.checks._learner import LearnerFunction, LearnerRaised, NotAttempted
from labkit.checks._traces import shorten
from labkit.views import Outcome

__all__ = ["Case", "Verdict", "block", "expect_cases", "expect_function", "fail", "passed"]


class Verdict(Exception):  # noqa: N818
    """Carries an outcome out of a check."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.sentence)
        self.outcome = outcome


@dataclass(frozen=True, slots=True)
class Case:
    """One call with its expected answer, worked by hand; `why` is the sentence for a learner who fails only here."""

    expected: Any
    args: tuple = ()
    kwargs: dict = field(default_factory=dict)
    why: str = ""


def passed(sentence: str, measurement: dict | None = None) -> Outcome:
    """Return the outcome of a right answer; the sentence says what the learner now has."""
    return Outcome("passed", sentence, measurement)


def fail(sentence: str) -> NoReturn:
    """End the check: the sentence names the mistake and the next step."""
    raise Verdict(Outcome("failed", sentence))


def block(sentence: str) -> NoReturn:
    """End the check: this hardware cannot show it; neither a pass nor a fail."""
    raise Verdict(Outcome("blocked", sentence))


def expect_function(answer: Any, name: str) -> None:
    """Fail unless the answer is a function: `check("00.1", f)`, not `check("00.1", f(3))`."""
    if not isinstance(answer, LearnerFunction):
        fail(f"the check wants the function itself, and got {_format_kind(answer)}: write `{name}` without brackets.")


def expect_cases(
    function: LearnerFunction,
    cases: Sequence[Case],
    mistakes: Sequence[tuple[str, Callable]] = (),
    *,
    relative: float = 1e-9,
) -> None:
    """Fail unless every case gives its expected answer.

    `mistakes` are pairs (sentence, wrong function). When an answer differs, the first wrong function that explains
    *every* answer names the mistake; without one, the case's own `why` does. Numbers may differ by `relative`.
    """
    for case in cases:
        got = function(*case.args, **case.kwargs)
        if _is_same(got, case.expected, relative=relative):
            continue
        call = function.call
        named = _find_mistake(function, cases, mistakes, relative=relative)
        why = named or _format_difference_of_kind(got, case.expected) or case.why
        fail(f"{call}: got {shorten(repr(got), 60)}, expected {case.expected!r}" + (f": {why}" if why else "."))
    if function.changed:
        fail(f"{function.changed} changes its arguments: work on a copy, the caller still needs them.")


def _find_mistake(
    function: LearnerFunction, cases: Sequence[Case], mistakes: Sequence[tuple[str, Callable]], *, relative: float
) -> str:
    answers = []
    for case in cases:
        try:
            answers.append((case, function(*case.args, **case.kwargs)))
        except (LearnerRaised, NotAttempted):
            continue  # the other cases still tell the mistake
    for sentence, wrong in mistakes:
        # A wrong function may be undefined somewhere: then it does not explain the answer.
        with contextlib.suppress(Exception):
            if all(_is_same(got, wrong(*case.args, **case.kwargs), relative=relative) for case, got in answers):
                return sentence
    return ""


def _is_same(got: Any, expected: Any, *, relative: float = 1e-9) -> bool:
    """Tell whether two answers agree: numbers within `relative`, lists and tuples item by item, all else exactly."""
    if expected is None or isinstance(expected, bool | str):
        return type(got) is type(expected) and got == expected
    if isinstance(expected, int | float):
        is_number = isinstance(got, int | float) and not isinstance(got, bool)
        return is_number and (math.isclose(got, expected, rel_tol=relative) or (got != got and expected != expected))
    if isinstance(expected, tuple | list):
        got = got.tolist() if hasattr(got, "tolist") else got
        is_row = isinstance(got, tuple | list) and len(got) == len(expected)
        return is_row and all(_is_same(a, b, relative=relative) for a, b in zip(got, expected, strict=True))
    return bool(got == expected)


def _format_difference_of_kind(got: Any, expected: Any) -> str:
    """Say in words that the answer is another kind of thing than expected, or "" when the kinds agree."""
    if expected is None or _format_kind(got) == _format_kind(expected):
        return ""
    if got is None:
        return "nothing came back, is a `return` missing?"
    return f"that is {_format_kind(got)}, and {_format_kind(expected)} was asked for."


def _format_kind(value: Any) -> str:
    """Name the kind of a value in simple words."""
    if value is None:
        return "None"
    if isinstance(value, bool):
        return "True or False"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a text"
    if isinstance(value, tuple | list):
        return f"a row of {len(value)}"
    return f"a {type(value).__name__}"
