"""`labkit serve`: a model on this machine until Ctrl-C."""

from __future__ import annotations

import argparse

from labkit.cli.parser import Parser

__all__ = ["add_command"]


def add_command(top: Parser) -> None:
    """Declare `labkit serve`; its options are those of the engine's own program."""
    serve = top.add_command("serve", "serve a model on this machine until Ctrl-C", _run_serve)
    serve.add_argument("name", metavar="NAME", help="transformers-naive, transformers-batched, vllm or fake")
    serve.add_argument(
        "options", metavar="...", nargs=argparse.REMAINDER,
        help="--model, --port, --dtype, --engine-python, --dry-run, --tier: `labkit serve NAME --help`",
    )  # fmt: skip


def _run_serve(arguments: argparse.Namespace) -> int:
    from labkit.servers.engines import run_serve

    return run_serve(arguments.name, arguments.options)
