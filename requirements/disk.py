"""Do the missing packages and their downloads fit on the disk?"""

import json
import os
import shutil
from pathlib import Path

from console import Stop, say
from pins import Lock, find_missing

SIZES = Path(__file__).resolve().with_name("sizes.json")  # {name: bytes unpacked}, made by sizes.py
DOWNLOAD_SHARE = 0.45  # wheels beside what they unpack to (GPU tier: 4.24 of 10.01 GB), and a little room to build
GIB = 1024**3


def estimate_need_bytes(lock: Lock, installed: dict[str, str], sizes: dict[str, int]) -> int:
    """Disk that the missing packages take, unpacked; a package without a size counts as the mean."""
    missing = find_missing(lock.pins, installed)
    if lock.torch and find_missing({"torch": lock.torch}, installed):
        missing.append("torch+cpu")
    mean = sum(sizes.values()) / len(sizes)
    return int(sum(sizes.get(name, mean) for name in missing))


def load_sizes() -> dict[str, int]:
    return json.loads(SIZES.read_text(encoding="utf-8"))


def find_pip_cache() -> Path:
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("PIP_CACHE_DIR") or Path(caches, "pip"))


def check_disk(need_bytes: int, target: Path, cache: Path) -> None:
    """Stop when the packages and the downloads do not fit; say what they need and what is free.

    The downloads count twice: pip keeps them in its cache, and, until everything is installed, beside the packages.
    """
    places, downloads = {}, need_bytes * DOWNLOAD_SHARE
    for folder, amount, use in ((target, need_bytes + downloads, "packages"), (cache, downloads, "downloads")):
        folder = next(place for place in (folder, *folder.parents) if place.exists())
        place = places.setdefault(os.stat(folder).st_dev, {"folder": folder, "need": 0.0, "uses": []})
        place["need"] += amount
        place["uses"].append(use)
    for place in places.values():
        free, need, uses = shutil.disk_usage(place["folder"]).free, place["need"], " and ".join(place["uses"])
        if free < need:
            raise Stop(
                f"The {uses} need {need / GIB:.1f} GiB, but only {free / GIB:.1f} GiB are free on the disk of "
                f"{place['folder']}. Next: free {(need - free) / GIB:.1f} GiB there, or put the course on a larger "
                "disk (downloads: set PIP_CACHE_DIR), then run this again."
            )
        say(f"Disk: {uses} need {need / GIB:.1f} GiB, {free / GIB:.1f} GiB are free.")
