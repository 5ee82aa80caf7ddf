"""How does a model get into memory? Safetensors only, no foreign code, the dtype that this machine is fast at."""

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from labkit.errors import ModelError
from labkit.hardware import probe_machine
from labkit.memory import map_large_blocks
from labkit.models.description import BYTES_PER_VALUE, Model, choose_gpu, find_models_folder
from labkit.units import format_bytes

__all__ = ["load_model", "run_explained"]


def load_model(model: Model, *, device: str | None = None) -> tuple[Any, Any]:
    """Load weights and tokenizer; return (model, tokenizer), in evaluation mode on `device`.

    `device`: "cpu" or "cuda:0"; by default the best GPU, unless the tier is "cpu". On a CPU torch gets one intra-op
    thread: small models are bound by dispatch, and a second, spinning thread made them up to 15 times slower beside
    another process. Weights stay mapped from their file if they have its dtype, and become resident as they are read.
    Random weights come from seed 0; without a tokenizer.json beside their configuration they use the shipped
    tokenizer. Raises ModelError, also for a checkpoint that does not fill the model: you would measure random layers.
    """
    if "torch" not in sys.modules:  # OpenMP reads it once, when it starts
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if device is None:
        device, _ = choose_gpu(probe_machine())
    size = f" ({format_bytes(_estimate_download_bytes(model))})"
    with map_large_blocks():  # so that a lab's clean-up gets converted weights back
        loaded, tokenizer = run_explained(
            lambda: _load(model, device), name=model.path_or_id, is_hub=model.source == "hub", size=size
        )
    if len(tokenizer) > model.config["vocab_size"]:
        raise ModelError(
            f"{model.name} has a vocabulary of {model.config['vocab_size']}, its tokenizer gives {len(tokenizer)} ids.",
            next_step="raise vocab_size in the configuration, or put the right tokenizer.json beside it.",
        )
    return loaded.to(device).eval(), tokenizer


def run_explained(load: Callable[[], Any], *, name: str, is_hub: bool, size: str = "") -> Any:
    """Call `load`; turn an error of Transformers or the Hub into a ModelError: what to fetch, and where to put it."""
    try:
        return load()
    except ModuleNotFoundError as error:
        raise ModelError(f"{error.name} is not installed.", next_step="run `make setup`.") from None
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        if "trust_remote_code" in str(error):  # what Transformers asks for when a model brings its own Python files
            label = name if is_hub else Path(name).name
            raise ModelError(
                f"{label} brings code of its own (auto_map in its files), and labkit never runs a model's own code.",
                next_step="take a model whose class Transformers has itself: llama, qwen3 and the like in config.json.",
            ) from error
        first = str(error).strip().split("\n")[0][:200]
        if not is_hub:
            raise ModelError(f"{Path(name).name} does not load: {first}", next_step="check its files.") from error
        raise ModelError(
            f"{name} is not on this machine and could not be fetched: {first}",
            next_step=f"where there is network, run `hf download {name} --local-dir FOLDER`{size}; then copy FOLDER to "
            "this machine and set LABKIT_MODEL to its path. LABKIT_TIER=cpu uses the shipped models.",
        ) from error


def _load(model: Model, device: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoTokenizer

    if device == "cpu":
        torch.set_num_threads(1)
    if model.source != "random":
        text_source, loaded = model.path_or_id, _load_weights(model)
    else:
        own = Path(model.path_or_id).parent
        has_own = Path(model.path_or_id).is_file() and (own / "tokenizer.json").is_file()
        text_source, loaded = own if has_own else find_models_folder() / "python-2m", _make_random(model)
    return loaded, AutoTokenizer.from_pretrained(text_source, trust_remote_code=False)


def _load_weights(model: Model) -> Any:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    dtype = getattr(torch, model.dtype) if model.dtype in BYTES_PER_VALUE else "auto"
    if model.weight_bytes < 10**9:
        logging.disable_progress_bar()  # a bar of half a second is noise in a stored notebook
    loaded, info = AutoModelForCausalLM.from_pretrained(
        model.path_or_id, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are refused below, by name
    )  # fmt: skip
    _check_filled(model.name, loaded, info)
    return loaded


def _check_filled(name: str, loaded: Any, info: dict[str, Any]) -> None:
    """Raise ModelError if weights stayed random, or the model has no place for a layer of the files."""
    is_tied = getattr(loaded.config, "tie_word_embeddings", False)
    tied = set(getattr(loaded, "_tied_weights_keys", None) or ()) if is_tied else set()
    reshaped = {key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]}
    homeless = {key for key in info["unexpected_keys"] if re.search(r"\blayers\.\d+\..*\b(weight|bias)$", key)}
    for keys, seen in (
        (set(info["missing_keys"]) - tied, "lacks {} of the tensors that its config.json asks for"),
        (reshaped, "has {} tensors of another shape"),
        (homeless, "has {} tensors of layers that its config.json has no place for"),
    ):
        if keys:
            some = ", ".join(sorted(keys)[:3]) + (" and more" if len(keys) > 3 else "")
            raise ModelError(
                f"{name} {seen.format(len(keys))}: {some}.",
                next_step="put the config.json and the files of one model together: download the folder again, whole.",
            )


def _estimate_download_bytes(model: Model) -> int:
    """Return the bytes of the files on the Hub: plain ones in the dtype that they were saved in, else 16 bits."""
    if model.dtype not in BYTES_PER_VALUE:
        return model.weight_bytes
    saved = str(model.config.get("dtype") or model.config.get("torch_dtype")).removeprefix("torch.")
    return model.num_parameters * BYTES_PER_VALUE.get(saved, 2)


def _make_random(model: Model) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**model.config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, model.dtype), trust_remote_code=False)
