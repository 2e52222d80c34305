"""The endpoints: the relay answers completions and the chat surface, Starlette's router answers everything else.

`Endpoints` is the service behind every connection. It judges a request by its head before the body is read: the site
that it comes from, host, key or token, path, media type, our own headers. Then it passes the request to the relay (for
the chat surface through `ChatSurface`), or to Starlette's router with the pages below.
"""

import asyncio
import hmac
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route, Router

from eidproxy.errors import OPERATOR_REASONS, Refusal
from eidproxy.inbound.chat import Model, parse_chat_request
from eidproxy.inbound.connection import Connection
from eidproxy.inbound.connections import State
from eidproxy.inbound.http1 import RequestHead
from eidproxy.monitoring.logs import Refusals
from eidproxy.monitoring.metrics import Metrics
from eidproxy.monitoring.record import RequestRecord
from eidproxy.monitoring.status import Status
from eidproxy.relay.relay import Job, Relay, RelayServices
from eidproxy.site import for_browser
from eidproxy.surface import ChatSurface
from eidproxy.tokens import bearer_token
from eidproxy.vocabulary import NO_MODE, Mode, Priority, Surface

CHAT_COMPLETIONS = "/v1/chat/completions"
CHAT_API = "/api/eid/chat"
CHAT_PAGE = "/chat"
CHAT_CONFIG = "/chat/config"
CHAT_STATE = "/chat/state"

_PROBES = frozenset({"/healthz", "/readyz"})
_UNLOGGED = _PROBES | {"/metrics", "/status", "/"}
"""Paths whose successful answers are neither logged nor counted."""
_UNCOUNTED = _PROBES | {CHAT_CONFIG}
"""Paths whose pages are never logged or counted: probes, and the one by which `top` sees whether there is a chat."""
_PATHS_OF_OTHER_APIS = frozenset(
    {"/v1/responses", "/v1/completions", "/v1/embeddings", "/v1/messages", "/v1/chat", "/v1/chat/completions/"}
    | {"/chat/completions", "/responses", "/completions", "/embeddings", "/v1/v1/chat/completions", "/v1/moderations"}
    | {"/api/chat", "/api/generate", "/api/v1/chat/completions", "/openai/v1/chat/completions"}
)
"""Paths that clients of another API, or with another base URL, ask for: the 404 then names our path."""
_PROGRESS_WORDS = {b"1": True, b"true": True, b"0": False, b"false": False}
_PRIORITIES = {word.value.encode(): word for word in Priority}
_TRACEPARENT = re.compile(rb"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
_NAVIGABLE = frozenset({"/", CHAT_PAGE})
"""Pages that a link on another site may open (contract, 2)."""

_MAX_PAGES_A_TURN = 4
"""How many page requests are started in one turn of the loop, so that a crowd of them does not hold it."""

_METRICS_SECONDS = 1.0
"""How old the text of `/metrics` may be (contract, 2): it takes some milliseconds to write."""

_JSON = re.compile(rb'application/json\s*(?:;\s*charset\s*=\s*"?utf-?8"?\s*)?', re.IGNORECASE)


class NotReady(Refusal):
    """The refusal of `/readyz`. Its status is 503, whatever status its reason has elsewhere (contract, 2)."""

    @property
    def status(self) -> int:
        """See `Refusal.status`."""
        return 503


class _PageTask:
    """The handler of a request for a page: a task, whose answer is written at once and cannot be paused."""

    __slots__ = ("_task",)

    def __init__(self, task: asyncio.Task[None]) -> None:
        self._task = task

    def on_disconnect(self) -> None:
        """See `connection.Handler`."""
        self._task.cancel()

    def pause(self) -> None:
        """See `connection.Handler`."""

    resume = pause


class Endpoints:
    """The service behind every connection."""

    def __init__(
        self,
        services: RelayServices,
        pages: Router,
        *,
        allowed_hosts: frozenset[str],
        api_key: str | None,
        background_api_key: str | None = None,
        models: Mapping[Mode, Model],
        max_body_bytes: int,
        buffer_bytes: int,
        chat: ChatSurface | None = None,
    ) -> None:
        self.services = services
        self.buffer_bytes = buffer_bytes
        self.draining = False
        self._pages = pages
        self._allowed_hosts = allowed_hosts
        self._api_key = None if api_key is None else api_key.encode()
        self._background_key = None if background_api_key is None else background_api_key.encode()
        self._models = models
        self._chat = chat
        self._max_body_bytes = max_body_bytes
        self._page_tasks: set[asyncio.Task[None]] = set()
        self._page_requests: deque[tuple[Connection, RequestHead, bytes]] = deque()
        self.refusals = Refusals(services.log, lambda *when: asyncio.get_running_loop().call_later(*when))

    def admit(self, head: RequestHead) -> int:
        """See `connection.Service`."""
        try:
            return self._admit(head)
        except Refusal as refusal:
            raise self._as_page_if_browser(refusal, head) from None

    def _admit(self, head: RequestHead) -> int:
        if _is_cross_site(head):
            raise Refusal("cross_site")
        if head.path in _PROBES:
            return self._max_body_bytes
        if head.host not in self._allowed_hosts:
            raise Refusal("host_not_allowed")
        if self._api_key is not None and not (self._chat is not None and _is_chat(head.path)):
            self._authorize(head)
        if self._chat is not None and head.path == CHAT_STATE:
            self._chat.authorize(head)
        if head.method == "POST":
            if head.path == CHAT_COMPLETIONS:
                if self.draining:
                    raise Refusal("draining")
                check_media_type(head)
                self._priority_of(head)
                _wants_progress(head)
                return self._max_body_bytes
            if head.path == CHAT_API and self._chat is not None:
                if self.draining:
                    raise Refusal("draining")
                self._chat.authorize(head)
                check_media_type(head)
                return min(self._chat.caps.body_bytes, self._max_body_bytes)
        if head.content_length or head.chunked:
            self._require_page(head)
        return self._max_body_bytes

    def handle(self, connection: Connection, head: RequestHead, body: bytes) -> None:
        """See `connection.Service`."""
        if head.method == "POST":
            if head.path == CHAT_COMPLETIONS:
                self._start_completion(connection, head, body)
                return
            if head.path == CHAT_API and self._chat is not None:
                self._start_conversation(self._chat, connection, head, body)
                return
        if not self._page_requests:
            connection.loop.call_soon(self._start_page_requests)
        self._page_requests.append((connection, head, body))

    def record_refusal(self, connection: Connection, head: RequestHead | None, refusal: Refusal) -> None:
        """See `connection.Service`."""
        if refusal.reason == "rules_missing":
            self.services.metrics.rules_missing.inc()
        self._record(connection, _surface_of(head), refusal.status, refusal.reason)

    def record_fault(self, where: str, error: BaseException) -> None:
        """See `connection.Service`."""
        self.services.log.fault(where, error)

    def _as_page_if_browser(self, refusal: Refusal, head: RequestHead) -> Refusal:
        """Return the refusal as a page instead of JSON if a person's browser asked: GET or HEAD that accepts HTML."""
        if head.method in ("GET", "HEAD") and b"text/html" in head.headers.get(b"accept", b""):
            return for_browser(refusal, head.path, has_chat=self._chat is not None)
        return refusal

    def _authorize(self, head: RequestHead) -> None:
        key = bearer_token(head)
        # Both keys are compared each time, so that the time reveals nothing either.
        known_keys = (self._api_key, self._background_key)
        matches = [hmac.compare_digest(key, known) for known in known_keys if known is not None]
        if not any(matches):
            raise Refusal("unauthorized")

    def _priority_of(self, head: RequestHead) -> Priority:
        """Return the class that the header names; the background key makes it BACKGROUND whatever the header says."""
        if self._background_key is not None and hmac.compare_digest(bearer_token(head), self._background_key):
            return Priority.BACKGROUND
        return _priority_of(head)

    def _start_completion(self, connection: Connection, head: RequestHead, body: bytes) -> None:
        """Start the relay for `POST /v1/chat/completions`; the whole request is checked before the gate."""
        job = Job(self._priority_of(head), trace_id=trace_id(head), sends_progress=_wants_progress(head))
        Relay(self.services, connection, parse_chat_request(body, self._models), job).start()

    def _start_conversation(self, chat: ChatSurface, connection: Connection, head: RequestHead, body: bytes) -> None:
        """Start the relay for `POST /api/eid/chat`; the whole request is checked before the gate."""
        job = Job(surface=Surface.CHAT, trace_id=trace_id(head), sends_progress=True)
        Relay(self.services, connection, chat.request(body), job).start()

    def _require_page(self, head: RequestHead) -> None:
        """Raise Refusal `not_found` or `method_not_allowed` unless a page answers, before the body is read."""
        scope = {"type": "http", "method": head.method, "path": head.path, "root_path": "", "headers": []}
        matches = {route.matches(scope)[0]: route for route in self._pages.routes}
        if Match.FULL not in matches:
            page = matches.get(Match.PARTIAL)
            if not isinstance(page, Route):
                raise _not_found(head.path)
            raise Refusal("method_not_allowed", allow=", ".join(sorted(page.methods or ())).encode())

    def _start_page_requests(self) -> None:
        """Start the oldest page requests, `_MAX_PAGES_A_TURN` in each turn of the loop."""
        for _ in range(min(len(self._page_requests), _MAX_PAGES_A_TURN)):
            connection, head, body = self._page_requests.popleft()
            if connection.state is not State.BUSY:
                continue  # the caller left
            task = connection.loop.create_task(self._answer_page_request(connection, head, body))
            connection.handler = _PageTask(task)
            self._page_tasks.add(task)
            task.add_done_callback(self._page_tasks.discard)
        if self._page_requests:
            asyncio.get_running_loop().call_soon(self._start_page_requests)

    async def _answer_page_request(self, connection: Connection, head: RequestHead, body: bytes) -> None:
        """Answer a request through Starlette's router. The body is complete and the answer small: none is streamed."""
        status, headers, sent = 500, [], bytearray()

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            nonlocal status, headers
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [(name.title(), value) for name, value in message["headers"] if name != b"content-length"]
            else:
                sent.extend(message.get("body", b""))

        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": head.method,
            "scheme": "http",
            # The path as it was sent, not decoded: another spelling of a path is another path.
            "path": head.path,
            "raw_path": head.path.encode(),
            "root_path": "",
            "query_string": head.query.encode(),
            "headers": list(head.headers.items()),
            "client": None,
            "server": None,
        }
        reason: str | None = None
        try:
            await self._pages(scope, receive, send)
            if status == 404:
                raise self._as_page_if_browser(_not_found(head.path), head)
            if status == 405:
                allow = b"".join(value for name, value in headers if name == b"Allow")
                raise Refusal("method_not_allowed", allow=b", ".join(sorted(allow.split(b", "))))
            connection.respond(status, headers, bytes(sent))
        except Refusal as refusal:
            status, reason = refusal.status, refusal.reason
            connection.refuse(refusal)
        except Exception as error:  # noqa: BLE001  # a page's fault is no reason to leave a caller without an answer
            self.record_fault("page", error)
            status, reason = 500, "internal_error"
            connection.refuse(Refusal("internal_error"))
        is_quiet = reason is None and (head.path in _UNLOGGED or head.path.startswith(CHAT_PAGE))
        if not is_quiet and head.path not in _UNCOUNTED:
            self._record(connection, _surface_of(head), status, reason)

    def _record(self, connection: Connection, surface: Surface, status: int, reason: str | None) -> None:
        """Count and log a request that did not reach the relay."""
        record = RequestRecord(
            request_id=connection.request_id,
            surface=surface,
            mode=NO_MODE,
            reason=reason,
            status=status,
            seconds=asyncio.get_running_loop().time() - connection.began_at,
        )
        self.services.metrics.count_request(record)
        if reason is None or record.label in OPERATOR_REASONS:
            self.services.log.request(record)
        else:
            self.refusals.add(record)


def check_media_type(head: RequestHead) -> None:
    """Raise Refusal `unsupported_media_type` unless the body is plain JSON in UTF-8."""
    media_type = head.headers.get(b"content-type", b"")
    if (
        not (media_type == b"application/json" or _JSON.fullmatch(media_type))
        or head.headers.get(b"content-encoding", b"identity").lower() != b"identity"
    ):
        raise Refusal("unsupported_media_type")


def trace_id(head: RequestHead) -> str | None:
    """Return the trace id of a valid `traceparent` (W3C Trace Context, 3.2.2), else None."""
    given = head.headers.get(b"traceparent")
    if given is None:
        return None
    match = _TRACEPARENT.fullmatch(given)
    if match is None or b"traceparent" in head.repeated or not int(match[1], 16) or not int(match[2], 16):
        return None
    return match[1].decode()


def _is_cross_site(head: RequestHead) -> bool:
    """Return whether a page of another site asks (W3C Fetch Metadata), other than by a link to a navigable page."""
    site = head.headers.get(b"sec-fetch-site")
    if site is None or b"cross-site" not in site.lower():
        return False
    mode = head.headers.get(b"sec-fetch-mode", b"").lower()
    return not (mode == b"navigate" and head.method == "GET" and head.path in _NAVIGABLE)


def _is_chat(path: str) -> bool:
    return path in (CHAT_API, CHAT_PAGE) or path.startswith(CHAT_PAGE + "/")


def _surface_of(head: RequestHead | None) -> Surface:
    return Surface.CHAT if head is not None and head.path in (CHAT_API, CHAT_PAGE) else Surface.PROXY


def _not_found(path: str) -> Refusal:
    return Refusal("not_found", hint=f"Use {CHAT_COMPLETIONS} instead." if path in _PATHS_OF_OTHER_APIS else "")


def _priority_of(head: RequestHead) -> Priority:
    word = head.headers.get(b"x-eid-priority", b"foreground")
    if word not in _PRIORITIES or b"x-eid-priority" in head.repeated:
        raise Refusal("invalid_priority")
    return _PRIORITIES[word]


def _wants_progress(head: RequestHead) -> bool:
    word = head.headers.get(b"x-eid-progress", b"0")
    if word not in _PROGRESS_WORDS or b"x-eid-progress" in head.repeated:
        raise Refusal("invalid_request", hint="X-Eid-Progress is 1, true, 0 or false.")
    return _PROGRESS_WORDS[word]


def json_response(value: Any) -> Response:
    """Return a response with a value as JSON."""
    return Response(msgspec.json.encode(value), media_type="application/json")


async def answered_by_relay(_: Request) -> Response:
    """Hold the place of a path whose POST goes to the relay, so that Starlette answers other methods with 405."""
    raise Refusal("internal_error")


def build_pages(
    *,
    metrics: Metrics,
    ready: Callable[[], Awaitable[str | None]],
    status: Callable[[], Status],
    created: int,
    extra: list[Route],
    clock: Callable[[], float] = time.monotonic,
) -> Router:
    """Return a router with every endpoint that the relay does not answer.

    `ready` returns the reason why the proxy is not ready, or None.
    """
    texts: dict[str, tuple[float, bytes]] = {}  # by content type: a few, whatever callers accept
    models = [{"id": mode, "object": "model", "created": created, "owned_by": "eidproxy"} for mode in Mode]

    async def healthz(_: Request) -> Response:
        return json_response({"status": "ok"})

    async def readyz(_: Request) -> Response:
        reason = await ready()
        if reason is not None:
            raise NotReady(reason)
        return json_response({"status": "ready"})

    async def show_metrics(request: Request) -> Response:
        write, content_type = metrics.writer(request.headers.get("accept", ""))
        written_at, text = texts.get(content_type, (-_METRICS_SECONDS, b""))
        now = clock()
        if now - written_at >= _METRICS_SECONDS:
            text = write()
            texts[content_type] = now, text
        return Response(text, headers={"content-type": content_type})

    async def show_status(_: Request) -> Response:
        return json_response(status())

    async def list_models(_: Request) -> Response:
        return json_response({"object": "list", "data": models})

    async def show_model(request: Request) -> Response:
        for model in models:
            if model["id"] == request.path_params["name"]:
                return json_response(model)
        raise Refusal("model_not_found", "model")

    return Router(
        [
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", show_metrics),
            Route("/status", show_status),
            Route("/v1/models", list_models),
            Route("/v1/models/{name}", show_model),
            Route(CHAT_COMPLETIONS, answered_by_relay, methods=["POST"]),
            *extra,
        ],
        redirect_slashes=False,
    )
