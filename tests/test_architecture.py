"""The tree is the architecture: layers, sizes, names, the README's tree, and what has to travel.

Only tracked files are looked at (`tracked.py`), so nothing that a learner leaves in the folder can fail a test here.
"""

import ast
import functools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tracked import glob_tracked, list_tracked

ROOT = Path(__file__).resolve().parents[1]

# The modules and packages of labkit, from the bottom up, one line per layer. A module imports only those before it:
# in a lower layer, or earlier in its own. So the order within a layer counts too, and there are no circles. A name
# here that does not exist (any more) is ignored.
LAYERS = (
    ("errors", "units", "stats", "regimes", "roofline", "cost", "workload", "budget", "journal"),
    ("nvml", "hardware", "memory", "environment", "models", "results", "progress"),
    ("timing", "energy", "ceilings", "profiling", "sweep"),
    ("generation", "servers", "engine", "quantization", "load", "quality"),
    ("views", "plots", "published"),
    ("checks", "quiz", "report"),
    ("cli", "__main__", "authoring", "colab"),
)
RANK = {module: rank for rank, module in enumerate(module for layer in LAYERS for module in layer)}
LAYER_0_IMPORTS = {"numpy", "labkit"} | set(sys.stdlib_module_names)
# Imported only inside the function that needs them: `import labkit` is quick and works where they are missing.
HEAVY = {"torch", "transformers", "vllm", "plotly", "IPython", "psutil", "pynvml", "jupytext", "nbformat", "nbclient"}
# Programs that run as a process of their own: what they import never reaches a notebook.
PROGRAMS = {
    "labkit/servers/transformers_program.py",
    "labkit/servers/supervisor.py",
    "labkit/load/locustfile.py",  # run by Locust, which it imports
}
DRAWERS = {"utils", "helpers", "common", "misc", "util", "helper"}
MAX_TREE_BYTES = 45_000_000


def tracked_or_skip():
    return list_tracked() or pytest.skip("this copy of the course is not a git checkout")


def list_files():
    """The Python files of labkit."""
    return glob_tracked("labkit/**/*.py")


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def module_of(path):
    """The module or package right below labkit: labkit/stats.py and labkit/checks/judge.py give stats and checks."""
    return path.relative_to(ROOT / "labkit").with_suffix("").parts[0]


def modules():
    return sorted({module_of(path) for path in list_files()} - {"__init__"})


@functools.cache
def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imports_of(path):
    """(module, line, is_inside_a_function) of every import in a file."""
    return tuple(find_imports(path))


def find_imports(path):
    found = [(parse(path), False)]
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


def find_upward_imports(path):
    module = module_of(path)
    for name, line, _ in imports_of(path):
        parts = name.split(".")
        target = parts[1] if parts[0] == "labkit" and len(parts) > 1 else None
        if target in RANK and target != module and RANK[target] >= RANK[module]:
            yield f"{name_of(path)}, line {line}: {module} imports {target}, which stands above it"


def test_every_module_has_a_layer():
    assert set(modules()) <= set(RANK), "add the new module to its layer at the top of this file"


@pytest.mark.parametrize("module", modules())
def test_a_module_imports_only_from_below(module):
    files = [path for path in list_files() if module_of(path) == module]
    assert [problem for path in files for problem in find_upward_imports(path)] == []


def test_the_layer_guard_sees_an_import_inside_a_function(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "labkit").mkdir()
    path = tmp_path / "labkit" / "stats.py"
    path.write_text("def f():\n    from labkit import quiz\n")
    assert list(find_upward_imports(path)) == ["labkit/stats.py, line 2: stats imports quiz, which stands above it"]


def test_the_lowest_layer_needs_only_the_standard_library_and_numpy():
    for path in list_files():
        if module_of(path) in LAYERS[0]:
            found = {name.split(".")[0] for name, _, _ in imports_of(path)}
            assert found <= LAYER_0_IMPORTS, f"{name_of(path)} imports {found - LAYER_0_IMPORTS}"


def test_heavy_libraries_are_imported_inside_the_function_that_needs_them():
    found = [
        f"{name_of(path)}, line {line}: {name}"
        for path in list_files()
        if name_of(path) not in PROGRAMS
        for name, line, is_inside in imports_of(path)
        if name.split(".")[0] in HEAVY and not is_inside
    ]
    assert found == []


@pytest.mark.slow
def test_importing_all_of_labkit_loads_nothing_heavy():
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in list_files()
        if path.stem != "__main__" and name_of(path) not in PROGRAMS
    ]
    heavy = sorted(HEAVY | {"pandas", "scipy", "vllm"})
    code = f"import sys, {', '.join(names)}; print([name for name in {heavy} if name in sys.modules])"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def find_public_name_problems(path):
    """What is wrong with `__all__` of one file."""
    listed, defined, functions = None, set(), set()
    for node in parse(path).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.add(node.name)
            functions |= {node.name} if not node.name.startswith("_") else set()
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found = {one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)}
            listed = [ast.literal_eval(item) for item in node.value.elts] if "__all__" in found else listed
            defined |= found
        elif isinstance(node, ast.ImportFrom | ast.Import):
            defined |= {alias.asname or alias.name for alias in node.names}
    if listed is None:
        return [f"{name_of(path)} has no __all__"]
    return [f"{name_of(path)}: {name} is public, but not in __all__" for name in sorted(functions - set(listed))] + [
        f"{name_of(path)}: {name} is in __all__, but does not exist" for name in sorted(set(listed) - defined)
    ]


def test_every_public_name_is_in_all_and_exists():
    is_public = lambda path: not path.stem.startswith("_") or path.stem == "__init__"  # noqa: E731
    files = [path for path in list_files() if is_public(path) and name_of(path) not in PROGRAMS]
    files.remove(ROOT / "labkit" / "__init__.py")  # it only carries the version
    assert [problem for path in files for problem in find_public_name_problems(path)] == []


def find_private_imports(path):
    """Names with a leading underscore that a file takes from another module, by import or as `module._name`."""
    aliases = {}
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "labkit":
            for alias in node.names:
                aliases[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                if is_private(alias.name) and not is_module(f"{node.module}.{alias.name}"):
                    yield f"{name_of(path)}, line {node.lineno}: {node.module}.{alias.name}"
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and isinstance(node.value, ast.Name):
            module = aliases.get(node.value.id, "")
            if is_module(module):
                yield f"{name_of(path)}, line {node.lineno}: {module}.{node.attr}"


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def is_module(name):
    return (ROOT / (name.replace(".", "/") + ".py")).exists()


def test_no_module_takes_a_private_name_from_another():
    found = [problem for path in list_files() for problem in find_private_imports(path)]
    assert found == [], f"{len(found)} imports; a name that another module needs is public:\n" + "\n".join(found)


# labkit knows no lab by its number


def list_lab_numbers():
    names = [name_of(path) for path in (*glob_tracked("solutions/src/*.py"), *glob_tracked("solutions/src/*/lab.py"))]
    return {name[14:16] for name in names if re.match(r"solutions/src/\d\d_", name)}


def find_lab_numbers(path, numbers):
    """Strings (docstrings excepted), identifiers and file names that name a lab by its number."""
    tree = parse(path)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {id(node.body[0].value) for node in ast.walk(tree)
                  if isinstance(node, documented) and ast.get_docstring(node) is not None}  # fmt: skip
    texts = [(1, name) for name in path.relative_to(ROOT).with_suffix("").parts]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant):
            values = [getattr(node, key, None) for key in ("id", "attr", "name", "arg", "asname")]
        else:
            values = [node.value] if id(node) not in docstrings else []
        texts += [(getattr(node, "lineno", 0), value) for value in values if isinstance(value, str)]
    found = {(line, match) for line, text in texts if (match := find_lab_number(text, numbers))}
    return [f"{name_of(path)}, line {line}: {match!r}" for line, match in sorted(found)]


def find_lab_number(text, numbers):
    """Where a text is a lab's or an exercise's number ("12", "12.1", "12.p1"), or says "lab 12" or "lab12"; else ""."""
    exact = re.fullmatch(r"(\d\d)(?:\.[pq]?\d+)?", text)
    named = re.finditer(r"(?i).{,15}lab[ _]?(\d\d)(?!\d)", text)
    return next((found[0] for found in [exact, *named] if found and found[1] in numbers), "")


@pytest.mark.parametrize("text", ["12", "12.1", "12.p1", "12.q3", "see lab 12", "lab12", "check_lab_12"])
def test_the_guard_sees_a_lab_named_by_its_number(text):
    assert find_lab_number(text, {"12"}) and not find_lab_number(text, {"13"})


@pytest.mark.parametrize("text", ["lab", "120", "1.12", "12.5 ms", "label 12", "12 tok/s", "lab 120"])
def test_the_guard_lets_other_numbers_pass(text):
    assert not find_lab_number(text, {"12"})


def test_labkit_knows_no_lab_by_its_number():
    numbers = list_lab_numbers()
    found = [problem for path in list_files() for problem in find_lab_numbers(path, numbers)]
    assert found == [], f"{len(found)} places; what belongs to one lab is in its folder:\n" + "\n".join(found)


# Files


def test_there_is_no_drawer_file():
    names = [name for name in tracked_or_skip() if name.startswith(("labkit/", "tests/", "solutions/"))]
    assert [name for name in names if Path(name).stem.strip("_") in DRAWERS] == []


@pytest.mark.parametrize("module", [module for module in modules() if module != "__main__"])
def test_every_module_has_its_test_file(module):
    names = {path.stem for path in (ROOT / "tests").glob("test_*.py")}
    assert {f"test_{module}", f"test_{module.rstrip('s')}"} & names, f"tests/test_{module}.py is missing"


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


def children(files, folder):
    """Names directly in a folder of the tracked tree, folders with a slash at the end."""
    inside = [name.removeprefix(folder) for name in files if name.startswith(folder)]
    return {rest.split("/")[0] + ("/" if "/" in rest else "") for rest in inside}


def test_the_tree_in_the_readme_is_the_real_tree():
    tree, files = read_readme_tree(), tracked_or_skip()
    real = {name for name in children(files, "") if not name.startswith(".") or name == ".ci/"}
    assert set(tree.pop("")) == real
    for folder, names in tree.items():
        assert set(names) == children(files, folder), f"the README shows another {folder}"


# What travels


def test_the_tracked_tree_is_small_enough_to_travel():
    sizes = {name: (ROOT / name).stat().st_size for name in tracked_or_skip()}
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:5]
    assert sum(sizes.values()) <= MAX_TREE_BYTES, f"largest: {largest}"


def test_no_tracked_text_names_a_folder_of_the_machine_that_it_was_written_on():
    home = str(Path.home())
    places = [str(ROOT), *([home] if len(Path(home).parts) > 2 else [])]
    for name in tracked_or_skip():
        path = ROOT / name
        if path.suffix in {".py", ".md", ".ipynb", ".json", ".csv", ".toml", ".yml", ".lock", ".in", ".txt"}:
            text = path.read_text(encoding="utf-8", errors="replace")
            assert not any(place in text for place in places), f"{name} names a local folder"


# What a learner leaves in the folder

LEFTOVERS = (
    "notes.md",
    "logs/run.log",
    "checkpoint/model.safetensors",
    "labkit/scratch.py",
    "labs/my_notebook.ipynb",
    "labs/12_again.ipynb",
    "solutions/src/mine.py",
    "solutions/src/12_hf_vs_vllm/scratch.py",
    "data/recorded/mine/runs.jsonl",
)


@pytest.mark.slow
def test_what_a_learner_leaves_in_the_folder_fails_no_guard(tmp_path):
    course = tmp_path / "course"
    for name in tracked_or_skip():
        (course / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, course / name)
    for command in (["git", "init", "-q"], ["git", "add", "--all", "--force"]):
        subprocess.run(command, cwd=course, check=True)
    for name in LEFTOVERS:
        (course / name).parent.mkdir(parents=True, exist_ok=True)
        (course / name).write_text(f"import utils  # left in {course}\n")
    guards = [f"tests/test_{name}.py" for name in ("architecture", "labs", "numbers", "recorded", "quiz")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow and not long", *guards]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=course, env=environment | {"PYTHONPATH": str(course)},
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
