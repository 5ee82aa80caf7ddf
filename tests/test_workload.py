"""labkit.workload: same seed same requests, Poisson arrivals, warm-up and measurement that share no beginning."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.errors import LabkitError
from labkit.workload import (
    NUM_DISTINCT,
    Request,
    draw_equal_lengths,
    draw_mixed_lengths,
    draw_poisson_arrivals,
    draw_shared_prefix,
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


def test_poisson_gaps_have_the_mean_the_shape_and_no_memory():
    gaps = np.diff(draw_poisson_arrivals(100_001, rate_per_s=50, seed=1))
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.01)
    assert scipy.stats.kstest(gaps, "expon", args=(0, 1 / 50)).pvalue > 0.01
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 0.01


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
