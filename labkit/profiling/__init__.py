"""Where did the time go, and where the memory? Events as plain data, and what follows from them.

`events.py` and `memory.py` compute on plain data and need no torch; `run.py` observes a function under torch.profiler;
`trace.py` writes and reads Chrome traces; `nsight.py` reads what NVIDIA's tools export; `phases.py` holds the two kinds
of work of a decoder; `puzzle.py` hides a slow module for lab 11.
"""

from labkit.profiling.events import Event, measure_idle, measure_table
from labkit.profiling.phases import Phases
from labkit.profiling.puzzle import load_puzzle
from labkit.profiling.run import Profile, run_profile

__all__ = ["Event", "Phases", "Profile", "load_puzzle", "measure_idle", "measure_table", "run_profile"]
