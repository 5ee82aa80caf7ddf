"""How do I do it from a shell? `labkit doctor`, `models`, `results`, `progress`, `serve`.

Every room is imported inside the command that needs it, so that `labkit --help` answers at once. Exit codes: 0, 1 for
"looked, and something is wrong" (doctor, results verify), 2 for an error or a wrong call.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.errors import LabkitError

if TYPE_CHECKING:
    from labkit.results import Record

__all__ = ["format_help", "main"]

_WIDTH = 100  # of the help, whatever the terminal's: the README shows the same text


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; a LabkitError is one line on stderr and exit code 2."""
    parser, _ = _make_parsers()
    arguments = parser.parse_args(argv)
    if "run" not in arguments:
        print(parser.format_help(), end="")
        return 0
    try:
        code = arguments.run(arguments)
        sys.stdout.flush()
    except LabkitError as error:
        print("labkit:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except BrokenPipeError:  # `labkit results list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    return code


def format_help() -> str:
    """Write the help of all commands, always at the same width: the README's text."""
    _, parsers = _make_parsers()
    return "\n".join(parser.format_help() for parser in parsers)


class _Parser(argparse.ArgumentParser):
    """The standard parser with one width, and without the colours of later Pythons."""

    def __init__(self, **options: object) -> None:
        formatter = functools.partial(argparse.HelpFormatter, width=_WIDTH, max_help_position=28)
        super().__init__(formatter_class=formatter, allow_abbrev=False, **options)
        self.color = False


def _make_parsers() -> tuple[_Parser, list[_Parser]]:
    """Build the parser of `labkit`, and list it with all parsers of its commands."""
    top = _Parser(
        prog="labkit",
        description="What the course measured, checked and knows about this machine, from a shell.",
        epilog="Exit codes: 0; 1 when something is missing or does not verify; 2 for an error, said in one line.",
    )
    parsers = [top]
    commands = top.add_subparsers(title="commands", metavar="COMMAND")

    def add(group, name: str, text: str, run=None) -> _Parser:
        parser = group.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if run:
            parser.set_defaults(run=run)
        parsers.append(parser)
        return parser

    doctor = add(commands, "doctor", "what machine this is, what is missing and how to get it", _run_doctor)
    doctor.add_argument("--json", action="store_true", help="write JSON")

    models = add(commands, "models", "which models fit here, computed before anything is downloaded", _run_models)
    models.add_argument("--fits", action="store_true", help="only those that fit")
    models.add_argument("--json", action="store_true", help="write JSON")

    results = add(commands, "results", "list, show and verify the records of measurements")
    actions = results.add_subparsers(title="actions", metavar="ACTION", required=True)
    listing = add(actions, "list", "list records, the newest last", _run_list)
    listing.add_argument("--lab", metavar="NN", help="only records of this lab")
    show = add(actions, "show", "show one record: where, with what, and its summary", _run_show)
    show.add_argument("id", metavar="ID", help="its identity, as `labkit results list` shows it")
    show.add_argument("--json", action="store_true", help="write the whole record as JSON, with every sample")
    verify = add(actions, "verify", "recompute each id, and each summary from its samples", _run_verify)
    verify.add_argument("file", metavar="FILE", nargs="?", help="a file or folder of records (default: your own runs)")

    progress = add(commands, "progress", "what is done, and what comes next", _run_progress)
    progress.add_argument("--json", action="store_true", help="write JSON")
    progress.add_argument("--export", metavar="FILE", help="write all progress to one file")
    progress.add_argument("--import", metavar="FILE", dest="source", help="add the progress of an exported file")

    serve = add(commands, "serve", "serve a model on this machine until Ctrl-C", _run_serve)
    serve.add_argument("name", metavar="NAME", help="transformers-naive, transformers-batched, vllm or fake")
    serve.add_argument(
        "options", metavar="...", nargs=argparse.REMAINDER,
        help="--model, --port, --dtype, --engine-python, --dry-run, --tier: `labkit serve NAME --help`",
    )  # fmt: skip
    return top, parsers


def _run_serve(arguments: argparse.Namespace) -> int:
    from labkit.servers.engines import run_serve

    return run_serve(arguments.name, arguments.options)


def _print_json(content: object) -> None:
    print(json.dumps(content, indent=2))


def _run_doctor(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from labkit.environment import format_doctor, probe_environment
    from labkit.hardware import estimate_tier, probe_machine

    machine = probe_machine()
    tier, findings = estimate_tier(machine), probe_environment(machine=machine)
    if arguments.json:
        _print_json({"machine": machine.to_dict(), "tier": tier, "findings": [asdict(item) for item in findings]})
    else:
        print(format_doctor(findings))
        print(f"The labs will use the tier {tier!r} (LABKIT_TIER overrides it).")
    return int(any(item.status == "missing" for item in findings))


def _run_models(arguments: argparse.Namespace) -> int:
    from labkit.hardware import estimate_tier, probe_machine
    from labkit.models import list_models

    machine = probe_machine()
    fits = [fit for fit in list_models(machine) if fit.has_room or not arguments.fits]
    if arguments.json:
        fields = ("role", "tier", "device", "needed_bytes", "free_bytes", "has_room", "is_of_tier", "reason")
        of_model = ("name", "source", "dtype", "num_parameters", "weight_bytes", "kv_bytes_per_token")
        rows = [
            {key: getattr(fit.model, key) for key in of_model} | {key: getattr(fit, key) for key in fields}
            for fit in fits
        ]
        _print_json({"tier": estimate_tier(machine), "models": rows})
    elif fits:
        print(*fits, sep="\n")
        print(f"\n* is for this machine's tier, {estimate_tier(machine)!r}. Nothing was downloaded.")
        for fit in fits:
            if fit.is_of_tier and not fit.has_room:
                print(f"Does not fit: {fit.reason}")
    else:
        print("No model of the course fits into the memory that is free. Close other programs and look again.")
    return 0


def _run_list(arguments: argparse.Namespace) -> int:
    from labkit.results import load_records

    records = load_records(lab=arguments.lab)
    for record in records:
        keys = ", ".join(f"{key} ({len(values)})" for key, values in record.samples.items())
        how = f"{record.tier}, {record.budget}, {record.model['name'] if record.model else 'no model'}"
        print(f"{record.id}  {record.time[:16]}  {record.lab}  {record.name}  {how}: {keys}")
    if not records.records:
        print("No record yet: a lab's measuring cell saves the first.")
    _print_damage(records.damaged)
    return 0


def _run_show(arguments: argparse.Namespace) -> int:
    from labkit.results import find_record

    record = find_record(arguments.id)
    if arguments.json:
        _print_json(record.to_dict())
    else:
        print(_format_record(record))
    return 0


def _run_verify(arguments: argparse.Namespace) -> int:
    from labkit.errors import RecordError
    from labkit.results import load_records, verify_record

    if arguments.file and not Path(arguments.file).expanduser().exists():
        raise RecordError(f"{arguments.file} does not exist.", next_step="Name a file or a folder of records.")
    loaded = load_records(arguments.file)
    num_wrong = 0
    for record in loaded:
        sentences = verify_record(record)
        num_wrong += bool(sentences)
        for sentence in sentences:
            print(f"{record.id}: {sentence}")
    _print_damage(loaded.damaged)
    num_good = len(loaded) - num_wrong
    print(f"{num_good} of {len(loaded)} records verify; {len(loaded.damaged)} damaged lines.")
    return int(num_wrong > 0 or len(loaded.damaged) > 0)


def _print_damage(damaged: Sequence[object]) -> None:
    for bad in damaged:
        print(f"skipped: {bad}")


def _run_progress(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from labkit.progress import (
        estimate_state,
        export_progress,
        format_progress,
        import_progress,
        load_course,
        load_events,
    )

    notes = sys.stderr if arguments.json else sys.stdout
    if arguments.source:
        result = import_progress(arguments.source)
        print(f"Imported {len(result)} new events from {arguments.source}.", file=notes)
        for line, reason in result.damaged:
            print(f"skipped: {arguments.source}, line {line}: {reason}", file=notes)
    if arguments.export:
        print(f"Exported {export_progress(arguments.export)} events to {arguments.export}.", file=notes)
    if arguments.json or not (arguments.source or arguments.export):
        state = estimate_state(load_course(), load_events())
        if arguments.json:
            _print_json(asdict(state))
        else:
            print(format_progress(state))
    return 0


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

    interval = summary.get("p50_interval")
    if not interval:
        return f"{key}: n {summary['n']}, median {format_number(summary['p50'])} (n too small for an interval)"
    spread = interval["high"] - interval["low"]
    median, low, high = (format_number(x, spread) for x in (summary["p50"], interval["low"], interval["high"]))
    return f"{key}: n {summary['n']}, median {median}, 95 % interval {low} to {high}"


def _update_readme() -> None:
    """Write the help into the README, between its two markers."""
    from labkit.environment import find_course_root

    path = find_course_root() / "README.md"
    before, start, rest = path.read_text(encoding="utf-8").partition("<!-- labkit-help -->")
    _, end, after = rest.partition("<!-- /labkit-help -->")
    if not (start and end):
        raise LabkitError(
            "README.md has no block for the help.", next_step="Add <!-- labkit-help --> <!-- /labkit-help -->."
        )
    path.write_text(f"{before}{start}\n```text\n{format_help()}```\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    # Two maintenance jobs that are no command of learners.
    if sys.argv[1:] == ["--update-readme"]:
        sys.exit(_update_readme())
    if sys.argv[1:] == ["--update-schema"]:
        from labkit.results.schema import save_schema

        sys.exit(save_schema())
    sys.exit(main())
