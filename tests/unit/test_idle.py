"""idle: when a connection to the router carries a second request, judged at the router's sockets."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from eidproxy.router.idle import IdleConnections
from eidproxy.router.transport import ReadPoller, TcpTransport
from tests.lab.client import CHAT, RawClient, ask, chat, request_bytes
from tests.lab.proxy import Proxy
from tests.lab.router import Received, Router
from tests.lab.script import (
    DONE,
    LAST_CHUNK,
    Drained,
    Fin,
    Pause,
    Reset,
    Stall,
    Step,
    Wait,
    chunk,
    completion_chunk,
    event,
    head,
    stream,
    wire,
)
from tests.lab.stream import told
from tests.lab.tools import until

TRUST = "from eidproxy.router.idle import IdleConnections; IdleConnections.is_trusted = True\n"
"""The router need not show first that it leaves connections open."""
KEPT: dict[str, Any] = {"EIDPROXY_ROUTER_KEEP_IDLE_SECONDS": 60, "planted": TRUST}  # so that no time closes it

FULL = os.environ.get("FULL") == "1"
WHOLE = wire(stream(["whole"]))
"""An answer that comes in one read, its last chunk too."""


@pytest.fixture
def proxy(router: Router) -> Iterator[Proxy]:
    with Proxy(router, **KEPT) as started:
        yield started


def asked(proxy: Proxy, times: int, model: str = "daily") -> None:
    for _ in range(times):
        answer = ask(proxy, "POST", CHAT, chat(model))
        assert (answer.status, answer.told().text, answer.told().done) == (200, "whole", True)


def test_an_idle_connection_carries_the_next_request(router: Router, proxy: Proxy) -> None:
    router.script = [WHOLE]
    for model in ("daily", "deep", "daily"):
        asked(proxy, 1, model)
    assert (router.posts, router.connections, router.max_concurrent) == (3, 1, 1)
    assert {request.header("Connection") for request in router.requests} == {"keep-alive"}


def one_body(content: str) -> bytes:
    return event(completion_chunk({"content": content})) + event(completion_chunk({}, "stop")) + DONE


TOLD = [("Content-Type", "text/event-stream")]
CHUNKED = [*TOLD, ("Transfer-Encoding", "chunked")]
BODY = one_body("whole")

UNFIT: dict[str, list[Step]] = {
    "close was said": [head(headers=[*CHUNKED, ("Connection", "close")]) + chunk(BODY) + LAST_CHUNK],
    "HTTP/1.0": [head(headers=TOLD, version="HTTP/1.0") + BODY, Fin()],
    "chunks of HTTP/1.0": [
        head(headers=[*CHUNKED, ("Connection", "keep-alive")], version="HTTP/1.0") + chunk(BODY) + LAST_CHUNK
    ],
    "a body without an end": [head(headers=TOLD) + BODY, Fin()],
    "a length": [head(headers=[*TOLD, ("Content-Length", str(len(BODY)))]) + BODY],
    "a blank line behind": [WHOLE + b"\r\n"],
    "an answer behind": [WHOLE + WHOLE],
    "bytes behind": [WHOLE + b"hostile"],
    "the last chunk is on the way": [WHOLE.removesuffix(LAST_CHUNK), Stall()],
    "a trailer": [WHOLE.removesuffix(b"\r\n") + b"X-Trailer: hostile\r\n\r\n"],
    "a trailer that ends like the last chunk": [WHOLE.removesuffix(b"\r\n") + b"X-Trailer: 0\r\n\r\n"],
    "an answer behind, later": [WHOLE, Drained(), WHOLE],
    "a byte behind, later": [WHOLE, Drained(), b"\n"],
    "the end behind": [WHOLE, Drained(), Fin()],
    "a reset behind": [WHOLE, Drained(), Reset()],
}


@pytest.mark.parametrize("kind", UNFIT)
def test_a_connection_that_is_not_sound_is_closed(router: Router, kind: str) -> None:
    router.enqueue(UNFIT[kind])
    router.script = [WHOLE]
    with Proxy(router, **KEPT) as proxy:
        asked(proxy, 1)
        until(lambda: router.open_sockets == 0)
        asked(proxy, 1)
    assert (router.posts, router.connections, router.max_concurrent) == (2, 2, 1)


@pytest.mark.parametrize("ending", ["error status", "error event", "caller left"])
def test_a_connection_whose_answer_was_not_whole_is_reset(router: Router, proxy: Proxy, ending: str) -> None:
    if ending == "error status":
        router.enqueue([head(503, [("Content-Length", "0")])])
    elif ending == "error event":
        router.enqueue([head(headers=CHUNKED) + chunk(event({"error": {"message": "x"}})) + LAST_CHUNK])
    else:
        router.enqueue(stream(gate="held"))
    with RawClient(proxy) as client:
        client.send(request_bytes("POST", CHAT, chat("daily")))
        if ending == "caller left":
            router.wait_for(lambda: router.waiting("held") == 1)
            client.rst()
        else:
            client.read_head()
    router.wait_for(lambda: router.open_sockets == 0)
    assert [close.how for close in router.closes] == ["reset"]


@pytest.mark.parametrize(
    ("settings", "host"),
    [({"EIDPROXY_ROUTER_KEEP_IDLE_SECONDS": 0}, "127.0.0.1"), (KEPT, "localhost")],
    ids=["off", "name"],
)
def test_one_connection_for_each_request(router: Router, settings: dict[str, Any], host: str) -> None:
    """Where the setting says so, and where a name must be judged anew for each."""
    router.script = [WHOLE]
    url = f"http://{host}:{router.port}"
    with Proxy(router, LLM_ROUTER_URL=url, **settings) as proxy:
        asked(proxy, 2)
        router.wait_for(lambda: router.open_sockets == 0)
    assert router.connections == 2
    assert {request.header("Connection") for request in router.requests} == {"close"}


def test_an_idle_connection_ends_in_time_and_with_the_process(router: Router) -> None:
    router.script = [WHOLE]
    with Proxy(router, EIDPROXY_ROUTER_KEEP_IDLE_SECONDS=0.05) as proxy:
        asked(proxy, 1)
        router.wait_for(lambda: router.open_sockets == 0)
    with Proxy(router, **KEPT) as proxy:
        asked(proxy, 1)
        assert router.open_sockets == 1
        proxy.terminate()
        router.wait_for(lambda: router.open_sockets == 0)


def test_no_more_are_kept_than_there_is_room_for(router: Router) -> None:
    router.script = [Wait("all"), WHOLE]
    with Proxy(router, **KEPT) as proxy:
        clients = [RawClient(proxy) for _ in range(40)]
        for client in clients:
            client.send(request_bytes("POST", CHAT, chat("deep")))
        router.wait_for(lambda: router.waiting("all") == 40)
        router.release("all")
        for client in clients:
            client.read_head()
            client.read_body()
            client.close()
        router.wait_for(lambda: router.open_sockets == 32)


def test_nothing_is_kept_once_a_router_spoke_unasked(router: Router, proxy: Proxy) -> None:
    """It could have the answer of one caller taken for that of another."""
    router.enqueue([WHOLE], [WHOLE, Drained(), WHOLE])
    router.script = lambda request: [wire(stream([request.json["messages"][0]["content"]]))]
    asked(proxy, 2)
    router.wait_for(lambda: router.open_sockets == 0)
    for number in range(3):
        answer = ask(proxy, "POST", CHAT, chat("daily", say=f"request {number}"))
        assert answer.told().text == f"request {number}"
    assert [request.header("Connection") for request in router.requests] == ["keep-alive"] * 2 + ["close"] * 3


@pytest.mark.parametrize("left_open", [True, False])
def test_what_lies_unread_when_the_time_is_over_earns_no_trust(left_open: bool) -> None:
    """After a standstill the timer may run before the end of the router's side is read."""

    async def outlast() -> bool:
        with socket.create_server(("127.0.0.1", 0)) as server:
            transport = TcpTransport(ReadPoller(asyncio.get_running_loop()), asyncio.Protocol(), *server.getsockname())
            router_side, _ = server.accept()
            transport.open()
            connections = IdleConnections(0.001)
            connections.keep(transport)
            if not left_open:
                router_side.close()
            time.sleep(0.01)  # noqa: ASYNC251  # the loop stands still, so the timer is due
            connections._idle._expire_due()
            if left_open:
                router_side.close()
            assert not len(connections._idle)
            return connections.is_trusted

    assert asyncio.run(outlast()) is left_open


@pytest.mark.parametrize("second", ["closes", "is silent"])
def test_a_router_that_answers_once_on_a_connection_costs_two_callers(router: Router, second: str) -> None:
    """It leaves connections open, so it is trusted, and each request on one that had waited is lost."""
    told = {"closes": (503, "router_RemoteProtocolError"), "is silent": (503, "upstream_silent")}[second]

    def script(request: Received) -> list[Step]:
        again = sum(other.connection == request.connection for other in router.requests) > 1
        return [Fin() if second == "closes" else Stall()] if again else [WHOLE]

    router.script = script
    names = {"FIRST_EVENT_SECONDS": 0.3, "FIRST_EVENT_SECONDS_PER_KIB": 0, "WEDGE_AFTER": 0, "KEEP_IDLE_SECONDS": 0.05}
    settings: dict[str, Any] = {f"EIDPROXY_ROUTER_{name}": value for name, value in names.items()}
    with Proxy(router, **settings) as proxy:
        seen: list[tuple[int, str | None]] = []

        def over() -> bool:
            answer = ask(proxy, "POST", CHAT, chat("daily"))
            if answer.status != 200:
                seen.append((answer.status, answer.reason))
            return router.requests[-1].header("Connection") == "close"

        until(over)
        asked(proxy, 20)
    assert seen == [told] * 2


def asked_until_kept(router: Router, proxy: Proxy) -> None:
    """Ask until the router has shown that it leaves a connection open."""

    def again() -> bool:
        before = router.connections
        asked(proxy, 2)
        return router.connections < before + 2

    until(again)


def test_a_router_shows_first_that_it_leaves_connections_open(router: Router) -> None:
    """By default, and anew after it was away."""
    router.script = [WHOLE]
    with Proxy(router) as proxy:
        asked(proxy, 2)
        assert router.connections == 2
        for _ in range(2):
            asked_until_kept(router, proxy)
            router.enqueue([WHOLE, Drained(), Fin()])
            asked(proxy, 1)
            router.wait_for(lambda: router.open_sockets == 0)
            before = router.connections
            asked(proxy, 2)
            assert router.connections == before + 2


@pytest.mark.parametrize("later", [0.0, 0.001, 0.003])
def test_a_router_that_closes_without_saying_so_costs_no_caller_an_error(router: Router, later: float) -> None:
    """What is about to be closed is never used, however soon the next one asks."""
    router.script = [WHOLE, Drained(), Pause(later), Fin()]
    with Proxy(router) as proxy:
        asked(proxy, 300)
    assert (router.posts, router.connections) == (300, 300)


def test_one_error_and_then_it_must_be_shown_anew(router: Router) -> None:
    """A router that leaves connections open while they wait, and closes them when they are used."""
    router.script = [WHOLE]
    with Proxy(router, **KEPT) as proxy:
        asked(proxy, 2)
        assert router.connections == 1
        router.enqueue([Fin()])
        answer = ask(proxy, "POST", CHAT, chat("daily"))
        assert answer.status == 503
        before = router.connections
        asked(proxy, 2)
        assert router.connections == before + 2


def test_losses_that_are_not_in_a_row_end_nothing(router: Router) -> None:
    """An answer on a connection that had waited says that the loss before it was chance."""
    router.script = [WHOLE]
    with Proxy(router, EIDPROXY_ROUTER_KEEP_IDLE_SECONDS=0.2) as proxy:
        for _ in range(3):
            asked_until_kept(router, proxy)
            router.enqueue([Fin()])
            assert ask(proxy, "POST", CHAT, chat("daily")).status == 503
        asked_until_kept(router, proxy)


def test_a_router_that_answers_on_an_idle_connection_is_reachable(router: Router) -> None:
    """Though it takes no new ones for a while."""
    router.enqueue([WHOLE], stream(gate="go"))
    with Proxy(router, **KEPT) as proxy, RawClient(proxy) as client:
        asked(proxy, 1)
        router.hang_up()
        client.send(request_bytes("POST", CHAT, chat("deep")))
        router.wait_for(lambda: router.waiting("go") == 1)
        assert ask(proxy, "POST", CHAT, chat("deep")).reason == "router_ConnectError"
        assert proxy.status()["router"]["reachable"] is False
        router.release("go")
        client.read_head()
        client.read_body()
        until(lambda: proxy.status()["router"]["reachable"])


def test_a_request_is_never_sent_twice(seed: int) -> None:
    """Whatever becomes of an idle connection, and at whatever moment: one request, and its answer or one error."""
    rng = random.Random(seed)
    count = 10_000 if FULL else 400

    def script(request: Received) -> list[Step]:
        whole = wire(stream([request.json["messages"][0]["content"]]))
        later = rng.choice([0.0, 0.0002, 0.0005, 0.001, 0.003])
        after: list[list[Step]] = [[], [Drained()], [Drained(), Pause(later)]]
        end: list[list[Step]] = [[], [], [Fin()], [Reset()]]
        return [whole, *rng.choice(after), *rng.choice(end)]

    outcomes: Counter[str] = Counter()
    # Whatever it sees, or it would hardly use one twice.
    blind = TRUST + "IdleConnections.reset_trust = IdleConnections.note_unanswered = lambda connections: None\n"
    with Router(script=script) as router, Proxy(router, **{**KEPT, "planted": blind}) as proxy:
        client = RawClient(proxy)
        for number in range(count):
            if rng.random() < 0.02:
                router.hang_up()
                router.listen()
            say = f"request {number}"
            client.send(request_bytes("POST", CHAT, chat("daily", say=say)))
            status = client.read_head().status
            body = client.read_body()
            if status == 200:
                assert (told(body).text, told(body).done) == (say, True)
            else:
                assert status == 503
                client.close()
                client = RawClient(proxy)
            outcomes["whole" if status == 200 else "error"] += 1
        client.close()
        router.look()
        times = Counter(request.json["messages"][0]["content"] for request in router.requests)
        assert max(times.values()) == 1
        assert router.max_concurrent == 1
        assert router.connections < count * 0.9, "none was used again"
    print(f"{count} requests: {dict(outcomes)}, {router.connections} connections")
