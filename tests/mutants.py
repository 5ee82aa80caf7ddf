"""How good are the checks? Every reference solution is changed in small ways; a good check rejects nearly all changes.

    python tests/mutants.py            writes tests/mutants.csv: per exercise the number of mutants, how many were
                                       rejected, and which survived
    python tests/mutants.py 00.2       shows every mutant of one exercise and what its check said; writes nothing

A mutant is one change in the solution region: a comparison flipped, a constant plus or minus one, + and - or * and /
swapped, a term dropped, and/or swapped, a result discarded, a slice off by one. It is rejected if the check says
anything but "passed". A mutant equivalent to the solution can be listed in EQUIVALENT, with the reason.
"""

import ast
import contextlib
import csv
import hashlib
import io
import os
import pickle
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from labkit.authoring.dependencies import estimate_module_hashes  # noqa: E402
from labkit.checks.judge import judge  # noqa: E402
from labkit.checks.reference import Reference, load_reference, make_names  # noqa: E402
from labkit.environment import find_lab_folder, load_lab_module  # noqa: E402
from labkit.progress import load_course  # noqa: E402

TABLE = ROOT / "tests" / "mutants.csv"
COLUMNS = ("exercise", "mutants", "equivalent", "rejected", "score", "stamp", "survivors")
TIME_LIMIT_S = 30.0  # of the processor
MIN_SCORE = 0.8

# (exercise, change) -> why the changed solution is still a right one. Such a mutant is not counted.
EQUIVALENT: dict[tuple[str, str], str] = {}

_COMPARISONS = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.GtE),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
_OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.MatMult: ast.Mult,
}
_NAMES = {"max": "min", "min": "max", "any": "all", "all": "any", "low": "high", "high": "low", "p50": "mean"}
_NAMES |= {"p50_interval": "mean_interval", "mean_interval": "p50_interval"}


def load_exercises() -> list[Reference]:
    """Read the reference solution of every exercise, in order of labs."""
    return [load_reference(exercise.id) for lab in load_course().labs for exercise in lab.exercises]


def estimate_stamp(reference: Reference) -> str:
    """Return a hash of everything that decides the score: this engine, the solution, the lab's checks and the judge."""
    texts = [Path(__file__).read_text(encoding="utf-8"), reference.earlier, reference.code]
    folder = find_lab_folder(reference.exercise[:2])
    hashes = estimate_module_hashes(ROOT, text="import labkit.checks.judge", folder=folder)
    texts += [
        f"{name} {digest}" for name, digest in hashes.items() if not name.startswith("labkit/") or "/checks/" in name
    ]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


# Making mutants


def make_mutants(code: str, lines: frozenset[int]) -> Iterator[tuple[str, str]]:
    """Yield (change, code) for every distinct mutant; a change reads `line 2: a <= b  ->  a < b`."""
    tree = ast.parse(code)
    frozen = pickle.dumps(tree)
    seen = {ast.unparse(tree)}
    for index, node in enumerate(ast.walk(tree)):
        if getattr(node, "lineno", None) not in lines and not isinstance(node, ast.comprehension):
            continue
        if isinstance(node, ast.comprehension) and node.iter.lineno not in lines:
            continue
        for change in _list_changes(node):
            mutant = pickle.loads(frozen)  # a copy, many times as fast as copy.deepcopy
            target = next(found for k, found in enumerate(ast.walk(mutant)) if k == index)
            before = ast.unparse(target)
            replacement = change(target)
            if replacement is not target:
                _replace(mutant, target, replacement)
            text = ast.unparse(ast.fix_missing_locations(mutant))
            if text not in seen:
                seen.add(text)
                line = getattr(node, "lineno", None) or node.iter.lineno
                yield f"line {line}: {_short(before)}  ->  {_short(ast.unparse(replacement))}", text


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 70 else text[:67] + "..."


def _list_changes(node: ast.AST) -> Iterator[Callable[[ast.AST], ast.AST]]:
    """Yield functions that take the same node in a copy of the tree and return its replacement, or the changed node."""
    if isinstance(node, ast.Compare):
        for place, operator in enumerate(node.ops):
            for other in _COMPARISONS[type(operator)]:
                yield lambda n, place=place, other=other: _put(n, "ops", place, other())
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        yield lambda n: ast.Constant(n.value + 1)
        yield lambda n: ast.Constant(n.value - 1)
    elif isinstance(node, ast.Constant) and type(node.value) is bool:
        yield lambda n: ast.Constant(not n.value)
    elif isinstance(node, ast.BinOp):
        yield lambda n: _set(n, op=_OPERATORS.get(type(n.op), ast.Add)())
        yield lambda n: n.left
        yield lambda n: n.right
    elif isinstance(node, ast.AugAssign):
        yield lambda n: _set(n, op=_OPERATORS.get(type(n.op), ast.Add)())
        yield lambda n: ast.Pass()
    elif isinstance(node, ast.BoolOp):
        yield lambda n: _set(n, op=ast.Or() if isinstance(n.op, ast.And) else ast.And())
        for place in range(len(node.values)):
            yield lambda n, place=place: n.values[1 - place] if len(n.values) == 2 else _drop(n, "values", place)
    elif isinstance(node, ast.UnaryOp):
        yield lambda n: n.operand
    elif isinstance(node, ast.If | ast.IfExp | ast.While):
        yield lambda n: _set(n, test=ast.Constant(False))
        if not isinstance(node, ast.While):
            yield lambda n: _set(n, test=ast.Constant(True))
    elif isinstance(node, ast.Return) and node.value is not None:
        yield lambda n: _set(n, value=ast.Constant(None))
    elif isinstance(node, ast.Expr):
        yield lambda n: ast.Pass()
    elif isinstance(node, ast.Slice):
        yield from _list_slice_changes(node)
    elif isinstance(node, ast.Dict):
        for place in range(len(node.values)):
            yield lambda n, place=place: _put(n, "values", place, ast.Constant(None))
    elif isinstance(node, ast.Call):
        for place in range(len(node.keywords)):
            yield lambda n, place=place: _drop(n, "keywords", place)
    elif isinstance(node, ast.comprehension):
        for place in range(len(node.ifs)):
            yield lambda n, place=place: _drop(n, "ifs", place)
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in _NAMES:
        yield lambda n: _set(n, id=_NAMES[n.id])
    elif isinstance(node, ast.Attribute) and node.attr in _NAMES:
        yield lambda n: _set(n, attr=_NAMES[n.attr])


def _list_slice_changes(node: ast.Slice) -> Iterator[Callable[[ast.AST], ast.AST]]:
    for side in ("lower", "upper"):
        bound = getattr(node, side)
        if bound is None:
            missing = ast.Constant(1) if side == "lower" else ast.UnaryOp(ast.USub(), ast.Constant(1))
            yield lambda n, side=side, missing=missing: _set(n, **{side: missing})
        elif not isinstance(bound, ast.Constant):  # a constant is moved by its own change
            for operator in (ast.Add, ast.Sub):
                yield lambda n, side=side, operator=operator: _set(
                    n, **{side: ast.BinOp(getattr(n, side), operator(), ast.Constant(1))}
                )


def _set(node: ast.AST, **fields) -> ast.AST:
    for name, value in fields.items():
        setattr(node, name, value)
    return node


def _put(node: ast.AST, field: str, place: int, value: ast.AST) -> ast.AST:
    getattr(node, field)[place] = value
    return node


def _drop(node: ast.AST, field: str, place: int) -> ast.AST:
    del getattr(node, field)[place]
    return node


def _replace(tree: ast.AST, old: ast.AST, new: ast.AST) -> None:
    for parent in ast.walk(tree):
        for field, value in ast.iter_fields(parent):
            if value is old:
                setattr(parent, field, new)
            elif isinstance(value, list):
                for place, item in enumerate(value):
                    if item is old:
                        value[place] = new


# Judging


def judge_code(reference: Reference, code: str) -> tuple[str, str]:
    """Run one version of a solution and its check, within the time limit; return (status, sentence)."""
    number, _, k = reference.exercise.partition(".")
    getattr(load_lab_module(number, "checks"), f"save_records_{k}", lambda: None)()
    try:
        with _limit(TIME_LIMIT_S), contextlib.redirect_stdout(io.StringIO()):
            outcome = judge(reference.exercise, eval(reference.answer, make_names(reference, code)))
    except Exception as error:  # a cell that raises is seen by the learner at once
        return "raised", f"{type(error).__name__}: {error}"
    return outcome.status, outcome.sentence


@contextlib.contextmanager
def _limit(seconds: float):
    """Stop an endless loop after so much of this process's own time: other work on the machine must not decide a score.

    The signal raises in the running code, each second again, as a check catches exceptions.
    """

    def stop(*_):
        raise TimeoutError(f"over {seconds:g} s")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def score_exercise(reference: Reference, *, tell: Callable[[str], None] = lambda line: None) -> dict[str, str]:
    """Judge every mutant of one exercise and return its row of the table; the solution itself must pass."""
    status, sentence = judge_code(reference, reference.code)
    if status != "passed":
        raise SystemExit(f"{reference.exercise}: the reference solution is not passed ({status}: {sentence})")
    num, equivalent, rejected, survivors = 0, 0, 0, []
    for change, code in make_mutants(reference.code, reference.lines):
        if (reference.exercise, change) in EQUIVALENT:
            equivalent += 1
            continue
        status, sentence = judge_code(reference, code)
        num, rejected = num + 1, rejected + (status != "passed")
        survivors += [change] if status == "passed" else []
        tell(f"{status:<14}{change}\n{'':14}{sentence}")
    stamp, score = estimate_stamp(reference), f"{rejected / num:.3f}"
    values = (reference.exercise, num, equivalent, rejected, score, stamp, " | ".join(survivors))
    return dict(zip(COLUMNS, map(str, values), strict=True))


def make_table(*, tell: Callable[[str], None] = lambda line: None) -> list[dict[str, str]]:
    """Score every exercise, with a temporary home and runs folder."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="labkit-mutants-") as folder:
        os.environ |= {"LABKIT_HOME": folder, "LABKIT_RUNS": f"{folder}/runs"}
        for reference in load_exercises():
            rows.append(score_exercise(reference))
            tell(f"{rows[-1]['exercise']}  {rows[-1]['rejected']} of {rows[-1]['mutants']} rejected")
    return rows


def save_table(rows: list[dict[str, str]], path: Path = TABLE) -> None:
    """Write the table."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def load_table(path: Path = TABLE) -> dict[str, dict[str, str]]:
    """Read the table: {exercise: row}."""
    with path.open(newline="", encoding="utf-8") as file:
        return {row["exercise"]: row for row in csv.DictReader(file)}


def main(arguments: list[str]) -> int:
    """Write the table, or show one exercise."""
    if not arguments:
        rows = make_table(tell=print)
        save_table(rows)
        return int(any(float(row["score"]) < MIN_SCORE for row in rows))
    with tempfile.TemporaryDirectory(prefix="labkit-mutants-") as folder:
        os.environ |= {"LABKIT_HOME": folder, "LABKIT_RUNS": f"{folder}/runs"}
        for reference in load_exercises():
            if reference.exercise in arguments:
                row = score_exercise(reference, tell=print)
                print(f"{reference.exercise}: {row['rejected']} of {row['mutants']} rejected, score {row['score']}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
