# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
#   labkit:
#     number: "13"
#     title: Scaling
#     question: Which batch size and sequence length are the sweet spot?
#     phase: 1
#     minutes: 90
# ---

# %% [markdown]
# # 13 · Scaling
#
# **Which batch size and sequence length are the sweet spot?**
#
# In this lab you sweep the batch size from 1 to 64 rows, the prompt and the output from a few tokens to hundreds, and
# the number of users of a vLLM server. You fit the point where the curve bends and say how sure you are of it, choose
# the best batch size under a latency limit, and see what happens to users when a server is full. The lab ends with the
# milestone of phase 1.

# %% [markdown]
# | | |
# | --- | --- |
# | **Time** | 90 minutes, about 5 of them waiting |
# | **Needs** | Any machine with about 4 GB of free memory. No GPU, no network. |
# | **Before** | Lab 01: intervals. Lab 12: throughput, TTFT, TPOT. For the milestone also lab 11. |
# | **You will be able to** | compute the throughput of a batch without its padding; fit the fixed part and the part per row of a step, and find the knee between them; choose a batch size under a latency limit; apply Little's law to a server; explain why a good TPOT can hide a long wait |

# %%
import functools
from importlib import import_module

import numpy as np

from labkit import memory, models, plots, published, regimes, servers, stats, sweep, units, workload
from labkit.budget import choose_by_budget
from labkit.checks import check, complete, note, predict, ready, reveal
from labkit.checks.milestone import has_records
from labkit.environment import load_lab_module
from labkit.hardware import estimate_tier, probe_machine
from labkit.load.run import run_workload
from labkit.plots import plot_curves, plot_scaling
from labkit.quality import load_heldout
from labkit.quiz import quiz
from labkit.results import find_record, save_record
from labkit.timing import Stopwatch

# %%
machine = probe_machine()
choice = models.find_model("target", machine=machine)
print(f"CPU        {machine.cpu.name}, {machine.cpu.num_cores} cores")
print(f"memory     {units.format_bytes(machine.memory_free_bytes)} free; the server needs about 3.5 GiB")
print(f"GPU        {machine.gpus[0].name if machine.gpus else 'none found: everything runs on the CPU'}")
print(f"tier       {estimate_tier(machine)}")
print(f"model      {choice.name} ({choice.source}): the one this tier runs")

# %% [markdown]
# ## 1 · One batch, two numbers
#
# A **batch** runs several sequences (*rows*) through the model in one step. Each row gets one token per step. Two
# numbers matter: how much the machine delivers, and how long one user waits for a token.
#
# $$\text{throughput} = \frac{\text{tokens that somebody wanted}}{\text{time of all steps}} \;\left[\tfrac{\text{tok}}{\text{s}}\right]
# \qquad \text{latency per token} = \text{time of one step} \; [\text{s}]$$
#
# A row whose answer is complete keeps its place until the batch ends. Its tokens are computed, but nobody wants them.
#
# **Worked example**: two rows want 4 tokens and 1 token; each of the four steps takes 10 ms.

# %% tags=["nbval-check-output"]
example_wanted, example_step_ms = [4, 1], [10.0, 10.0, 10.0, 10.0]
seconds = sum(example_step_ms) / 1000
print(f"throughput: {sum(example_wanted)} tokens in {seconds} s = {sum(example_wanted) / seconds:.0f} tok/s")
print(f"computed: {len(example_wanted) * len(example_step_ms)} tokens; counting them all would give "
      f"{len(example_wanted) * len(example_step_ms) / seconds:.0f} tok/s")  # fmt: skip

# %% [markdown] exercise="13.1" title="Two numbers of a batch" minutes=8 difficulty=2 version=1
# ### Exercise 13.1 · Two numbers of a batch
#
# *8 minutes · difficulty 2 of 5 · why it matters: every curve in this lab is built from these two numbers.*
#
# `wanted` lists how many tokens each row wants, `step_ms` how long each step took, in **milliseconds**. Return
# `(tok_per_s, step_s)`: the throughput in tok/s, and the median step time in seconds.
#
# <details><summary>Hint 1</summary>
#
# Throughput is the sum of all wanted tokens divided by the sum of all step times. You do not need the batch size.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `np.median(step_ms) / 1000` is the second number. Do not divide it by the number of rows: nobody gets a token earlier
# because others get one too.
#
# </details>


# %% solution="13.1"
def batch_numbers(wanted, step_ms):
    """Return (throughput in tok/s, median step time in s) from the tokens each row wants and the step times in ms."""
    ### BEGIN SOLUTION
    return 1000 * sum(wanted) / sum(step_ms), np.median(step_ms) / 1000
    ### END SOLUTION


# %%
check("13.1", batch_numbers)

# %% [markdown]
# ## 2 · Two parts, two regimes
#
# A step has a fixed part that does not depend on the batch size (reading the weights, starting every operator) and a
# part per row (arithmetic, reading that row's KV cache):
#
# $$t(b) = a + d\,b \;[\text{s}] \qquad \text{throughput} = \frac{b}{a + d\,b} \longrightarrow \frac{1}{d} \qquad
# \text{knee} = \frac{a}{d}$$
#
# Far below the **knee**, rows are nearly free: doubling the batch doubles the throughput. Far above it they are not:
# doubling the batch doubles the wait. At the knee both parts are equal, and the throughput is half of its ceiling
# $1/d$.
#
# Timing errors are proportional to the time: 5 % of 6 ms, 5 % of 600 ms. So fit **relative** errors: divide each
# equation $a + d\,b_i = t_i$ by $t_i$, then solve by least squares. **Worked example**, with exact values:

# %% tags=["nbval-check-output"]
for example_batch in (1, 16, 256):
    example_s = 8e-3 + 0.5e-3 * example_batch
    print(f"batch {example_batch:>3}: step {1e3 * example_s:5.1f} ms, {example_batch / example_s:5.0f} tok/s, "
          f"{100 * example_batch * 0.5e-3 / example_s:.0f} % of the ceiling")  # fmt: skip
print("knee: 8 ms / 0.5 ms = 16 rows")

# %% [markdown] exercise="13.2" title="Two parts and the knee" minutes=15 difficulty=3 version=1
# ### Exercise 13.2 · Two parts and the knee
#
# *15 minutes · difficulty 3 of 5 · why it matters: the knee tells you where a larger batch stops being nearly free.*
#
# `batches` and `step_s` are lists of equal length. Return `(fixed_s, per_row_s, knee)`, fitted by least squares on the
# relative errors. A knee outside the sweep (from the smallest to the largest batch, ends included) was not measured:
# return `None` for it, and also when the slope is not positive.
#
# <details><summary>Hint 1</summary>
#
# `np.linalg.lstsq(rows, right)[0]` solves rows · (a, d) = right. After dividing by $t_i$, each row is
# $(1/t_i,\; b_i/t_i)$ and the right side is 1.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `rows = np.stack([1 / t, b / t], axis=1)` with arrays `t` and `b`. Then test `min(batches) <= knee <= max(batches)`;
# the batches may come in any order.
#
# </details>


# %% solution="13.2"
def fit_step_time(batches, step_s):
    """Return (fixed part in s, part per row in s, knee or None) from batch sizes and their step times."""
    ### BEGIN SOLUTION
    b, t = np.array(batches), np.array(step_s)
    rows = np.stack([1 / t, b / t], axis=1)  # (points, 2)
    fixed_s, per_row_s = np.linalg.lstsq(rows, np.ones(len(t)))[0]
    knee = fixed_s / per_row_s
    return fixed_s, per_row_s, knee if min(batches) <= knee <= max(batches) else None
    ### END SOLUTION


# %%
check("13.2", fit_step_time)

# %% [markdown]
# ## 3 · The sweep
#
# A sweep measures a **grid** of points in **rounds**. Three rules keep it honest, and `labkit.sweep` follows them:
#
# - each round visits every point once, in a random order (seeded), so that a machine that warms up and slows down does
#   not look like a bend in the curve;
# - the sample is the **run**: the steps of a point in one round share the machine's state at that time, so they give
#   one sample, their median, and the interval comes from the rounds;
# - each visit is saved to disk before the next begins. If the kernel dies, run the cell again: it resumes.

# %%
BATCHES = choose_by_budget(learner=(1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64), ci=(1, 2, 4, 8, 16, 32, 64))
NUM_ROUNDS, NUM_STEPS, PROMPT = choose_by_budget(learner=8, ci=4), 12, 16
LIMIT_S = 0.020  # the longest acceptable wait for a token: 50 tok/s, faster than anyone reads
ARE_READY = all([ready("13.1"), ready("13.2")])

if ARE_READY:
    torch = import_module("torch")
    model, tokenizer = models.load_model(choice)
    text = "\n\n".join(one.text for one in load_heldout(can_fetch=False, is_strict=False).documents)
    ids = np.array(tokenizer.backend_tokenizer.encode(text).ids)
    draws = np.random.default_rng(13)
    longest = getattr(model.config, "max_position_embeddings", 2048) - NUM_STEPS
    print(f"{len(ids)} tokens of held-out code to cut prompts from; the model accepts up to {longest + NUM_STEPS}")

# %% [markdown]
# One run processes the prompts of all rows at once (**prefill**), then takes one step after another (**decode**). Each
# is timed with the device synchronized. There is no sampling and no library around it: this is the cost of the model
# alone.


# %%
def run_batch(num_rows, num_prompt, num_steps):
    """Return (prefill time in s, list of step times in ms) of a batch of real prompts, decoded greedily."""
    begin = draws.integers(len(ids) - num_prompt, size=num_rows)
    prompts = torch.tensor(np.stack([ids[k : k + num_prompt] for k in begin]), device=model.device)  # (B, S)
    step_ms, device = [], str(model.device)
    with torch.inference_mode():
        with Stopwatch(device=device) as watch:
            out = model(prompts, use_cache=True, logits_to_keep=1)
        prefill_s = watch.elapsed_s
        for _ in range(num_steps):
            with Stopwatch(device=device) as watch:
                rows = out.logits[:, -1].argmax(-1, keepdim=True)  # (B, 1)
                out = model(rows, past_key_values=out.past_key_values, use_cache=True)
            step_ms.append(1e3 * watch.elapsed_s)
    return prefill_s, step_ms


# %% [markdown]
# ### Predict before you measure
#
# How many times the throughput of batch 1 will batch 16 reach on your machine?

# %% solution="13.p1"
### BEGIN SOLUTION stub: predict("13.p1", None, unit="x")
predict("13.p1", 10, unit="x")
### END SOLUTION


# %% [markdown]
# `again` is the **control**: batch 8 measured a second time under another name, in the same rounds. It should *not*
# differ. The time budget stops the sweep before a visit that would not fit; the same call without a budget then
# finishes the sweep.


# %%
def measure_batch(point):
    """Measure one batch size once: a warm-up of two steps, then one run."""
    run_batch(point["batch"], PROMPT, 2)
    prefill_s, step_ms = run_batch(point["batch"], PROMPT, NUM_STEPS)
    tok_per_s, step_s = batch_numbers([NUM_STEPS] * point["batch"], step_ms)
    return {"step_s": [step_s], "tok_per_s": [tok_per_s], "prefill_s": [prefill_s]}


if ARE_READY:
    GRID = [{"batch": batch, "name": "sweep"} for batch in BATCHES] + [{"batch": 8, "name": "again"}]
    sweep_batches = functools.partial(sweep.run_sweep, "batch", measure_batch, GRID, model=choice, num_rounds=NUM_ROUNDS,
                                      settings={"steps": NUM_STEPS, "prompt": PROMPT})  # fmt: skip
    first = sweep_batches(budget_s=1.5)
    batch_sweep = sweep_batches()
    print(f"{first.num_new} visits before the budget ran out, {batch_sweep.num_new} after it, none repeated")

# %% [markdown]
# **Lengths.** The prompt length determines the prefill, the output length the number of steps. Both are measured at
# batch 1.
#
# First a prediction: the prompt becomes 8 times as long, 512 tokens instead of 64. How many times as long does its
# prefill take?

# %% solution="13.p2"
### BEGIN SOLUTION stub: predict("13.p2", None, unit="x")
predict("13.p2", 8, unit="x")
### END SOLUTION

# %%
PROMPTS, OUTPUTS = choose_by_budget(learner=(8, 32, 64, 128, 256, 512, 960), ci=(8, 64, 512)), (8, 32, 96)


def measure_lengths(point):
    """Measure one pair of lengths once, at batch 1."""
    run_batch(1, point["prompt"], 2)
    prefill_s, step_ms = run_batch(1, point["prompt"], point["output"])
    return {"prefill_s": [prefill_s], "step_s": [np.median(step_ms) / 1e3], "e2e_s": [prefill_s + sum(step_ms) / 1e3]}


if ARE_READY:
    PROMPTS = tuple(n for n in PROMPTS if n <= longest)
    lengths = [{"prompt": n, "output": 8} for n in PROMPTS] + [{"prompt": 32, "output": n} for n in OUTPUTS]
    lengths = [point for k, point in enumerate(lengths) if point not in lengths[:k]]
    length_sweep = sweep.run_sweep("lengths", measure_lengths, lengths, settings={}, model=choice, num_rounds=NUM_ROUNDS)

# %% [markdown]
# ## 4 · Users
#
# A server has **clients**: each sends a request, waits for the complete answer, and sends the next (a *closed loop*).
# vLLM puts their requests into one batch, here of at most `SEATS` rows; a request that finds no free seat waits.
# **Little's law** holds for any system that requests enter and leave:
#
# $$\underbrace{N}_{\text{requests in flight}} = \underbrace{X}_{\text{requests per second}} \times
# \underbrace{R}_{\text{mean seconds of a request}}$$
#
# A prediction: `SEATS` is 8. How many times as long is the time to first token with 16 clients as with 1 client?

# %% solution="13.p3"
### BEGIN SOLUTION stub: predict("13.p3", None, unit="x")
predict("13.p3", 10, unit="x")
### END SOLUTION

# %%
SEATS, OUTPUT = 8, 16
CLIENTS = choose_by_budget(learner=(1, 2, 4, 8, 12, 16, 24), ci=(1, 4, 8, 16))
OPTIONS = {} if machine.gpus else {"dtype": "float32"}

if ARE_READY:
    share = {"gpu_memory_share": 0.5} if machine.gpus else {}
    server = servers.run_server("vllm", model=choice, max_num_seqs=SEATS, has_prefix_cache=False, **OPTIONS, **share)
    print(f"vLLM ready after {server.start_s:.0f} s, uses {units.format_bytes(server.measure_memory()['pss_bytes'])}")

# %% [markdown]
# Every visit sends new prompts of 64 tokens, at least two per client. The metrics are those of lab 12: TTFT, TPOT, and
# end-to-end latency. Each run gives the mean over its requests. (Little's law is about means.)

# %%
drawn = iter(range(10**6))


def measure_clients(point):
    """Run one closed loop once."""
    sizes = {"num_requests": max(4, 2 * point["clients"]), "prompt_tokens": 64, "output_tokens": OUTPUT}
    work = workload.draw_equal_lengths(ids, **sizes, num_warmup=0, seed=next(drawn))
    run = run_workload(server, work.measured, num_clients=point["clients"])
    means = {key: [np.mean([getattr(one, key) for one in run.records])] for key in ("ttft_s", "tpot_s", "e2e_s")}
    return means | {"req_per_s": [run.metrics.whole.request_per_s], "tok_per_s": [run.tok_per_s]}


# %%
if ARE_READY:
    measure_clients({"clients": SEATS})  # warm-up
    users = [{"clients": num} for num in CLIENTS]
    user_sweep = sweep.run_sweep("clients", measure_clients, users, model=choice, num_rounds=NUM_ROUNDS,
                           settings={"seats": SEATS, "output": OUTPUT, "prompt": 64, **OPTIONS})  # fmt: skip

# %% [markdown]
# ### The record
#
# All samples go into one record. A request's latency is split into three parts: the time to its first token if it were
# **alone** (prefill: the TTFT of one client in the same round), the rest of its TTFT (**waiting**), and the time after
# its first token (**decode**).

# %%
if ARE_READY:
    samples = {"again8_step_s": batch_sweep.samples("step_s", batch=8, name="again")}
    for batch in BATCHES:
        for key in ("step_s", "tok_per_s", "prefill_s"):
            samples[f"batch{batch}_{key}"] = batch_sweep.samples(key, batch=batch, name="sweep")
    for point in lengths:
        for key in ("prefill_s", "step_s", "e2e_s"):
            samples[f"prompt{point['prompt']}_output{point['output']}_{key}"] = length_sweep.samples(key, **point)
    alone_s = user_sweep.samples("ttft_s", clients=1)
    for num in CLIENTS:
        seen = {key: user_sweep.samples(key, clients=num) for key in ("ttft_s", "tpot_s", "e2e_s", "req_per_s", "tok_per_s")}
        seen["waiting_s"] = [max(0.0, t - one) for t, one in zip(seen["ttft_s"], alone_s, strict=True)]
        seen["prefill_s"] = [min(t, one) for t, one in zip(seen["ttft_s"], alone_s, strict=True)]
        seen["decode_s"] = [end - t for end, t in zip(seen["e2e_s"], seen["ttft_s"], strict=True)]
        samples |= {f"clients{num}_{key}": values for key, values in seen.items()}

# %%
if ARE_READY:
    step_s = {batch: samples[f"batch{batch}_step_s"] for batch in BATCHES}
    fits = {shape: regimes.fit_regimes(step_s, shape=shape) for shape in ("max", "sum")}
    settings = {
        "batches": list(BATCHES), "clients": list(CLIENTS), "limit_s": LIMIT_S, "seats": SEATS,
        "prompts": list(PROMPTS), "outputs": list(OUTPUTS), "num_rounds": NUM_ROUNDS, "num_steps": NUM_STEPS,
        "prompt_tokens": PROMPT, "output_tokens": OUTPUT, "engine": server.to_dict(),
        "sweeps": [one.to_dict() for one in (batch_sweep, length_sweep, user_sweep)],
        "knee": fits["sum"].knee, "knee_low": fits["sum"].low, "knee_high": fits["sum"].high,
    }  # fmt: skip
    record = save_record("13", "sweep", model=choice, samples=samples, settings=settings)
    for one in (batch_sweep, length_sweep, user_sweep):
        sweep.close_sweep(one, record=record.id)
    print(f"saved as {record.id}")

# %% [markdown]
# ## 5 · Where does it bend?
#
# Your `fit_step_time` gives one number. How certain is it? `fit_regimes` gives the interval of all knees whose best
# curve is not significantly worse than the best of all. It knows two shapes: `sum` is yours, where one part follows
# the other; in `max` they overlap, so the curve starts flat and has a corner. It can also answer *no knee within the
# sweep* (the curve is flat, or linear from the start) or *cannot tell*.

# %%
if ARE_READY:
    means = {batch: stats.summarize(values).mean for batch, values in step_s.items()}
    fixed_s, per_row_s, knee = fit_step_time(list(means), list(means.values()))
    said = f"knee at batch {knee:.3g}" if knee else "no knee within the sweep"
    print(f"yours: fixed {units.format_seconds(fixed_s)}, per row {units.format_seconds(per_row_s)}, {said}")
    for shape, fit in fits.items():
        print(f'shape "{shape}", at most {100 * fit.misfit:.0f} % off at any point: {regimes.format_regimes(fit)}')

# %% [markdown]
# Which shape is yours? The one with the smaller error. A small model on a CPU often follows `sum`: it starts
# operators, then computes, one after the other, and a single row takes a different, faster path (a matrix times a
# *vector*) than two rows. A GPU reads the weights while it computes, so its curve has more of a corner.
#
# ### The sweet spot
#
# A **latency limit** is a promise to the user: a token every 20 ms. The sweet spot is the batch size with the highest
# throughput that keeps this promise. Because the measured time has an interval, the *whole* interval must be within
# the limit.

# %% [markdown] exercise="13.3" title="The sweet spot" minutes=12 difficulty=3 version=1
# ### Exercise 13.3 · The sweet spot
#
# *12 minutes · difficulty 3 of 5 · why it matters: without a limit, throughput has no optimum, and the users pay for it.*
#
# `step_s` is a dict from batch size to the step times of its runs, in seconds. Consider only the batch sizes whose
# whole 95 % interval of the mean, `stats.estimate_mean_interval`, is at or below `limit_s`. Among them, return the one
# with the highest throughput (batch size divided by *mean* step time); if two have the same throughput, return the
# smaller one. If no batch size keeps the limit, return `None`. The check uses made-up sweeps, then recomputes your
# record.
#
# <details><summary>Hint 1</summary>
#
# First list the batch sizes that keep the limit: `stats.estimate_mean_interval(values).high <= limit_s`.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `max(sorted(good), key=..., default=None)` returns the first of equals, and `None` for an empty list.
#
# </details>


# %% solution="13.3"
def find_sweet_spot(step_s, limit_s):
    """Return the batch size with the highest throughput whose whole interval is within the limit, or None."""
    ### BEGIN SOLUTION
    good = [b for b, values in step_s.items() if stats.estimate_mean_interval(values).high <= limit_s]
    return max(sorted(good), key=lambda b: b / np.mean(step_s[b]), default=None)
    ### END SOLUTION


# %%
check("13.3", find_sweet_spot)

# %%
if ARE_READY and ready("13.3"):
    kept = find_record(record.id).samples
    stored_s = {batch: kept[f"batch{batch}_step_s"] for batch in BATCHES}
    spot = find_sweet_spot(stored_s, LIMIT_S)
    best = min(fits.values(), key=lambda fit: fit.misfit)
    title = f"Decode: batch {spot} is the sweet spot under {1e3 * LIMIT_S:.0f} ms" if spot else "No batch keeps the limit"
    figure = plot_scaling(stored_s, title=title, fit=best, limit_s=LIMIT_S, sweet_spot=spot)
    figure.show()
    print(plots.format_alternative(figure))
    rates = [np.mean(kept[f"batch{batch}_tok_per_s"]) for batch in (16, 1)]
    reveal("13.p1", rates[0] / rates[1], unit="x")

# %% [markdown]
# Prefill and decode depend on length in different ways. Prefill processes all prompt tokens, so it grows with them
# from the start. A decode step processes one row, and reading the longer KV cache costs little in a small model.

# %%
if ARE_READY:
    curves = {name: {n: [1e3 * x for x in samples[f"prompt{n}_output8_{key}"]] for n in PROMPTS}
              for name, key in (("prefill", "prefill_s"), ("one decode step", "step_s"))}  # fmt: skip
    ends = [np.mean(curves["prefill"][n]) for n in (PROMPTS[-1], PROMPTS[0])]
    title = f"Prefill takes {ends[0] / ends[1]:.2g} times as long for {PROMPTS[-1]} tokens as for {PROMPTS[0]}"
    figure = plot_curves(curves, x="prompt tokens (count)", y="time, ms", title=title, is_log_y=True)
    figure.show()
    print(plots.format_alternative(figure))
    reveal("13.p2", np.mean(curves["prefill"][512]) / np.mean(curves["prefill"][64]), unit="x")
    for n in OUTPUTS:
        values = [x / n for x in samples[f"prompt32_output{n}_e2e_s"]]
        print(f"{n:>4} output tokens: {1e3 * np.mean(values):.3g} ms per token, end to end")

# %% [markdown]
# **The control.** Batch 8 compared with itself should show no difference. And there is one thing that batching should
# *not* improve: how long a single request waits for its token. A batch shares a step; it does not shorten it.

# %%
if ARE_READY:
    for name, a, b in (("batch 8 compared with itself", "again8_step_s", "batch8_step_s"),
                       ("one token in a batch of 64 compared with one alone", "batch64_step_s", "batch1_step_s")):  # fmt: skip
        same = stats.compare(samples[a], samples[b])
        print(f"speed of {name}: {same.ratio:.3f} ({same.interval.low:.3f} to {same.interval.high:.3f}), {same.verdict}")

# %%
claim = published.load_claim("gpt-fast-bf16-decode")
print(published.format_comparison(claim, lab="13", name="sweep", key="batch1_tok_per_s", record=record if ARE_READY else None))

# %% [markdown]
# **Not comparable** as absolute numbers: the model and the machine differ. What can be compared is the cause. There, a
# step is bound by reading 13 GB of weights; here, by starting operators. Both are a fixed part that a single row pays
# alone, and both have a knee.
#
# ## 6 · Where does the server saturate?
#
# Two lines bound the throughput of any closed loop. With few clients nobody waits: $X \approx N / R_1$, where $R_1$ is
# the latency of a request that is **alone**. With many clients the server works at its limit: $X \approx X_{max}$. The
# lines meet at
#
# $$N^* = X_{max} \times R_1 \quad [\text{requests}]$$
#
# Both lines are upper *bounds*: no closed loop lies above either. Beyond $N^*$ waiting is certain; below it, waiting
# is only likely. Every row in a batch makes the step a little longer, so the curve bends before $N^*$ and reaches its
# maximum after it, at the latest when all seats are taken.

# %% [markdown] exercise="13.4" title="Little's law and saturation" minutes=15 difficulty=3 version=1
# ### Exercise 13.4 · Little's law and saturation
#
# *15 minutes · difficulty 3 of 5 · why it matters: it tells you how many users a server can take, and whether to believe a
# load test.*
#
# The argument is a record like yours: `record.settings["clients"]` lists the numbers of clients (in any order). For
# each N, `record.samples[f"clients{N}_req_per_s"]` and `record.samples[f"clients{N}_e2e_s"]` have one value per run.
# Return a dict:
#
# - `record`: the record's id;
# - `in_flight`: a dict from N to the requests in flight by Little's law, the mean over the runs of (req/s · e2e of
#   that run);
# - `saturation`: $N^*$, the highest *mean* throughput times the *mean* latency at the fewest clients.
#
# <details><summary>Hint 1</summary>
#
# `np.mean(np.array(x) * np.array(r))` multiplies run by run first.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# For the saturation, compute the mean throughput of each N and take the largest; use `min(clients)` for the latency.
#
# </details>


# %% solution="13.4"
def read_saturation(record):
    """Return {"record", "in_flight": {N: requests in flight}, "saturation": clients where the two lines meet}."""
    ### BEGIN SOLUTION
    clients = record.settings["clients"]
    rate = {n: np.array(record.samples[f"clients{n}_req_per_s"]) for n in clients}
    latency_s = {n: np.array(record.samples[f"clients{n}_e2e_s"]) for n in clients}
    in_flight = {n: np.mean(rate[n] * latency_s[n]) for n in clients}
    best = max(np.mean(rate[n]) for n in clients)
    return {"record": record.id, "in_flight": in_flight, "saturation": best * np.mean(latency_s[min(clients)])}
    ### END SOLUTION


# %%
check("13.4", read_saturation)

# %%
if ARE_READY and ready("13.4"):
    read = read_saturation(find_record(record.id))
    print(f"the two lines meet at {read['saturation']:.3g} clients; the server has {SEATS} seats")
    for num in CLIENTS:
        print(f"{num:>3} clients: {read['in_flight'][num]:.2f} requests in flight by Little's law")

# %% [markdown]
# Little's law checks the *client*: if the number is clearly below N, the load generator was the bottleneck, or the run
# was too short. (Seats stay empty at the end of a run, which is why the largest N falls a little short here.)

# %%
if ARE_READY and ready("13.4"):
    rates = {"vLLM": {num: samples[f"clients{num}_tok_per_s"] for num in CLIENTS}}
    alone_s, top = np.mean(samples["clients1_e2e_s"]), max(np.mean(x) for x in rates["vLLM"].values())
    fine = [float(n) for n in np.geomspace(1, 1.2 * read["saturation"], 30)]
    bound = {"few clients, nobody waits": {n: OUTPUT * n / alone_s for n in fine},
             "many clients, the server at its limit": dict.fromkeys(CLIENTS, top)}  # fmt: skip
    gain = stats.compare(rates["vLLM"][16], rates["vLLM"][8], better="higher")
    interval = f"{gain.interval.low:.2g} to {gain.interval.high:.2g}"
    title = f"Lines meet at {read['saturation']:.2g} clients; 16 clients reach {gain.ratio:.2g}x ({interval}) the throughput of 8"
    figure = plot_curves(rates, x="clients (count)", y="throughput, tok/s", title=title, estimates=bound)
    figure.show()
    print(plots.format_alternative(figure))

# %% [markdown]
# ## 7 · Break it: a latency without the wait
#
# Here is a believable mistake: a dashboard shows the **TPOT** as "latency", because it is the time of a step. The
# limit is 50 ms per token. How many clients can the server have? And what do users feel, who count from the moment
# they ask?

# %%
if ARE_READY:
    felt = {"TPOT (wrong: it starts at the first token)": "tpot_s", "TTFT": "ttft_s"}
    curves = {name: {num: [1e3 * x for x in samples[f"clients{num}_{key}"]] for num in CLIENTS} for name, key in felt.items()}
    curves["end to end per token (felt)"] = {num: [1e3 * x / OUTPUT for x in samples[f"clients{num}_e2e_s"]] for num in CLIENTS}
    first = [np.mean(samples[f"clients{num}_ttft_s"]) for num in (16, 1)]
    title = f"With 16 clients the first token takes {first[0] / first[1]:.2g} times as long, and the TPOT hides it"
    figure = plot_curves(curves, x="clients (count)", y="latency, ms", title=title, is_log_y=True)
    figure.show()
    print(plots.format_alternative(figure))
    reveal("13.p3", first[0] / first[1], unit="x")

# %% [markdown]
# **What you should see.** With more clients than seats the TPOT stays where it was: a request that has a seat gets its
# tokens as before. The wait comes before the first token, and only TTFT and end-to-end latency show it. Judged by TPOT
# alone, the sweet spot has no upper end; in the closed loop of 16 clients and 8 seats, every second request is in the
# queue.
#
# A related mistake counts the **padded** rows. Here are eight rows of mixed lengths, as they would run in a static
# batch:

# %%
if ARE_READY:
    wanted = [4, 6, 8, 10, 12, 16, 24, 48]
    _, step_ms = run_batch(len(wanted), PROMPT, max(wanted))
    right, _ = batch_numbers(wanted, step_ms)
    padded, _ = batch_numbers([max(wanted)] * len(wanted), step_ms)
    shown = [units.format_rate(rate, "tok/s") for rate in (right, padded)]
    print(f"wanted tokens only: {shown[0]}; with padding: {shown[1]}, {padded / right:.2f} times as many")

# %% [markdown]
# ## 8 · The milestone of phase 1
#
# *You can profile a model, find its slowest part and explain its memory; measure a serving baseline and name the main
# latency component.* These are claims about **your own** records: the profile of lab 11, the engines of lab 12, the
# sweep of this lab. Every claim cites its record and is recomputed from that record's samples.

# %% [markdown] exercise="13.5" title="Milestone of phase 1" minutes=15 difficulty=3 version=1 stretch=true
# ### Exercise 13.5 · Milestone of phase 1
#
# *15 minutes · difficulty 3 of 5 · why it matters: after this phase you can make this claim, with evidence.*
# The phase needs it; this lab does not, because the milestone uses the records of three labs.
#
# Write `claim_milestone(profile, engines, sweep)`, which takes three records and returns a dict of claims:
#
# - `profile`, `engines`, `sweep`: the ids of the records;
# - `slowest_part`: the operator whose samples `decode_OPERATOR_self_fraction` in the profile have the largest mean;
# - `largest_memory`: `"weights"`, `"kv_cache"` or `"activations"`, whichever is the largest by `weights_bytes`,
#   `kv_cache_bytes` and `activations_bytes` in the profile;
# - `tok_per_s`, `low`, `high`: the baseline, vLLM on mixed lengths (`mixed_vllm_tok_per_s` in engines): geometric mean and
#   95 % interval over the runs, on the log scale as in lab 12;
# - `main_latency`: `"waiting"`, `"prefill"` or `"decode"`, whichever has the largest mean among `clientsN_waiting_s`,
#   `clientsN_prefill_s` and `clientsN_decode_s` in the sweep, where N is the largest number in `settings["clients"]`.
#
# <details><summary>Hint 1</summary>
#
# `max(shares, key=shares.get)` gives the name with the largest value in a dict. `key.removeprefix("decode_")` and
# `.removesuffix("_self_fraction")` leave the operator.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `logs = np.log(values)`, then `np.exp` of their mean and of both ends of `stats.estimate_mean_interval(logs)`.
#
# </details>


# %% solution="13.5"
def claim_milestone(profile, engines, sweep):
    """Return the claims of phase 1 from the records of labs 11, 12 and 13."""
    ### BEGIN SOLUTION
    start, end = "decode_", "_self_fraction"
    shares = {key.removeprefix(start).removesuffix(end): np.mean(values)
              for key, values in profile.samples.items() if key.startswith(start) and key.endswith(end)}  # fmt: skip
    held = {name: np.mean(profile.samples[f"{name}_bytes"]) for name in ("weights", "kv_cache", "activations")}
    logs = np.log(engines.samples["mixed_vllm_tok_per_s"])
    around, most = stats.estimate_mean_interval(logs), max(sweep.settings["clients"])
    parts = {name: np.mean(sweep.samples[f"clients{most}_{name}_s"]) for name in ("waiting", "prefill", "decode")}
    return {
        "profile": profile.id, "engines": engines.id, "sweep": sweep.id,
        "slowest_part": max(shares, key=shares.get), "largest_memory": max(held, key=held.get),
        "tok_per_s": np.exp(np.mean(logs)), "low": np.exp(around.low), "high": np.exp(around.high),
        "main_latency": max(parts, key=parts.get),
    }  # fmt: skip
    ### END SOLUTION


# %%
if has_records(load_lab_module("13", "milestone").PHASE_1):
    check("13.5", claim_milestone)

# %% [markdown]
# ## 9 · Summary
#
# You saw three things:
#
# 1. a step has a fixed part and a part per row; the knee between them tells you how far batching is nearly free, and
#    it has an interval;
# 2. a sweet spot needs a limit, and the whole interval must be within it;
# 3. beyond saturation, more users bring no throughput, only waiting, and the TPOT does not show it.
#
# One thing this lab does **not** show: users who arrive whether or not the server keeps up. In a closed loop the
# clients wait for the server; lab 33 opens the loop.

# %%
if ARE_READY and ready("13.3") and ready("13.4"):
    print(f"Your numbers, by batch size: {regimes.format_regimes(fits['sum'])} (shape sum); ", end="")
    print(f"sweet spot under {1e3 * LIMIT_S:.0f} ms: {f'batch {spot}' if spot else 'none'}; ", end="")
    print(f"the server saturates at {read['saturation']:.2g} clients")
    print(f"{choice.name} on {machine.cpu.name}, {NUM_ROUNDS} rounds, {record.time[:10]}, record {record.id}")

# %% [markdown]
# **A finding, if you like** (not required): one paragraph, 80 to 300 words, on where your machine's curve bends and
# which batch size you would choose, citing your record's id. Every number in it is checked against the record.

# %%
### BEGIN SOLUTION stub: note("13", None)
p50 = {key: values["p50"] for key, values in find_record(record.id).summary.items()}
most = max(CLIENTS)
note("13", f"""Record {record.id} has three sweeps: the batch size, the lengths, and the users of a server. Alone, one row
gets a token in {1e3 * p50["batch1_step_s"]:.3g} ms, which is {p50["batch1_tok_per_s"]:.3g} tok/s. With 64 rows a step takes
{1e3 * p50["batch64_step_s"]:.3g} ms, and the batch gives {p50["batch64_tok_per_s"]:.4g} tok/s: the step is longer, but not
in proportion to the rows, because a large part of it is fixed. Batch 16 gives {p50["batch16_tok_per_s"]:.3g} tok/s.
The server with {SEATS} seats gave {p50["clients8_tok_per_s"]:.3g} tok/s with 8 clients, and with {most} clients no more
than {p50[f"clients{most}_tok_per_s"]:.3g} tok/s, while the first token took {1e3 * p50[f"clients{most}_ttft_s"]:.4g} ms instead of
{1e3 * p50["clients1_ttft_s"]:.3g} ms. I would give it as many users as it has seats, and would not judge it by its time per
token alone.""")
### END SOLUTION

# %% [markdown]
# ### Five questions

# %% solution="13.q1"
### BEGIN SOLUTION stub: quiz("13.q1")
quiz("13.q1", "b")
### END SOLUTION

# %% solution="13.q2"
### BEGIN SOLUTION stub: quiz("13.q2")
quiz("13.q2", 500)
### END SOLUTION

# %% solution="13.q3"
### BEGIN SOLUTION stub: quiz("13.q3")
quiz("13.q3", 20)
### END SOLUTION

# %% solution="13.q4"
### BEGIN SOLUTION stub: quiz("13.q4")
quiz("13.q4", "d")
### END SOLUTION

# %% solution="13.q5"
### BEGIN SOLUTION stub: quiz("13.q5")
quiz("13.q5", """I would ask for a latency limit first, then sweep the number of clients with our own lengths in interleaved
rounds, find where throughput stops growing and where TTFT and TPOT exceed their limits, and take the largest load whose
whole interval keeps both. I would leave headroom for bursts, because a closed loop is kinder than real users.""")  # fmt: skip
### END SOLUTION

# %% [markdown]
# ## 10 · Done
#
# Stop the server and release the model's memory.

# %%
if ARE_READY:
    server.stop()
    print("server processes left:", len(server.pids))
    print(memory.measure_release(globals(), "model", "tokenizer"))

# %%
complete("13")
