"""The checks of lab 13: a batch's two numbers, two regimes, the sweet spot, saturation, the milestone of phase 1."""

import math
import statistics
from types import SimpleNamespace

from labkit.checks._phase_1 import MADE
from labkit.checks._scaling import (
    BATCH_MISTAKES,
    BATCHES,
    FIT_MISTAKES,
    FITS,
    SPOT_MISTAKES,
    SPOTS,
    draw_batches,
    draw_fits,
    draw_spots,
)
from labkit.checks.cases import Case, expect_answer, expect_cases, expect_fields, expect_function, fail, passed
from labkit.checks.learner import LearnerFunction, shorten, tidy
from labkit.checks.milestones import PHASES, expect_claims, find_newest
from labkit.results import load_records
from labkit.stats import estimate_mean_interval
from labkit.units import format_number
from labkit.views import Outcome

__all__ = ["check_1", "check_2", "check_3", "check_4", "check_5"]


def check_1(batch_numbers) -> Outcome:
    """Throughput and step time of a batch; the oracle counts token by token."""
    expect_function(batch_numbers, "batch_numbers")
    expect_cases(batch_numbers, BATCHES, BATCH_MISTAKES)
    expect_cases(batch_numbers, list(draw_batches()), BATCH_MISTAKES)
    return passed("tokens that somebody wanted over all the time that passed, and the wait for one token in seconds.")


def check_2(fit_step_time) -> Outcome:
    """The two parts of a step and the knee; the oracle solves the normal equations by Cramer's rule."""
    expect_function(fit_step_time, "fit_step_time")
    expect_cases(fit_step_time, FITS, FIT_MISTAKES, relative=1e-6)
    expect_cases(fit_step_time, list(draw_fits()), FIT_MISTAKES, relative=1e-6)
    return passed("two parts, each error a share of its own step, and a knee only where it was measured.")


def check_3(find_sweet_spot) -> Outcome:
    """The sweet spot: by a printed table of t on made-up sweeps, then on the learner's own stored samples."""
    expect_function(find_sweet_spot, "find_sweet_spot")
    expect_cases(find_sweet_spot, SPOTS, SPOT_MISTAKES)
    expect_cases(find_sweet_spot, list(draw_spots()), SPOT_MISTAKES)
    own = list(load_records(lab="13", name="sweep"))
    if not own:
        return passed("made-up sweeps are judged right; measure, and check again for your own.")
    record = own[-1]
    step_s = {b: record.samples[f"batch{b}_step_s"] for b in record.settings["batches"]}
    limit_s = record.settings["limit_s"]
    good = [b for b in sorted(step_s) if estimate_mean_interval(step_s[b]).high <= limit_s]
    right = max(good, key=lambda b: b / statistics.fmean(step_s[b])) if good else None
    case = Case(right, (step_s, limit_s), why=f"that is your record {record.id}, recomputed from its samples.")
    expect_cases(find_sweet_spot, [case])
    if right is None:
        return passed(f"your record {record.id}: no batch keeps {1e3 * limit_s:.3g} ms for a token.")
    rate = right / statistics.fmean(step_s[right])
    said = f"batch {right} gives {format_number(rate)} tok/s, each token within {1e3 * limit_s:.3g} ms"
    return passed(
        f"your record {record.id}: {said}.",
        {"batch": right, "tok_per_s": rate},
    )


# 13.4: made-up records. The first: alone a request takes 0.54 s, the best throughput is 16 requests a second, and both
# are means of skewed runs. In the last one two clients happen to wait less than one.
def _make_record(number, clients, rates, latencies_s):
    samples = {}
    for n, rate, latency_s in zip(clients, rates, latencies_s, strict=True):
        samples |= {
            f"clients{n}_req_per_s": rate, f"clients{n}_e2e_s": latency_s,
            f"clients{n}_tok_per_s": [24 * x for x in rate], f"clients{n}_ttft_s": [x / 4 for x in latency_s],
            f"clients{n}_tpot_s": [x / 32 for x in latency_s],
        }  # fmt: skip
    return SimpleNamespace(id=f"r-00000000b{number}", lab="13", name="sweep", samples=samples,
                           settings={"clients": list(clients)})  # fmt: skip


_SERVED = (
    _make_record(0, [1, 4, 8, 16], [[2.0, 1.75, 2.25], [7.0, 7.5, 6.5], [15.0, 14.0, 19.0], [14.0, 14.5, 15.0]],
                 [[0.5, 0.6875, 0.4375], [0.5625, 0.53125, 0.59375], [0.5625, 0.5, 0.625], [1.1, 1.0625, 1.03125]]),
    _make_record(1, [8, 2, 32, 16], [[30.0, 34.0], [16.0, 20.0], [36.0, 40.0], [40.0, 44.0]],
                 [[0.2, 0.18], [0.125, 0.1], [0.9, 0.8], [0.4, 0.38]]),
    _make_record(2, [1, 2, 4], [[8.0, 8.5], [7.75, 8.0], [7.5, 7.0]],
                 [[0.125, 0.1171875], [0.109375, 0.1171875], [0.5, 0.5625]]),
)  # fmt: skip
_KEYS = ("record", "in_flight", "saturation")


def _mean(record, n, key):
    return statistics.fmean(record.samples[f"clients{n}_{key}"])


def _law(record, *, rate="req_per_s", latency="e2e_s"):
    """Little's law for each number of clients: the mean over the runs of throughput times latency."""
    return {n: statistics.fmean(x * r for x, r in zip(record.samples[f"clients{n}_{rate}"],
            record.samples[f"clients{n}_{latency}"], strict=True)) for n in record.settings["clients"]}  # fmt: skip


def _meet(record, *, rate="req_per_s", latency="e2e_s", best=max, alone=min):
    clients = record.settings["clients"]
    return best(_mean(record, n, rate) for n in clients) * _mean(record, alone(clients), latency)


def _meet_at(record, *, where):
    """The product at one number of clients, which `where` chooses."""
    n = where(record.settings["clients"], lambda n: _mean(record, n, "req_per_s"))
    return _mean(record, n, "req_per_s") * _mean(record, n, "e2e_s")


_LAW_MISTAKES = (
    ("tokens are counted: Little's law is about requests, take req_per_s.", {"rate": "tok_per_s"}),
    ("the time to the first token is only a part: a request is under way until its last token.", {"latency": "ttft_s"}),
    ("the time per token is no request's time: take e2e_s.", {"latency": "tpot_s"}),
)
_MEET_MISTAKES = (
    ("the product belongs to one number of clients: that is Little's law again. Take the *best* throughput times the "
     "latency of a request that is *alone*.", lambda r: _meet_at(r, where=lambda c, rate: max(c, key=rate))),
    ("the product belongs to one number of clients: that is Little's law again. Take the *best* throughput times the "
     "latency of a request that is *alone*.", lambda r: _meet_at(r, where=lambda c, rate: max(c))),
    ("that is the throughput of the fewest clients: take the best one.",
     lambda r: _meet_at(r, where=lambda c, rate: min(c))),
    ("that is the lowest throughput, and the best one was asked for.", lambda r: _meet(r, best=min)),
    ("the latency is that of the most clients, which already waited: take the fewest.", lambda r: _meet(r, alone=max)),
    ("that is the shortest latency of all: the fewest clients were asked for, they do not wait for each other.",
     lambda r: max(_mean(r, n, "req_per_s") for n in r.settings["clients"])
     * min(_mean(r, n, "e2e_s") for n in r.settings["clients"])),
    ("medians are taken: take the mean over the runs of each number of clients.",
     lambda r: max(statistics.median(r.samples[f"clients{n}_req_per_s"]) for n in r.settings["clients"])
     * statistics.median(r.samples[f"clients{min(r.settings['clients'])}_e2e_s"])),
    ("the latency is that of the first entry of `clients`: they may stand in any order.",
     lambda r: _meet(r, alone=lambda c: c[0])),
    ("tokens are counted: take req_per_s.", lambda r: _meet(r, rate="tok_per_s")),
    ("the time to the first token is only a part of a request: take e2e_s.", lambda r: _meet(r, latency="ttft_s")),
    ("the time per token is no request's time: take e2e_s.", lambda r: _meet(r, latency="tpot_s")),
    ("that is the most clients that were tried, not where the server saturates.", lambda r: max(r.settings["clients"])),
    ("the throughput is divided by the latency: multiply, requests per second times seconds are requests.",
     lambda r: max(_mean(r, n, "req_per_s") for n in r.settings["clients"])
     / _mean(r, min(r.settings["clients"]), "e2e_s")),
    ("single runs are mixed: take the mean over the runs of each number of clients first.",
     lambda r: max(max(r.samples[f"clients{n}_req_per_s"]) for n in r.settings["clients"])
     * _mean(r, min(r.settings["clients"]), "e2e_s")),
)  # fmt: skip


def check_4(read_saturation) -> Outcome:
    """Little's law and the saturation of made-up records, then of the learner's own."""
    expect_function(read_saturation, "read_saturation")
    for record in _SERVED:
        _expect_saturation(read_saturation, record, where=f"made-up record {record.id}")
    own = list(load_records(lab="13", name="sweep"))
    if not own:
        return passed("the three made-up records are read right; measure, and check again for your own.")
    law, meet = _expect_saturation(read_saturation, own[-1], where=f"your record {own[-1].id}")
    most = max(law)
    return passed(
        f"your record {own[-1].id}: with {most} clients {law[most]:.3g} requests were under way, and the lines meet at "
        f"{meet:.3g} clients.", {"saturation": meet, "in_flight": law[most]},
    )  # fmt: skip


def _expect_saturation(read_saturation, record, *, where):
    got = read_saturation(record)
    expect_fields(got, _KEYS, record, call=read_saturation.call, where=where)
    law, meet = _law(record), _meet(record)
    seen = got["in_flight"]
    if not isinstance(seen, dict) or set(seen) != set(law):
        fail(f"{where}: `in_flight` is a dict with a number for each of {sorted(law)}, not {shorten(repr(seen), 60)}.")
    seen = {n: tidy(value) for n, value in seen.items()}
    if not _near(seen, law):
        for sentence, parts in _LAW_MISTAKES:
            if _near(seen, _law(record, **parts)):
                fail(f"{where}: `in_flight`: {sentence}")
        products = {n: _mean(record, n, "req_per_s") * _mean(record, n, "e2e_s") for n in law}
        if _near(seen, products):
            fail(
                f"{where}: `in_flight`: the product of two means is not the mean of the products: multiply run by run."
            )
        if _near(seen, {n: float(n) for n in law}):
            fail(f"{where}: `in_flight` repeats the number of clients: compute what the samples say.")
        wrong = next(n for n in sorted(law) if not _near({n: seen[n]}, {n: law[n]}))
        fail(f"{where}: `in_flight` at {wrong} clients is {shorten(repr(seen[wrong]), 30)}, expected {law[wrong]:.6g}: "
             "the mean over the runs of req_per_s times e2e_s.")  # fmt: skip
    found = tidy(got["saturation"])
    if not _near({0: found}, {0: meet}):
        for sentence, mistake in _MEET_MISTAKES:
            if _near({0: found}, {0: mistake(record)}):
                fail(f"{where}: `saturation`: {sentence}")
        fail(f"{where}: `saturation` is {shorten(repr(found), 30)}, expected {meet:.6g}: the best throughput times the "
             "latency with the fewest clients.")  # fmt: skip
    return law, meet


def _near(got: dict, right: dict) -> bool:
    is_number = all(isinstance(got[n], int | float) and not isinstance(got[n], bool) for n in right)
    return is_number and all(math.isclose(got[n], right[n], rel_tol=1e-6) for n in right)


def check_5(claim_milestone) -> Outcome:
    """The milestone of phase 1: claims over made-up records, then over the learner's own, recomputed from samples."""
    expect_function(claim_milestone, "claim_milestone")
    for made in MADE:
        _expect_milestone(
            claim_milestone, made, [record for one in MADE for record in one.values()], "made-up records: "
        )
    found = find_newest("1", load_records())
    missing = [f"lab {lab}" for claim, (lab, _) in PHASES["1"].records.items() if claim not in found]
    if missing:
        return Outcome("not attempted", f"the milestone needs your own records: run {', '.join(missing)}.")
    right = _expect_milestone(claim_milestone, found, list(load_records()), "your records: ")
    low, mean, high = (format_number(right[key]) for key in ("low", "tok_per_s", "high"))
    rate = f"{mean} tok/s ({low} to {high})"
    return passed(
        f"{PHASES['1'].sentence}. Yours: in a decode step `{right['slowest_part']}` takes the most time, "
        f"the largest part of the memory is {right['largest_memory']}; vLLM gives {rate}, and under load "
        f"{right['main_latency']} is the largest part of the latency.", {"tok_per_s": right["tok_per_s"]},
    )  # fmt: skip


def _expect_milestone(claim_milestone: LearnerFunction, found: dict, records: list, where: str) -> dict:
    claims = claim_milestone(found["profile"], found["engines"], found["sweep"])
    expect_answer(claims, claim_milestone.call)
    return expect_claims("1", claims, records, where=where)
