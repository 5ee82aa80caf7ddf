"""What survives a crash? A log of every request, written while the run goes on: one line each, in whole batches.

The rules of `labkit.journal` hold (one write, synced, half lines only damage themselves). Writing happens in a thread,
so that a slow disk delays no stamp. A full disk ends the log, not the run: the report says so.
"""

import contextlib
import threading
from pathlib import Path

from labkit.errors import LabkitError
from labkit.journal import append_lines, format_line, load_lines
from labkit.load.records import RequestRecord

__all__ = ["RequestJournal", "load_requests"]


class RequestJournal:
    """Appends records to a file about once a second; `problem` says why some are not there ("" when all are)."""

    def __init__(self, path: str | Path, *, interval_s: float = 1.0) -> None:
        self.path, self.problem, self.num_written = Path(path), "", 0
        self._waiting: list[RequestRecord] = []
        self._is_over, self._interval_s = threading.Event(), interval_s
        self._thread = threading.Thread(target=self._work, name="request journal", daemon=True)
        self._thread.start()

    def add(self, record: RequestRecord) -> None:
        """Take a record; it is written soon."""
        self._waiting.append(record)

    def close(self) -> None:
        """Write what is left and end."""
        self._is_over.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._is_over.wait(self._interval_s):
            self._write()
        self._write()

    def _write(self) -> None:
        records, self._waiting = self._waiting, []
        if not records:
            return
        try:
            append_lines(self.path, [format_line(record.to_dict()) for record in records])
            self.num_written += len(records)
        except OSError as error:
            self._waiting = records + self._waiting  # the disk may have room again later
            self.problem = f"{self.path.name} could not be written ({error.strerror})"
        else:
            self.problem = ""


def load_requests(path: str | Path) -> tuple[tuple[RequestRecord, ...], int]:
    """Load the records of a requests.jsonl, in the order of their numbers, and how many lines are damaged."""
    path, records, num_damaged = Path(path), [], 0
    try:
        lines = load_lines(path)
    except OSError as error:
        raise LabkitError(f"{path.name} cannot be read ({error.strerror}).") from None
    num_damaged = len(lines.damaged)
    for _, content in lines.entries:
        with contextlib.suppress(LabkitError):
            records.append(RequestRecord.from_dict(content))
            continue
        num_damaged += 1
    return tuple(sorted(records, key=lambda record: record.number)), num_damaged
