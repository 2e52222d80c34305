"""The caller's edge: connections, their deadlines, their number, and the process that serves them.

`Connection` is the protocol that uvicorn runs for each connection. It reads one request at a time, strictly (`http1`),
hands it on once it is whole, and gives whoever answers a transport to write to and a call when the caller leaves, at
whatever moment and in whatever way. uvicorn opens the sockets and runs the loop; its own protocol classes are not
used, since they miss departures behind a pipelined request, have no deadline for a head or a body, and accept more
than one reading of a request (see DESIGN.md).
"""

import asyncio
import http
import os
import resource
import signal
import socket
from collections.abc import Callable, Iterable
from enum import IntEnum, auto
from types import FrameType
from typing import Any, Protocol, cast

import uvicorn

from eidproxy.countdown import Countdown
from eidproxy.errors import Refusal
from eidproxy.http1 import MAX_HEAD_BYTES, ChunkedBody, RequestHead, check_partial_head, parse_head

_FLUSH_SECONDS = 30.0
_SMALL_ANSWER_BYTES = 64 * 1024
"""An answer of which no more than this is unsent needs no guard of its own: idle connections have one."""

_RESERVED_DESCRIPTORS = 48
"""For the listener, the logs, the loop, files that are read for a request, and look-ups."""

_PROBES = (
    (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
    (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 10),
    (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 5),
    (socket.IPPROTO_TCP, "TCP_KEEPCNT", 3),
)
"""A caller whose machine is gone without a word is found out in 10 + 3 x 5 s, while it waits in the queue too."""

_STATUS_LINES = {int(s): f"HTTP/1.1 {int(s)} {s.phrase}\r\n".encode() for s in http.HTTPStatus}
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_LAST_CHUNK = b"0\r\n\r\n"
_REQUEST_ID = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")

Headers = Iterable[tuple[bytes, bytes]]


class State(IntEnum):
    """What a connection waits for. Integers, since the hash of a plain Enum is a function in Python."""

    IDLE = auto()
    """The first byte of a request."""
    HEAD = auto()
    BODY = auto()
    BUSY = auto()
    """Its answer."""
    FLUSHING = auto()
    """The caller, to take the end of an answer."""
    LINGERING = auto()
    """The caller, to close: an answer that was sent while a request still arrives would be lost by closing first."""
    CLOSED = auto()


class Service(Protocol):
    """Who answers requests."""

    max_body_bytes: int
    buffer_bytes: int

    def admit(self, head: RequestHead) -> None:
        """Judge a request by its head, before its body is read. Raises Refusal."""

    def handle(self, connection: "Connection", head: RequestHead, body: bytes) -> None:
        """Answer a whole request: now, or later through the connection."""

    def refused(self, connection: "Connection", refusal: Refusal) -> None:
        """A request was refused at the edge; its answer is on its way."""

    def fault(self, where: str, error: BaseException) -> None:
        """A handler failed; the caller gets an answer."""


_PATIENCE = {State.IDLE: 15.0, State.HEAD: 5.0, State.BODY: 10.0, State.LINGERING: 2.0}
"""How long a connection waits for its caller in each state, in seconds."""


class Roster:
    """Every connection, and for how long those wait that nothing is owed to: idle, or in the middle of a request.

    These may be closed: when their time is up, or when the place is needed, the one first that has waited longest.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.connections: set[Connection] = set()
        self._waiting = {state: Countdown(seconds, Connection.expire) for state, seconds in _PATIENCE.items()}

    def arrive(self, connection: "Connection") -> None:
        """Take a new connection in, at the cost of the one that has waited longest when there are too many."""
        self.connections.add(connection)
        if len(self.connections) > self.limit:
            firsts = [first for line in self._waiting.values() if (first := line.first()) is not None]
            min(firsts, key=lambda first: first.since, default=connection).abort()

    def depart(self, connection: "Connection") -> None:
        """A connection is gone."""
        self.connections.discard(connection)

    def enter(self, connection: "Connection", state: State) -> None:
        """A connection waits for its caller."""
        self._waiting[state].start(connection)

    def leave(self, connection: "Connection", state: State) -> None:
        """A connection waits no longer."""
        self._waiting[state].stop(connection)


class Connection(asyncio.Protocol):
    """One caller's connection. `departed` and the two writing calls belong to whoever answers the request at hand."""

    __slots__ = (
        "_buffer",
        "_chunked",
        "_flush_timer",
        "_head",
        "_is_head_request",
        "_keep_alive",
        "_roster",
        "_service",
        "_state",
        "_transport",
        "began_at",
        "departed",
        "loop",
        "request_id",
        "since",
        "writing_paused",
        "writing_resumed",
    )

    def __init__(self, service: Service, roster: Roster, loop: asyncio.AbstractEventLoop) -> None:
        self._service = service
        self._roster = roster
        self.loop = loop
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._state = State.CLOSED
        self._buffer: bytearray | None = None
        self._chunked: ChunkedBody | None = None
        self._head: RequestHead | None = None
        self._keep_alive = True
        self._is_head_request = False
        self._flush_timer: asyncio.TimerHandle | None = None
        self.since = 0.0
        self.began_at = 0.0
        """When the first byte of the request at hand arrived, on the loop's clock."""
        self.request_id = ""
        self.departed: Callable[[], object] | None = None
        self.writing_paused: Callable[[], None] | None = None
        self.writing_resumed: Callable[[], None] | None = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A caller connected."""
        self._transport = cast(asyncio.Transport, transport)
        try:
            self._transport.set_write_buffer_limits(high=self._service.buffer_bytes)
            self._wait(State.IDLE)
            self._roster.arrive(self)
        except BaseException:
            self._transport.abort()  # uvloop would keep it, unread
            raise

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """The connection is gone, whoever ended it."""
        try:
            self._unwait()
            self._state = State.CLOSED
            self.writing_paused = self.writing_resumed = None
            self._buffer = self._chunked = None
            if self._flush_timer is not None:
                self._flush_timer.cancel()
            self._leave()
        finally:
            self._roster.depart(self)

    def eof_received(self) -> None:
        """The caller closed its side. A half-closed connection is a caller that has left (contract, 2)."""
        if self._state is State.BUSY:
            self.abort()
        elif self._state is not State.CLOSED:
            self._unwait()
            self._close(None)

    def data_received(self, data: bytes) -> None:
        """Bytes of a request."""
        state = self._state
        if state is State.IDLE:
            self.began_at = self.loop.time()
            self.request_id = ""
            self._is_head_request = False
            end = data.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES) + 4
            if end >= 4:  # the usual request comes in one piece
                self._take_head(data[:end], data[end:])
                return
            self._buffer = bytearray()
            self._take(data, 0)
        elif state is State.HEAD:
            assert self._buffer is not None  # noqa: S101  # the state says so
            self._take(data, len(self._buffer))
        elif state is State.BODY:
            self._take_body(data)
        elif state is State.FLUSHING and not self._transport.get_write_buffer_size():
            self._flushed()  # the caller has the whole answer: it can only be its next request
            self.data_received(data)
        elif state is not State.LINGERING:
            # A second request behind a running one hides the caller's departure: the socket would have to stay unread.
            self.abort()

    def pause_writing(self) -> None:
        """More than the buffer's bound is waiting for the caller."""
        if self.writing_paused is not None:
            self.writing_paused()

    def resume_writing(self) -> None:
        """The caller has caught up."""
        if self._state is State.FLUSHING:
            self._flushed()
        elif self.writing_resumed is not None:
            self.writing_resumed()

    # Reading a request

    def _take(self, data: bytes, seen: int) -> None:
        buffer = self._buffer
        assert buffer is not None  # noqa: S101  # set by the caller
        buffer += data
        end = buffer.find(b"\r\n\r\n", max(seen - 3, 0), MAX_HEAD_BYTES)
        if end < 0:
            try:
                check_partial_head(buffer, seen)
            except Refusal as refusal:
                self._refuse_at_edge(refusal)
                return
            if self._state is not State.HEAD:
                self._wait(State.HEAD)
            return
        head, rest = bytes(buffer[: end + 4]), bytes(buffer[end + 4 :])
        self._buffer = None
        self._take_head(head, rest)

    def _take_head(self, data: bytes, rest: bytes = b"") -> None:
        try:
            head = parse_head(data)
            self.request_id = _request_id(head)
            self._keep_alive = head.keep_alive
            self._is_head_request = head.method == "HEAD"
            self._service.admit(head)
            if head.content_length > self._service.max_body_bytes:
                raise Refusal("body_too_large")
        except Refusal as refusal:
            self._refuse_at_edge(refusal)
            return
        self._head = head
        if head.chunked:
            self._chunked = ChunkedBody(self._service.max_body_bytes)
        elif len(rest) == head.content_length:
            self._dispatch(rest)
            return
        else:
            self._buffer = bytearray()
        if head.expects_continue and not rest:
            self._transport.write(_CONTINUE)
        self._wait(State.BODY)
        if rest:
            self._take_body(rest)

    def _take_body(self, data: bytes) -> None:
        if self._chunked is not None:
            try:
                self._chunked.feed(data)
            except Refusal as refusal:
                self._refuse_at_edge(refusal)
                return
            if not self._chunked.complete:
                return
            surplus, body = self._chunked.surplus, bytes(self._chunked.body)
        else:
            buffer, head = self._buffer, self._head
            assert buffer is not None and head is not None  # noqa: S101, PT018  # the state says so
            buffer += data
            if len(buffer) < head.content_length:
                return
            surplus, body = len(buffer) > head.content_length, bytes(buffer)
        if surplus:
            self.abort()
            return
        self._dispatch(body)

    def _dispatch(self, body: bytes) -> None:
        head, self._head = self._head, None
        self._buffer = self._chunked = None
        assert head is not None  # noqa: S101  # a body follows a head
        self._unwait()
        self._state = State.BUSY
        try:
            self._service.handle(self, head, body)
        except Refusal as refusal:
            self._refuse_whole(refusal)
        except Exception as error:  # noqa: BLE001  # a handler's fault is no reason to leave a caller without an answer
            self._service.fault("handler", error)
            self._refuse_whole(Refusal("internal_error"))

    def _refuse_whole(self, refusal: Refusal) -> None:
        self.refuse(refusal)
        self._service.refused(self, refusal)

    def _refuse_at_edge(self, refusal: Refusal) -> None:
        """Answer a request that is not whole, then wait for the caller to close."""
        self.request_id = self.request_id or new_request_id()
        self._buffer = self._chunked = self._head = None
        self._keep_alive = False
        self._unwait()
        self._write_refusal(refusal)
        self._service.refused(self, refusal)
        self._linger()

    # Answering

    def respond(self, status: int, headers: Headers, body: bytes, flush_seconds: float | None = None) -> None:
        """Send a whole answer. The caller has `flush_seconds` to take it (30 when it is not said)."""
        self._transport.write(self._answer(status, headers, body))
        self._finish(flush_seconds)

    def refuse(self, refusal: Refusal, flush_seconds: float | None = None) -> None:
        """Send an error; the connection ends after one that is the caller's fault."""
        self._write_refusal(refusal)
        self._finish(flush_seconds)

    def begin_stream(self, server_timing: bytes, first: bytes) -> None:
        """Send the head of an event stream and, in the same write, its first bytes."""
        chunk = b"%x\r\n%b\r\n" % (len(first), first) if first else b""
        self._transport.write(self._stream_head(server_timing) + chunk)

    def send_stream(self, server_timing: bytes, whole: bytes, flush_seconds: float | None = None) -> None:
        """Send a whole event stream in one write."""
        head = self._stream_head(server_timing)
        self._transport.write(b"%b%x\r\n%b\r\n%b" % (head, len(whole), whole, _LAST_CHUNK))
        self._finish(flush_seconds)

    def _stream_head(self, server_timing: bytes) -> bytes:
        timing = b"Server-Timing: %b\r\n" % server_timing if server_timing else b""
        return (
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
            b"Cache-Control: no-cache, no-transform\r\nX-Accel-Buffering: no\r\nX-Request-Id: %b\r\n%b"
            b"Transfer-Encoding: chunked\r\n\r\n" % (self.request_id.encode(), timing)
        )

    def write_chunk(self, data: bytes) -> None:
        """Send the next bytes of a stream."""
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    def end_stream(self, last: bytes, flush_seconds: float | None = None) -> None:
        """Send the last bytes of a stream and end it."""
        self._transport.write(b"%x\r\n%b\r\n%b" % (len(last), last, _LAST_CHUNK))
        self._finish(flush_seconds)

    def abort(self) -> None:
        """Close now, whatever is still to be sent."""
        if self._state is not State.CLOSED:
            self._unwait()
            self._transport.abort()
            self._leave()

    def expire(self) -> None:
        """The caller took too long."""
        if self._state is State.IDLE:
            self._close(None)
        elif self._state is State.LINGERING:
            self.abort()
        else:
            self._refuse_at_edge(Refusal("request_timeout"))

    def drain(self) -> None:
        """The server stops: a request that is not whole is turned away, and no other is taken after the one at hand."""
        self._keep_alive = False
        if self._state in (State.HEAD, State.BODY):
            self._refuse_at_edge(Refusal("draining"))

    def close(self) -> None:
        """The server is gone: send what is written, then close."""
        if self._state is not State.CLOSED:
            self._unwait()
            self._state = State.FLUSHING
            self._transport.close()

    @property
    def owes_answer(self) -> bool:
        """Whether an answer is still to be given or taken."""
        return self._state in (State.BUSY, State.FLUSHING)

    def _answer(self, status: int, headers: Headers, body: bytes) -> bytes:
        lines, caching = [_STATUS_LINES[status]], b"no-store"
        for name, value in headers:
            if name == b"Cache-Control":
                caching = value
            else:
                lines.append(b"%b: %b\r\n" % (name, value))
        if not self._keep_alive:
            lines.append(b"Connection: close\r\n")
        if status != http.HTTPStatus.NOT_MODIFIED:  # its length would have to be that of the whole (RFC 9110, 8.6)
            lines.append(b"Content-Length: %d\r\n" % len(body))
        lines.append(b"X-Request-Id: %b\r\nCache-Control: %b\r\n\r\n" % (self.request_id.encode(), caching))
        if not self._is_head_request:
            lines.append(body)
        return b"".join(lines)

    def _write_refusal(self, refusal: Refusal) -> None:
        if refusal.status < 500:
            self._keep_alive = False
        headers = [(b"Content-Type", refusal.content_type), *refusal.headers()]
        self._transport.write(self._answer(refusal.status, headers, refusal.body(self.request_id)))

    def _finish(self, flush_seconds: float | None) -> None:
        """The answer is written: wait for it to be taken, then for the next request."""
        self.departed = self.writing_paused = self.writing_resumed = None
        if self._state is not State.BUSY:
            return
        if not self._keep_alive:
            self._close(flush_seconds)
        elif self._transport.get_write_buffer_size() > _SMALL_ANSWER_BYTES:
            self._state = State.FLUSHING
            self._guard_flush(flush_seconds)
            self._transport.set_write_buffer_limits(high=0)  # resume_writing tells when it is empty
        else:
            self._wait(State.IDLE)

    def _close(self, flush_seconds: float | None) -> None:
        """Close once everything is sent, or when the caller does not take it in time."""
        self._state = State.FLUSHING
        if self._transport.get_write_buffer_size():
            self._guard_flush(flush_seconds)
        self._transport.close()

    def _guard_flush(self, seconds: float | None) -> None:
        if self._flush_timer is not None:
            self._flush_timer.cancel()
        self._flush_timer = self.loop.call_later(_FLUSH_SECONDS if seconds is None else seconds, self.abort)

    def _flushed(self) -> None:
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        if not self._transport.is_closing():
            self._transport.set_write_buffer_limits(high=self._service.buffer_bytes)
            self._wait(State.IDLE)

    def _linger(self) -> None:
        """Half-close and read on for a moment: closing with bytes unread resets the connection under the answer."""
        if self._transport.is_closing():
            return
        self._transport.write_eof()
        self._wait(State.LINGERING)

    def _leave(self) -> None:
        """Tell whoever answers at once, not when the transport gets round to it."""
        departed, self.departed = self.departed, None
        if departed is not None:
            departed()

    def _wait(self, state: State) -> None:
        self._unwait()
        self._state = state
        self.since = self.loop.time()
        self._roster.enter(self, state)

    def _unwait(self) -> None:
        if self._state in _PATIENCE:
            self._roster.leave(self, self._state)


def new_request_id() -> str:
    """An id of our own."""
    return os.urandom(12).hex()


def _request_id(head: RequestHead) -> str:
    """The caller's id when it is harmless, else one of ours."""
    given = head.headers.get(b"x-request-id", b"")
    if 1 <= len(given) <= 128 and _REQUEST_ID.issuperset(given) and b"x-request-id" not in head.repeated:
        return given.decode("ascii")
    return new_request_id()


class Process(Protocol):
    """What the server asks of the application around it."""

    async def started(self) -> None:
        """The listeners are open."""

    async def drain(self) -> None:
        """Let what runs finish, turn the rest away. Cancelled when there is no more time for it."""

    async def stopped(self) -> None:
        """Nothing is served any more."""


class Server(uvicorn.Server):
    """uvicorn's server with its stop replaced: uvicorn closes the listener first, which refuses instead of explaining.

    The first SIGTERM or SIGINT drains while the listener stays open, the second stops at once. Both exit with 0.
    """

    def __init__(self, service: Service, process: Process, roster: Roster) -> None:
        def connect(_loop: asyncio.AbstractEventLoop, **_: Any) -> Connection:
            return Connection(service, roster, asyncio.get_running_loop())

        super().__init__(
            uvicorn.Config(
                _no_application,
                http=cast(Any, connect),
                ws="none",
                loop="uvloop",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                proxy_headers=False,
                backlog=2048,
                workers=1,
            )
        )
        self._process = process
        self._roster = roster
        self._stopping = asyncio.Event()
        self._draining: asyncio.Task[None] | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve on these. Connections inherit from them that the kernel asks a caller that is silent for 25 s."""
        for sock in sockets or []:
            if sock.family != socket.AF_UNIX:
                for level, name, value in _PROBES:
                    if hasattr(socket, name):
                        sock.setsockopt(level, getattr(socket, name), value)
        await super().serve(sockets)

    async def main_loop(self) -> None:
        """Serve until the drain is over. uvicorn's own loop wakes ten times a second for headers that are not sent."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        await self._process.started()
        await self._stopping.wait()

    @property
    def port(self) -> int:
        """Where it listens; 0 for a Unix socket."""
        names = [sock.getsockname() for server in self.servers for sock in server.sockets]
        return next((int(name[1]) for name in names if isinstance(name, tuple)), 0)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """A signal to stop."""
        self.stop()

    def stop(self) -> None:
        """Begin to drain; asked again, stop at once."""
        if self._draining is None:
            self._draining = asyncio.get_running_loop().create_task(self._drain())
        else:
            self._draining.cancel()

    async def _drain(self) -> None:
        try:
            for connection in list(self._roster.connections):
                connection.drain()
            await self._process.drain()
        finally:
            self._stopping.set()

    async def shutdown(self, sockets: Any = None) -> None:
        """Close what is open. Nothing here waits for a caller."""
        for server in self.servers:
            server.close()
        await self._process.stopped()
        for connection in list(self._roster.connections):
            connection.close()
        for sock in sockets or []:
            sock.close()


async def _no_application(scope: Any, receive: Any, send: Any) -> None:
    """uvicorn wants one; connections go to the service instead."""


def connection_limit() -> int:
    """How many connections may be open: half of the descriptors, since a running request needs a second one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else max(soft, 65536)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    except (OSError, ValueError):
        pass  # the limit stays what it is
    return max((soft - _RESERVED_DESCRIPTORS) // 2, 16)
