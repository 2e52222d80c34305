"""A caller's connection: parses one request at a time, strictly, and writes its answer.

`Connection` is the asyncio protocol of one accepted connection. It passes a complete request to the `Service` and calls
`on_disconnect` as soon as the caller leaves, in whatever way. Its states, and what each event does in them:

    event   IDLE          HEAD      BODY      BUSY          FLUSHING           CLOSING   LINGERING
    bytes   HEAD BODY BUSY …        … BUSY    abort         empty: as IDLE,    -         -
                                                            else abort
    FIN     CLOSING       CLOSING   CLOSING   abort         CLOSING            -         CLOSING
    time    CLOSING 15 s  408 5 s   408 10 s  -             abort 30 s         abort 30 s abort 2 s
    drain   next answer   503       503       this answer   this answer        -         -
            is the last                       is the last   was the last

408 and 503 are answered and lead to LINGERING; abort leads to CLOSED. After any other answer the connection is IDLE, or
FLUSHING while more than 64 KiB of the answer is unsent, or CLOSING when the answer was the last.
Bytes in BUSY are a pipelined request. Keeping it would hide the caller's departure, since the socket would have to stay
unread.
"""

import asyncio
import http
import os
from collections.abc import Iterable, Iterator
from typing import Protocol, cast

from eidproxy.errors import Refusal
from eidproxy.inbound.connections import WAIT_SECONDS, Connections, State
from eidproxy.inbound.http1 import MAX_HEAD_BYTES, ChunkedBody, RequestHead, check_partial_head, parse_head
from eidproxy.timeouts import PatientTimer

_FLUSH_SECONDS = 30.0
"""How long a caller may take to read an answer that has no wall clock of its own (no `flush_seconds`)."""
_SMALL_ANSWER_BYTES = 64 * 1024
"""With at most this much unsent no flush timer is set: the idle timeout covers it."""

_OWN_BUFFER_BYTES = 64 * 1024
"""Bytes that each connection may have unsent. More, up to `buffer_bytes`, is a loan from `MAX_LENT_BYTES`."""

_STATUS_LINES = {int(s): f"HTTP/1.1 {int(s)} {s.phrase}\r\n".encode() for s in http.HTTPStatus}
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_LAST_CHUNK = b"0\r\n\r\n"
_REQUEST_ID_BYTES = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")

Headers = Iterable[tuple[bytes, bytes]]


class Service(Protocol):
    """The handler of requests; `Endpoints` implements it."""

    buffer_bytes: int

    def admit(self, head: RequestHead) -> int:
        """Judge a request by its head, before its body is read; return the maximum body bytes. Raises Refusal."""

    def handle(self, connection: "Connection", head: RequestHead, body: bytes) -> None:
        """Answer a complete request, now or later through the connection. Raises Refusal."""

    def record_refusal(self, connection: "Connection", head: RequestHead | None, refusal: Refusal) -> None:
        """Record a refusal whose answer is already written. `head` is None unless a complete, valid head came."""

    def record_fault(self, where: str, error: BaseException) -> None:
        """Record an exception of the handler named by `where`; the connection answers the caller."""


class Handler(Protocol):
    """The handler of one request, as the connection calls it while the answer is in progress."""

    def on_disconnect(self) -> None:
        """Stop: the caller left. Called once, and nothing after it."""

    def pause(self) -> None:
        """Bring no more of the answer: the caller reads too slowly."""

    def resume(self) -> None:
        """Go on: the caller has caught up."""


class Connection(asyncio.Protocol):
    """One caller's connection.

    The handler of the current request sets `handler`, to hear what the caller does meanwhile.
    """

    __slots__ = (
        "_buffer",
        "_chunked_body",
        "_connections",
        "_flush_timer",
        "_head",
        "_held_bytes",
        "_is_head_request",
        "_is_paused",
        "_keep_alive",
        "_loan_bytes",
        "_service",
        "_state",
        "_transport",
        "began_at",
        "handler",
        "loop",
        "request_id",
        "waiting_since",
    )

    def __init__(self, service: Service, connections: Connections, loop: asyncio.AbstractEventLoop) -> None:
        self._service = service
        self._connections = connections
        self.loop = loop
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._state = State.CLOSED
        self._buffer: bytearray | None = None
        """What has arrived of an incomplete head or body."""
        self._chunked_body: ChunkedBody | None = None
        self._head: RequestHead | None = None
        self._held_bytes = 0
        """Bytes that the incomplete body has allocated, as counted in `Connections.unfinished_bytes`."""
        self._keep_alive = True
        self._is_head_request = False
        self._is_paused = False
        """Whether `handler` was paused."""
        self._loan_bytes = 0
        self._flush_timer: PatientTimer | None = None
        self.waiting_since = 0.0
        self.began_at = 0.0
        """When the first byte of the current request arrived, on the loop's clock."""
        self.request_id = ""
        self.handler: Handler | None = None

    @property
    def state(self) -> State:
        """What the connection waits for."""
        return self._state

    @property
    def owes_answer(self) -> bool:
        """Whether an answer is still to be written, or to be read by the caller."""
        return self._state in (State.BUSY, State.FLUSHING, State.CLOSING)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Register the new connection and wait for its first request."""
        self._transport = cast(asyncio.Transport, transport)
        try:
            self._transport.set_write_buffer_limits(high=min(self._service.buffer_bytes, _OWN_BUFFER_BYTES))
            self._wait_in(State.IDLE)
            self._connections.add(self)
        except BaseException:
            self._transport.abort()  # uvloop would keep the connection, unread
            raise

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Release what the connection holds and tell the handler, whichever side closed it."""
        try:
            self._stop_waiting()
            self._state = State.CLOSED
            if self._flush_timer is not None:
                self._flush_timer.cancel()
            self._forget_request()
            self._return_loan()
        finally:
            self._connections.remove(self)
            self._notify_disconnect()

    def eof_received(self) -> None:
        """Treat a half-closed connection as a caller that has left (contract, 2)."""
        if self._state is State.BUSY:
            self.abort()
        elif self._state not in (State.CLOSING, State.CLOSED):
            self._close_after_flush(None)

    def data_received(self, data: bytes) -> None:
        """Process received bytes by the state, as the table of this module says."""
        if self._state is State.FLUSHING and not self._transport.get_write_buffer_size():
            self._on_flushed()  # the whole answer is sent, so these bytes begin the next request
        state = self._state
        if state is State.IDLE:
            self.began_at = self.loop.time()
            self.request_id = ""
            self._is_head_request = False
            end = data.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES) + 4
            if end >= 4:  # the usual request comes in one piece
                self._begin_request(data[:end], data[end:])
                return
            self._collect_head(data)
        elif state is State.HEAD:
            self._collect_head(data)
        elif state is State.BODY:
            self._collect_body(data)
        elif state in (State.BUSY, State.FLUSHING):
            self.abort()

    def pause_writing(self) -> None:
        """Take a loan, since more is unsent than the connection's own share; without a loan, pause the handler."""
        if self._state is not State.BUSY:
            return
        size = self._service.buffer_bytes - _OWN_BUFFER_BYTES
        if size > 0 and not self._loan_bytes and self._connections.lend(size):
            self._loan_bytes = size  # no second call comes until the buffer drains: `write_chunk` checks it
            self._check_buffer()
        else:
            self._pause_handler()

    def resume_writing(self) -> None:
        """Return the loan and resume the handler, since the buffer has drained; in FLUSHING, end the answer."""
        if self._state is State.FLUSHING:
            self._on_flushed()
            return
        self._return_loan()
        if self._is_paused:
            self._is_paused = False
            if self.handler is not None:
                self.handler.resume()

    def _check_buffer(self) -> None:
        if not self._is_paused and self._transport.get_write_buffer_size() > self._service.buffer_bytes:
            self._pause_handler()

    def _pause_handler(self) -> None:
        self._is_paused = True
        if self.handler is not None:
            self.handler.pause()

    def _return_loan(self) -> None:
        self._connections.lent_bytes -= self._loan_bytes
        self._loan_bytes = 0

    # Reading a request

    def _collect_head(self, data: bytes) -> None:
        buffer = self._buffer = bytearray() if self._buffer is None else self._buffer
        seen = len(buffer)
        buffer += data
        end = buffer.find(b"\r\n\r\n", max(seen - 3, 0), MAX_HEAD_BYTES)
        if end < 0:
            try:
                check_partial_head(buffer, seen)
            except Refusal as refusal:
                self._refuse_and_linger(refusal)
                return
            if self._state is not State.HEAD:
                self._wait_in(State.HEAD)
            return
        head, rest = bytes(buffer[: end + 4]), bytes(buffer[end + 4 :])
        self._buffer = None
        self._begin_request(head, rest)

    def _begin_request(self, data: bytes, rest: bytes = b"") -> None:
        try:
            head = self._head = parse_head(data)
            self.request_id = _request_id_of(head)
            self._keep_alive = head.keep_alive and not self._connections.draining
            self._is_head_request = head.method == "HEAD"
            max_body_bytes = self._service.admit(head)
            if head.content_length > max_body_bytes:
                raise Refusal("body_too_large")
        except Refusal as refusal:
            self._refuse_and_linger(refusal)
            return
        if head.chunked:
            self._chunked_body = ChunkedBody(max_body_bytes)
        elif len(rest) == head.content_length:
            self._dispatch(head, rest)
            return
        if head.expects_continue and not rest:
            self._transport.write(_CONTINUE)
        self._wait_in(State.BODY)
        if rest:
            self._collect_body(rest)

    def _collect_body(self, data: bytes) -> None:
        """Add to the body. Dispatch the request when it is complete, else count the memory that the body holds."""
        head, chunked_body = self._head, self._chunked_body
        assert head is not None  # noqa: S101  # the state says so
        if chunked_body is not None:
            try:
                chunked_body.feed(data)
            except Refusal as refusal:
                self._refuse_and_linger(refusal)
                return
            body, is_whole, has_surplus = chunked_body.body, chunked_body.is_complete, chunked_body.has_surplus
        else:
            body = self._buffer = bytearray() if self._buffer is None else self._buffer
            body += data
            is_whole, has_surplus = len(body) >= head.content_length, len(body) > head.content_length
        if has_surplus:
            self.abort()
        elif is_whole:
            self._dispatch(head, bytes(body))
        else:
            allocated = body.__alloc__()  # a growing bytearray allocates more than its length
            more, self._held_bytes = allocated - self._held_bytes, allocated
            self._connections.count_unfinished(more)

    def _dispatch(self, head: RequestHead, body: bytes) -> None:
        self._forget_request()
        self._stop_waiting()
        self._state = State.BUSY
        try:
            self._service.handle(self, head, body)
            return
        except Refusal as given:
            refusal = given
        except Exception as error:  # noqa: BLE001  # a handler's fault is no reason to leave a caller without an answer
            self._service.record_fault("handler", error)
            refusal = Refusal("internal_error")
        self.refuse(refusal)
        self._service.record_refusal(self, head, refusal)

    def refuse_unfinished(self, refusal: Refusal) -> None:
        """Refuse an incomplete request; do nothing when there is none."""
        if self._state in (State.HEAD, State.BODY):
            self._refuse_and_linger(refusal)

    def _refuse_and_linger(self, refusal: Refusal) -> None:
        """Refuse a request of which bytes may still arrive, then wait for the caller to close."""
        self.request_id = self.request_id or new_request_id()
        head = self._head
        self._forget_request()
        self._keep_alive = False
        self._stop_waiting()
        self._write_refusal(refusal)
        self._service.record_refusal(self, head, refusal)
        self._begin_lingering()

    def _forget_request(self) -> None:
        """Drop what was collected of the request, which is passed on, refused or lost, and stop counting its memory."""
        self._head = self._chunked_body = self._buffer = None
        if self._held_bytes:
            self._connections.unfinished_bytes -= self._held_bytes
            self._held_bytes = 0

    # Answering

    def respond(self, status: int, headers: Headers, body: bytes, flush_seconds: float | None = None) -> None:
        """Send a complete answer. The caller has `flush_seconds` to read it (default 30)."""
        self._transport.write(self._build_answer(status, headers, body))
        self._end_answer(flush_seconds)

    def refuse(self, refusal: Refusal, flush_seconds: float | None = None) -> None:
        """Send an error. After one below 500, which is the caller's fault, the connection closes."""
        self._write_refusal(refusal)
        self._end_answer(flush_seconds)

    def begin_stream(self, server_timing: bytes, first: bytes) -> None:
        """Send the head of an event stream and, in the same write, its first bytes."""
        chunk = b"%x\r\n%b\r\n" % (len(first), first) if first else b""
        self._transport.write(self._stream_head(server_timing) + chunk)

    def send_stream(self, server_timing: bytes, whole: bytes, flush_seconds: float | None = None) -> None:
        """Send a whole event stream in one write."""
        head = self._stream_head(server_timing)
        self._transport.write(b"%b%x\r\n%b\r\n%b" % (head, len(whole), whole, _LAST_CHUNK))
        self._end_answer(flush_seconds)

    def _stream_head(self, server_timing: bytes) -> bytes:
        timing = b"Server-Timing: %b\r\n" % server_timing if server_timing else b""
        return (
            b"HTTP/1.1 200 OK\r\nDate: %b\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
            b"Cache-Control: no-cache, no-transform\r\nX-Accel-Buffering: no\r\nX-Request-Id: %b\r\n%b"
            b"Transfer-Encoding: chunked\r\n\r\n" % (self._connections.date(), self.request_id.encode(), timing)
        )

    def write_chunk(self, data: bytes) -> None:
        """Send the next bytes of a stream."""
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        if self._loan_bytes:
            self._check_buffer()

    def free_transport(self) -> asyncio.Transport | None:
        """Return the transport if an answer is in progress and nothing of it is unsent, else None."""
        is_free = self._state is State.BUSY and not self._transport.get_write_buffer_size()
        return self._transport if is_free else None

    def end_stream(self, last: bytes, flush_seconds: float | None = None) -> None:
        """Send the last bytes of a stream and end it."""
        self._transport.write(b"%x\r\n%b\r\n%b" % (len(last), last, _LAST_CHUNK))
        self._end_answer(flush_seconds)

    def abort(self) -> None:
        """Close at once, drop what is unsent, and tell the handler."""
        if self._state is not State.CLOSED:
            self._stop_waiting()
            self._state = State.CLOSED
            self._transport.abort()
            self._notify_disconnect()

    def expire(self) -> None:
        """End a wait that took too long: close in IDLE, abort in LINGERING, else refuse with `request_timeout`."""
        if self._state is State.IDLE:
            self._close_after_flush(None)
        elif self._state is State.LINGERING:
            self.abort()
        else:
            self.refuse_unfinished(Refusal("request_timeout"))

    def drain(self) -> None:
        """Refuse an incomplete request, and make the next answer the last: the server stops."""
        self._keep_alive = False
        self.refuse_unfinished(Refusal("draining"))

    def close(self) -> None:
        """Send what is written, then close: the server has stopped."""
        if self._state is not State.CLOSED:
            self._stop_waiting()
            self._state = State.CLOSING
            self._transport.close()

    def _build_answer(self, status: int, headers: Headers, body: bytes) -> bytes:
        lines, cache_control = [_STATUS_LINES[status], b"Date: %b\r\n" % self._connections.date()], b"no-store"
        for name, value in headers:
            if name == b"Cache-Control":
                cache_control = value
            else:
                lines.append(b"%b: %b\r\n" % (name, value))
        if not self._keep_alive:
            lines.append(b"Connection: close\r\n")
        if status != http.HTTPStatus.NOT_MODIFIED:  # its length would have to be the 200's (RFC 9110, 8.6)
            lines.append(b"Content-Length: %d\r\n" % len(body))
        lines.append(b"X-Request-Id: %b\r\nCache-Control: %b\r\n\r\n" % (self.request_id.encode(), cache_control))
        if not self._is_head_request:
            lines.append(body)
        return b"".join(lines)

    def _write_refusal(self, refusal: Refusal) -> None:
        if refusal.status < 500:
            self._keep_alive = False
        headers = [(b"Content-Type", refusal.content_type), *refusal.headers()]
        self._transport.write(self._build_answer(refusal.status, headers, refusal.body(self.request_id)))

    def _end_answer(self, flush_seconds: float | None) -> None:
        """Detach the handler, since the answer is written; then flush, close, or wait for the next request."""
        self.handler = None
        if self._state is not State.BUSY:
            return
        self._is_paused = False
        if not self._keep_alive:
            self._close_after_flush(flush_seconds)
        elif self._transport.get_write_buffer_size() > _SMALL_ANSWER_BYTES:
            self._state = State.FLUSHING
            self._start_flush_timer(flush_seconds)
            self._transport.set_write_buffer_limits(high=0)  # `resume_writing` then comes when it is empty
        else:
            self._wait_in(State.IDLE)

    def _close_after_flush(self, flush_seconds: float | None) -> None:
        """Close once everything is sent; abort if the caller does not read it within `flush_seconds`."""
        self._stop_waiting()
        self._forget_request()
        self._state = State.CLOSING
        if self._transport.get_write_buffer_size():
            self._start_flush_timer(flush_seconds)
        self._transport.close()

    def _start_flush_timer(self, seconds: float | None) -> None:
        if self._flush_timer is not None:
            self._flush_timer.cancel()
        self._flush_timer = PatientTimer(self.loop, _FLUSH_SECONDS if seconds is None else seconds, self.abort)

    def _on_flushed(self) -> None:
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        self._return_loan()
        if self._transport.is_closing():
            self._state = State.CLOSING
        elif not self._keep_alive:
            self._close_after_flush(None)
        else:
            self._transport.set_write_buffer_limits(high=min(self._service.buffer_bytes, _OWN_BUFFER_BYTES))
            self._wait_in(State.IDLE)

    def _begin_lingering(self) -> None:
        """Half-close and keep reading for 2 s: closing with unread bytes resets the connection and loses the answer."""
        if self._transport.is_closing():
            self._state = State.CLOSING
            return
        self._transport.write_eof()
        self._wait_in(State.LINGERING)

    def _notify_disconnect(self) -> None:
        """Tell the handler, once, and now rather than when the transport calls `connection_lost`."""
        handler, self.handler = self.handler, None
        if handler is not None:
            handler.on_disconnect()

    def _wait_in(self, state: State) -> None:
        self._stop_waiting()
        self._state = state
        self.waiting_since = self.loop.time()
        self._connections.start_timeout(self, state)

    def _stop_waiting(self) -> None:
        if self._state in WAIT_SECONDS:
            self._connections.stop_timeout(self, self._state)


def _generate_ids() -> Iterator[str]:
    """Yield ids of 24 hexadecimal digits. One system call reads enough for 256 and costs as much as for one."""
    while True:
        digits = os.urandom(12 * 256).hex()
        yield from (digits[at : at + 24] for at in range(0, len(digits), 24))


_fresh_ids = _generate_ids()


def new_request_id() -> str:
    """Return a fresh request id, as given to a request that brings none."""
    return next(_fresh_ids)


def _request_id_of(head: RequestHead) -> str:
    """Return the caller's `X-Request-Id` if it is valid (contract, 3), else a fresh id."""
    given = head.headers.get(b"x-request-id", b"")
    if 1 <= len(given) <= 128 and _REQUEST_ID_BYTES.issuperset(given) and b"x-request-id" not in head.repeated:
        return given.decode("ascii")
    return new_request_id()
