"""A small server around `model.generate`, naive or batched: what one gets from Transformers without a serving engine.

Why it exists. `transformers serve` (5.17) was looked at first: its /v1/completions takes a prompt as text only (token
ids get 400), refuses `ignore_eos` and `min_tokens` (422) and ignores `stream_options`, so neither the tokens of the
prompt nor the length of an answer can be fixed, and no chunk says how many tokens it holds. It answers one request at
a time, or with continuous batching, which is the very trick of an engine that lab 12 needs to see missing. A
comparison needs the same tokens in and the same number of tokens out.

The modes. `naive`: one request at a time, first come, first served. `batched`: requests that wait are put into one
static batch (up to `--max-batch-size`, after waiting `--max-wait-s` for company), padded on the left to the longest
prompt, and the batch runs until its longest answer is done: a request that finished early keeps its row, one that
comes late waits for the next batch. Both call the library's own `generate` and add only what a server must add: a
stopping rule that hands every new token to its request, and a rule that forbids the end-of-text token before
`min_tokens`, as vLLM does.

It runs by its path in the engine's environment and needs torch, transformers and aiohttp, not labkit.
POST /v1/completions: prompt (text or token ids), max_tokens, min_tokens, ignore_eos, temperature, seed, stream,
stream_options {include_usage, continuous_usage_stats}, return_token_ids. GET /health, /v1/models, /metrics.
"""

import argparse
import asyncio
import collections
import itertools
import json
import queue
import threading
import time
from dataclasses import dataclass, field

FIELDS = {
    *("model", "prompt", "max_tokens", "min_tokens", "ignore_eos", "temperature", "seed", "stream", "stream_options"),
    *("return_token_ids", "n", "top_p", "user", "echo"),
}
NEUTRAL = {
    "n": 1,
    "top_p": 1.0,
    "echo": False,
}  # accepted with these values only: anything else would be silently wrong


@dataclass(slots=True)
class Job:
    """One request on its way through the worker; the event loop reads `tokens`, the worker writes."""

    ids: list[int]
    max_tokens: int
    min_tokens: int
    ends: frozenset[int]
    temperature: float
    seed: int | None
    tokens: asyncio.Queue = field(default_factory=asyncio.Queue)
    num_made: int = 0
    generator: object = None
    is_cancelled: bool = False
    is_done: bool = False


class Worker(threading.Thread):
    """The only thread that runs the model."""

    def __init__(self, model, *, loop, mode: str, max_batch_size: int, max_wait_s: float, pad_id: int, end_ids):
        super().__init__(name="model", daemon=True)
        self.model, self.loop, self.pad_id, self.end_ids = model, loop, pad_id, sorted(end_ids)
        self.max_batch_size, self.max_wait_s = (1, 0.0) if mode == "naive" else (max_batch_size, max_wait_s)
        self.waiting: queue.Queue[Job] = queue.Queue()
        self.counts = collections.Counter()
        self.num_running = 0

    def run(self) -> None:
        """Take batches for ever."""
        while True:
            jobs = self._collect()
            if not jobs:
                continue
            self.num_running = len(jobs)
            try:
                self._generate(jobs)
            except Exception as error:  # the requests are told; the server goes on
                self._tell([(job, f"{type(error).__name__}: {error}") for job in jobs if not job.is_done])
            self.num_running = 0

    def _collect(self) -> list[Job]:
        """Wait for a request, then for company: until the batch is full or the first has waited long enough."""
        jobs = [self.waiting.get()]
        deadline_s = time.monotonic() + self.max_wait_s
        while len(jobs) < self.max_batch_size:
            try:
                jobs.append(self.waiting.get(timeout=max(0.0, deadline_s - time.monotonic())))
            except queue.Empty:
                break
        return [job for job in jobs if not job.is_cancelled]

    def _generate(self, jobs: list[Job]) -> None:
        import torch
        from transformers import GenerationConfig

        B, S = len(jobs), max(len(job.ids) for job in jobs)
        device = self.model.device
        ids = torch.full((B, S), self.pad_id, dtype=torch.long)
        mask = torch.zeros((B, S), dtype=torch.long)
        for row, job in enumerate(jobs):
            ids[row, S - len(job.ids) :] = torch.tensor(job.ids)
            mask[row, S - len(job.ids) :] = 1
            if job.temperature > 0:
                job.generator = torch.Generator().manual_seed(time.time_ns() % 2**63 if job.seed is None else job.seed)
        self.counts.update(batches=1, batch_rows=B, prompt_tokens=sum(len(job.ids) for job in jobs))
        self.counts["padding_tokens"] += B * S - sum(len(job.ids) for job in jobs)

        def choose(input_ids, scores):  # scores: (B, V); runs before the library takes the largest
            made = input_ids.shape[1] - S
            for row, job in enumerate(jobs):
                if made < job.min_tokens:
                    scores[row, self.end_ids] = -torch.inf
                if job.temperature > 0 and not job.is_done:
                    odds = torch.softmax(scores[row].float().cpu() / job.temperature, dim=-1)
                    token = int(torch.multinomial(odds, 1, generator=job.generator))
                    scores[row] = -torch.inf
                    scores[row, token] = 0.0  # the draw has its own seed per request, whatever else is in the batch
            return scores

        def report(input_ids, scores, **_):  # runs after each step; True ends a row
            news = []
            for row, (job, token) in enumerate(zip(jobs, input_ids[:, -1].tolist(), strict=True)):
                if job.is_done or job.is_cancelled:
                    self.counts["wasted_row_steps"] += 1
                    job.is_done = True
                    continue
                job.num_made += 1
                job.is_done = token in job.ends or job.num_made >= job.max_tokens
                news.append((jobs[row], token))
            self.counts.update(row_steps=B, generation_tokens=len(news))
            self._tell(news)
            return torch.tensor([job.is_done for job in jobs], device=input_ids.device)

        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=max(job.max_tokens for job in jobs),
            pad_token_id=self.pad_id,
            use_cache=True,
        )
        with torch.inference_mode():
            self.model.generate(
                ids.to(device), attention_mask=mask.to(device), generation_config=config,
                logits_processor=[choose], stopping_criteria=[report],
            )  # fmt: skip

    def _tell(self, news: list[tuple[Job, int | str]]) -> None:
        def deliver():
            for job, what in news:
                job.tokens.put_nowait(what)

        self.loop.call_soon_threadsafe(deliver)


class Words:
    """Token ids to text, piece by piece; a character that is only half there waits for its other half."""

    def __init__(self, tokenizer):
        self.tokenizer, self.ids, self.start, self.seen = tokenizer, [], 0, 0

    def add(self, token: int, *, is_last: bool) -> str:
        """Take one more token and return the text that it completes."""
        self.ids.append(token)
        before = self.tokenizer.decode(self.ids[self.start : self.seen], skip_special_tokens=True)
        now = self.tokenizer.decode(self.ids[self.start :], skip_special_tokens=True)
        if now.endswith("\ufffd") and not is_last:
            return ""
        self.start, self.seen = self.seen, len(self.ids)  # some context stays: a word's space depends on its neighbour
        return now[len(before) :]


class App:
    """The HTTP side."""

    def __init__(self, worker: Worker, tokenizer, *, name: str, max_len: int):
        self.worker, self.tokenizer, self.name, self.max_len = worker, tokenizer, name, max_len
        self.numbers, self.finished = itertools.count(), collections.Counter()

    def parse(self, body: dict) -> Job:
        """The job of one request; ValueError says what is wrong with it."""
        if unknown := set(body) - FIELDS:
            raise ValueError(f"unknown fields: {', '.join(sorted(unknown))}")
        for name, value in NEUTRAL.items():
            if body.get(name) not in (None, value):
                raise ValueError(f"{name} must be {value!r}, not {body[name]!r}")
        if body.get("model") not in (None, self.name):
            raise ValueError(f"the model is {self.name!r}, not {body['model']!r}")
        prompt = body.get("prompt")
        ids = self.tokenizer(prompt).input_ids if isinstance(prompt, str) else prompt
        size = self.worker.model.config.vocab_size
        is_list = isinstance(ids, list) and all(type(token) is int and 0 <= token < size for token in ids)
        if not is_list or not ids:
            raise ValueError(f"prompt must be text or a list of token ids from 0 to {size - 1}, and not empty")
        max_tokens = 16 if body.get("max_tokens") is None else body["max_tokens"]
        min_tokens, temperature = body.get("min_tokens") or 0, body.get("temperature")
        temperature = 1.0 if temperature is None else float(temperature)
        if type(max_tokens) is not int or max_tokens < 1 or not 0 <= min_tokens <= max_tokens or temperature < 0:
            raise ValueError("expected max_tokens >= 1, 0 <= min_tokens <= max_tokens, temperature >= 0")
        if len(ids) + max_tokens > self.max_len:
            raise ValueError(f"{len(ids)} prompt tokens and {max_tokens} output tokens exceed {self.max_len} positions")
        ends = frozenset() if body.get("ignore_eos") else frozenset(self.worker.end_ids)
        return Job(ids, max_tokens, min_tokens, ends, temperature, body.get("seed"))

    async def complete(self, request):
        """POST /v1/completions."""
        from aiohttp import web

        try:
            body = json.loads(await request.read())
            job = self.parse(body)
        except (ValueError, TypeError, AttributeError) as error:
            self.finished["refused"] += 1
            return web.json_response({"error": {"message": str(error), "code": 400}}, status=400)
        identity, words, options = f"cmpl-{next(self.numbers)}", Words(self.tokenizer), body.get("stream_options") or {}
        is_stream, has_ids = bool(body.get("stream")), bool(body.get("return_token_ids"))
        response = None
        if is_stream:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
            await response.prepare(request)
        self.worker.waiting.put(job)
        text, ids, reason = "", [], None
        try:
            while reason is None:
                token = await job.tokens.get()
                if isinstance(token, str):
                    raise RuntimeError(token)
                ids.append(token)
                reason = "stop" if token in job.ends else "length" if len(ids) >= job.max_tokens else None
                piece = words.add(token, is_last=reason is not None)
                text += piece
                if is_stream:
                    choice = {"index": 0, "text": piece, "logprobs": None, "finish_reason": reason}
                    choice |= {"token_ids": [token]} if has_ids else {}
                    usage = _usage(job, ids) if options.get("continuous_usage_stats") else None
                    await response.write(self._event(identity, [choice], usage))
            self.finished[reason] += 1
        except RuntimeError as error:
            self.finished["error"] += 1
            message = {"error": {"message": str(error), "code": 500}}
            if not is_stream:
                return web.json_response(message, status=500)
            await response.write(f"data: {json.dumps(message)}\n\n".encode())
            return response
        except (asyncio.CancelledError, ConnectionError):
            job.is_cancelled = True  # its row stops at the next step, or it never starts
            self.finished["abort"] += 1
            raise
        if is_stream:
            if options.get("include_usage"):
                await response.write(self._event(identity, [], _usage(job, ids)))
            await response.write(b"data: [DONE]\n\n")
            return response
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}
        choice |= {"token_ids": ids} if has_ids else {}
        return web.json_response(self._frame(identity, [choice]) | {"usage": _usage(job, ids)})

    def _frame(self, identity: str, choices: list) -> dict:
        return {"id": identity, "object": "text_completion", "model": self.name, "choices": choices}

    def _event(self, identity: str, choices: list, usage: dict | None) -> bytes:
        frame = self._frame(identity, choices) | ({} if usage is None else {"usage": usage})
        return f"data: {json.dumps(frame)}\n\n".encode()

    async def health(self, request):
        """GET /health: 500 when the model's thread has died."""
        from aiohttp import web

        return web.json_response({}, status=200 if self.worker.is_alive() else 500)

    async def models(self, request):
        """GET /v1/models."""
        from aiohttp import web

        model = {"id": self.name, "object": "model", "max_model_len": self.max_len}
        return web.json_response({"object": "list", "data": [model]})

    async def metrics(self, request):
        """GET /metrics, in the text format of Prometheus."""
        from aiohttp import web

        counts, worker = self.worker.counts, self.worker
        names = ("prompt_tokens", "generation_tokens", "padding_tokens", "batches", "batch_rows", "row_steps")
        lines = [f"labkit:{name}_total {counts[name]}" for name in (*names, "wasted_row_steps")]
        lines += [
            f'labkit:requests_total{{finished_reason="{reason}"}} {n}' for reason, n in sorted(self.finished.items())
        ]
        lines += [f"labkit:num_requests_running {worker.num_running}"]
        lines += [f"labkit:num_requests_waiting {worker.waiting.qsize()}"]
        return web.Response(text="\n".join(lines) + "\n")


def _usage(job: Job, ids: list) -> dict:
    num = len(job.ids)
    return {"prompt_tokens": num, "completion_tokens": len(ids), "total_tokens": num + len(ids)}


async def serve(arguments) -> None:
    """Load the model, then listen: who can connect can be answered."""
    import torch
    from aiohttp import web
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    torch.set_num_threads(arguments.num_threads)
    torch.set_num_interop_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model, trust_remote_code=False)
    dtype = getattr(torch, arguments.dtype)
    if arguments.random_weights:
        torch.manual_seed(0)
        config = AutoConfig.from_pretrained(arguments.model, trust_remote_code=False)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    else:
        model = AutoModelForCausalLM.from_pretrained(
            arguments.model, dtype=dtype, use_safetensors=True, trust_remote_code=False
        )
    model = model.to(arguments.device).eval()
    ends = model.generation_config.eos_token_id
    ends = {ends} if isinstance(ends, int) else set(ends or ())
    pad_id = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, *sorted(ends)) if i is not None), 0)
    model.generation_config = GenerationConfig()  # stopping is ours; the library would mix its own defaults in
    max_len = arguments.max_model_len or getattr(model.config, "max_position_embeddings", None) or 2048
    worker = Worker(
        model, loop=asyncio.get_running_loop(), mode=arguments.mode, max_batch_size=arguments.max_batch_size,
        max_wait_s=arguments.max_wait_s, pad_id=pad_id, end_ids=ends,
    )  # fmt: skip
    worker.start()
    app = App(worker, tokenizer, name=arguments.served_model_name or arguments.model, max_len=max_len)
    site = web.Application()
    site.add_routes([web.post("/v1/completions", app.complete), web.get("/health", app.health),
                     web.get("/v1/models", app.models), web.get("/metrics", app.metrics)])  # fmt: skip
    runner = web.AppRunner(site, handler_cancellation=True, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", arguments.port, backlog=1024).start()
    print(
        f"{arguments.mode} server for {app.name} on port {arguments.port}, {arguments.dtype}, {arguments.device}",
        flush=True,
    )
    await asyncio.Event().wait()


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--served-model-name")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--mode", choices=("naive", "batched"), default="naive")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--num-threads", type=int, default=1)
    parser.add_argument("--max-batch-size", type=int, default=32)
    parser.add_argument("--max-wait-s", type=float, default=0.05)
    parser.add_argument("--max-model-len", type=int)
    parser.add_argument("--random-weights", action="store_true", help="draw weights of the configuration's shape")
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
