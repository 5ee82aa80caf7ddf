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
# In this lab you let the course look at your machine, find out which model fits it, and measure how fast that model
# makes its first words. On the way you meet each tool once: an exercise, a hint, a check, a prediction, a record, and your
# progress.

# %% [markdown]
# | | |
# | --- | --- |
# | **Time** | 45 minutes |
# | **Needs** | Any machine. No GPU, no network: the model (11 million parameters, it completes Python code) is part of the repository. With a GPU the same cells use a larger one. |
# | **Before** | Python; PyTorch helps but is not needed here |
# | **You will be able to** | compute the bytes of a model's weights; choose the largest model that fits; turn a stream of tokens into time to first token and tokens per second; read a measured number together with its interval |

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
print(f"processor  {machine.cpu.name}, {machine.cpu.num_cores} cores")
print(f"memory     {format_bytes(machine.memory_bytes)}, {format_bytes(machine.memory_free_bytes)} free")
print(f"GPU        {machine.gpus[0].name if machine.gpus else 'none, the labs run on the processor'}")
print(f"tier       {estimate_tier(machine)}")
print(f"model      {choice.name} ({choice.source}), {choice.dtype}")

# %% [markdown]
# ## 1 · Is the machine ready?
#
# `labkit doctor` looks at Python, packages, drivers, memory, disk and network, and says for each thing what was expected, what
# was seen, and what to do. The same report is there in a terminal: `labkit doctor`. A line marked *not needed* is no fault: a
# course without a GPU needs no driver.

# %%
print(format_doctor(probe_environment()))

# %% [markdown]
# **What the tier means.** The labs are the same everywhere; the model changes with the hardware.
#
# | tier | hardware | model |
# | --- | --- | --- |
# | `cpu` | any machine | the two small models of this repository |
# | `t4` | a GPU of 16 GB, no bf16 | about 1.5 billion parameters in fp16, or 7 billion in 4 bits |
# | `ampere`, `hopper` | a GPU of 24 GB and more | 7 to 8 billion parameters |
#
# What a processor cannot show (a GPU kernel, say) is *blocked* there: the lab says why, shows a run recorded on a GPU if there is
# one, and goes on. Nothing is simulated in secret.

# %% [markdown]
# ## 2 · How many bytes is a model?
#
# A model is mostly its weights: numbers, each stored in some number of bits. To make one token, a decoder reads all of them
# once. So their size decides two things that this course is about: does the model fit, and how fast can it be.
#
# $$\text{weight bytes} = \text{parameters} \times \frac{\text{bits per weight}}{8}$$
#
# A byte has 8 bits. bf16 and fp16 use 16 bits per weight, float32 uses 32, "4-bit" formats use 4 (and a little more for
# their scales, which you will count in lab 20).
#
# **Worked example.** A model of 7 billion parameters in 16 bits:

# %% tags=["nbval-check-output"]
example_bytes = 7_000_000_000 * 16 / 8
print(f"{example_bytes:.0f} bytes = {example_bytes / 1e9:.1f} GB = {example_bytes / 2**30:.1f} GiB")

# %% [markdown] exercise="00.1" title="Bytes of the weights" minutes=5 difficulty=1 version=1
# ### Exercise 00.1 · Bytes of the weights
#
# *5 minutes · difficulty 1 of 5 · why it matters: this one multiplication tells you, before any download, whether a model can run.*
#
# Write the function. `bits` is the number of bits per weight and may be any positive number, 4 or 8 as well as 16.
#
# <details><summary>Hint 1</summary>
#
# How many bytes does one weight of 16 bits take? And one of 4 bits?
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# All bits together are `num_parameters * bits`. Eight of them make one byte.
#
# </details>
#
# If you are stuck for good, type `use_reference("00.1")` in a new cell (import it from `labkit.checks`). It loads the solution, marks
# the exercise as *viewed* (not as passed) and lets you go on.


# %% solution="00.1"
def weight_bytes(num_parameters, *, bits):
    """Return the bytes that the weights take, for any number of bits per weight."""
    ### BEGIN SOLUTION
    return num_parameters * bits // 8
    ### END SOLUTION


# %%
check("00.1", weight_bytes)

# %% [markdown]
# **What you should see.** One line. *Passed*, or *failed* with a sentence that names the mistake, or *not attempted* while the stub
# is untouched. Run the check as often as you like: every attempt is kept, none is held against you.

# %% [markdown]
# ## 3 · Which model fits?
#
# Weights are not all: the cache of past tokens, the activations and the program itself need room too. A usual first rule keeps a
# share of the memory free, the *reserve*:
#
# $$\text{weight bytes} \le (1 - \text{reserve}) \times \text{memory bytes}$$
#
# **Worked example.** What a GPU of 16 GB leaves for weights with a reserve of 20 %, and what two models need:

# %% tags=["nbval-check-output"]
room_bytes = (1 - 0.2) * 16e9
for name, num_parameters, bits in (("7B in 16 bits", 7e9, 16), ("7B in 4 bits", 7e9, 4)):
    need_bytes = num_parameters * bits / 8
    print(f"{name}: needs {need_bytes / 1e9:.1f} GB of {room_bytes / 1e9:.1f} GB, fits: {need_bytes <= room_bytes}")

# %% [markdown] exercise="00.2" title="The largest that fits" minutes=8 difficulty=2 version=1
# ### Exercise 00.2 · The largest that fits
#
# *8 minutes · difficulty 2 of 5 · why it matters: the course makes this choice for you in each lab; now you know how.*
#
# `candidates` maps a model's name to its number of parameters. Return the name of the largest one whose weights fit, and `None`
# when none does. Exactly full still fits.
#
# <details><summary>Hint 1</summary>
#
# First keep only those that fit. Then choose by the number of parameters, not by the order in the dictionary.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `max(..., key=candidates.get, default=None)` answers `None` for an empty list.
#
# </details>


# %% solution="00.2"
def largest_that_fits(candidates, *, memory_bytes, bits, reserve=0.2):
    """Return the name of the largest model whose weights fit into (1 - reserve) of the memory, or None."""
    ### BEGIN SOLUTION
    room_bytes = (1 - reserve) * memory_bytes
    fitting = [name for name, num in candidates.items() if num * bits / 8 <= room_bytes]
    return max(fitting, key=candidates.get, default=None)
    ### END SOLUTION


# %%
check("00.2", largest_that_fits)

# %% [markdown]
# This is what the course knows about the models of all tiers, computed from their configurations before anything is downloaded.
# In a terminal: `labkit models`.

# %%
for row in list_models(machine):
    print(row)

# %% [markdown]
# ## 4 · The first words, and how fast they come
#
# A model makes one token after another. (A token is a piece of text: a word, a part of a word, a space.) Two numbers describe
# what a user feels:
#
# - **TTFT**, time to first token: first token's arrival minus the request's start. In it the model reads the whole prompt.
# - **Decode speed**: the tokens *after* the first, over the time from the first token to the last. With $n$ tokens arriving at
#   $c_1 \dots c_n$ after a start at $t_0$:
#
# $$\text{TTFT} = c_1 - t_0 \qquad \text{decode speed} = \frac{n - 1}{c_n - c_1}$$
#
# There are $n - 1$ gaps between $n$ tokens: the first token has no token before it. **Worked example**, arrivals in seconds:

# %% tags=["nbval-check-output"]
example_start_s, example_arrivals_s = 2.0, [2.5, 2.6, 2.7, 2.8]
print(f"TTFT {example_arrivals_s[0] - example_start_s:.1f} s")
print(f"decode {3 / (example_arrivals_s[-1] - example_arrivals_s[0]):.0f} tok/s: 3 gaps in 0.3 s")

# %% [markdown]
# ### Predict before you measure
#
# How many tokens per second will your machine decode with this model, one request at a time? Replace `None` by your guess. A
# guess is never graded. It is stored before the measurement and cannot be changed after it, because that is how you learn to
# estimate: later a figure shows your guesses of all labs against what came out.

# %% solution="00.p1"
### BEGIN SOLUTION stub: predict("00.p1", None, unit="tok/s")
predict("00.p1", 100, unit="tok/s")
### END SOLUTION

# %% [markdown] exercise="00.3" title="Read the stream" minutes=10 difficulty=2 version=1
# ### Exercise 00.3 · Read the stream
#
# *10 minutes · difficulty 2 of 5 · why it matters: tools disagree about these two words; from now on you know what yours mean.*
#
# `token_times_s` is the list of arrivals. Return the pair `(ttft_s, tok_per_s)`. Without any token both are `None`; with a single
# token there is a TTFT but no decode speed, so the second is `None`.
#
# <details><summary>Hint 1</summary>
#
# How many gaps are there between 4 tokens? Which instant does the first gap begin at?
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Deal with `len(token_times_s) == 0` and `== 1` first, then write the two formulas.
#
# </details>


# %% solution="00.3"
def read_stream(start_s, token_times_s):
    """Return (time to first token in s, decode speed in tok/s); None for what the stream cannot tell."""
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
# Now the real model. The cell below waits until exercise 00.3 is done, as each cell does that needs an answer of yours. It loads
# the model, and the counter follows the stream.

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
# One run is an anecdote. The cell below repeats it, and beside it runs a second prompt: same length of output, other words. The two
# take turns, so that whatever else the machine does hits both alike. The first, cold run is kept apart.
#
# The second prompt is a **control**, something that should *not* help: the arithmetic of a token does not depend on what it means.

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
    figure = plot_token_stream(times, title=f"The first token comes after {first}, each next one about {gap} later")
    figure.show()
    print(format_alternative(figure))

# %% [markdown]
# **The control.** Did the other prompt change the speed? `compare` looks at the pairs and answers *faster*, *slower* or *cannot
# tell*. The last one is a right answer, and here the expected one: the interval of the ratio holds 1. (One time in twenty the
# interval misses by chance. Lab 01 is about that.)

# %%
if ready("00.3"):
    verdict = compare(speeds[OTHER_PROMPT], speeds[PROMPT], better="higher")
    print(f"other prompt over first prompt: ratio {verdict.ratio:.3f}, ", end="")
    print(f"95 % interval {verdict.interval.low:.3f} to {verdict.interval.high:.3f}: {verdict.verdict}")

# %%
print(format_comparison(load_claim("gpt-fast-bf16-decode"), lab="00", name="decode", key="decode_tok_per_s",
                        record=record if ready("00.3") else None))  # fmt: skip

# %% [markdown]
# The three rows are **not comparable** as they stand: other models, other machines. They stand together so that you keep asking what
# belongs to a number: model, hardware, batch, lengths.

# %% [markdown]
# ## 5 · A number and its record
#
# What was measured was also written down: one line in `data/runs/results.jsonl` with the machine, the versions, the thread plan, the
# command, **every sample**, and the summary. A summary alone cannot be checked; samples can. `labkit results verify` recomputes each
# summary from them.

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
# Fill the dictionary from your record: its id, the median (p50) of `decode_tok_per_s`, and the two ends of the median's 95 %
# interval. `summarize(samples)` gives an object with `p50` and `p50_interval`, which has `low` and `high`. The check recomputes all
# three from your stored samples; give them with two digits or more.
#
# <details><summary>Hint 1</summary>
#
# `stored.id` and `stored.samples["decode_tok_per_s"]` are all the input that you need.
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
# Here is a number that looks right and is wrong. The benchmark below divides all tokens by all the time since the request of the
# *cold* run: it counts a gap that is not there, takes the reading of the prompt into the decode, and lets the first call pay for
# everything that happens only once.

# %%
if ready("00.3"):
    wrong = len(cold.token_times_s) / (cold.token_times_s[-1] - cold.start_s)
    print(f"wrong  {wrong:.3g} tok/s   right  {summary.p50:.3g} tok/s   wrong over right {wrong / summary.p50:.2f}")

# %% [markdown]
# Nothing in the wrong number gives it away: it has the right unit and a believable size. Only the definition, and a warm-up that is kept
# apart, tell. How large the difference is depends on the machine and on the lengths; with one output token it would be everything.

# %% [markdown]
# ## 7 · Summary
#
# You saw three things:
#
# 1. the bytes of the weights follow from two numbers, and decide what fits;
# 2. a stream of tokens gives TTFT and decode speed, and they are different things;
# 3. a measured number comes with its samples and its interval, and a control that changes nothing says *cannot tell*.
#
# One thing this does **not** show: how the machine behaves with many users at once. One request at a time is the easiest case; phase 3 is
# about the others.

# %%
if ready("00.4"):
    spread = interval.high - interval.low
    print(f"Your number: {format_number(summary.p50, spread=spread)} tok/s ({interval.low:.4g} to {interval.high:.4g}),")
    print(f"{choice.name} in {choice.dtype} on {machine.cpu.name}, {record.time[:10]}, record {record.id}")

# %% [markdown]
# ### Five questions
#
# As an interviewer asks them. `quiz("00.q1")` shows a question, `quiz("00.q1", answer)` grades it.

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
quiz("00.q5", """A summary cannot be checked or compared again, samples can: from them anyone recomputes the median and
its interval, sees outliers and drift, and tests a new question without measuring once more.""")
### END SOLUTION

# %% [markdown]
# ## 8 · How well do I predict?
#
# Every prediction of every lab is kept beside what was measured. The figure shows the ratio of the two on a log axis, where twice
# too high and half are equally far from the line; what you skipped is not counted. One point says little now. Come back after each
# lab: the spread of your guesses should get smaller. In a terminal, `labkit progress` says it in one line.

# %%
figure = plot_calibration(load_calibration())
figure.show()
print(format_alternative(figure))

# %% [markdown]
# ## 9 · Your progress
#
# The view below follows your work while this notebook's kernel runs, also in other notebooks. Click on a lab, or press Enter on it, to
# see its exercises. A right click on it, then *Create New View for Cell Output*, puts it beside your notebook. What you did is kept
# on your machine only; `labkit progress` shows it in a terminal, and `labkit quiz` asks again what you got wrong.

# %%
view_live_progress()

# %% [markdown]
# ## 10 · Done
#
# The cell below gives the model's memory back, and measures how much that is. Of a tensor's size, the
# *resident* part is what really lies in memory: weights that keep the number format of their file are mapped from it, and come in as
# they are read. The last cell of each lab looks at your checks, names what is still open, and leads to the next lab.

# %%
print(measure_release(globals(), "model", "tokenizer"))

# %%
complete("00")
