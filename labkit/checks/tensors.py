"""Tensors as answers: who did the arithmetic, has an argument changed, and which known mistake explains the numbers?"""

import contextlib
import dataclasses
import io
import sys
from collections.abc import Callable, Sequence
from typing import Any

from labkit.checks.cases import fail
from labkit.checks.learner import LearnerEndless, LearnerFunction, OutOfTime, copy_arguments, limit_call

__all__ = ["expect_by_hand", "expect_device", "expect_tensors", "is_close", "make_guard", "probe_calls", "probe_frames"]

TOLERANCE = 1e-5  # of the largest value; two ways to add float32 numbers up differ by less
NAMING = 1e-3  # for naming a mistake: angles of thousands lose digits in float32

_RMS = "rms_norm of torch is the exercise itself: write the root mean square by hand, it is one line."
_ATTENTION = "torch's fused attention is the exercise itself: write scores, mask, softmax and the sum by hand."
# What would be the exercise itself -> the sentence: beginnings of torch's functions and operators, then of modules.
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
    "transformers.": "Transformers is what your code is compared with: here you write it yourself, by shapes.",
    "vllm.": "an engine's code is what you are about to understand: here you write it yourself, by shapes.",
}
_MODULES = {
    "torch.nn.attention.": _ATTENTION,
    "torch.nn.modules.": "a ready-made module of torch.nn does the work: here the weights are plain tensors.",
    "torch.utils.flop_counter.": "the counter is how the check knows: write the formula, it also works on paper.",
    "labkit.roofline.": "labkit.roofline is the answer itself: write the formula once, then trust the library.",
    "labkit.checks.": "the check's own code is no answer: write it by hand.",
}

_OWN = (__name__, limit_call.__module__)  # what runs beside the learner's code while it is watched


def probe_frames(function: Callable, *args, **kwargs) -> set[str]:
    """Call a function on copies of the arguments; return the "module.function" of all Python code that ran.

    What it raises or prints is dropped: what is wrong with the answer is judged later, with a sentence. Only a loop
    without end raises, LearnerEndless: it should not be waited for twice.
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


def expect_device(function: Callable, *args, **kwargs) -> None:
    """Fail when the function makes tensors on the CPU while its arguments are elsewhere: it would stop on a GPU."""
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
    # Some things cannot be done without values: those are no mistakes.
    except (Exception, SystemExit, OutOfTime) as error:
        if "expected device" in str(error) or "same device" in str(error):
            fail(
                "it is right on the CPU and would stop on a GPU: make new tensors where the arguments are (`device=`)."
            )


def make_guard(answer: Callable, name: str) -> Callable:
    """Return the learner's function behind the guard of every check, which also fails when it changes a tensor."""
    import torch

    function = getattr(answer, "function", answer)

    def guarded(*args, **kwargs):
        # Copies by hand: the guard's own copies would hide that an argument has changed.
        given = [one.clone() if isinstance(one, torch.Tensor) else one for one in args]

        def call():
            return function(*given, **kwargs)

        call.__name__ = name
        result = LearnerFunction(call)()
        for number, (before, after) in enumerate(zip(args, given, strict=True), start=1):
            if isinstance(before, torch.Tensor) and not torch.equal(before, after):
                fail(f"`{name}` changes its argument number {number}: the caller still needs it. Make a new tensor.")
        return result

    return guarded


def is_close(got: Any, right: Any, *, tolerance: float = TOLERANCE) -> bool:
    """Tell whether two tensors agree: shape, places of NaN, and values within 1e-5 of the largest one (or of 1)."""
    import torch

    if not isinstance(got, torch.Tensor) or got.shape != right.shape:
        return False
    if not torch.equal(got.isnan(), right.isnan()):
        return False
    got, right = got.to(right.dtype).nan_to_num(), right.nan_to_num()
    return bool((got - right).abs().max() <= tolerance * max(1.0, float(right.abs().max())))


def expect_tensors(
    function: Callable, cases: Sequence[tuple], right: Callable, mistakes: Sequence[tuple[str, Callable]], *, name: str
) -> None:
    """Fail unless `function` gives for every case (args, kwargs) the tensor that `right` gives.

    The first of the `mistakes` (sentence, wrong function) that explains every answer names the mistake.
    """
    answers = [function(*args, **kwargs) for args, kwargs in cases]
    expected = [right(*args, **kwargs) for args, kwargs in cases]
    if all(is_close(got, want) for got, want in zip(answers, expected, strict=True)):
        return
    for sentence, wrong in mistakes:
        is_it = False
        with contextlib.suppress(Exception):  # a wrong function may be undefined somewhere
            pairs = ((got, wrong(*a, **k)) for got, (a, k) in zip(answers, cases, strict=True))
            is_it = all(is_close(got, made, tolerance=NAMING) for got, made in pairs)
        if is_it:
            fail(f"`{name}`: {sentence}")
    _explain(answers, expected, cases, name)


def _explain(answers, expected, cases, name: str) -> None:
    import torch

    for got, want, (args, _) in zip(answers, expected, cases, strict=True):
        shapes = ", ".join(str(tuple(one.shape)) for one in args if isinstance(one, torch.Tensor))
        where = f"`{name}` of tensors {shapes}"
        if got is None:
            fail(f"{where} returned nothing: is a `return` missing?")
        if not isinstance(got, torch.Tensor):
            fail(f"{where} returned a {type(got).__name__}: a tensor of shape {tuple(want.shape)} is asked for.")
        if got.shape != want.shape:
            fail(f"{where} has the shape {tuple(got.shape)}, and {tuple(want.shape)} is asked for: follow the axes.")
        if not is_close(got, want):
            if bool(got.isnan().any()):
                fail(f"{where} holds NaN: is a whole row masked, or something divided by 0?")
            distance = float((got - want).abs().max())
            fail(f"{where} differs by up to {distance:.2g}: the shape is right, the numbers are not.")
