"""labkit.load.bench and noop: the client measured against a server that does nothing."""

import pytest

from labkit.load import bench
from labkit.load.bench import ClientProbe, measure_ceilings, measure_client, measure_streams
from labkit.load.noop import read_write_times, run_noop


def test_the_write_times_of_the_server_are_read_back():
    body = b'data: {"choices":[{"text":"12.5000000"}]}\n\ndata: {"choices":[{"text":"13.25"}]}\n\ndata: [DONE]\n\n'
    assert read_write_times(body) == [12.5, 13.25] and read_write_times(b"") == []


def test_a_client_is_on_time_with_little_lag_and_whole_answers():
    assert ClientProbe(10, 5, 5, 80, 0.001, 0.0099, 0.0, 1.0).is_on_time
    assert not ClientProbe(10, 5, 5, 80, 0.001, 0.010, 0.0, 1.0).is_on_time
    assert not ClientProbe(10, 5, 4, 64, 0.001, 0.001, 0.0, 1.0).is_on_time
    assert not ClientProbe(10, 0, 0, 0, 0.0, 0.0, 0.0, 1.0).is_on_time  # nothing was sent
    assert ClientProbe(1000, 5, 5, 80, 0.001, 0.001, 0.0009, 1.0).is_on_time
    assert not ClientProbe(1000, 5, 5, 80, 0.001, 0.001, 0.0011, 1.0).is_on_time  # it cannot go on like this


def test_the_clients_are_searched_in_turns(monkeypatch):
    """A simulated machine: labkit holds 1,000 a second, the other 300; one probe in five is disturbed once."""
    calls = []

    def probe(url, rate_per_s, *, seconds, kind):
        calls.append((kind, rate_per_s))
        limit = {"labkit": 1000, "aiohttp": 300}[kind]
        is_disturbed = len(calls) % 5 == 0
        lag_s = 0.001 if rate_per_s <= limit and not is_disturbed else 0.5
        return ClientProbe(rate_per_s, 10, 10, 160, lag_s, lag_s, 1e-4, seconds)

    import contextlib

    monkeypatch.setattr(bench, "measure_client", probe)
    monkeypatch.setattr(bench, "run_noop", lambda **options: contextlib.nullcontext("http://noop"))
    probes = measure_ceilings(kinds=("labkit", "aiohttp"))
    best = {kind: max(p.rate_per_s for p in found if p.is_on_time) for kind, found in probes.items()}
    assert 1000 / 1.1 <= best["labkit"] <= 1000 and 300 / 1.1 <= best["aiohttp"] <= 300
    kinds = [kind for kind, _ in calls[2:10]]
    assert "labkit" in kinds and "aiohttp" in kinds


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["labkit", "aiohttp"])
def test_both_clients_get_every_chunk(kind):
    if kind == "aiohttp":
        pytest.importorskip("aiohttp")
    with run_noop(num_chunks=16, gap_s=0.002) as url:
        probe = measure_client(url, 50.0, seconds=1.0, kind=kind)
    assert probe.num_good == probe.num_sent > 25 and probe.num_chunks == 16 * probe.num_sent
    assert 0 <= probe.lag_p50_s <= probe.lag_p99_s and probe.cpu_per_request_s > 0


@pytest.mark.slow
def test_the_error_of_chunk_times_is_never_negative_and_all_chunks_are_there():
    probe = measure_streams(num_streams=20, num_chunks=25, gap_s=0.02)
    assert probe.num_chunks == 20 * 25
    assert 0 < probe.error_p50_s <= probe.error_p99_s
