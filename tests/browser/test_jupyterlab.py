"""The labs as a learner sees them: a real JupyterLab in a real browser (`make test-browser`).

Every lab is opened; the first one and one more, another one every day (`LABKIT_TEST_TURN`), are also run. Every request
that leaves the machine is aborted and counted: the test asserts that there was none. Screenshots are kept in
`data/runs/screenshots/`, to be looked at.
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

from labkit.authoring.source import dump_notebook, load_source, make_notebook

ROOT = Path(__file__).parents[2]
SCREENSHOTS = ROOT / "data" / "runs" / "screenshots"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--no-first-run", "--disable-quic"]  # fmt: skip
# Every lab that there is: a new one is opened without a line here.
LABS = json.loads((ROOT / "labs" / "course.json").read_text(encoding="utf-8"))["labs"]
RUN = [LABS[0], LABS[1:][int(os.environ["LABKIT_TEST_TURN"]) % len(LABS[1:])]]
# (lab, notebook, number of the code cell) of the first figure that each stored solution has.
FIGURES = [
    next(
        (path.stem[:2], str(path), number)
        for number, cell in enumerate(cells)
        if "application/vnd.plotly.v1+json" in str(cell)
    )
    for path in [ROOT / "solutions" / f"{lab['name']}.ipynb" for lab in LABS]
    for cells in [json.loads(path.read_text(encoding="utf-8"))["cells"]]
]
SHOW_FIGURE = """import json
from IPython.display import display
lab, path, number = {!r}
outputs = json.load(open(path))["cells"][number]["outputs"]
kind = "application/vnd.plotly.v1+json"
display({{kind: next(one["data"][kind] for one in outputs if kind in one.get("data", {{}}))}}, raw=True)"""
NO_NEWS = {"fetchNews": "false", "checkForUpdates": False}


@pytest.fixture(scope="session")
def jupyterlab(tmp_path_factory):
    """Start JupyterLab on a copy of the notebooks, with its own settings, and yield (URL, token, home of labkit)."""
    folder = tmp_path_factory.mktemp("jupyterlab")
    for name in ("labs", "solutions"):
        shutil.copytree(ROOT / name, folder / "work" / name)
    built = make_notebook(load_source(ROOT / "solutions" / "src" / "00_start_here" / "lab.py"), kind="solution")
    (folder / "work" / "solved_00.ipynb").write_text(dump_notebook(built))
    view = "from labkit.views import view_live_progress\nview_live_progress()"
    (folder / "work" / "progress.ipynb").write_text(_make_notebook([view]))
    (folder / "work" / "figures.ipynb").write_text(_make_notebook([SHOW_FIGURE.format(one) for one in FIGURES]))
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


def test_the_solution_of_lab_00_runs_with_checks_figures_that_answer_the_mouse_and_a_progress_view_that_opens(
    page, jupyterlab
):
    _open(page, jupyterlab, "solved_00.ipynb")  # built from today's source, without outputs
    _run_all(page)
    text = _output_text(page)
    for k in (1, 2, 3, 4):
        assert f"00.{k} passed" in text, f"exercise 00.{k} did not pass in the browser"
    assert "Traceback" not in text
    assert "Nothing of model, tokenizer is left." in text, "the clean-up did not give the model back"
    _scroll_to(page, ".js-plotly-plot")
    assert page.locator(".js-plotly-plot .main-svg").first.is_visible()
    assert "tok/s" in _hover_figure(page, page.locator(".js-plotly-plot").first)
    page.screenshot(path=SCREENSHOTS / "00_solution_figure.png")
    _scroll_to(page, ".labkit-lab")
    first = page.locator(".labkit-lab").first
    assert "exercises 4 of 4" in first.inner_text() and first.get_attribute("aria-expanded") == "false"
    first.click()
    assert first.get_attribute("aria-expanded") == "true"
    assert page.get_by_text("passed: 00.1 Bytes of the weights").is_visible()
    page.screenshot(path=SCREENSHOTS / "00_solution_progress.png")
    page.evaluate("window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
    page.wait_for_timeout(1500)
    page.screenshot(path=SCREENSHOTS / "00_solution_progress_dark.png")
    _scroll_to(page, ".js-plotly-plot")
    page.screenshot(path=SCREENSHOTS / "00_solution_figure_dark.png")
    page.evaluate("window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Light'})")
    assert page.foreign == []


def test_the_progress_view_follows_the_work_by_keyboard_and_a_stored_notebook_keeps_the_table(page, jupyterlab):
    _, _, home = jupyterlab
    _open(page, jupyterlab, "progress.ipynb")
    _run_all(page)
    first = page.locator(".labkit-lab").first
    first.wait_for()
    first.focus()
    page.keyboard.press("Enter")
    assert first.get_attribute("aria-expanded") == "true"
    code = "from labkit.progress import append_event as a; a('attempt', exercise='00.1', version=1, outcome='passed')"
    env = os.environ | {"LABKIT_HOME": str(home), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)  # as another notebook would
    page.get_by_text("passed: 00.1").wait_for(timeout=20_000)
    assert first.get_attribute("aria-expanded") == "true", "an update keeps open what is open"
    assert page.evaluate("document.activeElement.dataset.lab") == "00", "an update keeps the keyboard's place"
    page.keyboard.press("Space")
    assert first.get_attribute("aria-expanded") == "false"
    page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")
    page.wait_for_timeout(1000)
    page.evaluate("window.jupyterapp.serviceManager.sessions.shutdownAll()")
    page.wait_for_timeout(1000)
    _open(page, jupyterlab, "progress.ipynb")
    assert page.locator(".jp-OutputArea-output table").is_visible()
    assert "Error displaying widget" not in page.locator(".jp-Notebook").inner_text()
    assert page.foreign == []


@pytest.mark.parametrize("lab", [lab for lab in LABS if lab not in RUN], ids=lambda lab: lab["name"])
def test_an_untouched_lab_opens(page, jupyterlab, lab):
    _open(page, jupyterlab, f"labs/{lab['name']}.ipynb")
    assert lab["title"] in page.locator(".jp-Notebook").inner_text()
    page.screenshot(path=SCREENSHOTS / f"{lab['number']}_lab_top.png")
    assert page.foreign == []


@pytest.mark.parametrize("lab", RUN, ids=lambda lab: lab["name"])
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


@pytest.mark.parametrize("figure", FIGURES, ids=[figure[0] for figure in FIGURES])
def test_a_stored_solution_shows_its_figure_as_a_picture_before_anybody_trusts_it(page, jupyterlab, figure):
    lab, path, _ = figure
    _open(page, jupyterlab, f"solutions/{Path(path).name}")  # as stored: nothing runs
    _scroll_to(page, ".jp-OutputArea-output img")
    assert page.locator(".jp-OutputArea-output img").first.evaluate("image => image.naturalWidth") > 300
    page.screenshot(path=SCREENSHOTS / f"{lab}_stored_picture.png")
    assert page.foreign == []


def test_the_figures_of_the_solutions_answer_the_mouse(page, jupyterlab):
    _open(page, jupyterlab, "figures.ipynb")
    _run_all(page)
    for place, (lab, _, _) in enumerate(FIGURES):
        page.locator(".jp-Notebook .jp-Cell").nth(place).scroll_into_view_if_needed()
        figure = page.locator(".jp-Notebook .jp-Cell").nth(place).locator(".js-plotly-plot")
        figure.wait_for(timeout=20_000)
        assert _hover_figure(page, figure), f"lab {lab}"
        page.screenshot(path=SCREENSHOTS / f"{lab}_hover.png")
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


def _make_notebook(texts: list[str]) -> str:
    cells = [
        {"cell_type": "code", "execution_count": None, "id": f"c{k}", "metadata": {}, "outputs": [], "source": text}
        for k, text in enumerate(texts)
    ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return json.dumps({"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5})


def _hover_figure(page, figure) -> str:
    """Move the mouse over a figure until a label appears; return the label's text."""
    figure.scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    box = figure.locator(".nsewdrag").first.bounding_box()
    label = figure.locator(".hoverlayer .hovertext")
    for down in (0.5, 0.3, 0.7, 0.15, 0.85, 0.4, 0.6, 0.05, 0.95):
        for along in range(1, 40):
            page.mouse.move(box["x"] + box["width"] * along / 40, box["y"] + box["height"] * down)
            page.wait_for_timeout(15)
            if label.count():
                return label.first.text_content()
    pytest.fail("no label appeared under the mouse")


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
