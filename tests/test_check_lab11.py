"""Lab 11's checks: the solution passes, the stub is "not attempted", and each named mistake has its own sentence."""

import random

import pytest
from check_bench import UNTOUCHED, Bench, expect_failure, expect_pass

from labkit.checks import _memory_parts, _nesting, _profiles, lab11
from labkit.profiling import measure_table
from labkit.profiling.events import ProfilerEvent, measure_self_times
from labkit.profiling.puzzle import estimate_plant, format_calls, load_calls, load_learner
from labkit.results import save_record

FUNCTIONS = {"11.1": "self_times", "11.2": "idle_share", "11.3": "memory_parts", "11.4": "find_slow_module"}
BENCH = Bench(lab11, FUNCTIONS, {"measure_table": measure_table})
judge, judge_source, solve = BENCH.judge, BENCH.judge_source, BENCH.solve


def save_own(settings=None):
    settings = settings or _profiles.make_own(load_learner("11"))
    return save_record("11", "slow_layer", samples={"step_s": [0.5, 0.1]}, settings=settings)


@pytest.mark.parametrize("exercise", FUNCTIONS)
def test_the_reference_solution_passes(exercise):
    save_own()
    expect_pass(judge(exercise, solve(exercise)))


@pytest.mark.parametrize("body", UNTOUCHED)
@pytest.mark.parametrize("exercise", FUNCTIONS)
def test_an_untouched_stub_is_not_attempted(exercise, body):
    assert BENCH.judge_stub(exercise, body).status == "not attempted"


def test_answers_of_nothing_but_none_are_not_attempted():
    keys = "('weights', 'kv_cache', 'activations', 'slack')"
    assert judge_source("11.3", f"def f(config, **k): return dict.fromkeys({keys})").status == "not attempted"
    assert judge_source("11.4", "def f(calls): return None, None").status == "not attempted"


# 11.1

SELF = """
def f(events):
    own, running = {{}}, []
    for name, start_s, end_s in {order}:
        while running and running[-1][1] {ended} start_s:
            running.pop()
        {add}
        {take}
        running.append((name, end_s))
    return {out}
"""
RIGHT_SELF = {
    "order": "sorted(events, key=lambda e: (e[1], -e[2]))",
    "ended": "<=",
    "add": "own[name] = own.get(name, 0.0) + end_s - start_s",
    "take": "if running: own[running[-1][0]] -= end_s - start_s",
    "out": "own",
}
WRONG_SELFS = [
    ({"take": "pass"}, "those are total times"),
    ({"take": "for parent, _ in running: own[parent] -= end_s - start_s"}, "grandchildren too"),
    ({"order": "events"}, "in the order of the list"),
    ({"order": "sorted(events, key=lambda e: e[1:])"}, "the longer one is the parent"),
    ({"order": "sorted(events, key=lambda e: e[1])"}, "expected"),
    ({"ended": "<"}, "expected"),
    ({"add": "own[name] = end_s - start_s"}, "expected"),
    ({"out": "{n: v / sum(own.values()) for n, v in own.items()}"}, "those are shares"),
    ({"out": "{n: 100 * v / sum(own.values()) for n, v in own.items()}"}, "those are percent"),
    ({"out": "{n: 1e3 * v for n, v in own.items()}"}, "milliseconds"),
    ({"out": "{n: v / sum(e[0] == n for e in events) for n, v in own.items()}"}, "the mean of a name's calls"),
    ({"out": "sorted(own.items())"}, "the answer is a dict"),
    ({"out": "{n: max(v, 0.25) for n, v in own.items()}"}, "expected"),
]


@pytest.mark.parametrize(("parts", "phrase"), WRONG_SELFS)
def test_wrong_self_times_have_their_own_sentence(parts, phrase):
    expect_failure(judge_source("11.1", SELF.format(**RIGHT_SELF | parts)), phrase)


@pytest.mark.parametrize("source", [
    # keeps the last call of a name only
    "def f(events):\n    t = measure(events)\n    return {e[0]: v for e, v in zip(events, t)}",
])  # fmt: skip
def test_only_one_call_of_each_name_is_named(source):
    def measure(events):
        return measure_self_times([ProfilerEvent(*event) for event in events])

    names = {"measure": measure}
    exec(source, names)
    expect_failure(judge("11.1", names["f"]), "only one call of each name")


def test_another_way_to_the_same_self_times_passes():
    def count(events):
        found = {}
        for k in range(80 * 8):  # the innermost event of every eighth of a second, at its middle
            at_s = (k + 0.5) / 8
            inside = [e for e in events if e[1] <= at_s < e[2]]
            if inside:
                name = min(inside, key=lambda e: e[2] - e[1])[0]
                found[name] = found.get(name, 0.0) + 0.125
        return found | {e[0]: found.get(e[0], 0.0) for e in events}

    assert judge("11.1", count).status == "passed"


def test_the_oracle_of_self_times_agrees_with_the_profiling_room():
    draw = random.Random(0)
    for _ in range(50):
        events = _nesting.draw_tree(draw)
        own = {}
        for (name, *_), value in zip(events, measure_self_times([ProfilerEvent(*e) for e in events]), strict=True):
            own[name] = own.get(name, 0.0) + value
        assert own == pytest.approx(_nesting.find_self_times(events))
    assert any(len(_nesting.draw_tree(draw)) > 10 for _ in range(20)), "trees of some size"


# 11.2

IDLE = """
def f(intervals, start_s, end_s):
    idle_s, covered_s = 0.0, {begin}
    for begin_s, stop_s in {order}:
        idle_s += max(0.0, {reach} - covered_s)
        covered_s = {covered}
    idle_s += {tail}
    return {out}
"""
RIGHT_IDLE = {
    "begin": "start_s",
    "order": "sorted(intervals)",
    "reach": "min(begin_s, end_s)",
    "covered": "max(covered_s, stop_s)",
    "tail": "max(0.0, end_s - covered_s)",
    "out": "idle_s / (end_s - start_s)",
}
WRONG_IDLES = [
    ({"covered": "stop_s"}, "the *latest* end so far"),
    ({"order": "intervals"}, "in the order of the list"),
    ({"begin": "min(intervals, default=(start_s,))[0]"}, "expected"),
    ({"tail": "0.0 if intervals else end_s - start_s"}, "after the last"),
    ({"tail": "0.0"}, "expected"),
    ({"reach": "begin_s"}, "expected"),
    ({"out": "1 - idle_s / (end_s - start_s)"}, "busy share"),
    ({"out": "idle_s"}, "those are seconds"),
    ({"out": "100 * idle_s / (end_s - start_s)"}, "in percent"),
    ({"out": "idle_s / end_s"}, "not by its length"),
    ({"out": "1 - sum(b - a for a, b in intervals) / (end_s - start_s)"}, "durations are added up"),
    ({"out": "max(0.0, 1 - sum(b - a for a, b in intervals) / (end_s - start_s))"}, "max(0, ...) hides it"),
    ({"out": "1 - sum(max(0, min(b, end_s) - max(a, start_s)) for a, b in intervals) / (end_s - start_s)"},
     "durations are added up"),
    ({"out": "min(0.5, idle_s / (end_s - start_s))"}, "expected"),
]  # fmt: skip


@pytest.mark.parametrize(("parts", "phrase"), WRONG_IDLES)
def test_wrong_idle_shares_have_their_own_sentence(parts, phrase):
    expect_failure(judge_source("11.2", IDLE.format(**RIGHT_IDLE | parts)), phrase)


def test_sorting_the_callers_list_in_place_is_told():
    source = IDLE.format(**RIGHT_IDLE).replace(
        "    idle_s, covered_s", "    intervals.sort()\n    idle_s, covered_s", 1
    )
    expect_failure(judge_source("11.2", source), "changes its arguments")


# 11.3

MEMORY = """
def f(config, *, num_parameters, bytes_per_value, batch, context_tokens, allocated_bytes, reserved_bytes):
    D = {dim}
    weights = num_parameters * {width}
    kv = {both} * config["num_hidden_layers"] * config["{heads}"] * D * {width} * {many}
    return {{"weights": weights, "kv_cache": kv, "activations": {activations}, "slack": {slack}}}
"""
RIGHT_MEMORY = {
    "dim": "config.get('head_dim') or config['hidden_size'] // config['num_attention_heads']",
    "width": "bytes_per_value",
    "both": "2",
    "heads": "num_key_value_heads",
    "many": "batch * context_tokens",
    "activations": "allocated_bytes - weights - kv",
    "slack": "reserved_bytes - allocated_bytes",
}
WRONG_MEMORIES = [
    ({"both": "1"}, "keys AND values"),
    ({"heads": "num_attention_heads"}, "only the KV heads"),
    ({"dim": "config['hidden_size'] // config['num_attention_heads']"}, "need not be hidden / heads"),
    ({"many": "context_tokens"}, "a cache of its own"),
    ({"many": "1 * batch"}, "the cache of one token"),
    ({"width": "1"}, "numbers of values"),
    ({"activations": "reserved_bytes - weights - kv"}, "slack is counted as activations"),
    ({"slack": "reserved_bytes"}, "what is reserved and not allocated"),
    ({"slack": "allocated_bytes - reserved_bytes"}, "its negative"),
    ({"activations": "allocated_bytes"}, "still hold weights and cache"),
    ({"activations": "allocated_bytes - weights"}, "still hold the cache"),
    ({"dim": "128"}, "expected"),
    ({"width": "2"}, "expected"),
]


@pytest.mark.parametrize(("parts", "phrase"), WRONG_MEMORIES)
def test_wrong_memory_has_its_own_sentence(parts, phrase):
    expect_failure(judge_source("11.3", MEMORY.format(**RIGHT_MEMORY | parts)), phrase)


def test_an_answer_in_other_units_or_with_other_keys_is_told():
    source = MEMORY.format(**RIGHT_MEMORY)
    in_mib = source.replace("    return {", "    parts = {") + "    return {k: v / 2**20 for k, v in parts.items()}\n"
    expect_failure(judge_source("11.3", in_mib), "those are MiB")
    expect_failure(judge_source("11.3", source.replace('"slack"', '"rest"')), "a dict with the keys")


def test_every_case_of_memory_adds_up_and_equals_the_course_formula():
    from labkit.roofline import estimate_kv_bytes_per_token

    for case in _memory_parts.MEMORY:
        (config,), sizes = case.args, case.kwargs
        assert sum(case.expected) == sizes["reserved_bytes"]
        per_token = estimate_kv_bytes_per_token(config, bytes_per_value=sizes["bytes_per_value"])
        assert case.expected[1] == per_token * sizes["batch"] * sizes["context_tokens"]


# 11.4

SLOW = """
def f(calls):
    rows = measure_table([c for c in calls if {steps}])
    slow = max(rows, key=lambda row: {key})
    return slow.name, {share}
"""
RIGHT_SLOW = {"steps": "c.step > 0", "key": "row.self_s", "share": "slow.self_s / sum(row.self_s for row in rows)"}
WRONG_SLOWS = [
    ({"key": "row.total_s"}, "largest total time"),
    ({"steps": "True"}, "step 0 is the warm-up"),
    ({"steps": "c.step == 0"}, "only the first call is judged"),
    ({"key": "row.self_s / row.num_calls"}, "that is per call"),
    ({"steps": "c.step == max(d.step for d in calls)"}, "only one step is judged"),
    ({"steps": "c.step == 1"}, "the share in one step"),
    ({"key": "row.total_s if '_proj' in row.name or row.name in ('head', 'model.rope') else 0"}, "work of its own"),
    ({"share": "slow.self_s / sum(row.total_s for row in rows)"}, "more than the time that passed"),
    ({"share": "slow.total_s / sum(row.self_s for row in rows)"}, "expected"),
    ({"share": "100 * slow.self_s / sum(row.self_s for row in rows)"}, "in percent"),
    ({"share": "slow.self_s"}, "those are seconds"),
    ({"share": "str(slow.self_s)"}, "a number was asked for"),
    ({"share": "slow.self_s, 3"}, "return two things"),
]


@pytest.mark.parametrize(("parts", "phrase"), WRONG_SLOWS)
def test_wrong_ways_to_the_slow_module_have_their_own_sentence(parts, phrase):
    save_own()
    expect_failure(judge_source("11.4", SLOW.format(**RIGHT_SLOW | parts)), phrase)


def test_the_longest_single_call_and_the_layer_are_named():
    save_own()
    longest = """
def f(calls):
    calls = [c for c in calls if c.step > 0]
    own = measure(calls)
    k = own.index(max(own))
    return calls[k].name, own[k] / sum(own)
"""
    names = {"measure": measure_self_times}
    exec(longest, names)
    expect_failure(judge("11.4", names["f"]), "longest single call")
    layer = SLOW.format(**RIGHT_SLOW | {"key": "row.total_s * (row.name.count('.') == 2)"})
    expect_failure(judge_source("11.4", layer), "a parent holds all")


@pytest.mark.parametrize("answer", ["'model.layers.1.mlp.up_proj', 0.5", "calls[1].name, 1.0", "calls[-1].name, 0.3"])
def test_a_guess_is_told_that_it_is_one(answer):
    save_own()
    expect_failure(judge_source("11.4", f"def f(calls): return {answer}"), "that is a guess")


def test_without_an_own_profile_there_is_no_pass():
    expect_failure(judge("11.4", solve("11.4")), "now profile *your* model")


def test_another_learners_profile_is_refused():
    save_own(_profiles.make_own("0000-1111-2222"))
    expect_failure(judge("11.4", solve("11.4")), "shows another learner's model")


def test_another_learners_profile_under_the_own_name_is_refused_too():
    learner = load_learner("11")
    mine = estimate_plant(_profiles.make_own(learner)["modules"], learner=learner)[0]
    others = (_profiles.make_own(f"someone {k}") for k in range(50))
    other = next(one for one in others if _profiles.find_slow(load_calls(one))[0] != mine)
    save_own(other | {"learner": learner})
    expect_failure(judge("11.4", solve("11.4")), "does not show the slow module that your model has")


def test_an_answer_made_for_the_made_up_profiles_fails_on_the_own_one():
    save_own()
    known = {len(calls): _profiles.find_slow(calls) for _, calls, _ in _profiles.PROFILES}
    right = {
        tuple((c.name, c.start_s) for c in calls): _profiles.find_slow(calls) for _, calls, _ in _profiles.PROFILES
    }
    assert known

    def cheat(calls):
        return right.get(tuple((c.name, c.start_s) for c in calls), ("model.layers.0", 0.5))

    expect_failure(judge("11.4", cheat), "is not the slowest")


def test_a_record_without_calls_or_with_too_few_steps_is_told():
    save_own({"learner": load_learner("11")})
    expect_failure(judge("11.4", solve("11.4")), "holds no calls of modules")
    calls = [call for call in load_calls(_profiles.make_own(load_learner("11"))) if call.step < 2]
    save_own(format_calls(calls, learner=load_learner("11")))
    expect_failure(judge("11.4", solve("11.4")), "too few steps")


def test_the_pass_says_the_sentence_with_the_own_number():
    record = save_own()
    outcome = judge("11.4", solve("11.4"))
    slow = estimate_plant(record.settings["modules"], learner=load_learner("11"))[0]
    assert f"the slowest part is {slow}, because" in outcome.sentence
    assert outcome.measurement["share"] == pytest.approx(_profiles.find_slow(load_calls(record.settings))[1])


def test_the_brute_force_of_the_check_agrees_with_the_profiling_room():
    for _, calls, _ in _profiles.PROFILES:
        rows = measure_table([call for call in calls if call.step > 0])
        name, share = _profiles.find_slow(calls)
        assert name == rows[0].name
        assert share == pytest.approx(rows[0].self_s / sum(row.self_s for row in rows))
        assert rows[0].self_s > 1.05 * rows[1].self_s, "no close call"


def test_every_mistake_gives_another_name_somewhere():
    tables = [[name for _, name in _profiles._list_mistakes(calls)] for _, calls, _ in _profiles.PROFILES]
    rights = [_profiles.find_slow(calls)[0] for _, calls, _ in _profiles.PROFILES]
    for position in range(min(map(len, tables))):
        is_first_step = position == len(tables[0]) - 2  # caught by its share
        assert is_first_step or any(table[position] != right for table, right in zip(tables, rights, strict=True))
