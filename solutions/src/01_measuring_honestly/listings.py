"""Which line of a benchmark lies? Three short scripts, each with one lie, and the log of its run.

The scripts are read, not run: `generate`, `clock` and `synchronize` mean what they mean everywhere in the course. The
logs are invented (and say so in the notebook), so the true value can be computed from them exactly.
"""

from dataclasses import dataclass, field

__all__ = ["LIES", "SCRIPTS", "Script", "format_listing"]


@dataclass(frozen=True, slots=True)
class Script:
    """One script: its lines, what it printed, the unit of the true value, and the log of the run (by name)."""

    title: str
    code: str
    printed: str
    unit: str
    log: dict[str, float | list[float]] = field(default_factory=dict)


# The choices for an answer: an id and what it means. More lies than scripts, so that not every id is used.
LIES = {
    "no synchronization": "the clock is read before the device has done its work",
    "warm-up counted": "the first, slow calls are part of the result",
    "requested tokens counted": "tokens are counted that were requested but never generated",
    "best against mean": "the best run of one side is compared with the average run of the other",
    "not interleaved": "all of A ran before all of B, so drift looks like a difference",
    "outlier dropped": "a sample was left out because it did not fit",
}

SCRIPTS = {
    "a": Script(
        title="seconds per call of a model on a GPU",
        code="""\
for _ in range(3):
    model(batch)
synchronize(device)
start_s = clock()
for _ in range(5):
    model(batch)
stop_s = clock()
synchronize(device)
print((stop_s - start_s) / 5)""",
        printed="0.0004",
        unit="s per call",
        log={
            "start_s": 20.0,
            "returned_s": [20.0004, 20.0008, 20.0012, 20.0016, 20.0020],  # when each of the five calls returned
            "done_s": [20.0124, 20.0246, 20.0365, 20.0489, 20.0610],  # when the device had finished each of them
        },
    ),
    "b": Script(
        title="decode speed, 64 tokens a call",
        code="""\
times_s = []
for call in range(10):  # calls 0 and 1 are the warm-up
    synchronize(device)
    start_s = clock()
    generate(prompt, num_tokens=64)
    synchronize(device)
    times_s.append(clock() - start_s)
mean_s = sum(times_s) / len(times_s)
print(64 / mean_s)""",
        printed="70.72",
        unit="tok/s",
        log={"times_s": [3.10, 1.12, 0.58, 0.60, 0.61, 0.59, 0.71, 0.60, 0.58, 0.56]},
    ),
    "c": Script(
        title="throughput of eight requests, sent one after another",
        code="""\
warm_up(model)
NUM_TOKENS = 128
synchronize(device)
start_s = clock()
answers = [generate(p, max_tokens=NUM_TOKENS) for p in prompts]
synchronize(device)
seconds = clock() - start_s
num_tokens = NUM_TOKENS * len(prompts)
print(num_tokens / seconds)""",
        printed="256",
        unit="tok/s",
        log={"seconds": 4.0, "num_tokens": [128, 41, 77, 128, 19, 128, 63, 56]},  # generated, for each request
    ),
}


def format_listing(name: str) -> str:
    """Write a script with line numbers from 1, what it printed, and its log."""
    script = SCRIPTS[name]
    lines = [f"script {name}: {script.title}"]
    lines += [f"{number:>3}  {line}" for number, line in enumerate(script.code.splitlines(), start=1)]
    lines.append(f"it printed {script.printed} {script.unit}; log of the run:")
    lines += [f"     {key} = {value}" for key, value in script.log.items()]
    return "\n".join(lines)
