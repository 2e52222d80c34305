"""The process that serves: uvicorn opens the sockets and runs the loop, our `Connection` reads and writes.

uvicorn's own protocol classes are not used, since they miss departures behind a pipelined request, have no deadline for
a head or a body, and accept more than one reading of a request; nor is its stop, which refuses where we explain (see
DESIGN.md).
"""

import asyncio
import contextlib
import resource
import socket
from collections.abc import Iterator
from typing import Any, Protocol, cast

import uvicorn

from eidproxy.inbound.connection import Connection, Connections, Service
from eidproxy.keepalive import enable_keepalive

BACKLOG = 2048
"""Connections that the kernel holds until they are accepted, so that a burst is not refused."""

_MANY_DESCRIPTORS = 4096
"""With fewer all are for connections."""
_RESERVED_DESCRIPTORS = 80
"""For the listener, the logs, the loop, files that are read for a request, look-ups, and kept connections."""


class Process(Protocol):
    """What the server asks of the application around it."""

    async def started(self) -> None:
        """The listeners are open."""

    def drain(self) -> None:
        """Take nothing new and turn away what waits. What runs goes on."""

    async def drained(self) -> None:
        """Wait for what runs, for as long as the settings say, then for callers to take what they are owed."""

    def end(self) -> None:
        """End what still runs, now. Called at least once before `stopped`."""

    async def stopped(self) -> None:
        """Nothing is served any more."""


class Server(uvicorn.Server):
    """uvicorn's server with its stop replaced: uvicorn closes the listener first, which refuses instead of explaining.

    The first `stop` drains while the listener stays open, the second ends at once.
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
        self._draining: asyncio.Task[None] | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve on these until `stop`. Connections inherit from them that a caller that vanished is found out."""
        for sock in sockets or []:
            if sock.family != socket.AF_UNIX:
                enable_keepalive(sock)
        await super().serve(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them alone: the process has one handler, before uvicorn and after it."""
        yield

    async def main_loop(self) -> None:
        """Serve until the drain is over. uvicorn's own loop wakes ten times a second for headers that are not sent."""
        await self._process.started()
        await self._ended.wait()

    @property
    def port(self) -> int:
        """Where it listens; 0 for a Unix socket."""
        names = [sock.getsockname() for server in self.servers for sock in server.sockets]
        return next((int(name[1]) for name in names if isinstance(name, tuple)), 0)

    def stop(self) -> None:
        """Begin to drain; asked again, end at once. Neither relies on a task that may not have begun."""
        if self._draining is None:
            self._draining = asyncio.get_running_loop().create_task(self._process.drained())
            self._draining.add_done_callback(lambda _: self._end())
            self._connections.drain()
            self._process.drain()
        else:
            self._draining.cancel()
            self._end()

    def _end(self) -> None:
        try:
            self._process.end()
        finally:
            self._ended.set()

    async def shutdown(self, sockets: Any = None) -> None:
        """Close what is open. Nothing here waits for a caller."""
        for server in self.servers:
            server.close()
        await self._process.stopped()
        for connection in list(self._connections.open):
            connection.close()
        for sock in sockets or []:
            sock.close()


async def _no_application(scope: Any, receive: Any, send: Any) -> None:
    """uvicorn wants one; connections go to the service instead."""


def connection_limit(spare: int = 0) -> int:
    """How many connections may be open: half of the descriptors, since a running request needs a second one.

    `spare` are those that some requests have for a third.
    """
    return max((_descriptors() - spare - _RESERVED_DESCRIPTORS) // 2, 16)


def spare_descriptors() -> int:
    """How many descriptors there may be for requests that can do with a third one: none where there are few."""
    descriptors = _descriptors()
    return descriptors // 8 if descriptors >= _MANY_DESCRIPTORS else 0


def _descriptors() -> int:
    """How many there may be, which is raised as far as it goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else max(soft, 65536)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):
        return soft  # the limit stays what it is
    return wanted
