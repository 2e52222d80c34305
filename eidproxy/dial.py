"""A TCP connection that is begun without a coroutine, until the loop's transport takes the socket over.

The loop makes a coroutine, a task and some futures for each connection, and each request has one. Within a machine a
connection is there when `connect` returns, so the request can go out in the callback in which it came in.
"""

import asyncio
import errno
import socket
from typing import Any

_NONBLOCK = getattr(socket, "SOCK_NONBLOCK", 0)

_OPTIONS = tuple(
    (level, getattr(socket, name), value)
    for level, name, value in (
        (socket.IPPROTO_TCP, "TCP_NODELAY", 1),
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 10),
        (socket.IPPROTO_TCP, "TCP_KEEPALIVE", 10),  # macOS's word for TCP_KEEPIDLE
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 5),
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", 3),
    )
    if hasattr(socket, name)
)


def prepare(sock: socket.socket) -> None:
    """Send at once what is written, and have the kernel ask a silent peer.

    A request of several segments would wait for an acknowledgement of the first. A machine that is gone without a word,
    as one asleep, is found out within 25 s.
    """
    for level, name, value in _OPTIONS:
        sock.setsockopt(level, name, value)


def begin(address: str, port: int) -> socket.socket:
    """A socket that connects to an address literal. Raises OSError."""
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM | _NONBLOCK)
    try:
        if not _NONBLOCK:
            sock.setblocking(False)
        prepare(sock)
        code = sock.connect_ex((address, port))
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, "connect")
    except BaseException:
        sock.close()
        raise
    return sock


def peer(sock: socket.socket) -> Any:
    """The address at the other end, or None while there is none: not yet connected, or gone already."""
    try:
        return sock.getpeername()
    except OSError:
        return None


async def connected(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    """Wait until the peer has accepted. Raises OSError."""
    done = loop.create_future()

    def writable() -> None:
        if not done.done():
            done.set_result(None)

    loop.add_writer(sock, writable)
    try:
        await done
    finally:
        loop.remove_writer(sock)
    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, "connect")
