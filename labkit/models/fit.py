"""What fits on this machine? Weights and cache of every model that the course knows, and the free memory."""

import contextlib
import os
from dataclasses import dataclass

from labkit.errors import ModelError
from labkit.hardware import Machine, estimate_tier, probe_machine
from labkit.models.choice import SHIPPED, find_model, load_reference_models
from labkit.models.description import Model, choose_gpu, find_models_folder, load_description
from labkit.units import format_bytes

__all__ = ["Fit", "list_models"]

RESERVE = 0.2  # share of the memory kept for activations, the allocator and whatever else runs
ASKED = "asked for"  # in place of the tier, for a model that LABKIT_MODEL names
CONTEXT_TOKENS = 4096  # the cache that a fit must have room for: one sequence of this length


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether a model fits on this machine; `str(fit)` is one line of a table.

    Attributes:
        model: the model.
        role: "target" or "draft".
        tier: the tiers that use it, or "asked for" (LABKIT_MODEL).
        device: where it would be loaded.
        needed_bytes: weights, and the cache of one sequence of 4,096 tokens (or the model's limit).
        free_bytes: what the device has; None if unknown.
        has_room: needed_bytes <= 0.8 free_bytes.
        is_of_tier: whether the labs use it here, because of LABKIT_MODEL or of this machine's tier.
        reason: a sentence with the numbers.
    """

    model: Model
    role: str
    tier: str
    device: str
    needed_bytes: int
    free_bytes: int | None
    has_room: bool
    is_of_tier: bool
    reason: str

    def __str__(self) -> str:
        model = self.model
        return (
            f"{'*' if self.is_of_tier else ' '} {'fits' if self.has_room else 'no  '}  {self.tier:<14}  "
            f"{self.role:<12}  {model.name:<23}  {model.dtype:<8}  {format_bytes(model.weight_bytes):>8} weights, "
            f"{format_bytes(model.kv_bytes_per_token):>8} cache per token"
        )


def list_models(machine: Machine | None = None) -> tuple[Fit, ...]:
    """Return every model that the course knows, with the bytes it needs and whether they fit, before any download.

    What LABKIT_MODEL names comes first; ModelError if it names nothing. Only some labs need a draft, so a target
    without one is not an error here.
    """
    machine = machine or probe_machine()
    known, is_asked = [], bool(os.environ.get("LABKIT_MODEL", "").strip())
    if is_asked:
        known.append((find_model("target", machine=machine), "target", ASKED))
        with contextlib.suppress(ModelError):
            known.append((find_model("draft", machine=machine), "draft", ASKED))
    for role, name in SHIPPED.items():
        folder = find_models_folder() / name
        if folder.is_dir():
            known.append((load_description(folder, source="shipped", machine=machine), role, "cpu"))
    known += [(model, row["role"], row["tier"]) for row, model in load_reference_models()]
    taken = ASKED if is_asked else estimate_tier(machine)
    return tuple(_estimate_fit(*entry, machine, is_taken=taken in entry[2]) for entry in known)


def _estimate_fit(model: Model, role: str, tier: str, machine: Machine, *, is_taken: bool) -> Fit:
    name, gpu = choose_gpu(machine)
    device = "the CPU" if gpu is None else name
    free_bytes = machine.memory_free_bytes if gpu is None else gpu.memory_bytes
    context = min(CONTEXT_TOKENS, model.config.get("max_position_embeddings") or CONTEXT_TOKENS)
    needed = model.weight_bytes + context * model.kv_bytes_per_token
    has_room = free_bytes is not None and needed <= (1 - RESERVE) * free_bytes
    seen = "an unknown amount is" if free_bytes is None else f"{format_bytes(free_bytes)} are"
    reason = (
        f"{model.name} in {model.dtype} needs {format_bytes(model.weight_bytes)} for weights and "
        f"{format_bytes(needed - model.weight_bytes)} for the cache of {context:,} tokens; "
        f"{seen} {'free' if gpu is None else 'there in total'} on {device}, of which {RESERVE:.0%} stay in reserve."
    )
    if not has_room:
        reason += " Pick a smaller tier (`labkit models --fits`) or 4-bit."
    return Fit(model, role, tier, device, needed, free_bytes, has_room, is_taken, reason)
