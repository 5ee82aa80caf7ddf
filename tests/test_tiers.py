"""The GPU path is executed code: every lab runs as on a GPU tier, with a small random model on the processor.

Each run takes one tier for every lab, another one for each lab and each day; the rest is marked `long`.
`LABKIT_TEST_TURN` (a number, by default the day's; printed at the end of every run) repeats a certain choice.
"""

import json
import os
import re
from pathlib import Path

import pytest

pytest.importorskip("jupytext")
pytest.importorskip("nbformat")

from labkit.authoring.build import load_sources  # noqa: E402
from labkit.authoring.source import make_notebook  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
SOURCES = load_sources(ROOT)
TIERS = ("t4", "ampere", "hopper")
# These start real engines, a minute or more each time: one of them a run, on one tier. The commands of every engine on
# every tier are dry-run in test_servers.py.
ENGINE_LABS = tuple(
    source.number for source in SOURCES if any("servers.run_server(" in cell.text for cell in source.cells)
)
# The shipped tokenizer has 4,096 entries; everything else is as small as a decoder can be.
TINY = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "vocab_size": 4096,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}


def choose_tiers(numbers, turn, *, engines=()):
    """({lab: its tier in this turn}, labs that are due in it); of the `engines` one is due, the next turn another one.

    After three turns every lab has met every tier; one that starts engines after three times as many.
    """
    tiers = {
        number: TIERS[(place + (turn // len(engines) if number in engines else turn)) % len(TIERS)]
        for place, number in enumerate(numbers)
    }
    return tiers, [number for number in numbers if number not in engines or number == engines[turn % len(engines)]]


def run_in_turns(turn, *, engines=()):
    """Every lab on every tier (one that starts engines on one), all but this turn's marked `long`."""
    tiers, due = choose_tiers([source.number for source in SOURCES], turn, engines=engines)
    return pytest.mark.parametrize(
        ("source", "tier"),
        [
            pytest.param(source, tier, id=f"{source.name}-{tier}", marks=[] if is_now else [pytest.mark.long])
            for source in SOURCES
            for tier in ([tiers[source.number]] if source.number in engines else TIERS)
            for is_now in [source.number in due and tier == tiers[source.number]]
        ],
    )


TURN = int(os.environ["LABKIT_TEST_TURN"])


def test_every_lab_meets_every_tier_in_turns():
    numbers = ["00", "03", "10", "12", "13", "33", "40"]
    met = {number: set() for number in numbers}
    for turn in range(739_000, 739_009):
        tiers, due = choose_tiers(numbers, turn, engines=("12", "13", "33"))
        assert {"00", "03", "10", "40"} < set(due) and len(set(due) & {"12", "13", "33"}) == 1
        for number in due:
            met[number].add(tiers[number])
        if turn == 739_002:
            assert all(met[number] == set(TIERS) for number in ("00", "03", "10", "40"))
    assert all(tiers == set(TIERS) for tiers in met.values())


@pytest.fixture
def tiny_model(tmp_path):
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(TINY), encoding="utf-8")
    return f"random:{path}"


def shown_text(notebook):
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "\n".join(str(one.get("text", "")) + str(one.get("data", {}).get("text/plain", "")) for one in outputs)


@pytest.mark.slow
@run_in_turns(TURN, engines=ENGINE_LABS)
def test_a_solution_passes_strictly_with_the_configuration_of_a_gpu_tier(source, tier, tiny_model, run_notebook):
    notebook = make_notebook(source, kind="solution")
    ran = run_notebook(
        notebook, timeout_s=240, LABKIT_TIER=tier, LABKIT_MODEL=tiny_model, LABKIT_BUDGET="ci", LABKIT_STRICT="1"
    )
    assert re.search(rf"\b{tier}\b", shown_text(ran)), "the lab says which tier it runs as"
    assert "random" in shown_text(ran), "the lab says that the weights are random"
    records = Path(os.environ["LABKIT_RUNS"], "results.jsonl").read_text(encoding="utf-8").splitlines()
    assert records
    assert all(tier in record and "random" in record for record in records), "a record says which model it was"


@pytest.mark.slow
@run_in_turns(TURN + 1)
def test_an_untouched_lab_runs_with_the_configuration_of_a_gpu_tier(source, tier, run_notebook):
    ran = run_notebook(make_notebook(source, kind="lab"), timeout_s=60, LABKIT_TIER=tier, LABKIT_BUDGET="ci")
    assert re.search(rf"\b{tier}\b", shown_text(ran))
