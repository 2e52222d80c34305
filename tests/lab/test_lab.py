"""The judge is judged: the scripted router, the raw client and the slow parser are right about each other."""

from __future__ import annotations

import itertools
import json
import random
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from tests import corpus
from tests.corpus.expect import expected
from tests.lab.client import ANSWER_CANARY, CHAT, PROMPT_CANARY, RawClient, ask, chat, request_bytes
from tests.lab.cost import Beside
from tests.lab.proxy import Proxy, parse_metrics
from tests.lab.router import Close, Received, Router
from tests.lab.script import (
    Drained,
    Fin,
    Reset,
    Send,
    Stall,
    Step,
    Trickle,
    Wait,
    chunk,
    event,
    head,
    pieces,
    recording,
    status,
    stream,
    wire,
)
from tests.lab.stream import Event, comments, parse_sse, told
from tests.lab.tls import Certificate
from tests.lab.tools import free_port, until

POST = request_bytes("POST", CHAT, chat())


def posted(router: Router, data: bytes = POST) -> RawClient:
    """A client that has sent a request."""
    client = RawClient(router)
    client.send(data)
    return client


# --- What comes in -----------------------------------------------------------------------------------------------


def test_request_is_recorded_as_it_came(router: Router) -> None:
    answer = ask(router, "POST", CHAT, chat("deep", say="안녕", top_p=0.5), {"X-Eid-Priority": "background"})
    assert answer.status == 200
    assert answer.clean
    [request] = router.requests
    assert (request.method, request.path, request.model) == ("POST", CHAT, "deep")
    assert request.json["messages"] == [{"role": "user", "content": "안녕"}]
    assert json.loads(request.body) == request.json
    assert request.header("x-eid-priority") == "background"
    assert request.head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n")


def test_request_cut_into_bytes_is_one_request(router: Router) -> None:
    with RawClient(router) as client:
        for byte in POST:
            client.send(bytes([byte]))
        assert client.read_head().status == 200
    assert [request.json for request in router.requests] == [chat()]


def test_chunked_request_is_read(router: Router) -> None:
    data = json.dumps(chat()).encode()
    body = chunk(data[:7]) + chunk(data[7:]) + b"0\r\n\r\n"
    answer = ask(router, "POST", CHAT, body, {"Transfer-Encoding": "chunked"})
    assert answer.status == 200
    assert router.requests[0].json == chat()


def test_two_requests_on_one_connection(router: Router) -> None:
    router.script = status(200, {"ok": True})
    with RawClient(router) as client:
        for _ in range(2):
            client.send(POST)
            assert client.read_head().status == 200
            assert json.loads(client.read_body()) == {"ok": True}
    assert (router.posts, router.connections) == (2, 1)


@pytest.mark.parametrize(
    "bad",
    [
        b"POST / HTTP/1.0\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\nA: b\r\n\r\n",
        b"POST http://x/ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_bad_request_is_a_fault(bad: bytes) -> None:
    def run() -> None:
        with Router() as router, posted(router, bad) as client:
            with pytest.raises(ConnectionResetError):
                client.recv_all()
            assert router.posts == 0
            assert len(router.faults) == 1

    with pytest.raises(AssertionError, match="bad request"):
        run()


def test_fault_of_a_script_fails_the_test() -> None:
    def broken(_: Received) -> list[Step]:
        raise KeyError("oh")

    def run() -> None:
        with Router(script=broken) as router, posted(router) as client:
            with pytest.raises(ConnectionResetError):
                client.recv_all()
            assert router.concurrent == 0

    with pytest.raises(AssertionError, match="oh"):
        run()


# --- What it counts ----------------------------------------------------------------------------------------------


def test_two_overlapping_requests_count_two(router: Router) -> None:
    router.script = [Wait("go"), *stream()]
    with posted(router) as one, posted(router, request_bytes("POST", CHAT, chat("deep"))) as two:
        router.wait_for(lambda: router.waiting("go") == 2)
        assert router.concurrent == 2
        router.release("go")
        for client in (one, two):
            assert client.read_head().status == 200
            assert told(client.read_body()).text == "Hello world"
        router.wait_for(lambda: router.concurrent == 0)
    assert router.max_concurrent == 2
    assert router.max_concurrent_by_model == {"daily": 1, "deep": 1}
    router.wait_for(lambda: router.open_sockets == 0)
    assert (router.connections, router.posts) == (2, 2)


def test_requests_one_after_another_count_one(router: Router) -> None:
    """No false alarm: a caller that asks as soon as it has seen the end never makes two."""
    for _ in range(200):
        assert ask(router, "POST", CHAT, chat()).told().done
    assert router.max_concurrent == 1
    assert router.posts == 200


@pytest.mark.parametrize("leave", ["fin", "rst", "close"])
def test_leaving_then_asking_elsewhere_counts_one(router: Router, leave: str) -> None:
    """The case the gate lives on: close one socket, then at once post on another that is open already."""
    router.script = [Send(head(200)), Stall()]
    for _ in range(100):
        with posted(router) as one, RawClient(router) as two:
            one.read_head()
            getattr(one, leave)()
            two.send(POST)
            two.read_head()
        router.wait_for(lambda: router.concurrent == 0)
    assert router.max_concurrent == 1


def test_no_false_alarm_from_callers_that_leave_while_they_post(router: Router, seed: int) -> None:
    """Callers that take turns under one lock, and leave before or after the router has read what they sent."""
    router.script = [Send(head(200)), Stall()]
    turn = threading.Lock()

    def call(choose: random.Random) -> None:
        for _ in range(150):
            early = RawClient(router) if choose.random() < 0.5 else None
            with turn:
                client = early or RawClient(router)
                client.send(POST)
                if choose.random() < 0.7:
                    client.read_head()
                (client.rst if choose.random() < 0.5 else client.close)()

    callers = [threading.Thread(target=call, args=(random.Random(seed + number),)) for number in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    router.wait_for(lambda: (router.connections, router.open_sockets) == (900, 0))
    assert (router.max_concurrent, router.concurrent) == (1, 0)


def test_half_a_request_is_no_inference(router: Router) -> None:
    with posted(router, POST[:-1]) as client:
        router.wait_for(lambda: router.open_sockets == 1)
        client.fin()
        router.wait_for(lambda: router.open_sockets == 0)
    assert router.max_concurrent == 0
    assert [(close.how, close.phase, close.request) for close in router.closes] == [("fin", "request", None)]


def test_get_is_no_inference(router: Router) -> None:
    router.script = status(200, {})
    assert ask(router, "GET", "/v1/models").status == 200
    assert (router.posts, router.max_concurrent, len(router.requests)) == (0, 0, 1)


@pytest.mark.parametrize(("leave", "how"), [("fin", "fin"), ("rst", "reset")])
@pytest.mark.parametrize(
    "script",
    [[Stall()], [Send(head(200)), Wait("never")], itertools.repeat(b"flood" * 20000), [Trickle(b"x" * 9999, 1, 0.01)]],
    ids=["silent", "waiting", "flooding", "trickling"],
)
def test_peer_that_leaves_is_noticed_at_once(
    router: Router, leave: str, how: str, script: Iterator[Step] | list[Step]
) -> None:
    router.script = script
    client = posted(router)
    router.wait_for(lambda: router.concurrent == 1)
    with Beside() as beside:
        left = time.monotonic()
        getattr(client, leave)()
        router.wait_for(lambda: router.concurrent == 0)
    client.close()
    [close] = router.closes
    assert isinstance(close, Close)
    assert (close.how, close.phase, close.request) == (how, "answer", router.requests[0])
    assert close.at - left < beside.allow(0.05)
    assert router.requests[0].ended_at is not None
    assert router.open_sockets == 0
    assert router.waiting("never") == 0


def test_close_after_the_answer_is_told_apart(router: Router) -> None:
    ask(router, "POST", CHAT, chat())
    router.wait_for(lambda: router.open_sockets == 0)
    assert [(close.how, close.phase) for close in router.closes] == [("fin", "after")]


def test_barrier_lets_through_as_many_as_it_is_told(router: Router) -> None:
    router.script = [Wait("turn"), *status(200, {})]
    clients = [posted(router) for _ in range(3)]
    router.wait_for(lambda: router.waiting("turn") == 3)
    router.release("turn", 1)
    router.wait_for(lambda: router.concurrent == 2)
    assert router.waiting("turn") == 2
    router.release("turn")
    router.wait_for(lambda: router.concurrent == 0)
    for client in clients:
        assert client.read_head().status == 200
        client.close()


def test_reset_forgets(router: Router) -> None:
    router.enqueue(status(503))
    router.reset()
    assert ask(router, "POST", CHAT, chat()).status == 200
    router.wait_for(lambda: router.open_sockets == 0)
    router.reset()
    assert (router.posts, router.connections, router.max_concurrent) == (0, 0, 0)
    assert router.closes == []
    assert router.requests == []


def test_wait_for_gives_up_with_the_state(router: Router) -> None:
    with pytest.raises(AssertionError, match="posts=0"):
        router.wait_for(lambda: router.posts == 1, timeout=0.05)


def test_hang_up_refuses_and_listen_takes_up_again(router: Router) -> None:
    router.hang_up()
    with pytest.raises(ConnectionRefusedError):
        RawClient(router)
    router.listen()
    assert ask(router, "POST", CHAT, chat()).status == 200


# --- What it says ------------------------------------------------------------------------------------------------


def test_scripts_queue_function_and_list(router: Router) -> None:
    router.script = lambda request: stream([str(request.model)])
    router.enqueue(status(503, {"error": {"type": "warming"}}), stream(["first"]))
    first = ask(router, "POST", CHAT, chat())
    assert (first.status, first.json()) == (503, {"error": {"type": "warming"}})
    assert ask(router, "POST", CHAT, chat()).told().text == "first"
    assert ask(router, "POST", CHAT, chat("deep")).told().text == "deep"


@pytest.mark.parametrize("chunked", [True, False])
def test_stream_parts_can_be_left_out(router: Router, chunked: bool) -> None:
    router.enqueue(
        stream(["a", "b"], chunked=chunked),
        stream([ANSWER_CANARY], finish=None, chunked=chunked),
        stream([], usage=False, done=False, chunked=chunked),
    )
    answers = [ask(router, "POST", CHAT, chat()) for _ in range(3)]
    assert all(answer.clean for answer in answers)
    whole, unfinished, bare = (answer.told() for answer in answers)
    assert (whole.text, whole.finish_reason, whole.done, whole.chunks) == ("ab", "stop", True, 4)
    assert (unfinished.text, unfinished.finish_reason, unfinished.done) == (ANSWER_CANARY, None, True)
    assert (bare.text, bare.finish_reason, bare.done, bare.chunks) == ("", "stop", False, 2)


def test_stream_stops_at_its_gate(router: Router) -> None:
    router.script = stream(["one", "two"], gate="middle")
    with posted(router) as client:
        assert client.read_head().get("transfer-encoding") == "chunked"
        events = client.events()
        first = next(events) + next(events)
        router.wait_for(lambda: router.waiting("middle") == 1)
        assert told(first).text == "one"
        router.release("middle")
        assert told(b"".join(events)).text == "two"
        assert client.clean


def test_cuts_are_played_exactly(router: Router) -> None:
    data = bytes(range(256)) * 4
    cuts = [1, 2, 3, 500, 501, 1023]
    router.script = [*pieces(data, cuts), Fin()]
    with posted(router) as client:
        seen = []
        while piece := client.sock.recv(65536):
            seen.append(piece)
    if sys.platform == "linux":
        edges = [0, *cuts, len(data)]
        assert seen == [data[start:end] for start, end in itertools.pairwise(edges)]
    assert b"".join(seen) == data


def test_drained_waits_for_a_slow_reader(router: Router) -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux tells what a peer has read")
    router.script = [Send(b"x" * 1000), Drained(), Wait("read"), Fin()]
    with posted(router) as client:
        client.sock.recv(1, socket.MSG_PEEK)
        client.sock.recv(400)
        assert router.waiting("read") == 0
        client.sock.recv(600)
        router.wait_for(lambda: router.waiting("read") == 1)


@pytest.mark.parametrize("name", ["mlx-stream-n2", "llama-stream", "mlx-midstream-kill9", "mlx-bad-model"])
def test_recording_arrives_byte_for_byte(router: Router, name: str) -> None:
    data = corpus.raw(name)
    for script in (recording(name), recording(name, bytewise=True), recording(f"{name}.http", cuts=range(0, 900, 37))):
        assert wire(script) == data
        router.enqueue(script)
        with posted(router) as client:
            assert client.recv_all() == data
    router.wait_for(lambda: router.open_sockets == 0)


@pytest.mark.parametrize("offset", [0, 1, 100])
def test_reset_comes_after_the_bytes(router: Router, offset: int) -> None:
    router.script = [*pieces(wire(stream()), [offset])[: 2 if offset else 0], Reset()]
    with posted(router) as client:
        with pytest.raises(ConnectionResetError):
            client.recv_all()
        assert client.rest == wire(stream())[:offset]
    router.wait_for(lambda: router.open_sockets == 0)
    assert router.closes == []


def test_fin_leaves_the_socket_counted_until_the_peer_closes(router: Router) -> None:
    router.script = [Fin()]
    with posted(router) as client:
        assert client.recv_all() == b""
        router.wait_for(lambda: router.concurrent == 0)
        assert router.open_sockets == 1
    router.wait_for(lambda: router.open_sockets == 0)


def test_big_answer_to_a_reader_that_reads_late(router: Router) -> None:
    body = bytes(8 << 20)
    router.script = status(200, body)
    with RawClient(router, receive_buffer=4096) as client:
        client.send(POST)
        router.wait_for(lambda: router.concurrent == 1)
        with RawClient(router) as other:
            other.send(POST)
            assert len((other.read_head(), other.read_body())[1]) == len(body)
        assert router.concurrent == 1
        client.read_head()
        assert client.read_body() == body
        assert client.clean


# --- TLS ---------------------------------------------------------------------------------------------------------


def test_tls_router(certificate: Certificate) -> None:
    trusting = certificate.client()
    with Router(tls=certificate.server()) as router:
        assert router.url.startswith("https://127.0.0.1:")
        for chunked in (True, False):
            router.script = stream(["x" * 100_000], chunked=chunked)
            with RawClient(router, tls=trusting, server_name="localhost") as client:
                client.send(POST)
                assert client.read_head().status == 200
                assert told(client.read_body()).text == "x" * 100_000
                assert client.clean
        router.wait_for(lambda: router.open_sockets == 0)
        assert router.max_concurrent == 1
        with pytest.raises(ssl.SSLCertVerificationError):
            RawClient(router, tls=ssl.create_default_context(), server_name="localhost")
        router.wait_for(lambda: len(router.closes) == 3)
        assert router.closes[-1].how in ("tls", "fin", "reset")
        assert router.posts == 2


# --- The client --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("then", [Fin(), Reset()], ids=["fin", "reset"])
@pytest.mark.parametrize(
    "framing",
    [[("Transfer-Encoding", "chunked")], [("Content-Length", "100")]],
    ids=["chunked", "length"],
)
def test_client_sees_a_body_cut_short(router: Router, framing: list[tuple[str, str]], then: Step) -> None:
    router.script = [Send(head(200, framing)), Send(chunk(b"data: 1\n\n") + b"5\r\nda"), Drained(), then]
    with posted(router) as client:
        client.read_head()
        body = client.read_body()
        assert b"data: 1\n\n" in body
        assert not client.clean


@pytest.mark.parametrize("bad", [b"5;a=b\r\nhello\r\n", b"\r\n", b"5\r\nhelloX\r\n", b"-1\r\n", b"0\r\nA: b\r\n\r\n"])
def test_client_refuses_bad_chunks(router: Router, bad: bytes) -> None:
    router.script = [Send(head(200, [("Transfer-Encoding", "chunked")]) + bad), Fin()]
    with posted(router) as client:
        client.read_head()
        with pytest.raises(AssertionError):
            client.read_body()


@pytest.mark.parametrize("bad", [b"HTTP/2 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n", b"HTTP/1.1 OK\r\n\r\n"])
def test_client_refuses_bad_heads(router: Router, bad: bytes) -> None:
    router.script = [bad, Fin()]
    with posted(router) as client, pytest.raises(AssertionError, match="bad"):
        client.read_head()


def test_client_events_joined_are_the_body(router: Router) -> None:
    body = event({"a": 1}) + b": ping\n\n" + b"data: rest"
    router.script = [Send(head(200, [("Transfer-Encoding", "chunked")])), Trickle(chunk(body) + b"0\r\n\r\n"), Fin()]
    with posted(router) as client:
        client.read_head()
        assert list(client.events()) == [b'data: {"a": 1}\n\n', b": ping\n\n", b"data: rest"]
        assert client.clean


def test_request_bytes_adds_only_what_is_missing() -> None:
    assert request_bytes("GET", "/x") == b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n"
    assert request_bytes("POST", "/x", b"a", [("host", "h"), ("content-length", "7")]) == (
        b"POST /x HTTP/1.1\r\nContent-Type: application/json\r\nhost: h\r\ncontent-length: 7\r\n\r\na"
    )
    assert b"Content-Length" not in request_bytes("POST", "/x", b"", {"Transfer-Encoding": "chunked"})


def test_until_waits_for_a_state_and_no_longer() -> None:
    state: list[int] = []
    timer = threading.Timer(0.05, state.append, [7])
    timer.start()
    assert until(lambda: state) == [7]
    timer.join()
    with pytest.raises(AssertionError, match="a blue moon"):
        until(lambda: False, 0.02, "a blue moon")


# --- The slow parser ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "events"),
    [
        (b"data: a\n\n", [Event("message", "a")]),
        (b"data:a\r\rdata:  b\r\n\r\n", [Event("message", "a"), Event("message", " b")]),
        (b"\xef\xbb\xbfdata: a\ndata\ndata: b\n\n", [Event("message", "a\n\nb")]),
        (b"event: error\ndata: x\n\ndata: y\n\n", [Event("error", "x"), Event("message", "y")]),
        (b"event: error\n\ndata: y\n\n", [Event("message", "y")]),
        (b": hi\nid: 1\nretry: 2\nfoo: bar\ndata: y\n\n", [Event("message", "y")]),
        (b"data: \n\ndata\n\n", [Event("message", ""), Event("message", "")]),
        (b"data: \ndata\n\n", [Event("message", "\n")]),
        ("data: a\u2028b\u0085c\x0bd\n\n".encode(), [Event("message", "a\u2028b\u0085c\x0bd")]),
        (b"data: cut\n", []),
        (b"", []),
    ],
)
def test_parse_sse(body: bytes, events: list[Event]) -> None:
    assert parse_sse(body) == events


def test_comments() -> None:
    assert comments(b": keepalive 1/2\n\n:\ndata: x\n\n:cut") == ["keepalive 1/2", ""]


def test_told_reads_index_zero_errors_and_progress() -> None:
    body = (
        event({"choices": [], "eid": {"state": "queued"}})
        + event({"choices": [{"index": 1, "delta": {"content": "no"}}, {"index": 0, "delta": {"content": "yes"}}]})
        + event({"choices": [{"index": 0, "delta": {"reasoning_content": "hm"}, "finish_reason": "length"}]})
        + b'event: error\ndata: {"error":{},"error_reason":"draining"}\n\n'
    )
    found = told(body)
    assert (found.text, found.reasoning, found.finish_reason, found.chunks, found.done) == (
        "yes",
        "hm",
        "length",
        2,
        False,
    )
    assert found.errors == [{"error": {}, "error_reason": "draining"}]
    assert found.progress == [{"state": "queued"}]


def test_parse_metrics() -> None:
    text = '# HELP a b\na_total{mode="daily",x="q\\"u"} 3\nb 1.5e3\nc_bucket{le="+Inf"} 7 12345\n'
    assert parse_metrics(text) == {
        ("a_total", frozenset({("mode", "daily"), ("x", 'q\\"u')})): 3,
        ("b", frozenset()): 1500,
        ("c_bucket", frozenset({("le", "+Inf")})): 7,
    }
    with pytest.raises(AssertionError, match="bad sample"):
        parse_metrics("a b c d\n")


# --- The corpus --------------------------------------------------------------------------------------------------


def test_expected_json_is_up_to_date() -> None:
    files = {path.stem for path in corpus.HERE.glob("*.http")}
    assert files == set(corpus.EXPECTED)
    for name, value in corpus.EXPECTED.items():
        assert expected(corpus.raw(name)) == value, name


def test_expected_json_by_hand() -> None:
    """Read off the recordings by eye, so that the parser is not its own judge."""
    assert corpus.EXPECTED["llama-stream"] == {
        "status": 200,
        "stream": True,
        "text": " résumé piñataython abo;erne",
        "reasoning": "",
        "finish_reason": "stop",
        "chunks": 8,
        "done": True,
    }
    killed = corpus.EXPECTED["mlx-midstream-kill9"]
    assert (killed["finish_reason"], killed["done"]) == (None, False)
    # `stream_options: {}` makes mlx leave [DONE] out.
    assert corpus.EXPECTED["mlx-stream-options-empty"]["finish_reason"] == "stop"
    assert not corpus.EXPECTED["mlx-stream-options-empty"]["done"]
    assert corpus.EXPECTED["mlx-bad-model"] == {"status": 404, "stream": False}
    assert corpus.EXPECTED["mlx-deep-stream"]["reasoning"]


@pytest.mark.parametrize("name", corpus.STREAMS)
def test_chunks_with_choices_counted_by_another_way(name: str) -> None:
    data = corpus.raw(name)
    assert data.count(b'"choices": [{') == corpus.EXPECTED[name]["chunks"]
    assert (b"data: [DONE]" in data) == corpus.EXPECTED[name]["done"]


# --- The process -------------------------------------------------------------------------------------------------


def fake(code: str) -> Proxy:
    """A proxy whose program is a few lines of Python instead of eidproxy."""
    proxy = Proxy("http://127.0.0.1:1", ready=False)
    proxy._command = [sys.executable, "-c", code]
    return proxy


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (f"print({PROMPT_CANARY!r})", PROMPT_CANARY),
        ("raise SystemError", "Traceback"),
        (
            "import signal; signal.signal(15, signal.SIG_IGN); print('up', flush=True)\nwhile True: signal.pause()",
            "killed",
        ),
        (
            "import signal, os; signal.signal(15, lambda *_: os._exit(3)); print('up', flush=True)\n"
            "while True: signal.pause()",
            "ended with 3",
        ),
    ],
    ids=["canary", "traceback", "deaf", "status"],
)
def test_proxy_fails_on_a_bad_end(code: str, why: str) -> None:
    proxy = fake(code)
    proxy.patience = (0.3, 0.3)

    def run() -> None:
        with proxy:
            until(proxy.output, what="output")
            if "pause" not in code:
                proxy.wait()

    with pytest.raises(AssertionError, match=why):
        run()


def test_proxy_passes_a_good_end() -> None:
    with fake(
        "import signal, os; signal.signal(15, lambda *_: os._exit(0)); print('up', flush=True); signal.pause()"
    ) as p:
        until(p.output, what="output")
        assert p.fds() >= 3
        assert p.rss() > 1 << 20
    assert p.wait() == 0


def test_proxy_adds_its_output_to_a_failing_test() -> None:
    def run() -> None:
        with fake("print('last words')") as proxy:
            proxy.wait()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        run()
    assert "last words" in caught.value.__notes__[0]


def test_proxy_reports_a_program_that_does_not_start() -> None:
    proxy = fake("print('no such setting'); raise SystemExit(78)")
    proxy._ready = True
    with pytest.raises(AssertionError, match=r"ended with 78:\nno such setting"), proxy:
        pytest.fail("it was ready")


def test_proxy_environment_is_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EIDPROXY_LOG_LEVEL", "debug")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    code = "import json, os; print(json.dumps(dict(os.environ)))"
    proxy = fake(code)
    proxy.settings["EIDPROXY_GATE_CAPACITY"] = "2"
    with proxy:
        proxy.wait()
        [seen] = proxy.log()
    assert seen["EIDPROXY_GATE_CAPACITY"] == "2"
    assert seen["LLM_ROUTER_URL"] == "http://127.0.0.1:1"
    assert not {"EIDPROXY_LOG_LEVEL", "HTTP_PROXY"} & set(seen)


def test_proxy_starts_eidproxy_and_asks_it(router: Router) -> None:
    with Proxy(router, EIDPROXY_SERVER_API_KEY="k" * 32) as proxy:
        key = {"Authorization": f"Bearer {'k' * 32}"}
        router.script = stream([ANSWER_CANARY])
        answer = ask(proxy, "POST", CHAT, chat(), key)
        assert (answer.status, answer.clean, answer.reason) == (200, True, None)
        assert answer.told().text == ANSWER_CANARY
        refused = ask(proxy, "POST", CHAT, chat("gpt"), key)
        assert (refused.status, refused.reason) == (404, "model_not_found")
        assert proxy.metric("eidproxy_gate_slots") == 1
        assert proxy.status()["draining"] is False
        assert proxy.fds() > 3
        assert proxy.rss() > 1 << 20
        with RawClient(proxy) as client:
            until(lambda: proxy.holds(client), what="the connection taken")
            client.send(request_bytes("GET", "/healthz", headers=[("Host", "localhost"), ("Connection", "close")]))
            until(lambda: not proxy.holds(client), what="the connection closed")
            assert client.read_head().status == 200
    assert router.posts == 1


def test_control_router_sees_two_where_the_gate_lets_two_in(router: Router) -> None:
    """A suite that asserts `max_concurrent == 1` would notice."""
    router.script = [Wait("go"), *stream()]
    with Proxy(router, EIDPROXY_GATE_CAPACITY=2) as proxy:
        clients = [RawClient(proxy) for _ in range(3)]
        for client in clients:
            client.send(POST)
        router.wait_for(lambda: router.waiting("go") == 2)
        router.release("go")
        for client in clients:
            assert client.read_head().status == 200
            assert told(client.read_body()).done
            client.close()
    assert router.max_concurrent_by_model == {"mac-mini-default": 2}


def test_free_port_is_free() -> None:
    with socket.create_server(("127.0.0.1", free_port())):
        pass
