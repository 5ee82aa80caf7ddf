"""A small world for a stopwatch: a simulated device that needs known seconds for each call, and a count of the calls.

The device's seconds are known, so every wrong stopwatch gives samples that tell what is wrong with it.
"""

from labkit.timing import SimulatedDevice, VirtualClock

__all__ = ["LAUNCH_S", "WAIT_S", "find_mistake", "run_world"]

# All seconds are sums of powers of two, so that floats are exact.
LAUNCH_S, WAIT_S = 0.25, 0.125  # what a launch costs, and what a synchronization costs in itself


class _Named:
    """Something to call, with a name for messages; a copy of it is itself, so that the guard does not split a world."""

    def __init__(self, name, function):
        self.name, self.function = name, function

    def __call__(self, *args):
        return self.function(*args)

    def __repr__(self):
        return self.name

    def __deepcopy__(self, memo):
        return self


def run_world(measure, *, works_s, left_over_s=0.0, counts=None):
    """Run a stopwatch in a new world; return what it returned and how often it called function, synchronize, clock.

    works_s: the seconds that the device needs for each call, in order. left_over_s: work queued before it all began.
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
    """Return the sentence of the mistake that explains the samples of every world, or "".

    answers, rights: for each world the samples that came back and those that are right; num_warmups: its warm-up calls.
    """
    worlds = list(zip(answers, rights, num_warmups, strict=True))
    same = [(got, right) for got, right, _ in worlds if len(got) == len(right)]
    if all(set(got) == {LAUNCH_S} for got in answers):
        return "those are the launches: the clock is read before the device is done. First synchronize, then read."
    if all(len(got) == len(right) + num for got, right, num in worlds):
        return "the warm-up calls are in the result: make them, and keep their times out."
    if all(got == [r for r in right if r < max(right)] for got, right, _ in worlds):
        return "the slowest sample is missing: keep every one, an outlier is news."
    if len(same) < len(worlds):
        return ""
    if all(sorted(got) == sorted(right) for got, right in same):
        return "the samples are in another order: keep the order of time, which shows drift."
    if all(got == [1e3 * r for r in right] for got, right in same):
        return "the samples are in milliseconds: everything here is in seconds."
    extra = {a - b for got, right in same for a, b in zip(got, right, strict=True)}
    if len(extra) == 1 and extra <= {WAIT_S, 2 * WAIT_S}:
        return "more than one synchronize stands between the two readings of the clock, and each costs time: keep one."
    if all(got[1:] == right[1:] and got[0] >= right[0] for got, right in same):
        return "the first sample contains earlier work: synchronize before the clock starts, too."
    if all(a - b == WAIT_S for got, right in same for a, b in zip(got[1:], right[1:], strict=True)):
        return "the clock starts before the first synchronize, so the wait for earlier work counts: change their order."
    if all(b - a >= r for got, right in same for a, b, r in zip(got, got[1:], right[1:], strict=False)):
        return "those are times since the beginning: each sample starts its own clock."
    return ""
