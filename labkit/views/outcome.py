"""What did a check say? An outcome, and the one line that shows it."""

import os
from dataclasses import dataclass
from html import escape

from labkit.errors import CheckError
from labkit.views.html import format_code, format_plain, view_html

__all__ = ["CheckFailed", "Outcome", "format_outcome", "is_strict", "view_outcome"]

_MARKS = {"passed": "✓", "failed": "✗", "not attempted": "○", "blocked": "▢", "answered": "✓"}


class CheckFailed(CheckError):  # noqa: N818  (the name that the notebooks' strict runs look for)
    """In strict mode (LABKIT_STRICT=1, the test run) an answer was not accepted; a notebook shows it as one line."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a check says: `status` is passed, failed, not attempted or blocked; `measurement` is optional numbers.

    A notebook shows nothing for it: the line is on the screen already.
    """

    status: str
    sentence: str = ""
    measurement: dict | None = None

    def __post_init__(self) -> None:
        if self.status not in ("passed", "failed", "not attempted", "blocked"):
            raise CheckError(
                f"{self.status!r} is no outcome.", next_step="use passed, failed, not attempted or blocked."
            )

    def _ipython_display_(self) -> None:
        """Show nothing, so that a cell that ends with check(...) has one line of output."""


def is_strict() -> bool:
    """Tell whether this is the test run, in which anything that is not accepted raises."""
    return os.environ.get("LABKIT_STRICT", "") not in ("", "0")


def format_outcome(name: str, outcome: Outcome, *, word: str = "") -> str:
    """Write "✓ 00.1 passed: sentence" in one line; `word` replaces the status ("answered")."""
    word = word or outcome.status
    sentence = " ".join(outcome.sentence.split())
    return f"{_MARKS[word]} {name} {word}" + (f": {sentence}" if sentence and word != "not attempted" else "")


def view_outcome(name: str, outcome: Outcome, *, is_accepted: bool, word: str = "", before: str = "") -> Outcome:
    """Show an outcome as one line and return it; in strict mode raise CheckFailed unless it is accepted.

    `before` is HTML (with its own text made by dropping the tags) that stands above the line, such as a question.
    """
    line = format_outcome(name, outcome, word=word)
    if is_strict() and not is_accepted:
        raise CheckFailed(line)
    head, _, sentence = line.partition(": ")
    mark = f"<strong>{escape(head)}</strong>" + (f": {format_code(sentence)}" if sentence else "")
    view_html(f'{before}<p role="status">{mark}</p>', (f"{format_plain(before)}\n" if before else "") + line)
    return outcome
