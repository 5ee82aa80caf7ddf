"""Run pip: its progress on the console, its output in a log, its failures as sentences."""

import contextlib
import os
import re
import shutil
import subprocess
import threading
from pathlib import Path

from console import Progress

ROOT = Path(__file__).resolve().parents[1]
TEMPORARY = "labkit-setup-tmp"
# (pattern in pip's output, sentence), the first that fits.
FAILURES = (
    (r"No space left on device|\[Errno 28\]",
     "The disk is full. Next: free some space (the need was printed above) and run this again; it goes on from here."),
    (r"externally-managed-environment",
     "This Python belongs to the operating system, which does not want packages added to it. Next: activate a conda or "
     "virtual environment first, or leave --into-current away."),
    (r"\[Errno 13\]",
     "A file may not be written or run (Permission denied). Next: check the rights on the course's folder and on "
     "pip's cache (did sudo make them?), then run this again."),
    (r"DO NOT MATCH THE HASHES",
     "A downloaded file is not the one that the lock names (hash mismatch). Next: run `python3 -m pip cache purge` and "
     "this again; if it stays, do not install: a mirror in between changes files."),
    (r"Killed signal terminated program|internal compiler error: Killed",
     "There was too little memory to compile a package, and the system stopped the compiler. Next: close other "
     "programs, or use a machine with more memory, then run this again; it goes on from here."),
    (r"error: command .*failed|unable to execute '|Python\.h: No such file|fatal error: .*\.h: No such file",
     "A package that is built from source did not compile. Next: install the compiler and headers (Debian: apt-get "
     "install gcc g++ python3-dev) and run this again."),
    (r"(?i)certificate[ _]verify[ _]failed",
     "The server's certificate is not trusted here: the clock is wrong, or a proxy inserts its own. Next: check "
     "`date`; behind such a proxy set PIP_CERT to the file of its certificate, then run this again."),
    (r"HTTP error 5\d\d|\b5\d\d Server Error|too many 5\d\d error responses",
     "The server of the packages has an error of its own (5xx). What was downloaded is kept. Next: wait some minutes, "
     "then run this again; it goes on from here."),
    (r"is not a supported wheel on this platform",
     "A wheel was built for another Python or system. Next: use Python 3.11 to 3.13 on Linux with glibc 2.28 or newer "
     "(`ldd --version`; Debian 10, Ubuntu 20.04), then run this again."),
    (r"Connection(?:Error|Reset|Refused| reset| refused| broken| aborted)|NewConnectionError|ConnectTimeout|"
     r"ReadTimeout|Read timed out|Temporary failure in name resolution|Name or service not known|"
     r"Network is unreachable|IncompleteRead|ProtocolError|RemoteDisconnected|ProxyError|SSLError|Retrying \(Retry",
     "The network was lost, or a server does not answer. What was downloaded is kept. Next: when the network is back, "
     "run this again; it goes on from here."),
    (r"No matching distribution found",
     "A package of the lock cannot be found. Next: check the network and pip's index settings (`pip config list`), and "
     "run this again."),
)  # fmt: skip
# The person's own settings of pip that would send packages elsewhere, or starve the builds.
DROPPED = ("PIP_NO_DEPS", "PIP_TARGET", "PIP_PREFIX", "PIP_REQUIRE_HASHES", "PYTHONHOME")


def explain_failure(output: str, log: Path) -> str:
    for pattern, sentence in FAILURES:
        if re.search(pattern, output):
            return f"{sentence} (pip's output: {log})"
    return f"pip failed for a reason that is not known here. Next: read the end of {log}, then run this again."


def make_pip_environ(temporary: Path) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in DROPPED} | {
        "PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONUNBUFFERED": "1", "TMPDIR": str(temporary),
    }  # fmt: skip


@contextlib.contextmanager
def make_temporary_folder(folder: Path):
    """pip keeps gigabytes of wheels in its temporary folder, and /tmp may be small, or memory: it gets one here."""
    path = folder / TEMPORARY
    shutil.rmtree(path, ignore_errors=True)  # of a run that was killed
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def run_pip(python: Path, arguments: list[str], log: Path, progress: Progress | None = None) -> tuple[int, str]:
    """(exit status, output) of pip; its output goes to the log, its progress to the console."""
    lines, stop = [], threading.Event()
    with make_temporary_folder(log.parent) as temporary, log.open("a") as sink:
        sink.write(f"\n$ pip {' '.join(arguments)}\n")
        child = subprocess.Popen(
            [python, "-m", "pip", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT,
            env=make_pip_environ(temporary), text=True, errors="replace",
        )  # fmt: skip

        def tick():  # pip installs for a minute without a word
            while not stop.wait(1.0):
                progress.show()

        if progress:
            threading.Thread(target=tick, daemon=True).start()
        try:
            for line in child.stdout:
                lines.append(line)
                sink.write(line)
                if progress:
                    progress.read(line)
        except KeyboardInterrupt:
            child.terminate()
            child.wait()  # it writes into the temporary folder as long as it lives
            raise
        finally:
            stop.set()
        status = child.wait()
    if progress and status == 0:
        progress.phase = "installing"
        progress.show(is_last=True)
    return status, "".join(lines)
