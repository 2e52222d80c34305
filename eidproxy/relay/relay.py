"""One request of the main job on its way: gate, connection to the router, stream, end.

A `Relay` owns the slot, the upstream exchange and the deadline of one request, and gives all three back in one place:
`conclude`. Whatever ends a request (the answer, a fault, a clock, a caller that left, a drain) is a `Cause`; the table
`ENDS` says what it means in the state that the request is in, and only the first cause counts. A task exists only while
there is something to wait for, the slot and the connection; after that the relay runs in the callbacks of the upstream
connection, so that one event costs one callback: bytes are framed, sanitized and written to the caller's transport
where they arrive (`Splice`).
"""

import asyncio
from collections.abc import Callable
from enum import IntEnum, auto
from typing import NamedTuple

import httpx

from eidproxy.countdown import Countdown
from eidproxy.errors import (
    CLIENT_GONE,
    DEADLINES,
    FINAL_STATUSES,
    STREAM_ENDS,
    Refusal,
    Said,
    metric_reason,
    reason_of_status,
    router_retry_seconds,
)
from eidproxy.gate import Gate, Pass
from eidproxy.inbound.chat import ChatRequest
from eidproxy.inbound.connection import Connection
from eidproxy.logs import Event, Log, RequestLine
from eidproxy.metrics import Metrics
from eidproxy.relay.completion import Completion
from eidproxy.relay.progress import News, Progress
from eidproxy.relay.settle import Settlement, Settlements
from eidproxy.relay.silence import SilenceClock, SilenceLimits
from eidproxy.relay.stream import DONE, Stage, Stream
from eidproxy.relay.wedge import Passage, WedgeGuard
from eidproxy.router.upstream import EgressBlocked, Exchange, Upstream
from eidproxy.vocabulary import Mode, Outcome, Phase, Priority, SettleEnd, StreamEnd, Surface

_TAIL_SECONDS = 5.0
"""How long a router may be silent after a finish reason before the answer is taken for whole (contract, 4)."""

_REFUSAL_SECONDS = 5.0
"""How long the body of a router's refusal is waited for: its status alone is a reason."""

_MAX_ERROR_BODY_BYTES = 64 * 1024

_PROBE_SECONDS = 3.0
"""Delay before TCP keep-alive is enabled on the router's socket; the kernel then needs up to 25 s to find a dead peer.

Shorter requests never pay for it.
"""

_FLUSH_SECONDS = 0.5
"""How long a caller has to take what ends its answer after the wall clock ran out."""

_KEEPALIVE = b": keepalive\n\n"


class State(IntEnum):
    """How far a request has come. An `IntEnum`, since the hash of an `Enum` is computed in Python."""

    QUEUED = auto()
    CONNECTING = auto()
    ASKED = auto()
    """The request is written; nothing good has come."""
    REFUSED = auto()
    """The router answered with an error status; its body is read."""
    STREAMING = auto()
    """The first good event came."""
    FINISHED = auto()
    """A finish reason came: the answer is whole, whatever follows."""
    CONCLUDED = auto()


class Cause(IntEnum):
    """What may end a request."""

    REFUSAL = auto()
    """Refused by a part of ours, or a slot taken back; the reason comes with it."""
    DIAL_FAILED = auto()
    SILENCE = auto()
    WALL_CLOCK = auto()
    ROUTER_BROKE = auto()
    """The connection failed; the reason comes with it."""
    ROUTER_CLOSED = auto()
    ROUTER_DONE = auto()
    """The router said `[DONE]`."""
    ROUTER_ERROR = auto()
    """The router's answer is an error or no answer; the reason comes with it."""
    CALLER_LEFT = auto()
    DRAIN = auto()
    FAULT = auto()


_GIVEN = "given"
"""The reason comes with the cause."""

_STATUS = "status"
"""The reason follows from the router's status and body."""

WHOLE = "whole"
"""No error: the answer is complete."""

_BEFORE_THE_ROUTER = {
    Cause.REFUSAL: _GIVEN,
    Cause.CALLER_LEFT: CLIENT_GONE,
    Cause.DRAIN: "draining",
    Cause.FAULT: "internal_error",
}
_AT_THE_ROUTER = {
    **_BEFORE_THE_ROUTER,
    Cause.DIAL_FAILED: _GIVEN,
    Cause.SILENCE: _GIVEN,
    Cause.WALL_CLOCK: "stream_deadline_exceeded",
    Cause.ROUTER_BROKE: _GIVEN,
    Cause.ROUTER_CLOSED: "upstream_truncated",
    Cause.ROUTER_DONE: "upstream_truncated",
    Cause.ROUTER_ERROR: _GIVEN,
}

ENDS: dict[State, dict[Cause, str]] = {
    State.QUEUED: _BEFORE_THE_ROUTER,
    State.CONNECTING: _AT_THE_ROUTER,
    State.ASKED: _AT_THE_ROUTER,
    State.REFUSED: {
        **_AT_THE_ROUTER,
        Cause.SILENCE: _STATUS,
        Cause.ROUTER_BROKE: _STATUS,
        Cause.ROUTER_CLOSED: _STATUS,
    },
    State.STREAMING: _AT_THE_ROUTER,
    State.FINISHED: {
        **dict.fromkeys(Cause, WHOLE),
        Cause.CALLER_LEFT: CLIENT_GONE,
        Cause.FAULT: "internal_error",
    },
}
"""What each cause means in each state: a reason of `errors.RULES`, or one of the three words above.

No clock, cut, drain or error of the router makes an error of an answer whose finish reason has come (contract, 4).
"""


class RelayLimits(NamedTuple):
    """The clocks of one request."""

    silence: SilenceLimits
    keepalive_seconds: float


class RelayClocks:
    """The clocks that every request starts: one timer each for all requests."""

    def __init__(self, limits: RelayLimits) -> None:
        silence = limits.silence
        first_check = min(limits.keepalive_seconds, silence.read_timeout, silence.first_event)
        self.deadline = Countdown(silence.deadline, Relay.on_wall_clock)
        self.probe = Countdown(_PROBE_SECONDS, Relay.probe)
        self.silence = Countdown(first_check, Relay.check_silence)
        self.tail = Countdown(_TAIL_SECONDS, Relay.on_tail_silence, patient=True)
        self.refusal = Countdown(_REFUSAL_SECONDS, Relay.on_tail_silence, patient=True)


class RelayServices(NamedTuple):
    """What every relay of a process shares."""

    gate: Gate
    upstream: Upstream
    metrics: Metrics
    log: Log
    limits: RelayLimits
    clocks: RelayClocks
    guards: dict[Mode, WedgeGuard]
    settlements: Settlements
    on_upstream_state: Callable[[Mode], None]
    """Called when the guard of a mode came to another state."""
    running: "set[Relay]"
    clock: Callable[[], float]
    """Seconds of the epoch, for `created`."""


class _ErrorBody:
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
    )

    def __init__(self, relay: "Relay", connection: Connection, body: Stream) -> None:
        self.relay = relay
        self.connection = connection
        self.counters = relay.services.metrics.streams[relay.mode]
        self.guard = relay.services.guards[relay.mode]
        self.body: Stream | _ErrorBody = body
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

    def upstream_head(self, status: int, content_type: bytes, encoded: bool) -> None:
        """See `upstream.Sink`."""
        self.relay.on_head(status, content_type, encoded)

    def upstream_body(self, data: bytes, now: float) -> None:
        """See `upstream.Sink`."""
        try:
            body = self.body
            events = body.feed(data)
            if body.stage is not self.stage or body.stage >= Stage.FINISHED:
                self.relay.on_stage(events, now)
            elif events:
                self.counters.intervals.observe(now - self.last_sent_at)
                self.count(events, now)
                self.guard.heard_at = now
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


class Relay:
    """One request of the main job, from its admission to its end."""

    __slots__ = (
        "_arrived_at",
        "_claim",
        "_created",
        "_deadline_at",
        "_exchange",
        "_first_event_at",
        "_granted_at",
        "_guard",
        "_loop",
        "_passage",
        "_priority",
        "_progress",
        "_request",
        "_retry_seconds",
        "_settlement",
        "_silence",
        "_silence_timer",
        "_splice",
        "_status",
        "_stream",
        "_surface",
        "_task",
        "_trace_id",
        "_unsent",
        "connection",
        "mode",
        "services",
        "state",
    )

    def __init__(
        self,
        services: RelayServices,
        connection: Connection,
        request: ChatRequest,
        *,
        priority: Priority = Priority.FOREGROUND,
        progress: bool = False,
        surface: Surface = Surface.PROXY,
        trace_id: str | None = None,
    ) -> None:
        self.services = services
        self.connection = connection
        self.mode = request.mode
        self.state = State.QUEUED
        self._request: ChatRequest | None = request
        self._priority = priority
        self._surface = surface
        self._trace_id = trace_id
        self._loop = connection.loop
        self._arrived_at = self._loop.time()
        self._created = int(services.clock())
        completion = None if request.stream else Completion()
        self._stream = Stream(
            connection.request_id,
            self._created,
            request.mode,
            completion,
            counts_unknown=services.metrics.streams[request.mode].samples_unknown(),
        )
        self._splice = Splice(self, connection, self._stream)
        self._progress = Progress(self._loop, self._send_progress, self._place) if progress and request.stream else None
        self._claim: Pass | None = None
        self._exchange: Exchange | None = None
        self._task: asyncio.Task[None] | None = None
        self._guard = services.guards[request.mode]
        self._passage: Passage | None = None
        self._silence: SilenceClock | None = None
        """Set when the request is written."""
        self._silence_timer: asyncio.TimerHandle | None = None
        self._settlement: Settlement | None = None
        self._granted_at: float | None = None
        self._deadline_at = 0.0
        self._first_event_at: float | None = None
        self._status: int | None = None
        self._retry_seconds: int | None = None
        self._unsent = b""
        """Events that go out in one write with what ends the answer."""

    # From the request to the connected router

    def start(self) -> None:
        """Begin. Everything that follows ends in `conclude`."""
        self.services.running.add(self)
        self.services.metrics.in_progress[self.mode, Phase.QUEUED] += 1
        connection = self.connection
        connection.departed = self.on_disconnect
        connection.writing_paused = self.pause
        connection.writing_resumed = self.resume
        try:
            self._passage = self._guard.enter(self._loop.time())
            if self._passage is None:
                raise self._wedged()
            if self.mode is Mode.DAILY:
                moved = self._on_moved if self._progress is not None else None
                claim = self.services.gate.request(self._priority, moved)
                claim.lost = self._on_slot_lost
                self._claim = claim
            if self._progress is not None:
                self._begin(b"")
            if self._claim is None or self._claim.granted_at_once:
                if self._reach_router():
                    return
            else:
                self._on_moved()
            self._task = self._loop.create_task(self._run())
            self._task.add_done_callback(self._on_task_done)
        except Exception as error:  # noqa: BLE001  # what was taken until here must be given back
            self._on_failure(error)

    def _reach_router(self) -> bool:
        """The slot is there: connect, and send the request if that is done at once, as on one machine."""
        self._on_granted()
        upstream = self.services.upstream
        exchange = self._exchange = upstream.kept() or upstream.dial()
        if exchange is None or exchange.dialling is not None:
            return False
        self._send(exchange)
        return True

    async def _run(self) -> None:
        """Wait for the slot, then for the connection, whichever is not to be had at once; callbacks do the rest."""
        try:
            if self._granted_at is None and self._claim is not None:
                await self._claim.granted()
                if self._reach_router():
                    return
            exchange = await self.services.upstream.connect(self._exchange)
            if self.state is State.CONCLUDED:  # by something that ran between the connect and here
                exchange.abort()
                return
            self._exchange = exchange
            self._send(exchange)
        except Exception as error:  # noqa: BLE001  # nothing may end a request without an answer
            self._on_failure(error)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        """Conclude for a task that was cancelled from outside, perhaps before its first step: it did not do so."""
        self._task = None
        if self.state in (State.QUEUED, State.CONNECTING):
            error = None if task.cancelled() else task.exception()
            if error is None:
                self.conclude(Cause.CALLER_LEFT)
            else:
                self.fail("relay", error)

    def _on_failure(self, error: Exception) -> None:
        """Say why the request did not get as far as the router."""
        if isinstance(error, Refusal):
            self.conclude(Cause.REFUSAL, error.reason, error)
        elif isinstance(error, EgressBlocked):
            self.services.log.alarm(Event.EGRESS_BLOCKED, verdict=error.decision.verdict)
            self.conclude(Cause.DIAL_FAILED, "egress_blocked")
        elif isinstance(error, httpx.TransportError):
            self.conclude(Cause.DIAL_FAILED, f"router_{type(error).__name__}")
        else:
            self.fail("relay", error)

    def _wedged(self) -> Refusal:
        return Refusal("upstream_wedged", retry_seconds=self._guard.retry_seconds(self._loop.time()))

    def refuse_unsent(self) -> None:
        """Turn the request away unless it is at the router: its model server hangs."""
        if self.state in (State.QUEUED, State.CONNECTING):
            self.conclude(Cause.REFUSAL, "upstream_wedged", self._wedged())

    def _on_slot_lost(self, reason: str) -> None:
        self.conclude(Cause.REFUSAL, reason)

    def _on_granted(self) -> None:
        now = self._granted_at = self._loop.time()
        self._deadline_at = now + self.services.limits.silence.deadline
        self.services.clocks.deadline.start(self)
        self._enter(State.CONNECTING)
        if self._progress is not None:
            self._progress.upstream(now)

    def _send(self, exchange: Exchange) -> None:
        request, self._request = self._request, None
        assert request is not None  # noqa: S101  # a relay sends once
        services = self.services
        message = services.upstream.request(request.body)
        if self._claim is not None and not self._claim.holds():
            return  # the process stood still since the grant, and somebody else may have the slot: `lost` was called
        now = self._splice.last_sent_at = self._loop.time()
        if self._passage is None or not self._guard.send(self._passage, now):
            self.refuse_unsent()
            return
        self._silence = SilenceClock(
            services.limits.silence,
            len(request.body),
            generates_unseen=request.generates_unseen,
            sent_at=now,
            deadline_at=self._deadline_at,
        )
        self._enter(State.ASKED)
        exchange.start(message, self._splice)
        if self._splice.paused:
            exchange.pause()
        services.clocks.silence.start(self)
        services.clocks.probe.start(self)

    # What the router sends

    def on_head(self, status: int, content_type: bytes, encoded: bool) -> None:
        """The head of the router's answer came."""
        if self._settlement is not None:
            if status != 200:
                self._settlement.finish(SettleEnd.FIRST_EVENT)
            return
        self.services.metrics.responses[self.mode, f"{status // 100}xx"].inc()
        self._status = status
        if status == 200:
            media_type = content_type.partition(b";")[0].strip().lower()
            if encoded or media_type != b"text/event-stream":
                self.conclude(Cause.ROUTER_ERROR, "upstream_protocol_error")
        elif status < 400:  # its body says nothing that counts
            self.conclude(Cause.ROUTER_ERROR, reason_of_status(status, b""))
        else:
            if self._exchange is not None:
                self._retry_seconds = router_retry_seconds(self._exchange.retry_after)
            self._splice.body = _ErrorBody()
            self._enter(State.REFUSED)
            self.services.clocks.refusal.start(self)

    def on_stage(self, events: bytes, now: float) -> None:
        """The body came to another stage, or is at its end; `events` are for the caller."""
        body, splice = self._splice.body, self._splice
        if self._settlement is not None:
            self._on_settled(now)
            return
        splice.stage = stage = body.stage
        if isinstance(body, _ErrorBody):
            self.conclude(Cause.ROUTER_CLOSED)
            return
        is_first = self.state is State.ASKED and body.sanitizer.begun
        has_heard = body.heard != splice.heard
        splice.heard = body.heard
        has_changed = body.comment is not splice.comment and self._hear_comment(body.comment, now)
        if is_first:
            self._on_first_event(now)
        elif has_heard and (body.sanitizer.begun or body.failure is not None):
            self.on_sign_of_life(now)
        if events:
            self._pass_on(events, now, is_first, stage is Stage.OVER)
        if is_first and self._silence_timer is not None:
            self.check_silence()  # the timer was set for a router that had not begun, and is too late for one that has
        if self._progress is not None:
            self._progress.stage(stage, now)
        if stage >= Stage.FINISHED and (has_heard or has_changed):
            self._on_finish_reason(body, is_over=stage is Stage.OVER)
        if stage is Stage.OVER:
            if body.failure is not None:
                self.conclude(Cause.ROUTER_ERROR, body.failure)
            else:
                self.conclude(Cause.ROUTER_DONE)

    def _on_first_event(self, now: float) -> None:
        self._first_event_at = now
        metrics = self.services.metrics
        if self._silence is not None:
            metrics.allowance_used[self.mode].observe(self._silence.used_ratio(now))
        self.on_sign_of_life(now)
        metrics.first_token[self.mode].observe(now - self.connection.began_at)
        if self._exchange is not None and self._exchange.first_byte_at is not None and self._granted_at is not None:
            metrics.first_byte[self.mode].observe(self._exchange.first_byte_at - self._granted_at)
        self._enter(State.STREAMING)

    def on_sign_of_life(self, now: float) -> None:
        """A data event came: the model server does not hang."""
        if self._silence is not None:
            self._silence.event(now)
        if self._guard.hear(now):
            self.services.on_upstream_state(self.mode)

    def on_quiet_read(self, now: float) -> None:
        """A read brought nothing for the caller: comments, events that say nothing, or a part of an event."""
        splice = self._splice
        body = splice.body
        if isinstance(body, _ErrorBody) or self._silence is None:
            return
        if body.comment is not splice.comment:
            self._hear_comment(body.comment, now)
        if body.heard != splice.heard:
            splice.heard = body.heard
            if body.sanitizer.begun:
                self.on_sign_of_life(now)

    def _hear_comment(self, comment: bytes, now: float) -> bool:
        """Note a comment and return whether it is a sign of life: a constant ping goes on before a dead model."""
        self._splice.comment = comment
        return self._silence is not None and self._silence.comment(comment, now)

    def _on_finish_reason(self, stream: Stream, is_over: bool) -> None:
        """Take the answer for whole when the router is silent; but not where text came after a finish reason."""
        tail = self.services.clocks.tail
        tail.stop(self)
        if stream.sanitizer.is_trusted:
            self._enter(State.FINISHED)
            if not is_over:
                tail.start(self)
        elif self.state is State.FINISHED:
            self._enter(State.STREAMING)
            self.check_silence()

    def on_end(self, error: httpx.TransportError | None) -> None:
        """The connection to the router is over."""
        if self._settlement is not None:
            self._settlement.finish(SettleEnd.FIRST_EVENT)
            return
        if error is not None:
            self.conclude(Cause.ROUTER_BROKE, f"router_{type(error).__name__}")
        elif self._stream.sanitizer.finish_reason is not None and not (self._exchange and self._exchange.is_cut):
            self.conclude(Cause.ROUTER_DONE)
        else:
            self.conclude(Cause.ROUTER_CLOSED)

    # What the caller gets

    def _pass_on(self, events: bytes, now: float, is_first: bool, is_last: bool) -> None:
        """Send events to the caller; the last ones together with what ends the answer."""
        splice = self._splice
        if not is_first:
            splice.counters.intervals.observe(now - splice.last_sent_at)
        splice.count(events, now)
        if is_last:
            self._unsent = events
        elif splice.is_open:
            self.connection.write_chunk(events)
        else:
            self._begin(events)

    def _begin(self, first: bytes) -> None:
        """Send the head of a stream, and its first event in the same write."""
        splice = self._splice
        splice.is_open = True
        splice.last_sent_at = self._loop.time()
        self.connection.begin_stream(b"" if self._progress is not None else self._server_timing(), first)

    def _on_moved(self) -> None:
        """The place in the queue may have changed."""
        if self._progress is not None and self.state is State.QUEUED:
            self._progress.queued()

    def _place(self) -> tuple[int, float | None]:
        return (0, None) if self._claim is None else self._claim.place()

    def _send_progress(self, news: News) -> None:
        if self._splice.is_open and not self._splice.paused:
            self._splice.last_sent_at = self._loop.time()
            self.connection.write_chunk(self._stream.progress_chunk(news))

    def _server_timing(self) -> bytes:
        granted_at = self._granted_at or self._arrived_at
        first = self._first_event_at or granted_at
        return b"gate;dur=%.1f, upstream;dur=%.1f" % ((granted_at - self._arrived_at) * 1e3, (first - granted_at) * 1e3)

    def pause(self) -> None:
        """The caller reads too slowly: stop reading from the router until it has caught up."""
        self._splice.paused = True
        if self._silence is not None:
            self._silence.pause()
        if self._exchange is not None:
            self._exchange.pause()

    def resume(self) -> None:
        """The caller has caught up."""
        self._splice.paused = False
        if self._silence is not None:
            self._silence.resume(self._loop.time())
        if self._exchange is not None:
            self._exchange.resume()
            self.check_silence()

    # Clocks

    def on_wall_clock(self) -> None:
        """The wall clock ran out."""
        self.conclude(Cause.WALL_CLOCK)

    def on_tail_silence(self) -> None:
        """Five seconds passed since the last word after a finish reason, or since the head of a refusal."""
        self.conclude(Cause.SILENCE)

    def probe(self) -> None:
        """Enable TCP keep-alive: the request takes its time, and its router may be gone without a word."""
        if self._exchange is not None:
            self._exchange.probe()

    def check_silence(self) -> None:
        """Enforce the read timeout, send a keep-alive comment if one is due, and schedule the next check."""
        if self._silence_timer is not None:
            self._silence_timer.cancel()
            self._silence_timer = None
        exchange, splice, silence = self._exchange, self._splice, self._silence
        if exchange is None or silence is None or self.state not in (State.ASKED, State.STREAMING):
            return
        now = self._loop.time()
        if splice.heard_at:
            silence.event(splice.heard_at)
        due = silence.due_at
        if now >= due:
            more = exchange.second_look(now - due, self.services.limits.silence.read_timeout)
            if more:
                self._silence_timer = self._loop.call_later(more, self.check_silence)
                return
            reason = silence.reason(now)
            if reason == "upstream_silent":  # over 1: what was allowed was not enough
                self.services.metrics.allowance_used[self.mode].observe(silence.used_ratio(now) + 1e-9)
            self.conclude(Cause.SILENCE, reason)
            return
        keepalive = self.services.limits.keepalive_seconds
        if splice.is_open:
            if now >= splice.last_sent_at + keepalive:
                if not splice.paused:
                    self.connection.write_chunk(_KEEPALIVE)
                splice.last_sent_at = now
            due = min(due, splice.last_sent_at + keepalive)
        due = min(due, self._deadline_at)  # where nothing is due, the timer says that this has run
        if due > now:
            self._silence_timer = self._loop.call_at(due, self.check_silence)

    # The end

    def on_disconnect(self) -> None:
        """The caller left."""
        self.conclude(Cause.CALLER_LEFT)

    def drain_unsent(self) -> None:
        """The process stops: turn the request away unless it is at the router."""
        if self.state in (State.QUEUED, State.CONNECTING):
            self.conclude(Cause.DRAIN)

    def drain(self) -> None:
        """The process stops and waits no longer."""
        self.conclude(Cause.DRAIN)

    def fail(self, where: str, error: BaseException) -> None:
        """End because of a fault of our own."""
        self.services.log.fault(where, error)
        self.conclude(Cause.FAULT)

    def conclude(self, cause: Cause, given: str | None = None, refusal: Refusal | None = None) -> None:
        """Give back the slot, the connection and the timers, and end the answer."""
        if self.state is State.CONCLUDED:
            return
        state, self.state = self.state, State.CONCLUDED
        is_silent = is_kept = False
        try:
            refusal = self._verdict(state, cause, given, refusal)
            if refusal is not None:
                is_silent = self._is_silent_end(refusal)
                is_kept = self._settles(state, refusal, is_silent)
        except Exception as error:  # noqa: BLE001  # nothing may keep the slot
            self.services.log.fault("verdict", error)
            refusal = refusal or Refusal("internal_error")
        log = self.services.log
        if not is_kept:
            _call(log, self._close_upstream, refusal)
            _call(log, self._leave_guard, is_silent)
            _call(log, self._leave_gate)
        _call(log, self._cancel_timers)
        _call(log, self._detach)
        self.services.metrics.in_progress[self.mode, _PHASES[state]] -= 1
        status = 200
        try:
            status = self._end_answer(refusal)
        except Exception as error:  # noqa: BLE001  # the answer is lost, the slot must not be
            self.services.log.fault("answer", error)
            self.connection.abort()
        self._record(refusal, status)
        if self._settlement is None:
            self._let_go()

    def _verdict(self, state: State, cause: Cause, given: str | None, refusal: Refusal | None) -> Refusal | None:
        """What the caller is told: None for a whole answer."""
        if cause is Cause.ROUTER_DONE and self._stream.sanitizer.finish_reason is not None:
            return None
        word = ENDS[state].get(cause, _GIVEN)
        if word == WHOLE:
            return None
        if word == _STATUS:
            return self._router_refusal()
        reason = given if word == _GIVEN else word
        return refusal or Refusal(reason or "internal_error")

    def _router_refusal(self) -> Refusal:
        status = self._status or 0
        body = self._splice.body
        data = bytes(body.data) if isinstance(body, _ErrorBody) else b""
        reason = reason_of_status(status, data) or "upstream_protocol_error"
        is_final = status in FINAL_STATUSES and reason != "context_too_long"
        return Refusal(reason, retry_seconds=self._retry_seconds, is_final=is_final)

    def _close_upstream(self, refusal: Refusal | None) -> None:
        """End the exchange with the router; reset its connection when the answer is not whole (contract, P6)."""
        if self._exchange is None:
            return
        if refusal is None:
            self.services.upstream.finish(self._exchange)
        else:
            self._exchange.abort(reset=True)

    def _is_silent_end(self, refusal: Refusal) -> bool:
        if self._silence is None or isinstance(refusal.reason, Said):
            return False
        if self._status not in (None, 200):  # who refuses does not hang
            return False
        return self._silence.is_silent_end(refusal.reason, self._loop.time())

    def _leave_guard(self, is_silent: bool) -> None:
        """Tell the guard before the slot goes on, so that nobody is granted one only to be refused."""
        if self._passage is not None and self._guard.leave(self._passage, self._loop.time(), silent=is_silent):
            self.services.on_upstream_state(self.mode)

    def _settles(self, state: State, refusal: Refusal, is_silent: bool) -> bool:
        """Whether slot and router are kept, since the caller left while the model server reads the prompt."""
        if state is not State.ASKED or not _is_departure(refusal.reason) or self._exchange is None:
            return False

        log = self.services.log

        def close() -> None:
            has_begun = self._silence is not None and self._silence.first_event_at is not None
            _call(log, self._close_upstream, refusal)
            _call(log, self._leave_guard, is_silent and not has_begun)
            self._let_go()

        left = self._deadline_at - self._loop.time()
        try:
            self._settlement = self.services.settlements.keep(self._claim, close, left)
            if self._settlement is not None and self._passage is not None and self._guard.is_trial(self._passage):
                self._leave_guard(is_silent)  # the next request is the trial, whatever is kept of this one
        except Exception as error:  # noqa: BLE001  # what is not kept is given back
            self.services.log.fault("settle", error)
        return self._settlement is not None

    def _on_settled(self, now: float) -> None:
        """The first event came for a caller that left: the prefill is over, and the next token can be stopped."""
        self.on_sign_of_life(now)
        if self._settlement is not None:
            self._settlement.finish(SettleEnd.FIRST_EVENT)

    def _let_go(self) -> None:
        """Break the circle of references, so that all is freed here and not when the collector runs."""
        self._exchange = self._settlement = None
        if hasattr(self._splice, "relay"):
            del self._splice.relay

    def _leave_gate(self) -> None:
        if self._claim is not None:
            self.services.gate.leave(self._claim)
            self._claim.lost = None

    def _cancel_timers(self) -> None:
        clocks = self.services.clocks
        for clock in (clocks.deadline, clocks.probe, clocks.silence, clocks.tail, clocks.refusal):
            clock.stop(self)
        if self._silence_timer is not None:
            self._silence_timer.cancel()
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()

    def _detach(self) -> None:
        connection = self.connection
        connection.departed = connection.writing_paused = connection.writing_resumed = None
        self.services.running.discard(self)

    def _end_answer(self, refusal: Refusal | None) -> int:
        """Write what ends the answer and return its status."""
        connection, stream, splice = self.connection, self._stream, self._splice
        if refusal is not None and _is_departure(refusal.reason):
            connection.abort()
            return 499
        left = self._deadline_at - self._loop.time() if self._granted_at is not None else None
        flush = max(left, _FLUSH_SECONDS) if left is not None else None
        if refusal is not None and not (splice.is_open or self._unsent):
            connection.refuse(refusal, flush)
            return refusal.status
        rest = stream.close() if stream.sanitizer.begun else b""
        if stream.completion is None:
            if refusal is None:
                rest += stream.finish()
            splice.count(rest, splice.last_sent_at)
        if refusal is not None:
            self._end_stream(rest + refusal.event(connection.request_id), flush)
        elif stream.completion is None:
            self._end_stream(rest + DONE, flush)
        else:
            reason = stream.sanitizer.finish_reason or "stop"
            body = stream.completion.encode(connection.request_id, self._created, self.mode, reason)
            splice.sent_bytes += len(body)
            headers = [(b"Content-Type", b"application/json"), (b"Server-Timing", self._server_timing())]
            connection.respond(200, headers, body, flush)
        return 200

    def _end_stream(self, end: bytes, flush: float | None) -> None:
        """Send the end of a stream, and in the same write what came in the read that ended it, if only its head too."""
        if self._splice.is_open:
            self.connection.end_stream(self._unsent + end, flush)
        else:
            self.connection.send_stream(self._server_timing(), self._unsent + end, flush)

    def _enter(self, state: State) -> None:
        before, after = _PHASES[self.state], _PHASES[state]
        if before is not after:
            in_progress = self.services.metrics.in_progress
            in_progress[self.mode, before] -= 1
            in_progress[self.mode, after] += 1
        self.state = state

    def _record(self, refusal: Refusal | None, status: int) -> None:
        """Count the request and write its one line."""
        metrics, mode, now = self.services.metrics, self.mode, self._loop.time()
        sanitizer = self._stream.sanitizer
        reason = None if refusal is None else refusal.reason
        for kind, count in sanitizer.dropped.items():
            metrics.dropped[kind].inc(count)
        for field, count in self._stream.stripped().items():
            if count:
                metrics.stripped[field].inc(count)
        for token, count in sanitizer.tokens.items():
            metrics.tokens[mode, token].inc(count)
        label = "none" if reason is None else metric_reason(reason)
        total = now - self.connection.began_at
        metrics.count_request(self._surface, mode, label, total)
        if self._granted_at is not None:
            metrics.deadline_margin[mode].observe(max(self._deadline_at - now, 0))
            if self._status is None and reason != "egress_blocked":
                metrics.responses[mode, "none"].inc()
        own = "" if reason is None or isinstance(reason, Said) else reason  # a router's word may look like one of ours
        if (clock := DEADLINES.get(own)) is not None:
            metrics.deadline_exceeded[mode, clock].inc()
        if self._status == 200:
            if reason is None:
                end = StreamEnd.DONE if sanitizer.said_done else StreamEnd.NO_DONE
            else:
                end = STREAM_ENDS.get(own, StreamEnd.UPSTREAM_ERROR)
            metrics.stream_ends[mode, end].inc()
        outcome = Outcome.OK if reason is None else Outcome.CLIENT_GONE if own == CLIENT_GONE else Outcome.ERROR
        waited = (self._granted_at or now) - self._arrived_at
        first = self._first_event_at
        self.services.log.request(
            RequestLine(
                reason=label if label == "other" else reason or "none",
                request_id=self.connection.request_id,
                surface=self._surface,
                mode=mode,
                priority=self._priority,
                outcome=outcome,
                status=status,
                gate_wait_ms=round(waited * 1e3, 1),
                ttft_ms=None if first is None else round((first - self.connection.began_at) * 1e3, 1),
                total_ms=round(total * 1e3, 1),
                chunks=self._stream.chunks,
                bytes=self._splice.sent_bytes,
                trace_id=self._trace_id,
            ),
            must_be_mended=refusal is not None and refusal.is_final,
        )


_PHASES = {
    State.QUEUED: Phase.QUEUED,
    State.CONNECTING: Phase.UPSTREAM,
    State.ASKED: Phase.UPSTREAM,
    State.REFUSED: Phase.UPSTREAM,
    State.STREAMING: Phase.STREAMING,
    State.FINISHED: Phase.STREAMING,
}
"""The metrics' view of a state."""


def _call(log: Log, step: Callable[..., None], *given: object) -> None:
    """Give one thing back; whatever fails, the rest must be given back too."""
    try:
        step(*given)
    except Exception as error:  # noqa: BLE001
        log.fault("conclude", error)


def _is_departure(reason: str) -> bool:
    return reason == CLIENT_GONE and not isinstance(reason, Said)
