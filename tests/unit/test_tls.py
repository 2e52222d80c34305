"""tls: a router with TLS keeps every promise that one without it keeps, and its socket is closed as soon."""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
import select
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import pytest

from eidproxy.egress import EgressBlocked, EgressPolicy
from eidproxy.router.tls import _MAX_REPLY_BYTES, TlsTransport
from eidproxy.router.transport import ReadPoller
from eidproxy.router.upstream import Upstream
from tests.lab.callers import at_rest, check_refusal
from tests.lab.client import CHAT, RawClient, ask, chat, request_bytes
from tests.lab.loops import played
from tests.lab.proxy import Proxy, impatient
from tests.lab.router import Router
from tests.lab.script import Drained, Fin, Reset, Send, Stall, Step, stream, wire
from tests.lab.stream import told
from tests.lab.tls import Certificate
from tests.lab.tools import size, until

WHOLE = wire(stream(["one", "two", "three"]))
TRUST = "from eidproxy.router.idle import IdleConnections; IdleConnections.is_trusted = True\n"
RESET = b"\1\0\0\0\0\0\0\0"


class Heard(asyncio.Protocol):
    """What the protocol of the plain bytes hears."""

    def __init__(self) -> None:
        self.reads: list[bytes] = []
        self.words: list[str] = []
        self.news = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, TlsTransport)
        self.words.append("made")

    def data_received(self, data: bytes) -> None:
        self.reads.append(data)
        self.news.set()

    def eof_received(self) -> None:
        self.words.append("eof")

    def connection_lost(self, exc: Exception | None) -> None:
        self.words.append("lost" if exc is None else type(exc).__name__)
        self.news.set()

    async def until(self, reached: Callable[[], object]) -> None:
        while not reached():
            self.news.clear()
            await self.news.wait()


class Far:
    """The peer: TLS over memory, so that a test chooses which encrypted bytes go out together."""

    def __init__(self, context: ssl.SSLContext, listener: socket.socket) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.object = context.wrap_bio(self.incoming, self.outgoing, server_side=True)
        self.socket, _ = listener.accept()
        self.socket.setblocking(False)

    async def receive(self) -> bytes:
        """What comes next, encrypted; empty at the end."""
        return await asyncio.get_running_loop().sock_recv(self.socket, 65536)

    async def shake(self) -> None:
        """Its half of the handshake."""
        while True:
            try:
                self.object.do_handshake()
            except ssl.SSLWantReadError:
                self.flush()
                self.incoming.write(await self.receive())
            else:
                self.flush()
                return

    def flush(self) -> None:
        self.socket.sendall(self.outgoing.read())

    def sealed(self, data: bytes) -> bytes:
        """As one record."""
        self.object.write(data)
        return self.outgoing.read()

    async def read(self, count: int) -> bytes:
        """So many plain bytes."""
        plain = b""
        while len(plain) < count:
            try:
                plain += self.object.read(65536)
            except ssl.SSLWantReadError:
                self.incoming.write(await self.receive())
        return plain


@contextmanager
def dialled(
    certificate: Certificate,
    heard: Heard,
    *,
    version: ssl.TLSVersion | None = None,
    asks_for_certificates: bool = False,
    kind: type[TlsTransport] = TlsTransport,
) -> Iterator[tuple[TlsTransport, Far]]:
    """A transport whose connection is there, before the handshake, and its peer."""
    server, client = certificate.server(), certificate.client()
    if version is not None:
        server.maximum_version = version
    if asks_for_certificates:  # once the connection is there (RFC 8446, 4.6.2)
        server.verify_mode = ssl.CERT_OPTIONAL
        server.load_verify_locations(certificate.certificate)
        client.load_cert_chain(*certificate)
        server.post_handshake_auth = client.post_handshake_auth = True
    with socket.create_server(("127.0.0.1", 0)) as listener:
        poller = ReadPoller(asyncio.get_running_loop())
        address, port = listener.getsockname()
        transport = kind(poller, heard, address, port, context=client, server_name="localhost")
        far = Far(server, listener)
        with far.socket:
            yield transport, far
            transport.abort()


async def shaken(transport: TlsTransport, far: Far) -> None:
    await transport.wait_connected()
    await asyncio.gather(transport.handshake(), far.shake())
    transport.open()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_it_talks_whatever_the_cuts(certificate: Certificate, version: ssl.TLSVersion) -> None:
    """Records come in pieces and several at a time. What a read completes is passed on in one call."""

    @played
    async def test() -> None:
        heard = Heard()
        with dialled(certificate, heard, version=version) as (transport, far):
            await shaken(transport, far)
            transport.write(b"hello" * 20_000)
            assert await far.read(100_000) == b"hello" * 20_000
            first, second = far.sealed(b"first"), far.sealed(b"second")
            records, ends = first + second, (len(first), len(first + second))
            for cut in range(1, len(records)):
                heard.reads.clear()
                for part, is_cut in ((records[:cut], cut not in ends), (records[cut:], False)):
                    far.socket.sendall(part)
                    assert select.select([transport._descriptor], [], [], 30)[0]
                    transport.read_now()
                    assert transport.has_unread() == is_cut
                await heard.until(lambda: b"".join(heard.reads) == b"firstsecond")
                assert len(heard.reads) <= 2
                records = far.sealed(b"first") + far.sealed(b"second")
            assert heard.words == ["made"]

    test()


@pytest.mark.parametrize(
    ("end", "words"),
    [("notify", ["eof", "lost"]), ("fin", ["eof", "lost"]), ("rst", ["ConnectionResetError"]), ("bad", ["SSLError"])],
)
def test_the_end_comes_after_what_was_said(certificate: Certificate, end: str, words: list[str]) -> None:
    """With close_notify or without it; a record that does not verify is an error, behind those that do."""

    @played
    async def test() -> None:
        heard = Heard()
        with dialled(certificate, heard) as (transport, far):
            await shaken(transport, far)
            said = far.sealed(b"said")
            if end == "notify":
                with pytest.raises(ssl.SSLWantReadError):
                    far.object.unwrap()
                said += far.outgoing.read()
            if end == "bad":
                record = far.sealed(b"never said")
                said += record[:-1] + bytes([record[-1] ^ 1])
            far.socket.sendall(said)
            await heard.until(lambda: heard.reads == [b"said"])
            if end == "fin":
                far.socket.shutdown(socket.SHUT_WR)
            if end == "rst":
                far.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                far.socket.close()
            await heard.until(lambda: len(heard.words) == 1 + len(words))
            assert heard.words[1:] == words
            assert heard.reads == [b"said"]
            assert transport.is_closing()

    test()


@pytest.mark.parametrize("is_reset", [False, True], ids=["close", "reset"])
def test_an_abort_closes_there_and_then(certificate: Certificate, is_reset: bool) -> None:
    @played
    async def test() -> None:
        heard = Heard()
        with dialled(certificate, heard) as (transport, far):
            await shaken(transport, far)
            transport.abort(reset=is_reset)
            if is_reset:  # in this turn of the loop: nothing was awaited
                with pytest.raises(ConnectionResetError):
                    far.socket.recv(1)
            else:
                assert far.socket.recv(1) == b""
            assert heard.words == ["made"]

    test()


@pytest.mark.parametrize("how", ["fin", "rst", "plain"])
def test_a_handshake_that_fails_raises(certificate: Certificate, how: str) -> None:
    @played
    async def test() -> None:
        heard = Heard()
        with dialled(certificate, heard) as (transport, far):
            await transport.wait_connected()
            task = asyncio.ensure_future(transport.handshake())
            await far.receive()
            if how == "plain":
                far.socket.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            elif how == "rst":
                far.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            if how != "plain":
                far.socket.close()
            with pytest.raises(ssl.SSLError if how == "plain" else ConnectionResetError):
                await task
            assert heard.words == []

    test()


def test_a_handshake_that_cannot_begin_raises(certificate: Certificate) -> None:
    """Where the system's policy leaves no version: before the peer has said a word."""

    @played
    async def test() -> None:
        context = certificate.client()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        with Router(tls=certificate.server()) as router:
            upstream = Upstream("127.0.0.1", router.port, EgressPolicy(), tls=context)
            with pytest.raises(httpx.ConnectError):
                await upstream.connect(upstream.dial())
            assert upstream.reachable is False

    test()


def test_the_request_does_not_wait_for_an_acknowledgement(certificate: Certificate) -> None:
    """It follows the handshake's last message, which Nagle's algorithm would have acknowledged first: 40 ms."""

    @played
    async def test() -> None:
        with dialled(certificate, Heard()) as (transport, far):
            await shaken(transport, far)
            assert transport._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    test()


class Clogged(TlsTransport):
    """A transport that counts every byte as unsent: its peer reads nothing."""

    __slots__ = ()

    def get_write_buffer_size(self) -> int:
        return 1


@pytest.mark.parametrize("kind", [TlsTransport, Clogged])
def test_replies_to_a_peer_that_reads_nothing_have_a_limit(certificate: Certificate, kind: type[TlsTransport]) -> None:
    """A peer may ask for new keys or for a certificate at any time. What TLS answers by itself has no flow control."""

    @played
    async def test() -> None:
        heard = Heard()
        with dialled(certificate, heard, asks_for_certificates=True, kind=kind) as (transport, far):
            await shaken(transport, far)
            replied = 0
            while replied <= 2 * _MAX_REPLY_BYTES:
                with suppress(ssl.SSLError):  # the last reply is not whole yet
                    far.object.verify_client_post_handshake()
                    far.object.write(b".")
                    far.flush()
                data = await far.receive()
                if not data:
                    break
                replied += len(data)
                far.incoming.write(data)
                with suppress(ssl.SSLWantReadError):
                    far.object.read(1)
            if kind is TlsTransport:
                assert heard.words == ["made"]
            else:
                assert _MAX_REPLY_BYTES < replied < 2 * _MAX_REPLY_BYTES
                assert heard.words == ["made", "ConnectionError"]

    test()


def test_a_peer_that_is_not_the_router_gets_no_byte(certificate: Certificate) -> None:
    """The peer is judged before the handshake: not even the name of the router goes out."""

    @played
    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            upstream = Upstream("127.0.0.1", port, EgressPolicy(), tls=certificate.client())
            upstream.own_addresses = frozenset({("127.0.0.1", port)})
            with pytest.raises(EgressBlocked):
                await upstream.connect(upstream.dial())
            far, _ = listener.accept()
            with far:
                far.setblocking(False)
                assert far.recv(1) == b""

    test()


def test_a_certificate_that_is_not_trusted(certificate: Certificate) -> None:
    """It is a router that cannot be reached, and it hears why (an alert), but no request."""
    with Router(tls=certificate.server()) as router, Proxy(router) as proxy:
        check_refusal(ask(proxy, "POST", CHAT, chat()), 503, "router_ConnectError")
        router.wait_for(lambda: router.open_sockets == 0)
        assert (router.posts, {close.how for close in router.closes}) == (0, {"tls"})

    @played
    async def test() -> None:
        with Router(tls=certificate.server()) as router:
            upstream = Upstream("127.0.0.1", router.port, EgressPolicy(), tls=ssl.create_default_context())
            with pytest.raises(httpx.ConnectError):
                await upstream.connect(upstream.dial())
            assert upstream.reachable is False

    test()


@pytest.mark.parametrize("end", ["abort", "bad record"])
def test_a_connection_is_freed_where_it_ends(certificate: Certificate, end: str) -> None:
    """Nothing of it is left for the garbage collector."""

    @played
    async def test() -> None:
        gc.collect()
        gc.disable()
        try:
            heard = Heard()
            with dialled(certificate, heard) as (transport, far):
                await shaken(transport, far)
                if end == "abort":
                    transport.abort()
                else:
                    record = far.sealed(b"never said")
                    far.socket.sendall(record[:-1] + bytes([record[-1] ^ 1]))
                    await heard.until(transport.is_closing)
                del transport
            await asyncio.sleep(0)
            assert not [each for each in gc.get_objects() if isinstance(each, TlsTransport)]
        finally:
            gc.enable()

    test()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_connect_that_fails_is_freed_where_it_ends(certificate: Certificate, host: str) -> None:
    @played
    async def test() -> None:
        with Router(tls=certificate.server()) as router:
            upstream = Upstream(host, router.port, EgressPolicy(), tls=ssl.create_default_context())
            gc.collect()
            gc.disable()
            try:
                for _ in range(3):
                    with pytest.raises(httpx.ConnectError):
                        await upstream.connect(upstream.dial())
                await asyncio.sleep(0)
                assert not [each for each in gc.get_objects() if isinstance(each, TlsTransport)]
            finally:
                gc.enable()

    test()


# --- From outside ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared(certificate: Certificate) -> Iterator[tuple[Router, Proxy]]:
    with (
        Router(tls=certificate.server()) as router,
        Proxy(router, EIDPROXY_ROUTER_CA_FILE=certificate.certificate, **impatient(0.5)) as proxy,
    ):
        yield router, proxy


@pytest.fixture
def both(shared: tuple[Router, Proxy]) -> Iterator[tuple[Router, Proxy]]:
    shared[0].reset()
    yield shared
    at_rest(*shared)
    assert shared[0].max_concurrent <= 1
    assert not [line for line in shared[1].log() if line["event"] == "fault"]
    shared[0].reset()


def test_an_end_at_each_byte(both: tuple[Router, Proxy]) -> None:
    """FIN and RST behind the bytes of an answer: whole where it is whole by its content, else an error."""
    router, proxy = both
    whole_at = WHOLE.index(b'"finish_reason": "stop"')
    ends: tuple[Step, ...] = (Fin(), Reset())
    seen = set()
    for cut, end, streaming in itertools.product(range(0, len(WHOLE), size(90, 1)), ends, (True, False)):
        router.enqueue([Send(WHOLE[:cut]), Drained(), end])
        answer = ask(proxy, "POST", CHAT, chat("daily", streaming))
        if cut < whole_at:
            assert not (answer.status == 200 and (answer.told().done if streaming else True)), cut
        seen.add(answer.status)
    assert seen == {200, 503}


def test_a_large_answer_is_whole(both: tuple[Router, Proxy]) -> None:
    """In reads that end in the middle of records."""
    router, proxy = both
    words = [f"{number:07} " * 100 for number in range(size(1000, 5000))]
    router.enqueue(stream(words))
    answer = ask(proxy, "POST", CHAT, chat("daily"))
    assert answer.told().text == "".join(words)
    assert answer.told().done


def test_a_caller_that_reads_slowly_loses_nothing(both: tuple[Router, Proxy]) -> None:
    router, proxy = both
    words = [f"{number:07} " * 100 for number in range(3000)]
    router.enqueue(stream(words))
    with RawClient(proxy, timeout=60, receive_buffer=4096) as client:
        client.send(request_bytes("POST", CHAT, chat("daily")))
        assert client.read_head().status == 200
        until(lambda: router.concurrent == 1 and not router.closes)
        assert told(client.read_body()).text == "".join(words)


def test_callers_that_leave(both: tuple[Router, Proxy]) -> None:
    """With or without a head read, and the next one waiting. Two generations never meet, and the slot comes back."""
    router, proxy = both
    choose = random.Random(20261127)
    router.script = [*stream(["a", "b"])[:3], Stall()]
    for _ in range(size(40, 1000)):
        with RawClient(proxy) as leaver:
            leaver.send(request_bytes("POST", CHAT, chat("daily")))
            if choose.random() < 0.7:
                leaver.read_head()
    until(lambda: not any(proxy.status()["streams"].values()))
    router.wait_for(lambda: router.concurrent == 0)
    assert router.max_concurrent == 1
    router.script = stream()
    assert ask(proxy, "POST", CHAT, chat("daily")).status == 200


def test_a_kept_connection_saves_a_handshake(certificate: Certificate) -> None:
    """And one that the router closed while it waited is not used again."""
    settings: dict[str, Any] = {"EIDPROXY_ROUTER_KEEP_IDLE_SECONDS": 60, "planted": TRUST}
    settings["EIDPROXY_ROUTER_CA_FILE"] = certificate.certificate
    with Router(script=[WHOLE], tls=certificate.server()) as router, Proxy(router, **settings) as proxy:

        def asked(times: int) -> None:
            for _ in range(times):
                answer = ask(proxy, "POST", CHAT, chat("daily"))
                assert (answer.status, answer.told().done) == (200, True)

        asked(5)
        assert (router.connections, router.posts, router.open_sockets) == (1, 5, 1)
        router.enqueue([WHOLE, Drained(), Fin()])
        asked(1)
        router.wait_for(lambda: router.open_sockets == 0)
        asked(1)
        assert (router.connections, router.posts) == (2, 7)
