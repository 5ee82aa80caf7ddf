"""When does a timer fire? An event loop whose timers are not rounded up to the next millisecond.

epoll waits in whole milliseconds, so asyncio's timers are half a millisecond late on average, and so would be every
request. select(2) counts microseconds and can wait for an epoll descriptor: that is the whole trick.
"""

import asyncio
import select
import selectors
import threading
from collections.abc import Coroutine
from typing import Any

__all__ = ["run_precise"]

_MAX_SELECT = 1024  # FD_SETSIZE: select(2) takes no higher descriptor


def run_precise(main: Coroutine) -> Any:
    """Run a coroutine on a loop with precise timers and return its result; also from inside a notebook's loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        with asyncio.Runner(loop_factory=_make_loop) as runner:
            return runner.run(main)
    # A notebook's thread already runs a loop: ours gets its own thread.
    answer: list = []

    def work() -> None:
        try:
            with asyncio.Runner(loop_factory=_make_loop) as runner:
                answer.append((runner.run(main), None))
        except BaseException as error:
            answer.append((None, error))

    thread = threading.Thread(target=work, name="load", daemon=True)
    thread.start()
    thread.join()
    result, error = answer[0]
    if error is not None:
        raise error
    return result


def _make_loop() -> asyncio.AbstractEventLoop:
    if not hasattr(selectors, "EpollSelector"):
        return asyncio.SelectorEventLoop()
    return asyncio.SelectorEventLoop(_PreciseSelector())


if hasattr(selectors, "EpollSelector"):

    class _PreciseSelector(selectors.EpollSelector):
        """Waits with select(2) on the epoll descriptor, then asks epoll what is ready."""

        def select(self, timeout: float | None = None) -> list:
            """Return what is ready, after at most `timeout` seconds."""
            descriptor = self.fileno()
            if timeout is not None and timeout > 0 and descriptor < _MAX_SELECT:
                select.select([descriptor], [], [], timeout)
                timeout = 0
            return super().select(timeout)
