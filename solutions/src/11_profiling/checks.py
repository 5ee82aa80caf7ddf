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

import math
import random

from labkit.checks.cases import Case, expect_answer, expect_cases, expect_function, fail, is_number, passed
from labkit.checks.learner import shorten
from labkit.checks.mistakes import find_mistake
from labkit.errors import LabkitError
from labkit.profiling import ProfilerEvent
from labkit.profiling.puzzle import estimate_plant, format_calls, load_calls, load_learner
from labkit.results import load_records, save_record
from labkit.views import Outcome

# 11.1: events (name, start, end) of one thread -> {name: self seconds}. All times in the cases are eighths of seconds, so
# sums and differences are exact.
_TREES = [
    ([("linear", 0.0, 10.0), ("matmul", 1.0, 8.0), ("mm", 2.0, 7.0), ("add", 8.0, 9.0)],
     {"linear": 2.0, "matmul": 2.0, "mm": 5.0, "add": 1.0},
     "linear holds matmul and add, matmul holds mm: 10 - 7 - 1, 7 - 5, 5 and 1."),
    ([("a", 0.0, 2.0), ("b", 2.0, 3.0), ("a", 3.0, 7.0)], {"a": 6.0, "b": 1.0},
     "nothing is inside anything: self is total, and a has two calls."),
    ([("b", 5.0, 6.0), ("a", 4.0, 8.0), ("b", 1.0, 3.0), ("a", 0.0, 3.5)], {"a": 4.5, "b": 3.0},
     "the list may be in any order."),
    ([("child", 0.0, 1.0), ("parent", 0.0, 4.0), ("last", 3.0, 4.0)], {"child": 1.0, "parent": 2.0, "last": 1.0},
     "a child may begin with its parent, or end with it: of two that begin together the longer one is the parent."),
    ([("f", 0.0, 8.0), ("f", 1.0, 6.0), ("g", 2.0, 4.0)], {"f": 6.0, "g": 2.0},
     "a call may lie in a call of its own name: 3 s + 3 s."),
    ([("a", 0.0, 16.0), ("b", 1.0, 15.0), ("c", 2.0, 14.0), ("d", 3.0, 13.0)],
     {"a": 2.0, "b": 2.0, "c": 2.0, "d": 10.0},
     "only the direct children are taken off: c is inside b, and b's time holds it already."),
    ([], {}, "no events, no times."),
]  # fmt: skip


def find_self_times(events) -> dict[str, float]:
    """Answer 11.1 by brute force: for each event, look at all pairs for what lies directly inside it."""

    def holds(a, b):
        return a is not b and a[1] <= b[1] and b[2] <= a[2] and b[2] - b[1] < a[2] - a[1]

    found: dict[str, float] = {}
    for one in events:
        inside = [e for e in events if holds(one, e)]
        direct = [e for e in inside if not any(holds(other, e) for other in inside)]
        own_s = one[2] - one[1] - sum(e[2] - e[1] for e in direct)
        found[one[0]] = found.get(one[0], 0.0) + own_s
    return found


def draw_tree(draw) -> list[tuple[str, float, float]]:
    """Random nested events with eighths of seconds, no two with the same interval, shuffled."""
    found: set = set()

    def fill(start, end, depth):
        at = start
        while at < end - 1 and draw.random() < 0.8:
            begin = draw.randrange(at, end - 1)
            stop = draw.randrange(begin + 1, end + 1)
            if (begin, stop) not in {one[1:] for one in found}:
                found.add((draw.choice("abcd"), begin, stop))
                if depth < 3 and stop - begin > 2:
                    fill(begin, stop, depth + 1)
            at = stop

    fill(0, 64, 0)
    events = [(name, begin / 8, stop / 8) for name, begin, stop in sorted(found)]
    draw.shuffle(events)
    return events


def check_1(self_times) -> Outcome:
    """Self times from nested events; the oracle looks at all pairs of events."""
    expect_function(self_times, "self_times")
    cases = [Case(expected, (events,), why=why) for events, expected, why in _TREES]
    draw = random.Random(111)
    cases += [Case(find_self_times(events), (events,), why="self times add up to the time that was covered.")
              for events in (draw_tree(draw) for _ in range(30))]  # fmt: skip
    expect_cases(self_times, cases)
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


def check_2(idle_share) -> Outcome:
    """The idle share of a window; the oracle counts eighths of seconds one by one."""
    expect_function(idle_share, "idle_share")
    expect_cases(idle_share, _WINDOWS)
    draw, cases = random.Random(112), []
    for _ in range(40):
        intervals = [(a / 8, (a + draw.randrange(1, 24)) / 8) for a in (draw.randrange(-16, 80) for _ in range(6))]
        low, high = draw.randrange(0, 16), draw.randrange(48, 72)
        free = sum(not any(a <= k / 8 < b for a, b in intervals) for k in range(low, high))
        cases.append(Case(free / (high - low), (intervals, low / 8, high / 8), why="cut to the window, sort, walk."))
    expect_cases(idle_share, cases)
    return passed("gaps are found where nothing runs, whatever overlaps with whatever.")


# 11.3: config, sizes -> the four categories.
_KEYS = ("weights", "kv_cache", "activations", "slack")
_LLAMA = {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096}
_QWEN = {"num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "hidden_size": 1024,
         "head_dim": 128}  # fmt: skip
_SMALL = {"num_hidden_layers": 6, "num_attention_heads": 6, "num_key_value_heads": 2, "hidden_size": 384}


def _make_memory_case(config, num_parameters, width, batch, context, activations, slack, *, kv_per_token, why):
    parts = (num_parameters * width, batch * context * kv_per_token, activations, slack)
    sizes = {"num_parameters": num_parameters, "bytes_per_value": width, "batch": batch, "context_tokens": context,
             "allocated_bytes": sum(parts[:3]), "reserved_bytes": sum(parts)}  # fmt: skip
    return Case(dict(zip(_KEYS, parts, strict=True)), (config,), sizes, why=why)


MEMORY = [
    _make_memory_case(_LLAMA, 8_030_261_248, 2, 1, 4096, 300_000_000, 200_000_000, kv_per_token=131_072,
                      why="Llama-3.1-8B in 16 bits keeps 131,072 bytes per token."),
    _make_memory_case(_LLAMA, 8_030_261_248, 2, 16, 1000, 900_000_000, 0, kv_per_token=131_072,
                      why="16 sequences keep 16 caches."),
    _make_memory_case(_QWEN, 596_049_920, 2, 3, 500, 70_000_000, 12_345_678, kv_per_token=114_688,
                      why="the config of Qwen3-0.6B has head_dim 128, which is not 1024 / 16: 114,688 bytes per token."),
    _make_memory_case(_QWEN, 596_049_920, 4, 1, 0, 5_000_000, 1_000_000, kv_per_token=229_376,
                      why="an empty cache holds 0 bytes."),
    _make_memory_case(_SMALL, 11_014_272, 4, 2, 256, 162_824, 4096, kv_per_token=6144,
                      why="2 · 6 layers · 2 KV heads · 64 · 4."),
]  # fmt: skip


def check_3(memory_parts) -> Outcome:
    """The categories of memory, in bytes, that add up to what is reserved."""
    expect_function(memory_parts, "memory_parts")
    got = memory_parts(*MEMORY[0].args, **MEMORY[0].kwargs)
    expect_answer(got, memory_parts.call)
    if not isinstance(got, dict) or set(got) != set(_KEYS):
        fail(f"the answer is a dict with the keys {', '.join(_KEYS)}, in bytes.")
    draw, cases = random.Random(113), []
    for _ in range(20):
        heads, groups, dim, layers = 2 ** draw.randrange(2, 6), 2 ** draw.randrange(0, 3), 16, draw.randrange(2, 40)
        config = {"num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": groups,
                  "hidden_size": heads * dim} | ({"head_dim": 48} if draw.random() < 0.5 else {})  # fmt: skip
        width = draw.choice((1, 2, 4))
        kv_per_token = 2 * layers * groups * config.get("head_dim", dim) * width
        cases.append(
            _make_memory_case(config, draw.randrange(10**6, 10**9), width, draw.randrange(1, 9),
                              draw.randrange(1, 5000), draw.randrange(10**6), draw.randrange(10**6),
                              kv_per_token=kv_per_token, why="the four parts add up to what is reserved.")
        )  # fmt: skip
    expect_cases(memory_parts, [*MEMORY, *cases])
    return passed("nothing is left over: the four parts add up to what the allocator reserved.")


# 11.4: made-up profiles, laid out from trees (name, own seconds, children): a call does its own work, then it calls.
def lay_out(*steps) -> list[ProfilerEvent]:
    """Turn one tree per step into the events of their calls, in order of their starts; a pause between steps."""
    events: list[ProfilerEvent] = []

    def call(tree, at_s, step):
        name, own_s, *children = tree
        place, end_s = len(events), at_s + own_s
        events.append(None)
        for child in children:
            end_s = call(child, end_s, step)
        events[place] = ProfilerEvent(name, at_s, end_s, "module", 0, step)
        return end_s

    at_s = 4.0
    for step, tree in enumerate(steps):
        at_s = call(tree, at_s, step) + 0.25
    return events


def _model(*, attention=(0.5, 0.5), mlp=(0.5, 0.5), own=(0.125, 0.125), head=0.75, rope=0.25, num_rope=1):
    """One step of a model of two layers: seconds of each module's own work."""
    layers = [
        (f"model.layers.{k}", 0.125, *[("model.rope", rope)] * num_rope,
         (f"model.layers.{k}.attn", own[k], (f"model.layers.{k}.attn.q_proj", attention[k])),
         (f"model.layers.{k}.mlp", 0.125, (f"model.layers.{k}.mlp.up_proj", mlp[k])))
        for k in range(2)
    ]  # fmt: skip
    return ("Model", 0.0625, ("model", 0.125, *layers), ("head", head))


# (name, profile, why the right answer is right)
PROFILES = [
    ("a slow up_proj", lay_out(*[_model(mlp=(0.5, 3.0))] * 4), "look for the largest self time."),
    ("a slow first call", lay_out(_model(attention=(64.0, 0.5), mlp=(2.0, 0.5)), *[_model(mlp=(2.0, 0.5))] * 3),
     "step 0 is the first call, the warm-up: leave it out."),
    ("a layer's own code", lay_out(*[_model(own=(0.125, 2.5), attention=(0.5, 0.875))] * 3),
     "a module with children can be slow by itself."),
    ("a slow head", lay_out(_model(mlp=(0.5, 40.0)), *[_model(head=2.5)] * 3), "the head is the slowest."),
    ("many short calls", lay_out(*[_model(rope=0.5, num_rope=4, head=head) for head in (6.0, 2.0, 2.0)]),
     "all calls of a name count together."),
    ("one hiccup", lay_out(*[_model(mlp=(1.5, 0.5))] * 3, _model(mlp=(1.5, 0.5), attention=(0.5, 3.0))),
     "one step is chance: add up all measured steps."),
]  # fmt: skip


def find_slow(calls) -> tuple[str, float]:
    """Answer 11.4 by brute force: the largest self time over all steps but the first, and its share."""
    own: dict[str, float] = {}
    for step in sorted({call.step for call in calls if call.step > 0}):
        some = [(call.name, call.start_s, call.end_s) for call in calls if call.step == step]
        for name, value in find_self_times(some).items():
            own[name] = own.get(name, 0.0) + value
    slow = max(own, key=own.get)
    return slow, own[slow] / sum(own.values())


def make_own(learner: str, *, slow_s: float = 4.0) -> dict:
    """Make up the settings of a right profile of this learner's model."""
    names = [f"model.layers.{k}.{part}" for k in range(2) for part in ("attn.q_proj", "mlp.up_proj")]
    slow, decoy = estimate_plant(names, learner=learner)

    def step(**changed):
        own = dict.fromkeys(names, 0.5) | changed
        return _model(attention=(own[names[0]], own[names[2]]), mlp=(own[names[1]], own[names[3]]))

    first = step(**{slow: slow_s, decoy: 20 * slow_s})
    return format_calls(lay_out(first, *[step(**{slow: slow_s})] * 3), learner=learner)


def save_records_4() -> None:
    """Save the record that the lab's cell above exercise 11.4 saves, made up: for tests and mutants."""
    save_record("11", "slow_layer", samples={"step_s": [0.5, 0.1]}, settings=make_own(load_learner("11")))


def check_4(find_slow_module) -> Outcome:
    """The slow module: made-up profiles first, then the learner's own, which must be of the learner's own model."""
    expect_function(find_slow_module, "find_slow_module")
    _expect_made_up(find_slow_module)
    own = list(load_records(lab="11", name="slow_layer"))
    if not own:
        fail("the made-up profiles are read right; now profile *your* model (the cell above), and check again.")
    name, share = _expect_own(find_slow_module, own[-1])
    return passed(
        f"profile {own[-1].id}: the slowest part is {name}, because {100 * share:.0f} % of a step is its own work.",
        {"share": share},
    )


def _expect_made_up(function) -> None:
    """Fail unless the function names the slowest module and its share of every made-up profile."""
    profiles = [calls for _, calls, _ in PROFILES]
    answers = [_ask(function, calls, where=f"made-up profile {name!r}") for name, calls, _ in PROFILES]
    rights = [find_slow(calls) for calls in profiles]
    for (name, _, why), got, right in zip(PROFILES, answers, rights, strict=True):
        if got[0] != right[0]:
            explained = _find_mistake(function, profiles, answers, 0)
            if len({name for name, _ in answers}) == 1 and not explained:
                fail(f"{got[0]!r} comes out for every profile, and they differ: that is a guess. "
                     "Compute it from `calls`.")  # fmt: skip
            fail(f"made-up profile {name!r}: got {got[0]!r}, expected {right[0]!r}: {explained or why}")
    for (name, _, _), got, right in zip(PROFILES, answers, rights, strict=True):
        if not math.isclose(got[1], right[1], rel_tol=1e-6):
            fail(f"made-up profile {name!r}: {got[0]!r} is right, its share {got[1]:.4g} is not, expected "
                 f"{right[1]:.4g}: {_explain_share(function, profiles, answers)}")  # fmt: skip


def _expect_own(function, record) -> tuple[str, float]:
    """Judge the answer for the learner's own profile; return the right one. The profile must be of *their* model."""
    learner, where = load_learner("11"), f"your profile {record.id}"
    try:
        calls = load_calls(record.settings)
    except LabkitError as error:
        fail(f"{where}: {error}")
    if record.settings.get("learner") != learner:
        fail(f"{where} shows another learner's model: run the cell that profiles yours, and check again.")
    if len({call.step for call in calls}) < 3:
        fail(f"{where} has too few steps: one first call and at least two more. Profile the model again.")
    right = find_slow(calls)
    if right[0] != estimate_plant(record.settings["modules"], learner=learner)[0]:
        fail(f"{where} does not show the slow module that your model has: was the machine very busy, or is it the "
             "profile of another model? Run the cell that profiles yours again.")  # fmt: skip
    got = _ask(function, calls, where=where)
    if got[0] != right[0]:
        named = _find_mistake(function, [calls], [got], 0)
        fail(f"{where}: {shorten(repr(got[0]), 60)} is not the slowest: "
             f"{named or 'that is a guess, no time in your profile points to it.'}")  # fmt: skip
    if not math.isclose(got[1], right[1], rel_tol=1e-3):
        fail(f"{where}: {got[0]!r} is right, its share {got[1]:.4g} is not: {_explain_share(function, [calls], [got])}")
    return right


def _ask(function, calls, *, where: str) -> tuple[str, float]:
    got = function(list(calls))
    expect_answer(got, function.call)
    got = tuple(got) if isinstance(got, list) else got
    if not isinstance(got, tuple) or len(got) != 2 or not isinstance(got[0], str):
        fail(f"{where}: return two things, the name and its share; this is {shorten(repr(got), 60)}.")
    if not is_number(got[1]):
        fail(f"{where}: the share is {shorten(repr(got[1]), 40)}, and a number was asked for.")
    return got


def _explain_share(function, profiles, answers) -> str:
    named = _find_mistake(function, profiles, answers, 1)
    return named or "its self time over the self time of all modules, both without step 0."


def _find_mistake(function, profiles, answers, place: int) -> str:
    """Return the sentence of the mistake that gives these names (place 0) or shares (place 1), or ""."""

    def explains(wrong):
        made = [wrong(list(calls))[place] for calls in profiles]
        pairs = list(zip(made, [got[place] for got in answers], strict=True))
        return all(math.isclose(x, y, rel_tol=1e-6) if place else x == y for x, y in pairs)

    return find_mistake(function.exercise, function.reference_name, explains)
