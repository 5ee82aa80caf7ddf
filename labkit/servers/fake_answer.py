"""How does the fake server play a script? One answer, written to one connection at the scripted instants."""

import asyncio
import json
import math
import socket
import struct
import time

from labkit.servers.fake_script import Reply, Step

__all__ = ["Answer", "write_whole"]


class Answer:
    """The answer to one completion request."""

    def __init__(self, server, request: dict, is_chat: bool, number: int, reader, writer):
        self.counts, self.plan, self.request, self.is_chat = server.counts, server.plan, request, is_chat
        self.number, self.reader, self.writer = number, reader, writer
        prompt = request.get("prompt") if not is_chat else " ".join(str(m.get("content")) for m in request["messages"])
        self.num_prompt_tokens = len(prompt) if isinstance(prompt, list) else len(str(prompt).split())
        self.num_tokens, self.rest, self.text = 0, b"", ""
        options = request.get("stream_options") or {}
        self.has_final_usage, self.has_usage = options.get("include_usage"), options.get("continuous_usage_stats")

    async def run(self, begin_s: float) -> bool:
        """Play the script; True when the answer is whole and the connection can be used again."""
        plan, counts = self.plan, self.counts
        reply = plan.replies[self.number % len(plan.replies)] if plan.replies else Reply()
        counts.num_prompt_tokens += self.num_prompt_tokens
        if reply.status != 200:
            first_delay_s = reply.steps[0].delay_s if reply.steps else 0.0
            await self._sleep_until(begin_s + first_delay_s)
            extra = {} if reply.retry_after_s is None else {"Retry-After": f"{reply.retry_after_s:g}"}
            write_whole(self.writer, reply.status, {"error": {"message": "refused", "code": reply.status}}, extra)
            await self.writer.drain()
            counts.num_refused += 1
            return True
        num_tokens = int(self.request.get("max_tokens") or self.request.get("max_completion_tokens") or 16)
        steps = reply.steps or plan.script(self.number, num_prompt_tokens=self.num_prompt_tokens, num_tokens=num_tokens)
        is_stream, self.newline = bool(self.request.get("stream")), reply.newline
        if is_stream:
            self.writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
                b"Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            await self.writer.drain()
        due_s = begin_s
        for step in steps:
            # Instants are added up from the arrival, so that a late wake-up does not shift all later ones.
            due_s += step.delay_s
            if step.kind == "stall":
                await self._sleep_until(math.inf)
            await self._sleep_until(due_s)
            if step.kind == "reset":
                self._cut()
                return False
            if step.kind in ("text", "half", "reasoning"):
                counts.lateness_s.append(time.monotonic() - due_s)
            self.num_tokens += step.num_tokens if step.kind in ("text", "half", "reasoning") else 0
            self.text += step.text if step.kind in ("text", "half") else ""
            if is_stream:
                rest, self.rest = self.rest, b""
                await self._write(rest, self._bytes_of(step))
        counts.num_output_tokens += self.num_tokens
        counts.num_completed += 1
        if is_stream:
            await self._write(self.rest, b"")
            self.writer.write(b"0\r\n\r\n")
        else:
            choice = {"message": {"role": "assistant", "content": self.text}} if self.is_chat else {"text": self.text}
            write_whole(self.writer, 200, {**self._frame([{"index": 0, **choice, "finish_reason": "length"}]),
                                            "usage": self._usage()})  # fmt: skip
        await self.writer.drain()
        return True

    def _bytes_of(self, step: Step) -> bytes:
        end = self.newline * 2
        if step.kind == "raw":
            return step.text.encode()
        if step.kind == "comment":
            return f": ping{end}".encode()
        if step.kind == "error":
            return f"data: {json.dumps({'error': {'message': step.text or 'broken', 'code': 500}})}{end}".encode()
        if step.kind == "usage":
            return self._event([], has_usage=True)
        if step.kind == "done":
            final = self._event([], has_usage=True) if self.has_final_usage else b""
            return final + f"data: [DONE]{end}".encode()
        if step.kind == "role":
            delta = {"delta": {"role": "assistant", "content": ""}} if self.is_chat else {"text": ""}
        elif step.kind == "reasoning":
            delta = {"delta": {"reasoning_content": step.text}} if self.is_chat else {"text": step.text}
        else:
            delta = {"delta": {"content": step.text}} if self.is_chat else {"text": step.text}
        data = self._event([{"index": 0, **delta, "finish_reason": None}], has_usage=bool(self.has_usage))
        if step.kind == "half":
            cut = next(
                (k + 1 for k, byte in enumerate(data) if byte >= 0xC0), len(data)
            )  # after the first byte of a character
            data, self.rest = data[:cut], data[cut:]
        return data

    def _event(self, choices: list, *, has_usage: bool) -> bytes:
        frame = self._frame(choices) | ({"usage": self._usage()} if has_usage else {})
        return f"data: {json.dumps(frame, ensure_ascii=False)}{self.newline * 2}".encode()

    def _frame(self, choices: list) -> dict:
        kind = "chat.completion.chunk" if self.is_chat else "text_completion"
        return {"id": f"fake-{self.number}", "object": kind, "model": self.plan.model, "choices": choices}

    def _usage(self) -> dict:
        return {"prompt_tokens": self.num_prompt_tokens, "completion_tokens": self.num_tokens,
                "total_tokens": self.num_prompt_tokens + self.num_tokens}  # fmt: skip

    async def _write(self, *parts: bytes) -> None:
        """Send each part as an HTTP chunk of its own: what the step before kept back, and what is new."""
        for part in filter(None, parts):
            self.writer.write(b"%x\r\n%b\r\n" % (len(part), part))
        await self.writer.drain()

    async def _sleep_until(self, due_s: float) -> None:
        """Sleep, and notice a client that left."""
        while True:
            if self.reader.at_eof() or self.writer.is_closing():
                raise ConnectionResetError("the client left")
            left_s = due_s - time.monotonic()
            if left_s <= 0:
                return
            await asyncio.sleep(min(left_s, 0.1))

    def _cut(self) -> None:
        """Close with RST: what a crashed server or a middlebox does."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


def write_whole(writer, status: int, content, extra: dict | None = None) -> None:
    """Write an answer of known length: a string as plain text, anything else as JSON."""
    data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
    kind = "text/plain; version=0.0.4" if isinstance(content, str) else "application/json"
    lines = {"Content-Type": kind, "Content-Length": str(len(data)), **(extra or {})}
    head = f"HTTP/1.1 {status} {'OK' if status == 200 else 'Error'}\r\n"
    writer.write((head + "".join(f"{k}: {v}\r\n" for k, v in lines.items()) + "\r\n").encode() + data)
