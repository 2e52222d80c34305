"""Waits with an end: many of one length under one timer, and single ones that a standstill does not shorten.

After a standstill (a stopped process, a machine that slept, a long turn) the loop runs the timers that are due before
it reads what lay in the kernel's buffers meanwhile, and who is waited for may have answered long ago. So a wait for
somebody that ends late looks once more: it goes on for as long as it is late, at most for its own length, and only
then ends.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

Item = TypeVar("Item")

STANDSTILL_SECONDS = 0.1
"""A timer that runs later than this says that the process stood still."""


def second_look(late: float, seconds: float) -> float:
    """How much longer to wait when a wait of `seconds` is found over `late` seconds too late; 0 when it is over."""
    return min(late, seconds) if late > STANDSTILL_SECONDS else 0.0


class TimeoutQueue(Generic[Item]):
    """Calls `expired(item)` for each item that is not stopped within `seconds` of its start.

    Who starts first ends first, so a dictionary in order of entry is in order of time too, and one timer of the loop
    serves all: starting and stopping cost a dictionary's step, where a timer each costs ten times as much, and most
    waits end long before their time. An item is started once; to begin anew it is stopped first.
    """

    __slots__ = ("_ends", "_expired", "_looked", "_loop", "_patient", "_sweeping", "_timer", "seconds")

    def __init__(
        self,
        seconds: float,
        expired: Callable[[Item], object],
        *,
        patient: bool = False,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """`patient` waits look once more after a standstill; others are clocks of the wall.

        To be built inside a running loop, or with one.
        """
        self.seconds = seconds
        self._expired = expired
        self._patient = patient
        self._loop = loop or asyncio.get_running_loop()
        self._ends: dict[Item, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._sweeping = False
        self._looked = False

    def start(self, item: Item) -> None:
        """Begin an item's wait."""
        end = self._ends[item] = self._loop.time() + self.seconds
        if self._timer is None and not self._sweeping:  # a sweep sets the timer for the first, whoever starts in it
            self._timer = self._loop.call_at(end, self._sweep)

    def stop(self, item: Item) -> None:
        """End an item's wait, if there is one."""
        self._ends.pop(item, None)  # the timer stays: when it is due it looks who is next

    def __len__(self) -> int:
        return len(self._ends)

    def last(self) -> Item | None:
        """Who began last."""
        return next(reversed(self._ends), None)

    def first(self) -> Item | None:
        """Who has waited longest."""
        return next(iter(self._ends), None)

    def _sweep(self) -> None:
        self._timer = None
        if not self._ends:
            return
        now = self._loop.time()
        more = second_look(now - next(iter(self._ends.values())), self.seconds) if self._patient else 0.0
        if more and not self._looked:
            self._looked = True
            self._timer = self._loop.call_later(more, self._sweep)
            return
        self._looked = False
        self._sweeping = True
        try:
            while self._ends:
                item, end = next(iter(self._ends.items()))
                if end > now:
                    break
                del self._ends[item]
                self._expired(item)
        finally:  # one that failed must not stop the clock of the others
            self._sweeping = False
            if self._ends:
                self._timer = self._loop.call_at(next(iter(self._ends.values())), self._sweep)


class PatientTimer:
    """Calls `expired()` after `seconds`, and after a standstill once it looked again."""

    __slots__ = ("_due", "_expired", "_handle", "_loop", "_seconds")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, expired: Callable[[], object]) -> None:
        self._loop = loop
        self._seconds = seconds
        self._expired = expired
        self._due = loop.time() + seconds
        self._handle = loop.call_later(seconds, self._ring)

    def cancel(self) -> None:
        """Call nobody."""
        self._handle.cancel()

    def _ring(self) -> None:
        more = second_look(self._loop.time() - self._due, self._seconds)
        if more:
            self._handle = self._loop.call_later(more, self._expired)
        else:
            self._expired()


@asynccontextmanager
async def patience(seconds: float) -> AsyncIterator[None]:
    """`asyncio.timeout` that looks once more after a standstill. Raises TimeoutError."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as bound:
        timer = PatientTimer(loop, seconds, lambda: bound.reschedule(loop.time()))
        try:
            yield
        finally:
            timer.cancel()
