"""What machine is this? Made-up /proc and /sys folders and a made-up NVML stand for machines that are not here."""

import getpass
import json
import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from labkit import hardware
from labkit.errors import HardwareError
from labkit.hardware import Cpu, Gpu, Machine, choose_dtype, estimate_tier, probe_machine

GIB = 1024**3
MEMINFO = "MemTotal:       16777216 kB\nMemFree: 1 kB\nMemAvailable:    8388608 kB\nHugePages_Total:       0\n"


@pytest.fixture
def build(tmp_path, monkeypatch):
    """A function that writes files of a made-up system and makes labkit look there; eight processors are allowed."""

    def write(files):
        for name, text in files.items():
            path = tmp_path / "system" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.setattr(hardware, "_ROOT", tmp_path / "system")

    write({"proc/meminfo": MEMINFO})
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    monkeypatch.delenv("LABKIT_CPU_FLAGS", raising=False)
    return write


class NotSupportedError(Exception):
    """Stands for NVML's own error classes."""


class FakeNvml:
    """NVML with the given GPUs: dicts of name, memory, capability, uuid; a missing key is "not supported"."""

    def __init__(self, *gpus, driver="580.82.07", init_error=None):
        self.gpus, self.driver, self.init_error, self.num_shutdowns = gpus, driver, init_error, 0

    def nvmlInit(self):  # noqa: N802, NVML's name
        if self.init_error:
            raise self.init_error

    def nvmlShutdown(self):  # noqa: N802
        self.num_shutdowns += 1

    def nvmlSystemGetDriverVersion(self):  # noqa: N802
        return self.driver

    def nvmlDeviceGetCount(self):  # noqa: N802
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        if self.gpus[index] is None:
            raise NotSupportedError
        return self.gpus[index]

    def _get(self, handle, key):
        if key not in handle:
            raise NotSupportedError
        return handle[key]

    def nvmlDeviceGetUUID(self, handle):  # noqa: N802
        return self._get(handle, "uuid")

    def nvmlDeviceGetName(self, handle):  # noqa: N802
        return self._get(handle, "name")

    def nvmlDeviceGetMemoryInfo(self, handle):  # noqa: N802
        return SimpleNamespace(total=self._get(handle, "memory"))

    def nvmlDeviceGetCudaComputeCapability(self, handle):  # noqa: N802
        return self._get(handle, "capability")


H100 = {"name": "NVIDIA H100 80GB HBM3", "memory": 80 * GIB, "capability": (9, 0), "uuid": "GPU-aaaa-1"}
T4 = {"name": b"Tesla T4", "memory": 15 * GIB, "capability": [7, 5], "uuid": b"GPU-bbbb-2"}


def make_machine(*gpus, flags=()):
    cpu = Cpu(name="made up", num_cores=2, num_threads_default=2, flags=flags)
    return Machine(cpu, gpus, 16 * GIB, 8 * GIB, 50 * GIB, "Linux", "3.11.0", None, None)


def make_gpu(capability, memory_gib):
    return Gpu(0, "made up", None if memory_gib is None else int(memory_gib * GIB), capability, "580.1")


# As Linux reports them: an old x86, Haswell, Cascade Lake, Zen 4, Sapphire Rapids, Arm without and with bf16.
PROCESSORS = [
    ("flags\t\t: fpu sse2 not_bf16_at_all", dict(has_avx512=False, has_bf16=False, has_amx=False)),
    ("flags\t\t: fpu avx2 fma", dict(has_avx512=False, has_bf16=False, has_amx=False)),
    ("flags\t\t: fpu avx2 fma avx512f avx512_vnni", dict(has_avx512=True, has_bf16=False, has_amx=False)),
    ("flags\t\t: fpu avx2 fma avx512f avx512_bf16", dict(has_avx512=True, has_bf16=True, has_amx=False)),
    ("flags\t\t: fpu avx2 avx512f amx_bf16 amx_tile", dict(has_avx512=True, has_bf16=True, has_amx=True)),
    ("Features\t: fp asimd asimddp", dict(has_avx512=False, has_bf16=False, has_amx=False)),
    ("Features\t: fp asimd bf16 i8mm", dict(has_avx512=False, has_bf16=True, has_amx=False)),
]


def read_properties(cpu):
    return {name: getattr(cpu, name) for name in ("has_avx512", "has_bf16", "has_amx")}


@pytest.mark.parametrize(("line", "expected"), PROCESSORS)
def test_the_flags_decide_what_a_processor_can_do(build, line, expected):
    build({"proc/cpuinfo": f"processor\t: 0\nmodel name\t: Made-up CPU @ 2 GHz: fast\n{line}\n"})
    cpu = probe_machine().cpu
    assert read_properties(cpu) == expected
    assert cpu.name == "Made-up CPU @ 2 GHz: fast"
    assert "fpu" not in cpu.flags


@pytest.mark.parametrize(("line", "expected"), PROCESSORS)
def test_the_environment_replaces_the_flags_of_any_machine(monkeypatch, line, expected):
    monkeypatch.setenv("LABKIT_CPU_FLAGS", line.partition(": ")[2].replace(" ", ", ").upper())
    assert read_properties(probe_machine().cpu) == expected
    monkeypatch.setenv("LABKIT_CPU_FLAGS", "")
    assert probe_machine().cpu.flags == ()


@pytest.mark.parametrize(
    ("tier", "flags", "dtype"),
    [
        ("cpu", ("avx2", "avx512f"), "float32"),
        ("cpu", ("avx512_bf16",), "bfloat16"),
        ("t4", ("avx512_bf16",), "float16"),
        ("ampere", (), "bfloat16"),
        ("hopper", (), "bfloat16"),
    ],
)
def test_the_dtype_is_one_that_the_hardware_computes_itself(tier, flags, dtype):
    assert choose_dtype(make_machine(flags=flags), tier=tier) == dtype


def test_only_the_first_processor_is_described(build):
    build({"proc/cpuinfo": "model name\t: first\nflags\t: avx2\n\nmodel name\t: second\nflags\t: avx512_bf16\n"})
    assert probe_machine().cpu.name == "first"
    assert probe_machine().cpu.flags == ("avx2",)


@pytest.mark.parametrize(
    ("files", "num_cores"),
    [
        ({}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "9900000 100000\n"}, 8),
        (
            {
                "proc/self/cgroup": "0::/pod/app\n",
                "sys/fs/cgroup/pod/app/cpu.max": "max 100000",
                "sys/fs/cgroup/pod/cpu.max": "200000 100000",
            },
            2,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/x\n2:cpu,cpuacct:/docker/abc\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "400000",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            4,
        ),
        (
            {
                "proc/self/cgroup": "2:cpu,cpuacct:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            8,
        ),
        ({"proc/self/cgroup": "nonsense\n", "sys/fs/cgroup/cpu.max": "garbage"}, 8),
    ],
)
def test_cores_respect_the_containers_quota(build, files, num_cores):
    build(files)
    assert probe_machine().cpu.num_cores == num_cores


def test_openmp_starts_a_thread_for_each_allowed_processor_whatever_the_quota(build, monkeypatch):
    build({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"})
    assert (probe_machine().cpu.num_cores, probe_machine().cpu.num_threads_default) == (2, 8)
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    assert probe_machine().cpu.num_threads_default == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "²")  # a digit, but not a number
    assert probe_machine().cpu.num_threads_default == 8
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert probe_machine().cpu.num_threads_default == 8


def test_memory_is_the_hosts_without_a_limit(build):
    machine = probe_machine()
    assert (machine.memory_bytes, machine.memory_free_bytes) == (16 * GIB, 8 * GIB)


@pytest.mark.parametrize(
    ("files", "total", "free"),
    [
        (
            {
                "proc/self/cgroup": "0::/pod\n",
                "sys/fs/cgroup/pod/memory.max": str(4 * GIB),
                "sys/fs/cgroup/pod/memory.current": str(3 * GIB),
                "sys/fs/cgroup/pod/memory.stat": f"anon 5\ninactive_file {GIB}\nactive_file 7\n",
            },
            4 * GIB,
            2 * GIB,
        ),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max"}, 16 * GIB, 8 * GIB),
        (
            {
                "proc/self/cgroup": "5:memory:/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": str(2 * GIB),
                "sys/fs/cgroup/memory/memory.usage_in_bytes": str(GIB // 2),
            },
            2 * GIB,
            3 * GIB // 2,
        ),
        (
            {
                "proc/self/cgroup": "5:memory:/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": str(GIB),
            },
            16 * GIB,
            8 * GIB,
        ),
        # A generous limit does not make the host's free memory larger.
        (
            {
                "proc/self/cgroup": "0::/\n",
                "sys/fs/cgroup/memory.max": str(15 * GIB),
                "sys/fs/cgroup/memory.current": "0",
            },
            15 * GIB,
            8 * GIB,
        ),
    ],
)
def test_memory_respects_the_containers_limit(build, files, total, free):
    build(files)
    machine = probe_machine()
    assert (machine.memory_bytes, machine.memory_free_bytes) == (total, free)


def test_a_system_without_proc_is_asked_through_psutil(build, tmp_path, monkeypatch):
    import psutil

    monkeypatch.setattr(hardware, "_ROOT", tmp_path / "empty")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=7 * GIB, available=3 * GIB))
    machine = probe_machine()
    assert (machine.memory_bytes, machine.memory_free_bytes) == (7 * GIB, 3 * GIB)
    assert machine.cpu.flags == () and not machine.cpu.has_bf16 and machine.governor is None


def test_a_machine_that_answers_nothing_is_still_a_machine(build, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError("not here")

    monkeypatch.setattr(hardware, "_ROOT", tmp_path / "empty")
    monkeypatch.setitem(sys.modules, "psutil", None)
    monkeypatch.setattr(os, "getloadavg", refuse)
    monkeypatch.setattr(os, "sched_getaffinity", refuse)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    monkeypatch.setattr(hardware.shutil, "disk_usage", refuse)
    monkeypatch.setattr(platform, "freedesktop_os_release", refuse)
    machine = probe_machine()
    assert machine.memory_bytes is machine.memory_free_bytes is machine.disk_free_bytes is machine.load_average is None
    assert machine.cpu.num_cores == 1
    assert machine.gpus == ()
    assert platform.system() in machine.os


def test_the_governor_is_read_where_it_can_be(build):
    build({"sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n"})
    assert probe_machine().governor == "powersave"


def test_gpus_are_described_whether_the_binding_gives_text_or_bytes(build, monkeypatch):
    nvml = FakeNvml(H100, T4, driver=b"580.82.07")
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert probe_machine().gpus == (
        Gpu(0, "NVIDIA H100 80GB HBM3", 80 * GIB, (9, 0), "580.82.07"),
        Gpu(1, "Tesla T4", 15 * GIB, (7, 5), "580.82.07"),
    )
    assert nvml.num_shutdowns == 1


def test_what_a_gpu_does_not_support_is_none_and_a_dead_gpu_is_left_out(build, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(None, {"uuid": "GPU-1"}))
    assert probe_machine().gpus == (Gpu(1, "unknown NVIDIA GPU", None, None, "580.82.07"),)


def test_no_binding_and_no_driver_both_mean_no_gpu(build, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(H100, init_error=NotSupportedError("no driver")))
    assert probe_machine().gpus == ()
    monkeypatch.setitem(sys.modules, "pynvml", None)  # not installed
    assert probe_machine().gpus == ()


@pytest.mark.parametrize(
    ("visible", "indexes"),
    [
        *(("", []), ("-1", []), ("1", [1]), ("0,1", [0, 1]), ("GPU-bbbb", [1]), ("GPU-cccc", []), ("7", [])),
        # CUDA's guide: only the devices before the first invalid entry are visible.
        *(("0,-1,1", [0]), ("1,7,0", [1]), ("0,,1", [0]), ("GPU-cccc,0", []), ("1,0", [0, 1]), (" 1 ", [1]), ("²", [])),
    ],
)
def test_gpus_that_cuda_may_not_see_are_not_there(build, monkeypatch, visible, indexes):
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(H100, T4))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpu.index for gpu in probe_machine().gpus] == indexes


class MigNvml(FakeNvml):
    """A binding that knows the slices of its GPUs: dicts under the key "slices"."""

    def nvmlDeviceGetMaxMigDeviceCount(self, handle):  # noqa: N802
        return len(self._get(handle, "slices"))

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle, index):  # noqa: N802
        return self._get(handle, "slices")[index]


def test_a_mig_slice_that_is_made_visible_is_its_gpu_with_the_memory_of_the_slice(build, monkeypatch):
    slices = [{"uuid": "MIG-1111", "memory": 10 * GIB}, {"uuid": "MIG-2222", "memory": 20 * GIB}]
    monkeypatch.setitem(sys.modules, "pynvml", MigNvml(T4, H100 | {"slices": slices}))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-2222")
    (gpu,) = probe_machine().gpus
    assert (gpu.index, gpu.name, gpu.memory_bytes, gpu.capability) == (1, H100["name"], 20 * GIB, (9, 0))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-3333")
    assert probe_machine().gpus == ()


def test_a_machine_is_json_and_holds_nothing_private(build, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(H100))
    monkeypatch.setattr(platform, "release", lambda: "6.1.0-built-by-alice")
    record = probe_machine().to_dict()
    text = json.dumps(record)
    assert json.loads(text) == record
    assert record["gpus"][0]["capability"] == [9, 0]
    assert record["memory_bytes"] == 16 * GIB
    private = {platform.node(), os.path.expanduser("~"), os.getcwd(), "alice", "GPU-aaaa-1"}
    if getpass.getuser() != "root":
        private.add(getpass.getuser())
    assert not [word for word in private if word and word in text]


@pytest.mark.parametrize(
    ("gpus", "tier"),
    [
        ([], "cpu"),
        ([make_gpu((7, 0), 32)], "cpu"),
        ([make_gpu(None, 80)], "cpu"),
        ([make_gpu((7, 5), 14.6)], "t4"),
        ([make_gpu((8, 6), 15.9)], "t4"),
        ([make_gpu((12, 0), 15.5)], "t4"),
        ([make_gpu((8, 9), None)], "t4"),
        ([make_gpu((8, 6), 22.4)], "ampere"),
        ([make_gpu((8, 0), 79)], "ampere"),
        ([make_gpu((8, 9), 23.5)], "ampere"),
        ([make_gpu((9, 0), 79)], "hopper"),
        ([make_gpu((10, 0), 180)], "hopper"),
        ([make_gpu((7, 5), 15), make_gpu((9, 0), 79)], "hopper"),
    ],
)
def test_the_best_gpu_decides_the_tier(gpus, tier):
    assert estimate_tier(make_machine(*gpus)) == tier


def test_a_named_tier_overrides_the_hardware(monkeypatch):
    monkeypatch.setenv("LABKIT_TIER", " Hopper ")
    assert estimate_tier(make_machine()) == "hopper"
    monkeypatch.setenv("LABKIT_TIER", "cpu")
    assert estimate_tier(make_machine(make_gpu((9, 0), 80))) == "cpu"
    monkeypatch.setenv("LABKIT_TIER", "")
    assert estimate_tier(make_machine()) == "cpu"


def test_an_unknown_tier_is_an_error_that_names_the_valid_ones(monkeypatch):
    monkeypatch.setenv("LABKIT_TIER", "a100")
    with pytest.raises(HardwareError) as caught:
        estimate_tier(make_machine())
    assert all(word in str(caught.value) for word in ("'a100'", "cpu", "t4", "ampere", "hopper"))


def test_this_machine_is_described_without_torch():
    code = (
        "import sys; from labkit.hardware import probe_machine; m = probe_machine();"
        "assert m.cpu.num_cores >= 1 and m.memory_bytes > m.memory_free_bytes > 0 and m.disk_free_bytes > 0, m;"
        "assert 'torch' not in sys.modules"
    )
    root = os.path.dirname(os.path.dirname(os.path.abspath(hardware.__file__)))
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
