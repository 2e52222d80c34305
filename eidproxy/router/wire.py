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
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Protocol

from eidproxy.keepalive import enable_keepalive

_READ_BYTES = 64 * 1024
"""At most so much of a flooding peer comes before everybody else has a turn."""

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

    def fileno(self) -> int:
        """The descriptor. It is readable while one of those added is."""

    def add(self, descriptor: int) -> None:
        """Wait for this one. Raises OSError."""

    def remove(self, descriptor: int) -> None:
        """Wait for it no longer."""

    def forget(self, descriptor: int) -> None:
        """It is about to be closed."""

    def ready(self) -> Iterable[int]:
        """Some that can be read now, without waiting. Those that are left out come later."""


class EpollPoller:
    """Linux. A closed descriptor leaves an epoll by itself."""

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

    def ready(self) -> Iterable[int]:
        """See `Poller`."""
        return [descriptor for descriptor, _ in self._epoll.poll(0, _READY_AT_ONCE)]


class SelectorPoller:
    """Everywhere else: the standard library's selector, which is kqueue on macOS."""

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

    def ready(self) -> Iterable[int]:
        """See `Poller`."""
        return [key.fd for key, _ in self._selector.select(0)]


default_poller: type[EpollPoller | SelectorPoller] = EpollPoller if hasattr(select, "epoll") else SelectorPoller


class Readers:
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
        self._wires: dict[int, Wire] = {}
        self._ready: deque[int] = deque()
        self._poller = (poller or default_poller)()
        loop.add_reader(self._poller.fileno(), self._serve)

    def add(self, descriptor: int, wire: "Wire") -> None:
        """Tell this wire whenever there is something to read: bytes, the end, or an error. Raises OSError."""
        self._poller.add(descriptor)
        self._wires[descriptor] = wire

    def remove(self, descriptor: int) -> None:
        """Wait no longer for a socket that stays open."""
        del self._wires[descriptor]
        self._poller.remove(descriptor)

    def forget(self, descriptor: int) -> None:
        """A socket is about to be closed, which takes it out of the selector."""
        del self._wires[descriptor]
        self._poller.forget(descriptor)

    def _serve(self) -> None:
        """Serve those that are ready, for one turn of the loop.

        What is left when the time is up is served first in the next turn, before the selector is asked again: so each
        has its turn, whoever else floods. The loop calls again, since what is left can still be read.
        """
        wires, ready, clock = self._wires, self._ready, self._clock
        if not ready:
            ready.extend(self._poller.ready())
        end = clock() + _TURN_SECONDS
        while ready:
            # One that was closed since is not there any more; or its number belongs to a new socket, which then has
            # nothing to read.
            descriptor = ready.popleft()
            if descriptor in wires:
                wires[descriptor].read(descriptor)
                if clock() >= end:
                    break


class Wire(asyncio.Transport):
    """One connection. Calls its protocol as asyncio's transports do, but `abort()` leads to no `connection_lost()`."""

    __slots__ = (
        "_broken",
        "_closed",
        "_connecting",
        "_descriptor",
        "_loop",
        "_protocol",
        "_readers",
        "_reading",
        "_socket",
        "_unsent",
    )

    def __init__(self, readers: Readers, protocol: asyncio.Protocol, address: str, port: int) -> None:
        """Begin to connect to an address literal. Raises OSError."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._loop = readers.loop
        self._readers = readers
        self._protocol = protocol
        # The class in C: that in Python adds a frame to each call, and files and contexts that nobody needs here.
        self._socket = sock = socket.SocketType(family, socket.SOCK_STREAM | _NONBLOCK)
        self._descriptor = sock.fileno()
        self._closed = False
        self._broken: OSError | None = None
        self._reading = False
        self._connecting = True
        self._unsent: bytes | bytearray = b""
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
        if not self._closed:
            self.read(self._descriptor)

    def hand_over(self, protocol: asyncio.Protocol) -> None:
        """Have another protocol listen from now on."""
        self._protocol = protocol

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
            self._readers.remove(self._descriptor)

    def resume_reading(self) -> None:
        """See asyncio.ReadTransport."""
        if not (self._reading or self._closed):
            self._readers.add(self._descriptor, self)
            self._reading = True

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
        if not self._closed:
            self._closed = True
            if reset:
                reset_on_close(self._socket)
            if self._reading:
                self._readers.forget(self._descriptor)
            if self._unsent or self._connecting:
                self._loop.remove_writer(self._descriptor)
            self._socket.close()

    # Callbacks

    def read(self, descriptor: int) -> None:
        """There is something to read from this descriptor, which is this wire's."""
        try:
            data = os.read(descriptor, _READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lose(error)
            return
        try:
            if data:
                self._protocol.data_received(data)
                return
            if self._broken is None:
                self._protocol.eof_received()
        except Exception as error:  # noqa: BLE001  # as the loop's own transports do: tell it, and close
            self._loop.call_exception_handler({"message": "the protocol failed", "exception": error})
            self._lose(error)
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

    def _lose(self, error: Exception | None) -> None:
        if not self._closed:
            self.abort()
            self._protocol.connection_lost(error)
