"""demo: its router has everything in it that a caller must not see (see test_cli for the show)."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from eidproxy.commands import demo
from eidproxy.commands.demo import DemoRouter
from tests.harness import Answer, parse_sse, request_bytes
from tests.loops import played


async def asked(router: DemoRouter, model: str) -> Answer:
    """What it answers to one request."""
    server = await asyncio.start_server(router.serve, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(request_bytes("POST", "/v1/chat/completions", {"model": model, "messages": []}))
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    server.close()
    return Answer(int(head.split()[1]), [], body, clean=True)


@played
async def test_an_answer_betrays_what_a_router_betrays() -> None:
    answer = await asked(DemoRouter(), "mac-mini-default")
    assert answer.body.startswith(b": keepalive 11/12\n\n")
    *chunks, done = [event.data for event in parse_sse(answer.body)]
    assert done == "[DONE]"
    told: list[dict[str, Any]] = [json.loads(data) for data in chunks]
    assert all(chunk["model"].startswith("/Users/") and chunk["system_fingerprint"] for chunk in told)
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in told) == demo._ANSWER
    assert told[-1]["usage"]["completion_tokens"] == len(told) - 1


@played
async def test_the_deep_model_is_loaded_by_its_first_request() -> None:
    cold = DemoRouter(cold_seconds=1000.0)
    assert [(await asked(cold, "qwen-macbook")).status for _ in range(2)] == [503, 503]
    warming = await asked(cold, "qwen-macbook")
    assert warming.json()["error"]["type"] == "warming"
    assert (await asked(DemoRouter(cold_seconds=0.0), "qwen-macbook")).status == 200
