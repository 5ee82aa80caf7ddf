"""Saving and loading records: one line each in `results.jsonl`, only ever appended."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from labkit.errors import RecordError
from labkit.journal import DamagedLine, append_lines, expand_path, format_line, load_lines
from labkit.results.provenance import probe_provenance
from labkit.results.record import Record, estimate_id
from labkit.results.redaction import find_secrets, format_place
from labkit.results.schema import SCHEMA_VERSION, check_schema

__all__ = ["Records", "find_record", "find_runs_folder", "load_records", "save_record"]

_MODEL = ("name", "source", "dtype")


@dataclass(frozen=True, slots=True)
class Records:
    """Records in the order of their times (the newest last), and `damaged`: file, line and reason of each skipped."""

    records: tuple[Record, ...]
    damaged: tuple[DamagedLine, ...] = ()

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)


def save_record(
    lab: str,
    name: str,
    *,
    samples: Mapping[str, Sequence[float]],
    settings: Mapping[str, object] | None = None,
    model: object | None = None,
    engines: Mapping[str, str] | None = None,
    folder: str | Path | None = None,
) -> Record:
    """Save every sample of a measurement with where and how it was made; return the record when it is on the disk.

    samples: by keys that end in their unit ("ttft_s", "decode_tok_per_s"), each a non-empty list of finite numbers.
    settings: what was chosen, as JSON values. model: a `models.Model`, or a dict of name, source and dtype. engines:
    versions in another environment. folder: data/runs of the course (LABKIT_RUNS) unless given.
    Raises RecordError for samples or settings that a record must not hold (secrets among them), and when it cannot be
    written; earlier records are untouched.
    """
    from labkit.stats import summarize

    lists = {key: _read_samples(key, values) for key, values in _read_mapping(samples, "samples").items()}
    content = {
        "schema_version": SCHEMA_VERSION,
        "lab": lab,
        "name": name,
        **probe_provenance(engines=_read_mapping(engines, "engines")),
        "model": _read_model(model),
        "settings": _read_mapping(settings, "settings"),
        "samples": lists,
        "summary": {key: summarize(values).to_dict() for key, values in lists.items()},
    }
    try:
        content = _clean(content)
    except (TypeError, ValueError) as error:
        raise RecordError(
            f"this record was not saved: {error}.", next_step="Settings are finite numbers, text, lists and dicts."
        ) from error
    except RecursionError:
        raise RecordError(
            "this record was not saved: its settings are nested too deeply.", next_step="Keep what was chosen, flat."
        ) from None
    record = Record(id=estimate_id(content), **content)
    if faults := check_schema(record.to_dict()):
        raise RecordError(
            f"this record was not saved: {'; '.join(faults[:3])}.", next_step="See data/reference/record.schema.json."
        )
    _append(find_runs_folder(folder) / "results.jsonl", format_line(record.to_dict()))
    return record


def load_records(
    folder_or_file: str | Path | None = None, *, lab: str | None = None, name: str | None = None
) -> Records:
    """Load the records of a file, or of all .jsonl files of a folder (unless given, the learner's own runs).

    lab, name: only these. A damaged line, or one that does not match the schema, is named in `damaged` and skipped. A
    folder that does not exist has no records; a file (.jsonl) that does not exist is a RecordError, and so is a folder
    that cannot be listed.
    """
    records: list[Record] = []
    damaged: list[DamagedLine] = []
    for file in _list_files(find_runs_folder(folder_or_file)):
        with _reading(file):
            lines = load_lines(file)
        damaged.extend(lines.damaged)
        for number, content in lines.entries:
            try:
                records.append(Record.from_dict(content))
            except RecordError as error:
                damaged.append(DamagedLine(str(file), number, error.fact))
    wanted = [item for item in records if lab in (None, item.lab) and name in (None, item.name)]
    damaged.sort(key=lambda bad: (bad.file, bad.line))
    return Records(tuple(sorted(wanted, key=lambda item: item.time)), tuple(damaged))


def find_record(record_id: str, *, folder: str | Path | None = None) -> Record:
    """Return the record with this id; RecordError when there is none."""
    records = load_records(folder)
    for record in records:
        if record.id == record_id:
            return record
    seen = f"{len(records)} others are there" if len(records) else "there is no record yet"
    if records.damaged:  # it may be the one that was asked for
        seen += f"; skipped: {records.damaged[0]}"
    raise RecordError(
        f"no record has the id {record_id!r} ({seen}).", next_step="`labkit results list` shows all of them."
    )


def _list_files(path: Path) -> list[Path]:
    """List the files of records at a path: itself, or the .jsonl files of a folder."""
    with _reading(path):
        try:
            if not stat.S_ISDIR(path.stat().st_mode):
                return [path]
            return sorted(file for file in path.iterdir() if file.suffix == ".jsonl")
        except FileNotFoundError:
            return [path] if path.suffix == ".jsonl" else []


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RecordError(
            f"{path} cannot be read ({error.strerror}).",
            next_step="Name a file or a folder of records that you may read, or measure first.",
        ) from error


def find_runs_folder(folder: str | Path | None = None) -> Path:
    """Find where records are kept: `folder` if given, else LABKIT_RUNS, else data/runs of the course.

    Raises RecordError for the home of a user who is not known.
    """
    folder = os.environ.get("LABKIT_RUNS") or None if folder is None else folder
    if folder is not None:
        try:
            return expand_path(folder)
        except OSError as error:
            raise RecordError(
                f"{folder} cannot be used ({error.strerror}).", next_step="Write the whole path of a folder of yours."
            ) from error
    from labkit.environment import find_course_root

    return find_course_root() / "data" / "runs"


def _read_mapping(given: Mapping | None, what: str) -> dict:
    if given is not None and not isinstance(given, Mapping):
        raise RecordError(
            f"{what} should be a dict, seen: {type(given).__name__}.", next_step="Give each a name with its unit."
        )
    return {str(key): value for key, value in (given or {}).items()}


def _read_samples(key: str, values: Sequence[float]) -> list[float]:
    if isinstance(values, str | bytes | Mapping):
        values = [values]
    try:
        values = list(values)
    except TypeError:
        raise RecordError(
            f"samples of {key}: a list of numbers was expected, seen: {values!r}.",
            next_step="Write one value as a list of one.",
        ) from None
    samples = []
    for index, value in enumerate(values):
        try:
            if isinstance(value, str | bytes | bool):
                raise TypeError
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise RecordError(
                f"samples of {key}: number {index} is {value!r}; every sample must be a finite number.",
                next_step="Find out why the measurement gave none; leave out what was not measured, and say so.",
            )
        samples.append(number)
    if not samples:
        raise RecordError(f"samples of {key}: the list is empty.", next_step="Measure at least once, or leave it out.")
    return samples


def _read_model(model: object | None) -> dict | None:
    if model is None:
        return None
    given = dict(model) if isinstance(model, Mapping) else {key: getattr(model, key, None) for key in _MODEL}
    if given.get("dtype") is not None:
        given["dtype"] = str(given["dtype"]).removeprefix("torch.")
    if isinstance(given.get("name"), str):
        given["name"] = format_place(given["name"])
    return given


def _clean(content: dict) -> dict:
    """Go through JSON and back, so that what is returned equals what will be loaded; refuse secrets, shorten paths."""
    content = json.loads(format_line(content))
    if secrets := list(find_secrets({key: content[key] for key in ("name", "model", "engines", "settings")}, place="")):
        raise RecordError(
            f"this record was not saved: {'; '.join(secrets)}. Records are made to be shared.",
            next_step="Leave it out; a setting that is no secret needs a name without token, key, secret, password.",
        )
    return {**content, "settings": _shorten(content["settings"])}


def _shorten(value: object) -> object:
    if isinstance(value, dict):
        return {format_place(key): _shorten(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_shorten(item) for item in value]
    return format_place(value) if isinstance(value, str) else value


def _append(path: Path, line: str) -> None:
    try:
        append_lines(path, [line])
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            fact, step = "the disk is full", "Free some space, then measure again."
        else:
            fact, step = f"{path} cannot be written ({error.strerror})", "Set LABKIT_RUNS to a folder of yours."
        raise RecordError(
            f"this record was not saved: {fact}. Earlier records are untouched.", next_step=step
        ) from error
