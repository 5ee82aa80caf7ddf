"""labkit.servers.fake: every scripted thing arrives as scripted, on a real socket, and everything is counted."""

import http.client
import json
import socket
import statistics
import threading
import time
from dataclasses import asdict

import pytest

from labkit.servers.fake import FakePlan, load_stats, run_fake_inside
from labkit.servers.fake_script import Reply, Step


def connect(server):
    host, _, port = server.base_url.removeprefix("http://").partition(":")
    return http.client.HTTPConnection(host, int(port), timeout=20)


def post(server, *, path="/v1/completions", connection=None, **fields):
    connection = connection or connect(server)
    connection.request("POST", path, json.dumps({"prompt": [1, 2, 3], "max_tokens": 4, **fields}))
    return connection.getresponse()


def events(server, **fields):
    """[(seconds since the request, decoded event or text)] of a stream."""
    begin, found = time.monotonic(), []
    response = post(server, stream=True, **fields)
    for line in response:
        text = line.decode().strip()
        if text.startswith("data: ") and text != "data: [DONE]":
            found.append((time.monotonic() - begin, json.loads(text[6:])))
        elif text:
            found.append((time.monotonic() - begin, text))
    return found


def raw_bytes(server, **fields):
    """Everything that comes back on a plain socket, with the instant of each piece."""
    host, _, port = server.base_url.removeprefix("http://").partition(":")
    body = json.dumps({"prompt": "a b", "max_tokens": 2, "stream": True, **fields}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    pieces = []
    with socket.create_connection((host, int(port)), timeout=20) as sock:
        sock.sendall(head.encode() + body)
        while data := sock.recv(65536):
            pieces.append((time.monotonic(), data))
    return pieces


def test_sixteen_tokens_come_at_their_instants():
    """Case 1 of measurement.md, over a real socket: the best of three, because the host is shared."""
    with run_fake_inside(FakePlan(ttft_s=0.1, itl_s=0.02)) as server:
        errors = []
        for _ in range(3):
            times = [t for t, e in events(server, max_tokens=16) if isinstance(e, dict)]
            assert len(times) == 16
            errors.append(statistics.median(t - (0.1 + 0.02 * k) for k, t in enumerate(times)))
    assert -0.002 < min(errors) < 0.05, errors  # never early; late only by what the host adds


def test_a_late_event_does_not_delay_the_later_ones(monkeypatch):
    """The instants are added up from the arrival: a server that wakes 5 ms late is 5 ms late, not 5 ms a token."""
    from labkit.servers.fake_answer import Answer

    due, sleep_until = [], Answer._sleep_until

    async def wake_late(self, due_s):
        due.append(due_s)
        await sleep_until(self, due_s)
        time.sleep(0.005)

    monkeypatch.setattr(Answer, "_sleep_until", wake_late)
    with run_fake_inside(FakePlan(ttft_s=0.0, itl_s=0.01)) as server:
        events(server, max_tokens=20)
    assert [b - a for a, b in zip(due[:-2], due[1:-1], strict=True)] == pytest.approx([0.01] * 19)


def test_a_role_a_comment_and_usage_carry_no_content():
    steps = (Step("role", 0.0), Step("comment"), Step("text", 0.02, "hi", 2), Step("usage"), Step("done"))
    with run_fake_inside(FakePlan(replies=(Reply(steps),))) as server:
        found = [
            e for _, e in events(server, path="/v1/chat/completions", messages=[{"role": "user", "content": "a b"}])
        ]
    assert found[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert found[1] == ": ping"
    assert found[2]["choices"][0]["delta"] == {"content": "hi"}
    assert found[3]["choices"] == []
    assert found[3]["usage"] == {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}
    assert found[4] == "data: [DONE]"


def test_reasoning_comes_in_a_field_of_its_own():
    steps = (Step("reasoning", 0, "hm"), Step("text", 0, "yes"), Step("done"))
    with run_fake_inside(FakePlan(replies=(Reply(steps),))) as server:
        found = [e for _, e in events(server, path="/v1/chat/completions", messages=[])]
    assert [e["choices"][0]["delta"] for e in found[:2]] == [{"reasoning_content": "hm"}, {"content": "yes"}]


def test_usage_comes_only_when_asked_for():
    with run_fake_inside(FakePlan(ttft_s=0, itl_s=0)) as server:
        bare = [e for _, e in events(server)]
        options = {"include_usage": True, "continuous_usage_stats": True}
        asked = [e for _, e in events(server, stream_options=options)]
    assert not any("usage" in e for e in bare if isinstance(e, dict))
    assert [e["usage"]["completion_tokens"] for e in asked if isinstance(e, dict)] == [1, 2, 3, 4, 4]
    assert asked[-2]["choices"] == []


@pytest.mark.parametrize("retry_after_s", [None, 1.5])
@pytest.mark.parametrize("status", [429, 503])
def test_a_refusal_has_its_status_and_says_when_to_come_back_or_not(status, retry_after_s):
    with run_fake_inside(FakePlan(replies=(Reply(status=status, retry_after_s=retry_after_s), Reply()))) as server:
        connection = connect(server)
        refused = post(server, connection=connection)
        assert refused.status == status
        assert refused.getheader("Retry-After") == (None if retry_after_s is None else "1.5")
        assert json.loads(refused.read())["error"]["code"] == status
        assert post(server, connection=connection, max_tokens=1).status == 200  # the same connection goes on
        assert server.stats()["num_refused"] == 1


def test_an_error_event_comes_inside_a_stream_that_began_well():
    steps = (Step("text", 0, "a"), Step("error", 0, "out of memory"))
    with run_fake_inside(FakePlan(replies=(Reply(steps),))) as server:
        found = [e for _, e in events(server)]
    assert found[1]["error"]["message"] == "out of memory"


def test_a_reset_cuts_the_connection_in_the_middle_of_the_stream():
    steps = (Step("text", 0, "a"), Step("reset", 0.05))
    with run_fake_inside(FakePlan(replies=(Reply(steps),))) as server:
        with pytest.raises((ConnectionResetError, http.client.IncompleteRead)):
            post(server, stream=True).read()
        with pytest.raises(ConnectionResetError):  # RST, not an orderly end
            raw_bytes(server)
        assert server.stats()["num_completed"] == 0


def test_a_stall_writes_nothing_more_and_a_client_that_leaves_is_counted():
    steps = (Step("text", 0, "a"), Step("stall"))
    with run_fake_inside(FakePlan(replies=(Reply(steps),))) as server:
        connection = connect(server)
        response = post(server, connection=connection, stream=True)
        assert b'"a"' in response.readline()
        connection.sock.settimeout(0.3)
        response.readline()
        with pytest.raises(TimeoutError):
            response.readline()
        response.close()
        connection.close()
        wait_until(lambda: server.stats()["num_disconnected"] == 1)
        assert server.stats()["num_open"] == 0


def test_half_a_character_arrives_alone_and_the_other_half_with_the_next_step():
    steps = (Step("half", 0, "na\u00efve"), Step("text", 0.1, "!"), Step("done"))
    with run_fake_inside(FakePlan(replies=(Reply(steps),))) as server:
        pieces = raw_bytes(server)
        whole = b"".join(data for _, data in pieces)
        cut = whole.index("\u00ef".encode()[:1])
        first = b"".join(data for at, data in pieces if at < pieces[-1][0] - 0.05)
        assert first.rstrip().endswith("\u00ef".encode()[:1])
        assert whole[cut + 1 :].lstrip(b"\r\n0123456789abcdef").startswith("\u00ef".encode()[1:])
        assert [e["choices"][0]["text"] for _, e in events(server) if isinstance(e, dict)] == ["na\u00efve", "!"]


def test_half_a_character_and_then_a_reset_never_sends_the_other_half():
    with run_fake_inside(FakePlan(replies=(Reply((Step("half", 0, "\u00ef"), Step("reset", 0.05))),))) as server:
        with pytest.raises((ConnectionResetError, http.client.IncompleteRead)) as caught:
            post(server, stream=True).read()
        partial = getattr(caught.value, "partial", b"")
        assert "\u00ef".encode() not in partial


def test_carriage_returns_and_raw_bytes_are_sent_as_scripted():
    steps = (Step("text", 0, "a"), Step("raw", 0, "event: x\r\n\r\n"), Step("done"))
    with run_fake_inside(FakePlan(replies=(Reply(steps, newline="\r\n"),))) as server:
        whole = b"".join(data for _, data in raw_bytes(server))
    assert b"}\r\n\r\n" in whole
    assert b"event: x\r\n\r\n" in whole
    assert b"[DONE]\r\n\r\n" in whole


def test_a_script_is_chosen_by_the_number_of_the_request():
    plan = FakePlan(replies=(Reply((Step("text", 0, "one"),)), Reply((Step("text", 0, "two"),))))
    with run_fake_inside(plan) as server:
        texts = [events(server)[0][1]["choices"][0]["text"] for _ in range(3)]
    assert texts == ["one", "two", "one"]


def test_several_tokens_in_one_event_keep_the_total_time():
    one, three = FakePlan(), FakePlan(tokens_per_chunk=3)
    steps = [list(p.script(0, num_prompt_tokens=5, num_tokens=7)) for p in (one, three)]
    assert [s.num_tokens for s in steps[1] if s.kind == "text"] == [3, 3, 1]
    assert sum(s.delay_s for s in steps[0]) == pytest.approx(0.1 + 6 * 0.02)
    assert sum(s.delay_s for s in steps[1]) == pytest.approx(0.1 + 6 * 0.02)


@pytest.mark.slow
def test_service_times_have_the_stated_mean_and_variation_and_depend_on_seed_and_number_only():
    plan = FakePlan(ttft_s=0.2, itl_s=0.01, cv=0.5, seed=11)
    first = [next(plan.script(k, num_prompt_tokens=1, num_tokens=1)).delay_s for k in range(20_000)]
    assert statistics.mean(first) == pytest.approx(0.2, rel=0.02)
    assert statistics.stdev(first) / statistics.mean(first) == pytest.approx(0.5, rel=0.04)
    assert first[17] == next(plan.script(17, num_prompt_tokens=1, num_tokens=9)).delay_s
    assert (
        first[17] != next(FakePlan(ttft_s=0.2, cv=0.5, seed=12).script(17, num_prompt_tokens=1, num_tokens=1)).delay_s
    )


def test_a_longer_prompt_takes_longer_to_the_first_token():
    plan = FakePlan(ttft_s=0.2, prompt_token_s=0.001)
    assert next(plan.script(0, num_prompt_tokens=300, num_tokens=1)).delay_s == pytest.approx(0.5)


def test_a_slowdown_of_ten_percent_is_ten_percent_of_every_time():
    base = FakePlan(ttft_s=0.2, itl_s=0.01, prompt_token_s=0.001, cv=0.3, seed=2)
    slow = FakePlan(**{**asdict(base), "replies": (), "slowdown": 1.1})
    pairs = zip(*(p.script(4, num_prompt_tokens=30, num_tokens=20) for p in (base, slow)), strict=True)
    for fast_step, slow_step in pairs:
        assert slow_step.delay_s == pytest.approx(1.1 * fast_step.delay_s)


def test_requests_beyond_the_limit_wait_in_order_and_concurrency_is_counted():
    plan = FakePlan(ttft_s=0.1, itl_s=0, max_concurrency=3)
    with run_fake_inside(plan) as server:
        threads = [threading.Thread(target=lambda: post(server, max_tokens=1).read()) for _ in range(9)]
        begin = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took_s = time.monotonic() - begin
        stats = server.stats()
    assert stats["max_running"] == 3
    assert stats["max_open"] > 3
    assert stats["num_completed"] == 9
    assert took_s >= 0.299  # three waves of 100 ms


def test_every_prompt_and_arrival_is_kept():
    with run_fake_inside(FakePlan(ttft_s=0, itl_s=0)) as server:
        for prompt in ([5, 6], "some text here"):
            post(server, prompt=prompt, max_tokens=3).read()
        stats = load_stats(server)
    assert stats["prompts"] == [[5, 6], "some text here"]
    assert stats["num_prompt_tokens"] == 5
    assert stats["num_output_tokens"] == 6
    assert stats["arrivals_s"] == sorted(stats["arrivals_s"])


def test_a_whole_answer_has_text_and_usage():
    with run_fake_inside(FakePlan(ttft_s=0, itl_s=0)) as server:
        answer = json.loads(post(server, max_tokens=3).read())
        chat = json.loads(post(server, path="/v1/chat/completions", messages=[], max_tokens=1).read())
    assert answer["choices"][0]["text"] == " w0 w1 w2"
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
    assert chat["choices"][0]["message"]["content"] == " w0"


def test_a_slow_start_is_unhealthy_until_its_time():
    with run_fake_inside(FakePlan(start_delay_s=0.3)) as server:
        connection = connect(server)
        connection.request("GET", "/health")
        response = connection.getresponse()
        response.read()
        assert response.status == 503
        wait_until(lambda: get(server, "/health")[0] == 200)


def test_unknown_paths_and_broken_requests_are_answered():
    with run_fake_inside() as server:
        assert get(server, "/nothing")[0] == 404
        assert post(server, path="/v1/other").status == 404
        connection = connect(server)
        connection.request("POST", "/v1/completions", "{not json")
        assert connection.getresponse().status == 400
        assert json.loads(get(server, "/v1/models")[1])["data"][0]["id"] == "fake"
        assert "fake:num_requests 0" in get(server, "/metrics")[1]


def test_a_plan_survives_json_and_refuses_what_it_does_not_know():
    plan = FakePlan(replies=(Reply((Step("half", 0.5, "\u00ef", 2),), retry_after_s=2),), cv=0.2, max_concurrency=4)
    assert FakePlan.from_json(json.dumps(asdict(plan))) == plan
    with pytest.raises(TypeError):
        FakePlan.from_json('{"speed": 3}')
    with pytest.raises(ValueError, match="unknown"):
        Step("sing")


def test_nothing_listens_after_the_end():
    with run_fake_inside() as server:
        port = int(server.base_url.rpartition(":")[2])
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def get(server, path):
    connection = connect(server)
    connection.request("GET", path)
    response = connection.getresponse()
    return response.status, response.read().decode()


def wait_until(is_true, *, limit_s=10.0):
    deadline = time.monotonic() + limit_s
    while not is_true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
