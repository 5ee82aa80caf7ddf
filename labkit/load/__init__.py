"""What do users feel? A load engine: planned requests, a client that stamps every chunk, metrics, a verdict on itself.

From the bytes up: `sse` and `http1` (framing), `answers` and `records` (one request), `metrics` (a run). All of these
are pure functions without clock or socket.
"""

__all__: list[str] = []
