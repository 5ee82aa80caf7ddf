"""Where did the time go, and where the memory? Events as plain data, and what follows from them.

events.py         arithmetic on events: self time, idle time, nesting
profiler.py       profiles a function with torch.profiler: its time and its memory
phases.py         the two phases of a decoder as functions to profile
chrome_trace.py   writes and reads Chrome traces
nsight.py         the commands of NVIDIA's profilers, and readers for their exports
puzzle.py         hides one slow module in a model, to be found by profiling
"""

from labkit.profiling.chrome_trace import load_chrome_trace, save_chrome_trace
from labkit.profiling.events import ProfilerEvent, measure_idle, measure_table
from labkit.profiling.phases import Phases
from labkit.profiling.profiler import Profile, format_key, measure_breakdown, measure_overhead, run_profile
from labkit.profiling.puzzle import load_puzzle

__all__ = [
    "Phases",
    "Profile",
    "ProfilerEvent",
    "format_key",
    "load_chrome_trace",
    "load_puzzle",
    "measure_breakdown",
    "measure_idle",
    "measure_overhead",
    "measure_table",
    "run_profile",
    "save_chrome_trace",
]
