"""A model with one slow module, a different one for each learner. Do not read on before you have found yours.

Which module is slow follows from the first event in the learner's progress log, so it stays the same when the kernel
restarts and differs between learners. Outputs do not change, because the extra work is not used. A second module does
extra work in its very first call only, like lazy initialization in real systems.
"""

import hashlib
import re
import time
from collections.abc import Iterable, Mapping, Sequence

from labkit.errors import LabkitError
from labkit.profiling.events import ProfilerEvent
from labkit.progress import append_event, load_events
from labkit.timing import synchronize

__all__ = ["Puzzle", "estimate_plant", "format_calls", "load_calls", "load_learner", "load_puzzle"]

_EXTRA = 1.5  # extra time of the slow module over the time of one step: many times a whole layer
_LEAST_S, _MOST_S = 0.005, 0.1  # more than the noise of a busy machine, but not a test of patience
_FIRST = 20  # extra time of the decoy's first call over that of one slow call
_SIZE = 128
_QUIET = re.compile(r"norm|act|rotary|dropout|emb", re.IGNORECASE)


def load_learner(lab: str) -> str:
    """Return a short identifier of this learner in this lab, derived from the oldest event of the progress log."""
    events = list(load_events()) or [append_event("setup", lab=lab)]
    first = min(events, key=lambda event: (event["time"], event["id"]))
    digits = hashlib.sha256(f"lab {lab}: {first['id']}".encode()).hexdigest()[:12]
    return "-".join(digits[k : k + 4] for k in (0, 4, 8))


def estimate_plant(names: Iterable[str], *, learner: str) -> tuple[str, str]:
    """Return (slow module, decoy) of a learner, given the names of all modules that ran, in any order."""
    every = sorted(set(names))
    leaves = [
        name
        for name in every
        if re.search(r"\.\d+\.", name) and not _QUIET.search(name) and not any(n.startswith(f"{name}.") for n in every)
    ]
    if len(leaves) < 2:
        raise LabkitError(f"{len(leaves)} modules in layers are too few to hide one.", next_step="use a decoder model.")
    pick = int.from_bytes(hashlib.sha256(learner.encode()).digest()[:8], "big")
    slow = leaves.pop(pick % len(leaves))
    return slow, leaves[pick // 1009 % len(leaves)]


class Puzzle:
    """A model with one slow module, which is slow while `is_on`; `remove()` restores the model."""

    def __init__(self, model, *, learner: str, step_s: float, device: str = "cpu") -> None:
        import torch

        self.learner, self.is_on, self._device = learner, True, device
        modules = dict(model.named_modules())
        slow, decoy = estimate_plant(modules, learner=learner)
        # No random numbers: sampling with a seed must give the same tokens as without the puzzle.
        square = torch.full((_SIZE, _SIZE), 1 / _SIZE, device=device)
        self._pair, self._waste = (square, square), torch.empty_like(square)
        extra = min(max(_EXTRA * step_s, _LEAST_S), _MOST_S) / self._measure_extra()
        self._modules = (modules[slow], modules[decoy])
        self._plant(modules[slow], max(8, round(extra)), is_once=False)
        self._plant(modules[decoy], max(8, round(_FIRST * extra)), is_once=True)

    def _measure_extra(self) -> float:
        """Return the seconds of one unit of useless work: the shortest of nine, which noise disturbs least."""
        times = []
        for _ in range(9):
            begin_s = time.perf_counter()
            self._compute_waste(8)
            times.append((time.perf_counter() - begin_s) / 8)
        return min(times)

    def _compute_waste(self, count: int) -> None:
        import torch

        with torch.inference_mode(False), torch.no_grad():
            for _ in range(count):
                torch.mm(*self._pair, out=self._waste)
        synchronize(self._device)

    def _plant(self, module, count: int, *, is_once: bool) -> None:
        forward, calls = module.forward, []

        def slow_forward(*args, **kwargs):
            if self.is_on and not (is_once and calls):
                calls.append(None) if is_once else None
                self._compute_waste(count)
            return forward(*args, **kwargs)

        module.forward = slow_forward

    def to_settings(self, calls: Sequence[ProfilerEvent]) -> dict:
        """Return the calls in a profile of this model as settings of a record, with the identifier of the learner."""
        return format_calls(calls, learner=self.learner)

    def remove(self) -> None:
        """Remove the useless work."""
        for module in self._modules:
            module.__dict__.pop("forward", None)


def load_puzzle(model, function, *, lab: str, device: str = "cpu") -> Puzzle:
    """Make one module of `model` slow and return the `Puzzle`; `function()` runs one step and is timed first.

    The same `lab` and learner always give the same slow module.
    """
    times = []
    for _ in range(7):
        begin_s = time.perf_counter()
        function()
        synchronize(device)
        times.append(time.perf_counter() - begin_s)
    return Puzzle(model, learner=load_learner(lab), step_s=min(times), device=device)


def format_calls(calls: Sequence[ProfilerEvent], *, learner: str) -> dict:
    """Return calls of modules as settings of a record: the names, then [index of name, step, start_s, end_s]."""
    names = sorted({call.name for call in calls})
    rows = [[names.index(c.name), c.step, round(c.start_s, 7), round(c.end_s, 7)] for c in calls]
    return {"learner": learner, "modules": names, "calls": rows}


def load_calls(settings: Mapping) -> tuple[ProfilerEvent, ...]:
    """Read the calls from the settings of a record; LabkitError if there are none."""
    try:
        names = settings["modules"]
        return tuple(
            ProfilerEvent(names[k], start, end, "module", 0, step) for k, step, start, end in settings["calls"]
        )
    except (KeyError, IndexError, TypeError, ValueError):
        raise LabkitError("this record holds no calls of modules.", next_step="profile the model again.") from None
