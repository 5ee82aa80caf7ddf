# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
#   labkit:
#     number: "33"
#     title: Load testing
#     question: How many users can I serve within my latency promise?
#     phase: 3
#     minutes: 90
# ---

# %% [markdown]
# # 33 · Load testing
#
# **How many users can I serve within my latency promise?**
#
# You inherit a vLLM server and a promise: the first word within half a second. In this lab you send it users who do
# not wait for each other, find the highest rate at which the promise holds, and tune the server until that rate rises.
# On the way you catch the most common error in load testing, *coordinated omission*, first in an exact simulation,
# then in your own client. Every run reports whether its own client can be trusted.

# %% [markdown]
# | | |
# | --- | --- |
# | **Time** | 90 minutes, about 15 of them waiting for servers |
# | **Needs** | Any machine with about 12 GB of free memory. No GPU, no network. The servers are real vLLM servers. |
# | **Before** | Labs 01 (intervals, *cannot tell*) and 12 (TTFT, TPOT, vLLM) |
# | **You will be able to** | measure one request from its events; draw a schedule for users who do not wait; find out what a stalled client hid, and say when a run is INVALID; compute goodput and the knee under an SLO; judge a tuning by paired rounds with a control |

# %%
import asyncio
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from labkit import memory, models, plots, published, servers, stats, units
from labkit.budget import choose_by_budget
from labkit.checks import check, complete, note, predict, ready, reveal
from labkit.environment import find_course_root
from labkit.hardware import estimate_tier, probe_machine
from labkit.load import client, formulas, virtual
from labkit.load.formulas import StreamEvent, StreamLog, load_logs
from labkit.load.report import format_report
from labkit.load.run import run_load
from labkit.plots import plot_curves, plot_waits
from labkit.quiz import quiz
from labkit.results import find_record, load_records, save_record
from labkit.workload import TraceRow, draw_closed_plan, draw_open_plan, draw_session_plan

# %%
machine = probe_machine()
choice = models.find_model("target", machine=machine)
print(f"CPU        {machine.cpu.name}, {machine.cpu.num_cores} cores")
print(f"memory     {units.format_bytes(machine.memory_free_bytes)} free; a server needs about 3 GiB")
print(f"GPU        {machine.gpus[0].name if machine.gpus else 'none found: vLLM runs on the CPU'}")
print(f"tier       {estimate_tier(machine)}")
print(f"model      {choice.name} ({choice.source}): the one this tier runs")

# %% [markdown]
# ## 1 · One request, two clocks
#
# A request is **due** at $s$ (the user pressed *enter*), and **sent** at $t_0$ (the client got around to it). Its
# answer is a stream of events; $c_1 \dots c_k$ are the arrival times of those that carry **content**: text, reasoning,
# or a tool call.
#
# $$\text{TTFT} = c_1 - t_0 \qquad \text{TTFT from the schedule} = c_1 - s \qquad
# \text{TPOT} = \frac{c_k - c_1}{n - 1} \quad [\text{s}]$$
#
# $n$ is the server's token count. TPOT is a mean and hides a stall in the middle of the stream; the **gaps**
# $c_{i+1} - c_i$ show it. In the chat API the first event often carries only a role: the server sends it before it has
# computed anything.
#
# **Worked example**: due at 1.0 s, sent at 1.2 s; a role at 1.3 s, then content at 1.5, 1.6 and 2.6 s, one token each.

# %% tags=["nbval-check-output"]
arrivals_s = [1.5, 1.6, 2.6]
print(f"TTFT {arrivals_s[0] - 1.2:.1f} s, from the schedule {arrivals_s[0] - 1.0:.1f} s; counting the role would give 0.1 s")
print(f"TPOT {(arrivals_s[-1] - arrivals_s[0]) / 2:.2f} s; the gaps are", [round(gap, 1) for gap in np.diff(arrivals_s).tolist()])

# %% [markdown] exercise="33.1" title="One request from its events" minutes=12 difficulty=2 version=1
# ### Exercise 33.1 · One request from its events
#
# *12 minutes · difficulty 2 of 5 · why it matters: every percentile in this lab is built from these numbers.*
#
# `events` is a list of `(arrival_s, delta)` in order of arrival. A delta is a dict as in the chat API and may have
# `role`, `content`, `reasoning_content`, `tool_calls`, or nothing. `num_tokens` is the server's count. Return
# `(ttft_s, ttft_from_schedule_s, tpot_s, gaps_s)`, with the gaps as a list. If there is no content, return
# `(None, None, None, [])`. A single token has no TPOT (`None`).
#
# <details><summary>Hint 1</summary>
#
# An empty string is not content. A space is: a token produced it.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Keep the arrival times of the events that have content; all four answers follow from that list, two times and a
# count.
#
# </details>


# %% solution="33.1"
def read_request(scheduled_s, sent_s, events, num_tokens):
    """Return (TTFT, TTFT from the schedule, TPOT, gaps) in seconds of one request from its events."""
    ### BEGIN SOLUTION
    kinds = ("content", "reasoning_content", "tool_calls")
    times = [at_s for at_s, delta in events if any(delta.get(kind) for kind in kinds)]
    if not times:
        return None, None, None, []
    tpot_s = (times[-1] - times[0]) / (num_tokens - 1) if num_tokens > 1 else None
    gaps_s = [after - before for before, after in zip(times, times[1:], strict=False)]
    return times[0] - sent_s, times[0] - scheduled_s, tpot_s, gaps_s
    ### END SOLUTION


# %%
check("33.1", read_request)

# %% [markdown]
# ## 2 · Who decides when to send?
#
# In a **closed loop** a fixed number of clients each wait for an answer before they send again. When the server slows
# down, so do they: it never sees more requests than clients. In an **open loop** requests arrive at their own times,
# whatever the server does. Independent users form an open loop, and the gaps between their requests are exponential: a
# **Poisson process** of rate $\lambda$,
#
# $$P(\text{gap} > x) = e^{-\lambda x} \qquad \text{number in } T \text{ seconds}: \text{ mean } \lambda T,
# \text{ variance } \lambda T$$
#
# so the number of requests in a run is itself random. Several public tools draw $N$ gaps and rescale them so that the
# last request comes at exactly $N / \lambda$; others shift the rest of their schedule when they are late. Both make
# milder bursts than users do. The course draws **absolute** times **before** the run, from a seed, and never changes
# them.
#
# **Worked example**: five gaps with a mean of 0.5 s give five times:

# %% tags=["nbval-check-output"]
example_gaps_s = [0.1, 0.9, 0.2, 0.1, 1.2]
print("times", [round(at, 1) for at in np.cumsum(example_gaps_s).tolist()], "of which a run of 2 s has those up to 2 s")

# %% [markdown] exercise="33.2" title="A schedule of users" minutes=10 difficulty=3 version=1
# ### Exercise 33.2 · A schedule of users
#
# *10 minutes · difficulty 3 of 5 · why it matters: the shape of the arrivals sets the tail of the latencies.*
#
# Return the request times, in seconds and in order, of a Poisson process of rate `rate_per_s` from 0 to `duration_s`.
# The same seed must give the same times. The check looks at statistics over many seeds, not at how you draw.
#
# <details><summary>Hint 1</summary>
#
# How many requests will there be? You cannot know before you draw.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `np.random.default_rng(seed)` has `exponential(mean)`. The first request comes after the first gap.
#
# </details>


# %% solution="33.2"
def draw_schedule(rate_per_s, duration_s, seed):
    """Return the request times in seconds of a Poisson process up to duration_s."""
    ### BEGIN SOLUTION
    generator = np.random.default_rng(seed)
    times_s, now_s = [], generator.exponential(1 / rate_per_s)
    while now_s <= duration_s:
        times_s.append(now_s)
        now_s += generator.exponential(1 / rate_per_s)
    return times_s
    ### END SOLUTION


# %%
check("33.2", draw_schedule)

# %% [markdown]
# ## 3 · What a stalled client hides
#
# A client is supposed to send 50 requests per second for 10 s. The server always answers after 20 ms. At 5 s the
# client itself stalls for one second (a garbage collection, a log written to a slow disk), then immediately sends
# everything that was due. Time is **simulated** here: the event loop's clock jumps, so the numbers are exact on every
# machine.
#
# ### Predict before you measure
#
# What is the 99th percentile of the TTFT **from the schedule** in this run, in ms?

# %% solution="33.p1"
### BEGIN SOLUTION stub: predict("33.p1", None, unit="ms")
predict("33.p1", 500, unit="ms")
### END SOLUTION


# %%
async def follow(plan, script, stall_at_s):
    if stall_at_s is not None:
        loop = asyncio.get_running_loop()
        loop.call_at(stall_at_s, loop.stall, 1.0)
    return await client.run_client(plan, client.Target("simulated"), virtual.SimulatedServer(script))


def run_simulated(plan, script, *, stall_at_s=None):
    """Follow a plan against a simulated server, in virtual time; the client can stall for a second."""
    with ThreadPoolExecutor() as pool:  # the notebook's own thread already has an event loop
        return pool.submit(virtual.run_virtual, follow(plan, script, stall_at_s)).result()


# %%
def answer_after_20_ms(number, now_s, body):
    return virtual.format_answer([0.02], begin_s=now_s)


if ready("33.1"):
    steady = draw_open_plan("constant", rate_per_s=50, duration_s=10, prompt=8, output=1)
    stalled = run_simulated(steady, answer_after_20_ms, stall_at_s=5.0)
    late = [record for record in stalled.records if record.lag_s > 1e-6]
    print(f"simulated: {len(stalled.records)} requests, {len(late)} of them sent late, by at most {late[0].lag_s:.2f} s")

# %% [markdown]
# Counted from the send time, every request took 20 ms, and many reports would end here. This is **coordinated
# omission**: the client's stall left out exactly the time in which users waited. The same happens when a *server*
# stalls and a closed loop waits with it. Counting from the schedule prevents it, and the client's **lag**, $t_0 - s$,
# gives a stalled client away.

# %% [markdown] exercise="33.3" title="What the run hid" minutes=15 difficulty=3 version=1
# ### Exercise 33.3 · What the run hid
#
# *15 minutes · difficulty 3 of 5 · why it matters: a load tester that never doubts itself is believed even when it is
# wrong.*
#
# `requests` is a list of `(scheduled_s, sent_s, first_s)`. `first_s` is the arrival time of the first chunk, `None`
# for a failed request; `sent_s` is `None` for a request that was never sent. Return
# `(p99_from_send_s, p99_from_schedule_s, p99_lag_s, verdict)`:
#
# - the first two are over the requests that succeeded, and `None` if there are fewer than 299 of them (no 95 %
#   interval exists);
# - the lag is over all requests that were sent, however few (every lag is known, they are not a sample), and `None` if
#   nothing was sent;
# - the verdict is `"INVALID"` if the p99 lag is over 10 ms or a request was never sent, otherwise `"valid"`.
#
# Compute percentiles as `np.percentile(values, 99)` does.
#
# <details><summary>Hint 1</summary>
#
# A failed request was still sent, on time or late.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Make three lists. `stats.summarize(values).p99` from lab 01 is `None` if n is too small.
#
# </details>


# %% solution="33.3"
def judge_run(requests):
    """Return (p99 from send, p99 from schedule, p99 lag, "valid" or "INVALID") of (scheduled, sent, first) rows."""
    ### BEGIN SOLUTION
    lags_s = [sent_s - due_s for due_s, sent_s, _ in requests if sent_s is not None]
    if not lags_s:
        return None, None, None, "INVALID"
    done = [row for row in requests if row[2] is not None]
    from_send_s = stats.summarize([first_s - sent_s for _, sent_s, first_s in done]).p99 if done else None
    from_schedule_s = stats.summarize([first_s - due_s for due_s, _, first_s in done]).p99 if done else None
    lag_s = float(np.percentile(lags_s, 99))
    is_bad = lag_s > 0.010 or len(lags_s) < len(requests)
    return from_send_s, from_schedule_s, lag_s, "INVALID" if is_bad else "valid"
    ### END SOLUTION


# %%
check("33.3", judge_run)


# %%
def list_times(records):
    return [(r.scheduled_s, r.sent_s, r.chunks[0].at_s if r.is_good else None) for r in records]


if ready("33.1") and ready("33.3"):
    seen = judge_run(list_times(stalled.records))
    for words, value_s in zip(("from the send time", "from the schedule", "lag"), seen, strict=False):
        print(f"simulated: p99 {words:<20}{units.format_seconds(value_s)}")
    print("the client:", seen[3])
    reveal("33.p1", 1e3 * seen[1], unit="ms")

# %% [markdown]
# ## 4 · A server you inherit
#
# Somebody before you set up vLLM *cautiously*: at most 2 requests at a time (`max_num_seqs`) and no prefix cache. It
# is still a real engine with continuous batching, and it answers. For section 6 you also start the same server several
# times with **one** setting changed each, and a **control**: `max_logprobs`, a limit on something that no request asks
# for. It should *not* help.
#
# | name | changed | why it might help |
# | --- | --- | --- |
# | `default` | nothing: what you inherit | - |
# | `seqs` | `max_num_seqs` 32 | more requests share a step |
# | `cache` | prefix caching on | what was processed once is not processed again |
# | `tokens` | `max_num_batched_tokens` 64 | shorter steps: nobody waits long for someone else's prompt |
# | `chunk` | no chunked prefill | a prompt is processed in one step |
# | `control` | `max_logprobs` 10 | it cannot |

# %%
SETTINGS = {
    "default": {}, "control": {"args": ("--max-logprobs", "10")}, "seqs": {"max_num_seqs": 32},
    "cache": {"has_prefix_cache": True}, "tokens": {"args": ("--max-num-batched-tokens", "64")},
    "chunk": {"args": ("--no-enable-chunked-prefill", "--max-num-batched-tokens", "1024")},
}  # fmt: skip
GIB_EACH = 3.2
free_bytes = machine.memory_free_bytes or 16 * 2**30
num_fitting = 6 if machine.gpus else int(free_bytes / 2**30 / GIB_EACH)
NAMES = list(SETTINGS)[: min(choose_by_budget(learner=6, ci=4), max(4, num_fitting))]
print("servers in this run:", ", ".join(NAMES))


# %%
def start(*names):
    """Start the inherited server with all these settings changed; length limit and dtype are the same for all."""
    changes = [SETTINGS[name] for name in names]
    args = tuple(part for change in changes for part in change.get("args", ()))
    options = {"max_num_seqs": 2, "has_prefix_cache": False, "max_model_len": 1024}
    for change in changes:
        options |= {key: value for key, value in change.items() if key != "args"}
    options |= {"gpu_memory_share": 0.8 / len(NAMES)} if machine.gpus else {"dtype": "float32"}
    return servers.run_server("vllm", model=choice, extra_args=args, **options)


# %%
ARE_READY = all([ready("33.1"), ready("33.2"), ready("33.3")])
if ARE_READY:
    with ThreadPoolExecutor() as pool:  # they may start in parallel: only the measurements take turns
        engines = dict(zip(NAMES, pool.map(start, NAMES), strict=True))
    inherited = engines["default"]
    slowest_s = max(server.start_s for server in engines.values())
    held = sum(server.measure_memory()["pss_bytes"] or 0 for server in engines.values())
    print(f"{len(engines)} servers ready after {slowest_s:.0f} s; together they use {units.format_bytes(held)}")

# %% [markdown]
# Prompts are random token ids, so no two share a beginning unless the plan says so. Lengths are fixed, so the work
# does not depend on the text. The schedule is **yours**, drawn by `draw_schedule`.
#
# **The promise (SLO).** MLPerf, a public benchmark, defines two sets of limits at the 99th percentile for a model of 8
# billion parameters on a GPU: TTFT 2 s and TPOT 0.1 s, and for interactive use 0.5 s and 0.03 s. Your model is far
# smaller, and so is your machine. The lab takes 0.5 s from the interactive set and 0.1 s from the other, and promises
# both for 95 % (budget `ci`: few requests) or 99 % of the requests. This is scaled for the course; it is not MLPerf's
# rule.

# %%
SLO = {"ttft_s": 0.5, "tpot_s": 0.1}  # TTFT from the schedule
IDS = (10, 4000)  # the range of the token ids, within every vocabulary in the course
PROMPT, OUTPUT = 48, 8
EXTRA = {"skip_special_tokens": False}  # an end-of-text token is shown as text: every token is content


def plan_open(rate_per_s, num_requests, seed):
    """Return the first requests of one of your schedules: it is cut off after the last one, and nothing is moved."""
    times_s = draw_schedule(rate_per_s, 2 * num_requests / rate_per_s, seed)[:num_requests]
    rows = [TraceRow(at_s, PROMPT, OUTPUT) for at_s in times_s]
    return draw_open_plan(rows, seed=seed, ids=IDS)


def send(server, plan, **more):
    return run_load(server.base_url, plan, model=server.model, extra=EXTRA, limits=client.Limits(request_s=120), **more)


# %%
def measure(result):
    """Return the lists (TTFT, TTFT from the schedule, TPOT) of a run, by your read_request; failed requests give None."""
    rows = []
    for r in result.records:
        events = [(chunk.at_s, {"content": "x"}) for chunk in r.chunks] if r.is_good else []
        rows.append(read_request(r.scheduled_s, r.sent_s, events, r.num_output_tokens)[:3])
    return [list(column) for column in zip(*rows, strict=True)]


# %%
def describe(name, result):
    ttfts_s = [value for value in measure(result)[1] if value is not None]
    found = stats.summarize(ttfts_s) if ttfts_s else None
    cells = [getattr(found, q, None) for q in ("p50", "p95", "p99")]
    text = "".join(f"{units.format_seconds(v) if v else 'n too small':>12}" for v in cells)
    print(f"{name:<12}{len(ttfts_s):>4} of {len(result.records):<4}{text}{result.metrics.whole.request_per_s:>8.3g}", end="")
    print(f"  {'valid' if result.verdict.is_valid else 'INVALID':<8}{100 * (result.sampling.hit_fraction or 0):>5.0f} %", end="")
    causes = sorted({r.cause for r in result.records if r.cause})
    print(f"  {', '.join(causes)}" if causes else "")


HEAD = f"{'':<24}TTFT from the schedule\n{'run':<12}{'succeeded':<12}{'p50':>12}{'p95':>12}{'p99':>12}{'req/s':>8}  client  cached  failed"

# %% [markdown]
# First a warm-up with its own prompts, then a complete report as `labkit load` prints it: the verdict on the client
# comes first, and every number is defined below.

# %%
if ARE_READY:
    for server in engines.values():
        send(server, draw_closed_plan(num_clients=2, requests_per_client=4, prompt=PROMPT, output=OUTPUT, seed=900, ids=IDS))
    first = send(inherited, plan_open(5.0, choose_by_budget(learner=75, ci=20), 901), slo={"ttft": 0.5, "tpot": 0.1})
    print(format_report(first))

# %% [markdown]
# ### Predict before you measure
#
# One client reaches a certain throughput on this server, in requests per second. How many times that throughput do 500
# clients reach if each waits for its answers? (1 means the same.)

# %% solution="33.p2"
### BEGIN SOLUTION stub: predict("33.p2", None, unit="x")
predict("33.p2", 2, unit="x")
### END SOLUTION

# %% [markdown]
# You run closed loops of 1, 10, 100 and 500 clients, with very short answers so that the large ones finish in time.

# %%
CLIENTS = (1, 10, 100, 500)
if ARE_READY:
    crowd = {}
    print(HEAD)
    for num in CLIENTS:
        per_client = max(1, choose_by_budget(learner=400, ci=30) // num)
        plan = draw_closed_plan(
            num_clients=num, requests_per_client=per_client, prompt=16, output=2, seed=910 + num, ids=IDS
        )
        crowd[num] = send(inherited, plan)
        describe(f"{num} clients", crowd[num])
    gain = crowd[500].metrics.whole.request_per_s / crowd[1].metrics.whole.request_per_s
    reveal("33.p2", gain, unit="x")

# %% [markdown]
# **What you should see.** Beyond a few clients throughput hardly rises, and latency rises with their number. By
# Little's law, requests in flight = rate x time in flight, so at a fixed rate ten times the clients wait ten times as
# long. A closed loop tells you how fast the server **can** work, its *capacity*. It cannot tell you what users feel at
# a given rate, because it sets the rate itself. (INVALID here? Hundreds of answers end at once, and the client, on the
# same cores as the server, sends the next requests late. *Failed* and *empty*? All tokens of that answer were parts of
# characters, as a small model sometimes generates them: the user saw nothing, so the request counts as failed.)
#
# The capacity with the prompts and answers used in the rest of the lab:

# %%
if ARE_READY:
    full = send(inherited, draw_closed_plan(
        num_clients=8, requests_per_client=choose_by_budget(learner=40, ci=8), prompt=PROMPT, output=OUTPUT, seed=920, ids=IDS
    ))  # fmt: skip
    capacity_per_s = full.metrics.whole.request_per_s
    print(f"capacity of the inherited server: {capacity_per_s:.3g} requests per second, 8 clients in a closed loop")

# %% [markdown]
# ### The stall, live
#
# Now a stall of two seconds with a real server: the client prints its progress once per second, and one of these lines
# takes two seconds to write. Nothing about the server changes.

# %%
def make_slow_line(seconds):
    """Return a progress line that takes `seconds` to write, once, after the first two seconds."""
    waits = [seconds]

    def show(progress):
        if progress["seconds"] > 2 and waits:
            time.sleep(waits.pop())

    return show


# %%
if ARE_READY:
    num_stalled = max(choose_by_budget(learner=400, ci=60), int(3 * capacity_per_s))  # six seconds or more
    plan = plan_open(0.5 * capacity_per_s, num_stalled, 930)
    slow = send(inherited, plan, on_progress=make_slow_line(2.0))
    seen = judge_run(list_times(slow.records))
    for words, value_s in zip(("from the send time", "from the schedule", "lag"), seen, strict=False):
        print(f"p99 {words:<20}{units.format_seconds(value_s) if value_s is not None else 'n too small'}")
    print(f"your verdict: {seen[3]}; labkit's: {slow.verdict}")
    sent_s, due_s, _ = measure(slow)

# %%
if ARE_READY:
    both = {"from the send time": [v for v in sent_s if v is not None], "from the schedule": [v for v in due_s if v is not None]}
    over = {name: sum(value > SLO["ttft_s"] for value in values) for name, values in both.items()}
    title = f"One stall: {over['from the schedule']} of {len(slow.records)} users waited over 0.5 s"
    title += f"; from the send time it looks like {over['from the send time']}"
    figure = plot_waits(slow.records, slo_s=SLO["ttft_s"], title=title)
    figure.show()
    print(plots.format_alternative(figure))

# %% [markdown]
# ## 5 · Goodput and the knee
#
# A promise is kept **per request**. A request is *good* if it meets every SLO that applies to it. A value equal to the
# limit meets it; a request of one token has no TPOT, so it neither meets nor misses that SLO. A failed request is not
# good. Then
#
# $$\text{goodput} = \frac{\text{good}}{\text{seconds}} \qquad \text{good fraction} =
# \frac{\text{good}}{\text{succeeded} + \text{failed}}$$
#
# The **knee** is the highest rate up to which the good fraction stays at or above the promised share, say 0.99. That
# is the p99 SLO with failures counted, so that a server cannot keep its promise by refusing users.
#
# **Worked example**: 100 requests in 20 s; 90 are on time, 6 are late, 4 fail.

# %% tags=["nbval-check-output"]
print(f"goodput {90 / 20} requests per second, good fraction {90 / 100}; without the failed ones it would be {90 / 96:.3f}")

# %% [markdown] exercise="33.4" title="The knee" minutes=18 difficulty=4 version=1
# ### Exercise 33.4 · The knee
#
# *18 minutes · difficulty 4 of 5 · why it matters: this is the number you sell.*
#
# `runs` is a list of `{"rate_per_s", "window_s", "requests"}`; a request is `{"ttft_s": ..., "tpot_s": ...}` (`tpot_s`
# may be `None`), or `None` if it failed. `slo` gives the limits, e.g. `{"ttft_s": 0.5, "tpot_s": 0.1}`; it may have
# only one of them. Return `(goods, knee)`. `goods` has `(goodput, good fraction)` for each run in the order given;
# leave requests that no SLO applies to out of both, and return `None` as the fraction if no request is left. `knee` is
# the highest `rate_per_s` for which it **and every lower rate** in the list have a fraction of at least `share`, or
# `None` if not even the lowest has.
#
# <details><summary>Hint 1</summary>
#
# First decide for each request: True, False, or not applicable. Then count.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Runs may come in any order. Go up from the lowest rate and stop at the first that fails.
#
# </details>


# %% solution="33.4"
def find_knee(runs, slo, share=0.99):
    """Return ([(goodput per second, good fraction)] per run, the knee in requests per second or None)."""
    ### BEGIN SOLUTION
    goods, fractions = [], {}
    for run in runs:
        marks = []
        for request in run["requests"]:
            known = [name for name in slo if request is not None and request[name] is not None]
            if request is None or known:
                marks.append(request is not None and all(request[name] <= slo[name] for name in known))
        fraction = sum(marks) / len(marks) if marks else None
        goods.append((sum(marks) / run["window_s"], fraction))
        fractions[run["rate_per_s"]] = fraction
    knee = None
    for rate_per_s in sorted(fractions):
        if fractions[rate_per_s] is None or fractions[rate_per_s] < share:
            break
        knee = rate_per_s
    return goods, knee
    ### END SOLUTION


# %%
check("33.4", find_knee)

# %% [markdown]
# ### Measure
#
# You run open loops at fractions of the capacity, in rounds. Each round goes through all rates once, alternately up
# and down, with its own schedules. For the promise, the requests at one rate are pooled over the rounds; in the
# figure, each point is a run.

# %%
SHARES = choose_by_budget(learner=(0.25, 0.5, 0.7, 0.85, 1.0, 1.3), ci=(0.4, 0.8, 1.3))
NUM_ROUNDS, NUM_EACH, PROMISE = choose_by_budget(learner=(3, 120, 0.99), ci=(1, 62, 0.95))
if ARE_READY and ready("33.4"):
    loaded, rates = {share: [] for share in SHARES}, {share: float(f"{share * capacity_per_s:.3g}") for share in SHARES}
    print(HEAD)
    for number in range(NUM_ROUNDS):
        for share in sorted(SHARES, reverse=number % 2):
            seed = 1000 + 10 * number + SHARES.index(share)
            loaded[share].append(send(inherited, plan_open(rates[share], NUM_EACH, seed)))
            describe(f"{rates[share]:g} req/s", loaded[share][-1])

# %%
def pool(rate_per_s, results):
    """Pool all runs at one rate into one run for find_knee."""
    requests = []
    for result in results:
        for _, due_s, tpot_s in zip(*measure(result), strict=True):
            requests.append(None if due_s is None else {"ttft_s": due_s, "tpot_s": tpot_s})
    window_s = sum(result.metrics.whole.seconds for result in results)
    return {"rate_per_s": rate_per_s, "window_s": window_s, "requests": requests}


# %%
if ARE_READY and ready("33.4"):
    pooled = [pool(rates[share], results) for share, results in loaded.items()]
    goods, knee = find_knee(pooled, SLO, share=PROMISE)
    for run, (good_per_s, fraction) in zip(pooled, goods, strict=True):
        print(f"{run['rate_per_s']:>6.3g} requests per second: goodput {good_per_s:.3g}, {100 * fraction:.1f} % of {len(run['requests'])} good")
    doubts = sum(not one.verdict.is_valid for results in loaded.values() for one in results)
    print(f"INVALID clients: {doubts} of {NUM_ROUNDS * len(SHARES)} runs; if there are many, the knee is in doubt")
    print(f"the knee for {100 * PROMISE:.0f} %:", "below the lowest rate" if knee is None else f"{knee:.3g} requests per second")

# %%
if ARE_READY and ready("33.4"):
    tails = {q: {rates[share]: [np.percentile([v for v in measure(one)[1] if v is not None], q) for one in results]
                 for share, results in loaded.items()} for q in (50, 95)}  # fmt: skip
    ends = [statistics.geometric_mean(tails[95][rates[share]]) for share in (min(SHARES), max(SHARES))]
    title = f"TTFT p95 goes from {units.format_seconds(ends[0])} to {units.format_seconds(ends[1])} as the rate passes the capacity"
    figure = plot_curves(
        {f"p{q}, one point per rate, n = {NUM_ROUNDS} runs": points for q, points in tails.items()},
        x="offered rate, requests per second", y="TTFT from the schedule, s", title=title,
        is_log_x=False, is_log_y=True, limit=("SLO", SLO["ttft_s"]),
    )  # fmt: skip
    figure.show()
    print(plots.format_alternative(figure))

# %%
if ARE_READY and ready("33.4"):
    samples = {"capacity_req_per_s": [capacity_per_s], "knee_req_per_s": [] if knee is None else [knee]}
    for num, result in crowd.items():
        samples[f"clients{num}_req_per_s"] = [result.metrics.whole.request_per_s]
        samples[f"clients{num}_ttft_s"] = [value for value in measure(result)[0] if value is not None]
    for share, results in loaded.items():
        for name, column in (("ttft_from_schedule_s", 1), ("tpot_s", 2)):
            samples[f"load{100 * share:.0f}_{name}"] = [v for one in results for v in measure(one)[column] if v is not None]
    for (good_per_s, fraction), share in zip(goods, SHARES, strict=True):
        samples |= {f"load{100 * share:.0f}_good_req_per_s": [good_per_s], f"load{100 * share:.0f}_good_fraction": [fraction]}
    stall = {"stall_from_send_s": both["from the send time"], "stall_from_schedule_s": both["from the schedule"]}

# %%
if ARE_READY and ready("33.4"):
    runs = {**{f"clients {num}": [one] for num, one in crowd.items()}, **{f"load {share:g}": some for share, some in loaded.items()}}
    settings = {
        "server": inherited.to_dict(), "slo": SLO, "promised_fraction": PROMISE, "shares_of_capacity": list(SHARES),
        "prompt_tokens": PROMPT, "output_tokens": OUTPUT, "stall_verdict": str(slow.verdict),
        "plans": {name: [one.plan["sha256"] for one in some] for name, some in runs.items()},
        "client_verdicts": {name: [str(one.verdict) for one in some] for name, some in runs.items()},
        "prefix_hit_fractions": {name: [one.sampling.hit_fraction for one in some] for name, some in runs.items()},
    }  # fmt: skip
    kept = {name: values for name, values in {**samples, **stall}.items() if values}
    record = save_record("33", "load", model=choice, samples=kept, settings=settings)
    print("saved as", record.id)

# %%
mine = record if ARE_READY and ready("33.4") else None
claim = published.load_claim("mlperf-interactive-ttft")
print(published.format_comparison(claim, lab="33", name="load", key=f"load{100 * min(SHARES):.0f}_ttft_from_schedule_s", record=mine))

# %% [markdown]
# **Not comparable** as it stands: theirs is a limit on the 99th percentile for a model 700 times as large on a GPU,
# yours is a median at the lowest rate. What you can compare is the question: at which rate does your p99 reach the
# limit?
#
# ## 6 · Tuning, one setting at a time
#
# Real users come back. A *session* has several turns, each of which sends the whole conversation again, and all
# sessions begin with the same instructions. So prompts share a prefix, and the prefix cache can find it; the **hit
# rate** tells you how much it found.
#
# Each round sends the same sessions to every server in turn. What counts for a run is the p95 of its TTFT from the
# schedule, and whether its client was valid. Each round gives one pair per setting: that setting and the default.
#
# ### Predict before you measure
#
# How many times as fast (p95 of the TTFT) does the prefix cache alone make the inherited server on these sessions?

# %% solution="33.p3"
### BEGIN SOLUTION stub: predict("33.p3", None, unit="x")
predict("33.p3", 2, unit="x")
### END SOLUTION

# %%
NUM_PAIRS, NUM_SESSIONS, SHARED = choose_by_budget(learner=(6, 30, 128), ci=(3, 20, 128))
IS_TUNING = ARE_READY and ready("33.4")


def plan_sessions(seed, num_sessions=NUM_SESSIONS):
    return draw_session_plan(
        "poisson", rate_per_s=capacity_per_s, num_requests=num_sessions, turns=3, shared=SHARED, think_s=0.2,
        prompt=16, output=4, seed=seed, ids=IDS,
    )  # fmt: skip


def tune(some, seed):
    """Send one round's sessions to each of these servers; return {name: result}."""
    names = [*some][seed % len(some) :] + [*some][: seed % len(some)]
    return {name: send(some[name], plan_sessions(seed)) for name in names}


# %%
if IS_TUNING:
    for server in engines.values():  # warm-up, with its own sessions
        send(server, plan_sessions(2000, num_sessions=2))
    tuned = [tune(engines, 2001 + number) for number in range(NUM_PAIRS)]
    print(HEAD)
    for name in engines:
        describe(name, tuned[-1][name])


# %%
def read_round(results):
    """Return {name: (p95 of the TTFT from the schedule in s, "valid" or "INVALID")} of one round."""
    found = {}
    for name, result in results.items():
        p95_s = stats.summarize([value for value in measure(result)[1] if value is not None]).p95
        if p95_s is not None:  # n is large enough in every round unless requests failed
            found[name] = (p95_s, "valid" if result.verdict.is_valid else "INVALID")
    return found


# %%
if IS_TUNING:
    rounds = [{name: found[name] for name in engines} for found in map(read_round, tuned) if len(found) == len(engines)]
    hits = {name: [one[name].sampling.hit_fraction for one in tuned] for name in engines}
    samples = {f"{name}_p95_s": [one[name][0] for one in rounds] for name in engines}
    samples |= {f"{name}_hit_fraction": [value or 0.0 for value in hits[name]] for name in engines}
    made = {name: server.to_dict() for name, server in engines.items()}
    tuning = save_record("33", "tuning", model=choice, samples=samples, settings={
        "tuning_rounds": [{name: list(one[name]) for name in engines} for one in rounds], "servers": made,
        "plan": tuned[0]["default"].plan["parameters"],
    })  # fmt: skip
    print(f"{len(rounds)} rounds, saved as {tuning.id}")

# %% [markdown] exercise="33.5" title="Which setting helped?" minutes=15 difficulty=4 version=1
# ### Exercise 33.5 · Which setting helped?
#
# *15 minutes · difficulty 4 of 5 · why it matters: with six settings and no interval, one always "wins".*
#
# `rounds` is a list of dicts like
# `{"default": (0.41, "valid"), "control": (0.40, "valid"), "cache": (0.20, "INVALID"), ...}`: the p95 in seconds and
# the verdict on the client. Return `(verdicts, best)`. `verdicts` maps every name except `default` to `"faster"`,
# `"slower"` or `"cannot tell"`: compared with `default`, at 95 %, by the ratio within each pair (so that a round on a
# slow machine does not count for more). Leave out a pair if either of its **two** runs is INVALID; with fewer than two
# pairs you cannot tell. `best` is the name with the largest gain among those that are faster, or `"default"` if none
# is. It is `None` if the **control** is anything but `"cannot tell"`: then something other than the settings made a
# difference.
#
# <details><summary>Hint 1</summary>
#
# `stats.compare(a, b)` has `verdict` and `ratio`, for times as they are. Which runs may go into a and b?
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# First collect the pairs for each name, two numbers per pair. INVALID runs of the other settings do not matter.
#
# </details>


# %% solution="33.5"
def judge_tuning(rounds):
    """Return ({name: verdict against default}, best setting, "default" or None) from rounds of (p95, validity)."""
    ### BEGIN SOLUTION
    verdicts, gains = {}, {}
    for name in rounds[0]:
        if name == "default":
            continue
        pairs = [(one[name][0], one["default"][0]) for one in rounds if one[name][1] == one["default"][1] == "valid"]
        verdicts[name] = "cannot tell"
        if len(pairs) > 1:
            said = stats.compare([mine for mine, _ in pairs], [base for _, base in pairs])
            verdicts[name] = said.verdict
            if said.verdict == "faster":
                gains[name] = said.ratio
    best = max(gains, key=gains.get, default="default")
    return verdicts, best if verdicts["control"] == "cannot tell" else None
    ### END SOLUTION


# %%
check("33.5", judge_tuning)

# %%
if IS_TUNING and ready("33.5"):
    kept = find_record(tuning.id)
    verdicts, best = judge_tuning(kept.settings["tuning_rounds"])
    gains = {name: stats.compare(kept.samples[f"{name}_p95_s"], kept.samples["default_p95_s"]) for name in verdicts}
    for name, said in gains.items():
        hit = 100 * stats.summarize(kept.samples[f"{name}_hit_fraction"]).p50
        ends = f"{said.ratio:.3g} ({said.interval.low:.3g} to {said.interval.high:.3g}, all {said.n} rounds)"
        print(f"{name:<9}{ends:<40}{verdicts[name]:<13}prefix cache {hit:.0f} %")
    print("best:", best or "cannot be named, because the control differs from the default")
    reveal("33.p3", gains["cache"].ratio, unit="x")

# %%
if IS_TUNING and ready("33.5"):
    by_name = {name: kept.samples[f"{name}_p95_s"] for name in engines}
    title = f"p95 of the TTFT, one point per run: {', '.join(name for name, word in verdicts.items() if word == 'faster') or 'nothing'} faster"
    figure = plots.plot_samples(by_name, unit="p95 of the TTFT from the schedule, s", title=title)
    figure.update_layout(height=180 + 70 * len(by_name))
    figure.show()
    print(plots.format_alternative(figure))

# %% [markdown]
# ### And together?
#
# Gains do not simply multiply: two settings may remove the same bottleneck. And the winner of a search was chosen
# *because* it looked good, so it is measured again, with new sessions. Here all settings that were faster are switched
# on together and compared with the best one alone and with the default (learner's budget only: it takes one more
# server).

# %%
def is_helping(name):
    return verdicts.get(name) == "faster" and name != "control"


IS_LONG = IS_TUNING and ready("33.5") and choose_by_budget(learner=True, ci=False) and best not in (None, "default")
if IS_LONG:
    for name in [one for one in engines if one not in ("default", best)]:
        engines.pop(name).stop()
    chosen = [name for name in NAMES if is_helping(name)]
    trio = {"default": inherited, best: engines[best], "together": start(*chosen)}
    engines["together"] = trio["together"]
    send(engines["together"], plan_sessions(3000, num_sessions=2))
    again = [tune(trio, 3001 + number) for number in range(NUM_PAIRS)]
    print("together:", " + ".join(chosen))

# %%
if IS_LONG:
    found = [read_round(one) for one in again]
    p95s = {name: [one[name][0] for one in found] for name in trio}
    second = save_record("33", "together", model=choice, samples={f"{name}_p95_s": values for name, values in p95s.items()},
                         settings={"together": chosen, "server": trio["together"].to_dict(),
                                   "rounds": [{name: list(run) for name, run in one.items()} for one in found]})  # fmt: skip
    for a, b in ((best, "default"), ("together", "default"), ("together", best)):
        said = stats.compare(p95s[a], p95s[b])
        print(f"{a} against {b}: {said.ratio:.3g} ({said.interval.low:.3g} to {said.interval.high:.3g}): {said.verdict}")

# %% [markdown]
# ## 7 · Three tools, one server, three TTFTs
#
# Three public load testers define their metrics differently. Their formulas were read from their source code and
# restated in `labkit.load.formulas`. First, one **made-up** request that is due at 0 s: the client is late and sends
# it at 0.2 s, the connection is open at 0.25 s, a role arrives at 0.3 s, content at 0.5 and 0.9 s.

# %% tags=["nbval-check-output"]
stream = (StreamEvent(0.3, "empty"), StreamEvent(0.5, "content", 1), StreamEvent(0.9, "content", 4), StreamEvent(0.9, "done"))
made_up = StreamLog(0.0, 0.2, 0.25, 0.9, stream, 4)
for tool in formulas.TOOLS:
    said = ", ".join(f"{word.upper()} {values[0]:.3f} s" for word, values in formulas.estimate_as(tool, [made_up]).items()
                     if word in ("ttft", "tpot", "itl"))  # fmt: skip
    print(f"{tool:<18}{said}")
print(f"{'the course':<18}TTFT 0.300 s, from the schedule 0.500 s, TPOT {(0.9 - 0.5) / 3:.3f} s")

# %% [markdown]
# Now a log of real requests, recorded event by event on a CPU, and what the three tools would report for it. Nothing
# was run again, so every difference comes from a **definition**. In the first log the recording client itself stalled
# for half a second.

# %%
logged = load_records(find_course_root() / "data" / "recorded" / "33", lab="33", name="chunks").records[-1]
LOGS = {name: load_logs(logged.samples, logged.settings["logs"], name) for name in ("completions", "speculation")}
WORDS = ("ttft", "tpot", "itl")
if ready("33.1"):
    for log, requests in LOGS.items():
        print(f"{log}: {logged.settings['words'][log]}; means of {len(requests)} requests")
        for tool in formulas.TOOLS:
            found = formulas.estimate_as(tool, requests)
            said = ", ".join(f"{word} {units.format_seconds(float(np.mean(found[word])))}" for word in WORDS if word in found)
            print(f"  {tool:<18}{said}")

# %% [markdown]
# The course's own numbers for the same events, from your `read_request`:

# %%
if ready("33.1"):
    for log, requests in LOGS.items():
        rows = []
        for one in requests:
            events = [(event.at_s, {"content": "x"} if event.kind == "content" else {}) for event in one.events]
            rows.append(read_request(one.scheduled_s, one.sent_s, events, one.num_output_tokens))
        sent_s, due_s, tpot_s, gaps_s = ([row[k] for row in rows] for k in range(4))
        for words, values in (("TTFT", sent_s), ("TTFT from the schedule", due_s), ("TPOT", tpot_s), ("gap", sum(gaps_s, []))):
            print(f"{log:<13}{words:<24}mean {units.format_seconds(float(np.mean(values))):<10}max {units.format_seconds(max(values))}")

# %%
if ready("33.1"):
    for tool, facts in formulas.TOOLS.items():
        print(f"{tool} {facts.version}")
        for word in WORDS:
            if word in facts.words:
                print(f"  {facts.words[word][0]}: {facts.words[word][1]}")

# %% [markdown]
# **What you should see.** None of the three counts from the schedule, so none of their TTFTs shows that the client
# stalled. Their TTFTs agree with each other here, because the connections opened at once and no role came early; the
# made-up request shows what happens otherwise. One tool includes the TTFT in its TPOT. Two call a mean per request
# "ITL", so a stall is averaged away. One counts a chunk as a token, which shows where speculation puts several tokens
# into one chunk. None is wrong by its own definition, but none of these numbers belongs in one table with another
# tool's.
#
# ## 8 · Break it: a closed loop that is called open
#
# Here is a believable mistake, again in simulated time so that it is exact. A server answers each request after 20 ms,
# but once, at 5 s, it freezes for two seconds. Two testers send 40 requests per second on average: one draws a
# schedule; the other has **one client** that waits for its answer and then pauses for a moment. Its report says "40
# requests per second", and that is true, except during the freeze.

# %%
def make_frozen_server():
    """One request at a time, 20 ms each; nothing moves from 5 s to 7 s."""
    free_s = [0.0]

    def script(number, now_s, body):
        begin_s = max(now_s, free_s[0])
        end_s = begin_s + 0.02
        free_s[0] = end_s if end_s <= 5 or begin_s >= 7 else 7.02
        return virtual.format_answer([free_s[0]])

    return script


# %%
if ARE_READY:
    testers = {
        "schedule": draw_open_plan([TraceRow(at_s, 8, 1) for at_s in draw_schedule(40.0, 20.0, 5)]),
        "one client": draw_closed_plan(num_clients=1, duration_s=20.0, think_s=0.005, prompt=8, output=1, seed=5),
    }
    for name, plan in testers.items():
        frozen = run_simulated(plan, make_frozen_server())
        from_send_s, from_schedule_s, _, verdict = judge_run(list_times(frozen.records))
        p99s = f"from the send time {units.format_seconds(from_send_s)}, from the schedule {units.format_seconds(from_schedule_s)}"
        print(f"simulated, {name:<11}{len(frozen.records) / 20:.0f} requests per second, p99 {p99s}, client {verdict}")

# %% [markdown]
# **What you should see.** For one client the freeze is *one* slow request among hundreds, far beyond its p99. With the
# schedule, everybody who arrived in those two seconds waited, and then everybody behind them. The client is "valid"
# both times: its measurement is sound, but it asks the wrong question. A cap on concurrency does the same to an open
# loop, and so does **re-anchoring**: a tool that is late shifts the rest of its schedule. Here is your stalled run
# from section 4, re-anchored:

# %%
if ARE_READY:
    lags_s = [record.lag_s for record in slow.records]
    shifts_s = np.maximum.accumulate(lags_s)
    moved = [(r.scheduled_s + shift_s, r.sent_s, r.chunks[0].at_s) for r, shift_s in zip(slow.records, shifts_s, strict=True) if r.is_good]
    honest, shifted = (
        sum(first_s - due_s > SLO["ttft_s"] for due_s, _, first_s in rows if first_s)
        for rows in (list_times(slow.records), moved)
    )
    print(f"over 0.5 s: {honest} requests from the schedule, {shifted} from the shifted schedule")

# %% [markdown]
# ## 9 · Summary
#
# You saw three things:
#
# 1. a latency depends on where its clock starts: from the schedule it is what users felt, from the send time it is
#    what the client managed to see; a run whose client was late is INVALID, not fast;
# 2. throughput continues while the promise is broken: beyond the knee the server works on requests that no longer
#    count;
# 3. a setting helped if paired rounds say so and the control says *cannot tell*.
#
# One thing this lab does **not** show: the knee of another workload. Other lengths, other prefix sharing or another
# daily rhythm move it; what carries over is the way to find it.

# %%
if IS_TUNING and ready("33.5"):
    print("Your numbers: the inherited server keeps its promise", "at no rate tried" if knee is None else f"up to {knee:.3g} req/s", end="")
    print(f"; its capacity is {capacity_per_s:.3g} req/s; the prefix cache makes p95 {gains['cache'].ratio:.3g} times as fast")
    print(f"(95 % interval {gains['cache'].interval.low:.3g} to {gains['cache'].interval.high:.3g}, {NUM_PAIRS} rounds); best setting: {best}")
    print(f"{choice.name} in {inherited.to_dict()['settings']['dtype']} on {machine.cpu.name}, ", end="")
    print(f"{record.time[:10]}, records {record.id} and {tuning.id}")

# %% [markdown]
# **Your finding** (80 to 300 words): how many users can this server take, how do you know, and what did tuning change?
# Cite your records' ids; every number is checked against them.

# %%
### BEGIN SOLUTION stub: note("33", None)
p50 = {key: values["p50"] for one in (record, tuning) for key, values in find_record(one.id).summary.items()}
low, high = f"load{100 * min(SHARES):.0f}", f"load{100 * max(SHARES):.0f}"
note("33", f"""Record {record.id} holds open-loop runs against one inherited vLLM server, with schedules drawn beforehand and
latencies counted from the time at which each request was due. In a closed loop the server answered
{p50["capacity_req_per_s"]:.3g} requests per second. At the lowest rate the median time to the first token was
{p50[low + "_ttft_from_schedule_s"]:.3g} s and {100 * p50[low + "_good_fraction"]:.3g} % of the requests kept the promise; at the highest rate,
beyond the capacity, the median was {p50[high + "_ttft_from_schedule_s"]:.3g} s and {100 * p50[high + "_good_fraction"]:.3g} %
kept it, although the server never stopped working. In record {tuning.id} every setting was changed alone and compared with
the inherited one in paired rounds, alongside a control that should change nothing. The median p95 was
{p50["default_p95_s"]:.3g} s before and {p50["cache_p95_s"]:.3g} s with the prefix cache, which found
{100 * p50["cache_hit_fraction"]:.3g} % of the prompt tokens. The numbers belong to this small model, to these lengths and to
this machine; the way to find them does not.""")
### END SOLUTION

# %% [markdown]
# ### Five questions

# %% solution="33.q1"
### BEGIN SOLUTION stub: quiz("33.q1")
quiz("33.q1", "b")
### END SOLUTION

# %% solution="33.q2"
### BEGIN SOLUTION stub: quiz("33.q2")
quiz("33.q2", 30)
### END SOLUTION

# %% solution="33.q3"
### BEGIN SOLUTION stub: quiz("33.q3")
quiz("33.q3", 300)
### END SOLUTION

# %% solution="33.q4"
### BEGIN SOLUTION stub: quiz("33.q4")
quiz("33.q4", "d")
### END SOLUTION

# %% solution="33.q5"
### BEGIN SOLUTION stub: quiz("33.q5")
quiz("33.q5", """Sixty-four clients are a closed loop that slows down with the server, so I would follow a schedule drawn
beforehand and count from it. One run each and a p99 of 200 requests have no interval; I would repeat whole runs in
interleaved pairs with a control, and measure the winner again, separately from the search.""")  # fmt: skip
### END SOLUTION

# %% [markdown]
# ## 10 · Done
#
# Stop the servers and release the memory:

# %%
if ARE_READY:
    for server in engines.values():
        server.stop()
    print("server processes left:", sum(len(server.pids) for server in engines.values()))
print(memory.measure_release(globals(), "crowd", "loaded", "tuned", "slow", "first", "full", "stalled", "LOGS"))

# %%
complete("33")
