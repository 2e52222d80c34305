"""The connection to the router: resolve, decide on every address, dial the literal, check the peer, send, listen.

A request is never sent twice, whatever happens to its connection (see `idle` for kept connections). Bytes reach the
sink in the callback that receives them. Every failure is reported as one of httpx's exception classes (DESIGN, 5).
"""

import asyncio
import re
import ssl
import sys
from collections.abc import Callable
from typing import Any, Protocol, cast

import httptools
import httpx

from eidproxy.egress import Decision, EgressPolicy, Verdict, parse_literal
from eidproxy.hints import Hint, find_hint
from eidproxy.router.idle import IdleConnections
from eidproxy.router.resolver import Resolver, canonical
from eidproxy.router.shortcut import READ_BYTES, Shortcut
from eidproxy.router.tls import TlsTransport
from eidproxy.router.transport import Poller, ReadPoller, TcpTransport
from eidproxy.timeouts import PatientTimer, patience, standstill_extension

_MAX_HEAD_BYTES = 64 * 1024
"""Limit for a response head, and for a trailer. Four times a caller's limit, since routers add many headers.

What follows the head needs a limit too: the parser joins a field anew at each read that adds to it.
"""

_MAX_INTERIM_RESPONSES = 8
"""1xx responses before the final one. One is usual; without a limit a router could send them for ever."""
_LAST_CHUNK = b"0\r\n\r\n"
_CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
"""What a new parser is fed to be where chunks begin (see `Exchange.shortcut`)."""
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,6}")
_RECHECK_SECONDS = 0.05
"""Delay before the next check when the kernel still has unread bytes."""
_MAX_UNREAD_CHECKS = 20
"""Such checks in one silence: a second in all, enough for a loop to read what 200 streams left unread."""


class EgressBlocked(Exception):
    """The router's name or address leads somewhere that is not permitted."""

    def __init__(self, decision: Decision) -> None:
        super().__init__(decision.verdict)
        self.decision = decision


class Sink(Protocol):
    """The listener of an exchange. Nothing is called after `upstream_end`, or after the exchange was aborted."""

    def upstream_head(self, status: int, content_type: bytes, encoded: bool) -> None:
        """Take the head of the final response: status, `Content-Type`, and whether the body has a content coding."""

    def upstream_body(self, data: bytes, now: float) -> None:
        """Take the bytes of the body from one read; `now` is its time on the loop's clock."""

    def upstream_end(self, error: httpx.TransportError | None) -> None:
        """Take the end of the response: None when it is whole or closed, else the failure."""


class Exchange(asyncio.Protocol):
    """One request on one connection."""

    __slots__ = (
        "_body_parts",
        "_bytes_without_body",
        "_checked_due",
        "_content_type",
        "_extended_due",
        "_field_bytes",
        "_has_chunk_ended",
        "_has_head",
        "_has_length",
        "_interim_heads",
        "_is_between_chunks",
        "_is_encoded",
        "_is_over",
        "_is_paused",
        "_keeps_alive",
        "_loop",
        "_parser",
        "_sink",
        "_transfer_coding",
        "_transport",
        "_unread_checks",
        "_write_timeout_seconds",
        "_write_timer",
        "aligns_to_chunk",
        "dialling",
        "first_byte_at",
        "is_cut",
        "last_read_at",
        "on_unanswered",
        "retry_after",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, write_timeout_seconds: float) -> None:
        self._loop = loop
        self._write_timeout_seconds = write_timeout_seconds
        self._write_timer: PatientTimer | None = None
        self._transport: TcpTransport | None = None
        self._sink: Sink | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._body_parts: list[bytes] = []
        self._has_chunk_ended = False  # the parser saw the end of a chunk, and no size line after it
        self._is_between_chunks = False
        self._has_head = False
        self._bytes_without_body = 0  # bytes received since the last byte of body, or since the beginning
        self._field_bytes = 0
        self._is_paused = False
        self._interim_heads = 0
        self._is_over = False
        self._content_type = b""
        self._transfer_coding: bytes | None = None
        self._has_length = False
        self._is_encoded = False
        self._keeps_alive = False
        self._checked_due: float | None = None
        self._unread_checks = 0
        self._extended_due: float | None = None
        self.dialling: TcpTransport | None = None
        """The transport while it connects; None once it is connected."""
        self.first_byte_at: float | None = None
        self.is_cut = False
        """Whether the body ended before its length or within a chunk.

        A missing last chunk is no cut: some servers leave it out.
        """
        self.last_read_at = 0.0
        self.aligns_to_chunk = False
        """Whether the next read should be limited to end where a chunk ends."""
        self.retry_after = b""
        """The value of the router's `Retry-After`, unparsed."""
        self.on_unanswered: Callable[[], None] | None = None
        """Set only on a connection kept from an earlier request (see `report_unanswered`)."""

    def start(self, request: bytes, sink: Sink) -> None:
        """Send the request and pass the response to the sink."""
        assert self._transport is not None  # noqa: S101  # start is called on a connected exchange
        self._sink = sink
        self._parser = httptools.HttpResponseParser(self)
        self.last_read_at = self._loop.time()
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
        self._sink = self._parser = self._transport = self.dialling = self.on_unanswered = None
        self._is_over = True
        if transport is not None:
            transport.abort(reset=reset)
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
        if transport is None or not (self._is_over and self._keeps_alive and transport.is_sound):
            return None
        self._stop_write_timer()
        self._sink = self._parser = self._transport = self.on_unanswered = None
        return transport

    def silence_extension(self, due: float, now: float, seconds: float) -> float:
        """Return how many seconds more to wait before a silence that ran out at `due` ends the request; 0 for none.

        Every check of a silence limit of `seconds` asks this first. After a standstill timers run before reads, so the
        router may have sent something: unread bytes are read first, but not without end, since they may be pings that
        are no sign of life. A wait that began in the turn that stood still began with an old time, so each silence is
        extended once by as much as the clock is late (DESIGN, 39).
        """
        if self._checked_due != due:
            self._checked_due, self._unread_checks = due, 0
        self._unread_checks += 1
        if self._unread_checks <= _MAX_UNREAD_CHECKS and self.has_unread():
            return _RECHECK_SECONDS
        if self._extended_due == due:
            return 0.0
        self._extended_due = due
        return standstill_extension(now - due, seconds)

    def has_unread(self) -> bool:
        """Return whether the router sent something that is not read yet. With TLS that may be no byte of the answer."""
        if self._transport is None or self._is_paused or self._is_over:
            return False
        return self._transport.has_unread()

    def shortcut(self, *, aligns: bool) -> Shortcut | None:
        """Return the connection's shortcut past the interpreter; None without one, or if the next byte begins no chunk.

        When bytes arrive faster than they are read, no read ends with a chunk: `aligns` then makes the next one do so.
        """
        if self._transport is None or self._is_paused or self._is_over or self._transfer_coding is None:
            return None
        if self._is_between_chunks:
            # Thousands of streams may be open, each with a parser of 1 KiB that sees nothing but the end.
            self._parser = None
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
        self.last_read_at = self._loop.time()
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
        now = self.last_read_at = self._loop.time()
        if self._is_between_chunks and len(data) > 5:
            # The usual read is one whole chunk, with the size line that most servers write. The parser need not see
            # it: it is between two chunks before and after. The last chunk is empty and has 5 bytes (RFC 9112, 7.1).
            body_at = data.find(b"\r\n", 1, 10) + 2
            if data[:body_at] == b"%x\r\n" % (len(data) - body_at - 2) and data[-2:] == b"\r\n":
                sink.upstream_body(data[body_at:-2], now)
                return
        if self.first_byte_at is None:
            self.first_byte_at = now
        try:
            parser = self._parser or self._parser_between_chunks()
            parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._report_end(httpx.RemoteProtocolError("the router switched protocols"))
            return
        except httptools.HttpParserError:
            self._pass_body_on()  # body bytes before the fault
            self._report_end(
                None if self._is_over else httpx.RemoteProtocolError("the router's answer is not valid HTTP")
            )
            return
        self._bytes_without_body = 0 if self._body_parts else self._bytes_without_body + len(data)
        if self._bytes_without_body > _MAX_HEAD_BYTES and not self._is_over:
            self._report_end(httpx.RemoteProtocolError("the router's head or trailer is too large"))
            return
        self._is_between_chunks = self._has_chunk_ended and data[-2:] == b"\r\n"
        if self._is_over and data[-5:] != _LAST_CHUNK:
            self._keeps_alive = False  # bytes follow the message, if only a blank line
        last_bytes = self._pass_body_on()
        if last_bytes and self.aligns_to_chunk:
            self.aligns_to_chunk = False
            self._align_next_read(data, last_bytes)
        if self._is_over:
            self._report_end(None)

    def _parser_between_chunks(self) -> httptools.HttpResponseParser:
        """Make the parser anew that `shortcut` gave up: between two chunks of a body."""
        parser = self._parser = httptools.HttpResponseParser(self)
        known = self._transfer_coding, self._keeps_alive, self._field_bytes
        self._is_over, self._field_bytes = True, 0  # what this head calls must not count as a response
        try:
            parser.feed_data(_CHUNKED_HEAD)
        finally:
            self._is_over = False
            self._transfer_coding, self._keeps_alive, self._field_bytes = known
        return parser

    def _align_next_read(self, data: bytes, last_bytes: int) -> None:
        """Limit the next read to the rest of the chunk whose first `last_bytes` bytes end `data`.

        Does nothing when `data` does not hold the chunk's size line.
        """
        shortcut = None if self._transport is None else self._transport.shortcut()
        before = data[: len(data) - last_bytes]
        begin = before.rfind(b"\n", 0, -2) + 1
        if shortcut is None or self._has_chunk_ended or not begin or before[-2:] != b"\r\n":
            return
        size = before[begin:-2]
        if _CHUNK_SIZE.fullmatch(size):
            rest = int(size, 16) - last_bytes + 2  # with the chunk's CRLF
            if 0 < rest <= READ_BYTES:
                shortcut.next_read_bytes = rest

    def eof_received(self) -> None:
        """End the response where the router closed its side: the end of a body without a length, or a cut."""
        self._keeps_alive = False
        if self._has_head:
            self.is_cut = self._has_length or (self._transfer_coding is not None and not self._has_chunk_ended)
            self._report_end(None)
        else:
            self._report_end(httpx.RemoteProtocolError("the router closed the connection without an answer"))

    def connection_lost(self, exc: Exception | None) -> None:
        """End the response because the connection is gone."""
        self._is_over = True
        if exc is None:
            self.eof_received()
        elif self._write_timer is not None:
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

    # httptools' callbacks

    def on_message_begin(self) -> None:
        """Reset what the last head said: a response begins, perhaps after an interim one."""
        self._content_type, self._transfer_coding, self._has_length, self._is_encoded = b"", None, False, False
        self._keeps_alive = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one field of the head or of a trailer. Only framing, media type and `Retry-After` of the head matter.

        Raises httptools.HttpParserError when the fields are too large.
        """
        self._field_bytes += len(name) + len(value)
        if self._field_bytes > _MAX_HEAD_BYTES:
            raise httptools.HttpParserError("the response head is too large")
        if self._has_head:
            self._keeps_alive = False  # a trailer: its fields do not matter here, and no known router sends one
            return
        name = name.lower()
        if name == b"content-type":
            self._content_type = value
        elif name == b"content-encoding":
            self._is_encoded = self._is_encoded or value.strip().lower() not in (b"", b"identity")
        elif name == b"content-length":
            self._has_length = True
        elif name == b"retry-after":
            self.retry_after = value.strip()
        elif name == b"transfer-encoding":
            self._transfer_coding = value if self._transfer_coding is None else self._transfer_coding + b"," + value

    def on_headers_complete(self) -> None:
        """Pass a whole head to the sink unless it is interim. Raises httptools.HttpParserError for an invalid one."""
        if self._is_over:
            return
        assert self._parser is not None  # noqa: S101  # the parser makes this call
        status = self._parser.get_status_code()
        coding = self._transfer_coding
        if coding is not None and (self._has_length or coding.strip().lower() != b"chunked"):
            # A coding that is not decoded here, or two lengths: the body would be misread.
            raise httptools.HttpParserError("ambiguous framing")
        if 100 <= status < 200:
            self._interim_heads += 1
            if self._interim_heads > _MAX_INTERIM_RESPONSES or status == 101:
                raise httptools.HttpParserError("too many interim responses")
            return
        if status < 100 or status > 599:
            raise httptools.HttpParserError("no such status")
        self._has_head = True
        # With HTTP/1.0 chunks count as faulty framing, so the connection is closed after them (RFC 9112, 6.1).
        is_chunked = coding is not None and self._parser.get_http_version() == "1.1"
        self._keeps_alive = is_chunked and self._parser.should_keep_alive()
        content_type, self._content_type = self._content_type, b""  # not held while the body comes
        if self._sink is not None:
            self._sink.upstream_head(status, content_type, self._is_encoded)

    def on_body(self, body: bytes) -> None:
        """Collect bytes of the body."""
        if not self._is_over:
            self._body_parts.append(body)

    def on_chunk_header(self) -> None:
        """Note a chunk's size line."""
        self._has_chunk_ended = False

    def on_chunk_complete(self) -> None:
        """Note the end of a chunk, with its CRLF."""
        self._has_chunk_ended = True

    def on_message_complete(self) -> None:
        """Note that the response is whole. Bytes after it belong to no request."""
        if self._has_head:
            self._is_over = True

    def _pass_body_on(self) -> int:
        """Give the sink the parts that the parser found, in one piece. Return the length of the last, or 0."""
        parts, sink = self._body_parts, self._sink
        if not parts or sink is None:
            return 0
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        last_bytes = len(parts[-1])
        parts.clear()
        sink.upstream_body(body, self.last_read_at)
        return last_bytes

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


class Upstream:
    """The access to the router, and to nothing else. To be built inside a running loop."""

    def __init__(
        self,
        host: str,
        port: int,
        policy: EgressPolicy,
        *,
        api_key: str | None = None,
        tls: ssl.SSLContext | None = None,
        connect_timeout_seconds: float = 5.0,
        write_timeout_seconds: float = 30.0,
        keep_idle_seconds: float = 0.0,
        resolver: Resolver | None = None,
        poller: Callable[[], Poller] | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self.policy = policy
        self.own_addresses: frozenset[tuple[str, int]] = frozenset()
        """Addresses on which eidproxy itself listens: a router there would be a loop."""
        self._loop = asyncio.get_running_loop()
        self._read_poller = ReadPoller(self._loop, poller)
        self.shortcuts = self._read_poller.shortcuts
        """The shortcuts of all connections; None where shortcuts are not available."""
        self._tls = tls
        self._connect_timeout_seconds = connect_timeout_seconds
        self._write_timeout_seconds = write_timeout_seconds
        self._literal_decisions = policy.decide_all([host]) if parse_literal(host) is not None else None
        # A name is judged at each request, since its addresses may change, so no connection to it is kept.
        self._idle = IdleConnections(keep_idle_seconds if self._literal_decisions is not None else 0.0)
        self._resolver = resolver or Resolver(patience_seconds=connect_timeout_seconds)
        authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        lines = [
            "POST /v1/chat/completions HTTP/1.1",
            f"Host: {authority}",
            "Content-Type: application/json",
            "Accept: text/event-stream",
            "Accept-Encoding: identity",
        ]
        if api_key is not None:
            lines.append(f"Authorization: Bearer {api_key}")
        heads = ("\r\n".join([*lines, f"Connection: {word}", "Content-Length: "]) for word in ("close", "keep-alive"))
        self._closing_head, self._keeping_head = (head.encode() for head in heads)
        self.reachable: bool | None = None
        self.checked_at: float | None = None
        self.attempts = 0
        """Connects, failed attempts to connect, and answers on kept connections."""
        self.hint: Hint | None = None
        """Why the router was not reachable at the last attempt, if that is known."""
        self._check_task: asyncio.Task[None] | None = None

    def request(self, body: bytes) -> bytes:
        """Return the request for a body: a constant head, the length and the body."""
        head = self._keeping_head if self._idle.seconds else self._closing_head
        return b"%b%d\r\n\r\n%b" % (head, len(body), body)

    async def addresses(self) -> list[str]:
        """Return the addresses that may be dialled. Raises EgressBlocked, httpx.ConnectError, httpx.ConnectTimeout."""
        if self._literal_decisions is not None:
            decisions = self._literal_decisions  # judged once: neither the address nor the policy can change
        else:
            decisions = self.policy.decide_all(await self._resolver.resolve(self.host, self.port))
        if not decisions[0].permitted:
            raise EgressBlocked(decisions[0])
        return [str(decision.address) for decision in decisions]

    def take_kept(self) -> Exchange | None:
        """Return an exchange on a connection kept from an earlier request, or None.

        The address was judged and the peer checked when the connection was made, and neither can change.
        """
        transport = self._idle.take()
        if transport is None:
            return None
        try:
            exchange = Exchange(self._loop, self._write_timeout_seconds)
            exchange.on_unanswered = self._idle.note_unanswered
            transport.set_protocol(exchange)
            exchange.connection_made(transport)
        except BaseException:
            transport.abort()
            raise
        return exchange

    def finish(self, exchange: Exchange) -> None:
        """End an exchange whose answer is whole: keep its connection if it can carry another request, else close it."""
        transport: TcpTransport | None = None
        try:
            if exchange.on_unanswered is not None:
                self._idle.note_answered()
                self._note_reachable(True)
            transport = exchange.release() if self._idle.seconds else None
            if transport is not None:
                self._idle.keep(transport)
                return
        except BaseException:
            (transport or exchange).abort()
            raise
        exchange.abort()

    def close(self) -> None:
        """Close all kept connections."""
        self._idle.close()

    def dial(self) -> Exchange | None:
        """Begin to connect without waiting; None when a look-up must come first.

        The exchange is connected at once when the router is on this machine and speaks no TLS; else `dialling` is set,
        and `connect` waits for it. Raises EgressBlocked, httpx.ConnectError, httpx.ConnectTimeout.
        """
        if self._literal_decisions is None:
            return None
        if not self._literal_decisions[0].permitted:
            raise EgressBlocked(self._literal_decisions[0])
        began_at = self._loop.time()
        try:
            exchange, transport = self._start_dialling(self.host)
            try:
                peer = transport.peer_address() if self._tls is None else None
                if peer is not None:
                    self._check_peer(self.host, peer, transport.own_address())
                    self._open(exchange, transport)
            except BaseException:
                transport.abort()
                raise
        except (OSError, httpx.ConnectError) as error:
            raise self._note_connect_failure(error, began_at) from None
        return exchange

    async def connect(self, begun: Exchange | None = None) -> Exchange:
        """Return a connected exchange; `begun` is one that `dial` returned.

        Raises EgressBlocked, httpx.ConnectError, httpx.ConnectTimeout. No connection stays open after an exception.
        """
        began_at = self._loop.time()
        try:
            async with patience(self._connect_timeout_seconds):
                if begun is None:
                    return await self._connect_to_any()
                return await self._connect_to(self.host, begun)
        except (OSError, httpx.ConnectError) as error:
            raise self._note_connect_failure(error, began_at) from None

    def _note_connect_failure(self, error: OSError | httpx.ConnectError, began_at: float) -> httpx.TransportError:
        """Note a failed attempt to connect and return its error in the words of httpx."""
        self._note_reachable(False)
        if isinstance(error, TimeoutError):
            self.hint = None
            return httpx.ConnectTimeout("the router does not answer")
        if isinstance(error, OSError):
            self._note_hint(error, self.host, began_at)
            return httpx.ConnectError("the router refuses connections")
        return error

    async def check(self) -> None:
        """Connect and close. Raises as `connect` does. Concurrent calls share one attempt."""
        if self._check_task is None or self._check_task.done():
            self._check_task = asyncio.create_task(self._connect_and_close())
        await asyncio.shield(self._check_task)

    async def _connect_and_close(self) -> None:
        (await self.connect(self.dial())).abort()

    async def _connect_to_any(self) -> Exchange:
        for address in await self.addresses():
            began_at = self._loop.time()
            try:
                return await self._connect_to(address, self._start_dialling(address)[0])
            except OSError as error:  # refused, unreachable, reset, or TLS that does not check out
                self._note_hint(error, address, began_at)
        raise httpx.ConnectError("the router refuses connections")

    def _start_dialling(self, address: str) -> tuple[Exchange, TcpTransport]:
        exchange = Exchange(self._loop, self._write_timeout_seconds)
        if self._tls is None:
            transport = TcpTransport(self._read_poller, exchange, address, self.port)
        else:
            transport = TlsTransport(
                self._read_poller, exchange, address, self.port, context=self._tls, server_name=self.host
            )
        exchange.dialling = transport
        return exchange, transport

    async def _connect_to(self, address: str, exchange: Exchange) -> Exchange:
        transport = exchange.dialling
        if transport is not None:
            try:
                await transport.wait_connected()
                self._check_peer(address, transport.peer_address(), transport.own_address())
                await transport.handshake()
                self._open(exchange, transport)
            except BaseException:
                exchange.abort()  # and drop what makes a cycle of the two
                raise
        return exchange

    def _open(self, exchange: Exchange, transport: TcpTransport) -> None:
        """Open a connection whose peer was checked."""
        self._note_reachable(True)
        exchange.dialling = None
        transport.open()

    def _check_peer(self, address: str, peer: Any, local: Any) -> None:
        """Raise EgressBlocked unless the peer has the judged address and is not eidproxy itself.

        Raises httpx.ConnectError when there is no peer.
        """
        if peer is None or peer == local:
            # The peer is gone; or no process listens and the kernel joined the socket to itself (simultaneous open).
            raise httpx.ConnectError("the router hung up")
        if peer[0] != address and canonical(peer[0]) != address:
            raise EgressBlocked(Decision(Verdict.OUTSIDE))
        if self.own_addresses and self._is_own(address, local):
            raise EgressBlocked(Decision(Verdict.LOOP))

    def _is_own(self, address: str, local: Any) -> bool:
        for host, port in self.own_addresses:
            if port != self.port:
                continue
            if canonical(host) == address:
                return True
            if host in ("0.0.0.0", "::"):  # noqa: S104  # a listener on every address of this machine
                return local is not None and canonical(local[0]) == address
        return False

    def _note_reachable(self, reachable: bool) -> None:
        self.reachable, self.checked_at = reachable, self._loop.time()
        self.attempts += 1
        if reachable:
            self.hint = None

    def _note_hint(self, error: OSError, address: str, began_at: float) -> None:
        self.hint = find_hint(sys.platform, error.errno, self._loop.time() - began_at, address)
