"""What may a record contain? The JSON schema, published in data/reference/record.schema.json, and a small checker.

The checker covers the keywords that this schema uses, with the standard library alone; the tests compare it with
jsonschema. `python -m labkit.cli --update-schema` writes the published file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from labkit.units import is_number

__all__ = ["SCHEMA", "SCHEMA_VERSION", "check_schema", "save_schema"]

SCHEMA_VERSION = 1

# Base units only: milliseconds and GiB exist on axes, never in a record.
_UNIT = "(s|bytes|bits|tok|req|flop|byte|usd|j|w|hz|nats|ratio|fraction|perplexity)"
_RATE = "((tok|req|flop|bytes?|call|step|bits|nats|usd|j|s)_per_(s|tok|token|req|step|call|flop|byte|million_tokens))"
_SAMPLES_KEY = f"^(([a-z][a-z0-9]*_)*({_UNIT}|{_RATE})|num_[a-z0-9_]+)$"

_ALL = (
    *("schema_version", "id", "lab", "name", "time", "host", "threads", "engines", "commit", "command", "budget"),
    *("tier", "model", "settings", "samples", "summary"),
)
_TEXT = {"type": "string"}

SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "A record of labkit",
    "description": "One measurement: where it was made, with what, every sample, and their summary. One line of JSON.",
    "type": "object",
    "required": list(_ALL),
    "additionalProperties": False,
    "properties": {
        "schema_version": {"enum": [SCHEMA_VERSION]},
        "id": {
            "description": "r- and 10 hex digits of the SHA-256 of the record without its id, as sorted compact JSON",
            "type": "string",
            "pattern": "^r-[0-9a-f]{10}$",
        },
        "lab": {"type": "string", "pattern": "^([0-9]{2}|shell)$"},
        "name": {"type": "string", "pattern": "^[a-z0-9][a-z0-9_.-]*$"},
        "time": {
            "description": "UTC",
            "type": "string",
            "pattern": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?\+00:00$",
        },
        "host": {
            "description": "processor, GPUs, memory, system; no host name, no user name, no path",
            "type": "object",
            "required": ["cpu", "gpus", "memory_bytes", "os", "python"],
            "properties": {
                "cpu": {"type": "object", "required": ["name"], "properties": {"name": _TEXT}},
                "gpus": {
                    "type": "array",
                    "items": {"type": "object", "required": ["name"], "properties": {"name": _TEXT}},
                },
            },
        },
        "threads": {"description": "the thread plan", "type": "object"},
        "engines": {"description": "versions by package", "type": "object", "additionalProperties": _TEXT},
        "commit": {
            "description": "of the course; null where there is no git",
            "type": "object",
            "required": ["hash", "is_dirty"],
            "additionalProperties": False,
            "properties": {"hash": {"type": ["string", "null"]}, "is_dirty": {"type": ["boolean", "null"]}},
        },
        "command": {"description": "without secrets", "type": "array", "items": _TEXT},
        "budget": {"enum": ["learner", "ci"]},
        "tier": {"enum": ["cpu", "t4", "ampere", "hopper"]},
        "model": {
            "type": ["object", "null"],
            "required": ["name", "source", "dtype"],
            "additionalProperties": False,
            "properties": {
                "name": _TEXT,
                "source": {"enum": ["shipped", "local", "random", "hub"]},
                "dtype": {"type": ["string", "null"]},
            },
        },
        "settings": {"type": "object"},
        "samples": {
            "description": "every sample, by a key that ends in its unit",
            "type": "object",
            "minProperties": 1,
            "propertyNames": {"pattern": _SAMPLES_KEY},
            "additionalProperties": {"type": "array", "minItems": 1, "items": {"type": "number"}},
        },
        "summary": {
            "description": "for each key of samples: count, mean, percentiles, intervals (null: n too small)",
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "required": ["n", "mean", "p50"],
                "properties": {
                    "n": {"type": "number"},
                    "mean": {"type": "number"},
                    "p50": {"type": ["number", "null"]},
                    "p50_interval": {
                        "type": ["object", "null"],
                        "required": ["low", "high"],
                        "properties": {"low": {"type": "number"}, "high": {"type": "number"}},
                    },
                },
            },
        },
    },
}

_TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}


def check_schema(content: object) -> list[str]:
    """Return a sentence for each place where the content departs from the schema; an empty list means it matches."""
    return list(_find_faults(content, SCHEMA, ""))


def _find_faults(value: object, schema: dict, place: str) -> Iterator[str]:
    if not schema:  # anything goes, however deeply nested
        return
    name = place or "the record"
    if "enum" in schema and (isinstance(value, bool) or value not in schema["enum"]):
        yield f"{name} should be one of {', '.join(map(str, schema['enum']))}, seen: {_show(value)}"
        return
    expected = schema.get("type", [])
    expected = [expected] if isinstance(expected, str) else expected
    if expected and not any(_is_of_type(value, kind) for kind in expected):
        yield f"{name} should be {' or '.join(expected)}, seen: {_show(value)}"
    elif isinstance(value, str):
        if not _matches(value, schema.get("pattern", "")):
            yield f"{name} should match {schema['pattern']}, seen: {_show(value)}"
    elif isinstance(value, list):
        if len(value) < schema.get("minItems", 0):
            yield f"{name} is empty"
        for index, item in enumerate(value):
            yield from _find_faults(item, schema.get("items", {}), f"{place}[{index}]")
    elif isinstance(value, dict):
        yield from _find_object_faults(value, schema, place)


def _find_object_faults(value: dict, schema: dict, place: str) -> Iterator[str]:
    name, known = place or "the record", schema.get("properties", {})
    for key in schema.get("required", ()):
        if key not in value:
            yield f"{name} lacks {key}"
    if len(value) < schema.get("minProperties", 0):
        yield f"{name} is empty"
    others = schema.get("additionalProperties", {})
    for key, item in value.items():
        if not _matches(key, schema.get("propertyNames", {}).get("pattern", "")):
            yield f"{name} has the key {key!r}, which does not end in a unit (_s, _bytes, _tok_per_s, _ratio ...)"
        if key not in known and others is False:
            yield f"{name} has the unknown key {key!r}"
            continue
        yield from _find_faults(item, known.get(key, others or {}), f"{place}.{key}" if place else key)


def _matches(text: str, pattern: str) -> bool:
    # In a JSON schema "$" is the end of the text; Python's also matches before a final newline.
    return re.search(pattern.replace("$", r"\Z"), text) is not None


def _is_of_type(value: object, kind: str) -> bool:
    return is_number(value) if kind == "number" else isinstance(value, _TYPES[kind])


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def save_schema() -> None:
    """Write the published schema, data/reference/record.schema.json."""
    from labkit.environment import find_course_root

    path = find_course_root() / "data" / "reference" / "record.schema.json"
    path.write_text(json.dumps(SCHEMA, indent=2) + "\n", encoding="utf-8")
