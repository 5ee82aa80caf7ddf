"""How do I work on a hosted notebook? One call: where am I, what is missing, where is progress kept, what can it run?

    from labkit.colab import run_bootstrap
    run_bootstrap()                 # Colab, Kaggle: installs what is missing, keeps progress in a mounted folder
    run_bootstrap(dry_run=True)     # anywhere: only say what it would do
    run_bootstrap(engine=True)      # vLLM too, in a separate environment: Colab's packages stay as they are

On Colab and Kaggle the first code cell of every lab fetches the course and makes this call; elsewhere it does nothing.
"""

import importlib
import os
import re
import shlex
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from labkit.environment import MIN_DRIVER, find_course_root, load_lock
from labkit.errors import InstallError, LabkitError
from labkit.hardware import Gpu, probe_machine
from labkit.progress import import_progress, load_events
from labkit.progress.events import find_progress_file

__all__ = ["Place", "estimate_limits", "find_missing", "probe_place", "run_bootstrap"]

# What the labs import besides labkit's own dependencies. Ranges, not pins: a hosted notebook has its own versions.
_LAB_PACKAGES = ("torch", "transformers>=5", "tokenizers", "safetensors", "nvidia-ml-py")
_DRIVE = Path("/content/drive")
_KAGGLE = Path("/kaggle")
_CLOUDS = ("Amazon EC2", "Google", "Microsoft Corporation", "DigitalOcean", "Hetzner", "Lambda", "OpenStack")
# (lowest compute capability, feature, what the labs do without it). Sources: the table of features per compute
# capability in https://docs.nvidia.com/cuda/cuda-c-programming-guide/ and the requirements in
# https://github.com/Dao-AILab/flash-attention.
_LIMITS = (
    ((8, 0), "bf16", "it has no bfloat16 units; the labs use float16 there"),
    ((8, 0), "FlashAttention-2", "it needs Ampere or newer; PyTorch's own attention runs instead"),
    ((8, 9), "FP8", "FP8 matrix products need Ada or Hopper; those exercises are blocked and show recorded results"),
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where this runs.

    Attributes:
        name: "colab", "kaggle", "cloud" or "jupyter"
        reason: what it was recognised by
        is_hosted: whether everything outside a mounted folder is lost when the session ends
    """

    name: str
    reason: str
    is_hosted: bool


def run_bootstrap(*, dry_run: bool = False, home: str | Path | None = None, engine: bool = False) -> Place:
    """Make this notebook ready for the labs and print each step; no installed package is replaced.

    `home`: folder for progress and records (default on Colab: labkit in your Drive, which asks for permission).
    `engine`: install vLLM into its own environment and let the labs use it. `dry_run` changes nothing. A second call
    repeats nothing. Raises InstallError if a command fails.
    """
    place, root = probe_place(), find_course_root()
    print(f"Running on {place.name} ({place.reason}); the course is in {root}.")
    _install(place, find_missing(_load_needs(root)), is_dry=dry_run)
    _choose_home(place, home, is_dry=dry_run)
    if not dry_run:
        _prepare_environment(root)
    machine = probe_machine()  # after the installation: the GPU is asked through a package
    gpu = machine.gpus[0] if machine.gpus else None
    if engine:
        _install_engine(root, gpu, is_dry=dry_run)
    print(*estimate_limits(gpu), sep="\n")
    return place


def probe_place() -> Place:
    """Find out where this runs, from what the place itself sets."""
    if "google.colab" in sys.modules:
        return Place("colab", "the module google.colab is loaded", is_hosted=True)
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
        return Place("kaggle", "KAGGLE_KERNEL_RUN_TYPE is set", is_hosted=True)
    vendor = _read_vendor()
    if any(name in vendor for name in _CLOUDS):
        return Place("cloud", f"a virtual machine of {vendor}", is_hosted=False)
    return Place("jupyter", "no sign of a hosted notebook", is_hosted=False)


def find_missing(needs: Iterable[str]) -> tuple[str, ...]:
    """Return those of `needs` ("plotly>=5.24") that are not installed, or older than required."""
    return tuple(need for need in needs if not _is_met(need))


def estimate_limits(gpu: Gpu | None) -> tuple[str, ...]:
    """List what this GPU cannot do, one line each, from its compute capability alone, before a lab runs into it."""
    if gpu is None:
        return ("No GPU: the labs run on the processor (Colab: Runtime > Change runtime type > T4 GPU).",)
    if gpu.capability is None:
        return (f"{gpu.name}: its driver does not report the compute capability, so its limits are unknown.",)
    shown = f"{gpu.capability[0]}.{gpu.capability[1]}"
    below = [(what, why) for needed, what, why in _LIMITS if gpu.capability < needed]
    lines = [f"{gpu.name}, compute capability {shown}: {'everything in the labs can run.' if not below else 'without'}"]
    return (*lines, *(f"  {what}: {why}." for what, why in below))


def _load_needs(root: Path) -> tuple[str, ...]:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return (*project["dependencies"], *_LAB_PACKAGES)


def _is_met(need: str) -> bool:
    name, _, lowest = need.partition(">=")
    try:
        installed = metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return _read_version(installed) >= _read_version(lowest)


def _read_version(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: (2, 11, 0) for "2.11.0+cu128"."""
    return tuple(int(part) for part in re.findall(r"\d+", re.split(r"[^\d.]", text, maxsplit=1)[0]))


def _install(place: Place, missing: tuple[str, ...], *, is_dry: bool) -> None:
    if not missing:
        print("Packages: all are there; nothing was installed.")
        return
    if not place.is_hosted:  # an environment that lasts: the locked set belongs there, not whatever is newest
        print(f"Packages: {', '.join(missing)} missing. Next: run `make setup` in the course's folder, use its kernel.")
        return
    too_old = {need.partition(">=")[0] for need in missing}
    names = [need.partition(">=")[0] for need in (*_LAB_PACKAGES, "numpy", "plotly", "ipywidgets", "ipython")]
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "installed.txt"
        kept.write_text("".join(_keep(name) for name in names if name not in too_old), encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", str(kept), *missing]
        _run(command, is_dry=is_dry)


def _keep(name: str) -> str:
    """A constraint that keeps the installed version: a package that this notebook may have loaded must not change."""
    try:
        return f"{name}=={metadata.version(name)}\n"
    except metadata.PackageNotFoundError:
        return ""


def _choose_home(place: Place, home: str | Path | None, *, is_dry: bool) -> None:
    """Point LABKIT_HOME and LABKIT_RUNS to a folder that outlives the session, and copy earlier progress there."""
    if home is None and "LABKIT_HOME" in os.environ:
        home = os.environ["LABKIT_HOME"]
    if home is None and place.name == "colab":
        home = _mount_drive(is_dry=is_dry)
    if home is None and place.name == "kaggle":
        home = _KAGGLE / "working" / "labkit"
    if home is None:
        print(f"Progress: {find_progress_file()}.")
        if place.is_hosted:
            print("It is lost when this session ends. Next: `labkit progress --export FILE` and download the file.")
        return
    home = Path(home).expanduser()
    if is_dry:
        print(f"Progress: would be kept in {home}.")
        return
    before = find_progress_file()
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InstallError(
            f"{home} cannot keep your progress ({error.strerror}).", next_step="Give another folder: home=..."
        ) from error
    os.environ["LABKIT_HOME"] = str(home)
    os.environ.setdefault("LABKIT_RUNS", str(home / "runs"))
    older = [before, *sorted((_KAGGLE / "input").glob("**/progress.jsonl"))]
    now = find_progress_file().resolve()
    num_new = sum(_import_events(path) for path in older if path.exists() and path.resolve() != now)
    copied = f" ({num_new} copied there now)" if num_new else ""
    print(f"Progress: {len(load_events())} events, kept in {home}{copied}.")


def _import_events(path: Path) -> int:
    """Add the events of another progress file, all of the new ones or none; return how many."""
    try:
        return len(import_progress(path))
    except LabkitError as error:
        print(f"{path} was not copied: {error}")
        return 0


def _mount_drive(*, is_dry: bool) -> Path | None:
    """Mount the learner's Drive; None, after printing the reason, if that is refused or fails."""
    if is_dry:
        print("Drive: would ask for permission to mount it.")
    else:
        try:
            from google.colab import drive

            drive.mount(str(_DRIVE))
        except Exception as error:  # Colab raises several kinds, also if the learner refuses
            print(f"Drive was not mounted ({error}).")
            return None
    return _DRIVE / "MyDrive" / "labkit"


def _prepare_environment(root: Path) -> None:
    """Let child processes (engines, tools) find the course, and keep OpenMP's threads from spinning."""
    paths = [str(root), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    os.environ.setdefault("LABKIT_COURSE", str(root))
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _install_engine(root: Path, gpu: Gpu | None, *, is_dry: bool) -> None:
    if gpu is None:
        print("Engine: without a GPU use the course's own environment (`make setup`), which has vLLM for CPUs.")
        return
    if gpu.driver and _read_version(gpu.driver)[:1] < (MIN_DRIVER,):
        print(f"Engine: the driver is {gpu.driver}, vLLM's builds need {MIN_DRIVER} or newer; not installed.")
        return
    folder = Path.home() / ".labkit-engines" / "vllm"
    python = folder / "bin" / "python"
    if not python.exists():
        pin = f"vllm=={load_lock(root / 'requirements' / 'gpu.lock')['vllm']}"
        uv = [sys.executable, "-m", "uv"]
        if find_missing(["uv"]):
            _run([sys.executable, "-m", "pip", "install", "--quiet", "uv"], is_dry=is_dry)
        _run([*uv, "venv", "--python", sys.executable, str(folder)], is_dry=is_dry)
        _run([*uv, "pip", "install", "--python", str(python), pin], is_dry=is_dry)
    if not is_dry:
        os.environ["LABKIT_ENGINE_PYTHON"] = str(python)
    print(f"Engine: vLLM in {folder}, separate from this notebook's packages.")


def _run(command: list[str], *, is_dry: bool) -> None:
    print(f"{'would run' if is_dry else 'running'}: {shlex.join(command)}", flush=True)
    if is_dry:
        return
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        last = "\n".join(done.stdout.strip().splitlines()[-5:])
        raise InstallError(
            f"`{shlex.join(command)}` failed: {last}", next_step="Read its message, then call run_bootstrap again."
        )
    importlib.invalidate_caches()  # what was just installed can be imported without a restart


def _read_vendor() -> str:
    try:
        return Path("/sys/class/dmi/id/sys_vendor").read_text(encoding="utf-8").strip()
    except OSError:
        return ""
