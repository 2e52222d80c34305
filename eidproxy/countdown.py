"""Many waits of one length, one timer."""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Countdown(Generic[Item]):
    """Calls `expired(item)` for each item that is not stopped within `seconds` of its start.

    Who starts first ends first, so a dictionary in order of entry is in order of time too, and one timer of the loop
    serves all: starting and stopping cost a dictionary's step, where a timer each costs ten times as much, and most
    waits end long before their time. An item is started once; to begin anew it is stopped first.
    """

    __slots__ = ("_ends", "_expired", "_loop", "_timer", "seconds")

    def __init__(self, seconds: float, expired: Callable[[Item], object]) -> None:
        """To be built inside a running loop."""
        self.seconds = seconds
        self._expired = expired
        self._loop = asyncio.get_running_loop()
        self._ends: dict[Item, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def start(self, item: Item) -> None:
        """Begin an item's wait."""
        end = self._ends[item] = self._loop.time() + self.seconds
        if self._timer is None:
            self._timer = self._loop.call_at(end, self._sweep)

    def stop(self, item: Item) -> None:
        """End an item's wait, if there is one."""
        self._ends.pop(item, None)  # the timer stays: when it is due it looks who is next

    def first(self) -> Item | None:
        """Who has waited longest."""
        return next(iter(self._ends), None)

    def _sweep(self) -> None:
        self._timer = None
        now = self._loop.time()
        try:
            while self._ends:
                item, end = next(iter(self._ends.items()))
                if end > now:
                    break
                del self._ends[item]
                self._expired(item)
        finally:  # one that failed must not stop the clock of the others
            if self._ends and self._timer is None:
                self._timer = self._loop.call_at(next(iter(self._ends.values())), self._sweep)
