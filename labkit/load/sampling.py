"""What did the server and the GPU do meanwhile? Counters before and after, gauges and power sampled through the run.

The server's page is /metrics in Prometheus text (vLLM's names). The GPU is the first of this machine, through NVML;
without one, or with a server elsewhere, its samples are None: "none" is an ordinary answer.
"""

import asyncio
import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from labkit.nvml import Nvml

__all__ = ["GpuReader", "Sampling", "read_counters", "run_sampling"]

INTERVAL_S = 0.5
_COUNTERS = {
    "prefix_queries": "vllm:prefix_cache_queries", "prefix_hits": "vllm:prefix_cache_hits",
    "preemptions": "vllm:num_preemptions", "prompt_tokens": "vllm:prompt_tokens",
    "output_tokens": "vllm:generation_tokens", "requests": "vllm:request_success",
}  # fmt: skip
_GAUGES = {
    "running": "vllm:num_requests_running", "waiting": "vllm:num_requests_waiting",
    "kv_usage": "vllm:(?:kv_cache_usage_perc|gpu_cache_usage_perc)",
}  # fmt: skip
_PATTERNS = {
    name: re.compile(rf"^{pattern}(?:_total)?(?:{{[^}}]*}})? (\S+)", re.MULTILINE)
    for name, pattern in (_COUNTERS | _GAUGES).items()
}


@dataclass(frozen=True, slots=True)
class Sampling:
    """What was read: `before` and `after` the run, and (seconds since the start, values) through it.

    Server values: prefix_queries, prefix_hits, preemptions, prompt_tokens, output_tokens, requests (counters), running,
    waiting, kv_usage (gauges, kv_usage from 0 to 1). GPU values: gpu_utilization (0 to 1), gpu_memory_bytes,
    gpu_power_w. What is not known is not there.
    """

    before: Mapping[str, float]
    after: Mapping[str, float]
    samples: tuple[tuple[float, Mapping[str, float]], ...]

    def count(self, name: str) -> float | None:
        """Return how much a counter grew over the run; None where it is not known, or fell (the server restarted)."""
        if name not in self.before or name not in self.after:
            return None
        grown = self.after[name] - self.before[name]
        return grown if grown >= 0 else None

    @property
    def hit_fraction(self) -> float | None:
        """Share of the looked-up prompt tokens that the prefix cache had; None without counters or look-ups."""
        queries, hits = self.count("prefix_queries"), self.count("prefix_hits")
        return hits / queries if queries and hits is not None else None

    def summarize(self, name: str) -> tuple[float, float] | None:
        """Return (mean, maximum) of the samples of one value; None without samples."""
        values = [values[name] for _, values in self.samples if name in values]
        return (sum(values) / len(values), max(values)) if values else None


def read_counters(text: str | None) -> dict[str, float]:
    """Read the counters and gauges of a /metrics page, summed over its engines (the KV usage: the largest)."""
    found = {}
    for name, pattern in _PATTERNS.items():
        values = []
        for value in pattern.findall(text or ""):
            with contextlib.suppress(ValueError):
                values.append(float(value))
        if values:
            found[name] = max(values) if name == "kv_usage" else sum(values)
    return found


class GpuReader:
    """Reads the first GPU of this machine; `read()` is {} where there is none."""

    def __init__(self) -> None:
        self._nvml = Nvml()
        self._handle = self._nvml.ask("nvmlDeviceGetHandleByIndex", 0)

    def read(self) -> dict[str, float]:
        """Return gpu_utilization, gpu_memory_bytes and gpu_power_w, as far as the driver says them."""
        rates = self._nvml.ask("nvmlDeviceGetUtilizationRates", self._handle)
        memory = self._nvml.ask("nvmlDeviceGetMemoryInfo", self._handle)
        milliwatts = self._nvml.ask("nvmlDeviceGetPowerUsage", self._handle)
        found = {
            "gpu_utilization": None if rates is None else rates.gpu / 100,
            "gpu_memory_bytes": None if memory is None else float(memory.used),
            "gpu_power_w": None if milliwatts is None else milliwatts / 1e3,
        }
        return {name: value for name, value in found.items() if value is not None}


async def run_sampling(
    transport, is_over: asyncio.Event, *, start_s: float, gpu: GpuReader | None, interval_s: float = INTERVAL_S
) -> Sampling:
    """Read /metrics and the GPU at once, then every `interval_s` until `is_over`, then once more.

    `transport`: an `HttpTransport`; a server without the page is asked once before and not again.
    """
    loop = asyncio.get_running_loop()
    before = await _read_page(transport)
    has_page, samples, is_last = bool(before), [], False
    while not is_last:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(is_over.wait(), interval_s)
        is_last = is_over.is_set()
        values = await _read_page(transport) if has_page else {}
        if gpu is not None:  # the driver takes a millisecond: not on the loop that stamps the chunks
            values |= await loop.run_in_executor(None, gpu.read)
        if values and not is_last:
            samples.append((loop.time() - start_s, values))
    return Sampling(before, values, tuple(samples))


async def _read_page(transport) -> dict[str, float]:
    page = await transport.get("/metrics")
    return read_counters(page[1]) if page and page[0] == 200 else {}
