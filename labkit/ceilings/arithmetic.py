"""How many FLOPs per second? A square matrix product, per number format."""

import contextlib
from collections.abc import Iterator

from labkit.ceilings.rate import Job, Rate, get_place, hold_one_thread, measure_rounds
from labkit.errors import HardwareError, LabkitError
from labkit.timing import Device, Stopwatch

__all__ = ["DTYPES", "measure_gemm_rate"]

DTYPES = ("float32", "tf32", "bfloat16", "float16")
_SIZES = (128, 256, 512, 1024, 2048, 4096, 8192)


def measure_gemm_rate(
    dtype: str = "float32",
    *,
    device: "str | Device" = "cpu",
    num_rounds: int = 10,
    max_time_s: float = 2.0,
    min_sample_s: float = 0.005,
    size: int | None = None,
) -> Rate:
    """Return the FLOP/s of (n, n) @ (n, n): 2·n³ FLOPs each; n is the largest of 128 ... 8192 that the time allows.

    `max_time_s` bounds the whole measurement, roughly: a format that a processor only emulates can be a hundred times
    slower, and is then measured with a small n (`size` of the answer says which; a given `size` is kept). "tf32" is
    float32 in the GPU's TF32 mode; "float32" turns that mode off. Raises HardwareError where the product does not run.
    """
    import torch

    if dtype not in DTYPES:
        raise LabkitError(f"no GEMM of {dtype!r}.", next_step=f"use one of {', '.join(DTYPES)}.")
    if dtype == "tf32" and get_place(device) == "cpu":
        raise HardwareError("TF32 is a mode of NVIDIA GPUs.", next_step='use "float32" on a processor.')
    with hold_one_thread(device), _hold_precision(torch, is_tf32=dtype == "tf32"):
        try:
            n = size or _choose_size(dtype, device, max_time_s / (num_rounds + 3))
            job = _make_product(n, dtype, device)
            found = measure_rounds({dtype: job}, device=device, num_rounds=num_rounds, min_sample_s=min_sample_s)
        except RuntimeError as error:
            if isinstance(error, LabkitError):
                raise
            first = str(error).split("\n")[0]
            raise HardwareError(f"a {dtype} product does not run on {device}: {first}") from error
    return Rate(f"GEMM {dtype}", "FLOP/s", found[dtype], n)


def _choose_size(dtype: str, device: "str | Device", sample_s: float) -> int:
    """Return the largest n whose product takes at most `sample_s`, growing from small ones, each tried once."""
    chosen = _SIZES[0]
    for n, following in zip(_SIZES, (*_SIZES[1:], None), strict=True):
        job = _make_product(n, dtype, device)
        job.run(1)
        with Stopwatch(device=device) as watch:
            job.run(1)
        chosen = n
        if following is None or 8 * watch.elapsed_s > sample_s:
            break
    return chosen


def _make_product(n: int, dtype: str, device: "str | Device") -> Job:
    import torch

    kind = torch.float32 if dtype == "tf32" else getattr(torch, dtype)
    # Random and small: products of constants can draw less power and so run faster than real ones.
    a, b = (torch.randn(n, n, device=get_place(device)).mul_(0.1).to(kind) for _ in range(2))  # (n, n)
    out = torch.empty_like(a)

    def run(repeats: int) -> None:
        for _ in range(repeats):
            torch.mm(a, b, out=out)

    return Job(run, 2.0 * n**3)


@contextlib.contextmanager
def _hold_precision(torch, *, is_tf32: bool) -> Iterator[None]:
    """Set torch's float32 precision ("high" allows TF32) inside the block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if is_tf32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
