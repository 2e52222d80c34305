"""The path of each event from the router's body to the caller's answer, kept small because every event pays for it."""

from typing import Protocol

import httpx

from eidproxy.inbound.connection import Connection
from eidproxy.metrics import StreamCounters
from eidproxy.relay.stream import Stage, Stream
from eidproxy.relay.wedge import WedgeGuard
from eidproxy.router.shortcut import Passed

_NEVER = 1 << 62
"""More chunks than any answer has, so `try_shortcut` is not called until the relay sets `shortcut_at_chunks`."""
_FINISHED = Stage.FINISHED
"""See `stream._THINKING`."""
_MAX_ERROR_BODY_BYTES = 64 * 1024
"""The most that is read of an error response: its reason is at the beginning."""


class Listener(Protocol):
    """The relay, as the splice calls it for everything but one more usual event."""

    def on_head(self, status: int, content_type: bytes, encoded: bool) -> None:
        """Take the head of the router's response."""

    def on_stage(self, events: bytes, now: float) -> None:
        """Act on a new stage or on the end of the body; `events` are for the caller."""

    def on_quiet_read(self, now: float) -> None:
        """Look at a read that brought nothing for the caller."""

    def try_shortcut(self, data: bytes, now: float) -> None:
        """Try a shortcut past the interpreter after `shortcut_at_chunks` chunks; `data` is the last read."""

    def on_sign_of_life(self, now: float) -> None:
        """Note an event that came while the wedge guard is not live."""

    def on_end(self, error: httpx.TransportError | None) -> None:
        """Take the end of the router's response: None when it is whole or closed, else the failure."""

    def fail(self, where: str, error: BaseException) -> None:
        """End the request because of a fault of our own."""


class ErrorBody:
    """The body of a router's error response, with the attributes of a `Stream` that a splice uses."""

    __slots__ = ("data", "stage")

    chunks = parsed_events = 0

    def __init__(self) -> None:
        self.data = bytearray()
        self.stage = Stage.WAITING

    def feed(self, data: bytes) -> bytes:
        """Collect more of the body and return nothing for the caller; the stage is OVER at the size limit."""
        self.data += data
        if len(self.data) >= _MAX_ERROR_BODY_BYTES:
            self.stage = Stage.OVER
        return b""


class Splice:
    """The path of each event from the router's body to the caller's answer.

    With thousands of streams every object used here is a cache miss, so this one is small.
    """

    __slots__ = (
        "body",
        "chunks",
        "connection",
        "counters",
        "guard",
        "heard_at",
        "is_open",
        "last_sent_at",
        "noted_comment",
        "noted_events",
        "paused",
        "relay",
        "sent_bytes",
        "shortcut_at_chunks",
        "stage",
    )

    def __init__(
        self, relay: Listener, connection: Connection, body: Stream, counters: StreamCounters, guard: WedgeGuard
    ) -> None:
        self.relay = relay
        self.connection = connection
        self.counters = counters
        self.guard = guard
        self.body: Stream | ErrorBody = body
        self.stage = Stage.WAITING
        self.is_open = False
        """Whether a head with status 200 was sent to the caller."""
        self.paused = False
        """Whether the caller reads too slowly, so that the router is not read."""
        self.noted_comment = b""
        """The last comment that was reported to the silence clock."""
        self.noted_events = 0
        """How many data events of the body the relay has taken note of."""
        self.heard_at = 0.0
        """When the last event for the caller came, on the loop's clock; 0 before the first."""
        self.last_sent_at = 0.0
        self.chunks = 0
        """How many chunks of the body are already counted in the metrics."""
        self.sent_bytes = 0
        self.shortcut_at_chunks = _NEVER
        """The number of chunks from which `try_shortcut` is called."""

    def upstream_head(self, status: int, content_type: bytes, encoded: bool) -> None:
        """See `upstream.Sink`."""
        self.relay.on_head(status, content_type, encoded)

    def upstream_body(self, data: bytes, now: float) -> None:
        """See `upstream.Sink`."""
        try:
            body = self.body
            events = body.feed(data)
            stage = body.stage
            if stage is not self.stage or stage >= _FINISHED:
                self.relay.on_stage(events, now)
            elif events:
                self.counters.intervals.observe(now - self.last_sent_at)
                self.count(events, now)
                self.guard.heard_at = now
                if self.chunks >= self.shortcut_at_chunks:
                    self.relay.try_shortcut(data, now)
                self.connection.write_chunk(events)
                if not self.guard.is_live:
                    self.relay.on_sign_of_life(now)
            else:
                self.relay.on_quiet_read(now)
        except Exception as error:  # noqa: BLE001  # no caller above this callback would handle it
            self.relay.fail("relay", error)

    def upstream_end(self, error: httpx.TransportError | None) -> None:
        """See `upstream.Sink`."""
        self.relay.on_end(error)

    def count(self, events: bytes, now: float) -> None:
        """Count events that are sent to the caller."""
        body, counters = self.body, self.counters
        counters.chunks += body.chunks - self.chunks
        counters.bytes += len(events)
        self.chunks, self.noted_events = body.chunks, body.parsed_events
        self.sent_bytes += len(events)
        self.last_sent_at = self.heard_at = now

    def count_passed(self, passed: Passed) -> None:
        """Count events that a shortcut passed on past the interpreter."""
        body, counters = self.body, self.counters
        if isinstance(body, Stream):
            body.count_passed(passed.events, passed.bytes_in)
        counters.chunks += passed.events
        counters.bytes += passed.bytes_out
        counters.intervals.add(passed.interval_counts, passed.interval_seconds)
        self.chunks = body.chunks
        self.sent_bytes += passed.bytes_out
        self.last_sent_at = self.heard_at = passed.last_sent_at
        self.guard.heard_at = max(self.guard.heard_at, passed.last_sent_at)
