"""The shared gate from outside: real servers, real replicas, the scripted router as the judge."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.gate.history import Pause, Span, judged, overlaps, replayed
from tests.gate.store import Store, recorded
from tests.lab.callers import check_error_event, check_refusal
from tests.lab.client import CHAT, Answer, RawClient, ask, chat, request_bytes
from tests.lab.cost import Beside
from tests.lab.proxy import Proxy
from tests.lab.router import Router
from tests.lab.script import stream
from tests.lab.tls import self_signed
from tests.lab.tools import ROOT, free_port, need, until
from tests.lab.tools import size as amount
from tests.promises import test_gate_outside

if os.environ.get("CI") != "true":
    pytest.importorskip("redis")

# The suite of the gate from outside is collected here once more: its proxies get a shared gate (see `_shared`).
globals().update({name: value for name, value in vars(test_gate_outside).items() if name.startswith("test_")})
line = test_gate_outside.line

GO = "go"
LEASE = 2.0
PATIENT: dict[str, Any] = {
    "EIDPROXY_GATE_LEASE_SECONDS": 30,
    "planted": "from eidproxy.gate import shared; shared.CALL_SECONDS = 7\n",
}
"""Where no lease may be lost and no answer of the store be given up, however busy the machine is."""


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    """One for all tests that do it no harm. It is new no more, or its first users would wait for their lease."""
    with Store() as started:
        with Router() as router, replicas(router, started, 1):
            pass
        yield started


@pytest.fixture
def own_store() -> Iterator[Store]:
    """One for a test that harms it."""
    with Store() as started:
        yield started


@pytest.fixture(autouse=True)
def _shared(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The imported tests start their proxies with a shared gate."""

    class Shared(Proxy):
        def __init__(self, router: Router, **settings: Any) -> None:
            given: dict[str, Any] = {**PATIENT, "EIDPROXY_GATE_LEASE_SECONDS": 3 * LEASE, **settings}
            super().__init__(router, EIDPROXY_GATE_URL=store.url, **given)

    monkeypatch.setattr(test_gate_outside, "Proxy", Shared)
    # The mean of all holds outlives the replicas; each test measures its own.
    store.command("HDEL", "eidproxy:{gate}:state", "mean_hold")


def replica(router: Router, store: Store, **settings: object) -> Proxy:
    """One eidproxy with the shared gate."""
    given: dict[str, Any] = {"EIDPROXY_GATE_URL": store.url, "EIDPROXY_GATE_LEASE_SECONDS": LEASE, **settings}
    return Proxy(router, **given)


@contextlib.contextmanager
def replicas(router: Router, store: Store, count: int, **settings: object) -> Iterator[list[Proxy]]:
    """Some of them; they serve when this returns."""
    with contextlib.ExitStack() as stack:
        started = [stack.enter_context(replica(router, store, **settings)) for _ in range(count)]
        until(lambda: all(each.get("/readyz").status == 200 for each in started))
        grace_over(started[0])
        yield started


def grace_over(proxy: Proxy) -> None:
    """Wait out the start of a new store: a first request of `daily` is served."""
    assert ask(proxy, "POST", CHAT, chat(stream=False), timeout=LEASE + 30).status in (200, 503)


_posted: list[RawClient] = []


@pytest.fixture(autouse=True)
def _hang_up() -> Iterator[None]:
    """Callers whose answer no test reads."""
    yield
    while _posted:
        _posted.pop().close()


def post(proxy: Proxy, name: str = "x", priority: str = "foreground") -> RawClient:
    """Send a request and do not wait for its answer."""
    client = RawClient(proxy, timeout=120)
    _posted.append(client)
    client.send(request_bytes("POST", CHAT, chat(say=name), {"X-Eid-Priority": priority}))
    return client


def answer_of(client: RawClient) -> Answer:
    """Its whole answer."""
    with client:
        status, headers = client.read_head()
        return Answer(status, headers, client.read_body(), client.clean)


def spans(router: Router, replica: Callable[[int], int] = lambda _: 0) -> list[Span]:
    """What was at the router, when, and whose it was, by its number in the order of arrival.

    A caller may have the end of his answer before the router has noted that it ended, so this waits for it.
    """
    router.wait_for(lambda: router.concurrent == 0)
    found = []
    for number, request in enumerate(router.requests):
        assert request.ended_at is not None
        found.append(Span(replica(number), request.at, request.ended_at, str(number)))
    return found


# --- Three replicas ----------------------------------------------------------------------------------------------


def test_three_replicas(router: Router, store: Store, seed: int) -> None:
    """600 mixed requests: never two at the router, one order for all replicas."""
    choose = random.Random(seed)
    with replicas(router, store, 1):
        pass  # what an earlier test left has gone
    settings = {"EIDPROXY_GATE_MAX_WAITING": 1000, "EIDPROXY_GATE_AGING_SECONDS": 0, **PATIENT}
    with replicas(router, store, 3, **settings) as started:
        router.reset()
        router.script = lambda _: stream(["a", "b"], interval=choose.choice([0, 0.002]))
        with recorded(store) as record:
            clients = [
                post(choose.choice(started), str(number), choose.choice(["foreground", "background"]))
                for number in range(600)
            ]
            for client in clients:
                assert answer_of(client).told().done
        assert (router.posts, router.max_concurrent) == (600, 1)
        inferences = spans(router)
        assert overlaps(inferences) == []
        assert replayed(record.taken(), capacity=1, lease=PATIENT["EIDPROXY_GATE_LEASE_SECONDS"], aging=0) == []
        grants = [words for _, words in record.taken() if words[0] == "HSET" and words[1].endswith(":tickets")]
        assert sum(not words[3].endswith(" 0") for words in grants) >= 600
        handovers = sorted((second.began - first.ended) * 1e3 for first, second in itertools.pairwise(inferences))
        p50, p99 = statistics.median(handovers), handovers[int(len(handovers) * 0.99)]
        print(f"EIDPROXY from the end of one inference to the next POST: p50 {p50:.2f} ms, p99 {p99:.2f} ms")
        # The next one is told. Who had to look by himself would look once in half a second.
        assert p50 < 250
        for each in started:
            assert each.metric("eidproxy_gate_lease_lost_total") == 0
            assert each.metric("eidproxy_gate_forced_releases_total") == 0


def test_order_across_replicas(router: Router, store: Store) -> None:
    """First come first served, FOREGROUND first, whoever they came to."""
    with replicas(router, store, 3) as started:
        router.reset()
        router.script = stream(gate=GO)
        clients = [post(started[0], "holder")]
        router.wait_for(lambda: router.waiting(GO) == 1)
        in_line(store, 0)
        wanted: dict[str, list[str]] = {"foreground": [], "background": []}
        for number in range(30):
            priority = "background" if number % 3 == 0 else "foreground"
            name = f"{priority} {number}"
            clients.append(post(started[number % 3], name, priority))
            # The store has it: who comes next, elsewhere, comes later.
            in_line(store, number + 1)
            wanted[priority].append(name)
        until(lambda: sorted(p for each in started for p in positions(each)) == list(range(1, 31)))
        router.release(GO)
        for client in clients:
            assert answer_of(client).told().done
        said = [request.json["messages"][0]["content"] for request in router.requests]
        assert said == ["holder", *wanted["foreground"], *wanted["background"]]
        assert router.max_concurrent == 1


def positions(proxy: Proxy) -> list[int]:
    """The places of those who wait at one replica. Who is still on the way to the store is told as the next."""
    return [each["position"] for each in proxy.status()["gate"]["waiting"]]


def in_line(store: Store, count: int) -> None:
    """Wait until so many have a place in the store."""
    until(lambda: store.command("ZCARD", "eidproxy:{gate}:leases") == count, what=f"{count} in line")


def test_displaced_at_another_replica(router: Router, store: Store) -> None:
    with replicas(router, store, 2, EIDPROXY_GATE_MAX_WAITING=1) as (one, two):
        router.script = stream(gate=GO)
        holder = post(one)
        router.wait_for(lambda: router.waiting(GO) == 1)
        displaced = post(one, "b", "background")
        in_line(store, 1)
        newcomer = post(two, "f")
        check_refusal(answer_of(displaced), 503, "gate_queue_full")
        check_refusal(ask(two, "POST", CHAT, chat()), 503, "gate_queue_full")
        router.release(GO)
        assert answer_of(holder).told().done
        assert answer_of(newcomer).told().done


def test_a_replica_that_leaves_cleanly_frees_at_once(router: Router, store: Store) -> None:
    with replicas(router, store, 1):
        pass  # what an earlier test left has gone
    with replica(router, store, EIDPROXY_GATE_LEASE_SECONDS=30, EIDPROXY_SERVER_DRAIN_SECONDS=0) as one:
        router.reset()
        router.script = stream(gate=GO)
        with replica(router, store, EIDPROXY_GATE_LEASE_SECONDS=30) as two:
            holder = post(one)
            router.wait_for(lambda: router.waiting(GO) == 1)
            for _ in range(3):
                post(one)
            until(lambda: positions(one) == [1, 2, 3])
            behind = post(two)
            until(lambda: positions(two) == [4])
            one.terminate()
            began = time.monotonic()
            check_error_event(answer_of(holder), 503, "draining")
            router.wait_for(lambda: router.posts == 2)
            print(f"EIDPROXY the slot of a replica that leaves is taken over after {time.monotonic() - began:.3f} s")
            assert one.wait() == 0
            router.release(GO)
            assert answer_of(behind).told().done
            assert router.max_concurrent == 1


# --- A replica dies, stands still --------------------------------------------------------------------------------


def test_killed(router: Router, store: Store) -> None:
    """kill -9: its slot and its places are free after the lease."""
    with replicas(router, store, 2) as (one, two):
        router.reset()
        router.script = stream(gate=GO)
        post(one)
        router.wait_for(lambda: router.waiting(GO) == 1)
        post(one)
        in_line(store, 1)
        behind = post(two)
        until(lambda: positions(two) == [2])
        with Beside() as beside:
            one.kill()
            killed_at = time.monotonic()
            router.wait_for(lambda: router.posts == 2)
            took = time.monotonic() - killed_at
        print(f"EIDPROXY taken over {took:.2f} s after a kill -9, the lease is {LEASE} s")
        assert took <= beside.allow(LEASE + 1)
        router.release(GO)
        assert answer_of(behind).told().done
        assert router.max_concurrent == 1


def test_standing_still(router: Router, store: Store) -> None:
    """SIGSTOP beyond the lease, the case that is not promised: it overlaps, and ends at once when it moves again."""
    with replicas(router, store, 2) as (one, two):
        router.reset()
        router.script = stream(gate=GO)
        first = post(one)
        router.wait_for(lambda: router.waiting(GO) == 1)
        second = post(two)
        in_line(store, 1)
        stopped_at = time.monotonic()
        one.signal(signal.SIGSTOP)
        router.wait_for(lambda: router.posts == 2)
        assert router.concurrent == 2, "a process that stands still cannot close its socket"
        continued_at = time.monotonic()
        one.signal(signal.SIGCONT)
        router.wait_for(lambda: router.concurrent == 1)
        print(f"EIDPROXY it let go {(time.monotonic() - continued_at) * 1e3:.0f} ms after SIGCONT")
        assert one.get("/healthz").status == 200
        pause = Pause(0, stopped_at, continued_at, time.monotonic())
        check_error_event(answer_of(first), 503, "gate_unavailable")
        assert one.metric("eidproxy_gate_lease_lost_total") == 1
        router.release(GO)
        assert answer_of(second).told().done
        inferences = spans(router, lambda number: number)
        assert judged(inferences, [pause], LEASE) == ([], 1)
        for no_excuse, why in {
            replace(pause, replica=1): "overlap for",
            replace(pause, continued=inferences[0].began): "came after the pause",
            replace(pause, stopped=inferences[1].began): "cannot have ended yet",
            replace(pause, moved=continued_at): "did not let go",
        }.items():
            [violation], documented = judged(inferences, [no_excuse], LEASE)
            assert documented == 0
            assert why in violation


# It stands still at one chosen moment, by its own hand. Each is a line that puts `halt()` there.
MOMENTS = {
    "the grant is read": "before(RedisGate, '_apply', lambda gate, permit, sent_at, state, *_: state == b'holds')",
    "the grant is believed": "after(RedisGate, '_begin_hold')",
    "the connect begins": "after(Relay, '_on_granted')",
    "the connect is made": "after(Exchange, 'connection_made')",
    "the request is about to be sent": "before(Relay, '_send')",
}

HALTING = """
import os, signal, sys
from eidproxy.gate.shared import RedisGate
from eidproxy.gate.shared_permit import RedisPermit
from eidproxy.relay.relay import Relay
from eidproxy.router.exchange import Exchange

def halt(condition, arguments):
    if os.path.exists({armed!r}) and condition(*arguments):
        os.unlink({armed!r})
        os.kill(os.getpid(), signal.SIGSTOP)

def before(owner, name, condition=lambda *_: True):
    real = getattr(owner, name)
    setattr(owner, name, lambda *arguments: (halt(condition, arguments), real(*arguments))[1])

def after(owner, name, condition=lambda *_: True):
    real = getattr(owner, name)
    setattr(owner, name, lambda *arguments: (real(*arguments), halt(condition, arguments))[0])

{lines}
sys.argv[0] = "eidproxy"
from eidproxy.__main__ import main
main()
"""


def halted(proxy: Proxy) -> bool:
    pid, status = os.waitpid(proxy.pid, os.WUNTRACED | os.WNOHANG)
    return pid != 0 and os.WIFSTOPPED(status)


@contextlib.contextmanager
def halts(router: Router, store: Store, armed: Path, *lines: str) -> Iterator[tuple[RawClient, RawClient]]:
    """The callers of two replicas: the slot of the first, which stands still, went to the second, which is at the
    router. Then the first moves again, and the store says nothing that could tell it.
    """
    one, two = replica(router, store), replica(router, store)
    one._command = [sys.executable, "-c", HALTING.format(armed=str(armed), lines="\n".join(lines)), "serve"]
    with one, two:
        grace_over(one)
        router.reset()
        router.script = stream(gate=GO)
        armed.touch()
        first = post(one)
        until(lambda: halted(one))
        second = post(two)
        router.wait_for(lambda: router.posts == 1)
        store.signal(signal.SIGSTOP)
        try:
            one.signal(signal.SIGCONT)
            yield first, second
        finally:
            store.signal(signal.SIGCONT)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_slot_that_was_lost_before_the_request_was_sent(
    router: Router, store: Store, tmp_path: Path, moment: str
) -> None:
    """SIGSTOP between the grant and the POST, until another has the slot: it sends nothing when it moves again."""
    with halts(router, store, tmp_path / "armed", MOMENTS[moment]) as (first, second):
        check_refusal(answer_of(first), 503, "gate_unavailable")
        router.look()
        assert (router.posts, router.max_concurrent) == (1, 1)
        store.signal(signal.SIGCONT)
        router.release(GO)
        assert answer_of(second).told().done


def test_control_a_slot_that_nobody_asks_for_again(router: Router, store: Store, tmp_path: Path) -> None:
    """The same without the last look at the lease: the checker sees the second inference, and says whose it was."""
    unasked = "RedisPermit.is_held = lambda permit: True"
    with halts(router, store, tmp_path / "armed", unasked, MOMENTS["the request is about to be sent"]) as (
        first,
        second,
    ):
        continued = time.monotonic()
        router.wait_for(lambda: router.posts == 2)
        store.signal(signal.SIGCONT)
        assert answer_of(first).reason == "gate_unavailable"
        router.release(GO)
        assert answer_of(second).told().done
        inferences = spans(router, lambda number: 1 - number)
        pause = Pause(0, continued - LEASE, continued, time.monotonic())
        [violation], _ = judged(inferences, [pause], LEASE)
        assert "sent by a replica that had stood still" in violation


# --- The store fails ---------------------------------------------------------------------------------------------


def read_only(store: Store) -> None:
    store.command("REPLICAOF", "127.0.0.1", str(free_port()))


def out_of_memory(store: Store) -> None:
    store.command("CONFIG", "SET", "maxmemory", "1")


def wrong_type(store: Store) -> None:
    for name in ("state", "holders", "tickets"):
        store.command("DEL", f"eidproxy:{{gate}}:{name}")
    store.command("SET", "eidproxy:{gate}:state", "x")


FAILURES: dict[str, tuple[Callable[[Store], object], Callable[[Store], object]]] = {
    "unreachable": (Store.stop, Store.start),
    "slow": (lambda store: store.signal(signal.SIGSTOP), lambda store: store.signal(signal.SIGCONT)),
    "read_only": (read_only, lambda store: store.command("REPLICAOF", "NO", "ONE")),
    "out_of_memory": (out_of_memory, lambda store: store.command("CONFIG", "SET", "maxmemory", "0")),
    "wrong_type": (wrong_type, lambda store: store.command("DEL", "eidproxy:{gate}:state")),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_fails_closed(router: Router, own_store: Store, failure: str) -> None:
    """503 within 500 ms, nothing at the router, and service again without a restart."""
    fail, mend = FAILURES[failure]
    with replicas(router, own_store, 1) as [proxy]:
        router.reset()
        fail(own_store)
        slowest = 0.0
        with Beside() as beside:
            for _ in range(20):
                began = time.monotonic()
                check_refusal(ask(proxy, "POST", CHAT, chat()), 503, "gate_unavailable")
                slowest = max(slowest, time.monotonic() - began)
        assert slowest <= beside.allow(0.5)
        assert router.posts == 0
        ready = proxy.get("/readyz")
        assert (ready.status, ready.reason) == (503, "gate_unavailable")
        assert proxy.metric("eidproxy_gate_backend_up") == 0
        environment = {"EIDPROXY_GATE_URL": own_store.url, "LLM_ROUTER_URL": router.url, "PATH": os.environ["PATH"]}
        check = subprocess.run(
            [sys.executable, "-m", "eidproxy", "check"], env=environment, capture_output=True, text=True, cwd=ROOT
        )
        assert check.returncode == 1
        assert "gate: gate_unavailable" in check.stderr
        assert ask(proxy, "POST", CHAT, chat("deep")).status == 200, "deep has no gate"
        mend(own_store)
        began = time.monotonic()
        until(lambda: ask(proxy, "POST", CHAT, chat()).status == 200)
        print(f"EIDPROXY {failure}: 503 after {slowest * 1e3:.0f} ms at most, served {time.monotonic() - began:.2f} s")
        until(lambda: proxy.metric("eidproxy_gate_backend_up") == 1)
        assert router.max_concurrent == 1
        words = [each["event"] for each in proxy.log()]
        assert "gate_unavailable" in words
        assert words.count("gate_available") >= 2


def test_out_of_memory_spares_who_is_inside(router: Router, own_store: Store) -> None:
    with replicas(router, own_store, 1) as [proxy]:
        router.script = stream(gate=GO)
        holder = post(proxy)
        router.wait_for(lambda: router.waiting(GO) == 1)
        out_of_memory(own_store)
        began = time.monotonic()
        until(lambda: time.monotonic() > began + LEASE * 1.5, what="more than a lease goes by")
        router.release(GO)
        assert answer_of(holder).told().done


def test_never_there_at_start(router: Router) -> None:
    """It starts without its store and serves as soon as there is one."""
    with contextlib.ExitStack() as stack:
        store = Store()
        proxy = stack.enter_context(replica(router, store))
        assert proxy.get("/readyz").reason == "gate_unavailable"
        check_refusal(ask(proxy, "POST", CHAT, chat()), 503, "gate_unavailable")
        assert router.posts == 0
        stack.enter_context(store)
        assert ask(proxy, "POST", CHAT, chat()).status == 200


@pytest.mark.parametrize("loss", ["restart", "flush"])
def test_an_emptied_store(router: Router, own_store: Store, loss: str) -> None:
    """Who holds goes on, who waits keeps his place, and nobody is let in for one lease."""
    with replicas(router, own_store, 2) as (one, two), recorded(own_store) as record:
        router.reset()
        router.script = stream(gate=GO)
        holder = post(one, "holder")
        router.wait_for(lambda: router.waiting(GO) == 1)
        waiting = []
        for number, at in enumerate((two, one, two)):
            waiting.append(post(at, f"waiter {number}"))
            in_line(own_store, number + 1)
            until(lambda number=number: sorted(positions(one) + positions(two)) == list(range(1, number + 2)))  # type: ignore[misc]
        if loss == "restart":
            own_store.stop()
            own_store.start()
        else:
            own_store.command("FLUSHALL")
        lost_at = time.monotonic()
        until(lambda: own_store.command("ZCARD", "eidproxy:{gate}:holders") == 1, what="the holder said so")
        in_line(own_store, 3)
        router.release(GO)
        for client in (holder, *waiting):
            assert answer_of(client).told().done
        said = [request.json["messages"][0]["content"] for request in router.requests]
        assert said == ["holder", "waiter 0", "waiter 1", "waiter 2"]
        assert router.requests[1].at - lost_at >= LEASE * 0.95
        assert router.max_concurrent == 1
        assert replayed(record.taken(), capacity=1, lease=LEASE, aging=0) == []


def test_the_store_is_away_for_longer_than_the_lease(router: Router, own_store: Store) -> None:
    """The holder stops by itself before its lease ends, and who comes next is let in after that."""
    with replicas(router, own_store, 2) as (one, _):
        router.reset()
        router.script = stream(gate=GO)
        holder = post(one)
        router.wait_for(lambda: router.waiting(GO) == 1)
        until(lambda: one.status()["gate"]["holders"][0]["age_seconds"] > 1)  # at least one renewal
        own_store.signal(signal.SIGSTOP)
        with Beside() as beside:
            stopped_at = time.monotonic()
            check_error_event(answer_of(holder), 503, "gate_unavailable")
            took = time.monotonic() - stopped_at
        print(f"EIDPROXY the stream was cut {took:.2f} s after the store stood still, the lease is {LEASE} s")
        assert LEASE * 0.4 - beside.allow(0) < took < beside.allow(LEASE * 0.8 + 0.15)
        router.wait_for(lambda: router.concurrent == 0)
        own_store.signal(signal.SIGCONT)
        assert one.metric("eidproxy_gate_lease_lost_total") == 1


# --- How it logs in ------------------------------------------------------------------------------------------------


def test_a_password_is_not_told(router: Router, own_store: Store) -> None:
    """Not in a log, not in `check`, whatever fails. The harness judges the log."""
    secret = "canary-gate-password-51c3"
    own_store.command("ACL", "SETUSER", "eidproxy", "on", f">{secret}", *PERMISSIONS)
    url = own_store.url.replace("redis://", f"redis://eidproxy:{secret}@")
    with Proxy(
        router,
        canaries=[secret, f":{own_store.port}/"],
        EIDPROXY_GATE_URL=url,
        EIDPROXY_GATE_LEASE_SECONDS=LEASE,
        EIDPROXY_LOG_LEVEL="debug",
    ) as proxy:
        assert ask(proxy, "POST", CHAT, chat()).status == 200
        own_store.command("ACL", "SETUSER", "eidproxy", "resetpass", ">another")
        own_store.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        check_refusal(ask(proxy, "POST", CHAT, chat()), 503, "gate_unavailable")
        own_store.stop()
        check_refusal(ask(proxy, "POST", CHAT, chat()), 503, "gate_unavailable")
        own_store.start()
    environment = {"EIDPROXY_GATE_URL": url, "LLM_ROUTER_URL": router.url, "PATH": os.environ["PATH"]}
    for command in ("check", "serve"):
        told = subprocess.run(
            [sys.executable, "-m", "eidproxy", command, "--gate-capacity", "0"],
            env=environment, capture_output=True, text=True, cwd=ROOT,
        )  # fmt: skip
        assert secret not in told.stdout + told.stderr


PERMISSIONS = (
    next(
        rule.partition("><password> ")[2]
        for rule in (ROOT / "deploy" / "valkey_users.example").read_text().splitlines()
        if rule.startswith("user eidproxy")
    )
).split()
"""Those that the deployment gives."""


def test_least_rights_unix_socket_and_database(router: Router, own_store: Store) -> None:
    own_store.command("ACL", "SETUSER", "eidproxy", "on", ">word", *PERMISSIONS)
    own_store.command("ACL", "SETUSER", "default", "off")
    url = f"unix://eidproxy:word@{own_store.socket_path}?db=3"
    with Proxy(router, EIDPROXY_GATE_URL=url, EIDPROXY_GATE_LEASE_SECONDS=LEASE) as proxy:
        router.script = stream(gate=GO)
        clients = [post(proxy)]
        router.wait_for(lambda: router.waiting(GO) == 1)
        clients.append(post(proxy))
        until(lambda: positions(proxy) == [1])
        router.release(GO)
        for client in clients:
            assert answer_of(client).told().done
        assert proxy.metric("eidproxy_gate_lease_lost_total") == 0
        log = proxy.log()
    assert not [each for each in log if each["event"] in ("fault", "gate_unavailable")]


def test_tls(router: Router, tmp_path: Path) -> None:
    made = self_signed(tmp_path, "DNS:localhost")
    tls_port = free_port()
    with Store(
        "--tls-port", str(tls_port), "--tls-cert-file", str(made.certificate), "--tls-key-file",
        str(made.key), "--tls-auth-clients", "no",
    ):  # fmt: skip
        trusted = f"?ssl_ca_certs={made.certificate}"
        with Proxy(
            router, EIDPROXY_GATE_URL=f"rediss://localhost:{tls_port}/0{trusted}", EIDPROXY_GATE_LEASE_SECONDS=LEASE
        ) as proxy:
            assert ask(proxy, "POST", CHAT, chat()).status == 200
        # Another name than the certificate's, or an unknown authority.
        for url in (f"rediss://127.0.0.1:{tls_port}/0{trusted}", f"rediss://localhost:{tls_port}/0"):
            with Proxy(router, EIDPROXY_GATE_URL=url) as proxy:
                check_refusal(ask(proxy, "POST", CHAT, chat()), 503, "gate_unavailable")
        assert router.posts == 1


# --- Random schedules --------------------------------------------------------------------------------------------


def schedules(seed: int, total: int, cells: int, *options: str) -> dict[str, Any]:
    """Play random schedules in some cells at a time, each in a network of its own when we may have one."""
    alone = [shutil.which("unshare") or "", "-n"] if os.geteuid() == 0 and shutil.which("unshare") else []
    if alone and subprocess.run([*alone, "true"], capture_output=True).returncode != 0:
        alone = []
    partitions = bool(alone) and shutil.which("nft", path=f"{os.environ['PATH']}:/usr/sbin") is not None
    found: list[dict[str, Any]] = []
    faults: list[str] = []

    def play(number: int) -> None:
        share = total // cells + (number < total % cells)
        command = [*alone, sys.executable, "-m", "tests.gate.schedules", "--seed", str(seed + number)]
        done = subprocess.run([*command, "--count", str(share), *options], capture_output=True, text=True, cwd=ROOT)
        if done.returncode == 0:
            found.append(json.loads(done.stdout.splitlines()[-1]))
        else:
            faults.append(done.stderr[-3000:])

    threads = [threading.Thread(target=play, args=(number,)) for number in range(cells)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults, faults[0]
    whole: dict[str, Any] = {
        "partitions": partitions,
        "violations": [text for each in found for text in each["violations"]],
    }
    for name in ("schedules", "requests", "inferences", "pauses", "documented_overlaps", "takeovers"):
        whole[name] = sum(each[name] for each in found)
    for name in ("let_go_max_seconds", "takeover_max_seconds"):
        whole[name] = max(each[name] for each in found)
    return whole


@pytest.mark.timeout(7200)
def test_random_schedules(seed: int) -> None:
    """Kills, pauses, partitions, restarts, floods of nothing: `EIDPROXY_GATE_SCHEDULES=2000` is the full form."""
    need("redis-server")
    total = int(os.environ.get("EIDPROXY_GATE_SCHEDULES") or amount(10, 2000))
    with Beside() as beside:
        whole = schedules(seed % 1_000_000, total, 4 if total < 100 else 8)
    print(f"EIDPROXY {json.dumps(whole)}")
    assert whole["violations"] == []
    assert whole["schedules"] == total
    assert whole["takeover_max_seconds"] <= beside.allow(1.0 + 1.0)


def test_control_replicas_without_leases_are_caught() -> None:
    """The same schedules, by replicas that ignore their leases."""
    need("redis-server")
    whole = schedules(7, 12, 3, "--control")
    assert whole["violations"]
