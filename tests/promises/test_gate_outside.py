"""The gate from outside (contract, P4, P5 and P8): how many, and in which order, judged at the router's sockets."""

from __future__ import annotations

import contextlib
import math
import random
import resource
import statistics
import time
from collections.abc import Iterator

import pytest

from tests.lab.callers import AT_ONCE, at_rest, check_error_event, check_refusal, rounds
from tests.lab.client import CHAT, Answer, RawClient, ask, chat, request_bytes
from tests.lab.proxy import Proxy
from tests.lab.router import Router
from tests.lab.script import Send, chunk, completion_chunk, event, stream, stream_head
from tests.lab.stream import told
from tests.lab.tools import size as amount
from tests.lab.tools import until

GO = "go"


def order(router: Router) -> list[str]:
    """What the requests said, in the order in which they reached the router."""
    return [request.json["messages"][0]["content"] for request in router.requests if request.model != "qwen-macbook"]


def in_line(proxy: Proxy, priority: str) -> int:
    """How many of this priority wait. From /status, which is never old; the text of the metrics may be, for 1 s."""
    return sum(waiter["priority"] == priority for waiter in proxy.status()["gate"]["waiting"])


class Line:
    """Callers that wait in a known order: each is in the queue before the next one comes."""

    def __init__(self, router: Router, proxy: Proxy) -> None:
        self.router = router
        self.proxy = proxy
        self.clients: dict[str, RawClient] = {}
        self.waiting = 0

    def hold(self) -> None:
        """Take the slot and keep it until `router.release`."""
        self._send("holder", "foreground")
        self.router.wait_for(lambda: self.router.waiting(GO) == 1)

    def queue(self, name: str, priority: str = "foreground") -> None:
        """Join the queue."""
        self._send(name, priority)
        self.waiting += 1
        until(lambda: len(self.proxy.status()["gate"]["waiting"]) == self.waiting, what=f"{name} waits")

    def _send(self, name: str, priority: str) -> None:
        client = self.clients[name] = RawClient(self.proxy, timeout=30)
        client.send(request_bytes("POST", CHAT, chat(say=name), {"X-Eid-Priority": priority}))

    def answer(self, name: str) -> Answer:
        """Read the answer of one of them."""
        with self.clients.pop(name) as client:
            status, headers = client.read_head()
            return Answer(status, headers, client.read_body(), client.clean)

    def leave(self, name: str) -> None:
        """One of them leaves its place."""
        self.clients.pop(name).rst()
        self.waiting -= 1
        until(lambda: len(self.proxy.status()["gate"]["waiting"]) == self.waiting)

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self.clients.values():
            client.close()


@pytest.fixture
def line(router: Router) -> Iterator[Line]:
    router.script = stream(gate=GO)
    with Proxy(router, EIDPROXY_GATE_MAX_WAITING=1000, EIDPROXY_GATE_AGING_SECONDS=0) as proxy:
        with Line(router, proxy) as line:
            yield line
        at_rest(router, proxy)
        assert proxy.metric("eidproxy_gate_forced_releases_total") == 0


def test_two_hundred(line: Line, seed: int) -> None:
    choose = random.Random(seed)
    line.hold()
    names: dict[str, list[str]] = {"foreground": [], "background": []}
    for number in range(200):
        priority = choose.choice(["foreground", "background"])
        names[priority].append(f"{priority} {number}")
        line.queue(names[priority][-1], priority)
    line.router.release(GO)
    for name in ["holder", *names["foreground"], *names["background"]]:
        assert line.answer(name).told().done
    assert order(line.router) == ["holder", *names["foreground"], *names["background"]]
    assert line.router.max_concurrent == 1
    assert line.router.posts == 201


def test_control_an_open_gate_is_noticed(router: Router) -> None:
    """Control: with a gate that is wide open the same judge sees more than one."""
    router.script = stream(gate=GO)
    with Proxy(router, EIDPROXY_GATE_CAPACITY=5) as proxy, Line(router, proxy) as line:
        for number in range(5):
            line._send(f"{number}", "foreground")
        router.wait_for(lambda: router.waiting(GO) == 5)
        router.release(GO)
    assert router.max_concurrent == 5


def test_racing_callers(router: Router, seed: int) -> None:
    """200 at the same time and no order known: never two at the router, everybody is served."""
    choose = random.Random(seed)
    router.script = lambda _: stream(["a", "b"], interval=choose.choice([0, 0, 0.002]))
    with Proxy(router, EIDPROXY_GATE_MAX_WAITING=1000) as proxy, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(RawClient(proxy, timeout=30)) for _ in range(200)]
        for client in clients:
            client.send(request_bytes("POST", CHAT, chat()))
        for client in clients:
            assert client.read_head().status == 200
            assert client.read_body().endswith(b"[DONE]\n\n")
        assert (router.max_concurrent, router.posts) == (1, 200)
        at_rest(router, proxy)


def test_deep_has_no_gate(line: Line) -> None:
    line.hold()
    deep = [RawClient(line.proxy) for _ in range(20)]
    for client in deep:
        client.send(request_bytes("POST", CHAT, chat("deep")))
    line.router.wait_for(lambda: line.router.waiting(GO) == 21)
    assert line.router.max_concurrent_by_model == {"mac-mini-default": 1, "qwen-macbook": 20}
    line.router.release(GO)
    for client in deep:
        with client:
            assert client.read_head().status == 200
    assert line.answer("holder").told().done


def test_leaving_the_queue_gives_up_the_place(line: Line) -> None:
    line.hold()
    for name in "abcde":
        line.queue(name)
    for name in "ace":
        line.leave(name)
    line.router.release(GO)
    for name in ("holder", "b", "d"):
        assert line.answer(name).told().done
    assert order(line.router) == ["holder", "b", "d"]


def test_full_queue(router: Router) -> None:
    router.script = stream(gate=GO)
    with Proxy(router, EIDPROXY_GATE_MAX_WAITING=3) as proxy, Line(router, proxy) as line:
        line.hold()
        for name in ("b1", "b2", "b3"):
            line.queue(name, "background")
        refused, usual = [], []
        for _ in range(100):
            began = time.monotonic()
            answer = ask(proxy, "POST", CHAT, chat(), {"X-Eid-Priority": "background"})
            refused.append(time.monotonic() - began)
            check_refusal(answer, 503, "gate_queue_full")
            began = time.monotonic()
            assert ask(proxy, "GET", "/healthz").status == 200
            usual.append(time.monotonic() - began)
        # The tenth of a hundred: on a busy machine the slower ones tell of it.
        of_usual = sorted(refused)[10] / sorted(usual)[10]
        print(f"refused in p50 {statistics.median(refused) * 1e3:.1f} ms, {of_usual:.1f} times what /healthz takes")
        assert of_usual < 10  # it waits for nothing
        # FOREGROUND takes the place of the youngest BACKGROUND, which is told so at once.
        for newcomer, displaced in (("f1", "b3"), ("f2", "b2"), ("f3", "b1")):
            line._send(newcomer, "foreground")
            check_refusal(line.answer(displaced), 503, "gate_queue_full")
        check_refusal(ask(proxy, "POST", CHAT, chat()), 503, "gate_queue_full")
        assert [waiter["priority"] for waiter in proxy.status()["gate"]["waiting"]] == ["foreground"] * 3
        router.release(GO)
        for name in ("holder", "f1", "f2", "f3"):
            assert line.answer(name).told().done
        assert order(router) == ["holder", "f1", "f2", "f3"]
        assert proxy.metric("eidproxy_gate_wait_seconds_count", priority="background", outcome="full") == 103
        at_rest(router, proxy)


def test_no_waiting_at_all(router: Router) -> None:
    router.script = stream(gate=GO)
    with Proxy(router, EIDPROXY_GATE_MAX_WAITING=0) as proxy, Line(router, proxy) as line:
        line.hold()
        check_refusal(ask(proxy, "POST", CHAT, chat()), 503, "gate_queue_full")
        router.release(GO)
        assert line.answer("holder").told().done
        assert ask(proxy, "POST", CHAT, chat()).status == 200


def test_aging(router: Router) -> None:
    """BACKGROUND that has waited long enough goes before FOREGROUND that came later, not before an earlier one."""
    router.script = stream(gate=GO)
    with Proxy(router, EIDPROXY_GATE_AGING_SECONDS=0.5) as proxy, Line(router, proxy) as line:
        line.hold()
        line.queue("f early")
        line.queue("b old", "background")
        until(lambda: any(each["age_seconds"] > 0.6 for each in proxy.status()["gate"]["waiting"][1:]))
        line.queue("f late")
        line.queue("b young", "background")
        router.release(GO)
        for name in ("holder", "f early", "b old", "f late", "b young"):
            assert line.answer(name).told().done
        assert order(router) == ["holder", "f early", "b old", "f late", "b young"]


def test_wait_timeout(router: Router) -> None:
    router.script = stream(gate=GO)
    with Proxy(router, EIDPROXY_GATE_WAIT_TIMEOUT_SECONDS=0.4) as proxy, Line(router, proxy) as line:
        line.hold()
        for headers in ({}, {"X-Eid-Priority": "background"}):
            began = time.monotonic()
            check_refusal(ask(proxy, "POST", CHAT, chat(), headers), 503, "gate_wait_timeout")
            assert 0.39 < time.monotonic() - began < 30  # the default is 300 s
        answer = ask(proxy, "POST", CHAT, chat(), {"X-Eid-Progress": "1"})
        check_error_event(answer, 503, "gate_wait_timeout")
        [progress] = answer.told().progress
        assert (progress["state"], progress["position"]) == ("queued", 1)
        assert router.posts == 1
        assert proxy.metric("eidproxy_deadline_exceeded_total", mode="daily", deadline="queue") == 3
        router.release(GO)
        assert line.answer("holder").told().done
        at_rest(router, proxy)


def test_retry_after_follows_the_service_times(router: Router) -> None:
    router.script = stream(gate=GO)
    with Proxy(router, EIDPROXY_GATE_MAX_WAITING=1) as proxy, Line(router, proxy) as line:
        line.hold()
        until(lambda: proxy.status()["gate"]["holders"][0]["age_seconds"] > 1.5)
        router.release(GO, 1)
        assert line.answer("holder").told().done
        line.hold()
        line.queue("waiter")
        # Measured: about 1.6 s a job, more on a busy machine; it would be the second to wait.
        mean = proxy.status()["gate"]["mean_hold_seconds"]
        assert mean >= 1.5
        answer = ask(proxy, "POST", CHAT, chat())
        check_refusal(answer, 503, "gate_queue_full")
        assert answer.get("Retry-After") == str(math.ceil(2 * mean))
        router.release(GO)


def test_positions_only_fall(line: Line) -> None:
    """FOREGROUND newcomers push a BACKGROUND waiter back; what it is told only falls."""
    line.hold()
    for number in range(3):
        line.queue(f"f{number}")
    with RawClient(line.proxy, timeout=10) as waiter:
        waiter.send(
            request_bytes("POST", CHAT, chat(), {"X-Eid-Priority": "background", "X-Eid-Progress": "1"}),
        )
        line.waiting += 1
        until(lambda: len(line.proxy.status()["gate"]["waiting"]) == 4)
        for number in range(3, 6):
            line.queue(f"f{number}")
        line.router.release(GO)
        waiter.read_head()
        body = waiter.read_body()
        answer = Answer(200, [], body, waiter.clean)
    places = [each["position"] for each in answer.told().progress if each["state"] == "queued"]
    assert places[0] == 4
    assert places == sorted(set(places), reverse=True)
    assert places[-1] == 1
    assert answer.told().progress[-1] == {"state": "upstream", "elapsed_seconds": 0}
    assert answer.told().done


def test_slow_reader_keeps_no_slot(line: Line) -> None:
    """A caller that reads nothing of 2,048 tokens: the next one is served as soon as the router has finished."""
    texts = [f"token {number} " + "x" * 40 for number in range(2048)]
    events = b"".join(chunk(event(completion_chunk({"content": text}))) for text in texts)
    line.router.enqueue(
        [Send(stream_head()), Send(events + chunk(event(completion_chunk(finish="stop"))) + b"0\r\n\r\n")]
    )
    line.router.script = stream()
    with RawClient(line.proxy, receive_buffer=4096) as slow:
        slow.send(request_bytes("POST", CHAT, chat()))
        line.router.wait_for(lambda: line.router.posts == 1 and line.router.concurrent == 0)
        with RawClient(line.proxy) as following:
            following.send(request_bytes("POST", CHAT, chat(say="next")))
            assert rounds(line.proxy, lambda: line.router.posts == 2) < AT_ONCE
            assert following.read_head().status == 200
            assert told(following.read_body()).done
        assert slow.read_head().status == 200
        answer = Answer(200, [], slow.read_body(), slow.clean)
        assert answer.told().text == "".join(texts)
        assert answer.told().done
    assert line.router.max_concurrent == 1


def test_overload(line: Line, seed: int) -> None:
    """Many wait, FOREGROUND to BACKGROUND 1:9. FOREGROUND that comes waits for one running job at most."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    count = amount(500, 1000)
    line.hold()
    try:
        for number in range(count):
            line._send(f"b{number}", "background")
        until(lambda: in_line(line.proxy, "background") == count)
        line.router.reset()
        for number in range(count // 9):
            name = f"f{number}"
            line._send(name, "foreground")
            until(lambda: in_line(line.proxy, "foreground") == 1)
            line.router.release(GO, 1)
            line.router.wait_for(lambda expected=number + 1: line.router.posts == expected)  # type: ignore[misc]
        assert order(line.router) == [f"f{number}" for number in range(count // 9)]
        assert line.router.max_concurrent == 1
        print(f"EIDPROXY overload: {count} waited, {count // 9} of {count // 9} overtook")
    finally:
        for client in line.clients.values():
            client.rst()
        line.clients.clear()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
