"""labkit.load.metrics: every number of a run by hand, from records written by hand."""

import numpy as np
import pytest

from labkit.errors import LabkitError
from labkit.load.metrics import DEFINITIONS, check_slo, estimate_metrics, measure_latency
from labkit.load.records import Chunk, RequestRecord


def make(number, scheduled_s, sent_s, chunks, **fields):
    """A record; chunks as (arrival, tokens)."""
    made = tuple(Chunk(*chunk) for chunk in chunks)
    tokens = sum(chunk.num_tokens or 0 for chunk in made)
    fields = {"end_s": made[-1].at_s if made else sent_s, "num_output_tokens": tokens, "source": "usage"} | fields
    return RequestRecord(number, scheduled_s, sent_s, chunks=made, **fields)


A = make(0, 0.0, 0.5, [(1.0, 1), (2.0, 3), (4.0, 1)], num_prompt_tokens=7)
B = make(1, 1.0, 1.0, [(4.5, 3)], num_prompt_tokens=9)
ONE = make(2, 2.0, 2.0, [(2.5, 1)], num_prompt_tokens=1)
FAILED = make(3, 2.0, 2.0, [(2.1, 1)], cause="cut", end_s=6.0)
UNSENT = RequestRecord(4, 3.0, cause="run deadline")


def test_the_whole_run_by_hand():
    metrics = estimate_metrics([A, B, ONE, FAILED, UNSENT])
    whole = metrics.whole
    assert (whole.begin_s, whole.end_s, whole.seconds) == (0.5, 6.0, 5.5)
    assert (whole.num_requests, whole.num_succeeded, whole.num_failed) == (5, 3, 2)
    assert whole.request_per_s == pytest.approx(3 / 5.5)
    assert whole.tok_per_s == pytest.approx(9 / 5.5)  # the token of the failed request does not count
    assert whole.total_tok_per_s == pytest.approx((9 + 17) / 5.5)
    assert whole.concurrency == pytest.approx((3.5 + 3.5 + 0.5 + 4.0) / 5.5)  # the failed one was in flight too
    assert metrics.causes == {"cut": 1, "run deadline": 1}
    assert metrics.sources == {"usage": 3}
    assert (whole.num_good, whole.good_per_s, whole.good_fraction) == (None, None, None)


def test_latencies_by_hand():
    records = [A, B, ONE, FAILED, UNSENT]
    assert measure_latency(records, "ttft") == [0.5, 3.5, 0.5]
    assert measure_latency(records, "ttft_from_schedule") == [1.0, 3.5, 0.5]
    assert measure_latency(records, "tpot") == [0.75, 0.0]  # None for the single token
    assert measure_latency(records, "e2e") == [3.5, 3.5, 0.5]
    assert measure_latency(records, "e2e_from_schedule") == [4.0, 3.5, 0.5]
    assert measure_latency(records, "icl") == [1.0, 2.0]
    assert measure_latency(records, "itl") == pytest.approx([1 / 3] * 3 + [2.0] + [0.0] * 2)
    assert measure_latency(records, "lag") == [0.5, 0.0, 0.0, 0.0]
    with pytest.raises(LabkitError, match="is not a latency"):
        measure_latency(records, "ttfb")


def test_equality_meets_an_slo():
    assert check_slo(A, {"ttft": 0.5, "tpot": 0.75}) is True
    assert check_slo(A, {"ttft": 0.4999, "tpot": 0.75}) is False
    assert check_slo(A, {"ttft_from_schedule": 0.5}) is False
    assert check_slo(FAILED, {"ttft": 100.0}) is False


def test_the_tpot_of_one_token_neither_meets_nor_misses():
    assert check_slo(ONE, {"tpot": 1e-9}) is None
    assert check_slo(ONE, {"tpot": 1e-9, "ttft": 0.5}) is True
    assert check_slo(ONE, {"tpot": 1e-9, "ttft": 0.4}) is False


def test_goodput_by_hand():
    whole = estimate_metrics([A, B, ONE, FAILED], slo={"ttft": 0.5}).whole
    assert (whole.num_good, whole.num_undecided) == (2, 0)
    assert whole.good_per_s == pytest.approx(2 / 5.5)
    assert whole.good_fraction == 2 / 4
    whole = estimate_metrics([A, B, ONE, FAILED], slo={"tpot": 0.5}).whole
    assert (whole.num_good, whole.num_undecided, whole.good_fraction) == (1, 1, 1 / 3)


def test_an_unknown_slo_is_an_error():
    with pytest.raises(LabkitError, match="'icl' is not a valid SLO"):
        estimate_metrics([A], slo={"icl": 0.1})


def test_no_record_is_an_error_and_only_failures_are_not():
    with pytest.raises(LabkitError, match="no record"):
        estimate_metrics([])
    only = estimate_metrics([FAILED, UNSENT], slo={"ttft": 1.0})
    assert only.whole.latencies["ttft"] is None and only.steady is None and only.whole.good_fraction == 0.0
    assert estimate_metrics([UNSENT]).whole.tok_per_s == 0.0


def regular(num, *, service_s=1.0, gap_s=0.1):
    """Requests at equal gaps; each has 10 tokens, one every tenth of the service time."""
    return [
        make(
            k, k * gap_s, k * gap_s, [(k * gap_s + service_s * (j + 1) / 10, 1) for j in range(10)], num_prompt_tokens=7
        )
        for k in range(num)
    ]


def test_the_steady_window_leaves_out_both_ramps():
    metrics = estimate_metrics(regular(200), slo={"e2e": 1.0 + 1e-9})
    whole, steady = metrics.whole, metrics.steady
    assert (steady.begin_s, steady.end_s) == (pytest.approx(1.0), pytest.approx(19.9))
    assert whole.tok_per_s == pytest.approx(2000 / 20.9)
    # 10 requests a second are sent and 10 are in flight: 100 tok/s, up to the two edges
    assert steady.tok_per_s == pytest.approx(100, rel=0.01)
    assert steady.concurrency == pytest.approx(10, rel=0.01)
    # 10 requests of 7 prompt tokens a second; a prompt counts where its first chunk comes
    assert steady.total_tok_per_s - steady.tok_per_s == pytest.approx(70, rel=0.02)
    assert whole.total_tok_per_s == pytest.approx((2000 + 1400) / 20.9)
    assert steady.good_per_s == pytest.approx(10, rel=0.01) and steady.good_fraction == 1.0


def test_a_short_run_has_no_steady_window():
    assert estimate_metrics(regular(15)).steady is None
    assert estimate_metrics([A]).steady is None


def test_percentiles_are_numpys_and_missing_if_n_is_too_small():
    records = regular(200)
    lags = np.random.default_rng(1).exponential(0.01, 200)
    records = [make(r.number, r.scheduled_s, r.sent_s + lag, r.chunks) for r, lag in zip(records, lags, strict=True)]
    summary = estimate_metrics(records).whole.latencies["lag"]
    assert summary.p50 == pytest.approx(np.percentile(lags, 50)) and summary.p95 == pytest.approx(
        np.percentile(lags, 95)
    )
    assert summary.p99 is None  # 299 are needed


def test_unknown_tokens_of_chunks_are_spread_evenly():
    record = make(0, 0.0, 0.0, [(1.0, None), (2.0, None)], num_output_tokens=9)
    metrics = estimate_metrics([record])
    assert metrics.whole.tok_per_s == pytest.approx(9 / 2.0) and metrics.whole.total_tok_per_s is None
    assert metrics.whole.latencies["itl"] is None and metrics.whole.latencies["icl"].p50 == 1.0


def test_notes_of_one_kind_are_counted_together():
    records = [make(k, 0.0, 0.0, [(1.0, 1)], notes=(f"asked for {k + 9} output tokens, counted 1",)) for k in range(3)]
    assert estimate_metrics(records).notes == {"asked for N output tokens, counted N": 3}


def test_every_latency_has_a_definition():
    assert set(estimate_metrics([A]).whole.latencies) <= set(DEFINITIONS)
