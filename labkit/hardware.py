"""What machine is this?

Absence is an ordinary answer here: without a GPU `machine.gpus` is empty, a value that cannot be read is None, and
`probe_machine` never raises. The limits of a container (cgroup v1 and v2) count as the machine's own.

What depends on the processor's instruction sets is decided here alone: by the properties of `Cpu` and by
`choose_dtype`. LABKIT_CPU_FLAGS="avx2 fma" replaces the instruction sets that the processor reports (for tests).
"""

import json
import math
import os
import platform
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from labkit.errors import HardwareError
from labkit.nvml import Nvml

__all__ = ["Cpu", "Gpu", "Machine", "TIERS", "choose_dtype", "estimate_tier", "probe_machine"]

TIERS = ("cpu", "t4", "ampere", "hopper")

_ROOT = Path("/")  # tests point it at a folder with made-up /proc and /sys files
# The flags that decide how fast small matrix products run; the rest of the list would only fill the records.
_FLAGS = (
    *("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni"),
    *("amx_tile", "amx_bf16", "amx_int8", "asimd", "asimdhp", "asimddp", "i8mm", "sve", "bf16"),
)
_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
_MIN_CAPABILITY = (7, 5)  # Turing: the oldest GPU that the CUDA 13 builds of the lock support
_MIN_AMPERE_BYTES = 20 * 1024**3  # a "24 GB" card reports about 22.5 GiB, a "16 GB" card about 15


@dataclass(frozen=True, slots=True)
class Gpu:
    """One NVIDIA GPU.

    Attributes:
        index: its number in NVML's order.
        name: the product name.
        memory_bytes: total memory (of the visible MIG slice, if it is one); None if the driver does not say.
        capability: compute capability as (major, minor); None if the driver does not say.
        driver: version of NVIDIA's driver; None if it does not say.
    """

    index: int
    name: str
    memory_bytes: int | None
    capability: tuple[int, int] | None
    driver: str | None


@dataclass(frozen=True, slots=True)
class Cpu:
    """The processor as this process may use it.

    Attributes:
        name: the model name.
        num_cores: logical processors left by affinity and the container's quota.
        num_threads_default: threads that an OpenMP library starts by default. It respects affinity and OMP_NUM_THREADS
            but no quota: more threads than cores is a trap worth recording.
        flags: instruction sets that decide how fast matrix products run, as Linux names them.
    """

    name: str
    num_cores: int
    num_threads_default: int
    flags: tuple[str, ...] = ()

    @property
    def has_avx512(self) -> bool:
        """True with AVX-512: vLLM then has a 4-bit kernel."""
        return "avx512f" in self.flags

    @property
    def has_bf16(self) -> bool:
        """True with bfloat16 instructions; emulated, a product can be a hundred times slower than in float32."""
        return not _BF16_FLAGS.isdisjoint(self.flags)

    @property
    def has_amx(self) -> bool:
        """True with AMX's tiles: vLLM then computes 4-bit weights with 8-bit activations unless told otherwise."""
        return "amx_tile" in self.flags


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine as one value, and how busy it was when it was probed.

    Attributes:
        cpu: the processor.
        gpus: NVIDIA GPUs that CUDA may see, in NVML's order.
        memory_bytes: total memory, or the container's limit.
        memory_free_bytes: memory that a new process could use.
        disk_free_bytes: free space where the current folder is.
        os: distribution, kernel's release, architecture.
        python: version of this interpreter.
        load_average: mean number of runnable processes over the last 1, 5 and 15 minutes.
        governor: frequency governor of the first core.
    """

    cpu: Cpu
    gpus: tuple[Gpu, ...]
    memory_bytes: int | None
    memory_free_bytes: int | None
    disk_free_bytes: int | None
    os: str
    python: str
    load_average: tuple[float, float, float] | None
    governor: str | None

    def to_dict(self) -> dict:
        """Return the machine as JSON values for a record: no host name, no user name, no path."""
        return json.loads(json.dumps(asdict(self)))


def probe_machine() -> Machine:
    """Look at the machine: processor, memory, disk of the current folder, GPUs; never raises, never imports torch."""
    memory_bytes, memory_free_bytes = _probe_memory()
    return Machine(
        cpu=_probe_cpu(),
        gpus=_probe_gpus(),
        memory_bytes=memory_bytes,
        memory_free_bytes=memory_free_bytes,
        disk_free_bytes=_probe_disk(),
        os=_probe_os(),
        python=platform.python_version(),
        load_average=_probe_load(),
        governor=_read("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
    )


def estimate_tier(machine: Machine) -> str:
    """Name the tier ("cpu", "t4", "ampere", "hopper") that the best GPU of the machine belongs to.

    t4: compute capability 7.5 or newer; ampere: 8.0 or newer with 20 GiB or more; hopper: 9.0 or newer (fp8) with
    20 GiB or more. LABKIT_TIER overrides the hardware; an unknown value there raises HardwareError.
    """
    asked = os.environ.get("LABKIT_TIER", "").strip().lower()
    if asked:
        if asked not in TIERS:
            raise HardwareError(
                f"LABKIT_TIER is {asked!r}, which is not a tier.",
                next_step=f"set it to one of {', '.join(TIERS)}, or unset it to let the hardware decide.",
            )
        return asked
    return max((_tier_of(gpu) for gpu in machine.gpus), key=TIERS.index, default="cpu")


def choose_dtype(machine: Machine, *, tier: str) -> str:
    """Return the fastest dtype that the hardware computes itself: bfloat16, on the t4 tier float16.

    The "cpu" tier takes bfloat16 only if the processor has instructions for it, else float32.
    """
    if tier == "cpu":
        return "bfloat16" if machine.cpu.has_bf16 else "float32"
    return "float16" if tier == "t4" else "bfloat16"


def _tier_of(gpu: Gpu) -> str:
    if gpu.capability is None or gpu.capability < _MIN_CAPABILITY:
        return "cpu"
    if gpu.capability < (8, 0) or (gpu.memory_bytes or 0) < _MIN_AMPERE_BYTES:
        return "t4"
    return "ampere" if gpu.capability < (9, 0) else "hopper"


def _read(relative: str) -> str | None:
    try:
        return (_ROOT / relative).read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None


def _read_int(relative: str) -> int | None:
    text = _read(relative)
    return int(text) if text and text.isdecimal() else None


def _cgroup_folders(controller: str) -> list[str]:
    """Folders whose limits may bind this process (cgroup v2, then v1): a parent's limit holds for its children."""
    folders = []
    for line in (_read("proc/self/cgroup") or "0::/").splitlines():
        _, controllers, path = (line.split(":", 2) + ["", "/"])[:3]
        if controllers and controller not in controllers.split(","):
            continue
        base = f"sys/fs/cgroup/{controller}" if controllers else "sys/fs/cgroup"
        parts = [part for part in path.split("/") if part and part != ".."]
        folders += ["/".join([base, *parts[:depth]]) for depth in range(len(parts), -1, -1)]
    return folders


def _probe_quota() -> float:
    """Processors that the container may use, infinity without a limit."""
    quotas = [math.inf]
    for folder in _cgroup_folders("cpu"):
        limit = (_read(f"{folder}/cpu.max") or "").split()
        if len(limit) == 2 and limit[0].isdecimal() and int(limit[1] if limit[1].isdecimal() else 0) > 0:
            quotas.append(int(limit[0]) / int(limit[1]))
        quota, period = _read_int(f"{folder}/cpu.cfs_quota_us"), _read_int(f"{folder}/cpu.cfs_period_us")
        if quota and period:  # -1 means "no limit" and not a string of digits
            quotas.append(quota / period)
    return min(quotas)


def _probe_cpu() -> Cpu:
    fields = {}
    for line in (_read("proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    reported = os.environ.get("LABKIT_CPU_FLAGS", fields.get("flags") or fields.get("features") or "")
    present = set(reported.replace(",", " ").lower().split())
    try:
        num_allowed = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # macOS has no affinity
        num_allowed = os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return Cpu(
        name=fields.get("model name") or fields.get("hardware") or platform.processor() or platform.machine(),
        num_cores=max(1, int(min(num_allowed, _probe_quota()))),
        num_threads_default=int(asked) if asked.isdecimal() and int(asked) > 0 else num_allowed,
        flags=tuple(flag for flag in _FLAGS if flag in present),
    )


def _probe_memory() -> tuple[int | None, int | None]:
    """Total and available bytes; a container's limit replaces the host's where it is smaller."""
    fields = dict(line.split(":", 1) for line in (_read("proc/meminfo") or "").splitlines() if ":" in line)
    kib = {key: words[0] for key, value in fields.items() if (words := value.split()) and words[0].isdecimal()}
    total = int(kib["MemTotal"]) * 1024 if "MemTotal" in kib else None
    free = int(kib["MemAvailable"]) * 1024 if "MemAvailable" in kib else None
    if total is None:
        try:
            import psutil

            memory = psutil.virtual_memory()
            total, free = memory.total, memory.available
        except Exception:
            return None, None
    for folder in _cgroup_folders("memory"):
        for limit_name, used_name in (("max", "current"), ("limit_in_bytes", "usage_in_bytes")):
            limit = _read_int(f"{folder}/memory.{limit_name}")
            if limit is None or limit >= total:
                continue
            used = _read_int(f"{folder}/memory.{used_name}") or 0
            cache = [line.split() for line in (_read(f"{folder}/memory.stat") or "").splitlines()]
            # Inactive file pages are reclaimed on demand: the kernel counts them as available too.
            used -= max((int(row[1]) for row in cache if row[0] in ("inactive_file", "total_inactive_file")), default=0)
            total = limit
            free = min(total if free is None else free, max(0, limit - used))
    return total, free


def _probe_disk() -> int | None:
    try:
        return shutil.disk_usage(os.getcwd()).free
    except OSError:
        return None


def _probe_load() -> tuple[float, float, float] | None:
    try:
        return tuple(round(value, 2) for value in os.getloadavg())
    except (AttributeError, OSError):
        return None


def _probe_os() -> str:
    try:
        name = platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except (AttributeError, OSError):
        name = ""
    # Only the numbers of the release: a self-built kernel may carry the builder's name behind them.
    release = ".".join(part for part in platform.release().split("-")[0].split(".") if part.isdecimal())
    return ", ".join(part for part in (name, f"{platform.system()} {release}".strip(), platform.machine()) if part)


def _probe_gpus() -> tuple[Gpu, ...]:
    """NVIDIA GPUs in NVML's order that CUDA_VISIBLE_DEVICES leaves visible; no binding or no driver gives none."""
    with Nvml() as nvml:
        driver = nvml.ask("nvmlSystemGetDriverVersion")
        found = {i: nvml.ask("nvmlDeviceGetHandleByIndex", i) for i in range(nvml.ask("nvmlDeviceGetCount") or 0)}
        handles = {i: handle for i, handle in found.items() if handle is not None}
        shown = _select_visible(nvml, handles)
        return tuple(_probe_gpu(nvml, i, handles[i], shown[i], driver) for i in sorted(shown))


def _probe_gpu(nvml: Nvml, index: int, handle, part, driver: str | None) -> Gpu:
    """Read one GPU; `part` is its visible MIG slice, which has memory of its own, or the GPU itself."""
    memory = nvml.ask("nvmlDeviceGetMemoryInfo", part)
    capability = nvml.ask("nvmlDeviceGetCudaComputeCapability", handle)
    return Gpu(
        index=index,
        name=nvml.ask("nvmlDeviceGetName", handle) or "unknown NVIDIA GPU",
        memory_bytes=None if memory is None else int(memory.total),
        capability=None if capability is None else (int(capability[0]), int(capability[1])),
        driver=driver,
    )


def _select_visible(nvml: Nvml, handles: dict) -> dict:
    """Return {index: handle} of what CUDA_VISIBLE_DEVICES shows; CUDA ignores all after the first invalid entry."""
    if (asked := os.environ.get("CUDA_VISIBLE_DEVICES")) is None:
        return handles
    shown = {}
    for name in asked.split(","):
        found = ((i, _match(nvml, name.strip(), i, handle)) for i, handle in handles.items())
        index, part = next((pair for pair in found if pair[1] is not None), (None, None))
        if part is None:
            break
        shown.setdefault(index, part)
    return shown


def _match(nvml: Nvml, name: str, index: int, handle):
    """Return what an entry of CUDA_VISIBLE_DEVICES means on this GPU: the handle of it or of a MIG slice, or None."""
    uuid = nvml.ask("nvmlDeviceGetUUID", handle) or ""
    if name == str(index) or (name.startswith("GPU-") and uuid.startswith(name)):
        return handle
    if name.startswith("MIG-"):
        for number in range(nvml.ask("nvmlDeviceGetMaxMigDeviceCount", handle) or 0):
            part = nvml.ask("nvmlDeviceGetMigDeviceHandleByIndex", handle, number)
            if part is not None and nvml.ask("nvmlDeviceGetUUID", part) == name:
                return part
    return None
