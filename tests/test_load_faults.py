"""labkit.load on real sockets: everything that goes wrong with a server, and the run ends, keeps and says it."""

import asyncio
import contextlib
import errno
import json
import os
import resource
import signal
import socket
import threading
import time

import pytest

from labkit.errors import LabkitError
from labkit.load.client import Limits, Target, run_client
from labkit.load.loop import run_precise
from labkit.load.records import load_requests
from labkit.load.report import format_report, save_report
from labkit.load.run import run_load
from labkit.load.transport import HttpTransport
from labkit.servers.fake import FakePlan, FakeReply, FakeStep, run_fake_inside
from labkit.workload import draw_closed_plan, draw_open_plan

pytestmark = pytest.mark.slow  # servers

QUICK = FakePlan(ttft_s=0.01, itl_s=0.001)


def find_free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def few(num=6, **options):
    return draw_open_plan("constant", rate_per_s=100, num_requests=num, **{"prompt": 4, "output": 3} | options)


def send(url, plan=None, *, target=None, **options):
    """Send a plan with the bare client: (records by number)."""
    limits = options.pop("limits", Limits(request_s=60.0))
    run = run_precise(run_client(plan or few(), target or Target("fake"), HttpTransport(url), limits=limits, **options))
    return run.records


def reply(*steps, **options):
    return FakePlan(replies=(FakeReply(tuple(steps), **options),))


WORD = FakeStep("text", 0.005, "é")


def test_a_good_server_over_kept_connections():
    with run_fake_inside(QUICK) as server:
        records = send(server.base_url, draw_closed_plan(num_clients=3, requests_per_client=4, prompt=4, output=3))
        assert server.stats()["max_open"] == 3
    assert [record.cause for record in records] == [""] * 12
    assert {(r.num_prompt_tokens, r.num_output_tokens, r.source, r.num_coalesced) for r in records} <= {
        (4, 3, "chunk usage", k) for k in range(3)
    }
    assert sum(record.connect_s is not None for record in records) == 3  # one connection for each client


def test_chat_and_an_address_with_a_path():
    with run_fake_inside(QUICK) as server:
        records = send(server.base_url + "/v1/", target=Target("fake", "chat"))
        assert {record.cause for record in records} == {""}
        messages = server.stats()["prompts"][0]
    assert len(messages[0]["content"].split()) == 4


def test_a_port_without_a_server_refuses():
    records = send(f"http://127.0.0.1:{find_free_port()}")
    assert {record.cause for record in records} == {"refused"} and len(records) == 6


def test_a_host_that_does_not_exist_is_an_error_before_the_start():
    with pytest.raises(LabkitError, match="is not known"):
        send("http://no-such-host.invalid:9")
    with pytest.raises(LabkitError, match="is not the URL"):
        HttpTransport("ftp://127.0.0.1")


FAULTS = {
    "reset mid-stream": (reply(WORD, WORD, FakeStep("reset")), "reset"),
    "half a character at the cut": (reply(WORD, FakeStep("half", 0.005, "é"), FakeStep("reset")), "reset"),
    "429": (reply(status=429), "http 429"),
    "429 with Retry-After": (reply(status=429, retry_after_s=1.0), "http 429"),
    "503": (reply(status=503), "http 503"),
    "503 with Retry-After": (reply(status=503, retry_after_s=1.0), "http 503"),
    "200 with an error event": (reply(WORD, FakeStep("error", text="out of memory")), "error event"),
    "no [DONE]": (reply(WORD, WORD), "no end mark"),
    "never ends": (reply(WORD, FakeStep("stall")), "request deadline"),
    "no token": (reply(FakeStep("role"), FakeStep("done")), "empty"),
    "no JSON": (reply(WORD, FakeStep("raw", text="data: {oops\n\n"), FakeStep("done")), "bad event"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_has_its_cause_and_the_run_ends(fault):
    plan, cause = FAULTS[fault]
    limits = Limits(request_s=0.3 if cause == "request deadline" else 60.0)
    with run_fake_inside(plan) as server:
        records = send(server.base_url, limits=limits)
    assert [record.cause for record in records] == [cause] * 6
    if cause in ("reset", "error event", "request deadline", "no end mark"):
        assert all(record.chunks for record in records)  # what came is kept


def test_a_finish_reason_stands_in_for_done():
    end = FakeStep("raw", text='data: {"choices":[{"text":"b","finish_reason":"length"}]}\n\n')
    with run_fake_inside(reply(WORD, end)) as server:
        records = send(server.base_url)
    assert {(record.cause, record.notes[-1]) for record in records} == {("", "no [DONE]")} or all(
        record.cause == "" and "no [DONE]" in record.notes for record in records
    )


def test_a_chunk_of_a_megabyte():
    with run_fake_inside(reply(WORD, FakeStep("text", 0.01, "x" * 1_000_000), FakeStep("done"))) as server:
        records = send(server.base_url, few(2))
    assert [record.cause for record in records] == ["", ""]
    assert [len(record.chunks) for record in records] == [2, 2]


def test_ten_thousand_tiny_chunks():
    steps = tuple(FakeStep("text", 1e-5, "a") for _ in range(10_000))
    with run_fake_inside(reply(*steps, FakeStep("done"))) as server:
        (record,) = send(server.base_url, few(1), limits=Limits(request_s=60.0))
    assert (record.cause, record.num_output_tokens, len(record.chunks)) == ("", 10_000, 10_000)


def test_a_usage_that_is_missing_or_wrong_is_flagged():
    words = [FakeStep("text", 0.002, f" w{k}") for k in range(5)]
    bare = Target("fake", is_fixed_length=False, extra={"stream_options": {}})
    with run_fake_inside(reply(*words, FakeStep("done"))) as server:
        records = send(server.base_url, target=bare)
        counted = send(server.base_url, target=bare, count_tokens=lambda text: len(text.split()))
    assert {(r.source, r.num_output_tokens) for r in records} == {("chunks", 5)}
    assert {(r.source, r.num_output_tokens) for r in counted} == {("retokenized", 5)}
    wrong = FakeStep("raw", text='data: {"choices":[],"usage":{"prompt_tokens":4,"completion_tokens":2}}\n\n')
    with run_fake_inside(reply(*words, wrong, FakeStep("done"))) as server:
        records = send(server.base_url, target=bare)
    assert {record.notes for record in records} == {("usage says 2 output tokens, 5 chunks carried content",)}


@contextlib.contextmanager
def raw_server(talk):
    """A server of a few lines: `talk(connection)` runs in a thread for each connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    threading.Thread(target=run, args=(connection,), daemon=True).start()

        def run(connection):
            with contextlib.suppress(OSError), connection:
                talk(connection)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


EVENT = b'data: {"choices":[{"text":"a"}]}\n\n'
WHOLE = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"%x\r\n%b\r\n" % (len(EVENT), EVENT)
    + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
)


def read_request(connection, *, pause_s=0.0, size=65536):
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(size) or exit_thread()
    head, _, rest = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].split()[0])
    while len(rest) < length:
        time.sleep(pause_s)
        rest += connection.recv(size) or exit_thread()
    return rest


def exit_thread():
    raise OSError("the client left")


def test_a_slow_reader_gets_the_whole_request():
    """A server that takes a large request in small bites: the client neither fails nor blocks its other requests."""
    bodies = []

    def talk(connection):
        bodies.append(read_request(connection, pause_s=0.0005, size=8192))
        connection.sendall(WHOLE)

    with raw_server(talk) as url:
        plan = few(2, prompt=100_000)
        records = send(url, plan)
    assert [record.cause for record in records] == ["", ""]
    assert sorted(len(json.loads(body)["prompt"]) for body in bodies) == [100_000] * 2


def test_a_kept_connection_that_the_server_has_closed_is_replaced_once_and_noted():
    def talk(connection):
        read_request(connection)
        connection.sendall(WHOLE)
        read_request(connection)  # and now it hangs up without an answer

    with raw_server(talk) as url:
        records = send(url, draw_closed_plan(num_clients=1, requests_per_client=3, prompt=4, output=1))
    assert [record.cause for record in records] == ["", "", ""]
    noted = ["reconnected: the server had closed the connection" in record.notes for record in records]
    assert noted == [False, True, True]
    assert [record.num_retries for record in records] == [0, 0, 0]


def test_a_server_that_hangs_up_at_once_is_a_failure():
    with raw_server(lambda connection: read_request(connection)) as url:
        assert {record.cause for record in send(url)} == {"cut"}


def test_an_answer_byte_by_byte():
    def talk(connection):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            read_request(connection)
            for k in range(len(WHOLE)):
                connection.sendall(WHOLE[k : k + 1])

    with raw_server(talk) as url:
        records = send(url)
    assert [(record.cause, len(record.chunks)) for record in records] == [("", 1)] * 6


def test_a_server_that_dies_and_returns():
    """The server dies once ten requests were answered, returns once ten were refused; the run goes on through it."""
    port, causes, stop = find_free_port(), [], asyncio.Event()
    is_answered, is_refused = threading.Event(), threading.Event()

    def note(record):
        causes.append(record.cause)
        if causes.count("") >= 10:
            is_answered.set()
        if causes.count("refused") >= 10:
            is_refused.set()
        if is_refused.is_set() and causes[-10:] == [""] * 10:
            stop.set()

    plan = draw_closed_plan(num_clients=2, duration_s=600, prompt=4, output=3)
    client = threading.Thread(
        target=send, args=(f"http://127.0.0.1:{port}", plan), kwargs={"stop": stop, "on_record": note}
    )
    with run_fake_inside(QUICK, port=port):
        client.start()
        assert is_answered.wait(60)
    assert is_refused.wait(60)
    with run_fake_inside(QUICK, port=port):
        client.join(60)
    assert stop.is_set() and not client.is_alive()
    first, last = causes.index("refused"), len(causes) - causes[::-1].index("refused")
    assert causes[:10] == [""] * 10 and first >= 10 and causes[last : last + 10] == [""] * 10
    assert set(causes) <= {"", "refused", "reset", "cut", "interrupted"}


# Before the start


def test_the_check_stands_before_the_first_request(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, 256))
    with run_fake_inside(QUICK) as server:
        with pytest.raises(LabkitError, match="500 connections"):
            run_load(server.base_url, draw_closed_plan(num_clients=500, requests_per_client=1), model="fake")
        assert server.stats()["num_requests"] == 0


# The whole run


def load(server, plan=None, **options):
    return run_load(server.base_url, plan or few(20), model="fake", **options)


def test_a_wall_clock_that_jumps_changes_nothing(monkeypatch):
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 3600 * (time.monotonic() % 0.02 > 0.01))
    with run_fake_inside(QUICK) as server:
        result = load(server)
    # An hour back and forth every 10 ms.
    assert result.metrics.whole.latencies["ttft"].maximum < 1800 and result.metrics.whole.seconds < 1800


def test_a_full_disk_ends_the_log_and_not_the_run(monkeypatch, tmp_path):
    from labkit.load import records

    def full(path, lines):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(records, "append_lines", full)
    with run_fake_inside(QUICK) as server:
        result = load(server, folder=tmp_path)
    assert len(result.records) == 20 and {record.cause for record in result.records} == {""}
    assert not result.verdict.is_valid and "No space left" in format_report(result)


def test_the_journal_holds_every_request_and_a_half_line_damages_only_itself(tmp_path):
    with run_fake_inside(QUICK) as server:
        result = load(server, folder=tmp_path)
    path = tmp_path / "requests.jsonl"
    assert load_requests(path) == (result.records, 0)
    path.write_bytes(path.read_bytes()[:-20])
    records, num_damaged = load_requests(path)
    assert (len(records), num_damaged) == (19, 1)
    with pytest.raises(LabkitError, match="cannot be read"):
        load_requests(tmp_path / "missing.jsonl")


def test_ctrl_c_gives_the_report_of_what_was_done():
    plan = draw_open_plan("constant", rate_per_s=50, duration_s=60, prompt=4, output=3)
    with run_fake_inside(QUICK) as server:

        def interrupt():
            while server.stats()["num_requests"] < 20:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt, daemon=True).start()
        result = load(server, plan)
    assert result.end == "interrupted" and 20 <= len(result.records) < 3000
    assert not result.verdict.is_valid and "interrupted" in format_report(result)


def test_nothing_secret_is_in_a_report(tmp_path):
    key = "sk-verysecretkey123"
    bad = FakePlan(replies=(FakeReply((WORD, FakeStep("error", text=f"wrong key: Bearer {key}"))),))
    with run_fake_inside(bad) as server:
        url = server.base_url.replace("http://", "http://user:hunter2hunter2@")
        result = run_load(url, few(3), model="fake", headers={"Authorization": f"Bearer {key}"},
                          extra={"api_key": "abcdef123456", "top_k": 1}, folder=tmp_path)  # fmt: skip
        save_report(result, tmp_path)
    text = "".join(path.read_text() for path in tmp_path.iterdir()) + format_report(result)
    for secret in (key, "hunter2", "abcdef123456"):
        assert secret not in text
    assert result.records[0].cause == "error event" and '"top_k": 1' in text


def test_the_warm_up_is_not_measured_and_uses_other_prompts():
    warmup = draw_closed_plan(num_clients=1, requests_per_client=3, prompt=4, output=1, seed=99)
    with run_fake_inside(QUICK) as server:
        result = load(server, warmup=warmup)
        prompts = [tuple(prompt) for prompt in server.stats()["prompts"]]
    assert len(prompts) == len(set(prompts)) == 23 and len(result.records) == 20
    assert result.target["num_warmup"] == 3
    assert prompts[:3] == [tuple(warmup.chains[0].requests[k].prompt_ids) for k in range(3)]


def test_it_runs_inside_a_notebooks_own_loop():
    with run_fake_inside(QUICK) as server:

        async def cell():
            return load(server)

        assert {record.cause for record in asyncio.run(cell()).records} == {""}
