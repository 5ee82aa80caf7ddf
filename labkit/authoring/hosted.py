"""What does a lab need on a hosted notebook service? A link that opens it there, and a first cell that gets the course.

Both depend on one setting: `Repository` under `[project.urls]` in pyproject.toml. Without it neither is built.
"""

import tomllib
from pathlib import Path

__all__ = ["BOOTSTRAP_TAG", "format_badge", "format_bootstrap", "load_repository"]

BOOTSTRAP_TAG = "labkit-bootstrap"
_HOST = "https://github.com/"
_BRANCH = "main"
# Ordinary Python without magics or shell lines; it does nothing where labkit can be imported.
_BOOTSTRAP = """\
# @title Colab and Kaggle only: get the course. Anywhere else this cell does nothing.
import importlib.util
import os
import subprocess
import sys

if importlib.util.find_spec("labkit") is None:
    if "google.colab" in sys.modules or "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
        course = os.path.abspath("course")
        if not os.path.isdir(course):
            subprocess.run(["git", "clone", "--depth", "1", "{url}", course], check=True)
        sys.path.insert(0, course)
        from labkit.colab import run_bootstrap

        run_bootstrap()
    else:
        print("This kernel has no labkit. Start JupyterLab by `make lab`, or choose the course's kernel (.venv).")"""


def load_repository(root: Path) -> str | None:
    """Read the repository's URL; return None if pyproject.toml is missing or has no GitHub URL."""
    try:
        project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8")).get("project", {})
    except OSError:
        return None
    url = project.get("urls", {}).get("Repository", "").rstrip("/")
    return url if url.startswith(_HOST) else None


def format_badge(url: str, *, name: str) -> str:
    """Write the link that opens a lab in Colab: text, since an image would be fetched each time the lab is opened."""
    path = f"{url.removeprefix(_HOST)}/blob/{_BRANCH}/labs/{name}.ipynb"
    return f"[Open in Colab](https://colab.research.google.com/github/{path})"


def format_bootstrap(url: str) -> str:
    """Write the first code cell of a lab."""
    return _BOOTSTRAP.format(url=url)
