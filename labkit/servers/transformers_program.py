"""A small server around `model.generate`, naive or batched: what you get from Transformers without a serving engine.

Why it exists: a comparison of engines needs the same tokens in and the same number of tokens out. `transformers serve`
(5.17) cannot give that: its /v1/completions takes a prompt as text only (token ids get 400), refuses `ignore_eos` and
`min_tokens` (422) and ignores `stream_options`, so no chunk says how many tokens it holds. It answers one request at a
time, or with continuous batching, the very technique that a comparison with an engine needs to see missing.

The modes. `naive`: one request at a time, first come, first served. `batched`: waiting requests are put into one static
batch (up to `--max-batch-size`, after waiting `--max-wait-s` for more), padded on the left to the longest prompt, and
the batch runs until its longest answer is done: a request that finishes early keeps its row, a late one waits for the
next batch. Both call the library's own `generate` and add only what a server must add: a stopping rule that hands every
new token to its request, and a rule that forbids the end-of-text token before `min_tokens`, as vLLM does.

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
# Accepted with these values only: with any other the answer would be silently wrong.
NEUTRAL = {"n": 1, "top_p": 1.0, "echo": False}


@dataclass(slots=True)
class PendingRequest:
    """One request on its way through the worker; the event loop reads `tokens`, the worker writes.

    Attributes:
        ids: prompt token ids.
        max_tokens: output tokens at most.
        min_tokens: output tokens before which no end token may come.
        ends: token ids that end the answer.
        temperature: 0 for greedy.
        seed: of the sampling, None for a new one.
        tokens: output token ids as they come; a string is an error message.
        num_made: output tokens so far.
        generator: torch.Generator of the sampling.
        is_cancelled: whether the client left.
        is_done: whether the answer is whole.
    """

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
        self.waiting: queue.Queue[PendingRequest] = queue.Queue()
        self.counts = collections.Counter()
        self.num_running = 0

    def run(self) -> None:
        """Take batches forever."""
        while True:
            batch = self._collect()
            if not batch:
                continue
            self.num_running = len(batch)
            try:
                self._generate(batch)
            except Exception as error:  # tell the requests; the server goes on
                self._tell([(request, f"{type(error).__name__}: {error}") for request in batch if not request.is_done])
            self.num_running = 0

    def _collect(self) -> list[PendingRequest]:
        """Wait for a request, then for more until the batch is full or the first has waited `max_wait_s`."""
        batch = [self.waiting.get()]
        deadline_s = time.monotonic() + self.max_wait_s
        while len(batch) < self.max_batch_size:
            try:
                batch.append(self.waiting.get(timeout=max(0.0, deadline_s - time.monotonic())))
            except queue.Empty:
                break
        return [request for request in batch if not request.is_cancelled]

    def _generate(self, batch: list[PendingRequest]) -> None:
        import torch
        from transformers import GenerationConfig

        B, S = len(batch), max(len(request.ids) for request in batch)
        device = self.model.device
        ids = torch.full((B, S), self.pad_id, dtype=torch.long)
        mask = torch.zeros((B, S), dtype=torch.long)
        for row, request in enumerate(batch):
            ids[row, S - len(request.ids) :] = torch.tensor(request.ids)
            mask[row, S - len(request.ids) :] = 1
            if request.temperature > 0:
                request.generator = torch.Generator().manual_seed(
                    time.time_ns() % 2**63 if request.seed is None else request.seed
                )
        self.counts.update(batches=1, batch_rows=B, prompt_tokens=sum(len(request.ids) for request in batch))
        self.counts["padding_tokens"] += B * S - sum(len(request.ids) for request in batch)

        def choose(input_ids, scores):  # scores: (B, V); runs before the library takes the largest score
            made = input_ids.shape[1] - S
            for row, request in enumerate(batch):
                if made < request.min_tokens:
                    scores[row, self.end_ids] = -torch.inf
                if request.temperature > 0 and not request.is_done:
                    probabilities = torch.softmax(scores[row].float().cpu() / request.temperature, dim=-1)
                    token = int(torch.multinomial(probabilities, 1, generator=request.generator))
                    scores[row] = -torch.inf
                    scores[row, token] = 0.0  # one seed per request, whatever else is in the batch
            return scores

        def report(input_ids, scores, **_):  # runs after each step; True ends a row
            news = []
            for request, token in zip(batch, input_ids[:, -1].tolist(), strict=True):
                if request.is_done or request.is_cancelled:
                    self.counts["wasted_row_steps"] += 1
                    request.is_done = True
                    continue
                request.num_made += 1
                request.is_done = token in request.ends or request.num_made >= request.max_tokens
                news.append((request, token))
            self.counts.update(row_steps=B, generation_tokens=len(news))
            self._tell(news)
            return torch.tensor([request.is_done for request in batch], device=input_ids.device)

        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=max(request.max_tokens for request in batch),
            pad_token_id=self.pad_id,
            use_cache=True,
        )
        with torch.inference_mode():
            self.model.generate(
                ids.to(device), attention_mask=mask.to(device), generation_config=config,
                logits_processor=[choose], stopping_criteria=[report],
            )  # fmt: skip

    def _tell(self, news: list[tuple[PendingRequest, int | str]]) -> None:
        def deliver():
            for request, what in news:
                request.tokens.put_nowait(what)

        self.loop.call_soon_threadsafe(deliver)


class IncrementalDetokenizer:
    """Token ids to text, piece by piece; a character waits until all of its bytes are there."""

    def __init__(self, tokenizer):
        self.tokenizer, self.ids, self.start, self.seen = tokenizer, [], 0, 0

    def add(self, token: int, *, is_last: bool) -> str:
        """Take one more token and return the text that it completes."""
        self.ids.append(token)
        before = self.tokenizer.decode(self.ids[self.start : self.seen], skip_special_tokens=True)
        now = self.tokenizer.decode(self.ids[self.start :], skip_special_tokens=True)
        if now.endswith("\ufffd") and not is_last:
            return ""
        self.start, self.seen = self.seen, len(self.ids)  # keep some context: a word's space depends on its neighbor
        return now[len(before) :]


class CompletionApi:
    """The HTTP side."""

    def __init__(self, worker: Worker, tokenizer, *, name: str, max_len: int):
        self.worker, self.tokenizer, self.name, self.max_len = worker, tokenizer, name, max_len
        self.numbers, self.finished = itertools.count(), collections.Counter()

    def parse(self, body: dict) -> PendingRequest:
        """Return the request that a JSON body describes; ValueError says what is wrong with it."""
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
        return PendingRequest(ids, max_tokens, min_tokens, ends, temperature, body.get("seed"))

    async def complete(self, http_request):
        """POST /v1/completions."""
        from aiohttp import web

        try:
            body = json.loads(await http_request.read())
            request = self.parse(body)
        except (ValueError, TypeError, AttributeError) as error:
            self.finished["refused"] += 1
            return web.json_response({"error": {"message": str(error), "code": 400}}, status=400)
        identity, options = f"cmpl-{next(self.numbers)}", body.get("stream_options") or {}
        detokenizer = IncrementalDetokenizer(self.tokenizer)
        is_stream, has_ids = bool(body.get("stream")), bool(body.get("return_token_ids"))
        response = None
        if is_stream:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
            await response.prepare(http_request)
        self.worker.waiting.put(request)
        text, ids, reason = "", [], None
        try:
            while reason is None:
                token = await request.tokens.get()
                if isinstance(token, str):
                    raise RuntimeError(token)
                ids.append(token)
                reason = "stop" if token in request.ends else "length" if len(ids) >= request.max_tokens else None
                piece = detokenizer.add(token, is_last=reason is not None)
                text += piece
                if is_stream:
                    choice = {"index": 0, "text": piece, "logprobs": None, "finish_reason": reason}
                    choice |= {"token_ids": [token]} if has_ids else {}
                    usage = _usage(request, ids) if options.get("continuous_usage_stats") else None
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
            request.is_cancelled = True  # its row stops at the next step, or it never starts
            self.finished["abort"] += 1
            raise
        if is_stream:
            if options.get("include_usage"):
                await response.write(self._event(identity, [], _usage(request, ids)))
            await response.write(b"data: [DONE]\n\n")
            return response
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}
        choice |= {"token_ids": ids} if has_ids else {}
        return web.json_response(self._frame(identity, [choice]) | {"usage": _usage(request, ids)})

    def _frame(self, identity: str, choices: list) -> dict:
        return {"id": identity, "object": "text_completion", "model": self.name, "choices": choices}

    def _event(self, identity: str, choices: list, usage: dict | None) -> bytes:
        frame = self._frame(identity, choices) | ({} if usage is None else {"usage": usage})
        return f"data: {json.dumps(frame)}\n\n".encode()

    async def health(self, http_request):
        """GET /health: 500 if the model's thread has died."""
        from aiohttp import web

        return web.json_response({}, status=200 if self.worker.is_alive() else 500)

    async def models(self, http_request):
        """GET /v1/models."""
        from aiohttp import web

        model = {"id": self.name, "object": "model", "max_model_len": self.max_len}
        return web.json_response({"object": "list", "data": [model]})

    async def metrics(self, http_request):
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


def _usage(request: PendingRequest, ids: list) -> dict:
    num = len(request.ids)
    return {"prompt_tokens": num, "completion_tokens": len(ids), "total_tokens": num + len(ids)}


async def serve(arguments) -> None:
    """Load the model, then listen: whoever can connect gets an answer."""
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
    model.generation_config = GenerationConfig()  # stopping is ours; the library would add its own defaults
    max_len = arguments.max_model_len or getattr(model.config, "max_position_embeddings", None) or 2048
    worker = Worker(
        model, loop=asyncio.get_running_loop(), mode=arguments.mode, max_batch_size=arguments.max_batch_size,
        max_wait_s=arguments.max_wait_s, pad_id=pad_id, end_ids=ends,
    )  # fmt: skip
    worker.start()
    api = CompletionApi(worker, tokenizer, name=arguments.served_model_name or arguments.model, max_len=max_len)
    site = web.Application()
    site.add_routes([web.post("/v1/completions", api.complete), web.get("/health", api.health),
                     web.get("/v1/models", api.models), web.get("/metrics", api.metrics)])  # fmt: skip
    runner = web.AppRunner(site, handler_cancellation=True, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", arguments.port, backlog=1024).start()
    print(
        f"{arguments.mode} server for {api.name} on port {arguments.port}, {arguments.dtype}, {arguments.device}",
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
