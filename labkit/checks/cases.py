"""The words that a lab's checks are written in: passed, fail, block, expect_cases, and a few to look closer.

A check is a function of the learner's answer that returns passed("...") or stops at the first fail("...").
The checks of lab 12 are the model: solutions/src/12_hf_vs_vllm/checks.py.
"""

import contextlib
import copy
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from labkit.checks.learner import LearnerEndless, LearnerFunction, LearnerRaised, NotAttempted, shorten
from labkit.checks.mistakes import find_mistake
from labkit.units import is_number
from labkit.views import Outcome

__all__ = ["Case", "CheckEnded", "block", "expect_answer", "expect_cases", "expect_fields", "expect_function",
           "expect_no_generator", "fail", "is_own_code", "is_same", "passed"]  # fmt: skip

_NOTHING = "nothing came back, is a `return` missing?"


class CheckEnded(Exception):  # noqa: N818
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
    raise CheckEnded(Outcome("failed", sentence))


def block(sentence: str) -> NoReturn:
    """End the check: this hardware cannot show it; neither a pass nor a fail."""
    raise CheckEnded(Outcome("blocked", sentence))


def expect_function(answer: Any, name: str) -> None:
    """Fail unless the answer is a function: `check("00.1", f)`, not `check("00.1", f(3))`."""
    if not isinstance(answer, LearnerFunction):
        how = f"`def {name}(...)`, not an object" if callable(answer) else f"`{name}` without brackets"
        fail(f"the check wants the function itself, and got {_format_kind(answer)}: write {how}.")
    function = getattr(answer.function, "func", answer.function)  # of a functools.partial
    if is_own_code(str(getattr(function, "__module__", ""))):
        fail("the check's own code is no answer: write it by hand.")


def is_own_code(module: str) -> bool:
    """Tell whether a module's name, or what begins with it, belongs to the judge or to the checks of a lab."""
    return bool(re.match(r"labkit\.checks\.|lab\d\d\.", module))


def expect_answer(got: Any, call: str) -> None:
    """Fail when nothing came back; a dict or row of nothing but None is a stub that was not filled in."""
    if got is None:
        fail(f"{call}: {_NOTHING}")
    values = list(got.values()) if isinstance(got, dict) else got if isinstance(got, tuple | list) else ()
    if values and all(value is None for value in values):
        raise NotAttempted


def expect_fields(got: Any, fields: Sequence[str], record: Any, *, call: str, where: str) -> None:
    """Fail unless an answer about a record is a dict with these fields, and `record` is that record's id."""
    expect_answer(got, call)
    if not isinstance(got, dict) or set(got) != set(fields):
        fail(f"the answer is a dict with the keys {', '.join(fields)}, and this is {shorten(repr(got), 60)}.")
    if not isinstance(got["record"], str) or got["record"] != record.id:
        fail(f"{where}: `record` is {shorten(repr(got['record']), 40)}, and its id was asked for: record.id.")


def expect_cases(
    function: LearnerFunction,
    cases: Sequence[Case],
    mistakes: Sequence[tuple[str, Callable]] | None = (),
    *,
    relative: float = 1e-9,
) -> None:
    """Fail unless every case gives its expected answer; numbers may differ by `relative`.

    When an answer differs, the first known mistake (mistakes.txt, then `mistakes`: pairs of a sentence and a wrong
    function) that explains *every* answer is named; without one, the case's own `why` is the sentence. With None no
    mistake is looked for: a few cases would be explained by many.
    """
    for case in cases:
        got = function(*case.args, **case.kwargs)
        if is_same(got, case.expected, relative=relative):
            continue
        call = function.call
        named = "" if mistakes is None else _find_mistake(function, cases, mistakes, relative=relative)
        why = named or _format_difference_of_kind(got, case, cases)
        if not why and is_same(got, case.expected, relative=1e-6):
            why = "right to the digits of float32: compute in float64, the check looks closer."
        why = why or case.why
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
        except LearnerEndless:
            raise
        except (LearnerRaised, NotAttempted):
            continue  # the other cases still tell the mistake

    def explains(wrong: Callable) -> bool:
        guarded = copy.copy(function)  # a check may have its own kind, which reads one part of an answer
        guarded.function = wrong
        return all(is_same(got, guarded(*case.args, **case.kwargs), relative=relative) for case, got in answers)

    if function.exercise and (sentence := find_mistake(function.exercise, function.reference_name, explains)):
        return sentence
    for sentence, wrong in mistakes:
        # A wrong function may be undefined somewhere: then it does not explain the answer.
        with contextlib.suppress(Exception):
            if explains(wrong):
                return sentence
    return ""


def is_same(got: Any, expected: Any, *, relative: float = 1e-9) -> bool:
    """Tell whether answers agree: numbers within `relative`, lists, tuples and dicts item by item, all else exactly."""
    if expected is None or isinstance(expected, bool):
        return type(got) is type(expected) and got == expected
    if isinstance(expected, str):
        return isinstance(got, str) and got == expected
    if isinstance(expected, int | float):
        if not is_number(got):  # NaN, an infinity, an int too large for a float
            return (
                isinstance(got, int | float)
                and not isinstance(got, bool)
                and (got == expected or (got != got and expected != expected))
            )
        # Sums that cancel leave some 1e-16 where nothing is left; the cases' other numbers are far larger than 1e-12.
        return math.isclose(got, expected, rel_tol=relative, abs_tol=0.0 if expected else 1e-12)
    if isinstance(expected, tuple | list):
        got = got.tolist() if hasattr(got, "tolist") else got
        is_row = isinstance(got, tuple | list) and len(got) == len(expected)
        return is_row and all(is_same(a, b, relative=relative) for a, b in zip(got, expected, strict=True))
    if isinstance(expected, dict):
        has_keys = isinstance(got, dict) and got.keys() == expected.keys()
        return has_keys and all(is_same(got[key], value, relative=relative) for key, value in expected.items())
    return bool(got == expected)


def _format_difference_of_kind(got: Any, case: Case, cases: Sequence[Case]) -> str:
    """Say in words that the answer is another kind of thing than expected, or "" when the kinds agree."""
    expected = case.expected
    got = got.tolist() if hasattr(got, "tolist") else got
    if expected is None or _format_kind(got) == _format_kind(expected):
        return ""
    if got is None:  # where None is an answer, it may well have been meant
        return "" if any(_holds_none(one.expected) for one in cases) else _NOTHING
    said = f"that is {_format_kind(got)}, and {_format_kind(expected)} was asked for"
    return f"{said}: {case.why}" if case.why and _is_row(got) and _is_row(expected) else f"{said}."


def _holds_none(expected: Any) -> bool:
    return expected is None or (_is_row(expected) and any(map(_holds_none, expected)))


def _is_row(value: Any) -> bool:
    return isinstance(value, tuple | list)


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


def expect_no_generator(function: LearnerFunction) -> None:
    """Fail when the learner's function gave its answer by `yield`: the next cell asks for its length or an item."""
    if function.was_generator:
        fail(
            f"`{function.__name__}` gives its answer by a generator (`yield`), which the next cell cannot index: "
            "return a tuple or a list."
        )
