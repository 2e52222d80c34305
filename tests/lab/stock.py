"""A proxy as one would write it with the usual parts: the control of the suites. No part of eidproxy.

A semaphore of one, a pooled httpx client, Starlette's StreamingResponse, uvicorn with httptools. It keeps its slot
where callers leave in ways that these parts do not notice, passes on whatever it is told, and bounds nothing.

    with Stock(router) as stock:
        ask(stock, "POST", CHAT, chat())
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Self

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.lab.client import ask
from tests.lab.router import Router
from tests.lab.tools import free_port, until


class Stock:
    """That proxy as a process. `pool` connections of httpx's client are the gate when given, else a semaphore of one.

    `limit` is uvicorn's limit of concurrent connections, `prefix` the words of a program that starts it.
    """

    def __init__(
        self, router: Router, *, pool: int | None = None, limit: int | None = None, prefix: Sequence[str] = ()
    ) -> None:
        self.address = ("127.0.0.1", free_port())
        settings = {"ROUTER": router.url, "PORT": self.address[1], "POOL": pool or "", "LIMIT": limit or ""}
        self._environment = {**os.environ, **{name: str(value) for name, value in settings.items()}}
        self._command = [*prefix, sys.executable, "-m", "tests.lab.stock"]

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(self._command, env=self._environment)
        try:
            until(self._up, 60)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def _up(self) -> bool:
        with contextlib.suppress(OSError, EOFError):
            return ask(self, "GET", "/healthz").status == 200
        return False


async def complete(request: Request) -> Response:
    """Wait for the slot, ask the router, pass on what it says."""
    body = await request.body()
    client: httpx.AsyncClient = request.app.state.client
    gate: asyncio.Semaphore | contextlib.nullcontext[None] = request.app.state.gate

    async def answer() -> AsyncIterator[bytes]:
        async with gate, client.stream("POST", "/v1/chat/completions", content=body) as response:
            async for piece in response.aiter_raw():
                yield piece

    return StreamingResponse(answer(), media_type="text/event-stream")


async def healthz(_: Request) -> Response:
    """200."""
    return PlainTextResponse("ok")


app = Starlette(routes=[Route("/v1/chat/completions", complete, methods=["POST"]), Route("/healthz", healthz)])

if __name__ == "__main__":
    pool = int(os.environ["POOL"] or 0)
    app.state.gate = contextlib.nullcontext() if pool else asyncio.Semaphore(1)
    app.state.client = httpx.AsyncClient(
        base_url=os.environ["ROUTER"],
        trust_env=False,
        timeout=httpx.Timeout(30, pool=1) if pool else 30,
        # A connection for each request, as in eidproxy: what is left behind is not what is kept alive.
        limits=httpx.Limits(max_connections=pool, max_keepalive_connections=0) if pool else httpx.Limits(),
    )
    uvicorn.run(
        app,
        port=int(os.environ["PORT"]),
        http="httptools",
        log_level="critical",
        limit_concurrency=int(os.environ["LIMIT"] or 0) or None,
    )
