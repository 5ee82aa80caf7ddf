"""labkit.load.search: the highest rate within an SLO, on servers whose answer is known."""

import math

import numpy as np
import pytest

from labkit.errors import LabkitError
from labkit.load.records import Chunk, RequestRecord
from labkit.load.report import LoadResult
from labkit.load.search import Bisection, estimate_share_interval, find_saturation, run_search
from labkit.load.verdict import ClientVerdict

SLO = {"ttft_from_schedule": 0.5}


def make_records(waits, *, gap_s=0.1):
    return tuple(
        RequestRecord(
            k, k * gap_s, k * gap_s, k * gap_s + wait, chunks=(Chunk(k * gap_s + wait, 1),), num_output_tokens=1
        )
        if math.isfinite(wait)
        else RequestRecord(k, k * gap_s, k * gap_s, k * gap_s + 9.0, cause="http 503")
        for k, wait in enumerate(waits)
    )


def make_result(waits, *, is_valid=True):
    records = make_records(waits)
    verdict = ClientVerdict(is_valid, () if is_valid else ("send lag",), (), {})
    return LoadResult({}, {"loop": "open"}, records, None, verdict, SLO, "complete")


@pytest.mark.parametrize("limit", [0.3, 1.0, 7.7, 19.0, 640.0])
def test_the_bisection_ends_within_its_tolerance(limit):
    search, tried = Bisection(8.0, lowest=0.1, highest=1000.0, tolerance=1.05), []
    while search.value is not None:
        tried.append(search.value)
        search.tell(search.value <= limit)
    assert search.best <= limit < search.worst <= search.best * 1.05 and len(tried) < 20


def test_the_bisection_stops_at_its_borders():
    search = Bisection(8.0, lowest=1.0, highest=100.0)
    while search.value is not None:
        assert 1.0 <= search.value <= 100.0
        search.tell(True)
    assert search.best == 100.0 and math.isinf(search.worst)
    search = Bisection(8.0, lowest=1.0, highest=100.0)
    while search.value is not None:
        search.tell(False)
    assert (search.best, search.worst) == (0.0, 1.0)
    with pytest.raises(LabkitError):
        Bisection(0.0, lowest=1.0, highest=2.0)


def test_wilsons_interval():
    from scipy.stats import binomtest

    for good, num in ((99, 100), (0, 5), (5, 5), (990, 1000)):
        exact = binomtest(good, num).proportion_ci(method="wilson")
        assert estimate_share_interval(good, num) == pytest.approx((exact.low, exact.high), abs=1e-12)
    assert estimate_share_interval(0, 0) == (0.0, 1.0)


def run_server(capacity_per_s, calls):
    """A server that is quick up to its capacity and misses the SLO for a share of the requests above it."""

    def run_at(rate_per_s, repeat):
        calls.append(rate_per_s)
        generator = np.random.default_rng((repeat, round(rate_per_s * 1000)))
        share = 0.001 if rate_per_s <= capacity_per_s else 0.05
        return make_result(np.where(generator.random(600) < share, 0.9, 0.1))

    return run_at


def test_the_search_finds_the_capacity():
    calls = []
    found = run_search(run_server(37.0, calls), SLO, start_per_s=4.0)
    assert found.rate_per_s <= 37.0 <= found.missed_per_s <= found.rate_per_s * 1.1 + 1e-9
    assert len(calls) < 25 and "keeps the SLO" in str(found)
    assert {trial.outcome for trial in found.trials} <= {"kept", "missed", "open"}


def test_exactly_the_share_stays_open():
    """1 % misses exactly: the interval holds 0.99 whatever the repeats, and what stays open is a no."""
    found = run_search(lambda rate, repeat: make_result([0.9] * 6 + [0.1] * 594), SLO, highest_per_s=1.0)
    assert found.rate_per_s == 0.0 and {trial.outcome for trial in found.trials} == {"open"}
    assert {trial.num_runs for trial in found.trials} == {3}


def test_an_invalid_run_decides_nothing_and_is_repeated():
    seen = []

    def run_at(rate_per_s, repeat):
        seen.append(repeat)
        return make_result([0.1] * 500, is_valid=repeat > 0)

    found = run_search(run_at, SLO, highest_per_s=1.0)
    assert (found.rate_per_s, seen) == (1.0, [0, 1]) and found.trials[0].num_invalid == 1
    found = run_search(lambda rate, repeat: make_result([0.1] * 500, is_valid=False), SLO, highest_per_s=1.0)
    assert found.rate_per_s == 0.0 and found.trials[0].outcome == "invalid"


def test_a_growing_queue_is_over_saturated_though_every_request_met_its_slo():
    growing = [0.02 + 0.0005 * k for k in range(900)]  # 0.47 s at the end of 90 s: it will not stop there
    assert find_saturation(make_records(growing)) == ""  # under 5 % of the sending time
    steep = [0.02 + 0.01 * k for k in range(900)]
    assert "grew from" in find_saturation(make_records(steep))
    found = run_search(lambda rate, repeat: make_result(steep), {"ttft_from_schedule": 100.0}, highest_per_s=1.0)
    assert found.rate_per_s == 0.0 and {trial.outcome for trial in found.trials} == {"over-saturated"}
    assert {trial.num_runs for trial in found.trials} == {1}  # one run is enough


def test_noise_and_a_failing_server_are_not_a_growing_queue():
    generator = np.random.default_rng(1)
    for _ in range(20):
        assert find_saturation(make_records(generator.lognormal(0, 1, 300))) == ""
    assert find_saturation(make_records([math.inf] * 300)) == ""
    assert "grew from" in find_saturation(make_records([0.1] * 100 + [math.inf] * 200))
    assert find_saturation(make_records([5.0 * k for k in range(20)])) == ""  # too few to say


def test_a_search_needs_an_slo():
    with pytest.raises(LabkitError, match="needs an SLO"):
        run_search(lambda rate, repeat: None, {})
