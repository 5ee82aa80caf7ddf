"""How is a number written? With its unit, and with no more digits than its spread supports.

Inside labkit there are only seconds and bytes; ms and GiB exist only in what is written here. `None` stands for a
statistic that the sample is too small to give, and is written "n too small". `is_number` and `is_near` say what counts
as a number, and as the same number, everywhere in labkit.
"""

import math
import numbers
from collections.abc import Callable
from typing import Any

__all__ = [
    "format_bytes",
    "format_interval",
    "format_number",
    "format_rate",
    "format_ratio",
    "format_seconds",
    "is_near",
    "is_number",
]

TOO_SMALL = "n too small"
DEFAULT_DIGITS = 3  # significant digits where no spread is given

_TIME_UNITS = (("ns", 1e-9), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0))
_MEMORY_UNITS = (("B", 1.0), ("KiB", 2.0**10), ("MiB", 2.0**20), ("GiB", 2.0**30), ("TiB", 2.0**40))
_SI_PREFIXES = (("", 1.0), ("k", 1e3), ("M", 1e6), ("G", 1e9), ("T", 1e12), ("P", 1e15))


def format_number(x: float | None, spread: float | None = None) -> str:
    """Write `x` down to the first digit of `spread`, and no further.

    151.26 with spread 3 is "151", with spread 0.04 "151.26". `spread` has the unit of `x`: a standard error, or the
    width of an interval. Without one (or with 0) there are three significant digits; an int is a count and is written
    in full. An infinite spread leaves the first digit; NaN counts as no spread.
    """
    if x is None:
        return TOO_SMALL
    if spread is not None and math.isnan(spread):
        spread = None
    if isinstance(x, numbers.Integral) and not spread:
        return f"{x:,}"
    if not math.isfinite(x):
        return str(x)
    leading = _leading_place(x)
    # Where the spread is larger than x itself, the leading digit of x still shows its size.
    if spread:
        place = min(_leading_place(spread), leading) if math.isfinite(spread) else leading
    else:
        place = leading - DEFAULT_DIGITS + 1
    rounded = round(x, -place) + 0.0  # + 0.0 turns -0.0 into 0.0
    if not spread and _leading_place(rounded) > leading:
        place += 1  # 9.996 became 10.0: still three digits
    return f"{rounded:,.{max(0, -place)}f}"


def format_seconds(s: float | None, *, spread: float | None = None) -> str:
    """Write seconds as ns, µs, ms or s ("12.3 ms"), and from two minutes on as "2 min 05 s" or "3 h 20 min"."""
    if s is None:
        return TOO_SMALL
    if math.isfinite(s) and abs(s) >= 119.5:
        sign, minutes = "-" if s < 0 else "", round(abs(s) / 60)
        if minutes >= 120:
            return f"{sign}{minutes // 60} h {minutes % 60:02d} min"
        whole = round(abs(s))
        return f"{sign}{whole // 60} min {whole % 60:02d} s"
    return _format_scaled(s, _TIME_UNITS, spread=spread, zero_unit="s")


def format_bytes(n: float | None) -> str:
    """Write bytes in the binary units of memory: 1 GiB = 2**30 bytes; `None` (nothing to read) is "unknown"."""
    if n is None:
        return "unknown"
    if abs(n) < 1024:
        return f"{round(n)} B"
    return _format_scaled(n, _MEMORY_UNITS)


def format_rate(x: float | None, unit: str, *, spread: float | None = None) -> str:
    """Write a rate with its unit: "151 tok/s"; FLOP/s, FLOP and B/s get a decimal prefix: "137 GFLOP/s"."""
    if x is None:
        return TOO_SMALL
    if unit.startswith(("FLOP", "B/")):
        return _format_scaled(x, tuple((prefix + unit, size) for prefix, size in _SI_PREFIXES), spread=spread)
    return f"{format_number(x, spread)} {unit}"


def format_ratio(x: float | None, *, spread: float | None = None) -> str:
    """Write a ratio as "1.23x"."""
    return TOO_SMALL if x is None else f"{format_number(float(x), spread)}x"


def format_interval(interval: Any, *, write: Callable[[float], str] | None = None) -> str:
    """Write an interval (anything with `low` and `high`) as "low to high", and `None` as "n too small".

    `write` formats one end, e.g. `format_seconds`; by default the width of the interval determines the digits.
    """
    if interval is None:
        return TOO_SMALL
    if write is None:
        width = interval.high - interval.low
        return f"{format_number(interval.low, width)} to {format_number(interval.high, width)}"
    return f"{write(interval.low)} to {write(interval.high)}"


def is_number(value: Any) -> bool:
    """Tell whether a value is a finite int or float that a float can hold; True and False are not numbers."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an int of hundreds of digits
        return False


def is_near(value: Any, other: Any, *, tolerance: float = 1e-6) -> bool:
    """Tell whether two values are numbers that differ by at most `tolerance` of the larger one."""
    return is_number(value) and is_number(other) and math.isclose(value, other, rel_tol=tolerance)


def _leading_place(x: float) -> int:
    """Return the power of ten of the first digit of `x`: 2 for 151, -2 for 0.04, 0 for 0."""
    return math.floor(math.log10(abs(x))) if x and math.isfinite(x) else 0


def _format_scaled(
    x: float, units: tuple[tuple[str, float], ...], *, spread: float | None = None, zero_unit: str = ""
) -> str:
    """Write `x` in the largest unit that leaves at least 1, judged after rounding: 0.9999 s is "1.00 s"."""
    if not x:
        return f"0 {zero_unit or units[0][0]}"
    # float("%.3g") is the number as it will be written: without it 999.96 ms would be "1,000 ms".
    size_read = max(abs(x), abs(float(f"{x:.{DEFAULT_DIGITS}g}")))
    name, scale = next(((n, s) for n, s in reversed(units) if size_read >= s), units[0])
    return f"{format_number(x / scale, spread / scale if spread else None)} {name}"
