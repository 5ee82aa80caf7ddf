"""The checks of lab 11: self time, idle share, memory that adds up, and the slow module of the learner's own profile.

The lab saves two records (lab "11"). "slow_layer": `samples` slow_self_fraction, `settings` learner, modules, calls
(labkit.profiling.puzzle.format_calls). "profile", which the milestone of lab 13 reads:

    samples   prefill_step_s, decode_step_s                     seconds of a step, without the profiler
              prefill_idle_fraction, decode_idle_fraction       share of the step in which no operator ran, per profile
              PHASE_OPERATOR_self_fraction                      share of the step, per profile: decode_mm_self_fraction
              weights_bytes, kv_cache_bytes, activations_bytes, slack_bytes, rest_bytes, used_bytes   one value each
              decode_profiled_over_plain_ratio                  what the profiler costs, per pair
              PHASE_gpu_busy_fraction                           on a GPU only: share of a step in which a kernel ran
    settings  slowest_part      {"phase": "decode", "operator", "operator_fraction", "module", "module_fraction"};
                                the module's name has * for the layer's number: all layers together
              main_memory       the largest of weights, kv_cache, activations (what the model itself needs)
              memory_fraction   its share of those three; memory_context_tokens their context
              context_tokens, num_profiles, steps_per_profile, device
"""

import random

from labkit.checks._memory_parts import KEYS, MEMORY, MEMORY_MISTAKES, make_memory_case
from labkit.checks._nesting import SELF_MISTAKES, TREES, draw_tree, find_self_times
from labkit.checks._profiles import expect_own, expect_slow_modules
from labkit.checks.cases import Case, expect_answer, expect_cases, expect_function, fail, passed
from labkit.checks.learner import LearnerFunction, tidy
from labkit.results import load_records
from labkit.views import Outcome

__all__ = ["check_1", "check_2", "check_3", "check_4"]


class _Pairs(LearnerFunction):
    """Turns the dict of an answer into sorted pairs, so that its order does not count."""

    def __call__(self, *args, **kwargs):
        got = LearnerFunction.__call__(self, *args, **kwargs)
        if not isinstance(got, dict) and got is not None:
            fail(f"{self.call}: the answer is a dict {{name: seconds}}, and this is a {type(got).__name__}.")
        return _pair(got) if isinstance(got, dict) else got


def _pair(found) -> list:
    # All times in the cases are eighths of seconds, so sums and differences are exact.
    return sorted(((tidy(name), tidy(value)) for name, value in found.items()), key=lambda pair: str(pair[0]))


def check_1(self_times) -> Outcome:
    """Self times from nested events; the oracle looks at all pairs of events."""
    expect_function(self_times, "self_times")
    function = _Pairs(self_times.function)
    mistakes = [(sentence, lambda events, wrong=wrong: _pair(wrong(events))) for sentence, wrong in SELF_MISTAKES]
    cases = [Case(_pair(find_self_times(events)), (events,), why=why) for events, why in TREES]
    draw = random.Random(111)
    cases += [Case(_pair(find_self_times(events)), (events,), why="self times add up to the time that was covered.")
              for events in (draw_tree(draw) for _ in range(30))]  # fmt: skip
    expect_cases(function, cases, mistakes)
    return passed("self times add up to the time that passed: now a share of 60 % means 60 %.")


# 11.2: intervals, window -> share of the window in which nothing ran.
_WINDOWS = [
    Case(0.5, ([(2.0, 4.0), (6.0, 9.0)], 0.0, 10.0), why="2 s before the first, 2 s between, 1 s after the last."),
    Case(0.25, ([(0.0, 4.0), (2.0, 6.0)], 0.0, 8.0), why="the two overlap: 0 to 6 is busy."),
    Case(0.5, ([(0.0, 8.0), (1.0, 2.0), (12.0, 16.0)], 0.0, 24.0),
         why="the second is inside the first; idle is 8 to 12, 16 to 24."),
    Case(0.375, ([(6.0, 8.0), (1.0, 4.0)], 0.0, 8.0), why="intervals may stand in any order."),
    Case(0.75, ([(0.0, 3.0), (9.0, 12.0)], 2.0, 10.0),
         why="only what lies inside the window counts: 3 to 9 is idle, 6 of 8 s."),
    Case(1.0, ([(0.0, 2.0), (20.0, 30.0)], 4.0, 8.0), why="both lie outside of the window: all of it is idle."),
    Case(1.0, ([], 3.0, 7.0), why="nothing ran: all of the window is idle."),
    Case(0.0, ([(0.0, 2.0), (2.0, 5.0)], 1.0, 4.0), why="no pause between the two, and both reach out of the window."),
    Case(0.0, ([(0.0, 2.0)] * 3, 0.0, 2.0), why="three streams at once fill the window once."),
]  # fmt: skip


def _idle(intervals, start_s, end_s, *, clip=True, order=sorted, reach=max, lead=True, tail=True):
    """Answer 11.2 by walking over the intervals; wrongly when a part is given."""
    items = [(max(a, start_s), min(b, end_s)) if clip else (a, b) for a, b in intervals]
    items = [(a, b) for a, b in items if b > a]
    idle_s, reached_s, is_first = 0.0, start_s, True
    for a, b in order(items):
        if lead or not is_first:
            idle_s += max(0.0, a - reached_s)
        reached_s, is_first = reach(reached_s, b) if not is_first or lead else b, False
    if tail or not items:
        idle_s += max(0.0, end_s - reached_s)
    return idle_s / (end_s - start_s)


def _walk(intervals, start_s, end_s, *, reach):
    """Answer 11.2 without cutting the intervals to the window first; wrongly by the way in which it moves on."""
    idle_s, covered_s = 0.0, start_s
    for a, b in sorted(intervals):
        idle_s += max(0.0, min(a, end_s) - covered_s)
        covered_s = reach(covered_s, b)
    return (idle_s + max(0.0, end_s - covered_s)) / (end_s - start_s)


def _busy(intervals, start_s, end_s, *, clip=True):
    lengths = [min(b, end_s) - max(a, start_s) if clip else b - a for a, b in intervals]
    return sum(x for x in lengths if x > 0) / (end_s - start_s)


_IDLE_MISTAKES = (
    ("durations are added up: what overlaps counts twice, and the idle share can fall below 0.",
     lambda i, a, b: 1 - _busy(i, a, b)),
    ("durations are added up: what overlaps counts twice, and the idle share can fall below 0.",
     lambda i, a, b: 1 - _busy(i, a, b, clip=False)),
    ("durations are added up, and max(0, ...) hides it: what overlaps counts twice.",
     lambda i, a, b: max(0.0, 1 - _busy(i, a, b))),
    ("durations are added up, and max(0, ...) hides it: what overlaps counts twice.",
     lambda i, a, b: max(0.0, 1 - _busy(i, a, b, clip=False))),
    ("a gap begins where the *latest* end so far is, not where the interval before it ends: one may hold another.",
     lambda i, a, b: _idle(i, a, b, reach=lambda old, new: new)),
    ("a gap begins where the *latest* end so far is, not where the interval before it ends: one may hold another.",
     lambda i, a, b: _walk(i, a, b, reach=lambda old, new: new)),
    ("the intervals are taken in the order of the list: sort them by their start.",
     lambda i, a, b: _idle(i, a, b, order=list)),
    ("the time before the first interval is missing: it is idle, too.", lambda i, a, b: _idle(i, a, b, lead=False)),
    ("the time after the last interval is missing: it is idle, too.", lambda i, a, b: _idle(i, a, b, tail=False)),
    ("only the gaps between intervals are counted: before the first and after the last nothing runs either.",
     lambda i, a, b: _idle(i, a, b, lead=False, tail=False)),
    ("that is the busy share: 1 minus it is idle.", lambda i, a, b: 1 - _idle(i, a, b)),
    ("those are seconds: divide by the window.", lambda i, a, b: _idle(i, a, b) * (b - a)),
    ("that is in percent: a share lies between 0 and 1.", lambda i, a, b: 100 * _idle(i, a, b)),
    ("the window is divided by its end, not by its length.", lambda i, a, b: _idle(i, a, b) * (b - a) / b),
    ("intervals outside of the window are counted: cut each to the window first.",
     lambda i, a, b: _idle(i, a, b, clip=False)),
)  # fmt: skip


def check_2(idle_share) -> Outcome:
    """The idle share of a window; the oracle counts eighths of seconds one by one."""
    expect_function(idle_share, "idle_share")
    draw, cases = random.Random(112), []
    for _ in range(40):
        intervals = [(a / 8, (a + draw.randrange(1, 24)) / 8) for a in (draw.randrange(-16, 80) for _ in range(6))]
        low, high = draw.randrange(0, 16), draw.randrange(48, 72)
        free = sum(not any(a <= k / 8 < b for a, b in intervals) for k in range(low, high))
        cases.append(Case(free / (high - low), (intervals, low / 8, high / 8), why="cut to the window, sort, walk."))
    expect_cases(idle_share, _WINDOWS, _IDLE_MISTAKES)
    expect_cases(idle_share, cases, _IDLE_MISTAKES)
    return passed("gaps are found where nobody works, whoever overlaps with whom.")


class _Parts(LearnerFunction):
    """Turns the dict of an answer into the four parts in their order."""

    def __call__(self, *args, **kwargs):
        got = LearnerFunction.__call__(self, *args, **kwargs)
        expect_answer(got, self.call)
        if not isinstance(got, dict) or set(got) != set(KEYS):
            fail(f"the answer is a dict with the keys {', '.join(KEYS)}, in bytes.")
        return tuple(tidy(got[key]) for key in KEYS)


def check_3(memory_parts) -> Outcome:
    """The categories of memory, in bytes, that add up to what is reserved."""
    expect_function(memory_parts, "memory_parts")
    function = _Parts(memory_parts.function)
    expect_cases(function, MEMORY, MEMORY_MISTAKES)
    draw, cases = random.Random(113), []
    for _ in range(20):
        heads, groups, dim, layers = 2 ** draw.randrange(2, 6), 2 ** draw.randrange(0, 3), 16, draw.randrange(2, 40)
        config = {"num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": groups,
                  "hidden_size": heads * dim} | ({"head_dim": 48} if draw.random() < 0.5 else {})  # fmt: skip
        width = draw.choice((1, 2, 4))
        values = 2 * layers * groups * config.get("head_dim", dim) * width
        cases.append(make_memory_case(config, draw.randrange(10**6, 10**9), width, draw.randrange(1, 9),
                                  draw.randrange(1, 5000), draw.randrange(10**6), draw.randrange(10**6),
                                  kv_per_token=values, why="the four parts add up to what is reserved."))  # fmt: skip
    expect_cases(function, cases, MEMORY_MISTAKES)
    return passed("nothing is left over: the four parts add up to what the allocator reserved.")


def check_4(find_slow_module) -> Outcome:
    """The slow module: made-up profiles first, then the learner's own, which must be of the learner's own model."""
    expect_function(find_slow_module, "find_slow_module")
    expect_slow_modules(find_slow_module)
    own = list(load_records(lab="11", name="slow_layer"))
    if not own:
        fail("the made-up profiles are read right; now profile *your* model (the cell above), and check again.")
    name, share = expect_own(find_slow_module, own[-1])
    return passed(
        f"profile {own[-1].id}: the slowest part is {name}, because {100 * share:.0f} % of a step is its own work.",
        {"share": share},
    )
