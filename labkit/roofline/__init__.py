"""What is the ceiling? Bytes and FLOPs of a model, computed from its config.json before anything is loaded.

    parameters.py   how many parameters; bytes of a packed checkpoint and of the KV cache
    work.py         FLOPs and bytes of a prefill, a decode step or a matrix product; the shortest time that it can take
                    on a machine, which of three limits binds, and how close a measurement came

A `config` is the dict of a config.json. Letters: L layers, d hidden size, H heads, G key/value heads, D head dimension,
F feed-forward size, V vocabulary, B batch, S sequence.
"""

from labkit.roofline.parameters import estimate_kv_bytes_per_token, estimate_num_parameters, estimate_packed_bytes
from labkit.roofline.work import (
    TimeBound,
    Utilization,
    Work,
    estimate_decode_step,
    estimate_gemm,
    estimate_prefill,
    estimate_time_bound,
    estimate_utilization,
)

__all__ = [
    "TimeBound",
    "Utilization",
    "Work",
    "estimate_decode_step",
    "estimate_gemm",
    "estimate_kv_bytes_per_token",
    "estimate_num_parameters",
    "estimate_packed_bytes",
    "estimate_prefill",
    "estimate_time_bound",
    "estimate_utilization",
]
