"""The quick tests (`make test-quick`) under this Python and every other supported one that is found.

Under another Python they run in a small environment with the lock's versions, and both locks are resolved for it: every
version that a lock pins must be available there too.
"""

import argparse
import concurrent.futures
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import lock

ROOT = lock.ROOT
PYTHONS = ("3.11", "3.12", "3.13")
# Only what the tests without the markers `slow` and `long` import: such an environment is made in seconds.
PACKAGES = (
    *("numpy", "pytest", "hypothesis", "scipy", "psutil", "jsonschema", "plotly", "nbformat", "jupytext", "pyyaml"),
    *("ipython", "nbclient", "httptools", "prometheus-client"),
)
# Left out under another Python. What depends on the Python (how a stub looks, how an error reads) is tested in
# test_checks.py and with labs 00 and 01; what the tests say about the course's files, figures,
# load and statistics is the same.
SAME_EVERYWHERE = (
    *("--ignore-glob=*/test_*lab[1-9]*.py", "--ignore=tests/labs/test_mistakes.py"),
    *("--ignore-glob=*/test_load*.py", "--ignore-glob=*/test_plots*.py"),
    *(f"--ignore=tests/test_{name}.py" for name in ("architecture", "labs", "numbers", "recorded", "mutants")),
    # numpy's arithmetic, for seconds
    *(f"--ignore=tests/test_{name}.py" for name in ("regimes", "stats", "workload", "ceilings", "memory")),
)


def find_python(version: str, *, which=shutil.which, home=None) -> str | None:
    """A Python of this version that really runs: on PATH, else in pyenv's folder (its shims may lead nowhere)."""
    candidates = [which(f"python{version}")]
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path(home or Path.home(), ".pyenv"), "versions")
    candidates += sorted((str(path) for path in pyenv.glob(f"{version}.*/bin/python")), key=_by_numbers, reverse=True)
    for candidate in filter(None, candidates):
        try:
            done = subprocess.run([candidate, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
                                  capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.SubprocessError):
            continue
        if done.returncode == 0 and done.stdout.strip() == version:
            return candidate
    return None


def _by_numbers(path: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", path)]


def make_environment(version: str, python: str, pins: dict, *, run=subprocess.run) -> Path:
    """Folder .venv-X.Y with PACKAGES at the lock's versions; kept until the pins or the list change."""
    folder = ROOT / f".venv-{version}"
    key = hashlib.sha256(repr((python, PACKAGES, sorted(pins.items()))).encode()).hexdigest()
    stamp = folder / "labkit-quick.txt"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == key:
        return folder
    uv = lock.find_uv()
    with tempfile.TemporaryDirectory() as scratch:
        constraints = Path(scratch, "constraints.txt")
        lines = "".join(f"{name}=={pin.split('+')[0]}\n" for name, pin in pins.items())
        constraints.write_text(lines, encoding="utf-8")
        for command in (
            [uv, "venv", "--quiet", "--clear", "--python", python, str(folder)],
            [uv, "pip", "install", "--quiet", "--python", str(folder / "bin" / "python"),
             "--constraint", str(constraints), *PACKAGES],
        ):
            done = run(command, capture_output=True, text=True, cwd=str(ROOT))
            if done.returncode != 0:
                raise lock.ResolveError(f"the small environment for Python {version} failed: {done.stderr.strip()}")
    stamp.write_text(key, encoding="utf-8")
    return folder


def run_tests(python: str, *, is_live=True, run=subprocess.run):
    """Run the tests marked neither `slow` nor `long`, with a home of their own; return the finished process.

    `is_live`: under this Python, with the output straight to the console. Otherwise it is kept for later, so that two
    outputs do not mix, and SAME_EVERYWHERE is left out.
    """
    with tempfile.TemporaryDirectory() as home:
        environ = dict(os.environ, LABKIT_HOME=home, LABKIT_RUNS=str(Path(home, "runs")), PYTHONPATH=str(ROOT),
                       OMP_WAIT_POLICY="passive")
        # Compiled files are kept, even if the shell says otherwise: dozens of processes import the same modules.
        for name in ("PYTHONDONTWRITEBYTECODE", "LABKIT_TIER", "LABKIT_MODEL", "LABKIT_BUDGET", "LABKIT_STRICT",
                     "LABKIT_COURSE"):
            environ.pop(name, None)
        output = {} if is_live else {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        others = () if is_live else SAME_EVERYWHERE
        side_by_side = ("-n", "2") if is_live and importlib.util.find_spec("xdist") else ()
        return run([python, "-m", "pytest", "-q", "--durations=5", "-p", "no:cacheprovider", *side_by_side, "-m",
                    "not slow and not long", *others, "tests"], cwd=str(ROOT), env=environ, **output)


def check_locks(version: str, *, interpreter=None, resolve=lock.resolve, folder=None) -> list[str]:
    """Problems of the locks under this Python: a pin that has no build for it, or a package that the lock lacks."""
    problems = []
    for tier in lock.TIERS:
        pins = lock.load_pins(Path(folder or lock.FOLDER) / f"{tier}.lock")
        try:
            text = resolve(tier, python=version, interpreter=interpreter, pins=pins, is_strict=True, has_hashes=False)
        except lock.ResolveError as error:
            problems.append(f"{tier}.lock does not resolve under Python {version}: {error}")
            continue
        for name, lines in lock.split_blocks(text).items():
            seen = lines[0].split()[0].split("==")[1]
            pinned = pins.get(name, "").split("+")[0]
            if not pinned and not (tier == "cpu" and lock.comes_with_cuda_torch(name)):
                problems.append(f"{tier}.lock lacks {name}, which Python {version} needs ({seen})")
            elif pinned and seen != pinned:
                problems.append(f"{tier}.lock pins {name} {pinned}, Python {version} resolves to {seen}")
    return problems


def check_python(version: str, python: str, pins: dict, *, is_own: bool) -> tuple[list[str], str, float]:
    """(problems, output, seconds) of the tests under one Python; any other than this one in its small environment."""
    started, problems, output = time.monotonic(), [], ""
    try:
        if not is_own:
            python = str(make_environment(version, python, pins) / "bin" / "python")
        done = run_tests(python, is_live=is_own)
        output = done.stdout or ""
        problems += ["tests failed"] if done.returncode != 0 else []
    except lock.ResolveError as error:
        problems.append(str(error))
    return problems, output, time.monotonic() - started


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=PYTHONS, help="one Python")
    options = parser.parse_args(arguments)
    own = "{}.{}".format(*sys.version_info[:2])
    wanted = [options.only] if options.only else sorted(PYTHONS, key=lambda name: name != own)
    found = {version: sys.executable if version == own else find_python(version) for version in wanted}
    present = {version: python for version, python in found.items() if python}
    pins = lock.load_pins(lock.FOLDER / "cpu.lock")
    outcomes = dict.fromkeys(found, "not found here, not tested")
    # More at once than cores: they wait more than they compute.
    with concurrent.futures.ThreadPoolExecutor(max_workers=len(PYTHONS) + 1) as pool:
        tests = {version: pool.submit(check_python, version, python, pins, is_own=version == own)
                 for version, python in present.items()}
        locks = {version: pool.submit(check_locks, version, interpreter=python)
                 for version, python in present.items() if version != own}
        for version in present:
            if version == own:
                print(f"== Python {version}", flush=True)
            problems, output, took = tests[version].result()
            if version != own:
                print(f"== Python {version}\n{output}", flush=True)
                problems += locks[version].result()
            outcomes[version] = "; ".join(problems) or f"passed ({took:.0f} s)"
    print(*(f"Python {version}: {outcome}" for version, outcome in outcomes.items()), sep="\n")
    return int(not all(outcome.startswith(("passed", "not found")) for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
