"""Who answers requests? A `Server`: an engine in a child process, from its start to the last trace of it.

`run_launch(launch)` gives a `Server` that is ready to answer. Use it in a `with` block, or keep it over several
notebook cells and call `stop()`. It ends in any case: `supervisor.py` explains how, also after `kill -9` of the
notebook.
"""

import contextlib
import http.client
import json
import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from labkit.servers import supervisor
from labkit.servers.launch import HOST, Launch, ServerError, find_free_port
from labkit.servers.supervisor import probe_children, probe_listening, probe_memory_of, probe_segments
from labkit.servers.surroundings import probe_versions

__all__ = ["Server", "run_launch"]

_NUM_LOGS_KEPT = 30
_NUM_PORTS_TRIED = 5
_TAKEN = re.compile(r"address already in use|EADDRINUSE|Errno 98\b|Errno 48\b", re.IGNORECASE)
_ERROR_LINE = re.compile(r"^.*?\b([A-Za-z_.]*(?:Error|Exception): .+)$", re.MULTILINE)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class Server:
    """An engine that answers at `base_url`.

    Attributes: `launch`, `engine`, `model` (the name to put in a request), `port`, `base_url`, `pid` (of the engine's
    first process), `log_path`, `start_attempts` (starts that were needed), `start_s` (from the start to readiness),
    `versions` (asked from the engine's own interpreter).
    """

    def __init__(self, launch: Launch, *, port: int, log_path: Path):
        self.launch, self.engine, self.model, self.port, self.log_path = (
            launch,
            launch.engine,
            launch.model,
            port,
            log_path,
        )
        self.base_url = f"http://{HOST}:{port}"
        self.start_attempts, self.start_s, self.pid, self.versions = 1, None, None, {}
        self.exit_code: int | None = None
        self._owner, self._buffer, self._is_gone, self._was_stopped = os.getpid(), b"", False, False
        self._begin()

    def __repr__(self) -> str:
        state = "stopped" if self._was_stopped else "running" if self.is_alive else "dead"
        return f"<Server {self.engine} {self.model!r} at {self.base_url}, pid {self.pid}, {state}>"

    @property
    def pids(self) -> tuple[int, ...]:
        """Every live process of the engine, whatever session it moved to; () after the end."""
        return () if self.pid is None else probe_children(self._supervisor.pid, group=self.pid)

    @property
    def is_alive(self) -> bool:
        """Whether the engine's first process still runs."""
        self._read_messages()
        return not self._is_gone and self._supervisor.poll() is None

    def check_alive(self) -> None:
        """Raise ServerError, with the last lines of the log, when the engine has died; do nothing otherwise."""
        if not self._was_stopped and not self.is_alive:
            raise self._error(f"{self.engine} died while it was in use ({self._how()}).",
                              next_step=f"Read the log, {self.log_path}, and start the server again.")  # fmt: skip

    def measure_memory(self) -> dict:
        """Return {"rss_bytes", "pss_bytes", "num_processes"} over all processes of the engine.

        `pss_bytes` counts a page that two processes share once, `rss_bytes` twice; None where the system does not say.
        """
        return probe_memory_of(self.pids)

    def load_metrics(self) -> str | None:
        """Return the text of the engine's /metrics (Prometheus format), None where it has none."""
        status, body = self._get("/metrics")
        return body if status == 200 else None

    def load_log_tail(self, num_lines: int = 25) -> str:
        """Return the last lines of the engine's log."""
        with contextlib.suppress(OSError), self.log_path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 200_000))
            text = _COLOUR.sub("", file.read().decode(errors="replace"))
            return "\n".join(text.splitlines()[-num_lines:])
        return ""

    def to_dict(self) -> dict:
        """What a record keeps: engine, settings, thread plan, versions, starts needed and seconds; no path, no port."""
        start_s = None if self.start_s is None else round(self.start_s, 3)
        return {**self.launch.to_dict(), "versions": dict(self.versions), "start_attempts": self.start_attempts,
                "start_s": start_s}  # fmt: skip

    def stop(self) -> None:
        """End every process of the engine and remove what it left; a second call does nothing."""
        if self._was_stopped or os.getpid() != self._owner:  # a forked child of the notebook does not own the engine
            return
        self._read_messages()
        self._was_stopped = True
        segments = probe_segments(self.pids)
        with contextlib.suppress(OSError):
            self._supervisor.stdin.write(b"stop\n")
        try:
            self._supervisor.wait(timeout=self.launch.grace_s + 60)
        except subprocess.TimeoutExpired:
            self._supervisor.kill()
            self._supervisor.wait()
        # Normally nothing is left to do here; this is for a supervisor that was itself killed.
        for _ in range(50):
            left = () if self.pid is None else probe_children(self._supervisor.pid, group=self.pid)
            for pid in left:
                with contextlib.suppress(OSError):
                    os.kill(pid, 9)
            if not left:
                break
            time.sleep(0.05)
        supervisor._remove_segments(segments)
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
                if error is not None and not self._was_stopped:
                    self._read_messages(
                        timeout_s=0.2
                    )  # the client may know of a death before the supervisor has said it
                self.check_alive()
        except ServerError as death:
            raise death from error  # "connection refused" was only the symptom
        finally:
            self.stop()

    def __del__(self) -> None:
        """A server that nobody holds any more ends: its supervisor sees the pipe closed. (Popen would keep it open.)"""
        with contextlib.suppress(AttributeError, OSError):
            self._supervisor.stdin.close()

    # --- start -------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Start the supervisor, which starts the engine; returns when the engine's process exists."""
        self._scratch = tempfile.mkdtemp(prefix=f"labkit-{self.engine[:12]}-")
        filled = {"port": str(self.port), "scratch": self._scratch}
        env = {name: value for name, value in os.environ.items() if name not in self.launch.unset}
        if self.launch.argv[0] != sys.executable:  # another environment: our own paths would bring our own packages
            env.pop("PYTHONPATH", None)
            env.pop("PYTHONHOME", None)
        env |= {"TMPDIR": self._scratch, "PYTHONUNBUFFERED": "1"}
        own_path = env.get("PYTHONPATH")
        env |= {name: _fill(value, filled) for name, value in self.launch.env.items()}
        if own_path and "PYTHONPATH" in self.launch.env:
            env["PYTHONPATH"] += os.pathsep + own_path
        for name, text in self.launch.files.items():
            path = Path(self._scratch, name)
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        argv = [_fill(part, filled) for part in self.launch.argv]
        spec = {"argv": argv, "env": env, "cwd": self._scratch, "log": str(self.log_path), "scratch": self._scratch,
                "grace_s": self.launch.grace_s}  # fmt: skip
        with self.log_path.open("ab") as log:
            self._supervisor = subprocess.Popen(
                [sys.executable, "-I", "-S", supervisor.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=log, start_new_session=True, bufsize=0, cwd="/",
            )  # fmt: skip
        self._start_instant_s = time.monotonic()
        try:
            self._supervisor.stdin.write(json.dumps(spec).encode() + b"\n")
            while self.pid is None and not self._is_gone and self._supervisor.poll() is None:
                self._read_messages(timeout_s=0.2)
        except BaseException:
            self.stop()
            raise

    def _wait_until_ready(self, deadline_s: float) -> None:
        """Return when the engine answers on its own port; ServerError when it dies or the deadline passes."""
        pause_s = 0.02
        while True:
            if not self.is_alive:
                raise self._error(f"{self.engine} ended before it was ready ({self._how()}).", next_step=self._advice())
            with contextlib.suppress(OSError, http.client.HTTPException):
                # /health alone could be somebody else's server that took the port first.
                if self._get("/health", timeout_s=5.0)[0] == 200 and probe_listening(self.port, self.pids):
                    break
            waited_s = time.monotonic() - self._start_instant_s
            if waited_s > deadline_s:
                fact = f"{self.engine} was not ready after {waited_s:.0f} s (limit {deadline_s:.0f} s)."
                raise self._error(fact, next_step="Give a longer ready_deadline_s, or free the processor and memory.")
            time.sleep(pause_s)
            pause_s = min(0.25, pause_s * 1.5)
        self.start_s = time.monotonic() - self._start_instant_s
        with contextlib.suppress(OSError):
            self._supervisor.stdin.write(b"ready\n")

    # --- details -----------------------------------------------------------------------------------------------------

    def _read_messages(self, timeout_s: float = 0.0) -> None:
        """Take in what the supervisor has said so far."""
        pipe = self._supervisor.stdout
        while not pipe.closed and select.select([pipe], [], [], timeout_s)[0]:
            data = os.read(pipe.fileno(), 65536)
            if not data:
                self._is_gone = True
                return
            *lines, self._buffer = (self._buffer + data).split(b"\n")
            for message in map(json.loads, lines):
                self.pid = message.get("pid", self.pid)
                self._is_gone = self._is_gone or not {"exit", "error", "removed"}.isdisjoint(message)
                self.exit_code = message.get("exit", self.exit_code)
                if "error" in message:
                    with self.log_path.open("a", encoding="utf-8") as log:
                        log.write(message["error"] + "\n")

    def _get(self, path: str, *, timeout_s: float = 30.0) -> tuple[int, str]:
        """GET without proxies: an engine on the loopback address is never behind one."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=timeout_s)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode(errors="replace")
        finally:
            connection.close()

    def _how(self) -> str:
        if self.exit_code is None:
            return "its supervisor was killed" if self._supervisor.poll() is not None else "its end was not seen"
        return f"signal {-self.exit_code}" if self.exit_code < 0 else f"exit code {self.exit_code}"

    def _advice(self) -> str:
        first = _ERROR_LINE.search(self.load_log_tail(100_000))
        cause = f"the first error in the log is {first[1].strip()[:300]!r}; " if first else ""
        return f"{cause}the whole log is {self.log_path}."

    def _error(self, fact: str, *, next_step: str) -> ServerError:
        return ServerError(fact, next_step=next_step, log_tail=self.load_log_tail())


def run_launch(launch: Launch, *, port: int | None = None) -> Server:
    """Start what `launch` describes and return the `Server` when it answers; use it in `with`, or call `stop()`.

    A port that somebody else takes first is replaced by another, unless `port` asked for that one. A start that fails
    is repeated `launch.num_start_retries` times and counted. ServerError carries the last lines of the log.
    """
    races, failures = 0, 0
    while True:
        server = Server(launch, port=find_free_port(port), log_path=_find_log_path(launch.engine))
        server.start_attempts = 1 + failures
        try:
            server._wait_until_ready(launch.ready_deadline_s)
            server.versions = probe_versions(launch.argv[0], distributions=launch.distributions)
            return server
        except ServerError as error:
            was_alive = server.is_alive
            server.stop()
            if not was_alive and port is None and races < _NUM_PORTS_TRIED and _TAKEN.search(error.log_tail):
                races += 1
            elif not was_alive and failures < launch.num_start_retries:
                failures += 1
            else:
                raise
        except BaseException:  # an interrupt while the engine starts
            server.stop()
            raise


def _fill(text: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        text = text.replace("{" + name + "}", value)
    return text


def _find_log_path(engine: str) -> Path:
    """A new log file in the temporary folder of this user; the oldest go when there are many."""
    folder = Path(tempfile.gettempdir(), f"labkit-logs-{os.getuid() if hasattr(os, 'getuid') else 'user'}")
    folder.mkdir(mode=0o700, exist_ok=True)
    with contextlib.suppress(OSError):
        for old in sorted(folder.glob("*.log"), key=lambda path: path.stat().st_mtime)[:-_NUM_LOGS_KEPT]:
            if old.stat().st_mtime < time.time() - 3600:  # a younger one may belong to a server that runs
                old.unlink()
    handle, name = tempfile.mkstemp(prefix=f"{engine}-{time.strftime('%Y%m%d-%H%M%S')}-", suffix=".log", dir=folder)
    os.close(handle)
    return Path(name)
