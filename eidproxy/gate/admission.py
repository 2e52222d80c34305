"""The queue discipline of the gate: which request runs, waits, or is refused. Times are arguments; nothing here waits.

FOREGROUND goes before BACKGROUND; inside a class the order is first come, first served. A BACKGROUND request that has
waited `aging_seconds` counts as a FOREGROUND request with the same time of arrival.

`leave` frees whatever a ticket has, a slot or a place. So a ticket that is granted and cancelled in the same instant
needs no case of its own.
"""

from bisect import bisect_left, bisect_right
from operator import attrgetter

from eidproxy.vocabulary import Priority


class Ticket:
    """One request in the queue. `number` is its order of arrival; times are seconds of the caller's clock."""

    __slots__ = ("arrived_at", "granted_at", "left", "number", "priority")

    def __init__(self, number: int, priority: Priority, arrived_at: float) -> None:
        self.number = number
        self.priority = priority
        self.arrived_at = arrived_at
        self.granted_at: float | None = None
        self.left = False


_by_number = attrgetter("number")
_by_arrival = attrgetter("arrived_at")


class AdmissionQueue:
    """The slots, and a line of waiters for each class.

    A line is a list in order of arrival: its head is next, and bisection finds a place. Removing a ticket shifts those
    behind it with one memmove, which is cheaper than any tree at the lengths that `max_waiting` allows.
    """

    def __init__(self, capacity: int, max_waiting: int, aging_seconds: float) -> None:
        self.capacity = capacity
        self.max_waiting = max_waiting
        self.aging_seconds = aging_seconds
        """0 means that a BACKGROUND request never counts as FOREGROUND."""
        self.holders: dict[int, Ticket] = {}
        self._foreground: list[Ticket] = []
        self._background: list[Ticket] = []
        self._arrivals = 0

    @property
    def waiting(self) -> int:
        """The number of waiters in both classes."""
        return len(self._foreground) + len(self._background)

    def line(self, priority: Priority) -> list[Ticket]:
        """Return the waiters of a class, in order of arrival. The caller must not change the list."""
        return self._foreground if priority is Priority.FOREGROUND else self._background

    def request(self, priority: Priority, now: float) -> tuple[Ticket | None, Ticket | None]:
        """Ask for a slot. Return the ticket (granted or waiting; None: the queue is full) and the one it displaced.

        A slot is granted at once only when one is free and nobody waits, so that nobody is overtaken.
        """
        ticket = Ticket(self._arrivals, priority, now)
        displaced = None
        if len(self.holders) < self.capacity and not self.waiting:
            self._grant(ticket, now)
        elif self.waiting >= self.max_waiting:
            displaced = self._youngest_background(now) if priority is Priority.FOREGROUND else None
            if displaced is None:
                return None, None
            self._background.pop()
            displaced.left = True
            self._foreground.append(ticket)
        else:
            self.line(priority).append(ticket)
        self._arrivals += 1
        return ticket, displaced

    def leave(self, ticket: Ticket, now: float) -> list[Ticket]:
        """Free what the ticket has and return the tickets that are granted now. Leaving twice does nothing."""
        if ticket.left:
            return []
        ticket.left = True
        if ticket.granted_at is not None:
            del self.holders[ticket.number]
        else:
            line = self.line(ticket.priority)
            del line[bisect_left(line, ticket.number, key=_by_number)]
        granted = []
        while len(self.holders) < self.capacity and self.waiting:
            granted.append(self._next(now))
            self._grant(granted[-1], now)
        return granted

    def position(self, ticket: Ticket, now: float) -> int:
        """Return how many grants it takes until this waiter has a slot: 1 is next. 0 for a ticket that does not wait.

        It can rise: when a FOREGROUND request arrives, or when the aging time of a BACKGROUND waiter is over.
        """
        if ticket.left or ticket.granted_at is not None:
            return 0
        aged = self._aged(now)
        own = bisect_left(self.line(ticket.priority), ticket.number, key=_by_number)
        if ticket.priority is Priority.FOREGROUND:
            older = min(bisect_left(self._background, ticket.number, key=_by_number), aged)
            return own + older + 1
        if own < aged:
            return own + bisect_left(self._foreground, ticket.number, key=_by_number) + 1
        return own + len(self._foreground) + 1

    def _grant(self, ticket: Ticket, now: float) -> None:
        ticket.granted_at = now
        self.holders[ticket.number] = ticket

    def _next(self, now: float) -> Ticket:
        foreground, background = self._foreground, self._background
        if not foreground:
            return background.pop(0)
        if self._aged(now) and background[0].number < foreground[0].number:
            return background.pop(0)
        return foreground.pop(0)

    def _aged(self, now: float) -> int:
        """Return how many tickets of the BACKGROUND line count as FOREGROUND: its oldest ones."""
        if not self.aging_seconds or not self._background:
            return 0
        return bisect_right(self._background, now - self.aging_seconds, key=_by_arrival)

    def _youngest_background(self, now: float) -> Ticket | None:
        if len(self._background) > self._aged(now):
            return self._background[-1]
        return None
