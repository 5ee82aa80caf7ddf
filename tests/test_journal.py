"""The journal: whole lines or none, one writer at a time, damage that stays in its line."""

import errno
import fcntl
import os
import re
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit import journal
from labkit.journal import append_lines, expand_path, format_line, load_lines

WRITE = os.write
VALUES = st.integers() | st.text() | st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False)


def read(path):
    return [content for _, content in load_lines(path).entries]


def test_lines_come_back_in_order_with_their_numbers(tmp_path):
    path = tmp_path / "new" / "folder" / "a.jsonl"
    append_lines(path, ['{"a":1}', '{"a":2}'])
    append_lines(path, ['{"a":3}'])
    assert load_lines(path).entries == ((1, {"a": 1}), (2, {"a": 2}), (3, {"a": 3}))
    assert path.read_bytes().count(b"\n") == 3


def test_appending_no_lines_creates_no_file(tmp_path):
    append_lines(tmp_path / "a.jsonl", [])
    assert list(tmp_path.iterdir()) == []


def test_lines_are_written_with_one_call_and_are_on_the_disk_when_it_returns(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(journal.os, "write", lambda descriptor, data: (calls.append(data), WRITE(descriptor, data))[1])
    sync = os.fsync
    monkeypatch.setattr(journal.os, "fsync", lambda descriptor: (calls.append("sync"), sync(descriptor)))
    append_lines(tmp_path / "a.jsonl", ["{}", "{}"])
    assert calls[:2] == [b"{}\n{}\n", "sync"]
    assert calls[2:] == ["sync"], "a new file's folder is synced too"


@pytest.mark.parametrize("num_bytes", [None, 0, 3, 11])
def test_several_lines_are_written_all_or_none(tmp_path, monkeypatch, num_bytes):
    path = tmp_path / "a.jsonl"
    append_lines(path, ['{"a":0}'])

    def limited(descriptor, data):
        if num_bytes is None:
            raise OSError(errno.ENOSPC, "full")
        return WRITE(descriptor, data[:num_bytes])

    with monkeypatch.context() as patch:
        patch.setattr(journal.os, "write", limited)
        with pytest.raises(OSError, match="full|could be written"):
            append_lines(path, ['{"a":1}', '{"a":2}'])
    assert path.read_text() == '{"a":0}\n'


@pytest.mark.slow
@pytest.mark.parametrize("action", [lambda path: append_lines(path, ["{}"]), load_lines])
def test_a_writer_and_a_reader_wait_while_another_process_writes(tmp_path, action):
    path = tmp_path / "a.jsonl"
    append_lines(path, ["{}"])
    worker = threading.Thread(target=action, args=(path,))
    with open(path, "ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        worker.start()
        worker.join(timeout=0.3)
        assert worker.is_alive()
        assert path.read_text() == "{}\n"
    worker.join(timeout=30)
    assert not worker.is_alive()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_written_and_read_without_them(tmp_path, monkeypatch, number):
    def refuse(descriptor, how):
        raise OSError(number, "no locks here")

    monkeypatch.setattr(journal.fcntl, "flock", refuse)
    append_lines(tmp_path / "a.jsonl", ["{}"])
    assert read(tmp_path / "a.jsonl") == [{}]


def test_a_lock_that_fails_for_another_reason_is_an_error(tmp_path, monkeypatch):
    def refuse(descriptor, how):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(journal.fcntl, "flock", refuse)
    with pytest.raises(OSError, match="broken"):
        append_lines(tmp_path / "a.jsonl", ["{}"])


@pytest.mark.slow
@settings(deadline=None)
@given(st.lists(st.dictionaries(st.text(), VALUES), max_size=4), st.data())
def test_a_file_cut_at_any_byte_loses_at_most_its_last_line(tmp_path_factory, contents, data):
    path = tmp_path_factory.mktemp("cut") / "a.jsonl"
    append_lines(path, [format_line(content) for content in [{}, *contents]])
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    num_whole = whole[:cut].count(b"\n")
    kept = read(path)
    assert kept[:num_whole] == [{}, *contents][:num_whole]
    append_lines(path, ['{"last":true}'])
    assert read(path) == [*kept, {"last": True}]
    assert len(load_lines(path).damaged) <= 1


def test_equal_contents_give_equal_lines_and_anything_but_json_is_refused():
    assert format_line({"b": 1, "a": "é"}) == format_line({"a": "é", "b": 1}) == '{"a":"\\u00e9","b":1}'
    assert "\n" not in format_line({"text": "two\nlines"})
    for wrong, error in ((float("nan"), ValueError), (float("inf"), ValueError), (object(), TypeError)):
        with pytest.raises(error):
            format_line({"x": wrong})


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{oops", "not JSON .* at column 2"),
        (b"[1]", "a JSON object was expected, seen: list"),
        (b'{"x":NaN}', "NaN is not a JSON number"),
        (b"\xff", "UTF-8"),
        (b'{"x":-1e999}', "-1e999 is larger than any float"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply|JSON"),
    ],
)
def test_a_damaged_line_is_named_with_file_line_and_reason(tmp_path, line, reason):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"{}\n\n" + line + b"\n{}\n")
    lines = load_lines(path)
    assert [number for number, _ in lines.entries] == [1, 4]
    (bad,) = lines.damaged
    assert (bad.file, bad.line) == (str(path), 3)
    assert str(bad).startswith(f"{path}, line 3: ")
    assert re.search(reason, bad.reason)


def test_a_byte_order_mark_costs_no_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a":1}\n{"a":2}\n')
    assert read(path) == [{"a": 1}, {"a": 2}]
    assert load_lines(path).damaged == ()


def test_a_pipe_is_refused_without_waiting_for_its_other_end(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        load_lines(tmp_path / "pipe")


def test_the_home_of_an_unknown_user_is_an_os_error(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert str(expand_path("~/a")) == "/home/me/a"
    with pytest.raises(OSError, match="home folder"):
        expand_path("~nosuchuser/x")


def test_a_cut_line_at_the_end_is_called_half_written(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{}\n{"a": [1, 2')
    assert load_lines(path).damaged[0].reason.startswith("half-written")
    assert read(path) == [{}]
