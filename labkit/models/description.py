"""What is known of a model from its configuration and the headers of its files, before a weight is loaded?"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.environment import find_course_root
from labkit.errors import ModelError
from labkit.hardware import Machine, estimate_tier
from labkit.roofline import estimate_kv_bytes_per_token, estimate_num_parameters

__all__ = ["Model", "estimate_dtype", "estimate_model", "find_models_folder", "load_config", "load_description"]

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class Model:
    """One model that can be loaded, known from its configuration alone.

    `source` is "shipped", "local", "random" or "hub"; `dtype` that of the weights in memory ("int4": packed, as the
    checkpoint says). `weight_bytes` and `kv_bytes_per_token` are for that dtype; a 4-bit model caches in 16 bits.
    """

    name: str
    source: str
    path_or_id: str
    config: dict[str, Any]
    num_parameters: int
    weight_bytes: int
    kv_bytes_per_token: int
    dtype: str


def load_description(folder: Path, *, source: str, machine: Machine) -> Model:
    """Read config.json and the headers of the safetensors files: exact counts and bytes, nothing loaded.

    Raises ModelError for a folder without a configuration, without safetensors (a pickle is never opened), or with a
    file that is cut short.
    """
    if not (folder / "config.json").is_file():
        step = "run `make models`, or fetch data/models again with git." if source == "shipped" else "check the path."
        raise ModelError(f"{folder} has no config.json.", next_step=step)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        others = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".gguf"))
        seen = f"only {', '.join(others)}" if others else "no weights"
        raise ModelError(
            f"{folder.name} has {seen}; labkit reads *.safetensors, because a pickle can run code when it is opened.",
            next_step="convert it where you trust it: load it with Transformers and call save_pretrained(folder).",
        )
    config = load_config(folder / "config.json")
    tensors = [tensor for path in files for tensor in _read_header(path)]
    if config.get("quantization_config"):  # packed: the shapes are not those of the parameters
        size = sum(size for _, size in tensors)
        return estimate_model(folder.name, source, str(folder), config, machine=machine, weight_bytes=size)
    count = sum(num for num, _ in tensors)
    return estimate_model(folder.name, source, str(folder), config, machine=machine, num_parameters=count)


def estimate_model(
    name: str,
    source: str,
    path_or_id: str,
    config: dict[str, Any],
    *,
    machine: Machine | None = None,
    dtype: str | None = None,
    num_parameters: int | None = None,
    weight_bytes: int | None = None,
) -> Model:
    """Return the `Model` of a configuration; what is not given is computed from it.

    `dtype` is that of the checkpoint's packed weights, else what this `machine` is fast at.
    """
    quantization = config.get("quantization_config") or {}
    bits = int(quantization.get("bits") or 4)
    dtype = dtype or (f"int{bits}" if quantization else estimate_dtype(machine))
    num_parameters = num_parameters or estimate_num_parameters(config)
    if weight_bytes is None and dtype in _BYTES:
        weight_bytes = num_parameters * _BYTES[dtype]
    elif weight_bytes is None:
        weight_bytes = _estimate_packed_bytes(config, num_parameters, bits, quantization.get("group_size") or 128)
    kv_bytes = estimate_kv_bytes_per_token(config, bytes_per_value=_BYTES.get(dtype, 2))
    return Model(name, source, path_or_id, config, num_parameters, weight_bytes, kv_bytes, dtype)


def estimate_dtype(machine: Machine) -> str:
    """Return bfloat16 on Ampere and newer, float16 on older GPUs, and on a CPU bfloat16 only where it is fast."""
    if machine.gpus and (tier := estimate_tier(machine)) != "cpu":
        return "float16" if tier == "t4" else "bfloat16"
    return "bfloat16" if machine.cpu.has_fast_bf16 else "float32"


def find_models_folder() -> Path:
    """Return data/models, where the shipped models are."""
    return find_course_root() / "data" / "models"


def load_config(path: Path) -> dict[str, Any]:
    """Read a config.json; raises ModelError when it is not one of a language model."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is not readable JSON ({error}).", next_step="give a model's config.json.") from None
    if not isinstance(config, dict) or not isinstance(config.get("vocab_size"), int):
        raise ModelError(f"{path} has no vocab_size.", next_step="give the config.json of a language model.")
    return config


def _read_header(path: Path) -> list[tuple[int, int]]:
    """Return (values, bytes) of each tensor from the file's header (8 bytes of length, then JSON)."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > path.stat().st_size:
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
        tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
        if path.stat().st_size < 8 + length + max(tensor["data_offsets"][1] for tensor in tensors):
            raise ValueError("it is cut short")
        return [(math.prod(t["shape"]), t["data_offsets"][1] - t["data_offsets"][0]) for t in tensors]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{path.name} is no complete safetensors file: {error}.",
            next_step="copy or download it again; a Git LFS pointer is a small text file.",
        ) from None


def _estimate_packed_bytes(config: dict, num_parameters: int, bits: int, group_size: int) -> int:
    """Return the bytes of a packed checkpoint: per group a 16-bit scale and a zero; embeddings in 16 bits."""
    copies = 1 if config.get("tie_word_embeddings") else 2
    rest = copies * config["vocab_size"] * config["hidden_size"]  # norms and biases are under 0.01 % of the whole
    return math.ceil(2 * rest + (num_parameters - rest) * (bits + (16 + bits) / group_size) / 8)
