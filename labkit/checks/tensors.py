"""Tensors as answers: are the numbers right, and where are they not; who did the arithmetic; would it run on a GPU?"""

import contextlib
import dataclasses
import io
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from labkit.checks.cases import Case, fail, is_own_code
from labkit.checks.learner import LearnerEndless, LearnerFunction, OutOfTime, copy_arguments, limit_call
from labkit.checks.mistakes import find_mistake

__all__ = ["NAMING_TOLERANCE", "TOLERANCE", "describe_difference", "expect_by_hand", "expect_device", "expect_tensors",
           "is_close", "probe_calls", "probe_frames"]  # fmt: skip

TOLERANCE = 1e-5  # of the largest value; two ways to add float32 numbers up differ by less
NAMING_TOLERANCE = 1e-3  # for naming a mistake: angles of thousands lose digits in float32


def expect_tensors(function: LearnerFunction, cases: Sequence[Case], *, tolerance: float = TOLERANCE) -> None:
    """Fail unless every case gives its expected tensor (or tuple of tensors), and leaves its arguments as they were.

    Shape and dtype are those of the expected tensor; values may differ by `tolerance` of the largest one (or of 1).
    When an answer differs, the first known mistake (mistakes.txt) that explains *every* answer is named; without one,
    the sentence says where the first difference is, and the case's `why`.
    """
    answers = []
    for case in cases:
        got = function(*case.args, **case.kwargs)
        answers.append((case, got, function.call))
    wrong = [(case, got, call) for case, got, call in answers if not is_close(got, case.expected, tolerance=tolerance)]

    def explains(mistake: Callable) -> bool:
        guarded = LearnerFunction(mistake)
        made = ((got, guarded(*case.args, **case.kwargs)) for case, got, _ in answers)
        return all(is_close(got, one, tolerance=NAMING_TOLERANCE) for got, one in made)

    if wrong:
        if sentence := find_mistake(function.exercise, function.reference_name, explains):
            fail(f"`{function.__name__}`: {sentence}")
        case, got, call = wrong[0]
        _fail_at(got, case.expected, tolerance, call, case.why)
    for case, got, _ in answers:
        _expect_dtype(got, case.expected, function.__name__)
    if function.changed:
        fail(f"{function.changed} changes its arguments: the caller still needs them, make a new tensor.")


def is_close(got: Any, expected: Any, *, tolerance: float = TOLERANCE) -> bool:
    """Tell whether two tensors, or tuples of them, agree: shape, places of NaN and infinity, and values within
    `tolerance` of the largest expected one (or of 1). The dtype may differ.
    """
    import torch

    if isinstance(expected, tuple | list):
        is_row = isinstance(got, tuple | list) and len(got) == len(expected)
        return is_row and all(is_close(a, b, tolerance=tolerance) for a, b in zip(got, expected, strict=True))
    if not isinstance(got, torch.Tensor) or got.shape != expected.shape:
        return False
    return not bool(_find_differences(got, expected, tolerance).any())


def describe_difference(got: Any, expected: Any, *, tolerance: float = TOLERANCE) -> str:
    """Say how many elements of a tensor are wrong, by how much, and where the first one is; the shapes are equal."""
    different = _find_differences(got, expected, tolerance)
    place = different.nonzero()[0].tolist()
    got = got.to(expected.device)
    count = f"{int(different.sum())} of {different.numel()} elements"
    if bool((got.isnan() & ~expected.isnan()).any()):
        said = f"{count} are wrong and some are NaN; the first is at {place}"
        return f"{said}: is a whole row masked, or something divided by 0?"
    by = float((got.double() - expected.double()).abs()[different].max())
    values = f"got {got[*place].item():.6g}, expected {expected[*place].item():.6g}"
    return f"{count} differ, by up to {by:.2g}; the first is at {place}: {values}."


def _find_differences(got, expected, tolerance: float):
    """Return for each element whether it differs."""
    import torch

    got, expected = got.to(expected.device).double(), expected.double()
    largest = torch.cat([expected.new_ones(1), expected[expected.isfinite()].abs()]).max()
    is_near = (got - expected).abs() <= tolerance * largest
    return ~(is_near | (got == expected) | (got.isnan() & expected.isnan()))


def _fail_at(got: Any, expected: Any, tolerance: float, call: str, why: str) -> NoReturn:
    import torch

    if got is None:
        fail(f"{call}: nothing came back: is a `return` missing?")
    if isinstance(expected, tuple | list):
        if not isinstance(got, tuple | list) or len(got) != len(expected):
            how = f"of {len(got)}" if isinstance(got, tuple | list) else f"({type(got).__name__})"
            fail(f"{call} returned an answer {how}, expected {len(expected)} tensors.")
        pairs = list(zip(got, expected, strict=True))
        number = next(k for k, (a, b) in enumerate(pairs) if not is_close(a, b, tolerance=tolerance))
        _fail_at(*pairs[number], tolerance, f"{call}[{number}]", why)
    shape = tuple(expected.shape)
    if not isinstance(got, torch.Tensor):
        fail(f"{call} returned a {type(got).__name__}, expected a tensor of shape {shape}.")
    if got.shape != expected.shape:
        fail(f"{call} has the shape {tuple(got.shape)}, expected {shape}: follow the axes.")
    fail(f"{call}: {describe_difference(got, expected, tolerance=tolerance)} {why}".rstrip())


def _expect_dtype(got: Any, expected: Any, name: str) -> None:
    if isinstance(expected, tuple | list):
        for one, other in zip(got, expected, strict=True):
            _expect_dtype(one, other, name)
    elif got.dtype != expected.dtype:
        fail(f"`{name}` returns {got.dtype}, expected {expected.dtype}: compute as you like, then `.to(...)`.")


_RMS = "rms_norm of torch is the exercise itself: write the root mean square by hand, it is one line."
_ATTENTION = "torch's fused attention is the exercise itself: write scores, mask, softmax and the sum by hand."
# What would do the exercise itself, and the sentence for it: beginnings of torch's functions and operators, then of
# modules.
_CALLS = {
    "rms_norm": _RMS,
    "_fused_rms_norm": _RMS,
    "layer_norm": "layer_norm of torch subtracts the mean as well: write the norm of this lab by hand.",
    "scaled_dot_product_attention": _ATTENTION,
    "_scaled_dot_product": _ATTENTION,
    "multi_head_attention_forward": _ATTENTION,
    "flex_attention": _ATTENTION,
}
_LIBRARIES = {
    "transformers.": "Transformers is what your code is compared with: write it yourself, by shapes.",
    "vllm.": "an engine's code is what you are about to understand: write it yourself, by shapes.",
}
_MODULES = {
    "torch.nn.attention.": _ATTENTION,
    "torch.nn.modules.": "a ready-made module of torch.nn does the work: here the weights are plain tensors.",
    "torch.utils.flop_counter.": "the counter is what the check compares with: write the formula, paper is enough.",
    "labkit.roofline.": "labkit.roofline is the answer itself: write the formula once, then trust the library.",
}

_OWN = (__name__, limit_call.__module__)  # runs around the learner's code


def probe_frames(function: Callable, *args, **kwargs) -> set[str]:
    """Call a function on copies of the arguments; return the "module.function" of all Python code that ran.

    What it raises or prints is dropped, because the answer is judged later. Only an endless loop raises here,
    LearnerEndless: nobody should wait for it twice.
    """
    frames: set[str] = set()
    args, kwargs = copy_arguments((args, kwargs))

    def profile(frame, event, _):
        if event == "call" and (module := frame.f_globals.get("__name__", "")) not in _OWN:
            frames.add(f"{module}.{frame.f_code.co_name}")

    before = sys.getprofile()
    try:
        with contextlib.suppress(Exception, SystemExit), contextlib.redirect_stdout(io.StringIO()), limit_call():
            sys.setprofile(profile)
            try:
                function(*args, **kwargs)
            finally:
                sys.setprofile(before)
    except OutOfTime as error:
        raise LearnerEndless.make(getattr(function, "__name__", "it"), error) from None
    return frames


def probe_calls(function: Callable, *args, **kwargs) -> tuple[set[str], set[str]]:
    """Return the torch functions and operators that a call runs, and the "module.function" as `probe_frames` does."""
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode

    calls: set[str] = set()

    class Functions(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            calls.add(getattr(func, "__name__", ""))
            return func(*args, **(kwargs or {}))

    class Operators(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            calls.add(func.name().rpartition("::")[2])
            return func(*args, **(kwargs or {}))

    with Functions(), Operators():
        frames = probe_frames(function, *args, **kwargs)
    return calls, frames


def expect_by_hand(function: Callable, *args, **kwargs) -> None:
    """Fail when the learner's function has the exercise done by a library, however it gets hold of it."""
    calls, frames = probe_calls(getattr(function, "function", function), *args, **kwargs)
    for names, table in ((frames, _LIBRARIES), (calls, _CALLS), (frames, _MODULES)):
        for beginning, sentence in table.items():
            if any(name.startswith(beginning) for name in names):
                fail(sentence)
    if any(map(is_own_code, frames)):
        fail("this is the check's own code: write the function yourself.")


def expect_device(function: Callable, *args, **kwargs) -> None:
    """Fail when the function makes tensors on the CPU although its arguments are elsewhere: it would stop on a GPU."""
    import torch

    function = getattr(function, "function", function)

    def move(value):
        if isinstance(value, tuple | list):
            return type(value)(map(move, value))
        if dataclasses.is_dataclass(value):
            return type(value)(**{one.name: move(getattr(value, one.name)) for one in dataclasses.fields(value)})
        return value.to("meta") if isinstance(value, torch.Tensor) else value

    elsewhere = [move(one) for one in args]
    kwargs = copy_arguments(kwargs)
    try:
        with contextlib.redirect_stdout(io.StringIO()), limit_call():
            function(*elsewhere, **kwargs)
    # The tensors have no values here; what fails because of that is not a mistake.
    except (Exception, SystemExit, OutOfTime) as error:
        if "expected device" in str(error) or "same device" in str(error):
            fail("right on the CPU, but it would stop on a GPU: make new tensors where the arguments are (`device=`).")
