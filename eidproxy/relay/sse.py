"""Server-sent events: a parser from bytes to event data, however the bytes are cut.

The grammar is the WHATWG event stream (HTML Standard, 9.2.5 and 9.2.6): lines end in CR, LF or CRLF, one byte order
mark may lead, `data` lines join with LF, a blank line dispatches. `str.splitlines` and line readers built on it split
at U+2028 and other places too, so this parser works on bytes.

Divergences:
1. Only the data of an event is returned. `id` and `retry` are ignored; of the event type only `error` matters; of
   comments the beginning of the last one is kept, since one that changes is a sign of life.
2. A field named `error` (older llama.cpp servers send a bare `error: {…}` line) is an event of its own, dispatched at
   the end of its line.
3. One event holds at most `max_event_bytes`; `EventTooLarge` is raised for a longer one.
"""

MAX_EVENT_BYTES = 1024 * 1024
"""The limit for one event, which is held until it is whole (contract, 4)."""
_MAX_COMMENT_BYTES = 256
"""Enough to tell two comments of one server apart: mlx counts `: keepalive 4096/12015`."""

_BOM = b"\xef\xbb\xbf"
_COLON, _LF = b":\n"


class EventTooLarge(ValueError):
    """An event, or a line of it, is longer than the limit. `events` are the whole events before it."""

    def __init__(self, events: list[bytes]) -> None:
        super().__init__()
        self.events = events


class ErrorData(bytes):
    """The data of an event of type `error`, or the value of a bare `error:` line."""

    __slots__ = ()


def whole_event(chunk: bytes, max_event_bytes: int = MAX_EVENT_BYTES) -> bytes | None:
    """Return the data of a read that is exactly one event of one `data` line and a blank line, else None.

    To be called only between events.
    """
    if (
        chunk[:6] == b"data: "
        and chunk.find(b"\n") == len(chunk) - 2
        and chunk[-1] == _LF
        and b"\r" not in chunk
        and len(chunk) <= max_event_bytes
    ):
        return chunk[6:-2]
    return None


class EventParser:
    """The incremental parser of one stream."""

    __slots__ = (
        "_data_lines",
        "_event_bytes",
        "_is_at_start",
        "_is_error",
        "_skips_lf",
        "_unfinished_line",
        "comment",
        "is_between_events",
        "max_event_bytes",
    )

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self.max_event_bytes = max_event_bytes
        self._unfinished_line = bytearray()  # the unfinished line
        self._data_lines: list[bytes] | None = None  # the data lines of the event that is not yet dispatched
        self._event_bytes = 0  # bytes of all lines of that event
        self._is_error = False
        self._is_at_start = True
        self._skips_lf = False  # the last line ended in CR: an LF that comes next belongs to it
        self.comment = b""
        """The beginning of the last comment."""
        self.is_between_events = False
        """Whether the next byte begins an event and nothing is left from before: `whole_event` may be called."""

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take the next bytes and return the data of the events they complete, errors as `ErrorData`.

        Raises EventTooLarge when an event exceeds the limit. The parser must not be used after that.
        """
        has_no_cr = b"\r" not in chunk
        events: list[bytes] = []
        if self._is_at_start and len(chunk) >= len(_BOM) and not self._unfinished_line:
            self._is_at_start = False
            chunk = chunk.removeprefix(_BOM)
        if self._is_at_start or self._skips_lf or not has_no_cr:
            self._feed_any(chunk, events)
        elif not self._event_bytes and not self._unfinished_line:
            self._feed_plain(chunk, events)
        else:
            # An event was cut: finish it first; the rest of the chunk is the common case again.
            cut = chunk.find(b"\n\n") + 2
            if cut < 2:
                self._feed_any(chunk, events)
            else:
                self._feed_any(chunk[:cut], events)
                self._feed_plain(chunk[cut:], events)
        self.is_between_events = not (self._event_bytes or self._unfinished_line or self._skips_lf or self._is_at_start)
        return events

    def _feed_plain(self, chunk: bytes, events: list[bytes]) -> None:
        """Parse the common case: whole events of one `data: ` line each, LF line ends, nothing left from before."""
        end = chunk.rfind(b"\n\n") + 2
        if chunk[:6] == b"data: " and 2 <= end <= self.max_event_bytes:
            # Split in one step. The count of line ends proves that no event has a second line or a blank one before it.
            found = chunk[6 : end - 2].split(b"\n\ndata: ")
            if chunk.count(b"\n", 0, end) == 2 * len(found):
                events += found
                chunk = chunk[end:]
        if chunk:
            self._feed_any(chunk, events)

    def _feed_any(self, chunk: bytes, events: list[bytes]) -> None:
        if self._is_at_start:
            chunk = bytes(self._unfinished_line) + chunk
            if len(chunk) < len(_BOM) and _BOM.startswith(chunk):
                self._unfinished_line = bytearray(chunk)  # too short to tell a byte order mark from data
                return
            self._is_at_start = False
            self._unfinished_line.clear()
            chunk = chunk.removeprefix(_BOM)
        if self._skips_lf and chunk:
            self._skips_lf = False
            chunk = chunk.removeprefix(b"\n")
        if b"\r" in chunk:
            self._skips_lf = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        rest = self._unfinished_line
        if b"\n" in chunk:
            lines = chunk.split(b"\n")
            if rest:
                lines[0] = bytes(rest) + lines[0]
                rest.clear()
            rest += lines.pop()
            self._parse_lines(lines, events)
        else:
            rest += chunk  # in place: a line may come in a million pieces, and joining them each time is quadratic
        if rest and self._event_bytes + len(rest) > self.max_event_bytes:
            raise EventTooLarge(events)

    def _parse_lines(self, lines: list[bytes], events: list[bytes]) -> None:
        limit = self.max_event_bytes
        for line in lines:
            if not line:
                if self._event_bytes:
                    self._dispatch(events)
                continue
            if self._event_bytes + len(line) > limit:
                raise EventTooLarge(events)
            if line[0] == _COLON:
                self.comment = line[:_MAX_COMMENT_BYTES]
                continue  # a comment is no part of an event and does not count towards its size
            self._event_bytes += len(line) + 1
            name, _, value = line.partition(b":")
            if value[:1] == b" ":
                value = value[1:]
            if name == b"data":
                if self._data_lines is None:
                    self._data_lines = [value]
                else:
                    self._data_lines.append(value)
            elif name == b"event":
                self._is_error = value == b"error"
            elif name == b"error":
                events.append(ErrorData(value))

    def _dispatch(self, events: list[bytes]) -> None:
        if self._data_lines is not None:
            data = b"\n".join(self._data_lines)
            events.append(ErrorData(data) if self._is_error else data)
            self._data_lines = None
        self._is_error = False
        self._event_bytes = 0
