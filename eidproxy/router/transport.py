"""A transport over a plain TCP socket that we connect ourselves.

The loop makes a coroutine, a task and two futures for each connection, and many requests make one. Here a
connection within the machine is there when `connect` returns, so a request goes out in the callback in which it came
in; and the socket is closed where `abort` is called, before the slot is given on, not a turn later.
"""

import asyncio
import errno
import os
import select
import selectors
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

from eidproxy.keepalive import enable_keepalive
from eidproxy.router.shortcut import READ_BYTES, Shortcut, Shortcuts

_SMALL_BYTES = 1024
"""What is longer may take several segments, of which Nagle's algorithm would keep back the last (RFC 9293, 3.7.4)."""

_READY_AT_ONCE = 64
"""Sockets that one look at the selector brings, so that a turn ends in time (DESIGN, 40)."""
_TURN_SECONDS = 0.01
"""How long one turn of the loop serves the router's sockets; those that are ready then come first in the next."""

_NONBLOCK = getattr(socket, "SOCK_NONBLOCK", 0)
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: closing throws away what is unsent and resets the connection."""


def has_unread(descriptor: int) -> bool:
    """Whether the kernel has something that was not read yet: bytes, the end, or an error.

    After a standstill timers run before reads: whoever is about to be called silent may have spoken long ago.
    """
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def reset_on_close(sock: Any) -> None:
    """Have the close of a socket reset its connection: a peer that waits for nothing learns of it a step sooner."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


class Poller(Protocol):
    """A selector for reading, itself one descriptor for the loop. It tells of what is there until that is read."""

    shortcuts: Shortcuts | None
    """Those that it has, when it can pass events on by itself."""

    def fileno(self) -> int:
        """The descriptor. It is readable while one of those added is."""

    def add(self, descriptor: int) -> None:
        """Wait for this one. Raises OSError."""

    def remove(self, descriptor: int) -> None:
        """Wait for it no longer."""

    def forget(self, descriptor: int) -> None:
        """It is about to be closed."""

    def ready(self, now: float) -> Sequence[int]:
        """Some that can be read now, without waiting. Those that are left out come later. `now`: the loop's clock."""


class EpollPoller:
    """Linux. A closed descriptor leaves an epoll by itself."""

    shortcuts: Shortcuts | None = None

    def __init__(self) -> None:
        """Raises OSError when there is no descriptor left."""
        self._epoll = select.epoll()
        self.fileno = self._epoll.fileno
        self.remove = self._epoll.unregister

    def add(self, descriptor: int) -> None:
        """See `Poller`."""
        self._epoll.register(descriptor, select.EPOLLIN)

    def forget(self, descriptor: int) -> None:
        """See `Poller`."""

    def ready(self, now: float) -> Sequence[int]:  # noqa: ARG002
        """See `Poller`."""
        return [descriptor for descriptor, _ in self._epoll.poll(0, _READY_AT_ONCE)]


class SplicePoller(EpollPoller):
    """Linux, with the extension: what it can pass on by itself is not told of."""

    def __init__(self, bounds: tuple[float, ...], most: int) -> None:
        """See `Shortcuts`. Raises OSError when there is no descriptor left."""
        super().__init__()
        self.shortcuts = Shortcuts(self._epoll.fileno(), bounds, most)
        self.ready = self.shortcuts.poller.ready  # type: ignore[method-assign,assignment]  # no frame of Python between


class SelectorPoller:
    """Everywhere else: the standard library's selector, which is kqueue on macOS."""

    shortcuts = None

    def __init__(self) -> None:
        """Raises OSError when there is no descriptor left."""
        self._selector = selectors.DefaultSelector()
        self.fileno: Callable[[], int] = self._selector.fileno  # select and poll have none

    def add(self, descriptor: int) -> None:
        """See `Poller`."""
        self._selector.register(descriptor, selectors.EVENT_READ)

    def remove(self, descriptor: int) -> None:
        """See `Poller`."""
        self._selector.unregister(descriptor)

    forget = remove

    def ready(self, now: float) -> Sequence[int]:  # noqa: ARG002
        """See `Poller`."""
        return [key.fd for key, _ in self._selector.select(0)]


default_poller: type[EpollPoller | SelectorPoller] = EpollPoller if hasattr(select, "epoll") else SelectorPoller


class ReadPoller:
    """The sockets that are waited for, in a selector of our own that the loop sees as one descriptor.

    The loop's `add_reader` takes seven system calls for each socket, of which three fail, and libuv tells of an error
    once and looks no more, so that a reset behind data would go unnoticed. This one tells of whatever is there until it
    is read, and forgets a socket when it is closed. libuv makes sure that a selector can be waited for (unix/poll.c).
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        poller: Callable[[], Poller] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises OSError when there is no descriptor left."""
        self.loop = loop
        self._clock = clock
        self._transports: dict[int, TcpTransport] = {}
        self._ready: deque[int] = deque()
        self._is_due = False
        """The next turn of the loop serves what is left of this one, and the loop's own call is for nothing."""
        self._poller = (poller or default_poller)()
        self.shortcuts = self._poller.shortcuts
        self._find, self._now = self._poller.ready, loop.time
        loop.add_reader(self._poller.fileno(), self._serve)

    def add(self, descriptor: int, transport: "TcpTransport") -> None:
        """Tell this transport whenever there is something to read: bytes, the end, or an error. Raises OSError."""
        self._poller.add(descriptor)
        self._transports[descriptor] = transport

    def remove(self, descriptor: int) -> None:
        """Wait no longer for a socket that stays open."""
        del self._transports[descriptor]
        self._poller.remove(descriptor)

    def forget(self, descriptor: int) -> None:
        """A socket is about to be closed, which takes it out of the selector."""
        del self._transports[descriptor]
        self._poller.forget(descriptor)

    def _serve(self) -> bool:
        """Serve those that are ready, for one turn of the loop. Returns whether there were some.

        What is left when the time is up is served first in the next turn, before the selector is asked again: so each
        has its turn, whoever else floods. The loop is told of it, since of what a shortcut has read already the
        selector knows nothing.
        """
        if self._is_due:
            return False
        ready = self._ready
        if not ready:
            found = self._find(self._now())
            if not found:  # what a shortcut passes on is not told of
                return False
            ready.extend(found)
        transports, clock = self._transports, self._clock
        end = clock() + _TURN_SECONDS
        try:
            while ready:
                # One that was closed since is not there any more; or its number belongs to a new socket, which then has
                # nothing to read.
                descriptor = ready.popleft()
                if descriptor in transports:
                    transports[descriptor].read(descriptor)
                    if clock() >= end:
                        break
        finally:
            if ready:
                self._is_due = True
                self.loop.call_soon(self._serve_rest)
        return True

    def _serve_rest(self) -> None:
        self._is_due = False
        if self._serve() and not self._is_due:
            # All is served, and this turn has had its time: what comes meanwhile is for the next one.
            self._is_due = True
            self.loop.call_soon(self._serve_rest)


class TcpTransport(asyncio.Transport):
    """One connection. Calls its protocol as asyncio's transports do, but `abort()` leads to no `connection_lost()`."""

    __slots__ = (
        "_broken",
        "_closed",
        "_connecting",
        "_descriptor",
        "_loop",
        "_protocol",
        "_read_poller",
        "_reading",
        "_shortcut",
        "_socket",
        "_unsent",
    )

    def __init__(self, read_poller: ReadPoller, protocol: asyncio.Protocol, address: str, port: int) -> None:
        """Begin to connect to an address literal. Raises OSError."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._loop = read_poller.loop
        self._read_poller = read_poller
        self._protocol = protocol
        # The class in C: that in Python adds a frame to each call, and files and contexts that nobody needs here.
        self._socket = sock = socket.SocketType(family, socket.SOCK_STREAM | _NONBLOCK)
        self._descriptor = sock.fileno()
        self._closed = False
        self._broken: OSError | None = None
        self._reading = False
        self._connecting = True
        self._unsent: bytes | bytearray = b""
        self._shortcut: Shortcut | None = None
        try:
            if not _NONBLOCK:
                sock.setblocking(False)
            code = sock.connect_ex((address, port))
            if code not in (0, errno.EINPROGRESS):
                raise OSError(code, "connect")
        except BaseException:
            sock.close()
            raise

    def peer(self) -> Any:
        """The address at the other end, or None while there is none: not yet connected, or gone already."""
        try:
            return self._socket.getpeername()
        except OSError:
            return None

    def local(self) -> Any:
        """The address at this end."""
        return self._socket.getsockname()

    def open(self) -> None:
        """Begin to talk: the protocol has its transport. Raises OSError when the kernel has no room to wait for it."""
        self._connecting = False
        self._protocol.connection_made(self)
        self.resume_reading()

    def read_on(self) -> None:
        """Read now, as when the selector tells that there is something."""
        if self._reading and not self._closed:
            self.read(self._descriptor)

    def hand_over(self, protocol: asyncio.Protocol) -> None:
        """Have another protocol listen from now on."""
        self._protocol = protocol

    def shortcut(self) -> Shortcut | None:
        """The way past the interpreter; None where there is none. Who reads, pauses or closes ends it."""
        if self._shortcut is None and self._read_poller.shortcuts is not None and self._reading:
            self._shortcut = Shortcut(self._read_poller.shortcuts, self._descriptor, self._read_soon)
        return self._shortcut

    def end_shortcut(self) -> None:
        """See `Shortcut.end`."""
        if self._shortcut is not None:
            self._shortcut.end()

    @property
    def is_sound(self) -> bool:
        """Whether everything that was written is sent, and the peer is read."""
        return self._reading and not self._unsent and self._broken is None and not self._closed

    def probe(self) -> None:
        """See `enable_keepalive`."""
        if not self._closed:
            enable_keepalive(self._socket)

    def unread(self) -> bool:
        """See `has_unread`."""
        if self._shortcut is not None:
            self._shortcut.end()
            if self._shortcut.has_taken:
                return True
        return not self._closed and has_unread(self._descriptor)

    async def connected(self) -> None:
        """Wait for the peer to accept. Raises OSError."""
        done = self._loop.create_future()

        def writable() -> None:
            self._loop.remove_writer(self._descriptor)
            if not done.done():
                done.set_result(None)

        self._loop.add_writer(self._descriptor, writable)
        try:
            await done
        finally:
            if not self._closed:
                self._loop.remove_writer(self._descriptor)
        code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, "connect")

    # asyncio.Transport

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send now what the kernel takes, and the rest when it takes more."""
        if self._closed or self._broken is not None:
            return
        if self._unsent:
            self._unsent = bytes(self._unsent) + bytes(data)
            return
        try:
            if len(data) > _SMALL_BYTES:
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._broken = error  # what the peer sent before still counts, and is read before the end is
            return
        if sent < len(data):
            self._unsent = bytes(data[sent:])
            self._loop.add_writer(self._descriptor, self._write_on)
            self._protocol.pause_writing()

    def pause_reading(self) -> None:
        """See asyncio.ReadTransport."""
        if self._reading and not self._closed:
            self._reading = False
            try:
                self.end_shortcut()
            finally:
                self._read_poller.remove(self._descriptor)

    def resume_reading(self) -> None:
        """See asyncio.ReadTransport."""
        if not (self._reading or self._closed):
            self._read_poller.add(self._descriptor, self)
            self._reading = True
            if self._shortcut is not None and self._shortcut.has_taken:
                self._read_soon()

    def is_closing(self) -> bool:
        """See asyncio.BaseTransport."""
        return self._closed

    def get_write_buffer_size(self) -> int:
        """How many bytes the kernel has not taken."""
        return len(self._unsent)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """The limit is 0: any byte that the kernel does not take pauses the protocol."""

    def abort(self, *, reset: bool = False) -> None:
        """Close now; with `reset`, so that the peer learns at once that nobody listens any more."""
        if self._closed:
            return
        self._closed = True
        shortcut, self._shortcut = self._shortcut, None
        try:
            if shortcut is not None:
                shortcut.end()
        finally:  # whatever fails, the socket is closed
            if reset:
                reset_on_close(self._socket)
            if self._reading:
                self._read_poller.forget(self._descriptor)
            if self._unsent or self._connecting:
                self._loop.remove_writer(self._descriptor)
            self._socket.close()

    # Callbacks

    def read(self, descriptor: int) -> None:
        """There is something to read from this descriptor, which is this transport's."""
        shortcut = self._shortcut
        try:
            data = os.read(descriptor, READ_BYTES) if shortcut is None else shortcut.read()
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lose(error)
            return
        except Exception as error:  # noqa: BLE001  # of what a shortcut tells when it ends
            self._fault(error)
            return
        try:
            if data:
                self._protocol.data_received(data)
                return
            if self._broken is None:
                self._protocol.eof_received()
        except Exception as error:  # noqa: BLE001
            self._fault(error)
        else:
            self._lose(self._broken)

    def _write_on(self) -> None:
        try:
            sent = self._socket.send(self._unsent)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._broken = error
            self._unsent = b""
        else:
            self._unsent = self._unsent[sent:]
        if not self._unsent:
            self._loop.remove_writer(self._descriptor)
            if self._broken is None:
                self._protocol.resume_writing()

    def _read_soon(self) -> None:
        self._loop.call_soon(self.read_on)

    def _fault(self, error: Exception) -> None:
        """As the loop's own transports do: tell it, and close."""
        self._loop.call_exception_handler({"message": "the protocol failed", "exception": error})
        self._lose(error)

    def _lose(self, error: Exception | None) -> None:
        if not self._closed:
            self.abort()
            self._protocol.connection_lost(error)
