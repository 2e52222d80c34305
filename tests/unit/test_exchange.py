"""Exchange and ResponseParser: what a router's bytes are read as, however they are cut into reads."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import Callable

import httpx
import pytest
import uvloop

from eidproxy.egress import EgressBlocked, EgressPolicy
from eidproxy.router.exchange import Exchange
from eidproxy.router.response import ResponseHead
from eidproxy.router.upstream import Upstream

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"


class Nowhere(asyncio.Transport):
    """The other end of an exchange that is only told what came."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Nobody reads it."""

    def get_write_buffer_size(self) -> int:
        """See there."""
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """There is no buffer."""

    def is_closing(self) -> bool:
        """It has no socket either."""
        return True


class Told:
    """What a sink is told: `parts`, and how it ended: True when it is whole, or the error's name."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.end: bool | str | None = None

    def upstream_head(self, head: ResponseHead) -> None:
        """The status is 200."""
        assert head == ResponseHead(200, is_event_stream=True, retry_after=b"")

    def upstream_body(self, data: bytes, now: float) -> None:
        """The clock is the loop's."""
        assert 0 <= asyncio.get_running_loop().time() - now < 5
        self.parts.append(data)

    def upstream_end(self, error: httpx.TransportError | None) -> None:
        """Once."""
        assert self.end is None
        self.end = True if error is None else type(error).__name__


def read(*reads: bytes) -> Told:
    """What is told of an answer that comes in these reads."""
    exchange, told = Exchange(asyncio.get_running_loop(), 1.0), Told()
    exchange.connection_made(Nowhere())
    exchange.start(b"", told)
    for data in reads:
        exchange.data_received(data)
    return told


def in_a_loop(test: Callable[[], None]) -> None:
    """An exchange reads the clock of a running loop."""

    async def run() -> None:
        test()

    uvloop.run(run())


CHUNKS: dict[str, tuple[bytes, bytes]] = {
    "plain": (b"5\r\nhello\r\n", b"hello"),
    "one byte": (b"1\r\nx\r\n", b"x"),
    "that ends like a chunk": (b"7\r\nhello\r\n\r\n", b"hello\r\n"),
    "that reads like a chunk": (b"a\r\n5\r\nhello\r\n\r\n", b"5\r\nhello\r\n"),
    "that reads like the last": (b"5\r\n0\r\n\r\n\r\n", b"0\r\n\r\n"),
    "of sixteen": (b"10\r\n" + b"x" * 16 + b"\r\n", b"x" * 16),
    "in upper case": (b"1A\r\n" + b"y" * 26 + b"\r\n", b"y" * 26),
    "in lower case": (b"1a\r\n" + b"z" * 26 + b"\r\n", b"z" * 26),
    "with zeros": (b"005\r\nhello\r\n", b"hello"),
    "with an extension": (b"5;a=b\r\nhello\r\n", b"hello"),
}


def test_a_body_is_the_same_however_it_is_cut() -> None:
    def test() -> None:
        spelled, bodies = zip(*CHUNKS.values(), strict=True)
        wanted = b"".join(bodies)
        # As most routers write: a chunk, a read.
        told = read(HEAD, *spelled, LAST)
        assert (told.parts, told.end) == (list(bodies), True)
        whole = b"".join(spelled) + LAST
        for first in range(len(whole) + 1):
            for size in (1, 2, 3, 5, 8, 11, len(whole)):
                second = min(first + size, len(whole))
                told = read(HEAD, *(piece for piece in (whole[:first], whole[first:second], whole[second:]) if piece))
                assert (b"".join(told.parts), told.end) == (wanted, True), (first, second)
                # Behind a read that ended between two chunks.
                told = read(HEAD + b"1\r\n.\r\n", whole[:first], whole[first:second], whole[second:])
                assert (b"".join(told.parts), told.end) == (b"." + wanted, True), (first, second)

    in_a_loop(test)


@pytest.mark.parametrize(
    "bad",
    [
        *(b"-2\r\n", b"-1\r\n\n", b"+5\r\nhello\r\n", b"0x5\r\nhello\r\n", b"5_0\r\n" + b"x" * 50 + b"\r\n"),
        *(b" 5\r\nhello\r\n", b"\r\n5\r\nhello\r\n", b"g\r\nhello\r\n", b"5\r\nhello!\r\n", b"5\r\nhelloxx\r\n"),
    ],
)
@pytest.mark.parametrize("before", [b"", b"1\r\n.\r\n", b"5\r\nhello\r\n"])
def test_a_size_that_is_none_is_an_error(bad: bytes, before: bytes) -> None:
    def test() -> None:
        for told in (read(HEAD + before, bad), read(HEAD + before + bad)):
            assert told.end == "RemoteProtocolError"
            assert b"".join(told.parts) in (before[3:-2], before[3:-2] + b"hello")

    in_a_loop(test)


def test_trailers_end_a_body() -> None:
    def test() -> None:
        told = read(HEAD + b"5\r\nhello\r\n", b"0\r\nX-A: b\r\n\r\n")
        assert (told.parts, told.end) == ([b"hello"], True)

    in_a_loop(test)


def test_a_body_that_is_not_chunked_is_not_read_as_chunks() -> None:
    def test() -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 20\r\n\r\n"
        told = read(head, b"5\r\nhello\r\n", b"5\r\nhello\r\n")
        assert (b"".join(told.parts), told.end) == (b"5\r\nhello\r\n" * 2, True)

    in_a_loop(test)


class Unsent(Nowhere):
    """A transport whose peer takes nothing of the request until the test says so."""

    def __init__(self, exchange: Exchange, unsent: int) -> None:
        super().__init__()
        self.exchange = exchange
        self.unsent = unsent

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Part of it is not taken."""
        if self.unsent:
            self.exchange.pause_writing()

    def get_write_buffer_size(self) -> int:
        """As the test says."""
        return self.unsent


@pytest.mark.parametrize(
    ("unsent", "signals", "end"),
    [(0, (), None), (5, (), "WriteTimeout"), (5, ("taken",), None), (5, ("taken", "told"), None)],
)
def test_the_write_clock_runs_while_something_is_unsent(unsent: int, signals: tuple[str, ...], end: str | None) -> None:
    """It looks before it punishes: the signal that the request was taken may not have come yet."""

    async def after() -> Told:
        loop = asyncio.get_running_loop()
        exchange, told = Exchange(loop, 0.01), Told()
        transport = Unsent(exchange, unsent)
        exchange.connection_made(transport)
        exchange.start(b"", told)
        if "taken" in signals:
            transport.unsent = 0
        if "told" in signals:
            exchange.resume_writing()
        later = loop.create_future()
        loop.call_later(0.03, later.set_result, None)  # a timer of the same loop that is due after the other
        await later
        return told

    assert uvloop.run(after()).end == end


@pytest.mark.parametrize("begun", [b"0\r\nX-Trailer: ", b"0\r\nX", b"5;"], ids=["value", "name", "size line"])
def test_what_is_no_body_has_a_bound_behind_the_head_too(begun: bytes) -> None:
    """The parser joins a field anew at each read: an endless trailer would take the loop, and all memory."""

    def check() -> None:
        told = read(HEAD + b"5\r\nhello\r\n" + begun, *[b"a" * 32 * 1024] * 3)
        assert (told.parts, told.end) == ([b"hello"], "RemoteProtocolError")

    in_a_loop(check)


def test_the_sink_hears_of_the_end_whatever_fails() -> None:
    """What is told of an unanswered connection closes others; a fault in that must not leave the request waiting."""

    def fail() -> None:
        raise RuntimeError

    def ends() -> None:
        exchange, told = Exchange(asyncio.get_running_loop(), 1.0), Told()
        exchange.connection_made(Nowhere())
        exchange.on_unanswered = fail
        exchange.start(b"", told)
        with pytest.raises(RuntimeError):
            exchange.eof_received()
        assert told.end == "RemoteProtocolError"

    in_a_loop(ends)


def test_a_dial_that_is_refused_is_freed_where_it_ends() -> None:
    """Nothing of it is left for the garbage collector, and its socket is closed."""

    def check() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            upstream = Upstream("127.0.0.1", port, EgressPolicy())
            upstream.own_addresses = frozenset({("127.0.0.1", port)})
            gc.collect()
            gc.disable()
            try:
                with pytest.raises(EgressBlocked):
                    upstream.dial()
                assert not [each for each in gc.get_objects() if isinstance(each, Exchange)]
            finally:
                gc.enable()
            far, _ = listener.accept()
            with far:
                assert far.recv(1) == b""

    in_a_loop(check)
