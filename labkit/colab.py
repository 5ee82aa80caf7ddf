"""How do I work on a hosted notebook? One call: where am I, what is missing, where does progress stay, what can it do?

    from labkit.colab import run_bootstrap
    run_bootstrap()                 # Colab, Kaggle: installs what is missing, keeps progress in a mounted folder
    run_bootstrap(dry_run=True)     # anywhere: only say what it would do
    run_bootstrap(engine=True)      # vLLM too, into an environment of its own: Colab's packages stay as they are

The first code cell of every lab gets the course on Colab and Kaggle and makes this call; elsewhere it does nothing.
"""

import importlib
import os
import re
import shlex
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from labkit.environment import find_course_root, load_lock
from labkit.errors import InstallError, LabkitError
from labkit.hardware import Gpu, probe_machine
from labkit.progress import import_progress, load_events
from labkit.progress.events import find_progress_file

__all__ = ["Place", "estimate_limits", "find_missing", "probe_place", "run_bootstrap"]

# What the labs import beside labkit's own dependencies. Ranges, not pins: a hosted notebook brings its versions.
_LAB_PACKAGES = ("torch", "transformers>=5", "tokenizers", "safetensors", "nvidia-ml-py")
_DRIVE = Path("/content/drive")
_KAGGLE = Path("/kaggle")
_CLOUDS = ("Amazon EC2", "Google", "Microsoft Corporation", "DigitalOcean", "Hetzner", "Lambda", "OpenStack")
_MIN_DRIVER = 580  # of the engine's CUDA 13 builds, as in labkit.environment
# From which compute capability, what, and what the labs do below it. Sources: the table of features per compute
# capability in https://docs.nvidia.com/cuda/cuda-c-programming-guide/ and the requirements in
# https://github.com/Dao-AILab/flash-attention.
_LIMITS = (
    ((8, 0), "bf16", "it has no bfloat16 units; the labs use float16 there"),
    ((8, 0), "FlashAttention-2", "it needs Ampere or newer; PyTorch's own attention runs instead"),
    ((8, 9), "FP8", "FP8 products need Ada or Hopper; those exercises are blocked and show what was recorded"),
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where this runs: `name` is colab, kaggle, cloud or jupyter; `reason` says by what it was recognised.

    `is_hosted`: the machine goes when the session ends, and with it everything outside a mounted folder.
    """

    name: str
    reason: str
    is_hosted: bool


def run_bootstrap(*, dry_run: bool = False, home: str | Path | None = None, engine: bool = False) -> Place:
    """Make this notebook ready for the labs, saying each step; nothing that is installed is replaced.

    `home`: folder that keeps progress and records (default on Colab: labkit in your Drive, which asks for permission).
    `engine`: install vLLM into its own environment and let the labs use it. `dry_run` changes nothing. Doing it twice
    does nothing twice. Raises InstallError when a command fails.
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


def probe_place(
    *, environ: Mapping[str, str] | None = None, modules: Iterable[str] | None = None, vendor: str | None = None
) -> Place:
    """Find out where this runs, from what the place itself sets; the arguments replace what is seen (for tests)."""
    environ = os.environ if environ is None else environ
    modules = sys.modules if modules is None else modules
    if "google.colab" in modules:
        return Place("colab", "the module google.colab is loaded", is_hosted=True)
    if "KAGGLE_KERNEL_RUN_TYPE" in environ:
        return Place("kaggle", "KAGGLE_KERNEL_RUN_TYPE is set", is_hosted=True)
    vendor = _read_vendor() if vendor is None else vendor
    if any(name in vendor for name in _CLOUDS):
        return Place("cloud", f"a virtual machine of {vendor}", is_hosted=False)
    return Place("jupyter", "no sign of a hosted notebook", is_hosted=False)


def find_missing(needs: Iterable[str], *, version_of=metadata.version) -> tuple[str, ...]:
    """Return those of `needs` ("plotly>=5.24") that are not installed, or older than asked for."""
    return tuple(need for need in needs if not _is_met(need, version_of))


def estimate_limits(gpu: Gpu | None) -> tuple[str, ...]:
    """Say in a line each what this GPU cannot do, before a lab meets it; from its compute capability alone."""
    if gpu is None:
        return ("No GPU: the labs run on the processor (Colab: Runtime > Change runtime type > T4 GPU).",)
    if gpu.capability is None:
        return (f"{gpu.name}: its driver does not tell the compute capability, so its limits are unknown.",)
    shown = f"{gpu.capability[0]}.{gpu.capability[1]}"
    below = [(what, why) for needed, what, why in _LIMITS if gpu.capability < needed]
    lines = [f"{gpu.name}, compute capability {shown}: {'everything in the labs can run.' if not below else 'without'}"]
    return (*lines, *(f"  {what}: {why}." for what, why in below))


def _load_needs(root: Path) -> tuple[str, ...]:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return (*project["dependencies"], *_LAB_PACKAGES)


def _is_met(need: str, version_of) -> bool:
    name, _, lowest = need.partition(">=")
    try:
        installed = version_of(name)
    except metadata.PackageNotFoundError:
        return False
    return _read_version(installed) >= _read_version(lowest)


def _read_version(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: (2, 11, 0) for "2.11.0+cu128"."""
    return tuple(int(part) for part in re.findall(r"\d+", re.split(r"[^\d.]", text, maxsplit=1)[0]))


def _install(place: Place, missing: tuple[str, ...], *, is_dry: bool) -> None:
    if not missing:
        print("Packages: all there; nothing was installed.")
        return
    if not place.is_hosted:  # an environment that somebody keeps: the locked set belongs there, not whatever is newest
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
    """A constraint that keeps the installed version: a package that the running notebook has loaded must not change."""
    try:
        return f"{name}=={metadata.version(name)}\n"
    except metadata.PackageNotFoundError:
        return ""


def _choose_home(place: Place, home: str | Path | None, *, is_dry: bool) -> None:
    """Point LABKIT_HOME and LABKIT_RUNS to a folder that outlives the session, and bring earlier progress there."""
    if home is None and "LABKIT_HOME" in os.environ:
        home = os.environ["LABKIT_HOME"]
    if home is None and place.name == "colab":
        home = _mount_drive(is_dry=is_dry)
    if home is None and place.name == "kaggle":
        home = _KAGGLE / "working" / "labkit"
    if home is None:
        print(f"Progress: {find_progress_file()}.")
        if place.is_hosted:
            print("It goes when this session ends. Next: `labkit progress --export FILE` and download the file.")
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
    num_new = sum(_bring(path) for path in older if path.exists() and path.resolve() != now)
    brought = f" ({num_new} brought there now)" if num_new else ""
    print(f"Progress: {len(load_events())} events, kept in {home}{brought}.")


def _bring(path: Path) -> int:
    """Add the events of another progress file: all of its new lines or none, each once."""
    try:
        return len(import_progress(path))
    except LabkitError as error:
        print(f"{path} was not brought along: {error}")
        return 0


def _mount_drive(*, is_dry: bool) -> Path | None:
    """Mount the learner's Drive; None, with the reason said, when that is refused or fails."""
    if is_dry:
        print("Drive: would ask for permission to mount it.")
    else:
        try:
            from google.colab import drive

            drive.mount(str(_DRIVE))
        except Exception as error:  # Colab raises several kinds, for a refusal as well
            print(f"Drive was not mounted ({error}).")
            return None
    return _DRIVE / "MyDrive" / "labkit"


def _prepare_environment(root: Path) -> None:
    """Let child processes (engines, tools) find this course, and keep OpenMP's threads from spinning."""
    paths = [str(root), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    os.environ.setdefault("LABKIT_COURSE", str(root))
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _install_engine(root: Path, gpu: Gpu | None, *, is_dry: bool) -> None:
    if gpu is None:
        print("Engine: without a GPU use the course's own environment (`make setup`), which has vLLM for processors.")
        return
    if gpu.driver and _read_version(gpu.driver)[:1] < (_MIN_DRIVER,):
        print(f"Engine: the driver is {gpu.driver}, its builds need {_MIN_DRIVER}; not installed.")
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
    print(f"Engine: vLLM in {folder}, apart from this notebook's packages.")


def _run(command: list[str], *, is_dry: bool) -> None:
    print(f"{'would run' if is_dry else 'running'}: {shlex.join(command)}", flush=True)
    if is_dry:
        return
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        last = "\n".join(done.stdout.strip().splitlines()[-5:])
        raise InstallError(
            f"`{shlex.join(command)}` failed: {last}", next_step="Look at its message, then make the call again."
        )
    importlib.invalidate_caches()  # what was installed just now can be imported without a restart


def _read_vendor() -> str:
    try:
        return Path("/sys/class/dmi/id/sys_vendor").read_text(encoding="utf-8").strip()
    except OSError:
        return ""
