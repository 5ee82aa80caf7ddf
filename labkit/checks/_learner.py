"""The learner's function behind a guard: what it prints, raises or changes becomes a sentence, never a traceback."""

import contextlib
import copy
import inspect
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import NoReturn

from labkit.checks._deadline import OutOfTime, limit_call
from labkit.checks._traces import format_exception, is_raised_by_learner, shorten

__all__ = ["LearnerEndless", "LearnerFunction", "LearnerRaised", "NotAttempted", "copy_arguments", "tidy"]

_MOST_ITEMS = 100_000  # of a generator: an endless one must not hang the check


class LearnerRaised(Exception):  # noqa: N818  (it is news about the learner's code, not an error of labkit)
    """The learner's code raised; the message is a sentence with the call, the exception and the line."""


class LearnerEndless(LearnerRaised):
    """A call used up its time; asking again with other arguments would only take as long."""

    @classmethod
    def make(cls, call: str, error: OutOfTime) -> "LearnerEndless":
        """Say of which call it is."""
        return cls(f"{call}: {error}: does its loop move on, and does it end?")


class NotAttempted(Exception):  # noqa: N818
    """The learner has not written an answer yet."""


@dataclass(slots=True)
class LearnerFunction:
    """Calls the learner's function on copies of the arguments, keeps it quiet, and tidies what it returns.

    `call` is the text of the last call ("weight_bytes(1000, bits=4)"), for sentences. `changed` is the text of the
    first call that changed one of its arguments, or "". `was_generator`: it gave its answer piece by piece.
    """

    function: Callable
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
    """Return plain Python values for numpy and torch scalars, also inside tuples and lists; arrays stay arrays."""
    if isinstance(value, tuple | list):  # a named tuple becomes a plain one
        return (tuple if isinstance(value, tuple) else list)(tidy(item) for item in value)
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value


def _raise_for_learner(error: BaseException, call: str) -> NoReturn:
    """Turn an exception of the learner's code into NotAttempted (a stub) or LearnerRaised (a sentence)."""
    # Libraries raise NotImplementedError too (a missing kernel): only one from the learner's own line is a stub.
    if isinstance(error, NotImplementedError) and is_raised_by_learner(error):
        raise NotAttempted from None
    raise LearnerRaised(f"{call} raised {format_exception(error)}") from None


def _format_call(name: str, args: tuple, kwargs: dict) -> str:
    """Return a call as it is typed, with long arguments cut."""
    parts = [shorten(repr(arg), 60) for arg in args]
    parts += [f"{key}={shorten(repr(value), 40)}" for key, value in kwargs.items()]
    return f"{name}({', '.join(parts)})"


def _has_changed(before, after) -> bool:
    """Tell whether numbers, text, containers or arrays differ; objects of other types count as unchanged."""
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
