"""What is in a model's folder? config.json, and the headers of exactly the files that loading would read."""

import json
import math
from pathlib import Path
from typing import Any

from labkit.errors import ModelError

__all__ = ["load_config", "read_tensors"]

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".gguf")


def load_config(path: Path) -> dict[str, Any]:
    """Read a config.json; raises ModelError unless it is a language model's."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not readable JSON ({error}).", next_step="give a model's config.json.") from None
    if not isinstance(config, dict) or config.get("vocab_size") is None:
        raise ModelError(f"{path} has no vocab_size.", next_step="give the config.json of a language model.")
    return config


def read_tensors(folder: Path) -> list[tuple[int, int]]:
    """Return (values, bytes) of each tensor of a folder's safetensors files; raises ModelError if one is incomplete.

    Files as Transformers chooses them: model.safetensors, else those that the index names. Without either, all
    *.safetensors but `consolidated` ones, which repeat the rest in another layout.
    """
    return [tensor for path in _find_files(folder) for tensor in _read_header(path)]


def _find_files(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*.safetensors"))
    if folder / _WHOLE in found:
        return [folder / _WHOLE]
    if (folder / _INDEX).is_file():
        return _read_index(folder)
    if not found:
        others = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
        seen = f"only {', '.join(others)}" if others else "no weights"
        raise ModelError(
            f"{folder.name} has {seen}; labkit reads *.safetensors, because a pickle can run code when it is opened.",
            next_step="convert it where you trust it: load it with Transformers and call save_pretrained(folder).",
        )
    return [path for path in found if not path.name.startswith("consolidated")] or found


def _read_index(folder: Path) -> list[Path]:
    """Return the files that the index names; a shard left from another download is not counted."""
    try:
        names = sorted(set(json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        paths = [folder / name for name in names]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        step = "copy or download it again."
        raise ModelError(f"{_INDEX} has no readable weight_map: {error!r}.", next_step=step) from None
    absent = [path.name for path in paths if not path.is_file()]
    if absent or not paths:
        named = ", ".join(absent[:3]) + (f" and {len(absent) - 3} more" if len(absent) > 3 else "") or "none is named"
        raise ModelError(
            f"{folder.name} lacks {len(absent)} of the {len(paths)} files that its index names: {named}.",
            next_step="copy or download the folder again, whole.",
        )
    return paths


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
    except OSError as error:  # a folder of that name, or a link whose target is gone
        raise ModelError(
            f"{path.name} cannot be read ({error.strerror}).",
            next_step="put the file itself there: a link of the Hub's cache leads nowhere on another machine.",
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"{path.name} is not a complete safetensors file: {error}.",
            next_step="copy or download it again; a Git LFS pointer is a small text file.",
        ) from None
