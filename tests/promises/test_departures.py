"""Callers that leave (contract, P6): at any moment, in any way. Nothing stays behind, and the slot is free at once."""

from __future__ import annotations

import collections
import random
import resource
import time
from collections.abc import Iterator

import pytest

from tests.lab.callers import AT_ONCE, at_rest, nothing_left, rounds
from tests.lab.client import CHAT, RawClient, ask, chat, request_bytes
from tests.lab.cost import Beside
from tests.lab.crowd import LEAVING, crowd, departs, free_after, script
from tests.lab.proxy import Proxy
from tests.lab.router import Received, Router, _unread
from tests.lab.script import Stall, Step, Trickle, chunk, stream
from tests.lab.stock import Stock
from tests.lab.tools import size as amount
from tests.lab.tools import until


@pytest.fixture
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.timeout(900)
def test_crowd_that_leaves(router: Router, many_files: None, seed: int) -> None:
    count = amount(500, 10_000)
    choose = random.Random(seed)
    router.script = lambda _: script(choose)
    with Proxy(router, EIDPROXY_GATE_MAX_WAITING=500, EIDPROXY_STREAM_DEADLINE_SECONDS=20) as proxy:
        ask(proxy, "GET", "/healthz")
        proxy.metrics()
        files = proxy.fds()
        assert isinstance(proxy.address, tuple)
        began = time.monotonic()
        with Beside(proxy) as beside:
            tally = crowd(proxy.address, count, seed)
        took = time.monotonic() - began
        router.script = stream()
        assert ask(proxy, "POST", CHAT, chat(say="honest"), timeout=30).told().done
        nothing_left(router, proxy, files)
        outcomes = collections.Counter(line.get("reason") for line in proxy.log() if line["event"] == "request")
        delays = free_after(router, tally)
        assert len(delays) > count / 50
        p99 = delays[int(len(delays) * 0.99)]
        print(
            f"EIDPROXY departures: {count} in {took:.1f} s, {len(tally.kinds)} kinds, {len(delays)} left the router's "
            f"side, slot free p50 {delays[len(delays) // 2] * 1e3:.1f} p99 {p99 * 1e3:.1f} max {delays[-1] * 1e3:.1f} "
            f"ms, outcomes {dict(outcomes.most_common(6))}"
        )
        assert p99 < beside.allow(0.1)
        assert delays[-1] < beside.allow(1)
        # A request cut short may have become any refusal; none is a fault of ours or of the router.
        assert not [word for word in outcomes if str(word).startswith(("internal", "router", "upstream", "stream"))]


@pytest.mark.parametrize("progress", ["", "1"])
@pytest.mark.parametrize("model", ["daily", "deep"])
@pytest.mark.parametrize("way", LEAVING)
def test_each_way_frees_the_slot(shared: tuple[Router, Proxy], way: str, model: str, progress: str) -> None:
    """Before the first byte and mid-stream: the router's socket is closed and the next one is there at once."""
    router, proxy = shared
    whole = stream(["a"])
    headers = {"X-Eid-Progress": progress} if progress else {}
    for steps in ([Stall()], [*whole[:3], Stall()], [*whole[:-2], Stall()]):
        router.reset()
        router.enqueue(steps)
        with RawClient(proxy) as leaver, RawClient(proxy) as waiter:
            leaver.send(request_bytes("POST", CHAT, chat(model), headers))
            router.wait_for(lambda: router.posts == 1)
            waiter.send(request_bytes("POST", CHAT, chat(model, say="next")))
            if len(steps) > 1:
                leaver.read_head()
            departs(way, leaver)
            assert rounds(proxy, lambda: router.closes and router.posts == 2) < AT_ONCE
            assert waiter.read_head().status == 200
            if model == "daily":
                assert router.max_concurrent == 1
    at_rest(router, proxy)


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[Router, Proxy]]:
    with Router() as router, Proxy(router) as proxy:
        yield router, proxy


def test_leaving_at_the_grant(shared: tuple[Router, Proxy]) -> None:
    """The holder and those behind it leave in the same instant: the one that stays is served, whoever was granted."""
    router, proxy = shared
    for number in range(30):
        router.reset()
        router.script = stream()
        router.enqueue([Stall()])
        clients = [RawClient(proxy) for _ in range(4)]
        for client in clients:
            client.send(request_bytes("POST", CHAT, chat()))
            if client is clients[0]:
                router.wait_for(lambda: router.posts == 1)
        until(lambda: len(proxy.status()["gate"]["waiting"]) == 3)
        for client in clients[:3] if number % 2 else reversed(clients[:3]):
            client.rst()
        assert clients[3].read_head().status == 200
        clients[3].close()
        assert router.max_concurrent == 1
    at_rest(router, proxy)


def test_leaving_in_the_middle_of_a_request(shared: tuple[Router, Proxy]) -> None:
    router, proxy = shared
    router.reset()
    data = request_bytes("POST", CHAT, chat())
    for cut in range(1, len(data), 7):
        for way in ("fin", "rst", "close"):
            with RawClient(proxy) as client:
                client.send(data[:cut])
                getattr(client, way)()
    assert router.posts == 0
    at_rest(router, proxy)


def test_honest_callers_read_while_others_leave(shared: tuple[Router, Proxy]) -> None:
    """A keep-alive connection that sends its next request as soon as it has its answer is no departure."""
    router, proxy = shared
    router.reset()
    router.script = stream()
    with RawClient(proxy) as client:
        for _ in range(50):
            client.send(request_bytes("POST", CHAT, chat()))
            assert client.read_head().status == 200
            assert client.read_body().endswith(b"[DONE]\n\n")


def test_control_a_stock_proxy_keeps_the_slot(router: Router) -> None:
    """Control: a caller that leaves behind a pipelined request is not noticed by the usual parts; here it must be."""

    def slow(_: Received) -> list[Step]:
        return [*stream(["a"])[:3], Trickle(chunk(b": x\n\n") * 1000, 10, 0.01)]

    router.script = slow
    with Stock(router) as stock:
        client = RawClient(stock)
        client.send(request_bytes("POST", CHAT, chat()))
        router.wait_for(lambda: router.posts == 1)
        client.read_head()
        next(client.pieces())
        client.send(request_bytes("POST", CHAT, chat()))
        until(lambda: _unread(client.sock) == 0)
        client.rst()
        with pytest.raises(AssertionError, match="not reached"):
            router.wait_for(lambda: router.open_sockets == 0, 1)
