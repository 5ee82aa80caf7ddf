"""Which engines are there, and how are they started by name?"""

import argparse
import contextlib
import json
import signal
import sys
import time

from labkit.errors import LabkitError
from labkit.servers.base import Server, run_launch
from labkit.servers.fake import estimate_fake_launch
from labkit.servers.launch import Launch
from labkit.servers.transformers import estimate_transformers_launch
from labkit.servers.vllm import estimate_vllm_launch, run_vllm

__all__ = ["ENGINES", "estimate_launch", "run_serve", "run_server"]

ENGINES = ("transformers-naive", "transformers-batched", "vllm", "fake")


def estimate_launch(engine: str, *, model=None, **options) -> Launch:
    """Return the exact command and environment of an engine without starting it; `tier=` gives those of another
    machine.

    `engine` is one of `ENGINES`; `model` a `labkit.models.Model` or a folder, not needed for "fake" (whose option is
    `plan`).
    """
    if engine == "fake":
        return estimate_fake_launch(**options)
    if engine not in ENGINES:
        raise LabkitError(f"There is no engine {engine!r}.", next_step=f"Use one of {', '.join(ENGINES)}.")
    if model is None:
        raise LabkitError(f"{engine} needs a model.", next_step="Give model=find_model(...) or the folder of a model.")
    if engine == "vllm":
        return estimate_vllm_launch(model, **options)
    return estimate_transformers_launch(model, mode=engine.partition("-")[2], **options)


def run_server(engine: str, *, model=None, port: int | None = None, **options) -> Server:
    """Start an engine by its name and return the `Server` when it answers; options as in `estimate_launch`."""
    if engine == "vllm" and model is not None:
        return run_vllm(model, port=port, **options)
    return run_launch(estimate_launch(engine, model=model, **options), port=port)


def run_serve(name: str, argv: list[str] | None = None) -> int:
    """Serve engine `name` from a shell until Ctrl-C (or SIGTERM); return the exit code. `labkit serve NAME ...` calls
    it.

    Options: --model (a folder, or "target" or "draft"), --port, --dtype, --engine-python, --dry-run (print the
    command and environment, start nothing), --tier (with --dry-run). A server that cannot start is a LabkitError.
    """
    parser = argparse.ArgumentParser(prog=f"labkit serve {name}", description=f"Serve {name} until Ctrl-C.")
    parser.add_argument("--model", default="target", help="folder of a model, 'target' or 'draft' (default: target)")
    parser.add_argument("--port", type=int, help="default: any free port")
    parser.add_argument("--dtype")
    parser.add_argument("--engine-python", help="interpreter of the engine's environment")
    parser.add_argument("--tier", help="show the command of another tier (with --dry-run)")
    parser.add_argument("--dry-run", action="store_true", help="show the command, start nothing")
    given = vars(parser.parse_args(argv))
    port, model, is_dry = given.pop("port"), given.pop("model"), given.pop("dry_run")
    options = {key: value for key, value in given.items() if value is not None}
    try:
        if "tier" in options and not is_dry:
            raise LabkitError("A tier can be shown, not run.", next_step="Add --dry-run, or leave --tier out.")
        if name == "fake" and options:
            raise LabkitError(f"The fake server knows no {', '.join(options)}.", next_step="Leave these options out.")
        if model in ("target", "draft") and name != "fake":
            from labkit.models import find_model

            model = find_model(model)
        if is_dry:
            launch = estimate_launch(name, model=model, **options)
            print(json.dumps({"argv": launch.argv, "env": dict(launch.env)}, indent=2))
            return 0
        print(f"starting {name}; this can take a minute ...", flush=True)
        with contextlib.suppress(ValueError):  # only the main thread may do this
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        with run_server(name, model=None if name == "fake" else model, port=port, **options) as server:
            print(
                f"{server.engine} serves {server.model} at {server.base_url} (log: {server.log_path}). Ctrl-C ends it."
            )
            sys.stdout.flush()
            while server.is_alive:
                time.sleep(0.2)
    except KeyboardInterrupt:
        print("stopped")
        return 0
    return 0
