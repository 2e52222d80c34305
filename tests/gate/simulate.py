"""How a shared gate grows: 10, 100, 1 000 replicas before one slot, simulated with costs that are measured first.

    python -m tests.gate.simulate

First the costs of the library's calls are measured on a real server, with as many waiting as the simulation needs.
Then requests, leases, rounds and messages are played on a virtual clock: one server that does one thing at a time,
replicas that act as gate/shared.py does. The table says what a request costs and how long a grant is on its way.
"""

from __future__ import annotations

import heapq
import itertools
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from eidproxy.gate.store_client import _KEYS, _read_library
from tests.gate.store import Store, Wire

LEASE = 15.0
POLL = 0.5
ROUND = LEASE / 3
WIRE = 0.0001
"""One way between two hosts of a local network, in seconds."""
REPLICA = 0.0002
"""What a replica takes to read an answer and act on it."""


@dataclass(frozen=True)
class Costs:
    """Seconds of the server's only thread, and bytes of its memory."""

    enter: float
    leave: float
    renew: float
    ticket: float
    """Each further ticket in one renewal."""
    message: float
    """Each subscriber that a message goes to."""
    waiter_bytes: float


def measured() -> Costs:
    """The costs on this machine, by the server's own account (INFO commandstats)."""
    text, name = _read_library()
    with Store() as store, Wire("127.0.0.1", store.port) as wire:
        wire.call("FUNCTION", "LOAD", text)
        run = next(line[7:] for line in wire.call("INFO", "server").splitlines() if line.startswith("run_id:"))

        def call(function: str, *arguments: str, lease: float = 600) -> None:
            settings = (run, str(int(lease * 1e6)), "1", "100000", "0")
            wire.call("FCALL", f"{name}_{function}", str(len(_KEYS)), *_KEYS, *settings, *arguments)

        def cost(function: str, calls: list[tuple[str, ...]]) -> float:
            wire.call("CONFIG", "RESETSTAT")
            for arguments in calls:
                call(function, *arguments)
            told = wire.call("INFO", "commandstats").splitlines()
            found = next(line for line in told if line.startswith("cmdstat_fcall:"))
            return int(found.partition("usec=")[2].partition(",")[0]) / 1e6 / len(calls)

        call("enter", "", "", lease=0.1)
        time.sleep(0.2)  # a new store grants nothing for a lease
        before = _used(wire)
        enter = cost("enter", [(f"r:{n}", "foreground" if n % 2 else "background") for n in range(1000)])
        waiter_bytes = (_used(wire) - before) / 1000
        tickets = [word for n in range(500, 564) for word in (f"r:{n}", "foreground", "1", "0")]
        renew = cost("renew", [tuple(tickets[:4])] * 300)
        many = cost("renew", [tuple(tickets)] * 100)
        leave = cost("leave", [(f"r:{n}", "0") for n in range(400)])
        subscribers = [Wire("127.0.0.1", store.port) for _ in range(200)]
        for each in subscribers:
            each.call("SUBSCRIBE", "x")
        began = time.perf_counter()
        for _ in range(50):
            wire.call("PUBLISH", "x", "moved")
        message = (time.perf_counter() - began) / 50 / 200
        for each in subscribers:
            each.close()
    return Costs(enter, leave, renew, (many - renew) / 63, message, waiter_bytes)


def _used(wire: Wire) -> int:
    return int(next(line[12:] for line in wire.call("INFO", "memory").splitlines() if line.startswith("used_memory:")))


@dataclass
class Figures:
    """What a simulated day of work brought."""

    served: int
    calls: int
    messages: int
    grants: list[float]
    busy: float
    """Share of the server's thread."""
    seconds: float


def simulated(replicas: int, costs: Costs, *, hold: float, waiting: int, seconds: float, seed: int) -> Figures:
    """Keep `waiting` requests in the queue, spread over the replicas, and serve them one after the other."""
    choose = random.Random(seed)
    events: list[tuple[float, int, Callable[[float], None]]] = []
    number = itertools.count()
    queue: list[int] = []
    mine = [0] * replicas
    free_at = busy = 0.0
    calls = messages = served = 0
    grants: list[float] = []

    def at(when: float, what: Callable[[float], None]) -> None:
        heapq.heappush(events, (when, next(number), what))

    def served_by_store(now: float, cost: float, then: Callable[[float], None]) -> None:
        """One call: over the wire, through the one thread, and back."""
        nonlocal free_at, busy, calls
        calls += 1
        begin = max(now + WIRE, free_at)
        free_at = begin + cost
        busy += cost
        at(free_at, then)

    def arrive(now: float) -> None:
        replica = choose.randrange(replicas)

        def entered(_: float) -> None:
            queue.append(replica)
            mine[replica] += 1

        served_by_store(now, costs.enter, entered)

    def leave(now: float) -> None:
        nonlocal served, messages, free_at, busy
        served += 1
        arrive(now)
        left_at = now

        def left(then: float) -> None:
            nonlocal messages, free_at, busy
            if not queue:
                at(then + 0.001, left)
                return
            replica = queue.pop(0)
            mine[replica] -= 1
            # To the owner; and, as if every caller were told its place, to every replica where somebody waits, which
            # then asks for the places.
            followers = [other for other in range(replicas) if mine[other]]
            messages += 1 + len(followers)
            free_at += costs.message * (1 + len(followers))
            busy += costs.message * (1 + len(followers))
            for other in followers:
                at(then + WIRE + REPLICA, lambda when, other=other: ask(when, mine[other]))  # type: ignore[misc]

            def woken(when: float) -> None:
                served_by_store(when, costs.renew, lambda answered: held(answered + WIRE + REPLICA))

            at(then + WIRE + REPLICA, woken)

        def held(when: float) -> None:
            grants.append(when - left_at)
            at(when + choose.expovariate(1 / hold), leave)

        served_by_store(now, costs.leave, left)

    def ask(now: float, tickets: int) -> None:
        served_by_store(now, costs.renew + costs.ticket * max(tickets - 1, 0), lambda _: None)

    def rounds(replica: int, whole_at: float) -> Callable[[float], None]:
        def play(now: float) -> None:
            whole = now >= whole_at
            ask(now, mine[replica] if whole else min(mine[replica], 2))
            pause = POLL if mine[replica] else ROUND
            at(now + pause, rounds(replica, now + ROUND if whole else whole_at))

        return play

    for replica in range(replicas):
        at(choose.random() * ROUND, rounds(replica, 0.0))
    for _ in range(waiting):
        arrive(choose.random())
    at(1.0, leave)
    now = 0.0
    while events and now < seconds:
        now, _, what = heapq.heappop(events)
        what(now)
    return Figures(served, calls, messages, sorted(grants), busy / now, now)


def main() -> None:
    costs = measured()
    print(
        f"measured: enter {costs.enter * 1e6:.0f} µs, leave {costs.leave * 1e6:.0f} µs, "
        f"renew {costs.renew * 1e6:.0f} µs + {costs.ticket * 1e6:.1f} µs a ticket, "
        f"message {costs.message * 1e6:.1f} µs a subscriber, {costs.waiter_bytes:.0f} bytes a waiter"
    )
    print("| replicas | waiting | hold | calls/request | calls/s | messages/request | store busy | grant p50 | p99 |")
    print("|---|---|---|---|---|---|---|---|---|")
    for replicas in (10, 100, 1000):
        for waiting, hold in ((64, 8.0), (64, 0.5), (1000, 8.0)):
            seconds = max(hold * 300, 120.0)
            seen = simulated(replicas, costs, hold=hold, waiting=waiting, seconds=seconds, seed=1)
            p50, p99 = statistics.median(seen.grants), seen.grants[int(len(seen.grants) * 0.99)]
            row = f"| {replicas} | {waiting} | {hold} s "
            print(
                f"{row}| {seen.calls / seen.served:.0f} | {seen.calls / seen.seconds:.0f} "
                f"| {seen.messages / seen.served:.0f} | {seen.busy:.2%} | {p50 * 1e3:.2f} ms | {p99 * 1e3:.2f} ms |"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
