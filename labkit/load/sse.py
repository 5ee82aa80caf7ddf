"""What events does a stream of bytes hold? Server-sent events, parsed piece by piece, wherever the pieces are cut.

The rules are those of the WHATWG standard (https://html.spec.whatwg.org/multipage/server-sent-events.html, section
9.2.6): a line ends with LF, CR or CRLF; a line that begins with a colon is a comment; a blank line ends an event; a
byte order mark at the very start is skipped; an event that the end of the stream cuts off is dropped. No clock and no
socket: the caller knows when a piece came.
"""

__all__ = ["SseParser"]

_BOM = b"\xef\xbb\xbf"


class SseParser:
    """Takes pieces of a stream and returns the data of the events that each piece completes."""

    __slots__ = ("_data", "_is_first_line", "_parts", "_skips_lf")

    def __init__(self) -> None:
        self._parts: list[bytes] = []  # of the line that is not complete; never holds a line end
        self._data: list[bytes] = []
        self._skips_lf = False  # the last byte was CR: an LF now belongs to it
        self._is_first_line = True

    def feed(self, piece: bytes) -> list[str]:
        """Return the data of the events that end in this piece; bytes that are not UTF-8 become U+FFFD."""
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
        events: list[str] = []
        for line in lines:
            if line.startswith(b"data: "):  # nearly every line
                self._data.append(line[6:])
            elif line:
                name, _, value = line.partition(b":")
                if name == b"data":
                    self._data.append(value.removeprefix(b" "))
            elif self._data:
                events.append(b"\n".join(self._data).decode("utf-8", "replace"))
                self._data = []
        return events
