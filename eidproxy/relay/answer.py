"""The answer to the caller of one request: a stream with its head and its end, one JSON answer, or an error."""

from eidproxy.errors import CLIENT_GONE, Refusal, RouterReason
from eidproxy.inbound.connection import Connection
from eidproxy.relay.completion import Completion
from eidproxy.relay.progress import ProgressFields
from eidproxy.relay.splice import Splice
from eidproxy.relay.stream import DONE, Stream

_FLUSH_SECONDS = 0.5
"""How long a caller has to read the end of its answer after the wall clock ran out."""

_KEEPALIVE = b": keepalive\n\n"


class Times:
    """When a request reached each step, on the loop's clock; None: it has not."""

    __slots__ = ("arrived_at", "deadline_at", "first_event_at", "granted_at")

    def __init__(self, arrived_at: float) -> None:
        self.arrived_at = arrived_at
        self.granted_at: float | None = None
        self.deadline_at = 0.0
        """When the wall clock runs out; set with the grant."""
        self.first_event_at: float | None = None


class Answer:
    """The answer to one caller."""

    __slots__ = (
        "_held_events",
        "connection",
        "splice",
        "stream",
        "times",
    )

    def __init__(self, connection: Connection, stream: Stream, splice: Splice, times: Times) -> None:
        self.connection = connection
        self.stream = stream
        self.splice = splice
        self.times = times
        self._held_events = b""
        """The last events, held back for one write with the end of the answer."""

    def begin(self) -> None:
        """Send the head alone, before progress chunks; without `Server-Timing`, since the waits are not known yet."""
        self.splice.is_open = True
        self.splice.last_sent_at = self.connection.loop.time()
        self.connection.begin_stream(b"", b"")

    def send_events(self, events: bytes, now: float, *, is_first: bool, is_last: bool) -> None:
        """Send events, with the head if it is not yet sent; keep the last ones for the write that ends the answer."""
        splice = self.splice
        if not is_first:
            splice.counters.intervals.observe(now - splice.last_sent_at)
        splice.count(events, now)
        if is_last:
            self._held_events = events
        elif splice.is_open:
            self.connection.write_chunk(events)
        else:
            splice.is_open = True
            self.connection.begin_stream(self._server_timing(), events)

    def send_progress(self, fields: ProgressFields) -> None:
        """Send a progress chunk, unless the head is not sent or the caller reads too slowly."""
        if self.splice.is_open and not self.splice.paused:
            self.splice.last_sent_at = self.connection.loop.time()
            self.connection.write_chunk(self.stream.progress_chunk(fields))

    def keep_alive(self, now: float) -> None:
        """Send a comment, so that no proxy on the way drops the connection as idle (WHATWG HTML, 9.2.7)."""
        if not self.splice.paused:
            self.connection.write_chunk(_KEEPALIVE)
        self.splice.last_sent_at = now

    def end(self, refusal: Refusal | None) -> int:
        """Write the end of the answer, whole or with an error, and return the status for the log (499: caller left)."""
        connection, splice = self.connection, self.splice
        if refusal is not None and is_departure(refusal.reason):
            connection.abort()
            return 499
        flush_seconds = None
        if self.times.granted_at is not None:
            flush_seconds = max(self.times.deadline_at - connection.loop.time(), _FLUSH_SECONDS)
        if refusal is not None and not (splice.is_open or self._held_events):
            connection.refuse(refusal, flush_seconds)
            return refusal.status
        stream = self.stream
        rest = stream.close() if stream.sanitizer.has_begun else b""
        if stream.completion is not None and refusal is None:
            self._end_whole(stream.completion, flush_seconds)
            return 200
        if refusal is None:
            rest += stream.finish()
        splice.count(rest, splice.last_sent_at)
        rest += DONE if refusal is None else refusal.event(connection.request_id)
        if splice.is_open:
            connection.end_stream(self._held_events + rest, flush_seconds)
        else:  # the head goes out in the same write
            connection.send_stream(self._server_timing(), self._held_events + rest, flush_seconds)
        return 200

    def _end_whole(self, completion: Completion, flush_seconds: float | None) -> None:
        """Send the answer to a caller that did not ask for a stream."""
        connection = self.connection
        reason = self.stream.sanitizer.finish_reason or "stop"
        body = completion.encode(connection.request_id, reason)
        self.splice.sent_bytes += len(body)
        headers = [(b"Content-Type", b"application/json"), (b"Server-Timing", self._server_timing())]
        connection.respond(200, headers, body, flush_seconds)

    def _server_timing(self) -> bytes:
        times = self.times
        granted_at = times.granted_at or times.arrived_at
        first_event_at = times.first_event_at or granted_at
        waits = (granted_at - times.arrived_at, first_event_at - granted_at)
        return b"gate;dur=%.1f, upstream;dur=%.1f" % (waits[0] * 1e3, waits[1] * 1e3)


def is_departure(reason: str) -> bool:
    """Return whether the reason means that the caller left. The same word sent by the router does not."""
    return reason == CLIENT_GONE and not isinstance(reason, RouterReason)
