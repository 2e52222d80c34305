"""Ask a question, of the router itself or of an eidproxy in front of it, and keep all that comes back.

The router's bytes are kept unchanged with their times, since `check --live` judges the router and not only its answer.
They stay in this process: only numbers, reasons and booleans of a `Response` are ever printed.
"""

import asyncio
import json
import re
import time
from contextlib import suppress
from typing import Any, NamedTuple

import httpx

from eidproxy.egress import EgressBlocked
from eidproxy.errors import reason_of_status
from eidproxy.relay.chunk import TEXTS, THOUGHTS
from eidproxy.router.exchange import Exchange
from eidproxy.router.reasons import reason_of_fault
from eidproxy.router.response import ResponseHead
from eidproxy.router.upstream import Upstream
from eidproxy.vocabulary import Mode

_LINE = re.compile(rb"([^\r\n]*)(?:\r\n|\r|\n)")
_UPSTREAM_TIME = re.compile(r"upstream;dur=([0-9.]+)")
_MAX_BYTES = 1024 * 1024
"""Limit for an answer: a thousand times what the questions ask for."""


class Read(NamedTuple):
    """The bytes of one read, and the seconds since the request was sent."""

    seconds: float
    data: bytes


class StreamItem(NamedTuple):
    """A comment or an event of a stream, and the seconds from the request to its last byte."""

    seconds: float
    value: bytes
    is_comment: bool = False


class EventContent(NamedTuple):
    """The content of one event, in any known dialect; empty when the dialect is not known."""

    seconds: float
    text: str = ""
    reasoning: str = ""
    finish_reason: str | None = None
    calls: int = 0
    is_error: bool = False
    has_model_fields: bool = False
    """Whether the event has any of the fields of a model's events: `id`, `object`, `model`, `created`."""

    @property
    def is_first_event(self) -> bool:
        """Whether the event would count as a request's first event (contract, 4): a lone role does not."""
        return bool(self.text or self.reasoning or self.calls or self.finish_reason)


class Response(NamedTuple):
    """The response to one question."""

    status: int | None
    """None when no response head came."""
    reason: str | None
    """Why the response is no answer, as a reason of eidproxy's errors; None when it is one."""
    reads: list[Read]
    seconds: float
    """From the request to the end."""
    upstream_seconds: float | None = None
    """From the slot to the first event, as an eidproxy reports it: without the time in its queue."""

    @property
    def body(self) -> bytes:
        """All bytes of the response."""
        return b"".join(read.data for read in self.reads)

    @property
    def events(self) -> list[EventContent]:
        """The events of the response, without `[DONE]`."""
        return [read_event(item) for item in split_stream(self.reads) if not item.is_comment and not is_done(item)]

    @property
    def first_event_seconds(self) -> float | None:
        """Seconds from the request, or from the slot if known, to the first event; None when none came."""
        if self.upstream_seconds is not None:
            return self.upstream_seconds
        return next((event.seconds for event in self.events if event.is_first_event), None)

    @property
    def tokens(self) -> int:
        """The number of events with text, reasoning or a call: with most servers the number of tokens."""
        return sum(bool(event.text or event.reasoning or event.calls) for event in self.events)


def split_stream(reads: list[Read]) -> list[StreamItem]:
    """Return the comments and events of a stream, by the WHATWG grammar; an unfinished one is left out."""
    body = b"".join(read.data for read in reads).removeprefix(b"\xef\xbb\xbf")
    ends, total = [], 0
    for read in reads:
        total += len(read.data)
        ends.append((total, read.seconds))
    items: list[StreamItem] = []
    data: list[bytes] = []
    is_error = False
    for line in _LINE.finditer(body):
        seconds = next((at for end, at in ends if end >= line.end()), ends[-1][1])
        name, _, value = line[1].partition(b":")
        value = value.removeprefix(b" ")
        if not line[1]:
            if data or is_error:
                items.append(StreamItem(seconds, b'{"error":1}' if is_error else b"\n".join(data)))
            data, is_error = [], False
        elif not name:
            items.append(StreamItem(seconds, value, is_comment=True))
        elif name == b"data":
            data.append(value)
        elif name == b"error" or (name == b"event" and value == b"error"):
            is_error = True
    return items


def is_done(item: StreamItem) -> bool:
    """Return whether an event is the end mark `[DONE]`."""
    return item.value.strip() == b"[DONE]"


def read_event(item: StreamItem) -> EventContent:
    """Return the content of an event."""
    try:
        event = json.loads(item.value)
    except (ValueError, RecursionError):
        return EventContent(item.seconds)
    if not isinstance(event, dict):
        return EventContent(item.seconds)
    if event.get("error") or event.get("object") == "error":
        return EventContent(item.seconds, is_error=True)
    choices = event.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    delta = choice.get("delta") or choice.get("message")
    delta = delta if isinstance(delta, dict) else {}
    finish_reason, calls = choice.get("finish_reason"), delta.get("tool_calls")
    return EventContent(
        item.seconds,
        text="".join(_text(delta.get(name)) for name in TEXTS if name not in THOUGHTS),
        reasoning="".join(_text(delta.get(name)) for name in THOUGHTS) or _text(delta.get("reasoning")),
        finish_reason=finish_reason if isinstance(finish_reason, str) and finish_reason not in ("", "null") else None,
        calls=len(calls) if isinstance(calls, list) else 0,
        has_model_fields=any(event.get(name) for name in ("id", "object", "model", "created")),
    )


def _text(value: Any) -> str:
    if isinstance(value, list):  # a list of content parts
        return "".join(_text(part.get("text")) for part in value if isinstance(part, dict))
    return value if isinstance(value, str) else ""


class Router:
    """The router itself, asked with the bytes that eidproxy would send."""

    def __init__(self, upstream: Upstream, aliases: dict[Mode, str], patience_seconds: float) -> None:
        self._upstream = upstream
        self._aliases = aliases
        self._patience_seconds = patience_seconds

    async def ask(self, mode: Mode, question: dict[str, Any]) -> Response:
        """Ask for a stream, and read it to its end."""
        body = json.dumps({"model": self._aliases[mode], "stream": True, **question}).encode()
        return await exchange_bytes(self._upstream, self._upstream.request_bytes(body), self._patience_seconds)


class _Collector:
    """A sink that keeps everything from an exchange. See `exchange.Sink`."""

    def __init__(self) -> None:
        self.began_at = time.monotonic()
        self.status: int | None = None
        self.is_event_stream = False
        self.reads: list[Read] = []
        self.failure: str | None = None
        self.ended = asyncio.Event()
        self._size = 0

    def upstream_head(self, head: ResponseHead) -> None:
        self.status, self.is_event_stream = head.status, head.is_event_stream

    def upstream_body(self, data: bytes, *_: object) -> None:
        self.reads.append(Read(time.monotonic() - self.began_at, data))
        self._size += len(data)
        if self._size > _MAX_BYTES:
            self.failure = "upstream_protocol_error"
            self.ended.set()

    def upstream_end(self, error: httpx.TransportError | None) -> None:
        if error is not None:
            self.failure = reason_of_fault(error)
        self.ended.set()

    def response(self) -> Response:
        """Return the response so far."""
        return Response(self.status, self._reason(), self.reads, time.monotonic() - self.began_at)

    def _reason(self) -> str | None:
        if self.status is None:
            return self.failure or "router_RemoteProtocolError"
        if self.status != 200:
            return reason_of_status(self.status, b"".join(read.data for read in self.reads))
        if not self.is_event_stream:
            return "upstream_protocol_error"
        if self.failure is None and any(event.is_error for event in Response(200, None, self.reads, 0.0).events):
            return "upstream_error"
        return self.failure


async def exchange_bytes(upstream: Upstream, message: bytes, patience_seconds: float) -> Response:
    """Send the bytes of one request to the router and read the answer to its end, or for `patience_seconds`."""
    try:
        exchange: Exchange = await upstream.connect()
    except (EgressBlocked, httpx.TransportError) as error:
        return Response(None, reason_of_fault(error), [], 0.0)
    collector = _Collector()
    exchange.start(message, collector)
    try:
        async with asyncio.timeout(patience_seconds):
            await collector.ended.wait()
    except TimeoutError:
        collector.failure = "router_ReadTimeout"
    finally:
        exchange.abort()
    return collector.response()


class Proxy:
    """An eidproxy, asked as BACKGROUND, so that a check overtakes nobody."""

    def __init__(self, client: httpx.AsyncClient, patience_seconds: float) -> None:
        self._client = client
        self._patience_seconds = patience_seconds

    async def ask(
        self,
        mode: Mode,
        question: dict[str, Any],
        *,
        leave_at_first_event: bool = False,
        leave_after: float | None = None,
    ) -> Response:
        """Ask for a stream and read it to its end, or leave at its first bytes or after `leave_after` seconds."""
        began_at = time.monotonic()
        reads: list[Read] = []
        status, reason, upstream_seconds = None, None, None
        patience_seconds = self._patience_seconds if leave_after is None else leave_after
        try:
            async with (
                asyncio.timeout(patience_seconds),
                self._client.stream(
                    "POST",
                    "/v1/chat/completions",
                    json={"model": mode, "stream": True, **question},
                    headers={"X-Eid-Priority": "background"},
                    timeout=patience_seconds + 1,
                ) as answer,
            ):
                status, reason = answer.status_code, answer.headers.get("x-eid-error-reason")
                if (upstream_time := _UPSTREAM_TIME.search(answer.headers.get("server-timing", ""))) is not None:
                    upstream_seconds = float(upstream_time[1]) / 1e3
                async for data in answer.aiter_raw():
                    reads.append(Read(time.monotonic() - began_at, data))
                    if leave_at_first_event:
                        break
        except TimeoutError:
            reason = None if leave_after is not None else "no_answer"
        except httpx.TransportError as error:
            reason = f"eidproxy_{type(error).__name__}"
        return Response(status, reason or _reason_in(reads), reads, time.monotonic() - began_at, upstream_seconds)


def _reason_in(reads: list[Read]) -> str | None:
    """Return the reason in the error event that ends a stream of eidproxy, or None."""
    with suppress(ValueError, KeyError, TypeError):
        for line in b"".join(read.data for read in reads).split(b"\n"):
            if line.startswith(b'data: {"error"'):
                return str(json.loads(line[6:])["error_reason"])
    return None


def is_eidproxy(response: Response) -> bool:
    """Return whether a response to `GET /v1/models` comes from an eidproxy, even from one that refuses."""
    try:
        value = json.loads(response.body)
        if response.status == 200:
            return any(model["owned_by"] == "eidproxy" for model in value["data"])
        error = value["error"]
        ours = {"error", "error_reason", "request_id"} == set(value) and {"message", "type", "param", "code"} == set(
            error
        )
        return ours and error["code"] == value["error_reason"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


async def request_models(upstream: Upstream, patience_seconds: float) -> Response:
    """Send `GET /v1/models` to the router; this costs no token. No key is sent: a refusal shows an eidproxy, too."""
    authority = f"[{upstream.host}]" if ":" in upstream.host else upstream.host
    head = f"GET /v1/models HTTP/1.1\r\nHost: {authority}:{upstream.port}\r\nAccept-Encoding: identity\r\n"
    return await exchange_bytes(upstream, f"{head}Connection: close\r\n\r\n".encode(), patience_seconds)
