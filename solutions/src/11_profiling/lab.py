# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
#   labkit:
#     number: "11"
#     title: Profiling
#     question: Where does the time of one token go, and where the memory?
#     phase: 1
#     minutes: 75
# ---

# %% [markdown]
# # 11 · Profiling
#
# **Where does the time of one token go, and where the memory?**
#
# In this lab you open a prefill and a decode step with the PyTorch profiler, find out which operators did the work and when
# nothing ran at all, and account for every byte. Then you get a model in which one part is slow (a different
# part for every learner) and find out which, from your own profile.

# %% [markdown]
# | | |
# | --- | --- |
# | **Time** | 75 minutes, of which about 1 is waiting |
# | **Needs** | Any machine. No GPU, no network. What only a GPU can show is marked. |
# | **Before** | Labs 00 and 01: TTFT, pairs, intervals; lab 03 helps |
# | **You will be able to** | compute self times and idle shares from events; break memory down into parts that add up; find a slow part from a profile; say what a profiler itself costs; predict what a faster part is worth |

# %%
from labkit import models, plots, profiling, published, stats, units
from labkit.budget import choose_by_budget
from labkit.checks import check, complete, note, predict, ready, reveal
from labkit.hardware import estimate_tier, probe_machine
from labkit.memory import measure_release
from labkit.plots import plot_memory, plot_timeline
from labkit.profiling import Phases, load_puzzle, measure_table, nsight, run_profile
from labkit.quality import load_heldout
from labkit.quiz import quiz
from labkit.results import find_record, save_record
from labkit.timing import Stopwatch

# %%
machine = probe_machine()
choice = models.find_model("target", machine=machine)
print(f"CPU        {machine.cpu.name}, {machine.cpu.num_cores} cores")
print(f"GPU        {machine.gpus[0].name if machine.gpus else 'none found: operators run on the processor'}")
print(f"tier       {estimate_tier(machine)}")
print(f"model      {choice.name} ({choice.source}): the one that this tier runs")

# %% [markdown]
# ## 1 · Whose second is it?
#
# A profiler writes down **events**: a name, a start, an end. Calls lie inside calls: `linear` calls `matmul`, which calls
# `mm`. So each event has two times:
#
# $$\text{self} = \text{total} - \sum_{\text{direct children}} \text{total} \quad [\text{s}]$$
#
# The *total* of a parent holds everything below it. That is useful to walk down a tree, but totals do not add up: a second
# in `mm` is counted for `mm`, for `matmul` and for `linear`. Self times do add up, to the time in which anything
# ran. **Worked example**: four nested calls in 10 s.

# %% tags=["nbval-check-output"]
EXAMPLE = [("linear", 0.0, 10.0), ("matmul", 1.0, 8.0), ("mm", 2.0, 7.0), ("add", 8.0, 9.0)]
for name, start_s, end_s in EXAMPLE:
    print(f"{name:<8}{' ' * int(start_s)}{'#' * int(end_s - start_s):<{12 - int(start_s)}} total {end_s - start_s:.0f} s")
added_s = sum(end_s - start_s for _, start_s, end_s in EXAMPLE)
print(f"totals added up: {added_s:.0f} s, in a run of 10 s; self times: 2, 2, 5 and 1 s")

# %% [markdown] exercise="11.1" title="Self time" minutes=15 difficulty=3 version=1
# ### Exercise 11.1 · Self time
#
# *15 minutes · difficulty 3 of 5 · why it matters: if you read totals as shares, you optimize the wrong thing.*
#
# `events` is a list of `(name, start_s, end_s)` of one thread, in any order, properly nested: two events are either apart or
# one lies inside the other. Return a dict `{name: self seconds}`; calls of the same name are added up. A call may lie inside
# a call of its own name.
#
# <details><summary>Hint 1</summary>
#
# Sort by start, and let the *longer* of two that begin together come first: then a parent comes before its children. Walk
# through them and keep a list of the calls that are still running, the innermost last.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# For each event: first drop from that list what has ended (`end <= start`). What is then last in it is the direct parent:
# subtract this event's duration from the parent's name.
#
# </details>


# %% solution="11.1"
def self_times(events):
    """Return {name: self seconds} of nested (name, start, end) events of one thread."""
    ### BEGIN SOLUTION
    own, running = {}, []
    for name, start_s, end_s in sorted(events, key=lambda event: (event[1], -event[2])):
        while running and running[-1][1] <= start_s:
            running.pop()
        own[name] = own.get(name, 0.0) + end_s - start_s
        if running:
            own[running[-1][0]] -= end_s - start_s
        running.append((name, end_s))
    return own
    ### END SOLUTION


# %%
check("11.1", self_times)

# %% [markdown]
# ## 2 · When nothing runs
#
# Between two operators the processor is busy, but not with your model: Python walks through modules, PyTorch looks up
# which kernel fits (**dispatch**). On a GPU the same picture has two rows: the host *launches* kernels, the device runs them,
# and if the host is too slow, the device waits. That is a **launch gap**.
#
# $$\text{idle share} = \frac{\text{time of the window in which no interval runs}}{\text{length of the window}}$$
#
# Intervals overlap (several threads, several streams), so their durations cannot simply be added up. **Worked example**: two
# streams of a GPU in a window of 10 ms.

# %% tags=["nbval-check-output"]
streams = {"stream 7": [(1, 4), (6, 9)], "stream 13": [(3, 7)]}
for name, intervals in streams.items():
    print(f"{name:<10}", "".join("#" if any(a <= k < b for a, b in intervals) else "." for k in range(10)))
busy = {k for intervals in streams.values() for a, b in intervals for k in range(a, b)}
print(f"durations added up: 10 of 10 ms. In truth {len(busy)} of 10 ms are busy, {10 - len(busy)} are idle")

# %% [markdown] exercise="11.2" title="The idle share" minutes=12 difficulty=3 version=1
# ### Exercise 11.2 · The idle share
#
# *12 minutes · difficulty 3 of 5 · why it matters: faster kernels do not speed up a device that idles half of the time.*
#
# `intervals` is a list of `(start_s, end_s)`, in any order; they may overlap, lie inside each other, or lie partly or wholly
# outside the window. Return the share of the window from `start_s` to `end_s` (0 to 1) in which none of them runs.
#
# <details><summary>Hint 1</summary>
#
# Sort them, and keep track of how far the window is covered so far: at first, up to `start_s`.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# A new interval leaves a gap only if it starts after that point, and it can move the point only forwards (`max`). Do not forget
# the gap at the end, and that a gap cannot extend beyond `end_s`.
#
# </details>


# %% solution="11.2"
def idle_share(intervals, start_s, end_s):
    """Return the share of the window [start_s, end_s] in which none of the (start, end) intervals runs."""
    ### BEGIN SOLUTION
    idle_s, covered_s = 0.0, start_s
    for begin_s, stop_s in sorted(intervals):
        idle_s += max(0.0, min(begin_s, end_s) - covered_s)
        covered_s = max(covered_s, stop_s)
    idle_s += max(0.0, end_s - covered_s)
    return idle_s / (end_s - start_s)
    ### END SOLUTION


# %%
check("11.2", idle_share)

# %% [markdown]
# ## 3 · Every byte has an owner
#
# "The model takes 20 GB" is four things:
#
# - **weights**: parameters × bytes per value;
# - **KV cache**: keys and values of every token so far, for every sequence of the batch,
#   $2 \cdot L \cdot G \cdot D \cdot \text{bytes} \cdot S \cdot B$ (layers, KV heads, head dimension, tokens, sequences);
# - **activations**: what a step holds at its peak and gives back. They are the rest of what is *allocated*;
# - **slack**: an allocator takes memory from the driver in large pieces and keeps it. Slack is what is *reserved* but not
#   allocated.
#
# $$\text{reserved} = \underbrace{\text{weights} + \text{KV cache} + \text{activations}}_{\text{allocated}} + \text{slack} \quad [\text{bytes}]$$
#
# **Worked example**: LLaMA-13B (40 layers, 40 KV heads of 128, 16 bits) and one sequence of 2,048 tokens.

# %% tags=["nbval-check-output"]
per_token_bytes = 2 * 40 * 40 * 128 * 2
claim = published.load_claim("llama-13b-kv")
print(f"one token keeps {per_token_bytes:,} bytes, {2048:,} tokens keep {2048 * per_token_bytes / 1e9:.2f} GB")
print(f"published: {claim.value} {claim.unit} ({claim.setup}; {claim.source})")

# %% [markdown] exercise="11.3" title="Memory that adds up" minutes=12 difficulty=2 version=1
# ### Exercise 11.3 · Memory that adds up
#
# *12 minutes · difficulty 2 of 5 · why it matters: "how many users fit" is decided by the part that grows.*
#
# `config` is the dict of a `config.json`. Return a dict in bytes with the keys `weights`, `kv_cache`, `activations`, `slack`,
# for `batch` sequences with `context_tokens` tokens each. Every value takes `bytes_per_value` bytes. The head dimension is
# `head_dim` if the config has it, otherwise `hidden_size // num_attention_heads`.
#
# <details><summary>Hint 1</summary>
#
# Weights and cache are computed from sizes; activations and slack are what is left of `allocated_bytes` and of
# `reserved_bytes`.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Only KV heads are cached: `config["num_key_value_heads"]`, not the query heads. And keys *and* values: that is the 2.
#
# </details>


# %% solution="11.3"
def memory_parts(
    config, *, num_parameters, bytes_per_value, batch, context_tokens, allocated_bytes, reserved_bytes
):
    """Return {"weights", "kv_cache", "activations", "slack"} in bytes; together they are reserved_bytes."""
    ### BEGIN SOLUTION
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    num_values = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head_dim
    weights = num_parameters * bytes_per_value
    kv_cache = num_values * bytes_per_value * context_tokens * batch
    slack = reserved_bytes - allocated_bytes
    activations = allocated_bytes - weights - kv_cache
    return {"weights": weights, "kv_cache": kv_cache, "activations": activations, "slack": slack}
    ### END SOLUTION


# %%
check("11.3", memory_parts)

# %% [markdown]
# ## 4 · A real profile
#
# Now the same three views of a real model, at a context of some hundred tokens: the **prefill** of the whole prompt, and
# one **decode** step.
#
# ### Predict before you measure
#
# In one decode step of your model, for what percentage of the time does no operator run at all?

# %% solution="11.p1"
### BEGIN SOLUTION stub: predict("11.p1", None, unit="%")
predict("11.p1", 20, unit="%")
### END SOLUTION

# %%
ARE_READY = all([ready("11.1"), ready("11.2"), ready("11.3")])
CONTEXT = 256
if ARE_READY:
    model, tokenizer = models.load_model(choice)
    device = str(model.device)
    text = load_heldout(can_fetch=False, is_strict=False).documents[0].text
    token_ids = [k % choice.config["vocab_size"] for k in tokenizer(text).input_ids[:CONTEXT]]
    phases = Phases(model, token_ids, context_tokens=CONTEXT)
    work = {"prefill": phases.run_prefill, "decode": phases.run_decode}
    print(f"{choice.name} on {device}: a prefill of {CONTEXT} tokens, and decode steps after them")

# %% [markdown]
# The profiler runs **after a warm-up** and more than once: a share without its spread is not a result. Each profile records five
# steps. Your `self_times` and `idle_share` do the arithmetic on the raw events.

# %%
NUM_PROFILES = choose_by_budget(learner=10, ci=6)
if ARE_READY:
    profiles = {phase: [] for phase in work}
    for _ in range(NUM_PROFILES):  # in turns, so that whatever else the machine does affects both
        for phase, function in work.items():
            phases.reset()
            profiles[phase].append(run_profile(function, num_steps=5, num_warmup=2, device=device))
    first = profiles["decode"][0]
    print(f"{len(first.select('operator', step=0)):,} operator events in one decode step")

# %%
if ARE_READY:

    def look_at(profile):
        """Return the operators' shares of the time of the steps, and the idle share."""
        steps = profile.select("step")
        whole_s = sum(step.duration_s for step in steps)
        events = profile.select("operator")
        own = self_times([(one.name, one.start_s, one.end_s) for one in events if one.thread == steps[0].thread])
        intervals = [(one.start_s, one.end_s) for one in events]
        idle = [idle_share(intervals, step.start_s, step.end_s) for step in steps]
        return {name: own_s / whole_s for name, own_s in own.items()}, sum(idle) / len(idle)

    views = {phase: [look_at(profile) for profile in some] for phase, some in profiles.items()}

# %%
if ARE_READY:
    shares = {}
    for phase, some in views.items():
        middle = {name: stats.summarize([one[0].get(name, 0.0) for one in some]).p50 for name in some[0][0]}
        names = sorted(middle, key=middle.get, reverse=True)[:5]
        shares[phase] = {name: [one[0].get(name, 0.0) for one in some] for name in names}
        totals = {row.name: row.total_s for row in profiles[phase][0].measure_table()}
        whole_s = sum(step.duration_s for step in profiles[phase][0].select("step"))
        print(f"{phase + ', in % of the step':<44}{'self':>6}   {'lowest to highest':<19}{'total':>6}")
        for name, values in shares[phase].items():
            line = f"  {name[:40]:<42}{100 * stats.summarize(values).p50:6.1f}   "
            print(line + f"{f'{100 * min(values):.1f} to {100 * max(values):.1f}':<19}{100 * totals[name] / whole_s:6.1f}")
        idle = [100 * one[1] for one in some]
        print(f"  {'(no operator runs)':<42}{stats.summarize(idle).p50:6.1f}   {min(idle):.1f} to {max(idle):.1f}")

# %%
if ARE_READY:
    one_step = [event for event in first.events if event.step == 2 and event.kind in ("step", "operator", "kernel")]
    decode_idle = [one[1] for one in views["decode"]]
    figure = plot_timeline(
        one_step, title=f"One decode step: no operator runs in {100 * stats.summarize(decode_idle).p50:.0f} % of the time"
    )
    figure.show()
    print(plots.format_alternative(figure))

# %%
if ARE_READY:
    predicted = reveal("11.p1", 100 * stats.summarize(decode_idle).p50, unit="%")
    title = "Python and dispatch take their share of every decode step"
    idle_percent = [100 * value for value in decode_idle]
    figure = plots.plot_prediction(idle_percent, predicted=predicted, unit="time without an operator (%)", title=title)
    figure.show()
    print(plots.format_alternative(figure))

# %% [markdown]
# Those are the operators on the host. If a GPU runs the kernels, its own gaps count: how many kernels a step has, and for what
# share of the step any of them runs.

# %%
gpu_busy = {}
if ARE_READY:
    for phase, some in profiles.items():
        if num_kernels := len(some[0].select("kernel", step=0)):
            gpu_busy[phase] = [1 - one.measure_idle("kernel", step=step).fraction for one in some for step in range(5)]
            busy_percent = 100 * stats.summarize(gpu_busy[phase]).p50
            print(f"{phase}: {num_kernels} kernels a step, the GPU is busy for {busy_percent:.0f} % of it")
    print("" if gpu_busy else "no GPU: no kernels, and no gaps between them; section 7 says what belongs here")

# %% [markdown]
# **What you should see.** In a prefill the matrix products take most of the time, and the gaps are small: many tokens
# share one walk through Python. In a decode step the same walk serves a single token, so gaps and small operators weigh more.
# Is it a *fault* that no operator runs for part of a step? Lab 10 called it the dispatch ceiling; CUDA graphs and compilers
# (lab 26) attack it.
#
# A profile is also a file. Open it with <https://ui.perfetto.dev> or `chrome://tracing`: both keep it on your machine.

# %%
if ARE_READY:
    path = profiling.save_chrome_trace(first.events, "11_decode_trace.json.gz")  # beside your records, in data/runs
    back = profiling.load_chrome_trace(path)
    print(f"{path.name}: {len(back):,} events in {units.format_bytes(path.stat().st_size)}; read back: ", end="")
    print("the same names" if sorted(e.name for e in back) == sorted(e.name for e in first.events) else "differs")

# %% [markdown]
# ### By module
#
# Operators say *what* is computed, modules say *where*. With a range around each module, the same self times show which part of
# the network takes the time; a product without a module of its own counts towards the module that calls it.

# %%
if ARE_READY:
    phases.reset()
    by_module = run_profile(phases.run_decode, num_steps=20, model=model, device=device).measure_table("module")
    whole_s, total_s = sum(row.self_s for row in by_module), sum(row.total_s for row in by_module)
    kinds = {}  # the same module of every layer together: model.layers.*.mlp
    for row in by_module:
        kind = ".".join("*" if part.isdigit() else part for part in row.name.split("."))
        self_s, all_s = kinds.get(kind, (0.0, 0.0))
        kinds[kind] = (self_s + row.self_s, all_s + row.total_s)
    for kind in sorted(kinds, key=kinds.get, reverse=True)[:6]:
        self_s, all_s = kinds[kind]
        print(f"{kind:<34} self {100 * self_s / whole_s:5.1f} %   total {100 * all_s / whole_s:5.1f} %")
    print(f"all {len(by_module)} modules: self times add up to 100 %, totals to {100 * total_s / whole_s:.0f} %")

# %% [markdown]
# ### Memory
#
# Measured at two contexts. Weights and cache are added up from the tensors themselves and compared with your `memory_parts`;
# activations are the peak of what one step allocates. On a CPU the weights may be mapped from their file: parts that were never
# read are not resident and not counted (a decode step reads them all, except rows of an untied embedding). Nothing reports what
# a CPU's allocator keeps, so its slack is in the *rest*, with Python and the libraries; on a GPU it is shown separately.

# %%
if ARE_READY:
    found = {}
    for context_tokens in (64, 512):
        some = Phases(model, token_ids, context_tokens=context_tokens)
        kv_bytes = some.measure_kv_bytes()
        found[context_tokens] = profiling.measure_breakdown(some.run_decode, model=model, kv_bytes=kv_bytes, device=device)
        held_bytes = sum(found[context_tokens][key] for key in ("weights", "kv_cache", "activations"))
        mine = memory_parts(
            choice.config, num_parameters=choice.num_parameters, bytes_per_value=model.dtype.itemsize, batch=1,
            context_tokens=context_tokens, allocated_bytes=held_bytes,
            reserved_bytes=held_bytes + found[context_tokens]["slack"],
        )  # fmt: skip
        for key in ("weights", "kv_cache"):
            told = f"computed {units.format_bytes(mine[key])}, measured {units.format_bytes(found[context_tokens][key])}"
            print(f"context {context_tokens:>4}, {key}: {told}")

# %%
if ARE_READY:
    cases = {f"context {context}": {key: size for key, size in parts.items() if key not in ("slack", "rest")}
             for context, parts in found.items()}  # fmt: skip
    own = cases["context 512"]
    main_memory = max(own, key=own.get)
    share = 100 * own[main_memory] / sum(own.values())
    figure = plot_memory(cases, title=f"Of what the model itself needs, {share:.0f} % are {main_memory} (one reading each)")
    figure.show()
    print(plots.format_alternative(figure))
    for context, parts in found.items():
        others = f"slack {units.format_bytes(parts['slack'])}, rest {units.format_bytes(parts['rest'])}"
        print(f"context {context}, not drawn: {others}; all parts together {units.format_bytes(sum(parts.values()))}")

# %% [markdown]
# **What you should see.** A model of this size is dwarfed by Python and its libraries: the *rest*. At batch 1 the weights lead;
# the cache is the only part that grows with every token and every user, and lab 30 asks when it takes over.

# %% [markdown]
# ## 5 · Find the slow part
#
# Next your model is changed: **one module** computes something that nobody uses. The outputs stay exactly the same. Which
# module it is differs from learner to learner. The profile starts with the very first call (step 0, no warm-up), as in
# production after a restart, and records eight steps.

# %%
if ARE_READY:
    phases.reset()
    puzzle = load_puzzle(model, phases.run_decode, lab="11", device=device)
    planted = run_profile(phases.run_decode, num_steps=8, num_warmup=0, model=model, device=device)
    puzzle.is_on = False
    calls = planted.select("module")
    slow_record = save_record(
        "11", "slow_layer", model=choice, samples={"step_s": planted.step_s},
        settings=puzzle.to_settings(calls),
    )  # fmt: skip
    print(f"saved as {slow_record.id}: {len(calls)} calls of {len({call.name for call in calls})} modules in 8 steps")
    print("seconds of the steps:", ", ".join(units.format_seconds(step_s) for step_s in planted.step_s))

# %% [markdown] exercise="11.4" title="The slowest part is ..., because ..." minutes=15 difficulty=3 version=1
# ### Exercise 11.4 · The slowest part is ..., because ...
#
# *15 minutes · difficulty 3 of 5 · why it matters: this sentence, with its number, is what a profile is for.*
#
# `calls` is a list of events of modules; each has `name`, `start_s`, `end_s` and `step`. Step 0 is the very first call. Return
# `(name, share)`: the module with the largest self time over all steps *after* the first, and its self time as a share of the
# self time of all modules in those steps. `measure_table(some_calls)` returns rows with `name`, `num_calls`, `total_s` and
# `self_s`. The check uses made-up profiles, and then your own.
#
# <details><summary>Hint 1</summary>
#
# The first call pays for things that are never paid again: leave `call.step == 0` out before you count.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `max(rows, key=lambda row: row.self_s)` is the row of the slowest module. What do the `self_s` of all rows add up to?
#
# </details>


# %% solution="11.4"
def find_slow_module(calls):
    """Return (name, share) of the module with the largest self time after the first step."""
    ### BEGIN SOLUTION
    rows = measure_table([call for call in calls if call.step > 0])
    slow = max(rows, key=lambda row: row.self_s)
    return slow.name, slow.self_s / sum(row.self_s for row in rows)
    ### END SOLUTION


# %%
check("11.4", find_slow_module)

# %% [markdown]
# ### What is it worth?
#
# Amdahl's law says what a faster part is worth: if a part with share $p$ of the time vanishes, the whole becomes
# $1 / (1 - p)$ times as fast. Here the useless work can be switched on and off, so the prediction can be tested, in pairs and
# **without** the profiler.

# %%
NUM_PAIRS = choose_by_budget(learner=24, ci=12)
IS_FOUND = ready("11.4") and ARE_READY


def time_step(num_steps=7):
    """Return the seconds of one decode step, without the profiler: the middle of a few."""
    times_s = []
    for _ in range(num_steps):
        with Stopwatch(device=device) as watch:
            phases.run_decode()
        times_s.append(watch.elapsed_s)
    return stats.summarize(times_s).p50


# %%
if IS_FOUND:
    slow_name, slow_share = find_slow_module(calls)
    times = {True: [], False: []}
    for number in range(NUM_PAIRS):
        for puzzle.is_on in (number % 2 == 0, number % 2 == 1):
            times[puzzle.is_on].append(time_step())
    gain = stats.compare(times[False], times[True])
    print(f"the slowest part is {slow_name}, because {100 * slow_share:.0f} % of a step is its own work")
    print(f"predicted: {1 / (1 - slow_share):.2f} times as fast without it; measured: {gain.ratio:.2f} ", end="")
    print(f"({gain.interval.low:.2f} to {gain.interval.high:.2f}, {gain.n} pairs)")

# %% [markdown]
# The prediction usually comes out too low: the profile's steps include the profiler's own time, which makes every other
# part look larger than it is. Section 6 measures that.
#
# **The control.** The same for a part with a tiny share: the norm or activation with the smallest self time is replaced by one
# that takes no time at all (it returns its input, so the words become nonsense, but only the time matters). This should
# **not** help. (One 95 % interval in twenty misses the truth: if yours says "faster" or "slower", run the cell once more.)

# %%
if IS_FOUND:
    puzzle.remove()
    small = min((row for row in by_module if "norm" in row.name or "act_fn" in row.name), key=lambda row: row.self_s)
    part, quick = dict(model.named_modules())[small.name], {"as it is": [], "no time": []}
    for number in range(NUM_PAIRS):
        for plan in sorted(quick, reverse=number % 2):
            if plan == "no time":
                part.forward = lambda hidden: hidden
            quick[plan].append(time_step())
            vars(part).pop("forward", None)
    control = stats.compare(quick["no time"], quick["as it is"])
    print(f"{small.name}: {100 * small.self_s / whole_s:.2f} % of a step. Without it: ", end="")
    print(f"{control.ratio:.3f} times as fast ({control.interval.low:.3f} to {control.interval.high:.3f}): {control.verdict}")

# %% [markdown]
# ## 6 · Break it: the profiler's time is not the model's time
#
# A profile shows seconds, so people quote them: "a step takes this long". But the profiler records something for every event, and
# that takes time, in each of hundreds of operators. Here are the same steps without and with it, in turns.

# %%
if ARE_READY:
    phases.reset()
    overhead = profiling.measure_overhead(
        phases.run_decode, num_pairs=choose_by_budget(learner=12, ci=8), model=model, device=device
    )
    cost = stats.compare(overhead.plain_s, overhead.profiled_s)  # how many times as fast without the profiler
    plain_s, profiled_s = (stats.summarize(values).p50 for values in (overhead.plain_s, overhead.profiled_s))
    print(f"a decode step: {units.format_seconds(plain_s)}; under the profiler {units.format_seconds(profiled_s)}")
    print(f"the profiler makes a step {cost.ratio:.2f} times as long ", end="")
    print(f"({cost.interval.low:.2f} to {cost.interval.high:.2f}, {cost.n} pairs)")
    print(f"quote the profile, and you report {1 / profiled_s:.0f} tok/s where {1 / plain_s:.0f} tok/s is true")
    first_s = planted.step_s[0] / stats.summarize(planted.step_s[1:]).p50
    print(f"without a warm-up: the first step of section 5 took {first_s:.1f} times as long as a later one")

# %% [markdown]
# **What you should see.** Under a profiler, shares stay roughly right; seconds do not. The smaller an operator, the more of its
# recorded time is the recording. So take *where* the time goes from the profile, and *how long* a step takes from a stopwatch
# without it. A warm-up comes before both.

# %% [markdown]
# ### The record

# %%
if ARE_READY:
    samples = {"decode_profiled_over_plain_ratio": [b / a for a, b in zip(overhead.plain_s, overhead.profiled_s, strict=True)]}
    phases.reset()
    with_time = {"decode": overhead.plain_s, "prefill": profiling.measure_overhead(phases.run_prefill, num_pairs=3, device=device).plain_s}
    for phase in work:
        samples[f"{phase}_step_s"] = with_time[phase]
        samples[f"{phase}_idle_fraction"] = [one[1] for one in views[phase]]
        samples |= {f"{phase}_{profiling.format_key(name)}_self_fraction": values for name, values in shares[phase].items()}
    samples |= {f"{key}_bytes": [size] for key, size in found[512].items()}
    samples["used_bytes"] = [sum(found[512].values())]
    samples |= {f"{phase}_gpu_busy_fraction": values for phase, values in gpu_busy.items()}

# %%
if ARE_READY:
    operator, leading = next(iter(shares["decode"])), max(kinds, key=kinds.get)
    slowest = {
        "phase": "decode", "operator": operator, "module": leading,
        "operator_fraction": stats.summarize(shares["decode"][operator]).p50,
        "module_fraction": kinds[leading][0] / whole_s,
    }  # fmt: skip
    settings = {
        "slowest_part": slowest, "main_memory": main_memory, "context_tokens": CONTEXT, "memory_context_tokens": 512,
        "num_profiles": NUM_PROFILES, "steps_per_profile": 5, "num_warmup": 2, "device": device,
        "memory_fraction": own[main_memory] / sum(own.values()),
    }  # fmt: skip
    record = save_record("11", "profile", model=choice, samples=samples, settings=settings)
    print(f"saved as {record.id}")

# %% [markdown]
# ## 7 · On a GPU: Nsight
#
# The PyTorch profiler sees kernels, too. NVIDIA's own tools see more: **nsys** (Nsight Systems) shows *when* everything ran, and
# **ncu** (Nsight Compute) shows *how well* one kernel used the hardware. For this lab and this model the commands are:

# %% tags=["nbval-check-output"]
print(nsight.format_commands(context_tokens=CONTEXT, num_steps=20))

# %% [markdown]
# How to read them:
#
# - **nsys**, the timeline: is the row of kernels dense, or full of gaps? Gaps with a busy CPU row above are launch gaps.
# - **cuda_gpu_kern_sum**: how many kernels a step has (instances over steps), and which one leads; `nsight.load_nsys_csv` reads it.
# - **cuda_api_sum**: time in `cudaLaunchKernel` near the time of the step means: the host is the limit. Time in a
#   synchronization is waiting, not work.
# - **ncu**: memory throughput in % of its peak near 100 and compute far below means: bound by bandwidth (lab 10).
#
# A run recorded on a GPU belongs here; without one, this is the reader on a **made-up** table, whose numbers mean nothing:

# %% tags=["nbval-check-output"]
MADE_UP = """Processing [example.sqlite] with [reports/cuda_gpu_kern_sum.py]...
"Time (%)","Total Time (ns)","Instances","Avg (ns)","Med (ns)","Min (ns)","Max (ns)","StdDev (ns)","Name"
75.0,"3,000,000",100,30000.0,30000.0,30000,30000,0.0,"gemv<float, (int)4>"
25.0,"1,000,000",200,5000.0,5000.0,5000,5000,0.0,"rms_norm"
"""
for row in nsight.load_nsys_csv(MADE_UP, report="cuda_gpu_kern_sum"):
    print(f"made-up: {row.name:<22}{row.num_calls:>5} calls, {100 * row.fraction:.0f} % of the kernels' time")

# %% [markdown]
# **Published**, for a serving engine on a GPU. It is **not comparable** with your idle share on a processor: there the GPU waits
# for a whole server, here no operator runs on the host.

# %%
claim = published.load_claim("vllm-gpu-busy")
mine = record if ARE_READY and gpu_busy else None
key = "decode_gpu_busy_fraction"
print(published.format_comparison(claim, lab="11", name="profile", key=key, record=mine))
recorded = nsight.load_recorded_tables(lab="11")
print("" if recorded else "kernels per step, launch gaps and Nsight's tables of this lab: not recorded yet")
for name, rows in recorded.items():
    print(f"{name}: {sum(row.num_calls for row in rows):,} kernels; the leading one is {rows[0].name[:60]}")

# %% [markdown]
# ## 8 · Summary
#
# You saw three things:
#
# 1. self times add up, totals do not; a share must say what it is a share of;
# 2. during a good part of a small model's decode step no operator of the model runs at all;
# 3. a slow part is found by self time after the warm-up, and its share predicts what removing it is worth.
#
# One thing this does **not** show: whether the leading operator is *fast for what it does*. A share says what takes the time;
# only a ceiling (lab 10) says whether it needs to.

# %%
if ARE_READY:
    kept = find_record(record.id)
    idle = kept.summary["decode_idle_fraction"]
    part = kept.settings["slowest_part"]
    print(f"Your numbers: in a decode step {part['operator']} takes {100 * part['operator_fraction']:.0f} % (self time), ", end="")
    print(f"and in {100 * idle['p50']:.0f} % no operator runs (n = {idle['n']} profiles)")
    print(f"by module {part['module']} leads with {100 * part['module_fraction']:.0f} %; ", end="")
    print(f"memory: mostly {kept.settings['main_memory']}, {units.format_bytes(kept.samples['weights_bytes'][0])} of weights")
    print(f"{choice.name} ({choice.source}) on {machine.cpu.name}, {record.time[:10]}, record {record.id}")

# %% [markdown]
# **A finding, if you like** (not required): 80 to 300 words: "the slowest part is ..., because ...; the memory is mostly ...",
# citing your record's id. Every number in it is checked against the record.

# %%
### BEGIN SOLUTION stub: note("11", None)
p50 = {key: values["p50"] for key, values in find_record(record.id).summary.items()}
note("11", f"""Record {record.id} profiles prefill and decode of one model, after a warm-up, in repeated profiles of a few steps.
In a decode step the slowest part is the operator {slowest["operator"].removeprefix("aten::")}, because it takes
{100 * slowest["operator_fraction"]:.1f} % of the time as self time; of the modules {slowest["module"]} leads, with
{100 * slowest["module_fraction"]:.1f} %. In {100 * p50["decode_idle_fraction"]:.1f} % of a decode step no operator runs at all,
against {100 * p50["prefill_idle_fraction"]:.1f} % of a prefill: Python and dispatch are paid once per step, whether it computes
one token or a whole prompt. A plain step takes {1e3 * p50["decode_step_s"]:.3g} ms; under the profiler it is
{p50["decode_profiled_over_plain_ratio"]:.3g} times as long, so its seconds must not be quoted. Of what the model itself needs,
most is {main_memory}, {100 * settings["memory_fraction"]:.1f} % at this context. With more users the cache would grow, and the
weights would not.""")
### END SOLUTION

# %% [markdown]
# ### Five questions

# %% solution="11.q1"
### BEGIN SOLUTION stub: quiz("11.q1")
quiz("11.q1", "b")
### END SOLUTION

# %% solution="11.q2"
### BEGIN SOLUTION stub: quiz("11.q2")
quiz("11.q2", 3)
### END SOLUTION

# %% solution="11.q3"
### BEGIN SOLUTION stub: quiz("11.q3")
quiz("11.q3", "d")
### END SOLUTION

# %% solution="11.q4"
### BEGIN SOLUTION stub: quiz("11.q4")
quiz("11.q4", 1.25)
### END SOLUTION

# %% solution="11.q5"
### BEGIN SOLUTION stub: quiz("11.q5")
quiz("11.q5", """I would look at the timeline first: if the kernels have gaps and the CPU is busy launching, the host is the
limit, so CUDA graphs, a compiler or larger batches help and faster kernels do not. If the row of kernels is dense, I take the
kernel with the largest self time and compare it with its ceiling.""")  # fmt: skip
### END SOLUTION

# %% [markdown]
# ## 9 · Done
#
# The model is dropped, and its memory is given back:

# %%
if ARE_READY:
    puzzle.remove()
held = ("model", "tokenizer", "phases", "some", "puzzle", "work", "function", "part", "profiles", "first", "views")
print(measure_release(globals(), *held))

# %%
complete("11")
