"""How does a load run go past one machine? Under Locust's own master and workers, with labkit's plan and metrics.

    pip install "labkit[locust]"
    locust -f labkit/load/locustfile.py --headless --master --expect-workers 2 --host http://HOST:PORT \\
        --labkit-model MODEL --labkit-rate 20 --labkit-requests 600
    locust -f labkit/load/locustfile.py --worker --master-host MASTER       (on every machine, as often as it has cores)

Every worker draws the same plan from the same seed and follows every n-th chain of it with labkit's client, whose event
loop runs in a greenlet of gevent. All begin at one time of the wall clock, so the machines' clocks must agree (NTP) as
closely as the run should be exact. The master merges the records into one report, prints it, and exits with 0 only for
a valid run. Locust's own statistics show the time to first token; its users do nothing here (`-u` and `-r` are not
needed). This is a program: nothing imports it.
"""

import asyncio
import dataclasses
import selectors
import time
from pathlib import Path

import gevent
from locust import User, constant, events, task
from locust.runners import LocalRunner, MasterRunner, WorkerRunner

from labkit.load.client import ClientHealth, ClientRun, Limits, Target, run_client
from labkit.load.metrics import estimate_metrics
from labkit.load.records import RequestRecord
from labkit.load.report import LoadResult, format_report, save_report
from labkit.load.run import read_slo
from labkit.load.transport import HttpTransport
from labkit.load.verdict import check_client
from labkit.workload import LoadPlan, draw_open_plan

__all__ = ["Idle", "add_options", "connect", "start_run"]

_LEAD_S = 2.0  # from the master's start signal to the start of the plan: messages must have arrived
_GRACE_S = 30.0
_COARSE_S = 0.0015
_OPTIONS = (
    ("model", str, "", "name of the model"), ("api", str, "completions", "completions or chat"),
    ("arrival", str, "poisson", "arrival process"), ("rate", float, 1.0, "requests per second"),
    ("requests", int, 60, "number of requests"), ("prompt", str, "128", "prompt tokens"),
    ("output", str, "64", "output tokens"), ("seed", int, 0, "seed of the plan"),
    ("slo", str, "", "SLOs: ttft=0.5,tpot=0.03"), ("request-limit", float, 300.0, "seconds for one request"),
    ("out", str, "", "folder of the report"),
)  # fmt: skip


class Idle(User):
    """Locust needs a user; the client runs next to it."""

    wait_time = constant(1)

    @task
    def wait(self) -> None:
        """Do nothing."""


@events.init_command_line_parser.add_listener
def add_options(parser, **_) -> None:
    """Add labkit's options to Locust's."""
    group = parser.add_argument_group("labkit: the plan")
    for name, kind, default, words in _OPTIONS:
        words = f"{words} (default: {default or 'none'})"
        group.add_argument(f"--labkit-{name}", type=kind, default=default, help=words)


@events.init.add_listener
def connect(environment, **_) -> None:
    """Listen to the other side: workers to the start, the master to records."""
    runner = environment.runner
    if isinstance(runner, WorkerRunner):
        runner.register_message("labkit_start", _work, concurrent=True)
    elif isinstance(runner, MasterRunner):
        environment.labkit = _Collector(environment)
        for name in ("labkit_records", "labkit_end"):
            runner.register_message(name, environment.labkit.take)


@events.test_start.add_listener
def start_run(environment, **_) -> None:
    """Begin: the master tells every worker its place and the common start; without workers, this process works."""
    runner = environment.runner
    if isinstance(runner, WorkerRunner):
        return
    options = vars(environment.parsed_options)
    spec = {name: options[f"labkit_{name.replace('-', '_')}"] for name, *_ in _OPTIONS}
    spec |= {"url": environment.host, "begin": time.time() + _LEAD_S}
    if isinstance(runner, LocalRunner):
        environment.labkit = _Collector(environment)
        environment.labkit.begin(spec, ["local"])
        gevent.spawn(_follow, spec, 0, 1, environment, lambda name, data: environment.labkit.store("local", name, data))
        return
    workers = sorted(client.id for client in runner.clients.ready + runner.clients.spawning + runner.clients.running)
    environment.labkit.begin(spec, workers)
    for index, worker in enumerate(workers):
        runner.send_message("labkit_start", {**spec, "index": index, "num_workers": len(workers)}, worker)


def _draw(spec) -> LoadPlan:
    return draw_open_plan(spec["arrival"], rate_per_s=spec["rate"], num_requests=spec["requests"],
                          prompt=spec["prompt"], output=spec["output"], seed=spec["seed"])  # fmt: skip


def _work(environment, msg, **_) -> None:
    """A worker: follow its part of the plan and send records home about once a second."""
    send = environment.runner.send_message
    _follow(msg.data, msg.data["index"], msg.data["num_workers"], environment, send)


def _follow(spec, index, num_workers, environment, send) -> None:
    waiting: list[RequestRecord] = []

    def keep(record: RequestRecord) -> None:
        waiting.append(record)
        error = None if record.is_good else RuntimeError(record.cause)
        environment.events.request.fire(
            request_type="labkit", name="time to first token", response_time=1000 * (record.ttft_s or 0.0),
            response_length=record.num_output_tokens, exception=error, context={},
        )  # fmt: skip

    def flush() -> None:
        records, waiting[:] = list(waiting), []
        if records:
            send("labkit_records", {"records": [record.to_dict() for record in records]})

    def flush_often() -> None:
        while True:
            gevent.sleep(1.0)
            flush()

    flusher = gevent.spawn(flush_often)
    plan, target = _draw(spec).split(index, num_workers), Target(spec["model"], spec["api"])
    start_s = time.monotonic() + spec["begin"] - time.time()
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(_PreciseSelector())) as runner:
        run = runner.run(run_client(plan, target, HttpTransport(spec["url"]), limits=Limits(spec["request-limit"]),
                                    start_s=start_s, on_record=keep))  # fmt: skip
    flusher.kill()
    flush()
    send("labkit_end", {"end": run.end, "health": dataclasses.asdict(run.health)})


class _PreciseSelector(selectors.DefaultSelector):
    """gevent's selector, whose timers are up to a millisecond late, with a busy wait in the last millisecond."""

    def select(self, timeout: float | None = None) -> list:
        """Return what is ready, after at most `timeout` seconds."""
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        due_s = time.monotonic() + timeout
        ready = super().select(timeout - _COARSE_S) if timeout > _COARSE_S else []
        while not ready and time.monotonic() < due_s:
            gevent.sleep(0)
            ready = super().select(0)
        return ready


class _Collector:
    """The master's side: records and ends of all workers, then one report."""

    def __init__(self, environment) -> None:
        self.environment, self.spec = environment, {}

    def begin(self, spec: dict, workers: list[str]) -> None:
        self.spec, self.workers = spec, workers
        self.records: dict[str, list[RequestRecord]] = {worker: [] for worker in workers}
        self.ends: dict[str, dict] = {}
        gevent.spawn(self.wait)

    def take(self, environment, msg, **_) -> None:
        self.store(msg.node_id, msg.type, msg.data)

    def store(self, worker: str, name: str, data: dict) -> None:
        if name == "labkit_records":
            self.records[worker] += [RequestRecord.from_dict(record) for record in data["records"]]
        else:
            self.ends[worker] = data

    def wait(self) -> None:
        """Wait for every worker that is still alive, then report and quit."""
        plan = _draw(self.spec)
        limit = self.spec["begin"] + plan.last_start_s + self.spec["request-limit"] + _GRACE_S
        while time.time() < limit and (left := [worker for worker in self.workers if worker not in self.ends]):
            clients = getattr(self.environment.runner, "clients", None)
            if clients is not None and all(worker not in clients or clients[worker].state == "missing"
                                           for worker in left):  # fmt: skip
                break
            gevent.sleep(0.2)
        try:
            self.report(plan)
        finally:
            options = self.environment.parsed_options
            (self.environment.runner.quit if options is None or options.headless else self.environment.runner.stop)()

    def report(self, plan) -> None:
        """Merge, print and save."""
        runs, problems = [], []
        for index, worker in enumerate(self.workers):
            end = self.ends.get(worker)
            if not end:
                kept, num = len(self.records[worker]), plan.split(index, len(self.workers)).num_requests
                problems.append(f"worker {index} was lost: {kept} of {num} of its requests are kept")
            end = end or {"end": "complete", "health": {}}
            runs.append(ClientRun(tuple(self.records[worker]), ClientHealth(**end["health"]), end["end"], 0.0))
        records = tuple(sorted((r for run in runs for r in run.records), key=lambda record: record.number))
        slo = read_slo(self.spec["slo"], loop=plan.loop)
        verdict = check_client(runs)
        if problems:
            verdict = dataclasses.replace(verdict, is_valid=False, reasons=(*verdict.reasons, *problems))
        result = LoadResult(
            {"url": self.spec["url"], "model": self.spec["model"], "api": self.spec["api"], "under": "Locust"},
            plan.to_dict(), records, estimate_metrics(records, slo=slo), verdict, slo,
            next((run.end for run in runs if run.end != "complete"), "complete"), num_workers=len(self.workers),
            problems=tuple(problems),
        )  # fmt: skip
        print(format_report(result), flush=True)
        if self.spec["out"]:
            print(f"saved to {save_report(result, Path(self.spec['out']))}", flush=True)
        self.environment.process_exit_code = 0 if verdict.is_valid else 1
