"""Try newer pins in a scratch environment and report what they change (`make bump`).

Every `==` of cpu.in becomes `>=` (torch stays unless `--torch` names another: its CPU wheel must exist, and the engines
are built against it), and what the resolver finds is installed beside a copy of the working tree. Tests and solutions
run there and in the present environment. What passed before and fails now has moved, and so has a measured number
outside the range of two runs before. No file of the course is changed.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import lock

ROOT = lock.ROOT
# nbval's words when a stored output and a new one differ: the code still runs, but a number is another one.
NUMBER_WORDS = ("mismatch", "Cell outputs differ", "Unexpected output fields", "Missing output fields")

# They compare the lock with files that only `make lock` writes: they fail for any other lock.
FILE_TESTS = (
    "tests/test_setup.py::test_every_direct_dependency_says_why_and_is_locked_at_its_version",
    "tests/test_setup.py::test_both_tiers_pin_the_same_versions_except_what_vllm_itself_pins",
)
# pytest's words: what `make test` runs.
PARTS = {
    "tests": ["-m", "not long", *(f"--deselect={name}" for name in FILE_TESTS), "tests"],
    "solutions": ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout", "600", "solutions"],
}


def relax(text: str, *, torch: str | None = None) -> str:
    """Requirements with every exact pin turned into a lower bound; torch stays exact, at `torch` if given."""
    lines = []
    for line in text.splitlines():
        match = re.match(r"^([A-Za-z0-9._-]+)==(\S+)(.*)$", line)
        if match and match.group(1) == "torch":
            line = f"torch=={torch or match.group(2)}{match.group(3)}"
        elif match:
            line = f"{match.group(1)}>={match.group(2)}{match.group(3)}"
        lines.append(line)
    return "\n".join(lines) + "\n"


def find_torch_options(run=subprocess.run) -> list[list[str]]:
    """Arguments for uv, to be tried in turn, that lead to torch's CPU wheel: pip's links, else PyTorch's CPU index."""
    done = run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True)
    links = re.findall(r"^\S*find-links='([^']+)'", done.stdout, flags=re.MULTILINE)
    words = [word for place in dict.fromkeys(" ".join(links).split()) for word in ("--find-links", place)]
    return [words, ["--torch-backend", "cpu"]] if words else [["--torch-backend", "cpu"]]


def propose(*, torch: str | None = None, resolve=lock.resolve, torch_options=find_torch_options) -> str:
    """Text of a CPU lock with the newest versions that fit together."""
    with tempfile.TemporaryDirectory() as scratch:
        source, overrides = Path(scratch, "cpu.in"), Path(scratch, "overrides.txt")
        source.write_text(relax((lock.FOLDER / "cpu.in").read_text(encoding="utf-8"), torch=torch), encoding="utf-8")
        # Without the override of torch: a package that was built for another torch must not be chosen.
        lines = (lock.FOLDER / "cpu-overrides.txt").read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if not line.startswith("torch==")]
        overrides.write_text("\n".join(kept) + "\n", encoding="utf-8")
        problems = []
        for options in torch_options():
            try:
                text = resolve("cpu", upgrade=True, source=source, overrides=overrides, options=options)
                return lock.format_lock("cpu", text)
            except lock.ResolveError as error:
                problems.append(str(error))
        raise lock.ResolveError("\n".join(problems))


def load_outcomes(path: Path) -> dict[str, tuple[str, str]]:
    """{test: (outcome, message)} of a junit file; outcome is "passed", "failed" or "skipped"."""
    outcomes = {}
    for case in ElementTree.parse(path).iter("testcase"):
        name = f"{case.get('classname', '')}::{case.get('name', '')}"
        bad = next((child for child in case if child.tag in ("failure", "error")), None)
        if bad is not None:
            outcomes[name] = ("failed", f"{bad.get('message') or ''}\n{bad.text or ''}")
        else:
            outcomes[name] = ("skipped" if case.find("skipped") is not None else "passed", "")
    return outcomes


def classify(before: dict, after: dict) -> dict[str, list[str]]:
    """What moved, by kind: {"tests": [...], "labs": [...], "numbers": [...]}; only what passed before counts."""
    moved = {"tests": [], "labs": [], "numbers": []}
    for name, (outcome, _) in sorted(before.items()):
        after_outcome, message = after.get(name, ("failed", "it did not run"))
        if outcome != "passed" or after_outcome != "failed":
            continue
        # nbval's cases come from notebooks; everything else is an ordinary test.
        if not re.search(r"(?:^|[/.])\d\d_\w+\.?(?:ipynb)?::|\.ipynb", name):
            kind = "tests"
        else:
            kind = "numbers" if any(word in message for word in NUMBER_WORDS) else "labs"
        moved[kind].append(f"{name}: {message.strip().splitlines()[0] if message.strip() else 'failed'}")
    return moved


def format_report(moves: list[str], moved: dict[str, list[str]] | None) -> str:
    """The report: pins that moved, then the tests, labs and numbers that moved with them (None: not tried)."""
    lines = [f"{len(moves)} pins move:", *(f"  {move}" for move in moves)]
    if moved is None:
        return "\n".join([*lines, "Dry run: nothing was installed or tested."])
    for kind, names in moved.items():
        lines += [f"{len(names)} {kind} moved" + (":" if names else "."), *(f"  {name}" for name in names)]
    return "\n".join(lines)


def copy_tree(target: Path) -> None:
    """Copy the files that git tracks or would track."""
    done = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=str(ROOT),
                          capture_output=True, text=True, check=True)
    for name in filter(None, done.stdout.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def run_part(part: str, python: Path, tree: Path, home: Path) -> dict[str, tuple[str, str]]:
    """Outcomes of the tests or of the solutions (budget ci, strict) under one Python in one copy of the tree.

    What failed runs once more: on a busy machine a test may fail by itself, whatever the versions. The records of the
    solutions stay in `home/runs`, to be compared.
    """
    environ = dict(os.environ, LABKIT_HOME=str(home), LABKIT_RUNS=str(home / "runs"), LABKIT_BUDGET="ci",
                   LABKIT_STRICT="1", OMP_WAIT_POLICY="passive",
                   PATH=f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if part == "tests":  # they set what they need
        for name in ("LABKIT_BUDGET", "LABKIT_STRICT"):
            del environ[name]
    command = [str(python), "-m", "pytest", "-q", "-o", f"cache_dir={home / 'cache'}", *PARTS[part]]
    if part == "solutions":
        command.append(f"--keep-runs={home / 'runs'}")
    outcomes = {}
    for attempt, again in enumerate(([], ["--last-failed", "--last-failed-no-failures", "none"])):
        if again and part == "solutions":  # a notebook's cells need those before them: all of it, or nothing
            break
        report = home / f"{part}-{attempt}.xml"
        home.mkdir(parents=True, exist_ok=True)
        done = subprocess.run([*command, *again, f"--junitxml={report}"], cwd=str(tree), env=environ,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if not report.exists():
            print(f"{part}: pytest wrote no report (exit status {done.returncode}):\n{done.stdout[-2000:]}", flush=True)
            break
        outcomes |= load_outcomes(report)
        print(f"  {done.stdout.strip().splitlines()[-1]}", flush=True)
        if done.returncode == 0:
            break
    return outcomes


def compare_numbers(first: Path, new: Path, second: Path) -> tuple[list[str], str]:
    """(sentences on medians that moved, one on the control) from the records of three runs: old pins, new, old again.

    A median has moved if its 95 % interval with the new pins lies outside the range of both runs with the old ones; if
    the machine became slower meanwhile, the second of them shows it. The control counts how many numbers differ between
    these two by the machine alone. Numbers with too few samples for an interval are not compared.
    """
    runs = [_load_medians(folder) for folder in (first, second, new)]
    sentences = [f"{' '.join(key)}: {runs[0][key][0]:.4g} before, not measured after"
                 for key in runs[0] if key in runs[1] and key not in runs[2]]  # fmt: skip
    num_compared = num_drifted = 0
    for key in runs[0]:
        ends = [run[key][1] for run in runs if key in run]
        if len(ends) < 3 or not all(ends):
            continue
        one, two, after = ends
        low, high = min(one[0], two[0]), max(one[1], two[1])
        num_compared += 1
        num_drifted += one[1] < two[0] or two[1] < one[0]
        if after[0] > high or after[1] < low:
            sentences.append(f"{' '.join(key)}: within {low:.4g} to {high:.4g} before, "
                             f"{runs[2][key][0]:.4g} ({after[0]:.4g} to {after[1]:.4g}) after")  # fmt: skip
    return sentences, (f"Numbers with an interval, compared: {num_compared}. Control: {num_drifted} of them lie apart "
                       "between the two runs with the old pins, by the machine alone.")  # fmt: skip


def _load_medians(folder: Path) -> dict[tuple[str, str, str], tuple[float, tuple[float, float] | None]]:
    from labkit.results import load_records

    medians = {}
    for record in load_records(folder).records:
        for key, summary in record.summary.items():
            interval = summary["p50_interval"]
            if summary["p50"] is not None:
                ends = (interval["low"], interval["high"]) if interval else None
                medians[f"lab {record.lab}", record.name, key] = (summary["p50"], ends)
    return medians


def main(arguments=None, *, resolve=lock.resolve, torch_options=find_torch_options) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="resolve only, and print the pins that would move")
    parser.add_argument("--torch", metavar="VERSION", help="another torch; its CPU wheel must exist")
    options = parser.parse_args(arguments)
    try:
        text = propose(torch=options.torch, resolve=resolve, torch_options=torch_options)
    except lock.ResolveError as error:
        print(f"No set of newer versions fits together.\n{error}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="labkit-bump-") as name:
        scratch = Path(name)
        (scratch / "cpu.lock").write_text(text, encoding="utf-8")
        moves = lock.format_moves(lock.load_pins(lock.FOLDER / "cpu.lock"), lock.load_pins(scratch / "cpu.lock"))
        if options.dry_run or not moves:
            print(format_report(moves, None if moves else {"tests": [], "labs": [], "numbers": []}))
            return 0
        print(format_report(moves, None).rsplit("\n", 1)[0], flush=True)
        trees = {label: scratch / f"tree-{label}" for label in ("old", "new")}
        for tree in trees.values():
            copy_tree(tree)
        shutil.copy2(scratch / "cpu.lock", trees["new"] / "requirements" / "cpu.lock")
        pins = lock.load_pins(scratch / "cpu.lock")
        (trees["new"] / "environment.yml").write_text(lock.format_environment(pins), encoding="utf-8")
        command = [sys.executable, "requirements/install.py", "--tier", "cpu"]
        if subprocess.run(command, cwd=str(trees["new"])).returncode != 0:
            return 1
        pythons = {"old": Path(sys.executable), "new": trees["new"] / ".venv" / "bin" / "python"}
        outcomes = {"old": {}, "new": {}}
        # The tests once each; the solutions with the old pins before and after: their numbers need a control.
        for part, label, home in (("tests", "new", "new"), ("tests", "old", "old"), ("solutions", "old", "old"),
                                  ("solutions", "new", "new"), ("solutions", "old", "old-again")):  # fmt: skip
            print(f"Running {part} with the {label} pins ...", flush=True)
            found = run_part(part, pythons[label], trees[label], scratch / home)
            outcomes[label] = found | outcomes[label]  # of two runs of the same, the first counts
        moved = classify(outcomes["old"], outcomes["new"])
        sentences, control = compare_numbers(*(scratch / home / "runs" for home in ("old", "new", "old-again")))
        moved["numbers"] += sentences
    print(format_report(moves, moved))
    print(f"Tests and cells that passed before: {sum(word == 'passed' for word, _ in outcomes['old'].values())}.")
    print(control)
    print("Next, to take them: write the versions into requirements/*.in, run `make lock`, `make setup`, `make test`.")
    return int(any(moved.values()))


if __name__ == "__main__":
    sys.exit(main())
