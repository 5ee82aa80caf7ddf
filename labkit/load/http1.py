"""Where does an HTTP/1.1 answer end, and what is its body? Framing as a pure function of the bytes (RFC 9112).

Status line, header fields, and a body that is chunked, of a stated length, or ends with the connection. No clock and
no socket: `feed` takes a piece and returns the bytes of the body in it.
"""

from labkit.errors import LabkitError

__all__ = ["ResponseReader"]

_MAX_HEAD_BYTES = 65536
_EMPTY_STATUSES = (204, 304)


class ResponseReader:
    """Reads one answer.

    `status` (None until the head is there), `headers` (lower-case names), `is_complete`, `rest` (bytes behind the end
    of this answer: none are expected without pipelining), `keeps_alive`.
    """

    __slots__ = ("_buffer", "_left", "_state", "headers", "is_complete", "keeps_alive", "rest", "status")

    def __init__(self) -> None:
        self.status: int | None = None
        self.headers: dict[str, str] = {}
        self.is_complete, self.keeps_alive, self.rest = False, False, b""
        self._buffer, self._left, self._state = b"", 0, "head"

    @property
    def is_chunked(self) -> bool:
        """Whether the body comes in HTTP chunks, so that its end has a mark."""
        return self._state in ("size", "chunk", "chunk end", "trailer")

    def feed(self, piece: bytes) -> bytes:
        """Return the part of the body in this piece; LabkitError where this is no HTTP/1.1."""
        if self.is_complete:
            self.rest += piece
            return b""
        if self._state == "head":
            self._buffer += piece
            piece = self._take_head()
            if piece is None:
                return b""
        if self._state == "until close":
            return piece
        if self._state == "length":
            body, self.rest = piece[: self._left], piece[self._left :]
            self._left -= len(body)
            self.is_complete = not self._left
            return body
        return self._take_chunks(piece)

    def close(self) -> bool:
        """Say that the connection has ended; returns whether the answer is whole."""
        if self._state == "until close":
            self.is_complete = True
        return self.is_complete

    def _take_head(self) -> bytes | None:
        """Read the head when it is there; returns the body behind it, or None. A 1xx answer is skipped."""
        while True:
            head, end, rest = self._buffer.partition(b"\r\n\r\n")
            if not end:
                if len(self._buffer) > _MAX_HEAD_BYTES:
                    raise LabkitError(f"the head of the answer is over {_MAX_HEAD_BYTES} bytes.")
                if self._buffer and not b"HTTP/1."[: len(self._buffer)] == self._buffer[:7]:
                    raise LabkitError(f"this is no HTTP/1.1 answer: it begins with {self._buffer[:20]!r}.")
                return None
            first, *lines = head.split(b"\r\n")
            words = first.split(None, 2)
            if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
                raise LabkitError(f"this is no HTTP/1.1 answer: it begins with {first[:40]!r}.")
            status = int(words[1])
            if 100 <= status < 200:
                self._buffer = rest
                continue
            break
        fields = (line.decode("latin-1").partition(":") for line in lines)
        self.headers = {name.strip().lower(): value.strip() for name, _, value in fields}
        connection = self.headers.get("connection", "").lower()
        self.status, self._buffer = status, b""
        self.keeps_alive = "close" not in connection and (words[0] != b"HTTP/1.0" or "keep-alive" in connection)
        if "chunked" in self.headers.get("transfer-encoding", "").lower():
            self._state = "size"
        elif "content-length" in self.headers:
            text = self.headers["content-length"]
            if not text.isdigit():
                raise LabkitError(f"the answer's Content-Length is {text[:40]!r}.")
            self._state, self._left = "length", int(text)
            self.is_complete = not self._left
        elif status in _EMPTY_STATUSES:
            self.is_complete = True
        else:
            self._state, self.keeps_alive = "until close", False
        if self.is_complete:
            self.rest = rest
            return None
        return rest

    def _take_chunks(self, piece: bytes) -> bytes:
        buffer, parts, position = self._buffer + piece if self._buffer else piece, [], 0
        while True:
            if self._state == "chunk":
                body = buffer[position : position + self._left]
                if not body:
                    break
                parts.append(body)
                position, self._left = position + len(body), self._left - len(body)
                if self._left:
                    break
                self._state = "chunk end"
            end = buffer.find(b"\r\n", position)
            if end < 0:
                if len(buffer) - position > _MAX_HEAD_BYTES:
                    raise LabkitError("a chunk of the answer has no size.")
                break
            line, position = buffer[position:end], end + 2
            if self._state == "chunk end":
                if line:
                    raise LabkitError(f"a chunk of the answer is longer than its size: {line[:20]!r}.")
                self._state = "size"
            elif self._state == "size":
                try:
                    self._left = int(line.partition(b";")[0], 16)
                except ValueError:
                    raise LabkitError(f"a chunk of the answer has no size: {line[:20]!r}.") from None
                self._state = "chunk" if self._left else "trailer"
            elif not line:  # the blank line behind the trailer
                self.is_complete, self.rest, self._buffer = True, buffer[position:], b""
                return b"".join(parts)
        self._buffer = buffer[position:] if self._state != "chunk" else b""
        return parts[0] if len(parts) == 1 else b"".join(parts)
