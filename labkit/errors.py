"""What can go wrong? One small tree of errors, each a fact with its numbers and a next step.

    LabkitError            bad input to labkit, or anything below
    ├── HardwareError      the machine lacks something, or a device does not answer
    ├── InstallError       a package, driver or file of the course is missing
    ├── ModelError         a model is unknown, does not fit, or its files are wrong
    ├── RecordError        a record of a measurement is damaged or does not match its schema
    ├── ProgressError      the learner's progress cannot be read or written
    └── CheckError         a check, prediction or quiz was called in a way that it cannot answer

A message says what was expected, what was seen, and what to do next.
"""

__all__ = [
    "CheckError",
    "HardwareError",
    "InstallError",
    "LabkitError",
    "ModelError",
    "ProgressError",
    "RecordError",
]


class LabkitError(Exception):
    """A problem that a learner can act on: `fact` (with its numbers) and `next_step`.

    `str(error)` is "fact Next: next_step", or the fact alone when there is no next step.
    """

    def __init__(self, fact: str, *, next_step: str = "") -> None:
        super().__init__(fact)
        self.fact = fact
        self.next_step = next_step

    def __str__(self) -> str:
        return f"{self.fact} Next: {self.next_step}" if self.next_step else self.fact

    def _render_traceback_(self) -> list[str]:
        """Show one line in a notebook: IPython calls this instead of printing the stack."""
        return [f"{type(self).__name__}: {self}"]


class HardwareError(LabkitError):
    """The machine lacks what was asked for, or a device does not answer."""


class InstallError(LabkitError):
    """A package, driver or file that the course needs is missing."""


class ModelError(LabkitError):
    """A model is unknown, does not fit, or its files are not what they should be."""


class RecordError(LabkitError):
    """A record of a measurement is damaged or does not match its schema."""


class ProgressError(LabkitError):
    """The learner's progress cannot be read or written."""


class CheckError(LabkitError):
    """A check, prediction or quiz was called in a way that it cannot answer."""
