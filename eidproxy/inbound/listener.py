"""The listening sockets: at a host and port, or at the path of a Unix socket."""

import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from eidproxy.config import Settings
from eidproxy.inbound.server import BACKLOG

_LOCK_TRIES = 100
"""Attempts to lock the folder, twenty a second: a start holds the lock for some milliseconds."""


class SocketTaken(Exception):
    """The path of `server.uds` belongs to somebody else. The text says what to do."""


def listen(settings: Settings) -> list[socket.socket]:
    """Return the listening sockets; none stays open after an exception. Raises OSError, SocketTaken."""
    server = settings.server
    if server.uds is not None:
        return [_listen_unix(server.uds, BACKLOG)]
    sockets = []
    answers = socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    with ExitStack() as opened:
        for family, _, _, _, address in dict.fromkeys(answers):
            sock = opened.enter_context(socket.socket(family, socket.SOCK_STREAM))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
            sock.listen(BACKLOG)
            sock.setblocking(False)
            sockets.append(sock)
        opened.pop_all()
    return sockets


def _listen_unix(path: str, backlog: int) -> socket.socket:
    """Listen at a path. A path is no lock: a process that removes an existing socket may take over a live server.

    So only a socket that refuses a connection is removed, and a lock on the folder runs concurrent starts one by one:
    from the first check of the path until a server listens there, no other start checks it.

    Raises OSError, SocketTaken.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _folder_locked(Path(path).parent):
            _remove_dead_socket(path)
            sock.bind(path)
            os.chmod(path, 0o660)
            sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


@contextmanager
def _folder_locked(folder: Path) -> Iterator[None]:
    # The kernel releases the lock with the descriptor, however the process ends; no file is left in the folder.
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:  # a folder that is writable but not readable: nobody can lock it
        yield
        return
    try:
        for _ in range(_LOCK_TRIES):
            with suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(0.05)
        else:
            raise SocketTaken(f"another program has locked {folder}; try again, or put the socket in another folder")
        yield
    finally:
        os.close(descriptor)


def _remove_dead_socket(path: str) -> None:
    """Remove the socket of a killed process. Raises SocketTaken for anything else at the path."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise SocketTaken(f"{path} exists and is no socket; remove it, or choose another path")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        caller.setblocking(False)
        try:
            caller.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except FileNotFoundError:
            return
        except OSError:
            pass  # its backlog is full, or it has another type or another owner: it is in use in any case
    raise SocketTaken(f"somebody answers at {path}; stop that process, or choose another path")
