"""The callers of the benchmark: so many streams at once, each read to its end, counted and timed.

    python -m tests.bench.load PORT STREAMS TOTAL EVENTS MICROSECONDS

prints JSON: streams that were whole, streams that were not, events, seconds, latencies in microseconds, and how many
events still held what a proxy should have taken out. An event's latency is from the router's write to our read.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from typing import cast

import httptools
import uvloop

_STAMP = re.compile(rb'"t=([0-9]+) ')
_PATIENCE_SECONDS = 60


class Load:
    """What all callers share."""

    def __init__(self, port: int, total: int, events: int, microseconds: int) -> None:
        self.port = port
        self.left = total
        self.events = events
        question = json.dumps(
            {
                "model": "daily",
                "stream": True,
                "messages": [{"role": "user", "content": f"#ev={events}# #us={microseconds}#"}],
            }
        ).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        self.request = f"{head}Content-Length: {len(question)}\r\n\r\n".encode() + question
        self.ok = self.failed = self.seen = self.leaks = 0
        self.latencies: list[int] = []
        self.firsts: list[int] = []
        self.done = asyncio.get_running_loop().create_future()
        self.running = 0

    def finish(self, whole: bool) -> None:
        if whole:
            self.ok += 1
        else:
            self.failed += 1
        self.running -= 1
        if self.running == 0 and self.left <= 0 and not self.done.done():
            self.done.set_result(None)


class Caller(asyncio.Protocol):
    """One connection; a stream after a stream on it."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._parser = httptools.HttpResponseParser(self)
        self._body = b""
        self._events = 0
        self._began = 0
        self._active = self._done = self._over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._start()

    def _start(self) -> None:
        load = self._load
        if load.left <= 0:
            self._transport.close()
            return
        load.left -= 1
        load.running += 1
        self._active, self._done, self._over, self._events, self._body = True, False, False, 0, b""
        self._parser = httptools.HttpResponseParser(self)
        self._began = time.monotonic_ns()
        self._transport.write(load.request)

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self._over = True

    def data_received(self, data: bytes) -> None:
        now, load = time.monotonic_ns(), self._load
        self._parser.feed_data(data)
        whole, blank, self._body = self._body.rpartition(b"\n\n")
        if blank:
            stamps = _STAMP.findall(whole)
            if stamps and not self._events:
                load.firsts.append((now - self._began) // 1000)
            self._events += len(stamps)
            load.seen += len(stamps)
            load.latencies.extend((now - int(stamp)) // 1000 for stamp in stamps)
            load.leaks += whole.count(b"/Users/eid") + whole.count(b'"usage"')
            self._done = self._done or whole.endswith(b"data: [DONE]")
        if self._over:
            self._active = False
            load.finish(self._done and self._events == load.events - 1)
            self._start()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._active:
            self._active = False
            self._load.finish(whole=False)


def quantile(values: list[int], share: float) -> int:
    return sorted(values)[int(share * (len(values) - 1))] if values else 0


async def run(port: int, streams: int, total: int, events: int, microseconds: int) -> dict[str, float]:
    load = Load(port, total, events, microseconds)
    loop = asyncio.get_running_loop()
    began = time.monotonic()
    for _ in range(streams):
        await loop.create_connection(lambda: Caller(load), "127.0.0.1", port)
    await asyncio.wait_for(load.done, _PATIENCE_SECONDS)
    return {
        "ok": load.ok,
        "failed": load.failed,
        "events": load.seen,
        "seconds": time.monotonic() - began,
        "leaks": load.leaks,
        "event_p50": quantile(load.latencies, 0.5),
        "event_p99": quantile(load.latencies, 0.99),
        "first_p50": quantile(load.firsts, 0.5),
    }


if __name__ == "__main__":
    print(json.dumps(uvloop.run(run(*(int(word) for word in sys.argv[1:6])))))
