"""connection: the table of its states, each cell of it, with a transport of values and a clock that stands."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

from eidproxy.errors import Refusal
from eidproxy.inbound.connection import Connection
from eidproxy.inbound.connections import MAX_LENT_BYTES, MAX_UNFINISHED_BYTES, Connections, State
from eidproxy.inbound.http1 import RequestHead

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"
MIB = 1 << 20


class Transport(asyncio.Transport):
    """The other end: what was written, how it was closed, and how much of it lies unsent."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.unsent = 0
        self.closed = ""
        self.high = 0

    def write(self, data: Any) -> None:
        """Keep it."""
        self.written += bytes(data)

    def write_eof(self) -> None:
        """The end of what we say."""
        self.written += b"EOF"

    def get_write_buffer_size(self) -> int:
        """As the test says."""
        return self.unsent

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Keep the high one."""
        self.high = high or 0

    def is_closing(self) -> bool:
        """See asyncio."""
        return bool(self.closed)

    def close(self) -> None:
        """See asyncio."""
        self.closed = self.closed or "close"

    def abort(self) -> None:
        """See asyncio."""
        self.closed = "abort"


class Service:
    """Keeps what it is asked and answers nothing."""

    buffer_bytes = MIB

    def __init__(self) -> None:
        self.asked: list[tuple[str, bytes]] = []
        self.refusals: list[str] = []
        self.max_body_bytes = MIB

    def admit(self, head: RequestHead) -> int:
        """Everybody."""
        return self.max_body_bytes

    def handle(self, connection: Connection, head: RequestHead, body: bytes) -> None:
        """Later."""
        self.asked.append((head.path, body))

    def record_refusal(self, connection: Connection, head: RequestHead | None, refusal: Refusal) -> None:
        """Keep the reason."""
        self.refusals.append(refusal.reason)

    def record_fault(self, where: str, error: BaseException) -> None:
        """There is none."""
        raise error


class Answering:
    """The handler of a request: counts departures, and notes its number in a list while it is paused."""

    def __init__(self, paused: list[int], number: int = 0) -> None:
        self.paused, self.number = paused, number
        self.departed = 0

    def on_disconnect(self) -> None:
        self.departed += 1

    def pause(self) -> None:
        self.paused.append(self.number)

    def resume(self) -> None:
        self.paused.remove(self.number)


class Stage:
    """One connection."""

    def __init__(self, connections: Connections | None = None, service: Service | None = None) -> None:
        self.service = service or Service()
        self.connections = connections or Connections(100)
        self.transport = Transport()
        self.connection = Connection(self.service, self.connections, asyncio.get_running_loop())
        self.connection.connection_made(self.transport)
        self.handler = Answering([])

    @property
    def departed(self) -> int:
        """How often the handler was told that the caller left."""
        return self.handler.departed

    @property
    def state(self) -> State:
        """Its state."""
        return self.connection.state

    def statuses(self) -> list[int]:
        """The status of each answer."""
        return [int(found) for found in re.findall(rb"HTTP/1.1 (\d+) ", self.transport.written)]

    def answer(self, size: int = 2) -> None:
        """Answer what was asked."""
        self.connection.respond(200, [], b"x" * size)

    def bring(self, state: State) -> None:
        """Into a state, from the outside."""
        if state is State.IDLE:
            return
        if state is State.HEAD:
            self.connection.data_received(GET[:5])
        elif state is State.BODY:
            self.connection.data_received(POST + b"12345")
        elif state is State.LINGERING:
            self.connection.data_received(b"nonsense\r\n\r\n")
            self.service.refusals.clear()
        elif state is State.CLOSING:
            self.connection.data_received(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            self.transport.unsent = 100
            self.answer()
        else:
            self.connection.data_received(GET)
            self.connection.handler = self.handler
            if state is State.FLUSHING:
                self.transport.unsent = 100_000
                self.answer()
        assert self.state is state
        self.transport.written = b""


def played(test: Callable[[], None]) -> Callable[[], None]:
    """In a loop, which nothing here waits for."""

    def run() -> None:
        async def inside() -> None:
            test()

        uvloop.run(inside())

    return run


S = State


def in_loop(test: Callable[[], None]) -> None:
    """Run a parametrized test in a loop."""
    played(test)()


@pytest.mark.parametrize(
    ("state", "then", "statuses"),
    [
        (S.IDLE, S.BUSY, []),
        (S.HEAD, S.LINGERING, [400]),  # two requests in one head are none
        (S.BODY, S.CLOSED, []),
        (S.BUSY, S.CLOSED, []),
        (S.FLUSHING, S.CLOSED, []),
        (S.CLOSING, S.CLOSING, []),
        (S.LINGERING, S.LINGERING, []),
    ],
)
def test_bytes(state: State, then: State, statuses: list[int]) -> None:
    def test() -> None:
        stage = Stage()
        stage.bring(state)
        stage.connection.data_received(GET)
        assert (stage.state, stage.statuses()) == (then, statuses)
        assert stage.departed == (state is S.BUSY)

    in_loop(test)


@pytest.mark.parametrize("state", [state for state in State if state is not S.CLOSED])
def test_fin(state: State) -> None:
    def test() -> None:
        stage = Stage()
        stage.bring(state)
        stage.connection.eof_received()
        assert stage.state is (S.CLOSED if state is S.BUSY else S.CLOSING)
        assert stage.transport.closed == ("abort" if state is S.BUSY else "close")
        assert stage.departed == (state is S.BUSY)

    in_loop(test)


@pytest.mark.parametrize(
    ("state", "then", "statuses"),
    [
        (S.IDLE, S.CLOSING, []),
        (S.HEAD, S.LINGERING, [408]),
        (S.BODY, S.LINGERING, [408]),
        (S.LINGERING, S.CLOSED, []),
        # It has no clock of its own.
        (S.BUSY, S.BUSY, []),
        (S.FLUSHING, S.FLUSHING, []),
        (S.CLOSING, S.CLOSING, []),
    ],
)
def test_time(state: State, then: State, statuses: list[int]) -> None:
    def test() -> None:
        stage = Stage()
        stage.bring(state)
        stage.connection.expire()
        assert (stage.state, stage.statuses()) == (then, statuses)

    in_loop(test)


@pytest.mark.parametrize(
    ("state", "then", "statuses"),
    [
        (S.IDLE, S.IDLE, []),
        (S.HEAD, S.LINGERING, [503]),
        (S.BODY, S.LINGERING, [503]),
        (S.BUSY, S.BUSY, []),
        (S.FLUSHING, S.FLUSHING, []),
        (S.CLOSING, S.CLOSING, []),
        (S.LINGERING, S.LINGERING, []),
    ],
)
def test_drain(state: State, then: State, statuses: list[int]) -> None:
    def test() -> None:
        stage = Stage()
        stage.bring(state)
        stage.connections.drain()
        assert (stage.state, stage.statuses()) == (then, statuses)
        if state is S.IDLE:
            stage.connection.data_received(GET)
        if state in (S.IDLE, S.BUSY):
            stage.answer()
            assert b"\r\nConnection: close\r\n" in stage.transport.written
        if state is S.FLUSHING:
            stage.transport.unsent = 0
            stage.connection.resume_writing()
        if state in (S.IDLE, S.BUSY, S.FLUSHING):
            assert stage.state is S.CLOSING

    in_loop(test)


@played
def test_a_request_behind_an_answer_that_was_taken() -> None:
    stage = Stage()
    stage.bring(S.FLUSHING)
    stage.transport.unsent = 0
    stage.connection.data_received(GET)
    assert stage.state is S.BUSY
    assert len(stage.service.asked) == 2


@played
def test_bytes_on_a_closing_transport_go_nowhere() -> None:
    """In FLUSHING with nothing unsent the old state was left and entered without end."""
    stage = Stage()
    stage.bring(S.FLUSHING)
    stage.transport.unsent = 0
    stage.transport.close()
    stage.connection.data_received(GET)
    assert stage.state is S.CLOSING
    assert len(stage.service.asked) == 1


@played
def test_a_lost_connection_leaves_nothing() -> None:
    for state in State:
        if state is S.CLOSED:
            continue
        stage = Stage()
        stage.bring(state)
        stage.connection.connection_lost(None)
        assert stage.state is S.CLOSED
        assert not stage.connections.open
        assert (stage.connections.unfinished_bytes, stage.connections.lent_bytes) == (0, 0)
        assert stage.departed == (state is S.BUSY)
        stage.answer()
        assert stage.state is S.CLOSED


@played
def test_every_answer_has_a_date_of_its_second() -> None:
    stage = Stage()
    stage.bring(S.BUSY)
    stage.answer()
    stage.connection.data_received(GET)
    stage.connection.begin_stream(b"", b"x")
    stage.connection.abort()
    dates = re.findall(rb"\r\nDate: (.*?)\r\n", stage.transport.written)
    form = rb"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d [A-Z][a-z][a-z] \d{4} \d\d:\d\d:\d\d GMT"
    assert [bool(re.fullmatch(form, date)) for date in dates] == [True, True]


# --- Memory ------------------------------------------------------------------------------------------------------


def body_of(size: int) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size


@played
def test_the_body_that_has_been_arriving_longest_makes_room() -> None:
    connections, service = Connections(100_000), Service()
    stages = []
    for number in range(200):
        stage = Stage(connections, service)
        stages.append(stage)
        stage.connection.data_received(body_of(MIB))
        for _ in range(15):
            stage.connection.data_received(b"x" * 65_536)
        assert connections.unfinished_bytes <= MAX_UNFINISHED_BYTES
        assert connections.unfinished_bytes >= min((number + 1) * 15 * 65_536, MAX_UNFINISHED_BYTES - 2 * MIB)
    refused = [stage for stage in stages if stage.state is S.LINGERING]
    assert refused == stages[: len(refused)]  # in the order in which they began
    assert [stage.statuses() for stage in refused] == [[503]] * len(refused)
    assert set(service.refusals) == {"overloaded"}
    assert b"\r\nRetry-After: " in refused[0].transport.written
    # One that goes on arriving is whole in the end, and holds nothing any more.
    stages[-1].connection.data_received(b"x" * 65_536)
    assert stages[-1].state is S.BUSY
    for stage in stages:
        stage.connection.connection_lost(None)
    assert connections.unfinished_bytes == 0


@played
def test_what_is_counted_is_what_is_allocated() -> None:
    """Chunks of one byte: the framing is not the body, and a bytearray that grows has room to spare."""
    stage = Stage()
    stage.connection.data_received(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(1000):
        stage.connection.data_received(b"1\r\nx\r\n")
    assert 1000 <= stage.connections.unfinished_bytes < 1400
    stage.connection.data_received(b"0\r\n\r\n")
    assert stage.service.asked == [("/", b"x" * 1000)]
    assert stage.connections.unfinished_bytes == 0


@played
def test_slow_readers_share_what_is_lent() -> None:
    connections, service = Connections(1000), Service()
    stages: list[Stage] = []
    paused: list[int] = []
    for number in range(200):
        stage = Stage(connections, service)
        stages.append(stage)
        stage.bring(S.BUSY)
        stage.connection.handler = Answering(paused, number)
        assert stage.transport.high == 65_536
        stage.transport.unsent = 70_000
        stage.connection.pause_writing()
    assert connections.lent_bytes <= MAX_LENT_BYTES
    lenders = len(stages) - len(paused)
    assert lenders == MAX_LENT_BYTES // (MIB - 65_536)
    assert paused == list(range(lenders, 200))
    # Who has a loan is paused when its whole buffer is full: the transport does not say so, so each write looks.
    first = stages[0]
    first.connection.write_chunk(b"x")
    assert 0 not in paused
    first.transport.unsent = MIB + 1
    first.connection.write_chunk(b"x")
    first.connection.write_chunk(b"x")
    assert paused.count(0) == 1
    # Caught up, the loan goes back, and the next that asks has it.
    first.connection.resume_writing()
    assert 0 not in paused
    last = stages[-1]
    last.connection.resume_writing()
    assert 199 not in paused
    last.connection.pause_writing()
    assert 199 not in paused
    for stage in stages:
        stage.connection.connection_lost(None)
    assert connections.lent_bytes == 0


@played
def test_a_buffer_smaller_than_the_share_is_kept_to() -> None:
    service = Service()
    service.buffer_bytes = 1000
    stage = Stage(service=service)
    stage.bring(S.BUSY)
    paused: list[int] = []
    stage.connection.handler = Answering(paused)
    assert stage.transport.high == 1000
    stage.connection.pause_writing()
    assert (paused, stage.connections.lent_bytes) == ([0], 0)
