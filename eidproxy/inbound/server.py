"""The HTTP server: uvicorn opens the sockets and runs the loop, our `Connection` reads and writes.

uvicorn's own protocol classes are not used: they miss a departure behind a pipelined request, have no deadline for a
head or a body, and accept requests that have more than one reading (DESIGN, 2). Its stop is not used either: it closes
the listener first, so a new caller would get no error that names the reason.
"""

import asyncio
import contextlib
import resource
import socket
from collections.abc import Iterator
from typing import Any, Protocol, cast

import uvicorn

from eidproxy.inbound.connection import Connection, Service
from eidproxy.inbound.connections import Connections
from eidproxy.keepalive import enable_keepalive

BACKLOG = 2048
"""Connections that the kernel queues until we accept them, so that a burst is not refused."""

_SPARE_FROM_DESCRIPTORS = 4096
"""With fewer descriptors, all are for connections: none is spare (DESIGN, 73)."""
_RESERVED_DESCRIPTORS = 80
"""For the listener, the logs, the loop, files read for a request, look-ups, and kept connections to the router."""


class Process(Protocol):
    """The application around the server, as the server calls it."""

    async def on_started(self) -> None:
        """Do what has to wait until the listeners are open."""

    def drain(self) -> None:
        """Refuse new and waiting requests from now on; running ones go on."""

    async def wait_drained(self) -> None:
        """Wait for running requests, at most `drain_seconds`, then until callers have read their answers."""

    def end(self) -> None:
        """End running requests at once. Called at least once before `on_stopped`."""

    async def on_stopped(self) -> None:
        """Release what the application holds: the listeners are closed."""


class Server(uvicorn.Server):
    """uvicorn's server with a stop of our own: the first `stop` drains, the second ends at once.

    While it drains the listener stays open, so that a new caller gets 503 `draining` instead of a refused connection.
    """

    def __init__(self, service: Service, process: Process, connections: Connections) -> None:
        def connect(_loop: asyncio.AbstractEventLoop, **_: Any) -> Connection:
            return Connection(service, connections, asyncio.get_running_loop())

        super().__init__(
            uvicorn.Config(
                _no_application,
                http=cast(Any, connect),
                ws="none",
                loop="uvloop",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                proxy_headers=False,
                backlog=BACKLOG,
                workers=1,
            )
        )
        self._process = process
        self._connections = connections
        self._ended = asyncio.Event()
        self._drain_task: asyncio.Task[None] | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve on these sockets until `stop`. Connections inherit TCP keep-alive, which finds vanished callers."""
        for sock in sockets or []:
            if sock.family != socket.AF_UNIX:
                enable_keepalive(sock)
        await super().serve(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install no handler: the process has its own (`signals`), before uvicorn runs and after it."""
        yield

    async def main_loop(self) -> None:
        """Serve until the drain is over. uvicorn's own loop wakes ten times a second for headers that are not sent."""
        await self._process.on_started()
        await self._ended.wait()

    @property
    def port(self) -> int:
        """The TCP port of the listener; 0 for a Unix socket."""
        names = [sock.getsockname() for server in self.servers for sock in server.sockets]
        return next((int(name[1]) for name in names if isinstance(name, tuple)), 0)

    def stop(self) -> None:
        """Begin to drain; on the second call, end at once. Neither depends on a task that may not have started."""
        if self._drain_task is None:
            self._drain_task = asyncio.get_running_loop().create_task(self._process.wait_drained())
            self._drain_task.add_done_callback(lambda _: self._end())
            self._connections.drain()
            self._process.drain()
        else:
            self._drain_task.cancel()
            self._end()

    def _end(self) -> None:
        try:
            self._process.end()
        finally:
            self._ended.set()

    async def shutdown(self, sockets: Any = None) -> None:
        """Close listeners and connections, without waiting for any caller."""
        for server in self.servers:
            server.close()
        await self._process.on_stopped()
        for connection in list(self._connections.open):
            connection.close()
        for sock in sockets or []:
            sock.close()


async def _no_application(scope: Any, receive: Any, send: Any) -> None:
    """Satisfy uvicorn, which needs an application; requests go to the service instead."""


def connection_limit(spare: int = 0) -> int:
    """Return how many connections may be open: half of the descriptors, since a running request needs two.

    `spare` descriptors are set aside for requests that use a third one (see `spare_descriptors`). Raises the limit of
    descriptors first, as that does.
    """
    return max((raise_descriptor_limit() - spare - _RESERVED_DESCRIPTORS) // 2, 16)


def spare_descriptors() -> int:
    """Return how many requests may use a third descriptor, the accelerator's duplicate of the caller's (DESIGN, 73).

    0 below `_SPARE_FROM_DESCRIPTORS`.
    """
    descriptors = raise_descriptor_limit()
    return descriptors // 8 if descriptors >= _SPARE_FROM_DESCRIPTORS else 0


def raise_descriptor_limit() -> int:
    """Return how many descriptors this process may open, after raising its soft limit to the hard one.

    Where the hard limit is infinite, to at least 65,536. A second call changes nothing.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else max(soft, 65536)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):
        return soft  # the limit stays what it is
    return wanted
