"""Which model does this run use? `LABKIT_MODEL` first, then the tier of the machine."""

import json
import os
import re
from pathlib import Path

from labkit.environment import find_course_root
from labkit.errors import ModelError
from labkit.hardware import Machine, estimate_tier, probe_machine
from labkit.journal import expand_path
from labkit.models.checkpoint import load_config
from labkit.models.description import BYTES_PER_VALUE, Model, estimate_model, find_models_folder, load_description
from labkit.models.loading import run_explained

__all__ = ["SHIPPED", "find_model", "load_reference_models"]

SHIPPED = {"target": "python-11m", "draft": "python-2m"}
RANDOM_SHAPES = {  # 138M parameters: the size at which a CPU's memory bandwidth starts to matter
    "llama-140m": {"model_type": "llama", "num_hidden_layers": 12, "hidden_size": 768, "intermediate_size": 3072,
                   "num_attention_heads": 12, "num_key_value_heads": 12, "head_dim": 64, "vocab_size": 32000,
                   "tie_word_embeddings": True, "max_position_embeddings": 2048},
}  # fmt: skip
_FORMS = "use python-11m, a folder with safetensors, random:llama-140m, random:<config.json> or a Hub id."


def find_model(role: str = "target", *, machine: Machine | None = None) -> Model:
    """Return the model that this machine uses as `role` ("target" or "draft"), without loading or downloading weights.

    `LABKIT_MODEL` comes first, then the tier (`LABKIT_TIER`, else the hardware). Raises ModelError with the next step.
    """
    if role not in SHIPPED:
        raise ModelError(f"role is {role!r}.", next_step='use "target" or "draft".')
    machine = machine or probe_machine()
    if asked := os.environ.get("LABKIT_MODEL", "").strip():
        return _find_asked(asked, role, machine)
    tier = estimate_tier(machine)
    if tier == "cpu":
        return _load_shipped(SHIPPED[role], machine)
    return next(model for row, model in load_reference_models() if tier in row["tier"] and row["role"] == role)


def load_reference_models() -> list[tuple[dict, Model]]:
    """Return the rows of data/reference/models.json (tier, role, licence, source), each with its `Model`."""
    path = find_course_root() / "data" / "reference" / "models.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["models"]
    return [(row, estimate_model(row["name"], "hub", row["hub_id"], row["config"], dtype=row["dtype"])) for row in rows]


def _load_shipped(name: str, machine: Machine) -> Model:
    return load_description(find_models_folder() / name, source="shipped", machine=machine)


def _find_asked(asked: str, role: str, machine: Machine) -> Model:
    """Read LABKIT_MODEL: one name, or target,draft. A draft must share the target's tokenizer, so none is guessed."""
    names = [name.strip() for name in asked.split(",")]
    if len(names) > 2 or not all(names):
        raise ModelError(f"LABKIT_MODEL is {asked!r}: expected one model, or target,draft.", next_step=_FORMS)
    if role == "target" or len(names) == 2:
        return _find_named(names[-1] if role == "draft" else names[0], machine)
    if names[0] in SHIPPED.values():
        return _load_shipped(SHIPPED["draft"], machine)
    if names[0].startswith("random:"):  # a sixth of the layers, the same vocabulary
        model = _find_named(names[0], machine)
        config = model.config | {"num_hidden_layers": max(1, model.config["num_hidden_layers"] // 6)}
        config.pop("layer_types", None)
        return estimate_model(f"{model.name}-draft", "random", model.path_or_id, config, machine=machine)
    raise ModelError(
        f"LABKIT_MODEL is {asked!r}, which names a target and no draft.",
        next_step=f"add a draft that has the same tokenizer after a comma: LABKIT_MODEL={asked},<draft>.",
    )


def _find_named(name: str, machine: Machine) -> Model:
    if name.startswith("random:"):
        return _find_random(name, machine)
    if name in SHIPPED.values():
        return _load_shipped(name, machine)
    if (folder := _find_path(name)) and folder.is_dir():
        return load_description(folder.resolve(), source="local", machine=machine)
    for row, model in load_reference_models():
        if name in (row["name"], row["hub_id"]):
            if model.dtype not in BYTES_PER_VALUE:  # packed: it is what its checkpoint says
                return model
            return estimate_model(model.name, "hub", model.path_or_id, model.config, machine=machine)
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        return _find_on_hub(name, machine)
    raise ModelError(f"there is no model or folder {name!r}.", next_step=_FORMS)


def _find_random(name: str, machine: Machine) -> Model:
    shape = name.removeprefix("random:")
    if shape in RANDOM_SHAPES:
        return estimate_model(name, "random", name, dict(RANDOM_SHAPES[shape]), machine=machine)
    path = _find_path(shape)
    path = path / "config.json" if path and path.is_dir() else path
    if not path or not path.is_file():
        step = f"use random:<path of a config.json>, or one of {', '.join(RANDOM_SHAPES)}."
        raise ModelError(f"there is no shape or file {shape!r}.", next_step=step)
    label = path.resolve().parent.name if path.name == "config.json" else path.stem
    config = load_config(path)
    config.pop("quantization_config", None)  # random weights are plain ones of that shape
    return estimate_model(f"random:{label}", "random", str(path.resolve()), config, machine=machine)


def _find_path(text: str) -> Path | None:
    """Return the path, whether or not something is there; None if it cannot be one (too long, ~ of an unknown user)."""
    try:
        path = expand_path(text)
        path.exists()
    except (OSError, ValueError):
        return None
    return path


def _find_on_hub(name: str, machine: Machine) -> Model:
    """Ask the Hub (or its local cache) for the configuration only: a few kilobytes."""

    def fetch() -> dict:
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(name, trust_remote_code=False).to_dict()

    config = run_explained(fetch, name=name, is_hub=True)
    return estimate_model(name.rpartition("/")[2].lower(), "hub", name, config, machine=machine)
