"""The roofline's figures: from nothing, one row and many; lines where the ceilings say, points where the work is."""

import numpy as np
import plotly.io
import pytest

from labkit import plots
from labkit.ceilings import CacheLevel, MeasuredCeiling
from labkit.plots import ESTIMATE, MEASURED, Roof, RooflinePoint, plot_bandwidth, plot_roofline

ROOF = Roof("this machine", flop_per_s=90e9, byte_per_s=20e9)
POINT = RooflinePoint("decode", "batch 1", 0.5, 4e9, low=3e9, high=4.5e9, limit_flop_per_s=9e9)


def make_points(n):
    draw = np.random.default_rng(0)
    return [RooflinePoint("decode", f"p{k}", float(x), float(x) * 1e9) for k, x in enumerate(draw.uniform(0.5, 50, n))]


def make_rates(n):
    return [MeasuredCeiling("copy", "B/s", (1e9, 2e9, 3e9, 1e9, 2e9, 3e9), 65536 + 64 * k) for k in range(n)]


@pytest.mark.parametrize("n", [0, 1, pytest.param(100_000, marks=pytest.mark.slow)])
def test_every_figure_builds_and_survives_a_json_round_trip(n):
    rates = make_rates(n)
    for figure in (
        plot_roofline([ROOF] if n else [], make_points(n), title="A finding"),
        plot_bandwidth(rates, caches=(CacheLevel(2, 2**19),), title="A finding"),
    ):
        assert plotly.io.from_json(figure.to_json()) == figure
        assert figure.layout.title.text == "A finding"
        assert plots.format_alternative(figure).startswith("A finding. ")


def test_a_roof_is_a_slope_up_to_the_ridge():
    published = Roof("published", flop_per_s=112e9, byte_per_s=200e9, is_measured=False)
    figure = plot_roofline([ROOF, published], [POINT], title="t")
    mine, theirs = figure.data[:2]
    assert mine.x[1] == pytest.approx(4.5)  # 90 GFLOP/s over 20 GB/s
    assert mine.y[0] == pytest.approx(mine.x[0] * 20e9)
    assert list(mine.y[1:]) == [90e9, 90e9]
    assert (mine.line.color, mine.line.dash) == (MEASURED, "solid")
    assert (theirs.line.color, theirs.line.dash) == (ESTIMATE, "dash")
    assert figure.layout.xaxis.type == figure.layout.yaxis.type == "log"
    assert mine.x[0] < 0.5 < mine.x[2], "the lines reach past the points"


def test_points_have_their_interval_and_their_binding_ceiling():
    figure = plot_roofline([ROOF], [POINT, RooflinePoint("prefill", "512 tokens", 60.0, 50e9)], title="t")
    decode, prefill, limits = figure.data[1:]
    assert (decode.x[0], decode.y[0]) == (0.5, 4e9)
    assert decode.name == "decode, measured"
    assert decode.error_y.array[0] == pytest.approx(0.5e9)
    assert decode.error_y.arrayminus[0] == pytest.approx(1e9)
    assert decode.marker.symbol != prefill.marker.symbol
    assert prefill.error_y.array[0] == 0
    assert list(limits.y) == [9e9], "only where one is known"
    said = plots.format_alternative(figure)
    assert "decode, batch 1: 4.00 GFLOP/s (3.00 GFLOP/s to 4.50 GFLOP/s), at most 9.00 GFLOP/s at 0.5 FLOP/byte" in said
    assert "ridge at 4.5 FLOP/byte" in said


def test_bandwidth_is_drawn_over_the_working_set_with_the_caches_in_its_range():
    rates = [MeasuredCeiling("copy", "B/s", tuple(x * 1e9 for x in (20, 21, 22, 23, 24, 25)), 2**27),
             MeasuredCeiling("copy", "B/s", (90e9, 91e9), 2**17)]  # fmt: skip
    caches = (CacheLevel(1, 2**15), CacheLevel(2, 2**19), CacheLevel(3, 2**25))
    figure = plot_bandwidth(rates, caches=caches, working_set_bytes=44e6, title="t")
    (line,) = figure.data
    assert list(line.x) == [2**17, 2**27]
    assert list(line.y) == [90.5e9, 22.5e9]
    assert line.error_y.array[0] == 0, "two samples have no interval"
    assert line.error_y.array[1] == pytest.approx(2.5e9)
    assert [shape.x0 for shape in figure.layout.shapes] == [2**19, 2**25, 44e6], "the first cache is left of the sweep"
    said = plots.format_alternative(figure)
    assert line.name == "copy, median and 95 % interval, n = 2 to 6"
    assert "128 MiB: 22.5 GB/s (20.0 GB/s to 25.0 GB/s, n = 6)" in said
    assert "128 KiB: 90.5 GB/s (n too small, n = 2)" in said
    assert "one decode step at 42.0 MiB" in said
