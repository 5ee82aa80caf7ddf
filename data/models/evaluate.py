"""How good are the two small models? `python data/models/evaluate.py` measures both and writes their evaluation.json.

Everything is measured on the held-out text (data/eval/), from packages that no model has seen:

- perplexity of both on all files, compared with a unigram and a bigram model of the whole training text (more than the
  models saw)
- how often the target would accept the draft's token: greedy agreement, and at temperature 1 the sum over the
  vocabulary of min(p, q), the acceptance probability of speculative sampling (Leviathan et al. 2023, arXiv:2211.17192)
- what round-to-nearest costs the target at 8, 4, 3 and 2 bits, paired by file
- decode speed of both with one thread, in turns; greedy completions as text

Acceptance and rounding use the first files of the manifest (ordered by hash, so a fair sample); the result says how
many. All intervals are over files. data/models/card.py writes the model cards from the results.
"""

import argparse
import codeop
import datetime
import hashlib
import importlib.metadata as metadata
import json
import os
import sys
import time
import warnings
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache  # noqa: E402
from transformers.utils import logging  # noqa: E402

from labkit.generation import run_generation  # noqa: E402
from labkit.hardware import probe_machine  # noqa: E402
from labkit.quality import compare_perplexity, estimate_perplexity, load_heldout, measure_perplexity  # noqa: E402
from labkit.stats import compare, summarize  # noqa: E402

WINDOW, STRIDE, GROUP = 1024, 512, 128
NUM_STEPS = 64  # of one decode run
BITS = (8, 4, 3, 2)
# Prompts end at a token boundary. After ":\n    " the models would have to go on with a token without spaces before it,
# which never happens in their training text.
PROMPTS = (
    "def read_lines(path):",
    "class Stack:\n    def __init__(self",
    "import os\nimport sys\n\n\ndef main():",
    "def parse(text):\n    try:\n        return int(text)\n    except",
    'def is_prime(n):\n    """Return True if n is a prime number."""',
    "class Person:\n    @property\n    def name(self):",
)


def main() -> None:
    """Measure, and write evaluation.json beside each model."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--target", type=Path, default=HERE / "python-11m")
    parser.add_argument("--draft", type=Path, default=HERE / "python-2m")
    parser.add_argument("--training", type=Path, default=HERE.parent / "runs" / "training", help="train.py's --work")
    parser.add_argument("--files", type=int, help="use only the first N held-out files (for a trial run; at least 6)")
    parser.add_argument("--acceptance-files", type=int, default=60)
    parser.add_argument("--rounding-files", type=int, default=70)
    parser.add_argument("--pairs", type=int, default=20, help="decode runs of each model")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    if args.files is not None and args.files < 6:
        parser.error(f"--files is {args.files}: use at least 6, fewer files give no interval")
    torch.set_num_threads(args.threads)
    logging.disable_progress_bar()
    started = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(args.draft)
    target, draft = (_load(folder) for folder in (args.target, args.draft))
    documents = load_heldout(num_documents=args.files).documents
    ids = [tokenizer(document.text, verbose=False).input_ids for document in documents]
    common = _describe_run(args, documents)
    log = _Log(started)
    results = {args.target: dict(common), args.draft: dict(common)}
    perplexity = {}
    for folder, model in ((args.target, target), (args.draft, draft)):
        perplexity[folder] = measure_perplexity(model, tokenizer, documents, window=WINDOW, stride=STRIDE)
        results[folder] |= {"model": folder.name, "perplexity": _write_perplexity(perplexity[folder])}
        log(f"{folder.name}: perplexity {perplexity[folder].perplexity:.2f}")
    baselines = measure_baselines(np.load(args.training / "ids.npy"), ids, perplexity[args.target])
    results[args.target]["baselines"] = baselines
    log(f"unigram {baselines['unigram']['value']:.1f}, bigram {baselines['bigram']['value']:.1f}")
    better = compare_perplexity(perplexity[args.target], perplexity[args.draft])
    results[args.draft]["target_minus_draft_nats"] = _write_difference(better)
    results[args.draft]["acceptance"] = measure_acceptance(target, draft, ids[: args.acceptance_files])
    acceptance = results[args.draft]["acceptance"]
    log("acceptance " + ", ".join(f"{acceptance[key]['value']:.3f} {key}" for key in ("greedy", "temperature_1")))
    for folder, decode in zip(results, measure_decode(target, draft, tokenizer, args.pairs), strict=True):
        results[folder]["decode"] = decode
    results[args.draft]["cost_ratio"] = _estimate_cost_ratio(results[args.target], results[args.draft])
    log(f"cost ratio {results[args.draft]['cost_ratio']['value']:.3f}")
    torch.set_num_threads(args.threads)
    for folder, model in ((args.target, target), (args.draft, draft)):
        results[folder]["completions"] = make_completions(model, tokenizer)
    log("completions")
    results[args.target]["rounding"] = measure_rounding(
        target, tokenizer, documents[: args.rounding_files], perplexity[args.target], log
    )
    for folder, result in results.items():
        result["seconds"] = round(time.perf_counter() - started, 1)
        (folder / "evaluation.json").write_text(json.dumps(result, indent=None, separators=(",", ":")) + "\n")
    log("written; now run data/models/card.py")


def measure_baselines(training_ids: np.ndarray, documents: list[list[int]], like) -> dict:
    """Return unigram and bigram perplexity on the same tokens; both models count every token of the training text.

    Unigram: add-one smoothing. Bigram: Witten-Bell, (c(h, w) + T(h) p(w)) / (c(h) + T(h)) with T(h) the number of
    distinct successors of h (Witten and Bell 1991). Nothing is tuned.
    """
    size = 4096
    unigram_counts = np.bincount(training_ids, minlength=size).astype(np.float64)
    unigram = (unigram_counts + 1) / (unigram_counts.sum() + size)
    codes = training_ids[:-1].astype(np.int32) * size + training_ids[1:]
    counts = np.bincount(codes, minlength=size * size).reshape(size, size)
    history, distinct = counts.sum(1), (counts > 0).sum(1)
    sums = {"unigram": [], "bigram": []}
    for ids in documents:
        h, w = np.array([0, *ids[:-1]]), np.array(ids)
        bigram = (counts[h, w] + distinct[h] * unigram[w]) / np.maximum(history[h] + distinct[h], 1)
        bigram = np.where(history[h] + distinct[h] > 0, bigram, unigram[w])
        sums["unigram"].append(-np.log(unigram[w]).sum())
        sums["bigram"].append(-np.log(bigram).sum())
    notes = {"unigram": "add-one", "bigram": "Witten-Bell, interpolated with the unigram model"}
    result = {name: _write_perplexity(_like(like, nats), has_files=False) for name, nats in sums.items()}
    for name, entry in result.items():
        entry |= {"smoothing": notes[name], "num_training_tokens": len(training_ids)}
    return result


@torch.inference_mode()
def measure_acceptance(target, draft, documents: list[list[int]]) -> dict:
    """Return greedy agreement and expected acceptance at temperature 1, over all positions of the held-out text."""
    rows = []
    for ids in documents:
        pieces = [([0, *ids])[i : i + WINDOW] for i in range(0, len(ids), WINDOW)]
        agree = accept = count = 0
        for piece in pieces:
            tokens = torch.tensor(piece)[None]
            p, q = (model(tokens, use_cache=False).logits[0].float() for model in (target, draft))  # (S, V)
            agree += (p.argmax(-1) == q.argmax(-1)).sum().item()
            accept += torch.minimum(p.softmax(-1), q.softmax(-1)).sum().item()
            count += len(piece)
        rows.append((agree, round(accept, 4), count))
    agree, accept, count = (np.array(column) for column in zip(*rows, strict=True))
    return {
        "num_files": len(rows), "num_positions": int(count.sum()),
        "note": "contexts are the held-out text itself, not what the models would write",
        "greedy": _write_share(agree, count), "temperature_1": _write_share(accept, count),
        "per_file": {"num_positions": count.tolist(), "num_greedy": agree.tolist(), "sum_accepted": accept.tolist()},
    }  # fmt: skip


def measure_decode(target, draft, tokenizer, num_pairs: int) -> tuple[dict, dict]:
    """Return the decode speeds of both models with one thread, in turns; the first pair is the warm-up."""
    torch.set_num_threads(1)
    speeds = ([], [])
    for turn in range(num_pairs + 1):
        for model, kept in zip((target, draft), speeds, strict=True):
            tok_per_s = _decode(model, tokenizer)
            if turn:
                kept.append(tok_per_s)
    return tuple(_write_speed(kept) for kept in speeds)


@torch.inference_mode()
def _decode(model, tokenizer, *, num_steps: int = NUM_STEPS) -> float:
    """Return decode steps per second of forward calls with a KV cache and greedy sampling, without `generate`."""
    cache = DynamicCache(config=model.config)
    token = model(tokenizer(PROMPTS[0], return_tensors="pt").input_ids, past_key_values=cache).logits[:, -1:].argmax(-1)
    start_s = time.perf_counter()
    for _ in range(num_steps):
        token = model(token, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)  # (1, 1)
    return num_steps / (time.perf_counter() - start_s)


@torch.inference_mode()
def measure_rounding(target, tokenizer, documents, unrounded, log) -> dict:
    """Return perplexity after rounding all linear layers of the blocks, and paired differences between widths.

    Asymmetric round-to-nearest in groups of 128 inputs (a float scale and a float minimum each); embedding and norms
    stay as they are. "16" is the model before rounding (bf16 weights): the first documents of `unrounded`.
    """
    linear = [module for module in target.model.layers.modules() if isinstance(module, torch.nn.Linear)]
    originals = [module.weight.detach().clone() for module in linear]
    n = len(documents)
    whole = (unrounded.nll_nats[:n], unrounded.num_units[:n], unrounded.names[:n])
    measured = {16: _like(unrounded, *whole)}
    for bits in BITS:
        for module, weight in zip(linear, originals, strict=True):
            module.weight.copy_(round_to_nearest(weight, bits=bits))
        measured[bits] = measure_perplexity(target, tokenizer, documents, window=WINDOW, stride=STRIDE)
        log(f"{bits} bits: {measured[bits].perplexity:.3f}")
    for module, weight in zip(linear, originals, strict=True):
        module.weight.copy_(weight)
    differences = {f"{a} - {b}": _write_difference(compare_perplexity(measured[a], measured[b]))
                   for a, b in ((8, 16), (4, 8), (3, 4), (2, 3))}  # fmt: skip
    return {
        "method": "round-to-nearest, asymmetric, groups of 128 inputs, linear layers of the blocks",
        "num_files": len(documents), "num_tokens": sum(measured[16].num_units),
        "bits": {str(bits): _write_perplexity(p, has_files=False) for bits, p in measured.items()},
        "differences_nats": differences,
    }  # fmt: skip


def round_to_nearest(weight: torch.Tensor, *, bits: int) -> torch.Tensor:
    """Round `weight` (outputs, inputs): each group of 128 inputs to 2**bits evenly spaced values from min to max."""
    groups = weight.reshape(weight.shape[0], -1, GROUP)  # (out, groups, 128)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale = ((high - low) / (2**bits - 1)).clamp_min(1e-12)
    return (((groups - low) / scale).round() * scale + low).reshape(weight.shape)


def make_completions(model, tokenizer) -> list[dict]:
    """Return greedy completions of 48 tokens, and for each whether prompt and completion are valid Python so far."""
    rows = []
    for prompt in PROMPTS:
        text = run_generation(model, tokenizer, prompt, num_tokens=48).text
        rows.append({"prompt": prompt, "completion": text, "is_python": _is_python(prompt + text)})
    return rows


def _is_python(text: str) -> bool:
    """Tell whether the text is the beginning of valid Python, with or without its last, cut-off line."""
    for part in (text, text[: text.rfind("\n") + 1]):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                codeop.compile_command(part, symbol="exec")  # None: valid so far, but unfinished
            return True
        except (SyntaxError, ValueError, OverflowError):
            continue
    return False


def _load(folder: Path):
    """Load the bf16 weights in float32, so that the arithmetic is the same on every machine."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval()


def _describe_run(args, documents) -> dict:
    machine = probe_machine().to_dict()
    packages = ("torch", "transformers", "tokenizers", "numpy")
    manifest = HERE.parent / "eval" / "manifest.csv"
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": " ".join(["python", "data/models/evaluate.py", *sys.argv[1:]]),
        "host": {key: machine[key] for key in ("cpu", "memory_bytes", "os", "python", "load_average")},
        "num_threads": args.threads, "omp_wait_policy": os.environ["OMP_WAIT_POLICY"],
        "versions": {name: metadata.version(name) for name in packages}, "dtype": "float32",
        "heldout": {"manifest_sha256": hashlib.sha256(manifest.read_bytes()).hexdigest(), "num_files": len(documents),
                    "num_tokens": sum(d.num_tokens for d in documents)},
    }  # fmt: skip


def _like(like, nats, num_units=None, names=None):
    return estimate_perplexity(nats, num_units or like.num_units, names=names or like.names, unit=like.unit,
                               window=like.window, stride=like.stride, has_bos=like.has_bos)  # fmt: skip


def _write_perplexity(p, *, has_files: bool = True) -> dict:
    """Return value, interval and the nats of each file; file names and token counts are in the model's own entry."""
    files = {"files": list(p.names), "num_tokens": list(p.num_units)} if has_files else {}
    return {"value": p.perplexity, "low": p.interval.low, "high": p.interval.high, "unit": p.unit, "window": p.window,
            "stride": p.stride, "has_bos": p.has_bos, "num_files": len(p.names), **files,
            "nll_nats": [round(x, 4) for x in p.nll_nats]}  # fmt: skip


def _write_difference(difference) -> dict:
    value, interval, verdict = difference
    return {"value": value, "low": interval.low, "high": interval.high, "verdict": verdict}


def _write_share(hits: np.ndarray, counts: np.ndarray) -> dict:
    """Return hits / counts with a bootstrap interval over files (2,000 draws, seed 0)."""
    draws = np.random.default_rng(0).integers(len(hits), size=(2000, len(hits)))
    low, high = np.percentile(hits[draws].sum(1) / counts[draws].sum(1), [2.5, 97.5])
    return {"value": float(hits.sum() / counts.sum()), "low": float(low), "high": float(high)}


def _write_speed(samples: list[float]) -> dict:
    summary = summarize(samples)
    interval = summary.p50_interval
    return {"tok_per_s": [round(x, 2) for x in samples], "p50": summary.p50, "low": interval.low if interval else None,
            "high": interval.high if interval else None, "num_threads": 1, "num_tokens": NUM_STEPS}  # fmt: skip


def _estimate_cost_ratio(target: dict, draft: dict) -> dict:
    """Return the draft's time per token over the target's, with a t-interval over the pairs."""
    speedup = compare(draft["decode"]["tok_per_s"], target["decode"]["tok_per_s"], better="higher")
    return {"value": 1 / speedup.ratio, "low": 1 / speedup.interval.high, "high": 1 / speedup.interval.low,
            "num_pairs": speedup.n}  # fmt: skip


class _Log:
    def __init__(self, started: float):
        self.started = started

    def __call__(self, text: str) -> None:
        print(f"{time.perf_counter() - self.started:6.1f} s  {text}", flush=True)


if __name__ == "__main__":
    main()
