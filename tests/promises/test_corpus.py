"""Every recorded answer of a real server through eidproxy (contract, P3): the same text, nothing of the machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from eidproxy.errors import FINAL_STATUSES
from tests.corpus.expect import split
from tests.lab.callers import at_rest, check_error_event, check_refusal
from tests.lab.client import CHAT, Answer, RawClient, ask, chat, request_bytes
from tests.lab.proxy import Proxy
from tests.lab.router import Router
from tests.lab.script import CORPUS, Drained, Fin, Send, Step, Wait, pieces, recording, stream
from tests.lab.stream import parse_sse, told
from tests.lab.tools import size as amount

EXPECTED = json.loads((CORPUS / "expected.json").read_text("ascii"))

TELLTALES = [
    *("/Users/", "mlx-models", "system_fingerprint", "applegpu", "macOS", "arm64", "usage", "prompt_tokens"),
    *("completion_tokens", "mac-mini-default", "qwen-macbook", "BaseHTTP", "uvicorn", "llama", "gguf", "Qwen"),
    *("Traceback", "mlx", "logprobs", "timings"),
]


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[Router, Proxy]]:
    with Router() as router, Proxy(router, canaries=["Qwen", "gguf"]) as proxy:
        yield router, proxy


CONSTANT = (b'"logprobs":null,', b',"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}')
"""What each whole answer says, whatever the router does: it tells nothing."""


def whole(answer: Answer) -> bytes:
    """All that a caller gets: status, headers, body."""
    lines = [f"{name}: {value}\n" for name, value in answer.headers]
    body = answer.body
    for said in CONSTANT:
        body = body.replace(said, b"", 1)
    return "".join([f"{answer.status}\n", *lines]).encode() + body


def leaks(data: bytes) -> list[str]:
    """The tell-tale words in it. What an answer says is not one of them: they stand in its text at times."""
    return [word for word in TELLTALES if word.encode().lower() in data.lower()]


@pytest.mark.parametrize("model", ["daily", "deep"])
@pytest.mark.parametrize("name", EXPECTED)
def test_recording(shared: tuple[Router, Proxy], name: str, model: str) -> None:
    router, proxy = shared
    known = EXPECTED[name]
    for streaming in (True, False):
        router.script = recording(name)
        answer = ask(proxy, "POST", CHAT, chat(model, streaming))
        assert leaks(whole(answer)) == []
        if not known["stream"]:
            # A whole answer where a stream was asked for, or a status.
            assert answer.status in (500, 503)
            reason = "upstream_protocol_error" if known["status"] == 200 else answer.reason or ""
            check_refusal(answer, answer.status, reason, final=known["status"] in FINAL_STATUSES)
        elif known["finish_reason"] is None:
            if streaming:
                check_error_event(answer, 503, "upstream_truncated")
                assert answer.told().text == known["text"]
            else:
                check_refusal(answer, 503, "upstream_truncated")
        elif streaming:
            said = answer.told()
            assert (said.text, said.reasoning, said.finish_reason, said.done, said.errors) == (
                *(known["text"], known["reasoning"], known["finish_reason"]),
                *(True, []),
            )
        else:
            choice = answer.json()["choices"][0]
            assert choice["finish_reason"] == known["finish_reason"]
            assert choice["message"]["content"] == known["text"]
            assert choice["message"].get("reasoning_content", "") == known["reasoning"]
    at_rest(router, proxy)


def test_the_recordings_tell() -> None:
    """Control: the words looked for above do stand in what the real servers said."""
    found = {word for path in CORPUS.glob("*.http") for word in leaks(path.read_bytes())}
    assert {"/Users/", "system_fingerprint", "usage", "BaseHTTP", "uvicorn", "logprobs"} <= found


def test_every_cut(shared: tuple[Router, Proxy]) -> None:
    """One stream cut at each byte boundary: the same output for each cut."""
    router, proxy = shared
    for name in ("mlx-deep-stream", "llama-stream"):
        data = (CORPUS / f"{name}.http").read_bytes()
        router.script = recording(name)
        headers = {"X-Request-Id": "cut"}
        reference = parse_sse(ask(proxy, "POST", CHAT, chat(), headers).body)
        expected = [(item.event, strip(item.data)) for item in reference]
        assert len(expected) > 5
        step = amount(max(len(data) // 400, 1), 1)
        for cut in range(1, len(data), step):
            router.script = [*pieces(data, [cut]), Fin()]
            answer = ask(proxy, "POST", CHAT, chat(), headers)
            assert [(item.event, strip(item.data)) for item in answer.events()] == expected, (name, cut)
        router.script = recording(name, cuts=range(1, len(data), amount(7, 1)))
        answer = ask(proxy, "POST", CHAT, chat(), headers, timeout=60)
        assert [(item.event, strip(item.data)) for item in answer.events()] == expected


def strip(data: str) -> object:
    """An event without the time at which its request was accepted."""
    if data == "[DONE]":
        return data
    value = json.loads(data)
    del value["created"]
    return value


def test_each_event_is_out_as_soon_as_it_is_whole(shared: tuple[Router, Proxy]) -> None:
    """The router holds back all that follows an event's last byte, and its caller has it all the same."""
    router, proxy = shared
    raw = (CORPUS / "llama-stream.http").read_bytes()
    _, _, body = split(raw)
    steps: list[Step] = [Send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")]
    events = [part for part in body.replace(b"\r\n", b"\n").split(b"\n\n") if part]
    for number, part in enumerate(events):
        steps += [Send(part + b"\n"), Drained(), Send(b"\n"), Wait(f"{number}")]
    router.script = [*steps, Fin()]
    with RawClient(proxy, timeout=5) as client:
        client.send(request_bytes("POST", CHAT, chat()))
        pieces: Iterator[bytes] | None = None
        got = []
        for number, part in enumerate(events):
            said = told(part + b"\n\n")
            if said.text or said.done:  # the finish reason goes out with `[DONE]`
                if pieces is None:  # the first event that says something begins the answer
                    client.read_head()
                    pieces = client.events()
                got.append(next(pieces))
            router.release(f"{number}")
        got += pieces or ()
        assert got[-1] == b"data: [DONE]\n\n"
        assert told(b"".join(got)).text == EXPECTED["llama-stream"]["text"]


FIELD: dict[str, dict[str, Any]] = json.loads((CORPUS / "field" / "expected.json").read_text("utf-8"))


def test_each_field_case_is_known() -> None:
    assert {path.stem for path in CORPUS.glob("field/*.http")} == set(FIELD)


@pytest.mark.parametrize("name", FIELD)
def test_what_a_router_sends(shared: tuple[Router, Proxy], name: str) -> None:
    """Answers as routers were seen to send them: nothing lost, nothing merged, no half answer for a whole one."""
    router, proxy = shared
    known = FIELD[name]
    for streaming in (True, False):
        router.script = recording(CORPUS / "field" / f"{name}.http")
        answer = ask(proxy, "POST", CHAT, chat("deep", streaming))
        assert leaks(whole(answer)) == []
        if "reason" not in known:
            message, finish_reason = message_of(answer, streaming)
            wanted = [known.get(field, "") for field in ("text", "reasoning", "refusal")]
            assert [message.get(field) or "" for field in ("content", "reasoning_content", "refusal")] == wanted
            calls = message.get("tool_calls", [])
            assert [[call["function"]["name"], call["function"]["arguments"]] for call in calls] == known.get(
                "calls", []
            )
            assert len({call["id"] for call in calls}) == len(calls)
            assert finish_reason == known["finish_reason"]
        elif streaming and "text" in known:
            check_error_event(answer, 503, known["reason"])
            assert answer.told().text == known["text"]
        else:
            check_refusal(answer, known.get("status", 503), known["reason"], final=known.get("final", False))
            assert known.get("retry_after", 5) == int(answer.get("Retry-After") or 5)
    at_rest(router, proxy)


def message_of(answer: Answer, streaming: bool) -> tuple[dict[str, Any], str]:
    """The message of a whole answer, put together by index where it is a stream, and its finish reason."""
    if not streaming:
        (choice,) = answer.json()["choices"]
        return choice["message"], choice["finish_reason"]
    *events, done = answer.events()
    assert done.data == "[DONE]"
    message: dict[str, Any] = {}
    for number, event in enumerate(events):
        (choice,) = event.json()["choices"]
        assert ("role" in choice["delta"]) is (number == 0)
        assert (choice["finish_reason"] is None) is (number < len(events) - 1)
        for field, value in choice["delta"].items():
            if field != "tool_calls":
                message[field] = message.get(field, "") + value
                continue
            calls = message.setdefault("tool_calls", [])
            for piece in value:
                if "id" in piece:
                    assert piece["index"] == len(calls)
                    calls.append(piece)
                else:
                    calls[piece["index"]]["function"]["arguments"] += piece["function"]["arguments"]
    assert choice["delta"] == {}
    return message, choice["finish_reason"]


REQUESTS = {path.stem: json.loads(path.read_bytes()) for path in sorted(CORPUS.glob("requests/*.json"))}


@pytest.mark.parametrize("name", REQUESTS)
def test_what_a_client_sends(shared: tuple[Router, Proxy], name: str) -> None:
    """Bodies as clients were seen to send them: understood, or refused with the field that leads elsewhere."""
    router, proxy = shared
    router.reset()
    router.script = stream()
    known = REQUESTS[name]
    for streaming in (True, False):
        answer = ask(proxy, "POST", CHAT, {"stream": streaming, **known["body"]})
        if "refused" in known:
            check_refusal(answer, 400, *known["refused"])
            assert router.requests == []
            continue
        assert answer.status == 200
        asked = router.requests[-1].json
        assert asked.pop("model") == {"daily": "mac-mini-default", "deep": "qwen-macbook"}[known["body"]["model"]]
        assert asked.pop("stream") is True
        assert asked == {"max_tokens": 2048, "temperature": 0.4, **known["sent"]}
    at_rest(router, proxy)
