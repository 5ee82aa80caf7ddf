"""The checks of lab 33: a request's latencies, a Poisson schedule, what omission hid, the knee, the tuning's verdict.

The lab saves records (lab "33"): "load" (capacity, clients, rates), "omission", "tools", and "tuning", whose
`settings["tuning_rounds"]` the last check judges again.
"""

from labkit.checks._arrivals import expect_poisson
from labkit.checks._deltas import READ_CASES, READ_MISTAKES, draw_read_cases
from labkit.checks._goodput import KNEE_CASES, KNEE_MISTAKES, draw_knee_cases
from labkit.checks._omission import RUN_CASES, RUN_MISTAKES
from labkit.checks._tuning import MADE_ROUNDS, draw_rounds, expect_tuning
from labkit.checks.cases import expect_cases, expect_function, fail, passed
from labkit.checks.learner import LearnerFunction, shorten
from labkit.results import load_records
from labkit.views import Outcome

__all__ = ["check_1", "check_2", "check_3", "check_4", "check_5"]


def check_1(read_request) -> Outcome:
    """One request from its log of events; the random logs are built from their gaps."""
    expect_function(read_request, "read_request")
    expect_cases(_Rows(read_request.function, size=4), [*READ_CASES, *draw_read_cases(30)], READ_MISTAKES)
    return passed("a role is no token, a reasoning is one, and the user's wait begins when the request was due.")


def check_2(draw_schedule) -> Outcome:
    """A Poisson schedule, by its statistics over many seeds; whatever way it was drawn."""
    expect_function(draw_schedule, "draw_schedule")
    seen = expect_poisson(draw_schedule)
    return passed(
        "absolute instants, seeded, neither rescaled nor cut to a number: users who do not wait for you.", seen
    )


def check_3(judge_run) -> Outcome:
    """What the run hid, and whether its client can be believed."""
    expect_function(judge_run, "judge_run")
    function = _Rows(judge_run.function, size=4)
    for case in RUN_CASES:
        got = function(*case.args)
        if isinstance(got, tuple) and not (isinstance(got[3], str) and got[3] in ("valid", "INVALID")):
            fail(f"the verdict is {shorten(repr(got[3]), 40)}: write valid or INVALID.")
    expect_cases(function, RUN_CASES, RUN_MISTAKES)
    return passed("the stall is back in the numbers, and a client that was late says so itself.")


def check_4(find_knee) -> Outcome:
    """Goodput, good fraction and the knee."""
    expect_function(find_knee, "find_knee")
    expect_cases(_Goods(find_knee.function), [*KNEE_CASES, *draw_knee_cases(10)], KNEE_MISTAKES)
    return passed("a promise is kept per request, failed ones included: that is what can be sold.")


def check_5(judge_tuning) -> Outcome:
    """Which setting helped, if the control lets anybody say so; made-up rounds, then the learner's own."""
    expect_function(judge_tuning, "judge_tuning")
    made = [(rounds, why, f"made-up rounds {k}") for k, (rounds, why) in enumerate(MADE_ROUNDS, start=1)]
    made += draw_rounds(20)
    own = list(load_records(lab="33", name="tuning"))
    if own:
        rounds = [{name: tuple(run) for name, run in one.items()} for one in own[-1].settings["tuning_rounds"]]
        made.append((rounds, "the rules are the same for your own rounds.", f"your record {own[-1].id}"))
    judged = expect_tuning(judge_tuning, made)
    if not own:
        return passed("the made-up rounds are judged right; measure, and check again for your own.")
    verdicts, best = judged[-1]
    said = ", ".join(f"{name} {word}" for name, word in verdicts.items())
    best = "not to be said, the control differs" if best is None else best
    return passed(f"your record {own[-1].id}: {said}. Best: {best}.")


class _Rows(LearnerFunction):
    """Makes a tuple of an answer of `size` parts, so that a list does as well, and says so where it has other parts."""

    def __init__(self, function, *, size: int) -> None:
        LearnerFunction.__init__(self, function)
        self.size = size

    __slots__ = ("size",)

    def __call__(self, *args, **kwargs):
        got = LearnerFunction.__call__(self, *args, **kwargs)
        if got is None:
            return None
        if not isinstance(got, tuple | list) or len(got) != self.size:
            fail(f"{self.call}: the answer has {self.size} parts, in the order of the exercise, and this is "
                 f"{shorten(repr(got), 60)}.")  # fmt: skip
        return tuple(got)


class _Goods(LearnerFunction):
    """Makes (list of pairs, knee) of an answer, whatever rows it is written in."""

    def __call__(self, *args, **kwargs):
        got = LearnerFunction.__call__(self, *args, **kwargs)
        if got is None:
            return None
        is_two = isinstance(got, tuple | list) and len(got) == 2 and isinstance(got[0], tuple | list)
        if not is_two or not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in got[0]):
            fail(f"{self.call}: the answer is ([(goodput, good fraction) of each run], knee), and this is "
                 f"{shorten(repr(got), 60)}.")  # fmt: skip
        return [tuple(pair) for pair in got[0]], got[1]
