"""Write the model cards from the measured files: `python data/models/card.py` (`--check` only compares).

Every number of data/models/README.md, python-11m/README.md and python-2m/README.md comes from training.json and
evaluation.json beside the weights, and from data/eval/overlap.json; so does the picture loss.svg.
"""

# ruff: noqa: E501 (a row of a Markdown table cannot be wrapped)

import argparse
import collections
import json
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from labkit.units import format_bytes, format_number, format_seconds  # noqa: E402

NAMES = {"target": "python-11m", "draft": "python-2m"}


def main() -> None:
    """Write the three cards and the two pictures, or with `--check` list the stale ones."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare only; exit status 1 if a file is stale")
    args = parser.parse_args()
    stale = []
    for path, text in make_files().items():
        if args.check and (not path.exists() or path.read_text(encoding="utf-8") != text):
            stale.append(path.relative_to(HERE).as_posix())
        elif not args.check:
            path.write_text(text, encoding="utf-8")
    if stale:
        sys.exit(f"stale: {', '.join(stale)}. Next: run `python data/models/card.py`.")


def make_files(folder: Path = HERE) -> dict[Path, str]:
    """Return {path: text} of every generated file."""
    facts = {role: _load_facts(folder / name) for role, name in NAMES.items()}
    overlap = json.loads((HERE.parent / "eval" / "overlap.json").read_text())
    files = {folder / "README.md": _format_index(facts)}
    for role, name in NAMES.items():
        files[folder / name / "README.md"] = _format_card(role, facts, overlap)
        files[folder / name / "loss.svg"] = format_loss_curve(facts[role]["training"])
    return files


def _load_facts(folder: Path) -> dict:
    facts = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("config", "training", "evaluation")}
    return facts | {"bytes": (folder / "model.safetensors").stat().st_size}


def _format_index(facts: dict) -> str:
    rows = []
    for role, name in NAMES.items():
        config, evaluation = facts[role]["config"], facts[role]["evaluation"]
        rows.append(f"| [{name}]({name}/README.md) | {role} | {_shape(config)} | "
                    f"{_millions(facts[role]['training']['num_parameters'])} | {_with_interval(evaluation['perplexity'])} | "
                    f"{_speed(evaluation['decode'])} |")  # fmt: skip
    draft = facts["draft"]["evaluation"]
    return f"""# The two models that this repository ships

{_GENERATED}

They complete Python code and nothing else: real enough to measure, quantize, serve and use for speculative decoding, small
enough to ship with the repository and to run on any processor. Weights: bf16 safetensors, Llama architecture, one tokenizer.

| model | role | shape | parameters | held-out perplexity per token | decode, one thread |
| --- | --- | --- | --- | --- | --- |
{chr(10).join(rows)}

The target accepts the draft's token {_percent(draft["acceptance"]["greedy"])} of the time when both are greedy and
{_percent(draft["acceptance"]["temperature_1"])} at temperature 1; a token of the draft costs {_share(draft["cost_ratio"])} as much
as one of the target. Intervals are 95 %.

`make models` trains both again and evaluates them. `corpus.py` selects the training text, `train.py` trains, `evaluate.py`
measures, and `card.py` writes these cards.
"""


def _format_card(role: str, facts: dict, overlap: dict) -> str:
    fact, name = facts[role], NAMES[role]
    config, training, evaluation = fact["config"], fact["training"], fact["evaluation"]
    target, draft = facts["target"]["evaluation"], facts["draft"]["evaluation"]
    heldout = evaluation["heldout"]
    baselines = target["baselines"]
    perplexity = evaluation["perplexity"]
    if (perplexity["window"], perplexity["stride"]) != (target["perplexity"]["window"], target["perplexity"]["stride"]):
        raise SystemExit("target and draft were evaluated differently. Next: run evaluate.py without options.")
    parts = [f"""# {name}: a {_millions(training['num_parameters'])} Llama that completes Python ({role})

{_GENERATED}

| | |
| --- | --- |
| shape | {_shape(config)}, {config['num_attention_heads']} heads, {config['num_key_value_heads']} key/value heads, \
head dimension {config['head_dim']}, MLP {config['intermediate_size']:,}, tied embeddings |
| vocabulary, positions | {config['vocab_size']:,} (byte-level BPE), {config['max_position_embeddings']:,} (trained on windows \
of up to 1,024) |
| weights | {training['num_parameters']:,} parameters, bf16, {format_bytes(fact['bytes'])} |
| tokens seen | {_millions(training['tokens_seen'])} in {training['num_steps']:,} steps of {training['batch_tokens']:,}, \
of {_millions(training['corpus_tokens'])} in the corpus; nothing twice |
| trained on | {training['device_name']} ({training['device']}, {training['threads']} threads), \
{format_seconds(training['seconds'])}, torch {training['torch']} |
| command | `{training['command']}` (seed {training['seed']}) |

## What it can and cannot do

It continues Python source: indentation, common idioms, names it has just seen. It knows no facts and follows no
instructions; do not run its code without reading it. It exists for measurements: it is far from converged, and a result on it
shows how a method behaves, not how good a large model would be.

## Quality on text it never saw

{heldout['num_files']} files, {heldout['num_tokens']:,} tokens, from packages that were left out of the training text as a whole
(`data/eval/manifest.csv`); {overlap['overlap_fraction']:.2%} of their {overlap['unit']} occur anywhere in the training text.
Perplexity per token, window {perplexity['window']:,}, stride {perplexity['stride']}, with BOS; 95 % interval over files.

| model | perplexity | 95 % interval |
| --- | --- | --- |
{_row('unigram, ' + baselines['unigram']['smoothing'], baselines['unigram'])}
{_row('bigram, ' + baselines['bigram']['smoothing'], baselines['bigram'])}
{_row(NAMES['draft'], draft['perplexity'])}
{_row(NAMES['target'], target['perplexity'])}

The unigram and bigram models count all {_millions(baselines['bigram']['num_training_tokens'])} tokens of the corpus. \
Target minus draft, paired: {_difference(draft['target_minus_draft_nats'])}.
"""]  # fmt: skip
    parts.append(_format_rounding(target["rounding"]) if role == "target" else _format_acceptance(draft))
    parts.append(_format_speed(evaluation, role, draft))
    parts.append(_format_loss(training))
    parts.append(_format_completions(evaluation["completions"]))
    parts.append(_format_sources(training))
    parts.append(f"""## Train it better

With a GPU, or with more time, train it on more of the corpus:
`python data/models/train.py {role} --tokens {_whole_corpus(training)} --work NEW_FOLDER`, then `python data/models/evaluate.py`
and `python data/models/card.py`. The numbers in the labs' stored outputs belong to the present weights.
""")  # fmt: skip
    return "\n".join(parts)


def _format_rounding(rounding: dict) -> str:
    # Files differ far more than bit widths do, so the digits shown are those that the paired intervals support.
    differences = list(rounding["differences_nats"].values())
    spreads = [(d["high"] - d["low"]) / 2 for d in [differences[0], *differences]]
    bits = [f"| {_bits(bits)} | {format_number(p['value'], spread * p['value'])} |"
            for (bits, p), spread in zip(rounding["bits"].items(), spreads, strict=True)]  # fmt: skip
    rows = [f"| {_pair(pair)} | {_signed(d)} | {d['verdict']} |" for pair, d in rounding["differences_nats"].items()]
    return f"""## What rounding costs

{rounding['method'].capitalize()}; the first {rounding['num_files']} files, {rounding['num_tokens']:,} tokens.

| weights | perplexity |
| --- | --- |
{chr(10).join(bits)}

| paired, nats per token | difference (95 % interval) | the first is |
| --- | --- | --- |
{chr(10).join(rows)}
"""  # fmt: skip


def _format_acceptance(draft: dict) -> str:
    acceptance = draft["acceptance"]
    return f"""## As a draft of {NAMES["target"]}

At {acceptance["num_positions"]:,} positions of {acceptance["num_files"]} held-out files ({acceptance["note"]}):

| | share of tokens accepted |
| --- | --- |
| greedy: both choose the same token | {_percent(acceptance["greedy"])} |
| temperature 1: sum over the vocabulary of min(p, q) | {_percent(acceptance["temperature_1"])} |
"""


def _format_speed(evaluation: dict, role: str, draft: dict) -> str:
    host, ratio = evaluation["host"], draft["cost_ratio"]
    return f"""## Speed

{_speed(evaluation["decode"])} decode of one sequence with one thread in {evaluation["dtype"]} on {host["cpu"]["name"]}, \
{host["cpu"]["num_cores"]} cores (median of \
{len(evaluation["decode"]["tok_per_s"])} runs of {evaluation["decode"]["num_tokens"]} tokens, 95 % interval; forward calls with
a KV cache and greedy sampling, without `generate`; load average \
{host["load_average"][0]:.1f}). A token of the draft costs {_share(ratio)} as much as one of the target ({ratio["num_pairs"]} \
pairs, in turns).
Measured on {evaluation["date"]} with torch {evaluation["versions"]["torch"]}, transformers \
{evaluation["versions"]["transformers"]}, by `{evaluation["command"]}`.
"""


def _format_loss(training: dict) -> str:
    last = training["loss_nats"][-20:]
    return f"""## Loss

![Training loss in nats per token against tokens seen; the last twenty steps average {sum(last) / len(last):.2f}](loss.svg)
"""


def _format_completions(rows: list[dict]) -> str:
    blocks = [f"````python\n{row['prompt']}\u2588{row['completion']}\n````" for row in rows]
    parsed = sum(row["is_python"] for row in rows)
    return f"""## Greedy completions

The block character marks the end of the prompt; each completion stops after 48 tokens. {parsed} of {len(rows)} are valid
Python up to that point.

{(chr(10) * 2).join(blocks)}
"""


def _format_sources(training: dict) -> str:
    groups = collections.defaultdict(list)
    for source in training["sources"]:
        groups[_licence_name(source["licence"])].append(source)
    rows = []
    for licence, sources in sorted(groups.items(), key=lambda item: -sum(s["num_characters"] for s in item[1])):
        packages = ", ".join(f"{s['package']} {s['version']}" for s in sources)
        rows.append(f"| {licence} | {len(sources)} | {sum(s['num_files'] for s in sources):,} | "
                    f"{sum(s['num_characters'] for s in sources) / 1e6:.1f} | {packages} |")  # fmt: skip
    return f"""## Training text

Python source that the locked environment already contains, under permissive licences (`corpus.py` has the rules); \
{len(training["sources"])} sources. The licences are those that the packages declare.

| licence | packages | files | million characters | which |
| --- | --- | --- | --- | --- |
{chr(10).join(rows)}
"""


def format_loss_curve(training: dict, *, width: int = 640, height: int = 260) -> str:
    """Return the loss curve as SVG: a thin line through every step, a thick line for the mean of 20 steps."""
    loss, batch = training["loss_nats"], training["batch_tokens"]
    left, right, top, bottom = 46, 12, 12, 36
    low, high = int(min(loss)), int(max(loss)) + 1
    smooth = [sum(loss[max(0, i - 19) : i + 1]) / len(loss[max(0, i - 19) : i + 1]) for i in range(len(loss))]

    def place(i: float, value: float) -> str:
        x = left + (width - left - right) * i / max(1, len(loss) - 1)
        return f"{x:.1f},{top + (height - top - bottom) * (high - value) / (high - low):.1f}"

    lines = []
    for values, style in ((loss, 'stroke="#9ecae1" stroke-width="1"'), (smooth, 'stroke="#08519c" stroke-width="2"')):
        points = " ".join(place(i, value) for i, value in enumerate(values))
        lines.append(f'<polyline fill="none" {style} points="{points}"/>')
    for value in range(low, high + 1):
        y = place(0, value).split(",")[1]
        lines.append(f'<text x="{left - 6}" y="{float(y) + 4:.1f}" text-anchor="end">{value}</text>')
        lines.append(f'<line x1="{left}" x2="{width - right}" y1="{y}" y2="{y}" stroke="#888" stroke-opacity="0.25"/>')
    for part in range(5):
        x = place(part / 4 * (len(loss) - 1), low).split(",")[0]
        tokens = part / 4 * len(loss) * batch / 1e6
        lines.append(f'<text x="{x}" y="{height - bottom + 16}" text-anchor="middle">{tokens:.2f}</text>')
    middle = (top + height - bottom) / 2
    lines.append(f'<text x="{(left + width) / 2}" y="{height - 4}" text-anchor="middle">million tokens seen</text>')
    lines.append(
        f'<text transform="translate(12 {middle}) rotate(-90)" text-anchor="middle">loss, nats per token</text>'
    )
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
            f'font-size="12" fill="#444"><rect width="{width}" height="{height}" fill="#fff"/>\n'
            + "\n".join(lines) + "\n</svg>\n")  # fmt: skip


_GENERATED = "<!-- Written by data/models/card.py from measured files. Do not edit by hand. -->"
_LICENCES = (  # (name of the row, pattern)
    ("Apache-2.0", r"Apache"), ("BSD", r"BSD"), ("MIT", r"MIT"), ("PSF", r"PSF|Python Software"), ("ISC", r"ISC"),
)  # fmt: skip


def _licence_name(text: str) -> str:
    found = [name for name, pattern in _LICENCES if re.search(pattern, text)]
    return " and ".join(found) or text


def _shape(config: dict) -> str:
    return f"{config['num_hidden_layers']} layer{'s' * (config['num_hidden_layers'] > 1)} x {config['hidden_size']}"


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} M"


def _with_interval(p: dict, scale: float = 1.0, unit: str = "") -> str:
    """Write "23.0 (21.9 to 24.2)", with as many digits as the interval's width supports."""
    value, low, high = (p[key] * scale for key in ("value", "low", "high"))
    number, ends = format_number(value, (high - low) / 2), [format_number(x, (high - low) / 2) for x in (low, high)]
    return f"{number}{unit} ({ends[0]} to {ends[1]}{unit})"


def _row(name: str, p: dict) -> str:
    text = _with_interval(p)
    value, ends = text.split(" (")
    return f"| {name} | {value} | {ends.rstrip(')')} |"


def _percent(p: dict) -> str:
    return _with_interval(p, 100, " %")


def _share(p: dict) -> str:
    return _with_interval(p)


def _speed(decode: dict) -> str:
    if decode["low"] is None:
        return f"{format_number(decode['p50'])} tok/s"
    return _with_interval({"value": decode["p50"], "low": decode["low"], "high": decode["high"]}, 1, " tok/s")


def _difference(d: dict) -> str:
    return f"{_signed(d)} nats per token"


def _signed(d: dict) -> str:
    width = (d["high"] - d["low"]) / 2
    value, low, high = (format_number(d[key], width) for key in ("value", "low", "high"))
    return f"{'+' if d['value'] > 0 else ''}{value} ({low} to {high})"


def _bits(bits: str) -> str:
    return "as shipped" if bits == "16" else f"{bits} bits"


def _pair(pair: str) -> str:
    a, b = pair.split(" - ")
    return f"{_bits(a)} against {_bits(b)}"


def _whole_corpus(training: dict) -> str:
    return f"{training['corpus_tokens'] // 100_000 / 10:.1f}e6"


if __name__ == "__main__":
    main()
