"""Events, traces, exports and memory as plain data; real profiles against torch's own tables."""

import gzip
import json
import sqlite3
from types import SimpleNamespace

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.errors import LabkitError
from labkit.profiling import chrome_trace, nsight, profiler, puzzle
from labkit.profiling.events import ProfilerEvent, measure_depths, measure_idle, measure_self_times, measure_table
from labkit.progress import append_event

# Self and total time


@st.composite
def trees(draw):
    """Nested events with whole seconds: intervals cut inside intervals, on up to two threads, in any order."""
    found = []

    def fill(start, end, depth, thread):
        at = start
        while at < end and draw(st.booleans()):
            begin = draw(st.integers(at, end))
            stop = draw(st.integers(begin, end))
            if stop > begin:
                found.append(ProfilerEvent(draw(st.sampled_from("abc")), begin, stop, thread=thread))
                if depth < 4 and stop - begin < end - start:
                    fill(begin, stop, depth + 1, thread)
            at = max(stop, begin + 1)

    for thread in range(draw(st.integers(1, 2))):
        fill(0, 24, 0, thread)
    return draw(st.permutations(found))


def find_owner(events, thread, second):
    """Brute force: of all events that hold this second, the innermost is the shortest (the later begun of equals)."""
    holding = [e for e in events if e.thread == thread and e.start_s <= second < e.end_s]
    return min(holding, key=lambda e: e.duration_s, default=None)


@pytest.mark.slow
@given(trees())
def test_self_times_of_random_trees_equal_counting_second_by_second(events):
    owned = {}
    for thread in {e.thread for e in events}:
        for second in range(24):
            owner = find_owner(events, thread, second)
            if owner is not None:
                owned[owner.name, thread] = owned.get((owner.name, thread), 0) + 1
    own = {}
    for event, self_s in zip(events, measure_self_times(events), strict=True):
        assert 0 <= self_s <= event.duration_s
        own[event.name, event.thread] = own.get((event.name, event.thread), 0) + self_s
    # Two events with the same interval cannot be told apart by counting: compare where no name depends on that.
    intervals = [(e.thread, e.start_s, e.end_s) for e in events]
    if len(set(intervals)) == len(intervals):
        assert {key: value for key, value in own.items() if value} == owned
    assert sum(own.values()) == sum(owned.values())


@given(trees())
def test_depth_is_the_number_of_events_around(events):
    intervals = {(e.thread, e.start_s, e.end_s) for e in events}
    if len(intervals) < len(events):
        return
    for event, depth in zip(events, measure_depths(events), strict=True):
        around = [
            e for e in events
            if e is not event and e.thread == event.thread and e.start_s <= event.start_s and event.end_s <= e.end_s
        ]  # fmt: skip
        assert depth == len(around)


def test_a_small_tree_by_hand():
    calls = [("linear", 0.0, 10.0), ("matmul", 1.0, 8.0), ("mm", 2.0, 7.0), ("add", 8.0, 9.0), ("linear", 10.0, 11.0)]
    events = [*(ProfilerEvent(*call) for call in calls), ProfilerEvent("mm", 3.0, 4.0, thread=1)]
    events += [
        ProfilerEvent("div_", 20.0, 22.0),
        ProfilerEvent("div_", 20.5, 21.0),
    ]  # a wrapper and what it wraps are one call
    rows = {row.name: (row.num_calls, row.total_s, row.self_s) for row in measure_table(events)}
    assert rows == {"linear": (2, 11.0, 3.0), "mm": (2, 6.0, 6.0), "matmul": (1, 7.0, 2.0), "add": (1, 1.0, 1.0),
                    "div_": (1, 2.0, 2.0)}  # fmt: skip
    assert [row.name for row in measure_table(events)][0] == "mm", "the largest self time first"
    assert measure_depths(events) == [0, 1, 2, 1, 0, 0, 0, 1]


def test_a_call_inside_one_of_the_same_name_counts_unless_it_is_the_only_child():
    rows = measure_table(
        [ProfilerEvent("arange", 0.0, 8.0), ProfilerEvent("arange", 1.0, 4.0), ProfilerEvent("resize_", 5.0, 6.0)]
    )
    assert [(row.name, row.num_calls, row.total_s, row.self_s) for row in rows] == [
        ("arange", 2, 11.0, 7.0),
        ("resize_", 1, 1.0, 1.0),
    ]


def test_a_child_that_ends_after_its_parent_counts_up_to_the_end_of_the_parent():
    own = measure_self_times([ProfilerEvent("parent", 0.0, 1.0), ProfilerEvent("child", 0.5, 1.000001)])
    assert own[0] == pytest.approx(0.5)
    assert measure_self_times([]) == []


# Idle time


@given(st.lists(st.tuples(st.integers(-5, 25), st.integers(0, 12)), max_size=12))
def test_idle_time_equals_counting_second_by_second(parts):
    intervals = [(start, start + length) for start, length in parts]
    idle = measure_idle(intervals, start_s=0, end_s=20)
    free = [k for k in range(20) if not any(start <= k < end for start, end in intervals)]
    assert idle.idle_s == len(free)
    assert idle.fraction == len(free) / 20
    assert sum(end - start for start, end in idle.gaps) == len(free)
    assert all(end > start for start, end in idle.gaps), "a gap has a length"
    assert all(a[1] < b[0] for a, b in zip(idle.gaps, idle.gaps[1:], strict=False)), "gaps are apart and in order"


def test_overlapping_nested_and_outlying_intervals_by_hand():
    idle = measure_idle([(6.0, 8.0), (1.0, 4.0), (2.0, 3.0), (-3.0, 0.5), (7.0, 7.5)], start_s=0.0, end_s=10.0)
    assert idle.gaps == ((0.5, 1.0), (4.0, 6.0), (8.0, 10.0))
    assert (idle.idle_s, idle.fraction) == (4.5, 0.45)
    assert measure_idle([], start_s=1.0, end_s=3.0).fraction == 1.0
    assert measure_idle([(0, 9)], start_s=1.0, end_s=3.0).gaps == ()
    assert measure_idle([(5, 6)], start_s=1.0, end_s=3.0).fraction == 1.0
    with pytest.raises(LabkitError, match="window"):
        measure_idle([], start_s=2.0, end_s=2.0)


# Chrome traces

TRACE_SCHEMA = {
    "type": "object",
    "required": ["traceEvents"],
    "properties": {
        "displayTimeUnit": {"enum": ["ms", "ns"]},
        "traceEvents": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["ph", "name", "pid", "tid", "ts"],
                "properties": {
                    "ph": {"enum": ["X", "M"]},
                    "name": {"type": "string"},
                    "cat": {"type": "string"},
                    "ts": {"type": "number", "minimum": 0},
                    "dur": {"type": "number", "minimum": 0},
                    "pid": {"type": "integer"},
                    "tid": {"type": "integer"},
                    "args": {"type": "object"},
                },
                "if": {"properties": {"ph": {"const": "X"}}},
                "then": {"required": ["dur", "cat"]},
            },
        },
    },
}
EVENTS = [
    ProfilerEvent("0", 5.0, 5.01, "step", 1, 0),
    ProfilerEvent("aten::linear", 5.001, 5.004, "operator", 1, 0),
    ProfilerEvent("aten::mm", 5.002, 5.003, "operator", 1, 0),
    ProfilerEvent('odd "name" ü', 5.0025, 5.0026, "kernel", "stream 7", None),
]


@pytest.mark.parametrize("name", ["profile.json", "profile.json.gz"])
def test_a_trace_matches_the_format_and_reads_back(tmp_path, name):
    path = chrome_trace.save_chrome_trace(EVENTS, tmp_path / "sub" / name)
    raw = gzip.decompress(path.read_bytes()) if name.endswith(".gz") else path.read_bytes()
    content = json.loads(raw)
    jsonschema.validate(content, TRACE_SCHEMA)
    assert chrome_trace.check_chrome_trace(content) == []
    names = {
        (row["pid"], row["tid"]): row["args"]["name"] for row in content["traceEvents"] if row["name"] == "thread_name"
    }
    assert "stream 7" in names.values(), "the viewers show the name of each row"
    back = chrome_trace.load_chrome_trace(path)
    assert [(e.name, e.kind, e.thread, e.step) for e in back] == [(e.name, e.kind, e.thread, e.step) for e in EVENTS]
    for mine, read in zip(EVENTS, back, strict=True):
        assert read.start_s == pytest.approx(mine.start_s - 5.0, abs=1e-9)
        assert read.duration_s == pytest.approx(mine.duration_s, abs=2e-9)


def test_host_and_gpu_are_two_processes_with_names_and_without_kernels_there_is_one():
    rows = chrome_trace.format_chrome_trace(EVENTS)["traceEvents"]
    process = {row["args"]["name"]: row["pid"] for row in rows if row["name"] == "process_name"}
    assert set(process) == {"host", "GPU"}
    assert {row["name"]: row["pid"] for row in rows if row["ph"] == "X"} == {
        "0": process["host"], "aten::linear": process["host"], "aten::mm": process["host"],
        'odd "name" ü': process["GPU"],
    }  # fmt: skip
    only = [
        row["args"]["name"]
        for row in chrome_trace.format_chrome_trace(EVENTS[:3])["traceEvents"]
        if row["name"] == "process_name"
    ]
    assert only == ["host"]


def test_a_name_without_a_folder_is_saved_beside_the_records(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_RUNS", str(tmp_path / "runs"))
    assert chrome_trace.save_chrome_trace(EVENTS, "bare.json") == tmp_path / "runs" / "bare.json"
    assert (
        chrome_trace.save_chrome_trace(EVENTS, tmp_path / "a" / "b" / "deep.json") == tmp_path / "a" / "b" / "deep.json"
    )
    assert len(chrome_trace.load_chrome_trace(tmp_path / "a" / "b" / "deep.json")) == len(EVENTS)


def test_a_trace_may_be_a_bare_list_of_events(tmp_path):
    path = tmp_path / "list.json"
    path.write_text(json.dumps([{"ph": "X", "name": "x", "ts": 2, "dur": 3, "pid": 1, "tid": 4, "cat": "cpu_op"}]))
    assert chrome_trace.load_chrome_trace(path) == (ProfilerEvent("x", 2e-6, 5e-6, "operator", 4, None),)


def test_an_empty_trace_is_valid(tmp_path):
    assert chrome_trace.load_chrome_trace(chrome_trace.save_chrome_trace([], tmp_path / "empty.json")) == ()


@pytest.mark.parametrize(("content", "phrase"), [
    ({}, "no list `traceEvents`"),
    ({"traceEvents": [{"name": "x"}]}, "no one-letter phase"),
    ({"traceEvents": [{"ph": "X", "name": "x", "ts": 1, "pid": 1, "tid": 1}]}, "no dur"),
    ({"traceEvents": [{"ph": "X", "name": "x", "ts": 1, "dur": -1, "pid": 1, "tid": 1}]}, "ends before"),
    ({"traceEvents": [{"ph": "X", "name": "x", "ts": "1", "dur": 1, "pid": 1, "tid": 1}]}, "no ts"),
    ({"traceEvents": [{"ph": "X", "name": "x", "ts": 1, "dur": 1}]}, "no pid"),
])  # fmt: skip
def test_an_invalid_trace_is_refused_with_the_reason(tmp_path, content, phrase):
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(content))
    with pytest.raises(LabkitError, match=phrase):
        chrome_trace.load_chrome_trace(path)


def test_a_truncated_or_missing_file_is_refused_with_a_sentence(tmp_path):
    path = tmp_path / "cut.json"
    path.write_text('{"traceEvents": [')
    for bad in (path, tmp_path / "none.json"):
        with pytest.raises(LabkitError, match="not a readable trace"):
            chrome_trace.load_chrome_trace(bad)


# Nsight: made-up files in the documented layout of columns

KERNELS = """Generating SQLite file decode.sqlite from decode.nsys-rep
Processing [decode.sqlite] with [reports/cuda_gpu_kern_sum.py]...

"Time (%)","Total Time (ns)","Instances","Avg (ns)","Med (ns)","Min (ns)","Max (ns)","StdDev (ns)","Name"
25.0,"1,000,000",50,20000.0,20000.0,18000,24000,900.0,"void add<float, (int)4>(float *, int)"
75.0,"3,000,000",100,30000.0,29000.0,26000,44000,1800.0,gemv
"""
APIS = """Time (%),Total Time (ns),Num Calls,Avg (ns),Med (ns),Min (ns),Max (ns),StdDev (ns),Name
60.0,600,3,200.0,200.0,100,300,100.0,cudaLaunchKernel
40.0,400,1,400.0,400.0,400,400,0.0,cudaStreamSynchronize
"""
COPIES = """Time (%),Total Time (ns),Count,Avg (ns),Med (ns),Min (ns),Max (ns),StdDev (ns),Operation
100.0,1500,3,500.0,500.0,500,500,0.0,[CUDA memcpy Host-to-Device]
"""
RANGES = """Time (%),Total Time (ns),Instances,Avg (ns),Med (ns),Min (ns),Max (ns),StdDev (ns),Style,Range
100.0,2000,2,1000.0,1000.0,900,1100,100.0,PushPop,:step 0
"""


def write(tmp_path, text, name="report.csv"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_kernel_summary_is_read_past_its_preamble_with_thousands_and_commas_in_names(tmp_path):
    rows = nsight.load_nsys_csv(write(tmp_path, KERNELS), report="cuda_gpu_kern_sum")
    assert [(row.name, row.num_calls) for row in rows] == [("gemv", 100), ("void add<float, (int)4>(float *, int)", 50)]
    assert [row.total_s for row in rows] == pytest.approx([3e-3, 1e-3])
    assert [row.mean_s for row in rows] == pytest.approx([3e-5, 2e-5])
    assert [row.fraction for row in rows] == pytest.approx([0.75, 0.25])


@pytest.mark.parametrize(("report", "text", "first", "calls"), [
    ("cuda_api_sum", APIS, "cudaLaunchKernel", 3),
    ("cuda_gpu_mem_time_sum", COPIES, "[CUDA memcpy Host-to-Device]", 3),
    ("nvtx_sum", RANGES, ":step 0", 2),
    ("osrt_sum", APIS, "cudaLaunchKernel", 3),
    ("cuda_api_sum", KERNELS.replace("\n\n", "\n") + "\n" + APIS, "cudaLaunchKernel", 3),
    ("cuda_gpu_kern_sum", KERNELS + "\n" + APIS, "gemv", 100),
])  # fmt: skip
def test_other_reports_and_two_tables_in_one_file_are_read(tmp_path, report, text, first, calls):
    rows = nsight.load_nsys_csv(write(tmp_path, text), report=report)
    assert (rows[0].name, rows[0].num_calls) == (first, calls)


def test_a_text_is_read_like_a_file():
    assert nsight.load_nsys_csv(APIS, report="cuda_api_sum")[0].num_calls == 3


def test_a_table_without_rows_or_calls_is_valid(tmp_path):
    header, zero = APIS.splitlines()[0], "0.0,0,0,0.0,0.0,0,0,0.0,cudaFree"
    assert nsight.load_nsys_csv(write(tmp_path, header + "\n"), report="cuda_api_sum") == ()
    (row,) = nsight.load_nsys_csv(str(write(tmp_path, f"\ufeff{header}\n{zero}\n")), report="cuda_api_sum")
    assert (row.num_calls, row.total_s, row.mean_s, row.fraction) == (0, 0.0, 0.0, 0.0)


def test_the_unit_of_time_comes_from_the_header(tmp_path):
    text = APIS.replace("(ns)", "(us)")
    assert nsight.load_nsys_csv(write(tmp_path, text), report="cuda_api_sum")[0].total_s == pytest.approx(600e-6)
    with pytest.raises(LabkitError, match="unit"):
        nsight.load_nsys_csv(write(tmp_path, APIS.replace("(ns)", "(fortnights)")), report="cuda_api_sum")


@pytest.mark.parametrize(("text", "report", "phrase"), [
    (APIS, "cuda_gpu_kern_sum", "looks like cuda_api_sum"),
    (KERNELS, "cuda_api_sum", "looks like cuda_gpu_kern_sum"),
    ("a,b\n1,2\n", "cuda_api_sum", "no summary table"),
    ("", "cuda_api_sum", "no summary table"),
    (APIS.replace("600", "many"), "cuda_api_sum", "not a row of numbers"),
    (APIS, "gpu_sum", "the report 'gpu_sum' cannot be read"),
])  # fmt: skip
def test_a_wrong_file_is_named_with_the_next_step(tmp_path, text, report, phrase):
    with pytest.raises(LabkitError, match=phrase) as caught:
        nsight.load_nsys_csv(write(tmp_path, text), report=report)
    assert caught.value.next_step


def make_export(path, *, with_kernels=True, with_strings=True):
    """A small export by hand: three kernels on two streams, a copy, and the calls that started them."""
    base = sqlite3.connect(path)
    if with_strings:
        base.execute("create table StringIds (id integer primary key, value text not null)")
        base.executemany("insert into StringIds values (?, ?)", [(1, "gemv"), (2, "add"), (3, "cudaLaunchKernel")])
    if with_kernels:
        base.execute('create table CUPTI_ACTIVITY_KIND_KERNEL (start integer, "end" integer, deviceId integer, '
                     "streamId integer, correlationId integer, demangledName integer, shortName integer)")  # fmt: skip
        base.executemany("insert into CUPTI_ACTIVITY_KIND_KERNEL values (?, ?, 0, ?, ?, ?, ?)", [
            (10_000, 14_000, 7, 1, 1, 1), (16_000, 18_000, 7, 2, 2, 2), (13_000, 15_000, 13, 3, 1, 1),
        ])  # fmt: skip
        base.execute('create table CUPTI_ACTIVITY_KIND_MEMCPY (start integer, "end" integer, streamId integer)')
        base.execute("insert into CUPTI_ACTIVITY_KIND_MEMCPY values (19000, 20000, 7)")
        base.execute('create table CUPTI_ACTIVITY_KIND_RUNTIME (start integer, "end" integer, globalTid integer, '
                     "correlationId integer, nameId integer)")  # fmt: skip
        base.execute("insert into CUPTI_ACTIVITY_KIND_RUNTIME values (9000, 9500, 99, 1, 3)")
    base.commit()
    base.close()
    return path


def test_an_sqlite_export_gives_kernels_gaps_and_api_calls(tmp_path):
    events = nsight.load_nsys_sqlite(make_export(tmp_path / "decode.sqlite"))
    kernels = [event for event in events if event.kind == "kernel"]
    assert [(e.name, e.thread) for e in kernels] == [
        ("gemv", "stream 7"), ("gemv", "stream 13"), ("add", "stream 7"), ("memcpy", "stream 7"),
    ]  # fmt: skip
    assert [e.name for e in events if e.kind == "runtime"] == ["cudaLaunchKernel"]
    assert events[0].start_s == 0.0, "seconds from the first event on"
    idle = measure_idle([(e.start_s, e.end_s) for e in kernels], start_s=1e-6, end_s=11e-6)
    assert idle.idle_s == pytest.approx(2e-6), "10-15 and 16-18 and 19-20: the two streams overlap"
    assert measure_table(kernels)[0].total_s == pytest.approx(6e-6)


def test_a_wrong_database_is_named(tmp_path):
    with pytest.raises(LabkitError, match="no table StringIds"):
        nsight.load_nsys_sqlite(make_export(tmp_path / "a.sqlite", with_kernels=False, with_strings=False))
    with pytest.raises(LabkitError, match="has no kernels"):
        nsight.load_nsys_sqlite(make_export(tmp_path / "b.sqlite", with_kernels=False))
    small = make_export(tmp_path / "d.sqlite")
    base = sqlite3.connect(small)
    for table in ("RUNTIME", "MEMCPY"):
        base.execute(f"drop table CUPTI_ACTIVITY_KIND_{table}")
    base.commit()
    base.close()
    assert {event.kind for event in nsight.load_nsys_sqlite(small)} == {"kernel"}, "only kernels were recorded"
    with pytest.raises(LabkitError, match="not an SQLite export"):
        nsight.load_nsys_sqlite(
            write(tmp_path, "this is text, and long enough to be no empty database" * 20, "c.sqlite")
        )
    with pytest.raises(LabkitError, match="there is no file"):
        nsight.load_nsys_sqlite(tmp_path / "none.sqlite")


def test_recorded_tables_are_found_by_their_report_and_there_may_be_none(tmp_path, monkeypatch):
    monkeypatch.setattr(nsight, "find_course_root", lambda: tmp_path)
    assert nsight.load_recorded_tables(lab="11") == {}
    folder = tmp_path / "data" / "recorded" / "11"
    folder.mkdir(parents=True)
    write(folder, KERNELS, "h100_cuda_gpu_kern_sum.csv")
    write(folder, APIS, "h100_cuda_api_sum.csv")
    assert {name: rows[0].name for name, rows in nsight.load_recorded_tables(lab="11").items()} == {"h100": "gemv"}
    assert list(nsight.load_recorded_tables(lab="11", report="cuda_api_sum")) == ["h100"]


def test_the_commands_record_the_program_of_this_package():
    text = nsight.format_commands(context_tokens=128, num_steps=7)
    assert "python -m labkit.profiling --context 128 --steps 7" in text
    for part in ("nsys profile", "--capture-range=cudaProfilerApi", "cuda_gpu_kern_sum,cuda_api_sum", "--type sqlite",
                 "ncu --set basic", "--profile-from-start off"):  # fmt: skip
        assert part in text


# Memory


def test_the_categories_add_up_to_the_whole():
    parts = profiler.estimate_breakdown(
        weight_bytes=100, kv_bytes=20, activation_bytes=5, used_bytes=200, reserved_bytes=140
    )
    assert parts == {"weights": 100, "kv_cache": 20, "activations": 5, "slack": 15, "rest": 60}
    assert sum(parts.values()) == 200
    on_cpu = profiler.estimate_breakdown(weight_bytes=100, kv_bytes=20, activation_bytes=5, used_bytes=200)
    assert (on_cpu["slack"], on_cpu["rest"]) == (0, 75)
    with pytest.raises(LabkitError, match="need 125 bytes, but only 110 are in use"):
        profiler.estimate_breakdown(weight_bytes=100, kv_bytes=20, activation_bytes=5, used_bytes=110)


def test_parts_may_use_up_the_whole_but_not_exceed_it_or_be_negative():
    sizes = {"weight_bytes": 100, "kv_bytes": 0, "activation_bytes": 5, "reserved_bytes": 140}
    assert profiler.estimate_breakdown(**sizes, used_bytes=140)["rest"] == 0
    with pytest.raises(LabkitError, match="need 140 bytes, but only 139 are in use") as caught:
        profiler.estimate_breakdown(**sizes, used_bytes=139)
    assert caught.value.next_step
    for name in ("weight_bytes", "kv_bytes", "activation_bytes"):
        with pytest.raises(LabkitError):
            profiler.estimate_breakdown(**sizes | {name: -1}, used_bytes=500)
    # The peak of the activations may be over when the reserve is read: slack is never negative.
    assert profiler.estimate_breakdown(**sizes | {"reserved_bytes": 90}, used_bytes=200)["slack"] == 0


def test_the_peak_is_the_highest_running_sum_after_the_beginning():
    changes = [(1, 1000), (10, 50), (11, 30), (12, -50), (13, 40), (14, -70)]
    assert profiler.estimate_peak(changes, begin_ns=10) == 80
    assert profiler.estimate_peak(list(reversed(changes)), begin_ns=10) == 80, "by time, not by order"
    assert profiler.estimate_peak([(1, 1000), (10, -400), (11, 100)], begin_ns=10) == 0
    assert profiler.estimate_peak([]) == 0


# The puzzle: which module

NAMES = ["LlamaForCausalLM", "model", "model.embed_tokens", "lm_head", "model.norm"] + [
    f"model.layers.{k}{part}"
    for k in range(6)
    for part in ("", ".mlp", ".mlp.up_proj", ".mlp.down_proj", ".mlp.act_fn", ".self_attn", ".self_attn.q_proj",
                 ".input_layernorm")
]  # fmt: skip


def test_the_slow_module_is_a_leaf_with_weights_in_a_layer_and_differs_between_learners():
    slow = set()
    for k in range(150):
        pair = puzzle.estimate_plant(NAMES, learner=f"learner {k}")
        assert pair == puzzle.estimate_plant(NAMES[::-1], learner=f"learner {k}"), "the order of names has no say"
        assert pair[0] != pair[1]
        assert all(name.endswith("_proj") for name in pair)
        slow.add(pair[0])
    assert len(slow) == 18, "every module of every layer can be the slow one"


def test_the_learner_is_the_oldest_event_and_stays_the_same(tmp_path, monkeypatch):
    first = puzzle.load_learner("99")  # a fresh home: an event is written, and counts from then on
    append_event("attempt", exercise="11.1", version=1, outcome="passed", sentence="")
    assert puzzle.load_learner("99") == first
    assert puzzle.load_learner("98") != first, "another lab hides another module"
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path / "another"))
    assert puzzle.load_learner("99") != first


def test_a_model_without_layers_is_refused():
    with pytest.raises(LabkitError, match="too few"):
        puzzle.estimate_plant(["a", "b.0.norm"], learner="x")


# What a profiler's own events become, with a GPU: made up, because no GPU is needed to read them


class Raw:
    """One event of kineto, by its methods; times in ns."""

    def __init__(self, name, start, end, activity, *, thread=1, stream=0, is_old=False):
        self.values = {
            "name": name,
            "start_ns": start,
            "end_ns": end,
            "activity_type": activity,
            "start_thread_id": thread,
            "device_resource_id": stream,
            "nbytes": 8,
            "device_type": f"DeviceType.{'CUDA' if activity in ('kernel', 'gpu_user_annotation') else 'CPU'}",
        }
        if is_old:
            del self.values["activity_type"]

    def __getattr__(self, name):
        if name in self.__dict__.get("values", {}):
            return lambda: self.values[name]
        raise AttributeError(name)


def make_profiler(*, is_old=False):
    rows = [
        ("aten::mm", 0, 50, "cpu_op"),  # the settling call: in no step
        ("step/0", 1000, 5000, "user_annotation"), ("step/0", 1500, 4800, "gpu_user_annotation"),
        ("module/lm_head", 1100, 2000, "user_annotation"), ("module/lm_head", 1600, 2600, "gpu_user_annotation"),
        ("aten::mm", 1200, 1900, "cpu_op"), ("cudaLaunchKernel", 1300, 1400, "cuda_runtime"),
        ("gemv", 1600, 2600, "kernel"), ("[memory]", 1250, 1250, "cpu_instant_event"),
        ("step/1", 6000, 9000, "user_annotation"), ("aten::mm", 6100, 6200, "cpu_op"), ("gemv", 6500, 8500, "kernel"),
        ("aten::late", 9500, 9600, "cpu_op"),
    ]  # fmt: skip
    events = [Raw(*row, stream=7, is_old=is_old) for row in rows]
    results = type("Results", (), {"events": lambda self: events})()
    return type("Profiler", (), {"profiler": type("Inner", (), {"kineto_results": results})()})()


@pytest.mark.parametrize("is_old", [False, True])
def test_kernels_keep_their_stream_and_step_and_gpu_copies_of_ranges_are_left_out(is_old):
    events = profiler._read_events(make_profiler(is_old=is_old))
    assert sorted((e.kind, e.name, e.thread, e.step) for e in events) == sorted([
        ("step", "0", 1, 0), ("module", "lm_head", 1, 0), ("operator", "aten::mm", 1, 0),
        ("runtime", "cudaLaunchKernel", 1, 0), ("kernel", "gemv", "stream 7", 0),
        ("step", "1", 1, 1), ("operator", "aten::mm", 1, 1), ("kernel", "gemv", "stream 7", 1),
    ])  # fmt: skip
    profile = profiler.Profile(events, (4e-6, 3e-6), 2, "cuda:0")
    assert profile.measure_idle("kernel", step=0).fraction == pytest.approx(1 - 1000 / 4000)
    assert profile.measure_idle("kernel", step=1).fraction == pytest.approx(1 - 2000 / 3000)
    assert profile.measure_idle(step=1).fraction == pytest.approx(1 - 100 / 3000)
    assert profile.measure_table("kernel")[0].total_s == pytest.approx(3e-6)


def test_a_profile_without_a_step_is_refused():
    empty = type("Results", (), {"events": lambda self: []})()
    recorded = type("Profiler", (), {"profiler": type("Inner", (), {"kineto_results": empty})()})()
    with pytest.raises(LabkitError, match="no step"):
        profiler._read_events(recorded)


@pytest.mark.parametrize(("name", "key"), [
    ("aten::mm", "mm"), ("aten::_to_copy", "to_copy"), ("aten::add_", "add"), ("flash::fwd__x", "flash_fwd_x"),
])  # fmt: skip
def test_an_operator_becomes_a_part_of_a_key(name, key):
    assert profiler.format_key(name) == key


def test_on_a_gpu_the_slack_is_what_torch_reserved_and_the_rest_is_what_nvml_sees(monkeypatch):
    found = {"rss_bytes": 9, "torch_allocated_bytes": 130, "torch_reserved_bytes": 160, "nvml_used_bytes": 500}
    monkeypatch.setattr(profiler, "probe_memory", lambda *, gpu_index: found if gpu_index == 1 else {})
    monkeypatch.setattr(profiler, "measure_activation_peak", lambda function, *, device: 10)
    monkeypatch.setattr(profiler, "measure_weight_bytes", lambda model: 100)
    parts = profiler.measure_breakdown(lambda: None, model=None, kv_bytes=30, device="cuda:1")
    assert parts == {"weights": 100, "kv_cache": 30, "activations": 10, "slack": 20, "rest": 340}
    assert sum(parts.values()) == 500
    found["nvml_used_bytes"] = None
    with pytest.raises(LabkitError, match="cannot be read"):
        profiler.measure_breakdown(lambda: None, model=None, kv_bytes=30, device="cuda:1")


@pytest.mark.parametrize(("resident_bytes", "weights"), [(60, 60), (0, 0), (None, 100)])
def test_on_a_cpu_only_resident_weights_are_part_of_the_resident_memory(monkeypatch, resident_bytes, weights):
    model = SimpleNamespace(parameters=list, buffers=list)
    monkeypatch.setattr(profiler, "probe_memory", lambda *, gpu_index: {"rss_bytes": 200})
    monkeypatch.setattr(profiler, "measure_activation_peak", lambda function, *, device: 10)
    monkeypatch.setattr(profiler, "measure_tensor_bytes", lambda tensors: (100, resident_bytes))
    parts = profiler.measure_breakdown(lambda: None, model=model, kv_bytes=30)
    assert parts == {"weights": weights, "kv_cache": 30, "activations": 10, "slack": 0, "rest": 160 - weights}


# With torch


@pytest.fixture(scope="module")
def small():
    """A random decoder of two layers, and its phases."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from labkit.profiling.phases import Phases

    torch.set_num_threads(1)
    config = transformers.LlamaConfig(
        hidden_size=128, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=64, vocab_size=512, max_position_embeddings=256, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    return model, Phases(model, range(40), context_tokens=32)


@pytest.mark.slow
def test_the_table_of_a_real_profile_equals_torchs_own(small):
    torch = pytest.importorskip("torch")
    _, phases = small
    for work in (phases.run_prefill, phases.run_decode):
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities) as recorded, torch.profiler.record_function("step/0"):
            work()
        mine = {
            row.name: row for row in measure_table([e for e in profiler._read_events(recorded) if e.kind == "operator"])
        }
        theirs = {row.key: row for row in recorded.key_averages() if row.key.startswith("aten::")}
        assert mine.keys() == theirs.keys() and len(mine) > 10
        for name, row in theirs.items():
            assert mine[name].num_calls == row.count
            assert mine[name].total_s * 1e6 == pytest.approx(row.cpu_time_total, abs=0.01 * row.count, rel=1e-6)
            assert mine[name].self_s * 1e6 == pytest.approx(row.self_cpu_time_total, abs=0.05 * row.count, rel=1e-6)


@pytest.mark.slow
def test_a_profile_has_its_steps_and_ranges_and_leaves_no_hook(small):
    model, phases = small
    calls = []
    profile = profiler.run_profile(lambda: calls.append(phases.run_decode()), num_steps=3, num_warmup=2, model=model)
    assert len(calls) == 2 + 1 + 3, "warm-up, one to settle the profiler, and three steps"
    assert [(e.name, e.step) for e in profile.select("step")] == [("0", 0), ("1", 1), ("2", 2)]
    names = {event.name for event in profile.select("module")}
    assert {"LlamaForCausalLM", "model.layers.1.mlp.down_proj", "lm_head"} <= names
    assert all(row.num_calls % 3 == 0 for row in profile.measure_table("module"))
    root = next(row for row in profile.measure_table("module") if row.name == "LlamaForCausalLM")
    assert sum(row.self_s for row in profile.measure_table("module")) == pytest.approx(root.total_s)
    for step in range(3):
        (window,) = profile.select("step", step=step)
        own = sum(row.self_s for row in measure_table(profile.select("operator", step=step)))
        idle = profile.measure_idle(step=step)
        assert own + idle.idle_s == pytest.approx(window.duration_s), "self times and gaps fill the step"
        assert 0 < idle.fraction < 1
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    first = profiler.run_profile(lambda: calls.append(1), num_steps=2, num_warmup=0)
    assert calls[-2:] == [1, 1] and calls[-3] != 1, "without warm-up the very first call is step 0"
    assert len(first.step_s) == 2
    with pytest.raises(LabkitError, match="num_steps is 0"):
        profiler.run_profile(phases.run_decode, num_steps=0)


@pytest.mark.slow
def test_a_step_that_raises_leaves_no_hook(small):
    model, phases = small

    def fail(*_):
        raise ValueError("in the middle")

    handle = model.model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(ValueError, match="in the middle"):
        profiler.run_profile(phases.run_prefill, num_steps=1, num_warmup=0, model=model)
    handle.remove()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    names = {
        event.name for event in profiler.run_profile(phases.run_prefill, num_steps=1, model=model).select("module")
    }
    assert len(names) == len(list(model.named_modules())) - 1, "every module but the list of layers"


@pytest.mark.slow
def test_overhead_has_one_pair_of_times_per_round(small):
    overhead = profiler.measure_overhead(small[1].run_decode, num_pairs=3, steps_per_pair=2)
    assert len(overhead.plain_s) == len(overhead.profiled_s) == 3
    assert min(overhead.plain_s + overhead.profiled_s) > 0


@pytest.mark.slow
def test_a_trace_of_torch_itself_is_read(small, tmp_path):
    torch = pytest.importorskip("torch")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        small[1].run_decode()
    recorded.export_chrome_trace(str(tmp_path / "torch.json"))
    theirs = {row.key: row.count for row in recorded.key_averages() if row.key.startswith("aten::")}
    back = chrome_trace.load_chrome_trace(tmp_path / "torch.json")
    read = {row.name: row.num_calls for row in measure_table([e for e in back if e.kind == "operator"])}
    assert {name: read.get(name) for name in theirs} == theirs
    profile = profiler.run_profile(small[1].run_decode, num_steps=2, model=small[0])
    back = chrome_trace.load_chrome_trace(chrome_trace.save_chrome_trace(profile.events, tmp_path / "ours.json"))
    assert len(back) == len(profile.events)
    jsonschema.validate(json.loads((tmp_path / "ours.json").read_text()), TRACE_SCHEMA)
    mine = {row.name: row.self_s for row in profile.measure_table("module")}
    again = {row.name: row.self_s for row in measure_table([e for e in back if e.kind == "module"])}
    assert again == pytest.approx(mine, abs=1e-6)


@pytest.mark.slow
def test_phases_prefill_the_context_and_decode_one_token_with_the_right_cache(small):
    torch = pytest.importorskip("torch")
    model, phases = small
    phases.reset()
    assert phases.measure_kv_bytes() == 2 * 2 * 1 * 64 * 4 * 32  # K and V · L · G · D · float32 · tokens
    with torch.inference_mode():
        ids = torch.cat([phases._ids, phases._next], dim=1)
        whole = model(ids).logits
    assert torch.allclose(phases.run_prefill().logits, whole[:, -2:-1], atol=1e-4)
    assert torch.allclose(phases.run_decode().logits, whole[:, -1:], atol=1e-4)
    assert phases.measure_kv_bytes() == 2 * 2 * 1 * 64 * 4 * 33
    for _ in range(70):
        phases.run_decode()
    assert 32 < phases._cache.get_seq_length() <= 32 + 64
    phases.reset()
    assert phases._cache.get_seq_length() == 32
    with pytest.raises(LabkitError, match="the model has 256 positions"):
        type(phases)(model, range(40), context_tokens=200)


@pytest.mark.slow
def test_memory_of_a_step_is_counted_from_its_allocations(small):
    torch = pytest.importorskip("torch")
    model, phases = small
    held = []

    def work():
        first = torch.ones(1000)  # 4,000 bytes
        second = first * 2  # 4,000 more, while the first is held
        del first
        held.append(second.sum().item())

    assert 8000 <= profiler.measure_activation_peak(work) < 8200
    layer = 2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 128 + 2 * 128  # Q and O, K and V, the MLP, two norms
    parameters = 512 * 128 + 2 * layer + 128  # the tied embedding once
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    assert profiler.measure_weight_bytes(model) == 4 * parameters + buffers
    parts = profiler.measure_breakdown(phases.run_decode, model=model, kv_bytes=phases.measure_kv_bytes())
    assert list(parts) == ["weights", "kv_cache", "activations", "slack", "rest"]
    assert all(size >= 0 for size in parts.values()) and parts["activations"] > 0


def count_products(profile, *, step):
    """How many products run inside each module of a step, its children included."""
    products = [event for event in profile.select("operator", step=step) if event.name == "aten::mm"]
    return {
        module.name: sum(module.start_s <= one.start_s < module.end_s for one in products)
        for module in profile.select("module", step=step)
    }


@pytest.mark.slow
def test_the_planted_module_does_most_of_the_work_and_the_decoy_only_at_first(small, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(puzzle.Puzzle, "_measure_extra", lambda self: 1e-3)  # seconds of one unit of useless work
    model, phases = small
    planted = puzzle.Puzzle(model, learner="abc", step_s=0.04)
    slow, decoy = puzzle.estimate_plant([name for name, _ in model.named_modules()], learner="abc")
    profile = profiler.run_profile(phases.run_decode, num_steps=3, num_warmup=0, model=model)
    found = [count_products(profile, step=step) for step in range(3)]
    own = found[1][decoy]  # what a module without extra work does
    assert own <= 1
    assert [counts[slow] for counts in found] == [own + 60] * 3, "1.5 steps of extra work in every call"
    assert [counts[decoy] for counts in found] == [own + 1200, own, own], "much more than that, once"
    assert all(counts["lm_head"] <= 1 for counts in found), "other modules have no extra work"
    planted.is_on = False
    profile = profiler.run_profile(phases.run_decode, num_steps=1, model=model)
    assert count_products(profile, step=0)[slow] == own, "switched off, it is a module like the others"
    planted.remove()
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.slow
def test_a_planted_module_changes_no_token_and_no_random_number(small):
    torch = pytest.importorskip("torch")
    model, phases = small
    phases.reset()
    before = phases.run_decode().logits
    torch.manual_seed(5)
    number = torch.rand(1)
    torch.manual_seed(5)
    planted = puzzle.load_puzzle(model, phases.run_decode, lab="99")
    assert planted.learner == puzzle.load_learner("99")
    phases.reset()
    assert torch.equal(phases.run_decode().logits, before), "nothing uses what it computes"
    assert torch.equal(torch.rand(1), number), "nor does it draw random numbers"
    planted.remove()


@pytest.mark.slow
def test_the_program_that_nsys_records_runs_here(capsys):
    pytest.importorskip("torch")
    from labkit.profiling.__main__ import main

    assert main(["--context", "16", "--steps", "2"]) == 0
    assert "2 decode steps of python-11m (shipped) at a context of 16, on cpu" in capsys.readouterr().out
