"""One request at the router, from its first byte written: the head, the events and the silences of the answer.

Until then the request waits in `Relay`, which also owns its end: here each thing that ends a request is reported as a
`Cause`. Everything runs in the callbacks of the upstream connection and of the timers.
"""

from typing import NamedTuple, Protocol

import httpx

from eidproxy.errors import Refusal, RouterReason, reason_of_status, refusal_by_status
from eidproxy.monitoring.metrics import Metrics
from eidproxy.relay.answer import Answer
from eidproxy.relay.progress import Progress
from eidproxy.relay.settle import Settlement
from eidproxy.relay.silence import SilenceClock, SilenceLimits
from eidproxy.relay.splice import ErrorBody, ShortcutAttempts
from eidproxy.relay.states import Cause, State
from eidproxy.relay.stream import Stage, Stream
from eidproxy.relay.watch import SilenceTimers, SilenceWatch
from eidproxy.router.exchange import Exchange
from eidproxy.router.reasons import reason_of_fault
from eidproxy.router.response import ResponseHead
from eidproxy.timeouts import TimeoutQueue
from eidproxy.vocabulary import Mode, SettleEnd

_TAIL_SECONDS = 5.0
"""How long a router may be silent after a finish reason before the answer counts as whole (contract, 4)."""

_ERROR_BODY_SECONDS = 5.0
"""Limit for reading the body of a router's error response: the status alone is enough for a reason."""

_TCP_KEEPALIVE_AFTER_SECONDS = 3.0
"""Delay before TCP keep-alive is enabled on the router's socket; the kernel then needs up to 25 s to find a dead peer.

Shorter requests never pay for it.
"""


class RelayLimits(NamedTuple):
    """The limits of one request that are settings."""

    silence: SilenceLimits
    keepalive_seconds: float


class UpstreamTimers:
    """The timers of all requests at the router: one timer of the loop for each kind."""

    def __init__(self, limits: RelayLimits) -> None:
        """To be built inside a running loop."""
        self.silence = SilenceTimers(limits.silence, limits.keepalive_seconds)
        self.tcp_keepalive = TimeoutQueue(_TCP_KEEPALIVE_AFTER_SECONDS, UpstreamRequest.enable_tcp_keepalive)
        self.tail = TimeoutQueue(_TAIL_SECONDS, UpstreamRequest.on_tail_silence, patient=True)
        self.error_body = TimeoutQueue(_ERROR_BODY_SECONDS, UpstreamRequest.on_error_body_limit, patient=True)


class Owner(Protocol):
    """The relay, as its request at the router calls it."""

    mode: Mode
    state: State

    @property
    def metrics(self) -> Metrics:
        """The metrics of the process."""

    def enter(self, state: State) -> None:
        """Note the state."""

    def conclude(self, cause: Cause, given: str | None = None) -> None:
        """End the request. After that nothing here is called but for a settlement."""

    def on_guard_change(self) -> None:
        """Tell that the wedge guard changed its state."""

    def fail(self, where: str, error: BaseException) -> None:
        """End the request because of a fault of our own."""


class UpstreamRequest:
    """One request at the router, from its first byte written to its end. The splice and the watch call it."""

    __slots__ = (
        "_answer",
        "_exchange",
        "_owner",
        "_progress",
        "_timers",
        "_watch",
        "head",
        "settlement",
    )

    def __init__(
        self,
        owner: Owner,
        timers: UpstreamTimers,
        exchange: Exchange,
        answer: Answer,
        progress: Progress | None,
        silence_clock: SilenceClock,
    ) -> None:
        self._owner = owner
        self._timers = timers
        self._exchange = exchange
        self._answer = answer
        self._progress = progress
        self._watch = SilenceWatch(self, timers.silence, silence_clock, answer, exchange)
        self.head: ResponseHead | None = None
        """The head of the router's response."""
        self.settlement: Settlement | None = None
        """Set when the caller left and its slot or the connection is kept."""

    @property
    def has_begun(self) -> bool:
        """Whether the first event came."""
        return self._watch.clock.first_event_at is not None

    def send(self, message: bytes, *, may_shortcut: bool) -> None:
        """Write the request, and listen to the answer."""
        exchange, splice = self._exchange, self._answer.splice
        splice.listener = self
        exchange.start(message, splice)
        if self._owner.state is State.CONCLUDED:  # the router had hung up before the request was written
            return
        if splice.paused:
            exchange.pause()
        self._watch.start()
        self._timers.tcp_keepalive.start(self)
        if may_shortcut:
            splice.attempts = ShortcutAttempts(exchange, sends_progress=self._progress is not None)

    # What the router sends

    def on_head(self, head: ResponseHead) -> None:
        """Take the head of the router's response: conclude on a wrong one, read the body of an error."""
        status = head.status
        if self.settlement is not None:
            if status != 200:
                self.settlement.finish(SettleEnd.FIRST_EVENT)
            return
        self._owner.metrics.responses[self._owner.mode, f"{status // 100}xx"].inc()
        self.head = head
        if status == 200:
            if not head.is_event_stream:
                self._owner.conclude(Cause.ROUTER_ERROR, "upstream_protocol_error")
        elif status < 400:  # the body of such a status holds no error to read
            self._owner.conclude(Cause.ROUTER_ERROR, reason_of_status(status, b""))
        else:
            self._answer.splice.body = ErrorBody()
            self._owner.enter(State.REFUSED)
            self._timers.error_body.start(self)

    def on_stage(self, events: bytes, now: float) -> None:
        """Act on a new stage, on the end of the body, and on each read after a finish reason; send `events`."""
        owner, splice = self._owner, self._answer.splice
        body = splice.body
        if self.settlement is not None:
            # The prefill is over, so a close stops the server at its next token.
            self.on_sign_of_life(now)
            self.settlement.finish(SettleEnd.FIRST_EVENT)
            return
        splice.stage = stage = body.stage
        if isinstance(body, ErrorBody):  # it is as long as it may be: as if the router had ended it here
            owner.conclude(Cause.ROUTER_CLOSED)
            return
        is_first = owner.state is State.ASKED and body.sanitizer.has_begun
        has_new_events = body.parsed_events != splice.noted_events
        splice.noted_events = body.parsed_events
        has_new_comment = body.comment is not splice.noted_comment and self._note_comment(body.comment, now)
        if is_first:
            self._on_first_event(now)
        elif has_new_events and (body.sanitizer.has_begun or body.failure is not None):
            self.on_sign_of_life(now)
        if events:
            self._answer.send_events(events, now, is_first=is_first, is_last=stage is Stage.OVER)
        if is_first:
            self._watch.on_first_event()  # after the event is sent: its next check counts from there
        if self._progress is not None:
            self._progress.report_stage(stage, now)
        if stage >= Stage.FINISHED and (has_new_events or has_new_comment):
            self._on_finish_reason(body, is_over=stage is Stage.OVER)
        if stage is Stage.OVER:
            if body.failure is not None:
                owner.conclude(Cause.ROUTER_ERROR, body.failure)
            else:
                owner.conclude(Cause.ROUTER_DONE)

    def _on_first_event(self, now: float) -> None:
        times, metrics, mode = self._answer.times, self._owner.metrics, self._owner.mode
        times.first_event_at = now
        metrics.allowance_used[mode].observe(self._watch.clock.used_ratio(now))
        self.on_sign_of_life(now)
        metrics.first_token[mode].observe(now - self._answer.connection.began_at)
        if self._exchange.first_byte_at is not None and times.granted_at is not None:
            metrics.first_byte[mode].observe(self._exchange.first_byte_at - times.granted_at)
        self._owner.enter(State.STREAMING)

    def on_sign_of_life(self, now: float) -> None:
        """Note a data event: proof that the model server does not hang."""
        self._watch.clock.note_event(now)
        if self._answer.splice.guard.note_event(now):
            self._owner.on_guard_change()

    def on_quiet_read(self, now: float) -> None:
        """Look for signs of life in a read with nothing for the caller: comments, empty events, part of an event."""
        splice = self._answer.splice
        body = splice.body
        if isinstance(body, ErrorBody):
            return
        if body.comment is not splice.noted_comment:
            self._note_comment(body.comment, now)
        if body.parsed_events != splice.noted_events:
            splice.noted_events = body.parsed_events
            if body.sanitizer.has_begun:
                self.on_sign_of_life(now)

    def _note_comment(self, comment: bytes, now: float) -> bool:
        """Note a comment and return whether it is a sign of life.

        A constant ping is none: routers send it while the model server hangs.
        """
        self._answer.splice.noted_comment = comment
        return self._watch.clock.note_comment(comment, now)

    def _on_finish_reason(self, stream: Stream, is_over: bool) -> None:
        """Start the 5 s after which a silent router's answer counts as whole (contract, 4).

        Where text came after a finish reason, go back to streaming instead.
        """
        self._timers.tail.stop(self)
        if stream.sanitizer.is_finished:
            self._owner.enter(State.FINISHED)
            if not is_over:
                self._timers.tail.start(self)
        elif self._owner.state is State.FINISHED:
            self._owner.enter(State.STREAMING)
            self._watch.check()

    def on_end(self, error: httpx.TransportError | None) -> None:
        """Conclude by how the router's response ended: `error`, or None when it was whole or closed."""
        if self.settlement is not None:
            self.settlement.finish(SettleEnd.FIRST_EVENT)
        elif error is not None:
            self._owner.conclude(Cause.ROUTER_BROKE, reason_of_fault(error))
        elif self._answer.stream.sanitizer.finish_reason is not None and not self._exchange.is_cut:
            self._owner.conclude(Cause.ROUTER_DONE)
        else:
            self._owner.conclude(Cause.ROUTER_CLOSED)

    def fail(self, where: str, error: BaseException) -> None:
        """End the request because of a fault of our own."""
        self._owner.fail(where, error)

    # Pauses and timers

    def pause(self) -> None:
        """Read no more from the router: the caller reads too slowly."""
        self._watch.clock.pause()
        self._exchange.pause()

    def resume(self) -> None:
        """Read from the router again: the caller has caught up."""
        self._watch.clock.resume(self._answer.connection.loop.time())
        self._exchange.resume()
        self._watch.check()

    @property
    def awaits_router(self) -> bool:
        """Whether silence of the router counts now: no finish reason came, and no error status."""
        return self._owner.state in (State.ASKED, State.STREAMING)

    def on_silence(self, reason: str | None) -> None:
        """Conclude: the router was silent for too long."""
        if reason == "upstream_silent":  # 1e-9 puts it over 1: the allowance was exceeded
            used_ratio = self._watch.clock.used_ratio(self._answer.connection.loop.time())
            self._owner.metrics.allowance_used[self._owner.mode].observe(used_ratio + 1e-9)
        self._owner.conclude(Cause.SILENCE, reason)

    def on_tail_silence(self) -> None:
        """Conclude: 5 s of silence passed after a finish reason."""
        self._owner.conclude(Cause.SILENCE)

    def on_error_body_limit(self) -> None:
        """Conclude: 5 s passed since the head of an error response, and its body is not whole."""
        self._owner.conclude(Cause.SILENCE)

    def enable_tcp_keepalive(self) -> None:
        """Enable TCP keep-alive on the router's connection, to find a router that is gone without a FIN or reset."""
        self._exchange.enable_tcp_keepalive()

    def stop_timers(self) -> None:
        """Stop all timers."""
        self._watch.stop()
        self._timers.tcp_keepalive.stop(self)
        self._timers.tail.stop(self)
        self._timers.error_body.stop(self)

    # The end

    def refusal_by_status(self) -> Refusal:
        """Return the refusal that follows from the router's error status and its body."""
        head, body = self.head, self._answer.splice.body
        if head is None:
            return Refusal("upstream_protocol_error")
        return refusal_by_status(
            head.status, bytes(body.data) if isinstance(body, ErrorBody) else b"", head.retry_after
        )

    def judge_silent_end(self, refusal: Refusal) -> bool:
        """Return whether a request that ends now in this way is evidence that the model server hangs."""
        if isinstance(refusal.reason, RouterReason):
            return False
        if self.head is not None and self.head.status != 200:
            return False  # a router that answers with an error status does not hang
        return self._watch.clock.is_silent_end(refusal.reason, self._answer.connection.loop.time())
