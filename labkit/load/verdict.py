"""Can the client be believed? A verdict on the instrument, from what it saw of itself: valid, or INVALID and why.

The bounds are the course's choice. They judge the client: a slow or failing server is a finding, not an invalid run.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from labkit.load.client import ClientRun
from labkit.load.records import RequestRecord
from labkit.units import format_seconds

__all__ = ["BOUNDS", "ClientVerdict", "check_client"]

BOUNDS = {
    "lag_p50_s": (0.002, "send lag, median"),
    "lag_p99_s": (0.010, "send lag, 99th percentile"),
    "delay_p50_s": (0.001, "event-loop delay, median"),
    "delay_p99_s": (0.010, "event-loop delay, 99th percentile"),
    "cpu_fraction": (0.9, "processor time of the client's thread over wall time"),
    "little_error": (0.1, "requests in flight, counted against rate x mean latency, relative"),
    "coalesced_share": (0.1, "chunks that came in one read with an earlier one"),
}
_RELATIVE = 0.1  # of the median TTFT: if answers take seconds, a tail of 10 ms in the lag changes nothing


@dataclass(frozen=True, slots=True)
class ClientVerdict:
    """Whether a client can be believed.

    Coalesced chunks are a property of server and client together: above the bound the gaps between chunks mean nothing,
    so the run is INVALID.

    Attributes:
        is_valid: whether it can.
        reasons: why not.
        remarks: what should be known but does not decide.
        numbers: what was looked at, by the names in BOUNDS; None if unknown.
    """

    is_valid: bool
    reasons: tuple[str, ...]
    remarks: tuple[str, ...]
    numbers: dict[str, float | None]

    def __str__(self) -> str:
        if self.is_valid:
            return "valid"
        return "INVALID: " + "; ".join(self.reasons)


def check_client(runs: ClientRun | Sequence[ClientRun]) -> ClientVerdict:
    """Judge one client, or the worker processes of one run together (the worst delay and processor share count)."""
    runs = [runs] if isinstance(runs, ClientRun) else list(runs)
    records = [record for run in runs for record in run.records]
    sent = [record for record in records if record.sent_s is not None]
    good = [record for record in sent if record.is_good]
    numbers: dict[str, float | None] = dict.fromkeys(BOUNDS)
    lags = [record.lag_s for record in sent]
    if lags:
        numbers["lag_p50_s"], numbers["lag_p99_s"] = (float(np.percentile(lags, q)) for q in (50, 99))
    watched = [run.health for run in runs if run.health.delays_s]
    if watched:
        for q in (50, 99):
            numbers[f"delay_p{q}_s"] = max(float(np.percentile(health.delays_s, q)) for health in watched)
        numbers["cpu_fraction"] = max(health.cpu_fraction for health in watched)
        numbers["little_error"] = _measure_little(sent, watched)
    if num_chunks := sum(len(record.chunks) for record in sent):
        numbers["coalesced_share"] = sum(record.num_coalesced for record in sent) / num_chunks
    slack_s = _RELATIVE * float(np.median([record.ttft_s for record in good])) if good else 0.0
    reasons = []
    for name, (bound, words) in BOUNDS.items():
        bound = max(bound, slack_s) if name.endswith("p99_s") else bound
        value = numbers[name]
        if value is not None and value > bound:
            write = format_seconds if name.endswith("_s") else "{:.1%}".format
            reasons.append(f"{words}: {write(value)}, over {write(bound)}")
    unsent = len(records) - len(sent)
    if unsent:
        reasons.append(f"{unsent} requests were never sent")
    if any(run.end != "complete" for run in runs):
        ends = sorted({run.end for run in runs if run.end != "complete"})
        reasons.append(f"the run was cut short ({', '.join(ends)})")
    if not good:
        reasons.append("no request succeeded")
    return ClientVerdict(not reasons, tuple(reasons), tuple(_find_remarks(records, good)), numbers)


def _measure_little(sent: Sequence[RequestRecord], watched) -> float | None:
    """Little's law, requests in flight = rate x mean time in flight: the relative difference of the two sides.

    The left side was counted at the ticks of a timer, the right side comes from the times of the records. None below
    50 requests, 200 ticks or half a request in flight: there the ticks say too little.
    """
    window_s = max(health.window_s for health in watched)
    counted = sum(health.concurrency for health in watched)
    ended = [record.end_s - record.sent_s for record in sent if record.end_s is not None]
    if len(ended) < 50 or min(len(health.delays_s) for health in watched) < 200 or counted < 0.5:
        return None
    expected = sum(ended) / window_s
    return abs(counted - expected) / max(counted, expected)


def _find_remarks(records: Sequence[RequestRecord], good: Sequence[RequestRecord]) -> list[str]:
    said = []
    sources = {record.source for record in good}
    if poor := sources & {"chunks", "retokenized"}:
        said.append(f"token counts come from {' and '.join(sorted(poor))}, not from the server")
    if len(sources) > 1:
        said.append(f"token counts come from several sources: {', '.join(sorted(sources))}")
    wrong = sum(any(note.startswith("asked for") for note in record.notes) for record in good)
    if wrong:
        said.append(f"{wrong} requests have another number of tokens than was asked for")
    contradicting = sum(any(note.startswith("usage ") for note in record.notes) for record in good)
    if contradicting:
        said.append(f"the usage contradicts the text in {contradicting} requests")
    if retries := sum(record.num_retries for record in records):
        said.append(f"{retries} requests were sent again after a refusal")
    return said
