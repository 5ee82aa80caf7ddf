"""Train one of the two small models that the repository ships: `python data/models/train.py target --tokens 3.9e6`.

Both are Llama models for Python source with one byte-level BPE tokenizer of 4,096 tokens. The order of the data depends
on the seed alone, so a stopped run continues from its checkpoint (`--work`) with the batches that it had not seen.

Optimizer: Muon for the matrices of the blocks (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/), AdamW
for the embedding and the norms. Learning rate: warm-up, constant, linear to zero over the last `DECAY` of the tokens.
The first part reads windows of 256 tokens, the last `LONG` of the tokens windows of 1,024, so that later positions are
trained too.
"""

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads beside another process cost 15 to 40 times
HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.resolve().parents[1]))

import corpus  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: E402

from labkit.hardware import probe_machine  # noqa: E402

END = "<|endoftext|>"
SEED, BLOCK, SHORT, DECAY, LONG, WARMUP_STEPS = 0, 1024, 256, 0.35, 0.15, 40
SHAPES = {  # layers, hidden, MLP, heads, KV heads; head dimension 64, tied embeddings
    "target": {"num_hidden_layers": 6, "hidden_size": 384, "intermediate_size": 1024, "num_attention_heads": 6,
               "num_key_value_heads": 2},
    "draft": {"num_hidden_layers": 1, "hidden_size": 256, "intermediate_size": 768, "num_attention_heads": 4,
              "num_key_value_heads": 2},
}  # fmt: skip


def main() -> None:
    """Train, save the weights (bf16 safetensors) and write `training.json` beside them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", choices=SHAPES)
    parser.add_argument("--tokens", type=float, required=True, help="training tokens, at most one pass over the corpus")
    parser.add_argument("--batch-blocks", type=int, default=6, help="blocks of 1,024 tokens in a step")
    parser.add_argument("--lr-muon", type=float, default=0.02)
    parser.add_argument("--lr-adamw", type=float, default=3e-3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "training", help="corpus and checkpoints")
    parser.add_argument("--out", type=Path, help="default: data/models/python-11m or python-2m")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    out = args.out or HERE / {"target": "python-11m", "draft": "python-2m"}[args.model]
    torch.manual_seed(SEED)
    torch.set_num_threads(args.threads)
    tokenizer, ids, sources = prepare_corpus(args.work)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = LlamaForCausalLM(make_config(args.model)).to(device)
    run = run_training(model, ids, args, device)
    run |= {"model": args.model, "num_parameters": sum(p.numel() for p in model.parameters()),
            "corpus_tokens": len(ids), "sources": sources, "command": " ".join(["python", *sys.argv]),
            "python": platform.python_version(), "torch": torch.__version__, "device": device,
            "device_name": torch.cuda.get_device_name() if device == "cuda" else probe_machine().cpu.name,
            "threads": args.threads}  # fmt: skip
    model.to("cpu", torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "training.json").write_text(json.dumps(run, indent=1) + "\n")
    print(f"saved {out}")


def make_config(name: str) -> LlamaConfig:
    """Return the configuration of `target` (11M parameters) or `draft` (2M)."""
    return LlamaConfig(vocab_size=4096, head_dim=64, max_position_embeddings=2 * BLOCK, tie_word_embeddings=True,
                       bos_token_id=0, eos_token_id=0, pad_token_id=0, rms_norm_eps=1e-5, **SHAPES[name])  # fmt: skip


def prepare_corpus(work: Path) -> tuple[PreTrainedTokenizerFast, np.ndarray, list[dict]]:
    """Return the tokenizer, all token ids (uint16, one document after another) and the sources; kept in `work`."""
    tokenizer_file, ids_file, sources_file = work / "tokenizer.json", work / "ids.npy", work / "sources.json"
    if not ids_file.exists():
        documents, sources = corpus.load_documents()
        bpe = Tokenizer(models.BPE())
        digits, pieces = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.pre_tokenizer = pre_tokenizers.Sequence([digits, pieces])
        bpe.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=4096, special_tokens=[END], show_progress=False,
                                      initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
        bpe.train_from_iterator(documents[::4], trainer)  # a quarter fixes the merges of the most frequent pairs
        bpe.save(str(tokenizer_file))
        encoded = bpe.encode_batch(documents)
        ids = np.concatenate([np.array([0, *e.ids], dtype=np.uint16) for e in encoded])
        sources_file.write_text(json.dumps(sources))
        np.save(ids_file, ids)
        print(f"{len(documents)} documents, {len(ids) / 1e6:.1f} M tokens", flush=True)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_file), bos_token=END, eos_token=END, pad_token=END,
                                        model_max_length=2 * BLOCK, clean_up_tokenization_spaces=False)  # fmt: skip
    return tokenizer, np.load(ids_file), json.loads(sources_file.read_text())


def run_training(model: LlamaForCausalLM, ids: np.ndarray, args, device: str) -> dict:
    """Train `model` in place and return the loss curve (nats per token), tokens seen and seconds."""
    num_blocks = len(ids) // BLOCK
    order = np.random.default_rng(SEED).permutation(num_blocks)
    num_steps = min(int(args.tokens) // (args.batch_blocks * BLOCK), num_blocks // args.batch_blocks)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "lm_head" not in n]
    chosen = set(map(id, matrices))
    others = [p for p in model.parameters() if id(p) not in chosen]
    optimizers = [
        Muon(matrices, lr=args.lr_muon),
        torch.optim.AdamW(others, lr=args.lr_adamw, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    base = [group["lr"] for o in optimizers for group in o.param_groups]
    first, curve, seconds = 0, [], 0.0
    checkpoint = args.work / f"{args.model}.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        first, curve, seconds = saved["step"], saved["curve"], saved["seconds"]
        print(f"continuing at step {first}", flush=True)
    use_bf16 = device == "cuda" or probe_machine().cpu.has_bf16
    compiled = torch.compile(model)
    started = time.perf_counter()
    for step in range(first, num_steps):
        rate = min(1.0, (step + 1) / WARMUP_STEPS, (num_steps - step) / (DECAY * num_steps))
        groups = [group for o in optimizers for group in o.param_groups]
        for group, lr in zip(groups, base, strict=True):
            group["lr"] = lr * rate
        window = BLOCK if step >= (1 - LONG) * num_steps else SHORT
        blocks = order[step * args.batch_blocks : (step + 1) * args.batch_blocks]
        batch = np.stack([ids[b * BLOCK : (b + 1) * BLOCK] for b in blocks]).reshape(-1, window)
        tokens = torch.from_numpy(batch.astype(np.int64)).to(device)  # (B, S)
        with torch.autocast(device, torch.bfloat16, enabled=use_bf16):
            logits = compiled(tokens, use_cache=False).logits  # (B, S, V)
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        curve.append(round(loss.item(), 4))
        if (step + 1) % 10 == 0:
            now = seconds + time.perf_counter() - started
            done = (step + 1) * args.batch_blocks * BLOCK
            print(f"step {step + 1}/{num_steps} loss {np.mean(curve[-10:]):.3f} {done / now:.0f} tok/s {now:.0f} s",
                  flush=True)  # fmt: skip
        if (step + 1) % 100 == 0:
            state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "step": step + 1,
                     "curve": curve, "seconds": seconds + time.perf_counter() - started}  # fmt: skip
            torch.save(state, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").replace(checkpoint)
    return {"tokens_seen": num_steps * args.batch_blocks * BLOCK, "num_steps": num_steps, "loss_nats": curve,
            "seconds": round(seconds + time.perf_counter() - started, 1), "seed": SEED,
            "batch_tokens": args.batch_blocks * BLOCK, "lr_muon": args.lr_muon, "lr_adamw": args.lr_adamw,
            "is_bf16_autocast": use_bf16}  # fmt: skip


class Muon(torch.optim.Optimizer):
    """Momentum, then the nearest orthogonal matrix as the step; in float32.

    `torch.optim.Muon` multiplies in bfloat16: 1.1 GFLOP/s against 151 in float32 on a CPU without bf16 instructions.
    """

    def __init__(self, params, *, lr: float, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        """Update every matrix; the factor sqrt(rows / columns) gives steps of equal size to wide and tall ones."""
        for group in self.param_groups:
            for p in group["params"]:
                average = self.state[p].setdefault("momentum", torch.zeros_like(p))
                average.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalize(p.grad.lerp(average, group["momentum"]))
                p.add_(update, alpha=-group["lr"] * max(1.0, p.size(0) / p.size(1)) ** 0.5)


def orthogonalize(matrix: torch.Tensor, *, num_iterations: int = 5) -> torch.Tensor:
    """Return a matrix near U V^T of `matrix` = U S V^T by the quintic Newton-Schulz iteration of the Muon post."""
    x = matrix / (matrix.norm() + 1e-7)
    is_tall = x.size(0) > x.size(1)
    x = x.T if is_tall else x
    for _ in range(num_iterations):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if is_tall else x


if __name__ == "__main__":
    main()
