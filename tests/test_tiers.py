"""The GPU path is executed code: every lab runs as on each GPU tier, with a small random model on the processor."""

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
# These start real engines, a minute each time: one tier runs them through, and the commands of every engine on every
# tier are dry-run in test_servers.py.
ENGINE_LABS = {"12", "13", "33"}
SOLVED = [
    pytest.param(
        source,
        tier,
        id=f"{source.name}-{tier}",
        # `make test` runs each quick lab on one GPU tier, CI runs the rest as well.
        marks=[] if tier == TIERS[-1] and source.number not in ENGINE_LABS else [pytest.mark.long],
    )
    for source in SOURCES
    for tier in (TIERS[-1:] if source.number in ENGINE_LABS else TIERS)
]
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


@pytest.fixture
def tiny_model(tmp_path):
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(TINY), encoding="utf-8")
    return f"random:{path}"


def shown_text(notebook):
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "\n".join(str(one.get("text", "")) + str(one.get("data", {}).get("text/plain", "")) for one in outputs)


@pytest.mark.slow
@pytest.mark.parametrize(("source", "tier"), SOLVED)
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
@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("source", SOURCES, ids=[source.name for source in SOURCES])
def test_an_untouched_lab_runs_with_the_configuration_of_a_gpu_tier(source, tier, run_notebook):
    ran = run_notebook(make_notebook(source, kind="lab"), timeout_s=60, LABKIT_TIER=tier, LABKIT_BUDGET="ci")
    assert re.search(rf"\b{tier}\b", shown_text(ran))
