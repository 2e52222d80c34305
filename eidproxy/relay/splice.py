"""The path of each event from the router's body to the caller's answer, kept small because every event pays for it."""

from typing import Protocol

import httpx

from eidproxy.inbound.connection import Connection
from eidproxy.monitoring.metrics import StreamCounters
from eidproxy.relay.stream import Stage, Stream
from eidproxy.relay.wedge import WedgeGuard
from eidproxy.router.exchange import Exchange
from eidproxy.router.response import ResponseHead
from eidproxy.router.shortcut import Passed

_SHORTCUT_AFTER_CHUNKS = 3
"""Chunks before the first attempt at a shortcut past the interpreter. An attempt that fails, or whose shortcut ends
after a few chunks, doubles the number of chunks before the next one."""
_MAX_SHORTCUT_BACKOFF = 10
"""Bounds the wait for the next attempt to 3,072 chunks: beside so many the cost of an attempt is negligible."""
_FINISHED = Stage.FINISHED
"""See `stream._THINKING`."""
_MAX_ERROR_BODY_BYTES = 64 * 1024
"""The most that is read of an error response: its reason is at the beginning."""


class Listener(Protocol):
    """What the splice calls for everything but one more usual event."""

    def on_head(self, head: ResponseHead) -> None:
        """Take the head of the router's response."""

    def on_stage(self, events: bytes, now: float) -> None:
        """Act on a new stage or on the end of the body; `events` are for the caller."""

    def on_quiet_read(self, now: float) -> None:
        """Look at a read that brought nothing for the caller."""

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


class ShortcutAttempts:
    """The attempts of one stream to pass its events on past the interpreter: when to make one, and how."""

    __slots__ = ("_backoff", "_exchange", "_has_aligned", "_sends_progress", "at_chunks")

    def __init__(self, exchange: Exchange, *, sends_progress: bool) -> None:
        self._exchange = exchange
        self._sends_progress = sends_progress
        self._backoff = 0
        self._has_aligned = False
        self.at_chunks = _SHORTCUT_AFTER_CHUNKS
        """The number of chunks from which the next attempt is due."""

    def make(self, splice: "Splice", data: bytes, now: float) -> None:
        """Start a shortcut for the following events, while each has the form of one in `data`, the last read.

        Whether or not one begins, the next attempt is due after more chunks.
        """
        exchange, body = self._exchange, splice.body
        if isinstance(body, ErrorBody):
            return
        shortcut = exchange.shortcut(aligns=not self._has_aligned)
        self._has_aligned = exchange.aligns_to_chunk
        if exchange.aligns_to_chunk:
            return  # `at_chunks` stays, so the next attempt is made after the next read, which should end with a chunk
        if splice.chunks - self.at_chunks > _SHORTCUT_AFTER_CHUNKS << self._backoff:
            self._backoff = 0
        self.at_chunks = splice.chunks + (_SHORTCUT_AFTER_CHUNKS << self._backoff)
        self._backoff = min(self._backoff + 1, _MAX_SHORTCUT_BACKOFF)
        caller = splice.connection.free_transport()
        if shortcut is None or caller is None or splice.paused or not splice.guard.is_live:
            return
        if self._sends_progress and splice.stage is Stage.THINKING:
            return  # progress chunks must be written between the events
        template = body.template(data)
        if template is not None:
            shortcut.begin(caller, template, now, body.budget, splice)


class Splice:
    """The path of each event from the router's body to the caller's answer.

    With thousands of streams every object used here is a cache miss, so this one is small.
    """

    __slots__ = (
        "attempts",
        "body",
        "chunks",
        "connection",
        "counters",
        "guard",
        "heard_at",
        "is_open",
        "last_sent_at",
        "listener",
        "noted_comment",
        "noted_events",
        "paused",
        "sent_bytes",
        "stage",
    )

    def __init__(self, connection: Connection, body: Stream, counters: StreamCounters, guard: WedgeGuard) -> None:
        self.listener: Listener
        """Set when the request is sent; before that nothing can come."""
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
        self.attempts: ShortcutAttempts | None = None
        """None where shortcuts are not available, and until the request is sent."""

    def upstream_head(self, head: ResponseHead) -> None:
        """See `exchange.Sink`."""
        try:
            self.listener.on_head(head)
        except Exception as error:  # noqa: BLE001  # no caller above this callback would handle it
            self.listener.fail("relay", error)

    def upstream_body(self, data: bytes, now: float) -> None:
        """See `exchange.Sink`."""
        try:
            body = self.body
            events = body.feed(data)
            stage = body.stage
            if stage is not self.stage or stage >= _FINISHED:
                self.listener.on_stage(events, now)
            elif events:
                self.counters.intervals.observe(now - self.last_sent_at)
                self.count(events, now)
                self.guard.heard_at = now
                if self.attempts is not None and self.chunks >= self.attempts.at_chunks:
                    self.attempts.make(self, data, now)
                self.connection.write_chunk(events)
                if not self.guard.is_live:
                    self.listener.on_sign_of_life(now)
            else:
                self.listener.on_quiet_read(now)
        except Exception as error:  # noqa: BLE001  # no caller above this callback would handle it
            self.listener.fail("relay", error)

    def upstream_end(self, error: httpx.TransportError | None) -> None:
        """See `exchange.Sink`."""
        self.listener.on_end(error)

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
