"""Are the measured ceilings right? Beside independent tools, in turns: run `python tests/bench_ceilings.py`.

A benchmark and not a test, because its verdict depends on how busy the machine is. Each comparison says "agrees",
"differs" or "cannot tell" (a tool does not agree with itself). The exit status is 1 if one differs.
"""

import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from labkit import ceilings, stats
from labkit.units import format_rate

STREAM_C = r"""
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + 1e-9 * t.tv_nsec; }
int main(int argc, char **argv) {
    size_t n = strtoull(argv[1], 0, 10) / 16;
    double *buffer = aligned_alloc(1 << 21, (16 * n + 8192 + (1 << 21)) >> 21 << 21);
    double *a = buffer, *b = buffer + n + 256;
    madvise(buffer, 16 * n + 8192, MADV_HUGEPAGE); /* numpy asks for large pages too: small ones cost a fifth */
    double scalar = -atof(argv[2]); /* STREAM's kernel "scale", with -1: what numpy's negative does */
    long repeats = (long)(1e8 / (16.0 * n)) + 1;
    for (size_t i = 0; i < n; i++) { a[i] = 1; b[i] = 2; }
    for (int round = -1; round < 3; round++) {
        double start = now();
        for (long k = 0; k < repeats; k++) {
            for (size_t i = 0; i < n; i++) b[i] = scalar * a[i];
            __asm__ volatile("" : : "r"(a), "r"(b) : "memory");
        }
        if (round >= 0) printf("%.9e\n", 16.0 * n * repeats / (now() - start));
    }
    return argc - 3;
}
"""


def is_steady(samples):
    """Whether a tool agrees with itself within 15 %."""
    low, high = np.percentile(samples, [20, 80])
    return high <= 1.15 * low


def overlap(mine, theirs, *, allowance):
    """Whether the two stated intervals meet if each end may be off by the allowance."""
    a, b = (stats.summarize(samples).p50_interval for samples in (mine, theirs))
    return a.low <= b.high * (1 + allowance) and b.low <= a.high * (1 + allowance)


def compare(what, measure, *, unit, allowance, most):
    """Print and return the verdict; `measure()` returns the samples of labkit and those of the other tool."""
    for _ in range(4):  # a noisy machine: best of four
        mine, theirs = measure()
        ratio = statistics.median(mine) / statistics.median(theirs)
        if overlap(mine, theirs, allowance=allowance) and 1 / most < ratio < most:
            verdict = "agrees"
            break
        verdict = "differs" if is_steady(mine) and is_steady(theirs) else "cannot tell"
    values = (format_rate(statistics.median(samples), unit) for samples in (mine, theirs))
    print(f"{what}: labkit {' and the other tool '.join(values)}: {verdict}")
    return verdict


def compare_copy(size, program):
    """Copies beside STREAM's kernel "scale" in C."""

    def measure():
        mine, theirs = [], []
        for _ in range(8):
            (found,) = ceilings.measure_copy_bandwidth([size], num_rounds=3, min_sample_s=0.003)
            done = subprocess.run([program, str(size), "1"], capture_output=True, text=True, check=True)
            mine += found.samples
            theirs += [float(line) for line in done.stdout.split()]
        return mine, theirs

    return compare(f"copy of {size} bytes", measure, unit="B/s", allowance=0.15, most=1.4)


def compare_gemm(n=512):
    """Products beside torch's own benchmark timer."""
    import torch
    from torch.utils.benchmark import Timer

    a, b = torch.randn(n, n), torch.randn(n, n)
    timer = Timer("torch.mm(a, b, out=out)", globals={"torch": torch, "a": a, "b": b, "out": torch.empty(n, n)})

    def measure():
        mine, theirs = [], []
        for _ in range(8):
            mine += ceilings.measure_gemm_rate("float32", size=n, num_rounds=1).samples
            theirs.append(2 * n**3 / timer.timeit(4).mean)
        return mine, theirs

    return compare(f"product of {n} x {n}", measure, unit="FLOP/s", allowance=0.05, most=1.33)


def compare_caches():
    """Copies inside the caches beside copies outside: the former must be at least 1.2 times as fast."""
    caches = [cache for cache in ceilings.probe_caches() if cache.level >= 2]
    if not caches:
        print("caches: cannot tell, because this system reports none")
        return "cannot tell"
    for _ in range(3):
        sizes = [2**17, ceilings.choose_sizes(caches)[-1]]
        inside, outside = ceilings.measure_copy_bandwidth(sizes, num_rounds=8)
        if inside.median > 1.2 * outside.median:
            verdict = "agrees"
            break
        verdict = "differs" if is_steady(inside.samples) and is_steady(outside.samples) else "cannot tell"
    values = (format_rate(one.median, "B/s") for one in (inside, outside))
    print(f"caches: {' inside and '.join(values)} outside: {verdict}")
    return verdict


def compare_layers():
    """Dispatch of 16 layers beside that of 4: at least 1.5 times as long."""
    config = {"model_type": "llama", "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 4}
    models = {str(n): ceilings.load_narrow_model(config | {"num_hidden_layers": n}) for n in (4, 16)}
    found = ceilings.measure_steps(models, context_tokens=8, num_rounds=40)
    ratio = statistics.median(found["16"]) / statistics.median(found["4"])
    verdict = "agrees" if ratio > 1.5 else "differs"
    print(f"dispatch: 16 layers take {ratio:.2f} times as long as 4: {verdict}")
    return verdict


def main():
    verdicts = [compare_gemm(), compare_caches(), compare_layers()]
    if shutil.which("cc") and sys.platform == "linux":
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "stream.c").write_text(STREAM_C)
            subprocess.run(["cc", "-O3", "-march=native", "stream.c", "-o", "stream"], cwd=folder, check=True)
            verdicts += [compare_copy(size, Path(folder) / "stream") for size in (2**18, 2**27)]
    return int("differs" in verdicts)


if __name__ == "__main__":
    raise SystemExit(main())
