"""How well do I predict? What counts, what the line says, and the figure that shows it."""

import math

import numpy as np
import plotly.io
import pytest

from labkit.plots import ESTIMATE, MEASURED, format_alternative, plot_calibration
from labkit.progress.calibration import Calibration, estimate_calibration, format_calibration
from labkit.progress.course import Course, Lab
from labkit.progress.state import Prediction, estimate_state


def make(*ratios):
    return Calibration(
        tuple(Prediction(f"00.p{k}", ratio * 10, 10.0, "tok/s") for k, ratio in enumerate(ratios, start=1))
    )


def state_of(*predictions):
    """The state of a course with one lab, from (kind, prediction, value) in the order of time."""
    names = tuple(dict.fromkeys(name for _, name, _ in predictions))
    lab = Lab("00", "00_x", "X", "?", 0, 10, (), names, ())
    events = [
        {"id": str(k), "time": f"2026-01-01T00:00:{k:02d}+00:00", "kind": kind, "exercise": name, "value": value}
        for k, (kind, name, value) in enumerate(predictions)
    ]
    return estimate_state(Course((), (lab,)), events)


def test_each_measured_prediction_counts_once_with_its_sign():
    state = state_of(
        ("prediction", "00.p1", 100), ("measured", "00.p1", 50.0),
        ("prediction", "00.p2", 3), ("measured", "00.p2", 12.0), ("measured", "00.p2", 6.0),
    )  # fmt: skip
    calibration = estimate_calibration(state)
    assert [one.ratio for one in calibration.predictions] == [2.0, 0.5]
    assert (calibration.n, calibration.num_skipped, calibration.num_late, calibration.num_signless) == (2, 0, 0, 0)


def test_predictions_that_cannot_be_judged_are_counted_separately():
    state = state_of(
        ("prediction", "00.p1", None), ("measured", "00.p1", 50.0),  # skipped
        ("measured", "00.p2", 50.0), ("prediction", "00.p2", 50),  # late
        ("prediction", "00.p3", 0), ("measured", "00.p3", 50.0),
        ("prediction", "00.p4", 5), ("measured", "00.p4", -1.0),
        ("prediction", "00.p5", 5),  # not measured yet
        ("prediction", "00.p6", True), ("measured", "00.p6", 1.0),
        ("prediction", "00.p7", 1e300), ("measured", "00.p7", 1e-300),
    )  # fmt: skip
    calibration = estimate_calibration(state)
    assert calibration == Calibration((), num_skipped=1, num_late=1, num_signless=4)
    line = format_calibration(calibration)
    assert line == (
        "Predictions: none measured yet (1 skipped, not counted; 1 given too late, not counted; "
        "4 without a factor (zero or negative), not counted)."
    )


def test_twice_too_high_and_twice_too_low_cancel_in_the_median_and_not_in_the_typical_factor():
    calibration = make(2.0, 0.5)
    assert calibration.median_ratio == pytest.approx(1)
    assert calibration.typical_factor == pytest.approx(2)


def test_the_interval_is_that_of_the_order_statistics():
    ratios = [0.1, 0.5, 0.9, 1.5, 2.0, 8.0]
    found = make(*ratios).interval
    assert (found.low, found.high) == (pytest.approx(0.1), pytest.approx(8.0))  # with n = 6: the whole range
    assert make(*ratios[:5]).interval is None


def test_the_median_agrees_with_numpy():
    ratios = np.random.default_rng(1).lognormal(0.3, 1, 41)
    calibration = make(*ratios)
    assert calibration.median_ratio == pytest.approx(np.median(ratios))
    assert calibration.typical_factor == pytest.approx(math.exp(np.median(np.abs(np.log(ratios)))))


def test_the_line_says_n_median_direction_and_spread():
    assert format_calibration(make()) == "Predictions: none measured yet."
    assert format_calibration(make(3.0)) == (
        "Predictions: n = 1, median predicted over measured 3.00 (too high; n too small), "
        "typically a factor of 3.00 off."
    )
    low = format_calibration(make(0.1, 0.5, 0.5, 0.5, 0.5, 0.9))
    assert "n = 6, median predicted over measured 0.500 (too low; 95 % interval 0.100 to 0.900)" in low
    assert "typically a factor of 2.00 off." in low
    skipped = Calibration(make(1.0).predictions, num_skipped=2)
    assert format_calibration(skipped).endswith("2 skipped, not counted.")


MANY = make(*np.random.default_rng(0).lognormal(0, 1, 100_000))


@pytest.mark.parametrize("calibration", [make(), make(2.0), pytest.param(MANY, marks=pytest.mark.slow)])
def test_the_figure_builds_and_survives_a_json_round_trip(calibration):
    figure = plot_calibration(calibration)
    assert plotly.io.from_json(figure.to_json()) == figure
    assert format_alternative(figure).startswith(figure.layout.title.text)


def test_the_figure_shows_each_ratio_once_on_a_log_axis_around_the_line_of_equality():
    figure = plot_calibration(make(2.0, 0.5, 0.25))
    line, dots, median = figure.data
    assert figure.layout.xaxis.type == "log"
    low, high = figure.layout.xaxis.range
    assert low == -high and high > math.log10(4)
    assert set(line.x) == {1} and line.line.color == MEASURED
    assert list(dots.x) == [2.0, 0.5, 0.25] and dots.marker.color == ESTIMATE
    assert median.x[0] == pytest.approx(0.5)
    assert list(figure.layout.yaxis.ticktext) == ["00.p1", "00.p2", "00.p3", "median"]
    assert figure.layout.title.text == "The median prediction is 2.00 times too low (n = 3)"
    assert "00.p3: predicted 2.50 tok/s, measured 10.0 tok/s, ratio 0.250" in format_alternative(figure)


def test_without_predictions_the_figure_says_so():
    assert plot_calibration(make()).layout.title.text == "No prediction has been measured yet"


def test_a_median_of_one_is_called_right():
    assert "is right" in plot_calibration(make(1.0, 1.0)).layout.title.text
    assert "(right; " in format_calibration(make(1.0))
