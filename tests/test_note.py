"""Findings: every number must be in a cited record, in its unit, rounded to the digits shown."""

import time

import pytest

from labkit.checks import note
from labkit.checks.finding import MAX_WORDS, MIN_WORDS, find_values, run_note
from labkit.checks.numbers import Written, find_numbers, is_quoted
from labkit.errors import CheckError
from labkit.progress import load_events
from labkit.results import save_record
from labkit.views import CheckFailed

SPEEDS = [70.125, 71.5, 72.25, 72.75, 73.0, 73.625, 74.5, 75.25, 76.0, 76.875, 78.5, 95.0]  # median 74.0625
TTFTS = [0.0123, 0.0125, 0.0127, 0.0129, 0.0131, 0.0133]  # median 0.0128 s
FILL = " ".join(["and the reason is that each token reads all weights once"] * 8)


@pytest.fixture
def record():
    samples = {"decode_tok_per_s": SPEEDS, "ttft_s": TTFTS, "kv_cache_bytes": [3 * 2**30], "hit_ratio": [0.42]}
    settings = {"num_tokens": 64, "seed": 0, "nested": {"batch": [8, 32]}}
    return save_record("00", "decode", samples=samples, settings=settings)


def judge(text, *records):
    return run_note(text, records)


def write(record, sentence):
    return f"From {record.id}: {sentence} {FILL}"


@pytest.mark.parametrize("sentence", [
    "the median was 74.06 tok/s.",
    "the median was 74 tok/s (72.25 to 76.88).",
    "the median was 74.1 tok/s, the 95 % interval 72.3-76.9.",
    "TTFT was 12.8 ms at p50.",
    "TTFT was 0.0128 s.",
    "TTFT was 12,800 µs, and 12800 us is the same.",
    "TTFT was between 12.3 and 13.3 ms.",
    "the cache took 3.00 GiB, or 3.22 GB, or 3221225472 bytes, or 3072 MiB.",
    "the hit rate was 42 %, that is 0.42.",
    "with 64 tokens, batch 8 and 32, n = 12.",
    "on Qwen3-0.6B at 4-bit and int8 on an H200, p99 of 74.06 tok/s is not there.",
    "in lab 01, exercise 12.3, on 2026-11-21 with torch 2.13.0 it was 74.06 tok/s.",
    "slowest 70.125, fastest 95.0, mean 75.8.",
    "TTFT was 12.8 milliseconds, that is 12.8 msec or 0.0128 seconds.",
    "TTFT was 12.8\u2009ms, 12.8\u202fms and 12.8\u00a0ms.",
    "with seed 0 it was 74.06 tok/s.",
])  # fmt: skip
def test_a_number_of_a_cited_record_passes_in_its_unit_and_rounded(record, sentence):
    outcome = judge(write(record, sentence), record)
    assert outcome.status == "passed", outcome.sentence


@pytest.mark.parametrize(("sentence", "number"), [
    ("the median was 74.07 tok/s.", "74.07"),
    ("the median was 75 tok/s.", "75"),
    ("the median was 74.060 tok/s.", "74.060"),
    ("TTFT was 12.8 s.", "12.8 s"),
    ("TTFT was 12.8 ms at p50, 12.0 to 13.3 ms.", "12.0 ms"),
    ("the speed was 74.06 ms.", "74.06 ms"),
    ("the median was 74.06 s.", "74.06 s"),
    ("it took 64 bytes.", "64 bytes"),
    ("the cache took 3.00 GB.", "3.00 GB"),
    ("the cache took 3.3 GiB.", "3.3 GiB"),
    ("the hit rate was 43 %.", "43 %"),
    ("the speed was 74 %, twice as high.", None),
    ("it is 1.9x faster.", "1.9"),
    ("it is 1.9 x faster than 74.06 tok/s.", "1.9"),
    ("with 65 tokens.", "65"),
    ("about 5 users fit in 3.00 GiB.", "5"),
    ("TTFT was 64 ms.", "64 ms"),
    ("TTFT was 12.8 seconds.", "12.8 seconds"),
    ("the median was 74.06 milliseconds.", "74.06 milliseconds"),
    ("the speed was 1e400 tok/s.", "1e400"),
    ("TTFT was 0 s.", "0 s"),
    ("TTFT was 0.00 s.", "0.00 s"),
    ("TTFT was 0e9 ms.", "0e9 ms"),
])  # fmt: skip
def test_a_number_that_no_cited_record_has_is_named(record, sentence, number):
    outcome = judge(write(record, sentence), record)
    if number is None:  # a rate may be a percentage already: only times and bytes have a unit of their own
        assert outcome.status == "passed"
    else:
        assert outcome.status == "failed"
        assert f"the number {number} is in none of the cited records ({record.id})" in outcome.sentence


def test_a_zero_matches_a_value_of_0_and_no_small_value(record):
    assert is_quoted(Written("0"), {"r.settings.seed": 0})
    assert is_quoted(Written("0.0", "s"), {"r.idle_s.p50": 0.0})
    for digits in ("0", "0.0", "0e9", "٠"):
        assert not is_quoted(Written(digits), {"r.settings.share": 0.004})


@pytest.mark.slow
@pytest.mark.parametrize("word", ["A1b2" * 50_000, "1" * 200_000, "a" * 200_000 + "1", "data:" + "x/1" * 60_000])
def test_a_file_pasted_as_one_word_is_read_quickly(record, word):
    start_s = time.thread_time()
    outcome = judge(write(record, f"74.06 tok/s {word}"), record)
    assert time.thread_time() - start_s < 3  # it took half a minute when each digit rescanned the whole word
    assert len(outcome.sentence) < 300


def test_numbers_may_come_from_several_records_but_only_from_cited_ones(record):
    other = save_record("00", "other", samples={"decode_tok_per_s": [11.5] * 6})
    text = write(record, "74.06 against 11.5 tok/s.")
    assert "the number 11.5 is in none" in judge(text, record, other).sentence
    assert judge(f"{text} See {other.id}.", record, other).status == "passed"


def test_a_missing_record_is_named(record):
    assert "no record r-0123456789 on this machine" in judge(f"r-0123456789 says 74.06 tok/s. {FILL}", record).sentence


def test_a_finding_without_a_record_or_a_number_fails(record):
    assert "no record is cited" in judge(f"The median was 74.06 tok/s. {FILL}", record).sentence
    assert "needs at least one number" in judge(write(record, "it was fast."), record).sentence


@pytest.mark.parametrize(("num_words", "status", "phrase"), [
    (MIN_WORDS - 1, "failed", f"{MIN_WORDS - 1} words are too few"),
    (MIN_WORDS, "passed", f"{MIN_WORDS} words"),
    (MAX_WORDS, "passed", f"{MAX_WORDS} words"),
    (MAX_WORDS + 1, "failed", f"{MAX_WORDS + 1} words are too many"),
])  # fmt: skip
def test_the_length_is_80_to_300_words_without_ids_and_signs(record, num_words, status, phrase):
    assert (MIN_WORDS, MAX_WORDS) == (80, 300)
    words = ["74.06", "tok/s"] + ["word"] * (num_words - 2)
    outcome = judge(f"{record.id} - — {' '.join(words)}", record)
    assert outcome.status == status
    assert phrase in outcome.sentence


@pytest.mark.parametrize("text", [None, ..., "", "   \n"])
def test_an_empty_note_is_not_attempted(text):
    assert judge(text).status == "not attempted"


def test_a_note_that_is_not_a_string_fails():
    assert "expected a finding as a string, got a list" in judge([1, 2]).sentence


def test_a_note_shows_one_line_and_is_kept_with_its_text(record, capsys):
    text = write(record, "74.06 tok/s.")
    assert note("00", text).status == "passed"
    assert capsys.readouterr().out == "✓ note 00 passed: 91 words; 1 number, found in the 1 cited record.\n"
    (event,) = load_events()
    assert (event["kind"], event["lab"], event["outcome"], event["text"]) == ("note", "00", "passed", text)
    note("00", None)
    assert capsys.readouterr().out == "○ note 00 not attempted\n"


def test_strict_mode_raises_for_a_wrong_note(record, monkeypatch):
    monkeypatch.setenv("LABKIT_STRICT", "1")
    note("00", write(record, "74.06 tok/s."))
    with pytest.raises(CheckFailed, match="note 00 failed: the number 99 is in none"):
        note("00", write(record, "99 tok/s."))
    with pytest.raises(CheckFailed, match="not attempted"):
        note("00", None)


def test_an_unknown_lab_is_an_error():
    with pytest.raises(CheckError, match="no lab '98'"):
        note("98", "text")


def test_the_values_of_a_record_are_its_summaries_and_its_settings(record):
    values = dict(find_values(record))
    assert values[f"{record.id}.ttft_s.p50"] == pytest.approx(0.0128)
    assert values[f"{record.id}.decode_tok_per_s.p50_interval.low"] == 72.25
    assert values[f"{record.id}.settings.nested.batch.1"] == 32
    assert not any(isinstance(value, bool) for value in values.values())


@pytest.mark.parametrize(("text", "numbers"), [
    ("12 to 15.5 ms", ["12 ms", "15.5 ms"]),
    ("12-15 ms, 5s.", ["12 ms", "15 ms", "5 s"]),
    ("8, 9 and 15 ms", ["8", "9", "15 ms"]),
    ("50% of 2.5 GiB at 1e-3", ["50 %", "2.5 GiB", "1e-3"]),
    ("p95 int4 4-bit 8 bits 95th 95 % interval Qwen3-0.6B r-0123456789 00_start lab 33 2026-11-21 5.17.0", []),
    ("1,234.5 tok/s (3x), 74.6tok/s, $0.56, 11M", ["1,234.5", "3", "74.6", "0.56", "11 M"]),
    ("http://a.b/12 and 7.", ["7"]),
    ("-3 %, +4, ~5, ≈6, n=7", ["3 %", "4", "5", "6", "7"]),
])  # fmt: skip
def test_numbers_are_found_and_names_are_left_out(text, numbers):
    assert [str(number) for number in find_numbers(text)] == numbers


def test_a_count_is_not_a_time_even_if_it_counts_times():
    values = {"r.ttft_s.n": 20, "r.ttft_s.mean_interval.confidence": 0.95}
    assert not is_quoted(Written("20", "s"), values)
    assert is_quoted(Written("20"), values)
    assert is_quoted(Written("95", "%"), values)
