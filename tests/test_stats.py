"""Summaries, intervals and comparisons, against numpy, scipy and simulation (cases 15 to 17)."""

import itertools
import json

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.errors import LabkitError
from labkit.stats import compare, estimate_mean_interval, estimate_percentile_interval, summarize
from labkit.units import format_interval

SMALLEST_N = {50: 6, 90: 29, 95: 59, 99: 299}
TIMES = st.floats(1e-6, 1e3)


def ranks(n, q, confidence=0.95):
    """Ask which order statistics are used: the samples are their own ranks."""
    interval = estimate_percentile_interval(range(1, n + 1), q, confidence=confidence)
    return None if interval is None else (int(interval.low), int(interval.high))


def exact_coverage(n, q):
    """Return how often the interval holds the true percentile, from scipy's binomial distribution."""
    low, high = ranks(n, q)
    below = scipy.stats.binom(n, q / 100)
    return below.cdf(high - 1) - below.cdf(low - 1)


@settings(deadline=None)
@given(st.lists(TIMES, min_size=1, max_size=400))
def test_percentiles_mean_and_std_equal_those_of_numpy(samples):
    summary = summarize(samples)
    assert summary.n == len(samples)
    assert (summary.minimum, summary.maximum) == (min(samples), max(samples))
    assert summary.mean == pytest.approx(np.mean(samples))
    assert summary.p50 == np.percentile(samples, 50)
    for q in (90, 95, 99):
        point = getattr(summary, f"p{q}")
        assert (point == np.percentile(samples, q)) if len(samples) >= SMALLEST_N[q] else point is None
    if len(samples) > 1:
        assert summary.std == pytest.approx(np.std(samples, ddof=1))


@pytest.mark.parametrize("q", SMALLEST_N)
def test_a_percentile_interval_exists_from_its_smallest_n_and_is_n_too_small_below(q):
    n = SMALLEST_N[q]
    assert ranks(n, q)[1] == n
    assert exact_coverage(n, q) >= 0.95
    assert estimate_percentile_interval(range(n - 1), q) is None
    assert format_interval(estimate_percentile_interval(range(n - 1), q)) == "n too small"


@pytest.mark.parametrize("q", SMALLEST_N)
def test_interval_ranks_are_the_closest_pair_that_reaches_the_confidence(q):
    for n in (6, 7, 10, 30, 59, 100, 299, 350):
        below = scipy.stats.binom(n, q / 100)
        cdf = below.cdf(np.arange(n + 1))
        pairs = itertools.combinations(range(1, n + 1), 2)
        spans = [high - low for low, high in pairs if cdf[high - 1] - cdf[low - 1] >= 0.95]
        chosen = ranks(n, q)
        assert (chosen is None) == (not spans)
        if chosen:
            assert chosen[1] - chosen[0] == min(spans)
            assert exact_coverage(n, q) >= 0.95
            assert chosen[0] <= 1 + q / 100 * (n - 1) <= chosen[1]  # the percentile itself is inside


def test_percentile_intervals_stay_exact_for_many_samples():
    assert exact_coverage(100_000, 99) == pytest.approx(0.95, abs=0.002)
    assert exact_coverage(100_000, 99) >= 0.95 - 1e-7


@pytest.mark.parametrize(("n", "q"), [(10, 50), (40, 50), (59, 95), (200, 90)])
def test_case_15_intervals_cover_the_true_percentile_of_exponential_samples(n, q):
    rng = np.random.default_rng(15)
    truth = -np.log(1 - q / 100)
    intervals = [estimate_percentile_interval(rng.exponential(size=n), q) for _ in range(2000)]
    covered = np.mean([interval.low <= truth <= interval.high for interval in intervals])
    assert covered >= 0.94
    assert covered == pytest.approx(exact_coverage(n, q), abs=0.015)


def test_case_16_the_t_interval_of_five_runs():
    interval = estimate_mean_interval([150, 152, 148, 155, 151])
    assert (round(interval.low, 1), round(interval.high, 1)) == (148.0, 154.4)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 10, 11, 100, 201, 202, 5000])
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
def test_the_t_interval_equals_that_of_scipy(n, confidence):
    samples = np.random.default_rng(n).normal(10, 1, size=n)
    interval = estimate_mean_interval(samples, confidence=confidence)
    expected = scipy.stats.t.interval(confidence, n - 1, loc=samples.mean(), scale=scipy.stats.sem(samples))
    assert (interval.low + interval.high) / 2 == pytest.approx(samples.mean())
    assert interval.high - interval.low == pytest.approx(expected[1] - expected[0], rel=2e-8)
    assert interval.confidence == confidence


def test_one_sample_has_a_median_but_no_spread_and_no_interval():
    summary = summarize([0.25])
    assert (summary.n, summary.mean, summary.p50) == (1, 0.25, 0.25)
    assert summary.std is summary.mean_interval is summary.p50_interval is summary.p99 is None


def test_no_outlier_is_dropped():
    summary = summarize([1.0] * 99 + [1000.0])
    assert (summary.n, summary.maximum) == (100, 1000.0)
    assert summary.mean == pytest.approx(10.99)


def test_a_summary_becomes_json_and_back():
    as_dict = summarize(np.arange(1.0, 61.0)).to_dict()
    assert json.loads(json.dumps(as_dict)) == as_dict
    assert as_dict["p50_interval"] == {"low": 22.0, "high": 38.0, "confidence": 0.95}
    assert as_dict["p99"] is None and as_dict["p99_interval"] is None


def test_ratio_is_the_speed_of_a_over_the_speed_of_b():
    seconds_a, seconds_b = [1.0, 1.1, 0.9], [2.0, 2.2, 1.8]
    times = compare(seconds_a, seconds_b, better="lower")
    assert times.ratio == pytest.approx(2.0)
    assert times.verdict == "faster"
    rates = compare([1 / s for s in seconds_a], [1 / s for s in seconds_b], better="higher")
    assert rates.ratio == pytest.approx(2.0)
    assert rates.verdict == "faster"
    assert compare(seconds_b, seconds_a).ratio == pytest.approx(0.5)
    assert compare(seconds_b, seconds_a).verdict == "slower"
    assert compare(seconds_a, seconds_b, better="higher").verdict == "slower"
    assert compare(seconds_a, seconds_b) == times  # lower is better unless said otherwise


@pytest.mark.slow
@settings(deadline=None)
@given(st.lists(st.tuples(TIMES, TIMES), min_size=2, max_size=50), st.sampled_from([0.9, 0.95]))
def test_the_paired_interval_equals_the_t_test_of_scipy_on_logarithms(pairs, confidence):
    a, b = np.array(pairs).T
    result = compare(a, b, confidence=confidence)
    gain = np.log(b / a)
    assert result.n == len(pairs)
    assert result.ratio == pytest.approx(scipy.stats.gmean(b / a))
    if gain.std() > 1e-9:
        expected = scipy.stats.ttest_rel(np.log(b), np.log(a)).confidence_interval(confidence)
        assert np.log([result.interval.low, result.interval.high]) == pytest.approx(tuple(expected), rel=1e-4, abs=1e-6)


def test_the_unpaired_interval_equals_that_of_welch():
    rng = np.random.default_rng(0)
    a, b = rng.lognormal(0, 0.1, 12), rng.lognormal(0.2, 0.3, 30)
    result = compare(a, b, is_paired=False)
    welch = scipy.stats.ttest_ind(np.log(b), np.log(a), equal_var=False)
    error = (np.log(b).mean() - np.log(a).mean()) / welch.statistic
    half = scipy.stats.t.ppf(0.975, np.floor(welch.df)) * error  # whole degrees of freedom, rounded down
    assert np.log(result.interval.high / result.ratio) == pytest.approx(half)
    assert result.n == 12


def test_pairs_cancel_a_drift_that_hides_the_difference_from_unpaired_samples():
    drift = np.linspace(1, 2, 10)
    a, b = 0.95 * drift, drift * np.tile([1.001, 0.999], 5)
    assert compare(a, b).verdict == "faster"
    assert compare(a, b, is_paired=False).verdict == "cannot tell"


@pytest.mark.parametrize("is_paired", [True, False])
@pytest.mark.parametrize("samples", [[2.0, 2.0], [0.1 + 0.2] * 5, [1.0, 2.0, 3.0]])
def test_identical_data_cannot_tell_and_does_not_crash(samples, is_paired):
    result = compare(samples, list(samples), is_paired=is_paired)
    assert result.verdict == "cannot tell"
    assert result.interval.low <= 1 <= result.interval.high
    assert result.ratio == 1


def test_rounding_in_the_last_digit_is_not_a_difference():
    assert compare([0.1 + 0.2] * 5, [0.3] * 5).verdict == "cannot tell"


def test_a_constant_difference_without_any_spread_is_found():
    assert compare([2.0] * 3, [1.0] * 3).verdict == "slower"
    assert compare([2.0] * 3, [1.0] * 3, is_paired=False).verdict == "slower"


@pytest.mark.parametrize("step", [0.002, 0.01, 0.02])
def test_a_coarse_clock_makes_no_difference_of_five_noisy_pairs(step):
    """A and B are the same thing, read in whole steps of a clock, with more than two pairs, as `compare` says."""
    rng = np.random.default_rng(11)
    trials = [compare(*(step * np.round(rng.normal(1, 0.01, (2, 5)) / step))) for _ in range(2000)]
    assert sum(trial.verdict != "cannot tell" for trial in trials) <= 0.06 * 2000


def test_a_ratio_that_overflows_cannot_tell():
    assert compare([1e-300, 1e300], [1.0, 1.0]).verdict == "cannot tell"
    assert compare([1e-300, 1e-300], [1e300, 1e300]).ratio == np.inf


@pytest.mark.slow
@pytest.mark.parametrize("is_paired", [True, False])
def test_case_17_two_runs_of_the_same_thing_cannot_be_told_apart(is_paired):
    rng = np.random.default_rng(17)
    # 3,000 trials rather than 1,000: the true share is 95 %, and chance alone must not decide the test.
    trials = [compare(rng.normal(1, 0.01, 5), rng.normal(1, 0.01, 5), is_paired=is_paired) for _ in range(3000)]
    assert sum(trial.verdict == "cannot tell" for trial in trials) >= 0.94 * 3000


@pytest.mark.parametrize(("better", "verdict"), [("lower", "slower"), ("higher", "faster")])
def test_case_17_a_shift_of_five_percent_is_found(better, verdict):
    rng = np.random.default_rng(17)
    trials = [compare(rng.normal(1.05, 0.0105, 5), rng.normal(1, 0.01, 5), better=better) for _ in range(1000)]
    assert sum(trial.verdict == verdict for trial in trials) >= 990


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: summarize([]), "at least n = 1"),
        (lambda: summarize([[1.0], [2.0]]), "flat list"),
        (lambda: summarize([1.0, None, "x"]), "numbers"),
        (lambda: summarize(["1", "2"]), "numbers in a flat list"),
        (lambda: summarize(np.array(["1", "2"])), "numbers in a flat list"),
        (lambda: summarize([True, False]), "numbers in a flat list"),
        (lambda: summarize([1.0, np.True_]), "numbers in a flat list"),
        (lambda: summarize(np.array([1j])), "numbers in a flat list"),
        (lambda: compare([1.0, True], [1.0, 2.0]), "numbers in a flat list"),
        (lambda: summarize([1.0, float("nan")]), "sample 1 is nan"),
        (lambda: estimate_mean_interval([1.0]), "at least n = 2"),
        (lambda: estimate_mean_interval([1.0, 2.0], confidence=95), "0.95 for 95 %"),
        (lambda: estimate_percentile_interval([1.0], 0.5), "50 for the median"),
        (lambda: compare([1.0], [1.0]), "at least n = 2"),
        (lambda: compare([1.0, 0.0], [1.0, 1.0]), "sample 1 is 0.0"),
        (lambda: compare([1.0, 1.0], [-1.0, 1.0]), "above 0"),
        (lambda: compare([1.0, 1.0], [1.0, 1.0, 1.0]), "in turns"),
        (lambda: compare([1.0, 1.0], [1.0, 1.0], better="bigger"), "bigger"),
    ],
)
def test_bad_input_is_an_error_and_not_a_number(call, message):
    with pytest.raises(LabkitError, match=message):
        call()
