"""Install the course's locked packages: look at the machine, choose a tier and say why, go on where a run stopped.

    python3 requirements/install.py            # makes .venv and fills it (make setup)
    python requirements/install.py --into-current      # into the running environment (conda)

Only the standard library, and only syntax that Python 3.6 reads: a Python that is too old gets a sentence, not a
SyntaxError. Every finished step is written into the environment.
"""

import argparse
import contextlib
import ctypes
import glob
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FOLDER = os.path.join(ROOT, "requirements")
PYTHONS = ((3, 11), (3, 13))
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
MIN_DRIVER = 580  # the first branch of the driver that runs CUDA 13, which the GPU lock's builds use
MIN_CAPABILITY = (7, 5)  # Turing (T4): the oldest GPU that those builds support
DOWNLOAD_SHARE = 0.45  # wheels beside what they unpack to (GPU tier: 4.24 of 10.01 GB), and a little room to build
STAMP, LOG, TEMPORARY = "labkit-setup.json", "labkit-setup.log", "labkit-setup-tmp"
STEPS = ["torch", "packages", "labkit"]
# Where there is no .venv, `make lab` would make one.
OPEN_LAB = "OMP_WAIT_POLICY=passive python -m jupyterlab --ServerApp.ip=127.0.0.1 labs/00_start_here.ipynb"
GIB = 1024.0**3


class Stop(Exception):  # noqa: N818, it is raised to stop, and its text is all that is shown
    """The installation cannot go on: a fact and the next step, as one message."""


def say(text):
    print(text)
    sys.stdout.flush()


# ---- what machine is this? ----------------------------------------------------------------------------------------


def check_python(version=None):
    version = tuple(version or sys.version_info[:3])
    if not PYTHONS[0] <= version[:2] <= PYTHONS[1]:
        age = "old" if version[:2] < PYTHONS[0] else "new"
        raise Stop(
            "This is Python {}, too {} for the course: its packages exist for 3.11, 3.12 and 3.13. Next: install one "
            "of them (Debian: apt-get install python3.11 python3.11-venv; anywhere: conda or pyenv), then "
            "`make setup PYTHON=python3.11`.".format(".".join(str(part) for part in version), age)
        )


def check_platform(system=None, machine=None):
    system, machine = system or platform.system(), machine or platform.machine()
    if (system, machine) != ("Linux", "x86_64"):
        raise Stop(
            "This is {} on {}; the course's packages are built for Linux on x86_64 only (processors of Intel and AMD). "
            "Next: use Linux on such a machine, on Windows inside WSL 2. From a Mac: a Linux machine elsewhere, or "
            "Colab (README.md).".format(system, machine)
        )


def check_path(*folders):
    for folder in folders:
        for sign in ":${}":
            if sign in folder:
                raise Stop(
                    "The path {} contains a {!r}, and Python's venv and setuptools cannot work in such a folder. Next: "
                    "rename it, or move the course elsewhere, then run this again.".format(folder, sign)
                )


def check_compiler(which=shutil.which, include=None):
    """Some packages have no wheels and are built here; torch and the engines compile C++ while they run."""
    for language, names in (("C", ("cc", "gcc", "clang")), ("C++", ("g++", "c++", "clang++"))):
        if not any(which(name) for name in names):
            raise Stop(
                "There is no {} compiler, and a few packages are built from source. Next: install one (Debian: "
                "apt-get install gcc g++), then run this again.".format(language)
            )
    include = include or sysconfig.get_paths()["include"]
    if not os.path.exists(os.path.join(include, "Python.h")):
        raise Stop(
            "Python's C headers (Python.h) are missing, and a few packages are built from source. Next: install them "
            "(Debian: apt-get install python{}.{}-dev), then run this again.".format(*sys.version_info[:2])
        )


def _output(command, timeout_s=60):
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True, timeout=timeout_s)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


def _ask_nvidia_smi():
    """(name, capability, driver) of the first GPU from the driver's own tool, None when it does not answer."""
    tool = shutil.which("nvidia-smi") or "/usr/lib/wsl/lib/nvidia-smi"
    text = _output([tool, "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader"])
    rows = [[cell.strip() for cell in line.split(",")] for line in (text or "").splitlines()]
    rows = [row for row in rows if len(row) == 3]
    if not rows:
        return None
    found = re.match(r"(\d+)\.(\d+)$", rows[0][1])
    return rows[0][0], tuple(int(part) for part in found.groups()) if found else None, rows[0][2]


def _ask_driver():
    """The same from the driver's library, where the tool is not on PATH."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        if nvml.nvmlInit_v2() != 0:
            return None
        handle, count, text = ctypes.c_void_p(), ctypes.c_uint(), ctypes.create_string_buffer(96)
        if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0 or count.value == 0:
            return None
        if nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(handle)) != 0:
            return None
        major, minor = ctypes.c_int(), ctypes.c_int()
        has_capability = nvml.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor)) == 0
        nvml.nvmlDeviceGetName(handle, text, 96)
        name = text.value.decode(errors="replace")
        nvml.nvmlSystemGetDriverVersion(text, 96)
        driver = text.value.decode(errors="replace")
        nvml.nvmlShutdown()
        return name, (major.value, minor.value) if has_capability else None, driver
    except (OSError, AttributeError):
        return None


def _has_nvidia_device(root="/"):
    """An NVIDIA GPU is plugged in, whether or not a driver answers: the kernel's list of PCI devices says so."""
    for device in glob.glob(os.path.join(root, "sys/bus/pci/devices/*")):
        try:
            with open(os.path.join(device, "vendor")) as vendor, open(os.path.join(device, "class")) as kind:
                if vendor.read().strip() == "0x10de" and kind.read().startswith("0x03"):
                    return True
        except OSError:
            continue
    return os.path.exists(os.path.join(root, "proc/driver/nvidia/version"))


def find_gpu():
    """{"name", "capability", "driver"}, the driver None where none answers; None where there is no GPU."""
    answer = _ask_nvidia_smi() or _ask_driver()
    if answer:
        return {"name": answer[0], "capability": answer[1], "driver": answer[2]}
    return {"name": "an NVIDIA GPU", "capability": None, "driver": None} if _has_nvidia_device() else None


def choose_tier(gpu, asked=None):
    """(tier, sentence why)."""
    if asked:
        return asked, "you asked for it with --tier {}".format(asked)
    if gpu is None:
        return "cpu", "no NVIDIA GPU was found"
    if gpu["driver"] is None:
        return "cpu", (
            "{} is there, but no driver answers. Every lab works on the CPU meanwhile. Next, for the GPU: install "
            "NVIDIA's driver {} or newer, restart, check with nvidia-smi, and run `make setup` again".format(
                gpu["name"], MIN_DRIVER)
        )
    branch = re.match(r"\d+", gpu["driver"])
    if branch and int(branch.group()) < MIN_DRIVER:
        return "cpu", (
            "{} has driver {}, and the CUDA 13 builds need {} or newer. Every lab works on the CPU meanwhile. Next, "
            "for the GPU: update the driver, restart, and run `make setup` again".format(
                gpu["name"], gpu["driver"], MIN_DRIVER)
        )
    if gpu["capability"] and gpu["capability"] < MIN_CAPABILITY:
        return "cpu", "{} has compute capability {}.{}, and the CUDA builds need {}.{} or newer".format(
            gpu["name"], *(gpu["capability"] + MIN_CAPABILITY))
    return "gpu", "{} was found, driver {}".format(gpu["name"], gpu["driver"])


# ---- what is to be installed, and does it fit? --------------------------------------------------------------------


def load_lock(path):
    """(torch requirement or None, {name: version}, sha256) of a lock file."""
    try:
        with open(path, "rb") as handle:
            data = handle.read()
    except OSError as error:
        raise Stop("The lock {} cannot be read ({}). Next: restore it with `git checkout requirements`.".format(
            os.path.basename(path), error.strerror)) from error
    text = data.decode("utf-8")
    torch = re.search(r"^# (torch==\S+)", text, flags=re.MULTILINE)
    pins = dict(re.findall(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)", text, flags=re.MULTILINE))
    return torch.group(1) if torch else None, pins, hashlib.sha256(data).hexdigest()


def normalise(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def list_installed(site):
    """{normalised name: version} from the metadata folders, without importing anything."""
    found = {}
    for folder in glob.glob(os.path.join(glob.escape(site), "*.dist-info")):
        name, _, version = os.path.basename(folder)[: -len(".dist-info")].rpartition("-")
        found[normalise(name)] = version
    return found


def is_version(seen, wanted):
    """As pip compares them: 1.0 is 1.0.0, and a wanted version that names no build is any build of it."""
    def split(text):
        parts = re.findall(r"\d+|[a-z]+", text)
        parts = [int(part) if part.isdigit() else part for part in parts]
        while parts and parts[-1] == 0:
            parts.pop()
        return parts

    public, _, build = wanted.partition("+")
    seen_public, _, seen_build = (seen or "").partition("+")
    return split(seen_public) == split(public) and build in ("", seen_build)


def find_changed(done, torch, pins, installed):
    """{finished step: names of its packages that are gone or have another version by now}."""
    wanted = {"torch": dict([torch.split("==")]) if torch else {}, "packages": pins}
    changed = {step: sorted(name for name, version in packages.items()
                            if not is_version(installed.get(normalise(name)), version))
               for step, packages in wanted.items()}
    changed["labkit"] = [] if "labkit" in installed else ["labkit"]
    return {step: names for step, names in changed.items() if step in done and names}


def list_few(names):
    return ", ".join(names[:3]) + (" and {} more".format(len(names) - 3) if len(names) > 3 else "")


def estimate_need_bytes(torch, pins, installed, sizes):
    """Disk that the missing packages take, unpacked, from the committed sizes; an unknown one counts as the mean."""
    wanted = dict(pins)
    if torch:
        wanted["torch+cpu"] = torch.split("==")[1]
    mean = sum(sizes.values()) / float(len(sizes)) if sizes else 10e6
    return int(sum(sizes.get(name, mean) for name, version in wanted.items()
                   if not is_version(installed.get(normalise(name.split("+")[0])), version)))


def check_disk(need, target, cache, free_of=None):
    """Raise Stop when `need` bytes and the downloads do not fit; say the need and what is free.

    The downloads count twice: pip keeps them in its cache, and until all is installed beside the packages (run_pip).
    """
    free_of = free_of or (lambda path: shutil.disk_usage(path).free)
    places, downloads = {}, need * DOWNLOAD_SHARE
    for folder, amount, use in ((target, need + downloads, "packages"), (cache, downloads, "downloads")):
        while not os.path.exists(folder) and os.path.dirname(folder) != folder:
            folder = os.path.dirname(folder)
        place = places.setdefault(os.stat(folder).st_dev, {"folder": folder, "need": 0.0, "uses": []})
        place["need"] += amount
        place["uses"].append(use)
    for place in places.values():
        free, uses = free_of(place["folder"]), " and ".join(place["uses"])
        if free < place["need"]:
            raise Stop(
                "The {} need {:.1f} GiB, but only {:.1f} GiB are free on the disk of {}. Next: free {:.1f} GiB there, "
                "or put the course on a larger disk (downloads: set PIP_CACHE_DIR), then run this again.".format(
                    uses, place["need"] / GIB, free / GIB, place["folder"], (place["need"] - free) / GIB)
            )
        say("Disk: {} need {:.1f} GiB, {:.1f} GiB are free.".format(uses, place["need"] / GIB, free / GIB))


# ---- pip ----------------------------------------------------------------------------------------------------------

FAILURES = (
    (r"No space left on device|\[Errno 28\]",
     "The disk is full. Next: free some space (the need was printed above) and run this again; it goes on from here."),
    (r"externally-managed-environment",
     "This Python belongs to the operating system, which does not want packages added to it. Next: activate a conda or "
     "virtual environment first, or leave --into-current away."),
    (r"\[Errno 13\]",
     "Something may not be written or run (Permission denied). Next: check the rights on the course's folder and on "
     "pip's cache (did sudo make them?), then run this again."),
    (r"DO NOT MATCH THE HASHES",
     "A downloaded file is not the one that the lock names (hash mismatch). Next: run `python3 -m pip cache purge` and "
     "this again; if it stays, do not install: a mirror in between changes files."),
    (r"Killed signal terminated program|internal compiler error: Killed",
     "There was too little memory to compile a package, and the system stopped the compiler. Next: close other "
     "programs, or take a machine with more memory, then run this again; it goes on from here."),
    (r"error: command .*failed|unable to execute '|Python\.h: No such file|fatal error: .*\.h: No such file",
     "A package that is built from source did not compile. Next: install the compiler and headers (Debian: apt-get "
     "install gcc g++ python3-dev) and run this again."),
    (r"(?i)certificate[ _]verify[ _]failed",
     "The server's certificate is not trusted here: the clock is wrong, or a proxy puts in its own. Next: check "
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
)


def explain_failure(output, log):
    for pattern, sentence in FAILURES:
        if re.search(pattern, output):
            return "{} (pip's words: {})".format(sentence, log)
    return "pip failed in a way that has no sentence here. Next: read the end of {}, then run this again.".format(log)


def pip_environment(temporary):
    """The user's pip settings, without those that would send packages elsewhere or starve the builds."""
    environ = {key: value for key, value in os.environ.items()
               if key not in ("PIP_NO_DEPS", "PIP_TARGET", "PIP_PREFIX", "PIP_REQUIRE_HASHES", "PYTHONHOME")}
    environ.update(PIP_USER="0", PIP_DISABLE_PIP_VERSION_CHECK="1", PYTHONUNBUFFERED="1", TMPDIR=temporary)
    return environ


@contextlib.contextmanager
def temporary_folder(folder):
    """pip keeps gigabytes of wheels in its temporary folder: /tmp may be small, or memory. So it gets one here."""
    path = os.path.join(folder, TEMPORARY)
    shutil.rmtree(path, ignore_errors=True)  # of a run that was killed
    os.mkdir(path)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


class Progress(object):
    """One moving line on a terminal, a line every ten seconds elsewhere: what pip does, how far, for how long."""

    def __init__(self, total, site, clock=time.time):
        self.total, self.site, self.clock = total, site, clock
        self.start, self.last, self.seen, self.phase = clock(), 0.0, 0, "downloading"
        self.is_terminal = sys.stdout.isatty()

    def read(self, line):
        if re.match(r"(Collecting|Processing|Requirement already satisfied)\b", line):
            self.seen += 1
        elif line.startswith("  Building wheel for "):
            self.phase = "building " + line.split()[3]
        elif line.startswith("Installing collected packages"):
            self.phase = "installing"
        else:
            return
        self.show()

    def show(self, is_last=False):
        now = self.clock()
        if not is_last and now - self.last < (0.2 if self.is_terminal else 10):
            return
        self.last = now
        seen = len(list_installed(self.site)) if self.phase == "installing" else self.seen
        counts = " {} of {} packages".format(min(seen, self.total), self.total)
        counts = "" if self.phase.startswith("building") else counts
        minutes, seconds = divmod(int(now - self.start), 60)
        text = "  [{:d}:{:02d}] {}{}".format(minutes, seconds, "done," if is_last else self.phase, counts)
        sys.stdout.write("\r{:<78}".format(text) + ("\n" if is_last else "") if self.is_terminal else text + "\n")
        sys.stdout.flush()


def run_pip(python, arguments, log, progress=None):
    """(exit status, output) of pip; its words go to the log, its progress to the console."""
    command = [python, "-m", "pip", *arguments]
    lines, stop = [], threading.Event()
    with temporary_folder(os.path.dirname(log)) as temporary, open(log, "a") as sink:
        sink.write("\n$ pip {}\n".format(" ".join(arguments)))
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT,
                                 env=pip_environment(temporary), universal_newlines=True, errors="replace")

        def tick():  # installing takes a minute without a word from pip
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


# ---- the steps ----------------------------------------------------------------------------------------------------


class Environment(object):
    """An environment that is being filled; what is done stands in a small file inside it."""

    def __init__(self, folder, python):
        self.folder, self.python = folder, python
        self.stamp_path, self.log = os.path.join(folder, STAMP), os.path.join(folder, LOG)

    @property
    def site(self):
        """Where its packages are, given that it has the Python that runs this."""
        return os.path.join(self.folder, "lib", "python" + own_version(), "site-packages")

    def load(self):
        try:
            with open(self.stamp_path) as handle:
                stamp = json.load(handle)
            return stamp if isinstance(stamp, dict) else {}
        except (OSError, ValueError):
            return {}

    def save(self, stamp):
        temporary = self.stamp_path + ".new"
        with open(temporary, "w") as handle:
            json.dump(stamp, handle, indent=1, sort_keys=True)
        os.replace(temporary, self.stamp_path)

    def ask_version(self):
        """Its Python's version, as "3.11"; None where it does not run."""
        output = _output([self.python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], timeout_s=300)
        return (output or "").strip() or None

    def has_pip(self):
        """Python is there before pip is: a set-up that was stopped in between leaves an environment without it."""
        return _output([self.python, "-m", "pip", "--version"], timeout_s=300) is not None


def own_version():
    return "{}.{}".format(*sys.version_info[:2])


@contextlib.contextmanager
def take_turn(folder):
    """Only one set-up at a time works in this folder. The kernel ends the turn of one that is killed."""
    import fcntl  # Windows has none, and gets its sentence before this

    os.makedirs(folder, exist_ok=True)
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


def find_fault(environment, stamp, tier):
    """Why what is there must be made anew; "" where nothing is there, or it can be filled further."""
    if not stamp and not os.path.exists(environment.python):
        return ""
    version = environment.ask_version()
    if version is None:
        return "its Python does not run"
    if version != own_version():
        return "it has Python {}, and this is Python {}".format(version, own_version())
    if not environment.has_pip():
        return "pip does not work in it"
    # Both engines are called vllm inside: one must not be laid over the other.
    if stamp.get("tier", tier) != tier:
        return "it holds the {} tier, and this is the {} tier".format(stamp["tier"], tier)
    if stamp.get("folder", environment.folder) != environment.folder:
        return "it was moved here, and its programs still point to {}".format(stamp["folder"])
    return ""


def check_is_ours(folder):
    """What is to be emptied must be an environment, or what venv makes first when it is stopped at once."""
    names = set(os.listdir(folder)) if os.path.isdir(folder) else set()
    if "pyvenv.cfg" not in names and not names <= {"bin", "include", "lib", "lib64", ".gitignore"}:
        raise Stop("{} holds other things than a Python environment. Next: name another folder (`make setup "
                   "VENV=...`), or empty this one.".format(folder))


def make_venv(environment, fault):
    if os.path.exists(environment.python) and not fault:
        return
    check_is_ours(environment.folder)
    if fault:
        say("Removing the old environment: {}.".format(fault))
    name = os.path.basename(environment.folder)
    say("Making the environment {} with Python {}.".format(name, platform.python_version()))
    # Started from inside an environment (perhaps this very one), the Python that it was made from does the work.
    python = getattr(sys, "_base_executable", sys.executable)
    done = subprocess.run([python, "-m", "venv", "--clear", environment.folder], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, universal_newlines=True)
    if done.returncode != 0:
        raise Stop(explain_venv_failure(done.stdout, environment.folder))


def explain_venv_failure(output, folder):
    if "No space left" in output:
        return "The disk is full. Next: free some space and run this again."
    last = (output.strip().splitlines() or ["venv said nothing"])[-1]
    if re.search("Permission denied|Errno 13|Read-only file system", output):
        return "The environment could not be made: {}. Next: check the rights on {}, then run this again.".format(
            last, os.path.dirname(folder))
    if "ensurepip" in output:
        return ("The environment could not be made: Python's venv module does not work here. Next: install it (Debian: "
                "apt-get install python{}-venv), then run this again.".format(own_version()))
    return ("The environment could not be made: {}. Next: see that {} is a folder or nothing yet, then run this "
            "again.".format(last, folder))


def install_torch(environment, requirement):
    """torch's CPU wheel: from pip's configured places, else from PyTorch's own CPU index; never a CUDA build.

    The requirement names the build (2.13.0+cpu): no CUDA build answers to that, and what was installed is looked at.
    """
    name, wanted = requirement.split("==")
    say("Installing torch {}.".format(wanted))
    outputs = []
    for extra in ([], ["--index-url", TORCH_CPU_INDEX]):
        arguments = ["install", "--no-deps", "--no-input", "--progress-bar", "off", "--only-binary", ":all:"]
        status, output = run_pip(environment.python, arguments + extra + [requirement], environment.log)
        outputs.append(output)
        if status == 0:
            break
        if not re.search("No matching distribution|Could not find a version", output):
            raise Stop(explain_failure(output, environment.log))
        if not extra:
            say("  pip's configured places do not have it; asking {}.".format(TORCH_CPU_INDEX))
    else:
        raise Stop("No CPU wheel of torch {} was found, neither in pip's configured places nor on {}. {}".format(
            wanted, TORCH_CPU_INDEX, explain_failure(outputs[-1], environment.log)))
    seen = list_installed(environment.site).get(name)
    if seen != wanted:
        raise Stop("torch {} was installed where {} was asked for. Next: remove it (`pip uninstall torch`) and run "
                   "this again.".format(seen, wanted))


def install_packages(environment, lock, pins, old_names):
    gone = sorted(set(old_names) - set(pins))
    if gone:
        say("Removing what the lock no longer holds: {}.".format(", ".join(gone)))
        run_pip(environment.python, ["uninstall", "--yes", *gone], environment.log)
    say("Installing {} packages from {}.".format(len(pins), os.path.basename(lock)))
    progress = Progress(len(pins), environment.site)
    status, output = run_pip(
        environment.python,
        ["install", "--no-deps", "--require-hashes", "--no-input", "--progress-bar", "off", "-r", lock],
        environment.log, progress)
    if status != 0:
        raise Stop(explain_failure(output, environment.log))


def install_labkit(environment):
    say("Installing labkit from this folder.")
    status, output = run_pip(
        environment.python, ["install", "--no-deps", "--no-build-isolation", "--no-input", "--editable", ROOT],
        environment.log)
    if status != 0:
        raise Stop(explain_failure(output, environment.log))


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tier", choices=("cpu", "gpu"), help="instead of what the hardware suggests")
    parser.add_argument("--into-current", action="store_true", help="into the running environment (conda)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, change nothing")
    parser.add_argument("--venv", default=os.path.join(ROOT, ".venv"), help="folder of the environment")
    parser.add_argument("--lock", help="another lock file (make bump)")
    return parser.parse_args(arguments)


def install(options):
    check_python()
    check_platform()
    if options.into_current:
        environment = Environment(sys.prefix, sys.executable)
    else:
        folder = os.path.realpath(options.venv)  # venv refuses a link; what it leads to is a folder like any other
        environment = Environment(folder, os.path.join(folder, "bin", "python"))
    check_path(ROOT, environment.folder)
    if options.dry_run:
        fill(environment, options)
        return
    with take_turn(os.path.dirname(environment.folder)):
        fill(environment, options)


def fill(environment, options):
    started = time.time()
    tier, why = choose_tier(find_gpu(), options.tier)
    lock = os.path.abspath(options.lock or os.path.join(FOLDER, tier + ".lock"))
    torch, pins, digest = load_lock(lock)
    stamp = environment.load()
    identity = {"tier": tier, "lock_sha256": digest, "folder": environment.folder, "course": ROOT,
                "python": own_version()}
    # A stamp without "python" is from before it was written; the environment itself is asked below.
    is_same = all(stamp.get(key, value) == value for key, value in identity.items())
    done = list(stamp.get("finished", [])) if is_same else []
    installed = list_installed(environment.site)
    changed = find_changed(done, torch, pins, installed)
    if done == STEPS and not changed and environment.ask_version() == own_version():
        say("The environment is complete ({} tier: {}).".format(tier, why))
        return
    say("Tier {}: {}.".format(tier, why))
    fault = find_fault(environment, stamp, tier)
    if fault and options.into_current:
        raise Stop("This environment cannot be used: {}. Next: make a new one (the first lines of environment.yml say "
                   "how), then run this again there.".format(fault))
    if fault:
        done, installed, names = [], {}, []
    else:
        done, names = [step for step in done if step not in changed], stamp.get("names", [])
    if changed and not fault:
        say("Gone or changed since the last set-up, to be installed again: {}.".format(
            list_few([name for step in STEPS for name in changed.get(step, [])])))
    check_compiler()
    with open(os.path.join(FOLDER, "sizes.json")) as handle:
        need = estimate_need_bytes(torch, pins, installed, json.load(handle))
    cache = os.environ.get("PIP_CACHE_DIR") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "pip")
    check_disk(need, environment.folder, cache)
    if options.dry_run:
        steps = ["torch"] * bool(torch) + ["packages", "labkit"]
        say("Would install into {}{}: {}.".format(
            environment.folder, ", made anew ({})".format(fault) if fault else "",
            ", ".join(step for step in steps if step not in done)))
        return
    if not options.into_current:
        make_venv(environment, fault)
    stamp = dict(identity, finished=done, names=sorted(set(names) | set(pins)))
    environment.save(stamp)
    for step, work in (
        ("torch", lambda: install_torch(environment, torch) if torch else None),
        ("packages", lambda: install_packages(environment, lock, pins, names)),
        ("labkit", lambda: install_labkit(environment)),
    ):
        if step not in done:
            work()
            done = [name for name in STEPS if name in done or name == step]
            if step == "packages":
                stamp["names"] = sorted(pins)
            environment.save(dict(stamp, finished=done))
    say("Ready after {:.0f} s. Open the first lab with `{}`.".format(
        time.time() - started, say_how_to_open(environment, options)))


def say_how_to_open(environment, options):
    if options.into_current:
        return OPEN_LAB
    is_usual = environment.folder == os.path.realpath(os.path.join(ROOT, ".venv"))
    return "make lab" if is_usual else 'make lab VENV="{}"'.format(environment.folder)


def main(arguments=None):
    try:
        install(parse(arguments))
    except Stop as stop:
        sys.stdout.flush()
        sys.stderr.write("\n{}\n".format(stop))
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\nStopped. What is finished stays; run this again and it goes on from here.\n")
        return 130
    except OSError as error:
        sys.stderr.write("\nThe installation stopped: {}{}. Next: {}, then run this again.\n".format(
            error.strerror or error, " ({})".format(error.filename) if error.filename else "",
            "free some disk" if error.errno == 28 else "check the rights on this folder"))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
