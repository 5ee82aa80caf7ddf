"""Calls the learner's code: on copies, without its output, with a time limit; an exception becomes one sentence."""

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
# Processor time of this thread. On an AMD EPYC the longest call of a reference solution took 0.54 s; an endless loop of
# append() with floats took 0.75 GiB in 3 s. The limit is far from both.
LIMIT_S = 10.0

_LABKIT = str(Path(__file__).resolve().parents[1])
_PYTHON = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
_LABS = f"{os.sep}solutions{os.sep}src{os.sep}"  # the labs' own checks
_NOT_LEARNER = (*(str(Path(folder)) + os.sep for folder in (_LABKIT, *_PYTHON)), "<frozen")


class LearnerRaised(Exception):  # noqa: N818  (it reports on the learner's code and is not an error of labkit)
    """The learner's code raised; the message gives the call, the exception and the line."""


class LearnerEndless(LearnerRaised):
    """A call ran into the time limit; calling again with other arguments would only take as long."""

    @classmethod
    def make(cls, call: str, error: "OutOfTime") -> "LearnerEndless":
        """Make the exception for one call."""
        return cls(f"{call}: {error}. Check that its loop makes progress and ends.")


class NotAttempted(Exception):  # noqa: N818
    """The learner has not written an answer yet."""


@dataclass(slots=True)
class LearnerFunction:
    """Calls the learner's function on copies of the arguments, hides its output, and converts its result.

    Attributes:
        function: the learner's function.
        exercise: id of the exercise that it answers, such as "00.1"; "" outside a check.
        reference_name: name of this function in the course's solution.
        call: text of the last call, for messages: "weight_bytes(1000, bits=4)".
        changed: text of the first call that changed one of its arguments, or "".
        was_generator: True if it returned a generator.
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
        """Return the function's result, with a generator as a list and a numpy or torch scalar as a Python number."""
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
    """Return a deep copy; arguments that cannot be copied are returned as they are."""
    with contextlib.suppress(Exception):
        return pickle.loads(pickle.dumps(arguments))  # deepcopy takes five times as long on a few thousand numbers
    with contextlib.suppress(Exception):
        return copy.deepcopy(arguments)
    return arguments


def tidy(value):
    """Convert numpy and torch scalars to Python numbers, also inside tuples, lists and dicts; arrays stay arrays."""
    if isinstance(value, tuple | list):  # a named tuple becomes a plain one
        return (tuple if isinstance(value, tuple) else list)(tidy(item) for item in value)
    if isinstance(value, dict):
        return {tidy(key): tidy(item) for key, item in value.items()}
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value


def _raise_for_learner(error: BaseException, call: str) -> NoReturn:
    """Turn an exception of the learner's code into NotAttempted (a stub) or LearnerRaised (a sentence)."""
    # Libraries raise NotImplementedError too (a missing kernel): only one from the learner's own line means a stub.
    if isinstance(error, NotImplementedError) and is_raised_by_learner(error):
        raise NotAttempted from None
    raise LearnerRaised(f"{call} raised {format_exception(error)}") from None


def _format_call(name: str, args: tuple, kwargs: dict) -> str:
    """Write a call as Python code, with long arguments shortened."""
    parts = [_format_argument(arg, 60) for arg in args]
    parts += [f"{key}={_format_argument(value, 40)}" for key, value in kwargs.items()]
    return f"{name}({', '.join(parts)})"


def _format_argument(value, limit: int) -> str:
    """Write a tensor as its shape and anything else as its repr, in one line."""
    if _is_tensor(value):
        return f"tensor of shape {tuple(value.shape)}"
    return shorten(" ".join(repr(value).split()), limit)


def _is_tensor(value) -> bool:
    return type(value).__module__.startswith("torch") and hasattr(value, "dtype") and hasattr(value, "shape")


def _has_changed(before, after) -> bool:
    """Tell whether numbers, strings, containers, dataclasses, arrays or tensors differ; other objects never do."""
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
        with contextlib.suppress(Exception):  # comparing arrays gives no single truth value
            if before == after:  # fast; if False, the cause may be a NaN or an object that equals only itself
                return False
        return len(before) != len(after) or any(map(_has_changed, before, after))
    if hasattr(before, "tobytes") and hasattr(after, "tobytes"):
        return before.tobytes() != after.tobytes()
    return isinstance(before, str | int | float) and before != after and before == before


# Time


class OutOfTime(BaseException):  # noqa: N818  (like KeyboardInterrupt, the learner's `except Exception` must miss it)
    """A call ran into the time limit."""


@contextlib.contextmanager
def limit_call() -> Iterator[None]:
    """Raise OutOfTime once the block has used LIMIT_S of this thread's processor time.

    Time spent waiting, and in other threads or processes, does not count. Outside the main thread, and where there are
    no interval timers, there is no limit.
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
    """Return the traceback's lines of the learner's own code, outermost first."""
    return [step for step in traceback.extract_tb(error.__traceback__) if _is_learner_file(step.filename)]


def _is_learner_file(filename: str) -> bool:
    """Tell whether a file is the learner's (a cell, a script) and not part of labkit, a package or Python."""
    return not filename.startswith(_NOT_LEARNER) and _LABS not in filename


def format_exception(error: BaseException) -> str:
    """Write an exception in one line: "ZeroDivisionError: division by zero (your line 3: `return 1 / 0`)"."""
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
