"""Every spelling that routers have for one thing is read as that thing; what is no chunk is told apart."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from msgspec import UNSET, Raw

from eidproxy.relay.dialect import (
    NotJson,
    NotObject,
    RouterCall,
    RouterChoice,
    RouterDelta,
    RouterFunction,
    TooManyItems,
    count_unknown_fields,
    decode_event,
    decode_usage,
    is_error,
    is_json,
    says_something,
)
from tests.lab.cost import cost


def came(delta: Any, **choice: Any) -> RouterDelta | None:
    """What is read of a delta."""
    (found,) = decode_event(json.dumps({"choices": [{"delta": delta, **choice}]}).encode())[0].choices or []
    assert found.message is None
    return found.delta


def texts(delta: Any) -> tuple[str | None, str | None, str | None]:
    """Content, reasoning and refusal of a delta: what counts of them."""
    found = came(delta)
    assert found is not None
    return found.content or None, found.reasoning_content or found.reasoning or None, found.refusal or None


PART = {"type": "text", "text": "a"}

TEXTS: dict[str, tuple[Any, tuple[str | None, str | None, str | None]]] = {
    "a text": ({"content": "a"}, ("a", None, None)),
    "reasoning_content": ({"reasoning_content": "r"}, (None, "r", None)),
    "reasoning": ({"reasoning": "r"}, (None, "r", None)),
    "both": ({"reasoning": "a", "reasoning_content": "b"}, (None, "b", None)),
    "both, one empty": ({"reasoning": "a", "reasoning_content": ""}, (None, "a", None)),
    "a refusal": ({"refusal": "no"}, (None, None, "no")),
    "nulls": ({"content": None, "reasoning": None, "refusal": None, "tool_calls": None}, (None, None, None)),
    "parts": ({"content": [PART, {"type": "text", "text": "b"}]}, ("ab", None, None)),
    "no parts": ({"content": []}, (None, None, None)),
    "parts without a type": ({"content": [{"text": "a"}, "b"]}, ("ab", None, None)),
    "a part of thinking": ({"content": [{"type": "thinking", "thinking": "t"}, PART]}, ("a", "t", None)),
    "a part of thinking in parts": ({"content": [{"type": "thinking", "thinking": [PART]}]}, (None, "a", None)),
    "a part of reasoning": ({"content": [{"type": "reasoning", "reasoning": "r"}]}, (None, "r", None)),
    "a part of reasoning as text": ({"content": [{"type": "reasoning", "text": "r"}]}, (None, "r", None)),
    "another part": ({"content": [{"type": "image_url", "text": "canary"}, PART]}, ("a", None, None)),
    "parts that are none": ({"content": [5, None, {"type": "text", "text": 5}, [], PART]}, ("a", None, None)),
    "words before parts": ({"content": ["", "a", {"text": "b"}]}, ("ab", None, None)),
    "a refusal beside parts": ({"content": [PART], "refusal": "no"}, ("a", None, "no")),
    "thinking in parts and reasoning": (
        {"content": [{"type": "thinking", "thinking": "t"}], "reasoning": "r"},
        (None, "tr", None),
    ),
    "reasoning as parts": ({"reasoning_content": [PART]}, (None, "a", None)),
    "text of a strange type": ({"content": 5, "refusal": 5, "reasoning": {"x": 1}}, (None, None, None)),
    "a text beside strange things": ({"content": "a", "reasoning": 5, "tool_calls": "canary"}, ("a", None, None)),
    "a role of a strange type": ({"role": 5, "content": "a"}, ("a", None, None)),
}


@pytest.mark.parametrize(("delta", "wanted"), TEXTS.values(), ids=TEXTS.keys())
def test_texts(delta: Any, wanted: tuple[str | None, str | None, str | None]) -> None:
    assert texts(delta) == wanted


def calls(*given: Any) -> list[RouterCall]:
    found = came({"tool_calls": list(given)})
    assert found is not None
    return found.tool_calls or []


CALLS: dict[str, tuple[Any, RouterCall | None]] = {
    "a call": (
        {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}},
        RouterCall(0, "a", RouterFunction("f", "{}")),
    ),
    "arguments that are an object": (
        {"index": 0, "function": {"name": "f", "arguments": {"city": "Busan"}}},
        RouterCall(0, None, RouterFunction("f", '{"city": "Busan"}')),
    ),
    "arguments that are a list": (
        {"function": {"arguments": [1.0]}},
        RouterCall(None, None, RouterFunction(None, "[1.0]")),
    ),
    "arguments null": (
        {"index": "0", "function": {"name": "f", "arguments": None}},
        RouterCall(0, None, RouterFunction("f")),
    ),
    "an index with a point": ({"index": 1.0}, RouterCall(1, None, RouterFunction())),
    "an index in a text": ({"index": "12"}, RouterCall(12, None, RouterFunction())),
    "strange types": ({"index": [], "id": 5, "function": {"name": 5}}, RouterCall(None, None, RouterFunction())),
    "no function": ({"index": "x", "id": "a"}, RouterCall(None, "a", RouterFunction())),
    "a function of a strange type": ({"id": "a", "function": 5}, None),
    "no call": (None, None),
}


@pytest.mark.parametrize(("given", "wanted"), CALLS.values(), ids=CALLS.keys())
def test_calls(given: Any, wanted: RouterCall | None) -> None:
    assert calls(given, {"index": "odd"})[:-1] == ([] if wanted is None else [wanted])


CHOICES: dict[str, tuple[Any, int | None, bool]] = {
    "an index": ({"index": 3, "delta": {}}, 3, True),
    "no index": ({"delta": {}}, 0, True),
    "null": ({"index": None, "delta": {}}, 0, True),
    "a float": ({"index": 0.0, "delta": {"content": []}}, 0, True),
    "a word": ({"index": "0", "delta": {}}, 0, True),
    "another word": ({"index": "1", "delta": {}}, 1, True),
    "a word that is no number": ({"index": "x", "delta": {}}, 0, False),
    "a truth": ({"index": True, "delta": {}}, 0, False),
    "bare": ({}, 0, True),
    "bare and odd": ({"finish_reason": 5}, 0, True),
    "a delta that is a text": ({"delta": "canary"}, 0, False),
    "a delta that is a text, and an end": ({"delta": "canary", "finish_reason": "stop"}, 0, True),
    "a delta that is a text, and an error": ({"delta": "canary", "error": {"message": "x"}}, 0, True),
    "a delta that is a text, and a message": ({"delta": "canary", "message": {"content": "a"}}, 0, True),
    "no choice": (None, 0, False),
}


@pytest.mark.parametrize(("choice", "index", "counts"), CHOICES.values(), ids=CHOICES.keys())
def test_choices(choice: Any, index: int | None, counts: bool) -> None:
    found = decode_event(json.dumps({"choices": [choice, {"index": 9, "delta": {"content": []}}]}).encode())[0].choices
    assert found is not None
    assert [each.index for each in found] == ([index, 9] if counts else [9])


def test_a_choice_that_is_read_loosely_is_read_whole() -> None:
    choice = {"index": "0", "message": {"content": "a"}, "finish_reason": "length", "error": "boom"}
    (found,) = decode_event(json.dumps({"choices": [choice]}).encode())[0].choices or []
    assert found.message is not None
    assert (found.message.content, found.finish_reason, found.error) == ("a", "length", Raw(b'"boom"'))


def test_a_message_in_the_delta_s_place() -> None:
    (choice,) = decode_event(b'{"choices":[{"message":{"content":"a"},"finish_reason":"stop"}]}')[0].choices or []
    assert choice.delta is None
    assert choice.message == RouterDelta("a")
    assert choice.finish_reason == "stop"


NO_CHUNK: dict[str, tuple[bytes, type[Exception]]] = {
    "nothing": (b"", NotJson),
    "text": (b"hello", NotJson),
    "cut": (b'{"choices":[{"delta":{"content":"a"', NotJson),
    "two objects": (b'{"choices":[]}{}', NotJson),
    "NaN": (b'{"x":NaN}', NotJson),
    "deep": (b'{"x":' + b"[" * 100_000, NotJson),
    "deep where a type is wrong": (b'{"choices":5,"x":' + b"[" * 100_000, NotJson),
    "wrong, then no JSON": (b'{"choices":5,', NotJson),
    "a list that is no JSON": (b"[DONE: 5]", NotJson),
    "broken Unicode and no JSON": (b'{"x":"\xff"', NotJson),
    "null": (b"null", NotObject),
    "number": (b"5", NotObject),
    "array": (b'[{"choices":[]}]', NotObject),
    "choices an object": (b'{"choices":{"0":{}}}', NotObject),
    "a number without end": (b'{"choices":[{"index":1e999}]}', NotObject),
    "choices a string": (b'{"choices":"canary"}', NotObject),
    "a choice null": (b'{"choices":[null]}', NotObject),
    "broken Unicode in a list": (b'["\xff"]', NotObject),
}


@pytest.mark.parametrize(("data", "kind"), NO_CHUNK.values(), ids=NO_CHUNK.keys())
def test_what_is_no_chunk(data: bytes, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        decode_event(data)


def test_the_texts_of_a_delta_have_the_names_that_callers_know() -> None:
    said = RouterDelta(content="a", reasoning_content="b", reasoning="not this one", refusal="c")
    assert said.texts() == {"content": "a", "reasoning_content": "b", "refusal": "c"}
    assert RouterDelta(content="", reasoning="b").texts() == {"reasoning_content": "b"}
    assert RouterDelta().texts() == {}


def test_broken_unicode_is_mended_wherever_it_stands() -> None:
    chunk, data, marked = decode_event(b'{"choices":[{"delta":{"content":"a\xffb","tool_calls":[]}}]}')
    assert (chunk.choices or [])[0].delta == RouterDelta("a\ufffdb", tool_calls=[])
    assert data == '{"choices":[{"delta":{"content":"a\ufffdb","tool_calls":[]}}]}'.encode()
    assert marked
    # Where nobody reads it, it is nobody's business.
    assert decode_event(b'{"choices":[{"delta":{"content":"a"}}],"x":"\xff"}')[2] is False
    # In a leaf of an event that is read twice.
    chunk, _, _ = decode_event(b'{"choices":[{"delta":{"content":[{"type":"text","text":"\xff."}]}}]}')
    assert "." in ((chunk.choices or [])[0].delta or RouterDelta()).content  # type: ignore[operator]


@pytest.mark.parametrize(
    ("spelled", "says"),
    [
        *(("null", False), ("false", False), ('""', False), ("{}", False), ("{ }", False), ('" "', False)),
        *(('"x"', True), ('"X"', True), ("true", True), ("0", True), ("[]", True), ('{"x":null}', True)),
    ],
)
def test_an_error_that_says_nothing_is_none(spelled: str, says: bool) -> None:
    assert says_something(Raw(spelled.encode())) is says


def test_no_error_says_nothing() -> None:
    assert not says_something(UNSET)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"{}", False),
        (b'{"object":"chat.completion.chunk"}', False),
        (b'{"object":"error","message":"x"}', True),
        (b'{"error_type":"InternalServerError"}', True),
        (b'{"choices":5,"error_message":"x"}', True),
        (b'{"error_type":null,"error_message":""}', False),
    ],
)
def test_errors_without_an_error(data: bytes, error: bool) -> None:
    assert is_error(decode_event(data)[0]) is error


def test_an_error_beside_strange_choices_is_found() -> None:
    for data in (b'{"choices":5,"error":"x"}', b'{"choices":"x","detail":"x"}'):
        chunk, _, _ = decode_event(data)
        assert says_something(chunk.error) or says_something(chunk.detail)


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}, (3, 4)),
        ({"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 1}}, (3, 0)),
        ({}, (0, 0)),
        ({"prompt_tokens": 10**9, "completion_tokens": 0}, (10**9, 0)),
        ({"prompt_tokens": 10**9 + 1, "completion_tokens": 1}, None),
        ({"prompt_tokens": 10**400, "completion_tokens": 1}, None),
        ({"prompt_tokens": -1, "completion_tokens": 1}, None),
        ({"prompt_tokens": 1.5, "completion_tokens": 1}, None),
        ({"prompt_tokens": "3", "completion_tokens": 1}, None),
        ({"prompt_tokens": None, "completion_tokens": 1}, None),
        ({"prompt_tokens": True, "completion_tokens": 1}, None),
        (None, None),
        ([], None),
        ("canary", None),
    ],
)
def test_usage(usage: Any, tokens: tuple[int, int] | None) -> None:
    assert decode_usage(Raw(json.dumps(usage).encode())) == tokens


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (b"{}", 0),
        (b'{"id":1,"model":"m","x":1,"y":2}', 2),
        (b'{"x":1,"choices":[{"logprobs":null},{"index":1,"z":1,"delta":null}]}', 2),
        (b'{"choices":[{"delta":{"audio":1,"content":"a"}}]}', 1),
        (b'{"choices":[{"delta":null}],"x":1}', 0),
        (b'{"choices":5,"x":1}', 0),
        (b"{", 0),
        (b'{"x":' + b"[" * 100_000, 0),
    ],
)
def test_unknown_fields_are_counted_where_that_can_be_done(data: bytes, count: int) -> None:
    assert count_unknown_fields(data) == count


def test_a_list_without_end_is_not_read_in_part() -> None:
    decode_event(b'{"choices":[' + b'{"index":"0","delta":{"content":"a"}},' * 2047 + b"{}]}")
    with pytest.raises(TooManyItems):
        decode_event(b'{"choices":[' + b'{"index":"0","delta":{"content":"a"}},' * 2048 + b"{}]}")


def test_contents_in_contents_end_somewhere() -> None:
    def nested(depth: int) -> bytes:
        return b'{"choices":[{"delta":{"content":%s"a"%s}}]}' % (
            b'[{"type":"thinking","thinking":' * depth,
            b"}]" * depth,
        )

    (choice,) = decode_event(nested(4))[0].choices or [RouterChoice(0, None, None, None, UNSET)]
    assert isinstance(choice.delta, RouterDelta)
    assert choice.delta.reasoning_content == "a"
    with pytest.raises(TooManyItems):
        decode_event(nested(5))


def test_json() -> None:
    assert is_json("{}")
    assert is_json(b"[1]")
    assert not is_json('{"a":')
    assert not is_json(b"[" * 100_000)


MIB = 1024 * 1024
HEAVY = {
    "numbers": b'{"choices":[' + b"1e300," * (MIB // 6) + b"1]}",
    "numbers where nobody reads": b'{"x":[' + b"1e300," * (MIB // 6) + b"1]}",
    "numbers in a usage": b'{"usage":[' + b"5e-324," * (MIB // 7) + b"1]}",
    "objects": b'{"choices":[' + b"{}," * (MIB // 3) + b"{}]}",
    "odd choices": b'{"choices":[' + b'{"index":[]},' * (MIB // 13) + b"{}]}",
    "choices with contents": b'{"choices":[' + b'{"delta":{"content":[0,0,0,0]}},' * (MIB // 31) + b"{}]}",
    "contents in contents": b'{"choices":[{"delta":{"content":'
    + b'[{"type":"thinking","thinking":' * 300
    + b'"'
    + b"a" * MIB
    + b'"'
    + b"}]" * 300
    + b"}}]}",
    "broken bytes": b'{"choices":[{"delta":{"content":"' + b"\xff" * MIB + b'"}}]}',
    "lone halves": b'{"choices":[{"delta":{"content":"' + rb"\ud83d" * (MIB // 6) + b'"}}]}',
}


@pytest.mark.parametrize("data", HEAVY.values(), ids=HEAVY.keys())
def test_no_event_costs_more_than_its_bytes(data: bytes) -> None:
    """Work for each byte is bounded: nothing that goes nowhere is decoded (msgspec takes 8 µs for `1e300`)."""

    def decode(data: bytes) -> None:
        with contextlib.suppress(NotJson, NotObject, TooManyItems):
            decode_event(data)

    plain = b'{"choices":[{"delta":{"content":"' + b"\xec\x9d\xbc" * (MIB // 3) + b'"}}]}'
    assert cost(lambda: decode(data)) < 200 * cost(lambda: decode(plain)) + 0.05


@pytest.mark.parametrize("last", [b"[]", b"[ ]", b"null"])
def test_the_last_of_two_choices_counts(last: bytes) -> None:
    """The first makes the typed decoder give up; the second says that the event has none, which is no fault."""
    chunk, _, _ = decode_event(b'{"model":"m","choices":[{"index":true}],"choices":' + last + b"}")
    assert not chunk.choices
    assert bytes(chunk.model) == b'"m"'  # type: ignore[arg-type]
