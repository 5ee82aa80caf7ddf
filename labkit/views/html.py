"""How does a text reach the learner? As HTML where a notebook is, as plain text everywhere else."""

import re
import sys
from html import escape, unescape

__all__ = ["format_code", "format_plain", "view_html"]


def view_html(html: str, text: str) -> None:
    """Show `html` in a notebook and `text` everywhere else; IPython is used only where it runs already."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython and hasattr(ipython, "get_ipython") else None
    if shell is None or not hasattr(shell, "kernel"):
        print(text)
        return
    from IPython.display import display

    display({"text/html": html, "text/plain": text}, raw=True)


def format_code(text: str) -> str:
    """Escape a text for HTML; what stands in backticks becomes code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))


def format_plain(html: str) -> str:
    """Drop the tags of simple HTML: a line for each paragraph, item and row."""
    lines = unescape(re.sub(r"<[^>]+>", "", re.sub(r"</(p|li|tr|summary)>", "\n", html))).split("\n")
    return "\n".join(line.strip() for line in lines if line.strip())
