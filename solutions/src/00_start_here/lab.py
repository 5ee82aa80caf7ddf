# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
#   labkit:
#     number: "00"
#     title: Start here
#     question: Is my machine ready, and how does this course work?
#     phase: 0
#     minutes: 45
# ---

# %% [markdown]
# # 00 · Start here
#
# **Is my machine ready, and how does this course work?**
#
# In this lab the course checks your machine, you find out which model fits it, and you measure how fast that model
# generates its first tokens. Along the way you use each tool of the course once: an exercise, a hint, a check, a
# prediction, a record, and your progress.

# %% [markdown]
# | | |
# | --- | --- |
# | **Time** | 45 minutes |
# | **Needs** | Any machine. No GPU and no network: the model (11 million parameters, it completes Python code) is part of the repository. On a GPU the same cells use a larger model. |
# | **Before** | Python. PyTorch helps but is not needed here |
# | **You will be able to** | compute the size of a model's weights in bytes; choose the largest model that fits; turn a stream of tokens into time to first token and tokens per second; read a measured number together with its interval |

# %%
from IPython.display import display

from labkit.budget import choose_by_budget
from labkit.checks import check, complete, predict, ready, reveal
from labkit.environment import format_doctor, probe_environment
from labkit.generation import run_generation
from labkit.hardware import estimate_tier, probe_machine
from labkit.memory import measure_release
from labkit.models import find_model, list_models, load_model
from labkit.plots import format_alternative, plot_calibration, plot_prediction, plot_token_stream
from labkit.progress.calibration import load_calibration
from labkit.published import format_comparison, load_claim
from labkit.quiz import quiz
from labkit.results import find_record, save_record, verify_record
from labkit.stats import compare, summarize
from labkit.units import format_bytes, format_number, format_seconds
from labkit.views import view_live_progress

# %%
machine = probe_machine()
choice = find_model("target", machine=machine)
print(f"CPU        {machine.cpu.name}, {machine.cpu.num_cores} cores")
print(f"memory     {format_bytes(machine.memory_bytes)}, {format_bytes(machine.memory_free_bytes)} free")
print(f"GPU        {machine.gpus[0].name if machine.gpus else 'none, the labs run on the CPU'}")
print(f"tier       {estimate_tier(machine)}")
print(f"model      {choice.name} ({choice.source}), {choice.dtype}")

# %% [markdown]
# ## 1 · Is the machine ready?
#
# `labkit doctor` checks Python, packages, drivers, memory, disk and network. For each it says what it expected, what it
# found, and what to do. You can get the same report in a terminal: `labkit doctor`. A line marked *not needed* is not a
# problem: without a GPU, for example, you need no driver.

# %%
print(format_doctor(probe_environment()))

# %% [markdown]
# **What the tier means.** The labs are the same everywhere; the model depends on the hardware.
#
# | tier | hardware | model |
# | --- | --- | --- |
# | `cpu` | any machine | the two small models in this repository |
# | `t4` | a 16 GB GPU without bf16 | about 1.5 billion parameters in fp16, or 7 billion in 4 bits |
# | `ampere`, `hopper` | a GPU with 24 GB or more | 7 to 8 billion parameters |
#
# Anything a CPU cannot show (a GPU kernel, for example) is *blocked* there: the lab says why, shows a run recorded on a
# GPU if there is one, and goes on. Nothing is simulated without saying so.

# %% [markdown]
# ## 2 · How many bytes is a model?
#
# A model is mostly its weights: numbers, each stored in some number of bits. A decoder reads all of them once for each
# token that it generates. So their size decides two things that this course is about: whether the model fits, and how
# fast it can be.
#
# $$\text{weight bytes} = \text{parameters} \times \frac{\text{bits per weight}}{8}$$
#
# A byte has 8 bits. bf16 and fp16 use 16 bits per weight, float32 uses 32, and "4-bit" formats use 4 (plus a little for
# their scales, which you will count in lab 20).
#
# **Worked example.** A model with 7 billion parameters in 16 bits:

# %% tags=["nbval-check-output"]
example_bytes = 7_000_000_000 * 16 / 8
print(f"{example_bytes:.0f} bytes = {example_bytes / 1e9:.1f} GB = {example_bytes / 2**30:.1f} GiB")

# %% [markdown] exercise="00.1" title="Bytes of the weights" minutes=5 difficulty=1 version=1
# ### Exercise 00.1 · Bytes of the weights
#
# *5 minutes · difficulty 1 of 5 · why it matters: this one multiplication tells you, before any download, whether a
# model can run.*
#
# Write the function. `bits` is the number of bits per weight. It can be any positive number: 4 or 8 as well as 16.
#
# <details><summary>Hint 1</summary>
#
# How many bytes does one 16-bit weight take? And one 4-bit weight?
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# The total number of bits is `num_parameters * bits`. Eight bits make one byte.
#
# </details>
#
# If you are really stuck, type `use_reference("00.1")` in a new cell (import it from `labkit.checks`). It loads the
# solution, marks the exercise as *viewed* (not as passed) and lets you go on.


# %% solution="00.1"
def weight_bytes(num_parameters, *, bits):
    """Return the size of the weights in bytes, for any number of bits per weight."""
    ### BEGIN SOLUTION
    return num_parameters * bits // 8
    ### END SOLUTION


# %%
check("00.1", weight_bytes)

# %% [markdown]
# **What you should see.** One line: *passed*; or *failed*, with a sentence that names the mistake; or *not attempted*,
# if you have not changed the stub yet. Run the check as often as you like: every attempt is recorded, and none counts
# against you.

# %% [markdown]
# ## 3 · Which model fits?
#
# The weights are not everything: the cache of past tokens, the activations and the program itself need memory too. A
# common rule of thumb keeps a fraction of the memory free, the *reserve*:
#
# $$\text{weight bytes} \le (1 - \text{reserve}) \times \text{memory bytes}$$
#
# **Worked example.** How much memory a 16 GB GPU leaves for weights with a reserve of 20 %, and how much two models
# need:

# %% tags=["nbval-check-output"]
budget_bytes = (1 - 0.2) * 16e9
for name, num_parameters, bits in (("7B in 16 bits", 7e9, 16), ("7B in 4 bits", 7e9, 4)):
    need_bytes = num_parameters * bits / 8
    print(f"{name}: needs {need_bytes / 1e9:.1f} GB of {budget_bytes / 1e9:.1f} GB, fits: {need_bytes <= budget_bytes}")

# %% [markdown] exercise="00.2" title="The largest that fits" minutes=8 difficulty=2 version=1
# ### Exercise 00.2 · The largest that fits
#
# *8 minutes · difficulty 2 of 5 · why it matters: the course makes this choice for you in every lab; now you know how.*
#
# `candidates` maps each model's name to its number of parameters. Return the name of the largest model whose weights
# fit, or `None` if none does. A model that fills the available memory exactly still fits.
#
# <details><summary>Hint 1</summary>
#
# First keep only the models that fit. Then choose by number of parameters, not by order in the dictionary.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `max(..., key=candidates.get, default=None)` returns `None` for an empty list.
#
# </details>


# %% solution="00.2"
def largest_that_fits(candidates, *, memory_bytes, bits, reserve=0.2):
    """Return the name of the largest model whose weights fit in (1 - reserve) of the memory, or None."""
    ### BEGIN SOLUTION
    budget_bytes = (1 - reserve) * memory_bytes
    fitting = [name for name, num in candidates.items() if num * bits / 8 <= budget_bytes]
    return max(fitting, key=candidates.get, default=None)
    ### END SOLUTION


# %%
check("00.2", largest_that_fits)

# %% [markdown]
# Here is what the course knows about the models of all tiers, computed from their configurations before anything is
# downloaded. In a terminal: `labkit models`.

# %%
for row in list_models(machine):
    print(row)

# %% [markdown]
# ## 4 · The first words, and how fast they come
#
# A model generates one token after another. (A token is a piece of text: a word, part of a word, a space.) Two numbers
# describe what a user experiences:
#
# - **TTFT**, time to first token: from the start of the request to the arrival of the first token. During this time the
#   model reads the whole prompt.
# - **Decode speed**: the number of tokens *after* the first, divided by the time from the first token to the last. For
#   $n$ tokens that arrive at $c_1 \dots c_n$ after a start at $t_0$:
#
# $$\text{TTFT} = c_1 - t_0 \qquad \text{decode speed} = \frac{n - 1}{c_n - c_1}$$
#
# There are $n - 1$ gaps between $n$ tokens, because no token comes before the first. **Worked example**, arrival times
# in seconds:

# %% tags=["nbval-check-output"]
example_start_s, example_arrivals_s = 2.0, [2.5, 2.6, 2.7, 2.8]
print(f"TTFT {example_arrivals_s[0] - example_start_s:.1f} s")
print(f"decode {3 / (example_arrivals_s[-1] - example_arrivals_s[0]):.0f} tok/s: 3 gaps in 0.3 s")

# %% [markdown]
# ### Predict before you measure
#
# How many tokens per second will your machine decode with this model, one request at a time? Replace `None` with your
# guess. Guesses are never graded. Yours is stored before the measurement and cannot be changed afterwards, because that
# is how you learn to estimate. A figure will later compare your guesses from all labs with what was measured.

# %% solution="00.p1"
### BEGIN SOLUTION stub: predict("00.p1", None, unit="tok/s")
predict("00.p1", 100, unit="tok/s")
### END SOLUTION

# %% [markdown] exercise="00.3" title="Read the stream" minutes=10 difficulty=2 version=1
# ### Exercise 00.3 · Read the stream
#
# *10 minutes · difficulty 2 of 5 · why it matters: tools disagree about what these two numbers mean; from now on you
# know what yours mean.*
#
# `token_times_s` is the list of arrival times. Return the pair `(ttft_s, tok_per_s)`. With no tokens, both are `None`.
# With a single token there is a TTFT but no decode speed, so the second is `None`.
#
# <details><summary>Hint 1</summary>
#
# How many gaps are there between 4 tokens? When does the first gap begin?
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Handle `len(token_times_s) == 0` and `== 1` first, then write the two formulas.
#
# </details>


# %% solution="00.3"
def read_stream(start_s, token_times_s):
    """Return (time to first token in s, decode speed in tok/s), with None for what the stream cannot tell."""
    ### BEGIN SOLUTION
    if len(token_times_s) == 0:
        return None, None
    ttft_s = token_times_s[0] - start_s
    if len(token_times_s) == 1:
        return ttft_s, None
    return ttft_s, (len(token_times_s) - 1) / (token_times_s[-1] - token_times_s[0])
    ### END SOLUTION


# %%
check("00.3", read_stream)

# %% [markdown]
# Now the real model. Like every cell that needs one of your answers, the cell below waits until exercise 00.3 is done.
# It loads the model, and the counter follows the stream.

# %%
PROMPT = "def read_lines(path):"
if ready("00.3"):
    model, tokenizer = load_model(choice)
    counter = display("waiting for the first token", display_id=True)
    cold = run_generation(model, tokenizer, PROMPT, num_tokens=64, show=counter.update)
    ttft_s, cold_tok_per_s = read_stream(cold.start_s, cold.token_times_s)
    print(f"TTFT {format_seconds(ttft_s)}, decode {format_number(cold_tok_per_s)} tok/s (one run: no interval)")

# %% [markdown]
# ### Measure
#
# One run is an anecdote. The cell below repeats it and also runs a second prompt, with the same output length but
# different words. The two prompts take turns, so that anything else the machine is doing affects both alike. The first,
# cold run is kept separate.
#
# The second prompt is a **control**, something that should *not* change the result: the arithmetic for a token does not
# depend on what the token means.

# %%
OTHER_PROMPT = "class Matrix:"
if ready("00.3"):
    runs = {PROMPT: [], OTHER_PROMPT: []}
    for _ in range(choose_by_budget(learner=12, ci=6)):
        for prompt in runs:
            runs[prompt].append(run_generation(model, tokenizer, prompt, num_tokens=64))
    speeds = {p: [read_stream(r.start_s, r.token_times_s)[1] for r in runs[p]] for p in runs}
    ttfts = [read_stream(r.start_s, r.token_times_s)[0] for r in runs[PROMPT]]
    record = save_record(
        "00", "decode", model=choice,
        settings={"num_tokens": 64, "prompt": PROMPT, "control": OTHER_PROMPT},
        samples={"decode_tok_per_s": speeds[PROMPT], "control_tok_per_s": speeds[OTHER_PROMPT],
                 "ttft_s": ttfts},
    )  # fmt: skip
    print(f"saved as {record.id}")

# %%
if ready("00.3"):
    summary = summarize(record.samples["decode_tok_per_s"])
    interval = summary.p50_interval
    predicted = reveal("00.p1", summary.p50, unit="tok/s")
    title = f"{choice.name} decodes {summary.p50:.3g} tok/s ({interval.low:.3g} to {interval.high:.3g})"
    figure = plot_prediction(speeds[PROMPT], predicted=predicted, unit="tok/s", title=title)
    figure.show()
    print(format_alternative(figure))

# %%
if ready("00.3"):
    times = [[t - run.start_s for t in run.token_times_s] for run in runs[PROMPT]]
    first, gap = format_seconds(summarize(ttfts).p50), format_seconds(1 / summary.p50)
    figure = plot_token_stream(times, title=f"The first token after {first}, then one about every {gap}")
    figure.show()
    print(format_alternative(figure))

# %% [markdown]
# **The control.** Did the other prompt change the speed? `compare` looks at the pairs and answers *faster*, *slower* or
# *cannot tell*. *Cannot tell* is a valid answer, and the one we expect here: the interval of the ratio contains 1. (One
# time in twenty the interval misses the true value by chance. Lab 01 is about that.)

# %%
if ready("00.3"):
    verdict = compare(speeds[OTHER_PROMPT], speeds[PROMPT], better="higher")
    print(f"other prompt over first prompt: ratio {verdict.ratio:.3f}, ", end="")
    print(f"95 % interval {verdict.interval.low:.3f} to {verdict.interval.high:.3f}: {verdict.verdict}")

# %%
print(format_comparison(load_claim("gpt-fast-bf16-decode"), lab="00", name="decode", key="decode_tok_per_s",
                        record=record if ready("00.3") else None))  # fmt: skip

# %% [markdown]
# The three rows are **not comparable** as they stand: the models and the machines differ. They are shown together to
# remind you what must come with a number: model, hardware, batch, lengths.

# %% [markdown]
# ## 5 · A number and its record
#
# Your measurement was also saved: one line in `data/runs/results.jsonl` with the machine, the versions, the thread
# plan, the command, **every sample**, and the summary. A summary alone cannot be checked; samples can.
# `labkit results verify` recomputes each summary from its samples.

# %%
if ready("00.3"):
    stored = find_record(record.id)
    for key, values in stored.samples.items():
        print(f"{key}: {len(values)} samples, the first three {[round(v, 3) for v in values[:3]]}")
    print("problems found when the record was verified:", verify_record(stored) or "none")

# %% [markdown] exercise="00.4" title="Read your own record" minutes=10 difficulty=2 version=1
# ### Exercise 00.4 · Read your own record
#
# *10 minutes · difficulty 2 of 5 · why it matters: a speed without its interval cannot be compared with anything.*
#
# Fill in the dictionary from your record: its id, the median (p50) of `decode_tok_per_s`, and the two ends of the 95 %
# interval of the median. `summarize(samples)` returns an object with `p50` and `p50_interval`, which has `low` and
# `high`. The check recomputes all three numbers from your stored samples. Give at least two digits.
#
# <details><summary>Hint 1</summary>
#
# `stored.id` and `stored.samples["decode_tok_per_s"]` are all you need.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `mine = summarize(stored.samples["decode_tok_per_s"])`, then look at `mine.p50`, `mine.p50_interval.low` and
# `mine.p50_interval.high`.
#
# </details>

# %% solution="00.4"
### BEGIN SOLUTION stub: answer = None
mine = summarize(stored.samples["decode_tok_per_s"])
answer = {
    "record": stored.id,
    "p50_tok_per_s": mine.p50,
    "low_tok_per_s": mine.p50_interval.low,
    "high_tok_per_s": mine.p50_interval.high,
}
### END SOLUTION

# %%
check("00.4", answer)

# %% [markdown]
# ## 6 · Break it
#
# Here is a number that looks right and is wrong. The benchmark below divides the number of tokens by the whole time
# since the start of the *cold* run. It counts one gap too many, counts the reading of the prompt as decoding, and
# includes everything that happens only in the first call.

# %%
if ready("00.3"):
    wrong = len(cold.token_times_s) / (cold.token_times_s[-1] - cold.start_s)
    print(f"wrong  {wrong:.3g} tok/s   right  {summary.p50:.3g} tok/s   wrong over right {wrong / summary.p50:.2f}")

# %% [markdown]
# Nothing in the wrong number gives it away: it has the right unit and a believable size. Only the definition, and a
# separate warm-up, show the mistake. The size of the error depends on the machine and on the lengths; with one output
# token there would be nothing but error.

# %% [markdown]
# ## 7 · Summary
#
# You saw three things:
#
# 1. the size of the weights follows from two numbers, and decides what fits;
# 2. a stream of tokens gives TTFT and decode speed, which are different things;
# 3. a measured number comes with its samples and its interval, and for a control that changes nothing the answer is
#    *cannot tell*.
#
# One thing this does **not** show: how the machine behaves with many users at once. One request at a time is the
# easiest case; phase 3 covers the others.

# %%
if ready("00.4"):
    spread = interval.high - interval.low
    print(f"Your number: {format_number(summary.p50, spread=spread)} tok/s ({interval.low:.4g} to {interval.high:.4g}),")
    print(f"{choice.name} in {choice.dtype} on {machine.cpu.name}, {record.time[:10]}, record {record.id}")

# %% [markdown]
# ### Five questions
#
# The kind of questions an interviewer asks. `quiz("00.q1")` shows a question, `quiz("00.q1", answer)` grades your
# answer.

# %% solution="00.q1"
### BEGIN SOLUTION stub: quiz("00.q1")
quiz("00.q1", "b")
### END SOLUTION

# %% solution="00.q2"
### BEGIN SOLUTION stub: quiz("00.q2")
quiz("00.q2", 16)
### END SOLUTION

# %% solution="00.q3"
### BEGIN SOLUTION stub: quiz("00.q3")
quiz("00.q3", "c")
### END SOLUTION

# %% solution="00.q4"
### BEGIN SOLUTION stub: quiz("00.q4")
quiz("00.q4", 40)
### END SOLUTION

# %% solution="00.q5"
### BEGIN SOLUTION stub: quiz("00.q5")
quiz("00.q5", """A summary cannot be checked or compared again, but samples can: from them anyone can recompute the median
and its interval, see outliers and drift, and answer a new question without another measurement.""")
### END SOLUTION

# %% [markdown]
# ## 8 · How well do I predict?
#
# Every prediction from every lab is stored with the measured value. The figure shows the ratio of the two on a log
# axis, where twice as high and half as high are equally far from the line. Predictions that you skipped are not
# counted. One point does not say much yet. Come back after each lab: the spread of your guesses should shrink. In a
# terminal, `labkit progress` says it in one line.

# %%
figure = plot_calibration(load_calibration())
figure.show()
print(format_alternative(figure))

# %% [markdown]
# ## 9 · Your progress
#
# The view below follows your work while this notebook's kernel runs, in other notebooks too. Click a lab, or press
# Enter on it, to see its exercises. To put the view beside your notebook, right-click it and choose *Create New View
# for Cell Output*. Your progress is stored only on your machine; `labkit progress` shows it in a terminal, and
# `labkit quiz` repeats the questions you got wrong.

# %%
view_live_progress()

# %% [markdown]
# ## 10 · Done
#
# The cell below frees the model's memory and measures how much comes back. The *resident* part of a tensor is what is
# really in memory: weights that keep the number format of their file are mapped from it and loaded as they are read.
# The last cell of each lab looks at your checks, lists what is still open, and links to the next lab.

# %%
print(measure_release(globals(), "model", "tokenizer"))

# %%
complete("00")
