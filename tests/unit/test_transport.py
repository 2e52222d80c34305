"""transport: what asyncio promises of a transport, and that a close is a close at once."""

from __future__ import annotations

import asyncio
import select
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from eidproxy.router import transport as transport_module
from eidproxy.router.transport import EpollPoller, ReadPoller, SelectorPoller, TcpTransport
from tests.lab.loops import played


class Heard(asyncio.Protocol):
    """What a protocol hears."""

    def __init__(self) -> None:
        self.data = b""
        self.words: list[str] = []
        self.lost: Exception | None = None
        self.news = asyncio.Event()

    def _hear(self, word: str) -> None:
        self.words.append(word)
        self.news.set()

    def connection_made(self, _transport: asyncio.BaseTransport) -> None:
        self._hear("made")

    def data_received(self, data: bytes) -> None:
        self.data += data
        self.news.set()

    def eof_received(self) -> None:
        self._hear("eof")

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = exc
        self._hear("lost")

    def pause_writing(self) -> None:
        self._hear("paused")

    def resume_writing(self) -> None:
        self._hear("resumed")

    async def until(self, reached: Callable[[], bool]) -> None:
        """Wait for something to be so."""
        while not reached():
            self.news.clear()
            await self.news.wait()


@pytest.fixture(autouse=True, params=[EpollPoller, SelectorPoller] if hasattr(select, "epoll") else [SelectorPoller])
def _poller(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test over both selectors; the second is the one of macOS."""
    monkeypatch.setattr(transport_module, "default_poller", request.param)


@contextmanager
def joined() -> Iterator[tuple[TcpTransport, Heard, socket.socket]]:
    """A transport that talks, what is heard on it, and the socket at its other end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        heard = Heard()
        transport = TcpTransport(ReadPoller(asyncio.get_running_loop()), heard, *listener.getsockname())
        far, address = listener.accept()
        with far:
            assert (transport.peer_address(), transport.own_address()) == (listener.getsockname(), address)
            transport.open()
            yield transport, heard, far
            transport.abort()


def reset(far: socket.socket) -> None:
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far.close()


@played
async def test_it_talks_and_hears_the_end() -> None:
    with joined() as (transport, heard, far):
        transport.write(b"ping")
        assert far.recv(10) == b"ping"
        far.send(b"pong")
        await heard.until(lambda: heard.data == b"pong")
        far.close()
        await heard.until(lambda: "lost" in heard.words)
        assert heard.words == ["made", "eof", "lost"]
        assert transport.is_closing()
        assert heard.lost is None


@played
async def test_what_the_peer_does_not_take_is_kept_and_told() -> None:
    with joined() as (transport, heard, far):
        transport.write(b"x" * 8_000_000)
        assert heard.words == ["made", "paused"]
        transport.write(b"y")
        loop = asyncio.get_running_loop()
        far.setblocking(False)
        got = b""
        while len(got) < 8_000_001:
            got += await loop.sock_recv(far, 1_000_000)
        assert got == b"x" * 8_000_000 + b"y"
        await heard.until(lambda: heard.words == ["made", "paused", "resumed"])


@played
async def test_paused_it_reads_nothing_and_then_all() -> None:
    with joined() as (transport, heard, far):
        transport.pause_reading()
        far.send(b"x" * 1000)
        transport.write(b"a turn of the loop")
        await asyncio.get_running_loop().run_in_executor(None, far.recv, 100)
        assert heard.data == b""
        transport.resume_reading()
        await heard.until(lambda: len(heard.data) == 1000)


@played
async def test_an_abort_closes_there_and_then() -> None:
    with joined() as (transport, heard, far):
        transport.abort()
        assert far.recv(1) == b""  # it would block for good
        assert transport.is_closing()
        transport.write(b"x")
        transport.resume_reading()
        transport.abort()
        assert heard.words == ["made"]


@played
async def test_a_reset_is_told_with_what_came_before_it() -> None:
    with joined() as (_transport, heard, far):
        far.send(b"x" * 60_000)
        reset(far)
        await heard.until(lambda: "lost" in heard.words)
        assert len(heard.data) == 60_000
        assert isinstance(heard.lost, ConnectionResetError | OSError)
        assert heard.words == ["made", "lost"]


@played
async def test_a_reset_in_a_silence_is_told() -> None:
    with joined() as (_transport, heard, far):
        far.send(b"x")
        await heard.until(lambda: heard.data == b"x")
        reset(far)
        await heard.until(lambda: "lost" in heard.words)
        assert isinstance(heard.lost, OSError)


@played
async def test_a_reset_while_it_writes_is_told() -> None:
    with joined() as (transport, heard, far):
        transport.write(b"x" * 8_000_000)
        reset(far)
        await heard.until(lambda: "lost" in heard.words)
        assert isinstance(heard.lost, OSError)
        assert transport.is_closing()


@played
async def test_a_protocol_that_fails_is_told_of_and_closed() -> None:
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))
    with joined() as (transport, heard, far):

        def fails(data: bytes) -> None:
            raise ValueError

        heard.data_received = fails  # type: ignore[method-assign]
        far.send(b"x")
        await heard.until(lambda: "lost" in heard.words)
        assert heard.lost in told
        assert transport.is_closing()


@played
async def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        where = listener.getsockname()
    transport = TcpTransport(ReadPoller(asyncio.get_running_loop()), Heard(), *where)
    assert transport.peer_address() is None
    with pytest.raises(ConnectionRefusedError):
        await transport.wait_connected()
    transport.abort()


@played
async def test_an_abort_while_it_connects() -> None:
    """A listener whose backlog is full takes no more: who waits for it can be called off."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, socket.socket() as first:
        first.connect(listener.getsockname())
        transport = TcpTransport(ReadPoller(asyncio.get_running_loop()), Heard(), *listener.getsockname())
        waiting = asyncio.ensure_future(transport.wait_connected())
        await asyncio.sleep(0)
        transport.abort()
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()


@played
async def test_what_one_transport_hears_may_close_another_that_is_ready_too() -> None:
    """Both were found ready in one look; the number of the one that is closed may be another's by then."""

    class Closer(Heard):
        """Closes the others when it hears anything."""

        own: TcpTransport

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            for transport in transports:
                if transport is not self.own:
                    transport.abort()

    read_poller = ReadPoller(asyncio.get_running_loop())
    transports: list[TcpTransport] = []
    heards: list[Closer] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fars = []
        for _ in range(3):
            heard = Closer()
            heard.own = TcpTransport(read_poller, heard, *listener.getsockname())
            heards.append(heard)
            transports.append(heard.own)
            fars.append(listener.accept()[0])
        for transport in transports:
            transport.open()
        for far in fars:
            far.send(b"x")  # within this turn of the loop: all three are ready at the next look
        await heards[0].until(lambda: any(heard.data for heard in heards))
        await asyncio.sleep(0)
        assert sorted(heard.data for heard in heards) == [b"", b"", b"x"]
        assert sorted(transport.is_closing() for transport in transports) == [False, True, True]
        for transport, far in zip(transports, fars, strict=True):
            transport.abort()
            far.close()


def _heard(heard: Heard) -> bool:
    return heard.data == b"x"


@played
async def test_more_than_a_look_finds_are_all_served() -> None:
    read_poller = ReadPoller(asyncio.get_running_loop())
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        heards, transports, fars = [], [], []
        for _ in range(200):
            heards.append(Heard())
            transports.append(TcpTransport(read_poller, heards[-1], *listener.getsockname()))
            fars.append(listener.accept()[0])
            transports[-1].open()
        for far in fars:
            far.send(b"x")
        await asyncio.gather(*(heard.until(partial(_heard, heard)) for heard in heards))
        for transport, far in zip(transports, fars, strict=True):
            transport.abort()
            far.close()


@played
async def test_a_turn_has_an_end_and_each_has_its_turn() -> None:
    """Ten that always have something to say: each look costs 4 ms of the clock, and a turn has 10."""
    now = 0.0

    class Flood(Heard):
        """Counts its turns."""

        def data_received(self, data: bytes) -> None:
            nonlocal now
            now += 0.004
            served.append(fars_of[self])
            fars_of[self].send(b"x")  # it can be read again at once
            self.news.set()

    served: list[socket.socket] = []
    turns: list[int] = []
    fars_of: dict[Flood, socket.socket] = {}
    loop = asyncio.get_running_loop()
    read_poller = ReadPoller(loop, clock=lambda: now)
    transports = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for _ in range(10):
            heard = Flood()
            transports.append(TcpTransport(read_poller, heard, *listener.getsockname()))
            fars_of[heard] = listener.accept()[0]
            transports[-1].open()
        for far in fars_of.values():
            far.send(b"x")
        while len(turns) < 200:
            before = len(served)
            await asyncio.sleep(0)  # a turn of the loop
            turns.append(len(served) - before)
        assert set(turns) <= {0, 1, 2, 3}  # three times 4 ms are over 10; one may be what a look before had left
        assert len(served) > 100
        counts = [served.count(far) for far in fars_of.values()]
        assert max(counts) - min(counts) <= 1, counts
        for transport in transports:
            transport.abort()
        for far in fars_of.values():
            far.close()


@played
async def test_what_is_unread_can_be_asked_for() -> None:
    with joined() as (transport, heard, far):
        assert not transport.has_unread()
        far.send(b"x")
        assert transport.has_unread()  # before any turn of the loop
        await heard.until(lambda: heard.data == b"x")
        assert not transport.has_unread()
        far.close()
        assert transport.has_unread()  # the end counts
        transport.abort()
        assert not transport.has_unread()


@pytest.mark.parametrize("is_reset", [False, True])
def test_the_peer_of_an_abort_hears_an_end_or_a_reset(is_reset: bool) -> None:
    async def test() -> None:
        with joined() as (transport, _, far):
            transport.abort(reset=is_reset)
            if is_reset:
                with pytest.raises(ConnectionResetError):
                    far.recv(1)
            else:
                assert far.recv(1) == b""

    played(test)()
