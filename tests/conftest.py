"""Every test has its own home and runs, and none of the settings of the person who started the tests.

Under pytest-xdist (`-n 2`) the tests of one file stay in one process, so that what a file starts is started once; tests
that run a notebook are handed out one by one.
"""

import gc
import itertools
import os
import signal
import sys
from datetime import date
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # the quick tests also run in environments without labkit
    sys.path.insert(0, str(ROOT))

# Before torch loads: spinning OpenMP threads slow every small model down while the machine does anything else.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# What is started behind `&` ignores Ctrl-C, and so would every process that a test starts to interrupt it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_SETTINGS = ("LABKIT_TIER", "LABKIT_MODEL", "LABKIT_STRICT", "LABKIT_BUDGET", "LABKIT_COURSE")
_NUMBERS = itertools.count()
ONE_BY_ONE = ("test_tiers.py", "test_labs.py")  # each test runs a notebook, which takes seconds and shares nothing


def pytest_configure():
    """Fix whose turn it is today (test_tiers.py, the browser tests), for this process and every one it starts."""
    os.environ.setdefault("LABKIT_TEST_TURN", str(date.today().toordinal()))


def pytest_terminal_summary(terminalreporter):
    """Print the turn, so that a failure can be repeated."""
    turn = os.environ["LABKIT_TEST_TURN"]
    terminalreporter.write_line(f"LABKIT_TEST_TURN={turn} chose the tiers and the browser's lab: set it to repeat.")


@pytest.hookimpl(optionalhook=True)  # xdist may be absent
def pytest_xdist_make_scheduler(config, log):
    """Keep a file's tests together under xdist, and hand out those that run a notebook one by one."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.partition("::")[0]
            return nodeid if file.endswith(ONE_BY_ONE) else file

    return ByFile(config, log)


def pytest_collection_finish():
    """Keep the garbage collector from scanning thousands of collected tests again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def own_folders(tmp_path_factory, monkeypatch):
    """Point LABKIT_HOME and LABKIT_RUNS to temporary folders and unset every other setting of labkit.

    The folders are named, not made: most tests write nothing, and making thousands of folders takes seconds.
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
    """The source of every notebook, parsed."""
    from labkit.authoring.build import load_sources

    return load_sources(ROOT)


@pytest.fixture
def run_notebook(tmp_path):
    """A function that runs a notebook in a real kernel and returns it with its outputs.

    `run_notebook(notebook, **settings)`: settings are environment variables; the working folder is labs/, as for a
    learner's kernel. Home and runs are temporary.
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
