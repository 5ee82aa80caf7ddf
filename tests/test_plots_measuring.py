import numpy as np
import plotly.io
import pytest

from labkit import plots
from labkit.plots.measuring import plot_ratios, plot_time_order

MANY = np.random.default_rng(0).normal(0.1, 0.01, 100_000).tolist()
RUNS = {"empty": {}, "one row": {"plan": [("A", 0.5)]}, "100,000 rows": {"plan": [("A", x) for x in MANY]}}
RATIOS = {"empty": [], "one row": [(1.0, 0.9, 1.1)], "100,000 rows": [(x, x - 0.1, x + 0.1) for x in MANY]}


@pytest.mark.parametrize("case", ["empty", "one row", pytest.param("100,000 rows", marks=pytest.mark.slow)])
def test_every_figure_builds_and_survives_a_json_round_trip(case):
    for figure in (
        plot_time_order(RUNS[case], unit="s", title="A finding"),
        plot_ratios(RATIOS[case], title="A finding"),
    ):
        assert plotly.io.from_json(figure.to_json()) == figure
        assert figure.layout.title.text == "A finding"
        assert plots.format_alternative(figure).startswith("A finding. ")


def test_samples_stand_in_the_order_of_time_with_one_panel_for_each_run():
    runs = {"first": [("A", 1.0), ("B", 2.0), ("A", 3.0)], "second": [("B", 4.0)]}
    figure = plot_time_order(runs, unit="s", title="t")
    seen = {(trace.name, trace.yaxis): (list(trace.x), list(trace.y)) for trace in figure.data}
    assert seen["A", "y"] == ([1, 3], [1.0, 3.0])
    assert seen["B", "y"] == ([2], [2.0])
    assert seen["B", "y2"] == ([1], [4.0])
    assert figure.layout.yaxis.domain[0] > figure.layout.yaxis2.domain[1], "the first run stands on top"
    assert figure.layout.yaxis2.matches == "y", "both panels have the same scale"
    assert figure.layout.yaxis.title.text == figure.layout.yaxis2.title.text == "s"
    assert "first, A: n = 2, median 2.00 s" in plots.format_alternative(figure)


def test_two_names_differ_in_colour_and_symbol():
    figure = plot_time_order({"run": [("A", 1.0), ("B", 2.0)]}, unit="s", title="t")
    first, second = (trace.marker for trace in figure.data)
    assert first.color != second.color
    assert first.symbol != second.symbol


def test_only_an_interval_that_misses_one_stands_out():
    ratios = [(1.0, 0.9, 1.1), (1.2, 1.05, 1.4), (0.9, 0.8, 1.0), (0.5, 0.4, 0.6)]
    holding, missing = plot_ratios(ratios, title="t").data
    assert list(holding.x) == [1.0, 0.9], "an interval that ends at 1 holds 1"
    assert list(missing.y) == [2, 4]
    assert missing.error_x.array == pytest.approx((0.2, 0.1))
    assert missing.error_x.arrayminus == pytest.approx((0.15, 0.1))
    assert "4 comparisons; the interval of 2 misses 1" in plots.format_alternative(plot_ratios(ratios, title="t"))
