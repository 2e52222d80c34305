"""Callers that mean harm (contract, P11 and 2): doubtful framing, slowness, numbers. Others must not notice them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eidproxy.tokens import Tokens
from tests.fuzz.mutation import broken
from tests.lab.callers import at_rest
from tests.lab.client import CHAT, Answer, Dialled, RawClient, ask, chat, request_bytes
from tests.lab.cost import Beside
from tests.lab.proxy import Proxy
from tests.lab.router import Router
from tests.lab.script import Stall, stream
from tests.lab.stock import Stock
from tests.lab.tools import free_port, need, until
from tests.lab.tools import size as amount

SMUGGLED = "smuggled-5d1e"
INNER = request_bytes("POST", CHAT, chat(say=SMUGGLED))
BODY = json.dumps(chat(say="outer")).encode()
LENGTH = b"Content-Length: %d" % len(BODY)
CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
LINE = b"POST /v1/chat/completions HTTP/1.1"
USUAL = [b"Host: localhost", b"Content-Type: application/json"]


def raw(*fields: bytes, line: bytes = LINE, body: bytes = BODY, usual: bool = True) -> bytes:
    """A request of these lines, then the body, then another request that nobody may take for one."""
    return b"\r\n".join([line, *(USUAL if usual else []), *fields, b"", b""]) + body + INNER


def _variants() -> dict[str, bytes]:
    te = b"Transfer-Encoding: chunked"
    zero = b"0\r\n\r\n"
    found = {
        # Two framings, or one that is none (request smuggling proper).
        "cl.te": raw(b"Content-Length: %d" % (len(zero) + len(INNER)), te, body=zero),
        "te.cl": raw(te, b"Content-Length: 3", body=zero),
        "cl.0": raw(b"Content-Length: 0", te, body=zero),
        "cl twice": raw(LENGTH, LENGTH),
        "cl twice, other": raw(LENGTH, b"Content-Length: 0"),
        "cl list": raw(b"Content-Length: %d, %d" % (len(BODY), len(BODY))),
        "cl after te case": raw(te.upper(), b"content-length: 0", body=zero),
        "te twice": raw(te, te, body=CHUNKED),
        "te twice, identity": raw(te, b"Transfer-Encoding: identity", body=CHUNKED),
    }
    lengths = [b"+%d", b"-%d", b"0x%x", b"%d ", b" %d,", b"%d;", b"%d.0", b'"%d"', b"%dx", b"%d\t1", b"1e%d", b"\x0b%d"]
    # A blank around the value is optional white space of the grammar, so those two are no variant of it.
    for number, form in enumerate(each for each in lengths if each not in (b"%d ",)):
        found[f"cl form {number} {form!r}"] = raw(b"Content-Length: " + form % len(BODY))
    found["cl empty"] = raw(b"Content-Length:")
    found["cl minus zero"] = raw(b"Content-Length: -0")
    found["cl wide digits"] = raw(b"Content-Length: \xef\xbc\x91\xef\xbc\x92")
    codings = [
        *(b"xchunked", b"chunked, chunked", b"identity", b"gzip, chunked", b"chunked, identity", b"chunked;q=1"),
        *(b"chunked x", b"'chunked'", b'"chunked"', b"\x0bchunked", b"chunke\xc4\x91", b"cow", b"", b",chunked"),
        *(b"chunked,", b"deflate", b"trailers", b"chunked\x00"),
    ]
    for coding in codings:
        found[f"te {coding!r}"] = raw(b"Transfer-Encoding: " + coding, body=CHUNKED)
    names = [
        *(b"Transfer-Encoding : chunked", b" Transfer-Encoding: chunked", b"Transfer_Encoding: chunked"),
        *(b"Transfer-Encoding\t: chunked", b"Transfer\r\n-Encoding: chunked", b"Transfer-Encoding:\r\n chunked"),
        *(b"X: y\nTransfer-Encoding: chunked", b"X: y\rTransfer-Encoding: chunked", b"Content_Length: 3"),
        *(b"Content-Length : 3", b"X: \x00y", b"X: \x7f", b"X: a\x01b", b"X\x00: y", b"X(): y", b"X: y\r\n folded"),
        *(b"X: y\r\n\tfolded", b": no name", b"no colon", b"X y: z", b"\xef\xbc\xb8: y", b"X: y\n", b"X: y\r"),
        *(b"Upgrade: h2c", b"Upgrade: websocket", b"HTTP2-Settings: x\r\nUpgrade: h2c", b"Expect: 100-continue, x"),
        *(b"Expect: something", b"Host: localhost", b"Host: other", b"host:localhost", b"Content-Type: text/plain"),
    ]
    for name in names:
        found[f"field {name!r}"] = raw(LENGTH, name)
    lines = [
        *(b"POST /v1/chat/completions HTTP/1.0", b"POST /v1/chat/completions HTTP/0.9", b"POST /v1/chat/completions"),
        *(b"POST /v1/chat/completions HTTP/2.0", b"POST /v1/chat/completions HTTP/1.2", b"PRI * HTTP/2.0"),
        *(b"POST /v1/chat/completions http/1.1", b"POST /v1/chat/completions HTTP/1.1 x", b"POST  /v1/models HTTP/1.1"),
        *(
            b" POST /v1/chat/completions HTTP/1.1",
            b"POST\t/v1/chat/completions\tHTTP/1.1",
            b"CONNECT localhost:80 HTTP/1.1",
        ),
        *(b"POST http://localhost/v1/chat/completions HTTP/1.1", b"OPTIONS * HTTP/1.1", b"POST \\v1 HTTP/1.1"),
        *(b"POST /v1/chat/completions#x HTTP/1.1", b"POST /v1/chat\x00 HTTP/1.1", b"POST /\xff HTTP/1.1"),
        *(b"POST /v1/chat/completions?a=b HTTP/1.1", b"POST /%zz HTTP/1.1", b"POST /{x} HTTP/1.1", b"P(ST / HTTP/1.1"),
        *(
            b"",
            b"\r\n" + LINE,
            b"\n" + LINE,
            b"POST /v1/chat/completions HTTP/1.1\r",
            b"GET / HTTP/11",
            b"\x16\x03\x01",
        ),
        *(b"GET gopher://localhost/ HTTP/1.1", b"CONNECT /v1/chat/completions HTTP/1.1", b"GET //x@y HTTP/1.10"),
    ]
    for line in lines:
        found[f"line {line!r}"] = raw(LENGTH, line=line)
    size = b"%x" % len(BODY)
    chunks = [
        *(
            b"0x" + size,
            b"+" + size,
            b"-1",
            size + b" ",
            b" " + size,
            size + b"\t",
            size + b";\x00",
            b"g",
            b"",
            b"%d" % -5,
        ),
        *(
            b"0" * 17 + size,
            b"f" * 16,
            b"f" * 17,
            size + b"; a",
            size + b";a b",
            size + b";" + b"x" * 300,
            size + b'; a="b',
        ),
    ]
    for chunk_size in chunks:
        found[f"chunk size {chunk_size[:24]!r}"] = raw(te, body=chunk_size + b"\r\n" + BODY + b"\r\n0\r\n\r\n")
    found |= {
        "chunk bare lf": raw(te, body=size + b"\n" + BODY + b"\r\n0\r\n\r\n"),
        "chunk end bare lf": raw(te, body=size + b"\r\n" + BODY + b"\n0\r\n\r\n"),
        "chunk end bare cr": raw(te, body=size + b"\r\n" + BODY + b"\r0\r\n\r\n"),
        "chunk end missing": raw(te, body=size + b"\r\n" + BODY + b"0\r\n\r\n"),
        "chunk last bare lf": raw(te, body=size + b"\r\n" + BODY + b"\r\n0\n\n"),
        "chunk size bare cr": raw(te, body=size + b"\r" + BODY + b"\r\n0\r\n\r\n"),
        "trailer": raw(te, body=size + b"\r\n" + BODY + b"\r\n0\r\nX: y\r\n\r\n"),
        "trailer framing": raw(te, body=size + b"\r\n" + BODY + b"\r\n0\r\nContent-Length: 9\r\n\r\n"),
        "head bare lf": raw(LENGTH).replace(b"\r\n", b"\n", 5),
        "head all lf": raw(LENGTH).replace(b"\r\n", b"\n"),
        "head one lf": raw(LENGTH).replace(b"\r\n", b"\n", 1),
        "head bare cr": raw(LENGTH).replace(b"\r\n", b"\r", 2),
        "no host": raw(LENGTH, b"Content-Type: application/json", usual=False),
        "empty host": raw(LENGTH, b"Host:", usual=False),
        "host list": raw(LENGTH, b"Host: localhost, localhost", usual=False),
        "host userinfo": raw(LENGTH, b"Host: a@localhost", usual=False),
        "host path": raw(LENGTH, b"Host: localhost/x", usual=False),
        "host port": raw(LENGTH, b"Host: localhost:x", usual=False),
        "many fields": raw(LENGTH, *(b"X-%d: y" % number for number in range(63))),
        "long field": raw(LENGTH, b"X: " + b"y" * 17000),
        "long line": raw(LENGTH, line=b"POST /" + b"x" * 17000 + b" HTTP/1.1"),
        "pipelined": raw(LENGTH),
        "pipelined chunked": raw(te, body=CHUNKED),
        "pipelined get": raw(line=b"GET /v1/models HTTP/1.1", body=b""),
        "pipelined head": raw(line=b"HEAD /v1/models HTTP/1.1", body=b""),
        "get with the request as body": raw(
            b"Content-Length: %d" % len(INNER), line=b"GET /healthz HTTP/1.1", body=b""
        ),
        "body behind no length": raw(),
        "length too short": raw(b"Content-Length: %d" % (len(BODY) - 1)),
    }
    return found


VARIANTS = _variants()

# Requests that are valid by themselves; what is doubtful is what stands behind them.
VALID = {"pipelined", "pipelined chunked", "pipelined get", "pipelined head", "body behind no length"}
VALID |= {"get with the request as body", "length too short"}


def play(address: tuple[str, int] | str, data: bytes, timeout: float = 5.0, half_close: bool = False) -> bytes:
    """Send it and return all that comes until the connection ends. TimeoutError when it does not."""
    with RawClient(address, timeout=timeout) as client:
        got = b""
        with contextlib.suppress(OSError):
            client.send(data)
            if half_close:
                client.fin()
        with contextlib.suppress(ConnectionError):
            while piece := client.sock.recv(65536):
                got += piece
        return got


def statuses(got: bytes) -> list[int]:
    """The status of each answer in these bytes."""
    return [int(part[:3]) for part in got.split(b"HTTP/1.1 ")[1:]]


def smuggled(router: Router) -> bool:
    """Whether the inner request was taken for one."""
    return any(SMUGGLED.encode() in request.body for request in router.requests)


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[Router, Proxy]]:
    with Router() as router, Proxy(router, EIDPROXY_SERVER_API_KEY=None, canaries=[SMUGGLED]) as proxy:
        yield router, proxy


@pytest.fixture(scope="module")
def stock() -> Iterator[tuple[Router, Stock]]:
    with Router() as router, Stock(router, limit=50) as proxy:
        yield router, proxy


# --- doubtful framing --------------------------------------------------------------------------------------------


def test_there_are_enough_variants() -> None:
    assert len(VARIANTS) >= 100


@pytest.mark.parametrize("name", VARIANTS)
def test_doubtful_framing(shared: tuple[Router, Proxy], name: str) -> None:
    """A 4xx and the end of the connection, or only the end; never the inner request, never 5xx, never a hang."""
    router, proxy = shared
    router.reset()
    with Beside() as beside:
        began = time.monotonic()
        got = play(proxy.address, VARIANTS[name], half_close=name in VALID)
        assert time.monotonic() - began < beside.allow(3)  # the deadline of a head is 5 s
    found = statuses(got)
    if name in VALID:
        assert found in ([], [200]), got
        assert router.posts <= 1
    else:
        assert len(found) == 1, got
        assert 400 <= found[0] < 500, got
        assert router.posts == 0
        head, _, body = got.partition(b"\r\n\r\n")
        assert b"Connection: close" in head
        assert json.loads(body)["error"]["type"] == "invalid_request_error"
    assert not smuggled(router)


def test_control_the_inner_request_is_a_good_one(shared: tuple[Router, Proxy]) -> None:
    """Control: by itself it is served, so its absence above means something."""
    router, proxy = shared
    router.reset()
    with RawClient(proxy) as client:
        client.send(INNER)
        assert client.read_head().status == 200
        client.read_body()
    assert smuggled(router)


TOKENS = [
    *(b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b"Transfer-Encoding: chunked\r\n", b"Content-Length: 5\r\n"),
    *(b"0\r\n\r\n", b"\r\n\r\n", b"HTTP/1.1", b"Host: x\r\n", b"%0d%0a", b"\xff", b",", b";", b"Upgrade: h2c\r\n"),
]


def mutant(choose: random.Random) -> bytes:
    """A request with some bytes changed, the inner one behind it."""
    data = choose.choice([raw(LENGTH), raw(b"Transfer-Encoding: chunked", body=CHUNKED)])[: -len(INNER)]
    return broken(data, choose, TOKENS, most=4, lengths=(1, 1, 2, 8)) + INNER


@pytest.mark.timeout(900)
def test_mutations(shared: tuple[Router, Proxy], seed: int) -> None:
    router, proxy = shared
    router.reset()
    choose = random.Random(seed)
    count = amount(2000, 100_000)
    seen: dict[int, int] = {}
    for number in range(count):
        data = mutant(choose)
        for status in statuses(play(proxy.address, data, half_close=True)):
            assert status < 500, (seed, number, data)
            seen[status] = seen.get(status, 0) + 1
        if number % 1000 == 999:
            assert not smuggled(router), (seed, number)
            router.reset()
    print(f"EIDPROXY mutations: {count}, answers by status {seen}")
    assert not smuggled(router)
    assert not [line for line in proxy.log() if line["event"] == "fault"]
    at_rest(router, proxy)


NGINX = """
daemon off; error_log stderr crit; pid {tmp}/pid;
events {{}}
http {{
  log_format count '$upstream_addr';
  access_log {tmp}/access.log count;
  client_body_temp_path {tmp}; proxy_temp_path {tmp}; fastcgi_temp_path {tmp};
  uwsgi_temp_path {tmp}; scgi_temp_path {tmp};
  upstream back {{ server 127.0.0.1:{back}; keepalive 8; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://back; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host localhost;
      proxy_buffering off; proxy_request_buffering off; proxy_ignore_client_abort on;
    }}
  }}
}}
"""
HAPROXY = """
defaults
  mode http
  timeout connect 2s
  timeout client 5s
  timeout server 5s
  http-reuse always
frontend front
  bind 127.0.0.1:{port}
  log stdout format raw local0
  log-format "count %s"
  default_backend back
backend back
  server back 127.0.0.1:{back}
"""


@contextlib.contextmanager
def edge(kind: str, proxy: Proxy, tmp: Path) -> Iterator[tuple[int, Any]]:
    """nginx or haproxy in front of the proxy, with reused connections; its port, and how often it asked the proxy."""
    [program] = need(kind)
    port = free_port()
    config = tmp / "config"
    config.write_text((NGINX if kind == "nginx" else HAPROXY).format(tmp=tmp, port=port, back=proxy.port))
    log = tmp / "access.log"
    command = [program, "-c", str(config)] if kind == "nginx" else [program, "-f", str(config)]
    with log.open("ab") as output, subprocess.Popen(command, stdout=output, stderr=subprocess.DEVNULL) as process:

        def forwarded() -> int:
            lines = log.read_text().splitlines()
            return sum(line not in ("-", "count <NOSRV>") for line in lines)

        def up() -> bool:
            with contextlib.suppress(OSError, EOFError):
                return ask(("127.0.0.1", port), "GET", "/v1/models").status == 200
            assert process.poll() is None
            return False

        try:
            until(up)
            yield port, forwarded
        finally:
            process.terminate()


@pytest.mark.parametrize("kind", ["nginx", "haproxy"])
def test_behind_an_edge(shared: tuple[Router, Proxy], tmp_path: Path, kind: str) -> None:
    """The edge and eidproxy agree on how many requests there were, for each variant, over reused connections."""
    router, proxy = shared

    def taken(last: str) -> int:
        """How many requests eidproxy has ended, that one among them: it counts one, then writes its line."""
        line = f'"request_id":"{last}"'.encode()
        until(lambda: line in proxy.output())
        return int(sum(proxy.status()["outcomes"].values()))

    last = f"{kind}-before"
    ask(proxy, "GET", "/v1/models", headers={"X-Request-Id": last})
    surplus = taken(last)
    with edge(kind, proxy, tmp_path) as (port, forwarded):
        for number, (name, data) in enumerate(VARIANTS.items()):
            with contextlib.suppress(TimeoutError):  # some edges wait for more, and their answer is not what counts
                play(("127.0.0.1", port), data, timeout=1.0, half_close=True)
            # Over whatever connection is kept: an answer that belongs to another request would come out here.
            last = f"{kind}-{number}"
            after = ask(("127.0.0.1", port), "GET", "/v1/models", headers={"X-Request-Id": last})
            assert (after.status, after.json()["object"]) == (200, "list"), name
            at_rest(router, proxy)
            until(
                lambda last=last, surplus=surplus: taken(last) - forwarded() <= surplus,  # type: ignore[misc]
                what=f"{kind}: {name}: eidproxy took more requests than the edge sent",
            )
            surplus = taken(last) - forwarded()
        router.wait_for(lambda: router.open_sockets == 0)


# --- hostile JSON ------------------------------------------------------------------------------------------------

PASSED = {"model", "messages", "stream", "max_tokens", "temperature", "top_p", "presence_penalty", "frequency_penalty"}
PASSED |= {"stop", "tools", "tool_choice", "response_format"}


def value(choose: random.Random, depth: int = 0) -> Any:
    """Any JSON value."""
    kinds: list[Any] = [None, True, False, 0, -1, 2**70, 1e308, "", "x", "http://169.254.169.254/", "daily", [], {}]
    if depth < 3 and choose.random() < 0.4:
        if choose.random() < 0.5:
            return [value(choose, depth + 1) for _ in range(choose.randrange(4))]
        return {choose.choice(["type", "text", "role", "content", "url", "x"]): value(choose, depth + 1)}
    return choose.choice(kinds)


@pytest.mark.timeout(900)
def test_hostile_json(shared: tuple[Router, Proxy], seed: int) -> None:
    """Bodies with wrong, unknown and doubled members: a 4xx before the gate, or a request of known members only."""
    router, proxy = shared
    router.reset()
    choose = random.Random(seed)
    names = [*sorted(PASSED), "api_base", "n", "user", "metadata", "stream_options", "functions", "seed", "extra_body"]
    count, refused, forwarded = amount(2500, 200_000), 0, 0
    client = RawClient(proxy)
    for number in range(count):
        body = chat("daily", False)
        for _ in range(choose.randint(1, 3)):
            body[choose.choice(names)] = value(choose)
        text = json.dumps(body)
        if choose.random() < 0.1:
            text = text[:-1] + ',"model":' + json.dumps(value(choose)) + "}"
        client.send(request_bytes("POST", CHAT, text.encode()))
        status = client.read_head().status
        client.read_body()
        assert status == 200 or 400 <= status < 500, (seed, number, text)
        if status != 200:
            refused += 1
            client.close()
            client = RawClient(proxy)
        if number % 500 == 499:
            forwarded += check_forwarded(router)
    client.close()
    assert forwarded + check_forwarded(router) == count - refused
    print(f"EIDPROXY hostile JSON: {count}, {refused} refused")
    assert count / 4 < refused < count
    assert proxy.metric("eidproxy_gate_wait_seconds_count", priority="background", outcome="granted") == 0
    at_rest(router, proxy)


def test_control_a_permissive_proxy_is_noticed(stock: tuple[Router, Stock]) -> None:
    """Control: behind a proxy that passes on what it is told, the same look at the router's side fails."""
    router, proxy = stock
    router.reset()
    assert ask(proxy, "POST", CHAT, chat("mac-mini-default")).status == 200
    assert check_forwarded(router) == 1
    assert ask(proxy, "POST", CHAT, chat("mac-mini-default", api_base="http://169.254.169.254/")).status == 200
    with pytest.raises(AssertionError, match="api_base"):
        check_forwarded(router)


def check_forwarded(router: Router) -> int:
    """How many requests reached the router since the last look; nothing but what the contract names was in them."""
    requests = router.requests
    for request in requests:
        assert set(request.json) <= PASSED, request.json
        assert request.json["model"] in ("mac-mini-default", "qwen-macbook")
        assert request.json["stream"] is True
    router.reset()
    return len(requests)


# --- slowness, numbers -------------------------------------------------------------------------------------------


FEW_FILES = ["sh", "-c", 'ulimit -n 256; exec "$@"', "sh"]


@pytest.fixture
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 12000), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def honest(proxy: Dialled, seconds: float, still: Any = lambda: True, patience: float = 10.0) -> list[float]:
    """Callers that want an answer, one after another, each on a new connection: how long each took."""
    took = []
    end = time.monotonic() + seconds
    while time.monotonic() < end and still():
        began = time.monotonic()
        assert ask(proxy, "GET", "/healthz", timeout=patience).status == 200
        took.append(time.monotonic() - began)
        began = time.monotonic()
        assert ask(proxy, "POST", CHAT, chat(), timeout=patience).told().done
        took.append(time.monotonic() - began)
        time.sleep(0.01)
    took.sort()
    return took


def report(name: str, took: list[float], beside: Beside) -> None:
    """Print and judge: p99 of the honest ones."""
    p99 = took[int(len(took) * 0.99)]
    print(f"EIDPROXY {name}: honest {len(took)} of {len(took)}, p50 {took[len(took) // 2] * 1e3:.1f} ms, "
          f"p99 {p99 * 1e3:.1f} ms")  # fmt: skip
    assert p99 < beside.allow(0.25)


def test_slow_attacks(shared: tuple[Router, Proxy], many_files: None, tmp_path: Path) -> None:
    """Slow heads, slow bodies and slow readers, side by side, with 1,000 connections each."""
    _, proxy = shared
    [program] = need("slowhttptest")
    seconds = amount(4, 20)
    running = []
    for kind, path in (("-H", CHAT), ("-B", CHAT), ("-X", "/v1/models")):
        command = [program, kind, "-c", "1000", "-r", "500", "-l", str(seconds), "-i", "2", "-p", "2", "-k", "1"]
        command += ["-s", "8192", "-u", f"{proxy.url}{path}"]
        output = (tmp_path / f"slow{kind}").open("wb")
        running.append(subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT))
        output.close()
    try:
        with Beside() as beside:
            took = honest(proxy, seconds + 10, lambda: any(process.poll() is None for process in running))
    finally:
        for process in running:
            process.kill()
            process.wait()
    for kind in ("-H", "-B", "-X"):
        text = (tmp_path / f"slow{kind}").read_text(errors="replace").replace("\x1b[0m", "")
        words = [line.split()[-1] for line in text.splitlines() if "service available" in line]
        assert words, text[-2000:]
        assert not [word for word in words if "NO" in word], text[-2000:]
    report("slowhttptest -H -B -X", took, beside)


def test_thousand_silent_connections(shared: tuple[Router, Proxy], many_files: None) -> None:
    """Idle ones and half requests of each kind: everybody else is served."""
    _, proxy = shared
    held = []
    try:
        for number in range(amount(1000, 5000)):
            client = RawClient(proxy, timeout=2)
            with contextlib.suppress(OSError):
                client.send([b"", b"GET / HT", request_bytes("POST", CHAT, chat())[:-5]][number % 3])
            held.append(client)
        with Beside() as beside:
            report(f"{len(held)} idle and half connections", honest(proxy, amount(2, 8)), beside)
    finally:
        for client in held:
            client.close()


def test_control_silent_connections_shut_a_stock_server(stock: tuple[Router, Stock]) -> None:
    """Control: the usual limit on connections counts the silent ones, so that few of them keep out everybody else."""
    proxy = stock[1]
    honest(proxy, 0.1)
    with contextlib.ExitStack() as held:
        for _ in range(60):
            held.enter_context(RawClient(proxy)).send(b"GET / HT")
        with pytest.raises(AssertionError, match="503"):
            honest(proxy, 1)


def test_flood_of_a_small_process(router: Router, many_files: None) -> None:
    """256 descriptors: the oldest idle connection makes place, what runs goes on, honest callers are served."""
    with Proxy(router, prefix=FEW_FILES) as proxy:
        router.enqueue(stream(gate="go"))
        with RawClient(proxy, timeout=20) as running:
            running.send(request_bytes("POST", CHAT, chat("deep")))
            running.read_head()
            held = [RawClient(proxy, timeout=2) for _ in range(amount(600, 5000))]
            with Beside() as beside:
                report(f"flood of {len(held)} at 256 descriptors", honest(proxy, amount(1, 5)), beside)
            assert proxy.fds() < 200
            router.release("go")
            assert running.read_body().endswith(b"data: [DONE]\n\n")
            assert running.clean
            for client in held:
                client.close()
        at_rest(router, proxy)


def test_control_a_flood_shuts_a_stock_server(router: Router, many_files: None) -> None:
    """Control: a server that closes no idle connection for a new one has no descriptor left for honest callers."""
    with Stock(router, prefix=FEW_FILES) as proxy, contextlib.ExitStack() as held:
        honest(proxy, 0.1)
        for _ in range(400):
            held.enter_context(RawClient(proxy, timeout=2))
        with pytest.raises((OSError, EOFError)):
            honest(proxy, 1, patience=1.0)


def test_out_of_descriptors(router: Router, many_files: None) -> None:
    """The limit falls under what is open: nothing can be accepted. Within 2 s of its end all is normal again."""
    with Proxy(router) as proxy:
        old = resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE)
        assert ask(proxy, "POST", CHAT, chat()).told().done
        resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE, (proxy.fds() + 3, old[1]))
        held = []
        for _ in range(60):
            with contextlib.suppress(OSError):
                held.append(RawClient(proxy, timeout=1))
        with pytest.raises((OSError, EOFError)):
            ask(proxy, "POST", CHAT, chat(), timeout=0.5)
        for client in held:
            client.close()
        resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE, old)

        def served() -> bool:
            with contextlib.suppress(OSError, EOFError):
                return ask(proxy, "POST", CHAT, chat(), timeout=10).status == 200
            return False

        with Beside() as beside:
            began = time.monotonic()
            until(served)
            took = time.monotonic() - began
        print(f"EIDPROXY out of descriptors: normal again after {took:.2f} s")
        assert took < beside.allow(2)
        at_rest(router, proxy)


# --- Deadlines of the edge ---------------------------------------------------------------------------------------


async def last_words(address: tuple[str, int], first: bytes, trickle: bytes, answers: int) -> tuple[float, bytes]:
    """Send the first bytes, read so many answers, send the rest byte by byte: how long it lasts and what comes."""
    began = time.monotonic()  # before the first byte, so that nothing ends early by this clock
    reader, writer = await asyncio.open_connection(*address)
    writer.write(first)
    for _ in range(answers):
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))

    async def drip() -> None:
        for at in range(len(trickle)):
            with contextlib.suppress(ConnectionError):
                writer.write(trickle[at : at + 1])
                await asyncio.sleep(0.5)

    dripping = asyncio.create_task(drip())
    got = await reader.read()
    took = time.monotonic() - began
    dripping.cancel()
    writer.close()
    return took, got


def test_deadlines_of_the_edge(shared: tuple[Router, Proxy]) -> None:
    """Head 5 s, body 10 s, idle 15 s, whatever trickles in."""
    _, proxy = shared
    assert isinstance(proxy.address, tuple)
    address = proxy.address
    data = request_bytes("POST", CHAT, chat())
    end = data.index(b"\r\n\r\n") + 4

    async def run() -> list[tuple[float, bytes]]:
        callers = [
            (data[:5], b"", 0),
            (data[:5], data[5:50], 0),
            (data[: end + 5], b"", 0),
            (data[: end + 5], data[end + 5 : -20], 0),
            (b"", b"", 0),
            (request_bytes("GET", "/healthz"), b"", 1),
        ]
        return list(await asyncio.gather(*(last_words(address, *caller) for caller in callers)))

    with Beside() as beside:
        silent_head, slow_head, silent_body, slow_body, idle, kept = asyncio.run(run())
    for took, got in (silent_head, slow_head):
        assert 4.9 < took < beside.allow(6), took
        assert statuses(got) == [408]
    for took, got in (silent_body, slow_body):
        assert 9.9 < took < beside.allow(11), took
        assert statuses(got) == [408]
        assert b"timeout_error" in got
    for took, got in (idle, kept):
        assert 14.8 < took < beside.allow(16), took
        assert got == b""


# --- Memory and time of strangers --------------------------------------------------------------------------------

MIB = 1 << 20


def grown(proxy: Proxy, idle: int) -> float:
    """How much memory it has more than when it was idle, in MiB."""
    return (proxy.rss() - idle) / MIB


def refusal_of(client: RawClient) -> str | None:
    """Why a request was refused that was not whole."""
    head = client.read_head()
    return Answer(head.status, head.headers, client.read_body(), client.clean).reason


def test_unfinished_bodies_share_what_there_is(router: Router, many_files: None) -> None:
    """Nearly a MiB each, and never the end: those that have been arriving longest make room, everybody is served."""
    count = amount(300, 1400)
    with Proxy(router) as proxy, contextlib.ExitStack() as closing:
        honest(proxy, 0.3)
        idle, most = proxy.rss(), 0.0
        head = request_bytes("POST", CHAT, b"", {"Content-Length": str(MIB), "Content-Type": "application/json"})
        clients = []
        for number in range(count):
            client = closing.enter_context(RawClient(proxy, timeout=20))
            with contextlib.suppress(ConnectionError):
                client.send(head + b" " * (MIB - 10))
            clients.append(client)
            if number % 20 == 0:
                most = max(most, grown(proxy, idle))
        assert ask(proxy, "POST", CHAT, chat()).told().done
        most = max(most, grown(proxy, idle))
        print(f"EIDPROXY {count} unfinished bodies of 1 MiB: {most:.0f} MiB over idle")
        assert most < 160
        assert refusal_of(clients[count // 2]) == "overloaded"
        assert proxy.metric("eidproxy_requests_total", surface="proxy", mode="none", outcome="error",
                            reason="overloaded") >= count - 80  # fmt: skip


def test_slow_readers_share_what_there_is(router: Router, many_files: None) -> None:
    """200 that ask for 4 MiB and read nothing: an honest caller has its answer at once."""
    router.script = [*stream(["x" * 4000] * 1000)]
    with Proxy(router, canaries=[]) as proxy, contextlib.ExitStack() as closing:
        honest(proxy, 0.1)
        idle = proxy.rss()
        for _ in range(200):
            client = closing.enter_context(RawClient(proxy, timeout=20, receive_buffer=4096))
            client.send(request_bytes("POST", CHAT, chat("deep")))
        router.wait_for(lambda: router.posts >= 200, 60)
        last = -1
        while proxy.rss() > last:  # until no more comes in
            last = proxy.rss()
            assert ask(proxy, "POST", CHAT, chat("daily"), timeout=60).told().done
        print(f"EIDPROXY 200 slow readers: {grown(proxy, idle):.0f} MiB over idle")
        assert grown(proxy, idle) < 160


REFUSED_BY_HEAD: list[tuple[str, str, dict[str, str], str]] = [
    ("POST", CHAT, {"Host": "elsewhere"}, "host_not_allowed"),
    ("POST", CHAT, {"Authorization": "Bearer wrong"}, "unauthorized"),
    ("POST", CHAT, {"Content-Type": "text/plain"}, "unsupported_media_type"),
    ("POST", CHAT, {"X-Eid-Priority": "urgent"}, "invalid_priority"),
    ("POST", CHAT, {"X-Eid-Progress": "perhaps"}, "invalid_request"),
    ("POST", CHAT, {"Content-Length": "1048577"}, "body_too_large"),
    ("POST", CHAT, {"Sec-Fetch-Site": "cross-site"}, "cross_site"),
    ("POST", "/nothing", {}, "not_found"),
    ("PUT", "/metrics", {}, "method_not_allowed"),
    ("POST", "/api/eid/chat", {"Authorization": "Bearer none"}, "unauthorized"),
    ("POST", "/api/eid/chat", {"Content-Type": "text/plain"}, "unsupported_media_type"),
    ("POST", "/api/eid/chat", {"Content-Length": "900000"}, "body_too_large"),
]


def test_who_is_refused_by_the_head_gets_no_body_taken(router: Router, tmp_path: Path) -> None:
    """The answer comes while no byte of the body was sent, and `Expect: 100-continue` is not encouraged."""
    (tmp_path / "rules").write_text("Be kind.")
    secret = "s" * 32
    settings = {"EIDPROXY_CHAT_JWT_SECRET": secret, "EIDPROXY_CHAT_RULES_FILE": tmp_path / "rules"}
    with Proxy(router, EIDPROXY_SERVER_API_KEY="key", **settings) as proxy:  # type: ignore[arg-type]
        token = Tokens(secret, None, None, 0).issue("somebody", 600)
        for method, path, given, reason in REFUSED_BY_HEAD:
            key = token if path.startswith("/api") else "key"
            usual = {"Authorization": f"Bearer {key}", "Content-Type": "application/json", "Content-Length": "1000"}
            headers = {"Host": "localhost", **usual, **given, "Expect": "100-continue"}
            with RawClient(proxy) as client:
                client.send(request_bytes(method, path, None, headers))
                assert refusal_of(client) == reason, (method, path, given)
        for surface, reason in (("chat", "unauthorized"), ("proxy", "unauthorized"), ("chat", "body_too_large")):
            labels = {"surface": surface, "mode": "none", "outcome": "error", "reason": reason}
            assert proxy.metric("eidproxy_requests_total", **labels) > 0


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/metrics", {"Sec-Fetch-Site": "cross-site"}, 403),
        ("GET", "/healthz", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ("GET", "/status", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 403),
        ("GET", "/", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ("POST", "/", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 403),
        ("GET", "/", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),
        ("GET", "/status", {"Sec-Fetch-Site": "same-origin"}, 200),
        ("GET", "/status", {"Sec-Fetch-Site": "none"}, 200),
        ("GET", "/status", {}, 200),
    ],
)
def test_a_page_of_another_site_may_follow_a_link_and_nothing_else(
    shared: tuple[Router, Proxy], method: str, path: str, headers: dict[str, str], status: int
) -> None:
    answer = ask(shared[1], method, path, headers=headers)
    assert answer.status == status
    assert status == 200 or (answer.reason, answer.get("Connection")) == ("cross_site", "close")


def _p99(took: list[float]) -> float:
    return sorted(took)[int(len(took) * 0.99)] * 1e3


@pytest.mark.parametrize("path", ["/metrics", "/status", "/readyz", "/"])
def test_pages_in_a_loop_hold_up_nobody(router: Router, path: str) -> None:
    """Fifty connections that ask for a page, and again: `/healthz`, and a slot whose caller leaves."""
    router.script = [*stream(["a"])[:3], Stall()]
    with Proxy(router) as proxy:
        program = [sys.executable, "-c", ASK_AGAIN, str(proxy.port), path]
        with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as flood:
            assert flood.stdin is not None
            assert flood.stdout is not None
            flood.stdout.readline()  # each has had an answer
            health, left, began_at = [], [], time.monotonic()
            with Beside() as beside:
                for _ in range(amount(60, 300)):
                    began = time.monotonic()
                    assert ask(proxy, "GET", "/healthz", timeout=60).status == 200
                    health.append(time.monotonic() - began)
            for _ in range(amount(8, 30)):
                client = RawClient(proxy, timeout=60)
                client.send(request_bytes("POST", CHAT, chat("deep")))
                client.read_head()
                began = time.monotonic()
                client.close()
                router.wait_for(lambda: router.open_sockets == 0, 60)
                left.append(time.monotonic() - began)
            seconds = time.monotonic() - began_at
            flood.stdin.close()
            pages = int(flood.stdout.read())
        print(f"EIDPROXY {path} on 50 connections, {pages} pages: /healthz p99 {_p99(health):.1f} ms, "
              f"departures at most {max(left) * 1e3:.1f} ms")  # fmt: skip
        if path == "/metrics":

            def is_kept() -> bool:
                """Whether a text that is asked for again does not count the request between."""
                before = proxy.get(path).body
                ask(proxy, "POST", CHAT, chat("nope"))
                return proxy.get(path).body == before

            assert any(is_kept() for _ in range(20))  # for a second, which may end between two looks
    # Whoever asks for a page waits for a round of all fifty; who asks for another thing waits for no more than a few.
    assert _p99(health) / 1e3 < beside.allow(max(3 * 50 * seconds / pages, 1.0))


ASK_AGAIN = """
import asyncio, sys
async def one(port, path, counts, began):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while not closed.is_set():
        writer.write(b"GET %b HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n" % path.encode())
        head = (await reader.readuntil(b"\\r\\n\\r\\n")).lower()
        await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\\r\\n")[0]))
        counts.append(1)
        began()
async def main():
    global closed
    closed, counts = asyncio.Event(), []
    left = 50
    def began():
        nonlocal left
        left -= 1
        if left == 0:
            print("all", flush=True)
    loop = asyncio.get_running_loop()
    loop.run_in_executor(None, lambda: (sys.stdin.read(), loop.call_soon_threadsafe(closed.set)))
    await asyncio.gather(*(one(int(sys.argv[1]), sys.argv[2], counts, began) for _ in range(50)))
    print(len(counts))
asyncio.run(main())
"""
