"""How long are prompts and answers? Fixed, uniform or lognormal numbers of tokens, or those of a published workload.

As text: "128", "uniform:64:256", "lognormal:MEDIAN:SIGMA", with ":MAX" behind it to cut. A lognormal length is
exp(N(ln median, sigma^2)), rounded, at least 1. Published ones come from data/reference/workloads/lengths.csv, each
with its source; two percentiles give sigma = ln(p90 / median) / 1.2816.
"""

import csv
import math
import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from labkit.errors import LabkitError

__all__ = ["Lengths", "PublishedLengths", "load_published_lengths", "read_lengths"]

_KINDS = {"fixed": 1, "uniform": 2, "lognormal": 2}
_Z90 = statistics.NormalDist().inv_cdf(0.9)


@dataclass(frozen=True, slots=True)
class Lengths:
    """A distribution of numbers of tokens: fixed (a), uniform from a to b, or lognormal (median a, sigma b)."""

    kind: str
    a: float
    b: float = 0.0
    maximum: int = 2**31

    def __post_init__(self) -> None:
        is_wrong = self.kind not in _KINDS or not self.a >= 1 or not self.maximum >= 1
        if is_wrong or (self.kind == "uniform" and self.b < self.a) or (self.kind == "lognormal" and not self.b >= 0):
            raise LabkitError(
                f"{self} is no distribution of lengths.",
                next_step='write "128", "uniform:64:256" or "lognormal:64:0.7".',
            )

    def draw(self, num: int, generator: np.random.Generator) -> np.ndarray:
        """Return `num` lengths, whole numbers from 1 to the maximum."""
        if self.kind == "fixed":
            values = np.full(num, self.a)
        elif self.kind == "uniform":
            values = generator.integers(int(self.a), int(self.b), size=num, endpoint=True)
        else:
            values = np.exp(math.log(self.a) + self.b * generator.standard_normal(num))
        return np.clip(np.rint(values), 1, self.maximum).astype(int)

    def __str__(self) -> str:
        parts = [self.kind, f"{self.a:g}", *([f"{self.b:.4g}"] if _KINDS.get(self.kind) == 2 else [])]
        return ":".join([*parts, *([str(self.maximum)] if self.maximum < 2**31 else [])])


@dataclass(frozen=True, slots=True)
class PublishedLengths:
    """Prompt and output lengths of a published workload, and where they were published."""

    name: str
    prompt: Lengths
    output: Lengths
    source: str


def read_lengths(text: str | int | Lengths) -> Lengths:
    """Read lengths from their text, "128" or "lognormal:64:0.7:512"; LabkitError says what is wrong."""
    if isinstance(text, Lengths):
        return text
    kind, *values = str(text).split(":")
    if not values:
        kind, values = "fixed", [kind]
    try:
        numbers = [float(value) for value in values]
        needed = _KINDS[kind]
        if len(numbers) not in (needed, needed + 1):
            raise ValueError
        bounds = {"maximum": int(numbers[needed])} if len(numbers) > needed else {}
        return Lengths(kind, *numbers[:needed], **bounds)
    except (KeyError, ValueError, OverflowError):
        raise LabkitError(
            f"{text!r} is no distribution of lengths.", next_step='write "128", "uniform:64:256" or "lognormal:64:0.7".'
        ) from None


def load_published_lengths(name: str, *, scale: float = 1.0, maximum: int = 2**31) -> PublishedLengths:
    """Load a published workload's lengths as lognormals; `scale` shortens both medians for a small model.

    The lognormal is the course's choice: the source gives two percentiles, not the shape between them.
    """
    from labkit.environment import find_course_root

    path: Path = find_course_root() / "data" / "reference" / "workloads" / "lengths.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    if name not in rows:
        raise LabkitError(f"{name!r} is no published workload.", next_step=f"use {', '.join(rows)}.")

    def make(what: str) -> Lengths:
        median, p90 = (float(rows[name][f"{what}_{key}"]) for key in ("median", "p90"))
        return Lengths("lognormal", max(1.0, median * scale), math.log(p90 / median) / _Z90, maximum)

    return PublishedLengths(name, make("prompt"), make("output"), rows[name]["source"])
