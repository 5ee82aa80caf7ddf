"""Measure how many bytes each locked package takes on disk, for the installer's disk check (requirements/sizes.json).

    .venv/bin/python requirements/sizes.py            # what is installed in this environment
    .venv/bin/python requirements/sizes.py FOLDER     # wheels in a folder (pip download), where nothing is installed

Run it after `make lock` has moved large packages; a package without a size counts as the mean in the check.
"""

import importlib.metadata
import json
import sys
import zipfile
from pathlib import Path

from pins import load_pins, normalise

TABLE = Path(__file__).resolve().with_name("sizes.json")
BLOCK = 4096


def round_up(size: int) -> int:
    """Bytes that a file takes on a disk with blocks of 4 KiB."""
    return -(-size // BLOCK) * BLOCK


def measure_installed() -> dict:
    """{name: bytes} of the running environment; torch's CPU build has its own name."""
    sizes = {}
    for distribution in importlib.metadata.distributions():
        name = normalise(distribution.metadata["Name"] or "")
        paths = [Path(file.locate()) for file in distribution.files or ()]
        size = sum(round_up(path.stat().st_size) for path in paths if path.is_file())
        is_cpu_torch = name == "torch" and distribution.version.endswith("+cpu")
        sizes["torch+cpu" if is_cpu_torch else name] = size
    return sizes


def measure_wheels(folder: Path) -> dict:
    """{name: bytes} of unpacked wheels; every .py file counts twice, because pip compiles it."""
    sizes = {}
    for path in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(path) as wheel:
            files = [(info.filename, round_up(info.file_size)) for info in wheel.infolist()]
        sizes[normalise(path.name.split("-")[0])] = sum(
            size * (2 if name.endswith(".py") else 1) for name, size in files
        )
    return sizes


def main(arguments: list) -> int:
    found = measure_wheels(Path(arguments[0])) if arguments else measure_installed()
    old = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.exists() else {}
    if arguments:  # a size measured after installation is better than one computed from a wheel
        found = {name: size for name, size in found.items() if name not in old}
    folder = TABLE.parent
    wanted = {name for tier in ("cpu", "gpu") for name in load_pins(folder / f"{tier}.lock")}
    wanted.add("torch+cpu")
    sizes = {name: size for name, size in sorted({**old, **found}.items()) if name in wanted}
    TABLE.write_text(json.dumps(sizes, indent=0) + "\n", encoding="utf-8")
    unknown = sorted(wanted - set(sizes))
    print(f"{len(sizes)} packages, {sum(sizes.values()) / 1e9:.2f} GB; without a size: {', '.join(unknown) or 'none'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
