"""How do I do it from a shell? `labkit doctor`, `models`, `results`, `progress`, `quiz`, `serve`.

One file for each command: its `add_command` declares the options, its `_run` does the work and returns the exit code.
Every room is imported inside the function that needs it, so that `labkit --help` answers at once. Exit codes: 0, 1 for
"looked, and something is wrong" (doctor, results verify), 2 for an error or a wrong call.
"""

from labkit.cli.front import format_help, main

__all__ = ["format_help", "main"]
