"""What does an engine find around it? Its interpreter, its threads, its device and number format, its model's files."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from labkit.errors import InstallError, LabkitError

__all__ = [
    "ModelSource",
    "choose_device",
    "estimate_thread_plan",
    "find_engine_python",
    "find_model_source",
    "probe_versions",
]


def estimate_thread_plan(num_threads: int = 1) -> dict[str, str]:
    """Return the one thread plan of all engines that are compared, as environment variables.

    One thread by default: for small models a second one costs more in waiting than it computes.
    `OMP_WAIT_POLICY=passive` lets a thread that waits sleep: two spinning threads beside a busy process made a decode
    15 times slower. vLLM would otherwise pin its threads to cores of its own choice, `nobind` leaves them to the
    system like everybody's. This counts the arithmetic threads; the processes around them (vLLM has three, a
    Transformers server one) are the engine's design.
    """
    if num_threads < 1:
        raise LabkitError(
            f"num_threads is {num_threads}; expected at least 1.", next_step="Ask for one thread or more."
        )
    count = str(num_threads)
    return {
        "OMP_NUM_THREADS": count,
        "OMP_WAIT_POLICY": "passive",
        "OMP_PROC_BIND": "false",
        "MKL_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        "RAYON_NUM_THREADS": count,
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "LABKIT_NUM_THREADS": count,
    }


def choose_device(tier: str | None = None) -> tuple[str, str]:
    """Return (device, dtype) of a tier: "cpu" or "cuda", and the fastest number format that the hardware computes
    itself.

    With `tier` given, the answer is for that tier whatever this machine is (a dry run). Without, this machine
    decides, and LABKIT_TIER cannot conjure a GPU: where there is none the engines run on the processor. bfloat16 on a
    processor without bfloat16 instructions would be emulated, so float32 it is; the t4 tier has no bfloat16 either,
    but float16.
    """
    from labkit.hardware import TIERS, choose_dtype, estimate_tier, probe_machine

    if tier is not None and tier not in TIERS:
        raise LabkitError(f"{tier!r} is no tier.", next_step=f"Use one of {', '.join(TIERS)}.")
    machine = probe_machine()
    if tier is None:
        tier = estimate_tier(machine) if machine.gpus else "cpu"
    return "cpu" if tier == "cpu" else "cuda", choose_dtype(machine, tier=tier)


def find_engine_python(engine_python: str | os.PathLike | None = None) -> str:
    """Return the interpreter that runs engines: the argument, else LABKIT_ENGINE_PYTHON, else this one.

    A hosted notebook keeps its own torch that way, and the engine lives in an environment beside it. A path that
    cannot be run is an InstallError. The link in a virtual environment is kept: resolved, it would lose its packages.
    """
    asked = engine_python or os.environ.get("LABKIT_ENGINE_PYTHON")
    if not asked:
        return sys.executable
    path = os.path.abspath(os.path.expanduser(os.fspath(asked)))
    if not (os.path.isfile(path) and os.access(path, os.X_OK)):
        raise InstallError(
            f"The engine's interpreter {asked!r} is no program that can be run.",
            next_step="Set LABKIT_ENGINE_PYTHON or engine_python= to the bin/python of the engine's environment.",
        )
    return path


_ASK_VERSIONS = """
import importlib.metadata as m, json, platform, sys
found = {"python": platform.python_version()}
for name in sys.argv[1:]:
    try: found[name] = m.version(name)
    except m.PackageNotFoundError: pass
print(json.dumps(found))
"""


def probe_versions(python: str, *, distributions: tuple[str, ...]) -> dict[str, str]:
    """Ask the interpreter `python` for its version and for those of `distributions`; what it does not have is left out.

    Only package metadata is read, nothing is imported; an interpreter that does not answer gives {}.
    """
    try:
        answer = subprocess.run(
            [python, "-c", _ASK_VERSIONS, *distributions], capture_output=True, text=True, timeout=60, cwd="/",
            stdin=subprocess.DEVNULL, check=True,
        )  # fmt: skip
        return json.loads(answer.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return {}


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where an engine finds a model: a folder or Hub id, and the files to write first when its weights are random."""

    name: str
    path_or_id: str
    is_local: bool
    is_random: bool = False
    files: Mapping[str, str] = field(default_factory=dict)


def find_model_source(model) -> ModelSource:
    """Return what an engine needs to know of a `labkit.models.Model`, or of a folder or Hub id given as a string.

    A random model has no weights on the disk: configuration and tokenizer are written to the scratch folder at the
    start, and the engine draws weights of that shape itself (right for speed, useless for quality; never the same in
    two engines).
    """
    if not hasattr(model, "path_or_id"):
        path = Path(model)
        is_local = path.is_dir()
        return ModelSource(path.name, str(path.resolve()) if is_local else str(model), is_local)
    if model.source != "random":
        return ModelSource(str(model.name), str(model.path_or_id), Path(model.path_or_id).is_dir())
    from labkit.models.description import find_models_folder

    own = Path(model.path_or_id).parent
    texts = own if (own / "tokenizer.json").is_file() else find_models_folder() / "python-2m"
    config = {"architectures": ["LlamaForCausalLM"], **model.config}
    files = {"model/config.json": json.dumps(config)}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (texts / name).is_file():
            files[f"model/{name}"] = (texts / name).read_text(encoding="utf-8")
    return ModelSource(str(model.name), "{scratch}/model", True, True, files)
