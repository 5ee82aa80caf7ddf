"""Does a record still say what was measured? Recompute what can be recomputed."""

from __future__ import annotations

import math

from labkit.errors import LabkitError
from labkit.results.record import Record, estimate_id
from labkit.results.schema import check_schema

__all__ = ["verify_record"]

# The last bits of a mean may differ between versions and processors; a changed digit is far larger.
_ROUNDING = 1e-9


def verify_record(record: Record) -> list[str]:
    """Recompute a record's id, and every summary from its samples; return what does not agree, in sentences.

    An empty list means that schema, id and summaries are in order. It cannot mean that the samples are true.
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
    if _is_number(stored) and _is_number(fresh) and math.isclose(stored, fresh, rel_tol=_ROUNDING, abs_tol=0.0):
        return []
    return [] if stored == fresh and not isinstance(stored, bool) else [(place or "the value", stored, fresh)]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
