"""Can this machine run the course, and on which tier?"""

import ctypes
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from console import Stop

MIN_DRIVER = 580  # the first branch of the driver that runs CUDA 13, which the GPU lock's builds use
MIN_CAPABILITY = (7, 5)  # Turing (T4): the oldest GPU that those builds support


@dataclass(frozen=True, slots=True)
class Gpu:
    """The first NVIDIA GPU.

    Attributes:
        name: as the driver calls it
        driver: its version; None if a GPU is plugged in, but no driver answers
        capability: compute capability (major, minor); None if unknown
    """

    name: str
    driver: str | None = None
    capability: tuple[int, int] | None = None


def check_platform(system: str | None = None, machine: str | None = None) -> None:
    system, machine = system or platform.system(), machine or platform.machine()
    if (system, machine) != ("Linux", "x86_64"):
        raise Stop(
            f"This is {system} on {machine}; the course's packages are built for Linux on x86_64 only (processors of "
            "Intel and AMD). Next: use Linux on such a machine, on Windows inside WSL 2. From a Mac: a Linux machine "
            "elsewhere, or Colab (README.md)."
        )


def check_path(*folders: Path) -> None:
    for folder in folders:
        for character in ":${}":
            if character in str(folder):
                raise Stop(
                    f"The path {folder} contains a {character!r}, and Python's venv and setuptools cannot work in such "
                    "a folder. Next: rename it, or move the course elsewhere, then run this again."
                )


def check_compiler(which=shutil.which, include: Path | None = None) -> None:
    """Some packages have no wheels and are built here; torch and the engines compile C++ while they run."""
    for language, names in (("C", ("cc", "gcc", "clang")), ("C++", ("g++", "c++", "clang++"))):
        if not any(which(name) for name in names):
            raise Stop(
                f"There is no {language} compiler, and a few packages are built from source. Next: install one "
                "(Debian: apt-get install gcc g++), then run this again."
            )
    if not Path(include or sysconfig.get_paths()["include"], "Python.h").exists():
        raise Stop(
            "Python's C headers (Python.h) are missing, and a few packages are built from source. Next: install them "
            f"(Debian: apt-get install python{sys.version_info[0]}.{sys.version_info[1]}-dev), then run this again."
        )


def run_quietly(command: list, timeout_s: float = 60) -> str | None:
    """What a command prints; None if it fails, is missing or takes too long."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout_s)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


def find_gpu() -> Gpu | None:
    return ask_nvidia_smi() or ask_driver() or (Gpu("an NVIDIA GPU") if has_nvidia_device() else None)


def ask_nvidia_smi() -> Gpu | None:
    tool = shutil.which("nvidia-smi") or "/usr/lib/wsl/lib/nvidia-smi"
    text = run_quietly([tool, "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader"])
    for line in (text or "").splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == 3:
            found = re.fullmatch(r"(\d+)\.(\d+)", cells[1])
            return Gpu(cells[0], driver=cells[2], capability=(int(found[1]), int(found[2])) if found else None)
    return None


def ask_driver() -> Gpu | None:
    """The same from the driver's library, where its tool is not on PATH."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        handle, text, driver = ctypes.c_void_p(), ctypes.create_string_buffer(96), ctypes.create_string_buffer(96)
        major, minor = ctypes.c_int(), ctypes.c_int()
        if nvml.nvmlInit_v2() != 0 or nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(handle)) != 0:
            return None
        failed = nvml.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor))
        nvml.nvmlDeviceGetName(handle, text, 96)
        nvml.nvmlSystemGetDriverVersion(driver, 96)
        nvml.nvmlShutdown()
    except (OSError, AttributeError):
        return None
    capability = None if failed else (major.value, minor.value)
    return Gpu(text.value.decode(errors="replace"), driver=driver.value.decode(errors="replace"), capability=capability)


def has_nvidia_device(root: Path = Path("/")) -> bool:
    """Whether an NVIDIA GPU is plugged in, even if no driver answers: the kernel's list of PCI devices says so."""
    for device in root.glob("sys/bus/pci/devices/*"):
        try:
            vendor, kind = (device / "vendor").read_text(), (device / "class").read_text()
        except OSError:
            continue
        if vendor.strip() == "0x10de" and kind.startswith("0x03"):
            return True
    return (root / "proc/driver/nvidia/version").exists()


def choose_tier(gpu: Gpu | None, asked: str | None = None) -> tuple[str, str]:
    """(tier, why)."""
    on_cpu = "Every lab works on the CPU meanwhile. Next, for the GPU:"
    if asked:
        return asked, f"you asked for it with --tier {asked}"
    if gpu is None:
        return "cpu", "no NVIDIA GPU was found"
    if gpu.driver is None:
        return "cpu", (
            f"{gpu.name} is there, but no driver answers. {on_cpu} install NVIDIA's driver {MIN_DRIVER} or newer, "
            "restart, check with nvidia-smi, and run `make setup` again"
        )
    branch = re.match(r"\d+", gpu.driver)
    if branch and int(branch[0]) < MIN_DRIVER:
        return "cpu", (
            f"{gpu.name} has driver {gpu.driver}, and the CUDA 13 builds need {MIN_DRIVER} or newer. {on_cpu} update "
            "the driver, restart, and run `make setup` again"
        )
    if gpu.capability and gpu.capability < MIN_CAPABILITY:
        has, needs = ("{}.{}".format(*capability) for capability in (gpu.capability, MIN_CAPABILITY))
        return "cpu", f"{gpu.name} has compute capability {has}, and the CUDA builds need {needs} or newer"
    return "gpu", f"{gpu.name} was found, driver {gpu.driver}"
