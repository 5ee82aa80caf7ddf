"""What is a record? One measurement of one lab: who ran, on what, with which settings, and every sample."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass

from labkit.errors import RecordError
from labkit.journal import format_line
from labkit.results.schema import SCHEMA_VERSION, check_schema

__all__ = ["Record", "estimate_id"]


@dataclass(frozen=True, slots=True)
class Record:
    """A saved measurement. Keys of `samples` end in their unit ("decode_tok_per_s"), seconds and bytes only.

    `time` is UTC. `host` is the machine without names of host or user, `threads` the thread plan, `engines` the
    versions by package, `commit` the course's {"hash", "is_dirty"} (None where there is no git), `command` the command
    line without secrets, `model` {"name", "source", "dtype"} or None. `summary` has for each key of `samples` what
    `stats.summarize` says about them.
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
        """Return the record as it stands in its file."""
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


def estimate_id(content: dict) -> str:
    """Compute a record's identity: "r-" and the first 10 hex digits of the SHA-256 of everything but the id."""
    text = format_line({key: value for key, value in content.items() if key != "id"})
    return "r-" + hashlib.sha256(text.encode("ascii")).hexdigest()[:10]
