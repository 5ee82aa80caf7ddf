"""Do load tools agree? labkit and three public ones measure one vLLM server in turns; each difference has a reason.

    python tests/agreement.py              installs the tools of requirements/tools.txt (each into .venv-tools/), runs
                                           all of them in interleaved rounds, measures each client's own ceiling, saves
                                           a record and prints the README's table
    python tests/agreement.py --server fake --rounds 2 --requests 20      tries the program out, without vLLM
    python tests/agreement.py table FILE   prints the table of a saved record
    python tests/agreement.py readme       writes the recorded table into the README
    python tests/agreement.py log          records the log of chunks that tests and lab 33 read

Same prompts, lengths and constant rate for all; no prefix cache; nothing is fetched while measuring. A tool's number is
held against labkit's own definition, and against the tool's formula applied to labkit's log of the same round: where
only the second agrees, the definition is the difference.
"""

import argparse
import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from agreement_tools import (
    MODEL,
    ROOT,
    SLUGS,
    Job,
    list_versions,
    load_requirements,
    make_environment,
    measure_lag,
    run_tool,
    write_command,
)

from labkit.errors import LabkitError
from labkit.load.client import Limits, Target, run_client
from labkit.load.formulas import KINDS, TIMES, TOOLS, StreamEvent, StreamLog, estimate_as
from labkit.load.metrics import estimate_metrics
from labkit.load.noop import run_noop
from labkit.load.records import AnswerReader
from labkit.load.sse import SseParser
from labkit.load.transport import HttpTransport
from labkit.load.verdict import check_client
from labkit.results import load_records, save_record
from labkit.stats import compare, estimate_mean_interval
from labkit.workload import Request, Workload, draw_open_plan

OUT = ROOT / "data" / "recorded" / "33"
WORDS = {"ttft": "mean TTFT", "tpot": "mean TPOT", "itl": "mean ITL", "e2e": "mean end to end", "tok_per_s": "output"}
PROMPT_TOKENS = 64


# labkit itself


class KeepingTransport(HttpTransport):
    """Keeps every exchange, so that all events of the answers can be read again."""

    def __init__(self, base_url):
        super().__init__(base_url)
        self.kept = []

    async def send(self, exchange, path, body):
        """Send, and keep."""
        self.kept.append(exchange)
        await super().send(exchange, path, body)


def follow_plan(job, *, target=None, stall=None):
    """Run labkit's own client; returns (its run, what its transport kept, processor seconds of all of it)."""
    requests = [Request(ids, job.output_tokens, (k + 1) / job.rate_per_s) for k, ids in enumerate(job.prompts)]
    plan = draw_open_plan(Workload("constant", tuple(requests), ()))
    transport = KeepingTransport(job.url)

    async def main():
        if stall:
            asyncio.get_running_loop().call_later(stall[0], time.sleep, stall[1])
        return await run_client(plan, target or Target(job.model), transport, limits=Limits(request_s=120.0))

    cpu_s = time.thread_time()
    run = asyncio.run(main())
    return run, transport.kept, time.thread_time() - cpu_s


def run_labkit(job, **options):
    """Run labkit's own client; returns (its run, the logs with every event). `stall`: (time, seconds) of a client
    that does something else meanwhile.
    """
    run, exchanges, _ = follow_plan(job, **options)
    logs = []
    for record, exchange in zip(run.records, sorted(exchanges, key=lambda kept: kept.sent_s), strict=True):
        if not record.is_good:
            raise SystemExit(f"request {record.number} failed: {record.cause} {record.detail}")
        events = read_events((at_s - run.start_s, piece) for at_s, piece in exchange.bodies)
        logs.append(StreamLog(record.scheduled_s, record.sent_s, record.sent_s + (record.connect_s or 0.0),
                               record.end_s, events, record.num_output_tokens))  # fmt: skip
    return run, logs


def summarize_labkit(run):
    """labkit's own numbers, by its own definitions."""
    whole = estimate_metrics(run.records).whole
    latencies = {word: whole.latencies[word].mean for word in ("ttft", "tpot", "itl", "e2e")}
    starts = [record.sent_s for record in run.records]
    return {**latencies, "tok_per_s": whole.tok_per_s, "num_requests": whole.num_succeeded, "starts_s": starts}


# The logs of a record


def read_events(pieces):
    """Return the events of a stream from its reads: (time, bytes of the body), in order."""
    parser, found = SseParser(), []
    for at_s, piece in pieces:
        for data in parser.feed(piece):
            if data.startswith("[DONE]"):
                found.append(StreamEvent(at_s, "done"))
                continue
            try:
                content = json.loads(data)
                usage = content.get("usage") or {}
            except (ValueError, AttributeError):
                raise LabkitError(f"An event is not a JSON object: {data[:80]!r}.") from None
            # What counts as content is defined in one place: the reader of the course's own client.
            reader = AnswerReader()
            reader.feed(at_s, b"data: " + data.encode() + b"\n\n")
            kind = "content" if reader.chunks else "empty" if content.get("choices") else "usage"
            found.append(StreamEvent(at_s, kind, usage.get("completion_tokens")))
    return tuple(found)


def pack_logs(name, logs):
    """Return (samples, settings) of a record that holds these logs under `name`; times to a tenth of a microsecond.

    All events are in one flat list of arrivals; the settings say how many each request has, their kinds by a letter,
    and their running token counts.
    """
    events = [event for log in logs for event in log.events]
    samples = {f"{name}_{what}_s": [round(getattr(log, f"{what}_s"), 7) for log in logs] for what in TIMES}
    samples[f"{name}_arrival_s"] = [round(event.at_s, 7) for event in events]
    settings = {
        "num_events": [len(log.events) for log in logs], "kinds": "".join(KINDS[event.kind] for event in events),
        "running_counts": [event.num_tokens for event in events],
        "num_output": [log.num_output_tokens for log in logs],
    }  # fmt: skip
    return samples, {name: settings}


# The comparison


def load_prompts(num, *, skip=0):
    """`num` prompts of the held-out text as (texts, token ids): each text gives its ids again, no two begin alike."""
    from tokenizers import Tokenizer

    from labkit.quality import load_heldout

    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    documents = load_heldout(can_fetch=False, is_strict=False).documents
    ids = [token for document in documents for token in tokenizer.encode(document.text).ids]
    found, seen = [], set()
    for first in range(0, len(ids) - PROMPT_TOKENS, PROMPT_TOKENS):
        window = tuple(ids[first : first + PROMPT_TOKENS])
        text = tokenizer.decode(list(window))
        if window[:16] not in seen and tuple(tokenizer.encode(text).ids) == window:
            seen.add(window[:16])
            found.append((text, window))
        if len(found) == skip + num:
            return tuple(zip(*found[skip:], strict=True))
    raise SystemExit(f"the held-out text has only {len(found)} such prompts, {skip + num} are needed.")


def start_server(kind, **options):
    """vLLM on the shipped target, or the fake server with chunks of four tokens at known times."""
    if kind == "fake":
        from labkit.servers.fake import FakePlan, run_fake

        return run_fake(FakePlan(ttft_s=0.1, itl_s=0.02, tokens_per_chunk=4, model="python-11m"))
    from labkit.models import find_model
    from labkit.servers import run_vllm

    return run_vllm(find_model("target"), has_prefix_cache=False, **options)


def measure_rounds(job, *, num_rounds, tell=print):
    """Run all four in turns, the order shifted by one each round: {sample key: one number per round}."""
    samples, verdicts = {}, []

    def keep(prefix, numbers):
        if starts := numbers.pop("starts_s", None):
            numbers["lag_p99"] = measure_lag(starts, job.rate_per_s)
        for name, value in numbers.items():
            key = f"num_{prefix}_requests" if name == "num_requests" else f"{prefix}_{name}"
            samples.setdefault(key if name in ("num_requests", "tok_per_s") else f"{key}_s", []).append(float(value))

    names = ["labkit", *SLUGS]
    for number in range(num_rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            if name == "labkit":
                run, logs = run_labkit(job)
                verdicts.append(str(check_client(run)))
                keep("labkit", summarize_labkit(run))
                for tool, slug in SLUGS.items():
                    restated = estimate_as(tool, logs)
                    keep(f"labkit_as_{slug}", {word: np.mean(values) for word, values in restated.items() if values})
            else:
                keep(SLUGS[name], run_tool(name, job))
        tell(f"round {number + 1} of {num_rounds}: labkit is {verdicts[-1]}", flush=True)
    return samples, verdicts


def measure_ceilings(texts, prompts, *, seconds=3.0, tell=print):
    """How fast is each client itself? {key: [req/s]}, and every probe.

    The rate doubles from 25/s, against a server that answers in 16 chunks of 5 ms, while the client holds it in one of
    two tries: at least 95 % of the requests reported, and the 99th percentile of the send lag under 10 ms. The first
    second is left out, in which the tools start their workers. labkit's client puts off reading answers where it must;
    so it must besides need no more than one processor for all of it. Then 1.4 times the last rate that was held is
    tried. The ceiling is the highest rate held.
    """
    ceilings, probes = {}, []

    def holds(tool, url, rate):
        chosen = [k % len(texts) for k in range(round(rate * seconds))]
        job = Job(url, "noop", tuple(texts[k] for k in chosen), tuple(prompts[k] for k in chosen), 16, rate)
        return any(_probe(tool, job, probes, tell) for _ in range(2))

    with run_noop(num_chunks=16, gap_s=0.005) as url:
        for tool, slug in {"labkit": "labkit", **SLUGS}.items():
            rate = 25.0
            while rate < 10_000 and holds(tool, url, rate):
                rate *= 2
            held = rate / 2 if rate > 25 else 0.0
            if held and holds(tool, url, round(1.4 * held)):
                held = float(round(1.4 * held))
            ceilings[f"{slug}_ceiling_req_per_s"] = [held]
    return ceilings, probes


def _probe(tool, job, probes, tell):
    """Whether a tool held a rate; a tool that fails has not."""
    cpu_s = None
    try:
        if tool == "labkit":
            run, _, cpu_s = follow_plan(job)
            numbers = summarize_labkit(run)
        else:
            numbers = run_tool(tool, job)
    except (SystemExit, subprocess.TimeoutExpired) as error:
        probes.append({"tool": tool, "rate_per_s": job.rate_per_s, "failed": str(error)[:200]})
        tell(f"{tool} at {job.rate_per_s:.0f}/s: failed", flush=True)
        return False
    lag_s = measure_lag(sorted(numbers["starts_s"])[round(job.rate_per_s) :], job.rate_per_s)
    probes.append({"tool": tool, "rate_per_s": job.rate_per_s, "lag_p99_s": lag_s,
                   "num_requests": numbers["num_requests"], "num_asked": job.num_requests, "cpu_s": cpu_s})  # fmt: skip
    tell(f"{tool} at {job.rate_per_s:.0f}/s: {numbers['num_requests']:.0f} of {job.num_requests}, lag p99 "
         f"{1000 * lag_s:.1f} ms", flush=True)  # fmt: skip
    can_go_on = cpu_s is None or cpu_s < job.num_requests / job.rate_per_s
    return lag_s < 0.010 and numbers["num_requests"] >= 0.95 * job.num_requests and can_go_on


def format_table(samples):
    """The Markdown table: each tool's number, labkit's, and labkit's log under the tool's formula."""
    heads = ("number", "tool: its name", "it says", "labkit says", "tool / labkit", "tool / its formula, labkit's log",
             "what the tool means by it")  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join(["---"] * len(heads)) + " |"]
    for word, words in WORDS.items():
        key = word if word == "tok_per_s" else f"{word}_s"
        for tool, slug in SLUGS.items():
            if f"{slug}_{key}" not in samples:
                continue
            theirs, ours, same = (samples[f"{prefix}_{key}"] for prefix in (slug, "labkit", f"labkit_as_{slug}"))
            name, definition = TOOLS[tool].words[word]
            cells = (words, f"{tool}: {name}", _write(theirs, word), _write(ours, word), _write_ratio(theirs, ours),
                     _write_ratio(theirs, same), definition)  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
    names = {"labkit": "labkit", **SLUGS}
    lags = [f"{name} {1000 * np.mean(samples[f'{slug}_lag_p99_s']):.1f}" for name, slug in names.items()
            if f"{slug}_lag_p99_s" in samples]  # fmt: skip
    rates = [f"{name} {samples[f'{slug}_ceiling_req_per_s'][0]:.0f}" for name, slug in names.items()
             if f"{slug}_ceiling_req_per_s" in samples]  # fmt: skip
    if lags:
        lines += ["", f"How late each client itself sent, 99th percentile, mean of the rounds, ms: {', '.join(lags)}."]
    if rates:
        lines += ["", f"Highest rate that each held against a server that does nothing, req/s: {', '.join(rates)}."]
    return "\n".join(lines)


def format_scripted(samples):
    """One sentence of a record against the scripted server: what is left of each difference where no model computes."""
    said = []
    for tool, slug in SLUGS.items():
        gap = "tpot" if f"{slug}_tpot_s" in samples else "itl"  # what the tool says of a token's time
        for word in ("ttft", gap):
            if f"{slug}_{word}_s" in samples:
                ratio = _write_ratio(samples[f"{slug}_{word}_s"], samples[f"labkit_as_{slug}_{word}_s"])
                said.append(f"{tool}'s {TOOLS[tool].words[word][0]} {ratio}")
    return ("The same against a scripted server (simulated: no model computes, each token has its own time; "
            "[record](data/recorded/33/agreement-fake.jsonl)), tool / its formula on labkit's log: "
            f"{'; '.join(said)}.")  # fmt: skip


def _write(values, word):
    scale, unit = (1.0, "tok/s") if word == "tok_per_s" else (1000.0, "ms")
    scaled = [value * scale for value in values]
    if len(scaled) < 2:
        return f"{scaled[0]:.1f} {unit}"
    interval = estimate_mean_interval(scaled)
    return f"{np.mean(scaled):.2f} ({interval.low:.2f} to {interval.high:.2f}) {unit}"


def _write_ratio(theirs, ours):
    if len(theirs) < 2:
        return f"{theirs[0] / ours[0]:.3f}"
    found = compare(theirs, ours, better="higher")
    verdict = "" if found.verdict != "cannot tell" else ", cannot tell"
    return f"{found.ratio:.3f} ({found.interval.low:.3f} to {found.interval.high:.3f}){verdict}"


def save(name, *, path, server, **content):
    """Save a record as the only one of a file under data/recorded."""
    from labkit.models import find_model

    with tempfile.TemporaryDirectory() as folder:
        engines = {key: str(value) for key, value in server.versions.items() if value}
        model = None if server.engine == "fake" else find_model("target")  # a scripted server runs none
        record = save_record("33", name, folder=folder, model=model,
                             engines={**engines, **content.pop("engines", {})}, **content)  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(folder, "results.jsonl"), path)
    print(f"saved {record.id} to {path}")
    return record


def record_agreement(options):
    """The whole comparison."""
    for name, requirement in load_requirements().items():
        make_environment(name, requirement)
    texts, prompts = load_prompts(options.requests)
    warm_texts, warm = load_prompts(8, skip=options.requests)
    begin_s = time.monotonic()
    with start_server(options.server) as server:
        job = Job(server.base_url, server.model, texts, prompts, options.output_tokens, options.rate)
        run_labkit(Job(job.url, job.model, warm_texts, warm, job.output_tokens, job.rate_per_s))
        samples, verdicts = measure_rounds(job, num_rounds=options.rounds)
    ceilings, probes = measure_ceilings(texts, prompts) if options.ceilings else ({}, [])
    settings = {
        "server": server.to_dict(), "rate_per_s": options.rate, "arrivals": "constant",
        "num_requests": options.requests, "prompt_tokens": PROMPT_TOKENS, "output_tokens": options.output_tokens,
        "num_rounds": options.rounds,
        "verdicts": verdicts, "minutes": round((time.monotonic() - begin_s) / 60, 1),
        "commands": {tool: _hide(write_command(tool, job, "{folder}"), job) for tool in SLUGS},
        "ceilings": {"rule": " ".join(measure_ceilings.__doc__.split()), "probes": probes},
    }  # fmt: skip
    path = options.out or OUT / f"agreement-{options.server}.jsonl"
    save("agreement", path=path, server=server, samples=samples | ceilings, settings=settings, engines=list_versions())
    print(format_table(samples | ceilings))


def _hide(command, job):
    """A command without the folders and the port of this machine."""
    return [part.replace(str(ROOT), "{course}").replace(job.url, "{url}").replace(sys.executable, "python")
            for part in command]  # fmt: skip


def record_log(options):
    """The logs of chunks: completions with a client that stalls, a chat, and speculation (several tokens a chunk)."""
    texts, prompts = load_prompts(24)
    samples, settings = {}, {}
    words = {
        "completions": "constant 6/s; the client stands still for 0.5 s at 2 s",
        "chat": "the chat API: a role comes first",
        "speculation": "n-gram speculation of 3 tokens: a chunk holds 1 to 4 tokens",
    }
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    ngram = json.dumps({"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "chat.jinja")
        path.write_text(template, encoding="utf-8")
        for extra in (("--chat-template", str(path)), ("--speculative-config", ngram)):
            with start_server("vllm", extra_args=extra) as server:
                job = Job(server.base_url, server.model, texts, prompts, 48, 6.0)
                run_labkit(Job(job.url, job.model, texts[:4], prompts[-4:], 48, 6.0))
                runs = {"speculation": run_labkit(job)[1]} if extra[0] == "--speculative-config" else {
                    "completions": run_labkit(job, stall=(2.0, 0.5))[1],
                    "chat": run_labkit(job, target=Target(job.model, api="chat"))[1],
                }  # fmt: skip
                for name, logs in runs.items():
                    more_samples, more = pack_logs(name, logs)
                    samples, settings = samples | more_samples, settings | more
    settings = {"logs": settings, "words": words, "server": server.to_dict()}
    settings["server"]["settings"].pop("extra_args", None)
    save("chunks", path=options.out or OUT / "chunks.jsonl", server=server, samples=samples, settings=settings)


def load_readme_records(folder=OUT):
    """The samples of the README's two records: on vLLM, and against the scripted server (None: not recorded yet)."""
    paths = (folder / f"agreement-{server}.jsonl" for server in ("vllm", "fake"))
    return [load_records(path, name="agreement").records[-1].samples if path.exists() else None for path in paths]


def update_readme(text, samples, scripted=None):
    """The README's text with the table of a record, and a sentence on the scripted one, between its two markers."""
    head, begin, rest = text.partition("<!-- agreement -->\n")
    _, end, tail = rest.partition("<!-- /agreement -->")
    if not (begin and end):
        raise SystemExit("README.md: expected <!-- agreement --> and <!-- /agreement -->, each on a line of its own.")
    below = f"\n{format_scripted(scripted)}\n" if scripted else ""
    return f"{head}{begin}{format_table(samples)}\n{below}{end}{tail}"


def main(arguments=None):
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", nargs="?", default="run", choices=("run", "envs", "table", "readme", "log"))
    parser.add_argument("file", nargs="?", type=Path, help="a saved record (table)")
    parser.add_argument("--server", default="vllm", choices=("vllm", "fake"))
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--rate", type=float, default=5.0, help="requests per second")
    parser.add_argument("--output-tokens", type=int, default=48)
    parser.add_argument("--ceilings", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path, help="file of the record (default: under data/recorded/33)")
    options = parser.parse_args(arguments)
    if options.what == "envs":
        for name, requirement in load_requirements().items():
            make_environment(name, requirement)
    elif options.what == "table":
        print(format_table(load_records(options.file, name="agreement").records[-1].samples))
    elif options.what == "readme":
        path = ROOT / "README.md"
        path.write_text(update_readme(path.read_text(encoding="utf-8"), *load_readme_records()), encoding="utf-8")
    elif options.what == "log":
        record_log(options)
    else:
        record_agreement(options)
    return 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
