"""labkit.servers: engines start, fail clearly, and leave nothing behind, whatever happens to them or the notebook."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from labkit.errors import HardwareError, InstallError, LabkitError
from labkit.hardware import TIERS
from labkit.servers import Server, ServerError, estimate_launch, run_fake, run_server
from labkit.servers.agreement import check_agreement, format_agreement
from labkit.servers.base import run_launch
from labkit.servers.engines import ENGINES, run_serve
from labkit.servers.fake import FakePlan, load_stats
from labkit.servers.launch import Launch, find_free_port
from labkit.servers.supervisor import probe_children, probe_memory_of, probe_segments
from labkit.servers.surroundings import estimate_thread_plan, find_engine_python, probe_versions

ROOT = Path(__file__).resolve().parents[1]
DRAFT = ROOT / "data" / "models" / "python-2m"
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")

# An engine with bad manners: children in sessions of their own, shared memory that it never removes, deaf to SIGTERM.
# Four processes: itself, two children, and the resource tracker of its Python.
RUDE = textwrap.dedent(
    """
    import http.server, os, signal, subprocess, sys, time
    from multiprocessing import resource_tracker, shared_memory
    port, mode = int(sys.argv[1]), sys.argv[2]
    print("starting", mode, flush=True)
    if "crash" in mode:
        print("Traceback", file=sys.stderr)
        print("EngineError: no luck today", file=sys.stderr)
        sys.exit(0)  # an exit code of 0 is no success
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    shm = shared_memory.SharedMemory(create=True, size=4096)
    resource_tracker.unregister(shm._name, "shared_memory")
    print("segment", shm.name, flush=True)
    child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
    subprocess.Popen([sys.executable, "-c", child])
    if "never" in mode:
        time.sleep(600)
    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
        def log_message(self, *_): pass
    http.server.HTTPServer(("127.0.0.1", port), Page).serve_forever()
    """
)


def rude(mode="", **options):
    options = {"ready_deadline_s": 60.0, "grace_s": 0.2, **options}
    return Launch("rude", "none", (sys.executable, "-c", RUDE, "{port}", mode), **options)


def is_gone(pid):
    """Whether a process is no more (a zombie that its parent has not collected is gone as well)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def is_closed(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def segments_of(log):
    """The names of the shared-memory segments that rude engines announced in this text."""
    return set(re.findall(r"segment (\w+)", log))


def left(names):
    """Those of `names` that are still there (others may use shared memory at the same time)."""
    return {name for name in names if os.path.exists(f"/dev/shm/{name}")}


def wait_until(is_true, *, limit_s=30.0):
    deadline = time.monotonic() + limit_s
    while not is_true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_server_says_what_it_is():
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
    server = run_launch(rude())
    try:
        wait_until(lambda: len(server.pids) == 4)
        memory = server.measure_memory()
        alone = probe_memory_of([server.pid])
        assert memory["num_processes"] == 4
        assert memory["rss_bytes"] > alone["rss_bytes"] + 8e6  # three more Pythons
        assert 0 < memory["pss_bytes"] <= memory["rss_bytes"]
    finally:
        server.stop()


@pytest.mark.slow
@linux
def test_a_rude_engine_leaves_nothing_behind():
    with run_launch(rude()) as server:
        wait_until(lambda: len(server.pids) == 4)
        family, port, scratch, names = server.pids, server.port, server._scratch, segments_of(server.load_log_tail())
        assert len(left(names)) == 1
    assert all(is_gone(pid) for pid in family)
    assert is_closed(port)
    assert not left(names)
    assert not os.path.exists(scratch)


@pytest.mark.slow
@linux
def test_an_engine_that_is_killed_leaves_nothing_behind_either():
    server = run_launch(rude())
    wait_until(lambda: len(server.pids) == 4)
    time.sleep(0.7)  # the supervisor looks for segments twice a second while an engine starts
    family, names = server.pids, segments_of(server.load_log_tail())
    assert len(left(names)) == 1
    os.kill(server.pid, signal.SIGKILL)
    wait_until(lambda: all(is_gone(pid) for pid in family) and not left(names))
    with pytest.raises(ServerError, match="died while it was in use .signal 9"):
        server.check_alive()
    server.stop()


@pytest.mark.slow
@linux
def test_a_supervisor_that_is_killed_does_not_leave_the_engine_behind():
    server = run_launch(rude())
    wait_until(lambda: len(server.pids) == 4)
    family, names = server.pids, segments_of(server.load_log_tail())
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


PARENT = """
import sys, time, threading
sys.path.insert(0, {root!r})
sys.argv = ["parent"]
exec(open({program!r}).read())
server = run_launch(rude())
while len(server.pids) < 4:
    time.sleep(0.05)
time.sleep(0.7)
names = segments_of(server.load_log_tail())
print(*server.pids, server.port, server._supervisor.pid, server._scratch, *names, flush=True)
{then}
"""


def start_parent(tmp_path, then):
    """A process with a rude server: (process, family of the engine, port, supervisor, scratch folder, segment)."""
    program = tmp_path / "rude.py"
    text = Path(__file__).read_text(encoding="utf-8")
    begin, end = text.index("# An engine with bad manners"), text.index("def is_gone")
    program.write_text(
        "import re, sys, textwrap\n"
        "from labkit.servers.base import run_launch\nfrom labkit.servers.launch import Launch\n"
        + text[begin:end]
        + text[text.index("def segments_of") : text.index("def left")],
        encoding="utf-8",
    )
    code = PARENT.format(root=str(ROOT), program=str(program), then=then)
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    *numbers, scratch, name = parent.stdout.readline().split()
    *pids, port, supervisor = map(int, numbers)
    return parent, pids, port, supervisor, scratch, name


@pytest.mark.slow
@linux
@pytest.mark.parametrize("end", ["kill -9", "kill -9 of the group", "interrupt", "exit", "forgotten"])
def test_no_child_survives_the_notebook(tmp_path, end):
    """kill -9, a kernel restart (SIGKILL to its process group), Ctrl-C, sys.exit, and a server nobody stopped."""
    then = {"exit": "raise SystemExit(3)", "forgotten": "del server; time.sleep(60)"}.get(end, "time.sleep(600)")
    parent, pids, port, supervisor, scratch, name = start_parent(tmp_path, then)
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
def test_a_forked_child_that_holds_the_pipe_does_not_keep_the_engine_alive(tmp_path):
    """A fork of the notebook (a data loader, say) inherits the pipe; the supervisor notices the death all the same."""
    then = "import os\nif os.fork() == 0:\n    time.sleep(60)\n    os._exit(0)\ntime.sleep(600)"
    parent, pids, _, supervisor, scratch, name = start_parent(tmp_path, then)
    wait_until(lambda: len(probe_children(parent.pid)) == len(pids) + 2)  # the supervisor and the fork
    (fork,) = set(probe_children(parent.pid)) - {supervisor, *pids}
    parent.kill()
    try:
        wait_until(lambda: all(is_gone(pid) for pid in (*pids, supervisor)), limit_s=25)
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
        server = run_launch(rude()) if number % 2 else run_fake(plan)
        family, ports, scratch = [*family, *server.pids], [*ports, server.port], [*scratch, server._scratch]
        names |= segments_of(server.load_log_tail())
        live.append(server)
        while live and (len(live) > 3 or order.random() < 0.5):
            victim = live.pop(order.randrange(len(live)))
            way = order.choice(["stop", "kill", "term"])
            family = [*family, *victim.pids]
            if way != "stop":
                os.kill(victim.pid, signal.SIGKILL if way == "kill" else signal.SIGTERM)
                time.sleep(order.random() * 0.2)
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
        run_launch(rude("crash"))
    text = str(caught.value)
    assert "ended before it was ready (exit code 0)" in text
    assert "EngineError: no luck today" in caught.value.next_step
    assert "starting crash" in caught.value.log_tail
    assert "".join(caught.value._render_traceback_()).startswith("ServerError: rude ended")


@pytest.mark.slow
def test_only_the_start_is_repeated_and_the_record_counts_it(tmp_path):
    once = tmp_path / "once"
    program = (
        f"import os, sys\nif not os.path.exists({str(once)!r}):\n    open({str(once)!r}, 'w'); sys.exit(1)\n{RUDE}"
    )
    launch = Launch("rude", "none", (sys.executable, "-c", program, "{port}", ""), num_start_retries=1, grace_s=0.2)
    with run_launch(launch) as server:
        assert server.start_attempts == 2
        assert server.to_dict()["start_attempts"] == 2
    with pytest.raises(ServerError):
        run_launch(rude("crash", num_start_retries=1))


@pytest.mark.slow
@linux
def test_a_deadline_is_kept_and_nothing_is_left():
    begin, children = time.monotonic(), probe_children(os.getpid())
    with pytest.raises(ServerError, match=r"not ready after \d+ s \(limit 2 s\)") as caught:
        run_launch(rude("never", ready_deadline_s=2.0))
    assert time.monotonic() - begin < 30
    assert not left(segments_of(caught.value.log_tail))
    assert probe_children(os.getpid()) == children


@pytest.mark.slow
def test_a_fake_server_that_starts_slowly_is_waited_for():
    with run_fake(FakePlan(start_delay_s=1.0)) as server:
        assert server.start_s >= 1.0


def test_a_taken_port_is_a_clear_error_when_it_was_asked_for():
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(ServerError, match=f"Port {port} of 127.0.0.1 is not free"):
            run_fake(port=port)


@pytest.mark.slow
@linux
def test_a_port_that_is_lost_to_somebody_else_is_replaced(monkeypatch):
    """The race: the port was free when it was chosen, and a stranger with a healthy /health has it now."""
    from labkit.servers import base

    with run_fake() as stranger:
        answers = iter([stranger.port])
        monkeypatch.setattr(base, "find_free_port", lambda port: next(answers, None) or find_free_port(None))
        with run_fake(FakePlan(model="mine")) as server:
            assert server.port != stranger.port
            assert '"mine"' in server._get("/v1/models")[1]
            assert server.start_attempts == 1  # a lost race is no failed start
        assert stranger.is_alive


@pytest.mark.slow
@linux
def test_a_stranger_s_health_is_not_taken_for_the_engine_s(monkeypatch):
    from labkit.servers import base

    with run_fake() as stranger:
        monkeypatch.setattr(base, "find_free_port", lambda port: stranger.port)
        with pytest.raises(ServerError, match="not ready"):
            run_launch(rude("never", ready_deadline_s=2.0))


@pytest.mark.slow
def test_the_port_that_was_asked_for_is_used():
    port = find_free_port()
    with run_fake(port=port) as server:
        assert server.port == port


@pytest.mark.slow
@linux
def test_a_death_in_use_replaces_the_error_that_it_caused():
    with pytest.raises(ServerError, match="died while it was in use") as caught, run_fake() as server:
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: is_gone(server.pid))
        server._get("/stats")
    assert isinstance(caught.value.__cause__, OSError)
    assert "listening" in caught.value.log_tail


@pytest.mark.slow
@linux
def test_a_death_without_an_error_is_told_all_the_same():
    with pytest.raises(ServerError, match="died while it was in use"), run_fake() as server:
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: not server.is_alive)


@pytest.mark.slow
def test_an_error_of_the_user_stays_the_error_and_the_server_ends():
    with pytest.raises(ZeroDivisionError), run_fake() as server:
        print(1 / 0)
    assert not server.is_alive


@pytest.mark.slow
def test_an_interrupt_while_the_engine_starts_ends_it(monkeypatch):
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
        run_launch(Launch("ghost", "none", ("/nonexistent/python", "{port}")))
    assert "No such file" in caught.value.log_tail


@pytest.mark.slow
@linux
def test_only_the_loopback_address_is_bound():
    with run_fake() as server:
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        bound = {r[1] for r in rows if r[3] == "0A" and int(r[1].rpartition(":")[2], 16) == server.port}
    assert bound == {f"0100007F:{server.port:04X}"}


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


def test_there_is_one_thread_plan_for_all_engines():
    plans = [
        {k: v for k, v in estimate_launch(engine, model=DRAFT, tier="cpu").env.items() if k in estimate_thread_plan()}
        for engine in ENGINES
        if engine != "fake"
    ]
    assert plans == [estimate_thread_plan(1)] * 3
    assert plans[0]["OMP_NUM_THREADS"] == "1"
    assert plans[0]["OMP_WAIT_POLICY"] == "passive"
    assert plans[0]["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    launch = estimate_launch("vllm", model=DRAFT, num_threads=3)
    assert launch.to_dict()["thread_plan"] == estimate_thread_plan(3)
    with pytest.raises(LabkitError, match="at least 1"):
        estimate_thread_plan(0)


@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "fake"])
@pytest.mark.parametrize("tier", TIERS)
def test_every_tier_has_its_command(engine, tier):
    launch = estimate_launch(engine, model=DRAFT, tier=tier, max_model_len=512)
    argv = list(launch.argv)

    def value(option):
        return argv[argv.index(option) + 1]

    assert value("--model") == str(DRAFT.resolve())
    assert value("--served-model-name") == "python-2m"
    assert value("--port") == "{port}"
    assert value("--max-model-len") == "512"
    dtypes = {"t4": {"float16"}, "ampere": {"bfloat16"}, "hopper": {"bfloat16"}, "cpu": {"float32", "bfloat16"}}
    assert value("--dtype") in dtypes[tier]
    assert launch.settings["device"] == ("cpu" if tier == "cpu" else "cuda")
    assert launch.env["HF_HUB_OFFLINE"] == "1"
    if engine == "vllm":
        assert argv[1:3] == ["-m", "vllm.entrypoints.openai.api_server"]
        assert value("--host") == "127.0.0.1"
        assert ("--enforce-eager" in argv) == (tier == "cpu")
        assert ("VLLM_CPU_KVCACHE_SPACE" in launch.env) == (tier == "cpu")
        assert ("--gpu-memory-utilization" in argv) == (tier != "cpu")
        assert launch.env["VLLM_NO_USAGE_STATS"] == "1"
        assert launch.num_start_retries == 1
    else:
        assert value("--device") == launch.settings["device"]
        assert value("--mode") == engine.partition("-")[2]
        assert launch.num_start_retries == 0


def test_the_options_of_vllm_reach_its_command_and_the_record():
    launch = estimate_launch(
        "vllm", model=DRAFT, tier="cpu", kv_cache_gib=2, has_prefix_cache=False, is_eager=False, max_num_seqs=8,
        extra_args=("--speculative-config", "{}"), dtype="float32",
    )  # fmt: skip
    assert launch.env["VLLM_CPU_KVCACHE_SPACE"] == "2"
    assert launch.argv[-2:] == ("--speculative-config", "{}")
    assert "--no-enable-prefix-caching" in launch.argv
    assert "--enforce-eager" not in launch.argv
    assert launch.to_dict()["settings"] == {
        "dtype": "float32", "device": "cpu", "is_eager": False, "has_prefix_cache": False,
        "kv_cache_bytes": 2 * 1024**3, "max_num_seqs": 8, "extra_args": ["--speculative-config", "{}"],
    }  # fmt: skip
    assert str(ROOT) not in json.dumps(launch.to_dict())


def test_bfloat16_is_chosen_only_where_the_processor_has_it(monkeypatch):
    from dataclasses import replace

    from labkit import hardware

    machine = replace(hardware.probe_machine(), gpus=())
    for flags, dtype in ((("avx512_bf16",), "bfloat16"), ((), "float32")):
        seen = replace(machine, cpu=replace(machine.cpu, flags=flags))
        monkeypatch.setattr(hardware, "probe_machine", lambda seen=seen: seen)
        assert estimate_launch("vllm", model=DRAFT).settings["dtype"] == dtype
    monkeypatch.setenv("LABKIT_TIER", "hopper")  # cannot conjure a GPU: the engine would not start
    assert estimate_launch("vllm", model=DRAFT).settings["device"] == "cpu"
    gpu = hardware.Gpu(0, "NVIDIA H200", 141 * 1024**3, (9, 0), "580")
    monkeypatch.setattr(hardware, "probe_machine", lambda: replace(machine, gpus=(gpu,)))
    assert estimate_launch("vllm", model=DRAFT).settings["device"] == "cuda"


def test_vllm_is_not_started_into_too_little_memory(monkeypatch):
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
    vllm, plain = (estimate_launch(engine, model=model, tier="cpu") for engine in ("vllm", "transformers-naive"))
    assert "--load-format" in vllm.argv
    assert "--random-weights" in plain.argv
    for launch in (vllm, plain):
        assert launch.argv[launch.argv.index("--model") + 1] == "{scratch}/model"
        assert json.loads(launch.files["model/config.json"])["architectures"] == ["LlamaForCausalLM"]
        assert "model/tokenizer.json" in launch.files
        assert launch.settings["has_random_weights"] is True


@pytest.mark.slow
def test_files_and_placeholders_are_filled_in_at_the_start():
    show = "import os, sys; print('HERE', os.environ['HERE'], open(sys.argv[3]).read(), os.environ['PYTHONPATH'])\n"
    launch = Launch(
        "rude", "none", (sys.executable, "-c", show + RUDE, "{port}", "", "{scratch}/a/b.txt"),
        files={"a/b.txt": "hello"}, env={"HERE": "{scratch}/x", "PYTHONPATH": "{scratch}/python"}, grace_s=0.2,
    )  # fmt: skip
    with run_launch(launch) as server:
        assert f"HERE {server._scratch}/x hello {server._scratch}/python" in server.load_log_tail()


def test_the_engine_s_interpreter_can_be_another_one(monkeypatch, tmp_path):
    assert find_engine_python() == sys.executable
    link = tmp_path / "python"
    link.symlink_to(sys.executable)
    monkeypatch.setenv("LABKIT_ENGINE_PYTHON", str(link))
    assert find_engine_python() == str(link)  # not resolved: a virtual environment would lose its packages
    assert estimate_launch("vllm", model=DRAFT).argv[0] == str(link)
    assert find_engine_python(sys.executable) == sys.executable  # the argument wins
    monkeypatch.setenv("LABKIT_ENGINE_PYTHON", str(tmp_path / "nothing"))
    with pytest.raises(InstallError, match="no program"):
        find_engine_python()


def test_versions_are_asked_of_the_engine_s_own_interpreter(tmp_path):
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
    program = "import os; print('PATH', os.environ.get('PYTHONPATH'), flush=True)\n" + RUDE
    for python, expected in ((sys.executable, str(tmp_path / "ours")), (str(link), "None")):
        with run_launch(Launch("rude", "none", (python, "-c", program, "{port}", ""), grace_s=0.2)) as server:
            assert f"PATH {expected}\n" in server.load_log_tail() + "\n"


def test_the_amx_permission_is_asked_for_and_the_next_sitecustomize_still_runs(tmp_path):
    text = estimate_launch("vllm", model=DRAFT).files["python/sitecustomize.py"]
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
        (lambda: estimate_launch("tgi", model=DRAFT), "no engine 'tgi'"),
        (lambda: estimate_launch("vllm"), "needs a model"),
        (lambda: estimate_launch("vllm", model=DRAFT, tier="tpu"), "no tier"),
        (lambda: estimate_launch("transformers-clever", model=DRAFT), "no engine"),
    ):
        with pytest.raises(LabkitError, match=words):
            call()


@pytest.mark.slow
def test_serving_from_a_shell_ends_with_an_interrupt():
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    code += "from labkit.servers.engines import run_serve; sys.exit(run_serve('fake', []))"
    shell = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        shell.stdout.readline()
        line = shell.stdout.readline()
        port = int(line.split("http://127.0.0.1:")[1].split()[0])
        assert not is_closed(port)
        shell.send_signal(signal.SIGINT)
        assert shell.wait(timeout=30) == 0
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


# --- agreement -------------------------------------------------------------------------------------------------------


def test_agreement_counts_equal_answers_excused_ties_and_real_differences():
    prompts = [[1], [2], [3], [4]]
    a = [[5, 6, 7], [5, 6, 7], [5, 6, 7], [5, 6]]
    b = [[5, 6, 7], [5, 9, 1], [8, 6, 7], [5, 6, 7]]
    asked = []

    def tie_gap(prefix, left, right):
        asked.append((prefix, left, right))
        return 5e-5 if prefix == [2, 5] else 0.2

    found = check_agreement(a, b, prompts=prompts, tie_gap=tie_gap)
    assert asked == [([2, 5], 6, 9), ([3], 5, 8)]
    assert (found.num_answers, found.num_equal, found.num_tokens_compared) == (4, 1, 3 + 2 + 1 + 2)
    assert found.excused == ((1, 1, 5e-5),)
    assert found.broken == ((2, 0, 0.2), (3, 2, float("inf")))
    assert not found.is_agreed
    text = format_agreement(found, names=("vLLM", "Transformers"))
    assert "1 of 4 answers equal" in text
    assert "1 differences excused (a tie), 2 not" in text
    assert "answer 2, token 0: NOT excused, gap 0.2" in text


def test_the_excuse_ends_at_a_gap_of_one_ten_thousandth():
    for gap, is_agreed in ((0.99e-4, True), (1e-4, False)):
        found = check_agreement([[1]], [[2]], prompts=[[0]], tie_gap=lambda *_, gap=gap: gap)
        assert found.is_agreed is is_agreed


def test_agreement_needs_one_answer_per_prompt():
    with pytest.raises(LabkitError, match="1 and 2 answers to 2 prompts"):
        check_agreement([[1]], [[1], [2]], prompts=[[0], [0]], tie_gap=lambda *_: 0.0)
