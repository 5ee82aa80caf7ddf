"""The runs under data/recorded/ can be recomputed, and the README's first numbers come from one of them."""

import re
from pathlib import Path

import pytest
from tracked import glob_tracked

from labkit.published import format_comparison, load_claim
from labkit.results import load_records, verify_record
from labkit.stats import compare

ROOT = Path(__file__).resolve().parents[1]
FILES = glob_tracked("data/recorded/*/*.jsonl")
PAIRS = [("mixed_vllm", "mixed_naive"), ("mixed_vllm", "mixed_batched"), ("equal_vllm", "equal_batched")]


def load_engines():
    return load_records(ROOT / "data" / "recorded" / "12", lab="12", name="engines").records[-1]


@pytest.mark.parametrize("file", FILES, ids=[file.name for file in FILES])
def test_every_recorded_run_verifies_from_its_samples(file):
    found = load_records(file)
    assert found.records and not found.damaged
    assert {record.lab for record in found.records} == {file.parent.name}
    assert [problem for record in found.records for problem in verify_record(record)] == []


def test_the_first_numbers_of_the_readme_are_those_of_the_record():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    first = " ".join(text.split("**First number.**")[1].split("\n\n")[0].split())
    said = re.findall(r"([\d.]+) times \((?:95 % interval )?([\d.]+) to ([\d.]+)\)", first)
    samples = load_engines().samples
    computed = []
    for a, b in PAIRS:
        gain = compare(samples[f"{a}_tok_per_s"], samples[f"{b}_tok_per_s"], better="higher")
        computed.append(tuple(f"{value:#.3g}" for value in (gain.ratio, gain.interval.low, gain.interval.high)))
    assert said == computed
    last = compare(samples["equal_vllm_tok_per_s"], samples["equal_batched_tok_per_s"], better="higher")
    assert last.verdict == "cannot tell" and "equal lengths *cannot tell*" in first


def test_what_the_readme_says_about_that_run_is_in_its_record():
    record = load_engines()
    assert record.model["name"] == "python-11m" and record.model["source"] == "shipped"
    assert record.model["dtype"] == "float32"
    assert record.settings["num_rounds"] == 6
    assert len(record.settings["workloads"]["mixed"]) == 6
    assert {engine["settings"]["dtype"] for engine in record.settings["engines"].values()} == {"float32"}


def test_a_cpu_run_never_fills_the_row_of_a_gpu():
    claim = load_claim("vllm-over-hf-mixed")
    table = format_comparison(claim, lab="12", name="engines", key="mixed_vllm_over_naive_ratio")
    assert table.splitlines()[1].endswith("not recorded yet")
