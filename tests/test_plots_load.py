"""labkit.plots.load: figures from nothing, one row and 100,000 rows; the page holds everything and fetches nothing."""

import functools
import json
import re

import numpy as np
import pytest

pytest.importorskip("plotly")

import plotly.io  # noqa: E402

from labkit.load.metrics import estimate_metrics  # noqa: E402
from labkit.load.records import Chunk, RequestRecord  # noqa: E402
from labkit.load.report import LoadResult  # noqa: E402
from labkit.load.verdict import ClientVerdict  # noqa: E402
from labkit.plots import (  # noqa: E402
    format_alternative,
    plot_in_flight,
    plot_latency_shares,
    plot_waits,
    save_load_page,
)
from labkit.plots.load import format_load_page  # noqa: E402


def make_records(num):
    waits = np.random.default_rng(1).lognormal(-2, 0.5, num)
    return [
        RequestRecord(k, k * 0.01, k * 0.01, k * 0.01 + 1, cause="reset")
        if k % 50 == 7
        else RequestRecord(
            k,
            k * 0.01,
            k * 0.01,
            k * 0.01 + w + 0.1,
            num_output_tokens=2,
            chunks=(Chunk(k * 0.01 + w, 1), Chunk(k * 0.01 + w + 0.1, 1)),
        )  # fmt: skip
        for k, w in enumerate(waits.tolist())
    ]


@functools.cache
def rows(num):
    return make_records(num)


PLOTS = {
    "waits": lambda num: plot_waits(rows(num), slo_s=0.5),
    "shares": lambda num: plot_latency_shares(rows(num), ("ttft", "icl", "e2e")),
    "in flight": lambda num: plot_in_flight(rows(num)),
}


@pytest.mark.parametrize("name", PLOTS)
@pytest.mark.parametrize("num", [0, 1, pytest.param(100_000, marks=pytest.mark.slow)])
def test_every_figure_builds_and_survives_json(name, num):
    figure = PLOTS[name](num)
    assert plotly.io.from_json(figure.to_json()) == figure
    assert figure.layout.title.text and figure.layout.xaxis.title.text and figure.layout.yaxis.title.text
    assert figure.layout.title.text in format_alternative(figure)


def test_what_the_figures_say():
    records = make_records(200)
    assert "196 requests answered, 4 failed" in format_alternative(plot_waits(records))
    assert "ttft: n = 196" in format_alternative(plot_latency_shares(records, ["ttft"]))
    one = RequestRecord(0, 0.0, 0.0, 1.0, chunks=(Chunk(1.0, 1),), num_output_tokens=1)
    two = RequestRecord(1, 0.5, 0.5, 2.0, chunks=(Chunk(2.0, 1),), num_output_tokens=1)
    three = RequestRecord(2, 2.0, 2.0, 3.0, chunks=(Chunk(3.0, 1),), num_output_tokens=1)
    figure = plot_in_flight([one, two, three])
    assert list(figure.data[0].y) == [1, 2, 1, 0, 1, 0]  # at 2 s one ends before the next begins


def make_result(num):
    records = tuple(make_records(num))
    plan = {"loop": "open", "name": "poisson </script><b>"}
    verdict = ClientVerdict(True, (), ("a remark",), {"lag_p50_s": 0.001})
    metrics = estimate_metrics(records, slo={"ttft_from_schedule": 0.5})
    return LoadResult({"url": "http://h"}, plan, records, metrics, verdict, {"ttft_from_schedule": 0.5}, "complete")


@pytest.mark.parametrize("num", [1, 400])
def test_the_page_is_one_file_that_fetches_nothing(num, tmp_path):
    path = save_load_page(make_result(num), tmp_path / "report.html")
    page = path.read_text(encoding="utf-8")
    assert page.count("<figure") == 3 and page.count("aria-label=") >= 3
    own = re.sub(r"<script>.*?</script>", "", page, count=1, flags=re.DOTALL)  # without plotly's own text
    assert not re.findall(r'(?:src|href)="https?:', own) and "cdn.plot" not in own
    assert "poisson &lt;/script&gt;&lt;b&gt;" in page  # a name cannot break out
    inside = re.search(r'id="report">(.*?)</script>', page, flags=re.DOTALL)[1]
    assert json.loads(inside.replace("<\\/", "</"))["plan"]["name"] == "poisson </script><b>"


def test_the_page_carries_every_definition():
    from labkit.load.metrics import DEFINITIONS

    page = format_load_page(make_result(60))
    assert all(name in page for name in DEFINITIONS)
