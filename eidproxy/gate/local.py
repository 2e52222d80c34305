"""The gate of a single process."""

import asyncio
from collections.abc import Callable

from eidproxy.errors import Refusal
from eidproxy.gate import GateStatistics, Holder, HoldEstimate, Permit, Waiter
from eidproxy.gate.admission import AdmissionQueue, Ticket
from eidproxy.monitoring.metrics import Metrics
from eidproxy.timeouts import TimeoutQueue
from eidproxy.vocabulary import Priority, WaitOutcome


class LocalPermit:
    """A permit of `LocalGate`."""

    __slots__ = ("_gate", "_grant_future", "on_revoked", "settling", "ticket")

    def __init__(self, gate: "LocalGate", ticket: Ticket) -> None:
        self._gate = gate
        self.ticket = ticket
        self.on_revoked: Callable[[str], None] | None = None
        self.settling = False
        self._grant_future: asyncio.Future[None] | None = None

    @property
    def granted_at_once(self) -> bool:
        """See `Permit.granted_at_once`."""
        return self._grant_future is None

    async def granted(self) -> None:
        """See `Permit.granted`."""
        if self._grant_future is not None:
            await self._grant_future

    def is_held(self) -> bool:
        """See `Permit.is_held`."""
        return self._gate.is_held(self.ticket)

    def queue_position(self) -> tuple[int, float | None]:
        """See `Permit.queue_position`."""
        return self._gate.queue_position(self.ticket)


class LocalGate:
    """A gate in the memory of one process: an `AdmissionQueue` with a future for each wait and timers for limits."""

    def __init__(
        self,
        queue: AdmissionQueue,
        metrics: Metrics,
        wait_timeout_seconds: float,
        max_hold_seconds: float,
    ) -> None:
        self._queue = queue
        self._metrics = metrics
        self._wait_timeouts = TimeoutQueue(wait_timeout_seconds, self._on_wait_timeout, patient=True)
        self._hold_timeouts = TimeoutQueue(max_hold_seconds, self._take_back)
        self._permits: dict[int, LocalPermit] = {}
        self._position_callbacks: dict[int, Callable[[], None]] = {}
        self._hold_estimate = HoldEstimate()
        self._is_draining = False
        self._is_update_scheduled = False
        self._loop = asyncio.get_running_loop()

    def acquire(self, priority: Priority, on_position_change: Callable[[], None] | None = None) -> LocalPermit:
        """See `Gate.acquire`."""
        if self._is_draining:
            self._metrics.gate_wait[priority, WaitOutcome.DRAINING].observe(0)
            raise Refusal("draining")
        ticket, displaced = self._queue.request(priority, self._loop.time())
        if ticket is None:
            self._metrics.gate_wait[priority, WaitOutcome.FULL].observe(0)
            raise self._full_refusal()
        if displaced is not None:
            self._turn_away(self._permits[displaced.number], WaitOutcome.FULL, self._full_refusal())
        permit = self._permits[ticket.number] = LocalPermit(self, ticket)
        try:
            if ticket.granted_at is not None:
                self._begin_hold(permit)
            else:
                permit._grant_future = self._loop.create_future()
                self._wait_timeouts.start(permit)
                if on_position_change is not None:
                    self._position_callbacks[ticket.number] = on_position_change
                self._schedule_position_updates()
        except BaseException:
            self.release(permit)  # the caller gets no permit, so it cannot release it
            raise
        return permit

    def release(self, permit: Permit) -> None:
        """See `Gate.release`."""
        assert isinstance(permit, LocalPermit)  # noqa: S101  # a gate is only given back its own permits
        ticket, now = permit.ticket, self._loop.time()
        if ticket.number not in self._permits:
            return
        # First grant the slot and wake its next holder: metrics must not delay that.
        granted = self._queue.leave(ticket, now)
        del self._permits[ticket.number]
        self._position_callbacks.pop(ticket.number, None)
        self._wait_timeouts.stop(permit)
        self._hold_timeouts.stop(permit)
        for runner in granted:
            self._on_granted(self._permits[runner.number])
        self._schedule_position_updates()
        if ticket.granted_at is not None:
            self._hold_estimate.add(now - ticket.granted_at)
            self._metrics.gate_hold[ticket.priority].observe(now - ticket.granted_at)
        else:
            self._metrics.gate_wait[ticket.priority, WaitOutcome.CANCELLED].observe(now - ticket.arrived_at)

    def drain(self) -> None:
        """See `Gate.drain`."""
        self._is_draining = True
        for priority in Priority:
            for ticket in list(self._queue.line(priority)):
                self._turn_away(self._permits[ticket.number], WaitOutcome.DRAINING, Refusal("draining"))

    def is_held(self, ticket: Ticket) -> bool:
        """Return whether a ticket has a slot now."""
        return ticket.number in self._queue.holders

    def queue_position(self, ticket: Ticket) -> tuple[int, float | None]:
        """Return the position of a ticket and the seconds until its slot, or None if unknown."""
        position = self._queue.position(ticket, self._loop.time())
        return position, self._hold_estimate.estimate_wait(position, self._queue.capacity)

    def statistics(self) -> GateStatistics:
        """See `Gate.statistics`."""
        now = self._loop.time()
        lines = {priority: self._queue.line(priority) for priority in Priority}
        return GateStatistics(
            slots=self._queue.capacity,
            in_use=len(self._queue.holders),
            settling=sum(self._permits[number].settling for number in self._queue.holders),
            queue_limit=self._queue.max_waiting,
            depth={priority: len(line) for priority, line in lines.items()},
            oldest_wait_seconds={p: now - line[0].arrived_at if line else 0.0 for p, line in lines.items()},
            mean_hold_seconds=self._hold_estimate.seconds,
        )

    def holders(self) -> list[Holder]:
        """See `Gate.holders`."""
        now = self._loop.time()
        return [
            Holder(ticket.priority, now - ticket.granted_at, self._permits[number].settling)
            for number, ticket in self._queue.holders.items()
            if ticket.granted_at is not None
        ]

    def waiters(self) -> list[Waiter]:
        """See `Gate.waiters`."""
        now = self._loop.time()
        waiters = [
            Waiter(priority, self._queue.position(ticket, now), now - ticket.arrived_at)
            for priority in Priority
            for ticket in self._queue.line(priority)
        ]
        return sorted(waiters, key=lambda waiter: waiter.position)

    async def available(self) -> bool:
        """See `Gate.available`."""
        return True

    async def aclose(self) -> None:
        """See `Gate.aclose`. Slots end with the process."""
        self.drain()

    def _full_refusal(self) -> Refusal:
        wait = self._hold_estimate.estimate_wait(self._queue.waiting + 1, self._queue.capacity)
        return Refusal("gate_queue_full", retry_seconds=wait)

    def _on_granted(self, permit: LocalPermit) -> None:
        """Wake the request that waits for this permit, now that the queue has granted it a slot."""
        if permit._grant_future is not None and not permit._grant_future.done():
            permit._grant_future.set_result(None)
        self._wait_timeouts.stop(permit)
        self._position_callbacks.pop(permit.ticket.number, None)
        self._begin_hold(permit)

    def _begin_hold(self, permit: LocalPermit) -> None:
        ticket = permit.ticket
        self._hold_timeouts.start(permit)
        waited = self._loop.time() - ticket.arrived_at
        self._metrics.gate_wait[ticket.priority, WaitOutcome.GRANTED].observe(waited)

    def _on_wait_timeout(self, permit: LocalPermit) -> None:
        wait = self._hold_estimate.estimate_wait(max(self._queue.waiting, 1), self._queue.capacity)
        self._turn_away(permit, WaitOutcome.EXPIRED, Refusal("gate_wait_timeout", retry_seconds=wait))

    def _turn_away(self, permit: LocalPermit, outcome: WaitOutcome, refusal: Refusal) -> None:
        """End a wait with a refusal and free its place now, so that nobody waits behind a request that is over."""
        ticket, now = permit.ticket, self._loop.time()
        self._permits.pop(ticket.number, None)
        self._position_callbacks.pop(ticket.number, None)
        self._wait_timeouts.stop(permit)
        self._queue.leave(ticket, now)
        if permit._grant_future is not None and not permit._grant_future.done():
            permit._grant_future.set_exception(refusal)
            permit._grant_future.exception()  # a waiter that left in this very tick never looks
        self._schedule_position_updates()
        self._metrics.gate_wait[ticket.priority, outcome].observe(now - ticket.arrived_at)

    def _take_back(self, permit: LocalPermit) -> None:
        """Take back the slot of a holder that outlived its deadline: that is a bug, and must not block the gate."""
        self._metrics.forced_releases.inc()
        self.release(permit)
        if permit.on_revoked is not None:
            permit.on_revoked("internal_error")

    def _schedule_position_updates(self) -> None:
        """Schedule the calls of `on_position_change`, at most once a tick."""
        if self._position_callbacks and not self._is_update_scheduled:
            self._is_update_scheduled = True
            self._loop.call_soon(self._send_position_updates)

    def _send_position_updates(self) -> None:
        self._is_update_scheduled = False
        for on_position_change in list(self._position_callbacks.values()):
            on_position_change()
