"""What is kept after a leave, on the gate in the process and a loop whose clock is a number.

The machine is one that finishes a prefill whose caller has left. The control is `release`: the next prefill runs
beside it.
"""

from __future__ import annotations

import asyncio
import random

import pytest

from eidproxy.errors import Refusal
from eidproxy.gate import Permit
from eidproxy.gate.admission import AdmissionQueue
from eidproxy.gate.local import LocalGate, LocalPermit
from eidproxy.monitoring.metrics import Metrics
from eidproxy.relay.settle import Settlement, Settlements
from eidproxy.vocabulary import AfterLeave, Priority, SettleEnd
from tests.lab.loops import played_virtually
from tests.lab.tools import size

F = Priority.FOREGROUND
DEADLINE = 300.0
SETTLE = 20.0


class House:
    """A gate with what is kept at it."""

    def __init__(self, after_leave: AfterLeave, settle_seconds: float = SETTLE, capacity: int = 1) -> None:
        self.metrics = Metrics("test")
        self.gate = LocalGate(AdmissionQueue(capacity, 100, 60.0), self.metrics, 1e6, DEADLINE + 5)
        self.settlements = Settlements(self.gate, self.metrics, after_leave, settle_seconds)
        self.loop = asyncio.get_running_loop()
        self.closed: list[float] = []

    def close(self) -> None:
        """Reset the router's connection."""
        self.closed.append(self.loop.time())

    def departed(self, permit: Permit | None, seconds_left: float = DEADLINE) -> Settlement | None:
        """What a relay does when its caller left in the prefill."""
        settlement = self.settlements.keep(permit, self.close, seconds_left)
        if settlement is None:
            self.close()
            if permit is not None:
                self.gate.release(permit)
        return settlement

    def ends(self) -> dict[str, int]:
        """How many settlements ended so."""
        return {str(end): sum(series.counts) for end, series in self.metrics.gate_settle.items() if sum(series.counts)}

    @property
    def forced(self) -> int:
        """What the watchdog took back."""
        return self.metrics.forced_releases.value


async def turn_of(permit: Permit) -> float:
    """When it has its slot."""
    await permit.granted()
    return asyncio.get_running_loop().time()


@played_virtually
async def test_release_keeps_nothing() -> None:
    house = House(AfterLeave.RELEASE)
    holder, waiter = house.gate.acquire(F), house.gate.acquire(F)
    await asyncio.sleep(5)
    assert house.departed(holder) is None
    assert await turn_of(waiter) == 5.0
    assert house.ends() == {}


@played_virtually
async def test_settle_closes_at_once_and_keeps_the_slot() -> None:
    house = House(AfterLeave.SETTLE)
    holder, waiter = house.gate.acquire(F), house.gate.acquire(F)
    await asyncio.sleep(5)
    house.departed(holder)
    assert house.closed == [5.0]
    assert [one.settling for one in house.gate.holders()] == [True]
    assert house.gate.statistics().settling == 1
    assert waiter.queue_position()[0] == 1
    assert await turn_of(waiter) == 25.0
    assert house.closed == [5.0]
    assert house.gate.statistics().settling == 0
    assert [one.settling for one in house.gate.holders()] == [False]
    assert (house.ends(), house.metrics.gate_settle[SettleEnd.ELAPSED].sum) == ({"elapsed": 1}, 20.0)


@played_virtually
async def test_first_event_keeps_the_router_until_it_speaks() -> None:
    house = House(AfterLeave.FIRST_EVENT)
    holder, waiter = house.gate.acquire(F), house.gate.acquire(F)
    await asyncio.sleep(5)
    settlement = house.departed(holder)
    assert settlement is not None
    assert house.closed == []
    house.loop.call_later(7, settlement.finish, SettleEnd.FIRST_EVENT)
    house.loop.call_later(8, settlement.finish, SettleEnd.FIRST_EVENT)  # a second event that was on its way
    assert await turn_of(waiter) == 12.0
    await asyncio.sleep(100)
    assert house.closed == [12.0]
    assert house.gate.statistics().in_use == 1
    assert house.ends() == {"first_event": 1}


@played_virtually
async def test_first_event_waits_no_longer_than_it_may() -> None:
    house = House(AfterLeave.FIRST_EVENT)
    holder, waiter = house.gate.acquire(F), house.gate.acquire(F)
    house.departed(holder)
    assert await turn_of(waiter) == 20.0
    assert house.closed == [20.0]
    assert house.ends() == {"elapsed": 1}


@pytest.mark.parametrize("after_leave", [AfterLeave.SETTLE, AfterLeave.FIRST_EVENT])
def test_the_wall_clock_bounds_it_and_the_watchdog_has_nothing_to_do(after_leave: AfterLeave) -> None:
    @played_virtually
    async def test() -> None:
        house = House(after_leave, settle_seconds=1000.0)
        holder, waiter = house.gate.acquire(F), house.gate.acquire(F)
        await asyncio.sleep(290)
        house.departed(holder, seconds_left=10.0)
        assert await turn_of(waiter) == 300.0
        assert house.ends() == {"deadline": 1}
        house.gate.release(waiter)
        await asyncio.sleep(1000)
        assert house.forced == 0
        assert house.departed(house.gate.acquire(F), seconds_left=0.0) is None
        assert house.gate.statistics().in_use == 0

    test()


@pytest.mark.parametrize("after_leave", [AfterLeave.SETTLE, AfterLeave.FIRST_EVENT])
def test_a_drain_releases_at_once(after_leave: AfterLeave) -> None:
    @played_virtually
    async def test() -> None:
        house = House(after_leave, capacity=2)
        one, two = house.gate.acquire(F), house.gate.acquire(F)
        house.departed(one)
        house.gate.drain()
        house.settlements.drain()
        assert house.gate.statistics().in_use == 1
        assert house.departed(two) is None
        assert house.gate.statistics().in_use == 0
        assert len(house.closed) == 2
        assert house.ends() == {"draining": 1}

    test()


@played_virtually
async def test_the_next_waiter_leaves_meanwhile() -> None:
    house = House(AfterLeave.SETTLE)
    holder, next_waiter, last = (house.gate.acquire(F) for _ in range(3))
    house.departed(holder)
    await asyncio.sleep(10)
    house.gate.release(next_waiter)
    assert await turn_of(last) == 20.0
    house.departed(last)
    newcomer = house.gate.acquire(F)
    assert await turn_of(newcomer) == 40.0
    house.gate.release(newcomer)
    assert house.gate.statistics().in_use == 0


@played_virtually
async def test_a_slot_that_is_taken_away_ends_it() -> None:
    """A lease that ran out while it settled: the router must not be kept by nobody."""
    house = House(AfterLeave.FIRST_EVENT, settle_seconds=1000.0)
    house.gate = LocalGate(AdmissionQueue(1, 100, 60.0), house.metrics, 300.0, max_hold_seconds=8.0)
    house.settlements.gate = house.gate
    holder, waiter = house.gate.acquire(F), house.gate.acquire(F)
    house.departed(holder)
    assert await turn_of(waiter) == 8.0
    assert house.closed == [8.0]
    assert house.settlements.running == set()
    house.gate.release(waiter)
    assert house.gate.statistics().in_use == 0


@played_virtually
async def test_deep_has_no_slot_so_only_its_router_is_kept() -> None:
    house = House(AfterLeave.FIRST_EVENT)
    assert house.departed(None) is not None
    await asyncio.sleep(19)
    assert house.closed == []
    await asyncio.sleep(2)
    assert house.closed == [20.0]
    house = House(AfterLeave.SETTLE)
    assert house.departed(None) is None


@played_virtually
async def test_a_connection_that_cannot_be_closed_keeps_no_slot() -> None:
    def close() -> None:
        raise OSError

    for after_leave in (AfterLeave.SETTLE, AfterLeave.FIRST_EVENT):
        house = House(after_leave)
        asyncio.get_running_loop().set_exception_handler(lambda _, __: None)
        holder, waiter = house.gate.acquire(F), house.gate.acquire(F)
        try:
            house.settlements.keep(holder, close, DEADLINE)
        except OSError:
            house.gate.release(holder)
        began = house.loop.time()
        assert await turn_of(waiter) in (began, began + 20.0)
        await asyncio.sleep(30)
        assert house.gate.statistics().in_use == 1


class Machine:
    """Computes every prefill to its end, whether somebody waits for it or not."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._busy_until = 0.0
        self.overlaps = 0
        self.posts = 0

    def post(self, seconds: float) -> None:
        """A request comes in."""
        now = self._loop.time()
        self.overlaps += now < self._busy_until - 1e-6
        self.posts += 1
        self._busy_until = max(self._busy_until, now + seconds)


async def _storm(after_leave: AfterLeave, seed: int, callers: int) -> tuple[Machine, House]:
    """Callers that leave at any moment: in the queue, at the grant, in the prefill, after the first event."""
    rng = random.Random(seed)
    house = House(after_leave, settle_seconds=11.0)
    house.gate._queue.max_waiting = callers
    machine = Machine(house.loop)

    async def caller() -> None:
        await asyncio.sleep(rng.random() * callers * 4)
        try:
            permit = house.gate.acquire(rng.choice(list(Priority)))
        except Refusal:
            return
        assert isinstance(permit, LocalPermit)
        waits = house.loop.create_task(permit.granted())
        done, _ = await asyncio.wait({waits}, timeout=rng.choice([None, None, 0.0, rng.random() * 30]))
        if not done or waits.exception() is not None:
            waits.cancel()
            house.gate.release(permit)
            return
        if rng.random() < 0.1:  # gone at the instant of the grant: nothing was sent
            house.gate.release(permit)
            return
        prefill = rng.random() * 10
        machine.post(prefill)
        begun = house.loop.time()
        stays = rng.random() * 15
        if stays >= prefill:
            await asyncio.sleep(stays)
            house.gate.release(permit)
            return
        await asyncio.sleep(stays)
        settlement = house.departed(permit, begun + DEADLINE - house.loop.time())
        if settlement is not None and after_leave is AfterLeave.FIRST_EVENT:
            house.loop.call_at(begun + prefill, settlement.finish, SettleEnd.FIRST_EVENT)

    await asyncio.gather(*(caller() for _ in range(callers)))
    await asyncio.sleep(DEADLINE)
    return machine, house


@pytest.mark.parametrize("after_leave", AfterLeave)
def test_departures(after_leave: AfterLeave, seed: int) -> None:
    """No request is at the machine beside an abandoned one; nothing is left behind; the watchdog is never needed."""
    callers = size(2_000, 10_000)

    @played_virtually
    async def test() -> None:
        machine, house = await _storm(after_leave, seed, callers)
        statistics = house.gate.statistics()
        print(f"{after_leave}: {machine.posts} posts, {machine.overlaps} overlaps, {house.ends()}")
        assert (statistics.in_use, statistics.settling, sum(statistics.depth.values())) == (0, 0, 0)
        assert house.settlements.running == set()
        assert house.forced == 0
        assert machine.posts > callers / 3
        if after_leave is AfterLeave.RELEASE:
            assert machine.overlaps > callers / 50  # the control
        else:
            assert machine.overlaps == 0

    test()
