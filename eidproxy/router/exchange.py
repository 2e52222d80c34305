"""One request on one connection to the router: its bytes are written, and those of the answer reach a sink.

Bytes reach the sink in the callback that receives them. Every failure is reported as one of httpx's exception classes
(DESIGN, 5).
"""

import asyncio
import re
from collections.abc import Callable
from typing import Protocol, cast

import httpx

from eidproxy.router.response import ResponseHead, ResponseParser
from eidproxy.router.shortcut import READ_BYTES, Shortcut
from eidproxy.router.transport import TcpTransport
from eidproxy.timeouts import PatientTimer

_MAX_SIZE_LINE_BYTES = 10
"""More than the size line of any read has."""
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,6}")


class Sink(Protocol):
    """The listener of an exchange. Nothing is called after `upstream_end`, or after the exchange was aborted."""

    def upstream_head(self, head: ResponseHead) -> None:
        """Take the head of the final response."""

    def upstream_body(self, data: bytes, now: float) -> None:
        """Take the bytes of the body from one read; `now` is its time on the loop's clock."""

    def upstream_end(self, error: httpx.TransportError | None) -> None:
        """Take the end of the response: None when it is whole or closed, else the failure."""


class Exchange(asyncio.Protocol):
    """One request on one connection."""

    __slots__ = (
        "_is_between_chunks",
        "_is_over",
        "_is_paused",
        "_loop",
        "_response",
        "_sink",
        "_transport",
        "_write_timeout_seconds",
        "_write_timer",
        "aligns_to_chunk",
        "dialling",
        "first_byte_at",
        "is_cut",
        "on_unanswered",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, write_timeout_seconds: float) -> None:
        self._loop = loop
        self._write_timeout_seconds = write_timeout_seconds
        self._write_timer: PatientTimer | None = None
        self._transport: TcpTransport | None = None
        self._sink: Sink | None = None
        self._response = ResponseParser()
        self._is_between_chunks = False
        self._is_paused = False
        self._is_over = False
        self.dialling: TcpTransport | None = None
        """The transport while it connects; None once it is connected."""
        self.first_byte_at: float | None = None
        self.is_cut = False
        """Whether the connection ended within the body."""
        self.aligns_to_chunk = False
        """Whether the next read should be limited to end where a chunk ends."""
        self.on_unanswered: Callable[[], None] | None = None
        """Set only on a connection kept from an earlier request (see `report_unanswered`)."""

    def start(self, request: bytes, sink: Sink) -> None:
        """Send the request and pass the response to the sink."""
        assert self._transport is not None  # noqa: S101  # start is called on a connected exchange
        self._sink = sink
        if self._is_over:  # the router hung up between the connect and now
            self._report_end(httpx.ReadError(""))
        else:
            self._transport.write(request)

    def abort(self, *, reset: bool = False) -> None:
        """Close the connection now. Nothing more is passed to the sink.

        `reset` is for an answer that is not whole: a model server notices a reset one step sooner than a FIN.
        """
        transport = self._transport or self.dialling
        # Drop the references that make cycles, so that an exchange is freed here and not by the garbage collector.
        self._sink = self._transport = self.dialling = self.on_unanswered = None
        self._is_over = True
        try:
            if transport is not None:
                transport.abort(reset=reset)
        finally:
            self._response.drop_parser()
            self._stop_write_timer()

    def report_unanswered(self) -> None:
        """Report a kept connection on which the request failed, or met silence, before any byte of an answer.

        The connection itself may be the reason.
        """
        if self.first_byte_at is None and self.on_unanswered is not None:
            self.on_unanswered()

    def release(self) -> TcpTransport | None:
        """Give up and return the transport when it can carry another request; None when it cannot.

        Only for an answer that is whole by its content. The HTTP message must be whole too, with no byte after it:
        while its last chunk is on the way, the router may still count the request as running.
        """
        transport = self._transport
        if transport is None or not (self._response.is_whole and self._response.keeps_alive and transport.is_sound):
            return None
        self._stop_write_timer()
        self._response.drop_parser()
        self._sink = self._transport = self.on_unanswered = None
        return transport

    def has_unread(self) -> bool:
        """Return whether the router sent something that is not read yet. With TLS that may be no byte of the answer."""
        if self._transport is None or self._is_paused or self._is_over:
            return False
        return self._transport.has_unread()

    def shortcut(self, *, aligns: bool) -> Shortcut | None:
        """Return the connection's shortcut past the interpreter; None without one, or if the next byte begins no chunk.

        When bytes arrive faster than they are read, no read ends with a chunk: `aligns` then makes the next one do so.
        """
        if self._transport is None or self._is_paused or self._is_over or not self._response.is_chunked:
            return None
        if self._is_between_chunks:
            self._response.drop_parser()
            return self._transport.shortcut()
        self.aligns_to_chunk = aligns
        return None

    def end_shortcut(self) -> None:
        """End the shortcut: its events are counted, and the following ones pass through Python."""
        if self._transport is not None:
            self._transport.end_shortcut()

    def enable_tcp_keepalive(self) -> None:
        """Enable TCP keep-alive on the connection."""
        if self._transport is not None:
            self._transport.enable_tcp_keepalive()

    def pause(self) -> None:
        """Stop reading from the router."""
        self._is_paused = True
        if self._transport is not None and not self._is_over:
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read from the router again."""
        self._is_paused = False
        if self._transport is not None and not self._is_over:
            self._transport.resume_reading()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connected transport."""
        self._transport = cast(TcpTransport, transport)

    def data_received(self, data: bytes) -> None:
        """Parse bytes from the router and pass those of the body to the sink."""
        sink = self._sink
        if sink is None:
            return
        now = self._loop.time()
        if self._is_between_chunks and (body := _body_of_one_chunk(data)):
            sink.upstream_body(body, now)  # the parser need not see it: it is between two chunks before and after
            return
        if self.first_byte_at is None:
            self.first_byte_at = now
        response = self._response
        fault = response.feed(data)
        self._is_between_chunks = fault is None and response.has_chunk_ended and data[-2:] == b"\r\n"
        self._is_over = self._is_over or response.is_whole
        if (head := response.take_head()) is not None:
            sink.upstream_head(head)
        if response.body_parts:
            self._pass_body_on(data, now)
        if response.is_whole or fault is not None:
            self._report_end(fault)

    def _pass_body_on(self, data: bytes, now: float) -> None:
        """Give the sink the parts of the body that the read `data` brought, in one piece."""
        parts, sink = self._response.body_parts, self._sink
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        last_bytes = len(parts[-1])
        parts.clear()
        if sink is not None:
            sink.upstream_body(body, now)
        if self.aligns_to_chunk:
            self.aligns_to_chunk = False
            self._align_next_read(data, last_bytes)

    def _align_next_read(self, data: bytes, last_bytes: int) -> None:
        """Limit the next read to the rest of the chunk whose first `last_bytes` bytes end `data`.

        Does nothing when `data` does not hold the chunk's size line.
        """
        shortcut = None if self._transport is None else self._transport.shortcut()
        before = data[: len(data) - last_bytes]
        begin = before.rfind(b"\n", 0, -2) + 1
        if shortcut is None or self._response.has_chunk_ended or not begin or before[-2:] != b"\r\n":
            return
        size = before[begin:-2]
        if _CHUNK_SIZE.fullmatch(size):
            rest = int(size, 16) - last_bytes + 2  # with the chunk's CRLF
            if 0 < rest <= READ_BYTES:
                shortcut.next_read_bytes = rest

    def eof_received(self) -> None:
        """End the response where the router closed its side: the end of a body without a length, or a cut."""
        response = self._response
        response.keeps_alive = False
        if response.has_head:
            self.is_cut = response.is_within_body
            self._report_end(None)
        else:
            self._report_end(httpx.RemoteProtocolError("the router closed the connection without an answer"))

    def connection_lost(self, exc: Exception | None) -> None:
        """End the response because the connection is gone."""
        self._is_over = True
        if exc is None:
            self.eof_received()
        elif self._write_timer is not None:  # it runs while part of the request is unsent
            self._report_end(httpx.WriteError(""))
        else:
            self._report_end(httpx.ReadError(""))
        self._stop_write_timer()

    def pause_writing(self) -> None:
        """Start the write timeout: some of the request is unsent."""
        if self._sink is not None and self._write_timer is None:
            self._write_timer = PatientTimer(self._loop, self._write_timeout_seconds, self._on_write_timeout)

    def resume_writing(self) -> None:
        """Stop the write timeout: the kernel has taken the whole request."""
        self._stop_write_timer()

    def _report_end(self, error: httpx.TransportError | None) -> None:
        sink, self._sink = self._sink, None
        try:
            if error is not None:
                self.report_unanswered()
        finally:  # whatever fails, the sink must be told of the end
            if sink is not None:
                sink.upstream_end(error)

    def _on_write_timeout(self) -> None:
        self._write_timer = None
        if self._transport is not None and self._transport.get_write_buffer_size():
            self._report_end(httpx.WriteTimeout(""))

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None


def _body_of_one_chunk(data: bytes) -> bytes:
    """Return the body if the bytes are one whole chunk, as the usual read is; else nothing.

    The size line must be as most servers write it. The last chunk has no body (RFC 9112, 7.1).
    """
    body_at = data.find(b"\r\n", 1, _MAX_SIZE_LINE_BYTES) + 2
    if data[:body_at] == b"%x\r\n" % (len(data) - body_at - 2) and data[-2:] == b"\r\n":
        return data[body_at:-2]
    return b""
