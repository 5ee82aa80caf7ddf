"""Is the answer right? The seven functions that a notebook calls; each lab's checks are in its own checks.py.

check("00.1", weight_bytes)             judge an answer: passed, failed, not attempted or blocked, in one line
ready("00.1")                           tell whether a cell that needs this answer may run
use_reference("00.1")                   load the solution; the exercise counts as viewed
complete("00")                          show what is still open and what comes next
note("33", text)                        judge a finding: every number in it must come from a record that it cites
predict("00.p1", 100, unit="tok/s")     store a guess before the measurement
reveal("00.p1", 74.6, unit="tok/s")     show the guess beside the measurement
"""

from labkit.checks.completion import complete, ready
from labkit.checks.finding import note
from labkit.checks.judge import check
from labkit.checks.predictions import predict, reveal
from labkit.checks.reference import use_reference

__all__ = ["check", "complete", "note", "predict", "ready", "reveal", "use_reference"]
