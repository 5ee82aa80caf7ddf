"""Is the installation complete? Each look of the doctor is shown a made-up installation, whole and damaged."""

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
import types
from dataclasses import replace
from pathlib import Path

import pytest

from labkit import environment
from labkit.environment import Finding, find_course_root, format_doctor, load_lock, probe_environment, read_thread_plan
from labkit.errors import InstallError
from labkit.hardware import Cpu, Gpu, Machine

GIB = 1024**3
LOCK = """# The cpu tier
# torch==2.13.0+cpu
numpy==2.2.6 \\
    --hash=sha256:aa==bb
Py_Yaml.Thing==6.0.3 \\
    --hash=sha256:cc
"""
MACHINE = Machine(
    cpu=Cpu("made-up CPU", num_cores=4, num_threads_default=4, flags=("avx512_bf16",)),
    gpus=(),
    memory_bytes=16 * GIB,
    memory_free_bytes=12 * GIB,
    disk_free_bytes=50 * GIB,
    os="Linux",
    python="3.11.7",
    load_average=(0.5, 0.5, 0.5),
    governor=None,
)
GPU = Gpu(0, "NVIDIA H100", 80 * GIB, (9, 0), "580.82.07")


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A made-up course with a lock of three pins that are all installed, without network, offline."""
    for name in ("labs", "labkit", "requirements"):
        (tmp_path / "course" / name).mkdir(parents=True)
    (tmp_path / "course" / "requirements" / "cpu.lock").write_text(LOCK)
    (tmp_path / "course" / "requirements" / "gpu.lock").write_text("vllm==0.32.0\ntorch==2.13.0\n")
    monkeypatch.setenv("LABKIT_COURSE", str(tmp_path / "course"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "prefix"))
    monkeypatch.setattr(environment, "_has_nvidia_device", lambda: False)
    install(monkeypatch, {"torch": "2.13.0+cpu", "numpy": "2.2.6", "py-yaml-thing": "6.0.3"})
    return tmp_path / "course"


def install(monkeypatch, packages):
    monkeypatch.setattr(environment, "_installed", lambda: packages)


def look(machine=MACHINE, **options):
    return {finding.name: finding for finding in probe_environment(machine=machine, **options)}


def test_the_course_is_found_by_its_name_in_the_environment(course):
    assert find_course_root() == course.resolve()


def test_the_course_is_found_beside_the_package():
    assert find_course_root() == Path(environment.__file__).resolve().parents[1]


def test_the_course_is_found_above_the_current_folder(course, monkeypatch):
    monkeypatch.delenv("LABKIT_COURSE")
    monkeypatch.setattr(environment, "__file__", "/nowhere/site-packages/labkit/environment.py")
    (course / "labs" / "deep").mkdir()
    monkeypatch.chdir(course / "labs" / "deep")
    assert find_course_root() == course.resolve()


def test_a_missing_course_is_an_error_with_a_next_step(course, tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_COURSE", str(tmp_path))
    with pytest.raises(InstallError, match="LABKIT_COURSE names.*Next:"):
        find_course_root()
    monkeypatch.delenv("LABKIT_COURSE")
    monkeypatch.setattr(environment, "__file__", "/nowhere/site-packages/labkit/environment.py")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InstallError, match="above the current folder"):
        find_course_root()


def test_a_home_of_nobody_and_a_name_that_is_too_long_hold_no_course(monkeypatch):
    for named in ("~no-such-user/course", "x" * 300):
        monkeypatch.setenv("LABKIT_COURSE", named)
        with pytest.raises(InstallError, match="LABKIT_COURSE names.*Next:"):
            find_course_root()
        assert look()["course"].status == "missing"


def test_a_working_folder_that_was_deleted_is_no_error(course, tmp_path, monkeypatch):
    monkeypatch.delenv("LABKIT_COURSE")
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert look()["course"].status == "ok"  # beside the package
    monkeypatch.setattr(environment, "__file__", "/nowhere/site-packages/labkit/environment.py")
    assert look()["course"].status == "missing"


@pytest.mark.parametrize(
    "metadata", [b"Name: half\n", b"Version: 1.0\n", b"Name: h\xff\xfe\nVersion: 1.0\n", b"", None]
)
def test_a_damaged_package_is_as_good_as_absent(tmp_path, monkeypatch, metadata):
    for name, content in (("half", metadata), ("whole", b"Name: whole\nVersion: 2.0\n")):
        (tmp_path / f"{name}-1.0.dist-info").mkdir()
        if content is not None:
            (tmp_path / f"{name}-1.0.dist-info" / "METADATA").write_bytes(content)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert environment._installed() == {"whole": "2.0"}


def test_a_lock_that_is_no_text_is_an_error(tmp_path):
    (tmp_path / "odd.lock").write_bytes(b"numpy==\xff\xfe")
    with pytest.raises(InstallError, match=r"odd\.lock cannot be read \(not UTF-8 text\)"):
        load_lock(tmp_path / "odd.lock")


def test_a_lock_is_read_with_normalised_names_and_torch_from_its_comment(course):
    pins = load_lock(course / "requirements" / "cpu.lock")
    assert pins == {"torch": "2.13.0+cpu", "numpy": "2.2.6", "py-yaml-thing": "6.0.3"}


def test_a_missing_and_an_empty_lock_are_errors(tmp_path):
    with pytest.raises(InstallError, match=r"none\.lock cannot be read"):
        load_lock(tmp_path / "none.lock")
    (tmp_path / "empty.lock").write_text("# nothing\n")
    with pytest.raises(InstallError, match="has no pins"):
        load_lock(tmp_path / "empty.lock")


def test_the_thread_plan_asks_torch_only_when_it_is_loaded(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    plan = {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": None}
    assert read_thread_plan() == plan | {"torch_num_threads": None, "torch_num_interop_threads": None}
    torch = types.SimpleNamespace(get_num_threads=lambda: 3, get_num_interop_threads=lambda: 5)
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert read_thread_plan() == plan | {"torch_num_threads": 3, "torch_num_interop_threads": 5}


def test_a_complete_installation_has_nothing_to_repair(course, monkeypatch):
    monkeypatch.setattr(environment.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(environment, "_probe_port", lambda port, user: Finding(f"port {port}", "ok", "free"))
    findings = look()
    assert {name for name, finding in findings.items() if finding.status in ("missing", "warning")} == set()
    assert findings["packages"].seen == "3 of 3 pins of cpu.lock are installed"
    assert findings["gpu"].status == "not needed"
    assert "Everything is ready." in format_doctor(tuple(findings.values()))


def test_absent_packages_are_named_with_the_command_that_brings_them(course, monkeypatch):
    install(monkeypatch, {"numpy": "2.2.6"})
    findings = look()
    assert findings["torch"].status == "missing" and "make setup" in findings["torch"].next_step
    assert findings["packages"].status == "missing"
    assert "1 of 3" in findings["packages"].seen
    assert "py-yaml-thing" in findings["packages"].seen and "numpy" not in findings["packages"].seen


def test_another_version_is_a_warning_with_both_versions(course, monkeypatch):
    install(monkeypatch, {"torch": "2.13.0+cpu", "numpy": "2.4.0", "py-yaml-thing": "6.0.3"})
    packages = look()["packages"]
    assert packages.status == "warning"
    assert "2 of 3" in packages.seen and "numpy 2.4.0 (lock: 2.2.6)" in packages.seen


def test_another_build_of_the_same_version_is_the_same_pin(course, monkeypatch):
    install(monkeypatch, {"torch": "2.13.0", "numpy": "2.2.6", "py-yaml-thing": "6.0.3"})
    assert look()["packages"].status == "ok"


def test_many_absent_packages_are_counted_instead_of_listed(course):
    pins = "".join(f"made-up-{number}==1.0\n" for number in range(9))
    (course / "requirements" / "cpu.lock").write_text(pins)
    assert "made-up-4 and 4 more" in look()["packages"].seen


def test_the_lock_of_the_installed_tier_is_compared(course, monkeypatch, tmp_path):
    install(monkeypatch, {"vllm": "0.32.0", "torch": "2.13.0"})
    assert look()["packages"].seen == "2 of 2 pins of gpu.lock are installed"
    (tmp_path / "prefix").mkdir()
    (tmp_path / "prefix" / "labkit-setup.json").write_text(json.dumps({"tier": "cpu"}))
    assert "of cpu.lock" in look()["packages"].seen
    (tmp_path / "prefix" / "labkit-setup.json").write_text("{half a fi")
    assert "of gpu.lock" in look()["packages"].seen


def test_a_missing_lock_is_a_finding_and_no_crash(course):
    (course / "requirements" / "cpu.lock").unlink()
    assert look()["packages"].status == "missing"


def test_without_a_course_the_rest_is_still_looked_at(course, monkeypatch, tmp_path):
    monkeypatch.setenv("LABKIT_COURSE", str(tmp_path / "nowhere"))
    findings = look()
    assert findings["course"].status == "missing" and "packages" not in findings
    assert findings["memory"].status == "ok"


def test_a_gpu_without_a_driver_is_a_warning_with_the_next_step(course, monkeypatch):
    monkeypatch.setattr(environment, "_has_nvidia_device", lambda: True)
    gpu = look()["gpu"]
    assert gpu.status == "warning" and "driver" in gpu.seen and "580" in gpu.next_step


def test_a_gpu_with_its_builds_is_ready(course, monkeypatch):
    install(monkeypatch, {"vllm": "0.32.0", "torch": "2.13.0", "nvidia-cuda-runtime": "13.0.96"})
    findings = look(replace(MACHINE, gpus=(GPU,)))
    assert findings["gpu 0"].status == "ok" and "NVIDIA H100" in findings["gpu 0"].seen
    assert findings["cuda"] == Finding("cuda", "ok", "CUDA runtime 13.0.96")


def test_cpu_builds_beside_a_gpu_are_a_warning(course):
    cuda = look(replace(MACHINE, gpus=(GPU,)))["cuda"]
    assert cuda.status == "warning" and "CPU builds" in cuda.seen and "make setup" in cuda.next_step


def test_a_driver_that_is_too_old_for_the_builds_is_a_warning(course):
    cuda = look(replace(MACHINE, gpus=(replace(GPU, driver="550.54"),)))["cuda"]
    assert cuda.status == "warning" and "550" in cuda.seen and "580" in cuda.next_step


def test_little_memory_and_disk_are_warnings_with_the_need(course):
    findings = look(replace(MACHINE, memory_free_bytes=GIB, disk_free_bytes=GIB))
    assert [findings[name].status for name in ("memory", "disk")] == ["warning", "warning"]
    assert "need up to" in findings["memory"].seen
    findings = look(replace(MACHINE, memory_free_bytes=None, disk_free_bytes=None))
    assert "cannot be read" in findings["memory"].seen


def test_a_busy_machine_is_a_warning_before_measuring(course):
    assert look()["cpu"].status == "ok"
    assert look(replace(MACHINE, load_average=None))["cpu"].status == "ok"
    busy = look(replace(MACHINE, load_average=(4.5, 0, 0)))["cpu"]
    assert busy.status == "warning" and "4.5" in busy.seen


def test_missing_bfloat16_instructions_are_said(course):
    assert "bfloat16" not in look()["cpu"].seen
    slow = replace(MACHINE, cpu=replace(MACHINE.cpu, flags=()))
    assert "no bfloat16 instructions" in look(slow)["cpu"].seen


def test_spinning_threads_are_a_warning(course, monkeypatch):
    assert look()["threads"].status == "ok"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    assert look()["threads"].status == "warning"


def test_a_missing_compiler_and_chromium_are_named(course, monkeypatch):
    monkeypatch.setattr(environment.shutil, "which", lambda name: None)
    findings = look()
    assert findings["compiler"].status == "missing" and "g++" in findings["compiler"].next_step
    assert findings["chromium"].status == "not needed" and "chromium" in findings["chromium"].next_step


@pytest.mark.parametrize(("version", "status"), [((3, 11, 0), "ok"), ((3, 13, 9), "ok"), ((3, 14, 0), "warning")])
def test_a_python_that_was_not_tried_is_a_warning(course, monkeypatch, version, status):
    monkeypatch.setattr(sys, "version_info", (*version, "final", 0))
    python = environment._probe_python()
    assert python.status == status and python.seen.startswith(".".join(map(str, version)))


def test_a_port_in_use_is_a_warning(course, monkeypatch):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        assert environment._probe_port(port, "a lab").status == "warning"
    assert environment._probe_port(port, "a lab").status == "ok"


@pytest.mark.parametrize(("code", "status"), [(200, "ok"), (404, "ok"), (403, "not needed"), (502, "not needed")])
def test_the_hub_is_asked_and_a_gateway_in_between_is_told_apart(course, monkeypatch, code, status):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):  # noqa: N802, the base class's name
            self.send_response(code)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        assert look(timeout_s=20)["model hub"].status == status
        server.shutdown()


def test_a_silent_or_absent_hub_is_no_error_and_costs_little_time(course, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        assert look(timeout_s=0.1)["model hub"].status == "not needed"
        assert time.monotonic() - start < 30  # urllib's own patience has no end
    assert look(timeout_s=0.1)["model hub"].status == "not needed"


def test_offline_means_that_nobody_is_asked(course, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "not even an address")
    assert "HF_HUB_OFFLINE" in look()["model hub"].seen


def test_the_doctor_prints_one_line_for_each_finding_and_the_next_step_below():
    text = format_doctor((Finding("a", "ok", "fine"), Finding("longer", "missing", "gone", "fetch it.")))
    lines = text.splitlines()
    assert lines[0].split() == ["ok", "a", "fine"]
    assert lines[1].split() == ["MISSING", "longer", "gone"]
    assert lines[2].strip() == "-> fetch it."
    assert lines[0].index("fine") == lines[1].index("gone")
    assert lines[-1] == "1 of 2 lines need a look."
    assert format_doctor(()).strip() == "Everything is ready."


def test_every_finding_of_this_machine_has_a_legal_status_and_an_open_one_a_next_step(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    findings = probe_environment()
    assert {finding.status for finding in findings} <= {"ok", "missing", "warning", "not needed"}
    assert [finding for finding in findings if finding.status == "missing" and not finding.next_step] == []
    assert len({finding.name for finding in findings}) == len(findings) >= 12


def test_the_real_locks_are_read(root):
    for tier in ("cpu", "gpu"):
        pins = load_lock(root / "requirements" / f"{tier}.lock")
        assert len(pins) > 250 and pins["numpy"] == "2.2.6" and "torch" in pins


@pytest.mark.slow
def test_the_doctor_imports_no_torch(root):
    code = "import sys; from labkit.environment import probe_environment as p; p(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, env=os.environ | {"HF_HUB_OFFLINE": "1"})
