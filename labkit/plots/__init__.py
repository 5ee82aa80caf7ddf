"""What does it look like? One function per kind of figure, all with one look (`look.py`).

    samples.py       samples with intervals, in order of time, and as a stream of tokens; a prediction; ratios
    curves.py        a sweep: curves with intervals, scaling with the batch size, the cost of a step by position
    roofline.py      a roofline, and bandwidth by working set
    profiling.py     a timeline of events, and memory by category
    load.py          a load run: waits, latencies, requests in flight; the page that holds them
    calibration.py   all predictions beside their measurements

Each function returns the figure. Every figure has units on its axes, its finding as the title, n and spread, and a text
alternative (`format_alternative`) for readers who do not see it.
"""

from labkit.plots.calibration import plot_calibration
from labkit.plots.curves import plot_curves, plot_scaling, plot_step_costs
from labkit.plots.load import plot_in_flight, plot_latency_shares, plot_waits, save_load_page
from labkit.plots.look import ESTIMATE, MEASURED, format_alternative
from labkit.plots.profiling import plot_memory, plot_timeline
from labkit.plots.roofline import Roof, RooflinePoint, plot_bandwidth, plot_roofline
from labkit.plots.samples import plot_prediction, plot_ratios, plot_samples, plot_time_order, plot_token_stream

__all__ = [
    "ESTIMATE",
    "MEASURED",
    "Roof",
    "RooflinePoint",
    "format_alternative",
    "plot_bandwidth",
    "plot_calibration",
    "plot_curves",
    "plot_in_flight",
    "plot_latency_shares",
    "plot_memory",
    "plot_prediction",
    "plot_ratios",
    "plot_roofline",
    "plot_samples",
    "plot_scaling",
    "plot_step_costs",
    "plot_time_order",
    "plot_timeline",
    "plot_token_stream",
    "plot_waits",
    "save_load_page",
]
