"""Exercise 11.4: made-up profiles of modules, the classic wrong ways to name the slowest, and the learner's own.

A made-up profile is laid out from trees (name, own seconds, children): a call does its own work first, then calls.
"""

import math
from collections.abc import Callable, Iterator

from labkit.checks.cases import expect_answer, fail
from labkit.checks.learner import shorten, tidy
from labkit.errors import LabkitError
from labkit.profiling.events import Event
from labkit.profiling.puzzle import estimate_plant, format_calls, load_calls, load_learner

__all__ = ["PROFILES", "expect_own", "expect_slow_modules", "find_slow", "lay_out", "make_own"]


def lay_out(*steps) -> list[Event]:
    """Turn one tree per step into the events of their calls, in order of their starts; a pause between steps."""
    events: list[Event] = []

    def call(tree, at_s, step):
        name, own_s, *children = tree
        place, end_s = len(events), at_s + own_s
        events.append(None)
        for child in children:
            end_s = call(child, end_s, step)
        events[place] = Event(name, at_s, end_s, "module", 0, step)
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


def _find_own(calls) -> list[float]:
    """Self times by brute force: each call minus the calls that lie directly inside it (quadratic on purpose)."""
    own = []
    for one in calls:
        inside = [c for c in calls if c is not one and one.start_s <= c.start_s and c.end_s <= one.end_s
                  and c.end_s - c.start_s < one.end_s - one.start_s]  # fmt: skip
        direct = [c for c in inside if not any(
            o is not c and o.start_s <= c.start_s and c.end_s <= o.end_s and o.end_s - o.start_s > c.end_s - c.start_s
            for o in inside)]  # fmt: skip
        own.append(one.end_s - one.start_s - sum(c.end_s - c.start_s for c in direct))
    return own


def _add_up(calls, values) -> dict[str, float]:
    found: dict[str, float] = {}
    for call, value in zip(calls, values, strict=True):
        found[call.name] = found.get(call.name, 0.0) + value
    return found


def find_slow(calls) -> tuple[str, float]:
    """Answer 11.4: the name with the largest self time over all steps but the first, and its share."""
    own = _own_by_step(calls)
    slow = max(own, key=own.get)
    return slow, own[slow] / sum(own.values())


def _own_by_step(calls, *, steps: Callable[[int], bool] = lambda step: step > 0) -> dict[str, float]:
    whole: dict[str, float] = {}
    for step in sorted({call.step for call in calls if steps(call.step)}):
        some = [call for call in calls if call.step == step]
        for name, value in _add_up(some, _find_own(some)).items():
            whole[name] = whole.get(name, 0.0) + value
    return whole


def _totals(calls) -> dict[str, float]:
    measured = [call for call in calls if call.step > 0]
    return _add_up(measured, [call.duration_s for call in measured])


def _list_mistakes(calls) -> Iterator[tuple[str, str]]:
    """Yield (sentence, name that this mistake gives) for one profile."""
    totals, last = _totals(calls), max(call.step for call in calls)
    sums = _own_by_step(calls)
    leaves = {name: value for name, value in totals.items() if math.isclose(value, sums[name], rel_tol=1e-6)}
    layers = {name: value for name, value in totals.items() if name.count(".") == 2}
    every, first = _own_by_step(calls, steps=lambda step: True), _own_by_step(calls, steps=lambda step: step == 0)
    measured = [call for call in calls if call.step > 0]
    own = [value for step in range(1, last + 1) for value in _find_own([c for c in measured if c.step == step])]
    ordered = [c for step in range(1, last + 1) for c in measured if c.step == step]
    counts = {name: sum(c.name == name for c in ordered) for name in totals}
    total = "that is the largest total time: a parent holds all that it calls. Compare self times."
    yield total, max(totals, key=totals.get)
    if layers:
        yield total, max(layers, key=layers.get)
    yield (
        "the first call is in it: step 0 is the warm-up, and what is slow only then is not slow.",
        max(every, key=every.get),
    )
    yield "only the first call is judged: step 0 is the warm-up, leave it out.", max(first, key=first.get)
    yield ("only the innermost modules are compared: one with children can do slow work of its own.",
           max(leaves, key=leaves.get))  # fmt: skip
    yield (
        "that is per call: a short call that comes often counts with all its calls.",
        max(sums, key=lambda name: sums[name] / counts[name]),
    )
    yield (
        "that is the longest single call: one hiccup decides it. Add up all measured steps.",
        ordered[own.index(max(own))].name,
    )
    for step in (1, last):
        alone = _own_by_step(calls, steps=lambda one, step=step: one == step)
        yield "only one step is judged: one hiccup decides it. Add up all measured steps.", max(alone, key=alone.get)


def expect_slow_modules(function) -> None:
    """Fail unless the function names the slowest module and its share of every made-up profile."""
    answers = [_ask(function, calls, where=f"made-up profile {name!r}") for name, calls, _ in PROFILES]
    rights = [find_slow(calls) for _, calls, _ in PROFILES]
    if len({name for name, _ in answers}) == 1 and not _explain_names(answers):
        fail(
            f"{answers[0][0]!r} comes out for every profile, and they differ: that is a guess. Compute it from `calls`."
        )
    wrong = [k for k, (got, right) in enumerate(zip(answers, rights, strict=True)) if got[0] != right[0]]
    if wrong:
        name, calls, why = PROFILES[wrong[0]]
        fail(f"made-up profile {name!r}: got {answers[wrong[0]][0]!r}, expected {rights[wrong[0]][0]!r}: "
             f"{_explain_names(answers) or why}")  # fmt: skip
    for (name, calls, _), got, right in zip(PROFILES, answers, rights, strict=True):
        if not math.isclose(got[1], right[1], rel_tol=1e-6):
            fail(f"made-up profile {name!r}: {got[0]!r} is right, its share {got[1]:.4g} is not, expected "
                 f"{right[1]:.4g}: {_explain_share(got[1], calls)}")  # fmt: skip


def _explain_names(answers) -> str:
    """Return the sentence of the mistake that gives exactly these names, or "" where none does."""
    tables = [list(_list_mistakes(calls)) for _, calls, _ in PROFILES]
    for position, (sentence, _) in enumerate(tables[0]):
        if all(table[position][1] == got[0] for table, got in zip(tables, answers, strict=True)):
            return sentence
    return ""


def _explain_share(share: float, calls) -> str:
    own, totals = _own_by_step(calls), _totals(calls)
    name = max(own, key=own.get)
    every, num_steps = _own_by_step(calls, steps=lambda step: True), max(call.step for call in calls)
    reasons = (
        (own[name] / sum(totals.values()),
         "total times add up to more than the time that passed: divide by the sum of self times."),
        (totals[name] / sum(own.values()), "that is the share of its total time: take its self time."),
        (totals[name] / sum(totals.values()), "those are total times: take self times for both."),
        (100 * own[name] / sum(own.values()), "that is in percent: a share lies between 0 and 1."),
        (own[name], "those are seconds: divide by the self time of all modules."),
        (own[name] / num_steps, "those are seconds per step: divide by the self time of all modules."),
        (own[name] / sum(every.values()), "the first step is in the sum below: leave it out in both."),
        (every[name] / sum(every.values()), "the first step is still in the share: leave it out."),
        (own[name] / (sum(own.values()) / num_steps), "self time of all steps over the time of one step."),
    )  # fmt: skip
    for step in range(1, num_steps + 1):
        alone = _own_by_step(calls, steps=lambda one, step=step: one == step)
        reasons += ((alone[name] / sum(alone.values()), "that is the share in one step: add up all measured steps."),)
    for value, sentence in reasons:
        if math.isclose(share, value, rel_tol=1e-6):
            return sentence
    return "its self time over the self time of all modules, both without step 0."


def _ask(function, calls, *, where: str) -> tuple[str, float]:
    got = function(list(calls))
    expect_answer(got, function.call)
    got = tuple(tidy(item) for item in got) if isinstance(got, tuple | list) else got
    if not isinstance(got, tuple) or len(got) != 2 or not isinstance(got[0], str):
        fail(f"{where}: return two things, the name and its share; this is {shorten(repr(got), 60)}.")
    if not isinstance(got[1], int | float) or isinstance(got[1], bool):
        fail(f"{where}: the share is {shorten(repr(got[1]), 40)}, and a number was asked for.")
    return got


def expect_own(function, record) -> tuple[str, float]:
    """Judge the answer for the learner's own profile; return the right one. The profile must be of *their* model."""
    learner, where = load_learner(), f"your profile {record.id}"
    try:
        calls = load_calls(record.settings)
    except LabkitError as error:
        fail(f"{where}: {error}")
    if record.settings.get("learner") != learner:
        fail(
            f"the profile {record.id} shows another learner's model: run the cell that profiles yours, and check again."
        )
    if len({call.step for call in calls}) < 3:
        fail(f"{where} has too few steps: one first call and at least two more. Profile the model again.")
    right = find_slow(calls)
    if right[0] != estimate_plant(record.settings["modules"], learner=learner)[0]:
        fail(f"{where} does not show the slow module that your model has: was the machine very busy, or is it the "
             "profile of another model? Run the cell that profiles yours again.")  # fmt: skip
    got = _ask(function, calls, where=where)
    if got[0] != right[0]:
        named = [sentence for sentence, name in _list_mistakes(calls) if name == got[0]]
        fail(f"{where}: {shorten(repr(got[0]), 60)} is not the slowest: "
             f"{named[0] if named else 'that is a guess, no time in your profile points to it.'}")  # fmt: skip
    if not math.isclose(got[1], right[1], rel_tol=1e-3):
        fail(f"{where}: {got[0]!r} is right, its share {got[1]:.4g} is not: {_explain_share(got[1], calls)}")
    return right


def make_own(learner: str, *, slow_s: float = 4.0) -> dict:
    """Make up the settings of a right profile of this learner's model: for tests, and for the mutants of 11.4."""
    names = [f"model.layers.{k}.{part}" for k in range(2) for part in ("attn.q_proj", "mlp.up_proj")]
    slow, decoy = estimate_plant(names, learner=learner)

    def step(**changed):
        own = dict.fromkeys(names, 0.5) | changed
        return _model(attention=(own[names[0]], own[names[2]]), mlp=(own[names[1]], own[names[3]]))

    first = step(**{slow: slow_s, decoy: 20 * slow_s})
    return format_calls(lay_out(first, *[step(**{slow: slow_s})] * 3), learner=learner)
