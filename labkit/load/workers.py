"""What if one process is not enough? Worker processes that follow one absolute schedule.

Every worker gets its part of the same plan (every n-th chain) and one common start on the machine's monotonic clock,
which all processes share. It sends its records through a pipe, one per line. A worker that is killed loses only its own
requests: what it had sent back is kept, and the report says what is missing.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from labkit.errors import LabkitError
from labkit.load.client import ClientHealth, ClientRun, encode_bodies, run_client
from labkit.load.loop import run_precise
from labkit.load.records import RequestRecord
from labkit.load.sampling import sample_server
from labkit.load.transport import HttpTransport

__all__ = ["main", "run_workers"]

_READY_S = 60.0  # for every worker to be up; importing numpy on a busy machine takes seconds
_LEAD_S = 0.3  # from the last "ready" to the start
_GRACE_S = 10.0


def run_workers(url, plan, target, limits, *, headers, num_workers, on_record=None, on_progress=None):
    """Run a plan in several processes; returns (runs of the workers, `Sampling`, problems as sentences).

    The parent sends no request: it samples the server and collects. Ctrl-C ends the workers, which hand over what they
    have.
    """
    team = [_Worker(number, num_workers, url, plan, target, limits, headers) for number in range(num_workers)]
    try:
        deadline_s = time.monotonic() + _READY_S
        for worker in team:
            if not worker.is_ready.wait(max(0.0, deadline_s - time.monotonic())) or worker.process.poll() is not None:
                raise LabkitError(
                    f"worker {worker.number} of {num_workers} did not start.", next_step="Use fewer workers."
                )
        start_s = time.monotonic() + _LEAD_S
        for worker in team:
            worker.say({"start_s": start_s})
        with _handle_interrupt(team):
            sampling = run_precise(_watch(url, headers, team, start_s, on_record, on_progress))
    finally:
        for worker in team:
            worker.end()
    problems = tuple(problem for worker in team if (problem := worker.find_problem()))
    return [worker.finish(start_s) for worker in team], sampling, problems


class _Worker:
    """The parent's end of one worker process."""

    def __init__(self, number, num_workers, url, plan, target, limits, headers) -> None:
        self.number, self.is_ready = number, threading.Event()
        self.records: list[RequestRecord] = []
        self.new: list[RequestRecord] = []
        self.summary: dict | None = None
        part = plan.split(number, num_workers)
        self.num_planned = part.num_requests
        spec = pickle.dumps((url, part, target, limits, dict(headers or {})))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(
            [str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        )}  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from labkit.load.workers import main; main()"], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, env=environment, start_new_session=True,  # Ctrl-C is for the parent alone
        )  # fmt: skip
        # Through the pipe, not the command line: headers hold secrets.
        self.say({"spec": base64.b64encode(spec).decode()})
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def say(self, message: dict) -> None:
        with contextlib.suppress(OSError, ValueError):
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()

    def _read(self) -> None:
        for line in self.process.stdout:
            try:
                message = json.loads(line)
            except ValueError:
                continue  # half a line of a worker that was killed
            if "record" in message:
                record = RequestRecord.from_dict(message["record"])
                self.records.append(record)
                self.new.append(record)
            elif "health" in message:
                self.summary = message
            elif "ready" in message:
                self.is_ready.set()
        self.is_ready.set()

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(_GRACE_S if self.summary is not None else 1.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.thread.join(5)
        self.process.stdout.close()

    def find_problem(self) -> str:
        if self.summary is not None:
            return ""
        code = self.process.returncode
        how = f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"
        of = f" of {self.num_planned}" if self.num_planned is not None else ""
        return f"worker {self.number} ended {how}: {len(self.records)}{of} of its requests are kept"

    def finish(self, start_s: float) -> ClientRun:
        if self.summary is None:
            return ClientRun(tuple(self.records), ClientHealth(), "complete", start_s)
        health = ClientHealth(**self.summary["health"])
        return ClientRun(tuple(self.records), health, self.summary["end"], start_s)


@contextlib.contextmanager
def _handle_interrupt(team):
    """Ctrl-C tells the workers to stop and hand over; a second one ends everything."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def stop(number, frame):
        signal.signal(signal.SIGINT, before)
        for worker in team:
            worker.say({"stop": True})

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


async def _watch(url, headers, team, start_s, on_record, on_progress):
    """Sample the server until the last worker has ended; pass records on."""
    loop = asyncio.get_running_loop()
    done, failed, told_s = 0, 0, loop.time()
    pages = HttpTransport(url, headers=headers)
    await pages.start()
    async with sample_server(pages, start_s=start_s) as sampling:
        is_last = False
        while not is_last:
            await asyncio.sleep(0.1)
            is_last = all(worker.process.poll() is not None or worker.summary is not None for worker in team)
            for worker in team:
                new, worker.new = worker.new, []
                done, failed = done + len(new), failed + sum(bool(record.cause) for record in new)
                for record in new if on_record else ():
                    on_record(record)
            if on_progress and loop.time() - told_s >= 1.0:
                told_s = loop.time()
                on_progress({"seconds": told_s - start_s, "done": done, "failed": failed})
    return sampling.result()


def main() -> None:
    """Be a worker: read the plan and the start from stdin, write one line per record to stdout."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    url, plan, target, limits, headers = pickle.loads(base64.b64decode(json.loads(sys.stdin.buffer.readline())["spec"]))
    out = sys.stdout.buffer

    def write(message: dict) -> None:
        out.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")

    bodies = encode_bodies(plan, target)
    write({"ready": True})
    out.flush()
    said = json.loads(sys.stdin.buffer.readline() or b"{}")
    if "start_s" not in said:
        return
    run = run_precise(_work(url, plan, target, limits, headers, said["start_s"], bodies, write))
    write({"health": dataclasses.asdict(run.health), "end": run.end})
    out.flush()
    # A thread still waits at stdin and holds its lock: an orderly end of the interpreter would abort there.
    os._exit(0)


async def _work(url, plan, target, limits, headers, start_s, bodies, write) -> ClientRun:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def listen() -> None:
        # "stop", or the end of the pipe: the parent is gone.
        sys.stdin.buffer.readline()
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(stop.set)

    threading.Thread(target=listen, daemon=True).start()
    waiting: list[RequestRecord] = []

    def flush() -> None:
        for record in waiting:
            write({"record": record.to_dict()})
        waiting.clear()
        sys.stdout.buffer.flush()

    async def flush_often() -> None:
        while True:
            await asyncio.sleep(0.5)
            flush()

    flusher = asyncio.create_task(flush_often())
    try:
        return await run_client(
            plan, target, HttpTransport(url, headers=headers), limits=limits, start_s=start_s, bodies=bodies, stop=stop,
            on_record=waiting.append,
        )  # fmt: skip
    finally:
        flusher.cancel()
        flush()
