"""Choose the held-out files and measure how much of them the training text holds: `python data/eval/build_manifest.py`.

Writes manifest.csv and overlap.json beside this file. The files come from the packages that data/models/corpus.py holds
out as a whole. Overlap is counted in 13-grams of words (a word is a run of letters, digits and underscores, `\\w+`,
case-sensitive): the share of a file's 13-grams that occur anywhere in the whole training text, including the part that
no model saw. A file above `MAX_FILE_OVERLAP` is left out: licence texts and copied code do not test anything.
"""

import csv
import hashlib
import importlib.metadata as metadata
import json
import re
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "models"))
import corpus  # noqa: E402

N = 13
MAX_FILE_OVERLAP = 0.05
MIN_TOKENS, MAX_TOKENS, MAX_FILES_PER_PACKAGE = 200, 2500, 30
SAMPLE_PACKAGES = ("anyio", "jupyter-client", "nbclient", "pygments")  # closely related, quick to recount
COLUMNS = ("package", "version", "file", "sha256", "num_tokens", "num_characters", "num_13grams", "num_overlapping")
WORD = re.compile(r"\w+")
_hashes: dict[str, int] = {}


def main() -> None:
    """Build both files; the training text is read once and its 13-grams are cached in data/runs/training/."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(HERE.parent / "models" / "python-2m" / "tokenizer.json"))
    cache = HERE.parent / "runs" / "training" / "grams13.npy"
    if not cache.exists():
        documents, _ = corpus.load_documents()
        np.save(cache, np.unique(np.concatenate([make_grams(text) for text in documents])))
    training = np.load(cache)
    rows, num_dropped = [], 0
    for row, text in iter_candidates(tokenizer):
        grams = make_grams(text)
        row |= {"num_13grams": len(grams), "num_overlapping": count_overlap(grams, training)}
        if row["num_overlapping"] > MAX_FILE_OVERLAP * len(grams):
            num_dropped += 1
        else:
            rows.append(row)
    per_package = [[row for row in rows if row["package"] == name] for name in corpus.HELD_OUT]
    rows = sorted(sum((part[:MAX_FILES_PER_PACKAGE] for part in per_package), []), key=lambda row: row["sha256"])
    with (HERE / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    total, hits = (sum(row[key] for row in rows) for key in ("num_13grams", "num_overlapping"))
    sample, versions = make_sample_grams()
    report = {
        "command": "python data/eval/build_manifest.py",
        "unit": "word 13-grams", "max_file_overlap": MAX_FILE_OVERLAP,
        "num_files": len(rows), "num_tokens": sum(row["num_tokens"] for row in rows),
        "num_files_left_out_for_overlap": num_dropped,
        "num_training_13grams_distinct": len(training),
        "num_13grams": total, "num_overlapping": hits, "overlap_fraction": hits / total,
        "sample": {"packages": versions,
                   "num_overlapping": sum(count_overlap(make_grams(text), sample) for _, text in iter_files(rows))},
        "manifest_sha256": hashlib.sha256((HERE / "manifest.csv").read_bytes()).hexdigest(),
    }  # fmt: skip
    (HERE / "overlap.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


def iter_candidates(tokenizer):
    """Yield (row, text) for every held-out file that is neither too short nor too long, ordered by hash per package."""
    for name in corpus.HELD_OUT:
        dist = metadata.distribution(name)
        found = []
        for entry in dist.files or ():
            if entry.suffix != ".py":
                continue
            path = Path(dist.locate_file(entry))
            if not list(corpus._readable(Path(dist.locate_file("")), [path])) or not (text := corpus._text(path)):
                continue
            row = {"package": name, "version": dist.version, "file": entry.as_posix(),
                   "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                   "num_tokens": len(tokenizer.encode(text).ids), "num_characters": len(text)}  # fmt: skip
            if MIN_TOKENS <= row["num_tokens"] <= MAX_TOKENS:
                found.append((row, text))
        yield from sorted(found, key=lambda pair: pair[0]["sha256"])


def iter_files(rows):
    """Yield (row, text) for rows of the manifest, read from the installed packages."""
    for row in rows:
        yield row, Path(metadata.distribution(row["package"]).locate_file(row["file"])).read_text(encoding="utf-8")


def make_grams(text: str) -> np.ndarray:
    """Return one 64-bit hash per window of 13 words (a wrapping polynomial over the words' hashes)."""
    for word in (words := WORD.findall(text)):
        if word not in _hashes:
            _hashes[word] = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
    codes = np.array([_hashes[word] for word in words], dtype=np.uint64)
    if len(codes) < N:
        return np.empty(0, np.uint64)
    grams = np.zeros(len(codes) - N + 1, np.uint64)
    for k in range(N):
        grams = grams * np.uint64(0x9E3779B97F4A7C15) + codes[k : len(codes) - N + 1 + k]
    return grams


def count_overlap(grams: np.ndarray, training: np.ndarray) -> int:
    """Return how many of `grams` are among the sorted, distinct `training` ones."""
    places = np.searchsorted(training, grams)
    places[places == len(training)] = 0
    return int((training[places] == grams).sum())


def make_sample_grams() -> tuple[np.ndarray, dict[str, str]]:
    """Return the sorted 13-grams of a few training packages, which a test recounts, and the packages' versions."""
    sources = [source for source in corpus.iter_sources() if source.name in SAMPLE_PACKAGES]
    texts = [text for source in sources for text in filter(None, map(corpus._text, source.files))]
    return np.unique(np.concatenate([make_grams(text) for text in texts])), {s.name: s.version for s in sources}


if __name__ == "__main__":
    main()
