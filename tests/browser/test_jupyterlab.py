"""The labs as a learner sees them: a real JupyterLab in a real browser (`make test-browser`).

Every request that leaves the machine is aborted and counted: the test asserts that there was none. Screenshots are kept
in `data/runs/screenshots/`, to be looked at.
"""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCREENSHOTS = ROOT / "data" / "runs" / "screenshots"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--no-first-run", "--disable-quic"]  # fmt: skip
LABS = json.loads((ROOT / "labs" / "course.json").read_text(encoding="utf-8"))["labs"]
NO_NEWS = {"fetchNews": "false", "checkForUpdates": False}


@pytest.fixture(scope="session")
def jupyterlab(tmp_path_factory):
    """Start JupyterLab on a copy of the notebooks, with its own settings, and yield (URL, token, home of labkit)."""
    folder = tmp_path_factory.mktemp("jupyterlab")
    for name in ("labs", "solutions"):
        shutil.copytree(ROOT / name, folder / "work" / name)
    settings = folder / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text(json.dumps(NO_NEWS))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(16)
    env = os.environ | {
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        "LABKIT_HOME": str(folder / "home"), "LABKIT_RUNS": str(folder / "runs"), "LABKIT_COURSE": str(ROOT),
        "LABKIT_BUDGET": "ci", "JUPYTER_TOKEN": token, "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    log = (folder / "jupyterlab.log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root",
         "--ServerApp.port_retries=0", f"--ServerApp.root_dir={folder / 'work'}",
         "--LabApp.expose_app_in_browser=True"],
        env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_up(f"{url}/api/status?token={token}", process, Path(log.name))
        yield url, token, folder / "home"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        log.close()


@pytest.fixture(scope="session")
def browser():
    """Yield Debian's Chromium, driven by playwright."""
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.fail("No Chromium. Next: apt-get install -y --no-install-recommends chromium fonts-dejavu-core")
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, jupyterlab):
    """Yield a page on which every request to another machine is aborted and noted in `page.foreign`."""
    url, _, home = jupyterlab
    shutil.rmtree(home, ignore_errors=True)  # each test is a new learner
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    page = context.new_page()
    page.foreign = []

    def guard(route):
        address = route.request.url
        if address.startswith((url, "data:", "blob:")):
            route.continue_()
        else:
            page.foreign.append(address)
            route.abort()

    page.route("**/*", guard)
    yield page
    context.close()


def test_the_solution_of_lab_00_runs_in_jupyterlab_with_figure_checks_and_progress_in_view(page, jupyterlab):
    _open(page, jupyterlab, "solutions/00_start_here.ipynb")
    _clear_outputs(page)
    assert page.locator(".jp-OutputArea-output").count() == 0, "old outputs would hide a run that did nothing"
    _run_all(page)
    text = _output_text(page)
    for k in (1, 2, 3, 4):
        assert f"00.{k} passed" in text, f"exercise 00.{k} did not pass in the browser"
    _scroll_to(page, ".js-plotly-plot")
    assert page.locator(".js-plotly-plot .main-svg").first.is_visible()
    page.screenshot(path=SCREENSHOTS / "00_solution_figure.png")
    _scroll_to(page, ".jp-RenderedHTML table", last=True)
    page.screenshot(path=SCREENSHOTS / "00_solution_progress.png")
    assert "Traceback" not in text
    assert page.foreign == []


@pytest.mark.parametrize("lab", LABS, ids=[lab["name"] for lab in LABS])
def test_an_untouched_lab_says_not_attempted_for_each_exercise(page, jupyterlab, lab):
    _open(page, jupyterlab, f"labs/{lab['name']}.ipynb")
    page.screenshot(path=SCREENSHOTS / f"{lab['number']}_lab_top.png")
    _run_all(page)
    text = _output_text(page)
    assert lab["exercises"]
    for exercise in lab["exercises"]:
        assert f"{exercise['id']} not attempted" in text
    assert "Traceback" not in text
    _scroll_to(page, ".jp-RenderedHTML table", last=True)
    page.screenshot(path=SCREENSHOTS / f"{lab['number']}_lab_progress.png")
    assert page.foreign == []


def test_jupyterlab_refuses_a_visitor_without_the_token(jupyterlab):
    url, _, _ = jupyterlab
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{url}/api/contents", timeout=10)
    assert refused.value.code == 403


def _wait_until_up(url: str, process: subprocess.Popen, log: Path, *, deadline_s: float = 120) -> None:
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        if process.poll() is not None:
            pytest.fail(f"JupyterLab stopped with exit code {process.returncode}:\n{log.read_text()[-2000:]}")
        try:
            urllib.request.urlopen(url, timeout=5)
            return
        except OSError:
            time.sleep(0.3)
    pytest.fail(f"JupyterLab did not answer within {deadline_s} s:\n{log.read_text()[-2000:]}")


def _open(page, jupyterlab, notebook: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    url, token, _ = jupyterlab
    page.goto(f"{url}/lab/tree/{notebook}?reset&token={token}")
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=90_000)
    page.evaluate(
        """async () => {
            const panel = window.jupyterapp.shell.currentWidget;
            await panel.context.ready;
            await panel.sessionContext.ready;
            await panel.sessionContext.session.kernel.info;
        }"""
    )


def _clear_outputs(page) -> None:
    page.evaluate("window.jupyterapp.commands.execute('notebook:clear-all-cell-outputs')")


def _run_all(page) -> None:
    """Run every cell and wait until the last one is done; a failing cell fails the test."""
    page.set_default_timeout(240_000)
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_function(
        """() => {
            const cells = [...window.jupyterapp.shell.currentWidget.content.model.cells]
                .filter(cell => cell.type === 'code');
            const failed = cells.some(cell => cell.outputs && [...Array(cell.outputs.length).keys()]
                .some(i => cell.outputs.get(i).type === 'error'));
            return failed || cells.every(cell => cell.executionCount !== null);
        }""",
        timeout=240_000,
    )
    errors = page.evaluate(
        """() => [...window.jupyterapp.shell.currentWidget.content.model.cells]
            .filter(cell => cell.type === 'code')
            .flatMap(cell => [...Array(cell.outputs.length).keys()].map(i => cell.outputs.get(i).toJSON()))
            .filter(output => output.output_type === 'error').map(output => output.evalue)"""
    )
    assert errors == []


def _output_text(page) -> str:
    """Return all outputs as the notebook's model holds them: JupyterLab does not render cells out of view."""
    return page.evaluate(
        """() => [...window.jupyterapp.shell.currentWidget.content.model.cells]
            .filter(cell => cell.type === 'code')
            .flatMap(cell => [...Array(cell.outputs.length).keys()].map(i => cell.outputs.get(i).toJSON()))
            .map(output => JSON.stringify(output)).join('\\n')"""
    )


def _scroll_to(page, selector: str, *, last: bool = False) -> None:
    """Bring the element into view. Cells are rendered when they come near: step through the notebook until then."""
    scroller = page.locator(".jp-WindowedPanel-outer").first
    scroller.evaluate("element => element.scrollTo(0, 0)")
    for _ in range(200):
        found = page.locator(selector)
        if found.count() and not last:
            break
        at_end = scroller.evaluate(
            "e => { e.scrollBy(0, 400); return e.scrollTop + e.clientHeight >= e.scrollHeight - 5 }"
        )
        page.wait_for_timeout(100)
        if at_end:
            break
    found = page.locator(selector)
    assert found.count(), f"nothing like {selector} came into view"
    (found.last if last else found.first).scroll_into_view_if_needed()
    page.wait_for_timeout(500)
