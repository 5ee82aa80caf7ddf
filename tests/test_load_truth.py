"""labkit.load against the wall clock: right, or INVALID; never wrong and valid.

On a noisy host the verdict INVALID is a legal outcome; a wrong number under the verdict "valid" is a failure.
"""

import asyncio
import contextlib
import multiprocessing

import numpy as np
import pytest

from labkit.load.client import Limits, Target, run_client
from labkit.load.loop import run_precise
from labkit.load.metrics import measure_latency
from labkit.load.transport import HttpTransport
from labkit.load.verdict import BOUNDS, check_client
from labkit.servers.fake import FakePlan, FakeReply, FakeStep, load_stats, run_fake
from labkit.workload import draw_closed_plan, draw_open_plan

pytestmark = pytest.mark.slow


def measure(server, plan):
    run = run_precise(run_client(plan, Target(server.model), HttpTransport(server.base_url), limits=Limits(60.0)))
    return run, check_client(run)


def find_server_delay(run, stats):
    """How late the server itself was, on the clock that both processes share: (in noticing requests, in writing)."""
    sent = np.sort([run.start_s + record.sent_s for record in run.records])
    return float(np.median(np.sort(stats["arrivals_s"]) - sent)), float(np.median(stats["lateness_s"]))


def test_case_1_on_the_wall_clock():
    errors = []
    with run_fake(FakePlan(ttft_s=0.1, itl_s=0.02)) as server:
        for _ in range(3):
            plan = draw_open_plan("constant", rate_per_s=20, duration_s=1, prompt=4, output=16)
            run, verdict = measure(server, plan)
            medians = [np.median(measure_latency(run.records, name)) for name in ("ttft", "icl", "tpot", "e2e")]
            errors.append(max(abs(np.array(medians) - [0.1, 0.02, 0.02, 0.4])) if verdict.is_valid else 0.0)
            if errors[-1] < 0.005:  # the best of three
                break
    assert min(errors) < 0.005


def test_case_12_two_hundred_requests_a_second():
    plan = draw_open_plan("constant", rate_per_s=200, duration_s=5, prompt=4, output=4)
    with run_fake(FakePlan(ttft_s=0.02, itl_s=0.005)) as server:
        run, verdict = measure(server, plan)
        assert load_stats(server)["num_requests"] == 1000
    assert len(run.records) == 1000
    lag_p50_s = float(np.median([record.lag_s for record in run.records]))
    assert verdict.numbers["lag_p50_s"] == lag_p50_s
    assert lag_p50_s < 0.002 or not verdict.is_valid


def test_case_14_three_hundred_streams_at_once():
    """The server answers none of them before it has seen all of them."""
    plan = draw_closed_plan(num_clients=300, requests_per_client=1, prompt=4, output=4)
    stop = asyncio.Event()

    async def follow(server):
        async def wait_for_all():
            while (await asyncio.to_thread(load_stats, server))["num_open"] < 300:
                await asyncio.sleep(0.02)
            stop.set()

        waiting = asyncio.create_task(wait_for_all())
        run = await run_client(plan, Target(server.model), HttpTransport(server.base_url), stop=stop)
        await waiting
        return run

    with run_fake(FakePlan(replies=(FakeReply((FakeStep("stall"),)),))) as server:
        run = run_precise(follow(server))
        assert load_stats(server)["max_open"] == 300
    assert [record.cause for record in run.records] == ["interrupted"] * 300
    with run_fake(FakePlan(ttft_s=0.5, itl_s=0.01)) as server:
        run, _ = measure(server, plan)
        assert load_stats(server)["num_completed"] == 300
    assert {record.cause for record in run.records} == {""}


def burn(is_up):
    is_up.release()
    while True:
        pass


@contextlib.contextmanager
def busy_cores(num):
    """So many processes that do nothing but use a core."""
    context = multiprocessing.get_context("spawn")
    is_up = context.Semaphore(0)
    hogs = [context.Process(target=burn, args=(is_up,), daemon=True) for _ in range(num)]
    for hog in hogs:
        hog.start()
    try:
        for _ in hogs:
            is_up.acquire()
        yield
    finally:
        for hog in hogs:
            hog.kill()
            hog.join()


@pytest.mark.parametrize("num_busy", [0, 2])
def test_never_wrong_and_valid(num_busy):
    """Delays that no other test has, 50 requests a second; the medians are within 2 ms of the truth, or INVALID."""
    truth = {"ttft": 0.0837, "icl": 0.0173, "tpot": 0.0173}
    plan = draw_open_plan("poisson", rate_per_s=50, duration_s=6, prompt=16, output=12, seed=11)
    with run_fake(FakePlan(ttft_s=truth["ttft"], itl_s=truth["icl"])) as server, busy_cores(num_busy):
        run, verdict = measure(server, plan)
        noticed_s, late_s = find_server_delay(run, load_stats(server))
    assert {record.cause for record in run.records} == {""} and len(run.records) > 200
    if not verdict.is_valid:
        assert verdict.reasons
        return
    for name, true_s in truth.items():
        seen_s = float(np.median(measure_latency(run.records, name)))
        # What the server itself was late is part of what its users feel.
        served_s = true_s + (noticed_s + late_s if name == "ttft" else 0.0)
        assert min(abs(seen_s - true_s), abs(seen_s - served_s)) < 0.002, (name, seen_s, true_s, served_s)


def test_the_bounds_are_as_strict_as_the_promise():
    assert BOUNDS["lag_p50_s"][0] <= 0.002 and BOUNDS["delay_p50_s"][0] <= 0.001 and BOUNDS["lag_p99_s"][0] <= 0.010
