"""The checks of lab 13: a batch's two numbers, two regimes, the sweet spot, saturation, the milestone of phase 1."""

import itertools
import math
import random
import statistics
from types import SimpleNamespace

from lab13.milestone import MADE, PHASE_1, make_samples

from labkit.checks.cases import Case, expect_answer, expect_cases, expect_fields, expect_function, fail, passed
from labkit.checks.learner import LearnerFunction, shorten, tidy
from labkit.checks.milestone import expect_claims, find_newest
from labkit.checks.mistakes import find_mistake
from labkit.results import load_records, save_record
from labkit.stats import estimate_mean_interval
from labkit.units import format_number, is_near
from labkit.views import Outcome

# 13.1: tokens that each row wants, step times in ms -> throughput in tok/s, median step time in s.
_BATCHES = [
    Case((160.0, 0.0125), ([3, 3], [12.5, 12.5, 12.5]), why="6 tokens in 37.5 ms; a step takes 12.5 ms."),
    Case((100.0, 0.015), ([4, 1], [10.0, 20.0, 20.0, 0.0]),
         why="5 tokens in 50 ms: the second row finishes after one step and then only keeps its place."),
    Case((50.0, 0.05), ([2, 1, 1, 1], [30.0, 70.0]), why="5 tokens in 100 ms, not 8: three rows want one token each."),
    Case((250.0, 0.004), ([1], [4.0]), why="one token in 4 ms."),
    Case((62.5, 0.008), ([2, 2, 2, 0], [8.0, 8.0, 80.0]),
         why="6 tokens in 96 ms; the median step takes 8 ms, however long the slowest one took."),
]  # fmt: skip


def _draw_batches():
    """Yield random cases of 13.1, whose tokens are counted one by one."""
    draw = random.Random(131)
    for _ in range(30):
        wanted = [draw.randrange(1, 12) for _ in range(draw.randrange(1, 9))]
        step_ms = [draw.randrange(16, 400) / 16 for _ in range(max(wanted))]
        tokens = sum(1 for step, row in itertools.product(range(len(step_ms)), wanted) if step < row)
        ordered, n = sorted(step_ms), len(step_ms)
        middle_s = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2000
        yield Case((tokens * 1e3 / math.fsum(step_ms), middle_s), (wanted, step_ms))


def check_1(batch_numbers) -> Outcome:
    """Throughput and step time of a batch; the oracle counts token by token."""
    expect_function(batch_numbers, "batch_numbers")
    expect_cases(batch_numbers, _BATCHES)
    expect_cases(batch_numbers, list(_draw_batches()))
    return passed("wanted tokens divided by all the time that passed, and the wait for one token in seconds.")


# 13.2: batches, step times -> fixed part, part per row, knee. The first three are exact lines.
def _fit_by_minors(batches, step_s):
    """Fit t = fixed + per_row b by the normal equations and Cramer's rule; the knee is None outside the sweep."""
    w = [t**-2 for t in step_s]
    s, sb, sbb = sum(w), sum(x * b for x, b in zip(w, batches, strict=True)), 0.0
    sbb = sum(x * b * b for x, b in zip(w, batches, strict=True))
    st = sum(x * t for x, t in zip(w, step_s, strict=True))
    sbt = sum(x * b * t for x, b, t in zip(w, batches, step_s, strict=True))
    determinant = s * sbb - sb * sb
    fixed, per_row = (st * sbb - sbt * sb) / determinant, (s * sbt - sb * st) / determinant
    knee = fixed / per_row if per_row > 0 else None
    return fixed, per_row, knee if knee is not None and min(batches) <= knee <= max(batches) else None


_DOUBLING = [1, 2, 4, 8, 16, 32, 64]
_REAL_S = [0.0062, 0.0084, 0.0101, 0.0113, 0.0142, 0.0224, 0.0322]


def _line(fixed, per_row, batches):
    return [fixed + per_row * b for b in batches]


_EXACT = [
    ([1, 2, 4, 8, 16], (0.5, 0.125, 4.0), "t = 0.5 + 0.125 b: at 4 rows both parts are 0.5."),
    ([16, 1, 4, 32], (2.0, 0.25, 8.0), "the batches may come in any order."),
    ([1, 2, 4, 8], (2.0, 0.125, None), "the parts would be equal at batch 16, but the largest batch was 8: no knee."),
    ([4, 8, 16, 32], (0.25, 0.25, None), "the parts would be equal at batch 1, but the smallest batch was 4: no knee."),
    ([1, 2, 4, 8], (2.25, -0.25, None), "the time falls as rows are added: a negative slope has no knee."),
    ([2, 4, 8], (-0.25, 0.25, None), "the fixed part is negative: no knee within the sweep."),
]
_FITS = [Case(expected, (b, _line(*expected[:2], b)), why=why) for b, expected, why in _EXACT]
_FITS += [Case(_fit_by_minors(_DOUBLING, _REAL_S), (_DOUBLING, _REAL_S),
              why="use least squares on the relative errors: divide each equation by its time.")]  # fmt: skip


def _draw_fits():
    """Yield noisy sweeps of 13.2 whose answer comes from the normal equations."""
    draw = random.Random(132)
    for _ in range(30):
        batches = sorted(draw.sample([1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64], draw.randrange(4, 9)))
        fixed, per_row = draw.uniform(0.002, 0.02), draw.uniform(1e-4, 1e-2)
        step_s = [(fixed + per_row * b) * draw.uniform(0.85, 1.15) for b in batches]
        draw.shuffle(batches)
        yield Case(_fit_by_minors(batches, step_s), (batches, step_s))


def check_2(fit_step_time) -> Outcome:
    """The two parts of a step and the knee; the oracle solves the normal equations by Cramer's rule."""
    expect_function(fit_step_time, "fit_step_time")
    expect_cases(fit_step_time, _FITS, relative=1e-6)
    expect_cases(fit_step_time, list(_draw_fits()), relative=1e-6)
    return passed("both parts, fitted by their relative errors, and a knee only where it was measured.")


# 13.3: {batch: step time in s of each run}, limit -> batch. Student's t for three runs, from a printed table.
_T_2 = 4.30265272974946


def _choose(step_s, limit_s):
    """Choose by the table of t, for three runs of each batch."""
    high_s = {b: statistics.fmean(v) + _T_2 * statistics.stdev(v) / math.sqrt(3) for b, v in step_s.items()}
    good = [b for b in sorted(step_s) if high_s[b] <= limit_s]
    return max(good, key=lambda b: b / statistics.fmean(step_s[b])) if good else None


def _spread(mean, half):
    """Three samples whose interval is mean - half to mean + half."""
    step = half * math.sqrt(3) / _T_2
    return [mean - step, mean, mean + step]


_SPOTS = [
    ({1: _spread(0.5, 0.1), 2: _spread(0.6, 0.1), 4: _spread(0.8, 0.1), 8: _spread(1.5, 0.1)}, 1.0, 4,
     "batch 8 misses the limit; of the others, batch 4 has the highest throughput."),
    ({1: _spread(0.5, 0.1), 2: _spread(0.6, 0.1), 4: _spread(0.9, 0.2), 8: _spread(1.5, 0.1)}, 1.0, 2,
     "the mean of batch 4 is within the limit, but its interval ends at 1.1: you cannot promise it."),
    ({1: _spread(1.5, 0.1), 2: _spread(1.6, 0.1)}, 1.0, None, "no batch keeps the limit: None."),
    ({1: _spread(0.9, 0.3)}, 1.0, None, "its interval ends above the limit: None."),
    ({1: _spread(0.2, 0.1), 4: _spread(0.9, 0.01), 8: _spread(0.95, 0.01), 16: _spread(2.4, 0.01)}, 3.0, 8,
     "batch 16 keeps the limit, but batch 8 has the higher throughput: 8.4 versus 6.7."),
    ({4: [1.0, 1.0, 1.0], 2: [0.75, 0.75, 0.75]}, 1.0, 4, "a time equal to the limit keeps it."),
    ({4: [1.0, 1.0, 1.0], 2: [0.5, 0.5, 0.5], 1: [0.5, 0.5, 0.5]}, 2.0, 2,
     "batches 2 and 4 have the same throughput: take the smaller one, because its users wait less."),
    ({1: _spread(0.5, 0.01), 2: _spread(1.2, 0.01), 4: _spread(0.8, 0.01), 8: _spread(0.9, 0.01)}, 1.0, 8,
     "batch 2 misses the limit (by chance, in this run), but 4 and 8 keep it: check every batch."),
    ({1: _spread(0.6, 0.05), 2: _spread(1.05, 0.1)}, 1.0, 1, "the interval of batch 2 begins below the limit but ends above it."),
    ({1: _spread(0.9, 0.01), 2: _spread(0.5, 0.01)}, 1.0, 2, "both keep the limit, but batch 2 has the higher throughput."),
    ({1: _spread(0.5, 0.01), 2: [0.8, 0.9, 1.0]}, 1.005, 1, "the interval of batch 2 ends at 1.15."),
    ({1: _spread(0.6, 0.01), 2: [0.9, 0.9, 1.05]}, 1.049, 1, "the interval of batch 2 ends at 1.17."),
    ({2: [0.43, 0.43, 0.43], 4: [0.8, 0.8, 1.1]}, 5.0, 2,
     "one of the three runs of batch 4 was slow: by the mean, batch 2 has the higher throughput, 4.65 versus 4.44."),
    ({8: _spread(0.9, 0.01), 1: _spread(0.5, 0.01), 4: _spread(1.1, 0.01)}, 1.0, 8, "the batches may come in any order."),
]  # fmt: skip
_SPOT_CASES = [Case(expected, (step_s, limit_s), why=why) for step_s, limit_s, expected, why in _SPOTS]


def _draw_spots():
    """Yield random sweeps of 13.3, chosen by the table of t."""
    draw = random.Random(133)
    for _ in range(40):
        batches = draw.sample([1, 2, 4, 8, 16, 32], draw.randrange(2, 6))
        step_s = {b: [(0.4 + 0.05 * b) * draw.uniform(0.8, 1.2) for _ in range(3)] for b in batches}
        limit_s = draw.uniform(0.4, 3.0)
        yield Case(_choose(step_s, limit_s), (step_s, limit_s))


def check_3(find_sweet_spot) -> Outcome:
    """The sweet spot of made-up sweeps (by a printed table of t), then of the learner's own stored samples."""
    expect_function(find_sweet_spot, "find_sweet_spot")
    expect_cases(find_sweet_spot, _SPOT_CASES)
    expect_cases(find_sweet_spot, list(_draw_spots()))
    own = list(load_records(lab="13", name="sweep"))
    if not own:
        return passed("right on the made-up sweeps; now measure, and check again on your own sweep.")
    record = own[-1]
    step_s = {b: record.samples[f"batch{b}_step_s"] for b in record.settings["batches"]}
    limit_s = record.settings["limit_s"]
    good = [b for b in sorted(step_s) if estimate_mean_interval(step_s[b]).high <= limit_s]
    right = max(good, key=lambda b: b / statistics.fmean(step_s[b])) if good else None
    case = Case(right, (step_s, limit_s), why=f"this is your record {record.id}, recomputed from its samples.")
    expect_cases(find_sweet_spot, [case], names_mistakes=False)
    if right is None:
        return passed(f"your record {record.id}: no batch keeps {1e3 * limit_s:.3g} ms per token.")
    rate = right / statistics.fmean(step_s[right])
    said = f"batch {right} gives {format_number(rate)} tok/s, each token within {1e3 * limit_s:.3g} ms"
    return passed(
        f"your record {record.id}: {said}.",
        {"batch": right, "tok_per_s": rate},
    )


# 13.4: made-up records. In the first, a request alone takes 0.54 s, the best throughput is 16 requests a second, and both
# are means of skewed runs. In the last, two clients happen to wait less than one does.
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


def _law(record):
    """Little's law for each number of clients: the mean over the runs of throughput times latency."""
    runs = {n: zip(record.samples[f"clients{n}_req_per_s"], record.samples[f"clients{n}_e2e_s"], strict=True)
            for n in record.settings["clients"]}  # fmt: skip
    return {n: statistics.fmean(rate * latency_s for rate, latency_s in pairs) for n, pairs in runs.items()}


def _meet(record):
    """Where the two lines meet: the best throughput times the latency with the fewest clients."""
    clients = record.settings["clients"]
    return max(_mean(record, n, "req_per_s") for n in clients) * _mean(record, min(clients), "e2e_s")


def check_4(read_saturation) -> Outcome:
    """Little's law and the saturation of made-up records, then of the learner's own."""
    expect_function(read_saturation, "read_saturation")
    for record in _SERVED:
        _expect_saturation(read_saturation, record, where=f"made-up record {record.id}")
    own = list(load_records(lab="13", name="sweep"))
    if not own:
        return passed("right on the three made-up records; now measure, and check again on your own record.")
    law, meet = _expect_saturation(read_saturation, own[-1], where=f"your record {own[-1].id}")
    most = max(law)
    return passed(
        f"your record {own[-1].id}: with {most} clients {law[most]:.3g} requests were in flight, and the lines meet at "
        f"{meet:.3g} clients.", {"saturation": meet, "in_flight": law[most]},
    )  # fmt: skip


def _expect_saturation(read_saturation, record, *, where):
    got = read_saturation(record)
    expect_fields(got, _KEYS, record, call=read_saturation.call, where=where)
    law, meet = _law(record), _meet(record)

    def _find(key, seen, right):
        """Return the sentence of a known mistake that changes this field and gives these numbers."""

        def explains(wrong):
            made = wrong(record)[key]
            made = made if isinstance(made, dict) else {0: made}
            return not _near(made, right) and _near(seen, made)

        return find_mistake(read_saturation.exercise, read_saturation.reference_name, explains)

    seen = got["in_flight"]
    if not isinstance(seen, dict) or set(seen) != set(law):
        fail(f"{where}: `in_flight` is a dict with a number for each of {sorted(law)}; got {shorten(repr(seen), 60)}.")
    seen = {n: tidy(value) for n, value in seen.items()}
    if not _near(seen, law):
        if sentence := _find("in_flight", seen, law):
            fail(f"{where}: `in_flight`: {sentence}")
        products = {n: _mean(record, n, "req_per_s") * _mean(record, n, "e2e_s") for n in law}
        if _near(seen, products):
            fail(
                f"{where}: `in_flight`: the product of two means is not the mean of the products: multiply run by run."
            )
        if _near(seen, {n: float(n) for n in law}):
            fail(f"{where}: `in_flight` repeats the number of clients: compute it from the samples.")
        wrong = next(n for n in sorted(law) if not _near({n: seen[n]}, {n: law[n]}))
        fail(f"{where}: `in_flight` at {wrong} clients is {shorten(repr(seen[wrong]), 30)}, expected {law[wrong]:.6g}: "
             "the mean over the runs of req_per_s times e2e_s.")  # fmt: skip
    found = tidy(got["saturation"])
    if not _near({0: found}, {0: meet}):
        if sentence := _find("saturation", {0: found}, {0: meet}):
            fail(f"{where}: `saturation`: {sentence}")
        fail(f"{where}: `saturation` is {shorten(repr(found), 30)}, expected {meet:.6g}: the best throughput times the "
             "latency with the fewest clients.")  # fmt: skip
    return law, meet


def save_records_5() -> None:
    """Save made-up records where those of labs 11, 12 and 13 are missing."""
    made = make_samples(7, slowest="mul", prefill="mm", memory="weights", latency="waiting", alone="prefill")
    for (claim, (samples, settings)), (lab, name) in zip(made.items(), PHASE_1.records.values(), strict=True):
        if not list(load_records(lab=lab, name=name)):
            save_record(lab, claim, samples=samples, settings=settings)


def _near(got: dict, right: dict) -> bool:
    return all(is_near(got[n], right[n]) for n in right)


def check_5(claim_milestone) -> Outcome:
    """The milestone of phase 1: claims about made-up records, then about the learner's own, recomputed from samples."""
    expect_function(claim_milestone, "claim_milestone")
    for made in MADE:
        _expect_milestone(
            claim_milestone, made, [record for one in MADE for record in one.values()], "made-up records: "
        )
    found = find_newest(PHASE_1, load_records())
    missing = [f"lab {lab}" for claim, (lab, _) in PHASE_1.records.items() if claim not in found]
    if missing:
        return Outcome("not attempted", f"the milestone needs your own records: run {', '.join(missing)}.")
    right = _expect_milestone(claim_milestone, found, list(load_records()), "your records: ")
    low, mean, high = (format_number(right[key]) for key in ("low", "tok_per_s", "high"))
    rate = f"{mean} tok/s ({low} to {high})"
    return passed(
        f"{PHASE_1.sentence}. Yours: in a decode step `{right['slowest_part']}` takes the most time, "
        f"the largest part of the memory is {right['largest_memory']}; vLLM gives {rate}, and under load "
        f"{right['main_latency']} is the largest part of the latency.", {"tok_per_s": right["tok_per_s"]},
    )  # fmt: skip


def _expect_milestone(claim_milestone: LearnerFunction, found: dict, records: list, where: str) -> dict:
    claims = claim_milestone(found["profile"], found["engines"], found["sweep"])
    expect_answer(claims, claim_milestone.call)
    return expect_claims(PHASE_1, claims, records, name=claim_milestone.reference_name, where=where)
