"""The chat surface through a real Caddy and a real nginx: prompt events, a free gate, nothing else open."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import socket
import ssl
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import jwt
import pytest

from tests.deploy.files import DEPLOY, ROOT, run
from tests.lab.client import CHAT, PROMPT_CANARY, Answer, Head, RawClient, chat, request_bytes
from tests.lab.cost import Beside
from tests.lab.proxy import Proxy
from tests.lab.router import Received, Router
from tests.lab.script import Pause, Script, Send, Stall, Step, Wait, chunk, completion_chunk, event, stream, stream_head
from tests.lab.tls import self_signed
from tests.lab.tools import free_port, need, size, until, without

SECRET = "s" * 48
EVENT_SECONDS = 0.050
EVENTS = size(20, 60)
DEPARTURES = size(3, 8)
DEPARTURE_SECONDS = 0.250
SECURITY_HEADERS = {
    "strict-transport-security": "max-age=31536000",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Edge:
    """A TLS server in front of eidproxy."""

    def __init__(self, name: str, port: int, http_port: int, authority: Path) -> None:
        self.name = name
        self.port = port
        self.http_port = http_port
        self.authority = authority
        self.tls = ssl.create_default_context(cafile=str(authority))

    def client(self) -> RawClient:
        """A connection that trusts the edge's certificate and checks it."""
        return RawClient(("127.0.0.1", self.port), tls=self.tls, server_name="localhost")

    def ask(self, method: str, path: str, body: object = None, headers: Sequence[tuple[str, str]] = ()) -> Answer:
        """One request and its whole answer."""
        with self.client() as client:
            client.send(request_bytes(method, path, body, headers))
            status, pairs = client.read_head()
            return Answer(status, pairs, client.read_body(), client.clean)


@contextlib.contextmanager
def caddy(upstream: Proxy, home: Path) -> Iterator[Edge]:
    """Caddy with the shipped Caddyfile; ports, upstream and its own directory by environment, as an operator does."""
    (program,) = need("caddy")
    port, http_port = free_port(), free_port()
    env = {
        "PATH": os.environ.get("PATH", ""),
        "HOME": str(home),
        "XDG_DATA_HOME": str(home),
        "XDG_CONFIG_HOME": str(home),
        "EIDPROXY_EDGE_HTTP_PORT": str(http_port),
        "EIDPROXY_EDGE_HTTPS_PORT": str(port),
        "EIDPROXY_EDGE_UPSTREAM": f"127.0.0.1:{upstream.port}",
    }
    authority = home / "caddy/pki/authorities/local/root.crt"
    with started([program, "run", "--config", str(ROOT / "Caddyfile"), "--adapter", "caddyfile"], env, home) as serving:
        until(lambda: authority.exists() or not serving(), 60, "Caddy's own authority")
        edge = Edge("caddy", port, http_port, authority)
        until(lambda: _answers(edge) or not serving(), 60, "Caddy")
        yield edge


@contextlib.contextmanager
def nginx(upstream: Proxy, home: Path, **changes: str) -> Iterator[Edge]:
    """nginx with the shipped server block inside a small http block; `changes` are replaced in it."""
    [program] = need("nginx")
    port, http_port = free_port(), free_port()
    certificate, key = self_signed(home, "DNS:localhost")
    text = (DEPLOY / "nginx.conf").read_text("utf-8")
    for old, new in {
        "    listen [::]:80;\n": "",
        "listen 80;": f"listen 127.0.0.1:{http_port};",
        "    listen [::]:443 ssl http2;\n": "",
        "listen 443 ssl http2;": f"listen 127.0.0.1:{port} ssl http2;",
        "/etc/nginx/tls/chat.example.pem": str(certificate),
        "/etc/nginx/tls/chat.example.key": str(key),
        "server 127.0.0.1:8790;": f"server 127.0.0.1:{upstream.port};",
        **changes,
    }.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    assert text.count("server_name chat.example;") == 2
    text = text.replace("server_name chat.example;", "server_name localhost;")
    (home / "eidproxy.conf").write_text(text)
    temporary = "".join(
        f"{kind}_temp_path {home}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = home / "nginx.conf"
    config.write_text(
        f"{'user root;' if os.geteuid() == 0 else ''} daemon off; pid {home}/pid; error_log stderr; worker_processes 1;"
        f"events {{}} http {{ access_log off; {temporary} include {home}/eidproxy.conf; }}"
    )
    said = run(program, "-e", "stderr", "-t", "-c", config)
    assert said.returncode == 0, said.stderr
    assert "[warn]" not in said.stderr, said.stderr
    with started([program, "-e", "stderr", "-c", str(config)], {"PATH": os.environ.get("PATH", "")}, home) as serving:
        edge = Edge("nginx", port, http_port, certificate)
        until(lambda: _answers(edge) or not serving(), 60, "nginx")
        yield edge


@contextlib.contextmanager
def started(command: Sequence[str], env: dict[str, str], home: Path) -> Iterator[Any]:
    """A server in the foreground, its output printed at the end. Yields a function that asks whether it still runs."""
    log = home / "log"
    with log.open("wb") as output, subprocess.Popen(command, env=env, stdout=output, stderr=output) as process:
        try:
            yield lambda: process.poll() is None
        finally:
            died = process.poll()
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
            print(log.read_text(errors="replace")[-4000:])
    assert died is None, f"it ended by itself with {died}"


def _answers(edge: Edge) -> bool:
    try:
        return edge.ask("GET", "/nothing").status == 404
    except (OSError, EOFError):
        return False


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Router, Proxy]]:
    """eidproxy with its chat surface, and the router behind it."""
    rules = tmp_path_factory.mktemp("chat") / "rules.md"
    rules.write_text("Answer kindly.\n")
    with (
        Router() as router,
        Proxy(router, EIDPROXY_CHAT_JWT_SECRET=SECRET, EIDPROXY_CHAT_RULES_FILE=rules) as proxy,
    ):
        yield router, proxy


@pytest.fixture(scope="module", params=["caddy", "nginx"])
def edge(
    request: pytest.FixtureRequest, backend: tuple[Router, Proxy], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Edge]:
    serve = {"caddy": caddy, "nginx": nginx}[request.param]
    with serve(backend[1], tmp_path_factory.mktemp(request.param)) as running:
        yield running


@pytest.fixture
def router(backend: tuple[Router, Proxy]) -> Router:
    backend[0].wait_for(lambda: backend[0].concurrent == 0)
    backend[0].reset()
    return backend[0]


@pytest.fixture
def proxy(backend: tuple[Router, Proxy]) -> Proxy:
    return backend[1]


@pytest.fixture
def beside() -> Iterator[Beside]:
    with Beside() as measured:
        yield measured


def token() -> str:
    """A token the chat surface accepts."""
    return jwt.encode({"sub": "somebody", "exp": int(time.time()) + 600}, SECRET, algorithm="HS256")


def question(mode: str = "daily") -> dict[str, Any]:
    return {"mode": mode, "messages": [{"role": "user", "content": "Hello"}]}


class Browser:
    """A caller of the chat surface that speaks HTTP/1.1 or HTTP/2: curl, which writes each piece as it comes."""

    def __init__(self, edge: Edge, protocol: str, mode: str = "daily") -> None:
        (curl,) = need("curl")
        self.process = subprocess.Popen(
            [
                *(curl, "--silent", "--show-error", "--no-buffer", "--include", f"--{protocol}"),
                *("--cacert", str(edge.authority), "--header", f"Authorization: Bearer {token()}"),
                *("--header", "Accept-Encoding: gzip, br, zstd", "--header", "Accept: text/event-stream"),
                *("--header", "Content-Type: application/json", "--data-binary", json.dumps(question(mode))),
                *("--noproxy", "*", "--resolve", f"localhost:{edge.port}:127.0.0.1"),
                f"https://localhost:{edge.port}/api/eid/chat",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.protocol = protocol

    def lines(self) -> Iterator[str]:
        """Lines as they come, the head first."""
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            yield line.decode().rstrip("\r\n")

    def head(self) -> Head:
        """Status and headers."""
        lines = self.lines()
        first = next(lines)
        assert first.startswith("HTTP/2 " if self.protocol == "http2" else "HTTP/1.1 "), first
        pairs = []
        for line in lines:
            if not line:
                break
            name, _, value = line.partition(": ")
            pairs.append((name, value))
        return Head(int(first.split()[1]), pairs)

    def leave(self) -> float:
        """Go away without a word; the moment of it."""
        now = time.monotonic()
        self.process.kill()
        return now

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


class Http2:
    """One HTTP/2 connection with several requests on it, as a browser has."""

    def __init__(self, edge: Edge) -> None:
        try:
            import h2.connection
            import h2.errors
        except ImportError:
            without("missing: h2")
        context = ssl.create_default_context(cafile=str(edge.authority))
        context.set_alpn_protocols(["h2"])
        plain = socket.create_connection(("127.0.0.1", edge.port), 10)
        self.sock = context.wrap_socket(plain, server_hostname="localhost")
        assert self.sock.selected_alpn_protocol() == "h2"
        self.edge = edge
        self.h2 = h2.connection.H2Connection()
        self.cancelled = h2.errors.ErrorCodes.CANCEL
        self.h2.initiate_connection()
        self.flush()

    def flush(self) -> None:
        self.sock.sendall(self.h2.data_to_send())

    def post(self, path: str, body: bytes) -> int:
        """Send a whole request; the number of its stream."""
        number = self.h2.get_next_available_stream_id()
        head = {
            ":method": "POST",
            ":scheme": "https",
            ":authority": f"localhost:{self.edge.port}",
            ":path": path,
            "authorization": f"Bearer {token()}",
            "content-type": "application/json",
        }
        self.h2.send_headers(number, list(head.items()))
        self.h2.send_data(number, body, end_stream=True)
        self.flush()
        return number

    def read_until(self, mark: bytes) -> None:
        """Read until the mark stands in what came since the last call."""
        found = b""
        while mark not in found:
            received = self.sock.recv(65536)
            assert received, found
            for happened in self.h2.receive_data(received):
                found += getattr(happened, "data", None) or b""
            self.flush()

    def cancel(self, number: int) -> float:
        """Reset one stream; the moment of it."""
        now = time.monotonic()
        self.h2.reset_stream(number, self.cancelled)
        self.flush()
        return now

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


PROTOCOLS = pytest.mark.parametrize("protocol", ["http1.1", "http2"])


def clocked(count: int, interval: float) -> Any:
    """A script whose texts are the moments at which they were sent."""

    def script(_request: Received) -> Script:
        yield Send(stream_head())
        for _ in range(count):
            yield Pause(interval)
            yield Send(chunk(event(completion_chunk({"content": f"at={time.monotonic()!r};"}))))
        yield from stream([])[1:]

    return script


def delays(edge: Edge, protocol: str, count: int = EVENTS) -> list[float]:
    """How long each event took from the router's socket to the browser, in seconds."""
    found = []
    with Browser(edge, protocol) as browser:
        assert browser.head().status == 200
        for line in browser.lines():
            now = time.monotonic()
            found += [now - float(moment) for moment in re.findall(r"at=([0-9.]+);", line)]
    assert len(found) == count
    return found


# --- Streams -------------------------------------------------------------------------------------------------------


@PROTOCOLS
def test_events_arrive_at_once(edge: Edge, router: Router, protocol: str) -> None:
    router.script = clocked(EVENTS, 0.02)
    # This machine may stall for a moment; an edge that holds events back does so in each round.
    rounds: list[list[float]] = []
    with Beside() as beside:
        while len(rounds) < 3 and not any(max(found) <= EVENT_SECONDS for found in rounds):
            rounds.append(delays(edge, protocol))
    best = min(rounds, key=max)
    print(f"{edge.name} {protocol}: event delay p50 {_ms(statistics.median(best))}, max {_ms(max(best))}")
    assert max(best) <= beside.allow(EVENT_SECONDS)


def test_an_edge_that_buffers_is_noticed(
    backend: tuple[Router, Proxy], router: Router, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The control: the same nginx with buffering on fails the measure above."""
    router.script = clocked(EVENTS, 0.02)
    changes = {"proxy_buffering off;": "proxy_buffering on; proxy_ignore_headers X-Accel-Buffering;"}
    with nginx(backend[1], tmp_path_factory.mktemp("buffering"), **changes) as edge:
        assert max(delays(edge, "http1.1")) > 2 * EVENT_SECONDS


@PROTOCOLS
def test_stream_is_whole_and_not_encoded(edge: Edge, router: Router, protocol: str) -> None:
    router.script = stream(["Hello", " world"] * 200)
    with Browser(edge, protocol) as browser:
        head = browser.head()
        body = "\n".join(browser.lines())
        assert browser.process.wait(10) == 0
    assert head.status == 200
    assert (head.get("content-type") or "").startswith("text/event-stream")
    assert head.get("content-encoding") is None
    assert head.get("cache-control") == "no-cache, no-transform"
    _is_secured(head)
    assert body.count("Hello") == 200
    assert body.rstrip().endswith("data: [DONE]")


# --- Departure -----------------------------------------------------------------------------------------------------


@PROTOCOLS
@pytest.mark.parametrize("when", ["mid-stream", "before the first event"])
def test_a_browser_that_leaves_frees_the_gate(
    edge: Edge, router: Router, proxy: Proxy, beside: Beside, protocol: str, when: str
) -> None:
    """The slot is free when the next in the queue is at the router."""
    taken = []
    for _ in range(DEPARTURES):
        router.reset()
        silent: list[Step] = [Send(stream_head()), Stall()]
        router.enqueue(stream(["Hello"] * 3, gate="held") if when == "mid-stream" else silent, stream())
        with Browser(edge, protocol) as browser, RawClient(proxy) as next_one:
            assert browser.head().status == 200
            router.wait_for(lambda: router.concurrent == 1)
            if when == "mid-stream":
                next(line for line in browser.lines() if '"Hello"' in line)
            next_one.send(request_bytes("POST", CHAT, chat("daily")))
            until(lambda: len(proxy.status()["gate"]["waiting"]) == 1)
            left = browser.leave()
            router.wait_for(lambda: router.posts == 2)
            taken.append(router.requests[1].at - left)
            assert next_one.read_head().status == 200
            next_one.read_body()
        assert router.closes[0].at - left <= beside.allow(DEPARTURE_SECONDS)
    assert router.max_concurrent == 1
    print(
        f"{edge.name} {protocol}, leaves {when}: gate free after p50 {_ms(statistics.median(taken))}, "
        f"max {_ms(max(taken))}"
    )
    assert max(taken) <= beside.allow(DEPARTURE_SECONDS)


def test_a_stop_button_frees_the_gate(edge: Edge, router: Router, proxy: Proxy, beside: Beside) -> None:
    """A page that aborts its fetch resets one HTTP/2 stream; the connection stays and is used again."""
    taken = []
    with Http2(edge) as page, contextlib.ExitStack() as clients:
        for _ in range(DEPARTURES):
            router.reset()
            router.enqueue(stream(["Hello"] * 3, gate="held"), stream())
            number = page.post("/api/eid/chat", json.dumps(question()).encode())
            page.read_until(b'"Hello"')
            next_one = clients.enter_context(RawClient(proxy))
            next_one.send(request_bytes("POST", CHAT, chat("daily")))
            until(lambda: len(proxy.status()["gate"]["waiting"]) == 1)
            left = page.cancel(number)
            router.wait_for(lambda: router.posts == 2)
            taken.append(router.requests[1].at - left)
            assert next_one.read_head().status == 200
            next_one.read_body()
    print(f"{edge.name} http2, stop button: gate free after p50 {_ms(statistics.median(taken))}, max {_ms(max(taken))}")
    assert max(taken) <= beside.allow(DEPARTURE_SECONDS)


@PROTOCOLS
def test_a_browser_that_leaves_the_queue_is_out_of_it(
    edge: Edge, router: Router, proxy: Proxy, beside: Beside, protocol: str
) -> None:
    router.enqueue([Send(stream_head()), Wait("holder"), *stream()[1:]])
    with RawClient(proxy) as holder:
        holder.send(request_bytes("POST", CHAT, chat("daily")))
        router.wait_for(lambda: router.concurrent == 1)
        with Browser(edge, protocol) as browser:
            assert browser.head().status == 200
            next(line for line in browser.lines() if '"queued"' in line)
            assert len(proxy.status()["gate"]["waiting"]) == 1
            left = browser.leave()
            until(lambda: not proxy.status()["gate"]["waiting"])
            taken = time.monotonic() - left
        router.release("holder")
        assert holder.read_head().status == 200
    print(f"{edge.name} {protocol}, leaves the queue: out of it after {_ms(taken)}")
    assert taken <= beside.allow(DEPARTURE_SECONDS)
    assert router.posts == 1


# --- What is open, and how it looks --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/index.html"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/daily"),
        ("POST", "/v1/chat/completions"),
        ("GET", "/metrics"),
        ("GET", "/status"),
        ("GET", "/healthz"),
        ("GET", "/readyz"),
        ("GET", "/api/eid"),
        ("GET", "/chatter"),
        ("GET", "/api/eid/../../metrics"),
        ("GET", "/api/eid/%2e%2e/%2e%2e/metrics"),
        ("GET", "/api/eid/..%2f..%2fmetrics"),
        ("GET", "/api/eid/..%2F..%2Fstatus"),
        ("POST", "/api/eid/../../v1/chat/completions"),
        ("GET", "/chat/../metrics"),
        ("GET", "/chat/%2e%2e/status"),
        ("GET", "/chat/..;/metrics"),
        ("GET", "/chat/..%5cmetrics"),
        ("GET", "/chat/.%2e/v1/models"),
        ("GET", "//metrics"),
        ("GET", "/./metrics"),
        ("GET", "/metrics/"),
        ("GET", "/metrics?path=/chat"),
        ("GET", "/%6detrics"),
        ("GET", "http://localhost/metrics"),
    ],
)
def test_nothing_else_is_reachable(edge: Edge, router: Router, method: str, path: str) -> None:
    answer = edge.ask(method, path, chat("daily") if method == "POST" else None)
    assert answer.status == 404
    assert b"eidproxy_" not in answer.body
    assert router.posts == 0
    _is_secured(Head(answer.status, answer.headers))


def test_the_name_alone_leads_to_the_chat(edge: Edge, router: Router) -> None:
    answer = edge.ask("GET", "/")
    assert (answer.status, answer.get("location")) == (302, "/chat")
    _is_secured(Head(answer.status, answer.headers))


@pytest.mark.parametrize("path", ["/", "/chat"])
def test_http_leads_to_https(edge: Edge, path: str) -> None:
    with RawClient(("127.0.0.1", edge.http_port)) as client:
        client.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        head = client.read_head()
    assert head.status in (301, 308)
    # Caddy names the port of the test; on 443 it names none.
    assert (head.get("location") or "").replace(f":{edge.port}", "") == f"https://localhost{path}"


def test_what_a_browser_has_is_not_sent_again(edge: Edge) -> None:
    """Through an edge that compresses, and so may change the tag."""
    first = edge.ask("GET", "/chat", headers=[("Accept-Encoding", "gzip")])
    tag = first.get("etag")
    assert tag is not None
    again = edge.ask("GET", "/chat", headers=[("Accept-Encoding", "gzip"), ("If-None-Match", tag)])
    assert (again.status, again.body) == (304, b"")


def test_html_and_json_are_compressed(edge: Edge, proxy: Proxy) -> None:
    encoding = [("Accept-Encoding", "gzip")]
    page = edge.ask("GET", "/chat", headers=encoding)
    assert (page.status, page.get("content-encoding")) == (200, "gzip")
    assert (page.get("content-type") or "").startswith("text/html")
    assert gzip.decompress(page.body) == proxy.get("/chat").body
    _is_secured(Head(page.status, page.headers))
    policy = page.get("content-security-policy")
    assert policy == proxy.get("/chat").get("content-security-policy")
    assert policy is not None

    # nginx compresses 200, 403 and 404 and no other status.
    signed = [*encoding, ("Authorization", f"Bearer {token()}")]
    refused = edge.ask("POST", "/api/eid/chat", question("other"), signed)
    assert (refused.status, refused.get("content-encoding")) == (404, "gzip")
    assert refused.get("content-type") == "application/json"
    assert json.loads(gzip.decompress(refused.body))["error_reason"] == "model_not_found"
    assert refused.get("x-eid-error-reason") == "model_not_found"
    _is_secured(Head(refused.status, refused.headers))


def test_files_of_the_page_are_served(edge: Edge, proxy: Proxy) -> None:
    paths = set(re.findall(r'(?:href|src)="(/[^"]+)"', proxy.get("/chat").body.decode()))
    assert len(paths) >= 2
    for path in paths:
        answer = edge.ask("GET", path)
        assert (answer.status, answer.body) == (200, proxy.get(path).body), path


def test_a_body_that_is_too_large_is_refused(edge: Edge, router: Router) -> None:
    headers = [("Authorization", f"Bearer {token()}")]
    answer = edge.ask("POST", "/api/eid/chat", b" " * (1_048_576 + 1), [*headers, ("Content-Type", "application/json")])
    assert answer.status == 413
    assert router.posts == 0


class NoPlace:
    """What a prompt is sent with when nginx has no place to keep it on the disk."""

    def __init__(self, edge: Edge, home: Path) -> None:
        self.edge = edge
        # A file in the place of the directory: whoever would make a temporary file there fails, root too.
        folder = home / "client_body"
        folder.rmdir()
        folder.touch()
        text = "long " * 1200 + PROMPT_CANARY
        messages = [{"role": "user", "content": text}, {"role": "assistant", "content": "yes"}] * 4
        self.question = json.dumps({"mode": "daily", "messages": [*messages, {"role": "user", "content": "go on"}]})
        assert len(self.question) > 16_384  # what nginx keeps in memory

    def plain(self, *fields: tuple[str, str]) -> int:
        """Over HTTP/1.1, with its length."""
        headers = [("Authorization", f"Bearer {token()}"), ("Content-Type", "application/json"), *fields]
        return self.edge.ask("POST", "/api/eid/chat", self.question.encode(), headers).status

    def curl(self, *arguments: str) -> int:
        """By curl, which knows HTTP/2 and chunks."""
        (curl,) = need("curl")
        said = subprocess.run(
            [
                *(curl, "--silent", "--output", os.devnull, "--write-out", "%{http_code}", "--max-time", "30"),
                *("--cacert", str(self.edge.authority), "--noproxy", "*"),
                *("--resolve", f"localhost:{self.edge.port}:127.0.0.1", "--header", f"Authorization: Bearer {token()}"),
                *("--header", "Content-Type: application/json", "--header", "Expect:", "--data-binary", "@-"),
                *(*arguments, f"https://localhost:{self.edge.port}/api/eid/chat"),
            ],
            input=self.question.encode(),
            stdout=subprocess.PIPE,
            check=True,
        )
        return int(said.stdout)


def test_nginx_keeps_no_prompt_on_the_disk(
    backend: tuple[Router, Proxy], router: Router, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path_factory.mktemp("no-place")
    with nginx(backend[1], home) as edge:
        prompt = NoPlace(edge, home)
        assert prompt.plain() == 200
        assert prompt.curl("--http2") == 200
        assert prompt.curl("--http1.1", "--header", "Transfer-Encoding: chunked") == 200
    assert router.posts == 3
    assert all(PROMPT_CANARY in request.body.decode() for request in router.requests)


def test_an_nginx_that_keeps_prompts_is_noticed(
    backend: tuple[Router, Proxy], router: Router, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The control: nginx's own default fails where it has no place for a temporary file."""
    home = tmp_path_factory.mktemp("default")
    with nginx(backend[1], home, **{"    proxy_request_buffering off;\n": ""}) as edge:
        assert NoPlace(edge, home).plain() == 500
    assert router.posts == 0


def _is_secured(head: Head) -> None:
    for name, value in SECURITY_HEADERS.items():
        assert head.get(name) == value, name
    assert head.get("via") is None
    # nginx has no way to leave the word out, only its version.
    assert head.get("server") in (None, "nginx")


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"
