"""A test world for a stopwatch: a simulated device that takes known seconds for each call, and a count of the calls.

Because these seconds are known, the samples of a wrong stopwatch show what is wrong with it.
"""

from labkit.timing import SimulatedDevice, VirtualClock

__all__ = ["LAUNCH_S", "WAIT_S", "find_mistake", "run_world"]

# All seconds are sums of powers of two, so that floats are exact.
LAUNCH_S, WAIT_S = 0.25, 0.125  # what a launch costs, and what a synchronization itself costs


class _Named:
    """A callable with a name for messages; a copy of it is the same object, so that the guard does not split a world."""

    def __init__(self, name, function):
        self.name, self.function = name, function

    def __call__(self, *args):
        return self.function(*args)

    def __repr__(self):
        return self.name

    def __deepcopy__(self, memo):
        return self


def run_world(measure, *, works_s, left_over_s=0.0, counts=None):
    """Run a stopwatch in a new world; return its result and how often it called function, synchronize and clock.

    works_s: seconds of device work for each call, in order. left_over_s: work queued before the run.
    """
    now = VirtualClock(start_s=1000.0)
    device = SimulatedDevice(now, launch_s=LAUNCH_S, synchronize_s=WAIT_S)
    seen = {"function": 0, "synchronize": 0, "clock": 0}
    device.launch(left_over_s)

    def count(name, function):
        def call():
            seen[name] += 1
            return function()

        return _Named(name, call)

    def work():
        device.launch(works_s[min(seen["function"], len(works_s)) - 1])

    given = {"synchronize": count("synchronize", device.synchronize), "clock": count("clock", now), **(counts or {})}
    return measure(count("function", work), **given), seen


def find_mistake(answers, rights, num_warmups) -> str:
    """Return the sentence for the mistake that explains the samples of every world, or "".

    answers, rights: for each world the returned samples and the right ones; num_warmups: its number of warm-up calls.
    """
    worlds = list(zip(answers, rights, num_warmups, strict=True))
    same = [(got, right) for got, right, _ in worlds if len(got) == len(right)]
    if all(set(got) == {LAUNCH_S} for got in answers):
        return "those are the times of the launches: you read the clock before the device is done. First synchronize, then read the clock."
    if all(len(got) == len(right) + num for got, right, num in worlds):
        return "the warm-up calls are in the result: make them, but leave out their times."
    if all(got == [r for r in right if r < max(right)] for got, right, _ in worlds):
        return "the slowest sample is missing: keep every sample, because an outlier is information."
    if len(same) < len(worlds):
        return ""
    if all(sorted(got) == sorted(right) for got, right in same):
        return "the samples are in a different order: keep them in order of time, which shows drift."
    if all(got == [1e3 * r for r in right] for got, right in same):
        return "the samples are in milliseconds: return seconds."
    extra = {a - b for got, right in same for a, b in zip(got, right, strict=True)}
    if len(extra) == 1 and extra <= {WAIT_S, 2 * WAIT_S}:
        return "there is more than one synchronize between the two clock readings, and each costs time: keep one."
    if all(got[1:] == right[1:] and got[0] >= right[0] for got, right in same):
        return "the first sample contains earlier work: synchronize before you start the clock too."
    if all(a - b == WAIT_S for got, right in same for a, b in zip(got[1:], right[1:], strict=True)):
        return "the clock starts before the first synchronize, so the wait for earlier work counts: swap the two."
    if all(b - a >= r for got, right in same for a, b, r in zip(got, got[1:], right[1:], strict=False)):
        return "those are times since the beginning: read the clock again at the start of each sample."
    return ""
