"""How is an engine started? The exact command and environment, as a value that can be looked at without starting
anything.
"""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

from labkit.errors import LabkitError
from labkit.servers.surroundings import estimate_thread_plan

__all__ = ["HOST", "Launch", "ServerError", "find_deadline", "find_free_port"]

HOST = "127.0.0.1"  # never another: an engine of the course has no password


class ServerError(LabkitError):
    """An engine did not start, did not become ready, or died; `log_tail` holds its last lines."""

    def __init__(self, fact: str, *, next_step: str = "", log_tail: str = "") -> None:
        super().__init__(fact, next_step=next_step)
        self.log_tail = log_tail

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text}\nLast lines of its log:\n{self.log_tail}" if self.log_tail else text

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {line}" if not k else line for k, line in enumerate(str(self).splitlines())]


@dataclass(frozen=True, slots=True)
class Launch:
    """One way to start one engine: everything that decides what runs, nothing that is only known at the start.

    `argv` and the values of `env` may hold "{port}" and "{scratch}" (a folder that is removed with the server). `env`
    holds only what is set over the environment of this process; `unset` is removed from it. `num_start_retries`: how
    often a start that failed is tried again (the start only, and counted in `Server.start_attempts`). `files`: text
    files, name to content, that are written to the scratch folder before the start. A PYTHONPATH in `env` goes before
    the own one.
    """

    engine: str
    model: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    unset: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    distributions: tuple[str, ...] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    ready_deadline_s: float = 60.0
    grace_s: float = 5.0
    num_start_retries: int = 0

    def to_dict(self) -> dict:
        """The launch as JSON values, for a record: the engine, its settings and its thread plan, no path of this
        machine.
        """
        plan = {name: value for name, value in sorted(self.env.items()) if name in estimate_thread_plan()}
        return {"engine": self.engine, "model": self.model, "settings": dict(self.settings), "thread_plan": plan}


def find_free_port(port: int | None = None) -> int:
    """Return a free port of the loopback address: `port` if it is free (else ServerError), or any when it is None.

    The port is free now; somebody may take it before the engine does. The start notices that and tries another.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free for a server
        try:
            probe.bind((HOST, port or 0))
        except (OSError, OverflowError) as error:
            raise ServerError(
                f"Port {port} of {HOST} is not free: {error}.",
                next_step="Leave the port out and a free one is chosen, or stop the program that holds it.",
            ) from error
        return probe.getsockname()[1]


def find_deadline(default_s: float, asked_s: float | None) -> float:
    """Return the seconds that a start may take: asked for, else LABKIT_READY_DEADLINE_S (a slow machine), else the
    default.
    """
    text = os.environ.get("LABKIT_READY_DEADLINE_S", "")
    try:
        return float(asked_s or text or default_s)
    except ValueError:
        raise LabkitError(f"LABKIT_READY_DEADLINE_S is {text!r}.", next_step="Set it to a number of seconds.") from None
