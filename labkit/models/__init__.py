"""Which model fits here? The models of each tier, with their bytes computed before anything is downloaded.

`find_model` answers without torch, `load_model` loads. `LABKIT_MODEL` replaces the tier's own model. It is one of

    python-11m                   a model that the repository ships (data/models/)
    /path/to/folder              config.json, tokenizer and *.safetensors
    random:llama-140m            random weights of a known shape: right for speed, useless for quality
    random:/path/config.json     random weights of any configuration
    Qwen/Qwen3-0.6B              a model of the Hugging Face Hub

or two of them separated by a comma: target,draft. Weights are read from safetensors only, and code that comes with a
model never runs.
"""

from labkit.models.choice import find_model
from labkit.models.description import Model
from labkit.models.fit import Fit, list_models
from labkit.models.loading import load_model

__all__ = ["Fit", "Model", "find_model", "list_models", "load_model"]
