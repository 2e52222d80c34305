"""A proxy as one would write it with the usual parts: the control of the suites about departures. No part of eidproxy.

A semaphore of one, a pooled httpx client, Starlette's StreamingResponse, uvicorn with httptools. It keeps its slot
where callers leave in ways that these parts do not notice.

    ROUTER=http://127.0.0.1:9 PORT=8080 python -m tests.stock
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

gate = asyncio.Semaphore(1)


async def complete(request: Request) -> Response:
    """Wait for the slot, ask the router, pass on what it says."""
    body = await request.body()
    client: httpx.AsyncClient = request.app.state.client

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
    app.state.client = httpx.AsyncClient(base_url=os.environ["ROUTER"], trust_env=False, timeout=30)
    uvicorn.run(app, port=int(os.environ["PORT"]), http="httptools", log_level="critical")
