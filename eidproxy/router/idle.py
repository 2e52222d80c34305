"""Connections to the router that wait for the next request (RFC 9112, 9.3).

A connection is kept only when its answer ended with a whole message and nothing behind it, and only for so long
(`router.keep_idle_seconds`). Right before it is used the kernel is asked once more whether anything lies unread. What
is left to go wrong are the microseconds between that look and the write: a router that closes in them leaves the caller
with an error, and the request is never sent a second time (RFC 9110, 9.2.2); one that speaks in them, unasked, is taken
to answer, since HTTP/1.1 has nothing to tell answers apart.

A router that closes after each answer without saying so would leave every caller with that error. So nothing is used
again until one connection has been seen to stay open for the whole `seconds`, and that has to be seen anew after the
router closed one that waited, or gave no answer on one that had waited. The second time that it gives none, with no
answer on such a connection in between, nothing is kept any more.

A router that says something unasked could have one caller's answer taken for another's (RFC 9112, 9.2). So after its
first such byte nothing is kept any more.
"""

import asyncio

from eidproxy.router.transport import TcpTransport
from eidproxy.timeouts import TimeoutQueue

_MOST = 32
"""How many are kept. Each is a descriptor that no caller stands behind; see `server.connection_limit`."""

_MOST_UNANSWERED = 2
"""One may be chance: a router that stopped between the look and the write."""


class _Idle(asyncio.Protocol):
    """Listens to one kept connection."""

    __slots__ = ("_connections", "transport")

    def __init__(self, connections: "IdleConnections", transport: TcpTransport) -> None:
        self._connections = connections
        self.transport = transport

    def data_received(self, data: bytes) -> None:  # noqa: ARG002
        self._connections.distrust()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._connections.drop(self)


class IdleConnections:
    """Keeps connections for `seconds`; 0 keeps none. To be built inside a running loop."""

    is_trusted = False
    """The router was seen to leave a connection open."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._idle = TimeoutQueue(seconds, self._outlast, patient=True)
        self._unanswered = 0

    def keep(self, transport: TcpTransport) -> None:
        """Keep a connection whose answer is over: for the next request, or only to see what the router does with it."""
        if len(self._idle) < (_MOST if self.is_trusted else 1):
            idle = _Idle(self, transport)
            transport.hand_over(idle)
            try:
                self._idle.start(idle)
            except BaseException:
                self._idle.stop(idle)
                raise
        else:
            transport.abort()

    def take(self) -> TcpTransport | None:
        """The newest connection that can be used, which is kept no longer. None when there is none."""
        idle = self._idle.last() if self.is_trusted else None
        if idle is None:
            return None
        if idle.transport.unread() or not idle.transport.is_sound:
            self._refuse(idle)
            return None
        self._idle.stop(idle)
        return idle.transport

    def answered(self) -> None:
        """A request on a connection that had waited was answered."""
        self._unanswered = 0

    def unanswered(self) -> None:
        """A request on a connection that had waited got no byte of an answer."""
        self._unanswered += 1
        if self._unanswered < _MOST_UNANSWERED:
            self.doubt()
        else:
            self.distrust()

    def drop(self, idle: _Idle) -> None:
        """Close one connection, which the router closed."""
        self._idle.stop(idle)
        idle.transport.abort()
        self.doubt()

    def doubt(self) -> None:
        """Close all, and use none before one is seen to stay open."""
        self.is_trusted = False
        self.close()

    def distrust(self) -> None:
        """Keep nothing from now on."""
        self.seconds = 0.0
        self.doubt()

    def close(self) -> None:
        """Close all."""
        while (idle := self._idle.last()) is not None:
            self._idle.stop(idle)
            idle.transport.abort()

    def _outlast(self, idle: _Idle) -> None:
        """Close one whose time is over: the router left it open, unless that is still to be read."""
        try:
            if idle.transport.unread() or not idle.transport.is_sound:
                self._refuse(idle)
            else:
                self.is_trusted = self.seconds > 0
        finally:
            idle.transport.abort()

    def _refuse(self, idle: _Idle) -> None:
        """Have what lies unread on a connection read and judged, and close it."""
        self._idle.stop(idle)
        try:
            self.doubt()
            idle.transport.read_on()
        finally:
            idle.transport.abort()
