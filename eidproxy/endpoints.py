"""What can be asked for: the main job and the chat surface through the relay, the rest through Starlette's router.

`Endpoints` is the service behind every connection. A request is judged by its head before its body is read (host, key,
drain), then answered by one of three: the relay, the chat surface, or Starlette's router with the pages below.
"""

import asyncio
import hmac
import re
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router

from eidproxy.chat import Defaults, parse_chat_request
from eidproxy.errors import Refusal, metric_reason
from eidproxy.http1 import RequestHead
from eidproxy.logs import RequestLine
from eidproxy.metrics import Metrics
from eidproxy.pages import for_browser
from eidproxy.relay import Relay, RelayServices
from eidproxy.server import Connection
from eidproxy.status import Status
from eidproxy.surface import ChatSurface
from eidproxy.vocabulary import NO_MODE, Mode, Outcome, Priority, Surface

CHAT_COMPLETIONS = "/v1/chat/completions"
CHAT_API = "/api/eid/chat"
CHAT_PAGE = "/chat"
CHAT_CONFIG = "/chat/config"
CHAT_STATE = "/chat/state"

_PROBES = frozenset({"/healthz", "/readyz"})
_UNLOGGED = _PROBES | {"/metrics", "/status", "/"}
_PRIORITIES = {word.value.encode(): word for word in Priority}
_TRACEPARENT = re.compile(rb"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
_JSON = re.compile(rb'application/json\s*(?:;\s*charset\s*=\s*"?utf-?8"?\s*)?', re.IGNORECASE)


class NotReady(Refusal):
    """The reason why `/readyz` says no. Its status is 503 whatever the reason would have elsewhere (contract, 2)."""

    @property
    def status(self) -> int:
        """See `Refusal.status`."""
        return 503


class Endpoints:
    """The service behind every connection."""

    def __init__(
        self,
        services: RelayServices,
        pages: Router,
        *,
        allowed_hosts: frozenset[str],
        api_key: str | None,
        defaults: Defaults,
        max_body_bytes: int,
        buffer_bytes: int,
        chat: ChatSurface | None = None,
    ) -> None:
        self.services = services
        self.max_body_bytes = max_body_bytes
        self.buffer_bytes = buffer_bytes
        self.draining = False
        self._pages = pages
        self._allowed_hosts = allowed_hosts
        self._api_key = None if api_key is None else api_key.encode()
        self._defaults = defaults
        self._chat = chat
        self._tasks: set[asyncio.Task[None]] = set()

    def admit(self, head: RequestHead) -> None:
        """See `server.Service`."""
        if head.path not in _PROBES:
            try:
                self._admit(head)
            except Refusal as refusal:
                raise self._shown(refusal, head) from None

    def _admit(self, head: RequestHead) -> None:
        if head.host not in self._allowed_hosts:
            raise Refusal("host_not_allowed")
        is_chat = head.path in (CHAT_API, CHAT_PAGE) or head.path.startswith(CHAT_PAGE + "/")
        if self._api_key is not None and not (is_chat and self._chat is not None):
            self._authorize(head)
        if self._chat is not None and head.path == CHAT_STATE:
            self._chat.authorize(head)
        if head.method == "POST" and head.path in (CHAT_COMPLETIONS, CHAT_API) and self.draining:
            raise Refusal("draining")

    def handle(self, connection: Connection, head: RequestHead, body: bytes) -> None:
        """See `server.Service`."""
        if head.method == "POST":
            if head.path == CHAT_COMPLETIONS:
                self._complete(connection, head, body)
                return
            if head.path == CHAT_API and self._chat is not None:
                self._converse(connection, head, body)
                return
        task = asyncio.get_running_loop().create_task(self._ask_pages(connection, head, body))
        connection.departed = task.cancel
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def refused(self, connection: Connection, refusal: Refusal) -> None:
        """See `server.Service`."""
        self._record(connection, Surface.PROXY, refusal.status, refusal.reason)

    def fault(self, where: str, error: BaseException) -> None:
        """See `server.Service`."""
        self.services.log.fault(where, error)

    def _shown(self, refusal: Refusal, head: RequestHead) -> Refusal:
        """The refusal as a page instead of JSON, when a person in a browser went to an address."""
        if head.method in ("GET", "HEAD") and b"text/html" in head.headers.get(b"accept", b""):
            return for_browser(refusal, head.path, has_chat=self._chat is not None)
        return refusal

    def _authorize(self, head: RequestHead) -> None:
        scheme, _, token = head.headers.get(b"authorization", b"").partition(b" ")
        if (
            scheme.lower() != b"bearer"
            or b"authorization" in head.repeated
            or not hmac.compare_digest(token.strip(), self._api_key or b"")
        ):
            raise Refusal("unauthorized")

    def _complete(self, connection: Connection, head: RequestHead, body: bytes) -> None:
        """`POST /v1/chat/completions`: everything is checked before the gate."""
        check_media_type(head)
        request = parse_chat_request(body, self._defaults)
        Relay(
            self.services,
            connection,
            request,
            priority=_priority(head),
            progress=head.headers.get(b"x-eid-progress") == b"1",
            trace_id=trace_id(head),
        ).start()

    def _converse(self, connection: Connection, head: RequestHead, body: bytes) -> None:
        """`POST /api/eid/chat`: the token first, then everything else, before the gate."""
        assert self._chat is not None  # noqa: S101  # asked by the caller
        try:
            self._chat.authorize(head)
            check_media_type(head)
            request = self._chat.request(body)
        except Refusal as refusal:
            if refusal.reason == "rules_missing":
                self.services.metrics.rules_missing.inc()
            connection.refuse(refusal)
            self._record(connection, Surface.CHAT, refusal.status, refusal.reason)
            return
        Relay(self.services, connection, request, progress=True, surface=Surface.CHAT, trace_id=trace_id(head)).start()

    async def _ask_pages(self, connection: Connection, head: RequestHead, body: bytes) -> None:
        """Ask Starlette's router for a request that is whole and an answer that is small."""
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
            # The path as it was sent: a second spelling of a path is another path.
            "path": head.path,
            "raw_path": head.path.encode(),
            "root_path": "",
            "query_string": head.query.encode(),
            "headers": list(head.headers.items()),
            "client": None,
            "server": None,
        }
        reason = "none"
        try:
            await self._pages(scope, receive, send)
            if status == 404:
                raise self._shown(Refusal("not_found"), head)
            if status == 405:
                allow = b"".join(value for name, value in headers if name == b"Allow")
                raise Refusal("method_not_allowed", allow=b", ".join(sorted(allow.split(b", "))))
            connection.respond(status, headers, bytes(sent))
        except Refusal as refusal:
            status, reason = refusal.status, refusal.reason
            connection.refuse(refusal)
        except Exception as error:  # noqa: BLE001  # a page's fault is no reason to leave a caller without an answer
            self.fault("page", error)
            status, reason = 500, "internal_error"
            connection.refuse(Refusal(reason))
        if reason != "none" or not (head.path in _UNLOGGED or head.path.startswith(CHAT_PAGE)):
            surface = Surface.CHAT if head.path in (CHAT_API, CHAT_PAGE) else Surface.PROXY
            if head.path not in _PROBES:
                self._record(connection, surface, status, reason)

    def _record(self, connection: Connection, surface: Surface, status: int, reason: str) -> None:
        """Count and log a request that did not reach the relay."""
        total = asyncio.get_running_loop().time() - connection.began_at
        label = metric_reason(reason)
        self.services.metrics.count_request(surface, NO_MODE, label, total)
        self.services.log.request(
            RequestLine(
                reason=label,
                request_id=connection.request_id,
                surface=surface,
                mode=NO_MODE,
                outcome=Outcome.OK if reason == "none" else Outcome.ERROR,
                status=status,
                total_ms=round(total * 1e3, 1),
            )
        )


def check_media_type(head: RequestHead) -> None:
    """Raise Refusal `unsupported_media_type` unless the body is plain JSON in UTF-8."""
    media_type = head.headers.get(b"content-type", b"")
    if (
        not (media_type == b"application/json" or _JSON.fullmatch(media_type))
        or head.headers.get(b"content-encoding", b"identity").lower() != b"identity"
    ):
        raise Refusal("unsupported_media_type")


def trace_id(head: RequestHead) -> str | None:
    """The trace id of a valid `traceparent` (W3C Trace Context, 3.2.2), else None."""
    match = _TRACEPARENT.fullmatch(head.headers.get(b"traceparent", b""))
    if match is None or b"traceparent" in head.repeated or not int(match[1], 16) or not int(match[2], 16):
        return None
    return match[1].decode()


def _priority(head: RequestHead) -> Priority:
    word = head.headers.get(b"x-eid-priority", b"foreground")
    if word not in _PRIORITIES or b"x-eid-priority" in head.repeated:
        raise Refusal("invalid_priority")
    return _PRIORITIES[word]


Page = Callable[[Request], Awaitable[Response]]


def json_response(value: Any) -> Response:
    """A value as JSON."""
    return Response(msgspec.json.encode(value), media_type="application/json")


async def taken_by_the_relay(_: Request) -> Response:
    """Stands for a path whose one method never comes here, so that the router knows what to say to the others."""
    raise Refusal("internal_error")


def build_pages(
    *,
    metrics: Metrics,
    ready: Callable[[], Awaitable[str | None]],
    status: Callable[[], Status],
    created: int,
    extra: list[Route],
) -> Router:
    """A router with every endpoint that is no job for the relay.

    `ready` returns the reason why the proxy is not ready, or None.
    """
    models = [{"id": mode, "object": "model", "created": created, "owned_by": "eidproxy"} for mode in Mode]

    async def healthz(_: Request) -> Response:
        return json_response({"status": "ok"})

    async def readyz(_: Request) -> Response:
        reason = await ready()
        if reason is not None:
            raise NotReady(reason)
        return json_response({"status": "ready"})

    async def show_metrics(request: Request) -> Response:
        text, content_type = metrics.expose(request.headers.get("accept", ""))
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
            Route(CHAT_COMPLETIONS, taken_by_the_relay, methods=["POST"]),
            *extra,
        ],
        redirect_slashes=False,
    )
