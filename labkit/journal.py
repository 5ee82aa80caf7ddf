"""How does a line survive a crash? Append-only JSON Lines files: records, the learner's events, the visits of a sweep.

The rules: one writer at a time (flock), one write() of whole lines, then fsync. A write that fails or stops half-way
is undone under the same lock. A line that a killed process left half-written is ended with a newline before the next
one, so it damages only itself; a reader reports it and goes on.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import fcntl
import json
import math
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["DamagedLine", "Lines", "append_lines", "expand_path", "format_line", "load_lines", "lock_file"]

# Some network and FUSE mounts have no locks: O_APPEND and a single write are then the only protection.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


@dataclass(frozen=True, slots=True)
class DamagedLine:
    """One line that could not be read.

    Attributes:
        file: its path
        line: its number, from 1
        reason: what is wrong with it
    """

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Lines:
    """What a journal holds.

    Attributes:
        entries: (line number, object) in file order
        damaged: the lines that were skipped
    """

    entries: tuple[tuple[int, dict], ...]
    damaged: tuple[DamagedLine, ...]


def expand_path(path: str | Path) -> Path:
    """Expand "~" and "~user"; OSError, as for a path that cannot be opened, if that user has no home."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise OSError(errno.EINVAL, "the home folder of its user is not known", str(path)) from None


def format_line(content: dict) -> str:
    """Write an object as one line: sorted keys, ASCII, no spaces, so that equal contents give equal text.

    NumPy and torch scalars become Python numbers. Raises ValueError for NaN and infinity, TypeError for other types.
    """
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain)


def append_lines(path: Path, texts: Iterable[str]) -> None:
    """Append lines (given without newlines) to a file, all or none of them, and return once they are on the disk.

    Raises OSError (disk full, no permission ...); earlier lines are untouched.
    """
    data = "".join(f"{text}\n" for text in texts).encode("ascii")
    if not data:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    try:
        lock_file(descriptor, fcntl.LOCK_EX)
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            data = b"\n" + data  # end the half-written line of a killed writer
        try:
            written = os.write(descriptor, data)
            if written != len(data):
                raise OSError(errno.ENOSPC, f"only {written} of {len(data)} bytes could be written", str(path))
            os.fsync(descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)  # and with it the lock
    if is_new:
        _sync_folder(path.parent)


def load_lines(path: Path) -> Lines:
    """Read every line of a file; damaged ones are skipped and listed.

    Raises OSError when the file cannot be opened or is not a regular file: a device may have no end.
    """
    # Without O_NONBLOCK, opening a pipe would block before we could see that it is one.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        lock_file(file.fileno(), fcntl.LOCK_SH)  # not in the middle of another process's write
        data = file.read().removeprefix(codecs.BOM_UTF8)  # some editors write one
    entries, damaged = [], []
    for number, line, is_whole in _split(data):
        try:
            entries.append((number, _parse(line)))
        except (ValueError, RecursionError) as error:
            reason = str(error) if is_whole else "half-written: the line stops before its end"
            damaged.append(DamagedLine(str(path), number, reason))
    return Lines(tuple(entries), tuple(damaged))


def lock_file(descriptor: int, how: int) -> None:
    """Lock an open file with `fcntl.flock`; on a file system without locks, do nothing."""
    try:
        fcntl.flock(descriptor, how)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def _split(data: bytes) -> Iterator[tuple[int, bytes, bool]]:
    lines = data.split(b"\n")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield number, line, number < len(lines)


def _parse(line: bytes) -> dict:
    try:
        content = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant, parse_float=_read_float)
    except UnicodeDecodeError:
        raise ValueError("not text (UTF-8 was expected)") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise ValueError("not a JSON object (nested too deeply)") from None
    if not isinstance(content, dict):
        raise ValueError(f"a JSON object was expected, seen: {type(content).__name__}")
    return content


def _read_float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:20]} is larger than any float")
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _plain(value: object) -> object:
    if hasattr(value, "tolist"):  # NumPy and torch: scalars and arrays alike
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _sync_folder(folder: Path) -> None:
    # A new file's name is safe only once its folder is on the disk too; not every file system can do this.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
