"""`labkit load`, `labkit bench-client` and `labkit results compare`: exit codes, files, and one-line errors."""

import json

import pytest

from labkit import cli
from labkit.results import save_record
from labkit.servers.fake import run_fake_inside
from labkit.servers.fake_script import FakePlan, Reply

pytestmark = pytest.mark.slow  # servers

QUICK = FakePlan(ttft_s=0.01, itl_s=0.001)


def run(capsys, *argv):
    code = cli.main([str(part) for part in argv])
    return code, capsys.readouterr()


@pytest.fixture
def server():
    with run_fake_inside(QUICK) as fake:
        yield fake


def load(capsys, url, tmp_path, *more, rate=("--rate", 40)):
    return run(
        capsys, "load", url, *rate, "--requests", 12, "--prompt", 4, "--output", 3, "--out", tmp_path / "run", *more
    )


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
    with run_fake_inside(FakePlan(replies=(Reply(status=503),))) as server:
        code, said = load(capsys, server.base_url, tmp_path)
    assert code == 1 and "INVALID" in said.out and "12 http 503" in said.out


@pytest.mark.parametrize(
    ("rate", "loop", "name"),
    [
        (("--clients", 3, "--think", 0.01), "closed", "3 clients"),
        (("--rate", 40, "--turns", 2, "--think", 0.01), "open", "sessions of 2 turns, poisson"),
        (("--rate", 400, "--max-concurrency", 2), "closed", "poisson, capped at 2 in flight: closed"),
        (("--rate", 40, "--arrival", "gamma", "--cv", 3), "open", "gamma"),
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


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ((), "give one of --rate, --clients and --trace"),
        (("--rate", 5, "--clients", 5), "give one of"),
        (("--rate", 5, "--extra", "[1]"), "no JSON object"),
        (("--rate", 5, "--header", "nothing"), "no colon"),
        (("--rate", 5, "--slo", "ttft=fast"), "is no SLO"),
        (("--rate", 5, "--prompt", "long"), "is no distribution of lengths"),
        (("--rate", 5, "--search"), "needs an SLO"),
        (("--clients", 5, "--search", "--slo", "ttft=1"), "varies the rate"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_code_2(capsys, tmp_path, more, said):
    code, output = run(capsys, "load", "http://127.0.0.1:9", "--model", "m", "--out", tmp_path / "run", *more)
    assert code == 2 and said in output.err and output.err.count("\n") == 1 and not output.out


def test_a_server_that_is_not_there_is_said_before_the_run(capsys, tmp_path):
    code, said = run(capsys, "load", "http://127.0.0.1:9", "--rate", 5)
    assert code == 2 and "nobody answers" in said.err


def test_the_search_ends_with_a_rate(capsys, monkeypatch):
    """The client's own verdict is left out here: tests run beside other work."""
    import dataclasses

    from labkit.load import run as runner

    judge = runner.check_client
    monkeypatch.setattr(
        runner, "check_client", lambda runs: dataclasses.replace(judge(runs), is_valid=True, reasons=())
    )
    with run_fake_inside(FakePlan(ttft_s=0.05, itl_s=0.001, max_concurrency=2)) as server:
        code, said = run(capsys, "load", server.base_url, "--rate", 8, "--search", "--slo", "ttft=0.5", "--duration", 2,
                         "--prompt", 4, "--output", 2)  # fmt: skip
    assert said.out.count("req/s:") >= 3
    assert code == (0 if "req/s keeps the SLO" in said.out else 1)


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
