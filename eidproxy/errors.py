"""Errors as a table: reason → status, retry advice, sentence. No other module decides any of the three.

A `Refusal` is the one exception that carries a reason to the caller. `refusal_by_status` and `reason_in_event` turn a
router's error into a reason of the table, or into the router's own word within a closed alphabet (contract, 5).
"""

import math
import re
from enum import Enum
from typing import NamedTuple

import msgspec
from msgspec import Raw, Struct

from eidproxy.relay.repair import repair
from eidproxy.vocabulary import Deadline, StreamEnd


class Retry(Enum):
    """The retry advice that a caller gets as a header."""

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
    retry_seconds: int = 5
    """`Retry-After` if no better time is known: a MacBook wakes in half a minute, an SDK gives up after two retries."""


_ROUTER_UNREACHABLE = "The model is not reachable right now. Try again shortly."
_ROUTER_FAULT = "The model server answered with an error. Try again shortly."
_ROUTER_REFUSED = "The model server refused the request and will refuse it again. Ask the operator to fix it."

ROUTER_REASONS = {
    "macbook_unavailable": Rule(
        503, Retry.LATER, "The deep model is not available right now. Try again later or use daily.", 60
    ),
    "warming": Rule(503, Retry.LATER, "The model is loading. Try again shortly.", 15),
    "editor_busy": Rule(503, Retry.LATER, "The machine is busy with other work. Try again shortly.", 30),
    "upstream_cold": Rule(503, Retry.LATER, "The model is waking up. Try again shortly.", 15),
    "provider_not_configured": Rule(503, Retry.NEVER, "This model is not set up. Ask the operator."),
}
"""The five words of a router that have a row and a metric label of their own."""

# A new reason may belong in the tables below, too, and has words of its own on the chat page: `pages/chat/notices.js`.
RULES: dict[str, Rule] = {
    "invalid_json": Rule(400, Retry.SILENT, "The request body must be one JSON object within the limits."),
    "invalid_request": Rule(400, Retry.SILENT, "The request is not valid."),
    "unsupported_field": Rule(400, Retry.SILENT, "The request has a field that is not supported."),
    "unsupported_content": Rule(400, Retry.SILENT, "Only text content and function tools are supported."),
    "invalid_priority": Rule(400, Retry.SILENT, "X-Eid-Priority must be foreground or background."),
    "context_too_long": Rule(
        400, Retry.SILENT, "The conversation is longer than the model's context. Shorten it, or start a new one."
    ),
    "unauthorized": Rule(401, Retry.SILENT, "A valid bearer token is required."),
    "cross_site": Rule(403, Retry.SILENT, "Requests from pages of other sites are not allowed."),
    "model_not_found": Rule(404, Retry.SILENT, "The model does not exist. Use daily or deep."),
    "not_found": Rule(404, Retry.SILENT, "This path does not exist."),
    "method_not_allowed": Rule(405, Retry.SILENT, "This path does not support that method."),
    "request_timeout": Rule(408, Retry.SILENT, "The request did not arrive in time."),
    "body_too_large": Rule(413, Retry.SILENT, "The request body is too large."),
    "prompt_too_long": Rule(413, Retry.SILENT, "The prompt is longer than this server allows."),
    "unsupported_media_type": Rule(
        415, Retry.SILENT, "The body must be application/json in UTF-8, without compression."
    ),
    "host_not_allowed": Rule(421, Retry.SILENT, "This server does not serve that host name."),
    "headers_too_large": Rule(431, Retry.SILENT, "The request head is too large."),
    "system_role_forbidden": Rule(422, Retry.SILENT, "Only user and assistant messages are allowed."),
    "message_too_long": Rule(422, Retry.SILENT, "A message is too long."),
    "too_many_turns": Rule(422, Retry.SILENT, "The conversation has too many messages."),
    "conversation_too_long": Rule(422, Retry.SILENT, "The conversation is too long."),
    "overloaded": Rule(503, Retry.LATER, "Too many requests are arriving at once. Try again shortly."),
    "gate_queue_full": Rule(503, Retry.LATER, "Too many requests are waiting. Try again shortly."),
    "gate_wait_timeout": Rule(503, Retry.LATER, "The request waited too long for its turn. Try again shortly."),
    "gate_unavailable": Rule(503, Retry.LATER, "The queue is not available right now. Try again shortly."),
    "draining": Rule(503, Retry.LATER, "The server is restarting. Try again shortly."),
    **ROUTER_REASONS,
    "upstream_silent": Rule(503, Retry.LATER, "The model did not begin to answer in time. Try again shortly."),
    "upstream_wedged": Rule(503, Retry.LATER, "The model server hangs. Try again later."),
    "upstream_502": Rule(503, Retry.LATER, _ROUTER_FAULT),
    "router_503": Rule(503, Retry.LATER, _ROUTER_FAULT),
    "router_error": Rule(503, Retry.LATER, _ROUTER_FAULT),
    "router_ConnectError": Rule(503, Retry.LATER, _ROUTER_UNREACHABLE),
    "router_ConnectTimeout": Rule(503, Retry.LATER, _ROUTER_UNREACHABLE),
    "router_ReadError": Rule(503, Retry.LATER, "The connection to the model broke. Try again shortly."),
    "router_ReadTimeout": Rule(503, Retry.LATER, "The model did not answer in time. Try again shortly."),
    "router_WriteError": Rule(503, Retry.LATER, "The connection to the model broke. Try again shortly."),
    "router_WriteTimeout": Rule(503, Retry.LATER, "The model did not accept the request in time. Try again shortly."),
    "router_RemoteProtocolError": Rule(503, Retry.LATER, _ROUTER_FAULT),
    "upstream_truncated": Rule(503, Retry.LATER, "The answer ended before it was complete. Try again."),
    "upstream_error": Rule(503, Retry.LATER, "The model reported an error. Try again."),
    "upstream_protocol_error": Rule(
        503, Retry.LATER, "The model server's answer could not be read. Try again shortly."
    ),
    "stream_deadline_exceeded": Rule(503, Retry.NEVER, "The answer took longer than the time limit."),
    "rules_missing": Rule(503, Retry.NEVER, "The assistant is not fully set up. Ask the operator."),
    "router_rejected": Rule(500, Retry.NEVER, "The model server refused the request. Ask the operator."),
    "egress_blocked": Rule(500, Retry.NEVER, "The model server's address is not permitted. Ask the operator."),
    "internal_error": Rule(500, Retry.NEVER, "Something went wrong in the proxy. Ask the operator."),
}
"""All reasons except `router_http_<status>` and a router's own word, which share `_ROUTER_RULE`."""

_ROUTER_RULE = Rule(503, Retry.LATER, _ROUTER_FAULT)

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    408: "timeout_error",
    500: "server_error",
    503: "service_unavailable",
}
"""`error.type` by status; every other status is the caller's fault, `invalid_request_error`."""

CLIENT_GONE = "client_gone"
"""The reason of a request whose caller left (499): never sent, only logged and counted."""

METRIC_REASONS = ("none", CLIENT_GONE, *RULES, "router_http", "other")
"""The closed set of `reason` labels."""

_METRIC_REASONS = frozenset(METRIC_REASONS) - {"other"}

DEADLINES = {
    "gate_wait_timeout": Deadline.QUEUE,
    "router_ConnectTimeout": Deadline.CONNECT,
    "router_ReadTimeout": Deadline.READ,
    "upstream_silent": Deadline.READ,
    "router_WriteTimeout": Deadline.WRITE,
    "stream_deadline_exceeded": Deadline.TOTAL,
}
"""Which deadline passed, by reason; every other reason means that none did."""

STREAM_ENDS = {
    "upstream_truncated": StreamEnd.TRUNCATED,
    "router_ReadError": StreamEnd.TRUNCATED,
    "router_ReadTimeout": StreamEnd.DEADLINE,
    "upstream_silent": StreamEnd.DEADLINE,
    "stream_deadline_exceeded": StreamEnd.DEADLINE,
    "draining": StreamEnd.DRAINING,
    CLIENT_GONE: StreamEnd.CLIENT_GONE,
}
"""How a begun stream ended, by reason; every other reason is `upstream_error`."""

SILENT_ENDS = frozenset({"upstream_silent", "router_ReadTimeout", "stream_deadline_exceeded"})
"""Reasons that mean: the router was silent to the end, so its model server may hang."""

OPERATOR_REASONS = frozenset({"router_rejected", "egress_blocked", "internal_error", "rules_missing"})
"""Reasons that an operator must mend: their requests are logged as errors."""

_WORD = re.compile(r"[a-z0-9_]{1,64}")
_GENERAL_WORDS = frozenset(
    {"invalid_request_error", "authentication_error", "permission_error", "not_found_error", "rate_limit_error"}
    | {"server_error", "api_error", "stream_error", "internal_error", "internal_server_error", "service_unavailable"}
    | {"timeout_error", "overloaded_error", "error", "dict", "none"}
)
"""Words in a server's `error.type` that name no reason (smg, llama-server, lm-proxy: a Python class)."""

_CONTEXT_WORDS = frozenset({"exceed_context_size_error", "context_length_exceeded"})
_CONTEXT_MESSAGE = re.compile(
    r"ContextWindowExceededError|exceed_context_size_error|context_length_exceeded|(?i:maximum context length)"
)
"""A message that means: the prompt is longer than the context (LiteLLM, llama.cpp behind lm-proxy, vLLM)."""

_CONTEXT_STATUSES = frozenset({400, 413, 422})

FINAL_STATUSES = frozenset({401, 403, 404, 405, 413, 415, 422})
"""Statuses with which a router would refuse the same request again: an operator must fix the cause."""

MAX_RETRY_SECONDS = 60
"""The most that `Retry-After` says (contract, 5)."""


class RouterReason(str):
    """A reason that is the router's own word and not one of `ROUTER_REASONS`.

    It may be spelled like one of our reasons (`unauthorized`, `draining`, `client_gone`), but it is always an error of
    the router: 503, try again.
    """

    __slots__ = ()


class Refusal(Exception):
    """The exception that answers a request with an error of the table.

    `reason` is a key of `RULES`, `router_http_<status>` or a `RouterReason` word within the alphabet `[a-z0-9_]{1,64}`.
    `param` names the field at fault, where that is safe to repeat, and `hint` is one more sentence of ours.
    `retry_seconds` replaces the row's `Retry-After` if the rule is `Retry.LATER`; `allow` lists the methods that the
    path takes, for 405. `is_final` marks a refusal of the router that waiting does not cure.
    """

    content_type = b"application/json"

    def __init__(
        self,
        reason: str,
        param: str | None = None,
        *,
        hint: str = "",
        retry_seconds: float | None = None,
        allow: bytes = b"",
        is_final: bool = False,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.param = param
        self.hint = hint
        self.retry_seconds = retry_seconds
        self.allow = allow
        self.is_final = is_final

    @property
    def status(self) -> int:
        """The HTTP status of the refusal."""
        return rule(self.reason).status

    @property
    def message(self) -> str:
        """The sentence for a person. It names the field too: most clients show the sentence alone."""
        message = _ROUTER_REFUSED if self.is_final else rule(self.reason).message
        return " ".join(filter(None, (message, self.hint, f"The field is {self.param}." if self.param else "")))

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers of the refusal: the reason, the retry advice, `WWW-Authenticate` or `Allow`."""
        headers = [(b"X-Eid-Error-Reason", self.reason.encode())]
        retry = Retry.NEVER if self.is_final else rule(self.reason).retry
        if retry is Retry.LATER:
            headers.append((b"Retry-After", b"%d" % retry_after(self.reason, self.retry_seconds)))
        elif retry is Retry.NEVER:
            headers.append((b"x-should-retry", b"false"))
        elif self.reason == "unauthorized":
            headers.append((b"WWW-Authenticate", b"Bearer"))
        elif self.allow:
            headers.append((b"Allow", self.allow))
        return headers

    def body(self, request_id: str) -> bytes:
        """Return the error as JSON in OpenAI's form: the answer's body or, once a stream has begun, its last event."""
        error = {
            "message": self.message,
            "type": TYPES.get(self.status, "invalid_request_error"),
            "param": self.param,
            "code": str(self.reason),
        }
        return msgspec.json.encode({"error": error, "error_reason": str(self.reason), "request_id": request_id})

    def event(self, request_id: str) -> bytes:
        """Return the server-sent event that ends a stream that has begun."""
        return b"event: error\ndata: " + self.body(request_id) + b"\n\n"


def rule(reason: str) -> Rule:
    """Return the row of a reason; without one, and for a router's own word, that of any router error."""
    return _ROUTER_RULE if isinstance(reason, RouterReason) else RULES.get(reason, _ROUTER_RULE)


def retry_after(reason: str, seconds: float | None) -> int:
    """Return whole seconds for `Retry-After`, 1 to 60: openai-node ignores more, openai-python gives up on more."""
    if seconds is None or not math.isfinite(seconds):
        return rule(reason).retry_seconds
    return min(max(math.ceil(seconds), 1), MAX_RETRY_SECONDS)


def router_retry_seconds(value: bytes) -> int | None:
    """Return the whole seconds of a router's `Retry-After` (RFC 9110, 10.2.3); None for a date or anything else."""
    if not re.fullmatch(rb"[0-9]+", value):
        return None
    return int(value) if len(value) < 10 else MAX_RETRY_SECONDS


def metric_reason(reason: str) -> str:
    """Return the metric label of a reason: a member of `METRIC_REASONS`."""
    if isinstance(reason, RouterReason):
        return "other"
    if reason in _METRIC_REASONS:
        return reason
    return "router_http" if reason.startswith("router_http_") else "other"


# A router's error body. Its fields stay undecoded until one is needed, since each may be of any type.


class _Error(Struct, gc=False):
    type: Raw = Raw(b"null")
    code: Raw = Raw(b"null")
    message: Raw = Raw(b"null")
    error_reason: Raw = Raw(b"null")


class _ErrorBody(_Error, gc=False):
    error: Raw = Raw(b"null")
    detail: Raw = Raw(b"null")


_decode_body = msgspec.json.Decoder(_ErrorBody).decode
_decode_error = msgspec.json.Decoder(_Error).decode
_decode_str = msgspec.json.Decoder(str).decode


class _ErrorFacts(NamedTuple):
    """What a router's error says: the word for its reason, if any, and whether the prompt was too long."""

    word: str | None = None
    is_about_context: bool = False


def _read_error(body: bytes) -> _ErrorFacts:
    mended = repair(body)
    try:
        outer = _decode_body(body if mended is None else mended[0])
    except (ValueError, RecursionError):
        return _ErrorFacts()
    try:
        inner = _decode_error(outer.error)
    except (ValueError, RecursionError):
        inner = _Error()
    words = [_text(raw) for raw in (inner.type, inner.error_reason, outer.error_reason)]
    word = next((word for word in words if word and word not in _GENERAL_WORDS and word == word.lower()), None)
    codes = {_text(raw) for raw in (inner.type, inner.code, outer.type, outer.code)}
    messages = [_text(raw) for raw in (inner.message, outer.error, outer.message, outer.detail)]
    is_about_context = not _CONTEXT_WORDS.isdisjoint(codes) or any(map(_CONTEXT_MESSAGE.search, filter(None, messages)))
    return _ErrorFacts(word, is_about_context)


def _text(raw: Raw) -> str:
    try:
        return _decode_str(raw)
    except (ValueError, RecursionError):
        return ""


def _as_router_reason(word: str | None) -> str | None:
    """Return a router's word as a reason, or None when it is outside the alphabet."""
    if word is None or not _WORD.fullmatch(word):
        return None
    return word if word in ROUTER_REASONS else RouterReason(word)


def reason_of_status(status: int, body: bytes) -> str | None:
    """Return the reason for a router's status (no 1xx) and body, or None for a 200, which may be a stream.

    The body is read for 4xx and 5xx. With a 400 it only decides whether the prompt was too long: every other 400 is a
    fault of configuration, whatever its body says.
    """
    if status == 200:
        return None
    if status < 300:
        return "upstream_protocol_error"
    if status < 400:
        return "egress_blocked"
    word, is_about_context = _read_error(body)
    if is_about_context and status in _CONTEXT_STATUSES:
        return "context_too_long"
    if status == 400:
        return "router_rejected"
    reason = _as_router_reason(word)
    if reason is not None:
        return reason
    if status == 502:
        return "upstream_502"
    if word is not None:
        return "router_error"
    return "router_503" if status == 503 else f"router_http_{status}"


def refusal_by_status(status: int, body: bytes, retry_after_field: bytes) -> Refusal:
    """Return the error for a router's status, body and `Retry-After`: its reason, and whether waiting would cure it."""
    reason = reason_of_status(status, body)
    return Refusal(
        reason or "upstream_protocol_error",
        retry_seconds=router_retry_seconds(retry_after_field),
        is_final=status in FINAL_STATUSES and reason != "context_too_long",
    )


def reason_in_event(data: bytes, *, begun: bool, in_choice: bool = False) -> str:
    """Return the reason for an error inside a stream: the router's word, or `upstream_error`.

    Before the first event (not `begun`) it may be `context_too_long`, as a 400 may. An error `in_choice` names no
    reason.
    """
    word, is_about_context = _read_error(data)
    if is_about_context and not begun:
        return "context_too_long"
    return (None if in_choice else _as_router_reason(word)) or "upstream_error"
