# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
#   labkit:
#     number: "01"
#     title: Measuring honestly
#     question: How do I know that B is faster than A?
#     phase: 0
#     minutes: 90
# ---

# %% [markdown]
# # 01 · Measuring honestly
#
# **How do I know that B is faster than A?**
#
# In this lab you build three tools that every later lab relies on: a stopwatch that waits for the device, a percentile
# that knows how certain it is, and a comparison that may answer *cannot tell*. Then you test the tools themselves: you
# compare something with itself, and count how often the answer is wrong.

# %% [markdown]
# | | |
# | --- | --- |
# | **Time** | 90 minutes |
# | **Needs** | Any machine. No GPU and no network. The asynchronous device is simulated, and labelled as such; the model is real. |
# | **Before** | Lab 00; what a mean and a standard deviation are |
# | **You will be able to** | time work on an asynchronous device without being fooled; give a percentile with an interval that is valid for any distribution, or say that n is too small; decide between *faster*, *slower* and *cannot tell* under drift; find the lie in a benchmark script |

# %%
import math
from importlib import import_module
from time import perf_counter

import numpy as np

from labkit import generation, models, plots, stats, timing, units
from labkit.budget import choose_by_budget
from labkit.checks import check, complete, predict, ready, reveal
from labkit.environment import load_lab_module
from labkit.hardware import estimate_tier, probe_machine
from labkit.quiz import quiz
from labkit.results import save_record
from labkit.timing import SimulatedDevice, VirtualClock

# %%
machine = probe_machine()
choice = models.find_model("target", machine=machine)
print(f"CPU        {machine.cpu.name}, {machine.cpu.num_cores} cores")
print(f"GPU        {machine.gpus[0].name if machine.gpus else 'none found: the lab runs on the CPU'}")
print(f"tier       {estimate_tier(machine)}")
print(f"model      {choice.name} ({choice.source}), {choice.dtype}: the model for this tier")

# %% [markdown]
# ## 1 · A stopwatch that waits
#
# A GPU is **asynchronous**: a call puts work into a queue and returns at once. If you read the clock then, you have
# timed the queueing, not the work. To **synchronize** is to wait until the queue is empty. Do it on both sides: before
# the start, so that earlier work is not counted, and before the stop, so that all of this work is.
#
# $$\text{sample} = t_\text{stop} - t_\text{start} \quad [\text{s}], \qquad \text{both read after a synchronization}$$
#
# The first calls are slow for reasons of their own: kernels are selected, memory is allocated, caches fill. These calls
# are the **warm-up**: make them, and keep them out of the result. Keep all other samples, even the ugly ones. The clock
# must be *monotonic*, because wall time can jump.
#
# **Worked example** on a *simulated* device: time passes only when the simulation says so, so the numbers are exact. A
# launch takes 20 µs, the work 10 ms.

# %% tags=["nbval-check-output"]
example_clock = VirtualClock()
example_device = SimulatedDevice(example_clock, launch_s=20e-6)
start_s = example_clock()
example_device.launch(0.010)
naive_s = example_clock() - start_s
example_device.synchronize()
start_s = example_clock()
example_device.launch(0.010)
example_device.synchronize()
honest_s = example_clock() - start_s
print(f"without waiting {units.format_seconds(naive_s)}, with waiting {units.format_seconds(honest_s)} (simulated)")
print(f"the wrong number looks {honest_s / naive_s:.0f} times too good")

# %% [markdown] exercise="01.1" title="The stopwatch" minutes=15 difficulty=2 version=1
# ### Exercise 01.1 · The stopwatch
#
# *15 minutes · difficulty 2 of 5 · why it matters: one missing synchronization has made many a kernel "500 times
# faster".*
#
# Call `function()` first `num_warmup` times, then `num_samples` more times. Return the list of the `num_samples` times
# in seconds, in the order in which you measured them. `synchronize()` waits for the device, `clock()` reads a monotonic
# clock. Use these two arguments and nothing from the `time` module, so that the check can run your stopwatch on a
# simulated device.
#
# <details><summary>Hint 1</summary>
#
# Write two loops, one after the other. Only the second one reads the clock.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# In the second loop the order is: synchronize, read the clock, call, synchronize, read the clock. A wait before the
# first reading is not counted.
#
# </details>


# %% solution="01.1"
def measure_seconds(function, *, synchronize, clock, num_warmup=3, num_samples=10):
    """Return the seconds of each of num_samples calls after the warm-up, with the device idle at both clock readings."""
    ### BEGIN SOLUTION
    for _ in range(num_warmup):
        function()
    samples_s = []
    for _ in range(num_samples):
        synchronize()
        start_s = clock()
        function()
        synchronize()
        samples_s.append(clock() - start_s)
    return samples_s
    ### END SOLUTION


# %%
check("01.1", measure_seconds)

# %% [markdown]
# **What you should see** below: the simulated device needs 300 ms and 50 ms for its first two calls and 10 ms for each
# later one. Your stopwatch, with two warm-up calls, shows only the later ones.

# %%
if ready("01.1"):
    cold_clock = VirtualClock()
    cold_device = SimulatedDevice(cold_clock)
    works_s = iter([0.300, 0.050, 0.010, 0.010, 0.010])
    later_s = measure_seconds(
        lambda: cold_device.launch(next(works_s)),
        synchronize=cold_device.synchronize, clock=cold_clock, num_warmup=2, num_samples=3,
    )  # fmt: skip
    print("simulated:", ", ".join(units.format_seconds(s) for s in later_s))

# %% [markdown]
# ## 2 · How sure is a percentile?
#
# The **median** (p50) is the middle sample: half of the requests are slower than **p50**, and one in a hundred is
# slower than **p99**. Users feel the tail, so services promise p95 or p99. But how certain is such a number?
#
# Take $n$ independent samples. Each lies below the true percentile $Q$ with probability $p$ (0.5 for the median),
# whatever the distribution looks like. So the *number* of samples below it is binomial, and the sorted samples
# $x_{(l)}$ and $x_{(u)}$ have $Q$ between them with probability
#
# $$P\left(x_{(l)} < Q \le x_{(u)}\right) = \sum_{k=l}^{u-1} \binom{n}{k} p^k (1-p)^{n-k}$$
#
# Find ranks $l < u$ that reach 95 %, and you have an interval without assuming a bell curve. If not even the smallest
# and the largest sample reach 95 %, there is no interval: $n$ is too small, and you cannot state the percentile yet.
#
# **Worked example**: the median of six samples, and of five.

# %% tags=["nbval-check-output"]
for n in (6, 5):
    probability = sum(math.comb(n, k) * 0.5**k * 0.5 ** (n - k) for k in range(1, n))
    print(f"n = {n}: the median lies between the smallest and largest with probability {100 * probability:.1f} %")

# %% [markdown]
# **Why you cannot measure p99 with 50 requests.** Ten people measure the same (simulated) service, with 50 requests
# each. Its true p99 is known: 320 ms. Each of them reports "p99". With 50 samples this is little more than the slowest
# request of the day.

# %% tags=["nbval-check-output"]
draw = np.random.default_rng(1)
reports_s = [float(np.percentile(0.1 * np.exp(draw.normal(0, 0.5, size=50)), 99)) for _ in range(10)]
print("reported p99, simulated:", ", ".join(f"{1000 * s:.0f}" for s in sorted(reports_s)), "ms")
print(f"the true p99 lies between the extremes of 50 with probability {100 * (1 - 0.99**50 - 0.01**50):.1f} %")

# %% [markdown] exercise="01.2" title="A percentile and its interval" minutes=20 difficulty=3 version=1
# ### Exercise 01.2 · A percentile and its interval
#
# *20 minutes · difficulty 3 of 5 · why it matters: a p99 without n and an interval is the most common false number in
# our field.*
#
# Return a tuple `(point, low, high)`: the `q`-th percentile as `np.percentile` computes it, and two of the samples that
# contain the true percentile with a probability of at least `confidence`. Of all pairs of ranks that reach it, take the
# closest pair. If no pair reaches it, return `None`.
#
# <details><summary>Hint 1</summary>
#
# Build the list `below[k]`, the probability that exactly `k` of `n` samples lie below:
# `math.comb(n, k) * p**k * (1 - p) ** (n - k)` with `p = q / 100`. The formula sums `below[low:high]`, where `low` and
# `high` are ranks that start at 1.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Let `held = np.cumsum(below)`. Then the sum for ranks `low` and `high` is `held[high - 1] - held[low - 1]`. Collect
# `(high - low, low, high)` for every pair that reaches `confidence` and take `min(...)`. Rank 1 is
# `sorted(samples)[0]`.
#
# </details>


# %% solution="01.2"
def percentile_interval(samples, q, *, confidence=0.95):
    """Return (point, low, high) for the q-th percentile (q in percent), or None if n is too small."""
    ### BEGIN SOLUTION
    n, p = len(samples), q / 100
    below = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
    held = np.cumsum(below)
    enough = [
        (high - low, low, high)
        for low in range(1, n)
        for high in range(low + 1, n + 1)
        if held[high - 1] - held[low - 1] >= confidence
    ]
    if not enough:
        return None
    _, low, high = min(enough)
    ordered = sorted(samples)
    return float(np.percentile(samples, q)), ordered[low - 1], ordered[high - 1]
    ### END SOLUTION


# %%
check("01.2", percentile_interval)

# %%
if ready("01.2"):
    requests_s = (0.1 * np.exp(np.random.default_rng(2).normal(0, 0.5, size=299))).tolist()
    for n, q in ((50, 50), (50, 95), (59, 95), (59, 99), (299, 99)):
        found = percentile_interval(requests_s[:n], q)
        texts = [units.format_seconds(s) for s in found] if found else []
        print(f"n = {n:>3}, p{q}:", "{}, between {} and {}".format(*texts) if found else "n too small")

# %% [markdown]
# **What you should see.** The same (simulated) requests give a good median from 50 of them, a wide p95 from 59, and a
# p99 only from 299. A missing number is better than a made-up one.

# %% [markdown]
# ## 3 · Pairs against drift
#
# A machine changes while you measure: it warms up, or a neighbour starts a job. If you run all of A first and then all
# of B, this **drift** looks like a difference. So let A and B **take turns** and compare within each pair, where the
# drift is nearly the same. With times $a_i$ and $b_i$ of pair $i$:
#
# $$g_i = \ln\frac{b_i}{a_i}, \qquad \text{speed of A over B} = e^{\bar g}, \qquad
# \text{interval} = \exp\left(\bar g \pm t_{n-1} \frac{s_g}{\sqrt n}\right)$$
#
# A ratio has no unit. Its logarithm puts "twice as fast" and "half as fast" equally far from no difference. If the
# whole interval is above 1, A is *faster*; if it is below 1, *slower*. If the interval contains 1, the answer is
# **cannot tell**: a valid answer, and often the only honest one.
#
# **Worked example**: over three pairs the machine becomes 40 % slower, and the gain is still clear.

# %% tags=["nbval-check-output"]
example_a_s, example_b_s = [0.50, 0.60, 0.70], [0.55, 0.65, 0.78]
example_gains = [math.log(b / a) for a, b in zip(example_a_s, example_b_s, strict=True)]
middle, around = sum(example_gains) / 3, stats.estimate_mean_interval(example_gains)
print("gains", [round(gain, 3) for gain in example_gains])
print(f"A over B: {math.exp(middle):.3f} ({math.exp(around.low):.3f} to {math.exp(around.high):.3f})")

# %% [markdown]
# Below, the same (simulated) program runs under two names while the machine drifts by 15 %. Sequential runs find a
# winner where there is none.

# %%
draw = np.random.default_rng(7)
plans = {"simulated, sequential: all of A, then all of B": "A" * 30 + "B" * 30, "simulated, taking turns": "AB" * 30}
runs = {
    plan: [(name, 0.1 * (1 + 0.15 * k / 60) * math.exp(draw.normal(0, 0.01))) for k, name in enumerate(order)]
    for plan, order in plans.items()
}
figure = plots.plot_time_order(runs, unit="s", title="The same drift, two plans: one of them makes a winner")
figure.show()
print(plots.format_alternative(figure))

# %%
for (plan, run), is_paired in zip(runs.items(), (False, True), strict=True):
    a_s, b_s = ([s for name, s in run if name == who] for who in "AB")
    said = stats.compare(a_s, b_s, is_paired=is_paired)
    print(f"{plan}: A {said.verdict}, ratio {said.ratio:.3f} ({units.format_interval(said.interval)})")

# %% [markdown] exercise="01.3" title="Faster, slower or cannot tell" minutes=20 difficulty=3 version=1
# ### Exercise 01.3 · Faster, slower or cannot tell
#
# *20 minutes · difficulty 3 of 5 · why it matters: every comparison in this course ends in one of these three answers.*
#
# `a_s[i]` and `b_s[i]` are the seconds of A and B in pair `i`. Return `(ratio, low, high, verdict)`: the speed of A
# over the speed of B, the two ends of its 95 % interval, and the verdict on A: `"faster"`, `"slower"` or
# `"cannot tell"`. Write it by hand; the check does not accept the library's `compare`.
#
# <details><summary>Hint 1</summary>
#
# `stats.estimate_mean_interval(gains)` is the t-interval of a mean; it has `low` and `high`. Do the whole computation
# in logarithms.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Apply `math.exp` to the mean and to both ends to get ratios again. Then see where 1 lies: below `low`, above `high`,
# or in between (the ends belong to the interval).
#
# </details>


# %% solution="01.3"
def compare_pairs(a_s, b_s):
    """Return (speed of A over B, low, high, verdict on A) from the seconds of interleaved pairs."""
    ### BEGIN SOLUTION
    gains = [math.log(b / a) for a, b in zip(a_s, b_s, strict=True)]
    interval = stats.estimate_mean_interval(gains)
    ratio, low, high = (math.exp(x) for x in (sum(gains) / len(gains), interval.low, interval.high))
    verdict = "faster" if low > 1 else "slower" if high < 1 else "cannot tell"
    return ratio, low, high, verdict
    ### END SOLUTION


# %%
check("01.3", compare_pairs)

# %% [markdown]
# ## 4 · The same thing under two names
#
# Before a tool judges other things, test the tool. In an **A/A test** both sides are the same, so every verdict except
# *cannot tell* is wrong. A 95 % interval misses the truth about one time in twenty. That is not a fault but the price
# of the confidence that you chose. A tool that is never wrong here is blind, and one that is wrong much more often
# lies.
#
# $$\text{expected false verdicts} = 0.05 \times \text{number of comparisons}$$
#
# So one comparison out of many that says *faster* proves nothing. **Worked example**: the probability that at least one
# of 20 A/A comparisons says so.

# %% tags=["nbval-check-output"]
print(f"expected: {0.05 * 20:.0f} of 20; at least one: {100 * (1 - 0.95**20):.0f} %; four or more: ", end="")
print(f"{100 * (1 - sum(math.comb(20, k) * 0.05**k * 0.95 ** (20 - k) for k in range(4))):.1f} %")

# %% [markdown]
# ### Predict before you measure
#
# In a moment your `compare_pairs` compares a real request with itself, 20 times. How many of the 20 will not say
# *cannot tell*? Replace `None` with your guess.

# %% solution="01.p1"
### BEGIN SOLUTION stub: predict("01.p1", None, unit="of 20")
predict("01.p1", 1, unit="of 20")
### END SOLUTION

# %% [markdown]
# ### Measure
#
# Your stopwatch times three requests: **A** asks the model for 8 tokens; **same** is A again, the control that should
# *not* make a difference; **B** asks for the same number of tokens, after 40 more lines of text in the prompt, which
# the model has to read first. The next cells wait for your stopwatch and your comparison.

# %%
NUM_TOKENS, SHORT = 8, "def read_lines(path):\n"
LONG = "# one more line of a file that was open before\n" * 40 + SHORT
if ready("01.1") and ready("01.3"):
    model, tokenizer = models.load_model(choice)
    requests = {"A": SHORT, "same": SHORT, "B": LONG}

    def time_request(prompt):
        return measure_seconds(
            lambda: generation.run_generation(model, tokenizer, prompt, num_tokens=NUM_TOKENS),
            synchronize=timing.synchronize, clock=perf_counter, num_warmup=0, num_samples=1,
        )[0]  # fmt: skip

# %% [markdown]
# In every round each request runs once, in random order. If "same" always ran right after B, it would always find a
# machine that had just read a long prompt, and an A/A test would find a real difference that we did not mean to test.
# The warm-up comes first and uses different prompts of the same size: a server with a prefix cache would take a
# prompt that it has already seen from its cache (lab 12 shows this).

# %%
if ready("01.1") and ready("01.3"):
    samples = {name: [] for name in requests}
    warmup_s = [time_request("# warm-up\n" + prompt) for prompt in (SHORT, LONG) for _ in range(2)]
    draw = np.random.default_rng(0)
    for _ in range(choose_by_budget(learner=40, ci=12)):
        for name in draw.permutation(list(requests)).tolist():
            samples[name].append(time_request(requests[name]))
    record = save_record(
        "01", "same_under_two_names", model=choice,
        settings={"num_tokens": NUM_TOKENS, "prompt": SHORT, "num_lines_before_b": 40},
        samples={"a_s": samples["A"], "same_s": samples["same"], "b_s": samples["B"]},
    )  # fmt: skip
    print(f"saved as {record.id}")

# %%
if ready("01.1") and ready("01.3"):
    ratio, low, high, verdict = compare_pairs(samples["B"], samples["A"])
    title = f"B compared with A: {ratio:.2f} times the speed ({low:.2f} to {high:.2f}), {verdict}"
    figure = plots.plot_samples(samples, unit="s", title=title)
    figure.show()
    print(plots.format_alternative(figure))
    ratio, low, high, verdict = compare_pairs(samples["same"], samples["A"])
    print(f"same compared with A: ratio {ratio:.3f} ({low:.3f} to {high:.3f}), {verdict}")

# %% [markdown]
# **What you should see.** B is *slower*, because reading a prompt is work. (*Cannot tell* is possible if the machine is
# busy with other things; then you need more pairs.) "same" compared with A most likely gives *cannot tell*. Now your
# own percentile next to the library's, and what we can say about p99:

# %%
if ready("01.1") and ready("01.2") and ready("01.3"):
    both_s = samples["A"] + samples["same"]
    point, low, high = percentile_interval(both_s, 50)
    theirs = stats.summarize(both_s)
    theirs_s = (theirs.p50, theirs.p50_interval.low, theirs.p50_interval.high)
    for who, values in (("yours", (point, low, high)), ("labkit", theirs_s)):
        print(f"n = {theirs.n}, {who:<6} p50", "{}, between {} and {}".format(*map(units.format_seconds, values)))
    print(f"p99 of n = {theirs.n}: {units.format_seconds(theirs.p99)}")

# %% [markdown]
# **Twenty A/A comparisons** from this one run: all samples of A and "same", shuffled with 20 seeds and each time split
# into two halves. This tests the comparison; the machine was tested above.

# %%
if ready("01.1") and ready("01.3"):
    pool_s = np.array(samples["A"] + samples["same"])
    mixed = [np.random.default_rng(seed).permutation(pool_s).reshape(2, -1).tolist() for seed in range(20)]
    said = [compare_pairs(*halves) for halves in mixed]
    num_wrong = sum(verdict != "cannot tell" for *_, verdict in said)
    predicted = reveal("01.p1", num_wrong, unit="of 20")
    guess = "no prediction" if predicted is None else f"predicted {predicted:g}"
    title = f"{num_wrong} of 20 comparisons of a request with itself name a winner ({guess})"
    figure = plots.plot_ratios([row[:3] for row in said], title=title)
    figure.show()
    print(plots.format_alternative(figure))

# %% [markdown]
# None, one, two or three of 20 are all common. Timings with rare large outliers often give fewer than one, because the
# outliers widen every interval.

# %% [markdown]
# ### Beside a known tool
#
# `torch.utils.benchmark` also has a careful stopwatch: warm-up, synchronization, a fixed number of threads. Both
# stopwatches take turns timing the same small product: the model's output layer, a matrix of vocabulary by hidden size,
# times 8 vectors. Your stopwatch times a loop of 20, because a single product is too short to time.

# %%
if ready("01.1") and ready("01.3"):
    layer = model.get_output_embeddings().weight.detach()  # (V, hidden size)
    vectors = layer.new_ones(layer.shape[1], 8)
    both = {"layer": layer, "vectors": vectors}
    timer = import_module("torch.utils.benchmark").Timer("layer @ vectors", globals=both)

    def multiply_20_times():
        for _ in range(20):
            layer @ vectors


# %%
if ready("01.1") and ready("01.3"):
    mine_s, torch_s = [], []
    for _ in range(choose_by_budget(learner=30, ci=12)):
        mine_s += measure_seconds(
            multiply_20_times, synchronize=timing.synchronize, clock=perf_counter, num_warmup=1, num_samples=1
        )
        torch_s.append(timer.timeit(20).mean)
    mine_s = [s / 20 for s in mine_s]
    second = save_record(
        "01", "two_stopwatches", model=choice, settings={"layer": "output", "shape": list(layer.shape), "num_vectors": 8},
        samples={"mine_s": mine_s, "torch_benchmark_s": torch_s},
    )  # fmt: skip

# %%
if ready("01.1") and ready("01.3"):
    ratio, low, high, verdict = compare_pairs(mine_s, torch_s)
    for name, values in (("yours", mine_s), ("torch", torch_s)):
        summary = stats.summarize(values)
        said = units.format_interval(summary.p50_interval, write=units.format_seconds)
        print(f"{name}  p50 {units.format_seconds(summary.p50)} per product ({said}, n = {summary.n})")
    print(f"ratio {ratio:.3f} ({low:.3f} to {high:.3f}), {verdict}; record {second.id}")

# %% [markdown]
# **What you should see.** Two medians close together. If the verdict is not *cannot tell*, look at the size of the
# ratio: a Python loop has a cost, and an interval that is narrow enough finds it. *Different* and *different enough to
# matter* are two questions.

# %% [markdown]
# ## 5 · Find the lie
#
# A benchmark can be false without being invented: one wrong line in a script that looks correct is enough. Here are
# three scripts, each with what it printed and a log of its run (the logs are made up for this exercise). Everything
# else in them is correct.
#
# An answer names the line, the kind of lie, and the value that the script should have printed:
#
# $$\text{fixed} = \text{the last line of the script, with true inputs from the log}$$
#
# **Worked example**: a script divides 100 tokens by 2 s and prints 50 tok/s, but its log shows 80 tokens. Then `fixed`
# is 80 / 2 = 40 tok/s.

# %% tags=["nbval-check-output"]
listings = load_lab_module("01", "listings")
SCRIPTS, LIES = listings.SCRIPTS, listings.LIES
for name in SCRIPTS:
    print(listings.format_listing(name), end="\n\n")

# %% tags=["nbval-check-output"]
for lie, meaning in LIES.items():
    print(f"{lie:<25} {meaning}")

# %% [markdown] exercise="01.4" title="Find the lie" minutes=20 difficulty=2 version=1
# ### Exercise 01.4 · Find the lie
#
# *20 minutes · difficulty 2 of 5 · why it matters: you will read many more benchmarks than you write.*
#
# For each script: `line` is the number of the line **where the false value is read or computed** (not the one that
# prints it), `lie` is an id from the list above, and `fixed` is the number that the script should have printed, in the
# same unit, with at least three digits. `SCRIPTS["a"].log` has the log as numbers, so that you can compute with it.
#
# <details><summary>Hint 1</summary>
#
# Ask about each line: what can it know? Script a reads the clock twice; what has the device finished by the second
# reading? Script b keeps ten samples; which of them belong in the result? Script c counts tokens; who counted them?
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# a: the last entry of `done_s` is when all five calls were done. b: leave out what the comment in line 2 calls the
# warm-up, for both time and tokens. c: the log has the tokens that were really generated.
#
# </details>

# %% solution="01.4"
### BEGIN SOLUTION stub: answer = {name: {"line": None, "lie": None, "fixed": None} for name in SCRIPTS}
log_a, log_b, log_c = (SCRIPTS[name].log for name in "abc")
warm_s = log_b["times_s"][2:]
answer = {
    "a": {"line": 7, "lie": "no synchronization", "fixed": (log_a["done_s"][-1] - log_a["start_s"]) / 5},
    "b": {"line": 8, "lie": "warm-up counted", "fixed": 64 / (sum(warm_s) / len(warm_s))},
    "c": {"line": 8, "lie": "requested tokens counted", "fixed": sum(log_c["num_tokens"]) / log_c["seconds"]},
}
### END SOLUTION

# %%
check("01.4", answer)

# %% [markdown]
# ## 6 · Break it
#
# One of the lies in the list was in none of the scripts: our best run compared with their average run. Here it is, on
# your own samples of one and the same request. It gives a number of a believable size, and one can always find a story
# to explain it.

# %%
if ready("01.1") and ready("01.3"):
    wrong = float(np.mean(samples["same"])) / min(samples["A"])
    ratio, low, high, verdict = compare_pairs(samples["A"], samples["same"])
    print(f"wrong: best of A compared with the mean of the same request: {wrong:.2f} times as fast")
    print(f"right: in pairs {ratio:.3f} ({low:.3f} to {high:.3f}), {verdict}")

# %% [markdown]
# The minimum is a fair summary of a quiet machine, and the mean is a fair summary of everything that users experience.
# The lie is to use a different one on each side. More samples make it worse: the best of 1,000 is better than the best
# of 10.

# %% [markdown]
# ## 7 · Summary
#
# You saw three things:
#
# 1. a clock that does not wait for the device times the queue;
# 2. a percentile has an interval, or you cannot state it yet: 6 samples for p50, 59 for p95, 299 for p99;
# 3. pairs that take turns cancel the drift, and *cannot tell* is a result: a comparison of something with itself should
#    give it 19 times out of 20.
#
# One thing this does **not** show: requests that share one server at the same time are not independent samples. There
# you repeat the whole run, and compute the interval over the runs. Phase 3 does that.

# %%
if ready("01.1") and ready("01.3"):
    summary = stats.summarize(record.samples["a_s"])
    said = units.format_interval(summary.p50_interval, write=units.format_seconds)
    print(f"Your number: {NUM_TOKENS} tokens in {units.format_seconds(summary.p50)} ({said}, n = {summary.n});")
    print(f"{num_wrong} of 20 A/A comparisons named a winner.")
    print(f"{choice.name} in {choice.dtype} on {machine.cpu.name}, {record.time[:10]}, record {record.id}")

# %% [markdown]
# ### Five questions

# %% solution="01.q1"
### BEGIN SOLUTION stub: quiz("01.q1")
quiz("01.q1", "c")
### END SOLUTION

# %% solution="01.q2"
### BEGIN SOLUTION stub: quiz("01.q2")
quiz("01.q2", 0.5)
### END SOLUTION

# %% solution="01.q3"
### BEGIN SOLUTION stub: quiz("01.q3")
quiz("01.q3", "b")
### END SOLUTION

# %% solution="01.q4"
### BEGIN SOLUTION stub: quiz("01.q4")
quiz("01.q4", 64.2)
### END SOLUTION

# %% solution="01.q5"
### BEGIN SOLUTION stub: quiz("01.q5")
quiz("01.q5", """The gain may be drift between morning and afternoon. Requests of one run are not independent, so the
p-value counts far too many samples. I would let both versions take turns, several whole runs each, add a comparison
of the old version with itself, and give the ratio with an interval over the runs.""")  # fmt: skip
### END SOLUTION

# %% [markdown]
# ## 8 · Done
#
# The tools that you wrote are also in labkit (`timing.measure_calls`, `stats.estimate_percentile_interval`,
# `stats.compare`), and now you know what they do. Later labs use those.

# %%
if ready("01.1") and ready("01.3"):
    del model, tokenizer, layer, both, timer

# %%
complete("01")
