"""The whole answer: gathered from deltas, byte by byte as a caller gets it."""

from __future__ import annotations

import json
from typing import Any

from eidproxy.relay.chunk import Delta, Function, ToolCall
from eidproxy.relay.completion import Completion


def answer(*deltas: Delta) -> dict[str, Any]:
    completion = Completion(1700000000, "deep")
    for delta in deltas:
        completion.add(delta)
    found: dict[str, Any] = json.loads(completion.encode("id-1", "stop"))
    return found


def message(*deltas: Delta) -> dict[str, Any]:
    found = answer(*deltas)["choices"][0]["message"]
    assert isinstance(found, dict)
    assert found.pop("role") == "assistant"
    return found


def test_an_answer_byte_by_byte() -> None:
    completion = Completion(1700000000, "deep")
    completion.add(Delta(role="assistant", content="Hel"))
    completion.add(Delta(content="lo"))
    assert completion.encode("id-1", "length") == (
        b'{"id":"chatcmpl-id-1","object":"chat.completion","created":1700000000,"model":"deep","choices":[{"index":0,'
        b'"message":{"role":"assistant","content":"Hello","refusal":null},"logprobs":null,"finish_reason":"length"}],'
        b'"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}}'
    )


def test_nothing_said_is_an_empty_text() -> None:
    assert message() == {"content": "", "refusal": None}
    assert message(Delta(role="assistant", content="")) == {"content": "", "refusal": None}


def test_reasoning_and_refusal() -> None:
    deltas = (Delta(reasoning_content="a"), Delta(reasoning_content="b", content="c"), Delta(refusal="d"))
    assert message(*deltas, deltas[-1]) == {"content": "c", "reasoning_content": "ab", "refusal": "dd"}


def test_calls() -> None:
    deltas = (
        Delta(tool_calls=[ToolCall(0, "a", "function", Function("f", "{"))]),
        Delta(
            tool_calls=[ToolCall(1, "b", "function", Function("g", None)), ToolCall(0, function=Function(None, "}"))]
        ),
        Delta(tool_calls=[ToolCall(1, function=Function(None, "[]")), ToolCall(1)]),
    )
    calls = [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}},
        {"id": "b", "type": "function", "function": {"name": "g", "arguments": "[]"}},
    ]
    assert message(*deltas) == {"content": None, "refusal": None, "tool_calls": calls}
    assert message(Delta(content="c"), *deltas) == {"content": "c", "refusal": None, "tool_calls": calls}
    nameless = Delta(tool_calls=[ToolCall(0, "a", "function")])
    assert message(nameless)["tool_calls"][0]["function"] == {"name": "", "arguments": ""}


def test_the_size_is_what_is_held() -> None:
    completion = Completion(1700000000, "deep")
    completion.add(Delta(content="일상", reasoning_content="ab", refusal="c", role="assistant"))
    completion.add(Delta(tool_calls=[ToolCall(0, "x", "function", Function("f", "{}"))]))
    assert completion.size == 9
