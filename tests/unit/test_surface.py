"""surface: the order of the checks, the composition, and the endpoint from outside."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eidproxy.errors import Refusal
from eidproxy.inbound.chat import convert, parse_object
from eidproxy.surface import Caps, Conversation, check_messages, read_text
from eidproxy.tokens import Tokens
from tests.lab.callers import rounds
from tests.lab.client import ANSWER_CANARY, PROMPT_CANARY, Answer, RawClient, ask, request_bytes
from tests.lab.proxy import Proxy
from tests.lab.router import Router
from tests.lab.script import Wait, stream

API = "/api/eid/chat"
SECRET = "surface-secret-surface-secret-32"
PERSONA_CANARY = "canary-persona-19ab"
RULES_CANARY = "canary-rules-77de"


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def check(messages: object, caps: Caps) -> None:
    body = json.dumps({"mode": "daily", "messages": messages}).encode()
    check_messages(convert(parse_object(body), Conversation).messages, caps)


@pytest.mark.parametrize(
    ("messages", "reason", "param"),
    [
        (None, "invalid_request", "messages"),
        ({}, "invalid_request", "messages"),
        ([], "invalid_request", "messages"),
        (["x"], "invalid_request", "messages[0]"),
        ([{"role": "user"}], "invalid_request", "messages[0].content"),
        ([{"content": "x"}], "invalid_request", "messages[0].role"),
        ([{"role": "user", "content": ["x"]}], "invalid_request", "messages[0].content"),
        ([{"role": "user", "content": "x", "name": "y"}], "unsupported_field", "name"),
        ([user("x"), {"role": "wizard", "content": "x"}], "invalid_request", "messages[1].role"),
        *[
            ([{"role": r, "content": "x"}], "system_role_forbidden", "messages[0].role")
            for r in ("system", "developer", "tool")
        ],
        ([user("x")] * 4, "too_many_turns", "messages"),
        ([user("x" * 11)], "message_too_long", "messages[0].content"),
        ([user("x" * 10), user("x" * 10), user("x")], "conversation_too_long", "messages"),
        # The earlier check decides where two would refuse.
        ([user("x" * 11)] * 4, "too_many_turns", "messages"),
        ([*[user("x")] * 4, {"role": "system", "content": "x"}], "system_role_forbidden", "messages[4].role"),
        ([{"role": "system", "content": "x", "y": 1}], "unsupported_field", "y"),
        ([user("x" * 10), user("x" * 11)], "message_too_long", "messages[1].content"),
    ],
)
def test_messages_are_refused_in_order(messages: object, reason: str, param: str) -> None:
    with pytest.raises(Refusal) as refused:
        check(messages, Caps(10, 3, 20))
    assert (refused.value.reason, refused.value.param) == (reason, param)


def test_characters_are_code_points() -> None:
    """Ten of each: three bytes in UTF-8, two units in UTF-16, several marks on one letter."""
    for text in ("가" * 10, "🧑" * 10, "e\u0301" * 5):
        check([user(text)], Caps(10, 3, 20))
        with pytest.raises(Refusal, match="message_too_long"):
            check([user(text + "x")], Caps(10, 3, 20))


def test_text_files(tmp_path: Path) -> None:
    path = tmp_path / "rules.txt"
    for content, expected in (
        (b"be kind\n", "be kind"),
        (b"\xef\xbb\xbfbe kind", "be kind"),
        ("친절하게".encode(), "친절하게"),
    ):
        path.write_bytes(content)
        assert read_text(str(path)) == expected
    for content in (b"", b" \n\t ", b"\xff\xfe", b"x" * (256 * 1024 + 1)):
        path.write_bytes(content)
        with pytest.raises(Refusal, match="rules_missing"):
            read_text(str(path))
    path.unlink()
    os.mkfifo(path)  # nobody ever writes to it: opening it must not wait
    for odd in (path, tmp_path, tmp_path / "nothing"):
        with pytest.raises(Refusal, match="rules_missing"):
            read_text(str(odd))


class Chat:
    """A running chat surface."""

    def __init__(self, router: Router, proxy: Proxy, folder: Path) -> None:
        self.router = router
        self.proxy = proxy
        self.persona = folder / "persona.txt"
        self.rules = folder / "rules.txt"
        self.token = Tokens(SECRET, None, None, 0).issue("mina", 600)

    def ask(self, body: Any = None, authorization: str | None = None, **headers: str) -> Answer:
        body = {"mode": "daily", "messages": [user(PROMPT_CANARY)]} if body is None else body
        given = {
            "Authorization": authorization or f"Bearer {self.token}",
            "Content-Type": "application/json",
            **headers,
        }
        return ask(self.proxy, "POST", API, body, given)


@pytest.fixture
def chat(router: Router, tmp_path: Path) -> Iterator[Chat]:
    (tmp_path / "persona.txt").write_text(f"You are eid. {PERSONA_CANARY}\n")
    (tmp_path / "rules.txt").write_text(f"Be kind. {RULES_CANARY}\n")
    with Proxy(
        router,
        EIDPROXY_CHAT_JWT_SECRET=SECRET,
        EIDPROXY_CHAT_RULES_FILE=str(tmp_path / "rules.txt"),
        EIDPROXY_CHAT_PERSONA_FILE=str(tmp_path / "persona.txt"),
        EIDPROXY_LOG_LEVEL="debug",
        canaries=[PERSONA_CANARY, RULES_CANARY, SECRET],
    ) as proxy:
        yield Chat(router, proxy, tmp_path)


def test_an_answer_streams_with_progress_and_the_composed_message(chat: Chat) -> None:
    chat.router.enqueue(stream([ANSWER_CANARY, " well"]))
    answer = chat.ask()
    assert answer.status == 200
    assert answer.get("Server-Timing") is None
    events = answer.events()
    assert events[0].json()["eid"] == {"state": "upstream", "elapsed_seconds": 0}
    assert answer.told().text == f"{ANSWER_CANARY} well"
    assert [event.data for event in events][-1] == "[DONE]"
    sent = chat.router.requests[-1].json
    assert sent["messages"] == [
        {"role": "system", "content": f"You are eid. {PERSONA_CANARY}\n\nBe kind. {RULES_CANARY}"},
        user(PROMPT_CANARY),
    ]
    assert sent["model"] == "mac-mini-default"
    for canary in (PERSONA_CANARY, RULES_CANARY, PROMPT_CANARY):
        assert canary.encode() not in answer.body
    assert chat.proxy.metric("eidproxy_requests_total", surface="chat", mode="daily", outcome="ok", reason="none") == 1


def test_a_waiting_caller_is_told_its_place(chat: Chat) -> None:
    chat.router.enqueue([Wait("first"), *stream(["one"])], stream(["two"]))
    body = {"mode": "daily", "messages": [user("x")]}
    headers = {"Authorization": f"Bearer {chat.token}", "Content-Type": "application/json"}
    with RawClient(chat.proxy) as first, RawClient(chat.proxy) as second:
        first.send(request_bytes("POST", API, body, headers))
        chat.router.wait_for(lambda: chat.router.concurrent == 1)
        second.send(request_bytes("POST", API, body, headers))
        assert second.read_head().status == 200
        events = second.events()
        told = json.loads(next(events).removeprefix(b"data: "))["eid"]
        assert told == {"state": "queued", "position": 1, "eta_seconds": None}
        assert chat.proxy.status()["gate"]["waiting"][0]["priority"] == "foreground"
        chat.router.release("first")
        assert any(b"two" in event for event in events)


@pytest.mark.parametrize(
    "change", ["removed", "emptied", "blank", "binary", "unreadable directory", "persona removed", "persona blank"]
)
def test_without_rules_nothing_reaches_the_router(chat: Chat, change: str) -> None:
    target = chat.persona if change.startswith("persona") else chat.rules
    if change.endswith("removed"):
        target.unlink()
    elif change == "unreadable directory":
        target.unlink()
        target.mkdir()
    else:
        target.write_bytes({"emptied": b"", "binary": b"\xff\xfe\xff"}.get(change, b" \n"))
    answer = chat.ask()
    assert (answer.status, answer.reason) == (503, "rules_missing")
    assert answer.get("x-should-retry") == "false"
    assert answer.get("Retry-After") is None
    assert chat.router.posts == 0
    assert chat.proxy.metric("eidproxy_chat_rules_missing_total") == 1


def test_changed_rules_hold_for_the_next_request(chat: Chat) -> None:
    for text in ("Be kind.", "Be brief.", "친절하게."):
        new = chat.rules.with_suffix(".new")
        new.write_text(text)
        new.replace(chat.rules)
        assert chat.ask().status == 200
        assert chat.router.requests[-1].json["messages"][0]["content"].endswith(f"\n\n{text}")


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"{", 400, "invalid_json"),
        (b"[]", 400, "invalid_json"),
        ({"mode": "gpt-4o", "messages": [user("x")]}, 404, "model_not_found"),
        ({"messages": [user("x")]}, 400, "invalid_request"),
        ({"mode": 1, "messages": [user("x")]}, 400, "invalid_request"),
        ({"mode": "daily", "messages": [user("x")], "model": "daily"}, 400, "unsupported_field"),
        ({"mode": "daily", "messages": [{"role": "system", "content": "x"}]}, 422, "system_role_forbidden"),
        ({"mode": "daily", "messages": [user("가" * 8001)]}, 422, "message_too_long"),
        ({"mode": "daily", "messages": [user("x")] * 41}, 422, "too_many_turns"),
        ({"mode": "daily", "messages": [user("x" * 8000)] * 4 + [user("x")]}, 422, "conversation_too_long"),
    ],
)
def test_refused_requests(chat: Chat, body: object, status: int, reason: str) -> None:
    answer = chat.ask(body)
    assert (answer.status, answer.reason) == (status, reason)
    assert chat.router.posts == 0


def test_the_caps_themselves_pass(chat: Chat) -> None:
    assert chat.ask({"mode": "deep", "messages": [user("🧑" * 8000)] * 4}).status == 200
    assert chat.ask({"mode": "deep", "messages": [user("x")] * 40}).status == 200


def test_only_one_bearer_token_opens(chat: Chat) -> None:
    body = {"mode": "daily", "messages": [user("x")]}
    json_type = ("Content-Type", "application/json")
    bearer = ("Authorization", f"Bearer {chat.token}")
    for headers in (
        [json_type],
        [json_type, ("Authorization", f"Basic {chat.token}")],
        [json_type, ("Authorization", chat.token)],
        [json_type, bearer, bearer],
        [json_type, ("Cookie", f"token={chat.token}")],
        [json_type, ("Authorization", "Bearer")],
    ):
        answer = ask(chat.proxy, "POST", API, body, headers)
        assert (answer.status, answer.reason, answer.get("WWW-Authenticate")) == (401, "unauthorized", "Bearer")
    # The token is looked at before the body.
    assert ask(chat.proxy, "POST", API, b"{", [json_type]).reason == "unauthorized"
    assert ask(chat.proxy, "POST", f"{API}?token={chat.token}", body, [json_type]).status == 400
    assert chat.router.posts == 0


def test_a_leaving_caller_frees_the_gate(chat: Chat) -> None:
    chat.router.enqueue([*stream(["one"], done=False)[:2], Wait("never")])
    headers = {"Authorization": f"Bearer {chat.token}", "Content-Type": "application/json"}
    client = RawClient(chat.proxy)
    client.send(request_bytes("POST", API, {"mode": "daily", "messages": [user("x")]}, headers))
    chat.router.wait_for(lambda: chat.router.concurrent == 1)
    client.rst()
    assert rounds(chat.proxy, lambda: chat.proxy.status()["gate"]["in_use"] == 0) < 5
    chat.router.wait_for(lambda: chat.router.concurrent == 0)


def test_off_unless_configured(router: Router) -> None:
    with Proxy(router) as proxy:
        for method, path in (("POST", API), ("GET", "/chat"), ("GET", API)):
            assert ask(proxy, method, path).reason == "not_found"
