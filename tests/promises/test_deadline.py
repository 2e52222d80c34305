"""The wall clock (contract, P7): counted from the grant, whatever the router, the caller or the clocks do."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.callers import at_rest, check_error_event, check_refusal
from tests.lab.client import CHAT, Answer, RawClient, ask, chat, request_bytes
from tests.lab.cost import Beside
from tests.lab.proxy import Proxy
from tests.lab.router import Router
from tests.lab.script import Pause, Script, Send, Stall, Trickle, chunk, completion_chunk, event, stream, stream_head
from tests.lab.tools import need, until, without
from tests.lab.tools import size as amount

DEADLINE = amount(8, 20) / 10
EARLY, LATE = 0.01, 0.4
"""Of the second that is allowed, on a machine that is not late itself; the clock steps by 1 ms."""

WORD = chunk(event(completion_chunk({"content": "x"})))
SCRIPTS: dict[str, Script] = {
    "silent": [Stall()],
    "silent after the head": [Send(stream_head()), Stall()],
    "silent mid-stream": [Send(stream_head() + WORD), Stall()],
    "trickling": [Send(stream_head()), Trickle(WORD * 100, len(WORD), 0.1)],
    "trickling head": [Trickle(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 5000, 1, 0.005)],
    "comments": [Send(stream_head()), Trickle(chunk(b": x\n\n") * 1000, 13, 0.05)],
}


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[Router, Proxy]]:
    with (
        Router() as router,
        Proxy(router, EIDPROXY_STREAM_DEADLINE_SECONDS=DEADLINE, EIDPROXY_ROUTER_WEDGE_AFTER=0) as proxy,
    ):
        yield router, proxy


@pytest.fixture
def router(shared: tuple[Router, Proxy]) -> Iterator[Router]:
    shared[0].reset()
    yield shared[0]
    at_rest(*shared)
    assert shared[1].metric("eidproxy_gate_forced_releases_total") == 0


@pytest.fixture(autouse=True)
def beside() -> Iterator[Beside]:
    with Beside() as measured:
        yield measured


def ended_in_time(router: Router, beside: Beside, number: int = 0) -> None:
    """The router's socket was closed when the deadline was over, and the next request came right after."""
    first, then = router.requests[number], router.requests[number + 1]
    router.wait_for(lambda: bool(router.closes))
    close = next(close for close in router.closes if close.request is first)
    # The grant is at most a connect earlier than the request's arrival.
    assert DEADLINE - beside.allow(0.1) < close.at - first.at < DEADLINE + beside.allow(LATE), close.at - first.at
    assert -beside.allow(0.01) < then.at - close.at < beside.allow(0.1), then.at - close.at


@pytest.mark.parametrize(
    ("name", "streaming"), [*((name, True) for name in SCRIPTS), ("silent", False), ("trickling", False)]
)
def test_deadline(shared: tuple[Router, Proxy], router: Router, beside: Beside, name: str, streaming: bool) -> None:
    proxy = shared[1]
    router.enqueue(SCRIPTS[name])
    router.script = stream()
    with RawClient(proxy) as client, RawClient(proxy) as waiter:
        began = time.monotonic()
        client.send(request_bytes("POST", CHAT, chat(stream=streaming)))
        router.wait_for(lambda: router.posts == 1)
        waiter.send(request_bytes("POST", CHAT, chat()))
        status, headers = client.read_head()
        answer = Answer(status, headers, client.read_body(), client.clean)
        assert DEADLINE - EARLY < time.monotonic() - began < DEADLINE + beside.allow(LATE)
        assert waiter.read_head().status == 200
    if streaming and status == 200:
        check_error_event(answer, 503, "stream_deadline_exceeded")
    else:
        check_refusal(answer, 503, "stream_deadline_exceeded")
        assert answer.get("x-should-retry") == "false"
    assert (status == 200) == (streaming and name in ("silent mid-stream", "trickling"))
    ended_in_time(router, beside)


def test_flooding_router_and_a_caller_that_reads_nothing(
    shared: tuple[Router, Proxy], router: Router, beside: Beside
) -> None:
    """The buffer of the caller fills, the router is read no further, and the deadline ends it all the same."""
    proxy = shared[1]
    flood = WORD * 200
    router.enqueue(itertools.chain([Send(stream_head())], itertools.repeat(Send(flood))))
    router.script = stream()
    before = proxy.rss()
    with RawClient(proxy, receive_buffer=4096) as client, RawClient(proxy) as waiter:
        client.send(request_bytes("POST", CHAT, chat()))
        router.wait_for(lambda: router.posts == 1)
        waiter.send(request_bytes("POST", CHAT, chat()))
        assert waiter.read_head().status == 200
        ended_in_time(router, beside)
        assert proxy.rss() - before < 16 * 2**20
        # Half a second later the caller's connection is gone too: what it did not take is dropped.
        until(lambda: not proxy.holds(client), what="the caller's connection closed")
        with contextlib.suppress(ConnectionResetError):
            client.read_head()
            client.read_body()
        assert not client.clean


def test_flooding_router_and_a_caller_that_reads(shared: tuple[Router, Proxy], router: Router, beside: Beside) -> None:
    proxy = shared[1]
    router.enqueue(itertools.chain([Send(stream_head())], itertools.cycle([Send(WORD * 20), Pause(0.001)])))
    router.script = stream()
    with RawClient(proxy) as client, RawClient(proxy) as waiter:
        client.send(request_bytes("POST", CHAT, chat()))
        router.wait_for(lambda: router.posts == 1)
        waiter.send(request_bytes("POST", CHAT, chat()))
        head = client.read_head()
        answer = Answer(head.status, head.headers, client.read_body(), client.clean)
        check_error_event(answer, 503, "stream_deadline_exceeded")
        assert waiter.read_head().status == 200
    ended_in_time(router, beside)


def test_waiting_does_not_count(shared: tuple[Router, Proxy], router: Router, beside: Beside) -> None:
    """A request that has waited longer than the deadline in the queue has all of it from its grant on."""
    proxy = shared[1]
    router.enqueue([Stall()], [Stall()], [Send(stream_head()), Trickle(WORD * 100, len(WORD), 0.1)])
    with RawClient(proxy) as first, RawClient(proxy) as second, RawClient(proxy) as third:
        for number, client in enumerate((first, second, third)):
            client.send(request_bytes("POST", CHAT, chat(say=f"{number}")))
            until(lambda expected=number: len(proxy.status()["gate"]["waiting"]) == expected)  # type: ignore[misc]
        for client in (first, second):
            assert client.read_head().status == 503
        head = third.read_head()
        answer = Answer(head.status, head.headers, third.read_body(), third.clean)
        check_error_event(answer, 503, "stream_deadline_exceeded")
    router.wait_for(lambda: len(router.closes) == 3)
    for request, close in zip(router.requests, router.closes, strict=True):
        assert close.request is request
        assert DEADLINE - beside.allow(0.1) < close.at - request.at < DEADLINE + beside.allow(LATE)


def test_progress_and_deep(shared: tuple[Router, Proxy], router: Router) -> None:
    proxy = shared[1]
    router.script = [Stall()]
    for model in ("daily", "deep"):
        answer = ask(proxy, "POST", CHAT, chat(model), {"X-Eid-Progress": "1"})
        check_error_event(answer, 503, "stream_deadline_exceeded")
        assert proxy.metric("eidproxy_deadline_exceeded_total", mode=model, deadline="total") >= 1


def test_answers_within_the_deadline_are_whole(shared: tuple[Router, Proxy], router: Router) -> None:
    """Control: the same trickle, half as long as the deadline, ends well."""
    proxy = shared[1]
    words = stream(["x"] * 5, interval=0.1)
    router.script = words
    answer = ask(proxy, "POST", CHAT, chat())
    assert (answer.told().text, answer.told().done, answer.told().errors) == ("x" * 5, True, [])


# --- clocks that are turned, processes that stand still ----------------------------------------------------------


def faketime() -> str:
    """The library that turns the wall clock of a process."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    if not found:
        need("faketime")
        without("missing: libfaketime.so.1")
    return str(found[0])


def play_with_turned_clocks(tmp_path: Path, beside: Beside, turn: str, *, all_clocks: bool = False) -> None:
    """Turn the wall clock, or all clocks, of the proxy during a stream. Both streams must end at their deadline."""
    control = tmp_path / "clock"
    control.write_text("+0")
    with (
        Router() as router,
        Proxy(
            router,
            LD_PRELOAD=faketime(),
            FAKETIME_TIMESTAMP_FILE=str(control),
            FAKETIME_NO_CACHE=1,
            FAKETIME_DONT_FAKE_MONOTONIC=0 if all_clocks else 1,
            EIDPROXY_STREAM_DEADLINE_SECONDS=DEADLINE,
            EIDPROXY_ROUTER_WEDGE_AFTER=0,
        ) as proxy,
    ):
        router.script = [Send(stream_head()), Trickle(WORD * 100, len(WORD), 0.1)]
        with RawClient(proxy) as client, RawClient(proxy) as waiter:
            began = time.monotonic()
            client.send(request_bytes("POST", CHAT, chat()))
            client.read_head()
            waiter.send(request_bytes("POST", CHAT, chat(), {"X-Eid-Progress": "1"}))
            waiter.read_head()
            control.write_text(turn)
            answer = Answer(200, client._head.headers if client._head else [], client.read_body(), client.clean)
            assert DEADLINE - EARLY < time.monotonic() - began < DEADLINE + beside.allow(LATE), "early or late"
            check_error_event(answer, 503, "stream_deadline_exceeded")
            router.wait_for(lambda: router.posts == 2)
            waiting = Answer(200, waiter._head.headers if waiter._head else [], waiter.read_body(), waiter.clean)
            check_error_event(waiting, 503, "stream_deadline_exceeded")
            assert 2 * DEADLINE - 2 * EARLY < time.monotonic() - began < 2 * DEADLINE + beside.allow(2 * LATE)
        # Control: the clock was turned indeed, which only `created` and the log's times may show.
        router.script = stream()
        created = ask(proxy, "POST", CHAT, chat()).events()[0].json()["created"]
        if turn != "+0 x30":
            assert abs(abs(created - time.time()) - 3600) < 10


@pytest.mark.parametrize("turn", ["+1h", "-1h", "+0 x30"])
def test_the_wall_clock_is_turned(tmp_path: Path, beside: Beside, turn: str) -> None:
    """The wall clock jumps an hour, or runs 30 times as fast, during a stream: nothing ends early or late."""
    play_with_turned_clocks(tmp_path, beside, turn)


def test_control_a_deadline_by_a_turned_clock_is_noticed(tmp_path: Path, beside: Beside) -> None:
    """Control: when the clock that eidproxy goes by is turned as well, the same play ends early, and fails."""
    with pytest.raises(AssertionError, match="early or late"):
        play_with_turned_clocks(tmp_path, beside, "+1h", all_clocks=True)


@pytest.mark.parametrize("who", ["proxy", "caller"])
def test_stopped_and_continued(shared: tuple[Router, Proxy], router: Router, beside: Beside, who: str) -> None:
    """SIGSTOP of the proxy past the deadline: afterwards everything that ran out ends at once, and service goes on."""
    proxy = shared[1]
    router.enqueue([Send(stream_head() + WORD), Stall()])
    router.script = stream()
    with RawClient(proxy, receive_buffer=4096 if who == "caller" else None) as client, RawClient(proxy) as waiter:
        client.send(request_bytes("POST", CHAT, chat()))
        client.read_head()
        waiter.send(request_bytes("POST", CHAT, chat()))
        until(lambda: len(proxy.status()["gate"]["waiting"]) == 1)
        if who == "proxy":
            os.kill(proxy.pid, signal.SIGSTOP)
            try:
                with pytest.raises(AssertionError):
                    router.wait_for(lambda: router.posts == 2, DEADLINE + 1)
            finally:
                os.kill(proxy.pid, signal.SIGCONT)
        else:
            router.wait_for(lambda: router.posts == 2, DEADLINE + 1)
        resumed = time.monotonic()
        assert waiter.read_head().status == 200
        assert waiter.read_body().endswith(b"data: [DONE]\n\n")
        assert time.monotonic() - resumed < beside.allow(1)
        head = client._head
        answer = Answer(200, head.headers if head else [], client.read_body(), client.clean)
        check_error_event(answer, 503, "stream_deadline_exceeded")
    assert router.max_concurrent == 1
