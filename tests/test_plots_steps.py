import plotly.io
import pytest

from labkit import plots
from labkit.plots.steps import plot_step_costs

MEASURED = {"without cache": {16: [0.010, 0.012, 0.011, 0.013, 0.012, 0.011]}, "with cache": {16: [0.002], 512: []}}
ESTIMATED = {"without cache": {16: 0.008, 512: 0.2}, "with cache": {16: 0.0005}}
CASES = {
    "empty": ({}, {}),
    "empty steps": ({"a": {}}, {"a": {}}),
    "one row": ({"a": {16: [0.01]}}, {}),
    "100,000 rows": ({"a": {k: [0.01 * k] * 100 for k in range(1, 1001)}}, {"a": dict.fromkeys(range(1, 101), 0.01)}),
}


@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=[pytest.mark.slow] if name.startswith("100") else []) for name in CASES]
)
def test_the_figure_builds_and_survives_a_json_round_trip(case):
    figure = plot_step_costs(*CASES[case], title="A finding")
    assert plotly.io.from_json(figure.to_json()) == figure
    assert figure.layout.title.text == "A finding"
    assert plots.format_alternative(figure).startswith("A finding. ")


def test_every_sample_is_shown_in_milliseconds_with_its_median_and_interval():
    figure = plot_step_costs(MEASURED, ESTIMATED, title="t")
    dots, middle = figure.data[0], figure.data[1]
    assert list(dots.y) == pytest.approx([10, 12, 11, 13, 12, 11])
    assert list(middle.y) == pytest.approx([11.5])
    assert (middle.error_y.array[0], middle.error_y.arrayminus[0]) == pytest.approx((1.5, 1.5)), "n = 6 has an interval"
    assert figure.data[3].error_y.array[0] == 0, "n = 1 has none"
    assert "n = 0 to 1" in figure.data[3].name


def test_estimate_and_measurement_of_one_name_share_the_dash_and_differ_in_colour():
    traces = {
        trace.name: trace
        for trace in plot_step_costs(MEASURED, ESTIMATED, title="t").data
        if trace.showlegend is not False
    }
    estimate, measured = traces["with cache, estimate by FLOPs"], traces["with cache, measured (n = 0 to 1)"]
    assert estimate.line.dash == measured.line.dash == "dash"
    assert (estimate.line.color, measured.line.color) == (plots.ESTIMATE, plots.MEASURED)
    assert list(estimate.y) == pytest.approx([0.5])


def test_the_positions_are_written_below_the_axis_and_in_the_text():
    figure = plot_step_costs(MEASURED, ESTIMATED, title="t")
    assert list(figure.layout.xaxis.ticktext) == ["16", "512"]
    assert figure.layout.xaxis.type == figure.layout.yaxis.type == "log"
    text = plots.format_alternative(figure)
    assert "without cache behind 16 tokens: median 11.5 ms (10.0 to 13.0), n = 6" in text
    assert "with cache behind 16 tokens: median 2.00 ms (n too small), n = 1" in text
    assert "without cache behind 512 tokens: estimate 200 ms" in text
