"""The interface from outside (contract, 2 to 5): endpoints, headers, statuses, reasons, fields, over a real socket."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from eidproxy.errors import FINAL_STATUSES
from tests.lab.callers import at_rest, check_error, check_error_event, check_refusal
from tests.lab.client import ANSWER_CANARY, CHAT, Answer, RawClient, ask, chat, request_bytes
from tests.lab.proxy import Proxy, impatient
from tests.lab.router import Router
from tests.lab.script import (
    DONE,
    LAST_CHUNK,
    Fin,
    Pause,
    Reset,
    Script,
    Send,
    Stall,
    Step,
    Wait,
    chunk,
    completion_chunk,
    event,
    head,
    status,
    stream,
    stream_head,
)
from tests.lab.stream import comments
from tests.lab.tools import until

USER = [{"role": "user", "content": "hi"}]


class Pair:
    """A router and a proxy in front of it, shared by this module."""

    def __init__(self, router: Router, proxy: Proxy) -> None:
        self.router = router
        self.proxy = proxy

    def post(self, body: object, headers: dict[str, str] | None = None, timeout: float = 10.0) -> Answer:
        """One request of the main job."""
        return ask(self.proxy, "POST", CHAT, body, headers or {}, timeout=timeout)

    def play(self, script: Script, model: str = "daily", stream: bool = True, **headers: str) -> Answer:
        """One request that the router answers with this script."""
        self.router.enqueue(script)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.post(chat(model, stream), named)


@pytest.fixture(scope="module")
def shared() -> Iterator[Pair]:
    with (
        Router() as router,
        Proxy(
            router,
            EIDPROXY_STREAM_KEEPALIVE_SECONDS=0.2,
            **impatient(1),
            EIDPROXY_SERVER_MAX_BODY_BYTES=100000,
            EIDPROXY_LOG_LEVEL="debug",
            canaries=["hostile", "upstream-text"],
        ) as proxy,
    ):
        yield Pair(router, proxy)


@pytest.fixture
def pair(shared: Pair) -> Iterator[Pair]:
    shared.router.reset()
    shared.router.script = stream()
    yield shared
    at_rest(shared.router, shared.proxy)


def framed(*payloads: object, end: bytes = LAST_CHUNK) -> list[Step]:
    """An event stream of these events (bytes as they stand) in chunks."""
    parts = [payload if isinstance(payload, bytes) else event(payload) for payload in payloads]
    return [Send(stream_head()), *(Send(chunk(part)) for part in parts), Send(end)]


def said(text: str = "", finish: str | None = None, **extra: Any) -> dict[str, Any]:
    """One upstream chunk."""
    return completion_chunk({"content": text} if text else {}, finish, **extra)


def logged_line(proxy: Proxy, request_id: str | None) -> dict[str, Any]:
    """The one line of a request. It is written after the answer."""
    [line] = until(lambda: [line for line in proxy.log() if line.get("request_id") == request_id])
    return line


# --- 2. Endpoints ------------------------------------------------------------------------------------------------


def test_models(pair: Pair) -> None:
    answer = pair.proxy.get("/v1/models")
    assert answer.status == 200
    value = answer.json()
    assert value["object"] == "list"
    assert [model["id"] for model in value["data"]] == ["daily", "deep"]
    for model in value["data"]:
        assert set(model) == {"id", "object", "created", "owned_by"}
        assert (model["object"], model["owned_by"]) == ("model", "eidproxy")
        assert pair.proxy.get(f"/v1/models/{model['id']}").json() == model
    assert answer.get("Cache-Control") == "no-store"
    assert answer.get("X-Request-Id")
    assert answer.get("Server") is None
    for other in ("gpt-4o", "mac-mini-default", "DAILY", "%64aily"):
        check_refusal(pair.proxy.get(f"/v1/models/{other}"), 404, "model_not_found", "model")


def test_probes(pair: Pair) -> None:
    for path in ("/healthz", "/readyz"):
        answer = ask(pair.proxy, "GET", path, headers={"Host": "anything.example"})
        assert answer.status == 200, answer
        assert answer.get("X-Request-Id")
    pair.router.hang_up()
    try:
        until(lambda: pair.proxy.get("/readyz").status == 503)  # it may be a second old
        check_refusal(pair.proxy.get("/readyz"), 503, "router_ConnectError")
        assert pair.proxy.get("/healthz").status == 200
    finally:
        pair.router.listen()
    until(lambda: pair.proxy.get("/readyz").status == 200)


def test_metrics_forms(pair: Pair) -> None:
    plain = pair.proxy.get("/metrics")
    assert (plain.get("Content-Type") or "").startswith("text/plain; version=")
    openmetrics = pair.proxy.get("/metrics", {"Accept": "application/openmetrics-text; version=1.0.0"})
    assert (openmetrics.get("Content-Type") or "").startswith("application/openmetrics-text")
    assert openmetrics.body.endswith(b"# EOF\n")


def test_status_page(pair: Pair) -> None:
    pair.router.script = stream(gate="go")
    with RawClient(pair.proxy) as holder, RawClient(pair.proxy) as waiter:
        holder.send(request_bytes("POST", CHAT, chat()))
        pair.router.wait_for(lambda: pair.router.waiting("go") == 1)
        waiter.send(request_bytes("POST", CHAT, chat(), {"X-Eid-Priority": "background"}))
        until(lambda: pair.proxy.status()["gate"]["waiting"])
        value = pair.proxy.status()
        pair.router.release("go")
        holder.read_head()
        holder.read_body()
        waiter.read_head()
        waiter.read_body()
    assert set(value) == {
        "version",
        "uptime_seconds",
        "draining",
        "gate",
        "streams",
        "outcomes",
        "deadlines",
        "router",
        "history",
        "upstream",
    }
    gate = value["gate"]
    assert set(gate) == {"slots", "in_use", "queue_limit", "holders", "waiting", "mean_hold_seconds"}
    assert (gate["slots"], gate["in_use"], gate["queue_limit"]) == (1, 1, 64)
    [holding], [waiting] = gate["holders"], gate["waiting"]
    assert set(holding) == {"mode", "priority", "age_seconds"}
    assert (holding["mode"], holding["priority"]) == ("daily", "foreground")
    assert set(waiting) == {"priority", "position", "age_seconds"}
    assert (waiting["priority"], waiting["position"]) == ("background", 1)
    assert value["streams"] == {"daily": 1, "deep": 0}
    assert value["deadlines"] == {"stream_seconds": 300, "gate_wait_seconds": 300}
    assert set(value["router"]) == {"reachable", "checked_seconds_ago"}
    assert set(value["upstream"]) == {"daily", "deep"}
    for state in value["upstream"].values():
        assert state.pop("since_seconds") >= 0
        assert state == {"state": "live", "silent_ends": 0, "next_trial_seconds": None}
    assert value["draining"] is False


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", CHAT, "POST"),
        ("PUT", CHAT, "POST"),
        ("OPTIONS", CHAT, "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("DELETE", "/v1/models/daily", "GET, HEAD"),
        ("POST", "/healthz", "GET, HEAD"),
        ("POST", "/metrics", "GET, HEAD"),
    ],
)
def test_wrong_method(pair: Pair, method: str, path: str, allow: str) -> None:
    answer = ask(pair.proxy, method, path)
    check_refusal(answer, 405, "method_not_allowed")
    assert answer.get("Allow") == allow


@pytest.mark.parametrize(
    "path",
    [
        *("/nothing", "/v1", "/v1/", "/v1/models/", "/v1/completions", "/v1//models", "/V1/models", "/v1/%6dodels"),
        *("/chat", "/api/eid/chat", "/chat/conversation.js", "/healthz/", "/v1/chat/completions/", "/v1/../metrics"),
    ],
)
def test_unknown_path(pair: Pair, path: str) -> None:
    check_refusal(pair.proxy.get(path), 404, "not_found")
    check_refusal(ask(pair.proxy, "POST", path, {}), 404, "not_found")


@pytest.mark.parametrize(
    "path", ["/v1/responses", "/v1/completions", "/v1/embeddings", "/chat/completions", "/v1/messages", "/api/chat"]
)
def test_another_api_is_told_where_to_go(pair: Pair, path: str) -> None:
    answer = ask(pair.proxy, "POST", path, {"model": "daily", "input": "x"})
    check_refusal(answer, 404, "not_found")
    assert answer.json()["error"]["message"].endswith(" Use /v1/chat/completions instead.")
    assert pair.router.requests == []


def test_head_has_no_body(pair: Pair) -> None:
    with RawClient(pair.proxy) as client:
        client.send(request_bytes("HEAD", "/v1/models"))
        answer = client.read_head()
        assert (answer.status, client.read_body()) == (200, b"")
        assert int(answer.get("Content-Length") or 0) > 0
        client.send(request_bytes("GET", "/v1/models"))
        assert client.read_head().status == 200
        assert json.loads(client.read_body())["object"] == "list"
        client.send(b"HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        client.read_head()
        # What was a HEAD before must not swallow the body of a refusal now.
    with RawClient(pair.proxy) as client:
        client.send(request_bytes("HEAD", "/healthz"))
        client.read_head()
        client.send(b"GET\r\n\r\n")
        assert client.read_head().status == 400
        client._method = "GET"
        assert json.loads(client.read_body())["error_reason"] == "invalid_request"


def test_connection_is_kept_and_ends_after_a_refusal(pair: Pair) -> None:
    with RawClient(pair.proxy) as client:
        for _ in range(3):
            client.send(request_bytes("POST", CHAT, chat()))
            assert client.read_head().status == 200
            client.read_body()
            assert client.clean
        client.send(request_bytes("POST", CHAT, chat("gpt-4o")))
        assert client.read_head().get("Connection") == "close"
        client.read_body()
        assert client.recv_all() == b""


def test_connection_close_is_honoured(pair: Pair) -> None:
    with RawClient(pair.proxy) as client:
        client.send(request_bytes("GET", "/healthz", headers={"Connection": "close"}))
        assert client.read_head().get("Connection") == "close"
        client.read_body()
        assert client.recv_all() == b""


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:8790", "[::1]", "[::1]:80"])
def test_permitted_hosts(pair: Pair, host: str) -> None:
    assert pair.proxy.get("/v1/models", {"Host": host}).status == 200


@pytest.mark.parametrize(
    "host", ["example.com", "localhost.example.com", "127.0.0.2", "[::]", "localhost.", "metadata.google.internal"]
)
def test_other_hosts(pair: Pair, host: str) -> None:
    check_refusal(pair.proxy.get("/v1/models", {"Host": host}), 421, "host_not_allowed")
    check_refusal(pair.post(chat(), {"Host": host}), 421, "host_not_allowed")
    assert pair.router.posts == 0


def test_query_string(pair: Pair) -> None:
    assert pair.proxy.get("/v1/models?limit=3").status == 200
    for query in ("?", "?api_base=http://example.com/"):
        check_refusal(ask(pair.proxy, "POST", CHAT + query, chat()), 400, "invalid_request")


# --- 3. Request --------------------------------------------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], int, str, str | None]] = [
    ({"model": "gpt-4o"}, 404, "model_not_found", "model"),
    ({"model": "mac-mini-default"}, 404, "model_not_found", "model"),
    ({"model": "Daily"}, 404, "model_not_found", "model"),
    ({"model": ""}, 404, "model_not_found", "model"),
    ({"model": None}, 400, "invalid_request", "model"),
    ({"model": 7}, 400, "invalid_request", "model"),
    ({"model": ["daily"]}, 400, "invalid_request", "model"),
    ({"messages": None}, 400, "invalid_request", "messages"),
    ({"messages": []}, 400, "invalid_request", "messages"),
    ({"messages": "hi"}, 400, "invalid_request", "messages"),
    ({"messages": USER * 201}, 400, "invalid_request", "messages"),
    ({"messages": [*USER, {"role": "function", "content": "x"}]}, 400, "invalid_request", "messages[1].role"),
    ({"messages": [{"role": "user"}]}, 400, "invalid_request", "messages[0].content"),
    ({"messages": [{"role": "user", "content": None}]}, 400, "invalid_request", "messages[0].content"),
    ({"messages": [{"role": "user", "content": "x", "url": "y"}]}, 400, "unsupported_field", "url"),
    ({"messages": [{"role": "tool", "content": "x"}]}, 400, "invalid_request", "messages[0].tool_call_id"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/"}}]}]},
        400,
        "unsupported_content",
        "messages[0].content[0].type",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "image_url": {}}]}]},
        400,
        "unsupported_field",
        "image_url",
    ),
    ({"stream": "yes"}, 400, "invalid_request", "stream"),
    ({"stream": 1}, 400, "invalid_request", "stream"),
    ({"max_tokens": 0}, 400, "invalid_request", "max_tokens"),
    ({"max_tokens": 1.5}, 400, "invalid_request", "max_tokens"),
    ({"max_completion_tokens": -2}, 400, "invalid_request", "max_completion_tokens"),
    ({"temperature": 2.1}, 400, "invalid_request", "temperature"),
    ({"temperature": "hot"}, 400, "invalid_request", "temperature"),
    ({"top_p": 1.5}, 400, "invalid_request", "top_p"),
    ({"presence_penalty": 3}, 400, "invalid_request", "presence_penalty"),
    ({"frequency_penalty": -3}, 400, "invalid_request", "frequency_penalty"),
    ({"stop": ["a"] * 5}, 400, "invalid_request", "stop"),
    ({"stop": 7}, 400, "invalid_request", "stop"),
    ({"n": 2}, 400, "invalid_request", "n"),
    ({"store": True}, 400, "invalid_request", "store"),
    ({"logprobs": True}, 400, "invalid_request", "logprobs"),
    ({"stream_options": True}, 400, "invalid_request", "stream_options"),
    ({"tools": [{"type": "mcp", "server_url": "http://x/"}]}, 400, "unsupported_content", "tools[0].type"),
    ({"tools": [{"type": "web_search"}]}, 400, "unsupported_content", "tools[0].type"),
    ({"tool_choice": "any"}, 400, "invalid_request", "tool_choice"),
    ({"response_format": {"type": "grammar"}}, 400, "invalid_request", "response_format.type"),
    *(
        ({name: "hostile"}, 400, "unsupported_field", name)
        for name in ("api_base", "base_url", "fallbacks", "extra_body", "functions", "api_key", "mock_response")
    ),
    ({"web search": 1}, 400, "unsupported_field", None),
    ({"x" * 65: 1}, 400, "unsupported_field", None),
    ({"<script>": 1}, 400, "unsupported_field", None),
]


@pytest.mark.parametrize(
    ("patch", "code", "reason", "param"), REFUSED, ids=[json.dumps(row[0])[:50] for row in REFUSED]
)
def test_refused_field(pair: Pair, patch: dict[str, Any], code: int, reason: str, param: str | None) -> None:
    body = {"model": "daily", "messages": USER, **patch}
    check_refusal(pair.post(body), code, reason, param)
    assert pair.router.posts == 0


@pytest.mark.parametrize("name", ["model", "messages"])
def test_missing_field(pair: Pair, name: str) -> None:
    body = {"model": "daily", "messages": USER}
    del body[name]
    check_refusal(pair.post(body), 400, "invalid_request", name)


BAD_BODIES = {
    "empty": b"",
    "array": b"[]",
    "string": b'"x"',
    "cut": b'{"model":"daily"',
    "two": b"{}{}",
    "nan": b'{"model":"daily","messages":[],"temperature":NaN}',
    "infinity": b'{"model":"daily","messages":[],"temperature":Infinity}',
    "bom": b"\xef\xbb\xbf{}",
    "utf-16": '{"model":"daily"}'.encode("utf-16"),
    "latin-1": b'{"model":"daily","messages":[{"role":"user","content":"\xe9"}]}',
    "depth": b'{"model":"daily","metadata":' + b"[" * 33 + b"]" * 33 + b"}",
    "lone surrogate": b'{"model":"daily","messages":[{"role":"user","content":"\\ud800"}]}',
    "comment": b'{"model":"daily"/**/}',
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES)
def test_invalid_json(pair: Pair, body: bytes) -> None:
    check_refusal(pair.post(body), 400, "invalid_json")
    assert pair.router.posts == 0


@pytest.mark.parametrize(("one", "other"), [("daily", "gpt-4o"), ("gpt-4o", "daily")])
def test_model_twice(pair: Pair, one: str, other: str) -> None:
    body = b'{"model":"%b","messages":[{"role":"user","content":"hi"}],"model":"%b"}' % (one.encode(), other.encode())
    check_refusal(pair.post(body), 404, "model_not_found", "model")
    assert pair.router.posts == 0


@pytest.mark.parametrize(
    "media", ["text/plain", "application/jsonp", "application/json; charset=latin-1", "multipart/form-data", ""]
)
def test_media_type(pair: Pair, media: str) -> None:
    check_refusal(pair.post(chat(), {"Content-Type": media}), 415, "unsupported_media_type")


def test_media_type_with_charset(pair: Pair) -> None:
    assert pair.post(chat(), {"Content-Type": "Application/JSON; charset=UTF-8"}).status == 200
    check_refusal(pair.post(chat(), {"Content-Encoding": "gzip"}), 415, "unsupported_media_type")


def test_body_too_large(pair: Pair) -> None:
    check_refusal(pair.post(chat(say="x" * 100001)), 413, "body_too_large")
    fits = json.dumps(chat(say="")).encode()
    assert pair.post(json.dumps(chat(say="x" * (100000 - len(fits)))).encode()).status == 200
    over = b"%x\r\n" % 100001
    with RawClient(pair.proxy) as client:
        client.send(request_bytes("POST", CHAT, over, {"Transfer-Encoding": "chunked"}))
        assert client.read_head().status == 413


def test_declared_length_over_the_cap_is_refused_at_once(pair: Pair) -> None:
    for length in (100001, 10**30):
        with RawClient(pair.proxy) as client:
            client.send(request_bytes("POST", CHAT, b"", {"Content-Length": str(length)}))
            assert client.read_head().status == 413  # not the 408 of a body that does not come


def test_chunked_request(pair: Pair) -> None:
    data = json.dumps(chat()).encode()
    body = b"".join(b"%x;a=b\r\n%b\r\n" % (1, data[at : at + 1]) for at in range(len(data))) + LAST_CHUNK
    answer = pair.post(body, {"Transfer-Encoding": "chunked"})
    assert (answer.status, answer.told().text) == (200, "Hello world")


def test_expect_continue(pair: Pair) -> None:
    data = json.dumps(chat()).encode()
    with RawClient(pair.proxy) as client:
        client.send(request_bytes("POST", CHAT, data, {"Expect": "100-continue"})[: -len(data)])
        assert client.read_head().status == 100
        client.send(data)
        assert client.read_head().status == 200
    check_refusal(pair.post(chat(), {"Expect": "200-ok"}), 400, "invalid_request")


@pytest.mark.parametrize("word", ["urgent", "FOREGROUND", "", "foreground, background"])
def test_invalid_priority(pair: Pair, word: str) -> None:
    check_refusal(pair.post(chat(), {"X-Eid-Priority": word}), 400, "invalid_priority")


def test_progress_is_asked_for_in_four_words(pair: Pair) -> None:
    for word, on in (("1", True), ("true", True), ("0", False), ("false", False), (None, False)):
        answer = pair.post(chat(), {} if word is None else {"X-Eid-Progress": word})
        assert answer.status == 200
        assert any("eid" in event.json() for event in answer.events()[:-1]) is on, word
    for word in ("yes", "2", "", "True", "1, 1"):
        answer = pair.post(chat(), {"X-Eid-Progress": word})
        check_refusal(answer, 400, "invalid_request")
        assert "X-Eid-Progress is 1, true, 0 or false." in answer.json()["error"]["message"]


def test_a_prompt_over_the_bound_never_waits(router: Router) -> None:
    with Proxy(router, EIDPROXY_MODELS_MAX_PROMPT_BYTES="500") as proxy:
        assert ask(proxy, "POST", CHAT, chat()).status == 200
        check_refusal(
            ask(proxy, "POST", CHAT, {**chat(), "messages": [{"role": "user", "content": "x" * 500}]}),
            413,
            "prompt_too_long",
        )
        assert router.posts == 1
        assert proxy.metric("eidproxy_gate_wait_seconds_count", priority="foreground", outcome="granted") == 1


def test_what_the_router_gets(pair: Pair) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"x": [1]}}}
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "http://example.com/ is text"},
        {"role": "user", "content": [{"type": "text", "text": "안녕"}], "name": "eid"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "7", "tool_call_id": "c1"},
    ]
    passed = {
        "top_p": 0.5,
        "presence_penalty": 1,
        "frequency_penalty": -1,
        "stop": ["a"],
        "tools": [tool],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"a": 1}}},
    }
    kept_back = {
        "stream_options": {"include_usage": True},
        "n": 1,
        "user": "u",
        "store": False,
        "parallel_tool_calls": True,
        "seed": 7,
        "metadata": {"k": "hostile"},
        "service_tier": "auto",
        "safety_identifier": "s",
        "prompt_cache_key": "p",
        "reasoning_effort": "low",
        "verbosity": "low",
        "logprobs": False,
    }
    answer = pair.post(
        {"model": "deep", "messages": messages, "max_tokens": 100, "max_completion_tokens": 50, **passed, **kept_back},
        {"Authorization": "Bearer hostile", "Cookie": "hostile", "X-Forwarded-For": "hostile", "User-Agent": "hostile"},
    )
    assert answer.status == 200
    [request] = pair.router.requests
    sent_messages = [dict(message) for message in messages]
    del sent_messages[1]["name"]
    assert request.json == {
        "model": "qwen-macbook",
        "messages": sent_messages,
        "stream": True,
        "max_tokens": 50,
        "temperature": 0.4,
        **passed,
    }
    assert (request.method, request.path) == ("POST", "/v1/chat/completions")
    assert {name.lower() for name, _ in request.headers} == {
        "host",
        "content-type",
        "accept",
        "accept-encoding",
        "connection",
        "content-length",
    }
    assert request.header("Host") == f"127.0.0.1:{pair.router.port}"
    assert request.header("Accept-Encoding") == "identity"
    assert b"hostile" not in request.head + request.body


@pytest.mark.parametrize(
    ("given", "sent"),
    [({}, 2048), ({"max_tokens": 9999}, 2048), ({"max_tokens": 5, "max_completion_tokens": 9}, 5)],
)
def test_max_tokens(pair: Pair, given: dict[str, Any], sent: int) -> None:
    assert pair.post(chat(temperature=0, **given)).status == 200
    [request] = pair.router.requests
    assert (request.json["max_tokens"], request.json["temperature"]) == (sent, 0)
    assert request.model == "mac-mini-default"


def test_request_ids(pair: Pair) -> None:
    for given in ("a", "A-b_c.9", "x" * 128):
        answer = pair.post(chat(), {"X-Request-Id": given})
        assert answer.get("X-Request-Id") == given
        assert answer.events()[0].json()["id"] == f"chatcmpl-{given}"
    for given in ("x" * 129, "hostile value", "hostile/../x", "hostilé", ""):
        answer = pair.post(chat(), {"X-Request-Id": given})
        assert re.fullmatch("[A-Za-z0-9._-]{1,128}", answer.get("X-Request-Id") or "")
        assert answer.get("X-Request-Id") != given
    twice = ask(pair.proxy, "POST", CHAT, chat(), [("X-Request-Id", "one"), ("X-Request-Id", "two")])
    assert twice.get("X-Request-Id") not in ("one", "two")
    check_refusal(pair.post(chat("gpt-4o"), {"X-Request-Id": "mine"}), 404, "model_not_found", "model")


def test_traceparent_is_logged_when_valid(pair: Pair) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    for number, (header, logged) in enumerate(
        [
            (f"00-{trace}-00f067aa0ba902b7-01", trace),
            (f"00-{'0' * 32}-00f067aa0ba902b7-01", None),
            (f"00-{trace.upper()}-00f067aa0ba902b7-01", None),
            ("hostile", None),
        ]
    ):
        pair.post(chat(), {"traceparent": header, "X-Request-Id": f"trace-{number}"})
        line = logged_line(pair.proxy, f"trace-{number}")
        assert line.get("trace_id") == logged


def test_api_key(router: Router) -> None:
    with Proxy(router, EIDPROXY_SERVER_API_KEY="secret-key", canaries=["secret-key"]) as proxy:
        for headers in (
            [],
            [("Authorization", "Bearer wrong")],
            [("Authorization", "Basic secret-key")],
            [("Authorization", "secret-key")],
            [("Authorization", "Bearer secret-key"), ("Authorization", "Bearer secret-key")],
        ):
            for method, path, body in (("POST", CHAT, chat()), ("GET", "/v1/models", None), ("GET", "/metrics", None)):
                answer = ask(proxy, method, path, body, headers)
                check_refusal(answer, 401, "unauthorized")
                assert answer.get("WWW-Authenticate") == "Bearer"
            assert ask(proxy, "GET", "/healthz", headers=headers).status == 200
            assert ask(proxy, "GET", "/readyz", headers=headers).status == 200
        assert router.posts == 0
        assert ask(proxy, "POST", CHAT, chat(), {"Authorization": "bearer secret-key"}).told().done
        assert proxy.get("/v1/models").status == 200


# --- 4. Answer ---------------------------------------------------------------------------------------------------


def test_stream(pair: Pair) -> None:
    before = int(time.time())
    answer = pair.post(chat("deep"))
    assert answer.status == 200
    assert answer.get("Content-Type") == "text/event-stream; charset=utf-8"
    assert answer.get("Cache-Control") == "no-cache, no-transform"
    assert answer.get("X-Accel-Buffering") == "no"
    assert answer.get("Server") is None
    assert answer.get("Connection") is None
    assert re.fullmatch(r"gate;dur=\d+(\.\d+)?, upstream;dur=\d+(\.\d+)?", answer.get("Server-Timing") or "")
    assert answer.body.endswith(b"data: [DONE]\n\n")
    assert b"\r" not in answer.body
    *events, _ = answer.events()
    texts = ["Hello", " world", None]
    assert len(events) == len(texts)
    for number, (item, text) in enumerate(zip(events, texts, strict=True)):
        value = item.json()
        assert before <= value.pop("created") <= time.time()
        delta: dict[str, Any] = {} if text is None else {"content": text}
        if number == 0:
            delta["role"] = "assistant"
        assert value == {
            "id": f"chatcmpl-{answer.get('X-Request-Id')}",
            "object": "chat.completion.chunk",
            "model": "deep",
            "choices": [{"index": 0, "delta": delta, "finish_reason": "stop" if text is None else None}],
        }


def test_non_stream(pair: Pair) -> None:
    for body in (chat(stream=False), {"model": "daily", "messages": USER}):
        answer = pair.post(body)
        assert (answer.status, answer.get("Content-Type")) == (200, "application/json")
        assert answer.get("Cache-Control") == "no-store"
        assert answer.get("Server-Timing")
        value = answer.json()
        assert isinstance(value.pop("created"), int)
        assert value == {
            "id": f"chatcmpl-{answer.get('X-Request-Id')}",
            "object": "chat.completion",
            "model": "daily",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "Hello world", "refusal": None},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        }
    assert all(request.json["stream"] is True for request in pair.router.requests)


def test_reasoning_and_tool_calls(pair: Pair) -> None:
    pieces: list[dict[str, Any]] = [
        {"role": "assistant", "reasoning": "think "},
        {"reasoning_content": "more"},
        {"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a"'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}, "secret": "upstream-text"}]},
        {"refusal": "no", "annotations": ["upstream-text"]},
    ]
    script = framed(*(completion_chunk(piece) for piece in pieces), said(finish="tool_calls"), DONE)
    answer = pair.play(script)
    assert b"upstream-text" not in answer.body
    deltas = [item.json()["choices"][0]["delta"] for item in answer.events()[:-1]]
    assert deltas == [
        {"role": "assistant", "reasoning_content": "think "},
        {"reasoning_content": "more"},
        pieces[2],
        {"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]},
        {"refusal": "no"},
        {},
    ]
    assert answer.told().finish_reason == "tool_calls"
    whole = pair.play(script, stream=False).json()["choices"][0]
    assert whole == {
        "index": 0,
        "message": {
            "role": "assistant",
            "content": None,
            "reasoning_content": "think more",
            "refusal": "no",
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}],
        },
        "logprobs": None,
        "finish_reason": "tool_calls",
    }


@pytest.mark.parametrize(
    ("word", "sent"),
    [(word, word) for word in ("stop", "length", "tool_calls", "content_filter", "function_call")]
    + [("eos", "stop"), ("max_tokens", "length"), ("Model_Length", "length")],
)
def test_finish_reasons(pair: Pair, word: str, sent: str) -> None:
    answer = pair.play(framed(said("x"), said(finish=word), DONE))
    assert (answer.told().finish_reason, answer.told().done) == (sent, True)


@pytest.mark.parametrize("word", ["error", "ABORT", "aborted", "cancelled", "network_error"])
def test_words_for_a_failure(pair: Pair, word: str) -> None:
    answer = pair.play(framed(said("x"), said(finish=word), DONE))
    check_error_event(answer, 503, "upstream_error")
    assert answer.told().text == "x"
    check_refusal(pair.play(framed(said("x"), said(finish=word), DONE), stream=False), 503, "upstream_error")


@pytest.mark.parametrize("word", ["", "null", None])
def test_no_finish_reason_is_no_end(pair: Pair, word: str | None) -> None:
    check_error_event(pair.play(framed(said("x", word), said(finish=word), DONE)), 503, "upstream_truncated")


def test_the_finish_reason_is_kept_back(pair: Pair) -> None:
    """It leaves in the last chunk, which has an empty delta; what comes after it still counts."""
    answer = pair.play(framed(said("a", "stop"), said("b", "length"), said("c"), said(finish="stop"), DONE))
    choices = [item.json()["choices"][0] for item in answer.events()[:-1]]
    assert [choice["delta"].get("content") for choice in choices] == ["a", "b", "c", None]
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, "stop"]
    assert choices[-1]["delta"] == {}


@pytest.mark.parametrize(
    ("then", "reason"),
    [(Reset(), "router_ReadError"), (Stall(), "router_ReadTimeout"), (Fin(), None), (Send(chunk(DONE)), None)],
)
def test_after_late_text_only_the_router_s_own_end_makes_the_answer_whole(
    pair: Pair, then: Step, reason: str | None
) -> None:
    script = [*framed(said("a", "stop"), said("b", "stop"), end=b""), then]
    answer = pair.play(script if isinstance(then, Reset | Stall | Fin) else [*script, Stall()])
    assert answer.told().text == "ab"
    if reason is None:
        assert (answer.told().finish_reason, answer.told().done) == ("stop", True)
    else:
        check_error_event(answer, 503, reason)


def test_a_lone_role_is_no_first_event(pair: Pair) -> None:
    """Servers send it before the model begins: what fails then is a status."""
    role = completion_chunk({"role": "assistant"})
    for streaming in (True, False):
        answer = pair.play(framed(role, {"error": {"type": "server_error"}}, DONE), stream=streaming)
        check_refusal(answer, 503, "upstream_error")
        long = {"error": {"type": "dict", "message": "... 'type': 'exceed_context_size_error' ..."}}
        check_refusal(pair.play(framed(role, long, DONE), stream=streaming), 400, "context_too_long")


def test_what_is_dropped(pair: Pair) -> None:
    answer = pair.play(
        framed(
            b": keepalive 11/12\n\n",
            b"id: 7\nretry: 3000\nevent: message\n" + event(said("A")),
            event(said(choices=[])),
            event({"object": "upstream-text"}),
            b"data: upstream-text\n\n",
            b'data: ["upstream-text"]\n\n',
            b"unknown: upstream-text\n\n",
            completion_chunk(choices=[{"index": 1, "delta": {"content": "upstream-text"}}]),
            said("B"),
            said(finish="stop"),
            DONE,
            event(said("upstream-text")),
        )
    )
    assert (answer.told().text, answer.told().done) == ("AB", True)
    assert b"upstream-text" not in answer.body
    assert comments(answer.body) == []
    assert len(answer.events()) == 4


def test_done_is_ours_when_the_router_omits_it(pair: Pair) -> None:
    for end in (LAST_CHUNK, b""):
        script = [*framed(said("x"), said(finish="stop"), end=end), *([] if end else [Fin()])]
        answer = pair.play(script)
        assert (answer.told().text, answer.told().done, answer.told().errors) == ("x", True, [])
    answer = pair.play([*framed(said("x"), said(finish="stop"), end=b""), Reset()])
    assert (answer.told().done, answer.told().errors) == (True, [])


def test_error_after_the_finish_reason_changes_nothing(pair: Pair) -> None:
    for late in (event({"error": "late"}), b"event: error\ndata: late\n\n"):
        answer = pair.play(framed(said("x"), said(finish="stop"), late))
        assert (answer.told().done, answer.told().errors) == (True, [])


def test_linger_after_the_finish_reason(pair: Pair) -> None:
    """At most 5 s are waited for usage and `[DONE]`; the slot is free afterwards."""
    pair.router.enqueue([*framed(said("x"), said(finish="stop"), end=b""), Stall()])
    with RawClient(pair.proxy) as client:
        began = time.monotonic()
        client.send(request_bytes("POST", CHAT, chat()))
        client.read_head()
        events = client.events()
        assert b'"x"' in next(events)
        began = time.monotonic()
        rest = b"".join(events)
        assert time.monotonic() - began > 4.5
        assert rest.endswith(b"data: [DONE]\n\n")
        assert client.clean
    # No keep-alive matters to who has the answer, but it must be nothing else than one.
    assert set(comments(rest)) <= {"keepalive"}


def test_keepalive_comments(pair: Pair) -> None:
    answer = pair.play([*framed(said("A"), end=b""), Pause(0.7), Send(chunk(event(said("B", "stop"))) + LAST_CHUNK)])
    # Three, on a machine that is not late itself.
    assert set(comments(answer.body)) == {"keepalive"}
    assert answer.told().text == "AB"
    assert answer.body.count(b": keepalive\n\n") == len(comments(answer.body))


def test_upstream_comments_are_a_sign_of_life(pair: Pair) -> None:
    """The read timeout is 1 s here: comments that change carry a silence of 1.6 s, and none is passed on."""
    script: list[Step] = [Send(stream_head())]
    for number in range(4):
        script += [Pause(0.4), Send(chunk(b": upstream-text %d\n\n" % number))]
    answer = pair.play([*script, Send(chunk(event(said("x", "stop"))) + LAST_CHUNK)])
    assert (answer.status, answer.told().text) == (200, "x")
    assert b"upstream-text" not in answer.body


def test_no_token_counts(pair: Pair) -> None:
    for streaming in (True, False):
        answer = pair.post(chat(stream=streaming, stream_options={"include_usage": True}))
        if streaming:
            assert b"usage" not in answer.body
        else:
            assert set(answer.json()["usage"].values()) == {0}
        assert "stream_options" not in pair.router.requests[-1].json


def test_usage_is_asked_for_by_setting(router: Router) -> None:
    with Proxy(router, EIDPROXY_ROUTER_ASK_USAGE="true", EIDPROXY_ROUTER_API_KEY="router-key") as proxy:
        assert b"usage" not in ask(proxy, "POST", CHAT, chat()).body
        assert router.requests[0].json["stream_options"] == {"include_usage": True}
        assert router.requests[0].header("Authorization") == "Bearer router-key"
        assert proxy.metric("eidproxy_upstream_tokens_total", mode="daily", kind="prompt") == 11
        assert proxy.metric("eidproxy_upstream_tokens_total", mode="daily", kind="completion") == 2


def test_progress(pair: Pair) -> None:
    pair.router.script = stream(gate="go")
    with RawClient(pair.proxy) as holder, RawClient(pair.proxy) as second, RawClient(pair.proxy) as third:
        holder.send(request_bytes("POST", CHAT, chat()))
        pair.router.wait_for(lambda: pair.router.waiting("go") == 1)
        second.send(request_bytes("POST", CHAT, chat()))
        until(lambda: len(pair.proxy.status()["gate"]["waiting"]) == 1)
        third.send(request_bytes("POST", CHAT, chat(), {"X-Eid-Progress": "1"}))
        answer = third.read_head()
        assert answer.status == 200
        assert answer.get("Server-Timing") is None
        assert answer.get("X-Accel-Buffering") == "no"
        events = third.events()
        first = json.loads(next(events).removeprefix(b"data: "))
        assert first["choices"] == []
        assert (first["object"], first["model"]) == ("chat.completion.chunk", "daily")
        assert set(first) == {"id", "object", "created", "model", "choices", "eid"}
        assert first["eid"]["state"] == "queued"
        assert first["eid"]["position"] == 2
        assert set(first["eid"]) == {"state", "position", "eta_seconds"}
        pair.router.release("go", 1)
        assert json.loads(next(events).removeprefix(b"data: "))["eid"]["position"] == 1
        pair.router.release("go", 1)
        assert json.loads(next(events).removeprefix(b"data: "))["eid"] == {"state": "upstream", "elapsed_seconds": 0}
        pair.router.release("go")
        body = b"".join(events)
        assert body.endswith(b"data: [DONE]\n\n")
        assert third.clean


def test_progress_when_nothing_waits(pair: Pair) -> None:
    for model in ("daily", "deep"):
        said_all = pair.play(stream(), model, X_Eid_Progress="1").told()
        assert said_all.progress == [{"state": "upstream", "elapsed_seconds": 0}]
        assert (said_all.text, said_all.done) == ("Hello world", True)


def test_progress_needs_a_stream(pair: Pair) -> None:
    answer = pair.play(stream(), stream=False, X_Eid_Progress="1")
    assert answer.json()["choices"][0]["message"]["content"] == "Hello world"
    assert b"eid" not in answer.body.replace(b"chatcmpl", b"")


def test_progress_makes_failures_events(pair: Pair) -> None:
    answer = pair.play(status(503, {"error_reason": "warming"}), X_Eid_Progress="1")
    check_error_event(answer, 503, "warming")
    assert answer.told().progress == [{"state": "upstream", "elapsed_seconds": 0}]
    check_refusal(pair.post(chat("nope"), {"X-Eid-Progress": "1"}), 404, "model_not_found", "model")


def test_first_event_is_not_held_back(pair: Pair) -> None:
    """Each event reaches the caller while the router keeps the next one back."""
    script: list[Step] = [Send(stream_head()), Wait("head")]
    for number in range(5):
        script += [Send(chunk(event(said(f"{number}")))), Wait(f"after {number}")]
    pair.router.enqueue([*script, Send(chunk(event(said(finish="stop")) + DONE) + LAST_CHUNK)])
    with RawClient(pair.proxy, timeout=5) as client:
        client.send(request_bytes("POST", CHAT, chat()))
        pair.router.wait_for(lambda: pair.router.waiting("head") == 1)
        client.sock.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.read_head()  # the status waits for the first good event
        client.sock.settimeout(5)
        pair.router.release("head")
        client.read_head()
        events = client.events()
        for number in range(5):
            piece = next(events)
            while piece.startswith(b":"):
                piece = next(events)
            assert f'"content":"{number}"'.encode() in piece
            pair.router.release(f"after {number}")
        assert b"".join(events).endswith(DONE)


# --- 5. Errors ---------------------------------------------------------------------------------------------------

WORDS = ["macbook_unavailable", "warming", "editor_busy", "upstream_cold", "provider_not_configured", "some_new_word"]

STATUSES: list[tuple[int, object, int, str]] = [
    *((503, {"error": {"type": word, "message": "upstream-text"}}, 503, word) for word in WORDS),
    (503, {"error": {"error_reason": "warming"}}, 503, "warming"),
    (503, {"error_reason": "warming"}, 503, "warming"),
    (503, {"error": {"type": "", "error_reason": None}, "error_reason": "warming"}, 503, "warming"),
    (503, {"error": {"type": "upstream_cold"}, "error_reason": "warming"}, 503, "upstream_cold"),
    (429, {"error": {"type": "rate_limited"}}, 503, "rate_limited"),
    (503, {"error": {"type": "Upstream-Text"}}, 503, "router_503"),
    (503, {"error": {"type": "Not ours"}, "error_reason": "warming"}, 503, "warming"),
    (503, {"error": {"type": "server_error"}, "error_reason": "warming"}, 503, "warming"),
    (503, {"error": {"type": "not ours"}, "error_reason": "warming"}, 503, "router_error"),
    (413, {"error": {"message": "x exceeds the MAXIMUM context length"}}, 400, "context_too_long"),
    (400, {"error": {"code": "context_length_exceeded", "message": "upstream-text"}}, 400, "context_too_long"),
    (404, {"error_reason": "x" * 65}, 503, "router_error"),
    (502, {"error": {"type": "not ours"}}, 503, "upstream_502"),
    (502, {}, 503, "upstream_502"),
    (502, {"error_reason": "warming"}, 503, "warming"),
    (503, b"<html>upstream-text</html>", 503, "router_503"),
    (503, {"error": "upstream-text"}, 503, "router_503"),
    (500, {}, 503, "router_http_500"),
    (504, b"", 503, "router_http_504"),
    (599, b"", 503, "router_http_599"),
    (401, {}, 503, "router_http_401"),
    (404, {"detail": "upstream-text"}, 503, "router_http_404"),
    (422, {"detail": [{"msg": "upstream-text"}]}, 503, "router_http_422"),
    (429, b"", 503, "router_http_429"),
    (400, {"error_reason": "warming"}, 500, "router_rejected"),
    (400, b"", 500, "router_rejected"),
    *((code, b"", 500, "egress_blocked") for code in (300, 301, 302, 303, 307, 308, 399)),
    *((code, b"", 503, "upstream_protocol_error") for code in (201, 202, 206)),
]


@pytest.mark.parametrize(
    ("code", "body", "ours", "reason"),
    STATUSES,
    ids=[f"{row[0]}-{row[3][:30]}-{at}" for at, row in enumerate(STATUSES)],
)
def test_router_status(pair: Pair, code: int, body: object, ours: int, reason: str) -> None:
    location = [("Location", "http://127.0.0.1:9/")] if 300 <= code < 400 else []
    for streaming in (True, False):
        answer = pair.play(status(code, body, location), "deep", streaming)
        check_refusal(answer, ours, reason, final=code in FINAL_STATUSES)
        assert b"upstream-text" not in answer.body.lower()
    assert pair.router.posts == 2


def ended(*payloads: object, then: Step | None = None) -> list[Step]:
    return [*framed(*payloads, end=b""), Fin() if then is None else then]


BEFORE: dict[str, tuple[Script, str]] = {
    "no answer": ([Fin()], "router_RemoteProtocolError"),
    "reset": ([Reset()], "router_ReadError"),
    "half a head": ([Send(b"HTTP/1.1 200 OK\r\nContent-Ty"), Fin()], "router_RemoteProtocolError"),
    "reset in the head": ([Send(b"HTTP/1.1 200 OK\r\nContent-Ty"), Pause(0.05), Reset()], "router_ReadError"),
    "no http": ([Send(b"SSH-2.0-OpenSSH_9.6\r\n"), Stall()], "router_RemoteProtocolError"),
    "bad status": ([Send(b"HTTP/1.1 99 X\r\n\r\n"), Stall()], "router_RemoteProtocolError"),
    "status 600": ([Send(b"HTTP/1.1 600 X\r\nContent-Length: 0\r\n\r\n"), Stall()], "router_RemoteProtocolError"),
    "two lengths": (
        [Send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"), Stall()],
        "router_RemoteProtocolError",
    ),
    "length and coding": (
        [Send(head(200, [("Content-Length", "5"), ("Transfer-Encoding", "chunked")]) + LAST_CHUNK), Stall()],
        "router_RemoteProtocolError",
    ),
    "other coding": (
        [Send(head(200, [("Transfer-Encoding", "gzip, chunked")]) + LAST_CHUNK), Stall()],
        "router_RemoteProtocolError",
    ),
    "endless head": ([Send(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 20000), Stall()], "router_RemoteProtocolError"),
    "101": (
        [Send(head(101, [("Upgrade", "websocket"), ("Connection", "upgrade")])), Stall()],
        "router_RemoteProtocolError",
    ),
    "1xx flood": ([Send(head(103) * 1000), Stall()], "router_RemoteProtocolError"),
    "silent": ([Stall()], "upstream_silent"),
    "silent after the head": ([Send(stream_head()), Stall()], "upstream_silent"),
    "json": (status(200, {"choices": []}), "upstream_protocol_error"),
    "no type": ([Send(head(200, [("Content-Length", "0")]))], "upstream_protocol_error"),
    "gzip": (
        [
            Send(
                head(
                    200,
                    [
                        ("Content-Type", "text/event-stream"),
                        ("Content-Encoding", "gzip"),
                        ("Transfer-Encoding", "chunked"),
                    ],
                )
            ),
            Stall(),
        ],
        "upstream_protocol_error",
    ),
    "204": ([Send(head(204))], "upstream_protocol_error"),
    "empty": (framed(), "upstream_truncated"),
    "only done": (framed(DONE), "upstream_truncated"),
    "only comments": (framed(b": a\n\n: b\n\n"), "upstream_truncated"),
    "closed before": (ended(), "upstream_truncated"),
    "bad chunk size": ([Send(stream_head() + b"zz\r\n"), Stall()], "router_RemoteProtocolError"),
    "too large": (framed(b"data: " + b"x" * 1048600 + b"\n\n"), "upstream_protocol_error"),
    "error object": (framed({"error": {"message": "upstream-text"}}), "upstream_error"),
    "error reason": (framed({"error": {"type": "warming"}}), "warming"),
    "error string": (framed({"error": "upstream-text"}), "upstream_error"),
    "event error": (framed(b"event: error\n" + event({"message": "upstream-text"})), "upstream_error"),
    "detail": (framed({"detail": "upstream-text"}), "upstream_error"),
    "bare error": (framed(b'error: {"code":500,"message":"upstream-text"}\n\n'), "upstream_error"),
    "unusable word": (framed({"error": {"type": "Upstream Text"}}), "upstream_error"),
}


@pytest.mark.parametrize("name", BEFORE)
def test_router_fault_before_the_first_event(pair: Pair, name: str) -> None:
    script, reason = BEFORE[name]
    answer = pair.play(script)
    check_refusal(answer, 503, reason)
    assert b"upstream-text" not in answer.body.lower()
    assert pair.router.posts == 1


AFTER: dict[str, tuple[Script, str]] = {
    "cut": (ended(said("A")), "upstream_truncated"),
    "last chunk, no finish": (framed(said("A")), "upstream_truncated"),
    "done, no finish": (framed(said("A"), DONE), "upstream_truncated"),
    "reset": (ended(said("A"), then=Reset()), "router_ReadError"),
    "silent": (ended(said("A"), then=Stall()), "router_ReadTimeout"),
    "error object": (framed(said("A"), {"error": {"message": "upstream-text"}}), "upstream_error"),
    "error word": (framed(said("A"), {"error": {"type": "editor_busy"}}), "editor_busy"),
    "detail": (framed(said("A"), {"detail": "upstream-text"}), "upstream_error"),
    "bare": (framed(said("A"), b"error: upstream-text\n\n"), "upstream_error"),
    "event": (framed(said("A"), b"event: error\ndata: upstream-text\n\n"), "upstream_error"),
    "with choices": (framed(said("A"), said("B", error={"type": "warming"})), "warming"),
    "too large": (framed(said("A"), b"data: " + b"x" * 1048600), "upstream_protocol_error"),
    "bad chunk": (framed(said("A"), end=b"zz\r\n"), "router_RemoteProtocolError"),
}


@pytest.mark.parametrize("name", AFTER)
def test_router_fault_after_the_first_event(pair: Pair, name: str) -> None:
    script, reason = AFTER[name]
    slow = [script[0], script[1], Pause(0.02), *script[2:]]  # type: ignore[index]
    answer = pair.play(slow)
    check_error_event(answer, 503, reason)
    assert answer.told().text == "A"
    assert b"upstream-text" not in answer.body.lower()
    # The caller of a whole answer gets a status for the same fault.
    check_refusal(pair.play(slow, stream=False), 503, reason)


def test_events_before_an_error_in_the_same_read_are_passed_on(pair: Pair) -> None:
    answer = pair.play(
        [Send(stream_head() + chunk(event(said("A")) + event(said("B")) + event({"error": {"message": "x"}})))]
    )
    check_error_event(answer, 503, "upstream_error")
    assert answer.told().text == "AB"


def test_an_answer_behind_the_answer_belongs_to_nobody(pair: Pair) -> None:
    whole = b"".join(step.data for step in stream(["x"]) if isinstance(step, Send))
    for second in (head(400), head(200) + b"data: upstream-text\n\n", b"garbage\r\n\r\n", whole):
        answer = pair.play([Send(whole + second)])
        assert (answer.told().text, answer.told().done, answer.told().errors) == ("x", True, [])


def test_router_refuses_connections(pair: Pair) -> None:
    pair.router.hang_up()
    try:
        check_refusal(pair.post(chat()), 503, "router_ConnectError")
        check_refusal(pair.post(chat("deep", stream=False)), 503, "router_ConnectError")
    finally:
        pair.router.listen()
    assert pair.post(chat()).status == 200


def test_write_timeout() -> None:
    """A router that accepts and reads nothing: what does not fit into the kernel's buffers is not taken in time."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with Proxy(url, EIDPROXY_ROUTER_WRITE_TIMEOUT_SECONDS=0.5, EIDPROXY_SERVER_MAX_BODY_BYTES=20_000_000) as proxy:
            began = time.monotonic()
            answer = ask(proxy, "POST", CHAT, chat(say="x" * 16_000_000), timeout=30)
            check_refusal(answer, 503, "router_WriteTimeout")
            assert time.monotonic() - began < 25  # the default is 30 s
            assert proxy.metric("eidproxy_deadline_exceeded_total", mode="daily", deadline="write") == 1


def test_connect_timeout() -> None:
    """A router whose queue of connections is full answers no SYN."""
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = []
        for _ in range(3):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
            fillers.append(filler)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with Proxy(url, EIDPROXY_ROUTER_CONNECT_TIMEOUT_SECONDS=0.5) as proxy:
            check_refusal(ask(proxy, "POST", CHAT, chat()), 503, "router_ConnectTimeout")
            assert proxy.metric("eidproxy_deadline_exceeded_total", mode="daily", deadline="connect") == 1
        for filler in fillers:
            filler.close()


def test_outcomes_are_logged_and_counted(pair: Pair) -> None:
    def count(**labels: str) -> float:
        return pair.proxy.metric("eidproxy_requests_total", surface="proxy", **labels)

    too_long = status(400, {"error": {"code": "context_length_exceeded"}})
    rows = [
        (stream(), "ok", "none", "none"),
        (status(503, {"error_reason": "warming"}), "error", "warming", "warming"),
        (status(503, {"error_reason": "a_new_word"}), "error", "other", "other"),
        (status(404), "error", "router_http", "router_http_404"),
        (status(400), "error", "router_rejected", "router_rejected"),
        (too_long, "error", "context_too_long", "context_too_long"),
    ]
    for script, outcome, label, logged in rows:
        before = count(mode="daily", outcome=outcome, reason=label)
        answer = pair.play(script)
        assert count(mode="daily", outcome=outcome, reason=label) == before + 1
        line = logged_line(pair.proxy, answer.get("X-Request-Id"))
        assert (line["event"], line["outcome"], line["reason"]) == ("request", outcome, logged)
        assert line["status"] == answer.status
        assert line["level"] == {"router_rejected": "error", "router_http_404": "error", "none": "info"}.get(
            logged, "warning"
        )
        assert (line["surface"], line["mode"], line["priority"]) == ("proxy", "daily", "foreground")


def test_answer_text_goes_to_its_caller_alone(pair: Pair) -> None:
    answer = pair.play(stream([ANSWER_CANARY]))
    assert answer.told().text == ANSWER_CANARY
    assert ANSWER_CANARY.encode() not in pair.proxy.output()
    assert ANSWER_CANARY.encode() not in pair.proxy.get("/metrics").body + pair.proxy.get("/status").body


def test_a_failed_check_fails() -> None:
    """Control: the checks above notice what they are for."""
    good = {
        "error": {"message": "A b.", "type": "service_unavailable", "param": None, "code": "warming"},
        "error_reason": "warming",
        "request_id": "x",
    }
    check_error(good, 503, "warming")
    for broken in ({**good, "detail": 1}, {**good, "error_reason": "other"}, {**good, "error": {"message": "A b."}}):
        with pytest.raises(AssertionError):
            check_error(broken, 503, "warming")
