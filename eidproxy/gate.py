"""The gate: at most `capacity` requests of `daily` at the router at once, in the order `admission` decides.

`Gate` is what a relay needs of any gate; `LocalGate` keeps it in the process. A relay asks with `request`, waits on
the pass it gets, and calls `leave` exactly where it closes its upstream connection: leaving frees a slot or a place,
whatever the pass holds at that instant.
"""

import asyncio
from collections.abc import Callable
from typing import NamedTuple, Protocol

from eidproxy.admission import AdmissionQueue, Ticket
from eidproxy.countdown import Countdown
from eidproxy.errors import Refusal
from eidproxy.metrics import Metrics
from eidproxy.vocabulary import Priority, WaitOutcome

_MEAN_WEIGHT = 0.2
"""How much the newest hold counts in the mean: about the last ten decide."""


class Holder(NamedTuple):
    """One slot in use, for `/status`."""

    priority: Priority
    age_seconds: float
    settling: bool


class Waiter(NamedTuple):
    """One place in the queue, for `/status`."""

    priority: Priority
    position: int
    age_seconds: float


class GateStatistics(NamedTuple):
    """What a gate holds right now. Cheap however many wait: it is read at each scrape."""

    slots: int
    in_use: int
    settling: int
    queue_limit: int
    depth: dict[Priority, int]
    oldest_wait_seconds: dict[Priority, float]
    mean_hold_seconds: float | None


class Pass(Protocol):
    """One request's claim on a slot."""

    lost: Callable[[str], None] | None
    """Called with a reason when a slot that was granted is taken away; it is no longer held then."""
    settling: bool
    """Whether the caller has left and the slot is kept all the same (see `settle`). For the operator's views."""

    @property
    def granted_at_once(self) -> bool:
        """Whether the slot came with the request, so that there is nothing to wait for."""

    async def granted(self) -> None:
        """Wait for the slot. Raises Refusal (`gate_queue_full`, `gate_wait_timeout`, `draining`, …)."""

    def holds(self) -> bool:
        """Whether the slot is still held, by a clock read now: asked right before the request goes to the router.

        When it was held until now and is not any more, `lost` is called before this returns.
        """

    def place(self) -> tuple[int, float | None]:
        """The position in the queue (1 is the next, 0 has a slot) and the seconds until the slot, if known."""


class Gate(Protocol):
    """What a relay, the metrics and the operator's views need of a gate."""

    def request(self, priority: Priority, moved: Callable[[], None] | None = None) -> Pass:
        """Ask for a slot. Raises Refusal `gate_queue_full` or `draining` when that is known at once.

        `moved` is called, at most once a tick, when the place in the queue may have changed.
        """

    def leave(self, claim: Pass) -> None:
        """Give back what the pass holds, a slot or a place. Never waits; leaving twice does nothing."""

    def drain(self) -> None:
        """Turn away all who wait and all who come."""

    def statistics(self) -> GateStatistics:
        """How many hold and wait."""

    def holders(self) -> list[Holder]:
        """Who holds a slot."""

    def waiters(self) -> list[Waiter]:
        """Who waits, the next first."""

    async def available(self) -> bool:
        """Whether slots can be given out at all. Bounded: the answer comes within half a second."""

    async def aclose(self) -> None:
        """Give everything back."""


class MeanHold:
    """A moving mean of how long slots were held: the ground of every estimate that a caller is told."""

    def __init__(self) -> None:
        self.seconds: float | None = None

    def add(self, seconds: float) -> None:
        """Take the newest hold."""
        self.seconds = seconds if self.seconds is None else self.seconds + _MEAN_WEIGHT * (seconds - self.seconds)

    def wait(self, position: int, slots: int) -> float | None:
        """Seconds until the waiter at `position` has a slot, or None before the first measurement."""
        return None if self.seconds is None else self.seconds * position / slots


class LocalPass:
    """A pass of `LocalGate`."""

    __slots__ = ("_gate", "_turn", "lost", "settling", "ticket")

    def __init__(self, gate: "LocalGate", ticket: Ticket) -> None:
        self._gate = gate
        self.ticket = ticket
        self.lost: Callable[[str], None] | None = None
        self.settling = False
        self._turn: asyncio.Future[None] | None = None

    @property
    def granted_at_once(self) -> bool:
        """See `Pass.granted_at_once`."""
        return self._turn is None

    async def granted(self) -> None:
        """See `Pass.granted`."""
        if self._turn is not None:
            await self._turn

    def holds(self) -> bool:
        """See `Pass.holds`."""
        return self._gate.holds(self.ticket)

    def place(self) -> tuple[int, float | None]:
        """See `Pass.place`."""
        return self._gate.place(self.ticket)


class LocalGate:
    """The gate in the process: `AdmissionQueue` with futures for turns and timers for clocks."""

    def __init__(
        self,
        queue: AdmissionQueue,
        metrics: Metrics,
        wait_timeout_seconds: float,
        max_hold_seconds: float,
    ) -> None:
        self._queue = queue
        self._metrics = metrics
        self._waits = Countdown(wait_timeout_seconds, self._expire, patient=True)
        self._holds = Countdown(max_hold_seconds, self._take_back)
        self._passes: dict[int, LocalPass] = {}
        self._watchers: dict[int, Callable[[], None]] = {}
        self._mean_hold = MeanHold()
        self._draining = False
        self._news_due = False
        self._loop = asyncio.get_running_loop()

    def request(self, priority: Priority, moved: Callable[[], None] | None = None) -> LocalPass:
        """See `Gate.request`."""
        if self._draining:
            self._metrics.gate_wait[priority, WaitOutcome.DRAINING].observe(0)
            raise Refusal("draining")
        ticket, displaced = self._queue.request(priority, self._loop.time())
        if ticket is None:
            self._metrics.gate_wait[priority, WaitOutcome.FULL].observe(0)
            raise self._full()
        if displaced is not None:
            self._turn_away(self._passes[displaced.number], WaitOutcome.FULL, self._full())
        claim = self._passes[ticket.number] = LocalPass(self, ticket)
        try:
            if ticket.granted_at is not None:
                self._begin_hold(claim)
            else:
                claim._turn = self._loop.create_future()
                self._waits.start(claim)
                if moved is not None:
                    self._watchers[ticket.number] = moved
                self._tell_waiters()
        except BaseException:
            self.leave(claim)  # nobody gets the claim, so nobody else could
            raise
        return claim

    def leave(self, claim: Pass) -> None:
        """See `Gate.leave`."""
        assert isinstance(claim, LocalPass)  # noqa: S101  # a gate is only given back its own passes
        ticket, now = claim.ticket, self._loop.time()
        if ticket.number not in self._passes:
            return
        # The slot goes on first, and whom it goes to is woken first: what is only counted must not come between.
        granted = self._queue.leave(ticket, now)
        del self._passes[ticket.number]
        self._watchers.pop(ticket.number, None)
        self._waits.stop(claim)
        self._holds.stop(claim)
        for runner in granted:
            self._grant(self._passes[runner.number])
        self._tell_waiters()
        if ticket.granted_at is not None:
            self._mean_hold.add(now - ticket.granted_at)
            self._metrics.gate_hold[ticket.priority].observe(now - ticket.granted_at)
        else:
            self._metrics.gate_wait[ticket.priority, WaitOutcome.CANCELLED].observe(now - ticket.arrived_at)

    def drain(self) -> None:
        """See `Gate.drain`."""
        self._draining = True
        for priority in Priority:
            for ticket in list(self._queue.line(priority)):
                self._turn_away(self._passes[ticket.number], WaitOutcome.DRAINING, Refusal("draining"))

    def holds(self, ticket: Ticket) -> bool:
        """Whether it has a slot now."""
        return ticket.number in self._queue.holders

    def place(self, ticket: Ticket) -> tuple[int, float | None]:
        """The position of a ticket and the seconds until its slot."""
        position = self._queue.position(ticket, self._loop.time())
        return position, self._mean_hold.wait(position, self._queue.capacity)

    def statistics(self) -> GateStatistics:
        """See `Gate.statistics`."""
        now = self._loop.time()
        lines = {priority: self._queue.line(priority) for priority in Priority}
        return GateStatistics(
            slots=self._queue.capacity,
            in_use=len(self._queue.holders),
            settling=sum(self._passes[number].settling for number in self._queue.holders),
            queue_limit=self._queue.max_waiting,
            depth={priority: len(line) for priority, line in lines.items()},
            oldest_wait_seconds={p: now - line[0].arrived_at if line else 0.0 for p, line in lines.items()},
            mean_hold_seconds=self._mean_hold.seconds,
        )

    def holders(self) -> list[Holder]:
        """See `Gate.holders`."""
        now = self._loop.time()
        return [
            Holder(ticket.priority, now - ticket.granted_at, self._passes[number].settling)
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
        """See `Gate.aclose`. Nothing outlives the process."""
        self.drain()

    def _full(self) -> Refusal:
        wait = self._mean_hold.wait(self._queue.waiting + 1, self._queue.capacity)
        return Refusal("gate_queue_full", retry_seconds=wait)

    def _grant(self, claim: LocalPass) -> None:
        if claim._turn is not None and not claim._turn.done():
            claim._turn.set_result(None)
        self._waits.stop(claim)
        self._watchers.pop(claim.ticket.number, None)
        self._begin_hold(claim)

    def _begin_hold(self, claim: LocalPass) -> None:
        ticket = claim.ticket
        self._holds.start(claim)
        waited = self._loop.time() - ticket.arrived_at
        self._metrics.gate_wait[ticket.priority, WaitOutcome.GRANTED].observe(waited)

    def _expire(self, claim: LocalPass) -> None:
        wait = self._mean_hold.wait(max(self._queue.waiting, 1), self._queue.capacity)
        self._turn_away(claim, WaitOutcome.EXPIRED, Refusal("gate_wait_timeout", retry_seconds=wait))

    def _turn_away(self, claim: LocalPass, outcome: WaitOutcome, refusal: Refusal) -> None:
        """End a wait with a refusal. The place is given up here, so that nobody waits behind a ghost."""
        ticket, now = claim.ticket, self._loop.time()
        self._passes.pop(ticket.number, None)
        self._watchers.pop(ticket.number, None)
        self._waits.stop(claim)
        self._queue.leave(ticket, now)
        if claim._turn is not None and not claim._turn.done():
            claim._turn.set_exception(refusal)
            claim._turn.exception()  # a waiter that left in this very tick never looks
        self._tell_waiters()
        self._metrics.gate_wait[ticket.priority, outcome].observe(now - ticket.arrived_at)

    def _take_back(self, claim: LocalPass) -> None:
        """The watchdog: a holder that outlived its own deadline is a bug, and must not become an outage."""
        self._metrics.forced_releases.inc()
        self.leave(claim)
        if claim.lost is not None:
            claim.lost("internal_error")

    def _tell_waiters(self) -> None:
        """Let those who asked know, once a tick, that places may have changed."""
        if self._watchers and not self._news_due:
            self._news_due = True
            self._loop.call_soon(self._tell)

    def _tell(self) -> None:
        self._news_due = False
        for moved in list(self._watchers.values()):
            moved()
