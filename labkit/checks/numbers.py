"""Numbers as they are written: 1.23 stands for everything that rounds to it, from 1.225 to 1.235."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal

__all__ = ["Written", "find_numbers", "is_quoted", "is_rounded"]

_TIME = {
    "ns": 1e9, "us": 1e6, "µs": 1e6, "μs": 1e6, "microseconds": 1e6, "ms": 1e3, "msec": 1e3, "milliseconds": 1e3,
    "s": 1.0, "sec": 1.0, "second": 1.0, "seconds": 1.0, "min": 1 / 60, "minutes": 1 / 60,
}  # fmt: skip
_BYTES = {
    "B": 1.0, "bytes": 1.0, "KB": 1e-3, "kB": 1e-3, "MB": 1e-6, "GB": 1e-9, "TB": 1e-12,
    "KiB": 2.0**-10, "MiB": 2.0**-20, "GiB": 2.0**-30, "TiB": 2.0**-40,
}  # fmt: skip
_SHARE = {"%": 100.0, "percent": 100.0}
_COUNTS = {"k": 1e-3, "M": 1e-6}
_UNITS = "|".join(sorted(map(re.escape, (*_TIME, *_BYTES, *_SHARE, *_COUNTS)), key=len, reverse=True))
_NUMBER = re.compile(
    r"(?P<digits>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)"
    rf"(?:[ \u00a0\u2009\u202f]?(?P<unit>{_UNITS})(?![\w/]))?"  # a space, or one that does not break, or a thin one
)
# Digits that name something: record ids, addresses, dates, versions, "lab 33", "exercise 12.1".
_SKIPPED = re.compile(
    r"\br-\w+|\b[a-z]{2,9}://\S+|\b\d{4}-\d{2}-\d{2}(?:T\S+)?|\b\d+\.\d+\.\d+\S*"
    r"|\b(?:labs?|exercises?|phase|figure|table|section)\s+\d+(?:\.\d+)?", re.IGNORECASE
)  # fmt: skip
_PREFIX = re.compile(r"[^\s(\[{=~≈<>±$€\"'/:;,|*`→–—]*\Z")
_SUFFIX = re.compile(r"[ -]?bits?\b|(?:th|st|nd|rd)\b|_|\s?%(?=\s+(?:confidence|interval))")
_LOOK_BACK = 64  # characters; a word may be a whole file, which must not be read again for each of its digits
_JOIN = re.compile(r"\s*(-|–|to|and|or|,)\s*")


@dataclass(frozen=True, slots=True)
class Written:
    """One number of a text: the digits as written, and the unit behind it ("" when there is none that scales).

    `is_shared`: the unit stands behind a later number ("8 and 15 ms"), and may not belong to this one.
    """

    digits: str
    unit: str = ""
    is_shared: bool = False

    def __str__(self) -> str:
        return self.digits if self.is_shared else f"{self.digits} {self.unit}".strip()


def find_numbers(text: str) -> Iterator[Written]:
    """Yield the numbers of a text. Digits inside names (p95, 4-bit, Qwen3-0.6B) and "95 % interval" are no numbers.

    In "12 to 15 ms" both numbers have the unit ms.
    """
    text = _SKIPPED.sub(lambda match: "#" * len(match.group()), text)
    found = [match for match in _NUMBER.finditer(text) if not _is_name(text, match)]
    numbers = [Written(match["digits"], match["unit"] or "") for match in found]
    for k in range(len(found) - 2, -1, -1):
        join = _JOIN.fullmatch(text[found[k].end() : found[k + 1].start()])
        if join and not numbers[k].unit:
            numbers[k] = Written(numbers[k].digits, numbers[k + 1].unit, is_shared=join[1] not in ("-", "–", "to"))
    yield from numbers


def _is_name(text: str, match: re.Match) -> bool:
    """Tell whether digits belong to a word (p95, Qwen3-0.6B, int4) or to 4-bit, 95th, 95 % interval."""
    before = _PREFIX.search(text, max(0, match.start() - _LOOK_BACK), match.start()).group()
    return bool(re.search(r"[^\W\d]|#", before) or _SUFFIX.match(text, match.end("digits")))


def is_rounded(digits: str | float, truth: float) -> bool:
    """Tell whether `digits`, as written ("12.3", or a Python number), is `truth` rounded to those digits."""
    written = Decimal(digits.replace(",", "") if isinstance(digits, str) else repr(digits))
    if not math.isfinite(truth) or not math.isfinite(float(written)):
        return False
    half = float(Decimal((0, (5,), written.as_tuple().exponent - 1)))
    return abs(float(written) - truth) <= half * (1 + 1e-9) + 1e-9 * abs(truth)


def is_quoted(number: Written, values: dict[str, float]) -> bool:
    """Tell whether a written number is one of the values, in its unit.

    A value's name tells its unit by its suffix: `_s` seconds, `_bytes` bytes, `_per_s` and others as they are. ms, GiB
    and so on fit values of their kind only; % fits a share (0.42 is 42 %) or a value that is percent already. A zero,
    which everything small rounds to, is one only of a value that is 0.
    """
    is_zero = not Decimal(number.digits.replace(",", ""))
    units = {number.unit, ""} if number.is_shared else {number.unit}
    pairs = [pair for unit in units for pair in _find_scales(unit, values)]
    return any(value == 0 if is_zero else is_rounded(number.digits, abs(value) * scale) for value, scale in pairs)


def _find_scales(unit: str, values: dict[str, float]) -> Iterator[tuple[float, float]]:
    for name, value in values.items():
        # A count or a confidence has no unit, whatever it was counted over.
        parts = [] if name.endswith((".n", ".confidence")) else name.split(".")
        is_time = any(part.endswith("_s") and "_per_" not in part for part in parts)
        is_bytes = any(part.endswith("_bytes") for part in parts)
        if unit in _TIME:
            scales = (_TIME[unit],) if is_time else ()
        elif unit in _BYTES:
            scales = (_BYTES[unit],) if is_bytes else ()
        elif unit in _SHARE:
            scales = (100.0, 1.0) if not (is_time or is_bytes) else ()
        else:
            scales = (_COUNTS.get(unit, 1.0),)
        for scale in scales:
            yield value, scale
