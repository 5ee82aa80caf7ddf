"""Records: every sample is kept, nothing secret is in them, and what is stored can be recomputed."""

import dataclasses
import errno
import functools
import getpass
import hashlib
import json
import math
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit import journal
from labkit.errors import RecordError
from labkit.results import Record, find_record, load_records, provenance, save_record, verify_record
from labkit.results.redaction import find_secrets, format_command, format_place
from labkit.results.schema import SCHEMA, check_schema

ROOT = Path(__file__).resolve().parents[1]
PROBE_COMMIT = provenance._probe_commit
SPEEDS = [101.5, 99.0, 103.25, 98.0, 100.0, 102.0, 97.5]


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("LABKIT_BUDGET", raising=False)
    monkeypatch.delenv("LABKIT_TIER", raising=False)
    monkeypatch.setattr(provenance, "_probe_commit", lambda: {"hash": "0" * 40, "is_dirty": False})  # git takes 0.1 s
    return tmp_path / "runs"


def save(**changes):
    arguments = {
        "samples": {"decode_tok_per_s": SPEEDS, "ttft_s": [0.01, 0.02]},
        "settings": {"num_tokens": 64, "prompt": "def f():\n    "},
        "model": {"name": "python-11m", "source": "shipped", "dtype": "float32"},
    }
    return save_record("00", "decode", **{**arguments, **changes})


def rewrite(path, change):
    """Edit the only record of a file, as by hand."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content) + "\n")


# Saving and loading.


def test_a_record_is_loaded_exactly_as_it_was_saved(runs):
    record = save()
    assert load_records().records == (record,)
    assert load_records(runs / "results.jsonl").records == (record,)
    assert find_record(record.id) == record
    assert record.samples == {"decode_tok_per_s": SPEEDS, "ttft_s": [0.01, 0.02]}
    assert verify_record(record) == []


def test_a_record_says_who_what_and_how(monkeypatch):
    monkeypatch.setenv("LABKIT_BUDGET", "ci")
    monkeypatch.setenv("LABKIT_TIER", "hopper")
    monkeypatch.setattr(sys, "argv", ["bench.py", "--api-key", "abc", "--num-tokens", "64"])
    record = save(engines={"vllm": "0.32.0"})
    assert (record.lab, record.name, record.budget, record.tier) == ("00", "decode", "ci", "hopper")
    assert record.command == ["bench.py", "--api-key", "[redacted]", "--num-tokens", "64"]
    assert record.engines["vllm"] == "0.32.0"
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", record.engines["labkit"])
    assert "OMP_WAIT_POLICY" in record.threads
    assert record.host["cpu"]["name"]
    assert record.time.endswith("+00:00")
    assert record.model == {"name": "python-11m", "source": "shipped", "dtype": "float32"}


def test_the_id_is_the_hash_of_everything_else(runs):
    record = save()
    content = json.loads((runs / "results.jsonl").read_text())
    assert content.pop("id") == record.id
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    assert record.id == "r-" + hashlib.sha256(text.encode()).hexdigest()[:10]


def test_two_saves_of_the_same_samples_are_two_records():
    assert save().id != save().id
    assert len(load_records()) == 2


def test_the_summary_is_of_the_samples():
    summary = save().summary["decode_tok_per_s"]
    assert summary["n"] == 7
    assert summary["p50"] == statistics.median(SPEEDS)
    assert summary["mean"] == pytest.approx(statistics.fmean(SPEEDS))
    assert summary["p99"] is None, "seven samples give no p99"


def test_records_are_chosen_by_lab_and_name(runs):
    first = save()
    second = save_record("12", "serve", samples={"e2e_s": [1.0]})
    assert load_records(lab="00").records == (first,)
    assert load_records(name="serve").records == (second,)
    assert load_records(lab="00", name="serve").records == ()
    assert (second.model, second.settings) == (None, {})


def test_a_folder_gives_the_records_of_all_its_files_by_time(tmp_path):
    first = save(folder=tmp_path / "b")
    second = save(folder=tmp_path / "b")
    (tmp_path / "a").mkdir()
    lines = (tmp_path / "b/results.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "a/z.jsonl").write_text(lines[0])
    (tmp_path / "a/y.jsonl").write_text(lines[1])
    assert load_records(tmp_path / "a").records == (first, second)


def test_an_absent_folder_has_no_records_and_an_absent_file_is_an_error(tmp_path):
    assert load_records().records == ()
    assert load_records(tmp_path / "no").records == ()
    with pytest.raises(RecordError, match="cannot be read"):
        load_records(tmp_path / "no.jsonl")
    with pytest.raises(RecordError, match="labkit results list"):
        find_record("r-0123456789")


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path, monkeypatch):
    save(folder=tmp_path / "a")

    def refuse(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(RecordError, match="a cannot be read .Permission denied.*Next: Name a file or a folder"):
        load_records(tmp_path / "a")


def test_anything_but_a_file_of_records_is_refused_with_a_reason(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.jsonl")
    for path, reason in (
        (tmp_path / "pipe.jsonl", "not a regular file"),
        (tmp_path, "not a regular file"),
        (tmp_path / ("a" * 300), "name too long"),
        ("~nosuchuser/x", "home folder of its user is not known"),
    ):
        with pytest.raises(RecordError, match=f"(?i){reason}"):
            load_records(path)
    monkeypatch.setenv("LABKIT_RUNS", "~nosuchuser/x")
    with pytest.raises(RecordError, match="home folder of its user is not known"):
        save()


def test_numpy_arrays_and_model_objects_are_accepted():
    np = pytest.importorskip("numpy")

    @dataclasses.dataclass
    class Model:
        name: str = "random:llama"
        source: str = "random"
        dtype: str = "torch.bfloat16"
        num_parameters: int = 11

    record = save(samples={"peak_bytes": np.array([1, 2])}, settings={"batch": np.int64(4)}, model=Model())
    assert record.samples == {"peak_bytes": [1.0, 2.0]}
    assert record.settings == {"batch": 4}
    assert record.model == {"name": "random:llama", "source": "random", "dtype": "bfloat16"}
    assert load_records().records == (record,)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=20))
def test_samples_come_back_bit_for_bit_and_verify(values):
    record = Record.from_dict(json.loads(json.dumps(save_once(values).to_dict())))
    assert [math.copysign(1, a) * a for a in record.samples["x_s"]] == [math.copysign(1, a) * a for a in values]
    assert verify_record(record) == []


def save_once(values):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return save_record("00", "x", samples={"x_s": values}, folder=folder)


def test_the_commit_is_that_of_the_course_and_a_change_makes_it_dirty(tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(
            ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *arguments], check=True
        )

    for folder in ("labs", "labkit"):
        (tmp_path / folder).mkdir()
    monkeypatch.setenv("LABKIT_COURSE", str(tmp_path))
    monkeypatch.setattr(provenance, "_probe_commit", PROBE_COMMIT)
    assert save().commit == {"hash": None, "is_dirty": None}
    (tmp_path / "labs/a.txt").write_text("1")
    git("init", "-q")
    assert save().commit == {"hash": None, "is_dirty": None}, "no commit yet"
    git("add", "labs")
    git("commit", "-q", "-m", "a")
    commit = save().commit
    assert re.fullmatch("[0-9a-f]{40}", commit["hash"])
    assert commit["is_dirty"] is False
    (tmp_path / "labs/a.txt").write_text("2")
    assert save().commit == {"hash": commit["hash"], "is_dirty": True}
    inner = tmp_path / "inner"
    for folder in ("labs", "labkit"):
        (inner / folder).mkdir(parents=True)
    monkeypatch.setenv("LABKIT_COURSE", str(inner))
    assert save().commit["hash"] is None, "the repository around the course is not the course"


# What is refused.


@pytest.mark.parametrize(
    ("samples", "named"),
    [
        ({"ttft_s": [0.1, float("nan")]}, "ttft_s: number 1"),
        ({"ttft_s": [float("inf")]}, "ttft_s: number 0"),
        ({"ttft_s": [10**400]}, "ttft_s: number 0"),
        ({"ttft_s": []}, "ttft_s: the list is empty"),
        ({"ttft_s": [None]}, "ttft_s: number 0 is None"),
        ({"ttft_s": ["1.0"]}, "ttft_s: number 0 is '1.0'"),
        ({"ttft_s": [True]}, "ttft_s: number 0 is True"),
        ({"ttft_s": "1.0"}, "ttft_s: number 0"),
        ({"ttft": [1.0]}, "'ttft', which does not end in a unit"),
        ({"ttft_ms": [1.0]}, "'ttft_ms', which does not end in a unit"),
        ({"weights_gib": [1.0]}, "'weights_gib', which does not end in a unit"),
        ({"Decode_tok_per_s": [1.0]}, "does not end in a unit"),
        ({"ttft_s": 1.0}, "ttft_s: a list of numbers was expected, seen: 1.0"),
        ({"ttft_s": None}, "ttft_s: a list of numbers was expected, seen: None"),
        ({"ttft_s\n": [1.0]}, "does not end in a unit"),
        ({}, "samples is empty"),
        ([1.0], "samples should be a dict"),
    ],
)
def test_meaningless_samples_are_refused_by_name(runs, samples, named):
    with pytest.raises(RecordError, match=re.escape(named)) as error:
        save(samples=samples)
    assert error.value.next_step
    assert not runs.exists()


@pytest.mark.parametrize(
    "key",
    ["ttft_s", "decode_tok_per_s", "peak_bytes", "copy_byte_per_s", "matmul_flop_per_s", "energy_j", "cost_usd",
     "cost_usd_per_million_tokens", "speedup_ratio", "kv_bytes_per_token", "perplexity", "num_tokens", "req_per_s",
     "energy_j_per_token", "held_out_perplexity", "loss_nats"],
)  # fmt: skip
def test_every_unit_of_the_course_is_accepted(key):
    assert save(samples={key: [1.0]}).samples == {key: [1.0]}


SECRETS = [
    {"hf_token": "abc"},
    {"HF_TOKEN": "abc"},
    {"token": "abc"},
    {"apiKey": "abc"},
    {"api_key": "abc"},
    {"api_keys": ["abc"]},
    {"key": "abc"},
    {"client_secret": "abc"},
    {"password": 12345},
    {"server": {"headers": [{"Authorization": "abc"}]}},
    {"note": "use hf_AbCdEfGhIjKlMnOpQrStUvWxYz012345"},
    {"note": "hf_" + "abcdef" * 6},
    {"note": "sk-proj-0a1b2c3d4e5f"},
    {"url": "https://me:hunter2@example.org/v1"},
    {"header": "Bearer abcdef0123456789"},
]


@pytest.mark.parametrize("chosen", SECRETS)
def test_a_secret_in_settings_is_refused_and_never_repeated(runs, chosen):
    with pytest.raises(RecordError, match="looks like a secret") as error:
        save(settings=chosen)
    for secret in ("abc", "hunter2", "AbCd", "0a1b2c3d", "12345"):
        assert secret not in str(error.value)
    assert not runs.exists()


@pytest.mark.parametrize(
    "chosen",
    [
        {"max_tokens": 64, "num_tokens": 3, "tokenizer": "shipped", "kv_bytes_per_token": 131072, "eos_token": "</s>"},
        {"num_key_value_heads": 4, "key": 3, "token": 5, "has_token": True, "api_key": None, "password": ""},
        {"engine": "hf_transformers", "lab": "12_hf_vs_vllm", "package": "sk-learn", "text": "the bearer of news"},
        {"url": "http://127.0.0.1:8000/v1", "prompt": "class Matrix:\n    ", "tokens": [1, 2], "stop_token": "\n"},
    ],
)
def test_terms_of_the_field_are_not_secrets(chosen):
    assert save(settings=chosen).settings == chosen


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": {"x": float("nan")}},
        {"settings": {"x": object()}},
        {"settings": {"x": functools.reduce(lambda inner, _: [inner], range(100_000), [])}},
        {"settings": [1]},
        {"model": {"name": "m", "source": "stolen", "dtype": "float32"}},
        {"model": {"name": "m", "source": "local"}},
        {"model": {"name": "m", "source": "local", "dtype": "float32", "speed": 3}},
        {"model": {"name": "hf_AbCdEfGhIjKlMnOpQrStUvWxYz012345", "source": "hub", "dtype": "float32"}},
        {"engines": {"vllm": 3}},
    ],
)
def test_what_a_record_cannot_hold_is_refused(runs, changes):
    with pytest.raises(RecordError):
        save(**changes)
    assert not runs.exists()


@pytest.mark.parametrize(
    ("lab", "name"),
    [("0", "decode"), ("lab", "decode"), ("00", ""), ("00", "De code"), (0, "a"), ("00\n", "a"), ("00", "a\n")],
)
def test_a_lab_and_a_name_are_required(lab, name):
    with pytest.raises(RecordError):
        save_record(lab, name, samples={"x_s": [1.0]})


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["a.py", "--api-key", "abc"], ["a.py", "--api-key", "[redacted]"]),
        (["a.py", "--api-key=abc"], ["a.py", "--api-key=[redacted]"]),
        (["a.py", "--hf-token", "abc", "--seed", "3"], ["a.py", "--hf-token", "[redacted]", "--seed", "3"]),
        (["HF_TOKEN=abc", "a.py"], ["HF_TOKEN=[redacted]", "a.py"]),
        (["a.py", "hf_AbCdEfGhIjKlMnOpQrStUvWxYz012345"], ["a.py", "[redacted]"]),
        (["a.py", "--x=sk-0123456789ab"], ["a.py", "--x=[redacted]"]),
        (["a.py", "-H", "Authorization: Basic abc"], ["a.py", "-H", "Authorization: [redacted]"]),
        (["a.py", "http://me:abc@host/"], ["a.py", "http://[redacted]@host/"]),
        (["a.py", "--use-token", "--model", "m"], ["a.py", "--use-token", "--model", "m"]),
        (["a.py", "--password", "-abc"], ["a.py", "--password", "[redacted]"]),
        (["a.py", "--max-tokens", "64", "--tokenizer", "t"], ["a.py", "--max-tokens", "64", "--tokenizer", "t"]),
        (["a.py", "hf_vs_vllm", "--batch=8"], ["a.py", "hf_vs_vllm", "--batch=8"]),
    ],
)
def test_a_command_is_recorded_without_its_secrets(argv, expected):
    assert format_command(argv) == expected


@pytest.mark.parametrize("launcher", ["ipykernel_launcher.py", "colab_kernel_launcher.py"])
def test_the_command_line_of_a_kernel_is_not_recorded(runs, monkeypatch, launcher):
    monkeypatch.setattr(sys, "argv", [f"/x/{launcher}", "-f", "/tmp/kernel.json", "--Session.key=abc"])
    record = save()
    assert record.command == []
    assert load_records().records == (record,)


def test_a_record_names_no_person_and_no_private_folder(runs, monkeypatch, tmp_path):
    home = tmp_path / "home" / "wilhelmina"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(sys, "argv", [str(home / "kernel.py"), f"--model={home}/m", str(ROOT / "labs" / "x.py")])
    record = save(
        settings={"checkpoint": f"{home}/models/a"}, model={"name": f"{home}/m", "source": "local", "dtype": None}
    )
    assert record.command == ["~/kernel.py", "--model=~/m", "./labs/x.py"]
    assert record.settings == {"checkpoint": "~/models/a"}
    assert record.model["name"] == "~/m"
    line = (runs / "results.jsonl").read_text()
    assert "wilhelmina" not in line
    assert str(ROOT) not in line
    for who in {platform.node(), getpass.getuser()} - {"root", "localhost"}:
        assert who not in line


def test_with_the_root_folder_as_home_paths_stay_as_they_are(monkeypatch):
    monkeypatch.setenv("HOME", "/")
    assert format_place("/opt/x") == "/opt/x"
    assert format_place("/") == "/"
    assert format_place("text / more") == "text / more"


SECRET = "hunter2Zq9"
OF_THEIR_OWN_SHAPE = [
    "hf_AbCdEfGhIjKlMnOpQrStUvWxYz01234567", "gsk_abcdefghijklmnop12345678", "r8_abcdefghijklmnop12345678",
    "AIzaSyA-1234567890abcdefghijklmnopqrstu", "AKIAABCDEFGHIJKLMNOP", "ASIAABCDEFGHIJKLMNOP", "sk-ant-api03-0a1b2c3d",
    "ghp_0123456789abcdefghij",
]  # fmt: skip
TEXTS_WITH_A_SECRET = [
    f"http://h/v1?api_key={SECRET}", f"http://h/v1?x=1&api_key={SECRET}", f"http://h/v1?token={SECRET}#top",
    f"http://me:{SECRET}@h/v1", f"http://me:p@{SECRET}@h/v1", f"http://me:{SECRET}/x@h/v1", f"redis://:{SECRET}@h/0",
    f"HF_TOKEN={SECRET}", f"PASSWORD=a b&{SECRET}", f"export OPENAI_API_KEY='a {SECRET}'",
    f"run with a=1,HF_TOKEN={SECRET}",
    f"Authorization: Basic {SECRET}", f"curl -H 'Authorization: Basic {SECRET}' http://h", f"X-Api-Key: {SECRET}",
    f"Cookie: session={SECRET}", f"X-Vault-Token: {SECRET}", f"vllm serve m --api-key {SECRET}",
    f"vllm serve m --api-key={SECRET} --port 1", f'{{"api_key": "{SECRET}"}}',
    f'{{"a": [{{"hf_tokens": ["{SECRET}"]}}]}}',
    f"config {{'api_key': '{SECRET}'}}",
]  # fmt: skip
SETTINGS_WITH_A_SECRET = [
    {"hf_token": [SECRET]}, {"token": {"value": SECRET}}, {"auth": ["me", SECRET]}, {"auth": f"me:{SECRET}"},
    {"headers": {"Cookie": SECRET}}, {"pwd": SECRET}, {"hf_tokens": [SECRET]}, {"hftoken": SECRET},
    {"command": ["serve", "--api-key", SECRET]}, {"command": ["curl", "-H", f"X-Mine: {SECRET}"]},
    {"env": [f"HF_TOKEN={SECRET}"]}, {"token_1": SECRET}, {f"http://me:{SECRET}@h/v1": 3},
]  # fmt: skip
COMMANDS_WITH_A_SECRET = [
    ["--header", f"X-Mine: {SECRET}"], [f"--header=X-Mine: {SECRET}"], [f"-HX-Mine: {SECRET}"], ["-H", SECRET],
    [f"--header={SECRET}"], [f"--url=http://h?api_key={SECRET}"], ["--auth", f"me:{SECRET}"],
    [f"--env=HF_TOKEN={SECRET}"],
    ["-e", f"HF_TOKEN={SECRET}"], ["--pwd", SECRET], ["--password", f"-{SECRET}"], ["--set", f"api.key={SECRET}"],
    ["--extra", json.dumps({"metadata": {"api_key": SECRET}})], ['--extra={"token": {"value": "' + SECRET + '"}}'],
]  # fmt: skip
ORDINARY = [
    {"image_token": "<img>", "pad_token": "<pad>", "eos_token": "</s>", "special_token": "x", "stop_token": "\n\n"},
    {"max_tokens": 64, "num_tokens": 3, "tokens": [1, 2], "token": "<|im_end|>", "num_secrets": 3},
    {"password_length": 12},
    {"sort_key": "ttft_s", "cache_key": "prefix", "key_dtype": "fp8", "primary_key": "id", "author": "me"},
    {"engine": "hf_Llama31Instruct", "package": "sk-learn-1-2", "name": "desk-12345678"},
    {"hash": "9e9d3b58ea2288adb59b"},
    {"url": "http://127.0.0.1:8000/v1/models/a@main?limit=3", "git": "ssh://git@host/x", "image": "a/b:v1@sha256:0a1b"},
    {"prompt": "next token: a word\nd = {'key': 'value'}\nsorted(x, key=len)"},
    {"api_key_env": "THE_NAME", "auth_type": "none"},
    {"command": ["serve", "--max-tokens", "64", "--tokenizer", "t", "--sort-key", "name", "--use-token", "--x", "1"]},
]  # fmt: skip


def test_a_secret_in_any_form_is_refused(runs):
    texts = TEXTS_WITH_A_SECRET + OF_THEIR_OWN_SHAPE
    in_texts = [form for one in texts for form in ({"note": one}, {one: 1}, {"texts": ["a", {"b": one}]})]
    for chosen in in_texts + SETTINGS_WITH_A_SECRET:
        with pytest.raises(RecordError, match="looks like a secret") as error:
            save(settings=chosen)
        assert not any(secret in str(error.value) for secret in (SECRET, *OF_THEIR_OWN_SHAPE)), chosen
    assert not runs.exists()


@pytest.mark.parametrize(
    "arguments", COMMANDS_WITH_A_SECRET + [[text] for text in TEXTS_WITH_A_SECRET + OF_THEIR_OWN_SHAPE], ids=" ".join
)
def test_a_secret_on_the_command_line_is_not_recorded(runs, monkeypatch, arguments):
    monkeypatch.setattr(sys, "argv", ["bench.py", *arguments, "--seed", "3"])
    command = save().command
    line = (runs / "results.jsonl").read_text()
    assert not any(secret in line for secret in (SECRET, *OF_THEIR_OWN_SHAPE))
    assert command[0] == "bench.py" and command[-2:] == ["--seed", "3"], "the rest stays"


@pytest.mark.parametrize("chosen", ORDINARY)
def test_an_ordinary_setting_stays_as_it_is_even_in_a_command(chosen):
    assert save(settings=chosen).settings == chosen
    for key, value in chosen.items():
        if isinstance(value, str):
            assert format_command([f"--{key}={value}", f"--{key.replace('_', '-')}", value])[::2] == [
                f"--{key}={value}", value
            ]  # fmt: skip


def test_the_home_folder_is_not_named_in_settings_and_commands(runs, monkeypatch, tmp_path):
    home = tmp_path / "home" / "wilhelmina"
    monkeypatch.setenv("HOME", str(home))
    argv = ["x", f"HF_HOME={home}/hf", f"file://{home}/m", f"-I{home}/inc", f'{{"path": "{home}/m"}}', f"a:{home}:b"]
    monkeypatch.setattr(sys, "argv", argv)
    record = save(settings={"note": f"copied from {home}, then moved", f"{home}/m": {f"{home}/n": [f"see '{home}/o'"]}})
    assert record.command == ["x", "HF_HOME=~/hf", "file://~/m", "-I~/inc", '{"path": "~/m"}', "a:~:b"]
    assert record.settings == {"note": "copied from ~, then moved", "~/m": {"~/n": ["see '~/o'"]}}
    assert "wilhelmina" not in (runs / "results.jsonl").read_text()


def test_another_path_that_contains_the_home_as_text_stays(monkeypatch):
    monkeypatch.setenv("HOME", "/root")
    for text in ("/data/root/x", "/rooted/x", "/root-2/x", "/root.bak"):
        assert format_place(text) == text
    assert format_place("in /root.") == "in ~."


def test_a_long_text_needs_no_quadratic_search():
    """Patterns that try every pair of positions would take minutes here."""
    for text in ("a" * 30_000, "a=" * 15_000, '"a":' * 8_000, "a: " * 10_000, "-a " * 10_000):
        assert format_command([text]) == [text]


def test_a_secret_is_found_at_any_depth():
    assert list(find_secrets({"a": [{"b": {"token": "x"}}]}, place="settings")) == [
        "settings.a[0].b.token looks like a secret (by its name)"
    ]


# Crashes and damage.


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ('{"id": "r-01', "half-written|not JSON"),
        ("[]", "JSON object"),
        ("{}", "schema version None"),
        ('{"schema_version": 2}', "schema version 2"),
        ('{"schema_version": 1}', "lacks id"),
        ('{"schema_version": 1, "x": 1e999}', "1e999 is larger than any float"),
    ],
)
def test_a_damaged_line_is_named_with_its_place_and_skipped(runs, broken, reason):
    first = save()
    path = runs / "results.jsonl"
    with open(path, "a") as file:
        file.write(broken + "\n")
    second = save()
    loaded = load_records()
    assert loaded.records == (first, second)
    (bad,) = loaded.damaged
    assert (bad.file, bad.line) == (str(path), 2)
    assert re.search(reason, bad.reason)


def test_a_half_written_last_line_never_damages_the_next_record(runs):
    first = save()
    path = runs / "results.jsonl"
    save()
    path.write_bytes(path.read_bytes()[:-200])
    assert load_records().records == (first,)
    third = save()
    loaded = load_records()
    assert loaded.records == (first, third)
    assert [bad.line for bad in loaded.damaged] == [2]


def test_a_full_disk_leaves_earlier_records_untouched(runs, monkeypatch):
    first = save()
    write = os.write
    content = (runs / "results.jsonl").read_bytes()
    for num_bytes in (None, 0, 300):
        with monkeypatch.context() as patch:

            def limited(descriptor, data, num_bytes=num_bytes):
                if num_bytes is None:
                    raise OSError(errno.ENOSPC, "full")
                return write(descriptor, data[:num_bytes])

            patch.setattr(journal.os, "write", limited)
            with pytest.raises(RecordError, match="disk is full.*Free some space"):
                save()
        assert (runs / "results.jsonl").read_bytes() == content
    assert load_records().records == (first,)


@pytest.mark.slow
def test_a_killed_process_loses_no_saved_record(runs):
    code = (
        "from labkit.results import save_record\n"
        "while True: print(save_record('00', 'x', samples={'x_s': [0.1] * 20000}).id, flush=True)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    writer = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
    confirmed = [writer.stdout.readline().strip() for _ in range(3)]
    writer.send_signal(signal.SIGKILL)
    confirmed += writer.stdout.read().split()
    writer.wait()
    last = save()
    loaded = load_records()
    assert {*confirmed, last.id} <= {record.id for record in loaded}
    assert all(verify_record(record) == [] for record in loaded)


# Verifying.


def test_a_changed_sample_is_found_by_the_id_and_by_its_summary(runs):
    save()
    rewrite(runs / "results.jsonl", lambda content: content["samples"]["decode_tok_per_s"].__setitem__(6, 500.0))
    sentences = verify_record(load_records().records[0])
    assert any("changed after it was saved" in sentence for sentence in sentences)
    assert any("decode_tok_per_s: mean" in sentence for sentence in sentences)
    assert any("decode_tok_per_s: p50 is 100.0, the 7 samples give 101.5" in sentence for sentence in sentences)
    assert not any("ttft_s" in sentence for sentence in sentences)


def tamper(content, *keys, value):
    for key in keys[:-1]:
        content = content[key]
    content[keys[-1]] = value


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("summary", "decode_tok_per_s", "p50"), 200.0),
        (("summary", "decode_tok_per_s", "p50"), None),
        (("summary", "decode_tok_per_s", "p50_interval", "low"), 99.9),
        (("summary", "decode_tok_per_s", "p99"), 103.0),
        (("summary", "decode_tok_per_s", "n"), 8),
        (("summary", "decode_tok_per_s", "p50_interval"), None),
    ],
)
def test_a_changed_summary_is_found_even_with_a_new_id(runs, keys, value):
    record = save()
    content = json.loads(json.dumps(record.to_dict()))
    tamper(content, *keys, value=value)
    content.pop("id")
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    content["id"] = "r-" + hashlib.sha256(text.encode()).hexdigest()[:10]
    sentences = verify_record(Record.from_dict(content))
    assert sentences
    assert all(sentence.startswith("summary of decode_tok_per_s: ") for sentence in sentences)
    assert any(str(value) in sentence for sentence in sentences)


def test_a_summary_that_is_missing_or_has_no_samples_is_named():
    record = save()
    without = dataclasses.replace(record, summary={"ttft_s": record.summary["ttft_s"]})
    assert any("decode_tok_per_s: it is missing" in sentence for sentence in verify_record(without))
    without = dataclasses.replace(record, samples={"ttft_s": record.samples["ttft_s"]})
    assert any("decode_tok_per_s: there are no samples" in sentence for sentence in verify_record(without))


def test_a_record_with_a_changed_time_setting_tier_or_lab_does_not_verify():
    record = save()
    for change in ({"time": "2026-11-21T00:00:00+00:00"}, {"settings": {}}, {"tier": "hopper"}, {"lab": "01"}):
        assert len(verify_record(dataclasses.replace(record, **change))) == 1


def test_rounding_in_the_last_bits_is_not_a_difference(runs):
    record = save()
    summary = json.loads(json.dumps(record.summary))
    summary["ttft_s"]["mean"] = math.nextafter(summary["ttft_s"]["mean"], 1)
    assert [s for s in verify_record(dataclasses.replace(record, summary=summary)) if s.startswith("summary")] == []


def test_verify_says_what_violates_the_schema():
    record = dataclasses.replace(save(), samples={"ttft_s": ["fast"]}, tier="laptop")
    sentences = verify_record(record)
    assert any("samples.ttft_s[0] should be number, seen: 'fast'" in sentence for sentence in sentences)
    assert any("tier should be one of cpu, t4, ampere, hopper, seen: 'laptop'" in sentence for sentence in sentences)


# The published schema.


def test_the_published_schema_is_the_one_in_use():
    published = json.loads((ROOT / "data/reference/record.schema.json").read_text())
    assert published == SCHEMA, "write it again: python -m labkit.cli --update-schema"


def test_saved_records_match_the_published_schema():
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(json.loads((ROOT / "data/reference/record.schema.json").read_text()))
    jsonschema.Draft202012Validator.check_schema(validator.schema)
    for record in (save(), save(model=None, settings={}, samples={"num_tokens": [1]})):
        assert list(validator.iter_errors(json.loads(json.dumps(record.to_dict())))) == []


BREAKS = [
    (("lab",), "0"), (("lab",), 0), (("id",), "r-1"), (("name",), ""), (("time",), "today"), (("host",), {}),
    (("host",), None), (("host", "cpu"), "fast"), (("host", "gpus"), [{}]), (("host", "gpus"), {}), (("threads",), []),
    (("engines", "torch"), 2), (("commit",), {}), (("commit", "is_dirty"), "no"), (("commit", "author"), "me"),
    (("command",), "a.py"), (("command",), [1]), (("budget",), "large"), (("tier",), None), (("model",), "m"),
    (("model", "source"), "stolen"), (("model", "x"), 1), (("settings",), None), (("samples",), {}),
    (("samples", "ttft_s"), []), (("samples", "ttft_s"), [True]), (("samples", "ttft_s"), ["1"]),
    (("samples", "ttft"), [1.0]), (("samples", "ttft_s"), 1.0), (("summary", "ttft_s"), {}),
    (("host", "gpus"), [{"name": 3}]), (("summary", "ttft_s", "p50"), "fast"), (("summary", "ttft_s", "mean"), None),
    (("summary", "ttft_s", "p50_interval"), "x"), (("summary", "decode_tok_per_s", "p50_interval"), {"high": 1.0}),
    (("schema_version",), 2), (("schema_version",), "1"), (("extra",), 1),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "value"), BREAKS)
def test_our_checker_and_jsonschema_agree_on_what_is_wrong(keys, value):
    jsonschema = pytest.importorskip("jsonschema")
    content = json.loads(json.dumps(save().to_dict()))
    assert check_schema(content) == []
    tamper(content, *keys, value=value)
    assert len(list(jsonschema.Draft202012Validator(SCHEMA).iter_errors(content))) > 0
    faults = check_schema(content)
    assert faults
    assert all(keys[-1] in fault or keys[0] in fault for fault in faults)


def test_a_pattern_does_not_match_before_a_final_newline():
    """In a JSON schema "$" is the end of the text; Python's own `$` also matches before a final newline."""
    content = save().to_dict()
    for key, value in (("lab", "00\n"), ("name", "decode\n"), ("id", content["id"] + "\n")):
        assert check_schema({**content, key: value}) != []


@pytest.mark.parametrize("key", list(SCHEMA["required"]))
def test_every_field_is_required(key):
    content = save().to_dict()
    del content[key]
    assert check_schema(content) == [f"the record lacks {key}"]


@pytest.mark.slow
def test_verifying_needs_no_jsonschema():
    code = (
        "import sys; sys.modules['jsonschema'] = None\n"
        "from labkit.results import save_record, verify_record\n"
        "assert verify_record(save_record('00', 'x', samples={'x_s': [1.0]})) == []\n"
    )
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
