"""How does a checkpoint pack its matrices? Read from `quantization_config`, which has a form for each method."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from labkit.errors import ModelError

__all__ = ["Packing", "read_packing"]

_DEFAULT_GROUP = 128  # of AWQ and GPTQ, if the config does not say


@dataclass(frozen=True, slots=True)
class Packing:
    """How weights are packed: what `labkit.roofline.estimate_packed_bytes` needs.

    Attributes:
        dtype: name of the format: "fp8", "int4", "int8".
        bits: bits per value.
        group_size: values of a row that share a scale; 0 if each output channel has one.
        scale_bits: bits of a scale and its zero point.
        is_head_packed: whether the output head is packed too.
    """

    dtype: str
    bits: int
    group_size: int
    scale_bits: float
    is_head_packed: bool = False


def read_packing(config: Mapping[str, Any]) -> Packing | None:
    """Return how the weights are packed, or None for plain ones; raises ModelError for an unknown method."""
    quantization = config.get("quantization_config")
    if quantization is None:
        return None
    if not isinstance(quantization, dict):
        raise _refuse("quantization_config", quantization, "a table of settings")
    if not quantization:
        return None
    method = quantization.get("quant_method")
    if quantization.get("config_groups"):  # compressed-tensors
        return _read_groups(quantization)
    if method in ("fp8", "fbgemm_fp8"):  # blocks of 128 x 128 have fewer scales: under 0.1 % of the bytes either way
        return Packing("fp8", 8, 0, 16)
    if quantization.get("load_in_8bit"):  # bitsandbytes: a float32 per output channel
        return Packing("int8", 8, 0, 32)
    if quantization.get("load_in_4bit"):  # blocks of 64; "double quantization" packs their scales in 8 bits
        return Packing("int4", 4, 64, 8.125 if quantization.get("bnb_4bit_use_double_quant") else 32)
    if "bits" in quantization:  # AWQ, GPTQ: a 16-bit scale and a zero of the same bits
        bits = _read_bits(quantization, "bits")
        group = _read_group(quantization, default=_DEFAULT_GROUP)
        return Packing(f"int{bits}", bits, group, 16 + bits, is_head_packed=quantization.get("lm_head") is True)
    raise ModelError(
        f"unknown quantization {method!r}: its bytes cannot be counted from the configuration.",
        next_step="use a checkpoint in AWQ, GPTQ, fp8, bitsandbytes or compressed-tensors, or one in 16 bits.",
    )


def _read_groups(quantization: Mapping[str, Any]) -> Packing:
    """Read compressed-tensors: groups of layers, each with its own `weights`; they must agree on the format."""
    groups = quantization["config_groups"]
    weights = [group.get("weights") for group in groups.values()] if isinstance(groups, dict) else []
    if not weights or not all(isinstance(one, dict) for one in weights):
        raise _refuse("config_groups", groups, "groups with weights")
    formats = {("fp" if one.get("type") == "float" else "int", _read_bits(one, "num_bits")) for one in weights}
    if len(formats) > 1:
        seen = ", ".join(sorted(f"{kind}{bits}" for kind, bits in formats))
        raise ModelError(f"the layers are packed in several formats ({seen}).", next_step="use a checkpoint with one.")
    kind, bits = formats.pop()
    zero_bits = bits if weights[0].get("symmetric") is False else 0
    is_head_left = any("lm_head" in str(name) for name in quantization.get("ignore") or ())
    return Packing(f"{kind}{bits}", bits, _read_group(weights[0], default=0), 16 + zero_bits, not is_head_left)


def _read_bits(settings: Mapping[str, Any], key: str) -> int:
    bits = settings.get(key)
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 8:
        raise _refuse(key, bits, "a whole number from 1 to 8")
    return bits


def _read_group(settings: Mapping[str, Any], *, default: int) -> int:
    """Return the group size; -1 means one group for a whole row (per channel), which is 0 here."""
    size = settings.get("group_size")
    if size is None:
        return default
    if isinstance(size, bool) or not isinstance(size, int):
        raise _refuse("group_size", size, "a whole number, or -1 for one scale per output channel")
    return max(size, 0)


def _refuse(key: str, value: object, expected: str) -> ModelError:
    return ModelError(f"the config has {key} = {value!r}; expected {expected}.", next_step="correct config.json.")
