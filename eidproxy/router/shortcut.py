"""Events passed on in C, past the interpreter, while each has the form that was proved (DESIGN, 73).

`_splice` is a C extension, built where there is a compiler; without it every event goes through Python. A `Shortcut`
runs until the router sends something else, the caller reads too slowly, or Python code needs the state of the answer.
Then its counts are reported, and Python reads the bytes that were read and not passed on.
"""

import asyncio
import errno
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple, Protocol

try:
    from eidproxy import _splice
except ImportError:  # not built: no compiler, or not Linux
    IS_BUILT = False
else:
    IS_BUILT = True
if TYPE_CHECKING:
    from eidproxy._splice import Poller as _Poller

READ_BYTES = 64 * 1024
"""The most that one read takes from a flooding peer before other sockets are served."""

Template = tuple[bytes, bytes, bytes, bytes]
"""The bytes before and after the text in a stream's events, and those that replace them for the caller."""


class Passed(NamedTuple):
    """The counts of what was passed on since the last report."""

    events: int
    bytes_in: int
    """Size of the events as received."""
    bytes_out: int
    """Size of the events as sent, without the framing of chunks."""
    last_sent_at: float
    """When the last one was sent, on the loop's clock."""
    interval_seconds: float
    """The sum of the intervals between two writes."""
    interval_counts: list[int]
    """How many of those intervals fell between two bounds of the histogram."""


class Reader(Protocol):
    """The transport of a connection to the router, as its shortcut calls it."""

    def read_soon(self) -> None:
        """Schedule a call of `Shortcut.read`: the selector does not report bytes that were already read."""


class Counter(Protocol):
    """What counts the events of one answer."""

    def count_passed(self, passed: Passed) -> None:
        """Count events that were passed on past the interpreter."""


class Shortcuts:
    """All shortcuts of one selector."""

    def __init__(self, epoll: int, bounds: tuple[float, ...], max_running: int) -> None:
        """`epoll` is a descriptor; `bounds` are the histogram's for intervals between two writes, in seconds.

        At most `max_running` shortcuts run at a time: each takes a descriptor.
        """
        self.poller: _Poller = _splice.Poller(epoll, bounds, max_running)
        self.running: set[Shortcut] = set()

    def flush_counts(self) -> None:
        """Have all running shortcuts report their counts."""
        for shortcut in self.running:
            shortcut.flush_counts()

    def end(self) -> None:
        """End all running shortcuts."""
        with ExitStack() as all_of_them:  # ends every one, even if another raises
            for shortcut in self.running:
                all_of_them.callback(shortcut.end)


class Shortcut:
    """The way past the interpreter for one connection to the router. It may run many times, with gaps."""

    __slots__ = ("_counter", "_descriptor", "_error", "_pending", "_reader", "_shortcuts", "next_read_bytes")

    def __init__(self, shortcuts: Shortcuts, descriptor: int, reader: Reader) -> None:
        self._shortcuts = shortcuts
        self._descriptor = descriptor
        self._reader = reader
        self._counter: Counter | None = None
        """Set while the shortcut runs, else None."""
        self._error = 0
        self._pending = b""
        """Bytes read and not passed on. The rest of a chunk that was passed on in part has a size line of its own."""
        self.next_read_bytes = READ_BYTES
        """The most bytes that the next read of the socket in Python may take."""

    def begin(
        self,
        caller: asyncio.Transport,
        template: Template,
        sent_at: float,
        budget_bytes: int,
        counter: Counter,
    ) -> bool:
        """Pass events on from the next read on, at most `budget_bytes` of them. Return False if that is not possible.

        To be called where the next byte begins a chunk and an event, and nothing is unsent to the caller. `sent_at` is
        the time of the last write to the caller, on the loop's clock. `counter` is told what was passed on.
        """
        sock = caller.get_extra_info("socket")
        if self._counter is not None or self.has_pending or sock is None:
            return False
        poller = self._shortcuts.poller
        if not poller.arm(self._descriptor, sock.fileno(), caller, template, sent_at, budget_bytes):
            return False
        self._counter = counter
        self._shortcuts.running.add(self)
        return True

    def flush_counts(self) -> None:
        """Report what was passed on since the last report."""
        if self._counter is not None and (passed := self._shortcuts.poller.take(self._descriptor)) is not None:
            self._counter.count_passed(Passed(*passed))

    @property
    def has_pending(self) -> bool:
        """Whether C took something from the socket that `read` has not yet returned or raised: bytes, or an error."""
        return bool(self._pending or self._error)

    def end(self) -> None:
        """Stop passing events on, and schedule a `read` of the bytes that were taken and not passed on."""
        if self._counter is not None:
            try:
                self._disarm()
            finally:
                if self.has_pending:
                    self._reader.read_soon()

    def read(self) -> bytes:
        """End the shortcut and return the bytes that it took and did not pass on, else those of a read of the socket.

        Raises OSError, also for an error that C met.
        """
        if self._counter is not None:
            self._disarm()
        if self._error:
            error, self._error = self._error, 0
            raise OSError(error, os.strerror(error))
        if self._pending:
            taken, self._pending = self._pending, b""
            return taken
        limit, self.next_read_bytes = self.next_read_bytes, READ_BYTES
        return os.read(self._descriptor, limit)

    def _disarm(self) -> None:
        try:
            self.flush_counts()
        finally:
            self._counter = None
            self._shortcuts.running.discard(self)
            self._error = errno.EIO  # if `disarm` raises, the bytes that were read are lost
            self._pending, self._error = self._shortcuts.poller.disarm(self._descriptor)
