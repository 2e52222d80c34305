"""Events passed on in C, past the interpreter, while each has the form that was proved (DESIGN, 73).

`_splice` is a C extension, built where there is a compiler; without it every event goes through Python. A `Shortcut`
runs until the router sends something else, the caller reads too slowly, or Python code needs the state of the answer.
Then its counts are reported, and Python reads the bytes that were read and not passed on.
"""

import asyncio
import errno
import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

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
    at: float
    """When the last one was sent, on the loop's clock."""
    seconds: float
    """The sum of the intervals between two writes."""
    counts: list[int]
    """How many of those intervals fell between two bounds of the histogram."""


class Shortcuts:
    """All shortcuts of one selector."""

    def __init__(self, epoll: int, bounds: tuple[float, ...], most: int) -> None:
        """`epoll` is a descriptor; `bounds` are the histogram's for intervals between two writes, in seconds.

        At most `most` shortcuts run at a time: each takes a descriptor.
        """
        self.poller: _Poller = _splice.Poller(epoll, bounds, most)
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

    __slots__ = ("_descriptor", "_error", "_read_soon", "_shortcuts", "_taken", "_tell", "limit")

    def __init__(self, shortcuts: Shortcuts, descriptor: int, read_soon: Callable[[], None]) -> None:
        """`read_soon` schedules a call of `read`: the selector does not report bytes that were already read."""
        self._shortcuts = shortcuts
        self._descriptor = descriptor
        self._read_soon = read_soon
        self._tell: Callable[[Passed], None] | None = None
        """Reports counts. Set while the shortcut runs, else None."""
        self._error = 0
        self._taken = b""
        """Bytes read and not passed on. The rest of a chunk that was passed on in part has a size line of its own."""
        self.limit = READ_BYTES
        """The most bytes that the next read of the socket in Python may take."""

    def begin(
        self, caller: asyncio.Transport, template: Template, sent_at: float, budget: int, tell: Callable[[Passed], None]
    ) -> bool:
        """Pass events on from the next read on, at most `budget` bytes of them. Return False if that is not possible.

        To be called where the next byte begins a chunk and an event, and nothing is unsent to the caller. `sent_at` is
        the time of the last write to the caller, on the loop's clock. `tell` is called with the counts.
        """
        sock = caller.get_extra_info("socket")
        if self._tell is not None or self.has_taken or sock is None:
            return False
        poller = self._shortcuts.poller
        if not poller.arm(self._descriptor, sock.fileno(), caller, template, sent_at, budget):
            return False
        self._tell = tell
        self._shortcuts.running.add(self)
        return True

    def flush_counts(self) -> None:
        """Report what was passed on since the last report."""
        if self._tell is not None and (passed := self._shortcuts.poller.take(self._descriptor)) is not None:
            self._tell(Passed(*passed))

    @property
    def has_taken(self) -> bool:
        """Whether C took something from the socket that `read` has not yet returned or raised: bytes, or an error."""
        return bool(self._taken or self._error)

    def end(self) -> None:
        """Stop passing events on, and schedule a `read` of the bytes that were taken and not passed on."""
        if self._tell is not None:
            try:
                self._finish()
            finally:
                if self.has_taken:
                    self._read_soon()

    def read(self) -> bytes:
        """End the shortcut and return the bytes that it took and did not pass on, else those of a read of the socket.

        Raises OSError, also for an error that C met.
        """
        if self._tell is not None:
            self._finish()
        if self._error:
            error, self._error = self._error, 0
            raise OSError(error, os.strerror(error))
        if self._taken:
            taken, self._taken = self._taken, b""
            return taken
        limit, self.limit = self.limit, READ_BYTES
        return os.read(self._descriptor, limit)

    def _finish(self) -> None:
        try:
            self.flush_counts()
        finally:
            self._tell = None
            self._shortcuts.running.discard(self)
            self._error = errno.EIO  # if `disarm` raises, the bytes that were read are lost
            self._taken, self._error = self._shortcuts.poller.disarm(self._descriptor)
