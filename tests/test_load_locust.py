"""labkit.load.locustfile: the same plan, client and metrics under Locust.

Locust is optional, so the tests that need it are `long` (make test-long) and use this Python's own Locust, the one of
LABKIT_LOCUST_PYTHON, or an environment in .venv-tools/locust that they make from requirements/locust.txt.
"""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from labkit.servers.fake import FakePlan, FakeReply, FakeStep, run_fake_inside
from labkit.workload import draw_open_plan

ROOT = Path(__file__).resolve().parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.fixture(scope="module")
def python():
    """The interpreter that has Locust; importing it here would replace this process's sockets."""
    if named := os.environ.get("LABKIT_LOCUST_PYTHON"):
        return named
    if importlib.util.find_spec("locust"):
        return sys.executable
    requirements, folder = ROOT / "requirements" / "locust.txt", ROOT / ".venv-tools" / "locust"
    made, stamp = folder / "bin" / "python", folder / "requirements.txt"
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != requirements.read_text(encoding="utf-8"):
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        install = [made, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", requirements, "httptools",
                   "numpy", "prometheus-client"]  # fmt: skip
        done = subprocess.run(install, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"locust could not be installed: {done.stderr.strip().splitlines()[-1]}")
        stamp.write_text(requirements.read_text(encoding="utf-8"), encoding="utf-8")
    return str(made)


def start_locust(python, folder, *arguments):
    command = [python, "-m", "locust", "-f", str(ROOT / "labkit" / "load" / "locustfile.py"), "--loglevel", "WARNING"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "LABKIT_HOME": str(folder), "LABKIT_RUNS": str(folder)}
    return subprocess.Popen([*command, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True)  # fmt: skip


def find_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start_team(python, folder, url, *, num_workers, requests=60):
    port = str(find_port())
    workers = [start_locust(python, folder, "--worker", "--master-host", "127.0.0.1", "--master-port", port)
               for _ in range(num_workers)]  # fmt: skip
    master = start_locust(
        python, folder, "--headless", "--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", port,
        "--expect-workers", str(num_workers), "--host", url, "--labkit-model", "fake", "--labkit-arrival", "constant",
        "--labkit-rate", "20", "--labkit-requests", str(requests), "--labkit-prompt", "8", "--labkit-output", "5",
        "--labkit-seed", "3", "--labkit-out", str(folder / "report"), "--labkit-request-limit", "5",
    )  # fmt: skip
    return master, workers


def end(*processes):
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait(10)
        process.stdout.close()


def test_a_master_and_two_workers_make_one_report_of_the_same_plan(python, tmp_path):
    plan = draw_open_plan("constant", rate_per_s=20.0, num_requests=60, prompt="8", output="5", seed=3)
    with run_fake_inside(FakePlan(ttft_s=0.1, itl_s=0.02)) as server:
        master, workers = start_team(python, tmp_path, server.base_url, num_workers=2)
        try:
            said, _ = master.communicate(timeout=120)
        finally:
            end(master, *workers)
        prompts = server.stats()["prompts"]
    report = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert "client:" in said and "Traceback" not in said, said
    assert sorted(map(tuple, prompts)) == sorted(tuple(c.requests[0].prompt_ids) for c in plan.chains)
    assert report["plan"] == json.loads(json.dumps(plan.to_dict())) and report["num_workers"] == 2
    rows = [json.loads(row) for row in (tmp_path / "report" / "requests.jsonl").read_text().splitlines()]
    assert [row["number"] for row in rows] == list(range(60)) and not any(row["cause"] for row in rows)
    whole = report["metrics"]["whole"]
    assert whole["num_succeeded"] == 60
    assert (master.returncode == 0) == report["is_valid"]
    # Wrong and valid must not be; INVALID is a legal answer of a busy machine.
    if report["is_valid"]:
        assert abs(whole["latencies"]["ttft"]["p50"] - 0.1) < 0.01
        assert abs(whole["latencies"]["tpot"]["p50"] - 0.02) < 0.004


def test_a_worker_that_is_killed_takes_only_its_own_requests_with_it(python, tmp_path):
    with run_fake_inside(FakePlan(ttft_s=0.05, itl_s=0.01)) as server:
        master, workers = start_team(python, tmp_path, server.base_url, num_workers=2, requests=160)
        try:
            limit_s = time.monotonic() + 60
            while server.stats()["num_requests"] < 40 and time.monotonic() < limit_s:
                time.sleep(0.1)
            workers[0].kill()
            said, _ = master.communicate(timeout=120)
        finally:
            end(master, *workers)
    report = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert not report["is_valid"] and master.returncode == 1
    assert "was lost" in report["problems"][0] and "was lost" in said
    numbers = {json.loads(row)["number"] for row in (tmp_path / "report" / "requests.jsonl").read_text().splitlines()}
    parts = [{k for k in range(160) if k % 2 == index} for index in (0, 1)]
    whole_part = [part for part in parts if part <= numbers]
    assert len(whole_part) == 1 and len(numbers) > 80  # the other's, and what the lost one had sent home


def test_locust_alone_without_workers_follows_the_whole_plan(python, tmp_path):
    with run_fake_inside(FakePlan(ttft_s=0.02, itl_s=0.01)) as server:
        process = start_locust(
            python, tmp_path, "--headless", "--host", server.base_url, "--labkit-model", "fake", "--labkit-rate", "30",
            "--labkit-requests", "20", "--labkit-output", "3", "--labkit-out", str(tmp_path / "report"),
        )  # fmt: skip
        try:
            said, _ = process.communicate(timeout=90)
        finally:
            end(process)
    report = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert report["metrics"]["whole"]["num_succeeded"] == 20 and "Traceback" not in said, said


def test_failures_under_locust_have_their_causes(python, tmp_path):
    word = FakeStep("text", 0.0, "a")
    steps = ((word, FakeStep("reset", 0.02)), (word, FakeStep("stall")), (word, FakeStep("error", 0.0, "boom")),
             (word, FakeStep("done")))  # fmt: skip
    replies = (FakeReply(status=503), *map(FakeReply, steps))
    with run_fake_inside(FakePlan(replies=replies)) as server:
        process = start_locust(
            python, tmp_path, "--headless", "--host", server.base_url, "--labkit-model", "fake", "--labkit-rate", "50",
            "--labkit-arrival", "constant", "--labkit-requests", "5", "--labkit-output", "1",
            "--labkit-request-limit", "1", "--labkit-out", str(tmp_path / "report"),
        )  # fmt: skip
        try:
            said, _ = process.communicate(timeout=90)
        finally:
            end(process)
    rows = [json.loads(row) for row in (tmp_path / "report" / "requests.jsonl").read_text().splitlines()]
    causes = ["", "error event", "http 503", "request deadline", "reset"]
    assert sorted(row["cause"] for row in rows) == causes and "Traceback" not in said, said
