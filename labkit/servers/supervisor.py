"""Who cleans up? A small process between the notebook and an engine, which outlives both just long enough.

A kernel that is restarted or killed with `kill -9` cannot clean up after itself, and vLLM's API server, if killed,
leaves its engine core, its worker and 400 MB of shared memory behind. So the notebook starts this program (standard
library only, by its path), and this program starts the engine, in a session of its own. Its standard input is a pipe
from the notebook: when the pipe closes, the notebook is gone, for whatever reason. Then the supervisor ends the whole
family of the engine, including children that moved to another session (it is their "subreaper": orphans become its
children), removes the shared-memory segments that the family created and the scratch folder, and exits.

Linux only. Elsewhere (macOS) there is no /proc, no subreaper and no parent-death signal: only the engine's process
group is ended, and segments are left to the engine.

Messages on standard output, one JSON object a line: {"pid": n} once; {"error": text} if the program cannot be started;
{"segments": count} in answer to "ready"; {"exit": code} when the engine ended by itself; finally {"removed": [names of
segments]} when everything is gone. Commands on standard input, one a line: the engine's description (JSON) first, then
"ready" or "stop".
"""

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time

__all__ = ["measure_process_memory", "probe_children", "probe_listening", "probe_segments", "remove_segments"]

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_SHM = "/dev/shm"


def probe_children(root: int, *, group: int | None = None) -> tuple[int, ...]:
    """Return the live processes below `root` at any depth, and those of the process group `group`; never `root` itself.

    Read from /proc; on systems without it from psutil, and () if that is missing too.
    """
    parents, groups = {}, {}
    try:
        names = [name for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return _ask_psutil(root)
    for name in names:
        try:
            with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                # The command is in parentheses and may contain anything: count fields from the last parenthesis.
                state, parent, pgid = file.read().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):
            continue
        if state not in "ZX":
            parents[int(name)], groups[int(name)] = int(parent), int(pgid)
    family = {pid for pid, pgid in groups.items() if group is not None and pgid == group}
    wave = {root} | family
    while wave:
        wave = {pid for pid, parent in parents.items() if parent in wave} - family
        family |= wave
    return tuple(sorted(family - {root}))


def probe_segments(pids) -> set[tuple[int, int]]:
    """Return (device, inode) of every file of /dev/shm that one of the processes `pids` maps; empty without /proc.

    Inodes, not names: a semaphore is mapped under a temporary name that is removed at once.
    """
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as file:
            for line in file:
                if _SHM in line:
                    device, inode = line.split(None, 5)[3:5]
                    major, minor = (int(part, 16) for part in device.split(":"))
                    found.add((os.makedev(major, minor), int(inode)))
    return found


def measure_process_memory(pids) -> dict:
    """Return {"rss_bytes", "pss_bytes", "num_processes"} summed over `pids`; None if the system does not report it.

    RSS counts a shared page once per process that maps it; PSS divides it among them.
    """
    rss = pss = num = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/smaps_rollup", encoding="utf-8") as file:
                fields = {
                    line.split()[0]: int(line.split()[1]) * 1024 for line in file if line.split()[0].endswith(":")
                }
        except (OSError, ValueError, IndexError):
            continue
        rss, pss, num = rss + fields.get("Rss:", 0), pss + fields.get("Pss:", 0), num + 1
    if num:
        return {"rss_bytes": rss, "pss_bytes": pss, "num_processes": num}
    with contextlib.suppress(Exception):  # no /proc: psutil reports RSS on every system
        import psutil

        sizes = [psutil.Process(pid).memory_info().rss for pid in pids]
        return {"rss_bytes": sum(sizes) or None, "pss_bytes": None, "num_processes": len(sizes)}
    return {"rss_bytes": None, "pss_bytes": None, "num_processes": 0}


def probe_listening(port: int, pids) -> bool:
    """Return whether one of the processes `pids` owns the listening socket of `port`; True without /proc."""
    inodes = set()
    try:
        with open("/proc/net/tcp", encoding="utf-8") as file:
            for fields in map(str.split, file.readlines()[1:]):
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:  # 0A: LISTEN
                    inodes.add(f"socket:[{fields[9]}]")
    except OSError:
        return True
    for pid in pids:
        with contextlib.suppress(OSError):
            for entry in os.scandir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(entry.path) in inodes:
                        return True
    return False


def _ask_psutil(root: int) -> tuple[int, ...]:
    with contextlib.suppress(Exception):
        import psutil

        return tuple(sorted(child.pid for child in psutil.Process(root).children(recursive=True)))
    return ()


def remove_segments(segments: set[tuple[int, int]]) -> list[str]:
    """Delete files of /dev/shm by (device, inode) if they are ours and no longer mapped; return their names."""
    removed = []
    try:
        entries = list(os.scandir(_SHM))
    except OSError:
        return removed
    ours = []
    for entry in entries:
        with contextlib.suppress(OSError):
            stat = entry.stat(follow_symlinks=False)
            # st_dev of tmpfs equals the device in /proc/PID/maps; uid keeps us off other people's files.
            if (stat.st_dev, stat.st_ino) in segments and stat.st_uid == os.getuid():
                ours.append(((stat.st_dev, stat.st_ino), entry))
    if ours:
        in_use = probe_segments(name for name in os.listdir("/proc") if name.isdigit())
        for key, entry in ours:
            if key not in in_use:
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)
                    removed.append(entry.name)
    return removed


class _Engine:
    """One engine, from its start to the end of its last child."""

    def __init__(self, task: dict):
        self.task, self.parent = task, os.getppid()
        self.segments: set[tuple[int, int]] = set()
        self.exit_code: int | None = None
        self.is_exited = False
        self.pid = 0

    def start(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
        if libc:
            libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

        def before_exec():  # runs in the child: the engine dies with this program if somebody kills it
            if libc:
                libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

        with open(self.task["log"], "ab") as log:
            self.process = subprocess.Popen(
                self.task["argv"], env=self.task["env"], cwd=self.task["scratch"], stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=before_exec,
            )  # fmt: skip
        self.pid = self.process.pid

    def family(self) -> tuple[int, ...]:
        return probe_children(os.getpid(), group=self.pid)

    def sample(self) -> None:
        self.segments |= probe_segments(self.family())

    def reap(self) -> None:
        """Collect dead children: the engine, and orphans that became ours."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.pid:
                self.is_exited, self.exit_code = True, os.waitstatus_to_exitcode(status)
                self.process.returncode = self.exit_code  # so that Popen does not wait for it again

    def end(self, grace_s: float) -> list[str]:
        """Ask the engine to exit, wait `grace_s`, kill whatever is left, and remove what it created."""
        self.sample()
        self.reap()
        if not self.is_exited:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)
            self._wait(lambda: self.is_exited, grace_s)
        self.sample()
        for _ in range(30):  # a child may have forked meanwhile: repeat until nobody is left
            family = self.family()
            if not family:
                break
            for pid in family:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            self._wait(lambda family=family: not set(family) & set(self.family()), 1.0)
        self.reap()
        removed = remove_segments(self.segments)
        shutil.rmtree(self.task["scratch"], ignore_errors=True)
        return removed

    def _wait(self, is_done, limit_s: float) -> None:
        deadline = time.monotonic() + limit_s
        while not is_done() and time.monotonic() < deadline:
            time.sleep(0.02)
            self.reap()


def _say(**message) -> None:
    with contextlib.suppress(OSError):  # nobody reads any more: the clean-up goes on anyway
        os.write(1, (json.dumps(message) + "\n").encode())


def main() -> None:
    """Run one engine until it ends, the notebook says stop, or the notebook is gone."""
    wake_r, wake_w = os.pipe()
    os.set_blocking(wake_w, False)
    signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)  # handled, not ignored: the engine would inherit "ignored"
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append("stop"))
    with open(0, "rb", buffering=0, closefd=False) as control:  # unbuffered: what follows the line stays in the pipe
        task_line = control.readline()
    if not task_line:
        return
    engine = _Engine(json.loads(task_line))
    try:
        engine.start()
    except (OSError, subprocess.SubprocessError) as error:
        _say(error=f"{type(error).__name__}: {error}")
        shutil.rmtree(engine.task["scratch"], ignore_errors=True)
        return
    _say(pid=engine.pid)
    grace_s, next_sample_s, is_ready = engine.task["grace_s"], 0.0, False
    while not asked and not engine.is_exited:
        # Look for segments often while the engine starts, rarely while it is measured: each look takes milliseconds.
        ready, _, _ = select.select([0, wake_r], [], [], 1.0)
        if wake_r in ready:
            os.read(wake_r, 4096)
        if 0 in ready:
            text = os.read(0, 4096)
            asked += ["gone"] if not text else []
            asked += ["stop"] if b"stop" in text else []
            if b"ready" in text:
                is_ready = True
                engine.sample()
                _say(segments=len(engine.segments))
        if os.getppid() != engine.parent:  # a forked child of the notebook may hold the pipe open after its death
            asked.append("gone")
        engine.reap()
        if time.monotonic() >= next_sample_s and not engine.is_exited:
            engine.sample()
            next_sample_s = time.monotonic() + (10.0 if is_ready else 0.5)
    if engine.is_exited:
        _say(exit=engine.exit_code)  # at once: the notebook wants to know why its connection broke
    _say(removed=engine.end(min(grace_s, 2.0) if "gone" in asked else grace_s))


if __name__ == "__main__":
    main()
