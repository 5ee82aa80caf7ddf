"""labkit.load.run, report, sampling and verdict: what is checked, said and kept, without a server."""

import asyncio
import dataclasses
import json
import math
import resource
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from labkit.errors import LabkitError
from labkit.load.client import ClientHealth, ClientRun, Limits
from labkit.load.metrics import DEFINITIONS, estimate_metrics
from labkit.load.records import Chunk, RequestRecord
from labkit.load.report import ClientCeiling, LoadResult, format_report, save_report
from labkit.load.run import estimate_connections, find_ceiling, read_slo, run_load
from labkit.load.sampling import GpuReader, Sampling, read_counters, run_sampling
from labkit.load.transport import check_descriptors
from labkit.load.verdict import check_client
from labkit.results import save_record
from labkit.workload import draw_closed_plan, draw_open_plan


def test_too_few_descriptors_are_an_error_that_names_the_number(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, 1024))
    monkeypatch.setattr(resource, "setrlimit", lambda which, limits: raised.append(limits))
    raised = []
    check_descriptors(100)
    assert raised == []
    check_descriptors(900)
    assert raised == [(964, 1024)]  # the soft limit is raised
    with pytest.raises(
        LabkitError, match=r"1000 connections at once need 1064 open files, 1024 are allowed.*ulimit -n 1064"
    ):
        check_descriptors(1000)


def test_connections_that_may_be_needed():
    plan = draw_open_plan("constant", rate_per_s=10, duration_s=60)
    assert estimate_connections(plan, Limits(request_s=5.0)) == 51  # both ends count
    assert estimate_connections(plan, Limits(request_s=300.0)) == 600
    assert estimate_connections(plan.cap(7), Limits()) == 7
    assert estimate_connections(draw_closed_plan(num_clients=9, duration_s=1.0), Limits()) == 9


def test_no_module_of_the_engine_reads_the_wall_clock(root):
    # Locust's master and workers may be on several machines, which share no other clock.
    for path in set((root / "labkit" / "load").glob("*.py")) - {root / "labkit" / "load" / "locustfile.py"}:
        assert "time.time()" not in path.read_text() and "datetime.now" not in path.read_text(), path.name


def test_a_wrong_slo_or_api_is_an_error_before_the_start():
    with pytest.raises(LabkitError, match="ttfb=1.0 is not a valid SLO"):
        run_load(
            "http://127.0.0.1:9",
            draw_open_plan("constant", rate_per_s=100, num_requests=2),
            model="m",
            slo={"ttfb": 1.0},
        )
    with pytest.raises(LabkitError, match="is not an API"):
        run_load(
            "http://127.0.0.1:9",
            draw_open_plan("constant", rate_per_s=100, num_requests=2),
            model="m",
            api="embeddings",
        )


def test_slos_count_from_the_schedule_in_an_open_loop():
    assert read_slo("ttft=0.5, tpot=0.03", loop="open") == {"ttft_from_schedule": 0.5, "tpot": 0.03}
    assert read_slo("ttft=0.5,e2e=2", loop="closed") == {"ttft": 0.5, "e2e": 2.0}
    assert read_slo("", loop="open") == {}
    for wrong in ("ttft", "ttft=x", "ttft=0", "tbt=1", "ttft=-1"):
        with pytest.raises(LabkitError, match="is not a valid SLO"):
            read_slo(wrong, loop="open")


# Sampling

PAGE = """# HELP vllm:prefix_cache_queries_total Prefix cache queries, in terms of number of queried tokens.
vllm:prefix_cache_queries_total{engine="0",model_name="m"} 1024.0
vllm:prefix_cache_queries_created{engine="0",model_name="m"} 1.7e+09
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 256.0
vllm:external_prefix_cache_queries_total{engine="0",model_name="m"} 9.0
vllm:prefix_cache_hits_total{engine="1",model_name="m"} 4.0
vllm:num_preemptions_total{engine="0",model_name="m"} 2.0
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_waiting{engine="0",model_name="m"} 1.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 7.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.5
vllm:request_success_total{engine="0",finished_reason="stop",model_name="m"} 5.0
vllm:request_success_total{engine="0",finished_reason="length",model_name="m"} 6.0
"""


def test_counters_are_summed_over_engines():
    assert read_counters(PAGE) == {
        "prefix_queries": 1024, "prefix_hits": 260, "preemptions": 2, "requests": 11, "running": 3, "waiting": 1,
        "kv_usage": 0.5,
    }  # fmt: skip
    assert read_counters(None) == read_counters("fake:num_requests 3\n") == {}


class FakePage:
    """A transport whose /metrics counts its own readings."""

    def __init__(self, has_page=True):
        self.has_page, self.num = has_page, 0

    async def get(self, path):
        self.num += 1
        text = f"vllm:prefix_cache_queries_total {100 * self.num}\nvllm:prefix_cache_hits_total {25 * self.num}\n"
        return (200, text + f"vllm:num_requests_waiting {self.num}\n") if self.has_page else (404, "no")


def sample(page, gpu=None, *, seconds=1.0):
    from labkit.load.virtual import run_virtual

    async def main():
        is_over = asyncio.Event()
        asyncio.get_running_loop().call_later(seconds, is_over.set)
        return await run_sampling(page, is_over, start_s=0.0, gpu=gpu, interval_s=0.3)

    return run_virtual(main())


def test_the_server_is_read_before_through_and_after():
    found = sample(FakePage())
    assert found.before["prefix_queries"] == 100 and found.after["prefix_queries"] == 500
    assert [at_s for at_s, _ in found.samples] == pytest.approx([0.3, 0.6, 0.9])
    assert (found.count("prefix_queries"), found.count("prefix_hits"), found.hit_fraction) == (400, 100, 0.25)
    assert found.summarize("waiting") == (3.0, 4.0)
    assert found.count("preemptions") is None and found.summarize("kv_usage") is None


def test_a_server_without_counters_is_asked_once():
    page = FakePage(has_page=False)
    found = sample(page)
    assert page.num == 1 and found == Sampling({}, {}, ()) and found.hit_fraction is None


def test_counters_that_fell_are_unknown():
    found = Sampling({"prefix_queries": 9.0, "prefix_hits": 1.0}, {"prefix_queries": 3.0, "prefix_hits": 2.0}, ())
    assert found.count("prefix_queries") is None and found.hit_fraction is None


def test_a_gpu_is_read_as_far_as_its_driver_says(monkeypatch):
    def refuse(handle):
        raise RuntimeError("not supported")

    nvml = SimpleNamespace(
        nvmlInit=lambda: None, nvmlDeviceGetHandleByIndex=lambda index: "gpu",
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=87),
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=2**30), nvmlDeviceGetPowerUsage=refuse,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert GpuReader().read() == {"gpu_utilization": 0.87, "gpu_memory_bytes": 2**30}
    nvml.nvmlDeviceGetPowerUsage = lambda handle: 250_500  # NVML counts milliwatts
    assert GpuReader().read()["gpu_power_w"] == 250.5
    monkeypatch.setitem(sys.modules, "pynvml", None)  # not installed
    assert GpuReader().read() == {}


# ClientVerdict


def make_records(num=400, *, lag_s=0.0005, ttft_s=0.05, coalesced=0, **fields):
    return tuple(
        RequestRecord(k, k * 0.02, k * 0.02 + lag_s, k * 0.02 + ttft_s + 0.02, num_output_tokens=2,
                      source="chunk usage",
                      chunks=(Chunk(k * 0.02 + ttft_s, 1), Chunk(k * 0.02 + ttft_s + 0.02, 1)),
                      num_coalesced=int(k < coalesced), **fields)
        for k in range(num)
    )  # fmt: skip


def make_run(records=None, *, delays_s=(0.0002,) * 900, cpu_fraction=0.2, concurrency=None, end="complete"):
    records = make_records() if records is None else records
    window_s = records[-1].end_s
    expected = sum(record.end_s - record.sent_s for record in records if record.sent_s is not None) / window_s
    health = ClientHealth(tuple(delays_s), expected if concurrency is None else concurrency, cpu_fraction, window_s)
    return ClientRun(records, health, end, 0.0)


def test_a_good_client_is_valid_and_has_its_numbers():
    verdict = check_client(make_run())
    assert verdict.is_valid and str(verdict) == "valid" and verdict.remarks == ()
    assert all(value is not None for value in verdict.numbers.values())


INVALID = {
    "send lag, median: 2.50 ms": make_run(make_records(lag_s=0.0025)),
    "event-loop delay, median: 1.50 ms": make_run(delays_s=(0.0015,) * 900),
    "event-loop delay, 99th percentile: 300 ms": make_run(delays_s=(0.0,) * 880 + (0.3,) * 20),
    "processor time of the client's thread over wall time: 95.0%": make_run(cpu_fraction=0.95),
    "requests in flight, counted against": make_run(concurrency=9.0),
    "chunks that came in one read": make_run(make_records(coalesced=200)),
    "cut short \\(interrupted\\)": make_run(end="interrupted"),
    "no request succeeded": make_run(make_records(cause="http 503")),
    "1 requests were never sent": make_run(
        (*make_records(399), dataclasses.replace(make_records()[-1], sent_s=None, cause="run deadline"))
    ),
}


@pytest.mark.parametrize("said", INVALID)
def test_every_bound_says_why(said):
    verdict = check_client(INVALID[said])
    assert not verdict.is_valid
    import re

    assert re.search(said, str(verdict)) and str(verdict).startswith("INVALID: ")


def test_a_late_tail_is_judged_beside_the_waits_that_are_measured():
    """20 ms of lag at p99 spoil a TTFT of 50 ms, but not one of 3 s."""
    late = [
        dataclasses.replace(r, sent_s=r.scheduled_s + 0.02) if k % 40 == 0 else r for k, r in enumerate(make_records())
    ]
    assert "99th percentile" in str(check_client(make_run(tuple(late))))
    slow = [dataclasses.replace(r, sent_s=r.scheduled_s + 0.02) if k % 40 == 0 else r
            for k, r in enumerate(make_records(ttft_s=3.0))]  # fmt: skip
    assert check_client(make_run(tuple(slow))).is_valid


def test_the_worst_worker_decides():
    assert not check_client([make_run(), make_run(cpu_fraction=0.95)]).is_valid


def test_remarks_name_poor_counts_and_wrong_lengths():
    notes = ("asked for 9 output tokens, counted 2",)
    remarks = " ".join(check_client(make_run(make_records(notes=notes, num_retries=1))).remarks)
    assert "another number of tokens" in remarks and "sent again" in remarks
    poor = tuple(dataclasses.replace(record, source="chunks") for record in make_records())
    assert "token counts come from chunks" in " ".join(check_client(make_run(poor)).remarks)


# Report


def make_result(records=None, **fields):
    records = records or make_records()
    slo = {"ttft_from_schedule": 0.06, "tpot": 0.03}
    plan = draw_open_plan("constant", rate_per_s=50, num_requests=len(records))
    given = {
        "target": {"url": "http://h"}, "plan": plan.to_dict(), "records": records,
        "metrics": estimate_metrics(records, slo=slo), "verdict": check_client(make_run(records)), "slo": slo,
        "end": "complete",
    }  # fmt: skip
    return LoadResult(**{**given, **fields})


def test_a_report_says_everything_and_its_json_is_plain(tmp_path):
    result = make_result(
        sampling=sample(FakePage()),
        ceiling=ClientCeiling(2000.0, 40_000.0, "2026-11-21T00:00:00+00:00"),
        price_usd_per_hour=2.0,
    )
    text = format_report(result)
    for said in (
        "client: valid", "open loop, constant; 400 requests", "2.5% of this client's ceiling here",
        "prefix-cache hits 25.0%",
        "GPU: none", "400 good of 400", "per million output tokens at $2 per hour, at this SLO", "steady window",
        "n too small" if result.metrics.whole.latencies["ttft"].n < 299 else "95 % interval", *DEFINITIONS,
    ):  # fmt: skip
        assert said in text, said
    content = json.loads((save_report(result, tmp_path / "run") / "report.json").read_text())
    assert content == json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert content["gpu"] == "none" and content["server"]["hit_fraction"] == 0.25 and content["is_valid"] is True
    assert content["sampled"]["waiting"] == {"mean": 3.0, "max": 4.0}
    cost = 2.0 / (content["metrics"]["steady"]["tok_per_s"] * 3600) * 1e6
    assert content["usd_per_million_output_tokens"] == pytest.approx(cost)
    assert len((tmp_path / "run" / "requests.jsonl").read_text().splitlines()) == 400


def test_no_number_is_shown_if_n_is_too_small():
    text = format_report(make_result(make_records(58)))
    row = next(line for line in text.splitlines() if line.startswith("ttft "))
    assert row.count("n too small") == 2  # p95 and p99; p90 needs 29


def test_a_run_of_failures_has_a_report():
    text = format_report(make_result(make_records(20, cause="http 503")))
    assert "20 of 20 (20 http 503)" in text and "no steady window" in text
    assert not math.isnan(make_result(make_records(20, cause="http 503")).metrics.whole.tok_per_s)


def test_a_report_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LabkitError, match="could not be written"):
        save_report(make_result(), tmp_path / "file" / "run")


def test_the_ceiling_of_this_machine_is_found():
    assert find_ceiling() is None
    for rate in (900.0, 1000.0):
        save_record("33", "bench-client", samples={"req_per_s": [rate], "num_chunks_per_s": [16 * rate]})
    found = find_ceiling()
    assert (found.request_per_s, found.chunk_per_s) == (1000.0, 16_000.0)
    part = estimate_metrics(make_records()).whole
    assert found.measure_share(part, 800) == pytest.approx(400 / part.seconds / 1000)
    assert found.measure_share(part, 64_000) == pytest.approx(64_000 / part.seconds / 16_000)
    assert np.isfinite(part.tok_per_s)
