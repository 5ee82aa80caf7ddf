"""labkit.load.sse against a slow and obvious parser: any bytes, any split."""

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from labkit.load.sse import SseParser

PIECES = st.sampled_from(
    [b"data: ", b"data:", b"data", b"event: x", b"id: 1", b"retry: 5", b": ping", b":", b" ", b"\n", b"\r", b"\r\n",
     b"\n\n", b"\r\n\r\n", b"\xef\xbb\xbf", "é".encode(), "漢".encode(), "🙂".encode(), b"\xff", b"\xc3",
     b"{}", b"[DONE]", b"x"]
)  # fmt: skip
LINES = st.sampled_from([b"", b"data: a", b"data: b", b"data:", b"event: e", b": c", "data: é".encode()])
ENDS = st.sampled_from([b"\n", b"\r", b"\r\n"])
WHOLE_LINES = st.lists(st.tuples(LINES, ENDS).map(b"".join), max_size=12).map(b"".join)
STREAMS = WHOLE_LINES | st.lists(st.one_of(PIECES, st.binary(max_size=4)), max_size=40).map(b"".join)


def read_slowly(stream):
    """Return the data of all events of a whole stream, by the text of the standard."""
    stream = stream.removeprefix(b"\xef\xbb\xbf")
    lines = re.split(b"\r\n|\n|\r", stream)[:-1]  # what follows the last line end is not a line yet
    events, data = [], None
    for line in lines:
        if line == b"":
            if data is not None:
                events.append(data.decode("utf-8", "replace"))
            data = None
        elif not line.startswith(b":"):
            name, _, value = line.partition(b":")
            if value.startswith(b" "):
                value = value[1:]
            if name == b"data":
                data = value if data is None else data + b"\n" + value
    return events


def feed(stream, cuts=()):
    parser, edges = SseParser(), [0, *sorted(cuts), len(stream)]
    return [e for a, b in zip(edges, edges[1:], strict=False) for e in parser.feed(stream[a:b])]


@settings(max_examples=150, deadline=None)
@given(STREAMS, st.data())
@example(b"data: a\r", None)
@example(b"\xef\xbb\xbfdata: a\r\n\r\n", None)
def test_it_equals_the_slow_parser_wherever_the_stream_is_cut(stream, data):
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8)) if data else range(len(stream))
    # At the very end a CR is a line end already; the slow parser sees the same, since it has the whole stream.
    assert feed(stream, cuts) == read_slowly(stream)


STREAM = (
    ': hello\r\n\ndata: {"a": "é🙂"}\r\n\r\nevent: end\r\ndata: one\r\ndata:two\r\n\r\ndata\r\rdata: [DONE]\n\n'
).encode()
EVENTS = ['{"a": "é🙂"}', "one\ntwo", "", "[DONE]"]


def test_every_single_cut_gives_the_events_of_the_whole_stream():
    assert feed(STREAM) == EVENTS
    for cut in range(len(STREAM) + 1):
        assert feed(STREAM, [cut]) == EVENTS, cut
    assert feed(STREAM, range(len(STREAM))) == EVENTS  # byte by byte


def test_an_event_ends_with_its_blank_line_and_not_with_the_byte_after_it():
    parser = SseParser()
    assert parser.feed(b"data: a\r\n\r") == ["a"]  # a CR ends the line, whether or not an LF follows
    assert parser.feed(b"\ndata: b\n\n") == ["b"]


def test_an_event_that_the_end_cuts_off_is_dropped_and_seen():
    parser = SseParser()
    assert parser.feed(b"data: a\n") == []
    assert parser.feed(b"\n") == ["a"]


@pytest.mark.parametrize("size", [1, 4096])
def test_a_line_of_a_megabyte_comes_through(size):
    stream = b"data: " + b"x" * 1_000_000 + b"\n\n"
    parser = SseParser()
    step = max(size, 997)
    events = [e for k in range(0, len(stream), step) for e in parser.feed(stream[k : k + step])]
    assert events == ["x" * 1_000_000]
