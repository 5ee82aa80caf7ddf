"""What did real users send? A trace file: arrival, prompt tokens and output tokens of each request, as CSV or JSONL.

Columns (any case): `arrival_s`, `arrival`, `timestamp` or `time`, in seconds or as a date with time; `prompt_tokens`,
`input_tokens`, `input_length` or `ContextTokens`; `output_tokens`, `output_length` or `GeneratedTokens` (the last of
each are those of the Azure LLM inference traces, https://github.com/Azure/AzurePublicDataset).
"""

import csv
import json
import math
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from labkit.errors import LabkitError

__all__ = ["TraceRow", "load_trace"]

_ARRIVAL = ("arrival_s", "arrival", "timestamp", "time")
_PROMPT = ("prompt_tokens", "input_tokens", "input_length", "contexttokens", "request tokens")
_OUTPUT = ("output_tokens", "output_length", "generatedtokens", "response tokens")


class TraceRow(NamedTuple):
    """One request of a trace: seconds after the first one, and its numbers of tokens."""

    arrival_s: float
    num_prompt_tokens: int
    num_output_tokens: int


def load_trace(path: str | Path, *, speed: float = 1.0, duration_s: float | None = None) -> tuple[TraceRow, ...]:
    """Load the requests of a trace in the order of arrival, the first at 0.

    `speed` 2 replays it twice as fast; `duration_s` keeps what then arrives up to it. A row that cannot be read is an
    error that names its line.
    """
    if not speed > 0:
        raise LabkitError(f"the speed of the replay is {speed}; expected more than 0.")
    path = Path(path).expanduser()
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise LabkitError(f"the trace {path.name} cannot be read ({error.strerror}).") from None
    rows = list(_read_jsonl(text) if text.lstrip().startswith("{") else _read_csv(text))
    if not rows:
        raise LabkitError(f"the trace {path.name} has no request.", next_step="Give a CSV with a header, or JSONL.")
    made = sorted(_read_row(number, row, path.name) for number, row in rows)
    first_s = made[0].arrival_s
    moved = (row._replace(arrival_s=(row.arrival_s - first_s) / speed) for row in made)
    return tuple(row for row in moved if duration_s is None or row.arrival_s <= duration_s)


def _read_csv(text: str) -> Iterable[tuple[int, dict]]:
    yield from enumerate(csv.DictReader(text.splitlines()), start=2)


def _read_jsonl(text: str) -> Iterable[tuple[int, dict]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                content = json.loads(line)
            except ValueError:
                content = None
            yield number, content if isinstance(content, dict) else {}


def _read_row(number: int, row: dict, name: str) -> TraceRow:
    fields = {str(key).strip().lower(): value for key, value in row.items()}

    def pick(names: tuple[str, ...]) -> object:
        found = next((fields[key] for key in names if fields.get(key) not in (None, "")), None)
        if found is None:
            raise LabkitError(
                f"{name}, line {number}: no {names[0]}.", next_step=f"Name the column one of {', '.join(names)}."
            )
        return found

    try:
        row = TraceRow(_read_instant(pick(_ARRIVAL)), int(float(pick(_PROMPT))), int(float(pick(_OUTPUT))))
    except (TypeError, ValueError, OverflowError) as error:
        raise LabkitError(
            f"{name}, line {number}: {error}.", next_step="Write numbers, or dates with a time."
        ) from None
    if row.num_prompt_tokens < 1 or row.num_output_tokens < 1 or not math.isfinite(row.arrival_s):
        raise LabkitError(f"{name}, line {number}: {tuple(row)} is no request; at least one token each.")
    return row


def _read_instant(value: object) -> float:
    """Seconds, from a number or from a date with time (its fraction may have seven digits)."""
    try:
        return float(value)
    except (TypeError, ValueError):
        whole, dot, fraction = str(value).strip().partition(".")
        digits = "".join(char for char in fraction if char.isdigit())
        instant = datetime.fromisoformat(whole)
        instant = instant if instant.tzinfo else instant.replace(tzinfo=UTC)
        return instant.timestamp() + (float(f"0.{digits}") if dot and digits else 0.0)
