"""What grows with how many: `python -m tests.bench.growth`.

One event at 10 to 3,000 streams, at the same number of events a second; one step of the gate at 10 to 10,000 waiters.
Both should stay where they are.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack

import uvloop

from eidproxy.gate.admission import AdmissionQueue, Ticket
from eidproxy.gate.local import LocalGate
from eidproxy.monitoring.metrics import Metrics
from eidproxy.vocabulary import Priority
from tests.bench.__main__ import Scenario, measure, peers, started
from tests.lab.tools import free_port

EVENTS_PER_SECOND = 3000
STREAMS = (10, 100, 1000, 3000)
WAITERS = (10, 1000, 10_000)
STEPS = 2000


def streams(rounds: int) -> None:
    """CPU and latency of an event by the number of streams it is one of."""
    print(f"one event, {EVENTS_PER_SECOND:,} events a second in all\n")
    print("| streams | CPU µs/event | event p50 µs | p99 µs | RSS MiB | failed |\n|---|---|---|---|---|---|")
    with ExitStack() as stack:
        router = free_port()
        stack.enter_context(started([sys.executable, "-m", "tests.bench.router", str(router)], 1, router))
        (peer,) = peers(stack, router, ["eidproxy"])
        for number in STREAMS:
            events = max(6 * EVENTS_PER_SECOND // number, 4)
            scenario = Scenario("", number, number, events, number * 1_000_000 // EVENTS_PER_SECOND)
            runs = [measure(peer, scenario) for _ in range(rounds)]
            figures = [statistics.median(run.get(name, 0) for run in runs) for name in _FIGURES]
            print(f"| {number:,} | " + " | ".join(f"{figure:,.0f}" for figure in figures) + " |", flush=True)


_FIGURES = ("cpu_us_per_event", "event_p50", "event_p99", "rss_mib", "failed")


def _microseconds(step: Callable[[], object]) -> float:
    """The median of a step's duration."""
    took = []
    for _ in range(STEPS):
        began = time.perf_counter_ns()
        step()
        took.append(time.perf_counter_ns() - began)
    return statistics.median(took) / 1000


def _filled(waiters: int) -> tuple[AdmissionQueue, list[Ticket]]:
    queue = AdmissionQueue(1, waiters + STEPS, 60)
    random.seed(7)
    tickets = []
    for number in range(waiters + 1):
        ticket, _ = queue.request(random.choice(list(Priority)), number * 0.01)
        assert ticket is not None
        tickets.append(ticket)
    return queue, tickets


async def waiters() -> None:
    """One step of the gate by the number of those who wait."""
    print("\none step of the gate, µs\n")
    print("| waiters | arrive and cancel | grant the next | position | statistics | scrape of /metrics |")
    print("|---|---|---|---|---|---|")
    for number in WAITERS:
        queue, tickets = _filled(number)
        now = number * 0.01

        def cancel(queue: AdmissionQueue = queue, now: float = now) -> None:
            ticket, _ = queue.request(random.choice(list(Priority)), now)
            assert ticket is not None
            queue.leave(ticket, now)

        def grant(queue: AdmissionQueue = queue, now: float = now) -> None:
            (holder,) = queue.holders.values()
            queue.request(Priority.BACKGROUND, now)  # so that as many wait afterwards
            queue.leave(holder, now)

        def position(queue: AdmissionQueue = queue, tickets: list[Ticket] = tickets, now: float = now) -> None:
            queue.position(random.choice(tickets), now)

        figures = [_microseconds(cancel), _microseconds(position)]
        figures.insert(1, _microseconds(grant))
        metrics = Metrics("bench")
        gate = LocalGate(_filled(number)[0], metrics, 300.0, 305.0)
        metrics.queue_states = gate.statistics
        figures.append(_microseconds(gate.statistics))
        scrapes = []
        for _ in range(10):
            began = time.perf_counter_ns()
            metrics.expose("")
            scrapes.append((time.perf_counter_ns() - began) / 1000)
        figures.append(statistics.median(scrapes))
        print(f"| {number:,} | " + " | ".join(f"{figure:,.1f}" for figure in figures) + " |", flush=True)


if __name__ == "__main__":
    streams(rounds=3)
    uvloop.run(waiters())
