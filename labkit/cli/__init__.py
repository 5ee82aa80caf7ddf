"""How do I do it from a shell? `labkit doctor`, `models`, `results`, `progress`, `quiz`, `serve`, `load`.

This is the front door: find the command, run it, turn errors into one line and an exit code. `commands.py` and
`load.py` declare the commands. Other packages are imported inside the function that needs them, so that
`labkit --help` answers at once. Exit codes: 0, 1 for "looked, and something is wrong" (doctor, results verify), 2 for
an error or a wrong call.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Sequence

from labkit.cli import commands, load
from labkit.cli.parser import Parser
from labkit.errors import LabkitError

__all__ = ["format_help", "main", "update_readme"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; a LabkitError or OSError is one line on stderr and exit code 2."""
    if sys.stdout is None:  # `labkit ... >&-`
        return _fail("the standard output is closed. Next: send it to a file, or to /dev/null.")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a character the terminal lacks is not an error
    try:
        try:
            return _run(argv)
        finally:
            sys.stdout.flush()  # here and not at exit: it may fail
    except LabkitError as error:
        return _fail(str(error))
    except BrokenPipeError:  # `labkit results list | head`
        _drop_output()
        return 0
    except OSError as error:
        _drop_output()
        place = f"{error.filename}: " if error.filename else "the output could not be written: "
        return _fail(f"{place}{error.strerror or error}. Next: free some space, or use another place.")
    except KeyboardInterrupt:
        return 130


def _run(argv: Sequence[str] | None) -> int:
    parser = _make_parser()
    arguments = parser.parse_args(argv)
    if "run" not in arguments:
        print(parser.format_help(), end="")
        return 0
    return arguments.run(arguments)


def _fail(text: str) -> int:
    with contextlib.suppress(OSError):  # there is nowhere to print
        print("labkit:", " ".join(text.split()), file=sys.stderr)
    return 2


def _drop_output() -> None:
    """Discard what is still to be written: Python would fail again at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def format_help() -> str:
    """Write the help of all commands, always at the same width: the README's text."""
    return "\n".join(parser.format_help() for parser in _make_parser().list_all())


def update_readme() -> None:
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


def _make_parser() -> Parser:
    top = Parser(
        prog="labkit",
        description="What the course measured, checked and knows about this machine, from a shell.",
        epilog="Exit codes: 0; 1 when something is missing or does not verify; 2 for an error, said in one line.",
    )
    commands.add_doctor(top)  # in the order of the help
    commands.add_models(top)
    commands.add_results(top)
    commands.add_progress(top)
    commands.add_quiz(top)
    commands.add_serve(top)
    load.add_command(top)
    load.add_bench_command(top)
    return top
