"""run_workload: a workload against a server; counts are exact, what was not asked for is an error."""

import asyncio
import itertools
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from labkit.errors import LabkitError
from labkit.load import sampling
from labkit.load.client import ClientRun, Target, run_client
from labkit.load.metrics import estimate_metrics
from labkit.load.records import Chunk, RequestRecord
from labkit.load.report import LoadResult
from labkit.load.run import run_workload
from labkit.load.sampling import Sampling
from labkit.load.verdict import ClientVerdict
from labkit.load.virtual import SimulatedServer, format_answer, run_virtual
from labkit.servers.fake import FakePlan, FakeReply, FakeStep, run_fake, run_fake_inside
from labkit.stats import compare
from labkit.workload import Request, draw_mixed_lengths, draw_open_plan

IDS = np.arange(4000) * 7919 % 997

pytestmark = pytest.mark.slow  # a server and real seconds


def run_on(plan, requests, **options):
    with run_fake_inside(plan) as server:
        return run_workload(server, requests, **options), server.stats()


def count_tokens(record):
    return [chunk.num_tokens for chunk in record.chunks]


def test_the_counts_are_those_of_the_workload_and_of_the_server():
    workload = draw_mixed_lengths(IDS, num_requests=8, rate_per_s=200, output_median=6, max_tokens=20)
    run, stats = run_on(FakePlan(ttft_s=0.01, itl_s=0.001), workload.measured)
    assert [r.num_prompt_tokens for r in run.records] == [len(r.prompt_ids) for r in workload.measured]
    assert [r.num_output_tokens for r in run.records] == [r.num_output_tokens for r in workload.measured]
    assert [sum(count_tokens(r)) for r in run.records] == [r.num_output_tokens for r in workload.measured]
    assert stats["num_output_tokens"] == workload.num_output_tokens
    assert sorted(map(tuple, stats["prompts"])) == sorted(r.prompt_ids for r in workload.measured)


def test_scripted_times_are_seen():
    run, _ = run_on(FakePlan(ttft_s=0.2, itl_s=0.05), [Request((1, 2, 3), 6)])
    (record,) = run.records
    # The server writes no token before its time; a busy machine only makes it later.
    assert record.ttft_s > 0.19 and record.e2e_s > 0.44
    assert record.e2e_s == pytest.approx(record.ttft_s + 5 * record.tpot_s)


def test_a_chunk_of_several_tokens_counts_all_of_them():
    run, _ = run_on(FakePlan(ttft_s=0.01, itl_s=0.01, tokens_per_chunk=4), [Request((1,), 10)])
    assert count_tokens(run.records[0]) == [4, 4, 2]
    assert run.records[0].num_output_tokens == 10


def test_events_without_a_token_are_not_chunks():
    steps = (
        FakeStep("role"),
        FakeStep("comment"),
        FakeStep("text", 0.05, "a"),
        FakeStep("usage"),
        FakeStep("text", 0.02, "b"),
    )
    run, _ = run_on(FakePlan(replies=(FakeReply((*steps, FakeStep("done")), newline="\r\n"),)), [Request((1,), 2)])
    assert count_tokens(run.records[0]) == [1, 1]
    assert run.records[0].ttft_s > 0.04


def test_tokens_without_a_text_are_tokens():
    """Random weights write whole answers of them: ends of text, halves of characters."""
    steps = (FakeStep("text", 0.05, ""), FakeStep("text", 0.02, ""), FakeStep("done"))
    run, _ = run_on(FakePlan(replies=(FakeReply(steps),)), [Request((1,), 2)])
    assert count_tokens(run.records[0]) == [1, 1] and run.records[0].ttft_s > 0.04
    assert {chunk.kind for chunk in run.records[0].chunks} == {"silent"}


@pytest.mark.slow
def test_requests_are_sent_at_their_arrivals_and_do_not_wait_for_each_other():
    requests = [Request((k,), 2, 0.05 * k) for k in range(6)]
    # No answer begins before the last request has come, whatever the machine does.
    run, stats = run_on(FakePlan(ttft_s=0.6, itl_s=0.001), requests)
    assert [r.scheduled_s for r in run.records] == pytest.approx([0.05 * k for k in range(6)])
    assert all(r.lag_s >= 0 for r in run.records) and run.plan["loop"] == "open"
    assert stats["max_running"] == 6 or not run.verdict.is_valid


@pytest.mark.slow
@pytest.mark.parametrize("num_clients", [1, 3])
def test_a_closed_loop_keeps_exactly_its_clients_under_way(num_clients):
    requests = [Request((k,), 2, 9.0) for k in range(9)]  # arrival times are not used
    run, stats = run_on(FakePlan(ttft_s=0.05, itl_s=0.01), requests, num_clients=num_clients)
    # The server may still be closing an answer when its client already asks again.
    assert stats["max_running"] in (num_clients, num_clients + 1)
    assert len(run.records) == 9 and {r.num_prompt_tokens for r in run.records} == {1}
    changes = sorted([(r.sent_s, 1) for r in run.records] + [(r.end_s, -1) for r in run.records])
    assert max(np.cumsum([step for _, step in changes])) == num_clients
    assert run.metrics.whole.seconds > 9 / num_clients * 0.06
    assert all(r.lag_s >= 0 for r in run.records)
    # Little's law: never more than the clients, and less by what the client needs between two requests.
    mean_s = np.mean([r.e2e_s for r in run.records])
    assert run.metrics.whole.request_per_s * mean_s <= num_clients + 0.01


def test_more_clients_than_requests_are_fine_and_no_client_is_an_error():
    run, _ = run_on(FakePlan(ttft_s=0.01, itl_s=0.001), [Request((1,), 2)], num_clients=5)
    assert len(run.records) == 1
    with pytest.raises(LabkitError, match="0 clients send nothing"):
        run_workload(None, [Request((1,), 2)], num_clients=0)


FAULTS = {
    "says 503": (FakeReply(status=503), "http 503"),
    "breaks in the stream": (
        FakeReply((FakeStep("text", text="a"), FakeStep("error", text="out of memory"))), "out of memory",
    ),
    "cuts the connection": (FakeReply((FakeStep("text", text="a"), FakeStep("reset"))), "failed: reset"),
    "just ends": (FakeReply((FakeStep("text", text="a"), FakeStep("text", text="b"))), "without \\[DONE\\]"),
    "makes too few tokens": (
        FakeReply((FakeStep("text", text="a"), FakeStep("done"))), "2 output tokens were asked for",
    ),
    "makes too many tokens": (
        FakeReply((FakeStep("text", text="a b c", num_tokens=3), FakeStep("done"))), "counts 1 and 3",
    ),
    "ends without [DONE]": (
        FakeReply(tuple(FakeStep("raw", text='data: {"choices":[{"text":"a","finish_reason":"length"}],"usage":'
                                     f'{{"prompt_tokens":1,"completion_tokens":{k}}}}}\n\n') for k in (1, 2))),
        "before \\[DONE\\]",
    ),
    "sends no running usage": (
        FakeReply((FakeStep("raw", text='data: {"choices":[{"text":"a"}]}\n\ndata: {"choices":[{"text":"b"}]}\n\n'
                                'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n'),
               FakeStep("done"))),
        "no running usage",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_with_one_bad_answer_is_an_error(fault):
    reply, said = FAULTS[fault]
    good = FakeReply((FakeStep("text", text="a"), FakeStep("text", text="b"), FakeStep("done")))
    with pytest.raises(LabkitError, match=said):
        run_on(FakePlan(replies=(good, reply)), [Request((1,), 2), Request((2,), 2, 0.05)])


class _Cut(tuple):
    """Hands over one token less than it has: what a server does that cuts the prompt."""

    def __iter__(self):
        return iter(list(super().__iter__())[1:])


def test_a_server_that_read_another_prompt_is_an_error():
    with pytest.raises(LabkitError, match="3 prompt and 2 output tokens were asked for, the server counts 2 and 2"):
        run_on(FakePlan(ttft_s=0.0, itl_s=0.0), [Request(_Cut((1, 2, 3)), 2)])


def test_no_request_is_an_error():
    with pytest.raises(LabkitError, match="no request"):
        run_workload(SimpleNamespace(base_url="http://127.0.0.1:9", model="x"), [])


def test_a_server_that_is_not_there_is_an_error():
    with pytest.raises(LabkitError, match="refused"):
        run_workload(SimpleNamespace(base_url="http://127.0.0.1:9", model="x"), [Request((1,), 2)])


def test_no_thread_is_left():
    with run_fake_inside(FakePlan(ttft_s=0.01, itl_s=0.001)) as server:
        before = set(threading.enumerate())
        run_workload(server, [Request((k,), 2) for k in range(5)])
        assert set(threading.enumerate()) <= before


def make_run():
    a = RequestRecord(0, 10.0, 10.5, 14.2, chunks=(Chunk(11.0, 1), Chunk(12.0, 3), Chunk(14.0, 1)), num_output_tokens=5)
    b = RequestRecord(1, 11.0, 11.0, 14.6, chunks=(Chunk(14.5, 3),), num_output_tokens=3)
    verdict = ClientVerdict(True, (), (), {})
    return LoadResult({}, {"loop": "open"}, (a, b), estimate_metrics((a, b)), verdict, {}, "complete")


def test_the_throughputs_are_the_definitions_by_hand():
    run = make_run()
    assert run.metrics.whole.seconds == 4.0
    assert run.tok_per_s == 8 / 4
    assert run.middle_tok_per_s == 3 / 2  # from 11.5 s to 13.5 s only the chunk at 12 s


@pytest.mark.slow
def test_a_child_server_is_asked_for_its_memory():
    with run_fake(FakePlan(ttft_s=0.1, itl_s=0.001)) as server:
        run = run_workload(server, [Request((1, 2), 3)], memory_interval_s=0.02)
    assert run.sampling.peak_memory_bytes > 1_000_000
    assert run.sampling.hit_fraction is None


def test_the_peak_is_the_largest_reading_and_the_counters_are_differences(monkeypatch):
    pages = itertools.chain([{"prefix_queries": 100, "prefix_hits": 10}],
                            itertools.repeat({"prefix_queries": 164, "prefix_hits": 42}))  # fmt: skip
    monkeypatch.setattr(sampling, "read_counters", lambda text: dict(next(pages)))
    readings = iter([5, 9])
    with run_fake_inside(FakePlan(ttft_s=0.2, itl_s=0.001)) as fake:
        server = SimpleNamespace(base_url=fake.base_url, model=fake.model,
                                 measure_memory=lambda: {"pss_bytes": next(readings, 3)})  # fmt: skip
        found = run_workload(server, [Request((1,), 2)], memory_interval_s=0.02).sampling
    assert found.peak_memory_bytes == 9
    assert (found.count("prefix_queries"), found.count("prefix_hits"), found.hit_fraction) == (64, 32, 0.5)


def test_the_last_reading_of_the_memory_counts():
    """Caches are full at the end."""
    assert Sampling({}, {"server_memory_bytes": 9}, ((0.1, {"server_memory_bytes": 5}),)).peak_memory_bytes == 9
    assert Sampling({}, {}, ()).peak_memory_bytes is None


def rate_of(generator, *, slowdown=1.0) -> float:
    """Throughput of three requests of eight tokens, in virtual time, from a server whose delays vary by 15 %."""

    def script(number, now_s, body):
        delays = slowdown * np.array([0.03] + [0.002] * 7) * generator.lognormal(0, 0.15, 8)
        return format_answer(np.cumsum(delays).tolist(), begin_s=now_s)

    async def main() -> ClientRun:
        plan = draw_open_plan("at-once", num_requests=3, output=8)
        return await run_client(plan, Target("m"), SimulatedServer(script))

    return estimate_metrics(run_virtual(main()).records).whole.tok_per_s


@pytest.mark.slow
def test_one_server_under_two_names_gives_cannot_tell_in_nineteen_of_twenty_repeats():
    """A 95 % interval misses once in twenty repeats by its own definition."""
    generator, verdicts = np.random.default_rng(5), []
    for _ in range(20):
        pairs = [(rate_of(generator), rate_of(generator)) for _ in range(6)]
        verdicts.append(compare(*zip(*pairs, strict=True), better="higher").verdict)
    assert verdicts.count("cannot tell") >= 19, verdicts


def test_a_planted_slowdown_of_ten_percent_is_found():
    generator = np.random.default_rng(3)
    pairs = [(rate_of(generator, slowdown=1.1), rate_of(generator)) for _ in range(30)]
    said = compare(*zip(*pairs, strict=True), better="higher")
    assert said.verdict == "slower" and said.ratio == pytest.approx(1 / 1.1, abs=0.04)


def test_it_runs_inside_a_notebooks_own_loop():
    with run_fake_inside(FakePlan(ttft_s=0.01, itl_s=0.001)) as server:

        async def cell():
            return run_workload(server, [Request((1,), 2)])

        assert asyncio.run(cell()).records[0].is_good
