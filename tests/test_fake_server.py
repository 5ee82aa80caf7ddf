"""labkit.servers.fake: everything arrives as scripted, on a real socket, and everything is counted."""

import http.client
import json
import socket
import statistics
import time
from dataclasses import asdict

import pytest

from labkit.servers.fake import FakePlan, FakeReply, FakeStep, ReplyPlayer, run_fake_inside


def connect(server):
    host, _, port = server.base_url.removeprefix("http://").partition(":")
    return http.client.HTTPConnection(host, int(port), timeout=300)


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
    """Everything that comes back on a plain socket, with its HTTP framing."""
    host, _, port = server.base_url.removeprefix("http://").partition(":")
    body = json.dumps({"prompt": "a b", "max_tokens": 2, "stream": True, **fields}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    found = b""
    with socket.create_connection((host, int(port)), timeout=300) as sock:
        sock.sendall(head.encode() + body)
        while data := sock.recv(65536):
            found += data
    return found


def chunks(data):
    """The HTTP chunks of a raw answer."""
    _, _, rest = data.partition(b"\r\n\r\n")
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        yield rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]


@pytest.mark.parametrize("late_s", [0.0, 0.005])
def test_sixteen_tokens_are_due_at_their_times_and_never_early(monkeypatch, late_s):
    """Case 1 of measurement.md. Times are added up from the arrival: a server that wakes up late delays no later event.

    How late the events reach a client is a property of the machine: a benchmark measures it.
    """
    due, sleep_until = [], ReplyPlayer._sleep_until

    async def wake_up_late(self, due_s):
        due.append(due_s)
        await sleep_until(self, due_s)
        time.sleep(late_s)

    monkeypatch.setattr(ReplyPlayer, "_sleep_until", wake_up_late)
    with run_fake_inside(FakePlan(ttft_s=0.1, itl_s=0.02)) as server:
        times = [t for t, e in events(server, max_tokens=16) if isinstance(e, dict)]
        stats = server.stats()
    schedule = [0.1 + 0.02 * k for k in range(16)]
    assert [at - stats["arrivals_s"][0] for at in due[:16]] == pytest.approx(schedule)
    assert len(times) == len(stats["lateness_s"]) == 16
    assert all(t >= at for t, at in zip(times, schedule, strict=True))
    assert min(stats["lateness_s"]) >= late_s


def test_a_role_a_comment_and_usage_carry_no_content():
    steps = (
        FakeStep("role", 0.0),
        FakeStep("comment"),
        FakeStep("text", 0.02, "hi", 2),
        FakeStep("usage"),
        FakeStep("done"),
    )
    with run_fake_inside(FakePlan(replies=(FakeReply(steps),))) as server:
        found = [
            e for _, e in events(server, path="/v1/chat/completions", messages=[{"role": "user", "content": "a b"}])
        ]
    assert found[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert found[1] == ": ping"
    assert found[2]["choices"][0]["delta"] == {"content": "hi"}
    assert found[3]["choices"] == []
    assert found[3]["usage"] == {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}
    assert found[4] == "data: [DONE]"


def test_reasoning_has_its_own_field():
    steps = (FakeStep("reasoning", 0, "hm"), FakeStep("text", 0, "yes"), FakeStep("done"))
    with run_fake_inside(FakePlan(replies=(FakeReply(steps),))) as server:
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
def test_a_refusal_has_its_status_and_retry_after_only_where_planned(status, retry_after_s):
    with run_fake_inside(
        FakePlan(replies=(FakeReply(status=status, retry_after_s=retry_after_s), FakeReply()))
    ) as server:
        connection = connect(server)
        refused = post(server, connection=connection)
        assert refused.status == status
        assert refused.getheader("Retry-After") == (None if retry_after_s is None else "1.5")
        assert json.loads(refused.read())["error"]["code"] == status
        assert post(server, connection=connection, max_tokens=1).status == 200  # the same connection goes on
        assert server.stats()["num_refused"] == 1


def test_an_error_event_comes_inside_a_stream_that_began_with_200():
    steps = (FakeStep("text", 0, "a"), FakeStep("error", 0, "out of memory"))
    with run_fake_inside(FakePlan(replies=(FakeReply(steps),))) as server:
        found = [e for _, e in events(server)]
    assert found[1]["error"]["message"] == "out of memory"


def test_a_reset_cuts_the_connection_in_the_middle_of_the_stream():
    steps = (FakeStep("text", 0, "a"), FakeStep("reset", 0.05))
    with run_fake_inside(FakePlan(replies=(FakeReply(steps),))) as server:
        with pytest.raises((ConnectionResetError, http.client.IncompleteRead)):
            post(server, stream=True).read()
        with pytest.raises(ConnectionResetError):  # RST, not an orderly end
            raw_bytes(server)
        assert server.stats()["num_completed"] == 0


def test_a_stall_writes_nothing_more_and_a_client_that_leaves_is_counted():
    steps = (FakeStep("text", 0, "a"), FakeStep("stall"))
    with run_fake_inside(FakePlan(replies=(FakeReply(steps),))) as server:
        connection = connect(server)
        response = post(server, connection=connection, stream=True)
        assert b'"a"' in response.readline()
        response.readline()
        connection.sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            response.readline()
        response.close()
        connection.close()
        wait_until(lambda: server.stats()["num_disconnected"] == 1 and server.stats()["num_open"] == 0)


def test_half_a_character_is_sent_alone_and_the_other_half_with_the_next_step():
    steps = (FakeStep("half", 0, "na\u00efve"), FakeStep("text", 0, "!"), FakeStep("done"))
    with run_fake_inside(FakePlan(replies=(FakeReply(steps),))) as server:
        half, rest, event, *_ = chunks(raw_bytes(server))
        assert half.endswith(b"na" + "\u00ef".encode()[:1])
        assert rest.startswith("\u00ef".encode()[1:] + b"ve")
        assert b'"!"' in event
        assert [e["choices"][0]["text"] for _, e in events(server) if isinstance(e, dict)] == ["na\u00efve", "!"]


def test_half_a_character_and_then_a_reset_never_sends_the_other_half():
    with run_fake_inside(
        FakePlan(replies=(FakeReply((FakeStep("half", 0, "\u00ef"), FakeStep("reset", 0.05))),))
    ) as server:
        with pytest.raises((ConnectionResetError, http.client.IncompleteRead)) as caught:
            post(server, stream=True).read()
        partial = getattr(caught.value, "partial", b"")
        assert "\u00ef".encode() not in partial


def test_carriage_returns_and_raw_bytes_are_sent_as_scripted():
    steps = (FakeStep("text", 0, "a"), FakeStep("raw", 0, "event: x\r\n\r\n"), FakeStep("done"))
    with run_fake_inside(FakePlan(replies=(FakeReply(steps, newline="\r\n"),))) as server:
        whole = raw_bytes(server)
    assert b"}\r\n\r\n" in whole
    assert b"event: x\r\n\r\n" in whole
    assert b"[DONE]\r\n\r\n" in whole


def test_a_script_is_chosen_by_the_number_of_the_request():
    plan = FakePlan(replies=(FakeReply((FakeStep("text", 0, "one"),)), FakeReply((FakeStep("text", 0, "two"),))))
    with run_fake_inside(plan) as server:
        texts = [events(server)[0][1]["choices"][0]["text"] for _ in range(3)]
    assert texts == ["one", "two", "one"]


def test_several_tokens_in_one_event_keep_the_total_time():
    one, three = FakePlan(), FakePlan(tokens_per_chunk=3)
    steps = [list(p.draw_steps(0, num_prompt_tokens=5, num_tokens=7)) for p in (one, three)]
    assert [s.num_tokens for s in steps[1] if s.kind == "text"] == [3, 3, 1]
    assert sum(s.delay_s for s in steps[0]) == pytest.approx(0.1 + 6 * 0.02)
    assert sum(s.delay_s for s in steps[1]) == pytest.approx(0.1 + 6 * 0.02)


@pytest.mark.slow
def test_service_times_have_the_stated_mean_and_variation_and_depend_on_seed_and_number_only():
    plan = FakePlan(ttft_s=0.2, itl_s=0.01, cv=0.5, seed=11)
    first = [next(plan.draw_steps(k, num_prompt_tokens=1, num_tokens=1)).delay_s for k in range(20_000)]
    assert statistics.mean(first) == pytest.approx(0.2, rel=0.02)
    assert statistics.stdev(first) / statistics.mean(first) == pytest.approx(0.5, rel=0.04)
    assert first[17] == next(plan.draw_steps(17, num_prompt_tokens=1, num_tokens=9)).delay_s
    assert (
        first[17]
        != next(FakePlan(ttft_s=0.2, cv=0.5, seed=12).draw_steps(17, num_prompt_tokens=1, num_tokens=1)).delay_s
    )


def test_a_longer_prompt_delays_the_first_token():
    plan = FakePlan(ttft_s=0.2, prompt_token_s=0.001)
    assert next(plan.draw_steps(0, num_prompt_tokens=300, num_tokens=1)).delay_s == pytest.approx(0.5)


def test_a_slowdown_of_ten_percent_is_ten_percent_of_every_time():
    base = FakePlan(ttft_s=0.2, itl_s=0.01, prompt_token_s=0.001, cv=0.3, seed=2)
    slow = FakePlan(**{**asdict(base), "replies": (), "slowdown": 1.1})
    pairs = zip(*(p.draw_steps(4, num_prompt_tokens=30, num_tokens=20) for p in (base, slow)), strict=True)
    for fast_step, slow_step in pairs:
        assert slow_step.delay_s == pytest.approx(1.1 * fast_step.delay_s)


def test_requests_beyond_the_limit_wait_and_concurrency_is_counted():
    """Three requests take every place until their clients leave; six more wait until one of the three leaves."""
    held, short = FakeReply((FakeStep("stall"),)), FakeReply((FakeStep("text", 0, "x"), FakeStep("done")))
    plan = FakePlan(replies=(held,) * 3 + (short,) * 6, max_concurrency=3)
    with run_fake_inside(plan) as server:
        connections = [connect(server) for _ in range(9)]
        for number, connection in enumerate(connections):
            connection.request("POST", "/v1/completions", json.dumps({"prompt": [number], "stream": True}))
            wait_until(lambda number=number: server.stats()["num_open"] == number + 1)
        stats = server.stats()
        assert (stats["num_running"], stats["num_completed"]) == (3, 0)
        connections[0].close()  # the six go through this place one after the other, in the order of their arrival
        for connection in connections[3:]:
            assert connection.getresponse().read().endswith(b"[DONE]\n\n")
        wait_until(lambda: server.stats()["num_open"] == 2)
        stats = server.stats()
    assert (stats["max_running"], stats["max_open"], stats["num_completed"]) == (3, 9, 6)
    assert stats["num_disconnected"] == 1


def test_every_prompt_and_arrival_is_kept():
    with run_fake_inside(FakePlan(ttft_s=0, itl_s=0)) as server:
        for prompt in ([5, 6], "some text here"):
            post(server, prompt=prompt, max_tokens=3).read()
        stats = server.stats()
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
    with run_fake_inside(FakePlan(start_delay_s=3600)) as server:
        assert get(server, "/health")[0] == 503
        server._start_s -= 3600  # an hour passes
        assert get(server, "/health")[0] == 200


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
    plan = FakePlan(
        replies=(FakeReply((FakeStep("half", 0.5, "\u00ef", 2),), retry_after_s=2),), cv=0.2, max_concurrency=4
    )
    assert FakePlan.from_json(json.dumps(asdict(plan))) == plan
    with pytest.raises(TypeError):
        FakePlan.from_json('{"speed": 3}')
    with pytest.raises(ValueError, match="unknown"):
        FakeStep("sing")


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


def wait_until(is_true, *, limit_s=300.0):
    deadline = time.monotonic() + limit_s
    while not is_true():
        assert time.monotonic() < deadline, f"it did not happen in {limit_s:.0f} s"
        time.sleep(0.01)
