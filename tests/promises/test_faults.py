"""Routers that fail (contract, P9 and 5): at every byte, in every way. Each has its reason; memory is bounded."""

from __future__ import annotations

import collections
import itertools
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.fuzz.mutation import broken
from tests.lab.callers import at_rest, check_error_event, check_refusal
from tests.lab.client import CHAT, Answer, RawClient, ask, chat, request_bytes
from tests.lab.cost import Beside
from tests.lab.proxy import Proxy, impatient
from tests.lab.router import Received, Router
from tests.lab.script import (
    LAST_CHUNK,
    Drained,
    Fin,
    Pause,
    Reset,
    Send,
    Stall,
    Step,
    Wait,
    chunk,
    completion_chunk,
    event,
    head,
    stream,
    stream_head,
    wire,
)
from tests.lab.tools import ROOT, need, until, without
from tests.lab.tools import size as amount

WORD = chunk(event(completion_chunk({"content": "x"})))
WHOLE = wire(stream(["one", "two", "three"]))
"""A good answer; the finish reason and what follows it come last."""

REASONS = {"router_ReadError", "router_RemoteProtocolError", "upstream_truncated", "upstream_protocol_error"}
REASONS |= {
    "router_ReadTimeout",
    "upstream_silent",
    "upstream_error",
    "router_error",
    "egress_blocked",
    "router_rejected",
    "upstream_502",
}


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[Router, Proxy]]:
    with Router() as router, Proxy(router, **impatient(0.5)) as proxy:
        yield router, proxy


@pytest.fixture(scope="module")
def patient(shared: tuple[Router, Proxy]) -> Iterator[Proxy]:
    """Another one before the same router, which may be slow: it plays a lot."""
    with Proxy(shared[0]) as proxy:
        yield proxy


@pytest.fixture
def router(shared: tuple[Router, Proxy]) -> Iterator[Router]:
    shared[0].reset()
    yield shared[0]
    at_rest(*shared)
    assert not [line for line in shared[1].log() if line["event"] == "fault"]
    shared[0].reset()


def judge(answer: Answer, reasons: set[str] = REASONS) -> str:
    """An answer is whole, or a status with a reason, or a begun stream with one error event: which of them."""
    if answer.status == 200 and (answer.get("Content-Type") or "").startswith("text/event-stream"):
        said = answer.told()
        assert answer.clean
        if said.done:
            assert said.errors == []
            assert said.finish_reason is not None
            return "ok"
        [error] = said.errors
        assert error["error_reason"] in reasons, error
        check_error_event(answer, 503, error["error_reason"])
        return f"event {error['error_reason']}"
    if answer.status == 200:
        assert answer.clean
        assert answer.json()["choices"][0]["finish_reason"]
        return "ok"
    assert answer.reason is not None
    assert answer.reason in reasons or answer.reason.startswith("router_http_"), answer
    check_refusal(answer, 500 if answer.reason in ("egress_blocked", "router_rejected") else 503, answer.reason)
    return answer.reason


def play(proxy: Proxy, router: Router, steps: list[Step], model: str, streaming: bool) -> str:
    """One request that the router answers so."""
    router.enqueue(steps)
    return judge(ask(proxy, "POST", CHAT, chat(model, streaming)))


def test_end_at_each_byte(shared: tuple[Router, Proxy], router: Router) -> None:
    """FIN and RST behind each of the first bytes of an answer, for a stream and for a whole answer."""
    proxy = shared[1]
    seen: collections.Counter[str] = collections.Counter()
    whole_at = WHOLE.index(b'"finish_reason": "stop"')
    cases = 0
    ends: tuple[Step, ...] = (Fin(), Reset())
    for cut, end, streaming in itertools.product(range(amount(200, len(WHOLE))), ends, (True, False)):
        found = play(proxy, router, [Send(WHOLE[:cut]), Drained(), end], "daily", streaming)
        cases += 1
        seen[found] += 1
        if cut < whole_at:
            assert found != "ok", cut
    assert router.max_concurrent == 1
    print(f"EIDPROXY ends at each byte: {cases} cases, {dict(seen)}")


PIECES = [b"\r\n", b"\0", b"\n\n", b"0\r\n\r\n", b"HTTP/1.1 500 X\r\n\r\n", b"data: "]


def mutated(choose: random.Random) -> list[Step]:
    """An answer with something wrong."""
    data = broken(WHOLE, choose, PIECES, most=3)
    return [Send(data), Fin() if choose.random() < 0.7 else Reset()]


@pytest.mark.timeout(900)
def test_damaged_answers(shared: tuple[Router, Proxy], router: Router, seed: int) -> None:
    proxy = shared[1]
    choose = random.Random(seed)
    seen: collections.Counter[str] = collections.Counter()
    for _ in range(amount(600, 20_000)):
        seen[play(proxy, router, mutated(choose), choose.choice(["daily", "deep"]), choose.random() < 0.7)] += 1
    print(f"EIDPROXY damaged answers: {sum(seen.values())} cases, {dict(seen)}")
    assert len(seen) > 4


HEADS = [
    (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX: " + b"a" * 70000 + b"\r\n\r\n",
        "router_RemoteProtocolError",
    ),
    (b"HTTP/1.1 200 OK\r\n Content-Type: text/event-stream\r\n\r\n", "router_RemoteProtocolError"),
    (b"HTTP/1.1 200 OK\r\nX y: z\r\n\r\n", "router_RemoteProtocolError"),
    (b"HTTP/1.1 2000 OK\r\n\r\n", "router_RemoteProtocolError"),
    (b"HTTP/1.1 abc OK\r\n\r\n", "router_RemoteProtocolError"),
    (b"HTTP/1.1 000 OK\r\n\r\n", "router_RemoteProtocolError"),
    (b"HTTP/1.1\r\n\r\n", "router_RemoteProtocolError"),
    (b"\r\n\r\n", None),
    (b"\x15\x03\x01\x00\x02\x02\x28", "router_RemoteProtocolError"),
    (b"HTTP/3.0 200 OK\r\n\r\n", "router_RemoteProtocolError"),
    (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "router_RemoteProtocolError"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "router_RemoteProtocolError"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n", "router_RemoteProtocolError"),
    (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        "router_RemoteProtocolError",
    ),
    (head(100) * 9 + stream_head(), "router_RemoteProtocolError"),
    (head(101, [("Upgrade", "x"), ("Connection", "Upgrade")]), "router_RemoteProtocolError"),
    (head(200, [("Content-Type", "text/event-streams"), ("Content-Length", "0")]), "upstream_protocol_error"),
    (head(200, [("Content-Type", "application/json"), ("Content-Length", "0")]), "upstream_protocol_error"),
    (
        head(200, [("Content-Type", "text/event-stream"), ("Content-Encoding", "br"), ("Content-Length", "0")]),
        "upstream_protocol_error",
    ),
    (head(304), "egress_blocked"),
    (head(205), "upstream_protocol_error"),
]


@pytest.mark.parametrize(("data", "reason"), HEADS, ids=range(len(HEADS)))
def test_bad_heads(shared: tuple[Router, Proxy], router: Router, data: bytes, reason: str | None) -> None:
    proxy = shared[1]
    for streaming in (True, False):
        for end in (Fin(), Stall()):
            found = play(proxy, router, [Send(data), end], "deep", streaming)
            assert found == reason or (reason is None and found in REASONS), found


def test_good_heads(shared: tuple[Router, Proxy], router: Router) -> None:
    """What is unusual and valid is taken: interim answers, names in any case, other fields, HTTP/1.0."""
    proxy = shared[1]
    body = WHOLE.partition(b"\r\n\r\n")[2]
    plain = b"".join(
        step.data for step in stream(["one", "two", "three"], chunked=False)[1:-1] if isinstance(step, Send)
    )
    heads = [
        head(100) + head(103) * 7 + stream_head() + body,
        b"HTTP/1.1 200\r\ncontent-type:TEXT/EVENT-STREAM\r\ntransfer-encoding:Chunked\r\n\r\n" + body,
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: identity\r\n\r\n" + plain,
        b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\nServer: BaseHTTP\r\n\r\n" + plain,
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n" % len(plain) + plain,
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX: " + b"a" * 20000 + b"\r\n\r\n" + plain,
    ]
    for data in heads:
        assert play(proxy, router, [Send(data), Fin()], "daily", True) == "ok", data[:80]


def test_slow_error_body(shared: tuple[Router, Proxy], router: Router) -> None:
    """An error whose body does not end: what it says so far decides, and no more than a bound of it is read."""
    proxy = shared[1]
    router.enqueue([Send(head(503, [("Content-Length", "99999")]) + b'{"error_reason":"warming"}'), Fin()])
    check_refusal(ask(proxy, "POST", CHAT, chat()), 503, "warming")
    flood = itertools.chain([Send(head(500, [("Connection", "close")]))], itertools.repeat(Send(b"x" * 65536)))
    router.enqueue(flood)
    check_refusal(ask(proxy, "POST", CHAT, chat()), 503, "router_http_500")


def test_early_answer(shared: tuple[Router, Proxy], router: Router) -> None:
    """A router that answers and hangs up before it has read the request."""
    proxy = shared[1]
    for _ in range(20):
        router.enqueue([Send(head(503, [("Content-Length", "2")]) + b"{}"), Reset()])
        answer = ask(proxy, "POST", CHAT, chat(say="x" * 500_000))
        assert answer.reason in ("router_503", "router_ReadError", "router_WriteError"), answer


# --- sizes -------------------------------------------------------------------------------------------------------


def lines(count: int, line: bytes) -> Iterator[Step]:
    """So many lines, 1,000 of them at once."""
    yield Send(stream_head())
    for _ in range(count // 1000):
        yield Send(chunk(line * 1000))


def bulk(proxy: Proxy, router: Router, script: Iterator[Step], reason: str | None) -> None:
    """Play a lot: memory stays within 16 MiB, other callers are served meanwhile, the end is as it must be.

    What another caller waits for is what the proxy works until then, so that no other process counts.
    """
    before = proxy.rss()
    top, slowest = before, 0.0
    router.enqueue(script)
    with RawClient(proxy, timeout=60) as client, Beside() as beside:
        client.send(request_bytes("POST", CHAT, chat(stream=False)))
        router.wait_for(lambda: router.posts >= 1)
        while router.concurrent:
            busy = proxy.cpu_seconds()
            assert ask(proxy, "GET", "/healthz", timeout=60).status == 200
            slowest = max(slowest, proxy.cpu_seconds() - busy)
            top = max(top, proxy.rss())
            time.sleep(0.01)
        answer = Answer(*client.read_head(), client.read_body(), client.clean)
    if reason is None:
        assert judge(answer) == "ok"
    else:
        check_refusal(answer, 503, reason)
    at_rest(router, proxy)
    assert not [line for line in proxy.log() if line["event"] == "fault"]
    print(f"EIDPROXY bulk: {reason}: rss +{(top - before) / 2**20:.1f} MiB, slowest probe {slowest * 1e3:.0f} ms")
    assert top - before < 16 * 2**20, "memory"
    assert slowest < 0.25 + max(beside.late), "a gap"


FINISH = chunk(event(completion_chunk({}, "stop"))) + LAST_CHUNK
COUNT = amount(200_000, 1_000_000)


@pytest.mark.parametrize(
    ("name", "line", "reason"),
    [
        ("comments", b": x\n\n", "upstream_truncated"),
        ("empty lines", b"\n", "upstream_truncated"),
        ("unknown lines", b"x: y\n\n", "upstream_truncated"),
        ("data lines", b"data: x\n\n", "upstream_truncated"),
        ("one event of many lines", b"data:\n", "upstream_protocol_error"),
        ("empty choices", b'data: {"choices":[]}\n\n', "upstream_truncated"),
    ],
)
def test_many_lines(patient: Proxy, router: Router, name: str, line: bytes, reason: str) -> None:
    bulk(patient, router, iter([*lines(COUNT, line), Send(LAST_CHUNK)]), reason)


@pytest.mark.parametrize("size", [2, amount(8, 64)])
def test_long_line(patient: Proxy, router: Router, size: int) -> None:
    def script() -> Iterator[Step]:
        yield Send(stream_head())
        yield Send(chunk(b"data: "))
        for _ in range(size * 16):
            yield Send(chunk(b"x" * 65536))

    bulk(patient, router, script(), "upstream_protocol_error")


def test_single_bytes(patient: Proxy, router: Router) -> None:
    """An answer in chunks of one byte."""
    body = b"".join(event(completion_chunk({"content": f"{number}"})) for number in range(amount(100, 500)))
    steps = [Send(stream_head()), *(Send(chunk(body[at : at + 1])) for at in range(len(body))), Send(FINISH)]
    bulk(patient, router, iter(steps), None)


HOARDS = "from eidproxy.relay import stream; stream.Stream.__init__.__defaults__ = (None, 2**30)"
STANDS_STILL = """
import time
from eidproxy.relay import sse
feed = sse.EventParser.feed
def slow(parser, data):
    sse.EventParser.feed = feed  # once is enough
    began = time.process_time()
    while time.process_time() - began < 2:
        pass
    return feed(parser, data)
sse.EventParser.feed = slow
"""


@pytest.mark.parametrize(
    ("planted", "script", "found"),
    [
        (HOARDS, [Send(stream_head()), Send(chunk(b"data: " + b"x" * 2**25)), Stall()], "memory"),
        (STANDS_STILL, [Send(stream_head()), Send(chunk(WORD)), Drained(), Pause(2), Send(FINISH)], "a gap"),
    ],
    ids=["memory", "gap"],
)
def test_control_what_is_not_bounded_is_noticed(planted: str, script: list[Step], found: str) -> None:
    """Control: a parser that takes a line of any length, and one that stands still, do not pass."""
    reason, patience = ("upstream_silent", 2) if found == "memory" else (None, 60)
    with (
        Router() as router,
        Proxy(router, planted=planted, **impatient(patience)) as proxy,
        pytest.raises(AssertionError, match=found),
    ):
        bulk(proxy, router, iter(script), reason)


# --- SIGSTOP of the router, and control --------------------------------------------------------------------------


def test_silence_within_the_read_timeout(shared: tuple[Router, Proxy], router: Router) -> None:
    """Control: a pause shorter than the read timeout is no fault."""
    proxy = shared[1]
    steps: list[Step] = [Send(stream_head()), Pause(0.3), Send(WORD), Pause(0.3), Send(FINISH)]
    assert play(proxy, router, steps, "daily", True) == "ok"
    assert play(proxy, router, [*steps[:3], Pause(4), Send(FINISH)], "daily", True) == "event router_ReadTimeout"


def test_control_the_judge_sees_a_silent_cut(router: Router) -> None:
    """Control: the scripted router by itself breaks off without a word, and the judge says so."""
    router.enqueue([Send(WHOLE[:-200].partition(b'"stop"')[0]), Fin()])
    with pytest.raises((AssertionError, ValueError)):
        judge(ask(router, "POST", CHAT, chat()))


def test_recovers_at_once(shared: tuple[Router, Proxy], router: Router) -> None:
    """A router that goes away and comes back: no fault outlives its cause."""
    proxy = shared[1]

    def broken(_: Received) -> list[Step]:
        return [Reset()]

    router.script = broken
    for _ in range(20):
        check_refusal(ask(proxy, "POST", CHAT, chat()), 503, "router_ReadError")
    router.hang_up()
    check_refusal(ask(proxy, "POST", CHAT, chat()), 503, "router_ConnectError")
    until(lambda: proxy.get("/readyz").status == 503)
    known = time.monotonic()
    until(lambda: time.monotonic() > known + 0.005)  # the loop's clock counts in ms: what comes later must be later
    router.listen()
    router.script = stream()
    assert ask(proxy, "POST", CHAT, chat()).told().done
    assert proxy.get("/readyz").status == 200


# --- peers that are gone without a word ----------------------------------------------------------------------------

SILENCE = """
import subprocess, sys, time
from tests.lab.client import CHAT, RawClient, chat, request_bytes
from tests.lab.proxy import Proxy
from tests.lab.router import Router
from tests.lab.script import Stall, stream
from tests.lab.tools import until

who = sys.argv[1]
with Router() as router, Proxy(router) as proxy:
    router.script = [*stream(["a"])[:3], Stall()]
    holder = RawClient(proxy)
    holder.send(request_bytes("POST", CHAT, chat()))
    holder.read_head()
    waiter = RawClient(proxy)
    waiter.send(request_bytes("POST", CHAT, chat()))
    until(lambda: len(proxy.status()["gate"]["waiting"]) == 1)
    # From now on nothing goes between eidproxy and that peer.
    port = router.port if who == "router" else waiter.sock.getsockname()[1]
    rule = f"add table inet t; add chain inet t c {{ type filter hook input priority 0; }}; " + "; ".join(
        f"add rule inet t c tcp {end} {port} drop" for end in ("sport", "dport")
    )
    began = time.monotonic()
    subprocess.run(["nft", rule], check=True)
    if who == "router":
        until(lambda: proxy.status()["outcomes"].get("router_ReadError"), 60)
    else:
        until(lambda: proxy.status()["outcomes"].get("client_gone"), 60)
    print("freed", time.monotonic() - began)
    subprocess.run(["nft", "flush ruleset"], check=True)
"""


def check_probed(router: Router, proxy: Proxy) -> None:
    """Both ends of a running request have the kernel's keep-alive timer on."""
    [ss] = need("ss")
    router.enqueue([*stream(["a"])[:3], Wait("go"), *stream(["a"])[3:]])
    with RawClient(proxy) as client:
        client.send(request_bytes("POST", CHAT, chat("deep")))
        client.read_head()

        def line(near: int | None, far: int) -> str:
            shown = subprocess.run([ss, "-tnopH"], capture_output=True, text=True, check=True).stdout.splitlines()
            ours = f"pid={proxy.pid},"  # another process may have a port of the same number at another address
            ends = [each.split() for each in shown if each.startswith("ESTAB") and ours in each]
            [words] = [
                words
                for words in ends
                if words[4].endswith(f":{far}") and (near is None or words[3].endswith(f":{near}"))
            ]
            return " ".join(words)

        assert "timer:(keepalive" in line(proxy.port, client.sock.getsockname()[1])
        # The router's is set once a request takes its time.
        until(lambda: "timer:(keepalive" in line(None, router.port), 10, "timer: the router is probed")
        router.release("go")
        assert client.read_body().endswith(b"data: [DONE]\n\n")


def test_silent_peers_are_probed(router: Router, proxy: Proxy) -> None:
    check_probed(router, proxy)


@pytest.mark.parametrize(
    "planted",
    [
        "from eidproxy.router import transport; transport.enable_keepalive = lambda sock: None",
        "from eidproxy.inbound import server; server.enable_keepalive = lambda sock: None",
    ],
    ids=["router", "caller"],
)
def test_control_a_peer_without_probes_is_noticed(planted: str) -> None:
    """Control: with the probes of one side left out, the same look fails."""
    with Router() as router, Proxy(router, planted=planted) as proxy, pytest.raises(AssertionError, match="timer:"):
        check_probed(router, proxy)


if amount(0, 1):  # it takes half a minute each

    @pytest.mark.timeout(120)
    @pytest.mark.parametrize("who", ["router", "caller"])
    def test_peer_gone_without_a_word(who: str) -> None:
        """The kernel drops all that comes from it: found out within 30 s."""
        ip, _ = need("ip", "nft")
        if os.geteuid() != 0:
            without("needs root for a network namespace")
        name = f"eid{os.getpid()}{who[0]}"
        if subprocess.run([ip, "netns", "add", name], capture_output=True, check=False).returncode:
            without("no network namespaces here")
        try:
            subprocess.run([ip, "-n", name, "link", "set", "lo", "up"], check=True)
            done = subprocess.run(
                [ip, "netns", "exec", name, sys.executable, "-c", SILENCE, who],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=100,
                check=False,
            )
        finally:
            subprocess.run([ip, "netns", "del", name], check=False)
        assert done.returncode == 0, done.stderr
        took = float(done.stdout.split("freed ")[1].split()[0])
        print(f"EIDPROXY gone without a word: {who}: freed after {took:.1f} s")
        assert took < 60  # the read timeout is 120 s, and a drain would not end
