"""Numbers are written with their unit and with no more digits than their spread supports."""

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.stats import Interval
from labkit.units import (
    format_bytes,
    format_interval,
    format_number,
    format_rate,
    format_ratio,
    format_seconds,
    is_near,
    is_number,
)


@pytest.mark.parametrize(
    ("x", "spread", "expected"),
    [
        (151.26, 3.0, "151"),
        (151.26, 0.3, "151.3"),
        (151.26, 0.04, "151.26"),
        (151.26, 40.0, "150"),
        (151.26, None, "151"),
        (1.5126, None, "1.51"),
        (12345.6, None, "12,300"),
        (9.996, None, "10.0"),  # rounding adds a digit in front, so one is dropped behind
        (5.0, 40.0, "5"),  # a spread larger than the number still leaves its first digit
        (-0.04, 1.0, "-0.04"),
        (0.0, None, "0.00"),
        (8030261248, None, "8,030,261,248"),  # a count is exact
        (np.int64(1234), None, "1,234"),
        (1234, 100.0, "1,200"),
        (float("inf"), None, "inf"),
        (None, None, "n too small"),
    ],
)
def test_a_number_has_the_digits_that_its_spread_supports(x, spread, expected):
    assert format_number(x, spread) == expected


@settings(deadline=None)
@given(st.floats(1e-6, 1e9), st.floats(1e-6, 1e9))
def test_a_number_is_never_written_more_finely_than_its_spread(x, spread):
    text = format_number(x, spread)
    decimals = len(text.split(".")[1]) if "." in text else 0
    assert decimals == 0 or 10.0**-decimals >= min(spread, x) / 10.0001
    assert float(text.replace(",", "")) == pytest.approx(x, abs=0.51 * max(spread, 1e-9))


@pytest.mark.parametrize(
    ("s", "expected"),
    [
        (0, "0 s"),
        (1.234e-8, "12.3 ns"),
        (1.234e-5, "12.3 µs"),
        (0.0123, "12.3 ms"),
        (-0.0123, "-12.3 ms"),
        (0.99996, "1.00 s"),
        (1.0, "1.00 s"),
        (119.4, "119 s"),
        (119.6, "2 min 00 s"),
        (125.2, "2 min 05 s"),
        (12000.0, "3 h 20 min"),
        (None, "n too small"),
    ],
)
def test_seconds_choose_a_readable_unit(s, expected):
    assert format_seconds(s) == expected


def test_the_spread_is_scaled_with_the_unit():
    assert format_seconds(0.0123456, spread=0.0004) == "12.3 ms"
    assert format_seconds(0.0123456, spread=0.002) == "12 ms"


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (131072, "128 KiB"),
        (2**20, "1.00 MiB"),
        (1.5 * 2**30, "1.50 GiB"),
        (16_060_522_496, "15.0 GiB"),
        (None, "unknown"),
    ],
)
def test_bytes_are_written_in_binary_units(n, expected):
    assert format_bytes(n) == expected


@settings(deadline=None)
@given(st.floats(1, 2**45))
def test_written_bytes_read_back_within_the_rounding(n):
    value, unit = re.fullmatch(r"([\d,.]+) (\w+)", format_bytes(n)).groups()
    scale = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}[unit]
    assert float(value.replace(",", "")) * scale == pytest.approx(n, rel=0.006, abs=0.5)


def test_rates_carry_their_unit():
    assert format_rate(151.26, "tok/s", spread=3) == "151 tok/s"
    assert format_rate(137.4e9, "FLOP/s") == "137 GFLOP/s"
    assert format_rate(1.3974e12, "B/s", spread=0.02e12) == "1.40 TB/s"
    assert format_rate(None, "tok/s") == "n too small"


def test_ratios_end_with_x():
    assert format_ratio(2) == "2.00x"
    assert format_ratio(1.2345, spread=0.2) == "1.2x"
    assert format_ratio(None) == "n too small"


def test_an_interval_is_written_with_the_digits_of_its_width_and_a_missing_one_as_n_too_small():
    interval = Interval(147.986, 154.414, 0.95)
    assert format_interval(interval) == "148 to 154"
    assert format_interval(interval, write=format_ratio) == "148x to 154x"
    assert format_interval(Interval(0.0121, 0.0124, 0.95), write=format_seconds) == "12.1 ms to 12.4 ms"
    assert format_interval(None) == format_interval(None, write=format_seconds) == "n too small"


def test_an_infinite_spread_leaves_one_digit_and_nan_counts_as_none():
    assert format_number(1_234_567.0, math.inf) == "1,000,000"
    assert format_number(0.0123, math.inf) == "0.01"
    assert format_number(3.7, math.nan) == "3.70"
    assert format_interval(Interval(1.2345678, math.inf, 0.95)) == "1 to inf"


@pytest.mark.parametrize("value", [0, -3, 2.5, 1e300, np.float64(1.0)])
def test_finite_ints_and_floats_are_numbers(value):
    assert is_number(value)


@pytest.mark.parametrize("value", [True, None, "1", [1], float("nan"), float("inf"), 10**400, 1j])
def test_anything_else_is_not_a_number(value):
    assert not is_number(value)
    assert not is_near(value, value)


def test_near_is_within_the_tolerance_of_the_larger_number():
    assert is_near(1, 1.0) and is_near(1.0, 1 + 9e-7) and not is_near(1.0, 1 + 2e-6)
    assert is_near(100, 101, tolerance=0.01) and not is_near(100, 102, tolerance=0.01)
    assert not is_near(0.0, 1e-12)
