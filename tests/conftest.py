"""Every test has a home and runs of its own, and no setting of the person who started the tests."""

import gc
import itertools
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # the quick tests also run where labkit is not installed
    sys.path.insert(0, str(ROOT))

# Before torch loads: OpenMP threads that spin slow every small model down when the machine does anything else.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

_SETTINGS = ("LABKIT_TIER", "LABKIT_MODEL", "LABKIT_STRICT", "LABKIT_BUDGET", "LABKIT_COURSE")


_NUMBERS = itertools.count()


def pytest_collection_finish():
    """Thousands of tests are collected now and stay: the garbage collector need not look at them again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def own_folders(tmp_path_factory, monkeypatch):
    """Point LABKIT_HOME and LABKIT_RUNS to temporary folders and unset every other setting of labkit.

    The folders are named, not made: most tests write nothing, and thousands of empty folders cost seconds.
    """
    folder = tmp_path_factory.getbasetemp() / f"own-{next(_NUMBERS)}"
    for name in _SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LABKIT_HOME", str(folder / "labkit-home"))
    monkeypatch.setenv("LABKIT_RUNS", str(folder / "labkit-runs"))


@pytest.fixture(scope="session")
def root() -> Path:
    """The course's root folder."""
    return ROOT


@pytest.fixture(scope="session")
def sources():
    """Every source of a notebook, read."""
    from labkit.authoring.build import load_sources

    return load_sources(ROOT)


@pytest.fixture
def run_notebook(tmp_path):
    """A function that runs a notebook in a real kernel and returns it with its outputs.

    `run_notebook(notebook, **settings)`: settings are environment variables; the working folder is labs/, so that the
    kernel stands where a learner's does. Home and runs are temporary.
    """
    pytest.importorskip("nbclient")

    def run(notebook, *, timeout_s=120, **settings):
        from nbclient import NotebookClient

        environment = {name: value for name, value in os.environ.items() if name not in _SETTINGS}
        paths = [str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
        environment |= {"PYTHONPATH": os.pathsep.join(paths), "PLOTLY_RENDERER": "plotly_mimetype"} | settings
        client = NotebookClient(
            notebook,
            timeout=timeout_s,
            kernel_name="python3",
            resources={"metadata": {"path": str(ROOT / "labs")}},
        )
        return client.execute(env=environment)

    return run
