"""Connections to the router that wait for the next request (RFC 9112, 9.3).

A connection is kept only when its answer ended with a whole message and no byte after it, and at most for
`router.keep_idle_seconds`. Right before a connection is used, the kernel is asked once more whether anything is unread.
The microseconds between that check and the write remain a risk. If the router closes in them, the caller gets an error,
and the request is never sent a second time (RFC 9110, 9.2.2). If the router sends unrequested bytes in them, they count
as the answer, since HTTP/1.1 has nothing to tell answers apart.

A router that closes after each answer without saying so would leave every caller with that error. So no connection is
used again until one has been seen to stay open for the whole `seconds`. This must be seen anew after the router closed
a waiting connection, or gave no answer on one that had waited. After the second time without an answer, with no answer
on such a connection in between, no connection is kept any more.

Unrequested bytes of a router could make one caller's answer pass for another's (RFC 9112, 9.2). So after the first such
byte no connection is kept any more.
"""

import asyncio

from eidproxy.router.transport import TcpTransport
from eidproxy.timeouts import TimeoutQueue

_MAX_KEPT = 32
"""The most connections kept. Each takes a descriptor that serves no caller; see `server.connection_limit`."""

_MAX_UNANSWERED = 2
"""Unanswered requests in a row that end keeping. One may be chance: a router that stopped between check and write."""


class _IdleConnection(asyncio.Protocol):
    """The protocol of one kept connection."""

    __slots__ = ("_connections", "transport")

    def __init__(self, connections: "IdleConnections", transport: TcpTransport) -> None:
        self._connections = connections
        self.transport = transport

    def data_received(self, data: bytes) -> None:  # noqa: ARG002
        self._connections.stop_keeping()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._connections.drop(self)


class IdleConnections:
    """The kept connections, each for at most `seconds`; 0 keeps none. To be built inside a running loop."""

    is_trusted = False
    """Whether the router was seen to leave a connection open for the whole `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._idle = TimeoutQueue(seconds, self._on_timeout, patient=True)
        self._unanswered_in_row = 0

    def keep(self, transport: TcpTransport) -> None:
        """Keep a connection whose answer is over, for the next request or only to see whether the router closes it."""
        if len(self._idle) < (_MAX_KEPT if self.is_trusted else 1):
            idle = _IdleConnection(self, transport)
            transport.set_protocol(idle)
            try:
                self._idle.start(idle)
            except BaseException:
                self._idle.stop(idle)
                raise
        else:
            transport.abort()

    def take(self) -> TcpTransport | None:
        """Remove and return the newest connection; None when there is none that can be used."""
        idle = self._idle.newest() if self.is_trusted else None
        if idle is None:
            return None
        if idle.transport.has_unread() or not idle.transport.is_sound:
            self._discard(idle)
            return None
        self._idle.stop(idle)
        return idle.transport

    def note_answered(self) -> None:
        """Note an answered request on a connection that had waited."""
        self._unanswered_in_row = 0

    def note_unanswered(self) -> None:
        """Note a request on a connection that had waited, and got no byte of an answer."""
        self._unanswered_in_row += 1
        if self._unanswered_in_row < _MAX_UNANSWERED:
            self.reset_trust()
        else:
            self.stop_keeping()

    def drop(self, idle: _IdleConnection) -> None:
        """Close a connection that the router closed, and all others (see `reset_trust`)."""
        self._idle.stop(idle)
        idle.transport.abort()
        self.reset_trust()

    def reset_trust(self) -> None:
        """Close all connections, and use none again until one is seen to stay open."""
        self.is_trusted = False
        self.close()

    def stop_keeping(self) -> None:
        """Close all connections and keep none from now on."""
        self.seconds = 0.0
        self.reset_trust()

    def close(self) -> None:
        """Close all connections."""
        while (idle := self._idle.newest()) is not None:
            self._idle.stop(idle)
            idle.transport.abort()

    def _on_timeout(self, idle: _IdleConnection) -> None:
        """Close a connection whose time is over. Trust the router unless an end or unrequested bytes are unread."""
        try:
            if idle.transport.has_unread() or not idle.transport.is_sound:
                self._discard(idle)
            else:
                self.is_trusted = self.seconds > 0
        finally:
            idle.transport.abort()

    def _discard(self, idle: _IdleConnection) -> None:
        """Close a connection that cannot be used, after `_IdleConnection` has read and judged what is unread on it."""
        self._idle.stop(idle)
        try:
            self.reset_trust()
            idle.transport.read_now()
        finally:
            idle.transport.abort()
