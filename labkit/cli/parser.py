"""What does the command line understand? Argparse with a fixed width, and commands that hold commands."""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

__all__ = ["Parser", "print_damage", "print_json", "read_path"]

_WIDTH = 100  # of the help on every terminal: the README shows the same text


class _Formatter(argparse.HelpFormatter):
    """Columns as Python 3.11 and 3.12 set them; 3.13 also counts how far a command's name is indented."""

    def add_argument(self, action: argparse.Action) -> None:
        before = self._action_max_length
        super().add_argument(action)
        if action.help is not argparse.SUPPRESS:
            shown = [self._format_action_invocation(one) for one in (action, *self._iter_indented_subactions(action))]
            self._action_max_length = max(before, max(map(len, shown)) + self._current_indent)


class Parser(argparse.ArgumentParser):
    """The standard parser with a fixed width, without the colours of later Pythons, and with a list of its commands."""

    def __init__(self, **options: object) -> None:
        formatter = functools.partial(_Formatter, width=_WIDTH, max_help_position=28)
        super().__init__(formatter_class=formatter, allow_abbrev=False, **options)
        self.color = False
        self.children: list[Parser] = []
        self._group = None

    def add_command(
        self, name: str, text: str, run: Callable[[argparse.Namespace], int] | None = None, *, is_action: bool = False
    ) -> Parser:
        """Add a command (or, with `is_action`, an action of a command) with its line of help.

        `run` takes the arguments and returns the exit code; a command that only holds actions has none.
        """
        if self._group is None:
            title = "actions" if is_action else "commands"
            self._group = self.add_subparsers(title=title, metavar=title[:-1].upper(), required=is_action)
        parser = self._group.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if run:
            parser.set_defaults(run=run)
        self.children.append(parser)
        return parser

    def list_all(self) -> list[Parser]:
        """List this parser and all its commands, in the order of the help."""
        return [self, *(parser for child in self.children for parser in child.list_all())]


def read_path(text: str) -> Path:
    """Read the path of an argument and expand "~"; LabkitError for the home of an unknown user."""
    from labkit.errors import LabkitError
    from labkit.journal import expand_path

    try:
        return expand_path(text)
    except OSError as error:
        raise LabkitError(f"{text} cannot be used ({error.strerror}).", next_step="write the whole path.") from None


def print_json(content: object) -> None:
    """Print as JSON, indented by two."""
    print(json.dumps(content, indent=2))


def print_damage(damaged: Sequence[object]) -> None:
    """Print every line that was skipped."""
    for bad in damaged:
        print(f"skipped: {bad}")
