"""Events that are passed on without the interpreter while each is as was proved (DESIGN, 73).

`_splice` is an extension in C that a machine with a compiler builds; where it is not, every event goes through Python.
A `Shortcut` lasts until the router sends something else, the caller reads too slowly, or anybody here looks at the
answer: then what was counted is told, and what was read and not passed on is read here.
"""

import asyncio
import errno
import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

try:
    from eidproxy import _splice
except ImportError:  # not built: no compiler, or no Linux
    IS_BUILT = False
else:
    IS_BUILT = True
if TYPE_CHECKING:
    from eidproxy._splice import Poller as _Poller

READ_BYTES = 64 * 1024
"""At most so much of a flooding peer comes before everybody else has a turn."""

Template = tuple[bytes, bytes, bytes, bytes]
"""What stands before and after the text in the events of a stream, and what is to stand there for the caller."""


class Passed(NamedTuple):
    """What was passed on since it was told last."""

    events: int
    bytes_in: int
    """Of the events as they came."""
    bytes_out: int
    """Of the events as they went, without the framing of chunks."""
    at: float
    """When the last one went, on the loop's clock."""
    seconds: float
    """The sum of the times between two writes."""
    counts: list[int]
    """How many of those times fell between two bounds."""


class Shortcuts:
    """All of them, of one selector."""

    def __init__(self, epoll: int, bounds: tuple[float, ...], most: int) -> None:
        """`epoll` is a descriptor; `bounds` are those of the histogram of times between two writes.

        At most so many run at a time: each takes a descriptor.
        """
        self.poller: _Poller = _splice.Poller(epoll, bounds, most)
        self.running: set[Shortcut] = set()

    def settle(self) -> None:
        """Have all tell what they counted."""
        for shortcut in self.running:
            shortcut.settle()

    def end(self) -> None:
        """End all."""
        with ExitStack() as all_of_them:  # whatever fails on the way
            for shortcut in self.running:
                all_of_them.callback(shortcut.end)


class Shortcut:
    """The way of one connection past the interpreter, which it takes at times."""

    __slots__ = ("_all", "_descriptor", "_error", "_read_soon", "_taken", "_tell", "limit")

    def __init__(self, shortcuts: Shortcuts, descriptor: int, read_soon: Callable[[], None]) -> None:
        """`read_soon` has `read` called soon: the selector does not know of what was read and not passed on."""
        self._all = shortcuts
        self._descriptor = descriptor
        self._read_soon = read_soon
        self._tell: Callable[[Passed], None] | None = None
        """Set while it runs."""
        self._error = 0
        self._taken = b""
        """What was read and not passed on. A chunk of which a part was passed on is a shorter one here."""
        self.limit = READ_BYTES
        """How much the next read of the socket in Python may bring."""

    def begin(
        self, caller: asyncio.Transport, template: Template, sent_at: float, budget: int, tell: Callable[[Passed], None]
    ) -> bool:
        """Pass events on from the next read on, at most `budget` bytes of them. False when it cannot be.

        To be called where the next byte begins a chunk, and an event, and nothing is unsent to the caller. `sent_at` is
        when the last write to it was.
        """
        sock = caller.get_extra_info("socket")
        if self._tell is not None or self.has_taken or sock is None:
            return False
        poller = self._all.poller
        if not poller.arm(self._descriptor, sock.fileno(), caller, template, sent_at, budget):
            return False
        self._tell = tell
        self._all.running.add(self)
        return True

    def settle(self) -> None:
        """Tell what was passed on since the last time."""
        if self._tell is not None and (passed := self._all.poller.take(self._descriptor)) is not None:
            self._tell(Passed(*passed))

    @property
    def has_taken(self) -> bool:
        """Whether something was taken from the socket that `read` did not give yet: bytes, or an error."""
        return bool(self._taken or self._error)

    def end(self) -> None:
        """Pass nothing more on. Has `read` called soon for what is unread."""
        if self._tell is not None:
            try:
                self._finish()
            finally:
                if self.has_taken:
                    self._read_soon()

    def read(self) -> bytes:
        """End, and read in Python: what was taken already, or else what the socket has. Raises OSError."""
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
            self.settle()
        finally:
            self._tell = None
            self._all.running.discard(self)
            self._error = errno.EIO  # should the next step fail, what was read is lost
            self._taken, self._error = self._all.poller.disarm(self._descriptor)
