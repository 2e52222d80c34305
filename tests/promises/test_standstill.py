"""Clocks of silence: they run on a state, and look once more after the process stood still (a laptop's lid, SIGSTOP).

After SIGCONT the loop runs the timers that are due before it reads what lay in the kernel's buffers all the while.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.lab.callers import at_rest, check_refusal
from tests.lab.client import CHAT, Answer, RawClient, ask, chat, request_bytes
from tests.lab.proxy import Proxy, impatient
from tests.lab.router import Router
from tests.lab.script import Drained, Pause, Stall, stream
from tests.lab.stream import told
from tests.lab.tls import Certificate
from tests.lab.tools import until

STREAMS = 200


@contextlib.contextmanager
def stopped(proxy: Proxy, seconds: float) -> Iterator[None]:
    """The process sleeps meanwhile, and then until the time is over."""
    began = time.monotonic()
    proxy.process.send_signal(signal.SIGSTOP)
    try:
        yield
        time.sleep(max(seconds - (time.monotonic() - began), 0))  # the standstill itself is what is tested
    finally:
        proxy.process.send_signal(signal.SIGCONT)


def begin(proxy: Proxy) -> RawClient:
    client = RawClient(proxy, timeout=60)
    client.send(request_bytes("POST", CHAT, chat("deep")))
    return client


def finish(client: RawClient) -> Answer:
    with client:
        head = client.read_head()
        return Answer(head.status, head.headers, client.read_body(), client.clean)


@pytest.mark.parametrize("when", ["before the first event", "in the middle"])
def test_no_stream_is_cut_for_a_silence_of_our_own(router: Router, when: str) -> None:
    """136 of 200 were cut as silent, while their bytes lay in the buffer."""
    steps = list(stream(["a", "b"], gate="go"))
    router.script = steps
    with Proxy(router, **impatient(6.0)) as proxy:
        clients = [begin(proxy) for _ in range(STREAMS)]
        router.wait_for(lambda: router.waiting("go") == STREAMS, 30)
        with stopped(proxy, 8.0):
            router.release("go")
        answers = [finish(client) for client in clients]
        cut = [answer.reason for answer in answers if answer.status != 200 or not answer.told().done]
        print(f"EIDPROXY standstill, {when}: {STREAMS - len(cut)} of {STREAMS} whole")
        assert cut == []
        at_rest(router, proxy)


def test_a_router_that_is_silent_all_the_same_is_found_out(router: Router) -> None:
    router.script = [Stall()]
    with Proxy(router, **impatient(0.5)) as proxy:
        client = begin(proxy)
        router.wait_for(lambda: router.posts == 1)
        with stopped(proxy, 1.0):
            pass
        check_refusal(finish(client), 503, "upstream_silent")
        at_rest(router, proxy)


LONG_TURN = """
import time
from eidproxy.inbound import connections
from eidproxy.endpoints import Endpoints
connections.WAIT_SECONDS.update(dict.fromkeys(connections.WAIT_SECONDS, 1.0))
admit = Endpoints.admit
def admit_late(endpoints, head):
    if head.path == "/standstill":
        print('{"event": "standstill"}', flush=True)
        time.sleep(2)
    return admit(endpoints, head)
Endpoints.admit = admit_late
"""
"""A turn of two seconds, where a clock of the edge has one: timers that are due run before anything is read."""


@contextlib.contextmanager
def long_turn(proxy: Proxy) -> Iterator[None]:
    """The loop stands still meanwhile."""
    with RawClient(proxy, timeout=30) as client:
        client.send(request_bytes("GET", "/standstill"))
        until(lambda: b"standstill" in proxy.output())
        yield
        assert client.read_head().status == 404


def test_a_request_that_arrived_meanwhile_is_served(router: Router) -> None:
    """No 408 while the rest of the head, or of the body, lies in the buffer."""
    data = request_bytes("POST", CHAT, chat("deep"))
    with Proxy(router, planted=LONG_TURN) as proxy:
        half_head, half_body = RawClient(proxy, timeout=30), RawClient(proxy, timeout=30)
        half_head.send(data[:20])
        half_body.send(data[:-20])
        assert proxy.get("/healthz").status == 200  # both were read before this
        with long_turn(proxy):
            half_head.send(data[20:])
            half_body.send(data[-20:])
        for client in (half_head, half_body):
            assert finish(client).told().done
        late = RawClient(proxy, timeout=30)
        late.send(data[:20])
        assert finish(late).status == 408


def test_a_connect_that_was_accepted_meanwhile_counts(certificate: Certificate) -> None:
    """TLS takes the router's answer, which lies in the buffer when the clock of the connect is due."""
    with Router(tls=certificate.server()) as router:
        router.script = stream()
        settings = {"EIDPROXY_ROUTER_CONNECT_TIMEOUT_SECONDS": 0.8}
        with trusting(certificate, router, planted=LONG_TURN, **settings) as proxy, ExitStack() as closing:
            clients = [closing.enter_context(RawClient(proxy, timeout=30)) for _ in range(20)]
            # In one write each, so that some handshakes have begun when the turn begins.
            with RawClient(proxy, timeout=30) as slow:
                for client in clients:
                    client.send(request_bytes("POST", CHAT, chat("deep")))
                slow.send(request_bytes("GET", "/standstill"))
                assert slow.read_head().status == 404
            assert [client.read_head().status for client in clients] == [200] * len(clients)


# --- The write clock ---------------------------------------------------------------------------------------------


def trusting(certificate: Certificate, router: Router, **settings: Any) -> Proxy:
    return Proxy(router, EIDPROXY_ROUTER_CA_FILE=certificate.certificate, **settings)


@pytest.mark.parametrize("events", range(4))
def test_a_tls_router_may_be_silent_for_longer_than_a_write_may_take(certificate: Certificate, events: int) -> None:
    """The request was written at once: nothing is unsent, so no clock of writing runs.

    The transport's signals go to and fro with each read, so the silence comes after none, one, two and three of them.
    """
    head, *rest = list(stream(list("abcd")))
    apart = [step for event in rest[:events] for step in (event, Drained())]
    with Router(tls=certificate.server()) as router:
        router.script = [Pause(1.2), head, *rest] if not events else [head, *apart, Pause(1.2), *rest[events:]]
        with trusting(certificate, router, EIDPROXY_ROUTER_WRITE_TIMEOUT_SECONDS=0.4) as proxy:
            answer = ask(proxy, "POST", CHAT, chat("deep"))
            assert (answer.status, answer.reason) == (200, None)
            assert told(answer.body).text == "abcd"
            at_rest(router, proxy)
