"""Callers that leave (P6; C1): at any moment, in any way. Nothing stays behind, and the slot is free at once."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import multiprocessing
import os
import random
import resource
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.callers import at_rest
from tests.harness import CHAT, Proxy, RawClient, ask, chat, free_port, request_bytes, until
from tests.tools import size as amount
from tests.upstream import Fin, Pause, Received, Router, Stall, Step, Trickle, _unread, chunk, stream, wire

WAYS = ("fin", "rst", "shut_wr", "stray", "pipelined", "silent")
MOMENTS = ("in the head", "in the body", "queued", "connecting", "first byte", "mid-stream", "at the end", "after")


@dataclass
class Tally:
    """What was seen of a crowd of callers that left."""

    left: dict[str, float] = field(default_factory=dict)
    """When each of those that had sent a whole request began to leave."""
    kinds: collections.Counter[tuple[str, str]] = field(default_factory=collections.Counter)


def script(choose: random.Random) -> list[Step]:
    """An answer that is slow somewhere, so that there is a moment to leave at."""
    whole = stream(["a", "b", "c"])
    kind = choose.randrange(6)
    if kind == 0:
        return [Stall()]
    if kind == 1:
        return [*whole[:1], Stall()]
    if kind == 2:
        return [*whole[:3], Stall()]
    if kind == 3:
        return [Trickle(wire(whole), 40, 0.001)]
    if kind == 4:
        return [Pause(choose.random() * 0.01), *whole, Fin()]
    return [*whole]


async def visit(where: tuple[str, int], number: int, choose: random.Random, tally: Tally) -> None:
    """One caller: connect, ask as far as the moment says, leave in some way."""
    loop = asyncio.get_running_loop()
    moment, way = choose.choice(MOMENTS), choose.choice(WAYS)
    if way == "silent":
        # Who asks and then says nothing more is served or cut; who never finishes asking is timed out.
        moment = choose.choice(MOMENTS[:1] if choose.random() < 0.1 else MOMENTS[-2:])
    tally.kinds[moment, way] += 1
    model = "daily" if choose.random() < 0.8 else "deep"
    priority = choose.choice(["foreground", "background"])
    headers = {"X-Eid-Priority": priority, **({"X-Eid-Progress": "1"} if choose.random() < 0.3 else {})}
    ask_for = request_bytes("POST", CHAT, chat(model, choose.random() < 0.8, say=f"visitor {number}"), headers)
    head_end = ask_for.index(b"\r\n\r\n") + 4
    with socket.socket() as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, where)
        with contextlib.suppress(ConnectionError, TimeoutError):
            if moment == "in the head":
                await loop.sock_sendall(sock, ask_for[: choose.randrange(head_end)])
            elif moment == "in the body":
                await loop.sock_sendall(sock, ask_for[: choose.randrange(head_end, len(ask_for))])
            else:
                await loop.sock_sendall(sock, ask_for)
                if moment == "queued":
                    await asyncio.sleep(choose.random() * 0.05)
                elif moment in ("connecting", "first byte"):
                    await asyncio.sleep(choose.random() * 0.004)
                elif moment == "mid-stream":
                    async with asyncio.timeout(choose.random() * 0.3):
                        await loop.sock_recv(sock, choose.choice([1, 100, 700]))
                else:
                    async with asyncio.timeout(choose.random() * 0.5):
                        got = b""
                        while not got.endswith(b"0\r\n\r\n") and b"Content-Length" not in got:
                            data = await loop.sock_recv(sock, 65536)
                            if not data:
                                break
                            got += data
                            if moment == "at the end" and b"[DONE]" in got:
                                break
        await leave(sock, way, moment, number, ask_for, tally)


async def leave(sock: socket.socket, way: str, moment: str, number: int, ask_for: bytes, tally: Tally) -> None:
    """Leave in one of the ways. From `tally.left` on the caller is gone."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError, TimeoutError):
        if way == "silent" and moment == "in the head":
            async with asyncio.timeout(8):
                while await loop.sock_recv(sock, 65536):
                    pass
        tally.left[f"visitor {number}"] = time.monotonic()
        if way == "stray":
            await loop.sock_sendall(sock, b"\r")
        elif way == "pipelined":
            await loop.sock_sendall(sock, ask_for)
        elif way == "shut_wr":
            sock.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(2):
                while await loop.sock_recv(sock, 65536):
                    pass
        if way in ("rst", "pipelined"):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def crowd(where: tuple[str, int], count: int, seed: int) -> Tally:
    """So many callers, 200 at a time, in a process of their own: here they would delay the router, who measures."""
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_crowd, where, count, seed).result()


def _crowd(where: tuple[str, int], count: int, seed: int) -> Tally:
    tally = Tally()
    asyncio.run(_visit_all(where, count, seed, tally))
    return tally


async def _visit_all(where: tuple[str, int], count: int, seed: int, tally: Tally, at_once: int = 200) -> None:
    places = asyncio.Semaphore(at_once)

    async def one(number: int) -> None:
        async with places:
            await visit(where, number, random.Random(f"{seed} {number}"), tally)

    await asyncio.gather(*(one(number) for number in range(count)))


def free_after(router: Router, tally: Tally) -> list[float]:
    """Seconds from a caller's leaving to the close of its connection at the router, of those that were there."""
    delays = []
    for close in router.closes:
        if close.request is None:
            continue
        said = close.request.json["messages"][0]["content"]
        if said in tally.left and close.phase == "answer":
            delays.append(max(close.at - tally.left[said], 0))
    return sorted(delays)


@pytest.fixture
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.alone
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
        tally = crowd(proxy.address, count, seed)
        took = time.monotonic() - began
        router.script = stream()
        assert ask(proxy, "POST", CHAT, chat(say="honest"), timeout=30).told().done
        at_rest(router, proxy)
        assert router.max_concurrent_by_model["mac-mini-default"] == 1
        assert proxy.metric("eidproxy_gate_forced_releases_total") == 0
        for mode in ("daily", "deep"):
            for phase in ("queued", "upstream", "streaming"):
                assert proxy.metric("eidproxy_requests_in_progress", mode=mode, phase=phase) == 0
        until(lambda: proxy.fds() <= files, 20, "descriptors given back")
        faults = [line for line in proxy.log() if line["event"] == "fault"]
        assert faults == []
        outcomes = collections.Counter(line.get("reason") for line in proxy.log() if line["event"] == "request")
        delays = free_after(router, tally)
        assert len(delays) > count / 50
        p99 = delays[int(len(delays) * 0.99)]
        print(
            f"EIDPROXY departures: {count} in {took:.1f} s, {len(tally.kinds)} kinds, {len(delays)} left the router's "
            f"side, slot free p50 {delays[len(delays) // 2] * 1e3:.1f} p99 {p99 * 1e3:.1f} max {delays[-1] * 1e3:.1f} "
            f"ms, outcomes {dict(outcomes.most_common(6))}"
        )
        assert p99 < 0.1
        assert delays[-1] < 1
        # A request cut short may have become any refusal; none is a fault of ours or of the router.
        assert not [word for word in outcomes if str(word).startswith(("internal", "router", "upstream", "stream"))]


def departs(way: str, client: RawClient) -> None:
    """Leave with a request running."""
    if way == "second request at once then reset":
        client.send(request_bytes("POST", CHAT, chat()))
        client.rst()
    elif way == "stray byte then fin":
        client.send(b"\r")
        client.fin()
    else:
        getattr(client, way)()


LEAVING = ("fin", "rst", "close", "second request at once then reset", "stray byte then fin")


@pytest.mark.alone
@pytest.mark.parametrize("progress", ["", "1"])
@pytest.mark.parametrize("model", ["daily", "deep"])
@pytest.mark.parametrize("way", LEAVING)
def test_each_way_frees_the_slot(shared: tuple[Router, Proxy], way: str, model: str, progress: str) -> None:
    """Before the first byte and mid-stream: the router's socket is closed and the next one is there within 100 ms."""
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
            began = time.monotonic()
            departs(way, leaver)
            router.wait_for(lambda: bool(router.closes), 1)
            assert router.closes[0].at - began < 0.1
            assert waiter.read_head().status == 200
            if model == "daily":
                assert router.requests[1].at - began < 0.15
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
    assert router.connections == 0
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
    port = free_port()
    environment = {**os.environ, "ROUTER": router.url, "PORT": str(port)}
    with subprocess.Popen([sys.executable, "-m", "tests.stock"], env=environment) as process:
        try:

            def up() -> bool:
                with contextlib.suppress(OSError, EOFError):
                    return ask(("127.0.0.1", port), "GET", "/healthz").status == 200
                return False

            until(up, 20)
            client = RawClient(("127.0.0.1", port))
            client.send(request_bytes("POST", CHAT, chat()))
            router.wait_for(lambda: router.posts == 1)
            client.read_head()
            next(client.pieces())
            client.send(request_bytes("POST", CHAT, chat()))
            until(lambda: _unread(client.sock) == 0)
            client.rst()
            with pytest.raises(AssertionError, match="not reached"):
                router.wait_for(lambda: router.open_sockets == 0, 1)
        finally:
            process.kill()
