"""Hosted notebooks: where it runs, what is installed, where progress is kept, what the GPU cannot do.

The fake `google.colab` has what the bootstrap uses: a Drive that can be mounted. The last test (`long`) runs a built
lab from its first cell under Colab's versions; Colab itself is not reached from here.
"""

import json
import os
import shutil
import subprocess
import sys
import types
from importlib import metadata
from pathlib import Path

import pytest

from labkit import colab
from labkit.authoring.hosted import load_repository
from labkit.colab import estimate_limits, find_missing, probe_place, run_bootstrap
from labkit.errors import InstallError
from labkit.hardware import Gpu
from labkit.progress import append_event, export_progress, load_events

ROOT = Path(__file__).resolve().parents[1]
# Colab's published versions, 19 Aug 2026, as far as the labs' light parts go.
COLAB_PINS = ("numpy==2.1.3", "plotly==5.24.1", "ipython==7.34.0", "ipywidgets==7.7.1", "anywidget==0.9.21")


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """No test installs anything, and none leaves a setting behind."""
    ran = []
    monkeypatch.setattr(
        subprocess,
        "run",
        lambda command, **options: ran.append(command) or types.SimpleNamespace(returncode=0, stdout=""),
    )
    for name in ("LABKIT_RUNS", "LABKIT_COURSE", "LABKIT_ENGINE_PYTHON", "OMP_WAIT_POLICY", "PYTHONPATH"):
        monkeypatch.setenv(name, "")  # remembered, and put back after the test
        monkeypatch.delenv(name)
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE", raising=False)
    monkeypatch.setattr(colab, "_read_vendor", lambda: "")
    monkeypatch.setattr(colab, "_load_needs", lambda root: ())
    monkeypatch.setattr(colab, "probe_machine", lambda: types.SimpleNamespace(gpus=()))
    monkeypatch.setattr(colab, "_KAGGLE", Path("/nowhere"))
    return ran


@pytest.fixture
def drive(tmp_path, monkeypatch):
    """A fake google.colab whose Drive is a folder; nothing of progress is set beside it."""
    google, module = types.ModuleType("google"), types.ModuleType("google.colab")
    module.drive = types.SimpleNamespace(
        mount=lambda place: (Path(place) / "MyDrive").mkdir(parents=True, exist_ok=True)
    )
    google.colab = module
    monkeypatch.setitem(sys.modules, "google", google)
    monkeypatch.setitem(sys.modules, "google.colab", module)
    monkeypatch.setattr(colab, "_DRIVE", tmp_path / "drive")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("LABKIT_HOME")
    return tmp_path / "drive" / "MyDrive" / "labkit"


# Where am I?


@pytest.mark.parametrize(("setting", "module", "vendor", "name"), [
    ("", "google.colab", "Google", "colab"),
    ("KAGGLE_KERNEL_RUN_TYPE", "", "Google", "kaggle"),
    ("", "", "Amazon EC2", "cloud"),
    ("", "", "Google", "cloud"),
    ("", "google.protobuf", "Dell Inc.", "jupyter"),
    ("", "", "", "jupyter"),
])  # fmt: skip
def test_the_place_is_recognised_by_what_it_sets_itself(monkeypatch, setting, module, vendor, name):
    if setting:
        monkeypatch.setenv(setting, "Interactive")
    if module:
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    monkeypatch.setattr(colab, "_read_vendor", lambda: vendor)
    place = probe_place()
    assert place.name == name
    assert place.is_hosted == (name in ("colab", "kaggle"))
    assert place.reason


# What is missing?


def set_versions(monkeypatch, **installed):
    def version(name):
        if name.replace("-", "_") not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name.replace("-", "_")]

    monkeypatch.setattr(metadata, "version", version)


@pytest.mark.parametrize(("need", "installed", "is_missing"), [
    ("plotly>=5.24", "5.24.1", False),
    ("plotly>=5.24", "5.24", False),
    ("plotly>=5.24", "5.9.0", True),
    ("plotly>=5.24", "6.0.0rc1", False),
    ("plotly>=5.24", "2.11.0+cu128", True),
    ("plotly", "0.1", False),
    ("plotly", None, True),
])  # fmt: skip
def test_missing_is_what_is_not_installed_or_too_old(monkeypatch, need, installed, is_missing):
    set_versions(monkeypatch, **({"plotly": installed} if installed else {}))
    assert find_missing([need]) == ((need,) if is_missing else ())


def test_what_labkit_declares_is_met_by_colabs_versions(monkeypatch):
    pins = dict(pin.split("==") for pin in COLAB_PINS) | {"psutil": "5.9.5", "prometheus_client": "0.22.1"}
    project = colab.tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    set_versions(monkeypatch, **pins)
    assert find_missing(project["dependencies"]) == ("httptools",)  # not known to be there; the bootstrap installs it


def test_only_what_is_missing_is_installed_and_what_is_there_keeps_its_version(monkeypatch, capsys, quiet, drive):
    kept = []

    def run(command, **options):
        quiet.append(command)
        kept.append(Path(command[command.index("--constraint") + 1]).read_text())
        return types.SimpleNamespace(returncode=0, stdout="")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(colab, "_load_needs", lambda root: ("numpy", "plotly>=5.24", "labkit-no-such-package>=3"))
    run_bootstrap()
    (command,) = quiet
    assert command[:4] == [sys.executable, "-m", "pip", "install"]
    assert command[-1] == "labkit-no-such-package>=3" and "numpy" not in command
    assert f"numpy=={metadata.version('numpy')}\n" in kept[0]
    assert "running: " in capsys.readouterr().out


def test_a_failed_command_is_an_error_with_its_last_lines(monkeypatch, drive):
    monkeypatch.setattr(
        subprocess, "run", lambda command, **options: types.SimpleNamespace(returncode=1, stdout="a\nno space left\n")
    )
    monkeypatch.setattr(colab, "_load_needs", lambda root: ("labkit-no-such-package",))
    with pytest.raises(InstallError, match="no space left"):
        run_bootstrap()


def test_nothing_is_installed_into_a_learners_own_environment(monkeypatch, capsys, quiet):
    monkeypatch.setattr(colab, "_load_needs", lambda root: ("labkit-no-such-package",))
    assert run_bootstrap().name == "jupyter"
    assert quiet == []
    assert "run `make setup`" in capsys.readouterr().out


# A dry run


def test_a_dry_run_shows_the_commands_and_changes_nothing(monkeypatch, capsys, quiet, drive):
    monkeypatch.setattr(colab, "_load_needs", lambda root: ("labkit-no-such-package",))
    gpu = Gpu(0, "Tesla T4", 15 * 2**30, (7, 5), "580.65")
    monkeypatch.setattr(colab, "probe_machine", lambda: types.SimpleNamespace(gpus=(gpu,)))
    before = dict(os.environ)
    run_bootstrap(dry_run=True, engine=True)
    text = capsys.readouterr().out
    assert quiet == [] and dict(os.environ) == before and not drive.exists()
    assert "would run: " in text and "labkit-no-such-package" in text
    assert "vllm==" in text and "uv venv" in text
    assert f"would be kept in {drive}" in text


# Where does progress stay?


def test_progress_moves_to_the_drive_and_both_parts_are_there_once(capsys, drive):
    append_event("attempt", exercise="00.1", version=1, outcome="passed")  # before the Drive was mounted
    run_bootstrap()
    assert os.environ["LABKIT_HOME"] == str(drive)
    assert os.environ["LABKIT_RUNS"] == str(drive / "runs")
    assert "1 events, kept in" in capsys.readouterr().out
    append_event("attempt", exercise="00.2", version=1, outcome="passed")
    run_bootstrap()
    assert [event["exercise"] for event in load_events()] == ["00.1", "00.2"]
    assert (drive / "progress.jsonl").exists()


def test_a_new_session_finds_the_progress_of_the_last(monkeypatch, tmp_path, drive):
    run_bootstrap()
    append_event("attempt", exercise="00.1", version=1, outcome="passed")
    monkeypatch.delenv("LABKIT_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "another machine"))
    assert len(load_events()) == 0
    run_bootstrap()
    assert len(load_events()) == 1


def test_a_refused_drive_is_said_and_the_labs_still_run(monkeypatch, capsys, drive):
    def refuse(place):
        raise ValueError("mount failed")

    monkeypatch.setattr(sys.modules["google.colab"].drive, "mount", refuse)
    run_bootstrap()
    text = capsys.readouterr().out
    assert "mount failed" in text and "labkit progress --export" in text
    assert "LABKIT_HOME" not in os.environ


def test_kaggle_keeps_progress_in_its_output_and_brings_it_from_an_input(monkeypatch, tmp_path, capsys):
    kaggle = tmp_path / "kaggle"
    append_event("attempt", exercise="00.1", version=1, outcome="passed")
    (kaggle / "input" / "mine").mkdir(parents=True)
    export_progress(kaggle / "input" / "mine" / "progress.jsonl")
    monkeypatch.setattr(colab, "_KAGGLE", kaggle)
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "empty"))
    monkeypatch.delenv("LABKIT_HOME")
    run_bootstrap()
    assert os.environ["LABKIT_HOME"] == str(kaggle / "working" / "labkit")
    assert len(load_events()) == 1
    assert "1 copied there now" in capsys.readouterr().out


def test_a_named_folder_wins_and_one_that_cannot_be_written_is_an_error(tmp_path, drive):
    run_bootstrap(home=tmp_path / "mine")
    assert os.environ["LABKIT_HOME"] == str(tmp_path / "mine")
    (tmp_path / "file").write_text("")
    with pytest.raises(InstallError, match="cannot keep your progress"):
        run_bootstrap(home=tmp_path / "file" / "below")


def test_a_damaged_old_file_does_not_stop_the_bootstrap(tmp_path, capsys, drive):
    (tmp_path / "data" / "labkit").mkdir(parents=True)
    (tmp_path / "data" / "labkit" / "progress.jsonl").write_text("{oops\n")
    run_bootstrap()
    assert "was not copied" in capsys.readouterr().out


# What can the GPU not do?


@pytest.mark.parametrize(("name", "capability", "words"), [
    ("Tesla T4", (7, 5), ["bf16", "FlashAttention-2", "FP8"]),
    ("A100", (8, 0), ["FP8"]),
    ("L4", (8, 9), []),
    ("H100", (9, 0), []),
    ("V100", (7, 0), ["bf16", "FlashAttention-2", "FP8"]),
])  # fmt: skip
def test_each_limit_is_named_before_a_lab_meets_it(name, capability, words):
    first, *lines = estimate_limits(Gpu(0, name, None, capability, None))
    assert [line.strip().partition(":")[0] for line in lines] == words
    assert f"{name}, compute capability {capability[0]}.{capability[1]}" in first
    assert ("everything" in first) == (not words)


def test_no_gpu_and_an_unknown_one_are_said():
    assert "Change runtime type" in estimate_limits(None)[0]
    assert "unknown" in estimate_limits(Gpu(0, "X", None, None, None))[0]


# The engine


def t4(driver):
    return types.SimpleNamespace(gpus=(Gpu(0, "Tesla T4", 15 * 2**30, (7, 5), driver),))


def test_the_engine_gets_its_own_environment_with_the_locks_version(monkeypatch, tmp_path, quiet, drive):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(colab, "probe_machine", lambda: t4("580.65.06"))
    run_bootstrap(engine=True)
    python = tmp_path / ".labkit-engines/vllm/bin/python"
    from labkit.environment import load_lock

    pin = f"vllm=={load_lock(ROOT / 'requirements/gpu.lock')['vllm']}"
    assert quiet[-1][1:] == ["-m", "uv", "pip", "install", "--python", str(python), pin]
    assert not any("vllm" in part for command in quiet for part in command if "--target" in command)
    assert os.environ["LABKIT_ENGINE_PYTHON"] == str(python)
    python.parent.mkdir(parents=True)
    python.touch()
    quiet.clear()
    run_bootstrap(engine=True)
    assert quiet == [], "an environment that is there is used"


@pytest.mark.parametrize(("machine", "phrase"), [
    (types.SimpleNamespace(gpus=()), "without a GPU"),
    (t4("550.54.15"), "the driver is 550.54.15, vLLM's builds need 580 or newer"),
])  # fmt: skip
def test_an_engine_that_could_not_run_is_not_installed(monkeypatch, capsys, quiet, drive, machine, phrase):
    monkeypatch.setattr(colab, "probe_machine", lambda: machine)
    run_bootstrap(engine=True)
    assert quiet == [] and phrase in capsys.readouterr().out
    assert "LABKIT_ENGINE_PYTHON" not in os.environ


def test_child_processes_find_the_course(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/other")
    run_bootstrap()
    run_bootstrap()
    assert os.environ["PYTHONPATH"] == os.pathsep.join([str(ROOT), "/other"])
    assert os.environ["OMP_WAIT_POLICY"] == "passive"


# Colab's versions

STAND_IN = {
    "sitecustomize.py": "import google.colab\n",
    "google/__init__.py": "",
    "google/colab/__init__.py": "",
    # The light parts are real; these count as installed, and an untouched lab loads none of them.
    **{
        f"{name}-{version}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        for name, version in {"torch": "2.11.0", "transformers": "5.15.0", "tokenizers": "0.22.0",
                              "safetensors": "0.6.0", "nvidia_ml_py": "13.0.0"}.items()
    },
}  # fmt: skip
RUN = """
import json, sys, nbformat
from nbclient import NotebookClient
name, output = sys.argv[1:]
notebook = nbformat.read(name, as_version=4)
cells = ["import labkit.colab as c, os", "from labkit.views import view_live_progress\\nview_live_progress()",
         "from labkit.plots import plot_samples\\nplot_samples({'a': [1.0] * 6}, unit='s', title='t').show()",
         "print(os.environ['LABKIT_HOME'], c.probe_place().name)"]
notebook.cells += [nbformat.v4.new_code_cell(cell) for cell in cells]
NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
nbformat.write(notebook, output)
"""


@pytest.mark.long
def test_lab_00_runs_under_colabs_versions_from_its_first_cell(tmp_path, monkeypatch):
    monkeypatch.undo()  # real commands from here on
    python = os.environ.get("LABKIT_COLAB_PYTHON") or make_colab_environment(tmp_path / "venv")
    for name, text in STAND_IN.items():
        path = tmp_path / "stand-in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    work = tmp_path / "content"
    work.mkdir()
    shutil.copy(ROOT / "labs" / "00_start_here.ipynb", work / "lab.ipynb")
    (tmp_path / "run.py").write_text(RUN)
    url = load_repository(ROOT)
    settings = {name: value for name, value in os.environ.items() if not name.startswith("LABKIT_")} | {
        "PYTHONPATH": str(tmp_path / "stand-in"),
        # git takes this copy of the course for the configured repository
        "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.file://{ROOT}.insteadOf", "GIT_CONFIG_VALUE_0": url,
        "LABKIT_HOME": str(tmp_path / "drive"),
    }  # fmt: skip
    command = [python, str(tmp_path / "run.py"), "lab.ipynb", str(tmp_path / "ran.ipynb")]
    done = subprocess.run(command, cwd=work, env=settings, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    cells = json.loads((tmp_path / "ran.ipynb").read_text())["cells"]
    text = json.dumps([cell.get("outputs") for cell in cells])
    assert "Running on colab" in text and "00.4 not attempted" in text
    assert "data-labkit-live" in text and "plotly-graph-div" in text  # Plotly draws for Colab there
    assert f"{tmp_path / 'drive'} colab" in text


def make_colab_environment(folder):
    """An environment with Colab's versions; skipped where its Python or the packages cannot be had."""
    sys.path.insert(0, str(ROOT / "requirements"))
    try:
        from quick import find_python
    finally:
        sys.path.pop(0)
    found = find_python("3.13")  # on PATH may stand a shim that leads nowhere
    if not found or subprocess.run([found, "-m", "venv", str(folder)]).returncode:
        pytest.skip("Colab's Python 3.13 is not here")
    python = str(folder / "bin" / "python")
    command = [python, "-m", "pip", "install", "--quiet", *COLAB_PINS, "psutil", "ipykernel<7", "nbclient", "nbformat"]
    if subprocess.run(command).returncode:
        pytest.skip("Colab's versions cannot be installed here")
    return python
