"""The obvious relay, for comparison: Starlette in front, one shared httpx client behind, each event parsed and rebuilt.

uvicorn tests.bench.obvious:app
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import httpx
import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

client = httpx.AsyncClient(
    base_url=os.environ.get("LLM_ROUTER_URL", "http://127.0.0.1:4000"),
    timeout=300,
    trust_env=False,
    limits=httpx.Limits(max_connections=None),
)


async def complete(request: Request) -> StreamingResponse:
    body = await request.body()

    async def events() -> AsyncIterator[bytes]:
        headers = {"Content-Type": "application/json"}
        async with client.stream("POST", "/v1/chat/completions", content=body, headers=headers) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    chunk = msgspec.json.decode(line[6:])
                    chunk["model"] = "daily"
                    chunk.pop("usage", None)
                    chunk.pop("system_fingerprint", None)
                    yield b"data: " + msgspec.json.encode(chunk) + b"\n\n"
                elif line:
                    yield line.encode() + b"\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


app = Starlette(routes=[Route("/v1/chat/completions", complete, methods=["POST"])])
