"""How is a text shown? As HTML in a notebook, as plain text everywhere else."""

import re
import sys
from html import escape, unescape

__all__ = ["find_kernel", "format_code", "format_plain", "view_html"]


def view_html(html: str, text: str) -> None:
    """Show `html` in a notebook and `text` everywhere else; IPython is used only if it is already running."""
    if find_kernel() is None:
        print(text)
        return
    from IPython.display import display

    display({"text/html": html, "text/plain": text}, raw=True)


def find_kernel() -> object | None:
    """Return the notebook kernel that runs this code; None in a script, a test, or IPython in a terminal."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython and hasattr(ipython, "get_ipython") else None
    return getattr(shell, "kernel", None)


def format_code(text: str) -> str:
    """Escape a text for HTML; text in backticks becomes code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))


def format_plain(html: str) -> str:
    """Return simple HTML without its tags: one line per paragraph, item and row."""
    lines = unescape(re.sub(r"<[^>]+>", "", re.sub(r"</(p|li|tr|summary)>", "\n", html))).split("\n")
    return "\n".join(line.strip() for line in lines if line.strip())
