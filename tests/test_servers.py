"""labkit.servers: engines start, fail clearly, and leave nothing behind, whatever happens to them or the notebook."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import rude_engine
from rude_engine import build_rude_spec, find_segments

from labkit.errors import HardwareError, InstallError, LabkitError
from labkit.hardware import TIERS
from labkit.servers import Server, ServerError, build_launch_spec, run_fake, run_server
from labkit.servers import server as server_module
from labkit.servers.engines import ENGINES, build_thread_plan, find_engine_python, run_serve
from labkit.servers.fake import FakePlan, load_stats
from labkit.servers.server import LaunchSpec, find_free_port, probe_versions, run_launch_spec
from labkit.servers.supervisor import measure_process_memory, probe_children, probe_segments
from labkit.servers.token_comparison import compare_tokens, format_token_comparison

ROOT = Path(__file__).resolve().parents[1]
DRAFT = ROOT / "data" / "models" / "python-2m"
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


def is_gone(pid):
    """Whether a process has ended (also if its parent has not collected it yet)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def is_closed(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def left(names):
    """Those of `names` that still exist (other programs may use shared memory at the same time)."""
    return {name for name in names if os.path.exists(f"/dev/shm/{name}")}


def wait_until(is_true, *, limit_s=300.0):
    """Wait for an event; the limit only keeps a broken test from hanging."""
    deadline = time.monotonic() + limit_s
    while not is_true():
        assert time.monotonic() < deadline, f"it did not happen in {limit_s:.0f} s"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def stranger():
    """A server that several tests share; none of them may end it."""
    with run_fake() as server:
        yield server


@pytest.mark.slow
def test_a_server_reports_its_engine_versions_and_log():
    with run_fake(FakePlan(ttft_s=0, itl_s=0, model="tiny")) as server:
        assert isinstance(server, Server)
        assert server.base_url == f"http://127.0.0.1:{server.port}"
        assert (server.model, server.engine, server.start_attempts) == ("tiny", "fake", 1)
        assert server.is_alive
        assert server.start_s > 0
        assert load_stats(server)["num_requests"] == 0
        assert "fake:num_requests 0" in server.load_metrics()
        assert server.versions["python"] == ".".join(map(str, sys.version_info[:3]))
        record = server.to_dict()
        assert record["settings"]["slowdown"] == 1.0
        assert json.loads(json.dumps(record)) == record
        assert "127.0.0.1" not in json.dumps(record)
        assert str(server.log_path) not in json.dumps(record)
        assert "listening" in server.load_log_tail()
    assert not server.is_alive
    assert server.pids == ()
    server.stop()  # a second time does nothing


@pytest.mark.slow
@linux
def test_memory_is_that_of_the_whole_family():
    with run_launch_spec(build_rude_spec()) as server:
        memory = server.measure_memory()
        alone = measure_process_memory([server.pid])
        assert memory["num_processes"] == 4
        assert memory["rss_bytes"] > alone["rss_bytes"] + 8e6  # three more Pythons
        assert 0 < memory["pss_bytes"] <= memory["rss_bytes"]


@pytest.mark.slow
@linux
def test_a_rude_engine_leaves_nothing_behind():
    with run_launch_spec(build_rude_spec()) as server:
        family, port, scratch, names = server.pids, server.port, server._scratch, find_segments(server.load_log_tail())
        assert (len(family), len(left(names))) == (4, 1)
    assert all(is_gone(pid) for pid in family)
    assert is_closed(port)
    assert not left(names)
    assert not os.path.exists(scratch)


@pytest.mark.slow
@linux
def test_a_killed_engine_leaves_nothing_behind_either():
    server = run_launch_spec(build_rude_spec())
    family, names = server.pids, find_segments(server.load_log_tail())
    assert len(left(names)) == 1
    os.kill(server.pid, signal.SIGKILL)
    wait_until(lambda: all(is_gone(pid) for pid in family) and not left(names))
    with pytest.raises(ServerError, match="died while it was in use .signal 9"):
        server.check_alive()
    server.stop()


@pytest.mark.slow
@linux
def test_a_killed_supervisor_does_not_leave_the_engine_behind():
    server = run_launch_spec(build_rude_spec())
    family, names = server.pids, find_segments(server.load_log_tail())
    own = [pid for pid in family if os.getpgid(pid) == server.pid]
    assert len(own) == 3  # the fourth moved to a session of its own: it cannot be found again without its supervisor
    server._supervisor.kill()
    wait_until(lambda: is_gone(server.pid))  # the engine dies with the supervisor (PR_SET_PDEATHSIG)
    server.stop()
    try:
        assert all(is_gone(pid) for pid in own)
    finally:
        for pid in set(family) - set(own):
            os.kill(pid, signal.SIGKILL)
        for name in left(names):
            os.unlink(f"/dev/shm/{name}")


def start_python(code):
    """A Python process that Ctrl-C interrupts, even if these tests run where SIGINT is ignored (behind `&`)."""
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


PARENT = """
import sys, time
sys.path[:0] = {paths!r}
from labkit.servers.server import run_launch_spec
from rude_engine import build_rude_spec, find_segments
server = run_launch_spec(build_rude_spec())
names = find_segments(server.load_log_tail())
print(*server.pids, server.port, server._supervisor.pid, server._scratch, *names, flush=True)
{then}
"""


def start_parent(then):
    """A process with a rude server: (process, family of the engine, port, supervisor, scratch folder, segment)."""
    code = PARENT.format(paths=[str(ROOT), str(ROOT / "tests")], then=then)
    parent = start_python(code)
    *numbers, scratch, name = parent.stdout.readline().split()
    *pids, port, supervisor = map(int, numbers)
    return parent, pids, port, supervisor, scratch, name


@pytest.mark.slow
@linux
@pytest.mark.parametrize("end", ["kill -9", "kill -9 of the group", "interrupt", "exit", "forgotten"])
def test_no_child_survives_the_notebook(end):
    """kill -9, a kernel restart (SIGKILL to its process group), Ctrl-C, sys.exit, and a server nobody stopped."""
    then = {"exit": "raise SystemExit(3)", "forgotten": "del server; time.sleep(600)"}.get(end, "time.sleep(600)")
    parent, pids, port, supervisor, scratch, name = start_parent(then)
    try:
        assert len(pids) == 4
        assert end in ("exit", "forgotten") or not any(is_gone(pid) for pid in pids)
        if end == "kill -9":
            parent.kill()
        elif end == "kill -9 of the group":
            os.killpg(parent.pid, signal.SIGKILL)
        elif end == "interrupt":
            parent.send_signal(signal.SIGINT)
        wait_until(lambda: all(is_gone(pid) for pid in (*pids, supervisor)))
        assert not left({name})
        assert not os.path.exists(scratch)
        assert is_closed(port)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()


@pytest.mark.slow
@linux
def test_a_forked_child_that_holds_the_pipe_does_not_keep_the_engine_alive():
    """A fork of the notebook (a data loader, say) inherits the pipe; the supervisor notices the death anyway."""
    then = "import os\nif os.fork() == 0:\n    time.sleep(600)\n    os._exit(0)\ntime.sleep(600)"
    parent, pids, _, supervisor, scratch, name = start_parent(then)
    wait_until(lambda: len(probe_children(parent.pid)) == len(pids) + 2)  # the supervisor and the fork
    (fork,) = set(probe_children(parent.pid)) - {supervisor, *pids}
    parent.kill()
    try:
        wait_until(lambda: all(is_gone(pid) for pid in (*pids, supervisor)))
        assert not left({name})
        assert not os.path.exists(scratch)
        assert not is_gone(fork)  # it still holds the pipe: this was really the case to test
    finally:
        parent.wait()
        parent.stdout.close()
        os.kill(fork, signal.SIGKILL)


@linux
@pytest.mark.slow
def test_twenty_starts_and_kills_in_random_order_leave_nothing():
    """Counted: children, ports, shared-memory segments, scratch folders."""
    order, num_children = random.Random(20), len(probe_children(os.getpid()))
    family, ports, scratch, names, live = [], [], [], set(), []
    for number in range(20):
        plan = FakePlan(ttft_s=0.01, itl_s=0.001)
        server = run_launch_spec(build_rude_spec()) if number % 2 else run_fake(plan)
        family, ports, scratch = [*family, *server.pids], [*ports, server.port], [*scratch, server._scratch]
        names |= find_segments(server.load_log_tail())
        live.append(server)
        while live and (len(live) > 3 or order.random() < 0.5):
            victim = live.pop(order.randrange(len(live)))
            way = order.choice(["stop", "kill", "kill and notice", "term"])
            family = [*family, *victim.pids]
            if way != "stop":
                os.kill(victim.pid, signal.SIGTERM if way == "term" else signal.SIGKILL)
            if way == "kill and notice":
                wait_until(lambda victim=victim: not victim.is_alive)
            victim.stop()
    for server in live:
        family = [*family, *server.pids]
        server.stop()
    found = {
        "processes": [pid for pid in set(family) if not is_gone(pid)],
        "children": len(probe_children(os.getpid())) - num_children,
        "ports": [port for port in ports if not is_closed(port)],
        "segments": left(names),
        "folders": [path for path in scratch if os.path.exists(path)],
    }
    assert found == {"processes": [], "children": 0, "ports": [], "segments": set(), "folders": []}
    assert len(names) == 10
    assert len(set(family)) >= 40  # ten fake engines with one process, ten rude ones with four


def test_a_crash_at_the_start_shows_the_log_and_the_first_error():
    with pytest.raises(ServerError) as caught:
        run_launch_spec(build_rude_spec("crash"))
    text = str(caught.value)
    assert "ended before it was ready (exit code 0)" in text
    assert "EngineError: no luck today" in caught.value.next_step
    assert "starting crash" in caught.value.log_tail
    assert "".join(caught.value._render_traceback_()).startswith("ServerError: rude ended")


@pytest.mark.slow
def test_only_the_start_is_repeated_and_the_record_counts_it(tmp_path):
    once = tmp_path / "once"
    fail_once = f"import os, sys\nif not os.path.exists({str(once)!r}):\n    open({str(once)!r}, 'w'); sys.exit(1)\n"
    with run_launch_spec(build_rude_spec(program=fail_once + rude_engine.PROGRAM, num_start_retries=1)) as server:
        assert server.start_attempts == 2
        assert server.to_dict()["start_attempts"] == 2
    with pytest.raises(ServerError):
        run_launch_spec(build_rude_spec("crash", num_start_retries=1))


@pytest.mark.slow
@linux
def test_a_missed_deadline_is_an_error_and_nothing_is_left():
    children = probe_children(os.getpid())
    with pytest.raises(ServerError, match=r"not ready after \d+ s \(limit 1 s\)") as caught:
        run_launch_spec(build_rude_spec("never", ready_deadline_s=1.0))  # returns: it would sleep for 600 s
    assert not left(find_segments(caught.value.log_tail))
    assert probe_children(os.getpid()) == children


@pytest.mark.slow
def test_a_slow_start_is_waited_for():
    with run_fake(FakePlan(start_delay_s=0.5)) as server:
        assert server.start_s >= 0.5


def test_asking_for_a_taken_port_is_a_clear_error():
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(ServerError, match=f"Port {port} of 127.0.0.1 is not free"):
            run_fake(port=port)


@pytest.mark.slow
@linux
def test_a_port_lost_to_another_program_is_replaced(monkeypatch, stranger):
    """The race: the port was free when it was chosen; now another server, with a healthy /health, has it."""
    answers = iter([stranger.port])
    monkeypatch.setattr(server_module, "find_free_port", lambda port: next(answers, None) or find_free_port(None))
    with run_fake(FakePlan(model="mine")) as mine:
        assert mine.port != stranger.port
        assert '"mine"' in mine.load_page("/v1/models")[1]
        assert mine.start_attempts == 1  # a lost race is not a failed start
    assert stranger.is_alive


@pytest.mark.slow
@linux
def test_the_health_of_another_server_on_the_port_does_not_count(monkeypatch, stranger):
    """/health is asked at least once before a deadline can pass."""
    monkeypatch.setattr(server_module, "find_free_port", lambda port: stranger.port)
    with pytest.raises(ServerError, match="not ready"):
        run_launch_spec(build_rude_spec("never", ready_deadline_s=0.5))


@pytest.mark.slow
def test_the_requested_port_is_used():
    port = find_free_port()
    with run_fake(port=port) as server:
        assert server.port == port


@pytest.mark.slow
@linux
def test_a_death_in_use_replaces_the_error_that_it_caused():
    with pytest.raises(ServerError, match="died while it was in use") as caught, run_fake() as server:
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: is_gone(server.pid))
        server.load_page("/stats")
    assert isinstance(caught.value.__cause__, OSError)
    assert "listening" in caught.value.log_tail


@pytest.mark.slow
@linux
def test_a_death_without_an_error_is_reported_too():
    with pytest.raises(ServerError, match="died while it was in use"), run_fake() as server:
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: not server.is_alive)


@pytest.mark.slow
def test_the_user_s_own_error_is_not_replaced_and_the_server_ends():
    with pytest.raises(ZeroDivisionError), run_fake() as server:
        print(1 / 0)
    assert not server.is_alive


@pytest.mark.slow
def test_an_interrupt_during_the_start_ends_the_engine(monkeypatch):
    seen = []

    def interrupt(server, deadline_s):
        seen.append(server)
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "_wait_until_ready", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_fake()
    assert seen[0].pid is not None
    assert is_gone(seen[0].pid) or sys.platform != "linux"


def test_a_program_that_does_not_exist_is_a_clear_error():
    with pytest.raises(ServerError, match="ended before it was ready") as caught:
        run_launch_spec(LaunchSpec("ghost", "none", ("/nonexistent/python", "{port}")))
    assert "No such file" in caught.value.log_tail


@pytest.mark.slow
@linux
def test_only_the_loopback_address_is_bound(stranger):
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    bound = {r[1] for r in rows if r[3] == "0A" and int(r[1].rpartition(":")[2], 16) == stranger.port}
    assert bound == {f"0100007F:{stranger.port:04X}"}


@linux
def test_segments_are_found_by_inode():
    from multiprocessing import shared_memory

    before = probe_segments([os.getpid()])
    segment = shared_memory.SharedMemory(create=True, size=100)
    try:
        stat = os.stat(f"/dev/shm/{segment.name}")
        assert probe_segments([os.getpid()]) - before == {(stat.st_dev, stat.st_ino)}
    finally:
        segment.close()
        segment.unlink()


# --- how engines are started -----------------------------------------------------------------------------------------


def test_all_engines_get_the_same_thread_plan():
    plans = [build_launch_spec(engine, model=DRAFT, tier="cpu").thread_plan for engine in ENGINES if engine != "fake"]
    assert plans == [build_thread_plan(1)] * 3
    assert plans[0]["OMP_NUM_THREADS"] == "1"
    assert plans[0]["OMP_WAIT_POLICY"] == "passive"
    assert plans[0]["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    spec = build_launch_spec("vllm", model=DRAFT, num_threads=3)
    assert spec.to_dict()["thread_plan"] == build_thread_plan(3)
    with pytest.raises(LabkitError, match="at least 1"):
        build_thread_plan(0)


@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "fake"])
@pytest.mark.parametrize("tier", TIERS)
def test_every_tier_has_its_command(engine, tier):
    spec = build_launch_spec(engine, model=DRAFT, tier=tier, max_model_len=512)
    argv = list(spec.argv)

    def value(option):
        return argv[argv.index(option) + 1]

    assert value("--model") == str(DRAFT.resolve())
    assert value("--served-model-name") == "python-2m"
    assert value("--port") == "{port}"
    assert value("--max-model-len") == "512"
    dtypes = {"t4": {"float16"}, "ampere": {"bfloat16"}, "hopper": {"bfloat16"}, "cpu": {"float32", "bfloat16"}}
    assert value("--dtype") in dtypes[tier]
    assert spec.settings["device"] == ("cpu" if tier == "cpu" else "cuda")
    assert spec.env["HF_HUB_OFFLINE"] == "1"
    if engine == "vllm":
        assert argv[1:3] == ["-m", "vllm.entrypoints.openai.api_server"]
        assert value("--host") == "127.0.0.1"
        assert ("--enforce-eager" in argv) == (tier == "cpu")
        assert ("VLLM_CPU_KVCACHE_SPACE" in spec.env) == (tier == "cpu")
        assert ("--gpu-memory-utilization" in argv) == (tier != "cpu")
        assert spec.env["VLLM_NO_USAGE_STATS"] == "1"
        assert spec.num_start_retries == 1
    else:
        assert value("--device") == spec.settings["device"]
        assert value("--mode") == engine.partition("-")[2]
        assert spec.num_start_retries == 0


def test_the_options_of_vllm_reach_its_command_and_the_record():
    spec = build_launch_spec(
        "vllm", model=DRAFT, tier="cpu", kv_cache_gib=2, has_prefix_cache=False, is_eager=False, max_num_seqs=8,
        extra_args=("--speculative-config", "{}"), dtype="float32",
    )  # fmt: skip
    assert spec.env["VLLM_CPU_KVCACHE_SPACE"] == "2"
    assert spec.argv[-2:] == ("--speculative-config", "{}")
    assert "--no-enable-prefix-caching" in spec.argv
    assert "--enforce-eager" not in spec.argv
    assert spec.to_dict()["settings"] == {
        "dtype": "float32", "device": "cpu", "is_eager": False, "has_prefix_cache": False,
        "kv_cache_bytes": 2 * 1024**3, "max_num_seqs": 8, "extra_args": ["--speculative-config", "{}"],
    }  # fmt: skip
    assert str(ROOT) not in json.dumps(spec.to_dict())


def test_bfloat16_is_chosen_only_on_a_processor_that_has_it(monkeypatch):
    from dataclasses import replace

    from labkit import hardware

    machine = replace(hardware.probe_machine(), gpus=())
    for flags, dtype in ((("avx512_bf16",), "bfloat16"), ((), "float32")):
        seen = replace(machine, cpu=replace(machine.cpu, flags=flags))
        monkeypatch.setattr(hardware, "probe_machine", lambda seen=seen: seen)
        assert build_launch_spec("vllm", model=DRAFT).settings["dtype"] == dtype
    monkeypatch.setenv("LABKIT_TIER", "hopper")  # cannot conjure a GPU: the engine would not start
    assert build_launch_spec("vllm", model=DRAFT).settings["device"] == "cpu"
    gpu = hardware.Gpu(0, "NVIDIA H200", 141 * 1024**3, (9, 0), "580")
    monkeypatch.setattr(hardware, "probe_machine", lambda: replace(machine, gpus=(gpu,)))
    assert build_launch_spec("vllm", model=DRAFT).settings["device"] == "cuda"


def test_vllm_is_not_started_with_too_little_memory(monkeypatch):
    from dataclasses import replace

    from labkit import hardware

    machine = replace(hardware.probe_machine(), gpus=(), memory_free_bytes=2 * 1024**3)
    monkeypatch.setattr(hardware, "probe_machine", lambda: machine)
    with pytest.raises(HardwareError, match=r"needs about 3\.\d+ GiB of memory, 2.00 GiB is free"):
        run_server("vllm", model=DRAFT)


def test_a_model_with_random_weights_needs_no_weights_on_the_disk():
    from labkit.models import Model

    model = Model(
        "random:tiny", "random", "random:tiny", {"model_type": "llama", "vocab_size": 4096}, 1, 4, 1, "float32"
    )
    vllm, plain = (build_launch_spec(engine, model=model, tier="cpu") for engine in ("vllm", "transformers-naive"))
    assert "--load-format" in vllm.argv
    assert "--random-weights" in plain.argv
    for spec in (vllm, plain):
        assert spec.argv[spec.argv.index("--model") + 1] == "{scratch}/model"
        assert json.loads(spec.files["model/config.json"])["architectures"] == ["LlamaForCausalLM"]
        assert "model/tokenizer.json" in spec.files
        assert spec.settings["has_random_weights"] is True


@pytest.mark.slow
def test_files_and_placeholders_are_filled_in_at_the_start():
    names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "HERE", "PYTHONPATH")
    show = f"import os, sys; print('SEEN', open(sys.argv[3]).read(), *map(os.environ.get, {names}))\n"
    spec = build_rude_spec(
        program=show + rude_engine.PROGRAM, args=("{scratch}/a/b.txt",), files={"a/b.txt": "hello"},
        env={"HERE": "{scratch}/x", "PYTHONPATH": "{scratch}/python"}, thread_plan=build_thread_plan(7),
    )  # fmt: skip
    with run_launch_spec(spec) as server:
        assert f"SEEN hello 7 passive {server._scratch}/x {server._scratch}/python" in server.load_log_tail()


def test_another_interpreter_can_run_the_engine(monkeypatch, tmp_path):
    assert find_engine_python() == sys.executable
    link = tmp_path / "python"
    link.symlink_to(sys.executable)
    monkeypatch.setenv("LABKIT_ENGINE_PYTHON", str(link))
    assert find_engine_python() == str(link)  # not resolved: a virtual environment would lose its packages
    assert build_launch_spec("vllm", model=DRAFT).argv[0] == str(link)
    assert find_engine_python(sys.executable) == sys.executable  # the argument wins
    monkeypatch.setenv("LABKIT_ENGINE_PYTHON", str(tmp_path / "nothing"))
    with pytest.raises(InstallError, match="not an executable file"):
        find_engine_python()


def test_versions_come_from_the_engine_s_own_interpreter(tmp_path):
    found = probe_versions(sys.executable, distributions=("numpy", "not-a-package"))
    assert set(found) == {"python", "numpy"}
    stranger = tmp_path / "python"
    stranger.write_text('#!/bin/sh\necho \'{"python": "9.9"}\'\n')
    stranger.chmod(0o755)
    assert probe_versions(str(stranger), distributions=("numpy",)) == {"python": "9.9"}
    assert probe_versions("/nonexistent", distributions=()) == {}


@pytest.mark.slow
def test_another_interpreter_does_not_inherit_our_import_path(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "ours"))
    link = tmp_path / "python"
    link.symlink_to(sys.executable)
    program = "import os; print('PATH', os.environ.get('PYTHONPATH'), flush=True)\n" + rude_engine.PROGRAM
    for python, expected in ((sys.executable, str(tmp_path / "ours")), (str(link), "None")):
        with run_launch_spec(build_rude_spec(program=program, python=python)) as server:
            assert f"PATH {expected}\n" in server.load_log_tail() + "\n"


def test_the_amx_permission_is_requested_and_the_next_sitecustomize_still_runs(tmp_path):
    text = build_launch_spec("vllm", model=DRAFT).files["python/sitecustomize.py"]
    for name, content in (("ours", text), ("theirs", "print('theirs ran')")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "sitecustomize.py").write_text(content)
    path = os.pathsep.join(str(tmp_path / name) for name in ("ours", "theirs"))
    answer = subprocess.run(
        [sys.executable, "-c", "print('main ran')"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert answer.stdout.split("\n")[:2] == ["theirs ran", "main ran"]
    assert answer.stderr == ""
    assert "0x1023" in text
    assert "x86_64" in text  # the number means another call on another processor


def test_unknown_engines_modes_and_tiers_are_refused():
    for call, words in (
        (lambda: build_launch_spec("tgi", model=DRAFT), "no engine 'tgi'"),
        (lambda: build_launch_spec("vllm"), "needs a model"),
        (lambda: build_launch_spec("vllm", model=DRAFT, tier="tpu"), "no tier 'tpu'"),
        (lambda: build_launch_spec("transformers-clever", model=DRAFT), "no engine"),
    ):
        with pytest.raises(LabkitError, match=words):
            call()


@pytest.mark.slow
def test_ctrl_c_ends_serving_from_a_shell():
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    code += "from labkit.servers.engines import run_serve; sys.exit(run_serve('fake', []))"
    shell = start_python(code)
    try:
        shell.stdout.readline()
        line = shell.stdout.readline()
        port = int(line.split("http://127.0.0.1:")[1].split()[0])
        assert not is_closed(port)
        shell.send_signal(signal.SIGINT)
        assert shell.wait(timeout=300) == 0
        assert is_closed(port)
    finally:
        shell.kill()
        shell.wait()
        shell.stdout.close()


def test_a_dry_run_from_a_shell_prints_the_command(capsys):
    assert run_serve("vllm", ["--model", str(DRAFT), "--tier", "hopper", "--dry-run"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert "bfloat16" in shown["argv"]
    assert shown["env"]["OMP_WAIT_POLICY"] == "passive"
    with pytest.raises(LabkitError, match="--dry-run"):
        run_serve("vllm", ["--model", str(DRAFT), "--tier", "hopper"])


# --- two engines, the same tokens ------------------------------------------------------------------------------------


def test_a_token_comparison_counts_equal_answers_excused_ties_and_real_differences():
    prompts = [[1], [2], [3], [4]]
    a = [[5, 6, 7], [5, 6, 7], [5, 6, 7], [5, 6]]
    b = [[5, 6, 7], [5, 9, 1], [8, 6, 7], [5, 6, 7]]
    asked = []

    def tie_gap(prefix, left, right):
        asked.append((prefix, left, right))
        return 5e-5 if prefix == [2, 5] else 0.2

    found = compare_tokens(a, b, prompts=prompts, tie_gap=tie_gap)
    assert asked == [([2, 5], 6, 9), ([3], 5, 8)]
    assert (found.num_answers, found.num_equal, found.num_tokens_compared) == (4, 1, 3 + 2 + 1 + 2)
    assert found.excused == ((1, 1, 5e-5),)
    assert found.unexcused == ((2, 0, 0.2), (3, 2, float("inf")))
    assert not found.is_equal
    text = format_token_comparison(found, names=("vLLM", "Transformers"))
    assert "1 of 4 answers equal" in text
    assert "1 differences excused (a tie), 2 not" in text
    assert "answer 2, token 0: NOT excused, gap 0.2" in text


def test_the_excuse_ends_at_a_gap_of_one_ten_thousandth():
    for gap, is_equal in ((0.99e-4, True), (1e-4, False)):
        found = compare_tokens([[1]], [[2]], prompts=[[0]], tie_gap=lambda *_, gap=gap: gap)
        assert found.is_equal is is_equal


def test_a_token_comparison_needs_one_answer_per_prompt():
    with pytest.raises(LabkitError, match="1 and 2 answers to 2 prompts"):
        compare_tokens([[1]], [[1], [2]], prompts=[[0], [0]], tie_gap=lambda *_: 0.0)
