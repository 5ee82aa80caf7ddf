"""Every figure: its look, its finding and its text alternative; samples, predictions and ratios."""

import math
import re
from pathlib import Path

import numpy as np
import plotly.io
import pytest

from labkit import plots
from labkit.errors import LabkitError
from labkit.plots import (
    Roof,
    RooflinePoint,
    look,
    plot_calibration,
    plot_curves,
    plot_memory,
    plot_prediction,
    plot_ratios,
    plot_roofline,
    plot_scaling,
    plot_step_costs,
    plot_time_order,
    plot_token_stream,
)
from labkit.progress.calibration import Calibration
from labkit.progress.state import Prediction

NAN = math.nan
MANY = list(np.random.default_rng(0).normal(100, 5, 100_000))
CASES = {"empty": [], "one row": [3.0], "100,000 rows": MANY}


def build_all(values):
    return [
        plots.plot_token_stream([sorted(values)], title="A finding"),
        plots.plot_samples({"a": values}, unit="tok/s", title="A finding"),
        plots.plot_prediction(values, predicted=90.0, unit="tok/s", title="A finding"),
    ]


@pytest.mark.parametrize("case", ["empty", "one row", pytest.param("100,000 rows", marks=pytest.mark.slow)])
def test_every_figure_builds_and_survives_a_json_round_trip(case):
    for figure in build_all(CASES[case]):
        assert plotly.io.from_json(figure.to_json()) == figure


@pytest.mark.parametrize("case", ["empty", "one row"])
def test_every_figure_has_its_finding_as_title_and_a_text_alternative(case):
    for figure in build_all(CASES[case]):
        assert figure.layout.title.text == "A finding"
        assert plots.format_alternative(figure).startswith("A finding. ")


def test_every_figure_has_a_unit_on_its_measured_axis():
    for figure in build_all([1.0, 2.0, 3.0]):
        assert figure.layout.xaxis.title.text in ("tok/s", "seconds since the request")


def test_backgrounds_are_transparent_so_that_both_themes_work():
    for figure in build_all([1.0]):
        assert figure.layout.paper_bgcolor == figure.layout.plot_bgcolor == "rgba(0,0,0,0)"


def test_a_long_title_continues_in_a_second_line_with_room_for_it():
    title = "The first token comes after 17.8 ms, each next one about 10.3 ms later, whatever the prompt's length is"
    figure = plots.plot_samples({"a": [1.0]}, unit="s", title=title)
    lines = figure.layout.title.text.split("<br>")
    assert " ".join(lines) == title and len(lines) == 2
    assert figure.layout.margin.t == 95
    assert plots.format_alternative(figure).startswith(title)


def contrast(a, b):
    """The contrast of two colours as WCAG 2 defines it (https://www.w3.org/TR/WCAG21/#dfn-contrast-ratio)."""

    def luminance(colour):
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [x / 12.92 if x <= 0.03928 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("page", ["#FFFFFF", "#111111"], ids=["light", "dark"])
def test_marks_and_text_stand_out_in_both_themes_of_jupyterlab(page):
    assert contrast("#000000", "#FFFFFF") == pytest.approx(21)
    for colour in (look.ESTIMATE, look.MEASURED, *look.MORE[:2]):
        assert contrast(colour, page) >= 3
    assert contrast(look.NEUTRAL, page) >= 4.3


def test_every_figure_of_the_course_takes_its_colours_from_the_look():
    known = {colour.upper() for colour in (look.ESTIMATE, look.MEASURED, look.NEUTRAL, *look.MORE)}
    for path in Path(look.__file__).parent.glob("*.py"):
        found = {colour.upper() for colour in re.findall(r"#[0-9A-Fa-f]{6}", path.read_text(encoding="utf-8"))}
        assert found <= known, f"{path.name}: {found - known}"


def test_the_stream_counts_tokens_from_one():
    figure = plots.plot_token_stream([[0.5, 0.6, 0.7]], title="t")
    assert list(figure.data[0].x) == [0.5, 0.6, 0.7]
    assert list(figure.data[0].y) == [1, 2, 3]


def test_every_sample_is_a_dot_beside_the_interval():
    values = [10.0, 11.0, 12.0, 13.0, 14.0, 15.0]
    dots, median = plots.plot_samples({"a": values}, unit="s", title="t").data
    assert list(dots.x) == values
    assert median.x[0] == 12.5
    # With six samples the order-statistic interval of the median is the whole range.
    assert (median.error_x.arrayminus[0], median.error_x.array[0]) == (2.5, 2.5)


def test_the_figure_says_that_too_few_samples_have_no_interval():
    figure = plots.plot_samples({"a": [1.0, 2.0]}, unit="s", title="t")
    assert "n too small" in plots.format_alternative(figure)
    assert "n = 2" in figure.layout.yaxis.ticktext[0]


def test_estimate_and_measurement_have_their_own_colours():
    figure = plots.plot_prediction([1.0] * 6, predicted=2.0, unit="s", title="t")
    colours = {trace.name: trace.marker.color for trace in figure.data}
    assert colours["predicted"] == plots.ESTIMATE
    assert colours["sample"] == plots.MEASURED


def test_hover_labels_are_words_with_units():
    figure = plots.plot_prediction([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], predicted=2.0, unit="tok/s", title="t")
    labels = {trace.name: trace.hovertemplate for trace in figure.data}
    assert labels["median and 95 % interval"].startswith("median 3.50 tok/s (1.00 to 6.00)")
    assert labels["predicted"] == "predicted 2.00 tok/s<extra></extra>"
    assert all(labels.values())


def test_a_skipped_prediction_draws_nothing_and_says_so():
    figure = plots.plot_prediction([1.0] * 6, predicted=None, unit="s", title="t")
    assert "predicted" not in [trace.name for trace in figure.data]
    assert "No prediction was made" in plots.format_alternative(figure)


def test_a_figure_without_a_text_alternative_is_an_error():
    import plotly.graph_objects as go

    with pytest.raises(LabkitError, match="no text alternative"):
        plots.format_alternative(go.Figure())


def _curves(points, **options):
    return plot_curves({"a": points}, x="x", y="y", title="t", **options)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: _curves({1: [NAN], 2: [1.0]}), "values of a must be finite, and one is nan"),
        (lambda: _curves({1: [math.inf]}, is_log_y=True), "values of a must be finite, and one is inf"),
        (lambda: _curves({1: [0.0]}, is_log_y=True), "means of a must be finite and above 0.*logarithmic"),
        (lambda: _curves({NAN: [1.0]}), "positions of a must be finite"),
        (lambda: _curves({1: [1.0]}, is_log_y=True, limit=("SLO", 0)), "limit 'SLO' must be finite and above 0"),
        (lambda: _curves({1: [1.0]}, limit=("SLO", NAN)), "limit 'SLO' must be finite"),
        (lambda: _curves({1: [1.0]}, estimates={"e": {1: 0.0}}, is_log_y=True), "values of e must be finite and above"),
        (lambda: plot_scaling({1: [0.0]}, title="t"), "seconds of a step must be finite and above 0"),
        (lambda: plot_scaling({1: [NAN]}, title="t"), "seconds of a step must be finite"),
        (lambda: plot_scaling({0: [0.1]}, title="t"), "batch sizes must be finite and above 0"),
        (lambda: plot_scaling({1: [0.1]}, title="t", limit_s=0.0), "limit_s must be finite and above 0"),
        (lambda: plot_scaling({1: [0.1]}, title="t", sweet_spot=4), "sweet_spot is 4, which was not measured.*: 1"),
        (lambda: plot_scaling({1: [0.1], 2: []}, title="t", sweet_spot=2), "sweet_spot is 2.*measured: 1"),
        (lambda: plot_step_costs({"a": {1: [0.0]}}, {}, title="t"), "seconds of a must be finite and above 0"),
        (lambda: plot_step_costs({}, {"a": {1: NAN}}, title="t"), "estimate of a must be finite and above 0"),
        (lambda: plot_roofline([Roof("r", 1e9, 0.0)], [], title="t"), "ceilings of r must be finite and above 0"),
        (lambda: plot_roofline([Roof("r", NAN, 1.0)], [], title="t"), "ceilings of r must be finite and above 0"),
        (lambda: plot_roofline([], [RooflinePoint("k", "n", 0.0, 1.0)], title="t"), "k, n must be finite and above 0"),
        (lambda: plot_token_stream([[0.1], [0.1, NAN]], title="t"), "token times of run 2 must be finite"),
        (lambda: plot_prediction([1.0], predicted=NAN, unit="s", title="t"), "prediction must be finite"),
        (lambda: plot_prediction([1.0], predicted="5", unit="s", title="t"), "prediction must be numbers"),
        (lambda: plot_memory({"case": {"weights": None}}, title="t"), "bytes of case must be finite"),
        (lambda: plot_ratios([(1.0, NAN, 2.0)], title="t"), "ratios and their intervals must be finite"),
        (
            lambda: plot_calibration(Calibration((Prediction("a", 0.0, 1.0),))),
            "predicted over measured must be finite and",
        ),
    ],
)
def test_what_a_figure_would_silently_leave_out_is_refused_with_a_sentence(draw, message):
    with pytest.raises(LabkitError, match=f"{message}.*Next: "):
        draw()


def test_a_position_of_0_is_drawn_on_a_linear_axis():
    figure = plot_step_costs({"a": {0: [0.1, 0.2], 10: [0.1]}}, {"a": {0: 0.1, 10: 0.2}}, title="t")
    assert figure.layout.xaxis.type != "log"  # a log axis has no place for it
    assert figure.layout.yaxis.type == "log"
    assert plot_step_costs({"a": {1: [0.1]}}, {}, title="t").layout.xaxis.type == "log"


# Samples in order of time, and ratios

SMALL = np.random.default_rng(0).normal(0.1, 0.01, 100_000).tolist()
RUNS = {"empty": {}, "one row": {"plan": [("A", 0.5)]}, "100,000 rows": {"plan": [("A", x) for x in SMALL]}}
RATIOS = {"empty": [], "one row": [(1.0, 0.9, 1.1)], "100,000 rows": [(x, x - 0.1, x + 0.1) for x in SMALL]}


@pytest.mark.parametrize("case", ["empty", "one row", pytest.param("100,000 rows", marks=pytest.mark.slow)])
def test_samples_in_time_and_ratios_build_and_survive_a_json_round_trip(case):
    for figure in (
        plot_time_order(RUNS[case], unit="s", title="A finding"),
        plot_ratios(RATIOS[case], title="A finding"),
    ):
        assert plotly.io.from_json(figure.to_json()) == figure
        assert figure.layout.title.text == "A finding"
        assert plots.format_alternative(figure).startswith("A finding. ")


def test_samples_are_in_order_of_time_with_one_panel_per_run():
    runs = {"first": [("A", 1.0), ("B", 2.0), ("A", 3.0)], "second": [("B", 4.0)]}
    figure = plot_time_order(runs, unit="s", title="t")
    seen = {(trace.name, trace.yaxis): (list(trace.x), list(trace.y)) for trace in figure.data}
    assert seen["A", "y"] == ([1, 3], [1.0, 3.0])
    assert seen["B", "y"] == ([2], [2.0])
    assert seen["B", "y2"] == ([1], [4.0])
    assert figure.layout.yaxis.domain[0] > figure.layout.yaxis2.domain[1], "the first run is on top"
    assert figure.layout.yaxis2.matches == "y", "both panels have the same scale"
    assert figure.layout.yaxis.title.text == figure.layout.yaxis2.title.text == "s"
    assert "first, A: n = 2, median 2.00 s" in plots.format_alternative(figure)


def test_two_names_differ_in_colour_and_symbol():
    figure = plot_time_order({"run": [("A", 1.0), ("B", 2.0)]}, unit="s", title="t")
    first, second = (trace.marker for trace in figure.data)
    assert first.color != second.color
    assert first.symbol != second.symbol


def test_only_intervals_that_exclude_one_are_highlighted():
    ratios = [(1.0, 0.9, 1.1), (1.2, 1.05, 1.4), (0.9, 0.8, 1.0), (0.5, 0.4, 0.6)]
    including, excluding = plot_ratios(ratios, title="t").data
    assert list(including.x) == [1.0, 0.9], "an interval that ends at 1 includes it"
    assert list(excluding.y) == [2, 4]
    assert excluding.error_x.array == pytest.approx((0.2, 0.1))
    assert excluding.error_x.arrayminus == pytest.approx((0.15, 0.1))
    assert "4 comparisons, with 2 intervals that exclude 1" in plots.format_alternative(plot_ratios(ratios, title="t"))
