"""What ran when, and what holds the memory? A timeline that stays fast with 100,000 events, and stacked categories.

The timeline is thinned by pixel: events that are narrower than a pixel and closer together than a pixel become one
block, which tells how many they are and how much of it is busy. An event or a gap of a pixel or more is always drawn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from labkit.plots.look import ESTIMATE, MEASURED, MORE, NEUTRAL, add_alternative, check_drawable, make_figure
from labkit.profiling.events import ProfilerEvent, measure_depths
from labkit.units import format_bytes, format_seconds

__all__ = ["TimelineBar", "merge_by_pixel", "plot_memory", "plot_timeline"]

_PIXELS = 640  # the width of the plotting area of `make_figure`
_MOST_BARS = 8_000  # about 0.7 MB of figure
_KINDS = ("step", "module", "operator", "runtime", "kernel")
_COLOURS = {"step": NEUTRAL, "module": ESTIMATE, "operator": MEASURED, "runtime": MORE[1], "kernel": MORE[0]}
_PARTS = {"weights": ESTIMATE, "kv_cache": MEASURED, "activations": MORE[0], "slack": MORE[1], "rest": NEUTRAL}
_PATTERNS = ("", "/", "x", ".", "-")


@dataclass(frozen=True, slots=True)
class TimelineBar:
    """One drawn bar: an event, or a block of several events.

    Attributes:
        start_s: when it starts, in seconds on the clock of the events.
        end_s: when it ends.
        num_events: 1, or the number of events in the block.
        busy_s: seconds of it in which an event ran.
        name: the name of the event, "" for a block.
    """

    start_s: float
    end_s: float
    num_events: int
    busy_s: float
    name: str


def merge_by_pixel(events: Sequence[tuple[float, float, str]], *, pixel_s: float) -> list[TimelineBar]:
    """Return the bars of one row in order of time, from its (start, end, name), which must not overlap.

    Neighbours are merged only if both of them and the gap between them are narrower than a pixel, so that no block
    contains an event of a pixel or more, or covers a gap of a pixel or more.
    """
    bars: list[list] = []
    can_grow = False
    for start_s, end_s, name in sorted(events):
        is_narrow = end_s - start_s < pixel_s
        if is_narrow and can_grow and start_s - bars[-1][1] < pixel_s:
            last = bars[-1]
            last[1], last[2], last[3], last[4] = max(last[1], end_s), last[2] + 1, last[3] + end_s - start_s, ""
        else:
            bars.append([start_s, end_s, 1, end_s - start_s, name])
        can_grow = is_narrow
    return [TimelineBar(*bar) for bar in bars]


def plot_timeline(
    events: Sequence[ProfilerEvent], *, title: str, window_s: tuple[float, float] | None = None, max_depth: int = 6
):
    """Return the events over time, one row per kind, thread and depth of nesting, coloured by kind.

    `window_s`: (start, end) in seconds on the clock of the events, by default all of them. Zooming in shows no more
    than was drawn; for detail, draw a smaller window. Events nested `max_depth` deep or deeper are left out, and the
    caption says so.
    """
    shown = [e for e in events if window_s is None or (e.end_s > window_s[0] and e.start_s < window_s[1])]
    figure = make_figure(title, x="time (ms)", y="")
    if not shown:
        return add_alternative(figure, f"{title}. No events.")
    begin_s, end_s = window_s or (min(e.start_s for e in shown), max(e.end_s for e in shown))
    rows, num_deep = _split_rows(shown, begin_s, end_s, max_depth)
    pixel_s = max(end_s - begin_s, 1e-9) / _PIXELS
    drawn = {key: merge_by_pixel(row, pixel_s=pixel_s) for key, row in rows.items()}
    while sum(map(len, drawn.values())) > _MOST_BARS:
        pixel_s *= 2
        drawn = {key: merge_by_pixel(row, pixel_s=pixel_s) for key, row in rows.items()}
    for kind in dict.fromkeys(key[0] for key in drawn):
        _draw_kind(figure, kind, [(k, bars) for k, (key, bars) in enumerate(drawn.items()) if key[0] == kind], begin_s)
    labels = [f"{kind} {thread}{f' · {depth}' if depth else ''}".strip() for kind, thread, depth in drawn]
    figure.update_yaxes(tickvals=list(range(len(labels))), ticktext=labels, range=[len(labels) - 0.4, -0.6],
                        zeroline=False, showgrid=False)  # fmt: skip
    figure.update_xaxes(range=[0, (end_s - begin_s) * 1e3])
    said = _describe(drawn, len(shown), num_deep, pixel_s)
    figure.add_annotation(text=said, x=0, y=0, xref="paper", yref="paper", yshift=-72, xanchor="left", showarrow=False,
                          font={"size": 11})  # fmt: skip
    figure.update_layout(height=200 + 30 * max(4, len(labels)), barmode="overlay", bargap=0.15,
                         margin={"l": 120, "r": 20, "t": 75, "b": 95}, hovermode="closest")  # fmt: skip
    return add_alternative(figure, f"{title}. {format_seconds(end_s - begin_s)} in {len(labels)} rows. {said}")


def _split_rows(events, begin_s: float, end_s: float, max_depth: int):
    """Return {(kind, thread, depth): [(start, end, name)]}, clipped to the window, and the number of deeper events."""
    rows: dict[tuple, list] = {}
    num_deep = 0
    kinds = sorted({e.kind for e in events}, key=lambda kind: (_KINDS.index(kind) if kind in _KINDS else 9, kind))
    for kind in kinds:
        some = [event for event in events if event.kind == kind]
        threads = {thread: f"{number or ''}" for number, thread in enumerate(dict.fromkeys(e.thread for e in some))}
        found: dict[tuple, list] = {}
        for event, depth in zip(some, measure_depths(some), strict=True):
            if depth >= max_depth:
                num_deep += 1
                continue
            interval = (max(event.start_s, begin_s), min(event.end_s, end_s), event.name)
            found.setdefault((kind, threads[event.thread], depth), []).append(interval)
        rows |= {key: found[key] for key in sorted(found, key=lambda key: (key[1], key[2]))}
    return rows, num_deep


def _draw_kind(figure, kind: str, rows, begin_s: float) -> None:
    """Add the bars of one kind: single events in full colour, blocks pale."""
    for is_block, name in ((False, kind), (True, f"{kind}, merged (pale)")):
        bars = [(row, bar) for row, some in rows for bar in some if (bar.num_events > 1) == is_block]
        if bars:
            figure.add_bar(
                orientation="h", name=name, y=[row for row, _ in bars],
                base=[round((bar.start_s - begin_s) * 1e3, 5) for _, bar in bars],
                x=[round((bar.end_s - bar.start_s) * 1e3, 5) for _, bar in bars],
                marker={"color": _COLOURS.get(kind, NEUTRAL), "opacity": 0.45 if is_block else 0.95,
                        "line": {"width": 0}},
                hovertext=[_describe_bar(bar) for _, bar in bars],
                hovertemplate="%{hovertext}<br>at %{base} ms<extra></extra>",
            )  # fmt: skip


def _describe_bar(bar: TimelineBar) -> str:
    seconds = bar.end_s - bar.start_s
    if bar.num_events == 1:
        return f"{bar.name[:60]}, {format_seconds(seconds)}"
    return f"{bar.num_events} events, {100 * bar.busy_s / max(seconds, 1e-12):.0f} % busy"


def _describe(drawn, num_events: int, num_deep: int, pixel_s: float) -> str:
    blocks = [bar for bars in drawn.values() for bar in bars if bar.num_events > 1]
    said = f"{num_events:,} events"
    if blocks:
        narrow = f"shorter than {format_seconds(pixel_s)} and closer together than that"
        said += f"; {sum(bar.num_events for bar in blocks):,} of them, {narrow}, are merged into "
        said += f"{len(blocks):,} pale block{'s' * (len(blocks) > 1)}"
    if num_deep:
        said += f"; {num_deep:,} more deeply nested events are not drawn"
    return said + "."


def plot_memory(breakdowns: Mapping[str, Mapping[str, float]], *, title: str):
    """Return one stacked bar per case in MiB; `breakdowns`: {case: {category: bytes}}, as of `measure_breakdown`."""
    for case, parts in breakdowns.items():
        check_drawable(f"the bytes of {case}", parts.values())
    figure = make_figure(title, x="memory (MiB)", y="")
    categories = list(dict.fromkeys(name for parts in breakdowns.values() for name in parts))
    cases = list(breakdowns)
    for number, category in enumerate(categories):
        sizes = [breakdowns[case].get(category, 0) for case in cases]
        if any(sizes):
            figure.add_bar(
                orientation="h", name=category, y=list(range(len(cases))), x=[size / 2**20 for size in sizes],
                marker={"color": _PARTS.get(category, NEUTRAL),
                        "pattern": {"shape": _PATTERNS[number % len(_PATTERNS)]}},
                hovertext=[format_bytes(size) for size in sizes],
                hovertemplate=category + ": %{hovertext}<extra></extra>",
            )  # fmt: skip
    figure.update_yaxes(tickvals=list(range(len(cases))), ticktext=cases, range=[max(len(cases), 1) - 0.4, -0.6],
                        zeroline=False)  # fmt: skip
    figure.update_layout(barmode="stack", legend_traceorder="normal", height=190 + 55 * max(1, min(len(cases), 12)))
    said = [
        f"{case}: " + ", ".join(f"{name} {format_bytes(size)}" for name, size in parts.items() if size)
        for case, parts in list(breakdowns.items())[:12]
    ]
    more = f"; {len(cases) - 12:,} more" if len(cases) > 12 else ""
    return add_alternative(figure, f"{title}. {'; '.join(said) or 'Nothing was measured'}{more}.")
