"""How fast is this machine at best? Ceilings that are measured here, and the published peaks to hold them against.

    bandwidth.py    bytes per second of a copy at each size of working set, and of reading a matrix once (GEMV)
    arithmetic.py   FLOPs per second of a matrix product, per number format
    steps.py        seconds of one decode step or prefill, and of a step whose arithmetic is almost nothing (dispatch)
    peaks.py        what the vendors publish, from data/reference/devices.csv

Every ceiling is a `Rate`: all its samples, with their median and its interval. On the CPU one intra-op thread computes,
as it does for the course's small models. Several rates are measured in rounds, each once per round: a drift of the
machine then meets all of them and does not look like a difference.
"""

from labkit.ceilings.arithmetic import measure_gemm_rate
from labkit.ceilings.bandwidth import measure_copy_bandwidth, measure_gemv_bandwidth, probe_caches
from labkit.ceilings.peaks import load_peaks
from labkit.ceilings.rate import Rate
from labkit.ceilings.steps import measure_dispatch

__all__ = [
    "Rate",
    "load_peaks",
    "measure_copy_bandwidth",
    "measure_dispatch",
    "measure_gemm_rate",
    "measure_gemv_bandwidth",
    "probe_caches",
]
