"""Random schedules of faults over three real replicas, one real store and one scripted router.

    python -m tests.gate.schedules --seed 1 --count 40              # as any user: no partitions
    unshare -n python -m tests.gate.schedules --seed 1 --count 40   # as root: with partitions by nft
    … --control                                                     # replicas that ignore their leases

Prints one JSON line: what was done, what was seen, and every violation with the schedule it happened in.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.gate.history import Pause, Span, judged, replayed
from tests.gate.store import Store, recorded
from tests.lab.client import CHAT, RawClient, chat, request_bytes
from tests.lab.proxy import Proxy
from tests.lab.router import Received, Router
from tests.lab.script import Step, stream
from tests.lab.tools import until

LEASE = 1.0
REPLICAS = 3

UNFENCED = """
from eidproxy.gate import shared, shared_permit
shared.HOLD_SHARE = 1e6
lose = shared.RedisGate._end_lost
shared.RedisGate._end_lost = lambda gate, permit: lose(gate, permit) if permit.granted_at is None else None
shared_permit.RedisPermit.is_held = lambda permit: True
"""
"""The control: a replica that goes on whether it could renew or not, and whatever the server says of its lease."""

FAULTS = ("kill", "pause", "store_restart", "store_restart_with_data", "flush", "store_pause", "leave")
PARTITIONS = ("partition", "delay")


class Replica(Proxy):
    """One eidproxy, with its leases or (the control) without."""

    def __init__(self, router: Router, store: Store, number: int, *, fenced: bool) -> None:
        host = store.hosts[1 + number] if len(store.hosts) > 1 else store.hosts[0]
        super().__init__(
            router,
            planted=None if fenced else UNFENCED,
            EIDPROXY_GATE_URL=f"redis://{host}:{store.port}/0",
            EIDPROXY_GATE_LEASE_SECONDS=LEASE,
            EIDPROXY_GATE_AGING_SECONDS=0,
            EIDPROXY_SERVER_DRAIN_SECONDS=0,
            EIDPROXY_STREAM_DEADLINE_SECONDS=20,
        )
        self.number = number
        self.gate_host = host


@dataclass
class Seen:
    """What one run of schedules brought."""

    schedules: int = 0
    requests: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    inferences: int = 0
    documented: int = 0
    """Overlaps of the kind that is not promised away: the replica stood still."""
    violations: list[str] = field(default_factory=list)
    let_go_seconds: list[float] = field(default_factory=list)
    """From SIGCONT to the first answer of the replica, when it had let go of what was no longer its own."""
    takeover_seconds: list[float] = field(default_factory=list)
    """From a fault that took a holder to the next inference, where somebody waited."""


class Cell:
    """Three replicas, a store and a router."""

    def __init__(self, seed: int, *, partitions: bool, fenced: bool) -> None:
        self.choose = random.Random(seed)
        self.partitions = partitions
        self.fenced = fenced
        # Without leases only what ends one shows; the rest is left out of the control.
        self.kinds = (FAULTS if fenced else ("store_pause",)) + PARTITIONS * partitions
        self.seen = Seen()
        self.pauses: list[Pause] = []
        self.names = 0
        self.holds: dict[str, float] = {}
        self.replicas: list[Replica] = []

    def run(self, count: int) -> Seen:
        hosts = [f"127.0.0.{1 + number}" for number in range(1 + REPLICAS)]
        durable = bool(self.choose.getrandbits(1))
        with (
            Store(durable=durable, hosts=hosts) as self.store,
            Router(script=self._script) as self.router,
            contextlib.ExitStack() as self.stack,
            recorded(self.store) as self.record,
        ):
            for number in range(REPLICAS):
                self.replicas.append(self._start(number))
            for _ in range(count):
                self._schedule()
            self._judge_store()
        return self.seen

    def _start(self, number: int) -> Replica:
        return self.stack.enter_context(Replica(self.router, self.store, number, fenced=self.fenced))

    def _script(self, request: Received) -> list[Step]:
        seconds = self.holds[request.json["messages"][0]["content"]]
        pieces = max(int(seconds / 0.05), 1)
        return stream(["x"] * pieces, interval=seconds / pieces)

    # One schedule

    def _schedule(self) -> None:
        choose = self.choose
        self.seen.schedules += 1
        first = len(self.router.requests)
        paused_before = len(self.pauses)
        faults = [choose.choice(self.kinds) for _ in range(choose.choice((1, 1, 2)))]
        names = [self._name(long=not number and choose.random() < 0.7) for number in range(choose.randint(3, 6))]
        callers = [
            threading.Thread(target=self._call, args=(name, choose.random() * 0.8 if number else 0))
            for number, name in enumerate(names)
        ]
        for caller in callers:
            caller.start()
        time.sleep(0.05 + choose.random() * 0.8)
        for fault in faults:
            self.seen.faults[fault] += 1
            getattr(self, f"_{fault}")()
            time.sleep(choose.random() * 0.3)
        for caller in callers:
            caller.join(30)
            assert not caller.is_alive(), "a caller got no answer"
        until(lambda: self.router.concurrent == 0, 10, "the router is at rest")
        inferences = [
            Span(int(name.partition(" ")[0]), request.at, request.ended_at or time.monotonic(), name)
            for request in self.router.requests[first:]
            for name in [request.json["messages"][0]["content"]]
        ]
        self.seen.inferences += len(inferences)
        violations, documented = judged(inferences, self.pauses[paused_before:], LEASE)
        self.seen.documented += documented
        self.seen.violations += [f"schedule {self.seen.schedules} {faults}: {text}" for text in violations]

    def _name(self, *, long: bool) -> str:
        self.names += 1
        name = f"{self.choose.randrange(REPLICAS)} request {self.names}"
        self.holds[name] = LEASE * 3 if long else self.choose.choice((0.02, 0.05, 0.1, 0.3))
        return name

    def _call(self, name: str, delay: float) -> None:
        time.sleep(delay)
        self.seen.requests += 1
        replica = self.replicas[int(name.partition(" ")[0])]
        headers = {"X-Eid-Priority": "background" if self.names % 2 else "foreground"}
        outcome = "connection"
        with contextlib.suppress(OSError, EOFError), RawClient(replica, timeout=20) as client:
            client.send(request_bytes("POST", CHAT, chat(say=name), headers))
            status, _ = client.read_head()
            body = client.read_body()
            outcome = str(status)
            if status == 200 and b"[DONE]" not in body:
                outcome = "cut"
        self.seen.outcomes[outcome] += 1

    # Faults

    def _any(self) -> Replica:
        """One of them, more likely the one that holds."""
        live = [request for request in self.router.requests if request.ended_at is None]
        if live and self.choose.random() < 0.7:
            return self.replicas[int(live[-1].json["messages"][0]["content"].partition(" ")[0])]
        return self.choose.choice(self.replicas)

    def _kill(self) -> None:
        replica = self._any()
        held = any(
            request.ended_at is None and request.json["messages"][0]["content"].startswith(f"{replica.number} ")
            for request in self.router.requests[-20:]
        )
        killed_at, posts = time.monotonic(), self.router.posts
        replica.kill()
        replica.wait()
        if held and self._somebody_waits(replica):
            with contextlib.suppress(AssertionError):
                until(lambda: self.router.posts > posts, LEASE + 5)
                self.seen.takeover_seconds.append(self.router.requests[posts].at - killed_at)
        self.replicas[replica.number] = self._start(replica.number)

    def _somebody_waits(self, gone: Replica) -> bool:
        with contextlib.suppress(OSError, EOFError):
            return any(other.status()["gate"]["waiting"] for other in self.replicas if other is not gone)
        return False

    def _pause(self) -> None:
        replica, seconds = self._any(), LEASE * self.choose.uniform(0.3, 2.2)
        stopped = time.monotonic()
        replica.signal(signal.SIGSTOP)
        time.sleep(seconds)
        continued = time.monotonic()
        replica.signal(signal.SIGCONT)
        replica.get("/healthz")
        self.router.look()
        self.pauses.append(Pause(replica.number, stopped, continued, time.monotonic()))
        self.seen.let_go_seconds.append(time.monotonic() - continued)

    def _leave(self) -> None:
        """A clean end of one replica, as in a rolling restart."""
        replica = self._any()
        replica.terminate()
        replica.wait(15)
        self.replicas[replica.number] = self._start(replica.number)

    def _store_restart(self) -> None:
        self.store.stop()
        time.sleep(self.choose.random() * 0.8)
        self.store.forget()
        self.store.start()

    def _store_restart_with_data(self) -> None:
        self.store.stop()
        time.sleep(self.choose.random() * 0.8)
        self.store.start()

    def _flush(self) -> None:
        self.store.command("FLUSHALL")

    def _store_pause(self) -> None:
        self.store.signal(signal.SIGSTOP)
        time.sleep(LEASE * self.choose.uniform(0.1, 1.5))
        self.store.signal(signal.SIGCONT)

    def _partition(self) -> None:
        with self._cut_off(self._any()):
            time.sleep(LEASE * self.choose.uniform(0.8, 2.0))

    def _delay(self) -> None:
        with self._cut_off(self._any()):
            time.sleep(LEASE * self.choose.uniform(0.1, 0.6))

    @contextlib.contextmanager
    def _cut_off(self, replica: Replica) -> Iterator[None]:
        """Nothing passes between one replica and the store, and nobody is told."""
        port = self.store.port
        _nft("add table inet cell")
        _nft("add chain inet cell output { type filter hook output priority 0 ; }")
        _nft(f"add rule inet cell output ip daddr {replica.gate_host} tcp dport {port} drop")
        _nft(f"add rule inet cell output ip saddr {replica.gate_host} tcp sport {port} drop")
        try:
            yield
        finally:
            _nft("delete table inet cell")

    def _judge_store(self) -> None:
        faults = replayed(self.record.taken(), capacity=1, lease=LEASE, aging=0)
        self.seen.violations += [f"store: {fault}" for fault in faults]


def _nft(words: str) -> None:
    subprocess.run([shutil.which("nft") or "/usr/sbin/nft", words], check=True)


def alone() -> bool:
    """Whether this is a network namespace of our own, where packets may be dropped."""
    return os.geteuid() == 0 and [name for _, name in socket.if_nameindex()] == ["lo"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--control", action="store_true")
    parser.add_argument("--only", help="one kind of fault")
    options = parser.parse_args()
    if alone():
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    cell = Cell(options.seed, partitions=alone(), fenced=not options.control)
    cell.kinds = (options.only,) if options.only else cell.kinds
    seen = cell.run(options.count)
    print(json.dumps(as_json(seen)))


def as_json(seen: Seen) -> dict[str, Any]:
    """The figures of a run."""
    return {
        "schedules": seen.schedules,
        "requests": seen.requests,
        "inferences": seen.inferences,
        "outcomes": dict(seen.outcomes),
        "faults": dict(seen.faults),
        "documented_overlaps": seen.documented,
        "pauses": len(seen.let_go_seconds),
        "let_go_max_seconds": round(max(seen.let_go_seconds, default=0.0), 3),
        "takeovers": len(seen.takeover_seconds),
        "takeover_max_seconds": round(max(seen.takeover_seconds, default=0.0), 3),
        "violations": seen.violations,
    }


if __name__ == "__main__":
    main()
