"""The price of a token (case 21)."""

import pytest

from labkit.cost import estimate_usd_per_million_tokens
from labkit.errors import LabkitError


def test_case_21_two_dollars_an_hour_at_a_thousand_tokens_a_second():
    assert estimate_usd_per_million_tokens(2.00, tok_per_s=1000) == pytest.approx(0.5556, abs=5e-5)


def test_a_million_tokens_in_exactly_one_hour_cost_the_price_of_the_hour():
    assert estimate_usd_per_million_tokens(3.5, tok_per_s=1e6 / 3600) == pytest.approx(3.5)


def test_twice_the_speed_is_half_the_price_and_a_free_machine_is_free():
    slow, fast = (estimate_usd_per_million_tokens(2.0, tok_per_s=speed) for speed in (50, 100))
    assert slow == pytest.approx(2 * fast)
    assert estimate_usd_per_million_tokens(0, tok_per_s=5) == 0


@pytest.mark.parametrize("tok_per_s", [0, -1.0, float("nan"), float("inf")])
def test_case_21_zero_throughput_is_an_error(tok_per_s):
    with pytest.raises(LabkitError, match="throughput"):
        estimate_usd_per_million_tokens(2.0, tok_per_s=tok_per_s)


@pytest.mark.parametrize("price", [-1.0, float("nan"), float("inf")])
def test_a_negative_price_is_an_error(price):
    with pytest.raises(LabkitError, match="price"):
        estimate_usd_per_million_tokens(price, tok_per_s=10)
