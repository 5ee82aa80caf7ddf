"""A load run on one page: the report's text, its figures, and every definition. One file, nothing is fetched."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

from labkit.load.metrics import DEFINITIONS
from labkit.load.report import LoadResult, format_report
from labkit.plots.load import plot_in_flight, plot_latency_shares, plot_waits
from labkit.plots.look import format_alternative

__all__ = ["format_load_page", "save_load_page"]

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem}"
    "body{color:#222;background:#fff}"
    "pre{overflow-x:auto;background:#f4f4f4;padding:.8rem;font-size:.78rem}figure{margin:1.5rem 0}"
    "figcaption{color:#555;font-size:.9rem}dt{font-weight:600;margin-top:.5rem}"
    "@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}pre{background:#242424}figcaption{color:#aaa}}"
)


def format_load_page(result: LoadResult) -> str:
    """Return the page as HTML; plotly's script is inside, so that it works without a network."""
    import plotly.offline

    slo_s = result.slo.get("ttft_from_schedule", result.slo.get("ttft"))
    figures = (
        plot_waits(result.records, slo_s=slo_s),
        plot_latency_shares(result.records, ("ttft_from_schedule", "tpot", "icl", "e2e_from_schedule")),
        plot_in_flight(result.records),
    )
    drawn = []
    for figure in figures:
        text = escape(format_alternative(figure))
        inside = figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False})
        drawn.append(f'<figure role="group" aria-label="{text}">{inside}<figcaption>{text}</figcaption></figure>')
    defined = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}.</dd>" for name, text in DEFINITIONS.items())
    report = json.dumps(result.to_dict(), allow_nan=False).replace("</", "<\\/")
    head = f"Load run: client {result.verdict}"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(head)}</title><style>{_STYLE}</style><script>{plotly.offline.get_plotlyjs()}</script></head>"
        f"<body><h1>{escape(head)}</h1>{''.join(drawn)}<h2>Report</h2><pre>{escape(format_report(result))}</pre>"
        f'<h2>Definitions</h2><dl>{defined}</dl><script type="application/json" id="report">{report}</script>'
        "</body></html>\n"
    )


def save_load_page(result: LoadResult, path: str | Path) -> Path:
    """Write the page and return its path."""
    path = Path(path)
    path.write_text(format_load_page(result), encoding="utf-8")
    return path
