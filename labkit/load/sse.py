"""What events does a stream of bytes hold? Server-sent events, parsed piece by piece, whatever the pieces are.

The rules are those of the WHATWG standard (https://html.spec.whatwg.org/multipage/server-sent-events.html, section
9.2.6): a line ends with LF, CR or CRLF; a line that begins with a colon is a comment; a blank line ends an event; a
byte order mark at the very start is skipped; an event that the end of the stream cuts off is dropped. No clock and no
socket: the caller knows when a piece came.
"""

from typing import NamedTuple

__all__ = ["Event", "EventParser"]

_BOM = b"\xef\xbb\xbf"


class Event(NamedTuple):
    """One event: its `data` lines joined by newlines, and its `event` field ("" means "message")."""

    data: str
    kind: str = ""


class EventParser:
    """Takes pieces of a stream and returns the events that each piece completes."""

    __slots__ = ("_data", "_is_first_line", "_kind", "_parts", "_skips_lf")

    def __init__(self) -> None:
        self._parts: list[bytes] = []  # of the line that is not complete; never holds a line end
        self._data: list[bytes] = []
        self._kind = b""
        self._skips_lf = False  # the last byte was CR: an LF now belongs to it
        self._is_first_line = True

    @property
    def is_inside(self) -> bool:
        """Whether an event has begun that no blank line has ended yet."""
        return bool(self._data) or any(self._parts)

    def feed(self, piece: bytes) -> list[Event]:
        """Return the events that end in this piece. Bytes that are no UTF-8 become U+FFFD."""
        if self._skips_lf and piece:
            self._skips_lf = False
            if piece[0] == 10:
                piece = piece[1:]
        if b"\r" in piece:
            self._skips_lf = piece[-1] == 13
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if b"\n" not in piece:  # a long line in many pieces is joined once, not once per piece
            self._parts.append(piece)
            return []
        lines = piece.split(b"\n")
        if self._parts:
            lines[0] = b"".join([*self._parts, lines[0]])
        self._parts = [lines.pop()]
        if self._is_first_line:
            self._is_first_line = False
            lines[0] = lines[0].removeprefix(_BOM)
        events: list[Event] = []
        for line in lines:
            if line.startswith(b"data: "):  # nearly every line
                self._data.append(line[6:])
            elif line:
                self._take_field(line)
            else:
                if self._data:
                    data = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
                    events.append(Event(data.decode("utf-8", "replace"), self._kind.decode("utf-8", "replace")))
                    self._data = []
                self._kind = b""
        return events

    def _take_field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._kind = value
