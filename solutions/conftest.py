"""How nbval runs the solutions, and what it must not let pass.

    pytest --nbval-lax --nbval-current-env --nbval-cell-timeout 600 solutions

Every notebook runs strictly, under budget `ci`, with its own home and runs: a learner's progress is not touched. nbval
alone waits for the whole cell time-out if a kernel dies, marks the cells after a time-out as expected failures, and
lets an output check without stored output pass; here each of these is a failure with a sentence, at once.
"""

import os
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from queue import Empty

import pytest

_POLL_S = 1.0
_ROOT = Path(__file__).resolve().parents[1]
_seconds: dict[str, float] = defaultdict(float)


class CellFailure(Exception):  # noqa: N818  (pytest prints the name)
    """A cell that nbval would have let pass, or would have waited for in vain."""


def pytest_addoption(parser):
    """Add `--keep-runs FOLDER`: the records of this run stay there, to be compared with those of another run."""
    parser.addoption("--keep-runs", metavar="FOLDER", help="folder for the records of the solutions (default: dropped)")


def pytest_configure(config):
    """Set the kernels' environment; a budget, tier or model that the caller has set is kept."""
    home = tempfile.TemporaryDirectory(prefix="labkit-solutions-")
    config.add_cleanup(home.cleanup)
    os.environ.setdefault("LABKIT_BUDGET", "ci")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("PLOTLY_RENDERER", "plotly_mimetype")
    python_path = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ.update(
        LABKIT_STRICT="1",
        LABKIT_HOME=str(Path(home.name) / "home"),
        LABKIT_RUNS=str(Path(config.getoption("keep_runs") or Path(home.name) / "runs").resolve()),
        PYTHONPATH=os.pathsep.join(python_path),
    )
    if config.pluginmanager.hasplugin("nbval"):
        from nbval.kernel import RunningKernel

        RunningKernel.await_reply = _await_reply


def _await_reply(self, msg_id, timeout=None):
    """Wait for the kernel's answer in short steps, and stop as soon as the kernel is dead (nbval waits on)."""
    deadline = time.monotonic() + (timeout if timeout is not None else 3600.0)
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise Empty
        try:
            message = self.get_message(stream="shell", timeout=min(_POLL_S, left))
        except Empty:
            if not self.is_alive():
                raise CellFailure("The kernel died while this cell ran.") from None
            continue
        if message["parent_header"].get("msg_id") == msg_id:
            if message["content"]["status"] == "aborted":
                raise RuntimeError("Kernel aborted execution request")
            return


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Let no cell count as an expected failure because an earlier one timed out: each has its own result."""
    if hasattr(item, "cell"):
        item.parent.timed_out = False


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Fail a cell whose output check has nothing to compare with, and a cell that leaves the kernel dead."""
    if hasattr(item, "cell") and item.options["check"] and not (item.cell.outputs and item.cell.execution_count):
        raise CellFailure("NBVAL_CHECK_OUTPUT without stored output. Next: make execute LAB=NN")
    result = yield
    if hasattr(item, "cell") and not _is_alive(item.parent.kernel):
        raise CellFailure("The kernel died after this cell.")
    return result


def _is_alive(kernel) -> bool:
    """Whether the kernel's process still runs a moment later (one that is being killed needs that long to go)."""
    time.sleep(0.01)
    return kernel is not None and kernel.is_alive()


def pytest_runtest_logreport(report):
    """Add the seconds of each cell, with set-up and tear-down, to its notebook."""
    path = report.nodeid.split("::")[0]
    if path.endswith(".ipynb"):
        _seconds[path] += report.duration


def pytest_terminal_summary(terminalreporter):
    """Print the seconds per lab."""
    if _seconds:
        terminalreporter.section("seconds per lab")
        for path, seconds in sorted(_seconds.items()):
            terminalreporter.write_line(f"{seconds:8.1f} s  {path}")
        terminalreporter.write_line(f"{sum(_seconds.values()):8.1f} s  all")
