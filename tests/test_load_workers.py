"""labkit.load.workers: several processes, one schedule, one report; and what is left of a worker that is killed."""

import dataclasses
import os
import signal
import subprocess
import threading
import time

import numpy as np
import pytest

from labkit.load import workers
from labkit.load.noop import run_noop
from labkit.load.records import load_requests
from labkit.load.report import format_report
from labkit.load.run import run_load
from labkit.servers.fake import FakePlan, run_fake_inside
from labkit.workload import draw_closed_plan, draw_open_plan

pytestmark = pytest.mark.slow  # processes

QUICK = FakePlan(ttft_s=0.01, itl_s=0.001)


def test_two_workers_follow_the_schedule_of_one(tmp_path, capfd):
    plan = draw_open_plan("poisson", rate_per_s=40, duration_s=1, prompt="uniform:3:9", output="uniform:2:5", seed=7)
    results = []
    for num_workers in (1, 2):
        with run_fake_inside(QUICK) as server:
            results.append(run_load(server.base_url, plan, model="fake", num_workers=num_workers,
                                    folder=tmp_path / str(num_workers)))  # fmt: skip
            results[-1] = (results[-1], server.stats())
    (one, one_stats), (two, two_stats) = results
    assert [record.number for record in two.records] == [record.number for record in one.records]
    assert [record.scheduled_s for record in two.records] == [record.scheduled_s for record in one.records]
    assert {record.cause for record in two.records} == {""}
    assert sorted(map(tuple, two_stats["prompts"])) == sorted(map(tuple, one_stats["prompts"]))
    # The workers' clocks are one: the server saw the arrivals of the schedule, in its order up to the lag.
    seen = np.sort(two_stats["arrivals_s"])
    wanted = np.array([record.scheduled_s for record in two.records])
    is_close = np.median(np.abs(seen - seen[0] - (wanted - wanted[0]))) < 0.05
    assert is_close or not two.verdict.is_valid
    assert len((tmp_path / "2" / "requests.jsonl").read_text().splitlines()) == len(two.records)
    assert two.num_workers == 2 and two.sampling is not None
    assert "Fatal" not in capfd.readouterr().err  # the workers ended in order


def test_two_workers_share_the_work_so_that_each_needs_less_of_a_processor():
    """Processor time, not speed: free cores are not needed to see that a second one would be used."""
    plan = draw_open_plan("constant", rate_per_s=400, duration_s=1, prompt=8, output=8)
    shares = {1: [], 2: []}
    with run_noop(num_chunks=8, gap_s=0.005) as url:
        for _ in range(2):
            for num_workers, found in shares.items():
                result = run_load(url, plan, model="noop", num_workers=num_workers)
                assert {record.cause for record in result.records} == {""}
                found.append(result.verdict.numbers["cpu_fraction"])  # the busiest worker's
    # One worker is this process itself, which also pays for all that other tests have loaded: no bound from below.
    assert 0 < min(shares[2]) < 0.85 * min(shares[1]), shares


def test_a_worker_that_is_killed_is_reported_and_the_rest_is_kept(monkeypatch, tmp_path):
    plan = draw_open_plan("constant", rate_per_s=80, num_requests=120, prompt=4, output=3)
    # The last request of worker 1 is not due for ten minutes: it is killed before, when its first records are at home.
    plan = dataclasses.replace(plan, chains=(*plan.chains[:-1], dataclasses.replace(plan.chains[-1], start_s=600.0)))
    started, popen = [], subprocess.Popen

    def note(*arguments, **options):
        process = popen(*arguments, **options)
        started.append(process)
        return process

    monkeypatch.setattr(workers.subprocess, "Popen", note)

    def kill():
        path = tmp_path / "requests.jsonl"
        while not (path.exists() and any(record.number % 2 for record in load_requests(path)[0])):
            time.sleep(0.02)
        os.kill(started[1].pid, signal.SIGKILL)

    with run_fake_inside(QUICK) as server:
        threading.Thread(target=kill, daemon=True).start()
        result = run_load(server.base_url, plan, model="fake", num_workers=2, folder=tmp_path)
    own = [record for record in result.records if record.number % 2 == 0]
    lost = [record for record in result.records if record.number % 2 == 1]
    assert len(own) == 60 and 0 < len(lost) < 60
    assert not result.verdict.is_valid
    assert "worker 1 ended by signal 9" in format_report(result)


def test_ctrl_c_reaches_the_workers():
    plan = draw_closed_plan(num_clients=4, duration_s=600, prompt=4, output=3, think_s=0.05)
    with run_fake_inside(QUICK) as server:

        def interrupt():
            while server.stats()["num_requests"] < 20:
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt, daemon=True).start()
        result = run_load(server.base_url, plan, model="fake", num_workers=2)
    assert result.end == "interrupted" and len(result.records) >= 15
