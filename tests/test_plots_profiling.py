"""A timeline of events, thinned by pixel, and memory by category."""

import random

import plotly.io
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit import plots
from labkit.plots import plot_memory, plot_timeline, profiling
from labkit.plots.profiling import merge_by_pixel
from labkit.profiling import ProfilerEvent


def make_events(count, *, seed=0):
    """Nested operators with gaps of every size: two levels, in steps of about 20 µs."""
    draw, events, at_s = random.Random(seed), [], 0.0
    while len(events) < count:
        long_s = draw.expovariate(5e4) * draw.choice((1, 1, 1, 50))
        events.append(ProfilerEvent("aten::linear", at_s, at_s + long_s))
        events.append(ProfilerEvent("aten::mm", at_s + 0.2 * long_s, at_s + 0.9 * long_s))
        at_s += long_s + draw.expovariate(1e5) * draw.choice((0, 1, 40))
    return events[:count]


COUNTS = {"empty": 0, "one row": 1, "100,000 rows": 100_000}


@pytest.mark.parametrize("case", ["empty", "one row", pytest.param("100,000 rows", marks=pytest.mark.slow)])
def test_every_figure_builds_and_survives_a_json_round_trip(case):
    memory = {f"case {k}": {"weights": 2**20 + k, "rest": 2 * k} for k in range(COUNTS[case])}
    events = make_events(COUNTS[case])
    for figure in (plot_timeline(events, title="A finding"), plot_memory(memory, title="A finding")):
        assert plotly.io.from_json(figure.to_json()) == figure
        assert figure.layout.title.text == "A finding"
        assert plots.format_alternative(figure).startswith("A finding. ")


@pytest.mark.slow
def test_a_timeline_of_100_000_events_has_few_bars_and_is_small():
    figure = plot_timeline(make_events(100_000), title="t")
    assert sum(len(trace.y) for trace in figure.data) <= profiling._MOST_BARS
    assert len(figure.to_json()) < 1_000_000
    assert "100,000 events" in plots.format_alternative(figure)
    assert "merged into" in plots.format_alternative(figure)
    assert any("merged into" in note.text for note in figure.layout.annotations), "the caption says so, too"


@pytest.mark.slow
def test_even_the_worst_rows_stay_under_a_megabyte():
    # Long, short, gap, in many threads: as many bars as pixels allow, in each of 40 rows.
    events = [
        ProfilerEvent(
            "aten::a_rather_long_name_of_an_operator", k + 0.0, k + (0.1 if k % 2 else 1.2), "operator", thread
        )
        for thread in range(40)
        for k in range(0, 5000, 2)
    ]
    figure = plot_timeline(events, title="t")
    assert len(figure.to_json()) < 1_000_000


INTERVALS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=40)


@given(INTERVALS, st.integers(1, 12))
def test_no_block_hides_a_gap_or_a_long_event(parts, pixel):
    row, at = [], 0
    for gap, length in parts:
        row.append((at + gap, at + gap + length, f"e{len(row)}"))
        at += gap + length
    bars = merge_by_pixel(row, pixel_s=pixel)
    assert sum(bar.num_events for bar in bars) == len(row)
    assert sum(bar.busy_s for bar in bars) == sum(end - start for start, end, _ in row)
    singles = {(bar.start_s, bar.end_s, bar.name) for bar in bars if bar.num_events == 1}
    assert {one for one in row if one[1] - one[0] >= pixel} <= singles, "a long event is drawn by itself"
    for (_, end, _), (start, _, _) in zip(row, row[1:], strict=False):
        if start - end >= pixel:  # a wide gap
            assert not any(bar.start_s < (start + end) / 2 < bar.end_s for bar in bars)
    for bar in bars:
        assert any(bar.start_s == start for start, _, _ in row)
        assert any(bar.end_s == end for _, end, _ in row)
    assert all(a.end_s <= b.start_s for a, b in zip(bars, bars[1:], strict=False)), "bars do not overlap"
    widest = max((end for _, end, _ in row), default=0) / pixel
    assert len(bars) <= 2 * widest + 2, "the number of bars is bounded by the pixels, not by the events"


def test_close_neighbours_become_one_block_that_says_how_full_it_is():
    row = [(0.0, 0.4, "a"), (0.6, 1.0, "b"), (1.5, 1.9, "c"), (3.0, 3.5, "d"), (3.5, 6.0, "e"), (6.0, 6.1, "f")]
    bars = merge_by_pixel(row, pixel_s=1.0)
    assert [(bar.start_s, bar.end_s, bar.num_events, bar.name) for bar in bars] == [
        (0.0, 1.9, 3, ""),
        (3.0, 3.5, 1, "d"),
        (3.5, 6.0, 1, "e"),
        (6.0, 6.1, 1, "f"),
    ]
    assert bars[0].busy_s == pytest.approx(1.2)


def test_an_event_of_exactly_a_pixel_is_not_narrow_and_such_a_gap_is_kept():
    row = [(0.0, 0.5, "a"), (0.5, 1.5, "wide"), (2.0, 2.25, "b"), (3.25, 3.5, "c")]
    assert [(bar.num_events, bar.name) for bar in merge_by_pixel(row, pixel_s=1.0)] == [
        (1, "a"), (1, "wide"), (1, "b"), (1, "c"),
    ]  # fmt: skip


def test_a_pixel_is_a_fraction_of_the_window_and_hover_text_describes_each_bar():
    tiny = [
        ProfilerEvent("aten::tiny", k * 2e-5, k * 2e-5 + 1e-5) for k in range(50)
    ]  # together less than a pixel of 1 s
    wide = [
        ProfilerEvent("aten::mm", 0.5, 0.502),
        ProfilerEvent("aten::add", 0.5045, 0.505),
        ProfilerEvent("aten::last", 0.9, 1.0),
    ]
    figure = plot_timeline([*tiny, *wide], title="t")
    single, block = figure.data
    assert (single.name, block.name) == ("operator", "operator, merged (pale)")
    assert [text.split(",")[0] for text in single.hovertext] == ["aten::mm", "aten::add", "aten::last"]
    assert single.hovertext[0] == "aten::mm, 2.00 ms"
    assert list(block.hovertext) == ["50 events, 51 % busy"]
    assert (
        "50 of them, shorter than 1.56 ms and closer together than that, are merged into 1 pale block."
        in figure.layout.annotations[0].text
    )
    assert single.marker.opacity > block.marker.opacity
    assert "merged" not in plots.format_alternative(plot_timeline(wide, title="t"))


def test_too_many_bars_make_the_pixels_coarser_and_the_caption_says_so(monkeypatch):
    monkeypatch.setattr(profiling, "_MOST_BARS", 10)
    events = [ProfilerEvent("aten::mm", k * 0.004, k * 0.004 + 0.001) for k in range(250)]
    figure = plot_timeline(events, title="t")
    assert sum(len(trace.y) for trace in figure.data) <= 10
    assert "shorter than 3.12 ms" in plots.format_alternative(figure), "2 pixels of 997 ms: the gaps are 3 ms"


def test_rows_are_kinds_threads_and_depths_and_times_start_at_the_window():
    events = [
        ProfilerEvent("0", 10.0, 20.0, "step"),
        ProfilerEvent("aten::linear", 11.0, 15.0),
        ProfilerEvent("aten::mm", 12.0, 14.0),
        ProfilerEvent("gemm", 13.0, 16.0, "kernel", "stream 7"),
    ]
    figure = plot_timeline(events, title="t")
    assert list(figure.layout.yaxis.ticktext) == ["step", "operator", "operator  · 1", "kernel"]
    drawn = {(trace.name, y): (base, x) for trace in figure.data for y, base, x in zip(trace.y, trace.base, trace.x)}  # noqa: B905
    assert drawn["operator", 2] == (2000.0, 2000.0), "milliseconds from the first event on"
    assert list(figure.layout.xaxis.range) == [0, 10_000]
    assert figure.layout.xaxis.title.text == "time (ms)"
    part = plot_timeline(events, title="t", window_s=(12.0, 13.0))
    assert list(part.layout.xaxis.range) == [0, 1000]
    assert "3 events" in plots.format_alternative(part), "the kernel begins when the window ends"
    assert all(base >= 0 and base + x <= 1000 for trace in part.data for base, x in zip(trace.base, trace.x))  # noqa: B905


def test_too_deeply_nested_events_are_counted_in_the_caption():
    events = [ProfilerEvent(f"e{k}", k / 100, 1 - k / 100) for k in range(9)]
    said = plots.format_alternative(plot_timeline(events, title="t", max_depth=6))
    assert "3 more deeply nested events are not drawn" in said
    assert "nested" not in plots.format_alternative(plot_timeline(events, title="t", max_depth=9))


def test_the_bars_of_memory_add_up_to_the_whole_and_are_described():
    parts = {"weights": 3 * 2**20, "kv_cache": 2**20, "activations": 2**19, "slack": 0, "rest": 2**21}
    figure = plot_memory({"decode": parts}, title="Weights")
    assert sum(trace.x[0] for trace in figure.data) == pytest.approx(sum(parts.values()) / 2**20)
    assert figure.layout.barmode == "stack"
    assert [trace.name for trace in figure.data] == ["weights", "kv_cache", "activations", "rest"]
    assert len({trace.marker.pattern.shape for trace in figure.data}) == 4, "not by colour alone"
    assert "weights 3.00 MiB" in plots.format_alternative(figure)
