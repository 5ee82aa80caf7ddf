"""Are the checks any good? Every reference solution is changed in small ways; a good check rejects nearly all of them.

    python tests/mutants.py            writes tests/mutants.csv: per exercise the number of mutants, how many were
                                       rejected, and which survived
    python tests/mutants.py 00.2       shows every mutant of one exercise and what its check said; writes nothing

A mutant is one change in the solution region: a comparison flipped, a constant plus or minus one, + and - or * and /
exchanged, a term dropped, and/or exchanged, a result that is lost, a slice off by one. It is rejected when the check
says anything but "passed". A mutant that computes the same as the solution can be named in EQUIVALENT, with the reason.
"""

import ast
import contextlib
import csv
import functools
import hashlib
import io
import os
import pickle
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

TABLE = ROOT / "tests" / "mutants.csv"
COLUMNS = ("exercise", "mutants", "equivalent", "rejected", "score", "stamp", "survivors")
TIME_LIMIT_S = 10.0
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


@dataclass(frozen=True, slots=True)
class Exercise:
    """A reference solution: its cell's code, the lines of its regions, and the name that check() is given."""

    id: str
    code: str
    lines: frozenset[int]
    answer_name: str
    imports: str
    stamp: str
    before: str = ""  # what the answer calls: the lab's earlier answers


@functools.cache
def load_exercises() -> list[Exercise]:
    """Read every exercise that has a solution cell, in order of labs."""
    from labkit.authoring.build import load_sources

    found = []
    for source in load_sources(ROOT):
        earlier: dict[str, str] = {}
        cells = [cell for cell in source.cells if cell.kind == "code"]
        imports = _find_import_lines(cells)
        names = _find_answer_names(cells)
        for card in source.exercise_cards():
            exercise = card.metadata["exercise"]
            (cell,) = [cell for cell in cells if cell.metadata.get("solution") == exercise]
            code, lines = _split(cell)
            before = _find_needed(code, earlier)
            stamp = _estimate_stamp(f"{before}\n{code}" if before else code, source.number)
            found.append(Exercise(exercise, code, lines, names[exercise], imports, stamp, before))
            earlier |= {node.name: code for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)}
    return found


def _find_needed(code: str, earlier: dict[str, str]) -> str:
    """The earlier solutions of a lab whose functions this one calls."""
    used = {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}
    return "\n\n".join(dict.fromkeys(text for name, text in earlier.items() if name in used))


def _split(cell) -> tuple[str, frozenset[int]]:
    """The solution without markers, and the numbers of its lines that stand in a region."""
    shown = [(text, role) for text, role in cell._lines() if role != "stub"]
    return "\n".join(t for t, _ in shown), frozenset(k for k, (_, role) in enumerate(shown, 1) if role == "answer")


def _find_import_lines(cells) -> str:
    nodes = [node for cell in cells for node in ast.parse(cell.solution_text()).body]
    return "\n".join(ast.unparse(node) for node in nodes if isinstance(node, ast.Import | ast.ImportFrom))


def _find_answer_names(cells) -> dict[str, str]:
    """{"00.1": "weight_bytes"} from the calls check("00.1", weight_bytes)."""
    names = {}
    for cell in cells:
        for node in ast.walk(ast.parse(cell.solution_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "check":
                names[node.args[0].value] = ast.unparse(node.args[1])
    return names


def _estimate_stamp(code: str, number: str) -> str:
    """Hash of what decides the score: this engine, the solution, the lab's check and what that imports from checks/."""
    engine = Path(__file__).read_text(encoding="utf-8")
    return hashlib.sha256(f"{engine}\n{code}\n{_find_check_rooms(number)}".encode()).hexdigest()[:16]


@functools.cache
def _find_check_rooms(number: str) -> str:
    from labkit.authoring.rooms import estimate_room_hashes

    rooms = estimate_room_hashes(ROOT, text=f"import labkit.checks.lab{number}", number=number)
    return "\n".join(f"{name} {digest}" for name, digest in rooms.items() if name.startswith("labkit/checks/"))


# Making mutants


def make_mutants(code: str, lines: frozenset[int]) -> Iterator[tuple[str, str]]:
    """Yield (change, code) for every mutant, each once; a change reads `line 2: a <= b  ->  a < b`."""
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
    """Functions that take the same node in a copy of the tree, and return what stands in its place (or the node)."""
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


def judge(exercise: Exercise, code: str) -> tuple[str, str]:
    """Run one version of a solution and its check, within the time limit; return (status, sentence)."""
    from labkit.checks._run import find_check, run_check

    names = make_context(exercise)
    try:
        with _limit(TIME_LIMIT_S), contextlib.redirect_stdout(io.StringIO()):
            exec(compile(code, f"<mutant of {exercise.id}>", "exec"), names)
            outcome = run_check(find_check(exercise.id), eval(exercise.answer_name, names))
    except Exception as error:  # a cell that raises is seen by the learner at once
        return "raised", f"{type(error).__name__}: {error}"
    return outcome.status, outcome.sentence


def make_context(exercise: Exercise) -> dict:
    """The names that the solution's cell finds in the notebook: the setup cell's imports, and what was measured."""
    names: dict = {}
    exec(exercise.imports, names)
    exec(exercise.before, names)
    if exercise.id == "03.3":  # its check compares with Transformers, whose first import takes seconds
        from transformers import LlamaForCausalLM  # noqa: F401
    if exercise.id == "00.4":
        from labkit.results import save_record

        # Skewed, so that median, mean and the ends of the interval are all different numbers.
        speeds = [70.125, 71.5, 72.25, 72.75, 73.0, 73.625, 74.5, 75.25, 76.0, 76.875, 78.5, 95.0]
        names["stored"] = save_record("00", "decode", samples={"decode_tok_per_s": speeds, "ttft_s": [0.02] * 12})
    if exercise.id == "13.5":  # the milestone wants the learner's own records
        from labkit.checks._phase_1 import make_samples
        from labkit.results import load_records, save_record

        made = make_samples(7, slowest="mul", prefill="mm", memory="weights", latency="waiting", alone="prefill")
        for (claim, (samples, settings)), lab in zip(made.items(), ("11", "12", "13"), strict=True):
            if not len(load_records(lab=lab, name=claim)):
                save_record(lab, claim, samples=samples, settings=settings)
    if exercise.id == "11.4":  # the learner's own profile, which the check asks for
        from labkit.checks._profiles import make_own
        from labkit.profiling.puzzle import load_learner
        from labkit.results import save_record

        save_record("11", "slow_layer", samples={"step_s": [0.1]}, settings=make_own(load_learner("11")))
    return names


@contextlib.contextmanager
def _limit(seconds: float):
    """Stop an endless loop: SIGALRM raises in the running code, each second again, as a check catches exceptions."""

    def stop(*_):
        raise TimeoutError(f"over {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def score_exercise(exercise: Exercise, *, tell: Callable[[str], None] = lambda line: None) -> dict[str, str]:
    """Judge every mutant of one exercise and return its row of the table; the solution itself has to pass."""
    status, sentence = judge(exercise, exercise.code)
    if status != "passed":
        raise SystemExit(f"{exercise.id}: the reference solution is not passed ({status}: {sentence})")
    num, equivalent, rejected, survivors = 0, 0, 0, []
    for change, code in make_mutants(exercise.code, exercise.lines):
        if (exercise.id, change) in EQUIVALENT:
            equivalent += 1
            continue
        status, sentence = judge(exercise, code)
        num, rejected = num + 1, rejected + (status != "passed")
        survivors += [change] if status == "passed" else []
        tell(f"{status:<14}{change}\n{'':14}{sentence}")
    values = (exercise.id, num, equivalent, rejected, f"{rejected / num:.3f}", exercise.stamp, " | ".join(survivors))
    return dict(zip(COLUMNS, map(str, values), strict=True))


def make_table(*, tell: Callable[[str], None] = lambda line: None) -> list[dict[str, str]]:
    """Score every exercise, with a home and runs of its own."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="labkit-mutants-") as folder:
        os.environ |= {"LABKIT_HOME": folder, "LABKIT_RUNS": f"{folder}/runs"}
        for exercise in load_exercises():
            rows.append(score_exercise(exercise))
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
        for exercise in load_exercises():
            if exercise.id in arguments:
                row = score_exercise(exercise, tell=print)
                print(f"{exercise.id}: {row['rejected']} of {row['mutants']} rejected, score {row['score']}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
