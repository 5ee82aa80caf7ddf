"""The program that nsys and ncu record: `python -m labkit.profiling --context 256 --steps 20`.

It loads the model of this machine, warms up, and runs decode steps. On a GPU they run between cudaProfilerStart and
cudaProfilerStop, each in an NVTX range. Without a GPU it does the same work and says so.
"""

import argparse

from labkit.models import find_model, load_model
from labkit.profiling.phases import Phases


def main(arguments: list[str] | None = None) -> int:
    """Run the decode steps and print what ran."""
    parser = argparse.ArgumentParser(prog="python -m labkit.profiling", description="Run decode steps to be profiled.")
    parser.add_argument("--context", type=int, default=256, help="tokens in the cache (default 256)")
    parser.add_argument("--steps", type=int, default=20, help="decode steps (default 20)")
    asked = parser.parse_args(arguments)
    choice = find_model("target")
    model, tokenizer = load_model(choice)
    phases = Phases(model, tokenizer("def add(left, right):").input_ids, context_tokens=asked.context)
    for _ in range(5):
        phases.run_decode()
    import torch

    is_gpu = model.device.type == "cuda"
    if is_gpu:
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
    for number in range(asked.steps):
        if is_gpu:
            torch.cuda.nvtx.range_push(f"step {number}")
        phases.run_decode()
        if is_gpu:
            torch.cuda.synchronize()
            torch.cuda.nvtx.range_pop()
    if is_gpu:
        torch.cuda.profiler.stop()
    said = f"{asked.steps} decode steps of {choice.name} ({choice.source}) at a context of {asked.context}"
    print(f"{said}, on {model.device}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
