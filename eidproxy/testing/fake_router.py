"""A scripted router in place of a real one, for an app's tests and for the demo.

    with FakeRouter() as router:
        router.play(stream("Good ", "morning"), cut("Good "))   # one for each request; the last one repeats
        ...                                                     # eidproxy asks it
        assert router.max_concurrent == 1

It listens on a real socket, in a thread of its own, and knows both aliases. Its answers contain what a caller of
eidproxy must never see: the path of a model, a fingerprint, token counts.
"""

import asyncio
import itertools
import json
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

ALIASES = {"daily": "mac-mini-default", "deep": "qwen-macbook"}
"""The router's name for each mode: eidproxy's defaults."""

MODEL_PATH = "/Users/fake/models/Secret-27B-8bit"
FINGERPRINT = "fp-fake-router-macOS-arm64"
"""In each event, so that a test can check that a caller never gets them."""

_PATIENCE_SECONDS = 30.0
"""How long a test waits for what should take milliseconds, before it fails."""

_MAX_REQUEST_BYTES = 64 << 20
"""Limit of the reader's buffer: a test whose request exceeds it has a fault."""


@dataclass(frozen=True, slots=True)
class ReceivedRequest:
    """One request that was received whole."""

    mode: str
    """`daily` or `deep`; empty for an alias that the router does not know."""
    body: dict[str, Any]
    """As eidproxy sent it."""
    headers: dict[str, str]
    """With names in lower case."""

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation, the system message first if there is one."""
        return list(self.body.get("messages", []))

    @property
    def question(self) -> str:
        """The text of the last message."""
        text = self.messages[-1].get("content") if self.messages else ""
        return text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)


class Hold:
    """A step of a script: silence until `FakeRouter.wake`, or until the caller leaves."""


@dataclass(frozen=True, slots=True)
class Script:
    """The response to one request: bytes to send, seconds of silence, holds; then the connection is closed."""

    steps: tuple[bytes | float | Hold, ...]


ScriptChoice = Script | Callable[[ReceivedRequest], "ScriptChoice"]
"""A script, or a function that chooses one by the request."""


def stream(*words: str, every: float = 0.0, thinking: Iterable[str] = (), finish_reason: str = "stop") -> Script:
    """Return a whole answer, one event for each word, `every` seconds apart; `thinking` comes first, as reasoning."""
    return Script((*_stream_start(words, every, thinking), *_stream_end(finish_reason)))


def call(name: str, arguments: dict[str, Any]) -> Script:
    """Return an answer that calls a tool."""
    function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
    delta = {"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": function}]}
    return Script((_STREAM, _event(delta), *_stream_end("tool_calls")))


def refusal(status: int = 503, type: str = "overloaded", message: str = "fake-router.local says no") -> Script:
    """Return an error instead of an answer, in OpenAI's form."""
    return Script((_json(status, {"error": {"type": type, "message": message, "code": None}}),))


def warming() -> Script:
    """Return the refusal of a router whose model is being loaded."""
    return refusal(503, "warming")


def cut(*words: str, every: float = 0.0) -> Script:
    """Return an answer that ends in the middle: no finish reason, no `[DONE]`."""
    return Script(tuple(_stream_start(words, every, ())))


def stall(*words: str, every: float = 0.0) -> Script:
    """Return an answer that begins and then goes silent."""
    return Script((*_stream_start(words, every, ()), Hold(), *_stream_end("stop")))


def hang() -> Script:
    """Return a script that takes the request and sends nothing: a model server that is stuck."""
    return Script((Hold(), _STREAM, _event({"role": "assistant", "content": "back"}), *_stream_end("stop")))


def wake_up(then: ScriptChoice, *, refused: int = 1) -> Callable[[ReceivedRequest], ScriptChoice]:
    """Return a function that answers the first `refused` requests with `warming()`, and later ones with `then`."""
    left = itertools.count(refused, -1)
    return lambda _: warming() if next(left) > 0 else then


def _stream_start(words: Iterable[str], every: float, thinking: Iterable[str]) -> Iterator[bytes | float]:
    yield _STREAM
    deltas = [{"reasoning_content": text} for text in thinking] + [{"content": text} for text in words]
    for number, delta in enumerate(deltas):
        if number and every:
            yield every
        yield _event({"role": "assistant", **delta} if number == 0 else delta)


def _stream_end(finish_reason: str) -> tuple[bytes, ...]:
    return (_event({}, finish_reason), b"data: [DONE]\n\n")


def _event(delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
    chunk = {
        "id": "chatcmpl-fake",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": MODEL_PATH,
        "system_fingerprint": FINGERPRINT,
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
    }
    if finish_reason is not None:
        chunk["usage"] = {"prompt_tokens": 23, "completion_tokens": 42, "total_tokens": 65}
    return b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n"


def _head(status: int, content_type: str, more: str = "") -> bytes:
    lines = f"HTTP/1.1 {status} Fake\r\nServer: fake-router\r\nContent-Type: {content_type}\r\n{more}"
    return f"{lines}Connection: close\r\n\r\n".encode()


def _json(status: int, value: Any) -> bytes:
    body = json.dumps(value).encode()
    return _head(status, "application/json", f"Content-Length: {len(body)}\r\n") + body


_STREAM = _head(200, "text/event-stream")


@dataclass(eq=False)
class FakeRouter:
    """A router in a thread of its own. Use it with `with`; call `play` at any time."""

    requests: list[ReceivedRequest] = field(default_factory=list)
    """Every request that was received whole, oldest first."""
    concurrent: int = 0
    """How many requests of `daily` are running now; `max_concurrent` is the maximum so far."""
    max_concurrent: int = 0
    left: int = 0
    """How many callers left before the end of their answer."""
    ended: Counter[str] = field(default_factory=Counter)
    """How many answers were sent to their end, by mode."""
    port: int = 0
    """The port it listens on; 0 until it has started, unless one was given."""

    def __post_init__(self) -> None:
        self._scripts: dict[str, deque[ScriptChoice]] = {mode: deque([stream("Hello", "!")]) for mode in ALIASES}
        self._changed = threading.Condition()
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="fake-router", daemon=True)

    @property
    def url(self) -> str:
        """The value of `LLM_ROUTER_URL` for a proxy in front of it."""
        return f"http://127.0.0.1:{self.port}"

    def play(self, *scripts: ScriptChoice, mode: str | None = None) -> None:
        """Answer with these, one for each request of `mode` (or of both); the last one repeats. Raises ValueError."""
        if not scripts or (mode is not None and mode not in ALIASES):
            raise ValueError("play needs a script, and a mode that is daily or deep")
        with self._changed:
            for each in ALIASES if mode is None else (mode,):
                self._scripts[each] = deque(scripts)

    def wake(self) -> None:
        """End every hold that has begun."""
        self._loop.call_soon_threadsafe(self._wake)

    def wait_for(self, reached: Callable[[Self], bool], seconds: float = _PATIENCE_SECONDS) -> None:
        """Block until `reached` is true: `router.wait_for(lambda it: it.concurrent == 1)`. Raises TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: reached(self), seconds):
                raise TimeoutError(f"the fake router did not reach that state within {seconds:g} s")

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.wait(_PATIENCE_SECONDS)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._stop_event.set)
        self._thread.join()

    # In the router's thread

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._woken, self._stop_event = asyncio.Event(), asyncio.Event()
        server = await asyncio.start_server(self._handle_connection, "127.0.0.1", self.port, limit=_MAX_REQUEST_BYTES)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stop_event.wait()
        server.close()

    def _wake(self) -> None:
        self._woken.set()
        self._woken = asyncio.Event()

    async def _handle_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                head = await reader.readuntil(b"\r\n\r\n")
                request_line, *lines = head.decode("latin-1").split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                body = await reader.readexactly(int(headers.get("content-length") or 0))
                if request_line.startswith("GET "):
                    writer.write(_json(200, {"object": "list", "data": [{"id": each} for each in ALIASES.values()]}))
                    await writer.drain()
                else:
                    await self._answer(reader, writer, headers, json.loads(body))
        finally:
            writer.close()

    async def _answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, headers: dict[str, str], body: dict[str, Any]
    ) -> None:
        mode = next((mode for mode, alias in ALIASES.items() if alias == body.get("model")), "")
        request = ReceivedRequest(mode, body, headers)
        playing = asyncio.ensure_future(self._play(writer, self._choose_script(request)))
        leaving = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait((playing, leaving), return_when=asyncio.FIRST_COMPLETED)
            is_whole = playing.done() and playing.exception() is None
        finally:
            for task in (playing, leaving):
                task.cancel()
            await asyncio.gather(playing, leaving, return_exceptions=True)
        with self._changed:
            self.concurrent -= mode == "daily"
            self.left += not is_whole
            self.ended[mode] += is_whole
            self._changed.notify_all()

    def _choose_script(self, request: ReceivedRequest) -> Script:
        """Count the request and choose its script."""
        with self._changed:
            self.requests.append(request)
            self.concurrent += request.mode == "daily"
            self.max_concurrent = max(self.max_concurrent, self.concurrent)
            self._changed.notify_all()
            if not request.mode:
                return refusal(404, "not_found_error")
            scripts = self._scripts[request.mode]
            choice = scripts.popleft() if len(scripts) > 1 else scripts[0]
        while not isinstance(choice, Script):
            choice = choice(request)
        return choice

    async def _play(self, writer: asyncio.StreamWriter, script: Script) -> None:
        due = time.monotonic()
        for step in script.steps:
            if isinstance(step, Hold):
                await self._woken.wait()
                due = time.monotonic()
            elif isinstance(step, bytes):
                writer.write(step)
                await writer.drain()
            else:
                due += step
                await asyncio.sleep(due - time.monotonic())
