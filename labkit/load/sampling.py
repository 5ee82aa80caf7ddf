"""What did the server and the GPU do meanwhile? Counters before and after a run, gauges, memory and power through it.

The server's page is /metrics in Prometheus text (vLLM's names). The GPU is the first of this machine, through NVML. If
there is none, or the server runs elsewhere, those values are absent: "none" is an ordinary answer.
"""

import asyncio
import contextlib
import functools
import operator
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass

from labkit.errors import InstallError
from labkit.load.transport import HttpTransport
from labkit.nvml import Nvml

__all__ = ["GpuReader", "Sampling", "read_counters", "read_page", "run_sampling", "sample_server"]

INTERVAL_S = 0.5
_LOCAL = ("localhost", "127.0.0.1", "::1")
_NAMES = {
    "vllm:prefix_cache_queries": "prefix_queries", "vllm:prefix_cache_hits": "prefix_hits",
    "vllm:num_preemptions": "preemptions", "vllm:prompt_tokens": "prompt_tokens",
    "vllm:generation_tokens": "output_tokens", "vllm:request_success": "requests",
    "vllm:num_requests_running": "running", "vllm:num_requests_waiting": "waiting",
    "vllm:kv_cache_usage_perc": "kv_usage", "vllm:gpu_cache_usage_perc": "kv_usage",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sampling:
    """What was read. A value that is unknown is absent.

    Counters of the server: prefix_queries, prefix_hits, preemptions, prompt_tokens, output_tokens, requests. Gauges:
    running, waiting, kv_usage (0 to 1), server_memory_bytes. Of the GPU: gpu_utilization (0 to 1), gpu_memory_bytes,
    gpu_power_w.

    Attributes:
        before: values before the run, by name.
        after: values after it.
        samples: (seconds since the start, values) through it.
    """

    before: Mapping[str, float]
    after: Mapping[str, float]
    samples: tuple[tuple[float, Mapping[str, float]], ...]

    def count(self, name: str) -> float | None:
        """Return how much a counter grew over the run; None if it is unknown, or fell (the server restarted)."""
        if name not in self.before or name not in self.after:
            return None
        grown = self.after[name] - self.before[name]
        return grown if grown >= 0 else None

    @property
    def hit_fraction(self) -> float | None:
        """Share of the looked-up prompt tokens that the prefix cache had; None without counters or look-ups."""
        queries, hits = self.count("prefix_queries"), self.count("prefix_hits")
        return hits / queries if queries and hits is not None else None

    @property
    def peak_memory_bytes(self) -> int | None:
        """Largest memory of the server's processes, the last reading included; None if it was not measured."""
        readings = [values.get("server_memory_bytes", 0) for values in (self.after, *(v for _, v in self.samples))]
        return int(max(readings)) or None

    def summarize(self, name: str) -> tuple[float, float] | None:
        """Return (mean, maximum) of the samples of one value; None without samples."""
        values = [values[name] for _, values in self.samples if name in values]
        return (sum(values) / len(values), max(values)) if values else None


@functools.cache
def _import_parser() -> Callable:
    try:
        from prometheus_client.parser import text_string_to_metric_families
    except ImportError:
        raise InstallError(
            "prometheus-client is not installed.", next_step="run `pip install prometheus-client`."
        ) from None
    return text_string_to_metric_families


def read_counters(text: str | None) -> dict[str, float]:
    """Read the counters and gauges of a /metrics page, summed over its engines (the KV usage: the largest)."""
    # A page of vLLM has thousands of lines, and the loop that stamps the chunks waits for the parser.
    lines = "".join(f"{line}\n" for line in (text or "").splitlines() if line.startswith(tuple(_NAMES)))
    found: dict[str, float] = {}
    with contextlib.suppress(ValueError):
        for family in _import_parser()(lines):
            for sample in family.samples:
                if name := _NAMES.get(sample.name.removesuffix("_total")):
                    join, value = max if name == "kv_usage" else operator.add, float(sample.value)
                    found[name] = join(found[name], value) if name in found else value
    return found


class GpuReader:
    """Reads the first GPU of this machine; `read()` is {} if there is none."""

    def __init__(self) -> None:
        self._nvml = Nvml()
        self._handle = self._nvml.ask("nvmlDeviceGetHandleByIndex", 0)

    def read(self) -> dict[str, float]:
        """Return gpu_utilization, gpu_memory_bytes and gpu_power_w, as far as the driver reports them."""
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
    transport,
    is_over: asyncio.Event,
    *,
    start_s: float,
    gpu: GpuReader | None = None,
    measure_memory: Callable[[], Mapping[str, int]] | None = None,
    interval_s: float = INTERVAL_S,
    before: Mapping[str, float] | None = None,
) -> Sampling:
    """Read everything at once, then every `interval_s` until `is_over`, then once more.

    `transport`: an `HttpTransport`; a server without a /metrics page is asked once before and not again.
    `measure_memory`: returns the memory of the server's processes as pss_bytes or rss_bytes. `before`: what
    `read_page` returned before the run, if it was called.
    """
    loop = asyncio.get_running_loop()
    before = await read_page(transport) if before is None else before
    has_page, samples, is_last = bool(before), [], False
    while not is_last:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(is_over.wait(), interval_s)
        is_last = is_over.is_set()
        values = await read_page(transport) if has_page else {}
        # The driver and /proc take milliseconds: not on the loop that stamps the chunks.
        if gpu is not None:
            values |= await loop.run_in_executor(None, gpu.read)
        if measure_memory is not None:
            memory = await loop.run_in_executor(None, measure_memory)
            values["server_memory_bytes"] = memory.get("pss_bytes") or memory.get("rss_bytes") or 0
        if values and not is_last:
            samples.append((loop.time() - start_s, values))
    return Sampling(before, values, tuple(samples))


@contextlib.asynccontextmanager
async def sample_server(pages: HttpTransport, *, start_s: float, **options: object) -> AsyncIterator[asyncio.Task]:
    """Sample a server while the block runs; gives a task whose result, after the block, is a `Sampling`.

    `pages`: a started transport; it is closed at the end. Options as in `run_sampling`. The GPU is read only if the
    server is on this machine.
    """
    _import_parser()  # its absence is an error before the run
    is_over, gpu = asyncio.Event(), GpuReader() if pages.host in _LOCAL else None
    task = asyncio.create_task(run_sampling(pages, is_over, start_s=start_s, gpu=gpu, **options))
    try:
        yield task
    finally:
        is_over.set()
        await asyncio.wait({task})
        await pages.close()


async def read_page(transport) -> dict[str, float]:
    """Return the counters and gauges of the server's /metrics page; {} if it has none."""
    page = await transport.get("/metrics")
    return read_counters(page[1]) if page and page[0] == 200 else {}
