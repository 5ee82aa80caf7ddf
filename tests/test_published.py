"""Published claims beside recorded and own runs, and the published peaks of devices."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from labkit.errors import HardwareError, LabkitError
from labkit.published import find_device_peaks, format_comparison, load_claim, load_device_peaks

ROOT = Path(__file__).resolve().parents[1]

MINE = SimpleNamespace(
    samples={"decode_tok_per_s": [100.0, 101.0, 102.0, 103.0, 104.0, 105.0]},
    host={"gpus": [], "cpu": {"name": "a processor"}}, model={"name": "python-11m", "source": "shipped"},
    time="2026-11-21T00:00:00Z",
)  # fmt: skip


def test_a_claim_has_its_setup_and_its_source():
    claim = load_claim("gpt-fast-bf16-decode")
    assert (claim.value, claim.unit) == ("104.9", "tok/s")
    assert "A100-80G" in claim.setup and "gpt-fast README" in claim.source


def test_an_unknown_claim_is_refused_with_the_known_ones():
    with pytest.raises(LabkitError, match="gpt-fast-bf16-decode"):
        load_claim("no-such-claim")


def test_the_table_has_three_rows_and_says_what_was_not_measured():
    table = format_comparison(load_claim("gpt-fast-bf16-decode"), lab="00", name="no such run", key="decode_tok_per_s")
    paper, recorded, mine = table.splitlines()
    assert paper.startswith("paper says") and "104.9 tok/s" in paper
    assert recorded.endswith("not recorded yet")
    assert mine.endswith("not measured yet")


def test_the_learners_row_is_the_median_with_its_interval_model_and_machine():
    claim = load_claim("gpt-fast-bf16-decode")
    table = format_comparison(claim, lab="00", name="no such run", key="decode_tok_per_s", record=MINE)
    mine = table.splitlines()[2]
    assert "(100 to 105) tok/s" in mine
    assert "python-11m (shipped), a processor, 2026-11-21" in mine


# Peaks of devices


def peak(name):
    (found,) = (one for one in load_device_peaks() if one.name == name)
    return found


def test_the_devices_that_the_course_promises_are_there_with_a_source_each():
    names = {one.name for one in load_device_peaks()}
    assert names >= {
        *("T4", "L4", "A10", "RTX 4090", "A100 SXM 40GB", "A100 SXM 80GB", "L40S"),
        *("H100 SXM", "H100 PCIe", "H200 SXM", "B200"),
    }
    assert sum(one.kind == "cpu" for one in load_device_peaks()) >= 2
    for one in load_device_peaks():
        assert one.source.startswith("https://"), one.name
        assert " " not in one.source, f"{one.name}: one source"
        assert one.checked, f"{one.name}: say what was compared with a second source, and what was not"


def test_peaks_are_dense_and_in_base_units():
    h100 = peak("H100 SXM")
    assert h100.byte_per_s == 3.35e12
    assert h100.memory_bytes == 80e9
    # 1,979 is what the sheet gives with sparsity: nobody's weights have it.
    assert h100.flop_per_s["bf16"] == pytest.approx(989.4e12)
    # 132 SMs x 4 matrix units x 1,024 multiply-adds (16-bit) a cycle at 1.83 GHz: dense, worked from the whitepaper.
    assert h100.flop_per_s["fp16"] == pytest.approx(132 * 4 * 512 * 2 * 1.83e9, rel=0.01)
    # A100: 108 SMs x 1,024 multiply-adds a cycle at 1.41 GHz.
    assert peak("A100 SXM 80GB").flop_per_s["fp16"] == pytest.approx(108 * 1024 * 2 * 1.41e9, rel=0.01)
    # T4: 40 SMs x 512 multiply-adds a cycle at 1.59 GHz.
    assert peak("T4").flop_per_s["fp16"] == pytest.approx(40 * 512 * 2 * 1.59e9, rel=0.01)


@pytest.mark.parametrize("one", load_device_peaks(), ids=lambda one: one.name)
def test_a_row_is_plausible(one):
    rates = one.flop_per_s
    assert 1e11 < rates["fp32"] < 1e15
    if one.kind == "cpu":
        assert "x" in one.note, "says how the peak is computed"
        return
    assert 1e11 < one.byte_per_s < 1e13
    assert 10e9 < one.memory_bytes < 300e9
    assert rates["fp32"] <= rates.get("tf32", rates["fp16"]) <= rates["fp16"] <= rates.get("fp8", rates["int8"])
    assert rates["int8"] == pytest.approx(2 * rates["fp16"], rel=0.02) or one.name == "RTX 4090"
    assert rates.get("bf16", rates["fp16"]) == rates["fp16"]
    assert ("bf16" in rates) == (one.capability >= (8, 0)), "Turing has no bf16"
    assert ("fp8" in rates) == (one.capability >= (8, 9)), "fp8 came with Ada and Hopper"
    assert one.registers_per_unit == 65536
    assert one.shared_bytes_per_unit == {7: {5: 64}, 8: {0: 164, 6: 100, 9: 100}, 9: {0: 228}, 10: {0: 228}}[
        one.capability[0]][one.capability[1]] * 1024  # fmt: skip
    assert one.warps_per_unit == {(7, 5): 32, (8, 0): 64, (8, 6): 48, (8, 9): 48}.get(one.capability, 64)
    assert 2**22 <= one.l2_bytes <= 2**28
    assert 50 <= one.power_w <= 1200


def test_newer_boards_of_a_series_are_not_slower():
    line = [peak(name) for name in ("T4", "A10", "A100 SXM 40GB", "A100 SXM 80GB", "H100 SXM", "H200 SXM", "B200")]
    for key in ("byte_per_s", "memory_bytes"):
        values = [getattr(one, key) for one in line]
        assert values == sorted(values), key
    assert [one.flop_per_s["fp16"] for one in line] == sorted(one.flop_per_s["fp16"] for one in line)
    assert peak("H100 PCIe").byte_per_s < peak("H100 SXM").byte_per_s


@pytest.mark.parametrize(
    ("driver_name", "row"),
    [
        ("Tesla T4", "T4"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA A10G", None),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA A100-SXM4-40GB", "A100 SXM 40GB"),
        ("NVIDIA A100-SXM4-80GB", "A100 SXM 80GB"),
        ("NVIDIA A100 80GB PCIe", None),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA H200", "H200 SXM"),
        ("NVIDIA B200", "B200"),
        ("AMD EPYC 7763 64-Core Processor", "AMD EPYC 7763 one core"),
        ("AMD EPYC", None),
        ("NVIDIA GeForce RTX 3090", None),
    ],
)
def test_a_device_is_found_by_the_full_name_that_its_driver_reports(driver_name, row):
    found = find_device_peaks(driver_name)
    assert (found and found.name) == row


def test_a_damaged_table_says_which_row(tmp_path, monkeypatch):
    text = (ROOT / "data" / "reference" / "devices.csv").read_text().replace("T4,gpu,7.5,16,320", "T4,gpu,7.5,16,fast")
    (tmp_path / "data" / "reference").mkdir(parents=True)
    (tmp_path / "data" / "reference" / "devices.csv").write_text(text)
    monkeypatch.setattr("labkit.published.find_course_root", lambda: tmp_path)
    with pytest.raises(HardwareError, match="'T4'"):
        load_device_peaks()


def test_no_peak_is_infinite_or_negative():
    for one in load_device_peaks():
        assert all(math.isfinite(rate) and rate > 0 for rate in one.flop_per_s.values())
