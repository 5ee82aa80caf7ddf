"""What happened? Events in `progress.jsonl`: one line each, only ever appended, each with its own id.

An event: {"id": uuid hex, "time": UTC, "kind": "attempt", "exercise": "00.1", "version": 1, "outcome": "passed", ...}.
"""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from labkit.errors import ProgressError
from labkit.journal import append_lines, expand_path, format_line, load_lines

__all__ = ["Events", "append_event", "export_progress", "find_progress_file", "import_progress", "load_events"]

_KINDS = ("attempt", "prediction", "measured", "viewed", "quiz", "note", "complete", "setup")
_OUTCOMES = ("passed", "failed", "not attempted", "blocked")
_OWN = {"id", "time", "kind"}


@dataclass(frozen=True, slots=True)
class Events:
    """All events of a progress file.

    Attributes:
        events: in file order, each id once
        damaged: (line number, reason) of each line that was skipped
    """

    events: tuple[dict, ...]
    damaged: tuple[tuple[int, str], ...] = ()

    def __iter__(self) -> Iterator[dict]:
        return iter(self.events)

    def __len__(self) -> int:
        return len(self.events)


def append_event(kind: str, **fields: object) -> dict:
    """Record one event and return it once it is safely on the disk.

    kind: attempt, prediction, measured, viewed, quiz, note, complete or setup. Fields: `exercise` ("00.1", "00.p1",
    "00.q1") or `lab` ("00"), `version`, `outcome` (passed, failed, not attempted, blocked), `sentence`, `value`, ...
    Raises ProgressError for an unknown kind or outcome, for a value that is not JSON, and when it cannot be written.
    """
    if kind not in _KINDS:
        raise ProgressError(f"event kind {kind!r} is unknown.", next_step=f"Use one of: {', '.join(_KINDS)}.")
    if taken := sorted(_OWN & fields.keys()):
        raise ProgressError(f"an event sets {', '.join(taken)} itself.", next_step="Choose another field name.")
    now = datetime.now(UTC).isoformat(timespec="microseconds")
    event = {"id": uuid.uuid4().hex, "time": now, "kind": kind, **fields}
    if reason := _find_fault(event):
        raise ProgressError(f"this event cannot be recorded: {reason}.", next_step="Correct the call.")
    try:
        line = format_line(event)
    except (TypeError, ValueError, RecursionError) as error:
        raise ProgressError(
            f"this event cannot be recorded: {error}.", next_step="Pass finite numbers, text, lists or dicts."
        ) from error
    _append([line])
    return event


def load_events() -> Events:
    """Read all events; without a progress file there are none. Damaged lines are skipped and listed by number."""
    path = find_progress_file()
    try:
        return _load(path)
    except FileNotFoundError:
        return Events(())
    except OSError as error:
        raise ProgressError(
            f"progress cannot be read from {path} ({error.strerror}).",
            next_step="Check the file's permissions, or set LABKIT_HOME to another folder.",
        ) from error


def export_progress(path: str | Path) -> int:
    """Write all events into one new file, complete or not at all, and return how many there are.

    An existing file is replaced only if nothing in it would be lost. A link stays a link: its target is written.
    Raises ProgressError otherwise, and for anything but a regular file (a folder, a device).
    """
    events = load_events()
    try:
        target = expand_path(path).resolve()
        _check_target(target, events)
        target.parent.mkdir(parents=True, exist_ok=True)
        _replace(target, [format_line(event) for event in events])
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise ProgressError(
            f"progress could not be exported to {path} ({getattr(error, 'strerror', None) or error}).",
            next_step="Choose a folder that you can write to and that has free space.",
        ) from error
    return len(events)


def _check_target(target: Path, events: Events) -> None:
    if target == find_progress_file().resolve():
        raise ProgressError(f"{target} is the progress file itself.", next_step="Choose another name for the export.")
    if not target.exists() and not target.is_symlink():  # a link to itself does not exist
        return
    if not target.is_file():
        raise ProgressError(
            f"{target} already exists and is not a regular file.", next_step="Choose the name of a new file."
        )
    old = _load(target)
    if old.damaged or not {event["id"] for event in old} <= {event["id"] for event in events}:
        raise ProgressError(
            f"{target} already exists and holds something that this export does not.",
            next_step="Choose another name, or import that file first.",
        )


def _replace(target: Path, lines: list[str]) -> None:
    temporary = target.with_name(
        f".labkit-{uuid.uuid4().hex}.tmp"
    )  # a short name: the target's may be as long as names can be
    try:
        append_lines(temporary, lines)
        if not lines:
            temporary.touch()
        os.replace(temporary, target)
    finally:
        with contextlib.suppress(OSError):  # must not hide the original error
            temporary.unlink(missing_ok=True)


def import_progress(path: str | Path) -> Events:
    """Add the events of an exported file that are not here yet (a union: importing twice adds nothing).

    Returns the added events, with the damaged lines of that file. Raises ProgressError for any other file.
    """
    try:
        path = expand_path(path)
        new = _load(path)
    except OSError as error:
        raise ProgressError(
            f"{path} cannot be read ({error.strerror}).", next_step="Name a file that `labkit progress --export` wrote."
        ) from error
    if new.damaged and not new.events:
        line, reason = new.damaged[0]
        raise ProgressError(
            f"{path} contains no event of this course (line {line}: {reason}).",
            next_step="Name a file that `labkit progress --export` wrote.",
        )
    known = {event["id"] for event in load_events()}
    added = tuple(event for event in new if event["id"] not in known)
    _append([format_line(event) for event in added])
    return Events(added, new.damaged)


def find_progress_file() -> Path:
    """Find where this learner's progress is kept: LABKIT_HOME, else the user's data folder. It may not exist yet."""
    if home := os.environ.get("LABKIT_HOME"):
        try:
            return expand_path(home) / "progress.jsonl"
        except OSError as error:
            raise ProgressError(
                f"LABKIT_HOME, {home}, cannot be used ({error.strerror}).", next_step="Set it to a folder of yours."
            ) from error
    data = Path(os.environ.get("XDG_DATA_HOME", ""))
    if not data.is_absolute():  # also when it is not set: the XDG rule is to ignore a relative one
        try:
            data = Path.home() / ".local" / "share"
        except RuntimeError as error:
            raise ProgressError(
                "this user has no home folder to keep progress in.", next_step="Set LABKIT_HOME to a folder."
            ) from error
    return data / "labkit" / "progress.jsonl"


def _append(lines: list[str]) -> None:
    path = find_progress_file()
    try:
        append_lines(path, lines)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            fact = f"the disk is full: this step was not recorded in {path}. Earlier progress is untouched."
            step = "Free some space, then run the cell again."
        else:
            fact = f"progress cannot be written to {path} ({error.strerror}). Earlier progress is untouched."
            step = "Set LABKIT_HOME to a folder that you can write to, then run the cell again."
        raise ProgressError(fact, next_step=step) from error


def _load(path: Path) -> Events:
    lines = load_lines(path)
    damaged = [(bad.line, bad.reason) for bad in lines.damaged]
    events: dict[str, dict] = {}
    for number, event in lines.entries:
        if reason := _find_fault(event, is_strict=False):
            damaged.append((number, reason))
        else:
            events.setdefault(event["id"], event)
    return Events(tuple(events.values()), tuple(sorted(damaged)))


def _find_fault(event: dict, *, is_strict: bool = True) -> str:
    """Say why this is not an event; unless strict, kinds and outcomes of a later labkit are accepted."""
    for field in ("id", "time", "kind"):
        if not isinstance(event.get(field), str) or not event[field]:
            return f"no {field}"
    try:
        if datetime.fromisoformat(event["time"]).tzinfo is None:
            return "a time without its zone"
    except ValueError:
        return f"{event['time']!r} is not a time"
    for field in ("exercise", "lab"):
        if field in event and not isinstance(event[field], str):
            return f"{field} must be text such as '00.1', seen: {event[field]!r}"
    if not isinstance(event.get("version", 1), int):
        return f"version must be a whole number, seen: {event['version']!r}"
    if is_strict and event.get("outcome", "passed") not in _OUTCOMES:
        return f"outcome must be one of {', '.join(_OUTCOMES)}, seen: {event['outcome']!r}"
    return ""
