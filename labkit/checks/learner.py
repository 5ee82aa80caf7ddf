"""The learner's code: called on copies, kept quiet, bounded in time; whatever it raises becomes one sentence."""

import contextlib
import copy
import dataclasses
import inspect
import io
import linecache
import os
import pickle
import signal
import sysconfig
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NoReturn

__all__ = ["LIMIT_S", "LearnerEndless", "LearnerFunction", "LearnerRaised", "NotAttempted", "OutOfTime",
           "copy_arguments", "find_learner_lines", "format_exception", "is_raised_by_learner", "limit_call", "shorten",
           "tidy"]  # fmt: skip

_MOST_ITEMS = 100_000  # of a generator: an endless one must not hang the check
# Of this thread. On an AMD EPYC the longest call of a reference solution took 0.54 s, and an endless append() of floats
# 0.75 GiB in 3 s: far from both.
LIMIT_S = 10.0

_LABKIT = str(Path(__file__).resolve().parents[1])
_PYTHON = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
_LABS = f"{os.sep}solutions{os.sep}src{os.sep}"  # the checks of a lab
_NOT_LEARNER = (*(str(Path(folder)) + os.sep for folder in (_LABKIT, *_PYTHON)), "<frozen")


class LearnerRaised(Exception):  # noqa: N818  (it is news about the learner's code, not an error of labkit)
    """The learner's code raised; the message is a sentence with the call, the exception and the line."""


class LearnerEndless(LearnerRaised):
    """A call used up its time; asking again with other arguments would only take as long."""

    @classmethod
    def make(cls, call: str, error: "OutOfTime") -> "LearnerEndless":
        """Say of which call it is."""
        return cls(f"{call}: {error}: does its loop move on, and does it end?")


class NotAttempted(Exception):  # noqa: N818
    """The learner has not written an answer yet."""


@dataclass(slots=True)
class LearnerFunction:
    """Calls the learner's function on copies of the arguments, keeps it quiet, and tidies what it returns.

    Attributes:
        function: the learner's function.
        exercise: the exercise that it answers, such as "00.1"; "" outside of a check.
        reference_name: what the course's solution calls this function.
        call: text of the last call ("weight_bytes(1000, bits=4)"), for sentences.
        changed: text of the first call that changed one of its arguments, or "".
        was_generator: True when it gave its answer piece by piece.
    """

    function: Callable
    exercise: str = ""
    reference_name: str = ""
    call: str = ""
    changed: str = ""
    was_generator: bool = False
    __name__: str = field(default="", init=False)

    def __post_init__(self) -> None:
        self.__name__ = getattr(self.function, "__name__", type(self.function).__name__)

    def __call__(self, *args, **kwargs):
        """Return what the function returns: a generator as a list, a numpy or torch scalar as a Python number."""
        self.call = _format_call(self.__name__, args, kwargs)
        given = copy_arguments((args, kwargs))
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            try:
                with limit_call():
                    result = self.function(*given[0], **given[1])
                    if inspect.isgenerator(result):
                        self.was_generator = True
                        result = list(islice(result, _MOST_ITEMS))
            except (Exception, SystemExit) as error:
                _raise_for_learner(error, self.call)
            except OutOfTime as error:
                raise LearnerEndless.make(self.call, error) from None
        if not self.changed and _has_changed((args, kwargs), given):
            self.changed = self.call
        return tidy(result)


def copy_arguments(arguments: tuple) -> tuple:
    """Return a copy that shares nothing that can change; what cannot be copied is passed as it is."""
    with contextlib.suppress(Exception):
        return pickle.loads(pickle.dumps(arguments))  # deepcopy takes five times as long on a few thousand numbers
    with contextlib.suppress(Exception):
        return copy.deepcopy(arguments)
    return arguments


def tidy(value):
    """Return plain Python values for numpy and torch scalars, also in tuples, lists and dicts; arrays stay arrays."""
    if isinstance(value, tuple | list):  # a named tuple becomes a plain one
        return (tuple if isinstance(value, tuple) else list)(tidy(item) for item in value)
    if isinstance(value, dict):
        return {tidy(key): tidy(item) for key, item in value.items()}
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value


def _raise_for_learner(error: BaseException, call: str) -> NoReturn:
    """Turn an exception of the learner's code into NotAttempted (a stub) or LearnerRaised (a sentence)."""
    # Libraries raise NotImplementedError too (a missing kernel): only one from the learner's own line is a stub.
    if isinstance(error, NotImplementedError) and is_raised_by_learner(error):
        raise NotAttempted from None
    raise LearnerRaised(f"{call} raised {format_exception(error)}") from None


def _format_call(name: str, args: tuple, kwargs: dict) -> str:
    """Return a call as it is typed, with long arguments cut."""
    parts = [_format_argument(arg, 60) for arg in args]
    parts += [f"{key}={_format_argument(value, 40)}" for key, value in kwargs.items()]
    return f"{name}({', '.join(parts)})"


def _format_argument(value, limit: int) -> str:
    """Return a tensor's shape, and of anything else the text that Python shows, in one line."""
    if _is_tensor(value):
        return f"tensor of shape {tuple(value.shape)}"
    return shorten(" ".join(repr(value).split()), limit)


def _is_tensor(value) -> bool:
    return type(value).__module__.startswith("torch") and hasattr(value, "dtype") and hasattr(value, "shape")


def _has_changed(before, after) -> bool:
    """Tell whether numbers, text, containers, dataclasses, arrays or tensors differ; other objects never do."""
    if _is_tensor(before) and _is_tensor(after):
        if before.shape != after.shape:
            return True
        return bool(((before != after) & ((before == before) | (after == after))).any())  # NaN is NaN
    if dataclasses.is_dataclass(before) and type(before) is type(after):
        names = [one.name for one in dataclasses.fields(before)]
        return any(_has_changed(getattr(before, name), getattr(after, name)) for name in names)
    if isinstance(before, dict) and isinstance(after, dict):
        return _has_changed(list(before.items()), list(after.items()))
    if isinstance(before, tuple | list) and isinstance(after, tuple | list):
        with contextlib.suppress(Exception):  # arrays have no single answer
            if before == after:  # in C; where it says no, a NaN or an object that equals only itself may be the reason
                return False
        return len(before) != len(after) or any(map(_has_changed, before, after))
    if hasattr(before, "tobytes") and hasattr(after, "tobytes"):
        return before.tobytes() != after.tobytes()
    return isinstance(before, str | int | float) and before != after and before == before


# Time


class OutOfTime(BaseException):  # noqa: N818  (like KeyboardInterrupt, it must pass the learner's `except Exception`)
    """A call used up its time."""


@contextlib.contextmanager
def limit_call() -> Iterator[None]:
    """Raise OutOfTime where the block has used LIMIT_S of this thread's processor time.

    Time in which the machine does something else does not count, and neither do other threads. Outside of the main
    thread, and where there are no interval timers, nothing is limited.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return
    end_s = time.thread_time() + LIMIT_S

    def look(signum, frame):
        if time.thread_time() >= end_s:
            raise OutOfTime(f"it has not returned after {LIMIT_S:g} s of computing")

    handler = signal.signal(signal.SIGPROF, look)
    tick_s = min(0.5, LIMIT_S)
    timer = signal.setitimer(signal.ITIMER_PROF, tick_s, tick_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, *timer)
        signal.signal(signal.SIGPROF, signal.SIG_DFL if handler is None else handler)


# Tracebacks


def is_raised_by_learner(error: BaseException) -> bool:
    """Tell whether the innermost line of the traceback is the learner's own."""
    steps = traceback.extract_tb(error.__traceback__)
    return bool(steps) and _is_learner_file(steps[-1].filename)


def find_learner_lines(error: BaseException) -> list[traceback.FrameSummary]:
    """Return the lines of the learner's own code in the traceback, outermost first."""
    return [step for step in traceback.extract_tb(error.__traceback__) if _is_learner_file(step.filename)]


def _is_learner_file(filename: str) -> bool:
    """Tell whether a file is the learner's (a cell, a script), not labkit's, a package's or Python's."""
    return not filename.startswith(_NOT_LEARNER) and _LABS not in filename


def format_exception(error: BaseException) -> str:
    """Return "ZeroDivisionError: division by zero (your line 3: `return 1 / 0`)" in one line."""
    try:
        message = " ".join(str(error).split())
    except Exception:
        message = ""
    text = type(error).__name__ + (f": {shorten(message, 160)}" if message else "")
    lines = find_learner_lines(error)
    if not lines:
        return text
    source = shorten((linecache.getline(lines[-1].filename, lines[-1].lineno or 0) or lines[-1].line or "").strip(), 60)
    return f"{text} (your line {lines[-1].lineno}{f': `{source}`' if source else ''})"


def shorten(text: str, limit: int) -> str:
    """Cut a text to at most `limit` characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
