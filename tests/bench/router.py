"""The router of the benchmark: streams that a request asks for, each event its own write and its own chunk.

    python -m tests.bench.router PORT

`#ev=64#` and `#us=20000#` anywhere in the body say how many events and how many microseconds apart. Each event carries
the moment it was written (CLOCK_MONOTONIC, ns) in its content, and what a proxy should take out: a path, a fingerprint,
usage.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from typing import cast

import uvloop

_OPTION = re.compile(rb"#(ev|us)=([0-9]+)#")
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_EVENT = (
    b'data: {"id":"chatcmpl-5f3e","object":"chat.completion.chunk","created":1763800000,'
    b'"model":"/Users/eid/mlx-models/Qwen3.6-27B-8bit","system_fingerprint":"0.32.2-macOS-26.1-arm64",'
    b'"choices":[{"index":0,"delta":{"role":"assistant","content":"t=%d "},"finish_reason":null}]}\n\n'
)
_LAST = (
    b'data: {"id":"chatcmpl-5f3e","model":"/Users/eid/mlx-models/Qwen3.6-27B-8bit","choices":[{"index":0,"delta":{},'
    b'"finish_reason":"stop"}],"usage":{"prompt_tokens":23,"completion_tokens":64}}\n\n'
)
_BURST = 8


class Stream(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self._buffer = b""
        self._left = 0
        self._pause = 0.0
        self._due = 0.0
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._writing = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: *([0-9]+)", head, re.IGNORECASE)
        if not found or length is None or len(body) < int(length[1]):
            return
        self._buffer = b""
        options = {name: int(value) for name, value in _OPTION.findall(body)}
        self._left, self._pause = options.get(b"ev", 64), options.get(b"us", 0) / 1e6
        self._transport.write(_HEAD)
        self._due = self._loop.time() + self._pause
        self._next()

    def pause_writing(self) -> None:
        self._writing = False

    def resume_writing(self) -> None:
        self._writing = True
        if self._left:
            self._next()

    def _next(self) -> None:
        for _ in range(1 if self._pause else _BURST):
            if self._transport.is_closing() or not self._writing:
                return
            self._left -= 1
            event = _EVENT % time.monotonic_ns() if self._left else _LAST
            self._transport.write(b"%x\r\n%b\r\n" % (len(event), event))
            if not self._left:
                self._transport.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
                return
        if self._pause:
            self._due += self._pause
            self._loop.call_at(self._due, self._next)
        else:
            self._loop.call_soon(self._next)


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Stream, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
