"""Callers that leave while the connection to the router is slow. As root, in a network namespace of its own:

    unshare -n python -m tests.slow_connects --seed 1 --count 300
    unshare -n python -m tests.slow_connects --seed 1 --count 0 --stock     # the control

The kernel drops SYNs to the router in windows of 0 to 1 s and repeats each after 1 s, so that a connect takes no time
or seconds. Prints one JSON line: what was seen. Fails when eidproxy keeps anything back.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import operator
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.gate.schedules import alone
from tests.lab.callers import nothing_left
from tests.lab.client import CHAT, Dialled, RawClient, ask, chat, request_bytes
from tests.lab.cost import Beside
from tests.lab.crowd import LEAVING, crowd, departs, free_after, script
from tests.lab.proxy import Proxy
from tests.lab.router import Received, Router
from tests.lab.script import Step, stream
from tests.lab.stock import Stock
from tests.lab.tools import until

HONEST = "honest"
HANDOVERS = 100
ROUNDS = 40
RULES = """
add table inet slow
add set inet slow asked {{ type inet_service; size 65535; flags dynamic; }}
add set inet slow dropped {{ type inet_service; size 65535; flags dynamic; }}
add chain inet slow door
add chain inet slow input {{ type filter hook input priority 0; }}
add rule inet slow input tcp dport {port} tcp flags & (syn | ack) == syn add @asked {{ tcp sport }} jump door
"""

EACH_ITS_OWN: dict[str, Any] = {"EIDPROXY_ROUTER_KEEP_IDLE_SECONDS": 0}
"""Every request connects: it is the connects that are slow here."""


class Door:
    """The way to the router's port. While it is shut, connects are neither made nor refused."""

    def __init__(self, router: Router) -> None:
        self.router = router
        _nft(RULES.format(port=router.port))

    def shut(self) -> None:
        """Drop each SYN from now on."""
        _nft("add rule inet slow door add @dropped { tcp sport } drop")

    def open(self) -> None:
        """Let them pass: the next try of a connect succeeds."""
        _nft("flush chain inet slow door")

    @contextlib.contextmanager
    def moody(self, choose: random.Random) -> Iterator[None]:
        """Shut for 0 to 1 s, open for 0 to 0.5 s, in turn. Left shut: whoever knocks then would go on knocking."""
        enough = threading.Event()

        def turn() -> None:
            while not enough.is_set():
                self.shut()
                enough.wait(choose.random())
                self.open()
                enough.wait(choose.random() / 2)
            self.shut()

        turning = threading.Thread(target=turn)
        turning.start()
        try:
            yield
        finally:
            enough.set()
            turning.join()

    def knocking(self) -> set[str]:
        """The connects under way now: the near end of each socket in SYN-SENT towards the router."""
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        port = f":{self.router.port:04X}"
        return {near for _, near, far, state, *_ in rows if state == "02" and far.endswith(port)}

    def seen(self) -> tuple[int, int, int]:
        """How many connects were begun, how many of them were slow, and how many were given up before they were made.

        A port that the kernel used twice counts once, so the last figure is the least there can have been.
        """
        begun, slow = (
            len(json.loads(_nft(f"list set inet slow {name}"))["nftables"][-1]["set"].get("elem", []))
            for name in ("asked", "dropped")
        )
        return begun, slow, begun - self.router.connections


def _nft(words: str) -> str:
    command = [shutil.which("nft") or "/usr/sbin/nft", "-j", words]
    return subprocess.run(command, text=True, check=True, stdout=subprocess.PIPE).stdout


def served(where: Dialled) -> float | None:
    """Seconds until an honest caller had its whole answer; None when it got none."""
    began = time.monotonic()
    with contextlib.suppress(OSError, EOFError):
        answer = ask(where, "POST", CHAT, chat(say=HONEST), timeout=30)
        if answer.status == 200 and answer.told().done:
            return time.monotonic() - began
    return None


def asking(where: Dialled, model: str = "daily") -> RawClient:
    """A caller that has asked."""
    client = RawClient(where)
    client.send(request_bytes("POST", CHAT, chat(model)))
    return client


def one_after_another(door: Door, where: Dialled, choose: random.Random) -> float | None:
    """The holder, whose connect is slow, and those behind it leave, some at the moment at which their turn comes.

    Seconds until an honest caller that comes next is served; None when it is not.
    """
    door.shut()
    callers = [asking(where)]
    with contextlib.suppress(AssertionError):  # who does not even try to connect serves nobody either
        until(door.knocking, 1)
    callers += [asking(where) for _ in range(7)]
    for caller in callers:
        time.sleep(choose.random() * 0.002)
        caller.rst()
    door.open()
    return served(where)


def handed_on(door: Door, proxy: Proxy, way: str) -> float:
    """Seconds from the leaving of a holder whose connect is slow to the connect of the next one."""
    with asking(proxy) as holder:
        first = until(door.knocking)
        with asking(proxy) as waiter:
            until(lambda: len(proxy.status()["gate"]["waiting"]) == 1)
            began = time.monotonic()
            departs(way, holder)
            while not (second := door.knocking()) or second & first:
                assert time.monotonic() - began < 30, "the slot is not given on"
                time.sleep(0.0005)
            took = time.monotonic() - began
            waiter.rst()
    until(lambda: not door.knocking())
    return took


def as_it_is_made(door: Door, where: Dialled, choose: random.Random, count: int) -> int:
    """So many callers leave when their connects are repeated, after 1 s, and succeed: before, at and after that moment.

    How many connects were made.
    """
    router, before = door.router, door.router.connections
    door.shut()
    callers = [(time.monotonic() + 1 + choose.uniform(-0.05, 0.1), asking(where, "deep")) for _ in range(count)]
    until(lambda: len(door.knocking()) == count)
    door.open()
    for leaves_at, caller in sorted(callers, key=operator.itemgetter(0)):
        time.sleep(max(leaves_at - time.monotonic(), 0))
        caller.rst()
    until(lambda: not door.knocking() and not router.open_sockets)
    return router.connections - before


def eidproxy(count: int, seed: int) -> dict[str, Any]:
    """A crowd, then single callers whose connects are slow."""
    choose, seen = random.Random(seed), random.Random(seed)

    def answer(request: Received) -> list[Step]:
        honest = request.json["messages"][0]["content"] == HONEST
        return stream() if honest else script(seen)

    with (
        Router(script=answer) as router,
        Proxy(router, EIDPROXY_GATE_MAX_WAITING=500, EIDPROXY_STREAM_DEADLINE_SECONDS=20, **EACH_ITS_OWN) as proxy,
        Beside() as beside,
    ):
        door = Door(router)
        assert served(proxy) is not None
        proxy.metrics()
        files = proxy.fds()
        assert isinstance(proxy.address, tuple)
        began = time.monotonic()
        with door.moody(choose):
            tally = crowd(proxy.address, count, seed, at_once=20, deep=0.5)
        took = time.monotonic() - began
        until(lambda: not door.knocking(), what="no connect goes on once all have left")
        begun, slow, given_up = door.seen()
        door.open()
        after = served(proxy)
        nothing_left(router, proxy, files)
        outcomes = collections.Counter(line["reason"] for line in proxy.log() if line["event"] == "request")
        delays = free_after(router, tally)
        door.shut()
        delays += [handed_on(door, proxy, LEAVING[number % len(LEAVING)]) for number in range(HANDOVERS)]
        rounds = [one_after_another(door, proxy, choose) for _ in range(ROUNDS)]
        made = as_it_is_made(door, proxy, choose, 100)
        nothing_left(router, proxy, files)
    return {
        "departures": count,
        "seconds": round(took, 1),
        "connects": begun,
        "slow": slow,
        "left_in_a_slow_connect": given_up,
        "served_after_the_crowd_seconds": after,
        "outcomes": dict(outcomes.most_common(6)),
        "free_after_seconds": sorted(delays),
        "late_seconds": beside.allow(0),
        "made_as_the_caller_left_of_100": made,
        "stuck": rounds.count(None),
        "served_after_a_round_seconds": max(each or 0 for each in rounds),
    }


def stock(count: int, seed: int) -> dict[str, Any]:
    """The same callers before a proxy whose gate is an httpx pool of one connection, until it is stuck."""
    choose = random.Random(seed)
    # Every answer ends by itself, so that what stays behind is not one that goes on for a caller who has left.
    with Router(script=stream()) as router, Stock(router, pool=1) as proxy:
        door = Door(router)
        assert served(proxy) is not None
        with door.moody(choose):
            crowd(proxy.address, count, seed, at_once=20, deep=0.5)
        door.open()
        rounds = [served(proxy)]
        while rounds[-1] is not None and len(rounds) <= ROUNDS * 5:
            rounds.append(one_after_another(door, proxy, choose))
        # Nobody connects and nobody is answered any more, and still nobody is served.
        until(lambda: not door.knocking() and not router.concurrent)
        rounds += [served(proxy) for _ in range(2)]
    return {"rounds": len(rounds) - 2, "stuck": rounds.count(None)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--stock", action="store_true")
    options = parser.parse_args()
    assert alone(), "needs a network namespace of its own: packets are dropped"
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    print(json.dumps((stock if options.stock else eidproxy)(options.count, options.seed)))


if __name__ == "__main__":
    main()
