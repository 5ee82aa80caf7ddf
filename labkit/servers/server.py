"""Who answers requests? A `Server`: an engine in a child process, from its start until nothing of it is left.

`run_launch_spec(spec)` returns a `Server` that is ready to answer. Use it in a `with` block, or keep it over several
notebook cells and call `stop()`. It ends in any case, also after `kill -9` of the notebook: `supervisor.py` explains
how.
"""

import contextlib
import http.client
import json
import os
import re
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from labkit.errors import LabkitError
from labkit.servers import supervisor
from labkit.servers.supervisor import (
    measure_process_memory,
    probe_children,
    probe_listening,
    probe_segments,
    remove_segments,
)

__all__ = [
    "HOST",
    "LaunchSpec",
    "Server",
    "ServerError",
    "choose_deadline_s",
    "find_free_port",
    "probe_versions",
    "run_launch_spec",
]

HOST = "127.0.0.1"  # never another address: the engines of the course have no password

_NUM_LOGS_KEPT = 30
_NUM_PORTS_TRIED = 5
_PORT_TAKEN = re.compile(r"address already in use|EADDRINUSE|Errno 98\b|Errno 48\b", re.IGNORECASE)
_ERROR_LINE = re.compile(r"^.*?\b([A-Za-z_.]*(?:Error|Exception): .+)$", re.MULTILINE)
_COLOR = re.compile(r"\x1b\[[0-9;]*m")


class ServerError(LabkitError):
    """An engine did not start, did not become ready, or died; `log_tail` holds the last lines of its log."""

    def __init__(self, fact: str, *, next_step: str = "", log_tail: str = "") -> None:
        super().__init__(fact, next_step=next_step)
        self.log_tail = log_tail

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text}\nLast lines of its log:\n{self.log_tail}" if self.log_tail else text

    def _render_traceback_(self) -> list[str]:
        first, *rest = str(self).splitlines()
        return [f"{type(self).__name__}: {first}", *rest]


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """How to start one engine: everything that decides what runs, and nothing that is known only at the start.

    `argv` and the values of `env` may contain "{port}" and "{scratch}", a temporary folder that is removed with the
    server.

    Attributes:
        engine: name of the engine in records and messages.
        model: name of the model, as requests must give it.
        argv: program and arguments.
        env: variables set on top of this process's environment; a PYTHONPATH goes before the inherited one.
        thread_plan: the variables that fix the number of threads, set like `env` and written to records.
        files: text files to write into the scratch folder before the start: name to content.
        distributions: packages whose versions the record keeps.
        settings: what the record says about how the engine runs (JSON values).
        ready_deadline_s: seconds from the start until the engine must answer.
        grace_s: seconds between SIGTERM and SIGKILL at the end.
        num_start_retries: how often a failed start is repeated.
    """

    engine: str
    model: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    thread_plan: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    distributions: tuple[str, ...] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    ready_deadline_s: float = 300.0
    grace_s: float = 5.0
    num_start_retries: int = 0

    def to_dict(self) -> dict:
        """Return what a record keeps, as JSON values: engine, model, settings and thread plan; no local path."""
        return {"engine": self.engine, "model": self.model, "settings": dict(self.settings),
                "thread_plan": dict(sorted(self.thread_plan.items()))}  # fmt: skip


class Server:
    """An engine that answers at `base_url`.

    Attributes:
        spec: the `LaunchSpec` that it was started from.
        engine: name of the engine.
        model: the name to put in a request.
        port: port on 127.0.0.1.
        base_url: "http://127.0.0.1:PORT".
        pid: process id of the engine's first process, None if it never existed.
        log_path: file that holds everything the engine printed.
        start_attempts: starts that were needed, 1 if the first one succeeded.
        start_s: seconds from the start until it was ready, None before.
        versions: package to version, asked of the engine's own interpreter.
        exit_code: of the first process, negative for a signal; None while it runs.
    """

    def __init__(self, spec: LaunchSpec, *, port: int, log_path: Path):
        self.spec, self.engine, self.model = spec, spec.engine, spec.model
        self.port, self.base_url, self.log_path = port, f"http://{HOST}:{port}", log_path
        self.start_attempts, self.start_s, self.pid, self.versions = 1, None, None, {}
        self.exit_code: int | None = None
        self._owner_pid, self._buffer, self._is_gone, self._was_stopped = os.getpid(), b"", False, False
        self._has_segments = False
        self._start()

    def __repr__(self) -> str:
        state = "stopped" if self._was_stopped else "running" if self.is_alive else "dead"
        return f"<Server {self.engine} {self.model!r} at {self.base_url}, pid {self.pid}, {state}>"

    @property
    def pids(self) -> tuple[int, ...]:
        """Every live process of the engine, whatever session it moved to; () after the end."""
        return () if self.pid is None else probe_children(self._supervisor.pid, group=self.pid)

    @property
    def is_alive(self) -> bool:
        """Whether the engine's first process is still running."""
        self._read_messages()
        return not self._is_gone and self._supervisor.poll() is None

    def check_alive(self) -> None:
        """Raise ServerError, with the last lines of the log, if the engine has died; do nothing otherwise."""
        if not self._was_stopped and not self.is_alive:
            raise self._error(f"{self.engine} died while it was in use ({self._describe_end()}).",
                              next_step=f"Read the log, {self.log_path}, then start the server again.")  # fmt: skip

    def measure_memory(self) -> dict:
        """Return {"rss_bytes", "pss_bytes", "num_processes"} over all processes of the engine.

        `pss_bytes` counts a page that two processes share once, `rss_bytes` counts it twice; None if the system does
        not report it.
        """
        return measure_process_memory(self.pids)

    def load_metrics(self) -> str | None:
        """Return the text of the engine's /metrics (Prometheus format), None if it has none."""
        status, body = self.load_page("/metrics")
        return body if status == 200 else None

    def load_page(self, path: str, *, timeout_s: float = 30.0) -> tuple[int, str]:
        """GET `path` from the engine and return (status, body); no proxy is asked."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=timeout_s)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode(errors="replace")
        finally:
            connection.close()

    def load_log_tail(self, num_lines: int = 25) -> str:
        """Return the last lines of the engine's log."""
        with contextlib.suppress(OSError), self.log_path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 200_000))
            text = _COLOR.sub("", file.read().decode(errors="replace"))
            return "\n".join(text.splitlines()[-num_lines:])
        return ""

    def to_dict(self) -> dict:
        """Return what a record keeps: the spec's values, versions, start attempts and seconds; no path, no port."""
        start_s = None if self.start_s is None else round(self.start_s, 3)
        return {**self.spec.to_dict(), "versions": dict(self.versions), "start_attempts": self.start_attempts,
                "start_s": start_s}  # fmt: skip

    def stop(self) -> None:
        """End every process of the engine and remove what it left; a second call does nothing."""
        if self._was_stopped or os.getpid() != self._owner_pid:  # a forked child of the notebook does not own it
            return
        self._read_messages()
        self._was_stopped = True
        segments = probe_segments(self.pids)
        self._send("stop")
        try:
            self._supervisor.wait(timeout=self.spec.grace_s + 60)
        except subprocess.TimeoutExpired:
            self._supervisor.kill()
            self._supervisor.wait()
        # Usually nothing is left by now; this is for a supervisor that was itself killed.
        for _ in range(50):
            if not (left := self.pids):
                break
            for pid in left:
                with contextlib.suppress(OSError):
                    os.kill(pid, 9)
            time.sleep(0.05)
        remove_segments(segments)
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._read_messages()
        for pipe in (self._supervisor.stdin, self._supervisor.stdout):
            with contextlib.suppress(OSError):
                pipe.close()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            if error is None or isinstance(error, Exception):  # an interrupt stays an interrupt
                if not self._was_stopped and self.pid not in self.pids:
                    self._wait_for_message(lambda: self._is_gone, limit_s=30.0)  # dead; the supervisor will say how
                self.check_alive()
        except ServerError as death:
            raise death from error  # "connection refused" was only the symptom
        finally:
            self.stop()

    def __del__(self) -> None:
        """End a server that nobody holds any more: its supervisor sees the pipe close (Popen would keep it open)."""
        with contextlib.suppress(AttributeError, OSError):
            self._supervisor.stdin.close()

    def _start(self) -> None:
        """Start the supervisor, which starts the engine; return once the engine's process exists."""
        self._scratch = tempfile.mkdtemp(prefix=f"labkit-{self.engine[:12]}-")
        spec, env = self.spec, dict(os.environ)
        if spec.argv[0] != sys.executable:  # another environment: our import path would bring our own packages
            env.pop("PYTHONPATH", None)
            env.pop("PYTHONHOME", None)
        inherited_path = env.get("PYTHONPATH")
        env |= {"TMPDIR": self._scratch, "PYTHONUNBUFFERED": "1"}
        env |= {name: self._fill(value) for name, value in {**spec.thread_plan, **spec.env}.items()}
        if inherited_path and "PYTHONPATH" in spec.env:
            env["PYTHONPATH"] += os.pathsep + inherited_path
        for name, text in spec.files.items():
            path = Path(self._scratch, name)
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        task = {"argv": [self._fill(part) for part in spec.argv], "env": env, "log": str(self.log_path),
                "scratch": self._scratch, "grace_s": spec.grace_s}  # fmt: skip
        with self.log_path.open("ab") as log:
            self._supervisor = subprocess.Popen(
                [sys.executable, "-I", "-S", supervisor.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=log, start_new_session=True, bufsize=0, cwd="/",
            )  # fmt: skip
        self._begin_s = time.monotonic()
        try:
            self._supervisor.stdin.write(json.dumps(task).encode() + b"\n")
            self._wait_for_message(lambda: self.pid is not None)
        except BaseException:
            self.stop()
            raise

    def _wait_until_ready(self, deadline_s: float) -> None:
        """Return once the engine answers on its own port; ServerError if it dies or the deadline passes."""
        pause_s = 0.02
        while True:
            if not self.is_alive:
                raise self._error(
                    f"{self.engine} ended before it was ready ({self._describe_end()}).", next_step=self._advise()
                )
            with contextlib.suppress(OSError, http.client.HTTPException):
                # /health alone could be that of a stranger's server that took the port first.
                if self.load_page("/health", timeout_s=5.0)[0] == 200 and probe_listening(self.port, self.pids):
                    break
            waited_s = time.monotonic() - self._begin_s
            if waited_s > deadline_s:
                raise self._error(
                    f"{self.engine} was not ready after {waited_s:.0f} s (limit {deadline_s:.0f} s).",
                    next_step="Set a longer ready_deadline_s, or free CPU and memory.",
                )
            time.sleep(pause_s)
            pause_s = min(0.25, pause_s * 1.5)
        self.start_s = time.monotonic() - self._begin_s
        self._send("ready")
        # From here on the supervisor knows every segment of the start, should the engine be killed at once.
        self._wait_for_message(lambda: self._has_segments, limit_s=30.0)

    def _fill(self, text: str) -> str:
        return text.replace("{port}", str(self.port)).replace("{scratch}", self._scratch)

    def _send(self, command: str) -> None:
        with contextlib.suppress(OSError):
            self._supervisor.stdin.write(command.encode() + b"\n")

    def _wait_for_message(self, has_come: Callable[[], bool], *, limit_s: float = float("inf")) -> None:
        """Read messages until `has_come()`, the supervisor's end, or the limit."""
        deadline_s = time.monotonic() + limit_s
        while not (has_come() or self._is_gone or self._supervisor.poll() is not None):
            if time.monotonic() > deadline_s:
                return
            self._read_messages(timeout_s=0.2)

    def _read_messages(self, *, timeout_s: float = 0.0) -> None:
        """Take in what the supervisor has said so far; wait up to `timeout_s` for the first message."""
        pipe = self._supervisor.stdout
        while not pipe.closed and select.select([pipe], [], [], timeout_s)[0]:
            timeout_s = 0.0
            data = os.read(pipe.fileno(), 65536)
            if not data:
                self._is_gone = True
                return
            *lines, self._buffer = (self._buffer + data).split(b"\n")
            for message in map(json.loads, lines):
                self.pid = message.get("pid", self.pid)
                self.exit_code = message.get("exit", self.exit_code)
                self._has_segments = self._has_segments or "segments" in message
                self._is_gone = self._is_gone or not {"exit", "error", "removed"}.isdisjoint(message)
                if "error" in message:
                    with self.log_path.open("a", encoding="utf-8") as log:
                        log.write(message["error"] + "\n")

    def _describe_end(self) -> str:
        if self.exit_code is None:
            return "its supervisor was killed" if self._supervisor.poll() is not None else "exit code unknown"
        return f"signal {-self.exit_code}" if self.exit_code < 0 else f"exit code {self.exit_code}"

    def _advise(self) -> str:
        first = _ERROR_LINE.search(self.load_log_tail(100_000))
        cause = f"the first error in the log is {first[1].strip()[:300]!r}; " if first else ""
        return f"{cause}the whole log is {self.log_path}."

    def _error(self, fact: str, *, next_step: str) -> ServerError:
        return ServerError(fact, next_step=next_step, log_tail=self.load_log_tail())


def run_launch_spec(spec: LaunchSpec, *, port: int | None = None) -> Server:
    """Start the engine that `spec` describes and return its `Server` once it answers.

    A free port is chosen, and another if a stranger takes it first; `port` asks for one port and no other. A failed
    start is repeated `spec.num_start_retries` times and counted. ServerError carries the last lines of the log.
    """
    num_lost_ports = num_failures = 0
    while True:
        server = Server(spec, port=find_free_port(port), log_path=_find_log_path(spec.engine))
        server.start_attempts = 1 + num_failures
        try:
            server._wait_until_ready(spec.ready_deadline_s)
            server.versions = probe_versions(spec.argv[0], distributions=spec.distributions)
            return server
        except ServerError as error:
            was_alive = server.is_alive
            server.stop()
            is_lost = port is None and _PORT_TAKEN.search(error.log_tail)
            if not was_alive and is_lost and num_lost_ports < _NUM_PORTS_TRIED:
                num_lost_ports += 1
            elif not was_alive and num_failures < spec.num_start_retries:
                num_failures += 1
            else:
                raise
        except BaseException:  # an interrupt while the engine starts
            server.stop()
            raise


def find_free_port(port: int | None = None) -> int:
    """Return a free port of 127.0.0.1: `port` if it is free (else ServerError), any free one if it is None.

    The port is free now; a stranger may take it before the engine does. `run_launch_spec` notices and tries another.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free for a server
        try:
            probe.bind((HOST, port or 0))
        except (OSError, OverflowError) as error:
            raise ServerError(
                f"Port {port} of {HOST} is not free: {error}.",
                next_step="Leave the port out to get a free one, or stop the program that uses it.",
            ) from error
        return probe.getsockname()[1]


def choose_deadline_s(default_s: float, asked_s: float | None) -> float:
    """Return the seconds that a start may take: `asked_s`, else LABKIT_READY_DEADLINE_S (a slow machine), else the
    default.
    """
    text = os.environ.get("LABKIT_READY_DEADLINE_S", "")
    try:
        return float(asked_s or text or default_s)
    except ValueError:
        raise LabkitError(
            f"LABKIT_READY_DEADLINE_S is {text!r}; expected a number of seconds.", next_step="Set it to 900, say."
        ) from None


_PRINT_VERSIONS = """
import importlib.metadata as m, json, platform, sys
found = {"python": platform.python_version()}
for name in sys.argv[1:]:
    try: found[name] = m.version(name)
    except m.PackageNotFoundError: pass
print(json.dumps(found))
"""


def probe_versions(python: str, *, distributions: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of the interpreter `python` and of those `distributions` that it has.

    Only package metadata is read, nothing is imported; {} if the interpreter does not answer.
    """
    try:
        answer = subprocess.run(
            [python, "-c", _PRINT_VERSIONS, *distributions], capture_output=True, text=True, timeout=60, cwd="/",
            stdin=subprocess.DEVNULL, check=True,
        )  # fmt: skip
        return json.loads(answer.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return {}


def _find_log_path(engine: str) -> Path:
    """Make a new log file in this user's temporary folder and delete the oldest ones when there are many."""
    folder = Path(tempfile.gettempdir(), f"labkit-logs-{os.getuid() if hasattr(os, 'getuid') else 'user'}")
    folder.mkdir(mode=0o700, exist_ok=True)
    with contextlib.suppress(OSError):
        for old in sorted(folder.glob("*.log"), key=lambda path: path.stat().st_mtime)[:-_NUM_LOGS_KEPT]:
            if old.stat().st_mtime < time.time() - 3600:  # a younger one may belong to a running server
                old.unlink()
    handle, name = tempfile.mkstemp(prefix=f"{engine}-{time.strftime('%Y%m%d-%H%M%S')}-", suffix=".log", dir=folder)
    os.close(handle)
    return Path(name)
