"""labkit.load: arrivals, lengths, traces and plans. Cases 8 and 9 of the measuring contract."""

import json
import math

import numpy as np
import pytest

from labkit.errors import LabkitError
from labkit.load.arrivals import ARRIVALS, draw_arrivals
from labkit.load.lengths import Lengths, load_published_lengths, read_lengths
from labkit.load.schedules import draw_closed_plan, draw_open_plan, draw_session_plan
from labkit.load.trace import load_trace
from labkit.workload import draw_mixed_lengths


def gaps(kind, **options):
    return np.diff(draw_arrivals(kind, **options), prepend=0.0)


def test_case_9_poisson_gaps_are_exponential_and_independent():
    from scipy.stats import kstest

    found = gaps("poisson", rate_per_s=50, num_requests=100_000, seed=3)
    assert found.mean() == pytest.approx(1 / 50, rel=0.01)
    assert kstest(found, "expon", args=(0, 1 / 50)).pvalue > 0.01
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


def test_a_ramp_has_the_rate_of_its_instant():
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
def test_no_lengths_are_an_error(text):
    with pytest.raises(LabkitError, match="is no distribution"):
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
    found = load_published_lengths("sharegpt4")
    assert found.source and "arxiv.org" in found.source
    drawn = found.prompt.draw(200_000, np.random.default_rng(1))
    assert np.percentile(drawn, [50, 90]) == pytest.approx([1730, 5696], rel=0.02)
    drawn = found.output.draw(200_000, np.random.default_rng(1))
    assert np.percentile(drawn, [50, 90]) == pytest.approx([415, 834], rel=0.02)
    small = load_published_lengths("sharegpt4", scale=0.1, maximum=500)
    assert (small.prompt.a, small.prompt.b, small.prompt.maximum) == (173, found.prompt.b, 500)
    with pytest.raises(LabkitError, match="sharegpt4"):
        load_published_lengths("nothing")


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
        rows = load_trace(tmp_path / name)
        assert [row[1:] for row in rows] == [(20, 5), (10, 4)]
        assert [row.arrival_s for row in rows] == pytest.approx([0.0, 2.0], abs=1e-6)
    assert [row.arrival_s for row in load_trace(tmp_path / "a.csv", speed=4)] == [0.0, 0.5]
    assert len(load_trace(tmp_path / "a.csv", duration_s=1.0)) == 1


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
        load_trace(tmp_path / "t.csv")
    with pytest.raises(LabkitError, match="cannot be read"):
        load_trace(tmp_path / "missing.csv")


# Plans


def rows_of(plan):
    return sorted(
        (chain.number, chain.start_s, r.number, r.turn, r.think_s, r.num_output_tokens, tuple(r.prompt.draw_ids()))
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


def test_prompts_share_no_beginning_unless_they_are_of_sessions():
    plan = draw_open_plan(rate_per_s=50, num_requests=200, prompt=20)
    assert len({row[6][:4] for row in rows_of(plan)}) == 200
    sessions = draw_session_plan(rate_per_s=5, num_requests=4, turns=3, shared=10, prompt=5, output=7)
    assert sessions.num_requests == 12
    assert len({row[6][:10] for row in rows_of(sessions)}) == 1
    for chain in sessions.chains:
        ids = [r.prompt.draw_ids() for r in chain.requests]
        assert [len(one) for one in ids] == [15, 27, 39]  # 10 + 5, then + 7 + 5 each
        assert ids[1][:15] == ids[0] and ids[2][:27] == ids[1]
        assert chain.requests[0].think_s == 0 < chain.requests[1].think_s
    assert len({row[6][10:15] for row in rows_of(sessions) if row[3] == 0}) == 4


def test_a_workload_and_a_trace_become_plans(tmp_path):
    workload = draw_mixed_lengths(np.arange(4000) * 7919 % 997, num_requests=8, rate_per_s=5)
    plan = draw_open_plan(workload)
    assert [chain.requests[0].prompt.draw_ids() for chain in plan.chains] == [
        list(r.prompt_ids) for r in workload.measured
    ]
    assert [chain.start_s for chain in plan.chains] == [r.arrival_s for r in workload.measured]
    (tmp_path / "t.csv").write_text("arrival,prompt_tokens,output_tokens\n0,5,3\n2,6,4\n")
    plan = draw_open_plan(load_trace(tmp_path / "t.csv"))
    assert [(c.start_s, c.requests[0].prompt.num_tokens, c.requests[0].num_output_tokens) for c in plan.chains] == [
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
