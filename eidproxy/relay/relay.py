"""One request of the main job on its way: gate, connection to the router, stream, end.

A `Relay` owns the slot, the upstream exchange and the deadline of one request, and gives back all three in one place,
`conclude`. After a caller left, a `Settlement` may keep some of them, and gives them back itself (see `settle`).
Whatever ends a request (the answer, a fault, a clock, a departed caller, a drain) is a `Cause`; the table `ENDS` maps
the request's state and the cause to the result, and only the first cause counts. A task exists only while the request
waits for its slot or its connection. After that an `UpstreamRequest` runs in the callbacks of the upstream connection,
so one event costs one callback: `Splice` frames, sanitizes and writes bytes in the callback that receives them.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import httpx
from msgspec import Struct

from eidproxy.egress import EgressBlocked
from eidproxy.errors import Refusal
from eidproxy.gate import Gate, Permit
from eidproxy.inbound.chat import ChatRequest
from eidproxy.inbound.connection import Connection
from eidproxy.monitoring.logs import Event, Log
from eidproxy.monitoring.metrics import Metrics
from eidproxy.monitoring.record import RequestRecord
from eidproxy.relay.answer import Answer, Times, is_departure
from eidproxy.relay.completion import Completion
from eidproxy.relay.progress import Progress
from eidproxy.relay.settle import Settlements
from eidproxy.relay.silence import SilenceClock
from eidproxy.relay.splice import Splice
from eidproxy.relay.states import BY_STATUS, ENDS, GIVEN, PHASES, WHOLE, Cause, State
from eidproxy.relay.stream import Stream
from eidproxy.relay.tally import count_exchange
from eidproxy.relay.upstream_request import RelayLimits, UpstreamRequest, UpstreamTimers
from eidproxy.relay.wedge import Passage, WedgeGuard
from eidproxy.router.exchange import Exchange
from eidproxy.router.reasons import reason_of_fault
from eidproxy.router.upstream import Upstream
from eidproxy.timeouts import TimeoutQueue
from eidproxy.vocabulary import Mode, Phase, Priority, Surface


class RelayTimers:
    """The timers of all requests: one timer of the loop for each kind."""

    def __init__(self, limits: RelayLimits) -> None:
        self.deadline = TimeoutQueue(limits.silence.deadline_seconds, Relay.on_wall_clock)
        self.upstream = UpstreamTimers(limits)


class RelayServices(NamedTuple):
    """What every relay of a process shares."""

    gate: Gate
    upstream: Upstream
    metrics: Metrics
    log: Log
    limits: RelayLimits
    timers: RelayTimers
    guards: dict[Mode, WedgeGuard]
    settlements: Settlements
    on_upstream_state: Callable[[Mode], None]
    """Called when the guard of a mode changes its state."""
    running: "set[Relay]"
    epoch_seconds: Callable[[], float]
    """Returns the seconds since the epoch, for `created`."""


class Job(Struct, frozen=True, gc=False):
    """The properties of a request besides its body."""

    priority: Priority = Priority.FOREGROUND
    surface: Surface = Surface.PROXY
    trace_id: str | None = None
    sends_progress: bool = False
    """Whether the caller gets progress chunks if it asked for a stream (contract, 4)."""


class Relay:
    """One request of the main job, from its admission to its end."""

    __slots__ = (
        "_answer",
        "_exchange",
        "_job",
        "_passage",
        "_permit",
        "_progress",
        "_request",
        "_task",
        "_times",
        "_upstream_request",
        "connection",
        "mode",
        "services",
        "state",
    )

    def __init__(self, services: RelayServices, connection: Connection, request: ChatRequest, job: Job) -> None:
        self.services = services
        self.connection = connection
        self.mode = mode = request.mode
        self.state = State.QUEUED
        self._request: ChatRequest | None = request
        """None once it is written to the router."""
        self._job = job
        self._times = Times(connection.loop.time())
        counters = services.metrics.streams[mode]
        created = int(services.epoch_seconds())
        completion = None if request.stream else Completion(created, mode)
        stream = Stream(connection.request_id, created, mode, completion, counts_unknown=counters.samples_unknown())
        splice = Splice(connection, stream, counters, services.guards[mode])
        self._answer = Answer(connection, stream, splice, self._times)
        self._progress: Progress | None = None
        if job.sends_progress and request.stream:
            self._progress = Progress(connection.loop, self._answer.send_progress, self._queue_position)
        self._permit: Permit | None = None
        self._exchange: Exchange | None = None
        """The exchange with the router, from the first attempt to connect until it is closed or kept."""
        self._upstream_request: UpstreamRequest | None = None
        """The request at the router, once it is written."""
        self._task: asyncio.Task[None] | None = None
        self._passage: Passage | None = None

    @property
    def _guard(self) -> WedgeGuard:
        return self._answer.splice.guard

    @property
    def metrics(self) -> Metrics:
        """The metrics of the process."""
        return self.services.metrics

    @property
    def is_unsent(self) -> bool:
        """Whether the request is not yet written to the router."""
        return self.state <= State.CONNECTING

    def _now(self) -> float:
        """Return the loop's time."""
        return self.connection.loop.time()

    # From the request to the connected router

    def start(self) -> None:
        """Begin the request. Every path from here ends in `conclude`."""
        self.services.running.add(self)
        self.services.metrics.in_progress[self.mode, Phase.QUEUED] += 1
        connection = self.connection
        connection.handler = self
        try:
            self._passage = self._guard.enter(self._now())
            if self._passage is None:
                raise self._wedged_refusal()
            if self.mode is Mode.DAILY:
                on_position_change = self._on_position_change if self._progress is not None else None
                permit = self.services.gate.acquire(self._job.priority, on_position_change)
                permit.on_revoked = self._on_slot_lost
                self._permit = permit
            if self._progress is not None:
                self._answer.begin()
            if self._permit is None or self._permit.granted_at_once:
                if self._send_at_once():
                    return
            else:
                self._on_position_change()
            self._task = self.connection.loop.create_task(self._run())
            self._task.add_done_callback(self._on_task_done)
        except Exception as error:  # noqa: BLE001  # whatever was acquired above must be given back
            self._on_failure(error)

    def _send_at_once(self) -> bool:
        """Begin to connect, now that the slot is granted, and send the request if the connection is there at once.

        A router on the same machine accepts at once. Return whether nothing is left to wait for.
        """
        self._on_granted()
        upstream = self.services.upstream
        exchange = self._exchange = upstream.take_kept() or upstream.dial()
        if exchange is None or exchange.dialling is not None:  # a look-up comes first, or it still connects
            return False
        self._send(exchange)
        return True

    async def _run(self) -> None:
        """Wait for the slot and then the connection, unless they were there at once; callbacks do the rest."""
        try:
            if self._times.granted_at is None and self._permit is not None:
                await self._permit.granted()
                if self._send_at_once():
                    return
            exchange = await self.services.upstream.connect(self._exchange)
            if self.state is State.CONCLUDED:  # by a callback that ran between the connect and here
                exchange.abort()
                return
            self._exchange = exchange
            self._send(exchange)
        except Exception as error:  # noqa: BLE001  # nothing may end a request without an answer
            self._on_failure(error)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        """Conclude a request whose task ended without that: cancelled from outside, perhaps before its first step."""
        self._task = None
        if self.is_unsent:
            error = None if task.cancelled() else task.exception()
            if error is None:
                self.conclude(Cause.CALLER_LEFT)
            else:
                self.fail("relay", error)

    def _on_failure(self, error: Exception) -> None:
        """Conclude a request that failed before it reached the router, with the reason for the exception."""
        if isinstance(error, Refusal):
            self.conclude(Cause.REFUSAL, error.reason, error)
        elif isinstance(error, EgressBlocked):
            self.services.log.alarm(Event.EGRESS_BLOCKED, verdict=error.decision.verdict)
            self.conclude(Cause.DIAL_FAILED, "egress_blocked")
        elif isinstance(error, httpx.TransportError):
            self.conclude(Cause.DIAL_FAILED, reason_of_fault(error))
        else:
            self.fail("relay", error)

    def _wedged_refusal(self) -> Refusal:
        return Refusal("upstream_wedged", retry_seconds=self._guard.retry_seconds(self._now()))

    def refuse_unsent(self) -> None:
        """Refuse the request because the model server hangs, unless it is already written to the router."""
        if self.is_unsent:
            self.conclude(Cause.REFUSAL, "upstream_wedged", self._wedged_refusal())

    def _on_slot_lost(self, reason: str) -> None:
        self.conclude(Cause.REFUSAL, reason)

    def _on_granted(self) -> None:
        now = self._times.granted_at = self._now()
        self._times.deadline_at = now + self.services.limits.silence.deadline_seconds
        self.services.timers.deadline.start(self)
        self.enter(State.CONNECTING)
        if self._progress is not None:
            self._progress.report_upstream(now)

    def _send(self, exchange: Exchange) -> None:
        request, self._request = self._request, None
        assert request is not None  # noqa: S101  # a relay sends once
        services = self.services
        message = services.upstream.request_bytes(request.body)
        if self._permit is not None and not self._permit.is_held():
            # After a standstill another request may hold the slot. `is_held` has then called `on_revoked`, which
            # concluded this one.
            return
        now = self._answer.splice.last_sent_at = self._now()  # keep-alive comments count from here
        if self._passage is None or not self._guard.try_send(self._passage, now):
            self.refuse_unsent()
            return
        silence_clock = SilenceClock(
            services.limits.silence,
            len(request.body),
            generates_unseen=request.generates_unseen,
            sent_at=now,
            deadline_at=self._times.deadline_at,
        )
        self._upstream_request = UpstreamRequest(
            self, services.timers.upstream, exchange, self._answer, self._progress, silence_clock
        )
        self.enter(State.ASKED)
        self._upstream_request.send(message, may_shortcut=services.upstream.shortcuts is not None)

    def on_guard_change(self) -> None:
        """Tell that the wedge guard changed its state."""
        self.services.on_upstream_state(self.mode)

    # What the caller gets

    def _on_position_change(self) -> None:
        """Tell the caller its place in the queue, which may have changed."""
        if self._progress is not None and self.state is State.QUEUED:
            self._progress.report_position()

    def _queue_position(self) -> tuple[int, float | None]:
        return (0, None) if self._permit is None else self._permit.queue_position()

    def pause(self) -> None:
        """Stop reading from the router until the caller, which reads too slowly, has caught up."""
        self._answer.splice.paused = True
        if self._upstream_request is not None:
            self._upstream_request.pause()

    def resume(self) -> None:
        """Read from the router again: the caller has caught up."""
        self._answer.splice.paused = False
        if self._upstream_request is not None:
            self._upstream_request.resume()

    # The end

    def on_wall_clock(self) -> None:
        """Conclude: the wall clock ran out."""
        self.conclude(Cause.WALL_CLOCK)

    def on_disconnect(self) -> None:
        """Conclude: the caller left."""
        self.conclude(Cause.CALLER_LEFT)

    def drain_unsent(self) -> None:
        """Refuse the request because the process stops, unless it is already written to the router."""
        if self.is_unsent:
            self.conclude(Cause.DRAIN)

    def drain(self) -> None:
        """Conclude: the process stops and waits no longer."""
        self.conclude(Cause.DRAIN)

    def fail(self, where: str, error: BaseException) -> None:
        """Log a fault of our own and conclude."""
        self.services.log.fault(where, error)
        self.conclude(Cause.FAULT)

    def conclude(self, cause: Cause, given: str | None = None, refusal: Refusal | None = None) -> None:
        """Give back the connection, the slot and the timers, and end the answer. Only the first call counts.

        `given` is the reason and `refusal` the error for causes whose reason comes with them (`states.GIVEN`).
        """
        if self.state is State.CONCLUDED:
            return
        state, self.state = self.state, State.CONCLUDED
        is_silent_end = is_settling = False
        try:
            refusal = self._decide_refusal(state, cause, given, refusal)
            if refusal is not None:
                is_silent_end = self._upstream_request is not None and self._upstream_request.judge_silent_end(refusal)
                is_settling = self._try_settle(state, refusal, is_silent_end)
        except Exception as error:  # noqa: BLE001  # no fault may keep the slot
            self.services.log.fault("verdict", error)
            refusal = refusal or Refusal("internal_error")
        log = self.services.log
        if not is_settling:
            _run_step(log, self._close_upstream, refusal, is_silent_end)
            _run_step(log, self._exit_guard, is_silent_end)
            _run_step(log, self._release_slot)
        _run_step(log, self._cancel_timers)
        _run_step(log, self._detach)
        self.services.metrics.in_progress[self.mode, PHASES[state]] -= 1
        status = 200
        try:
            status = self._answer.end(refusal)
        except Exception as error:  # noqa: BLE001  # the answer is lost, the slot must not be
            self.services.log.fault("answer", error)
            self.connection.abort()
        _run_step(log, self._record, refusal, status)
        if not (is_settling and self._exchange is not None):  # else `_close_settled` does it
            self._break_cycles()

    def _decide_refusal(self, state: State, cause: Cause, given: str | None, refusal: Refusal | None) -> Refusal | None:
        """Return the error for the caller, or None for a whole answer."""
        # In any state: where text came after the finish reason, the state is STREAMING again (DESIGN, 58).
        if cause is Cause.ROUTER_DONE and self._answer.stream.sanitizer.finish_reason is not None:
            return None
        outcome = ENDS[state].get(cause, GIVEN)
        if outcome == WHOLE:
            return None
        if outcome == BY_STATUS and self._upstream_request is not None:
            return self._upstream_request.refusal_by_status()
        reason = given if outcome in (GIVEN, BY_STATUS) else outcome
        return refusal or Refusal(reason or "internal_error")

    def _close_upstream(self, refusal: Refusal | None, is_silent_end: bool) -> None:
        """End the exchange with the router; reset its connection when the answer is not whole (contract, P6)."""
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            return
        if refusal is None:
            self.services.upstream.finish(exchange)
            return
        try:
            if is_silent_end:
                exchange.report_unanswered()
        finally:
            exchange.abort(reset=True)

    def _exit_guard(self, is_silent_end: bool) -> None:
        """Leave the guard, before the slot is given on: else the next request gets a slot only to be refused."""
        upstream = self.services.upstream
        if is_silent_end and upstream.shortcuts is not None:
            # Shortcuts pass events on unseen by the guard. It must judge by all that came, and see what comes next.
            upstream.shortcuts.end()
        if self._passage is not None and self._guard.leave(self._passage, self._now(), silent=is_silent_end):
            self.on_guard_change()

    def _try_settle(self, state: State, refusal: Refusal, is_silent_end: bool) -> bool:
        """Return whether a settlement keeps slot and router: the caller left while the server reads the prompt."""
        sent = self._upstream_request
        if state is not State.ASKED or not is_departure(refusal.reason) or sent is None:
            return False

        seconds_left = self._times.deadline_at - self._now()
        close = partial(self._close_settled, sent, refusal, is_silent_end)
        try:
            sent.settlement = self.services.settlements.keep(self._permit, close, seconds_left)
            if sent.settlement is not None and self._passage is not None and self._guard.is_trial(self._passage):
                self._exit_guard(is_silent_end)  # the next request is the trial, even while this one is kept
        except Exception as error:  # noqa: BLE001  # without a settlement `conclude` gives back everything
            self.services.log.fault("settle", error)
        return sent.settlement is not None

    def _close_settled(self, sent: UpstreamRequest, refusal: Refusal, is_silent_end: bool) -> None:
        """Close the router's connection of a departed caller: at once, within `keep`, or when the settlement ends."""
        log = self.services.log
        _run_step(log, self._close_upstream, refusal, False)
        _run_step(log, self._exit_guard, is_silent_end and not sent.has_begun)
        if sent.settlement is not None:  # else this runs within `keep`, and `conclude` does the rest
            self._break_cycles()

    def _break_cycles(self) -> None:
        """Break the reference cycles, so that the objects are freed here and not by the garbage collector."""
        splice = self._answer.splice
        if hasattr(splice, "listener"):
            del splice.listener
        if self._upstream_request is not None:
            self._upstream_request.settlement = None
        self._upstream_request = None

    def _release_slot(self) -> None:
        if self._permit is not None:
            self.services.gate.release(self._permit)
            self._permit.on_revoked = None

    def _cancel_timers(self) -> None:
        self.services.timers.deadline.stop(self)
        if self._upstream_request is not None:
            self._upstream_request.stop_timers()
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()

    def _detach(self) -> None:
        self.connection.handler = None
        self.services.running.discard(self)

    def enter(self, state: State) -> None:
        """Note the state, and the phase for the metrics."""
        before, after = PHASES[self.state], PHASES[state]
        if before is not after:
            in_progress = self.services.metrics.in_progress
            in_progress[self.mode, before] -= 1
            in_progress[self.mode, after] += 1
        self.state = state

    def _record(self, refusal: Refusal | None, status: int) -> None:
        """Count the request and write its one log line."""
        times, now, began_at = self._times, self._now(), self.connection.began_at
        record = RequestRecord(
            request_id=self.connection.request_id,
            surface=self._job.surface,
            mode=self.mode,
            reason=None if refusal is None else refusal.reason,
            status=status,
            seconds=now - began_at,
            priority=self._job.priority,
            gate_wait=(times.granted_at or now) - times.arrived_at,
            first_event=None if times.first_event_at is None else times.first_event_at - began_at,
            chunks=self._answer.stream.chunks,
            bytes=self._answer.splice.sent_bytes,
            trace_id=self._job.trace_id,
            must_be_mended=refusal is not None and refusal.is_final,
        )
        self.services.metrics.count_request(record)
        stream = self._answer.stream
        head = None if self._upstream_request is None else self._upstream_request.head
        status_of_router = None if head is None else head.status
        own_reason = None if record.reason is None else record.own_reason
        count_exchange(self.services.metrics, self.mode, stream, times, status_of_router, own_reason, now)
        self.services.log.request(record)


def _run_step(log: Log, step: Callable[..., None], *arguments: object) -> None:
    """Run one step of `conclude`; log a failure, since the steps after it must run too."""
    try:
        step(*arguments)
    except Exception as error:  # noqa: BLE001
        log.fault("conclude", error)
