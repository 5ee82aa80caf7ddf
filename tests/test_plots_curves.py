"""Curves of a sweep: inputs of every size, intervals that follow from the samples, and a text that says it all."""

import numpy as np
import pytest
import scipy.stats

pytest.importorskip("plotly")

import plotly.io  # noqa: E402

from labkit.plots import (  # noqa: E402
    ESTIMATE,
    MEASURED,
    format_alternative,
    plot_curves,
    plot_scaling,
    plot_step_costs,
)
from labkit.regimes import fit_regimes  # noqa: E402

STEPS = {b: [t * f for f in (0.97, 1.0, 1.02, 1.05)] for b, t in zip((1, 2, 4, 8, 16, 32, 64),
         (0.006, 0.0082, 0.010, 0.0113, 0.014, 0.022, 0.032), strict=True)}  # fmt: skip
LABELS = {"x": "batch size", "y": "throughput, tok/s", "title": "It grows"}


def rebuild(figure):
    return plotly.io.from_json(figure.to_json())


def trace(figure, name):
    return next(one for one in figure.data if one.name and one.name.startswith(name))


@pytest.mark.parametrize("curves", [
    {}, {"a": {}}, {"a": {1: []}}, {"a": {1: [2.0]}}, {"a": {1: [2.0, 3.0]}, "b": {4: [1.0]}}, {"a": {0: [0.0, 1.0]}},
    pytest.param({"a": {k: [1.0 + k] for k in range(1, 100_001)}}, marks=pytest.mark.slow),
], ids=["nothing", "no points", "no samples", "one row", "two", "zero", "100,000 rows"])  # fmt: skip
def test_a_figure_of_any_size_is_built_and_survives_json(curves):
    figure = plot_curves(curves, **LABELS)
    assert rebuild(figure) == figure
    assert figure.layout.title.text == "It grows"
    assert format_alternative(figure).startswith("It grows. ")
    assert len(format_alternative(figure)) < 600


@pytest.mark.parametrize("steps", [{}, {1: [0.01]}, STEPS], ids=["nothing", "one row", "a sweep"])
def test_a_scaling_figure_of_any_size_is_built_and_survives_json(steps):
    figure = plot_scaling(steps, title="It bends", limit_s=0.02)
    assert rebuild(figure) == figure
    assert "It bends. " in format_alternative(figure)


@pytest.mark.slow
def test_a_scaling_figure_of_100_000_rows_is_built_and_survives_json():
    figure = plot_scaling({k: [0.001 * k, 0.0011 * k] * 50 for k in range(1, 1001)}, title="It bends")
    assert rebuild(figure) == figure
    assert len(figure.data[0].x) == 1000 and set(figure.data[0].customdata) == {100}


def test_a_point_is_the_geometric_mean_with_its_t_interval():
    figure = plot_curves({"a": {4: [90.0, 100.0, 121.0]}}, **LABELS)
    logs = np.log([90.0, 100.0, 121.0])
    oracle = scipy.stats.ttest_1samp(logs, 0).confidence_interval(0.95)
    (curve,) = figure.data
    assert curve.y[0] == pytest.approx(np.exp(logs.mean()))
    assert curve.y[0] + curve.error_y.array[0] == pytest.approx(np.exp(oracle.high), rel=1e-6)
    assert curve.y[0] - curve.error_y.arrayminus[0] == pytest.approx(np.exp(oracle.low), rel=1e-6)
    assert "n = 3 per point" in format_alternative(figure)


def test_one_sample_has_no_interval():
    (curve,) = plot_curves({"a": {4: [90.0]}}, **LABELS).data
    assert (curve.error_y.array[0], curve.error_y.arrayminus[0]) == (0, 0)


def test_points_are_in_order_of_x_and_the_measured_values_are_the_ticks():
    figure = plot_curves({"a": {4: [2.0], 1: [1.0], 16: [3.0]}}, **LABELS)
    assert list(figure.data[0].x) == [1, 4, 16]
    assert figure.layout.xaxis.type == "log"
    assert list(figure.layout.xaxis.ticktext) == ["1", "4", "16"]
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("batch size", "throughput, tok/s")


def test_curves_differ_by_symbol_as_well_as_by_colour_and_computed_ones_have_the_colour_of_estimates():
    curves = {name: {1: [1.0], 2: [2.0]} for name in "abcd"}
    figure = plot_curves(curves, **LABELS, estimates={"Little": {1: 1.0, 2: 2.0}}, limit=("limit 3", 3.0))
    looks = [(trace(figure, name).marker.color, trace(figure, name).marker.symbol) for name in "abcd"]
    assert len({colour for colour, _ in looks}) == len({symbol for _, symbol in looks}) == 4
    assert looks[0][0] == MEASURED
    assert trace(figure, "Little").line.color == ESTIMATE
    assert "Little (computed)" in format_alternative(figure) and "limit 3: 3" in format_alternative(figure)


def test_throughput_is_batch_over_time_and_both_panels_have_units():
    figure = plot_scaling(STEPS, title="It bends")
    above, below = figure.data[:2]
    assert above.y[3] * below.y[3] == pytest.approx(8 * 1e3)
    assert "tok/s" in figure.layout.yaxis2.title.text and "ms" in figure.layout.yaxis.title.text


def test_fit_knee_limit_and_sweet_spot_are_drawn_and_described():
    fit = fit_regimes(STEPS, shape="sum")
    figure = plot_scaling(STEPS, title="It bends", fit=fit, limit_s=0.02, sweet_spot=16)
    said = format_alternative(figure)
    assert fit.verdict == "knee"
    assert f"the knee is at batch {fit.knee:.3g}, {fit.low:.3g} to {fit.high:.3g}" in said
    assert "the limit is 20.0 ms" in said and "the sweet spot is batch 16" in said
    (band,) = [shape for shape in figure.layout.shapes if shape.type == "rect"]
    assert (band.x0, band.x1, band.fillcolor) == (fit.low, fit.high, ESTIMATE)
    fitted = trace(figure, "fitted")
    assert fitted.line.color == ESTIMATE
    assert fitted.y[0] == pytest.approx(1 / (fit.flat_s + fit.slope_s))
    assert list(trace(figure, "sweet spot").x) == [16]


@pytest.mark.parametrize(("curve", "words"), [(lambda b: 0.008, "flat to the end"),
                                              (lambda b: 0.001 * b, "linear from the start")])  # fmt: skip
def test_without_a_knee_none_is_drawn(curve, words):
    steps = {b: [curve(b), 1.01 * curve(b)] for b in STEPS}
    figure = plot_scaling(steps, title="No bend", fit=fit_regimes(steps), limit_s=0.0001)
    assert not [shape for shape in figure.layout.shapes if shape.type == "rect"]
    assert f"no knee within the sweep: {words}" in format_alternative(figure)
    assert "no batch size meets the limit" in format_alternative(figure)


# The cost of a step by position

STEP_COSTS = {"without cache": {16: [0.010, 0.012, 0.011, 0.013, 0.012, 0.011]}, "with cache": {16: [0.002], 512: []}}
STEP_ESTIMATES = {"without cache": {16: 0.008, 512: 0.2}, "with cache": {16: 0.0005}}
STEP_CASES = {
    "empty": ({}, {}),
    "empty steps": ({"a": {}}, {"a": {}}),
    "one row": ({"a": {16: [0.01]}}, {}),
    "100,000 rows": ({"a": {k: [0.01 * k] * 100 for k in range(1, 1001)}}, {"a": dict.fromkeys(range(1, 101), 0.01)}),
}


@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=[pytest.mark.slow] if name.startswith("100") else []) for name in STEP_CASES]
)
def test_the_costs_of_steps_are_built_and_survive_json(case):
    figure = plot_step_costs(*STEP_CASES[case], title="A finding")
    assert rebuild(figure) == figure
    assert figure.layout.title.text == "A finding"
    assert format_alternative(figure).startswith("A finding. ")


def test_every_sample_is_shown_in_milliseconds_with_its_median_and_interval():
    figure = plot_step_costs(STEP_COSTS, STEP_ESTIMATES, title="t")
    dots, middle = figure.data[0], figure.data[1]
    assert list(dots.y) == pytest.approx([10, 12, 11, 13, 12, 11])
    assert list(middle.y) == pytest.approx([11.5])
    assert (middle.error_y.array[0], middle.error_y.arrayminus[0]) == pytest.approx((1.5, 1.5)), "n = 6 has an interval"
    assert figure.data[3].error_y.array[0] == 0, "n = 1 has none"
    assert "n = 0 to 1" in figure.data[3].name


def test_estimate_and_measurement_of_one_name_share_the_dash_and_differ_in_colour():
    traces = {
        trace.name: trace
        for trace in plot_step_costs(STEP_COSTS, STEP_ESTIMATES, title="t").data
        if trace.showlegend is not False
    }
    estimate, measured = traces["with cache, estimate by FLOPs"], traces["with cache, measured (n = 0 to 1)"]
    assert estimate.line.dash == measured.line.dash == "dash"
    assert (estimate.line.color, measured.line.color) == (ESTIMATE, MEASURED)
    assert list(estimate.y) == pytest.approx([0.5])


def test_the_positions_are_written_below_the_axis_and_in_the_text():
    figure = plot_step_costs(STEP_COSTS, STEP_ESTIMATES, title="t")
    assert list(figure.layout.xaxis.ticktext) == ["16", "512"]
    assert figure.layout.xaxis.type == figure.layout.yaxis.type == "log"
    text = format_alternative(figure)
    assert "without cache after 16 tokens: median 11.5 ms (10.0 to 13.0), n = 6" in text
    assert "with cache after 16 tokens: median 2.00 ms (n too small), n = 1" in text
    assert "without cache after 512 tokens: estimate 200 ms" in text
