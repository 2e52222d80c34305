"""Server-sent events: bytes in, event data out, however the bytes are cut.

The grammar is the WHATWG event stream (HTML Standard, 9.2.5 and 9.2.6): lines end in CR, LF or CRLF, one byte order
mark may lead, `data` lines join with LF, a blank line dispatches. `str.splitlines` and line readers built on it split
at U+2028 and other places too, so this parser works on bytes.

Divergences:
1. Only the data of an event comes out. `id`, `retry` and comments are read and forgotten; of the event type only
   `error` matters.
2. A field named `error` (older llama.cpp servers send a bare `error: {…}` line) is an event of its own, dispatched at
   the end of its line.
3. One event holds at most `max_event_bytes`; `EventTooLarge` is raised for a longer one.
"""

MAX_EVENT_BYTES = 1024 * 1024

_BOM = b"\xef\xbb\xbf"


class EventTooLarge(ValueError):
    """An event, or a line of it, is longer than the limit."""


class ErrorData(bytes):
    """The data of an event of type `error`, or what a bare `error:` line says."""

    __slots__ = ()


class EventParser:
    """An incremental parser. Feed it the bytes of one stream; it returns the data of each event that is whole."""

    __slots__ = ("_at_start", "_data", "_is_error", "_rest", "_seen", "_size", "_skip_lf", "max_event_bytes")

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self.max_event_bytes = max_event_bytes
        self._rest: bytes | bytearray = b""  # the line that is not yet ended
        self._seen = 0  # how much of it is known to hold no line end
        self._data: list[bytes] = []  # the data lines of the event that is not yet dispatched
        self._size = 0
        self._is_error = False
        self._at_start = True
        self._skip_lf = False  # the line before ended in CR: an LF that comes next belongs to it

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take the next bytes and return the data of the events they complete, errors as `ErrorData`.

        Raises EventTooLarge when an event goes over the limit. The parser is of no use after that.
        """
        if self._at_start or self._skip_lf or b"\r" in chunk:
            return self._feed_any(chunk)
        if not self._rest and not self._data and not self._is_error:
            return self._feed_plain(chunk)
        # An event was cut: finish it, and the rest of the chunk is the common case again.
        cut = chunk.find(b"\n\n") + 2
        if cut < 2:
            return self._feed_any(chunk)
        return self._feed_any(chunk[:cut]) + self._feed_plain(chunk[cut:])

    def _feed_plain(self, chunk: bytes) -> list[bytes]:
        """The common case: whole events of one `data: ` line each, LF line ends, nothing left from before."""
        events: list[bytes] = []
        append = events.append
        limit = self.max_event_bytes
        blocks = chunk.split(b"\n\n")
        tail = blocks.pop()
        for at, block in enumerate(blocks):
            if block[:6] == b"data: " and b"\n" not in block and len(block) <= limit:
                append(block[6:])
            else:
                remainder = b"\n\n".join([*blocks[at:], tail])
                return events + self._feed_any(remainder)
        if tail:
            events += self._feed_any(tail)
        return events

    def _feed_any(self, chunk: bytes) -> list[bytes]:
        if self._rest:
            # In place, since a line may come in a million pieces: joining anew would be quadratic.
            if not isinstance(self._rest, bytearray):
                self._rest = bytearray(self._rest)
            self._rest += chunk
            text: bytes | bytearray = self._rest
        else:
            text = chunk
        if self._at_start:
            if len(text) < len(_BOM) and _BOM.startswith(bytes(text)):
                self._rest = text  # too short to tell a byte order mark from data
                return []
            self._at_start = False
            if text.startswith(_BOM):
                text = text[len(_BOM) :]
        start = 0
        if self._skip_lf and text:
            self._skip_lf = False
            if text[0] == 0x0A:
                start = 1
        events: list[bytes] = []
        scan = max(start, self._seen)
        cr = text.find(b"\r", scan)
        lf = text.find(b"\n", scan)
        while cr >= 0 or lf >= 0:
            end = lf if cr < 0 or 0 <= lf < cr else cr
            line = bytes(text[start:end])
            start = end + 1
            if end == cr:
                if start == len(text):
                    self._skip_lf = True
                elif text[start] == 0x0A:
                    start += 1
                cr = text.find(b"\r", start)
            if 0 <= lf < start:
                lf = text.find(b"\n", start)
            self._take_line(line, events)
        self._rest = bytes(text[start:]) if start else text
        self._seen = len(self._rest)
        if self._size + len(self._rest) > self.max_event_bytes:
            raise EventTooLarge
        return events

    def _take_line(self, line: bytes, events: list[bytes]) -> None:
        if not line:
            self._dispatch(events)
            return
        self._size += len(line) + 1
        if self._size > self.max_event_bytes + 1:
            raise EventTooLarge
        name, _, value = line.partition(b":")
        if value[:1] == b" ":
            value = value[1:]
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._is_error = value == b"error"
        elif name == b"error":
            events.append(ErrorData(value))
        elif not name:
            self._size -= len(line) + 1  # a comment is no part of an event: a million of them are harmless

    def _dispatch(self, events: list[bytes]) -> None:
        if self._data:
            data = b"\n".join(self._data)
            events.append(ErrorData(data) if self._is_error else data)
        self._data = []
        self._is_error = False
        self._size = 0
