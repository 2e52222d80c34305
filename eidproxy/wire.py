"""A transport over a plain TCP socket that we connect ourselves.

The loop makes a coroutine, a task and two futures for each connection, and one is made for each request. Here a
connection within the machine is there when `connect` returns, so a request goes out in the callback in which it came
in; and the socket is closed where `abort` is called, before the slot is given on, not a turn later.
"""

import asyncio
import contextlib
import errno
import os
import select
import socket
import sys
from typing import Any

_READ_BYTES = 64 * 1024
"""At most so much of a flooding peer comes before everybody else has a turn."""

_SMALL_BYTES = 1024
"""What is longer may take several segments, of which Nagle's algorithm would keep back the last (RFC 9293, 3.7.4)."""

_READY_AT_ONCE = 64
"""Of more sockets that are ready the rest is served in the next turn of the loop."""

_NONBLOCK = getattr(socket, "SOCK_NONBLOCK", 0)

_PROBES = tuple(
    (level, getattr(socket, name), value)
    for level, name, value in (
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 10),
        (socket.IPPROTO_TCP, "TCP_KEEPALIVE", 10),  # macOS's word for TCP_KEEPIDLE
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 5),
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", 3),
    )
    if hasattr(socket, name)
)


def probe_silent_peer(sock: socket.SocketType) -> None:
    """Have the kernel find out within 25 s that the machine at the other end is gone without a word, as one asleep."""
    with contextlib.suppress(OSError):  # a peer that is gone already: macOS says so here
        for level, name, value in _PROBES:
            sock.setsockopt(level, name, value)


class Readers:
    """The sockets that are waited for, in a selector of our own that the loop sees as one descriptor.

    The loop's `add_reader` takes seven system calls for each socket, of which three fail, and libuv tells of an error
    once and looks no more, so that a reset behind data would go unnoticed. This one tells of whatever is there until it
    is read, and forgets a socket when it is closed. libuv makes sure that a selector can be waited for (unix/poll.c).
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Raises OSError when there is no descriptor left."""
        self.loop = loop
        self._wires: dict[int, Wire] = {}
        if sys.platform == "linux":
            self._epoll = select.epoll()
            loop.add_reader(self._epoll.fileno(), self._serve)
        else:
            self._kqueue = select.kqueue()
            loop.add_reader(self._kqueue.fileno(), self._serve)

    def add(self, descriptor: int, wire: "Wire") -> None:
        """Tell this wire whenever there is something to read: bytes, the end, or an error. Raises OSError."""
        if sys.platform == "linux":
            self._epoll.register(descriptor, select.EPOLLIN)
        else:
            self._kqueue.control([select.kevent(descriptor, select.KQ_FILTER_READ, select.KQ_EV_ADD)], 0)
        self._wires[descriptor] = wire

    def remove(self, descriptor: int) -> None:
        """Wait no longer for a socket that stays open."""
        del self._wires[descriptor]
        if sys.platform == "linux":
            self._epoll.unregister(descriptor)
        else:
            self._kqueue.control([select.kevent(descriptor, select.KQ_FILTER_READ, select.KQ_EV_DELETE)], 0)

    def forget(self, descriptor: int) -> None:
        """A socket is about to be closed, which takes it out of the selector."""
        del self._wires[descriptor]

    def _serve(self) -> None:
        # One that was closed since, by a callback before it, is not there any more; or its number belongs to a new
        # socket, which then has nothing to read.
        wires = self._wires
        if sys.platform == "linux":
            for descriptor, _ in self._epoll.poll(0, _READY_AT_ONCE):
                if descriptor in wires:
                    wires[descriptor].read(descriptor)
        else:
            for event in self._kqueue.control(None, _READY_AT_ONCE, 0):
                if event.ident in wires:
                    wires[event.ident].read(event.ident)


class Wire(asyncio.Transport):
    """One connection. The protocol hears what asyncio says it hears, but for the end of one that it aborted itself."""

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

    def probe(self) -> None:
        """See `probe_silent_peer`."""
        if not self._closed:
            probe_silent_peer(self._socket)

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

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """The limit is 0: any byte that the kernel does not take pauses the protocol."""

    def abort(self) -> None:
        """Close now."""
        if not self._closed:
            self._closed = True
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
