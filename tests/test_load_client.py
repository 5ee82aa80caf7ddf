"""labkit.load.client in virtual time: the cases of the measuring contract, exactly, and the ends of a run."""

import asyncio

import numpy as np
import pytest

from labkit.errors import LabkitError
from labkit.load.client import Limits, Target, run_client
from labkit.load.metrics import estimate_metrics
from labkit.load.verdict import check_client
from labkit.load.virtual import SimulatedServer, format_answer, run_virtual
from labkit.workload import draw_closed_plan, draw_open_plan, draw_session_plan

SIXTEEN = [0.1 + 0.02 * k for k in range(16)]


def answer(times_s):
    return lambda number, now_s, body: format_answer(times_s, begin_s=now_s)


def refuse(status=503, retry_after=None, at_s=0.01):
    extra = f"Retry-After: {retry_after}\r\n" if retry_after is not None else ""
    text = f"HTTP/1.1 {status} No\r\n{extra}Content-Length: 2\r\n\r\nno".encode()
    return lambda number, now_s, body: [(now_s + at_s, text)]


def simulate(plan, script, *, stalls=(), stop_at_s=None, **options):
    """Run a plan in virtual time; `stalls`: (time, seconds) when the client is busy. Returns (run, server)."""

    async def main():
        loop, server, stop = asyncio.get_running_loop(), SimulatedServer(script), asyncio.Event()
        for at_s, seconds in stalls:
            loop.call_at(at_s, loop.stall, seconds)
        if stop_at_s is not None:
            loop.call_at(stop_at_s, stop.set)
        return await run_client(plan, Target("m"), server, stop=stop, **options), server

    return run_virtual(main())


def constant(rate_per_s, duration_s, **options):
    return draw_open_plan("constant", rate_per_s=rate_per_s, duration_s=duration_s, **{"output": 16} | options)


def test_case_1_through_the_whole_client():
    run, _ = simulate(constant(10, 2), answer(SIXTEEN))
    assert len(run.records) == 20 and run.end == "complete"
    for k, record in enumerate(run.records):
        assert record.cause == "" and record.number == k and record.notes == ()
        assert record.scheduled_s == pytest.approx((k + 1) / 10, abs=1e-12) and record.lag_s == pytest.approx(
            0, abs=1e-9
        )
        assert record.ttft_s == pytest.approx(0.1, abs=1e-9)
        assert record.icl_s == pytest.approx([0.02] * 15, abs=1e-9)
        assert record.itl_s == pytest.approx([0.02] * 15, abs=1e-9)
        assert (record.tpot_s, record.e2e_s) == (pytest.approx(0.02, abs=1e-9), pytest.approx(0.4, abs=1e-9))
    verdict = check_client(run)
    assert verdict.is_valid, str(verdict)


def test_case_10_a_server_stall_does_not_delay_sending():
    """The server does nothing from 2 s to 4 s; the client goes on sending 50 a second."""

    def script(number, now_s, body):
        begin_s = now_s if not 2.0 <= now_s < 4.0 else 4.0
        return format_answer([0.02], begin_s=begin_s)

    run, server = simulate(constant(50, 8, output=1), script)
    assert server.arrivals_s == pytest.approx([(k + 1) / 50 for k in range(400)], abs=1e-9)
    extra = [record.ttft_s - 0.02 for record in run.records]
    delayed = [value for value in extra if value > 1e-6]
    assert len(delayed) == 100 and max(delayed) == pytest.approx(2.0, abs=0.021)
    assert np.mean(delayed) == pytest.approx(1.0, abs=0.02)
    assert check_client(run).is_valid  # a slow server is a finding


def test_case_11_a_client_stall_is_seen_from_the_schedule_and_flagged():
    """As in MLPerf LoadGen's own case: 50 a second, 20 ms of service, the client busy for a second."""
    run, _ = simulate(constant(50, 4.5, output=1), answer([0.02]), stalls=[(2.001, 1.0)])
    part = {name: [getattr(record, f"{name}_s") for record in run.records] for name in ("ttft", "ttft_from_schedule")}
    assert np.percentile(part["ttft_from_schedule"], 99) == pytest.approx(1.0, abs=0.03)
    assert np.mean(part["ttft_from_schedule"]) == pytest.approx(0.132, abs=0.01)
    assert np.percentile(part["ttft"], 98) == pytest.approx(0.02, abs=1e-6)  # from sending, nothing is to be seen
    verdict = check_client(run)
    assert not verdict.is_valid and "send lag, 99th percentile" in str(verdict)
    assert verdict.numbers["delay_p99_s"] > 0.5  # ticks that the stall swallowed are counted
    late = [record.lag_s for record in run.records if record.lag_s > 1e-6]
    assert len(late) == 50  # nothing was shifted: 50 were late, the rest on time


@pytest.mark.slow
@pytest.mark.parametrize("think_s", [0.0, 0.1])
def test_case_13_a_closed_loop_keeps_its_clients_busy(think_s):
    plan = draw_closed_plan(num_clients=8, duration_s=8.0, think_s=think_s, output=1)
    run, server = simulate(plan, answer([0.1]))
    assert server.max_running == 8
    whole = estimate_metrics(run.records).whole
    if not think_s:
        assert whole.request_per_s == pytest.approx(80, rel=1e-3) and whole.concurrency == pytest.approx(8, rel=1e-3)
        assert run.health.concurrency == pytest.approx(8, rel=0.02)
    else:
        assert whole.request_per_s == pytest.approx(40, rel=0.12)  # 8 / (0.1 + 0.1)
    assert max(record.scheduled_s for record in run.records) < 8.0
    assert check_client(run).is_valid


def test_requests_of_a_session_follow_each_other():
    plan = draw_session_plan("constant", rate_per_s=1, num_requests=3, turns=3, think_s=0.5, output=2)
    run, server = simulate(plan, answer([0.1, 0.2]))
    for session in range(3):
        turns = [record for record in run.records if record.session == session]
        assert [record.turn for record in turns] == [0, 1, 2]
        for before, after, planned in zip(turns, turns[1:], plan.chains[session].requests[1:], strict=False):
            assert after.scheduled_s == pytest.approx(before.end_s + planned.think_s, abs=1e-9)


def test_a_cap_holds_back_and_the_schedule_tells():
    run, server = simulate(constant(50, 2, output=1).cap(3), answer([0.2]))
    assert server.max_running == 3
    assert max(record.lag_s for record in run.records) > 1  # 50 a second come, 15 a second are served


def test_littles_law_notices_requests_that_are_not_counted():
    run, _ = simulate(constant(50, 8, output=1), answer([0.1]))
    verdict = check_client(run)
    assert verdict.is_valid and verdict.numbers["little_error"] < 0.02
    import dataclasses

    wrong = dataclasses.replace(run, health=dataclasses.replace(run.health, concurrency=run.health.concurrency * 1.5))
    assert "requests in flight" in str(check_client(wrong))


# Ends and failures


def test_a_stream_that_never_ends_meets_the_deadline_of_its_request():
    run, _ = simulate(constant(10, 1), lambda n, now_s, body: format_answer(SIXTEEN, begin_s=now_s)[:-1],
                      limits=Limits(request_s=5.0))  # fmt: skip
    assert [record.cause for record in run.records] == ["request deadline"] * 10
    assert [record.end_s - record.sent_s for record in run.records] == pytest.approx([5.0] * 10, abs=1e-9)
    assert all(len(record.chunks) == 15 for record in run.records)  # what came is kept
    assert run.end == "complete" and "no request succeeded" in str(check_client(run))


def test_the_whole_run_ends_at_its_deadline_and_keeps_what_was_measured():
    plan = draw_closed_plan(num_clients=2, requests_per_client=10**6, output=1)
    run, _ = simulate(plan, answer([0.4]), limits=Limits(run_s=3.0))
    assert run.end == "run deadline"
    good = [record for record in run.records if record.is_good]
    assert len(good) == 14 and {record.cause for record in run.records} == {"", "run deadline"}
    assert max(record.end_s for record in run.records) == pytest.approx(3.0)
    assert "cut short (run deadline)" in str(check_client(run))


def test_an_interrupt_keeps_what_was_measured():
    run, _ = simulate(constant(10, 5), answer(SIXTEEN), stop_at_s=2.05)
    assert run.end == "interrupted"
    assert [record.cause for record in run.records] == [""] * 16 + ["interrupted"] * 4  # four were in flight
    assert not check_client(run).is_valid


def test_what_was_due_and_never_sent_is_counted():
    """The client was busy when the run's time ended."""
    run, _ = simulate(constant(10, 3, output=1), answer([0.02]), stalls=[(2.0, 2.0)], limits=Limits(run_s=2.5))
    unsent = [record for record in run.records if record.sent_s is None]
    assert unsent and {record.detail for record in unsent} == {"never sent"}
    assert "never sent" in str(check_client(run))


@pytest.mark.parametrize("status", [429, 503])
def test_a_refusal_is_a_failure_and_no_retry_is_silent(status):
    run, server = simulate(constant(10, 1, output=1), refuse(status))
    assert {record.cause for record in run.records} == {f"http {status}"} and len(server.arrivals_s) == 10
    assert sum(record.num_retries for record in run.records) == 0

    def script(number, now_s, body):
        return refuse(status, 2)(number, now_s, body) if number < 3 else format_answer([0.1], begin_s=now_s)

    run, server = simulate(constant(1, 1, output=1), script, limits=Limits(max_retries=5))
    (record,) = run.records
    assert record.cause == "" and record.num_retries == 3
    assert record.notes == tuple(f"retry {k} after http {status} and 2 s" for k in (1, 2, 3))
    assert record.ttft_s == pytest.approx(3 * 2.01 + 0.1)  # the waiting belongs to what the user feels
    assert np.diff(server.arrivals_s) == pytest.approx([2.01] * 3)
    assert "sent again" in " ".join(check_client(run).remarks)
    run, _ = simulate(constant(1, 1, output=1), refuse(status), limits=Limits(max_retries=2))
    assert (run.records[0].cause, run.records[0].num_retries) == (f"http {status}", 2)


def test_a_retry_waits_no_longer_than_the_request_may_take():
    run, server = simulate(constant(1, 1, output=1), refuse(429, 3600), limits=Limits(max_retries=5, request_s=10))
    assert run.records[0].cause == "http 429" and len(server.arrivals_s) == 1


def test_clients_of_a_server_that_refuses_do_not_flood_it():
    plan = draw_closed_plan(num_clients=1, duration_s=10.0, output=1)
    _, server = simulate(plan, refuse(503, at_s=0.0))
    assert len(server.arrivals_s) <= 101


def test_a_cut_connection_is_a_failure():
    cut = lambda number, now_s, body: [*format_answer(SIXTEEN, begin_s=now_s)[:3], (now_s + 0.2, None)]  # noqa: E731
    run, _ = simulate(constant(10, 1), cut)
    assert {record.cause for record in run.records} == {"cut"} and len(run.records[0].chunks) == 3


def test_records_are_handed_over_while_the_run_goes_on():
    seen = []
    run, _ = simulate(constant(10, 1), answer(SIXTEEN), on_record=seen.append)
    assert sorted(seen, key=lambda record: record.number) == list(run.records)


def test_what_is_asked_for():
    bodies = []

    def script(number, now_s, body):
        bodies.append(body)
        return format_answer([0.1], begin_s=now_s)

    import json

    plan = constant(1, 1, prompt=5, output=7)
    simulate(plan, script)
    asked = json.loads(bodies[0])
    assert asked["prompt"] == list(plan.chains[0].requests[0].prompt_ids) and len(asked["prompt"]) == 5
    assert (asked["max_tokens"], asked["min_tokens"], asked["ignore_eos"], asked["stream"]) == (7, 7, True, True)
    chat = json.loads(
        Target("m", "chat", is_fixed_length=False, extra={"temperature": 1}).encode(plan.chains[0].requests[0])
    )
    assert len(chat["messages"][0]["content"].split()) == 5 and chat["temperature"] == 1
    assert "ignore_eos" not in chat and "continuous_usage_stats" not in chat["stream_options"]


def test_a_wait_for_nothing_is_an_error_in_virtual_time():
    async def main():
        await asyncio.get_running_loop().create_future()

    with pytest.raises(LabkitError, match="Nothing will ever happen"):
        run_virtual(main())


def test_the_same_run_twice_is_the_same():
    first, second = (simulate(draw_open_plan(rate_per_s=30, duration_s=1), answer(SIXTEEN))[0] for _ in range(2))
    assert first.records == second.records
