"""The commands of `labkit` other than load: doctor, models, results, progress, quiz and serve.

Each `add_` function declares a command and its options; its `_run_` function does the work and returns the exit code.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from labkit.cli.parser import Parser, print_damage, print_json, read_path

if TYPE_CHECKING:
    from labkit.quiz import Question
    from labkit.results import Record

__all__ = ["add_doctor", "add_models", "add_progress", "add_quiz", "add_results", "add_serve"]

_HIDDEN_IN_JSON = ("answer", "tolerance", "right", "hint", "wrong", "model_answer")  # of a question


def add_doctor(top: Parser) -> None:
    """Declare `labkit doctor`: what machine is this, and what is missing?"""
    doctor = top.add_command("doctor", "what machine this is, what is missing and how to get it", _run_doctor)
    doctor.add_argument("--json", action="store_true", help="write JSON")


def _run_doctor(arguments: argparse.Namespace) -> int:
    from labkit.environment import format_doctor, probe_environment
    from labkit.hardware import estimate_tier, probe_machine

    machine = probe_machine()
    tier, findings = estimate_tier(machine), probe_environment(machine=machine)
    if arguments.json:
        print_json({"machine": machine.to_dict(), "tier": tier, "findings": [asdict(item) for item in findings]})
    else:
        print(format_doctor(findings))
        print(f"The labs will use the tier {tier!r} (LABKIT_TIER overrides it).")
    return int(any(item.status == "missing" for item in findings))


def add_models(top: Parser) -> None:
    """Declare `labkit models`: which models fit here?"""
    models = top.add_command("models", "which models fit here, computed before anything is downloaded", _run_models)
    models.add_argument("--fits", action="store_true", help="only those that fit")
    models.add_argument("--json", action="store_true", help="write JSON")


def _run_models(arguments: argparse.Namespace) -> int:
    from labkit.hardware import estimate_tier, probe_machine
    from labkit.models import list_models
    from labkit.models.fit import ASKED

    machine = probe_machine()
    fits = [fit for fit in list_models(machine) if fit.has_room or not arguments.fits]
    if arguments.json:
        fields = ("role", "tier", "device", "needed_bytes", "free_bytes", "has_room", "is_of_tier", "reason")
        of_model = ("name", "source", "dtype", "num_parameters", "weight_bytes", "kv_bytes_per_token")
        rows = [
            {key: getattr(fit.model, key) for key in of_model} | {key: getattr(fit, key) for key in fields}
            for fit in fits
        ]
        print_json({"tier": estimate_tier(machine), "models": rows})
    elif fits:
        print(*fits, sep="\n")
        is_asked = any(fit.tier == ASKED for fit in fits)
        taken = "what LABKIT_MODEL asks for" if is_asked else f"for this machine's tier, {estimate_tier(machine)!r}"
        print(f"\n* is {taken}. No weights were downloaded.")
        for fit in fits:
            if fit.is_of_tier and not fit.has_room:
                print(f"Does not fit: {fit.reason}")
    else:
        print("No model of the course fits into the memory that is free. Close other programs and look again.")
    return 0


def add_results(top: Parser) -> None:
    """Declare `labkit results` and its actions: what was measured, and does it verify?"""
    results = top.add_command("results", "list, show and verify the records of measurements")
    listing = results.add_command("list", "list records, the newest last", _run_results_list, is_action=True)
    listing.add_argument("--lab", metavar="NN", help="only records of this lab")
    text = "show one record: where, with what, and its summary"
    show = results.add_command("show", text, _run_results_show, is_action=True)
    show.add_argument("id", metavar="ID", help="its identity, as `labkit results list` shows it")
    show.add_argument("--json", action="store_true", help="write the whole record as JSON, with every sample")
    text = "recompute each id, and each summary from its samples"
    verify = results.add_command("verify", text, _run_results_verify, is_action=True)
    verify.add_argument("file", metavar="FILE", nargs="?", help="a file or folder of records (default: your own runs)")
    text = "say whether A is faster than B: two records, or folders of load runs"
    compare = results.add_command("compare", text, _run_results_compare, is_action=True)
    for side in ("a", "b"):
        compare.add_argument(side, metavar=side.upper(), help="the id of a record, or folders of runs: run1,run2,run3")
    compare.add_argument("--paired", action="store_true", help="sample k of A was measured beside sample k of B")


def _run_results_compare(arguments: argparse.Namespace) -> int:
    from labkit.load.compare import compare_sides, format_sides, load_side

    print(format_sides(compare_sides(load_side(arguments.a), load_side(arguments.b), is_paired=arguments.paired)))
    return 0


def _run_results_list(arguments: argparse.Namespace) -> int:
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


def _run_results_show(arguments: argparse.Namespace) -> int:
    from labkit.results import find_record

    record = find_record(arguments.id)
    if arguments.json:
        print_json(record.to_dict())
    else:
        print(_format_record(record))
    return 0


def _run_results_verify(arguments: argparse.Namespace) -> int:
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
    """Write one record for the console: provenance first, then a line for each key of its samples."""
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
        "command": " ".join(record.command) or "none (a notebook)",
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


def add_progress(top: Parser) -> None:
    """Declare `labkit progress`: what is done, and what comes next?"""
    progress = top.add_command("progress", "what is done, and what comes next", _run_progress)
    progress.add_argument("--json", action="store_true", help="write JSON")
    progress.add_argument("--export", metavar="FILE", help="write all progress to one file")
    progress.add_argument("--import", metavar="FILE", dest="source", help="add the progress of an exported file")


def _run_progress(arguments: argparse.Namespace) -> int:
    from labkit.progress import (
        estimate_state,
        export_progress,
        format_progress,
        import_progress,
        load_course,
        load_events,
    )
    from labkit.progress.calibration import estimate_calibration, format_calibration

    notes = sys.stderr if arguments.json else sys.stdout
    if arguments.source is not None:
        result = import_progress(arguments.source)
        print(f"Imported {len(result)} new events from {arguments.source}.", file=notes)
        for line, reason in result.damaged:
            print(f"skipped: {arguments.source}, line {line}: {reason}", file=notes)
    if arguments.export is not None:
        print(f"Exported {export_progress(arguments.export)} events to {arguments.export}.", file=notes)
    if arguments.json or (arguments.source is None and arguments.export is None):
        state = estimate_state(load_course(), load_events())
        if arguments.json:
            print_json(asdict(state))
        else:
            print(format_progress(state))
            print(format_calibration(estimate_calibration(state)))
    return 0


def add_quiz(top: Parser) -> None:
    """Declare `labkit quiz`: questions of what is finished, the weakest first."""
    quiz = top.add_command(
        "quiz", "questions of the finished labs, the weakest first; without a terminal a list", _run_quiz
    )
    quiz.add_argument("--num", metavar="N", type=_read_count, default=5, help="how many questions (default: 5)")
    quiz.add_argument("--lab", metavar="NN", help="questions of this lab, finished or not")
    quiz.add_argument("--list", action="store_true", help="only list them, without answers")
    quiz.add_argument("--json", action="store_true", help="only list them, as JSON, without answers")


def _read_count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of questions")
    return int(text)


def _run_quiz(arguments: argparse.Namespace) -> int:
    from labkit.quiz import draw_questions, format_question
    from labkit.views import format_plain

    questions = draw_questions(arguments.num, lab=arguments.lab)
    if arguments.json:
        print_json([_to_dict(question) for question in questions])
    elif not questions:
        print("No lab is finished yet, so there is nothing to ask. `labkit quiz --lab NUMBER` asks about one lab.")
    elif arguments.list or sys.stdin is None or not sys.stdin.isatty():
        for question in questions:
            print(format_plain(format_question(question)), end="\n\n")
        print('Answer on a terminal (`labkit quiz`), or in a notebook: quiz("00.q1", answer).')
    else:
        _ask(questions)
    return 0


def _to_dict(question: Question) -> dict:
    return {key: value for key, value in asdict(question).items() if key not in _HIDDEN_IN_JSON}


def _ask(questions: tuple[Question, ...]) -> None:
    """Ask one question after another; Ctrl-C or Ctrl-D ends, and what was answered is kept."""
    from labkit.quiz import format_question, save_answer
    from labkit.views import format_plain

    right, wrong = [], []
    print(f"{len(questions)} questions. Enter alone skips one, Ctrl-D ends.\n")
    try:
        for place, question in enumerate(questions, start=1):
            print(f"{place} of {len(questions)}  {format_plain(format_question(question))}")
            answer = _read_answer(question)
            if not answer:
                print("skipped\n")
                continue
            outcome = save_answer(question, answer)
            (right if outcome.status == "passed" else wrong).append(question)
            word = {"failed": "✗ wrong", "passed": "✓ answered" if question.kind == "open" else "✓ right"}
            print(f"{word[outcome.status]}: {' '.join(outcome.sentence.split())}\n")
    except (EOFError, KeyboardInterrupt):
        print("\nended; what you answered is kept.\n")
    num_answered = len(right) + len(wrong)
    print(f"{len(right)} of {num_answered} answered right, {len(questions) - num_answered} not answered.")
    if wrong:
        topics = ", ".join(dict.fromkeys(question.topic for question in wrong))
        print(f"Look again at: {topics} (lab {', '.join(dict.fromkeys(item.id[:2] for item in wrong))}).")


def _read_answer(question: Question) -> str:
    """Read an answer, empty to skip; ask again for what cannot be one, such as a letter that is not an option."""
    keys = [key for key, _ in question.options]
    if question.kind == "open":
        print("Your words; an empty line ends them.")
        lines = []
        while line := input("> ").strip():
            lines.append(line)
        return " ".join(lines)
    while True:
        answer = input(f"{', '.join(keys)}> " if keys else f"{question.unit}> ").strip()
        if not answer or (answer.strip(".)").lower() in keys if keys else any(map(str.isdigit, answer))):
            return answer
        print(f"One letter of {', '.join(keys)}, please." if keys else f"A number in {question.unit}, please.")


def add_serve(top: Parser) -> None:
    """Declare `labkit serve`: a model until Ctrl-C; its options are those of the engine's own program."""
    serve = top.add_command("serve", "serve a model on this machine until Ctrl-C", _run_serve)
    serve.add_argument("name", metavar="NAME", help="transformers-naive, transformers-batched, vllm or fake")
    serve.add_argument(
        "options", metavar="...", nargs=argparse.REMAINDER,
        help="--model, --port, --dtype, --engine-python, --dry-run, --tier: `labkit serve NAME --help`",
    )  # fmt: skip


def _run_serve(arguments: argparse.Namespace) -> int:
    from labkit.servers.engines import run_serve

    return run_serve(arguments.name, arguments.options)
