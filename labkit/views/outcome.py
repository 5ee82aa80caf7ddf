"""What did a check find? An outcome, and the one line that shows it."""

import os
from dataclasses import dataclass
from html import escape

from labkit.errors import CheckError
from labkit.views.html import format_code, format_plain, view_html

__all__ = ["CheckFailed", "Outcome", "is_strict", "view_outcome"]

_MARKS = {"passed": "✓", "failed": "✗", "not attempted": "○", "blocked": "▢", "answered": "✓"}


class CheckFailed(CheckError):  # noqa: N818  (strict runs of the notebooks look for this name)
    """An answer was not accepted in strict mode (LABKIT_STRICT=1, for test runs); a notebook shows it as one line."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a check found. A notebook shows nothing for it, because the line is already on the screen.

    Attributes:
        status: "passed", "failed", "not attempted" or "blocked".
        sentence: why, and the next step.
        measurement: optional numbers, {name: value}.
    """

    status: str
    sentence: str = ""
    measurement: dict | None = None

    def __post_init__(self) -> None:
        if self.status not in ("passed", "failed", "not attempted", "blocked"):
            raise CheckError(
                f"{self.status!r} is not a valid outcome.", next_step="use passed, failed, not attempted or blocked."
            )

    def _ipython_display_(self) -> None:
        """Show nothing, so that a cell that ends with check(...) has only one line of output."""


def is_strict() -> bool:
    """Return whether this is a test run, in which an answer that is not accepted raises."""
    return os.environ.get("LABKIT_STRICT", "") not in ("", "0")


def _format_outcome(name: str, outcome: Outcome, *, word: str = "") -> str:
    """Write an outcome in one line, "✓ name passed: sentence"; `word` replaces the status ("answered")."""
    word = word or outcome.status
    sentence = " ".join(outcome.sentence.split())
    return f"{_MARKS[word]} {name} {word}" + (f": {sentence}" if sentence and word != "not attempted" else "")


def view_outcome(name: str, outcome: Outcome, *, is_accepted: bool, word: str = "", before: str = "") -> Outcome:
    """Show an outcome as one line and return it; in strict mode raise CheckFailed unless it is accepted.

    `before` is HTML above the line, such as a question; the plain text has it without its tags.
    """
    line = _format_outcome(name, outcome, word=word)
    if is_strict() and not is_accepted:
        raise CheckFailed(line)
    head, _, sentence = line.partition(": ")
    mark = f"<strong>{escape(head)}</strong>" + (f": {format_code(sentence)}" if sentence else "")
    view_html(f'{before}<p role="status">{mark}</p>', (f"{format_plain(before)}\n" if before else "") + line)
    return outcome
