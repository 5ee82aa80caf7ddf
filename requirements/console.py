"""What the person sees: sentences, errors that name the next step, and a line of progress while pip works."""

import re
import sys
import time
from pathlib import Path

from pins import list_installed


class Stop(Exception):  # noqa: N818, it is raised to stop, and its text is all that is shown
    """The installation cannot go on: a fact and the next step, as one message."""


def say(text: str) -> None:
    print(text, flush=True)


def list_few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


class Progress:
    """One moving line on a terminal, a line every ten seconds elsewhere: what pip does, how far it is, for how long."""

    def __init__(self, total: int, site: Path, clock=time.monotonic):
        self.total, self.site, self.clock = total, site, clock
        self.start, self.last, self.seen, self.phase = clock(), float("-inf"), 0, "downloading"
        self.is_terminal = sys.stdout.isatty()

    def read(self, line: str) -> None:
        """Follow one line of pip's output."""
        if re.match(r"(Collecting|Processing|Requirement already satisfied)\b", line):
            self.seen += 1
        elif line.startswith("  Building wheel for "):
            self.phase = "building " + line.split()[3]
        elif line.startswith("Installing collected packages"):
            self.phase = "installing"
        else:
            return
        self.show()

    def show(self, is_last: bool = False) -> None:
        now = self.clock()
        if not is_last and now - self.last < (0.2 if self.is_terminal else 10):
            return
        self.last = now
        seen = len(list_installed(self.site)) if self.phase == "installing" else self.seen
        counts = "" if self.phase.startswith("building") else f" {min(seen, self.total)} of {self.total} packages"
        minutes, seconds = divmod(int(now - self.start), 60)
        text = f"  [{minutes:d}:{seconds:02d}] {'done,' if is_last else self.phase}{counts}"
        print(f"\r{text:<78}" if self.is_terminal else text, end="" if self.is_terminal and not is_last else "\n")
        sys.stdout.flush()
