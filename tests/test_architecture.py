"""The tree is the architecture: floors, sizes, names, the README's picture, and what has to travel."""

import ast
import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# The rooms from the ground up. A room imports only from rooms that stand before it: on a lower floor, or earlier on its
# own floor. So the order inside a floor counts as well, and there are no cycles.
FLOORS = (
    ("errors", "units", "stats", "regimes", "roofline", "cost", "workload", "budget", "journal", "asynchronous"),
    ("nvml", "hardware", "memory", "environment", "models", "results", "progress"),
    ("timing", "energy", "ceilings", "profiling", "sweep"),
    ("generation", "servers", "engine", "quantization", "load", "serving", "quality"),
    ("views", "plots", "published"),
    ("checks", "quiz", "report"),
    ("cli", "__main__", "authoring", "colab"),
)
RANK = {room: rank for rank, room in enumerate(room for floor in FLOORS for room in floor)}
FLOOR_0_IMPORTS = {"numpy", "labkit"} | set(sys.stdlib_module_names)
# Loaded only inside the function that needs them: `import labkit` is quick and works where they are missing.
HEAVY = {"torch", "transformers", "vllm", "plotly", "IPython", "psutil", "pynvml", "jupytext", "nbformat", "nbclient"}
# Programs that run as a process of their own: what they import never reaches a notebook.
PROGRAMS = {
    "labkit/servers/transformers_program.py",
    "labkit/servers/supervisor.py",
    "labkit/load/locustfile.py",  # run by Locust, which it imports
}
# A longer module needs a reason; splitting one only to pass the limit is worse.
MAX_LINES = 300
LONGER: dict[str, tuple[int, str]] = {
    "labkit/servers/transformers_program.py": (370, "a program run by its path: one file"),
}
MAX_PUBLIC_NAMES = 7
DRAWERS = {"utils", "helpers", "common", "misc", "util", "helper"}
MAX_TREE_BYTES = 45_000_000


def modules():
    return sorted(path for path in (ROOT / "labkit").rglob("*.py") if "__pycache__" not in path.parts)


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def room_of(path):
    """The room that a file belongs to: labkit/stats.py and labkit/checks/lab00.py give stats and checks."""
    return path.relative_to(ROOT / "labkit").with_suffix("").parts[0]


def rooms():
    return sorted({room_of(path) for path in modules()} - {"__init__"})


@functools.cache
def imports_of(path):
    """(module, line, is_inside_a_function) of every import in a file."""
    return tuple(find_imports(path))


def find_imports(path):
    found = [(ast.parse(path.read_text(encoding="utf-8")), False)]
    while found:
        node, is_inside = found.pop()
        is_inside_below = is_inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        found += [(child, is_inside_below) for child in reversed(list(ast.iter_child_nodes(node)))]
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: line {node.lineno} has a relative import; write the full name"
            is_package = node.module == "labkit"
            names = [f"labkit.{alias.name}" for alias in node.names] if is_package else [node.module]
        else:
            continue
        for name in names:
            yield name, node.lineno, is_inside


def broken_floors(room, path):
    for name, line, _ in imports_of(path):
        parts = name.split(".")
        target = parts[1] if parts[0] == "labkit" and len(parts) > 1 else None
        if target in RANK and target != room and RANK[target] >= RANK[room]:
            yield f"{name_of(path)}, line {line}: {room} imports {target}, which stands above it"


def test_every_room_has_a_floor():
    assert set(rooms()) <= set(RANK), "put a new room on its floor, here and in README.md"


@pytest.mark.parametrize("room", rooms())
def test_a_room_imports_only_from_below(room):
    assert [problem for path in modules() if room_of(path) == room for problem in broken_floors(room, path)] == []


def test_the_floor_guard_sees_an_import_inside_a_function(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "labkit").mkdir()
    path = tmp_path / "labkit" / "stats.py"
    path.write_text("def f():\n    from labkit import quiz\n")
    assert list(broken_floors("stats", path)) == ["labkit/stats.py, line 2: stats imports quiz, which stands above it"]


def test_the_ground_floor_needs_only_the_standard_library_and_numpy():
    for path in modules():
        if room_of(path) in FLOORS[0]:
            found = {name.split(".")[0] for name, _, _ in imports_of(path)}
            assert found <= FLOOR_0_IMPORTS, f"{name_of(path)} imports {found - FLOOR_0_IMPORTS}"


def test_heavy_libraries_are_imported_inside_the_function_that_needs_them():
    found = [
        f"{name_of(path)}, line {line}: {name}"
        for path in modules()
        if name_of(path) not in PROGRAMS
        for name, line, is_inside in imports_of(path)
        if name.split(".")[0] in HEAVY and not is_inside
    ]
    assert found == []


@pytest.mark.slow
def test_importing_all_of_labkit_loads_nothing_heavy():
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in modules()
        if path.stem != "__main__" and name_of(path) not in PROGRAMS
    ]
    heavy = sorted(HEAVY | {"pandas", "scipy", "vllm"})
    code = f"import sys, {', '.join(names)}; print([name for name in {heavy} if name in sys.modules])"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_a_module_is_short(path):
    limit, reason = LONGER.get(name_of(path), (MAX_LINES, ""))
    assert len(path.read_text(encoding="utf-8").splitlines()) <= limit, f"over {limit} lines {reason}"


def test_every_longer_module_has_a_reason_and_still_needs_it():
    for name, (limit, reason) in LONGER.items():
        num_lines = len((ROOT / name).read_text(encoding="utf-8").splitlines())
        assert MAX_LINES < num_lines <= limit, f"{name} has {num_lines} lines: take it off the list"
        assert len(reason.split()) >= 5, f"{name}: say why"


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in modules()
        if (not path.stem.startswith("_") or path.stem == "__init__") and name_of(path) not in PROGRAMS
    ],
    ids=name_of,
)
def test_public_names_are_listed_are_there_and_are_few(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    listed, defined = None, set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found = {target.id for target in targets if isinstance(target, ast.Name)}
            listed = [ast.literal_eval(item) for item in node.value.elts] if "__all__" in found else listed
            defined |= found
        elif isinstance(node, ast.ImportFrom | ast.Import):
            defined |= {alias.asname or alias.name for alias in node.names}
    if path == ROOT / "labkit" / "__init__.py" and listed is None:
        return  # the front door only carries the version
    assert listed is not None, "has no __all__"
    functions = {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_")
    }
    assert functions <= set(listed), f"public but not in __all__: {sorted(functions - set(listed))}"
    assert set(listed) <= defined, f"in __all__ but not there: {sorted(set(listed) - defined)}"
    assert len(listed) <= MAX_PUBLIC_NAMES, f"{len(listed)} public names"


def test_there_is_no_drawer_file():
    tracked = [path for folder in ("labkit", "tests", "solutions") for path in (ROOT / folder).rglob("*.py")]
    assert [name_of(path) for path in tracked if path.stem.strip("_") in DRAWERS] == []


@pytest.mark.parametrize("room", [room for room in rooms() if room != "__main__"])
def test_every_room_has_its_test_file(room):
    names = {path.stem for path in (ROOT / "tests").glob("test_*.py")}
    assert {f"test_{room}", f"test_{room.rstrip('s')}"} & names, f"tests/test_{room}.py is missing"


# The README's tree


def read_readme_tree():
    """{folder: [names]} of the block after "## The tree"; the top level has the key ""."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"^## The tree\n+```[a-z]*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL).group(1)
    tree, parents = {"": []}, []
    for line in block.splitlines():
        match = re.match(r"^( *)(\S+)", line)
        depth = len(match[1]) // 4
        if len(match[1]) > 16:  # a note that goes on in the next line
            continue
        parents = [*parents[:depth], match[2]]
        parent = parents[depth - 1] if depth else ""
        tree.setdefault(parent, []).append(match[2])
    return tree


def list_tracked():
    """Files that git tracks or would track; skipped where the tree is not a git checkout."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("this copy of the course is no git checkout")
    return [name for name in done.stdout.split("\0") if name and (ROOT / name).exists()]


def children(files, folder):
    """Names directly in a folder of the tracked tree, folders with a slash at the end."""
    inside = [name.removeprefix(folder) for name in files if name.startswith(folder)]
    return {rest.split("/")[0] + ("/" if "/" in rest else "") for rest in inside}


def test_the_tree_in_the_readme_is_the_real_tree():
    tree, files = read_readme_tree(), list_tracked()
    real = {name for name in children(files, "") if not name.startswith(".") or name == ".ci/"}
    assert set(tree.pop("")) == real
    for folder, names in tree.items():
        assert set(names) == children(files, folder), f"the README shows another {folder}"


# What travels


def test_the_tracked_tree_is_small_enough_to_travel():
    sizes = {name: (ROOT / name).stat().st_size for name in list_tracked()}
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:5]
    assert sum(sizes.values()) <= MAX_TREE_BYTES, f"largest: {largest}"


def test_no_tracked_text_names_a_folder_of_the_machine_that_it_was_written_on():
    home = str(Path.home())
    places = [str(ROOT), *([home] if len(Path(home).parts) > 2 else [])]
    for name in list_tracked():
        path = ROOT / name
        if path.suffix in {".py", ".md", ".ipynb", ".json", ".csv", ".toml", ".yml", ".lock", ".in", ".txt"}:
            text = path.read_text(encoding="utf-8", errors="replace")
            assert not any(place in text for place in places), f"{name} names a local folder"
