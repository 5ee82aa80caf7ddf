"""What is known about a model from its configuration and its files' headers, before a weight is loaded?"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.environment import find_course_root
from labkit.errors import ModelError
from labkit.hardware import Gpu, Machine, choose_dtype, estimate_tier
from labkit.models.checkpoint import load_config, read_tensors
from labkit.models.packing import read_packing
from labkit.roofline import estimate_kv_bytes_per_token, estimate_num_parameters, estimate_packed_bytes

__all__ = [
    "BYTES_PER_VALUE",
    "Model",
    "choose_gpu",
    "estimate_model",
    "find_models_folder",
    "load_description",
]

BYTES_PER_VALUE = {"float32": 4, "bfloat16": 2, "float16": 2}  # plain dtypes; all others are packed


@dataclass(frozen=True, slots=True)
class Model:
    """One model that can be loaded, known from its configuration alone.

    Attributes:
        name: what the course calls it.
        source: "shipped", "local", "random" or "hub".
        path_or_id: its folder, its configuration ("random"), or its id on the Hub.
        config: its config.json.
        num_parameters: its parameters, tied ones once.
        weight_bytes: nominal bytes of the weights in `dtype`.
        kv_bytes_per_token: bytes of keys and values that one token adds to the cache; 16 bits each if packed.
        dtype: that of the weights in memory; "int4", "int8" or "fp8" if the checkpoint is packed.
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

    Raises ModelError if the configuration or the safetensors are missing (a pickle is never opened), or a file is cut
    short.
    """
    if not (folder / "config.json").is_file():
        step = "run `make models`, or fetch data/models again with git." if source == "shipped" else "check the path."
        raise ModelError(f"{folder} has no config.json.", next_step=step)
    config = load_config(folder / "config.json")
    tensors = read_tensors(folder)
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

    `dtype` defaults to that of packed weights, else to the one that `machine` is fast at.
    """
    for key in ("num_hidden_layers", "vocab_size", "max_position_embeddings"):  # used where the shape is not needed
        _check_count(config, key)
    packing = read_packing(config)
    dtype = dtype or (packing.dtype if packing else _estimate_dtype(machine))
    num_parameters = num_parameters or estimate_num_parameters(config)
    if weight_bytes is None and dtype in BYTES_PER_VALUE:
        weight_bytes = num_parameters * BYTES_PER_VALUE[dtype]
    elif weight_bytes is None:
        weight_bytes = estimate_packed_bytes(
            config, bits=packing.bits, group_size=packing.group_size, scale_bits=packing.scale_bits,
            is_head_packed=packing.is_head_packed,
        )  # fmt: skip
    kv_bytes = estimate_kv_bytes_per_token(config, bytes_per_value=BYTES_PER_VALUE.get(dtype, 2))
    if min(num_parameters, weight_bytes, kv_bytes) <= 0:  # such a model would fit everywhere
        raise ModelError(
            f"{name} would have {num_parameters:,} parameters in {weight_bytes:,} bytes, and {kv_bytes:,} bytes of "
            "cache per token.",
            next_step="look at its config.json and its files: one of them is wrong.",
        )
    return Model(name, source, path_or_id, config, num_parameters, weight_bytes, kv_bytes, dtype)


def choose_gpu(machine: Machine) -> tuple[str, Gpu | None]:
    """Return where models are loaded: ("cuda:N", the best GPU), or ("cpu", None) if the tier is "cpu".

    N counts as torch does: CUDA puts the fastest GPU first, unless CUDA_DEVICE_ORDER=PCI_BUS_ID keeps NVML's order.
    """
    if not machine.gpus or estimate_tier(machine) == "cpu":
        return "cpu", None
    best = max(machine.gpus, key=lambda gpu: (gpu.capability or (0, 0), gpu.memory_bytes or 0))
    is_bus_order = os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    return f"cuda:{machine.gpus.index(best) if is_bus_order else 0}", best


def _estimate_dtype(machine: Machine) -> str:
    """Return the dtype of plain weights; LABKIT_TIER does not count without a GPU."""
    return choose_dtype(machine, tier="cpu" if choose_gpu(machine)[1] is None else estimate_tier(machine))


def find_models_folder() -> Path:
    """Return data/models, where the shipped models are."""
    return find_course_root() / "data" / "models"


def _check_count(config: dict[str, Any], key: str) -> None:
    value = config.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ModelError(
            f"the config has {key} = {value!r}; expected a whole number above 0.", next_step="correct config.json."
        )
