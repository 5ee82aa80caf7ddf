"""Does the installer choose well, fail in sentences, and go on where it stopped? Nothing heavy is installed here."""

import ast
import fcntl
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from labkit import environment as doctor

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "requirements"
GB = 10**9
HERE = "{}.{}".format(*sys.version_info[:2])


@pytest.fixture(scope="module", autouse=True)
def programs():
    """The programs of requirements/ import each other by their short names."""
    sys.path.insert(0, str(FOLDER))
    names = ("install", "console", "disk", "environment", "machine", "pins", "pip_runner", "quick")
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    sys.path.remove(str(FOLDER))


@pytest.fixture
def install(programs):
    return programs.install


@pytest.fixture
def machine(programs):
    return programs.machine


@pytest.fixture
def stop(programs):
    return programs.console.Stop


# the machine


@pytest.mark.parametrize(("version", "words"), [
    ((3, 11, 0), "^$"),
    ((3, 12, 4), "^$"),
    ((3, 13, 9), "^$"),
    ((3, 10, 13), r"Python 3\.10\.13, too old .*3\.11.*Next: install"),
    ((3, 14, 0), r"Python 3\.14\.0, too new"),
])  # fmt: skip
def test_a_python_that_is_too_old_or_too_new_gets_a_sentence(install, version, words):
    assert re.search(words, install.explain_python(version))


def test_old_pythons_can_read_the_installer():
    source = (FOLDER / "install.py").read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 7))
    newer = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.NamedExpr | ast.Match)]
    assert newer == []
    # Until the version is checked, nothing is imported that an old Python may lack.
    tree = ast.parse(source).body
    checked = next(place for place, node in enumerate(tree) if isinstance(node, ast.If))
    imports = [node for node in tree[:checked] if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [ast.unparse(node) for node in imports] == ["import sys"]


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.6", "3.7", "3.8", "3.9", "3.10"])
def test_an_old_python_on_this_machine_says_the_sentence(programs, version):
    python = programs.quick.find_python(version)
    if python is None:
        pytest.skip(f"Python {version} is not here")
    done = subprocess.run([python, str(FOLDER / "install.py"), "--dry-run"], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"This is Python {version}" in done.stderr and "Traceback" not in done.stderr


# aarch64: the CPU lock pins packages of Intel's, which have no wheels for it.
@pytest.mark.parametrize(
    ("system", "name"), [("Darwin", "arm64"), ("Windows", "AMD64"), ("Linux", "aarch64"), ("Linux", "ppc64le")]
)
def test_other_systems_are_told_what_to_do(machine, stop, system, name):
    machine.check_platform("Linux", "x86_64")
    with pytest.raises(stop, match=f"{system} on {name}.*x86_64 only.*Next: use Linux") as caught:
        machine.check_platform(system, name)
    assert "From a Mac: a Linux machine elsewhere, or Colab" in str(caught.value)


@pytest.mark.parametrize("character", [":", "$", "{"])
def test_a_path_that_pythons_tools_cannot_use_is_refused_before_anything_is_done(machine, course, character, capsys):
    machine.check_path(Path("/home/me/a course [1]/.venv"))
    course.venv = course.folder / f"a{character}b"
    assert course.run() == 1
    escaped = re.escape(character)
    assert re.search(rf"a{escaped}b contains a '{escaped}'.*Next: rename", capsys.readouterr().err)
    assert not course.venv.exists()


@pytest.mark.parametrize(("tools", "headers", "words"), [
    ("gcc g++", "", None),
    ("clang clang++", "", None),
    ("g++", "", "no C compiler.*apt-get install gcc"),
    ("gcc", "", r"no C\+\+ compiler.*apt-get install gcc g\+\+"),
    ("gcc g++", "empty", r"Python\.h.*python3\.\d+-dev"),
])  # fmt: skip
def test_a_missing_compiler_and_missing_headers_are_sentences(machine, stop, tmp_path, tools, headers, words):
    (tmp_path / "Python.h").touch()
    which = {name: f"/usr/bin/{name}" for name in tools.split()}.get
    if words is None:
        machine.check_compiler(which, tmp_path)
    else:
        with pytest.raises(stop, match=words):
            machine.check_compiler(which, tmp_path / headers)


@pytest.mark.parametrize(("gpu", "tier", "words"), [
    (None, "cpu", "no NVIDIA GPU was found"),
    (("NVIDIA H100", "580.82.07", (9, 0)), "gpu", "NVIDIA H100 was found"),
    (("Tesla T4", "590.1", (7, 5)), "gpu", "driver 590.1"),
    (("an NVIDIA GPU", "580.82.07", None), "gpu", "was found"),
    (("an NVIDIA GPU", None, None), "cpu", "no driver answers.*Next, .*580"),
    (("NVIDIA L4", "550.54", (8, 9)), "cpu", "550.54.*580 or newer.*update"),
    (("Tesla V100", "580.82.07", (7, 0)), "cpu", r"7\.0.*7\.5 or newer"),
])  # fmt: skip
def test_the_gpu_decides_the_tier_and_the_reason_is_said(machine, gpu, tier, words):
    chosen, why = machine.choose_tier(machine.Gpu(*gpu) if gpu else None)
    assert chosen == tier
    assert re.search(words, why)


def test_the_tier_that_was_asked_for_wins(machine):
    assert machine.choose_tier(None, "gpu") == ("gpu", "you asked for it with --tier gpu")


def test_installer_and_doctor_ask_for_the_same_driver(machine):
    assert machine.MIN_DRIVER == doctor.MIN_DRIVER


def test_the_drivers_tool_is_asked_first(machine, tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 9.0, 580.82.07'\necho 'Tesla T4, 7.5, 580.82.07'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert machine.find_gpu() == machine.Gpu("NVIDIA H100 80GB HBM3", "580.82.07", (9, 0))
    tool.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed: no communication with the driver.'\nexit 9\n")
    monkeypatch.setattr(machine, "ask_driver", lambda: None)
    monkeypatch.setattr(machine, "has_nvidia_device", lambda: True)
    assert machine.find_gpu() == machine.Gpu("an NVIDIA GPU")
    monkeypatch.setattr(machine, "has_nvidia_device", lambda: False)
    assert machine.find_gpu() is None


def test_a_gpu_without_a_driver_is_seen_on_the_bus(machine, tmp_path):
    assert not machine.has_nvidia_device(tmp_path)
    for name, vendor, kind in (("0", "0x8086", "0x030000"), ("1", "0x10de", "0x040300")):
        device = tmp_path / "sys/bus/pci/devices" / name
        device.mkdir(parents=True)
        (device / "vendor").write_text(vendor + "\n")
        (device / "class").write_text(kind + "\n")
    assert not machine.has_nvidia_device(tmp_path), "its sound device alone is not a GPU"
    (tmp_path / "sys/bus/pci/devices/1/class").write_text("0x030200\n")
    assert machine.has_nvidia_device(tmp_path)


# what is needed, and does it fit


@pytest.mark.parametrize(("torch", "pins", "installed", "need"), [
    ("2.13.0+cpu", {"numpy": "2.0", "big": "1.0"}, {}, 1730),
    ("2.13.0+cpu", {"numpy": "2.0", "big": "1.0"}, {"torch": "2.13.0+cpu", "big": "1.0"}, 30),
    (None, {"numpy": "2.0", "big": "1.0"}, {"big": "0.9"}, 1030),
    (None, {"unknown": "1"}, {}, 500),  # the mean of the table
])  # fmt: skip
def test_the_need_is_the_sum_of_what_is_missing(programs, torch, pins, installed, need):
    lock = programs.pins.Lock(path=Path("a.lock"), torch=torch, pins=pins, sha256="")
    sizes = {"torch+cpu": 700, "numpy": 30, "big": 1000, "unused": 270}
    assert programs.disk.estimate_need_bytes(lock, installed, sizes) == need


def set_free(programs, monkeypatch, free_of):
    usage = lambda path: SimpleNamespace(free=free_of(str(path)))  # noqa: E731
    monkeypatch.setattr(programs.disk.shutil, "disk_usage", usage)


def test_too_little_disk_names_the_need_and_what_is_free(programs, stop, tmp_path, monkeypatch, capsys):
    cache, target = tmp_path / "cache", tmp_path / "not" / "yet" / "there"
    set_free(programs, monkeypatch, lambda path: 2 * GB)
    with pytest.raises(stop) as caught:
        programs.disk.check_disk(10 * GB, target, cache)
    # One disk holds all: 10 GB of packages and twice the downloads' share (pip's cache and its temporary folder),
    # 19 GB = 17.7 GiB; 2 GB = 1.9 GiB are free.
    assert "packages and downloads need 17.7 GiB" in str(caught.value)
    assert "only 1.9 GiB are free" in str(caught.value)
    assert "Next: free 15.8 GiB" in str(caught.value)
    programs.disk.check_disk(1 * GB, target, cache)
    assert "need 1.8 GiB, 1.9 GiB are free" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("free", "words"),
    [((15, 5), None), ((15, 4), "The downloads need"), ((14, 5), "The packages need")],  # pip's temporary folder too
)
def test_packages_and_downloads_on_two_disks_are_counted_apart(programs, stop, tmp_path, monkeypatch, free, words):
    target, cache = tmp_path / "a", tmp_path / "b"
    target.mkdir(), cache.mkdir()
    real, devices = programs.disk.os.stat, {str(target): 1, str(cache): 2}

    def stat(path, **options):
        number = devices.get(str(path))
        return SimpleNamespace(st_dev=number) if number and not options else real(path, **options)

    monkeypatch.setattr(programs.disk, "os", SimpleNamespace(stat=stat))
    set_free(programs, monkeypatch, {str(target): free[0] * GB, str(cache): free[1] * GB}.get)
    if words is None:
        programs.disk.check_disk(10 * GB, target, cache)
    else:
        with pytest.raises(stop, match=words):
            programs.disk.check_disk(10 * GB, target, cache)


# ---- pip's failures are sentences ---------------------------------------------------------------------------------

NETWORK = (
    "WARNING: Retrying (Retry(total=0, connect=None)) after connection broken by 'NewConnectionError(': Failed to "
    "establish a new connection: [Errno -3] Temporary failure in name resolution')': /simple/numpy/\n"
    "ERROR: Could not find a version that satisfies the requirement numpy==2.2.6 (from versions: none)\n"
    "ERROR: No matching distribution found for numpy==2.2.6\n"
)
CUT = (
    "  Downloading torch-2.13.0-cp311.whl (190.1 MB)\nERROR: Exception:\nTraceback (most recent call last):\n"
    "pip._vendor.urllib3.exceptions.ReadTimeoutError: HTTPSConnectionPool(host='h', port=443): Read timed out.\n"
)
COMPILE = (
    "  Building wheel for pypcre (pyproject.toml): finished with status 'error'\n"
    "  error: command '/usr/bin/gcc' failed with exit code 1\nERROR: Failed building wheel for pypcre\n"
)
NO_MEMORY = COMPILE.replace("  error:", "  g++: fatal error: Killed signal terminated program cc1plus\n  error:")
CERTIFICATE = (
    "WARNING: Retrying (Retry(total=4)) after connection broken by 'SSLError(SSLCertVerificationError(1, '[SSL: "
    "CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate (_ssl.c:1002)'))': /simple/six/\n"
)
RIGHTS = "ERROR: Could not install packages due to an OSError: [Errno 13] Permission denied: '/opt/x'\n"
BUSY = "WARNING: Retrying (Retry(total=0)) after connection broken by 'ResponseError('too many 503 error responses')'\n"


@pytest.mark.parametrize(("output", "words"), [
    (NETWORK, "network was lost.*goes on from here"),
    (CUT, "network was lost.*kept"),
    ("requests.exceptions.ConnectionError: ('Connection aborted.', RemoteDisconnected('x'))", "network was lost"),
    ("ERROR: Could not install packages: [Errno 28] No space left on device", "disk is full.*Next"),
    ("error: externally-managed-environment\n\n× This environment is", "operating system.*Next: activate"),
    (COMPILE, "did not compile.*apt-get install gcc"),
    (NO_MEMORY, "too little memory.*Next: close other programs"),
    (CERTIFICATE, "certificate is not trusted.*PIP_CERT"),
    (RIGHTS, "Permission denied.*Next: check the rights"),
    ("ERROR: HTTP error 503 while getting https://host/six.whl", "server of the packages.*Next: wait"),
    ("requests.exceptions.HTTPError: 502 Server Error: Bad Gateway for url", "server of the packages.*Next: wait"),
    (BUSY, "server of the packages.*Next: wait"),
    ("ERROR: six-1.0-cp39-cp39-macosx.whl is not a supported wheel on this platform.", "another Python.*glibc"),
    ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", "hash mismatch"),
    ("ERROR: No matching distribution found for numpy==9.9.9", "cannot be found.*index settings"),
    ("ERROR: something new", "reason that is not known here.*the.log"),
])  # fmt: skip
def test_each_failure_of_pip_has_its_sentence_and_names_the_log(programs, output, words):
    sentence = programs.pip_runner.explain_failure(output, Path("the.log"))
    assert re.search(words, sentence)
    assert "the.log" in sentence and "Next: " in sentence


# ---- the whole run, with a stub for pip ---------------------------------------------------------------------------

# -I -S: it needs the standard library alone, and starts four times as fast.
STUB = """#!{python} -IS
import glob, os, re, shutil, sys
folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
own = "%d.%d" % sys.version_info[:2]
if sys.argv[1:3] != ["-m", "pip"]:
    changed = os.path.join(folder, "version")
    print(open(changed).read() if os.path.exists(changed) else own)
    sys.exit(0)
words = sys.argv[3:]
if words == ["--version"]:
    sys.exit(os.path.exists(os.path.join(folder, "no-pip")))
open(os.path.join(os.environ["TMPDIR"], "wheel"), "w").close()
open(os.path.join(folder, "temporary.txt"), "a").write(os.environ["TMPDIR"] + "\\n")
open(os.path.join(folder, "calls.txt"), "a").write(" ".join(words) + "\\n")
if os.path.exists(os.path.join(folder, "offline")) and "-r" in words:
    print("Collecting one==1.0")
    print("WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError'")
    sys.exit(1)
if os.path.exists(os.path.join(folder, "no-torch")) and "torch==2.13.0+cpu" in words and "--index-url" not in words:
    print("ERROR: No matching distribution found for torch==2.13.0+cpu")
    sys.exit(1)
pins = [word for word in words if "==" in word]
if "-r" in words:
    text = open(words[words.index("-r") + 1]).read()
    pins = re.findall(r"^\\S+==\\S+", text, flags=re.M)
if "--editable" in words:
    pins = ["labkit==0.1.0"]
site = os.path.join(folder, "lib", "python" + own, "site-packages")
for pin in pins:
    print("Collecting " + pin)
    for old in glob.glob(os.path.join(glob.escape(site), pin.split("==")[0] + "-*.dist-info")):
        shutil.rmtree(old)
    os.makedirs(os.path.join(site, "%s-%s.dist-info" % tuple(pin.split("=="))))
print("Installing collected packages: " + ", ".join(pins))
"""
# What `python -m venv --clear FOLDER` does, as far as it matters: what was there goes, a Python comes.
VENV_STUB = """#!{python} -IS
import os, shutil, sys
folder = sys.argv[-1]
assert sys.argv[1:-1] == ["-m", "venv", "--clear"] and not os.path.islink(folder)
shutil.rmtree(folder, ignore_errors=True)
os.makedirs(os.path.join(folder, "bin"))
shutil.copy({stub!r}, os.path.join(folder, "bin", "python"))
"""
LOCK = "# torch==2.13.0+cpu\none==1.0 \\\n    --hash=sha256:00\ntwo==2.0 \\\n    --hash=sha256:11\n"
WORDS = {"torch": "torch==2.13.0+cpu", "packages": "--require-hashes", "labkit": "--editable"}  # of each step's call


class Course:
    """A made-up environment with a stub for its Python, and what was asked of pip."""

    def __init__(self, install, folder):
        self.install, self.folder = install, folder
        folder.mkdir()
        self.lock = folder / "tiny.lock"
        self.lock.write_text(LOCK)
        self.venv, self.base = folder / "venv", folder / "base-python"
        self.site = self.venv / "lib" / f"python{HERE}" / "site-packages"
        self.site.mkdir(parents=True)
        (self.venv / "pyvenv.cfg").touch()
        stub = STUB.format(python=sys.executable)
        self.write_program(self.venv / "bin" / "python", stub)
        spare = self.write_program(folder / "spare-python", stub)
        self.write_program(self.base, VENV_STUB.format(python=sys.executable, stub=str(spare)))

    def write_program(self, path, text):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return path

    def run(self, *arguments):
        return self.install.main(["--venv", str(self.venv), "--lock", str(self.lock), *arguments])

    @property
    def calls(self):
        path = self.venv / "calls.txt"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def steps(self):
        """The step that each call of pip belongs to."""
        return [next((step for step, word in WORDS.items() if word in call), call) for call in self.calls]

    def finish(self):
        """A first run that is forgotten."""
        assert self.run() == 0
        self.forget()

    def forget(self):
        (self.venv / "calls.txt").unlink(missing_ok=True)


@pytest.fixture
def course(install, tmp_path, monkeypatch):
    for name in ("check_platform", "check_compiler"):
        monkeypatch.setattr(install, name, lambda *arguments: None)
    monkeypatch.setattr(install, "find_gpu", lambda: None)
    monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path / "cache"))
    course = Course(install, tmp_path / "a course [1]")
    monkeypatch.setattr(sys, "_base_executable", str(course.base))
    return course


def test_a_first_run_installs_torch_then_the_lock_then_labkit(course, capsys):
    assert course.run() == 0
    torch, packages, labkit = course.calls
    assert "torch==2.13.0+cpu" in torch and "--no-deps" in torch and "--only-binary :all:" in torch
    assert "--index-url" not in torch
    assert "--no-deps" in packages and "--require-hashes" in packages and packages.endswith("-r " + str(course.lock))
    assert "--no-deps" in labkit and "--no-build-isolation" in labkit and labkit.endswith(f"--editable {ROOT}")
    said = capsys.readouterr().out
    assert "Tier cpu: no NVIDIA GPU was found." in said
    assert "Installing 2 packages" in said and "3 of 2" not in said and "2 of 2 packages" in said
    assert re.search(r'Ready after \d+ s. Open the first lab with `make lab VENV=".*/venv"`', said)


def test_a_second_run_asks_pip_nothing(course, capsys):
    course.finish()
    assert course.run() == 0
    assert course.calls == []
    assert "complete (cpu tier" in capsys.readouterr().out


def test_a_run_that_lost_the_network_says_so_and_the_next_one_goes_on(course, capsys):
    (course.venv / "offline").touch()
    assert course.run() == 1
    assert "The network was lost" in capsys.readouterr().err
    assert course.steps == ["torch", "packages"]
    course.forget()
    (course.venv / "offline").unlink()
    assert course.run() == 0
    assert course.steps == ["packages", "labkit"], "torch is not asked for again"
    assert "NewConnectionError" in (course.venv / "labkit-setup.log").read_text()


@pytest.mark.slow
def test_a_new_lock_installs_again_and_removes_what_it_no_longer_holds(course):
    course.finish()
    course.lock.write_text(LOCK.replace("two==2.0", "three==3.0"))
    assert course.run() == 0
    assert "uninstall --yes two" in course.calls
    assert course.steps.count("packages") == 1


@pytest.mark.slow
def test_an_environment_of_the_other_tier_is_made_anew(course, monkeypatch):
    course.finish()
    made = []
    monkeypatch.setattr(course.install, "make_venv", lambda environment, fault: made.append(fault))
    assert course.run("--tier", "gpu") == 0
    assert made == ["it holds the cpu tier, and this is the gpu tier"]
    assert course.run("--tier", "gpu") == 0
    assert len(made) == 1, "complete now"


def drop_python(course):
    (course.venv / "bin" / "python").unlink()


@pytest.mark.parametrize(
    ("is_finished", "damage", "fault"),
    [
        (True, drop_python, "its Python does not run"),
        # Ctrl-C came, or ensurepip is missing: Python is there, pip is not.
        (False, lambda course: (course.venv / "no-pip").touch(), "pip does not work in it"),
        (True, lambda course: (course.venv / "version").write_text("3.9"),
         f"it has Python 3.9, and this is Python {HERE}"),
    ],
    ids=["python is gone", "half made", "another python"],
)  # fmt: skip
def test_an_environment_that_cannot_be_used_is_made_anew(course, capsys, is_finished, damage, fault):
    if is_finished:
        course.finish()
    damage(course)
    assert course.run() == 0
    assert f"Removing the old environment: {fault}." in capsys.readouterr().out
    assert not (course.venv / "no-pip").exists() and not (course.venv / "version").exists()
    assert course.steps == ["torch", "packages", "labkit"]
    assert json.loads((course.venv / "labkit-setup.json").read_text())["python"] == HERE


@pytest.mark.slow
@pytest.mark.parametrize(("python", "num_calls"), [("3.9", 3), (None, 0)])
def test_a_stamp_of_another_python_is_not_trusted_but_an_old_one_that_names_none_is(course, python, num_calls):
    course.finish()
    stamp = course.venv / "labkit-setup.json"
    content = json.loads(stamp.read_text())
    del content["python"]
    stamp.write_text(json.dumps({**content, "python": python} if python else content))
    assert course.run() == 0
    assert len(course.calls) == num_calls


def test_a_folder_that_is_not_an_environment_is_not_emptied(course, capsys):
    course.venv = course.folder / "documents"
    course.venv.mkdir()
    (course.venv / "thesis.txt").touch()
    assert course.run() == 1
    assert "other things than a Python environment. Next: name another folder" in capsys.readouterr().err
    assert (course.venv / "thesis.txt").exists()


def test_a_link_to_another_disk_is_followed(course):
    shutil.rmtree(course.venv)
    (course.folder / "disk").mkdir()
    course.venv.symlink_to(course.folder / "disk")
    assert course.run() == 0
    assert course.venv.is_symlink() and (course.folder / "disk" / "labkit-setup.json").exists()


# what was changed since


def change(course, **versions):
    """What `pip uninstall` (None) or `pip install name==version` leave behind."""
    for name, version in versions.items():
        for old in course.site.glob(f"{name}-*.dist-info"):
            old.rmdir()
        if version:
            (course.site / f"{name}-{version}.dist-info").mkdir()


@pytest.mark.slow
@pytest.mark.parametrize(("versions", "again"), [
    ({"two": None}, ["packages"]),
    ({"two": "2.1"}, ["packages"]),
    ({"torch": "2.13.0"}, ["torch"]),  # the CUDA build over the CPU build
    ({"labkit": None, "one": "0.9"}, ["packages", "labkit"]),
])  # fmt: skip
def test_what_was_removed_or_changed_since_is_installed_again_and_named(course, capsys, versions, again):
    course.finish()
    capsys.readouterr()
    change(course, **versions)
    assert course.run() == 0
    assert course.steps == again
    said = capsys.readouterr().out
    assert all(re.search(rf"Gone or changed since .*again: .*\b{name}\b", said) for name in versions)
    course.forget()
    assert course.run() == 0
    assert course.calls == [] and "complete" in capsys.readouterr().out


@pytest.mark.parametrize(("names", "shown"), [("abc", "a, b, c"), ("abcde", "a, b, c and 2 more")])
def test_of_many_changed_packages_three_are_named_and_the_rest_counted(programs, names, shown):
    assert programs.console.list_few(list(names)) == shown


@pytest.mark.parametrize(("seen", "wanted", "is_same"), [
    ("2.0", "2.0.0", True), ("1.1.post2", "1.1.post2", True), ("2026.01", "2026.1", True),
    ("2.13.0+cu130", "2.13.0", True), ("2.0", "2.0.1", False), ("2.13.0", "2.13.0+cpu", False),
    ("2.13.0+cu130", "2.13.0+cpu", False), ("1.1", "1.1.post2", False), (None, "1.0", False), ("1.0", "10", False),
])  # fmt: skip
def test_versions_are_compared_as_pip_does_or_it_would_be_asked_in_vain(programs, seen, wanted, is_same):
    assert programs.pins.is_version(seen, wanted) == is_same


# one at a time, in a place of its own


def test_a_second_set_up_waits_for_the_first(course, programs, monkeypatch):
    first = os.open(course.folder, os.O_RDONLY)
    fcntl.flock(first, fcntl.LOCK_EX)
    said = []

    def say(text):
        said.append(text)
        assert course.calls == []
        os.close(first)  # the first one ends

    monkeypatch.setattr(programs.environment, "say", say)
    assert course.run() == 0
    assert said == ["Another set-up is running here; waiting for it."] and len(course.calls) == 3
    assert course.run() == 0
    assert len(said) == 1, "its own turn is over"


def test_a_set_up_that_is_killed_holds_up_nobody(programs, tmp_path, capsys):
    code = (f"import sys, subprocess, pathlib; sys.path.insert(0, {str(FOLDER)!r}); import environment\n"
            f"with environment.take_turn(pathlib.Path({str(tmp_path)!r})):\n"
            "    child = subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL)\n"
            "    print(child.pid, flush=True); child.wait()\n")  # fmt: skip
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as first:
        child = int(first.stdout.readline())
        first.kill()
        first.wait()
        try:
            with programs.environment.take_turn(tmp_path):
                assert "waiting" not in capsys.readouterr().out
        finally:
            os.kill(child, 9)


def test_a_disk_without_locks_does_not_stop_the_set_up(course, monkeypatch):
    def refuse(handle, how):
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr("fcntl.flock", refuse)
    assert course.run() == 0


@pytest.mark.slow
def test_pips_temporary_folder_is_in_the_environment_and_goes_after_success_and_failure(course):
    (course.venv / "offline").touch()
    for status in (1, 0):
        assert course.run() == status
        assert not (course.venv / "labkit-setup-tmp").exists()
        (course.venv / "offline").unlink(missing_ok=True)
    places = (course.venv / "temporary.txt").read_text().splitlines()
    assert len(places) == 4 and set(places) == {str(course.venv / "labkit-setup-tmp")}


def test_pips_temporary_folder_goes_after_a_key_press(course, programs, monkeypatch):
    program = '#!/bin/sh\ntouch "$TMPDIR/wheel"\necho Collecting one\nexec sleep 60\n'
    course.write_program(course.venv / "bin" / "python", program)
    (course.venv / "labkit-setup-tmp").mkdir()
    (course.venv / "labkit-setup-tmp" / "of-a-killed-run").touch()
    seen = []

    def press(self, line):
        seen.append(os.listdir(course.venv / "labkit-setup-tmp"))
        raise KeyboardInterrupt

    monkeypatch.setattr(programs.console.Progress, "read", press)
    environment = programs.environment.Environment(course.venv, course.venv / "bin" / "python")
    with pytest.raises(KeyboardInterrupt):
        course.install.install_packages(environment, programs.pins.load_lock(course.lock), [])
    assert seen == [["wheel"]] and not (course.venv / "labkit-setup-tmp").exists()


def test_a_conda_environment_is_told_a_command_that_makes_no_second_one(course, monkeypatch, capsys):
    monkeypatch.setattr(sys, "prefix", str(course.venv))
    monkeypatch.setattr(sys, "executable", str(course.venv / "bin" / "python"))
    assert course.run("--into-current") == 0
    said = capsys.readouterr().out
    command = "OMP_WAIT_POLICY=passive python -m jupyterlab --ServerApp.ip=127.0.0.1 labs/00_start_here.ipynb"
    assert f"Open the first lab with `{command}`." in said and "make lab" not in said
    assert f"#   {command}\n" in (ROOT / "environment.yml").read_text(encoding="utf-8")
    (course.venv / "no-pip").touch()
    change(course, two=None)
    assert course.run("--into-current") == 1
    assert "cannot be used: pip does not work in it. Next: make a new one" in capsys.readouterr().err


def test_the_usual_environment_is_opened_with_make_lab(install, programs):
    usual = programs.environment.Environment((ROOT / ".venv").resolve(), Path("python"))
    assert install.say_how_to_open(usual, False) == "make lab"


def test_torch_comes_from_pytorchs_cpu_index_where_pip_knows_no_cpu_wheel(course, capsys):
    (course.venv / "no-torch").touch()
    assert course.run() == 0
    assert course.calls[1].endswith("--index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu")
    assert "asking https://download.pytorch.org" in capsys.readouterr().out


def test_another_build_of_torch_is_never_accepted(course, monkeypatch, capsys):
    real = course.install.run_pip

    def give_cuda(python, arguments, log, progress=None):
        if "torch==2.13.0+cpu" not in arguments:
            return real(python, arguments, log, progress)
        (course.site / "torch-2.13.0.dist-info").mkdir()
        return 0, ""

    monkeypatch.setattr(course.install, "run_pip", give_cuda)
    assert course.run() == 1
    assert "torch 2.13.0 was installed where 2.13.0+cpu was asked for" in capsys.readouterr().err


def test_no_cpu_wheel_anywhere_is_a_sentence(course, monkeypatch, capsys):
    answer = (1, "ERROR: No matching distribution found for torch")
    monkeypatch.setattr(course.install, "run_pip", lambda *arguments, **options: answer)
    assert course.run() == 1
    assert "No CPU wheel of torch 2.13.0+cpu was found" in capsys.readouterr().err


def test_the_gpu_tier_takes_torch_from_its_lock(course):
    course.lock.write_text("torch==2.13.0 \\\n    --hash=sha256:00\n")
    assert course.run("--tier", "gpu") == 0
    assert course.steps == ["packages", "labkit"]


def test_a_lock_that_is_missing_is_a_sentence(course, capsys):
    course.lock.unlink()
    assert course.run() == 1
    assert "The lock tiny.lock cannot be read (No such file or directory). Next: restore" in capsys.readouterr().err


def test_a_dry_run_changes_nothing_and_says_what_it_would_do(course, capsys):
    before = sorted(course.folder.rglob("*"))
    assert course.run("--dry-run") == 0
    assert sorted(course.folder.rglob("*")) == before
    said = capsys.readouterr().out
    assert "Would install" in said and "torch, packages, labkit" in said and "Disk: " in said


def test_a_full_disk_stops_before_anything_is_downloaded(course, programs, monkeypatch, capsys):
    set_free(programs, monkeypatch, lambda path: 10**6)
    assert course.run() == 1
    assert "only 0.0 GiB are free" in capsys.readouterr().err
    assert course.calls == []


def test_a_key_press_stops_with_a_sentence(course, monkeypatch, capsys):
    def press(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(course.install, "run_pip", press)
    assert course.run() == 130
    assert "goes on from here" in capsys.readouterr().err


@pytest.mark.parametrize(("output", "words"), [
    ("Error: [Errno 13] Permission denied: '/c/.venv'\n", r"Errno 13.*Next: check the rights on /c,"),
    ("Error: [Errno 30] Read-only file system: '/c/.venv'\n", r"Errno 30.*Next: check the rights on /c,"),
    ("a warning\nError: [Errno 20] Not a directory: '/c/.venv'\n", r"made: Error: \[Errno 20\] Not a.*Next: see"),
    ("", "venv said nothing.*Next: see"),
    ("Error: [Errno 28] No space left on device", "disk is full"),
    ("not created successfully because ensurepip is not\navailable.", r"venv module does not.*python3\.\d+-venv"),
])  # fmt: skip
def test_venv_is_to_be_installed_only_where_ensurepip_is_missing(programs, output, words):
    sentence = programs.environment.explain_venv_failure(output, Path("/c/.venv"))
    assert re.search(words, sentence) and "Next: " in sentence
    assert ("-venv)" in sentence) == ("ensurepip" in output)


@pytest.mark.parametrize(("is_file", "output", "words"), [
    (False, "ensurepip is not available", r"venv module does not work.*python3\.\d+-venv"),
    (True, "Error: [Errno 20] Not a directory: 'file'\n", r"Not a directory.*Next: see that .*file is a folder"),
])  # fmt: skip
def test_an_environment_that_cannot_be_made_is_a_sentence(course, capsys, is_file, output, words):
    course.venv = course.folder / "file"
    if is_file:
        course.venv.touch()
    course.write_program(course.base, f"#!/bin/sh\nprintf '%s' \"{output}\"\nexit 1\n")
    assert course.run() == 1
    assert re.search(words, capsys.readouterr().err)


def test_settings_that_would_send_packages_elsewhere_are_not_passed_on(programs, monkeypatch):
    for name in ("PIP_NO_DEPS", "PIP_TARGET", "PIP_FIND_LINKS"):
        monkeypatch.setenv(name, "x")
    environ = programs.pip_runner.make_pip_environ(Path("/env/tmp"))
    assert environ["TMPDIR"] == "/env/tmp"
    assert "PIP_NO_DEPS" not in environ and "PIP_TARGET" not in environ
    assert environ["PIP_FIND_LINKS"] == "x" and environ["PIP_USER"] == "0"


def test_progress_counts_packages_and_time(programs, tmp_path, capsys):
    now = [100.0]
    progress = programs.console.Progress(3, tmp_path, clock=lambda: now[0])
    for line, second in (("Collecting a==1", 1), ("Requirement already satisfied: b", 12), ("  Downloading x", 13)):
        now[0] = 100.0 + second
        progress.read(line)
    progress.read("  Building wheel for gptqmodel (pyproject.toml): started")
    now[0] = 175.0
    progress.show()
    (tmp_path / "a-1.dist-info").mkdir()
    progress.read("Installing collected packages: a, b")
    now[0] = 190.0
    progress.show(is_last=True)
    assert capsys.readouterr().out.splitlines() == [
        "  [0:01] downloading 1 of 3 packages",
        "  [0:12] downloading 2 of 3 packages",
        "  [1:15] building gptqmodel",
        "  [1:30] done, 1 of 3 packages",
    ]
