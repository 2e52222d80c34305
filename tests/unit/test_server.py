"""server: in which order a process ends, and how many connections it may have (see test_shutdown for the process)."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from typing import Any, cast

from eidproxy.inbound.connections import Connections
from eidproxy.inbound.server import Server
from tests.lab.loops import played
from tests.lab.tools import ROOT


class House:
    """The application around a server: it notes what it is asked, and drains for as long as it is told to."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.serving = asyncio.Event()
        self.may_end = asyncio.Event()

    async def on_started(self) -> None:
        self.asked.append("started")
        self.serving.set()

    def drain(self) -> None:
        self.asked.append("drain")

    async def wait_drained(self) -> None:
        self.asked.append("drained")
        await self.may_end.wait()

    def end(self) -> None:
        self.asked.append("end")

    async def on_stopped(self) -> None:
        self.asked.append("stopped")


def listening() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    return sock


@played
async def test_the_first_stop_drains_with_the_listener_open() -> None:
    house = House()
    server, sock = Server(cast(Any, house), house, Connections(10)), listening()
    port = sock.getsockname()[1]
    serving = asyncio.create_task(server.serve([sock]))
    await house.serving.wait()
    assert server.port == port
    server.stop()
    assert house.asked == ["started", "drain"], "what must happen is done in the call"
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.close()
    house.may_end.set()
    await serving
    assert house.asked == ["started", "drain", "drained", "end", "stopped"]


@played
async def test_the_second_stop_ends_at_once() -> None:
    house = House()
    server = Server(cast(Any, house), house, Connections(10))
    serving = asyncio.create_task(server.serve([listening()]))
    await house.serving.wait()
    server.stop()
    server.stop()
    assert house.asked == ["started", "drain", "end"]
    await serving
    assert "stopped" in house.asked
    assert "drained" not in house.asked, "the drain had not begun, and did not have to"


def test_half_of_the_descriptors_are_connections() -> None:
    """The soft limit is raised to the hard one; a few are kept for everything else."""
    code = """
import resource
from eidproxy.inbound.server import connection_limit
for soft, hard in ((100, 1080), (64, 80)):
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    print(connection_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["500", "1080", "1080", "16", "80", "80"]
