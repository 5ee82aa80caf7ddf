"""labkit.load: the cases 1 to 8 of the measuring contract, from the bytes of an answer to its record, exactly."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.errors import LabkitError
from labkit.load.records import RecordBuilder, RequestRecord
from labkit.load.transport import ResponseReader

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def build_record(reads, *, start_s=0.0, **options):
    """Return the record of one exchange from its reads: (time, raw bytes of the HTTP answer), in order.

    Options as in `RecordBuilder.finish`.
    """
    http = ResponseReader()
    builder = RecordBuilder(http, start_s=start_s)
    try:
        for at_s, piece in reads:
            if body := http.feed(piece):
                builder.feed([(at_s, body)])
        if not options.get("failure"):
            http.close()
    except LabkitError as error:
        options["failure"] = ("bad http", str(error))
    return builder.finish(**options)


def wrap(*parts):
    """Bytes of a body as HTTP chunks."""
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts if part)


def event(content, newline="\n"):
    data = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    return f"data: {data}{newline * 2}".encode()


def text(words, *, usage=None, chat=False):
    delta = {"delta": {"content": words}} if chat else {"text": words}
    counted = {"usage": {"completion_tokens": usage}} if usage else {}
    return {"choices": [{"index": 0, **delta, "finish_reason": None}]} | counted


DONE, PING = event("[DONE]"), b": ping\n\n"


def stream(*timed, end=True):
    """Reads of an answer: (seconds, bytes of the body) pairs; the head comes with the first, the end with the last."""
    reads = [(at_s, wrap(body)) for at_s, body in timed]
    reads[0] = (reads[0][0], HEAD + reads[0][1])
    if end:
        reads[-1] = (reads[-1][0], reads[-1][1] + END)
    return reads


def sixteen(**options):
    return [(round(0.1 + 0.02 * k, 3), event(text(f" w{k}", **options))) for k in range(16)]


def check_case_1(record):
    assert record.cause == "" and record.num_output_tokens == 16
    assert record.ttft_s == pytest.approx(0.1, abs=1e-12)
    assert record.icl_s == pytest.approx([0.02] * 15, abs=1e-12)
    assert record.itl_s == pytest.approx([0.02] * 15, abs=1e-12)
    assert record.tpot_s == pytest.approx(0.02, abs=1e-12)
    assert record.e2e_s == pytest.approx(0.4, abs=1e-12)


@pytest.mark.parametrize("chat", [False, True])
def test_case_1_sixteen_chunks(chat):
    check_case_1(build_record(stream(*sixteen(chat=chat), (0.4, DONE))))


def test_case_2_a_role_is_not_content():
    role = event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
    record = build_record(stream((0.005, role), *sixteen(chat=True), (0.4, DONE)))
    check_case_1(record)
    assert max(record.icl_s) < 0.05


def test_case_3_usage_done_and_comments_have_no_effect_on_times():
    usage = event({"choices": [], "usage": {"completion_tokens": 16, "prompt_tokens": 7}})
    timed = [(0.01, PING), *sixteen()[:8], (0.25, PING), *sixteen()[8:], (0.9, usage), (1.2, DONE), (1.3, PING)]
    record = build_record(stream(*timed))
    check_case_1(record)
    assert (record.source, record.num_prompt_tokens) == ("usage", 7)


ERROR = event({"error": {"message": "out of memory", "code": 500}})
FAILURES = {
    "no token": (stream((0.1, event(text(""))), (0.2, DONE)), None, "empty"),
    "error event": (stream(*sixteen()[:3], (0.2, ERROR), (0.3, DONE)), None, "error event"),
    "cut": (stream(*sixteen()[:3], end=False), None, "cut"),
    "reset": (stream(*sixteen()[:3], end=False), ("reset", "Connection reset by peer"), "reset"),
    "no end mark": (stream(*sixteen()), None, "no end mark"),
    "no JSON": (stream(*sixteen()[:3], (0.2, b"data: {oops\n\n"), (0.3, DONE)), None, "bad event"),
    "503": ([(0.1, b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy")], None, "http 503"),
    "no HTTP": ([(0.1, b"220 smtp ready\r\n")], None, "bad http"),
    "nothing": ([], ("refused", "connection refused"), "refused"),
    "deadline": (stream(*sixteen()[:3], end=False), ("request deadline", "no end after 5 s"), "request deadline"),
    "usage without content": (
        stream((0.1, event({"choices": [], "usage": {"completion_tokens": 5}})), (0.2, DONE)), None, "empty"
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        ('{"choices":[{"text":"a"}]}  ', ""),  # white space on both sides is no fault
        (' {"choices":[{"text":"a"}]}', ""),
        ('{"choices":[{"text":"a"}]} x', "bad event"),
        ('[{"text":"a"}]', "bad event"),
        ('"text"', "bad event"),
        ("", "bad event"),
        ('{"object":"error","message":"no"}', "error event"),
        ('{"error":"no"}', "error event"),
        ('{"error":null,"choices":[{"text":"a"}]}', ""),
    ],
)
def test_what_is_an_event_and_what_is_an_error(data, cause):
    record = build_record(stream((0.1, f"data: {data}\n\n".encode()), (0.2, DONE)))
    assert record.cause == cause and (record.detail[-2:] == "no") == (cause == "error event")


@pytest.mark.parametrize("name", FAILURES)
def test_case_4_a_failed_request_is_out_of_the_latencies_and_has_its_cause(name):
    reads, failure, cause = FAILURES[name]
    record = build_record(reads, failure=failure, end_s=1.0)
    assert record.cause == cause and not record.is_good
    assert (record.ttft_s, record.tpot_s, record.e2e_s, record.ttft_from_schedule_s) == (None,) * 4
    assert record.icl_s == () and record.itl_s == ()
    assert record.end_s == 1.0  # it did happen, for a while


def test_what_was_whole_before_the_connection_broke_is_a_success():
    assert build_record(stream(*sixteen(), (0.4, DONE), end=False), failure=("reset", "late")).cause == ""


WORDS = ["é", "漢字", "🙂", " plain", "\n"]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_case_5_the_reads_may_be_cut_anywhere(newline, data):
    """All bytes at one time: wherever they are cut, the same chunks, texts and tokens."""
    events = [event(text(word, usage=2 * k + 2), newline) for k, word in enumerate(WORDS)]
    body = b"".join([f": ping{newline * 2}".encode(), *events, event("[DONE]", newline)])
    cuts = sorted(data.draw(st.lists(st.integers(1, len(body) - 1), max_size=20, unique=True)))
    parts = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    raw = HEAD + wrap(*parts) + END
    edges = [0, *sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=20))), len(raw)]
    seen = []
    record = build_record(
        [(0.1, raw[a:b]) for a, b in zip(edges, edges[1:], strict=False) if a < b],
        count_tokens=lambda whole: seen.append(whole) or len(whole),
    )
    assert record.cause == "" and record.num_output_tokens == 10 and record.source == "chunk usage"
    assert [chunk.num_tokens for chunk in record.chunks] == [2] * 5
    assert record.num_coalesced == 4 and seen == []
    bare = build_record([(0.1, HEAD + wrap(*[event(text(word), newline) for word in WORDS], DONE) + END)],
                        count_tokens=lambda whole: seen.append(whole) or len(whole))  # fmt: skip
    assert seen[-1] == "".join(WORDS) and bare.num_output_tokens == len("".join(WORDS))


def test_case_6_reasoning_then_content():
    thinking = event({"choices": [{"delta": {"reasoning_content": "hm"}}]})
    record = build_record(stream((0.1, thinking), (0.2, event(text("so", chat=True))), (0.3, DONE)))
    assert (record.ttft_s, record.first_answer_s) == (0.1, 0.2)
    assert [chunk.kind for chunk in record.chunks] == ["reasoning", "text"]


def test_a_tool_call_is_content():
    call = event({"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "{}"}}]}}]})
    assert build_record(stream((0.1, call), (0.3, DONE))).ttft_s == 0.1


def test_case_7_without_usage_tokens_are_counted_again_or_chunks_are_counted():
    timed = [(0.1, event(text("a b"))), (0.2, event(text(" c"))), (0.3, event(text(" d e f"))), (0.3, DONE)]
    again = build_record(stream(*timed), count_tokens=lambda whole: len(whole.split()))
    assert (again.source, again.num_output_tokens) == ("retokenized", 6)
    assert [chunk.num_tokens for chunk in again.chunks] == [2, 1, 3]
    chunks = build_record(stream(*timed))
    assert (chunks.source, chunks.num_output_tokens) == ("chunks", 3)


def test_every_source_says_its_name():
    final = event({"choices": [], "usage": {"completion_tokens": 6, "prompt_tokens": 3}})
    running = stream((0.1, event(text("a", usage=2))), (0.2, event(text("b", usage=6))), (0.2, final), (0.2, DONE))
    assert build_record(running).source == "chunk usage"
    once = build_record(stream((0.1, event(text("a"))), (0.2, event(text("b"))), (0.2, final), (0.2, DONE)))
    assert (once.source, once.num_output_tokens, once.itl_s) == ("usage", 6, None)  # who got which token is unknown
    assert once.tpot_s == pytest.approx(0.1 / 5)


def test_a_chunk_of_several_tokens_shares_its_gap():
    reads = stream((1.0, event(text("a", usage=2))), (1.6, event(text("b", usage=5))), (1.6, DONE))
    record = build_record(reads, sent_s=0.5)
    assert record.itl_s == pytest.approx([0.0, 0.2, 0.2, 0.2])  # the second token of the first chunk gives 0
    assert record.icl_s == pytest.approx([0.6])
    assert record.tpot_s == pytest.approx(0.6 / 4)


def test_tokens_of_an_event_without_text_belong_to_the_next_chunk():
    reads = stream((0.1, event(text("a", usage=1))), (0.2, event(text("", usage=2))), (0.4, event(text("b", usage=3))),
                   (0.4, DONE))  # fmt: skip
    record = build_record(reads)
    assert [(chunk.at_s, chunk.num_tokens) for chunk in record.chunks] == [(0.1, 1), (0.4, 2)]


def test_one_token_has_no_tpot():
    record = build_record(stream((0.1, event(text("a"))), (0.2, DONE)))
    assert record.cause == "" and record.tpot_s is None and record.itl_s == () and record.e2e_s == 0.1


def test_a_usage_that_contradicts_the_text_is_noted():
    less = [*sixteen(), (0.4, event({"choices": [], "usage": {"completion_tokens": 3}})), (0.4, DONE)]
    record = build_record(stream(*less))
    assert (record.num_output_tokens, record.source) == (3, "usage")
    assert record.notes == ("usage says 3 output tokens, 16 chunks carried content",)
    none = [*sixteen(), (0.4, event({"choices": [], "usage": {"completion_tokens": 0}})), (0.4, DONE)]
    record = build_record(stream(*none))
    assert (record.num_output_tokens, record.source, len(record.notes)) == (16, "chunks", 1)


def test_a_prompt_or_a_length_that_was_not_asked_for_is_noted():
    usage = event({"choices": [], "usage": {"completion_tokens": 16, "prompt_tokens": 98}})
    reads = stream(*sixteen(), (0.4, usage), (0.4, DONE))
    assert build_record(reads, asked_prompt_tokens=99, asked_output_tokens=16).notes == (
        "asked for 99 prompt tokens, counted 98",  # over 1 %
    )
    assert build_record(reads, asked_prompt_tokens=98, asked_output_tokens=17).notes == (
        "asked for 17 output tokens, counted 16",  # over 5 %
    )
    assert build_record(reads, asked_prompt_tokens=98, asked_output_tokens=16).notes == ()


def test_an_answer_that_was_not_streamed_says_so():
    answer = {"choices": [{"text": "a b", "finish_reason": "length"}], "usage": {"completion_tokens": 2}}
    body = json.dumps(answer).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    record = build_record([(0.2, head), (0.5, body)])
    assert (record.ttft_s, record.num_output_tokens, record.notes) == (0.5, 2, ("not streamed: one chunk",))


def test_times_are_relative_to_the_start_of_the_run():
    reads = [(at_s + 1000.0, data) for at_s, data in stream(*sixteen(), (0.4, DONE))]
    record = build_record(reads, scheduled_s=2.0, sent_s=1002.5, end_s=1003.0, start_s=1000.0)
    assert (record.scheduled_s, record.sent_s, record.end_s, record.lag_s) == (2.0, 2.5, 3.0, 0.5)
    assert record.ttft_s == pytest.approx(0.1 - 2.5) and record.ttft_from_schedule_s == pytest.approx(0.1 - 2.0)


def test_a_record_comes_back_from_json():
    record = build_record(stream(*sixteen(usage=None), (0.4, DONE)), asked_output_tokens=20, number=7)
    assert RequestRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record
