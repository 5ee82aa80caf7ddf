"""`labkit load`, `labkit bench-client` and `labkit results compare`: exit codes, files, and one-line errors."""

import json

import pytest

from labkit import cli
from labkit.errors import LabkitError
from labkit.load import run as runner
from labkit.load.client import Target, run_client
from labkit.load.compare import compare_sides, format_sides, load_side
from labkit.load.metrics import estimate_metrics
from labkit.load.report import LoadResult
from labkit.load.run import read_slo
from labkit.load.verdict import check_client
from labkit.load.virtual import SimulatedServer, format_answer, run_virtual
from labkit.results import save_record
from labkit.servers.fake import FakePlan, FakeReply, run_fake_inside

pytestmark = pytest.mark.slow  # servers

QUICK = FakePlan(ttft_s=0.01, itl_s=0.001)


def run(capsys, *argv):
    code = cli.main([str(part) for part in argv])
    return code, capsys.readouterr()


@pytest.fixture
def server():
    with run_fake_inside(QUICK) as fake:
        yield fake


SHORT = ("--prompt", 4, "--output", 3)


def load(capsys, url, tmp_path, *more, rate=("--rate", 40, *SHORT)):
    return run(capsys, "load", url, *rate, "--requests", 12, "--out", tmp_path / "run", *more)


def test_a_run_prints_its_report_and_leaves_three_files(capsys, server, tmp_path):
    pytest.importorskip("plotly")
    code, said = load(capsys, server.base_url, tmp_path, "--slo", "ttft=5,tpot=5", "--price", 2)
    assert "12 good of 12" in said.out and "per million output tokens" in said.out and "definition" not in said.err
    assert code == (0 if "client: valid" in said.out else 1)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "report.html",
        "report.json",
        "requests.jsonl",
    ]
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["target"]["model"] == "fake"  # asked from the server
    assert report["plan"]["loop"] == "open" and report["slo"] == {"ttft_from_schedule": 5.0, "tpot": 5.0}
    assert report["is_valid"] == (code == 0)


def test_a_second_run_into_the_same_folder_is_an_error(capsys, server, tmp_path):
    load(capsys, server.base_url, tmp_path)
    code, said = load(capsys, server.base_url, tmp_path)
    assert code == 2 and "holds a run already" in said.err


def test_a_run_in_which_nothing_succeeds_has_another_exit_code(capsys, tmp_path):
    with run_fake_inside(FakePlan(replies=(FakeReply(status=503),))) as server:
        code, said = load(capsys, server.base_url, tmp_path)
    assert code == 1 and "INVALID" in said.out and "12 http 503" in said.out


@pytest.mark.parametrize(
    ("rate", "loop", "name"),
    [
        (("--clients", 3, "--think", 0.01, *SHORT), "closed", "3 clients"),
        (("--rate", 40, "--turns", 2, "--think", 0.01, *SHORT), "open", "sessions of 2 turns, poisson"),
        (("--rate", 400, "--max-concurrency", 2, *SHORT), "closed", "poisson, capped at 2 in flight: closed"),
        (("--rate", 40, "--arrival", "gamma", "--cv", 3, *SHORT), "open", "gamma"),
        (("--rate", 40, "--lengths", "sharegpt4", "--scale", 0.005), "open", "poisson"),
    ],
)
def test_every_kind_of_load(capsys, server, tmp_path, rate, loop, name):
    code, said = load(capsys, server.base_url, tmp_path, "--json", rate=rate)
    report = json.loads(said.out)
    assert (report["plan"]["loop"], report["plan"]["name"], report["causes" if "causes" in report else "end"]) == (
        loop, name, "complete",
    )  # fmt: skip
    assert report["metrics"]["causes"] == {}


def test_a_trace_is_replayed(capsys, server, tmp_path):
    (tmp_path / "t.csv").write_text("arrival,prompt_tokens,output_tokens\n0,5,3\n0.2,6,4\n")
    code, said = load(capsys, server.base_url, tmp_path, "--json", rate=("--trace", tmp_path / "t.csv", "--speed", 2))
    report = json.loads(said.out)
    assert report["plan"]["name"] == "replay of a trace" and report["metrics"]["whole"]["num_requests"] == 2
    trace = ("--trace", tmp_path / "t.csv", "--requests", 1, "--out", tmp_path / "first")
    _, said = run(capsys, "load", server.base_url, *trace, "--json")
    assert json.loads(said.out)["metrics"]["whole"]["num_requests"] == 1, "--requests keeps the first ones"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ((), "give one of --rate, --clients and --trace"),
        (("--rate", 5, "--clients", 5), "give one of"),
        (("--rate", 5, "--extra", "[1]"), "not a JSON object"),
        (("--rate", 5, "--header", "nothing"), "no colon"),
        (("--rate", 5, "--slo", "ttft=fast"), "is not a valid SLO"),
        (("--rate", 5, "--prompt", "long"), "is not a distribution of lengths"),
        (("--rate", 5, "--search"), "needs an SLO"),
        (("--clients", 5, "--search", "--slo", "ttft=1"), "varies the rate"),
        (("--rate", "inf"), "--rate is inf; expected a number from"),
        (("--rate", "nan"), "--rate is nan"),
        (("--rate", 5, "--timeout", "nan"), "--timeout is nan"),
        (("--rate", 5, "--seed", -1), "--seed is -1"),
        (("--rate", 5, "--requests", -1), "--requests is -1"),
        (("--rate", 5, "--duration", 0), "--duration is 0.0"),
        (("--rate", 5, "--workers", -1), "--workers is -1"),
        (("--rate", 5, "--arrival", "gamma", "--cv", 1e300), "--cv is 1e+300"),
        (("--rate", 1e5, "--duration", 1e6), "about 1e+11 requests"),
        (("--rate", 1, "--end-rate", 1e6, "--arrival", "ramp", "--duration", 100, "--requests", 5), "about 5e+07"),
        (("--rate", 1000, "--duration", 900, "--turns", 2), "about 1.8e+06 requests"),
        (("--clients", 1000, "--requests", 10_000), "about 1e+07 requests"),
        (("--rate", 5, "--out", "~nosuchuser/x"), "the home folder of its user is not known"),
        (("--trace", "~nosuchuser/x"), "the home folder of its user is not known"),
        (("--rate", 5, "--header", "X: \u2192"), "a character that HTTP cannot carry"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_code_2(capsys, tmp_path, monkeypatch, more, said):
    monkeypatch.chdir(tmp_path)
    code, output = run(capsys, "load", "http://127.0.0.1:9", "--model", "m", *more)
    assert code == 2 and said in output.err and output.err.count("\n") == 1 and not output.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "url",
    ["http://h:99999", "http://h:abc", "http://h:0", "http://[::1", "http://a..b", "http://h/\u2192", "ftp://h", ""],
)
def test_an_invalid_url_is_one_line_and_exit_code_2(capsys, url):
    code, output = run(capsys, "load", url, "--rate", 5, "--requests", 1)
    assert code == 2 and "This is not the URL of a server" in output.err and output.err.count("\n") == 1


@pytest.mark.parametrize(
    ("more", "option"),
    [
        (("--clients", 3, "--turns", 2), "--turns"),
        (("--clients", 3, "--arrival", "gamma"), "--arrival"),
        (("--clients", 3, "--speed", 2), "--speed"),
        (("--rate", 3, "--cv", 2), "--cv"),
        (("--rate", 3, "--end-rate", 2), "--end-rate"),
        (("--rate", 3, "--think", 2), "--think"),
        (("--rate", 3, "--shared", 2), "--shared"),
        (("--rate", 3, "--scale", 0.5), "--scale"),
        (("--rate", 3, "--lengths", "sharegpt4", "--prompt", 5), "--prompt"),
        (("--trace", "t.csv", "--output", 5), "--output"),
        (("--trace", "t.csv", "--lengths", "sharegpt4"), "--lengths"),
        (("--rate", 3, "--search", "--slo", "ttft=1", "--out", "x"), "--out"),
        (("--rate", 3, "--search", "--slo", "ttft=1", "--price", 2), "--price"),
    ],
)
def test_an_option_without_effect_is_an_error_that_says_what_it_is_for(capsys, more, option):
    code, output = run(capsys, "load", "http://127.0.0.1:9", "--model", "m", *more)
    assert code == 2 and f"{option} would have no effect: it is for " in output.err, output.err


@pytest.mark.parametrize("more", [("--seconds", -1), ("--seconds", "nan"), ("--streams", -1)])
def test_a_ceiling_is_not_measured_with_a_number_out_of_bounds(capsys, more):
    code, output = run(capsys, "bench-client", *more)
    assert code == 2 and f"{more[0]} is {more[1]}" in output.err and not output.out


@pytest.mark.parametrize("form", [("--header", "{}"), ("--header={}",)], ids=["two arguments", "one"])
def test_no_file_of_a_run_holds_what_was_secret_in_its_command(capsys, server, tmp_path, monkeypatch, form):
    secret = "c2VjcmV0OnNlY3JldA"
    header = [part.format(f"Authorization: Basic {secret}") for part in form]
    extra = ("--extra", json.dumps({"metadata": {"api_key": secret}}))
    monkeypatch.setattr("sys.argv", ["labkit", "load", server.base_url, *header, *extra])
    load(capsys, server.base_url, tmp_path, *header, *extra)
    for path in (tmp_path / "run").iterdir():
        assert secret not in path.read_text(), path.name
    command = json.loads((tmp_path / "run" / "report.json").read_text())["provenance"]["command"]
    assert " ".join(command).count("[redacted]") == 2


def test_a_missing_server_is_reported_before_the_run(capsys, tmp_path):
    code, said = run(capsys, "load", "http://127.0.0.1:9", "--rate", 5)
    assert code == 2 and "Nobody answers" in said.err


def simulate_load(url, plan, *, model, slo, **options):
    """run_load in virtual time, against a server with two seats that serves a request in 50 ms: 40 a second."""
    free_s = [0.0, 0.0]

    def script(number, now_s, body):
        begin_s = max(now_s, min(free_s))
        free_s[free_s.index(min(free_s))] = begin_s + 0.05
        return format_answer([0.05], begin_s=begin_s)

    async def main():
        return await run_client(plan, Target(model), SimulatedServer(script))

    found, slo = run_virtual(main()), read_slo(slo, loop=plan.loop)
    metrics = estimate_metrics(found.records, slo=slo)
    return LoadResult({}, plan.to_dict(), found.records, metrics, check_client(found), slo, found.end)


def test_the_search_ends_with_a_rate(capsys, monkeypatch):
    monkeypatch.setattr(runner, "run_load", simulate_load)
    rate = ("--rate", 8, "--duration", 15, "--search")
    call = ("load", "http://127.0.0.1:9", "--model", "m", *rate, "--slo", "ttft=0.5")
    code, said = run(capsys, *call, "--prompt", 4, "--output", 1)
    assert code == 0 and said.out.count("req/s:") >= 3 and "req/s keeps the SLO" in said.out
    rate_per_s = float(said.out.splitlines()[-1].split()[0])
    assert 20 < rate_per_s <= 41, said.out
    code, said = run(capsys, *call[:-1], "ttft=0.04", "--prompt", 4, "--output", 1)  # less than a service takes
    assert code == 1 and "none of these rates keeps the SLO" in said.out


def test_the_search_can_be_printed_as_json(capsys, monkeypatch):
    import math

    from labkit.load import search

    found = search.SearchResult(8.0, math.inf, (search.Trial(8.0, "kept", 16, 16, 1, 0),))
    monkeypatch.setattr(search, "run_search", lambda *arguments, **options: found)
    call = ("load", "http://127.0.0.1:9", "--model", "m", "--rate", 8, "--search", "--slo", "ttft=1", "--json")
    code, said = run(capsys, *call)
    content = json.loads(said.out, parse_constant=pytest.fail)
    assert (code, content["rate_per_s"], content["missed_per_s"]) == (0, 8.0, None)
    assert content["trials"][0]["outcome"] == "kept"


def test_the_ceiling_is_saved_and_shown_in_the_next_report(capsys, server, tmp_path, monkeypatch):
    from labkit.load import bench

    monkeypatch.setattr(bench, "Bisection", lambda start, **options: _Once(50.0))
    code, said = run(capsys, "bench-client", "--seconds", 0.5, "--streams", 5)
    assert "50 req/s" in said.out or "too busy" in said.out, said
    if code == 0:
        assert "saved as r-" in said.out and "5 streams at once" in said.out, said
        code, report = load(capsys, server.base_url, tmp_path)
        assert code in (0, 1) and "of this client's ceiling here" in report.out, report


class _Once:
    def __init__(self, value):
        self.value = value

    def tell(self, is_good):
        self.value = None


def test_records_are_compared_and_may_not_tell(capsys, tmp_path):
    slow, fast, same = (
        save_record(
            "33", "runs", samples={"ttft_s": values, "tok_per_s": [1 / value for value in values], "e2e_s": [1.0]}
        )
        for values in ([0.30, 0.31, 0.29, 0.305], [0.20, 0.21, 0.19, 0.205], [0.305, 0.29, 0.31, 0.30])
    )
    code, said = run(capsys, "results", "compare", fast.id, slow.id)
    lines = {line.split()[0]: line for line in said.out.splitlines()[1:]}
    assert code == 0 and lines["ttft_s"].endswith("A is faster") and lines["tok_per_s"].endswith("A is faster")
    assert "one sample a side" in lines["e2e_s"]
    _, said = run(capsys, "results", "compare", slow.id, same.id)
    assert said.out.count("cannot tell") == 3
    code, said = run(capsys, "results", "compare", slow.id, "r-nothing")
    assert code == 2 and "no record has the id" in said.err


SLOW, FAST = [2.0, 2.02, 1.98, 2.01], [1.0, 1.01, 0.99, 1.005]


@pytest.mark.parametrize(
    "key",
    ["ttft_s", "step_s_per_step", "peak_bytes", "kv_bytes_per_token", "energy_j", "energy_j_per_token", "cost_usd",
     "cost_usd_per_million_tokens", "perplexity"],
)  # fmt: skip
def test_less_is_better_for_what_something_costs(key):
    (row,) = compare_sides({key: FAST}, {key: SLOW})
    assert (row.better, row.comparison.verdict) == ("lower", "faster")


@pytest.mark.parametrize("key", ["tok_per_s", "req_per_s", "copy_byte_per_s", "num_chunks_per_s", "good_fraction"])
def test_more_is_better_for_what_is_done_in_a_second(key):
    (row,) = compare_sides({key: SLOW}, {key: FAST})
    assert (row.better, row.comparison.verdict) == ("higher", "faster")


@pytest.mark.parametrize("key", ["speedup_ratio", "num_accepted_tok", "flop_per_byte", "num_tokens", "tok_per_step"])
def test_a_number_that_is_neither_better_high_nor_low_gets_a_ratio_and_no_verdict(key):
    rows = compare_sides({key: SLOW}, {key: FAST})
    text = format_sides(rows)
    assert rows[0].comparison.ratio == pytest.approx(2.0, rel=0.01), "A over B"
    assert f"no direction: {key} is neither better high nor low" in text
    assert "faster" not in text and "slower" not in text


@pytest.mark.parametrize("report", ["[]", "null", "[" * 100_000, '{"kind": "labkit load report", "metrics": []}'])
def test_a_damaged_report_is_one_line(tmp_path, report):
    (tmp_path / "report.json").write_text(report)
    with pytest.raises(LabkitError, match="holds no report of a load run"):
        load_side(str(tmp_path))


def test_folders_of_runs_are_compared_by_run(capsys, server, tmp_path):
    folders = []
    for k in range(2):
        (tmp_path / str(k)).mkdir()
        code, _ = load(capsys, server.base_url, tmp_path / str(k), "--seed", k)
        folders.append(tmp_path / str(k) / "run")
        report = json.loads((folders[k] / "report.json").read_text())
        report["is_valid"] = True  # on a busy machine the run may be INVALID, which is an error here
        (folders[k] / "report.json").write_text(json.dumps(report))
    code, said = run(capsys, "results", "compare", folders[0], folders[1])
    assert code == 0 and "one sample a side supports no claim" in said.out and "ttft_p50_s" in said.out
    code, said = run(capsys, "results", "compare", f"{folders[0]},{folders[1]}", f"{folders[1]},{folders[0]}")
    assert code == 0 and "cannot tell" in said.out.splitlines()[1]
    report["is_valid"], report["verdict"] = False, "INVALID: send lag"
    (folders[1] / "report.json").write_text(json.dumps(report))
    code, said = run(capsys, "results", "compare", folders[0], folders[1])
    assert code == 2 and "INVALID: send lag" in said.err
    (folders[1] / "report.json").write_text("{}")
    code, said = run(capsys, "results", "compare", folders[0], folders[1])
    assert code == 2 and "no report of a load run" in said.err
