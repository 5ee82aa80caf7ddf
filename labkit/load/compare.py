"""Is A faster than B? Two sides of records or load runs, compared number by number; "cannot tell" is an answer.

A side is the id of a record (its samples are compared), or one or more folders of load runs, separated by commas: each
run gives one value per metric, because the requests of one run are correlated. One run per side supports no claim.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from labkit.errors import LabkitError
from labkit.journal import expand_path
from labkit.stats import Comparison, compare
from labkit.units import format_number

__all__ = ["ComparedRow", "compare_sides", "format_sides", "load_side"]

_LATENCIES = ("ttft_from_schedule", "ttft", "tpot", "icl", "e2e_from_schedule", "e2e")
_RATES = ("request_per_s", "tok_per_s", "good_per_s", "good_fraction")
# What the end of a key says about its direction: first what something costs (seconds, bytes, joules, dollars, also per
# step or token), then what is done per second. Everything else (a ratio, a count, FLOP per byte) has no direction.
_LOWER = re.compile(
    r"(^|(?<!_per)_)((s|bytes|j|usd|perplexity)(_per_(tok|token|req|step|call|flop|byte|million_tokens))?|(j|usd)_per_s)$"
)
_HIGHER = re.compile(r"_per_s$|^good_fraction$")


@dataclass(frozen=True, slots=True)
class ComparedRow:
    """One number of both sides.

    Attributes:
        key: its name.
        mean_a: mean of side A.
        mean_b: mean of side B.
        num_a: samples of side A.
        num_b: samples of side B.
        comparison: of the two sides; None if they cannot be compared.
        reason: why not.
        better: "lower", "higher", or "" for a number that is neither; its comparison then gives only A over B.
    """

    key: str
    mean_a: float
    mean_b: float
    num_a: int
    num_b: int
    comparison: Comparison | None
    reason: str = ""
    better: str = "lower"


def load_side(text: str, *, folder: str | Path | None = None) -> dict[str, list[float]]:
    """Load the samples of one side, by key; `folder` is where records are looked up (default: the learner's runs).

    An INVALID run is an error: its numbers say nothing about the server.
    """
    parts = [part for part in text.split(",") if part]
    folders = [_find_run(part) for part in parts]
    if folders and all(folders):
        sides = [_load_run(folder) for folder in folders]
        common = [key for key in sides[0] if all(key in side for side in sides)]
        return {key: [side[key] for side in sides] for key in common}
    from labkit.results import find_record

    return {key: list(values) for key, values in find_record(text, folder=folder).samples.items()}


def compare_sides(
    a: Mapping[str, Sequence[float]], b: Mapping[str, Sequence[float]], *, is_paired: bool = False
) -> list[ComparedRow]:
    """Compare what both sides have; the end of a key says whether more, less, or neither is better."""
    rows = []
    for key in (key for key in a if key in b):
        left, right = list(a[key]), list(b[key])
        means = sum(left) / len(left), sum(right) / len(right)
        comparison, reason, better = None, "", _find_direction(key)
        if min(len(left), len(right)) < 2:
            reason = "one sample a side supports no claim: repeat the run"
        elif min(*left, *right) <= 0:
            reason = "a value is not above 0"
        elif is_paired and len(left) != len(right):
            reason = "pairs need equal numbers of samples"
        else:
            comparison = compare(left, right, is_paired=is_paired, better=better or "higher")
        rows.append(ComparedRow(key, *means, len(left), len(right), comparison, reason, better))
    if not rows:
        raise LabkitError("A and B have no number in common.", next_step="Compare two records of one name.")
    return rows


def format_sides(rows: Sequence[ComparedRow]) -> str:
    """Format the comparison as a table: means, the ratio of speeds with its interval, the verdict on A."""
    lines = [f"{'':<24}{'A':>12}{'B':>12}{'n':>8}   speed of A over B, 95 % interval"]
    for row in rows:
        num = str(row.num_a) if row.num_a == row.num_b else f"{row.num_a}, {row.num_b}"
        head = f"{row.key:<24}{format_number(float(row.mean_a)):>12}{format_number(float(row.mean_b)):>12}{num:>8}   "
        if row.comparison is None:
            lines.append(f"{head}cannot tell ({row.reason})")
        else:
            low, high = row.comparison.interval.low, row.comparison.interval.high
            ratio, ends = f"{row.comparison.ratio:.3f}", f"{low:.3f} to {high:.3f}"
            lines.append(f"{head}{ratio} ({ends}): {_format_verdict(row)}")
    return "\n".join(lines)


def _format_verdict(row: ComparedRow) -> str:
    if not row.better:
        return f"A over B; no direction: {row.key} is neither better high nor low"
    verdict = row.comparison.verdict
    return verdict if verdict == "cannot tell" else f"A is {verdict}"


def _find_direction(key: str) -> str:
    if _LOWER.search(key):
        return "lower"
    return "higher" if _HIGHER.search(key) else ""


def _find_run(text: str) -> Path | None:
    """Return the folder of a run; None for anything else, such as the id of a record."""
    with contextlib.suppress(OSError):  # a name that is too long, an unknown user
        folder = expand_path(text)
        return folder if folder.is_dir() else None
    return None


def _load_run(folder: Path) -> dict[str, float]:
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        if report.get("kind") != "labkit load report":
            raise ValueError
        whole = report["metrics"]["whole"]
        if not report["is_valid"]:
            raise LabkitError(
                f"The run in {folder.name} is {report['verdict']}.", next_step="Repeat it; nothing follows from it."
            )
        found = {f"{name}_p50_s": whole["latencies"][name]["p50"] for name in _LATENCIES if whole["latencies"][name]}
        steady = report["metrics"]["steady"] or whole
        found |= {name: steady[name] for name in _RATES}
        return {name: float(value) for name, value in found.items() if value is not None}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise LabkitError(
            f"{folder.name} holds no report of a load run.", next_step="Name the folder of --out."
        ) from None
