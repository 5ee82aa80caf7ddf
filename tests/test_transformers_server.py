"""The Transformers server: it returns the tokens of `generate`, one at a time and in static batches."""

import http.client
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from labkit.servers import run_transformers
from labkit.servers.token_comparison import compare_tokens, format_token_comparison, load_completion, load_tie_gap
from labkit.servers.transformers_program import CompletionApi, IncrementalDetokenizer, PendingRequest, Worker

ROOT = Path(__file__).resolve().parents[1]
DRAFT = ROOT / "data" / "models" / "python-2m"
END_OF_FILE = '\n\nif __name__ == "__main__":\n    main()\n'


class FakeModel:
    config = type("Config", (), {"vocab_size": 100})


class FakeTokenizer:
    """Bytes as tokens, so that a character can be cut in the middle."""

    def __call__(self, text):
        return type("Encoding", (), {"input_ids": list(text.encode())})

    def decode(self, ids, skip_special_tokens=True):
        return bytes(ids).decode(errors="replace")


def make_worker(**options):
    settings = {"mode": "batched", "max_batch_size": 4, "max_wait_s": 0.05, "pad_id": 0, "end_ids": {7}} | options
    return Worker(FakeModel(), loop=None, **settings)


def make_api():
    return CompletionApi(make_worker(), FakeTokenizer(), name="tiny", max_len=50)


def test_a_request_is_read_with_openai_s_defaults():
    request = make_api().parse({"prompt": [1, 2, 3]})
    assert (request.ids, request.max_tokens, request.min_tokens, request.temperature, request.ends) == (
        [1, 2, 3],
        16,
        0,
        1.0,
        {7},
    )
    assert make_api().parse({"prompt": "ab!", "model": "tiny", "n": 1}).ids == [97, 98, 33]
    assert make_api().parse({"prompt": [1], "ignore_eos": True, "temperature": 0}).ends == frozenset()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"prompt": [1], "beam": 3}, "unknown fields: beam"),
        ({"prompt": [1], "n": 2}, "n must be 1"),
        ({"prompt": [1], "top_p": 0.9}, "top_p must be 1.0"),
        ({"prompt": [1], "model": "other"}, "the model is 'tiny'"),
        ({"prompt": []}, "not empty"),
        ({"prompt": [1, 100]}, "from 0 to 99"),
        ({"prompt": [[1], [2]]}, "list of token ids"),
        ({"prompt": [True]}, "list of token ids"),
        ({"prompt": [1], "max_tokens": 0}, "max_tokens >= 1"),
        ({"prompt": [1], "max_tokens": 4, "min_tokens": 5}, "min_tokens <= max_tokens"),
        ({"prompt": [1], "temperature": -1}, "temperature >= 0"),
        ({"prompt": [1] * 40, "max_tokens": 11}, "exceed 50 positions"),
    ],
)
def test_a_request_that_cannot_be_served_exactly_is_refused(body, words):
    with pytest.raises(ValueError, match=words):
        make_api().parse(body)


def test_the_positions_may_be_used_up_to_the_last():
    assert make_api().parse({"prompt": [1] * 40, "max_tokens": 10}).max_tokens == 10


def make_request(**fields):
    return PendingRequest([1], 1, 0, frozenset(), 0.0, None, **fields)


def test_the_naive_mode_takes_one_request_and_the_batched_mode_all_that_wait():
    naive, batched = make_worker(mode="naive"), make_worker()
    for worker in (naive, batched):
        for _ in range(6):
            worker.waiting.put(make_request())
    assert [len(naive._collect()) for _ in range(3)] == [1, 1, 1]
    assert [len(batched._collect()), len(batched._collect())] == [4, 2]


def test_a_batch_waits_for_more_requests_and_leaves_out_cancelled_ones():
    worker = make_worker(max_wait_s=600.0)  # a full batch does not wait
    worker.waiting.put(make_request())
    late = threading.Timer(0.2, lambda: [worker.waiting.put(make_request()) for _ in range(3)])
    late.start()
    assert len(worker._collect()) == 4
    for is_cancelled in (True, False, True, True):
        worker.waiting.put(make_request(is_cancelled=is_cancelled))
    assert len(worker._collect()) == 1


def test_a_character_of_two_tokens_appears_when_it_is_whole():
    detokenizer = IncrementalDetokenizer(FakeTokenizer())
    pieces = [detokenizer.add(byte, is_last=False) for byte in "aïb€".encode()]
    assert pieces == ["a", "", "ï", "b", "", "", "€"]
    broken = IncrementalDetokenizer(FakeTokenizer())
    assert [broken.add(0xC3, is_last=False), broken.add(0xC3, is_last=True)] == ["", "��"]


# --- with the model --------------------------------------------------------------------------------------------------


def post(server, **fields):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=300)
    body = {"model": server.model, "temperature": 0, **fields}
    connection.request("POST", "/v1/completions", json.dumps(body))
    return connection, connection.getresponse()


def answer(server, **fields):
    connection, response = post(server, **fields)
    body = response.read()
    connection.close()
    return response.status, json.loads(body)


def count(server, name):
    lines = [line.rpartition(" ") for line in server.load_metrics().splitlines()]
    return sum(float(value) for key, _, value in lines if key.partition("{")[0] == f"labkit:{name}")


@pytest.fixture(scope="module")
def servers():
    """Both modes, started at once. Every batch of the batched one is full: the tests send requests by fives, so that no
    time decides which ones share a batch.
    """
    options = {"naive": {}, "batched": {"max_batch_size": 5, "max_wait_s": 600}}
    with ThreadPoolExecutor(2) as pool, ExitStack() as stack:
        starts = {
            mode: pool.submit(run_transformers, DRAFT, mode=mode, dtype="float32", ready_deadline_s=1800, **more)
            for mode, more in options.items()
        }
        yield {mode: stack.enter_context(start.result()) for mode, start in starts.items()}


@pytest.fixture
def naive(servers):
    return servers["naive"]


@pytest.fixture
def batched(servers):
    return servers["batched"]


@pytest.fixture(scope="module")
def cases():
    """[(prompt ids, number of tokens, ids that `generate` gives)]: ten prompts of code, of ten lengths."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(DRAFT)
    model = AutoModelForCausalLM.from_pretrained(DRAFT, dtype=torch.float32).eval()
    ids = tokenizer((ROOT / "labkit" / "hardware.py").read_text(encoding="utf-8")).input_ids
    found = []
    for k in range(10):
        prompt, num = ids[100 * k : 100 * k + 5 + 9 * k], 8 + 5 * ((k * 7) % 10)
        tensor = torch.tensor([prompt])
        with torch.inference_mode():
            made = model.generate(
                tensor, attention_mask=torch.ones_like(tensor), max_new_tokens=num, min_new_tokens=num, do_sample=False
            )
        found.append((prompt, num, made[0, len(prompt) :].tolist()))
    return found


def load_all(server, cases):
    """Ask for all cases at once."""
    with ThreadPoolExecutor(len(cases)) as pool:
        return list(pool.map(lambda case: load_completion(server, case[0], num_tokens=case[1]), cases))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["naive", "batched"])
def test_the_server_returns_the_tokens_of_generate(mode, cases, servers):
    """Token for token, in float32, by the rule of measurement.md; in batches with padding, too."""
    server = servers[mode]
    found = compare_tokens(
        load_all(server, cases), [ids for *_, ids in cases], prompts=[p for p, *_ in cases], tie_gap=load_tie_gap(DRAFT)
    )
    print(format_token_comparison(found, names=(server.engine, "generate")))
    assert found.is_equal, format_token_comparison(found)
    assert found.num_equal >= 9


@pytest.mark.slow
def test_a_static_batch_pads_and_runs_until_its_longest_is_done(batched):
    before = {n: count(batched, n) for n in ("batches_total", "batch_rows_total", "row_steps_total",
                                             "wasted_row_steps_total", "padding_tokens_total")}  # fmt: skip
    load_all(batched, [([5] * 4, 3), ([6] * 10, 12), ([7] * 10, 5), ([8] * 10, 5), ([9] * 9, 1)])
    grown = {name: count(batched, name) - value for name, value in before.items()}
    assert grown == {"batches_total": 1, "batch_rows_total": 5, "row_steps_total": 60, "padding_tokens_total": 7,
                     "wasted_row_steps_total": 60 - 3 - 12 - 5 - 5 - 1}  # fmt: skip


@pytest.mark.slow
def test_the_naive_server_never_batches(naive):
    before = {n: count(naive, n) for n in ("batches_total", "batch_rows_total", "wasted_row_steps_total")}
    load_all(naive, [([5] * 4, 3), ([6] * 10, 12)])
    assert {name: count(naive, name) - value for name, value in before.items()} == {
        "batches_total": 2, "batch_rows_total": 2, "wasted_row_steps_total": 0,
    }  # fmt: skip


@pytest.mark.slow
def test_a_stream_has_one_event_per_token_and_usage_where_asked(naive):
    options = {"include_usage": True, "continuous_usage_stats": True}
    connection, response = post(
        naive, prompt="def main(", max_tokens=9, min_tokens=9, stream=True, stream_options=options
    )
    text = response.read().decode()
    connection.close()
    events = [json.loads(line[6:]) for line in text.split("\n\n") if line.startswith("data: {")]
    assert text.endswith("data: [DONE]\n\n")
    assert [e["usage"]["completion_tokens"] for e in events] == [*range(1, 10), 9]
    assert {e["usage"]["prompt_tokens"] for e in events} == {3}
    assert [e["choices"][0]["finish_reason"] for e in events[:-1]] == [None] * 8 + ["length"]
    assert events[-1]["choices"] == []
    whole = answer(naive, prompt="def main(", max_tokens=9, min_tokens=9)[1]
    assert "".join(e["choices"][0]["text"] for e in events[:-1]) == whole["choices"][0]["text"]


@pytest.mark.slow
def test_the_end_of_text_stops_an_answer_unless_the_length_is_fixed(naive):
    """A seeded sample after what looks like the end of a file finds an answer that ends: greedy ones seldom do."""
    fields = {"prompt": END_OF_FILE, "max_tokens": 100, "temperature": 1.0, "return_token_ids": True}
    for seed in range(60):
        found = answer(naive, seed=seed, **fields)[1]
        if found["choices"][0]["finish_reason"] == "stop":
            break
    else:
        pytest.fail("no answer ended in 60 samples of 100 tokens")
    ids = found["choices"][0]["token_ids"]
    assert ids[-1] == 0
    assert 0 not in ids[:-1]
    ignored = answer(naive, seed=seed, ignore_eos=True, **fields)[1]["choices"][0]
    assert ignored["token_ids"][: len(ids)] == ids
    assert (len(ignored["token_ids"]), ignored["finish_reason"]) == (100, "length")
    fixed = answer(naive, seed=seed, ignore_eos=True, min_tokens=100, **fields)[1]["choices"][0]["token_ids"]
    assert 0 not in fixed


@pytest.mark.slow
def test_a_seed_fixes_a_sample_whatever_else_is_in_the_batch(naive, batched):
    fields = {"prompt": "import ", "max_tokens": 20, "temperature": 1.0, "seed": 4, "return_token_ids": True}

    def sample(server, **changed):
        return answer(server, **{**fields, **changed})[1]["choices"][0]["token_ids"]

    others = [{"seed": 9, "prompt": "class A:\n    def"}, {"seed": 5}, {"seed": 1, "max_tokens": 3}, {"seed": 2}]
    with ThreadPoolExecutor(5) as pool:
        together, longer, other_seed, *_ = pool.map(lambda changed: sample(batched, **changed), [{}, *others])
    alone = sample(naive)
    assert together == alone
    assert other_seed != alone
    assert len(longer) == len(alone) == 20


@pytest.mark.slow
def test_a_client_that_leaves_frees_the_server(naive):
    done = count(naive, "generation_tokens_total")
    connection, response = post(naive, prompt=[5, 6], max_tokens=1900, min_tokens=1900, stream=True)
    response.read(10)
    response.close()
    connection.close()
    assert answer(naive, prompt=[5, 6], max_tokens=2)[0] == 200  # waits until the model is free
    made = count(naive, "generation_tokens_total") - done
    assert made < 1900, f"the abandoned answer ran on: {made:.0f} tokens"
    assert 'finished_reason="abort"' in naive.load_metrics()


@pytest.mark.slow
def test_a_refusal_gives_its_reason_and_the_server_goes_on(naive):
    status, message = answer(naive, prompt=[1, 99_999])
    assert status == 400
    assert "from 0 to 4095" in message["error"]["message"]
    assert answer(naive, prompt=[1], max_tokens=1)[0] == 200


@pytest.mark.slow
def test_the_record_knows_engine_versions_and_memory(batched):
    record = batched.to_dict()
    assert record["versions"]["transformers"].startswith("5.")
    assert record["settings"] == {
        "mode": "batched", "dtype": "float32", "device": "cpu", "max_batch_size": 5, "max_wait_s": 600,
    }  # fmt: skip
    assert batched.measure_memory()["rss_bytes"] > 2e8
