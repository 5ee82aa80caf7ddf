"""Do the options of `labkit load` make sense, each alone and all together? What would have no effect is an error."""

from __future__ import annotations

import argparse
from urllib.parse import urlsplit

from labkit.errors import LabkitError

__all__ = ["check_bench_options", "check_options", "check_size"]

_MAX_REQUESTS = 1_000_000  # of one run: every one is drawn before the start and kept until the report
_RATE, _SECONDS, _COUNT = (1e-6, 1e6), (0.001, 1e7), (1, _MAX_REQUESTS)
_BOUNDS = {
    "rate": _RATE, "end_rate": _RATE, "cv": (0.01, 100.0), "speed": _RATE, "scale": _RATE, "clients": (1, 100_000),
    "think": (0.0, 1e6), "turns": (1, 10_000), "shared": (0, 1_000_000), "duration": _SECONDS, "requests": _COUNT,
    "max_concurrency": _COUNT, "timeout": _SECONDS, "deadline": _SECONDS, "retries": (0, 1000), "workers": (1, 256),
    "warmup": (0, 100_000), "seed": (0, 2**63 - 1), "price": (0.0, 1e9),
}  # fmt: skip
_BENCH_BOUNDS = {"seconds": (0.1, 600.0), "streams": (0, 100_000)}


def check_options(arguments: argparse.Namespace) -> None:
    """Raise a LabkitError for a number out of bounds, an address that is none, and an option that has no use."""
    _check_bounds(arguments, _BOUNDS)
    _check_address(arguments.url)
    chosen = [name for name in ("rate", "trace", "clients") if getattr(arguments, name) is not None]
    if len(chosen) != 1:
        raise LabkitError("Say how requests come.", next_step="give one of --rate, --clients and --trace.")
    if arguments.search and arguments.rate is None:
        raise LabkitError("--search varies the rate of an open loop.", next_step="give the first rate with --rate.")
    for name, (is_used, place) in _list_uses(arguments).items():
        if not is_used and getattr(arguments, name) != arguments.get_default(name):
            raise LabkitError(f"{_write(name)} would have no effect: it is for {place}.", next_step="leave it out.")


def check_bench_options(arguments: argparse.Namespace) -> None:
    """Raise a LabkitError for a number of `labkit bench-client` that is out of bounds."""
    _check_bounds(arguments, _BENCH_BOUNDS)


def check_size(arguments: argparse.Namespace, rate_per_s: float | None, duration_s: float | None) -> None:
    """Raise a LabkitError where the plan of one run would not fit into memory; a trace is as long as it is."""
    if arguments.clients is not None:
        num = arguments.clients * (arguments.requests or 1)
    elif rate_per_s is not None:
        is_ramp = arguments.arrival == "ramp" and arguments.end_rate is not None
        mean_per_s = (rate_per_s + arguments.end_rate) / 2 if is_ramp else rate_per_s
        counts = [mean_per_s * duration_s] if duration_s else []
        counts += [arguments.requests] if arguments.requests and not is_ramp else []  # a ramp is drawn whole
        num = arguments.turns * min(counts, default=0)
    else:
        return
    if num > _MAX_REQUESTS:
        raise LabkitError(
            f"this asks for about {num:.3g} requests; at most {_MAX_REQUESTS} fit into one run.",
            next_step="lower the rate, the duration or --requests, or make several runs.",
        )


def _check_bounds(arguments: argparse.Namespace, bounds: dict[str, tuple[float, float]]) -> None:
    for name, (low, high) in bounds.items():
        value = getattr(arguments, name)
        if value is not None and not low <= value <= high:  # also NaN
            raise LabkitError(
                f"{_write(name)} is {value}; expected a number from {low:g} to {high:g}.", next_step="correct it."
            )


def _check_address(url: str) -> None:
    try:
        address = urlsplit(url if "://" in url else f"http://{url}")
        (address.hostname or "").encode("idna")
        address.path.encode("latin-1")
        is_address = address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
    except ValueError:  # no port, no bracket at the end, a name that none can have
        is_address = False
    if not is_address:
        raise LabkitError("this URL is no address of a server.", next_step="write http://HOST:PORT.")


def _list_uses(arguments: argparse.Namespace) -> dict[str, tuple[bool, str]]:
    """For each option that not every run has a use for: whether this one has, and which does."""
    is_open, is_replay = arguments.rate is not None, arguments.trace is not None
    is_session = is_open and arguments.turns > 1
    has_lengths = bool(arguments.lengths)
    return {
        "arrival": (is_open, "--rate"),
        "cv": (is_open and arguments.arrival == "gamma", "--arrival gamma"),
        "end_rate": (is_open and arguments.arrival == "ramp", "--arrival ramp"),
        "speed": (is_replay, "--trace"),
        "turns": (is_open, "--rate"),
        "shared": (is_session, "--turns of 2 or more"),
        "think": (is_session or arguments.clients is not None, "--clients, or --turns of 2 or more"),
        "prompt": (not is_replay and not has_lengths, "runs without --trace and --lengths, which bring their own"),
        "output": (not is_replay and not has_lengths, "runs without --trace and --lengths, which bring their own"),
        "lengths": (not is_replay, "runs without --trace, which brings its own"),
        "scale": (has_lengths, "--lengths"),
        "out": (not arguments.search, "runs without --search, which keeps no requests"),
        "price": (not arguments.search, "runs without --search"),
    }


def _write(name: str) -> str:
    return "--" + name.replace("_", "-")
