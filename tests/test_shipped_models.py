"""The two models that the repository ships: their shape, their size, and whether they are good enough to learn from."""

import json
import re
import sys

import pytest

TARGET, DRAFT = "python-11m", "python-2m"


@pytest.fixture(scope="module")
def folder(root):
    return root / "data" / "models"


@pytest.fixture(scope="module")
def facts(folder):
    """Per model: its config, training and evaluation."""
    names = ("config", "training", "evaluation")
    return {m: {n: json.loads((folder / m / f"{n}.json").read_text()) for n in names} for m in (TARGET, DRAFT)}


@pytest.fixture(scope="module")
def card(folder):
    sys.path.insert(0, str(folder))
    try:
        import card
    finally:
        sys.path.remove(str(folder))
    return card


def read_header(path):
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {name: tensor for name, tensor in header.items() if name != "__metadata__"}


@pytest.mark.parametrize("name", [TARGET, DRAFT])
def test_the_weights_are_bf16_safetensors_and_nothing_else(folder, name):
    endings = {path.suffix for path in (folder / name).iterdir()}
    assert endings <= {".safetensors", ".json", ".md", ".svg"}
    tensors = read_header(folder / name / "model.safetensors")
    assert {tensor["dtype"] for tensor in tensors.values()} == {"BF16"}
    assert "lm_head.weight" not in tensors  # tied: the output head is the embedding


def test_the_weights_of_both_are_26_mb_at_most(folder):
    assert sum((folder / name / "model.safetensors").stat().st_size for name in (TARGET, DRAFT)) <= 26_000_000


@pytest.mark.parametrize("name", [TARGET, DRAFT])
def test_the_shape_is_what_the_labs_rely_on(facts, name):
    config = facts[name]["config"]
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["vocab_size"] == 4096
    assert config["head_dim"] == 64
    assert config["tie_word_embeddings"] is True
    assert config["max_position_embeddings"] >= 1024
    assert config["num_key_value_heads"] < config["num_attention_heads"]  # grouped queries
    assert config["num_attention_heads"] % config["num_key_value_heads"] == 0
    for key in ("hidden_size", "intermediate_size"):
        assert config[key] % 128 == 0, key
    assert config["num_key_value_heads"] * config["head_dim"] % 128 == 0


@pytest.mark.parametrize("name", [TARGET, DRAFT])
def test_every_matrix_can_be_rounded_in_groups_of_128(folder, name):
    for key, tensor in read_header(folder / name / "model.safetensors").items():
        if len(tensor["shape"]) == 2:
            assert all(size % 128 == 0 for size in tensor["shape"]), key


def test_both_have_one_tokenizer(folder):
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (folder / TARGET / file).read_bytes() == (folder / DRAFT / file).read_bytes()


def test_every_source_of_the_training_text_has_a_permissive_licence(facts):
    for name in (TARGET, DRAFT):
        for source in facts[name]["training"]["sources"]:
            assert re.search(r"MIT|BSD|Apache|ISC|PSF|Python Software|0BSD|HPND|Unlicense", source["licence"]), source
            assert not re.search(r"GPL|MPL|Mozilla", source["licence"]), source


def test_no_token_was_seen_twice_and_the_target_saw_most(facts):
    for name in (TARGET, DRAFT):
        training = facts[name]["training"]
        assert training["tokens_seen"] <= training["corpus_tokens"]
        assert training["tokens_seen"] == training["num_steps"] * training["batch_tokens"]
        assert len(training["loss_nats"]) == training["num_steps"]
    assert facts[TARGET]["training"]["tokens_seen"] > facts[DRAFT]["training"]["tokens_seen"]


def test_the_evaluation_is_whole_and_of_the_held_out_text_that_is_here(facts, root):
    overlap = json.loads((root / "data" / "eval" / "overlap.json").read_text())
    for name in (TARGET, DRAFT):
        evaluation = facts[name]["evaluation"]
        assert evaluation["model"] == name
        assert evaluation["heldout"]["manifest_sha256"] == overlap["manifest_sha256"]
        perplexity = evaluation["perplexity"]
        assert evaluation["heldout"]["num_files"] == overlap["num_files"] == len(perplexity["nll_nats"])
        assert evaluation["heldout"]["num_tokens"] == overlap["num_tokens"] == sum(perplexity["num_tokens"])
        assert evaluation["command"] == "python data/models/evaluate.py"


def test_every_perplexity_follows_from_its_files(facts):
    from labkit.quality import estimate_perplexity

    target = facts[TARGET]["evaluation"]
    own = target["perplexity"]
    entries = [own, facts[DRAFT]["evaluation"]["perplexity"]]
    entries += [*target["baselines"].values(), *target["rounding"]["bits"].values()]
    how = {"unit": "token", "window": 1024, "stride": 512, "has_bos": True}
    for entry in entries:
        n = entry["num_files"]
        p = estimate_perplexity(entry["nll_nats"], own["num_tokens"][:n], names=own["files"][:n], **how)
        assert p.perplexity == pytest.approx(entry["value"], rel=1e-4)
        assert (p.interval.low, p.interval.high) == pytest.approx((entry["low"], entry["high"]), rel=1e-4)
        assert {key: entry[key] for key in how} == how


def test_the_target_is_far_better_than_counting_pairs_of_tokens(facts):
    target = facts[TARGET]["evaluation"]
    bigram, unigram = target["baselines"]["bigram"], target["baselines"]["unigram"]
    assert bigram["value"] < unigram["value"]
    assert bigram["num_training_tokens"] >= facts[TARGET]["training"]["tokens_seen"]
    assert target["perplexity"]["value"] < 0.6 * bigram["value"]
    assert target["perplexity"]["high"] < bigram["low"]


def test_the_target_is_at_least_15_percent_better_than_its_draft(facts):
    from math import exp

    target, draft = facts[TARGET]["evaluation"], facts[DRAFT]["evaluation"]
    assert target["perplexity"]["value"] <= 0.85 * draft["perplexity"]["value"]
    difference = draft["target_minus_draft_nats"]  # in pairs
    assert exp(difference["value"]) == pytest.approx(target["perplexity"]["value"] / draft["perplexity"]["value"])
    assert difference["verdict"] == "better"


def test_the_target_accepts_the_draft_often_and_not_always(facts):
    acceptance = facts[DRAFT]["evaluation"]["acceptance"]
    per_file = acceptance["per_file"]
    positions = sum(per_file["num_positions"])
    for key, column in (("greedy", "num_greedy"), ("temperature_1", "sum_accepted")):
        assert acceptance[key]["value"] == pytest.approx(sum(per_file[column]) / positions, rel=1e-4)
        assert acceptance[key]["low"] < acceptance[key]["value"] < acceptance[key]["high"]
        assert 0.4 <= acceptance[key]["value"] <= 0.85


def test_a_token_of_the_draft_costs_a_quarter_of_the_targets_at_most(facts):
    draft, target = facts[DRAFT]["evaluation"], facts[TARGET]["evaluation"]
    assert draft["cost_ratio"]["value"] <= 0.25
    assert len(draft["decode"]["tok_per_s"]) == len(target["decode"]["tok_per_s"]) >= 6
    assert draft["decode"]["num_threads"] == 1


def test_fewer_bits_are_visibly_worse(facts):
    rounding = facts[TARGET]["evaluation"]["rounding"]
    differences = rounding["differences_nats"]
    for pair in ("4 - 8", "3 - 4", "2 - 3"):
        assert differences[pair]["low"] > 0, pair
        assert differences[pair]["verdict"] == "worse"
    assert abs(differences["8 - 16"]["value"]) < differences["4 - 8"]["value"] < differences["3 - 4"]["value"]


def test_completions_look_like_python(facts):
    rows = facts[TARGET]["evaluation"]["completions"]
    assert sum(row["is_python"] for row in rows) >= len(rows) / 2
    assert all(len(set(row["completion"].split())) > 3 for row in rows)


def test_the_cards_say_what_the_measured_files_say(card, folder):
    for path, text in card.make_files(folder).items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is stale: run python data/models/card.py"


def test_a_changed_measurement_changes_the_card(card, facts):
    """The cards are made from the numbers: another value gives another text."""
    entry = facts[TARGET]["evaluation"]["perplexity"]
    assert card._row("x", entry) != card._row("x", entry | {"value": entry["value"] * 1.5})


def test_the_loss_curve_is_a_picture_of_all_steps(card):
    training = {"loss_nats": [5.0, 4.0, 3.0], "batch_tokens": 1_000_000}
    picture = card.format_loss_curve(training)
    from xml.etree import ElementTree

    lines = ElementTree.fromstring(picture).findall("{http://www.w3.org/2000/svg}polyline")
    assert [len(line.get("points").split()) for line in lines] == [3, 3]
    ys = [float(point.split(",")[1]) for point in lines[0].get("points").split()]
    assert ys == sorted(ys)  # a falling loss goes down, and down is a larger y
    assert "million tokens seen" in picture
    assert "nats per token" in picture


@pytest.mark.slow
@pytest.mark.parametrize("name", [TARGET, DRAFT])
def test_the_weights_give_the_stored_likelihoods(facts, folder, name):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from labkit.quality import load_heldout, measure_perplexity

    torch.set_num_threads(1)
    stored = facts[name]["evaluation"]["perplexity"]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32, use_safetensors=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / name)
    chosen = sorted(range(len(stored["files"])), key=stored["num_tokens"].__getitem__)[::60]  # short, middling and long
    documents = load_heldout().documents
    again = measure_perplexity(model.eval(), tokenizer, [documents[i] for i in chosen], window=1024, stride=512)
    for at, i in enumerate(chosen):
        assert again.names[at] == stored["files"][i]
        assert again.num_units[at] == stored["num_tokens"][i]
        assert again.nll_nats[at] == pytest.approx(stored["nll_nats"][i], rel=1e-3)  # other CPUs add in another order


@pytest.mark.slow
def test_rounding_puts_every_group_on_2_to_the_bits_values(folder):
    torch = pytest.importorskip("torch")
    sys.path.insert(0, str(folder))
    try:
        from evaluate import round_to_nearest
    finally:
        sys.path.remove(str(folder))
    weight = torch.randn(3, 256, generator=torch.Generator().manual_seed(0))
    for bits in (8, 4, 3, 2):
        rounded = round_to_nearest(weight, bits=bits)
        for row in range(3):
            for group in (slice(0, 128), slice(128, 256)):
                values, new = weight[row, group], rounded[row, group]
                assert len(new.unique()) <= 2**bits
                step = (values.max() - values.min()) / (2**bits - 1)
                assert (new - values).abs().max() <= step / 2 + 1e-6
                assert new.max() == pytest.approx(values.max().item(), abs=1e-5)


@pytest.mark.slow
def test_the_bigram_model_agrees_with_a_count_by_hand(folder):
    pytest.importorskip("torch")
    import math

    import numpy as np

    sys.path.insert(0, str(folder))
    try:
        from evaluate import measure_baselines
    finally:
        sys.path.remove(str(folder))
    from labkit.quality import estimate_perplexity

    training = np.array([0, 1, 2, 0, 1, 3], dtype=np.uint16)
    like = estimate_perplexity([1.0] * 6, [2] * 6, names=list("abcdef"), unit="token", window=4, stride=4, has_bos=True)
    result = measure_baselines(training, [[1, 2]] * 6, like)
    p1, p2 = 3 / (6 + 4096), 2 / (6 + 4096)  # add one: counts 2 and 1 of 6 tokens
    # After 0 came 1 twice (one kind of successor); after 1 came 2 and 3 once each (two kinds).
    bigram = -math.log((2 + 1 * p1) / (2 + 1)) - math.log((1 + 2 * p2) / (2 + 2))
    assert result["unigram"]["nll_nats"][0] == pytest.approx(-math.log(p1) - math.log(p2), abs=1e-4)
    assert result["bigram"]["nll_nats"][0] == pytest.approx(bigram, abs=1e-4)
