"""Chrome traces: write a profile to a file for chrome://tracing or https://ui.perfetto.dev, and read one.

The format is the Trace Event Format (complete events, "ph": "X", times in microseconds), described at
https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU. torch's own exports can be read, too.
"""

import gzip
import json
import math
from collections.abc import Sequence
from pathlib import Path

from labkit.errors import LabkitError
from labkit.profiling.events import ProfilerEvent
from labkit.results import find_runs_folder

__all__ = ["check_chrome_trace", "format_chrome_trace", "load_chrome_trace", "save_chrome_trace"]

_HOST, _GPU = 1, 2  # process ids: the host with its threads, the GPU with its streams
_KINDS = {"cpu_op": "operator", "gpu_memcpy": "kernel", "gpu_memset": "kernel", "cuda_runtime": "runtime",
          "cuda_driver": "runtime", "user_annotation": "range"}  # fmt: skip


def format_chrome_trace(events: Sequence[ProfilerEvent]) -> dict:
    """Return the trace as a JSON object, with times in microseconds since the first event, rounded to nanoseconds."""
    origin_s = min((event.start_s for event in events), default=0.0)
    threads = {key: number for number, key in enumerate(dict.fromkeys((_process(e), str(e.thread)) for e in events), 1)}
    notes = [_name_row("process_name", pid, 0, name) for pid, name in ((_HOST, "host"), (_GPU, "GPU"))
             if any(process == pid for process, _ in threads)]  # fmt: skip
    notes += [_name_row("thread_name", pid, number, name) for (pid, name), number in threads.items()]
    found = [
        {
            "ph": "X", "name": event.name, "cat": event.kind, "pid": _process(event),
            "tid": threads[_process(event), str(event.thread)],
            "ts": round((event.start_s - origin_s) * 1e6, 3), "dur": round(event.duration_s * 1e6, 3),
            "args": {} if event.step is None else {"step": event.step},
        }
        for event in sorted(events, key=lambda one: (one.start_s, -one.end_s))
    ]  # fmt: skip
    return {"displayTimeUnit": "ms", "traceEvents": notes + found}


def save_chrome_trace(events: Sequence[ProfilerEvent], path: str | Path) -> Path:
    """Write the trace and return its path; a name that ends in .gz is compressed, which Perfetto opens, too.

    A name without a folder is saved beside the learner's records (LABKIT_RUNS, or data/runs).
    """
    path = Path(path)
    if path.parent == Path():
        path = find_runs_folder() / path
    text = json.dumps(format_chrome_trace(events), separators=(",", ":"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def load_chrome_trace(path: str | Path) -> tuple[ProfilerEvent, ...]:
    """Read the complete events of a trace (ours or torch's), ordered by start; LabkitError for any other file."""
    path = Path(path)
    try:
        raw = path.read_bytes()
        content = json.loads(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw)
    except (OSError, ValueError, EOFError) as error:
        raise LabkitError(f"{path.name} is not a readable trace ({error}).", next_step="save it again.") from None
    if faults := check_chrome_trace(content):
        raise LabkitError(
            f"{path.name} is not a Chrome trace: {faults[0]}.", next_step="use a file of save_chrome_trace."
        )
    rows = content["traceEvents"] if isinstance(content, dict) else content
    names = {(row["pid"], row["tid"]): row["args"]["name"] for row in rows
             if row["ph"] == "M" and row["name"] == "thread_name"}  # fmt: skip
    events = []
    for row in rows:
        if row["ph"] == "X":
            thread = names.get((row["pid"], row["tid"]), row["tid"])
            thread = int(thread) if str(thread).isdigit() else thread
            kind = _KINDS.get(row.get("cat", ""), row.get("cat", "operator"))
            step = (row.get("args") or {}).get("step")
            events.append(
                ProfilerEvent(row["name"], row["ts"] / 1e6, (row["ts"] + row["dur"]) / 1e6, kind, thread, step)
            )
    return tuple(sorted(events, key=lambda event: (event.start_s, -event.end_s)))


def check_chrome_trace(content: object) -> list[str]:
    """Return the faults for which the viewers would not open this trace, as sentences; an empty list if it is valid."""
    rows = content.get("traceEvents") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        return ["it has no list `traceEvents`"]
    faults = []
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not isinstance(row.get("ph"), str) or len(row["ph"]) != 1:
            faults.append(f"event {number} has no one-letter phase `ph`")
        elif row["ph"] == "X":
            for key, kind in (("name", str), ("ts", int | float), ("dur", int | float)):
                if not isinstance(row.get(key), kind) or isinstance(row[key], bool):
                    faults.append(f"event {number} (X) has no {key}")
                elif kind is not str and not math.isfinite(row[key]):
                    faults.append(f"event {number} (X) has {key} {row[key]}")
            faults += [f"event {number} (X) has no {key}" for key in ("pid", "tid") if key not in row]
            if isinstance(row.get("dur"), int | float) and row["dur"] < 0:
                faults.append(f"event {number} (X) ends before it starts")
        elif row["ph"] == "M" and not isinstance((row.get("args") or {}), dict):
            faults.append(f"event {number} (M) has no args")
    return faults


def _process(event: ProfilerEvent) -> int:
    return _GPU if event.kind == "kernel" else _HOST


def _name_row(what: str, pid: int, tid: int, name: str) -> dict:
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "ts": 0, "args": {"name": name}}
