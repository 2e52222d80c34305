"""relay: ends that could be taken for one another. The rest of its behaviour is tested from outside, by promise."""

import json
import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.lab.client import CHAT, Answer, RawClient, ask, chat, request_bytes
from tests.lab.proxy import Proxy
from tests.lab.router import Router
from tests.lab.script import (
    DONE,
    Pause,
    Reset,
    Stall,
    Wait,
    chunk,
    completion_chunk,
    event,
    status,
    stream,
    stream_head,
    wire,
)
from tests.lab.tools import until


def finished() -> bytes:
    """A whole answer but for its `[DONE]`."""
    return chunk(event(completion_chunk({"content": "whole"}))) + chunk(event(completion_chunk({}, "stop")))


@pytest.mark.parametrize("word", ["client_gone", "draining", "stream_deadline_exceeded", "upstream_silent"])
def test_a_word_of_the_router_is_none_of_ours(router: Router, proxy: Proxy, word: str) -> None:
    router.enqueue(status(503, {"error": {"type": word}}), [stream_head(), chunk(event({"error": {"type": word}}))])
    for _ in range(2):
        answer = ask(proxy, "POST", CHAT, chat("deep"))
        assert (answer.status, answer.reason) == (503, word)
        assert answer.get("Retry-After") is not None
    labels = {"surface": "proxy", "mode": "deep", "outcome": "error", "reason": "other"}
    assert proxy.metric("eidproxy_requests_total", **labels) == 2
    for clock in ("total", "queue"):
        assert proxy.metric("eidproxy_deadline_exceeded_total", mode="deep", deadline=clock) == 0


@pytest.mark.parametrize("streamed", [True, False])
def test_no_clock_makes_an_error_of_a_whole_answer(router: Router, streamed: bool) -> None:
    """The wall clock runs out while usage and `[DONE]` are waited for."""
    router.script = [stream_head(), finished(), Stall()]
    with Proxy(router, EIDPROXY_STREAM_DEADLINE_SECONDS=1) as proxy:
        answer = ask(proxy, "POST", CHAT, chat("daily", streamed))
        assert answer.status == 200
        if streamed:
            assert (answer.told().text, answer.told().done) == ("whole", True)
        else:
            assert answer.json()["choices"][0]["message"]["content"] == "whole"
        assert proxy.metric("eidproxy_stream_ends_total", mode="daily", end="no_done") == 1


def test_what_was_whole_before_an_event_too_large_is_passed_on(router: Router, proxy: Proxy) -> None:
    large = b"data: " + b"x" * 1_048_600 + b"\n\n"
    router.enqueue([stream_head(), chunk(event(completion_chunk({"content": "before"})) + large), Stall()])
    answer = ask(proxy, "POST", CHAT, chat("deep"))
    assert answer.status == 200
    assert answer.told().text == "before"
    assert b'"code":"upstream_protocol_error"' in answer.body
    assert b"[DONE]" not in answer.body


def test_a_whole_answer_stays_whole_before_an_event_too_large(router: Router, proxy: Proxy) -> None:
    large = chunk(b"data: " + b"x" * 1_048_600 + b"\n\n")
    router.enqueue([stream_head(), finished() + large + chunk(DONE), Stall()])
    answer = ask(proxy, "POST", CHAT, chat("deep"))
    assert (answer.told().text, answer.told().done) == ("whole", True)


def test_an_answer_that_is_held_has_a_bound(router: Router, proxy: Proxy) -> None:
    piece = chunk(event(completion_chunk({"content": "x" * 500_000})))
    router.enqueue([stream_head(), *[piece] * 10, Stall()])
    answer = ask(proxy, "POST", CHAT, chat("deep", stream=False))
    assert (answer.status, answer.reason) == (503, "upstream_protocol_error")


@pytest.mark.parametrize("progress", ["0", "1"])
def test_a_silent_router_is_noticed_in_time_in_every_mode(router: Router, progress: str) -> None:
    """Also when the keepalive to the caller is further apart than the router may be silent."""
    router.script = [Stall()]
    with Proxy(router, EIDPROXY_ROUTER_FIRST_EVENT_SECONDS=0.3, EIDPROXY_ROUTER_FIRST_EVENT_SECONDS_PER_KIB=0) as proxy:
        headers = {"Content-Type": "application/json", "X-Eid-Progress": progress}
        assert b"upstream_silent" in ask(proxy, "POST", CHAT, chat("daily"), headers).body


@pytest.mark.parametrize("streamed", [True, False])
def test_a_reset_after_a_silence_is_noticed_at_once(router: Router, proxy: Proxy, streamed: bool) -> None:
    """The reset comes when everything before it was read: nothing but the reset itself wakes the proxy."""
    router.script = [stream_head(), chunk(event(completion_chunk({"content": "before"}))), Wait("go"), Reset()]
    with RawClient(proxy, timeout=5) as client:
        client.send(request_bytes("POST", CHAT, chat("deep", streamed)))
        until(lambda: proxy.metric("eidproxy_time_to_first_token_seconds_count", mode="deep") == 1)
        router.release("go")
        answer = Answer(*client.read_head(), client.read_body(), client.clean)
    assert b"router_ReadError" in answer.body
    assert answer.status == (200 if streamed else 503)


def test_what_came_before_a_reset_counts(router: Router, proxy: Proxy) -> None:
    """The end of an answer and the reset behind it are there at once, when the proxy comes round to look."""
    rest = [chunk(event(completion_chunk({"content": "x" * 1000}))) for _ in range(40)]
    router.script = [stream_head(), chunk(event(completion_chunk({"content": "before"}))), Wait("go"),
                     b"".join([*rest, finished()]), Pause(0.05), Reset()]  # fmt: skip
    with RawClient(proxy, timeout=5) as client:
        client.send(request_bytes("POST", CHAT, chat("deep")))
        until(lambda: proxy.metric("eidproxy_time_to_first_token_seconds_count", mode="deep") == 1)
        proxy.signal(signal.SIGSTOP)
        router.release("go")
        router.wait_for(lambda: router.concurrent == 0)
        proxy.signal(signal.SIGCONT)
        answer = Answer(*client.read_head(), client.read_body(), client.clean)
    assert answer.told().done
    assert len(answer.told().text) == len("before") + 40_000 + len("whole")


TELL_GARBAGE = """
import collections, gc, json, pathlib, signal
def tell(*_):
    gc.collect()
    pathlib.Path({path!r}).write_text(json.dumps(collections.Counter(type(each).__name__ for each in gc.garbage)))
    gc.garbage.clear()
signal.signal(signal.SIGUSR1, tell)
gc.set_debug(gc.DEBUG_SAVEALL)
"""


@pytest.mark.parametrize("after_leave", ["release", "settle", "first_event"])
@pytest.mark.parametrize("model", ["daily", "deep"])
def test_a_request_is_freed_where_it_ends(router: Router, tmp_path: Path, model: str, after_leave: str) -> None:
    """Nothing is left for the collector, which runs when it wants to: memory is what is open, and no more."""
    path = tmp_path / "garbage.json"
    garbage = TELL_GARBAGE.format(path=str(path))
    with Proxy(router, planted=garbage, EIDPROXY_LOG_LEVEL="error", EIDPROXY_GATE_AFTER_LEAVE=after_leave,
               EIDPROXY_GATE_SETTLE_SECONDS=1) as proxy:  # fmt: skip

        def told() -> Counter[str]:
            path.unlink(missing_ok=True)
            proxy.signal(signal.SIGUSR1)
            until(lambda: path.exists() and path.read_text().endswith("}"))
            return Counter(json.loads(path.read_text()))

        ask(proxy, "POST", CHAT, chat(model))  # what is made once
        told()
        once = told()  # circles of the libraries' own, from their import: they come back each time
        for _ in range(10):
            ask(proxy, "POST", CHAT, chat(model))
            ask(proxy, "POST", CHAT, chat(model, stream=False))
            router.enqueue(status(503))
            ask(proxy, "POST", CHAT, chat(model))
            router.enqueue([*stream()[:3], Stall()])
            with RawClient(proxy) as client:
                client.send(request_bytes("POST", CHAT, chat(model)))
                client.read_head()
            for bad in (b"zz\r\n", b"HTTP/1.1 101 Up\r\nUpgrade: x\r\n\r\n", b"0\r\nX: " + b"x" * 200_000):
                router.enqueue([wire(stream()[:3]), bad, Stall()])
                ask(proxy, "POST", CHAT, chat(model))
            router.enqueue([b"no HTTP", Stall()])
            ask(proxy, "POST", CHAT, chat(model))
        asked = router.posts
        for _ in range(10):
            router.enqueue([Wait(f"{asked}"), *stream()])
            with RawClient(proxy) as client:  # it leaves before the first event
                client.send(request_bytes("POST", CHAT, chat(model)))
                router.wait_for(lambda number=asked: router.posts > number)  # type: ignore[misc]
            until(lambda: not any(proxy.status()["streams"].values()))
            router.release(f"{asked}")
            asked += 1
        until(lambda: not any(proxy.status()["streams"].values()) and router.open_sockets == 0)
        assert not {name: count for name, count in (told() - once).items() if count >= 10}


def test_a_queue_that_is_full_keeps_its_status_in_progress_mode(router: Router) -> None:
    """What is known before anything is sent is a 503 with Retry-After, which an event could not carry (DESIGN 12)."""
    router.script = stream(gate="go")
    with (
        Proxy(router, EIDPROXY_GATE_MAX_WAITING=1) as proxy,
        RawClient(proxy) as holder,
        RawClient(proxy) as waiter,
    ):
        for number, client in enumerate((holder, waiter)):
            client.send(request_bytes("POST", CHAT, chat()))
            until(lambda number=number: len(proxy.status()["gate"]["waiting"]) == number)  # type: ignore[misc]
            router.wait_for(lambda: router.posts == 1)
        answer = ask(proxy, "POST", CHAT, chat(), {"Content-Type": "application/json", "X-Eid-Progress": "1"})
        assert (answer.status, answer.reason) == (503, "gate_queue_full")
        assert answer.get("Retry-After") is not None
        router.release("go")


def test_a_silence_after_a_late_first_event_is_filled(router: Router) -> None:
    """A cold model: the first event comes when the router has been silent for longer than the caller may be."""
    router.script = [stream_head(), Pause(0.4), chunk(event(completion_chunk({"content": "late"}))), Wait("go"),
                     finished() + chunk(DONE)]  # fmt: skip
    with Proxy(router, EIDPROXY_STREAM_KEEPALIVE_SECONDS=0.2) as proxy, RawClient(proxy, timeout=5) as client:
        client.send(request_bytes("POST", CHAT, chat("deep")))
        head = client.read_head()
        assert head.status == 200
        got = b""
        while got.count(b": keepalive") < 2:
            got += client.sock.recv(4096)
        router.release("go")
