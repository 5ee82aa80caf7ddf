"""`labkit models`: which models fit here?"""

from __future__ import annotations

import argparse

from labkit.cli.parser import Parser, print_json

__all__ = ["add_command"]


def add_command(top: Parser) -> None:
    """Declare `labkit models`."""
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
