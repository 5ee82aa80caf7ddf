"""labkit.load.transport.ResponseReader: where an answer ends and what its body is, wherever the reads are cut."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.errors import LabkitError
from labkit.load.transport import ResponseReader


def chunked(*parts, trailer=b""):
    body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n" + trailer + b"\r\n"


ANSWERS = {
    "chunked": (chunked(b"abc", b"defg\r\n0\r\n\r\n", b"h"), b"abcdefg\r\n0\r\n\r\nh"),
    "trailer": (chunked(b"abc", trailer=b"X-Sum: 1\r\nY: 2\r\n"), b"abc"),
    "extension": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\n\r\n", b"abc"),
    "length": (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabcd", b"abcd"),
    "nothing": (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""),
    "continue": (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", b"x"),
}


@pytest.mark.parametrize("name", ANSWERS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_the_body_is_the_same_wherever_the_reads_are_cut(name, data):
    stream, body = ANSWERS[name]
    edges = [0, *sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12))), len(stream)]
    reader = ResponseReader()
    assert b"".join(reader.feed(stream[a:b]) for a, b in zip(edges, edges[1:], strict=False)) == body
    assert reader.is_complete and reader.status == 200 and reader.keeps_alive and not reader.has_rest


@pytest.mark.parametrize("name", ANSWERS)
def test_no_answer_is_complete_before_its_last_byte(name):
    stream, _ = ANSWERS[name]
    reader = ResponseReader()
    for k in range(len(stream) - 1):
        reader.feed(stream[k : k + 1])
        assert not reader.is_complete, stream[: k + 1]
    assert not reader.close()


def test_bytes_after_the_end_are_noticed():
    for stream, _ in ANSWERS.values():
        reader = ResponseReader()
        reader.feed(stream + b"HTTP/1.1 2")
        assert reader.is_complete and reader.has_rest


def test_a_body_without_length_ends_with_the_connection():
    reader = ResponseReader()
    assert reader.feed(b"HTTP/1.0 200 OK\r\n\r\nab") + reader.feed(b"c") == b"abc"
    assert not reader.is_complete and reader.close() and not reader.keeps_alive


@pytest.mark.parametrize(
    ("head", "keeps"),
    [
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n", False),
        (b"HTTP/1.0 200 OK\r\n", False),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n", True),
        (b"HTTP/1.1 503 Busy\r\nRetry-After: 2\r\n", True),
    ],
)
def test_whether_the_connection_is_kept(head, keeps):
    reader = ResponseReader()
    reader.feed(head + b"Content-Length: 0\r\n\r\n")
    assert reader.is_complete and reader.keeps_alive is keeps


@pytest.mark.parametrize(
    "stream",
    [
        b"SSH-2.0-OpenSSH",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 70_000,
        b"HTTP/1.1 200 OK\r\nX: " + b"1" * 70_000,
    ],
)
def test_what_is_not_http_is_an_error(stream):
    with pytest.raises(LabkitError):
        ResponseReader().feed(stream)
