"""TLS on a `TcpTransport`, with the standard library's TLS over memory buffers (DESIGN, 7 and 25).

The loop's TLS transport closes its socket a turn after `abort`. Here the socket stays our own: it is closed when
`abort` returns, its peer is checked before the first byte of TLS is sent, and the plain bytes of one read go to
the protocol in one call.
"""

import asyncio
import socket
import ssl
from typing import cast

from eidproxy.router.transport import ReadPoller, TcpTransport

_PIECE_BYTES = 16 * 1024
"""How much is decrypted in one call: the most that a record has (RFC 8446, 5.1)."""

_MAX_REPLY_BYTES = 64 * 1024
"""How much TLS may answer by itself to a peer that does not read. An honest one asks for new keys once in a while."""

_RECORD_HEAD_BYTES = 5
"""Type, version and length of a record (RFC 8446, 5.1); the length is in the last two bytes."""


class TlsTransport(TcpTransport):
    """One connection with TLS. Its protocol is called as that of a `TcpTransport` is, with plain bytes."""

    __slots__ = ("_tls",)

    def __init__(
        self,
        read_poller: ReadPoller,
        protocol: asyncio.Protocol,
        address: str,
        port: int,
        *,
        context: ssl.SSLContext,
        server_name: str,
    ) -> None:
        """Begin to connect to an address literal; `server_name` is what the certificate must be for. Raises OSError."""
        self._tls = tls = _Tls(self, protocol, context, server_name)
        try:
            super().__init__(read_poller, tls, address, port)
        except BaseException:
            tls.detach()
            raise

    async def handshake(self) -> None:
        """Agree on keys with the connected peer and verify its certificate. Raises OSError (ssl.SSLError is one)."""
        # The request follows the handshake's last message; Nagle's algorithm would hold it until that is acknowledged.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._is_connecting = False
        ended = self._tls.handshake_ended = self._loop.create_future()
        self.resume_reading()
        self._tls.continue_handshake()
        try:
            await ended
        finally:
            del ended  # its exception's traceback holds this frame

    def open(self) -> None:
        """Give the transport to the protocol. Reading began with the handshake."""
        self._tls.protocol.connection_made(self)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """See `TcpTransport`."""
        self._tls.protocol = cast(asyncio.Protocol, protocol)

    def shortcut(self) -> None:
        """Return None: the shortcut past the interpreter reads no TLS."""

    def has_unread(self) -> bool:
        """See `has_unread`. A part of a record counts too: there is no telling what it will be."""
        return self._tls.is_within_record or super().has_unread()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """See `TcpTransport`."""
        if self._is_closed:
            return
        try:
            self._tls.write(data)
        except ssl.SSLError as error:  # reported in a callback: the caller of `write` expects none
            self._loop.call_soon(self._close_and_report, error)

    def send(self, data: bytes) -> None:
        """Send encrypted bytes."""
        super().write(data)

    def abort(self, *, reset: bool = False) -> None:
        """See `TcpTransport`."""
        self._tls.detach()
        super().abort(reset=reset)

    def close_and_report(self, error: Exception | None) -> None:
        """Close, and tell the protocol that the connection is lost."""
        self._close_and_report(error)


class _Tls(asyncio.Protocol):
    """The protocol of the encrypted bytes: decrypts them for the protocol of the plain ones."""

    __slots__ = (
        "_incoming",
        "_outgoing",
        "_record_head",
        "_record_rest_bytes",
        "_reply_bytes",
        "_ssl_object",
        "_transport",
        "handshake_ended",
        "protocol",
    )

    def __init__(
        self, transport: TlsTransport, protocol: asyncio.Protocol, context: ssl.SSLContext, server_name: str
    ) -> None:
        self._transport: TlsTransport | None = transport
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._ssl_object = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_name)
        self._record_head = b""  # of a record, while it is not whole
        self._record_rest_bytes = 0  # of a record, behind its head
        self._reply_bytes = 0  # sent by TLS itself since the peer last had read everything
        self.protocol = protocol
        self.handshake_ended: asyncio.Future[None] | None = None
        """The result of the handshake while it goes on; None before it and after it."""

    @property
    def is_within_record(self) -> bool:
        """Whether the last byte read ended no record."""
        return bool(self._record_head or self._record_rest_bytes)

    def detach(self) -> None:
        """Forget the transport, which is closed: the two would keep each other until the garbage collector runs."""
        self._transport = None

    def continue_handshake(self) -> bool:
        """Go on with the handshake as far as the bytes allow. Return whether it is done."""
        try:
            self._ssl_object.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return False
        except ssl.SSLError as error:  # a certificate that does not verify, too
            self._flush()  # the alert that tells the peer why
            self._end_handshake(error)
            return False
        self._flush()
        self._end_handshake(None)
        return True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and send."""
        left = memoryview(data)
        while left:
            left = left[self._ssl_object.write(left) :]
        self._flush()

    def data_received(self, data: bytes) -> None:
        """Decrypt one read, and give its plain bytes to the protocol in one call."""
        self._follow_records(data)
        self._incoming.write(data)
        if self.handshake_ended is not None and not self.continue_handshake():
            return
        pieces: list[bytes] = []
        is_over, error = False, None
        try:
            while piece := self._ssl_object.read(_PIECE_BYTES):
                pieces.append(piece)
            is_over = True  # close_notify (RFC 8446, 6.1)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as failure:
            error = failure.with_traceback(None)  # which would hold this frame, and this frame it
        if not self._flush_replies():
            return
        if pieces:
            self.protocol.data_received(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if is_over and self._transport is not None:
            self.protocol.eof_received()
        if (is_over or error is not None) and self._transport is not None:
            self._transport.close_and_report(error)

    def eof_received(self) -> None:
        """Pass on the end of the connection. Many servers send no close_notify first; the answer's own end counts."""
        if self.handshake_ended is None:
            self.protocol.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass it on, or let `TlsTransport.handshake` raise it."""
        if self.handshake_ended is None:
            self.protocol.connection_lost(exc)
        else:
            self._end_handshake(exc or ConnectionResetError("closed in the TLS handshake"))

    def pause_writing(self) -> None:
        """Pass it on."""
        self.protocol.pause_writing()

    def resume_writing(self) -> None:
        """Pass it on."""
        self.protocol.resume_writing()

    def _end_handshake(self, error: Exception | None) -> None:
        handshake_ended, self.handshake_ended = self.handshake_ended, None
        if handshake_ended is None or handshake_ended.done():  # nobody waits any more
            return
        if error is None:
            handshake_ended.set_result(None)
        else:
            handshake_ended.set_exception(error)

    def _flush(self) -> None:
        data = self._outgoing.read()
        if data and self._transport is not None:
            self._transport.send(data)

    def _flush_replies(self) -> bool:
        """Send what TLS answers by itself: new keys, an alert. Close when a peer that reads nothing asks for too much.

        Return whether the connection goes on.
        """
        transport, data = self._transport, self._outgoing.read()
        if transport is None or not data:
            return True
        transport.send(data)
        self._reply_bytes = self._reply_bytes + len(data) if transport.get_write_buffer_size() else 0
        if self._reply_bytes <= _MAX_REPLY_BYTES:
            return True
        transport.close_and_report(ConnectionError("the router asks for TLS messages that it does not read"))
        return False

    def _follow_records(self, data: bytes) -> None:
        """Note whether a record ends where these bytes end."""
        at = 0
        while at < len(data):
            if self._record_rest_bytes:
                step = min(self._record_rest_bytes, len(data) - at)
                self._record_rest_bytes -= step
            else:
                step = min(_RECORD_HEAD_BYTES - len(self._record_head), len(data) - at)
                self._record_head += data[at : at + step]
                if len(self._record_head) == _RECORD_HEAD_BYTES:
                    self._record_rest_bytes = int.from_bytes(self._record_head[3:], "big")
                    self._record_head = b""
            at += step
