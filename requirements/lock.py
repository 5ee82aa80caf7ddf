"""Resolve requirements/*.in to complete locks with hashes, and write environment.yml (`make lock`).

uv resolves; existing pins stay, so that one new dependency moves nothing else (`--upgrade` lets them move). Both locks
are resolved for Linux on x86-64 and Python 3.11, the oldest that the course supports; `make test-quick` shows that the
same pins work for 3.12 and 3.13.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from install import OPEN_LAB, TORCH_CPU_INDEX
from pins import load_pins

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "requirements"
TIERS = ("cpu", "gpu")
PLATFORM = "x86_64-manylinux_2_28"
OLDEST_PYTHON = "3.11"


class ResolveError(Exception):
    """The resolver found no set of versions; the message is the resolver's."""


def find_uv() -> str:
    """The uv of this environment, else one on PATH."""
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    if not found:
        raise ResolveError("uv is not installed. Next: run `make setup`, which brings it.")
    return found


def split_blocks(text: str) -> dict:
    """{name: lines} of a requirements file as uv writes it: a pin, then its hashes, indented."""
    blocks, name = {}, None
    for line in text.splitlines():
        match = re.match(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==", line)
        if match:
            name = match.group(1)
            blocks[name] = [line]
        elif name and line.startswith(" "):
            blocks[name].append(line)
    return blocks


def comes_with_cuda_torch(name: str) -> bool:
    """Whether only torch's CUDA build brings this package (its metadata is read, but its CPU wheel is installed)."""
    return name == "triton" or name.startswith("cuda-") or (name.startswith("nvidia-") and name != "nvidia-ml-py")


def resolve(tier, *, python=OLDEST_PYTHON, pins=None, is_strict=False, upgrade=False, source=None, overrides=None,
            has_hashes=True, interpreter=None, options=(), run=subprocess.run) -> str:
    """Text of the resolved requirements of a tier.

    `pins`: versions to prefer, or to insist on if `is_strict`. `source`, `overrides`: other input files.
    `interpreter`: a Python of that version, which asks packages without wheels for their dependencies. `options`: more
    arguments for uv. Raises ResolveError with uv's message.
    """
    source = Path(source or FOLDER / f"{tier}.in")
    overrides = Path(overrides or FOLDER / f"{tier}-overrides.txt")
    with tempfile.TemporaryDirectory() as scratch:
        output, constraints = Path(scratch, "out.txt"), Path(scratch, "constraints.txt")
        lines = "".join(f"{name}=={version.split('+')[0]}\n" for name, version in sorted((pins or {}).items()))
        # uv prefers the versions in the output file, and must obey a constraint.
        (constraints if is_strict else output).write_text(lines, encoding="utf-8")
        command = [find_uv(), "pip", "compile", str(source), "--override", str(overrides), "-o", str(output), "--quiet",
                   "--python-version", python, "--python-platform", PLATFORM, "--no-annotate", "--no-header",
                   "--no-python-downloads", *options]
        command += ["--python", interpreter] if interpreter else []
        command += ["--generate-hashes"] if has_hashes else []
        command += ["--constraint", str(constraints)] if is_strict else []
        command += ["--upgrade"] if upgrade else []
        done = run(command, capture_output=True, text=True, cwd=str(ROOT))
        if done.returncode != 0:
            raise ResolveError(done.stderr.strip() or f"uv ended with {done.returncode}")
        return output.read_text(encoding="utf-8")


def format_lock(tier, text: str) -> str:
    """The lock file: a header, then the pins; the CPU lock without torch and what only its CUDA build brings."""
    blocks = split_blocks(text)
    header = [f"# The {tier} tier, complete, with hashes; installed with --no-deps. Made by `make lock`; do not edit."]
    if tier == "cpu":
        torch = blocks["torch"][0].split()[0].split("==")[1].split("+")[0]
        header += ["# torch is installed before the rest, from a CPU wheel (never the CUDA build):"]
        header += [f"# torch=={torch}+cpu"]
        blocks = {name: lines for name, lines in blocks.items() if name != "torch" and not comes_with_cuda_torch(name)}
    return "\n".join([*header, *(line for lines in blocks.values() for line in lines)]) + "\n"


def format_environment(pins: dict) -> str:
    """environment.yml: Python and pip from conda, then the pins of the CPU lock through pip."""
    lines = [
        "# The CPU tier for conda: the pins of requirements/cpu.lock. Made by `make lock`; do not edit.",
        "#   PIP_NO_DEPS=1 conda env create -f environment.yml",
        "#   conda activate labkit && python -m pip install --no-deps --no-build-isolation -e .",
        "# PIP_NO_DEPS=1 matters: the list is complete, and some packages declare CUDA builds that must stay away.",
        "# torch is named with its +cpu build, which PyTorch's own index has: the CUDA build cannot slip in.",
        "# pip checks no hashes this way. For hashes, or for a GPU, let conda bring Python only:",
        "#   conda create -n labkit python=3.11 pip && conda activate labkit",
        "#   python requirements/install.py --into-current",
        "# Either way, the first lab opens with this (`make lab` would make a second environment):",
        f"#   {OPEN_LAB}",
        "name: labkit",
        "channels:",
        "  - conda-forge",
        "  - nodefaults",
        "dependencies:",
        f"  - python={OLDEST_PYTHON}",
        "  - pip",
        "  - pip:",
        f"      - --extra-index-url {TORCH_CPU_INDEX}",
    ]
    return "\n".join([*lines, *(f"      - {name}=={version}" for name, version in sorted(pins.items()))]) + "\n"


def format_moves(old: dict, new: dict) -> list:
    """One line for each pin that moved, came or went."""
    names = sorted(set(old) | set(new))
    return [f"{name:<40} {old.get(name, '-'):<20} -> {new.get(name, '-')}" for name in names
            if old.get(name) != new.get(name)]


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--upgrade", action="store_true", help="let every pin move (make bump tries that first)")
    options = parser.parse_args(arguments)
    cpu_pins = {}
    for tier in TIERS:
        path = FOLDER / f"{tier}.lock"
        old = load_pins(path) if path.exists() else {}
        # The GPU tier takes the CPU tier's versions wherever its own requirements allow them.
        try:
            text = format_lock(tier, resolve(tier, pins={**old, **cpu_pins}, upgrade=options.upgrade and tier == "cpu"))
        except ResolveError as error:
            print(f"{tier}: no solution, the lock stays as it is.\n{error}", file=sys.stderr)
            return 1
        path.write_text(text, encoding="utf-8")
        new = load_pins(path)
        cpu_pins = cpu_pins or new
        print(f"{path.name}: {len(new)} pins", *format_moves(old, new), sep="\n  ")
    (ROOT / "environment.yml").write_text(format_environment(load_pins(FOLDER / "cpu.lock")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
