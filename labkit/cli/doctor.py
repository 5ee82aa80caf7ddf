"""`labkit doctor`: what machine is this, and what is missing?"""

from __future__ import annotations

import argparse

from labkit.cli.parser import Parser, print_json

__all__ = ["add_command"]


def add_command(top: Parser) -> None:
    """Declare `labkit doctor`."""
    doctor = top.add_command("doctor", "what machine this is, what is missing and how to get it", _run_doctor)
    doctor.add_argument("--json", action="store_true", help="write JSON")


def _run_doctor(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

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
