"""timeouts: who is called when, and who is not."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from eidproxy.timeouts import PatientTimer, TimeoutQueue, TimerHeap, patience
from tests.lab.loops import played, played_virtually

SECONDS = 0.02


class Ended:
    """Who was called, in order."""

    def __init__(self, wanted: int) -> None:
        self.items: list[str] = []
        self.all = asyncio.Event()
        self._wanted = wanted

    def __call__(self, item: str) -> None:
        self.items.append(item)
        if len(self.items) == self._wanted:
            self.all.set()


@played
async def test_each_ends_in_time_and_in_order() -> None:
    loop = asyncio.get_running_loop()
    ended = Ended(3)
    queue = TimeoutQueue(SECONDS, ended)
    began = loop.time()
    for item in "abc":
        queue.start(item)
    assert queue.oldest() == "a"
    await ended.all.wait()
    assert ended.items == ["a", "b", "c"]
    assert loop.time() - began >= SECONDS - 0.002  # the loop counts in milliseconds
    assert queue.oldest() is None


@played
async def test_who_is_stopped_is_not_called_and_holds_nobody_up() -> None:
    ended = Ended(1)
    queue = TimeoutQueue(SECONDS, ended)
    queue.start("stopped")
    queue.start("goes on")
    queue.stop("stopped")
    queue.stop("never began")
    await ended.all.wait()
    assert ended.items == ["goes on"]


@played
async def test_begun_anew_it_ends_anew() -> None:
    """A timer that is due for nobody looks who is next, and one that starts when it is called is called again."""
    ended = Ended(2)

    def again(item: str) -> None:
        ended(item)
        if not ended.all.is_set():
            queue.start(item)

    queue = TimeoutQueue(SECONDS, again)
    queue.start("a")
    queue.stop("a")
    queue.start("a")
    await ended.all.wait()
    assert ended.items == ["a", "a"]


@played
async def test_one_that_fails_does_not_stop_the_clock_of_the_others() -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    ended = Ended(1)

    def expired(item: str) -> None:
        if item == "fails":
            raise ValueError
        ended(item)

    queue = TimeoutQueue(SECONDS, expired)
    queue.start("fails")
    queue.start("goes on")
    await ended.all.wait()
    assert [type(context["exception"]) for context in told] == [ValueError]


def test_it_is_built_inside_a_loop() -> None:
    with pytest.raises(RuntimeError):
        TimeoutQueue(1, print)


# --- With a clock of our own -------------------------------------------------------------------------------------


class Timer:
    """One that was set."""

    def __init__(self, at: float, callback: Callable[[], object]) -> None:
        self.at = at
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        """Never call."""
        self.cancelled = True


class Loop:
    """A loop whose time passes when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[Timer] = []

    def time(self) -> float:
        """Now."""
        return self.now

    def call_at(self, at: float, callback: Callable[[], object]) -> Timer:
        """See asyncio."""
        self.timers.append(Timer(at, callback))
        return self.timers[-1]

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        """See asyncio."""
        return self.call_at(self.now + seconds, callback)

    def run(self, until: float, *, at_once: bool = False) -> None:
        """Run what is due, each at its time; `at_once`: the process stood still, and all is late."""
        if at_once:
            self.now = until
        while due := sorted((timer for timer in self.timers if timer.at <= until), key=lambda timer: timer.at):
            self.timers.remove(due[0])
            if not due[0].cancelled:
                self.now = max(self.now, due[0].at)
                due[0].callback()
        self.now = until


def test_one_that_starts_inside_a_sweep_puts_off_nobody() -> None:
    """The watchdog of a slot was up to 305 s late: the timer was set for the new one, behind all others."""
    loop: Any = Loop()
    ended: list[tuple[str, float]] = []

    def expired(item: str) -> None:
        ended.append((item, loop.now))
        if item == "a":
            queue.start("c")

    queue: TimeoutQueue[str] = TimeoutQueue(10.0, expired, loop=loop)
    queue.start("a")
    loop.run(101.0)
    queue.start("b")
    loop.run(200.0)
    assert ended == [("a", 110.0), ("b", 111.0), ("c", 120.0)]


def test_a_patient_wait_looks_once_more_after_a_standstill() -> None:
    loop: Any = Loop()
    ended: list[tuple[str, float]] = []
    queue: TimeoutQueue[str] = TimeoutQueue(10.0, lambda item: ended.append((item, loop.now)), patient=True, loop=loop)
    for item in ("silent", "spoke"):
        queue.start(item)
    loop.run(112.5, at_once=True)
    assert ended == []
    queue.stop("spoke")  # its bytes lay in the kernel and were read now
    loop.run(130.0)
    assert ended == [("silent", 115.0)]  # as much later as the clock was late
    # Not twice, and not for the little by which a busy loop is late.
    queue.start("anew")
    loop.run(140.05, at_once=True)
    assert ended[1:] == [("anew", 140.05)]


def test_a_long_standstill_is_worth_one_wait_at_most() -> None:
    loop: Any = Loop()
    ended: list[float] = []
    queue: TimeoutQueue[str] = TimeoutQueue(10.0, lambda _: ended.append(loop.now), patient=True, loop=loop)
    queue.start("a")
    loop.run(4000.0, at_once=True)
    assert ended == []
    loop.run(5000.0)
    assert ended == [4010.0]


def test_the_wall_clock_has_no_patience() -> None:
    loop: Any = Loop()
    ended: list[float] = []
    queue: TimeoutQueue[str] = TimeoutQueue(10.0, lambda _: ended.append(loop.now), loop=loop)
    queue.start("a")
    loop.run(150.0, at_once=True)
    assert ended == [150.0]


@pytest.mark.parametrize(("stands_until", "wanted"), [(None, 110.0), (110.05, 110.05), (113.0, 116.0), (900.0, 910.0)])
def test_a_single_wait(stands_until: float | None, wanted: float) -> None:
    loop: Any = Loop()
    ended: list[float] = []
    PatientTimer(loop, 10.0, lambda: ended.append(loop.now))
    PatientTimer(loop, 10.0, lambda: ended.append(0.0)).cancel()
    if stands_until is not None:
        loop.run(stands_until, at_once=True)
    loop.run(1000.0)
    assert ended == [wanted]


@played
async def test_patience_ends_what_takes_too_long() -> None:
    with pytest.raises(TimeoutError):
        async with patience(0.01):
            await asyncio.Event().wait()
    async with patience(60):
        pass


# --- The heap ----------------------------------------------------------------------------------------------------


@played_virtually
async def test_timers_end_at_their_times_in_whatever_order_they_began() -> None:
    loop = asyncio.get_running_loop()
    ended: list[tuple[str, float]] = []
    heap: TimerHeap[str] = TimerHeap(lambda item: ended.append((item, loop.time())))
    keys = {
        item: heap.start(item, at) for item, at in (("c", 9.0), ("a", 1.0), ("d", 9.0), ("stopped", 2.0), ("b", 5.0))
    }
    heap.stop(keys["stopped"])
    heap.stop(keys["stopped"])
    assert len(heap) == 4
    await asyncio.sleep(10)
    assert ended == [("a", 1.0), ("b", 5.0), ("c", 9.0), ("d", 9.0)]
    heap.stop(keys["a"])  # it has ended
    assert len(heap) == 0


@played_virtually
async def test_one_that_rings_may_set_the_next_and_stop_another() -> None:
    loop = asyncio.get_running_loop()
    rung: list[float] = []
    later = 0

    def again(item: str) -> None:
        rung.append(loop.time())
        heap.stop(later)
        if len(rung) < 3:
            heap.start(item, loop.time() + 4)

    heap = TimerHeap(again)
    heap.start("a", 1.0)
    later = heap.start("b", 6.0)
    await asyncio.sleep(20)
    assert rung == [1.0, 5.0, 9.0]


@played
async def test_a_timer_that_fails_does_not_stop_the_others() -> None:
    told: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: told.append(context))
    ended = Ended(1)

    def ring(item: str) -> None:
        if item == "bad":
            raise ValueError
        ended(item)

    heap = TimerHeap(ring)
    heap.start("bad", loop.time())
    heap.start("good", loop.time())
    await ended.all.wait()
    assert (ended.items, len(told)) == (["good"], 1)


@played_virtually
async def test_what_is_stopped_is_not_held_and_does_not_pile_up() -> None:
    """A caller that reads slowly stops and sets its timer as often as it catches up."""

    class Item:
        """Can be referred to weakly."""

    heap: TimerHeap[Item] = TimerHeap(lambda _: None)
    item = Item()
    held = weakref.ref(item)
    heap.start(Item(), 1000.0)
    for _ in range(10_000):
        heap.stop(heap.start(item, 500.0))
    del item
    assert held() is None
    assert len(heap._heap) < 100
