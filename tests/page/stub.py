"""A server with the page and scripted answers: what eidproxy would send, said by a test, one piece at a time.

with Stub() as stub:
    gate = Hold()
    stub.script(Answer([text("Hel"), gate, text("lo"), finish(), DONE]))
    ...                      # the page has "Hel" now
    gate.release()

A `Hold` also notices that the caller left while it holds: `gate.left` is set, with the time of day in `gate.left_at`.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from eidproxy.site import CHAT_POLICY

PAGE = Path(__file__).parents[2] / "eidproxy" / "pages" / "chat"

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".txt": "text/plain; charset=utf-8",
    ".webmanifest": "application/manifest+json",
}

REQUEST_ID = "req-0123456789"

DONE = b"data: [DONE]\n\n"

_PORTS: set[int] = set()


def event(payload: dict[str, Any], name: str = "") -> bytes:
    """One event of the stream."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(payload, ensure_ascii=False)}\n\n".encode()


def chunk(choices: list[dict[str, Any]], **rest: Any) -> bytes:
    """A chunk as eidproxy builds them."""
    head = {"id": f"chatcmpl-{REQUEST_ID}", "object": "chat.completion.chunk", "created": 1, "model": "daily"}
    return event({**head, "choices": choices, **rest})


def text(content: str) -> bytes:
    """A piece of the answer."""
    return chunk([{"index": 0, "delta": {"content": content}, "finish_reason": None}])


def thought(content: str) -> bytes:
    """A piece of what the model thinks first."""
    return chunk([{"index": 0, "delta": {"reasoning_content": content}, "finish_reason": None}])


def finish(reason: str = "stop") -> bytes:
    """The chunk with the finish reason."""
    return chunk([{"index": 0, "delta": {}, "finish_reason": reason}])


def thinking(seconds: int) -> bytes:
    """A progress chunk while only reasoning arrives."""
    return chunk([], eid={"state": "thinking", "elapsed_seconds": seconds})


def queued(position: int, eta: int | None) -> bytes:
    """A progress chunk of a request that waits."""
    return chunk([], eid={"state": "queued", "position": position, "eta_seconds": eta})


UPSTREAM = chunk([], eid={"state": "upstream"})


def error(reason: str, status: int = 503) -> dict[str, Any]:
    """The error object, before the first byte or as the last event."""
    kind = "invalid_request_error" if status < 500 else "service_unavailable"
    inner = {"message": "A sentence.", "type": kind, "param": None, "code": reason}
    return {"error": inner, "error_reason": reason, "request_id": REQUEST_ID}


def failing(reason: str) -> bytes:
    """The error event that ends a stream."""
    return event(error(reason), "error")


class Hold:
    """A place in an answer where the server waits for the test, and watches whether the caller is still there."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.left = threading.Event()
        self.left_at = 0.0
        self._released = threading.Event()

    def release(self) -> None:
        """Let the answer go on."""
        self._released.set()

    def wait(self, connection: socket.socket) -> None:
        """Wait for `release`; raises ConnectionResetError when the caller leaves first."""
        self.reached.set()
        while not self._released.is_set():
            readable, _, _ = select.select([connection], [], [], 0.01)
            if readable and not _peek(connection):
                self.left_at = time.time()
                self.left.set()
                raise ConnectionResetError


def _peek(connection: socket.socket) -> bytes:
    try:
        return connection.recv(1, socket.MSG_PEEK)
    except OSError:
        return b""


@dataclass
class Answer:
    """What one POST gets; after the last step the body ends, or the connection breaks off in its middle."""

    steps: Sequence[bytes | Hold]
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": "text/event-stream; charset=utf-8"})
    end: Literal["clean", "closed", "reset"] = "clean"


def whole(content: str) -> Answer:
    """An ordinary answer."""
    return Answer([UPSTREAM, text(content), finish(), DONE])


def refusal(reason: str, status: int = 503, retry_after: int | None = None) -> Answer:
    """An answer that is a status and the error object."""
    headers = {"Content-Type": "application/json", "X-Request-Id": REQUEST_ID, "X-Eid-Error-Reason": reason}
    if retry_after is not None:
        headers["Retry-After"] = str(retry_after)
    return Answer([json.dumps(error(reason, status)).encode()], status, headers)


@dataclass
class Asked:
    """One POST the server got."""

    target: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def messages(self) -> list[tuple[str, str]]:
        """The messages as pairs of role and content."""
        return [(one["role"], one["content"]) for one in self.body["messages"]]


class Stub:
    """The server, in threads of its own."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        # What `/chat/config` and `/chat/state` say. A token whose signature is in `bad_signatures` is refused by the
        # latter; with `state_fails` it is not to be had at all.
        self.config: dict[str, Any] = {
            "title": None,
            "max_message_chars": 8000,
            "max_messages": 40,
            "max_total_chars": 32000,
        }
        self.state: dict[str, Any] = {"waiting": 0, "eta_seconds": 0}
        self.bad_signatures: set[str] = set()
        self.state_fails = False
        self._answers: list[Answer] = []
        self._holds: list[Hold] = []
        self._lock = threading.Lock()
        stub = self

        class Handler(_Handler):
            server_stub = stub

        # Never a port again: it is part of the origin, by which a browser keeps what belongs together.
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        while self._server.server_address[1] in _PORTS:
            self._server.server_close()
            self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        _PORTS.add(self._server.server_address[1])
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self.base_url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        for hold in self._holds:
            hold.release()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def script(self, *answers: Answer) -> None:
        """The answers of the next POSTs, in order."""
        with self._lock:
            self._answers += answers
            self._holds += [step for one in answers for step in one.steps if isinstance(step, Hold)]

    def take(self, asked: Asked) -> Answer:
        """Note a POST and give its answer; a POST nobody scripted is refused with a reason no test expects."""
        with self._lock:
            self.asked.append(asked)
            return self._answers.pop(0) if self._answers else refusal("unscripted")


class _Handler(BaseHTTPRequestHandler):
    server_stub: Stub
    protocol_version = "HTTP/1.1"
    # Small pieces must leave at once, and one by one.
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged."""

    def do_GET(self) -> None:
        if self.path in ("/chat/config", "/chat/state"):
            self._tell()
            return
        name = "chat.html" if self.path == "/chat" else self.path.removeprefix("/chat/")
        file = PAGE / name
        if not self.path.startswith("/chat") or not file.is_file():
            self.send_error(404)
            return
        # No service worker here: what one keeps would outlive the test.
        body = b"" if name == "offline.js" else file.read_bytes()
        self.send_response(200)
        self.send_header("Content-Type", TYPES[file.suffix])
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", CHAT_POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def _tell(self) -> None:
        stub = self.server_stub
        status, told = 200, stub.config
        if self.path == "/chat/state":
            signature = self.headers.get("Authorization", "").rpartition(".")[2]
            refused = not signature or signature in stub.bad_signatures
            status, told = (401, error("unauthorized", 401)) if refused else (200, stub.state)
            if stub.state_fails:
                status, told = 502, {}
        body = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer = self.server_stub.take(Asked(self.path, headers, body))
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for step in answer.steps:
                if isinstance(step, Hold):
                    step.wait(self.connection)
                elif step:
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(step), step))
        except OSError:
            self.close_connection = True
            return
        if answer.end == "clean":
            self.wfile.write(b"0\r\n\r\n")
            return
        self.close_connection = True
        if answer.end == "reset":
            # What the caller has not read yet is lost with it: a test lets it read first.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())
