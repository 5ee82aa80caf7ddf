"""Two regimes: the fit against a brute-force search and scipy, the interval against simulation, and honest refusals."""

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.errors import LabkitError
from labkit.regimes import fit_regimes, format_regimes

BATCHES = (1, 2, 4, 8, 16, 32, 64)
SHAPES = {
    "max": lambda b, a, c, d: np.maximum(a, c + d * np.asarray(b, dtype=float)),
    "sum": lambda b, a, c, d: a + d * np.asarray(b, dtype=float),
}


def draw_samples(curve, *, cv=0.0, n=4, seed=0, batches=BATCHES):
    rng = np.random.default_rng(seed)
    return {b: (curve(b) * np.exp(rng.normal(0, cv, n))).tolist() for b in batches}


def errors(parameters, shape, samples):
    """Relative errors of a curve given as (flat, slope, knee), written down another way than in labkit."""
    flat, slope, knee = parameters
    found = []
    for b, values in samples.items():
        y = float(np.prod(values)) ** (1 / len(values))
        curve = flat + slope * b if shape == "sum" else flat + (slope * (b - knee) if b > knee else 0.0)
        found.append(curve / y - 1)
    return np.array(found)


# Exact curves, by hand


def test_a_curve_without_noise_gives_its_own_numbers():
    found = fit_regimes(draw_samples(lambda b: SHAPES["max"](b, 8e-3, 2e-3, 0.5e-3)), shape="max")
    assert found.verdict == "knee"
    assert found.knee == pytest.approx(12.0, rel=0.004)  # (8 - 2) / 0.5
    assert (found.flat_s, found.slope_s) == pytest.approx((8e-3, 0.5e-3), rel=0.01)
    assert found.misfit < 0.01
    assert found.estimate([1, 12, 32]) == pytest.approx([8e-3, 8e-3, 18e-3], rel=0.01)


def test_a_sum_without_noise_gives_its_own_numbers():
    found = fit_regimes(draw_samples(lambda b: 8e-3 + 0.5e-3 * b), shape="sum")
    assert (found.verdict, found.shape) == ("knee", "sum")
    assert found.knee == pytest.approx(16.0, rel=0.004)  # 8 / 0.5
    assert found.estimate(16) == pytest.approx(2 * found.flat_s, rel=1e-4), (
        "at the knee the rows cost as much as the rest"
    )
    assert 16 / found.estimate(16) == pytest.approx(0.5 / found.slope_s, rel=1e-4), "and half of the ceiling is reached"


@pytest.mark.parametrize("shape", SHAPES)
def test_the_unit_of_time_does_not_change_the_knee(shape):
    samples = draw_samples(lambda b: SHAPES[shape](b, 8.0, 2.0, 0.5), cv=0.03)
    a = fit_regimes(samples, shape=shape)
    b = fit_regimes({x: [1000 * v for v in values] for x, values in samples.items()}, shape=shape)
    assert (a.knee, a.low, a.high) == pytest.approx((b.knee, b.low, b.high))
    assert b.flat_s == pytest.approx(1000 * a.flat_s)


def test_the_order_of_the_points_changes_nothing():
    samples = draw_samples(lambda b: 8.0 + 0.5 * b, cv=0.03)
    assert fit_regimes(dict(reversed(samples.items())), shape="sum") == fit_regimes(samples, shape="sum")


# Independent oracles


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("shape", SHAPES)
def test_no_curve_of_a_brute_force_search_is_better(shape, seed):
    samples = draw_samples(lambda b: SHAPES[shape](b, 8.0, 2.0, 0.5), cv=0.05, seed=seed)
    found = fit_regimes(samples, shape=shape)
    squares = (errors((found.flat_s, found.slope_s, found.bend), shape, samples) ** 2).sum()
    best = min(
        (errors((flat, slope, knee), shape, samples) ** 2).sum()
        for flat in np.linspace(6.5, 9.5, 16)
        for slope in np.linspace(0.3, 0.7, 17)
        for knee in (np.linspace(4, 24, 21) if shape == "max" else [0.0])
    )
    assert squares <= best * (1 + 1e-6)
    assert found.misfit == pytest.approx(
        np.abs(errors((found.flat_s, found.slope_s, found.bend), shape, samples)).max()
    )


@pytest.mark.parametrize("seed", range(6))
def test_scipys_least_squares_finds_the_same_sum(seed):
    samples = draw_samples(lambda b: 8.0 + 0.5 * b, cv=0.1, seed=seed)
    found = fit_regimes(samples, shape="sum")
    oracle = scipy.optimize.least_squares(lambda p: errors((*p, 0.0), "sum", samples), x0=[5.0, 1.0], xtol=1e-12)
    assert (found.flat_s, found.slope_s) == pytest.approx(oracle.x, rel=3e-3)
    assert found.knee == pytest.approx(oracle.x[0] / oracle.x[1], rel=5e-3)


@pytest.mark.parametrize("seed", range(6))
def test_the_interval_of_a_sum_is_that_of_an_f_test(seed):
    samples = draw_samples(lambda b: 8.0 + 0.5 * b, cv=0.1, seed=seed)
    found = fit_regimes(samples, shape="sum")

    def squares(knee):
        ratio = [(knee + b) / (float(np.prod(v)) ** (1 / len(v))) for b, v in samples.items()]
        return scipy.optimize.minimize_scalar(
            lambda d: sum((d * r - 1) ** 2 for r in ratio),
            bounds=(1e-3, 10),
            method="bounded",
            options={"xatol": 1e-12},
        ).fun

    within = np.mean([np.var(np.log(v), ddof=1) / len(v) for v in samples.values()])
    noise = max(squares(found.knee) / 5, within)
    limit = squares(found.knee) + noise * scipy.stats.f.ppf(0.95, 1, 5)
    assert squares(found.low * 1.004) < limit < squares(found.low / 1.006)
    assert squares(found.high / 1.004) < limit < squares(found.high * 1.006)


# Coverage by simulation


def simulate(shape, *, cv, num, n=4, knee, a, c, d):
    held = shown = 0
    for seed in range(num):
        found = fit_regimes(draw_samples(lambda b: SHAPES[shape](b, a, c, d), cv=cv, n=n, seed=seed), shape=shape)
        if found.verdict == "knee":
            shown += 1
            held += found.low <= knee <= found.high
    return held, shown


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "knee", "c"), [("max", 12.0, 2.0), ("sum", 16.0, 0.0)])
def test_the_interval_holds_the_true_knee_in_95_of_100_simulations(shape, knee, c):
    held, shown = simulate(shape, cv=0.05, num=100, knee=knee, a=8.0, c=c, d=0.5)
    assert shown == 100
    assert held >= 95


@pytest.mark.slow
@pytest.mark.parametrize("cv", [0.01, 0.05, 0.1])
@pytest.mark.parametrize(("shape", "knee", "c"), [("max", 12.0, 2.0), ("max", 5.0, 5.5), ("sum", 16.0, 0.0)])
def test_the_interval_holds_the_true_knee_in_95_of_100_of_many_simulations(shape, knee, c, cv):
    held, shown = simulate(shape, cv=cv, num=400, knee=knee, a=8.0, c=c, d=0.5)
    assert shown >= 160
    assert held / shown >= 0.95


@pytest.mark.slow
def test_noise_widens_the_interval_and_rounds_narrow_it():
    def width(**options):
        found = [fit_regimes(draw_samples(lambda b: 8.0 + 0.5 * b, seed=s, **options), shape="sum") for s in range(20)]
        return np.median([one.high / one.low for one in found])

    assert width(cv=0.01) < width(cv=0.05) < width(cv=0.2)
    assert width(cv=0.1, n=40) < width(cv=0.1, n=4)


def test_a_shape_that_does_not_fit_gives_a_wide_interval_however_exact_the_samples():
    bent = {b: [t, t * 1.0001] for b, t in zip(BATCHES, (6.2, 8.4, 10.3, 11.3, 14.3, 22.5, 32.2), strict=True)}
    found = fit_regimes(bent, shape="sum")
    assert found.misfit > 0.1
    assert found.high / found.low > 1.5, "samples without noise, but 10 % from the curve: not sure to three digits"


# Honest refusals


@pytest.mark.parametrize("cv", [0.01, 0.1])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_flat_curve_has_no_knee_within_the_sweep(shape, cv):
    found = fit_regimes(draw_samples(lambda b: 8.0, cv=cv), shape=shape)
    assert (found.verdict, found.knee, found.high) == ("flat", None, None)


@pytest.mark.parametrize("cv", [0.01, 0.1])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_curve_that_rises_from_the_first_row_has_no_knee_within_the_sweep(shape, cv):
    found = fit_regimes(draw_samples(lambda b: 0.5 * b, cv=cv), shape=shape)
    assert (found.verdict, found.knee, found.low) == ("linear", None, None)
    assert found.high is None or found.high < 8


def test_a_sum_has_no_flat_part():
    assert fit_regimes(draw_samples(lambda b: 8.0 + 0.5 * b, cv=0.02), shape="max").verdict == "linear"


def test_a_knee_at_the_very_end_is_only_known_to_lie_there():
    found = fit_regimes(draw_samples(lambda b: 8.0 if b < 64 else 12.0, cv=0.01), shape="max")
    assert found.verdict == "knee"
    assert found.low >= 29 and found.high > 60, "one point beyond the knee cannot say where between two points it is"


def test_a_knee_far_outside_is_not_found_inside():
    assert fit_regimes(draw_samples(lambda b: 100.0 + 0.1 * b, cv=0.01), shape="sum").verdict == "flat"
    assert fit_regimes(draw_samples(lambda b: 0.05 + 0.5 * b, cv=0.03), shape="sum").verdict == "linear"


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_overwhelming_noise_cannot_tell(shape):
    verdicts = [fit_regimes(draw_samples(lambda b: 8.0, cv=3.0, n=2, seed=s), shape=shape).verdict for s in range(40)]
    assert verdicts.count("cannot tell") > 20


@pytest.mark.slow
def test_noise_alone_is_rarely_mistaken_for_a_knee():
    found = [fit_regimes(draw_samples(lambda b: 8.0, cv=0.1, seed=s), shape="max").verdict for s in range(100)]
    assert found.count("knee") <= 5


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.floats(1e-6, 1e3), min_size=2, max_size=4), min_size=5, max_size=9),
    st.sampled_from(["max", "sum"]),
)
def test_any_times_give_a_consistent_answer(lists, shape):
    samples = {2**k: values for k, values in enumerate(lists)}
    found = fit_regimes(samples, shape=shape)
    assert found.verdict in ("knee", "flat", "linear", "cannot tell")
    assert (found.knee is not None) == (found.verdict == "knee")
    if found.verdict == "knee":
        assert 1 <= found.low <= found.knee <= found.high <= 2 ** (len(lists) - 1) * (1 + 1e-9)
    assert found.flat_s > 0 and found.slope_s >= 0
    assert np.isfinite(found.estimate(list(samples))).all()


@pytest.mark.parametrize(("samples", "what"), [
    ({b: [1.0, 1.0] for b in (1, 2, 4, 8)}, "4 points are too few"),
    ({b: [1.0] for b in BATCHES}, "not two or more times"),
    ({b: [1.0, 0.0] for b in BATCHES}, "not two or more times"),
    ({b: [1.0, float("nan")] for b in BATCHES}, "not two or more times"),
    ({b: [1.0, 2.0] for b in (0, 1, 2, 4, 8)}, "not two or more times"),
])  # fmt: skip
def test_what_cannot_be_fitted_is_refused(samples, what):
    with pytest.raises(LabkitError, match=what):
        fit_regimes(samples)


def test_an_unknown_shape_is_refused():
    with pytest.raises(LabkitError, match='"max" or "sum"'):
        fit_regimes(draw_samples(lambda b: 8.0), shape="hockey stick")


@pytest.mark.parametrize(("curve", "cv", "words"), [
    (lambda b: 8.0 + 0.5 * b, 0.02, "knee at 1"),
    (lambda b: 8.0, 0.02, "no knee within the sweep, flat to its end"),
    (lambda b: 0.5 * b, 0.02, "no knee within the sweep, linear from its beginning; if there is one it lies below"),
])  # fmt: skip
def test_the_words_agree_with_the_fit(curve, cv, words):
    fit = fit_regimes(draw_samples(curve, cv=cv), shape="sum")
    assert format_regimes(fit).startswith(words)
    if fit.verdict == "knee":
        assert format_regimes(fit) == f"knee at {fit.knee:.3g} ({fit.low:.3g} to {fit.high:.3g})"


def test_every_verdict_has_words():
    rng = np.random.default_rng(5)
    seen = set()
    for seed in range(60):
        fit = fit_regimes(draw_samples(lambda b: 8.0, cv=float(rng.uniform(0.01, 3)), n=2, seed=seed), shape="max")
        seen.add(fit.verdict)
        assert format_regimes(fit)
    assert "cannot tell" in seen
