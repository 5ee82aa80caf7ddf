"""Who cleans up? A small process between the notebook and an engine, which outlives both just long enough.

A kernel that is restarted or killed with `kill -9` cannot clean up after itself, and vLLM's API server that is killed
leaves its engine core, its worker and 400 MB of shared memory behind. So the notebook starts this program (standard
library only, by its path), and this program starts the engine, in a session of its own. It watches its standard
input, a pipe from the notebook: the end of the pipe means that the notebook is gone, however it went. Then it ends
the whole family of the engine, children that moved to another session included (it is their "subreaper", so orphans
come to it), removes the shared-memory segments that the family created and the scratch folder, and leaves.

Linux only. Elsewhere (macOS) there is no /proc, no subreaper and no parent-death signal: only the process group of the
engine is ended, and segments are left to the engine.

Messages on standard output, one JSON object a line: {"pid": n} once, {"error": text} when the program cannot be
started, {"exit": code} when the engine ended by itself, and at last {"removed": [names of segments]} when everything
is gone. Commands on standard input, one a line: the description of the engine (JSON) first, then "ready" or "stop".
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

__all__ = ["probe_children", "probe_listening", "probe_memory_of", "probe_segments"]

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_SHM = "/dev/shm"


def probe_children(root: int, *, group: int | None = None) -> tuple[int, ...]:
    """Return the live processes below `root` at any depth, and those of the process group `group`; never `root` itself.

    Linux reads /proc; elsewhere psutil is asked where it is installed, and the answer is () where it is not.
    """
    parents, groups = {}, {}
    try:
        names = [name for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return _ask_psutil(root)
    for name in names:
        try:
            with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                # The command stands in brackets and may hold anything, so the fields are counted from the last bracket.
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
    """Return (device, inode) of every file of /dev/shm that one of the processes `pids` maps; empty where there is no
    /proc.

    Inodes, not names: a semaphore is mapped under a temporary name that was removed at once.
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


def probe_memory_of(pids) -> dict:
    """Return {"rss_bytes", "pss_bytes", "num_processes"} summed over `pids`; None where the system does not say.

    rss counts a page once per process that maps it, so shared pages count several times; pss shares them out.
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
    with contextlib.suppress(Exception):  # no /proc: psutil knows rss on every system
        import psutil

        sizes = [psutil.Process(pid).memory_info().rss for pid in pids]
        return {"rss_bytes": sum(sizes) or None, "pss_bytes": None, "num_processes": len(sizes)}
    return {"rss_bytes": None, "pss_bytes": None, "num_processes": 0}


def probe_listening(port: int, pids) -> bool:
    """Whether one of the processes `pids` owns the listening socket of `port`; True where there is no /proc to say."""
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


def _remove_segments(segments: set[tuple[int, int]]) -> list[str]:
    """Delete the files of /dev/shm with these inodes that are ours and that nobody maps any more; return names."""
    removed = []
    try:
        entries = list(os.scandir(_SHM))
    except OSError:
        return removed
    ours = []
    for entry in entries:
        with contextlib.suppress(OSError):
            stat = entry.stat(follow_symlinks=False)
            # st_dev of tmpfs and the device in /proc/PID/maps agree; uid keeps us off other people's files.
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


class _Watch:
    """One engine, from its start to the last of its children."""

    def __init__(self, spec: dict):
        self.spec, self.parent = spec, os.getppid()
        self.segments: set[tuple[int, int]] = set()
        self.exit_code: int | None = None
        self.is_exited = self.is_ready = False
        self.pid = 0

    def start(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
        if libc:
            libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

        def before_exec():  # runs in the child: the engine dies with this program, should somebody kill this program
            if libc:
                libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

        with open(self.spec["log"], "ab") as log:
            self.engine = subprocess.Popen(
                self.spec["argv"], env=self.spec["env"], cwd=self.spec["cwd"], stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=before_exec,
            )  # fmt: skip
        self.pid = self.engine.pid

    def family(self) -> tuple[int, ...]:
        return probe_children(os.getpid(), group=self.pid)

    def sample(self) -> None:
        self.segments |= probe_segments(self.family())

    def reap(self) -> None:
        """Collect the dead: the engine, and orphans that came to us."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.pid:
                self.is_exited, self.exit_code = True, os.waitstatus_to_exitcode(status)
                self.engine.returncode = self.exit_code  # so that Popen does not wait for it again

    def end(self, grace_s: float) -> list[str]:
        """Ask the engine to leave, wait `grace_s`, end whatever is left, and remove what it created."""
        self.sample()
        self.reap()
        if not self.is_exited:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)
            self._wait(lambda: self.is_exited, grace_s)
        self.sample()
        for _ in range(30):  # a child may have forked meanwhile: kill, wait and look again until nobody is there
            family = self.family()
            if not family:
                break
            for pid in family:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            self._wait(lambda family=family: not set(family) & set(self.family()), 1.0)
        self.reap()
        removed = _remove_segments(self.segments)
        shutil.rmtree(self.spec["scratch"], ignore_errors=True)
        return removed

    def _wait(self, is_done, limit_s: float) -> None:
        deadline = time.monotonic() + limit_s
        while not is_done() and time.monotonic() < deadline:
            time.sleep(0.02)
            self.reap()


def _say(**message) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more: the clean-up goes on all the same
        os.write(1, (json.dumps(message) + "\n").encode())


def main() -> None:
    """Run one engine until it ends, the notebook says stop, or the notebook is gone."""
    wake_r, wake_w = os.pipe()
    os.set_blocking(wake_w, False)
    signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(
            number, lambda *_: None
        )  # handled, not ignored: an ignored signal would be ignored by the engine too
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append("stop"))
    with open(0, "rb", buffering=0, closefd=False) as control:  # unbuffered: what follows the line stays in the pipe
        spec_line = control.readline()
    if not spec_line:
        return
    watch = _Watch(json.loads(spec_line))
    try:
        watch.start()
    except (OSError, subprocess.SubprocessError) as error:
        _say(error=f"{type(error).__name__}: {error}")
        shutil.rmtree(watch.spec["scratch"], ignore_errors=True)
        return
    _say(pid=watch.pid)
    grace_s, next_sample_s = watch.spec["grace_s"], 0.0
    while not asked and not watch.is_exited:
        # Segments are looked for often while the engine starts, rarely while it is measured: a look takes milliseconds.
        ready, _, _ = select.select([0, wake_r], [], [], 1.0)
        if wake_r in ready:
            os.read(wake_r, 4096)
        if 0 in ready:
            text = os.read(0, 4096)
            asked += ["gone"] if not text else []
            asked += ["stop"] if b"stop" in text else []
            watch.is_ready = watch.is_ready or b"ready" in text
        if os.getppid() != watch.parent:  # a forked child of the notebook may hold the pipe open after its death
            asked.append("gone")
        watch.reap()
        if time.monotonic() >= next_sample_s and not watch.is_exited:
            watch.sample()
            next_sample_s = time.monotonic() + (10.0 if watch.is_ready else 0.5)
    if watch.is_exited:
        _say(exit=watch.exit_code)  # at once: the notebook wants to know why its connection broke
    _say(removed=watch.end(min(grace_s, 2.0) if "gone" in asked else grace_s))


if __name__ == "__main__":
    main()
