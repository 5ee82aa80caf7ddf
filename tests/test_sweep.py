"""A sweep: seeded rounds, a time budget, and nothing lost or measured twice, whatever ends it."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit import journal
from labkit.errors import LabkitError
from labkit.results import provenance
from labkit.sweep import close_sweep, run_sweep

ROOT = Path(__file__).resolve().parents[1]
GRID = [{"batch": 1}, {"batch": 2}, {"batch": 4}]
MACHINE = {
    "host": {"cpu": {"name": "A processor", "num_cores": 2}, "gpus": [], "memory_bytes": 1, "python": "3.11.7"},
    "tier": "cpu",
    "engines": {"labkit": "0.1.0"},
}


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine that a test can change, and that takes no time to probe."""
    made = json.loads(json.dumps(MACHINE))
    monkeypatch.setattr(provenance, "probe_provenance", lambda: made)
    return made


class Bench:
    """A measurement on its own clock: it counts its calls and returns a different number for each."""

    def __init__(self, seconds=lambda point: 1.0, *, stop_after=None):
        self.calls, self.now_s, self.seconds, self.stop_after = [], 0.0, seconds, stop_after

    def __call__(self, point):
        if self.stop_after is not None and len(self.calls) == self.stop_after:
            raise KeyboardInterrupt
        self.calls.append(tuple(point.values()))
        self.now_s += self.seconds(point)
        return {"step_s": [float(len(self.calls)), 0.5], "num_calls": [1]}

    def run(self, points=GRID, **options):
        plan = {"settings": {"steps": 8}, "num_rounds": 3, "is_quiet": True, "clock": lambda: self.now_s} | options
        return run_sweep("decode", self, points, **plan)


def journal_of(sweep):
    return [json.loads(line) for line in sweep.path.read_text().splitlines()]


# The plan


def test_every_round_visits_every_point_once_in_its_own_order():
    bench = Bench()
    sweep = bench.run(points=[{"batch": b} for b in range(8)], num_rounds=6)
    rounds = [bench.calls[k : k + 8] for k in range(0, 48, 8)]
    assert all(sorted(one) == [(b,) for b in range(8)] for one in rounds)
    assert len({tuple(one) for one in rounds}) > 3, "ascending order in every round would let drift look like a curve"
    assert sweep.is_complete and sweep.num_new == 48 and sweep.left == ()


def test_the_home_of_an_unknown_user_is_an_error_as_for_records(monkeypatch):
    monkeypatch.setenv("LABKIT_RUNS", "~nosuchuser/x")
    with pytest.raises(LabkitError, match=r"nosuchuser/x cannot be used"):
        run_sweep("s", lambda point: {"step_s": [1.0]}, [{"batch": 1}], settings={}, num_rounds=1)


def test_the_order_follows_from_the_seed(tmp_path):
    orders = []
    for number, seed in enumerate((0, 0, 1)):
        bench = Bench()
        bench.run(points=[{"batch": b} for b in range(9)], seed=seed, folder=tmp_path / str(number))
        orders.append(bench.calls)
    assert orders[0] == orders[1] != orders[2]


def test_drift_that_only_grows_does_not_correlate_with_the_point():
    bench = Bench()
    sweep = bench.run(points=[{"batch": b} for b in range(8)], num_rounds=15)
    means = [sum(r[0] for r in sweep.rounds("step_s", batch=b)) / 15 for b in range(8)]
    assert max(means) - min(means) < 0.05 * 120, "the number of the call is the drift; the points share it"


def test_samples_of_a_point_come_in_the_order_of_the_rounds():
    bench = Bench()
    sweep = bench.run()
    places = [k + 1 for k, call in enumerate(bench.calls) if call == (2,)]
    assert sweep.rounds("step_s", batch=2) == [[float(k), 0.5] for k in places]
    assert sweep.samples("step_s", batch=2) == [x for k in places for x in (float(k), 0.5)]
    with pytest.raises(LabkitError, match="no samples 'step_s' at batch 3"):
        sweep.rounds("step_s", batch=3)
    with pytest.raises(LabkitError, match="no samples 'other'"):
        sweep.rounds("other", batch=2)


@pytest.mark.parametrize("points", [[], [{}], [3], [{"batch": 1}, {"batch": 1}], [{"batch": float("nan")}],
                                    [{"batch": object()}]])  # fmt: skip
def test_invalid_points_are_refused(points):
    with pytest.raises(LabkitError, match="points of a sweep|JSON cannot"):
        Bench().run(points=points)


@pytest.mark.parametrize("given", [None, {}, {"step_s": []}, {"step_s": [float("inf")]}, {"step_s": ["x"]}, [1.0], 3])
def test_anything_but_lists_of_numbers_ends_the_run_and_is_not_stored(given):
    with pytest.raises(LabkitError, match="expected lists of finite numbers"):
        run_sweep("decode", lambda point: given, GRID, settings={"steps": 8}, is_quiet=True)
    assert Bench().run().num_new == 9


def test_settings_and_plans_that_make_no_sense_are_refused():
    with pytest.raises(LabkitError, match="settings that JSON cannot hold"):
        Bench().run(settings={"model": object()})
    with pytest.raises(LabkitError, match="no plan"):
        Bench().run(num_rounds=0)
    with pytest.raises(LabkitError, match="no plan"):
        Bench().run(budget_s=-1)


# The time budget


def test_the_budget_stops_before_a_visit_that_would_not_fit_and_names_what_is_left():
    bench = Bench(seconds=lambda point: float(point["batch"]))
    sweep = bench.run(budget_s=9.0)
    assert bench.now_s <= 9.0
    assert len(sweep.left) == 9 - sweep.num_new > 0 and not sweep.is_complete
    number, point = sweep.left[0]
    assert bench.now_s + point["batch"] > 9.0, "it stopped for a visit that would not have fitted"
    assert all(len(sweep.samples("step_s", **one)) == 2 * (3 - sum(left == one for _, left in sweep.left))
               for one in GRID if any(visit.point == one for visit in sweep.visits))  # fmt: skip
    assert bench.run().num_new == len(sweep.left)


def test_a_new_point_is_judged_by_the_longest_visit_so_far():
    bench = Bench(seconds=lambda point: 10.0 if point["batch"] == 4 else 1.0)
    seed = next(s for s in range(50) if _first(s) == 4)
    sweep = bench.run(budget_s=15.0, seed=seed)
    assert bench.calls == [(4,)], "after a visit of 10 s an unknown one does not fit into the 5 s that are left"
    assert sweep.num_new == 1


def _first(seed):
    bench = Bench(stop_after=1)
    with pytest.raises(KeyboardInterrupt):
        bench.run(seed=seed, settings={"only": seed})
    return bench.calls[0][0]


def test_the_budget_applies_to_one_call():
    bench = Bench()
    counts = [bench.run(budget_s=4.0).num_new for _ in range(3)]
    assert counts == [4, 4, 1]


# Going on


def test_a_finished_sweep_measures_nothing_again():
    bench = Bench()
    first, second = bench.run(), bench.run()
    assert (first.num_new, second.num_new) == (9, 0)
    assert second.visits == first.visits


@pytest.mark.parametrize("stop", range(9))
def test_an_interrupted_sweep_resumes_at_the_next_visit(stop):
    bench = Bench(stop_after=stop)
    with pytest.raises(KeyboardInterrupt):
        bench.run()
    before = bench.calls.copy()
    bench.stop_after = None
    sweep = bench.run()
    assert len(before) == stop and sweep.num_new == 9 - stop
    assert Counter(bench.calls) == {(1,): 3, (2,): 3, (4,): 3}
    assert sorted(visit.samples["step_s"][0] for visit in sweep.visits) == [float(k) for k in range(1, 10)]
    assert sweep.to_dict()["num_sessions"] == (2 if stop else 1)


def test_a_wider_grid_and_more_rounds_build_on_what_is_there():
    bench = Bench()
    bench.run()
    sweep = bench.run(points=[*GRID, {"batch": 8}], num_rounds=4)
    assert sweep.num_new == 16 - 9
    narrow = bench.run(points=GRID[:2])
    assert narrow.num_new == 0
    assert {visit.point["batch"] for visit in narrow.visits} == {1, 2}


def test_a_tuple_in_a_point_equals_the_list_in_the_file():
    bench = Bench()
    points = [{"lengths": (1, 2)}, {"lengths": (3, 4)}]
    bench.run(points=points)
    again = bench.run(points=points)
    assert again.num_new == 0
    assert len(again.samples("step_s", lengths=[1, 2])) == 6


def test_a_closed_sweep_starts_over_and_its_old_samples_stay_in_the_file():
    bench = Bench()
    first = bench.run()
    close_sweep(first, record="r-0123456789")
    close_sweep(first, record="r-0123456789")
    second = bench.run()
    assert (second.take, second.num_new) == (2, 9)
    assert [visit.samples["step_s"][0] for visit in second.visits] != [v.samples["step_s"][0] for v in first.visits]
    lines = journal_of(second)
    assert sum("samples" in line for line in lines) == 18
    assert [line["closed"] for line in lines if "closed" in line] == ["r-0123456789"]


@pytest.mark.parametrize("change", ["settings", "model", "model dtype", "cpu", "gpu", "tier", "version", "name"])
def test_another_setting_model_or_machine_is_another_sweep_and_never_mixed(machine, change):
    bench = Bench()
    model = {"name": "python-11m", "source": "shipped", "dtype": "float32"}
    first = bench.run(model=model)
    options = {"model": model}
    if change == "settings":
        options["settings"] = {"steps": 9}
    elif change.startswith("model"):
        options["model"] = model | ({"dtype": "float16"} if "dtype" in change else {"name": "python-2m"})
    elif change == "cpu":
        machine["host"]["cpu"]["name"] = "Another processor"
    elif change == "gpu":
        machine["host"]["gpus"] = [{"name": "A GPU"}]
    elif change == "tier":
        machine["tier"] = "hopper"
    elif change == "version":
        machine["engines"]["torch"] = "9.9"
    if change == "name":
        plan = {"settings": {"steps": 8}, "num_rounds": 3, "is_quiet": True, "model": model}
        second = run_sweep("prefill", bench, GRID, **plan)
    else:
        second = bench.run(**options)
    assert second.num_new == 9 and second.id != first.id and second.path != first.path
    second.path.write_bytes(second.path.read_bytes() + first.path.read_bytes())  # somebody concatenates the two files
    again = bench.run(**options) if change != "name" else run_sweep("prefill", bench, GRID, **plan)
    assert again.visits == second.visits


# Damage


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_file_cut_at_any_byte_loses_only_the_line_that_was_cut(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("cut")
    bench = Bench()
    whole = bench.run(folder=folder, num_rounds=2)
    content = whole.path.read_bytes()
    cut = data.draw(st.integers(0, len(content)))
    whole.path.write_bytes(content[:cut])
    kept = {}
    for line in content[:cut].decode().split("\n"):
        try:
            line = json.loads(line)
        except ValueError:
            continue
        if "samples" in line:
            kept[line["round"], line["point"]["batch"]] = line["samples"]["step_s"]
    calls = len(bench.calls)
    sweep = bench.run(folder=folder, num_rounds=2)
    assert sweep.num_new == len(bench.calls) - calls == 6 - len(kept)
    found = {(visit.round, visit.point["batch"]): visit.samples["step_s"] for visit in sweep.visits}
    assert len(found) == 6 and sweep.is_complete
    assert {key: found[key] for key in kept} == kept
    assert bench.run(folder=folder, num_rounds=2).num_new == 0


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.integers(0, 2**31))
def test_any_series_of_interruptions_ends_with_every_visit_once(tmp_path_factory, stops, seed):
    folder = tmp_path_factory.mktemp("stops")
    bench = Bench()
    for stop in stops:
        bench.stop_after = len(bench.calls) + stop
        try:
            bench.run(folder=folder, num_rounds=2, seed=seed)
        except KeyboardInterrupt:
            continue
    bench.stop_after = None
    sweep = bench.run(folder=folder, num_rounds=2, seed=seed)
    assert Counter(bench.calls) == {(1,): 2, (2,): 2, (4,): 2}
    assert sorted(visit.samples["step_s"][0] for visit in sweep.visits) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("line", ['{"sweep": 1', "[1]", "", "no json", '{"round": 0}'])
def test_foreign_lines_are_skipped(line):
    bench = Bench()
    first = bench.run()
    with open(first.path, "a") as file:
        file.write(line + "\n")
    assert bench.run().num_new == 0


@pytest.mark.parametrize("change", [{"samples": {}}, {"samples": {"step_s": ["x"]}}, {"round": "a"}, {"point": 3}])
def test_a_visit_with_an_invalid_line_is_measured_again(change):
    bench = Bench()
    first = bench.run()
    lines = first.path.read_text().splitlines()
    lines[3] = json.dumps(json.loads(lines[3]) | change)
    first.path.write_text("\n".join(lines) + "\n")
    again = bench.run()
    assert (again.num_new, again.num_damaged) == (1, 1)
    assert again.is_complete


def test_two_lines_of_one_visit_count_once_and_the_first_stays():
    bench = Bench()
    first = bench.run()
    lines = first.path.read_text().splitlines()
    doubled = json.loads(lines[2]) | {"samples": {"step_s": [99.0]}}
    first.path.write_text("\n".join([*lines, json.dumps(doubled)]) + "\n")
    assert bench.run().visits == first.visits


def test_a_full_disk_loses_only_the_visit_that_did_not_fit(monkeypatch):
    bench, write = Bench(), os.write
    left = [5]

    def limited(descriptor, data):
        left[0] -= 1
        if left[0] < 0:
            write(descriptor, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr(journal.os, "write", limited)
        with pytest.raises(LabkitError, match="the disk is full. 4 finished visits are safe"):
            bench.run()
    assert len(bench.calls) == 5
    assert bench.run().num_new == 5, "the fifth was measured, and could not be kept"


def test_a_folder_that_cannot_be_written_is_reported_before_anything_is_measured(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    bench = Bench()
    with pytest.raises(LabkitError, match="the sweep cannot be kept: .*file.* cannot be written"):
        bench.run(folder=tmp_path / "file" / "sweeps")
    assert bench.calls == []


def test_a_journal_that_cannot_be_read_is_an_error():
    first = Bench().run()
    first.path.unlink()
    first.path.mkdir()
    with pytest.raises(LabkitError, match="cannot be read"):
        Bench().run()


# Two at once


def test_a_second_runner_is_refused_while_the_first_one_measures():
    inside, may_end = threading.Event(), threading.Event()

    def slow(point):
        inside.set()
        may_end.wait(20)
        return {"step_s": [1.0]}

    plan = {"settings": {"steps": 8}, "num_rounds": 1, "is_quiet": True}
    worker = threading.Thread(target=run_sweep, args=("decode", slow, GRID), kwargs=plan)
    worker.start()
    try:
        assert inside.wait(20)
        with pytest.raises(LabkitError, match="another process is running the sweep decode-"):
            Bench().run(num_rounds=1)
        assert Bench().run(settings={"steps": 9}).num_new == 9, "another sweep may run"
    finally:
        may_end.set()
        worker.join(timeout=30)
    assert Bench().run(num_rounds=1).num_new == 0


def test_a_file_system_without_locks_still_runs(monkeypatch):
    def refuse(descriptor, how):
        raise OSError(errno.ENOLCK, "no locks here")

    monkeypatch.setattr("fcntl.flock", refuse)
    assert Bench().run().num_new == 9


# The line


def test_a_file_gets_one_line_of_output_and_a_terminal_is_overwritten(capsys, monkeypatch):
    for name in list(sys.modules):
        if name.startswith("ipykernel"):
            monkeypatch.delitem(sys.modules, name)
    Bench().run(is_quiet=False, budget_s=4.0)
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "\r" not in out
    assert "4 of 9 visits; time budget used up, left: batch" in out and "round 2" in out
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    Bench().run(is_quiet=False)
    live = capsys.readouterr().out
    assert live.count("\r") == 6 and live.count("\n") == 1
    assert "about 5.00 s left" in live and "9 of 9 visits; all visits done (4 from an earlier run)" in live


def test_a_failure_is_shown_in_the_line_too(capsys):
    bench = Bench(stop_after=2)
    with pytest.raises(KeyboardInterrupt):
        bench.run(is_quiet=False)
    assert "2 of 9 visits; stopped (KeyboardInterrupt); what is finished is kept" in capsys.readouterr().out


# A real process, really killed

CHILD = """
import sys, time
from labkit.results import provenance
provenance.probe_provenance = lambda: {machine!r}
from labkit.sweep import run_sweep

num_calls = 0

def measure(point):
    global num_calls
    num_calls += 1
    print("visit", flush=True)
    if num_calls > {num_visits}:
        sys.stdin.read()  # wait here for the kill
    with open({log!r}, "a") as log:
        print(point["batch"], time.time_ns(), file=log, flush=True)
    return {{"step_s": [float(time.time_ns()), 2.0] * 20}}

sweep = run_sweep("killed", measure, [{{"batch": b}} for b in (1, 2, 3, 4)], settings={{}}, num_rounds=60,
                  folder={folder!r}, is_quiet=True)
"""


@pytest.mark.slow
def test_a_sweep_killed_at_random_times_loses_no_finished_visit_and_repeats_none(tmp_path):
    draw, kept, num_kills = random.Random(7), {}, 4
    log, folder = tmp_path / "log", tmp_path / "sweeps"
    for num_visits in [*(draw.randint(15, 35) for _ in range(num_kills)), 240]:
        code = CHILD.format(machine=MACHINE, log=str(log), folder=str(folder), num_visits=num_visits)
        child = subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        if num_visits < 240:
            for _ in range(num_visits - draw.randint(0, 5)):  # it may be anywhere between this visit and the last
                assert child.stdout.readline() == "visit\n"
            os.kill(child.pid, signal.SIGKILL)
        child.communicate(timeout=60)
        assert child.returncode == (-signal.SIGKILL if num_visits < 240 else 0)
        now = read_visits(folder)
        assert {key: now[key] for key in kept} == kept, "what was finished is never lost and never measured again"
        kept = now
    final = run_sweep("killed", None, [{"batch": b} for b in (1, 2, 3, 4)], settings={}, num_rounds=60,
                      folder=folder, is_quiet=True)  # fmt: skip
    assert final.num_new == 0 and final.is_complete and len(final.visits) == 240
    measured = len(log.read_text().splitlines())
    assert 240 <= measured <= 240 + num_kills, "a kill costs at most the visit that was under way"


def read_visits(folder):
    found = {}
    for path in folder.glob("*.jsonl"):
        for line in path.read_bytes().decode().split("\n"):
            try:
                line = json.loads(line)
            except ValueError:
                continue  # half a line: that visit was not finished
            if "samples" in line:
                key = line["round"], line["point"]["batch"]
                assert key not in found, "one visit, one line"
                found[key] = line["samples"]
    return found
