"""A transport over a plain TCP socket that we connect ourselves (DESIGN, 25).

The loop makes a coroutine, a task and two futures for each connection, and many requests need one. Here a connection
within the machine is established when `connect` returns, so a request goes out in the callback in which it came in.
`abort` closes the socket before it returns, so before the slot is given on, not a turn of the loop later.
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
from typing import Any, Protocol, cast

from eidproxy.keepalive import enable_keepalive
from eidproxy.router.shortcut import READ_BYTES, Shortcut, Shortcuts

_ONE_SEGMENT_BYTES = 1024
"""Longer writes may take several segments, the last of which Nagle's algorithm would delay (RFC 9293, 3.7.4)."""

_MAX_READY_SOCKETS = 64
"""The most sockets that one call of the selector returns, so that a turn ends in time (DESIGN, 40)."""
_TURN_SECONDS = 0.01
"""How long one turn of the loop serves the router's sockets; ready ones that are left come first in the next turn."""

_NONBLOCK = getattr(socket, "SOCK_NONBLOCK", 0)
_LINGER_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: closing discards unsent bytes and resets the connection."""


def has_unread(descriptor: int) -> bool:
    """Return whether the kernel has something unread for this socket: bytes, the end, or an error.

    After a standstill timers run before reads, so a peer that seems silent may have sent something long ago.
    """
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def reset_on_close(sock: Any) -> None:
    """Make the close of a socket reset its connection, which a peer that reads nothing notices a step sooner."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)


Clock = Callable[[], float]
OnReadable = Callable[[Sequence[int]], object]


class Poller(Protocol):
    """A selector for reading, and one descriptor for the loop. It reports a socket until everything is read."""

    shortcuts: Shortcuts | None
    """The shortcuts of a selector that can pass events on by itself; None for any other."""

    def fileno(self) -> int:
        """Return the selector's own descriptor. It is readable while one of the added sockets is."""

    def add(self, descriptor: int) -> None:
        """Watch this descriptor. Raises OSError."""

    def remove(self, descriptor: int) -> None:
        """Stop watching a descriptor that stays open."""

    def forget(self, descriptor: int) -> None:
        """Stop watching a descriptor that is about to be closed."""

    def serve(self, clock: Clock, on_readable: OnReadable, unserved: deque[int]) -> object:
        """Call `on_readable` with some of the readable descriptors, if there are any; a later call has the others.

        Never waits. Returns what `on_readable` returned, else something false. Does nothing while some are `unserved`.
        `clock` is the loop's.
        """


class EpollPoller:
    """The selector on Linux. A closed descriptor leaves an epoll by itself, so `forget` does nothing."""

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

    def serve(self, clock: Clock, on_readable: OnReadable, unserved: deque[int]) -> object:  # noqa: ARG002
        """See `Poller`."""
        found = None if unserved else self._epoll.poll(0, _MAX_READY_SOCKETS)
        return on_readable([descriptor for descriptor, _ in found]) if found else False


class SplicePoller(EpollPoller):
    """The selector on Linux with the extension: `serve` leaves out sockets whose events a shortcut passed on."""

    def __init__(self, bounds: tuple[float, ...], max_shortcuts: int) -> None:
        """See `Shortcuts`. Raises OSError when there is no descriptor left."""
        super().__init__()
        self.shortcuts = Shortcuts(self._epoll.fileno(), bounds, max_shortcuts)
        self.serve = self.shortcuts.poller.serve  # type: ignore[method-assign,assignment]  # no frame of Python between


class SelectorPoller:
    """The selector everywhere else, from the standard library: kqueue on macOS."""

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

    def serve(self, clock: Clock, on_readable: OnReadable, unserved: deque[int]) -> object:  # noqa: ARG002
        """See `Poller`."""
        found = None if unserved else self._selector.select(0)
        return on_readable([key.fd for key, _ in found]) if found else False


default_poller: type[EpollPoller | SelectorPoller] = EpollPoller if hasattr(select, "epoll") else SelectorPoller


class ReadPoller:
    """The sockets to be read, in a selector of our own that the loop watches as one descriptor.

    The loop's `add_reader` takes seven system calls for each socket, of which three fail, and libuv reports an error
    once and then stops polling, so that a reset behind data would go unnoticed. This selector reports a socket until
    everything is read, and drops it when it is closed. libuv can poll a selector's descriptor (unix/poll.c).
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
        self._unserved: deque[int] = deque()
        """Sockets that were reported and are not yet read: they come first in the next turn."""
        self._is_rest_scheduled = False
        """Whether `_read_rest` is scheduled for the next turn; until then Python reads nothing."""
        self._poller = (poller or default_poller)()
        self.shortcuts = self._poller.shortcuts
        # The loop calls the selector itself: where shortcuts pass on all that came, no Python runs for it.
        loop.add_reader(self._poller.fileno(), self._poller.serve, loop.time, self._on_readable, self._unserved)

    def add(self, descriptor: int, transport: "TcpTransport") -> None:
        """Call `transport.read` whenever there is something to read: bytes, the end, or an error. Raises OSError."""
        self._poller.add(descriptor)
        self._transports[descriptor] = transport

    def remove(self, descriptor: int) -> None:
        """Stop watching a socket that stays open."""
        del self._transports[descriptor]
        self._poller.remove(descriptor)

    def forget(self, descriptor: int) -> None:
        """Stop watching a socket that is about to be closed, which takes it out of the selector."""
        del self._transports[descriptor]
        self._poller.forget(descriptor)

    def _read_ready(self) -> object:
        """Do what the loop does when the selector's descriptor is readable. Return whether any socket was reported."""
        return self._poller.serve(self.loop.time, self._on_readable, self._unserved)

    def _on_readable(self, found: Sequence[int]) -> bool:
        # Those that are found while the rest is due wait too: of bytes that a shortcut has read the selector knows
        # nothing any more.
        self._unserved.extend(found)
        if not self._is_rest_scheduled:
            self._read_unserved()
        return True

    def _read_unserved(self) -> None:
        """Read the reported sockets for at most one turn's time.

        Sockets that are left come first in the next turn, before the selector is asked again, so no flooding peer
        starves another.
        """
        unserved, transports, clock = self._unserved, self._transports, self._clock
        end = clock() + _TURN_SECONDS
        try:
            while unserved:
                # A socket that was closed since is no longer in `transports`; or its number belongs to a new socket,
                # for which a read then finds nothing.
                descriptor = unserved.popleft()
                if descriptor in transports:
                    transports[descriptor].read(descriptor)
                    if clock() >= end:
                        break
        finally:
            if unserved:
                self._schedule_rest()

    def _schedule_rest(self) -> None:
        self._is_rest_scheduled = True
        self.loop.call_soon(self._read_rest)

    def _read_rest(self) -> None:
        self._is_rest_scheduled = False
        if self._unserved:
            self._read_unserved()
        elif not self._read_ready():
            return
        if not self._is_rest_scheduled:
            self._schedule_rest()  # everything is read, and this turn has used its time: new bytes are for the next one


class TcpTransport(asyncio.Transport):
    """One connection. Calls its protocol as asyncio's transports do, but `abort()` calls no `connection_lost()`."""

    __slots__ = (
        "_descriptor",
        "_is_closed",
        "_is_connecting",
        "_is_reading",
        "_loop",
        "_protocol",
        "_read_poller",
        "_shortcut",
        "_socket",
        "_unsent",
        "_write_error",
    )

    def __init__(self, read_poller: ReadPoller, protocol: asyncio.Protocol, address: str, port: int) -> None:
        """Begin to connect to an address literal. Raises OSError."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._loop = read_poller.loop
        self._read_poller = read_poller
        self._protocol = protocol
        # The C class: the Python subclass adds a frame to each call, and files and contexts that are not needed here.
        self._socket = sock = socket.SocketType(family, socket.SOCK_STREAM | _NONBLOCK)
        self._descriptor = sock.fileno()
        self._is_closed = False
        self._write_error: OSError | None = None
        self._is_reading = False
        self._is_connecting = True
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

    def peer_address(self) -> Any:
        """Return the peer's address, or None while there is none: not yet connected, or already gone."""
        try:
            return self._socket.getpeername()
        except OSError:
            return None

    def own_address(self) -> Any:
        """Return the socket's own address."""
        return self._socket.getsockname()

    def open(self) -> None:
        """Give the connected transport to the protocol and begin to read. Raises OSError if it cannot be watched."""
        self._is_connecting = False
        self._protocol.connection_made(self)
        self.resume_reading()

    def read_now(self) -> None:
        """Read now, as if the selector had reported the socket."""
        if self._is_reading and not self._is_closed:
            self.read(self._descriptor)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Call another protocol from now on."""
        self._protocol = cast(asyncio.Protocol, protocol)

    def shortcut(self) -> Shortcut | None:
        """Return the shortcut past the interpreter; None where there is none. A read, a pause or a close ends it."""
        if self._shortcut is None and self._read_poller.shortcuts is not None and self._is_reading:
            self._shortcut = Shortcut(self._read_poller.shortcuts, self._descriptor, self)
        return self._shortcut

    def end_shortcut(self) -> None:
        """See `Shortcut.end`."""
        if self._shortcut is not None:
            self._shortcut.end()

    @property
    def is_sound(self) -> bool:
        """Whether the connection is open, everything written is sent, and the peer is read."""
        return self._is_reading and not self._unsent and self._write_error is None and not self._is_closed

    def enable_tcp_keepalive(self) -> None:
        """See `enable_keepalive`."""
        if not self._is_closed:
            enable_keepalive(self._socket)

    def has_unread(self) -> bool:
        """See `has_unread`."""
        if self._shortcut is not None:
            self._shortcut.end()
            if self._shortcut.has_pending:
                return True
        return not self._is_closed and has_unread(self._descriptor)

    async def wait_connected(self) -> None:
        """Wait until the connection is established. Raises OSError."""
        done = self._loop.create_future()

        def writable() -> None:
            self._loop.remove_writer(self._descriptor)
            if not done.done():
                done.set_result(None)

        self._loop.add_writer(self._descriptor, writable)
        try:
            await done
        finally:
            if not self._is_closed:
                self._loop.remove_writer(self._descriptor)
        code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, "connect")

    async def handshake(self) -> None:
        """Do nothing: plain TCP has none. `tls.TlsTransport` has."""

    # asyncio.Transport

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send now what the kernel accepts, and the rest when it accepts more."""
        if self._is_closed or self._write_error is not None:
            return
        if self._unsent:
            self._unsent = bytes(self._unsent) + bytes(data)
            return
        try:
            if len(data) > _ONE_SEGMENT_BYTES:
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._write_error = error  # reported after the bytes that the peer sent before, which still count
            return
        if sent < len(data):
            self._unsent = bytes(data[sent:])
            self._loop.add_writer(self._descriptor, self._write_rest)
            self._protocol.pause_writing()

    def pause_reading(self) -> None:
        """See asyncio.ReadTransport."""
        if self._is_reading and not self._is_closed:
            self._is_reading = False
            try:
                self.end_shortcut()
            finally:
                self._read_poller.remove(self._descriptor)

    def resume_reading(self) -> None:
        """See asyncio.ReadTransport."""
        if not (self._is_reading or self._is_closed):
            self._read_poller.add(self._descriptor, self)
            self._is_reading = True
            if self._shortcut is not None and self._shortcut.has_pending:
                self.read_soon()

    def is_closing(self) -> bool:
        """See asyncio.BaseTransport."""
        return self._is_closed

    def get_write_buffer_size(self) -> int:
        """Return how many bytes the kernel has not yet accepted."""
        return len(self._unsent)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Do nothing: the limit is always 0, so any byte that the kernel does not accept pauses the protocol."""

    def abort(self, *, reset: bool = False) -> None:
        """Close now; with `reset`, reset the connection, so that the peer notices at once."""
        if self._is_closed:
            return
        self._is_closed = True
        shortcut, self._shortcut = self._shortcut, None
        try:
            if shortcut is not None:
                shortcut.end()
        finally:  # whatever fails, the socket must be closed
            if reset:
                reset_on_close(self._socket)
            if self._is_reading:
                self._read_poller.forget(self._descriptor)
            if self._unsent or self._is_connecting:
                self._loop.remove_writer(self._descriptor)
            self._socket.close()

    # Callbacks

    def read(self, descriptor: int) -> None:
        """Read from this transport's `descriptor` and pass the bytes, the end or the error to the protocol."""
        shortcut = self._shortcut
        try:
            data = os.read(descriptor, READ_BYTES) if shortcut is None else shortcut.read()
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._close_and_report(error)
            return
        except Exception as error:  # noqa: BLE001  # raised where an ending shortcut reports its counts
            self._report_fault(error)
            return
        try:
            if data:
                self._protocol.data_received(data)
                return
            if self._write_error is None:
                self._protocol.eof_received()
        except Exception as error:  # noqa: BLE001
            self._report_fault(error)
        else:
            self._close_and_report(self._write_error)

    def _write_rest(self) -> None:
        try:
            sent = self._socket.send(self._unsent)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._write_error = error
            self._unsent = b""
        else:
            self._unsent = self._unsent[sent:]
        if not self._unsent:
            self._loop.remove_writer(self._descriptor)
            if self._write_error is None:
                self._protocol.resume_writing()

    def read_soon(self) -> None:
        """Schedule a `read`."""
        self._loop.call_soon(self.read_now)

    def _report_fault(self, error: Exception) -> None:
        """Report a fault of the protocol to the loop's exception handler and close, as the loop's transports do."""
        self._loop.call_exception_handler({"message": "the protocol failed", "exception": error})
        self._close_and_report(error)

    def _close_and_report(self, error: Exception | None) -> None:
        if not self._is_closed:
            self.abort()
            self._protocol.connection_lost(error)
