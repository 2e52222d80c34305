"""TCP keep-alive: the kernel asks a silent peer whether it is still there (RFC 9293, 3.8.4).

A machine that lost power or went to sleep sends nothing. Without keep-alive its connection would stay for hours.
"""

import contextlib
import socket
from typing import Any


def idle_option() -> int | None:
    """Return the option for the silence before the first probe: Linux's, else macOS's (cpython#25079), else None."""
    return getattr(socket, "TCP_KEEPIDLE", None) or getattr(socket, "TCP_KEEPALIVE", None)


_IDLE = idle_option()


def enable_keepalive(sock: Any, *, idle: int = 10, interval: int = 5, count: int = 3) -> None:
    """Have the kernel detect a vanished peer after `idle + interval * count` seconds of silence.

    Connections inherit the options of a listener. `sock` is a socket, or the one that a transport gives out.
    """
    options: list[tuple[int, Any, int]] = [
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, _IDLE, idle),
        (socket.IPPROTO_TCP, getattr(socket, "TCP_KEEPINTVL", None), interval),
        (socket.IPPROTO_TCP, getattr(socket, "TCP_KEEPCNT", None), count),
    ]
    with contextlib.suppress(OSError):  # macOS fails here when the peer is gone already
        for level, name, value in options:
            if name is not None:
                sock.setsockopt(level, name, value)
