"""The gate against a model of it, and under cancellation at the instant of the grant.

The model is a list of those who wait and a sort at each grant. The control is the gate that everybody writes first, one
future for each waiter: it loses its slot when a waiter is cancelled in the tick in which it was granted.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Protocol

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from eidproxy.errors import Refusal
from eidproxy.gate.admission import AdmissionQueue, Ticket
from eidproxy.gate.local import LocalGate, LocalPermit
from eidproxy.monitoring.metrics import Metrics
from eidproxy.vocabulary import Priority
from tests.lab.tools import size

F, B = Priority.FOREGROUND, Priority.BACKGROUND


class Model:
    """What the queue must do, in the plainest words. Tickets are known by their number."""

    def __init__(self, capacity: int, max_waiting: int, aging_seconds: float) -> None:
        self.capacity = capacity
        self.max_waiting = max_waiting
        self.aging_seconds = aging_seconds
        self.holders: set[int] = set()
        self.waiting: list[tuple[int, Priority, float]] = []

    def order(self, now: float) -> list[tuple[int, Priority, float]]:
        """Those who wait, the next first."""
        return sorted(self.waiting, key=lambda waiter: (not self.counts_as_foreground(waiter, now), waiter[0]))

    def counts_as_foreground(self, waiter: tuple[int, Priority, float], now: float) -> bool:
        _, priority, arrived_at = waiter
        return priority is F or (self.aging_seconds > 0 and arrived_at <= now - self.aging_seconds)

    def request(self, number: int, priority: Priority, now: float) -> tuple[str, int | None]:
        """`granted`, `waits` or `full`, and who lost a place."""
        if len(self.holders) < self.capacity and not self.waiting:
            self.holders.add(number)
            return "granted", None
        displaced = None
        if len(self.waiting) >= self.max_waiting:
            background = [waiter for waiter in self.waiting if not self.counts_as_foreground(waiter, now)]
            if priority is B or not background:
                return "full", None
            displaced = max(background)
            self.waiting.remove(displaced)
        self.waiting.append((number, priority, now))
        return "waits", displaced[0] if displaced else None

    def leave(self, number: int, now: float) -> list[int]:
        """Who runs now."""
        self.holders.discard(number)
        self.waiting = [waiter for waiter in self.waiting if waiter[0] != number]
        granted = []
        while len(self.holders) < self.capacity and self.waiting:
            following = self.order(now)[0]
            self.waiting.remove(following)
            self.holders.add(following[0])
            granted.append(following[0])
        return granted


class Pair:
    """A queue and its model, driven together."""

    def __init__(self, capacity: int, max_waiting: int, aging_seconds: float) -> None:
        self.queue = AdmissionQueue(capacity, max_waiting, aging_seconds)
        self.model = Model(capacity, max_waiting, aging_seconds)
        self.now = 0.0
        self.requests = 0

    def request(self, priority: Priority) -> Ticket | None:
        """Ask both and compare."""
        ticket, displaced = self.queue.request(priority, self.now)
        verdict, lost = self.model.request(self.requests, priority, self.now)
        if ticket is None:
            assert verdict == "full"
            return None
        assert ticket.number == self.requests
        self.requests += 1
        assert verdict == ("waits" if ticket.granted_at is None else "granted")
        assert lost == (None if displaced is None else displaced.number)
        return ticket

    def leave(self, ticket: Ticket) -> list[Ticket]:
        """Leave both and compare."""
        granted = self.queue.leave(ticket, self.now)
        assert [one.number for one in granted] == self.model.leave(ticket.number, self.now)
        assert all(one.granted_at == self.now for one in granted)
        return granted

    def check(self) -> None:
        """What must hold at any time."""
        queue, model = self.queue, self.model
        assert len(queue.holders) <= queue.capacity
        assert queue.waiting <= queue.max_waiting
        assert not queue.waiting or len(queue.holders) == queue.capacity
        assert set(queue.holders) == model.holders
        assert queue.waiting == len(model.waiting)

    def check_places(self) -> None:
        """Each waiter's place is what the order says."""
        tickets = {ticket.number: ticket for priority in Priority for ticket in self.queue.line(priority)}
        for place, (number, _, _) in enumerate(self.model.order(self.now), 1):
            assert self.queue.position(tickets.pop(number), self.now) == place
        assert not tickets


class QueueMachine(RuleBasedStateMachine):
    """Any order of requests, departures and ticks."""

    tickets: Bundle[Ticket] = Bundle("tickets")

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair(1, 3, 5.0)
        self.fresh = True

    @precondition(lambda self: self.fresh)
    @rule(capacity=st.integers(1, 3), max_waiting=st.integers(0, 5), aging=st.sampled_from([0.0, 1.0, 5.0]))
    def build(self, capacity: int, max_waiting: int, aging: float) -> None:
        self.pair = Pair(capacity, max_waiting, aging)
        self.fresh = False

    @rule(target=tickets, priority=st.sampled_from(Priority))
    def request(self, priority: Priority) -> Ticket:
        self.fresh = False
        return self.pair.request(priority) or Ticket(-1, priority, 0.0)

    @rule(ticket=consumes(tickets))
    def leave(self, ticket: Ticket) -> None:
        if ticket.number >= 0:
            self.pair.leave(ticket)

    @rule(ticket=tickets)
    def leave_and_leave_again(self, ticket: Ticket) -> None:
        if ticket.number >= 0:
            self.pair.leave(ticket)
            assert self.pair.queue.leave(ticket, self.pair.now) == []

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 4.0, 5.0]))
    def wait(self, seconds: float) -> None:
        self.pair.now += seconds

    @invariant()
    def holds(self) -> None:
        self.pair.check()
        self.pair.check_places()


QueueMachine.TestCase.settings = settings(
    max_examples=size(100, 2_000), stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)
TestQueueMachine = QueueMachine.TestCase


def test_a_long_run_on_a_virtual_clock(seed: int) -> None:
    rng = random.Random(seed)
    operations = size(25_000, 1_000_000)
    done = 0
    while done < operations:
        pair = Pair(rng.choice([1, 1, 1, 2, 3]), rng.choice([0, 1, 4, 16, 64]), rng.choice([0.0, 3.0, 60.0]))
        alive: list[Ticket] = []
        haste = rng.choice([0.4, 0.6, 0.8])  # how full the queue is kept
        for _ in range(2_000):
            done += 1
            pair.now += rng.choice([0.0, 0.0, rng.random(), 5.0])
            if not alive or rng.random() < haste:
                ticket = pair.request(rng.choice([F, B, B]))
                if ticket is not None:
                    alive.append(ticket)
            else:
                # Holders leave most, waiters at times, and now and then the one that was granted just now.
                holding = [ticket for ticket in alive if ticket.granted_at is not None and not ticket.left]
                gone = rng.choice(holding if holding and rng.random() < 0.6 else alive)
                alive.remove(gone)
                granted = pair.leave(gone)
                if granted and rng.random() < 0.3:
                    alive.remove(granted[0])
                    pair.leave(granted[0])
            pair.check()
            if done % 100 == 0:
                pair.check_places()
        for ticket in alive:
            pair.leave(ticket)
        pair.check()
        assert pair.queue.holders == {}
        assert pair.queue.waiting == 0


def test_a_model_without_aging_is_found_out(seed: int) -> None:
    """The control of the model: a queue of another discipline does not pass."""
    rng = random.Random(seed)
    pair = Pair(1, 8, 3.0)
    pair.queue.aging_seconds = 0.0
    alive: list[Ticket] = []
    with pytest.raises(AssertionError):  # noqa: PT012
        for _ in range(1_000):
            pair.now += 1.0
            ticket = pair.request(rng.choice(list(Priority)))
            alive += [ticket] if ticket else []
            if len(alive) > 4:
                holder = next(iter(pair.queue.holders.values()))
                alive.remove(holder)
                pair.leave(holder)
            alive = [ticket for ticket in alive if not ticket.left]


# On a real loop


class Slots(Protocol):
    """A gate as a job sees it."""

    just_granted: int | None
    """The job that was granted in this tick and has not run since."""

    def slot(self, job: int, priority: Priority) -> AbstractAsyncContextManager[None]:
        """A slot, for as long as the context lasts."""


class Naive:
    """The gate that everybody writes first."""

    def __init__(self) -> None:
        self.just_granted: int | None = None
        self._busy = False
        self._queue: list[tuple[bool, int, asyncio.Future[None], int]] = []
        self._count = itertools.count()

    @asynccontextmanager
    async def slot(self, job: int, priority: Priority) -> AsyncIterator[None]:
        if self._busy:
            turn = asyncio.get_running_loop().create_future()
            heapq.heappush(self._queue, (priority is B, next(self._count), turn, job))
            await turn
        self._busy = True
        try:
            yield
        finally:
            self.just_granted = None
            while self._queue:
                *_, turn, waiting_job = heapq.heappop(self._queue)
                if not turn.done():
                    turn.set_result(None)
                    self.just_granted = waiting_job
                    break
            else:
                self._busy = False


class Ours:
    """`LocalGate`, driven as a relay drives it."""

    def __init__(self) -> None:
        self.just_granted: int | None = None
        self.queue = AdmissionQueue(1, 100_000, 60.0)
        self.metrics = Metrics("test")
        self.gate = LocalGate(self.queue, self.metrics, 300.0, 305.0)
        self._jobs: dict[int, int] = {}

    @asynccontextmanager
    async def slot(self, job: int, priority: Priority) -> AsyncIterator[None]:
        permit = self.gate.acquire(priority)
        assert isinstance(permit, LocalPermit)
        self._jobs[permit.ticket.number] = job
        try:
            await permit.granted()
            yield
        finally:
            self.gate.release(permit)
            self.just_granted = next((self._jobs[number] for number in self.queue.holders), None)


class Stuck(Exception):
    """Nobody runs and somebody waits."""


class Storm:
    """Jobs that hold a slot for a tick or two, most of them cancelled somewhere on their way."""

    def __init__(self, gate: Slots, rng: random.Random) -> None:
        self.gate = gate
        self.rng = rng
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self.running = 0
        self.most = 0
        self.served = 0
        self.cancelled_when_granted = 0

    async def job(self, number: int) -> None:
        try:
            async with self.gate.slot(number, self.rng.choice(list(Priority))):
                self.running += 1
                self.most = max(self.most, self.running)
                try:
                    for _ in range(self.rng.randrange(3)):
                        await asyncio.sleep(0)
                    self.served += 1
                finally:
                    self.running -= 1
        finally:
            granted = self.gate.just_granted
            if granted in self.tasks and granted != number and self.rng.random() < 0.5:
                # Here the waiter has its grant and has not run: the instant that naive gates forget.
                self.cancelled_when_granted += 1
                self.tasks[granted].cancel()

    def _done(self, number: int, _: asyncio.Task[None]) -> None:
        del self.tasks[number]

    async def run(self, jobs: int) -> None:
        """Let them all through. Raises Stuck when nothing moves."""
        loop = asyncio.get_running_loop()
        for number in range(jobs):
            task = self.tasks[number] = loop.create_task(self.job(number))
            task.add_done_callback(partial(self._done, number))
            while len(self.tasks) > 40:
                await self._tick()
        while self.tasks:
            await self._tick()

    async def _tick(self) -> None:
        """One turn of the loop, in which a waiter may leave."""
        if self.tasks and self.rng.random() < 0.6:
            self.tasks[self.rng.choice(list(self.tasks))].cancel()
        before = self.served, len(self.tasks)
        for _ in range(50):
            await asyncio.sleep(0)
            if (self.served, len(self.tasks)) != before:
                return
        raise Stuck

    async def clear(self) -> None:
        """End what is left."""
        left = list(self.tasks.values())
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


def test_nothing_is_stuck_under_cancellation(seed: int) -> None:
    async def main() -> Storm:
        gate = Ours()
        storm = Storm(gate, random.Random(seed))
        await storm.run(20_000)
        assert gate.queue.holders == {}
        assert gate.queue.waiting == 0
        assert gate.gate.statistics().in_use == 0
        async with asyncio.timeout(1), gate.slot(-1, B):
            pass
        return storm

    storm = asyncio.run(main())
    print(f"{storm.served} served, {storm.cancelled_when_granted} cancelled at the instant of the grant")
    assert storm.most == 1
    assert 2_000 < storm.served < 8_000  # most are cancelled
    assert storm.cancelled_when_granted > 1_000


def test_the_naive_gate_is_stuck_within_1000_operations(seed: int) -> None:
    async def main() -> None:
        storm = Storm(Naive(), random.Random(seed))
        try:
            with pytest.raises(Stuck):
                await storm.run(1_000)
        finally:
            await storm.clear()

    asyncio.run(main())


# The gate's own clocks, at the same instants


def _gate(metrics: Metrics | None = None, **settings: float) -> tuple[LocalGate, Metrics]:
    metrics = metrics or Metrics("test")
    clocks = {"wait_timeout_seconds": 300.0, "max_hold_seconds": 305.0, **settings}
    return LocalGate(AdmissionQueue(1, 2, 60.0), metrics, **clocks), metrics


async def _turns(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_a_waiter_that_expires_while_it_is_cancelled_leaves_nothing() -> None:
    async def main() -> None:
        gate, _ = _gate(wait_timeout_seconds=0.0)
        holder, waiter = gate.acquire(F), gate.acquire(F)
        task = asyncio.ensure_future(waiter.granted())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises((Refusal, asyncio.CancelledError)):
            await task
        gate.release(waiter)
        gate.release(holder)
        assert gate.statistics().in_use == 0
        assert sum(gate.statistics().depth.values()) == 0

    asyncio.run(main())


def test_a_wait_that_ran_out_is_refused() -> None:
    async def main() -> None:
        gate, _ = _gate(wait_timeout_seconds=0.01)
        holder, waiter = gate.acquire(F), gate.acquire(F)
        with pytest.raises(Refusal, match="gate_wait_timeout"):
            await waiter.granted()
        gate.release(waiter)
        assert sum(gate.statistics().depth.values()) == 0
        gate.release(holder)
        assert gate.statistics().in_use == 0

    asyncio.run(main())


def test_a_grant_in_the_tick_in_which_the_wait_runs_out_is_one_of_both() -> None:
    async def main() -> None:
        metrics = Metrics("test")
        for _ in range(200):
            gate, _ = _gate(metrics, wait_timeout_seconds=0.0005)
            holder, waiter = gate.acquire(F), gate.acquire(F)
            task = asyncio.ensure_future(waiter.granted())
            asyncio.get_running_loop().call_later(0.0005, gate.release, holder)
            outcome = (await asyncio.gather(task, return_exceptions=True))[0]
            assert outcome is None or (isinstance(outcome, Refusal) and outcome.reason == "gate_wait_timeout")
            gate.release(waiter)
            gate.release(holder)
            assert gate.statistics().in_use == 0
            assert sum(gate.statistics().depth.values()) == 0

    asyncio.run(main())


def test_a_displaced_waiter_is_told_and_the_slot_goes_on() -> None:
    async def main() -> None:
        gate, _ = _gate()
        holder, background, _other = gate.acquire(F), gate.acquire(B), gate.acquire(F)
        task = asyncio.ensure_future(background.granted())
        await _turns()
        foreground = gate.acquire(F)
        with pytest.raises(Refusal, match="gate_queue_full"):
            await task
        gate.release(background)
        gate.release(_other)
        gate.release(holder)
        await asyncio.wait_for(foreground.granted(), 1)
        gate.release(foreground)
        assert gate.statistics().in_use == 0

    asyncio.run(main())


def test_a_slot_held_too_long_is_taken_back() -> None:
    async def main() -> None:
        gate, metrics = _gate(max_hold_seconds=0.01)
        holder, waiter = gate.acquire(F), gate.acquire(F)
        lost: list[str] = []
        holder.on_revoked = lost.append
        await asyncio.wait_for(waiter.granted(), 1)
        assert lost == ["internal_error"]
        assert gate.statistics().in_use == 1
        gate.release(holder)
        assert gate.statistics().in_use == 1
        gate.release(waiter)
        assert gate.statistics().in_use == 0
        assert b"eidproxy_gate_forced_releases_total 1.0" in metrics.expose("")[0]

    asyncio.run(main())


def test_a_drain_turns_away_those_who_wait_and_those_who_come() -> None:
    async def main() -> None:
        gate, _ = _gate()
        holder, waiter = gate.acquire(F), gate.acquire(B)
        task = asyncio.ensure_future(waiter.granted())
        await _turns()
        gate.drain()
        with pytest.raises(Refusal, match="draining"):
            await task
        with pytest.raises(Refusal, match="draining"):
            gate.acquire(F)
        gate.release(waiter)
        assert gate.statistics().in_use == 1
        gate.release(holder)
        assert gate.statistics().in_use == 0

    asyncio.run(main())
