"""What is the ceiling? Bytes and FLOPs of a model, computed from its config.json before anything is loaded.

    parameters.py   how many parameters, and how many of them a token uses; bytes of weights and of the KV cache
    work.py         FLOPs and bytes of a prefill, of a decode step, and of one matrix product
    ceiling.py      the shortest time that this work can take on a machine, and which of three limits sets it

A `config` is the dict of a config.json. Letters: L layers, d hidden size, H heads, G key/value heads, D head dimension,
F feed-forward size, V vocabulary, B batch, S sequence.
"""

from labkit.roofline.ceiling import estimate_ceiling
from labkit.roofline.parameters import estimate_kv_bytes_per_token, estimate_num_parameters, estimate_weight_bytes
from labkit.roofline.work import estimate_decode_step, estimate_gemm, estimate_prefill

__all__ = [
    "estimate_ceiling",
    "estimate_decode_step",
    "estimate_gemm",
    "estimate_kv_bytes_per_token",
    "estimate_num_parameters",
    "estimate_prefill",
    "estimate_weight_bytes",
]
