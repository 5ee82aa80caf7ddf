# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
#   labkit:
#     number: "12"
#     title: Transformers against vLLM
#     question: What does a serving engine give me over plain Transformers?
#     phase: 1
#     minutes: 90
# ---

# %% [markdown]
# # 12 · Transformers against vLLM
#
# **What does a serving engine give me over plain Transformers?**
#
# In this lab you send the same work to three servers: plain Transformers one request at a time, Transformers in
# batches, and vLLM. You decide whether it *is* the same work, measure latency, throughput and memory in interleaved
# rounds, and end with a ratio that has an interval. Others have reported 1.9 and 24. You will see why both are true.

# %% [markdown]
# | | |
# | --- | --- |
# | **Time** | 90 minutes, about 5 of them waiting for servers |
# | **Needs** | Any machine with about 6 GB of free memory. No GPU and no network. All three engines are real. |
# | **Before** | Labs 00 and 01: TTFT, intervals, pairs, *cannot tell* |
# | **You will be able to** | compute the latencies of a stream whose chunks carry several tokens; say whether two runs did the same work; compare throughput in paired rounds; spot a benchmark that owes its gain to a warm prefix cache; explain which part of an engine's gain a workload can show |

# %%
import math
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module

from labkit import models, plots, published, servers, stats, units
from labkit.budget import choose_by_budget
from labkit.checks import check, complete, note, predict, ready, reveal
from labkit.environment import find_course_root
from labkit.hardware import estimate_tier, probe_machine
from labkit.load.run import run_workload
from labkit.quality import load_heldout
from labkit.quiz import quiz
from labkit.results import find_record, save_record
from labkit.servers import token_comparison
from labkit.workload import draw_equal_lengths, draw_mixed_lengths, draw_shared_prefix

# %%
machine = probe_machine()
choice = models.find_model("target", machine=machine)
print(f"CPU        {machine.cpu.name}, {machine.cpu.num_cores} cores")
print(f"memory     {units.format_bytes(machine.memory_free_bytes)} free; three servers take about 5 GiB")
print(f"GPU        {machine.gpus[0].name if machine.gpus else 'none found: the engines run on the CPU'}")
print(f"tier       {estimate_tier(machine)}")
print(f"model      {choice.name} ({choice.source}): the model for this tier")

# %% [markdown]
# ## 1 · What one stream tells you
#
# A server answers in **chunks**. Often a chunk is one token, but an engine that is busy, or that guesses
# ahead (speculative decoding), sends several at once; and some chunks carry none (a role, an empty piece, the count at
# the end). Let the request be sent at $t_0$, let chunks with content arrive at $c_1 \dots c_k$, and let them contain $n$
# tokens in total:
#
# $$\text{TTFT} = c_1 - t_0 \qquad \text{TPOT} = \frac{c_k - c_1}{n - 1} \qquad \text{end to end} = c_k - t_0 \quad [\text{s}]$$
#
# TPOT, the *time per output token*, divides by **tokens**, not by chunks: a tool that counted chunks reported 8.72 ms
# when the true value was 3.20 ms. The server says how many tokens a chunk holds (its running `usage`).
#
# **Worked example**: sent at 10 s, two tokens at 10.5 s, three more at 10.9 s.

# %% tags=["nbval-check-output"]
example_sent_s, example_chunks = 10.0, [(10.5, 2), (10.9, 3)]
print(f"TTFT {example_chunks[0][0] - example_sent_s:.1f} s")
print(f"TPOT {(10.9 - 10.5) / (2 + 3 - 1):.1f} s: 5 tokens have 4 gaps, and the tokens of a chunk arrive together")
print(f"if you counted chunks, it would be {(10.9 - 10.5) / (2 - 1):.1f} s")

# %% [markdown] exercise="12.1" title="The metrics of one stream" minutes=12 difficulty=2 version=1
# ### Exercise 12.1 · The metrics of one stream
#
# *12 minutes · difficulty 2 of 5 · why it matters: tools that define these three words differently cannot be compared.*
#
# `chunks` is a list of `(arrival_s, num_tokens)` in order of arrival. Return `(ttft_s, tpot_s, e2e_s)`. Chunks with 0
# tokens carry no content: ignore them. With no tokens at all, all three are `None`; with a single token, the TPOT is
# `None`.
#
# <details><summary>Hint 1</summary>
#
# First keep only the chunks that carry tokens. Then add up their tokens: this is $n$.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# All three need only the first arrival, the last arrival, `sent_s` and $n$. Whether there is a TPOT depends on $n$, not
# on the number of chunks.
#
# </details>


# %% solution="12.1"
def stream_metrics(sent_s, chunks):
    """Return (TTFT, TPOT, end to end) in seconds from (arrival, tokens) of each chunk, with None for what is unknown."""
    ### BEGIN SOLUTION
    content = [(at_s, count) for at_s, count in chunks if count > 0]
    if not content:
        return None, None, None
    first_s, last_s = content[0][0], content[-1][0]
    num_tokens = sum(count for _, count in content)
    tpot_s = (last_s - first_s) / (num_tokens - 1) if num_tokens > 1 else None
    return first_s - sent_s, tpot_s, last_s - sent_s
    ### END SOLUTION


# %%
check("12.1", stream_metrics)

# %% [markdown]
# ## 2 · The same work, or no comparison
#
# An engine that generates half of the tokens is not twice as fast. Answers end where the model ends them, so two
# engines can do very different work for the same prompts. This lab therefore fixes everything:
#
# - prompts are sent as **token ids**, so no tokenizer can make a difference;
# - the length of every answer is fixed (`ignore_eos`, `min_tokens`), and the server's `usage` must confirm it;
# - sampling is **greedy** (temperature 0), and the number format (dtype) is the same.
#
# $$\text{same work} \iff \text{same requests, and for each: same prompt length, output length, dtype, sampling}$$
#
# Totals are not enough. **Worked example**: two runs of two requests with 120 output tokens in total, and what a static
# batch of two has to compute, because it runs until its longest answer is done:

# %% tags=["nbval-check-output"]
for lengths in ([60, 60], [110, 10]):
    num_rows = len(lengths) * max(lengths)
    print(f"outputs {lengths}: {sum(lengths)} tokens wanted, {num_rows} computed, {num_rows - sum(lengths)} wasted")

# %% [markdown] exercise="12.2" title="The same work?" minutes=12 difficulty=2 version=1
# ### Exercise 12.2 · The same work?
#
# *12 minutes · difficulty 2 of 5 · why it matters: most published comparisons fail here, not in their arithmetic.*
#
# A run is a dict: `{"dtype": "float32", "sampling": {"temperature": 0}, "requests": {"a": (10, 100), ...}}`, where each
# request's name maps to its prompt tokens and output tokens. Return a **list** of everything that differs, from these
# names: `"requests"` (one run has a request that the other lacks), `"prompt lengths"`, `"output lengths"` (of the
# requests in both runs), `"dtype"`, `"sampling"`. For the same work, return the empty list. Requests can be in any
# order, because engines finish them in any order.
#
# <details><summary>Hint 1</summary>
#
# Match requests by name. `a["requests"].keys() & b["requests"].keys()` are the names that are in both runs.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Prompt lengths differ when `any(a["requests"][name][0] != b["requests"][name][0] for name in both)`.
#
# </details>


# %% solution="12.2"
def what_differs(a, b):
    """Return the names of everything that makes run a and run b different work, or [] if the work is the same."""
    ### BEGIN SOLUTION
    both = a["requests"].keys() & b["requests"].keys()
    pairs = [(a["requests"][name], b["requests"][name]) for name in both]
    differs = {
        "requests": a["requests"].keys() != b["requests"].keys(),
        "prompt lengths": any(left[0] != right[0] for left, right in pairs),
        "output lengths": any(left[1] != right[1] for left, right in pairs),
        "dtype": a["dtype"] != b["dtype"],
        "sampling": a["sampling"] != b["sampling"],
    }
    return [name for name, is_different in differs.items() if is_different]
    ### END SOLUTION


# %%
check("12.2", what_differs)

# %% [markdown]
# ## 3 · Throughput, in rounds
#
# **Throughput** is what the whole server delivers: all output tokens over one window, from the first request sent to
# the last token received.
#
# $$\text{throughput} = \frac{\sum_r n_r}{\max_r \text{end}_r - \min_r \text{start}_r} \quad [\text{tok/s}]$$
#
# It is neither the sum of the users' speeds nor their mean, because requests overlap. And the requests of one run share
# one machine and one server, so they are not independent samples. The sample is the **run**: repeat it in rounds, let
# the engines take turns within each round, and compare pair by pair (lab 01).
#
# **Worked example**: two requests that overlap.

# %% tags=["nbval-check-output"]
example_requests = [(0.0, 4.0, 40), (1.0, 5.0, 40)]  # start, end, tokens
window_s = max(end for _, end, _ in example_requests) - min(start for start, _, _ in example_requests)
print(f"throughput {sum(n for *_, n in example_requests) / window_s:.0f} tok/s")
print(f"each user sees {40 / 4:.0f} tok/s; dividing by the sum of the durations would give {80 / 8:.0f} tok/s")

# %% [markdown] exercise="12.3" title="A ratio of throughputs" minutes=15 difficulty=3 version=1
# ### Exercise 12.3 · A ratio of throughputs
#
# *15 minutes · difficulty 3 of 5 · why it matters: this is the number in every headline about an engine.*
#
# `a_rounds` and `b_rounds` are lists of rounds; a round is a list of requests `(start_s, end_s, num_tokens)`. Round i
# of A ran next to round i of B. Return `(ratio, low, high)`: the throughput of A over that of B, with its 95 % interval
# over the pairs. You may use `stats.compare` from lab 01; look at its argument `better`.
#
# <details><summary>Hint 1</summary>
#
# Write a small function for the throughput of one round, and use it to build two lists.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `said = stats.compare(a, b, better="higher")` has `said.ratio`, `said.interval.low` and `said.interval.high`.
#
# </details>


# %% solution="12.3"
def compare_throughput(a_rounds, b_rounds):
    """Return (throughput of A over that of B, low, high) over paired rounds of (start, end, tokens) requests."""
    ### BEGIN SOLUTION
    rates = []
    for rounds in (a_rounds, b_rounds):
        windows_s = [max(end for _, end, _ in one) - min(start for start, _, _ in one) for one in rounds]
        totals = [sum(num for _, _, num in one) for one in rounds]
        rates.append([total / window_s for total, window_s in zip(totals, windows_s, strict=True)])
    said = stats.compare(rates[0], rates[1], better="higher")
    return said.ratio, said.interval.low, said.interval.high
    ### END SOLUTION


# %%
check("12.3", compare_throughput)

# %% [markdown]
# ## 4 · Three servers, one kind of work
#
# Three engines answer, each in its own process, with **the same thread plan** for all (one compute thread, which sleeps
# while it waits):
#
# - **naive**: Transformers' `generate`, one request after another; later requests wait;
# - **batched**: the same `generate` on a *static batch*: waiting requests are combined, padded to the longest prompt,
#   and run until the longest answer is done;
# - **vLLM**: *continuous batching* (requests join and leave at every step), a paged KV cache, and a prefix cache.
#
# Three workloads show where a gain can come from:
#
# | workload | what it is | what should benefit |
# | --- | --- | --- |
# | equal | equal lengths, all requests there at the start | the static batch: no row is wasted |
# | mixed | lognormal lengths, arriving over time | the engine: nobody waits for the longest answer |
# | shared | long prompts that begin with the same tokens | the prefix cache: the beginning is read once |

# %%
NUM_REQUESTS, OUTPUT, SHARED = choose_by_budget(learner=(12, 48, 512), ci=(6, 24, 384))
DRAWS = {
    "equal": lambda ids, n: draw_equal_lengths(ids, num_requests=n, output_tokens=OUTPUT, num_warmup=2),
    "mixed": lambda ids, n: draw_mixed_lengths(
        ids, num_requests=n, rate_per_s=20.0, output_median=OUTPUT, max_tokens=3 * OUTPUT, num_warmup=2, seed=5
    ),
    "shared": lambda ids, n: draw_shared_prefix(
        ids, num_requests=n // 2, prompt_tokens=SHARED, output_tokens=OUTPUT // 4, num_warmup=1
    ),
}
MODES = {"naive": "transformers-naive", "batched": "transformers-batched", "vllm": "vllm"}
OPTIONS = {} if machine.gpus else {"dtype": "float32"}  # float32, so that the engines can be compared token by token

# %% [markdown]
# ### Predict before you measure
#
# On the *mixed* workload, requests arrive faster than the naive server can answer. How many times the throughput of
# naive Transformers will vLLM reach on your machine? (1 means the same throughput.)

# %% solution="12.p1"
### BEGIN SOLUTION stub: predict("12.p1", None, unit="x")
predict("12.p1", 3, unit="x")
### END SOLUTION

# %% [markdown]
# The next two cells start the servers and print how long each took. On two cores vLLM takes 30 to 60 seconds. The
# servers keep running until the end of the lab, because start-up is not part of what we compare.

# %%
ARE_READY = all([ready("12.1"), ready("12.2"), ready("12.3")])


def start(name):
    share = {"gpu_memory_share": 0.5} if name == "vllm" else {}  # or vLLM takes the memory that the others need
    return servers.run_server(MODES[name], model=choice, **OPTIONS, **share)


if ARE_READY:
    with ThreadPoolExecutor() as pool:  # they may start at the same time: only measurements take turns
        engines = dict(zip(MODES, pool.map(start, MODES), strict=True))

# %%
if ARE_READY:
    for name, server in engines.items():
        said = f"{name:<8} ready after {server.start_s:.0f} s, start attempts {server.start_attempts}, "
        print(said + f"holds {units.format_bytes(server.measure_memory()['pss_bytes'])}")
    plans = [server.to_dict()["thread_plan"] for server in engines.values()]
    print("one thread plan for all:", all(plan == plans[0] for plan in plans), plans[0])

# %% [markdown]
# Prompts are cut from real Python code. **Each run gets a part of the text that no other run has seen**, except that
# all engines in one round get the same part. Section 6 shows why this matters.

# %%
if ARE_READY:
    shipped = find_course_root() / "data" / "models" / "python-2m"  # a random model has no tokenizer of its own
    folder = shipped if choice.source == "random" else find_course_root() / choice.path_or_id
    Tokenizer = import_module("tokenizers").Tokenizer
    local = Tokenizer.from_file(str(folder / "tokenizer.json")) if folder.is_dir() else None
    tokenizer = local or Tokenizer.from_pretrained(choice.path_or_id)
    texts = load_heldout(can_fetch=False, is_strict=False).documents
    ids = tokenizer.encode("\n\n".join(one.text for one in texts)).ids
    next_part = iter(range(0, len(ids) - 3000, 3000))

    def draw(kind, num_requests=NUM_REQUESTS):
        start = next(next_part)
        return DRAWS[kind](ids[start : start + 3000], num_requests)

    print(f"{len(ids)} tokens of held-out code, enough for {len(ids) // 3000} runs")

# %% [markdown]
# **Do they return the same text?** With the same weights and greedy sampling you would expect the same tokens. Not
# quite: the engines add up numbers in different orders, and when two tokens are almost equally likely, the last bit
# decides. The rule of this course: both engines compute in float32, and a first difference is excused only if a float64
# run puts the two best logits less than $10^{-4}$ apart. Excuses are counted.

# %%
if ARE_READY:
    asked = [one.prompt_ids for one in draw("equal").measured][: choose_by_budget(learner=12, ci=6)]
    said = {
        name: [token_comparison.load_completion(server, prompt, num_tokens=24) for prompt in asked]
        for name, server in engines.items()
    }
    tie_gap = token_comparison.load_tie_gap(choice)
    has_rule = choice.source != "random" and not machine.gpus
    print("" if has_rule else "16 bits, or random weights, which differ in each engine: the rule does not apply")
    for name in ("batched", "vllm") if has_rule else ():
        found = token_comparison.compare_tokens(said["naive"], said[name], prompts=asked, tie_gap=tie_gap)
        print(token_comparison.format_token_comparison(found, names=("naive", name)))

# %% [markdown]
# ### Measure
#
# First the warm-up, with requests of its own. Then the rounds: in each round every workload goes to each engine once,
# and the engine that goes first changes from round to round. The client checks the server's token counts for every
# single request against what was requested.

# %%
if ARE_READY:
    NUM_ROUNDS = choose_by_budget(learner=6, ci=4)
    for kind in DRAWS:
        warm = draw(kind)
        for server in engines.values():
            run_workload(server, warm.warmup)
    runs = {(kind, name): [] for kind in DRAWS for name in engines}
    drawn = {kind: [] for kind in DRAWS}
    for number in range(NUM_ROUNDS):
        order = [*engines][number % 3 :] + [*engines][: number % 3]
        for kind in DRAWS:
            drawn[kind].append(draw(kind))
            for name in order:
                runs[kind, name].append(run_workload(engines[name], drawn[kind][-1].measured))

# %% [markdown]
# Was it the same work? Your `what_differs` checks every pair of runs:

# %%
if ARE_READY:

    def describe(name, run):
        sizes = {k: (one.num_prompt_tokens, one.num_output_tokens) for k, one in enumerate(run.records)}
        dtype = engines[name].to_dict()["settings"]["dtype"]
        return {"dtype": dtype, "sampling": {"temperature": 0}, "requests": sizes}

    found = [
        what_differs(describe("naive", a), describe(name, b))
        for kind in DRAWS for name in ("batched", "vllm")
        for a, b in zip(runs[kind, "naive"], runs[kind, name], strict=True)
    ]  # fmt: skip
    print(f"{len(found)} pairs of runs; what differs:", [one for one in found if one] or "nothing, it is the same work")

# %% [markdown]
# **The control.** One server under two names, taking turns, each time with new prompts of equal lengths: this should
# *not* make a difference.

# %%
if ARE_READY:
    twins = {"vllm": [], "again": []}
    for number in range(NUM_ROUNDS + 2):
        for name in sorted(twins, reverse=number % 2):
            twins[name].append(run_workload(engines["vllm"], draw("equal", NUM_REQUESTS // 2).measured).tok_per_s)
    same = stats.compare(twins["vllm"], twins["again"], better="higher")
    print(f"vLLM over itself: {same.ratio:.3f} ", end="")
    print(f"({same.interval.low:.3f} to {same.interval.high:.3f}): {same.verdict}")

# %% [markdown]
# ### The record
#
# One record holds the latencies of every request, computed by your `stream_metrics`, and the throughput of every run,
# together with the settings of the engines, their versions, the thread plan, the workloads and the hit rates of the
# prefix cache.

# %%
if ARE_READY:
    samples = {"vllm_again_tok_per_s": twins["again"], "vllm_twin_tok_per_s": twins["vllm"]}
    for (kind, name), some in runs.items():
        seen = [[stream_metrics(one.sent_s, [chunk[:2] for chunk in one.chunks]) for one in run.records] for run in some]
        for place, metric in enumerate(("ttft_s", "tpot_s", "e2e_s")):
            per_run = [[one[place] for one in run if one[place] is not None] for run in seen]
            samples[f"{kind}_{name}_{metric}"] = [value for run in per_run for value in run]
            samples[f"{kind}_{name}_run_{metric}"] = [stats.summarize(run).p50 for run in per_run]
        samples[f"{kind}_{name}_tok_per_s"] = [run.tok_per_s for run in some]
        samples[f"{kind}_{name}_middle_tok_per_s"] = [run.middle_tok_per_s for run in some]
        samples[f"{kind}_{name}_peak_bytes"] = [run.sampling.peak_memory_bytes for run in some]
    for kind, base in (("mixed", "naive"), ("equal", "batched"), ("equal", "naive"), ("shared", "naive")):
        pairs = zip(samples[f"{kind}_vllm_tok_per_s"], samples[f"{kind}_{base}_tok_per_s"], strict=True)
        samples[f"{kind}_vllm_over_{base}_ratio"] = [a / b for a, b in pairs]

# %%
if ARE_READY:
    hits = {kind: [run.sampling.hit_fraction for run in runs[kind, "vllm"]] for kind in DRAWS}
    late_s = max(one.lag_s for some in runs.values() for run in some for one in run.records)
    settings = {
        "engines": {name: server.to_dict() for name, server in engines.items()},
        "workloads": {kind: [one.to_dict() for one in drawn[kind]] for kind in DRAWS},
        "num_rounds": NUM_ROUNDS, "prefix_hit_fraction": hits, "client_lag_max_s": late_s,
        "count_source": "the server's usage in every chunk", "run_metrics": "median over the requests of a run",
        "window": "whole run, first request sent to last token; middle: the middle half of it",
    }  # fmt: skip
    record = save_record("12", "engines", model=choice, samples=samples, settings=settings)
    print(f"saved as {record.id}; the client sent no request more than {units.format_seconds(late_s)} late")

# %% [markdown]
# ## 5 · What came out
#
# The table shows the geometric mean over the rounds with its 95 % interval (t, over runs, on the log scale as in lab
# 01; for latencies, over the median of each run). Memory is the largest reading of main memory, summed over
# all processes of an engine: vLLM **reserves** its KV cache on purpose (1 GiB here) and runs three processes.

# %%
if ARE_READY:
    kept = find_record(record.id).samples
    print(f"{'workload':<9}{'engine':<9}{'throughput, tok/s':<23}{'TTFT, ms':<25}{'TPOT, ms':<23}{'memory, GiB'}")
    for kind, name in runs:
        cells = []
        for key, scale in (("tok_per_s", 1), ("run_ttft_s", 1e3), ("run_tpot_s", 1e3), ("peak_bytes", 2**-30)):
            logs = [math.log(scale * value) for value in kept[f"{kind}_{name}_{key}"]]
            around = stats.estimate_mean_interval(logs)
            mean, low, high = map(math.exp, (sum(logs) / len(logs), around.low, around.high))
            cells.append("{} ({} to {})".format(*map(units.format_number, (mean, low, high))))
        print(f"{kind:<9}{name:<9}{cells[0]:<23}{cells[1]:<25}{cells[2]:<23}{cells[3]}")

# %%
if ARE_READY:
    speeds = {f"{kind}, {name}": kept[f"{kind}_{name}_tok_per_s"] for kind, name in runs}
    gains = {kind: stats.compare(kept[f"{kind}_vllm_tok_per_s"], kept[f"{kind}_naive_tok_per_s"], better="higher")
             for kind in DRAWS}  # fmt: skip
    said = ", ".join(f"{kind} {gain.ratio:.2g}x" for kind, gain in gains.items())
    figure = plots.plot_samples(speeds, unit="tok/s", title=f"vLLM over naive Transformers: {said}")
    figure.update_layout(height=620)
    figure.show()
    print(plots.format_alternative(figure))

# %%
if ARE_READY:
    ratios = kept["mixed_vllm_over_naive_ratio"]
    predicted = reveal("12.p1", gains["mixed"].ratio, unit="x")
    title = f"Mixed lengths: vLLM has {gains['mixed'].ratio:.2g} times the throughput of naive Transformers"
    figure = plots.plot_prediction(ratios, predicted=predicted, unit="throughput of vLLM over naive (ratio)", title=title)
    figure.show()
    print(plots.format_alternative(figure))

# %% [markdown]
# Three comparisons, each in pairs of rounds, and the hit rate of vLLM's prefix cache by its own counters (prompt tokens
# found over prompt tokens looked up). The equal and mixed workloads cannot have hits, because no two prompts begin with
# the same tokens.

# %%
if ARE_READY:
    for kind in DRAWS:
        for a, b in (("batched", "naive"), ("vllm", "batched"), ("vllm", "naive")):
            rounds = [[[(r.sent_s, r.chunks[-1].at_s, r.num_output_tokens) for r in run.records] for run in runs[kind, name]]
                      for name in (a, b)]  # fmt: skip
            ratio, low, high = compare_throughput(*rounds)
            print(f"{kind:<8}{a:<8} over {b:<8} {ratio:.3g} ({low:.3g} to {high:.3g})")
        print(f"{kind:<8}prefix cache of vLLM: {100 * sum(hits[kind]) / len(hits[kind]):.0f} % of the prompt tokens found")

# %% [markdown] exercise="12.4" title="The verdict" minutes=12 difficulty=2 version=1
# ### Exercise 12.4 · The verdict
#
# *12 minutes · difficulty 2 of 5 · why it matters: a headline number must follow from stored samples; otherwise it is a
# rumour.*
#
# Write `read_verdict(record)`: from the samples of a record like yours, compare vLLM with **naive** Transformers on the
# **mixed** workload (keys `mixed_vllm_tok_per_s` and `mixed_naive_tok_per_s`, one sample per round). Return a dict with
# the keys `record` (its id), `ratio`, `low`, `high` (throughput of vLLM over naive, 95 % interval over paired rounds)
# and `verdict`: `"faster"`, `"slower"` or `"cannot tell"`. The check uses made-up records first, and then recomputes
# your own.
#
# <details><summary>Hint 1</summary>
#
# You need `record.id` and `record.samples["mixed_vllm_tok_per_s"]`. Which of the two engines is A?
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# The object that `stats.compare(..., better="higher")` returns also has a `verdict`.
#
# </details>


# %% solution="12.4"
def read_verdict(record):
    """Return {"record", "ratio", "low", "high", "verdict"}: vLLM over naive Transformers on mixed lengths."""
    ### BEGIN SOLUTION
    vllm, naive = (record.samples[f"mixed_{name}_tok_per_s"] for name in ("vllm", "naive"))
    gain = stats.compare(vllm, naive, better="higher")
    ends = {"low": gain.interval.low, "high": gain.interval.high}
    return {"record": record.id, "ratio": gain.ratio, **ends, "verdict": gain.verdict}
    ### END SOLUTION


# %%
check("12.4", read_verdict)

# %% [markdown]
# ### Why 14 to 24 and 1.9 are both true
#
# The first number comes from lengths drawn from real chats (very mixed), compared with Transformers, which pads a batch
# to its longest prompt and runs it until its longest answer is done, on a GPU whose memory the engine fills with far more
# requests at once. The second was measured against *large* batches of **equal** lengths, 128 in and 128 out: there is
# no padding and no waiting, and what is left is kernels and overhead. The ratio is a property of the
# **workload and the baseline** as much as of the engine. Your three workloads and two baselines are the same experiment
# on a small scale.

# %%
mine = record if ARE_READY else None
for claim, key in (("vllm-over-hf-mixed", "mixed_vllm_over_naive_ratio"),
                   ("vllm-over-hf-batched", "equal_vllm_over_batched_ratio")):  # fmt: skip
    print(published.format_comparison(published.load_claim(claim), lab="12", name="engines", key=key, record=mine))
    print()

# %% [markdown]
# **Not comparable** as they stand: the speed of a small model on a CPU is limited by the cost of a *step*, not by
# reading weights, and a step costs more in vLLM (a scheduler, three processes, messages between them). With one request
# at a time, plain Transformers may even win here. On a GPU with a large model a step takes long, and this cost is
# small.
#
# **What needs a GPU.** A CPU cannot show how many kernels each engine launches per token, how long the GPU idles
# between them, and what CUDA graphs change. A run recorded on a GPU belongs here:

# %%
print(published.format_comparison(published.load_claim("vllm-gpu-share"), lab="12", name="kernels", key="gpu_busy_fraction"))
print("kernel count, idle share and launch pattern of both engines: not recorded yet")

# %% [markdown]
# ## 6 · Break it: the warm prefix cache
#
# Here is a benchmark with one believable mistake: it warms up *with the prompts that it will measure*. vLLM keeps the
# KV cache of prompts that it has read, so the measured run skips most of its prefill. The right version warms up with
# prompts of the same size from another part of the text. The two versions take turns on the same server.

# %%
if ARE_READY:
    NUM_LONG, plans, found = choose_by_budget(learner=4, ci=2), {"wrong": [], "right": []}, {"wrong": [], "right": []}
    for number in range(NUM_ROUNDS):
        for plan in sorted(plans, reverse=number % 2):
            start = next(next_part)
            work = draw_equal_lengths(
                ids[start : start + 3000], num_requests=NUM_LONG, prompt_tokens=512, output_tokens=8, num_warmup=NUM_LONG
            )
            run_workload(engines["vllm"], work.measured if plan == "wrong" else work.warmup)
            run = run_workload(engines["vllm"], work.measured)
            plans[plan].append(run)
            found[plan].append(run.sampling.hit_fraction)

# %%
if ARE_READY:
    inflated = stats.compare(*([run.tok_per_s for run in plans[plan]] for plan in ("wrong", "right")), better="higher")
    for plan, some in plans.items():
        ttft_s = stats.summarize([one.ttft_s for run in some for one in run.records]).p50
        share = 100 * sum(found[plan]) / NUM_ROUNDS
        print(f"{plan:<6} TTFT p50 {units.format_seconds(ttft_s)}; {share:.0f} % of the prompt tokens were in the cache")
    print(f"throughput, wrong over right: {inflated.ratio:.3g} ", end="")
    print(f"({inflated.interval.low:.3g} to {inflated.interval.high:.3g}), {inflated.verdict}")

# %% [markdown]
# **What you should see.** A gain that nobody earned, and counters that reveal it: with a hit rate beside every number,
# this mistake cannot hide. A real workload may have shared prefixes, and then the gain is real (your *shared*
# workload). The question is whether the benchmark has them because the users do, or because it sent the same prompts
# twice.

# %% [markdown]
# ### A larger model, speed only
#
# The shipped model is so small that a step is mostly overhead. With `random:llama-140m` (random weights: fine for
# measuring speed, useless for text) the weights begin to matter. This part runs only with the learner's budget; the
# first three servers stop before it, to free their memory.

# %%
IS_LONG = ARE_READY and choose_by_budget(learner=True, ci=False) and choice.source != "random"
if ARE_READY:
    for server in engines.values():
        server.stop()
    print("stopped:", ", ".join(engines), "" if IS_LONG else "(the larger model is not run in this budget)")

# %%
if IS_LONG:
    shape = import_module("labkit.models.choice").RANDOM_SHAPES["llama-140m"]
    estimate_model = import_module("labkit.models.description").estimate_model
    larger = estimate_model("random:llama-140m", "random", "random:llama-140m", dict(shape), machine=machine)
    rates = {"naive": [], "vllm": []}
    with (
        servers.run_server(MODES["naive"], model=larger, **OPTIONS) as one,
        servers.run_server(MODES["vllm"], model=larger, **OPTIONS) as other,
    ):
        for number in range(5):  # the first round is the warm-up
            work = draw_equal_lengths(ids, num_requests=4, output_tokens=32, num_warmup=0, seed=number)
            for name, server in (("naive", one), ("vllm", other)):
                rates[name].append(run_workload(server, work.measured).tok_per_s)

# %%
if IS_LONG:
    larger_samples = {f"equal_{name}_tok_per_s": values[1:] for name, values in rates.items()}
    second = save_record("12", "engines_140m", model=larger, samples=larger_samples,
                         settings={"num_requests": 4, "prompt_tokens": 64, "output_tokens": 32})  # fmt: skip
    gain = stats.compare(rates["vllm"][1:], rates["naive"][1:], better="higher")
    print(f"random:llama-140m, 4 requests of equal lengths, {gain.n} rounds, record {second.id}: naive ", end="")
    print(f"{stats.summarize(rates['naive'][1:]).p50:.3g} tok/s, vLLM {stats.summarize(rates['vllm'][1:]).p50:.3g} tok/s")
    print(f"vLLM over naive {gain.ratio:.3g} ({gain.interval.low:.3g} to {gain.interval.high:.3g}), {gain.verdict}")

# %% [markdown]
# ## 7 · Summary
#
# You saw three things:
#
# 1. a comparison needs the same requests, lengths, dtype and sampling, checked request by request;
# 2. the gain of an engine has parts (batching itself, continuous batching, the prefix cache), and each workload shows a
#    different part;
# 3. a ratio belongs to a workload and a baseline; without them it says nothing.
#
# One thing this does **not** show: what happens when requests arrive faster and faster. Throughput at one load is a
# single point; lab 13 and phase 3 draw the curve.

# %%
if ready("12.4") and ARE_READY:
    verdict = read_verdict(find_record(record.id))
    print(f"Your number: vLLM over naive Transformers, mixed lengths: {verdict['ratio']:.3g} ", end="")
    print(f"({verdict['low']:.3g} to {verdict['high']:.3g}, {NUM_ROUNDS} rounds): {verdict['verdict']}")
    print(f"{choice.name} in {engines['vllm'].to_dict()['settings']['dtype']} on {machine.cpu.name}, ", end="")
    print(f"{record.time[:10]}, record {record.id}")

# %% [markdown]
# **A finding, if you like** (optional): 80 to 300 words on what your three workloads show, citing the id of your
# record. Every number in it is checked against the record.

# %%
### BEGIN SOLUTION stub: note("12", None)
p50 = {key: values["p50"] for key, values in find_record(record.id).summary.items()}
note("12", f"""In record {record.id} three servers did the same work: the same prompts as token ids, the same lengths, greedy
sampling, the same number format, one thread plan. On requests of mixed lengths that arrive over time, naive Transformers,
which serves one request after another, reached {p50["mixed_naive_tok_per_s"]:.3g} tok/s in the median round, static batches
{p50["mixed_batched_tok_per_s"]:.3g} and vLLM {p50["mixed_vllm_tok_per_s"]:.3g}; the ratio of vLLM over naive was
{p50["mixed_vllm_over_naive_ratio"]:.3g}. On equal lengths vLLM over static batches was only
{p50["equal_vllm_over_batched_ratio"]:.3g}: there a batch wastes nothing, and batching itself is the whole gain. On mixed
lengths a static batch waits for its longest answer, and the engine adds the rest. This is a small model; a large one on
a GPU will give other numbers.""")
### END SOLUTION

# %% [markdown]
# ### Five questions

# %% solution="12.q1"
### BEGIN SOLUTION stub: quiz("12.q1")
quiz("12.q1", "c")
### END SOLUTION

# %% solution="12.q2"
### BEGIN SOLUTION stub: quiz("12.q2")
quiz("12.q2", 25)
### END SOLUTION

# %% solution="12.q3"
### BEGIN SOLUTION stub: quiz("12.q3")
quiz("12.q3", "b")
### END SOLUTION

# %% solution="12.q4"
### BEGIN SOLUTION stub: quiz("12.q4")
quiz("12.q4", 260)
### END SOLUTION

# %% solution="12.q5"
### BEGIN SOLUTION stub: quiz("12.q5")
quiz("12.q5", """I would ask what the baseline was and whether the work was the same: the requests, their prompt and
output lengths, dtype and sampling, and whether the cache was warm with the measured prompts. Then I would run both on our
own lengths and arrivals, taking turns for several rounds, and report the ratio with its interval.""")  # fmt: skip
### END SOLUTION

# %% [markdown]
# ## 8 · Done
#
# The servers are stopped (they would also have stopped with the kernel). Nothing is left of them:

# %%
if ARE_READY:
    print("processes of the servers:", sum(len(server.pids) for server in engines.values()))

# %%
complete("12")
