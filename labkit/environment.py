"""Is the installation complete? (`labkit doctor`)

Every probe is small, only reads, and ends in a `Finding`: what was seen, and what to do next if something is missing.
Nothing here raises because something is absent, and nothing imports torch.
"""

import contextlib
import importlib
import importlib.metadata
import json
import os
import re
import shutil
import socket
import sys
import types
from dataclasses import dataclass
from pathlib import Path

from labkit.errors import InstallError
from labkit.hardware import Machine, probe_machine
from labkit.journal import expand_path
from labkit.units import format_bytes

__all__ = [
    "MIN_DRIVER",
    "Finding",
    "find_course_root",
    "find_lab_folder",
    "format_doctor",
    "load_lab_module",
    "load_lock",
    "probe_environment",
    "read_thread_plan",
]

MIN_DRIVER = 580  # the first branch of NVIDIA's driver that runs CUDA 13, which the GPU builds of torch and vLLM use
_PYTHONS = ((3, 11), (3, 13))  # the oldest and the newest that the locks were resolved for
_PORTS = {8888: "JupyterLab", 8000: "the labs' engines"}
_MIN_MEMORY_BYTES = 6 * 1024**3  # one engine takes 2.9 GB; a comparison keeps two resident
_MIN_DISK_BYTES = 2 * 1024**3  # records, temporary checkpoints and the engines' caches
_SETUP = "run `make setup` in the course's folder."


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor.

    Attributes:
        name: what was looked at, such as "packages"
        status: "ok", "missing", "warning" or "not needed"
        seen: what was found
        next_step: what to do about it; "" if nothing
    """

    name: str
    status: str
    seen: str
    next_step: str = ""


def find_course_root() -> Path:
    """Find the folder that holds labs/ and labkit/: LABKIT_COURSE, else this package's parent, else the cwd or above.

    Raises InstallError if there is none.
    """
    named = os.environ.get("LABKIT_COURSE")
    for folder in _list_candidates(named):
        try:
            if (folder / "labs").is_dir() and (folder / "labkit").is_dir():
                return folder.resolve()
        except OSError:  # a name that is too long, or a folder without read permission
            continue
    where = "in the folder that LABKIT_COURSE names" if named else "beside labkit or above the current folder"
    raise InstallError(
        f"No course was found {where}: labs/ and labkit/ must be side by side.",
        next_step="start from a clone of the course, or set LABKIT_COURSE to its folder.",
    )


def find_lab_folder(number: str) -> Path:
    """Find the folder of all that belongs to a lab ("12"): solutions/src/12_topic. Raises InstallError if absent."""
    folders = sorted((find_course_root() / "solutions" / "src").glob(f"{number}_*/"))
    if len(number) != 2 or not folders:
        raise InstallError(
            f"solutions/src has no folder of lab {number!r}.", next_step="use another number, or get the course again."
        )
    return folders[0]


def load_lab_module(number: str, name: str) -> types.ModuleType:
    """Import a Python file of a lab's folder: load_lab_module("12", "checks").

    The folder is the package `lab12`, so its files import each other as `from lab12.workloads import ...`. Raises
    InstallError when the course has no such lab, ModuleNotFoundError when the lab has no such file.
    """
    folder, package = str(find_lab_folder(number)), f"lab{number}"
    known = sys.modules.get(package)
    if known is None or list(known.__path__) != [folder]:
        for loaded in [one for one in sys.modules if one.partition(".")[0] == package]:  # of another course
            del sys.modules[loaded]
        sys.modules[package] = types.ModuleType(package, doc=f"Files of lab {number}.")
        sys.modules[package].__path__ = [folder]
    return importlib.import_module(f"{package}.{name}")


def _list_candidates(named: str | None) -> list[Path]:
    """Folders to look into; none for the home of an unknown user or if the working folder was deleted."""
    package = [] if named else [Path(__file__).resolve().parents[1]]
    try:
        return [expand_path(named)] if named else [*package, Path.cwd(), *Path.cwd().parents]
    except OSError:
        return package


def load_lock(path) -> dict[str, str]:
    """Read the pins of a lock file as {normalised name: version}; InstallError if it is unreadable or empty.

    A CPU lock names torch in a comment (`# torch==2.13.0+cpu`), because its wheel is installed separately; it counts.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        fact = f"The lock {Path(path).name} cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8 text'})."
        raise InstallError(fact, next_step=_SETUP) from error
    found = re.findall(r"^(?:# (?=torch==))?([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)", text, flags=re.MULTILINE)
    if not found:
        raise InstallError(f"The lock {Path(path).name} has no pins.", next_step="restore it with git checkout.")
    return {_normalise(name): version for name, version in found}


def read_thread_plan() -> dict:
    """Read what decides the number of threads: OpenMP's variables, and torch's counts (None until it is loaded)."""
    torch = sys.modules.get("torch")
    return {
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY"),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        "torch_num_threads": torch.get_num_threads() if torch else None,
        "torch_num_interop_threads": torch.get_num_interop_threads() if torch else None,
    }


def probe_environment(*, machine: Machine | None = None, timeout_s: float = 1.5) -> tuple[Finding, ...]:
    """Look at everything that a lab needs, in the order in which a learner would repair it; never raises.

    `timeout_s` bounds the one request to the network. `machine` saves probing the hardware again.
    """
    machine = machine or probe_machine()
    try:
        root = find_course_root()
    except InstallError as error:
        root, course = None, Finding("course", "missing", error.fact, "set LABKIT_COURSE to the course's folder.")
    else:
        course = Finding("course", "ok", "labs/ and labkit/ are side by side")
    return (
        _probe_python(),
        course,
        *_probe_packages(root),
        *_probe_gpu(machine),
        _probe_cores(machine),
        _probe_bytes("memory", machine.memory_free_bytes, needed=_MIN_MEMORY_BYTES, next_step="close other programs."),
        _probe_bytes("disk", machine.disk_free_bytes, needed=_MIN_DISK_BYTES, next_step="free some disk."),
        _probe_threads(),
        _probe_compiler(),
        _probe_chromium(),
        *(_probe_port(port, user) for port, user in _PORTS.items()),
        _probe_hub(timeout_s),
    )


def format_doctor(findings: tuple[Finding, ...]) -> str:
    """Format the findings as a table for the console, each next step below its line."""
    marks = {"ok": "ok", "missing": "MISSING", "warning": "warning", "not needed": "-"}
    width = max((len(finding.name) for finding in findings), default=0)
    lines = []
    for finding in findings:
        lines.append(f"{marks[finding.status]:>7}  {finding.name:<{width}}  {finding.seen}")
        if finding.next_step:
            lines.append(f"{'':>7}  {'':<{width}}  -> {finding.next_step}")
    num_open = sum(finding.status in ("missing", "warning") for finding in findings)
    closing = "Everything is ready." if num_open == 0 else f"{num_open} of {len(findings)} lines need a look."
    return "\n".join([*lines, "", closing])


def _normalise(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _probe_python() -> Finding:
    version = sys.version_info[:2]
    seen = ".".join(str(part) for part in sys.version_info[:3])
    if _PYTHONS[0] <= version <= _PYTHONS[1]:
        return Finding("python", "ok", seen)
    return Finding("python", "warning", f"{seen}; the course is tested with 3.11 to 3.13", "install Python 3.11.")


def _installed() -> dict[str, str]:
    """Installed distributions as {name: version}; one with damaged metadata counts as absent."""
    found = {}
    for distribution in importlib.metadata.distributions():
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            if (name := distribution.metadata["Name"]) and (version := distribution.version):
                found.setdefault(_normalise(name), version)
    return found


def _find_tier(installed: dict[str, str]) -> str:
    """The tier whose lock was installed: what set-up recorded, else a guess from the engine and torch's build."""
    try:
        return json.loads((Path(sys.prefix) / "labkit-setup.json").read_text(encoding="utf-8"))["tier"]
    except (OSError, ValueError, KeyError, TypeError):
        return "gpu" if "vllm" in installed or "+cu" in installed.get("torch", "") else "cpu"


def _probe_packages(root: Path | None) -> list[Finding]:
    installed = _installed()
    torch = installed.get("torch")
    findings = [Finding("torch", "ok", torch) if torch else Finding("torch", "missing", "not installed", _SETUP)]
    if root is None:
        return findings
    tier = _find_tier(installed)
    try:
        pins = load_lock(root / "requirements" / f"{tier}.lock")
    except InstallError as error:
        return [*findings, Finding("packages", "missing", error.fact, _SETUP)]
    absent = [name for name in pins if name not in installed]
    # Another build of the same version (torch 2.13.0 and 2.13.0+cpu) counts as the same pin.
    moved = [
        f"{name} {installed[name]} (lock: {version})"
        for name, version in pins.items()
        if name in installed and installed[name].split("+")[0] != version.split("+")[0]
    ]
    seen = f"{len(pins) - len(absent) - len(moved)} of {len(pins)} pins of {tier}.lock are installed"
    if absent:
        return [*findings, Finding("packages", "missing", f"{seen}; absent: {_few(absent)}", _SETUP)]
    if moved:
        return [*findings, Finding("packages", "warning", f"{seen}; other versions: {_few(moved)}", _SETUP)]
    return [*findings, Finding("packages", "ok", seen)]


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _has_nvidia_device() -> bool:
    """Whether the PCI bus has an NVIDIA display or 3D controller, even if no driver is loaded."""
    for device in Path("/sys/bus/pci/devices").glob("*"):
        try:
            vendor, kind = (device / "vendor").read_text().strip(), (device / "class").read_text().strip()
        except OSError:
            continue
        if vendor == "0x10de" and kind.startswith("0x03"):
            return True
    return False


def _probe_gpu(machine: Machine) -> list[Finding]:
    if not machine.gpus:
        if not _has_nvidia_device():
            return [Finding("gpu", "not needed", "no NVIDIA GPU; the course runs on the CPU")]
        step = f"install NVIDIA's driver {MIN_DRIVER} or newer, restart, check with nvidia-smi, then `make setup`."
        return [Finding("gpu", "warning", "there is an NVIDIA GPU, but no driver answers", step)]
    findings = []
    for gpu in machine.gpus:
        memory = format_bytes(gpu.memory_bytes) if gpu.memory_bytes else "memory unknown"
        findings.append(Finding(f"gpu {gpu.index}", "ok", f"{gpu.name}, {memory}, driver {gpu.driver or 'unknown'}"))
    driver = (machine.gpus[0].driver or "").split(".")[0]
    if driver.isdecimal() and int(driver) < MIN_DRIVER:
        step = f"update NVIDIA's driver to {MIN_DRIVER} or newer, restart, then `make setup`."
        findings.append(Finding("cuda", "warning", f"driver {driver} is too old for CUDA 13", step))
        return findings
    installed = _installed()
    runtime = installed.get("nvidia-cuda-runtime")
    if runtime is None or "+cpu" in installed.get("torch", ""):
        step = "run `make setup` to install the CUDA builds."
        findings.append(Finding("cuda", "warning", "there is a GPU, but the CPU builds are installed", step))
    else:
        findings.append(Finding("cuda", "ok", f"CUDA runtime {runtime}"))
    return findings


def _probe_cores(machine: Machine) -> Finding:
    cpu = machine.cpu
    seen = f"{cpu.num_cores} cores, {cpu.name}" + ("" if cpu.has_bf16 else "; no bfloat16 instructions")
    load = machine.load_average[0] if machine.load_average else 0.0
    if load > cpu.num_cores:
        step = "wait until the machine is quiet before you measure: times on a busy machine mislead."
        return Finding("cpu", "warning", f"{seen}; load average {load:.1f}", step)
    return Finding("cpu", "ok", seen)


def _probe_bytes(name: str, free: int | None, *, needed: int, next_step: str) -> Finding:
    if free is None:
        return Finding(name, "warning", "cannot be read on this system", "")
    seen = f"{format_bytes(free)} free"
    if free < needed:
        return Finding(name, "warning", f"{seen}, the labs need up to {format_bytes(needed)}", next_step)
    return Finding(name, "ok", seen)


def _probe_threads() -> Finding:
    policy = os.environ.get("OMP_WAIT_POLICY")
    if (policy or "").lower() == "passive":
        return Finding("threads", "ok", "OMP_WAIT_POLICY=passive")
    step = "start JupyterLab with `make lab`, or set OMP_WAIT_POLICY=passive: spinning threads distort measurements."
    return Finding("threads", "warning", f"OMP_WAIT_POLICY is {policy or 'not set'}", step)


def _probe_compiler() -> Finding:
    compiler = next((name for name in ("g++", "c++", "clang++") if shutil.which(name)), None)
    if compiler:
        return Finding("compiler", "ok", compiler + (" and nvcc" if shutil.which("nvcc") else ""))
    return Finding("compiler", "missing", "no C++ compiler", "install one, on Debian: apt-get install g++.")


def _probe_chromium() -> Finding:
    if any(shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")):
        return Finding("chromium", "ok", "found")
    step = "only still images of figures and the browser test need it, on Debian: apt-get install chromium."
    return Finding("chromium", "not needed", "not found", step)


def _probe_port(port: int, user: str) -> Finding:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return Finding(f"port {port}", "warning", f"in use ({user} would take the next free one)")
    return Finding(f"port {port}", "ok", f"free for {user}")


def _probe_hub(timeout_s: float) -> Finding:
    """Check whether larger models could be downloaded; the course works without, so this is never an error."""
    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        return Finding("model hub", "not needed", "HF_HUB_OFFLINE is set; the shipped models are used")
    import urllib.error
    import urllib.request

    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=timeout_s).close()
    except urllib.error.HTTPError as error:
        if error.code in (403, 407) or error.code >= 500:  # a proxy or gateway between us and the hub
            return Finding("model hub", "not needed", f"answers {error.code}; the shipped models are used")
    except Exception:
        return Finding("model hub", "not needed", "not reachable; the shipped models are used")
    return Finding("model hub", "ok", "reachable")
