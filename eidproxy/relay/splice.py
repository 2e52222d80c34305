"""Joins the router's body to the caller's answer: what each event costs, and nothing else."""

from typing import Protocol

import httpx

from eidproxy.inbound.connection import Connection
from eidproxy.metrics import StreamCounters
from eidproxy.relay.stream import Stage, Stream
from eidproxy.relay.wedge import WedgeGuard
from eidproxy.router.shortcut import Passed

_NEVER = 1 << 62
"""More chunks than any answer has."""
_FINISHED = Stage.FINISHED
"""See `stream._THINKING`."""
_MAX_ERROR_BODY_BYTES = 64 * 1024
"""The most that is read of a refusal: its reason stands at the beginning."""


class Listener(Protocol):
    """Who hears of whatever is not one more event for the caller: the relay."""

    def on_head(self, status: int, content_type: bytes, encoded: bool) -> None:
        """The head of the router's answer came."""

    def on_stage(self, events: bytes, now: float) -> None:
        """The body came to another stage, or is at its end; `events` are for the caller."""

    def on_quiet_read(self, now: float) -> None:
        """A read brought nothing for the caller."""

    def on_steady(self, data: bytes, now: float) -> None:
        """Many usual events came; `data` is the read of the last."""

    def on_sign_of_life(self, now: float) -> None:
        """An event came while something is held against the model server."""

    def on_end(self, error: httpx.TransportError | None) -> None:
        """The connection to the router is over."""

    def fail(self, where: str, error: BaseException) -> None:
        """A fault of our own."""


class ErrorBody:
    """The body of a router's refusal. Takes the place of a `Stream`."""

    __slots__ = ("data", "stage")

    chunks = heard = 0

    def __init__(self) -> None:
        self.data = bytearray()
        self.stage = Stage.WAITING

    def feed(self, data: bytes) -> bytes:
        """Take some more of it."""
        self.data += data
        if len(self.data) >= _MAX_ERROR_BODY_BYTES:
            self.stage = Stage.OVER
        return b""


class Splice:
    """Joins the router's body to the caller's answer: what each event costs, and nothing else.

    With thousands of streams every object that is touched here is a cache miss, so this one is small.
    """

    __slots__ = (
        "body",
        "chunks",
        "comment",
        "connection",
        "counters",
        "guard",
        "heard",
        "heard_at",
        "is_open",
        "last_sent_at",
        "paused",
        "relay",
        "sent_bytes",
        "stage",
        "steady_at",
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
        """A head with status 200 went to the caller."""
        self.paused = False
        """The caller reads too slowly."""
        self.comment = b""
        """The last comment that the silence clock knows of."""
        self.heard = 0
        """How many events of the body it knows of."""
        self.heard_at = 0.0
        """When the last event for the caller came."""
        self.last_sent_at = 0.0
        self.chunks = 0
        """How many chunks of the body are counted already."""
        self.sent_bytes = 0
        self.steady_at = _NEVER
        """At how many chunks the relay hears that the answer is steady."""

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
                if self.chunks >= self.steady_at:
                    self.relay.on_steady(data, now)
                self.connection.write_chunk(events)
                if not self.guard.is_live:
                    self.relay.on_sign_of_life(now)
            else:
                self.relay.on_quiet_read(now)
        except Exception as error:  # noqa: BLE001  # a callback has nobody above it
            self.relay.fail("relay", error)

    def upstream_end(self, error: httpx.TransportError | None) -> None:
        """See `upstream.Sink`."""
        self.relay.on_end(error)

    def count(self, events: bytes, now: float) -> None:
        """Count events that go to the caller."""
        body, counters = self.body, self.counters
        counters.chunks += body.chunks - self.chunks
        counters.bytes += len(events)
        self.chunks, self.heard = body.chunks, body.heard
        self.sent_bytes += len(events)
        self.last_sent_at = self.heard_at = now

    def passed_on(self, passed: Passed) -> None:
        """Count events that went past the interpreter."""
        body, counters = self.body, self.counters
        if isinstance(body, Stream):
            body.passed_on(passed.events, passed.bytes_in)
        counters.chunks += passed.events
        counters.bytes += passed.bytes_out
        counters.intervals.add(passed.counts, passed.seconds)
        self.chunks = body.chunks
        self.sent_bytes += passed.bytes_out
        self.last_sent_at = self.heard_at = passed.at
        self.guard.heard_at = max(self.guard.heard_at, passed.at)
