"""One lab's checks on the bench: a reference solution, an answer or a cell's text goes in, an outcome comes out."""

from dataclasses import dataclass, field
from types import ModuleType

from labkit.checks.judge import run_check
from labkit.checks.reference import find_reference

# What a learner leaves who has not begun; indented, it is the body of a function.
STUB = "raise NotImplementedError('exercise: your code here')"
UNTOUCHED = (STUB, "pass", "...", "'a docstring'", "return None", f"print('thinking')\n    {STUB}")


@dataclass(frozen=True)
class Bench:
    """`checks`: the lab's module. `functions`: {exercise: its answer's name}. `tools`: names that a cell finds."""

    checks: ModuleType
    functions: dict[str, str]
    tools: dict = field(default_factory=dict)

    def run(self, source: str, **names) -> dict:
        """Run a cell's text beside the tools and these names; return every name that there is afterwards."""
        names = self.tools | names
        exec(compile(source, "<cell>", "exec"), names)
        return names

    def solve(self, exercise: str):
        """The reference solution's function."""
        return self.run(find_reference(exercise))[self.functions[exercise]]

    def judge(self, exercise: str, answer):
        """The check's outcome."""
        return run_check(getattr(self.checks, f"check_{exercise[-1]}"), answer)

    def judge_source(self, exercise: str, source: str):
        """The check's outcome on the function that a text defines, under the name `f` or its own."""
        names = self.run(source)
        return self.judge(exercise, names["f"] if "f" in names else names[self.functions[exercise]])

    def judge_stub(self, exercise: str, body: str):
        """The check's outcome on a function with this body."""
        return self.judge_source(exercise, f"def f(*args, **kwargs):\n    {body}\n")


def expect_pass(outcome) -> None:
    """It passed, and says what was found."""
    assert outcome.status == "passed", outcome.sentence
    assert outcome.sentence


def expect_failure(outcome, phrase: str) -> None:
    """It failed, and its sentence names the mistake."""
    assert outcome.status == "failed", outcome
    assert phrase in outcome.sentence, outcome.sentence
