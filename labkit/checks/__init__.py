"""Is the answer right? The seven words that a notebook uses; the checks of each lab are in `labNN.py`.

check("00.1", weight_bytes)             judge an answer: passed, failed, not attempted or blocked, in one line
ready("00.1")                           may a cell that needs this answer run?
use_reference("00.1")                   load the solution; the exercise counts as viewed
complete("00")                          what is still open, and where to go on
note("33", text)                        a finding, every number of which is in a record
predict("00.p1", 100, unit="tok/s")     store a guess before the measurement
reveal("00.p1", 74.6, unit="tok/s")     show it beside the measurement
"""

from labkit.checks.completion import complete, ready
from labkit.checks.finding import note
from labkit.checks.judge import check
from labkit.checks.predictions import predict, reveal
from labkit.checks.reference import use_reference

__all__ = ["check", "complete", "note", "predict", "ready", "reveal", "use_reference"]
