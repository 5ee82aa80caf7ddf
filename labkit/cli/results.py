"""`labkit results`: what was measured, and does it verify?"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from labkit.cli.parser import Parser, print_damage, print_json, read_path

if TYPE_CHECKING:
    from labkit.results import Record

__all__ = ["add_command"]


def add_command(top: Parser) -> None:
    """Declare `labkit results` and its actions."""
    results = top.add_command("results", "list, show and verify the records of measurements")
    listing = results.add_command("list", "list records, the newest last", _run_list, is_action=True)
    listing.add_argument("--lab", metavar="NN", help="only records of this lab")
    text = "show one record: where, with what, and its summary"
    show = results.add_command("show", text, _run_show, is_action=True)
    show.add_argument("id", metavar="ID", help="its identity, as `labkit results list` shows it")
    show.add_argument("--json", action="store_true", help="write the whole record as JSON, with every sample")
    text = "recompute each id, and each summary from its samples"
    verify = results.add_command("verify", text, _run_verify, is_action=True)
    verify.add_argument("file", metavar="FILE", nargs="?", help="a file or folder of records (default: your own runs)")
    text = "say whether A is faster than B: two records, or folders of load runs"
    compare = results.add_command("compare", text, _run_compare, is_action=True)
    for side in ("a", "b"):
        compare.add_argument(side, metavar=side.upper(), help="the id of a record, or folders of runs: run1,run2,run3")
    compare.add_argument("--paired", action="store_true", help="sample k of A was measured beside sample k of B")


def _run_compare(arguments: argparse.Namespace) -> int:
    from labkit.load.compare import compare_sides, format_sides, load_side

    print(format_sides(compare_sides(load_side(arguments.a), load_side(arguments.b), is_paired=arguments.paired)))
    return 0


def _run_list(arguments: argparse.Namespace) -> int:
    from labkit.results import load_records

    records = load_records(lab=arguments.lab)
    for record in records:
        keys = ", ".join(f"{key} ({len(values)})" for key, values in record.samples.items())
        how = f"{record.tier}, {record.budget}, {record.model['name'] if record.model else 'no model'}"
        print(f"{record.id}  {record.time[:16]}  {record.lab}  {record.name}  {how}: {keys}")
    if not records.records:
        print(_explain_empty_list(arguments.lab))
    print_damage(records.damaged)
    return 0


def _explain_empty_list(lab: str | None) -> str:
    from labkit.results import load_records

    others = sorted({record.lab for record in load_records()})
    if not others:
        return "No record yet: a lab's measuring cell saves the first."
    return f"No record of lab {lab}; there are records of lab {', '.join(others)}."


def _run_show(arguments: argparse.Namespace) -> int:
    from labkit.results import find_record

    record = find_record(arguments.id)
    if arguments.json:
        print_json(record.to_dict())
    else:
        print(_format_record(record))
    return 0


def _run_verify(arguments: argparse.Namespace) -> int:
    from labkit.results import load_records, verify_record

    if arguments.file:
        _check_exists(arguments.file)
    loaded = load_records(arguments.file)
    num_wrong = 0
    for record in loaded:
        sentences = verify_record(record)
        num_wrong += bool(sentences)
        for sentence in sentences:
            print(f"{record.id}: {sentence}")
    print_damage(loaded.damaged)
    num_good = len(loaded) - num_wrong
    print(f"{num_good} of {len(loaded)} records verify; {len(loaded.damaged)} damaged lines.")
    if arguments.file and not len(loaded):
        print(f"{arguments.file} holds no record, so nothing in it was verified.")
        return 1
    return int(num_wrong > 0 or len(loaded.damaged) > 0)


def _check_exists(name: str) -> None:
    from labkit.errors import RecordError

    try:
        read_path(name).stat()
    except OSError as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise RecordError(f"{name} {reason}.", next_step="Name a file or a folder of records.") from None


def _format_record(record: Record) -> str:
    """Lay one record out for the console: provenance first, then a line for each key of its samples."""
    model, commit = record.model, record.commit
    gpus = ", ".join(gpu["name"] for gpu in record.host["gpus"]) or "no GPU"
    state = {True: " and changes", False: "", None: ""}[commit["is_dirty"]]
    rows = {
        "record": f"{record.id}, lab {record.lab}, {record.name}",
        "time": f"{record.time[:19].replace('T', ' ')} UTC",
        "model": f"{model['name']} ({model['source']}, {model['dtype']})" if model else "none",
        "machine": f"{record.host['cpu']['name']}, {gpus}; {record.host['os']}",
        "tier": f"{record.tier}, budget {record.budget}",
        "engines": ", ".join(f"{name} {version}" for name, version in record.engines.items()),
        "threads": ", ".join(f"{name} {value}" for name, value in record.threads.items() if value is not None),
        "commit": f"{commit['hash'] or 'none'}{state}",
        "command": " ".join(record.command),
        "settings": ", ".join(f"{key} {value!r}" for key, value in record.settings.items()) or "none",
    }
    lines = [f"{name:<9} {text}".rstrip() for name, text in rows.items()]
    return "\n".join([*lines, "", *(_format_summary(key, summary) for key, summary in record.summary.items())])


def _format_summary(key: str, summary: dict) -> str:
    from labkit.units import format_number

    if summary["p50"] is None:  # changed by hand
        return f"{key}: n {summary['n']}, median unknown"
    interval = summary.get("p50_interval")
    if not interval:
        return f"{key}: n {summary['n']}, median {format_number(summary['p50'])} (n too small for an interval)"
    spread = interval["high"] - interval["low"]
    median, low, high = (format_number(x, spread) for x in (summary["p50"], interval["low"], interval["high"]))
    return f"{key}: n {summary['n']}, median {median}, 95 % interval {low} to {high}"
