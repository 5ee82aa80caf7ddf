"""What has this learner done? Append-only events, and the state that follows from them.

`events.py` keeps what happened, `course.py` reads what there is to do, `state.py` combines the two and shows them as a
table, `calibration.py` judges the predictions. Nothing here leaves the learner's machine.
"""

from labkit.progress.course import load_course
from labkit.progress.events import append_event, export_progress, import_progress, load_events
from labkit.progress.state import estimate_state, format_progress

__all__ = [
    "append_event",
    "estimate_state",
    "export_progress",
    "format_progress",
    "import_progress",
    "load_course",
    "load_events",
]
