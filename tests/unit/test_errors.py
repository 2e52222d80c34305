"""The table of reasons, read from outside: what a caller gets for each, and what a router may make of it."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

import eidproxy
from eidproxy.errors import (
    CLIENT_GONE,
    DEADLINES,
    METRIC_REASONS,
    ROUTER_REASONS,
    RULES,
    STREAM_ENDS,
    Refusal,
    Retry,
    RouterReason,
    metric_reason,
    reason_in_event,
    reason_of_status,
    refusal_by_status,
    retry_after,
    router_retry_seconds,
    rule,
)


def _words(text: str) -> list[str]:
    return text.split()


# Status, `error.type` and retry advice of each reason (contract, 5), spelled out here a second time.
CALLER, AUTH, TIMEOUT = "invalid_request_error", "authentication_error", "timeout_error"
SERVER, UNAVAILABLE = "server_error", "service_unavailable"
TABLE = {
    **dict.fromkeys(
        _words("invalid_json invalid_request unsupported_field unsupported_content invalid_priority context_too_long"),
        (400, CALLER, None),
    ),
    "unauthorized": (401, AUTH, None),
    "cross_site": (403, "permission_error", None),
    "prompt_too_long": (413, CALLER, None),
    "model_not_found": (404, CALLER, None),
    "not_found": (404, CALLER, None),
    "method_not_allowed": (405, CALLER, None),
    "request_timeout": (408, TIMEOUT, None),
    "body_too_large": (413, CALLER, None),
    "unsupported_media_type": (415, CALLER, None),
    "host_not_allowed": (421, CALLER, None),
    "headers_too_large": (431, CALLER, None),
    **dict.fromkeys(
        _words("system_role_forbidden message_too_long too_many_turns conversation_too_long"), (422, CALLER, None)
    ),
    **dict.fromkeys(
        _words(
            "gate_queue_full gate_wait_timeout draining gate_unavailable macbook_unavailable warming editor_busy "
            "upstream_cold overloaded upstream_silent upstream_wedged upstream_502 router_503 router_error "
            "router_ConnectError router_ConnectTimeout router_ReadError router_ReadTimeout router_WriteError "
            "router_WriteTimeout router_RemoteProtocolError upstream_truncated upstream_error upstream_protocol_error"
        ),
        (503, UNAVAILABLE, True),
    ),
    "stream_deadline_exceeded": (503, UNAVAILABLE, False),
    "provider_not_configured": (503, UNAVAILABLE, False),
    "rules_missing": (503, UNAVAILABLE, False),
    "router_rejected": (500, SERVER, False),
    "egress_blocked": (500, SERVER, False),
    "internal_error": (500, SERVER, False),
}


def _headers(refusal: Refusal) -> dict[str, str]:
    found = {name.decode(): value.decode() for name, value in refusal.headers()}
    assert len(found) == len(refusal.headers())
    return found


def test_the_table_is_the_contract() -> None:
    assert set(RULES) == set(TABLE)


@pytest.mark.parametrize("reason", TABLE)
def test_a_reason_is_answered_as_the_contract_says(reason: str) -> None:
    status, kind, retry = TABLE[reason]
    refusal = Refusal(reason, "field", retry_seconds=14.2)
    assert refusal.status == status
    headers = _headers(refusal)
    assert headers.pop("X-Eid-Error-Reason") == reason
    if retry is True:
        assert headers == {"Retry-After": "15"}
    elif retry is False:
        assert headers == {"x-should-retry": "false"}
    else:
        assert headers == ({"WWW-Authenticate": "Bearer"} if reason == "unauthorized" else {})
    body = json.loads(refusal.body("id-1"))
    assert set(body) == {"error", "error_reason", "request_id"}
    assert body["error_reason"] == reason
    assert body["request_id"] == "id-1"
    message = body["error"].pop("message")
    assert body["error"] == {"type": kind, "param": "field", "code": reason}
    assert re.fullmatch(r"[A-Z][A-Za-z0-9 ,.'/-]+\.", message)


@pytest.mark.parametrize("reason", ["router_http_429", "router_http_599", "router_http_401"])
def test_a_status_of_the_router_is_a_reason(reason: str) -> None:
    refusal = Refusal(reason)
    assert refusal.status == 503
    assert _headers(refusal) == {"X-Eid-Error-Reason": reason, "Retry-After": "5"}
    assert json.loads(refusal.body(""))["error"]["param"] is None


def test_an_event_is_the_same_object() -> None:
    refusal = Refusal("upstream_truncated")
    assert refusal.event("id-1") == b"event: error\ndata: " + refusal.body("id-1") + b"\n\n"
    assert refusal.event("id-1").count(b"\n") == 3


def test_allow_names_the_methods() -> None:
    assert _headers(Refusal("method_not_allowed", allow=b"GET, HEAD"))["Allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    ("seconds", "header"),
    [
        (None, 30),
        (math.nan, 30),
        (math.inf, 30),
        (-3.0, 1),
        (0.0, 1),
        (0.2, 1),
        (1.0, 1),
        (1.01, 2),
        (59.5, 60),
        (1e9, 60),
    ],
)
def test_retry_after_is_1_to_60_whole_seconds(seconds: float | None, header: int) -> None:
    assert retry_after("editor_busy", seconds) == header


@pytest.mark.parametrize(
    ("reason", "seconds"),
    [
        *(("warming", 15), ("upstream_cold", 15), ("editor_busy", 30), ("macbook_unavailable", 60), ("draining", 5)),
        *(("router_503", 5), ("router_http_500", 5), (RouterReason("warming"), 5), (RouterReason("a_new_word"), 5)),
    ],
)
def test_the_advice_of_a_reason_when_nothing_better_is_known(reason: str, seconds: int) -> None:
    assert retry_after(reason, None) == seconds


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        *((b"7", 7), (b"0", 0), (b"120", 120), (b"", None), (b"-1", None), (b"1.5", None), (b" 7", None)),
        *((b"9" * 30, 60), (b"Fri, 31 Dec 1999 23:59:59 GMT", None), ("\u0661".encode(), None)),
    ],
)
def test_the_router_s_own_advice(value: bytes, seconds: int | None) -> None:
    assert router_retry_seconds(value) == seconds


def test_a_final_refusal_of_the_router_is_not_tried_again() -> None:
    refusal = Refusal("router_http_401", retry_seconds=7, is_final=True)
    assert refusal.status == 503
    assert _headers(refusal) == {"X-Eid-Error-Reason": "router_http_401", "x-should-retry": "false"}
    message = json.loads(refusal.body(""))["error"]["message"]
    assert "operator" in message
    assert message != json.loads(Refusal("router_http_401").body(""))["error"]["message"]


# What a router says

STATUSES = {
    "200": (200, b"", None),
    "201": (201, b"", "upstream_protocol_error"),
    "204": (204, b"", "upstream_protocol_error"),
    "206": (206, b"", "upstream_protocol_error"),
    "301": (301, b"", "egress_blocked"),
    "307": (307, b'{"error":{"type":"warming"}}', "egress_blocked"),
    "399": (399, b"", "egress_blocked"),
    "400": (400, b"", "router_rejected"),
    "400 that warms": (400, b'{"error":{"type":"warming"}}', "router_rejected"),
    "401": (401, b"", "router_http_401"),
    "429": (429, b'{"error":{"message":"x"}}', "router_http_429"),
    "499": (499, b"", "router_http_499"),
    "500": (500, b"", "router_http_500"),
    "502": (502, b"", "upstream_502"),
    "502 with a reason": (502, b'{"error":{"type":"warming"}}', "warming"),
    "502 with a word outside the alphabet": (502, b'{"error":{"type":"bad gateway"}}', "upstream_502"),
    "503": (503, b"", "router_503"),
    "504": (504, b"<html>", "router_http_504"),
    "599": (599, b"", "router_http_599"),
    "type": (503, b'{"error":{"type":"macbook_unavailable"}}', "macbook_unavailable"),
    "type before error_reason": (503, b'{"error":{"error_reason":"b","type":"a"},"error_reason":"c"}', "a"),
    "error_reason in error": (503, b'{"error":{"error_reason":"editor_busy"},"error_reason":"c"}', "editor_busy"),
    "error_reason": (503, b'{"error_reason":"upstream_cold"}', "upstream_cold"),
    "error_reason beside a string": (503, b'{"error":"text","error_reason":"warming"}', "warming"),
    "empty type": (503, b'{"error":{"type":"","error_reason":"warming"}}', "warming"),
    "type null": (503, b'{"error":{"type":null},"error_reason":"warming"}', "warming"),
    "type a number": (503, b'{"error":{"type":5},"error_reason":"warming"}', "warming"),
    "the first word decides": (503, b'{"error":{"type":"n o","error_reason":"warming"}}', "router_error"),
    "a class is no word": (503, b'{"error":{"type":"BadRequestError","error_reason":"warming"}}', "warming"),
    "in capitals": (503, b'{"error":{"type":"WARMING"}}', "router_503"),
    "a general word is none": (404, b'{"error":{"type":"invalid_request_error"}}', "router_http_404"),
    "general words are none": (503, b'{"error":{"type":"dict","error_reason":"none"},"error_reason":"a"}', "a"),
    "400, the context": (400, b'{"error":{"type":"exceed_context_size_error"}}', "context_too_long"),
    "413, the context": (413, b'{"error":{"code":"context_length_exceeded"}}', "context_too_long"),
    "422, the context": (422, b'{"error":{"message":"litellm.ContextWindowExceededError: x"}}', "context_too_long"),
    "400, the context in a string": (400, b'{"error":"Maximum context length is 5"}', "context_too_long"),
    "400, the context in a detail": (400, b'{"detail":"maximum context length"}', "context_too_long"),
    "400, the context in a message": (
        400,
        b'{"object":"error","message":"maximum context length"}',
        "context_too_long",
    ),
    "400, the context in an echo": (400, b'{"error":{"input":"maximum context length"}}', "router_rejected"),
    "404, the context": (404, b'{"error":{"code":"context_length_exceeded"}}', "router_http_404"),
    "64 letters": (503, b'{"error":{"type":"%b"}}' % (b"a" * 64), "a" * 64),
    "65 letters": (503, b'{"error":{"type":"%b"}}' % (b"a" * 65), "router_error"),
    "line feed at its end": (503, b'{"error":{"type":"warming\\n"}}', "router_error"),
    "other letters": (503, '{"error":{"type":"wärming"}}'.encode(), "router_error"),
    "other digits": (503, '{"error":{"type":"a\u0661"}}'.encode(), "router_error"),
    "hyphen": (503, b'{"error":{"type":"a-b"}}', "router_error"),
    "string": (503, b'{"error":"warming"}', "router_503"),
    "array": (503, b'[{"error":{"type":"warming"}}]', "router_503"),
    "nothing": (503, b"null", "router_503"),
    "cut": (503, b'{"error":{"type":"warming"}', "router_503"),
    "not UTF-8": (503, b'{"error":{"type":"warming","message":"\xff"}}', "warming"),
    "half of a pair": (503, b'{"error":{"type":"warming","message":"\\ud83d"}}', "warming"),
    "deep": (503, b'{"error":' * 100_000, "router_503"),
}


@pytest.mark.parametrize(("status", "body", "reason"), STATUSES.values(), ids=STATUSES.keys())
def test_a_status_and_a_body_give_a_reason(status: int, body: bytes, reason: str | None) -> None:
    assert reason_of_status(status, body) == reason


CURES = {
    "what waiting cures": (503, b"", b"7", "router_503", 7.0, False),
    "what an operator must mend": (404, b"", b"7", "router_http_404", 7.0, True),
    "a prompt that is too long": (
        413,
        b'{"error":{"code":"context_length_exceeded"}}',
        b"",
        "context_too_long",
        None,
        False,
    ),
    "a success that is none": (200, b"", b"", "upstream_protocol_error", None, False),
}


@pytest.mark.parametrize(("status", "body", "field", "reason", "seconds", "final"), CURES.values(), ids=CURES.keys())
def test_a_status_gives_the_whole_error(
    status: int, body: bytes, field: bytes, reason: str, seconds: float | None, final: bool
) -> None:
    found = refusal_by_status(status, body, field)
    assert (found.reason, found.retry_seconds, found.is_final) == (reason, seconds, final)


UNKNOWN_TO_THE_PAGE = {"internal_error", "invalid_priority", "method_not_allowed", "not_found"}
"""What the page cannot mend and does not cause: it says that something went wrong."""


def test_the_page_has_words_for_each_reason() -> None:
    """A reason without a notice would read "unknown, try again", whatever is wrong."""
    kinds = (
        Path(eidproxy.__file__).with_name("pages").joinpath("chat/notices.js").read_text().split("const KINDS = {")[1]
    )
    named = set(re.findall(r"^  (\w+): ", kinds.split("};")[0], re.MULTILINE))
    by_pattern = {reason for reason in RULES if reason.endswith("_unavailable")}
    assert set(RULES) - named - by_pattern == UNKNOWN_TO_THE_PAGE


@pytest.mark.parametrize(
    ("status", "reason"), [(299, "upstream_protocol_error"), (300, "egress_blocked"), (399, "egress_blocked")]
)
def test_neither_success_nor_error(status: int, reason: str) -> None:
    assert reason_of_status(status, b"") == reason


def test_the_advice_without_a_better_one_is_that_of_the_reason() -> None:
    assert _headers(Refusal("warming"))["Retry-After"] == "15"


def test_a_router_s_advice_of_many_digits() -> None:
    assert router_retry_seconds(b"123456789") == 123456789
    assert router_retry_seconds(b"1234567890") == 60


EVENTS = {
    "object": (b'{"error":{"type":"warming"}}', "warming"),
    "string": (b'{"error":"boom"}', "upstream_error"),
    "error_reason": (b'{"error":"boom","error_reason":"editor_busy"}', "editor_busy"),
    "detail": (b'{"detail":"boom"}', "upstream_error"),
    "text": (b"boom", "upstream_error"),
    "empty": (b"", "upstream_error"),
    "outside the alphabet": (b'{"error":{"type":"Internal Error"}}', "upstream_error"),
    "number": (b'{"error":500}', "upstream_error"),
}


@pytest.mark.parametrize(("data", "reason"), EVENTS.values(), ids=EVENTS.keys())
def test_an_event_gives_a_reason(data: bytes, reason: str) -> None:
    assert reason_in_event(data, begun=True) == reason
    assert reason_in_event(data, begun=False) == reason
    assert reason_in_event(data, begun=False, in_choice=True) == "upstream_error"


def test_before_the_first_event_the_context_is_looked_for() -> None:
    data = b'{"error":{"code":"context_length_exceeded","type":"a"}}'
    assert reason_in_event(data, begun=False) == "context_too_long"
    assert reason_in_event(data, begun=True) == "a"


OURS = sorted(set(TABLE) - set(ROUTER_REASONS) - {name for name in TABLE if not re.fullmatch("[a-z0-9_]+", name)})
OURS.remove("internal_error")  # a general word: it is no reason


@pytest.mark.parametrize("word", [*OURS, CLIENT_GONE, "other", "router_http", "router_http_999"])
def test_a_word_of_ours_in_the_router_s_mouth_is_an_error_of_the_router(word: str) -> None:
    said = reason_of_status(503, json.dumps({"error": {"type": word}}).encode())
    assert said == word
    assert isinstance(said, RouterReason)
    refusal = Refusal(said)
    assert refusal.status == 503
    assert _headers(refusal) == {"X-Eid-Error-Reason": word, "Retry-After": "5"}
    assert json.loads(refusal.body(""))["error"]["code"] == word
    assert metric_reason(said) == "other"


# Labels


@pytest.mark.parametrize("reason", [*TABLE, CLIENT_GONE, "none"])
def test_a_reason_of_the_table_is_its_own_label(reason: str) -> None:
    assert metric_reason(reason) == reason


@pytest.mark.parametrize(
    ("reason", "label"),
    [("router_http_429", "router_http"), ("router_http_504", "router_http"), ("other", "other"), ("xyz", "other")],
)
def test_other_labels(reason: str, label: str) -> None:
    assert metric_reason(reason) == label


@pytest.mark.parametrize("word", ROUTER_REASONS)
def test_the_five_named_words_have_labels(word: str) -> None:
    reason = reason_in_event(json.dumps({"error": {"type": word}}).encode(), begun=True)
    assert metric_reason(reason) == word
    assert not isinstance(reason, RouterReason)


def test_labels_are_a_closed_set() -> None:
    assert len(set(METRIC_REASONS)) == len(METRIC_REASONS)
    assert set(METRIC_REASONS) == {"none", "client_gone", "router_http", "other", *TABLE}
    for word in ("a", "router_httpx", "x" * 64, *TABLE):
        assert metric_reason(word) in METRIC_REASONS
        assert metric_reason(RouterReason(word)) in METRIC_REASONS


def test_other_tables_speak_of_known_reasons() -> None:
    assert set(DEADLINES) <= set(RULES)
    assert set(STREAM_ENDS) <= {*RULES, CLIENT_GONE}
    assert {rule(reason).retry for reason in RULES} == set(Retry)
