"""local: what a relay, the metrics and the operator's views get of the gate in the process."""

from __future__ import annotations

import asyncio

import pytest

from eidproxy.errors import Refusal
from eidproxy.gate import Holder, Waiter
from eidproxy.gate.admission import AdmissionQueue
from eidproxy.gate.local import LocalGate
from eidproxy.monitoring.metrics import Metrics
from eidproxy.vocabulary import Priority, WaitOutcome
from tests.lab.loops import played_virtually

F, B = Priority.FOREGROUND, Priority.BACKGROUND


def new_gate(capacity: int = 1, max_waiting: int = 2) -> LocalGate:
    return LocalGate(AdmissionQueue(capacity, max_waiting, 60.0), Metrics("test"), 300.0, 305.0)


@played_virtually
async def test_what_the_operator_sees() -> None:
    gate = new_gate()
    first, later, sooner = gate.acquire(F), gate.acquire(B), gate.acquire(F)
    first.settling = True
    await asyncio.sleep(3.0)
    assert gate.holders() == [Holder(F, 3.0, settling=True)]
    assert gate.waiters() == [Waiter(F, 1, 3.0), Waiter(B, 2, 3.0)]
    assert (first.queue_position(), sooner.queue_position(), later.queue_position()) == (
        (0, None),
        (1, None),
        (2, None),
    )
    statistics = gate.statistics()
    assert (statistics.slots, statistics.in_use, statistics.settling, statistics.queue_limit) == (1, 1, 1, 2)
    assert statistics.depth == {F: 1, B: 1}
    assert statistics.oldest_wait_seconds == {F: 3.0, B: 3.0}
    gate.release(first)
    await sooner.granted()
    assert (sooner.is_held(), later.is_held()) == (True, False)
    assert gate.statistics().mean_hold_seconds == 3.0
    assert later.queue_position() == (1, 3.0)
    assert await gate.available()


@played_virtually
async def test_who_watches_is_told_once_a_tick() -> None:
    gate, told = new_gate(max_waiting=10), list[int]()
    first = gate.acquire(F)
    gate.acquire(B, lambda: told.append(1))
    others = [gate.acquire(F) for _ in range(3)]
    await asyncio.sleep(0)
    assert told == [1]
    for other in others:
        gate.release(other)
    await asyncio.sleep(0)
    assert told == [1, 1]
    gate.release(first)
    await asyncio.sleep(0)
    assert told == [1, 1], "who has a slot has no place that could change"


@played_virtually
async def test_leaving_twice_gives_back_once() -> None:
    gate = new_gate()
    first, second, third = gate.acquire(F), gate.acquire(F), gate.acquire(F)
    gate.release(first)
    gate.release(first)
    await second.granted()
    assert not third.is_held()


@played_virtually
async def test_a_full_gate_says_when_to_come_back() -> None:
    gate = new_gate(max_waiting=0)
    first = gate.acquire(F)
    with pytest.raises(Refusal, match="gate_queue_full") as caught:
        gate.acquire(F)
    assert caught.value.retry_seconds is None
    await asyncio.sleep(8.0)
    gate.release(first)
    gate.acquire(F)
    with pytest.raises(Refusal, match="gate_queue_full") as caught:
        gate.acquire(F)
    assert caught.value.retry_seconds == 8.0


@played_virtually
async def test_a_slot_that_is_held_too_long_is_taken_back_and_its_holder_told() -> None:
    gate, lost = new_gate(), list[str]()
    first = gate.acquire(F)
    first.on_revoked = lost.append
    await asyncio.sleep(10.0)
    second = gate.acquire(F)
    await second.granted()
    assert lost == ["internal_error"]
    assert not first.is_held()
    assert gate._metrics.forced_releases.value == 1
    assert gate._metrics.gate_hold[F].sum == pytest.approx(305.0)


@played_virtually
async def test_waits_are_counted_by_how_they_ended() -> None:
    gate = new_gate(max_waiting=1)
    first = gate.acquire(F)
    expired = gate.acquire(F)
    await asyncio.sleep(300.0)
    with pytest.raises(Refusal, match="gate_wait_timeout"):
        await expired.granted()
    gate.release(gate.acquire(F))
    displaced = gate.acquire(B)
    gate.acquire(F)
    with pytest.raises(Refusal, match="gate_queue_full"):
        await displaced.granted()
    gate.drain()
    with pytest.raises(Refusal, match="draining"):
        gate.acquire(F)
    gate.release(first)
    counts = {key: sum(series.counts) for key, series in gate._metrics.gate_wait.items() if sum(series.counts)}
    assert counts == {
        (F, WaitOutcome.GRANTED): 1,
        (F, WaitOutcome.EXPIRED): 1,
        (F, WaitOutcome.CANCELLED): 1,
        (B, WaitOutcome.FULL): 1,
        (F, WaitOutcome.DRAINING): 2,
    }
