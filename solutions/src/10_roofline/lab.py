# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
#   labkit:
#     number: "10"
#     title: The roofline
#     question: What is the fastest this machine could decode, and why?
#     phase: 1
#     minutes: 90
# ---

# %% [markdown]
# # 10 · The roofline
#
# **What is the fastest this machine could decode, and why?**
#
# In this lab you count the work of one decode step from nothing but a model's configuration, measure three ceilings of the
# machine in front of you, and compare a real decode with them. You end with two findings: *my decode runs at x % of its
# binding ceiling*, and a budget of the step: how much of it is dispatch, how much is reading weights, and how much neither
# explains.

# %% [markdown]
# | | |
# | --- | --- |
# | **Time** | 90 minutes, of which about 1 is waiting |
# | **Needs** | Any machine. No GPU, no network. The ceilings are those of this machine; published peaks are shown beside them. |
# | **Before** | Labs 01 (medians and intervals) and 03 (what a decoder computes, what a KV cache is) |
# | **You will be able to** | compute arithmetic intensity; count FLOPs and bytes of a decode step from a config.json; name the ceiling that binds; give MBU and MFU with an interval; split a step into dispatch, weights and the rest; recognize a bandwidth that was measured in a cache |

# %%
from importlib import import_module

from labkit import ceilings, models, plots, published, roofline, stats, timing, units
from labkit.budget import choose_by_budget
from labkit.checks import check, complete, predict, ready, reveal
from labkit.errors import HardwareError
from labkit.hardware import estimate_tier, probe_machine
from labkit.memory import measure_release
from labkit.plots import Roof, RooflinePoint, plot_bandwidth, plot_roofline
from labkit.quiz import quiz
from labkit.results import find_record, save_record
from labkit.roofline import estimate_utilization

# %%
machine = probe_machine()
choice = models.find_model("target", machine=machine)
print(f"CPU        {machine.cpu.name}, {machine.cpu.num_cores} cores")
print(f"GPU        {machine.gpus[0].name if machine.gpus else 'none found: the lab runs on the processor'}")
print(f"tier       {estimate_tier(machine)}")
print(f"model      {choice.name} ({choice.source}), {choice.dtype}: the one that this tier runs")

# %% [markdown]
# ## 1 · What a processor is made of
#
# A GPU is a grid of **streaming multiprocessors** (SMs). Threads run in groups of 32, called **warps**: all threads of a warp
# do the same instruction. An SM holds many warps at once and, each cycle, runs those whose data has arrived. That is how it
# hides the wait for memory. Data lives at four distances:
#
# - **registers**, private to a thread: no wait;
# - **shared memory** and L1, private to an SM: some tens of cycles;
# - **L2**, one for all SMs: some hundreds;
# - **HBM** (or GDDR), the memory on the board: more; the weights and the KV cache live here.
#
# A CPU core has the same kind of memory hierarchy (registers, L1, L2, L3, memory), few threads, and wide vector instructions.
# The next cell shows this machine's own hierarchy. Without a GPU it shows a published GPU's, and says so.

# %%
gpu_name = machine.gpus[0].name if machine.gpus else "NVIDIA H100 80GB HBM3"
peak = published.find_device_peaks(gpu_name)
print(f"published row of {peak.name}" if peak else f"no published row for {gpu_name}", end="")
print("" if machine.gpus else " (no GPU here)")
if peak:
    print(f"  {peak.num_units} SMs, each up to {peak.warps_per_unit} warps of 32 threads")
    print(f"  registers      {units.format_bytes(4 * peak.registers_per_unit)} in each SM")
    print(f"  shared memory  {units.format_bytes(peak.shared_bytes_per_unit)} in each SM, L1 in the same place")
    print(f"  L2             {units.format_bytes(peak.l2_bytes)} for all")
    print(f"  memory         {peak.memory_bytes / 1e9:.0f} GB at {units.format_rate(peak.byte_per_s, 'B/s')}")
    print(f"  source         {peak.source}")
print("this processor:")
for cache in ceilings.probe_caches():
    print(f"  L{cache.level}             {units.format_bytes(cache.capacity_bytes)}")

# %% [markdown]
# ## 2 · Arithmetic intensity
#
# A processor has two speeds: how fast it computes (FLOP/s) and how fast bytes arrive (B/s). Which of the two limits a piece of
# work depends on its **arithmetic intensity**:
#
# $$I = \frac{\text{FLOPs}}{\text{bytes moved}} \quad [\text{FLOP/byte}], \qquad
# \text{attainable} = \min\left(P,\; I \cdot W\right) \quad [\text{FLOP/s}]$$
#
# with $P$ the peak of the arithmetic and $W$ the bandwidth. Drawn on log scales this is a **roofline**: a slope, then a flat
# roof. They meet at the *ridge* $P / W$. Left of it the bytes are the limit, right of it the FLOPs.
#
# A matrix product $(m, k) \times (k, n)$ takes $2mnk$ FLOPs: a multiplication and an addition each. It has to read both
# inputs and write the output, each value once. With $m = 1$ it is a **GEMV**: that is what decoding one token does with every
# weight matrix.
#
# **Worked example**: the FLOPs of both shapes, and the values that they touch.

# %% tags=["nbval-check-output"]
for m in (1, 4096):
    flops, values = 2 * m * 4096 * 4096, m * 4096 + 4096 * 4096 + m * 4096
    print(f"({m}, 4096) @ (4096, 4096): {flops / 1e9:.4g} GFLOP, {values / 1e6:.4g} million values")

# %% [markdown] exercise="10.1" title="Arithmetic intensity" minutes=8 difficulty=1 version=1
# ### Exercise 10.1 · Arithmetic intensity
#
# *8 minutes · difficulty 1 of 5 · why it matters: this one number tells you which half of a data sheet matters.*
#
# Return the FLOPs per byte of the product $(m, k) \times (k, n)$ in a number format of `bytes_per_value` bytes.
#
# <details><summary>Hint 1</summary>
#
# Three matrices: two are read, one is written. How many values does each have?
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# FLOPs are `2 * m * n * k`. The bytes are the sum of the three sizes times `bytes_per_value`.
#
# </details>


# %% solution="10.1"
def gemm_intensity(m, n, k, *, bytes_per_value):
    """Return the arithmetic intensity (FLOP/byte) of (m, k) @ (k, n), each value moved once."""
    ### BEGIN SOLUTION
    flops = 2 * m * n * k
    num_bytes = (m * k + k * n + m * n) * bytes_per_value
    return flops / num_bytes
    ### END SOLUTION


# %%
check("10.1", gemm_intensity)

# %%
if ready("10.1"):
    for m in (1, 4, 16, 64, 256, 4096):
        found = gemm_intensity(m, 4096, 4096, bytes_per_value=2)
        print(f"{m:>5} rows: {units.format_number(found)} FLOP/byte in 16 bits")

# %% [markdown]
# **What you should see.** One row gives about 1 FLOP per byte. The rows are the tokens that are computed together, so a batch
# or a prompt moves the work to the right. Beyond a few hundred rows a 16-bit product passes the ridge of any GPU.

# %% [markdown]
# ## 3 · One decode step, from the configuration
#
# With $L$ layers, hidden size $d$, $H$ heads, $G$ key/value heads of dimension $D$, MLP size $F$, vocabulary $V$, the matrices
# of a Llama-like model have
#
# $$N = L\,\big(\underbrace{2\,d\,HD}_{Q,\,O} + \underbrace{2\,d\,GD}_{K,\,V} + \underbrace{3\,d\,F}_{\text{MLP}}\big)
# + \underbrace{d\,V}_{\text{head}} \quad [\text{values}]$$
#
# One step for $B$ sequences that have $S$ tokens in the cache, and $b$ bytes per value:
#
# $$\text{FLOPs} = B\,\big(2N + 4\,L\,H\,D\,(S + 1)\big) \qquad \text{bytes} = b\,\big(N + B \cdot 2\,L\,G\,D\,(S + 1)\big)$$
#
# The new token attends to itself too, so $S + 1$. The weights are read **once for the whole batch**; each sequence has its own
# cache. The input embedding is only looked up (one row), so its table does not count; the head is multiplied, *tied* to that
# table or not. Norms and activations are left out here: `labkit.roofline` counts them.
#
# **Worked example**: the toy from the check, $L = 2$, $d = 8$, $H = 4$, $G = 2$, $D = 2$, $F = 16$, $V = 32$.

# %% tags=["nbval-check-output"]
layer_values = 2 * 8 * 4 * 2 + 2 * 8 * 2 * 2 + 3 * 8 * 16
toy_values = 2 * layer_values + 8 * 32
print(f"N = 2 x {layer_values} + 256 = {toy_values} values")
print(f"with 3 tokens in the cache: {2 * toy_values} + {4 * 2 * 4 * 2 * 4} FLOPs for each sequence")
print(f"in 16 bits: {2 * toy_values} bytes of weights once, {2 * 2 * 2 * 2 * 2 * 4} bytes of cache for each sequence")

# %% [markdown] exercise="10.2" title="The work of a decode step" minutes=20 difficulty=3 version=1
# ### Exercise 10.2 · The work of a decode step
#
# *20 minutes · difficulty 3 of 5 · why it matters: it gives the speed limit of a model before you download it.*
#
# `config` is a dict with the keys of a config.json: `hidden_size`, `intermediate_size`, `num_hidden_layers`,
# `num_attention_heads`, `num_key_value_heads`, `head_dim`, `vocab_size`, `tie_word_embeddings`. Return `(flops, num_bytes)` of
# one decode step by the two formulas.
#
# <details><summary>Hint 1</summary>
#
# First `q_width = num_attention_heads * head_dim` and `kv_width = num_key_value_heads * head_dim`. Neither has to be the hidden
# size: in Qwen3-0.6B the first is twice as large.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `batch` multiplies everything in the FLOPs, but in the bytes only the cache. `tie_word_embeddings` changes nothing: look
# at the formula for $N$ again.
#
# </details>


# %% solution="10.2"
def decode_work(config, *, context_tokens, batch, bytes_per_value):
    """Return (FLOPs, bytes) of one decode step of `batch` sequences with `context_tokens` each in the cache."""
    ### BEGIN SOLUTION
    d, layers = config["hidden_size"], config["num_hidden_layers"]
    q_width = config["num_attention_heads"] * config["head_dim"]
    kv_width = config["num_key_value_heads"] * config["head_dim"]
    layer = 2 * d * q_width + 2 * d * kv_width + 3 * d * config["intermediate_size"]
    weights = layers * layer + d * config["vocab_size"]
    seen = context_tokens + 1
    flops = batch * (2 * weights + 4 * layers * q_width * seen)
    num_bytes = bytes_per_value * (weights + batch * 2 * layers * kv_width * seen)
    return flops, num_bytes
    ### END SOLUTION


# %%
check("10.2", decode_work)

# %%
CONTEXT = 128
BYTES = {"float32": 4}.get(choice.dtype, 2)
SHAPE = {"head_dim": choice.config["hidden_size"] // choice.config["num_attention_heads"],
         "num_key_value_heads": choice.config["num_attention_heads"], **choice.config}  # fmt: skip
if ready("10.2"):
    flops, num_bytes = decode_work(SHAPE, context_tokens=CONTEXT, batch=1, bytes_per_value=BYTES)
    full = roofline.estimate_decode_step(choice.config, context_tokens=CONTEXT, bytes_per_value=BYTES)
    for who, f, b in (("yours", flops, num_bytes), ("labkit", full.flops, full.bytes)):
        said = f"{units.format_rate(f, 'FLOP')}, {units.format_bytes(b)}, {f / b:.3f} FLOP/byte"
        print(f"{choice.name}, one step at {CONTEXT} tokens, {who:<6} {said}")

# %% [markdown]
# **What you should see.** Two lines that nearly agree (labkit adds norms and the inputs and outputs of each product), and an
# intensity far left of any ridge.
#
# **Does it hold elsewhere?** gpt-fast reports the speed of Llama-2-7B on an A100 and the bandwidth that it reached. Your formula
# knows neither:

# %%
if ready("10.2"):
    llama = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
             "num_key_value_heads": 32, "head_dim": 128, "vocab_size": 32000, "tie_word_embeddings": False}  # fmt: skip
    _, llama_bytes = decode_work(llama, context_tokens=100, batch=1, bytes_per_value=2)
    claim = published.load_claim("gpt-fast-bf16-decode")
    reached = float(claim.value) * llama_bytes
    print(f"{claim.setup}: {claim.value} {claim.unit}")
    print(f"bytes of a step x steps a second: {units.format_rate(reached, 'B/s')}")
    print(f"of the published {units.format_rate(2.039e12, 'B/s')}: MBU {100 * reached / 2.039e12:.0f} %")

# %% [markdown]
# ## 4 · Three ceilings
#
# A step cannot end before its arithmetic is done, nor before its bytes have arrived. Small models often meet a third limit first:
# **dispatch**, the time that Python and the framework need to start the operations. It is the time of a step with almost no
# arithmetic, and it grows with the number of *operations*, so with the number of layers.
#
# $$t \ge \max\left(\frac{\text{FLOPs}}{P},\; \frac{\text{bytes}}{W},\; t_\text{dispatch}\right) \quad [\text{s}]$$
#
# The largest **binds** and gives the ceiling its name. (On a GPU the three overlap. On a CPU the thread that dispatches also
# computes, so the true limit lies higher, near dispatch *plus* the larger of the others. We call the largest the ceiling on
# both, and look at the sum later.)
#
# **Worked example**: 30 million FLOPs and 40 MB on a machine with 100 GFLOP and 20 GB a second and 1.5 ms of dispatch.

# %% tags=["nbval-check-output"]
for name, seconds in (("compute", 30e6 / 100e9), ("bandwidth", 40e6 / 20e9), ("dispatch", 1.5e-3)):
    print(f"{name:<10} {units.format_seconds(seconds)}")
print("bandwidth binds")

# %% [markdown] exercise="10.3" title="The ceiling that binds" minutes=8 difficulty=2 version=1
# ### Exercise 10.3 · The ceiling that binds
#
# *8 minutes · difficulty 2 of 5 · why it matters: optimizing anything that does not bind is wasted effort.*
#
# Return `(name, seconds)`: the name of the ceiling that binds, `"compute"`, `"bandwidth"` or `"dispatch"`, and its time.
#
# <details><summary>Hint 1</summary>
#
# Time is work divided by rate: FLOPs by FLOP/s, bytes by B/s. The third time is given.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# With a dict `times` of the three, `max(times, key=times.get)` is the name of the largest.
#
# </details>


# %% solution="10.3"
def binding_ceiling(flops, num_bytes, flop_per_s, byte_per_s, dispatch_s):
    """Return (name, seconds) of the ceiling that binds: the longest of compute, bandwidth and dispatch."""
    ### BEGIN SOLUTION
    times = {"compute": flops / flop_per_s, "bandwidth": num_bytes / byte_per_s, "dispatch": dispatch_s}
    name = max(times, key=times.get)
    return name, times[name]
    ### END SOLUTION


# %%
check("10.3", binding_ceiling)

# %% [markdown]
# ### Predict before you measure
#
# How close does plain Transformers get to this machine's ceiling when it decodes one sequence? Give a percentage: 100 % is as
# fast as the binding ceiling allows.

# %% solution="10.p1"
### BEGIN SOLUTION stub: predict("10.p1", None, unit="%")
predict("10.p1", 50, unit="%")
### END SOLUTION

# %% [markdown]
# ### Measure: how fast do bytes arrive?
#
# A copy at growing **working sets**: the bytes that are accessed repeatedly. As long as they fit in a cache, they come from
# there. The blue line marks the bytes that one decode step of your model reads: the bandwidth *there* is the one that counts.

# %%
ARE_READY = all([ready("10.1"), ready("10.2"), ready("10.3")])
ROUNDS = choose_by_budget(learner=30, ci=12)
if ARE_READY:
    model, _ = models.load_model(choice)
    device = str(model.device)
    caches = ceilings.probe_caches(device)
    sweep = ceilings.measure_copy_bandwidth(device=device, num_rounds=ROUNDS)

# %%
if ARE_READY:
    ratio = sweep[0].median / sweep[-1].median
    title = f"Bytes come {ratio:.1f} times as fast from the small working set as from the large one"
    figure = plot_bandwidth(sweep, caches=caches, working_set_bytes=full.bytes, title=title)
    figure.show()
    print(plots.format_alternative(figure))

# %% [markdown]
# ### Measure: how fast is the arithmetic?
#
# A square product in each number format, on one thread of a CPU or on the GPU. A format that a processor has no instructions for
# is emulated, and can be a hundred times slower: fewer bits are *not* always faster.

# %%
if ARE_READY:
    products, missing = {}, []
    for dtype in dict.fromkeys([choice.dtype, "float32", "bfloat16", "float16"]):
        try:
            products[dtype] = ceilings.measure_gemm_rate(dtype, device=device, num_rounds=ROUNDS // 2)
        except HardwareError:
            missing.append(dtype)
    for dtype, rate in products.items():
        said = units.format_interval(rate.interval, write=lambda x: units.format_rate(x, "FLOP/s"))
        print(
            f"{dtype:<9} {units.format_rate(rate.median, 'FLOP/s')} ({said}, n = {len(rate.samples)}), {rate.size} wide"
        )
    print("not available here:", ", ".join(missing) or "none")

# %% [markdown]
# ### Measure: the real thing, in turns with its ceilings
#
# Decode steps of your model, *in turns* with everything that limits them, so that a slow moment of the machine affects them all:
#
# - steps of a **narrow** model: the same layers and operations, but almost no width. Its time is the dispatch time;
# - a copy, and a matrix that is read once (GEMV), at the working set of one step. The faster of the two is the bandwidth
#   *ceiling*; the speed that the GEMV really reaches goes into the budget of exercise 10.5;
# - a product, for the FLOP/s.

# %%
if ARE_READY:
    narrow = ceilings.load_narrow_model(choice.config, dtype=choice.dtype, device=device)
    size = int(min(full.bytes, sweep[-1].size))  # past the largest cache the size no longer matters
    on, turn = {"dtype": choice.dtype, "device": device, "num_rounds": 1}, {"model": [], "narrow": []}
    turn |= {"copy": [], "GEMV": [], "GEMM": []}
    for _ in range(2 * ROUNDS):
        step = ceilings.measure_steps(
            {"model": model, "narrow": narrow}, context_tokens=CONTEXT, num_rounds=1, num_warmup=1
        )
        (copy,) = ceilings.measure_copy_bandwidth([size], device=device, num_rounds=1)
        (gemv,) = ceilings.measure_gemv_bandwidth([size], **on)
        gemm = ceilings.measure_gemm_rate(size=products[choice.dtype].size, **on)
        found = {**step, "copy": copy.samples, "GEMV": gemv.samples, "GEMM": gemm.samples}
        for name, values in found.items():
            turn[name] += values

# %%
UNITS = {"model": "s", "narrow": "s", "copy": "B/s", "GEMV": "B/s", "GEMM": "FLOP/s"}
if ARE_READY:
    limits = {name: ceilings.MeasuredCeiling(name, unit, tuple(turn[name]), size) for name, unit in UNITS.items()}
    for rate in limits.values():

        def write(x, unit=rate.unit):
            return units.format_seconds(x) if unit == "s" else units.format_rate(x, unit)

        ends = units.format_interval(rate.interval, write=write)
        print(f"{rate.name:<8}{write(rate.median)} ({ends}, n = {len(rate.samples)})")
    dispatch, arithmetic = limits["narrow"], limits["GEMM"]
    bandwidth = max(limits["copy"], limits["GEMV"], key=lambda rate: rate.median)
    unsteady = [rate.name for rate in limits.values() if not rate.is_steady]

# %%
if ARE_READY:
    num_layers = choice.config["num_hidden_layers"]
    print(f"bandwidth at {units.format_bytes(size)}: that of the {bandwidth.name}")
    print(f"dispatch: {units.format_seconds(dispatch.median / num_layers)} for each of {num_layers} layers")
    one = ceilings.measure_op_dispatch(device=device, num_rounds=ROUNDS)
    print(f"          {units.format_seconds(one.median)} for one operation on a single number")
    print(f"NOT STEADY: {', '.join(unsteady)}. This machine was doing something else;" if unsteady else "steady")
    print("what follows is not a finding yet: measure again when it is quiet." if unsteady else "")

# %% [markdown]
# Now larger batches, and two prefills. Each is a point: its intensity comes from the configuration, its FLOP/s from the time.

# %%
if ARE_READY:
    seconds = {"decode_s": turn["model"]}
    for batch in (4, 16):
        more = ceilings.measure_steps({"model": model}, context_tokens=CONTEXT, batch=batch, num_rounds=ROUNDS)
        seconds[f"decode_batch{batch}_s"] = more["model"]
    for tokens in (64, 512):
        num_rounds = choose_by_budget(learner=12, ci=7)
        seconds[f"prefill{tokens}_s"] = ceilings.measure_prefills(model, prompt_tokens=tokens, num_rounds=num_rounds)

# %%
if ARE_READY:
    works, both = {}, {"bytes_per_value": BYTES, "cache_bytes_per_value": BYTES}
    for batch, name in ((1, "decode_s"), (4, "decode_batch4_s"), (16, "decode_batch16_s")):
        works[name] = roofline.estimate_decode_step(choice.config, context_tokens=CONTEXT, batch=batch, **both)
    for tokens in (64, 512):
        works[f"prefill{tokens}_s"] = roofline.estimate_prefill(choice.config, prompt_tokens=tokens, **both)

# %% [markdown]
# ### The record
#
# All samples go into one record: the ceilings, and the decode that they limit.

# %%
if ARE_READY:
    samples = {name: list(values) for name, values in seconds.items()}
    samples |= {f"gemm_{dtype}_flop_per_s": list(rate.samples) for dtype, rate in products.items()}
    samples["gemm_in_turns_flop_per_s"] = list(arithmetic.samples)
    samples |= {f"copy_kib{rate.size // 1024}_byte_per_s": list(rate.samples) for rate in sweep}
    samples |= {"bandwidth_byte_per_s": list(bandwidth.samples), "dispatch_s": list(dispatch.samples)}
    samples |= {"gemv_byte_per_s": list(turn["GEMV"]), "decode_tok_per_s": [1 / s for s in turn["model"]]}
    one_step = works["decode_s"]
    settings = {
        "decode": {"flops": one_step.flops, "bytes": one_step.bytes, "weight_bytes": one_step.weight_bytes},
        "gemm": "gemm_in_turns_flop_per_s", "bandwidth": bandwidth.name, "unsteady": unsteady, "bytes_per_value": BYTES,
        "context_tokens": CONTEXT, "device": device,
    }  # fmt: skip
    record = save_record("10", "roofline", model=choice, samples=samples, settings=settings)
    print(f"saved as {record.id}")

# %% [markdown]
# For each point: the ceiling that binds, the share of it that was reached, and (*in turns*) the share if dispatch and the longer
# of the other two run one after the other, which is the fairer limit where one thread does both.

# %%
LABELS = {"decode_s": "1 sequence", "decode_batch4_s": "4 sequences", "decode_batch16_s": "16 sequences",
          "prefill64_s": "64 tokens", "prefill512_s": "512 tokens"}  # fmt: skip
if ARE_READY:
    points, rates = [], {"flop_per_s": arithmetic.median, "byte_per_s": bandwidth.median}
    for name, work in works.items():
        kind, said = ("decode", "prefill")["prefill" in name], stats.summarize(seconds[name])
        top = roofline.estimate_time_bound(work, **rates, dispatch_s=dispatch.median)
        ends = (said.p50, said.p50_interval.high, said.p50_interval.low, top.seconds)
        points.append(RooflinePoint(kind, LABELS[name], work.intensity, *(work.flops / s for s in ends), said.n))
        shares = [f"{100 * s / said.p50:.0f} %" for s in (top.seconds, top.serial_s)]
        print(f"{kind:<8}{LABELS[name]:<13}{top.limit:<10} {shares[0]:>5}; in turns {shares[1]:>5}")

# %%
if ARE_READY:
    roofs = [Roof("measured here", arithmetic.median, bandwidth.median)]
    row = published.find_device_peaks(machine.gpus[0].name if machine.gpus else machine.cpu.name)
    row = row or next(one for one in published.load_device_peaks() if one.name == "AMD EPYC 7763 one core")
    flop_per_s = row.flop_per_s.get(
        {"bfloat16": "bf16", "float16": "fp16"}.get(choice.dtype, "fp32"), row.flop_per_s["fp32"]
    )
    roofs.append(Roof(f"published: {row.name}", flop_per_s, row.byte_per_s, is_measured=False))
    factor = points[-1].flop_per_s / points[0].flop_per_s
    title = f"A prefill reaches {factor:.0f} times the FLOP/s of a decode step"
    figure = plot_roofline(roofs, points, title=title)
    figure.show()
    print(plots.format_alternative(figure))

# %% [markdown]
# **What you should see.** Decode points on the left, prefill on the right, each under its blue mark. A decode point far below
# the slope takes longer than the bandwidth ceiling explains; exercise 10.5 asks where that time goes. The published row is that of
# a device of this class, unless the table has your own; its bandwidth is that of a whole socket or board.

# %% [markdown] exercise="10.4" title="The distance from the ceiling" minutes=15 difficulty=3 version=1
# ### Exercise 10.4 · The distance from the ceiling
#
# *15 minutes · difficulty 3 of 5 · why it matters: "slow" means nothing; "40 % of what is possible here" does.*
#
# $$\text{MBU} = \frac{\text{bytes} / W}{t} \qquad \text{MFU} = \frac{\text{FLOPs} / P}{t} \qquad
# \text{share} = \frac{\text{time of the binding ceiling}}{t}$$
#
# Write `read_record(record)`. It has `record.samples`: `decode_s`, `bandwidth_byte_per_s`, `dispatch_s`, and the arithmetic
# under the key `record.settings["gemm"]`; and `record.settings["decode"]` with `flops` and `bytes`. Use the **median** of each.
# Return a dict with `record` (its id), `ceiling` (the name), `share`, `low` and `high` (the share at the two ends of the 95 %
# interval of the decode's median; ceilings stay at their medians), `mbu` and `mfu`.
#
# <details><summary>Hint 1</summary>
#
# `stats.summarize(samples)` has `p50` and `p50_interval` with `low` and `high`. A longer decode is a smaller share.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Make the dict `times` of 10.3 from the medians. Then everything is one of the three times, divided by a decode time.
#
# </details>


# %% solution="10.4"
def read_record(record):
    """Return {"record", "ceiling", "share", "low", "high", "mbu", "mfu"} of the decode in a record of this lab."""
    ### BEGIN SOLUTION
    work, decode = record.settings["decode"], stats.summarize(record.samples["decode_s"])
    middle = {key: stats.summarize(values).p50 for key, values in record.samples.items()}
    times = {
        "compute": work["flops"] / middle[record.settings["gemm"]],
        "bandwidth": work["bytes"] / middle["bandwidth_byte_per_s"],
        "dispatch": middle["dispatch_s"],
    }
    name, ends = max(times, key=times.get), decode.p50_interval
    shares = {"share": decode.p50, "low": ends.high, "high": ends.low}
    found = {key: times[name] / seconds for key, seconds in shares.items()}
    used = {"mbu": times["bandwidth"] / decode.p50, "mfu": times["compute"] / decode.p50}
    return {"record": record.id, "ceiling": name, **found, **used}
    ### END SOLUTION


# %%
check("10.4", read_record)

# %%
if ARE_READY and ready("10.4"):
    kept = find_record(record.id)
    found = read_record(kept)
    decode = kept.samples["decode_s"]
    for name, ideal_s in (("MBU", found["mbu"]), ("MFU", found["mfu"]), ("share", found["share"])):
        using = estimate_utilization(decode, ideal_s=ideal_s * stats.summarize(decode).p50)
        ends = units.format_interval(using.interval, write=lambda x: f"{100 * x:.2g}")
        print(f"{name:<6} {100 * using.value:.2g} % ({ends} %, n = {using.n})")
    predicted = reveal("10.p1", 100 * found["share"], unit="%")

# %% [markdown]
# Next to the published number (not directly comparable: another model, another machine, compiled code):

# %%
mine = record if ARE_READY else None
print(published.format_comparison(published.load_claim("gpt-fast-bf16-decode"), lab="10", name="roofline",
                                  key="decode_tok_per_s", record=mine))  # fmt: skip

# %% [markdown]
# ## 5 · Layers, not parameters
#
# If dispatch binds, a step costs what its *layers* cost. Here are models with random weights (fine for measuring speed) in the
# shape of yours, at most six layers deep and with at most 4,096 words:
#
# - **whole**: the shape as it is;
# - **thin**: the MLP half as wide; the layers stay;
# - **shallow**: as wide as before, with a third of the layers removed;
# - **half zeros**: the control that should *not* help. Every other weight is 0. Half of the multiplications are wasted, but
#   the same bytes move and the same operations run.

# %%
if ARE_READY:
    depth = min(6, choice.config["num_hidden_layers"])
    cut = {"num_hidden_layers": depth - max(1, depth // 3)}
    changes = {"whole": {}, "half zeros": {}, "shallow": cut,
               "thin": {"intermediate_size": choice.config["intermediate_size"] // 2}}  # fmt: skip
    small = {"num_hidden_layers": depth, "vocab_size": min(4096, choice.config["vocab_size"]), "layer_types": None}
    small |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    shapes = {name: {**choice.config, **small, **change} for name, change in changes.items()}
    variants = {
        name: ceilings.load_random_model(config, dtype=choice.dtype, device=device) for name, config in shapes.items()
    }
    for parameter in variants["half zeros"].parameters():
        parameter.data.view(-1)[::2] = 0

# %%
if ARE_READY:
    times_s = ceilings.measure_steps(variants, context_tokens=CONTEXT, num_rounds=2 * ROUNDS)
    second = save_record(
        "10", "layers", model=choice, settings={"shapes": changes, "num_layers": depth, "context_tokens": CONTEXT},
        samples={f"{name.replace(' ', '_')}_s": list(values) for name, values in times_s.items()},
    )  # fmt: skip
    print(f"{'':<12}{'parameters':<14}{'layers':<10}{'speed over whole'}")
    for name, config in shapes.items():
        said = stats.compare(times_s[name], times_s["whole"]) if name != "whole" else None
        size = roofline.estimate_num_parameters(config) / roofline.estimate_num_parameters(shapes["whole"])
        text = f"{said.ratio:.2f} ({units.format_interval(said.interval)}): {said.verdict}" if said else ""
        print(f"{name:<12}{100 * size:.0f} %{'':<9}{config['num_hidden_layers']:<10}{text}")

# %%
if ARE_READY:
    gains = {name: stats.compare(times_s[name], times_s["whole"]).ratio for name in ("thin", "shallow")}
    title = f"Thin: {gains['thin']:.2f} times the speed. Shallow: {gains['shallow']:.2f} times"
    shown = {name: [1e3 * s for s in values] for name, values in times_s.items()}
    figure = plots.plot_samples(shown, unit="ms", title=title)
    figure.show()
    print(plots.format_alternative(figure))

# %% [markdown]
# **What you should see.** Where *shallow* has about as many parameters as *thin*, it is the faster of the two: it saves bytes
# and dispatch, *thin* saves bytes only. *Half zeros* should say *cannot tell*, or a ratio very close to 1. On a large model on a
# GPU, where bandwidth binds, thin and shallow are about equally fast.

# %% [markdown] exercise="10.5" title="A budget of the step" minutes=10 difficulty=2 version=2
# ### Exercise 10.5 · A budget of the step
#
# *10 minutes · difficulty 2 of 5 · why it matters: a ceiling says how fast a step could be, a budget says what to work on.*
#
# The step takes longer than its ceiling. Split its time $t$ into three parts:
#
# - **dispatch**: the time of the narrow model's step;
# - **weights**: their bytes at the speed that a GEMV *really* reaches. A copy may be faster, but a decode step does not copy;
# - **rest**: what neither explains. If the two add up to more than the step (a GPU does both at once), the rest is 0.
#
# $$t_\text{rest} = \max\left(0,\; t - t_\text{dispatch} - \frac{\text{weight bytes}}{W_\text{GEMV}}\right) \quad [\text{s}]$$
#
# Write `decode_budget(record)`. The record is that of 10.4; you also need the samples `gemv_byte_per_s`, and
# `record.settings["decode"]["weight_bytes"]`. Use the **median** of each. Return a dict with `record` (its id), the seconds
# `dispatch_s`, `weights_s` and `rest_s`, `largest` (`"dispatch"`, `"weights"` or `"rest"`), `unexplained` (the rest as a share of
# the step), and `mbu` and `mfu` as in 10.4. It is checked on made-up records of each kind, then on yours.
#
# <details><summary>Hint 1</summary>
#
# Bytes divided by bytes per second are seconds. With a dict of the three parts, the largest is found as in 10.3.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `read_record(record)` of 10.4 already gives `mbu` and `mfu`. `stats.summarize(samples).p50` is a median.
#
# </details>


# %% solution="10.5"
def decode_budget(record):
    """Return the budget of the decode step in a record of this lab: seconds of its parts, and shares from 0 to 1."""
    ### BEGIN SOLUTION
    middle = {key: stats.summarize(values).p50 for key, values in record.samples.items()}
    step_s, weight_bytes = middle["decode_s"], record.settings["decode"]["weight_bytes"]
    dispatch_s, weights_s = middle["dispatch_s"], weight_bytes / middle["gemv_byte_per_s"]
    rest_s = max(0.0, step_s - dispatch_s - weights_s)
    parts = {"dispatch": dispatch_s, "weights": weights_s, "rest": rest_s}
    largest, unexplained = max(parts, key=parts.get), rest_s / step_s
    reading = read_record(record)
    mbu, mfu = reading["mbu"], reading["mfu"]
    ### END SOLUTION
    return {
        "record": record.id, "dispatch_s": dispatch_s, "weights_s": weights_s, "rest_s": rest_s,
        "largest": largest, "unexplained": unexplained, "mbu": mbu, "mfu": mfu,
    }  # fmt: skip


# %%
check("10.5", decode_budget)

# %% [markdown]
# From these fields comes the sentence that a colleague asks you for. It follows your numbers. How would you put it? This is not
# graded.

# %%
PARTS = {"dispatch": "dispatch", "weights": "weights at the speed of a GEMV", "rest": "explained by neither"}
ADVICE = {
    "dispatch": "fewer operations would help most (fewer layers, a compiler, CUDA graphs), smaller weights less",
    "weights": "fewer bytes would help most (a smaller format, or a batch that shares them), fewer operations less",
    "rest": "a profile comes before any advice (lab 11)",
}


# %%
def say_budget(budget, step_s):
    """Return the finding of a budget in words."""
    parts = ", ".join(f"{units.format_seconds(budget[f'{key}_s'])} {name}" for key, name in PARTS.items())
    over = sum(budget[f"{key}_s"] for key in PARTS) > 1.001 * step_s
    overlap = " The parts add up to more than the step: they overlap, or one was measured too slow." if over else ""
    rest = f"{100 * budget['unexplained']:.0f} %"
    split = f"Of a decode step of {units.format_seconds(step_s)}: {parts} ({rest}).{overlap}"
    return f"{split} The largest part is {PARTS[budget['largest']]}: {ADVICE[budget['largest']]}."


# %%
if ARE_READY and ready("10.4") and ready("10.5"):
    budget = decode_budget(find_record(record.id))
    finding = say_budget(budget, stats.summarize(seconds["decode_s"]).p50)
    print(finding)

# %% [markdown]
# ## 6 · Break it: memory that was never there
#
# Here is a bandwidth benchmark with one plausible mistake: it reads an array that was allocated but never written. The operating
# system provides such memory only at the first write. Until then every page *is* the same page of zeros, and that page sits in a
# cache. On most Linux systems the array then reads as fast as a cache.

# %%
if ARE_READY:
    numpy = import_module("numpy")
    num_values = choose_by_budget(learner=2**26, ci=2**25)
    untouched, written = numpy.zeros(num_values, numpy.float32), numpy.full(num_values, 1.0, numpy.float32)
    reading = {"untouched": [], "written": []}
    for number in range(-2, choose_by_budget(learner=12, ci=8)):  # the first two rounds map the pages
        for name, array in (("untouched", untouched), ("written", written)):
            with timing.Stopwatch() as watch:
                array.max()
            if number >= 0:
                reading[name].append(array.nbytes / watch.elapsed_s)

# %%
if ARE_READY:
    for name, rates in reading.items():
        summary = stats.summarize(rates)
        said = units.format_interval(summary.p50_interval, write=lambda x: units.format_rate(x, "B/s"))
        print(f"{name:<10} {units.format_rate(summary.p50, 'B/s')} ({said}, n = {summary.n})")
    wrong = stats.compare(reading["untouched"], reading["written"], better="higher")
    print(f"untouched over written: {wrong.ratio:.2f} ({units.format_interval(wrong.interval)}), {wrong.verdict}")
    del untouched, written, array

# %% [markdown]
# With the wrong number as a ceiling the MBU of every model looks poor, and somebody will spend a week on it. The same happens
# with a working set that fits a cache (look at your sweep), or when float32 weights are counted with 2 bytes. A number over 100 %
# gives such mistakes away; one that is too *small* does not.

# %% [markdown]
# ## 7 · Summary
#
# You saw three things:
#
# 1. the work of a decode step follows from a configuration: about two FLOPs and `b` bytes for each parameter, for each token and
#    for each step;
# 2. a ceiling has a name, and bandwidth counts at the size of the working set. Where dispatch binds, cost follows layers, not
#    parameters;
# 3. MBU, MFU and the share of the binding ceiling, with an interval, say how much could still be won; the budget of the step says
#    where to look first.
#
# One thing this does **not** show: what the rest of the budget is made of. Lab 11 looks inside the step with a profiler.

# %%
if ARE_READY and ready("10.4") and ready("10.5"):
    print(finding)
    said = f"not steady, so not a finding yet: {', '.join(unsteady)}" if unsteady else "steady"
    share, low, high = (100 * found[key] for key in ("share", "low", "high"))
    print(f"My decode runs at {share:.0f} % of its binding ceiling ({found['ceiling']})", end=" ")
    print(f"({low:.0f} to {high:.0f} %, n = {len(decode)}; {said})")
    print(f"{choice.name} ({choice.source}) in {choice.dtype}, one sequence, {CONTEXT} tokens, Transformers eager")
    print(f"{machine.gpus[0].name if machine.gpus else machine.cpu.name}, {record.time[:10]}, record {record.id}")

# %% [markdown]
# ### Five questions

# %% solution="10.q1"
### BEGIN SOLUTION stub: quiz("10.q1")
quiz("10.q1", "b")
### END SOLUTION

# %% solution="10.q2"
### BEGIN SOLUTION stub: quiz("10.q2")
quiz("10.q2", 200)
### END SOLUTION

# %% solution="10.q3"
### BEGIN SOLUTION stub: quiz("10.q3")
quiz("10.q3", "d")
### END SOLUTION

# %% solution="10.q4"
### BEGIN SOLUTION stub: quiz("10.q4")
quiz("10.q4", 60)
### END SOLUTION

# %% solution="10.q5"
### BEGIN SOLUTION stub: quiz("10.q5")
quiz("10.q5", """I would ask which ceiling binds at our batch size. A decode of one sequence reads all weights for each
token, so it is bound by bandwidth, and the new card has hardly more of that: I expect little. Prefill and large batches are
bound by FLOPs and gain more. I would compute bytes and FLOPs from the config, then measure MBU on the present card.""")  # fmt: skip
### END SOLUTION

# %% [markdown]
# ## 8 · Done
#
# The counting that you wrote is `labkit.roofline`, the measuring is `labkit.ceilings`. The last cells give the memory back.

# %%
print(measure_release(globals(), "model", "narrow", "variants", "parameter"))

# %%
complete("10")
