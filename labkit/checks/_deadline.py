"""A loop of the learner's that never ends becomes a sentence: a call gets so many seconds of processor time."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator

__all__ = ["OutOfTime", "limit_call"]

# Of this thread. On an AMD EPYC the longest call of a reference solution took 0.54 s, and an endless append() of floats
# 0.75 GiB in 3 s: far from both.
LIMIT_S = 10.0


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
