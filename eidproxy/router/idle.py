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

_MOST = 32
"""The most connections kept. Each takes a descriptor that serves no caller; see `server.connection_limit`."""

_MOST_UNANSWERED = 2
"""Unanswered requests in a row that end keeping. One may be chance: a router that stopped between check and write."""


class _Idle(asyncio.Protocol):
    """The protocol of one kept connection."""

    __slots__ = ("_connections", "transport")

    def __init__(self, connections: "IdleConnections", transport: TcpTransport) -> None:
        self._connections = connections
        self.transport = transport

    def data_received(self, data: bytes) -> None:  # noqa: ARG002
        self._connections.distrust()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._connections.drop(self)


class IdleConnections:
    """The kept connections, each for at most `seconds`; 0 keeps none. To be built inside a running loop."""

    is_trusted = False
    """Whether the router was seen to leave a connection open for the whole `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._idle = TimeoutQueue(seconds, self._outlast, patient=True)
        self._unanswered = 0

    def keep(self, transport: TcpTransport) -> None:
        """Keep a connection whose answer is over, for the next request or only to see whether the router closes it."""
        if len(self._idle) < (_MOST if self.is_trusted else 1):
            idle = _Idle(self, transport)
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
        idle = self._idle.last() if self.is_trusted else None
        if idle is None:
            return None
        if idle.transport.unread() or not idle.transport.is_sound:
            self._refuse(idle)
            return None
        self._idle.stop(idle)
        return idle.transport

    def answered(self) -> None:
        """Note an answered request on a connection that had waited."""
        self._unanswered = 0

    def unanswered(self) -> None:
        """Note a request on a connection that had waited, and got no byte of an answer."""
        self._unanswered += 1
        if self._unanswered < _MOST_UNANSWERED:
            self.doubt()
        else:
            self.distrust()

    def drop(self, idle: _Idle) -> None:
        """Close a connection that the router closed, and all others (see `doubt`)."""
        self._idle.stop(idle)
        idle.transport.abort()
        self.doubt()

    def doubt(self) -> None:
        """Close all connections, and use none again until one is seen to stay open."""
        self.is_trusted = False
        self.close()

    def distrust(self) -> None:
        """Close all connections and keep none from now on."""
        self.seconds = 0.0
        self.doubt()

    def close(self) -> None:
        """Close all connections."""
        while (idle := self._idle.last()) is not None:
            self._idle.stop(idle)
            idle.transport.abort()

    def _outlast(self, idle: _Idle) -> None:
        """Close a connection whose time is over. Trust the router unless an end or unrequested bytes are unread."""
        try:
            if idle.transport.unread() or not idle.transport.is_sound:
                self._refuse(idle)
            else:
                self.is_trusted = self.seconds > 0
        finally:
            idle.transport.abort()

    def _refuse(self, idle: _Idle) -> None:
        """Close a connection that cannot be used, after `_Idle` has read and judged what is unread on it."""
        self._idle.stop(idle)
        try:
            self.doubt()
            idle.transport.read_now()
        finally:
            idle.transport.abort()
