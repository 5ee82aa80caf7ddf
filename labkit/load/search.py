"""How many requests per second can the server take and keep its SLO? The highest such rate, by bisection.

Each rate is tried with whole runs, repeated until the answer is sure or no repeat is left: a rate keeps the SLO if
at least `share` of its requests (0.99: a p99 SLO) meet it. Runs at one rate are pooled, and the share's 95 % interval
(Wilson) decides: wholly above `share` is yes, wholly below is no; what stays open counts as no. A rate at which the
queue grows through the run is over-saturated: no, whatever its first requests saw. An INVALID run decides nothing and
is repeated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from labkit.errors import LabkitError
from labkit.load.metrics import check_slo
from labkit.load.records import RequestRecord
from labkit.load.report import LoadResult

__all__ = ["Bisection", "SearchResult", "Trial", "estimate_share_interval", "find_saturation", "run_search"]

_Z = 1.959963984540054


class Bisection:
    """Finds the largest value that works: doubles up to the first that does not, then halves the (log) distance.

    Stops when the first failure is within `tolerance` (1.1: 10 %) of the last success, or at `lowest` or `highest`.

    Attributes:
        value: the next to try; None at the end. Report the outcome with `tell`.
        best: the largest that worked; 0 if none did.
        worst: the smallest that did not; infinity if all worked.
    """

    def __init__(self, start: float, *, lowest: float, highest: float, tolerance: float = 1.1) -> None:
        if not 0 < lowest <= start <= highest or not tolerance > 1:
            raise LabkitError(
                f"A search from {start} between {lowest} and {highest} with tolerance {tolerance} is impossible.",
                next_step="Start between the bounds, with a tolerance above 1.",
            )
        self.value: float | None = start
        self.best, self.worst = 0.0, math.inf
        self._lowest, self._highest, self._tolerance = lowest, highest, tolerance

    def tell(self, is_good: bool) -> None:
        """Report whether `value` worked."""
        if is_good:
            self.best = max(self.best, self.value)
        else:
            self.worst = min(self.worst, self.value)
        if math.isinf(self.worst):
            self.value = min(self.best * 2, self._highest) if self.best < self._highest else None
        elif not self.best:
            self.value = max(self.worst / 2, self._lowest) if self.worst > self._lowest else None
        else:
            self.value = math.sqrt(self.best * self.worst) if self.worst / self.best > self._tolerance else None


@dataclass(frozen=True, slots=True)
class Trial:
    """What was decided for one rate, and from what.

    Attributes:
        rate_per_s: requests per second.
        outcome: "kept", "missed", "open", "over-saturated" or "invalid".
        num_good: requests that met the SLO, over all runs.
        num_judged: requests to which the SLO applies.
        num_runs: runs at this rate.
        num_invalid: of these, INVALID.
        reason: why, if the counts do not say it.
    """

    rate_per_s: float
    outcome: str
    num_good: int
    num_judged: int
    num_runs: int
    num_invalid: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The result of a search.

    Attributes:
        rate_per_s: the highest rate that kept the SLO; 0 if none did.
        missed_per_s: the lowest rate that did not; infinity if all did.
        trials: in the order in which they were made.
    """

    rate_per_s: float
    missed_per_s: float
    trials: tuple[Trial, ...]

    def __str__(self) -> str:
        rows = [
            f"{trial.rate_per_s:8.3g} req/s: {trial.outcome:<14} {trial.num_good} of {trial.num_judged} good, "
            f"{trial.num_runs} runs{f', {trial.num_invalid} INVALID' if trial.num_invalid else ''}"
            f"{f'; {trial.reason}' if trial.reason else ''}"
            for trial in self.trials
        ]
        end = (
            "none of these rates keeps the SLO" if not self.rate_per_s else f"{self.rate_per_s:.3g} req/s keeps the SLO"
        )
        missed = "" if math.isinf(self.missed_per_s) else f", {self.missed_per_s:.3g} req/s does not"
        return "\n".join([*rows, f"{end}{missed}."])


def run_search(
    run_at: Callable[[float, int], LoadResult],
    slo,
    *,
    start_per_s: float = 1.0,
    lowest_per_s: float = 0.05,
    highest_per_s: float = 10_000.0,
    tolerance: float = 1.1,
    share: float = 0.99,
    max_repeats: int = 3,
    on_trial: Callable[[Trial], None] | None = None,
) -> SearchResult:
    """Search for the highest rate at which `share` of the requests meet `slo`.

    `run_at(rate_per_s, repeat)` makes one run (with another seed for each repeat) and returns its `LoadResult`.
    """
    if not slo:
        raise LabkitError("A search needs an SLO.", next_step='give one, such as "ttft=0.5,tpot=0.03".')
    bisection = Bisection(start_per_s, lowest=lowest_per_s, highest=highest_per_s, tolerance=tolerance)
    trials = []
    while bisection.value is not None:
        trial = _try_rate(run_at, slo, bisection.value, share, max_repeats)
        trials.append(trial)
        if on_trial:
            on_trial(trial)
        bisection.tell(trial.outcome == "kept")
    return SearchResult(bisection.best, bisection.worst, tuple(trials))


def _try_rate(run_at, slo, rate_per_s: float, share: float, max_repeats: int) -> Trial:
    num_good = num_judged = num_invalid = 0
    outcome, reason = "open", ""
    for repeat in range(max_repeats):
        result = run_at(rate_per_s, repeat)
        if reason := find_saturation(result.records):
            outcome = "over-saturated"
        elif not result.verdict.is_valid:
            num_invalid += 1
            reason = str(result.verdict)
            outcome = "invalid" if num_invalid == repeat + 1 else outcome
            continue
        marks = [check_slo(record, slo) for record in result.records]
        num_good += sum(mark is True for mark in marks)
        num_judged += sum(mark is not None for mark in marks)
        if outcome == "over-saturated":
            break
        low, high = estimate_share_interval(num_good, num_judged)
        outcome = "kept" if low >= share else "missed" if high < share else "open"
        if outcome != "open":
            break
    else:
        # All repeats are used up: without an interval, "kept" needs that every single request was good.
        if outcome == "open" and num_judged and num_good == num_judged:
            outcome, reason = "kept", "all good, but too few requests for an interval"
    return Trial(rate_per_s, outcome, num_good, num_judged, repeat + 1, num_invalid, reason)


def estimate_share_interval(num_good: int, num: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share (https://doi.org/10.1080/01621459.1927.10502953); (0, 1) for none."""
    if not num:
        return 0.0, 1.0
    p, z2 = num_good / num, _Z**2
    centre = (p + z2 / (2 * num)) / (1 + z2 / num)
    half = _Z * math.sqrt(p * (1 - p) / num + z2 / (4 * num**2)) / (1 + z2 / num)
    return max(0.0, centre - half), min(1.0, centre + half)


def find_saturation(records: Sequence[RequestRecord]) -> str:
    """Say how the queue grew through a run, "" if it did not: a sign that more comes in than goes out.

    The sign: the time to first token from the schedule grows while sending, steadily (rank correlation over 0.5) and
    much (the median of the last third is over twice that of the first, and above it by over 5 % of the sending time).
    Failed and unsent requests count as infinitely late.
    """
    rows = sorted((r.scheduled_s, r.ttft_from_schedule_s if r.is_good else math.inf) for r in records)
    if len(rows) < 30:
        return ""
    times, waits = np.array(rows).T
    third = len(rows) // 3
    first, last = float(np.median(waits[:third])), float(np.median(waits[-third:]))
    if math.isinf(first):
        return ""  # it failed from the start: that is not a queue
    ranks = np.argsort(np.argsort(waits, kind="stable"), kind="stable")
    correlation = float(np.corrcoef(np.arange(len(rows)), ranks)[0, 1])
    sending_s = float(times[-1] - times[0])
    if correlation > 0.5 and last > 2 * first and last - first > 0.05 * sending_s:
        return f"the wait for the first token grew from {first:.3g} s to {last:.3g} s while requests were sent"
    return ""
