"""One request of the main job on its way: gate, connection to the router, stream, end.

A `Relay` owns the slot, the upstream exchange and the deadline of one request, and gives all three back in one place:
`conclude`. Whatever ends a request (the answer, a fault, a clock, a caller that left, a drain) calls it; only the first
call counts. A task exists only while there is something to wait for, the slot and the connection; after that the relay
runs in the callbacks of the upstream connection, so that one event costs one callback: bytes are framed, sanitized and
written to the caller's transport where they arrive (the splice).
"""

import asyncio
from collections.abc import Callable
from typing import NamedTuple

import httpx

from eidproxy.chat import ChatRequest, upstream_body
from eidproxy.connection import Connection
from eidproxy.countdown import Countdown
from eidproxy.errors import (
    CLIENT_GONE,
    DEADLINES,
    STREAM_ENDS,
    Refusal,
    Said,
    metric_reason,
    reason_of_status,
)
from eidproxy.gate import Gate, Pass
from eidproxy.logs import Event, Log, RequestLine
from eidproxy.metrics import Metrics
from eidproxy.sanitize import Completion, Sanitizer, UpstreamFailed, chunk_head, progress_chunk, rebuild
from eidproxy.sse import EventParser, EventTooLarge, whole_event
from eidproxy.upstream import EgressBlocked, Exchange, Upstream
from eidproxy.vocabulary import Dropped, Mode, Outcome, Phase, Priority, StreamEnd, Stripped, Surface

_LINGER_SECONDS = 5.0
"""How long usage and `[DONE]` are waited for after the finish reason (contract, 4), and the body of an error."""

_MAX_ERROR_BODY_BYTES = 64 * 1024
_MAX_STREAM_BYTES = 64 * 1024 * 1024
_MAX_COMPLETION_CHARS = 4 * 1024 * 1024
"""How much of an answer is held for a caller that asked for no stream: a thousand times what `max_tokens` allows."""

_PROBE_SECONDS = 3.0
"""When the kernel is told to ask a silent router; that takes it 25 s more.

Most requests are over by then, and need no options set.
"""

_PROGRESS_SECONDS = 10.0
_FLUSH_SECONDS = 0.5
"""How long a caller has to take what ends its answer after the wall clock ran out."""

_DONE = b"data: [DONE]\n\n"
_KEEPALIVE = b": keepalive\n\n"


class RelayLimits(NamedTuple):
    """The clocks of one request, in seconds."""

    deadline: float = 300.0
    keepalive: float = 15.0
    read_timeout: float = 120.0


class RelayClocks:
    """The clocks that every request starts: one timer each for all requests."""

    def __init__(self, limits: RelayLimits) -> None:
        self.deadline = Countdown(limits.deadline, Relay.out_of_time)
        self.probe = Countdown(_PROBE_SECONDS, Relay.probe)
        self.look = Countdown(min(limits.keepalive, limits.read_timeout), Relay.look)
        self.linger = Countdown(_LINGER_SECONDS, Relay.waited_long_enough)


class RelayServices(NamedTuple):
    """What every relay of a process shares."""

    gate: Gate
    upstream: Upstream
    metrics: Metrics
    log: Log
    limits: RelayLimits
    clocks: RelayClocks
    aliases: dict[Mode, str]
    ask_usage: bool
    running: "set[Relay]"
    clock: Callable[[], float]
    """Seconds of the epoch, for `created`."""


class Relay:
    """One request of the main job, from its admission to its end."""

    __slots__ = (
        "_answer",
        "_arrived_at",
        "_chunks",
        "_claim",
        "_completion",
        "_concluded",
        "_connection",
        "_counters",
        "_created",
        "_deadline_at",
        "_error_body",
        "_exchange",
        "_first_event_at",
        "_granted_at",
        "_head",
        "_last_sent_at",
        "_lingering",
        "_loop",
        "_mode",
        "_parser",
        "_phase",
        "_place",
        "_place_timer",
        "_priority",
        "_progress",
        "_request",
        "_sanitizer",
        "_sent_bytes",
        "_services",
        "_status",
        "_stream_bytes",
        "_streaming",
        "_surface",
        "_task",
        "_tick",
        "_trace_id",
        "_unsent",
        "_usual",
        "_usual_events",
        "paused",
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
        self._services = services
        self._connection = connection
        self._request: ChatRequest | None = request
        self._mode = request.mode
        self._counters = services.metrics.streams[request.mode]
        self._priority = priority
        self._progress = progress and request.stream
        self._surface = surface
        self._trace_id = trace_id
        self._loop = connection.loop
        self._arrived_at = self._loop.time()
        self._created = int(services.clock())
        self._completion = None if request.stream else Completion()
        self._head = chunk_head(connection.request_id, self._created, request.mode)
        self._sanitizer = Sanitizer(self._head)
        self._parser = EventParser()
        self._claim: Pass | None = None
        self._exchange: Exchange | None = None
        self._task: asyncio.Task[None] | None = None
        self._tick: asyncio.TimerHandle | None = None
        self._place_timer: asyncio.TimerHandle | None = None
        self._place: int | None = None
        self._phase = Phase.QUEUED
        self._granted_at: float | None = None
        self._deadline_at = 0.0
        self._first_event_at: float | None = None
        self._lingering = False  # the finish reason came
        self._last_sent_at = 0.0
        self._status: int | None = None
        self._error_body: bytearray | None = None
        self._streaming = False  # a head with status 200 went to the caller
        self._unsent = b""  # events that go out with what ends the answer
        self._usual = False  # the stream has begun and is not at its end, where events are alike
        self._usual_events = 0
        self._stream_bytes = 0
        self._concluded = False
        self._chunks = 0  # those that were read closely
        self._sent_bytes = 0
        self.paused = False

    # From the request to the connected router

    def start(self) -> None:
        """Begin. Everything that follows ends in `conclude`."""
        self._services.running.add(self)
        self._services.metrics.in_progress[self._mode, self._phase] += 1
        self._connection.departed = self.depart
        self._connection.writing_paused = self.pause
        self._connection.writing_resumed = self.resume
        try:
            if self._mode is Mode.DAILY:
                claim = self._services.gate.request(self._priority, self._tell_place if self._progress else None)
                claim.lost = self.conclude
                self._claim = claim
            if self._progress:
                self._begin(b"")
            if self._claim is None or self._claim.granted_at_once:
                if self._reach_router():
                    return
            else:
                self._tell_place()
            self._task = self._loop.create_task(self._run())
            self._task.add_done_callback(self._ran)
        except Exception as error:  # noqa: BLE001  # what was taken until here must be given back
            self._failed(error)

    def _reach_router(self) -> bool:
        """The slot is there: connect, and send the request if that is done at once, as on one machine."""
        self._granted()
        exchange = self._exchange = self._services.upstream.dial()
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
            exchange = await self._services.upstream.connect(self._exchange)
            if self._concluded:  # by something that ran between the connect and here
                exchange.abort()
                return
            self._exchange = exchange
            self._send(exchange)
        except Exception as error:  # noqa: BLE001  # nothing may end a request without an answer
            self._failed(error)

    def _ran(self, task: asyncio.Task[None]) -> None:
        """The task is over. One that was cancelled from outside, perhaps before it began, has concluded nothing."""
        self._task = None
        if not self._concluded and self._request is not None:
            error = None if task.cancelled() else task.exception()
            if error is None:
                self.conclude(CLIENT_GONE)
            else:
                self.fail("relay", error)

    def _failed(self, error: Exception) -> None:
        """Say why the request did not get as far as the router."""
        if isinstance(error, Refusal):
            self.refuse(error)
        elif isinstance(error, EgressBlocked):
            self._services.log.alarm(Event.EGRESS_BLOCKED, verdict=error.decision.verdict)
            self.conclude("egress_blocked")
        elif isinstance(error, httpx.TransportError):
            self._services.metrics.responses[self._mode, "none"].inc()
            self.conclude(f"router_{type(error).__name__}")
        else:
            self.fail("relay", error)

    def _granted(self) -> None:
        now = self._granted_at = self._loop.time()
        self._deadline_at = now + self._services.limits.deadline
        self._services.clocks.deadline.start(self)
        self._enter(Phase.UPSTREAM)
        if self._place_timer is not None:
            self._place_timer.cancel()
        if self._progress:
            self._say({"state": "upstream"})

    def _send(self, exchange: Exchange) -> None:
        request, self._request = self._request, None
        assert request is not None  # noqa: S101  # a relay sends once
        services = self._services
        body = upstream_body(request, services.aliases[self._mode], services.ask_usage)
        message = services.upstream.request(body)
        if self._claim is not None and not self._claim.holds():
            return  # the process stood still since the grant, and somebody else may have the slot: `lost` was called
        self._last_sent_at = self._loop.time()
        exchange.start(message, self)
        if self.paused:
            exchange.pause()
        services.clocks.look.start(self)
        services.clocks.probe.start(self)

    # What the router sends: the sink of the exchange

    def upstream_head(self, status: int, content_type: bytes, encoded: bool) -> None:
        """See `upstream.Sink`."""
        self._services.metrics.responses[self._mode, f"{status // 100}xx"].inc()
        self._status = status
        if status == 200:
            media_type = content_type.partition(b";")[0].strip().lower()
            if encoded or media_type != b"text/event-stream":
                self.conclude("upstream_protocol_error")
        elif status < 401:  # its body says nothing that counts
            self.conclude(reason_of_status(status, b"") or "upstream_protocol_error")
        else:
            self._error_body = bytearray()
            self._services.clocks.linger.start(self)

    def upstream_body(self, data: bytes, now: float) -> None:
        """See `upstream.Sink`. This is what each event costs."""
        try:
            self._stream_bytes += len(data)
            if self._stream_bytes > _MAX_STREAM_BYTES:
                self.conclude("upstream_protocol_error")
                return
            # Most reads of a stream are one usual event. What is touched for it is touched for each of all streams, and
            # found in memory, not in a cache: so it is little, and no part but the connection is asked.
            if self._usual and (event := whole_event(data)) is not None:
                chunk = rebuild(self._head, event)
                if chunk is not None:
                    counters = self._counters
                    counters.intervals.observe(now - self._last_sent_at)
                    counters.chunks += 1
                    counters.bytes += len(chunk)
                    self._last_sent_at = now
                    self._usual_events += 1
                    self._sent_bytes += len(chunk)
                    self._connection.write_chunk(chunk)
                    return
            if self._error_body is not None:
                self._error_body += data
                if len(self._error_body) >= _MAX_ERROR_BODY_BYTES:
                    self._conclude_status()
                return
            try:
                events = self._parser.feed(data)
            except EventTooLarge as cut:
                self._take(cut.events, now)  # what was whole before it
                self._services.metrics.dropped[Dropped.TOO_LARGE].inc()
                self.conclude("upstream_protocol_error")
            else:
                self._take(events, now)
        except UpstreamFailed as failed:
            self.conclude(failed.reason)
        except Exception as error:  # noqa: BLE001  # a callback has nobody above it
            self.fail("relay", error)

    def upstream_end(self, error: httpx.TransportError | None) -> None:
        """See `upstream.Sink`."""
        if self._status is None:
            self._services.metrics.responses[self._mode, "none"].inc()
        if self._sanitizer.finished:
            self.conclude(None)
        elif self._error_body is not None:
            self._conclude_status()
        elif error is not None:
            self.conclude(f"router_{type(error).__name__}")
        else:
            self.conclude("upstream_truncated")

    def _take(self, events: list[bytes], now: float) -> None:
        """Sanitize what one read brought and pass it on in one write. Raises UpstreamFailed."""
        sanitizer = self._sanitizer
        if self._completion is not None:
            self._keep(events, now, self._completion)
        else:
            failure: UpstreamFailed | None = None
            try:
                frames = sanitizer.frames(events)
            except UpstreamFailed as failed:
                frames, failure = failed.frames, failed  # what came before it in the same read is passed on first
            if frames:
                self._pass_on(frames, now, sanitizer.said_done or failure is not None)
            if failure is not None:
                raise failure
        if self._concluded:
            return
        if sanitizer.said_done:
            self.conclude(None if sanitizer.finished else "upstream_truncated")
        elif sanitizer.finished and not self._lingering:
            self._lingering = True
            self._services.clocks.linger.start(self)
        self._usual = self._streaming and bool(self._chunks) and self._parser.between_events and not sanitizer.finished

    def _pass_on(self, frames: list[bytes], now: float, at_end: bool) -> None:
        """Send events to the caller; `at_end` together with what ends the answer."""
        data = frames[0] if len(frames) == 1 else b"".join(frames)
        counters = self._counters
        is_first = not self._chunks
        if not is_first:
            counters.intervals.observe(now - self._last_sent_at)
        else:
            self._first_event(now)
        counters.chunks += len(frames)
        counters.bytes += len(data)
        self._chunks += len(frames)
        self._last_sent_at = now
        if at_end:
            self._unsent = data
        elif self._streaming:
            self._sent_bytes += len(data)
            self._connection.write_chunk(data)
        else:
            self._begin(data)
        if is_first and self._tick is not None:
            self._tick.cancel()  # it was set for a router that had not begun, and is too late for a stream
            self.look()

    def _keep(self, events: list[bytes], now: float, completion: Completion) -> None:
        """Gather what one read brought, for a caller that asked for no stream. Raises UpstreamFailed."""
        for data in events:
            choice = self._sanitizer.read(data)
            if choice is not None:
                if not self._chunks:
                    self._first_event(now)
                self._chunks += 1
                completion.add(choice)
                if completion.size > _MAX_COMPLETION_CHARS:
                    self.conclude("upstream_protocol_error")
                    return
            elif self._sanitizer.said_done:
                return

    def _first_event(self, now: float) -> None:
        self._first_event_at = now
        metrics = self._services.metrics
        metrics.first_token[self._mode].observe(now - self._connection.began_at)
        if self._exchange is not None and self._exchange.first_byte_at is not None and self._granted_at is not None:
            metrics.first_byte[self._mode].observe(self._exchange.first_byte_at - self._granted_at)
        self._enter(Phase.STREAMING)

    # What the caller gets

    def _begin(self, first: bytes) -> None:
        """Send the head of a stream, and its first event in the same write."""
        self._streaming = True
        self._last_sent_at = self._loop.time()
        self._sent_bytes += len(first)
        self._connection.begin_stream(b"" if self._progress else self._server_timing(), first)

    def _say(self, eid: dict[str, str | int | None]) -> None:
        if self._streaming and not self.paused:
            self._last_sent_at = self._loop.time()
            self._connection.write_chunk(progress_chunk(self._sanitizer.head, eid))

    def _tell_place(self) -> None:
        """Tell a caller that asked for it where it stands: at each change, and every 10 s."""
        claim = self._claim
        if claim is None or self._concluded or self._phase is not Phase.QUEUED or not self._streaming:
            return
        position, wait = claim.place()
        now = self._loop.time()
        if position == 0 or (
            self._place is not None and position >= self._place and now - self._last_sent_at < _PROGRESS_SECONDS - 0.5
        ):
            return
        # A newcomer of a better class can push a place back. What a caller was told only falls.
        self._place = position if self._place is None else min(position, self._place)
        eta = None if wait is None else max(round(wait * self._place / position), 0)
        self._say({"state": "queued", "position": self._place, "eta_seconds": eta})
        if self._place_timer is not None:
            self._place_timer.cancel()
        self._place_timer = self._loop.call_later(_PROGRESS_SECONDS, self._tell_place)

    def _server_timing(self) -> bytes:
        granted_at = self._granted_at or self._arrived_at
        first = self._first_event_at or granted_at
        return b"gate;dur=%.1f, upstream;dur=%.1f" % ((granted_at - self._arrived_at) * 1e3, (first - granted_at) * 1e3)

    def pause(self) -> None:
        """The caller reads too slowly: stop reading from the router until it has caught up."""
        self.paused = True
        if self._exchange is not None:
            self._exchange.pause()

    def resume(self) -> None:
        """The caller has caught up."""
        self.paused = False
        if self._exchange is not None:
            self._exchange.resume()

    # Clocks

    def out_of_time(self) -> None:
        """The wall clock."""
        self.conclude("stream_deadline_exceeded")

    def waited_long_enough(self) -> None:
        """For what may follow a finish reason, or for the body of an error."""
        if self._error_body is not None:
            self._conclude_status()
        else:
            self.conclude(None)

    def probe(self) -> None:
        """The request takes its time: have a router found out that is gone without a word."""
        if self._exchange is not None:
            self._exchange.probe()

    def look(self) -> None:
        """See whether the router or we were silent for too long, and look again when that could be so next."""
        self._tick = None
        exchange = self._exchange
        if exchange is None or self._concluded or self._lingering or self._error_body is not None:
            return
        now = self._loop.time()
        limits = self._services.limits
        next_look = now + limits.read_timeout if self.paused else exchange.last_read_at + limits.read_timeout
        if now >= next_look:
            more = exchange.second_look(now - next_look, limits.read_timeout)
            if more:
                self._tick = self._loop.call_later(more, self.look)
            else:
                self.conclude("router_ReadTimeout")
            return
        if self._streaming:
            if now >= self._last_sent_at + limits.keepalive:
                if not self.paused:
                    self._connection.write_chunk(_KEEPALIVE)
                self._last_sent_at = now
            next_look = min(next_look, self._last_sent_at + limits.keepalive)
        self._tick = self._loop.call_at(next_look, self.look)

    # The end

    def depart(self) -> None:
        """The caller left."""
        self.conclude(CLIENT_GONE)

    def refuse(self, refusal: Refusal) -> None:
        """End with a refusal that has advice of its own."""
        self.conclude(refusal.reason, refusal)

    def fail(self, where: str, error: BaseException) -> None:
        """End because of a fault of our own."""
        self._services.log.fault(where, error)
        self.conclude("internal_error")

    def _conclude_status(self) -> None:
        assert self._status is not None  # noqa: S101  # an error body follows a status
        body = bytes(self._error_body or b"")
        self.conclude(reason_of_status(self._status, body) or "upstream_protocol_error")

    def conclude(self, reason: str | None, refusal: Refusal | None = None) -> None:
        """Give back the slot, the connection and the timers, and end the answer. None means that it is whole."""
        if self._concluded:
            return
        self._concluded = True
        if self._sanitizer.finished and reason not in (None, "internal_error", CLIENT_GONE):
            reason = refusal = None  # the answer is whole: no clock, cap or drain makes an error of it any more
        for give_back in (self._hang_up, self._leave_gate, self._stop, self._sign_off):
            try:
                give_back()
            except Exception as error:  # noqa: BLE001  # whatever fails, the rest is given back
                self._services.log.fault("conclude", error)
        status = 200
        try:
            status = self._end_answer(reason, refusal)
        except Exception as error:  # noqa: BLE001  # the answer is lost, the slot must not be
            self._services.log.fault("answer", error)
            self._connection.abort()
        self._record(reason, status)

    def _hang_up(self) -> None:
        if self._exchange is not None:
            self._exchange.abort()

    def _leave_gate(self) -> None:
        if self._claim is not None:
            self._services.gate.leave(self._claim)
            self._claim.lost = None

    def _stop(self) -> None:
        clocks = self._services.clocks
        for clock in (clocks.deadline, clocks.probe, clocks.look, clocks.linger):
            clock.stop(self)
        for timer in (self._tick, self._place_timer):
            if timer is not None:
                timer.cancel()
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()

    def _sign_off(self) -> None:
        connection = self._connection
        connection.departed = connection.writing_paused = connection.writing_resumed = None
        self._services.running.discard(self)
        self._services.metrics.in_progress[self._mode, self._phase] -= 1

    def _end_answer(self, reason: str | None, refusal: Refusal | None) -> int:
        """Write what ends the answer and return its status."""
        connection = self._connection
        if reason == CLIENT_GONE and not isinstance(reason, Said):
            connection.abort()
            return 499
        left = self._deadline_at - self._loop.time() if self._granted_at is not None else None
        flush = max(left, _FLUSH_SECONDS) if left is not None else None
        if reason is not None:
            refusal = refusal or Refusal(reason)
            if not self._streaming and not self._unsent:
                connection.refuse(refusal, flush)
                return refusal.status
            self._end_stream(refusal.event(connection.request_id), flush)
        elif self._completion is not None:
            body = self._completion.encode(
                connection.request_id, self._created, self._mode, self._sanitizer.finish_reason
            )
            self._sent_bytes += len(body)
            connection.respond(
                200, [(b"Content-Type", b"application/json"), (b"Server-Timing", self._server_timing())], body, flush
            )
        else:
            self._end_stream(_DONE, flush)
        return 200

    def _end_stream(self, end: bytes, flush: float | None) -> None:
        """Send the end of a stream, and in the same write what came in the read that ended it, if only its head too."""
        self._sent_bytes += len(self._unsent)
        if self._streaming:
            self._connection.end_stream(self._unsent + end, flush)
        else:
            self._connection.send_stream(self._server_timing(), self._unsent + end, flush)

    def _enter(self, phase: Phase) -> None:
        in_progress = self._services.metrics.in_progress
        in_progress[self._mode, self._phase] -= 1
        in_progress[self._mode, phase] += 1
        self._phase = phase

    def _record(self, reason: str | None, status: int) -> None:
        """Count the request and write its one line."""
        metrics, mode, now = self._services.metrics, self._mode, self._loop.time()
        sanitizer = self._sanitizer
        sanitizer.stripped[Stripped.MODEL] += self._usual_events  # each names a model
        for kind, count in sanitizer.dropped.items():
            metrics.dropped[kind].inc(count)
        for field, count in sanitizer.stripped.items():
            if count:
                metrics.stripped[field].inc(count)
        for token, count in sanitizer.tokens.items():
            metrics.tokens[mode, token].inc(count)
        label = "none" if reason is None else metric_reason(reason)
        total = now - self._connection.began_at
        metrics.count_request(self._surface, mode, label, total)
        if self._granted_at is not None:
            metrics.deadline_margin[mode].observe(max(self._deadline_at - now, 0))
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
        self._services.log.request(
            RequestLine(
                reason=label if label == "other" else reason or "none",
                request_id=self._connection.request_id,
                surface=self._surface,
                mode=mode,
                priority=self._priority,
                outcome=outcome,
                status=status,
                gate_wait_ms=round(waited * 1e3, 1),
                ttft_ms=None if first is None else round((first - self._connection.began_at) * 1e3, 1),
                total_ms=round(total * 1e3, 1),
                chunks=self._chunks + self._usual_events,
                bytes=self._sent_bytes,
                trace_id=self._trace_id,
            )
        )
