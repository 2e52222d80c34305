"""The queue discipline, case by case (contract, P5). The clock is a number; names are orders of arrival."""

from __future__ import annotations

import pytest

from eidproxy.gate.admission import AdmissionQueue, Ticket
from eidproxy.vocabulary import Priority

F, B = Priority.FOREGROUND, Priority.BACKGROUND


class Desk:
    """A queue whose requests must be taken; `lost` are those that lost their place."""

    def __init__(self, capacity: int = 1, max_waiting: int = 64, aging_seconds: float = 60.0) -> None:
        self.queue = AdmissionQueue(capacity, max_waiting, aging_seconds)
        self.lost: list[Ticket] = []

    def ask(self, priority: Priority, now: float = 0.0) -> Ticket:
        """A request that is granted or waits."""
        ticket, displaced = self.queue.request(priority, now)
        assert ticket is not None
        if displaced is not None:
            self.lost.append(displaced)
        return ticket

    def full(self, priority: Priority, now: float = 0.0) -> bool:
        """Whether a request is turned away, and nobody else with it."""
        before = self.queue.waiting
        ticket, displaced = self.queue.request(priority, now)
        if ticket is not None:
            return False
        assert displaced is None
        assert self.queue.waiting == before
        return True

    def served(self, holder: Ticket, now: float = 0.0) -> list[Ticket]:
        """The order in which all who wait are served, each leaving at once."""
        order = []
        granted = self.queue.leave(holder, now)
        while granted:
            (ticket,) = granted
            order.append(ticket)
            granted = self.queue.leave(ticket, now)
        return order


def test_a_free_slot_is_granted_at_once() -> None:
    desk = Desk(capacity=2)
    first, second, third = desk.ask(B, 1.0), desk.ask(F, 2.0), desk.ask(F, 3.0)
    assert (first.granted_at, second.granted_at, third.granted_at) == (1.0, 2.0, None)
    assert list(desk.queue.holders.values()) == [first, second]
    assert desk.queue.waiting == 1


def test_first_come_first_served_inside_a_class() -> None:
    for priority in Priority:
        desk = Desk()
        holder, *waiters = [desk.ask(priority) for _ in range(9)]
        assert desk.served(holder) == waiters


def test_foreground_before_background() -> None:
    desk = Desk()
    holder, b1, f1, b2, f2 = (desk.ask(priority) for priority in (B, B, F, B, F))
    assert desk.served(holder) == [f1, f2, b1, b2]


def test_who_comes_while_others_wait_does_not_overtake() -> None:
    desk = Desk()
    holder, waiter = desk.ask(F), desk.ask(F)
    assert desk.queue.leave(holder, 1.0) == [waiter]
    newcomer = desk.ask(F, 1.0)
    assert newcomer.granted_at is None
    assert desk.queue.leave(waiter, 2.0) == [newcomer]
    assert newcomer.granted_at == 2.0


# Aging


def test_an_aged_background_request_counts_as_foreground_of_that_age() -> None:
    desk = Desk(aging_seconds=60)
    holder = desk.ask(F)
    b1, f1, b2, f2 = desk.ask(B, 1.0), desk.ask(F, 2.0), desk.ask(B, 3.0), desk.ask(F, 4.0)
    assert desk.served(holder, 100.0) == [b1, f1, b2, f2]


@pytest.mark.parametrize(("now", "aged"), [(60.9, False), (61.0, True), (61.1, True)])
def test_aging_begins_at_the_second(now: float, aged: bool) -> None:
    desk = Desk(aging_seconds=60)
    holder, background, foreground = desk.ask(F), desk.ask(B, 1.0), desk.ask(F, 2.0)
    order = desk.served(holder, now)
    assert order == ([background, foreground] if aged else [foreground, background])


def test_an_older_foreground_request_stays_before_an_aged_one() -> None:
    desk = Desk(aging_seconds=60)
    holder, foreground, background = desk.ask(F), desk.ask(F, 1.0), desk.ask(B, 2.0)
    assert desk.served(holder, 500.0) == [foreground, background]


def test_zero_is_never() -> None:
    desk = Desk(aging_seconds=0)
    holder, background, foreground = desk.ask(F), desk.ask(B, 1.0), desk.ask(F, 2.0)
    assert desk.served(holder, 1e9) == [foreground, background]


# A full queue


def test_a_full_queue_turns_away() -> None:
    for priority in Priority:
        desk = Desk(max_waiting=2)
        holder, first, second = (desk.ask(F) for _ in range(3))
        assert desk.full(priority)
        assert desk.served(holder) == [first, second]
        assert desk.lost == []


def test_foreground_takes_the_place_of_the_youngest_background() -> None:
    desk = Desk(max_waiting=3)
    holder, b1, f1, b2 = (desk.ask(priority) for priority in (F, B, F, B))
    assert desk.full(B)
    f2 = desk.ask(F)
    assert desk.lost == [b2]
    assert b2.left
    f3 = desk.ask(F)
    assert desk.lost == [b2, b1]
    assert desk.full(F)
    assert desk.full(B)
    assert desk.served(holder) == [f1, f2, f3]


def test_an_aged_background_request_keeps_its_place() -> None:
    desk = Desk(max_waiting=2, aging_seconds=60)
    holder, old, young = desk.ask(F), desk.ask(B, 0.0), desk.ask(B, 50.0)
    taker = desk.ask(F, 70.0)
    assert desk.lost == [young]
    assert desk.full(F, 70.0)
    assert desk.served(holder, 70.0) == [old, taker]


def test_leaving_after_losing_the_place_does_nothing() -> None:
    desk = Desk(max_waiting=1)
    holder, background, foreground = desk.ask(F), desk.ask(B), desk.ask(F)
    assert desk.lost == [background]
    assert desk.queue.leave(background, 1.0) == []
    assert desk.queue.position(background, 1.0) == 0
    assert desk.served(holder) == [foreground]


def test_no_place_to_wait() -> None:
    desk = Desk(max_waiting=0)
    holder = desk.ask(B)
    assert desk.full(F)
    assert desk.queue.leave(holder, 1.0) == []
    assert desk.ask(F).granted_at == 0.0


# Leaving


def test_leaving_twice_does_nothing() -> None:
    desk = Desk()
    holder, waiter, last = (desk.ask(F) for _ in range(3))
    assert desk.queue.leave(holder, 0.0) == [waiter]
    assert desk.queue.leave(holder, 0.0) == []
    assert list(desk.queue.holders.values()) == [waiter]
    assert desk.queue.waiting == 1
    assert desk.queue.leave(last, 0.0) == []
    assert desk.queue.leave(last, 0.0) == []
    assert desk.queue.waiting == 0


def test_giving_up_anywhere_in_the_line() -> None:
    for gone in range(5):
        desk = Desk()
        holder, *waiters = [desk.ask(F) for _ in range(6)]
        assert desk.queue.leave(waiters[gone], 0.0) == []
        del waiters[gone]
        assert desk.served(holder) == waiters


def test_granted_and_gone_in_the_same_instant() -> None:
    desk = Desk()
    holder, first, second = (desk.ask(F) for _ in range(3))
    assert desk.queue.leave(holder, 1.0) == [first]
    assert desk.queue.leave(first, 1.0) == [second]
    assert desk.queue.leave(second, 1.0) == []
    assert desk.queue.holders == {}


def test_several_slots() -> None:
    desk = Desk(capacity=3)
    holders = [desk.ask(F) for _ in range(3)]
    background, foreground = desk.ask(B), desk.ask(F)
    assert desk.queue.leave(holders[1], 1.0) == [foreground]
    assert desk.queue.leave(holders[0], 1.0) == [background]
    assert desk.queue.leave(holders[2], 1.0) == []
    assert list(desk.queue.holders.values()) == [foreground, background]


# Places


def test_positions() -> None:
    desk = Desk(aging_seconds=60)
    holder = desk.ask(F)
    b1, f1, b2, f2 = desk.ask(B, 0.0), desk.ask(F, 1.0), desk.ask(B, 2.0), desk.ask(F, 3.0)

    def positions(now: float) -> list[int]:
        return [desk.queue.position(ticket, now) for ticket in (holder, b1, f1, b2, f2)]

    assert positions(4.0) == [0, 3, 1, 4, 2]
    assert positions(60.0) == [0, 1, 2, 4, 3]
    assert positions(62.0) == [0, 1, 2, 3, 4]


def test_the_lines_are_in_order_of_arrival() -> None:
    desk = Desk()
    desk.ask(F)
    waiters = [desk.ask(priority) for priority in (B, F, B, F)]
    assert desk.queue.line(F) == [waiters[1], waiters[3]]
    assert desk.queue.line(B) == [waiters[0], waiters[2]]
