"""Timeouts: many under one timer, of one length or of any, and single ones that allow for a standstill of the process.

After a standstill (a stopped process, a machine that slept, a long turn) the loop runs due timers before it reads the
kernel's buffers, where the answer of the peer may have been waiting for long. So a patient timeout that fires late is
extended once, by as much as it is late and at most by its own length (DESIGN, 39).
"""

import asyncio
import heapq
import itertools
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

Item = TypeVar("Item")

STANDSTILL_SECONDS = 0.1
"""A timer that fires later than this shows that the process stood still."""


_MOST_STOPPED = 64
"""Entries of stopped timers that a heap keeps however few run; beyond that as many as there are running ones."""


def standstill_extension(late: float, seconds: float) -> float:
    """Return the extension of a timeout of `seconds` that fires `late` seconds too late; 0 when it has ended."""
    return min(late, seconds) if late > STANDSTILL_SECONDS else 0.0


class TimeoutQueue(Generic[Item]):
    """A queue of timeouts of one length: calls `on_expired(item)` for each not stopped within `seconds` of its start.

    Items end in the order in which they start, so the insertion order of a dictionary is the order of time, and one
    timer of the loop serves all. Starting and stopping cost one dictionary operation; a timer for each item costs ten
    times as much, and most items are stopped long before their time. To restart an item, stop it first.
    """

    __slots__ = ("_ends_at", "_is_expiring", "_is_extended", "_loop", "_on_expired", "_patient", "_timer", "seconds")

    def __init__(
        self,
        seconds: float,
        on_expired: Callable[[Item], object],
        *,
        patient: bool = False,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """`patient` timeouts are extended after a standstill; others are wall clocks.

        To be built inside a running loop, or with `loop`.
        """
        self.seconds = seconds
        self._on_expired = on_expired
        self._patient = patient
        self._loop = loop or asyncio.get_running_loop()
        self._ends_at: dict[Item, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._is_expiring = False
        self._is_extended = False

    def start(self, item: Item) -> None:
        """Start an item's timeout."""
        end = self._ends_at[item] = self._loop.time() + self.seconds
        if self._timer is None and not self._is_expiring:  # a sweep sets the timer itself, at its end
            self._timer = self._loop.call_at(end, self._expire_due)

    def stop(self, item: Item) -> None:
        """Stop an item's timeout, if there is one."""
        self._ends_at.pop(item, None)  # the timer stays set: when it fires it finds the next item

    def __len__(self) -> int:
        return len(self._ends_at)

    def newest(self) -> Item | None:
        """Return the item that started last, or None."""
        return next(reversed(self._ends_at), None)

    def oldest(self) -> Item | None:
        """Return the item that started first, or None."""
        return next(iter(self._ends_at), None)

    def _expire_due(self) -> None:
        self._timer = None
        if not self._ends_at:
            return
        now = self._loop.time()
        more = standstill_extension(now - next(iter(self._ends_at.values())), self.seconds) if self._patient else 0.0
        if more and not self._is_extended:
            self._is_extended = True
            self._timer = self._loop.call_later(more, self._expire_due)
            return
        self._is_extended = False
        self._is_expiring = True
        try:
            while self._ends_at:
                item, end = next(iter(self._ends_at.items()))
                if end > now:
                    break
                del self._ends_at[item]
                self._on_expired(item)
        finally:  # an item whose callback raises must not stop the timeouts of the others
            self._is_expiring = False
            if self._ends_at:
                self._timer = self._loop.call_at(next(iter(self._ends_at.values())), self._expire_due)


class TimerHeap(Generic[Item]):
    """A heap of timers that end at any time: calls `on_expired(item)` for each that is not stopped before.

    One timer of the loop serves all. A timer of its own takes 600 bytes for each item, an entry here 200.
    """

    __slots__ = ("_heap", "_items", "_keys", "_loop", "_on_expired", "_timer", "_timer_at")

    def __init__(self, on_expired: Callable[[Item], object], loop: asyncio.AbstractEventLoop | None = None) -> None:
        """To be built inside a running loop, or with `loop`."""
        self._on_expired = on_expired
        self._loop = loop or asyncio.get_running_loop()
        self._heap: list[tuple[float, int]] = []
        self._items: dict[int, Item] = {}
        self._keys = itertools.count(1)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf

    def start(self, item: Item, at: float) -> int:
        """Set a timer that ends at `at` on the loop's clock, and return the key that stops it."""
        key = next(self._keys)
        self._items[key] = item
        heap = self._heap
        heapq.heappush(heap, (at, key))
        if len(heap) > 2 * len(self._items) + _MOST_STOPPED:
            heap[:] = [entry for entry in heap if entry[1] in self._items]
            heapq.heapify(heap)
        self._set_timer()
        return key

    def stop(self, key: int) -> None:
        """Stop a timer, if it has not ended."""
        self._items.pop(key, None)  # its entry holds the item no more, and goes when it would have ended, or before

    def __len__(self) -> int:
        return len(self._items)

    def _set_timer(self) -> None:
        if not self._heap or self._timer_at <= self._heap[0][0]:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = self._heap[0][0]
        self._timer = self._loop.call_at(self._timer_at, self._on_timer)

    def _on_timer(self) -> None:
        self._timer, self._timer_at = None, math.inf
        heap, now = self._heap, self._loop.time()
        try:
            while heap and heap[0][0] <= now:
                item = self._items.pop(heapq.heappop(heap)[1], None)
                if item is not None:
                    self._on_expired(item)
        finally:  # an item whose callback raises must not stop the timers of the others
            self._set_timer()


class PatientTimer:
    """A timer that calls `on_expired()` after `seconds`, or later by its `standstill_extension`."""

    __slots__ = ("_due_at", "_handle", "_loop", "_on_expired", "_seconds")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, on_expired: Callable[[], object]) -> None:
        self._loop = loop
        self._seconds = seconds
        self._on_expired = on_expired
        self._due_at = loop.time() + seconds
        self._handle = loop.call_later(seconds, self._on_timer)

    def cancel(self) -> None:
        """Cancel the call."""
        self._handle.cancel()

    def _on_timer(self) -> None:
        more = standstill_extension(self._loop.time() - self._due_at, self._seconds)
        if more:
            self._handle = self._loop.call_later(more, self._on_expired)
        else:
            self._on_expired()


@asynccontextmanager
async def patience(seconds: float) -> AsyncIterator[None]:
    """Limit a block to `seconds` as `asyncio.timeout` does, extended once after a standstill. Raises TimeoutError."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as bound:
        timer = PatientTimer(loop, seconds, lambda: bound.reschedule(loop.time()))
        try:
            yield
        finally:
            timer.cancel()
