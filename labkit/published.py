"""What did others report? Published numbers and recorded runs beside the learner's own.

The claims stand in `data/reference/published.csv`, one source per row; recorded runs are record files under
`data/recorded/NN/`. Where nothing was recorded the table says so; a gap is never filled with an invented number.
"""

import csv
from dataclasses import dataclass

from labkit.environment import find_course_root
from labkit.errors import LabkitError
from labkit.results import load_records
from labkit.stats import summarize
from labkit.units import format_interval, format_number

__all__ = ["Claim", "format_comparison", "load_claim"]


@dataclass(frozen=True, slots=True)
class Claim:
    """One published number: what it says, how it was measured, where it stands."""

    name: str
    value: str
    unit: str
    setup: str
    source: str


def load_claim(name: str) -> Claim:
    """Return the claim called `name`; an unknown name is a LabkitError that lists the known ones."""
    with (find_course_root() / "data" / "reference" / "published.csv").open(newline="", encoding="utf-8") as file:
        claims = {row["name"]: Claim(**row) for row in csv.DictReader(file)}
    if name not in claims:
        raise LabkitError(
            f"There is no published claim {name!r}.", next_step=f"Use one of: {', '.join(sorted(claims))}."
        )
    return claims[name]


def format_comparison(claim: Claim, *, lab: str, name: str, key: str, record=None) -> str:
    """Return the table *paper says / recorded on a GPU / you measured* as plain text.

    The middle row is the newest run `name` of `lab` recorded on a GPU with samples `key`; the last is the learner's
    `record`.
    """
    recorded = load_records(find_course_root() / "data" / "recorded" / lab, lab=lab, name=name).records
    recorded = [r for r in recorded if key in r.samples and r.host.get("gpus")]
    rows = [("paper says", f"{claim.value} {claim.unit}", f"{claim.setup}; {claim.source}")]
    rows.append(("recorded on a GPU", *_describe(recorded[-1], key, claim.unit)) if recorded
                else ("recorded on a GPU", "not recorded yet", ""))  # fmt: skip
    rows.append(("you measured", *_describe(record, key, claim.unit)) if record
                else ("you measured", "not measured yet", ""))  # fmt: skip
    width = max(len(row[1]) for row in rows)
    return "\n".join(f"{who:<18} {value:<{width}}  {how}".rstrip() for who, value, how in rows)


def _describe(record, key: str, unit: str) -> tuple[str, str]:
    summary = summarize(record.samples[key])
    interval = summary.p50_interval
    value = format_number(summary.p50, spread=interval.high - interval.low if interval else None)
    gpus = record.host.get("gpus") or []
    device = gpus[0]["name"] if gpus else record.host["cpu"]["name"]
    model = record.model or {}
    what = f"{model.get('name')} ({model.get('source')})"
    return f"{value} ({format_interval(interval, write=format_number)}) {unit}", f"{what}, {device}, {record.time[:10]}"
