"""What a lab's checks are written with: passed, fail, block, expect_cases, and a few more specific ones.

A check is a function that takes the learner's answer and returns passed("...") or stops at the first fail("...").
The checks.py of any lab (solutions/src/NN_topic/) shows the form.
"""

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

_NOTHING = "nothing came back: is a `return` missing?"


class CheckEnded(Exception):  # noqa: N818
    """Ends a check and carries its outcome."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.sentence)
        self.outcome = outcome


@dataclass(frozen=True, slots=True)
class Case:
    """One call with its expected answer, worked out by hand.

    Attributes:
        expected: the right answer.
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.
        why: shown to a learner who fails this case, if no known mistake explains the answer.
    """

    expected: Any
    args: tuple = ()
    kwargs: dict = field(default_factory=dict)
    why: str = ""


def passed(sentence: str, measurement: dict | None = None) -> Outcome:
    """Return the outcome of a right answer; the sentence says what the learner has achieved."""
    return Outcome("passed", sentence, measurement)


def fail(sentence: str) -> NoReturn:
    """End the check as failed; the sentence names the mistake and the next step."""
    raise CheckEnded(Outcome("failed", sentence))


def block(sentence: str) -> NoReturn:
    """End the check as blocked: this hardware cannot show the effect. That is neither a pass nor a failure."""
    raise CheckEnded(Outcome("blocked", sentence))


def expect_function(answer: Any, name: str) -> None:
    """Fail unless the answer is a function: `check("00.1", f)`, not `check("00.1", f(3))`."""
    if not isinstance(answer, LearnerFunction):
        how = f"`def {name}(...)`, not an object" if callable(answer) else f"`{name}` without parentheses"
        fail(f"expected the function itself, got {_format_kind(answer)}: write {how}.")
    function = getattr(answer.function, "func", answer.function)  # of a functools.partial
    if is_own_code(str(getattr(function, "__module__", ""))):
        fail("this is the check's own code: write the function yourself.")


def is_own_code(module: str) -> bool:
    """Tell whether a name that begins with a module's name belongs to labkit.checks or to a lab's checks."""
    return bool(re.match(r"labkit\.checks\.|lab\d\d\.", module))


def expect_answer(got: Any, call: str) -> None:
    """Fail if the answer is None; a dict, list or tuple that holds only None is an unfilled stub."""
    if got is None:
        fail(f"{call}: {_NOTHING}")
    values = list(got.values()) if isinstance(got, dict) else got if isinstance(got, tuple | list) else ()
    if values and all(value is None for value in values):
        raise NotAttempted


def expect_fields(got: Any, fields: Sequence[str], record: Any, *, call: str, where: str) -> None:
    """Fail unless an answer about a record is a dict with these fields whose `record` is that record's id."""
    expect_answer(got, call)
    if not isinstance(got, dict) or set(got) != set(fields):
        fail(f"expected a dict with the keys {', '.join(fields)}, got {shorten(repr(got), 60)}.")
    if not isinstance(got["record"], str) or got["record"] != record.id:
        fail(f"{where}: `record` is {shorten(repr(got['record']), 40)}, expected the record's id: use record.id.")


def expect_cases(
    function: LearnerFunction,
    cases: Sequence[Case],
    *,
    relative: float = 1e-9,
    names_mistakes: bool = True,
) -> None:
    """Fail unless every case gives its expected answer; numbers may differ by a factor of 1 ± `relative`.

    If an answer differs, the message names the first mistake in mistakes.txt that explains *every* answer; if none
    does, it is the case's `why`. Without `names_mistakes` none is looked for: a few cases would fit many mistakes.
    """
    for case in cases:
        got = function(*case.args, **case.kwargs)
        if is_same(got, case.expected, relative=relative):
            continue
        call = function.call
        named = _find_mistake(function, cases, relative=relative) if names_mistakes else ""
        why = named or _format_difference_of_kind(got, case, cases)
        if not why and is_same(got, case.expected, relative=1e-6):
            why = "correct only to float32 precision: compute in float64."
        why = why or case.why
        fail(f"{call}: got {shorten(repr(got), 60)}, expected {case.expected!r}" + (f": {why}" if why else "."))
    if function.changed:
        fail(f"{function.changed} changes its arguments: work on a copy, the caller still needs them.")


def _find_mistake(function: LearnerFunction, cases: Sequence[Case], *, relative: float) -> str:
    if not function.exercise:
        return ""
    answers = []
    for case in cases:
        try:
            answers.append((case, function(*case.args, **case.kwargs)))
        except LearnerEndless:
            raise
        except (LearnerRaised, NotAttempted):
            continue  # the other cases can still identify the mistake

    def explains(wrong: Callable) -> bool:
        guarded = copy.copy(function)  # keeps the type: a check may use a subclass that reads one part of the answer
        guarded.function = wrong
        return all(is_same(got, guarded(*case.args, **case.kwargs), relative=relative) for case, got in answers)

    return find_mistake(function.exercise, function.reference_name, explains)


def is_same(got: Any, expected: Any, *, relative: float = 1e-9) -> bool:
    """Tell whether two answers agree: numbers within `relative`, containers item by item, anything else exactly."""
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
        # A sum that cancels may leave about 1e-16 instead of 0; every other number in a case is far above 1e-12.
        return math.isclose(got, expected, rel_tol=relative, abs_tol=0.0 if expected else 1e-12)
    if isinstance(expected, tuple | list):
        got = got.tolist() if hasattr(got, "tolist") else got
        fits = isinstance(got, tuple | list) and len(got) == len(expected)
        return fits and all(is_same(a, b, relative=relative) for a, b in zip(got, expected, strict=True))
    if isinstance(expected, dict):
        has_keys = isinstance(got, dict) and got.keys() == expected.keys()
        return has_keys and all(is_same(got[key], value, relative=relative) for key, value in expected.items())
    return bool(got == expected)


def _format_difference_of_kind(got: Any, case: Case, cases: Sequence[Case]) -> str:
    """Say how the answer's type differs from the expected one, or "" if they are the same."""
    expected = case.expected
    got = got.tolist() if hasattr(got, "tolist") else got
    if expected is None or _format_kind(got) == _format_kind(expected):
        return ""
    if got is None:  # if None is a valid answer to another case, it may be deliberate
        return "" if any(_holds_none(one.expected) for one in cases) else _NOTHING
    said = f"that is {_format_kind(got)}, not {_format_kind(expected)}"
    return f"{said}: {case.why}" if case.why and _is_sequence(got) and _is_sequence(expected) else f"{said}."


def _holds_none(expected: Any) -> bool:
    return expected is None or (_is_sequence(expected) and any(map(_holds_none, expected)))


def _is_sequence(value: Any) -> bool:
    return isinstance(value, tuple | list)


def _format_kind(value: Any) -> str:
    """Name the type of a value in plain words."""
    if value is None:
        return "None"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, tuple | list):
        return f"a sequence of length {len(value)}"
    return f"a {type(value).__name__}"


def expect_no_generator(function: LearnerFunction) -> None:
    """Fail if the learner's function is a generator: a later cell needs the length or an item of its result."""
    if function.was_generator:
        fail(
            f"`{function.__name__}` is a generator (it uses `yield`), and the next cell needs to index its result: "
            "return a tuple or a list."
        )
