"""Errors as a table: reason → status, retry advice, sentence. No other module decides any of the three.

A `Refusal` is the one exception that carries a reason to the caller. `reason_of_status` and `reason_in_event` turn
what a router says into a reason of the table or of the router's closed alphabet (contract, 5).
"""

import math
import re
from enum import Enum
from typing import Any, NamedTuple

import msgspec

from eidproxy.vocabulary import Deadline, StreamEnd


class Retry(Enum):
    """What a caller is told about trying again."""

    SILENT = "silent"
    """Neither header: the 4xx rows, where the caller must change the request."""
    LATER = "later"
    """`Retry-After: <1..60>`."""
    NEVER = "never"
    """`x-should-retry: false`."""


class Rule(NamedTuple):
    """One row of the error table."""

    status: int
    retry: Retry
    message: str


_ROUTER_UNREACHABLE = "The model is not reachable right now. Try again shortly."
_ROUTER_FAULT = "The model server answered with an error. Try again shortly."

ROUTER_REASONS = {
    "macbook_unavailable": "The deep model is not available right now. Try again later or use daily.",
    "warming": "The model is being loaded. Try again shortly.",
    "editor_busy": "The machine is busy with other work. Try again shortly.",
    "upstream_cold": "The model is being woken up. Try again shortly.",
    "provider_not_configured": "This model is not set up. Ask the operator.",
}
"""The five reasons of a router that have a name of their own in the metrics."""

RULES: dict[str, Rule] = {
    "invalid_json": Rule(400, Retry.SILENT, "The body is not one JSON object within the limits."),
    "invalid_request": Rule(400, Retry.SILENT, "The request is not valid."),
    "unsupported_field": Rule(400, Retry.SILENT, "The request has a field that is not supported."),
    "unsupported_content": Rule(400, Retry.SILENT, "Only text content and function tools are supported."),
    "invalid_priority": Rule(400, Retry.SILENT, "X-Eid-Priority is foreground or background."),
    "unauthorized": Rule(401, Retry.SILENT, "A valid bearer token is required."),
    "model_not_found": Rule(404, Retry.SILENT, "The model does not exist. Use daily or deep."),
    "not_found": Rule(404, Retry.SILENT, "There is nothing at this path."),
    "method_not_allowed": Rule(405, Retry.SILENT, "This path does not take that method."),
    "request_timeout": Rule(408, Retry.SILENT, "The request did not arrive in time."),
    "body_too_large": Rule(413, Retry.SILENT, "The body is too large."),
    "unsupported_media_type": Rule(415, Retry.SILENT, "The body must be application/json in UTF-8, not encoded."),
    "host_not_allowed": Rule(421, Retry.SILENT, "This host name is not served here."),
    "headers_too_large": Rule(431, Retry.SILENT, "The request head is too large."),
    "system_role_forbidden": Rule(422, Retry.SILENT, "Only user and assistant messages may be sent."),
    "message_too_long": Rule(422, Retry.SILENT, "A message is too long."),
    "too_many_turns": Rule(422, Retry.SILENT, "The conversation has too many messages."),
    "conversation_too_long": Rule(422, Retry.SILENT, "The conversation is too long."),
    "gate_queue_full": Rule(503, Retry.LATER, "Too many requests are waiting. Try again shortly."),
    "gate_wait_timeout": Rule(503, Retry.LATER, "The request waited too long for its turn. Try again shortly."),
    "gate_unavailable": Rule(503, Retry.LATER, "The queue is not available right now. Try again shortly."),
    "draining": Rule(503, Retry.LATER, "The server is restarting. Try again shortly."),
    **{reason: Rule(503, Retry.LATER, message) for reason, message in ROUTER_REASONS.items()},
    "upstream_502": Rule(503, Retry.LATER, _ROUTER_FAULT),
    "router_503": Rule(503, Retry.LATER, _ROUTER_FAULT),
    "router_error": Rule(503, Retry.LATER, _ROUTER_FAULT),
    "router_ConnectError": Rule(503, Retry.LATER, _ROUTER_UNREACHABLE),
    "router_ConnectTimeout": Rule(503, Retry.LATER, _ROUTER_UNREACHABLE),
    "router_ReadError": Rule(503, Retry.LATER, "The connection to the model broke. Try again shortly."),
    "router_ReadTimeout": Rule(503, Retry.LATER, "The model did not answer in time. Try again shortly."),
    "router_WriteError": Rule(503, Retry.LATER, "The connection to the model broke. Try again shortly."),
    "router_WriteTimeout": Rule(503, Retry.LATER, "The model did not take the request in time. Try again shortly."),
    "router_RemoteProtocolError": Rule(503, Retry.LATER, _ROUTER_FAULT),
    "upstream_truncated": Rule(503, Retry.LATER, "The answer ended before it was complete. Try again."),
    "upstream_error": Rule(503, Retry.LATER, "The model reported an error. Try again."),
    "upstream_protocol_error": Rule(
        503, Retry.LATER, "The model server's answer could not be read. Try again shortly."
    ),
    "stream_deadline_exceeded": Rule(503, Retry.NEVER, "The answer took longer than is allowed."),
    "rules_missing": Rule(503, Retry.NEVER, "The assistant is not set up completely. Ask the operator."),
    "router_rejected": Rule(500, Retry.NEVER, "The model server refused the request. Ask the operator."),
    "egress_blocked": Rule(500, Retry.NEVER, "The model server's address is not permitted. Ask the operator."),
    "internal_error": Rule(500, Retry.NEVER, "Something went wrong in the proxy. Ask the operator."),
}
"""Every reason but `router_http_<status>` and a router's own word, which share `_ROUTER_RULE`."""

_ROUTER_RULE = Rule(503, Retry.LATER, _ROUTER_FAULT)

TYPES = {401: "authentication_error", 408: "timeout_error", 500: "server_error", 503: "service_unavailable"}
"""`error.type` by status; every other status is the caller's fault."""

CLIENT_GONE = "client_gone"
"""The reason of a request whose caller left (499): never sent, only logged and counted."""

METRIC_REASONS = ("none", CLIENT_GONE, *RULES, "router_http", "other")
"""The closed set of `reason` labels."""

_METRIC_REASONS = frozenset(METRIC_REASONS) - {"other"}

DEADLINES = {
    "gate_wait_timeout": Deadline.QUEUE,
    "router_ConnectTimeout": Deadline.CONNECT,
    "router_ReadTimeout": Deadline.READ,
    "router_WriteTimeout": Deadline.WRITE,
    "stream_deadline_exceeded": Deadline.TOTAL,
}
"""The reasons that mean that a clock ran out."""

STREAM_ENDS = {
    "upstream_truncated": StreamEnd.TRUNCATED,
    "router_ReadError": StreamEnd.TRUNCATED,
    "router_ReadTimeout": StreamEnd.DEADLINE,
    "stream_deadline_exceeded": StreamEnd.DEADLINE,
    "draining": StreamEnd.DRAINING,
    CLIENT_GONE: StreamEnd.CLIENT_GONE,
}
"""How a begun stream ended, by reason; every other reason is `upstream_error`."""

_WORD = re.compile(r"[a-z0-9_]{1,64}")
_DEFAULT_RETRY_SECONDS = 5
_MAX_RETRY_SECONDS = 60


class Said(str):
    """A reason that is the router's own word, and none of the five that have a row of their own.

    It may be spelled like a reason of ours (`unauthorized`, `draining`, `client_gone`) and still is an error of the
    router: 503, try again.
    """

    __slots__ = ()


class Refusal(Exception):
    """A request that is answered with an error of the table.

    `reason` is a key of `RULES`, `router_http_<status>` or a `Said` word within the alphabet `[a-z0-9_]{1,64}`.
    `param` names the field at fault, where that is safe to repeat. `retry_seconds` is the advice of a reason whose
    rule is `Retry.LATER`; `allow` names the methods that a path does take.
    """

    content_type = b"application/json"

    def __init__(
        self, reason: str, param: str | None = None, *, retry_seconds: float | None = None, allow: bytes = b""
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.param = param
        self.retry_seconds = retry_seconds
        self.allow = allow

    @property
    def status(self) -> int:
        """The HTTP status of the refusal."""
        return rule(self.reason).status

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers that go with the refusal: the reason, and what to do about trying again."""
        headers = [(b"X-Eid-Error-Reason", self.reason.encode())]
        retry = rule(self.reason).retry
        if retry is Retry.LATER:
            headers.append((b"Retry-After", b"%d" % retry_after(self.retry_seconds)))
        elif retry is Retry.NEVER:
            headers.append((b"x-should-retry", b"false"))
        elif self.reason == "unauthorized":
            headers.append((b"WWW-Authenticate", b"Bearer"))
        elif self.allow:
            headers.append((b"Allow", self.allow))
        return headers

    def body(self, request_id: str) -> bytes:
        """The JSON object that is the body before the first byte and the last event after it."""
        applied = rule(self.reason)
        error = {
            "message": applied.message,
            "type": TYPES.get(self.status, "invalid_request_error"),
            "param": self.param,
            "code": str(self.reason),
        }
        return msgspec.json.encode({"error": error, "error_reason": str(self.reason), "request_id": request_id})

    def event(self, request_id: str) -> bytes:
        """The server-sent event that ends a stream which had begun."""
        return b"event: error\ndata: " + self.body(request_id) + b"\n\n"


def rule(reason: str) -> Rule:
    """The row of a reason; a router's own word has the row of any router error."""
    return _ROUTER_RULE if isinstance(reason, Said) else RULES.get(reason, _ROUTER_RULE)


def retry_after(seconds: float | None) -> int:
    """Whole seconds for `Retry-After`, 1 to 60: openai-node ignores more, openai-python then gives up."""
    if seconds is None or not math.isfinite(seconds):
        return _DEFAULT_RETRY_SECONDS
    return min(max(math.ceil(seconds), 1), _MAX_RETRY_SECONDS)


def metric_reason(reason: str) -> str:
    """The label of a reason: a member of `METRIC_REASONS`."""
    if isinstance(reason, Said):
        return "other"
    if reason in _METRIC_REASONS:
        return reason
    return "router_http" if reason.startswith("router_http_") else "other"


def _said(body: bytes) -> str | None:
    """What a router says is the reason: the first of the three places that holds a non-empty string."""
    value = _parsed(body)
    if not isinstance(value, dict):
        return None
    error = value.get("error")
    inner = error if isinstance(error, dict) else {}
    for word in (inner.get("type"), inner.get("error_reason"), value.get("error_reason")):
        if isinstance(word, str) and word:
            return word
    return None


def _usable(word: str | None) -> str | None:
    """A router's word as a reason, or None when it is outside the alphabet."""
    if word is None or not _WORD.fullmatch(word):
        return None
    return word if word in ROUTER_REASONS else Said(word)


def _parsed(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return None


def reason_of_status(status: int, body: bytes) -> str | None:
    """The reason behind a router's status (no 1xx) and body, or None for a 200 that may be a stream.

    The body's word is read for 4xx and 5xx but 400 alone, which is a fault of configuration whatever it says.
    """
    if status == 200:
        return None
    if status < 300:
        return "upstream_protocol_error"
    if status < 400:
        return "egress_blocked"
    if status == 400:
        return "router_rejected"
    word = _said(body)
    reason = _usable(word)
    if reason is not None:
        return reason
    if status == 502:
        return "upstream_502"
    if word is not None:
        return "router_error"
    return "router_503" if status == 503 else f"router_http_{status}"


def reason_in_event(data: bytes) -> str:
    """The reason behind an error that came inside a stream: the router's word, or `upstream_error`."""
    return _usable(_said(data)) or "upstream_error"
