"""endpoints: pages that cost something are not made for each who asks."""

from __future__ import annotations

import asyncio
from typing import Any

from eidproxy.endpoints import build_pages
from eidproxy.monitoring.metrics import Metrics
from eidproxy.monitoring.status import Status


def test_the_text_of_metrics_is_kept_for_a_second() -> None:
    """For each of its content types, whatever else is asked for in `Accept`."""
    now = 100.0
    metrics = Metrics("0")

    async def ready() -> None:
        return None

    def status() -> Status:
        raise AssertionError("no page of this test asks for it")

    pages = build_pages(metrics=metrics, ready=ready, status=status, created=0, extra=[], clock=lambda: now)

    async def get(accept: str) -> bytes:
        said = bytearray()

        async def send(message: Any) -> None:
            said.extend(message.get("body", b""))

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        scope = {"type": "http", "method": "GET", "path": "/metrics", "root_path": "", "query_string": b""}
        headers = [(b"accept", accept.encode())]
        await pages({**scope, "headers": headers, "raw_path": b"/metrics"}, receive, send)
        return bytes(said)

    async def play() -> None:
        nonlocal now
        first = await get("text/plain")
        metrics.forced_releases.inc()
        assert await get("text/plain;q=0.123") == first
        assert b"eidproxy_gate_forced_releases_total 1.0" in await get("application/openmetrics-text; version=1.0.0")
        now += 0.99
        assert await get("*/*") == first
        now += 0.02
        assert b"eidproxy_gate_forced_releases_total 1.0" in await get("text/plain")

    asyncio.run(play())
