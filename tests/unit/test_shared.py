"""The shared gate in a loop, over a real server: both gates by one suite, the library, leases, the client."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

from eidproxy.config import SettingsError, load
from eidproxy.egress import EgressBlocked, EgressPolicy
from eidproxy.errors import Refusal
from eidproxy.gate import Gate, GateTerms, Permit
from eidproxy.gate.address import gate_address
from eidproxy.gate.admission import AdmissionQueue, Ticket
from eidproxy.gate.choice import build_gate
from eidproxy.monitoring.metrics import Metrics
from eidproxy.relay.settle import Settlements
from eidproxy.router.resolver import Resolver
from eidproxy.vocabulary import AfterLeave, Priority, WaitOutcome
from tests.gate.history import Span, judged, replayed
from tests.gate.store import Store, recorded
from tests.lab.cost import Beside
from tests.lab.router import Router
from tests.lab.tools import size as amount

if os.environ.get("CI") != "true":
    pytest.importorskip("redis")

from eidproxy.gate import shared
from eidproxy.gate.store_client import GuardedConnection, StoreClient

LEASE = 1.0
PATIENT = 20.0
"""The lease where none may be lost, however busy the machine is."""


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    """One for all: nothing here does it harm. It is new no more, or its first users would wait for their lease."""
    with Store() as started:

        async def begin() -> None:
            async with gates("redis", started):
                pass

        asyncio.run(begin())
        yield started


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a test that is not about a slow store: no call gives up on a busy machine."""
    monkeypatch.setattr(shared, "CALL_SECONDS", PATIENT / 4)


# --- One suite for both gates, in one loop -----------------------------------------------------------------------

Settings = dict[str, float]


@contextlib.asynccontextmanager
async def gates(kind: str, store: Store, count: int = 1, **settings: Any) -> AsyncIterator[list[Gate]]:
    """Gates that share their slots: one in the process, or some over a store. Their grace is over."""
    given: dict[str, Any] = {"capacity": 1, "max_waiting": 64, "aging_seconds": 60.0, **settings}
    lease = given.pop("lease_seconds", LEASE)
    wait_timeout = given.pop("wait_timeout_seconds", 300.0)
    max_hold = given.pop("max_hold_seconds", 300.0)
    url = None if kind == "local" else store.url
    terms = GateTerms(
        url=url, lease_seconds=lease, wait_timeout_seconds=wait_timeout, max_hold_seconds=max_hold, **given
    )
    if kind == "local":
        local = build_gate(terms, Metrics("test"), lambda error: None)
        yield [local]
        await local.aclose()
        return
    shared = [build_gate(terms, Metrics("test"), lambda error: None) for _ in range(count)]
    try:
        while True:  # a new store waits a lease; what an earlier test left goes
            first = shared[0].acquire(Priority.FOREGROUND)
            with contextlib.suppress(Refusal):
                async with asyncio.timeout(30):
                    await first.granted()
                shared[0].release(first)
                break
        yield list(shared)
    finally:
        for gate in shared:
            await gate.aclose()


both = pytest.mark.parametrize("kind", ["local", "redis"])


def played(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """A test in a loop of its own, where no task and no exception may be left over."""

    async def play(kind: str, store: Store) -> None:
        faults: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
        async with asyncio.timeout(60):
            await test(kind, store)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left
        assert not faults

    def run(kind: str, store: Store) -> None:
        asyncio.run(play(kind, store))

    run.__name__ = test.__name__
    run.__doc__ = test.__doc__
    return both(run)


async def reached(state: Callable[[], object], seconds: float = 30.0) -> None:
    """Until it is so."""
    async with asyncio.timeout(seconds):
        while not state():  # noqa: ASYNC110  # there is no event for what a test wants to see
            await asyncio.sleep(0.001)


async def settled(permits: list[Permit]) -> None:
    """Until all of them know their place in the queue."""
    await reached(lambda: all(permit.queue_position()[0] > 0 for permit in permits))


async def in_order(gate: Gate, permits: list[Permit]) -> list[int]:
    """Serve them one after the other: which had its turn when. Never two at once."""
    turns: asyncio.Queue[int] = asyncio.Queue()

    async def wait(number: int) -> None:
        await permits[number].granted()
        turns.put_nowait(number)

    tasks = [asyncio.create_task(wait(number)) for number in range(len(permits))]
    order = []
    async with asyncio.timeout(10):
        for _ in permits:
            order.append(await turns.get())
            assert turns.empty()
            gate.release(permits[order[-1]])
        await asyncio.gather(*tasks)
    return order


async def refused(permit: Permit) -> str:
    """With which reason it is turned away."""
    async with asyncio.timeout(5):
        with pytest.raises(Refusal) as refusal:
            await permit.granted()
    return refusal.value.reason


def count(gate: Any, priority: Priority, outcome: WaitOutcome) -> int:
    """How many waits ended so, by the gate's metrics."""
    return sum(gate._metrics.gate_wait[priority, outcome].counts)


@played
async def test_classes_and_places(kind: str, store: Store) -> None:
    async with gates(kind, store) as [gate]:
        holder = gate.acquire(Priority.FOREGROUND)
        await holder.granted()
        line = [gate.acquire(priority) for priority in (Priority.BACKGROUND, Priority.FOREGROUND) * 3]
        await settled(line)
        await reached(lambda: [permit.queue_position()[0] for permit in line] == [4, 1, 5, 2, 6, 3])
        assert [waiter.position for waiter in gate.waiters()] == [1, 2, 3, 4, 5, 6]
        states = gate.statistics()
        assert (states.in_use, states.depth) == (1, {Priority.FOREGROUND: 3, Priority.BACKGROUND: 3})
        gate.release(line[1])
        gate.release(line[1])
        gate.release(holder)
        assert await in_order(gate, [line[0], *line[2:]]) == [2, 4, 0, 1, 3]
        states = gate.statistics()
        assert (states.in_use, states.depth) == (0, {Priority.FOREGROUND: 0, Priority.BACKGROUND: 0})
        assert count(gate, Priority.FOREGROUND, WaitOutcome.CANCELLED) == 1
        assert count(gate, Priority.BACKGROUND, WaitOutcome.GRANTED) == 3


@played
async def test_who_has_waited_long_counts_as_foreground(kind: str, store: Store) -> None:
    async with gates(kind, store, aging_seconds=0.3) as [gate]:
        holder = gate.acquire(Priority.FOREGROUND)
        await holder.granted()
        line = [gate.acquire(priority) for priority in (Priority.FOREGROUND, Priority.BACKGROUND)]
        await settled(line)
        await asyncio.sleep(0.35)  # the age itself is what is tested
        line += [gate.acquire(priority) for priority in (Priority.FOREGROUND, Priority.BACKGROUND)]
        await settled(line)
        await reached(lambda: [permit.queue_position()[0] for permit in line[2:]] == [3, 4])
        gate.release(holder)
        assert await in_order(gate, line) == [0, 1, 2, 3]


@played
async def test_a_full_queue(kind: str, store: Store) -> None:
    async with gates(kind, store, max_waiting=2) as [gate]:
        holder = gate.acquire(Priority.FOREGROUND)
        await holder.granted()
        line = [gate.acquire(Priority.BACKGROUND) for _ in range(2)]
        await settled(line)
        for displaced in reversed(line):
            newcomer = gate.acquire(Priority.FOREGROUND)
            assert await refused(displaced) == "gate_queue_full"
            await settled([newcomer])
        for priority in Priority:
            with pytest.raises(Refusal) as full:
                await gate.acquire(priority).granted()
            assert full.value.reason == "gate_queue_full"
        assert count(gate, Priority.BACKGROUND, WaitOutcome.FULL) == 3
        assert gate.statistics().depth == {Priority.FOREGROUND: 2, Priority.BACKGROUND: 0}


@played
async def test_clocks(kind: str, store: Store) -> None:
    async with gates(kind, store, wait_timeout_seconds=0.3, max_hold_seconds=0.8) as [gate]:
        holder = gate.acquire(Priority.FOREGROUND)
        await holder.granted()
        lost: list[str] = []
        holder.on_revoked = lost.append
        waiter = gate.acquire(Priority.FOREGROUND)
        assert (holder.is_held(), waiter.is_held()) == (True, False)
        assert await refused(waiter) == "gate_wait_timeout"
        await reached(lambda: lost)
        assert not holder.is_held()
        assert lost == ["internal_error"]
        successor = gate.acquire(Priority.BACKGROUND)
        await successor.granted()
        gate.release(holder)
        assert gate.statistics().in_use == 1


@played
async def test_draining(kind: str, store: Store) -> None:
    async with gates(kind, store) as [gate]:
        holder = gate.acquire(Priority.FOREGROUND)
        await holder.granted()
        line = [gate.acquire(priority) for priority in Priority]
        await settled(line)
        line.append(gate.acquire(Priority.FOREGROUND))
        gate.drain()
        assert [await refused(permit) for permit in line] == ["draining"] * 3
        with pytest.raises(Refusal):
            gate.acquire(Priority.FOREGROUND)
        assert gate.statistics().in_use == 1
        gate.release(holder)


@played
async def test_a_slot_that_settles_outlives_its_lease(kind: str, store: Store) -> None:
    """It is renewed for a caller that has left, shown as settling, and goes on when it was kept for so long."""
    async with gates(kind, store, 2) as shared:
        gate, other = shared[0], shared[-1]
        settlements = Settlements(gate, Metrics("test"), AfterLeave.SETTLE, LEASE * 2.5)
        holder = gate.acquire(Priority.FOREGROUND)
        await holder.granted()
        lost: list[str] = []
        holder.on_revoked = lost.append
        closed: list[float] = []
        clock = asyncio.get_running_loop().time
        assert settlements.keep(holder, lambda: closed.append(clock()), 300.0) is not None
        assert len(closed) == 1
        assert ([one.settling for one in gate.holders()], gate.statistics().settling) == ([True], 1)
        waiter = other.acquire(Priority.FOREGROUND)
        gone = other.acquire(Priority.FOREGROUND)
        await settled([waiter, gone])
        other.release(gone)
        await waiter.granted()
        assert clock() - closed[0] >= LEASE * 2.5 - 0.01
        assert lost == []
        assert gate.statistics().settling == 0
        other.release(waiter)


@played
async def test_a_slot_that_settles_is_released_by_a_drain(kind: str, store: Store) -> None:
    async with gates(kind, store, 2) as shared:
        gate, other = shared[0], shared[-1]
        settlements = Settlements(gate, Metrics("test"), AfterLeave.FIRST_EVENT, 300.0)
        holder = gate.acquire(Priority.FOREGROUND)
        await holder.granted()
        settlements.keep(holder, lambda: None, 300.0)
        waiter = other.acquire(Priority.FOREGROUND)
        await settled([waiter])
        if kind == "redis":  # a drain of the one gate would turn its own waiter away
            gate.drain()
        settlements.drain()
        await waiter.granted()
        assert gate.statistics().in_use == (gate is other)
        other.release(waiter)


@played
async def test_a_slot_that_settles_and_is_taken_away(kind: str, store: Store) -> None:
    """By the watchdog here: the router is closed, and the slot is not given back a second time."""
    async with gates(kind, store, max_hold_seconds=0.5) as [gate]:
        settlements = Settlements(gate, Metrics("test"), AfterLeave.FIRST_EVENT, 300.0)
        holder = gate.acquire(Priority.FOREGROUND)
        await holder.granted()
        closed: list[bool] = []
        settlements.keep(holder, lambda: closed.append(True), 300.0)
        waiter = gate.acquire(Priority.FOREGROUND)
        await waiter.granted()
        assert closed == [True]
        assert settlements.running == set()
        assert gate.statistics().in_use == 1
        gate.release(waiter)


@pytest.mark.parametrize("capacity", [1, 3])
@both
def test_storm(kind: str, capacity: int, store: Store, seed: int, patient: None) -> None:
    """Callers that leave at any moment: never more than there are slots, nothing left behind, nobody forgotten."""
    choose = random.Random(seed)
    held: set[int] = set()
    most = stayed = served = 0

    async def caller(gate: Gate, number: int) -> None:
        nonlocal most, stayed, served
        await asyncio.sleep(choose.random())
        permit = gate.acquire(choose.choice(list(Priority)))
        permit.on_revoked = lambda _reason: held.discard(number)
        give_up = choose.choice([None, None, 0, choose.random() * 0.01, choose.random()])
        try:
            async with asyncio.timeout(give_up):
                await permit.granted()
                held.add(number)
                most, served, stayed = max(most, len(held)), served + 1, stayed + (give_up is None)
                await asyncio.sleep(choose.choice([0, 0, 0.001, 0.003]))
        except TimeoutError:
            pass
        held.discard(number)
        gate.release(permit)

    async def storm() -> None:
        async with gates(kind, store, 3, capacity=capacity, max_waiting=1000, lease_seconds=PATIENT) as shared:
            async with asyncio.timeout(120):
                await asyncio.gather(*(caller(choose.choice(shared), number) for number in range(600)))
                last = [shared[0].acquire(Priority.BACKGROUND) for _ in range(capacity)]
                for permit in last:
                    await permit.granted()
            assert shared[0].statistics().in_use == capacity

    asyncio.run(storm())
    assert 1 <= most <= capacity
    # Whoever does not give up is served, and some of the others are.
    assert 180 < stayed < served


# --- The library against the discipline it repeats ---------------------------------------------------------------


def test_the_library_decides_as_admission_does(store: Store, seed: int, patient: None) -> None:
    """The same operations on both: the same grants, refusals, displacements and places."""
    choose = random.Random(seed)
    store.command("SELECT", "0")
    with recorded(store) as record:
        asyncio.run(_compared(choose, store))
    assert replayed(record.taken(), capacity=2, lease=PATIENT, aging=0) == []


async def _compared(choose: random.Random, store: Store) -> None:
    async with gates("redis", store, 3, capacity=2, max_waiting=5, aging_seconds=0.0, lease_seconds=PATIENT) as shared:
        queue = AdmissionQueue(2, 5, 0)
        pairs: list[tuple[Ticket, Any, Any]] = []
        for _ in range(amount(400, 20_000)):
            if choose.random() < 0.55 or not pairs:
                gate, priority = choose.choice(shared), choose.choice(list(Priority))
                ticket, displaced = queue.request(priority, 0)
                permit = gate.acquire(priority)
                if ticket is None:
                    assert await refused(permit) == "gate_queue_full"
                else:
                    pairs.append((ticket, gate, permit))
                    await reached(lambda permit=permit: permit.number)  # type: ignore[misc]
                if displaced is not None:
                    [gone] = [pair for pair in pairs if pair[0] is displaced]
                    pairs.remove(gone)
                    assert await refused(gone[2]) == "gate_queue_full"
            else:
                ticket, gate, permit = pairs.pop(choose.randrange(len(pairs)))
                queue.leave(ticket, 0)
                gate.release(permit)
                await reached(lambda gate=gate: not gate._releases)  # type: ignore[misc]
            await _agree(queue, pairs)


async def _agree(queue: AdmissionQueue, pairs: list[tuple[Ticket, Any, Any]]) -> None:
    def agreed() -> bool:
        for _, gate, _ in pairs:
            gate._next_full_renewal_at = 0  # places are told every third of a lease; look now
            gate._schedule_round(0)
        return all(
            (permit.granted_at is None) is (ticket.granted_at is None)
            and permit.queue_position()[0] == queue.position(ticket, 0)
            for ticket, _, permit in pairs
        )

    await reached(agreed)


# --- Leases, and what happens without them -----------------------------------------------------------------------


@pytest.mark.parametrize("fenced", [True, False])
def test_renewals_that_do_not_arrive(store: Store, fenced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A holder whose renewals are lost stops before anybody else begins. Control: without its fence it does not."""

    async def two() -> list[Span]:
        async with gates("redis", store, 2) as (one, other):
            first = one.acquire(Priority.FOREGROUND)
            await first.granted()
            second = other.acquire(Priority.FOREGROUND)
            began = time.monotonic()
            ended: list[float] = []
            first.on_revoked = lambda _reason: ended.append(time.monotonic())
            client = one._client  # type: ignore[attr-defined]
            call = client.call

            def lossy(function: str, *rest: str | int) -> Any:
                return call("enter", "", "") if function == "renew" else call(function, *rest)

            monkeypatch.setattr(client, "call", lossy)
            monkeypatch.setattr(one, "_on_renewed", lambda _permits, _done: None)
            async with asyncio.timeout(LEASE * 3):
                await second.granted()
            second_began = time.monotonic()
            one.release(first)
            other.release(second)
            return [Span(0, began, (ended or [time.monotonic()])[0]), Span(1, second_began, time.monotonic())]

    if not fenced:
        monkeypatch.setattr("eidproxy.gate.shared.HOLD_SHARE", 1e6)
    violations, _ = judged(asyncio.run(two()), [], LEASE)
    assert bool(violations) is not fenced


def test_a_grant_reaches_its_waiter(store: Store) -> None:
    """From `leave` at one replica to the slot at another."""

    async def handovers() -> list[float]:
        took = []
        async with gates("redis", store, 2) as (one, other):
            permit = one.acquire(Priority.FOREGROUND)
            await permit.granted()
            for _ in range(amount(300, 3000)):
                successor = other.acquire(Priority.FOREGROUND)
                await settled([successor])
                began = time.perf_counter()
                one.release(permit)
                await successor.granted()
                took.append((time.perf_counter() - began) * 1e3)
                one, other, permit = other, one, successor
            one.release(permit)
        return sorted(took)

    with Beside() as beside:
        took = asyncio.run(handovers())
    p50, p99 = took[len(took) // 2], took[int(len(took) * 0.99)]
    print(f"EIDPROXY a grant reaches its waiter: p50 {p50:.2f} ms, p99 {p99:.2f} ms, max {took[-1]:.2f} ms")
    assert p99 < beside.allow(0.02) * 1e3


def test_a_woken_waiter_believes_only_the_server(store: Store) -> None:
    """A message that says `granted` and is not true, or is late, gives nothing."""

    async def misled() -> None:
        async with gates("redis", store, 2) as (one, other):
            first = one.acquire(Priority.FOREGROUND)
            await first.granted()
            second = other.acquire(Priority.FOREGROUND)
            await settled([second])
            for _ in range(5):
                store.command("PUBLISH", f"eidproxy:gate:{second.id.partition(':')[0]}", f"granted {second.id}")  # type: ignore[attr-defined]
                await asyncio.sleep(0.02)
            assert second.queue_position()[0] == 1
            one.release(first)
            await second.granted()
            other.release(second)

    asyncio.run(misled())


def test_asking_again_begins_the_lease_anew(store: Store) -> None:
    """The answer to a call that was sent twice is counted from the second time, so the server must do the same."""

    async def twice() -> None:
        async with gates("redis", store) as [gate]:
            permits = [gate.acquire(Priority.FOREGROUND) for _ in range(2)]
            await permits[0].granted()
            await settled(permits[1:])
            for permit, line in zip(permits, ("holders", "leases"), strict=True):
                ends = []
                for _ in range(2):
                    await gate._client.call("enter", permit.id, "foreground").reply  # type: ignore[attr-defined]
                    ends.append(float(store.command("ZSCORE", f"eidproxy:{{gate}}:{line}", permit.id)))  # type: ignore[attr-defined]
                assert ends[0] < ends[1]
            await reached(lambda: permits[1].queue_position()[0] == 1)
            for permit in reversed(permits):
                gate.release(permit)

    asyncio.run(twice())


@pytest.mark.parametrize("key", ["leases", "tickets"])
def test_a_key_is_gone(store: Store, key: str) -> None:
    """Deleted by hand, or evicted, with half of what it knows of those who waited and are dead: nobody else suffers."""

    async def lose() -> None:
        async with gates("redis", store, 3) as (one, other, dead):
            holder = one.acquire(Priority.FOREGROUND)
            await holder.granted()
            await settled([dead.acquire(priority) for priority in Priority])
            await _die(dead)
            store.command("DEL", f"eidproxy:{{gate}}:{key}")
            one.release(holder)
            await reached(lambda: not one._releases, 0.25)  # type: ignore[attr-defined]
            permit = other.acquire(Priority.BACKGROUND)
            async with asyncio.timeout(LEASE):
                await permit.granted()
            other.release(permit)

    asyncio.run(lose())


def test_the_holders_are_gone(store: Store) -> None:
    """The slot goes on at once; who had it hears so with his next renewal, and keeps it if nobody waited."""

    async def lose() -> None:
        async with gates("redis", store, 2) as (one, other):
            holder = one.acquire(Priority.FOREGROUND)
            await holder.granted()
            lost: list[str] = []
            holder.on_revoked = lost.append
            store.command("DEL", "eidproxy:{gate}:holders")
            await reached(lambda: store.command("ZCARD", "eidproxy:{gate}:holders"), LEASE)
            successor = other.acquire(Priority.FOREGROUND)
            await settled([successor])
            assert not lost
            store.command("DEL", "eidproxy:{gate}:holders")
            await reached(lambda: successor.queue_position()[0] == 0 and lost, LEASE)
            other.release(successor)

    asyncio.run(lose())


async def _die(gate: Any) -> None:
    """Nothing is heard of it any more."""
    gate._round_timer.cancel()
    gate._schedule_round = lambda _seconds: None
    await gate._client.aclose()


def test_the_connection_is_closed_before_the_slot_is_given_back(store: Store) -> None:
    """Also when the client is about to send other things in the very turn in which a slot is lost."""

    async def lose() -> list[str]:
        order: list[str] = []
        async with gates("redis", store) as [gate]:
            permit: Any = gate.acquire(Priority.FOREGROUND)
            await permit.granted()
            loop, client = asyncio.get_running_loop(), gate._client  # type: ignore[attr-defined]
            send = client._round_trip

            async def sending(connection: Any, batch: list[Any]) -> Any:
                order.extend(call.function for call in batch if call.function == "leave")
                return await send(connection, batch)

            client._round_trip = sending
            # What a transport does when it is aborted.
            permit.on_revoked = lambda _reason: loop.call_soon(order.append, "closed")
            loop.call_soon(gate._end_lost, permit)  # type: ignore[attr-defined]
            await client.call("enter", "", "").reply
            await reached(lambda: not gate._releases)  # type: ignore[attr-defined]
        return order

    assert asyncio.run(lose()) == ["closed", "leave"]


def test_a_caller_that_leaves_while_the_link_connects(store: Store) -> None:
    """Nothing is taken in the store for him: no ghost holds the slot until its lease ends."""

    async def leave() -> None:
        async with gates("redis", store) as [gate]:
            client = gate._client  # type: ignore[attr-defined]
            await client._close_connection()
            store.signal(signal.SIGSTOP)  # it accepts, and does not greet
            try:
                permit = gate.acquire(Priority.FOREGROUND)
                await reached(lambda: client._connection is not None)
                gate.release(permit)
            finally:
                store.signal(signal.SIGCONT)
            assert await gate.available()
            assert store.command("HLEN", "eidproxy:{gate}:tickets") == 0

    asyncio.run(leave())


def test_a_call_that_was_given_up_does_not_arrive_later() -> None:
    """The client hangs up so that its kernel forgets what the store has not taken."""

    def store(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(5)
            verbs: list[bytes] = []
            while b"FCALL" not in verbs:
                verbs = re.findall(rb"\*\d+\r\n\$\d+\r\n(\w+)", connection.recv(10_000))
                for verb in verbs:
                    connection.sendall({b"INFO": b"$10\r\nrun_id:xyz\r\n", b"FCALL": b""}.get(verb, b"+OK\r\n"))
            with pytest.raises(ConnectionResetError):
                connection.recv(10_000)

    async def give_up(listener: socket.socket) -> None:
        address = gate_address(f"redis://127.0.0.1:{listener.getsockname()[1]}")
        client = StoreClient(address, address.egress, (1, 1, 1, 1), call_seconds=0.2, on_call_end=lambda *_: None)
        silent = asyncio.create_task(asyncio.to_thread(store, listener))
        with pytest.raises(TimeoutError):
            await client.call("enter", "", "").reply
        await silent
        await client.aclose()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        asyncio.run(give_up(listener))


# --- Where it may lead -------------------------------------------------------------------------------------------


def test_url() -> None:
    address = gate_address("rediss://user:p%40ss@Store.internal:6380/3")
    assert (address.host, address.port, address.database) == ("store.internal", 6380, 3)
    assert (address.username, address.password, address.secure) == ("user", "p@ss", True)
    assert "ss" not in repr(address).replace("gate.address.GateAddress", "").replace("class", "")
    address = gate_address("unix://:secret@/run/store.sock?db=2")
    assert (address.path, address.password, address.database) == ("/run/store.sock", "secret", 2)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:6379", "redis://", "redis://:6379", "redis://127.0.0.1:0", "redis://127.0.0.1:99999",
        "redis://127.0.0.1:6379/x", "redis://127.0.0.1/0?timeout=1", "redis://127.0.0.1/0?db=1", "redis://127.1",
        "redis://0x7f000001", "redis://8.8.8.8", "redis://169.254.169.254", "redis://[::ffff:127.0.0.1]",
        "redis://[fd00:ec2::254]", "redis://100.100.100.200", "redis://127.0.0.1#x", "unix://host/socket",
        "unix://", "rediss://127.0.0.1?ssl_cert_reqs=none", "rediss://127.0.0.1?ssl_ca_certs=/nowhere",
        "redis://127.0.0.1:", "redis://\uff2cocalhost",
    ],
)  # fmt: skip
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load(None, {"LLM_ROUTER_URL": "http://127.0.0.1:4000", "EIDPROXY_GATE_URL": url}, {})
    [fault] = refused.value.faults
    assert fault.startswith("gate.url: ")
    assert url not in fault


@pytest.mark.parametrize(
    "answer",
    [
        ["169.254.169.254"], ["8.8.8.8"], ["127.0.0.1", "8.8.8.8"], ["::ffff:127.0.0.1"], ["fd00:ec2::254"],
        ["0.0.0.0"], [],
    ],
)  # fmt: skip
def test_names_are_judged_at_each_connect(answer: list[str]) -> None:
    async def connect(lookup: Callable[[str, int], list[str]], port: int) -> None:
        address = gate_address(f"redis://store.internal:{port}")
        connection = GuardedConnection(address, EgressPolicy(), Resolver(lookup), None)
        try:
            async with asyncio.timeout(5):
                await connection.connect()
        finally:
            await connection.disconnect(nowait=True)

    with Router() as listener:
        with pytest.raises(EgressBlocked):
            asyncio.run(connect(lambda _host, _port: answer, listener.port))
        assert listener.connections == 0
