from types import SimpleNamespace

import pytest

from labkit.errors import LabkitError
from labkit.published import format_comparison, load_claim

MINE = SimpleNamespace(
    samples={"decode_tok_per_s": [100.0, 101.0, 102.0, 103.0, 104.0, 105.0]},
    host={"gpus": [], "cpu": {"name": "a processor"}}, model={"name": "python-11m", "source": "shipped"},
    time="2026-11-21T00:00:00Z",
)  # fmt: skip


def test_a_claim_carries_its_set_up_and_its_source():
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
