"""How is plain Transformers served? One request at a time, or in static batches; the program is
`transformers_program.py`.
"""

from pathlib import Path

from labkit.errors import LabkitError
from labkit.servers.base import Server, run_launch
from labkit.servers.launch import Launch, find_deadline
from labkit.servers.surroundings import choose_device, estimate_thread_plan, find_engine_python, find_model_source

__all__ = ["estimate_transformers_launch", "run_transformers"]

DISTRIBUTIONS = ("torch", "transformers", "tokenizers", "aiohttp")


def estimate_transformers_launch(
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
) -> Launch:
    """Return how the Transformers server would be started for `model` (a `Model` or a folder); nothing is started.

    `mode`: "naive" (one request at a time) or "batched" (static batches of at most `max_batch_size`, collected for at
    most `max_wait_s`). `tier` as in `run_vllm`; without it, this machine decides.
    """
    if mode not in ("naive", "batched"):
        raise LabkitError(f"mode is {mode!r}; expected 'naive' or 'batched'.", next_step="Give one of the two.")
    source = find_model_source(model)
    device, default_dtype = choose_device(tier)
    dtype = dtype or default_dtype
    plan = estimate_thread_plan(num_threads)
    # -P keeps the program's folder off the import path: transformers.py in it must not shadow the library.
    argv = [find_engine_python(engine_python), "-P", str(Path(__file__).with_name("transformers_program.py"))]
    argv += [
        "--model",
        source.path_or_id,
        "--served-model-name",
        source.name,
        "--port",
        "{port}",
        "--mode",
        mode,
        "--dtype",
        dtype,
    ]
    argv += ["--device", device, "--num-threads", str(num_threads)]
    settings = {"mode": mode, "dtype": dtype, "device": device}
    if mode == "batched":
        argv += ["--max-batch-size", str(max_batch_size), "--max-wait-s", f"{max_wait_s:g}"]
        settings |= {"max_batch_size": max_batch_size, "max_wait_s": max_wait_s}
    if max_model_len:
        argv += ["--max-model-len", str(max_model_len)]
        settings["max_model_len"] = max_model_len
    if source.is_random:
        argv.append("--random-weights")
        settings["has_random_weights"] = True
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"} if source.is_local else {}
    return Launch(
        f"transformers-{mode}", source.name, tuple(argv), env={**plan, **offline}, distributions=DISTRIBUTIONS,
        settings=settings, ready_deadline_s=find_deadline(300.0, ready_deadline_s),
        files=source.files, grace_s=2.0,
    )  # fmt: skip


def run_transformers(model, *, port: int | None = None, **options) -> Server:
    """Start the Transformers server and return it ready; options as in `estimate_transformers_launch`."""
    return run_launch(estimate_transformers_launch(model, **options), port=port)
