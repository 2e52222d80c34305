"""All open connections of callers: the timeouts of those that wait for their caller, and the memory that all share."""

import time
from email.utils import formatdate
from enum import IntEnum, auto
from operator import methodcaller
from typing import Protocol

from eidproxy.errors import Refusal
from eidproxy.timeouts import TimeoutQueue

MAX_LENT_BYTES = 32 * 1024 * 1024
"""Bytes lent to all slow readers together. Without a loan, the router is read no further, as if the buffer was full."""

MAX_UNFINISHED_BYTES = 64 * 1024 * 1024
"""Memory that all incomplete request bodies together may take (contract, 2)."""


class State(IntEnum):
    """What a connection waits for. An IntEnum, since a plain Enum is hashed by a slow Python function."""

    IDLE = auto()
    """Waiting for the first byte of a request."""
    HEAD = auto()
    """Waiting for the rest of the request head."""
    BODY = auto()
    """Waiting for the rest of the request body."""
    BUSY = auto()
    """The request is complete; waiting until the service has written its answer."""
    FLUSHING = auto()
    """The answer is written; waiting until the caller has read it. The next request may follow."""
    CLOSING = auto()
    """Waiting until the unsent bytes are sent, then the connection closes. Nothing more is read."""
    LINGERING = auto()
    """Refused while the request still arrives; waiting until the caller closes. Closing first would lose the answer."""
    CLOSED = auto()
    """The connection is gone, or about to be."""


WAIT_SECONDS = {State.IDLE: 15.0, State.HEAD: 5.0, State.BODY: 10.0, State.LINGERING: 2.0}
"""How long a connection waits for its caller in each state, in seconds."""


class OpenConnection(Protocol):
    """One of the open connections; `Connection` implements it."""

    waiting_since: float

    @property
    def owes_answer(self) -> bool:
        """Whether an answer is still to be written, or to be read by the caller."""

    def expire(self) -> None:
        """End a wait that took too long."""

    def refuse_unfinished(self, refusal: Refusal) -> None:
        """Refuse an incomplete request; do nothing when there is none."""

    def drain(self) -> None:
        """Refuse an incomplete request, and make the next answer the last: the server stops."""

    def close(self) -> None:
        """Send what is written, then close: the server has stopped."""

    def abort(self) -> None:
        """Close at once, drop what is unsent, and tell the handler."""


class Connections:
    """All open connections, the timeouts of those that wait for their caller, and the memory that all share.

    A connection that waits for its caller is closed when its time is up, or when there are more than `limit`
    connections: then the one that has waited longest is closed.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.open: set[OpenConnection] = set()
        self.draining = False
        """Whether the server stops: the next answer of each connection is its last."""
        self.unfinished_bytes = 0
        """Bytes that incomplete request bodies have allocated."""
        self.lent_bytes = 0
        """Bytes lent to slow readers for their unsent answers."""
        self._timeouts: dict[State, TimeoutQueue[OpenConnection]] = {
            state: TimeoutQueue(seconds, methodcaller("expire"), patient=True)
            for state, seconds in WAIT_SECONDS.items()
        }
        self._date = b""
        self._date_second = 0

    def add(self, connection: OpenConnection) -> None:
        """Add a new connection. Over `limit`, abort the one that has waited longest for its caller."""
        self.open.add(connection)
        if len(self.open) > self.limit:
            candidates = [first for timeouts in self._timeouts.values() if (first := timeouts.oldest()) is not None]
            min(candidates, key=lambda first: first.waiting_since, default=connection).abort()

    def remove(self, connection: OpenConnection) -> None:
        """Forget a connection that is gone."""
        self.open.discard(connection)

    def start_timeout(self, connection: OpenConnection, state: State) -> None:
        """Start the timeout of a state in which a connection waits for its caller."""
        self._timeouts[state].start(connection)

    def stop_timeout(self, connection: OpenConnection, state: State) -> None:
        """Stop the timeout of a state that a connection leaves."""
        self._timeouts[state].stop(connection)

    def drain(self) -> None:
        """Refuse incomplete requests, and make the next answer of each connection its last: the server stops."""
        self.draining = True
        for connection in list(self.open):
            connection.drain()

    def count_unfinished(self, more_bytes: int) -> None:
        """Count memory of an incomplete body. Over the limit, refuse the bodies that have been arriving longest."""
        self.unfinished_bytes += more_bytes
        while self.unfinished_bytes > MAX_UNFINISHED_BYTES:
            oldest = self._timeouts[State.BODY].oldest()
            if oldest is None:
                break
            oldest.refuse_unfinished(Refusal("overloaded"))

    def lend(self, size: int) -> bool:
        """Lend a slow reader `size` bytes if they are free, and return whether. A sole loan may exceed the limit."""
        if self.lent_bytes + size > MAX_LENT_BYTES and self.lent_bytes:
            return False
        self.lent_bytes += size
        return True

    def date(self) -> bytes:
        """Return the value of the `Date` header (RFC 9110, 5.6.7), formatted once a second."""
        now = int(time.time())
        if now != self._date_second:
            self._date_second, self._date = now, formatdate(now, usegmt=True).encode()
        return self._date
