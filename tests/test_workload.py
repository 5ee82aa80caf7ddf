"""labkit.workload: same seed same requests, prompts that share no beginning, arrivals, lengths, traces and plans.

Cases 8 and 9 of the measuring contract.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.errors import LabkitError
from labkit.workload import (
    ARRIVALS,
    NUM_DISTINCT,
    Lengths,
    Request,
    draw_arrivals,
    draw_closed_plan,
    draw_equal_lengths,
    draw_mixed_lengths,
    draw_open_plan,
    draw_session_plan,
    draw_shared_prefix,
    load_published_lengths,
    read_lengths,
    read_workload_trace,
)

IDS = np.random.default_rng(7).integers(0, 4096, size=60_000)
KINDS = [
    lambda seed: draw_equal_lengths(IDS, num_requests=20, seed=seed),
    lambda seed: draw_mixed_lengths(IDS, num_requests=20, rate_per_s=5, seed=seed),
    lambda seed: draw_shared_prefix(IDS, num_requests=20, seed=seed),
]


def beginnings(requests):
    return {request.prompt_ids[:NUM_DISTINCT] for request in requests}


@pytest.mark.parametrize("draw", KINDS)
def test_the_same_seed_gives_the_same_requests_and_another_seed_others(draw):
    first, again, other = draw(3), draw(3), draw(4)
    assert first == again
    assert first.to_dict()["sha256"] == again.to_dict()["sha256"] != other.to_dict()["sha256"]
    assert {r.prompt_ids for r in first.measured}.isdisjoint(r.prompt_ids for r in other.measured)


@pytest.mark.parametrize("draw", KINDS)
def test_no_warm_up_prompt_begins_like_a_measured_one(draw):
    workload = draw(0)
    assert len(workload.warmup) == 4
    assert len(workload.measured) == 20
    assert beginnings(workload.warmup).isdisjoint(beginnings(workload.measured))


def test_the_warm_up_is_cut_from_another_part_of_the_text():
    workload = draw_equal_lengths(np.arange(30_000), num_requests=20, prompt_tokens=40)
    last = max(max(r.prompt_ids) for r in workload.warmup)
    assert last < 5_000 <= min(min(r.prompt_ids) for r in workload.measured)


def test_prompts_are_windows_of_the_given_ids_and_plain_integers():
    text = " ".join(map(str, IDS.tolist()))
    for request in draw_equal_lengths(IDS, num_requests=5, prompt_tokens=32).measured:
        assert " ".join(map(str, request.prompt_ids)) in text
        assert all(type(token) is int for token in request.prompt_ids)


def test_equal_lengths_are_equal_and_all_there_at_the_start():
    workload = draw_equal_lengths(IDS, num_requests=6, prompt_tokens=50, output_tokens=7)
    assert {(len(r.prompt_ids), r.num_output_tokens, r.arrival_s) for r in workload.measured} == {(50, 7, 0.0)}
    assert (workload.num_prompt_tokens, workload.num_output_tokens) == (300, 42)
    assert len(beginnings(workload.measured)) == 6


def test_a_repeated_text_does_not_give_two_prompts_that_begin_alike():
    half = IDS[:600]
    repeated = np.concatenate([half, half])
    workload = draw_equal_lengths(repeated, num_requests=20, prompt_tokens=40, num_warmup=20)
    assert beginnings(workload.warmup).isdisjoint(beginnings(workload.measured))
    assert len(beginnings(workload.measured)) == 20


def test_a_short_prompt_is_not_the_beginning_of_a_longer_one():
    few = np.arange(12_000) % 40  # every window of one start is a prefix of every longer one
    try:
        workload = draw_mixed_lengths(few, num_requests=12, rate_per_s=1, prompt_median=8, min_tokens=2, num_warmup=3)
    except LabkitError:
        pytest.fail("forty different beginnings are enough for fifteen prompts")
    prompts = [r.prompt_ids[:NUM_DISTINCT] for r in (*workload.warmup, *workload.measured)]
    for i, a in enumerate(prompts):
        assert not any(b[: len(a)] == a for j, b in enumerate(prompts) if j != i)


def test_the_rate_changes_the_arrivals_and_nothing_else():
    slow = draw_mixed_lengths(IDS, num_requests=30, rate_per_s=1, seed=5)
    fast = draw_mixed_lengths(IDS, num_requests=30, rate_per_s=10, seed=5)
    assert [(r.prompt_ids, r.num_output_tokens) for r in slow.measured] == [
        (r.prompt_ids, r.num_output_tokens) for r in fast.measured
    ]
    ratios = [a.arrival_s / b.arrival_s for a, b in zip(slow.measured, fast.measured, strict=True)]
    assert ratios == pytest.approx([10.0] * 30)
    times = [r.arrival_s for r in slow.measured]
    assert times == sorted(times)
    assert times[0] > 0


def test_mixed_lengths_are_lognormal_with_the_stated_median_and_sigma():
    ids = np.random.default_rng(0).integers(0, 4096, size=400_000)
    workload = draw_mixed_lengths(
        ids, num_requests=3000, rate_per_s=9, prompt_median=60, output_median=90, sigma=0.5, max_tokens=4000
    )
    prompts = np.log([len(r.prompt_ids) for r in workload.measured])
    outputs = np.log([r.num_output_tokens for r in workload.measured])
    assert np.exp(np.median(prompts)) == pytest.approx(60, rel=0.06)
    assert np.exp(np.median(outputs)) == pytest.approx(90, rel=0.06)
    assert prompts.std() == pytest.approx(0.5, rel=0.06)
    assert abs(np.corrcoef(prompts, outputs)[0, 1]) < 0.06


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 30), st.floats(0.1, 2.0))
def test_mixed_lengths_stay_inside_their_limits(seed, low, sigma):
    workload = draw_mixed_lengths(
        IDS, num_requests=10, rate_per_s=1, sigma=sigma, min_tokens=low, max_tokens=low + 40, seed=seed
    )
    for request in workload.measured + workload.warmup:
        assert low <= len(request.prompt_ids) <= low + 40
        assert low <= request.num_output_tokens <= low + 40


def test_a_shared_prefix_is_common_to_all_measured_requests_and_not_to_the_warm_up():
    workload = draw_shared_prefix(IDS, num_requests=8, prompt_tokens=100, shared_fraction=0.6, output_tokens=5)
    assert {r.prompt_ids[:60] for r in workload.measured} == {workload.measured[0].prompt_ids[:60]}
    assert len({r.prompt_ids[60 : 60 + NUM_DISTINCT] for r in workload.measured}) == 8
    assert len({r.prompt_ids[:60] for r in workload.warmup}) == 1
    assert workload.warmup[0].prompt_ids[:NUM_DISTINCT] != workload.measured[0].prompt_ids[:NUM_DISTINCT]
    assert all(len(r.prompt_ids) == 100 for r in workload.measured + workload.warmup)
    assert workload.parameters["shared_tokens"] == 60


def test_the_record_names_every_parameter_and_counts():
    found = draw_mixed_lengths(IDS, num_requests=3, rate_per_s=2.5, seed=9).to_dict()
    assert found["parameters"] == {
        "prompt_median": 48, "output_median": 48, "sigma": 0.7, "min_tokens": 4, "max_tokens": 256, "rate_per_s": 2.5,
        "arrivals": "Poisson", "seed": 9,
    }  # fmt: skip
    assert (found["num_requests"], found["num_warmup"]) == (3, 4)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: draw_equal_lengths(IDS[:100], num_requests=50), "too few"),
        (lambda: draw_equal_lengths(IDS.reshape(2, -1), num_requests=2), "one-dimensional"),
        (lambda: draw_equal_lengths(IDS / 2, num_requests=2), "integers"),
        (lambda: draw_equal_lengths(IDS, num_requests=2, prompt_tokens=0), "at least 1"),
        (lambda: draw_shared_prefix(IDS, num_requests=2, shared_fraction=1.0), "less than 1"),
        (lambda: draw_mixed_lengths(IDS, num_requests=2, rate_per_s=0), "more than 0"),
    ],
)
def test_impossible_wishes_are_errors_that_say_what_to_do(call, words):
    with pytest.raises(LabkitError, match=words) as caught:
        call()
    assert caught.value.next_step


def test_a_request_cannot_be_changed():
    with pytest.raises(AttributeError):
        Request((1, 2), 3).arrival_s = 1.0


# Arrivals

TABLE = Path(__file__).resolve().parents[1] / "data" / "reference" / "workloads" / "lengths.csv"


def gaps(kind, **options):
    return np.diff(draw_arrivals(kind, **options), prepend=0.0)


def test_case_9_poisson_gaps_are_exponential_and_independent():
    found = gaps("poisson", rate_per_s=50, num_requests=100_000, seed=3)
    assert found.mean() == pytest.approx(1 / 50, rel=0.01)
    assert scipy.stats.kstest(found, "expon", args=(0, 1 / 50)).pvalue > 0.01
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.01


@pytest.mark.parametrize("shape", [0.25, 1.0, 4.0])
def test_case_9_gamma_gaps_have_the_cv_of_their_shape(shape):
    found = gaps("gamma", rate_per_s=50, num_requests=100_000, cv=1 / math.sqrt(shape), seed=3)
    assert found.mean() == pytest.approx(1 / 50, rel=0.02)
    assert found.std() / found.mean() == pytest.approx(1 / math.sqrt(shape), rel=0.02)


def test_conditioned_poisson_ends_exactly_and_poisson_does_not():
    ends = [draw_arrivals("poisson", rate_per_s=10, num_requests=100, seed=k)[-1] for k in range(50)]
    assert np.std(ends) == pytest.approx(1.0, rel=0.4)  # sqrt(100) / 10
    for k in range(5):
        conditioned = draw_arrivals("conditioned-poisson", rate_per_s=10, num_requests=100, seed=k)
        assert conditioned[-1] == pytest.approx(10.0, abs=1e-12)
        plain = draw_arrivals("poisson", rate_per_s=10, num_requests=100, seed=k)
        assert conditioned / conditioned[-1] == pytest.approx(plain / plain[-1])


def test_constant_arrivals_are_equally_far_apart():
    assert draw_arrivals("constant", rate_per_s=50, duration_s=0.1).tolist() == pytest.approx(
        [0.02, 0.04, 0.06, 0.08, 0.1]
    )
    assert draw_arrivals("constant", rate_per_s=3, duration_s=7).size == 21


def test_a_ramp_has_the_rate_of_its_time():
    times = draw_arrivals("ramp", rate_per_s=10, end_rate_per_s=90, duration_s=400, seed=1)
    assert times.size == pytest.approx(50 * 400, rel=0.03)
    counts, _ = np.histogram(times, bins=4, range=(0, 400))
    assert counts / 100 == pytest.approx([20, 40, 60, 80], rel=0.07)
    flat = draw_arrivals("ramp", rate_per_s=10, end_rate_per_s=10, duration_s=100, seed=1)
    assert flat == pytest.approx(draw_arrivals("poisson", rate_per_s=10, duration_s=100, seed=1))
    down = draw_arrivals("ramp", rate_per_s=90, end_rate_per_s=10, duration_s=400, seed=1)
    assert np.histogram(down, bins=4)[0] / 100 == pytest.approx([80, 60, 40, 20], rel=0.07)
    assert down.max() <= 400 and (np.diff(down) > 0).all()


@pytest.mark.parametrize("kind", [kind for kind in ARRIVALS if kind not in ("at-once", "ramp")])
def test_a_duration_and_a_number_cut_the_same_stream(kind):
    timed = draw_arrivals(kind, rate_per_s=20, duration_s=5, cv=2, seed=9)
    assert (timed <= 5 + 1e-9).all() and timed.size > 20
    if kind != "conditioned-poisson":
        counted = draw_arrivals(kind, rate_per_s=20, num_requests=timed.size, cv=2, seed=9)
        assert counted == pytest.approx(timed)


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "uniform", "num_requests": 3},
        {"kind": "poisson", "rate_per_s": 5},
        {"kind": "poisson", "rate_per_s": 0, "num_requests": 3},
        {"kind": "gamma", "rate_per_s": 5, "num_requests": 3, "cv": 0},
        {"kind": "ramp", "rate_per_s": 5, "duration_s": 3},
        {"kind": "at-once", "duration_s": 3},
    ],
)
def test_a_process_that_cannot_be_drawn_is_an_error(options):
    with pytest.raises(LabkitError):
        draw_arrivals(options.pop("kind"), **options)


# Lengths


def test_lengths_are_read_from_their_text():
    assert read_lengths("128") == read_lengths(128) == Lengths("fixed", 128)
    assert read_lengths("uniform:4:9") == Lengths("uniform", 4, 9)
    assert read_lengths("lognormal:64:0.7:512") == Lengths("lognormal", 64, 0.7, 512)
    assert [str(read_lengths(text)) for text in ("128", "uniform:4:9", "lognormal:64:0.7:512")] == [
        "fixed:128", "uniform:4:9", "lognormal:64:0.7:512",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text", ["", "x", "0", "uniform:9:4", "uniform:4", "lognormal:64", "normal:3:1", "fixed:1:2:3"]
)
def test_invalid_lengths_are_an_error(text):
    with pytest.raises(LabkitError, match="is not a distribution"):
        read_lengths(text)


def test_drawn_lengths_follow_their_distribution():
    draw = lambda text: read_lengths(text).draw(20_000, np.random.default_rng(1))  # noqa: E731
    assert set(draw("7")) == {7}
    assert set(draw("uniform:4:9")) == set(range(4, 10))
    found = draw("lognormal:200:0.7:1000")
    assert np.median(found) == pytest.approx(200, rel=0.03) and found.max() == 1000 and found.min() >= 1
    logs = np.log(draw("lognormal:200:0.7"))
    assert logs.std() == pytest.approx(0.7, rel=0.03)


def test_published_lengths_keep_their_two_percentiles_and_their_source():
    found = load_published_lengths("sharegpt4", path=TABLE)
    assert found.source and "arxiv.org" in found.source
    drawn = found.prompt.draw(200_000, np.random.default_rng(1))
    assert np.percentile(drawn, [50, 90]) == pytest.approx([1730, 5696], rel=0.02)
    drawn = found.output.draw(200_000, np.random.default_rng(1))
    assert np.percentile(drawn, [50, 90]) == pytest.approx([415, 834], rel=0.02)
    small = load_published_lengths("sharegpt4", path=TABLE, scale=0.1, maximum=500)
    assert (small.prompt.a, small.prompt.b, small.prompt.maximum) == (173, found.prompt.b, 500)
    with pytest.raises(LabkitError, match="sharegpt4"):
        load_published_lengths("nothing", path=TABLE)


# Traces


def test_a_trace_is_read_from_csv_jsonl_and_the_azure_columns(tmp_path):
    texts = {
        "a.csv": "arrival_s,prompt_tokens,output_tokens\n3.5,10,4\n1.5,20,5\n",
        "b.jsonl": '{"arrival": 1.5, "prompt_tokens": 20, "output_tokens": 5}\n\n'
        '{"arrival": 3.5, "prompt_tokens": 10, "output_tokens": 4}\n',
        "c.csv": "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,20,5\n"
        "2023-11-16 18:17:05.9799600,10,4\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        rows = read_workload_trace(tmp_path / name)
        assert [row[1:] for row in rows] == [(20, 5), (10, 4)]
        assert [row.arrival_s for row in rows] == pytest.approx([0.0, 2.0], abs=1e-6)
    assert [row.arrival_s for row in read_workload_trace(tmp_path / "a.csv", speed=4)] == [0.0, 0.5]
    assert len(read_workload_trace(tmp_path / "a.csv", duration_s=1.0)) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("arrival_s,prompt_tokens\n1,2\n", "line 2: no output_tokens"),
        ("arrival_s,prompt_tokens,output_tokens\n1,2,3\nnoon,2,3\n", "line 3"),
        ("arrival_s,prompt_tokens,output_tokens\n1,0,3\n", "at least one token"),
        ("arrival_s,prompt_tokens,output_tokens\n", "no request"),
        ('{"arrival": 1}\n{oops\n', "line 1"),
        ("", "no request"),
    ],
)
def test_a_bad_trace_names_its_line(tmp_path, text, said):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(LabkitError, match=said):
        read_workload_trace(tmp_path / "t.csv")
    with pytest.raises(LabkitError, match="cannot be read"):
        read_workload_trace(tmp_path / "missing.csv")


# Plans


def rows_of(plan):
    return sorted(
        (chain.number, chain.start_s, r.number, r.turn, r.think_s, r.num_output_tokens, tuple(r.prompt_ids))
        for chain in plan.chains
        for r in [chain.requests[k] for k in range(min(5, len(chain.requests)))]
    )


PLANS = {
    "open": lambda seed: draw_open_plan(
        "gamma", rate_per_s=20, duration_s=3, cv=2, output="lognormal:9:0.5", seed=seed
    ),
    "closed": lambda seed: draw_closed_plan(num_clients=7, duration_s=3, think_s=0.2, prompt="uniform:3:9", seed=seed),
    "sessions": lambda seed: draw_session_plan(rate_per_s=4, duration_s=3, turns=3, prompt="uniform:3:9", seed=seed),
}


@pytest.mark.parametrize("kind", PLANS)
@pytest.mark.parametrize("num_workers", [1, 2, 5])
def test_case_8_the_schedule_is_the_same_whatever_the_number_of_workers(kind, num_workers):
    whole = PLANS[kind](4)
    parts = [PLANS[kind](4).split(worker, num_workers) for worker in range(num_workers)]
    assert sorted(row for part in parts for row in rows_of(part)) == rows_of(whole)
    assert whole.to_dict()["sha256"] == PLANS[kind](4).to_dict()["sha256"] != PLANS[kind](5).to_dict()["sha256"]
    numbers = [row[2] for row in rows_of(whole)]
    assert len(set(numbers)) == len(numbers)


def test_the_rate_changes_no_length_and_no_prompt():
    slow, fast = (draw_open_plan(rate_per_s=rate, num_requests=20, output="uniform:1:99", seed=1) for rate in (2, 9))
    assert [row[4:] for row in rows_of(slow)] == [row[4:] for row in rows_of(fast)]
    assert slow.chains[3].start_s == pytest.approx(fast.chains[3].start_s * 9 / 2)


def test_only_prompts_of_sessions_share_a_beginning():
    plan = draw_open_plan(rate_per_s=50, num_requests=200, prompt=20)
    assert len({row[6][:4] for row in rows_of(plan)}) == 200
    sessions = draw_session_plan(rate_per_s=5, num_requests=4, turns=3, shared=10, prompt=5, output=7)
    assert sessions.num_requests == 12
    assert len({row[6][:10] for row in rows_of(sessions)}) == 1
    for chain in sessions.chains:
        ids = [list(r.prompt_ids) for r in chain.requests]
        assert [len(one) for one in ids] == [15, 27, 39]  # 10 + 5, then + 7 + 5 each
        assert ids[1][:15] == ids[0] and ids[2][:27] == ids[1]
        assert chain.requests[0].think_s == 0 < chain.requests[1].think_s
    assert len({row[6][10:15] for row in rows_of(sessions) if row[3] == 0}) == 4


def test_a_workload_and_a_trace_become_plans(tmp_path):
    workload = draw_mixed_lengths(np.arange(4000) * 7919 % 997, num_requests=8, rate_per_s=5)
    plan = draw_open_plan(workload)
    assert [list(chain.requests[0].prompt_ids) for chain in plan.chains] == [
        list(r.prompt_ids) for r in workload.measured
    ]
    assert [chain.start_s for chain in plan.chains] == [r.arrival_s for r in workload.measured]
    (tmp_path / "t.csv").write_text("arrival,prompt_tokens,output_tokens\n0,5,3\n2,6,4\n")
    plan = draw_open_plan(read_workload_trace(tmp_path / "t.csv"))
    assert [(c.start_s, len(c.requests[0].prompt_ids), c.requests[0].num_output_tokens) for c in plan.chains] == [
        (0.0, 5, 3), (2.0, 6, 4),
    ]  # fmt: skip


def test_a_cap_makes_a_closed_loop_and_says_so():
    plan = draw_open_plan(rate_per_s=5, num_requests=4)
    assert plan.loop == "open" and plan.num_requests == 4
    capped = plan.cap(3)
    assert (capped.loop, capped.name) == ("closed", "poisson, capped at 3 in flight: closed")
    with pytest.raises(LabkitError, match="lets none through"):
        plan.cap(0)
    with pytest.raises(LabkitError, match="cannot be shared"):
        capped.split(0, 2)


def test_think_times_are_exponential_and_the_first_request_does_not_wait():
    requests = draw_closed_plan(num_clients=1, requests_per_client=3000, think_s=0.5).chains[0].requests
    pauses = [requests[k].think_s for k in range(3000)]
    assert pauses[0] == 0.0 and min(pauses[1:]) > 0
    assert np.mean(pauses[1:]) == pytest.approx(0.5, rel=0.06) and np.std(pauses[1:]) == pytest.approx(0.5, rel=0.1)
    assert {requests[k].think_s for k in range(3)} != {0.0}
    silent = draw_closed_plan(num_clients=2, requests_per_client=3)
    assert {chain.start_s for chain in silent.chains} == {0.0} and silent.chains[1].requests[2].think_s == 0.0


def test_a_closed_loop_needs_an_end():
    with pytest.raises(LabkitError, match="needs at least one client and an end"):
        draw_closed_plan(num_clients=2)
    endless = draw_closed_plan(num_clients=2, duration_s=1.0)
    assert endless.num_requests is None and endless.last_start_s == 1.0
    assert json.dumps(endless.to_dict())
    with pytest.raises(IndexError):
        draw_closed_plan(num_clients=1, requests_per_client=2).chains[0].requests[2]
