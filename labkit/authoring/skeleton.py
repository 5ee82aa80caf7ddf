"""What does a new lab start from? A folder that builds and runs, and whose guards say what is still missing."""

import json
import re
from pathlib import Path

from labkit.errors import LabkitError

__all__ = ["make_skeleton"]

_LAB = '''\
# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
#   labkit:
#     number: "{number}"
#     title: {title}
#     question: "TODO: the question that this lab answers?"
#     phase: {phase}
#     minutes: 60
# ---

# %% [markdown]
# # {number} · {title}
#
# **TODO: the question that this lab answers?**
#
# TODO: what you will see, one striking result, shown before it is explained.

# %% [markdown]
# | | |
# | --- | --- |
# | **Time** | 60 minutes (TODO: what a newcomer needs, reading included) |
# | **Needs** | Any machine. TODO |
# | **Before** | TODO: the labs and terms that this one builds on |
# | **You will be able to** | TODO |

# %%
from labkit.checks import check, complete, predict, ready, reveal
from labkit.quiz import quiz

# %% [markdown]
# ## 1 · The map
#
# TODO: one picture of what the lab is about, with the symbols of its formulas and a table of them; the functions that
# the learner will write are marked in it.

# %% [markdown]
# ### Predict before you measure
#
# TODO: what is predicted, and from what one can guess it.

# %% solution="{number}.p1"
### BEGIN SOLUTION stub: predict("{number}.p1", None, unit="s")
predict("{number}.p1", 1, unit="s")
### END SOLUTION

# %% [markdown]
# ## 2 · TODO: one idea
#
# TODO: the idea in 150 words, one formula with units, a worked example with distinct sizes.

# %% [markdown] exercise="{number}.1" title="TODO" minutes=10 difficulty=2 version=1
# ### Exercise {number}.1 · TODO
#
# *10 minutes · difficulty 2 of 5 · why it matters: TODO.*
#
# Return twice `x`. (TODO: the task; the form of the answer, names, units.)
#
# <details><summary>Hint 1</summary>
#
# TODO: the idea.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# TODO: the step.
#
# </details>


# %% solution="{number}.1"
def double(x):
    """Return twice x. (TODO)"""
    ### BEGIN SOLUTION
    return 2 * x
    ### END SOLUTION


# %%
check("{number}.1", double)

# %% [markdown]
# **What you should see**: TODO.

# %% [markdown]
# ## 3 · Measure
#
# TODO: measure, save a record, plot the estimate against the measurement.

# %%
if ready("{number}.1"):
    reveal("{number}.p1", double(0.5), unit="s")  # TODO: a measurement

# %% [markdown]
# ## 4 · Break it
#
# TODO: one deliberate mistake that gives a believable wrong number.

# %% [markdown]
# ## 5 · Summary
#
# TODO: what you saw, computed from your own record; one thing that this does not show.
#
# ### Five questions

{questions}
# %% [markdown]
# ## 6 · Done

# %%
complete("{number}")
'''
_QUESTION = """\
# %% solution="{number}.q{k}"
### BEGIN SOLUTION stub: quiz("{number}.q{k}")
quiz("{number}.q{k}", "a")
### END SOLUTION
"""
_CHECKS = '''\
"""The checks of lab {number}: TODO."""

from labkit.checks.cases import Case, expect_cases, expect_function, expect_no_generator, passed
from labkit.views import Outcome

# Worked by hand.
_DOUBLES = [Case(6, (3,), why="twice 3 is 6."), Case(0, (0,), why="twice nothing is nothing.")]  # TODO


def check_1(double) -> Outcome:
    """TODO: what is asked for, and what the independent oracle is."""
    expect_function(double, "double")
    expect_cases(double, _DOUBLES)
    expect_no_generator(double)
    return passed("TODO: what the learner now has.")
'''
_MISTAKES = """\
# Known wrong answers, one sentence each; labkit/checks/mistakes.py explains the form. TODO: three or more an exercise.

[{number}.1]
"""
_LEVELS = ("beginner", "beginner", "intermediate", "intermediate", "advanced")


def make_skeleton(root: Path, number: str, topic: str) -> Path:
    """Write solutions/src/NN_topic/ with lab.py, checks.py, mistakes.txt and quiz.json; return the folder.

    Raises LabkitError for a number or topic of another form, and for a number that a lab has already.
    """
    if not re.fullmatch(r"\d\d", number) or not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", topic):
        raise LabkitError(
            f"{number!r} and {topic!r} do not make the name of a lab.",
            next_step="give two digits and a topic in lower case: make new LAB=99 TOPIC=flash_attention.",
        )
    sources = root / "solutions" / "src"
    if taken := sorted(sources.glob(f"{number}_*/")):
        raise LabkitError(f"lab {number} is there: {taken[0].relative_to(root)}.", next_step="choose another number.")
    folder = sources / f"{number}_{topic}"
    folder.mkdir(parents=True)
    questions = "\n".join(_QUESTION.format(number=number, k=k) for k in range(1, 6))
    title = topic.replace("_", " ").capitalize()
    phase = min(int(number[0]), 4)
    (folder / "lab.py").write_text(
        _LAB.format(number=number, title=title, phase=phase, questions=questions), encoding="utf-8"
    )
    (folder / "checks.py").write_text(_CHECKS.format(number=number), encoding="utf-8")
    (folder / "mistakes.txt").write_text(_MISTAKES.format(number=number), encoding="utf-8")
    bank = {"questions": [_make_question(number, k, level) for k, level in enumerate(_LEVELS, start=1)]}
    (folder / "quiz.json").write_text(json.dumps(bank, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return folder


def _make_question(number: str, k: int, level: str) -> dict:
    return {
        "id": f"{number}.q{k}",
        "level": level,
        "kind": "choice",
        "topic": "TODO",
        "question": "TODO?",
        "options": {"a": "TODO: right", "b": "TODO: wrong", "c": "TODO: wrong"},
        "answer": "a",
        "right": "TODO: why.",
        "hint": "TODO: where to look.",
        "wrong": {"b": "TODO: what is wrong with it.", "c": "TODO: what is wrong with it."},
    }
