"""The environment that is filled: what is finished in it, whether it can be used, how it is made."""

import contextlib
import fcntl
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

from console import Stop, say
from machine import run_quietly

OWN_VERSION = "{}.{}".format(*sys.version_info[:2])


class Environment:
    """A Python environment; what is finished stands in a small file inside it.

    Attributes:
        folder, python: where it is, and its Python
        site: its site-packages, given that it has the Python that runs this
        log: file of everything that pip says
    """

    def __init__(self, folder: Path, python: Path):
        self.folder, self.python = folder, python
        self.site = folder / "lib" / f"python{OWN_VERSION}" / "site-packages"
        self.stamp_path, self.log = folder / "labkit-setup.json", folder / "labkit-setup.log"

    def load_stamp(self) -> dict:
        try:
            stamp = json.loads(self.stamp_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return stamp if isinstance(stamp, dict) else {}

    def save_stamp(self, stamp: dict) -> None:
        new = self.stamp_path.with_name(self.stamp_path.name + ".new")
        new.write_text(json.dumps(stamp, indent=1, sort_keys=True), encoding="utf-8")
        new.replace(self.stamp_path)

    def ask_version(self) -> str | None:
        """Its Python's version, as "3.11"; None if it does not run."""
        command = [self.python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        return (run_quietly(command, timeout_s=300) or "").strip() or None

    def has_pip(self) -> bool:
        """Python comes before pip: a set-up that was stopped in between leaves an environment without pip."""
        return run_quietly([self.python, "-m", "pip", "--version"], timeout_s=300) is not None

    def find_fault(self, tier: str) -> str:
        """Why it must be made anew; "" if there is none yet, or if it can be filled further."""
        stamp = self.load_stamp()
        if not stamp and not self.python.exists():
            return ""
        version = self.ask_version()
        if version is None:
            return "its Python does not run"
        if version != OWN_VERSION:
            return f"it has Python {version}, and this is Python {OWN_VERSION}"
        if not self.has_pip():
            return "pip does not work in it"
        # Both engines are called vllm inside: one must not be laid over the other.
        if stamp.get("tier", tier) != tier:
            return f"it holds the {stamp['tier']} tier, and this is the {tier} tier"
        if stamp.get("folder", str(self.folder)) != str(self.folder):
            return f"it was moved here, and its programs still point to {stamp['folder']}"
        return ""


@contextlib.contextmanager
def take_turn(folder: Path):
    """Only one set-up at a time works in this folder. The kernel ends the turn of one that is killed."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Another set-up is running here; waiting for it.")
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            pass  # a disk without locks (NFS refuses them on folders): two at once are rare, a set-up is due
        yield
    finally:
        os.close(handle)


def make_venv(environment: Environment, fault: str) -> None:
    """Make the environment, or make it anew if it has a fault."""
    if environment.python.exists() and not fault:
        return
    folder = environment.folder
    names = set(os.listdir(folder)) if folder.is_dir() else set()
    # What is emptied must be an environment, or what venv makes first if it is stopped at once.
    if "pyvenv.cfg" not in names and not names <= {"bin", "include", "lib", "lib64", ".gitignore"}:
        raise Stop(f"{folder} holds other things than a Python environment. Next: name another folder (`make setup "
                   "VENV=...`), or empty this one.")  # fmt: skip
    if fault:
        say(f"Removing the old environment: {fault}.")
    say(f"Making the environment {folder.name} with Python {platform.python_version()}.")
    # Started from inside an environment (perhaps this very one), the Python that it was made from does the work.
    python = getattr(sys, "_base_executable", sys.executable)
    done = subprocess.run([python, "-m", "venv", "--clear", str(folder)], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True)  # fmt: skip
    if done.returncode != 0:
        raise Stop(explain_venv_failure(done.stdout, folder))


def explain_venv_failure(output: str, folder: Path) -> str:
    if "No space left" in output:
        return "The disk is full. Next: free some space and run this again."
    last = (output.strip().splitlines() or ["venv said nothing"])[-1]
    if re.search("Permission denied|Errno 13|Read-only file system", output):
        step = f"check the rights on {folder.parent}"
    elif "ensurepip" in output:
        last = "Python's venv module does not work here"
        step = f"install it (Debian: apt-get install python{OWN_VERSION}-venv)"
    else:
        step = f"see that {folder} is a folder or does not exist"
    return f"The environment could not be made: {last}. Next: {step}, then run this again."
