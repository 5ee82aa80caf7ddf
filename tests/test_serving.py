"""The small client against the fake server: counts are exact, scripted times are met loosely, faults are errors."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from labkit.errors import LabkitError
from labkit.servers.fake import FakePlan, run_fake, run_fake_inside
from labkit.servers.fake import FakeReply as Reply
from labkit.servers.fake import FakeStep as Step
from labkit.serving import ServedRequest, ServedRun, load_prefix_counters, run_workload
from labkit.stats import compare
from labkit.workload import Request, draw_mixed_lengths

IDS = np.arange(4000) * 7919 % 997


def run_on(plan, requests, **options):
    with run_fake_inside(plan) as server:
        return run_workload(server, requests, **options), server.stats()


def test_the_counts_are_those_of_the_workload_and_of_the_server():
    workload = draw_mixed_lengths(IDS, num_requests=8, rate_per_s=200, output_median=6, max_tokens=20)
    run, stats = run_on(FakePlan(ttft_s=0.01, itl_s=0.001), workload.measured)
    assert [r.num_prompt_tokens for r in run.requests] == [len(r.prompt_ids) for r in workload.measured]
    assert [r.num_output_tokens for r in run.requests] == [r.num_output_tokens for r in workload.measured]
    assert [sum(n for _, n in r.chunks) for r in run.requests] == [r.num_output_tokens for r in workload.measured]
    assert stats["num_output_tokens"] == workload.num_output_tokens
    assert sorted(map(tuple, stats["prompts"])) == sorted(r.prompt_ids for r in workload.measured)


def test_scripted_times_are_seen():
    plan = FakePlan(ttft_s=0.2, itl_s=0.05)
    seen = [run_on(plan, [Request((1, 2, 3), 6)])[0].requests[0] for _ in range(3)]
    # A busy machine makes them longer. (A TPOT may be shorter, where the first chunk alone was read late.)
    assert 0.19 < min(r.ttft_s for r in seen) < 0.6
    assert 0.44 < min(r.e2e_s for r in seen) < 1.5
    assert 0 < sorted(r.tpot_s for r in seen)[1] < 0.2
    assert all(r.e2e_s == pytest.approx(r.ttft_s + 5 * r.tpot_s) for r in seen)


def test_a_chunk_of_several_tokens_counts_all_of_them():
    run, _ = run_on(FakePlan(ttft_s=0.01, itl_s=0.01, tokens_per_chunk=4), [Request((1,), 10)])
    assert [n for _, n in run.requests[0].chunks] == [4, 4, 2]
    assert run.requests[0].num_output_tokens == 10


def test_events_without_a_token_are_no_chunks():
    steps = (Step("role"), Step("comment"), Step("text", 0.05, "a"), Step("usage"), Step("text", 0.02, "b"))
    run, _ = run_on(FakePlan(replies=(Reply((*steps, Step("done")), newline="\r\n"),)), [Request((1,), 2)])
    (request,) = run.requests
    assert [n for _, n in request.chunks] == [1, 1]
    assert request.ttft_s > 0.04


def test_tokens_without_a_text_are_tokens():
    """Random weights write whole answers of them: ends of text, halves of characters."""
    steps = (Step("text", 0.05, ""), Step("text", 0.02, ""), Step("done"))
    run, _ = run_on(FakePlan(replies=(Reply(steps),)), [Request((1,), 2)])
    (request,) = run.requests
    assert [n for _, n in request.chunks] == [1, 1] and request.ttft_s > 0.04


@pytest.mark.slow
def test_requests_are_sent_at_their_arrivals_and_do_not_wait_for_each_other():
    requests = [Request((k,), 2, 0.05 * k) for k in range(6)]
    run, stats = run_on(FakePlan(ttft_s=0.6, itl_s=0.001), requests)
    assert stats["max_running"] == 6
    assert np.diff([r.scheduled_s for r in run.requests]) == pytest.approx([0.05] * 5)
    assert all(r.lag_s >= 0 for r in run.requests)


@pytest.mark.slow
@pytest.mark.parametrize("num_clients", [1, 3])
def test_a_closed_loop_keeps_exactly_its_clients_under_way(num_clients):
    requests = [Request((k,), 2, 9.0) for k in range(9)]  # arrival times are not used
    run, stats = run_on(FakePlan(ttft_s=0.05, itl_s=0.01), requests, num_clients=num_clients)
    # The server may still be closing an answer when its client already asks again.
    assert stats["max_running"] in (num_clients, num_clients + 1)
    assert len(run.requests) == 9 and {r.num_prompt_tokens for r in run.requests} == {1}
    changes = sorted([(r.sent_s, 1) for r in run.requests] + [(r.end_s, -1) for r in run.requests])
    assert max(np.cumsum([step for _, step in changes])) == num_clients
    assert run.window_s > 9 / num_clients * 0.06
    assert all(r.lag_s >= 0 for r in run.requests)


@pytest.mark.slow
def test_littles_law_holds_in_a_closed_loop():
    requests = [Request((k,), 2) for k in range(40)]
    run, _ = run_on(FakePlan(ttft_s=0.03, itl_s=0.01), requests, num_clients=4)
    mean_s = np.mean([r.e2e_s for r in run.requests])
    assert 2.0 < 40 / run.window_s * mean_s <= 4.01  # below 4 by what the client needs between two requests


def test_more_clients_than_requests_are_no_trouble_and_none_is_an_error():
    run, _ = run_on(FakePlan(ttft_s=0.01, itl_s=0.001), [Request((1,), 2)], num_clients=5)
    assert len(run.requests) == 1
    with pytest.raises(LabkitError, match="0 clients send nothing"):
        run_workload(None, [Request((1,), 2)], num_clients=0)


FAULTS = {
    "says 503": (Reply(status=503), "status 503"),
    "breaks in the stream": (Reply((Step("text", text="a"), Step("error", text="out of memory"))), "out of memory"),
    "cuts the connection": (Reply((Step("text", text="a"), Step("reset"))), "failed"),
    "just ends": (Reply((Step("text", text="a"), Step("text", text="b"))), "before \\[DONE\\]"),
    "makes too few tokens": (Reply((Step("text", text="a"), Step("done"))), "2 output tokens were asked for"),
    "makes too many tokens": (Reply((Step("text", text="a b c", num_tokens=3), Step("done"))), "tokens': 3"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_with_one_bad_answer_is_an_error(fault):
    reply, said = FAULTS[fault]
    good = Reply((Step("text", text="a"), Step("text", text="b"), Step("done")))
    with pytest.raises(LabkitError, match=said):
        run_on(FakePlan(replies=(good, reply)), [Request((1,), 2), Request((2,), 2, 0.05)])


class _Cut(tuple):
    """Hands over one token less than it has: what a server does that cuts the prompt."""

    def __iter__(self):
        return iter(list(super().__iter__())[1:])


def test_a_server_that_read_another_prompt_is_an_error():
    request = SimpleNamespace(prompt_ids=_Cut((1, 2, 3)), num_output_tokens=2, arrival_s=0.0)
    with pytest.raises(LabkitError, match="3 prompt and 2 output tokens were asked for, .*'prompt_tokens': 2"):
        run_on(FakePlan(ttft_s=0.0, itl_s=0.0), [request])


def test_no_request_is_an_error():
    with pytest.raises(LabkitError, match="no request"):
        run_workload(SimpleNamespace(base_url="http://127.0.0.1:9", model="x"), [])


def test_a_server_that_is_not_there_is_an_error():
    with pytest.raises(LabkitError, match="ConnectionRefusedError"):
        run_workload(SimpleNamespace(base_url="http://127.0.0.1:9", model="x"), [Request((1,), 2)])


def test_no_thread_is_left():
    before = threading.active_count()
    run_on(FakePlan(ttft_s=0.01, itl_s=0.001), [Request((k,), 2) for k in range(5)])
    time.sleep(0.05)
    assert threading.active_count() <= before


def make_run():
    a = ServedRequest(10.0, 10.5, ((11.0, 1), (12.0, 3), (14.0, 1)), 7, 5)
    b = ServedRequest(11.0, 11.0, ((14.5, 3),), 7, 3)
    return ServedRun((a, b), num_prefix_queries=200, num_prefix_hits=50)


def test_the_metrics_are_the_definitions_by_hand():
    run = make_run()
    a, b = run.requests
    assert (a.ttft_s, a.tpot_s, a.e2e_s, a.lag_s) == (0.5, 0.75, 3.5, 0.5)
    assert (b.ttft_s, b.tpot_s, b.e2e_s) == (3.5, 0.0, 3.5)
    assert ServedRequest(0.0, 0.0, ((1.0, 1),), 1, 1).tpot_s is None
    assert run.window_s == 4.0
    assert run.tok_per_s == 8 / 4
    assert run.middle_tok_per_s == 3 / 2  # from 11.5 s to 13.5 s only the chunk at 12 s
    assert run.hit_fraction == 0.25
    assert ServedRun(run.requests).hit_fraction is None


METRICS = """# HELP vllm:prefix_cache_queries_total Prefix cache queries, in terms of number of queried tokens.
vllm:prefix_cache_queries_total{engine="0",model_name="m"} 1024.0
vllm:prefix_cache_queries_created{engine="0",model_name="m"} 1.7e+09
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 256.0
vllm:external_prefix_cache_queries_total{engine="0",model_name="m"} 9.0
vllm:prefix_cache_hits_total{engine="1",model_name="m"} 4.0
"""


def test_the_prefix_counters_are_read_from_the_metrics_of_all_engines():
    assert load_prefix_counters(SimpleNamespace(load_metrics=lambda: METRICS)) == (1024, 260)


@pytest.mark.parametrize("text", [None, "", "fake:num_requests 3\n", METRICS.replace("vllm:prefix_cache_hits", "x")])
def test_a_server_without_such_counters_has_none(text):
    assert load_prefix_counters(SimpleNamespace(load_metrics=lambda: text)) is None


@pytest.mark.slow
def test_a_child_server_is_asked_for_its_memory():
    with run_fake(FakePlan(ttft_s=0.1, itl_s=0.001)) as server:
        run = run_workload(server, [Request((1, 2), 3)], memory_interval_s=0.02)
    assert run.peak_memory_bytes > 1_000_000
    assert run.num_prefix_queries is None


def test_the_peak_is_the_largest_reading_and_the_counters_are_differences():
    readings, counters = iter([5, 9, 7]), iter([(100, 10), (164, 42)])
    text = "vllm:prefix_cache_queries_total {}\nvllm:prefix_cache_hits_total {}\n"
    with run_fake_inside(FakePlan(ttft_s=0.2, itl_s=0.001)) as fake:
        server = SimpleNamespace(
            base_url=fake.base_url,
            model=fake.model,
            measure_memory=lambda: {"pss_bytes": next(readings, 3)},
            load_metrics=lambda: text.format(*next(counters)),
        )
        run = run_workload(server, [Request((1,), 2)], memory_interval_s=0.02)
    assert run.peak_memory_bytes == 9
    assert (run.num_prefix_queries, run.num_prefix_hits, run.hit_fraction) == (64, 32, 0.5)


def rates(server, num_runs):
    return [run_workload(server, [Request((k, number), 8) for k in range(3)]).tok_per_s for number in range(num_runs)]


@pytest.mark.slow
def test_one_server_under_two_names_gives_cannot_tell_in_nineteen_of_twenty_repeats():
    """The service times are seeded. A 95 % interval misses once in twenty repeats by its own definition."""
    verdicts = []
    for seed in range(20):
        with run_fake_inside(FakePlan(ttft_s=0.03, itl_s=0.002, cv=0.15, seed=seed)) as server:
            pairs = [rates(server, 2) for _ in range(6)]
        a, b = zip(*(pair if number % 2 else pair[::-1] for number, pair in enumerate(pairs)), strict=True)
        verdicts.append(compare(a, b, better="higher").verdict)
    assert verdicts.count("cannot tell") >= 19, verdicts


@pytest.mark.slow
def test_a_planted_slowdown_of_ten_percent_is_found():
    plans = [FakePlan(ttft_s=0.1, itl_s=0.01, cv=0.1, seed=3, slowdown=slowdown) for slowdown in (1.1, 1.0)]
    found = []
    for _ in range(3):  # the best of three: a busy machine adds to both
        with run_fake_inside(plans[0]) as slow, run_fake_inside(plans[1]) as fast:
            pairs = [(rates(slow, 1)[0], rates(fast, 1)[0]) for _ in range(8)]
        said = compare(*zip(*pairs, strict=True), better="higher")
        found.append((said.verdict, round(said.ratio, 3)))
        if said.verdict == "slower" and abs(said.ratio - 1 / 1.1) < 0.04:
            return
    pytest.fail(f"expected 'slower' near 0.909, got {found}")
