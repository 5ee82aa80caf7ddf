"""`labkit progress`: what is done, and what comes next?"""

from __future__ import annotations

import argparse
import sys

from labkit.cli.parser import Parser, print_json

__all__ = ["add_command"]


def add_command(top: Parser) -> None:
    """Declare `labkit progress`."""
    progress = top.add_command("progress", "what is done, and what comes next", _run_progress)
    progress.add_argument("--json", action="store_true", help="write JSON")
    progress.add_argument("--export", metavar="FILE", help="write all progress to one file")
    progress.add_argument("--import", metavar="FILE", dest="source", help="add the progress of an exported file")


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
