"""What grows with how many: `python -m tests.bench.growth`.

One event at 10 to 3,000 streams, at the same number of events a second; one request beside 0 to 10,000 connections that
are open and ask nothing; one step of the gate at 10 to 10,000 waiters. All should stay where they are.
"""

from __future__ import annotations

import asyncio
import math
import random
import resource
import socket
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager

import uvloop

from eidproxy.gate.admission import AdmissionQueue, Ticket
from eidproxy.gate.local import LocalGate
from eidproxy.monitoring.metrics import Metrics
from eidproxy.vocabulary import Priority
from tests.bench.__main__ import Peer, Scenario, measure, peers, started
from tests.lab.tools import free_port

EVENTS_PER_SECOND = 3000
STREAMS = (10, 100, 1000, 3000)
SHORT_SECONDS, LONG_SECONDS = 4, 12
CONNECTIONS = (0, 1000, 10_000)
DESCRIPTORS = 65_536
"""The proxy takes as many connections as half its descriptors allow."""
WAITERS = (10, 1000, 10_000)
STEPS = 2000


def streams(rounds: int) -> None:
    """CPU and latency of an event by the number of streams it is one of.

    An event's cost is the difference of two runs, a long one and a short one, over the events that one has more: what a
    request costs is in both.
    """
    print(f"\none event, {EVENTS_PER_SECOND:,} events a second in all\n")
    print("| streams | CPU µs/event | event p50 µs | p99 µs | RSS MiB | failed |\n|---|---|---|---|---|---|")
    with ExitStack() as stack:
        peer = _proxy(stack)
        runs: dict[int, list[dict[str, float]]] = {number: [] for number in STREAMS}
        for _ in range(rounds):
            for number in STREAMS:
                runs[number].append(_event_cost(peer, number))
        for number, results in runs.items():
            figures = [_median(results, name) for name in _FIGURES]
            print(f"| {number:,} | {figures[0]:.1f} | " + " | ".join(f"{figure:,.0f}" for figure in figures[1:]) + " |")


_CPU = "cpu_us_per_stream"
_FIGURES = ("cpu_us_per_event", "event_p50", "event_p99", "rss_mib", "failed")


def _median(results: list[dict[str, float]], name: str) -> float:
    """The median of the runs that have the figure: one that broke off has none, and counts as failed."""
    return statistics.median([result[name] for result in results if name in result] or [math.nan])


def _proxy(stack: ExitStack) -> Peer:
    router = free_port()
    stack.enter_context(started([sys.executable, "-m", "tests.bench.router", str(router)], 1, router))
    (peer,) = peers(stack, router, ["eidproxy"])
    return peer


def _event_cost(peer: Peer, number: int) -> dict[str, float]:
    per_second = EVENTS_PER_SECOND / number
    short, long = (
        measure(peer, Scenario("", number, number, round(seconds * per_second), round(1e6 / per_second)))
        for seconds in (SHORT_SECONDS, LONG_SECONDS)
    )
    more = long.get(_CPU, math.nan) - short.get(_CPU, math.nan)
    failed = short["failed"] + long["failed"]
    return {**long, "cpu_us_per_event": more / ((LONG_SECONDS - SHORT_SECONDS) * per_second), "failed": failed}


def connections(rounds: int) -> None:
    """CPU of a request by the number of connections that are open beside it."""
    print("\none request of two events, eight at a time\n")
    print("| open connections | CPU µs/request | first event p50 µs | failed | still open |\n|---|---|---|---|---|")
    descriptors = _raise_descriptors()
    possible = [number for number in CONNECTIONS if 2 * number <= descriptors]
    with ExitStack() as stack:
        peer = _proxy(stack)
        measure(peer, Scenario("warm up", 4, 20, 16, 0))
        runs: dict[int, list[dict[str, float]]] = {number: [] for number in possible}
        for _ in range(rounds):
            for number in possible:
                runs[number].append(uvloop.run(_request_cost(peer, number)))
        for number, results in runs.items():
            cpu, first, failed, still_open = (
                _median(results, name) for name in (_CPU, "first_p50", "failed", "still_open")
            )
            print(f"| {number:,} | {cpu:.1f} | {first:,.0f} | {failed:,.0f} | {still_open:,.0f} |", flush=True)


def _raise_descriptors() -> int:
    """Raise the limit of descriptors, which the proxy inherits, as far as may be, and return it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
    except (OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        return hard
    return DESCRIPTORS


async def _request_cost(peer: Peer, number: int) -> dict[str, float]:
    async with _idle(peer.port, number) as still_open:
        result = await asyncio.to_thread(measure, peer, Scenario("", 8, 2000, 2, 0))
        return {**result, "still_open": still_open()}


@asynccontextmanager
async def _idle(port: int, number: int) -> AsyncIterator[Callable[[], int]]:
    """Open connections that asked once and wait; yields a count of those that are still open."""
    loop = asyncio.get_running_loop()
    socks = []
    try:
        for _ in range(number):
            sock = socket.socket()
            socks.append(sock)
            sock.setblocking(False)
            await loop.sock_connect(sock, ("127.0.0.1", port))
            await loop.sock_sendall(sock, b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        for sock in socks:
            await loop.sock_recv(sock, 4096)
        yield lambda: sum(not _is_closed(sock) for sock in socks)
    finally:
        for sock in socks:
            sock.close()


def _is_closed(sock: socket.socket) -> bool:
    try:
        return not sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True


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
    print("one step of the gate, µs\n")
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
        gate = LocalGate(AdmissionQueue(1, number, 60), metrics, 300.0, 305.0)
        for _ in range(number + 1):
            gate.acquire(random.choice(list(Priority)))
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
    uvloop.run(waiters())
    streams(rounds=3)
    connections(rounds=3)
