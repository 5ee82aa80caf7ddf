"""What is a record? One measurement of one lab: saved as a line of `results.jsonl`, loaded, and verified.

Records are only ever appended. A record is immutable: its id is a hash of its content, and its summaries can be
recomputed from its samples.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from labkit.errors import LabkitError, RecordError
from labkit.journal import DamagedLine, append_lines, expand_path, format_line, load_lines
from labkit.results.provenance import probe_provenance
from labkit.results.redaction import find_secrets, format_place
from labkit.results.schema import SCHEMA_VERSION, check_schema
from labkit.units import is_near

__all__ = [
    "Record",
    "Records",
    "estimate_id",
    "find_record",
    "find_runs_folder",
    "load_records",
    "save_record",
    "verify_record",
]

_MODEL = ("name", "source", "dtype")
# The last bits of a mean may differ between versions and processors; a changed digit is far larger.
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Record:
    """A saved measurement.

    Attributes:
        schema_version: of `schema.SCHEMA`
        id: "r-" and the first 10 hex digits of the SHA-256 of everything else
        lab: the lab's number, "00"
        name: what was measured, "decode"
        time: UTC, ISO 8601
        host: the machine, without names of host or user
        threads: the thread plan
        engines: versions by package
        commit: of the course, {"hash", "is_dirty"}; both None where there is no git
        command: the command line without secrets; empty in a notebook
        budget: "learner" or "ci"
        tier: "cpu", "t4", "ampere" or "hopper"
        model: {"name", "source", "dtype"}, or None
        settings: what was chosen, as JSON values
        samples: every sample, by a key that ends in its unit ("decode_tok_per_s"); seconds and bytes only
        summary: for each key of `samples`, what `stats.summarize` says about them
    """

    schema_version: int
    id: str
    lab: str
    name: str
    time: str
    host: dict
    threads: dict
    engines: dict
    commit: dict
    command: list
    budget: str
    tier: str
    model: dict | None
    settings: dict
    samples: dict
    summary: dict

    def to_dict(self) -> dict:
        """Return the record as it is in its file."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, content: dict) -> Record:
        """Build a record from an object of a file; RecordError when it does not match the schema."""
        version = content.get("schema_version")
        if version != SCHEMA_VERSION:
            raise RecordError(
                f"schema version {version!r}; this labkit reads {SCHEMA_VERSION}.", next_step="Update the course."
            )
        if faults := check_schema(content):
            more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
            raise RecordError(f"{faults[0]}{more}.", next_step="Measure again: a record is never edited.")
        return cls(**content)


@dataclass(frozen=True, slots=True)
class Records:
    """The records of a file or folder.

    Attributes:
        records: in the order of their times, the newest last
        damaged: file, line and reason of every line that was skipped
    """

    records: tuple[Record, ...]
    damaged: tuple[DamagedLine, ...] = ()

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)


def estimate_id(content: dict) -> str:
    """Compute a record's identity: "r-" and the first 10 hex digits of the SHA-256 of everything but the id."""
    text = format_line({key: value for key, value in content.items() if key != "id"})
    return "r-" + hashlib.sha256(text.encode("ascii")).hexdigest()[:10]


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
    """Save every sample of a measurement, with where and how it was made; return the record once it is on the disk.

    samples: by keys that end in their unit ("ttft_s", "decode_tok_per_s"), each a non-empty list of finite numbers.
    settings: what was chosen, as JSON values. model: a `models.Model`, or a dict of name, source and dtype. engines:
    versions in another environment. folder: by default data/runs of the course, or LABKIT_RUNS.
    Raises RecordError for samples or settings that a record must not hold (such as secrets), and when it cannot be
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
    """Load the records of a file, or of all .jsonl files of a folder; by default the learner's own runs.

    lab, name: only these. A damaged line, or one that does not match the schema, is skipped and named in `damaged`. A
    folder that does not exist has no records. Raises RecordError for a .jsonl file that does not exist and for a folder
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


def find_runs_folder(folder: str | Path | None = None) -> Path:
    """Find where records are kept: `folder` if given, else LABKIT_RUNS, else data/runs of the course.

    Raises RecordError for a path below the home of an unknown user.
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


def verify_record(record: Record) -> list[str]:
    """Recompute a record's id, and every summary from its samples; return a sentence for each disagreement.

    An empty list means that schema, id and summaries agree. It cannot mean that the samples are true.
    """
    content = record.to_dict()
    sentences = [f"{fault}." for fault in check_schema(content)]
    try:
        computed = estimate_id(content)
    except (TypeError, ValueError, RecursionError) as error:
        sentences.append(f"the id cannot be computed: {error}.")
    else:
        if computed != record.id:
            sentences.append(
                f"the id is {record.id}, the content gives {computed}: the record was changed after it was saved."
            )
    if isinstance(record.samples, dict) and isinstance(record.summary, dict):
        sentences += _verify_summaries(record.samples, record.summary)
    return sentences


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
                next_step="Find out why the measurement gave no number; leave out what was not measured, and say so.",
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
    """Convert to JSON and back, so that the record equals what will be loaded; refuse secrets, shorten paths."""
    content = json.loads(format_line(content))
    if secrets := list(find_secrets({key: content[key] for key in ("name", "model", "engines", "settings")}, place="")):
        raise RecordError(
            f"this record was not saved: {'; '.join(secrets)}. Records are made to be shared.",
            next_step="Leave it out. A harmless setting needs a name without token, key, secret or password.",
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


def _verify_summaries(samples: dict, summary: dict) -> list[str]:
    from labkit.stats import summarize

    sentences = [f"summary of {key}: there are no samples." for key in summary if key not in samples]
    for key, values in samples.items():
        if key not in summary:
            sentences.append(f"summary of {key}: it is missing.")
            continue
        try:
            computed = summarize(values).to_dict()
        except (LabkitError, TypeError, ValueError) as error:
            sentences.append(f"summary of {key}: it cannot be computed ({getattr(error, 'fact', error)}).")
            continue
        sentences += [
            f"summary of {key}: {place} is {stored!r}, the {len(values)} samples give {fresh!r}."
            for place, stored, fresh in _compare(summary[key], computed, "")
        ]
    return sentences


def _compare(stored: object, fresh: object, place: str) -> list[tuple[str, object, object]]:
    if isinstance(stored, dict) and isinstance(fresh, dict):
        # A later labkit may summarize more than the one that saved: what was stored is what must be right.
        return [
            found
            for key in stored
            for found in _compare(stored[key], fresh.get(key), f"{place}.{key}" if place else str(key))
        ]
    if is_near(stored, fresh, tolerance=_ROUNDING):
        return []
    return [] if stored == fresh and not isinstance(stored, bool) else [(place or "the value", stored, fresh)]
